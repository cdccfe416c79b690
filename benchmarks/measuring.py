"""Doing the same work in turn, and what it took."""

import gc
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from itertools import accumulate
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

Work = Callable[[], object]


def in_turn(
    work: Mapping[str, Work], rounds: int, warm_up: int, clock: Callable[[], float]
) -> dict[str, list[float]]:
    """Let every side work in every round, and note the seconds of each.

    A turn is two pieces of work, of which the second counts: the first brings caches and the heap
    to where a side has them that works alone. Every second round goes the other way round, so that
    nobody always follows the same one.

    Args:
        work: By the names of sides.
        rounds: That count.
        warm_up: Rounds that do not.
        clock: In seconds; see `clock_of`.
    """
    seconds: dict[str, list[float]] = {name: [] for name in work}
    for number in range(-warm_up, rounds):
        for name in list(work)[:: -1 if number % 2 else 1]:
            gc.collect()  # nobody pays for what another left behind
            work[name]()
            began = clock()
            work[name]()
            if number >= 0:
                seconds[name].append(clock() - began)
    return seconds


def clock_of(threads: int, elsewhere: bool = False) -> tuple[str, Callable[[], float]]:
    """Processor time where one thread works, for other programs do not count in it.

    Args:
        threads: Of this process.
        elsewhere: Whether other processes do the work.
    """
    if threads == 1 and not elsewhere:
        return "processor time", time.process_time
    return "wall clock", time.perf_counter


def quartiles(values: Sequence[float]) -> tuple[float, float, float]:
    """Lower quartile, median and upper quartile."""
    if len(values) < 2:
        return (values[0],) * 3
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return low, middle, high


def ratios(values: Sequence[float], reference: Sequence[float]) -> list[float]:
    """Round by round, so that what slows a whole round down does not count."""
    return [a / b for a, b in zip(values, reference, strict=True)]


def peak_bytes(work: Work) -> int:
    """The most memory that was allocated at a time while working, beyond what was there before.

    What the tensors take, as the allocator was asked for it: neither the scratch memory of the
    kernels nor what the system rounds up.
    """
    gc.collect()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        work()
    results: Any = profiler.profiler
    events = results.kineto_results.events()
    changes = [event.nbytes() for event in events if event.name() == "[memory]"]
    return max(accumulate(changes, initial=0))


class Stamps:
    """The time at every forward pass of a module.

    Args:
        module: It.
        clock: See `clock_of`.

    Attributes:
        times: One for each pass, when it begins.
    """

    def __init__(self, module: torch.nn.Module, clock: Callable[[], float]) -> None:
        self.times: list[float] = []
        self._hook = module.register_forward_pre_hook(lambda *_: self.times.append(clock()))

    def between(self) -> list[float]:
        """Seconds from each pass to the next one; the hook is taken out."""
        self._hook.remove()
        return [after - before for before, after in zip(self.times, self.times[1:], strict=False)]
