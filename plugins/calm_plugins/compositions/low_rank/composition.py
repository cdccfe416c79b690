"""Composition by cross-attention in a few dimensions: an order of magnitude fewer weights.

The layer of `LLM Augmented LLMs <https://arxiv.org/abs/2401.02412>`_ (section 3.1) has
D_A D_B + 4 D_B^2 weights. Here queries, keys and values have r dimensions in all rather than D_B:

    Q = H_B W_Q (D_B x r)     K = H_A W_K (D_A x r)     V = H_A W_V (D_A x r)
    H_B,j <- H_B,j + softmax(Q K^T / sqrt(r / N_H)) V W_O (r x D_B)

that is 2 r (D_A + D_B) weights. The maps that matter, W_Q W_K^T and W_V W_O, are those of the
whole layer with at most rank r, as `LoRA <https://arxiv.org/abs/2106.09685>`_ (section 4.1) writes
its updates, and as there the last factor starts at zero. With few weights and little composition
data there is also less room to learn the examples by heart.

Where this differs from the paper, beside the rank:

- There is no f_proj: it would be one more factor of maps that are factored already.
- Nearer states are preferred: each head subtracts its own slope times the distance (ALiBi,
  https://arxiv.org/abs/2108.12409, section 3), which works in heads of any width.
  `distances=False` leaves it out.
- Causal, as every composition here.
"""

from typing import Literal

from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from typing_extensions import override

from calm_lightning.backbone import Backbone
from calm_lightning.composed import Bridge, HiddenStateComposition, Memory, attention_weights
from calm_lightning.composed.bridge import distance_bias, distance_slopes
from calm_lightning.contracts import CalmError


class LowRankCrossAttention(HiddenStateComposition):
    """Cross-attention whose heads share a few dimensions.

    Args:
        connections: (augmenting layer, anchor layer) pairs, counted from 0: one list for every
            augmenting model, or a list for each. Null: evenly spaced, as in the paper.
        every: For evenly spaced wiring: one augmenting layer in this many is read.
        augmenting_sees: `full`, or `prompt` for the paper's "as encoder" ablation.
        rank: Dimensions of queries, keys and values in all; null: a sixteenth of the anchor's
            width, rounded up to whole heads.
        num_heads: Attention heads. Must divide the rank.
        distances: Prefer states that are near.

    Raises:
        CalmError: If a setting is out of range, or the heads do not divide the rank.
    """

    def __init__(
        self,
        connections: list[tuple[int, int]] | list[list[tuple[int, int]]] | None = None,
        every: int = 4,
        augmenting_sees: Literal["full", "prompt"] = "full",
        rank: int | None = None,
        num_heads: int = 4,
        distances: bool = True,
    ) -> None:
        super().__init__(connections, every, augmenting_sees)
        if num_heads < 1:
            raise CalmError(f"num_heads={num_heads} must be at least 1.")
        if rank is not None and (rank < 1 or rank % num_heads):
            raise CalmError(
                f"rank={rank} must be a multiple of num_heads={num_heads}: the heads share it."
            )
        self.rank = rank
        self.num_heads = num_heads
        self.distances = distances

    @override
    def make_bridge(self, anchor: Backbone, augmenting: Backbone) -> Bridge:
        rank = self.rank or self.num_heads * -(-anchor.width // (16 * self.num_heads))
        return LowRankBridge(anchor.width, augmenting.width, rank, self.num_heads, self.distances)


class LowRankBridge(Bridge):
    """The layer above, for one connection.

    Args:
        anchor_width: D_B.
        augmenting_width: D_A.
        rank: r. A multiple of `num_heads`.
        num_heads: N_H.
        distances: See `LowRankCrossAttention`.
    """

    slopes: Tensor

    def __init__(
        self, anchor_width: int, augmenting_width: int, rank: int, num_heads: int, distances: bool
    ) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.query = nn.Linear(anchor_width, rank, bias=False)
        self.key = nn.Linear(augmenting_width, rank, bias=False)
        self.value = nn.Linear(augmenting_width, rank, bias=False)
        self.out = nn.Linear(rank, anchor_width, bias=False)
        nn.init.zeros_(self.out.weight)
        self.register_buffer("slopes", distance_slopes(num_heads, distances), persistent=False)

    @override
    def remember(
        self,
        augmenting_states: Float[Tensor, "batch augmenting_seq augmenting_width"],
        positions: Int[Tensor, "batch augmenting_seq"],
    ) -> Memory:
        key, value = self.key(augmenting_states), self.value(augmenting_states)
        return self._split_heads(key), self._split_heads(value), positions[..., None]

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
        return self.out(read.transpose(1, 2).flatten(2))

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
        query = self._split_heads(self.query(anchor_states))
        return query, distance_bias(self.slopes, positions, places, visible).to(query.dtype)

    def _split_heads(
        self, x: Float[Tensor, "batch seq rank"]
    ) -> Float[Tensor, "batch heads seq head_width"]:
        return x.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
