"""config.json: read strictly, written so that it reads the same."""

from __future__ import annotations

import copy
import json
import pickle
import re
import timeit
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pycontainer.errors import Error, InvalidSpec, Unsupported
from pycontainer.oci import documents, runtime
from pycontainer.oci.runtime_rules import sysctl_path
from tests import strategies_runtime as strategies

MINIMAL: dict[str, Any] = {
    "ociVersion": "1.2.0",
    "root": {"path": "rootfs"},
    "process": {"cwd": "/", "args": ["sh"]},
    "linux": {"namespaces": [{"type": kind} for kind in ("mount", "uts", "ipc", "network")]},
}
EVERYWHERE = [{"containerID": 0, "hostID": 100000, "size": 65536}]


def changed(path: str, value: Any, base: dict[str, Any] = MINIMAL) -> dict[str, Any]:
    """Return a copy of a document with one property set; the objects on the way are made."""
    document = copy.deepcopy(base)
    place = document
    *steps, last = path.split("/")
    for step in steps:
        place = place.setdefault(step, {})
    place[last] = value
    return document


def without(path: str) -> dict[str, Any]:
    document = changed(path, None)
    place = document
    *steps, last = path.split("/")
    for step in steps:
        place = place[step]
    del place[last]
    return document


def test_minimal_document_has_the_defaults_of_the_specification() -> None:
    spec = runtime.parse(json.dumps(MINIMAL))
    assert spec.process == runtime.Process(args=("sh",), cwd="/", user=runtime.User(uid=0, gid=0))
    assert spec.root == runtime.Root(path="rootfs", readonly=False)
    assert spec.linux.resources is None
    assert spec.hooks == runtime.Hooks()


def test_null_and_empty_text_of_makers_in_go_are_absent() -> None:
    document = changed("linux/namespaces", [{"type": "mount", "path": ""}])
    document |= {"mounts": None, "hostname": "", "hooks": None, "annotations": None}
    assert runtime.parse(document) == runtime.parse(changed("linux/namespaces", [{"type": "mount"}]))


@settings(max_examples=50, deadline=None)
@given(strategies.specs())
def test_what_is_written_reads_the_same(spec: runtime.Spec) -> None:
    written = runtime.to_json(spec)
    assert runtime.parse(written) == spec
    assert runtime.parse(runtime.to_dict(spec)) == spec
    assert runtime.parse(written.decode(), ignore_unknown=True) == spec


@settings(max_examples=40, deadline=None)
@given(strategies.processes())
def test_a_process_alone_reads_the_same(process: runtime.Process) -> None:
    assert runtime.parse_process(runtime.to_json(process)) == process


@settings(max_examples=40, deadline=None)
@given(strategies.built(runtime.State))
def test_a_state_reads_the_same(state: runtime.State) -> None:
    assert runtime.parse_state(runtime.to_json(state)) == state


def test_a_state_may_have_more() -> None:
    document = {"ociVersion": "1.0.2", "id": "c1", "status": "paused", "bundle": "/b", "rootfs": "/b/r", "owner": ""}
    assert runtime.parse_state(document).pid is None


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


@st.composite
def vandalized(draw: st.DrawFn) -> Any:
    """Give a document with one value anywhere in it replaced by any other."""
    document: Any = runtime.to_dict(draw(strategies.specs()))
    place = document
    while True:
        keys = list(place) if isinstance(place, dict) else range(len(place))
        key = draw(st.sampled_from(list(keys)))
        inner = place[key]
        if not isinstance(inner, dict | list) or not inner or draw(st.booleans()):
            place[key] = draw(JSON)
            return document
        place = inner


@settings(max_examples=40, deadline=None)
@given(vandalized())
def test_any_document_is_read_or_refused_with_an_error_of_ours(document: Any) -> None:
    try:
        spec = runtime.parse(document)
    except (InvalidSpec, Unsupported):
        pass
    else:
        assert runtime.parse(runtime.to_json(spec)) == spec


