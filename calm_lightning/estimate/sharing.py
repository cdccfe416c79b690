"""What each of several processes holds, and what they exchange in a training step.

DDP keeps everything in every process and adds up the gradients (an all-reduce). FSDP2 keeps a part
of everything in each, puts a unit together when it runs (an all-gather), and adds up and shares out
the gradients (a reduce-scatter). Bytes are those that one process receives in the usual ring; it
sends as many.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from math import ceil
from typing import Literal

from calm_lightning.estimate.figures import Training
from calm_lightning.estimate.units import Units

Strategy = Literal["ddp", "fsdp2"]

_AT_HAND = 3
"""Units that a process holds whole at a time under FSDP2: the one that runs, the next one, and the
buffer in which that one arrives."""


@dataclass(frozen=True)
class Share:
    """What one of several processes takes.

    Attributes:
        strategy: How they share.
        processes: How many.
        memory: Bytes, part by part.
        received: Bytes in a step, by the kind of exchange.
    """

    strategy: Strategy
    processes: int
    memory: Mapping[str, int]
    received: Mapping[str, int]


def share(training: Training, strategy: Strategy, processes: int, units: Units | None) -> Share:
    """What one of several processes takes in a training step.

    Args:
        training: A step of one process with its own rows, all of it in that process.
        strategy: How they share.
        processes: How many.
        units: Of the model; needed for FSDP2.
    """
    if strategy == "ddp" or units is None:
        memory = {
            "weights": training.weights,
            "gradients": training.gradients,
            "copy of the gradients": training.gradients,  # DDP's buckets
            "optimizer": training.optimizer,
        }
        all_reduce = 2 * training.gradients * (processes - 1) // processes
        received = {"all-reduce of gradients": all_reduce}
    else:
        largest = max(unit.size() for unit in units.units)
        trained = max(unit.size(trained_only=True) for unit in units.units)
        sizes = [unit.size(processes) for unit in units.units]
        buffers = max(0, training.weights - sum(unit.size() for unit in units.units))
        memory = {
            "weights, shared out": sum(sizes) // processes + buffers,
            "gradients, shared out": ceil(training.gradients / processes),
            "optimizer, shared out": ceil(training.optimizer / processes),
            "units at hand": _AT_HAND * largest,
            "gradients on the way": 2 * trained,
        }
        gathered = sum(sizes[number] for number in units.gathered())
        reduced = sum(unit.size(processes, trained_only=True) for unit in units.units)
        received = {
            "all-gather of weights": gathered * (processes - 1) // processes,
            "reduce-scatter of gradients": reduced * (processes - 1) // processes,
        }
    memory |= {
        "activations": training.activations,
        "logits": training.logits,
        "temporary": max(
            training.temporary, training.step - training.activations - training.logits
        ),
    }
    return Share(strategy, processes, memory, received)
