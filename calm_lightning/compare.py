"""`calm compare`: many rows and seeds under one budget, as one table.

A comparison is a YAML file: what all rows share (`base`, a config of `calm fit`), the rows, each
with what differs, the seeds and the columns. Each (row, seed) is trained and scored in a
process of its own and leaves a `result.json`; what is finished is not done again, so a comparison
that was stopped goes on where it was. A run that fails, or is killed, disturbs no other.
"""

import copy
import hashlib
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
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import yaml

from calm_lightning.contracts import CalmError

BUDGET = (
    "max_steps", "max_epochs", "max_time", "min_steps", "min_epochs", "accumulate_grad_batches",
    "limit_train_batches", "overfit_batches", "limit_test_batches", "callbacks",
)  # fmt: skip
_FIELDS = {
    "name", "about", "base", "rows", "seeds", "columns", "paper", "samples", "threads", "workers",
    "extends", "only", "reference", "baseline", "retention",
}  # fmt: skip
_KINDS: dict[str, type] = {
    "base": dict, "paper": dict, "samples": dict, "columns": list, "only": list, "retention": list,
    "threads": int, "workers": int,
}  # fmt: skip
_A = {dict: "a mapping", list: "a list", int: "a whole number"}
_ROW_FIELDS = {"name", "label", "train", "config", "own_budget", "weights_of"}


@dataclass(frozen=True, eq=False)
class Row:
    """One line of a comparison.

    Attributes:
        name: As it appears in `results.json`.
        config: The whole config, base and row merged.
        train: False only scores it: once, whatever the seeds, or the weights of another row.
        label: What the table calls it.
        own_budget: Why this row has another budget or other data than the rest; empty if not.
        weights_of: The row whose trained weights are scored here in another way, seed by seed.
    """

    name: str
    config: dict[str, Any]
    train: bool = True
    label: str = ""
    own_budget: str = ""
    weights_of: "Row | None" = None

    @property
    def seeded(self) -> bool:
        """Whether another seed gives another result."""
        return self.train or self.weights_of is not None


@dataclass(frozen=True)
class Comparison:
    """A comparison as its YAML file says it.

    Attributes:
        name: Of the folder under `runs/`.
        rows: In the order of the table.
        seeds: Of training, one run each.
        columns: Names of evaluation sets, in the order of the table; empty means all.
        paper: Figures of the paper by row and column, as fractions, shown beside ours.
        samples: Evaluation set -> how many of its answers are kept to be shown.
        about: One line above the table.
        threads: CPU threads of each run.
        workers: Runs at a time; 0 means as many as the processors allow.
        reference: Name of the row with which all others are compared, question by question.
        baseline: Name of the row whose scores are to be kept; the untouched anchor.
        retention: Evaluation sets of which the table shows how much of the baseline is kept.
    """

    name: str
    rows: tuple[Row, ...]
    seeds: tuple[int, ...] = (0,)
    columns: tuple[str, ...] = ()
    paper: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    samples: Mapping[str, int] = field(default_factory=dict)
    about: str = ""
    threads: int = 1
    workers: int = 0
    reference: str = ""
    baseline: str = ""
    retention: tuple[str, ...] = ()

    @property
    def jobs(self) -> list["Job"]:
        """Every (row, seed) to be run; a row without training is scored once."""
        return [
            Job(row, seed)
            for seed in self.seeds
            for row in self.rows
            if row.seeded or seed == self.seeds[0]
        ]


@dataclass(frozen=True, eq=False)
class Job:
    """One row with one seed."""

    row: Row
    seed: int

    def folder(self, out: Path) -> Path:
        """Where this job's files are."""
        return out / "rows" / self.row.name / f"seed_{self.seed}"

    @property
    def source(self) -> "Job | None":
        """The job whose weights this one scores."""
        return None if self.row.weights_of is None else Job(self.row.weights_of, self.seed)

    def config(self) -> dict[str, Any]:
        """The row's config with this seed in every place that has one.

        Backbones with random weights get other ones with every seed.
        """
        config = copy.deepcopy(self.row.config)
        for source in _backbones(config):
            if source.get("weights") == "random":
                source["seed"] = source.get("seed", 0) + self.seed
        config["seed_everything"] = self.seed
        config["data"] = config.get("data") or {}
        config["data"]["init_args"] = {**(config["data"].get("init_args") or {}), "seed": self.seed}
        return config

    def key(self) -> str:
        """A hash of all that decides the result: config, the backbones' files and the data's."""
        digest = hashlib.sha256(json.dumps(self.config(), sort_keys=True, default=str).encode())
        read = {name: part for name, part in self.row.config.items() if name != "trainer"}
        for file in _files_in(read):  # a trainer writes
            digest.update(_hash_of(file, file.stat().st_mtime_ns, file.stat().st_size))
        if self.source is not None:
            digest.update(self.source.key().encode())
        return digest.hexdigest()


