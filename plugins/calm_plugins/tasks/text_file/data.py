"""Training and evaluation on one's own files: JSON lines with prompts and targets, or plain text.

Which of the two a file is, its name says: `.jsonl`, `.ndjson` and `.json` are JSON lines, anything
else is plain text; `.gz` behind either is unpacked. README.md beside this file has an example of
each.
"""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from typing_extensions import override

from calm_lightning.contracts import CalmError, EvaluationSet, ExactMatch, Example, Task
from calm_plugins.tasks.reading import describe, read_json_lines, read_text, require_whole

_JSON_LINES = (".jsonl", ".ndjson", ".json")
_SPACE = re.compile(r"\s")


class TextFile(Task):
    """Examples from files.

    JSON lines are scored by exact match of what the model writes (and by its loss), plain text by
    the loss alone.

    Args:
        train: File to train on.
        evaluation: File to evaluate on, or several by name. None: the last `held_out` share of
            `train` is kept out of training and becomes the set `held_out`.
        held_out: That share, at least one example.
        prompt_field: Field of a JSON line that holds the prompt.
        target_field: Field that holds what should follow. All other fields become `Example.meta`.
        characters: Plain text is cut into pieces of at most so many characters, after the end of a
            line or before a space where there is one. Their sum is the whole text.
        exact_match: Whether JSON lines are scored by exact match; if not, by the loss alone, which
            saves the time of generating.
        max_new_tokens: How long an answer may become, in tokens. None: as many as the longest
            target of the set has UTF-8 bytes and two more, which is enough for any tokenizer; a
            smaller number saves time with models that do not end their answers.
        stop: Texts at which an answer ends, itself left out.
        **task_options: `batch_size`, `seed` and the other arguments of `Task`.

    Raises:
        CalmError: If a setting makes no sense; and, when the examples are asked for, if a file is
            missing, empty, malformed, not UTF-8 or too short. The message names file and line.
    """

    def __init__(
        self,
        train: str | Path,
        evaluation: str | Path | dict[str, str | Path] | None = None,
        held_out: float = 0.05,
        prompt_field: str = "prompt",
        target_field: str = "target",
        characters: int = 512,
        exact_match: bool = True,
        max_new_tokens: int | None = None,
        stop: tuple[str, ...] = (),
        **task_options: Any,
    ) -> None:
        super().__init__(**task_options)
        if not 0 < held_out < 1:
            raise CalmError(
                f"held_out is a share between 0 and 1, both left out: got {held_out}. "
                "To train on the whole file, name another one as evaluation."
            )
        if characters < 1:
            raise CalmError(f"characters must be at least 1: got {characters}.")
        if max_new_tokens is not None and max_new_tokens < 1:
            raise CalmError(f"max_new_tokens must be at least 1: got {max_new_tokens}.")
        self.train = Path(train)
        self.evaluation = evaluation
        self.held_out = held_out
        self.prompt_field = prompt_field
        self.target_field = target_field
        self.characters = characters
        self.exact_match = exact_match
        self.max_new_tokens = max_new_tokens
        self.stop = tuple(stop)
        self._files_read: dict[Path, list[Example]] = {}

    @override
    def train_examples(self) -> Sequence[Example]:
        return self._read(self.train) if self.evaluation is not None else self._split()[0]

    @override
    def evaluation_sets(self) -> Sequence[EvaluationSet]:
        if self.evaluation is None:
            return [self._set("held_out", self.train, self._split()[1])]
        named = self.evaluation
        files = named if isinstance(named, Mapping) else {"evaluation": named}
        return [self._set(name, Path(file), self._read(Path(file))) for name, file in files.items()]

    def _split(self) -> tuple[list[Example], list[Example]]:
        examples = self._read(self.train)
        if len(examples) < 2:
            lower = "" if _is_json_lines(self.train) else f", or lower characters={self.characters}"
            raise CalmError(
                f"{self.train} is too short to hold out anything: it makes one example, and "
                f"training and evaluation need one each. Name another file as evaluation{lower}."
            )
        share = round(len(examples) * self.held_out)
        kept = len(examples) - min(max(1, share), len(examples) - 1)
        return examples[:kept], examples[kept:]

    def _set(self, name: str, file: Path, examples: list[Example]) -> EvaluationSet:
        if not (_is_json_lines(file) and self.exact_match):
            return EvaluationSet(name, examples, scorer=None)
        longest = max(len(example.target.encode()) for example in examples)
        return EvaluationSet(
            name, examples, ExactMatch, self.max_new_tokens or longest + 2, self.stop
        )

    def _read(self, file: Path) -> list[Example]:
        if file not in self._files_read:
            if _is_json_lines(file):
                examples = _read_json_lines(file, self.prompt_field, self.target_field)
            else:
                pieces = cut(read_text(file), self.characters)
                examples = [Example("", piece, ends=False) for piece in pieces]
            self._files_read[file] = examples
        return self._files_read[file]


def cut(text: str, characters: int) -> list[str]:
    """Cut a text into pieces whose sum is the text.

    A piece ends after the last line end in the second half of its room, else before the last white
    space in its room, else where the room ends.

    Args:
        text: What is cut.
        characters: Most characters of a piece.
    """
    pieces, start = [], 0
    while start < len(text):
        room = start + characters
        end = room
        if room < len(text):
            line_end = text.rfind("\n", start + characters // 2, room)
            if line_end >= 0:
                end = line_end + 1
            else:
                spaces = [match.start() for match in _SPACE.finditer(text, start + 1, room + 1)]
                end = spaces[-1] if spaces else room
        pieces.append(text[start:end])
        start = end
    return pieces


def _is_json_lines(file: Path) -> bool:
    return file.name.removesuffix(".gz").lower().endswith(_JSON_LINES)


def _read_json_lines(file: Path, prompt_field: str, target_field: str) -> list[Example]:
    example = f'{{"{prompt_field}": "2+2=", "{target_field}": "4"}}'
    examples = []
    for where, fields in read_json_lines(file, example):
        for name in (prompt_field, target_field):
            if name not in fields:
                raise CalmError(
                    f"{where}: no field {name!r}, only {', '.join(map(repr, fields)) or 'none'}. "
                    "Other names can be given as prompt_field and target_field."
                )
            if not isinstance(fields[name], str):
                raise CalmError(
                    f"{where}: {name!r} holds {describe(fields[name])}, not text; a line is one "
                    f"object such as {example}."
                )
        prompt, target = fields.pop(prompt_field), fields.pop(target_field)
        if not target:
            raise CalmError(f"{where}: {target_field!r} is empty, so there is nothing to learn.")
        require_whole(prompt, prompt_field, where)
        require_whole(target, target_field, where)
        examples.append(Example(prompt, target, fields))
    return examples
