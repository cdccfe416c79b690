"""Activation checkpointing of frozen layers: less memory in training, for a second pass."""

from collections.abc import Iterable
from contextlib import AbstractContextManager
from functools import partial

from torch import nn
from torch.utils.checkpoint import checkpoint

from calm_lightning.compiling import forwards_replaced


def recomputed(layers: Iterable[nn.Module]) -> AbstractContextManager[None]:
    """While it is active, layers keep only what they are given, and run again for the gradient.

    `Training Deep Nets with Sublinear Memory Cost <https://arxiv.org/abs/1604.06174>`_, by torch's
    own `checkpoint`. What forward hooks add to a layer's output lies outside and is not computed
    again, so a hook need not know. (transformers' own switch acts on modules in training mode,
    which frozen ones never are.)

    Args:
        layers: They must draw nothing at random: frozen ones, whose dropout is off.
    """

    def again(layer: nn.Module) -> partial[object]:
        return partial(checkpoint, layer.forward, use_reentrant=False, preserve_rng_state=False)

    return forwards_replaced(layers, again)
