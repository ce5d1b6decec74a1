"""Device rules in the kernel: the verifier takes every program, and both versions of cgroups enforce the rules."""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import re
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings

from pycontainer.oci.defaults import DEVICE_RULES
from pycontainer.oci.runtime import DeviceRule
from pycontainer.runtime.devices import compile_bpf, v1_writes
from tests.unit.test_devices import RULES

SYS_BPF = {"x86_64": 321, "aarch64": 280, "riscv64": 280}.get(platform.machine())
BPF_PROG_LOAD, BPF_PROG_ATTACH = 5, 8
BPF_PROG_TYPE_CGROUP_DEVICE = 15
BPF_CGROUP_DEVICE = 6
LIBC = ctypes.CDLL(None, use_errno=True)

needs_bpf = pytest.mark.skipif(SYS_BPF is None, reason="the number of bpf(2) on this machine is not in the test")


class Load(ctypes.Structure):
    """``union bpf_attr`` of BPF_PROG_LOAD, as far as needed."""

    _fields_ = (
        ("prog_type", ctypes.c_uint32),
        ("insn_cnt", ctypes.c_uint32),
        ("insns", ctypes.c_uint64),
        ("license", ctypes.c_uint64),
        ("log_level", ctypes.c_uint32),
        ("log_size", ctypes.c_uint32),
        ("log_buf", ctypes.c_uint64),
    )


class Attach(ctypes.Structure):
    """``union bpf_attr`` of BPF_PROG_ATTACH, as far as needed."""

    _fields_ = (
        ("target_fd", ctypes.c_uint32),
        ("attach_bpf_fd", ctypes.c_uint32),
        ("attach_type", ctypes.c_uint32),
        ("attach_flags", ctypes.c_uint32),
    )


def load(program: bytes) -> int:
    """Hand a program to the verifier; return its descriptor, or fail with the log."""
    code = ctypes.create_string_buffer(program, len(program))
    licence = ctypes.create_string_buffer(b"Apache-2.0")
    log = ctypes.create_string_buffer(1 << 16)
    address = ctypes.addressof
    attr = Load(
        BPF_PROG_TYPE_CGROUP_DEVICE, len(program) // 8, address(code), address(licence), 1, len(log), address(log)
    )
    fd = int(LIBC.syscall(SYS_BPF, BPF_PROG_LOAD, ctypes.byref(attr), ctypes.sizeof(attr)))
    code_of_error = ctypes.get_errno()
    if fd < 0 and code_of_error == errno.EPERM:
        pytest.skip("bpf(2) is not permitted here")
    assert fd >= 0, f"{os.strerror(code_of_error)}\n{log.value.decode()}"
    return fd


def outcome(group: Path, device: str, flags: int) -> int:
    """Return the errno of opening a device in a process of the group."""
    pid = os.fork()
    if pid == 0:
        status = 255
        try:
            (group / "cgroup.procs").write_text("0")
            try:
                os.open(device, flags)
                status = 0
            except OSError as error:
                status = error.errno or 254
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def mount_point(pattern: str) -> Path | None:
    found = re.search(pattern, Path("/proc/self/mounts").read_text(), re.MULTILINE)
    return Path(found[1]) if found else None


READ_ONLY_NULL = (
    *DEVICE_RULES,
    DeviceRule(allow=False, type="c", major=1, minor=3, access="w"),
)


def check(group: Path) -> None:
    assert outcome(group, "/dev/null", os.O_RDONLY) == 0
    assert outcome(group, "/dev/null", os.O_WRONLY) == errno.EPERM
    assert outcome(group, "/dev/null", os.O_RDWR) == errno.EPERM
    assert outcome(group, "/dev/zero", os.O_RDWR) == 0
    assert outcome(group, "/dev/kmsg", os.O_RDONLY) == errno.EPERM


@needs_bpf
@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(RULES)
def test_the_verifier_takes_every_program(rules: list[DeviceRule]) -> None:
    os.close(load(compile_bpf(rules)))


@needs_bpf
def test_a_group_of_v2_enforces_the_rules() -> None:
    root = mount_point(r"^\S+ (\S+) cgroup2 ")
    if root is None:
        pytest.skip("no cgroup v2 hierarchy is mounted")
    group = root / f"pycontainer-test-devices-{os.getpid()}"
    group.mkdir()
    try:
        program = load(compile_bpf(READ_ONLY_NULL))
        target = os.open(group, os.O_RDONLY | os.O_DIRECTORY)
        attr = Attach(target, program, BPF_CGROUP_DEVICE, 0)
        result = LIBC.syscall(SYS_BPF, BPF_PROG_ATTACH, ctypes.byref(attr), ctypes.sizeof(attr))
        code = ctypes.get_errno()
        os.close(target)
        os.close(program)
        assert result == 0, os.strerror(code)
        check(group)
    finally:
        group.rmdir()


def test_a_group_of_v1_enforces_the_rules() -> None:
    root = mount_point(r"^\S+ (\S+) cgroup \S*\bdevices\b")
    if root is None:
        pytest.skip("no cgroup v1 hierarchy with the devices controller is mounted")
    group = root / f"pycontainer-test-devices-{os.getpid()}"
    group.mkdir()
    try:
        for file, text in v1_writes(READ_ONLY_NULL):
            (group / file).write_text(text)
        check(group)
    finally:
        group.rmdir()
