"""What `generate` goes by: its options, and behind them the settings of the model itself."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from transformers import GenerationConfig

if TYPE_CHECKING:
    from calm_lightning.language_model import TextModel


def settings_of(model: "TextModel") -> GenerationConfig:
    """What a model generates by where no option says otherwise."""
    own: GenerationConfig | None = getattr(model, "generation_config", None)
    return model.anchor_backbone.model.generation_config if own is None else own


def asked(model: "TextModel", options: Mapping[str, Any], name: str) -> Any:
    """What one of the options of `generate` is, given or set; None if nothing says it.

    Args:
        model: Who is asked.
        options: What is given to `generate`.
        name: Of the option.
    """
    if options.get(name) is not None:
        return options[name]
    given = getattr(options.get("generation_config"), name, None)
    value = getattr(settings_of(model), name, None) if given is None else given
    # Some models were published with a `hybrid` cache; transformers passes over it.
    return None if value == "hybrid" else value
