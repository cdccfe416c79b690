"""What a comparison shows: progress while it runs, then table, CSV, JSON and pictures."""

import csv
import json
import statistics
import sys
import time
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import lightning as L
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, TaskID, TextColumn, TimeElapsedColumn
from rich.progress import Progress as RichProgress
from rich.table import Table
from typing_extensions import override

from calm_lightning.discovery import CONTRACTS
from calm_lightning.many_sets import AVERAGE, WINS, average_and_wins, plot_gains
from calm_lightning.results import write_whole
from calm_lightning.significance import paired_difference

if TYPE_CHECKING:
    from calm_lightning.comparison import Comparison, Job, Row
    from calm_lightning.discovery import Plugin

Result = dict[str, Any]
NOTHING = "\N{EN DASH}"
_ALIKE = "\N{ALMOST EQUAL TO}"
_UNTESTED = "?"
_NO_TERMINAL = 10_000  # columns
_COSTS = {
    "trained parameters": "trained_parameters",
    "training, TFLOP": "training_flops",
    "seconds": "seconds",
    "characters/s": "characters_per_second",
    "MiB": "memory_mib",
}
"""Columns of the table, and where a result has them."""

_CSV_COLUMNS = (
    "trained_parameters", "steps", "training_flops", "seconds", "characters_per_second",
    "memory_mib", "config", "commit", "hardware",
)  # fmt: skip

# Told apart by lightness too, so that the bars survive a black-and-white print.
_COLOURS = ("#1b3a5c", "#e07b39", "#4f9d69", "#8f6bb3", "#c9b037", "#7a7a7a", "#d1495b", "#6fb1d6")


# ---------------------------------------------------------------------- while it runs


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


# ---------------------------------------------------------------------- afterwards


def write_report(
    comparison: "Comparison",
    results: Sequence[Result],
    folder: Path,
    failed: Mapping[str, str] | None = None,
) -> None:
    """Write results.json, results.csv, table.md, bars.png and curves.png, and print the table.

    Args:
        comparison: What was compared.
        results: One entry per finished run.
        folder: Where to.
        failed: Reason by run, for those that failed.
    """
    results = [_in_characters(result) for result in results]
    hidden = ("curve", "key", "outcomes")
    rows = [{k: v for k, v in r.items() if k not in hidden} for r in results]
    document = {"name": comparison.name, "rows": rows, "failed": dict(failed or {})}
    write_whole(json.dumps(document, indent=1) + "\n", folder / "results.json")
    columns = list(comparison.columns) or list(dict.fromkeys(c for r in rows for c in r["metrics"]))
    _write_csv(rows, columns, folder / "results.csv")
    text = markdown(comparison, results, columns, failed or {})
    write_whole(text, folder / "table.md")
    plot_bars(comparison, results, columns, folder / "bars.png")
    plot_curves(comparison, results, folder / "curves.png")
    lower, losses = _lower_is_better(results), _losses(results)
    drawn = plot_gains(comparison, results, columns, lower, losses, folder / "gains.png")
    print(text)
    written = "results.json, results.csv, table.md, bars.png, curves.png"
    print(f"Written: {folder}/{written}{', gains.png' if drawn else ''}")


def _in_characters(result: Result) -> Result:
    """The result with losses per character, in which models of any tokenizers can be compared.

    A run leaves the loss per token of its own anchor; that goes to the details.
    """
    metrics, details = dict(result["metrics"]), dict(result.get("details", {}))
    for name in set(result.get("losses", ())) & metrics.keys():
        details[f"{name}/loss_nats"] = metrics[name]
        metrics[name] = details.pop(f"{name}/loss_nats_per_character")
    return {**result, "metrics": metrics, "details": details}


