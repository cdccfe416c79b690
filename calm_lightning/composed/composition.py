"""The base of every composition that works on hidden states: wiring plus one kind of bridge."""

from abc import abstractmethod
from collections.abc import Sequence

from typing_extensions import override

from calm_lightning.backbone import Backbone
from calm_lightning.composed.bridge import Bridge
from calm_lightning.composed.model import ComposedModel, Sees
from calm_lightning.composed.wiring import wire
from calm_lightning.contracts import Composition


class HiddenStateComposition(Composition):
    """Adds what bridges read from augmenting layers to anchor layers.

    A subclass says what its bridge is (`make_bridge`); running the models, masks, caches, saving
    and loading are done here and in `ComposedModel`.

    Args:
        connections: (augmenting layer, anchor layer) pairs, counted from 0: one list for every
            augmenting model, or a list for each. Null: evenly spaced as in the paper.
        every: For evenly spaced wiring: one augmenting layer in this many is read (paper: 4).
        augmenting_sees: `full`, or `prompt` for the paper's "as encoder" ablation.
    """

    def __init__(
        self,
        connections: list[tuple[int, int]] | list[list[tuple[int, int]]] | None = None,
        every: int = 4,
        augmenting_sees: Sees = "full",
    ) -> None:
        self.connections = connections
        self.every = every
        self.augmenting_sees: Sees = augmenting_sees

    @abstractmethod
    def make_bridge(self, anchor: Backbone, augmenting: Backbone) -> Bridge:
        """A fresh bridge from one augmenting model to the anchor; it must add zero at first.

        Raises:
            CalmError: If the settings do not fit these backbones.
        """

    @override
    def compose(self, anchor: Backbone, augmenting: Sequence[Backbone]) -> ComposedModel:
        connections = wire(anchor, augmenting, self.connections, self.every)
        bridges = [self.make_bridge(anchor, augmenting[c.augmenting]) for c in connections]
        return ComposedModel(anchor, augmenting, connections, bridges, self, self.augmenting_sees)
