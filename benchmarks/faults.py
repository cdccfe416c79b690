"""Stops runs of `calm fit` by every fault that a long run meets, and goes on with them.

    python benchmarks/faults.py [--times 20] [--seed 0]

prints a table: does the run end with the very weights of a run that was never stopped, how many
steps had to be done again, and what was said. Exit status 1 if any weights differ.

Each run is the smoke config on tiny models, in a process of its own, which is really killed.
Moments are drawn over the whole life of the process, its start and its end included.
"""

import argparse
import ctypes
import multiprocessing
import os
import random
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch

ROOT = Path(__file__).parents[1]
OPTIONS = (
    "--config=configs/smoke/key_value.yaml", "--data.evaluation_examples=2",
    "--data.batch_size=4", "--checkpoint_steps=10", "--trainer.max_steps=60",
    "--trainer.accumulate_grad_batches=2", "--trainer.limit_train_batches=30",
    "--trainer.val_check_interval=37", "--trainer.logger=false",
    "--trainer.enable_progress_bar=false", "--trainer.enable_model_summary=false",
)  # fmt: skip
SERVER = multiprocessing.get_context("forkserver")  # imports once, forks for every run
WEIGHTS = Path("model") / "composition.safetensors"
CACHED = ("--model.cache_states.folder={run}/states", "--model.cache_states.dtype=float16")
SMALL = "--model.cache_states.max_gigabytes=0.0003"  # less than it would hold


@dataclass
class Fault:
    """One row of the table, while it fills."""

    name: str
    times: int = 0
    equal: int = 0
    runs: int = 0
    statuses: set[int] = field(default_factory=set)
    lost: list[int] = field(default_factory=list)
    said: str = ""

    def row(self) -> str:
        """As a line of Markdown."""
        statuses = ", ".join(map(str, sorted(self.statuses)))
        lost = f"{max(self.lost)}" if self.lost else "-"
        equal = f"{self.equal} of {self.runs} runs"
        return (
            f"| {self.name} | {self.times} | {statuses} | {equal} | {lost} | {self.said or '-'} |"
        )


class Run:
    """A run that can be stopped, and gone on with."""

    def __init__(self, folder: Path, *options: str) -> None:
        self.folder, self.options = folder, [each.format(run=folder) for each in options]
        self.log = folder.with_suffix(".log")
        self.steps = SERVER.Value(ctypes.c_int, 0, lock=False)
        self.process: Any = None

    @property
    def checkpoint(self) -> Path:
        """The newest."""
        return self.folder / "checkpoints" / "last.ckpt"

    def start(self) -> None:
        """Begin, or go on if there is a checkpoint."""
        more = ["--resume"] if self.checkpoint.exists() else []
        words = ["fit", *OPTIONS, *self.options, f"--run={self.folder}", *more]
        self.process = SERVER.Process(target=calm, args=(words, self.log, self.steps))
        self.process.start()

    def wait(self) -> int:
        """Until it ends; its exit status, negative for a signal."""
        self.process.join()
        status = self.process.exitcode
        assert status is not None
        return int(status)

    def saved_step(self) -> int:
        """The step that a run would go on from."""
        if not self.checkpoint.exists():
            return 0
        return int(torch.load(self.checkpoint, weights_only=True)["global_step"])

    def said(self, word: str) -> str:
        """The last line with this word among what was printed."""
        lines = [line for line in self.log.read_text().splitlines() if word in line]
        assert lines, f"nothing about {word!r} in {self.log.read_text()}"
        return lines[-1].replace(str(self.folder), "RUN").removeprefix("calm: ")


def calm(words: Sequence[str], log: Path, steps: Any) -> None:
    """In a process of its own: the command, its output in a file, its steps counted."""
    os.chdir(ROOT)
    multiprocessing.set_start_method("fork", force=True)  # of its data processes, as is usual
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for stream in (1, 2):
        os.dup2(descriptor, stream)
    from calm_lightning.cli import main
    from calm_lightning.module import CalmModule

    original = CalmModule.on_before_optimizer_step

    def counted(self: CalmModule, optimizer: torch.optim.Optimizer) -> None:
        steps.value = self.global_step + 1
        original(self, optimizer)

    sys.argv = ["calm"]
    with patch.object(CalmModule, "on_before_optimizer_step", counted):
        main(words)


def stopped_at_random(
    fault: Fault, number: signal.Signals, times: int, draw: random.Random, new: Callable[..., Run],
    seconds: float, wanted: bytes, *options: str,
) -> None:  # fmt: skip
    """Runs that get a signal twice each, at moments over the whole of their lives."""
    while fault.times < times:
        run = new(*options)
        for _ in range(2):
            run.start()
            run.process.join(draw.uniform(0, seconds * (1 - run.saved_step() / 70)))
            if run.process.is_alive():
                os.kill(run.process.pid, number)
                fault.times += 1
            status = run.wait()
            if status == 0:
                break  # it was faster
            fault.statuses.add(status)
            fault.lost.append(run.steps.value - run.saved_step())
        finish(fault, run, wanted)
    if number == signal.SIGTERM:
        fault.said = run.said("Stopped by") if "Stopped by" in run.log.read_text() else ""


def damaged(
    fault: Fault, times: int, harm: Callable[[bytearray], bytes], new: Callable[..., Run],
    stop: Callable[[Run], None], wanted: bytes,
) -> None:  # fmt: skip
    """Runs whose newest checkpoint is changed while they are stopped."""
    for _ in range(times):
        run = new()
        stop(run)
        whole = run.saved_step()
        run.checkpoint.write_bytes(harm(bytearray(run.checkpoint.read_bytes())))
        fault.times += 1
        before = torch.load(
            run.checkpoint.with_name("last.previous.ckpt"), weights_only=True
        )["global_step"]  # fmt: skip
        fault.lost.append(whole - before)
        finish(fault, run, wanted)
        fault.said = run.said("Going on from")


