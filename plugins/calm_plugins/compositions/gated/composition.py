"""Composition by gated cross-attention: a whole block of a transformer, opened by two gates.

This is the GATED XATTN-DENSE block of `Flamingo <https://arxiv.org/abs/2204.14198>`_ (section 2.2
and figure 4), with which `Zipper <https://arxiv.org/abs/2405.18669>`_ joins two decoders. For one
connection from augmenting layer i to anchor layer j:

    Y     <- H_B,j + tanh(a) attention(norm(H_B,j), norm(H_A,i))
    H_B,j <- Y     + tanh(b) feed_forward(norm(Y))

The gates a and b are single numbers that start at zero, so training starts from the unchanged
anchor, as it does in CALM's cross-attention by other means (there the output matrix is zero).

Where this differs from its sources:

- Keys are the augmenting model's states of the same text, token by token and causal. In Flamingo
  they come from pictures, through a resampler.
- Nearer states are preferred: each head subtracts its own slope times the distance (ALiBi,
  https://arxiv.org/abs/2108.12409, section 3). By content alone a small model cannot ask for the
  state at its own place. `distances=False` leaves it out, as the sources do.
- Zipper joins both ways and puts a projection behind each model's input embeddings; here the
  augmenting model reads nothing of the anchor, and neither model's input is changed.
"""

from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from typing_extensions import override

from calm_lightning.backbone import Backbone
from calm_lightning.composed import Bridge, HiddenStateComposition, Memory, attention_weights
from calm_lightning.composed.bridge import distance_bias, distance_slopes
from calm_lightning.contracts import CalmError


class GatedCrossAttention(HiddenStateComposition):
    """Cross-attention and a feed-forward layer, each behind a gate that starts closed.

    Args:
        connections: (augmenting layer, anchor layer) pairs, counted from 0: one list for every
            augmenting model, or a list for each. Null: evenly spaced, as in the CALM paper.
        every: For evenly spaced wiring: one augmenting layer in this many is read.
        augmenting_sees: `full`, or `prompt` for the CALM paper's "as encoder" ablation.
        num_heads: Attention heads; null takes the anchor's own number. Must divide its width.
        feed_forward: Width of the feed-forward layer as a multiple of the anchor's; 0: none.
        distances: Prefer states that are near.

    Raises:
        CalmError: If a setting is out of range.
    """

    def __init__(
        self,
        connections: list[tuple[int, int]] | list[list[tuple[int, int]]] | None = None,
        every: int = 4,
        augmenting_sees: Literal["full", "prompt"] = "full",
        num_heads: int | None = None,
        feed_forward: int = 4,
        distances: bool = True,
    ) -> None:
        super().__init__(connections, every, augmenting_sees)
        if feed_forward < 0:
            raise CalmError(f"feed_forward={feed_forward} must not be negative; 0 means none.")
        self.num_heads = num_heads
        self.feed_forward = feed_forward
        self.distances = distances

    @override
    def make_bridge(self, anchor: Backbone, augmenting: Backbone) -> Bridge:
        num_heads = anchor.num_heads if self.num_heads is None else self.num_heads
        if num_heads < 1 or anchor.width % num_heads:
            raise CalmError(f"num_heads={num_heads} must divide the anchor's width {anchor.width}.")
        return GatedBridge(
            anchor.width, augmenting.width, num_heads, self.feed_forward, self.distances
        )


class GatedBridge(Bridge):
    """The block above, for one connection.

    Args:
        anchor_width: D_B.
        augmenting_width: D_A.
        num_heads: Must divide `anchor_width`.
        feed_forward: See `GatedCrossAttention`.
        distances: See `GatedCrossAttention`.
    """

    slopes: Tensor

    def __init__(
        self,
        anchor_width: int,
        augmenting_width: int,
        num_heads: int,
        feed_forward: int,
        distances: bool,
    ) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.query_norm = nn.LayerNorm(anchor_width)
        self.state_norm = nn.LayerNorm(augmenting_width)
        self.query = nn.Linear(anchor_width, anchor_width, bias=False)
        self.key = nn.Linear(augmenting_width, anchor_width, bias=False)
        self.value = nn.Linear(augmenting_width, anchor_width, bias=False)
        self.out = nn.Linear(anchor_width, anchor_width, bias=False)
        self.attention_gate = nn.Parameter(torch.zeros(1))
        self.feed_forward: nn.Sequential | None = None
        if feed_forward:
            inner = feed_forward * anchor_width
            self.feed_forward = nn.Sequential(
                nn.LayerNorm(anchor_width),
                nn.Linear(anchor_width, inner, bias=False),
                nn.GELU(),
                nn.Linear(inner, anchor_width, bias=False),
            )
            self.feed_forward_gate = nn.Parameter(torch.zeros(1))
        self.register_buffer("slopes", distance_slopes(num_heads, distances), persistent=False)

    @override
    def remember(
        self,
        augmenting_states: Float[Tensor, "batch augmenting_seq augmenting_width"],
        positions: Int[Tensor, "batch augmenting_seq"],
    ) -> Memory:
        states = self.state_norm(augmenting_states)
        key, value = self._split_heads(self.key(states)), self._split_heads(self.value(states))
        return key, value, positions[..., None]

    @override
    def forward(
        self,
        anchor_states: Float[Tensor, "batch anchor_seq anchor_width"],
        memory: Memory,
        visible: Bool[Tensor, "batch anchor_seq augmenting_seq"],
        positions: Int[Tensor, "batch anchor_seq"],
    ) -> Float[Tensor, "batch anchor_seq anchor_width"]:
        key, value, places = memory
        query, bias = self._asked(anchor_states, places, visible, positions)
        read = scaled_dot_product_attention(query, key, value, attn_mask=bias)
        added = self.attention_gate.tanh() * self.out(read.transpose(1, 2).flatten(2))
        if self.feed_forward is None:
            return added
        gate = self.feed_forward_gate.tanh()
        return added + gate * self.feed_forward(anchor_states + added)

    @override
    def attention(
        self,
        anchor_states: Float[Tensor, "batch anchor_seq anchor_width"],
        memory: Memory,
        visible: Bool[Tensor, "batch anchor_seq augmenting_seq"],
        positions: Int[Tensor, "batch anchor_seq"],
    ) -> Float[Tensor, "batch heads anchor_seq augmenting_seq"]:
        key, _, places = memory
        query, bias = self._asked(anchor_states, places, visible, positions)
        return attention_weights(query, key, bias)

    def _asked(
        self, anchor_states: Tensor, places: Tensor, visible: Tensor, positions: Tensor
    ) -> tuple[Tensor, Tensor]:
        """The queries, and what is added to their scores: distances, and minus infinity."""
        query = self._split_heads(self.query(self.query_norm(anchor_states)))
        return query, distance_bias(self.slopes, positions, places, visible).to(query.dtype)

    def _split_heads(
        self, x: Float[Tensor, "batch seq width"]
    ) -> Float[Tensor, "batch heads seq head_width"]:
        return x.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
