"""A composition with one augmenting model more, or one fewer; the others' bridges stay."""

import copy
from collections.abc import Sequence
from typing import TYPE_CHECKING, cast

from torch import nn

from calm_lightning.backbone import Backbone
from calm_lightning.composed.bridge import Bridge
from calm_lightning.composed.wiring import Connection, wire
from calm_lightning.contracts import CalmError

if TYPE_CHECKING:
    from calm_lightning.composed.model import ComposedModel


def with_another(
    model: "ComposedModel",
    backbone: Backbone,
    connections: Sequence[tuple[int, int]] | None = None,
) -> "ComposedModel":
    """See `ComposedModel.add_augmenting`."""
    composition = model.composition
    make_bridge = getattr(composition, "make_bridge", None)
    if make_bridge is None:
        raise CalmError(f"{type(composition).__name__} cannot make bridges for another model.")
    anchor, *augmenting = model.backbones
    common = getattr(composition, "connections", None)
    if connections is None and common and isinstance(common[0][0], int):
        connections = common
    wired = wire(anchor, [backbone], connections, getattr(composition, "every", 4))
    number = len(augmenting)
    added = [Connection(number, c.augmenting_layer, c.anchor_layer) for c in wired]
    model.bridges.requires_grad_(False)
    bridges = [*model.bridges, *(make_bridge(anchor, backbone) for _ in added)]
    return _again(model, [*augmenting, backbone], [*model.connections, *added], bridges)


def without_one(model: "ComposedModel", augmenting: int) -> "ComposedModel":
    """See `ComposedModel.remove_augmenting`."""
    if len(model.augmenting) == 1:
        raise CalmError("The only augmenting model cannot be removed; use the anchor alone.")
    kept = [i for i in range(len(model.augmenting)) if i != augmenting]
    pairs = [
        (Connection(kept.index(c.augmenting), c.augmenting_layer, c.anchor_layer), bridge)
        for c, bridge in zip(model.connections, model.bridges, strict=True)
        if c.augmenting != augmenting
    ]
    return _again(
        model, [model.backbones[1 + i] for i in kept], [c for c, _ in pairs], [b for _, b in pairs]
    )


def _again(
    model: "ComposedModel",
    augmenting: Sequence[Backbone],
    connections: Sequence[Connection],
    bridges: Sequence[nn.Module],
) -> "ComposedModel":
    """The same anchor with other augmenting models; takes the old model's hooks away."""
    composition = copy.copy(model.composition)
    composition.connections = [  # type: ignore[attr-defined]
        [(c.augmenting_layer, c.anchor_layer) for c in connections if c.augmenting == index]
        for index in range(len(augmenting))
    ]
    model.detach()
    grown = type(model)(
        model.backbones[0],
        augmenting,
        connections,
        cast(Sequence[Bridge], bridges),
        composition,
        model.augmenting_sees,
    )
    grown.generation_config = model.generation_config
    return grown.train(model.training)
