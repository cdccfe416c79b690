"""A comparison as its file says it: rows, budgets, merging, and what is done again."""

import os
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from lightning.pytorch.utilities.exceptions import SIGTERMException

from calm_lightning import compare as compare_module
from calm_lightning.compare import (
    _next,
    _reason,
    _run_alone,
    _see_one_gpu,
    commit,
    compare,
    draw_samples,
    finished,
    split_metrics,
)
from calm_lightning.comparison import Job, Row, merge, read_comparison
from calm_lightning.contracts import CalmError, EvaluationSet, ExactMatch, Example
from calm_lightning.results import keep_result, result_of

BASE = {
    "model": {"anchor": {"path": "a"}, "composition": {"class_path": "A", "init_args": {"x": 1}}},
    "data": {"class_path": "D", "init_args": {"batch_size": 4}},
    "trainer": {"max_steps": 5},
}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "some_name.yaml"


def read(file: Path, **said: Any) -> Any:
    file.write_text(yaml.safe_dump({"base": BASE, "rows": [{"name": "a"}], **said}))
    return read_comparison(file)


def refusal(file: Path, **said: Any) -> str:
    with pytest.raises(CalmError) as error:
        read(file, **said)
    assert str(file) in str(error.value)
    return str(error.value)


def test_defaults(file: Path) -> None:
    said = read(file)
    assert (said.name, said.seeds, said.columns, said.threads) == ("some_name", (0,), (), 1)
    assert [(row.name, row.label, row.train) for row in said.rows] == [("a", "a", True)]
    assert said.rows[0].config == BASE


def test_rows_differ_from_the_base_only_where_they_say_so(file: Path) -> None:
    own = {"model": {"composition": {"init_args": {"y": 2}}}}
    (row,) = read(file, rows=[{"name": "a", "config": own}]).rows
    assert row.config["model"]["composition"] == {"class_path": "A", "init_args": {"x": 1, "y": 2}}
    assert row.config["trainer"] == BASE["trainer"]


def test_another_class_does_not_inherit_the_arguments_of_the_first() -> None:
    first = {"class_path": "A", "init_args": {"x": 1}}
    assert merge(first, {"class_path": "B"}) == {"class_path": "B"}
    assert merge(first, {"class_path": "A", "init_args": {"y": 2}})["init_args"] == {"x": 1, "y": 2}
    assert merge({"m": first}, {"m": {"init_args": {"x": 3}}}) == {
        "m": {"class_path": "A", "init_args": {"x": 3}}
    }


def test_merging_changes_neither_side() -> None:
    base, own = {"a": {"b": [1]}}, {"a": {"c": [2]}}
    merged = merge(base, own)
    merged["a"]["b"].append(9)
    merged["a"]["c"].append(9)
    assert (base, own) == ({"a": {"b": [1]}}, {"a": {"c": [2]}})


@pytest.mark.parametrize(
    ("config", "named"),
    [
        ({"trainer": {"max_steps": 9}}, "trainer.max_steps"),
        ({"trainer": {"max_epochs": 9}}, "trainer.max_epochs"),
        ({"trainer": {"limit_train_batches": 3}}, "trainer.limit_train_batches"),
        ({"trainer": {"callbacks": [{"class_path": "EarlyStopping"}]}}, "trainer.callbacks"),
        ({"model": {"start_from": "runs/other/model"}}, "model.start_from"),
        ({"data": {"init_args": {"batch_size": 8}}}, "data"),
    ],
)
def test_another_budget_needs_a_reason(file: Path, config: dict[str, Any], named: str) -> None:
    message = refusal(file, rows=[{"name": "a"}, {"name": "b", "config": config}])
    assert f"row 2 (b): it changes {named}" in message
    assert "own_budget" in message
    (row,) = read(file, rows=[{"name": "b", "config": config, "own_budget": "because"}]).rows
    assert row.own_budget == "because"


def test_what_does_not_change_the_budget_needs_none(file: Path) -> None:
    config = {"trainer": {"gradient_clip_val": 1.0}, "model": {"warmup_steps": 3}}
    assert read(file, rows=[{"name": "b", "config": config}]).rows[0].own_budget == ""


def test_untrained_rows_are_scored_once(file: Path) -> None:
    said = read(file, rows=[{"name": "a"}, {"name": "b", "train": False}], seeds=[3, 5])
    assert [(job.row.name, job.seed) for job in said.jobs] == [("a", 3), ("b", 3), ("a", 5)]


