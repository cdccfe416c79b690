"""Two processes, by DDP and by FSDP2 (gloo, on the processor), do what one does.

One launch runs many commands, because a launch takes longer than they do.
"""

import json
import os
import re
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import calm_lightning as calm_api
from calm_lightning.backbone import BackboneSource
from calm_lightning.checkpoint_io import read_checkpoint, seal_of
from calm_lightning.estimate import Setting, estimate, share
from calm_plugins.compositions.cross_attention import CrossAttention

ROOT = Path(__file__).parents[2]
SMOKE = "configs/smoke/key_value.yaml"
# Trained ones, which give different answers to different questions.
MODELS = Path("configs/models/key_value")
STEPS, ROWS = 4, 8
# Five questions in each set and two at a time: one process has three of them, the other two.
FIT = (
    "-c", SMOKE, f"--model.anchor.path={MODELS / 'anchor'}", "--model.anchor.weights=pretrained",
    f"--model.augmenting=[{{path: {MODELS / 'augmenting'}}}]",
    "--data.evaluation_examples=5", "--data.evaluation_batch_size=2",
    f"--trainer.val_check_interval={STEPS}", "--trainer.limit_val_batches=1.0",
    "--trainer.log_every_n_steps=1", "--model.warmup_steps=0", "--model.schedule=constant",
    "--model.optimizer=torch.optim.AdamW", "--model.optimizer.lr=0.001",
    "--trainer.enable_progress_bar=false", "--trainer.enable_model_summary=false",
)  # fmt: skip
ALONE = ("--trainer.strategy=auto", "--trainer.devices=1")
FEW = "--data.evaluation_examples=1"  # fewer than processes
STRATEGIES = ("ddp", "fsdp2")
LOSS = "train/loss_nats"
# The sums behind a loss are made in another order, in float32 (2^-24), four steps long.
CLOSE = {"rel": 1e-4, "abs": 1e-6}


pytestmark = pytest.mark.slow  # two starts of two processes each: a minute


def by(strategy: str) -> tuple[str, ...]:
    return f"--trainer.strategy={strategy}", "--trainer.devices=2"


WRITTEN_OUT = (  # what `fsdp2` stands for
    "--trainer.strategy=ModelParallelStrategy", "--trainer.strategy.data_parallel_size=2",
    "--trainer.strategy.tensor_parallel_size=1",
    "--trainer.strategy.save_distributed_checkpoint=false", "--trainer.devices=2",
)  # fmt: skip


@dataclass(frozen=True)
class Launched:
    """What two processes left.

    Attributes:
        folder: With a folder of each run.
        traffic: For each command, for each training step: bytes received by each collective.
    """

    folder: Path
    traffic: dict[str, list[dict[str, int]]]


def launch(folder: Path, commands: dict[str, Sequence[Any]]) -> Launched:
    """Run commands one after another, each in the same two processes."""
    told, traffic = folder / "commands.json", folder / "traffic.json"
    told.write_text(json.dumps([list(map(str, words)) for words in commands.values()]))
    script = Path(__file__).with_name("processes") / "commands.py"
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2",
         str(script), str(told), str(traffic)],
        cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True,
        timeout=3000, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-6000:]
    return Launched(folder, dict(zip(commands, json.loads(traffic.read_text()), strict=True)))


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Launched:
    """Runs of two processes, each under its name."""
    folder = tmp_path_factory.mktemp("two")
    commands: dict[str, Sequence[Any]] = {}
    for name in STRATEGIES:
        run = folder / name
        steps = f"--trainer.max_steps={STEPS}"
        commands[name] = ("fit", *FIT, *by(name), f"--data.batch_size={ROWS}", steps, "--run", run)
        commands[f"{name} test"] = ("test", "--run", run)
        commands[f"{name} predict"] = ("predict", "--run", run)
        few = folder / f"{name}-few"
        start = f"--model.start_from={run / 'model'}"
        options = WRITTEN_OUT if name == "fsdp2" else by(name)
        commands[f"{name} few"] = ("test", *FIT, *options, FEW, start, "--run", few)
    half = ("fit", *FIT, *by("fsdp2"), f"--data.batch_size={ROWS}")
    stopped, last = folder / "stopped", folder / "stopped" / "checkpoints" / "last.ckpt"
    commands["stopped"] = (*half, f"--trainer.max_steps={STEPS // 2}", "--run", stopped)
    commands["resumed"] = (
        *half, f"--trainer.max_steps={STEPS}", "--run", folder / "resumed", "--ckpt_path", last
    )  # fmt: skip
    return launch(folder, commands)


