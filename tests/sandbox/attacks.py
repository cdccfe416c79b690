"""Attacks on the machine that runs model-written code, each proved real outside of the sandbox.

An attack is a function whose *source* is the program. It gets the scene (places, processes and
ports of the host) and returns evidence that only success can give: a secret of the scene, or True.
They are harmless by construction: bounded, and on files and processes made for them.
`test_attacks.py` runs them.
"""

# ruff: noqa: SIM105, SIM115  (programs as short as they can be, in need of no other line)

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

Scene = dict[str, Any]


@dataclass(frozen=True)
class Attack:
    """A program, what it gains, and whether only root can gain it outside of the sandbox."""

    function: Callable[..., Any]
    gain: str = ""
    needs_root: bool = False

    @property
    def name(self) -> str:
        return self.function.__name__

    @property
    def program(self) -> str:
        source = inspect.getsource(self.function)
        return f"{source[source.index('def ') :]}\nattack = {self.name}\n"


ATTACKS: list[Attack] = []
HANGS: list[Attack] = []
CHEATS: list[Attack] = []


def attack(gain: str = "", needs_root: bool = False) -> Callable[[Any], Any]:
    """Lists an attack. `gain` is the scene's entry that its evidence equals; none means True."""
    return lambda function: ATTACKS.append(Attack(function, gain, needs_root)) or function


def hang(function: Any) -> Any:
    """Lists a program that never answers."""
    HANGS.append(Attack(function))
    return function


def cheat(function: Any) -> Any:
    """Lists a program that wants a verdict that it does not deserve."""
    CHEATS.append(Attack(function))
    return function


# ------------------------------------------------------------------ files


@attack(gain="secret")
def read_a_file_of_the_host(scene):
    return open(scene["secret_file"]).read()


@attack()
def read_the_users_of_the_host(scene):
    return "root:" in open("/etc/passwd").read()


@attack()
def write_a_file_of_the_host(scene):
    with open(scene["victim_file"], "w") as stream:
        stream.write("changed")
    return True


@attack()
def make_a_file_where_everybody_may(scene):
    open(scene["open_folder"] + "/made", "w").close()
    return True


@attack()
def delete_a_file_of_the_host(scene):
    import os

    os.unlink(scene["file_to_delete"])
    return True


@attack()
def change_the_rights_of_a_file(scene):
    import os

    os.chmod(scene["victim_file"], 0o666)
    return True


@attack()
def change_the_rights_of_a_folder(scene):
    import os

    os.chmod(scene["open_folder"], 0o1777)
    return True


@attack()
def change_the_times_of_a_file(scene):
    import os

    os.utime(scene["victim_file"], (0, 0))
    return True


@attack()
def change_the_times_of_a_device(scene):
    import os

    os.utime("/dev/zero")  # what the sandbox shows is the host's own
    return True


@attack()
def empty_a_file_of_the_host(scene):
    import os

    os.truncate(scene["victim_file"], 0)
    return True


@attack()
def empty_a_file_without_asking_to_write(scene):
    import os

    os.close(os.open(scene["victim_file"], os.O_TRUNC | 3))  # neither reads nor writes
    return True


@attack()
def lock_a_file_of_the_host(scene):
    import fcntl
    import os

    fcntl.flock(os.open(os.__file__, os.O_RDONLY), fcntl.LOCK_SH | fcntl.LOCK_NB)
    return True


@attack()
def lock_a_part_of_a_file_of_the_host(scene):
    import fcntl
    import os

    fcntl.lockf(os.open(os.__file__, os.O_RDONLY), fcntl.LOCK_SH | fcntl.LOCK_NB, 1)
    return True


@attack()
def learn_the_size_of_a_file(scene):
    import os

    return os.stat(scene["secret_file"]).st_size == scene["size"]


@attack(gain="secret")
def read_through_a_symbolic_link(scene):
    import os
    import tempfile

    link = tempfile.mktemp()
    os.symlink(scene["secret_file"], link)
    try:
        return open(link).read()
    finally:
        os.unlink(link)


