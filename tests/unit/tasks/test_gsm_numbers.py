"""Promises about numbers in answers, however they are written."""

# ruff: noqa: RUF001  (other scripts are meant)

from decimal import Decimal

import pytest

from calm_plugins.tasks.gsm.languages import LANGUAGES
from calm_plugins.tasks.gsm.numbers import final_number, read_number, without_annotations


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("18", "18"), ("18.", "18"), ("18.50", "18.5"), (".5", "0.5"), ("0.125", "0.125"),
        ("1,234", "1234"), ("1,234,567", "1234567"), ("12,34,567", "1234567"), ("1,5", "1.5"),
        ("1,234.50", "1234.5"), ("1'234'567", "1234567"), ("1\u202f234", "1234"),
        ("1\u00a0234.5", "1234.5"), ("1{,}234", "1234"), ("3.125", "3.125"), ("0,125", "0.125"),
        ("$18", "18"), ("$ 18", "18"), ("-$5", "-5"), ("$-5", "-5"), ("\\$1,000", "1000"),
        ("€1.50", "1.5"), ("৳50", "50"), ("25%", "25"), ("３％", "3"), ("18 eggs", "18"),
        ("3.5km", "3.5"), ("50 m²", "50"), ("**18**", "18"),
        ("-5", "-5"), ("−5", "-5"), ("–5", "-5"), ("－５", "-5"), ("(-5)", "-5"), ("=-5", "-5"),
        ("๑๘", "18"), ("১,২৩৪", "1234"), ("١٢٣٫٥", "123.5"), ("١٬٢٣٤", "1234"), ("１８", "18"),
        ("３，０００", "3000"), ("౧౮", "18"), ("१८", "18"), ("၁၈", "18"),
    ],
)  # fmt: skip
def test_numbers_are_read_as_they_are_written(text: str, number: str) -> None:
    assert read_number(text) == Decimal(number)


@pytest.mark.parametrize(
    ("text", "language", "number"),
    [
        ("1.234", "de", "1234"), ("1.234,5", "de", "1234.5"), ("1,5", "de", "1.5"),
        ("1,234", "de", "1234"), ("0.125", "de", "0.125"), ("12 500", "fr", "12500"),
        ("1 234 567", "ru", "1234567"), ("1.234.567", "es", "1234567"), ("12 500", "en", "12"),
        ("1.234", "en", "1.234"), ("1.234", "sw", "1.234"),
    ],
)  # fmt: skip
def test_separators_are_those_of_the_language(text: str, language: str, number: str) -> None:
    assert read_number(text, language) == Decimal(number)


def test_a_minus_that_something_is_taken_from_is_no_sign() -> None:
    assert final_number("16-3") == 3
    assert final_number("๑๖-๓") == 3
    assert final_number("(2+3)-4") == 4
    assert final_number("50%-5") == 5
    assert final_number("3–5") == 5
    assert final_number("- 5 apples") == 5  # a list


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("She sells 9 eggs.\n#### 18", 18), ("#### 18\nThe answer is 7. 5 more", 18),
        ("#### $1,080.00", 1080), ("####-5", -5), ("x\n#### 2\n\nQ\n#### 3", 3),
        ("48 + 24 = 72\n#### 72\n\nCheck: 70 + 5 = 75", 72), ("#### 72 = 8 * 9", 72),
        ("So 5.\n####\n\nThen 3", 3), ("so \\boxed{x = 42} and 7", 42),
        ("so \\boxed{42} at 7 o'clock", 42), ("\\boxed{\\text{about } 12}", 12),
        ("$\\boxed{-1,000}$ 3", -1000),
        ("The answer is 18. She has 3 hens.", 18), ("The answer is: 18 dollars a day for 5", 18),
        ("The answer is 6 + 7 = 13 apples.", 13), ("The answer is 1. No, the answer is 2.", 2),
        ("The answer is 12.5.", 12.5), ("ANSWER IS 4, not 5", 4), ("Answer: 18\n5", 18),
        ("The answer is the sum. So 13", 13),
        ("9 * 2 = <<9*2=18>>18", 18), ("48/2 = <<48/2=24>>", 2),
        ("16 - 3 = 13, so 13 eggs", 13), ("vitamin B12", None), ("none at all", None), ("", None),
    ],
)  # fmt: skip
def test_the_final_number_is_the_marked_one_or_else_the_last(
    text: str, number: float | None
) -> None:
    assert final_number(text) == number


@pytest.mark.parametrize("language", LANGUAGES)
def test_the_answers_sentence_of_every_language_is_understood(language: str) -> None:
    final = LANGUAGES[language].final
    for number in ("18", "-18", "1,234"):
        said = f"3 + 4 = 7. {final.format(number)} 99 more"
        assert final_number(said, language) == int(number.replace(",", ""))
        assert final_number(said, "en") == int(number.replace(",", ""))


def test_annotations_are_taken_out_and_nothing_else() -> None:
    assert without_annotations("48/2 = <<48/2=24>>24 < 30 << 40") == "48/2 = 24 < 30 << 40"
