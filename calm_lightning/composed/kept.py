"""What a composed model looks up instead of computing it, while it is trained."""

from collections.abc import Sequence
from functools import partial
from typing import Any

from torch import Tensor
from torch.utils.hooks import RemovableHandle

from calm_lightning.backbone import Backbone
from calm_lightning.composed.reading import AugmentingReader, Tapped
from calm_lightning.composed.upper import UpperPart
from calm_lightning.contracts import CalmError
from calm_lightning.state_cache import CacheFolder, KeptStates, StateCache


class Kept:
    """Stores of the augmenting models' tapped states, and of the anchor's at its first connection.

    Args:
        settings: As the user said.
        anchor: The anchor.
        readers: Of the augmenting models.
        first: The first connected layer of the anchor.
        add: Hook that adds to this layer's output.
        precision: In which the models compute, beside their own types.

    Raises:
        CalmError: If the folder cannot be used, or these models' states cannot be kept.
    """

    def __init__(
        self,
        settings: StateCache,
        anchor: Backbone,
        readers: Sequence[AugmentingReader],
        first: int,
        add: Any,
        precision: str,
    ) -> None:
        for backbone in (anchor, *(reader.backbone for reader in readers)):
            if backbone.is_shared_out:
                # A process that finds its states would leave the others waiting for its share.
                raise CalmError(
                    f"cache_states: {backbone.name!r} is shared out among processes, which have "
                    "to run it together. Leave cache_states out, or let every process hold it."
                )
        keep = partial(KeptStates, cache=CacheFolder(settings), precision=precision)
        self.augmenting = [keep(r.backbone, r.tapped.layers, r.tapped) for r in readers]
        self._first = first
        self._below: KeptStates | None = None
        self._hooks: list[RemovableHandle] = []
        if settings.anchor:
            lower = Tapped(anchor, [first])
            self._hooks = lower.hooks
            self._below = keep(anchor, [first], lower)
            self._above = UpperPart(anchor, first)
            self._above.handed.register_forward_hook(add)

    def begin(self, anchor: Any, ids: Tensor, mask: Tensor | None) -> Any:
        """The anchor, to be called as it is: its lower layers have read these tokens already."""
        if self._below is None:
            return anchor
        return partial(self._above, self._below(ids, mask)[self._first])

    def flush(self) -> None:
        """Wait until everything that is kept is on the disk."""
        for kept in self._all():
            kept.store.flush()

    def refresh(self) -> None:
        """Find what other processes have kept."""
        for kept in self._all():
            kept.store.refresh()

    def close(self) -> None:
        """Write what is unwritten, and leave the anchor as it was."""
        for hook in self._hooks:
            hook.remove()
        for kept in self._all():
            kept.store.close()

    def _all(self) -> list[KeptStates]:
        return self.augmenting if self._below is None else [*self.augmenting, self._below]
