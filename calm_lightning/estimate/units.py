"""Which units of a model a training step puts together under FSDP2, found by watching one.

A unit (`calm_lightning.sharding.units_of`) is put together whenever it runs, and on the way back
where a gradient goes through what it gave. Neither is guessed: the model is watched.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from math import ceil
from typing import Any

from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from calm_lightning.composed import ComposedModel
from calm_lightning.sharding import units_of


@dataclass(frozen=True)
class Call:
    """One run of a unit in a training step.

    Attributes:
        unit: Its number.
        backward: Whether a gradient goes back through what it gave.
    """

    unit: int
    backward: bool


@dataclass(frozen=True)
class Unit:
    """What is put together at a time.

    Attributes:
        weights: Of every weight: length along its first axis, bytes of one entry, trained or not.
    """

    weights: tuple[tuple[int, int, bool], ...]

    def size(self, processes: int = 1, trained_only: bool = False) -> int:
        """Bytes; with processes, as filled up so that each has a part of the same length."""
        chosen = (each for each in self.weights if each[2] or not trained_only)
        return sum(ceil(rows / processes) * processes * row for rows, row, _ in chosen)


@dataclass(frozen=True)
class Units:
    """The units of a model, and how a training step uses them.

    Attributes:
        units: All of them.
        calls: In the order in which they end.
    """

    units: tuple[Unit, ...]
    calls: tuple[Call, ...]

    def gathered(self) -> list[int]:
        """Numbers of the units that are put together in a step, in order.

        On the way back the unit that ran before is fetched while one is computed, even if no
        gradient goes through it.
        """
        found = [call.unit for call in self.calls]
        whole: set[int] = set()
        for place in reversed(range(len(self.calls))):
            call = self.calls[place]
            if not call.backward:
                continue
            for unit in (call.unit, *(before.unit for before in self.calls[:place][-1:])):
                if unit not in whole:
                    found.append(unit)
                    whole.add(unit)
            whole.discard(call.unit)
        return found


class Watch:
    """Notes which units of a model run, and through which of them a gradient goes back.

    Args:
        model: The model. Its weights are measured now, before they are replaced by others.
    """

    def __init__(self, model: ComposedModel) -> None:
        self.model = model
        self.modules = units_of(model)
        self.units = tuple(_measured(modules) for modules in self.modules)
        self._ended: list[int] = []  # units, in the order in which their runs end
        self._backward: set[int] = set()  # places in it
        self._begun: dict[int, set[nn.Module]] = {}

    def seen(self) -> Units:
        """What ran while it was watching."""
        calls = [Call(unit, place in self._backward) for place, unit in enumerate(self._ended)]
        return Units(self.units, tuple(calls))

    @contextmanager
    def watching(self) -> Iterator[None]:
        """While it is active, a forward pass is noted; afterwards its backward pass is, too."""
        numbers = {module: n for n, modules in enumerate(self.modules) for module in modules}
        handles = [m.register_forward_hook(partial(self._ran, n)) for m, n in numbers.items()]
        handles.append(self.model.register_forward_hook(self._all_ran))
        bridges: list[Any] = list(self.model.bridges)
        for bridge in bridges:
            bridge.remember = partial(self._remember, numbers[bridge], bridge.remember)
        try:
            yield
        finally:
            for bridge in bridges:
                del bridge.remember  # of the object; that of its class is back
            for handle in handles:
                handle.remove()

    def _ran(self, number: int, module: nn.Module, args: Any, output: Any) -> None:
        ran = self._begun.setdefault(number, set())
        ran.add(module)
        if len(ran) == len(self.modules[number]):
            del self._begun[number]
            self._end(number, output)

    def _remember(self, number: int, remember: Callable[..., Any], *args: Any) -> Any:
        kept = remember(*args)
        self._end(number, kept)
        return kept

    def _all_ran(self, module: nn.Module, args: Any, output: Any) -> None:
        for number in self._begun:  # of these not every module ran, so they were kept till now
            self._end(number, output)
        self._begun = {}

    def _end(self, number: int, output: Any) -> None:
        place = len(self._ended)
        self._ended.append(number)
        for leaf in tree_leaves(output):
            if isinstance(leaf, Tensor) and leaf.requires_grad:
                leaf.register_hook(lambda gradient: self._backward.add(place))


def _measured(modules: Sequence[nn.Module]) -> Unit:
    weights = {id(weight): weight for module in modules for weight in module.parameters()}
    return Unit(
        tuple(
            (len(weight), weight.nbytes // len(weight), weight.requires_grad)
            for weight in weights.values()
        )
    )
