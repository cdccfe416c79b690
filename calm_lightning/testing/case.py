"""What a check is run on: a composition beside tiny backbones, and how its answers are read.

A fresh composition adds zero, and zero hides every leak. So the model of a case is *disturbed*:
each trainable weight is moved by seeded noise, and the case refuses to go on if the model still
answers as the anchor does.

The models of a case share one tokenizer, or each has its own. Then token t of one is not token t
of another, and a check asks the case where an anchor position first sees what (`first_seen`).
"""

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from calm_lightning.alignment import Reading, TextAlignment, share_token_ids
from calm_lightning.backbone import Backbone
from calm_lightning.collate import IGNORED
from calm_lightning.contracts import Composition, LanguageModel
from calm_lightning.testing.tiny import CONTEXT, SPECIAL_TOKENS, tiny_backbone, tiny_tokenizer
from calm_lightning.testing.tokenizers import spelling_tokenizer, text_tokenizer

ANCHOR = (32, 3)
"""Width and layers of the anchor of a case."""
AUGMENTING = ((24, 4), (16, 2))
"""The same of its augmenting models. All numbers differ, so that swapped axes show."""

VOCAB = 37
LONG_CONTEXT = 512
"""In tokens: a short text of one model may be a long one of another."""

SPOKEN = "A b. c, 1 d; (e) it's x-y! 2 3 go, he ran: no? 45 to us."
"""Where models have tokenizers of their own, texts are random tokens of this one."""

CACHE_MODES = (False, True)
"""Whether the answers are read in one pass (False) or piece by piece through a cache (True)."""

ROUNDING = 2e-4
"""Largest difference that float32 explains, relative to the largest logit, where the same sums are
taken in another order: another batch size, another length, through a cache."""


