"""Which augmenting tokens an anchor position may see.

Both models read the same text. With equal tokenizers token s of one is token s of the other, and
an anchor position sees the augmenting tokens at or before it: the plain causal mask. The paper
never mentions a mask; without one, position t would read the augmenting model's encoding of token
t + 1, which is its own label (PAPERS.md 1.1).
"""

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from calm_lightning.backbone import Backbone
from calm_lightning.contracts import CalmError


def positions_of(
    attention_mask: Int[Tensor, "batch all"] | None,
    batch: int,
    past: int,
    new: int,
    device: torch.device,
) -> Int[Tensor, "batch new"]:
    """Position of each new token in its own text, padding not counted."""
    if attention_mask is None:
        return torch.arange(past, past + new, device=device).expand(batch, new)
    return (attention_mask.long().cumsum(-1) - 1).clamp(min=0)[:, past:]


def visible_tokens(
    attention_mask: Int[Tensor, "batch all"] | None,
    batch: int,
    past: int,
    new: int,
    device: torch.device,
    prompt_mask: Bool[Tensor, "batch prompt"] | None = None,
) -> Bool[Tensor, "batch new all"]:
    """For equal tokenizers: True where an anchor position may read an augmenting token.

    Args:
        attention_mask: 1 at tokens, 0 at padding, over all that was read so far; None: no padding.
        batch: Rows.
        past: Tokens already in the cache.
        new: Tokens read now; the queries.
        device: Where the mask is needed.
        prompt_mask: If given, only tokens where it is True may be read; what lies beyond its width
            may not (the paper's encoder ablation).
    """
    everything = past + new
    queries = torch.arange(past, everything, device=device)[:, None]
    keys = torch.arange(everything, device=device)[None]
    visible = (keys <= queries).expand(batch, new, everything)
    if attention_mask is not None:
        visible = visible & attention_mask[:, None, :].bool()
    if prompt_mask is not None:
        missing = everything - prompt_mask.shape[1]
        prompt = torch.nn.functional.pad(prompt_mask.bool(), (0, max(0, missing)))[:, :everything]
        visible = visible & prompt[:, None, :]
    return visible


def require_equal_tokenizers(anchor: Backbone, augmenting: Backbone) -> None:
    """Refuse two models that do not share their token ids.

    Raises:
        CalmError: If the vocabularies differ.
    """
    if anchor.tokenizer is None or augmenting.tokenizer is None:
        ours, theirs = anchor.config.vocab_size, augmenting.config.vocab_size
        if ours > theirs:
            raise CalmError(
                f"The anchor {anchor.name!r} has {ours} token ids and the augmenting model "
                f"{augmenting.name!r} {theirs}, and no tokenizers are given to align them by text."
            )
        return
    if anchor.tokenizer.get_vocab() != augmenting.tokenizer.get_vocab():
        ours, theirs = len(anchor.tokenizer), len(augmenting.tokenizer)
        raise CalmError(
            f"The tokenizers of {anchor.name!r} ({ours} tokens) and {augmenting.name!r} ({theirs} "
            "tokens) differ. This version composes models that share one tokenizer; use two "
            "checkpoints of one family."
        )
