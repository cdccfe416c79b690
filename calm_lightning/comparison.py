"""What a comparison's YAML file says: rows, seeds, and what decides a result.

A comparison is a YAML file: what all rows share (`base`, a config of `calm fit`), the rows, each
with what differs, the seeds and the columns. Running it is `calm_lightning.compare`.
"""

import copy
import hashlib
import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from functools import cache
from pathlib import Path
from typing import Any, Literal, get_args

import yaml

from calm_lightning.contracts import CalmError
from calm_lightning.plain_data import parse_yaml, refuse_hidden_bombs

Budget = Literal["steps", "flops"]
BUDGET = (
    "max_steps", "max_epochs", "max_time", "min_steps", "min_epochs", "accumulate_grad_batches",
    "limit_train_batches", "overfit_batches", "limit_test_batches", "callbacks",
)  # fmt: skip
_FIELDS = {
    "name", "about", "base", "rows", "seeds", "columns", "paper", "samples", "threads", "workers",
    "extends", "only", "reference", "baseline", "retention", "budget", "wins",
}  # fmt: skip
_KINDS: dict[str, type] = {
    "base": dict, "paper": dict, "samples": dict, "columns": list, "only": list, "retention": list,
    "threads": int, "workers": int,
}  # fmt: skip
_CACHES = {"cache", "cache_states"}  # entries of a config
_MOST = 1024  # threads, and runs at a time
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
        own_anchor: What anchor it has, if it is another one than the base's; empty if not.
        weights_of: The row whose trained weights are scored here in another way, seed by seed.
        work_of: The row that tells how much arithmetic this one may be trained with, seed by seed;
            None leaves it the steps of its config.
    """

    name: str
    config: dict[str, Any]
    train: bool = True
    label: str = ""
    own_budget: str = ""
    own_anchor: str = ""
    weights_of: "Row | None" = None
    work_of: "Row | None" = None

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
        wins: Name of the row against which the table counts on how many sets each row is better,
            beside its average over all sets; gains.png shows by how much.
        budget: What all trained rows have the same of: `steps` of as many examples, or `flops`, as
            much arithmetic as the reference takes in its steps.
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
    wins: str = ""
    budget: Budget = "steps"

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

    def __str__(self) -> str:
        return f"{self.row.name}, seed {self.seed}"

    def folder(self, out: Path) -> Path:
        """Where this job's files are."""
        return out / "rows" / self.row.name / f"seed_{self.seed}"

    @property
    def source(self) -> "Job | None":
        """The job whose weights this one scores."""
        return None if self.row.weights_of is None else Job(self.row.weights_of, self.seed)

    @property
    def measure(self) -> "Job | None":
        """The job that tells how much arithmetic this one may take."""
        return None if self.row.work_of is None else Job(self.row.work_of, self.seed)

    @property
    def before(self) -> "list[Job]":
        """The jobs that have to be finished first."""
        return [job for job in (self.source, self.measure) if job is not None]

    def config(self) -> dict[str, Any]:
        """The row's config with this seed in every place that has one.

        Backbones with random weights get other ones with every seed.
        """
        config = copy.deepcopy(self.row.config)
        for source in _backbones(config):
            if source.get("weights") == "random" and type(source.get("seed", 0)) is int:
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
        for job in self.before:
            digest.update(job.key().encode())
        return digest.hexdigest()