def test_the_seed_is_put_everywhere(file: Path) -> None:
    said = read(file, seeds=[7])
    config = said.jobs[0].config()
    assert config["seed_everything"] == config["data"]["init_args"]["seed"] == 7
    assert "seed" not in said.rows[0].config["data"]["init_args"]


def test_a_comparison_extends_another(file: Path) -> None:
    read(file, rows=[{"name": "a"}, {"name": "b"}], seeds=[1, 2], about="first")
    child = file.with_name("child.yaml")
    child.write_text(yaml.safe_dump({"extends": file.name, "seeds": [4], "only": ["b"]}))
    said = read_comparison(child)
    assert (said.name, said.seeds, said.about) == ("child", (4,), "first")
    assert [row.name for row in said.rows] == ["b"]
    child.write_text(yaml.safe_dump({"extends": "nothing.yaml"}))
    with pytest.raises(CalmError, match=r"nothing\.yaml"):
        read_comparison(child)


@pytest.mark.parametrize(
    ("said", "wanted"),
    [
        ({"rowz": 1}, "unknown entries ['rowz']"),
        ({"rows": [{"name": "a", "cfg": {}}]}, "row 1: unknown entries ['cfg']"),
        ({"rows": []}, "a list `rows`"),
        ({"rows": {"a": 1}}, "a list `rows`"),
        ({"rows": ["a"]}, "row 1: expected a mapping"),
        ({"rows": [{"label": "a"}]}, "at least `name`"),
        ({"rows": [{"name": "a"}, {"name": "a"}]}, "two rows have one name"),
        ({"rows": [{"name": "../a"}]}, "cannot be the name of a folder"),
        ({"rows": [{"name": "a", "config": [1]}]}, "config must be a mapping"),
        ({"rows": [{"name": "a", "config": {"trainer": 3}}]}, "`trainer` must be a mapping"),
        ({"rows": [{"name": "a", "config": {"data": "D"}}]}, "`data` must be a mapping"),
        ({"rows": [{"name": "a", "config": {"data": {"init_args": 5}}}]}, "`data.init_args` must"),
        ({"rows": [{"name": "a", "config": {"model": {"anchor": 1}}}]}, "`model.anchor` must"),
        ({"rows": [{"name": "a", "config": {"model": {"augmenting": 5}}}]}, "must be a list"),
        ({"rows": [{"name": "a" * 300}]}, "cannot be the name of a folder"),
        ({"rows": [{"name": "a"}, {"name": "b", "weights_of": ["a"]}]}, "must name a row above"),
        ({"name": "../../evil"}, "cannot be the name of a folder"),
        ({"name": ["a"]}, "cannot be the name of a folder"),
        ({"extends": None}, "`extends` names another file"),
        ({"seeds": [0, 0]}, "seeds must differ"),
        ({"seeds": [-1]}, "be from 0 to 2^32 - 1"),
        ({"workers": -2}, "0 or more, not -2"),
        ({"about": {1: 2, "a": 3}}, "no form as JSON"),
        ({"rows": [{"name": "a", "train": "no"}]}, "train must be true or false"),
        ({"only": ["z"]}, "`only` names rows that there are not: ['z']"),
        ({"rows": [{"name": "calm"}], "only": ["clam"]}, "Did you mean calm?"),
        ({"rows": [{"name": "calm"}], "paper": {"clam": {}}}, "not: ['clam']; rows: ['calm']"),
        ({"rows": [{"name": "calm"}], "paper": {"clam": {}}}, "Did you mean calm?"),
        ({"rows": [{"name": "calm"}], "reference": "clam"}, "Did you mean calm?"),
        ({"retention": ["sums"]}, "name that row by `baseline`"),
        ({"seeds": []}, "seeds must be a list of whole numbers"),
        ({"seeds": 3}, "seeds must be a list of whole numbers"),
        ({"seeds": "3"}, "seeds must be a list of whole numbers"),
        ({"seeds": [1.5]}, "seeds must be a list of whole numbers"),
        ({"threads": "x"}, "`threads` must be a whole number"),
        ({"workers": [2]}, "`workers` must be a whole number"),
        ({"base": [1]}, "`base` must be a mapping"),
        ({"samples": ["a"]}, "`samples` must be a mapping"),
        ({"columns": "a"}, "`columns` must be a list"),
        ({"columns": [1]}, "`columns` is a list of names; [1] are none"),
        ({"paper": {"a": 0.5}}, "not 0.5 for 'a'"),
        ({"samples": {"x": "a"}}, "`samples` of 'x' must be a whole number"),
        ({"threads": True}, "`threads` must be a whole number"),
    ],
)
def test_what_has_no_meaning_is_refused(file: Path, said: dict[str, Any], wanted: str) -> None:
    assert wanted in refusal(file, **said)


