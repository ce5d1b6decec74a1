"""Processes, sockets, terminals and IPC objects of the host are out of reach from inside."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import os
import pty
import secrets
import signal
import socket
import subprocess
import sys
import termios
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from pycontainer.model import Mount

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.kernel.attacks.jail import Jail

LIBC = ctypes.CDLL(None, use_errno=True)
IPC_CREAT, IPC_RMID = 0o1000, 0
# Not every host has /dev/mqueue.
HOST_IPC: dict[str, Any] = {"ipc": "host", "mounts": [Mount.tmpfs("/dev/mqueue")]}


@pytest.fixture
def victim() -> Iterator[subprocess.Popen[bytes]]:
    """Give a process of the host with a secret in its environment."""
    with subprocess.Popen(["sleep", "60"], env={"SECRET": "of-the-host", "PATH": os.environ["PATH"]}) as process:
        try:
            yield process
        finally:
            process.kill()


def test_a_signal_to_the_host(jail: Jail, victim: subprocess.Popen[bytes]) -> None:
    assert jail.attack("kill", victim.pid, int(signal.SIGTERM)) == errno.ESRCH
    assert victim.poll() is None
    assert jail.attack("kill", victim.pid, int(signal.SIGTERM), pid="host") == 0
    assert victim.wait(5) == -signal.SIGTERM


def test_a_signal_to_everybody_ends_only_the_own_processes(jail: Jail, victim: subprocess.Popen[bytes]) -> None:
    """No control: with pid="host" it would end the host."""
    jail.run("/bin/sh", "-c", "kill -9 -1")
    assert victim.poll() is None


def test_ptrace_of_the_host(jail: Jail, victim: subprocess.Popen[bytes]) -> None:
    assert jail.attack("ptrace", victim.pid) == errno.ESRCH
    assert jail.attack("ptrace", victim.pid, pid="host") == errno.EPERM  # root there has more capabilities
    assert jail.attack("ptrace", victim.pid, pid="host", cap_add=["SYS_PTRACE"]) == 0


def test_memory_of_the_host(jail: Jail, victim: subprocess.Popen[bytes]) -> None:
    line = next(line for line in Path(f"/proc/{victim.pid}/maps").read_text().splitlines() if "[stack]" in line)
    address = "0x" + line.partition("-")[0]
    assert jail.attack("readv", victim.pid, address) == errno.ESRCH
    assert jail.attack("readv", victim.pid, address, pid="host") == errno.EPERM
    with_ptrace = jail.attack("readv", victim.pid, address, pid="host", cap_add=["SYS_PTRACE"])
    assert with_ptrace in (0, errno.EFAULT)  # the lowest page of a stack may not be there


def test_the_environment_of_host_processes(jail: Jail, victim: subprocess.Popen[bytes]) -> None:
    look = f"cat /proc/{victim.pid}/environ 2>&1 || true"
    assert "SECRET" not in jail.sh(look)
    assert "SECRET" not in jail.sh(look, pid="host")
    assert "SECRET" in jail.sh(look, pid="host", cap_add=["SYS_PTRACE"])


def test_the_environment_of_the_caller_does_not_come_along(jail: Jail, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYCONTAINER_TEST_SECRET", "of-the-host")
    seen = jail.sh("cat /proc/1/environ; env")
    assert "SECRET" not in seen


def test_only_the_own_processes_are_listed(jail: Jail, victim: subprocess.Popen[bytes]) -> None:
    listed = "for p in /proc/[0-9]*; do echo ${p#/proc/}; done"
    assert set(jail.sh(listed).split()) == {"1"}
    assert str(victim.pid) in jail.sh(listed, pid="host").split()


def test_the_root_and_the_working_directory_of_the_caller(jail: Jail) -> None:
    look = "ls /proc/*/root/ /proc/*/cwd/ 2>/dev/null | sort -u"
    assert "lost+found" not in jail.sh(look)
    pid = os.getpid()
    assert "etc" not in jail.sh(f"ls /proc/{pid}/root/ 2>/dev/null || true").split()
    host = {"pid": "host", "cap_add": ["SYS_PTRACE"]}
    assert "etc" in jail.sh(f"ls /proc/{pid}/root/", **host).split()


def test_abstract_sockets_of_the_host(jail: Jail) -> None:
    """A program that listens there, as containerd-shim once did, trusts whoever connects (CVE-2020-15257)."""
    name = f"pycontainer-test-{secrets.token_hex(8)}"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(f"\0{name}")
        listener.listen()
        assert jail.attack("abstract", name) == errno.ECONNREFUSED
        assert jail.attack("abstract", name, network="host") == 0


def test_services_of_the_host_on_its_loopback_interface(jail: Jail) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        knock = f"nc -w 2 127.0.0.1 {port} </dev/null >/dev/null 2>&1 && echo open || echo closed"
        listener.settimeout(5)
        assert jail.sh(knock) == "closed"
        with jail_answers(listener):
            assert jail.sh(knock, network="host") == "open"


@contextlib.contextmanager
def jail_answers(listener: socket.socket) -> Iterator[None]:
    import threading

    def answer() -> None:
        with contextlib.suppress(TimeoutError):
            listener.accept()[0].close()

    thread = threading.Thread(target=answer)
    thread.start()
    yield
    thread.join()


def test_shared_memory_of_the_host(jail: Jail) -> None:
    key = secrets.randbelow(1 << 30) + 1
    memory = LIBC.shmget(key, 4096, IPC_CREAT | 0o666)
    assert memory >= 0
    try:
        assert jail.attack("shm", key) == errno.ENOENT
        assert jail.attack("shm", key, **HOST_IPC) == 0
    finally:
        LIBC.shmctl(memory, IPC_RMID, None)


def test_message_queues_of_the_host(jail: Jail) -> None:
    key = secrets.randbelow(1 << 30) + 1
    queue = LIBC.msgget(key, IPC_CREAT | 0o666)
    assert queue >= 0
    try:
        assert jail.attack("msg", key) == errno.ENOENT
        assert jail.attack("msg", key, **HOST_IPC) == 0
    finally:
        LIBC.msgctl(queue, IPC_RMID, None)


def test_posix_message_queues_of_the_host(jail: Jail) -> None:
    name = f"/pycontainer-test-{secrets.token_hex(8)}"
    queue = LIBC.mq_open(name.encode(), os.O_CREAT | os.O_RDWR, 0o666, None)
    if queue < 0 and ctypes.get_errno() == errno.ENOSYS:
        pytest.skip("this kernel has no POSIX message queues")
    assert queue >= 0
    try:
        assert jail.attack("mq", name) == errno.ENOENT
        assert jail.attack("mq", name, **HOST_IPC) == 0
    finally:
        os.close(queue)
        LIBC.mq_unlink(name.encode())


# Takes a terminal as its own, as a login shell does, then types into it.
TYPIST = """
import fcntl, os, sys, termios
os.setsid()
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
try:
    fcntl.ioctl(0, termios.TIOCSTI, b"x")
