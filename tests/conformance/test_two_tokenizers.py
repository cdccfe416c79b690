"""Models that do not share a tokenizer keep every promise; and each promise can be broken."""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from typing_extensions import override

import calm_lightning.composed.model
import calm_lightning.composed.reading
from calm_lightning.alignment import Reading, TextAlignment
from calm_lightning.backbone import Backbone, BackboneSource
from calm_lightning.composed.cache import TextMemory
from calm_lightning.composed.reading import AugmentingReader
from calm_lightning.settling import Settling
from calm_lightning.testing import CHECKS, PROMISES, Case, broken_promises
from calm_lightning.testing.case import VOCAB, seeded
from calm_lightning.testing.conformance import one_thread
from calm_plugins.compositions.cross_attention import CrossAttention

Patch = pytest.MonkeyPatch

FULL, ENCODER = CrossAttention(every=2), CrossAttention(every=2, augmenting_sees="prompt")

CASES = (
    Case(FULL, "llama", tokenizers=("characters", "byte_bpe")),
    # Two augmenting models, the second of which shares the anchor's tokenizer.
    Case(FULL, "gpt2", 2, "qwen2", tokenizers=("byte_bpe", "unigram", "byte_bpe")),
    # A window counts columns, so there must be no gaps between them.
    Case(FULL, "gemma", 1, "mistral", tokenizers=("sentencepiece_bpe", "wordpiece")),
    # Without position_ids columns are counted too.
    Case(FULL, "llama", 1, "bloom", tokenizers=("unigram", "characters")),
    Case(FULL, "gpt_neox", 2, tokenizers=("byte_bpe_split", "byte_bpe_added", "sentencepiece_bpe")),
    Case(ENCODER, "llama", 2, "bloom", tokenizers=("characters", "unigram_whole", "byte_bpe")),
)


# A promise that takes training, longer than all others together; which tokenizers there are matters
# least to it.
TRAINED = "augmenting_used"
READING = tuple(name for name in PROMISES if name != TRAINED)


@pytest.mark.parametrize(
    ("case", "promise"),
    [(case, name) for case in CASES for name in READING]
    + [(case, TRAINED) for case in (CASES[0], CASES[2], CASES[3])],
    ids=str,
)
def test_a_promise_is_kept_beside_another_tokenizer(case: Case, promise: str) -> None:
    with one_thread():
        CHECKS[promise](case)


# ---------------------------------------------------------------- planted faults


def sees_a_token_early(patch: Patch) -> None:
    read = TextAlignment._read

    def early(self: TextAlignment, ids: Sequence[int], settling: Settling) -> Reading:
        exact, text = read(self, ids, settling), self.text_of(ids)[0]
        tokens = [*settling.first, *settling.tokenize(text)[0]]
        counts = [min(count + 1, len(tokens)) for count in exact.counts]
        places = [*exact.positions, len(ids) - 1][: max(counts, default=0)]
        return Reading(tokens[: len(places)], counts, places)

    patch.setattr(TextAlignment, "_read", early)


def sees_unfinished_words(patch: Patch) -> None:
    patch.setattr(Settling, "limits", lambda self, text: list(range(len(text) + 1)))


def takes_the_beginning_of_a_token_for_its_end(patch: Patch) -> None:
    tokenize = Settling.tokenize

    def beginnings(self: Settling, text: str) -> tuple[list[int], list[int]]:
        ids, ends = tokenize(self, text)
        return ids, [0, *ends[:-1]][: len(ids)]

    patch.setattr(Settling, "tokenize", beginnings)


def sees_padding(patch: Patch) -> None:
    patch.setattr(calm_lightning.composed.model, "unpadded", lambda ids, new: ids.tolist())


def forgets_to_reorder_what_was_read(patch: Patch) -> None:
    patch.setattr(TextMemory, "select", lambda self, rows: None)


def forgets_to_repeat_what_was_read(patch: Patch) -> None:
    patch.setattr(TextMemory, "repeat_interleave", lambda self, repeats: None)


def keeps_what_was_taken_back(patch: Patch) -> None:
    advance = TextMemory.advance

    def only_on(self: TextMemory, wanted: Any, *rest: Any, **more: Any) -> Any:
        longer = [max(pair, key=len) for pair in zip(wanted, self.ids or wanted, strict=True)]
        return advance(self, longer, *rest, **more)

    patch.setattr(TextMemory, "advance", only_on)


