import sys
from collections.abc import Iterator
from importlib.metadata import EntryPoint
from types import ModuleType, SimpleNamespace

import pytest

from calm_lightning import discovery
from calm_lightning.contracts import CalmError, Composition, Task
from calm_lightning.discovery import GROUP, PluginWarning, find, load_plugins


class Installed:
    """Stands in for what is installed: entry points, each from a distribution."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.points: list[SimpleNamespace] = []
        monkeypatch.setattr(discovery, "entry_points", lambda group: self.points)

    def add(self, name: str, module: str, distribution: str = "theirs") -> None:
        point = EntryPoint(name, module, GROUP)
        owner = SimpleNamespace(name=distribution, version="1.0")
        self.points.append(
            SimpleNamespace(name=name, value=module, load=point.load, dist=owner),
        )
        load_plugins.cache_clear()


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> Iterator[Installed]:
    load_plugins.cache_clear()
    yield Installed(monkeypatch)
    load_plugins.cache_clear()


def made_up(name: str, source: str) -> ModuleType:
    module = ModuleType(name)
    exec(source, module.__dict__)
    return module


@pytest.fixture(scope="module")
def module() -> Iterator[ModuleType]:
    """A plug-in `made_up.plugin` with a composition `Made`, and one imported from elsewhere.

    Made once: a class lives on after its module.
    """
    source = """
from calm_lightning.contracts import Composition
from calm_plugins.compositions.single import Single
class Base(Composition):
    pass
class Made(Base):
    compose = None
class Helper:
    pass
"""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "made_up", ModuleType("made_up"))
        patch.setitem(sys.modules, "made_up.plugin", made_up("made_up.plugin", source))
        yield sys.modules["made_up.plugin"]


def test_the_built_in_plugins_are_found_like_anybodys() -> None:
    load_plugins.cache_clear()
    plugins = {plugin.name: plugin for plugin in load_plugins()}
    assert {"cross_attention", "lora", "single", "key_value", "text_file"} <= plugins.keys()
    assert plugins["single"].distribution.startswith("calm-lightning ")
    assert find(Composition, "Single").__name__ == "Single"
    assert find(Task, "KeyValue").__name__ == "KeyValue"


def test_only_a_plugins_own_concrete_classes_count(
    installed: Installed, module: ModuleType
) -> None:
    installed.add("made", "made_up.plugin")
    (plugin,) = load_plugins()
    assert plugin.classes == [module.Made]


def test_two_plugins_of_one_name_are_refused(installed: Installed, module: ModuleType) -> None:
    installed.add("made", "made_up.plugin", "ours")
    installed.add("made", "calm_plugins.tasks.text_file", "theirs")
    with pytest.raises(CalmError) as refusal:
        load_plugins()
    for part in ("'made'", "made_up.plugin", "ours 1.0", "text_file", "theirs 1.0", GROUP):
        assert part in str(refusal.value)


def test_one_distribution_seen_twice_is_one_plugin(
    installed: Installed, module: ModuleType
) -> None:
    installed.add("made", "made_up.plugin")
    installed.add("made", "made_up.plugin")
    assert len(load_plugins()) == 1


def test_a_plugin_that_cannot_be_imported_is_named_and_left_out(
    installed: Installed, module: ModuleType
) -> None:
    installed.add("broken", "no_such_module", "theirs")
    installed.add("made", "made_up.plugin")
    with pytest.warns(PluginWarning, match=r"'broken' \(no_such_module, from theirs 1.0\)"):
        broken, made = load_plugins()
    assert broken.classes == []
    assert "no_such_module" in broken.error
    assert made.classes == [module.Made]
    with pytest.raises(CalmError, match="Left out because they could not be imported: broken"):
        find(Composition, "Brokem")


def test_a_wrong_name_gets_the_nearest_one(installed: Installed, module: ModuleType) -> None:
    installed.add("made", "made_up.plugin")
    with pytest.raises(CalmError, match=r"no composition called 'Mode'. Did you mean Made?"):
        find(Composition, "Mode")
    with pytest.raises(CalmError, match=r"no composition called 'Zzzzzz'. Installed: .*Made"):
        find(Composition, "Zzzzzz")
    with pytest.raises(CalmError, match="no task called 'Made'"):
        find(Task, "Made")


def test_a_class_is_found_by_its_short_name_or_its_path(
    installed: Installed, module: ModuleType
) -> None:
    installed.add("made", "made_up.plugin")
    for name in ("Made", "made_up.plugin.Made", "made_up.where_it_was_before.Made"):
        assert find(Composition, name) is module.Made
    with pytest.raises(CalmError, match=r"no composition called 'another.plugin.Made'"):
        find(Composition, "another.plugin.Made")


def test_two_classes_of_one_name_need_their_paths(
    installed: Installed, module: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    twice = "from made_up.plugin import Base\nclass Twice(Base):\n    compose = None\n"
    ours, other = made_up("ours.plugin", twice), made_up("other.plugin", twice)
    monkeypatch.setitem(sys.modules, "ours.plugin", ours)
    monkeypatch.setitem(sys.modules, "other.plugin", other)
    installed.add("ours", "ours.plugin")
    installed.add("other", "other.plugin")
    assert find(Composition, "ours.plugin.Twice") is ours.Twice
    assert find(Composition, "other.plugin.Twice") is other.Twice
    with pytest.raises(CalmError, match=r"Twice is the name of .*other\.plugin\.Twice"):
        find(Composition, "Twice")
