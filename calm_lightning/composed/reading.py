"""How an augmenting model is run, and what it offers the bridges of what it has read."""

import copy
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor, nn
from transformers import Cache, DynamicCache

from calm_lightning.alignment import Reading, TextAlignment, share_token_ids
from calm_lightning.backbone import Backbone
from calm_lightning.composed.cache import TextMemory
from calm_lightning.state_cache import KeptStates


@dataclass
class Offer:
    """What one augmenting model offers the bridges in a forward pass."""

    visible: Bool[Tensor, "batch new columns"]
    """No row is empty, for that would be NaN; where nothing may be read, see `sees_something`."""
    sees_something: Bool[Tensor, "batch new 1"]
    positions: Int[Tensor, "batch new_columns"]
    """The anchor position at which each new column becomes visible."""
    states: dict[int, Tensor]
    """Outputs of the tapped layers at the new columns; empty if there are no new columns."""
    anew: bool = False
    """Whether the columns replace what was remembered, instead of being appended to it."""
    causal: bool = False
    """Whether everything up to its own place is visible to each position, and nothing else."""

    @classmethod
    def of(
        cls, visible: Tensor, positions: Tensor, states: dict[int, Tensor], anew: bool = False
    ) -> "Offer":
        """An offer of which some rows may see nothing yet."""
        sees_something = visible.any(-1, keepdim=True)
        return cls(visible | ~sees_something, sees_something, positions, states, anew)


@dataclass
class Page:
    """The anchor's tokens, as an augmenting model with another tokenizer is asked to read them."""

    rows: Sequence[list[int]]
    """All tokens of each row so far, without padding."""
    new: Bool[Tensor, "batch new"]
    """Where the new columns hold tokens; False at padding."""
    prompt_lengths: Sequence[int] | None = None
    """How many tokens of each row are the prompt, where only that is read."""


Excerpt = tuple[list[int], int | None]
"""One of several examples in a row: its tokens, and how many are prompt if only that is read."""


class AugmentingReader:
    """One augmenting model, cut above its last tapped layer.

    Args:
        anchor: Whose tokens are read.
        backbone: The augmenting model.
        layers: Numbers of its layers whose outputs are wanted.
        prompt_only: It reads the prompt and nothing else.

    Attributes:
        alignment: How it reads the anchor's tokens as text; None if it shares their ids.
        always_runs: Whether it runs, on a gap, even if there is nothing new to read. Processes that
            compute together have to run the same modules, and their texts differ.

    Raises:
        CalmError: If it cannot read what the anchor writes.
    """

    def __init__(
        self, anchor: Backbone, backbone: Backbone, layers: Iterable[int], prompt_only: bool
    ) -> None:
        self.backbone = backbone
        self.alignment: TextAlignment | None = None
        if not share_token_ids(anchor, backbone):
            self.alignment = TextAlignment(anchor, backbone, prompt_only)
        self.tapped = Tapped(backbone, layers)
        self.always_runs = False

    def read_tokens(
        self,
        input_ids: Int[Tensor, "batch new"],
        attention_mask: Int[Tensor, "batch all"] | None,
        positions: Int[Tensor, "batch new"],
        visible: Bool[Tensor, "batch new all"],
        cache: DynamicCache | None,
        causal: bool = False,
        kept: KeptStates | None = None,
    ) -> Offer:
        """Read the anchor's own token ids.

        Args:
            input_ids: What is new.
            attention_mask: 0 at padding, over all that was read so far.
            positions: Of the new tokens.
            visible: Which tokens the anchor's positions may read.
            cache: This model's own, if one is kept.
            causal: Whether that is all up to their own, but for padding that reads itself.
            kept: Where its states are looked up, if it reads from the beginning.
        """
        states = self._run(input_ids, attention_mask, positions, cache, kept)
        offer = Offer.of(visible, positions, states)
        offer.causal = causal
        return offer

    def read_text(
        self,
        page: Page,
        cache: DynamicCache | None,
        memory: TextMemory,
        kept: KeptStates | None = None,
    ) -> Offer:
        """Read the anchor's text with this model's own tokenizer.

        Args:
            page: What the anchor has read.
            cache: This model's own, if one is kept.
            memory: What of the text stands in the cache; brought up to date.
            kept: Where its states are looked up, if it reads from the beginning.
        """
        assert self.alignment is not None
        device = page.new.device
        readings = [
            self.alignment.read(row, page.prompt_lengths[number] if page.prompt_lengths else None)
            for number, row in enumerate(page.rows)
        ]
        wanted = [reading.ids for reading in readings]
        # A model that counts columns cannot have gaps between them, so it reads all of it again.
        gaps = cache is not None and tells_gaps(self.backbone)
        anew = not gaps and (self.always_runs or memory.ids != wanted)
        if anew:
            memory.reset()
        ids, order = memory.advance(wanted, device, at_least=int(self.always_runs))
        places = order.clamp(min=0)
        alive = memory.order >= 0
        visible = alive[:, None] & (memory.order[:, None] < _counts(readings, page.new)[:, :, None])
        states = {}
        if ids.shape[1]:
            states = self._run(ids, alive.long(), places, cache if gaps else None, kept)
        return Offer.of(visible, _positions(readings, device).gather(1, places), states, anew)

    def read_packed(
        self, rows: Sequence[Sequence[Excerpt]], examples: Int[Tensor, "batch new"]
    ) -> Offer:
        """Read rows of several examples each with this model's own tokenizer, from the beginning.

        Args:
            rows: The examples of each row.
            examples: Number of the example that each of the anchor's tokens belongs to.
        """
        alignment, device = self.alignment, examples.device
        assert alignment is not None
        read = [[alignment.read(*excerpt) for excerpt in row] for row in rows]
        width = max(sum(len(reading.ids) for reading in row) for row in read)
        width = max(width, int(self.always_runs))

        def columns(of: Callable[[int, Reading], Sequence[int]], fill: int) -> Tensor:
            lines = [[n for i, r in enumerate(row) for n in of(i, r)] for row in read]
            padded = [line + [fill] * (width - len(line)) for line in lines]
            return torch.tensor(padded, dtype=torch.long, device=device).view(len(read), width)

        ids = columns(lambda _, reading: reading.ids, 0)
        owners = columns(lambda index, reading: [index] * len(reading.ids), -1)
        places = columns(lambda _, reading: range(len(reading.ids)), 0)
        positions = columns(lambda _, reading: reading.positions, 0)
        counts = [[n for reading in row for n in reading.counts] for row in read]
        limits = torch.tensor(counts, dtype=torch.long, device=device)[:, :, None]
        visible = (owners[:, None] == examples[:, :, None]) & (places[:, None] < limits)
        states = self._run(ids, None, places, None, None) if width else {}
        return Offer.of(visible, positions, states)

    def _run(
        self,
        ids: Tensor,
        mask: Tensor | None,
        positions: Tensor,
        cache: DynamicCache | None,
        kept: KeptStates | None,
    ) -> dict[int, Tensor]:
        return self.tapped(ids, mask, positions, cache) if kept is None else kept(ids, mask)


