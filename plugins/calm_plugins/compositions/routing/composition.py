"""Routing: rivals of a composition that join models by choosing among them, or by mixing them.

None of them looks inside a model, so none can solve what neither model can do alone (PAPERS.md,
section 4): the rows that tell whether a composition did more.
"""

from collections.abc import Sequence
from pathlib import Path

from typing_extensions import override

from calm_lightning.backbone import Backbone
from calm_lightning.contracts import CalmError, Composition
from calm_plugins.compositions.routing.calibration import (
    check_share,
    check_threshold,
    read_prompts,
)
from calm_plugins.compositions.routing.heads import EnsembleModel, TokenModel
from calm_plugins.compositions.routing.prompts import DecideBy, PromptModel


class PromptRouter(Composition):
    """Each prompt is answered by one model alone.

    By state, a linear head on the anchor's last hidden state at the end of the prompt gives the
    probability that each model should answer. It is trained by the likelihood of the target, with
    the model that answers as a hidden variable: where the models' losses on a target differ, that
    is a classifier's training on which one's is lower. By likelihood, nothing is trained: the score
    is sigmoid(difference of the two models' nats for each token of the prompt).

    An augmenting model answers where the score is above a threshold, as in
    `RouteLLM <https://arxiv.org/abs/2406.18665>`_, which finds the threshold from the wanted share
    of prompts. Different from there: the score is of these two models on these targets, not of
    human preferences; the classifier is one linear layer.

    Args:
        decide_by: `state` or `likelihood`.
        threshold: From 0 (an augmenting model answers everything) to 1 (the anchor does).
        share: In place of the threshold: the share of the prompts in `calibration` that an
            augmenting model shall answer.
        calibration: A file with one prompt a line, or JSON lines with `prompt` (`.jsonl`).

    Raises:
        CalmError: If a setting is out of range, or two contradict each other.
    """

    def __init__(
        self,
        decide_by: DecideBy = "state",
        threshold: float = 0.5,
        share: float | None = None,
        calibration: str | None = None,
    ) -> None:
        check_threshold(threshold)
        if share is not None:
            check_share(share)
        if (share is None) != (calibration is None):
            raise CalmError(
                f"share={share}, calibration={calibration!r}: a share is met on some prompts, so "
                "the two go together. Without them `threshold` decides."
            )
        self.decide_by: DecideBy = decide_by
        self.threshold = threshold
        self.share = share
        self.calibration = calibration
        if threshold < 0.5 or decide_by == "likelihood":
            early = "it may choose an augmenting model before anything is trained"
            self.exempt = {**self.exempt, "starts_as_anchor": early}
        if decide_by == "likelihood":
            untrained = "nothing is trained that could come to use an augmenting model"
            self.exempt = {**self.exempt, "augmenting_used": untrained}

    @override
    def compose(self, anchor: Backbone, augmenting: Sequence[Backbone]) -> PromptModel:
        # Read now: what is wrong with them should not be found out after the training.
        prompts = () if self.calibration is None else read_prompts(Path(self.calibration))
        model = PromptModel(
            anchor, augmenting, self, self.decide_by, self.threshold, self.share, prompts
        )
        if prompts and not all(fitting := model.fits(prompts)):
            raise CalmError(
                f"calibration={self.calibration}: {fitting.count(False)} of its prompts do not fit "
                f"the context of every model; first: {prompts[fitting.index(False)][:40]!r}. Leave "
                "them out."
            )
        return model


class TokenRouter(Composition):
    """Token by token one model speaks, as in Co-LLM.

    `Learning to Decode Collaboratively <https://arxiv.org/abs/2403.03870>`_, section 2: a linear
    head on the anchor's last hidden state gives the probability that another model says the next
    token. Who speaks is a hidden variable, and what is trained is the likelihood of the target with
    both possibilities in it. In use the augmenting model speaks where its probability is above a
    threshold; validation losses are those of the text as it is spoken.

    Different from the paper: the anchor is frozen like the others, so the head is all that is
    trained; it starts from zero, not from labels made beforehand; several augmenting models are
    possible, of which the likeliest is measured against the anchor. A model with another tokenizer
    is translated (`translation.py`).

    Args:
        threshold: From 0 (an augmenting model says everything) to 1 (the anchor does).

    Raises:
        CalmError: If it is out of range.
    """

    def __init__(self, threshold: float = 0.5) -> None:
        check_threshold(threshold)
        self.threshold = threshold
        if threshold < 0.5:
            early = "it lets an augmenting model speak before anything is trained"
            self.exempt = {**self.exempt, "starts_as_anchor": early}

    @override
    def compose(self, anchor: Backbone, augmenting: Sequence[Backbone]) -> TokenModel:
        return TokenModel(anchor, augmenting, self, self.threshold)


class Ensemble(Composition):
    """The next token comes from all models: a weighted mean of their distributions.

    One weight for each model, learned by the likelihood of the targets; untrained, it is the plain
    soft ensemble. A model with another tokenizer is translated (`translation.py`).

    Args:
        anchor_share: What the anchor counts before training, between 0 and 1; the augmenting models
            share the rest. Null: all count alike.

    Raises:
        CalmError: If it is out of range.
    """

    exempt = {  # noqa: RUF012
        "starts_as_anchor": "all models are heard from the start",
    }

    def __init__(self, anchor_share: float | None = None) -> None:
        if anchor_share is not None and not 0 < anchor_share < 1:
            raise CalmError(
                f"anchor_share={anchor_share}: the anchor counts between 0 and 1, both left out; "
                "at either end nothing could be learnt."
            )
        self.anchor_share = anchor_share

    @override
    def compose(self, anchor: Backbone, augmenting: Sequence[Backbone]) -> EnsembleModel:
        share = 1 / (1 + len(augmenting)) if self.anchor_share is None else self.anchor_share
        return EnsembleModel(anchor, augmenting, self, share)
