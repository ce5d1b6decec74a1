"""The compiled start of a container: which steps, and in which order; nothing of it is run here."""

from __future__ import annotations

import types
from pathlib import Path
from typing import Any, cast

import attrs
import pytest

from pycontainer._ffi import lib
from pycontainer.errors import Unsupported
from pycontainer.launch import Options, document
from pycontainer.model import Device, IdMap, ImageConfig, Limits, Mount, Rlimit
from pycontainer.oci import runtime as oci
from pycontainer.runtime import labels, plan
from pycontainer.runtime.cgroups import Cgroups, Hierarchy
from pycontainer.runtime.idmaps import UserNamespaces
from pycontainer.runtime.keeper import Keeper
from pycontainer.runtime.overlay import kernel_version
from pycontainer.runtime.seccomp import Filter
from pycontainer.runtime.users import Identity
from tests.programs import Read, Step, op_names, read

ID = "ab" * 32
FILTER = Filter(program=b"\x06\0\0\0\0\0\xff\x7f", flags=0)
KEEPER_FD, FIRST_CGROUP_FD = 40, 50


def cgroups(version: str) -> Cgroups:
    """Return the control groups of a host that need not be this one; its descriptors are numbers that nobody opens."""
    made = Cgroups.__new__(Cgroups)
    made.version = version
    if version == "v2":
        names = ("cpu", "cpuset", "io", "memory", "pids")
        made.hierarchies = (Hierarchy(controllers=names, path="/sys/fs/cgroup", name="cgroup"),)
    else:
        groups = (("memory",), ("pids",), ("cpu", "cpuacct"), ("devices",), ("cpuset",), ("blkio",))
        made.hierarchies = tuple(
            Hierarchy(controllers=names, path="/sys/fs/cgroup/" + ",".join(names), name=",".join(names))
            for names in groups
        )
    made._fds = {hierarchy.path: FIRST_CGROUP_FD + n for n, hierarchy in enumerate(made.hierarchies)}
    made._by_controller = {name: hierarchy for hierarchy in made.hierarchies for name in hierarchy.controllers}
    made._device_programs = {}
    return made


def start(spec: oci.Spec, version: str = "v1", **changes: Any) -> plan.Start:
    fields: dict[str, Any] = {
        "spec": spec,
        "container_id": ID,
        "cgroup": ID,
        "root": plan.Overlay(lowers=("/l/top", "/l/base"), directory=f"/runs/{ID}"),
        "keeper": cast("Keeper", types.SimpleNamespace(instance_fd=KEEPER_FD, requests_fd=-1, guard=lambda: None)),
        "cgroups": cgroups(version),
        "user_namespaces": UserNamespaces(),
        "files": {"/etc/hosts": b"hosts\n", "/etc/hostname": b"box\n"},
    }
    return plan.Start(**{**fields, **changes})


def spec_of(**options: Any) -> oci.Spec:
    config = ImageConfig(command=["sh", "-c", "true"])
    return document(ID, config, Options(**options), Identity(uid=0, gid=0, groups=(), home="/root"))


def built(spec: oci.Spec | None = None, version: str = "v1", *, fields: dict[str, Any] | None = None, **o: Any) -> Read:
    return read(plan.build(start(spec or spec_of(**o), version, **(fields or {}))).pack())


def found(steps: list[Step], op: str) -> list[Step]:
    return [step for step, name in zip(steps, op_names(steps), strict=True) if name == op]


def in_order(steps: list[Step], *wanted: str) -> None:
    """Check that these operations come in this order, each once."""
    names = op_names(steps)
    for name in wanted:
        assert names.count(name) == 1, (name, names)
    places = [names.index(name) for name in wanted]
    assert places == sorted(places), names


def of_process(spec: oci.Spec, **changes: Any) -> oci.Spec:
    assert spec.process is not None
    return attrs.evolve(spec, process=attrs.evolve(spec.process, **changes))


def resources_without_devices(spec: oci.Spec) -> oci.Spec:
    assert spec.linux.resources is not None
    resources = attrs.evolve(spec.linux.resources, devices=())
    return attrs.evolve(spec, linux=attrs.evolve(spec.linux, resources=resources))


# ── order ──


