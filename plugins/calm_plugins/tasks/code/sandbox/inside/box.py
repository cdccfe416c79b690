"""Putting on the layers, in the order in which each still allows the next.

| layer        | what it takes away                                                      |
|--------------|-------------------------------------------------------------------------|
| `user`       | root: the process becomes a user that owns nothing                      |
| `namespaces` | the host's files, processes, network, shared memory and name            |
| `limits`     | processor time, memory, file size, open files, threads                  |
| `landlock`   | files outside the named folders, whatever the rights on them; TCP ports |
| `seccomp`    | system calls that computing does not need: new processes, sockets, …    |
"""

import os
import resource
from collections.abc import Sequence

from . import kernel, landlock, namespaces, seccomp
from .settings import BoxSettings

LIBRARY = os.path.dirname(os.path.dirname(os.__file__))
"""Folder of the standard library, and of the shared libraries that come with some Pythons."""

_NOBODY = 65533  # not 65534, as which the host may run something
_OPEN_FILES, _THREADS, _FILE_MIB = 32, 32, 8


def enter(settings: BoxSettings, keep: Sequence[int], parent: int) -> None:
    """Put on the layers. With namespaces, what returns is a child.

    `LIBRARY` must be the current folder: a user who cannot reach it by its path can still be given
    a view of it.

    Args:
        settings: Which, and how much is left.
        keep: Descriptors that stay open; 0, 1 and 2 become /dev/null, all others are closed.
        parent: The process that called, with which the box ends.

    Raises:
        OSError: If a layer cannot be put on.
    """
    layers = settings.layers
    null = os.open("/dev/null", os.O_RDWR)
    for standard in {0, 1, 2} - set(keep):
        os.dup2(null, standard)
    last = 3
    for descriptor in sorted(d for d in keep if d > 2):
        os.closerange(last, descriptor)
        last = descriptor + 1
    os.closerange(last, os.sysconf("SC_OPEN_MAX"))
    os.umask(0o077)
    if "user" in layers and os.geteuid() == 0:
        os.setgroups([])
        os.setresgid(_NOBODY, _NOBODY, _NOBODY)
        os.setresuid(_NOBODY, _NOBODY, _NOBODY)
        kernel.be_dumpable(True)
    kernel.die_with_parent(parent)
    if "namespaces" in layers:
        namespaces.enter(LIBRARY, settings.writable_mib, parent)
    else:
        os.chdir("/")
    kernel.drop_capabilities()
    if "limits" in layers:
        _limit(settings)
    kernel.no_new_privileges()
    if "landlock" in layers:
        readable = (LIBRARY, *namespaces.LIBRARIES, *namespaces.DEVICES)
        # Without a /tmp of its own there is no place to write: its size could not be bounded.
        own = (namespaces.WRITABLE,) if "namespaces" in layers else ()
        landlock.enter(readable, (*own, "/dev/null"))
    kernel.be_dumpable(False)
    if "seccomp" in layers:
        seccomp.enter()


def _limit(settings: BoxSettings) -> None:
    kernel.share_one_heap()
    limits = {
        resource.RLIMIT_CPU: settings.cpu_seconds,
        resource.RLIMIT_AS: settings.memory_mib << 20,
        resource.RLIMIT_FSIZE: _FILE_MIB << 20,
        resource.RLIMIT_NOFILE: _OPEN_FILES,
        resource.RLIMIT_CORE: 0,
        resource.RLIMIT_MEMLOCK: 0,
    }
    if "namespaces" in settings.layers:  # elsewhere it would count those of the whole user
        limits[resource.RLIMIT_NPROC] = _THREADS
    for kind, value in limits.items():
        _, most = resource.getrlimit(kind)
        value = value if most == resource.RLIM_INFINITY else min(value, most)
        resource.setrlimit(kind, (value, value))
