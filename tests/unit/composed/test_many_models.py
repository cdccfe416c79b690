"""Several augmenting models: one more, one fewer, one switched off; the others do not notice."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import calm_lightning as calm
from calm_lightning.backbone import Backbone
from calm_lightning.checkpoint import start_from
from calm_lightning.composed import ComposedModel
from calm_lightning.contracts import CalmError
from calm_lightning.language_model import PlainModel
from calm_lightning.testing import tiny_backbone, tiny_tokenizer
from calm_lightning.testing.case import disturb, seeded
from calm_lightning.testing.tokenizers import text_tokenizer
from calm_plugins.compositions.cross_attention import CrossAttention

IDS = torch.tensor([[5, 9, 3, 7, 11, 6], [8, 4, 10, 12, 3, 9]])


def anchor() -> Backbone:
    return tiny_backbone(layers=2, tokenizer=tiny_tokenizer())


def first() -> Backbone:
    return tiny_backbone("gpt2", 16, 2, seed=1, tokenizer=tiny_tokenizer())


def second() -> Backbone:
    """Of another family, with another tokenizer."""
    tokenizer = text_tokenizer("unigram")
    return tiny_backbone("qwen2", 24, 3, len(tokenizer), seed=2, tokenizer=tokenizer)


def composed(*augmenting: Backbone) -> ComposedModel:
    model = calm.compose(anchor(), augmenting, CrossAttention(every=2))
    assert isinstance(model, ComposedModel)
    moved(model)
    return model


def moved(model: ComposedModel) -> None:
    with seeded(3):
        disturb(model, 0.3)


def logits(model: ComposedModel) -> Tensor:
    with torch.no_grad():
        return model(input_ids=IDS).logits


def test_one_more_changes_nothing_before_it_is_trained() -> None:
    model = composed(first())
    before, old = logits(model), set(model.own_state())
    grown = model.add_augmenting(second())
    assert torch.equal(logits(grown), before)
    trained = {name for name, _ in grown.trainable_parameters()}
    assert trained == set(grown.own_state()) - old
    moved(grown)
    assert not torch.allclose(logits(grown), before)


def test_what_was_added_can_be_switched_off_and_removed_again() -> None:
    model = composed(first())
    before = logits(model)
    grown = model.add_augmenting(second())
    moved(grown)
    with grown.without(1):
        assert torch.equal(logits(grown), before)
    assert not torch.allclose(logits(grown), before)
    shrunk = grown.remove_augmenting(1)
    assert torch.equal(logits(shrunk), before)
    assert not any(layer._forward_hooks for layer in grown.backbones[2].layers)


def test_the_first_can_be_removed_and_the_second_goes_on() -> None:
    both = composed(first(), second())
    with both.without(0):
        alone = logits(both)
    shrunk = both.remove_augmenting(0)
    assert torch.equal(logits(shrunk), alone)
    with pytest.raises(CalmError, match="only augmenting model cannot be removed"):
        shrunk.remove_augmenting(0)


def test_a_grown_composition_is_saved_whole_and_loaded(tmp_path: Path) -> None:
    model = composed(first()).add_augmenting(second())
    moved(model)
    expected = logits(model)
    model.save_pretrained(tmp_path)
    again = calm.load(tmp_path, anchor(), [first(), second()])
    assert isinstance(again, ComposedModel)
    assert torch.equal(logits(again), expected)


def test_generation_without_a_model_is_cached_too_and_its_cache_cannot_be_taken_on() -> None:
    model = composed(first(), second())
    for silent in (0, 1):
        with model.without(silent):
            cached, plain = (
                model.generate_text(["ab", "fgh"], max_new_tokens=12, use_cache=use)
                for use in (True, False)
            )
            assert cached == plain
            cache = model(input_ids=IDS, use_cache=True).past_key_values
            model(input_ids=IDS[:, :1], past_key_values=cache)
        with pytest.raises(CalmError, match=r"switched off.*fresh cache"):
            model(input_ids=IDS[:, :1], past_key_values=cache)


def test_one_models_states_are_spoilt_alone() -> None:
    model = composed(first(), second())
    as_it_is = logits(model)
    results: list[Tensor] = []
    for number in (0, 1, None):
        with model.disturbed("zero", number):
            results.append(logits(model))
    assert not any(torch.allclose(result, as_it_is) for result in results)
    assert not torch.allclose(results[0], results[1])
    assert torch.equal(logits(model), as_it_is)


@pytest.mark.parametrize("act", ["without", "disturbed", "remove_augmenting"])
def test_a_model_that_there_is_not_is_named(act: str) -> None:
    model = composed(first())
    calls: dict[str, Any] = {
        "without": lambda: model.without(1).__enter__(),
        "disturbed": lambda: model.disturbed("zero", 1).__enter__(),
        "remove_augmenting": lambda: model.remove_augmenting(1),
    }
    with pytest.raises(CalmError, match=r"no augmenting model \[1\]; there are 1"):
        calls[act]()


def test_a_run_with_one_more_model_starts_from_a_saved_composition(tmp_path: Path) -> None:
    model = composed(first())
    before, old = logits(model), set(model.own_state())
    model.save_pretrained(tmp_path)
    grown = calm.compose(anchor(), [first(), second()], CrossAttention(every=2))
    assert isinstance(grown, ComposedModel)
    start_from(grown, tmp_path)
    assert torch.equal(logits(grown), before)
    assert not old & {name for name, _ in grown.trainable_parameters()}
    same = calm.compose(anchor(), [first()], CrossAttention(every=2))
    assert isinstance(same, ComposedModel)
    start_from(same, tmp_path)
    assert {name for name, _ in same.trainable_parameters()} == old
    with pytest.raises(CalmError, match="it joins 2 models, and this run only 1"):
        start_from(PlainModel(anchor(), lambda _: None), tmp_path)
    others = calm.compose(anchor(), [second()], CrossAttention(every=2))
    assert isinstance(others, ComposedModel)
    with pytest.raises(CalmError, match="was trained with the augmenting model"):
        start_from(others, tmp_path)


def test_each_model_counts_its_own_tokens() -> None:
    letters = text_tokenizer("characters")
    pieces = text_tokenizer("byte_bpe")
    wide = tiny_backbone(vocab=len(letters), tokenizer=letters, context=256)
    narrow = tiny_backbone(vocab=len(pieces), tokenizer=pieces, seed=1, context=24)
    text = "The quick brown fox jumps over the lazy dog"  # 43 letters
    count = len(pieces(text)["input_ids"])
    assert count <= 20 < len(text)
    few = calm.compose(wide, [narrow], CrossAttention(every=2))
    assert isinstance(few, ComposedModel)
    assert few.fits([text, text * 2]) == [True, False]
    assert few.generate_text([text], max_new_tokens=1)
    many = calm.compose(
        tiny_backbone(vocab=len(pieces), tokenizer=pieces, context=256),
        [tiny_backbone(vocab=len(letters), tokenizer=letters, seed=1, context=32)],
        CrossAttention(every=2),
    )
    assert isinstance(many, ComposedModel)
    assert many.fits([text, text[:20]]) == [False, True]


def test_shuffled_rows_read_another_question_whatever_the_beams() -> None:
    model = composed(first())
    rows = IDS.repeat_interleave(3, dim=0)  # three beams of each of two questions
    with torch.no_grad(), model.disturbed("shuffle"):
        spoilt = model(input_ids=rows).logits
        alone = model(input_ids=IDS[:1]).logits
    with torch.no_grad(), model.disturbed("zero"):
        zeroed = model(input_ids=IDS[:1]).logits
    with torch.no_grad():
        whole = model(input_ids=rows).logits
    assert ((spoilt - whole).abs().amax((1, 2)) > 1e-3).all()
    assert torch.equal(alone, zeroed)
