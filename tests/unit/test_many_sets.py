"""Averages over many sets, wins against one row, and the picture of the gains."""

from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from calm_lightning import report
from calm_lightning.comparison import Comparison, Row
from calm_lightning.many_sets import means, plot_gains, wins

SETS = ["tat", "kab", "isl"]
ROWS = (
    Row("calm", {}, label="CALM"),
    Row("lora", {}, label="LoRA"),
    Row("anchor", {}, train=False, label="anchor alone"),
)


def result(name: str, seed: int, *scores: float | None, **changes: Any) -> dict[str, Any]:
    return {
        "name": name, "seed": seed, "metrics": dict(zip(SETS, scores, strict=False)),
        "commit": "abc", "config": "c.yaml", "curve": [], "samples": [], "key": "k", **changes,
    }  # fmt: skip


RESULTS = [
    result("calm", 0, 0.30, 0.10, 0.20),
    result("calm", 1, 0.40, 0.10, 0.10),
    result("lora", 0, 0.10, 0.30, 0.10),
    result("anchor", 0, 0.20, 0.05, 0.15),
]


def said(**changes: Any) -> Comparison:
    return Comparison(
        **{"name": "many", "rows": ROWS, "seeds": (0, 1), "wins": "anchor", **changes}
    )


def table(comparison: Comparison, results: list[dict[str, Any]]) -> list[str]:
    return report.markdown(comparison, results, SETS, {}).splitlines()


def test_a_row_has_a_mean_only_with_a_score_on_every_set() -> None:
    assert means(RESULTS, "calm", SETS) == pytest.approx([0.35, 0.10, 0.15])
    assert means([result("calm", 0, 0.3, None, 0.2)], "calm", SETS) == []
    assert means(RESULTS, "nobody", SETS) == []


def test_equal_scores_are_no_win_and_a_smaller_loss_is_one() -> None:
    assert wins([3.0, 1.0, 2.0], [2.0, 2.0, 2.0], [False] * 3) == 1
    assert wins([3.0, 1.0, 2.0], [2.0, 2.0, 2.0], [True] * 3) == 1
    assert wins([3.0, 1.0], [2.0, 2.0], [False, True]) == 2


def test_the_table_tells_average_and_wins() -> None:
    lines = table(said(), RESULTS)
    cells = [line.strip("| ").split(" | ") for line in lines if line.startswith("| ")]
    told = {row[0].partition(" (")[0]: row[4:6] for row in cells}
    assert told["row"] == ["average", "wins"]
    assert told["CALM"] == ["20.0", "2 of 3"]
    assert told["LoRA"] == ["16.7", "1 of 3"]
    assert told["anchor alone"] == ["13.3", ""]
    assert any("Wins: sets on which a row is better than anchor alone." in line for line in lines)
    assert "wins" not in table(said(wins=""), RESULTS)[4]


def test_losses_and_shares_have_no_common_average() -> None:
    mixed = [
        result("calm", 0, 0.3, 1.0, 0.2, losses=["kab"]),
        result("anchor", 0, 0.2, 2.0, 0.3, losses=["kab"]),
    ]
    line = next(line for line in table(said(), mixed) if line.startswith("| CALM"))
    assert line.split(" | ")[4:6] == ["", "2 of 3"]


def test_the_gains_are_drawn_where_there_is_somebody_to_win_against(tmp_path: Path) -> None:
    file = tmp_path / "gains.png"
    assert not plot_gains(said(wins=""), RESULTS, SETS, (), (), file)
    assert not plot_gains(said(), RESULTS[:3], SETS, (), (), file)  # it has no scores
    assert not file.exists()
    assert plot_gains(said(), RESULTS, SETS, (), (), file)
    with Image.open(file) as image:
        assert image.size[0] > 500
