"""Promises of the key-value task. Every number is small, and differs from its neighbours."""

import random
import re
from collections import Counter
from typing import Any

import pytest

from calm_lightning.contracts import CalmError, EvaluationSet, ExactMatch, Example
from calm_plugins.tasks.key_value import KeyTable, KeyValue
from calm_plugins.tasks.key_value.expressions import (
    LETTERS,
    Expression,
    evaluate,
    is_reserved,
    write,
)

NAMES = [
    "kv_subs",
    "num_math",
    "kv_math_seen_keys",
    "kv_math_unseen_keys",
    "kv_math_mixed_keys",
]
EVERY_KIND = {
    "pairs": 1.0,
    "kv_subs": 1.0,
    "kv_math": 1.0,
    "kv_math_worked": 1.0,
    "num_subs": 1.0,
    "num_math": 1.0,
    "num_math_worked": 1.0,
}


def small(**settings: Any) -> KeyValue:
    return KeyValue(**({"num_keys": 60, "evaluation_examples": 30, "operators": "+-*"} | settings))


def keys_of(example: Example) -> list[str]:
    return re.findall(r"<([a-z]+)>", example.prompt)


def sets_of(task: KeyValue) -> dict[str, EvaluationSet]:
    return {s.name: s for s in task.evaluation_sets()}


def in_numbers(example: Example, task: KeyValue) -> str:
    """The expression that an example is about, by substituting here and not in the task."""
    text = re.sub(r"<([a-z]+)>", lambda m: str(task.table.values[m[1]]), example.prompt)
    return re.sub(r"<[a-z]*(\d+)>", r"\1", text).rstrip(":=?")


# Arithmetic


def test_arithmetic_is_that_of_python() -> None:
    rng = random.Random(0)
    for _ in range(300):
        count = rng.randint(1, 6)
        numbers = [rng.randint(0, 25_000) for _ in range(count)]
        operators = rng.choices("+-*", k=count - 1)
        assert evaluate(numbers, operators) == eval(write([str(n) for n in numbers], operators))


def test_multiplication_goes_first_and_subtraction_from_the_left() -> None:
    assert evaluate([2, 3, 5], "+*") == 17
    assert evaluate([20, 3, 5], "--") == 12
    assert evaluate([2, 3, 5, 7], "-**") == -103


# The key table


def test_a_table_depends_on_its_seed_alone() -> None:
    assert KeyTable.make(50, seed=3) == KeyTable.make(50, seed=3)
    assert KeyTable.make(50, seed=3).values != KeyTable.make(50, seed=4).values
    random.seed(8)
    assert KeyTable.make(50, seed=3) == KeyTable.make(50, seed=3)


def test_keys_and_split_do_not_change_with_the_values() -> None:
    first, second = KeyTable.make(50), KeyTable.make(50, values=(1, 50), unique_values=True)
    assert (first.held_in, first.held_out) == (second.held_in, second.held_out)


def test_the_table_stays_what_it_was_when_the_backbones_were_trained() -> None:
    assert KeyTable.make(7).values == {
        "vj": 62,
        "pa": 50,
        "wqhc": 18,
        "uisv": 37,
        "gxjs": 49,
        "hnjmof": 11,
        "kxhn": 46,
    }


def test_the_split_is_a_partition_of_the_asked_size() -> None:
    table = KeyTable.make(50, share_in_dc=0.2)
    assert (len(table.held_in), len(table.held_out)) == (10, 40)
    assert not set(table.held_in) & set(table.held_out)
    assert set(table.keys) == set(table.values)
    assert table.unseen == set(table.held_out)


def test_a_larger_share_contains_a_smaller_one() -> None:
    small_share, large_share = (KeyTable.make(50, share_in_dc=s) for s in (0.2, 0.5))
    assert set(small_share.held_in) < set(large_share.held_in)


