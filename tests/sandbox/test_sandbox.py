"""Right programs pass, wrong ones do not, and whatever a program does is its own affair."""

import errno
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from calm_lightning.contracts import CalmError
from calm_plugins.tasks.code.sandbox import LAYERS, Job, Sandbox, SandboxSettings, Verdict
from calm_plugins.tasks.code.sandbox import sandbox as module

RIGHT = Job("def double(n): return 2 * n", "assert double(4) == 8", ["double"])
WRONG = Job("def double(n): return 2 + n", "assert double(4) == 8", ["double"])


def judge(sandbox: Sandbox, program: str, tests: str, *names: str, setup: str = "") -> Verdict:
    (verdict,) = sandbox.judge([Job(program, tests, names, setup)])
    return verdict


# ------------------------------------------------------------------ verdicts


@pytest.mark.parametrize(
    ("program", "outcome", "detail"),
    [
        ("def f(n): return n + 1", "passed", ""),
        ("def f(n): return n", "wrong", "assert f(1) == 2, 'one more'"),
        ("def f(n): return 1 / 0", "error", "ZeroDivisionError: division by zero"),
        ("def f(n): return None + n", "error", "TypeError: unsupported operand"),
        ("def g(n): return n + 1", "error", "AttributeError: module 'answer' has no attribute 'f'"),
        ("def f(n: return", "error", "SyntaxError"),
        ("def f(n):\n\treturn 1\n        return 2", "error", "TabError"),
        ("def f(n): return f(n)", "error", "RecursionError"),
        ("def f(n): return [0] * 10**10", "error", "MemoryError"),
        ("def f(n): return 'x' * 10**8", "error", "at most 16777216 are carried"),
        ("def f(n): raise SystemExit", "error", "SystemExit"),
        ("def f(n): import os; os._exit(0)", "ended", "the other side has ended"),
        ("def f(n): import ctypes; ctypes.string_at(0)", "ended", "the other side has ended"),
        ("while True: pass", "timeout", "more than 2 seconds of processor time"),
        ("def f(n): return input()", "error", "EOFError"),
    ],
)
def test_an_outcome_says_what_happened(
    sandbox: Sandbox, program: str, outcome: str, detail: str
) -> None:
    verdict = judge(sandbox, program, "assert f(1) == 2, 'one more'", "f")
    assert verdict.outcome == outcome, verdict
    assert verdict.passed == (outcome == "passed")
    assert detail in verdict.detail
    assert 0 < verdict.cpu_seconds < 4


def test_waiting_is_ended_too(sandbox: Sandbox) -> None:
    impatient = Sandbox(SandboxSettings(cpu_seconds=1, waiting_seconds=1.5))
    verdict = judge(impatient, "import time; time.sleep(60)", "pass")
    assert verdict.outcome == "timeout"
    assert "more than 1.5 seconds of waiting" in verdict.detail


@pytest.mark.parametrize(("threads", "seconds"), [(1, 1.5), (75, 0.02)])
def test_a_program_whose_threads_compute_does_not_wait(
    sandbox: Sandbox, threads: int, seconds: float
) -> None:
    """Also if they come and go; its first thread waits for them all the time."""
    impatient = Sandbox(SandboxSettings(waiting_seconds=0.5))
    program = f"""
import threading, time
def spin():
    while time.thread_time() < {seconds}: pass
def f():
    for _ in range({threads}):
        thread = threading.Thread(target=spin)
        thread.start()
        thread.join()
    return True
"""
    assert judge(impatient, program, "assert f()", "f").outcome == "passed"


def test_threads_that_hold_little_fit_into_the_memory(sandbox: Sandbox) -> None:
    program = """
import threading
def f():
    together = threading.Barrier(17)
    def hold():
        held = bytearray(10_000)
        together.wait()
    for _ in range(16):
        threading.Thread(target=hold).start()
    together.wait()
    return True
"""
    assert judge(sandbox, program, "assert f()", "f").outcome == "passed"