def disk_full(
    fault: Fault, times: int, new: Callable[..., Run], stop: Callable[[Run], None], wanted: bytes
) -> None:
    """Runs that meet `No space left on device` at their first save after they went on."""
    for _ in range(times):
        run = new()
        stop(run)
        before = run.checkpoint.read_bytes()
        run.checkpoint.with_name(".last.ckpt.partial").symlink_to("/dev/full")
        run.start()
        fault.statuses.add(run.wait())
        fault.times += 1
        fault.lost.append(run.steps.value - run.saved_step())
        assert run.checkpoint.read_bytes() == before, "the checkpoint before it was touched"
        fault.said = run.said("No space left")
        finish(fault, run, wanted)


def worker_killed(
    fault: Fault, times: int, draw: random.Random, new: Callable[..., Run], wanted: bytes
) -> None:
    """Runs one of whose two data processes is killed after a random step."""
    for _ in range(times):
        run = new("--data.num_workers=2")
        run.start()
        step = draw.randrange(15, 50)
        while run.steps.value < step and run.process.is_alive():
            time.sleep(0.005)
        pid = run.process.pid
        workers = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        os.kill(int(draw.choice(workers)), signal.SIGKILL)
        fault.times += 1
        fault.statuses.add(run.wait())
        fault.lost.append(run.steps.value - run.saved_step())
        fault.said = run.said("process that prepares")
        finish(fault, run, wanted)


def finish(fault: Fault, run: Run, wanted: bytes) -> None:
    """Go on to the end, and compare."""
    if not (run.folder / "model").exists():
        run.start()
        assert run.wait() == 0, run.log.read_text()
    fault.runs += 1
    fault.equal += (run.folder / WEIGHTS).read_bytes() == wanted


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--times", type=int, default=20, help="of each signal (default: 20)")
    parser.add_argument("--seed", type=int, default=0, help="of the moments (default: 0)")
    arguments = parser.parse_args()
    times, few, draw = arguments.times, max(1, arguments.times // 4), random.Random(arguments.seed)
    plug_ins = [point.module for point in entry_points(group="calm_lightning.plugins")]
    SERVER.set_forkserver_preload(["calm_lightning.cli", *plug_ins])
    faults: list[Fault] = []
    with tempfile.TemporaryDirectory() as scratch:
        numbers = iter(range(10_000))

        def new(*options: str) -> Run:
            return Run(Path(scratch) / f"run{next(numbers)}", *options)

        def stop(run: Run) -> None:
            """By SIGTERM, after a random step behind the second checkpoint."""
            run.start()
            step = draw.randrange(25, 50)
            while run.steps.value < step and run.process.is_alive():
                time.sleep(0.005)
            os.kill(run.process.pid, signal.SIGTERM)
            assert run.wait() == 128 + signal.SIGTERM, run.log.read_text()

        first, second = new(), new()
        for run in (first, second):  # the second starts as the later ones will: all is imported
            began = time.monotonic()
            run.start()
            assert run.wait() == 0, run.log.read_text()
        seconds = time.monotonic() - began
        wanted = (first.folder / WEIGHTS).read_bytes()
        assert (second.folder / WEIGHTS).read_bytes() == wanted, "two whole runs differ"

        def cut(data: bytearray) -> bytes:
            return bytes(data[: draw.randrange(len(data))])

        def flip(data: bytearray) -> bytes:
            data[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
            return bytes(data)

        def caching(row: Fault, *options: str) -> None:
            """Compared with a whole run that kept its states in the same way."""
            run = new(*CACHED, *options)
            run.start()
            assert run.wait() == 0, run.log.read_text()
            weights = (run.folder / WEIGHTS).read_bytes()
            stopped_at_random(row, kill, few, draw, new, seconds, weights, *CACHED, *options)
            row.said = run.said("is full") if options else ""

        kill, term, at = signal.SIGKILL, signal.SIGTERM, (draw, new, seconds, wanted)
        rows: list[tuple[str, Callable[[Fault], None]]] = [
            ("kill -9", lambda row: stopped_at_random(row, kill, times, *at)),
            ("kill -9, two data processes",
             lambda row: stopped_at_random(row, kill, few, *at, "--data.num_workers=2")),
            ("SIGTERM", lambda row: stopped_at_random(row, term, times, *at)),
            ("newest checkpoint truncated", lambda row: damaged(row, few, cut, new, stop, wanted)),
            ("one bit of the newest checkpoint flipped",
             lambda row: damaged(row, few, flip, new, stop, wanted)),
            ("disk full while saving", lambda row: disk_full(row, few, new, stop, wanted)),
            ("a data process killed", lambda row: worker_killed(row, few, draw, new, wanted)),
            ("kill -9, states cached", caching),
            ("kill -9, a full state cache", lambda row: caching(row, SMALL)),
        ]  # fmt: skip
        print("| fault | times | exit status | bit-equal at the end | most steps again | said |")
        print("|---|---:|---|---|---:|---|", flush=True)
        for name, fill in rows:
            fault = Fault(name)
            fill(fault)
            faults.append(fault)
            print(fault.row(), flush=True)
    raise SystemExit(any(fault.equal < fault.runs for fault in faults))


if __name__ == "__main__":
    main()
