"""`calm estimate` beside what a run really takes: memory of `calm fit` and of generation.

    python benchmarks/estimate.py            about ten minutes on one core; Linux

Everything is a process of its own, of one thread: the estimate from the configs, a few steps of
`calm fit`, and greedy answers. Measured is the peak of the resident memory, all of it; `beyond the
program` are the same figures less what Python and its libraries hold after importing them.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

MIB = 2**20
STEPS = 4


@dataclass(frozen=True)
class Size:
    """Two models and a batch."""

    anchor: tuple[str, int, int]
    """Family, width and layers."""
    augmenting: tuple[str, int, int]
    rows: int
    length: int
    answered: int
    new_tokens: int = 16
    vocabulary: int = 16_000


SIZES = {
    "small": Size(("llama", 576, 8), ("llama", 384, 8), rows=8, length=256, answered=24),
    "larger": Size(("llama", 1024, 12), ("llama", 640, 12), rows=4, length=384, answered=32),
    # Not looked at while the estimate was written.
    "families": Size(
        ("gpt2", 768, 10), ("qwen3", 512, 10), rows=2, length=640, answered=4, vocabulary=32_000
    ),
    "long answers": Size(
        ("gpt_neox", 512, 6), ("gemma", 384, 12), rows=24, length=120, answered=48,
        new_tokens=100, vocabulary=5_000,
    ),
}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("runs/benchmarks/estimate.json"))
    parser.add_argument("--sizes", nargs="+", choices=SIZES, default=list(SIZES))
    parser.add_argument("--job", choices=JOBS, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    said = parser.parse_args()
    if said.job:
        print(json.dumps(JOBS[said.job](SIZES[said.sizes[0]], said.folder)))
        return
    rows = []
    print(f"{'MiB':24}estimated  measured  ratio  beyond the program")
    for name in said.sizes:
        with tempfile.TemporaryDirectory() as folder:
            alone("write", name, folder)
            estimated = alone("estimate", name, folder)
            for kind in ("training", "generation"):
                row = {"size": name, "kind": kind, **estimated[kind], **alone(kind, name, folder)}
                rows.append(row)
                print_row(row)
    sizes = {name: asdict(SIZES[name]) for name in said.sizes}
    said.out.parent.mkdir(parents=True, exist_ok=True)
    said.out.write_text(json.dumps({"bytes": rows, "sizes": sizes}, indent=1) + "\n")
    print(f"Written: {said.out}")


def print_row(row: dict[str, Any]) -> None:
    estimated, measured = row["total"] + row["program"], row["measured"]
    beyond = row["total"] / (measured - row["imported"])
    print(
        f"{row['size']:13} {row['kind']:10}{estimated / MIB:9,.0f} {measured / MIB:9,.0f} "
        f"{estimated / measured:6.2f} {beyond:6.2f}",
        flush=True,
    )


def alone(job: str, name: str, folder: str) -> Any:
    """What a job prints that has a process to itself."""
    command = [sys.executable, __file__, "--job", job, "--sizes", name, "--folder", folder]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{done.stderr}")
    return json.loads(done.stdout.splitlines()[-1])


# ---------------------------------------------------------------------- in a process of its own


def write(size: Size, folder: Path) -> None:
    """Two models with tokenizers of characters, and texts of `length` tokens."""
    from transformers import AutoModelForCausalLM

    from calm_lightning.testing import tiny_tokenizer
    from calm_lightning.testing.tiny import tiny_config

    for name, (family, width, layers) in (("anchor", size.anchor), ("augmenting", size.augmenting)):
        config = tiny_config(family, width, layers, size.vocabulary, scale=0.02, context=1024)
        AutoModelForCausalLM.from_config(config).save_pretrained(folder / name)
        tiny_tokenizer(97).save_pretrained(folder / name)
    lines = [  # a token between texts, the text, its end; every other row has one token less
        json.dumps({"prompt": "", "target": "a" * (size.length - 2 - number % 2)})
        for number in range(8 * size.rows)
    ]
    (folder / "train.jsonl").write_text("\n".join(lines) + "\n")


def sources(folder: Path) -> tuple[Any, Any]:
    from calm_lightning.backbone import BackboneSource

    return BackboneSource(str(folder / "anchor")), BackboneSource(str(folder / "augmenting"))


def estimate(size: Size, folder: Path) -> dict[str, dict[str, int]]:
    """What is claimed for both kinds."""
    import calm_lightning as calm
    from calm_lightning import cli  # noqa: F401  (what the command imports)
    from calm_lightning.estimate import Setting, estimate

    anchor, augmenting = sources(folder)
    setting = Setting(anchor, [augmenting], calm.CrossAttention(), on_gpu=False)
    told = estimate(setting, size.rows, size.answered, size.length, new_tokens=size.new_tokens)
    assert told.training is not None
    return {
        kind: {**asdict(figures), "total": figures.total, "program": told.program}
        for kind, figures in (("training", told.training), ("generation", told.generation))
    }


def training(size: Size, folder: Path) -> dict[str, int]:
    """A few steps of `calm fit`."""
    from calm_lightning import cli

    imported = resident("VmHWM")
    with tempfile.TemporaryDirectory() as run:
        cli.main(
            [
                "fit", "--run", f"{run}/run",
                "--model.anchor", f"{{path: {folder}/anchor}}",
                "--model.augmenting", f"[{{path: {folder}/augmenting}}]",
                "--model.composition", "CrossAttention",
                "--data", "TextFile", "--data.train", f"{folder}/train.jsonl",
                "--data.batch_size", str(size.rows),
                "--trainer.accelerator", "cpu", "--trainer.max_steps", str(STEPS),
                "--trainer.limit_val_batches", "0", "--trainer.num_sanity_val_steps", "0",
                "--trainer.enable_progress_bar", "false",
            ]
        )  # fmt: skip
    return {"measured": resident("VmHWM"), "imported": imported}


def generation(size: Size, folder: Path) -> dict[str, int]:
    """Answers to prompts of two lengths."""
    import calm_lightning as calm
    from calm_lightning import cli  # noqa: F401  (what the command imports)

    imported = resident("VmHWM")
    anchor, augmenting = sources(folder)
    model = calm.compose(anchor, [augmenting], calm.CrossAttention())
    prompt = size.length - size.new_tokens
    prompts = ["a" * (prompt - number % 2) for number in range(size.answered)]
    model.generate_text(prompts, max_new_tokens=size.new_tokens, do_sample=False)
    return {"measured": resident("VmHWM"), "imported": imported}


def resident(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    (line,) = [each for each in lines if each.startswith(f"{field}:")]
    return int(line.split()[1]) * 1024


JOBS = {"write": write, "estimate": estimate, "training": training, "generation": generation}

if __name__ == "__main__":
    main()
