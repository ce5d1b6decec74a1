"""From an image's configuration and a caller's wishes to a runtime document (OCI runtime specification, config.md)."""

from __future__ import annotations

import functools
import os
import re
import stat
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, get_args

import attrs

from pycontainer.errors import StoreError
from pycontainer.model import Device, IdMap, ImageConfig, Limits, Mount, Rlimit, parse_size
from pycontainer.oci import defaults
from pycontainer.oci import runtime as oci
from pycontainer.records import Record, fields_of
from pycontainer.runtime import capabilities, devices

if TYPE_CHECKING:
    from pycontainer.runtime.users import Identity

__all__ = ["Namespace", "Options", "document", "etc_files"]

Namespace: TypeAlias = Literal["private", "host"]
_HOSTNAME = re.compile(r"[A-Za-z0-9]([A-Za-z0-9.-]{0,62}[A-Za-z0-9])?")
_PERIOD = 100_000
_INFINITY = (1 << 64) - 1


def _strings(value: Sequence[str]) -> tuple[str, ...]:
    if isinstance(value, str):
        msg = f"a list of texts is wanted, not one text: {value!r}"
        raise TypeError(msg)
    return tuple(value)


def _command(value: str | Sequence[str] | None) -> tuple[str, ...] | None:
    if value is None:
        return None
    if isinstance(value, str):
        return (value,)
    return tuple(os.fspath(part) for part in value)


@attrs.frozen(kw_only=True, eq=False, repr=False)
class Options(Record):
    """Everything that may be asked of a container; :meth:`pycontainer.Engine.run` tells what each means."""

    command: tuple[str, ...] | None = attrs.field(default=None, converter=_command)
    entrypoint: tuple[str, ...] | None = attrs.field(default=None, converter=_command)
    env: Mapping[str, str] = attrs.field(factory=dict)
    workdir: str | None = None
    user: str | None = None
    groups: tuple[str, ...] = attrs.field(default=(), converter=_strings)
    hostname: str | None = None
    domainname: str | None = None
    extra_hosts: Mapping[str, str] = attrs.field(factory=dict)
    dns: tuple[str, ...] = attrs.field(default=(), converter=_strings)
    network: str = "none"
    mounts: tuple[Mount, ...] = ()
    limits: Limits = attrs.field(factory=Limits)
    read_only: bool = False
    cap_add: tuple[str, ...] = attrs.field(default=(), converter=_strings)
    cap_drop: tuple[str, ...] = attrs.field(default=(), converter=_strings)
    privileged: bool = False
    no_new_privileges: bool = False
    masked_paths: tuple[str, ...] | None = None
    readonly_paths: tuple[str, ...] | None = None
    rlimits: tuple[Rlimit, ...] = ()
    sysctls: Mapping[str, str] = attrs.field(factory=dict)
    oom_score_adj: int | None = None
    devices: tuple[Device, ...] = ()
    shm_size: int = attrs.field(default=64 << 20, converter=parse_size)
    userns: tuple[IdMap, ...] = ()
    pid: Namespace = "private"
    ipc: Namespace = "private"
    uts: Namespace = "private"
    cgroupns: Namespace = "private"
    timens: Mapping[str, float] | None = None
    tty: bool = False

    def __attrs_post_init__(self) -> None:
        if self.network not in ("none", "host"):
            msg = f"network must be 'none' or 'host', got {self.network!r}"
            raise ValueError(msg)
        for name in ("pid", "ipc", "uts", "cgroupns"):
            if getattr(self, name) not in ("private", "host"):
                msg = f"{name} must be 'private' or 'host', got {getattr(self, name)!r}"
                raise ValueError(msg)
        for name in self.extra_hosts:
            if not name or any(c.isspace() or c == "#" for c in name):
                msg = f"not a host name: {name!r}"
                raise ValueError(msg)
        if self.hostname is not None and not _HOSTNAME.fullmatch(self.hostname):
            msg = f"not a host name: {self.hostname!r}"
            raise ValueError(msg)
        if self.dns or self.extra_hosts:
            _check_addresses(*self.dns, *self.extra_hosts.values())

    def to_json(self) -> dict[str, Any]:
        """Return the options as values of JSON."""
        return {field.name: _plain(getattr(self, field.name)) for field in fields_of(Options)}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Options:
        """Return the options that :meth:`to_json` gave.

        Raises:
            StoreError: there are some that this version does not know.
        """
        try:
            made = {name: tuple(kind(**item) for item in value[name]) for name, kind in _LISTS.items()}
            lists = {name: tuple(item) for name, item in value.items() if isinstance(item, list) and name not in made}
            return cls(**{**value, **lists, **made, "limits": Limits(**value["limits"])})
        except (KeyError, TypeError) as error:
            msg = f"a container asks for what this version does not know: {error}; use the pycontainer that made it"
            raise StoreError(msg) from error


