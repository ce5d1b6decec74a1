"""The examination of control groups: what can be limited and what is counted."""

from __future__ import annotations

import contextlib
import os
import threading
from pathlib import Path
from typing import TYPE_CHECKING

from pycontainer.doctor.probes import Outcome, probe
from pycontainer.doctor.report import Check
from pycontainer.runtime.cgroups import PARENT

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pycontainer.doctor import facts

__all__ = ["CONTROLLERS", "check_controller", "check_counts", "check_devices", "check_swap", "check_version"]

# controller -> (what is lost, a file of it in version 2, a file of it in version 1 and a value that changes nothing)
CONTROLLERS: dict[str, tuple[str, str, str, str]] = {
    "memory": ("limits and counts of memory, telling an OOM kill", "memory.max", "memory.limit_in_bytes", "-1"),
    "pids": ("limits of the number of processes", "pids.max", "pids.max", "max"),
    "cpu": ("limits and shares of processor time", "cpu.max", "cpu.cfs_quota_us", "-1"),
    "cpuset": ("pinning to processors", "cpuset.cpus", "cpuset.cpus", ""),
    "io": ("limits and counts of block I/O", "io.stat", "blkio.throttle.read_bps_device", ""),
}

# count -> (controller and file in version 2, controller and file in version 1)
_COUNTS = {
    "peak of memory": (("memory", "memory.peak"), ("memory", "memory.max_usage_in_bytes")),
    "peak of processes": (("pids", "pids.peak"), ("pids", "pids.peak")),
    "processor time": (("cpu", "cpu.stat"), ("cpuacct", "cpuacct.usage_user")),
    "block I/O": (("io", "io.stat"), ("blkio", "blkio.throttle.io_service_bytes_recursive")),
}


def check_version(groups: facts.Cgroups) -> Check:
    """Say which version is in use, with which controllers."""
    if groups.version == "none":
        return Check(
            name="cgroups",
            status="missing",
            found="no control groups are mounted",
            costs="no limits and no counts of what containers use",
            remedy="mount -t cgroup2 cgroup2 /sys/fs/cgroup",
        )
    where = ", ".join(sorted(groups.controllers)) or "no controllers"
    return Check(name="cgroups", status="ok", found=f"{groups.version}: {where}")


def check_controller(name: str, groups: facts.Cgroups) -> Check:
    """Make a group and try whether one of `CONTROLLERS` serves it."""
    costs, v2_file, v1_file, neutral = CONTROLLERS[name]
    is_v1 = groups.version in {"v1", "hybrid"}
    mounted = "blkio" if name == "io" and is_v1 else name
    title = f"cgroup controller {mounted}"
    path = groups.controllers.get(mounted)
    if path is None:
        remedy = (
            f"mount -t cgroup -o {mounted} cgroup /sys/fs/cgroup/{mounted}"
            if is_v1
            else f"a kernel with this controller and without cgroup_disable={mounted} on its command line; "
            "inside another container, a delegated group"
        )
        return Check(name=title, status="warning", found="not available", costs=costs, remedy=remedy)
    is_v2 = _is_v2(path)
    outcome = _use_v2(Path(path), mounted, v2_file) if is_v2 else _use_v1(Path(path), v1_file, neutral)
    if outcome:
        return Check(name=title, status="ok", found=f"works at {path}")
    remedy = (
        f"as root of the host: echo +{mounted} > {path}/cgroup.subtree_control"
        if is_v2
        else f"as root of the host: mount -o remount,rw {path}"
    )
    return Check(name=title, status="warning", found=outcome.why, costs=costs, remedy=remedy)


def check_swap(groups: facts.Cgroups) -> Check:
    """Say whether swap can be limited apart from memory."""
    path = groups.controllers.get("memory")
    if path is None:
        return Check(
            name="swap accounting",
            status="warning",
            found="no memory controller",
            costs="limits of swap",
            remedy="see the check of the memory controller",
        )
    if _lacking(path, "memory", ("memory.swap.max" if _is_v2(path) else "memory.memsw.limit_in_bytes",)):
        return Check(
            name="swap accounting",
            status="warning",
            found="the kernel does not count swap by group",
            costs="limits of swap",
            remedy="boot with swapaccount=1",
        )
    return Check(name="swap accounting", status="ok", found=f"works at {path}")


