"""The OCI runtime specification's documents for Linux: config.json and the state that hooks read.

One frozen class per object (config.md); the ``linux`` section is in :mod:`pycontainer.oci.runtime_linux`, what few
containers have in :mod:`pycontainer.oci.runtime_rare`, and both are re-exported here. Constructing checks nothing,
because every start constructs them; :func:`parse` checks everything, because its documents come from elsewhere: types
and ranges by the annotations, then the meaning by :mod:`pycontainer.oci.runtime_rules`.

>>> spec = parse('{"ociVersion": "1.2.0", "root": {"path": "rootfs"}, "process": {"cwd": "/", "args": ["sh"]}}')
>>> spec.process.args
('sh',)
>>> parse(to_json(spec)) == spec
True
"""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeAlias, TypeVar

import attrs

from pycontainer.errors import InvalidSpec, Unsupported
from pycontainer.oci.documents import (
    REQUIRED,
    Bounds,
    Document,
    Matches,
    Misfit,
    UInt32,
    UInt64,
    load,
    named,
    read,
    write,
)
from pycontainer.oci.runtime_linux import (
    Cpu,
    DeviceRule,
    Linux,
    LinuxDevice,
    Memory,
    Namespace,
    NamespaceType,
    Pids,
    Propagation,
    Resources,
)

if TYPE_CHECKING:
    from pycontainer.oci.runtime_rare import (
        BlockIo,
        BlockIoThrottle,
        BlockIoWeight,
        ConsoleSize,
        CpuList,
        ExecCpuAffinity,
        Hook,
        HugepageLimit,
        IdMapping,
        IntelRdt,
        InterfacePriority,
        IoPriority,
        MemoryPolicy,
        NetDevice,
        Network,
        Personality,
        Rdma,
        Scheduler,
        Seccomp,
        SeccompAction,
        SeccompArch,
        SeccompFlag,
        SeccompOperator,
        SyscallArg,
        SyscallRule,
        TimeOffset,
        TimeOffsets,
    )

__all__ = [
    "OCI_VERSION",
    "BlockIo",
    "BlockIoThrottle",
    "BlockIoWeight",
    "Capabilities",
    "ConsoleSize",
    "Cpu",
    "CpuList",
    "DeviceRule",
    "ExecCpuAffinity",
    "Hook",
    "Hooks",
    "HugepageLimit",
    "IdMapping",
    "IntelRdt",
    "InterfacePriority",
    "IoPriority",
    "Linux",
    "LinuxDevice",
    "Memory",
    "MemoryPolicy",
    "Mount",
    "Namespace",
    "NamespaceType",
    "NetDevice",
    "Network",
    "Personality",
    "Pids",
    "Process",
    "Propagation",
    "Rdma",
    "Resources",
    "Rlimit",
    "RlimitType",
    "Root",
    "Scheduler",
    "Seccomp",
    "SeccompAction",
    "SeccompArch",
    "SeccompFlag",
    "SeccompOperator",
    "Spec",
    "State",
    "Status",
    "SyscallArg",
    "SyscallRule",
    "TimeOffset",
    "TimeOffsets",
    "User",
    "parse",
    "parse_process",
    "parse_state",
    "to_dict",
    "to_json",
]

OCI_VERSION = "1.3.0"
"""The version of the specification that the classes follow; documents of any 1.x are read."""

T = TypeVar("T")

RlimitType: TypeAlias = Literal[
    "RLIMIT_AS",
    "RLIMIT_CORE",
    "RLIMIT_CPU",
    "RLIMIT_DATA",
    "RLIMIT_FSIZE",
    "RLIMIT_LOCKS",
    "RLIMIT_MEMLOCK",
    "RLIMIT_MSGQUEUE",
    "RLIMIT_NICE",
    "RLIMIT_NOFILE",
    "RLIMIT_NPROC",
    "RLIMIT_RSS",
    "RLIMIT_RTPRIO",
    "RLIMIT_RTTIME",
    "RLIMIT_SIGPENDING",
    "RLIMIT_STACK",
]


@functools.cache
def _load_rare() -> None:
    """Load the classes that few containers have, and let the annotations that name them find them."""
    from pycontainer.oci import runtime_linux, runtime_rare

    found = {name: getattr(runtime_rare, name) for name in runtime_rare.__all__}
    globals().update(found)
    vars(runtime_linux).update(found)


if not TYPE_CHECKING:  # which would take it for a reason to believe in every name

    def __getattr__(name: str) -> object:
        """Return one of the classes that few containers have, see PEP 562."""
        if name in __all__:
            _load_rare()
            return globals()[name]
        msg = f"module {__name__!r} has no attribute {name!r}"
        raise AttributeError(msg)


# ── the process ───────────────────────────────────────────────────────────────────────────────────────────────────────


