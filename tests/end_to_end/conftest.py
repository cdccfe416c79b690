"""`calm` in this process, and one tiny training run that many tests look at."""

import io
import sys
from collections.abc import Callable, Iterator
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path

import pytest

from calm_lightning.cli import main

ROOT = Path(__file__).parents[2]
SMOKE = str(ROOT / "configs" / "smoke" / "key_value.yaml")
QUIET = ("--trainer.enable_progress_bar=false", "--trainer.enable_model_summary=false")


@dataclass(frozen=True)
class Outcome:
    """What a command left: its exit status, and what it printed."""

    status: int
    out: str
    err: str

    @property
    def message(self) -> str:
        """What a refused command said: one message, and no traceback."""
        assert self.status == 2, (self.status, self.out, self.err)
        said = self.err[self.err.index("calm: ") :]
        assert said.count("calm: ") == 1
        assert "Traceback" not in self.out + self.err
        return said


Calm = Callable[..., Outcome]


@pytest.fixture(scope="session", autouse=True)
def _in_the_root() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:  # configs name the tiny models from there
        patch.chdir(ROOT)
        yield


@pytest.fixture(scope="session")
def calm(_in_the_root: None) -> Calm:
    """Runs the command; anything but a clean end or a message is raised."""

    def call(*arguments: object) -> Outcome:
        words = [str(argument) for argument in arguments]
        if words[:1] and words[0] in ("fit", "validate", "test", "predict"):
            words[1:1] = QUIET
        out, err, status = io.StringIO(), io.StringIO(), 0
        with pytest.MonkeyPatch.context() as patch, redirect_stdout(out), redirect_stderr(err):
            patch.setattr(sys, "argv", ["calm"])
            try:
                main(words)
            except SystemExit as end:
                status = int(end.code or 0)
        return Outcome(status, out.getvalue(), err.getvalue())

    return call


@pytest.fixture(scope="session")
def fit(calm: Calm) -> Calm:
    """`calm fit` on the smoke config, two steps unless it is told otherwise."""

    def call(run: Path, *arguments: object) -> Outcome:
        return calm("fit", "-c", SMOKE, "--run", run, "--trainer.max_steps=2", *arguments)

    return call


@dataclass(frozen=True)
class Run:
    """A finished run."""

    folder: Path
    said: str


@pytest.fixture(scope="session")
def smoke_run(fit: Calm, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Twenty steps on tiny backbones, as the smoke config says."""
    folder = tmp_path_factory.mktemp("runs") / "smoke run"
    outcome = fit(folder, "--trainer.max_steps=20")
    assert outcome.status == 0, outcome.err
    return Run(folder, outcome.out)
