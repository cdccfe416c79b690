"""Nothing gets out of the sandbox, and nothing in it gets a verdict that it does not deserve.

Every attack is run twice: outside, where it must succeed (or the test would prove nothing), and
inside, where it must not; as the user of the tests and, if that is root, as an ordinary one too.
After each attack comes a right or a wrong program, whose verdict must be right.
"""

import ctypes
import hashlib
import json
import os
import pickle
import runpy
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from calm_plugins.tasks.code.sandbox import LAYERS, Job, Sandbox, SandboxSettings, Verdict
from calm_plugins.tasks.code.sandbox import sandbox as module

LISTED = runpy.run_path(str(Path(__file__).with_name("attacks.py")))
ATTACKS = {attack.name: attack for attack in LISTED["ATTACKS"]}
HANGS = {attack.name: attack for attack in LISTED["HANGS"]}
CHEATS = {attack.name: attack for attack in LISTED["CHEATS"]}

VARIABLE = "CALM_TEST_SECRET"
ORDINARY_USER = 54321
RIGHT = Job("def double(n): return 2 * n", "assert double(4) == 8", ["double"])
WRONG = Job("def double(n): return 2 + n", "assert double(4) == 8", ["double"])
CHEATED = "assert abs(attack(2) - 4) < 1e-6 and abs(attack(3) - 6) < 1e-6"
VICTIM = """
import ctypes, os, time
kept = ctypes.create_string_buffer(os.environ["CALM_TEST_SECRET"].encode())
print(ctypes.addressof(kept), flush=True)
time.sleep(600)
"""


class Scene:
    """A host with things to steal and to break, for one user."""

    def __init__(self) -> None:
        self.secret = "secret-" + hashlib.sha256(os.urandom(8)).hexdigest()[:12]
        self.folder = Path(tempfile.mkdtemp(prefix="calm-sandbox-"))
        self.folder.chmod(0o755)
        self.taken: list[str] = []
        environment = {VARIABLE: self.secret}
        os.environ |= environment  # what runs programs has secrets, too
        self.victim = subprocess.Popen(
            [sys.executable, "-c", VICTIM], env=environment, stdout=subprocess.PIPE
        )
        self.victim_to_kill = subprocess.Popen(["sleep", "600"])
        files = {"secret": self.secret, "victim": "intact", "file_to_delete": "here"}
        for name, content in files.items():
            (self.folder / name).write_text(content)
        (self.folder / "open").mkdir()
        (self.folder / "open").chmod(0o777)
        self.before = self._rights_and_times()
        self.descriptor = os.open(self.folder / "secret", os.O_RDONLY)
        os.set_inheritable(self.descriptor, True)
        self.sockets = {
            "tcp": socket.create_server(("127.0.0.1", 0)),
            "udp": socket.socket(socket.AF_INET, socket.SOCK_DGRAM),
            "file": socket.socket(socket.AF_UNIX),
            "abstract": socket.socket(socket.AF_UNIX),
        }
        self.sockets["udp"].bind(("127.0.0.1", 0))
        self.sockets["file"].bind(str(self.folder / "socket"))
        self.sockets["abstract"].bind("\0" + self.folder.name)
        for name, each in self.sockets.items():
            threading.Thread(target=self._listen, args=(name, each), daemon=True).start()
        assert self.victim.stdout is not None
        self.public: dict[str, Any] = {
            "variable": VARIABLE,
            "victim": self.victim.pid,
            "victim_to_kill": self.victim_to_kill.pid,
            "address": int(self.victim.stdout.readline()),
            "size": len(self.secret),
            "secret_file": str(self.folder / "secret"),
            "victim_file": str(self.folder / "victim"),
            "file_to_delete": str(self.folder / "file_to_delete"),
            "open_folder": str(self.folder / "open"),
            "socket_file": str(self.folder / "socket"),
            "socket_name": self.folder.name,
            "descriptor": self.descriptor,
            "tcp": self.sockets["tcp"].getsockname()[1],
            "udp": self.sockets["udp"].getsockname()[1],
        }

    def gain(self, name: str) -> Any:
        if name == "memory":
            return os.sysconf("SC_PHYS_PAGES")
        return {"": True, "secret": self.secret, "host_name": os.uname().nodename}[name]

    def damage(self) -> list[str]:
        """What is not as it was."""
        found = [f"a connection by {each}" for each in self.taken]
        found += [f"made {each.name}" for each in (self.folder / "open").iterdir()]
        for name, content in (("victim", "intact"), ("file_to_delete", "here")):
            file = self.folder / name
            if not file.exists() or file.read_text() != content:
                found.append(f"{name} is not as it was")
        if self._rights_and_times() != self.before:
            found.append("rights or times are not as they were")
        killed = (self.victim, self.victim_to_kill)
        return found + [f"killed {each.pid}" for each in killed if each.poll() is not None]

    def _rights_and_times(self) -> list[tuple[int, float]]:
        found = [(self.folder / name).stat() for name in ("secret", "victim", "open")]
        return [(each.st_mode, each.st_mtime) for each in found]

    def _listen(self, name: str, listener: socket.socket) -> None:
        try:
            if name == "udp":
                while listener.recv(100):
                    self.taken.append(name)
            listener.listen()
            while True:
                caller, _ = listener.accept()
                self.taken.append(name)
                caller.sendall(self.secret.encode())
                caller.close()
        except OSError:
            return

    def close(self) -> None:
        for each in self.sockets.values():
            each.close()
        for process in (self.victim, self.victim_to_kill):
            process.kill()
            process.wait()
        os.close(self.descriptor)
        del os.environ[VARIABLE]
        shutil.rmtree(self.folder)


