"""What a computation takes, memory and arithmetic, found by running it on tensors without data.

PyTorch's fake tensors have a shape, a dtype and a device, and nothing in them. Code that runs on
them makes the same tensors as ever and keeps them as long as ever, so their sizes can be added up.
Nothing is guessed from the architecture: whatever a model, a bridge or an optimizer does is counted
because it is done. What a kernel needs inside itself is not seen.
"""

import weakref
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakTensorKeyDictionary
from typing_extensions import override

from calm_lightning.estimate.heap import Heap
from calm_lightning.flops import FLOPS

aten = torch.ops.aten


def without_data() -> AbstractContextManager[Any]:
    """While it is active, every new tensor has a shape and no data."""
    return FakeTensorMode()


def strip(module: nn.Module) -> None:
    """Replace a module's tensors, on the meta device say, by tensors without data on a processor.

    On the meta device PyTorch would take other kernels, and no mixed precision.
    """
    made: dict[int, Tensor] = {}  # weights that are tied stay so

    def without(old: Tensor) -> Tensor:
        new = torch.empty_strided(old.shape, old.stride(), dtype=old.dtype)
        return nn.Parameter(new, old.requires_grad) if isinstance(old, nn.Parameter) else new

    for owner in module.modules():
        named = [*owner._parameters.items(), *owner._buffers.items(), *vars(owner).items()]
        for name, old in named:
            if isinstance(old, Tensor):
                setattr(owner, name, made.setdefault(id(old), without(old)))


class Trace(TorchDispatchMode):
    """Adds up what is computed while it is active, inside `without_data`.

    How many rows a mask selects is the only value that our models' shapes depend on. No tensor
    holds it here, so it is given.

    Args:
        selected: For the shape of a mask, how many of its places are True.
        all_true: What is said when it is asked whether something holds of a whole mask (`know`):
            that rows are padded on the right alone, say.

    Attributes:
        live: Bytes of all tensors that exist now.
        peak: The largest that `live` has been since `restart`.
        flops: Floating-point operations since `restart`, as in `calm_lightning.flops`.
        heap: Where a processor's `malloc` would have put the tensors that were made here.
        any_number: What a tensor's value is said to be when it is asked for; None refuses. An
            optimizer asks for its step count.
    """

    def __init__(
        self, selected: dict[tuple[int, ...], int] | None = None, all_true: bool = False
    ) -> None:
        super().__init__()
        self.selected = selected or {}
        self.all_true = all_true
        self._known = WeakTensorKeyDictionary()  # masks, and what was made of nothing else
        self.live = self.peak = self.flops = 0
        self.heap = Heap()
        self.any_number: float | None = None
        self._storages: dict[int, weakref.ref[Any]] = {}
        self._made: dict[int, tuple[int, int]] = {}  # storage -> last axis, bytes

    def hold(self, tensors: Iterable[Tensor]) -> None:
        """Count tensors that existed before."""
        for tensor in tensors:
            self._count(tensor, made_here=False)

    def know(self, mask: Tensor) -> None:
        """Let questions about a mask be answered by `all_true`."""
        self._known[mask] = True

    def made(self, last_axis: int) -> int:
        """Bytes of the tensors that were made here, still exist and are so wide."""
        return sum(size for width, size in self._made.values() if width == last_axis)

    def restart(self) -> None:
        """Forget peak and operations so far."""
        self.peak, self.flops = self.live, 0

    @override
    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        out = self._answer(func, args)
        if out is None:
            out = func(*args, **(kwargs or {}))
        if (formula := FLOPS.get(func._overloadpacket)) is not None:
            self.flops += formula(*args, **(kwargs or {}), out_val=out)
        given = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        known = bool(given) and all(tensor in self._known for tensor in given)
        for leaf in tree_leaves(out):
            if isinstance(leaf, Tensor):
                self._count(leaf, made_here=True)
                if known:
                    self.know(leaf)
        return out

    def _answer(self, func: Any, args: tuple[Any, ...]) -> Any:
        """What an operation gives whose result depends on values; None for all others."""
        if func is aten._local_scalar_dense.default:
            return self.all_true if args[0] in self._known else self.any_number
        if func is aten.index.Tensor and len(args[1]) == 1:
            (mask,) = args[1]
            if mask.dtype == torch.bool and tuple(mask.shape) in self.selected:
                rows = self.selected[tuple(mask.shape)]
                return args[0].new_empty((rows, *args[0].shape[mask.dim() :]))
        return None

    def _count(self, tensor: Tensor, made_here: bool) -> None:
        storage = tensor.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        if key in self._storages:
            return

        free = self.heap.take(size) if made_here else None

        # The storage's Python object lives as long as the storage does.
        gone = partial(self._gone, key, size, free)
        self._storages[key] = weakref.ref(storage, gone)
        if made_here and tensor.dim():
            self._made[key] = (tensor.shape[-1], size)
        self.live += size
        self.peak = max(self.peak, self.live)

    def _gone(self, key: int, size: int, free: Callable[[], None] | None, _: Any) -> None:
        del self._storages[key]
        self._made.pop(key, None)
        self.live -= size
        if free is not None:
            free()


def size_of(tensors: Iterable[Tensor]) -> int:
    """Bytes of tensors; memory that they share is counted once."""
    storages = {each.untyped_storage()._cdata: each.untyped_storage() for each in tensors}
    return sum(storage.nbytes() for storage in storages.values())
