"""Corpora in files: a file for each language, or files with a pair a line."""

import re
from collections.abc import Iterator, Mapping, Sequence
from glob import escape, glob
from pathlib import Path

from typing_extensions import override

from calm_lightning.contracts import CalmError
from calm_plugins.tasks.reading import expand, read_json_lines, read_lines, text_field
from calm_plugins.tasks.translation.corpora import Corpus, Pair, listed, with_codes
from calm_plugins.tasks.translation.languages import CODE

_JSON_LINES = (".jsonl", ".ndjson", ".json")


class LineFiles(Corpus):
    """A file for each language, parallel by line: any text pair, and layouts such as FLORES'.

    Args:
        files: Path with `{language}` where the code stands, or files by code
            (`{deu: a.txt, eng: b.txt}`). `~` and environment variables are put in.

    Raises:
        CalmError: When it is used: if there are no such files, two have not the same number of
            lines, or a line is empty.
    """

    def __init__(self, files: dict[str, str] | str) -> None:
        self.files = files
        self._lines: dict[str, list[str]] = {}

    def __str__(self) -> str:
        return self.files if isinstance(self.files, str) else f"{{{listed(list(self.files))}}}"

    def paths(self) -> Mapping[str, Path]:
        """The file of each language."""
        if isinstance(self.files, str):
            return {found["language"]: file for found, file in matching(self.files, "language")}
        return {code: expand(file) for code, file in self.files.items()}

    @override
    def directions(self) -> Sequence[tuple[str, str]]:
        codes = list(self.paths())
        if len(codes) < 2:
            raise CalmError(
                f"{self}: files of two languages are needed, but {' and '.join(codes) or 'none'} "
                "is there. Check the path, and the split if it names one."
            )
        return [(a, b) for a in codes for b in codes if a != b]

    @override
    def pairs(self, source: str, target: str) -> Sequence[Pair]:
        paths = self.paths()
        first, second = self._read(source, paths[source]), self._read(target, paths[target])
        if len(first) != len(second):
            raise CalmError(
                f"{paths[source]} has {len(first):,} lines, but {paths[target]} has "
                f"{len(second):,}: parallel files have a line for each sentence. Find the line "
                "that is missing or too much."
            )
        return list(zip(first, second, strict=True))

    def _read(self, code: str, file: Path) -> list[str]:
        if code not in self._lines:
            lines = read_lines(file)
            for number, line in enumerate(lines, start=1):
                if not line.strip():
                    raise CalmError(
                        f"{file}, line {number}: empty. Remove the line, and the same one of the "
                        "files that are parallel to it."
                    )
            self._lines[code] = lines
        return self._lines[code]


class Flores(LineFiles):
    """FLORES-200: `<folder>/devtest/lij_Latn.devtest` or `<folder>/lij_Latn.devtest`.

    Args:
        folder: That of the files or of the splits.
        split: `dev` (997 sentences) or `devtest` (1,012).
    """

    def __init__(self, folder: str, split: str = "devtest") -> None:
        super().__init__(f"{folder}/{{language}}.{split}")
        self.folder, self.split = folder, split

    @override
    def paths(self) -> Mapping[str, Path]:
        below = f"{self.folder}/{self.split}"
        inner = below if expand(below).is_dir() else self.folder
        files = matching(f"{inner}/{{language}}.{self.split}", "language")
        return {found["language"]: file for found, file in files}


class Ntrex(LineFiles):
    """NTREX-128: `newstest2019-src.eng.txt` and `newstest2019-ref.deu.txt`.

    Args:
        folder: That of the files.
    """

    def __init__(self, folder: str) -> None:
        super().__init__(f"{folder}/newstest2019-ref.{{language}}.txt")
        self.folder = folder

    @override
    def paths(self) -> Mapping[str, Path]:
        english = expand(self.folder) / "newstest2019-src.eng.txt"
        return {**super().paths(), **({"eng": english} if english.is_file() else {})}


