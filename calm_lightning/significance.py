"""Whether two rows of a comparison differ by more than chance.

Rows answer the same questions, so they are compared question by question: a paired bootstrap (Koehn
2004, Efron 1979) that draws questions with replacement, the same ones for both rows, and the seeds
of each row with replacement too, because another seed is as much chance as another question.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from calm_lightning.contracts import CalmError


@dataclass(frozen=True)
class Difference:
    """How much better one row is than another on one evaluation set.

    Attributes:
        mean: Of the scores, the first row's less the second's.
        low: Lower end of the interval that holds the difference with the asked confidence.
        high: Its upper end.
    """

    mean: float
    low: float
    high: float

    @property
    def is_clear(self) -> bool:
        """Whether the interval leaves out zero."""
        return not self.low <= 0.0 <= self.high


def paired_difference(
    first: Sequence[Sequence[float]],
    second: Sequence[Sequence[float]],
    confidence: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
) -> Difference:
    """The difference of two rows that answered the same questions.

    Args:
        first: The score of every question, one list for each seed of the row.
        second: The same of the other row; it may have another number of seeds.
        confidence: Of the interval.
        resamples: Of the bootstrap.
        seed: Of the bootstrap; the same arguments give the same result.

    Raises:
        CalmError: If the rows did not answer equally many questions, or none.
    """
    lengths = {len(scores) for scores in (*first, *second)}
    if not first or not second or len(lengths) != 1 or lengths == {0}:
        raise CalmError(
            "Two rows can be compared question by question only if both answered the same ones; "
            f"here they answered {sorted(lengths)}."
        )
    a, b = np.asarray(first, dtype=float), np.asarray(second, dtype=float)
    generator = np.random.default_rng(seed)
    differences = np.empty(resamples)
    for i in range(resamples):
        questions = generator.integers(a.shape[1], size=a.shape[1])
        ours, theirs = (generator.integers(len(row), size=len(row)) for row in (a, b))
        # Means over seeds first: the same questions are then taken of both rows.
        differences[i] = (_mean(a, ours) - _mean(b, theirs))[questions].mean()
    tail = (1 - confidence) / 2
    low, high = np.quantile(differences, [tail, 1 - tail])
    return Difference(float(a.mean() - b.mean()), float(low), float(high))


def _mean(row: NDArray[Any], drawn: NDArray[Any]) -> Any:
    """The mean over drawn seeds, spread as wide as the seeds' own.

    Drawing n seeds out of n gives (n - 1) / n of the variance that their mean has; for few seeds
    that would be far too sure.
    """
    mean, seeds = row.mean(0), len(row)
    wider = (seeds / (seeds - 1)) ** 0.5 if seeds > 1 else 1.0
    return mean + wider * (row[drawn].mean(0) - mean)