def markdown(
    comparison: "Comparison",
    results: Sequence[Result],
    columns: Sequence[str],
    failed: Mapping[str, str],
) -> str:
    """The table, with what it takes to believe it, and the examples.

    Args:
        comparison: What was compared.
        results: One entry per finished run, with losses in nats per character.
        columns: Evaluation sets, in order.
        failed: Reason by run, for those that failed.
    """
    lines = [f"## {comparison.name}", ""]
    if comparison.about:
        lines += [comparison.about, ""]
    losses, lower = _losses(results), _lower_is_better(results)
    titles = [f"{column}, nats/character" if column in losses else column for column in columns]
    kept = [column for column in comparison.retention if comparison.baseline]
    titles += [f"{column} {'change' if column in lower else 'kept'}" for column in kept]
    titles += [AVERAGE, WINS] if comparison.wins else []
    titles += list(_COSTS)
    lines += [f"| row | {' | '.join(titles)} |", f"|---|{'---:|' * len(titles)}"]
    baseline = [r for r in results if r["name"] == comparison.baseline]
    notes: list[str] = []
    signs: set[str] = set()
    untold: list[str] = []
    for row in comparison.rows:
        runs = [r for r in results if r["name"] == row.name]
        reasons = _reasons(row, failed)
        if not runs and reasons:
            lines.append(f"| {row.label} | failed: {next(iter(reasons.values()))} |")
        if runs or len({*reasons.values()}) > 1:
            untold += [f"Failed: {row.label}, seed {s}: {why}" for s, why in reasons.items()]
        if not runs:
            continue
        paper = comparison.paper.get(row.name, {})
        cells = []
        for column in columns:
            measured = [r["metrics"][column] for r in runs if column in r["metrics"]]
            sign = _sign(comparison, row, runs, results, column) if measured else ""
            signs.add(sign)
            cells.append(f"{_cell(measured, paper.get(column), column in losses)} {sign}".rstrip())
        cells += [_kept(runs, baseline, c, c in lower, c in losses) for c in kept]
        if comparison.wins:
            cells += average_and_wins(comparison, results, row.name, columns, lower, losses)
        cells += [_cost(runs, name) for name in _COSTS.values()]
        wanted = len(comparison.seeds) if row.seeded else 1
        label = row.label if len(runs) == wanted else f"{row.label} ({len(runs)} of {wanted} seeds)"
        for note in filter(None, (row.own_budget, row.own_anchor)):
            if note not in notes:
                notes.append(note)
            label += f" [{notes.index(note) + 1}]"
        lines.append(f"| {label} | {' | '.join(cells)} |")
    lines += ["", _legend(comparison, results, signs)]
    lines += [f"[{i + 1}] {note}" for i, note in enumerate(notes)] + untold
    examples = _examples(comparison, results)
    return "\n".join([*lines, "", *examples]).rstrip() + "\n"


def _reasons(row: "Row", failed: Mapping[str, str]) -> dict[str, str]:
    """Why a row's runs failed, by seed; the first line, for a table."""
    start = f"{row.name}, seed "
    return {
        name.removeprefix(start): _code_free(why.partition("\n")[0])
        for name, why in failed.items()
        if name.startswith(start)
    }


def _cell(measured: Sequence[float | None], paper: float | None, loss: bool = False) -> str:
    if not measured:
        return NOTHING
    values = [value for value in measured if value is not None]
    if len(values) < len(measured):
        return "not finite"
    scale, digits = (1, 3) if loss else (100, 1)
    text = f"{scale * statistics.fmean(values):.{digits}f}"
    if len(values) > 1:
        text += f" ± {scale * statistics.stdev(values):.{digits}f}"
    return text if paper is None else f"{text} ({scale * paper:.{digits}f})"


def _sign(
    comparison: "Comparison",
    row: "Row",
    runs: Sequence[Result],
    results: Sequence[Result],
    column: str,
) -> str:
    """Whether a score differs from the reference's by more than chance: no sign if it does."""
    if comparison.reference in ("", row.name):
        return ""
    reference = [r for r in results if r["name"] == comparison.reference]
    ours, theirs = (
        [r["outcomes"][column] for r in side if column in r.get("outcomes", {})]
        for side in (runs, reference)
    )
    if not ours or not theirs or len({len(scores) for scores in (*ours, *theirs)}) != 1:
        return _UNTESTED
    if len({r.get("questions", {}).get(column) for r in (*runs, *reference)}) > 1:
        return _UNTESTED  # as many, and others
    return "" if paired_difference(ours, theirs).is_clear else _ALIKE


def _kept(
    runs: Sequence[Result], baseline: Sequence[Result], column: str, lower: bool, loss: bool
) -> str:
    """The score as a share of the baseline's; where lower is better, the difference from it."""
    ours, theirs = (
        [r["metrics"][column] for r in side if r["metrics"].get(column) is not None]
        for side in (runs, baseline)
    )
    if not ours or not theirs:
        return NOTHING
    own, known = statistics.fmean(ours), statistics.fmean(theirs)
    if lower:
        return f"{own - known:+.3f}" if loss else f"{100 * (own - known):+.1f}"
    return f"{100 * own / known:.1f}" if known else NOTHING


