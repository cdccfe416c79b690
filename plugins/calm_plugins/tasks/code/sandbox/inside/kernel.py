"""The few calls to Linux that Python's standard library has no name for."""

import ctypes
import os
import struct

_LIBC = ctypes.CDLL(None, use_errno=True)

_PR_SET_PDEATHSIG, _PR_SET_DUMPABLE, _PR_SET_SECCOMP, _PR_SET_NO_NEW_PRIVS = 1, 4, 22, 38
_SIGKILL = 9
_SECCOMP_MODE_FILTER = 2
_CAPABILITIES_VERSION_3 = 0x20080522
_UMOUNT_DETACH = 2
_M_ARENA_MAX = -8
_AT_FDCWD, _AT_RECURSIVE = -100, 0x8000
_SYS_MOUNT_SETATTR, _SYS_PIVOT_ROOT = 442, 155  # x86-64's numbers, as seccomp.py's


def _check(result: int, what: str) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")
    return result


def system_call(what: str, number: int, *arguments: int | bytes | None) -> int:
    """Call the kernel by number.

    Raises:
        OSError: If it refuses; the text begins with `what`.
    """
    # ctypes passes a bare int as 32 bits.
    wide = [ctypes.c_long(a) if isinstance(a, int) else a for a in arguments]
    return _check(_LIBC.syscall(ctypes.c_long(number), *wide), what)


def _prctl(what: str, option: int, value: int, more: bytes | int = 0) -> None:
    third = ctypes.c_char_p(more) if isinstance(more, bytes) else ctypes.c_ulong(more)
    zero = ctypes.c_ulong(0)
    _check(_LIBC.prctl(option, ctypes.c_ulong(value), third, zero, zero), what)


def die_with_parent(parent: int) -> None:
    """Have this process killed when the one that started it ends; end now, if that has ended.

    Args:
        parent: Its number as /proc has it: `os.getppid` tells none of a parent outside of this
            process's namespace.
    """
    _prctl("die with the parent", _PR_SET_PDEATHSIG, _SIGKILL)
    # The kernel tells only of an end still to come.
    with open("/proc/self/stat") as stream:
        _, _, status = stream.read().rpartition(")")
    if int(status.split()[1]) != parent:
        os._exit(1)


def be_dumpable(yes: bool) -> None:
    """Whether other processes of the same user may look into this one.

    A process that changed its user is not dumpable, and then may not write its own uid_map.
    """
    _prctl("dumpable", _PR_SET_DUMPABLE, int(yes))


def no_new_privileges() -> None:
    """Let no program that is started give back what was given up; the next layers ask for it."""
    _prctl("no new privileges", _PR_SET_NO_NEW_PRIVS, 1)


def share_one_heap() -> None:
    """Let all threads to come allocate from one heap.

    glibc reserves 64 MiB of address space for the heap of each thread, and 128 for a moment: a few
    threads that hold next to nothing would run into a limit on it, or not, as it happens.
    """
    if hasattr(_LIBC, "mallopt"):  # other libraries know no such heaps
        _LIBC.mallopt(_M_ARENA_MAX, 1)


def drop_capabilities() -> None:
    """Give up every capability, also those that root has in its own user namespace."""
    header = struct.pack("Ii", _CAPABILITIES_VERSION_3, 0)
    _check(_LIBC.capset(header, bytes(24)), "drop capabilities")


def filter_system_calls(program: bytes) -> None:
    """Install a classic BPF program of 8-byte instructions in front of every system call."""
    buffer = ctypes.create_string_buffer(program, len(program))
    pointer = struct.pack("HxxxxxxQ", len(program) // 8, ctypes.addressof(buffer))
    _prctl("seccomp", _PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, pointer)


def unshare(flags: int) -> None:
    """Leave the namespaces that `flags` name."""
    _check(_LIBC.unshare(flags), "unshare")


def mount(source: str, target: str, kind: str | None, flags: int, options: str = "") -> None:
    """Mount a file system, or another view of a folder."""
    encoded = kind.encode() if kind else None
    result = _LIBC.mount(
        source.encode(), target.encode(), encoded, ctypes.c_ulong(flags), options.encode()
    )
    _check(result, f"mount {target}")


def set_mount_attributes(target: str, attributes: int) -> None:
    """Switch attributes on for a mount and all below it (Linux 5.12)."""
    wanted = struct.pack("QQQQ", attributes, 0, 0, 0)
    system_call(
        f"attributes of {target}", _SYS_MOUNT_SETATTR, _AT_FDCWD, target.encode(), _AT_RECURSIVE,
        wanted, len(wanted),
    )  # fmt: skip


def make_root(folder: str) -> None:
    """Make a mounted folder the root of this mount namespace, and forget the old one."""
    os.chdir(folder)
    system_call("pivot_root", _SYS_PIVOT_ROOT, b".", b".")
    _check(_LIBC.umount2(b".", _UMOUNT_DETACH), "unmount the old root")
    os.chdir("/")


def set_host_name(name: str) -> None:
    """Name the machine in this namespace."""
    _check(_LIBC.sethostname(name.encode(), ctypes.c_size_t(len(name))), "set the host's name")
