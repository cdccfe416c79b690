"""The contract of a scorer: a torchmetrics metric over texts."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor
from torchmetrics import Metric
from typing_extensions import override

if TYPE_CHECKING:
    from calm_lightning.contracts.task import Example


class Scorer(Metric, ABC):
    """Compares generated texts with examples.

    State is kept in tensors (`add_state`), so that it adds up over batches and processes. The
    result is a dictionary: `headline` is the one number that a table shows, the other entries
    are details.
    """

    full_state_update = False
    headline: ClassVar[str]

    @abstractmethod
    def update(self, predictions: Sequence[str], examples: "Sequence[Example]") -> None:
        """Take in one batch. The two sequences belong together row by row."""

    @abstractmethod
    def compute(self) -> dict[str, Tensor]:
        """The scores over everything taken in, each by its name."""

    def each(
        self, predictions: Sequence[str], examples: "Sequence[Example]"
    ) -> Sequence[float] | None:
        """The score of every answer by itself, so that rows can be compared question by question.

        Returns:
            One number for each; None if only a whole corpus has a score.
        """
        return None

    def signatures(self) -> Mapping[str, str]:
        """How each score is counted, by its name, where its library has a notation for that."""
        return {}


class ExactMatch(Scorer):
    """Share of predictions that equal the target, surrounding white space aside, as a fraction.

    Args:
        group_by: A key of `Example.meta` with whole-number values; the accuracy of each value is
            reported too, as `accuracy/<key>=<value>`.
        after_last: Compare only what follows the last occurrence of this text, in prediction and
            target alike. For worked answers (`10+22=32`) it is `=`. A prediction without it is
            wrong.
        max_group: Largest group value that is kept apart; larger ones are counted with it.
        may_lack: Whether a prediction without that text is compared as a whole instead (`32`).
    """

    headline = "accuracy"
    higher_is_better = True
    correct: Tensor
    total: Tensor

    def __init__(
        self,
        group_by: str | None = None,
        after_last: str | None = None,
        max_group: int = 15,
        may_lack: bool = False,
    ) -> None:
        super().__init__()
        self.group_by = group_by
        self.after_last = after_last
        self.may_lack = may_lack
        self.max_group = max_group
        zeros = torch.zeros(max_group + 1, dtype=torch.long)
        self.add_state("correct", zeros.clone(), dist_reduce_fx="sum")
        self.add_state("total", zeros.clone(), dist_reduce_fx="sum")

    @override
    def update(self, predictions: Sequence[str], examples: "Sequence[Example]") -> None:
        for prediction, example in zip(predictions, examples, strict=True):
            group = min(int(example.meta[self.group_by]), self.max_group) if self.group_by else 0
            self.correct[group] += self._matches(prediction, example.target)
            self.total[group] += 1

    @override
    def compute(self) -> dict[str, Tensor]:
        scores = {"accuracy": self.correct.sum() / self.total.sum()}
        if self.group_by:
            for group in self.total.nonzero().flatten().tolist():
                name = f"accuracy/{self.group_by}={group}"
                scores[name] = self.correct[group] / self.total[group]
        return scores

    @override
    def each(self, predictions: Sequence[str], examples: "Sequence[Example]") -> list[float]:
        pairs = zip(predictions, examples, strict=True)
        return [float(self._matches(said, example.target)) for said, example in pairs]

    def _matches(self, prediction: str, target: str) -> bool:
        if self.after_last is not None:
            if self.after_last not in prediction and not self.may_lack:
                return False
            prediction = prediction.rpartition(self.after_last)[2]
            target = target.rpartition(self.after_last)[2]
        return prediction.strip() == target.strip()
