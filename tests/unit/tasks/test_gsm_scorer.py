"""Accuracy by numbers, and by lm-evaluation-harness's filters, on recorded answers."""

import random
from pathlib import Path
from typing import Any

import pytest
import yaml
from torchmetrics.utilities import dim_zero_sum

from calm_lightning.contracts import Example
from calm_plugins.tasks.gsm import GsmAccuracy
from calm_plugins.tasks.gsm.scorer import Harness

RECORDED = [  # what a model said, and the right answer
    ("She sells 9 eggs for $2 each.\n#### 18", "18"), ("#### 1,080", "1,080"),
    ("#### 1080000", "1,080,000"),
    ("#### $18", "18"), ("#### 18.", "18"), ("#### 18.00", "18"), ("#### -5", "-5"),
    ("####18", "18"), ("#### 17", "18"), ("Nothing to say.", "18"), ("", "18"),
    ("The answer is 18.", "18"), ("The answer is $18.", "18"), ("The answer is 18 dollars", "18"),
    ("The answer is 1,080 dollars.", "1,080"), ("The answer is -5.", "-5"),
    ("the answer is 18", "18"), ("So 16 - 3 - 4 = 9, and 9 * 2 = 18.", "18"), ("... 18 ...", "18"),
    ("18 eggs, 3 hens", "18"), ("$18.50", "18.50"), ("It is 18,", "18"), ("5-3", "2"),
    ("Die Antwort lautet 18.", "18"), ("Die Antwort lautet 1.080.", "1,080"),
    ("La respuesta es 18.", "18"), ("La réponse est 18.", "18"), ("Ответ — 18.", "18"),
    ("Jibu ni 18.", "18"), ("సమాధానం 18.", "18"), ("คำตอบคือ 18", "18"), ("答えは18です。", "18"),
    ("答えは18 です。", "18"), ("答案是 18。", "18"), ("答案是 18.", "18"), ("উত্তর হল 18।", "18"),
    ("উত্তর হল ১৮।", "18"), ("#### 18\n\nQuestion: 4?\n#### 7", "18"), ("1 2 3 .", "3"),
    ("\\boxed{18}", "18"), ("The answer is 18.\nThe answer is 7.", "18"), ("-", "18"), ("$", "18"),
]  # fmt: skip


def scored(said: str, answer: str, **settings: Any) -> dict[str, float]:
    scorer = GsmAccuracy(1, **settings)
    scorer.update([said], [Example("", "", {"question": 0, "answer": answer})])
    return {name: float(score) for name, score in scorer.compute().items()}


# Beside lm-evaluation-harness


def harness_says(task: Path, said: str, reference: str) -> dict[str, float]:
    """What the harness's own filters and metric make of an answer."""
    from lm_eval.api.metrics import exact_match_hf_evaluate
    from lm_eval.filters.extraction import RegexFilter

    config = _config(task)
    (metric,) = config["metric_list"]
    options = {
        key: metric.get(key)
        for key in ("ignore_case", "ignore_punctuation", "regexes_to_ignore")
        if metric.get(key) is not None
    }
    result = {}
    for each in config["filter_list"]:
        first = each["filter"][0]
        if first["function"] == "regex":
            found = RegexFilter(
                first["regex_pattern"], first.get("group_select", 0)
            ).apply([[said]], [{}])  # fmt: skip
            equal = exact_match_hf_evaluate([next(iter(found))[0]], [reference], **options)
            result[each["name"]] = float(equal["exact_match"])
    return result


def _config(task: Path) -> dict[str, Any]:
    text = task.read_text(encoding="utf-8")
    config: dict[str, Any] = yaml.safe_load(text)
    if "include" in config:
        config = _config(task.parent / config["include"]) | config
    return config


def tasks_folder() -> Path:
    lm_eval = pytest.importorskip("lm_eval")
    return Path(lm_eval.__path__[0]) / "tasks"


@pytest.mark.filterwarnings("ignore")
def test_gsm8k_is_scored_as_the_harness_scores_it() -> None:
    config = tasks_folder() / "gsm8k" / "gsm8k.yaml"
    outcomes = set()
    for said, answer in RECORDED:
        wanted = harness_says(config, said, f"Worked out.\n#### {answer}")
        ours = scored(said, answer)
        assert ours["strict_match"] == wanted["strict-match"], said
        assert ours["flexible_extract"] == wanted["flexible-extract"], said
        outcomes.add((ours["accuracy"], *wanted.values()))
    assert len(outcomes) > 3  # the three differ from one another on these answers


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("style", ["native", "english"])
@pytest.mark.parametrize("language", ["bn", "de", "en", "es", "fr", "ja", "ru", "sw", "te", "th", "zh"])  # fmt: skip # noqa: E501
def test_mgsm_is_scored_as_the_harness_scores_it(language: str, style: str) -> None:
    kind = {"native": "native_cot", "english": "en_cot"}[style]
    config = tasks_folder() / "mgsm" / kind / f"mgsm_{kind}_{language}.yaml"
    right = 0.0
    for said, answer in RECORDED:
        reference = answer.replace(",", "").removesuffix(".00")
        wanted = harness_says(config, said, reference)
        ours = scored(said, answer, style=style, language=language)
        assert ours["strict_match"] == wanted["strict-match"], said
        assert ours["flexible_extract"] == wanted["flexible-extract"], said
        right += ours["strict_match"]
    assert 0 < right < len(RECORDED)


