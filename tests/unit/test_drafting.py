"""Tokens that an augmenting model proposes: never another answer, often fewer passes."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from torch import nn

import calm_lightning as calm
from calm_lightning.composed import ComposedModel
from calm_lightning.contracts import CalmError
from calm_lightning.language_model import PlainModel
from calm_lightning.testing import tiny_backbone, tiny_tokenizer
from calm_lightning.testing.case import disturb, seeded
from calm_lightning.testing.tokenizers import text_tokenizer
from calm_plugins.compositions.cross_attention import CrossAttention

PROMPTS = ["12+3=", "a", "hello, world"]
GREEDY: dict[str, Any] = {"max_new_tokens": 12, "do_sample": False}


def composed(*tokenizers: Any, seed: int = 1) -> ComposedModel:
    backbones = [
        tiny_backbone(seed=number * seed, tokenizer=tokenizer, vocab=len(tokenizer))
        for number, tokenizer in enumerate(tokenizers)
    ]
    with seeded(1):
        model = calm.compose(backbones[0], backbones[1:], CrossAttention())
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
    with pytest.raises(CalmError, match="num_beams=2"):
        model.generate_text(["a"], draft=0, num_beams=2, **GREEDY)
    plain = PlainModel(tiny_backbone(tokenizer=tiny_tokenizer()), lambda folder: None)
    with pytest.raises(CalmError, match="there is none"):
        plain.generate_text(["a"], draft=0, **GREEDY)