def test_the_order_is_the_specifications() -> None:
    steps = built(spec_of(read_only=True), fields={"seccomp": FILTER}).child
    in_order(
        steps, "UNSHARE", "HOSTNAME", "LOOPBACK", "PIVOT", "KEYRING", "SETSID", "STDIO", "CLOSE_ALL", "CHDIR",
        "BOUNDING", "SECCOMP", "GROUPS", "IDS", "CAPS", "PRCTL", "EXEC",
    )  # fmt: skip
    names = op_names(steps)
    assert names[-1] == "EXEC"
    # Everything that is mounted, made, masked or written is so before the process is anybody.
    last = max(n for n, name in enumerate(names) if name in ("ATTACH", "MASK", "READONLY", "MKNOD", "WRITE", "SETATTR"))
    assert last < names.index("KEYRING")


@pytest.mark.parametrize("tty", [False, True])
def test_nothing_is_opened_after_all_is_closed(tty: bool) -> None:
    steps = built(tty=tty).child
    names = op_names(steps)
    after = names[names.index("CLOSE_ALL") + 1 :]
    assert names.index("CLOSE_ALL") < names.index("CHDIR")  # CVE-2024-21626: a working directory by a descriptor
    assert names.index("TTY" if tty else "STDIO") < names.index("CLOSE_ALL")
    assert set(after) <= {"CHDIR", "RLIMIT", "BOUNDING", "SECCOMP", "GROUPS", "IDS", "CAPS", "UMASK", "PRCTL", "EXEC"}
    for step in steps[names.index("CLOSE_ALL") + 1 :]:
        assert step.fd == step.fd2 == step.ret == -1


def test_the_filter_is_last_with_no_new_privs() -> None:
    steps = built(no_new_privileges=True, fields={"seccomp": FILTER}).child
    assert op_names(steps)[-3:] == ["NO_NEW_PRIVS", "SECCOMP", "EXEC"]
    assert steps[-2].data == FILTER.program


def test_the_filter_comes_while_it_may_without_no_new_privs() -> None:
    steps = built(fields={"seccomp": FILTER}).child
    in_order(steps, "CLOSE_ALL", "SECCOMP", "IDS", "CAPS", "EXEC")
    assert "NO_NEW_PRIVS" not in op_names(steps)


def test_without_a_filter_there_is_none() -> None:
    assert "SECCOMP" not in op_names(built().child)


def test_groups_before_ids_before_capabilities() -> None:
    user = oci.User(uid=1000, gid=50, additional_gids=(4, 27), umask=0o27)
    steps = built(of_process(spec_of(), user=user)).child
    (groups,), (ids,), (caps,) = found(steps, "GROUPS"), found(steps, "IDS"), found(steps, "CAPS")
    assert steps.index(groups) < steps.index(ids) < steps.index(caps)
    assert groups.data == b"\x04\0\0\0\x1b\0\0\0"
    assert (ids.a, ids.b) == (1000, 50)
    assert [step.a for step in found(steps, "UMASK")] == [0, 0o27]


def test_limits_of_resources_come_when_no_more_files_are_needed() -> None:
    steps = built(rlimits=(Rlimit("nofile", 3), Rlimit("nproc", 4, 5))).child
    names = op_names(steps)
    assert [(step.a, step.b, step.c) for step in found(steps, "RLIMIT")] == [(7, 3, 3), (6, 4, 5)]
    assert names.index("CHDIR") < names.index("RLIMIT") < names.index("IDS")


def test_it_parks_for_the_hooks_that_there_are() -> None:
    in_order(built(fields={"parks": frozenset({plan.SYNC_CREATE_RUNTIME})}).child, "UNSHARE", "SYNC", "PIVOT")
    in_order(built(fields={"parks": frozenset({plan.SYNC_START_CONTAINER})}).child, "PIVOT", "SYNC", "CLOSE_ALL")
    assert "SYNC" not in op_names(built().child)


def test_for_hooks_that_look_for_mounts_the_root_is_entered_last() -> None:
    fields = {"parks": frozenset({plan.SYNC_CREATE_CONTAINER}), "root": plan.Directory(path="/bundle/rootfs")}
    steps = built(fields=fields).child
    names = op_names(steps)
    assert names.index("FSMOUNT") < names.index("SYNC") < names.index("PIVOT") < names.index("MKNOD")


