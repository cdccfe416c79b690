"""The law of settling: what of a text is settled is tokenized alike in every continuation."""

import json
import unicodedata
import zlib
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import pytest
from hypothesis import Phase, given, seed, settings
from hypothesis import strategies as st
from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

import calm_lightning.settling
from calm_lightning.boundaries import Words
from calm_lightning.contracts import CalmError
from calm_lightning.settling import Settling
from calm_lightning.testing.tokenizers import SENTENCES, TOKENIZERS, text_tokenizer

Patch = pytest.MonkeyPatch

# ---------------------------------------------------------------- texts

CHUNKS = [s[i : i + n] for s in SENTENCES for n in (1, 4, 9) for i in range(0, len(s), 5)]
"""Parts of sentences in a dozen scripts."""

TRICKY = [
    *("", " ", "  ", "   ", "\n", "\n\n", " \n", "\r\n", "\r", "\t", "\x0b", "\x1c", "\x7f"),
    *("\u00a0", "\u2028", "\u3000", "\u200b", "\u200d", "\ufeff", "\u00ad"),  # blank, or nothing
    *(
        "'",
        "'s",
        "'ll",
        "'ve",
        "'S",
        "'\u017f",
        "\u2019s",
        "it's",
        '"',
        "``",
        "''",
        "...",
        "\u2026",
    ),
    *("1", "12", "123", "1234567", "1,024", "\u0661\u0662", "\u00b2", "\u2160", "\u3007", "\uff11"),
    *("a", "A", "the", " the", "The", "x" * 101, "\u01c5", "\U00010437", "\u212a", "\ufb01"),
    *("e\u0301", "\u0301", "o\u0323\u0302", "=\u0338", "1\ufe0f\u20e3", "\u0e33", "\u0915\u094d"),
    *("\uac00", "\uac00\u11a8", "\u1100\u1161", "\u11a8", "\u3131"),  # Hangul, whole and in letters
    *("\U0001f468\u200d\U0001f469\u200d\U0001f467", "\U0001f44d\U0001f3fd", "\U0001f1ea\U0001f1fa"),
    *(".", "/", "//", ".\n/", "_", "-", "<", ">", "|", "\u203f", "\U0001f150", "\ufffd", "\u2581"),
    *("<|im_start|>", "<|im_", "fox jumps", "fox ", "Fox Jumps", "<pad>", " <pad>", "<pad> "),
    *("<mask>", " <mask> ", "<s>", "</s>", "<|end|>", "<|end|>\n", "<table>", "<0x41>", "12 "),
]
"""What tokenizers are known to treat in ways of their own."""

TEXTS = st.lists(st.sampled_from(CHUNKS + 2 * TRICKY), max_size=8).map("".join)


def scripts(texts: Sequence[str]) -> set[str]:
    """The scripts of the letters of some texts."""
    letters = {c for text in texts for c in text if c.isalpha()}
    return {unicodedata.name(letter, "").partition(" ")[0] for letter in letters}


# ---------------------------------------------------------------- the law


