"""Numbers in answers: found and read however a model writes them.

Read are ASCII and other digits (Thai, Bengali, Arabic-Indic, full-width, every decimal digit of
Unicode), thousands separators (`1,234`, `1.234`, `1'234`, `1 234`, `12,34,567`), decimals with
point or comma, currency, percent and units beside the number, negative numbers with any minus sign.
Not read are numbers in words, fractions (`3/4`) and multiples (`2 million`, `5k`).
"""

# ruff: noqa: RUF001  (other scripts are meant)

import re
from decimal import Decimal

from calm_plugins.tasks.gsm.languages import LANGUAGES

_CURRENCY = r"\\?[$€£¥₹৳฿₽₩₺₦₫₱₪]"
# What is no digit, but written in numbers. An em dash is left alone: it stands between words.
_SIGNS = str.maketrans({"−": "-", "－": "-", "﹣": "-", "–": "-", "‑": "-", "٫": ".", "٬": ",",
                        "，": ",", "．": ".", "％": "%"})  # fmt: skip
_GROUPS = re.compile(r"(?<=\d)['’\u00a0\u202f\u2009](?=\d{3}(?!\d))")
_SPACED_GROUPS = re.compile(r"(?<![\d.,])\d{1,3}(?: \d{3})+(?!\d)")
# A minus belongs to the number unless something stands before it that it could be taken from.
_NUMBER = re.compile(
    rf"(?P<minus>(?<![\dA-Za-z)\]%])-)?(?:{_CURRENCY}\s?)?"
    r"(?<![A-Za-z\d])(?P<body>\d+(?:[.,]\d+)*|(?<!\.)\.\d+)"
)
_ANNOTATION = re.compile(r"<<[^<>\n]*>>")
_BOXED = re.compile(r"\\boxed\s*\{((?:[^{}]|\{[^{}]*\})*)\}")
_PHRASE = re.compile(
    "(?:"
    + "|".join(phrase for language in LANGUAGES.values() for phrase in language.phrases)
    + r")(?:\s*[:：=—]|\s+[–-](?=\s))?",
    re.IGNORECASE,
)
_SENTENCE_END = re.compile(r"\n|[.!?।。](?:\s|$)|[।。]")


def without_annotations(text: str) -> str:
    """A solution without GSM8K's calculator annotations: `48/2 = <<48/2=24>>24` → `48/2 = 24`."""
    return _ANNOTATION.sub("", text)


def read_number(text: str, language: str = "en") -> Decimal | None:
    """The first number in a text.

    Args:
        text: Such as `$1,234.50 a day`.
        language: Two letters; in German, say, `1.234` has a thousands separator.
    """
    found = _numbers(text, language)
    return found[0] if found else None


def final_number(text: str, language: str = "en") -> Decimal | None:
    r"""The number that an answer ends up with; None if it holds none.

    It is the first one in the line after the last `####`; else in the last `\boxed{}`; else after
    the last "the answer is", in any language of MGSM, up to the end of the sentence; else the last
    number of all. In a box and in a sentence it is the one after the last `=`.

    Args:
        text: What a model said.
        language: Two letters, for separators.
    """
    text = without_annotations(text)
    _, mark, rest = text.rpartition("####")
    if mark and (found := read_number(rest.partition("\n")[0], language)) is not None:
        return found
    marked = [match[1] for match in _BOXED.finditer(text)][-1:]
    phrases = list(_PHRASE.finditer(text))
    if phrases:
        rest = text[phrases[-1].end() :].lstrip()
        end = _SENTENCE_END.search(rest)
        marked.append(rest[: end.start()] if end else rest)
    for part in marked:
        found = read_number(part.rpartition("=")[2], language)
        found = read_number(part, language) if found is None else found
        if found is not None:
            return found
    found_all = _numbers(text, language)
    return found_all[-1] if found_all else None


def _numbers(text: str, language: str) -> list[Decimal]:
    # LaTeX writes {,} between thousands. Digits of every script are digits to re and Decimal.
    text = text.translate(_SIGNS).replace("{,}", ",")
    text = _GROUPS.sub("", text)
    comma = language in LANGUAGES and LANGUAGES[language].decimal_comma
    if comma:
        text = _SPACED_GROUPS.sub(lambda match: match[0].replace(" ", ""), text)
    values = []
    for match in _NUMBER.finditer(text):
        value = _value(match["body"], comma)
        if value is not None:
            values.append(-value if match["minus"] else value)
    return values


def _value(body: str, decimal_comma: bool) -> Decimal | None:
    separators = re.findall("[.,]", body)
    if not separators:
        return Decimal(body)
    last = separators[-1]
    whole, _, rest = body.rpartition(last)
    if len(set(separators)) == 2:  # two kinds: the last one is the decimal point
        if separators.count(last) > 1:
            return None
        return Decimal(f"{re.sub('[.,]', '', whole)}.{rest}")
    if len(separators) > 1:  # one kind, several times: between thousands
        return Decimal(re.sub("[.,]", "", body)) if len(rest) == 3 else None
    thousands = len(rest) == 3 and 1 <= len(whole) <= 3 and not whole.startswith("0")
    if thousands and (last == "," or decimal_comma):
        return Decimal(whole + rest)
    return Decimal(f"{whole or 0}.{rest}")
