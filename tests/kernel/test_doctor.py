"""Probes against the kernel: they tell the truth, and the program that asks does not feel them."""

from __future__ import annotations

import ctypes
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from pycontainer import doctor
from pycontainer.doctor.probes import NAMESPACES

if TYPE_CHECKING:
    from types import FrameType

PR_GET_DUMPABLE = 3
PR_GET_SECCOMP = 21
PR_GET_NO_NEW_PRIVS = 39
REPORT = """
import json, os, sys
from pycontainer import doctor
if len(sys.argv) > 2:
    os.setgroups([])
    os.setresgid(65534, 65534, 65534)
    os.setresuid(65534, 65534, 65534)
print(json.dumps(doctor.check(sys.argv[1]).to_dict()))
"""


def state() -> dict[str, Any]:
    """Return what a probe could have changed in this process."""
    prctl = ctypes.CDLL(None).prctl
    return {
        "namespaces": {name.name: os.stat(name).st_ino for name in Path("/proc/self/ns").iterdir()},  # noqa: PTH116
        "directory": Path.cwd(),
        "mask": signal.pthread_sigmask(signal.SIG_BLOCK, []),
        "ids": (os.getresuid(), os.getresgid(), os.getgroups()),
        "prctl": [prctl(option, 0, 0, 0, 0) for option in (PR_GET_DUMPABLE, PR_GET_SECCOMP, PR_GET_NO_NEW_PRIVS)],
        "mounts": Path("/proc/self/mountinfo").read_text(),
        "limits": Path("/proc/self/limits").read_text(),
        "maps": len(Path("/proc/self/maps").read_text().splitlines()),
    }


def examine(root: Path, *prefix: str, plain_user: bool = False) -> dict[str, dict[str, str]]:
    """Examine this host in a process started through ``prefix``; return the checks by name."""
    arguments = [str(root), *(["plain"] if plain_user else [])]
    command = [*prefix, sys.executable, "-c", REPORT, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["ok"] == all(check["status"] != "missing" for check in report["checks"])
    return {check["name"]: check for check in report["checks"]}


@pytest.mark.parametrize("name", doctor.PROBES)
def test_a_probe_is_not_felt(name: str, tmp_path: Path) -> None:
    seen: list[int] = []

    def note(number: int, _frame: FrameType | None) -> None:
        seen.append(number)

    doctor.probe(name, tmp_path)  # what is loaded on first use is loaded now
    handlers = {number: signal.signal(number, note) for number in (signal.SIGCHLD, signal.SIGPIPE, signal.SIGTRAP)}
    try:
        before = state()
        outcome = doctor.probe(name, tmp_path)
        after = state()
        with pytest.raises(ChildProcessError):
            os.waitpid(-1, os.WNOHANG | 0x40000000)  # __WALL: clone children too
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
    del before["maps"], after["maps"]
    assert after == before
    assert seen == []
    assert list(tmp_path.iterdir()) == []
    assert outcome.available == (outcome.why == "") == (outcome.errno == 0)


def test_probes_do_not_grow_the_program(tmp_path: Path) -> None:
    def ask_all() -> int:
        for name in doctor.PROBES:
            doctor.probe(name, tmp_path)
        return int(state()["maps"])

    ask_all()
    assert ask_all() <= ask_all() + 2


def test_threads_may_ask_at_once(tmp_path: Path) -> None:
    expected = {name: doctor.probe(name, tmp_path) for name in doctor.PROBES}
    alone = threading.active_count()

    def ask(number: int) -> list[str]:
        names = doctor.PROBES[number:] + doctor.PROBES[:number]
        return [name for name in names if doctor.probe(name, tmp_path).available != expected[name].available]

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(ask, range(0, 24, 3))) == [[]] * 8
    assert threading.active_count() == alone


@pytest.mark.parametrize("name", NAMESPACES)
def test_namespaces_are_what_unshare_makes(name: str) -> None:
    flag = {"mount": "--mount", "time": "--time"}.get(name, f"--{name}")
    done = subprocess.run(["unshare", flag, "true"], capture_output=True, check=False)
    assert doctor.probe(f"namespace-{name}").available == (done.returncode == 0)


@pytest.mark.parametrize("option", ["volatile", "metacopy=on", "userxattr"])
def test_overlay_options_are_what_mount_takes(option: str, tmp_path: Path) -> None:
    for directory in ("l", "u", "w", "m"):
        (tmp_path / directory).mkdir()
    command = f"mount -t overlay -o lowerdir=l,upperdir=u,workdir=w,{option} overlay m"
    done = subprocess.run(["unshare", "--mount", "sh", "-c", command], cwd=tmp_path, capture_output=True, check=False)
    assert doctor.probe(f"overlay-{option.partition('=')[0]}", tmp_path).available == (done.returncode == 0)


