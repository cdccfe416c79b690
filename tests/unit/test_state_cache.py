"""A state cache on disk: nothing is lost, what is damaged is not used, and it stays in bounds."""

import errno
import json
import logging
import math
import os
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from calm_lightning.contracts import CalmError
from calm_lightning.state_cache import CacheFolder, StateCache, StateStore, frames
from calm_lightning.state_cache import store as store_module

LAYERS, WIDTH = 2, 3
ABOUT = {"fingerprint": "abc", "layers": [1, 3]}
Open = Callable[..., StateStore]


def key(number: int) -> bytes:
    return number.to_bytes(16, "little")


def states(number: int, tokens: int = 4, dtype: torch.dtype = torch.float32) -> Tensor:
    generator = torch.Generator().manual_seed(number)
    return torch.randn(LAYERS, tokens, WIDTH, generator=generator).to(dtype)


def rows(*numbers: int) -> dict[bytes, Tensor]:
    """Of each number a row of as many tokens."""
    return {key(n): states(n, n) for n in numbers}


def found(store: StateStore, among: int = 20) -> list[int]:
    """Which of the first numbers are there; each must be what was put."""
    there = [n for n in range(1, among) if store.get(key(n)) is not None]
    for n in there:
        assert torch.equal(store.get(key(n)), states(n, n, store.dtype))  # type: ignore[arg-type]
    return there


@pytest.fixture
def opened(tmp_path: Path) -> Iterator[Open]:
    """Opens stores in one folder, and closes them."""
    stores = []

    def open_store(about: Any = ABOUT, width: int = WIDTH, **settings: Any) -> StateStore:
        cache = CacheFolder(StateCache(str(tmp_path), **settings))
        stores.append(StateStore(cache, about, LAYERS, width))
        return stores[-1]

    yield open_store
    for store in stores:
        store.close()


def shard_of(store: StateStore) -> Path:
    (file,) = store.folder.glob("*.states")
    return file


def numbers_in(shard: Path, store: StateStore) -> list[int]:
    """Which rows a shard tells of, as a process finds them that opens it."""
    whole = frames.read_places(shard, store._whose, LAYERS * WIDTH * 4)
    return [int.from_bytes(k, "little") for _, places in whole for k in places]


# ------------------------------------------------------------------ what was put is found


def test_what_was_put_is_found_at_once_and_by_the_next_process(opened: Open) -> None:
    store = opened()
    store.put(rows(3, 1))
    assert found(store) == [1, 3]
    store.put(rows(7))
    store.flush()
    assert found(store) == [1, 3, 7]
    assert found(opened()) == [1, 3, 7]
    assert len(opened()) == 3


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_every_type_comes_back_as_it_was(opened: Open, dtype: Any) -> None:
    store = opened(dtype=dtype)
    store.put({key(5): states(5, 5, store.dtype)})
    store.flush()
    assert found(store) == found(opened(dtype=dtype)) == [5]
    assert shard_of(store).stat().st_size < 200 + LAYERS * 5 * WIDTH * store.dtype.itemsize


@pytest.mark.parametrize(
    "other",
    [
        {"about": {**ABOUT, "fingerprint": "abd"}},
        {"about": {**ABOUT, "layers": [1, 2]}},
        {"dtype": "bfloat16"},
        {"width": 4},
    ],
)
def test_states_of_anything_else_are_never_used(opened: Open, other: dict[str, Any]) -> None:
    store = opened()
    store.put(rows(1, 2))
    store.flush()
    strange = opened(**other)
    assert strange.folder != store.folder
    assert found(strange) == []
    # Not even where somebody puts the file among them
    shard_of(store).rename(strange.folder / shard_of(store).name)
    assert found(opened(**other)) == []


def test_the_folder_tells_what_it_holds(opened: Open) -> None:
    about = json.loads((opened().folder / "about.json").read_text())
    assert about == {**ABOUT, "width": WIDTH, "dtype": "torch.float32"}


# ------------------------------------------------------------------ several processes


def test_what_another_process_wrote_is_found_when_it_is_looked_for(opened: Open) -> None:
    one, other = opened(), opened()
    one.put(rows(1))
    other.put(rows(2))
    one.flush()
    other.flush()
    assert (found(one), found(other)) == ([1], [2])
    one.refresh()
    other.refresh()
    assert found(one) == found(other) == [1, 2]
    other.put(rows(3))
    other.flush()
    one.refresh()
    assert found(one) == [1, 2, 3]