@pytest.mark.parametrize("content", ["- a", "hello", "a: [", "", "\0"])
def test_files_that_are_no_comparison(file: Path, content: str) -> None:
    file.write_text(content)
    with pytest.raises(CalmError, match="some_name"):
        read_comparison(file)


# ------------------------------------------------------------------ what is done again


def test_a_result_counts_only_for_the_config_that_made_it(tmp_path: Path) -> None:
    job = Job(Row("a", {"model": {"x": 1}}), 0)
    job.folder(tmp_path).mkdir(parents=True)
    file = job.folder(tmp_path) / "result.json"
    assert finished(job, tmp_path) is None
    file.write_text(f'{{"key": "{job.key()}", "name": "a"}}')
    assert finished(job, tmp_path) == {"key": job.key(), "name": "a"}
    assert finished(Job(Row("a", {"model": {"x": 2}}), 0), tmp_path) is None
    assert finished(Job(Row("a", {"model": {"x": 1}}), 1), tmp_path) is None
    assert finished(Job(Row("a", {"model": {"x": 1}}, label="other"), 0), tmp_path) is not None
    file.write_text('{"key": ')
    assert finished(job, tmp_path) is None


@pytest.mark.parametrize("role", ["anchor", "augmenting"])
def test_other_backbones_under_the_same_name_are_another_result(tmp_path: Path, role: str) -> None:
    (tmp_path / "m.safetensors").write_bytes(b"one")
    source = {"path": str(tmp_path)}
    model = {"anchor": source} if role == "anchor" else {"augmenting": [source]}
    job = Job(Row("a", {"model": model}), 0)
    before = job.key()
    assert job.key() == before
    (tmp_path / "m.safetensors").write_bytes(b"two")
    assert job.key() != before


def test_other_data_under_the_same_name_is_another_result(tmp_path: Path) -> None:
    data = tmp_path / "data.txt"
    data.write_text("one")
    job = Job(Row("a", {"data": {"init_args": {"evaluation": {"own": str(data)}}}}), 0)
    before = job.key()
    data.write_text("two")
    assert job.key() != before


def test_all_that_a_row_reads_is_in_its_key(tmp_path: Path) -> None:
    for name in ("model", "start", "corpus", "logs", "states"):
        (tmp_path / name).mkdir()
    files = ["model/pytorch_model.bin", "start/composition.safetensors", "corpus/a.txt"]
    for name in files:
        (tmp_path / name).write_bytes(b"one")
    grows = tmp_path / "grows"
    grows.mkdir()
    config = {
        "model": {
            "anchor": {"path": str(tmp_path / "model")},
            "start_from": str(tmp_path / "start"),
            "composition": {"class_path": "A", "init_args": {"cache": str(grows)}},
            "cache_states": {"folder": str(tmp_path / "states")},
        },
        "data": {"init_args": {"folder": str(tmp_path / "corpus"), "stop": [".."]}},
        "trainer": {"default_root_dir": str(tmp_path / "logs")},
    }
    job = Job(Row("a", config), 0)
    keys = [job.key()]
    (grows / "candidates").write_text("more")
    (tmp_path / "states" / "0.bin").write_text("more")
    (tmp_path / "model" / "README.md").write_text("a card")
    (tmp_path / "model" / "evaluation.json").write_text("scores")
    (tmp_path / "logs" / "events").write_text("of a run")
    assert job.key() == keys[0]
    for number, name in enumerate(files):
        (tmp_path / name).write_bytes(b"changed" + bytes(number))
        keys.append(job.key())
    assert len(set(keys)) == 4


# ------------------------------------------------------------------ results


def module(**changes: Any) -> Any:
    examples = [Example(f"{n}?", str(n)) for n in range(5)]
    sets = [EvaluationSet("asked", examples, ExactMatch), EvaluationSet("text", examples, None)]
    return SimpleNamespace(**{
        "evaluation_sets": sets,
        "scorer": {"asked": ExactMatch()}.get,
        "_can_ask": lambda examples: True,
        "answer": lambda examples, kind: [f"{kind.name} {e.prompt}" for e in examples],
        **changes,
    })  # fmt: skip


