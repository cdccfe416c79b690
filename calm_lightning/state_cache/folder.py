"""The folder of a state cache, as one process fills it: how much room is left, and what is said."""

from pathlib import Path

import torch
from lightning.pytorch.utilities import rank_zero_info

from calm_lightning.state_cache.settings import StateCache


class CacheFolder:
    """Shared by the stores of one process, whose states have to fit together.

    Args:
        settings: As the user said.

    Attributes:
        root: Where it is.
        dtype: Of all states.
    """

    def __init__(self, settings: StateCache) -> None:
        self.root = Path(settings.folder).expanduser()
        self.dtype: torch.dtype = getattr(torch, settings.dtype)
        self._most = int(settings.max_gigabytes * 1e9)
        self._own: dict[Path, int] = {}  # bytes of this process's shards, unwritten ones too
        self._stopped = ""
        self._said: set[str] = set()

    def take(self, shard: Path, size: int) -> bool:
        """Whether so many bytes more may be written to a shard of this process.

        Which rows are kept must not depend on the pace of the threads that write, so what is
        promised counts as written. What other processes have promised is not known before it is
        written, so each of them may exceed the bound by as much as it has waiting (see
        `StateStore.put`).
        """
        self.tell()
        if self._stopped:
            return False
        others = (file for file in self.root.glob("*/*.states") if file not in self._own)
        if sum(self._own.values()) + sum(map(_size, others)) + size > self._most:
            self._say(
                f"The state cache {self.root} is full (cache_states.max_gigabytes="
                f"{self._most / 1e9:g}). What it holds is used, nothing more is kept."
            )
            return False
        self._own[shard] = self._own.get(shard, 0) + size
        return True

    def stop(self, error: OSError) -> None:
        """Keep nothing more in this process. For threads: `tell` says it."""
        self._stopped = (
            f"States cannot be written to {self.root}: {error.strerror or error}. Training goes "
            "on; what was written is used, nothing more is kept."
        )

    @property
    def stopped(self) -> bool:
        """Whether nothing more is kept because writing failed."""
        return bool(self._stopped)

    def tell(self) -> None:
        """Say that writing has failed, if it has."""
        if self._stopped:
            self._say(self._stopped)

    def _say(self, what: str) -> None:
        if what not in self._said:
            self._said.add(what)
            rank_zero_info(what)


def _size(file: Path) -> int:
    try:
        return file.stat().st_size
    except OSError:  # somebody took it away
        return 0
