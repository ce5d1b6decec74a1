"""Control groups of containers, version 1 and version 2: where they are, the steps that make one, what it counted.

Every container gets a group ``pycontainer/<id>`` in each hierarchy that serves it. The process joins it by being born
there (v2) or by writing ``0`` to ``tasks`` itself (v1): a write to ``cgroup.procs`` would wait for a grace period of the
kernel, over 10 ms when starts are rare. See cgroups(7) and the kernel's admin-guide/cgroup-v{1,2}.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

import attrs

from pycontainer._ffi import lib, new_error, read_error
from pycontainer.errors import StartError, Unsupported
from pycontainer.oci.runtime import Resources
from pycontainer.runtime import devices
from pycontainer.runtime.program import Program

__all__ = ["Cgroups", "Counters", "Hierarchy"]

PARENT = "pycontainer"
_V1_CONTROLLERS = ("memory", "pids", "cpu", "cpuacct", "cpuset", "blkio", "devices", "hugetlb", "net_cls", "net_prio", "rdma")
_V2_CONTROLLERS = ("cpu", "cpuset", "hugetlb", "io", "memory", "pids", "rdma")
_BPF_CGROUP_DEVICE = 6  # enum bpf_attach_type in linux/bpf.h
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC


@attrs.frozen(kw_only=True)
class Hierarchy:
    """One mounted cgroup hierarchy.

    Attributes:
        controllers: what it controls; of v2, what the kernel offers there.
        path: where it is mounted.
        name: the last part of the path, as tools in a container expect it below /sys/fs/cgroup.
    """

    controllers: tuple[str, ...]
    path: str
    name: str


@attrs.frozen(kw_only=True)
class Counters:
    """What a group counted; ``None`` where the host has no such count.

    Attributes:
        cpu_user_us: microseconds in programs.
        cpu_system_us: microseconds in the kernel.
        peak_memory: bytes.
        block_read: bytes.
        block_written: bytes.
        peak_pids: processes and threads.
        oom_kills: processes killed at the memory limit.
    """

    cpu_user_us: int | None = None
    cpu_system_us: int | None = None
    peak_memory: int | None = None
    block_read: int | None = None
    block_written: int | None = None
    peak_pids: int | None = None
    oom_kills: int = 0


def _unescape(text: str) -> str:
    """Undo the octal escapes of /proc/self/mountinfo, see proc_pid_mountinfo(5)."""
    return text.encode().decode("unicode_escape") if "\\" in text else text


def find_hierarchies() -> tuple[Hierarchy | None, tuple[Hierarchy, ...]]:
    """Return the mounted v2 hierarchy, if any, and the v1 hierarchies with controllers."""
    unified: Hierarchy | None = None
    v1: list[Hierarchy] = []
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        left, _, right = line.partition(" - ")
        kind, _, options = right.split(" ", 2)
        if not kind.startswith("cgroup"):
            continue
        path = _unescape(left.split(" ")[4])
        if kind == "cgroup2" and unified is None:
            offered = (Path(path) / "cgroup.controllers").read_text().split()
            unified = Hierarchy(controllers=tuple(offered), path=path, name=Path(path).name)
        elif kind == "cgroup":
            controllers = tuple(name for name in _V1_CONTROLLERS if name in options.split(" ")[-1].split(","))
            known = {name for hierarchy in v1 for name in hierarchy.controllers}
            if controllers and not known.intersection(controllers):
                v1.append(Hierarchy(controllers=controllers, path=path, name=Path(path).name))
    return unified, tuple(v1)


class Cgroups:
    """The control groups of one engine: opened once, then only descriptors are used.

    Attributes:
        version: ``"v1"`` (also on hybrid hosts), ``"v2"``, or ``"none"``.
        hierarchies: those in use.
    """

    def __init__(self) -> None:
        unified, v1 = find_hierarchies()
        v1_names = {name for hierarchy in v1 for name in hierarchy.controllers}
        if unified is not None and "memory" not in v1_names and "pids" not in v1_names:
            self.version = "v2"
            self.hierarchies: tuple[Hierarchy, ...] = (unified,)
        else:
            self.version = "v1" if v1 else "none"
            self.hierarchies = v1
        self._fds: dict[str, int] = {}  # by hierarchy path
        self._by_controller: dict[str, Hierarchy] = {}
        self._device_programs: dict[bytes, int] = {}
        try:
            self._open()
        except BaseException:
            self.close()
            raise

    def _open(self) -> None:
        for hierarchy in self.hierarchies:
            path = f"{hierarchy.path}/{PARENT}"
            try:
                if self.version == "v2":
                    _enable(hierarchy.path, hierarchy.controllers)
                with contextlib.suppress(FileExistsError):
                    os.mkdir(path)  # noqa: PTH102 - hot enough, and no Path is needed
                if self.version == "v2":
                    _enable(path, hierarchy.controllers)
                elif "cpuset" in hierarchy.controllers:
                    _inherit_cpuset(hierarchy.path, path)
                self._fds[hierarchy.path] = os.open(path, _DIRECTORY)
            except OSError as error:
                if error.errno in (1, 13, 30):  # EPERM EACCES EROFS: not ours to use, so its controllers are missing
                    continue
                raise StartError("make the control group", path, error.errno or 0) from error
            offered = (
                Path(path, "cgroup.controllers").read_text().split() if self.version == "v2" else hierarchy.controllers
            )
            for name in offered:
                self._by_controller[name] = hierarchy

    @property
    def controllers(self) -> tuple[str, ...]:
        """The controllers that containers can use, sorted."""
        return tuple(sorted(self._by_controller))

    @property
    def parent_fds(self) -> tuple[int, ...]:
        """Descriptors of the parent groups, for the keeper."""
        return tuple(self._fds.values())

    def close(self) -> None:
        """Close all descriptors; safe to call again."""
        for fd in (*self._fds.values(), *self._device_programs.values()):
            os.close(fd)
        self._fds.clear()
        self._device_programs.clear()

    def used(self, resources: Resources) -> Iterator[tuple[Hierarchy, int]]:
        """Yield the hierarchies in which a container with these limits needs a group, with their parents' descriptors."""
        for hierarchy in self.hierarchies:
            fd = self._fds.get(hierarchy.path)
            if fd is None:
                continue
            if self.version == "v2" or any(_is_used(name, resources) for name in hierarchy.controllers):
                yield hierarchy, fd

    def add_steps(self, program: Program, container_id: str, resources: Resources) -> None:
        """Append the host steps that make the group, and of v1 the child steps by which the process joins it.

        Raises:
            Unsupported: a limit needs a controller that this host lacks.
        """
        writes = list(_v2_writes(resources) if self.version == "v2" else _v1_writes(resources))
        for controller, file, _ in writes:
            if controller not in self._by_controller:
                raise Unsupported(_missing(controller, file, self.version, self.controllers))
        for _, fd in self.used(resources):
            program.mkdir("make the control group", container_id, fd=fd, host=True)
        for controller, file, value in writes:
            fd = self._fds[self._by_controller[controller].path]
            program.write(f"set {file} = {value} in the control group", f"{container_id}/{file}", value.encode(), fd=fd, host=True)
        if self.version == "v2":
            self._add_v2_steps(program, container_id, resources)
            return
        for _, fd in self.used(resources):
            program.write("join the control group", f"{container_id}/tasks", b"0", fd=fd)

    def _add_v2_steps(self, program: Program, container_id: str, resources: Resources) -> None:
        for hierarchy in self.hierarchies:
            fd = self._fds.get(hierarchy.path)
            if fd is None:
                return
            program.cgroup_fd = program.step(
                lib.PYC_OP_OPEN, "open the control group", container_id, fd=fd, a=os.O_DIRECTORY, host=True, result=True
            )
            if resources.devices:
                program.step(
                    lib.PYC_OP_BPF_ATTACH,
                    "attach the device filter to the control group",
                    container_id,
                    fd=program.cgroup_fd,
                    fd2=self._device_program(devices.compile_bpf(resources.devices)),
                    a=_BPF_CGROUP_DEVICE,
                    host=True,
                )

    def _device_program(self, code: bytes) -> int:
        fd = self._device_programs.get(code)
        if fd is None:
            err = new_error()
            fd = lib.pyc_load_device_filter(code, len(code), err)
            if fd < 0:
                step, path, errno = read_error(err)
                raise StartError(step, path, errno, "the kernel needs CONFIG_CGROUP_BPF")
            self._device_programs[code] = fd
        return fd

    def read(self, container_id: str) -> Counters:
        """Return what the group of a container counted so far."""
        return self._read_v2(container_id) if self.version == "v2" else self._read_v1(container_id)

    def _text(self, controller: str, path: str) -> str | None:
        hierarchy = self._by_controller.get(controller)
        if hierarchy is None:
            return None
        try:
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC, dir_fd=self._fds[hierarchy.path])
        except FileNotFoundError:  # an older kernel, or no group was needed there
            return None
        try:
            return os.read(fd, 65536).decode()
        finally:
            os.close(fd)

    def _number(self, controller: str, path: str) -> int | None:
        text = self._text(controller, path)
        return int(text) if text else None

    def _read_v1(self, group: str) -> Counters:
        user, system = self._number("cpuacct", f"{group}/cpuacct.usage_user"), None
        if user is not None:
            user //= 1000
            system = (self._number("cpuacct", f"{group}/cpuacct.usage_sys") or 0) // 1000
        oom = self._text("memory", f"{group}/memory.oom_control")
        read = written = None
        blocks = self._text("blkio", f"{group}/blkio.throttle.io_service_bytes_recursive")
        if blocks is not None:
            read = _sum_lines(blocks, "Read")
            written = _sum_lines(blocks, "Write")
        return Counters(
            cpu_user_us=user,
            cpu_system_us=system,
            peak_memory=self._number("memory", f"{group}/memory.max_usage_in_bytes"),
            block_read=read,
            block_written=written,
            peak_pids=self._number("pids", f"{group}/pids.peak"),
            oom_kills=_sum_lines(oom, "oom_kill") if oom else 0,
        )

    def _read_v2(self, group: str) -> Counters:
        cpu = self._text("cpu", f"{group}/cpu.stat")
        events = self._text("memory", f"{group}/memory.events")
        io = self._text("io", f"{group}/io.stat")
        return Counters(
            cpu_user_us=_sum_lines(cpu, "user_usec") if cpu else None,
            cpu_system_us=_sum_lines(cpu, "system_usec") if cpu else None,
            peak_memory=self._number("memory", f"{group}/memory.peak"),
            block_read=_sum_pairs(io, "rbytes") if io is not None else None,
            block_written=_sum_pairs(io, "wbytes") if io is not None else None,
            peak_pids=self._number("pids", f"{group}/pids.peak"),
            oom_kills=_sum_lines(events, "oom_kill") if events else 0,
        )

    def kill(self, container_id: str) -> None:
        """Kill every process of a container's group, for containers without a pid namespace of their own."""
        for fd in self._fds.values():
            if self.version == "v2":
                with contextlib.suppress(FileNotFoundError):
                    kill = os.open(f"{container_id}/cgroup.kill", os.O_WRONLY | os.O_CLOEXEC, dir_fd=fd)
                    try:
                        os.write(kill, b"1")
                    finally:
                        os.close(kill)
                return
            if _kill_listed(fd, container_id):
                return

    def remove(self, container_id: str) -> None:
        """Remove the groups of a container whose processes are gone or being killed.

        Raises:
            StartError: a group is still in use after five seconds.
        """
        for fd in self._fds.values():
            err = new_error()
            if lib.pyc_remove_cgroup(fd, container_id.encode(), 5000, err) < 0:
                raise StartError(*read_error(err))


