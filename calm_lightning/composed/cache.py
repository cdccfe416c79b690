"""The cache of a composed model: three memories that always move together.

`generate` reorders (beams), crops (assisted decoding), repeats and selects rows of the cache it
was given. Memories that lived anywhere else would silently fall out of step, so all of them live
here: the anchor's keys and values (this object itself), those of every augmenting model, and what
every bridge keeps.
"""

from collections.abc import Collection, Iterable, Iterator, Sequence

import torch
from jaxtyping import Int
from torch import Tensor
from transformers import Cache, DynamicCache
from typing_extensions import override

from calm_lightning.backbone import Backbone
from calm_lightning.composed.bridge import Memory


class BridgeMemory:
    """What one bridge keeps: tensors [batch, ..., seq, width] that grow along `seq`."""

    def __init__(self) -> None:
        self.tensors: Memory = ()

    def __len__(self) -> int:
        return self.tensors[0].shape[-2] if self.tensors else 0

    def append(self, new: Memory) -> Memory:
        """Append new positions and return everything kept."""
        if self.tensors:
            new = tuple(torch.cat(pair, dim=-2) for pair in zip(self.tensors, new, strict=True))
        self.tensors = new
        return new

    def crop(self, tokens_to_remove: int) -> None:
        """Forget the newest positions; the number is negative, as in `Cache.crop`."""
        keep = max(0, len(self) - abs(tokens_to_remove))
        self.tensors = tuple(t[..., :keep, :] for t in self.tensors)

    def select(self, rows: Tensor) -> None:
        """Keep these rows of the batch, in this order."""
        self.tensors = tuple(t.index_select(0, rows.to(t.device)) for t in self.tensors)

    def repeat_interleave(self, repeats: int) -> None:
        """Repeat every row."""
        self.tensors = tuple(t.repeat_interleave(repeats, dim=0) for t in self.tensors)

    def reset(self) -> None:
        """Forget everything."""
        self.tensors = ()


class TextMemory:
    """Which tokens of its own an augmenting model has read, where it has another tokenizer.

    Rows grow by different numbers of tokens, and may have to take tokens back. So a row's tokens
    stand in columns with gaps: each new column is as good as padding for the rows that have no new
    token, and a column that is taken back is masked from then on.

    Attributes:
        ids: What each row has read, without gaps.
        order: [batch, columns], the number of the row's token in each column; -1 in gaps.
    """

    def __init__(self) -> None:
        self.ids: list[list[int]] = []
        self.order: Int[Tensor, "batch columns"] = torch.zeros((0, 0), dtype=torch.long)

    def reset(self) -> None:
        """Forget everything."""
        self.ids, self.order = [], torch.zeros((0, 0), dtype=torch.long)

    def advance(
        self, wanted: Sequence[Sequence[int]], device: torch.device, at_least: int = 0
    ) -> tuple[Int[Tensor, "batch new"], Int[Tensor, "batch new"]]:
        """Take back what is no longer wanted, and append what is new.

        Args:
            wanted: All tokens that each row shall have read.
            device: Where the tensors are needed.
            at_least: New columns that there must be, of gaps if nothing is new.

        Returns:
            Ids of the new columns (0 in gaps) and their order (-1 in gaps).
        """
        if not self.ids:
            self.ids = [[] for _ in wanted]
            self.order = torch.zeros((len(wanted), 0), dtype=torch.long, device=device)
        kept = [_common(old, new) for old, new in zip(self.ids, wanted, strict=True)]
        if any(count < len(old) for count, old in zip(kept, self.ids, strict=True)):
            limit = torch.tensor(kept, device=device)[:, None]
            self.order = self.order.masked_fill(self.order >= limit, -1)
        new = [list(row[count:]) for row, count in zip(wanted, kept, strict=True)]
        width = max(at_least, *map(len, new))
        columns = [row + [0] * (width - len(row)) for row in new]
        order = [
            [*range(count, count + len(row)), *[-1] * (width - len(row))]
            for row, count in zip(new, kept, strict=True)
        ]
        places = torch.tensor(order, dtype=torch.long, device=device).view(len(new), width)
        ids = torch.tensor(columns, dtype=torch.long, device=device).view(len(new), width)
        self.ids = [list(row) for row in wanted]
        self.order = torch.cat([self.order, places], dim=1)
        return ids, places

    def select(self, rows: Tensor) -> None:
        """Keep these rows of the batch, in this order."""
        self.ids = [self.ids[row] for row in rows.tolist()]
        self.order = self.order.index_select(0, rows.to(self.order.device))

    def repeat_interleave(self, repeats: int) -> None:
        """Repeat every row."""
        self.ids = [row for row in self.ids for _ in range(repeats)]
        self.order = self.order.repeat_interleave(repeats, dim=0)


def _common(a: Sequence[int], b: Sequence[int]) -> int:
    """Length of the longest common beginning."""
    for index, (left, right) in enumerate(zip(a, b, strict=False)):
        if left != right:
            return index
    return min(len(a), len(b))


