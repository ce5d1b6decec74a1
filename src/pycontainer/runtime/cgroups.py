"""Control groups of containers, version 1 and version 2: where they are, the steps that make one, what it counted.

Every container gets a group ``pycontainer/<id>`` in each hierarchy that serves it. The process joins it by being born
there (v2) or by writing ``0`` to ``tasks`` itself (v1): a write to ``cgroup.procs`` would wait for a grace period of
the kernel, over 10 ms when starts are rare. See cgroups(7) and the kernel's admin-guide/cgroup-v{1,2}.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from pycontainer._ffi import lib, new_error, read_error
from pycontainer.errors import StartError, Unsupported
from pycontainer.runtime import devices, limits
from pycontainer.runtime.counts import Counts

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from pycontainer.oci.runtime import DeviceRule, Resources
    from pycontainer.runtime.counts import Counters
    from pycontainer.runtime.program import Program

__all__ = ["Cgroups", "Hierarchy"]

PARENT = "pycontainer"
_V1_CONTROLLERS = (
    "memory",
    "pids",
    "cpu",
    "cpuacct",
    "cpuset",
    "blkio",
    "devices",
    "hugetlb",
    "net_cls",
    "net_prio",
    "rdma",
)
_V2_CONTROLLERS = ("cpu", "cpuset", "hugetlb", "io", "memory", "pids", "rdma")
_GUARDS = ("devices",)
_BPF_CGROUP_DEVICE = 6  # enum bpf_attach_type in linux/bpf.h
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC


class Hierarchy(NamedTuple):
    """One mounted cgroup hierarchy.

    Attributes:
        controllers: what it controls; of v2, what the kernel offers there.
        path: where it is mounted.
        name: the last part of the path, as tools in a container expect it below /sys/fs/cgroup.
    """

    controllers: tuple[str, ...]
    path: str
    name: str


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

    Args:
        device: number of the block device whose reads and writes are to be counted.

    Attributes:
        version: ``"v1"`` (also on hybrid hosts), ``"v2"``, or ``"none"``.
        hierarchies: those in use.
    """

    def __init__(self, device: int | None = None) -> None:
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
            parents = {name: self._fds[hierarchy.path] for name, hierarchy in self._by_controller.items()}
            blocks = self.version == "v1" and "blkio" in parents and device is not None
            self._counts = Counts(self.version, parents, blocks=blocks and _count_blocks(parents["blkio"], device or 0))
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

    @staticmethod
    def group(container_id: str, path: str | None = None) -> str:
        """Return the name of a container's group, relative to the parent group ``pycontainer``.

        Args:
            container_id: names the group unless a path is given.
            path: ``cgroupsPath`` of a document: absolute from the root of every hierarchy, or relative to our parent.

        Raises:
            Unsupported: it is a systemd unit, ``slice:prefix:name``.
            ValueError: it leads out of the hierarchy.
        """
        if not path:
            return container_id
        if ":" in path:
            msg = f"cgroupsPath {path!r} asks for a systemd unit; give a path: pycontainer makes control groups itself"
            raise Unsupported(msg)
        parts = [part for part in path.split("/") if part not in ("", ".")]
        if not parts or ".." in parts:
            msg = f"not the path of a control group: {path!r}"
            raise ValueError(msg)
        return "/".join([".."] * path.startswith("/") + parts)

    def make_parents(self, group: str) -> None:
        """Make the groups above a container's own, where a path asks for such.

        Raises:
            StartError: one cannot be made.
        """
        parts = group.split("/")
        for hierarchy in self.hierarchies:
            path = f"{hierarchy.path}/{PARENT}"
            for part in parts[:-1]:
                path = f"{path}/{part}"
                try:
                    Path(path).mkdir(exist_ok=True)
                    if self.version == "v2":
                        _enable(path, hierarchy.controllers)
                    elif "cpuset" in hierarchy.controllers and part != "..":
                        _inherit_cpuset(f"{path}/..", path)
                except OSError as error:
                    raise StartError("make the control group", path, error.errno or 0) from error

    def places(
        self, group: str, resources: Resources | None, guard: str | None = None
    ) -> Iterator[tuple[Hierarchy, int, str]]:
        """Yield where a container has its groups: the hierarchy, the parent's descriptor, the group below it.

        Args:
            group: its own group.
            resources: its limits; of version 1, a hierarchy that none of them needs is left out.
            guard: the group from :meth:`make_guard` that takes the place of its own in the devices hierarchy.
        """
        for hierarchy in self.hierarchies:
            fd = self._fds.get(hierarchy.path)
            if fd is None:
                continue
            if guard is not None and hierarchy.controllers == _GUARDS:
                yield hierarchy, fd, guard
            elif self.version == "v2" or any(_is_used(name, resources) for name in hierarchy.controllers):
                yield hierarchy, fd, group

    def add_steps(self, program: Program, group: str, resources: Resources, guard: str | None = None) -> None:
        """Append the host steps that make the group, and of v1 the child steps by which the process joins it.

        Args:
            program: where to.
            group: the container's own group.
            resources: its limits.
            guard: as for :meth:`places`.

        Raises:
            Unsupported: a limit needs a controller that this host lacks.
        """
        writes = list(limits.v2_writes(resources) if self.version == "v2" else limits.v1_writes(resources))
        for controller, file, _ in writes:
            if controller not in self._by_controller:
                raise Unsupported(_missing(controller, file, self.version, self.controllers))
        places = list(self.places(group, resources, guard))
        for _, fd, name in places:
            if name == group:
                program.mkdir("make the control group", group, fd=fd, host=True)
        for controller, file, value in writes:
            if guard is not None and (controller,) == _GUARDS:
                continue
            fd = self._fds[self._by_controller[controller].path]
            program.write(
                f"set {file} = {value} in the control group", f"{group}/{file}", value.encode(), fd=fd, host=True
            )
        self.add_join(program, group, resources, guard)
        if self.version == "v2" and resources.devices:
            self._add_device_filter(program, group, resources)

    def add_join(
        self, program: Program, group: str, resources: Resources | None = None, guard: str | None = None
    ) -> None:
        """Append the steps by which a process joins a group that is there: by birth (v2), or by itself (v1).

        Args:
            program: where to.
            group: the container's own group.
            resources: its limits.
            guard: as for :meth:`places`.
        """
        for _, fd, name in self.places(group, resources, guard):
            if self.version == "v2":
                program.cgroup_fd = program.step(
                    lib.PYC_OP_OPEN, "open the control group", name, fd=fd, a=os.O_DIRECTORY, host=True, result=True
                )
            else:
                program.write("join the control group", f"{name}/tasks", b"0", fd=program.share(fd))

    @property
    def has_guards(self) -> bool:
        """Whether containers with the same rules for devices can share the group that has them.

        A group of version 1 with no controller but this one counts nothing, and its rules are a dozen writes.
        """
        hierarchy = self._by_controller.get("devices")
        return self.version == "v1" and hierarchy is not None and hierarchy.controllers == _GUARDS

    def make_guard(self, name: str, rules: Sequence[DeviceRule]) -> None:
        """Make a group for devices alone, see :attr:`has_guards`; removed like a container's own.

        Raises:
            StartError: it cannot be made; nothing is left.
            Unsupported: version 1 cannot express the rules.
        """
        writes = devices.v1_writes(rules)
        path = f"{self._by_controller['devices'].path}/{PARENT}/{name}"
        file = ""
        try:
            os.mkdir(path)  # noqa: PTH102
            for file, text in writes:
                Path(path, file).write_text(text)
        except OSError as error:
            self.remove(name)
            raise StartError("make the control group of the devices", f"{path}/{file}", error.errno or 0) from error

    def _add_device_filter(self, program: Program, group: str, resources: Resources) -> None:
        program.step(
            lib.PYC_OP_BPF_ATTACH,
            "attach the device filter to the control group",
            group,
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

    def read(self, group: str) -> Counters:
        """Return what the group of a container counted so far."""
        return self._counts.read(group)

    def kill(self, group: str) -> None:
        """Kill every process of a container's group, for containers without a pid namespace of their own."""
        for fd in self._fds.values():
            if self.version == "v2":
                with contextlib.suppress(FileNotFoundError):
                    kill = os.open(f"{group}/cgroup.kill", os.O_WRONLY | os.O_CLOEXEC, dir_fd=fd)
                    try:
                        os.write(kill, b"1")
                    finally:
                        os.close(kill)
                return
            if _kill_listed(fd, group):
                return

    def remove(self, group: str) -> None:
        """Remove the groups of a container whose processes are gone or being killed.

        Raises:
            StartError: a group is still in use after five seconds.
        """
        for fd in self._fds.values():
            name = group
            while name not in ("", ".."):
                err = new_error()
                if lib.pyc_remove_cgroup(fd, name.encode(), 5000 if name == group else 0, err) < 0:
                    if name == group:
                        raise StartError(*read_error(err))
                    break  # a parent that others use
                name = name.rpartition("/")[0]


def _kill_listed(parent_fd: int, group: str) -> bool:
    """Kill by cgroup.procs until none is left; v1 has no cgroup.kill. Return whether the group exists."""
    for _ in range(1000):
        try:
            fd = os.open(f"{group}/cgroup.procs", os.O_RDONLY | os.O_CLOEXEC, dir_fd=parent_fd)
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


def _count_blocks(parent_fd: int, device: int) -> bool:
    """Have version 1 count bytes of a device, which it does only once there is a limit: one that limits nothing."""
    entry = Path(f"/sys/dev/block/{os.major(device)}:{os.minor(device)}")
    disk = entry.resolve().parent if (entry / "partition").exists() else entry
    try:
        rule = f"{(disk / 'dev').read_text().strip()} {(1 << 64) - 1}"
        fd = os.open("blkio.throttle.read_bps_device", os.O_WRONLY | os.O_CLOEXEC, dir_fd=parent_fd)
        try:
            os.write(fd, rule.encode())
        finally:
            os.close(fd)
    except OSError:  # no block device behind the store, or a kernel without throttling: usage says None then
        return False
    return True


def _missing(controller: str, file: str, version: str, available: Iterable[str]) -> str:
    remedy = {
        "v1": f"mount it: mount -t cgroup -o {controller} cgroup /sys/fs/cgroup/{controller}",
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
    """A new v1 cpuset has no processors and no memory: give it its parent's, and have its children take its own."""
    Path(path, "cgroup.clone_children").write_text("1")
    for file in ("cpuset.cpus", "cpuset.mems"):
        target = Path(path, file)
        if not target.read_text().strip():
            target.write_text(Path(root, file).read_text())


def _is_used(controller: str, resources: Resources | None) -> bool:
    if controller in ("memory", "pids", "cpuacct", "blkio", "devices"):
        return True  # they count, or they guard
    if resources is None:
        return False
    cpu = resources.cpu
    if controller == "cpu":
        return cpu is not None
    if controller == "cpuset":
        return cpu is not None and bool(cpu.cpus or cpu.mems)
    return any(name == controller for name, _, _ in limits.v1_writes(resources))