def test_the_harnesss_quirks_are_kept_and_ours_are_not_them() -> None:
    assert scored("#### 18.00", "18") == {
        "accuracy": 1, "strict_match": 0, "flexible_extract": 0,
    }  # fmt: skip
    assert scored("উত্তর হল ১৮।", "18", style="native", language="bn") == {
        "accuracy": 1, "strict_match": 0, "flexible_extract": 0,
    }  # fmt: skip
    assert Harness.of("english", "bn").strict.pattern.startswith("The answer is ")


# Counting


def answers(said: list[list[str]], truth: str = "18") -> tuple[list[str], list[Example]]:
    """Questions with their samples, one after the other."""
    examples = [
        Example("", "", {"question": q, "sample": s, "answer": truth})
        for q, samples in enumerate(said)
        for s in range(len(samples))
    ]
    return [text for samples in said for text in samples], examples


def test_accuracy_is_the_share_of_right_numbers() -> None:
    scorer = GsmAccuracy(4)
    scorer.update(*answers([["18"], ["#### 18"], ["17"], ["none"]]))
    assert float(scorer.compute()["accuracy"]) == 0.5


def test_a_number_that_was_not_given_is_never_right() -> None:
    assert scored("none", "0")["accuracy"] == 0
    assert scored("0", "0")["accuracy"] == 1


@pytest.mark.parametrize(
    ("said", "truth", "right"),
    [
        ("9007199254740992", "9007199254740993", False),  # the same float
        ("9007199254740993.0", "9007199254740993", True),
        ("0.1", "0.10000000000000000001", False),
        ("9" * 40, "9" * 30, False),
    ],
)
def test_numbers_are_compared_exactly(said: str, truth: str, right: bool) -> None:
    scorer = GsmAccuracy(1, samples=2)
    texts, examples = answers([[said, said]], truth)
    scorer.update(texts, examples)
    assert scorer.each(texts, examples) == [right, right]
    assert {float(scorer.compute()[name]) for name in ("accuracy", "majority")} == {right}


def test_the_truth_is_read_by_the_separators_of_the_answers() -> None:
    assert scored("#### 1.080", "1.080", language="de")["accuracy"] == 1
    assert scored("Das sind 1080.", "1.080", language="de")["accuracy"] == 1
    assert scored("1.08", "1.080", language="en")["accuracy"] == 1


def test_the_most_frequent_number_wins_the_vote() -> None:
    scorer = GsmAccuracy(5, samples=4)
    said = [
        ["18", "$18.00", "7", "8"],  # one number, however it is written
        ["7", "7", "18", "18 eggs"],  # as many of each: the first counts
        ["none", "none", "none", "18"],  # answers without a number do not vote
        ["7", "8", "8", "18"],
        ["none", "none", "none", "none"],
    ]
    scorer.update(*answers(said))
    scores = scorer.compute()
    assert float(scores["majority"]) == pytest.approx(2 / 5)
    assert float(scores["accuracy"]) == pytest.approx(6 / 20)


def test_numbers_that_differ_never_vote_together() -> None:
    """-1 and -2 have one hash in Python, and these large ones have one float."""
    for one, other in (("-1", "-2"), ("9007199254740992", "9007199254740993")):
        scorer = GsmAccuracy(1, samples=5)
        scorer.update(*answers([["7", one, "7", other, other]], "7"))
        assert float(scorer.compute()["majority"]) == 1


def test_votes_add_up_over_processes_that_share_out_samples_anyhow() -> None:
    """`merge_state` adds states up as they say that processes should."""
    rng = random.Random(0)
    said = [[rng.choice(["18", "18", "7", "x"]) for _ in range(5)] for _ in range(9)]
    texts, examples = answers(said)
    whole = GsmAccuracy(9, samples=5)
    whole.update(texts, examples)
    parts = [GsmAccuracy(9, samples=5) for _ in range(2)]
    for rank, part in enumerate(parts):
        part.update(texts[rank::2], examples[rank::2])
    assert all(kind is dim_zero_sum for kind in whole._reductions.values())
    assert parts[0].compute() != whole.compute()
    parts[0].merge_state(parts[1])
    parts[0]._computed = None
    assert parts[0].compute() == whole.compute()


def test_only_what_was_asked_counts() -> None:
    """Validation during training asks the first few."""
    scorer = GsmAccuracy(100, samples=2)
    scorer.update(*answers([["18", "18"], ["7", "7"]]))
    assert {name: float(score) for name, score in scorer.compute().items()} == {
        "accuracy": 0.5, "strict_match": 0, "flexible_extract": 0.5, "majority": 0.5,
    }  # fmt: skip


def test_every_answer_has_an_outcome_of_its_own() -> None:
    scorer = GsmAccuracy(3)
    assert scorer.each(*answers([["18"], ["7"], ["none"]])) == [1.0, 0.0, 0.0]
