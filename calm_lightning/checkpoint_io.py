"""Checkpoints of a run on disk: each one whole and checked, or not there at all.

A checkpoint stays an ordinary one of Lightning, which `torch.load` reads. What is added is its own
SHA-256, as the comment of the zip archive that torch writes: the hash travels with the file, and
file and hash appear in one step. A file is written under another name in the same folder, synced,
read again, and only then put in place; what was there is kept beside it as NAME.previous.ckpt.
"""

import hashlib
import os
import re
import shutil
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO, cast

import torch
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from packaging.version import InvalidVersion, Version
from torch import Tensor
from typing_extensions import override

from calm_lightning.checkpoint import check_description
from calm_lightning.contracts import CalmError

LAST = "last.ckpt"
_SEAL = b"sha256:"
_SEAL_LENGTH = len(_SEAL) + 64
_COMMENT_LENGTH = 2  # bytes of the field that ends an archive without a comment
_LIGHTNINGS = {"pytorch-lightning_version": str, "epoch": int, "global_step": int, "loops": dict}
_LOOPS = {"fit_loop", "validate_loop", "test_loop", "predict_loop"}
"""What Lightning looks for when it goes on with a checkpoint."""


class SealedCheckpointIO(TorchCheckpointIO):
    """Writes checkpoints that a fault cannot leave half done, and refuses damaged ones.

    Raises:
        CalmError: If a checkpoint cannot be written (the one before it is still there), or one that
            is read is damaged.
    """

    @override
    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None
    ) -> None:
        if "://" in str(path):
            super().save_checkpoint(checkpoint, path, storage_options)
            return
        _put_in_place(checkpoint, Path(path))

    @override
    def load_checkpoint(
        self, path: str | Path, map_location: Any = "cpu", weights_only: bool | None = None
    ) -> dict[str, Any]:
        file = Path(path)
        if not file.is_file():  # a folder, or a place that is not on this disk
            safely = weights_only is not False  # Lightning takes None for False where it downloads
            loaded: dict[str, Any] = super().load_checkpoint(path, map_location, safely)
            return loaded
        loaded = read_checkpoint(file)
        for name, kind in _LIGHTNINGS.items():
            if not isinstance(loaded.get(name), kind):
                raise CalmError(_damaged(file, f"{name} is {str(loaded.get(name))[:40]!r}"))
        if lacking := sorted(_LOOPS - loaded["loops"].keys()):
            raise CalmError(_damaged(file, f"loops have no {lacking[0]}"))
        try:
            Version(loaded["pytorch-lightning_version"])
        except InvalidVersion as error:
            raise CalmError(_damaged(file, str(error))) from None
        return loaded


def previous(file: Path) -> Path:
    """Where the checkpoint is kept that was there before this one."""
    return file.with_suffix(f".previous{file.suffix}")


class _Sealing:
    """A file that `torch.save` writes an archive to, which `seal` ends with its own SHA-256.

    The hash is the archive's comment, whose length is the last thing that torch writes. So the last
    bytes are always held back; nothing else is kept in memory.
    """

    def __init__(self, stream: BinaryIO) -> None:
        self._stream, self._held = stream, b""
        self._digest = hashlib.sha256()
        self.size = 0

    def write(self, data: Any) -> int:
        """As a file does; of bytes, or of anything that gives a view of bytes."""
        view = memoryview(data).cast("B")
        if len(view) < _COMMENT_LENGTH:
            view = memoryview(self._held + bytes(view))
        else:
            self._put(self._held)
        self._put(view[:-_COMMENT_LENGTH])
        self._held = bytes(view[-_COMMENT_LENGTH:])
        return memoryview(data).nbytes

    def flush(self) -> None:
        """Nothing: `sync` does it once all is written."""

    def seal(self) -> None:
        """Write the comment; nothing can be written after it."""
        self._put(_SEAL_LENGTH.to_bytes(_COMMENT_LENGTH, "little"))
        self._stream.write(_SEAL + self._digest.hexdigest().encode())
        self.size += _SEAL_LENGTH

    def _put(self, data: bytes | memoryview) -> None:
        self._digest.update(data)
        self._stream.write(data)
        self.size += len(data)


def seal_of(file: Path) -> bool | None:
    """Whether a file's hash, which it carries, is that of its bytes; None if it carries none."""
    rest = file.stat().st_size - _SEAL_LENGTH
    digest = hashlib.sha256()
    with file.open("rb") as stream:
        while rest > 0 and (part := stream.read(min(rest, 1 << 20))):
            digest.update(part)
            rest -= len(part)
        seal = stream.read()
    return seal == _SEAL + digest.hexdigest().encode() if _SEAL in seal else None


