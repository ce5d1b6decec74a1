"""What config.json must mean beyond types and ranges: rules of the OCI runtime specification's text and of the kernel.

:func:`check_spec` is called by ``parse`` of :mod:`pycontainer.oci.runtime`. A rule is here when breaking it would
fail in the middle of a start with a bare errno, or do less than was asked; what depends on this host (does the hook
exist, is the namespace path one) is left to the start itself.
"""

from __future__ import annotations

import re
from collections import Counter
from typing import TYPE_CHECKING

import attrs

from pycontainer.errors import InvalidSpec, Unsupported

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from collections.abc import Set as AbstractSet

    from pycontainer.oci.runtime import (
        BlockIo,
        Cpu,
        DeviceRule,
        Hook,
        Hooks,
        IdMapping,
        IntelRdt,
        Linux,
        LinuxDevice,
        Memory,
        Mount,
        NetDevice,
        Process,
        Resources,
        Scheduler,
        Seccomp,
        Spec,
        SyscallRule,
        TimeOffsets,
    )

__all__ = ["check_process", "check_spec", "sysctl_namespace", "sysctl_path"]

_MAX_ID_RANGES = 340  # user_namespaces(7), since Linux 4.15
_MAX_MAJOR = 2**12  # makedev(3): what the kernel's dev_t holds
_MAX_MINOR = 2**20
_FILE_TYPE = 0o170000
_MAX_ERRNO = 4095  # what a filter may return, seccomp(2)
_INTERFACE_NAME = re.compile(r"[^\s/:\0]{1,15}")
_ERRNO_ACTIONS = ("SCMP_ACT_ERRNO", "SCMP_ACT_TRACE")

_IPC_SYSCTLS = frozenset(
    f"kernel/{name}"
    for name in (
        "auto_msgmni",
        "msg_next_id",
        "msgmax",
        "msgmnb",
        "msgmni",
        "sem",
        "sem_next_id",
        "shm_next_id",
        "shm_rmid_forced",
        "shmall",
        "shmmax",
        "shmmni",
    )
)


def _absolute(path: str, where: str) -> None:
    if not path.startswith("/"):
        raise InvalidSpec(where, f"should be an absolute path, is {path!r}")


def _distinct(values: Iterable[object], where: str, what: str) -> None:
    for value, count in Counter(values).items():
        if count > 1:
            raise InvalidSpec(where, f"the {what} {value} is there {count} times; once is what it can have")


def _within(value: int | None, low: int, high: int, where: str) -> None:
    if value is not None and not low <= value <= high:
        raise InvalidSpec(where, f"is {value}, outside {low} to {high}")


def check_spec(spec: Spec) -> Spec:
    """Return the container with mount destinations made absolute and wildcards of devices made ``None``.

    Raises:
        InvalidSpec: it breaks a rule.
        Unsupported: it asks for what Linux does not have.
    """
    if not spec.root.path:
        raise InvalidSpec("root.path", "is empty; name the directory of the root file system")
    if spec.process is not None:
        check_process(spec.process, "process.")
    for index, mount in enumerate(spec.mounts):
        _check_mount(mount, f"mounts[{index}]")
    _check_hooks(spec.hooks)
    kinds = {namespace.type for namespace in spec.linux.namespaces}
    for name in ("hostname", "domainname"):
        if getattr(spec, name) is not None and "uts" not in kinds:
            raise InvalidSpec(name, "would rename the host; add a namespace of type uts")
    _check_linux(spec.linux)
    _check_sysctl(spec, kinds)
    mounts = tuple(
        mount if mount.destination.startswith("/") else attrs.evolve(mount, destination=f"/{mount.destination}")
        for mount in spec.mounts
    )
    return attrs.evolve(spec, mounts=mounts, linux=_normal(spec.linux))


def _normal(linux: Linux) -> Linux:
    devices = tuple(
        device if device.file_mode is None else attrs.evolve(device, file_mode=device.file_mode & ~_FILE_TYPE)
        for device in linux.devices
    )
    if linux.resources is None:
        return attrs.evolve(linux, devices=devices)
    rules = tuple(
        attrs.evolve(
            rule, major=None if rule.major == -1 else rule.major, minor=None if rule.minor == -1 else rule.minor
        )
        for rule in linux.resources.devices
    )
    return attrs.evolve(linux, devices=devices, resources=attrs.evolve(linux.resources, devices=rules))


