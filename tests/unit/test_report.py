"""What a comparison shows: the table, the pictures, and how far it is."""

import csv
import json
import re
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from calm_lightning import comparison_figures, progress, report, screen
from calm_lightning.comparison import Comparison, Job, Row
from calm_lightning.discovery import Plugin
from calm_lightning.progress import Progress
from calm_lightning.screen import NOTHING

APOSTROPHE = chr(0x2019)
ALIKE = chr(0x2248)


def result(name: str, seed: int, **changes: Any) -> dict[str, Any]:
    return {
        "name": name, "seed": seed, "metrics": {"subs": 0.5, "math": 0.25},
        "trained_parameters": 1234, "training_flops": 2.5e12, "seconds": 10.0,
        "config": "c.yaml", "commit": "abc",
        "characters_per_second": 56.0, "memory_mib": 789, "hardware": "an abacus",
        "samples": [], "curve": [[1, 4.0], [2, 3.0]], "key": "k", **changes,
    }  # fmt: skip


def comparison(**changes: Any) -> Comparison:
    rows = (Row("calm", {}, label="CALM"), Row("anchor", {}, train=False, label="anchor alone"))
    return Comparison(**{"name": "table", "rows": rows, "seeds": (0, 1, 2), **changes})


THREE = [
    result("calm", seed, metrics={"subs": share, "math": 0.1}, seconds=seconds)
    for seed, share, seconds in [(0, 0.80, 10.0), (1, 0.90, 20.0), (2, 0.85, 30.0)]
]
ANCHOR = result(
    "anchor",
    0,
    metrics={"math": 0.72},
    trained_parameters=0,
    training_flops=0,
    seconds=0.0,
    curve=[],
)


def lines(said: Comparison, results: list[Any], failed: dict[str, str] | None = None) -> list[str]:
    return report.markdown(said, results, ["subs", "math"], failed or {}).splitlines()


def test_a_cell_is_the_mean_and_the_standard_deviation_of_the_seeds() -> None:
    table = lines(comparison(), [*THREE, ANCHOR])
    assert "| CALM | 85.0 ± 5.0 | 10.0 ± 0.0 | 1,234 | 2.5 | 20 | 56 | 789 |" in table
    assert f"| anchor alone | {NOTHING} | 72.0 | 0 | 0 | 0 | 56 | 789 |" in table
    assert any("mean ± standard deviation over seeds 0, 1, 2" in line for line in table)


def test_the_papers_figure_stands_beside_ours() -> None:
    table = lines(comparison(paper={"calm": {"subs": 0.929}}), THREE)
    assert "| CALM | 85.0 ± 5.0 (92.9) | 10.0 ± 0.0 | 1,234 | 2.5 | 20 | 56 | 789 |" in table
    assert any("paper's figure" in line for line in table)
    assert not any("paper's figure" in line for line in lines(comparison(), THREE))


def test_a_row_that_lacks_a_seed_says_so() -> None:
    table = lines(comparison(), [*THREE[:2], ANCHOR])
    assert any(line.startswith("| CALM (2 of 3 seeds) |") for line in table)
    assert any(line.startswith("| anchor alone |") for line in table)


def test_a_score_that_is_no_number_is_not_averaged_away() -> None:
    spoilt = result("calm", 1, metrics={"subs": None, "math": 0.1})
    table = lines(comparison(seeds=(0, 1)), [THREE[0], spoilt])
    assert any(line.startswith("| CALM | not finite | 10.0 ± 0.0 |") for line in table)


def test_what_chance_explains_is_marked() -> None:
    def answered(name: str, seed: int, right: int) -> dict[str, Any]:
        scores = [1.0] * right + [0.0] * (100 - right)
        return result(name, seed, metrics={"subs": right / 100}, outcomes={"subs": scores})

    calm = [answered("calm", seed, 80 + seed) for seed in (0, 1, 2)]
    for right, mark in ((80, True), (20, False)):
        table = lines(comparison(reference="calm"), [*calm, answered("anchor", 0, right)])
        row = next(line for line in table if line.startswith("| anchor alone"))
        assert (f"| {right}.0 {ALIKE} |" in row) is mark
        assert not any(ALIKE in line for line in table if line.startswith("| CALM"))
    assert any(
        f"{ALIKE} marks scores that chance may set apart from those of CALM" in x for x in table
    )


