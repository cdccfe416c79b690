"""What a user gets wrong ends with one message, exit status 2, and nothing lost."""

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from calm_lightning.backbone import BackboneSource

ANCHOR = "configs/models/tiny/anchor"


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(f.relative_to(folder)): f.read_bytes() for f in folder.rglob("*") if f.is_file()}


# ------------------------------------------------------------------ commands and options


@pytest.mark.parametrize(
    ("arguments", "wanted"),
    [
        (["fti"], ["no command 'fti'", "Did you mean fit?", "compare", "generate"]),
        (["--run"], ["no command '--run'"]),
        (["fit", "-c", "SMOKE", "--nope", "1"], ["--nope"]),
        (["fit", "-c", "SMOKE", "--model.composition.nope=1"], ["'nope' is not accepted"]),
        (["fit", "-c", "SMOKE", "--data.nope=1"], ["'nope' is not accepted"]),
        (["fit", "-c", "SMOKE", "--trainer.max_steps=many"], ["trainer.max_steps", "many"]),
        (["fit", "-c", "SMOKE", "--model.schedule=step"], ["model.schedule", "cosine", "step"]),
        (["fit", "-c", "SMOKE", "--model.anchor.dtype=float31"], ["float31", "bfloat16"]),
        (
            ["fit", "-c", "SMOKE", "--model.composition=CrossAtention"],
            ["CrossAtention", "Did you mean CrossAttention?", "Installed: ", "LoRA", "Single"],
        ),
        (
            ["fit", "-c", "SMOKE", f"--model.augmenting={ANCHOR}"],
            ["a list of models", "--model.augmenting '[{path: FOLDER}]'"],
        ),
        (["fit", "-c", "SMOKE", "--data=KeyValu"], ["KeyValu", "Did you mean KeyValue?"]),
        (["fit"], ["required", "model.composition"]),
        (["fit", "-c", "no/such.yaml"], ["no/such.yaml"]),
        (["fit", "-c", "configs"], ["not a file"]),
        (["fit", "-c", "SMOKE", "--data.batch_size=0"], ["batch_size must be at least 1: got 0"]),
        (["fit", "-c", "SMOKE", "--data.operators=x"], ["operators"]),
        (["fit", "-c", "SMOKE", "--model.warmup_steps=-3"], ["warmup_steps=-3"]),
        (["fit", "-c", "SMOKE", "--threads=0"], ["threads=0"]),
        (["fit", "-c", "SMOKE", "--trainer.strategy=nope"], ["strategy", "nope"]),
        (["fit", "-c", "SMOKE", "--trainer.max_steps=-5"], ["max_steps", "-5"]),
        (["fit", "-c", "SMOKE", "--trainer.val_check_interval=0"], ["val_check_interval=0"]),
        (["fit", "-c", "SMOKE", "--ckpt_path=nope.ckpt"], ["no checkpoint 'nope.ckpt'"]),
        (["fit", "-c", "SMOKE", "--ckpt_path=SMOKE"], ["damaged, or is no checkpoint"]),
        (["fit", "-c", "SMOKE", "--model.composition=LoRA"], ["rank"]),
        (["test", "--run", "no/such/run"], ["no/such/run", "no config.yaml"]),
        (["test", "--run", "README.md"], ["not the folder of a run"]),
        (["predict"], ["required"]),
    ],
    ids=lambda value: " ".join(value) if value[0].islower() else "",
)
def test_wrong_commands_and_options(
    calm: Any, tmp_path: Path, arguments: list[str], wanted: list[str]
) -> None:
    smoke = "configs/smoke/key_value.yaml"
    words = [word.replace("SMOKE", smoke) for word in arguments]
    if words[0] == "fit":
        words += ["--run", str(tmp_path / "run")]
    message = calm(*words).message
    for part in wanted:
        assert part in message
    assert not (tmp_path / "run").exists()


def test_no_hint_where_no_name_is_wrong(calm: Any, fit: Any, tmp_path: Path) -> None:
    message = fit(tmp_path, "--model.composition.every=x").message
    assert "every" in message
    assert "Did you mean" not in message
    assert "class 'int'" not in message


@pytest.mark.parametrize("content", ["- a\n- b\n", "hello", "a: [", "", "modle: {}", "\0"])
def test_configs_that_are_none(calm: Any, tmp_path: Path, content: str) -> None:
    file = tmp_path / "config.yaml"
    file.write_text(content)
    assert calm("fit", "-c", file).message
    assert [f.name for f in tmp_path.iterdir()] == ["config.yaml"]


