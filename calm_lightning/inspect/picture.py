"""The models of a composition and what joins them, as an SVG picture."""

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

WIDTH = 360.0
_BOX, _HEIGHT, _GAP, _TOP, _SIDE = 104.0, 200.0, 44.0, 12.0, 6.0
_LABELLED = 8
"""Most connections that are labelled; of more only the table under the picture tells."""


@dataclass(frozen=True)
class DrawnModel:
    """A model as the picture shows it."""

    name: str
    role: str
    layers: int
    width: int


@dataclass(frozen=True)
class DrawnConnection:
    """A connection as the picture shows it: layers counted from 0, strength 0 or more."""

    augmenting: int
    augmenting_layer: int
    anchor_layer: int
    strength: float | None


def draw(
    anchor: DrawnModel, augmenting: Sequence[DrawnModel], connections: Sequence[DrawnConnection]
) -> str:
    """The anchor on the right, the augmenting models on the left, one above the other.

    Args:
        anchor: The anchor.
        augmenting: The augmenting models.
        connections: What joins them; the stronger, the thicker.
    """
    count = max(1, len(augmenting))
    height = count * (_HEIGHT + _GAP) + _TOP
    right = WIDTH - _BOX - _SIDE if augmenting else (WIDTH - _BOX) / 2
    anchor_top = _TOP + (height - _TOP - _HEIGHT - _GAP) / 2
    tops = [_TOP + place * (_HEIGHT + _GAP) for place in range(len(augmenting))]
    parts = [_stack(anchor, right, anchor_top, "anchor")]
    for model, top in zip(augmenting, tops, strict=True):
        parts.append(_stack(model, _SIDE, top, "augmenting"))
    for each in connections:
        start = _middle(augmenting[each.augmenting], each.augmenting_layer, tops[each.augmenting])
        end = _middle(anchor, each.anchor_layer, anchor_top)
        parts.append(_line(_SIDE + _BOX, start, right, end, each, len(connections) <= _LABELLED))
    label = f"{len(augmenting)} augmenting and 1 anchor model, {len(connections)} connections"
    return (
        f'<svg class="picture" viewBox="0 0 {WIDTH:.0f} {height:.0f}" role="img" '
        f'aria-label="{label}">{"".join(parts)}</svg>'
    )


def _middle(model: DrawnModel, layer: int, top: float) -> float:
    return top + _HEIGHT * (1 - (layer + 0.5) / model.layers)


def _stack(model: DrawnModel, left: float, top: float, kind: str) -> str:
    """A model as its layers, the first one at the bottom, with its name under it."""
    high = _HEIGHT / model.layers
    parts = [f"<g><title>{escape(model.name)}</title>"]
    for layer in range(model.layers):
        y = top + _HEIGHT - (layer + 1) * high
        parts.append(
            f'<rect class="{kind}" x="{left:.0f}" y="{y:.1f}" width="{_BOX:.0f}" '
            f'height="{max(1.0, high - 2):.1f}" rx="3"/>'
        )
        if high >= 12:
            parts.append(_text(left + _BOX / 2, y + high / 2 + 3, f"layer {layer}", "layer"))
    below = top + _HEIGHT + 12
    parts.append(_text(left + _BOX / 2, below, model.role, "role"))
    parts.append(_text(left + _BOX / 2, below + 12, _short(model.name), "name"))
    parts.append(_text(left + _BOX / 2, below + 23, f"{model.layers} x {model.width}", "name"))
    return "".join([*parts, "</g>"])


def _line(
    x0: float, y0: float, x1: float, y1: float, connection: DrawnConnection, labelled: bool
) -> str:
    strength = connection.strength
    thick = 1.5 + 6 * min(1.0, strength or 0.0)
    half = (x0 + x1) / 2
    told = f"layer {connection.augmenting_layer} to layer {connection.anchor_layer}"
    told += "" if strength is None else f": adds {strength:.2f} of the anchor's norm"
    line = (
        f'<path class="bridge" d="M{x0:.1f} {y0:.1f} C{half:.1f} {y0:.1f} {half:.1f} {y1:.1f} '
        f'{x1 - 4:.1f} {y1:.1f}" stroke-width="{thick:.1f}"><title>{escape(told)}</title></path>'
        f'<circle class="end" cx="{x1 - 3:.1f}" cy="{y1:.1f}" r="{2 + thick / 2:.1f}"/>'
    )
    if labelled and strength is not None:
        # A quarter before its end, where connections from one layer have parted.
        x, y = x0 + 0.70 * (x1 - x0), y0 + 0.784 * (y1 - y0)
        line += (
            f'<rect class="back" x="{x - 14:.1f}" y="{y - 8:.1f}" width="28" height="14" rx="4"/>'
        )
        line += _text(x, y + 3, f"{strength:.2f}", "strength")
    return line


def _text(x: float, y: float, text: str, kind: str) -> str:
    return f'<text class="{kind}" x="{x:.1f}" y="{y:.1f}">{escape(text)}</text>'


def _short(name: str, longest: int = 22) -> str:
    last = name.rstrip("/").rpartition("/")[2] or name
    return last if len(last) <= longest else f"{last[: longest - 1]}\N{HORIZONTAL ELLIPSIS}"
