"""Promises of the trees of texts that a frozen model grows, and of the task that learns them."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from calm_lightning.backbone import Backbone, BackboneSource
from calm_lightning.contracts import CalmError, Task
from calm_lightning.testing import tiny_backbone, tiny_tokenizer
from calm_plugins.tasks.mixture import Mixture
from calm_plugins.tasks.self_decompression import SelfDecompression, growing
from calm_plugins.tasks.self_decompression.deduplication import Deduplication
from calm_plugins.tasks.self_decompression.growing import Grower
from calm_plugins.tasks.self_decompression.roles import roles_of
from calm_plugins.tasks.self_decompression.store import Store, read
from calm_plugins.tasks.self_decompression.tree import Corpus, Node, Tree

ROOT = Path(__file__).parents[3]
TINY = str(ROOT / "configs" / "models" / "tiny" / "anchor")
TEMPLATE = (
    "{% for m in messages %}"
    "{% if m.role == 'system' %}{{ m.content }}/"
    "{% else %}{{ m.role[0] }}:{{ m.content }};{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}a:{% endif %}"
)
TEXT = {"style": "text", "start": "ab", "max_new_tokens": 6}


@pytest.fixture(scope="module")
def backbone() -> Backbone:
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = TEMPLATE
    # Weights of usual size leave every token likely, so that texts differ.
    return tiny_backbone(tokenizer=tokenizer, scale=0.02, layers=2)


def grow(
    backbone: Backbone, file: Path, by: str = "text", at_a_time: int = 3, **settings: Any
) -> Corpus:
    tree = Tree(**({"branching": (5, 2)} | TEXT | settings))
    deduplication = Deduplication(by=by)  # type: ignore[arg-type]
    store = Store(file, {"model": {"path": "tiny"}, "tree": vars(tree)})
    roles = roles_of(backbone.require_tokenizer(), backbone.name, tree)
    Grower(backbone, roles, tree, deduplication, store, at_a_time).grow()
    return store.corpus


def task(file: Path, **settings: Any) -> SelfDecompression:
    tree = settings.pop("tree", Tree((6, 2), 4, "text", start_pattern="[1-9][+]"))
    model = BackboneSource(TINY, weights="random")
    return SelfDecompression(model, file, tree, **settings)


# The tree


def test_every_node_has_its_children_and_is_one_line(backbone: Backbone, tmp_path: Path) -> None:
    corpus = grow(backbone, tmp_path / "tree.jsonl")
    first = [f"0.{number}" for number in range(5)]
    going_on = [name for name in first if not corpus.nodes[name].ended]
    second = [f"{name}.{number}" for name in going_on for number in range(2)]
    assert sorted(corpus.nodes) == sorted(first + second)
    lines = [json.loads(line) for line in (tmp_path / "tree.jsonl").read_text().splitlines()]
    assert lines[0]["id"] == "0"
    assert lines[0]["about"]["tree"]["seed"] == 0
    (node,) = (line for line in lines if line.get("id") == "0.3.1")
    assert node.keys() == {"id", "parent", "level", "text", "start", "seed", "tokens", "ended"}
    assert (node["parent"], node["level"], node["tokens"]) == ("0.3", 2, 6)


def test_a_text_goes_on_where_its_parents_stopped(
    backbone: Backbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    original = growing.draw

    def spy(one: Backbone, roles: Any, prompts: Sequence[str], *rest: Any) -> Any:
        asked.extend(prompts)
        return original(one, roles, prompts, *rest)

    monkeypatch.setattr(growing, "draw", spy)
    corpus = grow(backbone, tmp_path / "tree.jsonl")
    assert asked[:5] == ["ab"] * 5
    going_on = [node for node in corpus.kept() if node.level == 1 and not node.ended]
    assert asked[5:7] == ["ab" + going_on[0].text] * 2


def test_the_corpus_does_not_depend_on_where_it_was_stopped(
    backbone: Backbone, tmp_path: Path
) -> None:
    """After a kill at any byte the file becomes what it would have been, to the byte."""
    file = tmp_path / "tree.jsonl"
    grow(backbone, file)
    whole = file.read_bytes()
    for end in [0, 1, *range(100, len(whole), 190), len(whole) - 1]:
        file.write_bytes(whole[:end])
        grow(backbone, file)
        assert file.read_bytes() == whole, end


def test_a_finished_tree_is_not_drawn_again(
    backbone: Backbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    grow(backbone, tmp_path / "tree.jsonl")
    before = (tmp_path / "tree.jsonl").read_bytes()
    monkeypatch.delattr(growing, "draw")
    grow(backbone, tmp_path / "tree.jsonl")
    assert (tmp_path / "tree.jsonl").read_bytes() == before


def test_a_line_taken_out_is_drawn_again_and_alike(backbone: Backbone, tmp_path: Path) -> None:
    file = tmp_path / "tree.jsonl"
    before = dict(grow(backbone, file).nodes)
    lines = file.read_text().splitlines(keepends=True)
    file.write_text("".join(line for line in lines if '"id": "0.2"' not in line))
    assert grow(backbone, file).nodes == before


def test_another_seed_draws_other_texts(backbone: Backbone, tmp_path: Path) -> None:
    one, other = (
        [node.text for node in grow(backbone, tmp_path / f"{seed}.jsonl", seed=seed).kept()]
        for seed in (0, 1)
    )
    assert not set(one) & set(other)


def test_starts_match_their_pattern_and_differ(backbone: Backbone, tmp_path: Path) -> None:
    corpus = grow(backbone, tmp_path / "tree.jsonl", start="x", start_pattern="[1-9]{2}[+]")
    starts = [node.start for node in corpus.nodes.values() if node.level == 1]
    assert all(s[0] == "x" and s[1:3].isdigit() and s[3:] == "+" for s in starts)
    assert len(set(starts)) > 1
    assert {node.start for node in corpus.nodes.values() if node.level == 2} == {""}


def test_what_does_not_fit_the_context_is_not_continued(backbone: Backbone, tmp_path: Path) -> None:
    corpus = grow(backbone, tmp_path / "tree.jsonl", max_new_tokens=(40, 40))
    long = {node.id for node in corpus.nodes.values() if node.tokens == 40}
    assert long
    assert not long & {node.parent for node in corpus.nodes.values()}
    with pytest.raises(CalmError, match=r"99 further tokens on level 1 .*holds 64.*start has 2"):
        grow(backbone, tmp_path / "other.jsonl", max_new_tokens=99)


def test_a_pattern_that_is_none_is_refused(backbone: Backbone, tmp_path: Path) -> None:
    with pytest.raises(CalmError, match=r"start_pattern='\[1-' is not understood"):
        grow(backbone, tmp_path / "tree.jsonl", start_pattern="[1-")


# The file


def test_a_file_made_otherwise_is_refused_and_left(backbone: Backbone, tmp_path: Path) -> None:
    file = tmp_path / "tree.jsonl"
    grow(backbone, file)
    before = file.read_bytes()
    with pytest.raises(CalmError, match=r"tree.temperature=1.0, not 0.5.*nothing was changed"):
        grow(backbone, file, temperature=0.5)
    about = {"model": {"path": "elsewhere", "fingerprint": "f0"}, "tree": {}}
    with pytest.raises(CalmError, match=r"model.fingerprint=None, not 'f0'"):
        Store(file, about)
    assert file.read_bytes() == before


def test_the_place_of_the_model_decides_nothing(backbone: Backbone, tmp_path: Path) -> None:
    file = tmp_path / "tree.jsonl"
    Store(file, {"model": {"path": "here", "fingerprint": "f0"}})
    Store(file, {"model": {"path": "there", "fingerprint": "f0"}})


@pytest.mark.parametrize("content", ["my notes", "my notes\n", '{"id": "1"}\n', "[]\n", "{}\n"])
def test_a_file_of_something_else_is_refused_and_left(tmp_path: Path, content: str) -> None:
    file = tmp_path / "notes.txt"
    file.write_text(content)
    with pytest.raises(CalmError, match="file of something else"):
        Store(file, {"model": {}})
    assert file.read_text() == content


@pytest.mark.parametrize("line", ['{"id": "0.1", "te', '{"id": "0.1"}', '{"judged": "0"}', "7"])
def test_a_damaged_line_is_named(backbone: Backbone, tmp_path: Path, line: str) -> None:
    file = tmp_path / "tree.jsonl"
    grow(backbone, file)
    lines = file.read_text().splitlines()
    file.write_text("\n".join([*lines[:2], line, *lines[3:]]) + "\n")
    before = file.read_bytes()
    with pytest.raises(CalmError, match=r"tree.jsonl, line 3 is damaged.*Delete that line"):
        grow(backbone, file)
    assert file.read_bytes() == before


def test_a_tree_that_is_not_finished_is_not_learnt(backbone: Backbone, tmp_path: Path) -> None:
    file = tmp_path / "tree.jsonl"
    grow(backbone, file)
    whole = file.read_bytes()
    file.write_bytes(whole[:-1])
    with pytest.raises(CalmError, match="not finished"):
        read(file)
    with pytest.raises(CalmError, match="is not there"):
        read(tmp_path / "none.jsonl")


def test_a_folder_is_no_cache(tmp_path: Path) -> None:
    with pytest.raises(CalmError, match="cannot be read"):
        Store(tmp_path, {"model": {}})


# Conversations


def test_questions_and_answers_take_turns(backbone: Backbone, tmp_path: Path) -> None:
    chat = {"style": "chat", "start": "", "system": "be kind", "branching": (2, 1, 1, 1)}
    corpus = grow(backbone, tmp_path / "tree.jsonl", **chat)
    tree = Tree((2, 1, 1, 1), style="chat", system="be kind")
    roles = roles_of(backbone.require_tokenizer(), "tiny", tree)
    path = corpus.path(corpus.nodes["0.1.0.0.0"])
    texts = [node.text for node in path]
    assert roles.prompt([]) == "be kind/u:"
    assert roles.prompt(path[:1]) == f"be kind/u:{texts[0]};a:"
    assert roles.prompt(path[:2]) == f"be kind/u:{texts[0]};a:{texts[1]};u:"
    assert roles.examples(path[:1], False) == []
    (example,) = roles.examples(path, True)
    assert example.prompt == f"be kind/u:{texts[0]};a:{texts[1]};u:{texts[2]};a:"
    assert example.target == texts[3]


def test_a_turn_ends_where_the_template_ends_it(backbone: Backbone, tmp_path: Path) -> None:
    """`;` closes a turn in this template; it is plain text there."""
    corpus = grow(backbone, tmp_path / "tree.jsonl", style="chat", start="",
                  branching=(20, 1), max_new_tokens=20)  # fmt: skip
    assert all(";" not in node.text for node in corpus.nodes.values())
    assert {node.ended for node in corpus.nodes.values()} == {True, False}


def test_a_special_token_at_the_end_of_a_turn_ends_it() -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = TEMPLATE.replace(";", "<eos>")
    roles = roles_of(tokenizer, "tiny", Tree((1, 1)))
    assert roles.stop() == ()
    assert roles.ends() == {tokenizer.eos_token_id}


VICUNA = (
    "{% for m in messages %}{% if m.role == 'user' %}USER: {{ m.content }} "
    "{% elif m.role == 'assistant' %}ASSISTANT: {{ m.content }}<eos>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}ASSISTANT:{% endif %}"
)
ALPACA = (
    "{% for m in messages %}{% if m.role == 'user' %}### Instruction:\n{{ m.content }}\n\n"
    "{% elif m.role == 'assistant' %}### Response:\n{{ m.content }}\n\n{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}### Response:\n{% endif %}"
)


@pytest.mark.parametrize(
    ("template", "stops", "ends"),
    [
        (VICUNA, ("ASSISTANT:",), {"<eos>"}),
        (ALPACA, ("### Instruction:", "### Response:"), set()),
        (TEMPLATE, (";",), set()),
        (TEMPLATE.replace(";", "/end<eos>"), ("/end",), set()),
        (TEMPLATE.replace(";", "<pad>"), (), {"<pad>"}),  # its id is 0
    ],
    ids=["vicuna", "alpaca", "plain", "plain and special", "id 0"],
)
def test_a_turn_ends_at_its_end_or_else_at_the_next_ones_marker(
    template: str, stops: tuple[str, ...], ends: set[str]
) -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = template
    roles = roles_of(tokenizer, "tiny", Tree((1, 1)))
    assert roles.stop() == stops
    assert roles.ends() == {tokenizer.convert_tokens_to_ids(end) for end in ends}


def test_a_drawn_turn_does_not_run_on_into_the_next(tmp_path: Path) -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = (
        "{% for m in messages %}{{ m.role[0] }}{{ m.content }} {% endfor %}"
        "{% if add_generation_prompt %}a{% endif %}"
    )
    model = tiny_backbone(tokenizer=tokenizer, scale=0.02, layers=2)
    corpus = grow(model, tmp_path / "tree.jsonl", style="chat", start="",
                  branching=(20, 1), max_new_tokens=20)  # fmt: skip
    assert any(node.ended for node in corpus.nodes.values())
    for node in corpus.nodes.values():
        assert not set("au") & set(node.text)
        assert not (node.ended and node.text.endswith(" "))


def test_a_template_that_tells_no_end_is_refused() -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = "{% for m in messages %}{{ m.content }}\n{% endfor %}"
    with pytest.raises(CalmError, match=r"'tiny' writes nothing behind a question.*style: text"):
        roles_of(tokenizer, "tiny", Tree((1, 1)))
    tokenizer.chat_template += "{% if add_generation_prompt %}A:{% endif %}"
    assert roles_of(tokenizer, "tiny", Tree((1, 1))).stop() == ("A:",)  # <eos> ends an answer
    tokenizer.eos_token = None
    with pytest.raises(CalmError, match="'tiny' writes nothing behind an answer"):
        roles_of(tokenizer, "tiny", Tree((1, 1)))


def test_a_model_without_a_chat_template_is_refused() -> None:
    with pytest.raises(CalmError, match=r"'tiny' has no chat template.*style: text"):
        roles_of(tiny_tokenizer(), "tiny", Tree((1, 1)))


def test_a_template_that_refuses_says_why() -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = "{{ raise_exception('no system message') }}"
    with pytest.raises(CalmError, match="'tiny' refuses these messages: no system message"):
        roles_of(tokenizer, "tiny", Tree((1, 1), system="be kind"))


# The task


def test_texts_are_learnt_after_their_start_from_root_to_leaf(tmp_path: Path) -> None:
    examples = list(task(tmp_path / "tree.jsonl").train_examples())
    corpus = read(tmp_path / "tree.jsonl")
    for example in examples:
        path = corpus.path(corpus.nodes[example.meta["node"]])
        assert example.prompt == path[0].start
        assert example.target == "".join(node.text for node in path)
        assert example.ends == path[-1].ended
    leaves = {node.id for node in corpus.kept() if node.level == 2 or node.ended}
    assert {example.meta["node"] for example in examples} < leaves


def test_whole_branches_are_held_out(tmp_path: Path) -> None:
    made = task(tmp_path / "tree.jsonl", held_out=0.34)
    (held_out,) = made.evaluation_sets()
    assert held_out.scorer is None

    def branches(examples: Any) -> set[str]:
        return {example.meta["node"].split(".")[1] for example in examples}

    kept = {node.id.split(".")[1] for node in read(tmp_path / "tree.jsonl").kept()}
    assert len(branches(held_out.examples)) == 2
    assert branches(held_out.examples) | branches(made.train_examples()) == kept
    assert not branches(held_out.examples) & branches(made.train_examples())


def test_too_few_branches_are_refused(tmp_path: Path) -> None:
    corpus = Corpus({}, {"0.0": Node("0.0", "ab"), "0.1": Node("0.1", "ab")})
    with pytest.raises(CalmError, match=r"2 branches.*tree.branching"):  # both say the same
        task(tmp_path / "tree.jsonl")._make_split(corpus)


def test_a_second_task_reads_what_the_first_has_drawn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = list(task(tmp_path / "tree.jsonl").train_examples())
    monkeypatch.delattr(growing, "draw")
    assert list(task(tmp_path / "tree.jsonl", seed=5).train_examples()) == first


def test_another_model_is_refused(tmp_path: Path) -> None:
    task(tmp_path / "tree.jsonl").prepare_data()
    other = task(tmp_path / "tree.jsonl")
    other.model = BackboneSource(TINY, weights="random", seed=1)
    with pytest.raises(CalmError, match=r"model.fingerprint=.*nothing was changed"):
        other.prepare_data()


def test_a_picture_is_put_beside_the_texts(tmp_path: Path) -> None:
    task(tmp_path / "tree.jsonl").prepare_data()
    assert (tmp_path / "tree.jsonl.png").read_bytes()[:4] == b"\x89PNG"


def test_what_lies_beside_a_cache_is_its_own(tmp_path: Path) -> None:
    for name in ("t_0.3", "t_0.7"):
        task(tmp_path / name).prepare_data()
    assert {file.name for file in tmp_path.glob("*.png")} == {"t_0.3.png", "t_0.7.png"}
    assert {file.name for file in tmp_path.glob("*.lock")} == {"t_0.3.lock", "t_0.7.lock"}


@pytest.mark.parametrize("name", ["t.png", "t.lock"])
def test_a_cache_named_like_what_lies_beside_one_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(CalmError, match=rf"{name} is named like what is put beside"):
        task(tmp_path / name)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"drawn_at_a_time": 3}, "drawn_at_a_time=64, not 3"),
        ({"attention": "eager"}, "model.attention='sdpa', not 'eager'"),
    ],
)
def test_what_rounds_otherwise_is_refused(
    tmp_path: Path, settings: dict[str, Any], words: str
) -> None:
    task(tmp_path / "tree.jsonl").prepare_data()
    source = BackboneSource(TINY, weights="random", attention=settings.pop("attention", None))
    other = task(tmp_path / "tree.jsonl", **settings)
    other.model = source
    with pytest.raises(CalmError, match=rf"{words}.*nothing was changed"):
        other.prepare_data()


def test_it_is_replayed_by_a_mixture(tmp_path: Path) -> None:
    tasks: dict[str, Task] = {"a": task(tmp_path / "a.jsonl"), "b": task(tmp_path / "b.jsonl")}
    mixture = Mixture(tasks, {"a": 3.0, "b": 1.0}, examples_per_epoch=40)
    mixture.prepare_data()
    assert len(list(mixture.train_examples())) == 40
    assert [each.name for each in mixture.evaluation_sets()] == ["a.held_out", "b.held_out"]


def test_nodes_come_level_by_level_in_the_order_of_their_numbers() -> None:
    names = ["0.10", "0.2", "0.2.1", "0.10.0", "0.1"]
    corpus = Corpus({}, {name: Node(name, "") for name in names})
    assert [node.id for node in corpus.kept()] == ["0.1", "0.2", "0.10", "0.2.1", "0.10.0"]


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"branching": ()}, "at least 1"),
        ({"branching": (3, 0)}, "at least 1"),
        ({"branching": (3,)}, "even number"),
        ({"branching": (3, 1), "max_new_tokens": (4,)}, "one for each of the 2 levels"),
        ({"branching": (3, 1), "start": "a"}, "start has no meaning with style: chat"),
        ({"branching": (3,), "style": "text", "system": "a"}, "system has no meaning"),
        ({"branching": (3, 1), "temperature": 0.0}, "temperature=0.0 must be above 0"),
        ({"branching": (3, 1), "top_p": 0.0}, "top_p=0.0"),
        ({"branching": (3, 1), "top_k": -1}, "top_k=-1"),
    ],
    ids=str,
)
def test_trees_that_make_no_sense(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(CalmError, match=words):
        Tree(**settings)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"held_out": 1.0}, "held_out is a share"),
        ({"drawn_at_a_time": 0}, "drawn_at_a_time must be at least 1"),
        ({"deduplication": Deduplication(keep=(3,))}, "one number for each of the 2 levels"),
    ],
    ids=str,
)
def test_settings_that_make_no_sense(tmp_path: Path, settings: dict[str, Any], words: str) -> None:
    with pytest.raises(CalmError, match=words):
        task(tmp_path / "tree.jsonl", **settings)
