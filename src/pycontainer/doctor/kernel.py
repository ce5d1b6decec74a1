"""What containers want of the kernel and of the store's file system, and what its lack costs."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

import attrs

from pycontainer.doctor.probes import probe
from pycontainer.doctor.report import Check

if TYPE_CHECKING:
    from pycontainer.doctor.report import Status

__all__ = ["PROBED", "Wanted", "check_wanted"]


@attrs.frozen(kw_only=True)
class Wanted:
    """Something that a probe answers, and what to say when it fails.

    Attributes:
        name: of the check.
        probe: name of the probe.
        good: what to say when it works.
        costs: of its lack.
        remedy: for its lack.
        status: of its lack.
    """

    name: str
    probe: str
    good: str
    costs: str
    remedy: str
    status: Status = "missing"


def _namespace(kind: str, what: str, config: str, status: Status = "missing") -> Wanted:
    return Wanted(
        name=f"{kind} namespace",
        probe=f"namespace-{kind}",
        good="works",
        costs=f"{what} cannot be separate",
        remedy=f"run as root outside of other containers, with a kernel that has {config}",
        status=status,
    )


PROBED: tuple[Wanted, ...] = (
    _namespace("mount", "the view of files", "CONFIG_NAMESPACES"),
    _namespace("pid", "processes", "CONFIG_PID_NS"),
    _namespace("net", "networks", "CONFIG_NET_NS"),
    _namespace("ipc", "shared memory and message queues", "CONFIG_IPC_NS"),
    _namespace("uts", "host names", "CONFIG_UTS_NS"),
    _namespace("cgroup", "the view of control groups", "CONFIG_CGROUPS"),
    _namespace("time", "clocks", "CONFIG_TIME_NS", "warning"),
    Wanted(
        name="time namespace at exec",
        probe="time-at-exec",
        good="a program enters the time namespace made for it",
        costs="containers with clocks of their own",
        remedy="Linux 6.3 or newer",
        status="warning",
    ),
    Wanted(
        name="clone3",
        probe="clone3",
        good="works",
        costs="containers cannot be started",
        remedy="Linux 5.5 or newer; inside another container, a seccomp profile that allows clone3",
    ),
    Wanted(
        name="pidfd",
        probe="pidfd",
        good="works",
        costs="processes cannot be tracked safely",
        remedy="Linux 5.4 or newer; inside another container, a seccomp profile that allows pidfd_open",
    ),
    Wanted(
        name="openat2",
        probe="openat2",
        good="works",
        costs="paths of images cannot be followed safely",
        remedy="Linux 5.6 or newer; inside another container, a seccomp profile that allows openat2",
    ),
    Wanted(
        name="mount_setattr",
        probe="mount-setattr",
        good="works",
        costs="read-only and id-mapped mounts",
        remedy="Linux 5.12 or newer",
    ),
    Wanted(
        name="mount of proc",
        probe="mount-proc",
        good="works",
        costs="containers have no /proc",
        remedy="run as root; inside another container, one that does not mask its own /proc",
    ),
    Wanted(
        name="mount of devpts",
        probe="mount-devpts",
        good="works",
        costs="containers have no terminals",
        remedy="a kernel with CONFIG_UNIX98_PTYS",
    ),
    Wanted(
        name="mount of mqueue",
        probe="mount-mqueue",
        good="works",
        costs="containers have no POSIX message queues",
        remedy="a kernel with CONFIG_POSIX_MQUEUE",
    ),
    Wanted(
        name="mount of sysfs",
        probe="mount-sysfs",
        good="works",
        costs="containers have no /sys",
        remedy="a kernel with CONFIG_SYSFS; inside another container, a net namespace of its own",
    ),
    Wanted(
        name="overlay",
        probe="overlay",
        good="works on the file system of the store",
        costs="containers have no root file system",
        remedy="modprobe overlay; move the store to ext4, xfs (ftype=1), btrfs or tmpfs with --root",
    ),
    Wanted(
        name="overlay: lowerdir+",
        probe="overlay-lowerdir+",
        good="works",
        costs="images of very many layers start more slowly or not at all",
        remedy="Linux 6.8 or newer",
        status="warning",
    ),
    Wanted(
        name="overlay: volatile",
        probe="overlay-volatile",
        good="works",
        costs="throw-away containers write to the disk when they end",
        remedy="Linux 5.10 or newer",
        status="warning",
    ),
    Wanted(
        name="indexed layers",
        probe="erofs-file",
        good="erofs mounts from files of the store's file system",
        costs="layers are unpacked file by file: pulls and loads are slower; loop devices may do instead",
        remedy="Linux 6.12 or newer, modprobe erofs; move the store from tmpfs to ext4, xfs or btrfs with --root",
        status="warning",
    ),
    Wanted(
        name="types of directory entries",
        probe="entry-types",
        good="the store's file system tells them",
        costs="files removed in a layer come back",
        remedy="move the store with --root; xfs has to be made with mkfs.xfs -n ftype=1",
    ),
    Wanted(
        name="trusted attributes",
        probe="trusted-xattr",
        good="the store's file system keeps them",
        costs="directories replaced in a layer show what they replaced",
        remedy="run with CAP_SYS_ADMIN; move the store to ext4, xfs, btrfs or tmpfs with --root",
    ),
    Wanted(
        name="id-mapped mounts",
        probe="idmapped-mount",
        good="work on the store's file system",
        costs="user namespaces need a copy of each layer with other owners",
        remedy="Linux 5.12 or newer for ext4, 5.19 for overlay, 6.3 for tmpfs",
        status="warning",
    ),
    Wanted(
        name="overlay on id-mapped layers",
        probe="overlay-idmapped-lower",
        good="works",
        costs="user namespaces need a copy of each layer with other owners",
        remedy="Linux 5.19 or newer",
        status="warning",
    ),
    Wanted(
        name="seccomp filters",
        probe="seccomp",
        good="work",
        costs="dangerous system calls cannot be refused",
        remedy="a kernel with CONFIG_SECCOMP_FILTER",
    ),
    Wanted(
        name="raising limits",
        probe="raise-limit",
        good="works",
        costs="rlimits above those of the caller, and an oom_score_adj below the caller's",
        remedy="run with CAP_SYS_RESOURCE (systemd: CapabilityBoundingSet; docker: --cap-add SYS_RESOURCE)",
        status="warning",
    ),
    Wanted(
        name="nftables",
        probe="nftables",
        good="the kernel answers",
        costs="networks of containers, published ports",
        remedy="modprobe nf_tables; a kernel with CONFIG_NF_TABLES",
        status="warning",
    ),
)


def check_wanted(wanted: Wanted, root: str) -> Check:
    """Try it on a store in ``root`` and say what came of it."""
    outcome = probe(wanted.probe, root)
    if outcome:
        return Check(name=wanted.name, status="ok", found=wanted.good)
    remedy = wanted.remedy
    if wanted.probe.startswith("namespace-") and outcome.errno == errno.ENOSPC:
        remedy = "raise user.max_*_namespaces: sysctl -a | grep 'user.max.*namespaces'"
    return Check(name=wanted.name, status=wanted.status, found=outcome.why, costs=wanted.costs, remedy=remedy)
