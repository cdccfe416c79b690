"""A world of its own: user, processes, network, files, host name and shared memory.

The new root is an empty file system in memory. Into it go read-only views of the standard library
and of the shared libraries that its modules load, three devices, and a small writable /tmp. There
is no /proc, no program to start and no file of the host.
"""

import os
import signal

from . import kernel

_NEW_NS, _NEW_CGROUP, _NEW_UTS, _NEW_IPC = 0x20000, 0x2000000, 0x4000000, 0x8000000
_NEW_USER, _NEW_PID, _NEW_NET = 0x10000000, 0x20000000, 0x40000000
_ALL = _NEW_NS | _NEW_CGROUP | _NEW_UTS | _NEW_IPC | _NEW_USER | _NEW_PID | _NEW_NET
_NOSUID, _NODEV, _NOEXEC, _BIND, _RECURSIVE, _PRIVATE = 2, 4, 8, 4096, 16384, 1 << 18
_ATTRIBUTES_READ_ONLY = 1 | 2 | 4  # and no set-user-id, and no devices

LIBRARIES = ("/lib", "/lib64", "/usr/lib", "/usr/lib64")
DEVICES = ("/dev/null", "/dev/zero", "/dev/urandom")
WRITABLE = "/tmp"
_INSIDE_ID = 65534


def enter(library: str, writable_mib: int, parent: int) -> None:
    """Move into namespaces of one's own; what returns is a child, the first process in there.

    The process that called stays outside, waits for the child and ends as it did; SIGTERM has it
    end the child first. So its own processor time, as its parent is told, is that of both.

    Args:
        library: Folder of the standard library, which must be the current folder.
        writable_mib: Size of /tmp.
        parent: The process with which all this ends.

    Raises:
        OSError: If the kernel refuses.
    """
    user, group = os.getuid(), os.getgid()
    kernel.unshare(_ALL)
    _write("/proc/self/setgroups", "deny")
    _write("/proc/self/uid_map", f"{_INSIDE_ID} {user} 1")
    _write("/proc/self/gid_map", f"{_INSIDE_ID} {group} 1")
    kernel.die_with_parent(parent)  # a new user namespace may have undone it
    outside = os.getpid()
    child = os.fork()
    if child:
        signal.signal(signal.SIGTERM, lambda *_: os.kill(child, signal.SIGKILL))
        os.closerange(3, os.sysconf("SC_OPEN_MAX"))  # or nobody would see a wire close
        _, status = os.waitpid(child, 0)
        code = os.waitstatus_to_exitcode(status)
        os._exit(code if code >= 0 else 128 - code)
    kernel.die_with_parent(outside)
    _change_root(library, writable_mib)
    kernel.set_host_name("sandbox")


def _change_root(library: str, writable_mib: int) -> None:
    kernel.mount("", "/", None, _RECURSIVE | _PRIVATE)
    root = WRITABLE  # any folder that every machine has
    kernel.mount("tmpfs", root, "tmpfs", _NOSUID | _NODEV, "size=64k,nr_inodes=256,mode=755")
    os.mkdir(root + WRITABLE)
    kernel.mount(
        "tmpfs", root + WRITABLE, "tmpfs", _NOSUID | _NODEV | _NOEXEC,
        f"size={writable_mib}m,nr_inodes=1024,mode=700",
    )  # fmt: skip
    for folder in LIBRARIES:
        if os.path.islink(folder):
            os.symlink(os.readlink(folder), root + folder)
        elif os.path.isdir(folder):
            _view(folder, root + folder)
    if not os.path.isdir(root + library):
        _view(".", root + library)
    os.mkdir(f"{root}/dev")
    for device in DEVICES:
        os.close(os.open(root + device, os.O_CREAT | os.O_WRONLY))
        kernel.mount(device, root + device, None, _BIND)
    kernel.make_root(root)
    kernel.mount("", "/", None, 1 | 32 | _BIND | _NOSUID | _NODEV)  # read-only from here on
    os.chdir(WRITABLE)


def _view(source: str, target: str) -> None:
    os.makedirs(target, exist_ok=True)
    kernel.mount(source, target, None, _BIND | _RECURSIVE)
    kernel.set_mount_attributes(target, _ATTRIBUTES_READ_ONLY)


def _write(file: str, text: str) -> None:
    with open(file, "w") as stream:
        stream.write(text)
