"""Building, saving and loading: a saved composition holds the trained part and nothing else.

A folder written by `save` holds `composition.safetensors` (the trained weights), `config.json` (the
settings of the composition; name, revision and hash of every backbone), the anchor's tokenizer and
generation settings, and a model card. Loading it beside other backbones is refused. With
`add_backbones` it holds the backbones too, in folders of their own, and needs no other file.
"""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeAlias, cast, get_args

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from calm_lightning.auto import ComposedConfig
from calm_lightning.backbone import Backbone, BackboneSource, DType
from calm_lightning.card import FACTS, write_card
from calm_lightning.composed.model import ComposedModel
from calm_lightning.composed.wiring import wire
from calm_lightning.contracts import CalmError, Composition, LanguageModel
from calm_lightning.hub import FETCH_OPTIONS, local_folder
from calm_lightning.language_model import TextModel
from calm_lightning.plain_data import (
    Bomb,
    guard_jsonargparse,
    nothing_imported,
    parse_json,
    refuse_hidden_bombs,
)
from calm_lightning.quantization import Quantization
from calm_lightning.sharding import class_of, whole

WEIGHTS = "composition.safetensors"
CONFIG = "config.json"
_WEIGHTS = ("pretrained", "random")  # of a backbone

BackboneLike: TypeAlias = (
    str
    | Path
    | Backbone
    | BackboneSource
    | PreTrainedModel
    | tuple[PreTrainedModel, PreTrainedTokenizerBase]
)


def compose(
    anchor: BackboneLike,
    augmenting: Sequence[BackboneLike],
    composition: Composition,
    dtype: DType = "float32",
) -> LanguageModel:
    """Make one language model out of frozen ones.

    Args:
        anchor: A folder, a hub name, a model in memory (alone, or with its tokenizer).
        augmenting: The augmenting models, in the same ways.
        composition: How to join them, e.g. `calm_lightning.CrossAttention()`.
        dtype: Of weights that are read here.

    Raises:
        CalmError: If a backbone cannot be read, or the composition cannot join them.
    """
    backbones = [as_backbone(model, dtype) for model in (anchor, *augmenting)]
    composed = composition.compose(backbones[0], backbones[1:])
    if isinstance(composed, nn.Module):
        composed.eval()  # as from_pretrained gives models; `train()` is the trainer's
    return composed


def as_backbone(model: BackboneLike, dtype: DType = "float32") -> Backbone:
    """A backbone from whatever names or holds one."""
    if isinstance(model, Backbone):
        return model
    if isinstance(model, BackboneSource):
        return model.load()
    if isinstance(model, str | Path):
        return BackboneSource(str(model), dtype=dtype).load()
    if isinstance(model, tuple):
        return Backbone(*model)
    return Backbone(model)


def save_pretrained(
    model: LanguageModel,
    write: Callable[[Path], None],
    folder: str | Path,
    full: bool = False,
    **unknown: Any,
) -> None:
    """What `save_pretrained` of every language model does.

    Args:
        model: What is saved.
        write: Writes it; a composition by `save`.
        folder: Where to.
        full: Write the backbones of a composition too, so that the folder needs no other file.
        unknown: Refused.

    Raises:
        CalmError: If an option is unknown, or a backbone's weights cannot be written.
    """
    if unknown:
        raise CalmError(
            f"save_pretrained has no options {sorted(unknown)}; the only one is full=True, which "
            "writes the backbones into the folder too."
        )
    folder = Path(folder)
    if (folder / CONFIG).exists() and isinstance(model, ComposedModel):
        _require_composition(folder)
    if full:
        _require_own_places(model, folder)
    folder.mkdir(parents=True, exist_ok=True)
    write(folder)
    if full and holds_composition(folder):
        add_backbones(model, folder)


def _require_composition(folder: Path) -> None:
    """Refuse to write over a model of another kind, a backbone perhaps.

    Raises:
        CalmError: If the folder's config.json is not that of a saved composition.
    """
    if not holds_composition(folder):
        raise CalmError(
            f"{folder} holds another model ({CONFIG} is not that of a composition), which would be "
            "lost. Save into a folder of its own."
        )


def _place_of(number: int) -> str:
    """Name of the folder inside a whole model in which a backbone is; the anchor is number 0."""
    return f"augmenting_{number - 1}" if number else "anchor"


