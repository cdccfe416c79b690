"""A task trained beside replay data, so that what a model could before is not forgotten."""

from collections.abc import Callable, Sequence
from typing import Any

from lightning.pytorch.utilities import rank_zero_info
from rich.console import Console
from rich.progress import track
from typing_extensions import override

from calm_lightning.contracts import CalmError, EvaluationSet, Example, Task
from calm_plugins.tasks.blending import Blend
from calm_plugins.tasks.self_decompression.questions import Questions, Without, nothing_left


class Replay(Task):
    """A task, with a share of other examples in its training.

    Evaluation is the task's alone, under its own names, so a run with replay and one without stand
    in one table. (`Mixture` evaluates all of its tasks, each under its name.)

    What asks a question of an evaluation set, word for word, is not replayed. Of finite data it is
    left out, and it is said how much that was; where examples are made as they are asked for
    (`KeyValue`, a `Mixture`, weighed `Translation`), the next one that asks none takes its place.

    Args:
        task: What is to be learnt, and is evaluated.
        replay: Where the examples against forgetting come from: `SelfDecompression`, or real data.
        share: Share of the training examples that are replayed.
        examples_per_epoch: After so many training examples the same ones come again.
        **task_options: `batch_size`, `seed` and the other arguments of `Task`; the task and the
            replay data have this seed too.

    Raises:
        CalmError: If a setting makes no sense.
    """

    generated = True

    def __init__(
        self,
        task: Task,
        replay: Task,
        share: float = 0.3,
        examples_per_epoch: int = 1_000_000,
        **task_options: Any,
    ) -> None:
        super().__init__(**task_options)
        if not 0 < share < 1:
            raise CalmError(f"share={share} is a share between 0 and 1, both left out.")
        if examples_per_epoch < 1:
            raise CalmError(f"examples_per_epoch must be at least 1: got {examples_per_epoch}.")
        self.task, self.replay = task, replay
        self.share = share
        self.examples_per_epoch = examples_per_epoch
        for each in (task, replay):
            each.seed = self.seed

    @override
    def prepare_data(self) -> None:
        self.task.prepare_data()
        self.replay.prepare_data()

    @override
    def setup(self, stage: str) -> None:
        # Which tells where the run is, and which process this is.
        self.task.trainer = self.replay.trainer = self.trainer
        self._both(lambda task: task.setup(stage))

    @override
    def teardown(self, stage: str) -> None:
        self._both(lambda task: task.teardown(stage))

    @override
    def train_examples(self) -> Sequence[Example]:
        sources = [self.task.train_examples(), self._replayed()]
        in_order = [self.task.generated, self.replay.generated]
        shares = [1 - self.share, self.share]
        return Blend(sources, shares, self.examples_per_epoch, self.seed, in_order)

    @override
    def evaluation_sets(self) -> Sequence[EvaluationSet]:
        return self.task.evaluation_sets()

    def _both(self, do: Callable[[Task], None]) -> None:
        do(self.task)
        do(self.replay)

    def _replayed(self) -> Sequence[Example]:
        """The replay data without those that hold a question of an evaluation set.

        Data that are made from their index (`generated`) may be endless, so they are searched one
        by one, as they are asked for, and nobody knows how many are left out.
        """
        examples = self.replay.train_examples()
        asked = Questions(e.prompt for each in self.evaluation_sets() for e in each.examples)
        if self.replay.generated:
            return Without(examples, asked)
        searched = track(
            examples,
            "Searching replay data for questions of the evaluation",
            console=Console(stderr=True),
            transient=True,
            disable=self._process()[0] > 0,
        )
        kept = [example for example in searched if not asked.stand_in(example)]
        if len(kept) < len(examples):
            rank_zero_info(
                f"{len(examples) - len(kept):,} of {len(examples):,} examples are not replayed: "
                "an evaluation set asks a question that is in them."
            )
        if not kept:
            raise CalmError(nothing_left())
        return kept