def _kill_listed(parent_fd: int, container_id: str) -> bool:
    """Kill by cgroup.procs until none is left; v1 has no cgroup.kill. Return whether the group exists."""
    for _ in range(1000):
        try:
            fd = os.open(f"{container_id}/cgroup.procs", os.O_RDONLY | os.O_CLOEXEC, dir_fd=parent_fd)
        except FileNotFoundError:
            return False
        try:
            pids = [int(pid) for pid in os.read(fd, 1 << 20).split()]
        finally:
            os.close(fd)
        if not pids:
            return True
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                pidfd = os.pidfd_open(pid)
                try:
                    # The number may be another process by now: look again with the pidfd held.
                    if PARENT in Path(f"/proc/{pid}/cgroup").read_text():
                        lib.pyc_kill(pidfd, 9)
                except FileNotFoundError:
                    pass
                finally:
                    os.close(pidfd)
    return True


def _missing(controller: str, file: str, version: str, available: Iterable[str]) -> str:
    remedy = {
        "v1": f"mount it: mount -t cgroup -o {controller} cgroup /sys/fs/cgroup/{controller}, or boot without cgroup_disable",
        "v2": "enable it in cgroup.subtree_control of the root group, or run with a delegated group that has it",
        "none": "mount a cgroup file system at /sys/fs/cgroup",
    }[version]
    return (
        f"cgroup {controller} controller is not available, so {file} cannot be set "
        f"(this host offers: {', '.join(available) or 'none'}); {remedy}"
    )


