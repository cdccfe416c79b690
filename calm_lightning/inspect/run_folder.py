"""What a run left in its folder."""

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from calm_lightning.contracts import CalmError
from calm_lightning.plain_data import parse_json, parse_yaml, refuse_hidden_bombs

Points = list[tuple[float, float]]
"""(step, value) in rising order."""

_NUMBERS = (
    "trained_parameters", "steps", "seconds", "characters_per_second", "memory_mib",
    "training_flops",
)  # fmt: skip
"""Of a result."""
_LARGEST = 1e38
"""Of a result's numbers: about what 32 bits hold. Larger ones no axis can be drawn for."""

_WITHOUT = "Move it away for a page without it."

_KINDS = {
    "model.anchor": (dict, "a mapping"),
    "model.augmenting": (list, "a list"),
    "model.composition": (dict, "a mapping"),
    "model.composition.init_args": (dict, "a mapping"),
    "data.init_args": (dict, "a mapping"),
    "trainer": (dict, "a mapping"),
}
"""Of a config's entries that a page is made from, where they are not left out."""


@dataclass(frozen=True)
class RunFolder:
    """A run of `calm fit`, or one row and seed of `calm compare`.

    Attributes:
        folder: Where it is.
        config: Its config.yaml.
        scalars: What TensorBoard would show, by tag; empty if the run logged nothing.
        result: The result.json of a comparison's row; empty for a run of its own.
    """

    folder: Path
    config: dict[str, Any]
    scalars: dict[str, Points]
    result: dict[str, Any]

    @property
    def model(self) -> Path:
        """Folder of the trained model, whether it is there or not."""
        return self.folder / "model"

    def last(self, tag: str) -> float | None:
        """The last value under a tag."""
        points = self.scalars.get(tag)
        return points[-1][1] if points else None


def read_run(folder: Path) -> RunFolder:
    """Read a run's folder.

    Args:
        folder: As `calm fit` leaves it, finished or not; or RESULTS/rows/ROW/seed_N.

    Raises:
        CalmError: If it is not the folder of a run.
    """
    if not folder.is_dir():
        raise CalmError(f"There is no folder {str(folder)!r}. Name a run: calm inspect runs/NAME.")
    if (folder / "rows").is_dir():
        runs = sorted(str(each) for each in folder.glob("rows/*/seed_*"))
        example = f", for example {runs[0]}" if runs else ""
        raise CalmError(f"{folder} holds a comparison. Name one of its runs{example}.")
    file = folder / "config.yaml"
    if not file.is_file():
        above = (folder.parent / "config.yaml").is_file()
        hint = f" Did you mean {folder.parent}?" if above else ""
        raise CalmError(f"{str(folder)!r} is not the folder of a run: no config.yaml.{hint}")
    try:
        config = parse_yaml(file.read_text(encoding="utf-8"))
        refuse_hidden_bombs(config)
        yaml.safe_dump(config)  # a hexadecimal number may be too long to be written down
    except (yaml.YAMLError, ValueError) as error:
        raise CalmError(f"{file} cannot be read: {_first_line(error)}") from error
    parts = [config.get(name) for name in ("model", "data")] if isinstance(config, dict) else []
    if not parts or not all(isinstance(part, dict) for part in parts):
        raise CalmError(f"{file} is not the config of a run: it names no model and no data.")
    _check_kinds(file, config)
    return RunFolder(folder, config, _scalars(folder), _result(folder / "result.json"))


def _check_kinds(file: Path, config: dict[str, Any]) -> None:
    """Refuse an entry that is of another kind than `calm fit` writes."""
    for entry, (kind, its_name) in _KINDS.items():
        said: Any = config
        for name in entry.split("."):
            said = None if said is None else said.get(name)
        if said is not None and not isinstance(said, kind):
            raise CalmError(
                f"{file}: {entry} must be {its_name}, as `calm fit` writes it, not "
                f"{str(said)[:200]!r}. Mend it there, or name another run."
            )


def _result(file: Path) -> dict[str, Any]:
    if not file.is_file():
        return {}
    try:
        found = parse_json(file.read_text(encoding="utf-8"))
        json.dumps(found, ensure_ascii=False).encode()  # an escape may stand for half a character
    except (ValueError, RecursionError) as error:
        raise CalmError(f"{file} cannot be read: {_first_line(error)}. {_WITHOUT}") from error
    if not isinstance(found, dict):
        raise CalmError(f"{file} is not the result of a run: it is no object. {_WITHOUT}")
    try:
        _check_result(found)
    except TypeError as error:
        raise CalmError(f"{file} is not the result of a run: {error}. {_WITHOUT}") from None
    return found


def _check_result(found: dict[str, Any]) -> None:
    """Refuse what the page would stumble over: a text where a number should be, say."""
    for name in _NUMBERS:
        if not _is_number_or_none(found.get(name)):
            raise TypeError(
                f"{name} must be a number, of {_LARGEST:g} at most, not {str(found[name])[:40]!r}"
            )
    for name in ("metrics", "details"):
        scores = found.get(name) or {}
        if not isinstance(scores, dict) or not all(map(_is_number_or_none, scores.values())):
            raise TypeError(
                f"{name} must be scores by their names, numbers of {_LARGEST:g} at most"
            )
    curve = found.get("curve") or []
    if not isinstance(curve, list) or not all(_is_point(point) for point in curve):
        raise TypeError(f"curve must be a list of [step, loss], numbers of {_LARGEST:g} at most")


def _is_point(said: Any) -> bool:
    return isinstance(said, list) and [_is_number(x) for x in said] == [True, True]


def _is_number_or_none(said: Any) -> bool:
    return said is None or _is_number(said)


def _is_number(said: Any) -> bool:
    """Whether a page can show it; NaN and infinity it can."""
    if isinstance(said, float) and not math.isfinite(said):
        return True
    return isinstance(said, int | float) and abs(said) <= _LARGEST


def _scalars(folder: Path) -> dict[str, Points]:
    """All scalars of all event files; of a step that was logged twice, the newer value."""
    from tensorboard.backend.event_processing.event_accumulator import (
        IMAGES,
        SCALARS,
        TENSORS,
        EventAccumulator,
    )

    if not any(folder.glob("events.out.tfevents.*")):
        return {}
    wanted = {SCALARS: 0, IMAGES: 1, TENSORS: 1}  # 0: all of them
    events = EventAccumulator(str(folder), wanted, purge_orphaned_data=False)
    events.Reload()
    found = {}
    for tag in events.Tags()[SCALARS]:
        newest = {e.step: e.value for e in sorted(events.Scalars(tag), key=lambda e: e.wall_time)}
        found[tag] = [(float(step), float(newest[step])) for step in sorted(newest)]
    return found


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or repr(error)).splitlines()[0]
