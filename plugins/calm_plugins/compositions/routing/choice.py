"""Who speaks, by the odds of every augmenting model against the anchor."""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn


def decider(width: int, augmenting: int) -> nn.Linear:
    """A linear head on the anchor's last hidden state; fresh, it decides for the anchor.

    Args:
        width: Of the state.
        augmenting: How many models there are beside the anchor.
    """
    head = nn.Linear(width, augmenting)
    nn.init.zeros_(head.weight)
    nn.init.zeros_(head.bias)
    return head


def choose(log_odds: Float[Tensor, "*rows augmenting"], threshold: float) -> Int[Tensor, "*rows"]:
    """Who speaks: the likeliest augmenting model, where its odds against the anchor suffice.

    Args:
        log_odds: Of each augmenting model against the anchor, in nats.
        threshold: It speaks where its share of the two is above this.
    """
    best, which = log_odds.max(-1)
    return torch.where(best.sigmoid() > threshold, 1 + which, 0)


def log_shares(
    log_odds: Float[Tensor, "*rows augmenting"],
) -> Float[Tensor, "*rows models"]:
    """The logarithm of the probability that each model speaks, the anchor first."""
    return nn.functional.pad(log_odds, (1, 0)).log_softmax(-1)


def pick(
    logits: Sequence[Float[Tensor, "batch columns vocabulary"]],
    speakers: Int[Tensor, "batch columns"],
) -> Float[Tensor, "batch columns vocabulary"]:
    """At each column the logits of the model that speaks there."""
    picked = logits[0]
    for number, each in enumerate(logits[1:], start=1):
        picked = torch.where((speakers == number)[..., None], each.to(picked.dtype), picked)
    return picked