def _cost(runs: Sequence[Result], name: str) -> str:
    known = [r[name] for r in runs if r.get(name) is not None]
    if not known:
        return NOTHING
    mean = statistics.fmean(known)
    return f"{mean / 1e12:.3g}" if name.endswith("_flops") else f"{mean:,.0f}"


def _losses(results: Sequence[Result]) -> set[str]:
    """Columns that hold a loss in nats instead of a share."""
    return {name for r in results for name in r.get("losses", ())}


def _lower_is_better(results: Sequence[Result]) -> set[str]:
    """Columns in which a smaller number is the better one: losses, and scores that say so."""
    return _losses(results) | {name for r in results for name in r.get("lower_is_better", ())}


def _code(text: str) -> str:
    """A text as code in a cell of a table."""
    return f"`{_code_free(text).replace('`', chr(0x2019))}`"


def _code_free(text: str) -> str:
    return text.replace("\n", " ").replace("|", "\\|")


def _legend(comparison: "Comparison", results: Sequence[Result], signs: Collection[str]) -> str:
    if not results:
        return "No run is finished."
    labels = {row.name: row.label for row in comparison.rows}
    seeds = sorted({r["seed"] for r in results})
    commits = ", ".join(sorted({r["commit"] for r in results if r["commit"]})) or "unknown"
    on = sorted({r["hardware"] for r in results if r.get("hardware")})
    spread = "mean ± standard deviation" if len(seeds) > 1 else "one run"
    loss = " (a loss in nats per character of the answers)" if _losses(results) else ""
    parts = [
        f"Per cent{loss}; {spread} over seeds {', '.join(map(str, seeds))}; rows without training "
        "are scored once."
    ]
    if comparison.paper:
        parts.append("In brackets: the paper's figure, from models far larger than these.")
    if comparison.reference:
        parts += _legend_of_signs(comparison, results, signs, labels[comparison.reference])
    if comparison.baseline and comparison.retention:
        lower = _lower_is_better(results) & set(comparison.retention)
        if lower < set(comparison.retention):
            parts.append(f"Kept: per cent of the score of {labels[comparison.baseline]}.")
        if lower:
            parts.append(
                f"Change: the difference from {labels[comparison.baseline]}; lower is better."
            )
    if comparison.wins:
        parts.append(f"Wins: sets on which a row is better than {labels[comparison.wins]}.")
    if comparison.budget == "flops":
        parts.append(
            "Every trained row without a note on its budget took as much arithmetic as "
            f"{labels[comparison.reference]} in its steps; what is done before them, as drawing "
            "candidates for rewriting, is not counted."
        )
    parts.append(
        "Arithmetic of all training steps, and their seconds; characters answered in a second; "
        "most memory held. "
        f"Commit {commits}; {', '.join(on) or 'unknown'}."
    )
    return " ".join(parts)


def _legend_of_signs(
    comparison: "Comparison", results: Sequence[Result], signs: Collection[str], reference: str
) -> list[str]:
    """What the signs behind scores say, of those that there are."""
    if not any(r["name"] == comparison.reference for r in results):
        return [
            f"{_UNTESTED} marks scores that are not tested: {reference}, with which they would be "
            "compared, has no result."
        ]
    several = len({r["seed"] for r in results}) > 1
    parts = [
        f"{_ALIKE} marks scores that chance may set apart from those of {reference} (95 %, paired "
        f"bootstrap over questions{' and seeds' if several else ', for one seed'})."
    ]
    if _UNTESTED in signs:
        asked = {column for r in results for column in r.get("outcomes", {})}
        columns = comparison.columns or {c for r in results for c in r["metrics"]}
        scoreless = sorted(set(columns) - asked)
        told = f" (none has one in {', '.join(scoreless)})" if scoreless else ""
        parts.append(
            f"{_UNTESTED} marks scores that are not tested, because one of the two rows was asked "
            f"other questions, or has no score for each question{told}."
        )
    return parts


