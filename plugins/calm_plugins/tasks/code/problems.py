"""Programming problems as HumanEval and MBPP publish them: what is asked, and when it is right."""

import ast
import builtins
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from calm_lightning.contracts import CalmError
from calm_plugins.tasks.code.sandbox import Job
from calm_plugins.tasks.reading import describe, field, normal_form, read_json_lines, text_field

HUMANEVAL_STOP = ("\nclass", "\ndef", "\n#", "\nif", "\nprint")
MBPP_STOP = ("[DONE]",)
MBPP_ASKED = range(11, 511)
MBPP_LEARNT = range(601, 975)
# Of the paper's few-shot prompts, then the others of task_id 1 to 10 that are set aside for them.
MBPP_SHOWN = (2, 3, 4, 1, 5, 6, 7, 8, 9, 10)

_HUMANEVAL_LINE = (
    '{"task_id": "HumanEval/0", "prompt": "def f(x):\\n", "entry_point": "f", '
    '"canonical_solution": "    return x", "test": "def check(candidate):\\n    assert ..."}'
)
_MBPP_LINE = (
    '{"task_id": 11, "text": "Write a function ...", "code": "def f(x): ...", '
    '"test_list": ["assert f(1) == 2"], "test_setup_code": ""}'
)


@dataclass(frozen=True)
class Problem:
    """A problem.

    Attributes:
        task_id: Its name in the benchmark.
        prompt: What is asked.
        solution: What the benchmark gives as an answer.
        head: What stands before the answer in the program.
        stop: Texts at which an answer ends, itself left out.
        setup: What the tests need beside the program (see `Job`).
        tests: They raise if the program is wrong.
        names: What they use of the program.
        text: What the program should do, where the benchmark says it apart from the prompt.
    """

    task_id: str
    prompt: str
    solution: str
    head: str
    stop: tuple[str, ...]
    setup: str
    tests: str
    names: tuple[str, ...]
    text: str = ""

    def cut(self, answer: str) -> str:
        """The answer up to where it ends."""
        ends = [at for mark in self.stop if (at := answer.find(mark)) >= 0]
        return answer[: min(ends)] if ends else answer

    def job(self, answer: str) -> Job:
        """What tells whether an answer is right."""
        return Job(self.head + self.cut(answer), self.tests, self.names, self.setup)


def read_humaneval(file: Path) -> list[Problem]:
    """The problems of a file in HumanEval's format.

    Raises:
        CalmError: If a line is not one of that format; the message names file and line.
    """
    problems = []
    for where, fields in read_json_lines(file, _HUMANEVAL_LINE):
        task_id, prompt, entry_point, solution, test = (
            text_field(fields, name, where)
            for name in ("task_id", "prompt", "entry_point", "canonical_solution", "test")
        )
        defined, _ = _bindings(_parse(prompt, "prompt", where))
        if entry_point not in defined:
            raise CalmError(
                f"{where}: the prompt defines no {entry_point!r}, which is its entry_point; it "
                f"defines {', '.join(sorted(defined)) or 'nothing'}."
            )
        tests = f"{test}\n\ncheck({entry_point})\n"
        if "check" not in _bindings(_parse(tests, "test", where))[0]:
            raise CalmError(f"{where}: 'test' defines no check(candidate).")
        problems.append(
            Problem(task_id, prompt, solution, prompt, HUMANEVAL_STOP, prompt, tests,
                    (entry_point,))
        )  # fmt: skip
    return _with_different_ids(file, problems)


def read_mbpp(file: Path) -> dict[int, Problem]:
    """The problems of a file in MBPP's format by task_id, without worked examples.

    Raises:
        CalmError: If a line is not one of that format; the message names file and line.
    """
    problems: dict[int, Problem] = {}
    for where, fields in read_json_lines(file, _MBPP_LINE):
        number = field(fields, "task_id", where)
        if type(number) is not int:
            raise CalmError(f"{where}: 'task_id' holds {describe(number)}, not a whole number.")
        if number in problems:
            raise CalmError(f"{file}: task_id {number} occurs twice. Remove one of the lines.")
        problems[number] = _mbpp_problem(number, fields, where)
    return problems


