"""Counts the arithmetic of training, and gives a run as much of it as another one had."""

from itertools import islice
from typing import Any

import lightning as L
import torch
from typing_extensions import override

from calm_lightning.flops import CountFlops

COUNTED_BATCHES = 8
"""As many as are sorted by length together (`OrderedBatches`): fewer might all be short."""


class CountWork(L.Callback):
    """Counts what the first batches take, before anything is trained.

    They are computed once more for that, with random numbers of their own: the run that follows is
    the same, number by number, as it would be without. What is done before a step, such as drawing
    candidates, is not counted, and the optimizer's arithmetic, which is no matrix product, neither.

    Args:
        flops: How much the whole training may take. The number of steps is set by it. None leaves
            it as it is.

    Attributes:
        of_a_step: Floating-point operations, forward and backward, the mean over the batches.
    """

    def __init__(self, flops: int | float | None = None) -> None:
        self.flops = flops
        self.of_a_step = 0.0

    @override
    def on_train_start(self, trainer: L.Trainer, pl_module: Any) -> None:
        batches = list(islice(trainer.datamodule.train_dataloader(), COUNTED_BATCHES))  # type: ignore[attr-defined]
        device = pl_module.device
        with torch.random.fork_rng([device] if device.type == "cuda" else []), CountFlops() as work:
            for batch in batches:
                inputs = pl_module.transfer_batch_to_device(batch, device, 0).inputs
                with trainer.precision_plugin.train_step_context():
                    loss = pl_module.language_model(**inputs).loss
                if loss.requires_grad:
                    loss.backward()
        pl_module.zero_grad(set_to_none=True)
        accumulated = trainer.accumulate_grad_batches
        self.of_a_step = work.flops / max(1, len(batches)) * accumulated
        if self.flops is not None:
            steps = max(1, round(self.flops / self.of_a_step))
            trainer.fit_loop.epoch_loop.max_steps = steps
            trainer.fit_loop.max_epochs = -1  # arithmetic alone decides
            pl_module.steps = steps  # of the learning rate's fall
