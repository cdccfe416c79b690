"""Promises of pass@k and of the scores of descriptions. No program is run here."""

import itertools
import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import fmean

import pytest
import torch
from sacrebleu.metrics.bleu import BLEU
from sacrebleu.metrics.chrf import CHRF

from calm_lightning.contracts import CalmError, Example
from calm_plugins.tasks.code.problems import Problem
from calm_plugins.tasks.code.sandbox import Job, Sandbox, Verdict
from calm_plugins.tasks.code.scorer import Descriptions, PassAtK, pass_at_k


class Believes(Sandbox):
    """Runs nothing: an answer is right if it says so."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[str] = []

    def judge(
        self, jobs: Sequence[Job], progress: Callable[[int, int], None] | None = None
    ) -> list[Verdict]:
        self.asked += [job.program for job in jobs]
        return [
            Verdict("passed" if "right" in job.program else "wrong", "detail", 0.5, 0.1)
            for job in jobs
        ]


def example(task_id: str) -> Example:
    problem = Problem(task_id, "prompt", "right", "head ", ("STOP",), "", "tests", ("f",))
    return Example("prompt", "right", {"problem": problem})


A, B, C = map(example, "ABC")


def scorer(ks: Sequence[int] = (1,), file: Path | None = None) -> PassAtK:
    return PassAtK("ABC", Believes(), ks, "own", lambda: file)


@pytest.mark.parametrize("n", [1, 2, 5])
def test_the_estimate_is_the_share_of_draws_that_hold_a_right_answer(n: int) -> None:
    for c, k in itertools.product(range(n + 1), range(1, n + 1)):
        draws = itertools.combinations([True] * c + [False] * (n - c), k)
        share = fmean(any(draw) for draw in draws)
        estimate = pass_at_k(torch.tensor([n]), torch.tensor([c]), k)
        assert estimate.item() == pytest.approx(share, abs=1e-12)


def test_many_answers_overflow_nothing() -> None:
    estimate = pass_at_k(torch.tensor([1000, 1000]), torch.tensor([1, 999]), 100)
    assert estimate.tolist() == pytest.approx([0.1, 1.0])


def test_several_answers_to_a_problem_are_grouped_wherever_they_come() -> None:
    score = scorer(ks=(1, 2, 3))
    score.update(["right", "no", "no"], [A, A, B])
    score.update(["right", "no"], [B, A])
    score.update(["right"], [B])
    found = score.compute()
    assert list(found) == ["pass@1", "pass@2", "pass@3"]
    assert found["pass@1"].item() == pytest.approx((1 / 3 + 2 / 3) / 2)
    assert found["pass@2"].item() == pytest.approx((2 / 3 + 1) / 2)
    assert found["pass@3"].item() == pytest.approx(1)


def test_a_k_for_which_there_are_too_few_answers_is_left_out() -> None:
    score = scorer(ks=(10, 2))
    score.update(["right", "right", "no"], [A, A, B])
    assert list(score.compute()) == ["pass@1"]
    score.update(["no"], [B])
    assert list(score.compute()) == ["pass@1", "pass@2"]
    assert score.headline == "pass@1"


def test_problems_that_were_not_asked_do_not_count() -> None:
    score = scorer()
    score.update(["right", "no"], [A, C])
    assert score.compute()["pass@1"] == 0.5


def test_the_state_of_two_processes_adds_up() -> None:
    """`merge_state` adds states up as they say that processes should."""
    one, two, whole = scorer((1, 2)), scorer((1, 2)), scorer((1, 2))
    one.update(["right", "no", "no"], [A, B, C])
    two.update(["no", "right"], [A, A])
    two.update(["right", "no"], [B, C])
    whole.update(["right", "no", "no", "no", "right", "right", "no"], [A, B, C, A, A, B, C])
    one.merge_state(two)
    assert one.compute() == whole.compute()
    assert list(one.compute()) == ["pass@1", "pass@2"]


def test_answers_are_cut_and_no_program_is_run_twice() -> None:
    score = scorer()
    score.update(["right STOP more", "right ", "no"], [A, A, B])
    assert score.each(["right STOP more", "right ", "no"], [A, A, B]) == [1, 1, 0]
    assert isinstance(score.sandbox, Believes)
    assert score.sandbox.asked == ["head right ", "head no"]
    assert score.each(["right"], [C]) == [1.0]


def test_every_answer_is_written_with_its_outcome_anew_in_each_evaluation(tmp_path: Path) -> None:
    file = tmp_path / "outcomes" / "own.jsonl"
    score = scorer(file=file)
    for _ in range(2):
        score.update(["right STOP", "né"], [A, B])
        score.update(["no"], [A])
        score.compute()
        score.reset()
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    assert [(line["task_id"], line["answer"], line["outcome"]) for line in lines] == [
        ("A", "right ", "passed"), ("B", "né", "wrong"), ("A", "no", "wrong"),
    ]  # fmt: skip
    assert lines[0].keys() == {
        "task_id", "answer", "outcome", "detail", "seconds", "cpu_seconds",
    }  # fmt: skip


def test_predictions_and_examples_must_match() -> None:
    with pytest.raises(ValueError, match="zip"):
        scorer().update(["right"], [A, B])


@pytest.mark.parametrize("ks", [(), (0,), (1, -2)])
def test_a_k_that_makes_no_sense_is_refused(ks: tuple[int, ...]) -> None:
    with pytest.raises(CalmError, match=r"k of 1 or more"):
        scorer(ks)


# Descriptions

SAID = ["gives the first of a list", "", "Says  whether it is odd.\nAnd more.", "größer als neun"]
WANTED = ["Gives the first of a list .", "Adds two.", "says whether n is odd", "größer als zehn"]


def test_scores_equal_sacrebleus_on_the_whole_corpus_in_any_batches() -> None:
    score = Descriptions()
    for part in (slice(0, 1), slice(1, 4)):
        score.update(SAID[part], [Example("", f" {text}") for text in WANTED[part]])
    said = [text.split("\n")[0] for text in SAID]
    found = score.compute()
    assert found["chrf"].item() == pytest.approx(CHRF().corpus_score(said, [WANTED]).score / 100)
    assert found["bleu"].item() == pytest.approx(BLEU().corpus_score(said, [WANTED]).score / 100)
    assert 0 < found["chrf"] < 1


def test_the_sums_of_two_processes_add_up() -> None:
    examples = [Example("", text) for text in WANTED]
    one, two, whole = Descriptions(), Descriptions(), Descriptions()
    one.update(SAID[:3], examples[:3])
    two.update(SAID[3:], examples[3:])
    whole.update(SAID, examples)
    one.merge_state(two)
    assert one.compute() == whole.compute()


def test_an_answer_that_begins_with_a_line_break_is_empty_where_the_model_stops_or_not() -> None:
    scores = []
    for said in ("", "\nAdds two.", "  \nAdds two."):
        score = Descriptions()
        score.update([said, "gives the first of a list"], [Example("", t) for t in WANTED[1::-1]])
        scores.append(score.compute())
    assert scores[0] == scores[1] == scores[2]


def test_a_problem_can_be_asked_in_another_way() -> None:
    problem = A.meta["problem"]
    assert replace(problem, prompt="another").job("x") == problem.job("x")
