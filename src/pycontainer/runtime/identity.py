"""The steps that decide who the process is: limits, scheduling, user, groups, capabilities, system call filter."""

from __future__ import annotations

import re
import resource
import struct
from typing import TYPE_CHECKING

from pycontainer._ffi import lib
from pycontainer.errors import InvalidSpec, Unsupported
from pycontainer.oci import runtime as oci
from pycontainer.runtime import capabilities

if TYPE_CHECKING:
    from pycontainer.runtime.program import Program
    from pycontainer.runtime.seccomp import Filter

__all__ = ["PR_SET_PDEATHSIG", "add_credentials", "add_rlimits", "add_scheduling"]

PR_SET_PDEATHSIG = 1
_RANGE = re.compile(r"(\d{1,4})(?:-(\d{1,4}))?")

_MORE_RLIMITS = {
    "RLIMIT_LOCKS": 10,
    "RLIMIT_SIGPENDING": 11,
    "RLIMIT_MSGQUEUE": 12,
    "RLIMIT_NICE": 13,
    "RLIMIT_RTPRIO": 14,
    "RLIMIT_RTTIME": 15,
}


def add_rlimits(program: Program, process: oci.Process) -> None:
    """Append the steps for resource limits.

    Raises:
        Unsupported: Linux has no such limit.
    """
    for limit in process.rlimits:
        number = getattr(resource, limit.type, None)
        if number is None:
            number = _MORE_RLIMITS.get(limit.type)
        if number is None:
            msg = f"process.rlimits: {limit.type} is not a limit of Linux"
            raise Unsupported(msg)
        program.step(
            lib.PYC_OP_RLIMIT,
            f"set {limit.type} to {limit.soft}:{limit.hard}",
            a=number,
            b=limit.soft,
            c=limit.hard,
        )


def add_scheduling(program: Program, process: oci.Process, linux: oci.Linux) -> None:
    """Append the steps for scheduler, I/O priority, processors, memory nodes and execution domain."""
    if process.scheduler is not None:
        program.step(lib.PYC_OP_SCHED, "set the scheduler", data=_sched_attr(process.scheduler))
    if process.io_priority is not None:
        kind = {"IOPRIO_CLASS_RT": 1, "IOPRIO_CLASS_BE": 2, "IOPRIO_CLASS_IDLE": 3}[process.io_priority.class_]
        program.step(lib.PYC_OP_IOPRIO, "set the I/O priority", a=kind << 13 | (process.io_priority.priority or 0))
    affinity = process.exec_cpu_affinity
    if affinity is not None:
        for label, cpus in (("initial", affinity.initial), ("final", affinity.final)):
            if cpus:
                program.step(
                    lib.PYC_OP_AFFINITY,
                    f"set the {label} CPU affinity {cpus}",
                    data=_mask(cpus, f"process.execCPUAffinity.{label}"),
                )
    if linux.memory_policy is not None:
        _add_memory_policy(program, linux.memory_policy)
    if linux.personality is not None:
        value = {"LINUX": 0, "LINUX32": 8}[linux.personality.domain]
        program.step(lib.PYC_OP_PERSONALITY, "set the execution domain", a=value)


def add_credentials(program: Program, process: oci.Process, seccomp: Filter | None) -> None:
    """Append the steps by which the process becomes what its program will be.

    In this order nothing that is still needed is given up too early, and nothing is given back.
    """
    caps = process.capabilities or oci.Capabilities()
    bounding = capabilities.to_mask(caps.bounding)
    program.step(lib.PYC_OP_CHDIR, "enter the working directory", process.cwd)
    add_rlimits(program, process)  # from here on nothing is opened, so that few files may be allowed
    program.step(lib.PYC_OP_BOUNDING, "limit the capabilities", a=bounding, b=len(capabilities.supported()) - 1)
    if not process.no_new_privileges:
        _load_filter(program, seccomp)  # it takes CAP_SYS_ADMIN, which is about to go
    user = process.user
    groups = struct.pack(f"<{len(user.additional_gids)}I", *user.additional_gids)
    program.step(lib.PYC_OP_GROUPS, "set the groups", data=groups)
    program.step(lib.PYC_OP_IDS, f"become user {user.uid} and group {user.gid}", a=user.uid, b=user.gid)
    program.step(
        lib.PYC_OP_CAPS,
        "set the capabilities",
        a=capabilities.to_mask(caps.effective),
        b=capabilities.to_mask(caps.permitted),
        c=capabilities.to_mask(caps.inheritable),
    )
    # capabilities(7): ambient ones must be permitted and inheritable; "crun spec" and "runc spec" list more than that.
    ambient = capabilities.to_mask(caps.ambient) & capabilities.to_mask(caps.inheritable)
    ambient &= capabilities.to_mask(caps.permitted)
    if ambient:
        program.step(lib.PYC_OP_AMBIENT, "set the ambient capabilities", a=ambient)
    program.step(lib.PYC_OP_UMASK, "set the umask", a=0o022 if user.umask is None else user.umask)
    program.step(lib.PYC_OP_PRCTL, "tie the process to its caller", a=PR_SET_PDEATHSIG, b=9)
    if process.no_new_privileges:
        program.step(lib.PYC_OP_NO_NEW_PRIVS, "set no_new_privs")
        _load_filter(program, seccomp)