class Tapped:
    """A backbone cut above the highest layer that is wanted of it.

    Args:
        backbone: It.
        layers: Numbers of its layers whose outputs are wanted.
    """

    def __init__(self, backbone: Backbone, layers: Iterable[int]) -> None:
        self.backbone = backbone
        self.layers = sorted(layers)
        self._trunk = trunk(backbone, 1 + self.layers[-1])
        self._states: dict[int, Tensor] | None = None  # while it is running
        self.hooks = [
            backbone.layers[layer].register_forward_hook(partial(self._tap, layer))
            for layer in self.layers
        ]

    def __call__(
        self,
        ids: Tensor,
        mask: Tensor | None,
        positions: Tensor,
        cache: Cache | None = None,
    ) -> dict[int, Tensor]:
        """Outputs of the wanted layers over new tokens."""
        inputs: dict[str, Any] = {"input_ids": ids, "attention_mask": mask}
        if self.backbone.takes_positions:
            inputs["position_ids"] = positions
        if cache is not None:
            inputs["past_key_values"] = cache
        states: dict[int, Tensor] = {}
        self._states = states
        try:
            with torch.no_grad():
                self._trunk(**inputs, use_cache=cache is not None)
        finally:
            self._states = None
        return states

    def _tap(self, layer: int, module: nn.Module, args: Any, output: Any) -> None:
        if self._states is not None:
            self._states[layer] = output if isinstance(output, Tensor) else output[0]


def _counts(readings: Sequence[Reading], new: Tensor) -> Int[Tensor, "batch new"]:
    """How many of its tokens each new position of the anchor may see; 0 at padding."""
    counts = torch.zeros(new.shape, dtype=torch.long)
    for row, (reading, here) in enumerate(zip(readings, new.cpu(), strict=True)):
        first = len(reading.counts) - int(here.sum())
        counts[row, here] = torch.tensor(reading.counts[first:], dtype=torch.long)
    return counts.to(new.device)


def _positions(readings: Sequence[Reading], device: torch.device) -> Int[Tensor, "batch tokens"]:
    """The anchor's position in which each token of a row ends, filled up with zeros."""
    rows = [reading.positions or [0] for reading in readings]
    width = max(map(len, rows))
    return torch.tensor([row + [0] * (width - len(row)) for row in rows], device=device)


def tells_gaps(backbone: Backbone) -> bool:
    """Whether a model's attention counts positions, so that masked columns do not matter to it.

    Models that are not told positions count columns; a sliding window counts them always.
    """
    return backbone.takes_positions and not backbone.has_window


def trunk(backbone: Backbone, num_layers: int) -> Callable[..., Any]:
    """The backbone's decoder cut above its first layers, sharing its weights.

    Layers above the last tap and the vocabulary head are never run: nobody reads them.
    """
    if num_layers == backbone.num_layers:
        return backbone.decoder
    first = nn.ModuleList(backbone.layers[:num_layers])
    return with_layers(backbone.decoder, backbone.layers, first)


def with_layers(model: nn.Module, layers: nn.ModuleList, others: nn.ModuleList) -> nn.Module:
    """A model with other layers in the place of its own, sharing everything else with it."""
    if model is layers:
        return others
    children = {
        name: None if child is None else with_layers(child, layers, others)
        for name, child in model._modules.items()
    }
    if all(children[name] is child for name, child in model._modules.items()):
        return model
    changed = copy.copy(model)
    changed.__dict__["_modules"] = children
    return changed
