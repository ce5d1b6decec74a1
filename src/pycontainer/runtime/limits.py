"""From the limits of a runtime document to writes of cgroup files, for both versions.

The names are those of the kernel's admin-guide/cgroup-v1 and cgroup-v2; conversions between them are runc's.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from pycontainer.errors import Unsupported
from pycontainer.runtime import devices

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pycontainer.oci.runtime import BlockIo, Resources

__all__ = ["Write", "v1_writes", "v2_writes"]

Write = tuple[str, str, str]  # controller, file, value


def _given(*writes: tuple[str, str, object]) -> Iterator[Write]:
    for controller, file, value in writes:
        if value is not None:
            yield controller, file, str(int(value) if isinstance(value, bool) else value)


def v1_writes(resources: Resources) -> Iterator[Write]:
    """Yield the writes for version 1, in order.

    Raises:
        Unsupported: a limit exists only in version 2, or no more.
    """
    memory, cpu, pids = resources.memory, resources.cpu, resources.pids
    if resources.unified:
        msg = "linux.resources.unified needs cgroup v2, this host's controllers are on v1"
        raise Unsupported(msg)
    if memory is not None:
        if memory.kernel is not None:
            msg = "linux.resources.memory.kernel was removed from Linux 5.16; leave it out"
            raise Unsupported(msg)
        yield from _given(
            ("memory", "memory.limit_in_bytes", memory.limit or None),
            ("memory", "memory.memsw.limit_in_bytes", memory.swap or None),
            ("memory", "memory.soft_limit_in_bytes", memory.reservation or None),
            ("memory", "memory.kmem.tcp.limit_in_bytes", memory.kernel_tcp),
            ("memory", "memory.swappiness", memory.swappiness),
            ("memory", "memory.oom_control", 1 if memory.disable_oom_killer else None),
        )
    if cpu is not None:
        yield from _given(
            ("cpu", "cpu.shares", cpu.shares or None),
            ("cpu", "cpu.cfs_period_us", cpu.period or None),
            ("cpu", "cpu.cfs_quota_us", cpu.quota or None),
            ("cpu", "cpu.cfs_burst_us", cpu.burst),
            ("cpu", "cpu.rt_period_us", cpu.realtime_period),
            ("cpu", "cpu.rt_runtime_us", cpu.realtime_runtime),
            ("cpu", "cpu.idle", cpu.idle),
            ("cpuset", "cpuset.cpus", cpu.cpus or None),
            ("cpuset", "cpuset.mems", cpu.mems or None),
        )
    if pids is not None and pids.limit is not None:
        yield "pids", "pids.max", "max" if pids.limit <= 0 else str(pids.limit)
    yield from _v1_block_io(resources)
    for limit in resources.hugepage_limits:
        yield "hugetlb", f"hugetlb.{limit.page_size}.limit_in_bytes", str(limit.limit)
    network = resources.network
    if network is not None:
        yield from _given(("net_cls", "net_cls.classid", network.class_id))
        for priority in network.priorities:
            yield "net_prio", "net_prio.ifpriomap", f"{priority.name} {priority.priority}"
    yield from _rdma(resources)
    for file, text in devices.v1_writes(resources.devices):
        yield "devices", file, text


def _has_leaf_weight(io: BlockIo) -> bool:
    return bool(io.leaf_weight) or any(device.leaf_weight for device in io.weight_device)


def _v1_block_io(resources: Resources) -> Iterator[Write]:
    io = resources.block_io
    if io is None:
        return
    if _has_leaf_weight(io):
        msg = "linux.resources.blockIO.leafWeight was removed from Linux 5.0; leave it out"
        raise Unsupported(msg)
    bfq = any(Path(path).exists() for path in ("/sys/fs/cgroup/blkio/blkio.bfq.weight", "/sys/module/bfq"))
    weight = "blkio.bfq.weight" if bfq else "blkio.weight"
    yield from _given(("blkio", weight, io.weight or None))
    for device in io.weight_device:
        if device.weight:
            yield "blkio", f"{weight}_device", f"{device.major}:{device.minor} {device.weight}"
    for file, throttles in (
        ("blkio.throttle.read_bps_device", io.throttle_read_bps_device),
        ("blkio.throttle.write_bps_device", io.throttle_write_bps_device),
        ("blkio.throttle.read_iops_device", io.throttle_read_iops_device),
        ("blkio.throttle.write_iops_device", io.throttle_write_iops_device),
    ):
        for throttle in throttles:
            yield "blkio", file, f"{throttle.major}:{throttle.minor} {throttle.rate}"


def _rdma(resources: Resources) -> Iterator[Write]:
    for device, limit in resources.rdma.items():
        parts = [device]
        if limit.hca_handles is not None:
            parts.append(f"hca_handle={limit.hca_handles}")
        if limit.hca_objects is not None:
            parts.append(f"hca_object={limit.hca_objects}")
        yield "rdma", "rdma.max", " ".join(parts)


def _unlimited(value: int | None) -> str | None:
    if not value:  # 0 is "not set" to the runtimes in use
        return None
    return "max" if value < 0 else str(value)


def _v2_swap(resources: Resources) -> str | None:
    """Of v2, swap is counted alone; the spec and docker count memory and swap together."""
    memory = resources.memory
    if memory is None or not memory.swap:
        return None
    if memory.swap < 0:
        return "max"
    if memory.limit is None or memory.limit < 0 or memory.swap < memory.limit:
        msg = "linux.resources.memory.swap counts memory and swap together: it needs a limit and cannot be below it"
        raise ValueError(msg)
    return str(memory.swap - memory.limit)


def v2_writes(resources: Resources) -> Iterator[Write]:
    """Yield the writes for version 2, in order.

    Raises:
        Unsupported: a limit exists only in version 1.
    """
    yield from _v2_memory(resources)
    yield from _v2_cpu(resources)
    pids = resources.pids
    if pids is not None and pids.limit is not None:
        yield "pids", "pids.max", "max" if pids.limit <= 0 else str(pids.limit)
    yield from _v2_block_io(resources)
    for limit in resources.hugepage_limits:
        yield "hugetlb", f"hugetlb.{limit.page_size}.max", str(limit.limit)
    if resources.network is not None and (resources.network.class_id is not None or resources.network.priorities):
        msg = "linux.resources.network does not exist in cgroup v2; leave it out"
        raise Unsupported(msg)
    yield from _rdma(resources)
    for file, value in resources.unified.items():
        if "/" in file:
            msg = f"linux.resources.unified: {file!r} is not the name of a cgroup file"
            raise ValueError(msg)
        yield file.partition(".")[0], file, value


def _v2_memory(resources: Resources) -> Iterator[Write]:
    memory = resources.memory
    if memory is None:
        return
    if memory.kernel is not None or memory.kernel_tcp is not None or memory.swappiness is not None:
        msg = "linux.resources.memory.kernel, kernelTCP and swappiness do not exist in cgroup v2; leave them out"
        raise Unsupported(msg)
    if memory.disable_oom_killer:
        msg = "linux.resources.memory.disableOOMKiller does not exist in cgroup v2; leave it out"
        raise Unsupported(msg)
    yield from _given(
        ("memory", "memory.max", _unlimited(memory.limit)),
        ("memory", "memory.swap.max", _v2_swap(resources)),
        ("memory", "memory.low", _unlimited(memory.reservation)),
    )


def _v2_cpu(resources: Resources) -> Iterator[Write]:
    cpu = resources.cpu
    if cpu is None:
        return
    if cpu.realtime_period is not None or cpu.realtime_runtime is not None:
        msg = "linux.resources.cpu.realtimePeriod and realtimeRuntime do not exist in cgroup v2; leave them out"
        raise Unsupported(msg)
    if cpu.quota or cpu.period:
        quota = "max" if not cpu.quota or cpu.quota < 0 else str(cpu.quota)
        yield "cpu", "cpu.max", f"{quota} {cpu.period or 100000}"
    weight = None if not cpu.shares else min(10000, max(1, 1 + (cpu.shares - 2) * 9999 // 262142))
    yield from _given(
        ("cpu", "cpu.weight", weight),
        ("cpu", "cpu.max.burst", cpu.burst),
        ("cpu", "cpu.idle", cpu.idle),
        ("cpuset", "cpuset.cpus", cpu.cpus or None),
        ("cpuset", "cpuset.mems", cpu.mems or None),
    )


def _v2_block_io(resources: Resources) -> Iterator[Write]:
    io = resources.block_io
    if io is None:
        return
    if _has_leaf_weight(io):
        msg = "linux.resources.blockIO.leafWeight does not exist in cgroup v2; leave it out"
        raise Unsupported(msg)
    # 10..1000 of v1 becomes 1..10000 of v2, as runc does.
    yield from _given(("io", "io.weight", None if not io.weight else f"default {1 + (io.weight - 10) * 9999 // 990}"))
    for device in io.weight_device:
        if device.weight:
            yield "io", "io.weight", f"{device.major}:{device.minor} {1 + (device.weight - 10) * 9999 // 990}"
    for key, throttles in (
        ("rbps", io.throttle_read_bps_device),
        ("wbps", io.throttle_write_bps_device),
        ("riops", io.throttle_read_iops_device),
        ("wiops", io.throttle_write_iops_device),
    ):
        for throttle in throttles:
            yield "io", "io.max", f"{throttle.major}:{throttle.minor} {key}={throttle.rate}"
