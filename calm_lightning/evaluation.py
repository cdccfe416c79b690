"""`calm evaluate`: lm-evaluation-harness on the composed model and on each of its backbones."""

import json
import logging
import math
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from difflib import get_close_matches
from importlib.metadata import version
from pathlib import Path
from typing import Any

from calm_lightning.contracts import CalmError
from calm_lightning.generate import open_model
from calm_lightning.language_model import TextModel
from calm_lightning.parts import Part, parts_of


def evaluate(
    model: TextModel | str | Path,
    tasks: Sequence[str],
    limit: int | float | None = None,
    include_path: str | Path | None = None,
    num_fewshot: int | None = None,
    batch_size: int = 8,
    chat: bool = False,
    **open_options: Any,
) -> dict[str, Any]:
    """Ask the composed model, the anchor alone and every augmenting model alone.

    Each speaks through its own tokenizer. The composed model and the anchor get texts of the same
    greatest length.

    Args:
        model: A model in memory, or what `calm generate` takes as one.
        tasks: Names of tasks, groups or tags of lm-evaluation-harness.
        limit: Only so many examples of each task; below 1, such a share. For trying out.
        include_path: Folder with further tasks (YAML files).
        num_fewshot: Solved examples in each prompt; None is what the task says.
        batch_size: Requests that are answered together.
        chat: Write prompts by the chat template of each model's tokenizer.
        open_options: Of `open_model`, where `model` is no model yet.

    Returns:
        `rows`: for each model its results as lm_eval gives them, by task and metric. `examples`:
        how many of each task were asked. `versions`: of the tasks. `settings`: what was asked for.

    Raises:
        CalmError: If lm_eval is missing, there is no such task, or a task cannot be run.
    """
    if not tasks:
        raise CalmError("No task was named. Give --tasks NAME,NAME.")
    if batch_size < 1:
        raise CalmError(f"--batch-size must be at least 1: got {batch_size}.")
    if limit is not None and not 0 < limit < math.inf:
        raise CalmError(f"--limit must be a number above 0: got {limit}.")
    if include_path is not None and not Path(include_path).is_dir():
        raise CalmError(f"--include-path {str(include_path)!r} is not a folder.")
    try:
        from calm_lightning.harness import HarnessModel
    except ImportError as error:
        raise CalmError(
            f"Evaluation needs lm-evaluation-harness ({error}): "
            "pip install 'calm-lightning[evaluate]'."
        ) from None
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    manager = _task_manager(tasks, include_path)
    if not isinstance(model, TextModel):
        model = open_model(str(model), **open_options)
    found: dict[str, Any] = {"rows": {}}
    for name, answering, context in _rows(model):
        with context():
            said = _ask(
                HarnessModel(answering, batch_size, _max_length(answering)),
                tasks=list(tasks),
                task_manager=manager,
                limit=limit,
                num_fewshot=num_fewshot,
                apply_chat_template=chat,
            )
        found["rows"][name] = said["results"]
        found["examples"] = {task: n["effective"] for task, n in said["n-samples"].items()}
        found["versions"] = said["versions"]
    found["settings"] = {
        "tasks": list(tasks),
        "limit": limit,
        "num_fewshot": num_fewshot,
        "chat": chat,
        "batch_size": batch_size,
        "lm_eval": version("lm_eval"),
    }
    return found


def evaluate_command(
    model: str, tasks: Sequence[str], out: str | None = None, **options: Any
) -> None:
    """Evaluate, print one table, and write all as JSON.

    Args:
        model: As `calm generate` takes it.
        tasks: As `evaluate` takes them.
        out: The JSON file; by default evaluation.json in the model's folder, with a number if that
            exists.
        options: Of `evaluate`.

    Raises:
        CalmError: As `evaluate`, and if the file cannot be written.
    """
    file = Path(out) if out else _fresh_file(Path(model))
    if file.is_dir() or not file.parent.is_dir():
        raise CalmError(f"--out {file}: name a file in a folder that exists.")
    found = evaluate(model, tasks, **options)
    print(table(found))
    file.write_text(json.dumps({"model": model} | found, indent=2, default=str) + "\n", "utf-8")
    print(f"\nWritten: {file}")


def table(found: Mapping[str, Any]) -> str:
    """What `evaluate` returned, in Markdown: a line for each task and metric."""
    rows = found["rows"]
    lines = [
        f"| task | metric | examples | {' | '.join(rows)} |",
        f"|---|---|---:|{'---:|' * len(rows)}",
    ]
    for task, results in next(iter(rows.values())).items():
        for key in results:
            metric, _, kind = key.partition(",")
            if not kind or metric.endswith("_stderr"):
                continue
            cells = [_cell(each[task], metric, kind) for each in rows.values()]
            label = metric if kind == "none" else f"{metric}, {kind}"
            count = found["examples"].get(task, "")
            lines.append(f"| {task} | {label} | {count} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _cell(results: Mapping[str, Any], metric: str, kind: str) -> str:
    value, error = results[f"{metric},{kind}"], results.get(f"{metric}_stderr,{kind}")
    if not isinstance(value, int | float):
        return str(value)
    return f"{value:.4f}" + (f" ± {error:.4f}" if isinstance(error, float) else "")


def _rows(model: TextModel) -> list[Part]:
    """The model, and what it is made of as far as that can answer on its own."""
    if len(model.frozen_backbones) < 2 and not any(model.trainable_parameters()):
        return [Part("model", model, nullcontext)]
    return list(parts_of(model))


def _max_length(model: TextModel) -> int | None:
    """The shortest context of all who read the text; None if nobody sets a limit."""
    contexts = [backbone.context for backbone in model.readers]
    return min((context for context in contexts if context is not None), default=None)


def _task_manager(tasks: Sequence[str], include_path: str | Path | None) -> Any:
    """lm_eval's index of tasks; its own ones take half a minute and are left out if not needed."""
    from lm_eval.tasks import TaskManager

    if include_path is not None:
        manager = TaskManager(include_path=str(include_path), include_defaults=False)
        if all(manager.match_tasks([task]) for task in tasks):
            return manager
    manager = TaskManager(include_path=str(include_path) if include_path is not None else None)
    for task in tasks:
        if not manager.match_tasks([task]):
            near = get_close_matches(task, manager.all_tasks, 1, 0.6)
            hint = f" Did you mean {near[0]}?" if near else ""
            raise CalmError(
                f"lm_eval knows no task {task!r}.{hint} Tasks of your own: --include-path FOLDER."
            )
    return manager


def _ask(harness: Any, **request: Any) -> dict[str, Any]:
    """lm_eval's own evaluation; what it and its data sets refuse is the user's to hear."""
    from lm_eval import simple_evaluate

    try:
        found = simple_evaluate(harness, log_samples=False, **request)
    except CalmError:
        raise
    except (OSError, ValueError, KeyError, ImportError) as error:
        first = (str(error).strip() or repr(error)).splitlines()[0]
        raise CalmError(
            f"lm_eval could not run {', '.join(request['tasks'])}: {first}\n"
            "Most tasks fetch their data from the Hugging Face hub, which needs a network or a "
            "cached copy."
        ) from error
    assert found is not None, "only processes that are not the first get nothing"
    return dict(found)


def _fresh_file(model: Path) -> Path:
    folder = model if model.is_dir() else Path()
    file, number = folder / "evaluation.json", 2
    while file.exists():
        file, number = folder / f"evaluation-{number}.json", number + 1
    return file