except OSError as error:
    sys.exit(error.errno)
"""


def test_typing_into_the_terminal_of_the_host(jail: Jail) -> None:
    """TIOCSTI on an inherited terminal would leave commands for the caller's shell (CVE-2017-5226)."""
    master, slave = pty.openpty()
    try:
        before = termios.tcgetattr(slave)
        before[3] &= ~(termios.ICANON | termios.ECHO)
        termios.tcsetattr(slave, termios.TCSANOW, before)
        assert jail.attack("tiocsti", 0, stdin=slave) in (errno.EPERM, errno.EIO)
        assert waiting(slave) == 0
        control = subprocess.run([sys.executable, "-c", TYPIST], stdin=slave, check=False).returncode
        if control != 0:
            pytest.skip("this kernel lets nobody type into terminals (dev.tty.legacy_tiocsti): only refusal was shown")
        assert waiting(slave) == 1
    finally:
        os.close(master)
        os.close(slave)


def test_stealing_the_terminal_of_another_session(jail: Jail) -> None:
    master, slave = pty.openpty()
    with contextlib.ExitStack() as stack:
        stack.callback(os.close, master)
        stack.callback(os.close, slave)
        hold = (
            "import fcntl, os, termios\nos.setsid(); fcntl.ioctl(0, termios.TIOCSCTTY, 0); print(flush=True); input()"
        )
        owner = subprocess.Popen([sys.executable, "-c", hold], stdin=slave, stdout=subprocess.PIPE)
        stack.callback(owner.wait)
        stack.callback(owner.kill)
        assert owner.stdout is not None
        stack.callback(owner.stdout.close)
        owner.stdout.readline()
        assert jail.attack("ctty", 0, stdin=slave) == errno.EPERM


def waiting(fd: int) -> int:
    """Return how many bytes can be read."""
    count = bytearray(4)
    fcntl.ioctl(fd, termios.FIONREAD, count)
    return int.from_bytes(count, sys.byteorder)
