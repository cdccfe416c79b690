"""Batches with labels in which models with another tokenizer find the texts in their own tokens."""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from calm_lightning.backbone import Backbone
from calm_lightning.collate import IGNORED, Row, check_fits, pad_right, tokenize

_PARTS = ("input_ids", "attention_mask", "labels")


def own_tokens(
    backbone: Backbone,
    index: int,
    texts: Sequence[str],
    targets: Sequence[str],
    ends: bool | Sequence[bool],
) -> dict[str, Tensor]:
    """What is put into a batch for one augmenting model.

    Args:
        backbone: The model.
        index: Its number among the augmenting models.
        texts: Prompts.
        targets: What follows each.
        ends: As `LanguageModel.encode` takes it.

    Raises:
        CalmError: If a row does not fit the model's context.
    """
    rows = tokenize(backbone.require_tokenizer(), texts, targets, ends)
    check_fits(rows, backbone.context, backbone.name)
    return {_key(part, index): tensor for part, tensor in pad_right(rows, 0).items()}


def own_rows(batch: Mapping[str, Any], index: int) -> list[Row] | None:
    """The texts again, without padding; None if the batch has none for this model."""
    parts = [batch.get(_key(part, index)) for part in _PARTS]
    found = [part for part in parts if part is not None]
    return rows_of(*found) if len(found) == len(_PARTS) else None


def rows_of(ids: Tensor, mask: Tensor, labels: Tensor) -> list[Row]:
    """The texts of a batch without padding; the prompt of each ends before its first label."""
    first = (labels != IGNORED).int().argmax(-1).tolist()
    return [
        Row(row[real].tolist(), int(real[:end].sum()))
        for row, real, end in zip(ids, mask.bool(), first, strict=True)
    ]


def _key(part: str, index: int) -> str:
    return f"augmenting_{index}_{part}"