def _enable(path: str, controllers: Iterable[str]) -> None:
    """Let child groups of a v2 group use controllers; one at a time, since one refusal would refuse all."""
    file = Path(path, "cgroup.subtree_control")
    enabled = file.read_text().split()
    for name in controllers:
        if name in _V2_CONTROLLERS and name not in enabled:
            with contextlib.suppress(OSError):  # the controllers that are there are read back afterwards
                file.write_text(f"+{name}")


def _inherit_cpuset(root: str, path: str) -> None:
    """A new v1 cpuset has no processors and no memory: give it its parent's."""
    for file in ("cpuset.cpus", "cpuset.mems"):
        target = Path(path, file)
        if not target.read_text().strip():
            target.write_text(Path(root, file).read_text())


def _is_used(controller: str, resources: Resources) -> bool:
    if controller in ("memory", "pids", "cpuacct", "blkio", "devices"):
        return True  # they count, or they guard
    cpu = resources.cpu
    if controller == "cpu":
        return cpu is not None
    if controller == "cpuset":
        return cpu is not None and bool(cpu.cpus or cpu.mems)
    return any(name == controller for name, _, _ in _v1_writes(resources))


def _sum_lines(text: str, key: str) -> int:
    """Add up the last words of the lines in which ``key`` is a word."""
    return sum(int(words[-1]) for words in map(str.split, text.splitlines()) if key in words[:-1])


