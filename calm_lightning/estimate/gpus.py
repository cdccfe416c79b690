"""How many GPUs a job needs, and by which of Lightning's strategies."""

import math
from collections.abc import Iterator
from dataclasses import dataclass

from calm_lightning.estimate.figures import Estimate

USABLE = 0.9
"""Share of a GPU that tensors may fill. The rest is for the CUDA context and the libraries'
workspaces, about a gibibyte together, and for gaps that the allocator cannot fill."""

MOST_GPUS = 1024


@dataclass(frozen=True)
class Plan:
    """GPUs that suffice.

    Attributes:
        strategy: `one GPU`, `DDP`, `FSDP2` or, for generation, `device_map: auto`.
        gpus: How many.
        rows: Texts at a time on each; all GPUs together do at least what was asked.
        size: Bytes on each.
    """

    strategy: str
    gpus: int
    rows: int
    size: int


def plan_training(estimate: Estimate, gpu_bytes: float) -> Plan | None:
    """The simplest strategy, and the fewest GPUs, that train on the rows that were asked for.

    A strategy shares the rows out, so that the step stays the same. DDP keeps everything on every
    GPU, and a copy of the gradients in its buckets. FSDP2 (`ModelParallelStrategy`) shares out
    weights, gradients and optimizer state; while it computes, every GPU holds two whole decoder
    layers (the next one is fetched meanwhile), all weights outside the layers, and the gradients
    before they are shared out.

    Args:
        estimate: With a `training`.
        gpu_bytes: Memory of one GPU.

    Returns:
        None if no number of GPUs suffices, because a single row is too large.
    """
    training, rows = estimate.training, estimate.work.rows
    assert training is not None, "nothing is trained, so nothing is to be planned"
    gathered = estimate.outside_layers + 2 * estimate.largest_layer + training.gradients

    def plans() -> Iterator[Plan]:
        def plan(strategy: str, gpus: int, fixed: int | float) -> Plan:
            share = math.ceil(rows / gpus)
            varying = max(training.varying * share / rows, training.step)
            return Plan(strategy, gpus, share, math.ceil(fixed + varying))

        yield plan("one GPU", 1, training.fixed)
        for gpus in range(2, rows + 1):
            yield plan("DDP", gpus, training.fixed + training.gradients)
        for gpus in range(2, MOST_GPUS + 1):
            yield plan("FSDP2", gpus, training.fixed / gpus + gathered)

    return next((plan for plan in plans() if plan.size <= USABLE * gpu_bytes), None)


def plan_generation(estimate: Estimate, gpu_bytes: float) -> Plan | None:
    """One GPU, or as few as hold the layers shared out among them (`device_map: auto`).

    Args:
        estimate: Of the run.
        gpu_bytes: Memory of one GPU.

    Returns:
        None if no number of GPUs suffices.
    """
    generation, rows = estimate.generation, estimate.work.answered
    shared = generation.weights + generation.caches
    for gpus in range(1, MOST_GPUS + 1):
        size = math.ceil(shared / gpus + generation.temporary)
        if size <= USABLE * gpu_bytes:
            return Plan("one GPU" if gpus == 1 else "device_map: auto", gpus, rows, size)
    return None


def most_rows(estimate: Estimate, gpu_bytes: float) -> tuple[int | None, int]:
    """How many rows one GPU trains on, and answers, at a time; 0 if not even one.

    Args:
        estimate: Of the run.
        gpu_bytes: Memory of one GPU.

    Returns:
        For training, None if nothing is trained; and for generation.
    """
    usable = USABLE * gpu_bytes
    training, generation = estimate.training, estimate.generation
    answered = (usable - generation.weights) / (generation.caches + generation.temporary)
    trained = None
    if training is not None:
        fits = training.fixed + training.step <= usable
        trained = int((usable - training.fixed) / training.varying * estimate.work.rows) * fits
        trained = max(0, trained)
    return trained, max(0, int(answered * estimate.work.answered))
