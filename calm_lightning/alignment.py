"""Which augmenting tokens an anchor position may see.

Both models read the same text. With equal tokenizers token s of one is token s of the other, and
an anchor position sees the augmenting tokens at or before it: the plain causal mask. The paper
never mentions a mask; without one, position t would read the augmenting model's encoding of token
t + 1, which is its own label (PAPERS.md 1.1).

With two tokenizers the anchor's tokens are turned back into text, and the augmenting model's
tokenizer reads that. A token of it becomes visible when its text is written and no continuation
can change it any more; `calm_lightning.settling` says when that is.
"""

import json
from bisect import bisect_left, bisect_right
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import torch
from jaxtyping import Bool, Int
from tokenizers import Tokenizer
from tokenizers.decoders import DecodeStream
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from calm_lightning.backbone import Backbone
from calm_lightning.contracts import CalmError
from calm_lightning.settling import Settling

_KNOWN_READINGS = 4096
"""Readings that are kept, so that a text met again (a prompt, a row of beams) is not read again."""


def positions_of(
    attention_mask: Int[Tensor, "batch all"] | None,
    batch: int,
    past: int,
    new: int,
    device: torch.device,
) -> Int[Tensor, "batch new"]:
    """Position of each new token in its own text, padding not counted."""
    if attention_mask is None:
        return torch.arange(past, past + new, device=device).expand(batch, new)
    return (attention_mask.long().cumsum(-1) - 1).clamp(min=0)[:, past:]


def visible_tokens(
    attention_mask: Int[Tensor, "batch all"] | None,
    batch: int,
    past: int,
    new: int,
    device: torch.device,
    prompt_mask: Bool[Tensor, "batch prompt"] | None = None,
    examples: Int[Tensor, "batch new"] | None = None,
) -> Bool[Tensor, "batch new all"]:
    """For equal tokenizers: True where an anchor position may read an augmenting token.

    Args:
        attention_mask: 1 at tokens, 0 at padding, over all that was read so far; None: no padding.
        batch: Rows.
        past: Tokens already in the cache.
        new: Tokens read now; the queries.
        device: Where the mask is needed.
        prompt_mask: If given, only tokens where it is True may be read; what lies beyond its width
            may not (the paper's encoder ablation).
        examples: Number of the example that each token belongs to, where rows hold several: a
            token reads no other example's. Nothing is in the cache then.
    """
    everything = past + new
    queries = torch.arange(past, everything, device=device)[:, None]
    keys = torch.arange(everything, device=device)[None]
    visible = (keys <= queries).expand(batch, new, everything)
    if attention_mask is not None:
        visible = visible & attention_mask[:, None, :].bool()
    if prompt_mask is not None:
        missing = everything - prompt_mask.shape[1]
        prompt = torch.nn.functional.pad(prompt_mask.bool(), (0, max(0, missing)))[:, :everything]
        visible = visible & prompt[:, None, :]
    if examples is not None:
        visible = visible & (examples[:, :, None] == examples[:, None, :])
    return visible


def example_numbers(position_ids: Int[Tensor, "batch seq"]) -> Int[Tensor, "batch seq"] | None:
    """Which example of its row each token belongs to, from 0; None if no row holds two.

    A new one begins where positions do not go on by one, as transformers reads them.
    """
    begins = position_ids[:, 1:] != position_ids[:, :-1] + 1
    if not bool(begins.any()):
        return None
    return torch.nn.functional.pad(begins.long().cumsum(-1), (1, 0))


def sees_all_before(attention_mask: Int[Tensor, "batch all"] | None, past: int, new: int) -> bool:
    """For equal tokenizers: whether being causal hides all that must be hidden.

    So it is without padding, and with padding after the texts, whose own places nobody reads. Of
    several new tokens behind a cache it is not said.
    """
    if past and new > 1:
        return False
    if attention_mask is None:
        return True
    mask = attention_mask.bool()
    if past:
        return bool(mask.all())
    return bool((mask[:, :1].all() & (mask[:, 1:] <= mask[:, :-1]).all()).item())


def share_token_ids(anchor: Backbone, augmenting: Backbone) -> bool:
    """Whether both models mean the same text by the same ids.

    Models without tokenizers are taken to share their ids.

    Raises:
        CalmError: If ids of the anchor mean nothing to the augmenting model, and it has no
            tokenizer of its own.
    """
    if anchor.tokenizer is None or augmenting.tokenizer is None:
        ours, theirs = anchor.config.vocab_size, augmenting.config.vocab_size
        if ours > theirs:
            raise CalmError(
                f"The anchor {anchor.name!r} has {ours} token ids and the augmenting model "
                f"{augmenting.name!r} {theirs}, and no tokenizers are given to align them by text."
            )
        return True
    ours, theirs = (_identity(tokenizer) for tokenizer in (anchor.tokenizer, augmenting.tokenizer))
    return ours == theirs and len(anchor.tokenizer) <= augmenting.config.vocab_size


def _identity(tokenizer: PreTrainedTokenizerBase) -> Any:
    """All that decides which ids a text becomes, without what is put around it."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        return tokenizer.get_vocab()
    said = json.loads(backend.to_str())
    parts = ("normalizer", "pre_tokenizer", "model", "added_tokens")
    return {part: said[part] for part in parts}


def _places(token_ends: Sequence[int], ends: Sequence[int]) -> list[int]:
    """In which of the anchor's tokens, that end at `ends`, each augmenting token ends."""
    last = len(ends) - 1
    return [min(bisect_left(ends, end), last) for end in token_ends]


