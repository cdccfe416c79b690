"""Candidates on disk: drawn once, for training, validation and test, and never lost.

A cache folder has one folder for each way of making candidates: its name is a hash of the model's
fingerprint and of the settings, which `about.json` in it tells in full. The candidates are JSON
lines, one for each prompt. Every process appends to a file of its own, so several may write at a
time, and one that is stopped half-way leaves at worst a last line without an end, which counts as
not written.
"""

import hashlib
import json
import os
import secrets
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from calm_lightning.contracts import CalmError
from calm_lightning.plain_data import parse_json

ABOUT = "about.json"

Candidates = tuple[str, ...]


class Store:
    """The candidates of one model, made in one way.

    Args:
        folder: The cache folder; None keeps them in memory only.
        about: All that decides what the candidates of a prompt are.
        count: Candidates of each prompt.

    Raises:
        CalmError: If the folder holds something else, or is damaged; the file and line are named.
    """

    def __init__(self, folder: Path | None, about: Mapping[str, Any], count: int) -> None:
        self.about = dict(about)
        self.count = count
        self.folder = folder
        self._known: dict[str, Candidates] = {}
        self._shard: Path | None = None
        self._sizes: dict[Path, int] = {}  # of the files that were read, when they were
        if folder is not None:
            self._read()

    def __len__(self) -> int:
        return len(self._known)

    def __contains__(self, prompt: str) -> bool:
        return prompt in self._known

    def __getitem__(self, prompt: str) -> Candidates:
        return self._known[prompt]

    @property
    def place(self) -> Path | None:
        """The folder of these candidates."""
        return None if self.folder is None else self.folder / key_of(self.about)

    def add(self, pools: Mapping[str, Candidates]) -> None:
        """Keep candidates of further prompts; they are on disk when this returns.

        Raises:
            CalmError: If they cannot be written.
        """
        self._known |= pools
        if self.place is None:
            return
        lines = [{"prompt": prompt, "candidates": pools[prompt]} for prompt in pools]
        try:
            shard = self._shard or self._new_shard(self.place)
            self._shard = None  # a file that a failure leaves behind is not written to again
            with shard.open("a", encoding="utf-8") as stream:
                stream.writelines(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
        except OSError as error:
            raise CalmError(
                f"Candidates cannot be written to {self.place}: {error}. Those that were written "
                "before are kept there; the run can be started again."
            ) from error
        self._shard = shard

    def look_again(self) -> None:
        """Take in what other processes have written by now.

        Raises:
            CalmError: If a file is damaged.
        """
        for file in sorted(self.place.glob("*.jsonl")) if self.place is not None else ():
            if file != self._shard and file.stat().st_size != self._sizes.get(file):
                self._read_shard(file)

    def others(self) -> list[str]:
        """What the other folders of the cache hold, each in a sentence."""
        if self.folder is None or not self.folder.is_dir():
            return []
        found = []
        for file in sorted(self.folder.glob(f"*/{ABOUT}")):
            if file.parent != self.place:
                about = _read_about(file)
                differing = {k: v for k, v in about.items() if self.about.get(k) != v}
                found.append(f"{file.parent.name} has {_told(differing)}")
        return found

    def _new_shard(self, place: Path) -> Path:
        place.mkdir(parents=True, exist_ok=True)
        name = f"{os.getpid()}-{secrets.token_hex(4)}"
        temporary = place / f"{name}.tmp"
        temporary.write_text(json.dumps(self.about, indent=1, ensure_ascii=False), "utf-8")
        temporary.replace(place / ABOUT)
        return place / f"{name}.jsonl"

    def _read(self) -> None:
        assert self.folder is not None
        if self.folder.exists() and not self.folder.is_dir():
            raise CalmError(f"cache={self.folder} is a file; name a folder for the candidates.")
        place = self.place
        assert place is not None
        if (place / ABOUT).is_file():
            about = _read_about(place / ABOUT)
            if key_of(about) != place.name:
                raise CalmError(
                    f"{place} was made for something else: {ABOUT} says {_told(about)}, whose "
                    f"name would be {key_of(about)}. Move the folder away, or name another cache; "
                    "nothing was changed."
                )
        for file in sorted(place.glob("*.jsonl")):
            self._read_shard(file)

    def _read_shard(self, file: Path) -> None:
        content = file.read_bytes()
        self._sizes[file] = len(content)
        lines = content.split(b"\n")
        for number, line in enumerate(lines[:-1], start=1):  # what has no end was not written
            try:
                said = parse_json(line)
                prompt, candidates = said["prompt"], tuple(said["candidates"])
                if not isinstance(prompt, str) or not isinstance(said["candidates"], list):
                    raise TypeError("a text as prompt and a list of candidates are wanted")
            except (ValueError, KeyError, TypeError) as error:
                raise CalmError(
                    f"{file}, line {number} is damaged ({error!r}). Delete that line; its "
                    "candidates are drawn again, and the others are kept."
                ) from None
            if len(candidates) != self.count or not all(map(_is_text, candidates)):
                raise CalmError(
                    f"{file}, line {number}: {len(candidates)} candidates where {self.count} texts "
                    "should be. Delete that line; its candidates are drawn again."
                )
            self._known[prompt] = candidates


def key_of(about: Mapping[str, Any]) -> str:
    """The name of a folder of candidates."""
    said = json.dumps(about, sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(said.encode()).hexdigest()[:16]


def _is_text(said: Any) -> bool:
    """Whether this is a text that a tokenizer takes: half of a pair of escapes is none."""
    return isinstance(said, str) and not any("\ud800" <= one <= "\udfff" for one in said)


def _read_about(file: Path) -> dict[str, Any]:
    try:
        about: dict[str, Any] = parse_json(file.read_text(encoding="utf-8"))
        about.keys()
    except (OSError, ValueError, AttributeError) as error:
        raise CalmError(
            f"{file} does not say what the candidates beside it are of ({error!r}). Move the "
            "folder away; nothing was changed."
        ) from None
    return about


def _told(about: Mapping[str, Any]) -> str:
    return ", ".join(f"{name}={str(value)[:40]!r}" for name, value in about.items())


def missing(store: Store, prompts: Sequence[str]) -> list[str]:
    """Which prompts have no candidates yet, each once."""
    return [prompt for prompt in dict.fromkeys(prompts) if prompt not in store]
