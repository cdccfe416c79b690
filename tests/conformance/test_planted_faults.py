"""Each check can fail: a planted fault turns red exactly the promises that it breaks.

Most faults break one promise. Where one breaks several, the table names all of them and says why.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from calm_plugins.compositions.cross_attention import CrossAttention
from calm_plugins.compositions.cross_attention.composition import CrossAttentionBridge
from safetensors.torch import save_file
from torch import Tensor, nn

import calm_lightning.checkpoint
import calm_lightning.composed.model
from calm_lightning.alignment import visible_tokens
from calm_lightning.composed import ComposedCache, ComposedModel
from calm_lightning.composed.cache import BridgeMemory
from calm_lightning.testing import PROMISES, Case, broken_promises

Patch = pytest.MonkeyPatch


class Faulty(CrossAttention):
    """Cross-attention whose fresh model is spoilt by `spoil`."""

    def compose(self, anchor: Any, augmenting: Any) -> ComposedModel:
        model = super().compose(anchor, augmenting)
        self.spoil(model)
        return model

    def spoil(self, model: ComposedModel) -> None:
        pass


def bridges(model: ComposedModel, kind: type[CrossAttentionBridge]) -> None:
    for bridge in model.bridges:
        bridge.__class__ = kind


# ---------------------------------------------------------------- what a position may see


def sees_everything(patch: Patch) -> CrossAttention:
    def visible(mask: Tensor | None, batch: int, past: int, new: int, *rest: Any) -> Tensor:
        everything = torch.ones(batch, new, past + new, dtype=torch.bool)
        return everything if mask is None else everything & mask[:, None].bool()

    patch.setattr(calm_lightning.composed.model, "visible_tokens", visible)
    return CrossAttention()


def sees_the_next_token(patch: Patch) -> CrossAttention:
    def visible(*args: Any) -> Tensor:
        causal = visible_tokens(*args)
        later = torch.nn.functional.pad(causal[:, 1:], (0, 0, 0, 1), value=True)
        mask = args[0]
        return later if mask is None else later & mask[:, None].bool()

    patch.setattr(calm_lightning.composed.model, "visible_tokens", visible)
    return CrossAttention()


def sees_padding(patch: Patch) -> CrossAttention:
    patch.setattr(
        calm_lightning.composed.model,
        "visible_tokens",
        lambda mask, *rest: visible_tokens(None, *rest),
    )
    return CrossAttention()


def sees_no_target_in_training(patch: Patch) -> CrossAttention:
    class Model(ComposedModel):
        def forward(self, *args: Any, **kwargs: Any) -> Any:
            self.augmenting_sees = "full" if kwargs.get("labels") is None else "prompt"
            return super().forward(*args, **kwargs)

    class OnlyPrompt(Faulty):
        def spoil(self, model: ComposedModel) -> None:
            model.__class__ = Model

    return OnlyPrompt()


def mixes_rows(patch: Patch) -> CrossAttention:
    class Mixing(CrossAttentionBridge):
        def forward(self, anchor_states: Tensor, *rest: Any) -> Tensor:
            return super().forward(anchor_states - anchor_states.mean(0, keepdim=True), *rest)

    class Mixed(Faulty):
        def spoil(self, model: ComposedModel) -> None:
            bridges(model, Mixing)

    return Mixed()


# ---------------------------------------------------------------- what is remembered


def forgets_to_reorder(patch: Patch) -> CrossAttention:
    patch.setattr(BridgeMemory, "select", lambda self, rows: None)
    return CrossAttention()


def forgets_to_reorder_the_augmenting_model(patch: Patch) -> CrossAttention:
    def reorder(self: ComposedCache, beam_idx: Tensor) -> None:
        super(ComposedCache, self).reorder_cache(beam_idx)
        for memory in self.bridges:
            memory.select(beam_idx)

    patch.setattr(ComposedCache, "reorder_cache", reorder)
    return CrossAttention()


def forgets_to_crop(patch: Patch) -> CrossAttention:
    patch.setattr(BridgeMemory, "crop", lambda self, tokens_to_remove: None)
    return CrossAttention()


def remembers_the_last_batch(patch: Patch) -> CrossAttention:
    class Running(CrossAttentionBridge):
        """A running mean over training batches, as a batch norm keeps it."""

        mean: Tensor | float = 0.0

        def remember(self, augmenting_states: Tensor, positions: Tensor) -> Any:
            if self.training:
                self.mean = augmenting_states.mean((0, 1)).detach()
            return super().remember(augmenting_states + self.mean, positions)

    class Remembering(Faulty):
        def spoil(self, model: ComposedModel) -> None:
            bridges(model, Running)

    return Remembering()


def remembers_the_last_conversation(patch: Patch) -> CrossAttention:
    patch.setattr(ComposedModel, "_cache", _first_cache_for_ever(ComposedModel._cache))
    return CrossAttention()


def _first_cache_for_ever(original: Callable[..., Any]) -> Callable[..., Any]:
    """A second turn starts in an empty cache again, so only its last token is read."""

    def cache(self: ComposedModel, given: Any, use_cache: Any) -> Any:
        if given is not None and getattr(given, "_is_user_defined", False):
            given._is_user_defined = False
            given.crop(-1)
        return original(self, given, use_cache)

    return cache


# ---------------------------------------------------------------- what is trained and saved


def starts_off_zero(patch: Patch) -> CrossAttention:
    class OffZero(Faulty):
        def spoil(self, model: ComposedModel) -> None:
            for bridge in model.bridges:
                nn.init.normal_(bridge.out.weight, std=1e-3)

    return OffZero()


def leaves_a_weight_trainable(patch: Patch) -> CrossAttention:
    class Loose(Faulty):
        def spoil(self, model: ComposedModel) -> None:
            next(model.backbones[0].layers[-1].parameters()).requires_grad_(True)

    return Loose()


def leaves_dropout_on(patch: Patch) -> CrossAttention:
    patch.setattr(ComposedModel, "train", nn.Module.train)
    return CrossAttention()


def has_a_weight_that_nothing_uses(patch: Patch) -> CrossAttention:
    class Idle(Faulty):
        def spoil(self, model: ComposedModel) -> None:
            for bridge in model.bridges:
                bridge.idle = nn.Linear(3, 2)

    return Idle()


def ignores_the_augmenting_model(patch: Patch) -> CrossAttention:
    class Deaf(CrossAttentionBridge):
        def remember(self, augmenting_states: Tensor, positions: Tensor) -> Any:
            return super().remember(torch.ones_like(augmenting_states), positions)

    class Ignoring(Faulty):
        def spoil(self, model: ComposedModel) -> None:
            bridges(model, Deaf)

    return Ignoring()


def saves_a_backbone_too(patch: Patch) -> CrossAttention:
    original = calm_lightning.checkpoint.save

    def save(model: ComposedModel, folder: Path) -> None:
        original(model, folder)
        state = {n: t.clone() for n, t in model.anchor.model.state_dict().items()}
        save_file(state, folder / "anchor.safetensors")

    patch.setattr(calm_lightning.checkpoint, "save", save)
    return CrossAttention()


def accepts_any_backbone(patch: Patch) -> CrossAttention:
    patch.setattr(calm_lightning.checkpoint, "check_same", lambda *_: None)
    return CrossAttention()


def changes_a_setting(patch: Patch) -> CrossAttention:
    class Changed(CrossAttention):
        def __init__(self, unused: int = 1) -> None:
            super().__init__()
            self.unused = unused + 1

    return Changed()


FAULTS: dict[Callable[[Patch], CrossAttention], set[str]] = {
    # Generation cannot see a token that does not exist yet, so it differs from everything that
    # reads whole texts: training, and generation without a cache.
    sees_everything: {"causal", "no_leak_in_training", "cache", "conversation", "loss"},
    sees_the_next_token: {"causal", "no_leak_in_training", "cache", "conversation", "loss"},
    # A batch of texts of different lengths is padded.
    sees_padding: {"padding", "text"},
    sees_no_target_in_training: {"loss"},
    # Padded rows, beams and texts in a batch all share their batch with others.
    mixes_rows: {"batch", "padding", "text", "loss"},
    forgets_to_reorder: {"cache"},
    forgets_to_reorder_the_augmenting_model: {"cache"},
    forgets_to_crop: {"cache"},
    remembers_the_last_batch: {"no_state"},
    remembers_the_last_conversation: {"conversation"},
    starts_off_zero: {"starts_as_anchor"},
    # What is trainable is disturbed, so the anchor is no longer itself, nor recognised.
    leaves_a_weight_trainable: {"frozen", "anchor_only", "reload"},
    leaves_dropout_on: {"frozen"},
    has_a_weight_that_nothing_uses: {"gradient"},
    ignores_the_augmenting_model: {"augmenting_used"},
    saves_a_backbone_too: {"checkpoint"},
    accepts_any_backbone: {"reload"},
    changes_a_setting: {"settings"},
}


@pytest.mark.parametrize("plant", FAULTS, ids=lambda plant: plant.__name__)
def test_fault_turns_exactly_its_promises_red(
    plant: Callable[[Patch], CrossAttention], monkeypatch: Patch
) -> None:
    broken = broken_promises(Case(plant(monkeypatch)))
    assert broken.keys() == FAULTS[plant], broken


def test_every_promise_is_broken_by_some_fault() -> None:
    assert set().union(*FAULTS.values()) == PROMISES.keys()


def test_a_composition_that_does_nothing_is_noticed(monkeypatch: Patch) -> None:
    """Nothing could turn red then, so the suite must not be green."""
    monkeypatch.setattr(CrossAttentionBridge, "forward", lambda self, states, *_: states * 0.0)
    with pytest.raises(AssertionError, match="does not reach the output"):
        _ = Case(CrossAttention()).model
