"""Rows of states on disk, by key: appended while a run goes on, read where they lie.

A cache folder has one folder for each way of computing states. Its name is a hash of all that
decides them, which `about.json` in it tells in full. Every process appends to a shard of its own
(`frames`), so nobody waits for another, and nobody can damage what another wrote.
"""

import hashlib
import json
import os
import secrets
import time
import zlib
from collections import deque
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from calm_lightning.contracts import CalmError
from calm_lightning.state_cache.folder import CacheFolder
from calm_lightning.state_cache.frames import KEY_BYTES, Place, frame, frame_bytes, read_places

ABOUT = "about.json"
_WAITING = 4
"""Batches that may wait to be written; with more, training waits."""

Rows = Mapping[bytes, Float[Tensor, "layers tokens width"]]


class StateStore:
    """States of one kind: of one model, in certain layers.

    What is put can be had at once; a thread writes it meanwhile. What is put together is found
    together or not at all, at whatever moment the process is killed.

    Args:
        cache: Where, in which type, and how much.
        about: All that decides what the states of a text are.
        layers: Layers of each row.
        width: Of each state.

    Raises:
        CalmError: If the folder cannot be used.
    """

    def __init__(
        self, cache: CacheFolder, about: Mapping[str, Any], layers: int, width: int
    ) -> None:
        self.cache = cache
        self.dtype = cache.dtype
        self._shape = layers, width
        said = {**about, "width": width, "dtype": str(cache.dtype)}
        text = json.dumps(said, sort_keys=True, indent=1)
        self._whose = hashlib.sha256(text.encode()).digest()[:KEY_BYTES]
        self.folder = cache.root / self._whose.hex()
        self._make_folder(text)
        self._places: dict[bytes, Place] = {}
        self._read_up_to: dict[Path, int] = {}
        self._maps: dict[Path, Any] = {}
        self._unwritten: dict[bytes, Tensor] = {}
        self._writing: deque[Future[None]] = deque()
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="states")
        # Of this process. Names are in the order of time.
        self._own = self.folder / f"{time.time_ns():020d}-{secrets.token_hex(4)}.states"
        self._written = self._synced = 0
        self.refresh()

    def __len__(self) -> int:
        return len(self._places.keys() | self._unwritten.keys())

    def get(self, key: bytes) -> Float[Tensor, "layers tokens width"] | None:
        """What was put under a key; None if nothing was, or it is damaged."""
        # In this order: the thread adds a row to the places before it takes it from the others.
        if (states := self._unwritten.get(key)) is not None:
            return states
        if (place := self._places.get(key)) is None:
            return None
        stored = self._stored(place)
        if stored is None or not (place.checked or zlib.crc32(stored) == place.checksum):
            del self._places[key]  # it is computed again, and written anew
            return None
        place.checked = True
        layers, width = self._shape
        return torch.from_numpy(stored).view(self.dtype).view(layers, place.tokens, width)

    def put(self, rows: Rows) -> None:
        """Keep rows of the type and shape of this store, if there is room for all of them.

        Args:
            rows: By keys of `KEY_BYTES` bytes; on the CPU, and not changed afterwards.
        """
        size = frame_bytes(len(rows), sum(states.nbytes for states in rows.values()))
        if not self.cache.take(self._own, size):
            return
        self._unwritten.update(rows)
        while len(self._writing) >= _WAITING:
            self._writing.popleft().result()
        self._writing.append(self._writer.submit(self._write, rows))

    def refresh(self) -> None:
        """Find what other processes have written by now."""
        # The newest first: what was damaged is in a newer one too.
        for shard in sorted(self.folder.glob("*.states"), reverse=True):
            if shard == self._own:
                continue
            known = self._read_up_to.get(shard, 0)
            for end, places in read_places(shard, self._whose, self._token_bytes, known):
                for key, place in places.items():
                    self._places.setdefault(key, place)
                self._read_up_to[shard] = end

    def flush(self) -> None:
        """Wait until everything that was put is on the disk."""
        while self._writing:
            self._writing.popleft().result()
        try:
            if self._written > self._synced:
                with self._own.open("r+b") as stream:
                    os.fsync(stream.fileno())
        except OSError as error:
            self.cache.stop(error)
        self._synced = self._written
        self.cache.tell()

    def close(self) -> None:
        """Flush, and write nothing any more."""
        self.flush()
        self._writer.shutdown()

    # ------------------------------------------------------------------ the disk

    @property
    def _token_bytes(self) -> int:
        layers, width = self._shape
        return layers * width * self.dtype.itemsize

    def _make_folder(self, about: str) -> None:
        temporary = self.folder / f".{ABOUT}.{secrets.token_hex(4)}"
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            temporary.write_text(about + "\n")
            temporary.replace(self.folder / ABOUT)
        except OSError as error:
            raise CalmError(
                f"cache_states.folder: states cannot be kept in {self.cache.root}: "
                f"{error.strerror or error}. Name a folder that can be written to, or leave "
                "cache_states out."
            ) from error

    def _stored(self, place: Place) -> Any:
        """The bytes of a row, where they lie; None if the file is gone."""
        end = place.offset + place.tokens * self._token_bytes
        if place.shard not in self._maps or len(self._maps[place.shard]) < end:
            try:
                # Copy on write, for torch takes nothing that is read-only; nobody writes.
                self._maps[place.shard] = np.memmap(place.shard, np.uint8, mode="c")
            except OSError:
                return None
        found = self._maps[place.shard][place.offset : end]
        return found if len(found) == end - place.offset else None

    def _write(self, rows: Rows) -> None:
        """Append a frame; in the thread."""
        texts = [(key, states.shape[1], _bytes_of(states)) for key, states in rows.items()]
        try:
            if not self.cache.stopped:
                # A shard that was begun and is gone is not begun again: places lie in the old one.
                with self._own.open("r+b" if self._written else "wb", buffering=0) as stream:
                    stream.seek(self._written)
                    for part in frame(self._whose, texts):
                        _write_all(stream, part)
                found = read_places(self._own, self._whose, self._token_bytes, self._written)
                if (whole := next(found, None)) is None:
                    raise OSError(f"{self._own.name} does not hold what was written to it")
                self._written, places = whole
                self._places |= places
        except OSError as error:
            self.cache.stop(error)
            with suppress(OSError):  # a frame that is cut off does no harm, it takes room
                os.truncate(self._own, self._written)
        for key in rows:
            self._unwritten.pop(key, None)


def _bytes_of(states: Tensor) -> memoryview:
    return states.contiguous().flatten().view(torch.uint8).numpy().data


def _write_all(stream: BinaryIO, part: memoryview) -> None:
    while part:
        part = part[stream.write(part) :]