# ------------------------------------------------------------------ stopped half-way, or damaged


def test_cut_off_anywhere_it_opens_with_all_whole_frames(opened: Open) -> None:
    store = opened()
    ends = []
    for group in (rows(1), rows(2, 3), rows(4)):
        store.put(group)
        store.flush()
        ends.append(shard_of(store).stat().st_size)
    file = shard_of(store)
    whole = file.read_bytes()
    assert ends[-1] == len(whole)
    for length in range(len(whole)):
        file.write_bytes(whole[:length])
        expected = [[], [1], [1, 2, 3]][sum(end <= length for end in ends)]
        assert numbers_in(file, store) == expected
    store = opened()
    assert found(store) == [1, 2, 3]
    store.put(rows(4))
    store.flush()
    assert found(opened()) == [1, 2, 3, 4]


def test_a_flipped_bit_is_noticed_and_the_row_computed_again(opened: Open) -> None:
    store = opened()
    store.put(rows(1, 2, 3))
    store.flush()
    file = shard_of(store)
    whole = file.read_bytes()
    row_2 = len(whole) - (2 + 3) * LAYERS * WIDTH * 4
    file.write_bytes(whole[:row_2] + bytes([whole[row_2] ^ 1]) + whole[row_2 + 1 :])
    again = opened()
    assert found(again) == [1, 3]
    again.put(rows(2))
    again.flush()
    assert found(again) == found(opened()) == [1, 2, 3]
    for place in range(32 + 3 * 24 + 4):  # what tells where the states are
        damaged = bytearray(whole)
        damaged[place] ^= 8
        file.write_bytes(damaged)
        assert numbers_in(file, store) == []


def test_a_shard_that_is_taken_away_is_computed_again(opened: Open) -> None:
    store = opened()
    store.put(rows(1))
    store.flush()
    reader = opened()
    shard_of(store).unlink()
    assert found(reader) == []


def silently_lost(stream: Any, part: memoryview) -> None:
    """Writes nothing, and says nothing of it."""


@pytest.mark.parametrize(
    "lost", ["the file", "the file, while it is written", "the file, then", "what is written"]
)
def test_a_shard_that_is_lost_while_a_run_writes_is_a_failed_write(
    opened: Open, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, lost: str
) -> None:
    store = opened()
    store.put(rows(1, 2))
    store.flush()
    assert found(store) == [1, 2]
    file, write_all = shard_of(store), store_module._write_all

    def write_and_lose(stream: Any, part: memoryview) -> None:
        write_all(stream, part)
        file.unlink(missing_ok=True)

    if lost == "the file":
        file.unlink()
    elif lost != "the file, then":
        way = silently_lost if lost == "what is written" else write_and_lose
        monkeypatch.setattr(store_module, "_write_all", way)
    with caplog.at_level(logging.INFO):
        for number in (3, 4):
            store.put(rows(number))
            store._writer.submit(int).result()  # it is written now
            if lost == "the file, then":
                file.unlink(missing_ok=True)
            store.flush()
    (said,) = {record.message for record in caplog.records if "cannot be written" in record.message}
    assert "Training goes on" in said
    assert found(store) == [1, 2]  # where it was read before, the system still has it
    assert found(opened()) == ([1, 2] if lost == "what is written" else [])
    assert file.exists() == (lost == "what is written")


# ------------------------------------------------------------------ bounds