def test_what_is_not_tested_is_marked_and_explained() -> None:
    def answered(name: str, asked: int, count: int) -> dict[str, Any]:
        right = [1.0] * 99 + [0.0] * (count - 99)
        return result(
            name, 0, metrics={"subs": 0.99}, outcomes={"subs": right}, questions={"subs": asked}
        )

    said = comparison(reference="calm", seeds=(0,))
    calm = answered("calm", 1, 100)
    for other, mark in [
        (answered("anchor", 1, 100), ALIKE),
        (answered("anchor", 2, 100), "?"),  # as many questions, and others
        (answered("anchor", 1, 101), "?"),
        ({**calm, "name": "anchor", "outcomes": {}}, "?"),
    ]:
        table = lines(said, [calm, other])
        assert any(line.startswith(f"| anchor alone | 99.0 {mark} |") for line in table)
        explained = any("? marks scores that are not tested" in line for line in table)
        assert explained is (mark == "?")
        assert any(line.startswith("| CALM | 99.0 |") for line in table)
    table = lines(said, [{**calm, "outcomes": {}}, {**calm, "name": "anchor", "outcomes": {}}])
    assert any("(none has one in subs)" in line for line in table)


def test_a_reference_without_a_result_is_told() -> None:
    table = lines(comparison(reference="calm"), [ANCHOR], {"calm, seed 0": "why"})
    assert any(line.startswith(f"| anchor alone | {NOTHING} | 72.0 ? |") for line in table)
    assert any("CALM, with which they would be compared, has no result" in line for line in table)
    assert not any(ALIKE in line for line in table)


def test_without_a_reference_there_are_no_signs() -> None:
    assert not any("?" in line for line in lines(comparison(), [*THREE, ANCHOR]))


def test_what_is_kept_of_the_baseline_has_its_column() -> None:
    said = comparison(baseline="anchor", retention=("math",))
    table = lines(said, [*THREE, ANCHOR])
    assert "| row | subs | math | math kept | trained parameters |" in table[2]
    assert "| CALM | 85.0 ± 5.0 | 10.0 ± 0.0 | 13.9 | 1,234 |" in "".join(table)
    assert any("Kept: per cent of the score of anchor alone." in line for line in table)


@pytest.mark.parametrize(("kind", "change"), [("losses", "+1.000"), ("lower_is_better", "+100.0")])
def test_where_lower_is_better_the_difference_is_shown(kind: str, change: str) -> None:
    said = comparison(baseline="anchor", retention=("subs", "math"))
    kinds = {kind: ["math"]}
    ours = result("calm", 0, metrics={"subs": 0.5, "math": 2.0}, **kinds)
    theirs = result("anchor", 0, metrics={"subs": 1.0, "math": 1.0}, **kinds)
    table = lines(said, [ours, theirs])
    assert "| subs kept | math change |" in table[2]
    row = next(line for line in table if line.startswith("| CALM"))
    assert f"| 50.0 | {change} |" in row
    assert any(
        "Kept: per cent of the score of anchor alone. Change: the difference from anchor alone; "
        "lower is better." in line
        for line in table
    )
    assert not any("Kept" in x for x in lines(comparison(baseline="anchor", retention=("math",)),
                                              [ours, theirs]))  # fmt: skip


def test_one_seed_has_no_spread() -> None:
    table = lines(comparison(seeds=(0,)), THREE[:1])
    assert "| CALM | 80.0 | 10.0 | 1,234 | 2.5 | 10 | 56 | 789 |" in table
    assert any("one run over seeds 0" in line for line in table)


