"""`calm compare`: many rows and seeds under one budget, as one table.

Each (row, seed) of a comparison (`calm_lightning.comparison`) is trained and scored in a process of
its own and leaves a `result.json`; what is finished is not done again, so a comparison that was
stopped goes on where it was. A run that fails, or is killed, disturbs no other.
"""

import json
import logging
import math
import multiprocessing
import os
import platform
import signal
import subprocess
import sys
import threading
import time
import traceback
import zlib
from collections.abc import Collection, Mapping, Sequence
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import yaml

from calm_lightning.comparison import Job, read_comparison
from calm_lightning.contracts import CalmError, EvaluationSet
from calm_lightning.machine import peak_memory
from calm_lightning.plain_data import parse_json


def compare(
    config: str,
    out: str | None = None,
    workers: int | None = None,
    rows: Sequence[str] = (),
    seeds: Sequence[int] = (),
) -> None:
    """Train and score every row, and write the table.

    Args:
        config: The comparison's YAML file.
        out: Folder of the results; runs/<name> by default.
        workers: Runs at a time, in place of the file's number.
        rows: Only these rows.
        seeds: Only these seeds.

    Raises:
        CalmError: If the file is at fault, or a row failed (after the others were run).
    """
    from calm_lightning.report import Progress, write_report

    if multiprocessing.parent_process() is not None:
        raise CalmError(
            "compare() was called again in one of its own worker processes: the script that calls "
            'it needs `if __name__ == "__main__":` around the call.'
        )
    comparison = read_comparison(Path(config))
    folder = Path(out) if out else Path("runs") / comparison.name
    jobs = [
        job
        for job in comparison.jobs
        if (not rows or job.row.name in rows) and (not seeds or job.seed in seeds)
    ]
    names = [row.name for row in comparison.rows]
    if strange := sorted(set(rows) - set(names)):
        raise CalmError(f"{config} has no rows {strange}; it has {names}.")
    if not jobs:
        raise CalmError(f"{config} has no run for seeds {list(seeds)}: {list(comparison.seeds)}.")
    if workers is not None and workers < 1:
        raise CalmError(f"--workers must be at least 1: got {workers}.")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CalmError(
            f"The results cannot go into {str(folder)!r}: {error.strerror}. Name a folder by --out."
        ) from None
    pending = [job for job in jobs if finished(job, folder) is None]
    count = workers or comparison.workers or _workers_of_this_machine(comparison.threads)
    count = min(count, max(1, len(pending)))
    failed: dict[str, str] = {}
    waiting, running = list(pending), dict[Job, BaseProcess]()
    free, worker_of = list(range(count)), dict[Job, int]()
    # Spawned, not forked: torch's threads do not survive a fork.
    context = multiprocessing.get_context("spawn")
    _raise_on_signals()
    with Progress(jobs, pending, folder, count) as progress:
        try:
            while waiting or running:
                while len(running) < count and (job := _next(waiting, running)) is not None:
                    waiting.remove(job)
                    arguments = (
                        job, folder, comparison.threads, dict(comparison.samples),
                        (*comparison.columns, *comparison.retention),
                    )  # fmt: skip
                    worker_of[job] = free.pop(0)
                    running[job] = context.Process(
                        target=_run_alone, args=(worker_of[job], *arguments)
                    )
                    running[job].start()
                progress.update()
                time.sleep(0.25)
                for job in [job for job, process in running.items() if not process.is_alive()]:
                    free.append(worker_of.pop(job))
                    if (code := running.pop(job).exitcode) != 0:
                        failed[f"{job.row.name}, seed {job.seed}"] = _reason(job, folder, code)
            progress.update()
        except BaseException:
            for process in running.values():
                process.terminate()
            raise
    results = [r for job in comparison.jobs if (r := finished(job, folder)) is not None]
    if results:
        write_report(comparison, results, folder, failed)
    if failed:
        told = "\n".join(f"  {name}: {reason}" for name, reason in failed.items())
        raise CalmError(
            f"{len(failed)} of {len(jobs)} runs failed; the others are in the table:\n{told}"
        )


def _raise_on_signals() -> None:
    """Let `kill` and a closed terminal raise, so that the workers are stopped too."""

    def stop(number: int, frame: Any) -> None:
        raise SystemExit(128 + number)

    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, stop)


def _next(waiting: Sequence[Job], running: Collection[Job]) -> Job | None:
    """The next job that needs nothing which is still to be made."""
    unfinished = {(job.row.name, job.seed) for job in (*waiting, *running)}
    for job in waiting:
        if not any((other.row.name, other.seed) in unfinished for other in job.before):
            return job
    return None