def read_checkpoint(file: Path) -> dict[str, Any]:
    """A checkpoint of a run. Nothing but tensors and plain values is read, so no code can run.

    Raises:
        CalmError: If there is none, it is damaged, or it is none of ours.
    """
    if not file.exists():
        raise CalmError(f"There is no checkpoint '{file}'. Those of a run are in its checkpoints/.")
    if file.is_dir():
        return {}  # of a distributed strategy, which reads and checks it
    if seal_of(file) is False:
        raise CalmError(_damaged(file, "its bytes do not match its own SHA-256"))
    if not zipfile.is_zipfile(file):
        raise CalmError(_damaged(file, "it is cut short, or never was an archive of torch's"))
    try:
        checkpoint: dict[str, Any] = torch.load(file, weights_only=True, map_location="cpu")
        _check(checkpoint)
    except Exception as error:  # whatever a file that is no checkpoint makes torch raise
        reason = (str(error).strip() or repr(error)).splitlines()[0].partition(". ")[0]
        raise CalmError(_damaged(file, reason)) from None
    return checkpoint


def _check(checkpoint: Mapping[str, Any]) -> None:
    """Refuse what none of our checkpoints holds, by a fault of any kind."""
    weights = checkpoint["state_dict"]
    if not isinstance(weights, dict):
        raise TypeError(f"state_dict is {str(weights)[:40]!r}")
    for name, tensor in weights.items():
        if not (isinstance(name, str) and isinstance(tensor, Tensor)):
            raise TypeError(f"state_dict holds {str(name)[:40]!r} with no tensor")
    if not isinstance(checkpoint.get("settings", {}), dict):
        raise TypeError("settings is no mapping")
    if checkpoint.get("hyper_parameters"):
        raise ValueError("it holds hyper_parameters, which the config alone should say")
    if "composition" in checkpoint:
        check_description(checkpoint["composition"], checkpoint["backbones"])


def checkpoints_in(folder: Path) -> list[Path]:
    """The checkpoints that a run can go on from, the newest first; whole or not."""
    last = folder / LAST
    return [file for file in (last, previous(last)) if file.exists()]


def newest_checkpoint(folder: Path) -> tuple[Path, dict[str, Any], list[str]]:
    """The newest whole checkpoint of a run.

    Args:
        folder: The run's checkpoints/.

    Returns:
        Where it is, what it holds, and what is wrong with a newer one, if there is.

    Raises:
        CalmError: If there is none, or none that is whole.
    """
    wrong: list[str] = []
    for file in checkpoints_in(folder):
        try:
            return file, read_checkpoint(file), wrong
        except CalmError as error:
            wrong.append(str(error))
    if wrong:
        raise CalmError(
            "No checkpoint of this run is whole, so it cannot go on; nothing was changed. "
            + " ".join(wrong)
        )
    raise CalmError(
        f"There is nothing to go on with: {folder} holds no checkpoint. Leave --resume out to "
        "begin this run."
    )


def write_text(text: str, file: Path) -> None:
    """Write a small file whole or not at all."""
    temporary = file.with_name(f".{file.name}.partial")
    with temporary.open("w", encoding="utf-8") as stream:
        stream.write(text)
        sync(stream)
    temporary.replace(file)
    sync_folder(file.parent)


def sync(stream: Any) -> None:
    """Wait until what was written to a file is on the disk."""
    stream.flush()
    os.fsync(stream.fileno())


def sync_tree(folder: Path) -> None:
    """Wait until all that is below a folder is on the disk."""
    for file in folder.rglob("*"):
        if file.is_dir():
            sync_folder(file)
        else:
            with file.open("rb+") as stream:
                os.fsync(stream.fileno())
    sync_folder(folder)


def sync_folder(folder: Path) -> None:
    """Wait until the names in a folder are on the disk; after a rename."""
    if os.name == "nt":
        return  # Windows opens no folders
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _put_in_place(checkpoint: Mapping[str, Any], file: Path) -> None:
    temporary = file.with_name(f".{file.name}.partial")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as stream:
            sealing = _Sealing(stream)
            torch.save(checkpoint, cast(BinaryIO, sealing))  # it writes and flushes
            sealing.seal()
            sync(stream)
        if not seal_of(temporary) or temporary.stat().st_size != sealing.size:
            raise OSError("what is read back is not what was written")
        if file.is_file() and seal_of(file):
            _keep(file)
        temporary.replace(file)
        sync_folder(file.parent)
    except (OSError, RuntimeError) as error:  # torch tells of a full disk by the latter
        temporary.unlink(missing_ok=True)
        whole = [each for each in (file, previous(file)) if each.is_file() and seal_of(each)]
        kept = f"The one before it is whole: {whole[0]}." if whole else "There is none yet."
        reason = (error.strerror if isinstance(error, OSError) else None) or str(error)
        raise CalmError(
            f"The checkpoint {file} could not be written: {reason}. {kept} Make room, then "
            + ("go on with the same command and --resume." if whole else "begin again.")
        ) from error


def _keep(file: Path) -> None:
    """Give a file a second name, so that it is never gone while it gets a successor."""
    second = previous(file).with_name(f".{previous(file).name}.partial")
    second.unlink(missing_ok=True)
    try:
        os.link(file, second)
    except OSError:  # some file systems know no second names
        shutil.copyfile(file, second)
    second.replace(previous(file))


def _damaged(file: Path, reason: str) -> str:
    reason = re.sub(r"\s+", " ", reason)
    return f"'{file}' is damaged, or is no checkpoint of `calm fit`: {reason}."