def test_a_gpu_that_is_not_there(fit: Any, tmp_path: Path) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is one")
    assert "gpu" in fit(tmp_path, "--trainer.accelerator=gpu").message


def test_help_and_version_are_no_faults(calm: Any) -> None:
    assert calm("--help").status == 0
    assert "calm compare" in calm("--help").out
    assert calm("--version").out.strip()
    assert "CrossAttention" in calm("plugins").out
    assert calm("generate", "--help").status == 0


def test_no_command_shows_what_there_is(calm: Any) -> None:
    outcome = calm()
    assert outcome.status == 2
    assert "calm fit" in outcome.out


def test_the_installed_command_says_the_same(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "calm_lightning", "generat"],
        capture_output=True, text=True, timeout=120, cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 2
    assert done.stderr.startswith("calm: There is no command 'generat'. Did you mean generate?")
    assert "Traceback" not in done.stderr


# ------------------------------------------------------------------ backbones and compositions


@pytest.mark.parametrize(
    ("options", "wanted"),
    [
        (["--model.composition.num_heads=3"], ["num_heads=3", "width 32", "1, 2, 4, 8, 16, 32"]),
        (["--model.composition.connections=[[9, 1]]"], ["(9, 1)", "layers 0 to 3, not 9"]),
        (["--model.composition.connections=[[1, -1]]"], ["(1, -1)", "not -1"]),
        (["--model.augmenting=[]"], ["at least one augmenting model"]),
        (["--model.anchor.path=no/such/folder"], ["'no/such/folder' does not exist"]),
        (["--model.anchor.path=./nothing"], ["'./nothing' does not exist"]),
        (["--model.anchor.path=README.md"], ["is a file, not a folder"]),
        (["--model.anchor.path=configs"], ["has no config.json"]),
        (["--model.anchor.weights=pretrained"], ["holds no weights", "weights: random"]),
        (["--model.composition=Single"], ["trains nothing"]),
        (["--model.composition=Single", "--model.composition.use=4"], ["use=4"]),
    ],
    ids=lambda value: value[0] if value[0].startswith("--") else "",
)
def test_backbones_and_compositions_that_cannot_be(
    fit: Any, tmp_path: Path, options: list[str], wanted: list[str]
) -> None:
    message = fit(tmp_path / "run", *options, "--trainer.limit_val_batches=0").message
    for part in wanted:
        assert part in message
    assert not (tmp_path / "run" / "model").exists()


# ------------------------------------------------------------------ data


def own_text(run: Path, data: Path, *options: object) -> list[object]:
    return [
        "fit", "-c", "configs/text/own_text.yaml", "--run", run, "--data.train", data,
        "--model.anchor.path", ANCHOR, "--model.anchor.weights=random",
        "--model.augmenting", f"[{{path: {ANCHOR}, weights: random}}]",
        "--trainer.accelerator=cpu", "--trainer.max_steps=2", *options,
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "content", "wanted"),
    [
        ("a.txt", "", ["is empty"]),
        ("a.jsonl", '{"prompt": "1", "target": "2"}\n\n{"prompt": "1"\n', ["line 3", "not JSON"]),
        ("a.jsonl", '{"prompt": "1", "target": "2"}\n{"prompt": "1"}\n', ["line 2", "'target'"]),
        ("a.jsonl", '{"prompt": "1", "target": "2"}', ["too short to hold out"]),
        ("a.txt", b"\xff\xfe", ["not UTF-8"]),
        ("", "", ["is a folder"]),
    ],
)
def test_data_files_that_are_none(
    calm: Any, tmp_path: Path, name: str, content: str | bytes, wanted: list[str]
) -> None:
    file = tmp_path / name
    if name:
        file.write_bytes(content.encode() if isinstance(content, str) else content)
    message = calm(*own_text(tmp_path / "run", file)).message
    for part in [str(file), *wanted]:
        assert part in message


def test_a_data_file_that_is_not_there(calm: Any, tmp_path: Path) -> None:
    message = calm(*own_text(tmp_path / "run", tmp_path / "none.txt")).message
    assert f"{tmp_path}/none.txt: no such file" in message


def test_a_text_longer_than_the_context_is_refused_in_a_fit(calm: Any, tmp_path: Path) -> None:
    file = tmp_path / "a.txt"
    file.write_text("1+2=3;" * 100)
    options = ("--data.characters=200",)
    message = calm(*own_text(tmp_path / "asked", file, *options)).message
    assert "None of the 1 questions of 'held_out' fits every model" in message
    assert "context of 'configs/models/tiny/anchor' holds 128" in message
    options = (*options, "--trainer.limit_val_batches=0")
    message = calm(*own_text(tmp_path / "learnt", file, *options)).message
    assert "context of 'configs/models/tiny/anchor' holds 128" in message
    assert "needs 201 tokens" in message  # the tokenizer begins each text with a token of its own
    assert "data.characters" in message


