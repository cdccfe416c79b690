"""A run that is stopped and goes on ends with the very weights of a run that never was."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from itertools import cycle
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors import SafetensorError

from calm_lightning import checkpoint
from calm_lightning.alone import alone_in
from calm_lightning.module import CalmModule

SHORT = ("--data.evaluation_examples=2", "--data.batch_size=4", "--trainer.max_steps=10")
UNSEEN = ("--trainer.limit_val_batches=0",)
DROPOUT = (
    "--model.composition=LoRA", "--model.composition.rank=2", "--model.composition.dropout=0.3",
    "--model.augmenting=[]",
)  # fmt: skip


EARLY = (
    "--trainer.callbacks+=EarlyStopping", "--trainer.callbacks.monitor=val/kv_subs/loss_nats",
    "--trainer.callbacks.patience=4", "--trainer.callbacks.min_delta=100",
)  # fmt: skip


class PowerCut(BaseException):
    """Ends a run where it is; nothing is saved any more."""


@pytest.fixture
def stop_at(monkeypatch: pytest.MonkeyPatch) -> Callable[[int | None, str], list[Any]]:
    """Stops the next run at a batch, counted over the whole run; notes what every batch was."""
    step = CalmModule.training_step

    def prepare(stop: int | None, how: str) -> list[Any]:
        seen: list[Any] = []

        def training_step(self: Any, batch: Any, batch_idx: int) -> Any:
            number = self.trainer.datamodule.consumed_batches - 1
            with torch.random.fork_rng():
                drawn = torch.rand(()).item()
            seen.append((number, [e.prompt for e in batch.examples], drawn))
            if number == stop and how == "SIGTERM":
                os.kill(os.getpid(), signal.SIGTERM)
            elif number == stop:
                raise PowerCut
            return step(self, batch, batch_idx)

        monkeypatch.setattr(CalmModule, "training_step", training_step)
        return seen

    return prepare


def weights(run: Path) -> list[bytes]:
    files = sorted((run / "model").glob("*.safetensors"))
    assert files
    return [file.read_bytes() for file in files]


SETUPS: dict[str, tuple[tuple[str, ...], Sequence[int]]] = {
    "twice in one epoch": (UNSEEN, (3, 6)),
    "epochs cut short, at their ends and inside": (
        (*UNSEEN, "--trainer.limit_train_batches=4"), (3, 5, 7)),
    "steps of three batches, validation inside of one": (
        ("--trainer.accumulate_grad_batches=3", "--trainer.max_steps=5",
         "--trainer.val_check_interval=4"), (4, 7, 10)),
    "data processes": (
        (*UNSEEN, "--data.num_workers=2", "--trainer.limit_train_batches=4"), (2, 5)),
    "stopped early": (
        ("--trainer.val_check_interval=1.0", "--trainer.limit_train_batches=2",
         "--trainer.max_steps=40", *EARLY), (4, 9)),
    "stopped early, validation behind a checkpoint": (
        ("--trainer.val_check_interval=2", "--trainer.max_steps=40", *EARLY), (4, 9)),
    "dropout": ((*UNSEEN, *DROPOUT), (3, 6)),
    "compiled": ((*UNSEEN, "--model.compile=true"), (3, 6)),
}  # fmt: skip
SLOW = ("compiled", "stopped early, validation behind a checkpoint")


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] * (name in SLOW)) for name in SETUPS]
)
def test_a_run_that_goes_on_is_the_run_that_was_never_stopped(
    fit: Any, tmp_path: Path, stop_at: Any, name: str
) -> None:
    """Stopped by SIGTERM, which writes a checkpoint, and by a power cut, in turn."""
    options, stops = SETUPS[name]
    options = (*SHORT, *options, "--checkpoint_steps=2")
    seen = stop_at(None, "power cut")
    assert fit(tmp_path / "whole", *options).status == 0
    wanted = {number: rest for number, *rest in seen}
    more: tuple[str, ...] = ()
    for stop, how in zip((*stops, None), cycle(["SIGTERM", "power cut"]), strict=False):
        seen = stop_at(stop, how)
        if stop is not None and how == "power cut":
            with pytest.raises(PowerCut):
                fit(tmp_path / "stopped", *options, *more)
        else:
            outcome = fit(tmp_path / "stopped", *options, *more)
            assert outcome.status == (0 if stop is None else 143), outcome.err
        for number, *what in seen:
            assert what == wanted[number], f"batch {number} is another one"
        more = ("--resume",)
    assert weights(tmp_path / "stopped") == weights(tmp_path / "whole")


# ------------------------------------------------------------------ what is there to go on with


@pytest.fixture(scope="module")
def started(fit: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was cut off in its eighth step, with checkpoints of steps 4 and 6."""
    run = tmp_path_factory.mktemp("started") / "run"
    step, calls = CalmModule.training_step, [0]

    def cut_off(self: Any, batch: Any, batch_idx: int) -> Any:
        calls[0] += 1
        if calls[0] == 8:
            raise PowerCut
        return step(self, batch, batch_idx)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(CalmModule, "training_step", cut_off)
        with pytest.raises(PowerCut):
            fit(run, *SHORT, *UNSEEN, "--checkpoint_steps=2")
    return run


