"""The grade-school maths task: GSM8K, MGSM, and any file in their formats.

This is the second half of section 4.2 of `LLM Augmented LLMs
<https://arxiv.org/abs/2401.02412>`_. README.md beside this file has the protocols, and where they
differ from the paper's.
"""

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal, get_args

from lightning.pytorch.utilities import rank_zero_info
from typing_extensions import override

from calm_lightning.contracts import CalmError, EvaluationSet, Example, Task
from calm_plugins.tasks.gsm.exemplars import OURS, read_exemplars
from calm_plugins.tasks.gsm.problems import Problem, read_problems
from calm_plugins.tasks.gsm.prompts import Prompts, Style
from calm_plugins.tasks.gsm.scorer import GsmAccuracy
from calm_plugins.tasks.reading import expand, normal_form
from calm_plugins.tasks.sampling import sampling


class Gsm(Task):
    """Word problems with worked answers, scored by the final number.

    A question that an evaluation set asks is never trained on, in the same words; its translation
    is not noticed.

    Args:
        train: Files of problems to learn, GSM8K's `train.jsonl` say; may be none for evaluation
            alone.
        evaluation: What is asked: files by name, or MGSM's folder, which makes a set of each
            language (`mgsm: FOLDER` becomes `mgsm.bn`, `mgsm.de`, ...).
        style: How is asked. `gsm8k`: Question, Answer, and `#### 72` at the end, in English.
            `native`: as MGSM does, in the question's language. `english`: the same with the worked
            answer in English.
        shots: Worked examples before each question.
        exemplars: Where they come from: `ours` (four, in all languages of MGSM), a file of
            problems, or MGSM's published `exemplars.py`.
        calculator: Whether worked answers keep GSM8K's annotations such as `<<48/2=24>>`.
        cue: Text after the answer's label, such as ` Let's think step by step.`
        languages: Which of a folder's languages are asked; None: all.
        limit: Ask only the first so many questions of each set.
        max_new_tokens: How long an answer may become, in tokens of the anchor.
        samples: Answers to each question. With several, the vote of the majority is scored too.
        temperature: At which answers are drawn; 0 takes the likeliest token each time.
        **task_options: `batch_size`, `seed` and the other arguments of `Task`.

    Raises:
        CalmError: If a setting makes no sense; and, when the examples are asked for, if a file is
            missing or malformed. The message names file and line.
    """

    def __init__(
        self,
        train: tuple[str, ...] = (),
        evaluation: dict[str, str] | None = None,
        style: Style = "gsm8k",
        shots: int = 0,
        exemplars: str = OURS,
        calculator: Literal["remove", "keep"] = "remove",
        cue: str = "",
        languages: tuple[str, ...] | None = None,
        limit: int | None = None,
        max_new_tokens: int = 256,
        samples: int = 1,
        temperature: float = 0.0,
        **task_options: Any,
    ) -> None:
        super().__init__(**task_options)
        if style not in get_args(Style):
            raise CalmError(f"style is {style!r}, not {' or '.join(get_args(Style))}.")
        if calculator not in ("remove", "keep"):
            raise CalmError(f"calculator is {calculator!r}, not remove or keep.")
        if shots < 0:
            raise CalmError(f"shots must not be negative: got {shots}.")
        if max_new_tokens < 1 or (limit is not None and limit < 1):
            raise CalmError(
                f"max_new_tokens={max_new_tokens} and limit={limit} must be at least 1."
            )
        self.train = (train,) if isinstance(train, str) else tuple(train)
        self.evaluation = dict(evaluation or {})
        self.style: Style = style
        self.shots, self.exemplars = shots, exemplars
        self.languages, self.limit = languages, limit
        self.max_new_tokens = max_new_tokens
        self.samples, self.generation = samples, sampling(samples, temperature)
        self.prompts = Prompts(style, calculator == "keep", cue)
        self._sets_made: list[EvaluationSet] | None = None
        self._train_made: list[Example] | None = None

    @override
    def train_examples(self) -> Sequence[Example]:
        if self._train_made is None:
            self._train_made = self._make_train()
        return self._train_made

    @override
    def evaluation_sets(self) -> Sequence[EvaluationSet]:
        if self._sets_made is None:
            asked = {name: self._questions(file) for name, file in self._files().items()}
            _say_what_is_asked_twice(asked)
            self._sets_made = [self._set(name, problems) for name, problems in asked.items()]
        return self._sets_made

    def _make_train(self) -> list[Example]:
        if not self.train:
            raise CalmError("There is nothing to train on: train is empty. Name a file.")
        problems = [each for file in self.train for each in read_problems(expand(file))]
        asked = {
            normal_form(example.meta["asked"])
            for each in self.evaluation_sets()
            for example in each.examples
        }
        learnt = [each for each in problems if normal_form(each.question) not in asked]
        if len(learnt) < len(problems):
            rank_zero_info(
                f"{len(problems) - len(learnt):,} of {len(problems):,} problems are not learnt "
                "because an evaluation set asks them."
            )
        if not learnt:
            raise CalmError(
                f"Nothing is left to train on: all {len(problems):,} problems of "
                f"{', '.join(self.train)} are asked in an evaluation set. Name another file."
            )
        return [Example(self.prompts.prompt(each), self.prompts.target(each)) for each in learnt]

    def _files(self) -> Mapping[str, Path]:
        files: dict[str, Path] = {}
        for name, path in self.evaluation.items():
            place = expand(path)
            if not place.is_dir():
                files[name] = place
                continue
            there = {file.stem.removeprefix("mgsm_"): file for file in place.glob("mgsm_??.tsv")}
            wanted = sorted(there) if self.languages is None else self.languages
            missing = [language for language in wanted if language not in there]
            if missing or not there:
                raise CalmError(
                    f"{place} has no mgsm_{missing[0] if missing else 'xx'}.tsv; it has "
                    f"{', '.join(sorted(there)) or 'no file of MGSM'}."
                )
            files |= {f"{name}.{language}": there[language] for language in wanted}
        return files

    def _questions(self, file: Path) -> list[Problem]:
        problems = read_problems(file)[: self.limit]
        mixed = sorted({problem.language for problem in problems})
        if len(mixed) > 1:
            raise CalmError(
                f"{file} holds problems in {', '.join(mixed)}. Each set has one language: cut the "
                "file into one for each."
            )
        return problems

    def _set(self, name: str, problems: Sequence[Problem]) -> EvaluationSet:
        language = problems[0].language
        before = self.prompts.before(
            read_exemplars(self.exemplars, self.prompts, language, self.shots, problems)
        )
        examples = [  # all once, then all again: validation, which takes the first, repeats none
            Example(
                before + self.prompts.prompt(problem),
                self.prompts.target(problem),
                {
                    "question": number,
                    "sample": sample,
                    "answer": problem.answer,
                    "asked": problem.question,
                },
            )
            for sample in range(self.samples)
            for number, problem in enumerate(problems)
        ]
        scorer = partial(GsmAccuracy, len(problems), self.style, language, self.samples)
        stop = self.prompts.stop(language)
        return EvaluationSet(name, examples, scorer, self.max_new_tokens, stop, self.generation)


def _say_what_is_asked_twice(asked: Mapping[str, Sequence[Problem]]) -> None:
    first: dict[str, str] = {}
    for name, problems in asked.items():
        twice = [first[key] for each in problems if (key := normal_form(each.question)) in first]
        if twice:
            rank_zero_info(
                f"{len(twice):,} questions of {name} are also in {twice[0]}: count one of the two."
            )
        first |= {normal_form(problem.question): name for problem in problems}