def _require_own_places(model: LanguageModel, folder: Path) -> None:
    """Refuse to write backbones over folders that are not those of an earlier save.

    Raises:
        CalmError: If there is such a folder.
    """
    known = set()
    if holds_composition(folder):
        known = {reference.get("folder") for reference in read_description(folder)["backbones"]}
    for number in range(len(model.frozen_backbones)):
        name = _place_of(number)
        if (folder / name).exists() and name not in known:
            raise CalmError(
                f"full=True would write a backbone over {folder / name}, which no composition in "
                f"{folder} refers to. Save into a folder of its own."
            )


def save(model: TextModel, composition: Composition, folder: Path) -> None:
    """Write what was trained, and what it takes to build the rest; see the module's docstring.

    Args:
        model: Whose `frozen_backbones` are the anchor, and any augmenting models that it reads.
        composition: Builds the same model again out of the same backbones.
        folder: Where to.
    """
    (folder / FACTS).unlink(missing_ok=True)  # those are of the weights that were here before
    weights = {name: t.detach().cpu().contiguous() for name, t in model.own_state().items()}
    save_file(weights, folder / WEIGHTS, metadata={"format": "pt"})
    anchor, *augmenting = model.frozen_backbones
    description = {
        "model_type": ComposedConfig.model_type,
        "architectures": [class_of(model).__name__],
        "composition": described(composition),
        "backbones": references_of(model),
        "anchor": anchor.model.config.to_dict(),
        "augmenting": [backbone.model.config.to_dict() for backbone in augmenting],
    }
    _write_description(folder, description)
    # The library lets the owner alone read the weights.
    (folder / WEIGHTS).chmod((folder / CONFIG).stat().st_mode)
    if anchor.tokenizer is not None:
        anchor.tokenizer.save_pretrained(folder)
    if (settings := anchor.model.generation_config) is not None:
        settings.save_pretrained(folder)
    write_card(folder)


def described(composition: Composition) -> dict[str, Any]:
    """A composition as JSON says it: its class and its settings."""
    said = {
        "class_path": f"{type(composition).__module__}.{type(composition).__qualname__}",
        "init_args": composition.settings(),
    }
    return dict(json.loads(json.dumps(said, default=str)))


def check_same_composition(
    model: LanguageModel, saved: dict[str, Any], number: int, origin: str
) -> None:
    """Refuse weights that mean something else in this model, though their shapes may fit.

    Args:
        model: Where the weights are to go. Only the machine for hidden states is checked.
        saved: As `described` says it.
        number: Of augmenting models that the weights join.
        origin: Where the weights come from, for the message.

    Raises:
        CalmError: If class, settings or connections differ; models that only this one has may
            stand behind those of the saved one.
    """
    if not isinstance(model, ComposedModel):
        return
    own = described(model.composition)
    wiring = {"connections", "every"}
    ignored = wiring | {*model.composition.training_only}
    differing = sorted(
        name
        for name in (own["init_args"].keys() | saved["init_args"].keys()) - ignored
        if own["init_args"].get(name) != saved["init_args"].get(name)
    )
    if own["class_path"] != saved["class_path"] or differing:
        told = ", ".join(
            f"{name}: {saved['init_args'].get(name)!r} there, {own['init_args'].get(name)!r} here"
            for name in differing
        )
        raise CalmError(
            f"{origin} holds the weights of a {saved['class_path'].rpartition('.')[2]} with other "
            f"settings ({told or own['class_path'].rpartition('.')[2] + ' here'}). Give this run "
            "the same ones."
        )
    there = _build(type(model.composition), saved["init_args"], Path(origin))
    anchor, *augmenting = model.backbones
    listed, every = getattr(there, "connections", None), getattr(there, "every", 4)
    wired = wire(anchor, augmenting[:number], listed, every)
    if list(model.connections[: len(wired)]) != wired:
        raise CalmError(
            f"{origin} holds the weights of other connections than this run's: {wired} there, "
            f"{list(model.connections)} here. Give this run the same ones, those of further "
            "augmenting models behind them."
        )


def add_backbones(model: LanguageModel, folder: Path) -> None:
    """Write the backbones of a saved model into its folder, and let it refer to them there.

    Args:
        model: The model that was saved.
        folder: Where it was saved.

    Raises:
        CalmError: If the weights of a backbone cannot be written.
    """
    description = read_description(folder)
    for number, backbone in enumerate(model.frozen_backbones):
        place = folder / _place_of(number)
        # Its weights may be mapped into memory from this very place; then they are there already.
        there_already = place.exists() and Path(backbone.name).exists()
        if not (there_already and place.samefile(backbone.name)):
            _save_backbone(backbone, place)
        description["backbones"][number]["folder"] = place.name
    _write_description(folder, description)
    write_card(folder)