@dataclass(frozen=True)
class Reading:
    """What an augmenting model reads of a text, and when each token may be read by the anchor.

    Attributes:
        ids: Token ids of the augmenting model.
        counts: For each token of the anchor, how many of `ids` it may see. It never falls.
        positions: For each of `ids`, the token of the anchor in which its text ends. It may become
            visible later; but two tokens that become visible at once keep their own places.
    """

    ids: list[int]
    counts: list[int]
    positions: list[int]


class TextAlignment:
    """Reads the anchor's tokens with another tokenizer, causally.

    Everything follows from the anchor's ids alone, so a text that is read at once (training) and
    one that grows token by token (generation) are read alike: token t of the anchor stands for the
    text up to its end, and sees the tokens that `Settling` finds final in it. Special tokens of
    the anchor are not text. Characters of which only some bytes were written wait for the rest.

    Args:
        anchor: Whose ids are read.
        augmenting: Whose tokenizer reads them.
        prompt_only: The augmenting model reads the prompt and nothing else, as it stands there;
            the anchor sees it from the prompt's last token on. This suits any tokenizer.

    Raises:
        CalmError: If the augmenting tokenizer cannot read a growing text, or a model has none.
    """

    def __init__(self, anchor: Backbone, augmenting: Backbone, prompt_only: bool = False) -> None:
        self.anchor, self.augmenting, self.prompt_only = anchor, augmenting, prompt_only
        speaker, reader = anchor.require_tokenizer(), augmenting.require_tokenizer()
        backend = getattr(speaker, "backend_tokenizer", None)
        if backend is None:
            raise CalmError(
                f"The tokenizer of the anchor {anchor.name!r} ({type(speaker).__name__}) does not "
                "say which text each token stands for. Convert it to a fast one."
            )
        self._speaker: Tokenizer = backend
        self._reader = reader
        self._settling: Settling | None = None
        try:
            self._settling = Settling(reader, augmenting.name)
        except CalmError:
            if not prompt_only:
                raise
        self._known: OrderedDict[tuple[tuple[int, ...], int], Reading] = OrderedDict()

    def read(self, ids: Sequence[int], prompt_length: int | None = None) -> Reading:
        """What the augmenting model reads of the anchor's tokens.

        Args:
            ids: One row, without padding.
            prompt_length: How many of them are the prompt, where the augmenting model reads the
                prompt only; more than there are if the prompt goes on, and nothing is read yet.
                Null if nobody knows: it then reads everything, if its tokenizer can read a growing
                text, or nothing.

        Raises:
            CalmError: If the augmenting model's context does not hold the text.
        """
        if not self.prompt_only:
            prompt_length = None
        key = (tuple(ids), -1 if prompt_length is None else prompt_length)
        if key in self._known:
            self._known.move_to_end(key)
            return self._known[key]
        if prompt_length is not None:
            reading = self._read_prompt(ids, prompt_length)
        elif self._settling is not None:
            reading = self._read(ids, self._settling)
        else:
            reading = Reading([], [0] * len(ids), [])
        limit = self.augmenting.context
        if limit is not None and len(reading.ids) > limit:
            raise CalmError(
                f"A text of {len(ids)} tokens of the anchor is {len(reading.ids)} tokens of the "
                f"augmenting model {self.augmenting.name!r}, whose context holds {limit}. Shorten "
                "the prompts, or generate fewer tokens."
            )
        self._known[key] = reading
        if len(self._known) > _KNOWN_READINGS:
            self._known.popitem(last=False)
        return reading

    def length(self, ids: Sequence[int]) -> int:
        """How many tokens of the augmenting model the anchor's tokens are."""
        text, _ = self.text_of(ids)
        if self._settling is None:
            return len(self._reader(text)["input_ids"])
        return len(self._settling.first) + len(self._settling.tokenize(text)[0])

    def _read(self, ids: Sequence[int], settling: Settling) -> Reading:
        text, ends = self.text_of(ids)
        tokens, token_ends = settling.tokenize(text)
        limits = settling.limits(text)
        first = settling.first
        counts = [
            len(first) + (bisect_right(token_ends, limits[end]) if limits[end] else 0)
            for end in ends
        ]
        visible = max(counts, default=0)
        positions = [0] * len(first) + _places(token_ends, ends)
        return Reading([*first, *tokens][:visible], counts, positions[:visible])

    def _read_prompt(self, ids: Sequence[int], prompt_length: int) -> Reading:
        if not 0 < prompt_length <= len(ids):  # its end, where it is shown, is not there
            return Reading([], [0] * len(ids), [])
        text, ends = self.text_of(ids[:prompt_length])
        read = self._reader(text, return_offsets_mapping=self._reader.is_fast)
        tokens: list[int] = read["input_ids"]
        offsets = read.get("offset_mapping") or [(0, len(text))] * len(tokens)
        token_ends = list(accumulate((end for _, end in offsets), max))
        counts = [len(tokens) if t >= prompt_length - 1 else 0 for t in range(len(ids))]
        return Reading(tokens, counts, _places(token_ends, ends))

    def text_of(self, ids: Sequence[int]) -> tuple[str, list[int]]:
        """The text of the anchor's tokens, and how many characters of it each token completes."""
        stream = DecodeStream(skip_special_tokens=True)
        pieces, ends, length = [], [], 0
        for token in ids:
            try:
                piece = stream.step(self._speaker, int(token)) or ""
            except Exception as error:
                if "Invalid prefix" not in str(error):
                    raise
                # Bytes that are no character took back the ones before them. What was said stays.
                stream = DecodeStream(skip_special_tokens=True)
                piece = stream.step(self._speaker, int(token)) or ""
            pieces.append(piece)
            length += len(piece)
            ends.append(length)
        return "".join(pieces), ends
