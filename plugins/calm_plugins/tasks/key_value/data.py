"""The key-value task: KV-SUBS, NUM-MATH and KV-MATH from one generator.

The augmenting model knows what each key is worth, the anchor knows arithmetic, and only the two
together can answer `<kqz>+<abf>=`. This is section 4.1 of
`LLM Augmented LLMs <https://arxiv.org/abs/2401.02412>`_; README.md beside this file lists the text
formats and where they differ from the paper's.
"""

import difflib
import math
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, get_args

from typing_extensions import override

from calm_lightning.contracts import CalmError, EvaluationSet, ExactMatch, Example, Task
from calm_plugins.tasks.by_index import ByIndex
from calm_plugins.tasks.key_value.expressions import LETTERS, Expression, KeyTable, write

Answer = Literal["direct", "worked"]
Keys = Literal["held_in", "all", "even", "odd"]
UNKNOWN = "?"
"""In place of the value of a string that is no key."""

# Kind of training example: whether it is written in keys, and what is asked about it.
_KINDS = {
    "pairs": (True, "value"),
    "kv_subs": (True, "subs"),
    "kv_math": (True, "direct"),
    "kv_math_worked": (True, "worked"),
    "num_subs": (False, "subs"),
    "num_math": (False, "direct"),
    "num_math_worked": (False, "worked"),
    # The two halves of a worked answer: the augmenting model's, and the anchor's.
    "kv_worked_subs": (True, "worked_subs"),
    "num_math_after_keys": (False, "after_keys"),
}
_LAST_SYMBOL = {
    "value": "",
    "subs": ":",
    "direct": "=",
    "worked": "?",
    "worked_subs": "?",
    "after_keys": "?",
}
_SHORTEST_KEY = 2  # of keys that mean nothing
_LONGEST_JUNK = 6
_ATTEMPTS = 1000


