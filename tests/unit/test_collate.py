"""From texts to tensors: what is learnt, what is padding, and what the tokenizer is shown."""

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from calm_lightning.collate import IGNORED, Batch, Collator, Row, check_fits, pad_left, pad_right
from calm_lightning.collate import tokenize as cut
from calm_lightning.contracts import CalmError, Example
from calm_lightning.language_model import PlainModel
from calm_lightning.testing import tiny_backbone, tiny_tokenizer
from calm_lightning.testing.tokenizers import text_tokenizer


@pytest.fixture(scope="module")
def letters() -> PreTrainedTokenizerFast:
    """One token a character; no token of its own at the start or the end."""
    return tiny_tokenizer()


def joining(start: bool = False, end: bool = False) -> PreTrainedTokenizerFast:
    """A tokenizer that joins `a` and `b` into one token wherever they meet."""
    words = {"[s]": 0, "[e]": 1, "a": 2, "b": 3, "ab": 4, "c": 5}
    tokenizer = Tokenizer(models.BPE(words, [("a", "b")]))
    tokenizer.decoder = decoders.Fuse()
    if start or end:
        single = f"{'[s] ' if start else ''}$A{' [e]' if end else ''}"
        special = [(token, words[token]) for token in ("[s]", "[e]")]
        tokenizer.post_processor = processors.TemplateProcessing(
            single=single, special_tokens=special
        )
    tokenizer.pre_tokenizer = pre_tokenizers.Split("\n", "isolated")
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="[s]", eos_token="[e]")


def test_the_loss_is_on_the_target_and_its_end_only(letters: PreTrainedTokenizerFast) -> None:
    rows = cut(letters, ["12+3=", "4="], ["15", "4"])
    batch = pad_right(rows, pad_id=0)
    for i, (prompt, target) in enumerate([("12+3=", "15"), ("4=", "4")]):
        learnt = batch["labels"][i][batch["labels"][i] != IGNORED]
        assert letters.decode(learnt) == target + "<eos>"
        places = (batch["labels"][i] != IGNORED).nonzero().flatten()
        assert places.tolist() == list(range(len(prompt), len(prompt) + len(target) + 1))
        assert torch.equal(batch["input_ids"][i, places], learnt)
    assert (batch["labels"][batch["attention_mask"] == 0] == IGNORED).all()


def test_the_end_is_learnt_only_where_the_text_ends(letters: PreTrainedTokenizerFast) -> None:
    rows = cut(letters, ["a", "b", "c"], ["x", "y", "z"], ends=[True, False, True])
    assert [letters.eos_token_id in row.ids for row in rows] == [True, False, True]
    assert [row.ids[-1] == letters.eos_token_id for row in rows] == [True, False, True]
    assert not any(letters.eos_token_id in row.ids for row in cut(letters, ["a"], ["x"], False))


def test_the_prompt_is_tokenized_as_in_generation() -> None:
    tokenizer = joining(start=True, end=True)
    (asked,) = cut(tokenizer, ["ca"])
    (learnt,) = cut(tokenizer, ["ca"], ["bc"])
    assert asked.ids == [0, 5, 2]  # [s] c a: the text may go on, so no [e]
    assert learnt.ids == [0, 5, 2, 3, 5, 1]  # [s] c a b c [e], though the tokenizer would write ab
    assert learnt.prompt_length == 3
    (apart,) = cut(tokenizer, ["c"], ["abc"])
    assert apart.ids == [0, 5, 4, 5, 1]


def test_an_empty_prompt_learns_the_whole_text(letters: PreTrainedTokenizerFast) -> None:
    (row,) = cut(letters, [""], ["abc"], ends=False)
    # Without a token to begin with, the one between texts is given, or `a` would follow nothing.
    assert row.ids[0] == letters.eos_token_id
    assert (row.prompt_length, len(row.ids)) == (1, 1 + 3)
    (begun,) = cut(joining(start=True), [""], ["abc"], ends=False)
    assert begun.ids == [0, 4, 5]
    assert begun.prompt_length == 1  # its first token is given, so every letter is learnt


def test_prompts_end_together_and_examples_start_together() -> None:
    rows = [Row([5, 6, 7], 2), Row([8], 1)]
    left, right = pad_left(rows, pad_id=9), pad_right(rows, pad_id=9)
    assert left["input_ids"].tolist() == [[5, 6, 7], [9, 9, 8]]
    assert left["attention_mask"].tolist() == [[1, 1, 1], [0, 0, 1]]
    assert right["input_ids"].tolist() == [[5, 6, 7], [8, 9, 9]]
    assert right["attention_mask"].tolist() == [[1, 1, 1], [1, 0, 0]]
    assert right["labels"].tolist() == [[IGNORED, IGNORED, 7], [IGNORED] * 3]
    assert "labels" not in left


def test_rows_that_do_not_fit_are_counted_and_the_first_longest_named() -> None:
    rows = [Row([1] * 4, 2), Row([1] * 9, 2), Row([1] * 7, 2)]
    check_fits(rows, 9, "small")
    check_fits(rows, None, "endless")
    with pytest.raises(CalmError, match="Row 1 needs 9 tokens, but the context of 'small' holds 6; "
                       "2 of 3 rows"):  # fmt: skip
        check_fits(rows, 6, "small")
    with pytest.raises(CalmError, match=r"needs 13 tokens \(9 of the text, 4 to be"):
        check_fits(rows, 10, "small", new_tokens=4)


def test_the_collator_keeps_the_examples_beside_their_tensors() -> None:
    model = PlainModel(tiny_backbone(tokenizer=tiny_tokenizer()), lambda folder: None)
    examples = [Example("1+2=", "3"), Example("", "abc", ends=False)]
    batch = Collator(model.encode)(examples)
    assert isinstance(batch, Batch)
    assert len(batch) == 2
    assert batch.examples is examples
    eos = tiny_tokenizer().eos_token_id
    assert [eos in row.tolist() for row in batch.inputs["labels"]] == [True, False]


@pytest.mark.parametrize("kind", ["sentencepiece_bpe", "unigram", "byte_bpe", "characters"])
@pytest.mark.parametrize(
    ("prompt", "target"),
    [("The quick brown f", "ox jumps"), ("The dog", " says it"), ("it", "'s"), ("The", "y go")],
)
def test_no_space_comes_between_a_prompt_and_its_target(
    kind: str, prompt: str, target: str
) -> None:
    tokenizer = text_tokenizer(kind)

    def said(ids: list[int]) -> str:
        return str(tokenizer.decode(ids, skip_special_tokens=True))

    (row,) = cut(tokenizer, [prompt], [target], ends=False)
    assert said(row.ids) == said(row.ids[: row.prompt_length]) + target
    (alone,) = cut(tokenizer, [prompt])
    assert row.ids[: row.prompt_length] == alone.ids
