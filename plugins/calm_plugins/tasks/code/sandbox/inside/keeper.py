"""The keeper: a process for one job, that starts judge and candidate and outlives both.

It reads neither the program nor the tests: the job goes from the caller straight to the judge, and
the judge sends the candidate its program. What it adds is time, and the reason of an end.

The kernel ends a box that has used its processor time. The keeper ends a job in which nobody
computes: it looks now and then, and counts the time in which no thread of either box runs, nor
would if the machine let it. So a busy machine makes no program late.
"""

import json
import os
import select
import signal
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

from . import box, kernel
from .candidate import serve
from .judge import judge
from .settings import BoxSettings
from .wire import Gone, Wire

_LARGEST_VERDICT = 1 << 16
_BEGUN = b" "  # white space before the verdict's JSON: from here on the judge is in its box
_JUDGES_SHARE = 2  # the judge has this many times the candidate's time and memory
_LOOK_SECONDS = 0.1


def main() -> None:
    """Read a job from standard input, and write its verdict to standard output, both as JSON."""
    kernel.die_with_parent(int(sys.argv[2]))
    settings = BoxSettings(**json.loads(sys.argv[1]))
    started, keeper = time.monotonic(), os.getpid()
    os.chdir(box.LIBRARY)
    answers, requests, verdicts = os.pipe(), os.pipe(), os.pipe()

    def candidate() -> None:
        wire = Wire(requests[0], answers[1])
        try:
            box.enter(settings, keep=(requests[0], answers[1]), parent=keeper)
        except OSError as error:
            wire.send({"failure": str(error)})
            return
        wire.send({"ready": True})
        serve(wire)

    def judging() -> None:
        wire = Wire(answers[0], requests[1])
        try:
            keep = (0, answers[0], requests[1], verdicts[1])
            box.enter(_for_the_judge(settings), keep, parent=keeper)
            os.write(verdicts[1], _BEGUN)
            said = wire.receive()
            verdict = {"outcome": "failure", "detail": str(said.get("failure"))}
            if "ready" in said:
                with open(0, "rb") as stream:
                    verdict = judge(wire, json.load(stream))
        except (OSError, Gone) as error:
            verdict = {"outcome": "failure", "detail": str(error)}
        os.write(verdicts[1], json.dumps(verdict).encode())

    boxes = {"candidate": _fork(candidate), "judge": _fork(judging)}
    for descriptor in (*answers, *requests, verdicts[1]):
        os.close(descriptor)
    said = _read(verdicts[0], list(boxes.values()), settings.waiting_seconds)
    # With namespaces the process we know is the one outside, which ends the other and then itself.
    how = signal.SIGTERM if "namespaces" in settings.layers else signal.SIGKILL
    used = {name: _end(pid, how) for name, pid in boxes.items()}
    verdict = _verdict(said, used["candidate"], settings)
    verdict |= {"seconds": time.monotonic() - started, "cpu_seconds": used["candidate"]}
    print(json.dumps(verdict))


def _for_the_judge(settings: BoxSettings) -> BoxSettings:
    """The judge must not run out of what the candidate may use."""
    return settings._replace(
        cpu_seconds=settings.cpu_seconds * _JUDGES_SHARE,
        memory_mib=settings.memory_mib * _JUDGES_SHARE,
    )


def _verdict(said: bytes | None, used: float, settings: BoxSettings) -> dict[str, Any]:
    if said == b"":
        return {"outcome": "failure", "detail": "the judge ended before it began"}
    if said is None:
        detail = f"more than {settings.waiting_seconds:g} seconds of waiting"
        return {"outcome": "timeout", "detail": detail}
    try:
        verdict: dict[str, Any] = json.loads(said)
    except ValueError:
        return {"outcome": "ended", "detail": "the tests ran out of time or memory on its answers"}
    # The kernel counts ticks for the limit, and less for a virtual processor that had to wait.
    if verdict["outcome"] == "ended" and used > settings.cpu_seconds / 2:
        detail = f"more than {settings.cpu_seconds} seconds of processor time"
        return {"outcome": "timeout", "detail": detail}
    return verdict


def _fork(work: Callable[[], None]) -> int:
    pid = os.fork()
    if pid:
        return pid
    try:
        work()
    except BaseException:  # the candidate ends here whenever the judge is done
        os._exit(1)
    os._exit(0)


def _read(descriptor: int, boxes: Sequence[int], waiting_seconds: float) -> bytes | None:
    """Everything that is written, until all writers have ended; None if nobody computes so long."""
    parts: list[bytes] = []
    waited = 0.0
    while sum(map(len, parts)) < _LARGEST_VERDICT:
        # Unforeseeable, or a program could be awake only when it is looked at.
        pause = _LOOK_SECONDS * (0.5 + os.urandom(1)[0] / 255)
        if select.select([descriptor], [], [], pause)[0]:
            part = os.read(descriptor, _LARGEST_VERDICT)
            if not part:
                break
            parts.append(part)
        elif not any(map(_computes, boxes)):
            waited += pause
            if waited >= waiting_seconds:
                return None
    return b"".join(parts)


def _computes(pid: int) -> bool:
    """Whether a thread of a box runs or is kept from running; not, if the kernel does not say.

    The states of threads say so also of a process whose threads come and go, which the times that
    the kernel keeps of each thread (`schedstat`) do not: those of a thread end with it.
    """
    try:
        with open(f"/proc/{pid}/task/{pid}/children") as stream:
            inside = stream.read().split()  # with namespaces the box is a child
        threads = f"/proc/{inside[0] if inside else pid}/task"
        return any(_state(f"{threads}/{each}/stat") == "R" for each in os.listdir(threads))
    except OSError:
        return False


def _state(file: str) -> str:
    """Of a thread, as a letter: what follows its name, in which anything may stand."""
    try:
        with open(file, errors="replace") as stream:
            return stream.read().rpartition(")")[2].split()[0]
    except OSError:  # it has just ended
        return ""


def _end(pid: int, how: signal.Signals) -> float:
    """End a box, with all that is in it; its processor time in seconds."""
    os.kill(pid, how)
    _, _, used = os.wait4(pid, 0)
    return used.ru_utime + used.ru_stime