@attrs.frozen(kw_only=True, eq=False, repr=False)
class User(Document):
    """Who the process is, as ids in the container (config.md, "POSIX-platform User").

    Attributes:
        uid: user id.
        gid: group id.
        umask: mask of the permissions of new files; ``None`` leaves it to the runtime (0022).
        additional_gids: supplementary groups.
    """

    uid: UInt32 = 0
    gid: UInt32 = 0
    umask: Annotated[int, Bounds(0, 0o777)] | None = None
    additional_gids: tuple[UInt32, ...] = ()


@attrs.frozen(kw_only=True, eq=False, repr=False)
class Capabilities(Document):
    """The five sets of capabilities(7), as ``CAP_…`` names (config.md, "Linux Process").

    Names that the kernel does not have are for the runtime to warn of, says the specification, not to fail.
    """

    bounding: tuple[str, ...] = ()
    effective: tuple[str, ...] = ()
    inheritable: tuple[str, ...] = ()
    permitted: tuple[str, ...] = ()
    ambient: tuple[str, ...] = ()


@attrs.frozen(kw_only=True, eq=False, repr=False)
class Rlimit(Document):
    """A limit of setrlimit(2) (config.md, "POSIX process"); 2**64-1 is ``RLIM_INFINITY``."""

    type: RlimitType
    soft: UInt64
    hard: UInt64


@attrs.frozen(kw_only=True, eq=False, repr=False)
class Process(Document):
    """The program and its attributes (config.md, "Process").

    Attributes:
        args: the program and its arguments; at least the program.
        cwd: absolute working directory in the container.
        env: ``NAME=value`` each; also where the program is looked up (``PATH``).
        terminal: give it a terminal of its own.
        console_size: of that terminal.
        user: who it is.
        capabilities: the five sets; ``None`` leaves it none at all.
        rlimits: resource limits.
        no_new_privileges: set-user-ID programs and file capabilities have no effect.
        oom_score_adj: -1000 (never) to 1000 (first), proc_pid_oom_score_adj(5); ``None`` inherits.
        apparmor_profile: name of the AppArmor profile.
        selinux_label: SELinux context.
        scheduler: how it is scheduled; ``None`` inherits.
        io_priority: of its input and output; ``None`` inherits.
        exec_cpu_affinity: processors of processes that join later.
    """

    args: tuple[str, ...]
    cwd: str
    env: tuple[str, ...] = ()
    terminal: bool = False
    console_size: ConsoleSize | None = None
    user: User = User()
    capabilities: Capabilities | None = None
    rlimits: tuple[Rlimit, ...] = ()
    no_new_privileges: bool = False
    oom_score_adj: Annotated[int, Bounds(-1000, 1000)] | None = None
    apparmor_profile: str | None = None
    selinux_label: str | None = None
    scheduler: Scheduler | None = None
    io_priority: IoPriority | None = None
    exec_cpu_affinity: ExecCpuAffinity | None = attrs.field(default=None, metadata=named("execCPUAffinity"))


# ── the container ─────────────────────────────────────────────────────────────────────────────────────────────────────


@attrs.frozen(kw_only=True, eq=False, repr=False)
class Root(Document):
    """The root file system (config.md, "Root").

    Attributes:
        path: on the host; relative to the bundle unless absolute.
        readonly: no writes to it.
    """

    path: str
    readonly: bool = False


@attrs.frozen(kw_only=True, eq=False, repr=False)
class Mount(Document):
    """Something mounted into the container, in the order given (config.md, "Mounts").

    Attributes:
        destination: absolute path in the container.
        type: of the file system, as mount(8) knows it; ``None`` for bind mounts.
        source: device, name, or path on the host, for bind mounts relative to the bundle unless absolute.
        options: of mount(8), and the specification's own.
        uid_mappings: how user ids are shown through a bind mount, mount_setattr(2).
        gid_mappings: how group ids are shown through it.
    """

    destination: str
    type: str | None = None
    source: str | None = None
    options: tuple[str, ...] = ()
    uid_mappings: tuple[IdMapping, ...] = ()
    gid_mappings: tuple[IdMapping, ...] = ()


@attrs.frozen(kw_only=True, eq=False, repr=False)
class Hooks(Document):
    """What runs around the container's life (config.md, "POSIX-platform Hooks").

    Attributes:
        prestart: deprecated; after namespaces are made, before pivot_root, in the runtime's namespaces.
        create_runtime: the same, right after ``prestart``.
        create_container: the same moment, in the container's namespaces, program paths of the host.
        start_container: in the container, right before its program.
        poststart: after the program was started, in the runtime's namespaces.
        poststop: after the container was deleted, in the runtime's namespaces.
    """

    prestart: tuple[Hook, ...] = ()
    create_runtime: tuple[Hook, ...] = ()
    create_container: tuple[Hook, ...] = ()
    start_container: tuple[Hook, ...] = ()
    poststart: tuple[Hook, ...] = ()
    poststop: tuple[Hook, ...] = ()