def test_keys_are_unique_letters_of_every_allowed_length() -> None:
    table = KeyTable.make(200, key_length=(3, 5))
    assert len(set(table.keys)) == 200
    assert all(set(key) <= set(LETTERS) for key in table.keys)
    assert {len(key) for key in table.held_in} == {len(key) for key in table.held_out} == {3, 4, 5}


def test_every_key_of_a_length_can_be_used() -> None:
    assert len(set(KeyTable.make(26 + 676, key_length=(1, 2)).keys)) == 702


def test_values_lie_in_their_range_and_reach_both_ends() -> None:
    assert set(KeyTable.make(500, values=(5, 8)).values.values()) == {5, 6, 7, 8}


def test_unique_values_use_each_value_once() -> None:
    table = KeyTable.make(30, values=(1, 30), unique_values=True)
    assert sorted(table.values.values()) == list(range(1, 31))


def test_the_papers_table_can_be_made() -> None:
    table = KeyTable.make(25_000, (2, 6), (1, 25_000), unique_values=True)
    assert sorted(table.values.values()) == list(range(1, 25_001))
    assert len(table.held_in) == 5_000


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"num_keys": 27, "key_length": (1, 1)}, ["num_keys=27", "26 keys", "max_key_length"]),
        (
            {"num_keys": 31, "values": (10, 39), "unique_values": True},
            ["num_keys=31", "holds 30", "max_value to at least 40"],
        ),
        ({"num_keys": 9, "key_length": (6, 2)}, ["min_key_length=6", "max_key_length=2"]),
        ({"num_keys": 9, "key_length": (0, 2)}, ["min_key_length=0"]),
        ({"num_keys": 9, "values": (9, 5)}, ["min_value=9", "max_value=5"]),
        ({"num_keys": 9, "values": (-3, 5)}, ["min_value=-3", "sign"]),
        ({"num_keys": 2, "share_in_dc": 0.2}, ["share_in_dc=0.2", "num_keys=2"]),
        ({"num_keys": 9, "share_in_dc": 1.0}, ["share_in_dc=1.0"]),
        ({"num_keys": 9, "share_in_dc": 1.5}, ["share_in_dc=1.5"]),
        ({"num_keys": 0}, ["num_keys=0"]),
    ],
)
def test_an_impossible_table_is_refused_with_its_numbers(
    settings: dict[str, Any], words: list[str]
) -> None:
    with pytest.raises(CalmError) as error:
        KeyTable.make(**settings)
    assert all(word in str(error.value) for word in words)


# Training examples


def test_example_i_is_a_pure_function_of_seed_and_i() -> None:
    first, second = (small(seed=5).train_examples() for _ in range(2))
    backwards = [second[i] for i in reversed(range(40))][::-1]
    assert first[:40] == backwards
    assert [first[7], first[7]] == [backwards[7]] * 2
    assert first[:40] != small(seed=6).train_examples()[:40]


def test_neighbouring_examples_and_seeds_share_nothing() -> None:
    prompts = [
        e.prompt for s in range(3) for e in small(seed=s, num_keys=3000).train_examples()[:99]
    ]
    assert len(set(prompts)) > 290


def test_training_examples_are_a_sequence_of_the_asked_length() -> None:
    examples = small(examples_per_epoch=12).train_examples()
    assert len(examples) == len(list(examples)) == 12
    assert examples[-1] == examples[11]
    assert examples[9:20] == [examples[9], examples[10], examples[11]]
    with pytest.raises(IndexError):
        examples[12]


