"""JSON and YAML that anybody may have written: no fault in them but the one that is told.

The libraries read files well, but for texts that were made to do harm, or that went wrong badly:
brackets nested a hundred thousand deep end the process (libyaml) or overflow the stack (json), a
few lines of YAML aliases stand for more entries than any memory holds, and a number of thousands of
digits or the date 2020-13-45 raises what nobody expects of a parser.
"""

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.abc import MetaPathFinder
from typing import Any

import yaml
from jsonargparse import get_loader, set_loader, set_parsing_settings
from typing_extensions import override

MOST_NESTED = 100
"""Collections in one another that a YAML text may have; a config of ours has ten at most."""
MOST_ALIASED = 100_000
"""Entries that all aliases of a YAML text may stand for."""

_EventLoader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def parse_json(text: str | bytes) -> Any:
    """What a JSON text says.

    Raises:
        json.JSONDecodeError: Whatever is wrong with it, but for bytes that are not UTF-8.
        UnicodeDecodeError: If they are not.
    """
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        raise
    except UnicodeDecodeError:
        raise
    except RecursionError:
        raise json.JSONDecodeError("nested too deeply", str(text), 0) from None
    except ValueError as error:  # a number of more digits than Python converts
        raise json.JSONDecodeError(str(error).partition(";")[0], str(text), 0) from None


def parse_yaml(text: str) -> Any:
    """What a YAML text says, in plain values; its tags make no objects of Python's.

    Raises:
        yaml.YAMLError: Whatever is wrong with it.
    """
    return _bounded(yaml.safe_load)(text)


class Bomb(yaml.MarkedYAMLError):
    """A YAML text is nested too deeply, or its aliases stand for too much."""


def refuse_bombs(text: str) -> None:
    """Refuse a YAML text that would take far more than its length says.

    It is not loaded for that, so this takes as long as the text and no more memory.

    Raises:
        Bomb: With line and column.
        yaml.YAMLError: If it is no YAML.
    """
    sizes: dict[str | None, int] = {}  # entries under each anchor whose end was seen
    inside: list[tuple[str | None, int]] = []  # open collections: their anchors, entries so far
    aliased = 0
    for event in yaml.parse(text, Loader=_EventLoader):
        if isinstance(event, yaml.CollectionStartEvent):
            if len(inside) == MOST_NESTED:
                raise _fault(f"more than {MOST_NESTED} collections in one another", event)
            inside.append((event.anchor, 1))
            continue
        if isinstance(event, yaml.AliasEvent):
            if any(anchor == event.anchor for anchor, _ in inside):
                raise _fault(f"*{event.anchor} stands inside of what it stands for", event)
            entries = sizes.get(event.anchor, 0)  # an unknown one is the loader's to refuse
            aliased += entries
            if aliased > MOST_ALIASED:
                raise _fault(f"aliases stand for more than {MOST_ALIASED:,} entries", event)
        elif isinstance(event, yaml.ScalarEvent):
            sizes[event.anchor] = entries = 1
        elif isinstance(event, yaml.CollectionEndEvent):
            anchor, entries = inside.pop()
            sizes[anchor] = entries
        else:
            continue
        if inside:
            anchor, before = inside[-1]
            inside[-1] = (anchor, before + entries)


def refuse_hidden_bombs(values: Any) -> None:
    """The same of every text in some values: where a number is wanted, jsonargparse loads it.

    Raises:
        Bomb: With its line and column in that text.
    """
    waiting = [values]
    while waiting:
        value = waiting.pop()
        if isinstance(value, dict):
            waiting += value.values()
        elif isinstance(value, list):
            waiting += value
        elif isinstance(value, str):
            try:
                refuse_bombs(value)
            except Bomb:
                raise
            except (yaml.YAMLError, ValueError):
                pass  # a text that is no YAML does no harm


def guard_jsonargparse() -> None:
    """Let jsonargparse refuse such texts too, and values that name what runs programs.

    Its list of what no value may name (`os.system`, `pickle.loads`, ...) is not enforced by
    itself before its version 5. See `refuse_hidden_bombs` for what it loads by another way.
    """
    set_loader("yaml", _config_loader, (yaml.YAMLError,))
    set_parsing_settings(import_path_denylist=[])


@contextmanager
def nothing_imported() -> Iterator[None]:
    """No package is imported in here for the first time, whatever names it in a file.

    jsonargparse imports what a `class_path` says before it asks whether that is of the right kind.
    """
    guard = _Installed()
    sys.meta_path.insert(0, guard)
    try:
        yield
    finally:
        sys.meta_path.remove(guard)


class _Installed(MetaPathFinder):
    @override
    def find_spec(self, fullname: str, path: Any, target: Any = None) -> None:
        if fullname.partition(".")[0] not in sys.modules:
            raise ImportError(f"{fullname} is of no plug-in, so it is not imported")


def _bounded(load: Callable[[str], Any]) -> Callable[[str], Any]:
    def checked(text: str) -> Any:
        try:
            refuse_bombs(text)
            return load(text)
        except (ValueError, LookupError, TypeError, AttributeError, ArithmeticError) as error:
            # Of a value that its tag, or its form, takes for a number, a date, a truth; and of a
            # question mark alone, over which jsonargparse's own loader stumbles.
            raise yaml.YAMLError(f"a value cannot be read: {error}") from error

    return checked


_config_loader = _bounded(get_loader("yaml"))


def _fault(problem: str, event: Any) -> Bomb:
    return Bomb(problem=problem, problem_mark=event.start_mark)
