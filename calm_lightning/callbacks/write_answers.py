"""Writes every answer of a `calm predict` beside its question and the truth."""

import json
from collections.abc import Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Any, TextIO

import lightning as L
from typing_extensions import override

from calm_lightning.checkpoint_io import write_text
from calm_lightning.contracts import Question


class WriteAnswers(L.Callback):
    """Writes JSON lines: `set`, `prompt`, `target`, `answer`.

    Args:
        folder: Where to: `predictions.jsonl`. Other processes than the first write files beside it,
            which the first one takes in at the end: each question is at its place again.
    """

    def __init__(self, folder: str) -> None:
        self.folder = folder
        self._stream: TextIO | None = None

    @override
    def on_predict_start(self, trainer: L.Trainer, pl_module: Any) -> None:
        file = self._file(trainer.global_rank)
        file.parent.mkdir(parents=True, exist_ok=True)
        self._stream = file.open("w", encoding="utf-8")

    @override
    def on_predict_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: Any,
        outputs: Any,
        batch: Sequence[Question],
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        assert self._stream is not None
        name = pl_module.evaluation_sets[dataloader_idx].name
        # Nothing came of a set that was not asked.
        for (_, example), answer in zip(batch, outputs or (), strict=False):
            said = {
                "set": name,
                "prompt": pl_module.prompt_of(example),
                "target": example.target,
                "answer": answer,
            }
            self._stream.write(json.dumps(said, ensure_ascii=False) + "\n")

    @override
    def on_predict_end(self, trainer: L.Trainer, pl_module: Any) -> None:
        self._close()
        trainer.strategy.barrier()
        files = [self._file(rank) for rank in range(trainer.world_size)]
        if trainer.is_global_zero and len(files) > 1:
            write_text(_in_order([file.read_text(encoding="utf-8") for file in files]), files[0])
            for file in files[1:]:
                file.unlink()

    @override
    def teardown(self, trainer: L.Trainer, pl_module: Any, stage: str) -> None:
        self._close()

    def _close(self) -> None:
        if self._stream is not None:
            self._stream.close()
            self._stream = None

    def _file(self, rank: int) -> Path:
        return Path(self.folder) / (f"predictions.{rank}.jsonl" if rank else "predictions.jsonl")


def _in_order(written: Sequence[str]) -> str:
    """What the processes wrote, set by set: of n processes number k has every n-th line from k."""
    of_set: dict[str, list[list[str]]] = {}
    for rank, text in enumerate(written):
        for line in text.split("\n")[:-1]:  # not splitlines: answers may hold other breaks
            shares = of_set.setdefault(json.loads(line)["set"], [[] for _ in written])
            shares[rank].append(line)
    rows = (row for shares in of_set.values() for row in zip_longest(*shares, fillvalue=""))
    return "".join(f"{line}\n" for row in rows for line in row if line)
