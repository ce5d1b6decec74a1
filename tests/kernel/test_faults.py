"""Every step of a start made to fail in earnest: the error names step, path, errno and remedy, and nothing is left."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import attrs
import pytest

from pycontainer import (
    CommandNotFound,
    Device,
    Engine,
    Error,
    Limits,
    Mount,
    NotFound,
    Rlimit,
    StartError,
    StoreError,
)


@attrs.frozen(kw_only=True)
class Fault:
    """A start that fails, and what its error has to say.

    Attributes:
        options: what is asked of the engine.
        command: what is to run.
        words: what the text of the error holds.
        number: its errno, when the kernel said no.
        kind: its class.
    """

    options: dict[str, object] = attrs.Factory(dict)
    command: tuple[str, ...] = ("true",)
    words: tuple[str, ...]
    number: int = 0
    kind: type[Exception] = StartError


FAULTS = {
    "no such program": Fault(
        command=("absent",), words=("absent", "PATH was /usr/local/sbin"), number=errno.ENOENT, kind=CommandNotFound
    ),
    "no such path": Fault(command=("/bin/absent",), words=("/bin/absent",), number=errno.ENOENT, kind=CommandNotFound),
    "program is a directory": Fault(
        command=("/etc",), words=("/etc", "executable"), number=errno.EACCES, kind=CommandNotFound
    ),
    "program is a text": Fault(
        command=("/etc/passwd",), words=("/etc/passwd", "executable"), number=errno.EACCES, kind=CommandNotFound
    ),
    "below a file": Fault(
        command=("/etc/passwd/x",), words=("/etc/passwd/x",), number=errno.ENOTDIR, kind=CommandNotFound
    ),
    "program on noexec": Fault(
        options={"mounts": (Mount.bind("/usr/bin", "/m", options=("noexec",)),)},
        command=("/m/env",),
        words=("/m/env",),
        number=errno.EACCES,
        kind=CommandNotFound,
    ),
    "no such user": Fault(options={"user": "nobody-here"}, words=("nobody-here", "/etc/passwd"), kind=NotFound),
    "missing source": Fault(
        options={"mounts": (Mount.bind("/absent/source", "/m"),)},
        words=("bind mount", "/absent/source", "create it first"),
        number=errno.ENOENT,
    ),
    "target below a file": Fault(
        options={"mounts": (Mount.bind("/usr", "/etc/passwd/x"),)}, words=("/etc/passwd/x",), number=errno.ENOTDIR
    ),
    "directory over a file": Fault(
        options={"mounts": (Mount.bind("/usr", "/etc/passwd"),)}, words=("/etc/passwd",), number=errno.EINVAL
    ),
    "unknown option of a mount": Fault(
        options={"mounts": (Mount.tmpfs("/m", options=("no-such-option",)),)},
        words=("tmpfs", "/m"),
        number=errno.EINVAL,
    ),
    "working directory is a file": Fault(
        options={"workdir": "/etc/passwd"}, words=("working directory", "/etc/passwd"), number=errno.ENOTDIR
    ),
    "value of a kernel parameter": Fault(
        options={"sysctls": {"net.ipv4.ip_forward": "many"}},
        words=("net.ipv4.ip_forward", "many"),
        number=errno.EINVAL,
    ),
    "kernel parameter that is none": Fault(
        options={"sysctls": {"net.ipv4.absent": "1"}}, words=("net.ipv4.absent",), number=errno.ENOENT
    ),
    "kernel parameter of the host": Fault(
        options={"sysctls": {"kernel.panic": "1"}}, words=("kernel.panic", "change the host"), kind=ValueError
    ),
    "processors that are not there": Fault(
        options={"limits": Limits(cpuset_cpus="4000")}, words=("cpuset.cpus", "4000")
    ),
    "memory nodes that are not there": Fault(
        options={"limits": Limits(cpuset_mems="700")}, words=("cpuset.mems", "700")
    ),
    "device that is not there": Fault(
        options={"devices": (Device("/dev/absent"),)}, words=("/dev/absent",), kind=NotFound
    ),
    "no such profile": Fault(options={"seccomp": "/absent/profile.json"}, words=("/absent/profile.json",), kind=Error),
    "capability that is none": Fault(options={"cap_add": ("FLY",)}, words=("FLY",), kind=ValueError),
    "limit that is none": Fault(options={"rlimits": (Rlimit("luck", 1),)}, words=("luck",), kind=ValueError),
    "soft above hard": Fault(
        options={"rlimits": (Rlimit("nofile", 20, 10),)}, words=("RLIMIT_NOFILE", "20:10"), number=errno.EINVAL
    ),
    "more files than the kernel has": Fault(
        options={"rlimits": (Rlimit("nofile", 1 << 40),)}, words=("RLIMIT_NOFILE", str(1 << 40)), number=errno.EPERM
    ),
    "argument too long": Fault(command=("true", "x" * 200_000), words=("execute",), number=errno.E2BIG),
    "no such image": Fault(options={"image": "absent:test", "pull": "never"}, words=("absent:test",), kind=NotFound),
}


@pytest.mark.parametrize("init", [False, True], ids=["", "init"])
@pytest.mark.parametrize("name", sorted(FAULTS))
def test_a_failing_step_says_what_and_why(stocked: Engine, name: str, init: bool) -> None:
    fault = FAULTS[name]
    options = dict(fault.options)
    image = str(options.pop("image", "busybox:test"))
    with pytest.raises(fault.kind) as caught:
        stocked.run(image, list(fault.command), init=init, timeout=20, **options)  # type: ignore[arg-type]
    for word in fault.words:
        assert word in str(caught.value)
    if fault.number:
        assert isinstance(caught.value, StartError)
        assert caught.value.errno == fault.number
        assert caught.value.step
        assert os.strerror(fault.number) in str(caught.value)
    assert stocked.run("busybox:test", ["echo", "fine"]).stdout == b"fine\n"


@pytest.mark.parametrize("text", ["{", "[]", '{"defaultAction": "SCMP_ACT_FLY"}', '{"syscalls": 3}'])
def test_broken_profiles(stocked: Engine, tmp_path: Path, text: str) -> None:
    path = tmp_path / "profile.json"
    path.write_text(text)
    with pytest.raises((Error, ValueError)) as caught:
        stocked.run("busybox:test", ["true"], seccomp=str(path))
    assert "profile" in str(caught.value) or "syscalls" in str(caught.value) or "action" in str(caught.value)


def test_a_profile_that_forbids_the_start(stocked: Engine, tmp_path: Path) -> None:
    """The filter is in force when the program is to be executed, and the kernel then says no."""
    path = tmp_path / "profile.json"
    rule = {"names": ["execve", "execveat"], "action": "SCMP_ACT_ERRNO", "errnoRet": errno.ENOSYS}
    path.write_text(json.dumps({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [rule]}))
    with pytest.raises(StartError) as caught:
        stocked.run("busybox:test", ["true"], seccomp=str(path))
    assert caught.value.errno == errno.ENOSYS


def test_a_profile_that_kills_the_start(stocked: Engine, tmp_path: Path) -> None:
    path = tmp_path / "profile.json"
    rule = {"names": ["execve", "execveat"], "action": "SCMP_ACT_KILL_PROCESS"}
    path.write_text(json.dumps({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [rule]}))
    try:
        result = stocked.run("busybox:test", ["true"], seccomp=str(path))
    except StartError:
        return
    assert result.signal == 31


def test_a_foreign_program(stocked: Engine, tmp_path: Path) -> None:
    for number, data in enumerate((b"\x7fELF\x02\x01\x01" + bytes(60), b"no program", b"#!/absent/interpreter\n", b"")):
        path = tmp_path / f"p{number}"
        path.write_bytes(data)
        path.chmod(0o755)
        with pytest.raises(CommandNotFound) as caught:
            stocked.run("busybox:test", ["/p"], mounts=[Mount.bind(str(path), "/p")])
        assert caught.value.errno == (errno.ENOENT if b"#!" in data else errno.ENOEXEC)
        assert "/p" in str(caught.value)


# ── the host runs short ──


@pytest.fixture
def small(tmp_path: Path, busybox_rootfs: Path) -> Iterator[Path]:
    """Give an engine root with busybox on a file system of its own of 16 MB."""
    mount = tmp_path / "small"
    mount.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16m", "tmpfs", str(mount)], check=True)
    try:
        with Engine(mount / "engine") as engine:
            engine.images.import_rootfs(busybox_rootfs, reference="busybox:test")
            engine.run("busybox:test", ["true"])
        yield mount
    finally:
        subprocess.run(["umount", str(mount)], check=True)


def fill(directory: Path) -> None:
    with (directory / "filler").open("wb", buffering=0) as file:
        for size in (1 << 16, 1 << 12):
            try:
                while True:
                    file.write(bytes(size))
            except OSError:
                continue  # full, for pieces of this size


def test_full_file_system(small: Path) -> None:
    fill(small)
    try:
        with Engine(small / "engine") as engine, pytest.raises(Error) as caught:
            engine.run("busybox:test", ["true"])
        assert "No space left" in str(caught.value) or "full" in str(caught.value)
    except (StoreError, StartError) as error:
        assert "space" in str(error) or "full" in str(error)  # noqa: PT017 - it may fail at the open already
    (small / "filler").unlink()
    with Engine(small / "engine") as engine:
        assert engine.run("busybox:test", ["true"]).ok
    assert list((small / "engine/runs").glob("*/*/upper")) == []


def test_full_file_system_while_it_runs(small: Path) -> None:
    with Engine(small / "engine") as engine:
        result = engine.run("busybox:test", ["sh", "-c", "head -c 100000000 /dev/zero >/f; echo $?; ls -d /f"])
        assert result.stdout.splitlines()[-1] == b"/f"
        assert engine.run("busybox:test", ["true"]).ok


def test_engine_root_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="file"):
        Engine(tmp_path / "file")
    with pytest.raises(StoreError):
        Engine("/proc/none")


def in_group(controller: str, file: str, value: str, code: str) -> subprocess.CompletedProcess[str]:
    """Run a program in a v1 control group of the test's own with a limit."""
    group = Path(f"/sys/fs/cgroup/{controller}/caller-{os.getpid()}")
    if not group.parent.exists():
        pytest.skip(f"there is no cgroup v1 {controller} controller here")
    group.mkdir()
    try:
        (group / file).write_text(value)

        def join() -> None:
            (group / "cgroup.procs").write_text("0")

        return subprocess.run(
            [sys.executable, "-c", code],
            preexec_fn=join,  # it has to be before the exec
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )
    finally:
        deadline: Callable[[], bool] = lambda: not (group / "cgroup.procs").read_text().split()  # noqa: E731
        for _ in range(500):
            if deadline():
                break
            subprocess.run(["sleep", "0.01"], check=True)
        group.rmdir()


