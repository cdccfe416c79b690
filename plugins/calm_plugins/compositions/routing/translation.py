"""What a model with another tokenizer would say next, in the anchor's tokens, by way of the text.

The model reads the text that the anchor's tokens stand for, as its own tokenizer cuts it, and is
asked for its next token. The probability of each of its tokens goes to the longest token of the
anchor with which the text of that token begins, byte by byte. What has no such token (an unknown
character, half of one, a special token other than the end) is left to the anchor's own opinion, and
so is the rest of a character of which the anchor has written some bytes.

All of it depends on the anchor's tokens up to the place that is asked about, and on nothing else,
so a text that is read at once and one that grows token by token are treated alike. The price: the
text may be cut otherwise at every place, so the model reads it anew for every token, without a
cache; and within a word it is asked about half a word, which it met seldom in its own training.
(`calm_lightning.alignment` waits for the end of the word instead. A bridge can: it reads states
of the past. Who says the next token cannot.)
"""

import re
from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import PreTrainedTokenizerBase
from transformers.convert_slow_tokenizer import bytes_to_unicode

from calm_lightning.alignment import positions_of
from calm_lightning.backbone import Backbone
from calm_lightning.collate import IGNORED, Row, check_fits, pad_left, tokenize
from calm_lightning.contracts import CalmError
from calm_plugins.compositions.routing.reading import Reading, keeps_some_logits

_AT_A_TIME = 64
"""Texts that the model reads together."""

_LEAST_COVERAGE = 0.5
"""Share of the model's tokens whose text must begin with a token of the anchor."""

_BYTE = re.compile(r"<0x[0-9A-F]{2}>")
_INCOMPLETE = "\ufffd"


class Translation:
    """One model's next-token distributions over another model's tokens.

    Args:
        anchor: In whose tokens it is said.
        augmenting: Who says it.

    Raises:
        CalmError: If a model has no tokenizer, or the anchor can write too little of what the
            other one says.
    """

    def __init__(self, anchor: Backbone, augmenting: Backbone) -> None:
        self.augmenting = augmenting
        self._writer = anchor.require_tokenizer()
        self._reader = augmenting.require_tokenizer()
        self._vocabulary = int(anchor.config.vocab_size)
        self._places = _places(self._writer, self._reader)
        texts = sum(text is not None for text in token_texts(self._reader))
        if len(self._places) < _LEAST_COVERAGE * max(1, texts):
            raise CalmError(
                f"The anchor {anchor.name!r} can write only {len(self._places)} of the {texts} "
                f"tokens that {augmenting.name!r} may say: its tokenizer has no token with which "
                "the others begin. Their next tokens cannot be mixed. Route whole prompts instead "
                "(PromptRouter), where every model answers in its own tokens."
            )
        end = self._reader.eos_token_id
        if end is not None and self._writer.eos_token_id is not None:
            self._places[end] = self._writer.eos_token_id

    @torch.no_grad()
    def next_tokens(
        self, prefixes: Sequence[Sequence[int]], device: torch.device
    ) -> tuple[Float[Tensor, "texts vocabulary"], Float[Tensor, "texts 1"]]:
        """What the model says after each text.

        Args:
            prefixes: The anchor's tokens of every text, without padding.
            device: Where the result is needed.

        Returns:
            Probabilities over the anchor's tokens, and the probability that is left over.

        Raises:
            CalmError: If the model's context does not hold a text.
        """
        said = torch.zeros(len(prefixes), self._vocabulary, device=device)
        rows = [self._read(prefix) for prefix in prefixes]
        known = [index for index, row in enumerate(rows) if row is not None]
        asked = [row for row in rows if row is not None]
        check_fits(asked, self.augmenting.context, self.augmenting.name)
        for start in range(0, len(asked), _AT_A_TIME):
            chunk = slice(start, start + _AT_A_TIME)
            said[known[chunk]] = self._ask(asked[chunk]).to(device)
        return said, (1 - said.sum(-1, keepdim=True)).clamp(min=0)

    def _read(self, prefix: Sequence[int]) -> Row | None:
        """A text as the model reads it; None if nobody can ask about it yet."""
        text = self._writer.decode(list(prefix), skip_special_tokens=True)
        if text.endswith(_INCOMPLETE):  # a character of which some bytes are missing
            return None
        (row,) = tokenize(self._reader, [text])
        return row if row.ids else None

    def _ask(self, rows: Sequence[Row]) -> Float[Tensor, "texts vocabulary"]:
        model = self.augmenting.model
        device = next(model.parameters()).device
        batch = {name: tensor.to(device) for name, tensor in pad_left(rows, 0).items()}
        if self.augmenting.takes_positions:
            mask = batch["attention_mask"]
            batch["position_ids"] = positions_of(mask, len(mask), 0, mask.shape[1], device)
        last = {"logits_to_keep": 1} if keeps_some_logits(self.augmenting) else {}
        logits = model(**batch, **last).logits[:, -1].float()
        ours, theirs = self._pairs(device)
        said = torch.zeros(len(rows), self._vocabulary, device=device)
        return said.index_add_(1, ours, logits.softmax(-1)[:, theirs])

    def _pairs(self, device: torch.device) -> tuple[Int[Tensor, " n"], Int[Tensor, " n"]]:
        pairs = torch.tensor([(ours, theirs) for theirs, ours in self._places.items()])
        return pairs[:, 0].to(device), pairs[:, 1].to(device)