def test_verdicts_come_in_the_order_of_the_jobs_and_progress_is_told(sandbox: Sandbox) -> None:
    told: list[tuple[int, int]] = []
    jobs = [RIGHT, WRONG, WRONG, RIGHT, RIGHT, WRONG, RIGHT]
    verdicts = sandbox.judge(jobs, lambda done, total: told.append((done, total)))
    assert [verdict.passed for verdict in verdicts] == [job is RIGHT for job in jobs]
    assert told == [(done, 7) for done in range(1, 8)]
    assert sandbox.judge([]) == []


def test_a_hungry_program_does_not_disturb_its_neighbours(sandbox: Sandbox) -> None:
    hungry = [
        Job("kept = []\nwhile True: kept.append(bytearray(1 << 20))", "pass", []),
        Job("import threading\nfor _ in range(6):\n threading.Thread(target=lambda: [None for _ in "
            "iter(int, 1)], daemon=True).start()\nwhile True: pass", "pass", []),
        Job("import os\nwhile True: os.write(1, b'x' * 100000)", "pass", []),
        Job("def f(): return [[0] * 1000] * 1000", "f()\n" * 50, ["f"]),
    ]  # fmt: skip
    verdicts = sandbox.judge([each for h in hungry for each in (h, RIGHT, WRONG)])
    assert [verdict.outcome for verdict in verdicts[1::3]] == ["passed"] * 4
    assert [verdict.outcome for verdict in verdicts[2::3]] == ["wrong"] * 4
    assert [verdict.passed for verdict in verdicts[:9:3]] == [False] * 3


# ------------------------------------------------------------------ what programs can do


def test_ordinary_programs_run_as_anywhere(sandbox: Sandbox) -> None:
    program = """
import base64, bisect, calendar, cmath, collections, copy, dataclasses, datetime, decimal, enum
import fractions, functools, hashlib, heapq, io, itertools, json, math, operator, random, re
import statistics, string, sys, tempfile, textwrap, threading, typing, unicodedata, zlib, sqlite3
from typing import List

@dataclasses.dataclass
class Point:
    x: int
    y: int = 0

def everything(n: int) -> List[object]:
    print("noise", n, file=sys.stderr)
    with tempfile.NamedTemporaryFile("w+") as stream:
        stream.write("kept")
        stream.seek(0)
        text = stream.read()
    results = []
    thread = threading.Thread(target=lambda: results.append(hashlib.md5(b"x").hexdigest()[:4]))
    thread.start()
    thread.join()
    return [text, dataclasses.astuple(Point(n)), re.sub("b", "c", "abc"), results, __name__,
            str(decimal.Decimal("0.1") + 1), json.dumps({"a": 1}), sys.getrecursionlimit()]
"""
    tests = """
assert everything(3) == [
    "kept", (3, 0), "acc", ["9dd4"], "answer", "1.1", '{"a": 1}', 1000
], everything(3)
"""
    assert judge(sandbox, program, tests, "everything").outcome == "passed"


def test_files_are_made_copied_renamed_and_removed_in_a_temporary_folder(sandbox: Sandbox) -> None:
    program = """
import gzip, os, pathlib, shutil, sqlite3, tempfile, zipfile

def files():
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        first = folder / "first"
        first.touch()
        first.touch()
        first.write_text("kept")
        shutil.copyfile(first, folder / "copy")
        (folder / "copy").rename(folder / "renamed")
        with open(folder / "renamed", "r+") as stream:
            stream.truncate(2)
        with gzip.open(folder / "packed", "wt") as stream:
            stream.write("packed")
        with zipfile.ZipFile(folder / "zip", "w") as archive:
            archive.write(first, "inner")
        zipfile.ZipFile(folder / "zip").extractall(folder / "out")
        with sqlite3.connect(":memory:") as database:
            rows = database.execute("select 1").fetchall()
        found = [(folder / "renamed").read_text(), gzip.open(folder / "packed", "rt").read()]
        found += [(folder / "out" / "inner").read_text(), rows]
    return found + [os.path.exists(name)]
"""
    tests = 'assert files() == ["ke", "packed", "kept", [(1,)], False], files()'
    verdict = judge(sandbox, program, tests, "files")
    assert verdict.outcome == "passed", verdict.detail


def test_nothing_is_left_for_the_next_program(sandbox: Sandbox) -> None:
    leave = "open('/tmp/left', 'w').write('x')\ndef f(): return True"
    look = "import os\ndef f(): return os.listdir('/tmp') == [] and 'left' not in globals()"
    for program in (leave, look):
        assert judge(sandbox, program, "assert f()", "f").passed


