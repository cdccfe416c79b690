"""Layers that are computed again for the gradient: the same gradient, from less that is kept."""

import pytest
import torch
from torch import Tensor

import calm_lightning as calm
from calm_lightning.composed import ComposedModel
from calm_lightning.contracts import CalmError
from calm_lightning.module import CalmModule
from calm_lightning.testing import TinySource, tiny_backbone
from calm_lightning.testing.case import disturb, seeded, tokens
from calm_plugins.compositions.cross_attention import CrossAttention
from calm_plugins.compositions.single import Single

IDS = tokens(3, 8)


@pytest.fixture
def model() -> ComposedModel:
    anchor, augmenting = tiny_backbone(vocab=37), tiny_backbone(width=16, vocab=37, seed=1)
    with seeded(1):
        # Into the lowest layer and one in the middle, whose sum is then computed again above.
        composed = calm.compose(anchor, [augmenting], CrossAttention(connections=[(1, 0), (1, 2)]))
        disturb(composed, 0.2)
    assert isinstance(composed, ComposedModel)
    return composed.train()


def learn(model: ComposedModel) -> tuple[int, dict[str, Tensor]]:
    """Bytes that are kept for the gradient beside weights, and the gradient."""
    kept: dict[int, Tensor] = {}
    weights = {w.untyped_storage().data_ptr() for w in model.parameters()}

    def keep(tensor: Tensor) -> Tensor:
        place = tensor.untyped_storage().data_ptr()
        if place not in weights:
            kept[place] = tensor  # held, so that no place is used twice
        return tensor

    model.zero_grad()
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss = model(input_ids=IDS, labels=IDS).loss
    held = sum(tensor.untyped_storage().nbytes() for tensor in kept.values())
    loss.backward()
    return held, {n: w.grad for n, w in model.trainable_parameters() if w.grad is not None}


def test_the_gradient_is_the_same_and_less_is_kept(model: ComposedModel) -> None:
    usual, expected = learn(model)
    model.recompute = True
    less, found = learn(model)
    assert less < 0.6 * usual
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_layers_are_as_they_were_afterwards(model: ComposedModel) -> None:
    model.recompute = True
    learn(model)
    assert not any("forward" in layer.__dict__ for layer in model.anchor_backbone.layers)


def test_what_trains_through_no_frozen_layers_is_refused() -> None:
    module = CalmModule(TinySource(), Single(), recompute=True)
    with pytest.raises(CalmError, match="Leave model"):
        module.configure_model()