# ── root and mounts ──


def test_sources_of_the_host_are_opened_by_the_host() -> None:
    program = built(mounts=(Mount.bind("/srv/data", "/data", read_only=True),))
    sources = {step.s1 for step in found(program.host, "OPEN_TREE")}
    assert b"/srv/data" in sources
    names = op_names(program.child)
    for step in program.child[names.index("PIVOT") + 1 :]:
        assert step.s1 != b"/srv/data"
    assert b"/data" in {step.s1 for step in found(program.child[names.index("PIVOT") :], "ATTACH")}


def test_a_read_only_bind_is_so_before_it_is_seen() -> None:
    program = built(mounts=(Mount.bind("/srv/data", "/data", read_only=True),))
    (tree,) = (step for step in found(program.host, "OPEN_TREE") if step.s1 == b"/srv/data")
    operand = lib.PYC_SLOT_BASE - tree.ret
    changes = [step for step in found(program.host, "SETATTR") if step.fd == operand]
    assert any(step.a & 1 and step.flags & lib.PYC_RECURSIVE for step in changes)
    assert [step for step in found(program.child, "SETATTR") if step.fd == operand] == []


def test_mounts_come_in_the_order_of_the_document() -> None:
    spec = spec_of(mounts=(Mount.tmpfs("/a/b/c"), Mount.tmpfs("/a"), Mount.bind("/srv", "/a/b")))
    steps = built(spec).child
    after = steps[op_names(steps).index("PIVOT") + 1 :]
    wanted = [mount.destination.encode() for mount in spec.mounts]
    assert [step.s1 for step in found(after, "ATTACH") if step.s1 in wanted] == wanted


def test_proc_is_not_mounted_over_a_link_and_nothing_over_proc() -> None:
    attached = {step.s1: step.flags for step in found(built(mounts=(Mount.tmpfs("/x"),)).child, "ATTACH")}
    assert attached[b"/proc"] & lib.PYC_NOFOLLOW
    assert attached[b"/sys"] & lib.PYC_NOFOLLOW
    assert not attached[b"/proc"] & lib.PYC_NOT_PROC
    assert attached[b"/x"] & lib.PYC_NOT_PROC


def test_files_of_etc_are_laid_over_the_images_unless_mounted() -> None:
    attached = {step.s1 for step in found(built().child, "ATTACH")}
    assert {b"/etc/hosts", b"/etc/hostname"} <= attached
    steps = built(mounts=(Mount.bind("/srv/hosts", "/etc/hosts"),)).child
    assert len([step for step in found(steps, "ATTACH") if step.s1 == b"/etc/hosts"]) == 1


def test_masks_and_read_only_paths() -> None:
    steps = built(masked_paths=("/proc/kcore", "/x"), readonly_paths=("/proc/sys",)).child
    assert [step.s1 for step in found(steps, "MASK")] == [b"/proc/kcore", b"/x"]
    assert [step.s1 for step in found(steps, "READONLY")] == [b"/proc/sys"]
    for step in (*found(steps, "MASK"), *found(steps, "READONLY")):
        assert step.flags & lib.PYC_MISSING_OK
    assert found(built(privileged=True).child, "MASK") == []


def test_devices_are_made_in_the_container() -> None:
    steps = built(devices=(Device("/dev/null", "/dev/sub/other"),)).child
    nodes = {step.s1: (step.a, step.b, step.c) for step in found(steps, "MKNOD")}
    assert nodes[b"/dev/null"] == (0o020666, 0x103, 0)
    assert {b"/dev/zero", b"/dev/full", b"/dev/random", b"/dev/urandom", b"/dev/tty"} <= set(nodes)
    assert nodes[b"/dev/sub/other"][1] == 0x103
    links = {step.s1: step.data for step in found(steps, "SYMLINK")}
    assert links[b"/dev/fd"] == b"/proc/self/fd"
    assert links[b"/dev/ptmx"] == b"pts/ptmx"


def test_a_root_of_a_bundle_is_made_private_before_it_is_used() -> None:
    program = built(fields={"root": plan.Directory(path="/bundle/rootfs")})
    (tree,) = (step for step in found(program.host, "OPEN_TREE") if step.s1 == b"/bundle/rootfs")
    operand = lib.PYC_SLOT_BASE - tree.ret
    assert any(step.fd == operand and step.c == 1 << 18 for step in found(program.host, "SETATTR"))
    (pivot,) = found(program.child, "PIVOT")
    assert pivot.fd == operand