# ------------------------------------------------------------------ runs


def test_a_finished_run_is_not_overwritten(fit: Any, smoke_run: Any) -> None:
    before = files_of(smoke_run.folder)
    message = fit(smoke_run.folder).message
    assert "already holds a trained model" in message
    assert "--run" in message
    assert files_of(smoke_run.folder) == before


def test_a_config_is_not_overwritten_by_its_own_run(calm: Any, tmp_path: Path) -> None:
    config = tmp_path / "config.yaml"
    written = Path("configs/smoke/key_value.yaml").read_text() + "# my own note\n"
    config.write_text(written)
    message = calm("fit", "--config", config, "--run", tmp_path).message
    assert f"would write the whole config over {config}" in message
    assert config.read_text() == written


@pytest.mark.parametrize(
    ("option", "wanted"),
    [
        ("--trainer.precision=bf16-true", "train in 32-true or bf16-mixed"),
        ("--seed_everything=-5", "seed_everything=-5 must be from 0 to 2^32 - 1"),
    ],
)
def test_runs_that_cannot_begin(fit: Any, tmp_path: Path, option: str, wanted: str) -> None:
    assert wanted in fit(tmp_path, option).message


def test_a_run_cannot_be_a_file(fit: Any, tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("precious")
    assert "that is a file" in fit(file).message
    assert file.read_text() == "precious"


def test_a_run_without_a_checkpoint_is_not_tested_as_if_it_were_trained(
    calm: Any, smoke_run: Any, tmp_path: Path
) -> None:
    shutil.copy(smoke_run.folder / "config.yaml", tmp_path)
    message = calm("test", "--run", tmp_path).message
    assert "has no checkpoints/last.ckpt" in message


def test_a_checkpoint_beside_another_anchor_is_refused(calm: Any, smoke_run: Any) -> None:
    message = calm("test", "--run", smoke_run.folder, "--model.anchor.seed=5").message
    own, other = (
        BackboneSource(ANCHOR, "random", seed=s).load().fingerprint()[:16] for s in (0, 5)
    )
    assert f"anchor model {ANCHOR!r} (sha256 {own}" in message
    assert f"but {ANCHOR!r} (sha256 {other}" in message


def test_a_checkpoint_beside_another_augmenting_model_is_refused(
    calm: Any, fit: Any, smoke_run: Any, tmp_path: Path
) -> None:
    other = "[{path: configs/models/tiny/augmenting, weights: random, seed: 9}]"
    message = calm("test", "--run", smoke_run.folder, f"--model.augmenting={other}").message
    assert "trained with the augmenting model 'configs/models/tiny/augmenting'" in message
    checkpoint = smoke_run.folder / "checkpoints" / "last.ckpt"
    options = (f"--model.augmenting={other}", "--ckpt_path", checkpoint)
    assert "sha256" in fit(tmp_path, *options, "--trainer.limit_val_batches=0").message


def test_a_checkpoint_of_another_composition_is_refused(calm: Any, smoke_run: Any) -> None:
    message = calm("test", "--run", smoke_run.folder, "--model.composition.every=1").message
    assert "holds the weights of other connections" in message
    message = calm("test", "--run", smoke_run.folder, "--model.composition.normalize=true").message
    assert "normalize: False there, True here" in message


# ------------------------------------------------------------------ training that goes wrong


def finite(checkpoint: Path) -> bool:
    saved = torch.load(checkpoint, weights_only=True)["state_dict"]
    return all(torch.isfinite(tensor).all() for tensor in saved.values())


def test_a_loss_that_is_no_number_stops_and_keeps_the_last_good_checkpoint(
    fit: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from calm_lightning.composed import ComposedModel

    forward, calls = ComposedModel.forward, [0]

    def poisoned(self: Any, *args: Any, **kwargs: Any) -> Any:
        output = forward(self, *args, **kwargs)
        if self.training and output.loss is not None:
            calls[0] += 1
            if calls[0] == 4:
                output.loss = output.loss * float("nan")
        return output

    monkeypatch.setattr(ComposedModel, "forward", poisoned)
    options = ("--trainer.max_steps=6", "--trainer.val_check_interval=2",
               "--data.evaluation_examples=2")  # fmt: skip
    message = fit(tmp_path, *options).message
    last = tmp_path / "checkpoints" / "last.ckpt"
    assert "stopped at step 3: the loss is nan" in message
    assert str(last) in message
    assert torch.load(last, weights_only=True)["global_step"] == 2
    assert finite(last)
    assert not (tmp_path / "model").exists()


@pytest.mark.parametrize("optimizer", ["AdamW", "SGD"])
def test_a_huge_learning_rate_never_leaves_weights_that_are_no_numbers(
    fit: Any, tmp_path: Path, optimizer: str
) -> None:
    rate = {"AdamW": "1e30", "SGD": "1e38"}[optimizer]
    message = fit(
        tmp_path, "--trainer.max_steps=5", f"--model.optimizer={optimizer}",
        f"--model.optimizer.lr={rate}", "--model.warmup_steps=0", "--trainer.limit_val_batches=0",
    ).message  # fmt: skip
    assert "stopped at step 1" in message
    assert "lower learning rate" in message
    assert not list(tmp_path.rglob("*.safetensors"))
    assert all(finite(file) for file in tmp_path.rglob("*.ckpt"))


def test_a_last_step_that_spoils_the_weights_is_not_saved(
    fit: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    step = torch.optim.AdamW.step
    taken = [0]

    def spoiling(self: Any, closure: Any = None) -> Any:
        loss = step(self, closure)
        taken[0] += 1
        if taken[0] == 4:
            self.param_groups[0]["params"][0].data.fill_(float("inf"))
        return loss

    monkeypatch.setattr(torch.optim.AdamW, "step", spoiling)
    options = ("--trainer.max_steps=4", "--trainer.val_check_interval=2",
               "--data.evaluation_examples=2")  # fmt: skip
    message = fit(tmp_path, *options).message
    assert "stopped at step 4" in message
    assert "not finite" in message
    assert all(finite(file) for file in tmp_path.rglob("*.ckpt"))
    assert torch.load(tmp_path / "checkpoints" / "last.ckpt", weights_only=True)["global_step"] == 2
    assert not (tmp_path / "model").exists()


# ------------------------------------------------------------------ generate


@pytest.mark.parametrize(
    ("options", "wanted"),
    [
        ([], ["Nothing was asked"]),
        (["--file", "no/such.txt"], ["no/such.txt", "No such file"]),
        (["--file", "configs"], ["Is a directory"]),
        (["--prompt", "1+2=" * 60], ["needs 241 tokens", "holds 128"]),
        (["--prompt", "1", "--max-new-tokens", "500"], ["500 to be generated", "holds 128"]),
        (["--prompt", "1", "--max-new-tokens", "0"], ["--max-new-tokens must be at least 1"]),
        (["--prompt", "1", "--num-beams", "0"], ["--num-beams must be at least 1"]),
        (["--prompt", "1", "--sample", "--temperature", "0"], ["--temperature must be above 0"]),
        (["--prompt", "1", "--anchor", "no/such/folder"], ["'no/such/folder' does not exist"]),
        (["--prompt", "1", "--augmenting", "a", "--augmenting", "b"], ["1 augmenting", "2 are"]),
    ],
)
def test_questions_that_cannot_be_asked(
    calm: Any, smoke_run: Any, options: list[str], wanted: list[str]
) -> None:
    message = calm("generate", smoke_run.folder / "model", *options).message
    for part in wanted:
        assert part in message


@pytest.mark.parametrize("option", [["--dtype", "float3"], ["--seed", "x"], ["--nope"]])
def test_options_of_generate_that_there_are_not(
    calm: Any, smoke_run: Any, option: list[str]
) -> None:
    outcome = calm("generate", smoke_run.folder / "model", "--prompt", "1", *option)
    assert outcome.status == 2
    assert outcome.err.splitlines()[-1].startswith("calm generate: error: ")


def test_folders_that_are_no_models(calm: Any, smoke_run: Any, tmp_path: Path) -> None:
    def message(folder: object) -> str:
        return calm("generate", folder, "--prompt", "1").message

    assert "There is no folder" in message(tmp_path / "none")
    assert "There is no folder" in message("README.md")
    assert "has no config.json" in message(tmp_path)
    assert f"is a run; its model is {smoke_run.folder}/model" in message(smoke_run.folder)
    assert "holds no weights" in message(ANCHOR)
    model = tmp_path / "model"
    shutil.copytree(smoke_run.folder / "model", model)
    (model / "composition.safetensors").write_bytes(b"junk")
    assert "damaged" in message(model)
    (model / "composition.safetensors").unlink()
    assert "holds no composition.safetensors" in message(model)
    (model / "config.json").write_text('{"composition"')
    assert "does not describe a saved composition" in message(model)
