"""The format of a shard: frames one after another, each with the states of a few texts.

A frame begins with a header (whose states these are, how many texts, how many bytes of states),
then has an entry for each text (its key, its tokens, a checksum of its states), a checksum of all
that, and the states. Shards are only ever appended to, so a process that is killed leaves at worst
a last frame that is cut off; a reader stops before it.
"""

import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np

KEY_BYTES = 16
_ALIGNMENT = 64  # of the states in the file, in bytes, as they are read where they lie

_HEADER = np.dtype([("whose", f"V{KEY_BYTES}"), ("texts", "<u4"), ("padding", "<u4"),
                    ("size", "<u8")])  # fmt: skip
_ENTRY = np.dtype([("key", f"V{KEY_BYTES}"), ("tokens", "<u4"), ("checksum", "<u4")])
_CHECKSUM = 4


@dataclass
class Place:
    """Where the states of one text lie.

    Attributes:
        shard: The file.
        offset: Of the first byte.
        tokens: How many there are.
        checksum: CRC-32 of the bytes.
        checked: Whether they were compared with it.
    """

    shard: Path
    offset: int
    tokens: int
    checksum: int
    checked: bool = False


def frame(whose: bytes, texts: Sequence[tuple[bytes, int, memoryview]]) -> list[memoryview]:
    """A frame, in parts to be written one after another.

    Args:
        whose: `KEY_BYTES` bytes that tell the states of this store from all others.
        texts: Of each its key, its number of tokens and its states.
    """
    entries = np.zeros(len(texts), _ENTRY)
    for entry, (key, tokens, states) in zip(entries, texts, strict=True):
        entry["key"], entry["tokens"] = np.void(key), tokens
        entry["checksum"] = zlib.crc32(states)
    header = np.zeros((), _HEADER)
    header["whose"], header["texts"] = np.void(whose), len(texts)
    header["size"] = sum(states.nbytes for _, _, states in texts)
    header["padding"] = -_length_before_states(len(texts)) % _ALIGNMENT
    head = header.tobytes() + entries.tobytes()
    head += zlib.crc32(head).to_bytes(_CHECKSUM, "little") + bytes(int(header["padding"]))
    return [memoryview(head), *(states for _, _, states in texts)]


def frame_bytes(texts: int, states: int) -> int:
    """Length of a frame of so many texts and so many bytes of states."""
    before = _length_before_states(texts)
    return before + -before % _ALIGNMENT + states


def read_places(
    shard: Path, whose: bytes, token_bytes: int, start: int = 0
) -> Iterator[tuple[int, dict[bytes, Place]]]:
    """The whole frames of a shard, in order.

    Args:
        shard: The file; another process may be writing to it.
        whose: As it was given to `frame`; frames of anything else are not read.
        token_bytes: Bytes of states that each token takes.
        start: Where a frame begins.

    Yields:
        Where the next frame begins, and what this one holds.
    """
    with shard.open("rb") as stream:
        end = stream.seek(0, 2)
        while (found := _read_frame(stream, start, end, whose)) is not None:
            entries, offset, start = found
            places = {}
            for entry in entries:
                place = Place(shard, offset, int(entry["tokens"]), int(entry["checksum"]))
                places[bytes(entry["key"])] = place
                offset += place.tokens * token_bytes
            yield start, places


def _read_frame(
    stream: BinaryIO, start: int, end: int, whose: bytes
) -> tuple[np.ndarray, int, int] | None:
    """Entries, where the states begin and where they end; None if there is no whole frame."""
    stream.seek(start)
    head = stream.read(_HEADER.itemsize)
    if len(head) < _HEADER.itemsize:
        return None
    header = np.frombuffer(head, _HEADER)[0]
    if bytes(header["whose"]) != whose or start + int(header["texts"]) * _ENTRY.itemsize > end:
        return None
    entries = stream.read(int(header["texts"]) * _ENTRY.itemsize)
    checksum = stream.read(_CHECKSUM)
    if zlib.crc32(head + entries).to_bytes(_CHECKSUM, "little") != checksum:
        return None
    offset = stream.tell() + int(header["padding"])
    if offset + int(header["size"]) > end:
        return None
    return np.frombuffer(entries, _ENTRY), offset, offset + int(header["size"])


def _length_before_states(texts: int) -> int:
    return _HEADER.itemsize + texts * _ENTRY.itemsize + _CHECKSUM
