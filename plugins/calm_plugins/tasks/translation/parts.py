"""What a user says about one corpus: what is learnt from it, and what is asked."""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Literal, get_args

from calm_lightning.contracts import CalmError
from calm_plugins.tasks.translation.corpora import listed, split_direction

Kind = Literal["translation", "source_text", "target_text"]


@dataclass(frozen=True)
class TrainingPart:
    """What is learnt from one corpus.

    Attributes:
        corpus: Its name under `corpora`.
        directions: Such as `deu-eng`, or `*-eng` for all languages into English.
        kind: `translation` learns the target after the source; `source_text` and `target_text`
            learn one side alone as plain text, each sentence once.
        weight: What this part's share in training is proportional to; its directions share it by
            their sizes and `temperature`. None for all parts: sizes and temperature decide alone.
        limit: At most so many pairs of each direction, drawn at random.
        share: This share of the pairs of each direction, drawn at random: D_C is 0.05 or so. What
            is held out or too long counts among the pairs and is then left out.
        max_characters: Leave out pairs with a longer side.
    """

    corpus: str
    directions: tuple[str, ...]
    kind: Kind = "translation"
    weight: float | None = None
    limit: int | None = None
    share: float = 1.0
    max_characters: int | None = None

    def check(self, where: str, corpora: Iterable[str]) -> None:
        """Refuse what makes no sense.

        Args:
            where: Its place among the options, for the message.
            corpora: Names of the corpora.

        Raises:
            CalmError: With the option at fault.
        """
        _check(where, [self.corpus], self.directions, list(corpora))
        _at_least_one(where, limit=self.limit, max_characters=self.max_characters)
        if self.kind not in get_args(Kind):
            raise CalmError(f"{where}: kind is {self.kind!r}, not {' or '.join(get_args(Kind))}.")
        if not 0 < self.share <= 1:
            raise CalmError(f"{where}: share is above 0 and at most 1: got {self.share}.")
        if self.weight is not None and not 0 < self.weight < math.inf:
            raise CalmError(f"{where}: weight must be above 0: got {self.weight}.")


@dataclass(frozen=True)
class EvaluationPart:
    """What is asked from one corpus.

    Attributes:
        corpus: Its name under `corpora`.
        directions: Such as `lij-eng`, or `*-eng` for all languages into English.
        name: Of its evaluation sets, `<name>.<direction>`. None: the corpus' name.
        together: One set for all directions, with the mean of their scores, instead of one each.
        limit: At most so many pairs of each direction, drawn at random. None: all.
        shots: Exemplars before each question.
        exemplars: Name of the corpus that they are drawn from, once for each direction. None: the
            same corpus, where `limit` leaves pairs that are not asked.
        max_characters: Leave out pairs with a longer side.
    """

    corpus: str
    directions: tuple[str, ...]
    name: str | None = None
    together: bool = False
    limit: int | None = None
    shots: int = 0
    exemplars: str | None = None
    max_characters: int | None = None

    def check(self, where: str, corpora: Iterable[str]) -> None:
        """The same for evaluation."""
        names = [self.corpus] if self.exemplars is None else [self.corpus, self.exemplars]
        _check(where, names, self.directions, list(corpora))
        _at_least_one(where, limit=self.limit, max_characters=self.max_characters)
        if self.shots < 0:
            raise CalmError(f"{where}: shots must not be negative: got {self.shots}.")


def _check(where: str, corpora: Iterable[str], directions: Iterable[str], known: list[str]) -> None:
    for name in corpora:
        if name not in known:
            near = get_close_matches(name, known, 1, 0.6)
            hint = f" Did you mean {near[0]}?" if near else ""
            raise CalmError(
                f"{where}: there is no corpus {name!r}.{hint} corpora has {listed(known)}."
            )
    directions = list(directions)
    if not directions:
        raise CalmError(f"{where}: no directions; name some, such as deu-eng or *-eng.")
    for direction in directions:
        split_direction(direction)


def _at_least_one(where: str, **settings: int | None) -> None:
    for name, value in settings.items():
        if value is not None and value < 1:
            raise CalmError(f"{where}: {name} must be at least 1: got {value}.")
