"""Each check can fail: a planted fault turns red exactly the promises that it breaks.

Most faults break one promise. Where one breaks several, the table names all of them and says why.
"""

from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

import calm_lightning.checkpoint
import calm_lightning.composed.model
import calm_lightning.language_model
from calm_lightning.alignment import visible_tokens
from calm_lightning.composed import ComposedCache, ComposedModel
from calm_lightning.composed.cache import BridgeMemory
from calm_lightning.composed.static import StaticBridgeMemory
from calm_lightning.finished_rows import answers_of
from calm_lightning.shared_prompts import read_once
from calm_lightning.testing import PROMISES, Case, broken_promises
from calm_plugins.compositions.cross_attention import CrossAttention
from calm_plugins.compositions.cross_attention.composition import CrossAttentionBridge

Patch = pytest.MonkeyPatch


class Faulty(CrossAttention):
    """Cross-attention whose bridges and model are of other classes than they should be."""

    bridge: type[CrossAttentionBridge] = CrossAttentionBridge
    model: type[ComposedModel] = ComposedModel

    def compose(self, anchor: Any, augmenting: Any) -> ComposedModel:
        composed = super().compose(anchor, augmenting)
        composed.__class__ = self.model
        for bridge in composed.bridges:
            bridge.__class__ = self.bridge
        self.spoil(composed)
        return composed

    def spoil(self, composed: ComposedModel) -> None:
        pass


# ---------------------------------------------------------------- what a position may see


def sees_everything(patch: Patch) -> CrossAttention:
    def visible(mask: Tensor | None, batch: int, past: int, new: int, *rest: Any) -> Tensor:
        everything = torch.ones(batch, new, past + new, dtype=torch.bool)
        return everything if mask is None else everything & mask[:, None].bool()

    patch.setattr(calm_lightning.composed.model, "sees_all_before", lambda *said: False)
    patch.setattr(calm_lightning.composed.model, "visible_tokens", visible)
    return CrossAttention(every=2)


def sees_the_next_token(patch: Patch) -> CrossAttention:
    def visible(*args: Any) -> Tensor:
        causal = visible_tokens(None, *args[1:])
        later = torch.nn.functional.pad(causal[:, 1:], (0, 0, 0, 1), value=True)
        return later if args[0] is None else later & args[0][:, None].bool()

    patch.setattr(calm_lightning.composed.model, "sees_all_before", lambda *said: False)
    patch.setattr(calm_lightning.composed.model, "visible_tokens", visible)
    return CrossAttention(every=2)


def sees_padding(patch: Patch) -> CrossAttention:
    def visible(mask: Tensor | None, *rest: Any) -> Tensor:
        return visible_tokens(None, *rest)

    patch.setattr(calm_lightning.composed.model, "visible_tokens", visible)
    return CrossAttention()


def sees_the_example_before(patch: Patch) -> CrossAttention:
    def visible(*args: Any) -> Tensor:
        return visible_tokens(*args[:6])

    patch.setattr(calm_lightning.composed.model, "visible_tokens", visible)
    return CrossAttention()


class SeesLessInTraining(Faulty):
    class model(ComposedModel):
        @wraps(ComposedModel.forward)
        def forward(self, *args: Any, **kwargs: Any) -> Any:
            self.augmenting_sees = "full" if kwargs.get("labels") is None else "prompt"
            return super().forward(*args, **kwargs)


class MixesRows(Faulty):
    class bridge(CrossAttentionBridge):
        def forward(self, anchor_states: Tensor, *rest: Any) -> Tensor:
            return super().forward(anchor_states - anchor_states.mean(0, keepdim=True), *rest)


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


class RemembersTheLastBatch(Faulty):
    class bridge(CrossAttentionBridge):
        """With a running mean over training batches, as a batch norm keeps it."""

        mean: Tensor | float = 0.0

        def remember(self, augmenting_states: Tensor, positions: Tensor) -> Any:
            if self.training:
                self.mean = augmenting_states.mean((0, 1))
            return super().remember(augmenting_states + self.mean, positions)


def does_not_reorder_memories_of_a_fixed_size(patch: Patch) -> CrossAttention:
    patch.setattr(StaticBridgeMemory, "keep", lambda self, rows: None)
    return CrossAttention()


class ReadsWhatIsNotThereYet(Faulty):
    class bridge(CrossAttentionBridge):
        """In memories that grow nothing stands behind the newest token."""

        def forward(self, anchor_states: Tensor, memory: Any, visible: Any, *rest: Any) -> Tensor:
            if anchor_states.shape[1] == 1 and visible is not None:
                visible = visible | (visible.flip(-1).cumsum(-1).flip(-1) == 0)
            return super().forward(anchor_states, memory, visible, *rest)


def gives_samples_of_one_prompt_the_states_of_another(patch: Patch) -> CrossAttention:
    def once(*args: Any) -> dict[str, Any]:
        read = read_once(*args)
        if read:
            cache = read["past_key_values"]
            cache.batch_select_indices(torch.arange(cache.layers[0].keys.shape[0]).flip(0))
        return read

    patch.setattr(calm_lightning.language_model, "read_once", once)
    return CrossAttention()


def lets_the_wrong_rows_leave(patch: Patch) -> CrossAttention:
    def leave(*args: Any) -> list[list[int]]:
        with pytest.MonkeyPatch.context() as within:
            select = ComposedCache.batch_select_indices
            within.setattr(
                ComposedCache,
                "batch_select_indices",
                lambda cache, rows: select(cache, rows.flip(0)),
            )
            return answers_of(*args)

    patch.setattr(calm_lightning.language_model, "answers_of", leave)
    return CrossAttention()


