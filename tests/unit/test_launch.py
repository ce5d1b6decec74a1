"""The document that a caller's wishes become: docker's defaults, what each option changes, what is refused."""

from __future__ import annotations

import os
from typing import Any

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pycontainer.launch import Options, document, environment, etc_files, full_command
from pycontainer.model import Device, IdMap, ImageConfig, Limits, Mount, Rlimit
from pycontainer.oci import defaults
from pycontainer.oci import runtime as oci
from pycontainer.runtime.users import Identity

ID = "0123456789ab" + "c" * 52
ROOT = Identity(uid=0, gid=0, groups=(), home="/root")
CONFIG = ImageConfig(command=["sh"])


def made(config: ImageConfig = CONFIG, identity: Identity = ROOT, **options: Any) -> oci.Spec:
    """Return a document that the specification's own rules accept."""
    spec = document(ID, config, Options(**options), identity)
    assert oci.parse(oci.to_json(spec)) == spec
    return spec


def wishes(**options: Any) -> Options:
    return Options(**options)


def process(spec: oci.Spec) -> oci.Process:
    assert spec.process is not None
    return spec.process


def kinds(spec: oci.Spec) -> set[str]:
    return {namespace.type for namespace in spec.linux.namespaces}


def mount_at(spec: oci.Spec, path: str) -> oci.Mount:
    (found,) = (mount for mount in spec.mounts if mount.destination == path)
    return found


# ── defaults ──


def test_the_defaults_are_dockers() -> None:
    spec = made()
    found = process(spec)
    assert found.args == ("sh",)
    assert found.cwd == "/"
    assert found.user == oci.User(uid=0, gid=0)
    assert not found.terminal
    assert not found.no_new_privileges
    assert found.rlimits == ()
    assert found.oom_score_adj is None
    assert found.env == (f"PATH={defaults.PATH}", "HOSTNAME=0123456789ab", "HOME=/root")
    assert spec.hostname == "0123456789ab"
    assert spec.domainname is None
    assert not spec.root.readonly
    assert kinds(spec) == {"mount", "network", "uts", "pid", "ipc", "cgroup"}
    assert spec.linux.devices == ()
    assert spec.linux.sysctl == {}
    assert spec.linux.readonly_paths == defaults.READONLY_PATHS
    assert set(spec.linux.masked_paths) >= set(defaults.MASKED_PATHS)
    assert [mount.destination for mount in spec.mounts] == [mount.destination for mount in defaults.MOUNTS]
    assert spec.linux.resources == oci.Resources(devices=defaults.DEVICE_RULES)


def test_no_capability_is_inheritable_or_ambient() -> None:
    for options in ({}, {"privileged": True}, {"cap_add": ("NET_ADMIN",)}):
        sets = process(made(**options)).capabilities
        assert sets is not None
        assert sets.bounding == sets.effective == sets.permitted
        assert sets.inheritable == sets.ambient == ()


@pytest.mark.parametrize(
    ("options", "there", "gone"),
    [
        ({}, {"CAP_CHOWN", "CAP_KILL"}, {"CAP_SYS_ADMIN", "CAP_NET_ADMIN"}),
        ({"cap_add": ["net_admin"]}, {"CAP_NET_ADMIN", "CAP_CHOWN"}, {"CAP_SYS_ADMIN"}),
        ({"cap_drop": ["CHOWN"]}, {"CAP_KILL"}, {"CAP_CHOWN"}),
        ({"cap_drop": ["ALL"]}, set(), set(defaults.CAPABILITIES)),
        ({"cap_drop": ["ALL"], "cap_add": ["KILL"]}, {"CAP_KILL"}, {"CAP_CHOWN"}),
    ],
)
def test_capabilities(options: dict[str, Any], there: set[str], gone: set[str]) -> None:
    sets = process(made(**options)).capabilities
    assert sets is not None
    assert there <= set(sets.bounding)
    assert not gone & set(sets.bounding)


# ── program, environment, directory, user ──


@pytest.mark.parametrize(
    ("image", "wishes", "args"),
    [
        ({"command": ["a"]}, {}, ("a",)),
        ({"command": ["a", "b"]}, {"command": ["c"]}, ("c",)),
        ({"entrypoint": ["e"], "command": ["a"]}, {}, ("e", "a")),
        ({"entrypoint": ["e"], "command": ["a"]}, {"command": ["c", "d"]}, ("e", "c", "d")),
        ({"entrypoint": ["e"], "command": ["a"]}, {"command": []}, ("e",)),
        ({"entrypoint": ["e"], "command": ["a"]}, {"entrypoint": ["n"]}, ("n",)),  # the image's command goes too
        ({"entrypoint": ["e"], "command": ["a"]}, {"entrypoint": ["n"], "command": ["c"]}, ("n", "c")),
        ({"entrypoint": ["e"], "command": ["a"]}, {"entrypoint": [], "command": ["c"]}, ("c",)),
        ({}, {"command": "one word"}, ("one word",)),  # a text is the program alone
    ],
)
def test_program_and_arguments(image: dict[str, Any], wishes: dict[str, Any], args: tuple[str, ...]) -> None:
    assert full_command(ImageConfig(**image), Options(**wishes)) == args


