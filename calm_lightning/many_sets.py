"""Many evaluation sets in one look: averages, wins against one row, and a picture of the gains.

As the CALM paper reports 192 languages (section 4.2, Figure 2 and the averages beside it): on how
many sets is a row better than the anchor, and by how much on each?
"""

import math
import statistics
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from calm_lightning.figures import COLOURS

if TYPE_CHECKING:
    from calm_lightning.comparison import Comparison

AVERAGE, WINS = "average", "wins"


def means(results: Sequence[dict[str, Any]], row: str, columns: Sequence[str]) -> list[float]:
    """A row's score on each set, over its seeds; empty unless it has one on each.

    Args:
        results: One entry per finished run.
        row: Name of the row.
        columns: Names of the sets.
    """
    found = []
    for column in columns:
        values = [r["metrics"].get(column) for r in results if r["name"] == row]
        if not values or None in values:
            return []
        found.append(statistics.fmean(values))
    return found


def wins(ours: Sequence[float], theirs: Sequence[float], lower_is_better: Sequence[bool]) -> int:
    """On how many sets the first scores are the better ones; equal scores are no win."""
    trios = zip(ours, theirs, lower_is_better, strict=True)
    # Means of equal scores may differ in their last digit.
    return sum(not math.isclose(a, b) and (a < b) == lower for a, b, lower in trios)


def average_and_wins(
    comparison: "Comparison",
    results: Sequence[dict[str, Any]],
    row: str,
    columns: Sequence[str],
    lower: Collection[str],
    losses: Collection[str],
) -> list[str]:
    """Two cells of a table: the mean of a row's scores, and its wins against the row named so.

    Args:
        comparison: What was compared.
        results: One entry per finished run.
        row: Name of the row.
        columns: Names of the sets.
        lower: Names of those in which a smaller score is better.
        losses: Names of those whose score is a loss and no share: the two have no common mean.
    """
    ours, theirs = (means(results, name, columns) for name in (row, comparison.wins))
    if not ours:
        return ["", ""]
    in_nats = {column in losses for column in columns}
    average = ""
    if len(in_nats) == 1:
        mean = statistics.fmean(ours)
        average = f"{mean:.3f}" if True in in_nats else f"{100 * mean:.1f}"
    if row == comparison.wins or not theirs:
        return [average, ""]
    better = wins(ours, theirs, [column in lower for column in columns])
    return [average, f"{better} of {len(columns)}"]


def plot_gains(
    comparison: "Comparison",
    results: Sequence[dict[str, Any]],
    columns: Sequence[str],
    lower: Collection[str],
    losses: Collection[str],
    file: Path,
) -> bool:
    """Draw what each row gains over the one named by `wins`, set by set, the greatest gain first.

    Args:
        comparison: What was compared. The sets are in the order of the first row's gain that is
            trained.
        results: One entry per finished run.
        columns: Names of the sets; losses are left out if others are among them.
        lower: Names of the sets in which a smaller score is better; a gain is always upwards.
        losses: Names of the sets whose score is a loss, in nats per character, and no share.
        file: Where to.

    Returns:
        False if there is nothing to draw.
    """
    from matplotlib.figure import Figure

    shares = [column for column in columns if column not in losses]
    columns, scale = (shares, 100) if shares else (columns, 1)  # one unit in one picture
    base = means(results, comparison.wins, columns) if comparison.wins else []
    signs = [-1.0 if column in lower else 1.0 for column in columns]
    gains = {}
    for row in comparison.rows:
        ours = means(results, row.name, columns)
        if row.name != comparison.wins and ours and base:
            trio = zip(signs, ours, base, strict=True)
            gains[row.name] = [scale * sign * (a - b) for sign, a, b in trio]
    if not gains:
        return False
    trained = [row.name for row in comparison.rows if row.train and row.name in gains]
    leader = gains[(trained or list(gains))[0]]
    order = sorted(range(len(columns)), key=lambda place: -leader[place])
    figure = Figure(figsize=(max(6.0, 2.0 + 0.17 * len(columns)), 4.0), layout="constrained")
    axes = figure.subplots()
    axes.axhline(0, color="#8a8a8a", linewidth=0.8)
    labels = {row.name: row.label for row in comparison.rows}
    for number, (name, values) in enumerate(gains.items()):
        better = sum(value > 0 for value in values)
        axes.plot(
            [values[place] for place in order], "o", markersize=3.5,
            color=COLOURS[number % len(COLOURS)], alpha=0.5 + 0.5 * (number < len(COLOURS)),
            label=f"{labels[name]}: better on {better} of {len(columns)}",
        )  # fmt: skip
    axes.set_xticks(range(len(columns)), [columns[place] for place in order], rotation=90)
    axes.tick_params(axis="x", labelsize=7)
    unit = "points" if scale == 100 else "nats per character"
    axes.set_ylabel(f"gain over {labels[comparison.wins]}, {unit}")
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_title(comparison.name, loc="left")
    figure.legend(loc="outside lower center", ncols=2, frameon=False, fontsize=8)
    figure.savefig(file, dpi=150)
    return True
