"""Proof that training left the backbones alone."""

from typing import Any

import lightning as L
from typing_extensions import override


class NothingFrozenMoved(L.Callback):
    """Compares the frozen backbones' weights before and after a fit, bit for bit.

    Raises:
        RuntimeError: At the end of the fit, if a frozen weight changed.
    """

    def __init__(self) -> None:
        self.before: list[str] = []

    @override
    def on_fit_start(self, trainer: L.Trainer, pl_module: Any) -> None:
        for backbone in pl_module.language_model.frozen_backbones:
            backbone.freeze()  # loading a model may have thawed it
        self.before = self._fingerprints(pl_module)

    @override
    def on_fit_end(self, trainer: L.Trainer, pl_module: Any) -> None:
        if self.before != self._fingerprints(pl_module):
            raise RuntimeError("A frozen backbone's weights changed during training.")

    def _fingerprints(self, module: Any) -> list[str]:
        return [b.fingerprint(exact=True) for b in module.language_model.frozen_backbones]