def _save_backbone(backbone: Backbone, place: Path) -> None:
    try:
        backbone.model.save_pretrained(place, state_dict=backbone.weights())
    except (ValueError, NotImplementedError, RuntimeError) as error:
        raise CalmError(
            f"The weights of {backbone.name!r} cannot be written: {error} Save without full=True, "
            "which writes only where they are."
        ) from error
    if backbone.tokenizer is not None:
        backbone.tokenizer.save_pretrained(place)


def _write_description(folder: Path, description: dict[str, Any]) -> None:
    (folder / CONFIG).write_text(json.dumps(description, indent=2, default=str) + "\n")


def load(
    folder: str | Path,
    anchor: BackboneLike | None = None,
    augmenting: Sequence[BackboneLike] | None = None,
    dtype: DType | None = None,
    device_map: str | None = None,
    attention: str | None = None,
    **hub_options: Any,
) -> LanguageModel:
    """Read a saved composition, and the backbones that it belongs to.

    Args:
        folder: As written by `save_pretrained`; or the name of such a model on the hub.
        anchor: Where the anchor is now; None looks for it where it was, relative to the current
            folder and to `folder`.
        augmenting: The same for the augmenting models.
        dtype: Of the backbones' weights; None: as they were when the composition was saved.
        device_map: As `transformers` takes it, for each backbone; null leaves all on the CPU.
        attention: Attention implementation of the backbones; null is the library's choice.
        hub_options: For a name on the hub: `revision`, `token`, `cache_dir`, ...

    Raises:
        CalmError: If the folder is incomplete, the composition's plug-in is not installed, or a
            backbone is not the one that the composition was trained with.
    """
    from calm_lightning.discovery import find

    if unknown := sorted(set(hub_options) - set(FETCH_OPTIONS)):
        raise CalmError(f"load has no options {unknown}; for a hub name: {list(FETCH_OPTIONS)}.")
    folder = local_folder(folder, **hub_options)
    description = read_description(folder)
    references = description["backbones"]
    given = [anchor, *(augmenting or [None] * (len(references) - 1))]
    if len(given) != len(references):
        raise CalmError(
            f"{folder} was trained with {len(references) - 1} augmenting models; "
            f"{len(given) - 1} are given."
        )
    backbones = []
    for like, reference in zip(given, references, strict=True):
        wanted = dtype or _saved_dtype(reference)
        if like is None:
            like = _locate(reference, folder)
            like.dtype, like.device_map, like.attention = wanted, device_map, attention
        backbones.append(as_backbone(like, wanted))
        check_same(backbones[-1], reference, str(folder))
    kind = find(Composition, description["composition"]["class_path"])  # type: ignore[type-abstract]
    composition = _build(kind, description["composition"]["init_args"], folder / CONFIG)
    model = composition.compose(backbones[0], backbones[1:])
    assert isinstance(model, nn.Module), "a LanguageModel is also a torch.nn.Module"
    assert isinstance(model, TextModel), "a composition that is saved reads and writes texts"
    put(read_weights(folder / WEIGHTS), model.own_state(), str(folder / WEIGHTS))
    if device_map is not None and isinstance(model, ComposedModel):
        _place_bridges(model)
    model.eval()
    return model


def start_from(model: TextModel, folder: Path) -> None:
    """Begin with the weights of a saved composition, which may join fewer models than this one.

    With as many models, training goes on from there. Where this model has further augmenting ones
    behind those of the saved composition, only what is new is trained; the rest is frozen.

    Args:
        model: Freshly composed.
        folder: As written by `save_pretrained`.

    Raises:
        CalmError: If the backbones are others, or the saved weights do not fit.
    """
    description = read_description(folder)
    references = description["backbones"]
    backbones = model.frozen_backbones
    if len(references) > len(backbones):
        raise CalmError(
            f"start_from={folder}: it joins {len(references)} models, and this run only "
            f"{len(backbones)}."
        )
    for backbone, reference in zip(backbones, references, strict=False):
        check_same(backbone, reference, str(folder))
    check_same_composition(model, description["composition"], len(references) - 1, str(folder))
    weights, own = read_weights(folder / WEIGHTS), model.own_state()
    grown = len(references) < len(backbones)
    put(weights, {n: own[n] for n in own if not grown or n in weights}, str(folder / WEIGHTS))
    assert isinstance(model, nn.Module), "a LanguageModel is also a torch.nn.Module"
    for name, parameter in model.named_parameters():
        if grown and name in weights:
            parameter.requires_grad_(False)