@attack()
def hard_link_a_file_of_the_host(scene):
    import os
    import tempfile

    link = scene["open_folder"] + "/" + os.path.basename(tempfile.mktemp())
    os.link(scene["victim_file"], link)
    os.unlink(link)
    return True


@attack(gain="secret")
def read_through_the_root_in_proc(scene):
    return open("/proc/self/root" + scene["secret_file"]).read()


@attack(gain="secret")
def climb_out_by_dots(scene):
    return open("../" * 40 + scene["secret_file"]).read()


@attack(gain="secret")
def read_a_descriptor_of_the_caller(scene):
    import os

    os.lseek(scene["descriptor"], 0, 0)
    return os.read(scene["descriptor"], 100).decode()


@attack(needs_root=True)
def poison_the_standard_library(scene):
    import os

    open(os.__file__, "a").close()
    return True


@attack(needs_root=True)
def change_the_root_and_leave_it(scene):
    import os

    os.chroot(scene["open_folder"])
    return True


@attack(needs_root=True)
def make_a_device(scene):
    import os

    path = scene["open_folder"] + "/device"
    os.mknod(path, 0o20600, os.makedev(1, 1))
    os.unlink(path)
    return True


@attack(needs_root=True, gain="secret")
def open_a_file_by_its_number(scene):
    import ctypes
    import os
    import struct

    libc = ctypes.CDLL(None, use_errno=True)
    handle = ctypes.create_string_buffer(struct.pack("Ii", 128, 0) + bytes(128))
    mount = ctypes.c_int()
    libc.name_to_handle_at(-100, scene["secret_file"].encode(), handle, ctypes.byref(mount), 0)
    place = os.open(os.path.dirname(scene["secret_file"]), os.O_RDONLY)
    return os.read(libc.open_by_handle_at(place, handle, 0), 100).decode()


@attack(needs_root=True)
def mount_a_file_system(scene):
    import ctypes

    libc = ctypes.CDLL(None, use_errno=True)
    folder = scene["open_folder"].encode()
    if libc.mount(b"tmpfs", folder, b"tmpfs", 0, b"size=4k"):
        raise OSError(ctypes.get_errno())
    libc.umount2(folder, 2)
    return True


@attack(needs_root=True)
def set_what_the_kernel_runs_on_a_crash(scene):
    open("/proc/sys/kernel/core_pattern", "r+").close()
    return True


# ------------------------------------------------------------------ secrets, network


@attack(gain="secret")
def read_the_environment(scene):
    import os

    return os.environ[scene["variable"]]


@attack(gain="secret")
def read_the_environment_of_another_process(scene):
    entries = open(f"/proc/{scene['victim']}/environ").read().split("\0")
    return dict(e.split("=", 1) for e in entries if "=" in e)[scene["variable"]]


@attack(gain="secret")
def connect_by_tcp(scene):
    import socket

    return socket.create_connection(("127.0.0.1", scene["tcp"]), timeout=2).recv(100).decode()


@attack()
def send_by_udp(scene):
    import socket

    sender = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    return sender.sendto(b"stolen", ("127.0.0.1", scene["udp"])) == 6


@attack(gain="secret")
def connect_to_a_socket_file(scene):
    import socket

    caller = socket.socket(socket.AF_UNIX)
    caller.settimeout(2)
    caller.connect(scene["socket_file"])
    return caller.recv(100).decode()


@attack(gain="secret")
def connect_to_an_abstract_socket(scene):
    import socket

    caller = socket.socket(socket.AF_UNIX)
    caller.settimeout(2)
    caller.connect("\0" + scene["socket_name"])
    return caller.recv(100).decode()


@attack()
def listen_on_a_port(scene):
    import socket

    socket.create_server(("127.0.0.1", 0)).close()
    return True


@attack(gain="host_name")
def learn_the_name_of_the_host(scene):
    import os

    return os.uname().nodename


@attack(gain="memory")
def learn_the_memory_of_the_host(scene):
    import os

    return os.sysconf("SC_PHYS_PAGES")