class ComposedCache(DynamicCache):
    """Anchor keys and values, and beside them those of the augmenting models and the bridges.

    Args:
        anchor: The anchor, for the kinds of its layers.
        augmenting: The augmenting models.
        readers: For each bridge, the number of the augmenting model that it reads.
        aligned: Numbers of the augmenting models that read the text with another tokenizer.

    Attributes:
        anchor_ids: The anchor's tokens so far, row by row without padding; kept only for
            augmenting models with another tokenizer.
        texts: What those have read, by their numbers.
        prompt_length: Columns of the prompt, where only it is read.
    """

    def __init__(
        self,
        anchor: Backbone,
        augmenting: Sequence[Backbone],
        readers: Sequence[int],
        aligned: Iterable[int] = (),
    ) -> None:
        super().__init__(config=anchor.model.config)
        self.augmenting = [DynamicCache(config=model.model.config) for model in augmenting]
        self.bridges = [BridgeMemory() for _ in readers]
        self.readers = tuple(readers)
        self.texts = {index: TextMemory() for index in aligned}
        self.anchor_ids: list[list[int]] = []
        self.tokens_read = 0
        self.prompt_length: int | None = None

    def adopt(self, cache: Cache) -> None:
        """Take over what `generate` asked of the still empty cache that it prepared.

        Layers with a window forget what left it, unless assisted decoding asks for the past. An
        anchor without such layers cannot say whether it was asked, so the past is kept then.
        """
        asked = [layer.record_past for layer in cache.layers if hasattr(layer, "record_past")]
        if any(asked) or not asked:
            self.activate_past_recording()

    def in_step(self, silent: Collection[int] = ()) -> bool:
        """Whether every memory holds as many tokens as the anchor's.

        Args:
            silent: Numbers of augmenting models that are switched off, and need not.
        """
        length = self.get_seq_length()
        parts = [len(memory) for memory in self._bridges_in_step(silent)]
        parts += [cache.get_seq_length() for cache in self._augmenting_in_step(silent)]
        parts += [self.tokens_read] if self.texts.keys() - set(silent) else []
        return all(part == length for part in parts)

    def read_on(self, rows: Sequence[Sequence[int]], columns: int) -> list[list[int]]:
        """Append new tokens of the anchor, without padding, and return all of each row."""
        if not self.anchor_ids:
            self.anchor_ids = [[] for _ in rows]
        self.anchor_ids = [[*old, *new] for old, new in zip(self.anchor_ids, rows, strict=True)]
        self.tokens_read += columns
        return self.anchor_ids

    def _augmenting_in_step(self, silent: Collection[int] = ()) -> Iterator[DynamicCache]:
        """Memories of the augmenting models that read the anchor's own tokens."""
        others = {*self.texts, *silent}
        return (c for index, c in enumerate(self.augmenting) if index not in others)

    def _bridges_in_step(self, silent: Collection[int] = ()) -> Iterator[BridgeMemory]:
        others = {*self.texts, *silent}
        return (m for m, r in zip(self.bridges, self.readers, strict=True) if r not in others)

    @override
    def reorder_cache(self, beam_idx: Tensor) -> None:
        super().reorder_cache(beam_idx)
        for cache in self.augmenting:
            cache.reorder_cache(beam_idx)
        for memory in self._selectable():
            memory.select(beam_idx)
        self._select_rows(beam_idx.tolist())

    @override
    def crop(self, tokens_to_remove: int) -> None:
        super().crop(tokens_to_remove)
        for part in (*self._augmenting_in_step(), *self._bridges_in_step()):
            part.crop(tokens_to_remove)
        # Augmenting models with other tokens find at the next step what they must take back.
        removed = min(abs(tokens_to_remove), self.tokens_read)
        self.anchor_ids = [row[: max(0, len(row) - removed)] for row in self.anchor_ids]
        self.tokens_read -= removed

    @override
    def reset(self) -> None:
        super().reset()
        self.prompt_length = None
        self.anchor_ids, self.tokens_read = [], 0
        for part in (*self.augmenting, *self.bridges, *self.texts.values()):
            part.reset()

    @override
    def batch_repeat_interleave(self, repeats: int) -> None:
        super().batch_repeat_interleave(repeats)
        for cache in self.augmenting:
            cache.batch_repeat_interleave(repeats)
        for memory in self._selectable():
            memory.repeat_interleave(repeats)
        self._select_rows([row for row in range(len(self.anchor_ids)) for _ in range(repeats)])

    @override
    def batch_select_indices(self, indices: Tensor) -> None:
        super().batch_select_indices(indices)
        for cache in self.augmenting:
            cache.batch_select_indices(indices)
        for memory in self._selectable():
            memory.select(indices)
        self._select_rows(indices.tolist())

    @override
    def activate_past_recording(self) -> None:
        super().activate_past_recording()
        for cache in self.augmenting:
            cache.activate_past_recording()

    def _selectable(self) -> Iterator[BridgeMemory | TextMemory]:
        yield from self.bridges
        yield from (text for text in self.texts.values() if text.ids)

    def _select_rows(self, rows: Sequence[int]) -> None:
        if self.anchor_ids:
            self.anchor_ids = [self.anchor_ids[row] for row in rows]