def check_counts(groups: facts.Cgroups) -> Check:
    """Say which of the numbers in `pycontainer.Usage` this host keeps."""
    lost = []
    for count, both in _COUNTS.items():
        controller, file = both[groups.version in {"v1", "hybrid"}]
        path = groups.controllers.get(controller)
        if path is None or _lacking(path, controller, (file,)):
            lost.append(count)
    if not lost:
        return Check(name="counts", status="ok", found=", ".join(_COUNTS))
    return Check(
        name="counts",
        status="warning",
        found=f"not kept here: {', '.join(lost)}",
        costs="these are None in the usage of containers",
        remedy="Linux 5.19 or newer with cgroup version 2 and its controllers keeps all but the peak of processes, "
        "which takes 6.1",
    )


def check_devices(groups: facts.Cgroups) -> Check:
    """Say whether access to devices can be ruled."""
    path = groups.controllers.get("devices")
    if path is not None:
        outcome = _use_v1(Path(path), "devices.deny", "")
        where = f"cgroup version 1 at {path}"
    else:
        outcome = probe("device-program")
        where = "a BPF program of the group"
    if outcome:
        return Check(name="device rules", status="ok", found=where)
    return Check(
        name="device rules",
        status="missing",
        found=outcome.why,
        costs="containers could open any device that they can make",
        remedy="run with CAP_BPF and CAP_NET_ADMIN, with a kernel that has CONFIG_CGROUP_BPF; "
        "with cgroup version 1, mount the devices controller",
    )


def _is_v2(path: str) -> bool:
    return Path(path, "cgroup.controllers").exists()


@contextlib.contextmanager
def _new_group(parent: Path) -> Iterator[Path]:
    group = parent / f"pycontainer-probe-{os.getpid()}-{threading.get_ident()}"
    group.mkdir()
    try:
        yield group
    finally:
        group.rmdir()


def _home(hierarchy: Path) -> Path:
    """Return where the engine makes its groups, or will: there the controllers that it enabled are to be seen."""
    parent = hierarchy / PARENT
    return parent if parent.is_dir() else hierarchy


def _lacking(path: str, controller: str, files: tuple[str, ...]) -> list[str]:
    """Return the files that a new group does not have although its controller is on."""
    try:
        with _new_group(_home(Path(path))) as group:
            listed = group / "cgroup.controllers"
            if listed.exists() and controller not in listed.read_text().split():
                return []  # not enabled yet, so that it cannot be told
            return [file for file in files if not (group / file).exists()]
    except OSError:
        return list(files)  # the check of the controller tells why


def _use_v1(hierarchy: Path, file: str, neutral: str) -> Outcome:
    """Make a group and write a limit that limits nothing."""
    try:
        with _new_group(_home(hierarchy)) as group:
            if neutral:
                (group / file).write_text(neutral)
            else:
                (group / file).stat()
    except OSError as error:
        return _failed(error)
    return Outcome(available=True)


def _use_v2(hierarchy: Path, controller: str, file: str) -> Outcome:
    """Make a group and look for the controller's file, or see that it could be enabled: the engine does so at open."""
    control = hierarchy / "cgroup.subtree_control"
    try:
        with _new_group(_home(hierarchy)) as group:
            if (group / file).exists():
                return Outcome(available=True)
        if controller in control.read_text().split():
            return Outcome(available=True)  # ours is not, and we own it
        is_real_root = not (hierarchy / "cgroup.type").exists()
        if not is_real_root and (hierarchy / "cgroup.procs").read_text():
            why = f"{control} does not enable {controller}, and cannot while processes are in {hierarchy} itself"
            return Outcome(available=False, why=why)
    except OSError as error:
        return _failed(error)
    if not os.access(control, os.W_OK):
        why = f"{control} does not enable {controller}, and cannot be written to"
        return Outcome(available=False, why=why)
    return Outcome(available=True)


def _failed(error: OSError) -> Outcome:
    return Outcome(available=False, why=f"{error.filename}: {error.strerror}", errno=error.errno or 0)
