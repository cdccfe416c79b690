"""What a run left in its folder."""

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
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise CalmError(f"{file} cannot be read: {_first_line(error)}") from error
    parts = [config.get(name) for name in ("model", "data")] if isinstance(config, dict) else []
    if not parts or not all(isinstance(part, dict) for part in parts):
        raise CalmError(f"{file} is not the config of a run: it names no model and no data.")
    return RunFolder(folder, config, _scalars(folder), _result(folder / "result.json"))


def _result(file: Path) -> dict[str, Any]:
    if not file.is_file():
        return {}
    try:
        found = parse_json(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise CalmError(f"{file} cannot be read: {_first_line(error)}") from error
    if not isinstance(found, dict):
        raise CalmError(f"{file} is not the result of a run: it is no object.")
    try:
        _check_result(found)
    except (TypeError, ValueError) as error:
        raise CalmError(f"{file} is not the result of a run: {error}.") from None
    return found


def _check_result(found: dict[str, Any]) -> None:
    """Refuse what the page would stumble over: a text where a number should be, say."""
    for name in _NUMBERS:
        if not isinstance(found.get(name), int | float | None):
            raise TypeError(f"{name} is {str(found[name])[:40]!r}")
    for name in ("metrics", "details"):
        scores = found.get(name) or {}
        if not isinstance(scores, dict) or not all(
            isinstance(value, int | float | None) for value in scores.values()
        ):
            raise TypeError(f"{name} are no scores by their names")
    curve = found.get("curve") or []
    if not isinstance(curve, list) or not all(_is_point(point) for point in curve):
        raise TypeError("curve is no list of steps and losses")


def _is_point(said: Any) -> bool:
    return isinstance(said, list) and [isinstance(x, int | float) for x in said] == [True, True]


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
