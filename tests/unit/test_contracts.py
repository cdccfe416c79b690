"""Contracts: the order of batches, exact match, and what a task gives to each process."""

from collections import Counter
from collections.abc import Sequence
from itertools import islice
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from calm_lightning.contracts import (
    STAND_IN,
    CalmError,
    Composition,
    EvaluationSet,
    ExactMatch,
    Example,
    Task,
)
from calm_lightning.contracts.task import OrderedBatches
from calm_plugins.compositions.cross_attention import CrossAttention
from calm_plugins.compositions.single import Single


def take(batches: OrderedBatches, count: int) -> list[list[int]]:
    """So many batches, over as many epochs as that takes."""

    def endless() -> Any:
        while True:
            yield from batches

    return list(islice(endless(), count))


def flat(batches: list[list[int]]) -> list[int]:
    return [index for batch in batches for index in batch]


LENGTHS = [(7 * i) % 13 for i in range(1000)]


@st.composite
def orders(draw: st.DrawFn) -> dict[str, Any]:
    by_length = draw(st.booleans())
    return {
        "length": draw(st.integers(4, 60)),
        "batch_size": draw(st.integers(1, 7)),
        "seed": draw(st.integers(0, 9)),
        "shuffle": draw(st.booleans()),
        "lengths": LENGTHS.__getitem__ if by_length else None,
        "groups": draw(st.integers(1, 5)),
    }


@settings(max_examples=60, deadline=None)
@given(orders(), st.integers(0, 40))
def test_going_on_anywhere_gives_the_same_batches(order: dict[str, Any], consumed: int) -> None:
    wanted = take(OrderedBatches(**order), consumed + 12)[consumed:]
    assert take(OrderedBatches(**order, first_batch=consumed), 12) == wanted


