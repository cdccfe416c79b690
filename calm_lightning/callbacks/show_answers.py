"""A few answers at every validation, beside those of the parts, as a table to read."""

from collections.abc import Mapping, Sequence
from typing import Any

import lightning as L
from typing_extensions import override

from calm_lightning.callbacks.tensorboard import as_code, markdown_table, writer_of
from calm_lightning.contracts import CalmError, EvaluationSet, Example
from calm_lightning.language_model import TextModel
from calm_lightning.parts import COMPOSED, Part, parts_of

_NO_ANSWER = "\N{EN DASH}"

Answers = dict[str, list[str] | None]
"""By who answers; None of those who could not read the questions."""


class ShowAnswers(L.Callback):
    """Writes TensorBoard's text `samples`: prompt, target, and everybody's answer.

    The parts are frozen and asked once. Answers are greedy, whatever the set's own are.

    Args:
        examples: Of each set.
        sets: Of how many evaluation sets, the first ones that are answered.
        max_new_tokens: Longest answer; the set's own limit if that is lower.
    """

    def __init__(self, examples: int = 2, sets: int = 4, max_new_tokens: int = 64) -> None:
        for name, value in (("examples", examples), ("sets", sets)):
            if value < 0:
                raise CalmError(f"ShowAnswers: {name}={value} must not be negative.")
        if max_new_tokens < 1:
            raise CalmError(f"ShowAnswers: max_new_tokens={max_new_tokens} must be at least 1.")
        self.examples = examples
        self.sets = sets
        self.max_new_tokens = max_new_tokens
        self._of_parts: dict[str, Answers] = {}

    @override
    def on_validation_end(self, trainer: L.Trainer, pl_module: Any) -> None:
        model = pl_module.language_model
        told = trainer.loggers and not trainer.sanity_checking and not trainer.fast_dev_run  # type: ignore[attr-defined]
        if not told or not isinstance(model, TextModel):
            return
        answered = [kind for kind in pl_module.evaluation_sets if kind.scorer is not None]
        rows, header = [], ["set", "prompt", "target"]
        for kind in answered[: self.sets]:
            examples = fitting(pl_module, kind, self.examples)
            if not examples:
                continue
            said = self._ask(model, pl_module, kind, examples)
            header = ["set", "prompt", "target", *said]
            rows += _rows(pl_module, kind, examples, said)
        writer = writer_of(trainer)
        if writer is not None and rows:
            writer.add_text("samples", markdown_table(header, rows), trainer.global_step)

    def _ask(
        self, model: TextModel, module: Any, kind: EvaluationSet, examples: Sequence[Example]
    ) -> Answers:
        known = self._of_parts.get(kind.name, {})
        asked = [part for part in parts_of(model) if part.label not in known]
        longest = min(self.max_new_tokens, kind.max_new_tokens)
        said = answers_of(asked, module, kind, examples, longest)
        self._of_parts[kind.name] = known | {n: a for n, a in said.items() if n != COMPOSED}
        return {COMPOSED: said[COMPOSED], **self._of_parts[kind.name]}


def fitting(module: Any, kind: EvaluationSet, count: int) -> list[Example]:
    """The first examples of a set that can be asked."""
    asked = [e for e in kind.examples[:count] if module._can_ask([e])]
    prompts = [module.prompt_of(e) for e in asked]
    fits = module.language_model.fits(prompts, new_tokens=kind.max_new_tokens)
    return [e for e, fit in zip(asked, fits, strict=True) if fit]


def answers_of(
    parts: Sequence[Part],
    module: Any,
    kind: EvaluationSet,
    examples: Sequence[Example],
    max_new_tokens: int,
) -> Answers:
    """What each part says to the examples.

    Args:
        parts: Who is asked.
        module: Knows what is asked for an example.
        kind: The set.
        examples: Of the set.
        max_new_tokens: Longest answer.
    """
    prompts = [module.prompt_of(e) for e in examples]
    options = {"stop": kind.stop, "max_new_tokens": max_new_tokens}
    return {part.label: part.answer(prompts, **options) for part in parts}


def _rows(
    module: Any, kind: EvaluationSet, examples: Sequence[Example], said: Mapping[str, Any]
) -> list[list[str]]:
    return [
        [
            kind.name,
            as_code(module.prompt_of(example)),
            as_code(example.target),
            *(as_code(each[place]) if each else _NO_ANSWER for each in said.values()),
        ]
        for place, example in enumerate(examples)
    ]
