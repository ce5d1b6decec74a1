"""Compiled filters in the kernel: what it lets through, what it refuses, through the 32-bit table too."""

from __future__ import annotations

import ctypes
import errno
import os
import shutil
import signal
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from pycontainer.oci.runtime import Seccomp, SyscallArg, SyscallRule
from pycontainer.runtime.capabilities import DEFAULT
from pycontainer.runtime.seccomp import Filter, FilterCache, compile_filter

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

pytestmark = pytest.mark.skipif(os.uname().machine != "x86_64", reason="uses the system call numbers of x86_64")

PR_SET_NO_NEW_PRIVS = 38
SYS_SECCOMP, SECCOMP_SET_MODE_FILTER = 317, 1
GETPID, CLONE, MOUNT, UNSHARE, CLONE3, SOCKET, KEYCTL, NEWEST = 39, 56, 165, 272, 435, 41, 250, 4000
CLONE_NEWUSER, SIGCHLD = 0x10000000, 17
INVALID_POINTER = 1

LIBC = ctypes.CDLL(None, use_errno=True)


class SockFprog(ctypes.Structure):
    """``struct sock_fprog``."""

    _fields_ = (("len", ctypes.c_ushort), ("filter", ctypes.c_char_p))


def load(compiled: Filter) -> None:
    """Put this process under a filter, for good."""
    program = SockFprog(len(compiled.program) // 8, compiled.program)
    if LIBC.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl")
    flags = ctypes.c_ulong(compiled.flags)
    if LIBC.syscall(SYS_SECCOMP, SECCOMP_SET_MODE_FILTER, flags, ctypes.byref(program)) != 0:
        raise OSError(ctypes.get_errno(), "seccomp")


def error_of(number: int, *args: int) -> int:
    """Make a system call; return its errno, 0 for success."""
    ctypes.set_errno(0)
    result = LIBC.syscall(ctypes.c_long(number), *(ctypes.c_ulong(arg) for arg in args))
    return ctypes.get_errno() if result == -1 else 0


def in_child(action: Callable[[], int]) -> int:
    """Return the wait status of a forked child that exits with what the action returns."""
    pid = os.fork()
    if pid == 0:
        status = 255
        try:
            status = action()
        finally:
            os._exit(status)
    return os.waitpid(pid, 0)[1]


def under_filter(compiled: Filter, number: int, *args: int) -> int:
    def child() -> int:
        load(compiled)
        return error_of(number, *args)

    return os.waitstatus_to_exitcode(in_child(child))


@pytest.fixture(scope="module")
def default() -> Filter:
    return FilterCache(None).default_filter(frozenset(DEFAULT))


@pytest.mark.parametrize(
    ("number", "args", "expected"),
    [
        (GETPID, (), 0),
        (SOCKET, (1, 1, 0), 0),
        (SOCKET, (38, 5, 0), errno.EPERM),  # AF_ALG
        (SOCKET, (40, 1, 0), errno.EPERM),  # AF_VSOCK
        (MOUNT, (0, 0, 0, 0, 0), errno.EPERM),
        (UNSHARE, (CLONE_NEWUSER,), errno.EPERM),
        (CLONE, (CLONE_NEWUSER | SIGCHLD, 0, 0, 0, 0), errno.EPERM),
        (KEYCTL, (0, 0, 0, 0, 0), errno.EPERM),
        (CLONE3, (INVALID_POINTER, 88), errno.ENOSYS),
        (NEWEST, (), errno.ENOSYS),
    ],
)
def test_the_default_filter_in_the_kernel(default: Filter, number: int, args: tuple[int, ...], expected: int) -> None:
    assert under_filter(default, number, *args) == expected


def test_an_ordinary_program_runs_under_the_default_filter(default: Filter) -> None:
    code = (
        "import threading, socket, subprocess, tempfile\n"
        "t = threading.Thread(target=print, args=('thread',)); t.start(); t.join()\n"
        "with tempfile.TemporaryFile() as f: f.write(b'x')\n"
        "socket.socketpair(); print(subprocess.run(['echo', 'child'], capture_output=True, text=True).stdout)\n"
    )
    read, write = os.pipe()

    def child() -> int:
        os.dup2(write, 1)
        load(default)
        os.execv(sys.executable, [sys.executable, "-c", code])  # noqa: S606

    status = in_child(child)
    os.close(write)
    with os.fdopen(read, "rb") as output:
        assert output.read().split() == [b"thread", b"child"]
    assert status == 0


def test_capabilities_open_their_calls() -> None:
    wide = FilterCache(None).default_filter(frozenset(DEFAULT) | {"CAP_SYS_ADMIN"})
    assert under_filter(wide, MOUNT, 0, 0, 0, 0, 0) == errno.EFAULT
    assert under_filter(wide, CLONE3, INVALID_POINTER, 88) == errno.EFAULT


def test_flags_reach_the_kernel() -> None:
    profile = Seccomp(
        default_action="SCMP_ACT_ALLOW",
        flags=(
            "SECCOMP_FILTER_FLAG_LOG",
            "SECCOMP_FILTER_FLAG_SPEC_ALLOW",
            "SECCOMP_FILTER_FLAG_TSYNC",
            "SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV",
        ),
        syscalls=(SyscallRule(names=("getpid",), action="SCMP_ACT_ERRNO", errno_ret=77),),
    )
    compiled = compile_filter(profile)
    assert under_filter(compiled, GETPID) == 77
    assert under_filter(compiled, NEWEST) == errno.ENOSYS  # of the kernel itself


def test_the_kernel_takes_a_filter_with_far_jumps() -> None:
    families = tuple(SyscallArg(index=0, value=value, op="SCMP_CMP_EQ") for value in range(100, 1600, 5))
    names = ("socket", "keyctl", "mount", "unshare")
    rules = (
        *(SyscallRule(names=(name,), action="SCMP_ACT_ERRNO", errno_ret=77, args=families) for name in names),
        SyscallRule(names=("getpid",), action="SCMP_ACT_ERRNO", errno_ret=78),
    )
    compiled = compile_filter(
        Seccomp(default_action="SCMP_ACT_ALLOW", architectures=("SCMP_ARCH_X86", "SCMP_ARCH_X32"), syscalls=rules)
    )
    assert len(compiled.program) // 8 > 256  # one copy of the comparisons serves all
    for number in (SOCKET, KEYCTL, MOUNT, UNSHARE):
        assert [under_filter(compiled, number, first) for first in (100, 850, 1595)] == [77, 77, 77]
        assert under_filter(compiled, number, 1596) != 77
        assert under_filter(compiled, number, 100 | 1 << 32) != 77
    assert under_filter(compiled, GETPID) == 78


def test_killing_actions_kill() -> None:
    profile = Seccomp(
        default_action="SCMP_ACT_ALLOW",
        syscalls=(SyscallRule(names=("getpid",), action="SCMP_ACT_KILL_PROCESS"),),
    )
    assert under_filter(compile_filter(profile), GETPID) == -signal.SIGSYS


# ── the 32-bit table ──────────────────────────────────────────────────────────────────────────────────────────────

# Exits with the errno of one system call, made as 32-bit programs make it.
PROGRAM_32 = """
void _start(void) {
    int result;
    __asm__ volatile("int $0x80" : "=a"(result) : "a"(NUMBER), "b"(FIRST), "c"(0), "d"(0), "S"(0), "D"(0) : "memory");
    __asm__ volatile("int $0x80" : : "a"(1), "b"(result < 0 ? -result : 0));
}
"""


def compile_32(directory: Path, number: int, first: int) -> Path:
    source, program = directory / "call.c", directory / f"call-{number}-{first}"
    source.write_text(PROGRAM_32)
    flags = ["-m32", "-O1", "-static", "-nostdlib", "-fno-stack-protector", "-fno-pie", "-no-pie"]
    define = [f"-DNUMBER={number}", f"-DFIRST={first}"]
    subprocess.run(["gcc", *flags, *define, "-o", program, source], check=True, capture_output=True)
    return program


@pytest.fixture
def needs_32_bit(tmp_path: Path) -> None:
    if shutil.which("gcc") is None:
        pytest.skip("gcc is not installed")
    try:
        if subprocess.run([compile_32(tmp_path, 20, 0)], check=False).returncode != 0:
            pytest.skip("this kernel runs 32-bit programs otherwise than expected")
    except (subprocess.CalledProcessError, OSError) as error:
        pytest.skip(f"32-bit programs cannot be compiled or run here: {error}")


@pytest.mark.usefixtures("needs_32_bit")
@pytest.mark.parametrize(
    ("number", "first", "expected"),
    [
        (20, 0, 0),  # getpid
        (21, 0, errno.EPERM),  # mount
        (310, CLONE_NEWUSER, errno.EPERM),  # unshare
        (359, 38, errno.EPERM),  # socket(AF_ALG)
        (435, 1, errno.ENOSYS),  # clone3
        (4000, 0, errno.ENOSYS),
    ],
)
def test_the_default_filter_holds_for_32_bit_programs(
    default: Filter, tmp_path: Path, number: int, first: int, expected: int
) -> None:
    program = compile_32(tmp_path, number, first)

    def child() -> int:
        load(default)
        os.execv(program, (program,))  # noqa: S606

    assert os.waitstatus_to_exitcode(in_child(child)) == expected


@pytest.mark.usefixtures("needs_32_bit")
def test_a_profile_without_the_32_bit_table_kills_such_programs(tmp_path: Path) -> None:
    program = compile_32(tmp_path, 20, 0)
    compiled = compile_filter(
        Seccomp(
            default_action="SCMP_ACT_ALLOW", syscalls=(SyscallRule(names=("reboot",), action="SCMP_ACT_KILL_PROCESS"),)
        )
    )

    def child() -> int:
        load(compiled)
        os.execv(program, (program,))  # noqa: S606

    assert os.waitstatus_to_exitcode(in_child(child)) == -signal.SIGSYS