def _plain(value: object) -> object:
    if isinstance(value, Record):
        return {field.name: _plain(getattr(value, field.name)) for field in fields_of(value.__class__)}
    if isinstance(value, Mapping):
        return dict(value)
    return [_plain(item) for item in value] if isinstance(value, tuple) else value


# What else than text is in the lists of the options.
_LISTS: dict[str, type[Any]] = {"mounts": Mount, "rlimits": Rlimit, "devices": Device, "userns": IdMap}


def _check_addresses(*addresses: str) -> None:
    import ipaddress  # slow to import, and few containers need it

    for address in addresses:
        ipaddress.ip_address(address)


def full_command(config: ImageConfig, options: Options) -> tuple[str, ...]:
    """Return program and arguments: the caller's before the image's; a new entrypoint drops the image's command.

    Raises:
        ValueError: there is nothing to run.
    """
    entrypoint = options.entrypoint if options.entrypoint is not None else config.entrypoint or ()
    command = options.command
    if command is None:
        command = config.command or () if options.entrypoint is None else ()
    args = (*entrypoint, *command)
    if not args:
        msg = "nothing to run: the image has neither entrypoint nor command; give a command"
        raise ValueError(msg)
    return args


def environment(config: ImageConfig, options: Options, hostname: str, home: str) -> tuple[str, ...]:
    """Return ``NAME=value`` texts: defaults, then the image's, then the caller's."""
    env = {"PATH": defaults.PATH, "HOSTNAME": hostname}
    if options.tty:
        env["TERM"] = "xterm"
    env.update(config.env)
    env.update(options.env)
    env.setdefault("HOME", home)
    for name in env:
        if not name or "=" in name:
            msg = f"not the name of an environment variable: {name!r}"
            raise ValueError(msg)
    return tuple(f"{name}={value}" for name, value in env.items())


def document(container_id: str, config: ImageConfig, options: Options, identity: Identity) -> oci.Spec:
    """Return the runtime document of a container.

    Raises:
        ValueError: an option makes no sense.
        Unsupported: this host cannot do it.
    """
    host_uts = options.uts == "host"
    default_name = os.uname().nodename if options.network == "host" or host_uts else container_id[:12]
    hostname = options.hostname or default_name
    if host_uts and (options.hostname or options.domainname):
        msg = "hostname and domainname cannot be set with uts='host': it would rename the host"
        raise ValueError(msg)
    return oci.Spec(
        root=oci.Root(path="rootfs", readonly=options.read_only),
        hostname=None if host_uts else hostname,
        domainname=options.domainname,
        process=oci.Process(
            terminal=options.tty,
            args=full_command(config, options),
            env=environment(config, options, hostname, identity.home),
            cwd=_workdir(config, options),
            user=oci.User(uid=identity.uid, gid=identity.gid, additional_gids=identity.groups),
            capabilities=_capability_sets(options.cap_add, options.cap_drop, options.privileged),
            rlimits=tuple(map(_rlimit, options.rlimits)),
            no_new_privileges=options.no_new_privileges,
            oom_score_adj=options.oom_score_adj,
        ),
        mounts=_mounts(options),
        linux=_linux(options),
    )