# ── process, mounts, hooks ────────────────────────────────────────────────────────────────────────────────────────────


def check_process(process: Process, at: str) -> None:
    """Check the process of a container.

    Args:
        process: it.
        at: the JSON path of it with a final dot, or ``""``.

    Raises:
        InvalidSpec: it breaks a rule.
        Unsupported: it asks for what Linux does not have.
    """
    if not process.args or not process.args[0]:
        raise InvalidSpec(f"{at}args", "is empty; name at least the program")
    _absolute(process.cwd, f"{at}cwd")
    _check_env(process.env, f"{at}env")
    _distinct((rlimit.type for rlimit in process.rlimits), f"{at}rlimits", "limit")
    for index, rlimit in enumerate(process.rlimits):
        if rlimit.soft > rlimit.hard:
            raise InvalidSpec(f"{at}rlimits[{index}].soft", f"is {rlimit.soft}, above the hard limit {rlimit.hard}")
    if process.capabilities is not None:
        excess = set(process.capabilities.effective) - set(process.capabilities.permitted)
        if excess:
            raise InvalidSpec(f"{at}capabilities.effective", f"has {', '.join(sorted(excess))}, not in permitted")
    if process.scheduler is not None:
        _check_scheduler(process.scheduler, f"{at}scheduler")
    if process.io_priority is not None:
        _within(process.io_priority.priority, 0, 7, f"{at}ioPriority.priority")


def _check_env(env: Sequence[str], where: str) -> None:
    for index, entry in enumerate(env):
        name, equals, _value = entry.partition("=")
        if not name or not equals:
            raise InvalidSpec(f"{where}[{index}]", f"should be NAME=value, is {entry!r}")


def _check_scheduler(scheduler: Scheduler, where: str) -> None:
    if scheduler.policy == "SCHED_ISO":
        raise Unsupported(
            f"read config.json: {where}.policy: Linux has never had SCHED_ISO; use SCHED_RR or SCHED_OTHER"
        )
    _within(scheduler.nice, -20, 19, f"{where}.nice")
    if scheduler.policy in ("SCHED_FIFO", "SCHED_RR"):
        _within(scheduler.priority, 1, 99, f"{where}.priority")
    elif scheduler.priority:
        raise InvalidSpec(f"{where}.priority", f"is for SCHED_FIFO and SCHED_RR only, not {scheduler.policy}")
    for name in ("runtime", "deadline", "period"):
        if getattr(scheduler, name) and scheduler.policy != "SCHED_DEADLINE":
            raise InvalidSpec(f"{where}.{name}", f"is for SCHED_DEADLINE only, not {scheduler.policy}")


def _check_mount(mount: Mount, where: str) -> None:
    if not mount.destination:
        raise InvalidSpec(f"{where}.destination", "is empty; name a path in the container")
    bind = mount.type == "bind" or "bind" in mount.options or "rbind" in mount.options
    if mount.type is None and not bind:
        raise InvalidSpec(f"{where}.type", "is missing; name the file system, or use the option bind or rbind")
    if bind and mount.source is None:
        raise InvalidSpec(f"{where}.source", "is missing; a bind mount needs the path on the host")
    if mount.uid_mappings or mount.gid_mappings:
        if not bind:
            raise InvalidSpec(f"{where}.uidMappings", "and gidMappings are for bind mounts only")
        _check_mappings(mount.uid_mappings, mount.gid_mappings, f"{where}.")


def _check_hooks(hooks: Hooks) -> None:
    moments: dict[str, tuple[Hook, ...]] = {
        "prestart": hooks.prestart,
        "createRuntime": hooks.create_runtime,
        "createContainer": hooks.create_container,
        "startContainer": hooks.start_container,
        "poststart": hooks.poststart,
        "poststop": hooks.poststop,
    }
    for moment, programs in moments.items():
        for index, hook in enumerate(programs):
            _absolute(hook.path, f"hooks.{moment}[{index}].path")
            _check_env(hook.env, f"hooks.{moment}[{index}].env")


# ── linux ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


