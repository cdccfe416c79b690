"""Pictures of a comparison, by matplotlib: bars of the scores, curves of the training losses."""

import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from calm_lightning.results import Result, losses_of

if TYPE_CHECKING:
    from calm_lightning.comparison import Comparison, Row

# Told apart by lightness too, so that the bars survive a black-and-white print.
_COLOURS = ("#1b3a5c", "#e07b39", "#4f9d69", "#8f6bb3", "#c9b037", "#7a7a7a", "#d1495b", "#6fb1d6")


def plot_bars(
    comparison: "Comparison", results: Sequence[Result], columns: Sequence[str], file: Path
) -> None:
    """A group of bars per column, one bar a row, with the spread over seeds."""
    from matplotlib.figure import Figure

    losses = losses_of(results)
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
