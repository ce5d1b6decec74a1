"""The ``linux`` section of the OCI runtime specification's config.json, one class per object (its config-linux.md).

Part of :mod:`pycontainer.oci.runtime`, which re-exports all of it. Attribute names are the specification's in
snake_case; sizes are bytes; ``None``, ``()`` and an empty mapping are absent.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal, TypeAlias

import attrs

from pycontainer.oci.documents import Bounds, Document, Int64, Matches, UInt16, UInt32, UInt64, named

__all__ = [
    "BlockIo",
    "BlockIoThrottle",
    "BlockIoWeight",
    "Cpu",
    "CpuList",
    "DeviceRule",
    "HugepageLimit",
    "IdMapping",
    "IntelRdt",
    "InterfacePriority",
    "Linux",
    "LinuxDevice",
    "Memory",
    "MemoryPolicy",
    "Namespace",
    "NamespaceType",
    "NetDevice",
    "Network",
    "Personality",
    "Pids",
    "Propagation",
    "Rdma",
    "Resources",
    "Seccomp",
    "SeccompAction",
    "SeccompArch",
    "SeccompFlag",
    "SeccompOperator",
    "SyscallArg",
    "SyscallRule",
    "TimeOffset",
    "TimeOffsets",
]

NamespaceType: TypeAlias = Literal["mount", "pid", "network", "uts", "ipc", "user", "cgroup", "time"]
Propagation: TypeAlias = Literal[
    "private", "shared", "slave", "unbindable", "rprivate", "rshared", "rslave", "runbindable"
]
CpuList: TypeAlias = Annotated[str, Matches(r"[0-9, -]*", "a list of numbers and ranges such as '0-3,7'")]

SeccompAction: TypeAlias = Literal[
    "SCMP_ACT_KILL",
    "SCMP_ACT_KILL_PROCESS",
    "SCMP_ACT_KILL_THREAD",
    "SCMP_ACT_TRAP",
    "SCMP_ACT_ERRNO",
    "SCMP_ACT_TRACE",
    "SCMP_ACT_ALLOW",
    "SCMP_ACT_LOG",
    "SCMP_ACT_NOTIFY",
]
SeccompOperator: TypeAlias = Literal[
    "SCMP_CMP_NE",
    "SCMP_CMP_LT",
    "SCMP_CMP_LE",
    "SCMP_CMP_EQ",
    "SCMP_CMP_GE",
    "SCMP_CMP_GT",
    "SCMP_CMP_MASKED_EQ",
]
SeccompFlag: TypeAlias = Literal[
    "SECCOMP_FILTER_FLAG_TSYNC",
    "SECCOMP_FILTER_FLAG_LOG",
    "SECCOMP_FILTER_FLAG_SPEC_ALLOW",
    "SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV",
]
SeccompArch: TypeAlias = Literal[
    "SCMP_ARCH_X86",
    "SCMP_ARCH_X86_64",
    "SCMP_ARCH_X32",
    "SCMP_ARCH_ARM",
    "SCMP_ARCH_AARCH64",
    "SCMP_ARCH_LOONGARCH64",
    "SCMP_ARCH_M68K",
    "SCMP_ARCH_MIPS",
    "SCMP_ARCH_MIPS64",
    "SCMP_ARCH_MIPS64N32",
    "SCMP_ARCH_MIPSEL",
    "SCMP_ARCH_MIPSEL64",
    "SCMP_ARCH_MIPSEL64N32",
    "SCMP_ARCH_PPC",
    "SCMP_ARCH_PPC64",
    "SCMP_ARCH_PPC64LE",
    "SCMP_ARCH_S390",
    "SCMP_ARCH_S390X",
    "SCMP_ARCH_SH",
    "SCMP_ARCH_SHEB",
    "SCMP_ARCH_PARISC",
    "SCMP_ARCH_PARISC64",
    "SCMP_ARCH_RISCV64",
]


# ── namespaces, ids, devices ──────────────────────────────────────────────────────────────────────────────────────────


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
class IdMapping(Document):
    """A range of ids of a user namespace (config-linux.md, "User namespace mappings"; user_namespaces(7)).

    Attributes:
        container_id: first id in the container.
        host_id: first id on the host.
        size: how many ids.
    """

    container_id: UInt32 = attrs.field(metadata=named("containerID"))
    host_id: UInt32 = attrs.field(metadata=named("hostID"))
    size: UInt32


@attrs.frozen(kw_only=True, eq=False, repr=False)
class TimeOffset(Document):
    """How far a clock of a new time namespace is ahead, in seconds and nanoseconds (time_namespaces(7))."""

    secs: Int64 = 0
    nanosecs: UInt32 = 0


@attrs.frozen(kw_only=True, eq=False, repr=False)
class TimeOffsets(Document):
    """The clocks of a new time namespace (config-linux.md, "Offset for Time Namespace")."""

    boottime: TimeOffset | None = None
    monotonic: TimeOffset | None = None


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


@attrs.frozen(kw_only=True, eq=False, repr=False)
class NetDevice(Document):
    """A network interface of the host that moves into the container (config-linux.md, "Network Devices").

    Attributes:
        name: its name there; ``None`` keeps the name.
    """

    name: str | None = None


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
class BlockIoWeight(Document):
    """Relative weights for one block device, 10 to 1000 (config-linux.md, "Block IO")."""

    major: Int64
    minor: Int64
    weight: UInt16 | None = None
    leaf_weight: UInt16 | None = None


@attrs.frozen(kw_only=True, eq=False, repr=False)
class BlockIoThrottle(Document):
    """A limit for one block device, bytes or operations per second (config-linux.md, "Block IO")."""

    major: Int64
    minor: Int64
    rate: UInt64


@attrs.frozen(kw_only=True, eq=False, repr=False)
class BlockIo(Document):
    """Shares and limits of block devices (config-linux.md, "Block IO").

    Attributes:
        weight: relative weight, 10 to 1000.
        leaf_weight: the same against child cgroups; cgroup v1 only.
        weight_device: weights per device.
        throttle_read_bps_device: bytes read per second.
        throttle_write_bps_device: bytes written per second.
        throttle_read_iops_device: reads per second.
        throttle_write_iops_device: writes per second.
    """

    weight: UInt16 | None = None
    leaf_weight: UInt16 | None = None
    weight_device: tuple[BlockIoWeight, ...] = ()
    throttle_read_bps_device: tuple[BlockIoThrottle, ...] = ()
    throttle_write_bps_device: tuple[BlockIoThrottle, ...] = ()
    throttle_read_iops_device: tuple[BlockIoThrottle, ...] = attrs.field(
        default=(), metadata=named("throttleReadIOPSDevice")
    )
    throttle_write_iops_device: tuple[BlockIoThrottle, ...] = attrs.field(
        default=(), metadata=named("throttleWriteIOPSDevice")
    )


@attrs.frozen(kw_only=True, eq=False, repr=False)
class HugepageLimit(Document):
    """A limit of huge pages of one size, e.g. ``"2MB"``, in bytes (config-linux.md, "Huge page limits")."""

    page_size: Annotated[str, Matches(r"[1-9][0-9]*[KMG]B", "a page size such as '2MB'")]
    limit: UInt64


@attrs.frozen(kw_only=True, eq=False, repr=False)
class InterfacePriority(Document):
    """The priority of traffic leaving by one interface; cgroup v1 only (config-linux.md, "Network")."""

    name: str
    priority: UInt32


@attrs.frozen(kw_only=True, eq=False, repr=False)
class Network(Document):
    """Marks on network traffic; cgroup v1 only (config-linux.md, "Network").

    Attributes:
        class_id: what ``tc`` classifies by.
        priorities: priority per interface.
    """

    class_id: UInt32 | None = attrs.field(default=None, metadata=named("classID"))
    priorities: tuple[InterfacePriority, ...] = ()


@attrs.frozen(kw_only=True, eq=False, repr=False)
class Rdma(Document):
    """Limits of one RDMA device (config-linux.md, "RDMA")."""

    hca_handles: UInt32 | None = None
    hca_objects: UInt32 | None = None


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


# ── seccomp ───────────────────────────────────────────────────────────────────────────────────────────────────────────


@attrs.frozen(kw_only=True, eq=False, repr=False)
class SyscallArg(Document):
    """A condition on one argument of a system call (config-linux.md, "Seccomp").

    Attributes:
        index: which argument, 0 to 5.
        value: what it is compared with; the mask for ``SCMP_CMP_MASKED_EQ``.
        value_two: what the masked argument is compared with.
        op: the comparison.
    """

    index: Annotated[int, Bounds(0, 5)]
    value: UInt64
    value_two: UInt64 = 0
    op: SeccompOperator


@attrs.frozen(kw_only=True, eq=False, repr=False)
class SyscallRule(Document):
    """What happens on some system calls (config-linux.md, "Seccomp").

    Attributes:
        names: of the calls; one that does not exist on this architecture is passed over.
        action: what happens.
        errno_ret: the error number, for ``SCMP_ACT_ERRNO`` and ``SCMP_ACT_TRACE`` only; ``None`` is EPERM.
        args: conditions, all of which must hold.
    """

    names: tuple[str, ...]
    action: SeccompAction
    errno_ret: UInt32 | None = None
    args: tuple[SyscallArg, ...] = ()


@attrs.frozen(kw_only=True, eq=False, repr=False)
class Seccomp(Document):
    """The system call filter (config-linux.md, "Seccomp"; seccomp(2)).

    Attributes:
        default_action: what happens on calls that no rule names.
        default_errno_ret: its error number; ``None`` is EPERM.
        architectures: what calls may be made of, beside the machine's own.
        flags: of seccomp(2).
        listener_path: absolute path of the socket that gets the notifications of ``SCMP_ACT_NOTIFY``.
        listener_metadata: text sent there along.
        syscalls: the rules.
    """

    default_action: SeccompAction
    default_errno_ret: UInt32 | None = None
    architectures: tuple[SeccompArch, ...] = ()
    flags: tuple[SeccompFlag, ...] = ()
    listener_path: str | None = None
    listener_metadata: str | None = None
    syscalls: tuple[SyscallRule, ...] = ()


# ── the rest ──────────────────────────────────────────────────────────────────────────────────────────────────────────


@attrs.frozen(kw_only=True, eq=False, repr=False)
class IntelRdt(Document):
    """Shares of cache and memory bandwidth (config-linux.md, "IntelRdt").

    Attributes:
        clos_id: name of the class of service, a directory in resctrl; ``None`` is the container's id.
        schemata: lines for its ``schemata`` file.
        l3_cache_schema: the line of the L3 cache, in the older way.
        mem_bw_schema: the line of memory bandwidth, in the older way.
        enable_monitoring: give the container a monitoring group of its own.
    """

    clos_id: str | None = attrs.field(default=None, metadata=named("closID"))
    schemata: tuple[str, ...] = ()
    l3_cache_schema: str | None = None
    mem_bw_schema: Annotated[str, Matches(r"MB:[^\n]*", "one line that starts with 'MB:'")] | None = None
    enable_monitoring: bool = False


@attrs.frozen(kw_only=True, eq=False, repr=False)
class MemoryPolicy(Document):
    """Where the process's memory comes from (config-linux.md, "Memory policy"; set_mempolicy(2)).

    Attributes:
        mode: the policy.
        nodes: memory nodes, e.g. ``"0-1"``.
        flags: modifiers of the mode.
    """

    mode: Literal[
        "MPOL_DEFAULT",
        "MPOL_BIND",
        "MPOL_INTERLEAVE",
        "MPOL_WEIGHTED_INTERLEAVE",
        "MPOL_PREFERRED",
        "MPOL_PREFERRED_MANY",
        "MPOL_LOCAL",
    ]
    nodes: CpuList | None = None
    flags: tuple[Literal["MPOL_F_NUMA_BALANCING", "MPOL_F_RELATIVE_NODES", "MPOL_F_STATIC_NODES"], ...] = ()


@attrs.frozen(kw_only=True, eq=False, repr=False)
class Personality(Document):
    """The execution domain (config-linux.md, "Personality"; personality(2)); no flag is defined so far."""

    domain: Literal["LINUX", "LINUX32"]
    flags: tuple[str, ...] = ()


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
