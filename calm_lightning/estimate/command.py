"""The command `calm estimate`: a config of `calm fit` in, tables out."""

import math
from collections.abc import Sequence
from typing import Any, get_args

import lightning as L
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from rich.console import Console
from rich.table import Table
from typing_extensions import override

from calm_lightning.contracts import CalmError
from calm_lightning.estimate.figures import Estimate, Work
from calm_lightning.estimate.gpus import (
    USABLE,
    Plan,
    most_rows,
    plan_generation,
    plan_training,
)
from calm_lightning.estimate.measure import Precision, Setting, estimate
from calm_lightning.estimate.sharing import Share, Strategy, share
from calm_lightning.run import CalmCLI, shares_weights

GIB, MIB = 2**30, 2**20

ABOUT = (
    "What a run would take, told from its config: weights, memory, arithmetic, GPUs. Takes what "
    "`calm fit` takes, config files and options alike. No weights and no data are read."
)

OPTIONS = {
    "batch-size": "Texts in a training step of one process, and texts answered at a time; by "
    "default those of the task.",
    "length": "Tokens of the longest text; by default 512, or the shortest context.",
    "target-length": "Tokens of a text that are learnt; by default all but the first.",
    "new-tokens": "Tokens of the longest text that are generated; by default 64, or half of it.",
}

_ROWS = (
    "weights", "gradients", "optimizer", "activations", "logits", "caches", "temporary",
    "kept_free",
)  # fmt: skip
"""Of the table of memory, as `Training` and `Generation` name them."""

_SHORT = {"32": "32-true", "16": "16-mixed", "bf16": "bf16-mixed"}


class EstimateCLI(CalmCLI):
    """Reads a config as `calm fit` does, and builds no trainer."""

    def __init__(self) -> None:
        super().__init__(run=False, parser_kwargs={"prog": "calm estimate", "description": ABOUT})

    @override
    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        super().add_arguments_to_parser(parser)
        # What else a config may hold that `calm fit` has saved.
        parser.add_method_arguments(L.Trainer, "fit", skip={*LightningCLI.subcommands()["fit"]})
        for option, meaning in OPTIONS.items():
            parser.add_argument(f"--{option}", type=int | None, default=None, help=meaning)
        parser.add_argument("--gpu-memory", type=float, default=80.0, help="Of one GPU, in GiB.")

    @override
    def instantiate_trainer(self, **kwargs: Any) -> Any:
        """None: the GPUs that it asks for need not be here."""
        return None


def run_estimate() -> None:
    """Estimate what the command line says (`sys.argv`), and print it.

    Raises:
        CalmError: If the config does not fit, or cannot be estimated.
    """
    cli = EstimateCLI()
    config, task = cli.config, cli.config.data.init_args
    if not 0 < config.gpu_memory < math.inf:
        raise CalmError(f"--gpu-memory must be above 0 GiB: got {config.gpu_memory:g}.")
    rows, answered = config.batch_size, config.batch_size
    if rows is None:
        rows, answered = task.get("batch_size"), task.get("evaluation_batch_size")
    if rows is None:
        raise CalmError(f"{config.data.class_path} does not say its batch_size; give --batch-size.")
    setting, notes = setting_of(cli)
    estimated = estimate(
        setting, rows, answered, config.length, config.target_length, config.new_tokens
    )
    show(estimated, config.gpu_memory, notes)
    processes = processes_of(config.trainer)
    if estimated.training is not None and processes > 1:
        strategy = strategy_of(config.trainer.strategy)
        if strategy == "fsdp2" and estimated.units is None:
            raise CalmError(
                f"trainer.strategy=fsdp2: {cli.model.composition!r} beside these models cannot be "
                "shared out; only compositions by hidden states, of models that are not quantised, "
                "can. Ask with trainer.strategy=ddp."
            )
        show_share(share(estimated.training, strategy, processes, estimated.units), estimated.work)


def setting_of(cli: EstimateCLI) -> tuple[Setting, list[str]]:
    """What of a config decides the figures, and remarks on it."""
    trainer, model = cli.config.trainer, cli.model
    said = str(trainer.precision or "32-true")
    precision, notes = _SHORT.get(said, said), []
    if precision not in get_args(Precision):
        notes.append(f"trainer.precision={said} is not known here; 32-true was taken.")
        precision = "32-true"
    options = {
        "recompute": model.recompute,
        "compile": model.compile_layers,
        "cache_states": model.cache_states,
        "pack": model.pack,
    }
    if asked := [f"model.{name}" for name, value in options.items() if value]:
        notes.append(f"Not counted: what {', '.join(asked)} would save.")
    setting = Setting(
        model.anchor_source,
        model.augmenting_sources,
        model.composition,
        model.optimizer,
        precision,  # type: ignore[arg-type]
        on_gpu=trainer.accelerator != "cpu",
    )
    return setting, notes


def processes_of(trainer: Any) -> int:
    """How many processes a trainer's config asks for; those that it leaves open count as one."""
    devices = trainer.devices
    if isinstance(devices, str):
        devices = devices.split(",") if "," in devices else devices.isdecimal() and int(devices)
    count = len(devices) if isinstance(devices, list) else int(devices or 1)
    return max(1, count) * int(trainer.num_nodes)


def strategy_of(said: Any) -> Strategy:
    """How several processes share, as a trainer's config says it."""
    return "fsdp2" if shares_weights(said) else "ddp"


# ---------------------------------------------------------------------- printing


