"""TensorBoard's first screen, hyper-parameters, and scores as tables."""

import re
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import lightning as L
import yaml
from lightning.pytorch.trainer.states import TrainerFn
from typing_extensions import override

from calm_lightning.callbacks.look_inside import tag_of
from calm_lightning.callbacks.tensorboard import logger_of, markdown_table, writer_of
from calm_lightning.composed import ComposedModel
from calm_lightning.resuming import SCORES_BEFORE, scores_before

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

Layout = dict[str, dict[str, list[Any]]]

_TOLD = ("model", "data", "trainer", "seed_everything")
_TRAINER = ("precision", "max_steps", "max_epochs", "accumulate_grad_batches", "gradient_clip_val")


class Dashboard(L.Callback):
    """Writes, once: the layout of Custom Scalars and the hyper-parameters with their scores.

    And at every evaluation its scores as a text, `scores/validation` or `scores/test`, and at the
    end of a fit `cost/seconds` and `cost/trained_parameters`.

    Beside the main score of each evaluation set stands at every validation of a fit what it was
    before training: `anchor_alone/SET/SCORE`, or `before_training/SET/SCORE` of a model that does
    not begin as its anchor. It does not change, so that it is a level line to look at; checkpoints
    hold it for the runs that go on from them.

    The hyper-parameters are those of the run's config.yaml. Their scores are the validation and
    test scores themselves, so that TensorBoard shows the last ones and no `hp_metric` is needed.
    """

    def __init__(self) -> None:
        self._before: dict[str, float] = {}
        self._started = 0.0

    @override
    def on_train_start(self, trainer: L.Trainer, pl_module: Any) -> None:
        self._started = time.perf_counter()
        logger, writer = logger_of(trainer), writer_of(trainer)
        if logger is None or writer is None or trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        writer.add_custom_scalars(layout_of(pl_module))
        if not trainer.global_step:
            self._draw_start(trainer, pl_module)
        config = Path(logger.log_dir, "config.yaml")
        if config.is_file():
            said = yaml.safe_load(config.read_text(encoding="utf-8"))
            scores = [f"{s}/{name}" for name in _headlines(pl_module) for s in ("val", "test")]
            _write_hyper_parameters(writer, hyper_parameters(said), scores)

    @override
    def on_validation_end(self, trainer: L.Trainer, pl_module: Any) -> None:
        if trainer.sanity_checking or trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        scores = _scores(trainer, "val/")
        if trainer.state.fn == TrainerFn.FITTING:
            self._draw_start(trainer, pl_module)
        elif not trainer.global_step and not trainer.ckpt_path:
            self._before = scores  # `calm fit` looks before it trains
        self._tell(trainer, "scores/validation", self._before, scores)

    @override
    def on_test_end(self, trainer: L.Trainer, pl_module: Any) -> None:
        self._tell(trainer, "scores/test", {}, _scores(trainer, "test/"))

    def _draw_start(self, trainer: L.Trainer, module: Any) -> None:
        """Of each set's main score, once more the value that it had before training."""
        writer = writer_of(trainer)
        if writer is None:
            return
        for name in _headlines(module):
            if name in self._before:
                tag = f"{start_of(module)}/{name}"
                writer.add_scalar(tag, self._before[name], trainer.global_step)

    @override
    def on_save_checkpoint(
        self, trainer: L.Trainer, pl_module: Any, checkpoint: dict[str, Any]
    ) -> None:
        checkpoint.setdefault(SCORES_BEFORE, self._before)

    @override
    def on_load_checkpoint(
        self, trainer: L.Trainer, pl_module: Any, checkpoint: dict[str, Any]
    ) -> None:
        self._before = _of_whole_sets(scores_before(checkpoint))

    def _tell(
        self,
        trainer: L.Trainer,
        tag: str,
        before: Mapping[str, float],
        scores: Mapping[str, float],
    ) -> None:
        writer = writer_of(trainer)
        if writer is None or not scores:
            return
        header = ["set", "score", *(["before training"] if before else []), "now"]
        rows = []
        for name, value in scores.items():
            kind, _, score = name.partition("/")
            old = [f"{before[name]:.4f}" if name in before else ""] if before else []
            rows.append([kind, score, *old, f"{value:.4f}"])
        writer.add_text(tag, markdown_table(header, rows), trainer.global_step)

    @override
    def on_train_end(self, trainer: L.Trainer, pl_module: Any) -> None:
        writer = writer_of(trainer)
        if writer is not None and not trainer.fast_dev_run:  # type: ignore[attr-defined]
            seconds = time.perf_counter() - self._started
            writer.add_scalar("cost/seconds", seconds, trainer.global_step)
            trained = pl_module.num_trainable
            writer.add_scalar("cost/trained_parameters", trained, trainer.global_step)


