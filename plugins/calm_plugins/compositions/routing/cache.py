"""The memory of a routed model: that of every model, and what was decided."""

from collections.abc import Sequence

from torch import Tensor
from typing_extensions import override

from calm_lightning.backbone import Backbone
from calm_lightning.composed import ComposedCache


class RoutedCache(ComposedCache):
    """The keys and values of every model, and what was decided for each row.

    Attributes:
        decision: [batch, augmenting], see `PromptModel`; None while nothing is decided. The prompt
            that it was decided for has `prompt_length` columns.
    """

    def __init__(
        self, anchor: Backbone, augmenting: Sequence[Backbone], aligned: Sequence[int]
    ) -> None:
        super().__init__(anchor, augmenting, readers=(), aligned=aligned)
        self.decision: Tensor | None = None

    @override
    def reorder_cache(self, beam_idx: Tensor) -> None:
        super().reorder_cache(beam_idx)
        self._select_decision(beam_idx)

    @override
    def batch_select_indices(self, indices: Tensor) -> None:
        super().batch_select_indices(indices)
        self._select_decision(indices)

    @override
    def batch_repeat_interleave(self, repeats: int) -> None:
        super().batch_repeat_interleave(repeats)
        if self.decision is not None:
            self.decision = self.decision.repeat_interleave(repeats, dim=0)

    @override
    def reset(self) -> None:
        super().reset()
        self.decision = None

    def _select_decision(self, rows: Tensor) -> None:
        if self.decision is not None:
            self.decision = self.decision.index_select(0, rows.to(self.decision.device))
