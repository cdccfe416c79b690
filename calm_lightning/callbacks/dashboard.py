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

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

Layout = dict[str, dict[str, list[Any]]]

_TOLD = ("model", "data", "trainer", "seed_everything")
_TRAINER = ("precision", "max_steps", "max_epochs", "accumulate_grad_batches", "gradient_clip_val")


class Dashboard(L.Callback):
    """Writes, once: the layout of Custom Scalars and the hyper-parameters with their scores.

    And at every evaluation its scores as a text, `scores/validation` or `scores/test`, and at the
    end of a fit `cost/seconds` and `cost/trained_parameters`.

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
        config = Path(logger.log_dir, "config.yaml")
        if config.is_file():
            said = yaml.safe_load(config.read_text(encoding="utf-8"))
            _write_hyper_parameters(writer, hyper_parameters(said), _headlines(pl_module))

    @override
    def on_validation_end(self, trainer: L.Trainer, pl_module: Any) -> None:
        if trainer.sanity_checking or trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        scores = _scores(trainer, "val/")
        if trainer.state.fn == TrainerFn.VALIDATING and not trainer.global_step:
            self._before = scores  # `calm fit` looks before it trains
        self._tell(trainer, "scores/validation", self._before, scores)

    @override
    def on_test_end(self, trainer: L.Trainer, pl_module: Any) -> None:
        self._tell(trainer, "scores/test", {}, _scores(trainer, "test/"))

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
    return {
        name.removeprefix(stage): float(value)
        for name, value in trainer.callback_metrics.items()
        if name.startswith(stage) and "=" not in name
    }


def _headlines(module: Any) -> list[str]:
    """Tag of the score of every evaluation set that stands for it."""
    found = []
    for each in module.evaluation_sets:
        scorer = module.scorer(each.name)
        score = scorer.headline if scorer is not None else "loss_nats"
        found += [f"val/{each.name}/{score}", f"test/{each.name}/{score}"]
    return found


def layout_of(module: Any) -> Layout:
    """Charts of Custom Scalars; the first one says whether it works.

    Args:
        module: The `CalmModule`, built.
    """
    # One chart a set: TensorBoard gives all lines of a run one colour.
    headlines = [tag for tag in _headlines(module) if tag.startswith("val/")]
    works = {tag.removeprefix("val/").replace("/", ": "): _lines(tag) for tag in headlines}
    works["training loss, nats per token"] = _lines("train/loss_nats")
    layout = {"Does it work? (validation; step 0 is the anchor alone)": works}
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