def check_law(settling: Settling, text: str) -> None:
    """What is settled in a beginning of a text is tokenized there as it is in the text."""
    ids, ends = settling.tokenize(text)
    limits = settling.limits(text)
    assert len(limits) == len(text) + 1
    for cut in range(0, len(text) + 1, 1 + len(text) // 50):
        beginning, limit = text[:cut], limits[cut]
        assert limits[max(0, cut - 1)] <= limit <= cut, f"after {beginning!r}: the limit {limit}"
        if not limit:
            continue
        settled, settled_ends = settling.tokenize(beginning)
        before = [token for token in zip(settled, settled_ends, strict=True) if token[1] <= limit]
        after = [token for token in zip(ids, ends, strict=True) if token[1] <= limit]
        assert before == after, (
            f"{beginning!r}, settled up to {beginning[:limit]!r}, goes on with {text[cut:]!r}: "
            f"tokens {before} become {after}"
        )
    middle = len(text) // 2
    assert settling.limits(text[:middle]) == limits[: middle + 1], "the limit knows what follows"


def check_many(settling: Settling, examples: int, name: str) -> list[str]:
    """Check the law on so many generated texts, which depend on the name, and return them."""
    texts = []

    @seed(zlib.crc32(name.encode()))
    @settings(
        max_examples=examples,
        deadline=None,
        database=None,
        phases=(Phase.generate, Phase.shrink),
        print_blob=False,
    )
    @given(TEXTS)
    def law(text: str) -> None:
        texts.append(text)
        check_law(settling, text)

    law()
    return texts


@pytest.mark.parametrize("kind", TOKENIZERS)
def test_what_is_settled_stays_in_every_continuation(kind: str) -> None:
    """On 10,000 texts in all, in at least eight scripts each time."""
    texts = check_many(Settling(text_tokenizer(kind), kind), 10_000 // len(TOKENIZERS), kind)
    assert len(texts) >= 10_000 // len(TOKENIZERS)
    assert len(scripts(texts)) >= 8


def lag(kind: str, text: str) -> int:
    """How many characters at most wait for what follows them."""
    limits = Settling(text_tokenizer(kind), kind).limits(text)
    return max(n - limit for n, limit in enumerate(limits))


@pytest.mark.parametrize("kind", TOKENIZERS)
def test_a_word_is_settled_once_the_next_one_has_begun(kind: str) -> None:
    """Nothing breaks the law that never settles anything."""
    assert lag(kind, "The dog says that 12 cats sleep") <= len(" says") + 1


@pytest.mark.parametrize(
    ("kind", "text", "longest"),
    [
        ("characters", "เป็นมนุษย์สุดประเสริฐเลิศคุณค่า", 0),
        ("sentencepiece_bpe", "敏捷的棕色狐狸跳过了懒狗", 0),
        ("unigram", "敏捷的棕色狐狸跳过了懒狗", 3),
        ("unigram", "เป็นมนุษย์สุดประเสริฐเลิศคุณค่า", 15),
        ("wordpiece", "敏捷的棕色狐狸跳过了懒狗", 1),
    ],
)
def test_without_spaces_a_text_is_settled_where_no_piece_goes_on(
    kind: str, text: str, longest: int
) -> None:
    assert lag(kind, text) <= longest


# ---------------------------------------------------------------- other tokenizers of real models

ENDINGS = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
WORDS = r"[^\r\n\p{L}\p{N}]?\p{L}+"
REST = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
UPPER, LOWER = r"\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}", r"\p{Ll}\p{Lm}\p{Lo}\p{M}"
O200K = (
    rf"[^\r\n\p{{L}}\p{{N}}]?[{UPPER}]*[{LOWER}]+{ENDINGS}?"
    rf"|[^\r\n\p{{L}}\p{{N}}]?[{UPPER}]+[{LOWER}]*{ENDINGS}?"
    r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
DEEPSEEK = (
    r"\p{N}{1,3}",
    r"[\u4e00-\u9fa5\u3040-\u309f\u30a0-\u30ff]+",
    r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"
    r"| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
)
CLIP = (
    r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
)


def _split(*patterns: str) -> pre_tokenizers.PreTokenizer:
    steps = [pre_tokenizers.Split(Regex(pattern), "isolated") for pattern in patterns]
    return pre_tokenizers.Sequence([*steps, pre_tokenizers.ByteLevel(False, use_regex=False)])


def _train(
    made: Tokenizer, parts: dict[str, Any], trainer: Any, added: Sequence[AddedToken]
) -> Any:
    for name, part in parts.items():
        setattr(made, name, part)
    made.train_from_iterator(SENTENCES * 3, trainer)
    for token in added:
        made.add_tokens([token])
    return made


def _bytes(*added: AddedToken, suffix: str | None = None, **parts: Any) -> Tokenizer:
    """Byte-level BPE."""
    options: dict[str, Any] = {} if suffix is None else {"end_of_word_suffix": suffix}
    trainer = trainers.BpeTrainer(
        vocab_size=700,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
        **options,
    )
    return _train(Tokenizer(models.BPE(**options)), parts, trainer, added)


def _characters(*added: AddedToken, **parts: Any) -> Tokenizer:
    """BPE over characters, with a token for unknown ones."""
    trainer = trainers.BpeTrainer(vocab_size=700, special_tokens=["<unk>"], show_progress=False)
    return _train(Tokenizer(models.BPE(unk_token="<unk>")), parts, trainer, added)


def _pieces(*added: AddedToken, **parts: Any) -> Tokenizer:
    """BPE over whole texts with spaces as letters, unknown characters as bytes."""
    trainer = trainers.BpeTrainer(
        vocab_size=1100,
        special_tokens=["<unk>", *(f"<0x{byte:02X}>" for byte in range(256))],
        limit_alphabet=90,
        show_progress=False,
    )
    whole = {"normalizer": normalizers.Replace(" ", "\u2581")}
    state = json.loads(_train(Tokenizer(models.BPE()), whole, trainer, ()).to_str())
    state["model"] |= {"byte_fallback": True, "unk_token": "<unk>", "fuse_unk": True}
    state["added_tokens"] = []
    made = Tokenizer.from_str(json.dumps(state))
    for name, part in parts.items():
        setattr(made, name, part)
    made.add_tokens(list(added))
    return made


def _unigram(*steps: Any, pre_tokenizer: Any) -> Tokenizer:
    trainer = trainers.UnigramTrainer(
        vocab_size=700, special_tokens=["<unk>"], unk_token="<unk>", show_progress=False
    )
    parts = {"normalizer": normalizers.Sequence(list(steps)), "pre_tokenizer": pre_tokenizer}
    return _train(Tokenizer(models.Unigram()), parts, trainer, ())


def _single(normalizer: Any, *added: AddedToken) -> Tokenizer:
    """A token for each character."""
    known = sorted(set("".join(SENTENCES[:6])))
    vocabulary = {token: index for index, token in enumerate(["<unk>", *known])}
    made = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    made.normalizer = normalizer
    made.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    made.add_tokens(list(added))
    return made


def _whole_words_first() -> Tokenizer:
    state = json.loads(_bytes(pre_tokenizer=_split(f"{ENDINGS}|{WORDS}|{REST}")).to_str())
    state["model"]["ignore_merges"] = True
    return Tokenizer.from_str(json.dumps(state))


def _short_words() -> Tokenizer:
    """WordPiece that takes every word of more than twelve characters for one unknown token."""
    trainer = trainers.WordPieceTrainer(special_tokens=["<unk>"], show_progress=False)
    made = Tokenizer(models.WordPiece(unk_token="<unk>", max_input_chars_per_word=12))
    parts = {
        "normalizer": normalizers.BertNormalizer(),
        "pre_tokenizer": pre_tokenizers.BertPreTokenizer(),
    }
    # Without their accents, and in small letters, these are found in the normalized text.
    added = AddedToken("Fox Jumps"), AddedToken("<mask>", lstrip=True, special=True)
    return _train(made, parts, trainer, added)


def _llama(*steps: Any) -> Any:
    return normalizers.Sequence(
        [*steps, normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")]
    )


CONSTRUCTIONS: dict[str, Callable[[], Tokenizer]] = {
    "gpt_4o": lambda: _bytes(pre_tokenizer=_split(O200K)),
    "qwen2": lambda: _bytes(
        normalizer=normalizers.NFC(), pre_tokenizer=_split(rf"{ENDINGS}|{WORDS}|\p{{N}}|{REST}")
    ),
    "deepseek_v3": lambda: _bytes(pre_tokenizer=_split(*DEEPSEEK)),
    "digits from the right": lambda: _bytes(
        pre_tokenizer=_split(rf"{WORDS}|\p{{N}}{{1,3}}(?=(?:\p{{N}}{{3}})*(?!\p{{N}}))|{REST}")
    ),
    "bloom": lambda: _bytes(pre_tokenizer=_split(r" ?[^(\s|[.,!?\u2026\u3002\uff0c\u3001])]+")),
    "falcon": lambda: _bytes(
        pre_tokenizer=pre_tokenizers.Sequence(
            [
                pre_tokenizers.Punctuation("contiguous"),
                pre_tokenizers.ByteLevel(False),
                pre_tokenizers.Digits(False),
                pre_tokenizers.Split(Regex("[0-9][0-9][0-9]"), "isolated"),
            ]
        )
    ),
    "starcoder": lambda: _bytes(
        pre_tokenizer=pre_tokenizers.Sequence(
            [pre_tokenizers.Digits(True), pre_tokenizers.ByteLevel(False)]
        )
    ),
    "roberta": lambda: _bytes(
        AddedToken("<mask>", lstrip=True, special=True),
        pre_tokenizer=pre_tokenizers.ByteLevel(add_prefix_space=True),
        post_processor=processors.ByteLevel(trim_offsets=True),
    ),
    "gpt_neox": lambda: _bytes(
        *(AddedToken(" " * n, normalized=True) for n in range(2, 6)),
        normalizer=normalizers.NFC(),
        pre_tokenizer=pre_tokenizers.ByteLevel(False),
    ),
    "clip": lambda: _bytes(
        suffix="</w>",
        normalizer=normalizers.Sequence(
            [normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()]
        ),
        pre_tokenizer=pre_tokenizers.Sequence(
            [
                pre_tokenizers.Split(Regex(CLIP), "removed", invert=True),
                pre_tokenizers.ByteLevel(False, use_regex=False),
            ]
        ),
    ),
    "ignore_merges": _whole_words_first,
    "a pattern that looks ahead": lambda: _bytes(
        pre_tokenizer=_split(r"\p{L}+ ?(?=the)|\p{L}+| ?[^\s\p{L}]+|\s+")
    ),
    "words and the rest": lambda: _characters(pre_tokenizer=pre_tokenizers.Whitespace()),
    "punctuation": lambda: _characters(
        normalizer=normalizers.NFKC(),
        pre_tokenizer=pre_tokenizers.Sequence(
            [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Punctuation()]
        ),
    ),
    "gemma": lambda: _pieces(
        *(AddedToken(text, normalized=False) for text in ("\n\n", "\u2581\u2581", "<table>")),
        normalizer=normalizers.Replace(" ", "\u2581"),
        pre_tokenizer=pre_tokenizers.Split(" ", "merged_with_previous"),
    ),
    "phi3": lambda: _pieces(
        AddedToken("<|end|>", rstrip=True, special=True),
        AddedToken("<pad>", normalized=True),
        normalizer=_llama(),
    ),
    "mistral": lambda: _pieces(
        pre_tokenizer=pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    ),
    "digits apart": lambda: _pieces(
        normalizer=_llama(), pre_tokenizer=pre_tokenizers.Digits(individual_digits=True)
    ),
    "outer spaces dropped": lambda: _pieces(
        normalizer=_llama(normalizers.Strip(), normalizers.Replace(Regex(" {2,}"), " "))
    ),
    "quotation marks replaced": lambda: _pieces(
        normalizer=_llama(
            *(normalizers.Replace(a, b) for a, b in (("``", '"'), ("''", '"'), ("...", "\u2026")))
        )
    ),
    "albert": lambda: _unigram(
        normalizers.Replace("``", '"'),
        normalizers.NFKD(),
        normalizers.StripAccents(),
        normalizers.Lowercase(),
        normalizers.Replace(Regex(" {2,}"), " "),
        pre_tokenizer=pre_tokenizers.Metaspace(prepend_scheme="never"),
    ),
    "xlnet": lambda: _unigram(
        normalizers.NFKC(),
        pre_tokenizer=pre_tokenizers.Sequence(
            [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace()]
        ),
    ),
    "composed characters": lambda: _single(normalizers.NFC()),
    "small characters": lambda: _single(
        normalizers.Sequence([normalizers.Lowercase(), normalizers.Strip()]),
        AddedToken("Fox Jumps", normalized=True),
        AddedToken("<pad>", lstrip=True, rstrip=True),
        AddedToken("12", single_word=True),
    ),
    "bert": _short_words,
}


@cache
def construction(name: str) -> Settling:
    return Settling(PreTrainedTokenizerFast(tokenizer_object=CONSTRUCTIONS[name]()), name)


@pytest.mark.parametrize("name", CONSTRUCTIONS)
def test_the_law_holds_for_tokenizers_built_as_those_of_real_models(name: str) -> None:
    check_many(construction(name), 60, name)


# ---------------------------------------------------------------- planted faults


def plant(patch: Patch, name: str) -> None:
    """One fault, as it could be made in `settling` or `boundaries`."""
    tokenize, limits = Settling.tokenize, Settling.limits

    def early(self: Settling, text: str) -> list[int]:
        found = limits(self, text)
        return [*found[1:], found[-1]]

    def starts(self: Settling, text: str) -> tuple[list[int], list[int]]:
        ids, ends = tokenize(self, text)
        return ids, [0, *ends[:-1]][: len(ids)]

    faults: dict[str, tuple[type, str, Any]] = {
        "one character early": (Settling, "limits", early),
        "everything is settled": (Settling, "limits", lambda _, text: list(range(len(text) + 1))),
        "where a token begins, not where it ends": (Settling, "tokenize", starts),
        "added tokens are forgotten": (
            calm_lightning.settling._AddedTokens, "may_be", lambda *_: False
        ),
        "every word ends at a letter": (Words, "cut", lambda _, left, right: right.isalpha()),
    }  # fmt: skip
    patch.setattr(*faults[name])


@pytest.mark.parametrize(
    ("fault", "kind"),
    [
        ("one character early", "byte_bpe"),
        ("one character early", "unigram"),
        ("everything is settled", "sentencepiece_bpe"),
        ("where a token begins, not where it ends", "wordpiece"),
        ("added tokens are forgotten", "byte_bpe_added"),
        ("every word ends at a letter", "byte_bpe_split"),
    ],
)
def test_a_planted_fault_breaks_the_law(fault: str, kind: str, monkeypatch: Patch) -> None:
    plant(monkeypatch, fault)
    with pytest.raises(AssertionError, match=r"become|the limit"):
        check_many(Settling(text_tokenizer(kind), kind), 1000, kind)


# ---------------------------------------------------------------- what is refused


def refused(made: Tokenizer) -> str:
    with pytest.raises(CalmError) as caught:
        Settling(PreTrainedTokenizerFast(tokenizer_object=made), "it")
    return str(caught.value)


def test_a_tokenizer_that_does_not_say_where_its_tokens_are_is_refused() -> None:
    class Slow(PreTrainedTokenizerBase):
        backend_tokenizer = None

    with pytest.raises(CalmError, match=r"'it' \(Slow\).*augmenting_sees: prompt"):
        Settling(object.__new__(Slow), "it")


def test_a_tokenizer_that_cuts_at_random_is_refused() -> None:
    state = json.loads(text_tokenizer("byte_bpe").backend_tokenizer.to_str())
    state["model"]["dropout"] = 0.1
    assert "dropout=0.1" in refused(Tokenizer.from_str(json.dumps(state)))


def test_a_tokenizer_with_a_part_in_python_is_refused() -> None:
    class Mine:
        def pre_tokenize(self, text: Any) -> None:
            pass

    made = Tokenizer.from_str(text_tokenizer("byte_bpe").backend_tokenizer.to_str())
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=made)
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.PreTokenizer.custom(Mine())
    with pytest.raises(CalmError, match=r"written in Python.*augmenting_sees: prompt"):
        Settling(tokenizer, "it")


@pytest.mark.parametrize(
    "made",
    [
        lambda: _bytes(pre_tokenizer=pre_tokenizers.ByteLevel(False, use_regex=False)),
        lambda: _bytes(
            pre_tokenizer=pre_tokenizers.Sequence(
                [
                    pre_tokenizers.FixedLength(5),
                    pre_tokenizers.ByteLevel(False, use_regex=False),
                ]
            )
        ),
        lambda: _train(Tokenizer(models.BPE()), {}, trainers.BpeTrainer(show_progress=False), ()),
    ],
    ids=["bytes without words", "words of five letters", "unknown characters left out"],
)
def test_a_tokenizer_without_a_settled_boundary_is_refused(made: Callable[[], Tokenizer]) -> None:
    message = refused(made())
    assert "no boundary" in message
    assert "augmenting_sees: prompt" in message


def test_padding_and_truncation_left_switched_on_are_not_taken_over() -> None:
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(text_tokenizer("wordpiece").backend_tokenizer.to_str()),
        pad_token="</s>",
        padding_side="left",
    )
    tokenizer("The", padding="max_length", max_length=9, truncation=True)
    settling = Settling(tokenizer, "it")
    assert settling.first == [tokenizer.convert_tokens_to_ids("<s>")]
    text = "The quick brown fox jumps over the lazy dog"
    assert len(settling.tokenize(text)[0]) > 9