@pytest.mark.parametrize("wishes", [{}, {"command": []}, {"entrypoint": []}])
def test_nothing_to_run(wishes: dict[str, Any]) -> None:
    config = ImageConfig(command=["a"]) if "entrypoint" in wishes else ImageConfig()
    with pytest.raises(ValueError, match=r"nothing to run: .*; give a command"):
        full_command(config, Options(**wishes))


names = st.sampled_from(["PATH", "HOME", "HOSTNAME", "TERM", "A", "B"])
variables = st.dictionaries(names, st.text("xyz=", max_size=3), max_size=5)


@given(variables, variables, st.booleans())
def test_the_caller_before_the_image_before_the_defaults(image: dict[str, str], own: dict[str, str], tty: bool) -> None:
    found = environment(ImageConfig(env=image), Options(env=own, tty=tty), "h", "/home/app")
    usual = {"PATH": defaults.PATH, "HOSTNAME": "h", "HOME": "/home/app", **({"TERM": "xterm"} if tty else {})}
    assert dict(text.split("=", 1) for text in found) == {**usual, **image, **own}
    assert len({text.partition("=")[0] for text in found}) == len(found)


@pytest.mark.parametrize("name", ["", "A=B", "="])
def test_what_is_no_variable(name: str) -> None:
    with pytest.raises(ValueError, match="not the name of an environment variable"):
        environment(CONFIG, Options(env={name: "x"}), "h", "/")


@pytest.mark.parametrize(
    ("image", "wish", "cwd"),
    [("", None, "/"), ("/srv", None, "/srv"), ("srv", None, "/srv"), ("/srv", "/tmp", "/tmp")],
)
def test_working_directory(image: str, wish: str | None, cwd: str) -> None:
    assert process(made(ImageConfig(command=["x"], workdir=image), workdir=wish)).cwd == cwd


def test_a_working_directory_is_absolute() -> None:
    with pytest.raises(ValueError, match="the working directory is an absolute path in the container, not 'srv'"):
        made(workdir="srv")


def test_the_user_is_who_was_looked_up() -> None:
    spec = made(identity=Identity(uid=1000, gid=50, groups=(4, 27), home="/home/app"))
    assert process(spec).user == oci.User(uid=1000, gid=50, additional_gids=(4, 27))
    assert "HOME=/home/app" in process(spec).env


def test_a_terminal() -> None:
    spec = made(tty=True)
    assert process(spec).terminal
    assert "TERM=xterm" in process(spec).env


# ── namespaces ──


@pytest.mark.parametrize(
    ("options", "gone", "more"),
    [
        ({"network": "host"}, {"network"}, set()),
        ({"pid": "host"}, {"pid"}, set()),
        ({"ipc": "host"}, {"ipc"}, set()),
        ({"uts": "host"}, {"uts"}, set()),
        ({"cgroupns": "host"}, {"cgroup"}, set()),
        ({"userns": (IdMap(0, 100000, 65536),)}, set(), {"user"}),
        ({"timens": {}}, set(), {"time"}),
    ],
)
def test_namespaces_by_option(options: dict[str, Any], gone: set[str], more: set[str]) -> None:
    assert kinds(made(**options)) == {"mount", "network", "uts", "pid", "ipc", "cgroup"} - gone | more


@pytest.mark.parametrize("name", ["network", "pid", "ipc", "uts", "cgroupns"])
def test_no_other_namespaces(name: str) -> None:
    with pytest.raises(ValueError, match=f"{name} must be '(none|private)' or 'host', got 'container:x'"):
        wishes(**{name: "container:x"})


def test_id_maps_are_the_same_for_users_and_groups() -> None:
    linux = made(userns=(IdMap(0, 100000, 1000), IdMap(1000, 1000, 1))).linux
    assert linux.uid_mappings == linux.gid_mappings
    assert linux.uid_mappings[0] == oci.IdMapping(container_id=0, host_id=100000, size=1000)


@pytest.mark.parametrize(
    ("seconds", "offset"),
    [(86400, (86400, 0)), (1.5, (1, 500_000_000)), (-1.25, (-2, 750_000_000)), (0, (0, 0))],
)
def test_clocks(seconds: float, offset: tuple[int, int]) -> None:
    offsets = made(timens={"boottime": seconds}).linux.time_offsets
    assert offsets is not None
    assert offsets.monotonic is None
    assert offsets.boottime is not None
    assert (offsets.boottime.secs, offsets.boottime.nanosecs) == offset