@dataclass
class Record:
    """What the attacks of one user came to."""

    outside: dict[str, Any] = field(default_factory=dict)
    inside: dict[str, Verdict] = field(default_factory=dict)
    neighbours: list[str] = field(default_factory=list)
    damage: list[str] = field(default_factory=list)
    survivors: list[str] = field(default_factory=list)
    without: dict[str, list[str]] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)


def alone(program: str, then: str, scene: Scene | None = None) -> subprocess.CompletedProcess[str]:
    """A program and a line after it, in a plain process."""
    return subprocess.run(
        [sys.executable, "-I", "-S", "-c", f"{program}\n{then}"],
        capture_output=True, text=True, timeout=30, check=False,
        env={VARIABLE: scene.secret} if scene else {},
        pass_fds=[scene.descriptor] if scene else [], cwd=scene.folder if scene else "/",
    )  # fmt: skip


def outside(attack: Any, scene: Scene) -> Any:
    """The evidence that an attack brings back from outside, or what stopped it."""
    said = alone(attack.program, f"import json; print(json.dumps(attack({scene.public!r})))", scene)
    if attack.name == "become_another_program":
        return said.returncode == 0 and said.stdout == ""
    try:
        return json.loads(said.stdout)
    except ValueError:
        return said.stderr.strip().splitlines()[-1:] or said.returncode


def hangs_outside() -> dict[str, bool]:
    """Whether each hanging program is still there after a second."""
    started = {
        name: subprocess.Popen([sys.executable, "-I", "-S", "-c", f"{hang.program}\nattack(0)"])
        for name, hang in HANGS.items()
    }
    time.sleep(1)
    alive = {name: process.poll() is None for name, process in started.items()}
    for process in started.values():
        process.kill()
        process.wait()
    return alive


def fooled(cheat: Any) -> bool:
    """Whether a harness that runs program and tests in one process believes the program."""
    said = alone(f"tests = {CHEATED!r}\n{cheat.program}", f"{CHEATED}\nprint('passed')")
    return said.returncode == 0 or said.stdout.strip().endswith("passed")


def processes_with(settings: SandboxSettings) -> list[str]:
    """Processes of a sandbox with just this much memory: others may be at work as well."""
    found, mark = [], f'"memory_mib": {settings.memory_mib},'.encode()
    for entry in Path("/proc").iterdir():
        try:
            line = (entry / "cmdline").read_bytes() if entry.name.isdigit() else b""
        except OSError:
            continue
        if b"inside.keeper" in line and mark in line:
            found.append(entry.name)
    return found


def attacks_on(scene: Scene) -> dict[str, Job]:
    """A job for each attack, which passes if the attack succeeds."""
    return {
        name: Job(
            attack.program,
            f"assert attack({scene.public!r}) == {scene.gain(attack.gain)!r}",
            ["attack"],
        )
        for name, attack in ATTACKS.items()
    }


def successes_without(layer: str, landlock: int | None = None) -> list[str]:
    """The attacks that succeed where a layer is missing, and the damage.

    Args:
        layer: The missing one.
        landlock: The version that Landlock says it has, and is used as; None: its own.
    """
    layers = tuple(each for each in LAYERS if each != layer)
    settings = SandboxSettings(1, 1.5, workers=2, required=(), layers=layers)
    scene = Scene()
    jobs = attacks_on(scene)
    with pytest.MonkeyPatch.context() as patch:
        if landlock is not None:
            older = f"import inside.landlock as x; x.version = lambda: {landlock}; main()"
            patch.setattr(module, "_BOOT", module._BOOT.replace("main()", older))
        verdicts = Sandbox(settings).judge(list(jobs.values()))
    found = [name for name, each in zip(jobs, verdicts, strict=True) if each.passed]
    found += scene.damage()
    scene.close()
    return found