@attrs.frozen(kw_only=True, eq=False, repr=False)
class Spec(Document):
    """A container: the whole config.json (config.md).

    Attributes:
        oci_version: of the specification that the document follows.
        root: the root file system.
        process: what runs; may be absent until the container is started.
        mounts: what is mounted into it.
        hostname: in the container's UTS namespace.
        domainname: in the container's UTS namespace.
        hooks: what runs around its life.
        annotations: free text by name.
        linux: namespaces, limits, devices, …
    """

    oci_version: Annotated[str, Matches(r"1\.\d+\.\d+([-+].*)?", "a version 1.x.y of the specification")] = attrs.field(
        default=OCI_VERSION, metadata=REQUIRED
    )
    root: Root
    process: Process | None = None
    mounts: tuple[Mount, ...] = ()
    hostname: str | None = None
    domainname: str | None = None
    hooks: Hooks = Hooks()
    annotations: Mapping[str, str] = attrs.field(factory=dict)
    linux: Linux = attrs.field(factory=Linux)


Status: TypeAlias = Literal["creating", "created", "running", "stopped", "paused"]


@attrs.frozen(kw_only=True, eq=False, repr=False)
class State(Document):
    """The state of a container, as hooks and callers of a runtime read it (runtime.md, "State").

    Attributes:
        oci_version: of the specification that the document follows.
        id: the container's.
        status: where in its life it is; ``paused`` is an addition of the runtimes in use.
        pid: of its first process as the host sees it; ``None`` when there is none.
        bundle: absolute path of the directory of its config.json.
        annotations: those of its :class:`Spec`.
    """

    oci_version: str = attrs.field(default=OCI_VERSION, metadata=REQUIRED)
    id: str
    status: Status
    pid: Annotated[int, Bounds(0, 2**31 - 1)] | None = None
    bundle: str
    annotations: Mapping[str, str] = attrs.field(factory=dict)


# ── JSON ──────────────────────────────────────────────────────────────────────────────────────────────────────────────

_OTHER_PLATFORMS = ("solaris", "windows", "vm", "zos", "freebsd")


def _refuse_other_platforms(plain: Mapping[str, Any]) -> None:
    for name in _OTHER_PLATFORMS:
        if plain.get(name) is not None:
            raise Unsupported(f"read config.json: {name}: this section is not for Linux containers; remove it")


def _read(cls: type[T], document: bytes | str | Mapping[str, Any], *, ignore_unknown: bool) -> T:
    _load_rare()
    try:
        plain: object = document if isinstance(document, Mapping) else load(document)
        if cls is Spec and isinstance(plain, Mapping):
            _refuse_other_platforms(plain)
        return read(cls, plain, ignore_unknown=ignore_unknown)
    except Misfit as misfit:
        if misfit.unknown:
            raise Unsupported(
                f"read config.json: {misfit.path}: {misfit.reason}; remove it, or have unknown ones ignored"
            ) from misfit
        raise InvalidSpec(misfit.path, misfit.reason) from misfit


def parse(document: bytes | str | Mapping[str, Any], *, ignore_unknown: bool = False) -> Spec:
    """Return the container that a config.json describes, checked.

    What the kernel cannot do, or what would be silently dropped, is refused with the JSON path. A relative mount
    destination is taken from the root, -1 in device rules becomes ``None``, as the runtimes in use do.

    Args:
        document: the JSON text, or its plain values.
        ignore_unknown: drop properties that the specification does not have, as it demands of a runtime under
            "Extensibility"; otherwise they are refused, because what was asked for would not happen.

    Raises:
        InvalidSpec: it breaks the specification.
        Unsupported: it has a property that is not known, or that is not for Linux.
    """
    from pycontainer.oci import runtime_rules  # only documents of others need it

    return runtime_rules.check_spec(_read(Spec, document, ignore_unknown=ignore_unknown))


def parse_process(document: bytes | str | Mapping[str, Any], *, ignore_unknown: bool = False) -> Process:
    """Return the process of a document that is only that, as ``runc exec --process`` takes it.

    Args:
        document: the JSON text, or its plain values.
        ignore_unknown: as in :func:`parse`.

    Raises:
        InvalidSpec: it breaks the specification.
        Unsupported: it has a property that is not known, or that is not for Linux.
    """
    from pycontainer.oci import runtime_rules

    process = _read(Process, document, ignore_unknown=ignore_unknown)
    runtime_rules.check_process(process, "")
    return process


def parse_state(document: bytes | str | Mapping[str, Any]) -> State:
    """Return the state in a document; properties that other runtimes add are dropped.

    Raises:
        InvalidSpec: it breaks the specification.
    """
    return _read(State, document, ignore_unknown=True)


def to_dict(document: Spec | Process | State) -> dict[str, Any]:
    """Return the plain values of a document."""
    _load_rare()
    return write(document)


def to_json(document: Spec | Process | State) -> bytes:
    """Return a document as JSON, UTF-8, on one line.

    Raises:
        InvalidSpec: a text in it has no UTF-8 form.
    """
    try:
        return json.dumps(to_dict(document), ensure_ascii=False, separators=(",", ":")).encode()
    except UnicodeEncodeError as error:
        raise InvalidSpec("", f"{error.object[error.start : error.end]!r} has no UTF-8 form") from error
