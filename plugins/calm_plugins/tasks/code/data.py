"""The code task: HumanEval, MBPP, and functions described in words.

This is section 4.3 of `LLM Augmented LLMs <https://arxiv.org/abs/2401.02412>`_: HumanEval 0-shot
and MBPP 3-shot by pass@1, code-to-text 3-shot by chrF. README.md beside this file has the exact
protocol, and where it differs from the paper's.
"""

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal, get_args

from lightning.pytorch.utilities import rank_zero_info
from typing_extensions import override

from calm_lightning.contracts import CalmError, EvaluationSet, Example, Task
from calm_plugins.tasks.code.functions import Function, read_functions
from calm_plugins.tasks.code.problems import (
    HUMANEVAL_STOP,
    MBPP_STOP,
    Problem,
    learnt_of,
    read_humaneval,
    read_mbpp,
    with_examples,
)
from calm_plugins.tasks.code.sandbox import Sandbox, SandboxSettings
from calm_plugins.tasks.code.scorer import Descriptions, PassAtK
from calm_plugins.tasks.reading import expand
from calm_plugins.tasks.sampling import sampling

Kind = Literal["describe", "complete", "solve"]

_DESCRIBE = "Code:\n{code}\nDescription:"
_LINE_BREAK = "\n"  # ends a description
_SHOWN_CHARACTERS = 300  # longest function among the exemplars