class KeyValue(Task):
    """Expressions over secret keys, made by their index: no two runs need the same file.

    Training example i is a pure function of (`seed`, i). The evaluation sets depend on
    `evaluation_seed` and the key table, never on `seed`: kv_subs, num_math, kv_math_seen_keys,
    kv_math_unseen_keys (no key of D_C), kv_math_mixed_keys (each key from either side). An
    expression of two or more operands that evaluation may ask is never trained on.

    Args:
        num_keys: Number of keys.
        min_key_length: Fewest letters of a key.
        max_key_length: Most letters of a key.
        min_value: Smallest value of a key, and smallest number in NUM-MATH.
        max_value: The largest, included.
        unique_values: Whether no two keys share a value.
        operators: The operators to draw from, any of `+-*`. `*` goes before + and -.
        min_operands: Fewest operands in an expression.
        max_operands: Most operands in an expression.
        share_in_dc: Share of the keys that D_C may show (the *seen* keys).
        table_seed: Seed of the key table. Both backbones and the composition need the same one.
        answer: What is asked: `direct` is the number alone (`10+22=` → `32`), `worked` is the
            expression in numbers and then the number (`10+22?` → `10+22=32`), of which only what
            follows the last `=` is scored.
        asked_alike: Whether questions for a worked answer end in `=` too, as those for the number
            alone do, so that a model may be in two minds about how it answers. The number alone is
            then right as well.
        also: Adds the same questions in the other style, as sets with its name before theirs:
            `worked_kv_math_unseen_keys`, say.
        mixture: What is trained on: kinds (pairs, kv_subs, kv_math, kv_math_worked, num_subs,
            num_math, num_math_worked, kv_worked_subs, num_math_after_keys) and their weights, which
            need not add up to 1. `kv_math/1` is kv_math with exactly one operand; without a number
            the operands are `min_operands` to `max_operands`, each as likely. `pairs` has one;
            `pairs/3` is the value of the third key, right behind it. None: see README.md.
        keys: Which keys training may show: `held_in` is D_C; `all` is for the augmenting model's
            own training, `even` and `odd` for two models that know half of the keys each.
        strangers: Probability, for each key of a training expression, that a string which is no
            key stands in its place, and `?` in place of its value: so that a model knows what it
            does not know. For kinds without a result.
        bracketed_numbers: Probability that a num_* training expression is written in brackets, as
            `<17>+<22>`.
        junk_letters: Probability, for each number in brackets, of one to six letters before it:
            `<kqx17>+<22>`.
        evaluation_examples: Questions in each evaluation set; fewer where fewer different ones
            exist.
        evaluation_seed: Seed of the evaluation sets.
        examples_per_epoch: After so many training examples the same ones come again.
        **task_options: `batch_size`, `seed` and the other arguments of `Task`.

    Raises:
        CalmError: If no such keys or expressions exist, or a kind in `mixture` is unknown.
    """

    generated = True

    def __init__(
        self,
        num_keys: int = 3000,
        min_key_length: int = 2,
        max_key_length: int = 6,
        min_value: int = 10,
        max_value: int = 99,
        unique_values: bool = False,
        operators: str = "+-",
        min_operands: int = 2,
        max_operands: int = 3,
        share_in_dc: float = 0.2,
        table_seed: int = 0,
        answer: Answer = "direct",
        asked_alike: bool = False,
        also: Answer | None = None,
        mixture: dict[str, float] | None = None,
        keys: Keys = "held_in",
        strangers: float = 0.0,
        bracketed_numbers: float = 0.0,
        junk_letters: float = 0.0,
        evaluation_examples: int = 500,
        evaluation_seed: int = 1234,
        examples_per_epoch: int = 1_000_000,
        **task_options: Any,
    ) -> None:
        super().__init__(**task_options)
        _check_operands(operators, min_operands, max_operands)
        _check_choice("answer", answer, ("direct", "worked"))
        _check_choice("keys", keys, get_args(Keys))
        for name, value in (
            ("strangers", strangers),
            ("bracketed_numbers", bracketed_numbers),
            ("junk_letters", junk_letters),
        ):
            if not 0 <= value <= 1:
                raise CalmError(f"{name} is a probability between 0 and 1: got {value}.")
        for name, count in (
            ("evaluation_examples", evaluation_examples),
            ("examples_per_epoch", examples_per_epoch),
        ):
            if count < 1:
                raise CalmError(f"{name} must be at least 1: got {count}.")
        if also is not None:
            _check_choice("also", also, ("direct", "worked"))
        if also == answer:
            raise CalmError(
                f"also={also!r} adds the sets of the other style, but answer is {answer!r} too. "
                "Set also to the other one of direct and worked, or to null."
            )
        self.answer = answer
        self.also: Answer | None = also
        self.keys: Keys = keys
        self.strangers = strangers
        self.bracketed_numbers = bracketed_numbers
        self.junk_letters = junk_letters
        self.evaluation_examples = evaluation_examples
        self.evaluation_seed = evaluation_seed
        self.examples_per_epoch = examples_per_epoch
        self.table = KeyTable.make(
            num_keys,
            (min_key_length, max_key_length),
            (min_value, max_value),
            unique_values,
            share_in_dc,
            table_seed,
        )
        operands = range(min_operands, max_operands + 1)
        numbers = range(min_value, max_value + 1)
        self.source = _Source(self.table, numbers, operators, operands)
        self.asked_alike = asked_alike
        self._ask = _Asker(self.table, asked_alike)
        self.mixture = self._default_mixture() if mixture is None else mixture
        self._ingredients = _parse_mixture(self.mixture, operands)
        if strangers and (kinds := [i.name for i, _ in self._ingredients if not i.may_be_strange]):
            raise CalmError(
                f"strangers={strangers}: nobody can say the result of an expression over a string "
                f"that is no key, so take {', '.join(kinds)} out of mixture."
            )
        self._sets_made: list[EvaluationSet] | None = None

    @override
    def train_examples(self) -> Sequence[Example]:
        return _TrainingExamples(
            self.examples_per_epoch,
            self.seed,
            self.source,
            self._ask,
            self._training_keys(),
            self._ingredients,
            self.bracketed_numbers,
            self.junk_letters,
            self.strangers,
        )

    def _training_keys(self) -> Sequence[str]:
        if self.keys == "held_in":
            return self.table.held_in
        first = {"all": 0, "even": 0, "odd": 1}[self.keys]
        return self.table.keys[first :: 1 if self.keys == "all" else 2]

    @override
    def evaluation_sets(self) -> Sequence[EvaluationSet]:
        if self._sets_made is None:
            self._sets_made = self._make_sets()
        return self._sets_made

    def _make_sets(self) -> list[EvaluationSet]:
        seen, unseen = self.table.held_in, self.table.held_out
        num_math = self._draw("num_math", self.source.in_numbers)
        kv_math = {
            name: self._draw(name, partial(self.source.in_keys, pools=pools))
            for name, pools in (
                ("kv_math_seen_keys", [seen]),
                ("kv_math_unseen_keys", [unseen]),
                ("kv_math_mixed_keys", [seen, unseen]),
            )
        }
        subs = [self._ask(e, "subs") for e in kv_math["kv_math_unseen_keys"]]
        sets = [_evaluation_set("kv_subs", subs)]
        styles: list[tuple[str, Answer]] = [("", self.answer)]
        if self.also is not None:
            styles.append((f"{self.also}_", self.also))
        for prefix, style in styles:
            for name, expressions in {"num_math": num_math, **kv_math}.items():
                examples = [self._ask(e, style) for e in expressions]
                sets.append(_evaluation_set(prefix + name, examples, style, self.asked_alike))
        return sets

    def _draw(self, name: str, draw: Callable[[random.Random], Expression]) -> list[Expression]:
        """Different expressions that training never shows."""
        rng = random.Random(f"{self.evaluation_seed}/{name}")
        found: dict[str, Expression] = {}
        for _ in range(_ATTEMPTS + 100 * self.evaluation_examples):
            expression = draw(rng)
            if expression.may_be_asked:
                found[expression.text] = expression
            if len(found) == self.evaluation_examples:
                break
        if not found:
            raise CalmError(
                f"The evaluation set {name} would be empty: one expression in ten is reserved for "
                "evaluation, and none of the few that these settings allow is. Allow more: a wider "
                "range of min_value to max_value, more keys, operators or operands."
            )
        return list(found.values())

    def _default_mixture(self) -> dict[str, float]:
        asked = {self.answer, self.also} - {None}
        styles = [style for style, name in (("", "direct"), ("_worked", "worked")) if name in asked]
        mixture = {"kv_subs": 0.2}
        for style in styles:
            mixture[f"kv_math{style}/1"] = 0.2 / len(styles)
            mixture[f"kv_math{style}"] = 0.45 / len(styles)
            mixture[f"num_math{style}"] = 0.15 / len(styles)
        return mixture


