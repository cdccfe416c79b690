"""How many answers are right: by our reading of numbers, and as lm-evaluation-harness counts."""

import re
import string
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal
from hashlib import blake2b

import torch
from torch import Tensor
from typing_extensions import override

from calm_lightning.contracts import Example, Scorer
from calm_plugins.tasks.gsm.languages import LANGUAGES
from calm_plugins.tasks.gsm.numbers import final_number, read_number
from calm_plugins.tasks.gsm.prompts import Style

_FLEXIBLE = re.compile(r"(-?[$0-9.,]{2,})|(-?[0-9]+)")
_PUNCTUATION = str.maketrans("", "", string.punctuation)


class GsmAccuracy(Scorer):
    """Share of answers with the right number, as a fraction.

    `accuracy` compares numbers as `final_number` reads them, exactly. `strict_match` and
    `flexible_extract` are what lm-evaluation-harness 0.4 reports under these names for gsm8k (style
    `gsm8k`) and for mgsm_native_cot and mgsm_en_cot (styles `native`, `english`), quirks included:
    texts are compared, `18.00` is not 18, and Bengali answers are searched for English words.

    With several samples of a question all three are means over all samples, and `majority` is the
    share of questions whose most frequent number is right; answers without a number do not vote,
    and of equally frequent ones the first counts.

    Args:
        questions: Number of questions; each example says its own in `meta["question"]`, from 0.
        style: How was asked.
        language: Of the answers and of the truth, two letters.
        samples: Answers to each question; each example says which in `meta["sample"]`, from 0.
    """

    headline = "accuracy"
    higher_is_better = True
    asked: Tensor
    answered: Tensor
    right: Tensor
    votes: Tensor
    strict: Tensor
    flexible: Tensor

    def __init__(
        self, questions: int, style: Style = "gsm8k", language: str = "en", samples: int = 1
    ) -> None:
        super().__init__()
        self.language = language
        self.samples = samples
        self.harness = Harness.of(style, language)
        # Every answer has a place of its own, so that votes add up over any number of processes.
        zeros = torch.zeros(questions, samples, dtype=torch.long)
        for name in ("asked", "answered", "right", "votes", "strict", "flexible"):
            self.add_state(name, zeros.clone(), dist_reduce_fx="sum")

    @override
    def update(self, predictions: Sequence[str], examples: Sequence[Example]) -> None:
        for prediction, example in zip(predictions, examples, strict=True):
            place = (example.meta["question"], example.meta.get("sample", 0))
            answer: str = example.meta["answer"]
            said = final_number(prediction, self.language)
            self.asked[place] += 1
            self.strict[place] += self.harness.strict_match(prediction, answer)
            self.flexible[place] += self.harness.flexible_extract(prediction, answer)
            if said is not None:
                self.answered[place] += 1
                self.right[place] += said == self._truth(example)
                self.votes[place] += _vote(said)

    @override
    def compute(self) -> dict[str, Tensor]:
        total = self.asked.sum()
        scores = {
            "accuracy": self.right.sum() / total,
            "strict_match": self.strict.sum() / total,
            "flexible_extract": self.flexible.sum() / total,
        }
        if self.samples > 1:
            scores["majority"] = self._majority()
        return scores

    @override
    def each(self, predictions: Sequence[str], examples: Sequence[Example]) -> list[float]:
        return [
            float(final_number(said, self.language) == self._truth(example))
            for said, example in zip(predictions, examples, strict=True)
        ]

    def _truth(self, example: Example) -> Decimal:
        truth = read_number(example.meta["answer"], self.language)
        assert truth is not None, "checked when the file was read"
        return truth

    def _majority(self) -> Tensor:
        questions = self.asked.any(dim=1).nonzero().flatten().tolist()
        right = 0
        for question in questions:
            given = self.answered[question] > 0
            votes = self.votes[question][given].tolist()
            if votes:
                first = votes.index(Counter(votes).most_common(1)[0][0])
                right += int(self.right[question][given][first])
        return torch.tensor(right / len(questions) if questions else float("nan"))


def _vote(number: Decimal) -> int:
    """64 bits that equal numbers share, however they are written.

    No number of a tensor would do: 9007199254740993 is none of its floats, and answers are longer
    than its whole numbers.
    """
    above, below = number.as_integer_ratio()
    digest = blake2b(f"{above:x}/{below:x}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big", signed=True)


@dataclass(frozen=True)
class Harness:
    """The rules of lm-evaluation-harness 0.4 for one of its tasks.

    Attributes:
        strict: Its pattern of the filter strict-match; the first match counts.
        ignored: What exact_match takes out of both texts before it compares them.
        ignore_punctuation: Whether it takes out all of ASCII's punctuation.
    """

    strict: re.Pattern[str]
    ignored: tuple[str, ...] = ()
    ignore_punctuation: bool = False

    @classmethod
    def of(cls, style: Style, language: str) -> "Harness":
        """The rules of gsm8k, mgsm_native_cot or mgsm_en_cot."""
        if style == "gsm8k":
            strict = re.compile(r"#### (\-?[0-9\.\,]+)")
            return cls(strict, (",", r"\$", r"(?s).*#### ", r"\.$"))
        before, after = LANGUAGES["en" if style == "english" else language].harness
        strict = re.compile(rf"{before}(\-?[0-9\.\,]+){after}")
        return cls(strict, ignore_punctuation=True)

    def strict_match(self, prediction: str, answer: str) -> bool:
        """Whether the answer stands where it was asked for."""
        found = self.strict.findall(prediction)
        return self._equal(found[0].strip() if found else "[invalid]", answer)

    def flexible_extract(self, prediction: str, answer: str) -> bool:
        """Whether the last number is the answer."""
        found = _FLEXIBLE.findall(prediction)
        last = next((part for part in found[-1] if part), "[invalid]") if found else "[invalid]"
        return self._equal(last.strip(), answer)

    def _equal(self, prediction: str, answer: str) -> bool:
        texts = [prediction, answer]
        for pattern in self.ignored:
            texts = [re.sub(pattern, "", text) for text in texts]
        texts = [text.lower() for text in texts]
        if self.ignore_punctuation:
            texts = [text.translate(_PUNCTUATION) for text in texts]
        return texts[0] == texts[1]