class PairFiles(Corpus):
    """Files with a pair a line: TSV, or JSON lines, gzipped if the name ends in `.gz`.

    A file serves both directions.

    Args:
        files: Path, with `{source}` and `{target}` where the codes stand if there are several.
            `~` and environment variables are put in.
        languages: The two codes, where the path does not tell them.
        fields: Where the two sentences are. TSV: numbers of columns from 1 (default: 1 and 2), or
            names in a first line. JSON: names of fields (default: the codes); `translation.deu` is
            a field in a field. `{source}` and `{target}` may stand for the codes.

    Raises:
        CalmError: If the languages are not known; and, when it is used, if a file is missing or
            malformed. The message names file and line.
    """

    def __init__(
        self,
        files: str,
        languages: tuple[str, str] | None = None,
        fields: tuple[int | str, int | str] | None = None,
    ) -> None:
        if ("{source}" in files and "{target}" in files) == (languages is not None):
            raise CalmError(
                f"{files}: give the languages of the pairs either in the path, as {{source}} and "
                "{target}, or as languages: [deu, eng]."
            )
        for each in fields or ():
            if isinstance(each, int) and each < 1:
                raise CalmError(f"{files}: columns count from 1, so fields={list(fields or ())}.")
        self.files, self.languages, self.fields = files, languages, fields
        self._pairs: dict[Path, list[Pair]] = {}

    def __str__(self) -> str:
        return self.files

    def paths(self) -> Mapping[tuple[str, str], Path]:
        """The file of each pair of languages."""
        if self.languages is not None:
            return {self.languages: expand(self.files)}
        files = matching(self.files, "source", "target")
        return {(found["source"], found["target"]): file for found, file in files}

    @override
    def directions(self) -> Sequence[tuple[str, str]]:
        there = list(self.paths())
        if not there:
            raise CalmError(f"{self}: there are no such files. Check the path.")
        return there + [(b, a) for a, b in there if (b, a) not in there]

    @override
    def pairs(self, source: str, target: str) -> Sequence[Pair]:
        paths = self.paths()
        if (source, target) in paths:
            return self._read(paths[source, target], source, target)
        return [(b, a) for a, b in self._read(paths[target, source], target, source)]

    def _read(self, file: Path, source: str, target: str) -> list[Pair]:
        if file not in self._pairs:
            fields = [
                each if isinstance(each, int) else with_codes(each, source, target)
                for each in self.fields or ()
            ]
            is_json = file.name.removesuffix(".gz").endswith(_JSON_LINES)
            read = _read_json if is_json else _read_columns
            self._pairs[file] = list(
                read(file, fields or ([source, target] if is_json else [1, 2]))
            )
        return self._pairs[file]


class Tatoeba(PairFiles):
    """Tatoeba: `<folder>/deu-eng.tsv.gz`, a sentence and its translation a line.

    Args:
        folder: That of the files.
    """

    def __init__(self, folder: str) -> None:
        super().__init__(f"{folder}/{{source}}-{{target}}.tsv.gz")
        self.folder = folder


def matching(pattern: str, *fields: str) -> Iterator[tuple[dict[str, str], Path]]:
    """The files that fit a pattern such as `folder/{language}.txt`, with the codes in their names.

    Args:
        pattern: Where the files are.
        fields: What it must hold, each once.

    Raises:
        CalmError: If it holds something else, or the folder is not there.
    """
    pattern = str(expand(pattern))
    if sorted(re.findall(r"\{(\w+)\}", pattern)) != sorted(fields):
        wanted = " and ".join(f"{{{field}}}" for field in fields)
        raise CalmError(f"{pattern}: {wanted} must stand in it, once, and no other field.")
    folder = Path(pattern.partition("{")[0] + "x").parent
    if not folder.is_dir():
        raise CalmError(
            f"{folder}: no such folder, seen from {Path.cwd()}. Check the path, or give a full one."
        )
    parts = re.split(r"(\{\w+\})", pattern)
    named = [part[1:-1] if part.startswith("{") else None for part in parts]
    regex = "".join(
        re.escape(part) if name is None else f"(?P<{name}>{CODE})"
        for part, name in zip(parts, named, strict=True)
    )
    stars = "".join(
        escape(part) if name is None else "*" for part, name in zip(parts, named, strict=True)
    )
    for file in sorted(glob(stars)):
        found = re.fullmatch(regex, file)
        if found is not None:
            yield found.groupdict(), Path(file)


def _read_json(file: Path, names: Sequence[int | str]) -> Iterator[Pair]:
    keys = [str(name) for name in names]
    example = "{" + ", ".join(f'"{key}": "..."' for key in keys) + "}"
    for where, fields in read_json_lines(file, example):
        yield text_field(fields, keys[0], where), text_field(fields, keys[1], where)


def _read_columns(file: Path, columns: Sequence[int | str]) -> Iterator[Pair]:
    lines = read_lines(file)
    first = 0
    places = [column - 1 for column in columns if isinstance(column, int)]
    if len(places) < len(columns):
        header, first = lines[0].split("\t"), 1
        for column in columns:
            if column not in header:
                raise CalmError(
                    f"{file}, line 1: no column {column!r}; the columns are "
                    f"{', '.join(map(repr, header))}."
                )
        places = [header.index(str(column)) for column in columns]
    for number, line in enumerate(lines[first:], start=first + 1):
        found = line.split("\t")
        if not line.strip():
            continue
        if len(found) <= max(places) or not all(found[place].strip() for place in places):
            raise CalmError(
                f"{file}, line {number}: a sentence is expected in columns "
                f"{' and '.join(str(place + 1) for place in places)}, separated by tabs; found "
                f"{len(found)} column{'s' if len(found) > 1 else ''}: {line[:60]!r}."
            )
        yield found[places[0]], found[places[1]]