@pytest.mark.parametrize(
    ("kind", "prompt", "target"),
    [
        ("pairs", r"<[a-z]{2,6}>", r"\d\d"),
        ("kv_subs/2", r"<[a-z]+>[-+*]<[a-z]+>:", r"\d\d[-+*]\d\d"),
        ("kv_math/2", r"<[a-z]+>[-+*]<[a-z]+>=", r"-?\d+"),
        ("kv_math/1", r"<[a-z]+>=", r"\d\d"),
        ("kv_math_worked/3", r"<[a-z]+>([-+*]<[a-z]+>){2}\?", r"\d\d([-+*]\d\d){2}=-?\d+"),
        ("num_subs/2", r"\d\d[-+*]\d\d:", r"\d\d[-+*]\d\d"),
        ("num_math/2", r"\d\d[-+*]\d\d=", r"-?\d+"),
        ("num_math_worked/2", r"\d\d[-+*]\d\d\?", r"\d\d[-+*]\d\d=-?\d+"),
    ],
)
def test_every_kind_has_its_format_and_the_right_answer(
    kind: str, prompt: str, target: str
) -> None:
    task = small(mixture={kind: 1.0})
    for example in task.train_examples()[:50]:
        assert re.fullmatch(prompt, example.prompt)
        assert re.fullmatch(target, example.target)
        assert example.ends
        plain = in_numbers(example, task)
        assert example.meta["operands"] == len(re.split(r"[-+*]", plain))
        answers = {"=": str(eval(plain)), "?": f"{plain}={eval(plain)}"}
        assert example.target == answers.get(example.prompt[-1], plain)


def test_a_plain_kind_has_each_number_of_operands_as_often() -> None:
    task = small(mixture={"kv_math": 1.0}, min_operands=2, max_operands=4)
    counts = Counter(e.meta["operands"] for e in task.train_examples()[:900])
    assert set(counts) == {2, 3, 4}
    assert all(240 < count < 360 for count in counts.values())


def test_mixture_weights_are_kept_and_need_not_add_up_to_one() -> None:
    task = small(mixture={"pairs": 3.0, "kv_math/5": 1.0, "num_math": 0.0})
    counts = Counter(e.meta["operands"] for e in task.train_examples()[:800])
    assert set(counts) == {1, 5}
    assert 540 < counts[1] < 660


def test_training_shows_only_keys_of_dc() -> None:
    task = small(mixture=EVERY_KIND)
    shown = {key for e in task.train_examples()[:600] for key in keys_of(e)}
    assert shown == set(task.table.held_in)


def test_the_augmenting_models_own_training_shows_every_key() -> None:
    task = small(mixture={"pairs": 1.0, "kv_subs": 1.0}, keys="all")
    shown = {key for e in task.train_examples()[:600] for key in keys_of(e)}
    assert shown == set(task.table.keys)


@pytest.mark.parametrize("keys", ["held_in", "all"])
def test_training_never_shows_an_expression_that_evaluation_may_ask(keys: str) -> None:
    task = small(mixture=EVERY_KIND, min_operands=1, keys=keys, bracketed_numbers=0.5)
    several = [e for e in task.train_examples()[:1500] if e.meta["operands"] > 1]
    assert len(several) > 500
    for example in several:
        assert not is_reserved(in_numbers(example, task))
        if example.prompt[0] == "<" and keys_of(example):
            assert not is_reserved(example.prompt[:-1])


def test_training_and_evaluation_share_no_prompt_even_where_expressions_are_few() -> None:
    task = small(num_keys=10, min_value=1, max_value=9, mixture=EVERY_KIND, keys="all")
    trained = {e.prompt[:-1] for e in task.train_examples()[:1500]}
    for evaluation_set in task.evaluation_sets():
        assert not trained & {e.prompt[:-1] for e in evaluation_set.examples}


def test_numbers_are_in_brackets_and_beside_junk_as_often_as_asked() -> None:
    examples = small(
        mixture={"num_math/2": 1.0}, bracketed_numbers=0.5, junk_letters=0.25
    ).train_examples()[:600]
    bracketed = [e.prompt for e in examples if "<" in e.prompt]
    assert all(re.fullmatch(r"(<[a-z]{0,6}\d\d>[-+*]?){2}=", prompt) for prompt in bracketed)
    assert 240 < len(bracketed) < 360
    numbers = re.findall(r"<([a-z]*)\d+>", "".join(bracketed))
    assert 0.19 < sum(map(bool, numbers)) / len(numbers) < 0.31
    assert {len(junk) for junk in numbers} == set(range(7))


