"""What a tree of texts is: how it is to grow, and the nodes that it is made of."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from calm_lightning.contracts import CalmError

Style = Literal["chat", "text"]
Why = Literal["empty", "duplicate", "surplus"]
ROOT = "0"
"""Name of the root; its children are `0.0`, `0.1`, ..., and theirs `0.1.0`, ..."""


@dataclass
class Tree:
    """How a tree grows.

    Attributes:
        branching: Texts drawn at each node of level 1, 2, ...: as many levels as numbers. Of a chat
            model the levels are question, answer, question, ...: `[1000, 1]` is a Wide-Tree,
            `[32, 16, 8, 8]` the paper's Balance-Tree.
        max_new_tokens: Longest text of each level, in tokens; one number holds for all levels.
        style: `chat` draws conversations by the model's chat template, `text` continues a text.
        start: The text that is continued; if empty, whatever the model starts texts with.
        start_pattern: A regular expression; a random text that matches it follows `start`, another
            one for each text of level 1. For models that were taught answers and no questions.
        system: The system message of every conversation.
        temperature: Of the draw.
        top_p: Draw among the likeliest tokens that have this probability together.
        top_k: Draw among so many likeliest tokens; 0 is no limit.
        seed: Of the draws.

    Raises:
        CalmError: If a setting makes no sense.
    """

    branching: tuple[int, ...]
    max_new_tokens: tuple[int, ...] | int = 128
    style: Style = "chat"
    start: str = ""
    start_pattern: str | None = None
    system: str | None = None
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    seed: int = 0

    def __post_init__(self) -> None:
        self.branching = tuple(self.branching)
        if not self.branching or min(self.branching) < 1:
            raise CalmError(
                f"branching={list(self.branching)}: it has a number of texts, at least 1, for each "
                "level, as in [1000, 1]."
            )
        limits = [self.max_new_tokens] if isinstance(self.max_new_tokens, int) else []
        self.max_new_tokens = tuple(limits * self.depth or self.max_new_tokens)  # type: ignore[arg-type]
        if len(self.max_new_tokens) != self.depth or min(self.max_new_tokens) < 1:
            raise CalmError(
                f"max_new_tokens={list(self.max_new_tokens)} must be one number, or one for each "
                f"of the {self.depth} levels of branching={list(self.branching)}; at least 1."
            )
        if self.style not in get_args(Style):
            raise CalmError(f"style is {self.style!r}, not {' or '.join(get_args(Style))}.")
        if self.style == "chat" and self.depth % 2:
            raise CalmError(
                f"branching={list(self.branching)}: levels are question and answer in turn, so a "
                "conversation has an even number of them. Base models continue a text: style: text."
            )
        other = {"chat": ("start", "start_pattern"), "text": ("system",)}[self.style]
        for name in other:
            if getattr(self, name):
                raise CalmError(f"{name} has no meaning with style: {self.style}. Leave it out.")
        self.temperature = float(self.temperature)  # transformers insists
        if not self.temperature > 0:
            raise CalmError(f"temperature={self.temperature} must be above 0.")
        if not 0 < self.top_p <= 1:
            raise CalmError(f"top_p={self.top_p} is a probability above 0.")
        if self.top_k < 0:
            raise CalmError(f"top_k={self.top_k} must not be negative.")

    @property
    def depth(self) -> int:
        """Number of levels below the root."""
        return len(self.branching)

    def limit(self, level: int) -> int:
        """Longest text of a level, counted from 1, in tokens."""
        assert isinstance(self.max_new_tokens, tuple)
        return self.max_new_tokens[level - 1]

    def seed_of(self, node: str) -> int:
        """The seed of a node's text: it follows from its name, not from what was drawn before."""
        digest = hashlib.sha256(f"{self.seed}\n{node}".encode()).digest()
        return int.from_bytes(digest[:6], "big")


@dataclass(frozen=True)
class Node:
    """One text.

    Attributes:
        id: Its parent's, and its number among the siblings: `0.17.3`.
        text: What the model wrote.
        start: What it was given to go on from, if that was drawn for it (level 1, `start_pattern`).
        seed: Of its draw.
        tokens: How many were drawn, the end included.
        ended: Whether the model ended the text; otherwise it was cut at the limit.
    """

    id: str
    text: str
    start: str = ""
    seed: int = 0
    tokens: int = 0
    ended: bool = True

    @property
    def parent(self) -> str:
        """The parent's name."""
        return self.id.rpartition(".")[0]

    @property
    def level(self) -> int:
        """1 below the root."""
        return self.id.count(".")

    @property
    def whole(self) -> str:
        """What it was given to go on from, and the text."""
        return self.start + self.text


@dataclass(frozen=True)
class Dropped:
    """A node that does not count.

    Attributes:
        why: `empty`, `duplicate` of a sibling, or `surplus`: not among those that are kept.
        like: Name of the sibling whose duplicate it is.
        similarity: To that sibling; 1 for the same text.
    """

    why: Why
    like: str | None = None
    similarity: float | None = None


@dataclass
class Corpus:
    """A tree as far as it has grown.

    Attributes:
        about: All that decides what is drawn.
        nodes: Every text, by name.
        dropped: Those that do not count.
        judged: Nodes whose children have all been drawn and compared.
        statistics: Of the finished tree; None while it grows.
    """

    about: Mapping[str, Any]
    nodes: dict[str, Node] = field(default_factory=dict)
    dropped: dict[str, Dropped] = field(default_factory=dict)
    judged: set[str] = field(default_factory=set)
    statistics: Mapping[str, Any] | None = None

    def kept(self) -> list[Node]:
        """The texts that count, level by level, each in the order of its name's numbers."""
        kept = (node for name, node in self.nodes.items() if name not in self.dropped)
        return sorted(kept, key=lambda node: (node.level, _numbers(node.id)))

    def path(self, node: Node) -> list[Node]:
        """The nodes from level 1 down to this one."""
        path = [node]
        while path[0].parent != ROOT:
            path.insert(0, self.nodes[path[0].parent])
        return path


def branch_of(node: Node) -> str:
    """Name of the node of level 1 from which a node has grown."""
    return ".".join(node.id.split(".")[:2])


def children_of(parent: str, count: int) -> Sequence[str]:
    """Names of a node's children."""
    return [f"{parent}.{number}" for number in range(count)]


def _numbers(name: str) -> tuple[int, ...]:
    return tuple(map(int, name.split(".")))
