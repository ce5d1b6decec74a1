"""engine.run_bundle: every Linux field of the runtime specification has its effect, or is refused; hooks; documents."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import platform
import select
import signal
import socket
import struct
import subprocess
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pycontainer import Engine, Error, InvalidSpec, Result, Running, StartError, Unsupported
from pycontainer.runtime.overlay import kernel_version

Document = dict[str, Any]
Bundle = Callable[..., Path]


def base() -> Document:
    return {
        "ociVersion": "1.2.0",
        "root": {"path": "rootfs"},
        "process": {"args": ["true"], "cwd": "/", "user": {"uid": 0, "gid": 0}, "env": ["PATH=/bin"]},
        "mounts": [
            {"destination": "/proc", "type": "proc", "source": "proc"},
            {"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["mode=755"]},
        ],
        "linux": {"namespaces": [{"type": kind} for kind in ("mount", "pid", "ipc", "uts", "network")]},
    }


@pytest.fixture
def bundle(tmp_path: Path, busybox_rootfs: Path) -> Bundle:
    """Give a function that makes a bundle: a shell script to run, and changes of the document by dotted name."""
    subprocess.run(["cp", "-a", str(busybox_rootfs), str(tmp_path / "rootfs")], check=True)

    def make(script: str = "true", /, **changes: object) -> Path:
        document = base()
        document["process"]["args"] = ["sh", "-c", script]
        for name, value in changes.items():
            *parents, last = name.split("__")
            place = document
            for parent in parents:
                place = place.setdefault(parent, {})
            place[last] = value
        (tmp_path / "config.json").write_text(json.dumps(document))
        return tmp_path

    return make


def run(engine: Engine, path: Path, **options: object) -> Result:
    return engine.run_bundle(path, timeout=30, **options)  # type: ignore[arg-type]


def namespaces(*kinds: str) -> list[dict[str, str]]:
    return [{"type": kind} for kind in kinds]


ALL_CAPS = ["CAP_NET_ADMIN", "CAP_SYS_CHROOT", "CAP_KILL"]

# dotted field of the document, its value, what shows it inside, what that prints
EFFECTS: list[tuple[str, object, str, str]] = [
    ("hostname", "box", "hostname", "box"),
    ("domainname", "dom.example", "cat /proc/sys/kernel/domainname", "dom.example"),
    ("root__readonly", True, "touch /x 2>/dev/null || echo ro", "ro"),
    ("process__cwd", "/etc", "pwd", "/etc"),
    ("process__env", ["PATH=/bin", "A=1"], "echo $A", "1"),
    ("process__user", {"uid": 7, "gid": 8, "additionalGids": [9, 10]}, "id -u; id -g; id -G", "7 8 8 9 10"),
    ("process__user", {"uid": 0, "gid": 0, "umask": 0o077}, "umask", "0077"),
    ("process__noNewPrivileges", True, "grep NoNewPrivs /proc/self/status | cut -f2", "1"),
    ("process__oomScoreAdj", 555, "cat /proc/self/oom_score_adj", "555"),
    ("process__rlimits", [{"type": "RLIMIT_NOFILE", "soft": 77, "hard": 88}], "ulimit -n; ulimit -Hn", "77 88"),
    (
        "process__capabilities",
        {"bounding": ALL_CAPS, "effective": ALL_CAPS, "permitted": ALL_CAPS},
        "grep -E 'Cap(Eff|Prm|Bnd)' /proc/self/status | cut -f2",
        " ".join([f"{1 << 12 | 1 << 18 | 1 << 5:016x}"] * 3),
    ),
    (
        "process__capabilities",
        {"bounding": ALL_CAPS, "inheritable": ALL_CAPS, "permitted": ALL_CAPS, "ambient": ["CAP_KILL"]},
        "grep -E 'Cap(Amb|Inh)' /proc/self/status | cut -f2",
        f"{1 << 12 | 1 << 18 | 1 << 5:016x} {1 << 5:016x}",
    ),
    ("process__scheduler", {"policy": "SCHED_BATCH", "nice": 3}, "cut -d' ' -f19,41 /proc/self/stat", "3 3"),
    ("process__execCPUAffinity", {"final": "0"}, "grep Cpus_allowed_list /proc/self/status | cut -f2", "0"),
    ("process__ioPriority", {"class": "IOPRIO_CLASS_IDLE", "priority": 0}, "ionice -p 1 | cut -d: -f1", "idle"),
    ("linux__personality", {"domain": "LINUX32"}, "uname -m", "i686" if os.uname().machine == "x86_64" else "armv8l"),
    ("linux__sysctl", {"net.ipv4.ip_forward": "1"}, "cat /proc/sys/net/ipv4/ip_forward", "1"),
    ("linux__maskedPaths", ["/proc/version", "/etc"], "cat /proc/version; ls /etc; echo masked", "masked"),
    ("linux__readonlyPaths", ["/etc"], "touch /etc/x 2>/dev/null || echo ro", "ro"),
    ("linux__rootfsPropagation", "private", "echo fine", "fine"),
    (
        "linux__devices",
        [{"type": "c", "path": "/dev/sub/null2", "major": 1, "minor": 3, "fileMode": 0o640, "uid": 5, "gid": 6}],
        "stat -c '%a %u %g %t:%T' /dev/sub/null2",
        "640 5 6 1:3",
    ),
    ("linux__devices", [{"type": "p", "path": "/dev/pipe"}], "test -p /dev/pipe && echo fifo", "fifo"),
    ("linux__namespaces", namespaces("mount", "pid", "cgroup"), "cut -d: -f3 /proc/self/cgroup | grep -c '^/$'", ""),
    ("linux__namespaces", namespaces("mount"), "test $$ -gt 1 && echo host", "host"),
    (
        "mounts",
        [*base()["mounts"], {"destination": "/m", "type": "tmpfs", "source": "t", "options": ["size=1m", "noexec"]}],
        "grep ' /m ' /proc/mounts | cut -d' ' -f4 | cut -d, -f1-4",  # some kernels add inode64
        "rw,noexec,relatime,size=1024k",
    ),
    (
        "mounts",
        [*base()["mounts"], {"destination": "/m", "type": "bind", "source": "rootfs/etc", "options": ["rbind", "ro"]}],
        "ls /m/passwd; touch /m/x 2>/dev/null || echo ro",
        "/m/passwd ro",
    ),
    ("annotations", {"org.example": "x"}, "echo fine", "fine"),
]


@pytest.mark.parametrize(("field", "value", "script", "shown"), EFFECTS)
def test_field_has_its_effect(
    stocked: Engine, bundle: Bundle, field: str, value: object, script: str, shown: str
) -> None:
    result = run(stocked, bundle(script, **{field: value}))
    if shown:
        assert " ".join(result.stdout.decode().split()) == shown, result
    else:
        assert result.stdout != b"0\n"


RESOURCES: list[tuple[dict[str, object], str, str, str]] = [
    ({"memory": {"limit": 64 << 20}}, "memory", "memory.limit_in_bytes", str(64 << 20)),
    ({"memory": {"reservation": 32 << 20}}, "memory", "memory.soft_limit_in_bytes", str(32 << 20)),
    ({"memory": {"swappiness": 7}}, "memory", "memory.swappiness", "7"),
    ({"memory": {"disableOOMKiller": True}}, "memory", "memory.oom_control", "oom_kill_disable 1"),
    ({"cpu": {"shares": 300}}, "cpu", "cpu.shares", "300"),
    ({"cpu": {"quota": 50000, "period": 100000}}, "cpu", "cpu.cfs_quota_us", "50000"),
    ({"cpu": {"quota": 50000, "period": 100000, "burst": 1000}}, "cpu", "cpu.cfs_burst_us", "1000"),
    ({"cpu": {"idle": 1}}, "cpu", "cpu.idle", "1"),
    ({"cpu": {"cpus": "0", "mems": "0"}}, "cpuset", "cpuset.cpus", "0"),
    ({"pids": {"limit": 17}}, "pids", "pids.max", "17"),
    ({"pids": {"limit": -1}}, "pids", "pids.max", "max"),
]


@pytest.mark.parametrize(("resources", "controller", "file", "value"), RESOURCES)
def test_resources_of_version_1(
    stocked: Engine, bundle: Bundle, resources: dict[str, object], controller: str, file: str, value: str
) -> None:
    if not Path("/sys/fs/cgroup", controller, "cgroup.procs").exists():
        pytest.skip(f"there is no cgroup v1 {controller} controller here")
    mounts = [*base()["mounts"], {"destination": "/cg", "type": "cgroup", "source": "cgroup", "options": ["ro"]}]
    path = bundle(f"cat /cg/{controller}/{file}", linux__resources=resources, mounts=mounts)
    result = run(stocked, path)
    assert value in result.stdout.decode().splitlines(), result


@pytest.mark.parametrize("allowed", [False, True])
def test_device_rules(stocked: Engine, bundle: Bundle, allowed: bool) -> None:
    control = Path("/dev/loop-control")
    if not control.exists():
        pytest.skip("there is no device that may be opened without consequences: /dev/loop-control")
    number = {
        "type": "c",
        "major": os.major(control.stat().st_rdev),
        "minor": os.minor(control.stat().st_rdev),
    }
    rules = [{"allow": False, "access": "rwm"}, {"allow": allowed, "access": "r", **number}]
    path = bundle(
        "echo x >/dev/null && exec </dev/control && echo open",
        linux__devices=[{"path": "/dev/control", **number}],
        linux__resources={"devices": rules},
    )
    result = run(stocked, path)
    assert result.stdout == (b"open\n" if allowed else b""), result
    assert allowed or b"Operation not permitted" in result.stderr


def test_version_2_resources_on_version_1(stocked: Engine, bundle: Bundle) -> None:
    if not Path("/sys/fs/cgroup/memory").exists() or Path("/sys/fs/cgroup/cgroup.controllers").exists():
        pytest.skip("cgroup v2 has what this is about")
    with pytest.raises(Unsupported, match="unified"):
        run(stocked, bundle(linux__resources={"unified": {"memory.high": "1000000"}}))


REFUSED: list[tuple[str, object]] = [
    ("linux__intelRdt", {"closID": "x"}),
    ("linux__mountLabel", "system_u:object_r:x"),
    ("process__selinuxLabel", "system_u:system_r:x"),
    ("process__apparmorProfile", "profile"),
    ("linux__namespaces", namespaces("pid")),
    ("linux__resources", {"memory": {"kernel": 1 << 20}}),
    ("linux__resources", {"blockIO": {"leafWeight": 100}}),
    ("hostname", "x"),  # with no uts namespace, see below
]


@pytest.mark.parametrize(("field", "value"), REFUSED)
def test_field_is_refused_not_ignored(stocked: Engine, bundle: Bundle, field: str, value: object) -> None:
    changes: dict[str, object] = {field: value}
    if field == "hostname":
        changes["linux__namespaces"] = namespaces("mount", "pid")
    with pytest.raises(Error) as caught:
        run(stocked, bundle(**changes))
    assert (
        field.rpartition("__")[2] in str(caught.value)
        or "namespace" in str(caught.value)
        or "memory" in str(caught.value)
        or "must be loaded" in str(caught.value)  # where AppArmor is in use
    )


def test_a_tmpfs_is_filled_with_what_it_covers(stocked: Engine, bundle: Bundle) -> None:
    options = ["tmpcopyup", "size=4m", "nosuid"]
    mounts = [
        *base()["mounts"],
        {"destination": "/stuff", "type": "tmpfs", "source": "tmpfs", "options": options},
        {"destination": "/fixed", "type": "tmpfs", "source": "tmpfs", "options": [*options, "mode=1777", "ro"]},
        {"destination": "/absent", "type": "tmpfs", "source": "tmpfs", "options": options},
    ]
    script = """
        cd /stuff; find . | sort; stat -c '%a %u %g %Y' . deep/set; cat deep/a/b/file; readlink out
        echo more >deep/a/b/file; echo new >new; stat -c '%F %t %T' null
        stat -c %a /fixed; cat /fixed/one; touch /fixed/two 2>/dev/null || echo read-only; ls /absent
    """
    path = bundle(script, mounts=mounts)
    stuff = path / "rootfs/stuff"
    (stuff / "deep/a/b").mkdir(parents=True)
    (stuff / "deep/a/b/file").write_text("content\n")
    (stuff / "deep/set").touch()
    os.chown(stuff / "deep/set", 7, 8)
    (stuff / "deep/set").chmod(0o6755)
    os.utime(stuff / "deep/set", (1000, 2000))
    (stuff / "out").symlink_to("/etc/../../../outside")
    os.mkfifo(stuff / "pipe")
    os.mknod(stuff / "null", 0o020600, os.makedev(1, 3))
    stuff.chmod(0o750)
    (path / "rootfs/fixed").mkdir()
    (path / "rootfs/fixed/one").write_text("1\n")
    lines = run(stocked, path).stdout.decode().splitlines()
    assert lines[:9] == [
        ".",
        "./deep",
        "./deep/a",
        "./deep/a/b",
        "./deep/a/b/file",
        "./deep/set",
        "./null",
        "./out",
        "./pipe",
    ]
    assert lines[9].startswith("750 0 0 ")
    assert lines[10:] == [
        "6755 7 8 2000",
        "content",
        "/etc/../../../outside",
        "character special file 1 3",
        "1777",
        "1",
        "read-only",
    ]
    assert (stuff / "deep/a/b/file").read_text() == "content\n"
    assert not (stuff / "new").exists()


@pytest.mark.parametrize(
    ("kind", "make", "words"),
    [
        ("tmpfs", lambda root: (root / "stuff/big").write_bytes(bytes(2 << 20)), "No space left"),
        ("tmpfs", lambda root: Path(root, "stuff", *["d"] * 70).mkdir(parents=True), "/stuff"),
        ("mqueue", lambda _root: None, "tmpcopyup is for a tmpfs"),
    ],
    ids=["larger", "deeper", "not-a-tmpfs"],
)
def test_a_tmpfs_that_cannot_be_filled(
    stocked: Engine, bundle: Bundle, kind: str, make: Callable[[Path], object], words: str
) -> None:
    mount = {"destination": "/stuff", "type": kind, "source": kind, "options": ["tmpcopyup", "size=1m"]}
    path = bundle("true", mounts=[*base()["mounts"], mount])
    (path / "rootfs/stuff").mkdir()
    make(path / "rootfs")
    with pytest.raises(Error, match=words):
        run(stocked, path)


@pytest.mark.parametrize(
    ("policy", "shown"),
    [
        ({"mode": "MPOL_BIND", "nodes": "0"}, " bind:0 "),
        ({"mode": "MPOL_BIND", "nodes": "0", "flags": ["MPOL_F_STATIC_NODES"]}, " bind=static:0 "),
        ({"mode": "MPOL_INTERLEAVE", "nodes": "0"}, " interleave:0 "),
        ({"mode": "MPOL_PREFERRED", "nodes": "0"}, " prefer:0 "),
        ({"mode": "MPOL_LOCAL"}, " local "),
        ({"mode": "MPOL_DEFAULT"}, " default "),
    ],
)
def test_memory_policy(stocked: Engine, bundle: Bundle, policy: dict[str, object], shown: str) -> None:
    if not Path("/proc/self/numa_maps").exists():
        pytest.skip("a kernel without CONFIG_NUMA has no memory policies")
    result = run(stocked, bundle("grep stack /proc/self/numa_maps", linux__memoryPolicy=policy))
    assert shown in result.stdout.decode(), result


def test_memory_nodes_that_are_not_there(stocked: Engine, bundle: Bundle) -> None:
    with pytest.raises(StartError, match="memory policy MPOL_BIND 1023"):
        run(stocked, bundle(linux__memoryPolicy={"mode": "MPOL_BIND", "nodes": "1023"}))
    with pytest.raises(InvalidSpec, match=r"linux\.memoryPolicy\.nodes"):
        run(stocked, bundle(linux__memoryPolicy={"mode": "MPOL_BIND", "nodes": "0-99999999999"}))


def test_seccomp(stocked: Engine, bundle: Bundle) -> None:
    rule = {"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO", "errnoRet": 95}
    path = bundle("mkdir /x", linux__seccomp={"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [rule]})
    result = run(stocked, path)
    assert result.exit_code != 0
    assert b"not supported" in result.stderr.lower()


NOTIFY_RECV, NOTIFY_SEND = 0xC0502100, 0xC0182101  # ioctls of linux/seccomp.h on structures of 80 and 24 bytes
CONTINUE = 1  # SECCOMP_USER_NOTIF_FLAG_CONTINUE


def answer(server: socket.socket, told: list[Any], lies: dict[int, int]) -> None:
    """Be the listener: say that calls in ``lies`` gave that, let all others happen; until nobody asks any more."""
    server.settimeout(20)
    peer = server.accept()[0]
    with peer:
        data, fds, _, _ = socket.recv_fds(peer, 1 << 16, 4)
        while piece := peer.recv(1 << 16):
            data += piece
    told.append(json.loads(data))
    told.append(len(fds))
    poller = select.poll()
    poller.register(fds[0], select.POLLIN)
    while poller.poll(20_000)[0][1] & select.POLLIN:
        notice = bytearray(80)
        try:
            fcntl.ioctl(fds[0], NOTIFY_RECV, notice)
        except OSError:
            continue  # who asked was killed
        asked, _, _, call = struct.unpack_from("=QIIi", notice)
        told.append(call)
        lie = lies.get(call)
        reply = struct.pack("=QqiI", asked, lie or 0, 0, CONTINUE if lie is None else 0)
        with contextlib.suppress(OSError):
            fcntl.ioctl(fds[0], NOTIFY_SEND, reply)
    os.close(fds[0])


@pytest.mark.parametrize("no_new_privileges", [False, True])
@pytest.mark.parametrize("flags", [[], ["SECCOMP_FILTER_FLAG_TSYNC"]])
@pytest.mark.skipif(platform.machine() != "x86_64", reason="the numbers of the calls are those of x86_64")
def test_calls_are_answered_by_a_listener(
    stocked: Engine, bundle: Bundle, tmp_path: Path, no_new_privileges: bool, flags: list[str]
) -> None:
    mkdir, mkdirat, execve = 83, 258, 59
    rule = {"names": ["mkdir", "mkdirat", "execve", "capset"], "action": "SCMP_ACT_NOTIFY"}
    filters = {
        "defaultAction": "SCMP_ACT_ALLOW",
        "syscalls": [rule],
        "listenerPath": str(tmp_path / "socket"),
        "listenerMetadata": "for the test",
        "flags": flags,
    }
    path = bundle(
        "mkdir /x && echo made; ls -d /x; true",
        linux__seccomp=filters,
        process__noNewPrivileges=no_new_privileges,
        annotations={"a": "b"},
    )
    told: list[Any] = []
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "socket"))
        server.listen()
        thread = threading.Thread(target=answer, args=(server, told, {mkdir: 0, mkdirat: 0}))
        thread.start()
        result = run(stocked, path)
        thread.join(30)
    assert not thread.is_alive()
    assert result.stdout == b"made\n", "the listener said so, and nothing was made"
    state, count, *calls = told
    assert count == 1
    assert (state["fds"], state["metadata"]) == (["seccompFd"], "for the test")
    assert (state["state"]["id"], state["state"]["annotations"]) == (result.container_id, {"a": "b"})
    assert state["pid"] == state["state"]["pid"] > 0
    assert execve in calls
    assert mkdir in calls or mkdirat in calls


@pytest.mark.parametrize("listens", [False, True])
def test_a_listener_that_does_not_answer(stocked: Engine, bundle: Bundle, tmp_path: Path, listens: bool) -> None:
    """Nobody there: no start. Somebody who drops it: the call fails. Nothing waits for ever."""
    rule = {"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_NOTIFY"}
    socket_path = tmp_path / "socket"
    filters = {"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [rule], "listenerPath": str(socket_path)}
    path = bundle("mkdir /x", linux__seccomp=filters)
    if not listens:
        with pytest.raises(StartError, match="hand the seccomp listener to"):
            run(stocked, path)
        return
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(socket_path))
        server.listen()

        def drop() -> None:
            with server.accept()[0] as peer:
                os.close(socket.recv_fds(peer, 1 << 16, 4)[1][0])

        thread = threading.Thread(target=drop)
        thread.start()
        result = run(stocked, path)
        thread.join(30)
    assert b"not implemented" in result.stderr.lower(), result


def test_user_namespace(stocked: Engine, bundle: Bundle) -> None:
    maps = [{"containerID": 0, "hostID": 100000, "size": 65536}]
    path = bundle(
        "id -u; tr -s ' ' </proc/self/uid_map",
        linux__namespaces=namespaces("mount", "pid", "user", "uts", "ipc", "network"),
        linux__uidMappings=maps,
        linux__gidMappings=maps,
    )
    for directory in (path, *path.parents):
        if directory.stat().st_mode & 0o001 == 0 and len(directory.parts) > 2:
            directory.chmod(directory.stat().st_mode | 0o011)
    result = run(stocked, path)
    assert result.stdout.split() == [b"0", b"0", b"100000", b"65536"], result


@pytest.mark.skipif(kernel_version() < (6, 3), reason="before Linux 6.3 execve does not enter a new time namespace")
def test_time_namespace(stocked: Engine, bundle: Bundle) -> None:
    path = bundle(
        "cut -d. -f1 /proc/uptime",
        linux__namespaces=namespaces("mount", "pid", "time"),
        linux__timeOffsets={"boottime": {"secs": 100_000_000, "nanosecs": 0}},
    )
    assert int(run(stocked, path).stdout) > 100_000_000


def test_namespaces_are_joined_by_path(stocked: Engine, bundle: Bundle) -> None:
    seen: dict[str, str] = {}

    def inner(running: Running) -> None:
        joined = [{"type": kind, "path": f"/proc/{running.pid}/ns/{name}"} for kind, name in kinds.items()]
        script = "for n in net ipc uts; do readlink /proc/self/ns/$n; done; hostname"
        result = run(stocked, bundle(script, linux__namespaces=[*namespaces("mount", "pid"), *joined]))
        seen["inside"] = " ".join(result.stdout.decode().split())
        links = [os.readlink(f"/proc/{running.pid}/ns/{name}") for name in kinds.values()]  # noqa: PTH115
        seen["wanted"] = " ".join([*links, "first"])
        running.kill()

    kinds = {"network": "net", "ipc": "ipc", "uts": "uts"}
    stocked.run("busybox:test", ["sleep", "20"], hostname="first", on_start=inner)
    assert seen["inside"] == seen["wanted"]


@pytest.mark.parametrize("path", ["/proc/self/ns/uts", "/absent", "/etc/passwd"])
def test_a_namespace_that_cannot_be_joined(stocked: Engine, bundle: Bundle, path: str) -> None:
    with pytest.raises(StartError) as caught:
        run(stocked, bundle(linux__namespaces=[*namespaces("mount"), {"type": "network", "path": path}]))
    assert "network namespace" in caught.value.step
    assert caught.value.path == path


def test_terminal(stocked: Engine, bundle: Bundle) -> None:
    mounts = [
        *base()["mounts"],
        {"destination": "/dev/pts", "type": "devpts", "source": "devpts", "options": ["newinstance", "ptmxmode=0666"]},
    ]
    path = bundle(
        "tty; stty size", process__terminal=True, process__consoleSize={"height": 30, "width": 90}, mounts=mounts
    )
    assert run(stocked, path, input=b"").stdout.split() == [b"/dev/pts/0", b"30", b"90"]


# ── hooks ──


def test_hooks_run_in_order_with_the_state(stocked: Engine, bundle: Bundle, tmp_path: Path) -> None:
    def hook(name: str) -> list[dict[str, object]]:
        script = f"cat >{tmp_path}/{name}.json; echo {name} $WORD >>{tmp_path}/order"
        return [{"path": "/bin/sh", "args": ["sh", "-c", script], "env": ["WORD=w", "PATH=/bin:/usr/bin"]}]

    kinds = ("prestart", "createRuntime", "poststart", "poststop")
    path = bundle("sleep 0.2; echo ran", hooks={kind: hook(kind) for kind in kinds}, annotations={"a": "b"})
    result = run(stocked, path)
    assert result.stdout == b"ran\n"
    assert (tmp_path / "order").read_text().splitlines() == [f"{kind} w" for kind in kinds]
    states = {kind: json.loads((tmp_path / f"{kind}.json").read_text()) for kind in kinds}
    for kind, state in states.items():
        assert state["id"] == result.container_id
        assert state["bundle"] == str(path)
        assert state["annotations"] == {"a": "b"}
        assert state["ociVersion"]
        assert state["status"] == {"poststart": "running", "poststop": "stopped"}.get(kind, "creating")
    assert states["prestart"]["pid"] == states["poststart"]["pid"] > 0


def test_hooks_before_the_root_is_entered_see_the_host_and_its_mounts(
    stocked: Engine, bundle: Bundle, tmp_path: Path
) -> None:
    """createContainer: the host's programs, the container's namespaces, its mounts where the bundle's root is."""
    script = f"""
        cat >{tmp_path}/state.json
        pwd; hostname; grep -c . /proc/net/route
        test -e {tmp_path}/rootfs/proc/self && echo proc
        ls {tmp_path}/rootfs/dev
        mount -t tmpfs made {tmp_path}/rootfs/mnt
        echo from the hook >{tmp_path}/rootfs/mnt/word
    """
    hook = {
        "path": "/bin/sh",
        "args": ["sh", "-ec", f"({script}) >{tmp_path}/told 2>&1"],
        "env": ["PATH=/bin:/usr/bin"],
    }
    mounts = [*base()["mounts"], {"destination": "/dev/shm", "type": "tmpfs", "source": "shm"}]
    path = bundle("cat /mnt/word; ls /", hooks={"createContainer": [hook]}, hostname="inside", mounts=mounts)
    (path / "rootfs/mnt").mkdir(exist_ok=True)
    result = run(stocked, path)
    told = (tmp_path / "told").read_text().split()
    assert told == [f"{tmp_path}/rootfs", "inside", "1", "proc", "shm"], told
    assert result.stdout.splitlines()[0] == b"from the hook", result
    assert b"rootfs" not in result.stdout
    assert not list((path / "rootfs/mnt").iterdir()), "the hook's mount is the container's alone"
    state = json.loads((tmp_path / "state.json").read_text())
    assert (state["status"], state["pid"], state["id"]) == ("creating", 1, result.container_id)


