"""Composition by the newest state: no attention, each position reads one augmenting state.

The anchor position takes the newest augmenting state that it may see, squeezes it through a few
dimensions, and lets a gate of its own decide how much of it to add.
"""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from typing_extensions import override

from calm_lightning import Backbone, Bridge, CalmError, HiddenStateComposition


class NewestState(HiddenStateComposition):
    """A gated, low-rank reading of the newest augmenting state.

    Args:
        rank: Dimensions that the state is squeezed through.
    """

    def __init__(self, rank: int = 4) -> None:
        super().__init__()
        if rank < 1:
            raise CalmError(f"rank={rank} must be at least 1.")
        self.rank = rank

    @override
    def make_bridge(self, anchor: Backbone, augmenting: Backbone) -> Bridge:
        return NewestStateBridge(anchor.width, augmenting.width, self.rank)


class NewestStateBridge(Bridge):
    """The same, for one connection."""

    def __init__(self, anchor_width: int, augmenting_width: int, rank: int) -> None:
        super().__init__()
        self.down = nn.Linear(augmenting_width, rank)
        self.gate = nn.Linear(anchor_width, rank)
        self.up = nn.Linear(rank, anchor_width, bias=False)
        nn.init.zeros_(self.up.weight)

    @override
    def forward(
        self,
        anchor_states: Float[Tensor, "batch anchor_seq anchor_width"],
        memory: tuple[Tensor, ...],
        visible: Bool[Tensor, "batch anchor_seq augmenting_seq"],
        positions: Int[Tensor, "batch anchor_seq"],
    ) -> Float[Tensor, "batch anchor_seq anchor_width"]:
        (states,) = memory
        newest = visible.long().cumsum(-1).argmax(-1)
        read = torch.take_along_dim(self.down(states), newest[..., None], dim=1)
        return self.up(read.tanh() * self.gate(anchor_states).sigmoid())