def _place_bridges(model: ComposedModel) -> None:
    """Put every bridge beside the anchor layer that it feeds."""
    places = {}
    for number, connection in enumerate(model.connections):
        layer = model.backbones[0].layers[connection.anchor_layer]
        places[f"bridges.{number}"] = device = next(layer.parameters()).device
        model.bridges[number].to(device)
    # Tells transformers and accelerate that the model is in its place and not to be moved.
    model.hf_device_map = places


def holds_composition(folder: Path) -> bool:
    """Whether this is the folder of a saved composition (a damaged one, too), not a plain model."""
    try:
        return '"composition"' in (folder / CONFIG).read_text(encoding="utf-8")
    except (OSError, ValueError):
        return False


def holds_weights_of(model: LanguageModel, folder: Path) -> bool:
    """Whether a folder holds a saved composition with exactly this model's weights.

    Where those are shared out among processes, all have to ask.
    """
    if not holds_composition(folder) or not isinstance(model, TextModel):
        return False
    with whole(model):
        saved, own = read_weights(folder / WEIGHTS), model.own_state()
        return saved.keys() == own.keys() and all(
            torch.equal(saved[name], own[name].detach().cpu()) for name in own
        )


def read_description(folder: Path) -> dict[str, Any]:
    """The `config.json` of a saved composition.

    Raises:
        CalmError: If there is none, or it is not one of ours.
    """
    if not folder.is_dir():
        raise CalmError(
            f"There is no folder {str(folder)!r}. Expected one written by `save_pretrained` or "
            "`calm fit` (runs/<name>/model)."
        )
    try:
        description = parse_json((folder / CONFIG).read_text(encoding="utf-8"))
        check_description(description["composition"], description["backbones"])
        _require(description, anchor=dict, augmenting=list)
        if len(description["backbones"]) != 1 + len(description["augmenting"]):
            raise ValueError("backbones and their configs are not as many")
    except FileNotFoundError:
        if (folder / "model" / CONFIG).is_file():
            raise CalmError(f"{folder} is a run; its model is {folder / 'model'}.") from None
        raise CalmError(
            f"{folder} has no {CONFIG}; it is not a saved composition. Expected one written by "
            "`save_pretrained` or `calm fit` (runs/<name>/model)."
        ) from None
    except (ValueError, KeyError, IndexError, TypeError) as error:
        raise CalmError(
            f"{folder / CONFIG} does not describe a saved composition ({error!r}). Is it the "
            "folder of a plain model?"
        ) from None
    return description


def check_description(composition: Any, backbones: Any) -> None:
    """Refuse what no saved composition says of itself and of its backbones.

    Raises:
        KeyError, TypeError, ValueError: With what is missing or of the wrong kind.
    """
    _require(composition, class_path=str, init_args=dict)
    if not isinstance(backbones, list):
        raise TypeError("backbones is no list of models")
    for reference in backbones:
        _require(reference, role=str, name=str, fingerprint=str, revision=str | None)
        optional = {"seed": int, "dtype": str | None, "folder": str}
        _require(reference, **{name: optional[name] for name in optional if name in reference})
        for name, known in (("weights", _WEIGHTS), ("quantization", get_args(Quantization))):
            if reference.get(name) not in (None, *known):
                raise ValueError(f"{name} is {str(reference[name])[:40]!r}")


def _require(said: Any, **kinds: Any) -> None:
    for name, kind in kinds.items():
        if not isinstance(said[name], kind):
            raise TypeError(f"{name} is {str(said[name])[:40]!r}")


def read_weights(file: Path) -> dict[str, Tensor]:
    """Tensors of a safetensors file; nothing else is ever loaded, so no code can run.

    Raises:
        CalmError: If the file is missing or damaged.
    """
    try:
        return load_file(file)
    except FileNotFoundError:
        raise CalmError(f"{file.parent} holds no {file.name}.") from None
    except (SafetensorError, OSError) as error:
        raise CalmError(f"{file} is damaged or not in safetensors format: {error}") from None


def load_trained(model: nn.Module, weights: dict[str, Tensor], origin: str) -> None:
    """Put saved weights into a model's trainable parameters, exactly those and no others.

    Raises:
        CalmError: If a name or a shape does not match.
    """
    put(weights, {name: p for name, p in model.named_parameters() if p.requires_grad}, origin)