@dataclass(frozen=True)
class _Source:
    """Draws expressions over keys and over numbers."""

    table: KeyTable
    numbers: range
    operators: str
    operands: range

    def in_keys(
        self,
        rng: random.Random,
        pools: Sequence[Sequence[str]],
        operands: Sequence[int] | None = None,
    ) -> Expression:
        """An expression over keys, each from any of the pools, which are as likely as each other.

        Args:
            rng: Where chance comes from.
            pools: Keys to draw from.
            operands: The allowed numbers of operands; None for those of the settings.
        """
        count = rng.choice(operands or self.operands)
        keys = tuple(rng.choice(rng.choice(pools)) for _ in range(count))
        numbers = tuple(self.table.values[key] for key in keys)
        return Expression(numbers, tuple(rng.choices(self.operators, k=count - 1)), keys)

    def in_numbers(self, rng: random.Random, operands: Sequence[int] | None = None) -> Expression:
        """An expression over numbers."""
        count = rng.choice(operands or self.operands)
        numbers = tuple(rng.choices(self.numbers, k=count))
        return Expression(numbers, tuple(rng.choices(self.operators, k=count - 1)))


@dataclass(frozen=True)
class _Ingredient:
    """One entry of a mixture."""

    name: str
    in_keys: bool
    question: str
    operands: Sequence[int]

    @property
    def may_be_strange(self) -> bool:
        """Whether it can be written when a value is not known."""
        return self.in_keys and self.question in ("value", "subs", "worked_subs")


