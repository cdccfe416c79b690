"""What a fit shows in TensorBoard: tags and values, read back from its files."""

import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
import yaml
from lightning.pytorch.loggers import TensorBoardLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.custom_scalar import layout_pb2
from tensorboard.plugins.hparams import plugin_data_pb2

from calm_lightning.callbacks import Dashboard, LookInside, MeasureTraining, ShowAnswers
from calm_lightning.callbacks.dashboard import hyper_parameters
from calm_lightning.callbacks.tensorboard import RunLogger, as_code, logger_of, markdown_table
from calm_lightning.contracts import (
    CalmError,
    Composition,
    EvaluationSet,
    ExactMatch,
    Example,
    Task,
)
from calm_lightning.module import CalmModule
from calm_lightning.run import quiet_libraries
from calm_lightning.testing import TinySource
from calm_plugins.compositions.cross_attention import CrossAttention
from calm_plugins.compositions.cross_attention.composition import CrossAttentionBridge
from calm_plugins.compositions.linear import LinearBridge
from calm_plugins.compositions.lora import LoRA
from calm_plugins.compositions.routing import Ensemble

SUMS = [Example(f"{n}+1=", str(n + 1)) for n in range(8)]
CONFIG = {"seed_everything": 7, "model": {"warmup_steps": 1}, "data": {"init_args": {"x": [1, 2]}},
          "trainer": {"max_steps": 4, "callbacks": None}}  # fmt: skip
CONNECTIONS = ["0.1-1", "0.3-3"]


class Sums(Task):
    """Sums to be answered, and a set whose loss alone is wanted."""

    def train_examples(self) -> Sequence[Example]:
        return SUMS

    def evaluation_sets(self) -> Sequence[EvaluationSet]:
        return [
            EvaluationSet("sums", SUMS[:4], ExactMatch, max_new_tokens=3),
            EvaluationSet("texts", SUMS[:3], None),
        ]


def fit(
    folder: Path, composition: Composition, callbacks: Sequence[L.Callback], **options: Any
) -> CalmModule:
    quiet_libraries()
    torch.manual_seed(0)
    augmenting = [] if isinstance(composition, LoRA) else [TinySource(1)]
    module = CalmModule(TinySource(0), composition, augmenting, warmup_steps=1)
    logger = TensorBoardLogger(folder, name="", version="", default_hp_metric=False)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.yaml").write_text(yaml.safe_dump(CONFIG))
    given = {
        "accelerator": "cpu", "logger": logger, "enable_progress_bar": False, "max_steps": 4,
        "enable_model_summary": False, "enable_checkpointing": False, "num_sanity_val_steps": 0,
        "log_every_n_steps": 2, "val_check_interval": 2, "check_val_every_n_epoch": None,
        "use_distributed_sampler": False, "callbacks": list(callbacks), **options,
    }  # fmt: skip
    trainer = L.Trainer(**given)
    task = Sums(batch_size=4)
    trainer.validate(module, datamodule=task, verbose=False)
    trainer.fit(module, datamodule=task)
    trainer.test(module, datamodule=task, verbose=False)
    if trainer.logger is not None:
        trainer.logger.finalize("success")
    return module


def everything() -> list[L.Callback]:
    return [MeasureTraining(), LookInside(sets=2), ShowAnswers(examples=2), Dashboard()]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    fit(folder, CrossAttention(every=2), everything())
    return folder


def events(folder: Path) -> EventAccumulator:
    found = EventAccumulator(str(folder), {"images": 0, "tensors": 0}, purge_orphaned_data=False)
    found.Reload()
    return found


def values(folder: Path, tag: str) -> dict[int, float]:
    return {event.step: event.value for event in events(folder).Scalars(tag)}


def text(folder: Path, tag: str) -> str:
    (*_, last) = events(folder).Tensors(f"{tag}/text_summary")
    return str(last.tensor_proto.string_val[0].decode())


# ------------------------------------------------------------------ numbers


def test_the_learning_rate_is_that_of_the_schedule(run: Path) -> None:
    rates = values(run, "train/learning_rate")
    assert list(rates) == [1, 3]  # Lightning counts the batches before a step
    assert rates[1] > rates[3] > 0


def test_the_loss_per_character_is_the_loss_of_tokens_shared_out(run: Path) -> None:
    """Every target is one digit, and one more token ends the text."""
    tokens, characters = (
        values(run, "train/loss_nats"),
        values(run, "train/loss_nats_per_character"),
    )
    assert list(characters) == [1, 3]
    for step, value in characters.items():
        assert value == pytest.approx(2 * tokens[step], rel=1e-4)


