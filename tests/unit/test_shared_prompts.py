"""Samples of one prompt share its states: the same answers, and each prompt is read once."""

from collections import Counter
from typing import Any

import pytest
import torch
from transformers import GenerationConfig

import calm_lightning as calm
from calm_lightning.composed import ComposedModel
from calm_lightning.language_model import PlainModel, TextModel
from calm_lightning.shared_prompts import read_once
from calm_lightning.testing import tiny_backbone, tiny_tokenizer
from calm_lightning.testing.case import disturb, seeded
from calm_lightning.testing.tokenizers import text_tokenizer
from calm_plugins.compositions.cross_attention import CrossAttention

PROMPTS = ["12+3=", "hello, world", "12+3=", "ab", "12+3=", "hello, world"]
NEW = 5
GREEDY: dict[str, Any] = {"max_new_tokens": NEW, "do_sample": False}
BELOW_THE_LAST = [(1, 0), (3, 2)]
"""So that layers of the anchor remember what was added below them."""


def composed(*tokenizers: Any, noise: float = 0.2, **settings: Any) -> ComposedModel:
    backbones = [
        tiny_backbone(seed=number, tokenizer=tokenizer, vocab=len(tokenizer))
        for number, tokenizer in enumerate(tokenizers)
    ]
    with seeded(1):
        composition = CrossAttention(connections=BELOW_THE_LAST, **settings)
        model = calm.compose(backbones[0], backbones[1:], composition)
        disturb(model, noise)
    assert isinstance(model, ComposedModel)
    return model.eval()


MODELS: dict[str, Any] = {
    "one tokenizer": lambda: composed(tiny_tokenizer(), tiny_tokenizer()),
    "prompt only": lambda: composed(tiny_tokenizer(), tiny_tokenizer(), augmenting_sees="prompt"),
    "two tokenizers": lambda: composed(text_tokenizer("byte_bpe"), text_tokenizer("unigram")),
    "two, prompt only": lambda: composed(
        text_tokenizer("byte_bpe"), text_tokenizer("unigram"), augmenting_sees="prompt"
    ),
    "plain": lambda: PlainModel(tiny_backbone(tokenizer=tiny_tokenizer()), lambda folder: None),
}


def tokens_read(model: TextModel, prompts: list[str], **options: Any) -> tuple[list[str], int]:
    """The answers, and how many tokens, padding included, went through the anchor."""
    counted: Counter[str] = Counter()
    layer = model.anchor_backbone.layers[0]
    hook = layer.register_forward_pre_hook(
        lambda module, args: counted.update(all=args[0].shape[:-1].numel())
    )
    try:
        return model.generate_text(prompts, **{**GREEDY, **options}), counted["all"]
    finally:
        hook.remove()


@pytest.mark.parametrize("name", MODELS)
def test_answers_are_the_same_and_no_prompt_is_read_twice(name: str) -> None:
    model = MODELS[name]()
    once, few = tokens_read(model, ["12+3=", "hello, world", "ab"])
    answers, read = tokens_read(model, PROMPTS)
    assert answers == [once[0], once[1], once[0], once[2], once[0], once[1]]
    columns = few // 3 - (NEW - 1)  # of the longest prompt
    assert read == 3 * (columns - 1) + 6 * NEW


@pytest.mark.parametrize("noise", [0.2, 1.0])
@pytest.mark.parametrize("kinds", [("unigram", "byte_bpe"), ("byte_bpe", "unigram")], ids=str)
def test_a_prompt_in_two_parts_is_seen_at_its_end(kinds: tuple[str, str], noise: float) -> None:
    model = composed(*map(text_tokenizer, kinds), noise=noise, augmenting_sees="prompt")
    for prompt in ("12+3=", "hello, world", "the cat sat on the mat"):
        options: dict[str, Any] = {"max_new_tokens": 12, "do_sample": False}
        (alone,) = model.generate_text([prompt], **options)
        assert model.generate_text([prompt] * 2, **options) == [alone] * 2
        assert model.generate_text([prompt], prefill_chunk_size=3, **options) == [alone]


def test_the_anchor_alone_reads_them_once_too() -> None:
    model = MODELS["one tokenizer"]()
    with model.anchor_only():
        once = model.generate_text(["12+3=", "ab"], **GREEDY)
        answers, read = tokens_read(model, ["12+3=", "ab", "ab"])
    assert answers == [once[0], once[1], once[1]]
    assert read == 2 * 4 + 3 * NEW


def test_samples_of_one_prompt_differ() -> None:
    model = MODELS["one tokenizer"]()
    torch.manual_seed(0)
    drawn = model.generate_text(["12+3="] * 8, max_new_tokens=8, do_sample=True, top_k=0)
    assert len(set(drawn)) > 4


@pytest.mark.parametrize("options", [{"num_beams": 2}, {"use_cache": False}], ids=str)
def test_where_rows_are_not_prompts_nothing_is_shared(options: dict[str, Any]) -> None:
    model = MODELS["one tokenizer"]()
    expected = [model.generate_text([p], **GREEDY, **options)[0] for p in ("12+3=", "ab")]
    answers = model.generate_text(["12+3=", "ab", "ab"], **GREEDY, **options)
    assert answers == [*expected, expected[1]]


@pytest.mark.parametrize(
    "setting",
    [{"num_beams": 3}, {"num_return_sequences": 2}, {"use_cache": False},
     {"prompt_lookup_num_tokens": 2}, {"cache_implementation": "static"}],
    ids=str,
)  # fmt: skip
def test_settings_of_the_model_count_as_options_do(setting: dict[str, Any]) -> None:
    model = MODELS["one tokenizer"]()
    batch, forward = model.encode(["12+3="] * 2), model.anchor.forward
    assert read_once(model, forward, batch, {})
    assert not read_once(model, forward, batch, setting)
    ((name, value),) = setting.items()
    given = GenerationConfig()
    setattr(given, name, value)
    assert not read_once(model, forward, batch, {"generation_config": given})
    setattr(model.generation_config, name, value)
    assert not read_once(model, forward, batch, {})


def test_beams_that_the_model_is_set_to_are_searched() -> None:
    model = MODELS["one tokenizer"]()
    model.generation_config.num_beams = 3
    (expected,) = model.generate_text(["12+3="], **GREEDY)
    assert model.generate_text(["12+3="] * 2, **GREEDY) == [expected] * 2


def test_rows_that_read_other_rows_are_all_read() -> None:
    model = MODELS["one tokenizer"]()
    batch = model.encode(PROMPTS)
    with model.disturbed("shuffle"):
        ids = model.generate(**batch, **GREEDY, pad_token_id=model.pad_id)
        answers = model.generate_text(PROMPTS, **GREEDY)
    new = ids[:, batch["input_ids"].shape[1] :]
    tokenizer = model.anchor_backbone.require_tokenizer()
    assert answers == tokenizer.batch_decode(new, skip_special_tokens=True)
    assert answers != model.generate_text(PROMPTS, **GREEDY)


def test_a_prompt_of_one_token_has_nothing_to_share() -> None:
    model = MODELS["one tokenizer"]()
    (expected,) = model.generate_text(["a"], **GREEDY)
    assert model.generate_text(["a", "a"], **GREEDY) == [expected] * 2