@attack()
def take_part_in_the_kernels_keyring(scene):
    import ctypes

    payload = ctypes.create_string_buffer(b"payload")
    key = ctypes.CDLL(None).syscall(248, b"user", b"calm-attack", payload, 7, -1)  # of the process
    return key > 0


@attack()
def leave_shared_memory_behind(scene):
    import ctypes

    libc = ctypes.CDLL(None)
    segment = libc.shmget(0, 4096, 0o1600)
    libc.shmctl(segment, 0, None)
    return segment >= 0


@attack()
def keep_memory_in_a_file_without_a_name(scene):
    import os

    return os.write(os.memfd_create("hidden"), bytes(1 << 20)) == 1 << 20


# ------------------------------------------------------------------ processes


@attack()
def see_a_process_of_the_host(scene):
    import os

    return str(scene["victim"]) in os.listdir("/proc")


@attack()
def see_a_process_by_its_path(scene):
    import os

    return os.path.exists(f"/proc/{scene['victim']}")


@attack()
def kill_a_process_of_the_host(scene):
    import os

    os.kill(scene["victim_to_kill"], 9)
    return True


@attack()
def signal_everybody(scene):
    import os

    os.kill(-1, 0)  # only asks whether it might
    return True


@attack()
def trace_a_process_of_the_host(scene):
    import ctypes
    import os

    libc = ctypes.CDLL(None, use_errno=True)
    attached = libc.ptrace(16, scene["victim"], None, None) == 0
    if attached:
        os.waitpid(scene["victim"], 0)
        libc.ptrace(17, scene["victim"], None, None)
    return attached


@attack(gain="secret")
def read_the_memory_of_a_process(scene):
    import ctypes

    libc = ctypes.CDLL(None, use_errno=True)
    size = scene["size"]
    found = ctypes.create_string_buffer(size)
    local = (ctypes.c_size_t * 2)(ctypes.addressof(found), size)
    remote = (ctypes.c_size_t * 2)(scene["address"], size)
    libc.process_vm_readv(scene["victim"], local, 1, remote, 1, 0)
    return found.raw.decode()


@attack()
def start_a_program(scene):
    import subprocess

    said = subprocess.run(["/bin/echo", "hello"], capture_output=True, check=True).stdout
    return said == b"hello\n"


@attack()
def become_another_program(scene):
    import os

    os.execv("/bin/true", ["true"])


@attack()
def fork_many_processes(scene):
    import os
    import time

    children = []
    while len(children) < 40:
        child = os.fork()
        if child == 0:
            time.sleep(0.3)
            os._exit(0)
        children.append(child)
    return True


@attack()
def start_many_threads(scene):
    import threading
    import time

    for _ in range(100):
        threading.Thread(target=time.sleep, args=(0.3,)).start()
    return True


@attack()
def leave_a_daemon_behind(scene):
    import os
    import time

    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            os.closerange(0, 100)
            time.sleep(1)
        os._exit(0)
    return True


@attack()
def nest_a_user_namespace(scene):
    import ctypes

    return ctypes.CDLL(None).unshare(0x10000000) == 0


@attack(needs_root=True)
def become_root(scene):
    import os

    os.setuid(0)
    return os.getuid() == 0


@attack()
def call_the_kernel_in_32_bits(scene):
    import ctypes
    import mmap
    import os

    code = b"\xb8\x14\x00\x00\x00\xcd\x80\xc3"  # mov eax, 20 (getpid); int 0x80; ret
    page = mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
    page.write(code)
    start = ctypes.addressof(ctypes.c_char.from_buffer(page))
    return ctypes.CFUNCTYPE(ctypes.c_int)(start)() == os.getpid()


# ------------------------------------------------------------------ too much


@attack()
def take_a_lot_of_memory(scene):
    return len(bytearray(1 << 30)) == 1 << 30


@attack()
def take_memory_piece_by_piece(scene):
    import mmap

    kept = [mmap.mmap(-1, 1 << 24) for _ in range(64)]
    return len(kept) == 64


