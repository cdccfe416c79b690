"""Going on with a run: which settings must be the same, and what is known of its beginning."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from calm_lightning.contracts import CalmError

# Of the trainer: what decides which batches make a step, and what a step does.
_TRAINER = (
    "accumulate_grad_batches", "gradient_clip_algorithm", "gradient_clip_val",
    "limit_train_batches", "overfit_batches", "precision", "reload_dataloaders_every_n_epochs",
)  # fmt: skip
# Decide only how fast it goes and what is evaluated.
_FREE = {
    "model.ask_with", "model.disturb", "model.cache_states.folder",
    "model.cache_states.max_gigabytes", "data.init_args.num_workers",
    "data.init_args.evaluation_batch_size", "data.init_args.validation_examples",
}  # fmt: skip
# Of a backbone: which one it is. That is checked by the hash of its weights, wherever they are.
_IDENTITY = {"path", "weights", "seed", "revision"}

SCORES_BEFORE = "scores_before_training"
"""Key in a checkpoint. Not in a callback's state: where such a callback is not, Lightning warns."""


def settings_of(config: Mapping[str, Any]) -> dict[str, Any]:
    """What decides the weights at the end of a run, option by option.

    Not the length of a run: a longer one may go on where a shorter one ended. Not the backbones'
    names: they are known by the hashes of their weights, which are in the checkpoint too.

    Args:
        config: The whole config of a fit, as it is written into config.yaml.
    """
    trainer = config.get("trainer") or {}
    parts = {
        "seed_everything": config.get("seed_everything"),
        "model": config.get("model"),
        "data": config.get("data"),
        "trainer": {name: trainer.get(name) for name in _TRAINER},
    }
    if (precision := config.get("matmul_precision")) not in (None, "highest"):
        parts["matmul_precision"] = precision
    return {name: value for name, value in _flat(parts).items() if not _is_free(name)}


def refuse_other_settings(saved: Mapping[str, Any], own: Mapping[str, Any], origin: Path) -> None:
    """Refuse to go on with a run under settings that would make another run of it.

    An option that the checkpoint does not know came with a later version of the code; switched off,
    it leaves the run what it was.

    Args:
        saved: Settings in the checkpoint.
        own: Those of this command.
        origin: The checkpoint.

    Raises:
        CalmError: With everything that differs.
    """
    differing = [
        f"{name}: {saved.get(name)!r} there, {own.get(name)!r} here"
        for name in sorted(saved.keys() | own.keys())
        if saved.get(name) != own.get(name) and not (name not in saved and own[name] is False)
    ]
    if differing:
        raise CalmError(
            f"{origin} is of a run with other settings ({'; '.join(differing)}). Give the same "
            "ones to go on with it, or begin another run with its weights by model.start_from. "
            "Nothing was changed."
        )


def scores_before(checkpoint: Mapping[str, Any]) -> dict[str, float]:
    """Validation scores of the run before it was trained; none if it was not looked.

    Raises:
        CalmError: If something else is found in their place.
    """
    said = checkpoint.get(SCORES_BEFORE, {})
    if isinstance(said, dict) and all(
        isinstance(name, str) and isinstance(value, float) for name, value in said.items()
    ):
        return said
    raise CalmError(
        f"The checkpoint's {SCORES_BEFORE} are not numbers by their names, but "
        f"{str(said)[:200]!r}. It is damaged, or was not written by `calm fit`. Nothing was "
        "changed."
    )


def _flat(value: Any, name: str = "") -> dict[str, Any]:
    """Nested mappings and lists as one mapping from `a.b.0` to what is there."""
    if isinstance(value, Mapping):
        items = [(str(key), entry) for key, entry in value.items()]
    elif isinstance(value, list):
        items = [(str(number), entry) for number, entry in enumerate(value)]
    else:
        return {name: value}
    flat: dict[str, Any] = {}
    for key, entry in items:
        flat |= _flat(entry, f"{name}.{key}" if name else key)
    return flat


def _is_free(name: str) -> bool:
    if name in _FREE:
        return True
    backbone = name.startswith(("model.anchor.", "model.augmenting."))
    return backbone and name.rpartition(".")[2] in _IDENTITY