def test_a_full_cache_is_used_and_grows_no_more(
    opened: Open, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    store = opened(max_gigabytes=2000 / 1e9)
    with caplog.at_level(logging.INFO):
        for number in range(1, 20):
            store.put(rows(number))
        store.flush()
    kept = found(store)
    assert kept[:5] == [1, 2, 3, 4, 5]
    assert 9 < len(kept) < 19
    size = sum(file.stat().st_size for file in tmp_path.glob("*/*.states"))
    assert 1500 < size <= 2000
    (said,) = {record.message for record in caplog.records if "state cache" in record.message}
    assert "is full (cache_states.max_gigabytes=2e-06)" in said
    assert "nothing more is kept" in said
    # A folder has one bound, whoever writes to it and whatever states they are
    other = opened(about={}, max_gigabytes=(size + 10) / 1e9)
    other.put(rows(1))
    assert found(other) == []
    assert found(opened(max_gigabytes=2000 / 1e9)) == kept
    # Nor does it matter whether it is written already
    shared = CacheFolder(StateCache(str(tmp_path), max_gigabytes=(size + 400) / 1e9))
    stores = [StateStore(shared, {"of": name}, LAYERS, WIDTH) for name in ("one", "another")]
    for each in stores:
        each._writer.submit(time.sleep, 0.05)
        each.put(rows(6))
    assert [found(each) for each in stores] == [[6], []]
    for each in stores:
        each.close()


def test_several_processes_exceed_the_bound_by_what_waits_to_be_written_at_most(
    opened: Open, tmp_path: Path
) -> None:
    frame = frames.frame_bytes(1, states(0).nbytes)
    stores = [opened(max_gigabytes=(6 * frame + 9) / 1e9) for _ in range(2)]
    go_on = threading.Event()

    def put_all(store: StateStore) -> None:
        for number in range(9):
            store.put({key(number): states(number)})

    for store in stores:
        store._writer.submit(go_on.wait)
    with ThreadPoolExecutor() as processes:
        putting = [processes.submit(put_all, store) for store in stores]
        wait(putting, timeout=0.2)  # until both have as much waiting as may be
        go_on.set()
    for each in putting:
        each.result()
    for store in stores:
        store.flush()
    size = sum(file.stat().st_size for file in tmp_path.glob("*/*.states"))
    assert 6 * frame <= size <= (6 + 5) * frame


@pytest.mark.parametrize("written", [0, 30, 90])
def test_a_full_disk_stops_nothing_and_damages_nothing(
    opened: Open, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, written: int
) -> None:
    store = opened()
    store.put(rows(1, 2))
    store.flush()
    size = shard_of(store).stat().st_size
    write_all = frames_writer(written)
    with monkeypatch.context() as patch, caplog.at_level(logging.INFO):
        patch.setattr("calm_lightning.state_cache.store._write_all", write_all)
        for number in (3, 4, 5):
            store.put(rows(number))
        store.flush()
    (said,) = {record.message for record in caplog.records if "cannot be written" in record.message}
    assert "No space left on device" in said
    assert "Training goes on" in said
    assert shard_of(store).stat().st_size == size
    store.put(rows(6))  # there may be room again; this run does not try
    store.flush()
    assert found(store) == [1, 2]
    assert found(opened()) == [1, 2]


def frames_writer(room: int) -> Any:
    """Writes so many bytes; then the disk is full."""
    left = [room]

    def write_all(stream: Any, part: memoryview) -> None:
        written = stream.write(part[: left[0]])
        left[0] -= written
        if written < len(part):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    return write_all


def test_a_folder_that_cannot_be_used_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(CalmError, match=r"cache_states.folder: states cannot be kept in .*/file"):
        StateStore(CacheFolder(StateCache(str(tmp_path / "file"))), ABOUT, LAYERS, WIDTH)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"max_gigabytes": 0.0}, r"max_gigabytes=0\.0 must be a number above 0"),
        ({"max_gigabytes": math.inf}, r"max_gigabytes=inf must be a number .*1000 for a terabyte"),
        ({"max_gigabytes": math.nan}, r"max_gigabytes=nan must be a number"),
        ({"folder": ""}, r"folder is empty: name a folder"),
        ({"folder": "  "}, r"folder is empty"),
        ({"dtype": "int8"}, r"dtype='int8' is none of float32, float16, bfloat16"),
    ],
)
def test_settings_that_make_no_sense_are_refused(setting: dict[str, Any], message: str) -> None:
    settings = StateCache("states")
    vars(settings).update(setting)  # not as arguments, whose types are checked in tests alone
    with pytest.raises(CalmError, match=rf"cache_states\.{message}"):
        settings.__post_init__()


def test_a_frame_is_as_long_as_it_is_said_to_be() -> None:
    for texts in range(1, 9):
        row = memoryview(bytes(24 * texts))
        parts = frames.frame(bytes(16), [(key(n), n, row) for n in range(texts)])
        assert sum(map(len, parts)) == frames.frame_bytes(texts, texts * len(row))