def _backbones(config: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The backbones that a config names, the anchor first."""
    model = config.get("model") or {}
    sources = [model.get("anchor"), *(model.get("augmenting") or [])]
    return [source for source in sources if isinstance(source, dict)]


def _files_in(said: Any) -> Iterator[Path]:
    """The files, and all files in the folders, that a part of a config names.

    What is called a cache is left out: it grows, and does not change what comes out.
    """
    if isinstance(said, Mapping):
        said = [value for name, value in said.items() if name != "cache"]
    if isinstance(said, list):
        for each in said:
            yield from _files_in(each)
    elif isinstance(said, str) and 0 < len(said) < 4096:
        path = Path(os.path.expandvars(said)).expanduser()
        if path.is_file():
            yield path
        elif path.is_dir() and any(map(str.isalnum, said)):  # "/" and ".." may be text
            yield from (file for file in sorted(path.rglob("*")) if _is_read(file))


def _is_read(file: Path) -> bool:
    """Whether a file in a folder is more than what we and others write about the folder."""
    told = file.name == "README.md" or file.name.startswith((".", "evaluation"))
    return file.is_file() and not told


@cache
def _hash_of(file: Path, changed: int, size: int) -> bytes:
    """A hash of a file's content, made again if the file has changed."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").digest()


# ---------------------------------------------------------------------- reading the file


def read_comparison(file: Path) -> Comparison:
    """Read a comparison's YAML file.

    `extends` names another comparison, relative to this file, whose entries hold where this one
    has none; `base` is put over the other's as a row's config is over the base. `only` keeps the
    rows of these names.

    Raises:
        CalmError: If the file is missing, is not YAML, or says something that has no meaning.
    """
    said = _read_extended(file)
    if not isinstance(said, dict) or not isinstance(said.get("rows"), list) or not said["rows"]:
        raise CalmError(f"{file}: expected a mapping with `base` and a list `rows`.")
    _only(said, _FIELDS, str(file))
    for name, kind in _KINDS.items():
        if said.get(name) is not None and not isinstance(said[name], kind):
            raise CalmError(f"{file}: `{name}` must be {_A[kind]}, not {said[name]!r}.")
    _check_entries(said, file)
    base = said.get("base") or {}
    rows: list[Row] = []
    for number, row in enumerate(said["rows"], 1):
        rows.append(_read_row(row, base, f"{file}, row {number}", rows))
    names = [row.name for row in rows]
    if len(set(names)) != len(names):
        raise CalmError(f"{file}: two rows have one name: {sorted(names)}.")
    only = said.get("only") or names
    if strange := sorted(set(only) - set(names)):
        raise CalmError(f"{file}: `only` names rows that there are not: {strange}; rows: {names}.")
    rows = [row for row in rows if row.name in only]
    for row in rows:
        if row.weights_of is not None and row.weights_of not in rows:
            raise CalmError(f"{file}: `only` keeps {row.name!r} without {row.weights_of.name!r}.")
    seeds = said.get("seeds", [0])
    if not isinstance(seeds, list) or not seeds or not all(type(seed) is int for seed in seeds):
        raise CalmError(f"{file}: seeds must be a list of whole numbers, not {seeds!r}.")
    return Comparison(
        name=str(said.get("name") or file.stem),
        rows=tuple(rows),
        seeds=tuple(seeds),
        columns=tuple(said.get("columns") or ()),
        paper=said.get("paper") or {},
        samples=said.get("samples") or {},
        about=str(said.get("about") or ""),
        threads=max(1, said.get("threads") or 1),
        workers=max(0, said.get("workers") or 0),
        reference=_row_of(said, "reference", rows, names, file),
        baseline=_row_of(said, "baseline", rows, names, file),
        retention=tuple(said.get("retention") or ()),
    )


def _check_entries(said: Mapping[str, Any], file: Path) -> None:
    """Refuse what would be found out only when the table is written, after all training."""
    for name in ("columns", "retention", "only"):
        if strange := [each for each in said.get(name) or () if not isinstance(each, str)]:
            raise CalmError(f"{file}: `{name}` is a list of names; {strange} are none.")
    for row, figures in (said.get("paper") or {}).items():
        numbers = figures.values() if isinstance(figures, dict) else [None]
        if not all(type(value) in (int, float) for value in numbers):
            raise CalmError(
                f"{file}: `paper` has a mapping of columns to figures for each row, not "
                f"{figures!r} for {row!r}."
            )
    for name, count in (said.get("samples") or {}).items():
        if type(count) is not int or count < 0:
            raise CalmError(f"{file}: `samples` of {name!r} must be a whole number, not {count!r}.")
    for name in ("threads", "workers"):
        if isinstance(said.get(name), bool):
            raise CalmError(f"{file}: `{name}` must be a whole number, not {said[name]!r}.")


def _row_of(
    said: Mapping[str, Any], entry: str, rows: Sequence[Row], names: Sequence[str], file: Path
) -> str:
    """The row that an entry names; none if `only` has left it out."""
    name = str(said.get(entry) or "")
    if name and name not in names:
        raise CalmError(f"{file}: `{entry}` names no row: {name!r}; rows: {list(names)}.")
    return name if any(row.name == name for row in rows) else ""


def _read_extended(file: Path, seen: tuple[Path, ...] = ()) -> Any:
    """A file's content over that of the file that it extends, which may extend another."""
    if file.resolve() in seen:
        chain = " -> ".join(path.name for path in (*seen, file))
        raise CalmError(f"{file}: `extends` leads back to itself: {chain}.")
    said = _read_yaml(file)
    if not isinstance(said, dict) or "extends" not in said:
        return said
    parent = _read_extended(file.parent / str(said["extends"]), (*seen, file.resolve()))
    if not isinstance(parent, dict):
        return said
    bases = [each.get("base") for each in (parent, said)]
    if all(isinstance(base, dict) for base in bases):
        said = {**said, "base": merge(*bases)}  # type: ignore[arg-type]
    return {**parent, **said}


def _read_yaml(file: Path) -> Any:
    try:
        return yaml.safe_load(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CalmError(f"There is no file {str(file)!r}. Expected a comparison in YAML.") from None
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise CalmError(f"{file} cannot be read as YAML: {error}") from None


def _read_row(said: Any, base: Mapping[str, Any], where: str, before: Sequence[Row]) -> Row:
    if not isinstance(said, dict) or "name" not in said:
        raise CalmError(f"{where}: expected a mapping with at least `name`, got {said!r}.")
    _only(said, _ROW_FIELDS, where)
    if not str(said["name"]) or set(str(said["name"])) & set("/\\") or str(said["name"])[0] == ".":
        raise CalmError(f"{where}: name={said['name']!r} cannot be the name of a folder.")
    own = said.get("config") or {}
    if not isinstance(own, dict) or not isinstance(own.get("trainer") or {}, dict):
        raise CalmError(f"{where} ({said['name']}): config must be a mapping, as in `calm fit`.")
    if not isinstance(said.get("train", True), bool):
        raise CalmError(f"{where} ({said['name']}): train must be true or false.")
    reason = str(said.get("own_budget") or "")
    budget = [f"trainer.{key}" for key in BUDGET if key in (own.get("trainer") or {})]
    budget += ["model.start_from"] if "start_from" in (own.get("model") or {}) else []
    if (budget or "data" in own) and not reason:
        raise CalmError(
            f"{where} ({said['name']}): it changes {', '.join(budget or ['data'])}, so it would "
            "not be compared under the same budget and data. Take that out, or say why in "
            "`own_budget`; the table will show the reason."
        )
    source = _source(said, before, f"{where} ({said['name']})")
    return Row(
        name=str(said["name"]),
        config=merge(base if source is None else source.config, own),
        train=bool(said.get("train", source is None)),
        label=str(said.get("label") or said["name"]),
        own_budget=reason,
        weights_of=source,
    )


def _source(said: Mapping[str, Any], before: Sequence[Row], where: str) -> Row | None:
    """The row that `weights_of` names; what this row does not say is as there."""
    if "weights_of" not in said:
        return None
    trained = {row.name: row for row in before if row.train}
    if said["weights_of"] not in trained:
        raise CalmError(
            f"{where}: weights_of={said['weights_of']!r} must name a row above it that is trained: "
            f"{sorted(trained)}."
        )
    if said.get("train"):
        raise CalmError(f"{where}: a row with `weights_of` is only scored; take `train` out.")
    return trained[said["weights_of"]]


def merge(base: Mapping[str, Any], own: Mapping[str, Any]) -> dict[str, Any]:
    """`base` with the entries of `own` put over it, mapping by mapping.

    Another `class_path` replaces the class with its arguments, because they belong together. A
    mapping that is the value of an argument (a task's `mixture`, say) is replaced whole, as
    `calm fit` does with two configs.
    """
    if "class_path" in own and own["class_path"] != base.get("class_path"):
        return copy.deepcopy(dict(own))
    merged = copy.deepcopy(dict(base))
    for key, value in own.items():
        both = isinstance(value, Mapping) and isinstance(merged.get(key), Mapping)
        if both and key == "init_args":
            merged[key] = {**merged[key], **_merge_arguments(merged[key], value)}
        else:
            merged[key] = merge(merged[key], value) if both else copy.deepcopy(value)
    return merged


def _merge_arguments(base: Mapping[str, Any], own: Mapping[str, Any]) -> dict[str, Any]:
    def is_class(value: Any) -> bool:
        return isinstance(value, Mapping) and bool({"class_path", "init_args"} & set(value))

    return {
        key: merge(base[key], value)
        if is_class(value) and is_class(base.get(key))
        else copy.deepcopy(value)
        for key, value in own.items()
    }


def _only(said: Mapping[str, Any], known: set[str], where: str) -> None:
    strange = sorted(set(said) - known)
    if strange:
        raise CalmError(f"{where}: unknown entries {strange}; known are {sorted(known)}.")


# ---------------------------------------------------------------------- running


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
    folder.mkdir(parents=True, exist_ok=True)
    pending = [job for job in jobs if finished(job, folder) is None]
    count = workers or comparison.workers or _workers_of_this_machine(comparison.threads)
    count = min(count, max(1, len(pending)))
    failed: dict[str, str] = {}
    waiting, running = list(pending), dict[Job, BaseProcess]()
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
                    running[job] = context.Process(target=_run_alone, args=arguments)
                    running[job].start()
                progress.update()
                time.sleep(0.25)
                for job in [job for job, process in running.items() if not process.is_alive()]:
                    code = running.pop(job).exitcode
                    if code != 0:
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
    """The next job whose weights, if it needs those of another, are not still to be made."""
    unfinished = {(job.row.name, job.seed) for job in (*waiting, *running)}
    for job in waiting:
        if job.source is None or (job.source.row.name, job.seed) not in unfinished:
            return job
    return None


def _workers_of_this_machine(threads: int) -> int:
    """As many runs at a time as there are GPUs, or processors for their threads."""
    import torch

    return torch.cuda.device_count() or max(1, (os.cpu_count() or 1) // threads)


def _run_alone(
    job: Job, out: Path, threads: int, samples: Mapping[str, int], sets: Sequence[str]
) -> None:
    """One run in this process, which is its own; what goes wrong is left in `error.txt`."""
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
        result = json.loads(file.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return None
    return result if result.get("key") == job.key() else None


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
    cli.trainer.callbacks.append(progress)  # type: ignore[attr-defined]
    key = job.key()  # of the files as they are now
    started = time.perf_counter()
    if job.row.train:
        cli.trainer.fit(cli.model, datamodule=cli.datamodule)
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
        "config": str(folder / "config.yaml"),
        "commit": commit(),
        "hardware": hardware(cli.trainer),
        "details": details,
        "signatures": cli.model.signatures(),
        "characters_per_second": speed,
        "memory_mib": peak_memory(),
        "outcomes": cli.model.outcomes,
        "losses": [each.name for each in cli.model.evaluation_sets if each.scorer is None],
        "test_seconds": round(time.perf_counter() - started - trained_seconds, 1),
        "samples": draw_samples(cli.model, samples),
        "curve": progress.curve,
        "key": key,
    }
    temporary = folder / "result.json.tmp"
    temporary.write_text(json.dumps(result, indent=1, allow_nan=False))
    temporary.replace(folder / "result.json")


def _weights(source: Job, out: Path) -> Path:
    """Folder of a finished job's model."""
    model = source.folder(out) / "model"
    if finished(source, out) is None or not model.is_dir():
        raise CalmError(
            f"the weights of row {source.row.name!r} with seed {source.seed} are not there: that "
            "run is not finished. Run the comparison without --rows, or that row first."
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


def peak_memory() -> int:
    """The most memory that this process has held so far, in MiB; on a GPU, of the GPU."""
    import resource

    import torch

    if torch.cuda.is_available() and torch.cuda.max_memory_allocated():
        return torch.cuda.max_memory_allocated() >> 20
    unit = 1 << 20 if sys.platform == "darwin" else 1 << 10  # bytes there, KiB elsewhere
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit >> 20


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
