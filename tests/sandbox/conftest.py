"""One sandbox for the tests beside this file, and a reason to skip where the kernel lacks a layer.

Whether it does is found out here without the sandbox: a sandbox that is broken must not skip its
own tests.
"""

import platform
import subprocess
import sys
from collections.abc import Callable, Mapping

import pytest

from calm_plugins.tasks.code.sandbox import Sandbox, SandboxSettings

# As a user who is not root: namespaces of every kind, and Landlock's version.
_ASK_THE_KERNEL = """
import ctypes, os, sys
libc = ctypes.CDLL(None)
if os.geteuid() == 0:
    os.setgroups([])
    os.setresgid(65533, 65533, 65533)
    os.setresuid(65533, 65533, 65533)
print(libc.syscall(444, None, 0, 1), libc.unshare(0x7E020000))
"""

SkipWithout = Callable[[Mapping[str, str]], None]


def _what_the_kernel_lacks() -> str:
    if sys.platform != "linux" or platform.machine() != "x86_64":
        return f"the sandbox is for Linux on x86-64; this is {sys.platform}, {platform.machine()}"
    command = [sys.executable, "-I", "-S", "-c", _ASK_THE_KERNEL]
    said = subprocess.run(command, capture_output=True, text=True, check=False).stdout.split()
    if len(said) != 2:
        return "an ordinary user cannot be had here"
    lacks = {"Landlock": int(said[0]) < 1, "user namespaces": said[1] != "0"}
    return " and ".join(name for name, lacking in lacks.items() if lacking)


@pytest.fixture(scope="session")
def skip_without() -> SkipWithout:
    """Skips if layers are missing because the kernel lacks them; fails if it does not."""

    def check(missing: Mapping[str, str]) -> None:
        if missing:
            lacks = _what_the_kernel_lacks()
            assert lacks, f"the kernel has all that is needed, but layers are missing: {missing}"
            pytest.skip(f"no sandbox: this kernel or container lacks {lacks}")

    return check


@pytest.fixture(scope="session")
def sandbox(skip_without: SkipWithout) -> Sandbox:
    made = Sandbox(SandboxSettings(cpu_seconds=2, waiting_seconds=4.0, workers=2))
    skip_without(made.missing)
    return made
