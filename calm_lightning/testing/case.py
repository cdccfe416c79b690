"""What a check is run on: a composition beside tiny backbones, and how its answers are read.

A fresh composition adds zero, and zero hides every leak. So the model of a case is *disturbed*:
each trainable weight is moved by seeded noise, and the case refuses to go on if the model still
answers as the anchor does.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from calm_lightning.backbone import Backbone
from calm_lightning.contracts import Composition, LanguageModel
from calm_lightning.testing.tiny import SPECIAL_TOKENS, tiny_backbone, tiny_tokenizer

ANCHOR = (32, 3)
"""Width and layers of the anchor of a case."""
AUGMENTING = ((24, 4), (16, 2))
"""The same of its augmenting models. All numbers differ, so that swapped axes show."""

VOCAB = 37
CACHE_MODES = (False, True)
"""Whether the answers are read in one pass (False) or piece by piece through a cache (True)."""

ROUNDING = 2e-4
"""Largest difference that float32 explains, relative to the largest logit, where the same sums are
taken in another order: another batch size, another length, through a cache."""


@dataclass(eq=False)
class Case:
    """One composition beside tiny backbones of one family.

    Args:
        composition: What is checked.
        family: Of all backbones; see `calm_lightning.testing.FAMILIES`.
        num_augmenting: Number of augmenting models, 1 or 2.
        augmenting_family: Of the augmenting models, if it is another.
        noise: Standard deviation of what is added to every trainable weight.
    """

    composition: Composition
    family: str = "llama"
    num_augmenting: int = 1
    augmenting_family: str | None = None
    noise: float = 0.2

    def backbones(
        self, vocab: int = VOCAB, scale: float = 0.2, seed: int = 0
    ) -> tuple[Backbone, list[Backbone]]:
        """New backbones; the same arguments give the same weights."""
        tokenizer = tiny_tokenizer(vocab)
        width, layers = ANCHOR
        anchor = tiny_backbone(
            self.family, width, layers, vocab, seed, tokenizer, scale, f"tiny-anchor-{seed}"
        )
        family = self.augmenting_family or self.family
        augmenting = [
            tiny_backbone(
                family,
                width,
                layers,
                vocab,
                seed + 1 + i,
                tokenizer,
                scale,
                f"tiny-augmenting-{seed + 1 + i}",
            )
            for i, (width, layers) in enumerate(AUGMENTING[: self.num_augmenting])
        ]
        return anchor, augmenting

    def build(
        self, disturbed: bool = True, vocab: int = VOCAB, scale: float = 0.2
    ) -> LanguageModel:
        """A new model out of new backbones, in eval mode; the same arguments give the same one.

        Args:
            disturbed: Whether its trainable weights are moved.
            vocab: Number of token ids.
            scale: Standard deviation of the backbones' weights.
        """
        anchor, augmenting = self.backbones(vocab, scale)
        with seeded(1):
            model = self.composition.compose(anchor, augmenting)
            if disturbed:
                disturb(model, self.noise)
        as_module(model).eval()
        return model

    @cached_property
    def anchor(self) -> Backbone:
        """The anchor that nothing was ever composed with."""
        return self.backbones()[0]

    @cached_property
    def model(self) -> LanguageModel:
        """A disturbed model for checks that change nothing in it.

        Raises:
            AssertionError: If it answers as the anchor does, so that no check could fail.
        """
        model = self.build()
        if any(True for _ in model.trainable_parameters()):
            ids = tokens(3, 8)
            change = difference(read(model, ids), read(self.anchor.model, ids))
            assert change > 1e-2, (
                f"With every trainable weight moved by noise of {self.noise} the logits differ "
                f"from the anchor's by {change:.1e} of their size only. What is trained does not "
                "reach the output: is what a bridge returns added?"
            )
        return model

    @property
    def places(self) -> dict[str, Backbone]:
        """The frozen backbones of `model`, each by what it is."""
        anchor, *augmenting = self.model.frozen_backbones or (None,)
        named = {f"augmenting model {i}": model for i, model in enumerate(augmenting)}
        return named if anchor is None else {"the anchor": anchor, **named}

    def __str__(self) -> str:
        family = self.family + (f"+{self.augmenting_family}" if self.augmenting_family else "")
        return f"{family}-{self.num_augmenting}"


def as_module(model: LanguageModel) -> nn.Module:
    """The same model, for what `torch.nn.Module` can do."""
    assert isinstance(model, nn.Module), f"{type(model).__name__} must be a torch.nn.Module too."
    return model


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Random numbers from this seed; afterwards the generator goes on as if nothing had been."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield


def disturb(model: LanguageModel, noise: float) -> None:
    """Add noise to every trainable weight."""
    with torch.no_grad():
        for _, parameter in model.trainable_parameters():
            parameter.add_(torch.randn_like(parameter), alpha=noise)


def tokens(rows: int, length: int, seed: int = 0, vocab: int = VOCAB) -> Tensor:
    """Random token ids [rows, length], special tokens left out."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(len(SPECIAL_TOKENS), vocab, (rows, length), generator=generator)