def test_another_budget_is_marked_and_told() -> None:
    rows = (Row("calm", {}, label="CALM", own_budget="it needs twice the steps"),)
    table = lines(comparison(rows=rows), THREE)
    assert any(line.startswith("| CALM [1] |") for line in table)
    assert "[1] it needs twice the steps" in table


def test_a_row_that_failed_says_why() -> None:
    table = lines(
        comparison(), [ANCHOR], {"calm, seed 0": "no | such thing\nmore", "calm, seed 1": "x"}
    )
    assert r"| CALM | failed: no \| such thing |" in table
    assert r"Failed: CALM, seed 0: no \| such thing" in table
    assert "Failed: CALM, seed 1: x" in table
    table = lines(comparison(), [ANCHOR], {"calm, seed 0": "x", "calm, seed 1": "x"})
    assert "| CALM | failed: x |" in table
    assert not any(line.startswith("Failed") for line in table)


def test_seeds_that_failed_are_named_under_the_table() -> None:
    table = lines(comparison(), THREE[:2], {"calm, seed 2": "no such thing\nmore"})
    assert any(line.startswith("| CALM (2 of 3 seeds) |") for line in table)
    assert "Failed: CALM, seed 2: no such thing" in table


def test_another_anchor_is_a_note_and_so_is_what_a_budget_leaves_out() -> None:
    rows = (Row("calm", {}, label="CALM"), Row("anchor", {}, False, "swapped", own_anchor="large"))
    table = lines(comparison(rows=rows, reference="calm", budget="flops"), [*THREE, ANCHOR])
    assert any(line.startswith("| swapped [1] |") for line in table)
    assert "[1] large" in table
    assert any("drawing candidates for rewriting, is not counted" in line for line in table)


def test_a_loss_is_not_a_share() -> None:
    results = [{**r, "losses": ["subs"]} for r in THREE]
    table = lines(comparison(), results)
    assert "| CALM | 0.850 ± 0.050 | 10.0 ± 0.0 | 1,234 | 2.5 | 20 | 56 | 789 |" in table
    assert table[2].startswith("| row | subs, nats/character | math |")
    assert any("a loss in nats per character" in line for line in table)


def test_samples_are_shown_side_by_side_and_cannot_break_the_table() -> None:
    def sample(answer: str) -> list[dict[str, str]]:
        return [{"set": "math", "prompt": "1|1\n=", "target": "`2`", "answer": answer}]

    results = [{**THREE[0], "samples": sample("2" * 60)}, {**ANCHOR, "samples": sample("")}]
    (line,) = (x for x in lines(comparison(), results) if x.startswith("| math |"))
    cells = re.split(r"(?<!\\)\|", line)[1:-1]
    assert [cell.strip() for cell in cells] == [
        "math", r"`1\|1 =`", f"`{'2' * 40}`", NOTHING, f"`{APOSTROPHE}2{APOSTROPHE}`",
    ]  # fmt: skip


