"""The ``linux`` section of the OCI runtime specification's config.json, one class per object (its config-linux.md).

Part of :mod:`pycontainer.oci.runtime`, which re-exports all of it; what few containers have is in
:mod:`pycontainer.oci.runtime_rare`. Attribute names are the specification's in
snake_case; sizes are bytes; ``None``, ``()`` and an empty mapping are absent.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Literal, TypeAlias

import attrs

from pycontainer.oci.documents import Bounds, Document, Int64, Matches, UInt32, UInt64, named

if TYPE_CHECKING:
    from pycontainer.oci.runtime_rare import (
        BlockIo,
        HugepageLimit,
        IdMapping,
        IntelRdt,
        MemoryPolicy,
        NetDevice,
        Network,
        Personality,
        Rdma,
        Seccomp,
        TimeOffsets,
    )

__all__ = [
    "Cpu",
    "DeviceRule",
    "Linux",
    "LinuxDevice",
    "Memory",
    "Namespace",
    "NamespaceType",
    "Pids",
    "Propagation",
    "Resources",
]

NamespaceType: TypeAlias = Literal["mount", "pid", "network", "uts", "ipc", "user", "cgroup", "time"]
Propagation: TypeAlias = Literal[
    "private", "shared", "slave", "unbindable", "rprivate", "rshared", "rslave", "runbindable"
]


# ── namespaces, devices ───────────────────────────────────────────────────────────────────────────────────────────────


@attrs.frozen(kw_only=True, eq=False, repr=False)
class Namespace(Document):
    """A namespace of the container (config-linux.md, "Namespaces"; namespaces(7)).

    Attributes:
        type: which kind.
        path: absolute path of one to join; ``None`` makes a new one.
    """

    type: NamespaceType
    path: str | None = None


@attrs.frozen(kw_only=True, eq=False, repr=False)
class LinuxDevice(Document):
    """A device node to make in the container (config-linux.md, "Devices"; mknod(2)).

    Attributes:
        type: ``c`` or ``u`` character device, ``b`` block device, ``p`` FIFO.
        path: absolute path in the container.
        major: major number; not for a FIFO.
        minor: minor number; not for a FIFO.
        file_mode: permission bits; ``None`` leaves them to the runtime (0666). :func:`parse` drops a file type.
        uid: owner in the container.
        gid: group in the container.
    """

    type: Literal["c", "b", "u", "p"]
    path: str
    major: Int64 | None = None
    minor: Int64 | None = None
    file_mode: Annotated[int, Bounds(0, 0o177777)] | None = None
    uid: UInt32 | None = None
    gid: UInt32 | None = None


# ── resources ─────────────────────────────────────────────────────────────────────────────────────────────────────────


@attrs.frozen(kw_only=True, eq=False, repr=False)
class DeviceRule(Document):
    """One rule of the device allow-list; later ones win (config-linux.md, "Allowed Device list").

    Attributes:
        allow: whether it allows or denies.
        type: ``c``, ``b``, or ``a`` for both.
        major: major number; ``None`` is all (a document may say -1).
        minor: minor number; ``None`` is all.
        access: any of ``r`` (read), ``w`` (write), ``m`` (mknod).
    """

    allow: bool
    type: Literal["a", "c", "b"] = "a"
    major: Int64 | None = None
    minor: Int64 | None = None
    access: Annotated[str, Matches(r"[rwm]{1,3}", "any of the letters r, w and m")] = "rwm"


@attrs.frozen(kw_only=True, eq=False, repr=False)
class Memory(Document):
    """Limits of memory, bytes; -1 is none (config-linux.md, "Memory").

    Attributes:
        limit: memory, page cache included.
        reservation: soft limit, applied under pressure.
        swap: memory and swap together.
        kernel: kernel memory; obsolete, cgroup v1 before Linux 5.16 only.
        kernel_tcp: kernel memory of TCP buffers; cgroup v1 only.
        swappiness: 0 to 100, how eagerly to swap; cgroup v1 only.
        disable_oom_killer: let processes at the limit wait instead of killing one; cgroup v1 only.
        use_hierarchy: count children; cgroup v1 only, where it has become the only way.
        check_before_update: refuse a new limit below what is in use.
    """

    limit: Int64 | None = None
    reservation: Int64 | None = None
    swap: Int64 | None = None
    kernel: Int64 | None = None
    kernel_tcp: Int64 | None = attrs.field(default=None, metadata=named("kernelTCP"))
    swappiness: UInt64 | None = None
    disable_oom_killer: bool = attrs.field(default=False, metadata=named("disableOOMKiller"))
    use_hierarchy: bool = False
    check_before_update: bool = False


@attrs.frozen(kw_only=True, eq=False, repr=False)
class Cpu(Document):
    """Limits of processor time, microseconds (config-linux.md, "CPU").

    Attributes:
        shares: relative weight; the kernel's default is 1024.
        quota: time in each period; -1 is no limit.
        burst: unused time that may be kept for a later period.
        period: length of a period.
        realtime_runtime: time in each real-time period; cgroup v1 only.
        realtime_period: length of a real-time period; cgroup v1 only.
        cpus: processors that may be used, e.g. ``"0-2,7"``.
        mems: memory nodes that may be used.
        idle: 1 runs it only when nothing else wants to.
    """

    shares: UInt64 | None = None
    quota: Int64 | None = None
    burst: UInt64 | None = None
    period: UInt64 | None = None
    realtime_runtime: Int64 | None = None
    realtime_period: UInt64 | None = None
    cpus: str | None = None
    mems: str | None = None
    idle: Int64 | None = None


@attrs.frozen(kw_only=True, eq=False, repr=False)
class Pids(Document):
    """The number of processes and threads at one time; 0 and less is no limit (config-linux.md, "PIDs")."""

    limit: Int64


@attrs.frozen(kw_only=True, eq=False, repr=False)
class Resources(Document):
    """What the container's cgroup may use (config-linux.md, "Control groups").

    Attributes:
        devices: the device allow-list; later rules win.
        memory: limits of memory.
        cpu: limits of processor time.
        pids: limit of processes and threads.
        block_io: shares and limits of block devices.
        hugepage_limits: limits per size of huge page.
        network: marks on network traffic.
        rdma: limits by RDMA device.
        unified: cgroup v2 files and what to write there.
    """

    devices: tuple[DeviceRule, ...] = ()
    memory: Memory | None = None
    cpu: Cpu | None = None
    pids: Pids | None = None
    block_io: BlockIo | None = attrs.field(default=None, metadata=named("blockIO"))
    hugepage_limits: tuple[HugepageLimit, ...] = ()
    network: Network | None = None
    rdma: Mapping[str, Rdma] = attrs.field(factory=dict)
    unified: Mapping[str, str] = attrs.field(factory=dict)


# ── the rest ──────────────────────────────────────────────────────────────────────────────────────────────────────────


@attrs.frozen(kw_only=True, eq=False, repr=False)
class Linux(Document):
    """What only Linux has (config-linux.md).

    Attributes:
        namespaces: new or joined ones; kinds not listed are the caller's.
        uid_mappings: user ids of a new user namespace.
        gid_mappings: group ids of a new user namespace.
        time_offsets: clocks of a new time namespace.
        devices: device nodes to make beside the default ones.
        net_devices: interfaces of the host to move in, by name.
        cgroups_path: the cgroup, absolute from its hierarchy's root or relative to where the runtime keeps them.
        resources: what the cgroup may use.
        rootfs_propagation: how mounts travel out of and into the root, mount_namespaces(7).
        seccomp: the system call filter.
        sysctl: kernel parameters of the namespaces, by name.
        masked_paths: absolute paths that are made unreadable.
        readonly_paths: absolute paths that are made read-only.
        mount_label: SELinux context of the mounts.
        intel_rdt: shares of cache and memory bandwidth.
        memory_policy: where the process's memory comes from.
        personality: the execution domain.
    """

    namespaces: tuple[Namespace, ...] = ()
    uid_mappings: tuple[IdMapping, ...] = ()
    gid_mappings: tuple[IdMapping, ...] = ()
    time_offsets: TimeOffsets | None = None
    devices: tuple[LinuxDevice, ...] = ()
    net_devices: Mapping[str, NetDevice] = attrs.field(factory=dict)
    cgroups_path: str | None = None
    resources: Resources | None = None
    rootfs_propagation: Propagation | None = None
    seccomp: Seccomp | None = None
    sysctl: Mapping[str, str] = attrs.field(factory=dict)
    masked_paths: tuple[str, ...] = ()
    readonly_paths: tuple[str, ...] = ()
    mount_label: str | None = None
    intel_rdt: IntelRdt | None = None
    memory_policy: MemoryPolicy | None = None
    personality: Personality | None = None
