"""A program in the sandbox is timed beside a plain process; how long it takes is no promise."""

import importlib
import json
import sys
from pathlib import Path

import pytest

from calm_plugins.tasks.code.sandbox import Sandbox

ROOT = Path(__file__).parents[2]


def test_the_sandbox_is_timed_beside_a_plain_process(
    sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.syspath_prepend(str(ROOT))
    command = importlib.import_module("benchmarks.__main__")
    options = ["benchmarks", "sandbox", "--rounds=2", "--warm-up=0", f"--out={tmp_path}"]
    monkeypatch.setattr(sys, "argv", options)
    command.main()
    told = json.loads((tmp_path / "sandbox_small.json").read_text())
    assert told["clock"] == "wall clock"  # other processes do the work
    assert [row["side"] for row in told["rows"]] == ["python -c pass", "sandbox"]
    assert all(len(row["values"]) == 2 for row in told["rows"])
    monkeypatch.setattr(sys, "argv", [*options, "--profile"])
    with pytest.raises(SystemExit):
        command.main()
