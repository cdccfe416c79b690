"""Activation checkpointing of frozen layers: less memory in training, for a second pass."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

from torch import nn
from torch.utils.checkpoint import checkpoint


@contextmanager
def recomputed(layers: Iterable[nn.Module]) -> Iterator[None]:
    """While it is active, layers keep only what they are given, and run again for the gradient.

    `Training Deep Nets with Sublinear Memory Cost <https://arxiv.org/abs/1604.06174>`_, by torch's
    own `checkpoint`. What forward hooks add to a layer's output lies outside and is not computed
    again, so a hook need not know. (transformers' own switch acts on modules in training mode,
    which frozen ones never are.)

    Args:
        layers: They must draw nothing at random: frozen ones, whose dropout is off.
    """
    before: list[tuple[nn.Module, Any]] = []
    for layer in layers:
        before.append((layer, layer.__dict__.get("forward")))  # of libraries that offload weights
        again = partial(checkpoint, layer.forward, use_reentrant=False, preserve_rng_state=False)
        layer.forward = again
    try:
        yield
    finally:
        for layer, own in before:
            if own is None:
                del layer.forward
            else:
                layer.forward = own
