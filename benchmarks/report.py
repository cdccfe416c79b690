"""What was measured, as a table, as JSON and as a plot."""

import json
import os
import platform
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import transformers

from benchmarks.jobs import Row
from benchmarks.measuring import quartiles, ratios
from benchmarks.sides import Composed

METHOD = (
    "Ratios: the value of a side divided by that of another within one round; of these the median "
    "over all rounds (and the quartiles)."
)


def summary(row: Row, rows: Sequence[Row]) -> dict[str, Any]:
    """Median and quartiles of a row, and of its ratios to the reference and to this project."""
    told: dict[str, Any] = asdict(row)
    told["quartiles"] = quartiles(row.values)
    place = row.quantity, row.at
    beside = {each.side: each for each in rows if (each.quantity, each.at) == place}
    told["ratios"] = {
        name: quartiles(ratios(row.values, beside[name].values))
        for name in dict.fromkeys((row.reference, f"{row.reference}, compiled", Composed.name))
        if name in beside
    }
    if row.rate is not None:
        told["rate_per_s"] = row.rate[0] / told["quartiles"][1]
    return told


def print_table(told: Sequence[dict[str, Any]]) -> None:
    """One block for every quantity, and how its ratios were taken."""
    quantity = None
    for row in told:
        if row["quantity"] != quantity:
            quantity = row["quantity"]
            where = "" if row["at"] is None else "at"
            unit = UNITS[row["unit"]][1]
            heads = (f"to {name} (quartiles)" for name in row["ratios"])
            line = f"{quantity:28}{where:>6}{unit:>10}  (quartiles)"
            print(f"\n{line:68}" + "".join(f"{head:30}" for head in heads).rstrip())
        scale = UNITS[row["unit"]][0]
        low, middle, high = (value * scale for value in row["quartiles"])
        at = "" if row["at"] is None else row["at"]
        line = f"  {row['side']:26}{at:>6}{middle:10,.1f}  ({low:,.1f} to {high:,.1f})"
        line = f"{line:68}"
        for low, middle, high in row["ratios"].values():
            ratio = f"{middle:.3f}  ({low:.3f} to {high:.3f})"
            line += f"{ratio:30}"
        if row["rate"] is not None:
            line += f"{row['rate_per_s']:,.1f} {row['rate'][1]}"
        print(line.rstrip())
    print(METHOD)


def conditions(threads: int, clock: str) -> dict[str, Any]:
    """What the numbers were measured with."""
    return {
        "threads": threads,
        "clock": clock,
        "load": os.getloadavg(),
        "processor": _processor(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }


def write(folder: Path, name: str, told: Sequence[dict[str, Any]], about: dict[str, Any]) -> None:
    """The JSON and the plot."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.json").write_text(json.dumps({**about, "rows": told}, indent=1) + "\n")
    plot(told, folder / f"{name}.png")
    print(f"\nWritten: {folder / name}.json and .png")


def plot(told: Sequence[dict[str, Any]], file: Path) -> None:
    """One panel for every quantity: bars with quartiles, or lines where there is an axis."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    quantities = list(dict.fromkeys(row["quantity"] for row in told))
    columns = min(2, len(quantities))
    lines = -(-len(quantities) // columns)
    figure = Figure(figsize=(6 * columns, 3.5 * lines), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(lines, columns, squeeze=False).flat
    for panel, quantity in zip(panels, quantities, strict=False):
        rows = [row for row in told if row["quantity"] == quantity]
        scale, unit = UNITS[rows[0]["unit"]]
        panel.set_title(quantity)
        along = rows[0]["at"] is not None
        (panel.set_ylabel if along else panel.set_xlabel)(unit)
        for side in dict.fromkeys(row["side"] for row in rows):
            mine = [row for row in rows if row["side"] == side]
            low, middle, high = ([row["quartiles"][k] * scale for row in mine] for k in range(3))
            spread = [
                [m - edge for m, edge in zip(middle, low, strict=True)],
                [edge - m for m, edge in zip(middle, high, strict=True)],
            ]
            if along:
                panel.errorbar([row["at"] for row in mine], middle, spread, label=side, capsize=2)
            else:
                panel.barh(side, middle, xerr=spread, capsize=2)
        if along:
            panel.set_ylim(bottom=0)
            panel.legend(fontsize="small")
        else:
            panel.invert_yaxis()
    figure.savefig(file, dpi=120)


UNITS = {"s": (1e3, "ms"), "bytes": (2.0**-20, "MiB")}


def _processor() -> str:
    told = Path("/proc/cpuinfo")
    lines = told.read_text().splitlines() if told.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()
