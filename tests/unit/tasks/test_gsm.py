"""Promises of the grade-school maths task: formats, prompts, what is asked and what is learnt."""

# ruff: noqa: RUF001  (other scripts are meant)

import inspect
import json
from pathlib import Path
from typing import Any

import pytest

from calm_lightning.contracts import CalmError
from calm_plugins.tasks.gsm import Gsm
from calm_plugins.tasks.gsm.exemplars import ours
from calm_plugins.tasks.gsm.languages import LANGUAGES
from calm_plugins.tasks.gsm.numbers import final_number
from calm_plugins.tasks.gsm.our_exemplars import ANSWERS
from calm_plugins.tasks.gsm.problems import Problem, read_problems
from calm_plugins.tasks.gsm.prompts import Prompts

SOLVED = [
    {
        "question": f"Ann has {n} pens and buys {n + 1}. How many?",
        "answer": f"{n} + {n + 1} = <<{n}+{n + 1}={2 * n + 1}>>{2 * n + 1}\n#### {2 * n + 1}",
    }
    for n in range(10)
]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "train.jsonl").write_text("\n".join(map(json.dumps, SOLVED)))
    (tmp_path / "test.jsonl").write_text("\n".join(map(json.dumps, SOLVED[:3])))
    (tmp_path / "mgsm_de.tsv").write_text("Ann hat 3 Stifte.\t3\nBob zahlt viel.\t1,080\n")
    (tmp_path / "mgsm_ja.tsv").write_text("アンは？\t5\n")
    return tmp_path


def refusal(task: Any) -> str:
    with pytest.raises(CalmError) as error:
        task()
    return str(error.value)


# Formats


def test_gsm8k_is_a_solution_and_then_the_number(folder: Path) -> None:
    problem = read_problems(folder / "train.jsonl")[2]
    assert problem == Problem(SOLVED[2]["question"], "5", "2 + 3 = <<2+3=5>>5")


def test_mgsm_is_a_question_and_a_number_in_the_language_of_the_files_name(folder: Path) -> None:
    assert read_problems(folder / "mgsm_de.tsv") == [
        Problem("Ann hat 3 Stifte.", "3", language="de"),
        Problem("Bob zahlt viel.", "1,080", language="de"),
    ]


def test_mgsm_of_the_hub_has_the_number_in_a_field(tmp_path: Path) -> None:
    file = tmp_path / "a.jsonl"
    rows = [
        {"question": "q", "answer": None, "answer_number": 18, "language": "th"},
        {"question": "q", "answer": "Worked out.", "answer_number": 7},
        {"question": "q", "answer": 4.5},
    ]
    file.write_text("\n".join(map(json.dumps, rows)))
    assert read_problems(file) == [
        Problem("q", "18", language="th"), Problem("q", "7", "Worked out."), Problem("q", "4.5"),
    ]  # fmt: skip


def test_numbers_of_json_are_written_in_full(tmp_path: Path) -> None:
    file = tmp_path / "a.jsonl"
    file.write_text(
        '{"question": "q", "answer_number": 1e16}\n{"question": "q", "answer": 2.5e-7}\n'
    )
    assert [each.answer for each in read_problems(file)] == ["10000000000000000", "0.00000025"]


def test_a_solution_of_ones_own_is_scored_by_the_separators_of_its_language(
    tmp_path: Path,
) -> None:
    file = tmp_path / "eigene_de.jsonl"
    file.write_text(json.dumps({"question": "Wie viele?", "answer": "540 * 2\n#### 1.080"}))
    (asked,) = Gsm(evaluation={"eigene": str(file)}).evaluation_sets()
    assert asked.scorer is not None
    for said, right in ((asked.examples[0].target, 1), ("#### 1080", 1), ("#### 1,08", 0)):
        scorer = asked.scorer()
        scorer.update([said], asked.examples)
        assert float(scorer.compute()["accuracy"]) == right