def test_each_set_has_one_headline_and_the_rest_are_details() -> None:
    logged = {
        "test/asked/accuracy": 0.5,
        "test/asked/accuracy/keys=2": 0.1,
        "test/asked/loss_nats": 2.0,
        "test/text/loss_nats": 3.0,
        "train/loss_nats": 9.0,
    }
    metrics, details = split_metrics(logged, module())
    assert metrics == {"asked": 0.5, "text": 3.0}
    assert details == {"asked/accuracy/keys=2": 0.1, "asked/loss_nats": 2.0}


def test_the_first_answers_of_the_wanted_sets_are_kept() -> None:
    assert draw_samples(module(), {"asked": 2, "none": 3}) == [
        {"set": "asked", "prompt": f"{n}?", "target": str(n), "answer": f"asked {n}?"}
        for n in range(2)
    ]
    assert draw_samples(module(_can_ask=lambda examples: False), {"asked": 2}) == []


def test_outside_a_repository_there_is_no_commit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert commit() == ""


def test_rows_to_compare_with_must_be_there_but_may_be_left_out(file: Path) -> None:
    rows = [{"name": "a"}, {"name": "b"}]
    assert "`reference` names no row: 'c'" in refusal(file, rows=rows, reference="c")
    said = read(file, rows=rows, reference="a", baseline="b", only=["a"])
    assert (said.reference, said.baseline) == ("a", "")


def test_a_file_may_extend_one_that_extends_another(file: Path) -> None:
    first, second = file.with_name("first.yaml"), file.with_name("second.yaml")
    first.write_text(yaml.safe_dump({"base": BASE, "rows": [{"name": "a"}], "seeds": [7]}))
    second.write_text(yaml.safe_dump({"extends": "first.yaml", "threads": 3}))
    file.write_text(
        yaml.safe_dump({"extends": "second.yaml", "base": {"trainer": {"max_steps": 9}}})
    )
    said = read_comparison(file)
    assert (said.seeds, said.threads) == ((7,), 3)
    assert said.rows[0].config == {**BASE, "trainer": {"max_steps": 9}}
    first.write_text(yaml.safe_dump({"extends": file.name}))
    with pytest.raises(CalmError, match="leads back to itself"):
        read_comparison(file)


def test_random_backbones_are_others_with_every_seed(file: Path) -> None:
    model = {"anchor": {"path": "a"}, "augmenting": [{"path": "b", "weights": "random", "seed": 7}]}
    said = read(file, base={**BASE, "model": model}, seeds=[0, 2])
    assert [job.config()["model"]["augmenting"][0]["seed"] for job in said.jobs] == [7, 9]
    assert said.rows[0].config["model"]["augmenting"][0]["seed"] == 7


def test_why_a_run_failed_is_said_in_a_line_and_kept_whole(file: Path, tmp_path: Path) -> None:
    (job,) = read(file).jobs
    folder = job.folder(tmp_path)
    folder.mkdir(parents=True)
    assert _reason(job, tmp_path, -9) == "its process was ended by SIGKILL (out of memory?)"
    assert _reason(job, tmp_path, 3) == "its process ended with status 3"
    assert "ended without a result: it was stopped from outside" in _reason(job, tmp_path, 0)
    (folder / "result.json").write_text('{"key": "of other files"}')
    assert "changed while it ran" in _reason(job, tmp_path, 0)
    (folder / "error.txt").write_text("Give at least one pair.\nAnother line.\n")
    assert _reason(job, tmp_path, 1) == "Give at least one pair.\nAnother line."
    (folder / "error.txt").write_text("Traceback (most recent call last):\n  ...\nKeyError: 'a'\n")
    said = _reason(job, tmp_path, 1)
    assert said == f"KeyError: 'a' (whole traceback: {folder / 'error.txt'})"


def test_a_row_that_scores_another_ones_weights(file: Path) -> None:
    own = {"model": {"composition": {"init_args": {"y": 2}}}}
    rows = [
        {"name": "a", "config": own},
        {"name": "b", "weights_of": "a", "config": {"model": {"disturb": "zero"}}},
    ]
    said = read(file, rows=rows, seeds=[3, 4])
    a, b = said.rows
    assert b.weights_of is a
    assert not b.train
    assert b.config == merge(a.config, {"model": {"disturb": "zero"}})
    assert [(job.row.name, job.seed) for job in said.jobs] == [
        ("a", 3), ("b", 3), ("a", 4), ("b", 4),
    ]  # fmt: skip
    other = read(file, rows=[{"name": "a"}, {**rows[1], "config": {**own, **rows[1]["config"]}}])
    assert Job(other.rows[1], 3).key() != Job(b, 3).key()


