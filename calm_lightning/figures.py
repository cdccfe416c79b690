"""Pictures of a run, by matplotlib: attention as heat maps, curves over steps."""

import io
import warnings
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from calm_lightning.probing import Look, Probe, connection_name

if TYPE_CHECKING:
    from matplotlib.figure import Figure

LONGEST_AXIS = 40
"""Tokens; of a longer text the last ones are shown, where the answer is."""

# In inches.
_CELL, _LETTER, _MARGIN, _TITLE_WIDTH, _TITLE_HEIGHT = 0.16, 0.065, 0.32, 1.9, 0.42

COLOURS = ("#3b82c4", "#e07b39", "#4f9d69", "#a07cc5", "#c9a227", "#d1495b", "#6fb1d6", "#8a8a8a")
"""Of lines; to be read on white and on black."""


def attention_map(probe: Probe, number: int) -> "Figure | None":
    """The attention of one connection, the mean over its heads.

    Args:
        probe: A text that was read.
        number: Of the connection.

    Returns:
        The anchor's tokens from top to bottom, the augmenting model's from left to right; dark is
        none of the attention, yellow all of it, and the colours go by the square root, or what is
        spread over many tokens would be dark altogether. None where there is no attention to show.
    """
    from matplotlib.colors import PowerNorm
    from matplotlib.figure import Figure

    look = probe.looks[number]
    if look.weights is None or look.visible is None:
        return None
    weights = look.weights.mean(0)[-LONGEST_AXIS:, -LONGEST_AXIS:]
    rows = probe.anchor_tokens[-LONGEST_AXIS:]
    columns = probe.augmenting_tokens[look.connection.augmenting][-LONGEST_AXIS:]
    left, below = (_MARGIN + _LETTER * max(map(len, tokens)) for tokens in (rows, columns))
    width, height = (_CELL * len(tokens) for tokens in (columns, rows))
    across, up = left + max(width, _TITLE_WIDTH) + 0.1, below + height + _TITLE_HEIGHT
    figure = Figure(figsize=(across, up))
    axes = figure.add_axes((left / across, below / up, width / across, height / up))
    # What may not be read is left blank, so that the picture shows the causal mask too.
    visible = look.visible[-LONGEST_AXIS:, -LONGEST_AXIS:]
    shown = weights.masked_fill(~visible, float("nan"))
    scale = PowerNorm(0.5, vmin=0, vmax=1)
    options: dict[str, Any] = {"aspect": "auto", "interpolation": "none"}
    axes.imshow(shown.float().numpy(), cmap="viridis", norm=scale, **options)
    small: dict[str, Any] = {"fontsize": 7, "parse_math": False, "family": "monospace"}
    axes.set_xticks(range(len(columns)), columns, rotation=90, **small)
    axes.set_yticks(range(len(rows)), rows, **small)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    axes.set_title(_title(look, len(probe.augmenting_tokens)), fontsize=8, loc="left")
    figure.text(left / across, 0.05 / up, "the augmenting model's tokens", fontsize=7)
    figure.text(0.03 / across, below / up, "the anchor's tokens", fontsize=7, rotation=90)
    return figure


def _title(look: Look, models: int) -> str:
    name = connection_name(look.connection, models)
    return f"{name}\nadds {look.share:.2f} of the anchor's norm"


def curves(
    lines: Mapping[str, Sequence[tuple[float, float]]], unit: str, log: bool = False
) -> "Figure":
    """Lines over steps, small enough for a phone.

    Args:
        lines: (step, value) pairs by name.
        unit: Of the values.
        log: Whether the values' axis is logarithmic.
    """
    from matplotlib.figure import Figure

    rows = -(-len(lines) // 2) if len(lines) > 1 else 0
    figure = Figure(figsize=(3.7, 2.3 + 0.17 * rows), layout="constrained")
    axes = figure.subplots()
    for number, (name, points) in enumerate(lines.items()):
        steps, values = zip(*points, strict=True)
        marker = "o" if len(points) < 12 else None
        colour = COLOURS[number % len(COLOURS)]
        axes.plot(steps, values, label=name, color=colour, marker=marker, markersize=3, lw=1.4)
    axes.set_xlabel("steps", fontsize=8)
    axes.set_ylabel(unit, fontsize=8)
    if log:
        axes.set_yscale("log")
    axes.tick_params(labelsize=8)
    axes.grid(alpha=0.25, linewidth=0.5)
    axes.spines[["top", "right"]].set_visible(False)
    if rows:
        figure.legend(loc="outside lower center", ncols=2, fontsize=7.5, frameon=False)
    return figure


def as_svg(figure: "Figure") -> str:
    """A figure as an SVG element for a page; what is black in it takes the page's colour."""
    from matplotlib import rc_context

    stream = io.StringIO()
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": "calm"}), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*[Gg]lyph.*")  # the browser has more letters
        options: dict[str, Any] = {"transparent": True, "metadata": {"Date": None}}
        figure.savefig(stream, format="svg", **options)
    svg = stream.getvalue()
    return svg[svg.index("<svg") :].replace("#000000", "currentColor")
