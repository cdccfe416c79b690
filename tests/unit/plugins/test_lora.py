"""LoRA on the anchor: as many weights as asked for, and the anchor itself untouched."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from calm_lightning.backbone import BackboneSource
from calm_lightning.checkpoint import load
from calm_lightning.contracts import CalmError
from calm_lightning.testing import tiny_backbone, tiny_tokenizer
from calm_plugins.compositions.cross_attention import CrossAttention
from calm_plugins.compositions.linear import LinearBridge
from calm_plugins.compositions.lora import LoRA

pytest.importorskip("peft")


def count(model: Any) -> int:
    return sum(p.numel() for _, p in model.trainable_parameters())


def test_the_rank_says_how_many_weights_there_are() -> None:
    anchor = tiny_backbone()
    linear = [m for m in anchor.layers.modules() if isinstance(m, nn.Linear)]
    per_rank = sum(layer.in_features + layer.out_features for layer in linear)
    assert linear
    assert count(LoRA(rank=3).compose(anchor, [])) == 3 * per_rank


@pytest.mark.parametrize("dora", [False, True])
def test_it_matches_a_composition_as_nearly_as_a_rank_can(dora: bool) -> None:
    other, augmenting = (tiny_backbone(width=16, seed=1) for _ in range(2))
    wanted = count(CrossAttention(every=2).compose(tiny_backbone(), [other]))
    matched = LoRA(match=CrossAttention(every=2), dora=dora).compose(tiny_backbone(), [augmenting])
    possible = [count(LoRA(rank=r, dora=dora).compose(tiny_backbone(), [])) for r in range(1, 8)]
    assert count(matched) == min(possible, key=lambda each: abs(each - wanted))
    assert not any(layer._forward_hooks for layer in augmenting.layers)  # nothing is left behind


def test_that_no_rank_is_low_enough_to_match_is_told() -> None:
    other = tiny_backbone(width=16, seed=1)
    with pytest.warns(UserWarning, match=r"LinearBridge: it trains 544 .* at rank 1.* have 2,048"):
        model = LoRA(match=LinearBridge()).compose(tiny_backbone(), [other])
    assert count(model) == 2048


def test_it_starts_as_the_anchor_and_can_be_switched_off() -> None:
    ids = torch.randint(2, 90, (1, 6))
    plain = tiny_backbone().model(input_ids=ids).logits
    model = LoRA(rank=2).compose(tiny_backbone(), [])
    model.eval()
    assert torch.equal(model(input_ids=ids).logits, plain)
    for _, weight in model.trainable_parameters():
        weight.data += 0.3
    assert not torch.allclose(model(input_ids=ids).logits, plain)
    with model.anchor_only():
        assert torch.equal(model(input_ids=ids).logits, plain)
    assert not torch.allclose(model(input_ids=ids).logits, plain)


def test_the_anchors_weights_are_its_own_with_adapters_inside() -> None:
    before = tiny_backbone().fingerprint(exact=True)
    model = LoRA(rank=2).compose(tiny_backbone(), [])
    (anchor,) = model.frozen_backbones
    for _, weight in model.trainable_parameters():
        weight.data += 0.3
    assert anchor.fingerprint(exact=True) == before
    assert all(".lora_" in name for name, _ in model.trainable_parameters())


def test_dropout_is_on_the_adapters_in_training_only() -> None:
    model = LoRA(rank=2, dropout=0.5).compose(tiny_backbone(), [])
    for _, weight in model.trainable_parameters():
        weight.data += 0.3
    ids = torch.randint(2, 90, (1, 6))
    model.eval()
    assert torch.equal(model(input_ids=ids).logits, model(input_ids=ids).logits)
    model.train()
    assert not torch.equal(model(input_ids=ids).logits, model(input_ids=ids).logits)


def test_what_matched_a_composition_is_saved_with_its_rank_and_opened_by_calm(
    tmp_path: Path,
) -> None:
    anchor, augmenting = (tiny_backbone(seed=seed, tokenizer=tiny_tokenizer()) for seed in (0, 1))
    model = LoRA(match=CrossAttention(every=2)).compose(anchor, [augmenting])
    for _, weight in model.trainable_parameters():
        weight.data += 0.3
    model.save_pretrained(tmp_path)
    again = load(tmp_path, tiny_backbone(tokenizer=tiny_tokenizer()))
    assert again.generate_text(["ab"], max_new_tokens=8) == model.generate_text(
        ["ab"], max_new_tokens=8
    )
    with pytest.raises(CalmError, match="was trained with the anchor model"):
        load(tmp_path, tiny_backbone(seed=5))


def test_adapters_can_be_written_in_the_format_of_peft(tmp_path: Path) -> None:
    from safetensors.torch import load_file

    model = LoRA(rank=2).compose(tiny_backbone(tokenizer=tiny_tokenizer()), [])
    model.save_adapter(tmp_path)
    assert (tmp_path / "adapter_config.json").is_file()
    saved = load_file(tmp_path / "adapter_model.safetensors")
    assert sum(tensor.numel() for tensor in saved.values()) == count(model)


@pytest.mark.parametrize("options", [{}, {"rank": 2, "match": CrossAttention()}, {"rank": 0}])
def test_either_a_rank_or_something_to_match(options: dict[str, Any]) -> None:
    with pytest.raises(CalmError, match="rank"):
        LoRA(**options)


@pytest.mark.parametrize("options", [{"dora": True}, {"rslora": True}], ids=str)
def test_variants_of_peft_are_saved_and_opened(tmp_path: Path, options: dict[str, bool]) -> None:
    anchor = tiny_backbone(tokenizer=tiny_tokenizer())
    anchor.model.save_pretrained(tmp_path / "anchor")
    anchor.require_tokenizer().save_pretrained(tmp_path / "anchor")
    source = BackboneSource(str(tmp_path / "anchor"))
    ids = torch.randint(2, 90, (1, 6))
    model = LoRA(rank=2, **options).compose(source.load(), [])
    model.eval()
    torch.testing.assert_close(
        model(input_ids=ids).logits, source.load().model(input_ids=ids).logits
    )
    for _, weight in model.trainable_parameters():
        weight.data += 0.1
    model.save_pretrained(tmp_path / "bridge")
    again = load(tmp_path / "bridge")
    again.eval()
    torch.testing.assert_close(again(input_ids=ids).logits, model(input_ids=ids).logits)
    plain = LoRA(rank=2).compose(source.load(), [])
    for _, weight in plain.trainable_parameters():
        weight.data += 0.1
    assert not torch.allclose(plain.eval()(input_ids=ids).logits, model(input_ids=ids).logits)