def test_a_budget_in_arithmetic_is_that_of_the_reference(file: Path) -> None:
    rows = [
        {"name": "a"},
        {"name": "b"},
        {"name": "c", "weights_of": "b"},
        {"name": "d", "train": False},
        {"name": "e", "own_budget": "for a reason"},
    ]
    said = read(file, rows=rows, budget="flops", reference="a")
    a, b, c, *_ = said.rows
    assert [row.work_of for row in said.rows] == [None, a, None, None, None]
    assert c.weights_of is b
    jobs = {job.row.name: job for job in said.jobs}
    assert _next([jobs["b"], jobs["d"]], [jobs["a"]]) is jobs["d"]
    assert _next([jobs["b"]], []) is jobs["b"]
    plain = {job.row.name: job for job in read(file, rows=rows, reference="a").jobs}
    changed = {name for name, job in jobs.items() if job.key() != plain[name].key()}
    assert changed == {"b", "c"}


@pytest.mark.parametrize("reference", ["", "b"])
def test_a_budget_in_arithmetic_needs_a_row_that_is_trained(file: Path, reference: str) -> None:
    rows = [{"name": "a"}, {"name": "b", "train": False}]
    told = refusal(file, rows=rows, budget="flops", reference=reference)
    assert "must be a row that is trained" in told
    assert "`steps` or `flops`" in refusal(file, rows=rows, budget="minutes")


def test_two_budgets_are_refused(file: Path) -> None:
    rows = [{"name": "a"}, {"name": "b", "config": {"trainer": {"max_time": "00:01:00:00"}}}]
    rows[1]["own_budget"] = "x"  # type: ignore[assignment]
    assert "two budgets" in refusal(file, rows=rows, budget="flops", reference="a")


def test_a_control_keeps_the_note_of_its_row(file: Path) -> None:
    rows = [{"name": "a", "own_budget": "longer"}, {"name": "b", "weights_of": "a"}]
    assert [row.own_budget for row in read(file, rows=rows).rows] == ["longer", "longer"]


def test_another_file_does_not_write_over_the_one_it_extends(file: Path) -> None:
    read(file, name="parent")
    child = file.with_name("child.yaml")
    child.write_text(yaml.safe_dump({"extends": file.name}))
    assert read_comparison(child).name == "child"


def test_files_of_a_pattern_and_long_texts_are_no_trouble_for_a_key(tmp_path: Path) -> None:
    pairs = tmp_path / "deu-eng.tsv"
    pairs.write_text("a")
    arguments = {"files": str(tmp_path / "{source}-{target}.tsv"), "few_shot": "2+2=4\n" * 100}
    job = Job(Row("a", {"data": {"init_args": arguments}}), 0)
    before = job.key()
    pairs.write_text("changed")
    assert job.key() != before


def test_a_result_that_is_none_is_made_again(tmp_path: Path) -> None:
    job = Job(Row("a", {}), 0)
    job.folder(tmp_path).mkdir(parents=True)
    for said in ("[]", "null", "{"):
        (job.folder(tmp_path) / "result.json").write_text(said)
        assert finished(job, tmp_path) is None


def test_a_run_waits_for_the_weights_that_it_scores(file: Path) -> None:
    rows = [{"name": "a"}, {"name": "b", "weights_of": "a"}, {"name": "c"}]
    first, control, last = read(file, rows=rows).jobs
    assert _next([control, last], [first]) is last
    assert _next([control], [first]) is None
    assert _next([control, last], []) is control


@pytest.mark.parametrize(
    ("rows", "wanted"),
    [
        (
            [{"name": "b", "weights_of": "a"}, {"name": "a"}],
            r"weights_of='a' must name a row above",
        ),
        (
            [{"name": "a", "train": False}, {"name": "b", "weights_of": "a"}],
            "that is trained: []",
        ),
        ([{"name": "a"}, {"name": "b", "weights_of": "a", "train": True}], "take `train` out"),
    ],
)
def test_weights_that_cannot_be_had(file: Path, rows: list[Any], wanted: str) -> None:
    assert wanted in refusal(file, rows=rows)


