"""Keys, their values, and exact arithmetic over them.

The experiment is that of `LLM Augmented LLMs <https://arxiv.org/abs/2401.02412>`_, section 4.1. All
of it is text without spaces: a key is `<kqz>`, an expression is `<kqz>+<abf>`, or `10+22` with the
values in place of the keys.
"""

import random
import string
import zlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from calm_lightning.contracts import CalmError

LETTERS = string.ascii_lowercase
LONGEST_KEY = 12
RESERVED_ONE_IN = 10


def evaluate(numbers: Sequence[int], operators: Sequence[str]) -> int:
    """The exact value of `numbers[0] operators[0] numbers[1] …`, with `*` before + and -."""
    total, sign, product = 0, 1, numbers[0]
    for operator, number in zip(operators, numbers[1:], strict=True):
        if operator == "*":
            product *= number
        else:
            total += sign * product
            sign, product = (1 if operator == "+" else -1), number
    return total + sign * product


def write(terms: Sequence[str], operators: Sequence[str]) -> str:
    """The terms with the operators between them: `10+22`."""
    return terms[0] + "".join(o + t for o, t in zip(operators, terms[1:], strict=True))


def is_reserved(text: str) -> bool:
    """Whether an expression, as it is written, is for evaluation only (about one in ten is).

    A rule about the text and nothing else, so it holds for every seed, task and training mix.
    """
    return zlib.crc32(text.encode()) % RESERVED_ONE_IN == 0


@dataclass(frozen=True)
class Expression:
    """An expression over numbers, which may be the values of keys.

    Attributes:
        numbers: The operands' values.
        operators: One of `+ - *` between each two operands.
        keys: The keys that the numbers are values of; empty if it is plain arithmetic.
    """

    numbers: tuple[int, ...]
    operators: tuple[str, ...]
    keys: tuple[str, ...] = ()

    @cached_property
    def plain(self) -> str:
        """In numbers: `10+22`."""
        return write([str(number) for number in self.numbers], self.operators)

    @cached_property
    def text(self) -> str:
        """As it is asked: in keys if it has any (`<kqz>+<abf>`), else in numbers."""
        if not self.keys:
            return self.plain
        return write([f"<{key}>" for key in self.keys], self.operators)

    @property
    def value(self) -> int:
        """What it comes to."""
        return evaluate(self.numbers, self.operators)

    @property
    def may_be_asked(self) -> bool:
        """Whether evaluation may ask it. A single operand is not reserved, so it always may."""
        return not self.operators or is_reserved(self.text)

    @property
    def may_be_learnt(self) -> bool:
        """Whether training may show it: neither in keys nor in numbers is it reserved."""
        return not self.operators or not (is_reserved(self.text) or is_reserved(self.plain))


@dataclass(frozen=True)
class KeyTable:
    """Which key has which value, and which keys belong to D_C.

    Attributes:
        values: The value of each key.
        held_in: The keys that D_C may show.
        held_out: All other keys: the augmenting model has learnt them, the composition never sees
            them in training.
    """

    values: Mapping[str, int]
    held_in: tuple[str, ...]
    held_out: tuple[str, ...]

    @property
    def keys(self) -> tuple[str, ...]:
        """Every key."""
        return self.held_in + self.held_out

    @cached_property
    def unseen(self) -> frozenset[str]:
        """The keys of `held_out`, for quick look-up."""
        return frozenset(self.held_out)

    @classmethod
    def make(
        cls,
        num_keys: int,
        key_length: tuple[int, int] = (2, 6),
        values: tuple[int, int] = (10, 99),
        unique_values: bool = False,
        share_in_dc: float = 0.2,
        seed: int = 0,
    ) -> "KeyTable":
        """Draw a table. It depends on nothing but these arguments.

        Keys, and which of them are in D_C, do not change with the values. A larger `share_in_dc`
        contains the keys of a smaller one.

        Args:
            num_keys: Number of keys; no two are the same.
            key_length: Fewest and most letters of a key. Each length is as likely as the others,
                until all keys of that length are taken.
            values: Smallest and largest value, both included.
            unique_values: Whether no two keys share a value.
            share_in_dc: Share of the keys that D_C may show.
            seed: Seed of the table.

        Raises:
            CalmError: If there is no such table.
        """
        _check_table(num_keys, key_length, values, unique_values, share_in_dc)
        keys = _draw_keys(num_keys, range(key_length[0], key_length[1] + 1), seed)
        rng, span = random.Random(f"{seed}/values"), range(values[0], values[1] + 1)
        drawn = rng.sample(span, num_keys) if unique_values else rng.choices(span, k=num_keys)
        split = round(num_keys * share_in_dc)
        return cls(dict(zip(keys, drawn, strict=True)), tuple(keys[:split]), tuple(keys[split:]))


def _draw_keys(num_keys: int, lengths: Sequence[int], seed: int) -> list[str]:
    rng = random.Random(f"{seed}/keys")
    counts: Counter[int] = Counter()
    for _ in range(num_keys):
        counts[rng.choice([n for n in lengths if counts[n] < len(LETTERS) ** n])] += 1
    keys = [
        _spell(code, length)
        for length in lengths
        for code in rng.sample(range(len(LETTERS) ** length), counts[length])
    ]
    rng.shuffle(keys)
    return keys


def _spell(code: int, length: int) -> str:
    letters = []
    for _ in range(length):
        code, letter = divmod(code, len(LETTERS))
        letters.append(LETTERS[letter])
    return "".join(letters)


def _check_table(
    num_keys: int,
    key_length: tuple[int, int],
    values: tuple[int, int],
    unique_values: bool,
    share_in_dc: float,
) -> None:
    shortest, longest = key_length
    if not 1 <= shortest <= longest <= LONGEST_KEY:
        raise CalmError(
            f"Keys have between 1 and {LONGEST_KEY} letters, the fewest first: got "
            f"min_key_length={shortest}, max_key_length={longest}."
        )
    if not 0 <= values[0] <= values[1]:
        raise CalmError(
            "Values are whole numbers from 0 up, the smallest first (a sign would read as an "
            f"operator): got min_value={values[0]}, max_value={values[1]}."
        )
    possible = sum(len(LETTERS) ** length for length in range(shortest, longest + 1))
    if num_keys > possible:
        raise CalmError(
            f"num_keys={num_keys} is more than the {possible} keys that have {shortest} to "
            f"{longest} letters. Raise max_key_length or lower num_keys."
        )
    num_values = values[1] - values[0] + 1
    if unique_values and num_keys > num_values:
        raise CalmError(
            f"unique_values=True needs a value for each of the num_keys={num_keys} keys, but "
            f"min_value={values[0]} to max_value={values[1]} holds {num_values}. Set max_value to "
            f"at least {values[0] + num_keys - 1}, or unique_values to false."
        )
    in_dc = round(num_keys * share_in_dc) if 0 <= share_in_dc <= 1 else 0
    if not 0 < in_dc < num_keys:
        raise CalmError(
            f"share_in_dc={share_in_dc} of num_keys={num_keys} must leave at least one key inside "
            "D_C and one outside it. The paper's share is 0.2; five keys are enough for that."
        )
