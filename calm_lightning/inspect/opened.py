"""The model of a run, asked anew: scores with and without its parts, answers, attention."""

import copy
import logging
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from calm_lightning.callbacks.look_inside import probes_of
from calm_lightning.callbacks.show_answers import answers_of, fitting
from calm_lightning.checkpoint import holds_composition
from calm_lightning.composed import ComposedModel
from calm_lightning.contracts import CalmError
from calm_lightning.inspect.run_folder import RunFolder
from calm_lightning.language_model import TextModel
from calm_lightning.module import CalmModule
from calm_lightning.parts import COMPOSED, parts_of
from calm_lightning.probing import Probe
from calm_lightning.run import CalmCLI

Scores = dict[str, float]
"""By set/score."""

SHUFFLED, ZEROED, ANCHOR = "states shuffled", "states zeroed", "anchor alone"
LONGEST_ANSWER = 64


@dataclass(frozen=True)
class Sample:
    """One question and everybody's answer; None of those who could not read it."""

    set: str
    prompt: str
    target: str
    answers: dict[str, str | None]


@dataclass(frozen=True)
class OpenedRun:
    """A run whose model is in memory.

    Attributes:
        module: The model, as it is trained and scored.
        trainer: Scores it.
        task: Its questions.
        own_scores: Of the model as it is, on the first questions of every set.
    """

    module: CalmModule
    trainer: Any
    task: Any
    own_scores: Scores

    @property
    def composed(self) -> ComposedModel | None:
        """The model, if it joins hidden states by connections."""
        model = self.module.language_model
        return model if isinstance(model, ComposedModel) else None

    def scores(self) -> dict[str, Scores]:
        """Scores on the first questions of every set: the model's, and those of its controls."""
        found = {COMPOSED: self.own_scores}
        for label, context in self._controls():
            with context:
                self.trainer.validate(self.module, datamodule=self.task, verbose=False)
                found[label] = _scores(self.trainer)
        return found

    def _controls(self) -> Iterator[tuple[str, AbstractContextManager[Any]]]:
        model = self.module.language_model
        if self.module.num_trainable or self.composed is not None:
            try:
                with model.anchor_only():
                    pass
                yield ANCHOR, model.anchor_only()
            except CalmError:  # the anchor itself was trained, so it is gone
                pass
        if hasattr(model, "disturbed"):
            yield SHUFFLED, self._disturbed("shuffle")
            yield ZEROED, self._disturbed("zero")
        if self.composed is not None and (count := len(self.composed.augmenting)) > 1:
            for number in range(count):
                yield f"without model {number}", self.composed.without(number)

    @contextmanager
    def _disturbed(self, how: Any) -> Iterator[None]:
        self.module.disturb = how
        try:
            yield
        finally:
            self.module.disturb = None

    def headlines(self) -> dict[str, str]:
        """Name of the score that stands for each evaluation set."""
        scorers = {each.name: self.module.scorer(each.name) for each in self.module.evaluation_sets}
        return {n: s.headline if s is not None else "loss_nats" for n, s in scorers.items()}

    def samples(self, of_each_set: int = 2) -> list[Sample]:
        """The first questions of every set, and what everybody says.

        Args:
            of_each_set: How many.
        """
        model, found = self.module.language_model, []
        if not isinstance(model, TextModel):
            return []
        for kind in self.module.evaluation_sets:
            if kind.scorer is None or not (asked := fitting(self.module, kind, of_each_set)):
                continue
            longest = min(LONGEST_ANSWER, kind.max_new_tokens)
            said = answers_of(list(parts_of(model)), self.module, kind, asked, longest)
            for place, example in enumerate(asked):
                answers = {n: None if a is None else a[place] for n, a in said.items()}
                prompt = self.module.prompt_of(example)
                found.append(Sample(kind.name, prompt, example.target, answers))
        return found

    def probes(self) -> list[Probe]:
        """What crosses the connections while the first text of some sets is read."""
        return [] if self.composed is None else probes_of(self.composed, self.module)


def open_run(run: RunFolder, examples: int) -> OpenedRun:
    """Build a run's model with its trained weights, and its task.

    Args:
        run: The run.
        examples: Questions of each evaluation set that are asked; at least one is.

    Raises:
        CalmError: If it has no trained weights, or its models or data are not there any more.
    """
    names = ("model", "data", "seed_everything", "threads", "matmul_precision")
    kept = copy.deepcopy(run.config)  # the parser changes what it is given
    config = {name: kept[name] for name in names if kept.get(name) is not None}
    config["model"]["disturb"] = None
    checkpoint = _weights(run, config["model"])
    options = {**(config["data"].get("init_args") or {}), "validation_examples": max(1, examples)}
    config["data"]["init_args"] = options
    trained = kept.get("trainer") or {}
    config["trainer"] = {
        **{name: trained[name] for name in ("accelerator", "precision") if trained.get(name)},
        "devices": 1, "logger": False, "enable_progress_bar": False,
        "enable_model_summary": False, "enable_checkpointing": False, "num_sanity_val_steps": 0,
    }  # fmt: skip
    for name in ("lightning", "lightning.fabric", "lightning.pytorch"):
        logging.getLogger(name).setLevel(logging.ERROR)  # what they say is of a training
    arguments, sys.argv[1:] = sys.argv[1:], []  # LightningCLI would read them too
    try:
        cli = CalmCLI(args=config, run=False)
    finally:
        sys.argv[1:] = arguments
    trainer: Any = cli.trainer
    # This builds the model and loads its weights too.
    trainer.validate(cli.model, datamodule=cli.datamodule, ckpt_path=checkpoint, verbose=False)
    return OpenedRun(cli.model, trainer, cli.datamodule, _scores(trainer))


def _scores(trainer: Any) -> Scores:
    """Of the last validation, without those of groups of questions."""
    return {
        name.removeprefix("val/"): float(value)
        for name, value in trainer.callback_metrics.items()
        if name.startswith("val/") and "=" not in name
    }


def _weights(run: RunFolder, model: dict[str, Any]) -> str | None:
    """Where the trained weights are: told to the model's config, or as a checkpoint."""
    last = run.folder / "checkpoints" / "last.ckpt"
    if holds_composition(run.model):
        model["start_from"] = str(run.model)
        return None
    if last.is_file():
        return str(last)
    raise CalmError(
        f"{Path(run.folder)} holds no trained weights: neither model/ nor checkpoints/last.ckpt."
    )
