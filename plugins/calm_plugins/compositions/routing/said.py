"""Which model spoke where, for people to read."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

_INCOMPLETE = "\ufffd"
"""What bytes that are no whole character are decoded to."""


@dataclass(frozen=True)
class Said:
    """A stretch of an answer.

    Attributes:
        speaker: `anchor` or `augmenting`; of several, `augmenting 0`, `augmenting 1`, ...
        text: What it said.
    """

    speaker: str
    text: str


def speaker_name(speaker: int, augmenting: int) -> str:
    """What a model is called.

    Args:
        speaker: 0 is the anchor, 1 the first augmenting model, and so on.
        augmenting: How many augmenting models there are.
    """
    if speaker == 0:
        return "anchor"
    return "augmenting" if augmenting == 1 else f"augmenting {speaker - 1}"


def stretches(
    tokenizer: PreTrainedTokenizerBase,
    ids: Sequence[int],
    speakers: Sequence[int],
    augmenting: int,
) -> list[Said]:
    """An answer, cut where another model goes on.

    Args:
        tokenizer: The anchor's.
        ids: The tokens of the answer.
        speakers: Who said each of them.
        augmenting: How many augmenting models there are.
    """
    whole = tokenizer.decode(list(ids), skip_special_tokens=True)
    said: list[Said] = []
    start = 0
    for end, speaker in _runs(speakers):
        # Decoded from the first token on; a character belongs to whoever says its last byte.
        text = tokenizer.decode(list(ids[:end]), skip_special_tokens=True)
        length = len(whole if end == len(ids) else text.rstrip(_INCOMPLETE))
        if length > start:
            said.append(Said(speaker_name(speaker, augmenting), whole[start:length]))
            start = length
    return said


def cut(said: Sequence[Said], length: int) -> list[Said]:
    """The first characters of an answer."""
    kept: list[Said] = []
    for each in said:
        if length > 0:
            kept.append(Said(each.speaker, each.text[:length]))
        length -= len(each.text)
    return kept


def marked(said: Sequence[Said]) -> str:
    """An answer with every speaker's name before its words: `[anchor]10+[augmenting]22`."""
    return "".join(f"[{each.speaker}]{each.text}" for each in said)


def _runs(speakers: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Where every run of one speaker ends, and who it is."""
    for end in range(1, len(speakers) + 1):
        if end == len(speakers) or speakers[end] != speakers[end - 1]:
            yield end, speakers[end - 1]
