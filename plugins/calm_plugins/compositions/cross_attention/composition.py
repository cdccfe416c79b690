"""Composition by cross-attention: the anchor's states ask, the augmenting model's answer.

This is the layer of `LLM Augmented LLMs <https://arxiv.org/abs/2401.02412>`_, section 3.1, for one
connection from augmenting layer i (width D_A) to anchor layer j (width D_B):

    f_proj : D_A -> D_B, linear
    Q = H_B W_Q     K = f_proj(H_A) W_K     V = f_proj(H_A) W_V
    H_B,j <- H_B,j + softmax(Q K^T / sqrt(D_B / N_H)) V W_O

Where this differs from the paper, which leaves all of it open:

- Causal. An anchor position reads augmenting positions at or before its own, and no padding.
- W_O starts at zero, so that training starts from the unchanged anchor.
- Rotary positions turn queries and keys (`positions="rotary"`). By content alone a small model
  cannot ask for the state at its own place; `positions="none"` is the literal formula.
- `normalize=True` puts an RMS norm on the anchor's states before W_Q and on the projected states
  before W_K and W_V; off by default.
- No biases, except in f_proj: a bias on keys has no effect through the softmax.
"""

from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn.functional import dropout, scaled_dot_product_attention
from typing_extensions import override

from calm_lightning.backbone import Backbone
from calm_lightning.composed import Bridge, HiddenStateComposition, Memory
from calm_lightning.contracts import CalmError

Positions = Literal["rotary", "none"]


class CrossAttention(HiddenStateComposition):
    """The composition of the CALM paper.

    Args:
        connections: (augmenting layer, anchor layer) pairs, counted from 0: one list for every
            augmenting model, or a list for each. Null: evenly spaced as in the paper.
        every: For evenly spaced wiring: one augmenting layer in this many is read (paper: 4).
        augmenting_sees: `full`, or `prompt` for the paper's "as encoder" ablation.
        num_heads: Attention heads; null takes the anchor's own number. Must divide its width.
        positions: `rotary` (default) or `none` (the paper's formula as written).
        normalize: RMS-normalise anchor states before the queries and projected states before keys
            and values.
        state_dropout: Share of the augmenting states' entries dropped in training.
    """

    def __init__(
        self,
        connections: list[tuple[int, int]] | list[list[tuple[int, int]]] | None = None,
        every: int = 4,
        augmenting_sees: Literal["full", "prompt"] = "full",
        num_heads: int | None = None,
        positions: Positions = "rotary",
        normalize: bool = False,
        state_dropout: float = 0.0,
    ) -> None:
        super().__init__(connections, every, augmenting_sees)
        if not 0.0 <= state_dropout < 1.0:
            raise CalmError(f"state_dropout={state_dropout} must be at least 0 and below 1.")
        self.num_heads = num_heads
        self.positions: Positions = positions
        self.normalize = normalize
        self.state_dropout = state_dropout

    @override
    def make_bridge(self, anchor: Backbone, augmenting: Backbone) -> Bridge:
        return CrossAttentionBridge(
            anchor.width,
            augmenting.width,
            self.num_heads or anchor.num_heads,
            self.positions,
            self.normalize,
            self.state_dropout,
        )


class CrossAttentionBridge(Bridge):
    """The layer above, for one connection.

    Args:
        anchor_width: D_B.
        augmenting_width: D_A.
        num_heads: N_H. Must divide `anchor_width`.
        positions: `rotary` or `none`.
        normalize: See `CrossAttention`.
        state_dropout: See `CrossAttention`.

    Raises:
        CalmError: If the heads do not divide the width.
    """

    def __init__(
        self,
        anchor_width: int,
        augmenting_width: int,
        num_heads: int,
        positions: Positions = "rotary",
        normalize: bool = False,
        state_dropout: float = 0.0,
    ) -> None:
        super().__init__()
        if num_heads < 1 or anchor_width % num_heads:
            divisors = [n for n in range(1, min(anchor_width, 128) + 1) if anchor_width % n == 0]
            raise CalmError(
                f"num_heads={num_heads} must divide the anchor's width {anchor_width}; "
                f"possible are {', '.join(map(str, divisors))}."
            )
        if positions == "rotary" and (anchor_width // num_heads) % 2:
            raise CalmError(
                f"positions=rotary needs heads of even width, but {anchor_width} / {num_heads} = "
                f"{anchor_width // num_heads}. Choose another num_heads, or positions=none."
            )
        self.num_heads = num_heads
        self.rotary = positions == "rotary"
        self.state_dropout = state_dropout
        self.project = nn.Linear(augmenting_width, anchor_width)
        self.query = nn.Linear(anchor_width, anchor_width, bias=False)
        self.key = nn.Linear(anchor_width, anchor_width, bias=False)
        self.value = nn.Linear(anchor_width, anchor_width, bias=False)
        self.out = nn.Linear(anchor_width, anchor_width, bias=False)
        self.query_norm = nn.RMSNorm(anchor_width) if normalize else nn.Identity()
        self.state_norm = nn.RMSNorm(anchor_width) if normalize else nn.Identity()
        nn.init.zeros_(self.out.weight)

    @override
    def remember(
        self,
        augmenting_states: Float[Tensor, "batch augmenting_seq augmenting_width"],
        positions: Int[Tensor, "batch augmenting_seq"],
    ) -> Memory:
        states = dropout(augmenting_states, self.state_dropout, self.training)
        projected = self.state_norm(self.project(states))
        key = self._split_heads(self.key(projected))
        if self.rotary:
            key = rotate(key, positions)
        return key, self._split_heads(self.value(projected))

    @override
    def forward(
        self,
        anchor_states: Float[Tensor, "batch anchor_seq anchor_width"],
        memory: Memory,
        visible: Bool[Tensor, "batch anchor_seq augmenting_seq"],
        positions: Int[Tensor, "batch anchor_seq"],
    ) -> Float[Tensor, "batch anchor_seq anchor_width"]:
        key, value = memory
        query = self._split_heads(self.query(self.query_norm(anchor_states)))
        if self.rotary:
            query = rotate(query, positions)
        read = scaled_dot_product_attention(query, key, value, attn_mask=visible[:, None])
        return self.out(read.transpose(1, 2).flatten(2))

    def _split_heads(
        self, x: Float[Tensor, "batch seq width"]
    ) -> Float[Tensor, "batch heads seq head_width"]:
        return x.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)


def rotate(
    x: Float[Tensor, "batch heads seq head_width"],
    positions: Int[Tensor, "batch seq"],
    base: float = 10_000.0,
) -> Float[Tensor, "batch heads seq head_width"]:
    """Rotary position embedding (`RoFormer <https://arxiv.org/abs/2104.09864>`_, section 3.2.2).

    Entries k and k + half of a head turn together, as in Llama.
    """
    half = x.shape[-1] // 2
    frequencies = base ** (-torch.arange(half, device=x.device, dtype=torch.float32) / half)
    angles = positions[:, None, :, None].float() * frequencies
    cos, sin = angles.cos().to(x.dtype), angles.sin().to(x.dtype)
    first, second = x[..., :half], x[..., half:]
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)