def test_numbers_reach_both_ends_of_their_range() -> None:
    examples = small(mixture={"num_subs/2": 1.0}, min_value=7, max_value=11).train_examples()[:200]
    numbers = re.findall(r"\d+", " ".join(e.target for e in examples))
    assert set(map(int, numbers)) == {7, 8, 9, 10, 11}


# Evaluation sets


def test_the_sets_have_their_names_in_order() -> None:
    assert [s.name for s in small().evaluation_sets()] == NAMES
    worked = [f"worked_{name}" for name in NAMES[1:]]
    assert [s.name for s in small(also="worked").evaluation_sets()] == NAMES + worked


def test_evaluation_is_the_same_for_every_training_seed_and_mixture() -> None:
    first = small(seed=1, bracketed_numbers=1.0).evaluation_sets()
    second = small(seed=2, mixture={"pairs": 1.0}, keys="all").evaluation_sets()
    assert [s.examples for s in first] == [s.examples for s in second]
    other = small(evaluation_seed=8).evaluation_sets()
    assert all(a.examples != b.examples for a, b in zip(first, other, strict=True))


@pytest.mark.parametrize("answer", ["direct", "worked"])
def test_each_set_asks_about_its_own_keys(answer: str) -> None:
    task = small(answer=answer)
    sets, unseen = sets_of(task), task.table.unseen
    for name, sides in (
        ("kv_subs", {True}),
        ("kv_math_seen_keys", {False}),
        ("kv_math_unseen_keys", {True}),
        ("kv_math_mixed_keys", {True, False}),
    ):
        examples = sets[name].examples
        assert {key in unseen for e in examples for key in keys_of(e)} == sides
        for example in examples:
            assert example.meta["operands"] == len(keys_of(example))
            assert example.meta["unseen_keys"] == sum(key in unseen for key in keys_of(example))
    assert all(re.fullmatch(r"[-+*\d]+[=?]", e.prompt) for e in sets["num_math"].examples)


@pytest.mark.parametrize("settings", [{}, {"answer": "worked"}, {"also": "worked"}])
def test_evaluation_targets_are_right_and_oracle_prompts_too(settings: dict[str, Any]) -> None:
    task = small(**settings)
    for evaluation_set in task.evaluation_sets():
        for example in evaluation_set.examples:
            plain, last = in_numbers(example, task), example.prompt[-1]
            answers = {":": plain, "=": str(eval(plain)), "?": f"{plain}={eval(plain)}"}
            assert example.target == answers[last]
            if "kv_math" in evaluation_set.name:
                assert example.meta["prompt/substituted"] == plain + last


def test_each_operand_of_the_mixed_set_is_unseen_with_probability_one_half() -> None:
    examples = sets_of(small(evaluation_examples=300))["kv_math_mixed_keys"].examples
    unseen = sum(e.meta["unseen_keys"] for e in examples)
    assert 0.42 < unseen / sum(e.meta["operands"] for e in examples) < 0.58


def test_no_question_comes_twice() -> None:
    for evaluation_set in small().evaluation_sets():
        prompts = [e.prompt for e in evaluation_set.examples]
        assert len(prompts) == len(set(prompts)) == 30


def test_where_few_questions_exist_there_are_fewer_and_still_none_twice() -> None:
    task = small(num_keys=10, min_operands=1, max_operands=1)
    prompts = [e.prompt for e in sets_of(task)["kv_math_unseen_keys"].examples]
    assert sorted(prompts) == sorted(f"<{key}>=" for key in task.table.held_out)


def test_direct_and_worked_sets_ask_about_the_same_expressions() -> None:
    sets = sets_of(small(also="worked"))
    for name in NAMES[1:]:
        direct, worked = sets[name].examples, sets[f"worked_{name}"].examples
        assert [e.prompt[:-1] + "?" for e in direct] == [e.prompt for e in worked]
        assert [e.target for e in direct] == [e.target.rpartition("=")[2] for e in worked]


