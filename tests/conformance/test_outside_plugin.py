"""A plug-in in another, separately installed package is found, usable and checked.

It is installed by pip into a folder of its own, without a network, and used in new processes.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLE = Path(__file__).parents[1] / "example_plugin"

USE = """
import warnings
import torch
torch.set_num_threads(1)
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    from calm_lightning.discovery import PluginWarning, find, load_plugins
    plugins = {plugin.name: plugin for plugin in load_plugins()}
print([str(w.message) for w in caught if issubclass(w.category, PluginWarning)])

import calm_lightning as calm
from calm_lightning.contracts import CalmError, Composition
from calm_lightning.testing import Case, tiny_backbone

mine = plugins["newest_state"]
assert mine.distribution == "calm-example-plugin 0.2.0"
assert [cls.__name__ for cls in mine.classes] == ["NewestState"]
kind = find(Composition, "NewestState")
assert kind is calm.NewestState and kind(rank=2).rank == 2

broken = plugins["needs_something"]
assert broken.classes == [] and "a_package_that_nobody_installed" in broken.error
assert {"cross_attention", "single", "key_value"} <= plugins.keys()
try:
    find(Composition, "NewestStat")
except CalmError as error:
    print(error)

model = calm.compose(tiny_backbone(), [tiny_backbone(width=16, seed=1)], kind(rank=2))
model.save_pretrained("saved")
again = calm.load("saved", tiny_backbone(), [tiny_backbone(width=16, seed=1)])
assert type(again.composition) is kind and again.composition.rank == 2
"""


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder into which the example is installed."""
    folder = tmp_path_factory.mktemp("installed")
    source = folder / "source"  # a build leaves traces where it is made
    shutil.copytree(EXAMPLE, source, ignore=shutil.ignore_patterns("__pycache__"))
    options = ["--quiet", "--no-deps", "--no-build-isolation", "--no-index", "--target"]
    pip = [sys.executable, "-m", "pip", "install", *options]
    subprocess.run([*pip, folder / "site", source], check=True)
    return folder


def run(arguments: list[str], installed: Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(installed / "site")}
    result = subprocess.run(
        [sys.executable, *arguments],
        cwd=installed,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    return result


def test_it_is_found_and_a_broken_one_does_no_harm(installed: Path) -> None:
    warning, suggestion = run(["-c", USE], installed).stdout.splitlines()
    for part in ("needs_something", "calm-example-plugin 0.2.0", "a_package_that_nobody_installed"):
        assert part in warning
    assert "Did you mean NewestState?" in suggestion
    assert "Left out because they could not be imported: needs_something" in suggestion


def test_it_passes_the_suite_in_three_lines(installed: Path) -> None:
    lines = (EXAMPLE / "test_newest_state.py").read_text().splitlines()
    assert len([line for line in lines if line.strip() and "import NewestState" not in line]) == 3
    tests = str(installed / "source" / "test_newest_state.py")
    chosen = ["-k", "llama", "-p", "no:cacheprovider", "-q"]
    result = run(["-m", "pytest", tests, *chosen], installed)
    assert "failed" not in result.stdout
    assert "passed" in result.stdout


def test_it_is_a_page_of_code() -> None:
    assert len((EXAMPLE / "calm_example" / "newest_state.py").read_text().splitlines()) < 60