@dataclass(eq=False)
class Case:
    """One composition beside tiny backbones of one family.

    For other backbones, real ones say, override `backbones`.

    Args:
        composition: What is checked.
        family: Of all backbones; see `calm_lightning.testing.FAMILIES`.
        num_augmenting: Number of augmenting models, 1 or 2.
        augmenting_family: Of the augmenting models, if it is another.
        noise: Standard deviation of what is added to every trainable weight.
        tokenizers: Kinds of tokenizers, of the anchor and of each augmenting model; see
            `calm_lightning.testing.tokenizers`. None: one small tokenizer for all.
    """

    composition: Composition
    family: str = "llama"
    num_augmenting: int = 1
    augmenting_family: str | None = None
    noise: float = 0.2
    tokenizers: tuple[str, ...] | None = None
    _vocabularies: dict[int, list[int]] = field(default_factory=dict, init=False, repr=False)

    def backbones(
        self, vocab: int = VOCAB, scale: float = 0.2, seed: int = 0
    ) -> tuple[Backbone, list[Backbone]]:
        """New backbones; the same arguments give the same weights.

        Args:
            vocab: Number of token ids. Where models have tokenizers of their own, fewer than
                `VOCAB` give the anchor one that spells, with so many characters.
            scale: Standard deviation of the weights.
            seed: Of the weights.
        """
        sizes = [ANCHOR, *AUGMENTING[: self.num_augmenting]]
        families = [self.family] + [self.augmenting_family or self.family] * self.num_augmenting
        tokenizers = self._tokenizers(vocab)
        anchor, *augmenting = (
            tiny_backbone(
                family,
                width,
                layers,
                len(tokenizer),
                seed + i,
                tokenizer,
                scale,
                f"tiny-augmenting-{seed + i}" if i else f"tiny-anchor-{seed}",
                CONTEXT if self.tokenizers is None else LONG_CONTEXT,
            )
            for i, (family, (width, layers), tokenizer) in enumerate(
                zip(families, sizes, tokenizers, strict=True)
            )
        )
        return anchor, augmenting

    def _tokenizers(self, vocab: int) -> list[PreTrainedTokenizerBase]:
        if self.tokenizers is None:
            return [tiny_tokenizer(vocab)] * (1 + self.num_augmenting)
        anchors, *_ = self.tokenizers
        shared = text_tokenizer(anchors) if vocab >= VOCAB else spelling_tokenizer(vocab)
        return [shared if kind == anchors else text_tokenizer(kind) for kind in self.tokenizers]

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
            ids = self.tokens(3, 8)
            change = difference(read(model, ids), read(self.anchor.model, ids))
            assert change > 1e-2, (
                f"With every trainable weight moved by noise of {self.noise} the logits differ "
                f"from the anchor's by {change:.1e} of their size only. What is trained does not "
                "reach the output: is what a bridge returns added?"
            )
        return model

    # ------------------------------------------------------------------ what is read

    def vocabulary(self, vocab: int = VOCAB) -> list[int]:
        """Ids of the anchor that random texts are made of, special tokens left out."""
        if self.tokenizers is None:
            return list(range(len(SPECIAL_TOKENS), vocab))
        if vocab not in self._vocabularies:
            tokenizer = self.backbones(vocab)[0].require_tokenizer()
            self._vocabularies[vocab] = spoken(tokenizer)[:vocab]
        return self._vocabularies[vocab]

    def tokens(self, rows: int, length: int, seed: int = 0, vocab: int = VOCAB) -> Tensor:
        """Random token ids [rows, length], special tokens left out."""
        if self.tokenizers is None:
            return tokens(rows, length, seed, vocab)
        among = torch.tensor(self.vocabulary(vocab))
        generator = torch.Generator().manual_seed(seed)
        return among[torch.randint(len(among), (rows, length), generator=generator)]

    def uniform_batches(
        self, rows: int, length: int, vocab: int = VOCAB
    ) -> Iterator[dict[str, Tensor]]:
        """Without end: batches of independent uniform tokens; all but two of a row are learnt."""
        among = None if self.tokenizers is None else self.vocabulary(vocab)
        return uniform_batches(rows, length, vocab, among=among)

    def others(self, ids: Tensor) -> Tensor:
        """In the place of each token another one."""
        among = self.vocabulary()
        if self.tokenizers is None:
            return (ids + 7) % VOCAB
        return torch.tensor(
            [among[(among.index(token) + 7) % len(among)] for token in ids.tolist()]
        )

    def readings(
        self, backbone: Backbone, ids: Tensor, attention_mask: Tensor | None = None
    ) -> list[Reading] | None:
        """What a backbone reads of each row; None where it reads the anchor's own tokens."""
        anchor = self.model.frozen_backbones[0]
        if backbone is anchor or share_token_ids(anchor, backbone):
            return None
        aligned = TextAlignment(anchor, backbone)
        mask = torch.ones_like(ids) if attention_mask is None else attention_mask
        return [
            aligned.read(row[real].tolist()) for row, real in zip(ids, mask.bool(), strict=True)
        ]

    def first_seen(self, backbone: Backbone, ids: Tensor, place: int) -> Tensor:
        """For each row, the first position that may know what a backbone reads at a place."""
        readings = self.readings(backbone, ids)
        if readings is None:
            return torch.full((len(ids),), place)
        return torch.tensor([bisect_right(reading.counts, place) for reading in readings])

    def attended(self, backbone: Backbone, batch: dict[str, Tensor]) -> Tensor:
        """What of that which a backbone reads is not padding, [batch, what it reads]."""
        readings = self.readings(backbone, batch["input_ids"], batch["attention_mask"])
        if readings is None:
            return batch["attention_mask"]
        lengths = torch.tensor([len(reading.ids) for reading in readings])
        return (torch.arange(int(lengths.max())) < lengths[:, None]).long()

    @property
    def places(self) -> dict[str, Backbone]:
        """The frozen backbones of `model`, each by what it is."""
        anchor, *augmenting = self.model.frozen_backbones or (None,)
        named = {f"augmenting model {i}": model for i, model in enumerate(augmenting)}
        return named if anchor is None else {"the anchor": anchor, **named}

    def __str__(self) -> str:
        family = self.family + (f"+{self.augmenting_family}" if self.augmenting_family else "")
        return "-".join([family, str(self.num_augmenting), *(self.tokenizers or ())])


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


def spoken(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Different ids of a tokenizer that short texts are made of, special tokens left out."""
    ids = tokenizer(SPOKEN, add_special_tokens=False)["input_ids"]
    special = set(tokenizer.all_special_ids)
    return [token for token in dict.fromkeys(ids) if token not in special]


def uniform_batches(
    rows: int,
    length: int,
    vocab: int = VOCAB,
    prompt: int = 2,
    seed: int = 0,
    among: Sequence[int] | None = None,
) -> Iterator[dict[str, Tensor]]:
    """Without end: batches of independent uniform tokens, each to be learnt after `prompt`.

    Args:
        rows: Per batch.
        length: In tokens.
        vocab: Number of token ids.
        prompt: How many tokens are given.
        seed: Of the tokens.
        among: Ids to draw from; None: all.
    """
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.arange(vocab) if among is None else torch.tensor(among)
    while True:
        ids = drawn[torch.randint(len(drawn), (rows, length), generator=generator)]
        labels = ids.clone()
        labels[:, :prompt] = IGNORED
        yield {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels}


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
