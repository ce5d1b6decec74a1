"""The values that the public API takes and gives: frozen, checked when made, no input or output of their own.

Sizes are bytes; text such as ``"256M"`` is taken wherever a size is. Times are seconds.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Literal, TypeAlias

import attrs

from pycontainer.records import Record

__all__ = [
    "Change",
    "ContainerState",
    "Device",
    "IdMap",
    "ImageConfig",
    "Limits",
    "Mount",
    "Propagation",
    "Result",
    "Rlimit",
    "Size",
    "Usage",
    "parse_size",
]

Size: TypeAlias = int | str

_UNITS = {"": 0, "b": 0, "k": 1, "m": 2, "g": 3, "t": 4, "p": 5}
_SIZE = re.compile(r"(?P<number>\d{1,19}(?:\.\d{1,19})?)\s*(?P<unit>[bkmgtp]?)(?:i?b)?", re.IGNORECASE)


def parse_size(value: Size) -> int:
    """Return a size in bytes.

    Args:
        value: bytes, or text with a binary unit as docker takes it: ``"64k"``, ``"256M"``, ``"1.5GiB"``.

    Raises:
        ValueError: it is negative or not a size.

    >>> parse_size("256M") == 256 * 1024**2
    True
    """
    if isinstance(value, str):
        match = _SIZE.fullmatch(value.strip())
        if match is None:
            msg = f"not a size: {value!r}; write bytes or a number with k, m, g or t, as in '256M'"
            raise ValueError(msg)
        factor: int = 1024 ** _UNITS[match["unit"].lower()]
        whole, _, fraction = match["number"].partition(".")
        return int(whole) * factor + (int(fraction) * factor // 10 ** len(fraction) if fraction else 0)
    if isinstance(value, bool) or not isinstance(value, int):
        msg = f"a size is an int or a str, not {type(value).__name__}"
        raise TypeError(msg)
    if value < 0:
        msg = f"a size cannot be negative: {value}"
        raise ValueError(msg)
    return value


def _optional_size(value: Size | None) -> int | None:
    return None if value is None else parse_size(value)


def _strings(values: Iterable[str]) -> tuple[str, ...]:
    return tuple(values)


def _rlimit_name(text: str) -> str:
    return text.lower().removeprefix("rlimit_")


def _swap(value: Size | None) -> int | None:
    return -1 if value == -1 else _optional_size(value)


@attrs.frozen(kw_only=True, eq=False, repr=False)
class Limits(Record):
    """What a container may use. ``None`` leaves a thing unlimited.

    Attributes:
        memory: bytes of memory, page cache included.
        memory_swap: bytes of memory and swap together, -1 for no limit on swap; as in docker, the default with
            a memory limit is twice that limit.
        memory_reservation: soft limit in bytes, applied under pressure.
        cpus: processors' worth of time, e.g. 1.5.
        cpu_shares: relative weight against other containers, 2 to 262144; the kernel's default is 1024.
        cpuset_cpus: processors that may be used, e.g. ``"0-2,4"``.
        cpuset_mems: memory nodes that may be used.
        pids: processes and threads at one time.
        io_weight: relative weight for block devices, 10 to 1000.

    >>> Limits(memory="256M", cpus=1.5, pids=64).memory
    268435456
    """

    memory: int | None = attrs.field(default=None, converter=_optional_size)
    memory_swap: int | None = attrs.field(default=None, converter=_swap)
    memory_reservation: int | None = attrs.field(default=None, converter=_optional_size)
    cpus: float | None = attrs.field(default=None)
    cpu_shares: int | None = attrs.field(default=None)
    cpuset_cpus: str | None = None
    cpuset_mems: str | None = None
    pids: int | None = attrs.field(default=None)
    io_weight: int | None = attrs.field(default=None)

    def __attrs_post_init__(self) -> None:
        _check_range("cpus", self.cpus, 0.01, 4096)
        _check_range("cpu_shares", self.cpu_shares, 2, 262144)
        _check_range("pids", self.pids, 1, 4194304)
        _check_range("io_weight", self.io_weight, 10, 1000)
        if self.memory is not None and self.memory < 512 * 1024:
            msg = f"memory must be at least 512K, got {self.memory} bytes"
            raise ValueError(msg)
        if self.memory_swap is not None and self.memory_swap >= 0:
            if self.memory is None:
                msg = "memory_swap needs memory"
                raise ValueError(msg)
            if self.memory_swap < self.memory:
                msg = "memory_swap counts memory and swap together, so it cannot be below memory"
                raise ValueError(msg)
        for name in ("cpuset_cpus", "cpuset_mems"):
            value = getattr(self, name)
            if value is not None and not re.fullmatch(r"\d+(-\d+)?(,\d+(-\d+)?)*", value):
                msg = f"{name} is a list such as '0-2,4', not {value!r}"
                raise ValueError(msg)


def _texts(values: Iterable[str]) -> tuple[str, ...]:
    """Refuse one text where a list of them is wanted: its letters would be taken one by one."""
    if isinstance(values, str):
        msg = f"a list of texts is wanted, not one text: {values!r}"
        raise TypeError(msg)
    return tuple(values)


def _mapping(values: Mapping[str, str]) -> dict[str, str]:
    return dict(values)


def _check_range(name: str, value: float | None, low: float, high: float) -> None:
    if value is not None and not low <= value <= high:
        msg = f"{name} must be between {low:g} and {high:g}, got {value}"
        raise ValueError(msg)


ContainerState: TypeAlias = Literal["created", "running", "exited"]
Propagation: TypeAlias = Literal["private", "rprivate", "slave", "rslave", "shared", "rshared"]


@attrs.frozen(kw_only=True, eq=False, repr=False)
class Mount(Record):
    """Something mounted into a container; make one with :meth:`bind` or :meth:`tmpfs`.

    Attributes:
        type: ``"bind"`` or ``"tmpfs"``.
        target: absolute path in the container; made if it is not in the image.
        source: absolute path on the host (bind only).
        read_only: no writes, in nested mounts neither.
        propagation: how later mounts travel, see mount_namespaces(7); bind only.
        size: limit in bytes (tmpfs only).
        mode: permission bits of the mounted root (tmpfs only).
        options: more mount options, e.g. ``("noexec",)``.
    """

    type: Literal["bind", "tmpfs"]
    target: str = attrs.field()
    source: str | None = None
    read_only: bool = False
    propagation: Propagation = "rprivate"
    size: int | None = attrs.field(default=None, converter=_optional_size)
    mode: int = 0o1777
    options: tuple[str, ...] = attrs.field(default=(), converter=_strings)

    @target.validator
    def _check_target(self, _attribute: object, value: str) -> None:
        if not value.startswith("/") or "\0" in value:
            msg = f"the target of a mount is an absolute path in the container, not {value!r}"
            raise ValueError(msg)

    @classmethod
    def bind(
        cls,
        source: str,
        target: str,
        *,
        read_only: bool = False,
        propagation: Propagation = "rprivate",
        options: Sequence[str] = (),
    ) -> Mount:
        """Show a file or directory of the host in the container.

        >>> Mount.bind("/srv/data", "/data", read_only=True).target
        '/data'
        """
        if not source.startswith("/"):
            msg = f"the source of a bind mount is an absolute path on the host, not {source!r}"
            raise ValueError(msg)
        return cls(
            type="bind",
            source=source,
            target=target,
            read_only=read_only,
            propagation=propagation,
            options=tuple(options),
        )

    @classmethod
    def tmpfs(cls, target: str, *, size: Size | None = None, mode: int = 0o1777, options: Sequence[str] = ()) -> Mount:
        """Give the container an empty directory in memory, gone with it.

        >>> Mount.tmpfs("/scratch", size="64M").size
        67108864
        """
        return cls(type="tmpfs", target=target, size=size, mode=mode, options=tuple(options))


@attrs.frozen(eq=False, repr=False)
class Rlimit(Record):
    """A resource limit of the process, see getrlimit(2); -1 is no limit.

    Attributes:
        type: ``"nofile"``, ``"core"``, …: the name without ``RLIMIT_``, in any case.
        soft: the limit in force.
        hard: what the process may raise it to; the same when not given.
    """

    type: str = attrs.field(converter=_rlimit_name)
    soft: int
    hard: int = attrs.field(default=attrs.Factory(lambda self: self.soft, takes_self=True))


@attrs.frozen(eq=False, repr=False)
class Device(Record):
    """A device node given to the container.

    Attributes:
        source: path of the node on the host.
        target: path in the container; the same when not given.
        access: any of ``r`` (read), ``w`` (write), ``m`` (mknod).
    """

    source: str
    target: str = attrs.field(default=attrs.Factory(lambda self: self.source, takes_self=True))
    access: str = attrs.field(default="rwm", validator=attrs.validators.matches_re(r"[rwm]{1,3}"))


@attrs.frozen(eq=False, repr=False)
class IdMap(Record):
    """One range of ids of a user namespace, see user_namespaces(7).

    Attributes:
        inside: first id in the container.
        outside: first id on the host.
        count: how many ids.
    """

    inside: int = attrs.field(validator=attrs.validators.ge(0))
    outside: int = attrs.field(validator=attrs.validators.ge(0))
    count: int = attrs.field(validator=attrs.validators.ge(1))


def _words(value: str | Sequence[str] | None) -> tuple[str, ...] | None:
    if value is None:
        return None
    if not isinstance(value, str):
        return tuple(value)
    import shlex  # few give a text

    return tuple(shlex.split(value))


@attrs.frozen(kw_only=True, eq=False, repr=False)
class ImageConfig(Record):
    """How containers of an image run unless told otherwise; the OCI image config's ``config`` object.

    Attributes:
        entrypoint: the program, before the command.
        command: the default command or its default arguments (``Cmd``).
        env: environment.
        workdir: working directory.
        user: ``name``, ``uid``, ``name:group`` or ``uid:gid``; empty is root.
        stop_signal: what ends it politely, e.g. ``"SIGTERM"``.
        exposed_ports: e.g. ``"80/tcp"``.
        volumes: paths that hold data.
        labels: free text by name.
    """

    entrypoint: tuple[str, ...] | None = attrs.field(default=None, converter=_words)
    command: tuple[str, ...] | None = attrs.field(default=None, converter=_words)
    env: Mapping[str, str] = attrs.field(factory=dict, converter=_mapping)
    workdir: str = ""
    user: str = ""
    stop_signal: str = ""
    exposed_ports: tuple[str, ...] = attrs.field(default=(), converter=_strings)
    volumes: tuple[str, ...] = attrs.field(default=(), converter=_strings)
    labels: Mapping[str, str] = attrs.field(factory=dict, converter=_mapping)


@attrs.frozen(kw_only=True, eq=False, repr=False)
class Usage(Record):
    """What a container used; ``None`` where the host keeps no count (``pycontainer doctor`` says why).

    Attributes:
        wall_seconds: from the call that started it to its end.
        cpu_user_seconds: in programs, over all processes.
        cpu_system_seconds: in the kernel on their behalf.
        peak_memory: most memory at one time, bytes.
        block_read: bytes read from block devices.
        block_written: bytes written to block devices.
        peak_pids: most processes and threads at one time.
    """

    wall_seconds: float
    cpu_user_seconds: float
    cpu_system_seconds: float
    peak_memory: int | None
    block_read: int | None
    block_written: int | None
    peak_pids: int | None

    @property
    def cpu_seconds(self) -> float:
        """All CPU time, in seconds."""
        return self.cpu_user_seconds + self.cpu_system_seconds


@attrs.frozen(kw_only=True, eq=False, repr=False)
class Result(Record):
    """How a run ended.

    Attributes:
        container_id: the 64 hex digits of the container, gone by now.
        command: the program and its arguments.
        exit_code: its exit status; 128 + the signal's number when a signal ended it, as in a shell.
        signal: the signal that ended it, or 0.
        stdout: what it wrote there, unless that went elsewhere.
        stderr: the same for errors; empty with ``tty=True``, where there is one stream.
        truncated: whether output beyond ``output_limit`` was dropped.
        oom_killed: the kernel killed a process of it at the memory limit.
        usage: what it used.
    """

    container_id: str
    command: tuple[str, ...]
    exit_code: int
    signal: int
    stdout: bytes
    stderr: bytes
    truncated: bool = False
    oom_killed: bool
    usage: Usage

    @property
    def ok(self) -> bool:
        """Whether it ended with status 0."""
        return self.exit_code == 0


@attrs.frozen(eq=False, repr=False)
class Change(Record):
    """One path that is not as it was in the image.

    Attributes:
        kind: what happened to it; of a directory ``"changed"`` also says that something in it changed.
        path: absolute, in the container.

    >>> print(Change("deleted", "/etc/motd"))
    D /etc/motd
    """

    kind: Literal["added", "changed", "deleted"]
    path: str

    def __str__(self) -> str:
        return f"{self.kind[0].upper()} {self.path}"