def test_speed_and_memory_are_told(run: Path) -> None:
    for tag in ("speed/examples_per_second", "speed/characters_per_second", "memory/peak_mib"):
        assert all(value > 0 for value in values(run, tag).values())
    examples, characters = (
        values(run, f"speed/{what}_per_second") for what in ("examples", "characters")
    )
    for step, value in characters.items():
        assert value == pytest.approx(5 * examples[step])  # "1+1=" and "2"


@pytest.mark.parametrize("name", CONNECTIONS)
def test_a_fresh_connection_adds_nothing_and_a_trained_one_does(run: Path, name: str) -> None:
    shares = values(run, f"connections/added_share/{name}")
    assert list(shares) == [0, 2, 4]
    assert shares[0] == 0 < shares[2] < shares[4]
    entropies = values(run, f"connections/attention_entropy/{name}")
    assert all(0 < value < math.log(6) for value in entropies.values())
    distances = values(run, f"connections/attention_distance/{name}")
    assert all(0 < value < 5 for value in distances.values())


def test_what_it_cost_is_told_at_the_end(run: Path) -> None:
    assert values(run, "cost/seconds")[4] > 0
    trained = values(run, "cost/trained_parameters")[4]
    assert trained == 2 * (5 * 32 * 32 + 32)


# ------------------------------------------------------------------ pictures and texts


def test_heat_maps_are_drawn_over_training(run: Path) -> None:
    found = events(run)
    tags = {f"attention/text_{n}/{name}" for n in (0, 1) for name in CONNECTIONS}
    assert set(found.Tags()["images"]) == tags
    for tag in tags:
        images = found.Images(tag)
        assert [image.step for image in images] == [0, 2, 4]
        assert images[0].encoded_image_string.startswith(b"\x89PNG")


def test_samples_stand_beside_those_of_the_parts(run: Path) -> None:
    header, _, *rows = text(run, "samples").splitlines()
    cells = [cell.strip() for cell in header.strip("|").split("|")]
    assert cells == ["set", "prompt", "target", "composed", "anchor alone",
                     "augmenting model alone"]  # fmt: skip
    assert len(rows) == 2  # those of the set that is answered
    assert rows[0].startswith("| sums | `0+1=` | `1` |")


def test_frozen_parts_are_asked_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    from calm_lightning.parts import Part

    answer = Part.answer
    monkeypatch.setattr(
        Part, "answer", lambda part, *a, **k: (asked.append(part.label), answer(part, *a, **k))[1]
    )
    fit(tmp_path, CrossAttention(every=2), [ShowAnswers(examples=1)])
    assert asked.count("composed") == 3
    assert asked.count("anchor alone") == asked.count("augmenting model alone") == 1


def test_scores_are_a_table_with_those_before_training(run: Path) -> None:
    header, _, *rows = text(run, "scores/validation").splitlines()
    assert header == "| set | score | before training | now |"
    found = {tuple(row.strip("| ").split(" | ")[:2]): row for row in rows}
    losses = values(run, "val/sums/loss_nats")
    first, last = min(losses), max(losses)
    row = found["sums", "loss_nats"]
    assert row.endswith(f"| {losses[first]:.4f} | {losses[last]:.4f} |")


def test_the_test_has_a_table_of_its_own(run: Path) -> None:
    header, _, *rows = text(run, "scores/test").splitlines()
    assert header == "| set | score | now |"
    (loss,) = values(run, "test/texts/loss_nats").values()
    assert f"| texts | loss_nats | {loss:.4f} |" in rows


# ------------------------------------------------------------------ first screen, settings


def layout(folder: Path) -> layout_pb2.Layout:
    (event,) = events(folder).Tensors("custom_scalars__config__")
    return layout_pb2.Layout.FromString(event.tensor_proto.string_val[0])


def test_every_chart_of_the_first_screen_has_lines(run: Path) -> None:
    tags = events(run).Tags()["scalars"]
    found = layout(run)
    assert found.category[0].title.startswith("Does it work?")
    first = [chart.title for chart in found.category[0].chart]
    assert first == ["sums: accuracy", "texts: loss_nats", "training loss, nats per token"]
    for category in found.category:
        for chart in category.chart:
            for pattern in chart.multiline.tag:
                assert len([tag for tag in tags if re.match(pattern, tag)]) == 1, pattern