def put(weights: dict[str, Tensor], own: dict[str, Tensor], origin: str) -> None:
    """Copy saved tensors over a model's own, exactly those and no others.

    Raises:
        CalmError: If a name, a shape or the kind of number does not match, or a value is no number;
            nothing is copied then.
    """
    missing, surplus = sorted(own.keys() - weights.keys()), sorted(weights.keys() - own.keys())
    if missing or surplus:
        raise CalmError(
            f"{origin} does not fit this model: "
            f"{len(missing)} trained weights are missing from it (first: {missing[:1]}), "
            f"{len(surplus)} are unknown to the model (first: {surplus[:1]})."
        )
    for name, tensor in own.items():
        if tensor.shape != weights[name].shape:
            raise CalmError(
                f"{origin}: {name} has shape {tuple(weights[name].shape)}, the model expects "
                f"{tuple(tensor.shape)}."
            )
        if tensor.is_floating_point() != weights[name].is_floating_point():
            raise CalmError(
                f"{origin}: {name} holds {weights[name].dtype}, the model expects {tensor.dtype}."
            )
        if tensor.is_floating_point() and not torch.isfinite(weights[name].float()).all():
            raise CalmError(
                f"{origin}: {name} holds values that are not finite (nan or inf), with which the "
                "model would answer nothing. Take another copy, or an earlier checkpoint."
            )
    with torch.no_grad():
        for name, tensor in own.items():
            tensor.copy_(weights[name])


def check_same(backbone: Backbone, reference: dict[str, Any], origin: str) -> None:
    """Refuse a backbone that is not the one a composition was trained with.

    Raises:
        CalmError: With both names and both hashes.
    """
    found = backbone.fingerprint()
    if found != reference["fingerprint"]:
        raise CalmError(
            f"{origin} was trained with the {reference['role']} model {reference['name']!r} "
            f"(sha256 {reference['fingerprint'][:16]}…), but {backbone.name!r} "
            f"(sha256 {found[:16]}…) was given. A composition works only beside the backbones "
            "that it was trained with. (If it is the same model in float16: load it in float32 or "
            "bfloat16, which leave the hash as it is.)"
        )


def references_of(model: LanguageModel) -> list[dict[str, Any]]:
    """Where every frozen backbone is, and its hash."""
    return [
        {
            "role": "augmenting" if index else "anchor",
            "name": backbone.name,
            "revision": backbone.source.revision if backbone.source else None,
            "weights": backbone.source.weights if backbone.source else "pretrained",
            "seed": backbone.source.seed if backbone.source else 0,
            "dtype": str(backbone.model.dtype).removeprefix("torch."),
            "quantization": backbone.source.quantization if backbone.source else None,
            "fingerprint": backbone.fingerprint(),
        }
        for index, backbone in enumerate(model.frozen_backbones)
    ]


def _build(kind: type[Composition], settings: dict[str, Any], file: Path) -> Composition:
    """A composition from settings read from JSON, which knows lists where Python has tuples."""
    from jsonargparse import ArgumentError, ArgumentParser

    guard_jsonargparse()
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(kind, "composition", fail_untyped=False)
    try:
        refuse_hidden_bombs(settings)
        with nothing_imported():
            parsed = parser.parse_object({"composition": settings})
        return kind(**parsed.as_dict()["composition"])
    except CalmError:
        raise
    except (ArgumentError, Bomb, TypeError, ValueError) as error:
        raise CalmError(
            f"{file}: these settings do not fit the installed {kind.__name__}; was it saved by "
            f"another version? {error}"
        ) from None


def _locate(reference: dict[str, Any], folder: Path) -> BackboneSource:
    """Where a backbone is that was not given."""
    if (inside := reference.get("folder")) is not None:
        place = (folder / str(inside)).resolve()
        if not place.is_relative_to(folder.resolve()):
            raise CalmError(
                f"{folder / CONFIG}: the {reference['role']} model should be inside this folder, "
                f"but {inside!r} leads out of it. Nothing was read from there."
            )
        return BackboneSource(str(folder / str(inside)))
    name = reference["name"]
    beside = folder / name
    if not Path(name).is_dir() and beside.is_dir():
        name = str(beside)
    return BackboneSource(
        name,
        weights=reference.get("weights", "pretrained"),
        seed=reference.get("seed", 0),
        revision=reference["revision"],
        quantization=reference.get("quantization"),
    )


def _saved_dtype(reference: dict[str, Any]) -> DType:
    saved = reference.get("dtype")
    return cast(DType, saved) if saved in get_args(DType) else "float32"
