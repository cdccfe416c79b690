"""Tokens that an augmenting model proposes: never another answer, often fewer passes."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import nn

import calm_lightning as calm
from calm_lightning.composed import ComposedModel
from calm_lightning.contracts import CalmError
from calm_lightning.language_model import PlainModel
from calm_lightning.testing import Case, tiny_backbone, tiny_tokenizer
from calm_lightning.testing.case import disturb, seeded
from calm_lightning.testing.tokenizers import text_tokenizer
from calm_plugins.compositions.cross_attention import CrossAttention

PROMPTS = ["12+3=", "a", "hello, world"]
GREEDY: dict[str, Any] = {"max_new_tokens": 12, "do_sample": False}


def composed(
    *tokenizers: Any, seed: int = 1, vocabularies: Sequence[int] | None = None
) -> ComposedModel:
    sizes = vocabularies or [len(tokenizer) for tokenizer in tokenizers]
    backbones = [
        tiny_backbone(seed=number * seed, tokenizer=tokenizer, vocab=vocab)
        for number, (tokenizer, vocab) in enumerate(zip(tokenizers, sizes, strict=True))
    ]
    with seeded(1):
        # Below the last layer too, so that the anchor remembers what was added.
        composition = CrossAttention(connections=[(1, 0), (3, 2), (3, 3)])
        model = calm.compose(backbones[0], backbones[1:], composition)
        disturb(model, 0.2)
    assert isinstance(model, ComposedModel)
    return model


@contextmanager
def passes(module: nn.Module) -> Iterator[list[int]]:
    """How often a module runs."""
    counted = [0]
    hook = module.register_forward_hook(lambda *_: counted.__setitem__(0, counted[0] + 1))
    try:
        yield counted
    finally:
        hook.remove()


def test_a_draft_changes_no_answer() -> None:
    model = composed(tiny_tokenizer(), tiny_tokenizer())
    for prompt in PROMPTS:
        (plain,) = model.generate_text([prompt], **GREEDY)
        assert model.generate_text([prompt], draft=0, **GREEDY) == [plain]
    assert model.generate_text(PROMPTS, draft=0, **GREEDY) == [
        model.generate_text([prompt], **GREEDY)[0] for prompt in PROMPTS
    ]


def test_of_two_tokenizers_the_draft_goes_by_its_text() -> None:
    model = composed(text_tokenizer("byte_bpe"), text_tokenizer("unigram"))
    assert model.augmenting_readers[0].alignment is not None
    for prompt in PROMPTS:
        (plain,) = model.generate_text([prompt], **GREEDY)
        assert model.generate_text([prompt], draft=0, **GREEDY) == [plain]


@pytest.mark.parametrize("vocabularies", [(97, 128), (128, 97), (128, 128)], ids=str)
def test_embeddings_may_be_padded_to_different_sizes(vocabularies: tuple[int, int]) -> None:
    model = composed(tiny_tokenizer(), tiny_tokenizer(), vocabularies=vocabularies)
    with torch.no_grad():
        for backbone in model.backbones:  # nobody says what stands for no text
            backbone.model.get_output_embeddings().weight[len(tiny_tokenizer()) :] = 0.0
    assert model.augmenting_readers[0].alignment is None
    for prompt in PROMPTS:
        (plain,) = model.generate_text([prompt], **GREEDY)
        assert model.generate_text([prompt], draft=0, **GREEDY) == [plain]


def test_a_model_that_proposes_what_is_said_saves_passes() -> None:
    model = composed(tiny_tokenizer(), tiny_tokenizer(), seed=0)  # two models with equal weights
    for bridge in model.bridges:
        nn.init.zeros_(bridge.out.weight)  # the composition says what the anchor says
    anchor = model.anchor_backbone.layers[-1]
    with passes(anchor) as plain:
        (expected,) = model.generate_text(["12+3="], **GREEDY)
    with passes(anchor) as drafted:
        assert model.generate_text(["12+3="], draft=0, **GREEDY) == [expected]
    assert plain == [12]
    assert drafted[0] <= 6


def test_the_anchor_alone_can_have_a_draft_too() -> None:
    model = composed(tiny_tokenizer(), tiny_tokenizer())
    with model.anchor_only():
        (plain,) = model.generate_text(["12+3="], **GREEDY)
        assert model.generate_text(["12+3="], draft=0, **GREEDY) == [plain]


def test_who_cannot_propose_is_named() -> None:
    model = composed(tiny_tokenizer(), tiny_tokenizer())
    for draft in (1, -1):
        with pytest.raises(CalmError, match=f"draft={draft}: .* there are 1, counted from 0"):
            model.generate_text(["a"], draft=draft, **GREEDY)
    plain = PlainModel(tiny_backbone(tokenizer=tiny_tokenizer()), lambda folder: None)
    with pytest.raises(CalmError, match="there is none"):
        plain.generate_text(["a"], draft=0, **GREEDY)


@pytest.mark.parametrize(
    ("option", "way_out"),
    [({"num_beams": 2}, "num_beams=1"), ({"num_return_sequences": 2}, "num_return_sequences=1"),
     ({"use_cache": False}, "use_cache=True")],
)  # fmt: skip
def test_what_cannot_be_drafted_is_refused(option: dict[str, Any], way_out: str) -> None:
    model = composed(tiny_tokenizer(), tiny_tokenizer())
    with pytest.raises(CalmError, match=way_out):
        model.generate_text(["a"], draft=0, max_new_tokens=3, do_sample=True, **option)
    for name, value in option.items():
        setattr(model.generation_config, name, value)
    with pytest.raises(CalmError, match=way_out):
        model.generate_text(["a"], draft=0, max_new_tokens=3, do_sample=True)


def test_another_tokenizer_of_as_many_ids_cannot_propose() -> None:
    model = composed(
        text_tokenizer("byte_bpe"), text_tokenizer("unigram"), vocabularies=(1000, 1000)
    )
    with pytest.raises(CalmError, match=r"as many token ids \(1000\)"):
        model.generate_text(["a"], draft=0, **GREEDY)


def test_a_model_with_a_window_does_not_propose_by_text() -> None:
    case = Case(CrossAttention(), augmenting_family="mistral", tokenizers=("byte_bpe", "unigram"))
    with pytest.raises(CalmError, match="sliding window"):
        case.model.generate_text(["a"], draft=0, **GREEDY)


def test_no_draft_by_text_of_what_is_drawn_and_the_augmenting_model_stays_as_it_is() -> None:
    model = composed(text_tokenizer("byte_bpe"), text_tokenizer("unigram"))
    embeddings = model.augmenting[0].get_input_embeddings()
    with pytest.raises(CalmError, match="do_sample=False"):
        model.generate_text(["a"], draft=0, max_new_tokens=3, do_sample=True)
    assert model.augmenting[0].get_input_embeddings() is embeddings
