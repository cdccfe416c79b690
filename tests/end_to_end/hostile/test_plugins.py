"""Plug-ins that fail, end the program, take others' names, or are none."""

import gc
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from calm_lightning.discovery import GROUP, load_plugins

from .ground import Case, Ground, config, module_of

WITH = {"c.yaml": config({"model/composition": {"class_path": "Wanted"}})}
USING_IT = "fit -c c.yaml --run run"
COMPOSITION = """
from calm_lightning.contracts import Composition
class Wanted(Composition):
    def compose(self, anchor, augmenting):
        raise AssertionError("nothing of this plug-in should be used")
"""


@pytest.fixture
def install(ground: Ground, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., None]]:
    """Installs a distribution with one entry point and one module, for this test."""
    site = ground.folder.parent / "site"
    site.mkdir()
    monkeypatch.syspath_prepend(site)
    names = set(sys.modules)

    def add(name: str, value: str, source: str | bytes | None = None, owner: str = "") -> None:
        module = value.partition(":")[0]
        if source is not None:
            content = source.encode() if isinstance(source, str) else source
            (site / f"{module}.py").write_bytes(content)
        about = site / f"{owner or name}-1.0.dist-info"
        about.mkdir()
        (about / "METADATA").write_text(f"Name: {owner or name}\nVersion: 1.0\n")
        (about / "entry_points.txt").write_text(f"[{GROUP}]\n{name} = {value}\n")
        load_plugins.cache_clear()

    yield add
    load_plugins.cache_clear()
    for name in {*sys.modules} - names:
        if Path(getattr(sys.modules[name], "__file__", None) or "/").is_relative_to(site):
            del sys.modules[name]
    gc.collect()  # a class lives on in its base until then


@pytest.mark.parametrize(
    ("value", "source", "says"),
    [
        ("broken_plugin", "raise RuntimeError('no such luck')", ("RuntimeError", "no such luck")),
        ("broken_plugin", "import sys\nsys.exit(0)", ("SystemExit",)),
        ("broken_plugin", "raise BaseExceptionGroup('a', [ValueError()])", ("ExceptionGroup",)),
        ("broken_plugin", "class Wanted(:", ("SyntaxError",)),
        ("broken_plugin", b"\x00\xff\xfe", ("Error",)),
        ("broken_plugin", "x = " + "-" * 100_000 + "1", ("Error",)),
        ("broken_plugin", "class Wanted: pass", ("Installed: ",)),
        ("broken_plugin", COMPOSITION.replace("compose", "decompose"), ("Wanted",)),
        ("broken_plugin:Other", "class Other: pass", ("class Other", "a plug-in is a module")),
        ("broken_plugin:five", "five = 5", ("a int", "a plug-in is a module")),
        ("no_such_module_anywhere", None, ("ModuleNotFoundError",)),
        ("../../evil", None, ("broken",)),
    ],
    ids=[
        "raises", "ends_the_program", "raises_a_group", "no_Python", "binary", "nested",
        "a_class_of_its_own", "an_abstract_class", "a_class_for_a_module", "a_number_for_a_module",
        "no_module", "a_path_for_a_module",
    ],
)  # fmt: skip
def test_a_plugin_that_fails_is_named_where_it_is_wanted(
    install: Callable[..., None],
    refuse: Callable[[Case], None],
    value: str,
    source: str | bytes | None,
    says: tuple[str, ...],
) -> None:
    install("broken", value, source)
    refuse(Case("a plug-in that fails", USING_IT, ("Wanted", *says), WITH))


def test_two_plugins_of_one_name_are_refused(
    install: Callable[..., None], refuse: Callable[[Case], None], ground: Ground
) -> None:
    module_of()(ground.folder / "another.py", ground)
    install("single", "another", owner="theirs")
    refuse(Case("a name twice", USING_IT, ("'single'", "another (from theirs 1.0)"), WITH))


def test_two_classes_of_one_name_are_refused(
    install: Callable[..., None], refuse: Callable[[Case], None]
) -> None:
    install("one", "one_plugin", COMPOSITION)
    install("other", "other_plugin", COMPOSITION)
    refuse(Case("a class twice", USING_IT, ("one_plugin.Wanted", "other_plugin.Wanted"), WITH))


def test_the_others_are_listed_beside_one_that_ends_the_program(
    install: Callable[..., None], calm: Callable[..., object]
) -> None:
    install("broken", "broken_plugin", "import sys\nsys.exit(0)")
    with pytest.warns(UserWarning, match="Left out plug-in 'broken'"):
        outcome = calm("plugins")
    assert "CrossAttention" in outcome.out
    assert "SystemExit" in outcome.out
