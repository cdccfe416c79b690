"""`calm compare`: many rows and seeds under one budget, as one table.

Each (row, seed) of a comparison (`calm_lightning.comparison`) is trained and scored in a process of
its own and leaves a `result.json`; what is finished is not done again, so a comparison that was
stopped goes on where it was. A run that fails, or is killed, disturbs no other.
"""

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

from calm_lightning.alone import alone_in
from calm_lightning.comparison import Comparison, Job, nearest, read_comparison
from calm_lightning.contracts import CalmError, EvaluationSet
from calm_lightning.machine import peak_memory
from calm_lightning.results import (
    failure,
    finished,
    forget_failure,
    keep_failure,
    keep_result,
    result_of,
    save_beside,
    weights_of,
)

_STOPPED = "it ended without a result: it was stopped from outside"
_CHANGED = (
    "what it read was changed while it ran, so its result is not that of the files as they are "
    "now; the same command runs it again"
)


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
    from calm_lightning.report import write_report

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
        raise CalmError(f"{config} has no rows {strange}; it has {names}.{nearest(strange, names)}")
    if unknown := sorted(set(seeds) - set(comparison.seeds)):
        raise CalmError(
            f"{config} has no runs with seeds {unknown}; it has {list(comparison.seeds)}. Add them "
            "to its `seeds`."
        )
    if not jobs:
        raise CalmError(
            f"{config} has nothing to do for seeds {list(seeds)}: rows without training are scored "
            f"once, with seed {comparison.seeds[0]}."
        )
    if workers is not None and workers < 1:
        raise CalmError(f"--workers must be at least 1: got {workers}.")
    with alone_in(folder, "calm compare", "--out"):
        failed = _run(jobs, comparison, folder, workers)
        earlier = {
            str(job): reason
            for job in comparison.jobs
            if str(job) not in failed and (reason := failure(job, folder)) is not None
        }
        results = [r for job in comparison.jobs if (r := finished(job, folder)) is not None]
        write_report(comparison, results, folder, {**earlier, **failed})
    if failed or earlier:
        raise CalmError(_told(failed, earlier, len(jobs)))


def _run(
    jobs: Sequence[Job], comparison: Comparison, folder: Path, workers: int | None
) -> dict[str, str]:
    """Run what is not finished of these jobs.

    Returns:
        By job, why it failed.
    """
    from calm_lightning.progress import Progress

    pending = [job for job in jobs if finished(job, folder) is None]
    count = workers or comparison.workers or _workers_of_this_machine(comparison.threads)
    count = min(count, max(1, len(pending)))
    failed: dict[str, str] = {}
    waiting, running = list(pending), dict[Job, BaseProcess]()
    free, worker_of = list(range(count)), dict[Job, int]()
    sets = [*comparison.columns, *comparison.retention, *comparison.samples]
    sets += [column for figures in comparison.paper.values() for column in figures]
    arguments = (folder, comparison.threads, dict(comparison.samples), sets)
    # Spawned, not forked: torch's threads do not survive a fork.
    context = multiprocessing.get_context("spawn")
    _raise_on_signals()
    with Progress(jobs, pending, folder, count) as progress:
        try:
            while waiting or running:
                while len(running) < count and (job := _next(waiting, running)) is not None:
                    waiting.remove(job)
                    worker_of[job] = free.pop(0)
                    running[job] = context.Process(
                        target=_run_alone, args=(worker_of[job], job, *arguments)
                    )
                    running[job].start()
                progress.update()
                time.sleep(0.25)
                for job in [job for job, process in running.items() if not process.is_alive()]:
                    free.append(worker_of.pop(job))
                    code = running.pop(job).exitcode
                    if code != 0 or finished(job, folder) is None:
                        failed[str(job)] = reason = _reason(job, folder, code)
                        keep_failure(job, folder, reason)
            progress.update()
        except BaseException:
            for process in running.values():
                process.terminate()
            raise
    return failed


def _told(failed: Mapping[str, str], earlier: Mapping[str, str], runs: int) -> str:
    """What the command says of failures, of its own and of earlier ones."""
    lines = []
    if failed:
        others = "; the others are in the table" if len(failed) < runs else ""
        lines += [f"{len(failed)} of {runs} runs failed{others}:"]
        lines += [f"  {name}: {reason}" for name, reason in failed.items()]
    if earlier:
        lines += ["These failed before, and were not run again now (--rows, --seeds):"]
        lines += [f"  {name}: {reason}" for name, reason in earlier.items()]
    return "\n".join(lines)


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
    forget_failure(job, out)
    try:
        run_job(job, out, threads, samples, sets)
    except Exception as error:
        told = str(error).strip() if isinstance(error, CalmError) else traceback.format_exc()
    except SystemExit as end:
        # Lightning ends a training so, without a status, when its process is asked to stop.
        said = f" ({end.code})" if isinstance(end.code, str) else ""
        told = f"{_STOPPED}{said}"
    else:
        return
    error_file = job.folder(out) / "error.txt"
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
    if code == 0:
        changed = (job.folder(out) / "result.json").exists()
        return _CHANGED if changed else _STOPPED
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
    from calm_lightning.progress import JobProgress
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
        config["model"]["start_from"] = str(weights_of(job.source, out))
    (folder / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    quiet = {
        "logger": False, "enable_progress_bar": False, "enable_model_summary": False,
        "enable_checkpointing": False, "num_sanity_val_steps": 0, "limit_val_batches": 0,
        "default_root_dir": str(folder),
    }  # fmt: skip
    config["trainer"] = {**config.get("trainer", {}), **quiet}
    cli = CalmCLI(args=config, run=False)
    there = [each.name for each in cli.datamodule.evaluation_sets()]
    if (strange := sorted(set(sets) - set(there), key=str)) and not job.row.own_budget:
        raise CalmError(
            "columns, retention, samples or paper name evaluation sets that there are not: "
            f"{strange}; there are {there}.{nearest(strange, there)}"
        )
    progress = JobProgress(folder)
    work = CountWork(None if job.measure is None else result_of(job.measure, out)["training_flops"])
    cli.trainer.callbacks += [progress, work]  # type: ignore[attr-defined]
    key = job.key()  # of the files as they are now
    started = time.perf_counter()
    trained = None
    if job.row.train:
        cli.trainer.fit(cli.model, datamodule=cli.datamodule)
        if job.measure is not None and cli.trainer.global_step != cli.model.steps:
            raise CalmError(
                f"training ended after {cli.trainer.global_step} steps, and the arithmetic of "
                f"{job.measure.row.name!r} is {cli.model.steps}: something else stopped it (a "
                "callback?). Take that out, or compare by steps."
            )
        trained = save_beside(cli.model.language_model.save_pretrained, folder)
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
        "lower_is_better": [
            each.name
            for each in cli.model.evaluation_sets
            if (scorer := cli.model.scorer(each.name)) is None or scorer.higher_is_better is False
        ],
        "losses": [each.name for each in cli.model.evaluation_sets if each.scorer is None],
        "test_seconds": round(time.perf_counter() - started - trained_seconds, 1),
        "samples": draw_samples(cli.model, samples),
        "curve": progress.curve,
        "key": key,
    }
    keep_result(result, folder, trained)


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