def _workdir(config: ImageConfig, options: Options) -> str:
    workdir = options.workdir if options.workdir is not None else config.workdir or "/"
    if not workdir.startswith("/"):
        if options.workdir is not None:
            msg = f"the working directory is an absolute path in the container, not {workdir!r}"
            raise ValueError(msg)
        workdir = f"/{workdir}"
    return workdir


@functools.lru_cache(maxsize=256)
def _capability_sets(add: tuple[str, ...], drop: tuple[str, ...], privileged: bool) -> oci.Capabilities:  # noqa: FBT001
    """No inheritable set: it would let a container gain capabilities through files (CVE-2022-24769)."""
    names = capabilities.resolve(add, drop, privileged=privileged)
    return oci.Capabilities(bounding=names, effective=names, permitted=names)


def _rlimit(limit: Rlimit) -> oci.Rlimit:
    def value(number: int) -> int:
        return _INFINITY if number < 0 else number

    name = f"RLIMIT_{limit.type.upper()}"
    if name not in get_args(oci.RlimitType):
        msg = f"not a resource limit: {limit.type!r}; see getrlimit(2)"
        raise ValueError(msg)
    return oci.Rlimit(type=name, soft=value(limit.soft), hard=value(limit.hard))  # type: ignore[arg-type]


@functools.lru_cache(maxsize=256)
def _base_mounts(*, privileged: bool, shm_size: int, host_ipc: bool, host_sys: bool) -> tuple[oci.Mount, ...]:
    mounts = []
    for mount in defaults.MOUNTS:
        if mount.destination == "/dev/shm":  # noqa: S108 - the container's
            options = tuple(word for word in mount.options if not word.startswith("size="))
            mount = attrs.evolve(mount, options=(*options, f"size={shm_size}"))  # noqa: PLW2901
            if host_ipc:
                mount = _host_bind(mount.destination)  # noqa: PLW2901
        elif mount.destination == "/sys" and host_sys:
            # sysfs shows a network namespace, and this one belongs to the host
            mount = _host_bind("/sys", "rro")  # noqa: PLW2901
        elif privileged and "ro" in mount.options:
            mount = attrs.evolve(mount, options=tuple(word for word in mount.options if word != "ro"))  # noqa: PLW2901
        mounts.append(mount)
    return tuple(mounts)


def _host_bind(path: str, *words: str) -> oci.Mount:
    return oci.Mount(destination=path, type="bind", source=path, options=("rbind", "nosuid", "noexec", "nodev", *words))


def _mounts(options: Options) -> tuple[oci.Mount, ...]:
    base = _base_mounts(
        privileged=options.privileged,
        shm_size=options.shm_size,
        host_ipc=options.ipc == "host",
        host_sys=bool(options.userns) and options.network == "host",
    )
    if not options.mounts:
        return base
    own = [_user_mount(mount) for mount in options.mounts]
    taken = {mount.destination.rstrip("/") for mount in own}
    if len(taken) != len(own):
        seen = [mount.destination for mount in own]
        double = next((path for path in seen if seen.count(path) > 1), seen[0])
        msg = f"two mounts have the same target: {double}"
        raise ValueError(msg)
    # Parents before children, whatever the order given: /a/b must not disappear below /a.
    own.sort(key=lambda mount: mount.destination.rstrip("/").count("/"))
    return (*(mount for mount in base if mount.destination not in taken), *own)


def _user_mount(mount: Mount) -> oci.Mount:
    words = list(mount.options)
    if mount.type == "tmpfs":
        words = ["nosuid", "nodev", *words, f"mode={mount.mode:o}"]
        if mount.size is not None:
            words.append(f"size={mount.size}")
        if mount.read_only:
            words.append("ro")
        return oci.Mount(destination=mount.target, type="tmpfs", source="tmpfs", options=tuple(words))
    words = ["rbind", mount.propagation, *words]
    if mount.read_only:
        words.append("rro")
    return oci.Mount(destination=mount.target, type="bind", source=mount.source, options=tuple(words))


