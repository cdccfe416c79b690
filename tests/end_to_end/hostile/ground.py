"""What hostile cases are made of: what lies on the disk, the command, and what it must say."""

import gzip
import json
import pickle
import shlex
import shutil
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

import torch
import yaml
from safetensors.torch import load_file, save_file

HARM = "harm"
"""A file that appears in the ground if any of the planted code ran."""

ANCHOR = "configs/models/tiny/anchor"
"""A config and a tokenizer without weights, seen from the ground."""

REMOVED = object()
"""As a change: the entry is taken away."""

Changes: TypeAlias = Mapping[str, Any]
"""What is put where: `{"backbones/0/name": 5}`."""


@dataclass(frozen=True)
class Ground:
    """The folder in which a case happens; it is the current one while the command runs.

    Attributes:
        folder: Where everything is written.
        run: A finished run with its model and checkpoints, outside of it, to be copied.
        backbone: A tiny model with weights, to be copied.
    """

    folder: Path
    run: Path
    backbone: Path


Maker: TypeAlias = Callable[[Path, Ground], None]
"""Puts something at a path."""


@dataclass(frozen=True)
class Case:
    """A command that must be refused.

    Attributes:
        name: Of the case.
        command: What is typed after `calm`.
        says: What the message must name.
        files: What lies in the ground before, by path, in this order: text, bytes, or who makes it.
    """

    name: str
    command: str
    says: tuple[str, ...]
    files: Mapping[str, str | bytes | Maker] = field(default_factory=dict)

    def prepare(self, ground: Ground) -> None:
        """Put everything in its place."""
        for name, content in self.files.items():
            place = ground.folder / name
            place.parent.mkdir(parents=True, exist_ok=True)
            if isinstance(content, str):
                place.write_text(content, encoding="utf-8")
            elif isinstance(content, bytes):
                place.write_bytes(content)
            else:
                content(place, ground)

    @property
    def words(self) -> list[str]:
        """The command's arguments."""
        return shlex.split(self.command)


# ---------------------------------------------------------------------- configs


def config(changes: Changes | None = None) -> str:
    """A config of `calm fit` over the tiny models, with changes."""
    said: dict[str, Any] = {
        "model": {
            "anchor": {"path": ANCHOR, "weights": "random"},
            "augmenting": [{"path": ANCHOR, "weights": "random", "seed": 1}],
            "composition": {"class_path": "CrossAttention", "init_args": {"every": 2}},
        },
        "data": {
            "class_path": "KeyValue",
            "init_args": {"num_keys": 20, "evaluation_examples": 2, "batch_size": 2},
        },
        "trainer": {"accelerator": "cpu", "max_steps": 1, "num_sanity_val_steps": 0},
    }
    _put(said, changes or {})
    return yaml.safe_dump(said)


def task(name: str, **options: Any) -> str:
    """A config whose data is this task."""
    return config({"data": {"class_path": name, "init_args": {"batch_size": 1, **options}}})


# ---------------------------------------------------------------------- what is planted


class Harm:
    """Unpickled, it makes the file."""

    def __init__(self, ground: Ground) -> None:
        self.file = ground.folder / HARM

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.file,))


def pickled(place: Path, ground: Ground) -> None:
    """A plain pickle that does harm."""
    place.write_bytes(pickle.dumps({"state_dict": Harm(ground)}))


def torch_pickled(place: Path, ground: Ground) -> None:
    """What torch.save writes, with harm in it."""
    torch.save({"state_dict": {}, "more": Harm(ground)}, place)


def module_of(name: str = "Nothing") -> Maker:
    """A module that does harm when it is imported, with a class of this name."""

    def make(place: Path, ground: Ground) -> None:
        file = str(ground.folder / HARM)
        place.write_text(
            f"from pathlib import Path\nPath({file!r}).touch()\nclass {name}:\n    pass\n"
        )

    return make


def packed(content: bytes) -> bytes:
    """Content as gzip packs it."""
    return gzip.compress(content, mtime=0)


def header(said: Any, data: bytes = b"") -> bytes:
    """A safetensors file with this header, true or not."""
    text = said if isinstance(said, bytes) else json.dumps(said).encode()
    return struct.pack("<Q", len(text)) + text + data


def linked(target: str) -> Maker:
    """A symbolic link."""
    return lambda place, ground: place.symlink_to(target)


def folder(place: Path, ground: Ground) -> None:
    """An empty folder."""
    place.unlink(missing_ok=True)
    place.mkdir()


def removed(place: Path, ground: Ground) -> None:
    """Nothing any more."""
    place.unlink()


# ---------------------------------------------------------------------- copies with a fault


def model(changes: Changes | None = None) -> Maker:
    """A copy of the trained model, with changes in its config.json."""
    return _copied(lambda ground: ground.run / "model", changes or {})


def backbone(changes: Changes | None = None) -> Maker:
    """A copy of the plain model, with changes in its config.json."""
    return _copied(lambda ground: ground.backbone, changes or {})


def run(changes: Changes | None = None) -> Maker:
    """A copy of the run without its model, with changes in its checkpoint."""

    def make(place: Path, ground: Ground) -> None:
        shutil.copytree(ground.run, place, ignore=shutil.ignore_patterns("model"))
        last = place / "checkpoints" / "last.ckpt"
        said = torch.load(last, weights_only=True)
        _put(said, changes or {})
        torch.save(said, last)

    return make


def tensors(change: Callable[[dict[str, torch.Tensor]], object]) -> Maker:
    """Other tensors in the safetensors file that is there."""

    def make(place: Path, ground: Ground) -> None:
        held = load_file(place)
        change(held)
        save_file(held, place, metadata={"format": "pt"})

    return make


def first(change: Callable[[torch.Tensor], torch.Tensor]) -> Maker:
    """The same, with one of the tensors changed."""

    def make(held: dict[str, torch.Tensor]) -> None:
        name = min(held)
        held[name] = change(held[name]).contiguous()

    return tensors(make)


def _copied(source: Callable[[Ground], Path], changes: Changes) -> Maker:
    def make(place: Path, ground: Ground) -> None:
        shutil.copytree(source(ground), place)
        said = json.loads((place / "config.json").read_text())
        _put(said, changes)
        (place / "config.json").write_text(json.dumps(said))

    return make


def _put(said: Any, changes: Changes) -> None:
    for path, value in changes.items():
        place = said
        *steps, last = (int(step) if step.isdecimal() else step for step in path.split("/"))
        for step in steps:
            place = place[step]
        if value is REMOVED:
            del place[last]
        else:
            place[last] = value
