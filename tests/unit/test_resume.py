"""What going on with a run rests on: whole files, the right batches, the same settings."""

import copy
import errno
import itertools
import os
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from jsonargparse import Namespace

from calm_lightning import cli, run
from calm_lightning.checkpoint_io import (
    SealedCheckpointIO,
    newest_checkpoint,
    previous,
    read_checkpoint,
    seal_of,
    write_text,
)
from calm_lightning.contracts import CalmError
from calm_lightning.contracts.task import OrderedBatches
from calm_lightning.module import seed_batch
from calm_lightning.resuming import refuse_other_settings, settings_of


def save(file: Path, step: int) -> None:
    checkpoint = {"state_dict": {"w": torch.arange(100.0) + step}, "global_step": step}
    SealedCheckpointIO().save_checkpoint(checkpoint, file)


@pytest.fixture
def last(tmp_path: Path) -> Path:
    """A checkpoint of step 2, with that of step 1 beside it."""
    file = tmp_path / "checkpoints" / "last.ckpt"
    save(file, 1)
    save(file, 2)
    return file


# ------------------------------------------------------------------ files


def test_a_sealed_checkpoint_is_one_that_torch_reads(last: Path) -> None:
    assert torch.load(last, weights_only=True)["global_step"] == 2
    assert seal_of(last)
    assert read_checkpoint(last)["state_dict"]["w"][5] == 7


def test_the_one_before_is_kept(last: Path) -> None:
    assert read_checkpoint(previous(last))["global_step"] == 1
    assert sorted(file.name for file in last.parent.iterdir()) == [
        "last.ckpt", "last.previous.ckpt",
    ]  # fmt: skip


def test_a_bit_that_flipped_anywhere_is_seen(last: Path) -> None:
    whole = last.read_bytes()
    for place in range(0, len(whole) - 71, 61):
        damaged = bytearray(whole)
        damaged[place] ^= 1 << place % 8
        last.write_bytes(damaged)
        assert seal_of(last) is False, place
    with pytest.raises(CalmError, match=r"last\.ckpt' is damaged.*SHA-256"):
        SealedCheckpointIO().load_checkpoint(last)


@pytest.mark.parametrize("kept", [0, 1, 500, -1])
def test_a_file_that_was_cut_off_is_refused(last: Path, kept: int) -> None:
    last.write_bytes(last.read_bytes()[:kept])
    with pytest.raises(CalmError, match="damaged") as error:
        read_checkpoint(last)
    assert "Errno" not in str(error.value)


def test_the_newest_whole_one_is_taken_and_a_broken_one_named(last: Path) -> None:
    assert newest_checkpoint(last.parent)[1]["global_step"] == 2
    last.write_bytes(b"no checkpoint")
    file, checkpoint, (wrong,) = newest_checkpoint(last.parent)
    assert (file, checkpoint["global_step"]) == (previous(last), 1)
    assert str(last) in wrong
    previous(last).write_bytes(b"nor this")
    with pytest.raises(CalmError, match=r"No checkpoint of this run is whole.*last\.previous"):
        newest_checkpoint(last.parent)


@pytest.mark.parametrize("harm", ["a flipped bit", "cut off", "empty", "zeros"])
def test_a_broken_one_never_takes_the_place_of_the_whole_one_before(last: Path, harm: str) -> None:
    whole = last.read_bytes()
    flipped = whole[:100] + bytes([whole[100] ^ 1]) + whole[101:]
    harmed = {"a flipped bit": flipped, "cut off": whole[:500], "empty": b"", "zeros": bytes(999)}
    last.write_bytes(harmed[harm])
    save(last, 3)
    assert [read_checkpoint(f)["global_step"] for f in (last, previous(last))] == [3, 1]


def test_where_nothing_is_nothing_can_go_on(tmp_path: Path) -> None:
    with pytest.raises(CalmError, match=r"nothing to go on with.*Leave --resume out"):
        newest_checkpoint(tmp_path)


