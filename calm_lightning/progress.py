"""How far a comparison is, while it runs."""

import json
import statistics
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import lightning as L
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, TaskID, TextColumn, TimeElapsedColumn
from rich.progress import Progress as RichProgress
from typing_extensions import override

from calm_lightning.results import write_whole

if TYPE_CHECKING:
    from calm_lightning.comparison import Job


class JobProgress(L.Callback):
    """Writes how far a run is into its folder, and keeps its learning curve.

    Args:
        folder: Of the run.
        every_seconds: Between two writes.
        points: Most points that the curve keeps.
    """

    def __init__(self, folder: Path, every_seconds: float = 0.5, points: int = 200) -> None:
        self.file = folder / "progress.json"
        self.every_seconds = every_seconds
        self.points = points
        self.curve: list[tuple[int, float]] = []
        self._written = 0.0
        self._window: list[float] = []

    @override
    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self._window.append(float(outputs["loss"]))
        total = max(1, int(trainer.estimated_stepping_batches))
        if trainer.global_step % max(1, total // self.points) == 0:
            self.curve.append((trainer.global_step, statistics.fmean(self._window)))
            self._window.clear()
        self._write("training", trainer.global_step / total)

    @override
    def on_test_batch_start(
        self,
        trainer: L.Trainer,
        pl_module: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        batches = trainer.num_test_batches
        done = sum(batches[:dataloader_idx]) + batch_idx
        self._write("scoring", done / max(1, sum(batches)))

    def _write(self, phase: str, share: float) -> None:
        now = time.monotonic()
        if now - self._written < self.every_seconds:
            return
        self._written = now
        loss = self.curve[-1][1] if self.curve else None
        write_whole(json.dumps({"phase": phase, "share": share, "loss": loss}), self.file)


class Progress:
    """Which row, which seed, how far, how long still.

    On a terminal: one bar a run. Elsewhere: one line every `line_seconds`.

    Args:
        jobs: All runs of the comparison.
        pending: Those that are not finished yet.
        out: Folder of the results.
        workers: Runs at a time.
        line_seconds: Between two lines where there is no terminal.
    """

    def __init__(
        self,
        jobs: Sequence["Job"],
        pending: Sequence["Job"],
        out: Path,
        workers: int,
        line_seconds: float = 15.0,
    ) -> None:
        self.pending, self.out, self.workers = list(pending), out, workers
        self.already = len(jobs) - len(pending)
        self.total = len(jobs)
        self.line_seconds = line_seconds
        self.console = Console(stderr=True)
        self.started = time.monotonic()
        self.begun: dict[Job, float] = {}
        self.took: dict[Job, float] = {}
        self._line = 0.0
        self._bars = RichProgress(
            TextColumn("{task.description:<34}"),
            BarColumn(bar_width=24),
            TextColumn("{task.percentage:>3.0f}%"),
            TimeElapsedColumn(),
            TextColumn("{task.fields[note]}"),
            console=self.console,
            disable=not self.console.is_terminal,
        )
        self._tasks: dict[Job, TaskID] = {}

    def __enter__(self) -> "Progress":
        for job in self.pending:
            (job.folder(self.out) / "progress.json").unlink(missing_ok=True)
        known = f", {self.already} of them already done" if self.already else ""
        self.console.print(f"{self.total} runs{known}; {self.workers} at a time.", highlight=False)
        self._bars.start()
        self._all = self._bars.add_task("all", total=1.0, note="")
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        self._bars.stop()
        if kind is not None:
            self.console.print("Stopped. The same command goes on with what is unfinished.")

    def update(self) -> None:
        """Read how far every run is, and show it."""
        now = time.monotonic()
        shares = {}
        for job in self.pending:
            share, note = self._share(job)
            shares[job] = share
            if share is None:
                continue
            self.begun.setdefault(job, now)
            if share >= 1.0:
                self.took.setdefault(job, now - self.begun[job])
            if job not in self._tasks:
                name = f"{job.row.label}, seed {job.seed}"
                self._tasks[job] = self._bars.add_task(escape(name), total=1.0, note="")
            self._bars.update(
                self._tasks[job], completed=share, note=escape(note), visible=share < 1.0
            )
        left = self._seconds_left(shares, now)
        done = sum(share or 0.0 for share in shares.values()) / max(1, len(shares))
        note = f"about {_duration(left)} left" if left is not None else "measuring the time left"
        self._bars.update(self._all, completed=done, note=note)
        if not self.console.is_terminal and now - self._line > self.line_seconds:
            self._line = now
            running = [
                f"{job.row.name} seed {job.seed} {share:.0%}"
                for job, share in shares.items()
                if share is not None and share < 1.0
            ]
            finished = self.already + sum(share == 1.0 for share in shares.values())
            self.console.print(
                f"[{_duration(now - self.started)}] {finished}/{self.total} done; "
                f"{'; '.join(running) or 'starting'}; {note}",
                highlight=False,
                markup=False,
                soft_wrap=True,
            )

    def _share(self, job: "Job") -> tuple[float | None, str]:
        folder = job.folder(self.out)
        try:
            said = json.loads((folder / "progress.json").read_text())
        except (OSError, ValueError):
            return (None, "")
        if (folder / "result.json").exists() and job in self.begun and self._is_newer(folder):
            return 1.0, "done"
        # Scoring is taken as the last tenth of a trained run.
        share = said["share"]
        if job.row.train:
            share = 0.9 * share if said["phase"] == "training" else 0.9 + 0.1 * share
        loss = f", loss {said['loss']:.3f}" if said["loss"] is not None else ""
        return min(share, 0.999), f"{said['phase']}{loss}"

    def _is_newer(self, folder: Path) -> bool:
        result, progress = folder / "result.json", folder / "progress.json"
        return result.stat().st_mtime >= progress.stat().st_mtime

    def _seconds_left(self, shares: Mapping["Job", float | None], now: float) -> float | None:
        pace = dict(self.took)  # seconds of a whole run, measured or foreseen
        for job, share in shares.items():
            if share is not None and job not in pace and share > 0.02:
                pace[job] = (now - self.begun[job]) / share
        if not any(job.row.train for job in pace) and any(job.row.train for job in self.pending):
            return None
        typical = {
            train: statistics.fmean(known)
            for train in (True, False)
            if (known := [s for job, s in pace.items() if job.row.train == train])
        }
        left = 0.0
        for job, share in shares.items():
            whole = pace.get(job, typical.get(job.row.train, min(typical.values(), default=0.0)))
            left += whole * (1.0 - (share or 0.0))
        return left / self.workers


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
