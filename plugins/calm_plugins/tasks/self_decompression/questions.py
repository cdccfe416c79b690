"""Finds the questions of evaluation sets in texts that are to be learnt."""

from collections.abc import Iterable, Sequence
from itertools import chain

from typing_extensions import override

from calm_lightning.contracts import CalmError, Example
from calm_plugins.tasks.by_index import ByIndex


class Questions:
    """Questions that are looked for in texts, word for word.

    Where one may begin is told by as many first characters as the shortest one has, so a text is
    gone through once, however many questions there are.

    Args:
        questions: Any number of them; empty ones stand nowhere.
    """

    def __init__(self, questions: Iterable[str]) -> None:
        self.questions = frozenset(questions) - {""}
        self.shortest = min(map(len, self.questions), default=0)
        self.lengths: dict[str, set[int]] = {}
        for question in self.questions:
            self.lengths.setdefault(question[: self.shortest], set()).add(len(question))

    def stand_in(self, example: Example) -> bool:
        """Whether any of them stands somewhere in what is learnt from an example."""
        if not self.questions:
            return False
        text, size, lengths, questions = (
            example.prompt + example.target, self.shortest, self.lengths, self.questions
        )  # fmt: skip
        for start in range(len(text) - size + 1):
            for length in lengths.get(text[start : start + size], ()):
                if text[start : start + length] in questions:
                    return True
        return False


class Without(ByIndex):
    """Examples that hold none of some questions, for those that are made from their index.

    In place of one that holds a question stands the next one that does not; so what stands at an
    index is a function of the index alone, and nothing is searched before it is asked for.

    Args:
        examples: Where they come from.
        questions: What they must not hold.
    """

    def __init__(self, examples: Sequence[Example], questions: Questions) -> None:
        self.examples, self.questions = examples, questions

    @override
    def __len__(self) -> int:
        return len(self.examples)

    @override
    def at(self, index: int) -> Example:
        for place in chain(range(index, len(self)), range(index)):
            example = self.examples[place]
            if not self.questions.stand_in(example):
                return example
        raise CalmError(nothing_left())


def nothing_left() -> str:
    """What is said when every example holds a question."""
    return (
        "Nothing is left to replay: every example holds a question of an evaluation set. Give "
        "other replay data."
    )
