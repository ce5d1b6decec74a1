"""Stop all processes of a control group for a while: cgroup.freeze of version 2, the freezer of version 1.

Of version 1, containers are in no freezer group as they run: the group is made when it is needed, already frozen, and
the processes are moved into it until no new ones turn up: whoever is in cannot fork.
"""

from __future__ import annotations

import contextlib
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING

from pycontainer.errors import StartError, Unsupported
from pycontainer.runtime.cgroups import PARENT

if TYPE_CHECKING:
    from collections.abc import Callable

    from pycontainer.runtime.cgroups import Cgroups

__all__ = ["freeze", "thaw"]

_PATIENCE = 10.0  # seconds
_POLL = 0.001


def freeze(cgroups: Cgroups, group: str) -> None:
    """Stop every process of a container; all of them stand still when this returns.

    Args:
        cgroups: of the engine.
        group: of the container, relative to the parent group.

    Raises:
        Unsupported: this host cannot.
        StartError: they do not stop within ten seconds; they go on.
    """
    try:
        if cgroups.version == "v2":
            path = _own_group(cgroups, group)
            (path / "cgroup.freeze").write_text("1")
            _wait(path, lambda: "frozen 1" in (path / "cgroup.events").read_text())
        else:
            _gather(_own_group(cgroups, group), _freezer_group(group))
    except BaseException:
        thaw(cgroups, group)
        raise


def thaw(cgroups: Cgroups, group: str) -> None:
    """Let them go on; nothing happens when they were not stopped or are gone."""
    if cgroups.version == "v2":
        with contextlib.suppress(FileNotFoundError):
            (_own_group(cgroups, group) / "cgroup.freeze").write_text("0")
        return
    path = _freezer_group(group)
    if not path.is_dir():
        return
    (path / "freezer.state").write_text("THAWED")
    top = path.parents[1]
    deadline = time.monotonic() + _PATIENCE
    while pids := _pids(path):
        for pid in pids:
            _move(top, pid)
        if time.monotonic() > deadline:
            break
    path.rmdir()
    with contextlib.suppress(OSError):  # others may have theirs in it
        path.parent.rmdir()


def _own_group(cgroups: Cgroups, group: str) -> Path:
    for hierarchy in cgroups.hierarchies:
        path = Path(hierarchy.path, PARENT, group)
        if (path / "cgroup.procs").exists():
            return path
    if cgroups.version == "none":
        msg = "this host has no control groups to pause a container with; commit it without pausing"
        raise Unsupported(msg)
    return Path(cgroups.hierarchies[0].path, PARENT, group)


def _freezer_group(group: str) -> Path:
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        left, _, right = line.partition(" - ")
        kind, _, options = right.split(" ", 2)
        if kind == "cgroup" and "freezer" in options.split(" ")[-1].split(","):
            return Path(left.split()[4], PARENT, group.rpartition("/")[2])
    msg = (
        "this host cannot pause a container: the freezer of control groups is not mounted "
        "(mount -t cgroup -o freezer cgroup /sys/fs/cgroup/freezer); commit it without pausing"
    )
    raise Unsupported(msg)


def _gather(group: Path, freezer: Path) -> None:
    freezer.mkdir(parents=True, exist_ok=True)
    (freezer / "freezer.state").write_text("FROZEN")
    deadline = time.monotonic() + _PATIENCE
    while missing := _pids(group) - _pids(freezer):
        for pid in missing:
            _move(freezer, pid)
        if time.monotonic() > deadline:
            raise StartError("pause the container", str(freezer), 0, "it makes processes faster than they are stopped")
    _wait(freezer, lambda: (freezer / "freezer.state").read_text().strip() == "FROZEN")


def _wait(path: Path, is_done: Callable[[], bool]) -> None:
    deadline = time.monotonic() + _PATIENCE
    while not is_done():
        if time.monotonic() > deadline:
            raise StartError("pause the container", str(path), 0, "a process of it waits for a device that hangs")
        time.sleep(_POLL)


def _pids(group: Path) -> set[str]:
    try:
        return set((group / "cgroup.procs").read_text().split())
    except FileNotFoundError:
        return set()


def _move(group: Path, pid: str) -> None:
    fd = os.open(group / "cgroup.procs", os.O_WRONLY | os.O_CLOEXEC)
    try:
        with contextlib.suppress(ProcessLookupError):  # it has ended
            os.write(fd, pid.encode())
    finally:
        os.close(fd)
