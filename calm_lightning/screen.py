"""Tables that commands print."""

import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from calm_lightning.discovery import CONTRACTS

if TYPE_CHECKING:
    from calm_lightning.discovery import Plugin

NOTHING = "\N{EN DASH}"
"""In a cell that has no score."""

_NO_TERMINAL = 10_000  # columns


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
    """Every validation score before training, and after it where that is known.

    Args:
        before: By name.
        after: The metrics of a trainer, where such names begin with `val/`.
    """
    table = Table("validation", "before", "after", title_justify="left", box=None)
    for name, value in before.items():
        if "=" not in name:
            now = after.get(f"val/{name}")
            table.add_row(name, f"{value:.4f}", "-" if now is None else f"{float(now):.4f}")
    if table.rows:
        _console().print(table)