def _check_linux(linux: Linux) -> None:
    _check_namespaces(linux)
    _check_net_devices(linux.net_devices)
    for index, device in enumerate(linux.devices):
        _check_device(device, f"linux.devices[{index}]")
    for name, paths in (("maskedPaths", linux.masked_paths), ("readonlyPaths", linux.readonly_paths)):
        for index, path in enumerate(paths):
            _absolute(path, f"linux.{name}[{index}]")
    if linux.resources is not None:
        _check_resources(linux.resources)
    if linux.seccomp is not None:
        _check_seccomp(linux.seccomp)
    if linux.intel_rdt is not None:
        _check_intel_rdt(linux.intel_rdt)
    if linux.personality is not None and linux.personality.flags:
        raise Unsupported(
            "read config.json: linux.personality.flags: the specification defines none so far; remove them"
        )


def _check_namespaces(linux: Linux) -> None:
    _distinct((namespace.type for namespace in linux.namespaces), "linux.namespaces", "namespace")
    for index, namespace in enumerate(linux.namespaces):
        if namespace.path is not None:
            _absolute(namespace.path, f"linux.namespaces[{index}].path")
    joined = {namespace.type: namespace.path for namespace in linux.namespaces}
    if linux.uid_mappings or linux.gid_mappings:
        if "user" not in joined:
            raise InvalidSpec("linux.uidMappings", "and gidMappings need a namespace of type user")
        _check_mappings(linux.uid_mappings, linux.gid_mappings, "linux.")
    elif "user" in joined and joined["user"] is None:
        raise InvalidSpec("linux.uidMappings", "and gidMappings are missing; a new user namespace needs both")
    if linux.time_offsets is not None:
        if "time" not in joined or joined["time"] is not None:
            raise InvalidSpec("linux.timeOffsets", "needs a new namespace of type time")
        _check_time_offsets(linux.time_offsets)
    for name, present, kind in (
        ("netDevices", linux.net_devices, "network"),
        ("maskedPaths", linux.masked_paths, "mount"),
        ("readonlyPaths", linux.readonly_paths, "mount"),
    ):
        if present and kind not in joined:
            raise InvalidSpec(f"linux.{name}", f"would change the host; add a namespace of type {kind}")


def _check_time_offsets(offsets: TimeOffsets) -> None:
    for name, offset in (("boottime", offsets.boottime), ("monotonic", offsets.monotonic)):
        if offset is not None:
            _within(offset.nanosecs, 0, 10**9 - 1, f"linux.timeOffsets.{name}.nanosecs")


def _check_net_devices(devices: Mapping[str, NetDevice]) -> None:
    for name, entry in devices.items():
        for interface in (name, entry.name or name):
            if not _INTERFACE_NAME.fullmatch(interface) or interface in (".", ".."):
                raise InvalidSpec(f'linux.netDevices["{name}"]', f"{interface!r} cannot be the name of an interface")
    _distinct((entry.name or name for name, entry in devices.items()), "linux.netDevices", "interface")


def _check_mappings(uids: Sequence[IdMapping], gids: Sequence[IdMapping], at: str) -> None:
    for name, ranges in (("uidMappings", uids), ("gidMappings", gids)):
        where = f"{at}{name}"
        if not 1 <= len(ranges) <= _MAX_ID_RANGES:
            raise InvalidSpec(where, f"has {len(ranges)} ranges; uidMappings and gidMappings have 1 to 340 each")
        for index, entry in enumerate(ranges):
            if entry.size == 0:
                raise InvalidSpec(f"{where}[{index}].size", "is 0; a range has at least one id")
        for side, starts in (
            ("containerID", [(entry.container_id, entry.size) for entry in ranges]),
            ("hostID", [(entry.host_id, entry.size) for entry in ranges]),
        ):
            free = 0
            for start, size in sorted(starts):
                if start < free:
                    raise InvalidSpec(where, f"ranges overlap at {side} {start}")
                free = start + size
            if free > 2**32 - 1:  # 2**32 - 1 itself is "no id"
                raise InvalidSpec(where, f"a range of {side} ends at {free - 1}; the last id is {2**32 - 2}")


def _check_device(device: LinuxDevice, where: str) -> None:
    _absolute(device.path, f"{where}.path")
    numbers = (("major", device.major, _MAX_MAJOR), ("minor", device.minor, _MAX_MINOR))
    for name, number, end in numbers:
        if device.type == "p":
            continue
        if number is None:
            raise InvalidSpec(f"{where}.{name}", f"is missing; a device of type {device.type} has one")
        _within(number, 0, end - 1, f"{where}.{name}")
    kind = (device.file_mode or 0) & _FILE_TYPE
    if kind not in (0, {"c": 0o020000, "u": 0o020000, "b": 0o060000, "p": 0o010000}[device.type]):
        raise InvalidSpec(f"{where}.fileMode", f"{device.file_mode:#o} is of another type than {device.type}")


