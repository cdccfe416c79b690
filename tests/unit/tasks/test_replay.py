"""Promises of a task that is trained beside replay data."""

from collections import Counter
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from calm_lightning.contracts import CalmError, EvaluationSet, ExactMatch, Example, Task
from calm_plugins.tasks.mixture import Mixture
from calm_plugins.tasks.self_decompression import Replay
from calm_plugins.tasks.self_decompression.questions import Questions, Without


class Sums(Task):
    """`<letter><number>=`, and a question that training data may hold."""

    def __init__(self, letter: str, count: int = 20, generated: bool = False) -> None:
        super().__init__()
        self.letter, self.count, self.generated = letter, count, generated
        self.stages: list[str] = []

    def prepare_data(self) -> None:
        self.stages.append("prepare")

    def setup(self, stage: str) -> None:
        self.stages.append(stage)

    def train_examples(self) -> Sequence[Example]:
        return [Example(f"{self.letter}{i}=", f"{i}") for i in range(self.count)]

    def evaluation_sets(self) -> Sequence[EvaluationSet]:
        return [EvaluationSet("asked", [Example("b7=", "7"), Example("b9=", "9")], ExactMatch)]


def prompts(replay: Replay) -> list[str]:
    return [example.prompt for example in replay.train_examples()]


def test_the_share_holds_in_every_stretch() -> None:
    found = prompts(Replay(Sums("a"), Sums("b"), 0.25, examples_per_epoch=400))
    assert Counter(prompt[0] for prompt in found) == {"a": 300, "b": 100}
    for start in range(0, 400, 40):
        assert abs(Counter(p[0] for p in found[start : start + 40])["b"] - 10) <= 2


def test_evaluation_is_the_tasks_under_its_own_names() -> None:
    task = Sums("a")
    (one,) = Replay(task, Sums("b")).evaluation_sets()
    assert one.name == "asked"


def test_a_question_of_the_evaluation_is_not_replayed() -> None:
    found = prompts(Replay(Sums("a"), Sums("b"), 0.5, examples_per_epoch=400))
    replayed = {prompt for prompt in found if prompt[0] == "b"}
    assert replayed == {f"b{i}=" for i in range(20)} - {"b7=", "b9="}


def test_a_question_inside_a_longer_text_is_found() -> None:
    class Worked(Sums):
        def train_examples(self) -> Sequence[Example]:
            return [Example("", "so b7=7"), Example("", "so b", ends=False), Example("xb", "9=9")]

    found = Replay(Sums("a"), Worked("b"), 0.5, examples_per_epoch=40).train_examples()
    assert {e.target for e in found if not e.prompt.startswith("a")} == {"so b"}


def test_nothing_left_to_replay_is_refused() -> None:
    class Asked(Sums):
        def train_examples(self) -> Sequence[Example]:
            return [Example("b7=", "7")]

    with pytest.raises(CalmError, match="Nothing is left to replay"):
        Replay(Sums("a"), Asked("b")).train_examples()


def test_of_data_made_by_index_the_next_one_stands_in_for_a_question() -> None:
    found = prompts(Replay(Sums("a"), Sums("b", generated=True), 0.5, examples_per_epoch=24))
    assert [prompt for prompt in found if prompt[0] == "b"] == [
        f"b{8 if i == 7 else 10 if i == 9 else i}=" for i in range(12)
    ]


def test_a_question_of_the_evaluation_is_not_replayed_by_a_mixture_either() -> None:
    mixture = Mixture({"b": Sums("b"), "c": Sums("c")}, examples_per_epoch=100)
    found = prompts(Replay(Sums("a"), mixture, 0.5, examples_per_epoch=200))
    assert Counter(prompt[0] for prompt in found)["a"] == 100
    assert not {"b7=", "b9="} & set(found)
    assert {"b6=", "b8=", "c7=", "c9="} <= set(found)


def test_behind_the_last_example_made_by_index_comes_the_first() -> None:
    examples = Without([Example("b6=", "6"), Example("b7=", "7")], Questions(["b7="]))
    assert [example.prompt for example in examples] == ["b6=", "b6="]


def test_endless_data_that_only_ask_the_questions_are_refused() -> None:
    with pytest.raises(CalmError, match="Nothing is left to replay"):
        Without([Example("b7=", "7")] * 3, Questions(["b7="]))[1]


@given(st.text("ab", max_size=12), st.lists(st.text("ab", max_size=5), max_size=4))
def test_a_question_is_found_wherever_it_stands(text: str, questions: list[str]) -> None:
    found = Questions(questions).stand_in(Example(text[:3], text[3:]))
    assert found == any(question in text for question in questions if question)


def test_at_each_place_only_questions_that_begin_there_are_tried() -> None:
    """So 300 questions of different lengths take no longer than one."""
    questions = Questions(f"{number:03}" + "x" * number for number in range(300))
    assert len(questions.lengths) == 300
    assert all(len(lengths) == 1 for lengths in questions.lengths.values())


def test_the_seed_is_that_of_both() -> None:
    task, data = Sums("a"), Sums("b")
    Replay(task, data, seed=5)
    assert (task.seed, data.seed) == (5, 5)
    orders = [
        prompts(Replay(Sums("a"), Sums("b"), seed=seed, examples_per_epoch=50))
        for seed in (1, 1, 2)
    ]
    assert orders[0] == orders[1] != orders[2]


def test_both_are_prepared_and_set_up() -> None:
    task, data = Sums("a"), Sums("b")
    replay = Replay(task, data)
    replay.prepare_data()
    replay.setup("fit")
    assert task.stages == data.stages == ["prepare", "fit"]


@pytest.mark.parametrize(
    ("settings", "words"), [({"share": 0.0}, "share=0"), ({"examples_per_epoch": 0}, "at least 1")]
)
def test_settings_that_make_no_sense(settings: dict[str, float], words: str) -> None:
    with pytest.raises(CalmError, match=words):
        Replay(Sums("a"), Sums("b"), **settings)  # type: ignore[arg-type]