def _sum_pairs(text: str, key: str) -> int:
    """Add up the values of ``key=value`` words."""
    return sum(int(word.partition("=")[2]) for word in text.split() if word.startswith(f"{key}="))


Write = tuple[str, str, str]  # controller, file, value


def _given(*writes: tuple[str, str, object]) -> Iterator[Write]:
    for controller, file, value in writes:
        if value is not None:
            yield controller, file, str(int(value) if isinstance(value, bool) else value)


def _v1_writes(resources: Resources) -> Iterator[Write]:
    memory, cpu, pids = resources.memory, resources.cpu, resources.pids
    if resources.unified:
        msg = "linux.resources.unified needs cgroup v2, this host's controllers are on v1"
        raise Unsupported(msg)
    if memory is not None:
        if memory.kernel is not None:
            msg = "linux.resources.memory.kernel was removed from Linux 5.16; leave it out"
            raise Unsupported(msg)
        yield from _given(
            ("memory", "memory.limit_in_bytes", memory.limit),
            ("memory", "memory.memsw.limit_in_bytes", memory.swap),
            ("memory", "memory.soft_limit_in_bytes", memory.reservation),
            ("memory", "memory.kmem.tcp.limit_in_bytes", memory.kernel_tcp),
            ("memory", "memory.swappiness", memory.swappiness),
            ("memory", "memory.oom_control", 1 if memory.disable_oom_killer else None),
        )
    if cpu is not None:
        yield from _given(
            ("cpu", "cpu.shares", cpu.shares),
            ("cpu", "cpu.cfs_period_us", cpu.period),
            ("cpu", "cpu.cfs_quota_us", cpu.quota),
            ("cpu", "cpu.cfs_burst_us", cpu.burst),
            ("cpu", "cpu.rt_period_us", cpu.realtime_period),
            ("cpu", "cpu.rt_runtime_us", cpu.realtime_runtime),
            ("cpu", "cpu.idle", cpu.idle),
            ("cpuset", "cpuset.cpus", cpu.cpus or None),
            ("cpuset", "cpuset.mems", cpu.mems or None),
        )
    if pids is not None and pids.limit is not None:
        yield "pids", "pids.max", "max" if pids.limit < 0 else str(pids.limit)
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


