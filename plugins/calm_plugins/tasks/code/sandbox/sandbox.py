"""The caller's side of the sandbox: settings, which layers there are, many jobs at a time."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from calm_lightning.contracts import CalmError
from calm_plugins.tasks.code.sandbox.inside.settings import LAYERS, BoxSettings

Outcome = Literal["passed", "wrong", "error", "ended", "timeout"]

_BOOT = "import sys; sys.path.append(sys.argv.pop()); from inside.keeper import main; main()"
_HERE = str(Path(__file__).parent)
_LONGEST_SECONDS = 3600  # only a fault of ours, or of the machine, takes so long
_TRIES = 3


@dataclass(frozen=True)
class Job:
    """A program that nobody trusts, and how to tell whether it is right.

    Attributes:
        program: Python source.
        tests: Python source that raises if the program is wrong. It runs in another process than
            the program.
        names: What the tests use of the program: functions, classes, variables (as they are when
            it has been loaded). A call is carried over with its arguments; they and the result
            arrive as copies, if they are plain data. A program's own objects stay where they are
            and can be called, read, set and listed. Other objects of the tests, functions say,
            cannot be passed.
        setup: Python source that is run before the tests, beside them: imports, helpers.
    """

    program: str
    tests: str
    names: Sequence[str]
    setup: str = ""


@dataclass(frozen=True)
class Verdict:
    """What came of a job.

    Attributes:
        outcome: `passed`; `wrong`: a test failed; `error`: an exception, or an answer of a type
            that the tests cannot deal with; `ended`: the program ended its process, or was ended
            for what it used; `timeout`: too much time.
        detail: The test, the exception or the limit.
        seconds: From start to end.
        cpu_seconds: Processor time of the program, and of building its box.
    """

    outcome: Outcome
    detail: str
    seconds: float
    cpu_seconds: float

    @property
    def passed(self) -> bool:
        """Whether every test passed."""
        return self.outcome == "passed"


@dataclass(frozen=True)
class SandboxSettings:
    """What a program may use, and what must hold it.

    Args:
        cpu_seconds: Processor time of a program. It decides whether a program is too slow, and not
            the time on the wall, which depends on what else the machine does.
        waiting_seconds: Time that it may wait, for anything but a processor: sleep, say.
        memory_mib: Memory of a program.
        writable_mib: What a program may write to /tmp.
        workers: Jobs at a time; 0: as many as there are processors.
        required: Layers without which nothing is run: user, namespaces, limits, landlock, seccomp.
            Others are used where the kernel has them.
        layers: Layers to use at most; to see what holds without one.

    Raises:
        CalmError: If a setting makes no sense.
    """

    cpu_seconds: int = 10
    waiting_seconds: float = 10.0
    memory_mib: int = 512
    writable_mib: int = 16
    workers: int = 0
    required: tuple[str, ...] = LAYERS
    layers: tuple[str, ...] = LAYERS

    def __post_init__(self) -> None:
        for name, least in (
            ("cpu_seconds", 1),
            ("waiting_seconds", 0.1),
            ("memory_mib", 64),
            ("writable_mib", 1),
            ("workers", 0),
        ):
            value = getattr(self, name)
            if value < least:
                raise CalmError(f"sandbox.{name} must be at least {least}: got {value}.")
        for layer in (*self.required, *self.layers):
            if layer not in LAYERS:
                raise CalmError(
                    f"The sandbox has no layer {layer!r}; its layers are {', '.join(LAYERS)}."
                )


class Sandbox:
    """Runs Python programs that nobody trusts, and tells whether they are right.

    Each job has two boxes, with the same layers around them (`inside/box.py` lists them): one
    runs the program, the other the tests. docs/security.md says what this holds back and what not.
    Whether the kernel has the required layers is found out by `check`, or when the first job runs.
    """

    def __init__(self, settings: SandboxSettings | None = None) -> None:
        self.settings = settings or SandboxSettings()
        self.workers = self.settings.workers or _processors()
        self._running: set[subprocess.Popen[bytes]] = set()

    @cached_property
    def missing(self) -> dict[str, str]:
        """The layers that cannot be put on here, each with the reason."""
        if not self._fault_of(self.settings.layers):
            return {}
        works: list[str] = []
        reasons: dict[str, str] = {}
        # Where root alone may read the interpreter's library, an ordinary user needs the view of
        # it that namespaces give.
        for layer in sorted(self.settings.layers, key=lambda each: each != "namespaces"):
            if fault := self._fault_of([*works, layer]):
                reasons[layer] = fault
            else:
                works.append(layer)
        return reasons

    @property
    def active(self) -> tuple[str, ...]:
        """The layers that are put on."""
        return tuple(layer for layer in self.settings.layers if layer not in self.missing)

    def check(self) -> None:
        """See whether the sandbox can be trusted on this machine.

        Raises:
            CalmError: If a required layer is missing.
        """
        absent = {
            layer: self.missing.get(layer, "it is switched off")
            for layer in self.settings.required
            if layer not in self.active
        }
        if absent:
            reasons = "; ".join(f"{layer} ({reason})" for layer, reason in absent.items())
            raise CalmError(
                f"The sandbox does not run code here: of its layers ({', '.join(LAYERS)}) these "
                f"are required and missing: {reasons}. docs/security.md says what to do on which "
                f"system. To run with fewer: sandbox.required=[{', '.join(self.active)}]."
            )

    def judge(
        self, jobs: Sequence[Job], progress: Callable[[int, int], None] | None = None
    ) -> list[Verdict]:
        """Run every job, several at a time.

        Args:
            jobs: What to run.
            progress: Told, after each job, how many are done and how many there are.

        Raises:
            CalmError: As `check`; if a box cannot be built although it could before; if the tests
                do not run, or pass to the program what is no plain data.
        """
        if not jobs:
            return []
        self.check()
        verdicts: list[Verdict | None] = [None] * len(jobs)
        with ThreadPoolExecutor(self.workers, thread_name_prefix="sandbox") as pool:
            futures = {pool.submit(self._run, job, self.active): i for i, job in enumerate(jobs)}
            try:
                for done, future in enumerate(as_completed(futures), start=1):
                    verdicts[futures[future]] = future.result()
                    if progress is not None:
                        progress(done, len(jobs))
            except BaseException:  # also Ctrl-C: leave nothing running
                pool.shutdown(wait=False, cancel_futures=True)
                self._kill_all()
                raise
        return [verdict for verdict in verdicts if verdict is not None]

    def _run(self, job: Job, layers: Sequence[str]) -> Verdict:
        for _ in range(_TRIES):  # a box that cannot be built now may be built a moment later
            said = self._said(job, layers)
            if said["outcome"] != "failure":
                return Verdict(**said)
        raise CalmError(f"The sandbox cannot run a job: {said['detail']}.")

    def _said(self, job: Job, layers: Sequence[str]) -> dict[str, Any]:
        """What the keeper of one job says."""
        own = self.settings
        box = BoxSettings(
            layers, own.cpu_seconds, own.waiting_seconds, own.memory_mib, own.writable_mib
        )
        given = (json.dumps(box._asdict()), str(os.getpid()), _HERE)
        command = [sys.executable, "-I", "-S", "-X", "utf8", "-c", _BOOT, *given]
        process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            cwd="/",
            env={},
            start_new_session=True,
        )
        self._running.add(process)
        try:
            out, err = process.communicate(json.dumps(asdict(job)).encode(), _LONGEST_SECONDS)
        except subprocess.TimeoutExpired:
            raise CalmError(
                f"The sandbox's own process did not come to an end in {_LONGEST_SECONDS} seconds."
            ) from None
        finally:
            process.kill()
            process.wait()
            self._running.discard(process)
        try:
            said: dict[str, Any] = json.loads(out)
        except ValueError:
            last = (err.decode(errors="replace").strip().splitlines() or ["nothing"])[-1]
            raise CalmError(f"The sandbox's own process failed; it said: {last}") from None
        return said

    def _kill_all(self) -> None:
        for process in tuple(self._running):
            process.kill()

    def _fault_of(self, layers: Sequence[str]) -> str:
        """What is wrong with these layers; nothing, if a right answer passes and a wrong fails."""
        if not sys.platform.startswith("linux"):
            return f"it needs Linux, and this is {sys.platform}"
        right = Job(_PROBE, "assert answer(6) == 42", ["answer"])
        wrong = Job(_PROBE, "assert answer(7) == 42", ["answer"])
        try:
            verdicts = [self._run(job, layers) for job in (right, wrong)]
        except CalmError as error:
            return str(error).removesuffix(".")
        if [verdict.outcome for verdict in verdicts] == ["passed", "wrong"]:
            return ""
        if "ModuleNotFoundError" in verdicts[0].detail:
            library = Path(os.__file__).parent.parent
            return f"an ordinary user, as whom programs run, may not read Python's {library}"
        return f"a right and a wrong program gave {[(v.outcome, v.detail) for v in verdicts]}"


def _processors() -> int:
    known = getattr(os, "sched_getaffinity", None)  # Linux
    return len(known(0)) if known else os.cpu_count() or 1


# Modules of both kinds, source and shared library, that the fresh interpreter has not loaded yet.
_PROBE = "import cmath, colorsys\ndef answer(n): return 7 * n"
