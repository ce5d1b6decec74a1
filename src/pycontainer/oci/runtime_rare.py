"""Objects of config.json that few containers have: hooks, seccomp, schedulers, limits of devices.

Part of :mod:`pycontainer.oci.runtime`, which loads this module when one of its classes is asked for or a document is
read: attrs takes a quarter of a millisecond to make a class, and most programs do without these.
"""

from __future__ import annotations

from typing import Annotated, Literal, TypeAlias

import attrs

from pycontainer.oci.documents import Bounds, Document, Int32, Int64, Matches, UInt16, UInt32, UInt64, named

__all__ = [
    "BlockIo",
    "BlockIoThrottle",
    "BlockIoWeight",
    "ConsoleSize",
    "CpuList",
    "ExecCpuAffinity",
    "Hook",
    "HugepageLimit",
    "IdMapping",
    "IntelRdt",
    "InterfacePriority",
    "IoPriority",
    "MemoryPolicy",
    "NetDevice",
    "Network",
    "Personality",
    "Rdma",
    "Scheduler",
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

CpuList: TypeAlias = Annotated[str, Matches(r"[0-9, -]*", "a list of numbers and ranges such as '0-3,7'")]


# ── the process ───────────────────────────────────────────────────────────────────────────────────────────────────────


@attrs.frozen(kw_only=True, eq=False, repr=False)
class ConsoleSize(Document):
    """The size of the terminal in characters (config.md, "Process")."""

    height: UInt64
    width: UInt64


@attrs.frozen(kw_only=True, eq=False, repr=False)
class Scheduler(Document):
    """How the process is scheduled (config.md, "Linux Process"; sched_setattr(2)); times are nanoseconds."""

    policy: Literal["SCHED_OTHER", "SCHED_FIFO", "SCHED_RR", "SCHED_BATCH", "SCHED_ISO", "SCHED_IDLE", "SCHED_DEADLINE"]
    nice: Int32 = 0
    priority: Int32 = 0
    flags: tuple[
        Literal[
            "SCHED_FLAG_RESET_ON_FORK",
            "SCHED_FLAG_RECLAIM",
            "SCHED_FLAG_DL_OVERRUN",
            "SCHED_FLAG_KEEP_POLICY",
            "SCHED_FLAG_KEEP_PARAMS",
            "SCHED_FLAG_UTIL_CLAMP_MIN",
            "SCHED_FLAG_UTIL_CLAMP_MAX",
        ],
        ...,
    ] = ()
    runtime: UInt64 = 0
    deadline: UInt64 = 0
    period: UInt64 = 0


@attrs.frozen(kw_only=True, eq=False, repr=False)
class IoPriority(Document):
    """The priority of the process's input and output, 0 (first) to 7 in its class (config.md; ioprio_set(2))."""

    class_: Literal["IOPRIO_CLASS_RT", "IOPRIO_CLASS_BE", "IOPRIO_CLASS_IDLE"] = attrs.field(
        metadata=named("class"), alias="class_"
    )
    priority: Int32 = 0


@attrs.frozen(kw_only=True, eq=False, repr=False)
class ExecCpuAffinity(Document):
    """Where a process that joins the container runs, as lists such as ``"0-3,7"`` (config.md, "Linux Process").

    Attributes:
        initial: before it is in the container's cgroup.
        final: after.
    """

    initial: CpuList | None = None
    final: CpuList | None = None


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


# ── hooks ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


@attrs.frozen(kw_only=True, eq=False, repr=False)
class Hook(Document):
    """A program run at a point of the container's life, the :class:`State` on its stdin (config.md, "Hooks").

    Attributes:
        path: absolute path of the program.
        args: its arguments, the name first as in execv(3).
        env: ``NAME=value`` each.
        timeout: seconds until it is killed; ``None`` is never.
    """

    path: str
    args: tuple[str, ...] = ()
    env: tuple[str, ...] = ()
    timeout: Annotated[int, Bounds(1, 2**31 - 1)] | None = None


# ── namespaces and network ────────────────────────────────────────────────────────────────────────────────────────────


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
class NetDevice(Document):
    """A network interface of the host that moves into the container (config-linux.md, "Network Devices").

    Attributes:
        name: its name there; ``None`` keeps the name.
    """

    name: str | None = None


# ── resources ─────────────────────────────────────────────────────────────────────────────────────────────────────────


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


# ── seccomp ───────────────────────────────────────────────────────────────────────────────────────────────────────────

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
