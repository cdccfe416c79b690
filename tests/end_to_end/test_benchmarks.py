"""The benchmarks run and tell what they leave out; how long anything takes is nobody's promise."""

import importlib
import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
Bench = Callable[..., dict[str, Any]]


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Bench:
    """`python -m benchmarks` in this process, and the JSON that it writes."""
    monkeypatch.syspath_prepend(str(ROOT))
    command = importlib.import_module("benchmarks.__main__")

    def run(job: str, *options: str) -> dict[str, Any]:
        size = ("--pair=tiny", "--rounds=2", "--warm-up=0", f"--out={tmp_path}")
        monkeypatch.setattr(sys, "argv", ["benchmarks", job, *size, *options])
        command.main()
        file = tmp_path / f"{job}_tiny.json"
        assert file.with_suffix(".png").stat().st_size > 1000
        written: dict[str, Any] = json.loads(file.read_text())
        return written

    return run


def test_sides_train_in_the_same_rounds_and_are_told_as_ratios(bench: Bench) -> None:
    told = bench("training", "--sides", "calm", "floor", "anchor", "lora", "full")
    assert (told["threads"], told["clock"]) == (1, "processor time")
    rows = {row["side"]: row for row in told["rows"]}
    assert len(rows) == 5
    assert all(len(row["values"]) == 2 and row["quartiles"][1] > 0 for row in rows.values())
    assert rows["floor"]["ratio"] == [1.0, 1.0, 1.0]


def test_generation_is_timed_as_a_whole_and_by_the_token(bench: Bench) -> None:
    told = bench("generation", "--sides", "calm", "anchor", "floor", "--lengths", "20", "30")
    whole = [row for row in told["rows"] if row["quantity"] == "64 new tokens"]
    assert {row["side"] for row in whole} == {"calm-lightning", "anchor alone", "floor"}
    assert all(row["rate"] == [64, "tokens/s"] for row in whole)
    growing = [row["at"] for row in told["rows"] if row["side"] == "floor"]
    assert growing == [None, 20, 30]


def test_memory_is_the_same_every_time_and_most_where_all_is_trained(bench: Bench) -> None:
    runs = [bench("memory", "--sides", "calm", "floor", "lora", "full") for _ in range(2)]
    peaks = [{row["side"]: row["values"][0] for row in told["rows"]} for told in runs]
    assert peaks[0] == peaks[1]
    assert max(peaks[0], key=lambda side: peaks[0][side]) == "full fine-tuning"
    assert min(peaks[0], key=lambda side: peaks[0][side]) == "floor"


@pytest.mark.slow
def test_evaluation_and_every_size_are_measured(bench: Bench) -> None:
    assert len(bench("evaluation", "--sides", "calm", "anchor")["rows"]) == 2
    told = bench("scaling", "--sides", "calm", "floor", "--axes", "models")
    assert sorted({row["at"] for row in told["rows"]}) == [1, 2, 3]
    assert len(told["rows"]) == 3 * 2 * 2


@pytest.mark.slow
def test_states_are_cached_over_several_wirings(bench: Bench) -> None:
    told = bench("cached_states")
    assert sorted({row["at"] for row in told["rows"]}) == [1, 2, 4]
    sides = {row["side"] for row in told["rows"]}
    assert sides == {"without a cache", "first epoch", "later epochs"}
    assert len(told["rows"]) == 3 * 3


def test_what_is_not_installed_is_left_out_and_said(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "CALM_pytorch", None)
    told = bench("memory", "--sides", "calm_pytorch", "lora")
    assert [row["side"] for row in told["rows"]] == ["LoRA"]
    assert any("CALM-pytorch is left out" in note for note in told["notes"])


def test_a_profile_tells_the_modules_apart_there_and_back(
    bench: Bench, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(FileNotFoundError):  # nothing is written
        bench("training", "--sides", "calm", "--profile")
    told = capsys.readouterr().out
    times = {
        label.strip(): (float(there), float(back))
        for label, there, back in re.findall(
            r"^  (\S.+?) +([\d.]+) +([\d.]+) +[\d.]+%$", told, re.M
        )
    }
    assert all(times["bridges: 4 x CrossAttentionBridge"])
    assert all(times["anchor.model.layers: 4 x LlamaDecoderLayer"])
    assert times["augmenting.0.model.layers: 4 x LlamaDecoderLayer"][1] == 0
    assert "aten::mm" in told