def test_the_anchors_own_score_is_a_level_line_of_every_first_chart(tmp_path: Path) -> None:
    module = fit(tmp_path, CrossAttention(every=4), [Dashboard()])
    quiet = {"logger": False, "enable_progress_bar": False, "enable_checkpointing": False}
    trainer = L.Trainer(accelerator="cpu", use_distributed_sampler=False, **quiet)
    with module.language_model.anchor_only():
        trainer.validate(module, datamodule=Sums(batch_size=4), verbose=False)
    scores = {name: float(value) for name, value in trainer.callback_metrics.items()}
    first = layout(tmp_path).category[0]
    assert first.title == "Does it work? (validation; level line: anchor alone)"
    for name, chart in zip(("sums/accuracy", "texts/loss_nats"), first.chart, strict=False):
        assert list(chart.multiline.tag) == [f"^val/{name}$", f"^anchor_alone/{name}$"]
        wanted = pytest.approx(scores[f"val/{name}"], rel=1e-6)
        assert values(tmp_path, f"anchor_alone/{name}") == {0: wanted, 2: wanted, 4: wanted}
    losses = values(tmp_path, "val/texts/loss_nats")
    assert losses[max(losses)] < losses[0] == pytest.approx(scores["val/texts/loss_nats"], rel=1e-6)


def test_a_model_that_begins_otherwise_is_not_compared_with_its_anchor(tmp_path: Path) -> None:
    fit(tmp_path, Ensemble(), [Dashboard()])
    assert layout(tmp_path).category[0].title.endswith("level line: before training)")
    lines = [values(tmp_path, f"{start}/texts/loss_nats") for start in ("val", "before_training")]
    assert lines[1] == dict.fromkeys((0, 2, 4), lines[0][0])
    assert not [tag for tag in events(tmp_path).Tags()["scalars"] if "anchor_alone" in tag]


def test_the_level_line_is_in_checkpoints_for_runs_that_go_on() -> None:
    dashboard, checkpoint = Dashboard(), {"scores_before_training": {"sums/accuracy": 0.25}}
    dashboard.on_load_checkpoint(L.Trainer.__new__(L.Trainer), None, checkpoint)
    kept: dict[str, Any] = {}
    dashboard.on_save_checkpoint(L.Trainer.__new__(L.Trainer), None, kept)
    assert kept == checkpoint
    dashboard.on_load_checkpoint(L.Trainer.__new__(L.Trainer), None, {})  # of an older version


@pytest.mark.parametrize("said", [5, [1.0], {"a": "high"}, {1: 1.0}, {"a": None}])
def test_a_checkpoint_with_other_scores_is_refused(said: Any) -> None:
    with pytest.raises(CalmError, match="scores_before_training"):
        Dashboard().on_load_checkpoint(
            L.Trainer.__new__(L.Trainer), None, {"scores_before_training": said}
        )


def test_a_look_at_a_trained_run_is_not_one_before_training(tmp_path: Path) -> None:
    dashboard = Dashboard()
    module = fit(tmp_path, CrossAttention(every=4), [dashboard])
    before = dict(dashboard._before)
    trainer = L.Trainer(accelerator="cpu", logger=False, enable_progress_bar=False,
                        use_distributed_sampler=False, callbacks=[dashboard])  # fmt: skip
    checkpoint = tmp_path / "last.ckpt"
    module.trainer.save_checkpoint(checkpoint)
    trainer.validate(module, datamodule=Sums(batch_size=4), ckpt_path=checkpoint, verbose=False)
    assert dashboard._before == before != {}


def test_hyper_parameters_stand_beside_the_scores_that_are_logged(run: Path) -> None:
    found = events(run)
    contents = {
        tag: plugin_data_pb2.HParamsPluginData.FromString(content)
        for tag, content in found.PluginTagToContent("hparams").items()
    }
    experiment = contents["_hparams_/experiment"].experiment
    metrics = {info.name.tag for info in experiment.metric_infos}
    assert metrics == {f"{stage}/{score}" for stage in ("val", "test")
                       for score in ("sums/accuracy", "texts/loss_nats")}  # fmt: skip
    assert metrics <= set(found.Tags()["scalars"])
    assert "hp_metric" not in found.Tags()["scalars"]
    settings = contents["_hparams_/session_start_info"].session_start_info.hparams
    assert {name: v.number_value or v.string_value for name, v in settings.items()} == {
        "seed_everything": 7, "model.warmup_steps": 1, "data.x": "[1, 2]", "trainer.max_steps": 4,
    }  # fmt: skip


