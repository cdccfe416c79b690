"""Speculation: a small model beside the anchor proposes tokens, and the composed model checks them.

`Fast Inference from Transformers via Speculative Decoding <https://arxiv.org/abs/2211.17192>`_, as
transformers does it (assisted generation), for another tokenizer by way of the text. What is
proposed changes how many tokens one forward pass writes, never which.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from calm_lightning.alignment import share_token_ids
from calm_lightning.contracts import CalmError
from calm_lightning.generation_settings import asked

if TYPE_CHECKING:
    from calm_lightning.language_model import TextModel

_NEEDED = {"num_beams": 1, "num_return_sequences": 1, "use_cache": True}


def drafted_by(number: int, model: "TextModel", options: Mapping[str, Any]) -> dict[str, Any]:
    """Options of `generate` with which an augmenting model proposes tokens. One text at a time.

    Args:
        number: Which one, counted from 0.
        model: Whose tokens are written. Its settings count as options do.
        options: What else is given to `generate`.

    Raises:
        CalmError: If there is no such model, or it cannot propose tokens for such a generation.
    """
    augmenting = model.frozen_backbones[1:]
    if not 0 <= number < len(augmenting):
        there = f"there are {len(augmenting)}, counted from 0" if augmenting else "there is none"
        raise CalmError(f"draft={number}: tokens are proposed by an augmenting model, and {there}.")
    for name, needed in _NEEDED.items():
        if (value := asked(model, options, name)) not in (None, needed):
            raise CalmError(
                f"draft={number}: with {name}={value} tokens cannot be proposed. Leave out the "
                f"draft, or say {name}={needed}."
            )
    anchor, drafting = model.anchor_backbone, augmenting[number]
    same_ids = share_token_ids(anchor, drafting)
    same_size = anchor.config.vocab_size == drafting.config.vocab_size
    if same_ids and same_size:
        return {"assistant_model": drafting.model}
    # transformers tells by the size alone whether ids are shared. Some embeddings are padded.
    if same_size:
        raise CalmError(
            f"draft={number}: {drafting.name!r} has another tokenizer than the anchor "
            f"{anchor.name!r} and as many token ids ({anchor.config.vocab_size}), by which "
            "transformers takes the two tokenizers for one. Leave out the draft."
        )
    by_text = (
        f"draft={number}: {drafting.name!r} proposes tokens for the anchor {anchor.name!r} by way "
        "of the text, and that cannot be done"
    )
    if drafting.has_window:
        # transformers crops its cache, in which the window has left nothing to go back to.
        raise CalmError(f"{by_text} by a model with a sliding window. Leave out the draft.")
    if asked(model, options, "do_sample"):
        # transformers would put other embeddings into the frozen model, and leave them there.
        raise CalmError(
            f"{by_text} for answers that are drawn at random. Leave out the draft, or say "
            "do_sample=False."
        )
    return {
        "assistant_model": drafting.model,
        "tokenizer": anchor.require_tokenizer(),
        "assistant_tokenizer": drafting.require_tokenizer(),
    }
