"""Several short examples in one row, which know nothing of one another.

Batches of examples of unlike length are mostly padding. Packed, they are mostly tokens. What keeps
the examples apart is their positions: each counts from 0, and a token reads no other example's.
Attention of transformers takes its masks from such positions by itself, where no other mask is
given; those of the bridges follow from `alignment.example_numbers`.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from calm_lightning.backbone import Backbone
from calm_lightning.collate import IGNORED, Row
from calm_lightning.contracts import CalmError


def packed(rows: Sequence[Row], length: int, pad_id: int) -> dict[str, Tensor]:
    """Examples side by side in as few rows as the rule "longest first, where it first fits" gives.

    Args:
        rows: Prompts with their targets.
        length: Longest row of several examples, in tokens. A longer example has one of its own.
        pad_id: Fills rows up; it stands in an example of its own.

    Returns:
        `input_ids`, `position_ids`, `labels`: [packed rows, seq].
    """
    filled = _first_fit(rows, length)
    width = max(sum(len(row.ids) for row in each) for each in filled)
    shape = (len(filled), width)
    ids = torch.full(shape, pad_id, dtype=torch.long)
    positions = torch.zeros(shape, dtype=torch.long)
    labels = torch.full(shape, IGNORED, dtype=torch.long)
    for number, each in enumerate(filled):
        start = 0
        for row in each:
            # Nothing precedes an example, so its first token is never learnt.
            end, answer = start + len(row.ids), start + max(1, row.prompt_length)
            ids[number, start:end] = torch.tensor(row.ids, dtype=torch.long)
            positions[number, start:end] = torch.arange(end - start)
            labels[number, answer:end] = ids[number, answer:end]
            start = end
        positions[number, start:] = torch.arange(width - start)
    return {"input_ids": ids, "position_ids": positions, "labels": labels}


def _first_fit(rows: Sequence[Row], length: int) -> list[list[Row]]:
    filled: list[list[Row]] = []
    room: list[int] = []
    for row in sorted(rows, key=lambda row: -len(row.ids)):
        fits = (place for place, left in enumerate(room) if left >= len(row.ids))
        place = next(fits, len(filled))
        if place == len(filled):
            filled.append([])
            room.append(length)
        filled[place].append(row)
        room[place] -= len(row.ids)
    return filled


def check_keeps_apart(backbone: Backbone) -> None:
    """Refuse a model in which packed examples would read one another. It is tried.

    Raises:
        CalmError: If two texts in one row get other answers than each alone.
    """
    if not backbone.takes_positions:
        raise CalmError(_cannot(backbone, "it takes no positions"))
    device = backbone.model.get_input_embeddings().weight.device
    # Two rows: kernels for packed rows may take several of them for rows of one text each.
    ids = torch.arange(1, 15, device=device).view(2, 7) % backbone.config.vocab_size
    positions = torch.tensor([[0, 1, 2, 0, 1, 2, 3]] * 2, device=device)
    with torch.no_grad(), _exactly():
        together = backbone.model(input_ids=ids, position_ids=positions, use_cache=False).logits
        alone = [backbone.model(input_ids=i, use_cache=False).logits for i in ids.split([3, 4], 1)]
    change = (together - torch.cat(alone, dim=1)).abs().max() / together.abs().max()
    if not bool(change <= max(1e-5, 4 * torch.finfo(together.dtype).eps)):
        attention = getattr(backbone.config, "_attn_implementation", None)
        why = f"its answer to a text depends on the one before it (attention: {attention})"
        raise CalmError(_cannot(backbone, why))


@contextmanager
def _exactly() -> Iterator[None]:
    """Multiply matrices as exactly as their type allows, so that a small change tells."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def _cannot(backbone: Backbone, why: str) -> str:
    return (
        f"model.pack: {backbone.name!r} ({type(backbone.model).__name__}) does not keep examples "
        f"in one row apart: {why}. Leave model.pack out, or try attention: sdpa; examples of "
        "like length are trained together anyway (data.group_by_length)."
    )