def _linux(options: Options) -> oci.Linux:
    return oci.Linux(
        namespaces=_namespaces(options),
        uid_mappings=_id_mappings(options.userns),
        gid_mappings=_id_mappings(options.userns),
        time_offsets=_time_offsets(options.timens),
        devices=_devices(options),
        resources=_resources(options.limits, _device_rules(options)),
        sysctl=_sysctls(options),
        masked_paths=_paths(options, options.masked_paths, _usual_masks()),
        readonly_paths=_paths(options, options.readonly_paths, defaults.READONLY_PATHS),
    )


@functools.lru_cache(maxsize=1)
def _usual_masks() -> tuple[str, ...]:
    root = Path("/")
    found = [path for pattern in defaults.MASKED_GLOBS for path in sorted(map(str, root.glob(pattern.lstrip("/"))))]
    return (*defaults.MASKED_PATHS, *found)


def _paths(options: Options, given: tuple[str, ...] | None, usual: tuple[str, ...]) -> tuple[str, ...]:
    if given is not None:
        return tuple(given)
    return () if options.privileged else usual


_NAMESPACES = {kind: oci.Namespace(type=kind) for kind in get_args(oci.NamespaceType)}


def _namespaces(options: Options) -> tuple[oci.Namespace, ...]:
    own = {
        "mount": True,
        "pid": options.pid == "private",
        "network": options.network != "host",
        "ipc": options.ipc == "private",
        "uts": options.uts == "private",
        "cgroup": options.cgroupns == "private",
        "user": bool(options.userns),
        "time": options.timens is not None,
    }
    return tuple(_NAMESPACES[kind] for kind, wanted in own.items() if wanted)


def _id_mappings(maps: tuple[IdMap, ...]) -> tuple[oci.IdMapping, ...]:
    return tuple(oci.IdMapping(container_id=m.inside, host_id=m.outside, size=m.count) for m in maps)


def _time_offsets(offsets: Mapping[str, float] | None) -> oci.TimeOffsets | None:
    if not offsets:
        return None
    values = {}
    for name, seconds in offsets.items():
        if name not in ("monotonic", "boottime"):
            msg = f"timens: the clocks are 'monotonic' and 'boottime', not {name!r}"
            raise ValueError(msg)
        whole, fraction = divmod(seconds, 1)
        values[name] = oci.TimeOffset(secs=int(whole), nanosecs=int(fraction * 1_000_000_000))
    return oci.TimeOffsets(**values)


def _sysctls(options: Options) -> Mapping[str, str]:
    """Only what belongs to the container's namespaces; all else would change the host."""
    if not options.sysctls:
        return {}
    from pycontainer.oci.runtime_rules import sysctl_namespace, sysctl_path  # few containers need them

    own = {"network": options.network != "host", "ipc": options.ipc == "private", "uts": options.uts == "private"}
    for name in options.sysctls:
        if not own.get(sysctl_namespace(sysctl_path(name)) or "", False):
            msg = (
                f"sysctl {name} is not of a namespace of this container: setting it would change the host. net.* needs "
                "network='none'; kernel.shm*, kernel.msg*, kernel.sem and fs.mqueue.* need ipc='private'"
            )
            raise ValueError(msg)
    return options.sysctls


# ── devices and limits ──


def _devices(options: Options) -> tuple[oci.LinuxDevice, ...]:
    wanted = list(options.devices)
    if options.privileged:
        named = {device.source for device in wanted}
        wanted += [Device(path) for path in _host_devices() if path not in named]
    return tuple(_device(device) for device in wanted)


