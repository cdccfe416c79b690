"""The cache of a composed model: three memories that always move together.

`generate` reorders (beams), crops (assisted decoding), repeats and selects rows of the cache it
was given. Memories that lived anywhere else would silently fall out of step, so all of them live
here: the anchor's keys and values (this object itself), those of every augmenting model, and what
every bridge keeps.
"""

from collections.abc import Iterator, Sequence

import torch
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


class ComposedCache(DynamicCache):
    """Anchor keys and values, and beside them those of the augmenting models and the bridges.

    Args:
        anchor: The anchor, for the kinds of its layers.
        augmenting: The augmenting models.
        num_connections: Number of bridges.
    """

    def __init__(
        self, anchor: Backbone, augmenting: Sequence[Backbone], num_connections: int
    ) -> None:
        super().__init__(config=anchor.model.config)
        self.augmenting = [DynamicCache(config=model.model.config) for model in augmenting]
        self.bridges = [BridgeMemory() for _ in range(num_connections)]
        self.prompt_length: int | None = None

    def adopt(self, cache: Cache) -> None:
        """Take over what `generate` asked of the still empty cache that it prepared.

        Layers with a window forget what left it, unless assisted decoding asks for the past. An
        anchor without such layers cannot say whether it was asked, so the past is kept then.
        """
        asked = [layer.record_past for layer in cache.layers if hasattr(layer, "record_past")]
        if any(asked) or not asked:
            self.activate_past_recording()

    def in_step(self) -> bool:
        """Whether every memory holds as many tokens as the anchor's."""
        length = self.get_seq_length()
        parts = [len(memory) for memory in self.bridges]
        parts += [cache.get_seq_length() for cache in self.augmenting]
        return all(part == length for part in parts)

    @override
    def reorder_cache(self, beam_idx: Tensor) -> None:
        super().reorder_cache(beam_idx)
        for cache in self.augmenting:
            cache.reorder_cache(beam_idx)
        for memory in self.bridges:
            memory.select(beam_idx)

    @override
    def crop(self, tokens_to_remove: int) -> None:
        super().crop(tokens_to_remove)
        for part in self._others():
            part.crop(tokens_to_remove)

    @override
    def reset(self) -> None:
        super().reset()
        self.prompt_length = None
        for part in self._others():
            part.reset()

    @override
    def batch_repeat_interleave(self, repeats: int) -> None:
        super().batch_repeat_interleave(repeats)
        for cache in self.augmenting:
            cache.batch_repeat_interleave(repeats)
        for memory in self.bridges:
            memory.repeat_interleave(repeats)

    @override
    def batch_select_indices(self, indices: Tensor) -> None:
        super().batch_select_indices(indices)
        for cache in self.augmenting:
            cache.batch_select_indices(indices)
        for memory in self.bridges:
            memory.select(indices)

    @override
    def activate_past_recording(self) -> None:
        super().activate_past_recording()
        for cache in self.augmenting:
            cache.activate_past_recording()

    def _others(self) -> Iterator[DynamicCache | BridgeMemory]:
        yield from self.augmenting
        yield from self.bridges
