"""Promises of the translation task: what is asked, what is learnt, and that the two never meet."""

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import yaml

from calm_lightning.contracts import CalmError, Example
from calm_plugins.tasks.reading import normal_form
from calm_plugins.tasks.translation import (
    Corpus,
    CorpusScores,
    EvaluationPart,
    Flores,
    LineFiles,
    PairFiles,
    TrainingPart,
    Translation,
)

pytest.importorskip("langcodes")
N = 40


@pytest.fixture
def corpora(tmp_path: Path) -> dict[str, Corpus]:
    """Three languages in lines, and two files of pairs that share English texts."""
    for code in ("deu_Latn", "fra_Latn", "eng_Latn"):
        lines = "".join(f"{code[:3]} sentence {n}\n" for n in range(N))
        (tmp_path / f"{code}.devtest").write_text(lines)
    for code, size in (("deu", N), ("lij", N // 2)):
        pairs = "".join(f"{code} text {n}\tenglish text {n}\n" for n in range(size))
        (tmp_path / f"{code}-eng.tsv").write_text(pairs)
    return {
        "flores": Flores(str(tmp_path)),
        "pairs": PairFiles(f"{tmp_path}/{{source}}-{{target}}.tsv"),
    }


def learn(*directions: str, **settings: Any) -> tuple[TrainingPart, ...]:
    return (TrainingPart("pairs", directions, **settings),)


def ask(corpus: str, *directions: str, **settings: Any) -> tuple[EvaluationPart, ...]:
    return (EvaluationPart(corpus, directions, **settings),)


def texts(examples: Any) -> set[str]:
    """Every text of these examples, on either side."""
    return {text for e in examples for text in (e.meta.get("source", ""), e.target.strip())} - {""}


def refusal(task: Any) -> str:
    with pytest.raises(CalmError) as error:
        task()
    return str(error.value)


# Prompts


def test_a_question_names_both_languages_and_leaves_the_translation_to_the_model(
    corpora: dict[str, Corpus],
) -> None:
    (asked,) = Translation(corpora, evaluation=ask("flores", "deu-eng")).evaluation_sets()
    assert asked.examples[3].prompt == "German: deu sentence 3\nEnglish:"
    assert asked.examples[3].target == " eng sentence 3"
    assert (asked.stop, asked.max_new_tokens, len(asked.examples)) == (("\n",), 128, N)


def test_exemplars_stand_before_every_question_and_come_from_another_corpus(
    corpora: dict[str, Corpus],
) -> None:
    part = ask("flores", "deu-eng", shots=3, exemplars="pairs")
    (asked,) = Translation(corpora, evaluation=part).evaluation_sets()
    befores = {example.prompt.rpartition("German: deu sentence")[0] for example in asked.examples}
    (before,) = befores
    exemplars = before.strip().split("\n")
    assert len(exemplars) == 6
    for question, answer in zip(exemplars[::2], exemplars[1::2], strict=True):
        number = question.removeprefix("German: deu text ")
        assert answer == f"English: english text {number}"


def test_exemplars_of_the_same_corpus_are_never_questions(corpora: dict[str, Corpus]) -> None:
    part = ask("flores", "deu-eng", limit=N - 2, shots=2)
    (asked,) = Translation(corpora, evaluation=part).evaluation_sets()
    before = asked.examples[0].prompt.rpartition("German: ")[0]
    assert before.count("German: ") == 2
    assert not any(f"{example.meta['source']}\n" in before for example in asked.examples)
    message = refusal(
        Translation(
            corpora, evaluation=ask("flores", "deu-eng", limit=N - 2, shots=3)
        ).evaluation_sets
    )
    assert "3 exemplars are wanted, but flores has 2 pairs that are not asked" in message


def test_prompt_joint_and_separator_can_be_written_otherwise(corpora: dict[str, Corpus]) -> None:
    task = Translation(
        corpora, evaluation=ask("flores", "deu-eng", shots=1, exemplars="pairs"),
        prompt="<{source_code}>{source}<{target_code}>", joint="", separator="|",
    )  # fmt: skip
    (asked,) = task.evaluation_sets()
    before, _, question = asked.examples[0].prompt.partition("|")
    assert question == "<deu_Latn>deu sentence 0<eng_Latn>"
    assert before.startswith("<deu_Latn>deu text ")
    assert "<eng_Latn>english text " in before


def test_a_joint_that_is_no_white_space_is_given_and_not_scored_or_held_out(
    tmp_path: Path,
) -> None:
    (tmp_path / "fra-eng.tsv").write_text("bonjour\thello world\nmerci\tthank you\n")
    (tmp_path / "deu-eng.tsv").write_text("hallo\thello world\nneu\tnew\n")
    corpus = PairFiles(f"{tmp_path}/{{source}}-{{target}}.tsv")
    for joint, target in ((" => ", " hello world"), ("\n", "hello world"), (" ", " hello world")):
        task = Translation(
            {"c": corpus}, (TrainingPart("c", ("deu-eng",)),), ask("c", "fra-eng"), joint=joint
        )
        assert [example.target.strip() for example in task.train_examples()] == ["new"]
        (asked,) = task.evaluation_sets()
        first = asked.examples[0]
        assert first.target == target
        assert first.prompt + target == f"French: bonjour\nEnglish:{joint}hello world"
        assert asked.scorer is not None
        scorer = asked.scorer()
        scorer.update(["hello world", "thank you"], asked.examples)
        assert scorer.compute()["chrf"] == 1


def test_names_can_be_given(corpora: dict[str, Corpus]) -> None:
    task = Translation(
        corpora, evaluation=ask("pairs", "lij-eng"), language_names={"lij": "Zeneize"}
    )
    assert task.evaluation_sets()[0].examples[0].prompt == "Zeneize: lij text 0\nEnglish:"


# Evaluation sets


def test_there_is_a_set_for_each_direction_named_as_it_was_asked_for(
    corpora: dict[str, Corpus],
) -> None:
    parts = ask("flores", "*-eng") + ask("flores", "eng-deu", name="back") + ask("pairs", "lij-eng")
    sets = Translation(corpora, evaluation=parts).evaluation_sets()
    names = [each.name for each in sets]
    assert names == [
        "flores.deu_Latn-eng_Latn", "flores.fra_Latn-eng_Latn", "back.eng-deu", "pairs.lij-eng",
    ]  # fmt: skip
    assert not any("/" in name for name in names)
    for each in sets:
        assert each.scorer is not None
        assert isinstance(each.scorer(), CorpusScores)


def test_together_makes_one_set_whose_first_examples_hold_every_direction(
    corpora: dict[str, Corpus],
) -> None:
    part = ask("pairs", "*-eng", together=True)
    (asked,) = Translation(corpora, evaluation=part).evaluation_sets()
    assert (asked.name, len(asked.examples)) == ("pairs", N + N // 2)
    assert {e.meta["direction"] for e in asked.examples[:2]} == {"deu-eng", "lij-eng"}
    assert asked.scorer is not None
    scorer = asked.scorer()
    scorer.update([e.target for e in asked.examples], asked.examples)
    scores = scorer.compute()
    assert scores["chrf"] == 1
    assert {"chrf/direction=deu-eng", "bleu/direction=lij-eng"} <= scores.keys()


def test_a_limit_draws_by_the_split_seed_and_a_larger_one_contains_it(
    corpora: dict[str, Corpus],
) -> None:
    def sources(limit: int, **settings: Any) -> list[str]:
        task = Translation(corpora, evaluation=ask("flores", "deu-eng", limit=limit), **settings)
        return [e.meta["source"] for e in task.evaluation_sets()[0].examples]

    few, more = sources(5), sources(9)
    assert (len(few), len(more)) == (5, 9)
    assert set(few) < set(more)
    assert few == sources(5, seed=7) != sources(5, split_seed=7)
    assert few == sorted(few, key=lambda text: int(text.split()[-1]))


def test_of_parallel_files_the_same_lines_are_drawn(corpora: dict[str, Corpus]) -> None:
    sets = Translation(corpora, evaluation=ask("flores", "*-eng", limit=6)).evaluation_sets()
    assert [e.target for e in sets[0].examples] == [e.target for e in sets[1].examples]


def test_long_pairs_can_be_left_out_and_their_number_is_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "deu-eng.tsv").write_text("kurz\tshort\nlang " + "x" * 30 + "\tlong\nja\tyes\n")
    corpus = PairFiles(f"{tmp_path}/{{source}}-{{target}}.tsv")
    part = ask("c", "deu-eng", max_characters=20)
    with caplog.at_level("INFO"):
        (asked,) = Translation({"c": corpus}, evaluation=part).evaluation_sets()
    assert [e.meta["source"] for e in asked.examples] == ["kurz", "ja"]
    assert "1 of 3 pairs are not asked because a side is longer than 20" in caplog.text
    message = refusal(
        Translation({"c": corpus}, evaluation=ask("c", "deu-eng", max_characters=2)).evaluation_sets
    )
    assert "there is nothing to ask" in message
    assert "3 pairs, and none with at most 2 characters" in message


# Training


def test_an_epoch_is_every_pair_once_in_each_direction(corpora: dict[str, Corpus]) -> None:
    task = Translation(corpora, train=learn("*-eng", "eng-deu"))
    found = Counter((e.prompt, e.target) for e in task.train_examples())
    assert (len(found), set(found.values())) == (N + N // 2 + N, {1})
    assert not task.generated
    assert ("English: english text 3\nGerman:", " deu text 3") in found


def test_no_text_of_an_evaluation_set_is_learnt_on_either_side(corpora: dict[str, Corpus]) -> None:
    """What is held out of one language's pairs is held out of every other one's too."""
    task = Translation(
        corpora, train=learn("deu-eng", "lij-eng", "eng-deu"),
        evaluation=ask("pairs", "deu-eng", limit=10),
    )  # fmt: skip
    (asked,) = task.evaluation_sets()
    learnt = texts(task.train_examples())
    assert len(asked.examples) == 10
    assert not learnt & texts(asked.examples)
    assert len(task.train_examples()) == 2 * (N - 10) + sum(
        f" english text {n}" not in {e.target for e in asked.examples} for n in range(N // 2)
    )


def test_texts_that_differ_in_width_case_or_spaces_are_the_same(tmp_path: Path) -> None:
    assert normal_form("\uff28ello  World\u00a0") == normal_form("hello world")
    (tmp_path / "a-eng.tsv").touch()
    (tmp_path / "deu-eng.tsv").write_text("Hallo  Welt\tX\nneu\tnew\n")
    (tmp_path / "swe-eng.tsv").write_text("hej\tHALLO welt\n")
    (tmp_path / "nob-eng.tsv").write_text("Hej\tof the other side\n")
    corpus = PairFiles(f"{tmp_path}/{{source}}-{{target}}.tsv")
    learnt = (TrainingPart("c", ("deu-eng", "nob-eng")),)
    task = Translation({"c": corpus}, learnt, ask("c", "swe-eng"))
    assert texts(task.train_examples()) == {"neu", "new"}


def test_what_is_left_out_is_said(
    corpora: dict[str, Corpus], caplog: pytest.LogCaptureFixture
) -> None:
    task = Translation(corpora, learn("deu-eng"), ask("pairs", "deu-eng", limit=10))
    with caplog.at_level("INFO"):
        task.train_examples()
    assert "30 of 40 pairs in 1 directions of pairs are learnt (translation); 10 are" in caplog.text


def test_one_side_alone_is_plain_text_and_each_text_comes_once(corpora: dict[str, Corpus]) -> None:
    task = Translation(
        corpora, learn("*-eng", kind="target_text"), ask("pairs", "lij-eng", limit=4)
    )
    examples = list(task.train_examples())
    assert all(e.prompt == "" and e.ends for e in examples)
    assert len({e.target for e in examples}) == len(examples) == N - 4
    assert not texts(examples) & texts(task.evaluation_sets()[0].examples)
    sources = Translation(corpora, learn("lij-eng", kind="source_text")).train_examples()
    assert {e.target for e in sources} == {f"lij text {n}" for n in range(N // 2)}


def test_limit_and_share_hold_for_each_direction_and_nest(corpora: dict[str, Corpus]) -> None:
    def learnt(**settings: Any) -> Counter[str]:
        examples = Translation(corpora, learn("*-eng", **settings)).train_examples()
        return Counter(e.prompt.partition(":")[0] for e in examples)

    def sources(**settings: Any) -> set[str]:
        examples = Translation(corpora, learn("*-eng", **settings)).train_examples()
        return {e.meta["source"] for e in examples}

    assert learnt(limit=7) == {"German": 7, "Ligurian": 7}
    assert learnt(share=0.25) == {"German": 10, "Ligurian": 5}
    assert learnt(share=0.25, limit=6) == {"German": 6, "Ligurian": 5}
    assert learnt(share=0.001) == {"German": 1, "Ligurian": 1}
    assert sources(share=0.05) < sources(share=0.5) < sources()


def test_a_larger_share_holds_a_smaller_one_whatever_either_run_evaluates(
    corpora: dict[str, Corpus],
) -> None:
    def number(text: str) -> str:
        return text.rpartition(" ")[2]

    def learnt(share: float, kind: Any, asked: Any = ()) -> tuple[set[str], set[str]]:
        task = Translation(corpora, learn("*-eng", share=share, kind=kind), asked)
        held_out = {number(t) for each in task.evaluation_sets() for t in texts(each.examples)}
        return texts(task.train_examples()), held_out

    asked = ask("pairs", "deu-eng", limit=9)
    for kind in ("translation", "target_text", "source_text"):
        few, many = learnt(0.3, kind), learnt(0.4, kind)
        few_of_less, (many_of_less, held_out) = learnt(0.3, kind, asked), learnt(0.4, kind, asked)
        assert few_of_less[0] < many[0]
        assert {text for text in few[0] if number(text) not in held_out} < many_of_less


def test_weights_divide_parts_and_the_temperature_their_directions(
    corpora: dict[str, Corpus],
) -> None:
    parts = learn("*-eng", weight=3.0) + learn("eng-lij", weight=1.0)
    task = Translation(corpora, parts, examples_per_epoch=1200)
    found = Counter(e.prompt.partition(":")[0] for e in task.train_examples())
    assert found == {"German": 600, "Ligurian": 300, "English": 300}
    assert task.generated
    even = Translation(corpora, learn("*-eng"), temperature=1e9, examples_per_epoch=100)
    counts = Counter(e.prompt.partition(":")[0] for e in even.train_examples())
    assert counts == {"German": 50, "Ligurian": 50}


def test_the_order_of_training_depends_on_the_seed_and_the_choice_does_not(
    corpora: dict[str, Corpus],
) -> None:
    def examples(seed: int) -> list[Example]:
        return list(Translation(corpora, learn("*-eng", limit=15), seed=seed).train_examples())

    one, other = examples(1), examples(2)
    assert one != other
    assert texts(one) == texts(other)


# Refusals


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"train": learn("deu-eng", weight=1.0) + learn("lij-eng")}, ["some have none"]),
        ({"train": learn("deu-eng", share=0.0)}, ["train[0]: share", "got 0.0"]),
        ({"train": learn("deu-eng", weight=0.0)}, ["train[0]: weight", "got 0.0"]),
        ({"train": learn("deu-eng", limit=0)}, ["train[0]: limit must be at least 1: got 0"]),
        ({"train": learn()}, ["train[0]: no directions", "deu-eng or *-eng"]),
        ({"train": learn("deu>eng")}, ["'deu>eng' is no direction", "deu-eng"]),
        ({"train": ask("pairs", "deu-eng")[:0]}, ["train is empty"]),
        ({"evaluation": ask("flroes", "deu-eng")}, ["no corpus 'flroes'", "Did you mean flores?"]),
        ({"evaluation": ask("flores", "deu-eng", exemplars="dev")}, ["no corpus 'dev'"]),
        ({"evaluation": ask("flores", "deu-eng", shots=-1)}, ["evaluation[0]: shots", "-1"]),
        ({"prompt": "{source} {langauge}"}, ["no field {langauge}", "{source_language}"]),
        ({"prompt": "translate:"}, ["must hold {source}"]),
        ({"prompt": "{source"}, ["prompt: ", "brace"]),
        ({"temperature": 0.5}, ["temperature must be at least 1"]),
        ({"max_new_tokens": 0}, ["max_new_tokens=0"]),
    ],
    ids=lambda value: "" if isinstance(value, dict) else value[0],
)
def test_settings_that_make_no_sense(
    corpora: dict[str, Corpus], settings: dict[str, Any], words: list[str]
) -> None:
    message = refusal(lambda: Translation(corpora, **settings).train_examples())
    for word in words:
        assert word in message


@pytest.mark.parametrize(
    ("corpus", "direction", "words"),
    [
        ("flores", "dux-eng", ["no language 'dux'", "Nearest: deu_Latn", "has 3: deu_Latn"]),
        ("flores", "german-eng", ["no language 'german'", "Nearest: deu_Latn"]),
        ("flores", "tat-eng", ["no language 'tat'", "It has 3: deu_Latn, eng_Latn, fra_Latn"]),
        ("pairs", "deu-lij", ["no pairs deu-lij", "It has deu-eng"]),
    ],
)
def test_a_missing_language_is_named_with_the_nearest_codes(
    corpora: dict[str, Corpus], corpus: str, direction: str, words: list[str]
) -> None:
    message = refusal(Translation(corpora, evaluation=ask(corpus, direction)).evaluation_sets)
    for word in words:
        assert word in message


def test_a_code_that_could_be_two_languages_is_not_guessed(tmp_path: Path) -> None:
    for code in ("zho_Hans", "zho_Hant", "eng_Latn"):
        (tmp_path / f"{code}.txt").write_text("one\n")
    corpus = LineFiles(f"{tmp_path}/{{language}}.txt")
    assert corpus.find("zho_Hant-eng")[0].source == "zho_Hant"
    message = refusal(lambda: corpus.find("zho-eng"))
    assert "'zho' could be zho_Hans or zho_Hant. Write which one is meant" in message


def test_a_corpus_that_is_asked_whole_leaves_nothing_to_learn(corpora: dict[str, Corpus]) -> None:
    task = Translation(corpora, learn("lij-eng"), ask("pairs", "lij-eng"))
    message = refusal(task.train_examples)
    assert "Nothing is left to train on: 0 of 20 pairs" in message
    assert "20 are not because an evaluation set holds one of their texts" in message
    assert "limit" in message


def test_a_corpus_without_a_pair_is_refused_in_one_way(tmp_path: Path) -> None:
    (tmp_path / "h.tsv").write_text("de\ten\n")
    (tmp_path / "full.tsv").write_text("eins\tone\n")
    corpora: dict[str, Corpus] = {
        "c": PairFiles(f"{tmp_path}/h.tsv", ("deu", "eng"), ("de", "en")),
        "full": PairFiles(f"{tmp_path}/full.tsv", ("deu", "eng")),
    }
    tasks = [
        Translation(corpora, evaluation=ask("c", "deu-eng")),
        Translation(corpora, evaluation=ask("full", "deu-eng", shots=1, exemplars="c")),
        Translation(corpora, (TrainingPart("c", ("deu-eng",)),)),
    ]
    messages = {
        refusal(tasks[0].evaluation_sets),
        refusal(tasks[1].evaluation_sets),
        refusal(tasks[2].train_examples),
    }
    (message,) = messages
    assert "c, deu-eng: the corpus is empty" in message
    assert "Check the file or the split" in message


def test_the_papers_table_is_asked_of_the_whole_of_flores(tmp_path: Path) -> None:
    """FLORES-200 has some of its languages in two scripts."""
    codes = (
        "lij_Latn mri_Latn taq_Latn taq_Tfng nno_Latn sun_Latn ban_Latn pol_Latn tha_Thai min_Arab "
        "min_Latn acm_Arab eng_Latn"
    )
    for code in codes.split():
        (tmp_path / f"{code}.devtest").write_text("one\n")
    config = Path(__file__).parents[3] / "configs" / "translation" / "flores.yaml"
    (part,) = yaml.safe_load(config.read_text())["data"]["init_args"]["evaluation"]
    found = [each for asked in part["directions"] for each in Flores(str(tmp_path)).find(asked)]
    assert [each.source[:3] for each in found] == [
        "lij", "mri", "taq", "nno", "sun", "ban", "pol", "tha", "min", "acm",
    ]  # fmt: skip
    assert {each.target for each in found} == {"eng_Latn"}


def test_evaluation_alone_needs_no_training_data(corpora: dict[str, Corpus]) -> None:
    task = Translation(corpora, evaluation=ask("flores", "deu-eng"))
    assert len(task.evaluation_sets()[0].examples) == N
