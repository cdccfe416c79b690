"""`calm fit` and `calm test` on configs/smoke/code.yaml, and what is refused on the way."""

import json
import sys
from pathlib import Path

import pytest

from calm_lightning.cli import main
from calm_plugins.tasks.code.sandbox import Sandbox

ROOT = Path(__file__).parents[2]
CONFIG = str(ROOT / "configs" / "smoke" / "code.yaml")
QUIET = ("--trainer.enable_progress_bar=false", "--trainer.enable_model_summary=false")


@pytest.fixture(autouse=True)
def _in_the_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(sys, "argv", ["calm"])


def test_the_smoke_run_trains_tests_and_keeps_every_answer(
    sandbox: Sandbox, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    main(["fit", *QUIET, "--config", CONFIG, "--run", str(run), "--trainer.max_steps=2",
          "--trainer.val_check_interval=2"])  # fmt: skip
    said = capsys.readouterr().out
    for score in ("humaneval/pass@1", "code_to_text_small/chrf", "code_to_text_small/bleu"):
        assert score in said
    outcomes = run / "outcomes" / "humaneval.jsonl"
    outcomes.unlink()
    main(["test", *QUIET, "--run", str(run)])
    lines = [json.loads(line) for line in outcomes.read_text().splitlines()]
    assert {line["task_id"] for line in lines} == {f"Small/{n}" for n in range(4)}
    assert {line["outcome"] for line in lines} <= {"wrong", "error"}


@pytest.mark.parametrize(
    ("option", "words"),
    [
        ("--data.allow_code_execution=false", "That is off until you allow it"),
        ("--data.humaneval=nowhere.jsonl", "nowhere.jsonl: no such file"),
        ("--data.humaneval=configs/smoke/data/code/mbpp.jsonl", "line 1: 'task_id' holds 2"),
        ("--data.sandbox.cpu_seconds=0", "sandbox.cpu_seconds must be at least 1: got 0"),
        ("--data.sandbox.required=[air]", "has no layer 'air'"),
        ("--data.sandbox.layers=[limits]", "required and missing: user (it is switched off)"),
        ("--data.max_new_tokens=200", "questions of 'humaneval' fits every model"),
    ],
)
def test_what_cannot_be_used_is_refused_with_the_way_out(
    sandbox: Sandbox, tmp_path: Path, capsys: pytest.CaptureFixture[str], option: str, words: str
) -> None:
    with pytest.raises(SystemExit) as end:
        main(["fit", *QUIET, "--config", CONFIG, "--run", str(tmp_path / "run"), option])
    assert end.value.code == 2
    said = " ".join(capsys.readouterr().err.split())
    assert words in said
    assert "Traceback" not in said
