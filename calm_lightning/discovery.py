"""Finds the plug-ins that are installed.

A plug-in is a module named by an entry point in the group `calm_lightning.plugins`. Importing it is
all there is: every non-abstract subclass of a contract in it may then be named without its module.
"""

import inspect
import warnings
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from types import ModuleType
from typing import TypeVar

from calm_lightning.contracts import CalmError, Composition, Scorer, Task

GROUP = "calm_lightning.plugins"
CONTRACTS: tuple[type, ...] = (Composition, Task, Scorer)

Contract = TypeVar("Contract")


class PluginWarning(UserWarning):
    """A plug-in was left out."""


@dataclass(frozen=True)
class Plugin:
    """One installed plug-in.

    Attributes:
        name: Of the entry point.
        module: The imported module; None if the import failed.
        target: The module's dotted name.
        distribution: The installed package that declares it, with its version.
        error: Why the import failed; empty if it did not.
    """

    name: str
    module: ModuleType | None
    target: str
    distribution: str
    error: str = ""

    @property
    def classes(self) -> list[type]:
        """The plug-in's own classes that keep a contract."""
        if self.module is None:
            return []
        return [
            thing
            for thing in vars(self.module).values()
            if isinstance(thing, type)
            and issubclass(thing, CONTRACTS)
            and not inspect.isabstract(thing)
            and f"{thing.__module__}.".startswith(f"{self.module.__name__}.")
        ]


@cache
def load_plugins() -> tuple[Plugin, ...]:
    """Import every installed plug-in, once per process.

    A plug-in that cannot be imported is named in a warning and left out: a missing translation
    library should not stop an arithmetic run.

    Raises:
        CalmError: If two plug-ins claim one name.
    """
    points: dict[str, tuple[EntryPoint, str]] = {}
    for point in sorted(entry_points(group=GROUP), key=lambda p: (p.name, p.value)):
        owner = f"{point.dist.name} {point.dist.version}" if point.dist else "unknown"
        if point.name in points:
            other, its_owner = points[point.name]
            if (other.value, its_owner) == (point.value, owner):
                continue  # one distribution seen twice on the path
            raise CalmError(
                f"Two plug-ins are called {point.name!r}: {other.value} (from {its_owner}) and "
                f"{point.value} (from {owner}). Uninstall one, or rename it where it is declared, "
                f"under {GROUP!r}."
            )
        points[point.name] = point, owner
    loaded: dict[str, Plugin] = {}
    for point, owner in points.values():  # nothing is imported before all of them are known
        try:
            module = point.load()
            if not isinstance(module, ModuleType):
                raise TypeError(f"it names {_kind(module)}, and a plug-in is a module")
            loaded[point.name] = Plugin(point.name, module, point.value, owner)
        except (Exception, SystemExit) as error:
            loaded[point.name] = Plugin(point.name, None, point.value, owner, repr(error))
            warnings.warn(
                f"Left out plug-in {point.name!r} ({point.value}, from {owner}): {error!r}",
                PluginWarning,
                stacklevel=2,
            )
    return tuple(loaded.values())


def implementations(contract: type[Contract]) -> dict[str, type[Contract]]:
    """Every imported, non-abstract class that keeps a contract, by its short name."""
    return {cls.__name__: cls for cls in sorted(_subclasses(contract), key=lambda c: c.__name__)}


def find(contract: type[Contract], name: str) -> type[Contract]:
    """The class of this name among the installed ones; nothing is imported by name.

    Args:
        contract: `Composition`, `Task` or `Scorer`.
        name: Its short name, or its full dotted path. A class that has moved since, inside its own
            package, is found too.

    Raises:
        CalmError: If there is none, with the nearest names; or several, with their paths.
    """
    classes = {_path(cls): cls for cls in _subclasses(contract)}
    if name in classes:
        return classes[name]
    package, _, _ = name.rpartition(".")[0].partition(".")
    short = name.rpartition(".")[2]
    found = [
        path
        for path, cls in classes.items()
        if cls.__name__ == short and (not package or path.partition(".")[0] == package)
    ]
    if len(found) > 1:
        raise CalmError(f"{short} is the name of {' and of '.join(found)}. Give the whole path.")
    if not found:
        known = sorted({cls.__name__ for cls in classes.values()})
        raise CalmError(unknown(contract.__name__.lower(), name, known))
    return classes[found[0]]


def _subclasses(contract: type[Contract]) -> list[type[Contract]]:
    load_plugins()
    found: dict[type[Contract], None] = {}
    queue = [contract]
    while queue:
        for child in queue.pop().__subclasses__():
            queue.append(child)
            if not inspect.isabstract(child) and "<locals>" not in child.__qualname__:
                found[child] = None
    return list(found)


def _kind(thing: object) -> str:
    return f"the class {thing.__name__}" if isinstance(thing, type) else f"a {type(thing).__name__}"


def _path(cls: type) -> str:
    return f"{cls.__module__}.{cls.__qualname__}"


def unknown(kind: str, name: str, known: list[str]) -> str:
    """The message for a name that nothing has."""
    near = get_close_matches(name.rpartition(".")[2], known, 1, 0.6)
    hint = f" Did you mean {near[0]}?" if near else ""
    failed = [f"{p.name} ({p.error})" for p in load_plugins() if p.error]
    left_out = (
        f" Left out because they could not be imported: {'; '.join(failed)}." if failed else ""
    )
    return f"There is no {kind} called {name!r}.{hint} Installed: {', '.join(known)}.{left_out}"