@settings(max_examples=60, deadline=None)
@given(st.binary(max_size=40))
def test_any_bytes_are_refused(data: bytes) -> None:
    with pytest.raises(Error):
        runtime.parse(data)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (b"", "not JSON"),
        (b"{", "not JSON"),
        (b"[]", "should be an object, is an array"),
        (b'"text"', "should be an object, is text"),
        (b"\xff\xfe{}", "not UTF-8 at byte 0"),
        (b'{"ociVersion": NaN}', "NaN is not JSON"),
        (b'{"root": {"path": "a", "path": "b"}}', "'path' is there twice"),
        (b"[" * 100_000, "nested too deeply"),
        (b'{"ociVersion": ' + b"9" * 5000 + b"}", "not JSON"),
        (b"{}", "ociVersion: is missing"),
        (b'{"ociVersion": "1.2.0"}', "root: is missing"),
    ],
)
def test_broken_text_is_refused(text: bytes, reason: str) -> None:
    with pytest.raises(InvalidSpec) as caught:
        runtime.parse(text)
    assert reason in str(caught.value)
    assert isinstance(caught.value, ValueError)


@pytest.mark.parametrize("name", ["windows", "solaris", "vm", "zos", "freebsd"])
def test_sections_of_other_platforms_are_refused(name: str) -> None:
    with pytest.raises(Unsupported, match=f"config.json: {name}: "):
        runtime.parse(changed(name, {}), ignore_unknown=True)


@pytest.mark.parametrize(
    ("path", "shown"),
    [
        ("linux/seecomp", "linux.seecomp"),
        ("linux/resources/memory/limits", "linux.resources.memory.limits"),
        ("process/commandLine", "process.commandLine"),
        ("process/user/username", "process.user.username"),
        ("mount", "mount"),
    ],
)
def test_what_would_be_ignored_is_refused_unless_asked_for(path: str, shown: str) -> None:
    with pytest.raises(Unsupported, match=f"config.json: {shown}: is not a property that is known"):
        runtime.parse(changed(path, "x"))
    assert runtime.parse(changed(path, "x"), ignore_unknown=True).root.path == "rootfs"


def test_annotations_are_free() -> None:
    assert runtime.parse(changed("annotations", {"com.example/x": ""})).annotations == {"com.example/x": ""}


