"""The benchmarks run and tell what they leave out; how long anything takes is nobody's promise."""

import importlib
import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from calm_lightning.compare import commit

ROOT = Path(__file__).parents[2]
Bench = Callable[..., dict[str, Any]]
Part = Callable[[str], Any]


@pytest.fixture
def part(monkeypatch: pytest.MonkeyPatch) -> Part:
    """A module of the benchmarks, by name."""
    monkeypatch.syspath_prepend(str(ROOT))
    return lambda name: importlib.import_module(f"benchmarks.{name}")


@pytest.fixture
def bench(part: Part, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Bench:
    """`python -m benchmarks` in this process, and the JSON that it writes."""
    command = part("__main__")

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
    assert all(set(row["ratios"]) == {"floor", "calm-lightning"} for row in told["rows"])
    assert rows["floor"]["ratios"]["floor"] == [1.0, 1.0, 1.0]
    assert told["commit"] == commit()


def test_every_ratio_is_the_median_of_those_within_one_round(
    part: Part, capsys: pytest.CaptureFixture[str]
) -> None:
    reporting, row = part("report"), part("jobs").Row
    seconds = {"calm-lightning": [1, 2, 3], "floor": [1, 1, 3], "other": [2, 8, 3]}
    rows = [row(side, "step", "s", list(map(float, s)), "floor") for side, s in seconds.items()]
    told = [reporting.summary(each, rows) for each in rows]
    assert told[2]["ratios"] == {"floor": (1.5, 2.0, 5.0), "calm-lightning": (1.5, 2.0, 3.0)}
    # Of the medians it would be 3 / 1 and 3 / 2.
    reporting.print_table(told)
    head, *lines, method = capsys.readouterr().out.strip().splitlines()
    assert "to floor" in head
    assert "to calm-lightning" in head
    shown = " ".join(lines[2].split())
    assert shown.endswith("2.000 (1.500 to 5.000) 2.000 (1.500 to 3.000)")
    assert all(line.count("(") == 3 for line in lines)
    assert method == reporting.METHOD
    assert "within one round" in method


def test_the_floor_pays_for_no_logits_and_has_the_loss_of_its_model(part: Part) -> None:
    sides, pair = part("sides"), part("pairs").PAIRS["tiny"]
    floor = sides.Floor(pair)
    ids = pair.tokens(2, 16)
    mask, labels = torch.ones_like(ids), ids.clone()
    mask[0, :5] = 0
    labels[0, :9] = -100
    asked: list[Any] = []
    floor.model.get_output_embeddings().register_forward_hook(lambda *given: asked.append(given))
    found = []
    for loss in (floor.loss, super(sides.Floor, floor).loss):
        floor.map.zero_grad()
        value = loss(ids, mask, labels)
        value.backward()
        assert floor.map.weight.grad is not None
        found += [(value.detach(), floor.map.weight.grad.clone(), len(asked))]
    (ours, gradient, none), (whole, wanted, once) = found
    torch.testing.assert_close(ours, whole)
    torch.testing.assert_close(gradient, wanted)
    assert (none, once) == (0, 1)


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
