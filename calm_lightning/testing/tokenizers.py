"""Small tokenizers of every kind, trained here: for models that do not share theirs.

They differ in all that tells real tokenizers apart: words by a regular expression or none, bytes or
characters, merges or a unigram model, what becomes of spaces and of unknown characters, and
normalizers.
"""

import json
import math
from collections import Counter
from collections.abc import Callable
from functools import cache
from typing import Any

from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)
from transformers import PreTrainedTokenizerFast

SENTENCES = (
    "The quick brown fox jumps over the lazy dog; it's 1,024 years old, isn't it?",
    "We'll say: \"they'd've gone\" -- and then... 3.14159 + 42 = 45.14159!\n\tIndented text.",
    "Съешь же ещё этих мягких французских булок, да выпей чаю. Год 2024.",
    "Ξεσκεπάζω την ψυχοφθόρα βδελυγμία· τί εἶναι αὐτό;",
    "敏捷的棕色狐狸跳过了懒狗。今天天气很好\uff0c我们去公园散步吧\uff01",
    "いろはにほへと ちりぬるを。カタカナも漢字も使います。",
    "키스의 고유조건은 입술끼리 만나야 하고 특별한 기술은 필요치 않다.",
    "نص حكيم له سر قاطع وذو شأن عظيم مكتوب على ثوب أخضر. ١٢٣",
    "דג סקרן שט בים מאוכזב ולפתע מצא חברה.",
    "ऋषियों को सताने वाले दुष्ट राक्षसों के राजा रावण का सर्वनाश।",
    "เป็นมนุษย์สุดประเสริฐเลิศคุณค่า กว่าบรรดาฝูงสัตว์เดรัจฉาน",
    "Zażółć gęślą jaźń. Ångström, naïve façade, Straße. Cafe\u0301 de\u0301ja\u0300.",
    "Emoji: 👍🏽 👨‍👩‍👧 🎉🎉 ok 🇪🇺! x² ½ ﬁ Ⅳ \uff0c。",
    "def f(x):\n    return x  # comment\n\n\nprint(f(10))  \n",
)
"""In a dozen scripts; the tokenizers are trained on them."""

_GPT4 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_SPECIAL = ["<s>", "</s>", "<unk>"]
_VOCAB = 700


def _byte_bpe() -> Tokenizer:
    """As GPT-2: bytes, words by its regular expression."""
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    made.post_processor = processors.ByteLevel(trim_offsets=True)
    return _trained(made, trainers.BpeTrainer(**_byte_options()))


def _byte_bpe_split() -> Tokenizer:
    """As GPT-4 and Llama 3: bytes, words by a longer regular expression, NFC."""
    made = Tokenizer(models.BPE())
    made.normalizer = normalizers.NFC()
    made.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_GPT4), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    made.decoder = decoders.ByteLevel()
    return _trained(made, trainers.BpeTrainer(**_byte_options()))