def _examples(comparison: "Comparison", results: Sequence[Result]) -> list[str]:
    answers: dict[tuple[str, str], dict[str, str]] = {}
    targets: dict[tuple[str, str], str] = {}
    rows = []
    for row in comparison.rows:
        runs = [r for r in results if r["name"] == row.name and r["samples"]]
        if not runs:
            continue
        rows.append(row)
        for sample in runs[0]["samples"]:
            where = (sample["set"], sample["prompt"])
            answers.setdefault(where, {})[row.name] = sample["answer"]
            targets[where] = sample["target"]
    if not answers:
        return []
    lines = [f"| set | asked | {' | '.join(row.label for row in rows)} | truth |"]
    lines.append("|---" * (len(rows) + 3) + "|")
    for (name, prompt), said in answers.items():
        cells = [_code(said[row.name][:40]) if said.get(row.name) else NOTHING for row in rows]
        truth = _code(targets[name, prompt])
        lines.append(f"| {name} | {_code(prompt)} | {' | '.join(cells)} | {truth} |")
    return lines


def _write_csv(rows: Sequence[Result], columns: Sequence[str], file: Path) -> None:
    with file.open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(["name", "seed", *columns, *_CSV_COLUMNS])
        for r in rows:
            scores = [r["metrics"].get(c, "") for c in columns]
            about = [r.get(name, "") for name in _CSV_COLUMNS]
            writer.writerow([r["name"], r["seed"], *scores, *about])


def plot_bars(
    comparison: "Comparison", results: Sequence[Result], columns: Sequence[str], file: Path
) -> None:
    """A group of bars per column, one bar a row, with the spread over seeds."""
    from matplotlib.figure import Figure

    losses = _losses(results)
    shares = [column for column in columns if column not in losses]
    columns, scale = (shares, 100) if shares else (columns, 1)  # one unit in one picture
    rows = [row for row in comparison.rows if any(r["name"] == row.name for r in results)]
    if len(rows) > len(_COLOURS):
        return _plot_many_bars(comparison.name, rows, results, columns, scale, file)
    figure = Figure(figsize=(max(7.0, 1.9 * len(columns)), 4.2), layout="constrained")
    axes = figure.subplots()
    width = 0.84 / max(1, len(rows))
    for i, row in enumerate(rows):
        places, heights, spreads = [], [], []
        for j, column in enumerate(columns):
            values = [
                r["metrics"][column]
                for r in results
                if r["name"] == row.name and r["metrics"].get(column) is not None
            ]
            if values:
                places.append(j + (i - (len(rows) - 1) / 2) * width)
                heights.append(scale * statistics.fmean(values))
                spreads.append(scale * statistics.stdev(values) if len(values) > 1 else 0.0)
        axes.bar(
            places, heights, 0.92 * width, yerr=spreads if any(spreads) else None, capsize=2,
            color=_COLOURS[i % len(_COLOURS)], label=row.label,
        )  # fmt: skip
    axes.set_xticks(range(len(columns)), [c.replace("_", "\n", 1) for c in columns], fontsize=8)
    axes.set_ylabel("score, %" if shares else "loss, nats per character")
    if shares:
        axes.set_ylim(0, 105)
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_title(comparison.name, loc="left")
    longest = max((len(row.label) for row in rows), default=1)
    fitting = int(figure.get_figwidth() * 10 / (longest + 8))  # about ten characters an inch
    if rows:
        side_by_side = max(1, min(fitting, len(rows)))
        figure.legend(loc="outside lower center", ncols=side_by_side, frameon=False)
    figure.savefig(file, dpi=150)


def _plot_many_bars(
    title: str,
    rows: Sequence["Row"],
    results: Sequence[Result],
    columns: Sequence[str],
    scale: int,
    file: Path,
) -> None:
    """The same for more rows than colours can tell apart: a line a row, a panel a column."""
    from matplotlib.figure import Figure

    figure = Figure(
        figsize=(4.0 + 1.9 * len(columns), 1.0 + 0.27 * len(rows)), layout="constrained"
    )
    panels = figure.subplots(1, len(columns), sharey=True, squeeze=False)[0]
    for axes, column in zip(panels, columns, strict=True):
        for place, row in enumerate(rows):
            values = [
                scale * r["metrics"][column]
                for r in results
                if r["name"] == row.name and r["metrics"].get(column) is not None
            ]
            if values:
                spread = statistics.stdev(values) if len(values) > 1 else None
                mean = statistics.fmean(values)
                axes.barh(place, mean, 0.75, xerr=spread, capsize=2, color=_COLOURS[0])
        axes.set_title(column.replace("_", " "), fontsize=9)
        axes.spines[["top", "right"]].set_visible(False)
        if scale == 100:
            axes.set_xlim(0, 105)
    panels[0].set_yticks(range(len(rows)), [row.label for row in rows], fontsize=8)
    panels[0].invert_yaxis()
    unit = "score, %" if scale == 100 else "loss, nats per character"
    figure.supxlabel(unit, fontsize=9)
    figure.suptitle(title, x=0.01, ha="left")
    figure.savefig(file, dpi=150)