def _workers_of_this_machine(threads: int) -> int:
    """As many runs at a time as there are GPUs, or processors for their threads."""
    import torch

    return torch.cuda.device_count() or max(1, (os.cpu_count() or 1) // threads)


def _see_one_gpu(worker: int) -> None:
    """Where there are several GPUs, leave this process one of them, another for each worker."""
    import torch

    if (gpus := torch.cuda.device_count()) > 1:
        visible = os.environ.get("CUDA_VISIBLE_DEVICES") or ",".join(map(str, range(gpus)))
        os.environ["CUDA_VISIBLE_DEVICES"] = visible.split(",")[worker % gpus]


def _run_alone(
    worker: int,
    job: Job,
    out: Path,
    threads: int,
    samples: Mapping[str, int],
    sets: Sequence[str],
) -> None:
    """One run in this process, which is its own; what goes wrong is left in `error.txt`."""
    _see_one_gpu(worker)
    if (parent := multiprocessing.parent_process()) is not None:
        threading.Thread(target=_end_with, args=(parent,), daemon=True).start()
    error_file = job.folder(out) / "error.txt"
    error_file.unlink(missing_ok=True)
    try:
        run_job(job, out, threads, samples, sets)
    except Exception as error:
        told = str(error).strip() if isinstance(error, CalmError) else traceback.format_exc()
        error_file.parent.mkdir(parents=True, exist_ok=True)
        error_file.write_text(told + "\n", encoding="utf-8")
        sys.exit(1)


def _end_with(parent: BaseProcess) -> None:
    """Do not outlive a parent that was killed."""
    parent.join()
    os._exit(1)


def _reason(job: Job, out: Path, code: int | None) -> str:
    """Why a run failed, for the table."""
    file = job.folder(out) / "error.txt"
    if code is not None and code < 0:
        name = signal.Signals(-code).name
        memory = " (out of memory?)" if name == "SIGKILL" else ""
        return f"its process was ended by {name}{memory}"
    try:
        told = file.read_text(encoding="utf-8").strip()
    except OSError:
        return f"its process ended with status {code}"
    if not told.startswith("Traceback"):
        return told
    return f"{told.splitlines()[-1]} (whole traceback: {file})"


def finished(job: Job, out: Path) -> dict[str, Any] | None:
    """The job's result, if it is there and was made from the same config and backbones."""
    file = job.folder(out) / "result.json"
    try:
        result = parse_json(file.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return None
    return result if isinstance(result, dict) and result.get("key") == job.key() else None


def run_job(
    job: Job, out: Path, threads: int, samples: Mapping[str, int], sets: Sequence[str] = ()
) -> None:
    """Train and score one row with one seed, in this process; leave `result.json` behind.

    Args:
        job: The row and the seed.
        out: Folder of the comparison.
        threads: CPU threads.
        samples: How many answers of each evaluation set are kept.
        sets: Evaluation sets that there must be.

    Raises:
        CalmError: If the row cannot be run; before training if a set is missing.
    """
    import torch

    from calm_lightning.callbacks import CountWork
    from calm_lightning.report import JobProgress
    from calm_lightning.run import CalmCLI, quiet_libraries

    quiet_libraries()
    for name in ("lightning", "lightning.fabric", "lightning.pytorch"):
        logging.getLogger(name).setLevel(logging.ERROR)  # each has a level of its own
    sys.argv[1:] = []  # LightningCLI would warn of the parent's arguments
    torch.set_num_threads(threads)
    folder = job.folder(out)
    folder.mkdir(parents=True, exist_ok=True)
    config = job.config()
    if job.source is not None:
        config["model"]["start_from"] = str(_weights(job.source, out))
    (folder / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    quiet = {
        "logger": False, "enable_progress_bar": False, "enable_model_summary": False,
        "enable_checkpointing": False, "num_sanity_val_steps": 0, "limit_val_batches": 0,
        "default_root_dir": str(folder),
    }  # fmt: skip
    config["trainer"] = {**config.get("trainer", {}), **quiet}
    cli = CalmCLI(args=config, run=False)
    there = [each.name for each in cli.datamodule.evaluation_sets()]
    if (strange := sorted(set(sets) - set(there))) and not job.row.own_budget:
        raise CalmError(
            f"columns or retention name evaluation sets that there are not: {strange}; there are "
            f"{there}."
        )
    progress = JobProgress(folder)
    work = CountWork(None if job.measure is None else _result(job.measure, out)["training_flops"])
    cli.trainer.callbacks += [progress, work]  # type: ignore[attr-defined]
    key = job.key()  # of the files as they are now
    started = time.perf_counter()
    if job.row.train:
        cli.trainer.fit(cli.model, datamodule=cli.datamodule)
        if job.measure is not None and cli.trainer.global_step != cli.model.steps:
            raise CalmError(
                f"training ended after {cli.trainer.global_step} steps, and the arithmetic of "
                f"{job.measure.row.name!r} is {cli.model.steps}: something else stopped it (a "
                "callback?). Take that out, or compare by steps."
            )
        (folder / "result.json").unlink(missing_ok=True)  # it was of another model
        cli.model.language_model.save_pretrained(folder / "model")
    trained_seconds = time.perf_counter() - started if job.row.train else 0.0
    cli.trainer.test(cli.model, datamodule=cli.datamodule, verbose=False)
    speed = characters_per_second(cli.model)
    metrics, details = split_metrics(
        {name: float(value) for name, value in cli.trainer.callback_metrics.items()}, cli.model
    )
    result = {
        "name": job.row.name,
        "seed": job.seed,
        "metrics": metrics,
        "trained_parameters": cli.model.num_trainable,
        "seconds": round(trained_seconds, 1),
        "steps": cli.trainer.global_step if job.row.train else 0,
        "training_flops": round(work.of_a_step * cli.trainer.global_step),
        "config": str(folder / "config.yaml"),
        "commit": commit(),
        "hardware": hardware(cli.trainer),
        "details": details,
        "signatures": cli.model.signatures(),
        "characters_per_second": speed,
        "memory_mib": peak_memory(),
        "outcomes": cli.model.outcomes,
        "questions": {each.name: questions_hash(each) for each in cli.model.evaluation_sets},
        "losses": [each.name for each in cli.model.evaluation_sets if each.scorer is None],
        "test_seconds": round(time.perf_counter() - started - trained_seconds, 1),
        "samples": draw_samples(cli.model, samples),
        "curve": progress.curve,
        "key": key,
    }
    temporary = folder / "result.json.tmp"
    temporary.write_text(json.dumps(result, indent=1, allow_nan=False))
    temporary.replace(folder / "result.json")


def _result(source: Job, out: Path) -> dict[str, Any]:
    """What another job left, which this one needs."""
    if (result := finished(source, out)) is None:
        raise CalmError(
            f"row {source.row.name!r} with seed {source.seed}, which this one needs, is not "
            "finished. Run the comparison without --rows, or that row first."
        )
    return result


def _weights(source: Job, out: Path) -> Path:
    """Folder of a finished job's model."""
    _result(source, out)
    model = source.folder(out) / "model"
    if not model.is_dir():
        raise CalmError(
            f"The weights of row {source.row.name!r} are gone: there is no folder {str(model)!r}. "
            f"Remove {str(model.parent)!r} to have them made anew."
        )
    return model


def split_metrics(
    logged: Mapping[str, float], module: Any
) -> tuple[dict[str, float | None], dict[str, float | None]]:
    """The one number of each evaluation set, and all the others; None where it is not finite."""
    known = {
        name.removeprefix("test/"): round(value, 6) if math.isfinite(value) else None
        for name, value in logged.items()
        if name.startswith("test/")
    }
    headlines = {}
    for each in module.evaluation_sets:
        scorer = module.scorer(each.name)
        headlines[each.name] = f"{each.name}/{scorer.headline if scorer else 'loss_nats'}"
    metrics = {name: known[key] for name, key in headlines.items() if key in known}
    return metrics, {k: v for k, v in known.items() if k not in headlines.values()}


def draw_samples(module: Any, wanted: Mapping[str, int]) -> list[dict[str, str]]:
    """The first answers of the evaluation sets that are to be shown."""
    shown = []
    for each in module.evaluation_sets:
        examples = list(each.examples[: wanted.get(each.name, 0)])
        if not examples or not module._can_ask(examples):
            continue
        for example, answer in zip(examples, module.answer(examples, each), strict=True):
            shown.append(
                {
                    "set": each.name,
                    "prompt": example.prompt,
                    "target": example.target,
                    "answer": answer,
                }
            )
    return shown


def questions_hash(asked: EvaluationSet) -> int:
    """A number that two sets share if they ask the same."""
    known = 0
    for example in asked.examples:
        known = zlib.crc32(f"{example.prompt}\0{example.target}\0".encode(), known)
    return known


def hardware(trainer: Any) -> str:
    """What a run was computed on."""
    import torch

    if torch.device(trainer.strategy.root_device).type == "cuda":
        return f"{trainer.world_size} x {torch.cuda.get_device_name()}"
    threads = torch.get_num_threads()
    return f"{threads} thread{'s' if threads > 1 else ''} of a CPU ({platform.machine()})"


def characters_per_second(module: Any) -> float | None:
    """How fast the model answered; in characters, so that models of any tokenizer compare."""
    if not module.answering_seconds:
        return None
    return round(module.answered_characters / module.answering_seconds, 1)


def commit() -> str:
    """The commit of the working tree, marked if it was changed; empty outside a repository."""
    try:
        head = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=12", "--match="],
            capture_output=True, text=True, timeout=10, check=True,
        )  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        return ""
    return head.stdout.strip()