def _sentencepiece_bpe() -> Tokenizer:
    """As Llama 2: characters, spaces as a letter, no words, unknown characters as bytes."""
    made = Tokenizer(models.BPE())
    made.normalizer = normalizers.Sequence(
        [normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")]
    )
    made.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="never")
    fallback = [f"<0x{byte:02X}>" for byte in range(256)]
    options: dict[str, Any] = {
        "vocab_size": _VOCAB,
        "special_tokens": [*_SPECIAL, *fallback],
        "initial_alphabet": _frequent_characters(90),
        "limit_alphabet": 90,
    }
    trained = _trained(made, trainers.BpeTrainer(show_progress=False, **options))
    state = json.loads(trained.to_str())
    state["model"] |= {"byte_fallback": True, "unk_token": "<unk>", "fuse_unk": True}
    # Bytes are text, not special tokens.
    state["added_tokens"] = [t for t in state["added_tokens"] if t["content"] in _SPECIAL]
    made = Tokenizer.from_str(json.dumps(state))
    made.pre_tokenizer = None
    made.decoder = decoders.Sequence(
        [
            decoders.Replace("\u2581", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    made.post_processor = processors.TemplateProcessing("<s> $A", special_tokens=[("<s>", 0)])
    return made


def _unigram() -> Tokenizer:
    """As T5 and XLM-R: a unigram model over words that begin with their space, NFKC."""
    made = Tokenizer(models.BPE())
    made.normalizer = normalizers.Sequence(
        [normalizers.Nmt(), normalizers.NFKC(), normalizers.Replace(Regex(" {2,}"), " ")]
    )
    made.pre_tokenizer = pre_tokenizers.Metaspace()
    made.model = _unigram_of(_counted_pieces(made))
    made.decoder = decoders.Metaspace()
    made.add_special_tokens(_SPECIAL)
    made.post_processor = processors.TemplateProcessing("$A </s>", special_tokens=[("</s>", 1)])
    return made


def _unigram_whole() -> Tokenizer:
    """A unigram model over the whole text: its pieces may hold spaces."""
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.Metaspace(split=False)
    made.model = _unigram_of(_counted_pieces(made))
    made.decoder = decoders.Metaspace()
    made.add_special_tokens(_SPECIAL)
    return made


def _wordpiece() -> Tokenizer:
    """As BERT: lower case without accents, words by spaces and punctuation."""
    made = Tokenizer(models.BPE())
    made.normalizer = normalizers.BertNormalizer()
    made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    pieces = list(_counted_pieces(made))
    vocabulary = [*_SPECIAL, *pieces, *(f"##{piece}" for piece in pieces)]
    made.model = models.WordPiece({t: i for i, t in enumerate(vocabulary)}, unk_token="<unk>")
    made.decoder = decoders.WordPiece(cleanup=False)
    made.add_special_tokens(_SPECIAL)
    made.post_processor = processors.TemplateProcessing(
        "<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 1)]
    )
    return made


def _characters() -> Tokenizer:
    """A token for each character that it knows."""
    known = sorted(set("".join(SENTENCES[:6])))
    vocabulary = {token: index for index, token in enumerate([*_SPECIAL, *known])}
    made = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    made.decoder = decoders.Fuse()
    return made


def _byte_bpe_added() -> Tokenizer:
    """As chat models have it: like GPT-2, with further tokens that are matched in the raw text."""
    made = _byte_bpe()
    made.add_special_tokens([AddedToken("<|im_start|>", special=True)])
    made.add_tokens([AddedToken("fox jumps"), AddedToken("<pad>", lstrip=True)])
    made.add_tokens([AddedToken("12", single_word=True)])
    return made


def _byte_options() -> dict[str, Any]:
    return {
        "vocab_size": _VOCAB,
        "special_tokens": _SPECIAL,
        "initial_alphabet": pre_tokenizers.ByteLevel.alphabet(),
        "show_progress": False,
    }


def _frequent_characters(number: int) -> list[str]:
    """The most frequent characters of the sentences; of equally frequent ones the first."""
    counts = Counter("".join(SENTENCES).replace(" ", "\u2581"))
    return sorted(counts, key=lambda character: (-counts[character], character))[:number]


def _counted_pieces(made: Tokenizer) -> dict[str, int]:
    """Pieces of the sentences, and how often each occurs, found by merging.

    The trainers of unigram and WordPiece models go through a hash table, so they make another
    model in every process; that of merges does not.

    Args:
        made: A tokenizer with an empty BPE model; it is trained.
    """
    options: dict[str, Any] = {"vocab_size": _VOCAB, "max_token_length": 4, "show_progress": False}
    _trained(made, trainers.BpeTrainer(**options))
    counts = Counter(token for text in SENTENCES for token in made.encode(text).tokens)
    return {token: counts[token] for token in sorted(made.get_vocab())}


def _unigram_of(pieces: dict[str, int]) -> models.Unigram:
    """A unigram model in which a piece is as likely as it is frequent."""
    total = sum(pieces.values())
    scores = [(piece, math.log((count + 0.1) / total)) for piece, count in pieces.items()]
    return models.Unigram([*((token, 0.0) for token in _SPECIAL), *scores], unk_id=2)


def _trained(made: Tokenizer, trainer: Any) -> Tokenizer:
    made.train_from_iterator(SENTENCES * 3, trainer)
    return made


_MAKERS: dict[str, Callable[[], Tokenizer]] = {
    "byte_bpe": _byte_bpe,
    "byte_bpe_split": _byte_bpe_split,
    "byte_bpe_added": _byte_bpe_added,
    "sentencepiece_bpe": _sentencepiece_bpe,
    "unigram": _unigram,
    "unigram_whole": _unigram_whole,
    "wordpiece": _wordpiece,
    "characters": _characters,
}
TOKENIZERS = tuple(_MAKERS)
"""Kinds of tokenizers that `text_tokenizer` makes."""


@cache
def spelling_tokenizer(size: int) -> PreTrainedTokenizerFast:
    """A tokenizer of so few characters, a token for each: spaces, letters, marks and digits.

    Args:
        size: Number of ids, at most 26.

    Raises:
        ValueError: If there are not so many characters.
    """
    characters = " a.b1,c-de2;fg!hi3:jk?lm4(n"[:size]
    if len(characters) < size:
        raise ValueError(f"size={size} must be at most {len(characters)}.")
    made = Tokenizer(models.WordLevel({c: i for i, c in enumerate(characters)}, unk_token=" "))
    made.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    made.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(tokenizer_object=made, clean_up_tokenization_spaces=False)


@cache
def text_tokenizer(kind: str) -> PreTrainedTokenizerFast:
    """A small tokenizer of one kind; see `TOKENIZERS`. The same call gives the same object.

    Raises:
        KeyError: If there is no such kind.
    """
    return PreTrainedTokenizerFast(
        tokenizer_object=_MAKERS[kind](),
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        pad_token="</s>",
        clean_up_tokenization_spaces=False,
    )