def test_objects_of_the_program_stay_there_and_can_be_used(sandbox: Sandbox) -> None:
    program = """
class Node:
    def __init__(self, value): self.value, self.left = value, None
    def total(self): return self.value + (self.left.total() if self.left else 0)
def total(node): return node.total()
def count(): yield from (1, 2, 3)
LIMIT = 7
class Bag:
    def __len__(self): return 4
"""
    tests = """
root = Node(1)
root.left = Node(value=2)
root.left.left = Node(4)
assert root.left.value == 2
assert total(root) == 7 == root.total()
assert list(count()) == [1, 2, 3] and sorted(count()) == [1, 2, 3]
assert len(Bag()) == 4
assert root != 7 and not root == 7 and root == root
assert LIMIT == 7
"""
    names = ("Node", "total", "count", "Bag", "LIMIT")
    assert judge(sandbox, program, tests, *names).outcome == "passed"


def test_tests_can_expect_an_exception(sandbox: Sandbox) -> None:
    tests = """
try:
    f()
except ValueError as error:
    assert "too small" in str(error)
else:
    raise AssertionError("no exception")
"""
    own = "class Own(ValueError): pass\ndef f(): raise Own('too small')"
    assert judge(sandbox, own, tests, "f").outcome == "passed"
    assert judge(sandbox, "def f(): raise KeyError('too small')", tests, "f").outcome == "error"
    assert judge(sandbox, "def f(): pass", tests, "f").outcome == "wrong"


ASYNCHRONOUS = """
class Answers:
    def __aiter__(self): return self
    async def __anext__(self):
        assert f(2) == 4
async def ask():
    async for _ in Answers(): pass
try: ask().send(None)
except StopIteration: pass
"""


@pytest.mark.parametrize(
    ("end", "tests"),
    [("StopIteration", "assert all(map(lambda pair: f(pair[0]) == pair[1], [(2, 4), (3, 6)]))"),
     ("StopAsyncIteration", ASYNCHRONOUS)],
)  # fmt: skip
def test_an_exception_of_the_program_does_not_end_what_the_tests_iterate(
    sandbox: Sandbox, end: str, tests: str
) -> None:
    verdict = judge(sandbox, f"def f(n): raise {end}", tests, "f")
    assert (verdict.outcome, verdict.detail) == ("error", f"{end}: ")


def test_the_end_of_the_program_is_no_exception_that_tests_can_expect(sandbox: Sandbox) -> None:
    for expected in ("Exception", "BaseException"):
        tests = f"try:\n    f()\nexcept {expected}:\n    pass"
        verdict = judge(sandbox, "import os\ndef f(): os._exit(0)", tests, "f")
        assert verdict.outcome == "ended"


def test_the_setup_is_the_tests_and_the_program_does_not_see_it(sandbox: Sandbox) -> None:
    setup = "from math import sqrt\ndef helper(n): return sqrt(n)"
    right, fake = "def f(n): return 3", "helper = sqrt = lambda n: 99\ndef f(n): return 99"
    assert judge(sandbox, right, "assert f(9) == helper(9)", "f", setup=setup).passed
    assert not judge(sandbox, fake, "assert f(9) == helper(9)", "f", setup=setup).passed


def test_tests_that_do_not_run_are_not_the_programs_fault(sandbox: Sandbox) -> None:
    for tests, setup in (("assert f(", ""), ("assert f()", "import no_such_module")):
        with pytest.raises(CalmError, match=r"the tests do not run: (Syntax|ModuleNotFound)Error"):
            sandbox.judge([Job("def f(): return 1", tests, ["f"], setup)])


@pytest.mark.parametrize(
    "tests",
    ["assert f(lambda x: x + 1) == 3", "f.limit = [print]",
     "try: f(open)\nexcept: pass\nassert False"],
)  # fmt: skip
def test_tests_that_pass_a_function_are_not_the_programs_fault(
    sandbox: Sandbox, tests: str
) -> None:
    line = re.escape(tests.split("\n")[0])
    with pytest.raises(CalmError, match=rf"{line}: the tests pass a \w*function"):
        sandbox.judge([Job("def f(g): return g(2)", tests, ["f"])])