def test_kernel_parameters_are_written_through_the_procfs_just_made() -> None:
    steps = built(sysctls={"net.ipv4.ip_forward": "1"}).child
    (write,) = (step for step in found(steps, "WRITE") if step.s1 == b"sys/net/ipv4/ip_forward")
    (proc,) = (step for step in found(steps, "FSMOUNT") if step.s1 == b"proc")
    assert write.fd == lib.PYC_SLOT_BASE - proc.ret
    assert write.flags & lib.PYC_BENEATH
    assert write.data == b"1"


# ── namespaces ──


@pytest.mark.parametrize(
    ("options", "flags"),
    [
        ({}, 0x00020000 | 0x04000000 | 0x08000000 | 0x20000000 | 0x40000000),
        ({"network": "host"}, 0x00020000 | 0x04000000 | 0x08000000 | 0x20000000),
        ({"pid": "host", "ipc": "host", "uts": "host"}, 0x00020000 | 0x40000000),
    ],
)
def test_flags_of_clone(options: dict[str, Any], flags: int) -> None:
    assert built(**options).header[6] == flags


def test_the_cgroup_namespace_is_made_by_who_is_in_the_group() -> None:
    steps = built().child
    (unshare,) = found(steps, "UNSHARE")
    assert unshare.a == 0x02000000
    joined = [n for n, step in enumerate(steps) if step.s1 == f"{ID}/tasks".encode()]
    assert joined
    assert max(joined) < steps.index(unshare)
    assert found(built(cgroupns="host").child, "UNSHARE") == []


def test_a_loopback_interface_belongs_to_a_network_namespace() -> None:
    assert "LOOPBACK" in op_names(built().child)
    assert "LOOPBACK" not in op_names(built(network="host").child)


def test_a_user_namespace() -> None:
    spec = spec_of(userns=(IdMap(0, 100000, 65536),))
    program = plan.build(start(spec))
    steps = read(program.pack())
    assert steps.header[6] & 0x10000000
    assert program.uid_map == program.gid_map == "0 100000 65536\n"
    names = op_names(steps.child)
    # proc and sysfs are made while those of the host are still in sight.
    made = [n for n, step in enumerate(steps.child) if names[n] == "FSMOUNT" and step.s1 in (b"proc", b"sysfs")]
    assert len(made) == 2
    assert max(made) < names.index("PIVOT")
    assert "MKNOD" not in [name for name, step in zip(names, steps.child, strict=True) if step.s1 == b"/dev/null"]
    assert b"/dev/null" in {step.s1 for step in found(steps.host, "OPEN_TREE")}


def test_a_time_namespace() -> None:
    spec = spec_of(timens={"boottime": 5})
    if kernel_version() < (6, 3):
        with pytest.raises(Unsupported, match=r"Linux 6\.3"):
            plan.build(start(spec))
        return
    steps = built(spec).child
    (write,) = (step for step in found(steps, "WRITE") if step.s1 == b"/proc/self/timens_offsets")
    assert write.data == b"boottime 5 0\n"
    assert 0x80 in [step.a for step in found(steps, "UNSHARE")]


# ── control groups ──


def test_limits_are_set_before_the_process_joins() -> None:
    """The caller sets them while the process is being born, which then joins the groups by itself."""
    program = built(limits=Limits(memory="64M", pids=10))
    assert [step.s1.decode() for step in program.host[: program.early]] == [ID]
    early = program.host
    written = {step.s1.decode(): step.data.decode() for step in found(early, "WRITE")}
    assert written[f"{ID}/memory.limit_in_bytes"] == str(64 << 20)
    assert written[f"{ID}/pids.max"] == "10"
    groups = [step.fd for step in found(early, "MKDIR") if step.s1 == ID.encode() and step.fd != KEEPER_FD]
    assert len(groups) == len(set(groups)) >= 3
    joined = [step for step in found(program.child, "WRITE") if step.s1 == f"{ID}/tasks".encode()]
    assert len(joined) == len(groups)
    assert {step.data for step in joined} == {b"0"}