def _scores(trainer: L.Trainer, stage: str) -> dict[str, float]:
    """The last evaluation's scores, without those of groups of questions."""
    return _of_whole_sets(
        {
            name.removeprefix(stage): float(value)
            for name, value in trainer.callback_metrics.items()
            if name.startswith(stage)
        }
    )


def _of_whole_sets(scores: Mapping[str, float]) -> dict[str, float]:
    return {name: value for name, value in scores.items() if "=" not in name}


def _headlines(module: Any) -> list[str]:
    """The score of every evaluation set that stands for it, as SET/SCORE."""
    found = []
    for each in module.evaluation_sets:
        scorer = module.scorer(each.name)
        found.append(f"{each.name}/{scorer.headline if scorer is not None else 'loss_nats'}")
    return found


def start_of(module: Any) -> str:
    """What a model answers as before it is trained: `anchor_alone`, or `before_training`.

    Args:
        module: The `CalmModule`.
    """
    as_anchor = "starts_as_anchor" not in module.composition.exempt and module.start_from is None
    return "anchor_alone" if as_anchor else "before_training"


def layout_of(module: Any) -> Layout:
    """Charts of Custom Scalars; the first one says whether it works.

    Args:
        module: The `CalmModule`, built.
    """
    # One chart a set: TensorBoard gives all lines of a run one colour, and tells two by their
    # points. The level one is in view however the axis is cut, for half of all points are its own.
    start = start_of(module)
    works = {
        name.replace("/", ": "): _lines(f"val/{name}", f"{start}/{name}")
        for name in _headlines(module)
    }
    works["training loss, nats per token"] = _lines("train/loss_nats")
    level = start.replace("_", " ")
    layout = {f"Does it work? (validation; level line: {level})": works}
    if isinstance(module.language_model, ComposedModel):
        names = [tag_of(connection) for connection in module.language_model.connections]
        layout["What crosses the connections"] = {
            title: _lines(*(f"connections/{measure}/{name}" for name in names))
            for title, measure in (
                ("norm added, over that of the anchor's state", "added_share"),
                ("attention entropy, nats", "attention_entropy"),
                ("attention distance, tokens", "attention_distance"),
            )
        }
    layout["How it trains"] = {
        "learning rate": _lines("train/learning_rate"),
        "gradient norm": _lines("train/gradient_norm"),
        "held-out losses, nats per token": _lines(
            *(f"val/{each.name}/loss_nats" for each in module.evaluation_sets)
        ),
        "training loss, nats per character": _lines("train/loss_nats_per_character"),
        "examples per second": _lines("speed/examples_per_second"),
        "most memory held, MiB": _lines("memory/peak_mib"),
    }
    return layout


def _lines(*tags: str) -> list[Any]:
    """A chart of these tags and of no other that begins alike: TensorBoard takes patterns."""
    return ["Multiline", [f"^{re.escape(tag)}$" for tag in tags]]


def hyper_parameters(config: Mapping[str, Any]) -> dict[str, str | int | float | bool]:
    """The settings of a run, flat, without what was left open.

    Args:
        config: As config.yaml holds it.
    """
    told = {name: config[name] for name in _TOLD if name in config}
    if isinstance(trainer := told.get("trainer"), dict):
        told["trainer"] = {name: trainer.get(name) for name in _TRAINER}
    return {name: value for name, value in _flat(told, "") if value is not None}


def _flat(value: Any, name: str) -> Iterator[tuple[str, str | int | float | bool | None]]:
    if isinstance(value, Mapping) and value:
        for key, inner in value.items():
            yield from _flat(inner, f"{name}.{key}" if name else str(key))
    elif isinstance(value, list) and any(isinstance(inner, Mapping) for inner in value):
        for place, inner in enumerate(value):
            yield from _flat(inner, f"{name}.{place}")
    elif value is None or isinstance(value, str | int | float | bool):
        yield name.replace(".init_args", ""), value
    else:
        yield name.replace(".init_args", ""), str(value)


def _write_hyper_parameters(
    writer: "SummaryWriter", parameters: Mapping[str, Any], scores: list[str]
) -> None:
    """The settings, and the tags under which their scores are logged.

    Neither `add_hparams` (a run of its own for each call) nor the logger's `log_hyperparams` (it
    logs values of its own at once, which would stand in the curves) does just that.
    """
    from torch.utils.tensorboard.summary import hparams

    for summary in hparams(dict(parameters), dict.fromkeys(scores, 0.0)):
        writer._get_file_writer().add_summary(summary)