def _load_filter(program: Program, compiled: Filter | None) -> None:
    if compiled is not None:
        program.step(lib.PYC_OP_SECCOMP, "load the seccomp filter", data=compiled.program, a=compiled.flags)


_POLICIES = {"SCHED_OTHER": 0, "SCHED_FIFO": 1, "SCHED_RR": 2, "SCHED_BATCH": 3, "SCHED_IDLE": 5, "SCHED_DEADLINE": 6}
# linux/mempolicy.h
_MEMORY_MODES = {
    "MPOL_DEFAULT": 0,
    "MPOL_PREFERRED": 1,
    "MPOL_BIND": 2,
    "MPOL_INTERLEAVE": 3,
    "MPOL_LOCAL": 4,
    "MPOL_PREFERRED_MANY": 5,
    "MPOL_WEIGHTED_INTERLEAVE": 6,
}
_MEMORY_FLAGS = {"MPOL_F_STATIC_NODES": 1 << 15, "MPOL_F_RELATIVE_NODES": 1 << 14, "MPOL_F_NUMA_BALANCING": 1 << 13}
_SCHED_FLAGS = {
    "SCHED_FLAG_RESET_ON_FORK": 0x01,
    "SCHED_FLAG_RECLAIM": 0x02,
    "SCHED_FLAG_DL_OVERRUN": 0x04,
    "SCHED_FLAG_KEEP_POLICY": 0x08,
    "SCHED_FLAG_KEEP_PARAMS": 0x10,
    "SCHED_FLAG_UTIL_CLAMP_MIN": 0x20,
    "SCHED_FLAG_UTIL_CLAMP_MAX": 0x40,
}


def _sched_attr(scheduler: oci.Scheduler) -> bytes:
    """Return a ``struct sched_attr``, see sched_setattr(2)."""
    if scheduler.policy not in _POLICIES:
        msg = f"process.scheduler.policy: {scheduler.policy} does not exist in Linux"
        raise Unsupported(msg)
    flags = sum(_SCHED_FLAGS[name] for name in scheduler.flags)
    return struct.pack(
        "<IIQiIQQQ",
        48,
        _POLICIES[scheduler.policy],
        flags,
        scheduler.nice,
        scheduler.priority,
        scheduler.runtime,
        scheduler.deadline,
        scheduler.period,
    )


def _add_memory_policy(program: Program, policy: oci.MemoryPolicy) -> None:
    mode = _MEMORY_MODES[policy.mode]
    for flag in policy.flags:
        mode |= _MEMORY_FLAGS[flag]
    mask = _mask(policy.nodes, "linux.memoryPolicy.nodes") if policy.nodes else b""
    label = f"set the memory policy {policy.mode} {policy.nodes or ''}".rstrip()
    program.step(lib.PYC_OP_MEMPOLICY, label, a=mode, data=mask)


def _mask(text: str, where: str) -> bytes:
    """Return the bits of a list of processors or memory nodes such as ``0-2,4``.

    Raises:
        InvalidSpec: it is no such list, or beyond what any kernel has.
    """
    mask = 0
    for part in text.replace(" ", "").split(","):
        match = _RANGE.fullmatch(part)
        if match is None:
            raise InvalidSpec(where, f"{text!r} is not a list of numbers and ranges below 10000, such as '0-2,4'")
        first, last = int(match[1]), int(match[2] or match[1])
        mask |= (1 << last + 1) - (1 << first) if first <= last else 0
    return mask.to_bytes(max(8, (mask.bit_length() + 63) // 64 * 8), "little")
