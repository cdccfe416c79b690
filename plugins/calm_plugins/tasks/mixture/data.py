"""Several tasks as one: trained in fixed proportions, evaluated each by its own sets.

The paper trains one composition for one domain at a time; this is for what it leaves open: one
composition for several domains, and replay data against forgetting. README.md beside this file has
an example.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

from typing_extensions import override

from calm_lightning.contracts import CalmError, EvaluationSet, Example, Task
from calm_plugins.tasks.blending import Blend, shares

_NAME = re.compile(r"[\w.-]+")


class Mixture(Task):
    """Any tasks together in one training run.

    The tasks take turns at random in the wanted proportions; each is gone through without
    repetition and then again in another order. Evaluation sets are those of all tasks, named
    `<task>.<set>`.

    Args:
        tasks: The tasks by name. Their own `batch_size`, `seed` of the order and other options of
            `Task` are not used, but for the `seed` of tasks that make their examples from it.
        weights: What the share of each task in training is proportional to; 0 evaluates a task
            without training on it. None: the tasks' sizes, smoothed by `temperature`.
        temperature: A task of n examples weighs n^(1/temperature): 1 gives every
            example the same chance, more evens out large and small tasks.
        examples_per_epoch: After so many training examples the same ones come again.
        **task_options: `batch_size`, `seed` and the other arguments of `Task`.

    Raises:
        CalmError: If there is no task, a name or a weight makes no sense, or a task that makes its
            examples endlessly is given no weight.
    """

    generated = True

    def __init__(
        self,
        tasks: dict[str, Task],
        weights: dict[str, float] | None = None,
        temperature: float = 1.0,
        examples_per_epoch: int = 1_000_000,
        **task_options: Any,
    ) -> None:
        super().__init__(**task_options)
        if not tasks:
            raise CalmError("A mixture needs at least one task under `tasks`.")
        for name in tasks:
            if not _NAME.fullmatch(name):
                raise CalmError(
                    f"A task's name is made of letters, digits and . _ - here: got {name!r}."
                )
        if examples_per_epoch < 1:
            raise CalmError(f"examples_per_epoch must be at least 1: got {examples_per_epoch}.")
        if weights is not None and weights.keys() != tasks.keys():
            raise CalmError(
                f"weights are for {', '.join(weights) or 'none'}, but the tasks are "
                f"{', '.join(tasks)}. Give each task one; 0 evaluates it only."
            )
        endless = [name for name, task in tasks.items() if task.generated]
        if weights is None and endless:
            raise CalmError(
                f"{', '.join(endless)} makes its examples as they are asked for and has no size to "
                "be weighed by. Give all tasks weights."
            )
        if weights is not None and temperature != 1:
            raise CalmError(
                f"temperature={temperature:g} smooths the tasks' sizes, which weights replace. "
                "Give one of the two."
            )
        shares([1] * len(tasks), list(weights.values()) if weights else None, temperature)
        self.tasks = dict(tasks)
        self.weights = weights
        self.temperature = temperature
        self.examples_per_epoch = examples_per_epoch

    @override
    def prepare_data(self) -> None:
        for task in self.tasks.values():
            task.prepare_data()

    @override
    def setup(self, stage: str) -> None:
        for task in self.tasks.values():
            task.trainer = self.trainer  # which tells where the run is, and which process this is
            task.setup(stage)

    @override
    def teardown(self, stage: str) -> None:
        for task in self.tasks.values():
            task.teardown(stage)

    @override
    def train_examples(self) -> Sequence[Example]:
        trained = {
            name: task
            for name, task in self.tasks.items()
            if self.weights is None or self.weights[name] > 0
        }
        sources = [task.train_examples() for task in trained.values()]
        for name, source in zip(trained, sources, strict=True):
            if not len(source):
                raise CalmError(
                    f"The task {name} of the mixture has nothing to train on. Give it the weight "
                    "0, or training data."
                )
        weights = [self.weights[name] for name in trained] if self.weights else None
        return Blend(
            sources,
            shares([len(source) for source in sources], weights, self.temperature),
            self.examples_per_epoch,
            self.seed,
            [task.generated for task in trained.values()],
        )

    @override
    def evaluation_sets(self) -> Sequence[EvaluationSet]:
        return list(self._prefixed())

    def _prefixed(self) -> Iterator[EvaluationSet]:
        for name, task in self.tasks.items():
            for each in task.evaluation_sets():
                yield replace(each, name=f"{name}.{each.name}")
