"""Promises of the code task. No program is run here."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import pytest

from calm_lightning.contracts import CalmError
from calm_plugins.tasks.code import Code, Descriptions, PassAtK
from calm_plugins.tasks.code.sandbox import Job, Sandbox, SandboxSettings, Verdict
from calm_plugins.tasks.mixture import Mixture
from calm_plugins.tasks.self_decompression import Replay

DATA = Path(__file__).parents[3] / "configs" / "smoke" / "data" / "code"
HUMANEVAL, MBPP = str(DATA / "humaneval.jsonl"), str(DATA / "mbpp.jsonl")
FUNCTIONS, ASKED = str(DATA / "functions_train.jsonl"), str(DATA / "functions_test.jsonl")
SOURCE = 'def f{n}(x):\n    """Adds {n} to x."""\n    return x + {n}\n'


@pytest.fixture(autouse=True)
def _sandbox_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Sandbox, "_fault_of", lambda self, layers: "")


@pytest.fixture
def folder(tmp_path: Path) -> str:
    for n in range(40):
        (tmp_path / f"module_{n}.py").write_text(SOURCE.format(n=n))
    return str(tmp_path)


# Leave


@pytest.mark.parametrize("source", [{"humaneval": HUMANEVAL}, {"mbpp": MBPP}])
def test_no_program_is_run_without_leave(source: dict[str, str]) -> None:
    with pytest.raises(CalmError) as error:
        Code(**source)  # type: ignore[arg-type]
    for part in ("that the model wrote", "allow_code_execution=true", "docs/security.md"):
        assert part in str(error.value)


def test_descriptions_need_no_leave() -> None:
    (described,) = Code(functions=FUNCTIONS, code_to_text={"own": ASKED}).evaluation_sets()
    assert described.name == "code_to_text_own"


def test_a_sandbox_that_cannot_be_had_is_said_before_anything_is_generated(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(Sandbox, "_fault_of", lambda self, layers: "no kernel")
    task = Code(humaneval=HUMANEVAL, allow_code_execution=True)
    with pytest.raises(CalmError, match=r"does not run code here.*no kernel"):
        task.evaluation_sets()


# Evaluation


def test_each_source_is_a_set_with_its_scorer() -> None:
    task = Code(HUMANEVAL, MBPP, FUNCTIONS, {"a": ASKED, "b": ASKED}, allow_code_execution=True,
                pass_at=(1, 5), samples=5, temperature=0.8, max_new_tokens=50,
                max_new_tokens_of_descriptions=9)  # fmt: skip
    sets = task.evaluation_sets()
    assert [each.name for each in sets] == [
        "humaneval", "mbpp", "code_to_text_a", "code_to_text_b",
    ]  # fmt: skip
    assert [len(each.examples) for each in sets] == [5 * 4, 5 * 3, 2, 2]
    assert [each.max_new_tokens for each in sets] == [50, 50, 9, 9]
    assert "\ndef" in sets[0].stop
    assert [each.stop for each in sets[1:]] == [("[DONE]",), ("\n",), ("\n",)]
    scorers = [each.scorer() for each in sets if each.scorer]
    assert [type(each) for each in scorers] == [PassAtK, PassAtK, Descriptions, Descriptions]
    assert isinstance(scorers[1], PassAtK)
    assert scorers[1].place == {"11": 0, "12": 1, "13": 2}
    assert scorers[1].ks == [1, 5]
    assert task.evaluation_sets() is sets


def passes_yes(self: Sandbox, jobs: Sequence[Job], progress: Any = None) -> list[Verdict]:
    """In place of running programs."""
    outcomes = ("passed" if "# yes" in each.program else "wrong" for each in jobs)
    return [Verdict(outcome, "", 0.0, 0.0) for outcome in outcomes]  # type: ignore[arg-type]


def test_several_samples_ask_each_problem_so_many_times(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Sandbox, "judge", passes_yes)
    (one,) = Code(HUMANEVAL, allow_code_execution=True).evaluation_sets()
    (asked,) = Code(HUMANEVAL, allow_code_execution=True, samples=3, temperature=0.5,
                    pass_at=(1, 3)).evaluation_sets()  # fmt: skip
    assert dict(one.generation) == {}
    assert dict(asked.generation) == {
        "do_sample": True, "temperature": 0.5, "top_k": 0, "top_p": 1.0,
    }  # fmt: skip
    assert list(asked.examples) == [*one.examples] * 3
    assert asked.scorer is not None
    scorer = asked.scorer()
    scorer.update(["no"] * 4 + [" # yes"] * 4 + ["no"] * 4, asked.examples)
    assert {name: float(score) for name, score in scorer.compute().items()} == {
        "pass@1": pytest.approx(1 / 3), "pass@3": 1,
    }  # fmt: skip
    (described,) = Code(
        functions=FUNCTIONS, code_to_text={"a": ASKED}, samples=3, temperature=0.5
    ).evaluation_sets()
    assert (len(described.examples), dict(described.generation)) == (2, {})


def test_samples_of_a_problem_are_asked_side_by_side_and_pass_at_k_is_the_same(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(Sandbox, "judge", passes_yes)
    first = Path(HUMANEVAL).read_text().splitlines()[0]  # four of one length, unlike the others
    alike = [first.replace("Small/0", f"Small/{n}").replace("x+1", f"x+{n}") for n in range(4)]
    (tmp_path / "alike.jsonl").write_text("\n".join(alike))
    task = Code(str(tmp_path / "alike.jsonl"), allow_code_execution=True, samples=4,
                temperature=0.5, pass_at=(1, 2), evaluation_batch_size=8)  # fmt: skip
    (asked,) = task.evaluation_sets()
    said = [" # yes" if n in (0, 4, 5, 11) else "no" for n in range(16)]  # of problems 0, 0, 1, 3
    (batches,) = ([*loader] for loader in task.test_dataloader())
    problems = [[example.meta["problem"].task_id for _, example in batch] for batch in batches]
    assert problems == [
        ["Small/0"] * 4 + ["Small/1"] * 4, ["Small/2"] * 4 + ["Small/3"] * 4,
    ]  # fmt: skip
    assert asked.scorer is not None
    in_order, in_batches = asked.scorer(), asked.scorer()
    in_order.update(said, asked.examples)
    for batch in batches:
        in_batches.update([said[number] for number, _ in batch], [each for _, each in batch])
    for scorer in (in_order, in_batches):
        assert {name: float(score) for name, score in scorer.compute().items()} == {
            "pass@1": pytest.approx(4 / 16), "pass@2": pytest.approx((5 / 6 + 1 / 2 * 2) / 4),
        }  # fmt: skip


def test_the_examples_are_the_questions_with_the_published_answers() -> None:
    task = Code(HUMANEVAL, MBPP, allow_code_execution=True)
    programs, solved = (each.examples[0] for each in task.evaluation_sets())
    assert programs.prompt == 'def inc(x):\n    """x+1"""\n'
    assert programs.target == "    return x + 1\n"
    assert solved.prompt.count("[DONE]") == 3
    assert solved.target == "def sub(a, b):\n    return a - b\n[DONE]"


def test_a_tokenizer_without_line_breaks_is_not_told_to_stop() -> None:
    task = Code(HUMANEVAL, functions=FUNCTIONS, code_to_text={"a": ASKED}, describe_shots=0,
                allow_code_execution=True, stop_early=False)  # fmt: skip
    assert [each.stop for each in task.evaluation_sets()] == [(), ()]


def test_functions_are_shown_before_a_question_and_come_from_those_that_are_learnt() -> None:
    task = Code(functions=FUNCTIONS, code_to_text={"a": ASKED}, describe_shots=2)
    first, second = task.evaluation_sets()[0].examples
    assert first.prompt == (
        "Code:\ndef up ( s ) : return s . upper ( )\nDescription: makes a text upper case\n\n"
        "Code:\ndef cube ( x ) : return x * * 3\nDescription: raises x to the third power\n\n"
        "Code:\ndef empty ( xs ) : return not xs\nDescription:"
    )
    assert first.target == " says whether a list is empty"
    assert second.prompt.startswith(first.prompt[:150])


def test_without_another_file_a_tenth_of_the_functions_is_held_out(folder: str) -> None:
    task = Code(functions=folder, describe_shots=1)
    (described,) = task.evaluation_sets()
    asked = {example.prompt.rpartition("Code:\n")[2] for example in described.examples}
    learnt = {e.prompt.removeprefix("Code:\n") for e in task.train_examples() if "Code" in e.prompt}
    assert described.name == "code_to_text"
    assert 0 < len(asked) < 12
    assert len(asked) + len(learnt) == 40
    assert not asked & learnt


def test_what_is_asked_is_not_learnt_from_another_file_either(tmp_path: Path) -> None:
    both = tmp_path / "both.jsonl"
    both.write_text(Path(FUNCTIONS).read_text() + Path(ASKED).read_text())
    task = Code(functions=str(both), code_to_text={"a": ASKED}, train=("describe",))
    assert len(task.train_examples()) == 6


def test_long_functions_are_left_out_and_said(folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[str] = []
    monkeypatch.setattr("calm_plugins.tasks.code.data.rank_zero_info", told.append)
    for n in range(40):
        source = SOURCE.format(n=n).replace(f"x + {n}", f"x + {n}" + " + x" * 100)
        Path(folder, f"long_{n}.py").write_text(source)
    for longest, counted in ((1000, 80), (100, 40)):
        task = Code(functions=folder, longest_function=longest, train=("describe",))
        (described,) = task.evaluation_sets()
        assert len(task.train_examples()) + len(described.examples) == counted
    (message,) = told
    assert "functions are left out because they have more than longest_function=100" in message
    with pytest.raises(CalmError, match=r"none of \d+ functions has at most longest_function=5"):
        Code(functions=folder, longest_function=5, describe_shots=0).evaluation_sets()


def test_few_functions_can_be_asked(folder: str) -> None:
    (described,) = Code(functions=folder, evaluation_functions=2).evaluation_sets()
    assert len(described.examples) == 2


def test_outcomes_of_a_task_inside_others_go_into_the_run_too(tmp_path: Path) -> None:
    class Run:
        default_root_dir, global_rank, world_size = str(tmp_path), 1, 2

    for combine in (
        lambda task: Mixture({"code": task}),
        lambda task: Replay(task, Code(functions=FUNCTIONS)),
        lambda task: Mixture({"inner": Replay(task, Code(functions=FUNCTIONS))}, {"inner": 1.0}),
    ):
        task = Code(HUMANEVAL, allow_code_execution=True)
        outer = combine(task)
        outer.trainer = cast(Any, Run())
        outer.setup("test")
        (asked,) = outer.evaluation_sets()
        assert asked.scorer is not None
        scorer = asked.scorer()
        assert isinstance(scorer, PassAtK)
        assert scorer.file() == tmp_path / "outcomes" / "humaneval.1.jsonl"


def test_outcomes_go_where_they_are_told_or_into_the_run(tmp_path: Path) -> None:
    task = Code(HUMANEVAL, allow_code_execution=True, outcomes=str(tmp_path / "there"))
    assert task._outcomes_file("humaneval") == tmp_path / "there" / "humaneval.jsonl"
    assert Code(HUMANEVAL, allow_code_execution=True)._outcomes_file("humaneval") is None


# Training


def test_everything_with_a_source_is_learnt(folder: str) -> None:
    described, completed = (
        Code(functions=folder, train=(kind,)).train_examples() for kind in ("describe", "complete")
    )
    assert len(described) == len(completed)
    assert (completed[0].prompt, completed[0].target) == (
        'def f0(x):\n    """Adds 0 to x."""\n', "    return x + 0\n",
    )  # fmt: skip
    assert (described[0].prompt, described[0].target) == (
        "Code:\ndef f0(x):\n    return x + 0\nDescription:", " Adds 0 to x.",
    )  # fmt: skip
    task = Code(mbpp=MBPP, functions=folder, allow_code_execution=True)
    assert len(task.train_examples()) == 2 * len(described) + 2
    solved = task.train_examples()[-1]
    assert solved.prompt.startswith("You are an expert Python programmer")
    assert solved.target == "def low(a, b):\n    return min(a, b)\n[DONE]"
    only_tokens = Code(functions=FUNCTIONS, code_to_text={"a": ASKED})
    assert len(only_tokens.train_examples()) == 6


def test_problems_of_mbpp_that_are_asked_under_another_number_are_not_learnt(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[str] = []
    monkeypatch.setattr("calm_plugins.tasks.code.data.rank_zero_info", told.append)
    lines = [json.loads(line) for line in Path(MBPP).read_text().splitlines()]
    asked = next(line for line in lines if line["task_id"] == 11)
    other = {"code": "def sub(x, y):\n    return x - y", "test_list": ["assert sub(5, 2) == 3"]}
    same_text = asked | other | {"task_id": 701, "text": asked["text"].upper() + " "}
    same_code = asked | {"task_id": 702, "text": "Take one from the other."}
    shown = next(line for line in lines if line["task_id"] == 2) | {"task_id": 703}
    file = tmp_path / "mbpp.jsonl"
    file.write_text("\n".join(map(json.dumps, [*lines, same_text, same_code, shown])))
    task = Code(mbpp=str(file), allow_code_execution=True)
    assert [example.meta["problem"].task_id for example in task.train_examples()] == [
        "601", "602", "703",
    ]  # fmt: skip
    assert told == [
        "mbpp: 2 of 5 problems are not learnt because others with the same text or the same code "
        "are asked."
    ]


def test_what_has_no_source_cannot_be_learnt() -> None:
    for settings, words in [
        ({"train": ("solve",), "functions": FUNCTIONS, "code_to_text": {"a": ASKED}}, "give mbpp"),
        ({"train": ("describe",), "mbpp": MBPP}, "give functions"),
        ({"train": ("complete",), "functions": FUNCTIONS, "code_to_text": {"a": ASKED}},
         "needs Python sources"),
        ({"humaneval": HUMANEVAL}, "HumanEval has no training part"),
    ]:  # fmt: skip
        task = Code(**settings, allow_code_execution=True)  # type: ignore[arg-type]
        with pytest.raises(CalmError, match=words):
            task.train_examples()


# Settings


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({}, "has no source"),
        ({"functions": "x", "mbpp_shots": -1}, "mbpp_shots must be at least 0: got -1"),
        ({"functions": "x", "pass_at": (1, 0)}, "pass_at must be at least 1: got 0"),
        ({"functions": "x", "pass_at": (1, 10)}, "pass_at=10 needs as many answers to each"),
        ({"functions": "x", "pass_at": (1, 10), "samples": 9, "temperature": 1.0}, "but samples=9"),
        ({"functions": "x", "samples": 10}, "all the same at temperature=0"),
        ({"functions": "x", "evaluation_functions": 0}, "evaluation_functions must be at least 1"),
        ({"functions": "x", "longest_function": 0}, "longest_function must be at least 1: got 0"),
        ({"functions": "x", "max_new_tokens": 0}, "max_new_tokens must be at least 1: got 0"),
        ({"code_to_text": {"a": "x"}}, "describe_shots=3 examples are shown"),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(CalmError) as error:
        Code(**settings)
    assert words in str(error.value)


def test_too_few_functions_to_show_or_hold_out_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "few.jsonl"
    file.write_text(json.dumps({"code": "f()", "docstring": "Does f."}))
    with pytest.raises(CalmError, match=r"has 1 functions .*describe_shots=3"):
        Code(functions=str(file), code_to_text={"a": ASKED}).evaluation_sets()
    with pytest.raises(CalmError, match="too small to hold out a tenth"):
        Code(functions=str(file), describe_shots=0).evaluation_sets()


def test_the_tasks_own_settings_pass_through() -> None:
    task = Code(functions=FUNCTIONS, batch_size=3, sandbox=SandboxSettings(cpu_seconds=1))
    assert (task.batch_size, task.sandbox.cpu_seconds) == (3, 1)
