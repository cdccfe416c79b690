"""`calm compare`: the table, what is skipped, what goes on, and what failed."""

import csv
import json
import multiprocessing
import shutil
import statistics
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

from calm_lightning import compare as calm_compare
from calm_lightning.discovery import load_plugins

SPAWN = multiprocessing.get_context("spawn")
EXAMPLE = Path(__file__).parents[1] / "example_plugin"
SMOKE = Path(__file__).parents[2] / "configs" / "smoke" / "compare.yaml"


class HereAndNow:
    """A process that is none: its work is done when it is started, in this process."""

    def __init__(self, target: Callable[..., None], args: tuple[Any, ...]) -> None:
        self.target, self.args = target, args
        self.exitcode: int | None = None

    def start(self) -> None:
        try:
            self.target(*self.args)
            self.exitcode = 0
        except SystemExit as end:
            self.exitcode = int(end.code or 0)

    def is_alive(self) -> bool:
        return False

    def terminate(self) -> None:
        """It has ended."""


@pytest.fixture(scope="module")
def here_and_now() -> Any:
    with pytest.MonkeyPatch.context() as patch:
        context = SimpleNamespace(Process=HereAndNow)
        patch.setattr("calm_lightning.compare.multiprocessing.get_context", lambda kind: context)
        patch.setattr("calm_lightning.compare.time.sleep", lambda seconds: None)
        yield


def write(file: Path, **changes: Any) -> Path:
    """The smoke comparison with less of everything, and with these changes."""
    said = yaml.safe_load(SMOKE.read_text())
    said["base"]["trainer"]["max_steps"] = 3
    if "rows" in changes:
        del said["paper"]  # its figures are of other rows
    said["base"]["data"]["init_args"]["evaluation_examples"] = 4
    file.write_text(yaml.safe_dump({**said, **changes}))
    return file


def stamps(out: Path) -> dict[str, int]:
    return {
        str(file.parent.relative_to(out / "rows")): file.stat().st_mtime_ns
        for file in out.glob("rows/*/*/result.json")
    }