def test_nftables_is_what_nft_says() -> None:
    if shutil.which("nft") is None:
        pytest.skip("nft is not installed; as root: apt-get install nftables")
    done = subprocess.run(["unshare", "--net", "nft", "list", "tables"], capture_output=True, check=False)
    assert doctor.probe("nftables").available == (done.returncode == 0)


def test_this_host_can_run_containers(tmp_path: Path) -> None:
    """Else hardly any other test here passes; and it must be so for the right reasons."""
    report = doctor.check(tmp_path)
    assert report.ok, [check for check in report.checks if check.status == "missing"]
    controllers = doctor.info(tmp_path).cgroups.controllers
    assert {"memory", "pids", "cpu"} <= set(controllers)


def test_an_examination_is_quick(tmp_path: Path) -> None:
    started = time.perf_counter()
    sum(range(1_000_000))
    if time.perf_counter() - started > 0.1:
        pytest.skip("an emulated or overloaded processor: times mean nothing here")
    times = []
    for _ in range(5):
        started = time.perf_counter()
        doctor.check(tmp_path)
        times.append(time.perf_counter() - started)
    assert min(times) < 0.3


def test_a_plain_user_is_told_so(tmp_path: Path) -> None:
    checks = examine(tmp_path, plain_user=True)
    assert checks["rights"]["status"] == "missing"
    assert "CAP_SYS_ADMIN" in checks["rights"]["found"]
    assert checks["net namespace"]["status"] == "missing"
    assert "Operation not permitted" in checks["net namespace"]["found"]
    assert checks["overlay"]["status"] == "missing"


def test_a_limit_that_is_used_up_is_told(tmp_path: Path) -> None:
    script = 'echo 0 >/proc/sys/user/max_net_namespaces && exec "$@"'
    checks = examine(tmp_path, "unshare", "--user", "--map-root-user", "sh", "-c", script, "sh")
    assert checks["net namespace"]["status"] == "missing"
    assert "No space left" in checks["net namespace"]["found"]
    assert "user.max_" in checks["net namespace"]["remedy"]
    assert checks["uts namespace"]["status"] == "ok"


def test_a_file_system_that_does_not_fit_is_told(tmp_path: Path) -> None:
    script = f'mount -t ramfs ramfs {tmp_path} && exec "$@"'
    checks = examine(tmp_path, "unshare", "--mount", "sh", "-c", script, "sh")
    assert checks["trusted attributes"]["status"] == "missing"
    assert "not supported" in checks["trusted attributes"]["found"]
    assert checks["id-mapped mounts"]["status"] == "warning"
    assert "ramfs" in checks["store"]["found"]


def test_a_read_only_store_is_told(tmp_path: Path) -> None:
    script = f'mount --bind {tmp_path} {tmp_path} && mount -o remount,bind,ro {tmp_path} && exec "$@"'
    checks = examine(tmp_path, "unshare", "--mount", "sh", "-c", script, "sh")
    assert checks["store"]["status"] == "missing"
    assert "read-only" in checks["store"]["found"]
    assert "Read-only file system" in checks["overlay"]["found"]


def test_control_groups_that_cannot_be_written_are_told(tmp_path: Path) -> None:
    path = doctor.info(tmp_path).cgroups.controllers["memory"]
    script = f'mount -o remount,bind,ro {path} && exec "$@"'
    checks = examine(tmp_path, "unshare", "--mount", "sh", "-c", script, "sh")
    memory = checks["cgroup controller memory"]
    assert memory["status"] == "warning"
    assert "Read-only file system" in memory["found"]
    assert "OOM" in memory["costs"]


def test_a_host_without_control_groups_is_told(tmp_path: Path) -> None:
    script = 'umount -R /sys/fs/cgroup && exec "$@"'
    checks = examine(tmp_path, "unshare", "--mount", "sh", "-c", script, "sh")
    assert checks["cgroups"]["status"] == "missing"
    assert "mount -t cgroup2" in checks["cgroups"]["remedy"]


def test_a_missing_right_is_told(tmp_path: Path) -> None:
    if shutil.which("setpriv") is None:
        pytest.skip("setpriv is not installed; as root: apt-get install util-linux")
    checks = examine(tmp_path, "setpriv", "--bounding-set=-mknod,-sys_resource", "--inh-caps=-mknod,-sys_resource")
    assert checks["rights"]["status"] == "warning"
    assert "CAP_MKNOD" in checks["rights"]["found"]
    assert "devices" in checks["rights"]["costs"]
    assert checks["raising limits"]["status"] == "warning"