@pytest.mark.parametrize(
    ("name", "content"),
    [("mgsm_de.tsv", "Wie viel?\t1.080\n"), ("a_de.jsonl", '{"question": "q", "answer": 1.125}')],
)
def test_a_number_that_could_be_two_is_refused(tmp_path: Path, name: str, content: str) -> None:
    (tmp_path / name).write_text(content)
    message = refusal(lambda: read_problems(tmp_path / name))
    read = ("1.080", "1080") if name.endswith("tsv") else ("1.125", "1125")
    for word in (f"{name}, line 1", f"is {read[0]} as", f"but {read[1]} with", "'de'"):
        assert word in message
    for language in ("en", "sw"):
        other = tmp_path / name.replace("_de", f"_{language}")
        other.write_text(content)
        assert read_problems(other)[0].answer == read[0]


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.jsonl", '{"question": "q", "answer": true}', ["line 1: 'answer' holds true, not a"]),
        ("a.jsonl", '{"question": "q", "answer": NaN}', ["line 1: the answer", "'NaN'"]),
        ("a.jsonl", '{"question": "q", "answer_number": 1e400}', ["line 1", "'Infinity'"]),
        ("a.jsonl", '{"question": "q"}', ["a.jsonl, line 1: no field 'answer'", "'question'"]),
        ("a.jsonl", '{"answer": "1"}', ["line 1: no field 'question'; the fields are 'answer'"]),
        ("a.jsonl", '{"question": "q", "answer": "many"}', ["line 1: the answer", "'many'"]),
        ("a.jsonl", '{"question": "q", "answer": "3\\n#### x"}', ["line 1", "#### number", "'x'"]),
        ("a.jsonl", '{"question": "", "answer": "3"}', ["line 1: 'question' is empty"]),
        ("a.jsonl", "no", ["line 1: not JSON", '"question"']),
        ("a.tsv", "q\t3\nq 4\n", ["a.tsv, line 2: a question and a number", "found 1 column"]),
        ("a.tsv", "q\tmany\n", ["line 1: the answer", "'many'"]),
        ("a.tsv", "", ["a.tsv is empty"]),
    ],
)
def test_rows_that_are_no_problem(
    tmp_path: Path, name: str, content: str, words: list[str]
) -> None:
    (tmp_path / name).write_text(content)
    message = refusal(lambda: read_problems(tmp_path / name))
    for word in words:
        assert word in message


# Prompts


def test_gsm8ks_style_is_question_answer_and_the_marked_number() -> None:
    problem = Problem("How many?", "1,080", "9 * 120 = <<9*120=1080>>1,080")
    prompts = Prompts("gsm8k")
    assert prompts.prompt(problem) == "Question: How many?\nAnswer:"
    assert prompts.target(problem) == " 9 * 120 = 1,080\n#### 1,080"
    assert prompts.target(Problem("How many?", "5")) == " #### 5"
    assert prompts.stop("de") == ("Question:",)
    kept = Prompts("gsm8k", keep_annotations=True, cue=" Let's think step by step.")
    assert kept.target(problem) == " 9 * 120 = <<9*120=1080>>1,080\n#### 1,080"
    assert kept.prompt(problem).endswith("\nAnswer: Let's think step by step.")


def test_mgsms_styles_answer_in_the_questions_language_or_in_english() -> None:
    problem = Problem("Wie viele?", "5", "2 + 3 = 5.", "de")
    native = Prompts("native")
    assert native.prompt(problem) == "Frage: Wie viele?\nSchritt-für-Schritt-Antwort:"
    assert native.target(problem) == " 2 + 3 = 5. Die Antwort lautet 5."
    english = Prompts("english")
    assert english.prompt(problem) == "Frage: Wie viele?\nStep-by-Step Answer:"
    assert english.target(problem) == " 2 + 3 = 5. The answer is 5."
    assert native.stop("de") == english.stop("de") == ("Frage:",)
    japanese = Problem("いくつ？", "5", "2 + 3 = 5です。", "ja")
    assert native.target(japanese) == "2 + 3 = 5です。答えは5です。"


@pytest.mark.parametrize("language", LANGUAGES)
def test_our_exemplars_end_in_the_number_that_they_should(language: str) -> None:
    for style in ("native", "english"):
        problems = ours(language, style)
        prompts = Prompts(style)  # type: ignore[arg-type]
        assert [problem.answer for problem in problems] == list(ANSWERS)
        for problem in problems:
            assert final_number(prompts.target(problem), language) == int(problem.answer)
            assert final_number(problem.solution or "", language) == int(problem.answer)


def test_no_exemplar_of_ours_is_written_twice() -> None:
    questions = [each.question for code in LANGUAGES for each in ours(code, "native")]
    assert len(set(questions)) == 4 * 11


# Evaluation


def test_a_folder_of_mgsm_is_a_set_for_each_language(folder: Path) -> None:
    task = Gsm(evaluation={"mgsm": str(folder), "gsm8k": str(folder / "test.jsonl")})
    sets = task.evaluation_sets()
    assert [(each.name, len(each.examples)) for each in sets] == [
        ("mgsm.de", 2), ("mgsm.ja", 1), ("gsm8k", 3),
    ]  # fmt: skip
    chosen = Gsm(evaluation={"mgsm": str(folder)}, languages=("ja",)).evaluation_sets()
    assert [each.name for each in chosen] == ["mgsm.ja"]


