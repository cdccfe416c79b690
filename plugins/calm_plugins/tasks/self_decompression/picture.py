"""A picture of a tree: some of its texts, from the root on the left to the leaves on the right."""

import warnings
from collections.abc import Iterator, Mapping
from itertools import count
from pathlib import Path
from typing import Any

from calm_plugins.tasks.self_decompression.tree import ROOT, Corpus, children_of

_ROWS = 28
_CHARACTERS = 34
_KEPT, _DROPPED, _LINE = "#20506e", "#b0563c", "#c8ccd0"


def picture(corpus: Corpus, file: Path) -> None:
    """Draw a part of the tree that is small enough to be read.

    Args:
        corpus: The tree.
        file: The picture's file; its ending says the format.
    """
    from matplotlib.figure import Figure

    tree = corpus.about["tree"]
    branching: list[int] = tree["branching"]
    rows: dict[str, float] = {}
    _place(corpus, ROOT, _shown(branching), rows, count())
    height = max(rows.values()) + 1
    figure = Figure(figsize=(1.5 + 3.1 * len(branching), 1.2 + 0.24 * height), layout="constrained")
    axes = figure.subplots()
    for name, row in rows.items():
        node = corpus.nodes.get(name)
        level = name.count(".")
        dropped = corpus.dropped.get(name)
        if node is not None:
            parent = rows[node.parent]
            axes.plot(
                [level - 0.35, level - 0.2, level - 0.05],
                [parent, row, row], color=_LINE, linewidth=0.8, zorder=1,
            )  # fmt: skip
        text = _short(node.whole if node else _root(tree))
        if dropped is not None:
            text += f"  ({dropped.why})"
        axes.text(
            level - 0.03, row, text, va="center", fontsize=7, parse_math=False,
            color=_KEPT if dropped is None else _DROPPED,
        )  # fmt: skip
    axes.set_xlim(-0.05, len(branching) + 0.75)
    axes.set_ylim(height, -1)
    axes.set_axis_off()
    kept = len(corpus.nodes) - len(corpus.dropped)
    axes.set_title(
        f"{corpus.about['model']['path']}: {len(corpus.nodes):,} texts drawn, {kept:,} kept, "
        f"{len(rows) - 1:,} shown",
        loc="left", fontsize=8, parse_math=False,
    )  # fmt: skip
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph")  # scripts that the font does not have
        figure.savefig(file, dpi=150)


def _shown(branching: list[int]) -> list[int]:
    """How many children of each node are shown on each level, so that the leaves fit the rows."""
    shown = [1] * len(branching)
    grew = True
    while grew:
        grew = False
        for level, most in enumerate(branching):
            leaves = 1
            for number in shown:
                leaves *= number
            if shown[level] < most and leaves // shown[level] * (shown[level] + 1) <= _ROWS:
                shown[level] += 1
                grew = True
    return shown


def _place(
    corpus: Corpus, name: str, shown: list[int], rows: dict[str, float], free: Iterator[int]
) -> float:
    """Give a node and all below it their rows: a leaf the next one, others the middle of theirs."""
    level = name.count(".")
    children = _children(corpus, name, shown[level]) if level < len(shown) else []
    below = [_place(corpus, child, shown, rows, free) for child in children]
    rows[name] = (below[0] + below[-1]) / 2 if below else float(next(free))
    return rows[name]


def _children(corpus: Corpus, name: str, most: int) -> list[str]:
    return [child for child in children_of(name, most) if child in corpus.nodes]


def _root(tree: Mapping[str, Any]) -> str:
    return tree["system"] or tree["start"] or tree["start_pattern"] or f"({tree['style']})"


def _short(text: str) -> str:
    """A text on one line, its middle left out if it is long."""
    line = " ".join(text.split())
    if len(line) <= _CHARACTERS:
        return line
    return f"{line[: _CHARACTERS * 2 // 3]} … {line[-_CHARACTERS // 3 + 3 :]}"