def show(estimated: Estimate, gpu_gib: float, notes: Sequence[str] = ()) -> None:
    """Print an estimate.

    Args:
        estimated: The figures.
        gpu_gib: Memory of one GPU, in GiB.
        notes: Printed beside its own.
    """
    console = Console(highlight=False, soft_wrap=True)
    training, generation = estimated.training, estimated.generation
    largest = max(generation.total, training.total if training else 0)
    unit, size = ("GiB", GIB) if largest >= 10 * GIB else ("MiB", MIB)
    console.print(_parts(estimated, unit, size))
    console.print()
    console.print(_memory(estimated, unit, size))
    console.print()
    for line in (*_jobs(estimated, gpu_gib), *notes, *estimated.notes):
        console.print(line)


def show_share(taken: Share, work: Work) -> None:
    """Print what one of several processes takes.

    Args:
        taken: By it.
        work: Of it: every process has so many rows of its own.
    """
    console = Console(highlight=False, soft_wrap=True)
    total = sum(taken.memory.values())
    unit, size = ("GiB", GIB) if total >= 10 * GIB else ("MiB", MIB)
    table = Table(f"{taken.strategy}, {taken.processes} processes", box=None, pad_edge=False)
    table.add_column(unit, justify="right")
    for name, count in (*taken.memory.items(), ("total of each", total)):
        table.add_row(name, _number(count, size))
    for name, count in taken.received.items():
        table.add_row(f"received a step, {name}", _number(count, size))
    console.print()
    console.print(table)
    console.print(
        f"Each process trains on {work.rows} {'row' if work.rows == 1 else 'rows'} of its own, "
        f"{work.rows * taken.processes:,} in a step of all; it sends as much as it receives."
    )


def _parts(estimated: Estimate, unit: str, size: int) -> Table:
    table = Table("part", box=None, pad_edge=False)
    for column in ("weights", "trained", unit):
        table.add_column(column, justify="right")
    for part in estimated.parts:
        table.add_row(
            part.name, f"{part.weights:,}", f"{part.trained:,}", f"{part.size / size:,.2f}"
        )
    return table


def _memory(estimated: Estimate, unit: str, size: int) -> Table:
    """One column for each job; what is beside the tensors is told for processors only."""
    table = Table(f"memory, {unit}", box=None, pad_edge=False)
    for column in ("training", "generation"):
        table.add_column(column, justify="right")
    jobs = (estimated.training, estimated.generation)
    for name in _ROWS:
        found = [getattr(job, name, None) for job in jobs]
        if name != "kept_free" or estimated.program:
            table.add_row(name.replace("_", " "), *(_number(each, size) for each in found))
    totals = [None if job is None else job.total + estimated.program for job in jobs]
    if estimated.program:
        beside = [None if job is None else estimated.program for job in jobs]
        table.add_row("program", *(_number(each, size) for each in beside))
    table.add_row("total", *(_number(each, size) for each in totals))
    return table


def _number(size: int | None, unit: int) -> str:
    return "" if size is None else f"{size / unit:,.2f}"


def _jobs(estimated: Estimate, gpu_gib: float) -> list[str]:
    work, training, generation = estimated.work, estimated.training, estimated.generation
    trained, answered = most_rows(estimated, gpu_gib * GIB)
    lines = ["Nothing is trained."]
    if training is not None:
        plan = plan_training(estimated, gpu_gib * GIB)
        lines = [
            f"Training on {work.rows} rows of {work.length:,} tokens, {work.targets:,} of them "
            f"learnt: {_flops(training.flops / (work.rows * work.length))} a token.",
            f"  {_plan(plan, gpu_gib, estimated.units is not None)} {_most(trained or 0)}",
        ]
    prompt = work.length - work.new_tokens
    return [
        *lines,
        f"Generation of {work.new_tokens:,} tokens after {prompt:,}, {work.answered} rows at a "
        f"time: {_flops(generation.flops / work.answered)} a token, "
        f"{_flops(generation.prompt_flops / (work.answered * prompt))} a token of the prompt.",
        f"  {_plan(plan_generation(estimated, gpu_gib * GIB), gpu_gib)} {_most(answered)}",
        f"Of a GPU {USABLE:.0%} are counted on; the rest is for its context, libraries and gaps.",
    ]


def _plan(plan: Plan | None, gpu_gib: float, shareable: bool = True) -> str:
    if plan is None:
        return (
            f"No number of GPUs of {gpu_gib:g} GiB suffices: what cannot be shared out, one row "
            "among it, does not fit. Take shorter rows, a lower precision or quantization."
        )
    used = f"{plan.size / GIB:,.2f} GiB" if plan.size >= GIB else f"{plan.size / MIB:,.0f} MiB"
    if plan.gpus == 1:
        return f"One GPU of {gpu_gib:g} GiB, {used} of it used."
    if plan.strategy in ("DDP", "FSDP2"):
        used = f"{plan.rows} {'row' if plan.rows == 1 else 'rows'} and {used}"
    said = f"{plan.strategy} on {plan.gpus} GPUs of {gpu_gib:g} GiB, {used} on each."
    if plan.strategy == "FSDP2":
        said += (
            " By trainer.strategy=fsdp2."
            if shareable
            else " But `calm fit` shares out compositions by hidden states only."
        )
    return said


def _most(rows: int) -> str:
    return f"One GPU holds at most {rows:,} rows." if rows else "One GPU holds not a single row."


def _flops(count: float) -> str:
    for size, prefix in ((1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M")):
        if count >= size:
            return f"{count / size:.3g} {prefix}FLOP"
    return f"{count / 1e3:.3g} kFLOP"