@pytest.fixture
def run(started: Path, tmp_path: Path) -> Path:
    """A copy of it."""
    return shutil.copytree(started, tmp_path / "run")


def contents(folder: Path) -> dict[str, bytes]:
    return {str(f.relative_to(folder)): f.read_bytes() for f in folder.rglob("*") if f.is_file()}


def test_a_run_and_resume_are_enough(calm: Any, run: Path) -> None:
    before = yaml.safe_load((run / "config.yaml").read_text())
    outcome = calm("fit", "--run", run, "--resume", "--trainer.max_steps=8")
    assert outcome.status == 0, outcome.err
    config = yaml.safe_load((run / "config.yaml").read_text())
    before["run"] = before["trainer"]["default_root_dir"] = str(run)  # it is a copy
    before["trainer"]["max_steps"] = 8
    assert config == before  # neither ckpt_path nor resume: they were of that command
    checkpoint = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)
    assert checkpoint["global_step"] == 8


def test_scores_before_training_outlive_a_stop(fit: Any, stop_at: Any, tmp_path: Path) -> None:
    run = tmp_path / "run"
    words = ("--trainer.max_steps=4", "--trainer.val_check_interval=4", "--checkpoint_steps=1")
    stop_at(2, "power cut")
    with pytest.raises(PowerCut):
        fit(run, *words)
    stop_at(None, "")
    outcome = fit(run, *words, "--resume")
    assert "before" in outcome.out
    facts = json.loads((run / "model" / "run.json").read_text())
    assert facts["before"].keys() == facts["validation"].keys()