def leaves_gaps_for_models_that_count_columns(patch: Patch) -> None:
    patch.setattr(calm_lightning.composed.reading, "tells_gaps", lambda backbone: True)


def places_tokens_by_their_columns(patch: Patch) -> None:
    run = AugmentingReader._run

    def columns(self: Any, ids: Tensor, mask: Tensor, places: Tensor, *rest: Any) -> Any:
        first = mask.shape[1] - ids.shape[1]
        return run(self, ids, mask, torch.arange(first, mask.shape[1]).expand_as(places), *rest)

    patch.setattr(AugmentingReader, "_run", columns)


BY_LETTERS, BY_COLUMNS = CASES[0], CASES[2]

FAULTS: dict[Callable[[Patch], None], tuple[Case, set[str]]] = {
    # Only whole texts have a token to be seen early; generation, and training, then differ.
    # A prompt of which there are several samples is read in two parts.
    sees_a_token_early: (
        BY_COLUMNS,
        {"causal", "cache", "conversation", "loss", "text", "speed_paths"},
    ),
    sees_unfinished_words: (BY_COLUMNS, {"cache", "speed_paths"}),
    takes_the_beginning_of_a_token_for_its_end: (BY_COLUMNS, {"cache"}),
    # A batch of texts of different lengths is padded; packed, it is not.
    sees_padding: (BY_LETTERS, {"padding", "text", "loss", "speed_paths", "packing"}),
    # Rows that leave are selected as beams are.
    forgets_to_reorder_what_was_read: (BY_LETTERS, {"cache", "speed_paths"}),
    forgets_to_repeat_what_was_read: (BY_LETTERS, {"cache"}),
    keeps_what_was_taken_back: (BY_LETTERS, {"cache"}),
    # Gaps come where rows grow by different numbers of tokens.
    leaves_gaps_for_models_that_count_columns: (
        BY_COLUMNS,
        {"batch", "cache", "conversation", "text"},
    ),
    places_tokens_by_their_columns: (
        BY_LETTERS,
        {"batch", "cache", "conversation", "loss", "text", "packing"},
    ),
}


@pytest.mark.parametrize("plant", FAULTS, ids=lambda plant: plant.__name__)
def test_fault_turns_exactly_its_promises_red(plant: Any, monkeypatch: Patch) -> None:
    case, expected = FAULTS[plant]
    plant(monkeypatch)
    broken = broken_promises(replace(case), READING)  # a fresh one: a case keeps its model
    assert broken.keys() == expected, broken


# ---------------------------------------------------------------- real checkpoints

CHECKPOINTS = Path(os.environ.get("CALM_DATA") or Path(__file__).parents[3] / "shared" / "data")
PAIRS = (("stories260K", "BabyLlama-105"), ("BabyLlama-105", "stories260K"))


@dataclass(eq=False)
class RealCase(Case):
    """Two real models with their own tokenizers and weights."""

    names: tuple[str, str] = PAIRS[0]

    @override
    def backbones(
        self, vocab: int = VOCAB, scale: float = 0.2, seed: int = 0
    ) -> tuple[Backbone, list[Backbone]]:
        anchor, augmenting = (
            BackboneSource(str(CHECKPOINTS / "checkpoints" / name)).load() for name in self.names
        )
        with torch.no_grad(), seeded(seed):
            for backbone in (anchor, augmenting) if seed else ():  # other models of that kind
                for weight in backbone.model.parameters():
                    weight.add_(torch.randn_like(weight), alpha=1e-3)
        return anchor, [augmenting]


@pytest.mark.parametrize(
    ("names", "promise"),
    [(names, name) for names in PAIRS for name in READING] + [(PAIRS[0], TRAINED)],
    ids=lambda value: value if isinstance(value, str) else "+".join(value),
)
def test_a_promise_is_kept_by_real_models(names: tuple[str, str], promise: str) -> None:
    if not (CHECKPOINTS / "checkpoints").is_dir():
        pytest.skip("no real checkpoints here; CALM_DATA names their folder")
    with one_thread():
        CHECKS[promise](RealCase(CrossAttention(), tokenizers=("its own", "its own"), names=names))
