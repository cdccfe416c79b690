"""Problems in the formats of GSM8K and MGSM.

GSM8K: JSON lines with `question` and `answer`, the worked solution and then `#### 72`. MGSM: TSV
without a header, question and number; or JSON lines as on the hub, with `answer_number`.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any

from calm_lightning.contracts import CalmError
from calm_plugins.tasks.gsm.languages import LANGUAGES
from calm_plugins.tasks.gsm.numbers import read_number
from calm_plugins.tasks.reading import describe, field, read_json_lines, read_lines, text_field

_LANGUAGE_IN_NAME = re.compile(r"[_.-]([a-z]{2})(?:\.\w+)+$")
_EXAMPLE = '{"question": "...", "answer": "48 / 2 = 24\\n#### 24"}'


@dataclass(frozen=True)
class Problem:
    """One problem.

    Attributes:
        question: What is asked.
        answer: The number as the file writes it (`1,080`), read by the language's separators; from
            JSON's numbers without an exponent.
        solution: How it is found, calculator annotations included, without the final `####`
            line; None where the file gives the number alone.
        language: Two letters.
    """

    question: str
    answer: str
    solution: str | None = None
    language: str = "en"


def read_problems(file: Path) -> list[Problem]:
    """The problems of a file: TSV by its name (`.tsv`, `.tsv.gz`), else JSON lines.

    The language is that of the field `language`, else that in the file's name (`mgsm_sw.tsv`),
    else English.

    Raises:
        CalmError: If it cannot be read, a line is malformed, or a number is another one by the
            separators of its language than by the English ones of MGSM and JSON; with file and
            line.
    """
    found = _LANGUAGE_IN_NAME.search(file.name)
    language = found[1] if found and found[1] in LANGUAGES else "en"
    is_columns = file.name.removesuffix(".gz").endswith(".tsv")
    problems = list(_read_columns(file, language) if is_columns else _read_json(file, language))
    if not problems:
        raise CalmError(f"{file} holds no problem; a line is one object such as {_EXAMPLE}.")
    return problems


def _read_columns(file: Path, language: str) -> Iterator[Problem]:
    for number, line in enumerate(read_lines(file), start=1):
        if not line.strip():
            continue
        where = f"{file}, line {number}"
        columns = line.split("\t")
        if len(columns) != 2 or not columns[0].strip():
            raise CalmError(
                f"{where}: a question and a number are expected, separated by a tab; found "
                f"{len(columns)} column{'s' if len(columns) > 1 else ''}: {line[:60]!r}."
            )
        answer = _alike(_checked(columns[1], language, where), language, where)
        yield Problem(columns[0], answer, language=language)


def _read_json(file: Path, language: str) -> Iterator[Problem]:
    for where, fields in read_json_lines(file, _EXAMPLE):
        question = text_field(fields, "question", where)
        spoken = str(fields.get("language") or language)
        answer, solution = _answer(fields, spoken, where)
        yield Problem(question, answer, solution, spoken)


def _answer(fields: dict[str, Any], language: str, where: str) -> tuple[str, str | None]:
    """The number, and the solution if there is one."""
    number = fields.get("answer_number")
    if number is not None:  # the hub's MGSM; its exemplars have solutions too
        worked = text_field(fields, "answer", where) if fields.get("answer") else None
        if isinstance(number, str):
            return _checked(number, language, where), worked
        return _json_number(number, "answer_number", language, where), worked
    if isinstance(field(fields, "answer", where), int | float):
        return _json_number(fields["answer"], "answer", language, where), None
    whole = text_field(fields, "answer", where)
    solution, mark, last = whole.rpartition("####")
    return _checked(last, language, where), solution.rstrip() if mark else None


def _json_number(number: object, name: str, language: str, where: str) -> str:
    if isinstance(number, bool) or not isinstance(number, int | float):
        raise CalmError(f"{where}: {name!r} holds {describe(number)}, not a number.")
    written = f"{Decimal(str(number)):f}"  # in full, where Python writes 1e+16
    return _alike(_checked(written, language, where), language, where)


def _alike(number: str, language: str, where: str) -> str:
    """A number that is written as in English, if it is the same one in its language."""
    read, meant = read_number(number, language), read_number(number)
    if read != meant:
        raise CalmError(
            f"{where}: the answer {number!r} is {meant} as this format writes numbers, with the "
            f"separators of English, but {read} with those of the language {language!r}, by which "
            "answers are read. Write it without separators, or with another number of decimals."
        )
    return number


def _checked(number: str, language: str, where: str) -> str:
    number = number.strip()
    if read_number(number, language) is None or len(number) > 30:
        raise CalmError(
            f"{where}: the answer is a number, or a solution that ends in `#### number`; found "
            f"{number[-40:]!r}."
        )
    return number
