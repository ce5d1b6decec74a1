"""Hypothesis strategies of OCI runtime specifications: whole containers that break none of its rules.

Every class is drawn from its annotations, ``built(Memory)``; the classes that have rules across their fields are given
those fields by hand.
"""

from __future__ import annotations

import typing
from collections.abc import Mapping
from typing import Annotated, Any, Literal

import attrs
from hypothesis import strategies as st

from pycontainer.oci import runtime
from pycontainer.oci.documents import Bounds, Matches, UInt64

_PATTERNS = {
    "a list of numbers and ranges such as '0-3,7'": st.sampled_from(("0", "0-3,7", "1, 2")),
    "any of the letters r, w and m": st.sampled_from(("r", "w", "m", "rw", "rwm")),
    "a page size such as '2MB'": st.sampled_from(("2MB", "1GB", "64KB")),
    "one line that starts with 'MB:'": st.just("MB:0=70;1=20"),
    "a version 1.x.y of the specification": st.sampled_from(("1.0.0", "1.0.2-dev", "1.2.0", "1.3.0+dev")),
}

texts = st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=12)
paths = texts.map(lambda text: f"/{text}")
environments = st.lists(st.builds("{}={}".format, st.from_regex(r"[A-Z_]+", fullmatch=True), texts), max_size=3).map(
    tuple
)
weights = st.none() | st.integers(10, 1000)


def values(hint: Any) -> st.SearchStrategy[Any]:
    """Give values of an annotation of a document's class."""
    if isinstance(hint, type):
        return built(hint) if attrs.has(hint) else {str: texts, int: st.integers(), bool: st.booleans()}[hint]
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is tuple:
        return st.lists(values(arguments[0]), max_size=2).map(tuple)
    if origin is Mapping:
        return st.dictionaries(values(arguments[0]), values(arguments[1]), max_size=2)
    if origin is Literal:
        return st.sampled_from(arguments)
    if origin is Annotated:
        return _constrained(arguments[1])
    (kind,) = (argument for argument in arguments if argument is not type(None))
    return st.none() | values(kind)


def _constrained(constraint: Bounds | Matches) -> st.SearchStrategy[Any]:
    if isinstance(constraint, Bounds):
        return st.integers(constraint.low, constraint.high)
    return _PATTERNS[constraint.meaning]


