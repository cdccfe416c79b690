"""What the composed model does beyond the promises that the conformance suite checks."""

import pytest
import torch
from torch import Tensor
from transformers import DynamicCache, GenerationConfig, StaticCache

import calm_lightning as calm
from calm_lightning.backbone import Backbone
from calm_lightning.composed import ComposedModel
from calm_lightning.contracts import CalmError
from calm_lightning.testing import Case, tiny_backbone
from calm_lightning.testing.case import (
    difference,
    disturb,
    embedding_changed,
    read,
    seeded,
    tokens,
)
from calm_plugins.compositions.cross_attention import CrossAttention

IDS = tokens(3, 8)


def composed(composition: CrossAttention, *backbones: Backbone) -> ComposedModel:
    anchor, *augmenting = backbones
    with seeded(1):
        model = calm.compose(anchor, augmenting, composition)
        disturb(model, 0.2)
    assert isinstance(model, ComposedModel)
    return model.eval()


@pytest.fixture(scope="module")
def model() -> ComposedModel:
    case = Case(CrossAttention(every=2), num_augmenting=2)
    assert isinstance(case.model, ComposedModel)
    return case.model


@pytest.fixture(scope="module")
def encoder() -> ComposedModel:
    case = Case(CrossAttention(every=2, augmenting_sees="prompt"))
    assert isinstance(case.model, ComposedModel)
    return case.model


# ---------------------------------------------------------------- the paper's encoder ablation


@torch.no_grad()
def test_as_encoder_the_augmenting_model_is_read_at_the_prompt_only(
    encoder: ComposedModel,
) -> None:
    labels = IDS.clone()
    labels[:, :4] = -100

    def changed_at(position: int) -> Tensor:
        def change(states: Tensor) -> Tensor:
            moved = states.clone()
            moved[:, position] += torch.linspace(-2.0, 3.0, states.shape[-1])
            return moved

        with embedding_changed(encoder.frozen_backbones[1], change):
            return encoder(input_ids=IDS, labels=labels).loss

    before = encoder(input_ids=IDS, labels=labels).loss
    for target in (4, 6):
        assert torch.equal(changed_at(target), before)
    assert difference(changed_at(3), before) > 1e-4


@torch.no_grad()
def test_as_encoder_it_answers_otherwise_than_in_full(encoder: ComposedModel) -> None:
    full = Case(CrossAttention(every=2)).model
    for (name, a), (_, b) in zip(
        encoder.trainable_parameters(), full.trainable_parameters(), strict=True
    ):
        assert torch.equal(a, b), name
    options = {"max_new_tokens": 4, "do_sample": False, "output_logits": True}
    options |= {"return_dict_in_generate": True, "pad_token_id": 0}
    batch = {"input_ids": IDS, "attention_mask": torch.ones_like(IDS)}
    ours, theirs = encoder.generate(**batch, **options), full.generate(**batch, **options)
    assert torch.equal(ours.logits[0], theirs.logits[0])  # everything was prompt so far
    assert difference(ours.logits[2], theirs.logits[2]) > 1e-3


def test_as_encoder_a_conversation_in_one_cache_is_refused(encoder: ComposedModel) -> None:
    cache = encoder.new_cache()
    options = {"max_new_tokens": 3, "do_sample": False, "pad_token_id": 0}
    mask = torch.ones_like(IDS)
    said = encoder.generate(input_ids=IDS, attention_mask=mask, past_key_values=cache, **options)
    more = torch.cat([said, IDS[:, :2]], dim=1)
    with pytest.raises(CalmError, match=r"augmenting_sees=prompt.*fresh cache"):
        encoder.generate(
            input_ids=more, attention_mask=torch.ones_like(more), past_key_values=cache, **options
        )
    cache.reset()
    encoder.generate(input_ids=IDS, attention_mask=mask, past_key_values=cache, **options)


# ---------------------------------------------------------------- beside its backbones


@torch.no_grad()
def test_backbones_still_work_alone(model: ComposedModel) -> None:
    for mine, fresh in zip(
        model.frozen_backbones,
        _flat(Case(CrossAttention(), num_augmenting=2).backbones()),
        strict=True,
    ):
        assert torch.equal(read(mine.model, IDS), read(fresh.model, IDS))


def test_one_checkpoint_may_be_anchor_and_augmenting_model_at_once() -> None:
    backbone = tiny_backbone(vocab=37)
    shared = composed(CrossAttention(every=2), backbone, backbone)
    apart = composed(CrossAttention(every=2), tiny_backbone(vocab=37), tiny_backbone(vocab=37))
    assert torch.equal(read(shared, IDS), read(apart, IDS))
    torch.testing.assert_close(
        read(shared, IDS, cached=True), read(shared, IDS), rtol=1e-4, atol=1e-4
    )


@torch.no_grad()
def test_two_compositions_may_share_their_backbones() -> None:
    anchor, augmenting = tiny_backbone(vocab=37), tiny_backbone(vocab=37, width=16, seed=1)
    first = composed(CrossAttention(), anchor, augmenting)
    before = read(first, IDS)
    second = composed(CrossAttention(every=2, positions="none"), anchor, augmenting)
    assert difference(read(second, IDS), before) > 1e-3
    assert torch.equal(read(first, IDS), before)


def test_layers_above_the_last_connection_are_not_run() -> None:
    anchor, augmenting = tiny_backbone(vocab=37), tiny_backbone(vocab=37, width=16, seed=1)
    model = composed(CrossAttention(connections=[(1, 0)]), anchor, augmenting)
    ran: list[int] = []
    for number, layer in enumerate(augmenting.layers):
        layer.register_forward_hook(lambda *_, number=number: ran.append(number))
    augmenting.model.lm_head.register_forward_hook(lambda *_: ran.append(99))
    read(model, IDS)
    assert ran == [0, 1]