def _v1_block_io(resources: Resources) -> Iterator[Write]:
    io = resources.block_io
    if io is None:
        return
    if io.leaf_weight is not None:
        msg = "linux.resources.blockIO.leafWeight was removed from Linux 5.0; leave it out"
        raise Unsupported(msg)
    weight = "blkio.bfq.weight" if Path("/sys/module/bfq").exists() else "blkio.weight"
    yield from _given(("blkio", weight, io.weight))
    for device in io.weight_device:
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
    if value is None:
        return None
    return "max" if value < 0 else str(value)


def _v2_swap(resources: Resources) -> str | None:
    """Of v2, swap is counted alone; the spec and docker count memory and swap together."""
    memory = resources.memory
    if memory is None or memory.swap is None:
        return None
    if memory.swap < 0:
        return "max"
    if memory.limit is None or memory.limit < 0 or memory.swap < memory.limit:
        msg = "linux.resources.memory.swap counts memory and swap together: it needs a limit and cannot be below it"
        raise ValueError(msg)
    return str(memory.swap - memory.limit)


def _v2_writes(resources: Resources) -> Iterator[Write]:
    memory, cpu, pids = resources.memory, resources.cpu, resources.pids
    if memory is not None:
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
    if cpu is not None:
        if cpu.realtime_period is not None or cpu.realtime_runtime is not None:
            msg = "linux.resources.cpu.realtimePeriod and realtimeRuntime do not exist in cgroup v2; leave them out"
            raise Unsupported(msg)
        if cpu.quota is not None or cpu.period is not None:
            quota = "max" if cpu.quota is None or cpu.quota < 0 else str(cpu.quota)
            yield "cpu", "cpu.max", f"{quota} {cpu.period or 100000}"
        weight = None if not cpu.shares else 1 + (cpu.shares - 2) * 9999 // 262142
        yield from _given(
            ("cpu", "cpu.weight", weight),
            ("cpu", "cpu.max.burst", cpu.burst),
            ("cpu", "cpu.idle", cpu.idle),
            ("cpuset", "cpuset.cpus", cpu.cpus or None),
            ("cpuset", "cpuset.mems", cpu.mems or None),
        )
    if pids is not None and pids.limit is not None:
        yield "pids", "pids.max", "max" if pids.limit < 0 else str(pids.limit)
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


def _v2_block_io(resources: Resources) -> Iterator[Write]:
    io = resources.block_io
    if io is None:
        return
    if io.leaf_weight is not None:
        msg = "linux.resources.blockIO.leafWeight does not exist in cgroup v2; leave it out"
        raise Unsupported(msg)
    # 10..1000 of v1 becomes 1..10000 of v2, as runc does.
    yield from _given(("io", "io.weight", None if not io.weight else f"default {1 + (io.weight - 10) * 9999 // 990}"))
    for device in io.weight_device:
        if device.weight is not None:
            yield "io", "io.weight", f"{device.major}:{device.minor} {1 + (device.weight - 10) * 9999 // 990}"
    for key, throttles in (
        ("rbps", io.throttle_read_bps_device),
        ("wbps", io.throttle_write_bps_device),
        ("riops", io.throttle_read_iops_device),
        ("wiops", io.throttle_write_iops_device),
    ):
        for throttle in throttles:
            yield "io", "io.max", f"{throttle.major}:{throttle.minor} {key}={throttle.rate}"