def run_suite() -> Record:
    """Every attack, outside and inside, as the user that this process belongs to."""
    record = Record()
    settings = SandboxSettings(1, 1.5, memory_mib=400 + os.getpid() % 400, workers=2)
    sandbox = Sandbox(settings)
    record.missing = sandbox.missing
    if record.missing:
        return record
    scene = Scene()
    possible = [a for a in ATTACKS.values() if os.geteuid() == 0 or not a.needs_root]
    with ThreadPoolExecutor(2) as pool:
        got = pool.map(lambda attack: outside(attack, scene), possible)
        for attack, evidence in zip(possible, got, strict=True):
            record.outside[attack.name] = evidence == scene.gain(attack.gain)
        record.outside |= dict(zip(CHEATS, pool.map(fooled, CHEATS.values()), strict=True))
    scene.close()
    record.outside |= hangs_outside()

    scene = Scene()
    jobs = attacks_on(scene)
    jobs |= {name: Job(hang.program, "attack(0)", ["attack"]) for name, hang in HANGS.items()}
    jobs |= {name: Job(cheat.program, CHEATED, ["attack"]) for name, cheat in CHEATS.items()}
    mixed = [each for i, job in enumerate(jobs.values()) for each in (job, (RIGHT, WRONG)[i % 2])]
    verdicts = sandbox.judge(mixed)
    record.inside = dict(zip(jobs, verdicts[::2], strict=True))
    record.neighbours = [verdict.outcome for verdict in verdicts[1::2]]
    record.damage = scene.damage()
    scene.close()
    if os.geteuid() != 0:
        record.without = {each: successes_without(each) for each in ("namespaces", "landlock")}
        record.without["namespaces, on Linux 5.19"] = successes_without("namespaces", landlock=2)
    time.sleep(0.1)
    record.survivors = processes_with(settings)
    return record


def as_ordinary_user(work: Callable[[], Record]) -> Record:
    """Do it in a process that was root's and is nobody's in particular any more."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            _become(ORDINARY_USER)
            result: Any = work()
        except BaseException:
            result = traceback.format_exc()
        with open(writer, "wb") as stream:
            pickle.dump(result, stream)
        os._exit(0)
    os.close(writer)
    with open(reader, "rb") as stream:
        result = pickle.load(stream)
    os.waitpid(child, 0)
    assert isinstance(result, Record), result
    return result


def _show_what_only_root_can_reach(libc: Any, folders: Sequence[Path]) -> None:
    """Interpreter and repository may lie in a folder that is closed: show them to everybody."""
    hiding = {
        folder: next((p for p in reversed(folder.parents) if not p.stat().st_mode & 0o001), None)
        for folder in folders
    }
    hidden = [folder for folder, above in hiding.items() if above is not None]
    if not hidden:
        return
    places = {folder: tempfile.mkdtemp(dir="/tmp").encode() for folder in hidden}
    steps = [libc.unshare(0x20000), libc.mount(b"", b"/", None, 16384 | 1 << 18, None)]
    for folder, place in places.items():
        steps.append(libc.mount(str(folder).encode(), place, None, 4096 | 16384, None))
    for above in {hiding[folder] for folder in hidden}:
        steps.append(libc.mount(b"tmpfs", str(above).encode(), b"tmpfs", 0, b"mode=755"))
    for folder, place in places.items():
        folder.mkdir(parents=True, exist_ok=True)
        steps.append(libc.mount(place, str(folder).encode(), None, 8192, None))
        os.rmdir(place)
    assert not any(steps), steps


def _become(user: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    _show_what_only_root_can_reach(libc, [Path(sys.base_prefix), Path(__file__).parents[2]])
    os.environ["HOME"] = "/"
    os.setgroups([])
    os.setresgid(user, user, user)
    os.setresuid(user, user, user)
    libc.prctl(4, 1, 0, 0, 0)  # or its own files in /proc would be root's


@pytest.fixture(scope="module", params=["root", "ordinary user"])
def record(
    request: pytest.FixtureRequest, skip_without: Callable[[dict[str, str]], None]
) -> Record:
    root = os.geteuid() == 0
    if request.param == "root" and not root:
        pytest.skip("these tests do not run as root")
    made = as_ordinary_user(run_suite) if root and request.param != "root" else run_suite()
    skip_without(made.missing)
    return made


def test_there_are_enough_of_them() -> None:
    assert len(ATTACKS) + len(HANGS) >= 25
    assert len(CHEATS) >= 5


@pytest.mark.parametrize("name", [*ATTACKS, *HANGS, *CHEATS])
def test_an_attack_succeeds_outside_and_fails_inside(record: Record, name: str) -> None:
    verdict = record.inside[name]
    assert verdict.outcome != "passed", verdict
    if name in HANGS:
        assert verdict.outcome == "timeout", verdict
    if name not in record.outside:
        pytest.skip("held back inside; outside only root could do it, so it proves less")
    assert record.outside[name] is True, "it does not work outside either, so it proves nothing"


def test_the_verdicts_beside_and_after_them_are_right(record: Record) -> None:
    expected = [("passed", "wrong")[i % 2] for i in range(len(record.neighbours))]
    assert len(expected) == len(record.inside)
    assert record.neighbours == expected


def test_the_host_is_as_it_was(record: Record) -> None:
    assert record.damage == []


def test_nothing_survives(record: Record) -> None:
    assert record.survivors == []


def test_without_one_of_the_layers_around_files_the_others_hold(record: Record) -> None:
    if not record.without:
        pytest.skip("tried as an ordinary user")
    seen = ["learn_the_size_of_a_file", "learn_the_name_of_the_host", "see_a_process_by_its_path"]
    assert record.without == {
        "namespaces": seen,
        "namespaces, on Linux 5.19": seen,  # whose Landlock lets everybody change sizes of files
        "landlock": [],
    }