def test_detached_the_backbones_carry_no_hooks() -> None:
    backbones = [tiny_backbone(vocab=37, seed=seed) for seed in (0, 1)]
    composed(CrossAttention(), *backbones).detach()
    for backbone in backbones:
        assert not any(m._forward_hooks or m._forward_pre_hooks for m in backbone.model.modules())


# ---------------------------------------------------------------- numbers


def test_in_double_precision_cached_is_uncached_to_the_last_digits() -> None:
    backbones = [tiny_backbone(vocab=37, seed=seed) for seed in (0, 1, 2)]
    for backbone in backbones:
        backbone.model.double()
    model = composed(CrossAttention(every=2), *backbones).double()
    mask = torch.ones_like(IDS)
    mask[0, :3] = 0
    real = mask.bool()
    found, expected = (read(model, IDS, mask, cached=c)[real] for c in (True, False))
    assert expected.dtype == torch.float64
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


def test_backbones_in_bfloat16_are_joined_by_bridges_in_float32() -> None:
    backbones = [tiny_backbone(vocab=37, seed=seed) for seed in (0, 1)]
    exact = read(composed(CrossAttention(), *backbones), IDS)
    for backbone in backbones:
        backbone.model.to(torch.bfloat16)
    model = composed(CrossAttention(), *backbones)
    assert {p.dtype for _, p in model.trainable_parameters()} == {torch.float32}
    found = read(model, IDS)
    assert found.dtype == torch.bfloat16
    assert difference(found.float(), exact) < 0.2


def test_a_batch_without_targets_is_refused(model: ComposedModel) -> None:
    with pytest.raises(CalmError, match="no target token"):
        model(input_ids=IDS, labels=torch.full_like(IDS, -100))


@torch.no_grad()
def test_disturbances_end_with_their_context(model: ComposedModel) -> None:
    before = read(model, IDS)
    with model.disturbed("shuffle"):
        shuffled = read(model, IDS)
        with model.disturbed("zero"):
            zeroed = read(model, IDS)
        assert torch.equal(read(model, IDS), shuffled)
    assert difference(shuffled, before) > 1e-3
    assert difference(zeroed, shuffled) > 1e-3
    assert torch.equal(read(model, IDS), before)


# ---------------------------------------------------------------- what is refused


def test_a_cache_that_the_anchor_filled_alone_is_refused(model: ComposedModel) -> None:
    with model.anchor_only():
        cache = model(input_ids=IDS, use_cache=True).past_key_values
        model(input_ids=IDS[:, :1], past_key_values=cache)  # it may go on alone
    with pytest.raises(CalmError, match=r"augmenting model was switched off.*fresh cache"):
        model(input_ids=IDS[:, :1], past_key_values=cache)


def test_a_foreign_filled_cache_is_refused(model: ComposedModel) -> None:
    cache = DynamicCache()
    model.anchor(input_ids=IDS, past_key_values=cache, use_cache=True)
    with pytest.raises(CalmError, match="goes on from a ComposedCache"):
        model(input_ids=IDS[:, :1], past_key_values=cache)


@pytest.mark.parametrize("kind", ["offloaded", "offloaded_static", "quantized"])
def test_other_caches_are_refused(model: ComposedModel, kind: str) -> None:
    batch = {"input_ids": IDS, "attention_mask": torch.ones_like(IDS), "max_new_tokens": 2}
    for option in (
        {"cache_implementation": kind},
        {"generation_config": GenerationConfig(cache_implementation=kind)},
    ):
        with pytest.raises(CalmError, match="Leave out cache_implementation"):
            model.generate(**batch, **option)


def test_a_kind_of_cache_that_transformers_passes_over_is_no_hindrance() -> None:
    anchor = tiny_backbone(vocab=37)
    anchor.model.generation_config.cache_implementation = "hybrid"  # as Gemma was published
    model = composed(CrossAttention(), anchor, tiny_backbone(vocab=37, seed=1))
    batch = {"input_ids": IDS, "attention_mask": torch.ones_like(IDS)}
    assert model.generate(**batch, max_new_tokens=2).shape[1] == IDS.shape[1] + 2


def test_an_empty_cache_that_offloads_is_refused(model: ComposedModel) -> None:
    model(input_ids=IDS, past_key_values=DynamicCache())
    for cache in (
        DynamicCache(offloading=True),
        StaticCache(model.anchor.config, max_cache_len=9),
    ):
        with pytest.raises(CalmError, match="Leave out cache_implementation"):
            model(input_ids=IDS, past_key_values=cache)


def test_embeddings_in_place_of_ids_are_refused(model: ComposedModel) -> None:
    with pytest.raises(CalmError, match="input_ids"):
        model(inputs_embeds=torch.zeros(1, 2, 32))


def test_models_with_other_ids_need_their_tokenizers() -> None:
    with pytest.raises(CalmError, match=r"40 token ids and .* 37, and no tokenizers"):
        calm.compose(tiny_backbone(vocab=40), [tiny_backbone(vocab=37)], CrossAttention())


def test_generation_settings_are_the_anchors() -> None:
    anchor = tiny_backbone(vocab=37)
    anchor.model.generation_config.eos_token_id = 5
    model = composed(CrossAttention(), anchor, tiny_backbone(vocab=37, seed=1))
    assert model.generation_config.eos_token_id == 5
    model.generation_config.eos_token_id = 6
    assert anchor.model.generation_config.eos_token_id == 5


def _flat(pair: tuple[Backbone, list[Backbone]]) -> list[Backbone]:
    return [pair[0], *pair[1]]