@settings(max_examples=60, deadline=None)
@given(orders(), st.sampled_from([2, 3, 4]))
def test_processes_share_every_global_batch(order: dict[str, Any], world: int) -> None:
    size = max(1, min(order["batch_size"], order["length"] // world))
    alone = OrderedBatches(**{**order, "batch_size": size * world})
    ranks = [OrderedBatches(**order, rank=rank, world_size=world) for rank in range(world)]
    count = 2 * len(alone)
    shares = list(zip(*(take(rank, count) for rank in ranks), strict=True))
    for whole, parts in zip(take(alone, count), shares, strict=True):
        assert sorted(whole) == sorted(index for part in parts for index in part)
        assert {len(part) for part in parts} == {size}


@settings(max_examples=60, deadline=None)
@given(orders())
def test_an_epoch_has_no_example_twice_and_leaves_out_less_than_a_batch(
    order: dict[str, Any],
) -> None:
    batches = OrderedBatches(**order)
    seen = Counter(index for batch in take(batches, len(batches)) for index in batch)
    assert max(seen.values()) == 1
    assert order["length"] - len(seen) < batches.batch_size
    assert all(0 <= index < order["length"] for index in seen)


def test_the_order_depends_on_seed_and_epoch_and_on_nothing_else() -> None:
    def batches(seed: int) -> list[list[int]]:
        torch.manual_seed(torch.seed() % 1000)  # the global generator has no say
        return take(OrderedBatches(100, 10, seed), 20)

    assert batches(0) == batches(0)
    assert batches(0) != batches(1)
    first, second = batches(0)[:10], batches(0)[10:]
    assert first != second
    assert sorted(flat(first)) == sorted(flat(second)) == list(range(100))


def test_generated_examples_come_in_their_own_order() -> None:
    assert take(OrderedBatches(10, 3, shuffle=False), 3) == [[0, 1, 2], [3, 4, 5], [6, 7, 8]]


def test_grouping_by_length_keeps_all_examples_and_saves_padding() -> None:
    plain = take(OrderedBatches(640, 8, groups=8), 80)
    grouped = take(OrderedBatches(640, 8, lengths=LENGTHS.__getitem__, groups=8), 80)
    assert sorted(flat(plain)) == sorted(flat(grouped)) == list(range(640))
    for group in range(0, 80, 8):  # within a group the examples are the same ones
        assert set(flat(grouped[group : group + 8])) == set(flat(plain[group : group + 8]))

    def padding(batches: list[list[int]]) -> int:
        return sum(
            max(LENGTHS[i] for i in batch) * len(batch) - sum(LENGTHS[i] for i in batch)
            for batch in batches
        )

    assert padding(grouped) < padding(plain) / 3
    longest = [max(LENGTHS[i] for i in batch) for batch in grouped]
    assert longest != sorted(longest)  # short ones do not always come first


def test_more_processes_or_larger_batches_than_examples_still_give_a_batch() -> None:
    assert len(take(OrderedBatches(5, 100), 1)[0]) == 5
    assert len(take(OrderedBatches(5, 100, rank=1, world_size=2), 1)[0]) == 2


# ------------------------------------------------------------------ tasks

EXAMPLES = [Example(str(n), "x") for n in range(11)]


class Small(Task):
    def train_examples(self) -> Sequence[Example]:
        return EXAMPLES

    def evaluation_sets(self) -> Sequence[EvaluationSet]:
        return [EvaluationSet("all", EXAMPLES, None)]


def of_process(task: Small, rank: int, world_size: int) -> Small:
    task.trainer = SimpleNamespace(  # type: ignore[assignment]
        global_rank=rank, world_size=world_size, limit_train_batches=1.0, limit_test_batches=1.0
    )
    return task


@pytest.mark.parametrize("processes", [3, 5, 13])
def test_each_process_answers_its_own_share_and_none_twice_in_as_many_batches_as_others(
    processes: int,
) -> None:
    answered, batches = [], set()
    for rank in range(processes):
        (loader,) = of_process(Small(evaluation_batch_size=2), rank, processes).test_dataloader()
        answered += [e.prompt for batch in loader for _, e in batch if e is not STAND_IN]
        batches.add(len(loader))
    assert sorted(answered, key=int) == [example.prompt for example in EXAMPLES]
    assert len(batches) == 1  # or one would wait for another that is gone


class Uneven(Small):
    """Questions of 3, 1, 4, 1, 5, 9 and 2 letters."""

    def evaluation_sets(self) -> Sequence[EvaluationSet]:
        return [EvaluationSet("all", [Example("x" * n, "") for n in (3, 1, 4, 1, 5, 9, 2)], None)]


@pytest.mark.parametrize(
    ("limit", "grouped", "numbers"),
    [
        (1.0, True, [[5, 4], [2, 0], [6, 1], [3]]),
        (1.0, False, [[0, 1], [2, 3], [4, 5], [6]]),
        # What a limit leaves out stays out, or only the longest would be asked.
        (2, True, [[2, 0], [1, 3], [4, 5], [6]]),
        (0.5, True, [[2, 0], [1, 3], [4, 5], [6]]),
    ],
)
def test_questions_of_like_length_are_asked_together_the_longest_first(
    limit: int | float, grouped: bool, numbers: list[list[int]]
) -> None:
    task = of_process(Uneven(evaluation_batch_size=2, group_by_length=grouped), 0, 1)
    task.trainer.limit_test_batches = limit  # type: ignore[union-attr]
    (loader,) = task.test_dataloader()
    assert [[number for number, _ in batch] for batch in loader] == numbers


class Sampled(Small):
    """Four samples each of three questions of one length, all questions once and then again."""

    def evaluation_sets(self) -> Sequence[EvaluationSet]:
        return [EvaluationSet("all", [Example(text, "") for text in "bca"] * 4, None)]


def test_equal_prompts_lie_side_by_side_and_a_limit_asks_other_questions_first() -> None:
    def asked(limit: float) -> list[str]:
        task = of_process(Sampled(evaluation_batch_size=6), 0, 1)
        task.trainer.limit_test_batches = limit  # type: ignore[union-attr]
        (loader,) = task.test_dataloader()
        return ["".join(example.prompt for _, example in batch) for batch in loader]

    assert asked(1.0) == ["aaaabb", "bbcccc"]
    assert asked(0.5) == ["aabbcc", "bcabca"]
    (loader,) = Sampled(validation_examples=3).val_dataloader()
    assert [number for batch in loader for number, _ in batch] == [2, 0, 1]
    (loader,) = Sampled().predict_dataloader()
    assert [number for batch in loader for number, _ in batch] == list(range(12))


def test_predictions_come_in_the_order_of_the_examples() -> None:
    (loader,) = Uneven(evaluation_batch_size=2).predict_dataloader()
    assert [number for batch in loader for number, _ in batch] == list(range(7))


def test_fewer_training_examples_than_processes_are_refused() -> None:
    of_process(Small(batch_size=4), 0, 11).train_dataloader()
    with pytest.raises(CalmError, match=r"11 training examples .* among 12 processes"):
        of_process(Small(batch_size=4), 0, 12).train_dataloader()


def test_a_task_goes_on_after_the_batches_that_were_consumed() -> None:
    first, second = Small(batch_size=2, seed=3), Small(batch_size=2, seed=3)
    wanted = [[e.prompt for e in batch] for batch in first.train_dataloader()]
    second.load_state_dict({"consumed_batches": 3})
    assert [[e.prompt for e in batch] for batch in second.train_dataloader()] == wanted[3:]
    assert second.state_dict() == {"consumed_batches": 3}


@pytest.mark.parametrize(
    "option",
    [{"batch_size": 0}, {"evaluation_batch_size": 0}, {"validation_examples": 0},
     {"num_workers": -1}],
)  # fmt: skip
def test_numbers_that_make_no_sense(option: dict[str, int]) -> None:
    (name,) = option
    with pytest.raises(CalmError, match=f"{name} must be at least"):
        Small(**option)


# ------------------------------------------------------------------ exact match


def score(predictions: list[str], examples: list[Example], **options: Any) -> dict[str, float]:
    scorer = ExactMatch(**options)
    for prediction, example in zip(predictions, examples, strict=True):
        scorer.update([prediction], [example])
    return {name: float(value) for name, value in scorer.compute().items()}


def test_a_match_is_exact_but_for_space_around_it() -> None:
    examples = [Example("", t) for t in ("32", "32", "32", "", "a b")]
    found = score([" 32\n", "3 2", "032", "", "a b "], examples)
    assert found == {"accuracy": pytest.approx(3 / 5)}


def test_only_what_follows_the_last_sign_is_scored() -> None:
    examples = [Example("", "10+22=32")] * 4
    found = score(["10+22=32", "9+9=32", "32", "10+22=32=33"], examples, after_last="=")
    assert found["accuracy"] == pytest.approx(2 / 4)
    said = ["10+22=32", "32", "10+22", "33"]
    assert score(said, examples, after_last="=", may_lack=True)["accuracy"] == pytest.approx(2 / 4)


def test_groups_are_counted_apart_and_large_ones_together() -> None:
    examples = [Example("", "x", {"keys": n}) for n in (0, 0, 2, 7, 9)]
    found = score(["x", "y", "x", "x", "y"], examples, group_by="keys", max_group=5)
    assert found == {
        "accuracy": pytest.approx(3 / 5), "accuracy/keys=0": 0.5, "accuracy/keys=2": 1.0,
        "accuracy/keys=5": 0.5,
    }  # fmt: skip


def test_predictions_and_examples_belong_together() -> None:
    with pytest.raises(ValueError, match="zip"):
        ExactMatch().update(["a", "b"], [Example("", "a")])


# ------------------------------------------------------------------ compositions


@pytest.mark.parametrize(
    "composition", [CrossAttention(every=2, connections=[(1, 2)]), Single(use=1, train=True)]
)
def test_settings_build_the_same_composition_again(composition: Composition) -> None:
    again = type(composition)(**composition.settings())
    assert again.settings() == composition.settings()
    assert repr(again) == repr(composition)
    assert repr(composition).startswith(type(composition).__name__ + "(")