@pytest.fixture(scope="module")
def one(calm: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same fit in one process, with all rows of every batch."""
    run = tmp_path_factory.mktemp("one") / "run"
    rows = f"--data.batch_size={2 * ROWS}"
    fitted = calm("fit", *FIT, rows, f"--trainer.max_steps={STEPS}", "--run", run)
    assert fitted.status == 0, fitted.err
    assert calm("test", "--run", run).status == 0
    return run


def logged(run: Path, stage: str) -> dict[str, list[tuple[int, float]]]:
    """(step, value) of every number that a run logged."""
    found: dict[str, list[tuple[int, float]]] = {}
    for file in sorted(run.glob("events.*")):
        events = EventAccumulator(str(file), {"scalars": 0}).Reload()
        for tag in events.Tags()["scalars"]:
            if tag.startswith(f"{stage}/") or tag == stage:
                found.setdefault(tag, []).extend((e.step, e.value) for e in events.Scalars(tag))
    return found


def assert_alike(found: dict[str, Any], wanted: dict[str, Any]) -> None:
    assert found.keys() == wanted.keys()
    assert wanted
    for name, values in wanted.items():
        steps, numbers = zip(*values, strict=True)
        own_steps, own = zip(*found[name], strict=True)
        assert own_steps == steps, name
        if "accuracy" in name:
            assert own == numbers, name
        else:
            assert own == pytest.approx(numbers, **CLOSE), name


def weights(run: Path) -> dict[str, torch.Tensor]:
    return load_file(run / "model" / "composition.safetensors")


# ------------------------------------------------------------------ training


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_losses_of_every_step_are_those_of_one_process(
    two: Launched, one: Path, strategy: str
) -> None:
    found, wanted = (logged(run, LOSS) for run in (two.folder / strategy, one))
    assert [step for step, _ in wanted[LOSS]] == list(range(STEPS))
    assert_alike(found, wanted)
    values = [value for _, value in wanted[LOSS]]
    assert max(values) - min(values) > 1e-3  # so a step that was not made would be seen


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_the_trained_weights_are_those_of_one_process(
    two: Launched, one: Path, strategy: str
) -> None:
    found, wanted = weights(two.folder / strategy), weights(one)
    assert found.keys() == wanted.keys()
    for name, weight in wanted.items():
        torch.testing.assert_close(found[name], weight, rtol=1e-3, atol=1e-5, msg=name)


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("stage", ["val", "test"])
def test_scores_are_those_of_one_process_with_uneven_shares(
    two: Launched, one: Path, strategy: str, stage: str
) -> None:
    assert_alike(logged(two.folder / strategy, stage), logged(one, stage))


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_what_is_saved_is_what_one_process_saves_and_only_one_writes(
    two: Launched, one: Path, strategy: str
) -> None:
    def names(run: Path) -> set[str]:
        found = (str(file.relative_to(run)) for file in run.rglob("*"))
        return {re.sub(r"^events\..*", "events", name) for name in found}

    run = two.folder / strategy
    assert names(run) == names(one) | {"predictions.jsonl", "predict.yaml"}
    for name in ("config.json", "generation_config.json", "tokenizer.json"):
        assert (run / "model" / name).read_bytes() == (one / "model" / name).read_bytes()


def test_a_checkpoint_of_shared_out_weights_is_like_any_other(two: Launched) -> None:
    file = two.folder / "fsdp2" / "checkpoints" / "last.ckpt"
    assert b"sha256:" in file.read_bytes()[-80:]
    assert seal_of(file)
    state = read_checkpoint(file)["state_dict"]
    saved = weights(two.folder / "fsdp2")
    assert {name.removeprefix("model."): t for name, t in state.items()}.keys() == saved.keys()
    for name, tensor in saved.items():
        assert torch.equal(state[f"model.{name}"], tensor)


def test_a_run_with_shared_out_weights_goes_on_bit_for_bit(two: Launched) -> None:
    wanted, found = weights(two.folder / "fsdp2"), weights(two.folder / "resumed")
    assert all(torch.equal(found[name], weight) for name, weight in wanted.items())
    half = weights(two.folder / "stopped")
    assert not all(torch.equal(half[name], weight) for name, weight in wanted.items())


# ------------------------------------------------------------------ answers


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_answers_and_scores_of_one_process_that_opens_the_checkpoint_are_the_same(
    two: Launched, calm: Any, tmp_path: Path, strategy: str
) -> None:
    run = two.folder / strategy
    config = ("-c", run / "config.yaml", "--ckpt_path", run / "checkpoints" / "last.ckpt")
    for command in ("test", "predict"):
        outcome = calm(command, *config, *ALONE, "--run", tmp_path)
        assert outcome.status == 0, outcome.err
    assert_alike(logged(run, "test"), logged(tmp_path, "test"))
    said = (run / "predictions.jsonl").read_text()
    assert said == (tmp_path / "predictions.jsonl").read_text()
    assert len({json.loads(line)["answer"] for line in said.splitlines()}) > 3


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_set_with_fewer_questions_than_processes_is_scored(
    two: Launched, calm: Any, tmp_path: Path, strategy: str
) -> None:
    start = f"--model.start_from={two.folder / strategy / 'model'}"
    assert calm("test", *FIT, FEW, start, "--run", tmp_path).status == 0
    assert_alike(logged(two.folder / f"{strategy}-few", "test"), logged(tmp_path, "test"))


def test_the_model_opens_without_processes(two: Launched) -> None:
    model = calm_api.load(two.folder / "fsdp2" / "model")
    lines = (two.folder / "fsdp2" / "predictions.jsonl").read_text().splitlines()
    first = json.loads(lines[0])
    (said,) = model.generate_text([first["prompt"]], max_new_tokens=8)
    assert first["answer"]
    assert said.startswith(first["answer"])


# ------------------------------------------------------------------ what is exchanged


def test_processes_exchange_what_is_estimated(two: Launched) -> None:
    sources = [BackboneSource(str(MODELS / name)) for name in ("anchor", "augmenting")]
    setting = Setting(sources[0], sources[1:], CrossAttention(every=2), on_gpu=False)
    told = estimate(setting, rows=ROWS, length=32)
    assert told.training is not None
    received = share(told.training, "fsdp2", 2, told.units).received
    assert len(two.traffic["fsdp2"]) == STEPS
    for step in two.traffic["fsdp2"]:
        assert step == {
            "all_gather_single": received["all-gather of weights"],
            "reduce_scatter_single": received["reduce-scatter of gradients"],
        }


# ------------------------------------------------------------------ every task


def first_lines(folder: Path, file: str, count: int) -> Path:
    """So many of a file's first lines."""
    lines = (ROOT / file).read_text(encoding="utf-8").splitlines(keepends=True)[:count]
    short = folder / Path(file).name
    short.write_text("".join(lines), encoding="utf-8")
    return short


def of_tasks(folder: Path) -> dict[str, tuple[str, ...]]:
    """Every task's smoke set, of which no size, or not every one, can be divided by two."""
    data = "configs/smoke/data"
    humaneval = first_lines(folder, f"{data}/code/humaneval.jsonl", 3)
    functions = first_lines(folder, f"{data}/code/functions_test.jsonl", 1)
    gsm = first_lines(folder, f"{data}/gsm/test.jsonl", 3)
    text = folder / "text.txt"
    text.write_text("".join(f"{n} and {n} are {2 * n}. " for n in range(400)), encoding="utf-8")
    tiny = (
        "--model.anchor={path: configs/models/tiny/anchor, weights: random}",
        "--model.augmenting=[{path: configs/models/tiny/augmenting, weights: random, seed: 1}]",
        "--model.composition.every=2", "--trainer.accelerator=cpu",
    )  # fmt: skip
    smoke = {name: ("-c", f"configs/smoke/{name}.yaml") for name in (
        "key_value", "code", "gsm", "mixture", "self_decompression", "translation"
    )}  # fmt: skip
    smoke["key_value"] += ("--data.evaluation_examples=5",)
    smoke["code"] += (
        f"--data.humaneval={humaneval}", f"--data.code_to_text={{small: {functions}}}"
    )  # fmt: skip
    smoke["gsm"] += (f"--data.evaluation={{gsm8k: {gsm}, mgsm: {data}/gsm}}",)
    smoke["self_decompression"] += (f"--data.cache={folder / 'texts.jsonl'}",)
    smoke["text_file"] = ("-c", "configs/text/own_text.yaml", *tiny, f"--data.train={text}")
    return {name: (*words, "--data.evaluation_batch_size=2") for name, words in smoke.items()}


REWRITING = (
    "-c", SMOKE, "--data.evaluation_examples=5", "--data.evaluation_batch_size=2",
    "--model.composition=Rewriting", "--model.composition.sampled=2",
    "--model.composition.max_new_tokens=8", "--model.composition.separator=:",
)  # fmt: skip
FITS = {
    "other tokens": (f"--model.augmenting=[{{path: {MODELS / 'augmenting_pairs'}}}]",),
    "recomputed": ("--model.recompute=true",),
    "compiled": ("--model.compile=true",),
}


def test_every_task_is_scored_as_by_one_process(calm: Any, tmp_path: Path) -> None:
    """Also a pool of candidates that both draw, and an augmenting model with other tokens."""
    start = tmp_path / "start"
    lr = ("--model.optimizer=torch.optim.AdamW", "--model.optimizer.lr=0.01")
    assert calm("fit", "-c", SMOKE, *lr, "--trainer.max_steps=8", "--run", start).status == 0
    tested: dict[str, tuple[Any, ...]] = {
        name: ("test", *words, f"--model.start_from={start / 'model'}")
        for name, words in of_tasks(tmp_path).items()
    }
    short = "--trainer.max_steps=2", "--trainer.val_check_interval=2"
    tested |= {name: ("fit", *FIT, *short, *words) for name, words in FITS.items()}
    commands: dict[str, tuple[Any, ...]] = {}
    rows = {"fit": f"--data.batch_size={ROWS}", "test": "--data.batch_size=16"}
    for strategy in STRATEGIES:
        for name, words in tested.items():
            run = tmp_path / f"{name} {strategy}"
            commands[run.name] = (*words, rows[words[0]], *by(strategy), "--run", run)
    for strategy in ("ddp", "alone"):
        cache = f"--model.composition.cache={tmp_path / strategy / 'candidates'}"
        tested[f"rewriting {strategy}"] = ("test", *REWRITING, cache)
    rewriting = tested.pop("rewriting ddp")
    commands["rewriting ddp"] = (*rewriting, *by("ddp"), "--run", tmp_path / "rewriting ddp")
    launch(tmp_path, commands)
    for name, words in tested.items():
        alone = tmp_path / f"{name.removesuffix(' alone')} alone"
        whole = (f"--data.batch_size={2 * ROWS}",) if words[0] == "fit" else ()
        outcome = calm(*words, *whole, "--run", alone)
        assert outcome.status == 0, outcome.err
        for strategy in STRATEGIES:
            run = alone.with_name(f"{name.removesuffix(' alone')} {strategy}")
            for stage in ("test",) if words[0] == "test" else (LOSS, "val"):
                if run.name in commands:
                    assert_alike(logged(run, stage), logged(alone, stage))
    assert pools(tmp_path / "ddp") == pools(tmp_path / "alone")


def pools(folder: Path) -> dict[str, list[str]]:
    """Prompts and their candidates, whoever wrote them."""
    texts = [file.read_text(encoding="utf-8") for file in folder.rglob("*.jsonl")]
    lines = [line for text in texts for line in text.splitlines()]
    assert lines
    said = [json.loads(line) for line in lines]
    return {each["prompt"]: each["candidates"] for each in said}
