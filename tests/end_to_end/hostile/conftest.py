"""The ground on which hostile cases happen, and what all of them must come to."""

import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from calm_lightning.backbone import BackboneSource

from .ground import ANCHOR, HARM, Case, Ground

ROOT = Path(__file__).parents[3]
RUN = "run"
"""The output folder of the cases that have one; the only place that may change."""


@pytest.fixture(scope="session")
def plain_model(_in_the_root: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model with weights."""
    folder = tmp_path_factory.mktemp("models") / "plain"
    shutil.copytree(ANCHOR, folder)
    BackboneSource(ANCHOR, weights="random").load().model.save_pretrained(folder)
    return folder


@pytest.fixture
def ground(
    smoke_run: Any, plain_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Ground:
    folder = tmp_path / "ground"
    folder.mkdir()
    (folder / "configs").symlink_to(ROOT / "configs")
    monkeypatch.chdir(folder)
    monkeypatch.syspath_prepend(folder)  # as in a notebook, or with `python -m`
    return Ground(folder, smoke_run.folder, plain_model)


@pytest.fixture
def refuse(calm: Any, ground: Ground, tmp_path: Path) -> Callable[[Case], None]:
    """Runs a case: refused by one message, no code run, no file touched but in the output."""

    def check(case: Case) -> None:
        case.prepare(ground)
        before = contents(tmp_path)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the message is what counts
            outcome = calm(*case.words)  # whatever else is raised would be a traceback
        assert not (ground.folder / HARM).exists(), "planted code was run"
        assert outcome.status == 2, outcome
        assert "Traceback" not in outcome.out + outcome.err
        told = [line for line in outcome.err.splitlines() if line.startswith("calm")]
        assert len(told) == 1, outcome.err
        message = outcome.err[outcome.err.index(told[0]) :]
        assert len(message) < 4000, "nobody reads so much"
        for part in case.says:
            assert part in message, message
        assert contents(tmp_path) == before

    return check


def contents(folder: Path) -> dict[str, bytes | str]:
    """Everything in a folder but the run's output: what files hold, where links lead."""
    found: dict[str, bytes | str] = {}
    for path in folder.rglob("*"):
        name = str(path.relative_to(folder))
        if name.split("/")[1:2] == [RUN] or path.suffix == ".lock":  # other processes wait for it
            continue
        if path.is_symlink():
            found[name] = str(path.readlink())
        elif path.is_file():
            found[name] = path.read_bytes()
        else:
            found[name] = "a folder, or what cannot be read"
    return found
