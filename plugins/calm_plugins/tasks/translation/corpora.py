"""Where sentence pairs come from: the contract of a corpus, and how directions are written."""

import re
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from calm_lightning.contracts import CalmError
from calm_plugins.tasks.translation.languages import CODE, nearest, same_language

Pair = tuple[str, str]
"""A sentence and its translation."""

_DIRECTION = re.compile(rf"({CODE}|\*)-({CODE}|\*)")
_SHOWN = 12  # codes in a message


@dataclass(frozen=True)
class Direction:
    """From one language into another, in the codes of a corpus.

    Attributes:
        source: Language that is translated from.
        target: Language that is translated into.
        label: As the user wrote it, for names of evaluation sets.
    """

    source: str
    target: str
    label: str


class Corpus(ABC):
    """Sentence pairs in some directions."""

    @abstractmethod
    def directions(self) -> Sequence[tuple[str, str]]:
        """Every source and target language that it has pairs for, by its own codes.

        Raises:
            CalmError: If it has none, or does not know them all.
        """

    @abstractmethod
    def pairs(self, source: str, target: str) -> Sequence[Pair]:
        """All pairs of a direction, in the order of the corpus.

        Raises:
            CalmError: If they cannot be read; the message names file and line.
        """

    def find(self, asked: str) -> list[Direction]:
        """The directions that are meant by `deu-eng`, or by `*-eng` with any language for the star.

        A code of another scheme does where it fits one language only: `deu` for `deu_Latn`.

        Raises:
            CalmError: If there is none, with the nearest codes.
        """
        sides = split_direction(asked)
        known = self.directions()
        fits = [self._fitting(side, [pair[i] for pair in known]) for i, side in enumerate(sides)]
        found = [(a, b) for a, b in known if a in fits[0] and b in fits[1]]
        for side, codes in zip(sides, fits, strict=True):
            if not codes:
                raise CalmError(self._unknown(side, [code for pair in known for code in pair]))
            if side != "*" and len(codes) > 1:
                raise CalmError(
                    f"{self}: {side!r} could be {' or '.join(codes)}. Write which one is meant."
                )
        if not found:
            also = [f"{a}-{b}" for a, b in known if a in fits[0] or b in fits[1]]
            raise CalmError(f"{self} has no pairs {asked}. It has {listed(also)}.")
        star = "*" in sides
        return [Direction(a, b, f"{a}-{b}" if star else asked) for a, b in found]

    def _fitting(self, side: str, codes: Sequence[str]) -> list[str]:
        codes = list(dict.fromkeys(codes))
        if side == "*":
            return codes
        return [side] if side in codes else same_language(side, codes)

    def _unknown(self, code: str, codes: Iterable[str]) -> str:
        codes = sorted(set(codes))
        near = nearest(code, codes)
        hint = f" Nearest: {', '.join(near)}." if near else ""
        return f"{self} has no language {code!r}.{hint} It has {len(codes)}: {listed(codes)}."


def split_direction(asked: str) -> tuple[str, str]:
    """`deu-eng` in its two codes; a star stands for any.

    Raises:
        CalmError: If it is no direction.
    """
    found = _DIRECTION.fullmatch(asked)
    if found is None:
        raise CalmError(
            f"{asked!r} is no direction; write two codes such as deu-eng, lij_Latn-eng_Latn, "
            "zh-CN-eng, or *-eng for every language into English."
        )
    return found[1], found[2]


def with_codes(text: str, source: str, target: str) -> str:
    """A text in which codes stand where it says `{source}` and `{target}`."""
    return text.replace("{source}", source).replace("{target}", target)


def listed(names: Sequence[str]) -> str:
    """Names for a message; of many only the first."""
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return (", ".join(names[:_SHOWN]) or "none") + more