def with_examples(problems: Mapping[int, Problem], shots: int, file: str) -> list[Problem]:
    """The problems of MBPP that are asked, with worked examples before each.

    Args:
        problems: All of the file.
        shots: How many examples; the first three are the paper's.
        file: For the message.

    Raises:
        CalmError: If those to be asked, or to be shown, are not there.
    """
    shown = [problems[number] for number in MBPP_SHOWN if number in problems][:shots]
    if len(shown) < shots:
        raise CalmError(
            f"{file} has {len(shown)} of the problems that are shown before a question (task_id "
            f"{min(MBPP_SHOWN)} to {max(MBPP_SHOWN)}), but mbpp_shots={shots}."
        )
    before = "".join(f"{each.prompt}{each.solution}{MBPP_STOP[0]}\n\n" for each in shown)
    asked = [replace(p, prompt=before + p.prompt) for n, p in problems.items() if n in MBPP_ASKED]
    if not asked:
        raise CalmError(
            f"{file} has none of the problems that are asked, task_id {MBPP_ASKED[0]} to "
            f"{MBPP_ASKED[-1]}; it has {len(problems)} others."
        )
    return asked


def learnt_of(problems: Mapping[int, Problem]) -> tuple[list[Problem], int]:
    """MBPP's training part, without the problems that are asked under another number.

    Args:
        problems: All of the file.

    Returns:
        The problems, and how many are left out because the text or the code of one that is asked
        is theirs too.
    """
    asked = {
        normal_form(each)
        for number in MBPP_ASKED
        if (problem := problems.get(number))
        for each in (problem.text, problem.solution)
    }
    training = [problems[number] for number in MBPP_LEARNT if number in problems]
    learnt = [
        each
        for each in training
        if not asked & {normal_form(each.text), normal_form(each.solution)}
    ]
    return learnt, len(training) - len(learnt)


def _mbpp_problem(number: int, fields: dict[str, Any], where: str) -> Problem:
    text, code = (_unix(text_field(fields, name, where)) for name in ("text", "code"))
    test_list = field(fields, "test_list", where)
    if not isinstance(test_list, list) or not all(isinstance(each, str) for each in test_list):
        raise CalmError(f"{where}: 'test_list' holds {describe(test_list)}, not a list of texts.")
    if not test_list:
        raise CalmError(f"{where}: 'test_list' is empty, so that any answer would pass.")
    setup_code = _unix(str(fields.get("test_setup_code") or ""))
    tests = "\n".join([setup_code, *map(_unix, test_list)])
    used = {
        node.id
        for node in ast.walk(_parse(tests, "test_list", where))
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load)
    }
    reference = _parse(code, "code", where)
    defined, imported = _bindings(reference)
    own, _ = _bindings(_parse(tests, "test_list", where))
    known = own | set(imported) | (set(dir(builtins)) - defined)
    prompt = (
        f"You are an expert Python programmer, and here is your task: {text} Your code should "
        "pass these tests:\n\n" + "\n".join(map(_unix, test_list)) + "\n[BEGIN]\n"
    )
    return Problem(
        task_id=str(number),
        prompt=prompt,
        solution=f"{code}\n",
        head="",
        stop=MBPP_STOP,
        setup="\n".join(imported[name] for name in sorted(used & set(imported))),
        tests=tests,
        names=tuple(sorted(used - known)),
        text=text,
    )


def _bindings(module: ast.Module) -> tuple[set[str], dict[str, str]]:
    """What a module's own lines define, and the import statement of each name that they import."""
    defined: set[str] = set()
    imported: dict[str, str] = {}
    for node in module.body:
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            defined.add(node.name)
        elif isinstance(node, (ast.Import, ast.ImportFrom)):
            for alias in node.names:
                name = alias.asname or alias.name.partition(".")[0]
                imported[name] = ast.unparse(node)
        elif isinstance(node, (ast.Assign, ast.AnnAssign)):
            stored = (each for each in ast.walk(node) if isinstance(each, ast.Name))
            defined |= {each.id for each in stored if isinstance(each.ctx, ast.Store)}
    return defined, imported


def _parse(source: str, name: str, where: str) -> ast.Module:
    try:
        return ast.parse(source)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise CalmError(f"{where}: {name!r} is not Python: {error or repr(error)}.") from None


def _with_different_ids(file: Path, problems: list[Problem]) -> list[Problem]:
    ids = [problem.task_id for problem in problems]
    for task_id in ids:
        if ids.count(task_id) > 1:
            raise CalmError(f"{file}: task_id {task_id!r} occurs twice. Remove one of the lines.")
    return problems


def _unix(text: str) -> str:
    return text.replace("\r\n", "\n").rstrip()