def built(cls: type[Any], **fields: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    """Give objects of a document's class.

    Args:
        cls: the class.
        fields: strategies of attributes, instead of what their annotations say.
    """
    hints = typing.get_type_hints(cls, include_extras=True)
    return st.builds(cls, **{name: values(hint) for name, hint in hints.items()} | fields)


@st.composite
def id_mappings(draw: st.DrawFn) -> tuple[runtime.IdMapping, ...]:
    """Give ranges that do not overlap."""
    inside = outside = 0
    ranges = []
    for gap, size in draw(st.lists(st.tuples(st.integers(0, 5), st.integers(1, 65536)), min_size=1, max_size=3)):
        ranges.append(runtime.IdMapping(container_id=inside + gap, host_id=outside + 2 * gap, size=size))
        inside += gap + size
        outside += 2 * gap + size
    return tuple(ranges)


def _only_if(condition: bool, strategy: st.SearchStrategy[Any], otherwise: Any) -> st.SearchStrategy[Any]:
    return strategy if condition else st.just(otherwise)


def schedulers() -> st.SearchStrategy[runtime.Scheduler]:
    """Give schedulers whose fields fit their policy."""
    nice, zero = st.integers(-20, 19), st.just(0)
    times = dict.fromkeys(("runtime", "deadline", "period"), zero)
    real_time = st.sampled_from(("SCHED_FIFO", "SCHED_RR"))
    fair = st.sampled_from(("SCHED_OTHER", "SCHED_BATCH", "SCHED_IDLE"))
    return st.one_of(
        built(runtime.Scheduler, policy=fair, nice=nice, priority=zero, **times),
        built(runtime.Scheduler, policy=real_time, nice=nice, priority=st.integers(1, 99), **times),
        built(runtime.Scheduler, policy=st.just("SCHED_DEADLINE"), nice=nice, priority=zero),
    )


@st.composite
def processes(draw: st.DrawFn) -> runtime.Process:
    """Give processes that keep the rules."""
    rlimits = st.builds(
        lambda kind, limits: runtime.Rlimit(type=kind, soft=min(limits), hard=max(limits)),
        values(runtime.RlimitType),
        st.tuples(values(UInt64), values(UInt64)),
    )
    capabilities = draw(st.none() | built(runtime.Capabilities))
    if capabilities is not None:
        capabilities = attrs.evolve(capabilities, permitted=capabilities.permitted + capabilities.effective)
    process = draw(
        built(
            runtime.Process,
            args=st.lists(texts, min_size=1, max_size=3).map(tuple),
            cwd=paths,
            env=environments,
            rlimits=st.lists(rlimits, max_size=3, unique_by=lambda rlimit: rlimit.type).map(tuple),
            capabilities=st.just(capabilities),
            scheduler=st.none() | schedulers(),
            io_priority=st.none() | built(runtime.IoPriority, priority=st.integers(0, 7)),
        )
    )
    assert isinstance(process, runtime.Process)
    return process


@st.composite
def mounts(draw: st.DrawFn) -> runtime.Mount:
    """Give bind mounts, with and without id mappings, and mounts of file systems."""
    if not draw(st.booleans()):
        none = st.just(())
        kinds = st.sampled_from(("proc", "tmpfs", "cgroup2"))
        made = built(runtime.Mount, destination=paths, type=kinds, uid_mappings=none, gid_mappings=none)
    else:
        ids = draw(st.just(((), ())) | st.tuples(id_mappings(), id_mappings()))
        made = built(
            runtime.Mount,
            destination=paths,
            source=texts,
            options=st.just(("rbind",)),
            uid_mappings=st.just(ids[0]),
            gid_mappings=st.just(ids[1]),
        )
    mount = draw(made)
    assert isinstance(mount, runtime.Mount)
    return mount


def resources() -> st.SearchStrategy[runtime.Resources]:
    """Give resources that keep the rules."""
    number = st.none() | st.integers(0, 4095)
    size = st.none() | st.integers(-1, 2**63 - 1)
    device_weights = built(runtime.BlockIoWeight, weight=st.integers(10, 1000), leaf_weight=weights)
    page_limits = st.lists(built(runtime.HugepageLimit), max_size=2, unique_by=lambda limit: limit.page_size)
    memory = built(
        runtime.Memory,
        limit=st.none() | st.integers(-1, 2**40),
        reservation=size,
        kernel=size,
        kernel_tcp=size,
        swap=st.sampled_from((None, -1, 0)),
        swappiness=st.none() | st.integers(0, 100),
    )
    cpu_list = st.sampled_from((None, "0", "0-3,7"))
    quota, idle = st.none() | st.integers(-1, 10**6), st.sampled_from((None, 0, 1))
    block_io = built(
        runtime.BlockIo,
        weight=weights,
        leaf_weight=weights,
        weight_device=st.lists(device_weights, max_size=2).map(tuple),
    )
    return built(
        runtime.Resources,
        devices=st.lists(built(runtime.DeviceRule, major=number, minor=number), max_size=3).map(tuple),
        memory=st.none() | memory,
        cpu=st.none() | built(runtime.Cpu, cpus=cpu_list, mems=cpu_list, quota=quota, idle=idle),
        block_io=st.none() | block_io,
        hugepage_limits=page_limits.map(tuple),
        rdma=st.dictionaries(texts, built(runtime.Rdma, hca_handles=st.integers(0, 9)), max_size=2),
        unified=st.dictionaries(st.sampled_from(("memory.high", "io.max")), texts),
    )


@st.composite
def seccomp_filters(draw: st.DrawFn) -> runtime.Seccomp:
    """Give filters that keep the rules."""
    rules = []
    for action in draw(st.lists(values(runtime.SeccompAction), max_size=3)):
        with_errno = action in ("SCMP_ACT_ERRNO", "SCMP_ACT_TRACE")
        errno = _only_if(with_errno, st.none() | st.integers(0, 4095), None)
        names = st.lists(texts.filter("write".__ne__), min_size=1, max_size=3).map(tuple)
        rules.append(draw(built(runtime.SyscallRule, action=st.just(action), errno_ret=errno, names=names)))
    notifies = any(rule.action == "SCMP_ACT_NOTIFY" for rule in rules)
    seccomp = draw(
        built(
            runtime.Seccomp,
            default_action=st.just("SCMP_ACT_ERRNO"),
            default_errno_ret=st.none() | st.integers(0, 4095),
            flags=st.sampled_from(((), ("SECCOMP_FILTER_FLAG_LOG",))),
            listener_path=_only_if(notifies, paths, None),
            listener_metadata=_only_if(notifies, st.none() | texts, None),
            syscalls=st.just(tuple(rules)),
        )
    )
    assert isinstance(seccomp, runtime.Seccomp)
    return seccomp


@st.composite
def linux_sections(draw: st.DrawFn) -> runtime.Linux:
    """Give ``linux`` sections that keep the rules; namespaces of type uts, mount and network are always there."""
    others = draw(st.lists(st.sampled_from(("pid", "ipc", "user", "cgroup", "time")), unique=True))
    optional_path = st.none() | paths
    spaces = [
        draw(built(runtime.Namespace, type=st.just(kind), path=optional_path))
        for kind in ["uts", "mount", "network", *others]
    ]
    joined = {space.type: space.path for space in spaces}
    new_user, new_time = (joined.get(kind, "absent") is None for kind in ("user", "time"))
    offsets = built(runtime.TimeOffset, nanosecs=st.integers(0, 10**9 - 1))
    number = st.integers(0, 4095)
    mode = st.none() | st.integers(0, 0o777)
    interface = st.from_regex(r"[a-z]{1,15}", fullmatch=True)
    linux = draw(
        built(
            runtime.Linux,
            namespaces=st.just(tuple(spaces)),
            uid_mappings=_only_if(new_user, id_mappings(), ()),
            gid_mappings=_only_if(new_user, id_mappings(), ()),
            time_offsets=_only_if(
                new_time, st.none() | built(runtime.TimeOffsets, boottime=offsets, monotonic=st.none() | offsets), None
            ),
            devices=st.lists(
                built(runtime.LinuxDevice, path=paths, major=number, minor=number, file_mode=mode), max_size=3
            ).map(tuple),
            net_devices=st.dictionaries(interface, st.just(runtime.NetDevice()), max_size=2),
            resources=st.none() | resources(),
            rootfs_propagation=st.sampled_from((None, "private", "shared", "slave", "unbindable")),
            seccomp=st.none() | seccomp_filters(),
            sysctl=st.sampled_from(({}, {"net.ipv4.ip_forward": "1"}, {"net/core/somaxconn": "128"})),
            masked_paths=st.lists(paths, max_size=2).map(tuple),
            readonly_paths=st.lists(paths, max_size=2).map(tuple),
            intel_rdt=st.none() | built(runtime.IntelRdt, clos_id=st.sampled_from((None, "guaranteed"))),
            personality=st.none() | built(runtime.Personality, flags=st.just(())),
        )
    )
    assert isinstance(linux, runtime.Linux)
    return linux


def specs() -> st.SearchStrategy[runtime.Spec]:
    """Give whole containers that keep the rules."""
    hooks = st.lists(
        built(runtime.Hook, path=paths, env=environments, timeout=st.none() | st.integers(1, 3600)), max_size=2
    ).map(tuple)
    return built(
        runtime.Spec,
        process=st.none() | processes(),
        mounts=st.lists(mounts(), max_size=3).map(tuple),
        hooks=st.just(runtime.Hooks())
        | st.builds(runtime.Hooks, **{field.name: hooks for field in attrs.fields(runtime.Hooks)}),
        linux=linux_sections(),
    )
