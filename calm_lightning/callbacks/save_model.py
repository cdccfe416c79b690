"""Writes the trained model and its card at the end of a fit, ready for `calm generate`."""

import shutil
from pathlib import Path
from typing import Any

import lightning as L
import yaml
from lightning.pytorch.trainer.states import TrainerFn
from safetensors import SafetensorError
from typing_extensions import override

from calm_lightning.card import add_facts
from calm_lightning.checkpoint import holds_composition
from calm_lightning.checkpoint_io import sync_folder, sync_tree
from calm_lightning.contracts import CalmError
from calm_lightning.resuming import SCORES_BEFORE, scores_before
from calm_lightning.sharding import whole


class SaveModel(L.Callback):
    """Saves the composition (or the trained backbone) into a folder when a fit ends well.

    Args:
        folder: Where to.

    Attributes:
        before: Validation scores before training, also in a run that goes on.
    """

    def __init__(self, folder: str) -> None:
        self.folder = folder
        self.before: dict[str, float] = {}

    @override
    def on_validation_end(self, trainer: L.Trainer, pl_module: Any) -> None:
        if trainer.state.fn == TrainerFn.VALIDATING:  # `calm fit` looks before it trains
            self.before = _validation_scores(trainer)

    @override
    def on_save_checkpoint(
        self, trainer: L.Trainer, pl_module: Any, checkpoint: dict[str, Any]
    ) -> None:
        checkpoint[SCORES_BEFORE] = self.before

    @override
    def on_load_checkpoint(
        self, trainer: L.Trainer, pl_module: Any, checkpoint: dict[str, Any]
    ) -> None:
        self.before = scores_before(checkpoint)

    @override
    def on_fit_end(self, trainer: L.Trainer, pl_module: Any) -> None:
        if trainer.interrupted:
            return
        with whole(pl_module.language_model):
            if not trainer.is_global_zero:
                return
            try:
                self._write(trainer, pl_module)
            except (OSError, SafetensorError) as error:  # the latter tells of a full disk
                shutil.rmtree(self._partial, ignore_errors=True)
                raise CalmError(
                    f"The trained model could not be written into {self.folder}: {error}. The "
                    "run's checkpoints are what they were. Make room, then go on with the same "
                    "command and --resume: nothing is trained again."
                ) from error

    @property
    def _partial(self) -> Path:
        folder = Path(self.folder)
        return folder.with_name(f".{folder.name}.partial")

    def _write(self, trainer: L.Trainer, pl_module: Any) -> None:
        folder = Path(self.folder)
        # A folder called so means that the run is finished, so it must appear whole.
        partial = self._partial
        shutil.rmtree(partial, ignore_errors=True)
        pl_module.language_model.save_pretrained(partial)
        if holds_composition(partial):
            config = folder.parent / "config.yaml"
            said = yaml.safe_load(config.read_text(encoding="utf-8")) if config.is_file() else {}
            scores = _validation_scores(trainer)
            add_facts(partial, data=said.get("data"), validation=scores, before=self.before)
        sync_tree(partial)
        partial.replace(folder)
        sync_folder(folder.parent)


def _validation_scores(trainer: L.Trainer) -> dict[str, float]:
    return {
        name.removeprefix("val/"): float(value)
        for name, value in trainer.callback_metrics.items()
        if name.startswith("val/")
    }
