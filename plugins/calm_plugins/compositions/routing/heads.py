"""Who says the next token: by a head on the anchor's states, or all of them, mixed."""

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from typing_extensions import override

from calm_lightning.backbone import Backbone
from calm_lightning.collate import IGNORED
from calm_lightning.contracts import Composition
from calm_plugins.compositions.routing.choice import choose, decider, log_shares, pick
from calm_plugins.compositions.routing.model import RoutedModel
from calm_plugins.compositions.routing.reading import Reading, target_log_probs


class TokenModel(RoutedModel):
    """Token by token one model speaks.

    Args:
        anchor: Whose last hidden state decides.
        augmenting: Who may speak in its place.
        composition: What built it.
        threshold: See `TokenRouter`.
    """

    def __init__(
        self,
        anchor: Backbone,
        augmenting: Sequence[Backbone],
        composition: Composition,
        threshold: float,
    ) -> None:
        super().__init__(anchor, augmenting, composition)
        self.threshold = threshold
        self.head = decider(anchor.width, len(augmenting))

    @override
    def log_odds(self, reading: Reading) -> Float[Tensor, "batch columns augmenting"]:
        return self.head(reading.states.to(self.head.weight.dtype))

    @override
    def speak(
        self, reading: Reading, log_odds: Float[Tensor, "batch columns augmenting"]
    ) -> Float[Tensor, "batch columns vocabulary"]:
        return pick(reading.logits, choose(log_odds, self.threshold))

    @override
    def loss(
        self, reading: Reading, log_odds: Float[Tensor, "batch columns augmenting"]
    ) -> Float[Tensor, ""]:
        if not self.training:
            return super().loss(reading, log_odds)
        shares = log_shares(log_odds).movedim(-1, 0)
        marginal = torch.logsumexp(shares + target_log_probs(reading), dim=0)
        return -marginal[reading.targets != IGNORED].mean()

    @override
    def speakers(
        self, reading: Reading, log_odds: Float[Tensor, "batch columns augmenting"]
    ) -> Int[Tensor, "batch columns"]:
        return choose(log_odds, self.threshold)


class EnsembleModel(RoutedModel):
    """All models speak at once, each as loud as its learned weight.

    Args:
        anchor: In whose tokens they speak.
        augmenting: Who speaks beside it.
        composition: What built it.
        anchor_share: What the anchor counts at first.
    """

    def __init__(
        self,
        anchor: Backbone,
        augmenting: Sequence[Backbone],
        composition: Composition,
        anchor_share: float,
    ) -> None:
        super().__init__(anchor, augmenting, composition)
        each = (1 - anchor_share) / len(augmenting)
        self.loudness = nn.Parameter(torch.full((len(augmenting),), math.log(each / anchor_share)))

    @property
    def weights(self) -> list[float]:
        """What each model counts, the anchor first; together 1."""
        return log_shares(self.loudness.detach()).exp().tolist()

    @override
    def log_odds(self, reading: Reading) -> Float[Tensor, "batch columns augmenting"]:
        return self.loudness.expand(*reading.logits[0].shape[:2], -1)

    @override
    def speak(
        self, reading: Reading, log_odds: Float[Tensor, "batch columns augmenting"]
    ) -> Float[Tensor, "batch columns vocabulary"]:
        return torch.logsumexp(self._opinions(reading, log_odds), dim=0)

    @override
    def speakers(
        self, reading: Reading, log_odds: Float[Tensor, "batch columns augmenting"]
    ) -> Int[Tensor, "batch columns"]:
        """Whoever did most for the token that was said: the largest term of its sum."""
        said = reading.targets[None, ..., None].expand(len(reading.logits), -1, -1, -1)
        return self._opinions(reading, log_odds).gather(-1, said)[..., 0].argmax(0)

    def _opinions(
        self, reading: Reading, log_odds: Float[Tensor, "batch columns augmenting"]
    ) -> Float[Tensor, "models batch columns vocabulary"]:
        """The logarithm of each model's term of the mixture."""
        heard = torch.stack([logits.float().log_softmax(-1) for logits in reading.logits])
        return log_shares(log_odds).movedim(-1, 0)[..., None] + heard
