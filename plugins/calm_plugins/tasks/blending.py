"""Several sources of examples as one: how much of each, and in which order.

Every source is gone through without repetition and then again in another order, and the sources
take turns at random in the wanted proportions. Which example stands at an index is a pure function
of (seed, index), so any number of processes and any restart see the same ones.
"""

import math
import random
from collections.abc import Sequence
from functools import lru_cache

import torch
from typing_extensions import override

from calm_lightning.contracts import CalmError, Example
from calm_plugins.tasks.by_index import ByIndex


def shares(
    sizes: Sequence[int], weights: Sequence[float] | None = None, temperature: float = 1.0
) -> list[float]:
    """The share of each source, adding up to 1.

    Args:
        sizes: Examples in each source.
        weights: What the shares are proportional to; None: the sizes, smoothed by the temperature.
        temperature: 1 gives every example the same chance, and more evens out large and small
            sources: a source of n examples weighs n^(1/temperature).

    Raises:
        CalmError: If a weight is negative or none is positive, or the temperature is below 1.
    """
    if not 1 <= temperature < math.inf:
        raise CalmError(f"temperature must be at least 1: got {temperature:g}.")
    weighed = [n ** (1 / temperature) for n in sizes] if weights is None else list(weights)
    if min(weighed, default=0) < 0 or not 0 < sum(weighed) < math.inf:  # nan is neither
        raise CalmError(f"Weights are not negative, and one at least is above 0: got {weighed}.")
    return [weight / sum(weighed) for weight in weighed]


class Blend(ByIndex):
    """Examples of several sources in fixed proportions.

    Args:
        sources: Where examples come from; none is empty.
        proportions: The share of each; they add up to 1.
        length: Number of examples until the same ones come again.
        seed: Seed of the order.
        in_order: Sources that are taken in their own order, because they are made from an index.
    """

    def __init__(
        self,
        sources: Sequence[Sequence[Example]],
        proportions: Sequence[float],
        length: int,
        seed: int = 0,
        in_order: Sequence[bool] | None = None,
    ) -> None:
        assert all(len(source) for source in sources), "an empty source has nothing to give"
        self.sources = list(sources)
        self.seed = seed
        self.in_order = list(in_order) if in_order is not None else [False] * len(self.sources)
        self.source_at, self.turn_at = _turns(proportions, length, seed)

    @override
    def __len__(self) -> int:
        return len(self.source_at)

    @override
    def at(self, index: int) -> Example:
        number, turn = int(self.source_at[index]), int(self.turn_at[index])
        source = self.sources[number]
        times, place = divmod(turn, len(source))
        if not self.in_order[number]:
            place = int(_order(len(source), f"{self.seed}/{number}/{times}")[place])
        return source[place]


def _turns(
    proportions: Sequence[float], length: int, seed: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """For each place: which source has its turn, and how many turns it had before."""
    generator = torch.Generator().manual_seed(seed)
    numbers, turns, due = [], [], []
    for number, share in enumerate(proportions):
        if share > 0:
            # Turn t falls somewhere in the t-th of equal stretches: at random, yet never far off.
            count = int(share * length) + 2
            at = torch.arange(count, dtype=torch.int32)
            jitter = torch.rand(count, generator=generator, dtype=torch.float64)
            numbers.append(torch.full((count,), number, dtype=torch.int32))
            turns.append(at)
            due.append((at + jitter) / share)
    order = torch.cat(due).argsort()[:length]
    return torch.cat(numbers)[order], torch.cat(turns)[order]


@lru_cache(maxsize=512)
def _order(length: int, seed: str) -> torch.Tensor:
    generator = torch.Generator().manual_seed(random.Random(seed).getrandbits(62))
    return torch.randperm(length, generator=generator, dtype=torch.int32)