WRONG: list[tuple[str, Any, str]] = [
    ("ociVersion", "2.0.0", "ociVersion"),
    ("ociVersion", 1, "ociVersion"),
    ("root/path", "", "root.path"),
    ("root/path", "a\0b", "root.path"),
    ("root/path", "\ud800", "root.path"),
    ("root/readonly", 1, "root.readonly"),
    ("root", None, "root"),
    ("process/args", [], "process.args"),
    ("process/args", [""], "process.args"),
    ("process/args", "sh", "process.args"),
    ("process/args", ["sh", None], "process.args[1]"),
    ("process/cwd", "tmp", "process.cwd"),
    ("process/env", ["A=1", "B"], "process.env[1]"),
    ("process/env", ["=1"], "process.env[0]"),
    ("process/user/uid", -1, "process.user.uid"),
    ("process/user/uid", 2**32, "process.user.uid"),
    ("process/user/uid", True, "process.user.uid"),
    ("process/user/uid", 1.0, "process.user.uid"),
    ("process/user/umask", 0o1000, "process.user.umask"),
    ("process/oomScoreAdj", 1001, "process.oomScoreAdj"),
    ("process/capabilities", {"effective": ["CAP_KILL"]}, "process.capabilities.effective"),
    ("process/rlimits", [{"type": "RLIMIT_NOFILES", "soft": 1, "hard": 1}], "process.rlimits[0].type"),
    ("process/rlimits", [{"type": "RLIMIT_CORE", "soft": 2, "hard": 1}], "process.rlimits[0].soft"),
    ("process/rlimits", [{"type": "RLIMIT_CORE", "soft": 1, "hard": 1}] * 2, "process.rlimits"),
    ("process/rlimits", [{"type": "RLIMIT_CORE", "soft": 1}], "process.rlimits[0].hard"),
    ("process/consoleSize", {"height": 1}, "process.consoleSize.width"),
    ("process/scheduler", {"policy": "SCHED_OTHER", "nice": 20}, "process.scheduler.nice"),
    ("process/scheduler", {"policy": "SCHED_OTHER", "priority": 1}, "process.scheduler.priority"),
    ("process/scheduler", {"policy": "SCHED_FIFO"}, "process.scheduler.priority"),
    ("process/scheduler", {"policy": "SCHED_RR", "priority": 1, "period": 1}, "process.scheduler.period"),
    ("process/ioPriority", {"class": "IOPRIO_CLASS_BE", "priority": 8}, "process.ioPriority.priority"),
    ("process/ioPriority", {"class": "IOPRIO_CLASS_NONE"}, "process.ioPriority.class"),
    ("process/execCPUAffinity/initial", "all", "process.execCPUAffinity.initial"),
    ("mounts", [{"destination": ""}], "mounts[0].destination"),
    ("mounts", [{"destination": "/a"}], "mounts[0].type"),
    ("mounts", [{"destination": "/a", "options": ["rbind"]}], "mounts[0].source"),
    ("mounts", [{"destination": "/a", "type": "tmpfs", "uidMappings": EVERYWHERE}], "mounts[0].uidMappings"),
    (
        "mounts",
        [{"destination": "/a", "type": "bind", "source": "/a", "uidMappings": EVERYWHERE}],
        "mounts[0].gidMappings",
    ),
    ("hooks/prestart", [{"path": "true"}], "hooks.prestart[0].path"),
    ("hooks/poststop", [{"path": "/bin/true", "timeout": 0}], "hooks.poststop[0].timeout"),
    ("hooks/createRuntime", [{"path": "/bin/true", "env": ["A"]}], "hooks.createRuntime[0].env[0]"),
    ("annotations", {"a": 1}, 'annotations["a"]'),
    ("linux/namespaces", [{"type": "pid"}, {"type": "pid"}], "linux.namespaces"),
    ("linux/namespaces", [{"type": "net"}], "linux.namespaces[0].type"),
    ("linux/namespaces", [{"type": "pid", "path": "proc/1/ns/pid"}], "linux.namespaces[0].path"),
    ("linux/namespaces", [{"type": "user"}], "linux.uidMappings"),
    ("linux/uidMappings", EVERYWHERE, "linux.uidMappings"),
    ("linux/timeOffsets", {"monotonic": {"secs": 1}}, "linux.timeOffsets"),
    (
        "linux",
        {"namespaces": [{"type": "time"}], "timeOffsets": {"boottime": {"nanosecs": 10**9}}},
        "linux.timeOffsets.boottime.nanosecs",
    ),
    (
        "linux",
        {"namespaces": [{"type": "time", "path": "/t"}], "timeOffsets": {"boottime": {"secs": 1}}},
        "linux.timeOffsets",
    ),
    ("linux/devices", [{"type": "c", "path": "dev/x", "major": 1, "minor": 3}], "linux.devices[0].path"),
    ("linux/devices", [{"type": "c", "path": "/dev/x", "major": 1}], "linux.devices[0].minor"),
    ("linux/devices", [{"type": "c", "path": "/dev/x", "major": 4096, "minor": 3}], "linux.devices[0].major"),
    ("linux/devices", [{"type": "s", "path": "/dev/x"}], "linux.devices[0].type"),
    ("linux/devices", [{"type": "p", "path": "/dev/x", "fileMode": 0o020666}], "linux.devices[0].fileMode"),
    ("linux/netDevices", {"a/b": {}}, 'linux.netDevices["a/b"]'),
    ("linux/netDevices", {"eth0": {"name": "a" * 16}}, 'linux.netDevices["eth0"]'),
    ("linux/netDevices", {"eth0": {"name": "eth1"}, "eth1": {}}, "linux.netDevices"),
    ("linux/rootfsPropagation", "public", "linux.rootfsPropagation"),
    ("linux/maskedPaths", ["proc/kcore"], "linux.maskedPaths[0]"),
    ("linux/readonlyPaths", ["proc/sys"], "linux.readonlyPaths[0]"),
    ("linux/resources/devices", [{"type": "c"}], "linux.resources.devices[0].allow"),
    ("linux/resources/devices", [{"allow": True, "access": "rwx"}], "linux.resources.devices[0].access"),
    ("linux/resources/devices", [{"allow": True, "access": "rr"}], "linux.resources.devices[0].access"),
    ("linux/resources/devices", [{"allow": True, "type": "p"}], "linux.resources.devices[0].type"),
    ("linux/resources/devices", [{"allow": True, "major": -2}], "linux.resources.devices[0].major"),
    ("linux/resources/memory/limit", -2, "linux.resources.memory.limit"),
    ("linux/resources/memory/limit", "256M", "linux.resources.memory.limit"),
    ("linux/resources/memory", {"limit": 2, "swap": 1}, "linux.resources.memory.swap"),
    ("linux/resources/memory", {"swap": 1}, "linux.resources.memory.swap"),
    ("linux/resources/memory/swappiness", 101, "linux.resources.memory.swappiness"),
    ("linux/resources/memory/kernelTCP", -2, "linux.resources.memory.kernelTCP"),
    ("linux/resources/cpu/cpus", "0-", "linux.resources.cpu.cpus"),
    ("linux/resources/cpu/idle", 2, "linux.resources.cpu.idle"),
    ("linux/resources/cpu/quota", -2, "linux.resources.cpu.quota"),
    ("linux/resources/pids", {}, "linux.resources.pids.limit"),
    ("linux/resources/blockIO/weight", 9, "linux.resources.blockIO.weight"),
    (
        "linux/resources/blockIO/weightDevice",
        [{"major": 8, "minor": 0, "leafWeight": 1001}],
        "linux.resources.blockIO.weightDevice[0].leafWeight",
    ),
    ("linux/resources/blockIO/weightDevice", [{"major": 8, "minor": 0}], "linux.resources.blockIO.weightDevice[0]"),
    ("linux/resources/hugepageLimits", [{"pageSize": "2M", "limit": 1}], "linux.resources.hugepageLimits[0].pageSize"),
    ("linux/resources/hugepageLimits", [{"pageSize": "2MB", "limit": 1}] * 2, "linux.resources.hugepageLimits"),
    ("linux/resources/rdma", {"mlx5_1": {}}, 'linux.resources.rdma["mlx5_1"]'),
    ("linux/resources/unified", {"../cgroup.procs": "1"}, 'linux.resources.unified["../cgroup.procs"]'),
    ("linux/seccomp", {}, "linux.seccomp.defaultAction"),
    ("linux/seccomp/defaultAction", "SCMP_ACT_DENY", "linux.seccomp.defaultAction"),
    ("linux/seccomp/defaultAction", "SCMP_ACT_NOTIFY", "linux.seccomp.defaultAction"),
    ("linux/seccomp", {"defaultAction": "SCMP_ACT_ALLOW", "defaultErrnoRet": 1}, "linux.seccomp.defaultErrnoRet"),
    ("linux/seccomp", {"defaultAction": "SCMP_ACT_ERRNO", "defaultErrnoRet": 4096}, "linux.seccomp.defaultErrnoRet"),
    ("linux/seccomp", {"defaultAction": "SCMP_ACT_ERRNO", "listenerPath": "s"}, "linux.seccomp.listenerPath"),
    ("linux/seccomp", {"defaultAction": "SCMP_ACT_ERRNO", "listenerMetadata": "s"}, "linux.seccomp.listenerMetadata"),
    (
        "linux/seccomp",
        {"defaultAction": "SCMP_ACT_ERRNO", "flags": ["SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV"]},
        "linux.seccomp.flags",
    ),
    ("linux/intelRdt/closID", "..", "linux.intelRdt.closID"),
    ("linux/intelRdt/memBwSchema", "L3:0=f", "linux.intelRdt.memBwSchema"),
    ("linux/memoryPolicy", {"nodes": "0"}, "linux.memoryPolicy.mode"),
    ("linux/sysctl", {"kernel.core_pattern": "x"}, 'linux.sysctl["kernel.core_pattern"]'),
    ("linux/sysctl", {"kernel.hostname": "x"}, 'linux.sysctl["kernel.hostname"]'),
    ("linux/sysctl", {"user.max_user_namespaces": "1"}, 'linux.sysctl["user.max_user_namespaces"]'),
    ("linux/sysctl", {"net/../kernel/core_pattern": "x"}, 'linux.sysctl["net/../kernel/core_pattern"]'),
    ("linux/sysctl", {"net.core.somaxconn": "1", "net/core/somaxconn": "2"}, "linux.sysctl"),
    ("linux/sysctl", {"net": "1"}, 'linux.sysctl["net"]'),
]


