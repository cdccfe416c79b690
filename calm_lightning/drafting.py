"""Speculation: a small model beside the anchor proposes tokens, and the composed model checks them.

`Fast Inference from Transformers via Speculative Decoding <https://arxiv.org/abs/2211.17192>`_, as
transformers does it (assisted generation), for another tokenizer by way of the text. What is
proposed changes how many tokens one forward pass writes, never which.
"""

from collections.abc import Sequence
from typing import Any

from calm_lightning.alignment import share_token_ids
from calm_lightning.backbone import Backbone
from calm_lightning.contracts import CalmError


def drafted_by(
    number: int, anchor: Backbone, augmenting: Sequence[Backbone], num_beams: int = 1
) -> dict[str, Any]:
    """Options of `generate` with which an augmenting model proposes tokens. One text at a time.

    Args:
        number: Which one, counted from 0.
        anchor: Whose tokens are written.
        augmenting: All of them.
        num_beams: Of the search; it must be 1.

    Raises:
        CalmError: If there is no such model, or beams are searched.
    """
    if not 0 <= number < len(augmenting):
        there = f"there are {len(augmenting)}, counted from 0" if augmenting else "there is none"
        raise CalmError(f"draft={number}: tokens are proposed by an augmenting model, and {there}.")
    if num_beams > 1:
        raise CalmError(f"draft={number}: with num_beams={num_beams} tokens cannot be proposed.")
    model = augmenting[number]
    options: dict[str, Any] = {"assistant_model": model.model}
    if not share_token_ids(anchor, model):
        options["tokenizer"] = anchor.require_tokenizer()
        options["assistant_tokenizer"] = model.require_tokenizer()
    return options
