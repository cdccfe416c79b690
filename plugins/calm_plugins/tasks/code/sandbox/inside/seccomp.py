"""The system calls that ordinary computing needs, and no other.

The list says what is allowed; a call that it does not name, a future one too, fails with EPERM.
Threads may be started, processes may not. Where a program sees the host's files, Landlock decides
which of them are opened, made, renamed and removed; what it leaves open is not on the list: rights
and times of a file, locks, and before Linux 6.2 its size. Numbers are those of x86-64, the only
processor known here.
"""

import errno
import os
import struct

from . import kernel

# fmt: off
ALLOWED = {
    # memory, threads, the end
    "mmap": 9, "mprotect": 10, "munmap": 11, "brk": 12, "mremap": 25, "madvise": 28,
    "futex": 202, "set_tid_address": 218, "set_robust_list": 273, "rseq": 334, "arch_prctl": 158,
    "membarrier": 324, "sched_yield": 24, "sched_getaffinity": 204, "exit": 60, "exit_group": 231,
    "restart_syscall": 219,
    # signals to oneself
    "rt_sigaction": 13, "rt_sigprocmask": 14, "rt_sigreturn": 15, "rt_sigpending": 127,
    "rt_sigtimedwait": 128, "sigaltstack": 131, "getitimer": 36, "setitimer": 38, "alarm": 37,
    # files; which ones, the other layers say
    "read": 0, "write": 1, "close": 3, "fstat": 5, "lseek": 8, "stat": 4, "lstat": 6,
    "newfstatat": 262, "statx": 332, "access": 21, "faccessat": 269, "faccessat2": 439,
    "readlink": 89, "readlinkat": 267, "getdents64": 217, "getcwd": 79, "chdir": 80, "fchdir": 81,
    "dup": 32, "dup2": 33, "dup3": 292, "pread64": 17, "pwrite64": 18, "readv": 19, "writev": 20,
    "ftruncate": 77, "fsync": 74, "fdatasync": 75, "fadvise64": 221, "mkdir": 83, "mkdirat": 258,
    "rmdir": 84, "unlink": 87, "unlinkat": 263, "rename": 82, "renameat": 264, "renameat2": 316,
    "symlink": 88, "symlinkat": 266, "umask": 95, "poll": 7, "ppoll": 271, "select": 23,
    "pselect6": 270,
    # time and chance
    "nanosleep": 35, "clock_nanosleep": 230, "clock_gettime": 228, "clock_getres": 229,
    "gettimeofday": 96, "time": 201, "times": 100, "getrusage": 98, "getrandom": 318,
    # who am I
    "getpid": 39, "getppid": 110, "gettid": 186, "getuid": 102, "geteuid": 107, "getgid": 104,
    "getegid": 108, "getgroups": 115, "getrlimit": 97, "uname": 63,
}
CONDITIONAL = {
    "open": 2, "openat": 257, "ioctl": 16, "clone": 56, "fcntl": 72, "prlimit64": 302,
    "clone3": 435,
}
# fmt: on

_X86_64 = 0xC000003E
_X32 = 0x40000000  # from this number on: another way to make the same calls
# Places in `struct seccomp_data`.
_NUMBER, _ARCHITECTURE, _FIRST, _SECOND, _THIRD = 0, 4, 16, 24, 32
_LOAD, _AND, _EQUAL, _AT_LEAST, _ANY_BIT, _RETURN = 0x20, 0x54, 0x15, 0x35, 0x45, 0x06
_ALLOW, _KILL = 0x7FFF0000, 0x80000000
_CLONE_THREAD, _CLONE_NEW = 0x10000, 0x7E020080
_F_GETLK, _F_DUPFD_CLOEXEC = 5, 1030
_NEITHER, _TRUNCATE = 3, 0x200  # of open: an access mode that neither reads nor writes; O_TRUNC

Instruction = tuple[int, int, int, int]
"""Operation, how many to skip if it holds, how many if not, and its number."""


def enter() -> None:
    """Put the filter in front of this process.

    Raises:
        OSError: If the processor is another one, or the kernel refuses.
    """
    machine = os.uname().machine
    if machine != "x86_64":
        raise OSError(errno.ENOSYS, f"seccomp: no list of system calls for {machine}")
    kernel.filter_system_calls(b"".join(struct.pack("HBBI", *each) for each in program()))


def program() -> list[Instruction]:
    """The filter, as instructions of classic BPF."""
    plain = [each for n in ALLOWED.values() for each in _if_equal(n, [_end(_ALLOW)])]
    return [
        (_LOAD, 0, 0, _ARCHITECTURE),
        (_EQUAL, 1, 0, _X86_64),
        _end(_KILL),
        (_LOAD, 0, 0, _NUMBER),
        (_AT_LEAST, 0, 1, _X32),
        _end(_KILL),
        *plain,
        *_if_equal(CONDITIONAL["open"], _if_it_only_opens(_SECOND)),
        *_if_equal(CONDITIONAL["openat"], _if_it_only_opens(_THIRD)),
        # Threads, without namespaces of their own; no processes.
        *_if_equal(
            CONDITIONAL["clone"],
            [
                (_LOAD, 0, 0, _FIRST),
                (_ANY_BIT, 2, 0, _CLONE_NEW),
                (_ANY_BIT, 0, 1, _CLONE_THREAD),
                _end(_ALLOW),
                _fail(errno.EPERM),
            ],
        ),
        # Its flags lie in memory, out of the filter's sight: libc then takes `clone`.
        *_if_equal(CONDITIONAL["clone3"], [_fail(errno.ENOSYS)]),
        # As on a file that is no terminal.
        *_if_equal(CONDITIONAL["ioctl"], [_fail(errno.ENOTTY)]),
        # Not the commands that lock or have signals sent to others, nor leases, nor larger pipes.
        *_if_equal(
            CONDITIONAL["fcntl"],
            [
                (_LOAD, 0, 0, _SECOND),
                (_EQUAL, 1, 0, _F_DUPFD_CLOEXEC),
                (_AT_LEAST, 1, 0, _F_GETLK),
                _end(_ALLOW),
                _fail(errno.EPERM),
            ],
        ),
        # One's own limits only.
        *_if_equal(
            CONDITIONAL["prlimit64"],
            [
                (_LOAD, 0, 0, _FIRST),
                (_EQUAL, 0, 1, 0),
                _end(_ALLOW),
                _fail(errno.EPERM),
            ],
        ),
        _fail(errno.EPERM),
    ]


def _if_it_only_opens(flags: int) -> list[Instruction]:
    """Refuse to empty a file by opening it for something else than writing.

    Before Linux 6.2 Landlock takes that for reading, and for nothing at all in the fourth access
    mode, which it lets pass for every file of the user.
    """
    refused = (_TRUNCATE, _NEITHER, _TRUNCATE | _NEITHER)
    return [
        (_LOAD, 0, 0, flags),
        (_AND, 0, 0, _TRUNCATE | _NEITHER),
        *(each for value in refused for each in _if_equal(value, [_fail(errno.EPERM)])),
        _end(_ALLOW),
    ]


def _if_equal(value: int, then: list[Instruction]) -> list[Instruction]:
    """Run `then`, which returns in every case, if this was loaded: the call's number at first."""
    return [(_EQUAL, 0, len(then), value), *then]


def _end(action: int) -> Instruction:
    return (_RETURN, 0, 0, action)


def _fail(number: int) -> Instruction:
    return _end(0x00050000 | number)
