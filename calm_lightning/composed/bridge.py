"""The contract of a bridge: the trained module at one connection."""

from abc import ABC, abstractmethod
from typing import ClassVar

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

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

    takes_causal: ClassVar[bool] = False
    """Whether `forward` takes None for `visible` where that would say no more than that reading is
    causal: position i of n may read all but the last n - 1 - i of what was kept, which is all of it
    for a single new token. Attention that is told so leaves out the half that is hidden."""

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
            memory: All that was kept, oldest first. Zeros may follow, where a cache has room for
                more; they are not visible.
            visible: True where an anchor position may read an augmenting one. Every row has at
                least one True; where there is truly nothing to see, the result is replaced by
                zero afterwards.
            positions: Position of each anchor token; padding does not count.
        """

    def attention(
        self,
        anchor_states: Float[Tensor, "batch anchor_seq anchor_width"],
        memory: Memory,
        visible: Bool[Tensor, "batch anchor_seq augmenting_seq"],
        positions: Int[Tensor, "batch anchor_seq"],
    ) -> Float[Tensor, "batch heads anchor_seq augmenting_seq"] | None:
        """How much each anchor position looks at each augmenting one; optional, for pictures.

        Asked with what `forward` was given, and only by those who look inside: never in training.

        Returns:
            Weights that add up to 1 over the last axis; None for a bridge that does not attend.
        """
        return None


def attention_weights(
    query: Float[Tensor, "batch heads anchor_seq head_width"],
    key: Float[Tensor, "batch heads augmenting_seq head_width"],
    mask: Tensor,
) -> Float[Tensor, "batch heads anchor_seq augmenting_seq"]:
    """The weights that `scaled_dot_product_attention` gives its values, for `Bridge.attention`.

    It keeps them to itself, but for values that are the identity its answer is the weights.

    Args:
        query: As that function takes it.
        key: The same.
        mask: The same: True where a key may be read, or what is added to the scores.
    """
    identity = torch.eye(key.shape[-2], dtype=key.dtype, device=key.device)
    values = identity.expand(*key.shape[:2], -1, -1)
    return scaled_dot_product_attention(query, key, values, attn_mask=mask)


def distance_slopes(num_heads: int, distances: bool) -> Float[Tensor, "heads 1 1"]:
    """How much each head minds distance, for `distance_bias`: those of ALiBi, or zero.

    `Train Short, Test Long <https://arxiv.org/abs/2108.12409>`_, section 3.

    Args:
        num_heads: Heads.
        distances: False gives zeros: no head minds.
    """
    exponents = torch.arange(1, num_heads + 1) * (8 / num_heads)
    slopes = 2.0**-exponents if distances else torch.zeros(num_heads)
    return slopes[:, None, None]


def distance_bias(
    slopes: Float[Tensor, "heads 1 1"],
    positions: Int[Tensor, "batch anchor_seq"],
    places: Int[Tensor, "batch augmenting_seq 1"],
    visible: Bool[Tensor, "batch anchor_seq augmenting_seq"],
) -> Float[Tensor, "batch heads anchor_seq augmenting_seq"]:
    """What is added to the scores of attention: less for what is far, and nothing hidden is read.

    Args:
        slopes: As `distance_slopes` gives them.
        positions: Of the anchor's tokens.
        places: Positions of the augmenting model's.
        visible: As a bridge is given it.
    """
    distance = positions[:, :, None] - places.transpose(1, 2)
    bias = -slopes * distance[:, None].to(slopes.dtype)
    return bias.masked_fill(~visible[:, None], float("-inf"))
