"""A tree on disk: one JSON line for each text, written as soon as it is drawn.

The first line is the root, with all that decides what is drawn. A line with `judged` says which
children of a node do not count, and the last line, `statistics`, that the tree has grown up. A run
that is stopped in the middle of a line leaves a line without an end, which is taken away again.
"""

import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from lightning.pytorch.utilities import rank_zero_info

from calm_lightning.contracts import CalmError
from calm_lightning.plain_data import parse_json
from calm_plugins.tasks.self_decompression.tree import ROOT, Corpus, Dropped, Node

_NAMES = ("path",)
"""What is told about a model and does not decide anything."""

_ID = re.compile(rf"{ROOT}(\.\d{{1,9}})+")
_KINDS = {"id": str, "text": str, "start": str, "seed": int, "tokens": int, "ended": bool}
_FIGURES = (
    "drawn", "kept", "empty", "duplicate", "surplus", "tokens", "distinct_1", "distinct_2",
    "self_similarity",
)  # fmt: skip
"""What is said of a tree when it is there."""


class Store:
    """The file of one tree.

    Args:
        file: Where it is; made if it is not there.
        about: All that decides what is drawn.

    Raises:
        CalmError: If the file is something else, or was drawn in another way or from another
            model, or is damaged; it is left as it is.
    """

    def __init__(self, file: Path, about: Mapping[str, Any]) -> None:
        self.file = file
        about = json.loads(json.dumps(about))
        root = _line({"id": ROOT, "parent": None, "level": 0, "about": about})
        content = _content(file)
        if b"\n" not in content:
            if not root.startswith(content):
                raise CalmError(_no_tree(file))
            self.corpus = Corpus(about)
            self._write(root, "wb")
            return
        self.corpus = parse(file, content)
        _refuse_other(file, self.corpus.about, about)
        self.corpus.about = about
        whole = content.rindex(b"\n") + 1
        if whole < len(content):
            rank_zero_info(
                f"{file}: the last line has no end, as a run that was stopped leaves it. It is "
                "taken away and drawn again."
            )
            os.truncate(file, whole)

    def add(self, nodes: Sequence[Node]) -> None:
        """Keep further texts; they are on disk when this returns.

        Raises:
            CalmError: If they cannot be written.
        """
        self._write(b"".join(_line(_said(node)) for node in nodes))
        self.corpus.nodes |= {node.id: node for node in nodes}

    def judge(self, dropped: Mapping[str, Mapping[str, Dropped]]) -> None:
        """Keep which children do not count, for each of some nodes.

        Raises:
            CalmError: As `add`.
        """
        lines = (
            {"judged": parent, "dropped": {name: asdict(one) for name, one in each.items()}}
            for parent, each in dropped.items()
        )
        self._write(b"".join(map(_line, lines)))
        for parent, each in dropped.items():
            self.corpus.judged.add(parent)
            self.corpus.dropped |= each

    def finish(self, statistics: Mapping[str, Any]) -> None:
        """Say that nothing is left to be drawn.

        Raises:
            CalmError: As `add`.
        """
        self._write(_line({"statistics": statistics}))
        self.corpus.statistics = statistics

    def _write(self, content: bytes, mode: str = "ab") -> None:
        try:
            self.file.parent.mkdir(parents=True, exist_ok=True)
            with self.file.open(mode) as stream:
                stream.write(content)
                stream.flush()
                os.fsync(stream.fileno())
        except OSError as error:
            raise CalmError(
                f"{self.file} cannot be written: {error}. What was drawn before is kept there; "
                "start the run again, and it goes on."
            ) from error


def read(file: Path) -> Corpus:
    """A tree that has grown up.

    Raises:
        CalmError: If it is not there, damaged, or not finished.
    """
    content = _content(file)
    if not content:
        raise CalmError(f"{file} is not there: the first process should have drawn it.")
    corpus = parse(file, content)
    if corpus.statistics is None:
        raise CalmError(f"{file} is not finished. Start the run again, and it goes on.")
    for node in corpus.nodes.values():
        if node.parent not in corpus.nodes and node.parent != ROOT:
            raise CalmError(
                f"{file}: the text {node.id} belongs under {node.parent}, which is not there. "
                "Delete its line."
            )
    return corpus


