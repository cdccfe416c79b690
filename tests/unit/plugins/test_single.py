"""One backbone alone: frozen or trained, anchor or augmenting, and saved as a backbone."""

from pathlib import Path
from typing import Any

import pytest
import torch

from calm_lightning.backbone import Backbone, BackboneSource
from calm_lightning.contracts import CalmError
from calm_lightning.testing import tiny_backbone, tiny_tokenizer
from calm_plugins.compositions.single import Single


def backbones() -> tuple[Backbone, list[Backbone]]:
    tokenizer = tiny_tokenizer()
    anchor = tiny_backbone(tokenizer=tokenizer)
    return anchor, [tiny_backbone(width=16, seed=s, tokenizer=tokenizer) for s in (1, 2)]


@pytest.mark.parametrize(("use", "chosen"), [("anchor", 0), (0, 1), (1, 2)])
def test_it_is_the_backbone_that_was_asked_for(use: Any, chosen: int) -> None:
    anchor, augmenting = backbones()
    model = Single(use).compose(anchor, augmenting)
    wanted = [anchor, *augmenting][chosen]
    assert model.anchor_backbone is wanted
    ids = torch.randint(2, 90, (1, 6))
    assert torch.equal(model(input_ids=ids).logits, wanted.model(input_ids=ids).logits)
    assert list(model.trainable_parameters()) == []
    assert model.frozen_backbones == (wanted,)


@pytest.mark.parametrize("use", [2, -1])
def test_there_must_be_such_a_model(use: int) -> None:
    with pytest.raises(CalmError, match=f"use={use}: there are 2 augmenting models"):
        Single(use).compose(*backbones())


def test_trained_whole_every_weight_is_trained_and_nothing_is_frozen() -> None:
    anchor, augmenting = backbones()
    model = Single(train=True).compose(anchor, augmenting)
    assert sum(p.numel() for _, p in model.trainable_parameters()) == anchor.model.num_parameters()
    assert model.frozen_backbones == ()
    model.train()
    model(**model.encode(["1+2="], ["3"])).loss.backward()
    assert all(p.grad is not None for _, p in model.trainable_parameters())


@pytest.mark.parametrize("dtype", [None, "float16"])
def test_it_is_saved_as_a_backbone_for_later(tmp_path: Path, dtype: Any) -> None:
    anchor, augmenting = backbones()
    model = Single(train=True, save_dtype=dtype).compose(anchor, augmenting)
    model.save_pretrained(tmp_path)
    again = BackboneSource(str(tmp_path), dtype="auto").load()
    kept = next(again.model.parameters()).dtype
    assert kept == (torch.float32 if dtype is None else torch.float16)
    assert next(anchor.model.parameters()).dtype == torch.float32  # training goes on unharmed
    for mine, saved in zip(anchor.model.parameters(), again.model.parameters(), strict=True):
        torch.testing.assert_close(saved.float(), mine, atol=1e-3, rtol=1e-3)
    assert again.require_tokenizer()("1+2=")["input_ids"] == tiny_tokenizer()("1+2=")["input_ids"]


def test_noise_disturbs_training_and_nothing_else() -> None:
    anchor, augmenting = backbones()
    model = Single(train=True, state_noise=0.5).compose(anchor, augmenting)
    ids = torch.randint(2, 90, (1, 6))
    model.eval()
    assert torch.equal(model(input_ids=ids).logits, model(input_ids=ids).logits)
    for dropout in (m for m in model.modules() if isinstance(m, torch.nn.Dropout)):
        dropout.p = 0.0
    anchor.model.config.attention_dropout = 0.0
    model.train()
    for layer in anchor.layers:
        layer.self_attn.attention_dropout = 0.0  # type: ignore[union-attr]
    assert not torch.equal(model(input_ids=ids).logits, model(input_ids=ids).logits)