@pytest.mark.parametrize(
    ("answer", "reason"),
    [("'x' * 12_000_000", "at most 16777216 are carried"), ("nested(400)", "nested too deep")],
)
def test_an_answer_that_cannot_be_passed_on_is_the_programs_fault(
    sandbox: Sandbox, answer: str, reason: str
) -> None:
    """Or a program could stop the evaluation of all others."""
    program = f"def nested(n): return [nested(n - 1)] if n else []\ndef f(*_): return {answer}"
    tests = "def deeper(n, *of): return deeper(n - 1, *of) if n else f(*of)\ndeeper(500, f(), f())"
    verdict = judge(sandbox, program, tests, "f")
    assert verdict.outcome == "error"
    assert reason in verdict.detail


# ------------------------------------------------------------------ forging from within


FORGERIES = {
    "every value becomes True": """
import inside.candidate
inside.candidate.encode = lambda value, handle: True
def f(n): return n
""",
    "every value becomes a handle": """
import inside.candidate
inside.candidate.encode = lambda value, handle: {"handle": 0}
def f(n): return n
""",
    "a verdict in place of a value": """
import inside.candidate
inside.candidate.encode = lambda value, handle: {"outcome": "passed"}
def f(n): return n
""",
    "another judge": """
import sys
judge = sys.modules["inside.judge"]
judge.judge = judge._verdict = lambda *_: {"outcome": "passed", "detail": ""}
def f(n): return n
""",
    "closed wires": """
import os
os.closerange(3, 32)
def f(n): return n
""",
    "an object that equals everything": """
class Yes:
    def __eq__(self, other): return True
    __add__ = __radd__ = __sub__ = __eq__
def f(n): return Yes()
""",
    "a tuple that equals everything": """
class Yes(tuple):
    def __eq__(self, other): return True
def f(n): return Yes()
""",
}


@pytest.mark.parametrize("forgery", FORGERIES)
def test_a_program_can_spoil_only_its_own_answers(sandbox: Sandbox, forgery: str) -> None:
    assert not judge(
        sandbox, FORGERIES[forgery], "assert f(20) == 21\nassert f(1) == 2", "f"
    ).passed


# ------------------------------------------------------------------ layers


def test_every_layer_is_active_here(sandbox: Sandbox) -> None:
    assert sandbox.missing == {}
    assert sandbox.active == LAYERS


def test_a_required_layer_that_is_missing_stops_everything(
    monkeypatch: pytest.MonkeyPatch, sandbox: Sandbox
) -> None:
    here = Sandbox()

    def without_namespaces(layers: Sequence[str]) -> str:
        return "unshare: Operation not permitted" if "namespaces" in layers else ""

    monkeypatch.setattr(here, "_fault_of", without_namespaces)
    with pytest.raises(CalmError) as error:
        here.judge([RIGHT])
    for part in ("namespaces (unshare: Operation not permitted)", "docs/security.md",
                 "sandbox.required=[user, limits, landlock, seccomp]"):  # fmt: skip
        assert part in str(error.value)
    told_otherwise = Sandbox(SandboxSettings(required=("limits", "landlock", "seccomp")))
    monkeypatch.setattr(told_otherwise, "_fault_of", without_namespaces)
    told_otherwise.check()
    assert told_otherwise.active == ("user", "limits", "landlock", "seccomp")


def test_a_layer_that_is_switched_off_counts_as_missing(sandbox: Sandbox) -> None:
    others = tuple(layer for layer in LAYERS if layer != "seccomp")
    with pytest.raises(CalmError, match=r"missing: seccomp \(it is switched off\)"):
        Sandbox(SandboxSettings(layers=others)).check()


def test_a_layer_that_the_kernel_refuses_is_found_out(
    monkeypatch: pytest.MonkeyPatch, sandbox: Sandbox
) -> None:
    """The real thing, but for a kernel that has no Landlock: its call is another number."""
    broken = module._BOOT.replace("; main()", "; import inside.landlock as x; "
                                  "x._CREATE_RULESET = 9999; main()")  # fmt: skip
    monkeypatch.setattr(module, "_BOOT", broken)
    here = Sandbox()
    assert list(here.missing) == ["landlock"]
    assert os.strerror(errno.ENOSYS) in here.missing["landlock"]