def test_all_files_are_written_with_the_documented_schema(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    report.write_report(comparison(), [*THREE, ANCHOR], tmp_path, {"calm, seed 9": "why"})
    assert {file.name for file in tmp_path.iterdir()} == {
        "results.json", "results.csv", "table.md", "bars.png", "curves.png",
    }  # fmt: skip
    document = json.loads((tmp_path / "results.json").read_text())
    assert document["failed"] == {"calm, seed 9": "why"}
    for row, given in zip(document["rows"], [*THREE, ANCHOR], strict=True):
        for name in (
            "name",
            "seed",
            "metrics",
            "trained_parameters",
            "seconds",
            "config",
            "commit",
        ):
            assert row[name] == given[name]
        assert "key" not in row
    with (tmp_path / "results.csv").open() as stream:
        table = list(csv.DictReader(stream))
    assert [(row["subs"], row["math"]) for row in table][-1] == ("", "0.72")
    assert (tmp_path / "table.md").read_text() in capsys.readouterr().out


def test_losses_are_told_by_character_whatever_the_tokenizer(tmp_path: Path) -> None:
    def lost(name: str, token: float, character: float | None) -> dict[str, Any]:
        details = {"story/loss_nats_per_character": character, "story/too_long": 1.0}
        return result(name, 0, metrics={"story": token}, losses=["story"], details=details)

    results = [lost("calm", 6.263, 4.435), lost("anchor", 4.783, 4.674)]
    report.write_report(comparison(seeds=(0,)), results, tmp_path)
    table = (tmp_path / "table.md").read_text()
    assert "| row | story, nats/character |" in table
    assert "| CALM | 4.435 |" in table
    assert "| anchor alone | 4.674 |" in table
    first = json.loads((tmp_path / "results.json").read_text())["rows"][0]
    assert first["metrics"] == {"story": 4.435}
    assert first["details"] == {"story/loss_nats": 6.263, "story/too_long": 1.0}
    with (tmp_path / "results.csv").open() as stream:
        assert [row["story"] for row in csv.DictReader(stream)] == ["4.435", "4.674"]
    assert results[0]["metrics"] == {"story": 6.263}  # a run's own result stays as it is


def test_a_comparison_without_any_result_has_a_report(tmp_path: Path) -> None:
    (tmp_path / "table.md").write_text("of an earlier run")
    report.write_report(comparison(), [], tmp_path, {"calm, seed 0": "why"})
    table = (tmp_path / "table.md").read_text()
    assert "| CALM | failed: why |" in table
    assert "No run is finished." in table
    assert "earlier" not in table


@pytest.mark.parametrize(
    "results", [[ANCHOR], THREE[:1], [{**r, "losses": ["subs", "math"]} for r in THREE]]
)
def test_pictures_are_drawn_of_whatever_there_is(results: list[Any], tmp_path: Path) -> None:
    comparison_figures.plot_bars(comparison(), results, ["subs", "math"], tmp_path / "bars.png")
    comparison_figures.plot_curves(comparison(), results, tmp_path / "curves.png")
    for file in tmp_path.iterdir():
        assert file.read_bytes().startswith(b"\x89PNG")


# ------------------------------------------------------------------ while it runs


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.0, "0:00"), (59.6, "1:00"), (61.0, "1:01"), (3661.0, "1:01:01")]
)
def test_durations(seconds: float, text: str) -> None:
    assert progress._duration(seconds) == text


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return now


def write(job: Job, out: Path, **said: Any) -> None:
    folder = job.folder(out)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "progress.json").write_text(json.dumps({"loss": None, **said}))


def test_progress_says_which_row_how_far_and_how_long_still(
    tmp_path: Path, clock: list[float], capsys: pytest.CaptureFixture[str]
) -> None:
    jobs = [Job(comparison().rows[0], seed) for seed in (0, 1)]
    with Progress(jobs, jobs, tmp_path, workers=1, line_seconds=0.0) as shown:
        clock[0] += 1
        shown.update()
        write(jobs[0], tmp_path, phase="training", share=0.0)
        shown.update()
        clock[0] += 45
        write(jobs[0], tmp_path, phase="training", share=0.5, loss=2.5)
        shown.update()
        said = capsys.readouterr().err
        assert "2 runs; 1 at a time." in said
        assert "0/2 done; starting; measuring the time left" in said
        # 0.45 of a run took 45 s: 55 s are left of it, and 100 s of the other.
        assert "calm seed 0 45%; about 2:35 left" in said.replace("\n", " ")
        clock[0] += 55
        write(jobs[0], tmp_path, phase="scoring", share=1.0)
        (jobs[0].folder(tmp_path) / "result.json").write_text("{}")
        shown.update()
        said = capsys.readouterr().err.replace("\n", " ")
        assert "1/2 done; starting; about 1:40 left" in said