@pytest.mark.parametrize(("path", "value", "shown"), WRONG)
def test_what_breaks_the_specification_is_refused_with_its_place(path: str, value: Any, shown: str) -> None:
    with pytest.raises(InvalidSpec) as caught:
        runtime.parse(changed(path, value))
    assert caught.value.path == shown
    assert pickle.loads(pickle.dumps(caught.value)).path == shown  # noqa: S301 - our own bytes


RULE = {"names": ["read"], "action": "SCMP_ACT_ALLOW"}
EQUAL = {"index": 0, "value": 1, "op": "SCMP_CMP_EQ"}


@pytest.mark.parametrize(
    ("rule", "shown"),
    [
        (RULE | {"names": []}, "syscalls[0].names"),
        (RULE | {"errnoRet": 1}, "syscalls[0].errnoRet"),
        (RULE | {"action": "SCMP_ACT_NOTIFY"}, "listenerPath"),
        ({"names": ["write"], "action": "SCMP_ACT_NOTIFY"}, "syscalls[0].names"),
        (RULE | {"args": [EQUAL | {"index": 6}]}, "syscalls[0].args[0].index"),
        (RULE | {"args": [EQUAL | {"op": "EQ"}]}, "syscalls[0].args[0].op"),
        (RULE | {"args": [{"index": 0, "op": "SCMP_CMP_EQ"}]}, "syscalls[0].args[0].value"),
    ],
)
def test_broken_filters_are_refused(rule: dict[str, Any], shown: str) -> None:
    with pytest.raises(InvalidSpec) as caught:
        runtime.parse(changed("linux/seccomp", {"defaultAction": "SCMP_ACT_ERRNO", "syscalls": [rule]}))
    assert caught.value.path == f"linux.seccomp.{shown}"


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("process/scheduler", {"policy": "SCHED_ISO"}),
        ("linux/personality", {"domain": "LINUX", "flags": ["ADDR_NO_RANDOMIZE"]}),
    ],
)
def test_what_linux_does_not_have_is_unsupported(path: str, value: Any) -> None:
    with pytest.raises(Unsupported, match=re.escape(path.replace("/", "."))):
        runtime.parse(changed(path, value))


