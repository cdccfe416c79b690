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
- `same_place` starts every head with a preference for the state at its own place: a learned vector
  is added to queries and keys before they are turned. Off by default.
- `normalize=True` puts an RMS norm on the anchor's states before W_Q and on the projected states
  before W_K and W_V; off by default.
- `relative=True` multiplies what is added by the root mean square of the anchor's state, whose size
  may grow a hundredfold through the layers, so that one learning rate suits all of them; off by
  default.
- `state_noise` disturbs the augmenting states in training; off by default.
- No biases, except in f_proj: a bias on keys has no effect through the softmax.
"""

from typing import Literal, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn.functional import linear, scaled_dot_product_attention
from typing_extensions import override

from calm_lightning.backbone import Backbone
from calm_lightning.composed import Bridge, HiddenStateComposition, Memory, attention_weights
from calm_lightning.contracts import CalmError
from calm_plugins.compositions.cross_attention.rotary import rotate

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
        rotary_base: Of the rotary positions; a small base tells near positions apart sharply.
        same_place: How much more, in nats, a fresh query prefers a state at its own place to one
            far away. Needs rotary positions.
        normalize: RMS-normalise anchor states before the queries and projected states before keys
            and values.
        relative: Scale what is added by the root mean square of the anchor's state.
        state_noise: Gaussian noise on the augmenting states in training, as a share of their root
            mean square.

    Raises:
        CalmError: If a setting is out of range.
    """

    training_only = ("state_noise",)

    def __init__(
        self,
        connections: list[tuple[int, int]] | list[list[tuple[int, int]]] | None = None,
        every: int = 4,
        augmenting_sees: Literal["full", "prompt"] = "full",
        num_heads: int | None = None,
        positions: Positions = "rotary",
        rotary_base: float = 10_000.0,
        same_place: float = 0.0,
        normalize: bool = False,
        relative: bool = False,
        state_noise: float = 0.0,
    ) -> None:
        super().__init__(connections, every, augmenting_sees)
        for name, value in (("same_place", same_place), ("state_noise", state_noise)):
            if value < 0:
                raise CalmError(f"{name}={value} must not be negative.")
        if rotary_base <= 1:
            raise CalmError(f"rotary_base={rotary_base} must be above 1.")
        if same_place and positions != "rotary":
            raise CalmError(
                f"same_place={same_place} needs positions=rotary: without positions no state has "
                "a place."
            )
        self.num_heads = num_heads
        self.positions: Positions = positions
        self.rotary_base = rotary_base
        self.same_place = same_place
        self.normalize = normalize
        self.relative = relative
        self.state_noise = state_noise

    @override
    def make_bridge(self, anchor: Backbone, augmenting: Backbone) -> Bridge:
        return CrossAttentionBridge(
            anchor.width,
            augmenting.width,
            anchor.num_heads if self.num_heads is None else self.num_heads,
            self.positions,
            self.rotary_base,
            self.same_place,
            self.normalize,
            self.relative,
            self.state_noise,
        )


class _Merged(NamedTuple):
    """A bridge's maps from states to keys and values, as one."""

    made_of: tuple[tuple[int, int], ...]
    weight: Float[Tensor, "both augmenting_width"]
    bias: Float[Tensor, " both"]


