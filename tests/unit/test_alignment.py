"""What an anchor position sees of another tokenizer's tokens, and what is refused."""

import zlib
from collections.abc import Sequence
from functools import cache
from itertools import product

import pytest
import torch
from hypothesis import Phase, given, seed, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from calm_lightning.alignment import (
    Reading,
    TextAlignment,
    positions_of,
    sees_all_before,
    share_token_ids,
    visible_tokens,
)
from calm_lightning.backbone import Backbone
from calm_lightning.contracts import CalmError
from calm_lightning.settling import Settling
from calm_lightning.testing import tiny_backbone, tiny_tokenizer
from calm_lightning.testing.tokenizers import SENTENCES, TOKENIZERS, text_tokenizer

Patch = pytest.MonkeyPatch

ANCHORS = ("byte_bpe", "sentencepiece_bpe", "unigram", "wordpiece", "characters")


@cache
def backbone(kind: str) -> Backbone:
    tokenizer = text_tokenizer(kind)
    made = tiny_backbone("llama", 8, 1, len(tokenizer), tokenizer=tokenizer, name=kind)
    made.model.config.max_position_embeddings = 1000  # it is never run
    return made


def alignment(anchor: str, augmenting: str) -> TextAlignment:
    return TextAlignment(backbone(anchor), backbone(augmenting))


def ids_of(kind: str, text: str) -> list[int]:
    return text_tokenizer(kind)(text, add_special_tokens=False)["input_ids"]


def seen(kind: str, reading: Reading, position: int) -> list[str]:
    """The tokens that an anchor position may read."""
    return text_tokenizer(kind).convert_ids_to_tokens(reading.ids[: reading.counts[position]])


# ---------------------------------------------------------------- the law


def check_law(aligned: TextAlignment, ids: Sequence[int], cut: int) -> None:
    """What a position sees is the same whether the text ends there or goes on."""
    whole, part = aligned.read(ids), aligned.read(ids[:cut])
    assert len(whole.counts) == len(ids)
    assert whole.counts == sorted(whole.counts), "a position sees less than the one before"
    assert part.counts == whole.counts[:cut], "what follows changes how much is seen"
    assert part.ids == whole.ids[: len(part.ids)], "what follows changes the tokens that are seen"
    assert part.positions == whole.positions[: len(part.ids)], "what follows changes positions"
    assert all(place < cut for place in part.positions), "a position lies beyond the text"
    assert len(part.ids) == max(part.counts, default=0), "more is read than is ever seen"


def check_many(anchor: str, augmenting: str, examples: int) -> None:
    """Check the law on random tokens of the anchor, and on sentences in its tokens."""
    aligned = alignment(anchor, augmenting)
    spoken = [ids_of(anchor, sentence) for sentence in SENTENCES]
    token = st.integers(0, len(text_tokenizer(anchor)) - 1)
    rows = st.one_of(
        st.lists(token, max_size=20),  # broken characters, special tokens, anything
        st.tuples(st.sampled_from(spoken), st.lists(token, max_size=4)).map(lambda t: t[0] + t[1]),
    )

    @seed(zlib.crc32(f"{anchor} {augmenting}".encode()))
    @settings(max_examples=examples, deadline=None, database=None, phases=[Phase.generate])
    @given(rows, st.floats(0, 1))
    def law(ids: list[int], share: float) -> None:
        check_law(aligned, ids, round(share * len(ids)))

    law()


@pytest.mark.parametrize("augmenting", TOKENIZERS)
def test_what_a_position_sees_does_not_depend_on_what_follows(augmenting: str) -> None:
    for anchor in ANCHORS:
        check_many(anchor, augmenting, 30)


