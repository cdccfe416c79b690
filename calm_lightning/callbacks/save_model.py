"""Writes the trained model at the end of a fit, ready for `calm generate`."""

from pathlib import Path
from typing import Any

import lightning as L
from typing_extensions import override


class SaveModel(L.Callback):
    """Saves the composition (or the trained backbone) into a folder when a fit ends well.

    Args:
        folder: Where to.
    """

    def __init__(self, folder: str) -> None:
        self.folder = folder

    @override
    def on_fit_end(self, trainer: L.Trainer, pl_module: Any) -> None:
        if trainer.is_global_zero and not trainer.interrupted:
            pl_module.language_model.save_pretrained(Path(self.folder))
