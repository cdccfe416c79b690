"""Writes the checkpoints that a run goes on from, and ends a run that is told to stop."""

import signal
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.strategies import ModelParallelStrategy
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_info
from typing_extensions import override

from calm_lightning.checkpoint_io import LAST

TERMINATED = 128 + signal.SIGTERM
"""Exit status of a process that SIGTERM ended, as shells give it."""


class SaveCheckpoints(Checkpoint):
    """Keeps last.ckpt up to date: after validations, epochs, and so many steps or minutes.

    Where a checkpoint says that the run is, is always right behind a step of the optimizer, whoever
    writes it and whenever: gradients that were collected since then are not in it, and their
    batches are taken again.

    SIGTERM ends the fit after the running step with a checkpoint and exit status 143. Lightning's
    own handler is replaced while a fit runs: it ends with status 0, can stop between the batches
    of one step, and exchanges a message in the handler itself, where processes are not in step.

    Args:
        folder: The run's checkpoints/.
        settings: What decides the weights at the end of the run (`resuming.settings_of`); it is
            written into every checkpoint.
        steps: Optimizer steps between two checkpoints; None: only by time.
        minutes: Longest time between two checkpoints.
    """

    def __init__(
        self,
        folder: str,
        settings: Mapping[str, Any],
        steps: int | None = None,
        minutes: float = 10.0,
    ) -> None:
        self.file = Path(folder) / LAST
        self.settings = dict(settings)
        self.steps, self.minutes = steps, minutes
        self.last_model_path = ""
        self._saved_step = self._step = 0
        self._saved_others = ""
        self._saved_at = 0.0
        self._told_to_stop = False
        # Where the run was after its last optimizer step: Lightning's loops, and batches consumed.
        self._loops: dict[str, Any] = {}
        self._consumed = 0

    # ------------------------------------------------------------------ when

    @override
    def on_train_start(self, trainer: L.Trainer, pl_module: Any) -> None:
        self._saved_step = self._step = trainer.global_step
        self._saved_others = _states_of_callbacks(trainer)
        self._saved_at = time.monotonic()
        self._consumed = trainer.datamodule.consumed_batches  # type: ignore[attr-defined]
        self._told_to_stop = False
        if threading.current_thread() is threading.main_thread():  # others may not
            signal.signal(signal.SIGTERM, self._stop)  # Lightning puts the old one back afterwards

    @override
    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if trainer.global_step == self._step:
            return  # gradients are still being collected
        self._step = trainer.global_step
        self._loops = trainer.fit_loop.state_dict()
        self._consumed = trainer.datamodule.consumed_batches  # type: ignore[attr-defined]
        if self._any(trainer, self._told_to_stop):
            self._save_and_leave(trainer)
        due = self.steps is not None and self._step % self.steps == 0
        if self._any(trainer, due or time.monotonic() - self._saved_at > 60 * self.minutes):
            self._save(trainer)

    @override
    def on_validation_batch_end(
        self, trainer: L.Trainer, pl_module: Any, *_: Any, **__: Any
    ) -> None:
        # Processes may have different numbers of batches here, so several cannot agree to stop.
        if self._told_to_stop and trainer.world_size == 1:
            self._save_and_leave(trainer)

    @override
    def on_validation_end(self, trainer: L.Trainer, pl_module: Any) -> None:
        if trainer.state.fn == TrainerFn.FITTING and not trainer.sanity_checking:
            self._save(trainer)

    @override
    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: Any) -> None:
        self._save(trainer)

    # ------------------------------------------------------------------ what

    @override
    def on_save_checkpoint(
        self, trainer: L.Trainer, pl_module: Any, checkpoint: dict[str, Any]
    ) -> None:
        checkpoint["settings"] = self.settings | processes_of(trainer)
        if self._loops and trainer.global_step == self._step:
            checkpoint["loops"]["fit_loop"] = self._loops
            task = type(trainer.datamodule).__qualname__  # type: ignore[attr-defined]
            checkpoint[task] = checkpoint[task] | {"consumed_batches": self._consumed}

    @override
    def on_load_checkpoint(
        self, trainer: L.Trainer, pl_module: Any, checkpoint: dict[str, Any]
    ) -> None:
        self._loops = checkpoint["loops"]["fit_loop"]

    def _save(self, trainer: L.Trainer) -> None:
        # Others learn behind a step too, which may be saved already: what a validation came to.
        others = _states_of_callbacks(trainer)
        if (self._saved_step, self._saved_others) == (trainer.global_step, others):
            return
        trainer.save_checkpoint(self.file, weights_only=False)
        self.last_model_path = str(self.file)
        self._saved_step, self._saved_at = trainer.global_step, time.monotonic()
        self._saved_others = others

    # ------------------------------------------------------------------ stopping

    def _stop(self, number: int, frame: Any) -> None:
        self._told_to_stop = True

    def _save_and_leave(self, trainer: L.Trainer) -> None:
        self._save(trainer)
        rank_zero_info(
            f"Stopped by SIGTERM after step {trainer.global_step}. To go on: the same command "
            "with --resume."
        )
        # Others than the first were not told by the caller: to their launcher all is well.
        raise SystemExit(TERMINATED if trainer.is_global_zero else 0)

    @staticmethod
    def _any(trainer: L.Trainer, here: bool) -> bool:
        """Whether it is so in any process; all answer alike."""
        return bool(trainer.strategy.reduce_boolean_decision(here, all=False))


def _states_of_callbacks(trainer: L.Trainer) -> str:
    """What the other callbacks would put into a checkpoint, to be compared."""
    callbacks: list[Any] = trainer.callbacks  # type: ignore[attr-defined]
    return repr({each.state_key: each.state_dict() for each in callbacks})


def processes_of(trainer: L.Trainer) -> dict[str, Any]:
    """What of the processes decides the weights at the end of a run, as a checkpoint holds it."""
    told: dict[str, Any] = {"processes": trainer.world_size}
    sharded = isinstance(trainer.strategy, ModelParallelStrategy)
    return told | ({"weights": "shared out"} if sharded else {})