def test_a_broken_newest_checkpoint_is_named_and_the_one_before_it_used(
    calm: Any, run: Path, stop_at: Any
) -> None:
    last = run / "checkpoints" / "last.ckpt"
    damaged = bytearray(last.read_bytes())
    damaged[len(damaged) // 2] ^= 16
    last.write_bytes(damaged)
    seen = stop_at(None, "")
    outcome = calm("fit", "--run", run, "--resume")
    assert outcome.status == 0
    assert f"'{last}' is damaged" in outcome.err
    assert f"Going on from the one before it: '{last.with_name('last.previous.ckpt')}'" in (
        outcome.err
    )
    assert [number for number, *_ in seen] == [4, 5, 6, 7, 8, 9]


def test_without_a_whole_checkpoint_nothing_is_touched(calm: Any, run: Path) -> None:
    for file in (run / "checkpoints").iterdir():
        file.write_bytes(file.read_bytes()[:-100])
    before = contents(run)
    message = calm("fit", "--run", run, "--resume").message
    assert "No checkpoint of this run is whole" in message
    assert contents(run) == before


def test_nothing_to_go_on_with_is_said(calm: Any, fit: Any, run: Path, tmp_path: Path) -> None:
    assert "nothing to go on with" in fit(tmp_path / "empty", "--resume").message
    assert not (tmp_path / "empty").exists()
    shutil.rmtree(run / "checkpoints")
    assert "nothing to go on with" in calm("fit", "--run", run, "--resume").message
    assert "has no config.yaml" in calm("fit", "--run", tmp_path, "--resume").message


def test_a_finished_run_is_left_alone(calm: Any, smoke_run: Any) -> None:
    before = contents(smoke_run.folder)
    for words in (("--resume",), ("--resume", "--trainer.max_steps=20")):
        outcome = calm("fit", "--run", smoke_run.folder, *words)
        assert outcome.status == 0
        assert "is finished" in outcome.err
    assert contents(smoke_run.folder) == before


def test_a_finished_run_is_not_made_longer(fit: Any, smoke_run: Any) -> None:
    before = contents(smoke_run.folder)
    message = fit(smoke_run.folder, "--resume", "--trainer.max_steps=40").message
    assert "max_steps: 20 there, 40 here" in message, message
    assert f"--model.start_from {smoke_run.folder}/model" in message
    assert contents(smoke_run.folder) == before


@pytest.mark.parametrize(
    ("option", "named"),
    [("--data.batch_size=8", "data.init_args.batch_size: 4 there, 8 here"),
     ("--data.num_keys=40", "data.init_args.num_keys: 50 there, 40 here"),
     ("--model.composition.every=1", "model.composition.init_args.every: 2 there, 1 here"),
     ("--seed_everything=3", "seed_everything: 0 there, 3 here"),
     ("--trainer.accumulate_grad_batches=2", "accumulate_grad_batches: 1 there, 2 here")],
)  # fmt: skip
def test_another_config_is_refused_by_what_differs(
    calm: Any, run: Path, option: str, named: str
) -> None:
    before = contents(run)
    message = calm("fit", "--run", run, "--resume", option).message
    assert named in message
    assert message.count(" there, ") == 1
    assert contents(run) == before


def test_lightnings_own_option_goes_on_too_and_begins_where_nothing_is(
    fit: Any, tmp_path: Path, stop_at: Any
) -> None:
    options = (*SHORT, *UNSEEN, "--ckpt_path=last")
    stop_at(4, "SIGTERM")
    assert fit(tmp_path / "run", *options).status == 143
    seen = stop_at(None, "")
    assert fit(tmp_path / "run", *options).status == 0
    assert [number for number, *_ in seen] == [5, 6, 7, 8, 9]


def test_only_a_fit_goes_on(calm: Any, smoke_run: Any) -> None:
    message = calm("test", "--run", smoke_run.folder, "--resume").message
    assert "--resume is for `calm fit`" in message


def test_a_full_disk_ends_the_run_and_leaves_the_last_checkpoint_whole(
    calm: Any, run: Path, started: Path
) -> None:
    last = run / "checkpoints" / "last.ckpt"
    last.with_name(".last.ckpt.partial").symlink_to("/dev/full")
    message = calm("fit", "--run", run, "--resume").message
    assert f"{last} could not be written: No space left on device" in message
    assert "--resume" in message
    assert last.read_bytes() == (started / "checkpoints" / "last.ckpt").read_bytes()
    assert calm("fit", "--run", run, "--resume").status == 0


def test_a_run_whose_first_checkpoint_was_never_finished_begins_again(
    fit: Any, tmp_path: Path
) -> None:
    folder = tmp_path / "run" / "checkpoints"
    folder.mkdir(parents=True)
    partial = folder / ".last.ckpt.partial"
    partial.symlink_to("/dev/full")
    options = (*SHORT, *UNSEEN, "--ckpt_path=last")
    message = fit(tmp_path / "run", *options).message
    assert "There is none yet. Make room, then begin again." in message
    assert fit(tmp_path / "run", *options).status == 0


def test_a_disk_that_is_full_when_the_model_is_written_costs_no_training(
    calm: Any, run: Path, stop_at: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise SafetensorError("No space left on device (os error 28)")

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "save_file", full)
        message = calm("fit", "--run", run, "--resume").message
    assert f"could not be written into {run}/model: No space left" in message
    assert not list(run.glob("*model*"))
    seen = stop_at(None, "")
    assert calm("fit", "--run", run, "--resume").status == 0
    assert seen == []
    assert weights(run)


def test_two_never_write_one_run(calm: Any, run: Path, started: Path) -> None:
    with alone_in(run, "calm fit", "--run"):
        message = calm("fit", "--run", run, "--resume").message
    assert f"Another `calm fit` (process {os.getpid()}" in message
    assert contents(run) == contents(started) | {".lock": b""}
    assert calm("fit", "--run", run, "--resume").status == 0


def test_a_model_appears_only_when_it_is_whole(
    calm: Any, run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run that is cut off while it writes its model is not finished."""
    from calm_lightning.callbacks import save_model

    def cut_off(*_: Any, **__: Any) -> bool:
        raise PowerCut

    with monkeypatch.context() as patch:
        patch.setattr(save_model, "add_facts", cut_off)
        with pytest.raises(PowerCut):
            calm("fit", "--run", run, "--resume")
    assert not (run / "model").exists()
    assert calm("fit", "--run", run, "--resume").status == 0
    described = json.loads((run / "model" / "config.json").read_text())
    assert described["backbones"]
    assert not list(run.glob(".*partial"))


# ------------------------------------------------------------------ processes that are killed


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
def test_runs_that_are_really_killed(tmp_path: Path) -> None:
    """The fault table (docs/faults.md) with few faults of each kind."""
    command = [sys.executable, "benchmarks/faults.py", "--times", "3"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    rows = [line for line in done.stdout.splitlines() if " of " in line]
    assert len(rows) == 9, done.stdout


@pytest.mark.slow
def test_two_processes_go_on_too(tmp_path: Path) -> None:
    """Only the first is told to stop, or killed; the other notices."""
    options = [
        "--config=configs/smoke/key_value.yaml", *SHORT, "--trainer.max_steps=60",
        "--trainer.strategy=ddp", "--trainer.devices=2", "--checkpoint_steps=10",
        "--trainer.limit_train_batches=40", "--trainer.val_check_interval=35",
    ]  # fmt: skip

    def start(name: str, *more: str) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "calm_lightning", "fit", *options, *more]
        return subprocess.Popen([*command, f"--run={tmp_path / name}"])

    def wait_for_another(file: Path, process: subprocess.Popen[bytes]) -> None:
        before = file.stat().st_mtime_ns if file.exists() else 0
        while process.poll() is None and not (file.exists() and file.stat().st_mtime_ns > before):
            time.sleep(0.05)

    assert start("whole").wait() == 0
    last = tmp_path / "stopped" / "checkpoints" / "last.ckpt"
    process = start("stopped")
    wait_for_another(last, process)
    process.terminate()
    assert process.wait() == 143
    process = start("stopped", "--resume")
    wait_for_another(last, process)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    assert start("stopped", "--resume").wait() == 0
    assert weights(tmp_path / "stopped") == weights(tmp_path / "whole")
