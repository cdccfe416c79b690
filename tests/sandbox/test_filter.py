"""The filter of system calls, run by an interpreter of classic BPF: what it lets through."""

import errno
import os
import re
from pathlib import Path

import pytest

from calm_plugins.tasks.code.sandbox.inside.seccomp import ALLOWED, CONDITIONAL, program

X86_64, I386 = 0xC000003E, 0x40000003
ALLOW, KILL, REFUSE = 0x7FFF0000, 0x80000000, 0x00050000 | errno.EPERM
PROGRAM = program()
HEADER = Path("/usr/include/x86_64-linux-gnu/asm/unistd_64.h")
CLONE_OF_A_THREAD, CLONE_OF_A_PROCESS = 0x3D0F00, 0x1200011  # as glibc calls it


def decide(number: int, *arguments: int, architecture: int = X86_64) -> int:
    places = dict(zip((16, 24, 32), (*arguments, 0, 0, 0), strict=False))
    data = {0: number, 4: architecture, **places}
    at, loaded = 0, 0
    while True:
        operation, if_true, if_false, value = PROGRAM[at]
        if operation == 0x06:
            return value
        if operation == 0x20:
            loaded = data[value]
            at += 1
            continue
        if operation == 0x54:
            loaded &= value
            at += 1
            continue
        holds = {0x15: loaded == value, 0x35: loaded >= value, 0x45: bool(loaded & value)}
        at += 1 + (if_true if holds[operation] else if_false)


def test_a_call_is_allowed_if_and_only_if_it_is_on_the_list() -> None:
    special = set(CONDITIONAL.values())
    for number in (n for n in range(1000) if n not in special):
        assert decide(number) == (ALLOW if number in ALLOWED.values() else REFUSE), number


def test_other_ways_to_make_calls_end_the_process() -> None:
    assert decide(ALLOWED["read"], architecture=I386) == KILL
    assert decide(0x40000000 | ALLOWED["read"]) == KILL


def test_threads_may_be_started_and_processes_may_not() -> None:
    clone = CONDITIONAL["clone"]
    assert decide(clone, CLONE_OF_A_THREAD) == ALLOW
    assert decide(clone, CLONE_OF_A_PROCESS) == REFUSE
    assert decide(clone, CLONE_OF_A_THREAD | 0x10000000) == REFUSE  # in a user namespace
    assert decide(CONDITIONAL["clone3"]) == 0x00050000 | errno.ENOSYS


def test_only_harmless_commands_of_fcntl_pass() -> None:
    fcntl = CONDITIONAL["fcntl"]
    allowed = {command for command in range(1100) if decide(fcntl, 3, command) == ALLOW}
    assert allowed == {*range(5), 1030}  # no lock: 5 to 7, and 36 to 38


@pytest.mark.parametrize("name", ["open", "openat"])
def test_a_file_is_emptied_only_where_it_is_opened_for_writing(name: str) -> None:
    before = (0,) if name == "open" else (0, 0)
    truncate, refused = os.O_TRUNC, set()
    for access in range(4):
        for more in (0, os.O_CREAT, truncate, truncate | os.O_CREAT | os.O_CLOEXEC):
            if decide(CONDITIONAL[name], *before, access | more) != ALLOW:
                refused.add((access, bool(more & truncate)))
    assert refused == {(os.O_RDONLY, True), (3, False), (3, True)}


def test_limits_of_others_are_out_of_reach() -> None:
    assert decide(CONDITIONAL["prlimit64"], 0) == ALLOW
    assert decide(CONDITIONAL["prlimit64"], 1) == REFUSE


def test_nothing_on_the_list_starts_signals_or_talks() -> None:
    dangerous = {"kill", "tgkill", "tkill", "ptrace", "socket", "connect", "bind", "execve", "fork",
                 "vfork", "execveat", "mount", "unshare", "setns", "bpf", "io_uring_setup",
                 "process_vm_readv", "process_vm_writev", "memfd_create", "link", "linkat", "mknod",
                 "open_by_handle_at", "setuid", "setresuid", "chroot", "keyctl", "add_key",
                 "shmget", "userfaultfd", "perf_event_open", "pidfd_open", "prctl"}  # fmt: skip
    assert not dangerous & ALLOWED.keys()


def test_nothing_on_the_list_changes_a_file_that_is_not_open_for_writing() -> None:
    dangerous = {"chmod", "fchmod", "fchmodat", "fchmodat2", "chown", "fchown", "lchown",
                 "fchownat", "utime", "utimes", "futimesat", "utimensat", "truncate", "flock",
                 "setxattr", "lsetxattr", "fsetxattr", "removexattr", "fallocate", "creat",
                 "openat2"}  # fmt: skip
    assert not dangerous & ALLOWED.keys()


def test_the_numbers_are_those_of_the_kernel() -> None:
    if not HEADER.exists():
        pytest.skip(f"there is no {HEADER} to compare with")
    known = {name: int(n) for name, n in re.findall(r"__NR_(\w+) (\d+)", HEADER.read_text())}
    ours = ALLOWED | CONDITIONAL
    assert ours == {name: known[name] for name in ours}