# ── resources ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def _check_resources(resources: Resources) -> None:
    at = "linux.resources"
    for index, rule in enumerate(resources.devices):
        _check_device_rule(rule, f"{at}.devices[{index}]")
    if resources.memory is not None:
        _check_memory(resources.memory, f"{at}.memory")
    if resources.cpu is not None:
        _check_cpu(resources.cpu, f"{at}.cpu")
    if resources.block_io is not None:
        _check_block_io(resources.block_io, f"{at}.blockIO")
    _distinct((limit.page_size for limit in resources.hugepage_limits), f"{at}.hugepageLimits", "page size")
    for name, limit in resources.rdma.items():
        if limit.hca_handles is None and limit.hca_objects is None:
            raise InvalidSpec(f'{at}.rdma["{name}"]', "needs hcaHandles or hcaObjects")
    for name in resources.unified:
        if not re.fullmatch(r"[^/\s.]+\.[^/\s]+", name):
            raise InvalidSpec(f'{at}.unified["{name}"]', "is not the name of a cgroup file such as memory.high")


def _check_device_rule(rule: DeviceRule, where: str) -> None:
    for name, number, end in (("major", rule.major, _MAX_MAJOR), ("minor", rule.minor, _MAX_MINOR)):
        _within(number, -1, end - 1, f"{where}.{name}")
    if len(set(rule.access)) != len(rule.access):
        raise InvalidSpec(f"{where}.access", f"has a letter twice: {rule.access!r}")


def _check_memory(memory: Memory, where: str) -> None:
    for name in ("limit", "reservation", "swap", "kernel", "kernel_tcp"):
        value = getattr(memory, name)
        if value is not None and value < -1:
            shown = "kernelTCP" if name == "kernel_tcp" else name
            raise InvalidSpec(f"{where}.{shown}", f"is {value}; it is bytes, or -1 for no limit")
    _within(memory.swappiness, 0, 100, f"{where}.swappiness")
    if memory.swap is not None and memory.swap > 0:
        if memory.limit is None or memory.limit == -1:
            raise InvalidSpec(f"{where}.swap", "needs a limit; it counts memory and swap together")
        if memory.swap < memory.limit:
            raise InvalidSpec(f"{where}.swap", f"counts memory and swap together, so it cannot be below {memory.limit}")


def _check_cpu(cpu: Cpu, where: str) -> None:
    for name, value in (("cpus", cpu.cpus), ("mems", cpu.mems)):
        if value is not None and not re.fullmatch(r"\d+(-\d+)?(,\s*\d+(-\d+)?)*\s*", value):
            raise InvalidSpec(f"{where}.{name}", f"should be a list such as '0-3,7', is {value!r}")
    _within(cpu.idle, 0, 1, f"{where}.idle")
    if cpu.quota is not None and cpu.quota < -1:
        raise InvalidSpec(f"{where}.quota", f"is {cpu.quota}; it is microseconds, or -1 for no limit")


def _check_block_io(block_io: BlockIo, where: str) -> None:
    weights = [(f"{where}.weight", block_io.weight), (f"{where}.leafWeight", block_io.leaf_weight)]
    for index, device in enumerate(block_io.weight_device):
        weights.append((f"{where}.weightDevice[{index}].weight", device.weight))
        weights.append((f"{where}.weightDevice[{index}].leafWeight", device.leaf_weight))
        if device.weight is None and device.leaf_weight is None:
            raise InvalidSpec(f"{where}.weightDevice[{index}]", "needs weight or leafWeight")
    for path, weight in weights:
        if weight:  # 0 leaves it alone
            _within(weight, 10, 1000, path)


def _check_intel_rdt(rdt: IntelRdt) -> None:
    if rdt.clos_id is not None and (rdt.clos_id in (".", "..") or re.search(r"[/\n]", rdt.clos_id)):
        raise InvalidSpec("linux.intelRdt.closID", f"{rdt.clos_id!r} cannot be the name of a directory in resctrl")


# ── seccomp and sysctl ────────────────────────────────────────────────────────────────────────────────────────────────


