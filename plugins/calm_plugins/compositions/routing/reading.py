"""What one model makes of new tokens: the next ones that it would say, and its last states."""

import inspect
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from transformers import Cache

from calm_lightning.alignment import positions_of
from calm_lightning.backbone import Backbone
from calm_lightning.collate import IGNORED
from calm_lightning.contracts import CalmError
from calm_plugins.compositions.routing.cache import RoutedCache


@dataclass
class Reading:
    """What all models make of new tokens, at the columns that are asked about.

    Attributes:
        input_ids: [batch, new].
        attention_mask: [batch, past + new], or None.
        past: Tokens in the cache before.
        columns: Which of the new columns, in rising order; on the CPU.
        cache: The memory that they are in by now.
        labels: [batch, new], or None.
        more: What else the batch holds.
        states: The anchor's last hidden states.
        logits: Of every model, the anchor's first, over the anchor's tokens.
    """

    input_ids: Int[Tensor, "batch new"]
    attention_mask: Int[Tensor, "batch all"] | None
    past: int
    columns: Int[Tensor, " columns"]
    cache: RoutedCache | None = None
    labels: Int[Tensor, "batch new"] | None = None
    more: Mapping[str, Any] = field(default_factory=dict)
    states: Tensor = field(default_factory=lambda: torch.empty(0))
    logits: list[Tensor] = field(default_factory=list)

    @property
    def targets(self) -> Int[Tensor, "batch columns"]:
        """The token to be learnt after each column."""
        assert self.labels is not None
        return nn.functional.pad(self.labels[:, 1:], (0, 1), value=IGNORED)[:, self.columns]

    @property
    def real(self) -> Bool[Tensor, "batch new"]:
        """True at tokens, False at padding."""
        new = self.input_ids.shape[1]
        if self.attention_mask is None:
            return torch.ones_like(self.input_ids, dtype=torch.bool)
        return self.attention_mask[:, -new:].bool()

    def unpadded(self) -> list[list[int]]:
        """The new tokens of each row, without padding."""
        pairs = zip(self.input_ids, self.real, strict=True)
        return [ids[real].tolist() for ids, real in pairs]


def target_log_probs(
    reading: Reading,
) -> Float[Tensor, "models batch columns"]:
    """What every model gives each target, in nats; 0 where there is none."""
    targets = reading.targets
    chosen = targets.clamp(min=0)[..., None]
    found = [logits.float().log_softmax(-1).gather(-1, chosen)[..., 0] for logits in reading.logits]
    return torch.stack(found).masked_fill(targets == IGNORED, 0.0)


def ask(
    backbone: Backbone, reading: Reading, memory: Cache | None
) -> tuple[Float[Tensor, "batch columns vocabulary"], Float[Tensor, "batch columns width"]]:
    """What one model says at the columns, and its last hidden states there."""
    model, ids, columns = backbone.model, reading.input_ids, reading.columns
    batch, new = ids.shape
    options: dict[str, Any] = {"attention_mask": reading.attention_mask}
    if backbone.takes_positions:
        options["position_ids"] = positions_of(
            reading.attention_mask, batch, reading.past, new, ids.device
        )
    if len(columns) < new and keeps_some_logits(backbone):
        last = len(columns) == new - int(columns[0])
        options["logits_to_keep"] = len(columns) if last else columns  # a slice is cheaper
    with _head_input(backbone) as kept:
        output = model(
            input_ids=ids,
            past_key_values=memory,
            use_cache=memory is not None,
            return_dict=True,
            **options,
        )
    if output.logits.shape[1] == len(columns):
        return output.logits, kept[0]
    return output.logits[:, columns], kept[0][:, columns]


def keeps_some_logits(backbone: Backbone) -> bool:
    """Whether a model computes its logits only where it is told to (`logits_to_keep`)."""
    return "logits_to_keep" in inspect.signature(backbone.model.forward).parameters


@contextmanager
def _head_input(backbone: Backbone) -> Iterator[list[Tensor]]:
    """While it is active, what the vocabulary head is given is kept: the last hidden states."""
    head = backbone.model.get_output_embeddings()
    if head is None:
        raise CalmError(f"{backbone.name!r} shows no vocabulary head, so it cannot be routed.")
    kept: list[Tensor] = []
    handle = head.register_forward_pre_hook(lambda module, args: kept.append(args[0]))
    try:
        yield kept
    finally:
        handle.remove()


def widen(logits: Tensor, vocabulary: int) -> Tensor:
    """Logits over as many tokens as the anchor has; both may be padded beyond their tokenizer."""
    missing = vocabulary - logits.shape[-1]
    return nn.functional.pad(logits, (0, missing), value=float("-inf"))  # or cut, if negative
