"""Examples that are made, or looked up, when they are asked for."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import overload

from typing_extensions import override

from calm_lightning.contracts import Example


class ByIndex(Sequence[Example], ABC):
    """A sequence of examples; a subclass says how many there are, and which one is where."""

    @abstractmethod
    def at(self, index: int) -> Example:
        """The example at an index, which is from 0 to one less than the length."""

    @override
    def __iter__(self) -> Iterator[Example]:
        return map(self.at, range(len(self)))

    @overload
    def __getitem__(self, index: int) -> Example: ...
    @overload
    def __getitem__(self, index: slice) -> list[Example]: ...
    @override
    def __getitem__(self, index: int | slice) -> Example | list[Example]:
        places = range(len(self))[index]  # negative counts from the end; too far is an IndexError
        return self.at(places) if isinstance(places, int) else [self.at(place) for place in places]