@pytest.mark.parametrize("fault", ["a token early", "all at once", "ends of the wrong side"])
def test_a_planted_fault_breaks_the_law(fault: str, monkeypatch: Patch) -> None:
    read, tokenize = TextAlignment._read, Settling.tokenize

    def early(self: TextAlignment, ids: Sequence[int], settling: Settling) -> Reading:
        text, _ = self.text_of(ids)
        tokens = [*settling.first, *settling.tokenize(text)[0]]
        counts = [min(count + 1, len(tokens)) for count in read(self, ids, settling).counts]
        visible = tokens[: max(counts, default=0)]
        return Reading(visible, counts, [0] * len(visible))

    def all_at_once(self: Settling, text: str) -> list[int]:
        return list(range(len(text) + 1))

    def beginnings(self: Settling, text: str) -> tuple[list[int], list[int]]:
        ids, ends = tokenize(self, text)
        return ids, [0, *ends[:-1]][: len(ids)]

    if fault == "a token early":
        monkeypatch.setattr(TextAlignment, "_read", early)
    elif fault == "all at once":
        monkeypatch.setattr(Settling, "limits", all_at_once)
    else:
        monkeypatch.setattr(Settling, "tokenize", beginnings)
    for anchor, augmenting in (("characters", "byte_bpe"), ("byte_bpe", "wordpiece")):
        with pytest.raises(AssertionError, match="what follows"):
            check_many(anchor, augmenting, 200)


# ---------------------------------------------------------------- what is seen


def test_a_word_is_seen_when_the_next_one_begins() -> None:
    ids = ids_of("characters", "the fox, it")
    reading = alignment("characters", "byte_bpe").read(ids)
    by_end = [seen("byte_bpe", reading, t) for t in range(len(ids))]
    assert by_end[2] == []
    assert by_end[3] == by_end[6] == ["the"]
    assert "".join(by_end[7]) == "the\u0120fox"
    assert "".join(by_end[8]) == "the\u0120fox,"
    assert reading.positions[0] == 2  # the place where it ends, not where it is first seen
    assert max(reading.positions) == 7


def test_a_character_written_in_parts_counts_when_it_is_complete() -> None:
    ids = ids_of("byte_bpe", "\u6572 \u6572")
    text, ends = alignment("byte_bpe", "characters").text_of(ids)
    assert text == "\u6572 \u6572"
    assert ends[0] == 0
    assert ends[-1] == 3
    assert len(ids) > len(text)


def test_special_tokens_of_the_anchor_are_not_text() -> None:
    aligned = alignment("byte_bpe", "characters")
    start, end = (text_tokenizer("byte_bpe").convert_tokens_to_ids(t) for t in ("<s>", "</s>"))
    ids = ids_of("byte_bpe", "dog")
    plain, framed = aligned.read(ids), aligned.read([start, *ids, end])
    assert framed.ids == plain.ids
    assert framed.counts == [0, *plain.counts, plain.counts[-1]]


def test_what_the_augmenting_tokenizer_puts_first_is_seen_from_the_first_token_on() -> None:
    reading = alignment("characters", "wordpiece").read(ids_of("characters", "a b"))
    assert seen("wordpiece", reading, 2)[0] == "<s>"
    assert reading.counts[0] == 1


def test_bytes_that_are_no_character_take_back_nothing_that_was_said() -> None:
    tokenizer = text_tokenizer("sentencepiece_bpe")
    o, broken, more = (
        tokenizer.convert_tokens_to_ids(t) for t in ("<0x6F>", "<0xE4>", "\u2581the")
    )
    text, ends = alignment("sentencepiece_bpe", "characters").text_of([o, broken, broken, more])
    assert text == "othe"
    assert ends == [1, 1, 1, 4]


def test_an_empty_text_has_nothing_to_see() -> None:
    for anchor, augmenting in product(ANCHORS, TOKENIZERS):
        assert alignment(anchor, augmenting).read([]) == Reading([], [], [])


# ---------------------------------------------------------------- the prompt only


def test_as_encoder_the_prompt_is_seen_whole_from_its_last_token_on() -> None:
    aligned = TextAlignment(backbone("characters"), backbone("wordpiece"), prompt_only=True)
    ids = ids_of("characters", "the dog sat")
    reading = aligned.read(ids, prompt_length=7)
    assert reading.ids == text_tokenizer("wordpiece")("the dog")["input_ids"]
    assert reading.counts == [0] * 6 + [len(reading.ids)] * 5
    assert reading.positions == sorted(reading.positions)
    assert reading.positions[-1] == 6
    assert aligned.read(ids[:9], prompt_length=7).counts == reading.counts[:9]
    assert aligned.read(ids, prompt_length=0) == Reading([], [0] * len(ids), [])