def test_of_version_2_it_is_born_in_its_group() -> None:
    spec = resources_without_devices(spec_of(limits=Limits(memory="64M")))
    program = built(spec, "v2")
    early = program.host[: program.early]
    assert f"{ID}/memory.max" in {step.s1.decode() for step in found(early, "WRITE")}
    (group,) = found(early, "OPEN")
    assert program.header[9] == lib.PYC_SLOT_BASE - group.ret
    assert [step for step in program.child if step.s1.endswith(b"/tasks")] == []


def test_a_limit_that_the_host_has_no_controller_for() -> None:
    spec = spec_of()
    resources = oci.Resources(hugepage_limits=(oci_hugepages(),))
    spec = attrs.evolve(spec, linux=attrs.evolve(spec.linux, resources=resources))
    with pytest.raises(Unsupported, match="hugetlb"):
        plan.build(start(spec))


def oci_hugepages() -> Any:
    from pycontainer.oci.runtime_rare import HugepageLimit

    return HugepageLimit(page_size="2MB", limit=1)


# ── what is refused ──


@pytest.mark.parametrize(
    ("namespaces", "changes", "words"),
    [
        (("pid",), {}, "a container needs a mount namespace of its own"),
        (("mount",), {"hostname": "x"}, "hostname would change the host"),
        (("mount",), {"hostname": None, "domainname": "x"}, "domainname would change the host"),
    ],
)
def test_documents_that_would_change_the_host(namespaces: tuple[str, ...], changes: dict[str, Any], words: str) -> None:
    spec = spec_of()
    linux = attrs.evolve(spec.linux, namespaces=tuple(oci.Namespace(type=kind) for kind in namespaces))  # type: ignore[arg-type]
    with pytest.raises(Unsupported, match=words):
        plan.build(start(attrs.evolve(spec, linux=linux, **changes)))


def test_a_document_without_a_process() -> None:
    with pytest.raises(Unsupported, match="no process to start"):
        plan.build(start(attrs.evolve(spec_of(), process=None)))


@pytest.mark.parametrize(
    ("field", "name", "path"),
    [
        ("apparmor_profile", "process.apparmorProfile: AppArmor", "/proc/self/attr/apparmor/exec"),
        ("selinux_label", "process.selinuxLabel: SELinux", "/proc/self/attr/exec"),
    ],
)
def test_labels_of_the_process(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, field: str, name: str, path: str
) -> None:
    """They are set where the kernel has the security module, which few kernels of tests have, and refused elsewhere."""
    spec = of_process(spec_of(), **{field: "some_label"})
    monkeypatch.setattr(labels, "_APPARMOR", tmp_path / "enabled")
    monkeypatch.setattr(labels, "_SELINUX", tmp_path / "enforce")
    with pytest.raises(Unsupported, match=f"{name} is not in use on this host"):
        plan.build(start(spec))
    (tmp_path / "enabled").write_text("N\n")
    if field == "apparmor_profile":
        with pytest.raises(Unsupported, match=name):
            plan.build(start(spec))
    (tmp_path / "enabled").write_text("Y\n")
    (tmp_path / "enforce").write_text("1")
    steps = built(spec).child
    asked = next(number for number, step in enumerate(steps) if step.s1 == path.encode())
    assert steps[asked].c, "only if it lies on procfs"
    assert asked < op_names(steps).index("PIVOT"), "before anything of the image is in sight"


def test_too_many_mounts_are_refused_with_a_number() -> None:
    mounts = tuple(Mount.tmpfs(f"/m/{number}") for number in range(300))
    with pytest.raises(ValueError, match="too many mounts and devices for one container"):
        built(mounts=mounts)


# ── the same again ──


def test_a_program_fits_another_container_of_the_same_length_of_name() -> None:
    spec, other = spec_of(), "cd" * 32
    packed = plan.build(start(spec)).pack()
    again = packed.replace(ID, other)
    assert ID.encode() not in again.data
    assert read(again).child[-1].op == lib.PYC_OP_EXEC
    assert len(again.data) == len(packed.data)


def test_building_twice_gives_the_same() -> None:
    assert plan.build(start(spec_of())).pack() == plan.build(start(spec_of())).pack()
