"""What a comparison leaves for its readers: table, CSV, JSON and pictures."""

import csv
import json
import statistics
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from calm_lightning.comparison_figures import plot_bars, plot_curves
from calm_lightning.many_sets import AVERAGE, WINS, average_and_wins, plot_gains
from calm_lightning.results import Result, losses_of, lower_is_better_in, write_whole
from calm_lightning.screen import NOTHING
from calm_lightning.significance import paired_difference

if TYPE_CHECKING:
    from calm_lightning.comparison import Comparison, Row

_ALIKE = "\N{ALMOST EQUAL TO}"
_UNTESTED = "?"
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
    lower, losses = lower_is_better_in(results), losses_of(results)
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
    losses, lower = losses_of(results), lower_is_better_in(results)
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
    loss = " (a loss in nats per character of the answers)" if losses_of(results) else ""
    parts = [
        f"Per cent{loss}; {spread} over seeds {', '.join(map(str, seeds))}; rows without training "
        "are scored once."
    ]
    if comparison.paper:
        parts.append("In brackets: the paper's figure, from models far larger than these.")
    if comparison.reference:
        parts += _legend_of_signs(comparison, results, signs, labels[comparison.reference])
    if comparison.baseline and comparison.retention:
        lower = lower_is_better_in(results) & set(comparison.retention)
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