def test_an_answer_is_scored_by_its_number(folder: Path) -> None:
    task = Gsm(evaluation={"mgsm": str(folder)}, languages=("de",), style="native")
    (asked,) = task.evaluation_sets()
    assert asked.scorer is not None
    scorer = asked.scorer()
    scorer.update([" Das sind 3.", " Die Antwort lautet 1.080 €."], asked.examples)
    assert float(scorer.compute()["accuracy"]) == 1
    assert (asked.stop, asked.max_new_tokens) == (("Frage:",), 256)


def test_shots_stand_before_every_question_in_its_language(folder: Path) -> None:
    task = Gsm(evaluation={"mgsm": str(folder)}, style="native", shots=2)
    german, japanese = task.evaluation_sets()
    parts = german.examples[1].prompt.split("\n\n")
    assert len(parts) == 3
    assert parts[0].startswith("Frage: Mia hat")
    assert parts[0].endswith("Die Antwort lautet 17.")
    assert parts[2] == "Frage: Bob zahlt viel.\nSchritt-für-Schritt-Antwort:"
    assert japanese.examples[0].prompt.startswith("問題：ミアは")
    assert japanese.examples[0].prompt.count("答えは") == 2


def test_shots_of_a_file_are_never_the_questions_themselves(folder: Path) -> None:
    task = Gsm(
        evaluation={"gsm8k": str(folder / "test.jsonl")}, shots=2,
        exemplars=str(folder / "train.jsonl"),
    )  # fmt: skip
    (asked,) = task.evaluation_sets()
    before = asked.examples[0].prompt.rpartition("\n\n")[0]
    assert before == (
        "Question: Ann has 3 pens and buys 4. How many?\nAnswer: 3 + 4 = 7\n#### 7\n\n"
        "Question: Ann has 4 pens and buys 5. How many?\nAnswer: 4 + 5 = 9\n#### 9"
    )
    more = Gsm(
        evaluation={"gsm8k": str(folder / "test.jsonl")}, shots=8,
        exemplars=str(folder / "train.jsonl"),
    )  # fmt: skip
    message = refusal(more.evaluation_sets)
    assert "8 exemplars in the language 'en' are wanted" in message
    assert "has 7 with solutions that are not asked" in message


def test_the_published_exemplars_are_read_from_their_file_and_not_run(folder: Path) -> None:
    file = folder / "exemplars.py"
    exemplars = {
        "de": {"1": {"q": "Frage: Drei?", "a": "Schritt-für-Schritt-Antwort: Drei."}},
        "en": {"1": {"q": "Question: Three?", "a": "Step-by-Step Answer: Three."}},
    }
    file.write_text(f"raise SystemExit\nNUMBERS = [3]\nMGSM_EXEMPLARS = {exemplars!r}\n")

    def before(style: Any) -> str:
        task = Gsm(
            evaluation={"m": str(folder)}, languages=("de",), style=style, shots=1,
            exemplars=str(file),
        )  # fmt: skip
        return task.evaluation_sets()[0].examples[0].prompt.partition("\n\n")[0]

    assert before("native") == "Frage: Drei?\nSchritt-für-Schritt-Antwort: Drei."
    assert before("english") == "Frage: Drei?\nStep-by-Step Answer: Three."
    lacking = Gsm(evaluation={"m": str(folder)}, languages=("ja",), style="native", shots=1,
                  exemplars=str(file))  # fmt: skip
    assert "q and a for the language 'ja' is expected" in refusal(lacking.evaluation_sets)
    file.write_text("MGSM_EXEMPLARS = open('x')")
    assert "is not MGSM's exemplars.py" in refusal(lacking.evaluation_sets)


def test_several_samples_ask_each_question_so_many_times(folder: Path) -> None:
    settings: dict[str, Any] = {"evaluation": {"gsm8k": str(folder / "test.jsonl")}}
    (one,) = Gsm(**settings).evaluation_sets()
    (asked,) = Gsm(**settings, samples=3, temperature=0.8).evaluation_sets()
    assert dict(one.generation) == {}
    assert dict(asked.generation) == {
        "do_sample": True, "temperature": 0.8, "top_k": 0, "top_p": 1.0,
    }  # fmt: skip
    assert [e.prompt for e in asked.examples] == [e.prompt for e in one.examples] * 3
    assert asked.scorer is not None
    scorer = asked.scorer()
    right = [example.target for example in one.examples]
    scorer.update([*right, *["0"] * 3, *right], asked.examples)
    scores = scorer.compute()
    assert float(scores["majority"]) == 1
    assert float(scores["accuracy"]) == pytest.approx(2 / 3)