def test_the_wall_clock_is_everybodys() -> None:
    with pytest.raises(ValueError, match="timens: the clocks are 'monotonic' and 'boottime', not 'realtime'"):
        made(timens={"realtime": 1})


def test_the_host_cannot_be_renamed() -> None:
    names: tuple[dict[str, Any], ...] = ({"hostname": "x"}, {"domainname": "x"})
    for name in names:
        with pytest.raises(ValueError, match="would rename the host"):
            made(uts="host", **name)
    assert made(uts="host").hostname is None


@pytest.mark.parametrize("name", ["", "-a", "a-", "a b", "a_b", "a" * 65, "a\n", "\0"])
def test_what_is_no_host_name(name: str) -> None:
    with pytest.raises(ValueError, match="not a host name"):
        Options(hostname=name)


# ── mounts ──


@given(
    st.lists(
        st.lists(st.sampled_from("ab"), min_size=1, max_size=4).map(lambda parts: "/m/" + "/".join(parts)),
        unique=True,
        max_size=8,
    )
)
def test_parents_are_mounted_first(targets: list[str]) -> None:
    spec = made(mounts=tuple(Mount.tmpfs(target) for target in targets))
    order = [mount.destination for mount in spec.mounts]
    assert sorted(order[len(defaults.MOUNTS) :]) == sorted(targets)
    for number, path in enumerate(order):
        assert not [later for later in order[number + 1 :] if path.startswith(f"{later}/")], order


@pytest.mark.parametrize("second", ["/data", "/data/"])
def test_two_mounts_of_one_target(second: str) -> None:
    with pytest.raises(ValueError, match="two mounts have the same target: /data"):
        made(mounts=(Mount.tmpfs("/data"), Mount.bind("/srv", second)))


def test_a_mount_takes_the_place_of_a_default() -> None:
    spec = made(mounts=(Mount.tmpfs("/dev/shm", size="1m"),))
    assert "size=1048576" in mount_at(spec, "/dev/shm").options
    assert len(spec.mounts) == len(defaults.MOUNTS)


def test_options_of_mounts() -> None:
    spec = made(
        mounts=(
            Mount.bind("/srv", "/rw"),
            Mount.bind("/srv", "/ro", read_only=True, propagation="rslave", options=("noexec",)),
            Mount.tmpfs("/scratch", size=4096, mode=0o700),
            attrs.evolve(Mount.tmpfs("/empty"), read_only=True),
        )
    )
    assert mount_at(spec, "/rw").options == ("rbind", "rprivate")
    assert mount_at(spec, "/ro").options == ("rbind", "rslave", "noexec", "rro")  # in nested mounts neither
    assert mount_at(spec, "/scratch").options == ("nosuid", "nodev", "mode=700", "size=4096")
    assert "ro" in mount_at(spec, "/empty").options


def test_memory_that_is_shared() -> None:
    assert "size=4096" in mount_at(made(shm_size="4k"), "/dev/shm").options
    host = mount_at(made(ipc="host"), "/dev/shm")
    assert (host.type, host.source) == ("bind", "/dev/shm")


def test_privileged() -> None:
    spec = made(privileged=True)
    assert spec.linux.masked_paths == spec.linux.readonly_paths == ()
    assert not any("ro" in mount.options for mount in spec.mounts)
    resources = spec.linux.resources
    assert resources is not None
    assert resources.devices == (oci.DeviceRule(allow=True),)


def test_paths_by_wish() -> None:
    linux = made(masked_paths=("/a",), readonly_paths=()).linux
    assert linux.masked_paths == ("/a",)
    assert linux.readonly_paths == ()
    assert made(privileged=True, masked_paths=("/a",)).linux.masked_paths == ("/a",)


# ── kernel parameters, limits, devices ──


@pytest.mark.parametrize(
    ("name", "needs"),
    [
        ("net.ipv4.ip_forward", {"network": "host"}),
        ("net/core/somaxconn", {"network": "host"}),
        ("kernel.shmmax", {"ipc": "host"}),
        ("kernel.msgmax", {"ipc": "host"}),
        ("kernel.sem", {"ipc": "host"}),
        ("fs.mqueue.msg_max", {"ipc": "host"}),
        ("kernel.domainname", {"uts": "host"}),
    ],
)
def test_kernel_parameters_of_namespaces(name: str, needs: dict[str, Any]) -> None:
    assert made(sysctls={name: "1"}).linux.sysctl == {name: "1"}
    with pytest.raises(ValueError, match=f"sysctl {name} .*would change the host"):
        made(sysctls={name: "1"}, **needs)


@pytest.mark.parametrize(
    "name", ["kernel.core_pattern", "vm.swappiness", "kernel.hostname", "fs.file-max", "kernel.panic", "user.max_x"]
)
def test_kernel_parameters_of_the_host(name: str) -> None:
    with pytest.raises(ValueError, match="would change the host"):
        made(sysctls={name: "1"})


