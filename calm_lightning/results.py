"""What the runs of a comparison leave on disk: results, failures and trained models.

A run has a folder of its own in the comparison's: `result.json` is written last, so what has one is
finished; `failed.json` says why there is none; `error.txt` holds the whole message.
"""

import json
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from calm_lightning.comparison import Job
from calm_lightning.contracts import CalmError
from calm_lightning.plain_data import parse_json

Result = dict[str, Any]
"""What one run leaves: scores by evaluation set, costs, answers, and where it came from."""


def write_whole(text: str, file: Path) -> None:
    """Write a file that appears whole or not at all, whoever else writes it."""
    temporary = file.with_name(f".{file.name}.{os.getpid()}.tmp")
    try:
        temporary.write_text(text, encoding="utf-8")
        temporary.replace(file)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise


def finished(job: Job, out: Path) -> dict[str, Any] | None:
    """The job's result, if it is there and was made from the same config and backbones."""
    return _of_this_job(job, job.folder(out) / "result.json")


def failure(job: Job, out: Path) -> str | None:
    """Why the job, as it is now, was run and is not finished; None if that is not so."""
    if finished(job, out) is not None:
        return None
    said = _of_this_job(job, job.folder(out) / "failed.json")
    return None if said is None else str(said.get("reason"))


def _of_this_job(job: Job, file: Path) -> dict[str, Any] | None:
    try:
        said = parse_json(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return said if isinstance(said, dict) and said.get("key") == job.key() else None


def keep_failure(job: Job, out: Path, reason: str) -> None:
    """Remember why a job failed, for tables that are made later."""
    folder = job.folder(out)
    with suppress(OSError):  # a full disk may be what it failed of
        folder.mkdir(parents=True, exist_ok=True)
        write_whole(
            json.dumps({"key": job.key(), "reason": reason}, indent=1), folder / "failed.json"
        )


def forget_failure(job: Job, out: Path) -> None:
    """The job is tried again."""
    for name in ("failed.json", "error.txt"):
        (job.folder(out) / name).unlink(missing_ok=True)


def result_of(source: Job, out: Path) -> dict[str, Any]:
    """What another job left, which this one needs.

    Raises:
        CalmError: If it failed, or has not been run.
    """
    if (result := finished(source, out)) is not None:
        return result
    if (reason := failure(source, out)) is not None:
        raise CalmError(f"{source}, which this one needs, failed: {reason}")
    raise CalmError(
        f"row {source.row.name!r} with seed {source.seed}, which this one needs, is not "
        "finished. Run the comparison without --rows, or that row first."
    )


def weights_of(source: Job, out: Path) -> Path:
    """Folder of a finished job's model.

    Raises:
        CalmError: If the job is not finished, or its model is gone.
    """
    result_of(source, out)
    model = source.folder(out) / "model"
    if not model.is_dir():
        raise CalmError(
            f"The weights of row {source.row.name!r} are gone: there is no folder {str(model)!r}. "
            f"Remove {str(model.parent)!r} to have them made anew."
        )
    return model


def save_beside(save: Callable[[Path], None], folder: Path) -> Path:
    """Save a run's model beside the one of an earlier run, which stays until `keep_result`.

    Args:
        save: `save_pretrained` of the model.
        folder: Of the run.

    Returns:
        Where it is.
    """
    from calm_lightning.card import CARD, write_card  # slow to import
    from calm_lightning.checkpoint import holds_composition

    partial, earlier = folder / ".model.partial", folder / "model"
    shutil.rmtree(partial, ignore_errors=True)
    save(partial)
    if holds_composition(partial) and (earlier / CARD).is_file() and holds_composition(earlier):
        shutil.copy2(earlier / CARD, partial / CARD)  # it may hold what the user wrote
        write_card(partial)
    return partial


def keep_result(result: Mapping[str, Any], folder: Path, trained: Path | None = None) -> None:
    """Put a result, and the model that belongs to it, in the places of earlier ones.

    Args:
        result: Of the run.
        folder: Of the run.
        trained: Where `save_beside` left the model; None for a run that trained none.
    """
    text = json.dumps(result, indent=1, allow_nan=False)
    written, model, earlier = folder / "result.json", folder / "model", folder / ".model.earlier"
    if trained is not None:
        shutil.rmtree(earlier, ignore_errors=True)
        written.unlink(missing_ok=True)  # it must never stand beside another model
        if model.exists():
            model.replace(earlier)
        trained.replace(model)
        shutil.rmtree(earlier, ignore_errors=True)
    write_whole(text, written)


def losses_of(results: Sequence[Result]) -> set[str]:
    """Columns that hold a loss in nats instead of a share."""
    return {name for r in results for name in r.get("losses", ())}


def lower_is_better_in(results: Sequence[Result]) -> set[str]:
    """Columns in which a smaller number is the better one: losses, and scores that say so."""
    return losses_of(results) | {name for r in results for name in r.get("lower_is_better", ())}