def test_samples_of_a_question_are_asked_side_by_side_and_votes_are_the_same(folder: Path) -> None:
    task = Gsm(evaluation={"gsm8k": str(folder / "test.jsonl")}, samples=4, temperature=0.8,
               evaluation_batch_size=8)  # fmt: skip
    (asked,) = task.evaluation_sets()
    said = ["1", "3", "5", "1", "4", "6", "2", "4", "5", "1", "0", "7"]  # 1, 3, 5 are right
    (batches,) = ([*loader] for loader in task.test_dataloader())
    questions = [[example.meta["question"] for _, example in batch] for batch in batches]
    assert questions == [[0] * 4 + [1] * 4, [2] * 4]
    assert [example.meta["sample"] for _, example in batches[1]] == [0, 1, 2, 3]
    assert asked.scorer is not None
    in_order, in_batches = asked.scorer(), asked.scorer()
    in_order.update(said, asked.examples)
    for batch in batches:
        in_batches.update([said[number] for number, _ in batch], [each for _, each in batch])
    assert in_order.compute() == in_batches.compute()
    assert float(in_batches.compute()["accuracy"]) == pytest.approx(6 / 12)
    assert float(in_batches.compute()["majority"]) == pytest.approx(2 / 3)


def test_a_limit_asks_the_first_questions(folder: Path) -> None:
    task = Gsm(evaluation={"mgsm": str(folder)}, limit=1)
    assert [len(each.examples) for each in task.evaluation_sets()] == [1, 1]


def test_questions_that_two_sets_ask_are_pointed_out(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (folder / "mgsm_en.tsv").write_text(f"{SOLVED[1]['question']}\t3\n")
    with caplog.at_level("INFO"):
        Gsm(evaluation={"gsm8k": str(folder / "test.jsonl"), "mgsm": str(folder)}).evaluation_sets()
    assert "1 questions of mgsm.en are also in gsm8k: count one of the two" in caplog.text


# Training


def test_what_is_asked_is_not_learnt(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    task = Gsm((str(folder / "train.jsonl"),), {"gsm8k": str(folder / "test.jsonl")})
    with caplog.at_level("INFO"):
        learnt = task.train_examples()
    assert [example.target for example in learnt] == [
        f" {n} + {n + 1} = {2 * n + 1}\n#### {2 * n + 1}" for n in range(3, 10)
    ]
    assert "3 of 10 problems are not learnt" in caplog.text
    both = Gsm((str(folder / "test.jsonl"),), {"gsm8k": str(folder / "test.jsonl")})
    assert "all 3 problems of" in refusal(both.train_examples)


# Refusals


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"style": "cot"}, ["style is 'cot', not gsm8k or native or english"]),
        ({"calculator": "use"}, ["calculator is 'use'"]),
        ({"shots": -1}, ["shots must not be negative: got -1"]),
        ({"limit": 0}, ["limit=0"]),
        ({"samples": 0, "temperature": 1.0}, ["samples must be at least 1: got 0"]),
        ({"samples": 8}, ["samples=8 answers", "all the same at temperature=0", "above 0"]),
        ({"temperature": -1.0}, ["temperature must not be negative: got -1.0"]),
        ({}, ["train is empty"]),
    ],
    ids=str,
)
def test_settings_that_make_no_sense(
    settings: Any, words: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    if settings.keys() & {"style", "calculator"}:  # tests check annotations, before these are read
        monkeypatch.setattr(Gsm, "__init__", inspect.unwrap(Gsm.__init__))
    message = refusal(lambda: Gsm(**settings).train_examples())
    for word in words:
        assert word in message


def test_languages_that_are_not_there(folder: Path) -> None:
    missing = Gsm(evaluation={"mgsm": str(folder)}, languages=("de", "sw"))
    assert "has no mgsm_sw.tsv; it has de, ja" in refusal(missing.evaluation_sets)
    (folder / "empty").mkdir()
    nothing = Gsm(evaluation={"mgsm": str(folder / "empty")})
    assert "it has no file of MGSM" in refusal(nothing.evaluation_sets)
    other = folder / "other.jsonl"
    other.write_text('{"question": "q", "answer": "3", "language": "xx"}')
    message = refusal(Gsm(evaluation={"o": str(other)}, style="native").evaluation_sets)
    assert "no prompts in the language 'xx'; MGSM has bn, de" in message
    other.write_text('{"question": "q", "answer": "3", "language": "de"}\n' + json.dumps(SOLVED[0]))
    assert "holds problems in de, en" in refusal(Gsm(evaluation={"o": str(other)}).evaluation_sets)
