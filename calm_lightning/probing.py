"""Looking inside: what crosses each connection while one text is read.

Only what is asked is measured, and in passes of its own: ordinary training computes none of it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from calm_lightning.collate import IGNORED
from calm_lightning.composed import Bridge, ComposedModel, Connection
from calm_lightning.composed.reading import AugmentingReader

LONGEST_LABEL = 12
_VISIBLE = {" ": "\N{MIDDLE DOT}", "\n": "\N{RETURN SYMBOL}", "\t": "\N{RIGHTWARDS ARROW TO BAR}"}


@dataclass(frozen=True)
class Look:
    """What crossed one connection.

    Attributes:
        connection: Which.
        share: Norm of what was added over that of the anchor's state, the mean over the anchor's
            tokens.
        weights: Attention, by the anchor's and the augmenting model's tokens; None where the
            bridge does not attend, or had nothing to read.
        distances: How many of the anchor's tokens each augmenting token lies back.
        sees: Which of the anchor's tokens had anything to read.
        visible: What each of them may read; None where there are no weights.
    """

    connection: Connection
    share: float
    weights: Float[Tensor, "heads anchor_seq augmenting_seq"] | None
    distances: Float[Tensor, "anchor_seq augmenting_seq"]
    sees: Bool[Tensor, " anchor_seq"]
    visible: Bool[Tensor, "anchor_seq augmenting_seq"] | None = None

    @property
    def entropy(self) -> float | None:
        """Of the attention, in nats: 0 for one token, ln n for n tokens alike.

        The mean over heads and over the anchor's tokens that had anything to read.
        """
        return self._mean(None if self.weights is None else torch.special.entr(self.weights))

    @property
    def distance(self) -> float | None:
        """How far back the attention reaches on the average, in tokens of the anchor."""
        return self._mean(None if self.weights is None else self.weights * self.distances)

    def _mean(self, parts: Tensor | None) -> float | None:
        if parts is None or not self.sees.any():
            return None
        return float(parts.sum(-1)[:, self.sees].mean())


@dataclass(frozen=True)
class Probe:
    """What crossed all connections while one text was read.

    Attributes:
        text: What was read.
        anchor_tokens: Its tokens, as labels of an axis.
        augmenting_tokens: The same, for every augmenting model.
        looks: One for each connection, in the model's order.
    """

    text: str
    anchor_tokens: list[str]
    augmenting_tokens: list[list[str]]
    looks: list[Look]


def connection_name(connection: Connection, augmenting_models: int) -> str:
    """A connection as pictures name it, layers counted from 0.

    Args:
        connection: Which.
        augmenting_models: How many there are; a single one is not numbered.
    """
    model = f"model {connection.augmenting}, " if augmenting_models > 1 else ""
    return f"{model}layer {connection.augmenting_layer} to {connection.anchor_layer}"


@torch.no_grad()
def probe(model: ComposedModel, prompt: str, target: str | None = None) -> Probe:
    """Let a model read a text, and look at every connection.

    Args:
        model: The composed model. Its mode is left as it was; it reads in eval mode.
        prompt: The text, or its beginning.
        target: What follows, where the augmenting models may be allowed to read the prompt only.

    Raises:
        CalmError: If the text does not fit a model's context.
    """
    batch = model.encode([prompt], None if target is None else [target])
    device = next(model.anchor_backbone.model.parameters()).device
    batch = {name: tensor.to(device) for name, tensor in batch.items()}
    ids: list[int] = batch["input_ids"][0].tolist()
    prompt_length = len(ids)
    if "labels" in batch:
        prompt_length = int(((batch["labels"][0] != IGNORED).cumsum(-1) == 0).sum())
    else:
        batch["prompt_mask"] = torch.ones_like(batch["input_ids"], dtype=torch.bool)
    seen: dict[int, _Seen] = {}
    hooks = [
        bridge.register_forward_hook(_Watch(number, seen))
        for number, bridge in enumerate(model.bridges)
    ]
    was_training = model.training
    model.eval()
    try:
        model(**batch)
    finally:
        model.train(was_training)
        for hook in hooks:
            hook.remove()
    pages = [_page(reader, ids, prompt_length) for reader in model.augmenting_readers]
    speaker = model.anchor_backbone.require_tokenizer()
    return Probe(
        prompt + (target or ""),
        labels_of(speaker, ids),
        [
            labels_of(reader.backbone.tokenizer or speaker, page.ids)
            for reader, page in zip(model.augmenting_readers, pages, strict=True)
        ],
        [
            _look(connection, seen.get(number), pages[connection.augmenting])
            for number, connection in enumerate(model.connections)
        ],
    )


@dataclass(frozen=True)
class _Seen:
    """What one bridge was given and what it gave, as norms and weights."""

    shares: Float[Tensor, " anchor_seq"]
    weights: Float[Tensor, "heads anchor_seq augmenting_seq"] | None
    visible: Bool[Tensor, "anchor_seq augmenting_seq"]


@dataclass(frozen=True)
class _Watch:
    """A forward hook that keeps what one bridge saw."""

    number: int
    seen: dict[int, _Seen]

    def __call__(self, bridge: nn.Module, given: tuple[Any, ...], added: Tensor) -> None:
        assert isinstance(bridge, Bridge), "only bridges are watched"
        shares = added[0].float().norm(dim=-1) / given[0][0].float().norm(dim=-1)
        states, memory, visible, positions = given
        if visible is None:  # see `Bridge.takes_causal`
            rows, columns = states.shape[1], memory[0].shape[-2]
            everything = torch.ones(rows, columns, dtype=torch.bool, device=states.device)
            visible = everything.tril(columns - rows).expand(len(states), -1, -1)
        weights = bridge.attention(states, memory, visible, positions)
        told = None if weights is None else weights[0].float().cpu()
        self.seen[self.number] = _Seen(shares.cpu(), told, visible[0].cpu())


@dataclass(frozen=True)
class _Page:
    """How an augmenting model reads the text."""

    ids: list[int]
    positions: list[int]
    sees: Bool[Tensor, " anchor_seq"]


def _page(reader: AugmentingReader, ids: list[int], prompt_length: int) -> _Page:
    if reader.alignment is None:  # the anchor's own tokens; each sees itself, or the prompt
        return _Page(ids, list(range(len(ids))), torch.ones(len(ids), dtype=torch.bool))
    reading = reader.alignment.read(ids, prompt_length)
    return _Page(reading.ids, reading.positions, torch.tensor(reading.counts) > 0)


def _look(connection: Connection, seen: _Seen | None, page: _Page) -> Look:
    places = torch.arange(len(page.sees))[:, None] - torch.tensor(page.positions, dtype=torch.long)
    if seen is None:  # it had nothing to read
        return Look(connection, 0.0, None, places.float(), page.sees)
    share = torch.where(page.sees, seen.shares, 0.0).mean()
    visible = seen.visible & page.sees[:, None]
    return Look(connection, float(share), seen.weights, places.float(), page.sees, visible)


def labels_of(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> list[str]:
    """Tokens as short labels that show spaces and breaks.

    Args:
        tokenizer: Whose tokens they are.
        ids: The tokens.
    """
    labels = []
    for token in ids:
        text = str(tokenizer.decode([token]))
        # Alone, a token of SentencePiece loses the space that it begins with.
        piece = tokenizer.convert_ids_to_tokens(token)
        if str(piece).startswith("\N{LOWER ONE EIGHTH BLOCK}") and not text.startswith(" "):
            text = f" {text}"
        shown = "".join(_VISIBLE.get(c, c if c.isprintable() else "\ufffd") for c in text)
        cut = shown[: LONGEST_LABEL - 1] + "\N{HORIZONTAL ELLIPSIS}"
        labels.append(shown if len(shown) <= LONGEST_LABEL else cut)
    return labels