@pytest.mark.parametrize("name", ["", "net", "net..x", "net/../kernel/panic", "/net/x", "net.ipv4.", "net/./x"])
def test_what_is_no_kernel_parameter(name: str) -> None:
    with pytest.raises(ValueError, match="is not the name of a kernel parameter"):
        made(sysctls={name: "1"})


def test_limits() -> None:
    resources = made(
        limits=Limits(
            memory="64M", memory_swap="96M", memory_reservation="32M", cpus=1.5, cpu_shares=512, cpuset_cpus="0",
            pids=10, io_weight=500,
        )
    ).linux.resources  # fmt: skip
    assert resources is not None
    assert resources.memory == oci.Memory(limit=64 << 20, swap=96 << 20, reservation=32 << 20)
    assert resources.cpu == oci.Cpu(quota=150_000, period=100_000, shares=512, cpus="0")
    assert resources.pids == oci.Pids(limit=10)
    assert resources.block_io == oci.BlockIo(weight=500)


@given(st.floats(0.01, 4096))
def test_a_quota_is_one_that_the_kernel_takes(cpus: float) -> None:
    resources = made(limits=Limits(cpus=cpus)).linux.resources
    assert resources is not None
    assert resources.cpu is not None
    assert resources.cpu.quota is not None
    assert resources.cpu.period == 100_000
    assert resources.cpu.quota >= 1000
    assert abs(resources.cpu.quota - cpus * 100_000) <= 1


def test_limits_of_resources() -> None:
    limits = process(made(rlimits=(Rlimit("nofile", 10, 20), Rlimit("core", -1)))).rlimits
    assert limits == (
        oci.Rlimit(type="RLIMIT_NOFILE", soft=10, hard=20),
        oci.Rlimit(type="RLIMIT_CORE", soft=(1 << 64) - 1, hard=(1 << 64) - 1),
    )
    with pytest.raises(ValueError, match=r"not a resource limit: 'files'; see getrlimit\(2\)"):
        made(rlimits=(Rlimit("files", 1),))


def test_a_device() -> None:
    spec = made(devices=(Device("/dev/null", "/dev/other", "r"),))
    (device,) = spec.linux.devices
    assert (device.type, device.path, device.major, device.minor) == ("c", "/dev/other", 1, 3)
    resources = spec.linux.resources
    assert resources is not None
    assert resources.devices[-1] == oci.DeviceRule(allow=True, type="c", major=1, minor=3, access="r")
    assert resources.devices[0] == oci.DeviceRule(allow=False)


def test_other_options_arrive() -> None:
    spec = made(read_only=True, no_new_privileges=True, oom_score_adj=500, domainname="d", hostname="h")
    assert spec.root.readonly
    assert process(spec).no_new_privileges
    assert process(spec).oom_score_adj == 500
    assert (spec.hostname, spec.domainname) == ("h", "d")


@pytest.mark.parametrize("name", ["groups", "dns", "cap_add", "cap_drop"])
def test_a_text_is_no_list_of_texts(name: str) -> None:
    with pytest.raises(TypeError, match="a list of texts is wanted"):
        wishes(**{name: "NET_ADMIN"})


# ── /etc ──


def test_files_of_etc() -> None:
    files = etc_files("box", Options(dns=["192.0.2.1", "2001:db8::1"], extra_hosts={"db": "192.0.2.7"}))
    assert files["/etc/hostname"] == b"box\n"
    assert files["/etc/resolv.conf"] == b"nameserver 192.0.2.1\nnameserver 2001:db8::1\n"
    hosts = [line.split() for line in files["/etc/hosts"].splitlines()]
    assert [b"127.0.0.1", b"localhost"] in hosts
    assert [b"192.0.2.7", b"db"] in hosts
    assert any(fields[-1] == b"box" for fields in hosts)


def test_without_a_network_there_are_no_name_servers() -> None:
    assert etc_files("box", Options())["/etc/resolv.conf"] == b""


def test_files_of_etc_with_the_network_of_the_host() -> None:
    files = etc_files("box", Options(network="host"))
    for path in ("/etc/hosts", "/etc/resolv.conf"):
        if os.path.exists(path):  # noqa: PTH110 - short
            with open(path, "rb") as file:  # noqa: PTH123 - the same
                assert files[path] == file.read()
    assert files["/etc/hostname"] == b"box\n"


@pytest.mark.parametrize(
    "options", [{"dns": ["resolver"]}, {"dns": ["1.2.3.4\nsearch x"]}, {"extra_hosts": {"a": "x"}}, {"dns": [""]}]
)
def test_addresses_are_addresses(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="does not appear to be an IPv4 or IPv6 address"):
        Options(**options)
