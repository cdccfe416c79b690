"""Functions with a description each: from CodeXGLUE's files, or from Python sources.

A file in CodeXGLUE's code-to-text format (CodeSearchNet's, filtered) is read as CodeXGLUE's own
baseline does it: its tokens joined by spaces. From Python sources functions are taken with `ast`,
by CodeXGLUE's rules where they apply: the first paragraph of the docstring, of 3 to 256 words,
without links or markup.
"""

import ast
import re
import sysconfig
import textwrap
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from calm_lightning.contracts import CalmError
from calm_plugins.tasks.reading import (
    describe,
    expand,
    field,
    read_json_lines,
    require_whole,
    text_field,
)

STANDARD_LIBRARY = "stdlib"

_LINE = (
    '{"code_tokens": ["def", "f", "(", "x", ")", ...], "docstring_tokens": ["Doubles", "x", "."]}'
)
_SKIPPED_FOLDERS = {"site-packages", "dist-packages", "test", "tests", "idle_test", "__pycache__"}
_MARKUP = re.compile(r"https?:|<img|`\w+ <")
_FEWEST_WORDS, _MOST_WORDS = 3, 256
_HELD_OUT = 10  # one in so many


@dataclass(frozen=True)
class Function:
    """A function and what it does.

    Attributes:
        code: Its source without the docstring.
        description: What it does, on one line.
        head: Its source up to the end of the docstring, and `body` the rest; empty if they are not
            known line by line.
        body: See `head`.
        held_out: Whether it is kept for evaluation where no other file is given for that. What
            comes from one source file is on one side.
    """

    code: str
    description: str
    head: str = ""
    body: str = ""
    held_out: bool = False


def read_functions(source: str | Path) -> list[Function]:
    """All functions of a source.

    Args:
        source: `stdlib` for the standard library of this Python, a folder of Python files, or a
            file of JSON lines.

    Raises:
        CalmError: If there are none, or a line of the file is malformed.
    """
    if str(source) == STANDARD_LIBRARY:
        folder = Path(sysconfig.get_path("stdlib"))
    else:
        folder = expand(source)
        if not folder.is_dir():
            return list(_from_json(folder))
    functions = [
        each
        for file in sorted(folder.rglob("*.py"))
        if file.is_file()  # to open a pipe would wait for ever
        if not _SKIPPED_FOLDERS & set(file.relative_to(folder).parts)
        for each in _from_python(file, str(file.relative_to(folder)))
    ]
    if not functions:
        raise CalmError(
            f"{folder} holds no Python function with a docstring of {_FEWEST_WORDS} words or more."
        )
    return functions


def _from_json(file: Path) -> Iterator[Function]:
    for where, fields in read_json_lines(file, _LINE):
        code, description = (_tokens_or_text(fields, name, where) for name in ("code", "docstring"))
        yield Function(code, description, held_out=_is_held_out(code))


def _tokens_or_text(fields: dict[str, Any], name: str, where: str) -> str:
    if f"{name}_tokens" not in fields:
        return text_field(fields, name, where)
    tokens = field(fields, f"{name}_tokens", where)
    if not isinstance(tokens, list) or not all(isinstance(each, str) for each in tokens):
        found = describe(tokens)
        raise CalmError(f"{where}: '{name}_tokens' holds {found}, not a list of texts.")
    joined = " ".join(" ".join(tokens).split())
    if not joined:
        raise CalmError(f"{where}: '{name}_tokens' is empty. Remove the line, or fill it in.")
    require_whole(joined, f"{name}_tokens", where)
    return joined


def _from_python(file: Path, name: str) -> Iterator[Function]:
    try:
        source = file.read_text(encoding="utf-8")
        module = ast.parse(source)
    except (OSError, ValueError, SyntaxError, RecursionError, MemoryError):
        return  # test data and other versions' files lie among those of a library
    lines = source.splitlines(keepends=True)
    held_out = _is_held_out(name)
    for node in ast.walk(module):
        if not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            continue
        description = _first_paragraph(ast.get_docstring(node) or "")
        if not description or len(node.body) < 2:
            continue
        docstring, statement = node.body[:2]
        first, last = docstring.lineno, docstring.end_lineno or docstring.lineno
        if first == node.lineno or statement.lineno == last:
            continue  # shares a line with something else
        before, inside = lines[node.lineno - 1 : first - 1], lines[first - 1 : last]
        after = lines[last : node.end_lineno]
        while not after[0].strip():
            after = after[1:]
        whole = textwrap.dedent("".join(before + inside + after)).splitlines(keepends=True)
        if whole[0][0].isspace():
            continue  # a text in it that begins at the margin
        signature, head = len(before), len(before) + len(inside)
        yield Function(
            "".join(whole[:signature] + whole[head:]).rstrip(),
            description,
            "".join(whole[:head]),
            "".join(whole[head:]).rstrip() + "\n",
            held_out,
        )


def _first_paragraph(docstring: str) -> str:
    text = " ".join(docstring.strip().split("\n\n")[0].split())
    words = len(text.split())
    if not _FEWEST_WORDS <= words <= _MOST_WORDS or _MARKUP.search(text):
        return ""
    return text


def _is_held_out(name: str) -> bool:
    return zlib.crc32(name.encode(errors="replace")) % _HELD_OUT == 0
