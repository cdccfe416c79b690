"""What the runs of a comparison leave: nothing old is lost too early, and only one writes."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from calm_lightning.alone import alone_in
from calm_lightning.contracts import CalmError
from calm_lightning.results import keep_result, save_beside, write_whole


def model(weights: str, fails: bool = False) -> Callable[[Path], None]:
    """Saves a model whose weights are this text."""

    def save(folder: Path) -> None:
        if (folder / "weights").exists():
            raise CalmError("this folder holds another model")
        folder.mkdir()
        if fails:
            raise CalmError("the disk is full")
        (folder / "weights").write_text(weights)

    return save


def held(folder: Path) -> tuple[str, str]:
    result = json.loads((folder / "result.json").read_text())
    return result["of"], (folder / "model" / "weights").read_text()


def test_a_new_model_and_its_result_take_the_places_of_the_old_ones(tmp_path: Path) -> None:
    for name in ("first", "second"):
        keep_result({"of": name}, tmp_path, save_beside(model(name), tmp_path))
        assert held(tmp_path) == (name, name)
    assert {file.name for file in tmp_path.iterdir()} == {"model", "result.json"}


def test_the_old_ones_stay_until_the_new_result_is_there(tmp_path: Path) -> None:
    keep_result({"of": "first"}, tmp_path, save_beside(model("first"), tmp_path))
    with pytest.raises(CalmError, match="disk is full"):
        save_beside(model("spoilt", fails=True), tmp_path)
    assert held(tmp_path) == ("first", "first")
    beside = save_beside(model("second"), tmp_path)
    assert held(tmp_path) == ("first", "first")
    with pytest.raises(ValueError, match="not JSON compliant"):
        keep_result({"of": float("nan")}, tmp_path, beside)
    assert held(tmp_path) == ("first", "first")


def test_a_run_that_trains_nothing_leaves_the_model_that_is_there(tmp_path: Path) -> None:
    keep_result({"of": "first"}, tmp_path, save_beside(model("first"), tmp_path))
    save_beside(model("of a run that was stopped"), tmp_path)
    keep_result({"of": "scored"}, tmp_path)
    assert held(tmp_path) == ("scored", "first")


def test_a_file_that_cannot_be_written_whole_is_left_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "result.json"
    write_whole("first", file)

    def full(self: Path, target: Path) -> None:
        raise OSError("no space left")

    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(OSError, match="no space"):
        write_whole("second", file)
    assert [(each.name, each.read_text()) for each in tmp_path.iterdir()] == [
        ("result.json", "first")
    ]


def test_two_comparisons_in_one_folder_are_refused_with_the_holder_named(tmp_path: Path) -> None:
    folder = tmp_path / "out"
    with alone_in(folder, "calm compare", "--out"):
        with pytest.raises(CalmError) as error, alone_in(folder, "calm compare", "--out"):
            pytest.fail("both were let in")
        assert f"process {os.getpid()} on " in str(error.value)
        assert "name another folder by --out" in str(error.value)
    with alone_in(folder, "calm compare", "--out"):
        """The first one has ended."""


def test_a_comparison_that_was_killed_keeps_nobody_out(tmp_path: Path) -> None:
    lock = f"from filelock import FileLock; x = FileLock({str(tmp_path / '.lock')!r}); x.acquire()"
    dying = f"import sys; {lock}; print(flush=True); sys.stdin.read()"
    with subprocess.Popen(
        [sys.executable, "-c", dying], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()
        (tmp_path / ".process").write_text(f"process {process.pid} on this machine")
        with (
            pytest.raises(CalmError, match=f"process {process.pid} on"),
            alone_in(tmp_path, "calm fit", "--run"),
        ):
            pytest.fail("both were let in")
        process.kill()
        process.wait()
        with alone_in(tmp_path, "calm fit", "--run"):
            """The lock went with its process."""