def test_worked_answers_may_be_asked_for_as_direct_ones_are() -> None:
    alike = small(answer="worked", asked_alike=True, mixture={"kv_math_worked": 1.0})
    usual = small(answer="worked", mixture={"kv_math_worked": 1.0})
    for one, other in zip(alike.train_examples()[:20], usual.train_examples()[:20], strict=True):
        assert one.prompt == other.prompt[:-1] + "="
        assert one.target == other.target
    for name, asked in sets_of(alike).items():
        last = ":" if name == "kv_subs" else "="
        assert {example.prompt[-1] for example in asked.examples} == {last}
    # Nobody was told whether the working is wanted, so the number alone is right as well.
    math = {name: sets_of(task)["num_math"] for name, task in (("alike", alike), ("usual", usual))}
    number = math["alike"].examples[0].target.rpartition("=")[2]
    for name, right in (("alike", 1.0), ("usual", 0.0)):
        scorer = math[name].scorer
        assert scorer is not None
        assert scorer().each([number], math[name].examples[:1]) == [right]


def test_kv_subs_asks_about_the_expressions_of_unseen_kv_math() -> None:
    sets = sets_of(small())
    subs, math = sets["kv_subs"].examples, sets["kv_math_unseen_keys"].examples
    assert [e.prompt[:-1] for e in subs] == [e.prompt[:-1] for e in math]


def test_each_set_is_scored_by_its_own_rule() -> None:
    for evaluation_set in small(also="worked").evaluation_sets():
        assert evaluation_set.scorer is not None
        scorer = evaluation_set.scorer()
        assert isinstance(scorer, ExactMatch)
        assert scorer.after_last == ("=" if evaluation_set.name.startswith("worked_") else None)
        mixed = evaluation_set.name.endswith("kv_math_mixed_keys")
        assert scorer.group_by == ("unseen_keys" if mixed else "operands")
        scorer.update([e.target for e in evaluation_set.examples], evaluation_set.examples)
        scores = scorer.compute()
        assert scores["accuracy"] == 1
        assert f"accuracy/{scorer.group_by}=2" in scores


def test_a_wrong_copy_with_the_right_sum_is_right_in_the_worked_style() -> None:
    num_math = sets_of(small(answer="worked"))["num_math"]
    assert num_math.scorer is not None
    scorer, example = num_math.scorer(), num_math.examples[0]
    scorer.update(["1+1=" + example.target.rpartition("=")[2], "32"], [example, example])
    assert scorer.compute()["accuracy"] == 0.5


def test_every_target_fits_the_allowed_answer() -> None:
    for evaluation_set in small(also="worked", max_operands=5).evaluation_sets():
        longest = max(len(e.target) for e in evaluation_set.examples)
        assert evaluation_set.max_new_tokens == longest + 2


def test_the_default_mixture_trains_in_the_style_that_is_asked() -> None:
    assert set(small().mixture) == {"kv_subs", "kv_math/1", "kv_math", "num_math"}
    worked = {"kv_subs", "kv_math_worked/1", "kv_math_worked", "num_math_worked"}
    assert set(small(answer="worked").mixture) == worked
    assert set(small(also="worked").mixture) == set(small().mixture) | worked
    for settings in ({}, {"answer": "worked"}, {"also": "worked"}):
        assert sum(small(**settings).mixture.values()) == pytest.approx(1)