def plot_curves(comparison: "Comparison", results: Sequence[Result], file: Path) -> None:
    """Training loss over steps: a line per row, the mean over seeds, and their range as a band."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.0, 4.0), layout="constrained")
    axes = figure.subplots()
    drawn = False
    for i, row in enumerate(comparison.rows):
        curves = [dict(r["curve"]) for r in results if r["name"] == row.name and r.get("curve")]
        if not curves:
            continue
        drawn = True
        steps = sorted(set.intersection(*(set(c) for c in curves)))
        means = [statistics.fmean(c[s] for c in curves) for s in steps]
        colour = _COLOURS[i % len(_COLOURS)]
        style = ("-", "--", ":", "-.")[i // len(_COLOURS) % 4]
        axes.plot(steps, means, style, color=colour, label=row.label)
        if len(curves) > 1:
            low, high = ([f(c[s] for c in curves) for s in steps] for f in (min, max))
            axes.fill_between(steps, low, high, color=colour, alpha=0.2, linewidth=0)
    axes.set_xlabel("steps")
    axes.set_ylabel("training loss, nats per target token")
    axes.set_ylim(bottom=0)
    axes.spines[["top", "right"]].set_visible(False)
    if drawn and len(comparison.rows) > len(_COLOURS):
        figure.set_figwidth(10.0)
        figure.legend(loc="outside right upper", frameon=False, fontsize=7)
    elif drawn:
        axes.legend(frameon=False)
    figure.savefig(file, dpi=150)


def _console() -> Console:
    """Standard output; where it is no terminal, as wide as any table, so that no name is cut."""
    return Console() if sys.stdout.isatty() else Console(width=_NO_TERMINAL)


def print_plugins(plugins: Sequence["Plugin"]) -> None:
    """List plug-ins with the package that declares each, and what each offers."""
    table = Table("plug-in", "from", "offers", "what it is", box=None, header_style="bold")
    for plugin in plugins:
        if plugin.error:
            table.add_row(
                plugin.name, plugin.distribution, "[red]left out[/]", escape(plugin.error)
            )
        for i, cls in enumerate(plugin.classes):
            kind = next(c.__name__ for c in CONTRACTS if issubclass(cls, c))
            about = (cls.__doc__ or "").strip().splitlines()[0]
            first = (plugin.name, plugin.distribution) if i == 0 else ("", "")
            table.add_row(*first, f"{cls.__name__} ({kind})", escape(about))
    _console().print(table)


def print_scores(
    metrics: Mapping[str, float], title: str, signatures: Mapping[str, str] | None = None
) -> None:
    """Scores as one table: a line per evaluation set, a column per kind of score.

    Args:
        metrics: By `stage/set/score`.
        title: Of the table.
        signatures: How each kind of score was counted.
    """
    sets: dict[str, dict[str, float]] = {}
    for key, value in metrics.items():
        _, name, score = key.split("/", 2)
        sets.setdefault(name, {})[score] = float(value)
    scores = [s for s in dict.fromkeys(s for each in sets.values() for s in each) if "=" not in s]
    table = Table("evaluation set", *scores, title=title, title_justify="left", box=None)
    for name, values in sets.items():
        table.add_row(name, *(f"{values[s]:.4f}" if s in values else NOTHING for s in scores))
        for detail, value in values.items():
            if "=" in detail:
                table.add_row(f"  {detail}", f"{value:.4f}")
    _console().print(table)
    for name, values in sets.items():
        if "too_long" in values:
            print(
                f"{values['too_long']:.0f} questions of {name} do not fit the context of every "
                "model with room for an answer. They count as unanswered, and not in the loss."
            )
    for name, signature in (signatures or {}).items():
        print(f"{name}: {signature}")


def print_change(before: Mapping[str, float], after: Mapping[str, Any]) -> None:
    """Every validation score before and after training, where both are known."""
    table = Table("validation", "before", "after", title_justify="left", box=None)
    for key, value in before.items():
        if key.startswith("val/") and key in after and "=" not in key:
            table.add_row(key.removeprefix("val/"), f"{value:.4f}", f"{float(after[key]):.4f}")
    if table.rows:
        _console().print(table)
