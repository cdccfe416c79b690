"""What a text costs a model, and by that how much rather one model should answer than another."""

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from calm_lightning.alignment import positions_of
from calm_lightning.backbone import Backbone
from calm_lightning.collate import Row, check_fits, pad_right


@torch.no_grad()
def token_nats(backbone: Backbone, rows: Sequence[Sequence[int]]) -> Float[Tensor, "rows tokens"]:
    """What each token costs a model, given those before it, in nats.

    The first token of a row, and what is beyond its end, cost nothing.

    Args:
        backbone: The model.
        rows: Its own token ids, without padding.

    Raises:
        CalmError: If a row does not fit its context.
    """
    texts = [Row(list(ids), len(ids)) for ids in rows]
    check_fits(texts, backbone.context, backbone.name)
    device = next(backbone.model.parameters()).device
    if not any(rows):
        return torch.zeros(len(rows), 0, device=device)
    batch = {name: tensor.to(device) for name, tensor in pad_right(texts, 0).items()}
    del batch["labels"]
    ids, mask = batch["input_ids"], batch["attention_mask"]
    if backbone.takes_positions:
        batch["position_ids"] = positions_of(mask, len(ids), 0, ids.shape[1], device)
    nats = _costs(backbone.model(**batch).logits, ids, mask[:, 1:].bool())
    return torch.nn.functional.pad(nats, (1, 0))


def prompt_odds(
    backbones: Sequence[Backbone], prompts: Sequence[Sequence[Sequence[int]]]
) -> Float[Tensor, "rows augmenting"]:
    """How much rather each augmenting model would have written a prompt than the anchor.

    Args:
        backbones: The anchor, then the augmenting models.
        prompts: For every model all prompts in its own tokens, without padding.

    Returns:
        The difference in nats for each of the anchor's tokens: for models with tokens of their own
        it is still taken over the same stretch of text.
    """
    totals = [
        token_nats(backbone, rows).sum(-1).cpu()
        for backbone, rows in zip(backbones, prompts, strict=True)
    ]
    counts = torch.tensor([max(1, len(row) - 1) for row in prompts[0]])
    return torch.stack([totals[0] - other for other in totals[1:]], dim=-1) / counts[:, None]


def running_odds(
    logits: Sequence[Float[Tensor, "batch new vocabulary"]],
    input_ids: Int[Tensor, "batch new"],
    real: Bool[Tensor, "batch new"],
) -> Float[Tensor, "batch new augmenting"]:
    """The same for every beginning of a text, where all models share their token ids.

    Args:
        logits: Of every model, the anchor's first.
        input_ids: The texts from their first token on.
        real: True at tokens, False at padding.
    """
    # A token costs something if there is one before it.
    counted = real[:, 1:] & real[:, :-1]
    totals = [_costs(each, input_ids, counted).cumsum(-1) for each in logits]
    counts = counted.cumsum(-1).clamp(min=1)
    odds = torch.stack([totals[0] - other for other in totals[1:]], dim=-1) / counts[..., None]
    return torch.nn.functional.pad(odds, (0, 0, 1, 0))


def _costs(
    logits: Float[Tensor, "batch tokens vocabulary"],
    ids: Int[Tensor, "batch tokens"],
    counted: Bool[Tensor, "batch later"],
) -> Float[Tensor, "batch later"]:
    """What each token but the first costs, in nats; 0 where it does not count."""
    log_probs = logits[:, :-1].float().log_softmax(-1)
    return torch.where(counted, -log_probs.gather(-1, ids[:, 1:, None])[..., 0], 0.0)
