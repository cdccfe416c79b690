"""Writes every answer of a `calm predict` beside its question and the truth."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TextIO

import lightning as L
from typing_extensions import override

from calm_lightning.contracts import Example


class WriteAnswers(L.Callback):
    """Writes JSON lines: `set`, `prompt`, `target`, `answer`.

    Args:
        folder: Where to: `predictions.jsonl`; other processes than the first add their number.
    """

    def __init__(self, folder: str) -> None:
        self.folder = folder
        self._stream: TextIO | None = None

    @override
    def on_predict_start(self, trainer: L.Trainer, pl_module: Any) -> None:
        rank = f".{trainer.global_rank}" if trainer.global_rank else ""
        file = Path(self.folder) / f"predictions{rank}.jsonl"
        file.parent.mkdir(parents=True, exist_ok=True)
        self._stream = file.open("w", encoding="utf-8")

    @override
    def on_predict_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: Any,
        outputs: Any,
        batch: Sequence[Example],
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        assert self._stream is not None
        name = pl_module.evaluation_sets[dataloader_idx].name
        for example, answer in zip(batch, outputs or (), strict=False):  # none: it was not asked
            said = {
                "set": name,
                "prompt": pl_module.prompt_of(example),
                "target": example.target,
                "answer": answer,
            }
            self._stream.write(json.dumps(said, ensure_ascii=False) + "\n")

    @override
    def teardown(self, trainer: L.Trainer, pl_module: Any, stage: str) -> None:
        if self._stream is not None:
            self._stream.close()
            self._stream = None
