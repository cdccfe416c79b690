"""What stays resident on a processor when tensors come and go: glibc's `malloc`, played through.

PyTorch takes the memory of tensors from `malloc`. Large blocks get pages of their own, which go
back to the system with them. But once such a block was freed, blocks up to its size come from the
heap instead, and the heap goes on holding what is freed there: a new tensor takes the smallest hole
that is large enough, few holes are of just the right size, and the rest grows. So more is resident
than exists, by a fifth in a training run.

Played are the rules of glibc 2.26 and later, of one thread, for tensors alone; on other systems
more or less is kept. Small lasting objects at the end of the real heap hardly ever let it shrink;
here it never does.
"""

from bisect import bisect_left, insort
from collections.abc import Callable
from functools import partial

_PAGE = 4096
_LEAST_MAPPED = 2**17
_MOST_MAPPED = 2**25
"""M_MMAP_THRESHOLD, and the size up to which it grows by itself."""
_TOP_PAD = 2**17
_ALIGNING = 64 + 32
"""What PyTorch's alignment to 64 bytes makes `posix_memalign` look for in addition."""


class Heap:
    """Blocks of memory as glibc places them.

    Attributes:
        resident: Bytes held of the system now.
        peak: The most that they have been.
    """

    def __init__(self) -> None:
        self.resident = self.peak = 0
        self._mapped_from = _LEAST_MAPPED  # blocks of this size get pages of their own
        self._used = self._end = 0  # the heap's last hole lies between them
        self._holes: list[tuple[int, int]] = []  # the others: size, start; by size
        self._size_at: dict[int, int] = {}  # start of a hole -> its size
        self._start_before: dict[int, int] = {}  # end of a hole -> its start

    def take(self, size: int) -> Callable[[], None]:
        """Place a block, and return what frees it."""
        size = max(32, _up(size + 8, 16))
        wanted = size + _ALIGNING
        place = bisect_left(self._holes, (wanted, 0))
        if place < len(self._holes):
            hole, start = self._holes[place]
            self._close(start)
            if hole > size:
                self._open(start + size, hole - size)
            return partial(self._free, start, size)
        if self._end - self._used < wanted:
            if wanted >= self._mapped_from:
                size = _up(wanted, _PAGE)
                self._grow(size)
                return partial(self._unmap, size)
            more = _up(wanted + _TOP_PAD - (self._end - self._used), _PAGE)
            self._end += more
            self._grow(more)
        self._used += size
        return partial(self._free, self._used - size, size)

    def _grow(self, size: int) -> None:
        self.resident += size
        self.peak = max(self.peak, self.resident)

    def _unmap(self, size: int) -> None:
        self.resident -= size
        if size <= _MOST_MAPPED:
            self._mapped_from = max(self._mapped_from, size)

    def _free(self, start: int, size: int) -> None:
        """Make a hole, together with those beside it."""
        if (before := self._start_before.get(start)) is not None:
            size += self._close(before)
            start = before
        if start + size in self._size_at:
            size += self._close(start + size)
        if start + size == self._used:
            self._used = start
        else:
            self._open(start, size)

    def _open(self, start: int, size: int) -> None:
        insort(self._holes, (size, start))
        self._size_at[start] = size
        self._start_before[start + size] = start

    def _close(self, start: int) -> int:
        size = self._size_at.pop(start)
        del self._start_before[start + size]
        del self._holes[bisect_left(self._holes, (size, start))]
        return size


def _up(size: int, unit: int) -> int:
    return -(-size // unit) * unit
