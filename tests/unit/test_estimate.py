"""`calm estimate`: its figures are those of the real thing, and its plans follow from them."""

import sys
from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

import calm_lightning as calm
from calm_lightning import cli
from calm_lightning.backbone import Backbone, BackboneSource
from calm_lightning.contracts import CalmError, Composition
from calm_lightning.estimate import (
    Estimate,
    Setting,
    Work,
    estimate,
    plan_generation,
    plan_training,
    share,
)
from calm_lightning.estimate.command import EstimateCLI, processes_of, setting_of
from calm_lightning.estimate.figures import Generation, Training
from calm_lightning.estimate.gpus import USABLE, most_rows
from calm_lightning.estimate.heap import Heap
from calm_lightning.estimate.trace import Trace, size_of, strip, without_data
from calm_lightning.estimate.units import Call, Unit, Units
from calm_lightning.language_model import PlainModel
from calm_lightning.quantization import FORMATS, Quantization
from calm_lightning.testing import tiny_tokenizer
from calm_lightning.testing.tiny import tiny_config
from calm_plugins.compositions.cross_attention import CrossAttention
from calm_plugins.compositions.lora import LoRA
from calm_plugins.compositions.single import Single

ROWS, LENGTH, VOCABULARY = 4, 24, 97
FLOAT, MIB = 4, 2**20
ONE = CrossAttention(connections=[(1, 0)])
LAST = CrossAttention(connections=[(2, 1)])
WHOLE = Single(train=True)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two folders with a config and a tokenizer, and no weights."""
    home = tmp_path_factory.mktemp("home")
    for name, (width, layers) in {"anchor": (32, 2), "augmenting": (24, 3)}.items():
        tiny_config("llama", width, layers, VOCABULARY).save_pretrained(home / name)
        tiny_tokenizer(VOCABULARY).save_pretrained(home / name)
    return home


def source(home: Path, name: str, **options: Any) -> BackboneSource:
    return BackboneSource(str(home / name), **options)


@cache
def told(home: Path, composition: Composition, rows: int = ROWS, **options: Any) -> Estimate:
    setting = Setting(source(home, "anchor"), [source(home, "augmenting")], composition)
    return estimate(setting, rows, length=LENGTH, **options)


@pytest.fixture(scope="module")
def usual(home: Path) -> Estimate:
    return told(home, ONE)


def real(home: Path, composition: Composition) -> Any:
    """The same model with weights."""
    sources = [source(home, name, weights="random") for name in ("anchor", "augmenting")]
    return calm.compose(sources[0], sources[1:], composition).train()  # type: ignore[attr-defined]


def training(estimated: Estimate) -> Training:
    assert estimated.training is not None
    return estimated.training


# ---------------------------------------------------------------- tracing


def test_a_trace_counts_what_exists_and_what_was_most() -> None:
    with without_data(), Trace() as trace:
        a, b = torch.zeros(5, 3), torch.zeros(3, 7)
        product = a @ b
        view = product[1:]
        assert trace.live == FLOAT * (5 * 3 + 3 * 7 + 5 * 7)
        assert trace.flops == 2 * 5 * 3 * 7
        del product
        assert trace.live == trace.peak  # the view keeps it
        del view
        assert trace.live == FLOAT * (5 * 3 + 3 * 7)
        assert trace.peak == FLOAT * (5 * 3 + 3 * 7 + 5 * 7)
        trace.restart()
        assert (trace.peak, trace.flops) == (trace.live, 0)


def test_a_trace_knows_how_much_a_mask_selects_if_it_is_told() -> None:
    with without_data(), Trace({(4, 6): 9}):
        assert torch.zeros(4, 6, 3)[torch.ones(4, 6).bool()].shape == (9, 3)


def test_tied_weights_stay_tied_without_data() -> None:
    module = torch.nn.ModuleList([torch.nn.Linear(3, 5, bias=False) for _ in range(2)])
    module[1].weight = module[0].weight
    with without_data():
        strip(module)
        assert module[0].weight is module[1].weight
        assert size_of([module[0].weight, module[1].weight]) == FLOAT * 15


# ---------------------------------------------------------------- a processor's allocator


def test_large_blocks_are_given_back_until_one_was() -> None:
    heap = Heap()
    free = heap.take(20 * MIB)
    assert heap.resident == pytest.approx(20 * MIB, rel=0.01)
    free()
    assert heap.resident == 0
    heap.take(20 * MIB)()  # blocks of this size come from the heap from now on
    assert heap.resident == heap.peak == pytest.approx(20 * MIB, rel=0.01)
    heap.take(40 * MIB)()  # larger ones do not; they fit in no hole either
    assert heap.resident == pytest.approx(20 * MIB, rel=0.01)


def test_a_hole_is_filled_by_what_fits_and_by_nothing_larger() -> None:
    # One of the same size would have to be aligned, so it does not fit.
    for size, grows in ((100_000, True), (60_000, False)):
        heap = Heap()
        blocks = [(heap.take(100_000), heap.take(1_000)) for _ in range(5)]
        for free, _ in blocks:
            free()
        held = heap.resident
        for _ in blocks:
            heap.take(size)
        assert (heap.resident > held) == grows


def test_neighbouring_holes_become_one() -> None:
    heap = Heap()
    first, second = heap.take(50_000), heap.take(50_000)
    heap.take(1_000)
    second()
    first()
    held = heap.resident
    heap.take(99_000)
    assert heap.resident == held


def test_only_on_a_processor_there_is_more_than_tensors(home: Path, usual: Estimate) -> None:
    setting = Setting(source(home, "anchor"), [source(home, "augmenting")], ONE, on_gpu=False)
    here = estimate(setting, ROWS, length=LENGTH)
    assert (usual.program, training(usual).kept_free, usual.generation.kept_free) == (0, 0, 0)
    assert here.program > 100 * MIB
    assert training(here).kept_free > 0
    more = training(here).total - training(usual).total
    assert more == pytest.approx(training(here).kept_free, abs=training(usual).step)


# ---------------------------------------------------------------- weights


@pytest.mark.parametrize("composition", [ONE, WHOLE, Single(use=0), LoRA(rank=2)])
@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing")
def test_weights_are_those_of_the_real_model(home: Path, composition: Composition) -> None:
    model = real(home, composition)
    estimated = told(home, composition)
    weights = list(model.parameters())
    assert sum(part.weights for part in estimated.parts) == sum(p.numel() for p in weights)
    trained = sum(p.numel() for p in weights if p.requires_grad)
    assert sum(part.trained for part in estimated.parts) == trained
    assert estimated.generation.weights == size_of([*weights, *model.buffers()])
    assert (estimated.training is None) == (trained == 0)
    if estimated.training is not None:
        assert estimated.training.gradients == FLOAT * trained
        state = 2 * FLOAT * trained + FLOAT * len([p for p in weights if p.requires_grad])
        assert estimated.training.optimizer == state  # AdamW: two moments and a step count


def test_neither_weights_nor_a_tokenizer_are_needed(tmp_path: Path) -> None:
    tiny_config("llama", 32, 2, VOCABULARY).save_pretrained(tmp_path)
    alone = Setting(BackboneSource(str(tmp_path)), [], WHOLE)
    assert estimate(alone, ROWS, length=LENGTH).parts[0].weights > 0


def test_parts_are_named_and_only_bridges_are_trained(home: Path, usual: Estimate) -> None:
    assert [(p.name, p.trained > 0) for p in usual.parts] == [
        ("anchor", False), ("augmenting 0", False), ("bridges", True),
    ]  # fmt: skip
    model = real(home, ONE)
    assert usual.parts[1].weights == sum(p.numel() for p in model.augmenting.parameters())


def test_weights_have_the_dtype_that_was_asked_for(home: Path) -> None:
    setting = Setting(
        source(home, "anchor", dtype="bfloat16"), [source(home, "augmenting", dtype="auto")], ONE
    )
    anchor, augmenting, bridges = estimate(setting, ROWS, length=LENGTH).parts
    assert anchor.size == 2 * anchor.weights
    assert augmenting.size == FLOAT * augmenting.weights
    assert bridges.size == FLOAT * bridges.weights


def test_quantised_weights_need_their_library_only_to_be_read(home: Path, usual: Estimate) -> None:
    name: Quantization = "bitsandbytes_nf4"
    plain = source(home, "anchor")
    setting = Setting(plain, [source(home, "augmenting")], ONE)
    after = estimate(
        replace(setting, anchor=replace(plain, quantization=name)), ROWS, length=LENGTH
    )
    model = real(home, ONE)
    matrices = list(FORMATS[name].matrices(model.anchor))
    saved = sum(m.nbytes - FORMATS[name].size(m) for m in matrices)
    assert len(matrices) == 2 * 7
    assert usual.parts[0].size - after.parts[0].size == saved
    assert training(usual).weights - training(after).weights == saved
    unpacked = max(m.nbytes for m in matrices)
    assert training(after).temporary - training(usual).temporary == unpacked


def test_what_is_outside_the_layers_and_in_them_is_all(home: Path, usual: Estimate) -> None:
    model = real(home, ONE)
    sizes = [size_of(layer.parameters()) for b in model.backbones for layer in b.layers]
    assert usual.largest_layer == max(sizes)
    assert usual.outside_layers == usual.generation.weights - sum(sizes)


# ---------------------------------------------------------------- a training step


def kept_for_backward(model: Any, rows: int) -> int:
    """Bytes that a real forward pass keeps, weights not counted."""
    ids = torch.ones(rows, LENGTH, dtype=torch.long)
    mask = ids.clone()
    mask[0, -1] = 0
    labels = ids.masked_fill(mask == 0, -100)
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss = model(input_ids=ids, attention_mask=mask, labels=labels).loss
    own = {t.untyped_storage().data_ptr() for t in (*model.parameters(), *model.buffers())}
    assert loss.requires_grad
    return sum(size for place, size in kept.items() if place not in own)


@pytest.mark.parametrize("composition", [ONE, LAST, WHOLE])
def test_what_is_kept_is_what_a_real_step_keeps(home: Path, composition: Composition) -> None:
    estimated = training(told(home, composition))
    kept = kept_for_backward(real(home, composition), ROWS)
    # The batch is there as well.
    assert estimated.activations + estimated.logits == pytest.approx(kept, rel=0.03)


def test_what_varies_grows_with_the_rows_and_nothing_else_does(home: Path, usual: Estimate) -> None:
    one, two = training(usual), training(told(home, ONE, rows=2 * ROWS))
    assert two.fixed == one.fixed
    # Two maps of a bridge that are made one first cost the same for any number of rows.
    assert two.flops == pytest.approx(2 * one.flops, rel=0.02)
    assert two.activations == pytest.approx(2 * one.activations, rel=0.01)
    assert two.varying == pytest.approx(2 * one.varying, rel=0.05)


def test_the_head_runs_on_targets_only_and_a_frozen_one_holds_no_logits(
    home: Path, usual: Estimate
) -> None:
    assert training(usual).logits == 0
    assert training(told(home, WHOLE)).logits >= FLOAT * ROWS * (LENGTH - 1) * VOCABULARY
    few = training(told(home, ONE, targets=5))
    head = 2 * 32 * VOCABULARY  # of one token, forward; as much backward to the states
    assert training(usual).flops - few.flops == 2 * head * ROWS * (LENGTH - 6)


def test_the_augmenting_model_stops_at_its_last_tapped_layer(home: Path, usual: Estimate) -> None:
    lower = told(home, CrossAttention(connections=[(0, 0)]))
    layer = 24 * (24 + 12 + 12 + 24 + 3 * 48)  # multiplications of a token: queries to `down`
    attention = 2 * 24 * LENGTH
    assert training(usual).flops - training(lower).flops == 2 * ROWS * LENGTH * (layer + attention)
    assert training(lower).activations == training(usual).activations  # it keeps nothing


def test_the_anchor_keeps_nothing_below_the_first_connection(home: Path, usual: Estimate) -> None:
    higher = training(told(home, CrossAttention(connections=[(1, 1)])))
    assert higher.activations < 0.5 * training(usual).activations
    assert higher.flops < training(usual).flops


def test_an_optimizer_of_ones_own_is_asked_for_its_state(home: Path, usual: Estimate) -> None:
    setting = Setting(
        source(home, "anchor"),
        [source(home, "augmenting")],
        ONE,
        optimizer=lambda weights: torch.optim.SGD(weights, lr=0.1, momentum=0.9),
    )
    found = training(estimate(setting, ROWS, length=LENGTH))
    assert found.optimizer == found.gradients == training(usual).gradients


def test_on_a_gpu_the_optimizer_works_on_all_weights_at_a_time(home: Path) -> None:
    setting = Setting(source(home, "anchor"), [], Single(train=True))
    on_gpu, on_cpu = (
        training(estimate(replace(setting, on_gpu=on), ROWS, length=LENGTH)) for on in (True, False)
    )
    assert on_cpu.step < 0.5 * on_cpu.gradients
    assert on_gpu.gradients <= on_gpu.step < 1.2 * on_gpu.gradients


def test_mixed_precision_halves_what_it_computes_and_keeps_copies(
    home: Path, usual: Estimate
) -> None:
    setting = Setting(source(home, "anchor"), [source(home, "augmenting")], ONE)
    mixed = training(estimate(replace(setting, precision="bf16-mixed"), ROWS, length=LENGTH))
    full = training(usual)
    assert (mixed.weights, mixed.gradients) == (full.weights, full.gradients)
    # Copies of the frozen weights in half width are kept for the backward pass.
    assert 0.5 * full.activations < mixed.activations < full.activations


# ---------------------------------------------------------------- generation


def test_caches_hold_keys_and_values_of_all_three(home: Path, usual: Estimate) -> None:
    anchor = 2 * 2 * 16  # layers, keys and values, two heads of 8
    augmenting = 2 * 2 * 12  # the layers that are run
    bridge = 2 * 32
    assert usual.generation.caches == FLOAT * ROWS * LENGTH * (anchor + augmenting + bridge)


def test_answers_may_be_more_and_shorter_than_rows_of_training(home: Path, usual: Estimate) -> None:
    other = told(home, ONE, answered=3 * ROWS, new_tokens=2)
    assert other.generation.caches == 3 * usual.generation.caches
    assert other.generation.flops == 3 * usual.generation.flops
    assert other.generation.prompt_flops > 1.5 * 3 * usual.generation.prompt_flops
    assert training(other) == training(usual)


def test_another_tokenizer_is_taken_to_make_as_many_tokens(home: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    tiny_config("llama", 24, 4, 40).save_pretrained(other)
    tiny_tokenizer(40).save_pretrained(other)
    setting = Setting(source(home, "anchor"), [BackboneSource(str(other))], ONE)
    found = estimate(setting, ROWS, length=LENGTH)
    assert ["another tokenizer" in note for note in found.notes] == [True]


# ---------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rows": 0}, "--batch-size must be at least 1: got 0"),
        ({"targets": LENGTH}, f"--target-length .* at most {LENGTH - 1}, .*: got {LENGTH}"),
        ({"new_tokens": LENGTH}, "--new-tokens must be at least 1 and at most"),
        ({"answered": 0}, "--batch-size must be"),
    ],
)
def test_impossible_work_is_refused(home: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(CalmError, match=message):
        told(home, ONE, **options)


def test_a_length_beyond_the_context_is_refused(home: Path) -> None:
    setting = Setting(source(home, "anchor"), [source(home, "augmenting")], ONE)
    with pytest.raises(CalmError, match=r"--length 65: the context of .*anchor' holds 64 tokens"):
        estimate(setting, ROWS, length=65)


class Peeking(Composition):
    """Looks at values, while it is built or when it runs."""

    def __init__(self, early: bool = False) -> None:
        self.early = early

    def compose(self, anchor: Backbone, augmenting: Any) -> PlainModel:
        weight = next(anchor.model.parameters())
        if self.early and float(weight.sum()) > 0:
            weight.requires_grad_(True)
        anchor.layers[0].register_forward_hook(lambda layer, args, out: out * bool((out > 0).any()))
        return PlainModel(anchor, lambda folder: None)


@pytest.mark.parametrize("early", [True, False])
def test_what_depends_on_values_is_refused(home: Path, early: bool) -> None:
    with pytest.raises(CalmError, match=r"cannot be estimated.* values of"):
        told(home, Peeking(early))


# ---------------------------------------------------------------- plans


def figures(rows: int = 8, **changes: Any) -> Estimate:
    """An estimate in round numbers: 130 fixed, 40 a row."""
    step = Training(
        weights=100, gradients=10, optimizer=20, activations=240, logits=40, temporary=40, step=5,
        kept_free=0, flops=1,
    )  # fmt: skip
    return Estimate(
        Work(rows, 16, 15, 8, 4),
        (),
        replace(step, **changes),
        Generation(weights=100, caches=80, temporary=20, kept_free=0, prompt_flops=1, flops=1),
        program=0,
        largest_layer=6,
        outside_layers=8,
    )


def training_plan(usable: float, **changes: Any) -> tuple[str, int, int, int] | None:
    plan = plan_training(figures(**changes), usable / USABLE)
    return plan and (plan.strategy, plan.gpus, plan.rows, plan.size)


@pytest.mark.parametrize(
    ("usable", "expected"),
    [
        (450, ("one GPU", 1, 8, 450)),
        (449, ("DDP", 2, 4, 300)),  # and a copy of the gradients
        (220, ("DDP", 4, 2, 220)),
        (219, ("DDP", 8, 1, 180)),
        (179, ("FSDP2", 4, 2, 143)),  # 130 / 4 + 8 + 2 * 6 + 10 gradients + 2 * 40
        (142, ("FSDP2", 5, 2, 136)),
        (128, ("FSDP2", 8, 1, 87)),
        (70, None),
    ],
)
def test_the_simplest_strategy_that_fits_is_planned(usable: float, expected: Any) -> None:
    assert training_plan(usable + 0.01) == expected


def test_an_optimizer_step_may_need_more_than_the_batch() -> None:
    assert training_plan(530.01, step=400) == ("one GPU", 1, 8, 530)


@pytest.mark.parametrize(
    ("usable", "expected"), [(200, ("one GPU", 1)), (199, ("device_map: auto", 2)), (20, None)]
)
def test_generation_shares_out_layers(usable: float, expected: Any) -> None:
    plan = plan_generation(figures(), (usable + 0.01) / USABLE)
    assert (plan and (plan.strategy, plan.gpus)) == expected


def test_a_gpu_holds_so_many_rows() -> None:
    assert most_rows(figures(), 250.01 / USABLE) == (3, 12)
    assert most_rows(figures(), 90 / USABLE) == (0, 0)


# ---------------------------------------------------------------- the command


SMOKE = ["--config", "configs/smoke/key_value.yaml"]


@pytest.fixture
def at_root(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.chdir(Path(__file__).parents[2])
    return


@pytest.mark.usefixtures("at_root")
def test_the_command_takes_what_fit_takes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    later = tmp_path / "later.yaml"
    later.write_text("data: {init_args: {batch_size: 3}}\nckpt_path: null\n")
    cli.main(
        ["estimate", *SMOKE, "--config", str(later), "--gpu-memory", "24",
         "--model.composition.connections", "[[0, 1]]"]
    )  # fmt: skip
    said = capsys.readouterr().out
    assert "Training on 3 rows of 128 tokens, 127 of them learnt" in said  # the context
    assert "Generation of 64 tokens after 64, 64 rows at a time" in said
    assert "One GPU of 24 GiB" in said
    (line,) = [line for line in said.splitlines() if line.startswith("bridges")]
    assert line.split()[1] == line.split()[2] == "4,640"
    assert sum(line.startswith("program") for line in said.splitlines()) == 1  # on a processor


@pytest.mark.usefixtures("at_root")
@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--gpu-memory", "0"], "--gpu-memory must be above 0 GiB: got 0"),
        (["--gpu-memory", "inf"], "Expected a float. Got value: inf"),
        (["--batch-size", "-1"], "--batch-size must be at least 1: got -1"),
        (["--model.anchor.path", "nowhere/at/all"], "'nowhere/at/all' does not exist"),
        (["--model.composition", "CrossAtention"], "Did you mean CrossAttention?"),
        (["--model.composition.every", "0"], "every=0 must be at least 1"),
        (["--lenght", "3"], "lenght"),
    ],
)
def test_faults_are_told_as_by_fit(
    capsys: pytest.CaptureFixture[str], more: list[str], message: str
) -> None:
    with pytest.raises(SystemExit) as end:
        cli.main(["estimate", *SMOKE, *more])
    said = capsys.readouterr()
    assert end.value.code == 2
    assert message in said.err
    assert "Traceback" not in said.err


@pytest.mark.usefixtures("at_root")
@pytest.mark.parametrize(("said", "taken"), [("transformer-engine", "32-true"), ("16", "16-mixed")])
def test_precision_is_taken_as_the_trainer_names_it(
    monkeypatch: pytest.MonkeyPatch, said: str, taken: str
) -> None:
    monkeypatch.setattr(sys, "argv", ["calm", *SMOKE, "--trainer.precision", said])
    setting, notes = setting_of(EstimateCLI())
    assert setting.precision == taken
    assert any("transformer-engine is not known here" in note for note in notes) == (
        taken[:2] == "32"
    )
    assert not setting.on_gpu


# ---------------------------------------------------------------- several processes


# Three units: frozen, trained (2 of 3 rows and 5 of 2), frozen. Bytes: 40, 16, 12.
UNITS = Units(
    (Unit(((10, 4, False),)), Unit(((3, 2, True), (5, 2, True))), Unit(((3, 4, False),))),
    (Call(0, False), Call(1, True), Call(1, True), Call(2, True)),
)


def test_a_unit_is_fetched_when_it_runs_and_for_gradients_and_one_before_them() -> None:
    # Forward all four runs; back: the last, the bridge before it, again for its other run, and
    # beforehand what ran before that.
    assert UNITS.gathered() == [0, 1, 1, 2, 2, 1, 1, 0]
    assert Units(UNITS.units, UNITS.calls[:1]).gathered() == [0]


def test_parts_of_units_are_filled_up_to_the_same_length() -> None:
    frozen, trained, _ = UNITS.units
    assert [frozen.size(n) for n in (1, 2, 4)] == [40, 40, 48]
    assert [trained.size(n, trained_only=True) for n in (1, 2, 4)] == [16, 20, 24]
    assert frozen.size(trained_only=True) == 0


def test_processes_share_as_their_strategy_does() -> None:
    step = training(figures())
    by_ddp = share(step, "ddp", 4, UNITS)
    assert sum(by_ddp.memory.values()) == step.fixed + step.gradients + step.varying
    assert by_ddp.received == {"all-reduce of gradients": 2 * 10 * 3 // 4}
    by_fsdp = share(step, "fsdp2", 4, UNITS)
    assert by_fsdp.memory == {
        "weights, shared out": (48 + 24 + 16) // 4 + 100 - (40 + 16 + 12),
        "gradients, shared out": 3,
        "optimizer, shared out": 5,
        "units at hand": 3 * 40,
        "gradients on the way": 2 * 16,
        "activations": 240,
        "logits": 40,
        "temporary": 40,
    }
    assert by_fsdp.received == {
        "all-gather of weights": (2 * 48 + 4 * 24 + 2 * 16) * 3 // 4,
        "reduce-scatter of gradients": 24 * 3 // 4,
    }


@pytest.mark.parametrize(
    ("devices", "nodes", "expected"),
    [
        ("auto", 1, 1),
        (1, 1, 1),
        (8, 1, 8),
        ("8", 8, 64),
        ([0, 2, 3], 2, 6),
        ("0,1", 1, 2),
        (-1, 1, 1),
    ],
)
def test_processes_are_counted_as_the_trainer_is_told(
    devices: Any, nodes: int, expected: int
) -> None:
    assert processes_of(SimpleNamespace(devices=devices, num_nodes=nodes)) == expected


@pytest.mark.usefixtures("at_root")
def test_what_each_process_takes_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    said = {}
    for strategy in ("ddp", "fsdp2"):
        cli.main(["estimate", *SMOKE, "--trainer.strategy", strategy, "--trainer.devices", "4"])
        said[strategy] = capsys.readouterr().out
    assert "ddp, 4 processes" in said["ddp"]
    assert "all-reduce of gradients" in said["ddp"]
    assert "weights, shared out" in said["fsdp2"]
    assert "16 rows of its own, 64 in a step of all" in said["fsdp2"]


@pytest.mark.usefixtures("at_root")
def test_models_that_cannot_be_shared_out_are_not_estimated_so(
    capsys: pytest.CaptureFixture[str],
) -> None:
    more = ["--model.composition=Single", "--model.composition.train=true", "--model.augmenting=[]"]
    with pytest.raises(SystemExit):
        cli.main(["estimate", *SMOKE, *more, "--trainer.strategy=fsdp2", "--trainer.devices=2"])
    assert "only compositions by hidden states" in capsys.readouterr().err
