"""Rotary position embedding, `RoFormer <https://arxiv.org/abs/2104.09864>`_, section 3.2.2."""

import weakref
from typing import Any, NamedTuple, cast

import torch
from jaxtyping import Float, Int
from torch import Tensor
from typing_extensions import override


def rotate(
    x: Float[Tensor, "batch heads seq head_width"],
    positions: Int[Tensor, "batch seq"],
    base: float = 10_000.0,
) -> Float[Tensor, "batch heads seq head_width"]:
    """Queries or keys, turned by their positions.

    Entries k and k + half of a head turn together, as in Llama.
    """
    cos, sin = _turns(positions, x.shape[-1] // 2, base, x.dtype)
    if torch.compiler.is_compiling():
        return x * cos + x.roll(x.shape[-1] // 2, -1) * sin
    if x.requires_grad and torch.is_grad_enabled():
        return cast(Tensor, _Turn.apply(x, cos, sin, 1))
    return _turned(x, cos, sin, 1)


class _Turn(torch.autograd.Function):
    """The same with a gradient, which is turned back in one go.

    Left to itself autograd would turn its parts, and add them up.
    """

    @staticmethod
    @override
    def forward(ctx: Any, x: Tensor, cos: Tensor, sin: Tensor, sense: int) -> Tensor:
        ctx.save_for_backward(cos, sin)
        ctx.sense = sense
        return _turned(x, cos, sin, sense)

    @staticmethod
    @override
    def backward(ctx: Any, *gradients: Any) -> Any:
        return _Turn.apply(gradients[0], *ctx.saved_tensors, -ctx.sense), None, None, None


def _turned(x: Tensor, cos: Tensor, sin: Tensor, sense: int) -> Tensor:
    """`x * cos + x.roll(half, -1) * sin` in fewer passes over memory; -1 turns back."""
    turned = x * cos
    first, second = x.chunk(2, -1)
    for part, beside, by in zip(
        turned.chunk(2, -1), (second, first), sin.chunk(2, -1), strict=True
    ):
        part.addcmul_(beside, by, value=sense)
    return turned


class _Turns(NamedTuple):
    """Cosines and signed sines of one tensor of positions."""

    positions: "weakref.ref[Tensor]"
    version: int
    cos: Float[Tensor, "batch 1 seq head_width"]
    sin: Float[Tensor, "batch 1 seq head_width"]


# All bridges of a forward pass are given the same positions, once for queries and once for keys.
_last: dict[tuple[int, float, torch.dtype], _Turns] = {}


def _turns(
    positions: Int[Tensor, "batch seq"], half: int, base: float, dtype: torch.dtype
) -> tuple[Float[Tensor, "batch 1 seq head_width"], Float[Tensor, "batch 1 seq head_width"]]:
    if torch.compiler.is_compiling():
        return _compute(positions, half, base, dtype)
    version = 0 if positions.is_inference() else positions._version
    known = _last.get((half, base, dtype))
    if known is None or known.positions() is not positions or known.version != version:
        key = half, base, dtype
        own = weakref.ref(positions, lambda gone: _forget(key, gone))
        known = _last[key] = _Turns(own, version, *_compute(positions, half, base, dtype))
    return known.cos, known.sin


def _forget(key: tuple[int, float, torch.dtype], gone: "weakref.ref[Tensor]") -> None:
    """Hold nothing for positions that are not there any more."""
    if key in _last and _last[key].positions is gone:
        del _last[key]


def _compute(
    positions: Tensor, half: int, base: float, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    frequencies = base ** (-torch.arange(half, device=positions.device, dtype=torch.float32) / half)
    angles = positions[:, None, :, None].float() * frequencies
    cos, sin = angles.cos(), angles.sin()
    return torch.cat([cos, cos], -1).to(dtype), torch.cat([-sin, sin], -1).to(dtype)
