"""What a container could leave behind on this host, as sets that can be compared before and after a test.

Processes, mounts, cgroup directories, network links, descriptors of this process, and run directories of engine roots.
"""

from __future__ import annotations

import gc
import os
import time
from pathlib import Path

import attrs

__all__ = ["Snapshot", "lasting"]

CGROUPS = Path("/sys/fs/cgroup")
# Where other programs of a shared host mount things of their own; a mount there is ours when it names us.
COMMON_GROUND = ("/tmp/", "/var/tmp/", "/dev/shm/", "/run/", "/mnt/", "/media/", "/home/", "/root/", "/srv/")


@attrs.frozen
class Snapshot:
    """What exists now.

    Attributes:
        processes: descendants of this process and whatever is in a cgroup of ours, by pid, start time and name.
        mounts: lines of proc_pid_mountinfo(5).
        cgroups: directories of ours in any hierarchy.
        links: network interfaces of this network namespace.
        descriptors: open descriptors of this process and what they are.
        run_directories: of containers, below the engine roots asked for.
    """

    processes: frozenset[str]
    mounts: frozenset[str]
    cgroups: frozenset[str]
    links: frozenset[str]
    descriptors: frozenset[str]
    run_directories: frozenset[str]

    @classmethod
    def take(cls, base: Path) -> Snapshot:
        """Look at everything.

        Args:
            base: the directory of all tests' directories; engine roots are at most two levels below it.
        """
        cgroups = _cgroup_directories()
        run_directories = [path for pattern in ("*/runs/*/*", "*/*/runs/*/*") for path in base.glob(pattern)]
        ours = {path.name for path in run_directories}
        return cls(
            processes=_processes(cgroups),
            mounts=_mounts(str(base)),
            # The parent of all stays, as docker's does; the first test on a host makes it.
            cgroups=frozenset(
                str(path)
                for path in cgroups
                if path.name != "pycontainer" and (path.name in ours or not _is_anothers(path))
            ),
            links=frozenset(path.name for path in Path("/sys/class/net").iterdir()),
            descriptors=_descriptors(),
            run_directories=frozenset(map(str, run_directories)),
        )

    def since(self, before: Snapshot) -> dict[str, frozenset[str]]:
        """Return what is here and was not before, by kind, without empty kinds."""
        new = {name: getattr(self, name) - getattr(before, name) for name in attrs.fields_dict(Snapshot)}
        return {name: values for name, values in new.items() if values}


def lasting(before: Snapshot, base: Path, *, patience: float = 10.0) -> dict[str, frozenset[str]]:
    """Return what appeared since ``before`` and is still there after a while: tearing down goes on off the path.

    Only what was there at the first look can be a leak: what comes later is another program's.

    Args:
        before: what there was.
        base: the directory of all tests' directories.
        patience: seconds until what is still there counts as left behind.
    """
    suspects = Snapshot.take(base).since(before)
    if suspects:
        gc.collect()  # what is only waiting to be collected is no leak; asking each time would cost more than the test
    deadline = time.monotonic() + patience
    while suspects and time.monotonic() < deadline:
        time.sleep(0.02)
        now = Snapshot.take(base)
        still = {name: values & getattr(now, name) for name, values in suspects.items()}
        suspects = {name: values for name, values in still.items() if values}
    return suspects


def _cgroup_directories() -> list[Path]:
    """Return every directory at or below one called ``pycontainer``, in every hierarchy."""
    found = []
    for top, names, _ in os.walk(CGROUPS, onerror=None):
        if "pycontainer" in Path(top).relative_to(CGROUPS).parts:
            found.append(Path(top))
        names.sort()
    return found


def _is_anothers(path: Path) -> bool:
    """Tell whether a group is what another program on this host has as long as it runs: rules for devices alone."""
    return path.parent.parent.name == "devices" and not (CGROUPS / "memory/pycontainer" / path.name).exists()


def _processes(cgroups: list[Path]) -> frozenset[str]:
    parents: dict[int, int] = {}
    labels: dict[int, str] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                head, _, tail = (entry / "stat").read_text(errors="replace").rpartition(")")
            except OSError:
                continue  # it ended while we looked
            fields = tail.split()
            parents[int(entry.name)] = int(fields[1])
            labels[int(entry.name)] = f"{head}) {fields[0]} started at {fields[19]}"
    ours = {pid for pid in parents if _descends(pid, os.getpid(), parents)}
    for directory in cgroups:
        try:
            ours.update(int(line) for line in (directory / "cgroup.procs").read_text().split())
        except OSError:
            continue  # removed while we looked, or a v1 mount without tasks
    # The state (R, S, Z) is left out of the identity: it changes.
    return frozenset(_without_state(labels[pid]) for pid in ours if pid in labels and pid != os.getpid())


def _without_state(label: str) -> str:
    name, _, started = label.rpartition(" started at ")
    return f"{name[:-2]} started at {started}"


def _descends(pid: int, ancestor: int, parents: dict[int, int]) -> bool:
    while pid in parents and pid != 0:
        pid = parents[pid]
        if pid == ancestor:
            return True
    return False


def _mounts(base: str) -> frozenset[str]:
    found = set()
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        target = line.split()[4] + "/"
        if not target.startswith(COMMON_GROUND) or base in line or "pycontainer" in line:
            # the ids of mount, parent and device differ between looks at the same thing only if it was made anew
            found.add(line)
    return frozenset(found)


def _descriptors() -> frozenset[str]:
    found = set()
    sealed_copies = 0
    for path in Path("/proc/self/fd").iterdir():
        try:
            target = str(path.readlink())
        except OSError:
            continue  # the descriptor of this very listing
        # Device filters of cgroup v2 are loaded once for each set of rules and closed with their engine.
        if target == "anon_inode:bpf-prog":
            continue
        # The copy of the static helper is made at the first run and kept for all engines: one is no leak.
        if target.startswith("/pycontainer-monitor"):
            sealed_copies += 1
            if sealed_copies == 1:
                continue
        found.add(f"{path.name} -> {target}")
    return frozenset(found)
