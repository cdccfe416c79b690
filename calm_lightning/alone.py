"""One process at a time in a folder that a command writes."""

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from calm_lightning.contracts import CalmError


@contextmanager
def alone_in(folder: Path, command: str, option: str) -> Iterator[None]:
    """Keep others out of a folder, which is made if there is none.

    The lock is the operating system's: it ends with the process, so one that was killed leaves none
    behind. The number of that process is written beside it, for the message.

    Args:
        folder: Where results are written.
        command: What is at work there.
        option: The option that names another folder.

    Raises:
        CalmError: If another process is at work there, or nothing can be written there.
    """
    holder = folder / ".process"
    lock = FileLock(folder / ".lock")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock.acquire(timeout=0)
    except Timeout:
        raise CalmError(
            f"Another `{command}` ({_said_by(holder)}) is at work in {str(folder)!r}. Wait "
            f"until it has ended, stop it, or name another folder by {option}. Nothing was changed."
        ) from None
    except OSError as error:
        raise CalmError(
            f"The results cannot go into {str(folder)!r}: {error.strerror}. Name a folder by "
            f"{option}."
        ) from None
    try:
        with suppress(OSError):
            text = f"process {os.getpid()} on {socket.gethostname()}"
            holder.write_text(text, encoding="utf-8")
        yield
    finally:
        with suppress(OSError):
            holder.unlink()
        lock.release()


def _said_by(holder: Path) -> str:
    try:
        return holder.read_text(encoding="utf-8")
    except OSError:
        return "it has only just begun"