class Code(Task):
    """Programs and descriptions of programs. Each source that is named becomes an evaluation set.

    HumanEval and MBPP are scored by *running what the model wrote*. That is off until
    `allow_code_execution` is set; docs/security.md says what the sandbox holds back.

    Args:
        humaneval: HumanEval's file (`HumanEval.jsonl.gz`), or one in its format. 0-shot.
        mbpp: MBPP's file (`mbpp.jsonl`), or one in its format. task_id 11 to 510 are asked.
        functions: Functions to learn from: `stdlib` (the standard library of this Python), a
            folder of Python files, or a file in CodeXGLUE's code-to-text format. A tenth of them
            is held out.
        code_to_text: Files in CodeXGLUE's format by name, to be described: each becomes the set
            `code_to_text_<name>`. None: what is held out of `functions`, as `code_to_text`.
        train: What is learnt: `describe` (function to description), `complete` (head and docstring
            to body, Python sources only), `solve` (MBPP's task_id 601 to 974, without those that
            are also asked). None: all for which there is a source.
        allow_code_execution: Whether answers may be run on this machine.
        sandbox: What they may use, and what must hold them.
        mbpp_shots: Worked examples before each question of MBPP.
        describe_shots: The same for descriptions; they come from `functions`.
        pass_at: Which k of pass@k, each `samples` at most.
        samples: Programs that are written for each problem. Descriptions are written once.
        temperature: At which programs are drawn; 0 takes the likeliest token each time.
        longest_function: Functions of more characters are left out.
        evaluation_functions: Ask for the description of so many functions of each set at most.
        max_new_tokens: How long a program may become, in tokens.
        max_new_tokens_of_descriptions: How long a description may become.
        stop_early: Whether the model stops writing where an answer ends. Answers are cut there in
            any case; false is for tokenizers that have no line break.
        outcomes: Folder in which `<set>.jsonl` holds every answer with its outcome. None:
            `outcomes` in the folder of the run.
        **task_options: `batch_size`, `seed` and the other arguments of `Task`.

    Raises:
        CalmError: If a setting makes no sense, or programs would have to be run without leave;
            and, when the examples are asked for, if a file is malformed or the sandbox cannot be
            had on this machine.
    """

    def __init__(
        self,
        humaneval: str | None = None,
        mbpp: str | None = None,
        functions: str | None = None,
        code_to_text: dict[str, str] | None = None,
        train: tuple[Kind, ...] | None = None,
        allow_code_execution: bool = False,
        sandbox: SandboxSettings | None = None,
        mbpp_shots: int = 3,
        describe_shots: int = 3,
        pass_at: tuple[int, ...] = (1,),
        samples: int = 1,
        temperature: float = 0.0,
        longest_function: int = 2000,
        evaluation_functions: int | None = None,
        max_new_tokens: int = 384,
        max_new_tokens_of_descriptions: int = 64,
        stop_early: bool = True,
        outcomes: str | None = None,
        **task_options: Any,
    ) -> None:
        super().__init__(**task_options)
        _check(
            mbpp_shots=(mbpp_shots, 0),
            describe_shots=(describe_shots, 0),
            longest_function=(longest_function, 1),
            evaluation_functions=(1 if evaluation_functions is None else evaluation_functions, 1),
            max_new_tokens=(max_new_tokens, 1),
            max_new_tokens_of_descriptions=(max_new_tokens_of_descriptions, 1),
            **{f"pass_at={k}": (k, 1) for k in pass_at},
        )
        self.generation = sampling(samples, temperature)
        if max(pass_at, default=1) > samples:
            raise CalmError(
                f"pass_at={max(pass_at)} needs as many answers to each problem, but "
                f"samples={samples}. Raise samples and give a temperature above 0, such as 0.8."
            )
        for kind in train or ():
            if kind not in get_args(Kind):
                raise CalmError(f"train={kind!r}: any of {', '.join(get_args(Kind))}.")
        if not (humaneval or mbpp or functions or code_to_text):
            raise CalmError(
                "The code task has no source. Give at least one of humaneval, mbpp, functions and "
                "code_to_text."
            )
        if code_to_text and not functions and describe_shots:
            raise CalmError(
                f"describe_shots={describe_shots} examples are shown before each function, but "
                "there are none: give functions (CodeXGLUE's train.jsonl, say) or describe_shots=0."
            )
        if (humaneval or mbpp) and not allow_code_execution:
            raise CalmError(
                "HumanEval and MBPP are scored by running programs that the model wrote, on this "
                "machine. That is off until you allow it: allow_code_execution=true. The programs "
                "run in a sandbox; docs/security.md says what it holds back and what it does not."
            )
        self.humaneval, self.mbpp, self.functions = humaneval, mbpp, functions
        self.code_to_text = dict(code_to_text or {})
        self.train: tuple[Kind, ...] | None = None if train is None else tuple(train)
        self.allow_code_execution = allow_code_execution
        self.sandbox = sandbox or SandboxSettings()
        self.mbpp_shots, self.describe_shots = mbpp_shots, describe_shots
        self.pass_at, self.samples = tuple(pass_at), samples
        self.longest_function = longest_function
        self.evaluation_functions = evaluation_functions
        self.max_new_tokens = max_new_tokens
        self.max_new_tokens_of_descriptions = max_new_tokens_of_descriptions
        self.stop_early = stop_early
        self.outcomes = outcomes
        self._runner = Sandbox(self.sandbox)
        self._functions_read: dict[str, list[Function]] = {}
        self._sets_made: list[EvaluationSet] | None = None

    @override
    def train_examples(self) -> Sequence[Example]:
        kinds = self.train
        if kinds is None:
            python = any(each.head for each in self._learnt())
            possible = {"describe": self.functions, "complete": python, "solve": self.mbpp}
            kinds = tuple(kind for kind in get_args(Kind) if possible[kind])
        examples = [example for kind in kinds for example in self._training(kind)]
        if not examples:
            raise CalmError(
                f"There is nothing to train on: train={list(kinds)}. Give functions, or mbpp with "
                "its task_id 601 to 974; HumanEval has no training part."
            )
        return examples

    @override
    def evaluation_sets(self) -> Sequence[EvaluationSet]:
        if self._sets_made is None:
            self._sets_made = list(self._make_sets())
        return self._sets_made

    def _make_sets(self) -> Iterator[EvaluationSet]:
        if self.humaneval:
            problems = read_humaneval(expand(self.humaneval))
            yield self._programs("humaneval", problems, HUMANEVAL_STOP)
        if self.mbpp:
            problems = with_examples(self._mbpp(), self.mbpp_shots, self.mbpp)
            yield self._programs("mbpp", problems, MBPP_STOP)
        for name, functions in self._asked().items():
            yield self._descriptions(name, functions)

    # ------------------------------------------------------------------ programs

    def _programs(
        self, name: str, problems: Sequence[Problem], stop: tuple[str, ...]
    ) -> EvaluationSet:
        self._runner.check()  # now, and not after hours of generating
        active = ", ".join(self._runner.active)
        rank_zero_info(f"{name}: programs run in the sandbox with its layers {active}.")
        scorer = partial(
            PassAtK,
            [problem.task_id for problem in problems],
            self._runner,
            self.pass_at,
            name,
            partial(self._outcomes_file, name),
        )
        # All once, then all again: validation, which takes the first, repeats none.
        examples = [_program(problem) for problem in problems] * self.samples
        stop = self._stop(stop)
        return EvaluationSet(name, examples, scorer, self.max_new_tokens, stop, self.generation)

    def _stop(self, texts: tuple[str, ...]) -> tuple[str, ...]:
        return texts if self.stop_early else ()

    def _outcomes_file(self, name: str) -> Path | None:
        if self.outcomes is not None:
            folder = expand(self.outcomes)
        elif self.trainer is not None:
            folder = Path(self.trainer.default_root_dir) / "outcomes"
        else:
            return None
        rank, _ = self._process()
        return folder / (f"{name}.{rank}.jsonl" if rank else f"{name}.jsonl")

    def _mbpp(self) -> dict[int, Problem]:
        assert self.mbpp is not None
        return read_mbpp(expand(self.mbpp))

    # ------------------------------------------------------------------ descriptions

    def _descriptions(self, name: str, functions: Sequence[Function]) -> EvaluationSet:
        short = [each for each in functions if len(each.code) <= self.longest_function]
        if len(short) < len(functions):
            rank_zero_info(
                f"{name}: {len(functions) - len(short):,} of {len(functions):,} functions are left "
                f"out because they have more than longest_function={self.longest_function} "
                "characters."
            )
        if not short:
            raise CalmError(
                f"{name}: none of {len(functions):,} functions has at most "
                f"longest_function={self.longest_function} characters. Raise it."
            )
        before = "".join(
            f"{_described(each).prompt} {each.description}\n\n" for each in self._exemplars()
        )
        asked = [_described(each, before) for each in short[: self.evaluation_functions]]
        length = self.max_new_tokens_of_descriptions
        return EvaluationSet(name, asked, Descriptions, length, self._stop((_LINE_BREAK,)))

    def _exemplars(self) -> list[Function]:
        if not self.describe_shots:
            return []
        short = [each for each in self._learnt() if len(each.code) <= _SHOWN_CHARACTERS]
        if len(short) < self.describe_shots:
            raise CalmError(
                f"{self.functions} has {len(short)} functions of at most {_SHOWN_CHARACTERS} "
                f"characters to show as examples, but describe_shots={self.describe_shots}."
            )
        return short[:: len(short) // self.describe_shots][: self.describe_shots]

    def _asked(self) -> Mapping[str, list[Function]]:
        """What is described in evaluation, by the name of the set."""
        if self.code_to_text or not self.functions:
            files = self.code_to_text.items()
            return {f"code_to_text_{name}": self._functions(file) for name, file in files}
        held_out = [each for each in self._functions(self.functions) if each.held_out]
        if not held_out:
            raise CalmError(
                f"{self.functions} is too small to hold out a tenth of it. Name a file to evaluate "
                "on as code_to_text."
            )
        return {"code_to_text": held_out}

    def _learnt(self) -> list[Function]:
        if not self.functions:
            return []
        asked = {each.code for functions in self._asked().values() for each in functions}
        return [each for each in self._functions(self.functions) if each.code not in asked]

    def _functions(self, source: str) -> list[Function]:
        if source not in self._functions_read:
            self._functions_read[source] = read_functions(source)
        return self._functions_read[source]

    # ------------------------------------------------------------------ training

    def _training(self, kind: Kind) -> list[Example]:
        if kind == "solve":
            if not self.mbpp:
                raise CalmError(f"train={kind} learns from MBPP's task_id 601 to 974: give mbpp.")
            problems, left_out = learnt_of(self._mbpp())
            if left_out:
                rank_zero_info(
                    f"mbpp: {left_out} of {len(problems) + left_out} problems are not learnt "
                    "because others with the same text or the same code are asked."
                )
            return [_program(problem) for problem in problems]
        if not self.functions:
            raise CalmError(f"train={kind} learns from functions: give functions.")
        learnt = [each for each in self._learnt() if len(each.code) <= self.longest_function]
        if kind == "describe":
            return [_described(each) for each in learnt]
        examples = [Example(each.head, each.body) for each in learnt if each.head]
        if not examples:
            raise CalmError(
                f"train=complete needs Python sources, of which head and body are known: "
                f"{self.functions} has none. Leave it out, or give a folder or stdlib."
            )
        return examples


def _program(problem: Problem) -> Example:
    end = problem.stop[0] if problem.stop == MBPP_STOP else ""
    return Example(problem.prompt, problem.solution + end, {"problem": problem})


def _described(function: Function, before: str = "") -> Example:
    prompt = before + _DESCRIBE.format(code=function.code)
    return Example(prompt, f" {function.description}")


def _check(**values: tuple[int, int]) -> None:
    for name, (value, least) in values.items():
        if value < least:
            raise CalmError(f"{name.partition('=')[0]} must be at least {least}: got {value}.")
