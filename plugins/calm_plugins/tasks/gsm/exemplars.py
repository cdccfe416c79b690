"""Worked examples to put before a question: our own, or those of a file.

The published ones of MGSM are read from their file (`mgsm/exemplars.py` of google-research/url-nlp)
and are not part of this repository. Ours are four other problems, in all languages of MGSM.
"""

import ast
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from calm_lightning.contracts import CalmError
from calm_plugins.tasks.gsm.our_exemplars import ANSWERS, QUESTIONS
from calm_plugins.tasks.gsm.problems import Problem, read_problems
from calm_plugins.tasks.gsm.prompts import Prompts
from calm_plugins.tasks.reading import expand, normal_form, read_text

OURS = "ours"
_PUBLISHED = "MGSM_EXEMPLARS"


def read_exemplars(
    source: str, prompts: Prompts, language: str, shots: int, asked: Sequence[Problem]
) -> list[tuple[str, str]]:
    """Prompts and targets to put before a question: the first `shots` of the source.

    Args:
        source: `ours`; a file of problems with solutions; or MGSM's published `exemplars.py`,
            which is read and not run, and whose exemplars stand as they are.
        prompts: Writes the exemplars of the first two.
        language: Of the questions, two letters.
        shots: How many.
        asked: The questions; a problem that is among them is passed over.

    Raises:
        CalmError: If the source cannot be read or has too few.
    """
    if shots == 0:
        return []
    taken = {normal_form(problem.question) for problem in asked}
    if source.endswith(".py"):
        exemplars = _published(expand(source), prompts, language)
    else:
        problems = (
            ours(language, prompts.style) if source == OURS else read_problems(expand(source))
        )
        exemplars = [
            (prompts.prompt(problem), prompts.target(problem))
            for problem in problems
            if problem.solution and normal_form(problem.question) not in taken
        ]
    if len(exemplars) < shots:
        raise CalmError(
            f"{shots} exemplars in the language {language!r} are wanted, but {source} has "
            f"{len(exemplars)} with solutions that are not asked. Ask for fewer shots, or name a "
            "file with more: GSM8K's train.jsonl, or MGSM's exemplars.py."
        )
    return exemplars[:shots]


def ours(language: str, style: str) -> list[Problem]:
    """Our own four problems, worked in the language that the style answers in."""
    if style == "gsm8k":
        language = "en"
    questions = QUESTIONS.get(language, ())
    worked = QUESTIONS["en"] if style == "english" else questions
    return [
        Problem(question, answer, solution, language)
        for (question, _), (_, solution), answer in zip(questions, worked, ANSWERS, strict=False)
    ]


def _published(file: Path, prompts: Prompts, language: str) -> list[tuple[str, str]]:
    text = read_text(file)
    try:
        found: dict[str, Any] = next(
            ast.literal_eval(node.value)
            for node in ast.parse(text).body
            if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == _PUBLISHED
        )
        asked = found[language]
        worked = found["en"] if prompts.style == "english" else asked
        pairs = [(asked[each]["q"], worked[each]["a"]) for each in asked]
        if not all(isinstance(text, str) for pair in pairs for text in pair):
            raise TypeError("q and a are texts")
    except (
        SyntaxError, StopIteration, ValueError, TypeError, KeyError, RecursionError, MemoryError,
    ) as error:  # fmt: skip
        raise CalmError(
            f"{file} is not MGSM's exemplars.py: {_PUBLISHED} with q and a for the language "
            f"{language!r} is expected ({type(error).__name__}: {error})."
        ) from None
    return [(f"{question}\n", answer) for question, answer in pairs]