class _TrainingExamples(ByIndex):
    """Training examples, each made from (seed, index) when it is asked for."""

    def __init__(
        self,
        length: int,
        seed: int,
        source: _Source,
        ask: "_Asker",
        keys: Sequence[str],
        mixture: Sequence[tuple[_Ingredient, float]],
        bracketed_numbers: float,
        junk_letters: float,
        strangers: float,
    ) -> None:
        self.strangers, self._known = strangers, frozenset(source.table.keys)
        self.length, self.seed, self.source, self.keys = length, seed, source, keys
        self.ask = ask
        self.ingredients = [ingredient for ingredient, _ in mixture]
        self.weights = [weight for _, weight in mixture]
        self.bracketed_numbers, self.junk_letters = bracketed_numbers, junk_letters
        for ingredient, weight in mixture:
            if weight > 0:
                self._draw(random.Random(0), ingredient)  # refuses now, not in the middle of a run

    @override
    def __len__(self) -> int:
        return self.length

    @override
    def at(self, index: int) -> Example:
        rng = random.Random((self.seed << 48) + index)
        (ingredient,) = rng.choices(self.ingredients, self.weights)
        expression = self._draw(rng, ingredient)
        if self.strangers:
            return self._with_strangers(rng, expression, ingredient.question)
        terms = None
        if ingredient.question == "after_keys":
            terms = [f"<{self._letters(rng, _SHORTEST_KEY)}>" for _ in expression.numbers]
        elif not ingredient.in_keys and rng.random() < self.bracketed_numbers:
            terms = [f"<{self._junk(rng)}{number}>" for number in expression.numbers]
        return self.ask(expression, ingredient.question, terms)

    def _draw(self, rng: random.Random, ingredient: _Ingredient) -> Expression:
        for _ in range(_ATTEMPTS):
            if ingredient.in_keys:
                expression = self.source.in_keys(rng, [self.keys], ingredient.operands)
            else:
                expression = self.source.in_numbers(rng, ingredient.operands)
            if expression.may_be_learnt:
                return expression
        raise CalmError(
            f"There is nothing to train {ingredient.name!r} on: of {_ATTEMPTS} expressions drawn "
            "all are reserved for evaluation, as one in ten is. Allow more different ones: a wider "
            "range of min_value to max_value, more keys, operators or operands."
        )

    def _with_strangers(self, rng: random.Random, expression: Expression, question: str) -> Example:
        """The example with some keys replaced by strings that are none."""
        keys, values = list(expression.keys), [str(number) for number in expression.numbers]
        for place in range(len(keys)):
            if rng.random() < self.strangers:
                keys[place] = self._stranger(rng)
                values[place] = UNKNOWN
        plain = write(values, expression.operators)
        prompt = write([f"<{key}>" for key in keys], expression.operators)
        target = values[-1] if question == "value" else plain
        return Example(prompt + self.ask.last[question], target, {"operands": len(keys)})

    def _stranger(self, rng: random.Random) -> str:
        while (word := self._letters(rng, _SHORTEST_KEY)) in self._known:
            pass
        return word

    def _junk(self, rng: random.Random) -> str:
        if rng.random() >= self.junk_letters:
            return ""
        return self._letters(rng, 1)

    def _letters(self, rng: random.Random, fewest: int) -> str:
        return "".join(rng.choices(LETTERS, k=rng.randint(fewest, _LONGEST_JUNK)))


