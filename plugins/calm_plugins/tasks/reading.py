"""Files of text as tasks read them: UTF-8, perhaps gzipped, every fault named by file and line."""

import gzip
import io
import json
import os
import re
import unicodedata
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from calm_lightning.contracts import CalmError
from calm_lightning.plain_data import parse_json

_VARIABLE = re.compile(r"\$(?:\{(\w+)\}|(\w+))")
_LONE_SURROGATE = re.compile("[\ud800-\udfff]")  # json lets it through; no tokenizer takes it
_UNPACKED = 64 * 2**20  # bytes that any packed file may hold
_SHRUNK = 200  # times that a larger one may be smaller than what it holds; text is 20 times at most


def expand(path: str | Path) -> Path:
    """A path with `~` and environment variables (`$CALM_DATA/flores200`) put in.

    Raises:
        CalmError: If a variable in it is not set, or it begins with the name of no user.
    """
    for braced, plain in _VARIABLE.findall(str(path)):
        if not os.environ.get(braced or plain):
            raise CalmError(
                f"{path}: the environment variable {braced or plain} is not set. Set it to the "
                "folder that holds the data, or write the path out."
            )
    try:
        return Path(os.path.expandvars(str(path))).expanduser()
    except RuntimeError as error:
        raise CalmError(f"{path}: {error} Write the path out.") from None


def read_text(file: Path) -> str:
    """The text of a file; one whose name ends in `.gz` is unpacked.

    Raises:
        CalmError: If it is missing, no regular file, damaged, not UTF-8, or empty; or if it was
            packed to hold more than any text of its size does.
    """
    try:
        if file.is_dir():
            inside = ", ".join(sorted(path.name for path in file.iterdir())[:5]) or "nothing"
            raise CalmError(f"{file} is a folder; name a file (it contains {inside}).")
        if file.exists() and not file.is_file():
            raise CalmError(f"{file} is a device or a pipe; name a file, which can be read again.")
        content = file.read_bytes()
        if file.suffix == ".gz":
            content = _unpacked(content, file)
    except CalmError:
        raise
    except FileNotFoundError:
        raise CalmError(
            f"{file}: no such file, seen from {Path.cwd()}. Check the path, or give a full one."
        ) from None
    except (OSError, EOFError, ValueError, zlib.error) as error:
        reason = getattr(error, "strerror", None) or error
        raise CalmError(f"{file} cannot be read: {reason}.") from error
    try:
        text = content.decode("utf-8").removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        raise CalmError(
            f"{file} is not UTF-8: byte {error.start} (0x{content[error.start]:02x}) does not fit. "
            f"If it is Latin-1: iconv -f latin1 -t utf-8 {file}"
        ) from None
    if not text.strip():
        raise CalmError(f"{file} is empty: {len(content)} bytes and no text. Name another file.")
    return text


def _unpacked(packed: bytes, file: Path) -> bytes:
    most = max(_UNPACKED, _SHRUNK * len(packed))
    with gzip.open(io.BytesIO(packed)) as stream:
        content = stream.read(most + 1)
    if len(content) > most:
        raise CalmError(
            f"{file}: its {len(packed):,} bytes unpack to more than {most:,}, which no text does. "
            "If it is one nevertheless, unpack it by hand and name that file."
        )
    return content


def read_lines(file: Path) -> list[str]:
    """The lines of a file without their ends, which may be those of Windows.

    Only a line feed ends a line: other separators of Unicode occur inside sentences.

    Raises:
        CalmError: As `read_text`.
    """
    lines = [line.removesuffix("\r") for line in read_text(file).split("\n")]
    return lines[:-1] if lines[-1] == "" else lines


def read_json_lines(file: Path, example: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every object of a JSON-lines file, with where it is (`FILE, line 3`).

    Args:
        file: What is read. Blank lines are passed over.
        example: A line as it should be, for the message.

    Raises:
        CalmError: As `read_text`, and if a line is not a JSON object.
    """
    for number, line in enumerate(read_lines(file), start=1):
        if not line.strip():
            continue
        where = f"{file}, line {number}"
        try:
            fields = parse_json(line)
        except json.JSONDecodeError as error:
            raise CalmError(
                f"{where}: not JSON ({error.msg}, column {error.colno}); a line is one object such "
                f"as {example}."
            ) from None
        if not isinstance(fields, dict):
            raise CalmError(
                f"{where}: {describe(fields)} instead of an object; a line is one object such as "
                f"{example}."
            )
        yield where, fields


def field(fields: dict[str, Any], name: str, where: str) -> Any:
    """A field of a JSON object; `translation.de` is the field `de` of the field `translation`.

    Raises:
        CalmError: If it is not there, with the fields that are.
    """
    found: Any = fields
    for part in [name] if name in fields else name.split("."):
        if not isinstance(found, dict) or part not in found:
            has = ", ".join(map(repr, fields)) or "none"
            raise CalmError(f"{where}: no field {name!r}; the fields are {has}.")
        found = found[part]
    return found


def text_field(fields: dict[str, Any], name: str, where: str) -> str:
    """A field that holds text.

    Raises:
        CalmError: If it is not there, is no text, is empty, or cannot be written as UTF-8.
    """
    value = field(fields, name, where)
    if not isinstance(value, str):
        raise CalmError(f"{where}: {name!r} holds {describe(value)}, not text.")
    if not value.strip():
        raise CalmError(f"{where}: {name!r} is empty. Remove the line, or fill it in.")
    require_whole(value, name, where)
    return value


def require_whole(text: str, name: str, where: str) -> None:
    """Refuse a text that cannot be written as UTF-8.

    Raises:
        CalmError: If it holds half of a pair of escapes.
    """
    if _LONE_SURROGATE.search(text):
        raise CalmError(
            f"{where}: {name!r} holds half of a \\ud83d\\ude00-style pair of escapes; write both "
            "halves."
        )


def normal_form(text: str) -> str:
    """A text without differences that do not make it another: width, case and white space."""
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


def describe(value: object) -> str:
    """What a JSON value is, for a message; numbers, true, false and null speak for themselves."""
    names: dict[type, str] = {dict: "an object", list: "a list", str: "a text"}
    return names.get(type(value), json.dumps(value, default=repr))
