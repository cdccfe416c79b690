"""One of several processes: runs commands of `calm`, one after another, all in the same processes.

    torchrun --nproc-per-node 2 commands.py COMMANDS.json TRAFFIC.json

The second file gets the bytes that this process received for weights and for gradients in each
training step of each command, by FSDP2.
"""

import json
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import torch.distributed as dist
from torch import Tensor

from calm_lightning.cli import main
from calm_lightning.module import CalmModule

received: Counter[str] = Counter()
steps: list[dict[str, int]] = []


def count(name: str) -> None:
    """Let a collective add what it exchanges to `received`."""
    plain = getattr(dist, name)

    def counted(*args: Any, **kwargs: Any) -> Any:
        given = (each for each in (*args, *kwargs.values()) if isinstance(each, Tensor))
        others, all_of_them = dist.get_world_size() - 1, dist.get_world_size()
        received[name] += max(each.nbytes for each in given) * others // all_of_them
        return plain(*args, **kwargs)

    setattr(dist, name, counted)


def on_train_batch_start(self: CalmModule, *args: Any) -> None:
    """Begin to count."""
    received.clear()
    plain_start(self, *args)


def on_before_optimizer_step(self: CalmModule, *args: Any) -> None:
    """Note what a step took."""
    steps.append(dict(received))
    plain_step(self, *args)


plain_start, plain_step = CalmModule.on_train_batch_start, CalmModule.on_before_optimizer_step
CalmModule.on_train_batch_start = on_train_batch_start  # type: ignore[method-assign]
CalmModule.on_before_optimizer_step = on_before_optimizer_step  # type: ignore[method-assign]
for collective in ("all_gather_single", "reduce_scatter_single"):
    count(collective)

commands, traffic = (Path(argument) for argument in sys.argv[1:])
exchanged = []
for command in json.loads(commands.read_text()):
    print("$ calm", *command, flush=True)
    steps.clear()
    main(command)
    exchanged.append(list(steps))
if dist.get_rank() == 0:
    traffic.write_text(json.dumps(exchanged))
dist.destroy_process_group()