def translate(
    translation: Translation, reading: Reading, rows: Sequence[Sequence[int]]
) -> Float[Tensor, "batch columns vocabulary"]:
    """The log-probabilities of a model with another tokenizer, where somebody asks for them.

    Elsewhere, and as far as it has no opinion, the anchor's stand.

    Args:
        translation: Of the model.
        reading: In which the anchor has spoken.
        rows: All tokens of each row so far, without padding.
    """
    own = reading.logits[0].float().log_softmax(-1)
    asked = reading.real[:, reading.columns]
    if reading.labels is not None:
        asked = asked & (reading.targets != IGNORED)
    after = reading.real.flip(-1).cumsum(-1).flip(-1)[:, reading.columns] - 1
    behind = after[asked].tolist()  # how many tokens each text goes on for
    places = asked.nonzero()[:, 0].tolist()
    prefixes = [rows[row][: len(rows[row]) - n] for row, n in zip(places, behind, strict=True)]
    if not prefixes:
        return own
    said, rest = translation.next_tokens(prefixes, own.device)
    mixed = said + rest * own[asked].exp()
    return own.masked_scatter(asked[..., None], mixed.log())


def token_texts(tokenizer: PreTrainedTokenizerBase) -> list[str | None]:
    """The text that every token adds to a text; None if it is special, or no whole characters."""
    before = _some_token(tokenizer)
    start = tokenizer.decode(before)
    special = set(tokenizer.all_special_ids)
    decoded = tokenizer.batch_decode([[*before, token] for token in range(len(tokenizer))])
    return [
        None
        if token in special or _INCOMPLETE in text or not text.startswith(start)
        else text[len(start) :] or None
        for token, text in enumerate(decoded)
    ]


def _some_token(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """A token to put before another, for at a text's beginning a space may be lost."""
    special = set(tokenizer.all_special_ids)
    for text in ("a", "1", "."):
        ids: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
        if ids and not special & set(ids):
            return ids
    return []


def _places(writer: PreTrainedTokenizerBase, reader: PreTrainedTokenizerBase) -> dict[int, int]:
    """For each token of the reader, the writer's token that begins its text."""
    known: dict[bytes, int] = {}
    for token, written in enumerate(_token_bytes(writer)):
        if written is not None:
            known.setdefault(written, token)
    longest = max(map(len, known), default=0)
    found = {
        token: _beginning(text.encode(), known, longest)
        for token, text in enumerate(token_texts(reader))
        if text is not None
    }
    return {token: place for token, place in found.items() if place is not None}


def _token_bytes(tokenizer: PreTrainedTokenizerBase) -> list[bytes | None]:
    """The bytes of every token; of single bytes only those that are no whole character."""
    special = set(tokenizer.all_special_ids)
    names: list[str] = tokenizer.convert_ids_to_tokens(list(range(len(tokenizer))))
    said: list[bytes | None] = []
    for token, (name, text) in enumerate(zip(names, token_texts(tokenizer), strict=True)):
        fallback = bool(_BYTE.fullmatch(name))
        if text is not None:
            said.append(None if fallback else text.encode())
        elif token in special:
            said.append(None)
        elif fallback:
            said.append(bytes.fromhex(name[3:5]))
        else:
            said.append(_byte_level(name))
    return said


def _byte_level(name: str) -> bytes | None:
    """The bytes that a byte-level tokenizer (GPT-2's kind) writes as these characters."""
    known = {character: byte for byte, character in bytes_to_unicode().items()}
    return bytes(known[c] for c in name) if all(c in known for c in name) else None


def _beginning(text: bytes, known: Mapping[bytes, int], longest: int) -> int | None:
    for length in range(min(len(text), longest), 0, -1):
        if text[:length] in known:
            return known[text[:length]]
    return None