def test_it_needs_linux(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    with pytest.raises(CalmError, match=r"user \(it needs Linux, and this is darwin\)"):
        Sandbox().check()


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"cpu_seconds": 0}, "sandbox.cpu_seconds must be at least 1: got 0"),
        ({"waiting_seconds": 0.0}, "sandbox.waiting_seconds must be at least 0.1: got 0.0"),
        ({"memory_mib": 1}, "sandbox.memory_mib must be at least 64: got 1"),
        ({"workers": -1}, "sandbox.workers must be at least 0: got -1"),
        ({"required": ("seccom",)}, "no layer 'seccom'; its layers are user, namespaces"),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings: dict[str, object], words: str) -> None:
    with pytest.raises(CalmError) as error:
        SandboxSettings(**settings)  # type: ignore[arg-type]
    assert words in str(error.value)


# ------------------------------------------------------------------ ends


CALLER = """
from calm_plugins.tasks.code.sandbox import Job, Sandbox
print("ready", flush=True)
Sandbox().judge([Job("import time; time.sleep(600)", "pass", [])] * 4)
"""


def keepers_of(pid: int) -> list[int]:
    found = []
    for entry in Path("/proc").iterdir():
        try:
            line = (entry / "cmdline").read_bytes() if entry.name.isdigit() else b""
            parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1]) if line else 0
        except OSError:
            continue
        if b"inside.keeper" in line and parent == pid:
            found.append(int(entry.name))
    return found


def descendants(pids: list[int]) -> set[int]:
    known = set(pids)
    for pid in pids:
        known |= descendants(keepers_of(pid))
    return known


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_nothing_outlives_the_caller(sandbox: Sandbox, how: signal.Signals) -> None:
    caller = subprocess.Popen([sys.executable, "-c", CALLER], stdout=subprocess.PIPE,
                              stderr=subprocess.DEVNULL)  # fmt: skip
    assert caller.stdout is not None
    caller.stdout.readline()
    deadline = time.monotonic() + 60
    while len(descendants(keepers_of(caller.pid))) < 6:  # keeper, judge's and candidate's boxes
        assert time.monotonic() < deadline
        time.sleep(0.05)
    started = descendants(keepers_of(caller.pid))
    caller.send_signal(how)
    caller.stdout.close()
    caller.wait(30)
    deadline = time.monotonic() + 10
    while any(Path(f"/proc/{pid}").exists() for pid in started):
        assert time.monotonic() < deadline, started
        time.sleep(0.05)


ORPHAN = """
import os, signal, sys, time
sys.path.append(sys.argv[1])
from inside import kernel, namespaces
first = os.getpid()
if sys.argv[2] == "another":
    kernel.unshare(namespaces._NEW_USER | namespaces._NEW_PID)
if os.fork() == 0:
    def parent():
        return int(open("/proc/self/stat").read().rpartition(")")[2].split()[1])
    while parent() == first:
        time.sleep(0.01)
    kernel.die_with_parent(first)
    print("survived")
"""


@pytest.mark.parametrize("namespace", ["one", "another"])
def test_a_process_whose_parent_ended_before_it_looked_ends(
    sandbox: Sandbox, namespace: str
) -> None:
    """The kernel kills those that had asked for it by then: a moment lost without this."""
    folder = str(Path(str(module.__file__)).parent)
    run = subprocess.run([sys.executable, "-c", ORPHAN, folder, namespace], capture_output=True,
                         timeout=60, check=True)  # fmt: skip
    assert run.stdout == b"", run.stderr


def test_a_keeper_that_is_killed_is_no_verdict(sandbox: Sandbox) -> None:
    """A fault of ours, or of the machine, never counts as the program's."""
    done = threading.Event()

    def kill() -> None:
        while not done.is_set():
            for pid in keepers_of(os.getpid()):
                os.kill(pid, signal.SIGKILL)
            time.sleep(0.02)

    threading.Thread(target=kill, daemon=True).start()
    try:
        with pytest.raises(CalmError, match="own process failed"):
            sandbox.judge([Job("import time; time.sleep(600)", "pass", [])])
    finally:
        done.set()
