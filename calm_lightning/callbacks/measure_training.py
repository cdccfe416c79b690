"""Learning rate, loss per character, speed and memory of a fit, beside what the module logs."""

import time
from typing import Any

import lightning as L
import torch
from typing_extensions import override

from calm_lightning.collate import IGNORED, Batch
from calm_lightning.machine import peak_memory


class MeasureTraining(L.Callback):
    """Logs them at the steps that are logged, to whatever logger there is.

    `train/learning_rate`, `train/loss_nats_per_character` (of the last batch), `speed/...` since
    the last time, validation not counted, over all processes; `memory/peak_mib` of this one.
    """

    def __init__(self) -> None:
        self._restart()

    def _restart(self) -> None:
        self._started = time.perf_counter()
        self._examples = self._characters = 0
        self._interrupted = False

    @override
    def on_validation_start(self, trainer: L.Trainer, pl_module: Any) -> None:
        self._interrupted = True  # and by what other callbacks do at its end

    @override
    def on_train_start(self, trainer: L.Trainer, pl_module: Any) -> None:
        self._interrupted = True

    @override
    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: Any, batch: Any, batch_idx: int
    ) -> None:
        if self._interrupted:
            self._restart()

    @override
    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: Any, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        self._examples += len(batch)
        self._characters += sum(len(e.prompt) + len(e.target) for e in batch.examples)
        every = int(trainer.log_every_n_steps)  # type: ignore[attr-defined]
        if not every or trainer.global_step % every:
            return
        told: dict[str, Any] = {"memory/peak_mib": float(peak_memory())}
        if trainer.optimizers:
            told["train/learning_rate"] = trainer.optimizers[0].param_groups[0]["lr"]
        seconds = time.perf_counter() - self._started
        if seconds > 0:
            told["speed/examples_per_second"] = trainer.world_size * self._examples / seconds
            told["speed/characters_per_second"] = trainer.world_size * self._characters / seconds
        per_character = _per_character(outputs, batch)
        if per_character is not None:
            told["train/loss_nats_per_character"] = per_character
        pl_module.log_dict(told, batch_size=len(batch))
        self._restart()


def _per_character(outputs: Any, batch: Batch) -> torch.Tensor | None:
    """The batch's loss for each character of its targets: it compares across tokenizers."""
    characters = sum(len(e.target) for e in batch.examples)
    labels = batch.inputs.get("labels")
    if labels is None or not characters or not isinstance(outputs, dict):
        return None
    tokens = (labels[:, 1:] != IGNORED).sum()
    mean: torch.Tensor = outputs["nats"]
    return mean * tokens / characters