@pytest.fixture(scope="module")
def compared(calm: Any, here_and_now: None, tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("comparison")
    outcome = calm("compare", write(folder / "c.yaml"), "--out", folder / "out")
    assert outcome.status == 0, outcome.err
    return folder, outcome


def test_everything_is_written(compared: Any) -> None:
    folder, outcome = compared
    for name in ("table.md", "results.json", "results.csv", "bars.png", "curves.png"):
        assert (folder / "out" / name).stat().st_size > 0
        assert name in outcome.out
    for name in ("bars.png", "curves.png"):
        assert (folder / "out" / name).read_bytes()[:4] == b"\x89PNG"


def test_the_results_keep_the_documented_schema(compared: Any) -> None:
    document = json.loads((compared[0] / "out" / "results.json").read_text())
    assert [(row["name"], row["seed"]) for row in document["rows"]] == [
        ("augmenting", 0), ("anchor", 0), ("cross_attention", 0), ("oracle", 0),
        ("cross_attention", 1),
    ]  # fmt: skip
    for row in document["rows"]:
        wanted = {"name", "seed", "metrics", "trained_parameters", "seconds", "config", "commit"}
        assert wanted <= row.keys()
        assert row["metrics"].keys() == {
            "kv_subs",
            "num_math",
            "kv_math_seen_keys",
            "kv_math_unseen_keys",
            "kv_math_mixed_keys",
        }
        assert all(0 <= value <= 1 for value in row["metrics"].values())
        assert Path(row["config"]).is_file()
        trained = row["name"] == "cross_attention"
        assert (row["trained_parameters"] > 0) is trained
        assert (row["seconds"] > 0) is trained


def test_each_rows_config_runs_again_by_itself(calm: Any, compared: Any) -> None:
    config = compared[0] / "out" / "rows" / "cross_attention" / "seed_1" / "config.yaml"
    said = yaml.safe_load(config.read_text())
    assert said["seed_everything"] == 1
    assert said["data"]["init_args"]["seed"] == 1
    again = calm("fit", "-c", config, "--run", compared[0] / "again",
                 "--trainer.limit_val_batches=0")  # fmt: skip
    assert again.status == 0, again.err


def test_the_table_shows_every_row_and_the_samples(compared: Any) -> None:
    text = (compared[0] / "out" / "table.md").read_text()
    lines = text.splitlines()
    table = [line for line in lines if line.startswith("| ")]
    assert [line.split(" | ")[0] for line in table[:5]] == [
        "| row", "| augmenting model alone", "| anchor alone", "| CALM", "| oracle",
    ]  # fmt: skip
    assert "±" in table[3]
    assert "±" not in table[2]
    assert "(92.9)" in table[3]  # the paper's figure beside ours
    samples = [line for line in table if line.startswith("| kv_math_unseen_keys |")]
    assert len(samples) == 2
    assert all(line.count("|") == samples[0].count("|") for line in samples)


def test_the_csv_says_the_same_as_the_json(compared: Any) -> None:
    out = compared[0] / "out"
    rows = json.loads((out / "results.json").read_text())["rows"]
    with (out / "results.csv").open() as stream:
        lines = list(csv.DictReader(stream))
    assert [(line["name"], int(line["seed"])) for line in lines] == [
        (row["name"], row["seed"]) for row in rows
    ]
    for line, row in zip(lines, rows, strict=True):
        assert float(line["kv_math_seen_keys"]) == row["metrics"]["kv_math_seen_keys"]
        assert float(line["num_math"]) == row["metrics"]["num_math"]
        assert int(line["trained_parameters"]) == row["trained_parameters"]


def test_what_is_finished_is_not_run_again(calm: Any, compared: Any) -> None:
    folder, _ = compared
    before = stamps(folder / "out")
    outcome = calm("compare", folder / "c.yaml", "--out", folder / "out")
    assert outcome.status == 0
    assert stamps(folder / "out") == before
    assert "5 runs, 5 of them already done" in outcome.err


def test_rows_get_as_much_arithmetic_as_the_reference(
    calm: Any, here_and_now: None, tmp_path: Path
) -> None:
    narrow = {"model": {"composition": {"init_args": {"every": 4}}}}
    rows = [
        {"name": "narrow", "config": narrow},  # listed first, run after its measure
        {"name": "wide"},
    ]
    file = write(tmp_path / "c.yaml", rows=rows, seeds=[0], budget="flops", reference="wide")
    outcome = calm("compare", file, "--out", tmp_path / "out")
    assert outcome.status == 0, outcome.err
    assert "as much arithmetic as wide" in outcome.out
    document = json.loads((tmp_path / "out" / "results.json").read_text())
    results = {row["name"]: row for row in document["rows"]}
    narrow_steps = results["narrow"]["steps"]
    assert narrow_steps > results["wide"]["steps"] == 3
    of_a_step = results["narrow"]["training_flops"] / narrow_steps
    missing = results["wide"]["training_flops"] - results["narrow"]["training_flops"]
    assert abs(missing) <= of_a_step / 2


def test_a_comparison_that_was_stopped_goes_on(
    calm: Any, here_and_now: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The third run is stopped as by Ctrl+C; the next call does what is left, and no more."""
    file, out = write(tmp_path / "c.yaml"), tmp_path / "out"
    real, names = calm_compare.run_job, []

    def stopped(job: Any, *rest: Any) -> None:
        names.append(job.row.name)
        if len(names) == 3:
            raise KeyboardInterrupt
        real(job, *rest)

    monkeypatch.setattr("calm_lightning.compare.run_job", stopped)
    outcome = calm("compare", file, "--out", out)
    assert outcome.status == 130
    assert "goes on with what is unfinished" in outcome.err
    assert stamps(out).keys() == {"augmenting/seed_0", "anchor/seed_0"}
    before = stamps(out)
    monkeypatch.setattr("calm_lightning.compare.run_job", real)
    assert calm("compare", file, "--out", out).status == 0
    after = stamps(out)
    assert len(after) == 5
    assert before.items() <= after.items()


def test_a_half_written_result_is_not_taken_for_a_result(calm: Any, compared: Any) -> None:
    folder, _ = compared
    before = stamps(folder / "out")
    result = folder / "out" / "rows" / "oracle" / "seed_0" / "result.json"
    result.write_text(result.read_text()[:40])
    assert calm("compare", folder / "c.yaml", "--out", folder / "out").status == 0
    assert json.loads(result.read_text())["name"] == "oracle"
    after = stamps(folder / "out")
    assert {name for name in before if before[name] != after[name]} == {"oracle/seed_0"}


def test_a_changed_row_is_run_again_and_no_other(calm: Any, compared: Any) -> None:
    folder, _ = compared
    before = stamps(folder / "out")
    said = yaml.safe_load((folder / "c.yaml").read_text())
    said["rows"][1]["config"] = {
        "model": {"anchor": {"seed": 4}, **said["rows"][1]["config"]["model"]}
    }
    (folder / "changed.yaml").write_text(yaml.safe_dump(said))
    assert calm("compare", folder / "changed.yaml", "--out", folder / "out").status == 0
    after = stamps(folder / "out")
    assert {name for name in before if before[name] != after[name]} == {"anchor/seed_0"}


def test_a_row_that_fails_is_named_and_the_others_are_in_the_table(
    calm: Any, here_and_now: None, tmp_path: Path
) -> None:
    heads = {"model": {"composition": {"init_args": {"num_heads": 3}}}}
    typo = {"model": {"composition": {"class_path": "CrossAtention"}}}
    rows = [
        {"name": "heads", "label": "three heads", "config": heads},
        {"name": "typo", "config": typo},
        {"name": "anchor", "train": False,
         "config": {"model": {"composition": {"class_path": "Single"}}}},
    ]  # fmt: skip
    file = write(tmp_path / "c.yaml", rows=rows, seeds=[0])
    message = calm("compare", file, "--out", tmp_path / "out").message
    assert "2 of 3 runs failed" in message
    assert "heads, seed 0: num_heads=3 must divide" in message
    assert "Did you mean CrossAttention?" in message
    document = json.loads((tmp_path / "out" / "results.json").read_text())
    assert [row["name"] for row in document["rows"]] == ["anchor"]
    assert document["failed"].keys() == {"heads, seed 0", "typo, seed 0"}
    table = (tmp_path / "out" / "table.md").read_text()
    assert "| three heads | failed: num_heads=3" in table
    assert "| anchor |" in table


def test_only_some_rows_and_seeds(calm: Any, here_and_now: None, tmp_path: Path) -> None:
    file, out = write(tmp_path / "c.yaml"), tmp_path / "out"
    options = ("--rows", "cross_attention", "anchor", "--seeds", 1)
    assert calm("compare", file, "--out", out, *options).status == 0
    assert stamps(out).keys() == {"cross_attention/seed_1"}
    assert "no rows ['calm']" in calm("compare", file, "--out", out, "--rows", "calm").message
    assert "seeds [7]" in calm("compare", file, "--out", out, "--seeds", 7).message
    assert "--workers" in calm("compare", file, "--out", out, "--workers", 0).message


def test_losses_are_shown_in_nats_and_not_as_shares(
    calm: Any, here_and_now: None, tmp_path: Path
) -> None:
    data = tmp_path / "story.txt"
    data.write_text("".join(f"<ab{n % 7}>={n % 5};\n" for n in range(60)))
    base = yaml.safe_load(SMOKE.read_text())["base"]
    base["trainer"]["max_steps"] = 2
    base["data"] = {"class_path": "TextFile",
                    "init_args": {"train": str(data), "characters": 50}}  # fmt: skip
    rows = [{"name": "calm"}]
    changes = {"rows": rows, "base": base, "columns": [], "samples": {"held_out": 1}}
    file = write(tmp_path / "c.yaml", **changes)
    assert calm("compare", file, "--out", tmp_path / "out").status == 0
    runs = json.loads((tmp_path / "out" / "results.json").read_text())["rows"]
    losses = [run["metrics"]["held_out"] for run in runs]
    kept = [
        json.loads(file.read_text())["details"]["held_out/loss_nats_per_character"]
        for file in sorted((tmp_path / "out").glob("rows/calm/*/result.json"))
    ]
    assert losses == kept
    text = (tmp_path / "out" / "table.md").read_text()
    assert "held_out, nats/character" in text
    assert f"{statistics.fmean(losses):.3f} ± {statistics.stdev(losses):.3f}" in text
    # The data's content decides too.
    before = stamps(tmp_path / "out")
    data.write_text(data.read_text().replace("4", "3"))
    assert calm("compare", file, "--out", tmp_path / "out").status == 0
    after = stamps(tmp_path / "out")
    assert all(before[name] != after[name] for name in before)


def test_worker_processes_do_the_same(calm: Any, compared: Any, tmp_path: Path) -> None:
    """One row through a real, spawned worker process equals the row that was run in this one."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("calm_lightning.compare.multiprocessing.get_context", lambda kind: SPAWN)
        file = write(tmp_path / "c.yaml")
        options = ("--rows", "cross_attention", "--seeds", 0, "--workers", 1)
        assert calm("compare", file, "--out", tmp_path / "out", *options).status == 0
    result = "rows/cross_attention/seed_0/result.json"
    there = json.loads((tmp_path / "out" / result).read_text())
    here = json.loads((compared[0] / "out" / result).read_text())
    assert there["metrics"] == here["metrics"]
    assert there["curve"] == here["curve"]


def test_controls_score_the_weights_of_another_row(
    calm: Any, here_and_now: None, tmp_path: Path
) -> None:
    rows = [
        {"name": "trained"},
        {"name": "again", "weights_of": "trained"},
        {"name": "zeroed", "weights_of": "trained", "config": {"model": {"disturb": "zero"}}},
        {"name": "shuffled", "weights_of": "trained", "config": {"model": {"disturb": "shuffle"}}},
    ]
    outcome = calm("compare", write(tmp_path / "c.yaml", rows=rows), "--out", tmp_path / "out")
    assert outcome.status == 0, outcome.err
    found = {
        (row["name"], row["seed"]): row
        for row in json.loads((tmp_path / "out" / "results.json").read_text())["rows"]
    }
    assert len(found) == 8
    for seed in (0, 1):
        told = {name: found[name, seed]["details"] for name in ("trained", "again")}
        assert told["again"] == pytest.approx(told["trained"])
        losses = {
            found[name, seed]["details"]["kv_subs/loss_nats"]
            for name in ("trained", "zeroed", "shuffled")
        }
        assert len(losses) == 3
    assert found["again", 0]["seconds"] == 0
    assert found["again", 0]["details"] != found["again", 1]["details"]


def test_a_control_without_its_weights_says_so(
    calm: Any, here_and_now: None, tmp_path: Path
) -> None:
    rows = [{"name": "trained"}, {"name": "again", "weights_of": "trained"}]
    file = write(tmp_path / "c.yaml", rows=rows)
    message = calm("compare", file, "--out", tmp_path / "out", "--rows", "again").message
    assert "row 'trained' with seed 0, which this one needs, is not finished" in message


def test_a_row_may_become_another_kind_of_model(
    calm: Any, here_and_now: None, tmp_path: Path
) -> None:
    """A plain model, then a composition, then a plain one again under one name."""
    single = {"class_path": "Single", "init_args": {"train": True}}
    kinds = [(single, False), ({"class_path": "CrossAttention"}, True), (single, False)]
    for composition, composed in kinds:
        rows = [{"name": "a", "config": {"model": {"composition": composition}}}]
        file = write(tmp_path / "c.yaml", rows=rows, seeds=[0])
        outcome = calm("compare", file, "--out", tmp_path / "out")
        assert outcome.status == 0, outcome.err
        folder = tmp_path / "out" / "rows" / "a" / "seed_0"
        assert (folder / "model" / "composition.safetensors").exists() is composed
        assert (folder / "model" / "model.safetensors").exists() is not composed
        assert not list(folder.glob(".*"))


def test_a_bridge_of_another_package_is_in_the_table(
    calm: Any, here_and_now: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Found by its entry point, as pip would leave it; trained and scored beside ours."""
    shutil.copytree(EXAMPLE / "calm_example", tmp_path / "site" / "calm_example")
    metadata = tmp_path / "site" / "calm_example_plugin-0.2.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Name: calm-example-plugin\nVersion: 0.2.0\n")
    declared = "[calm_lightning.plugins]\nnewest_state = calm_example.newest_state\n"
    (metadata / "entry_points.txt").write_text(declared)
    monkeypatch.syspath_prepend(tmp_path / "site")
    load_plugins.cache_clear()
    rows = [
        {"name": "ours"},
        {"name": "theirs", "label": "newest state",
         "config": {"model": {"composition": {"class_path": "NewestState"}}}},
    ]  # fmt: skip
    try:
        file = write(tmp_path / "c.yaml", rows=rows, seeds=[0])
        outcome = calm("compare", file, "--out", tmp_path / "out")
    finally:
        load_plugins.cache_clear()
    assert outcome.status == 0, outcome.err
    table = (tmp_path / "out" / "table.md").read_text()
    assert "| newest state |" in table
    results = json.loads((tmp_path / "out" / "results.json").read_text())["rows"]
    trained = {row["name"]: row["trained_parameters"] for row in results}
    assert 0 < trained["theirs"] < trained["ours"]


def test_a_column_that_there_is_not_is_found_before_training(
    calm: Any, here_and_now: None, tmp_path: Path
) -> None:
    file = write(tmp_path / "c.yaml", columns=["kv_subs", "num_mth"], rows=[{"name": "a"}])
    message = calm("compare", file, "--out", tmp_path / "out").message
    assert "evaluation sets that there are not: ['num_mth']; there are ['kv_subs'" in message
    assert "Did you mean num_math?" in message
    file = write(tmp_path / "c.yaml", samples={"kv_sub": 1}, rows=[{"name": "a"}])
    message = calm("compare", file, "--out", tmp_path / "out").message
    assert "['kv_sub']; there are" in message
    assert not list((tmp_path / "out").rglob("model"))