def parse(file: Path, content: bytes) -> Corpus:
    """A tree from the whole lines of its file.

    Raises:
        CalmError: If a line makes no sense; it is named.
    """
    lines = _objects(file, content)
    _, first = next(lines, ("", {}))
    if first.get("id") != ROOT or not isinstance(first.get("about"), dict):
        raise CalmError(_no_tree(file))
    corpus = Corpus(first["about"])
    for where, said in lines:
        try:
            if "judged" in said:
                corpus.judged.add(said["judged"])
                corpus.dropped |= {name: Dropped(**one) for name, one in said["dropped"].items()}
            elif "statistics" in said:
                corpus.statistics = _statistics(said["statistics"])
            else:
                node = _node(said)
                corpus.nodes[node.id] = node
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise CalmError(_damaged(where, repr(error))) from None
    return corpus


def _node(said: Mapping[str, Any]) -> Node:
    for name, kind in _KINDS.items():
        if type(said[name]) is not kind:
            raise TypeError(f"{name} is {str(said[name])[:40]!r}")
    if not _ID.fullmatch(said["id"]):
        raise ValueError(f"id is {said['id'][:40]!r}")
    (said["text"] + said["start"]).encode()  # half of a pair of escapes cannot be
    return Node(**{name: said[name] for name in _KINDS})


def _statistics(said: Mapping[str, Any]) -> Mapping[str, Any]:
    for name in _FIGURES:
        if not isinstance(said[name], int | float):
            raise TypeError(f"{name} is {str(said[name])[:40]!r}")
    return said


def _said(node: Node) -> dict[str, Any]:
    return {"id": node.id, "parent": node.parent, "level": node.level} | asdict(node)


def _line(said: Mapping[str, Any]) -> bytes:
    return (json.dumps(said, ensure_ascii=False) + "\n").encode()


def _content(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except FileNotFoundError:
        return b""
    except OSError as error:
        raise CalmError(
            f"cache={file} cannot be read: {error.strerror}. Name a file for the texts."
        ) from None


def _objects(file: Path, content: bytes) -> Iterator[tuple[str, dict[str, Any]]]:
    for number, line in enumerate(content.split(b"\n")[:-1], start=1):  # the rest has no end
        where = f"{file}, line {number}"
        try:
            said = parse_json(line)
            said.keys()
        except (ValueError, AttributeError) as error:
            if number == 1:
                raise CalmError(_no_tree(file)) from None
            raise CalmError(_damaged(where, str(error))) from None
        yield where, said


def _refuse_other(file: Path, found: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    ours, theirs = _flat(wanted), _flat(found)
    differing = [name for name in {**theirs, **ours} if theirs.get(name) != ours.get(name)]
    if differing:
        told = "; ".join(f"{n}={theirs.get(n)!r}, not {ours.get(n)!r}" for n in differing)
        raise CalmError(
            f"{file} was drawn in another way: {told}. Give the settings and the model that it was "
            "drawn with, or name another file as cache; nothing was changed."
        )


def _flat(about: Mapping[str, Any]) -> dict[str, Any]:
    """`{"tree": {"seed": 0}}` as `{"tree.seed": 0}`, without names that decide nothing."""
    flat: dict[str, Any] = {}
    for group, settings in about.items():
        if isinstance(settings, Mapping):
            flat |= {f"{group}.{k}": v for k, v in settings.items() if k not in _NAMES}
        else:
            flat[group] = settings
    return flat


def _no_tree(file: Path) -> str:
    return (
        f"cache={file} is a file of something else: its first line is not the root of a tree. Name "
        "another file; nothing was changed."
    )


def _damaged(where: str, error: str) -> str:
    return (
        f"{where} is damaged ({error}). Delete that line; what it held is drawn again, and the "
        "others are kept."
    )