def padded(ids: Tensor, lengths: tuple[int, ...], left: bool, fill: int) -> dict[str, Tensor]:
    """The first tokens of each row, padded to the longest with `fill`, as a batch."""
    width = max(lengths)
    rows = torch.full((len(lengths), width), fill)
    mask = torch.zeros((len(lengths), width), dtype=torch.long)
    for row, length in enumerate(lengths):
        place = slice(width - length, width) if left else slice(0, length)
        rows[row, place] = ids[row, :length]
        mask[row, place] = 1
    return {"input_ids": rows, "attention_mask": mask}


@torch.no_grad()
def read(
    model: Any, input_ids: Tensor, attention_mask: Tensor | None = None, cached: bool = False
) -> Tensor:
    """All logits [batch, seq, vocabulary], in one pass or piece by piece through a cache."""
    if not cached:
        return model(input_ids=input_ids, attention_mask=attention_mask, use_cache=False).logits
    length = input_ids.shape[1]
    cuts = sorted({0, length // 2, length // 2 + 1, length})
    cache, pieces = None, []
    for start, stop in pairwise(cuts):
        output = model(
            input_ids=input_ids[:, start:stop],
            attention_mask=None if attention_mask is None else attention_mask[:, :stop],
            past_key_values=cache,
            use_cache=True,
        )
        cache = output.past_key_values
        pieces.append(output.logits)
    return torch.cat(pieces, dim=1)


def how(cached: bool) -> str:
    """For messages: how the logits were read."""
    return "read through a cache" if cached else "read in one pass"


def difference(found: Tensor, expected: Tensor) -> float:
    """Largest difference, as a share of the largest expected entry."""
    assert found.shape == expected.shape, (
        f"expected a tensor of shape {tuple(expected.shape)}, got {tuple(found.shape)}"
    )
    if not found.numel():
        return 0.0
    share = (found - expected).abs().max() / expected.abs().max().clamp(min=1e-6)
    return float("inf") if share.isnan() else float(share)


def require_close(
    found: Tensor, expected: Tensor, what: str, look: str, tolerance: float = ROUNDING
) -> None:
    """Refuse a difference that rounding does not explain.

    Raises:
        AssertionError: With what differs, by how much, and where to look.
    """
    change = difference(found, expected)
    assert change <= tolerance, (
        f"{what}: the largest difference is {change:.1e} of the largest logit, at most "
        f"{tolerance:.0e} is rounding. {look}"
    )


@contextmanager
def embedding_changed(backbone: Backbone, change: Any) -> Iterator[None]:
    """While it is active, `change(embeddings)` is what this backbone alone reads."""
    embedding = backbone.model.get_input_embeddings()
    handle = embedding.register_forward_hook(lambda module, args, output: change(output))
    try:
        yield
    finally:
        handle.remove()