@pytest.mark.parametrize(
    ("uids", "reason"),
    [
        ([(0, 1000, 10), (5, 5000, 10)], "overlap at containerID 5"),
        ([(0, 1000, 10), (50, 1009, 10)], "overlap at hostID 1009"),
        ([(0, 1000, 0)], "is 0"),
        ([(0, 2**32 - 1, 1)], "the last id is"),
        ([(index, index, 1) for index in range(341)], "has 341 ranges"),
    ],
)
def test_ranges_of_ids_that_the_kernel_refuses(uids: list[tuple[int, int, int]], reason: str) -> None:
    ranges = [{"containerID": inside, "hostID": outside, "size": size} for inside, outside, size in uids]
    document = changed("linux", {"namespaces": [{"type": "user"}], "uidMappings": ranges, "gidMappings": EVERYWHERE})
    with pytest.raises(InvalidSpec, match=reason):
        runtime.parse(document)


@pytest.mark.parametrize(
    ("kind", "path", "value", "shown"),
    [
        ("uts", "hostname", "c1", "hostname"),
        ("uts", "domainname", "example", "domainname"),
        ("network", "linux/sysctl", {"net.ipv4.ip_forward": "1"}, 'linux.sysctl["net.ipv4.ip_forward"]'),
        ("ipc", "linux/sysctl", {"kernel.shmmax": "1"}, 'linux.sysctl["kernel.shmmax"]'),
        ("ipc", "linux/sysctl", {"fs.mqueue.msg_max": "1"}, 'linux.sysctl["fs.mqueue.msg_max"]'),
        ("uts", "linux/sysctl", {"kernel.domainname": "x"}, 'linux.sysctl["kernel.domainname"]'),
        ("network", "linux/netDevices", {"eth0": {}}, "linux.netDevices"),
        ("mount", "linux/maskedPaths", ["/proc/kcore"], "linux.maskedPaths"),
        ("mount", "linux/readonlyPaths", ["/proc/sys"], "linux.readonlyPaths"),
    ],
)
def test_what_would_change_the_host_needs_its_namespace(kind: str, path: str, value: Any, shown: str) -> None:
    document = changed(path, value)
    runtime.parse(document)
    document["linux"]["namespaces"] = [space for space in document["linux"]["namespaces"] if space["type"] != kind]
    with pytest.raises(InvalidSpec) as caught:
        runtime.parse(document)
    assert caught.value.path == shown