def test_as_encoder_a_tokenizer_without_boundaries_will_do() -> None:
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel({"<unk>": 0, "the dog": 1}, unk_token="<unk>"))
    )
    whole = tiny_backbone("llama", 8, 1, 3, tokenizer=tokenizer, name="whole")
    with pytest.raises(CalmError, match=r"'whole' has no boundary.*augmenting_sees: prompt"):
        TextAlignment(backbone("characters"), whole)
    aligned = TextAlignment(backbone("characters"), whole, prompt_only=True)
    ids = ids_of("characters", "the dog sat")
    assert aligned.read(ids, prompt_length=7).ids == [1]
    assert aligned.read(ids).ids == []  # nobody knows what the prompt is


# ---------------------------------------------------------------- what is refused


def test_a_text_beyond_the_augmenting_context_is_refused() -> None:
    tokenizer = text_tokenizer("characters")
    short = tiny_backbone("llama", 8, 1, len(tokenizer), tokenizer=tokenizer, name="short")
    ids = ids_of("byte_bpe", SENTENCES[0])
    with pytest.raises(CalmError, match=rf"{len(ids)} tokens of the anchor.*'short'.*holds 64"):
        TextAlignment(backbone("byte_bpe"), short).read(ids)


def test_both_models_need_a_tokenizer() -> None:
    with pytest.raises(CalmError, match="tokenizer"):
        TextAlignment(backbone("characters"), tiny_backbone("llama", 8, 1, 37))


def test_the_anchor_must_say_what_each_token_stands_for() -> None:
    class Slow(PreTrainedTokenizerBase):
        backend_tokenizer = None

    slow = object.__new__(Slow)
    anchor = tiny_backbone("llama", 8, 1, 37, tokenizer=slow, name="slow")
    with pytest.raises(CalmError, match=r"the anchor 'slow' \(Slow\).*fast one"):
        TextAlignment(anchor, backbone("characters"))


# ---------------------------------------------------------------- equal tokenizers


def test_ids_are_shared_by_equal_tokenizers_only() -> None:
    first, again, other = (
        tiny_backbone("llama", 8, 1, vocab, tokenizer=tiny_tokenizer(vocab))
        for vocab in (37, 37, 40)
    )
    assert share_token_ids(first, again)
    assert not share_token_ids(first, other)
    bare = tiny_backbone("llama", 8, 1, 37)
    assert share_token_ids(first, bare)
    assert share_token_ids(bare, first)


def test_equal_tokenizers_need_no_text() -> None:
    mask = torch.tensor([[0, 1, 1], [1, 1, 1]])
    assert positions_of(mask, 2, 1, 2, mask.device).tolist() == [[0, 1], [1, 2]]
    visible = visible_tokens(mask, 2, 1, 2, mask.device)
    assert visible.tolist() == [
        [[False, True, False], [False, True, True]],
        [[True, True, False], [True, True, True]],
    ]
    prompt = torch.tensor([[True, True], [True, False]])
    assert visible_tokens(mask, 2, 1, 2, mask.device, prompt)[:, 1].tolist() == [
        [False, True, False],
        [True, False, False],
    ]


def test_being_causal_hides_enough_just_where_it_is_said() -> None:
    """Against the mask itself, over all paddings of three places, with and without a cache."""
    for real in product([0, 1], repeat=3):
        mask = torch.tensor([[1, 1, 1], list(real)])
        for past in (0, 1, 2):
            new = 3 - past
            visible = visible_tokens(mask, 2, past, new, mask.device)
            causal = visible_tokens(None, 2, past, new, mask.device)
            wanted = mask[:, past:].bool()  # what padding reads matters to nobody
            same = torch.equal(visible[wanted], causal[wanted])
            said = sees_all_before(mask, past, new)
            assert said <= same, (real, past)
            if past == 0 and real[0]:
                assert said == same, (real, past)
    assert sees_all_before(None, 0, 3)
    assert sees_all_before(None, 5, 1)
    assert not sees_all_before(None, 5, 2)