class CrossAttentionBridge(Bridge):
    """The layer above, for one connection.

    In eval mode the two maps from states to keys and values are kept as one, until a weight changes
    as an optimizer or a state dict changes it. What is written past that, into `weight.data`, does
    not show: call `eval()` again then.

    Args:
        anchor_width: D_B.
        augmenting_width: D_A.
        num_heads: N_H. Must divide `anchor_width`.
        positions: `rotary` or `none`.
        rotary_base: See `CrossAttention`, as for all that follow.
        same_place: In nats.
        normalize: Whether to normalise.
        relative: Whether to scale.
        state_noise: A share.

    Raises:
        CalmError: If the heads do not divide the width.
    """

    takes_causal = True

    def __init__(
        self,
        anchor_width: int,
        augmenting_width: int,
        num_heads: int,
        positions: Positions = "rotary",
        rotary_base: float = 10_000.0,
        same_place: float = 0.0,
        normalize: bool = False,
        relative: bool = False,
        state_noise: float = 0.0,
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
        self.rotary_base = rotary_base
        self.relative = relative
        self.state_noise = state_noise
        self.project = nn.Linear(augmenting_width, anchor_width)
        self.query = nn.Linear(anchor_width, anchor_width, bias=False)
        self.key = nn.Linear(anchor_width, anchor_width, bias=False)
        self.value = nn.Linear(anchor_width, anchor_width, bias=False)
        self.out = nn.Linear(anchor_width, anchor_width, bias=False)
        self.query_norm = nn.RMSNorm(anchor_width) if normalize else nn.Identity()
        self.state_norm = nn.RMSNorm(anchor_width) if normalize else nn.Identity()
        nn.init.zeros_(self.out.weight)
        self._merged: _Merged | None = None
        self.query_place = self.key_place = None
        if same_place:
            start = _place(anchor_width // num_heads, same_place)
            self.query_place = nn.Parameter(start.repeat(num_heads, 1, 1))
            self.key_place = nn.Parameter(start.repeat(num_heads, 1, 1))

    @override
    def remember(
        self,
        augmenting_states: Float[Tensor, "batch augmenting_seq augmenting_width"],
        positions: Int[Tensor, "batch augmenting_seq"],
    ) -> Memory:
        states = augmenting_states
        if self.training and self.state_noise:
            noise = self.state_noise * torch.randn_like(states)
            states = states + noise * root_mean_square(states)
        key, value = (self._split_heads(part) for part in self._keys_and_values(states))
        if self.key_place is not None:
            key = key + self.key_place
        if self.rotary:
            key = rotate(key, positions, self.rotary_base)
        return key, value

    @override
    def forward(
        self,
        anchor_states: Float[Tensor, "batch anchor_seq anchor_width"],
        memory: Memory,
        visible: Bool[Tensor, "batch anchor_seq augmenting_seq"] | None,
        positions: Int[Tensor, "batch anchor_seq"],
    ) -> Float[Tensor, "batch anchor_seq anchor_width"]:
        key, value = memory
        query = self._asked(anchor_states, positions)
        if visible is None:
            causal = query.shape[2] > 1  # a single new token reads all there is
            read = scaled_dot_product_attention(query, key, value, is_causal=causal)
        else:
            read = scaled_dot_product_attention(query, key, value, attn_mask=visible[:, None])
        added = self.out(read.transpose(1, 2).flatten(2))
        return added * root_mean_square(anchor_states) if self.relative else added

    @override
    def attention(
        self,
        anchor_states: Float[Tensor, "batch anchor_seq anchor_width"],
        memory: Memory,
        visible: Bool[Tensor, "batch anchor_seq augmenting_seq"],
        positions: Int[Tensor, "batch anchor_seq"],
    ) -> Float[Tensor, "batch heads anchor_seq augmenting_seq"]:
        return attention_weights(self._asked(anchor_states, positions), memory[0], visible[:, None])

    def _keys_and_values(
        self, states: Float[Tensor, "batch augmenting_seq augmenting_width"]
    ) -> tuple[
        Float[Tensor, "batch augmenting_seq anchor_width"],
        Float[Tensor, "batch augmenting_seq anchor_width"],
    ]:
        """Keys and values without positions.

        W_K f_proj and W_V f_proj are each made one map first, where nothing stands between them and
        that is less work: in generation, where the maps are kept, and with a gradient where states
        are many, for the states themselves want none and most of the way back falls away.
        """
        if not isinstance(self.state_norm, nn.Identity):
            projected = self.state_norm(self.project(states))
            return self.key(projected), self.value(projected)
        kept = type(self.project.weight.data) is Tensor  # parts of weights, and fakes, are not
        if kept and not (self.training or torch.is_grad_enabled()):
            merged = self._as_one()
            key, value = linear(states, merged.weight, merged.bias).chunk(2, -1)
            return key, value
        wide, narrow = self.key.in_features, self.project.in_features
        # Multiplications there and back, in units of 2 D_B
        saved, spent = states.shape[:-1].numel() * (3 * wide - narrow), 3 * wide * narrow
        if torch.is_grad_enabled() and saved > spent:
            return linear(states, *self._merge(self.key)), linear(states, *self._merge(self.value))
        projected = self.project(states)
        return self.key(projected), self.value(projected)

    def _as_one(self) -> _Merged:
        """Both maps, made one again if a weight has changed.

        A compiler does not look: what it compiles follows on a prompt that was read without it.
        """
        if torch.compiler.is_compiling() and self._merged is not None:
            return self._merged
        versions = self._versions()
        if self._merged is None or self._merged.made_of != versions:
            both = zip(self._merge(self.key), self._merge(self.value), strict=True)
            self._merged = _Merged(versions, *map(torch.cat, both))
        return self._merged

    def _merge(
        self, second: nn.Linear
    ) -> tuple[Float[Tensor, "anchor_width augmenting_width"], Float[Tensor, " anchor_width"]]:
        """W_K f_proj or W_V f_proj, and what it adds."""
        return second.weight @ self.project.weight, second.weight @ self.project.bias

    def _versions(self) -> tuple[tuple[int, int], ...]:
        """Another value whenever the weights that `_merge` reads have changed."""
        weights = self.project.weight, self.project.bias, self.key.weight, self.value.weight
        return tuple((w.data_ptr(), 0 if w.is_inference() else w._version) for w in weights)

    @override
    def train(self, mode: bool = True) -> "CrossAttentionBridge":
        # Where weights are spread over processes their versions do not tell.
        self._merged = None
        return super().train(mode)

    def _asked(
        self,
        anchor_states: Float[Tensor, "batch anchor_seq anchor_width"],
        positions: Int[Tensor, "batch anchor_seq"],
    ) -> Float[Tensor, "batch heads anchor_seq head_width"]:
        query = self._split_heads(self.query(self.query_norm(anchor_states)))
        if self.query_place is not None:
            query = query + self.query_place
        return rotate(query, positions, self.rotary_base) if self.rotary else query

    def _split_heads(
        self, x: Float[Tensor, "batch seq width"]
    ) -> Float[Tensor, "batch heads seq head_width"]:
        return x.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)


def root_mean_square(
    states: Float[Tensor, "batch seq width"],
) -> Float[Tensor, "batch seq 1"]:
    """The size of each state, without gradient."""
    return states.detach().pow(2).mean(-1, keepdim=True).sqrt()


def _place(head_width: int, nats: float) -> Float[Tensor, "1 head_width"]:
    """A vector whose product with itself, scaled as in attention, is `nats`.

    It lies in the faster half of the rotary pairs, so that the product falls off within a few
    positions when one of the two is turned further.
    """
    half = head_width // 2
    fast = torch.zeros(1, half)
    fast[:, : max(1, half // 2)] = 1.0
    vector = torch.cat([fast, fast], dim=-1)
    return vector * (nats * head_width**0.5 / vector.sum()) ** 0.5