def test_one_thing_is_said_once() -> None:
    document = changed("linux/sysctl", {"kernel.domainname": "a"}) | {"domainname": "b"}
    with pytest.raises(InvalidSpec, match="the property domainname says the same"):
        runtime.parse(document)


def test_a_document_is_brought_to_one_form() -> None:
    document = changed("mounts", [{"destination": "proc", "type": "proc"}])
    document["linux"]["devices"] = [{"type": "c", "path": "/dev/x", "major": 1, "minor": 3, "fileMode": 0o020640}]
    document["linux"]["resources"] = {"devices": [{"allow": True, "type": "c", "major": 1, "minor": -1}]}
    spec = runtime.parse(document)
    assert spec.mounts[0].destination == "/proc"
    assert spec.linux.devices[0].file_mode == 0o640
    assert spec.linux.resources is not None
    assert spec.linux.resources.devices == (runtime.DeviceRule(allow=True, type="c", major=1, access="rwm"),)


@pytest.mark.parametrize(
    ("name", "path"),
    [
        ("net.ipv4.conf.eth0/1.forwarding", "net/ipv4/conf/eth0.1/forwarding"),
        ("net/ipv4/conf/eth0.1/forwarding", "net/ipv4/conf/eth0.1/forwarding"),
        ("kernel.shm_rmid_forced", "kernel/shm_rmid_forced"),
    ],
)
def test_names_of_kernel_parameters(name: str, path: str) -> None:
    assert sysctl_path(name) == path


@pytest.mark.parametrize("name", ["", "net", "net..x", "net.", ".net.x", "/net/x", "net/./x", "net.//.x", "net/..//x"])
def test_names_that_lead_elsewhere(name: str) -> None:
    with pytest.raises(ValueError, match="not the name of a kernel parameter"):
        sysctl_path(name)


def test_text_without_utf8_is_not_written() -> None:
    spec = runtime.Spec(root=runtime.Root(path="/r\udcff"))
    with pytest.raises(InvalidSpec, match="no UTF-8 form"):
        runtime.to_json(spec)


def test_values_are_frozen_and_can_be_copied_and_sent() -> None:
    spec = runtime.parse(MINIMAL)
    with pytest.raises(AttributeError):
        spec.hostname = "x"  # type: ignore[misc]
    assert copy.deepcopy(spec) == spec
    assert pickle.loads(pickle.dumps(spec)) == spec  # noqa: S301 - our own bytes


def test_values_compare_and_hash_by_their_fields() -> None:
    one, same = (runtime.Namespace(type="pid", path="/p") for _ in range(2))
    assert one == same
    assert hash(one) == hash(same)
    assert one != runtime.Namespace(type="pid")
    assert runtime.Pids(limit=1) != runtime.HugepageLimit(page_size="2MB", limit=1)
    assert runtime.TimeOffsets() != runtime.ExecCpuAffinity()
    assert {runtime.parse(MINIMAL).linux.namespaces: 1}


def test_values_show_what_differs_from_the_defaults() -> None:
    assert repr(runtime.Mount(destination="/a", options=("ro",))) == "Mount(destination='/a', options=('ro',))"
    assert repr(runtime.Linux()) == "Linux()"
    spec = runtime.parse(MINIMAL)
    assert eval(repr(spec), vars(runtime).copy()) == spec  # noqa: S307 - our own text


def test_absent_process_is_the_callers_to_add() -> None:
    assert runtime.parse(without("process")).process is None
    with pytest.raises(InvalidSpec, match=r"process\.args: is missing"):
        runtime.parse(without("process/args"))


def test_constructing_is_cheap() -> None:
    seconds = min(timeit.repeat(lambda: runtime.Process(args=("sh",), cwd="/"), number=1000, repeat=5)) / 1000
    assert seconds < 20e-6  # about 1 µs on an idle machine


def test_an_annotation_that_documents_do_not_know_is_named() -> None:
    import attrs

    @attrs.frozen
    class Strange:
        value: float

    with pytest.raises(TypeError, match="float"):
        documents.read(Strange, {"value": 1.5})
