"""What crosses the connections, measured on fixed texts at every validation."""

from collections.abc import Sequence
from typing import Any

import lightning as L
from typing_extensions import override

from calm_lightning.callbacks.tensorboard import writer_of
from calm_lightning.composed import ComposedModel, Connection
from calm_lightning.contracts import CalmError, EvaluationSet
from calm_lightning.figures import attention_map
from calm_lightning.probing import Probe, probe


class LookInside(L.Callback):
    """Writes for TensorBoard, at validations and at the end of a fit.

    For each connection, the mean over the texts: `connections/added_share/...` (norm of what the
    bridge adds over that of the anchor's state), `connections/attention_entropy/...` (nats) and
    `connections/attention_distance/...` (tokens of the anchor); and a heat map of each text's
    attention under `attention/...`. Bridges that do not attend have the first alone; models
    without connections have nothing.

    Args:
        texts: What is read. Null: the first example of some evaluation sets, with its target.
        sets: Of how many sets.
    """

    def __init__(self, texts: list[str] | None = None, sets: int = 3) -> None:
        if sets < 0:
            raise CalmError(f"LookInside: sets={sets} must not be negative.")
        self.texts = texts
        self.sets = sets
        self._seen_at = -1

    @override
    def on_validation_end(self, trainer: L.Trainer, pl_module: Any) -> None:
        if not trainer.sanity_checking and not trainer.fast_dev_run:  # type: ignore[attr-defined]
            self._look(trainer, pl_module)

    @override
    def on_train_end(self, trainer: L.Trainer, pl_module: Any) -> None:
        if self._seen_at != trainer.global_step and not trainer.fast_dev_run:  # type: ignore[attr-defined]
            self._look(trainer, pl_module)

    def _look(self, trainer: L.Trainer, module: Any) -> None:
        model = module.language_model
        if not isinstance(model, ComposedModel) or not trainer.loggers:
            return
        # Every process looks, for their weights may be shared out among them; the first one tells.
        with trainer.precision_plugin.forward_context():
            probes = probes_of(model, module, self.texts, self.sets)
        self._seen_at = trainer.global_step
        writer = writer_of(trainer)
        if writer is None or not probes:
            return
        for number, connection in enumerate(model.connections):
            name = tag_of(connection)
            for measure, value in _measures(probes, number).items():
                writer.add_scalar(f"connections/{measure}/{name}", value, trainer.global_step)
            for place, each in enumerate(probes):
                if (figure := attention_map(each, number)) is not None:
                    tag = f"attention/text_{place}/{name}"
                    writer.add_figure(tag, figure, trainer.global_step)


def tag_of(connection: Connection) -> str:
    """A connection as a part of a tag: augmenting model and layer, anchor layer, from 0."""
    return f"{connection.augmenting}.{connection.augmenting_layer}-{connection.anchor_layer}"


def _measures(probes: Sequence[Probe], number: int) -> dict[str, float]:
    """The means over all texts, of what there is."""
    looks = [each.looks[number] for each in probes]
    all_of: dict[str, list[float | None]] = {
        "added_share": [look.share for look in looks],
        "attention_entropy": [look.entropy for look in looks],
        "attention_distance": [look.distance for look in looks],
    }
    known = {name: [v for v in values if v is not None] for name, values in all_of.items()}
    return {name: sum(values) / len(values) for name, values in known.items() if values}


def probes_of(
    model: ComposedModel, module: Any, texts: Sequence[str] | None = None, sets: int = 3
) -> list[Probe]:
    """Let a model read texts; those that do not fit its context are left out.

    Args:
        model: The composed model.
        module: The `CalmModule` around it, which knows the evaluation sets.
        texts: What is read. None: the first example of some evaluation sets.
        sets: Of how many sets.
    """
    asked: list[tuple[str, str | None]] = [(text, None) for text in texts or ()]
    if texts is None:
        kinds: list[EvaluationSet] = module.evaluation_sets[:sets]
        examples = [example for kind in kinds for example in kind.examples[:1]]
        asked = [(module.prompt_of(e), e.target) for e in examples if module._can_ask([e])]
    return [
        probe(model, prompt, target)
        for prompt, target in asked
        if all(model.fits([prompt], None if target is None else [target]))
    ]