def test_settings_are_told_flat_and_without_what_was_left_open() -> None:
    told = hyper_parameters(
        {
            "model": {"anchor": {"path": "a", "dtype": None}, "augmenting": [{"path": "b"}]},
            "data": {"class_path": "x.Sums", "init_args": {"up_to": 3, "mixture": {}}},
            "run": "here",
        }
    )
    assert told == {
        "model.anchor.path": "a", "model.augmenting.0.path": "b", "data.class_path": "x.Sums",
        "data.up_to": 3, "data.mixture": "{}",
    }  # fmt: skip


# ------------------------------------------------------------------ what does not apply


def test_a_bridge_that_does_not_attend_has_its_strength_alone(tmp_path: Path) -> None:
    fit(tmp_path, LinearBridge(every=4), everything())
    tags = events(tmp_path).Tags()
    assert [tag for tag in tags["scalars"] if tag.startswith("connections/")] == [
        "connections/added_share/0.3-3"
    ]
    assert not tags["images"]


def test_a_model_without_connections_shows_everything_else(tmp_path: Path) -> None:
    fit(tmp_path, LoRA(rank=2), everything())
    tags = events(tmp_path).Tags()
    assert not [tag for tag in tags["scalars"] if tag.startswith("connections/")]
    assert "train/learning_rate" in tags["scalars"]
    assert [category.title for category in layout(tmp_path).category][1:] == ["How it trains"]
    assert "| composed | anchor alone |" in text(tmp_path, "samples")


def test_no_empty_table_of_hyper_parameters_is_left_behind(tmp_path: Path) -> None:
    logger = RunLogger(tmp_path, name="", version="", default_hp_metric=False)
    fit(tmp_path, CrossAttention(every=4), [], logger=logger)
    assert list(tmp_path.glob("events*"))
    assert not (tmp_path / "hparams.yaml").exists()


def test_without_tensorboard_nothing_is_written_and_nothing_fails(tmp_path: Path) -> None:
    fit(tmp_path, CrossAttention(every=4), everything(), logger=False)
    assert not list(tmp_path.glob("events*"))


def test_other_processes_than_the_first_do_not_write(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    logger = TensorBoardLogger(tmp_path)
    trainer = L.Trainer(logger=logger, accelerator="cpu", enable_checkpointing=False)
    assert logger_of(trainer) is logger
    monkeypatch.setattr(L.Trainer, "is_global_zero", False)
    assert logger_of(trainer) is None
    fit(tmp_path / "run", CrossAttention(every=4), everything()[1:])
    assert not events(tmp_path / "run").Tags()["images"]
    assert not events(tmp_path / "run").Tags()["tensors"]


def test_showing_a_run_changes_no_number_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    attended: list[bool] = []
    attention = CrossAttentionBridge.attention

    def counted(bridge: Any, *given: Any) -> Any:
        attended.append(bridge.training)
        return attention(bridge, *given)

    monkeypatch.setattr(CrossAttentionBridge, "attention", counted)
    composition = CrossAttention(every=4, state_noise=0.1)
    shown = fit(tmp_path / "shown", composition, everything())
    assert attended == [False] * 6  # two texts at three validations, and never in a step
    plain = fit(tmp_path / "plain", composition, [])
    ours, theirs = (dict(m.language_model.trainable_parameters()) for m in (shown, plain))
    assert ours.keys() == theirs.keys()
    for name, weight in ours.items():
        assert torch.equal(weight, theirs[name])


@pytest.mark.parametrize(
    ("kind", "options"),
    [(LookInside, {"sets": -1}), (ShowAnswers, {"examples": -1}), (ShowAnswers, {"sets": -2}),
     (ShowAnswers, {"max_new_tokens": 0})],
)  # fmt: skip
def test_settings_out_of_range(kind: Any, options: dict[str, int]) -> None:
    with pytest.raises(CalmError, match=next(iter(options))):
        kind(**options)


def test_any_text_is_one_cell_of_a_table() -> None:
    hostile = "a|b\n`c` <script>alert(1)</script>\r\n"
    line = markdown_table(["one", "two"], [[as_code(hostile), as_code("  ")]]).splitlines()[-1]
    assert line.count("|") == 3
    assert line.count("`") == 2
    assert line.endswith("| \N{EN DASH} |")
    assert len(as_code("x" * 1000)) < 500