def _backbones(config: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The backbones that a config names, the anchor first."""
    model = config.get("model") or {}
    sources = [model.get("anchor"), *(model.get("augmenting") or [])]
    return [source for source in sources if isinstance(source, dict)]


def _files_in(said: Any) -> Iterator[Path]:
    """The files, and all files in the folders, that a part of a config names.

    Caches are left out: they grow, and do not change what comes out.
    """
    if isinstance(said, Mapping):
        said = [value for name, value in said.items() if name not in _CACHES]
    if isinstance(said, list):
        for each in said:
            yield from _files_in(each)
    elif isinstance(said, str) and 0 < len(said) < 4096:
        with suppress(OSError, ValueError):  # a text that is too long for a name, say
            yield from _files_of(Path(os.path.expandvars(said)).expanduser())


def _files_of(path: Path) -> Iterator[Path]:
    """The file; all files of a folder; those that `a/{source}.tsv` stands for."""
    if path.is_file():
        yield path
    elif path.is_dir() and any(map(str.isalnum, path.name)):  # "/" and ".." may be text
        yield from (file for file in sorted(path.rglob("*")) if _is_read(file))
    elif "{" in path.name and path.parent.is_dir():
        yield from sorted(path.parent.glob(re.sub(r"\{[^{}]*\}", "*", path.name)))


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
    _check_config(said.get("base") or {}, f"{file}, base")
    base = said.get("base") or {}
    rows: list[Row] = []
    for number, row in enumerate(said["rows"], 1):
        rows.append(_read_row(row, base, f"{file}, row {number}", rows))
    names = [row.name for row in rows]
    if len(set(names)) != len(names):
        raise CalmError(f"{file}: two rows have one name: {sorted(names)}.")
    only = said.get("only") or names
    if strange := sorted(set(only) - set(names)):
        raise CalmError(
            f"{file}: `only` names rows that there are not: {strange}; rows: {names}."
            f"{nearest(strange, names)}"
        )
    if strange := sorted(set(said.get("paper") or ()) - set(names), key=str):
        raise CalmError(
            f"{file}: `paper` has figures of rows that there are not: {strange}; rows: {names}."
            f"{nearest(strange, names)}"
        )
    if said.get("retention") and not said.get("baseline"):
        raise CalmError(
            f"{file}: `retention` is what is kept of a row's scores: name that row by `baseline` "
            f"(rows: {names}), or take `retention` out."
        )
    rows = [row for row in rows if row.name in only]
    budget = said.get("budget", "steps")
    if budget not in get_args(Budget):
        raise CalmError(f"{file}: budget is `steps` or `flops`, not {budget!r}.")
    if budget == "flops":
        rows = _with_work_of(str(said.get("reference") or ""), rows, file)
    for row in rows:
        if row.weights_of is not None and row.weights_of not in rows:
            raise CalmError(f"{file}: `only` keeps {row.name!r} without {row.weights_of.name!r}.")
    seeds = said.get("seeds", [0])
    if not isinstance(seeds, list) or not seeds or not all(type(seed) is int for seed in seeds):
        raise CalmError(f"{file}: seeds must be a list of whole numbers, not {seeds!r}.")
    if len(set(seeds)) < len(seeds) or not 0 <= min(seeds) <= max(seeds) < 2**32:
        raise CalmError(f"{file}: seeds must differ, and be from 0 to 2^32 - 1: got {seeds}.")
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
        wins=_row_of(said, "wins", rows, names, file),
        retention=tuple(said.get("retention") or ()),
        budget=budget,
    )


def _with_work_of(name: str, rows: Sequence[Row], file: Path) -> list[Row]:
    """The rows, each with that row as its measure whose budget is the common one."""
    measure = next((row for row in rows if row.name == name and row.train), None)
    if any((row.config.get("trainer") or {}).get("max_time") for row in rows if row.train):
        raise CalmError(f"{file}: trainer.max_time and budget: flops are two budgets; keep one.")
    if measure is None:
        raise CalmError(
            f"{file}: budget: flops gives every row as much arithmetic as the `reference` takes, "
            f"so that must be a row that is trained and kept by `only`; it is {name or None!r}."
        )
    changed = {
        row: replace(row, work_of=measure)
        for row in rows
        if row.train and row is not measure and not row.own_budget
    }
    return [
        replace(row, weights_of=changed[row.weights_of])
        if row.weights_of in changed
        else changed.get(row, row)
        for row in rows
    ]


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
        value = said.get(name)
        if isinstance(value, bool) or (value is not None and not 0 <= value <= _MOST):
            limit = f" and at most {_MOST}" if value > _MOST else ""
            raise CalmError(
                f"{file}: `{name}` must be a whole number of 0 or more{limit}, not {value!r}."
            )
    own = said.get("name")
    if own is not None and not (isinstance(own, str) and _is_folder_name(own)):
        raise CalmError(f"{file}: name={own!r} cannot be the name of a folder.")
    try:
        json.dumps(said, sort_keys=True, default=str)
    except (TypeError, ValueError, RecursionError) as error:
        raise CalmError(
            f"{file}: its entries have no form as JSON ({error}). Names of entries are texts: put "
            "a number among them in quotes."
        ) from None


def _is_folder_name(name: str) -> bool:
    return 0 < len(name) <= 200 and not set(name) & set("/\\\0") and name[0] != "."


def _check_config(config: Any, where: str) -> None:
    """Refuse what is no config of `calm fit` by its shape; the rest is checked where it is run."""
    parts = {"": config}
    if isinstance(config, Mapping):
        parts |= {name: config.get(name) or {} for name in ("model", "data", "trainer")}
        for name in ("model", "data"):
            inner = parts[name] if isinstance(parts[name], Mapping) else {}
            parts |= {f"{name}.{k}": inner.get(k) or {} for k in ("init_args", "anchor")}
    for name, part in parts.items():
        if not isinstance(part, Mapping):
            what = f"`{name}`" if name else "config"
            raise CalmError(f"{where}: {what} must be a mapping, as in `calm fit`, not {part!r}.")
    augmenting = (config.get("model") or {}).get("augmenting") or []
    if not isinstance(augmenting, list):
        raise CalmError(f"{where}: `model.augmenting` must be a list, not {augmenting!r}.")


def _row_of(
    said: Mapping[str, Any], entry: str, rows: Sequence[Row], names: Sequence[str], file: Path
) -> str:
    """The row that an entry names; none if `only` has left it out."""
    name = str(said.get(entry) or "")
    if name and name not in names:
        raise CalmError(
            f"{file}: `{entry}` names no row: {name!r}; rows: {list(names)}."
            f"{nearest([name], names)}"
        )
    return name if any(row.name == name for row in rows) else ""


def _read_extended(file: Path, seen: tuple[Path, ...] = ()) -> Any:
    """A file's content over that of the file that it extends, which may extend another."""
    if file.resolve() in seen:
        chain = " -> ".join(path.name for path in (*seen, file))
        raise CalmError(f"{file}: `extends` leads back to itself: {chain}.")
    said = _read_yaml(file)
    if not isinstance(said, dict) or "extends" not in said:
        return said
    if not isinstance(said["extends"], str) or not said["extends"]:
        raise CalmError(f"{file}: `extends` names another file, not {said['extends']!r}.")
    parent = _read_extended(file.parent / said["extends"], (*seen, file.resolve()))
    if not isinstance(parent, dict):
        return said
    bases = [each.get("base") for each in (parent, said)]
    if all(isinstance(base, dict) for base in bases):
        said = {**said, "base": merge(*bases)}  # type: ignore[arg-type]
    # Not the parent's name: its results would be written over.
    return {**parent, **said, "name": said.get("name") or file.stem}


def _read_yaml(file: Path) -> Any:
    try:
        said = parse_yaml(file.read_text(encoding="utf-8"))
        refuse_hidden_bombs(said)
        return said
    except FileNotFoundError:
        raise CalmError(f"There is no file {str(file)!r}. Expected a comparison in YAML.") from None
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise CalmError(f"{file} cannot be read as YAML: {error}") from None


def _read_row(said: Any, base: Mapping[str, Any], where: str, before: Sequence[Row]) -> Row:
    if not isinstance(said, dict) or "name" not in said:
        raise CalmError(f"{where}: expected a mapping with at least `name`, got {said!r}.")
    _only(said, _ROW_FIELDS, where)
    if not _is_folder_name(str(said["name"])):
        raise CalmError(f"{where}: name={said['name']!r} cannot be the name of a folder.")
    own = said.get("config") or {}
    _check_config(own, f"{where} ({said['name']})")
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
    config = merge(base if source is None else source.config, own)
    there, here = ((each.get("model") or {}).get("anchor") or {} for each in (base, config))
    anchor = ", ".join(f"{entry}: {value}" for entry, value in here.items())
    return Row(
        name=str(said["name"]),
        config=config,
        train=bool(said.get("train", source is None)),
        label=str(said.get("label") or said["name"]),
        own_budget=reason or (source.own_budget if source is not None else ""),
        own_anchor=f"another anchor ({anchor})" if there not in ({}, here) else "",
        weights_of=source,
    )


def _source(said: Mapping[str, Any], before: Sequence[Row], where: str) -> Row | None:
    """The row that `weights_of` names; what this row does not say is as there."""
    if "weights_of" not in said:
        return None
    trained = {row.name: row for row in before if row.train}
    if not isinstance(said["weights_of"], str) or said["weights_of"] not in trained:
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


def nearest(strange: Iterable[Any], known: Sequence[str]) -> str:
    """What may have been meant, as a question; nothing if no known name is like a strange one."""
    near = [m for name in strange for m in get_close_matches(str(name), known, 1, 0.6)]
    return f" Did you mean {near[0]}?" if near else ""


def _only(said: Mapping[str, Any], known: set[str], where: str) -> None:
    strange = sorted(set(said) - known, key=str)
    if strange:
        raise CalmError(f"{where}: unknown entries {strange}; known are {sorted(known)}.")