def test_progress_counts_what_was_done_before(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    jobs = [Job(comparison().rows[0], seed) for seed in (0, 1, 2)]
    with Progress(jobs, jobs[2:], tmp_path, workers=1):
        pass
    assert "3 runs, 2 of them already done; 1 at a time." in capsys.readouterr().err


def test_a_stopped_comparison_says_how_to_go_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(KeyboardInterrupt), Progress([], [], tmp_path, workers=1):
        raise KeyboardInterrupt
    assert "The same command goes on" in capsys.readouterr().err


# ------------------------------------------------------------------ single runs


def test_scores_are_a_line_per_set(capsys: pytest.CaptureFixture[str]) -> None:
    screen.print_scores(
        {"test/subs/accuracy": 0.5, "test/subs/accuracy/keys=2": 0.25, "test/text/loss_nats": 1.5},
        "title",
        {"chrf": "nrefs:1|case:mixed"},
    )
    said = capsys.readouterr().out
    assert "chrf: nrefs:1|case:mixed" in said
    rows = [line.split() for line in said.splitlines()]
    assert ["subs", "0.5000", NOTHING] in rows
    assert ["accuracy/keys=2", "0.2500"] in rows
    assert ["text", NOTHING, "1.5000"] in rows


def test_names_stand_in_full_where_output_is_no_terminal(
    capsys: pytest.CaptureFixture[str],
) -> None:
    scores = [f"a_score_with_a_long_name_{number}" for number in range(9)]
    screen.print_scores({f"test/subs/{score}": 0.5 for score in scores}, "title")
    screen.print_plugins([Plugin("mine", None, "mine.module", "mine 1.0", "no " * 99)])
    said = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["evaluation", "set", *scores] in said
    assert any(line.count("no") == 99 for line in said)


def test_questions_without_room_are_named(capsys: pytest.CaptureFixture[str]) -> None:
    screen.print_scores({"test/subs/accuracy": 0.5, "test/subs/too_long": 3.0}, "title")
    assert "3 questions of subs do not fit the context" in capsys.readouterr().out


def test_a_change_is_shown_as_far_as_it_is_known(capsys: pytest.CaptureFixture[str]) -> None:
    screen.print_change({"a/loss": 2.0, "b/loss": 1.0}, {"val/a/loss": 1.0})
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["a/loss", "2.0000", "1.0000"] in rows
    assert ["b/loss", "1.0000", "-"] in rows


def test_a_broken_plugin_is_listed_with_its_reason(capsys: pytest.CaptureFixture[str]) -> None:
    screen.print_plugins([Plugin("mine", None, "mine.module", "mine 1.0", "ImportError('no')")])
    said = capsys.readouterr().out
    assert "mine" in said
    assert "left out" in said
    assert "ImportError('no')" in said


def test_more_rows_than_colours_are_drawn_one_below_the_other(tmp_path: Path) -> None:
    rows = tuple(Row(f"row{n}", {}, label=f"row {n}") for n in range(12))
    results = [result(row.name, seed) for row in rows for seed in (0, 1)]
    many = comparison(rows=rows)
    few = comparison(rows=rows[:3])
    sizes = []
    for said in (few, many):
        comparison_figures.plot_bars(said, results, ["subs", "math"], tmp_path / "bars.png")
        comparison_figures.plot_curves(said, results, tmp_path / "curves.png")
        with Image.open(tmp_path / "bars.png") as picture:
            sizes.append(picture.height)
    assert sizes[1] == round(150 * (1.0 + 0.27 * 12))  # a line for each
    assert sizes[0] == round(150 * 4.2)


def test_a_note_that_rows_share_is_told_once() -> None:
    rows = tuple(Row(name, {}, label=name, own_budget="longer") for name in ("calm", "anchor"))
    table = lines(comparison(rows=rows), [*THREE, ANCHOR])
    assert sum(line.startswith("[") for line in table) == 1
    assert sum("[1] |" in line for line in table) == 2