class _Asker:
    """Writes questions about expressions.

    Args:
        table: What the keys are worth.
        asked_alike: As in `KeyValue`.
    """

    def __init__(self, table: KeyTable, asked_alike: bool) -> None:
        self.table = table
        self.last = _LAST_SYMBOL
        if asked_alike:
            self.last = {name: last.replace("?", "=") for name, last in _LAST_SYMBOL.items()}

    def __call__(
        self, expression: Expression, question: str, terms: Sequence[str] | None = None
    ) -> Example:
        """The example that asks this about an expression, written with `terms` if given."""
        last = self.last[question]
        prompt = write(terms, expression.operators) if terms else expression.text
        if question == "after_keys":
            last += f"{expression.plain}="
        target = {
            "value": str(expression.numbers[-1]),
            "direct": "",
            "after_keys": "",
            "worked": f"{expression.plain}=",
        }.get(question, expression.plain)
        meta: dict[str, Any] = {"operands": len(expression.numbers)}
        if question in ("direct", "worked", "after_keys"):
            target += str(expression.value)
        if question in ("subs", "direct", "worked"):
            meta["prompt/substituted"] = expression.plain + last
        if expression.keys:
            meta["unseen_keys"] = sum(key in self.table.unseen for key in expression.keys)
        return Example(prompt + last, target, meta)


def _evaluation_set(
    name: str, examples: Sequence[Example], style: Answer = "direct", asked_alike: bool = False
) -> EvaluationSet:
    group_by = "unseen_keys" if name.endswith("kv_math_mixed_keys") else "operands"
    after_last = "=" if style == "worked" else None
    # No tokenizer of ours makes more tokens than there are characters; two to spare for the end.
    longest = max(len(example.target) for example in examples)
    # Asked alike, nobody is told whether the working is wanted.
    scorer = partial(ExactMatch, group_by=group_by, after_last=after_last, may_lack=asked_alike)
    return EvaluationSet(name, examples, scorer, max_new_tokens=longest + 2)


def _parse_mixture(
    mixture: Mapping[str, float], operands: Sequence[int]
) -> list[tuple[_Ingredient, float]]:
    parsed = []
    for name, weight in mixture.items():
        kind, slash, count = name.partition("/")
        if kind not in _KINDS:
            close = difflib.get_close_matches(kind, _KINDS, 1)
            hint = f" Did you mean {close[0]!r}?" if close else ""
            raise CalmError(f"mixture: no kind {kind!r}.{hint} There are: {', '.join(_KINDS)}.")
        fixed = count.isascii() and count.isdigit() and int(count) > 0
        if slash and not fixed:
            raise CalmError(
                f"mixture: {name!r} is not understood. After the slash comes a number of operands, "
                "as in 'kv_math/2'."
            )
        if not (math.isfinite(weight) and weight >= 0):
            raise CalmError(f"mixture: the weight of {name!r} must be 0 or more: got {weight}.")
        chosen = [int(count)] if fixed else [1] if kind == "pairs" else operands
        parsed.append((_Ingredient(name, *_KINDS[kind], chosen), weight))
    if not sum(weight for _, weight in parsed) > 0:
        raise CalmError(
            f"mixture: at least one weight must be above 0: got {dict(mixture)}. "
            "Leave mixture out for the default one."
        )
    return parsed


def _check_operands(operators: str, min_operands: int, max_operands: int) -> None:
    if not operators or not set(operators) <= set("+-*"):
        raise CalmError(f"operators must be one or more of '+-*': got {operators!r}.")
    if not 1 <= min_operands <= max_operands:
        raise CalmError(
            "An expression has at least one operand, the fewest come first: got "
            f"min_operands={min_operands}, max_operands={max_operands}."
        )


def _check_choice(name: str, value: str, choices: Sequence[str]) -> None:
    if value not in choices:
        raise CalmError(f"{name} must be one of {', '.join(choices)}: got {value!r}.")