def test_a_full_disk_leaves_what_was_there(last: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    before = {file: file.read_bytes() for file in last.parent.iterdir()}
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(CalmError, match=r"No space left on device.*before it is whole.*--resume"):
        save(last, 3)
    assert {file: file.read_bytes() for file in last.parent.iterdir()} == before


def test_a_full_disk_names_the_checkpoint_that_is_whole(
    last: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    last.write_bytes(b"cut off")
    monkeypatch.setattr(os, "fsync", lambda _: os.write(os.open("/dev/full", os.O_WRONLY), b"x"))
    with pytest.raises(CalmError, match=r"before it is whole: \S*last\.previous\.ckpt"):
        save(last, 3)


def test_what_is_read_back_otherwise_is_not_put_in_place(
    last: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fsync = os.fsync

    def spoiling(descriptor: int) -> None:
        os.pwrite(descriptor, b"?", 200)
        fsync(descriptor)

    before = last.read_bytes()
    monkeypatch.setattr(os, "fsync", spoiling)
    with pytest.raises(CalmError, match="not what was written"):
        save(last, 3)
    assert last.read_bytes() == before


def test_small_files_are_written_whole_or_not_at_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "config.yaml"
    write_text("a: 1\n", file)

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        write_text("a: 2\n", file)
    assert file.read_text() == "a: 1\n"


# ------------------------------------------------------------------ batches


def trained_on(order: dict[str, Any], count: int) -> list[list[int]]:
    """Batches as a trainer takes them: each epoch cut off at its limit, then the next begins."""
    batches = OrderedBatches(**order)
    limit, length = order["limit"], len(batches)
    used = min(limit, length) if type(limit) is int else int(limit * length)
    left = used - batches.offset
    taken: list[list[int]] = []
    while len(taken) < count:
        taken += itertools.islice(batches, left)
        left = used
    return taken[:count]


@settings(max_examples=60, deadline=None)
@given(
    st.integers(20, 60), st.integers(1, 6), st.integers(0, 40), st.booleans(),
    st.sampled_from([1, 2, 5, 1000, 0.5, 0.8, 1.0]),
)  # fmt: skip
def test_a_limited_epoch_goes_on_with_the_batches_it_would_have_had(
    length: int, size: int, consumed: int, grouped: bool, limit: int | float
) -> None:
    lengths = (lambda i: i % 7) if grouped else None
    order = {"length": length, "batch_size": size, "limit": limit, "lengths": lengths, "groups": 3}
    wanted = trained_on(order, consumed + 9)[consumed:]
    assert trained_on({**order, "first_batch": consumed}, 9) == wanted


def test_what_is_drawn_for_a_batch_depends_on_seed_batch_and_process_alone() -> None:
    def draw(*of: int) -> tuple[float, float, float]:
        seed_batch(*of)
        return random.random(), np.random.rand(), torch.rand(()).item()

    first = draw(0, 7, 0)
    draw(0, 8, 0)
    assert draw(0, 7, 0) == first
    others = [draw(0, 8, 0), draw(0, 7, 1), draw(1, 7, 0)]
    assert len({first, *others}) == 4


# ------------------------------------------------------------------ settings

CONFIG = {
    "seed_everything": 0,
    "model": {
        "anchor": {"path": "a", "dtype": "float32"},
        "augmenting": [{"path": "b", "seed": 1}],
        "composition": {"class_path": "X", "init_args": {"every": 2}},
        "ask_with": None,
    },
    "data": {"class_path": "T", "init_args": {"batch_size": 4, "num_workers": 0}},
    "trainer": {"max_steps": 5, "accumulate_grad_batches": 2, "devices": 1},
    "run": "runs/x",
}


def changed(name: str, value: Any) -> dict[str, Any]:
    """The config's settings with one entry changed."""
    config = copy.deepcopy(CONFIG)
    *folders, entry = name.split(".")
    at: Any = config
    for folder in folders:
        at = at[int(folder)] if folder.isdigit() else at[folder]
    at[entry] = value
    return settings_of(config)


@pytest.mark.parametrize(
    ("name", "value"),
    [("data.init_args.batch_size", 8), ("model.composition.init_args.every", 3),
     ("model.composition.class_path", "Y"), ("data.class_path", "U"), ("seed_everything", 1),
     ("trainer.accumulate_grad_batches", 4), ("model.anchor.dtype", "bfloat16"),
     ("matmul_precision", "medium")],
)  # fmt: skip
def test_settings_that_make_another_run_are_refused_by_name(name: str, value: Any) -> None:
    with pytest.raises(CalmError, match=rf"{name}: .* there, {value!r} here.*Nothing was changed"):
        refuse_other_settings(settings_of(CONFIG), changed(name, value), Path("last.ckpt"))


@pytest.mark.parametrize(
    ("name", "value"),
    [("trainer.max_steps", 9), ("data.init_args.num_workers", 2), ("run", "elsewhere"),
     ("model.anchor.path", "moved"), ("model.augmenting.0.path", "moved"),
     ("model.ask_with", "x")],
)  # fmt: skip
def test_settings_that_leave_the_weights_alone_may_change(name: str, value: Any) -> None:
    refuse_other_settings(settings_of(CONFIG), changed(name, value), Path("last.ckpt"))


def test_an_option_of_a_later_version_matters_when_it_is_used() -> None:
    old = settings_of(CONFIG)
    refuse_other_settings(old, changed("model.recompute", False), Path("last.ckpt"))
    with pytest.raises(CalmError, match="recompute: None there, True here"):
        refuse_other_settings(old, changed("model.recompute", True), Path("last.ckpt"))


# ------------------------------------------------------------------ the command


def test_a_run_and_resume_stand_for_its_config(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("")
    given_words = ["fit", "--run", str(tmp_path), "--resume"]
    wanted = ["fit", "--config", f"{tmp_path}/config.yaml", *given_words[1:]]
    assert cli._with_run(given_words) == wanted
    named = [*given_words, "-c", "own.yaml"]
    assert cli._with_run(named) == named


@pytest.mark.parametrize("option", ["checkpoint_steps=0", "checkpoint_minutes=-1"])
def test_checkpoints_come_at_some_distance(option: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(Path(__file__).parents[2])
    with pytest.raises(CalmError, match=f"{option}.* must be more than 0"):
        run.CalmCLI(args=["-c", "configs/smoke/key_value.yaml", f"--{option}"], run=False)


def test_without_a_name_the_newest_run_of_a_config_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    config = Namespace(config=["mine.yaml"])
    assert run._newest_folder(config) == Path("runs/mine")
    for name in ("mine", "mine-2", "mine-10", "mine-other", "minetoo"):
        (tmp_path / "runs" / name).mkdir(parents=True)
    assert run._newest_folder(config) == Path("runs/mine-10")