def _device(device: Device) -> oci.LinuxDevice:
    found = devices.stat_device(device.source)
    return oci.LinuxDevice(
        type=found.type,
        path=device.target,
        major=found.major,
        minor=found.minor,
        file_mode=stat.S_IMODE(found.mode),
        uid=found.uid,
        gid=found.gid,
    )


def _host_devices() -> list[str]:
    """Return the device nodes below /dev, without those that each container has of its own."""
    found = []
    for directory, directories, files in os.walk("/dev"):
        directories[:] = [name for name in directories if name not in ("pts", "shm", "mqueue", "fd")]
        for name in files:
            path = f"{directory}/{name}"
            mode = os.lstat(path).st_mode
            if (stat.S_ISCHR(mode) or stat.S_ISBLK(mode)) and path not in ("/dev/console", "/dev/ptmx", "/dev/tty"):
                found.append(path)
    return sorted(found)


def _device_rules(options: Options) -> tuple[oci.DeviceRule, ...]:
    if options.privileged:
        return (oci.DeviceRule(allow=True),)
    if not options.devices:
        return defaults.DEVICE_RULES
    extra = []
    for device in options.devices:
        found = devices.stat_device(device.source)
        extra.append(
            oci.DeviceRule(allow=True, type=found.type, major=found.major, minor=found.minor, access=device.access)
        )
    return (*defaults.DEVICE_RULES, *extra)


@functools.lru_cache(maxsize=256)
def _resources(limits: Limits, rules: tuple[oci.DeviceRule, ...]) -> oci.Resources:
    memory = cpu = pids = io = None
    if limits.memory is not None or limits.memory_reservation is not None:
        swap = limits.memory_swap
        if swap is None and limits.memory is not None and defaults_swap():
            swap = 2 * limits.memory
        memory = oci.Memory(limit=limits.memory, swap=swap, reservation=limits.memory_reservation)
    if any(v is not None for v in (limits.cpus, limits.cpu_shares, limits.cpuset_cpus, limits.cpuset_mems)):
        cpu = oci.Cpu(
            quota=None if limits.cpus is None else max(1000, int(limits.cpus * _PERIOD)),
            period=None if limits.cpus is None else _PERIOD,
            shares=limits.cpu_shares,
            cpus=limits.cpuset_cpus,
            mems=limits.cpuset_mems,
        )
    if limits.pids is not None:
        pids = oci.Pids(limit=limits.pids)
    if limits.io_weight is not None:
        io = oci.BlockIo(weight=limits.io_weight)
    return oci.Resources(devices=rules, memory=memory, cpu=cpu, pids=pids, block_io=io)


@functools.lru_cache(maxsize=1)
def defaults_swap() -> bool:
    """Whether the kernel counts swap for groups; without it docker's default of twice the memory cannot be set."""
    return any(
        Path(path).exists()
        for path in ("/sys/fs/cgroup/memory/memory.memsw.limit_in_bytes", "/sys/fs/cgroup/pycontainer/memory.swap.max")
    )


# ── /etc ──


def etc_files(hostname: str, options: Options) -> dict[str, bytes]:
    """Return the three files of /etc that are the container's, not the image's."""
    if options.network == "host":
        hosts = _read("/etc/hosts")
    else:
        hosts = (
            "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\nff02::1\tip6-allnodes\n"
            f"ff02::2\tip6-allrouters\n127.0.1.1\t{hostname}\n"
        )
    hosts += "".join(f"{address}\t{name}\n" for name, address in options.extra_hosts.items())
    if options.dns:
        resolv = "".join(f"nameserver {address}\n" for address in options.dns)
    else:
        resolv = _read("/etc/resolv.conf") if options.network == "host" else ""
    return {
        "/etc/hostname": f"{hostname}\n".encode(),
        "/etc/hosts": hosts.encode(errors="surrogateescape"),
        "/etc/resolv.conf": resolv.encode(errors="surrogateescape"),
    }


def _read(path: str) -> str:
    try:
        return Path(path).read_text(errors="surrogateescape")
    except FileNotFoundError:
        return ""
