"""Counting arithmetic: what a computation takes whatever machine it runs on."""

from collections.abc import Callable
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry
from typing_extensions import override

aten = torch.ops.aten

FLOPS: dict[Any, Callable[..., int]] = {
    **flop_registry,
    # PyTorch has the formulas of the kernels for GPUs only; the arguments are the same.
    aten._scaled_dot_product_flash_attention_for_cpu: flop_registry[
        aten._scaled_dot_product_flash_attention
    ],
    aten._scaled_dot_product_flash_attention_for_cpu_backward: flop_registry[
        aten._scaled_dot_product_flash_attention_backward
    ],
}
"""Operator -> floating-point operations of one call, by its arguments.

Matrix products and attention; a multiplication and an addition are two, and causal attention is
counted in full.
"""


class CountFlops(TorchDispatchMode):
    """Adds up the floating-point operations of what is computed while it is active.

    PyTorch's own counter is not used because it does not know attention on a processor.

    Attributes:
        flops: So far.
    """

    def __init__(self) -> None:
        super().__init__()
        self.flops = 0

    @override
    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        if (formula := FLOPS.get(func._overloadpacket)) is not None:
            self.flops += formula(*args, **(kwargs or {}), out_val=out)
        return out
