"""Merging: the weights of several models of one architecture become those of one model.

The rival of the CALM paper (section 2) that costs nothing: no training, and no more to run than one
model. It needs models of one architecture and vocabulary, in practice fine-tuned from one base, and
it cannot do what none of its models can.

Which way to merge is a `MergeMethod` (`methods.py`). Here it is applied to one name after the
other, so that beside the merged model only one tensor of each model is worked on. The models
themselves stay where they are: `transformers` maps the weights of a safetensors file into memory
without reading them, as long as they keep their dtype (`dtype: auto`); the base is opened that way.

mergekit (https://github.com/arcee-ai/mergekit) does this for folders, with more methods. It is not
used here because it merges no models in memory and gives back files rather than a model; the tests
compare with it.
"""

import copy
import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from typing_extensions import override

from calm_lightning.backbone import Backbone, BackboneSource
from calm_lightning.contracts import CalmError, Composition
from calm_lightning.language_model import PlainModel
from calm_plugins.compositions.merging.alike import require_alike, require_plain, weights_of
from calm_plugins.compositions.merging.methods import MergeMethod

NOTE = "merging.json"
"""Beside a saved model: what it was merged of, and how."""


class Merging(Composition):
    """One plain model out of several alike.

    Merged are the anchor and the augmenting models, in this order; the base is none of them.

    Args:
        method: How: `Linear`, `Slerp`, `TaskArithmetic`, `Ties`, `Dare`, `Breadcrumbs`, or one of
            your own.
        weights: How much each merged model counts. Instead of a number, a list spreads its numbers
            evenly over the layers, first to last, and interpolates between them; input embeddings
            take the first, what follows the layers the last. Null: 1 each.
        base: For methods with task vectors: what the models were fine-tuned from. `anchor`, which
            is then not merged itself, or a folder or hub name.
        seed: Of methods that draw at random.

    Raises:
        CalmError: If there is no number among the weights.
    """

    exempt = {  # noqa: RUF012
        "starts_as_anchor": "a merged model is another one from the start; nothing is trained",
        "anchor_only": "the anchor is no part of the merged model that could be switched on",
        "augmenting_used": "a merged model has no augmenting states that could be disturbed",
        "checkpoint": "a merged model is saved whole, so that it can be opened by transformers",
        "reload": "a saved merged model is a plain one, without hashes of others",
    }

    def __init__(
        self,
        method: MergeMethod,
        weights: list[float | list[float]] | None = None,
        base: str | None = None,
        seed: int = 0,
    ) -> None:
        for weight in weights or []:
            numbers = weight if isinstance(weight, list) else [weight]
            if not numbers or not all(map(math.isfinite, numbers)):
                raise CalmError(f"weights: {weight!r} is neither a number nor a list of numbers.")
        self.method = method
        self.weights = weights
        self.base = base
        self.seed = seed

    @override
    def compose(self, anchor: Backbone, augmenting: Sequence[Backbone]) -> PlainModel:
        models = [*augmenting] if self.base == "anchor" else [anchor, *augmenting]
        weights = self._weights(models)
        base = self._find_base(anchor)
        require_plain(anchor)
        for other in (*augmenting, *([base] if base else [])):
            require_plain(other)
            require_alike(anchor, other)
        depths = _depths(anchor)
        by_depth = {depth: [_at(weight, depth) for weight in weights] for depth in depths.values()}
        for numbers in by_depth.values():
            self.method.check(numbers)

        tensors = [weights_of(model) for model in models]
        below = None if base is None else weights_of(base)
        merged = {}
        for name, depth in depths.items():
            merged[name] = self._merge(
                name,
                [each[name] for each in tensors],
                by_depth[depth],
                None if below is None else below[name],
            )
        title = f"{type(self.method).__name__} of {', '.join(model.name for model in models)}"
        return _plain(anchor, merged, title, self._note(models, weights, base))

    def _find_base(self, anchor: Backbone) -> Backbone | None:
        name = type(self.method).__name__
        if self.base is None:
            if self.method.needs_base:
                raise CalmError(
                    f"{name} adds up what the models learnt since they were one, so it needs their "
                    "base model: base=anchor, or the folder or hub name that they were fine-tuned "
                    "from."
                )
            return None
        if not self.method.needs_base:
            raise CalmError(f"{name} uses no base model; leave out base={self.base!r}.")
        return anchor if self.base == "anchor" else BackboneSource(self.base, dtype="auto").load()

    def _weights(self, models: Sequence[Backbone]) -> list[float | list[float]]:
        names = [model.name for model in models]
        if not models:
            raise CalmError("With base=anchor there must be augmenting models to merge.")
        if self.weights is not None and len(self.weights) != len(models):
            raise CalmError(
                f"weights={self.weights} are {len(self.weights)} for {len(models)} merged models, "
                f"{', '.join(names)}; give one each. (The base is not merged and has none.)"
            )
        return [1.0] * len(models) if self.weights is None else self.weights

    def _merge(
        self, name: str, tensors: Sequence[Tensor], weights: Sequence[float], base: Tensor | None
    ) -> Tensor:
        kept, device = tensors[0].dtype, tensors[0].device
        precise = torch.promote_types(kept, torch.float32)
        # By name, so that neither the order of the names nor the other tensors play a part.
        seed = int.from_bytes(hashlib.sha256(f"{self.seed} {name}".encode()).digest()[:7])
        merged = self.method.merge(
            [tensor.to(device, precise) for tensor in tensors],
            weights,
            None if base is None else base.to(device, precise),
            torch.Generator(device).manual_seed(seed),
        )
        if merged.shape != tensors[0].shape:
            raise CalmError(
                f"{type(self.method).__name__} made a tensor of shape {tuple(merged.shape)} out of "
                f"{name}, which has {tuple(tensors[0].shape)}."
            )
        return merged.to(kept, copy=True)  # never a model's own tensor

    def _note(
        self, models: Sequence[Backbone], weights: Sequence[Any], base: Backbone | None
    ) -> dict[str, Any]:
        kind = type(self.method)
        return {
            "method": {
                "class_path": f"{kind.__module__}.{kind.__qualname__}",
                "init_args": vars(self.method),
            },
            "seed": self.seed,
            "models": [
                {**_reference(model), "weight": weight}
                for model, weight in zip(models, weights, strict=True)
            ],
            "base": None if base is None else _reference(base),
        }


