"""The published solutions of HumanEval and MBPP pass, and with one wrong character they do not."""

import os
from pathlib import Path

import pytest

from calm_plugins.tasks.code.problems import Problem, read_humaneval, read_mbpp
from calm_plugins.tasks.code.sandbox import Job, Sandbox, SandboxSettings

DATA = Path(os.environ.get("CALM_DATA") or Path(__file__).parents[3] / "shared" / "data")
FILES = {"humaneval": "humaneval/HumanEval.jsonl.gz", "mbpp": "mbpp/mbpp.jsonl"}
COUNTS = {"humaneval": 164, "mbpp": 974}

# Appended to a program: what a named function returns, when the tests call it, has one character
# changed where a value has characters (a digit, a letter), and is the other one of two otherwise.
SPOIL = """

def _spoil(value):
    if value is None or isinstance(value, bool):
        return not value
    if isinstance(value, (int, float, complex)):
        return value + 1
    if isinstance(value, str):
        return value[:-1] + chr(ord(value[-1]) ^ 1) if value else "x"
    if isinstance(value, dict):
        first, *rest = value.items() or [(0, 0)]
        return dict([*rest, _spoil(first)])
    if isinstance(value, (list, tuple, set, frozenset)):
        first, *rest = value or [0]
        return type(value)([_spoil(first), *rest])
    return not value

def _spoiled(function):
    def spoiled(*arguments, **named):
        if spoiled.running:
            return function(*arguments, **named)
        spoiled.running = True
        try:
            return _spoil(function(*arguments, **named))
        finally:
            spoiled.running = False
    spoiled.running = False
    return spoiled

for _name in {names!r}:
    if callable(globals()[_name]) and not isinstance(globals()[_name], type):
        globals()[_name] = _spoiled(globals()[_name])
"""


@pytest.fixture(scope="module")
def patient(sandbox: Sandbox) -> Sandbox:
    """MBPP's 123 computes for two to three seconds."""
    return Sandbox(SandboxSettings(cpu_seconds=10))


def problems(name: str) -> list[Problem]:
    file = DATA / FILES[name]
    if not file.exists():
        pytest.skip(f"no {file}; set CALM_DATA to the folder that holds {FILES[name]}")
    found = read_humaneval(file) if name == "humaneval" else list(read_mbpp(file).values())
    assert len(found) == COUNTS[name]
    return found


def spoiled(problem: Problem) -> Job:
    job = problem.job(problem.solution)
    return Job(
        job.program + SPOIL.replace("{names!r}", repr(job.names)), job.tests, job.names, job.setup
    )


def check(sandbox: Sandbox, chosen: list[Problem]) -> None:
    right = [problem.job(problem.solution) for problem in chosen]
    verdicts = sandbox.judge([*right, *map(spoiled, chosen)])
    outcomes = {
        problem.task_id: (good.outcome, bad.outcome, good.detail)
        for problem, good, bad in zip(
            chosen, verdicts[: len(chosen)], verdicts[len(chosen) :], strict=True
        )
    }
    assert {k: o for k, o in outcomes.items() if o[:2] != ("passed", "wrong")} == {}


@pytest.mark.parametrize(("name", "every"), [("humaneval", 12), ("mbpp", 70)])
def test_some_solutions_pass_and_fail_with_one_wrong_character(
    patient: Sandbox, name: str, every: int
) -> None:
    check(patient, problems(name)[::every])


@pytest.mark.slow
@pytest.mark.parametrize("name", FILES)
def test_all_solutions_pass_and_fail_with_one_wrong_character(patient: Sandbox, name: str) -> None:
    check(patient, problems(name))