def test_hooks_before_the_program_are_confined_like_it(stocked: Engine, bundle: Bundle) -> None:
    """startContainer: the container's own programs, with no more rights than its program has."""
    rule = {"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO", "errnoRet": 95}
    script = """
        cat >/state.json
        id -u >/told; grep -E '^(CapEff|CapBnd|Seccomp|NoNewPrivs):' /proc/self/status >>/told
        hostname >>/told; mkdir /made 2>>/told; cat /proc/1/comm >>/told; ls /proc/self/fd | wc -l >>/told
        cat /proc/self/cgroup >>/told
    """
    capabilities = {kind: ["CAP_CHOWN"] for kind in ("bounding", "effective", "permitted")}
    path = bundle(
        "cat /told; grep -E '^(CapEff|CapBnd):' /proc/self/status; cat /proc/self/cgroup; id -u",
        hooks={"startContainer": [{"path": "/bin/sh", "args": ["sh", "-c", script], "env": ["PATH=/bin"]}]},
        hostname="inside",
        process__user={"uid": 7, "gid": 7},
        process__capabilities=capabilities,
        process__noNewPrivileges=True,
        linux__seccomp={"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [rule]},
    )
    (path / "rootfs").chmod(0o777)
    result = run(stocked, path)
    lines = result.stdout.decode().splitlines()
    assert lines[0] == "7", result
    assert lines[3:5] == ["NoNewPrivs:\t1", "Seccomp:\t2"]
    assert lines[5] == "inside"
    assert "not supported" in lines[6].lower()
    half = 9 + (len(lines) - 9 - 3) // 2
    assert lines[1:3] == lines[half : half + 2], "the capabilities of the program are those of its hook"
    assert lines[9:half] == lines[half + 2 : -1], "and so are its control groups"
    state = json.loads((path / "rootfs/state.json").read_text())
    assert (state["status"], state["pid"]) == ("created", 1)


@pytest.mark.parametrize("kind", ["createContainer", "startContainer"])
@pytest.mark.parametrize(
    ("hook", "words"),
    [
        ({"path": "/bin/sh", "args": ["sh", "-c", "echo no luck >&2; exit 3"]}, "ended with 3: no luck"),
        ({"path": "/bin/sh", "args": ["sh", "-c", "kill -9 $$"]}, "ended with -9"),
        ({"path": "/bin/sh", "args": ["sh", "-c", "exec sleep 60"], "timeout": 1}, "timeout of 1 s"),
        ({"path": "/absent/hook"}, "/absent/hook"),
    ],
)
def test_a_hook_inside_that_fails_ends_the_start(
    stocked: Engine, bundle: Bundle, kind: str, hook: dict[str, object], words: str
) -> None:
    path = bundle("touch /ran", hooks={kind: [hook]})
    with pytest.raises(StartError, match="run the hook") as caught:
        run(stocked, path)
    assert words in str(caught.value)
    assert not (path / "rootfs/ran").exists()


def test_hooks_in_a_user_namespace(stocked: Engine, bundle: Bundle) -> None:
    maps = [{"containerID": 0, "hostID": 100000, "size": 65536}]
    path = bundle(
        "cat /mnt/word",
        linux__namespaces=namespaces("mount", "pid", "user", "uts", "ipc", "network"),
        linux__uidMappings=maps,
        linux__gidMappings=maps,
        hooks={
            "createContainer": [
                {
                    "path": "/bin/sh",
                    "args": ["sh", "-ec", "mount -t tmpfs made mnt; tr -s ' ' </proc/self/uid_map >mnt/word"],
                    "env": ["PATH=/bin:/usr/bin"],
                }
            ],
            "startContainer": [{"path": "/bin/sh", "args": ["sh", "-c", "id -u >>/mnt/word"], "env": ["PATH=/bin"]}],
        },
    )
    (path / "rootfs/mnt").mkdir(exist_ok=True)
    for directory in (path, *path.parents):
        if directory.stat().st_mode & 0o001 == 0 and len(directory.parts) > 2:
            directory.chmod(directory.stat().st_mode | 0o011)
    result = run(stocked, path)
    assert result.stdout.split() == [b"0", b"100000", b"65536", b"0"], result


def test_a_failing_hook_before_the_start_ends_it(stocked: Engine, bundle: Bundle, tmp_path: Path) -> None:
    bad = {"path": "/bin/sh", "args": ["sh", "-c", "echo no luck >&2; exit 3"]}
    after = {"path": "/bin/sh", "args": ["sh", "-c", f"touch {tmp_path}/stopped"], "env": ["PATH=/bin:/usr/bin"]}
    path = bundle("touch /ran", hooks={"createRuntime": [bad], "poststop": [after]})
    with pytest.raises(StartError, match="no luck"):
        run(stocked, path)
    assert not (path / "rootfs/ran").exists()
    assert (tmp_path / "stopped").exists()


@pytest.mark.parametrize(
    "hook",
    [{"path": "/absent/hook"}, {"path": "/bin/sh", "args": ["sh", "-c", "exec sleep 60"], "timeout": 1}],
)
def test_hooks_that_cannot_run_or_take_too_long(stocked: Engine, bundle: Bundle, hook: dict[str, object]) -> None:
    with pytest.raises(StartError, match="hook"):
        run(stocked, bundle(hooks={"prestart": [hook]}))


# ── documents ──


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"{", "config.json"),
        (b"[]", "config.json"),
        (b"\xff", "config.json"),
        (b'{"ociVersion": "1.0.0"}', "root"),
    ],
)
def test_broken_documents(stocked: Engine, bundle: Bundle, data: bytes, words: str) -> None:
    path = bundle()
    (path / "config.json").write_bytes(data)
    with pytest.raises(Error, match=words):
        run(stocked, path)


def test_no_bundle(stocked: Engine, tmp_path: Path) -> None:
    with pytest.raises(StartError, match=r"config\.json"):
        run(stocked, tmp_path / "absent")


def test_root_that_is_missing(stocked: Engine, bundle: Bundle) -> None:
    with pytest.raises(StartError, match="absent-root"):
        run(stocked, bundle(root__path="absent-root"))


def test_writes_go_to_the_bundles_root(stocked: Engine, bundle: Bundle) -> None:
    path = bundle("echo kept >/kept; exit 4")
    assert run(stocked, path).exit_code == 4
    assert (path / "rootfs/kept").read_text() == "kept\n"


def test_a_bundle_is_killed_at_its_timeout(stocked: Engine, bundle: Bundle) -> None:
    with pytest.raises(TimeoutError) as caught:
        stocked.run_bundle(bundle("echo early; sleep 60"), timeout=0.4)
    assert caught.value.result.stdout == b"early\n"  # type: ignore[attr-defined]
    assert caught.value.result.signal == signal.SIGKILL  # type: ignore[attr-defined]