def test_a_control_is_not_kept_without_its_row(file: Path) -> None:
    rows = [{"name": "a"}, {"name": "b", "weights_of": "a"}]
    assert "keeps 'b' without 'a'" in refusal(file, rows=rows, only=["b"])


@pytest.mark.parametrize(
    ("gpus", "visible", "seen"),
    [
        (0, None, [None] * 3),
        (1, None, [None] * 3),
        (2, None, ["0", "1", "0"]),
        (2, "5,7", ["5", "7", "5"]),
    ],
)
def test_every_worker_has_a_gpu_of_its_own(
    gpus: int, visible: str | None, seen: list[str | None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cuda.device_count", lambda: gpus)
    for worker, wanted in enumerate(seen):
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
        if visible is not None:
            monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
        _see_one_gpu(worker)
        assert os.environ.get("CUDA_VISIBLE_DEVICES") == wanted


# ------------------------------------------------------------------ runs that fail


class AtOnce:
    """A process that is none: it is over when it is started, with the exit code of a real one."""

    def __init__(self, target: Callable[..., None], args: tuple[Any, ...]) -> None:
        self.target, self.args = target, args
        self.exitcode = 0

    def start(self) -> None:
        try:
            self.target(*self.args)
        except SystemExit as end:
            self.exitcode = end.code if isinstance(end.code, int) else int(end.code is not None)

    def is_alive(self) -> bool:
        return False


def leave_result(job: Job, out: Path, *rest: Any) -> None:
    """What a run does in the end."""
    if job.source is not None:
        result_of(job.source, out)
    folder = job.folder(out)
    folder.mkdir(parents=True, exist_ok=True)
    told = {"name": job.row.name, "seed": job.seed, "key": job.key(), "metrics": {"sums": 0.5}}
    keep_result({**told, "commit": "abc", "samples": [], "trained_parameters": 1}, folder)


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> dict[str, Callable[..., None]]:
    """What the runs of a row do, by its name; others leave a result."""
    special: dict[str, Callable[..., None]] = {}
    monkeypatch.setattr(
        compare_module,
        "run_job",
        lambda job, *rest: special.get(str(job), leave_result)(job, *rest),
    )
    context = SimpleNamespace(Process=AtOnce)
    monkeypatch.setattr(compare_module.multiprocessing, "get_context", lambda kind: context)
    monkeypatch.setattr(compare_module.time, "sleep", lambda seconds: None)
    monkeypatch.setattr(compare_module, "_raise_on_signals", lambda: None)
    for name in ("plot_bars", "plot_curves"):
        monkeypatch.setattr(f"calm_lightning.report.{name}", lambda *arguments: None)
    return special


def raising(error: BaseException) -> Callable[..., None]:
    def run(*arguments: Any) -> None:
        raise error

    return run


def compared(file: Path, *, refused: bool = False, **options: Any) -> tuple[str, str]:
    """What the command complained of, and the table."""
    message = ""
    try:
        compare(str(file), str(file.parent / "out"), **options)
    except CalmError as error:
        message = str(error)
    assert bool(message) is refused, message
    table = file.parent / "out" / "table.md"
    return message, table.read_text() if table.exists() else ""


def test_a_run_without_a_result_has_failed_however_it_ended(file: Path, runs: Any) -> None:
    read(file, rows=[{"name": "good"}, {"name": "quiet"}, {"name": "stopped"}])
    runs["quiet, seed 0"] = lambda *arguments: None
    runs["stopped, seed 0"] = raising(SIGTERMException())  # a SystemExit without a status
    message, table = compared(file, refused=True)
    assert "2 of 3 runs failed; the others are in the table" in message
    for name in ("quiet", "stopped"):
        told = "it ended without a result: it was stopped from outside"
        assert f"{name}, seed 0: {told}" in message
        assert f"| {name} | failed: {told} |" in table
    assert "| good | 50.0 |" in table


@pytest.mark.parametrize(("code", "told"), [(None, ""), (0, ""), ("no disk", " (no disk)")])
def test_a_worker_that_is_stopped_says_so(
    file: Path, runs: Any, code: Any, told: str, tmp_path: Path
) -> None:
    (job,) = read(file).jobs
    runs["a, seed 0"] = raising(SystemExit(code))
    with pytest.raises(SystemExit) as end:
        _run_alone(0, job, tmp_path, 1, {}, [])
    assert end.value.code == 1
    said = (job.folder(tmp_path) / "error.txt").read_text()
    assert said == f"it ended without a result: it was stopped from outside{told}\n"


def test_a_table_of_failures_replaces_the_one_before(file: Path, runs: Any) -> None:
    read(file)
    assert "| a | 50.0 |" in compared(file)[1]
    read(file, base={**BASE, "trainer": {"max_steps": 6}})
    runs["a, seed 0"] = raising(CalmError("no such luck"))
    message, table = compared(file, refused=True)
    assert message == "1 of 1 runs failed:\n  a, seed 0: no such luck"
    assert "| a | failed: no such luck |" in table
    assert "50.0" not in table


def test_an_earlier_failure_is_told_until_its_run_is_finished(file: Path, runs: Any) -> None:
    read(file, rows=[{"name": "good"}, {"name": "bad"}])
    runs["bad, seed 0"] = raising(CalmError("no such luck"))
    compared(file, refused=True, rows=["bad"])
    message, table = compared(file, refused=True, rows=["good"])
    assert "failed before, and were not run again now" in message
    assert "bad, seed 0: no such luck" in message
    assert "| good | 50.0 |" in table
    assert "| bad | failed: no such luck |" in table
    runs.clear()
    assert "failed" not in compared(file)[1]


def test_a_failure_of_another_config_is_none_of_this_one(file: Path, runs: Any) -> None:
    read(file, rows=[{"name": "good"}, {"name": "bad"}])
    runs["bad, seed 0"] = raising(CalmError("no such luck"))
    compared(file, refused=True)
    mended = {"name": "bad", "config": {"model": {"warmup_steps": 3}}}
    read(file, rows=[{"name": "good"}, mended])
    assert "failed" not in compared(file, rows=["good"])[1]


def test_a_seed_that_fails_is_named_with_its_reason(file: Path, runs: Any) -> None:
    read(file, rows=[{"name": "a", "label": "CALM"}], seeds=[0, 1])
    runs["a, seed 1"] = raising(CalmError("no such luck\nmore"))
    _, table = compared(file, refused=True)
    assert "| CALM (1 of 2 seeds) |" in table
    assert "\nFailed: CALM, seed 1: no such luck\n" in table


@pytest.mark.parametrize("options", [{}, {"rows": ["control"]}])
def test_a_control_of_a_failed_row_says_why_that_failed(
    file: Path, runs: Any, options: dict[str, Any]
) -> None:
    read(file, rows=[{"name": "a"}, {"name": "control", "weights_of": "a"}])
    runs["a, seed 0"] = raising(CalmError("no such luck"))
    compared(file, refused=True)
    message, _ = compared(file, refused=True, **options)
    assert "control, seed 0: a, seed 0, which this one needs, failed: no such luck" in message
    assert "without --rows" not in message


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"rows": ["trained", "traind"]}, "no rows ['traind']"),
        ({"rows": ["traind"]}, "Did you mean trained?"),
        ({"seeds": [0, 9]}, "no runs with seeds [9]; it has [0, 1]"),
        ({"rows": ["scored"], "seeds": [1]}, "scored once, with seed 0"),
    ],
)
def test_rows_and_seeds_that_there_are_not(
    file: Path, runs: Any, options: dict[str, Any], told: str
) -> None:
    read(file, rows=[{"name": "trained"}, {"name": "scored", "train": False}], seeds=[0, 1])
    message, table = compared(file, refused=True, **options)
    assert told in message
    assert table == ""


def test_all_sets_that_are_named_are_looked_for_before_training(file: Path, runs: Any) -> None:
    got: list[Any] = []
    read(
        file,
        columns=["shown"],
        baseline="a",
        retention=["kept"],
        samples={"asked": 1},
        paper={"a": {"printed": 0.5}},
    )
    runs["a, seed 0"] = lambda *arguments: got.extend(arguments[-1])
    compared(file, refused=True)
    assert got == ["shown", "kept", "asked", "printed"]


def test_another_anchor_is_told(file: Path) -> None:
    swapped = {"name": "b", "config": {"model": {"anchor": {"path": "large"}}}}
    same = {"name": "c", "config": {"model": {"warmup_steps": 3}}}
    rows = read(file, rows=[{"name": "a"}, swapped, same]).rows
    assert [row.own_anchor for row in rows] == ["", "another anchor (path: large)", ""]
