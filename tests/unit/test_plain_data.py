"""JSON and YAML that anybody may have written: bounded, and every fault one that is told."""

import json
import sys

import pytest
import yaml

from calm_lightning.plain_data import (
    MOST_ALIASED,
    MOST_NESTED,
    Bomb,
    nothing_imported,
    parse_json,
    parse_yaml,
    refuse_hidden_bombs,
)


@pytest.mark.parametrize("text", ["[" * 100_000, '{"a":' * 50_000, f"[{'9' * 5000}]", "{", ""])
def test_json_fails_in_one_way(text: str) -> None:
    with pytest.raises(json.JSONDecodeError):
        parse_json(text)


def test_what_is_whole_is_read() -> None:
    assert parse_json('{"a": [1, 2.5, null]}') == {"a": [1, 2.5, None]}
    assert parse_yaml("a: &a {b: 1}\nc: {<<: *a, d: 2}\ne: [*a, *a]") == {
        "a": {"b": 1}, "c": {"b": 1, "d": 2}, "e": [{"b": 1}, {"b": 1}],
    }  # fmt: skip


@pytest.mark.parametrize(
    "text",
    ["a: 2020-13-45", f"a: {'9' * 5000}", "!!bool perhaps", "!!timestamp x", "!!int ''", "\0",
     "a: [", "*nowhere", "!!python/object/apply:os.getpid []", "\ud800"],
)  # fmt: skip
def test_yaml_fails_in_one_way(text: str) -> None:
    with pytest.raises(yaml.YAMLError):
        parse_yaml(text)


def test_collections_may_be_in_one_another_so_often_and_no_more() -> None:
    assert parse_yaml("[" * MOST_NESTED + "]" * MOST_NESTED)
    with pytest.raises(Bomb, match=f"more than {MOST_NESTED} collections"):
        parse_yaml("[" * (MOST_NESTED + 1) + "]" * (MOST_NESTED + 1))


def test_aliases_may_stand_for_so_much_and_no_more() -> None:
    entries = 1000  # of the list behind the anchor, and the list itself
    anchored = f"a: &a [{', '.join('x' * (entries - 1))}]\n"
    times = MOST_ALIASED // entries
    assert parse_yaml(anchored + f"b: [{', '.join(['*a'] * times)}]")
    with pytest.raises(Bomb, match="more than 100,000 entries"):
        parse_yaml(anchored + f"b: [{', '.join(['*a'] * (times + 1))}]")


def test_an_alias_inside_of_itself_is_refused() -> None:
    with pytest.raises(Bomb, match=r"\*a stands inside of what it stands for"):
        parse_yaml("&a [b, [*a]]")


def test_texts_in_values_are_looked_into_but_need_not_be_yaml() -> None:
    refuse_hidden_bombs({"a": ["Solve: {x [", {"b": "*"}], "c": 5})
    with pytest.raises(Bomb):
        refuse_hidden_bombs({"a": [{"b": "[" * 1000}]})


def test_a_package_is_not_imported_for_the_first_time() -> None:
    sys.modules.pop("antigravity", None)
    with nothing_imported(), pytest.raises(ImportError, match="antigravity is of no plug-in"):
        import antigravity  # noqa: F401
    with nothing_imported():
        import json.tool  # noqa: F401
    assert "antigravity" not in sys.modules
