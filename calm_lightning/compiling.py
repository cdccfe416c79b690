"""What torch compiles: layers of the backbones for training, and a step of generation."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
import torch._functorch.config
import torch._inductor.config
from torch import Tensor, nn
from torch._dynamo.exc import BackendCompilerFailed

from calm_lightning.backbone import Backbone
from calm_lightning.contracts import CalmError

_VARIANTS = 64
"""Of all layers' code that are compiled, for transformers runs them all through one function: kinds
of layers, with a mask and without, with a gradient and without. Beyond torch's own limit of 8 it
would go on uncompiled."""


@contextmanager
def forwards_replaced(
    layers: Iterable[nn.Module], by: Callable[[nn.Module], Callable[..., Any]]
) -> Iterator[None]:
    """While it is active, layers compute by other functions; hooks on them are called as ever.

    Args:
        layers: They.
        by: What takes the place of a layer's `forward`.
    """
    before: list[tuple[nn.Module, Any]] = []
    try:
        for layer in layers:
            other = by(layer)
            before.append((layer, layer.__dict__.get("forward")))  # of libraries that offload
            layer.forward = other
        yield
    finally:
        for layer, own in before:
            if own is None:
                del layer.forward
            else:
                layer.forward = own


class CompiledLayers:
    """The layers of some models, of which compiled versions can take the place.

    One layer is compiled at a time, without the hooks on it, by which states are read and added:
    what is compiled is small and alike for all layers of a kind. What torch makes of it is another
    order of the same float operations, so losses stay the same but for rounding; what is drawn at
    random is drawn as ever.

    Args:
        backbones: The models.
        backend: Of `torch.compile`.
    """

    def __init__(
        self, backbones: Iterable[Backbone], backend: str | Callable[..., Any] = "inductor"
    ) -> None:
        self._backend = backend
        self._layers = list(dict.fromkeys(layer for b in backbones for layer in b.layers))
        self._compiled: dict[nn.Module, Callable[..., Any]] = {}

    @contextmanager
    def at_work(self) -> Iterator[None]:
        """While it is active they take the place of the layers.

        Meant for training: there must be no caches. Only one such context may be active at a time.

        Raises:
            CalmError: If there is no compiler, or it fails.
        """
        with (
            _failures_told("model.compile"),
            torch._dynamo.config.patch(recompile_limit=_VARIANTS),
            torch._inductor.config.patch(fallback_random=True),
            # With the forward pass, so that what fails is told here.
            torch._functorch.config.patch(force_non_lazy_backward_lowering=True),
            forwards_replaced(self._layers, self._of),
        ):
            yield

    def _of(self, layer: nn.Module) -> Callable[..., Any]:
        if layer not in self._compiled:
            # For any length at once: what a length is compiled to must not depend on which came
            # first, or a run that goes on where it was stopped would be another one.
            self._compiled[layer] = torch.compile(
                layer.forward, dynamic=True, backend=self._backend
            )
        return self._compiled[layer]


class CompiledStep:
    """A step of generation, compiled.

    Args:
        step: What is compiled.
        options: Of `torch.compile`.
        asked_by: What asked for it, for messages.
    """

    def __init__(
        self, step: Callable[..., Tensor], options: Mapping[str, Any], asked_by: str
    ) -> None:
        self._compiled = torch.compile(step, **options)
        self._asked_by = asked_by

    def __call__(self, *args: Any) -> Tensor:
        """What the step gives.

        Raises:
            CalmError: If there is no compiler, or it fails.
        """
        with (
            _failures_told(self._asked_by),
            # A hook that somebody puts on a layer must be heard, even if that takes some looking.
            torch._dynamo.config.patch(recompile_limit=_VARIANTS, skip_nnmodule_hook_guards=False),
        ):
            return self._compiled(*args)


@contextmanager
def _failures_told(option: str) -> Iterator[None]:
    """What a compiler cannot do is told in a sentence."""
    try:
        yield
    except BackendCompilerFailed as error:
        cause = error.inner_exception
        reason = f"{type(cause).__name__}: {cause}".splitlines()[0].rstrip(".")
        raise CalmError(
            f"{option}: torch.compile failed ({reason}). It needs a C++ compiler (g++ or clang++) "
            f"on a processor, Triton on a GPU. Install that, or leave {option} out."
        ) from error
