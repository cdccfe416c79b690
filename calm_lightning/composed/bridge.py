"""The contract of a bridge: the trained module at one connection."""

from abc import ABC, abstractmethod

from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

Memory = tuple[Tensor, ...]
"""What a bridge keeps of augmenting states: tensors [batch, ..., augmenting_seq, any width].

The cache appends new positions along the axis before the last one and treats the first axis as
the batch, so any number of tensors of any width may be kept."""


class Bridge(nn.Module, ABC):
    """Reads one augmenting layer and says what to add to one anchor layer.

    The work is split in two, because generation meets every augmenting state once but reads it at
    every later step: `remember` turns new augmenting states into what is kept, and `forward`
    answers from all that was kept. A bridge that overrides only `forward` keeps the states as they
    are.

    A fresh bridge adds zero, so that training starts from the unchanged anchor.
    """

    def remember(
        self,
        augmenting_states: Float[Tensor, "batch augmenting_seq augmenting_width"],
        positions: Int[Tensor, "batch augmenting_seq"],
    ) -> Memory:
        """What to keep of new augmenting states.

        Args:
            augmenting_states: Outputs of the augmenting layer, without gradient.
            positions: The anchor position at which each becomes visible. For equal tokenizers it
                is the token's own position; padding does not count.
        """
        return (augmenting_states,)

    @abstractmethod
    def forward(
        self,
        anchor_states: Float[Tensor, "batch anchor_seq anchor_width"],
        memory: Memory,
        visible: Bool[Tensor, "batch anchor_seq augmenting_seq"],
        positions: Int[Tensor, "batch anchor_seq"],
    ) -> Float[Tensor, "batch anchor_seq anchor_width"]:
        """What to add to the anchor layer's output.

        Args:
            anchor_states: Outputs of the anchor layer.
            memory: All that was kept, oldest first.
            visible: True where an anchor position may read an augmenting one. Every row has at
                least one True; where there is truly nothing to see, the result is replaced by
                zero afterwards.
            positions: Position of each anchor token; padding does not count.
        """
