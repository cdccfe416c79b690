"""A plug-in that is on disk but not declared would silently not exist."""

import tomllib
from importlib.metadata import distribution
from pathlib import Path

from calm_lightning.discovery import CONTRACTS, GROUP, load_plugins

ROOT = Path(__file__).parents[2]
PLUGINS = ROOT / "plugins" / "calm_plugins"
ON_DISK = {
    f"calm_plugins.{kind}.{folder.name}"
    for kind in ("compositions", "tasks")
    for folder in (PLUGINS / kind).iterdir()
    if (folder / "__init__.py").is_file()
}


def declared() -> dict[str, str]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    return project["entry-points"][GROUP]


def test_every_plugin_on_disk_is_declared_and_every_declared_one_is_on_disk() -> None:
    assert ON_DISK
    assert set(declared().values()) == ON_DISK


def test_a_plugin_is_declared_under_its_folders_name() -> None:
    assert all(module.rpartition(".")[2] == name for name, module in declared().items())


def test_what_is_installed_is_what_is_declared() -> None:
    """If this fails, install the package again: pip install --no-deps -e ."""
    points = distribution("calm-lightning").entry_points.select(group=GROUP)
    assert {point.name: point.value for point in points} == declared()


def test_every_plugin_can_be_imported_and_offers_something() -> None:
    ours = [plugin for plugin in load_plugins() if plugin.target in ON_DISK]
    assert len(ours) == len(ON_DISK)
    for plugin in ours:
        assert plugin.error == ""
        assert plugin.classes
        assert all(issubclass(cls, CONTRACTS) and cls.__doc__ for cls in plugin.classes)


def test_plugins_do_not_know_one_another() -> None:
    """Said in pyproject.toml one by one, so a new plug-in must be added there."""
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]
    (independent,) = (c for c in contracts["contracts"] if c["type"] == "independence")
    assert set(independent["modules"]) == ON_DISK