# Refusals


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"mixture": {"kv_maths": 1.0}}, ["'kv_maths'", "Did you mean 'kv_math'", "num_subs"]),
        ({"mixture": {"kv_math/x": 1.0}}, ["'kv_math/x'", "kv_math/2"]),
        ({"mixture": {"kv_math/0": 1.0}}, ["'kv_math/0'"]),
        ({"mixture": {"kv_math/": 1.0}}, ["'kv_math/'"]),
        ({"mixture": {"pairs/two": 1.0}}, ["'pairs/two'", "number of operands"]),
        ({"mixture": {"pairs": -1.0}}, ["'pairs'", "-1.0"]),
        ({"mixture": {"pairs": float("nan")}}, ["'pairs'", "nan"]),
        ({"mixture": {"pairs": 0.0}}, ["above 0"]),
        ({"mixture": {}}, ["above 0"]),
        ({"operators": "+/"}, ["'+/'", "'+-*'"]),
        ({"operators": ""}, ["'+-*'"]),
        ({"min_operands": 4, "max_operands": 3}, ["min_operands=4", "max_operands=3"]),
        ({"min_operands": 0}, ["min_operands=0"]),
        ({"bracketed_numbers": 1.5}, ["bracketed_numbers", "1.5"]),
        ({"junk_letters": -0.5}, ["junk_letters", "-0.5"]),
        ({"evaluation_examples": 0}, ["evaluation_examples", "0"]),
        ({"examples_per_epoch": 0}, ["examples_per_epoch", "0"]),
        ({"answer": "worked", "also": "worked"}, ["also='worked'", "answer is 'worked'"]),
        ({"num_keys": 99, "min_key_length": 1, "max_key_length": 1}, ["num_keys=99", "26 keys"]),
    ],
)
def test_settings_that_make_no_sense_are_refused(
    settings: dict[str, Any], words: list[str]
) -> None:
    with pytest.raises(CalmError) as error:
        small(**settings)
    assert all(word in str(error.value) for word in words)


def only_number(reserved: bool) -> int:
    """A number n for which `n+n` is, or is not, reserved."""
    return next(n for n in range(1, 999) if Expression((n, n), ("+",)).may_be_learnt != reserved)


def test_a_set_that_would_be_empty_is_refused_by_name() -> None:
    number = only_number(reserved=False)
    task = small(min_value=number, max_value=number, operators="+", max_operands=2)
    with pytest.raises(CalmError, match=r"num_math .*min_value"):
        task.evaluation_sets()


def test_nothing_left_to_train_on_is_refused_by_kind() -> None:
    number = only_number(reserved=True)
    settings = {"min_value": number, "max_value": number, "operators": "+", "max_operands": 2}
    task = small(mixture={"num_math/2": 1.0}, **settings)
    with pytest.raises(CalmError, match="'num_math/2'"):
        task.train_examples()


def test_the_tasks_own_settings_pass_through() -> None:
    task = small(batch_size=3, seed=5)
    assert (task.batch_size, task.seed, task.generated) == (3, 5, True)
    assert len(next(iter(task.train_dataloader()))) == 3


# Several augmenting models


def test_even_and_odd_keys_are_all_keys_and_share_none() -> None:
    shown = {
        half: {key for e in task.train_examples()[:900] for key in keys_of(e)}
        for half in ("even", "odd")
        for task in [small(keys=half, mixture={"pairs": 1.0})]
    }
    assert not shown["even"] & shown["odd"]
    assert shown["even"] | shown["odd"] == set(small().table.keys)


def test_strangers_are_no_keys_and_have_no_value() -> None:
    task = small(keys="all", strangers=0.4, mixture={"pairs": 1.0, "pairs/3": 1.0, "kv_subs": 1.0})
    strange = 0
    for example in task.train_examples()[:400]:
        keys = keys_of(example)
        values = [str(task.table.values.get(key, "?")) for key in keys]
        strange += values.count("?")
        if example.prompt.endswith(":"):
            assert re.split("[-+*]", example.target) == values
        else:
            assert example.target == values[-1]
    assert 0.3 < strange / sum(len(keys_of(e)) for e in task.train_examples()[:400]) < 0.5


def test_the_result_over_a_stranger_is_nothing_to_learn() -> None:
    with pytest.raises(CalmError, match=r"strangers=0.2: .* take kv_math_worked/2 out"):
        small(strangers=0.2, mixture={"kv_subs": 1.0, "kv_math_worked/2": 1.0})