def test_callers_own_limit_on_processes(stocked_root: Path) -> None:
    code = f"""
from pycontainer import Engine, StartError
with Engine({str(stocked_root)!r}) as engine:
    for n in range(3):
        try:
            print(engine.run("busybox:test", ["true"]).ok)
        except StartError as error:
            print(error)
"""
    done = in_group("pids", "pids.max", "2", code)
    assert done.returncode == 0, done.stderr
    for line in done.stdout.splitlines():
        assert line == "True" or "processes" in line or "Resource temporarily unavailable" in line


def test_memory_limit_at_the_edge(stocked: Engine) -> None:
    """As little as the engine accepts either suffices or ends in a clear word, never in a hang."""
    try:
        result = stocked.run("busybox:test", ["true"], limits=Limits(memory="512k", memory_swap="512k"), timeout=20)
    except StartError as error:
        assert "memory" in str(error)  # noqa: PT017
    else:
        assert result.ok or result.oom_killed


def test_group_removed_meanwhile(stocked: Engine) -> None:
    """Somebody removes a group of the container before its end: counts are missing, nothing else."""

    def started(running: object) -> None:
        container = running.container_id  # type: ignore[attr-defined]
        for group in Path("/sys/fs/cgroup").glob(f"*/pycontainer/{container}"):
            for _ in range(100):  # it may fork while we look
                for pid in (group / "cgroup.procs").read_text().split():
                    with contextlib.suppress(ProcessLookupError):
                        (group.parent.parent / "cgroup.procs").write_text(pid)
                with contextlib.suppress(OSError):
                    group.rmdir()
                    break
                time.sleep(0.01)

    result = stocked.run("busybox:test", ["sh", "-c", "sleep 0.1; echo on"], on_start=started, timeout=20)
    assert (result.exit_code, result.stdout) == (0, b"on\n")
    assert result.usage.wall_seconds > 0
