"""Whether two models can be merged: only what means the same in both can be added up."""

from collections.abc import Callable
from typing import Any

from torch import Tensor

from calm_lightning.backbone import Backbone
from calm_lightning.contracts import CalmError
from calm_lightning.quantization import is_quantised


def weights_of(model: Backbone) -> dict[str, Tensor]:
    """The weights of a model by name; tied ones once, under their first name."""
    return {name: parameter.detach() for name, parameter in model.model.named_parameters()}


def require_plain(model: Backbone) -> None:
    """Refuse weights that are not plain numbers.

    Raises:
        CalmError: If the model is quantised.
    """
    for name, weight in model.model.named_parameters():
        if is_quantised(weight) or not weight.is_floating_point():
            raise CalmError(
                f"{name} of {model.name!r} is quantised, and codes cannot be averaged. Merge the "
                "models as they were before (leave `quantization` out)."
            )


def require_alike(anchor: Backbone, other: Backbone) -> None:
    """Refuse a model that is not of the anchor's architecture and vocabulary.

    Raises:
        CalmError: With what differs, as it is in both.
    """
    for what, of in _TRAITS.items():
        _require_equal(anchor, other, what, of(anchor), of(other))
    shapes = [{n: tuple(w.shape) for n, w in weights_of(m).items()} for m in (anchor, other)]
    for name in [*shapes[0], *shapes[1]]:
        here, there = (str(each.get(name, "no such weight")) for each in shapes)
        _require_equal(anchor, other, f"the shape of {name}", here, there)
    ours, theirs_said = (_meaning(each) for each in (anchor, other))
    for name in sorted({*ours, *theirs_said}):
        _require_equal(
            anchor,
            other,
            f"{name} in the config",
            repr(ours.get(name)),
            repr(theirs_said.get(name)),
        )
    if anchor.tokenizer is None or other.tokenizer is None:
        return
    theirs = {token_id: token for token, token_id in other.tokenizer.get_vocab().items()}
    for token, token_id in sorted(anchor.tokenizer.get_vocab().items(), key=lambda pair: pair[1]):
        # An id that only one of them uses is a row of the embeddings that only one has trained.
        same = theirs.get(token_id, token)
        what = f"the meaning of token id {token_id}"
        _require_equal(anchor, other, what, repr(token), repr(same))


def _require_equal(anchor: Backbone, other: Backbone, what: str, ours: str, theirs: str) -> None:
    if ours != theirs:
        raise CalmError(
            f"Merging needs models of one architecture and vocabulary, but {what} differs: {ours} "
            f"in {anchor.name!r}, {theirs} in {other.name!r}. Such models can be composed "
            "(CrossAttention, for one), not merged."
        )


def _architecture(model: Backbone) -> str:
    return f"{type(model.model).__name__}, {model.num_layers} layers of width {model.width}"


def _vocabulary(model: Backbone) -> str:
    return f"embeddings of shape {tuple(model.model.get_input_embeddings().weight.shape)}"


def _heads(model: Backbone) -> str:
    of_keys = getattr(model.config, "num_key_value_heads", None)
    return f"{model.num_heads}, of keys and values {of_keys or model.num_heads}"


def _meaning(model: Backbone) -> dict[str, Any]:
    """What the config says about how the weights are used."""
    said = model.config.to_dict()
    return {k: v for k, v in said.items() if k not in _MEANINGLESS and "dropout" not in k}


_MEANINGLESS = {
    "_name_or_path", "architectures", "dtype", "torch_dtype", "transformers_version", "use_cache",
    "initializer_range", "max_position_embeddings", "pad_token_id", "bos_token_id", "eos_token_id",
    "name_or_path", "id2label", "label2id", "num_labels", "quantization_config",
}  # fmt: skip
"""Entries of a config by which two models may differ and still be merged."""

_TRAITS: dict[str, Callable[[Backbone], str]] = {
    "the architecture": _architecture,
    "the vocabulary": _vocabulary,
    "the number of attention heads": _heads,  # which no shape shows
}