def _plain(
    anchor: Backbone, merged: dict[str, Tensor], name: str, note: Mapping[str, Any]
) -> PlainModel:
    """A new model of the anchor's kind with the merged weights."""
    old = anchor.model
    # Buffers that are saved are constants of the architecture.
    own = dict(old.named_parameters(remove_duplicate=False))
    buffers = {n: t for n, t in old.state_dict().items() if n not in own}
    new, report = type(old).from_pretrained(
        None,
        config=copy.deepcopy(old.config),
        state_dict={**merged, **buffers},
        attn_implementation=old.config._attn_implementation,
        output_loading_info=True,
    )
    assert not report["missing_keys"], report["missing_keys"]
    new.to(old.device)
    new.generation_config = copy.deepcopy(old.generation_config)
    backbone = Backbone(new, anchor.tokenizer, name)

    def save(folder: Path) -> None:
        new.save_pretrained(folder)
        if backbone.tokenizer is not None:
            backbone.tokenizer.save_pretrained(folder)
        (folder / NOTE).write_text(json.dumps(note, indent=2, default=repr) + "\n")

    return PlainModel(backbone, save, without_adapter=_refuse_anchor)


def _refuse_anchor() -> AbstractContextManager[None]:
    raise CalmError("The anchor is no part of a merged model; ask it on its own (Single).")


def _depths(model: Backbone) -> dict[str, float]:
    """How deep each weight is: 0 in the first layer and what precedes it, 1 in the last."""
    modules = model.model.named_modules()
    layers = next(name for name, module in modules if module is model.layers)
    depths, outside = {}, 0.0
    for name, _ in model.model.named_parameters():  # models register their parts as they run
        if name.startswith(f"{layers}."):
            number = int(name.removeprefix(f"{layers}.").partition(".")[0])
            depths[name], outside = number / max(1, model.num_layers - 1), 1.0
        else:
            depths[name] = 1.0 if "final" in name else outside  # OPT's last norm comes early
    return depths


def _at(weight: float | Sequence[float], depth: float) -> float:
    """A weight at a depth between 0 and 1; a list is interpolated."""
    if not isinstance(weight, Sequence):
        return weight
    place = depth * (len(weight) - 1)
    before = min(int(place), max(0, len(weight) - 2))
    after = min(before + 1, len(weight) - 1)
    share = place - before
    return (1 - share) * weight[before] + share * weight[after]


def _reference(model: Backbone) -> dict[str, Any]:
    return {
        "name": model.name,
        "revision": model.source.revision if model.source else None,
        "fingerprint": model.fingerprint(),
    }