@attack()
def fill_the_disk_with_a_file(scene):
    import tempfile

    with tempfile.TemporaryFile() as stream:
        for _ in range(64):
            stream.write(bytes(1 << 20))
        stream.flush()
    return True


@attack()
def fill_the_disk_with_files(scene):
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        for i in range(32):
            with open(f"{folder}/{i}", "wb") as stream:
                stream.write(bytes(1 << 20))
    return True


@attack()
def use_up_the_file_system(scene):
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        for i in range(2000):
            open(f"{folder}/{i}", "w").close()
    return True


@attack()
def open_many_files(scene):
    import os

    return len([os.open("/dev/null", os.O_RDONLY) for _ in range(500)]) == 500


@attack()
def lift_the_own_limits(scene):
    import resource

    unlimited = (resource.RLIM_INFINITY, resource.RLIM_INFINITY)
    resource.setrlimit(resource.RLIMIT_CPU, unlimited)
    return resource.getrlimit(resource.RLIMIT_CPU) == unlimited


# ------------------------------------------------------------------ never answering


@hang
def sleep_for_ever(scene):
    import time

    time.sleep(3600)


@hang
def spin(scene):
    while True:
        pass


@hang
def spin_and_catch_everything(scene):
    import signal

    for number in range(1, 65):
        try:
            signal.signal(number, signal.SIG_IGN)
        except (OSError, ValueError):
            pass
    while True:
        try:
            while True:
                pass
        except BaseException:
            pass


@hang
def spin_in_many_threads(scene):
    import threading

    def forever():
        while True:
            pass

    for _ in range(8):
        threading.Thread(target=forever, daemon=True).start()
    forever()


@hang
def backtrack_in_a_regular_expression(scene):
    import re

    re.match("(a*)*b", "a" * 40)


@hang
def wait_for_oneself(scene):
    import threading

    lock = threading.Lock()
    lock.acquire()
    lock.acquire()


# ------------------------------------------------------------------ faking the verdict
# The test: assert abs(attack(2) - 4) < 1e-6 and abs(attack(3) - 6) < 1e-6. These answer wrongly.


@cheat
def exit_before_the_tests(number):
    raise SystemExit(0)


@cheat
def end_the_process_at_once(number):
    import os

    os._exit(0)


@cheat
def print_the_token(number):
    import os

    for descriptor in range(1, 20):
        try:
            os.write(descriptor, b'\n{"outcome": "passed", "detail": ""}\npassed\n')
        except OSError:
            pass
    os._exit(0)


@cheat
def turn_failing_into_a_good_end(number):
    import os
    import sys

    sys.excepthook = lambda *_: os._exit(0)
    return 0


@cheat
def end_well_at_exit(number):
    import atexit
    import os

    atexit.register(os._exit, 0)
    return 0


@cheat
def equal_everything(number):
    class Everything(int):
        __eq__ = __lt__ = __le__ = lambda *_: True
        __hash__ = int.__hash__
        __sub__ = __abs__ = lambda self, *_: self

    return Everything()


@cheat
def replace_what_the_tests_use(number):
    import builtins

    builtins.abs = lambda _: 0
    return 4  # right for the first test, so that the second one finds another `abs`


@cheat
def read_the_expected_value_in_the_caller(number):
    import sys

    constants = sys._getframe(1).f_code.co_consts
    return {2: 4, 3: 6}[number] if {4, 6} <= set(constants) else 0


@cheat
def find_the_tests_in_memory(number):
    import gc

    for each in gc.get_objects():
        if isinstance(each, dict):
            for value in list(each.values()):
                if isinstance(value, str) and "assert abs(attack" in value:
                    return {2: 4, 3: 6}[number]
    return 0


@cheat
def trace_the_tests(number):
    import sys

    def skip(frame, event, argument):
        if "number" not in frame.f_locals:
            raise SystemExit(0)
        return skip

    sys._getframe(1).f_trace = skip
    sys.settrace(skip)
    return 0