def _check_seccomp(seccomp: Seccomp) -> None:
    at = "linux.seccomp"
    _check_errno(seccomp.default_action, seccomp.default_errno_ret, f"{at}.defaultErrnoRet")
    if seccomp.default_action == "SCMP_ACT_NOTIFY":
        raise InvalidSpec(
            f"{at}.defaultAction", "cannot be SCMP_ACT_NOTIFY: the start itself would wait for the listener"
        )
    for index, rule in enumerate(seccomp.syscalls):
        _check_syscall(rule, f"{at}.syscalls[{index}]")
    notifies = any(rule.action == "SCMP_ACT_NOTIFY" for rule in seccomp.syscalls)
    if notifies and seccomp.listener_path is None:
        raise InvalidSpec(f"{at}.listenerPath", "is missing; SCMP_ACT_NOTIFY needs somebody to notify")
    if seccomp.listener_metadata is not None and seccomp.listener_path is None:
        raise InvalidSpec(f"{at}.listenerMetadata", "needs listenerPath")
    if seccomp.listener_path is not None:
        _absolute(seccomp.listener_path, f"{at}.listenerPath")
    if "SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV" in seccomp.flags and not notifies:
        raise InvalidSpec(f"{at}.flags", "SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV needs a rule with SCMP_ACT_NOTIFY")


def _check_syscall(rule: SyscallRule, where: str) -> None:
    if not rule.names or not all(rule.names):
        raise InvalidSpec(f"{where}.names", "needs names of system calls")
    _check_errno(rule.action, rule.errno_ret, f"{where}.errnoRet")
    if rule.action == "SCMP_ACT_NOTIFY" and "write" in rule.names:
        raise InvalidSpec(f"{where}.names", "SCMP_ACT_NOTIFY cannot have write: handing over the listener needs it")


def _check_errno(action: str, errno: int | None, where: str) -> None:
    if errno is not None and action not in _ERRNO_ACTIONS:
        raise InvalidSpec(where, f"is for {' and '.join(_ERRNO_ACTIONS)} only, not {action}")
    _within(errno, 0, _MAX_ERRNO if action == "SCMP_ACT_ERRNO" else 2**16 - 1, where)


def sysctl_path(name: str) -> str:
    """Return where a kernel parameter is below ``/proc/sys``.

    As in sysctl(8), the first separator decides: ``net.ipv4.conf.eth0/1.forwarding`` and
    ``net/ipv4/conf/eth0.1/forwarding`` are the same, each keeping the dot of the interface's name.

    Raises:
        ValueError: it is not the name of a parameter, or would lead elsewhere.

    >>> sysctl_path("net.ipv4.conf.eth0/1.forwarding")
    'net/ipv4/conf/eth0.1/forwarding'
    """
    separator = re.search(r"[./]", name)
    path = name.translate(str.maketrans("./", "/.")) if separator is not None and separator[0] == "." else name
    parts = path.split("/")
    if len(parts) < 2 or not all(parts) or "." in parts or ".." in parts or "\0" in path:  # noqa: PLR2004
        msg = f"{name!r} is not the name of a kernel parameter such as 'net.ipv4.ip_forward'"
        raise ValueError(msg)
    return path


def _check_sysctl(spec: Spec, kinds: AbstractSet[str]) -> None:
    paths: list[str] = []
    for name in spec.linux.sysctl:
        where = f'linux.sysctl["{name}"]'
        try:
            path = sysctl_path(name)
        except ValueError as error:
            raise InvalidSpec(where, str(error)) from error
        paths.append(path)
        if path == "kernel/hostname":
            raise InvalidSpec(where, "use the property hostname")
        if path == "kernel/domainname" and spec.domainname is not None:
            raise InvalidSpec(where, "the property domainname says the same; use that alone")
        kind = sysctl_namespace(path)
        if kind is None:
            raise InvalidSpec(where, "is not kept per namespace, so it would change the host")
        if kind not in kinds:
            raise InvalidSpec(where, f"would change the host; add a namespace of type {kind}")
    _distinct(paths, "linux.sysctl", "parameter")


def sysctl_namespace(path: str) -> str | None:
    """Return the kind of namespace that keeps a kernel parameter, or None when the whole host has it."""
    if path.startswith("net/"):
        return "network"
    if path in _IPC_SYSCTLS or path.startswith("fs/mqueue/"):
        return "ipc"
    if path == "kernel/domainname":
        return "uts"
    return "user" if path.startswith("user/") else None