class ForgetsTheConversation(Faulty):
    class model(ComposedModel):
        def generate(self, *args: Any, **kwargs: Any) -> Any:
            cache = kwargs.get("past_key_values")
            if cache is not None:
                cache.bridges[0].tensors = tuple(t * 0.0 for t in cache.bridges[0].tensors)
            return super().generate(*args, **kwargs)


# ---------------------------------------------------------------- what is trained and saved


class StartsOffZero(Faulty):
    def spoil(self, composed: ComposedModel) -> None:
        for bridge in composed.bridges:
            nn.init.normal_(bridge.out.weight, std=1e-3)


class LeavesAWeightTrainable(Faulty):
    def spoil(self, composed: ComposedModel) -> None:
        next(composed.backbones[0].layers[-1].parameters()).requires_grad_(True)


class LeavesDropoutOn(Faulty):
    class model(ComposedModel):
        def train(self, mode: bool = True) -> ComposedModel:
            return nn.Module.train(self, mode)


class HasAWeightThatNothingUses(Faulty):
    def spoil(self, composed: ComposedModel) -> None:
        for bridge in composed.bridges:
            bridge.idle = nn.Linear(3, 2)


class IgnoresTheAugmentingModel(Faulty):
    class bridge(CrossAttentionBridge):
        def remember(self, augmenting_states: Tensor, positions: Tensor) -> Any:
            return super().remember(torch.ones_like(augmenting_states), positions)


class SavesABackboneToo(Faulty):
    class model(ComposedModel):
        def save_pretrained(self, save_directory: str | Path, **kwargs: Any) -> None:
            super().save_pretrained(save_directory, **kwargs)
            weights = {name: weight.clone() for name, weight in self.anchor.state_dict().items()}
            save_file(weights, Path(save_directory) / "anchor.safetensors")


def accepts_any_backbone(patch: Patch) -> CrossAttention:
    patch.setattr(calm_lightning.checkpoint, "check_same", lambda *_: None)
    return CrossAttention()


class ChangesASetting(CrossAttention):
    def __init__(self, unused: int = 1) -> None:
        super().__init__()
        self.unused = unused + 1


Plant = Callable[[Patch], CrossAttention] | type[CrossAttention]

FAULTS: dict[Plant, set[str]] = {
    # Generation cannot see a token that does not exist yet, so it differs from everything that
    # reads whole texts: training, and generation without a cache. So does a prompt that is read in
    # two parts, for several samples. In a packed row everything is also the examples beside it.
    sees_everything: {
        "causal",
        "no_leak_in_training",
        "cache",
        "conversation",
        "loss",
        "speed_paths",
        "packing",
    },
    sees_the_next_token: {
        "causal",
        "no_leak_in_training",
        "cache",
        "conversation",
        "loss",
        "speed_paths",
    },
    # A batch of texts of different lengths is padded.
    sees_padding: {"padding", "text", "speed_paths", "static_cache"},
    sees_the_example_before: {"packing"},
    SeesLessInTraining: {"loss"},
    # Padded rows, packed ones, beams and texts in a batch all share their batch with others.
    MixesRows: {"batch", "padding", "text", "loss", "speed_paths", "packing"},
    # Rows that leave are selected as beams are. Memories of a fixed size have their own ways, and
    # differ from growing ones wherever those are wrong.
    forgets_to_reorder: {"cache", "speed_paths", "static_cache"},
    forgets_to_reorder_the_augmenting_model: {"cache", "static_cache"},
    forgets_to_crop: {"cache"},
    does_not_reorder_memories_of_a_fixed_size: {"static_cache"},
    ReadsWhatIsNotThereYet: {"static_cache"},
    gives_samples_of_one_prompt_the_states_of_another: {"speed_paths"},
    lets_the_wrong_rows_leave: {"speed_paths"},
    RemembersTheLastBatch: {"no_state"},
    # A prompt that several samples share is in the cache already, as a conversation is.
    ForgetsTheConversation: {"conversation", "speed_paths"},
    StartsOffZero: {"starts_as_anchor"},
    # What is trainable is disturbed, so the anchor is no longer itself, nor recognised; only the
    # bridges are saved.
    LeavesAWeightTrainable: {"frozen", "anchor_only", "reload", "checkpoint"},
    LeavesDropoutOn: {"frozen"},
    HasAWeightThatNothingUses: {"gradient"},
    IgnoresTheAugmentingModel: {"augmenting_used"},
    SavesABackboneToo: {"checkpoint"},
    accepts_any_backbone: {"reload"},
    ChangesASetting: {"settings"},
}


@pytest.mark.parametrize("plant", FAULTS, ids=lambda plant: plant.__name__)
def test_fault_turns_exactly_its_promises_red(plant: Plant, monkeypatch: Patch) -> None:
    composition = plant() if isinstance(plant, type) else plant(monkeypatch)
    broken = broken_promises(Case(composition))
    assert broken.keys() == FAULTS[plant], broken


def test_every_promise_is_broken_by_some_fault() -> None:
    assert set().union(*FAULTS.values()) == PROMISES.keys()


def test_a_composition_that_does_nothing_is_noticed(monkeypatch: Patch) -> None:
    """Nothing could turn red then, so the suite must not be green."""
    monkeypatch.setattr(CrossAttentionBridge, "forward", lambda self, states, *_: states * 0.0)
    with pytest.raises(AssertionError, match="does not reach the output"):
        _ = Case(CrossAttention()).model
