"""engine.run: bind mounts, tmpfs, the read-only root, the files of /etc."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from pycontainer import Engine, Mount, Result, StartError


def run(engine: Engine, script: str, *mounts: Mount, **options: object) -> Result:
    return engine.run("busybox:test", ["sh", "-c", script], mounts=mounts, timeout=30, **options)  # type: ignore[arg-type]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Give a directory of the host with a file and a directory in it."""
    path = tmp_path / "data"
    (path / "inner").mkdir(parents=True)
    (path / "file").write_text("host\n")
    return path


@pytest.fixture
def nested(data: Path) -> Iterator[Path]:
    """Give the same with a tmpfs mounted in it."""
    subprocess.run(["mount", "-t", "tmpfs", "tmpfs", str(data / "inner")], check=True)
    (data / "inner/deep").write_text("deep\n")
    try:
        yield data
    finally:
        subprocess.run(["umount", "-l", str(data / "inner")], check=True)


# ── bind ──


def test_bind_is_the_hosts_own(stocked: Engine, data: Path) -> None:
    result = run(stocked, "cat /d/file; echo new >/d/new; echo more >>/d/file", Mount.bind(str(data), "/d"))
    assert result.stdout == b"host\n"
    assert (data / "new").read_text() == "new\n"
    assert (data / "file").read_text() == "host\nmore\n"


def test_read_only_bind(stocked: Engine, data: Path) -> None:
    result = run(stocked, "cat /d/file; echo x >/d/new", Mount.bind(str(data), "/d", read_only=True))
    assert result.stdout == b"host\n"
    assert b"Read-only file system" in result.stderr
    assert not (data / "new").exists()


def test_mounts_below_a_bind_come_along(stocked: Engine, nested: Path) -> None:
    result = run(stocked, "cat /d/inner/deep; echo x >/d/inner/new", Mount.bind(str(nested), "/d"))
    assert (result.exit_code, result.stdout) == (0, b"deep\n")
    assert (nested / "inner/new").exists()


def test_read_only_holds_for_mounts_below(stocked: Engine, nested: Path) -> None:
    script = "cat /d/inner/deep; echo x >/d/inner/new || mount -o remount,rw,bind /d/inner; echo x >/d/inner/new"
    result = run(stocked, script, Mount.bind(str(nested), "/d", read_only=True))
    assert result.stdout == b"deep\n"
    assert result.exit_code != 0
    assert not (nested / "inner/new").exists()


def test_bind_of_one_file(stocked: Engine, data: Path) -> None:
    mount = Mount.bind(str(data / "file"), "/etc/of/the/image/file", read_only=True)
    result = run(stocked, "cat /etc/of/the/image/file; echo x >/etc/of/the/image/file", mount)
    assert result.stdout == b"host\n"
    assert b"Read-only" in result.stderr


def test_bind_over_a_file_of_the_image(stocked: Engine, data: Path) -> None:
    assert run(stocked, "cat /etc/passwd", Mount.bind(str(data / "file"), "/etc/passwd")).stdout == b"host\n"


def test_bind_takes_the_place_of_a_usual_mount(stocked: Engine, data: Path) -> None:
    assert run(stocked, "cat /dev/shm/file", Mount.bind(str(data), "/dev/shm")).stdout == b"host\n"
    assert run(stocked, "cat /etc/hosts", Mount.bind(str(data / "file"), "/etc/hosts")).stdout == b"host\n"


def test_parents_are_mounted_before_children(stocked: Engine, data: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    (other / "o").write_text("other\n")
    mounts = [Mount.bind(str(other), "/d/inner"), Mount.bind(str(data), "/d")]
    assert run(stocked, "cat /d/file /d/inner/o", *mounts).stdout == b"host\nother\n"


def test_the_same_place_twice_is_refused(stocked: Engine, data: Path) -> None:
    with pytest.raises(ValueError, match="same target"):
        run(stocked, "true", Mount.bind(str(data), "/d"), Mount.tmpfs("/d"))


def test_symbolic_link_as_source_is_followed_on_the_host(stocked: Engine, data: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(data)
    assert run(stocked, "cat /d/file", Mount.bind(str(tmp_path / "link"), "/d")).stdout == b"host\n"


@pytest.mark.parametrize(
    ("option", "script", "message"),
    [
        ("noexec", "cp /bin/busybox /d/p; /d/p true", b"Permission denied"),
        ("nosuid", "grep ' /d ' /proc/mounts | grep -c nosuid", b""),
        ("nodev", "mknod /d/n c 1 3; cat /d/n", b"Permission denied"),
        ("noatime", "grep ' /d ' /proc/mounts | grep -c noatime", b""),
        ("nosymfollow", "ln -s file /d/l; cat /d/l", b"symbolic"),
    ],
)
def test_options_of_a_bind(stocked: Engine, data: Path, option: str, script: str, message: bytes) -> None:
    result = run(stocked, script, Mount.bind(str(data), "/d", options=(option,)))
    if message:
        assert message in result.stderr
        assert result.exit_code != 0
    else:
        assert result.stdout == b"1\n"


def test_missing_source(stocked: Engine, tmp_path: Path) -> None:
    with pytest.raises(StartError) as caught:
        run(stocked, "true", Mount.bind(str(tmp_path / "absent"), "/d"))
    assert caught.value.path == str(tmp_path / "absent")
    assert "create it first" in str(caught.value)
    assert not (tmp_path / "absent").exists()


# Host and container share mounts only where the host's mount is shared: a mount namespace of its own keeps the test
# from touching the real one. What it does there is this program.
_PROPAGATION = """
import json, subprocess, sys
from pycontainer import Engine, Mount
root, base, word = sys.argv[1:]
subprocess.run(["mount", "-t", "tmpfs", "tmpfs", base], check=True)
subprocess.run(["mount", "--make-shared", base], check=True)
(open(base + "/dir-is-here", "w")).close()
subprocess.run(["mkdir", base + "/later"], check=True)
def piece(data):
    if data == b"up\\n":
        subprocess.run(["mount", "-t", "tmpfs", "tmpfs", base + "/later"], check=True)
        open(base + "/later/seen", "w").close()
        open(base + "/go", "w").close()
with Engine(root) as engine:
    script = "echo up; while [ ! -e /d/go ]; do :; done; ls /d/later; mount -t tmpfs x /d/later && mkdir /d/later/back"
    mount = Mount.bind(base, "/d", propagation=word)
    out = []
    engine.run("busybox:test", ["sh", "-c", script], mounts=[mount], cap_add=["SYS_ADMIN"], timeout=20,
        stdout=lambda data: (out.append(data), piece(data)))
later = subprocess.run(["ls", base + "/later"], capture_output=True, text=True).stdout
print(json.dumps([b"".join(out).decode().split(), later.split()]))
"""


@pytest.mark.parametrize(
    ("word", "seen", "back"),
    [("rprivate", False, False), ("rslave", True, False), ("rshared", True, True), ("slave", True, False)],
)
def test_propagation(stocked_root: Path, tmp_path: Path, word: str, seen: bool, back: bool) -> None:
    base = tmp_path / "base"
    base.mkdir()
    done = subprocess.run(
        [
            *("unshare", "-m", "--propagation", "private", sys.executable, "-c", _PROPAGATION),
            *(str(stocked_root), str(base), word),
        ],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    inside, outside = json.loads(done.stdout)
    assert ("seen" in inside) == seen
    assert ("back" in outside) == back


# ── tmpfs ──


def test_tmpfs(stocked: Engine) -> None:
    script = "stat -c %a /t; head -c 3000000 /dev/zero >/t/f; stat -c %s /t/f; grep ' /t ' /proc/mounts"
    result = run(stocked, script, Mount.tmpfs("/t", size="1M", mode=0o700))
    mode, size, line = result.stdout.decode().split("\n")[:3]
    assert (mode, size) == ("700", str(1 << 20))
    assert result.stderr != b""
    assert "nosuid,nodev" in line
    assert "size=1024k" in line


def test_tmpfs_options(stocked: Engine) -> None:
    result = run(stocked, "cp /bin/busybox /t; /t/busybox true", Mount.tmpfs("/t", options=("noexec",)))
    assert b"Permission denied" in result.stderr


def test_shm_size(stocked: Engine) -> None:
    assert b"size=2048k" in run(stocked, "grep /dev/shm /proc/mounts", shm_size="2M").stdout
    assert b"size=65536k" in run(stocked, "grep /dev/shm /proc/mounts").stdout


# ── root ──


def test_read_only_root(stocked: Engine) -> None:
    script = "echo x >/new; echo x >/etc/hosts; echo fine >/t/f && echo fine >/dev/shm/f && cat /t/f"
    result = run(stocked, script, Mount.tmpfs("/t"), read_only=True)
    assert (result.exit_code, result.stdout) == (0, b"fine\n")
    assert b"/new: Read-only file system" in result.stderr


def test_read_only_root_may_get_mount_points(stocked: Engine, data: Path) -> None:
    assert run(stocked, "cat /brand/new/file", Mount.bind(str(data), "/brand/new"), read_only=True).stdout == b"host\n"


def test_image_is_never_written(stocked: Engine, stocked_root: Path) -> None:
    def state() -> dict[str, tuple[int, int]]:
        layers = stocked_root / "layers"
        return {
            str(path): (path.lstat().st_mtime_ns, path.lstat().st_size)
            for path in layers.rglob("*")
            if not path.is_dir()
        }

    before = state()
    run(stocked, "rm -rf /etc /home; echo x >/bin/busybox; chmod 777 /root; mkdir -p /etc; touch /etc/passwd")
    assert state() == before


# ── /etc ──


def test_files_of_etc(stocked: Engine) -> None:
    result = run(
        stocked,
        "hostname; cat /etc/hostname; cat /etc/hosts; echo --; cat /etc/resolv.conf",
        hostname="box.example",
        extra_hosts={"db": "10.0.0.7", "six": "fd00::1"},
        dns=["9.9.9.9", "fd00::53"],
    )
    hosts, _, resolv = result.stdout.decode().partition("--\n")
    lines = hosts.splitlines()
    assert lines[:2] == ["box.example", "box.example"]
    table = {(words[0], name) for words in map(str.split, lines[2:]) for name in words[1:]}
    assert {("127.0.0.1", "localhost"), ("10.0.0.7", "db"), ("fd00::1", "six")} <= table
    assert "box.example" in {name for _, name in table}
    assert resolv == "nameserver 9.9.9.9\nnameserver fd00::53\n"


def test_files_of_etc_can_be_changed_inside_only(stocked: Engine) -> None:
    before = Path("/etc/hosts").read_bytes()
    assert run(stocked, "echo changed >/etc/hosts; cat /etc/hosts", network="host").stdout == b"changed\n"
    assert Path("/etc/hosts").read_bytes() == before


def test_host_network_has_the_hosts_names(stocked: Engine) -> None:
    result = run(stocked, "cat /etc/resolv.conf; echo --; cat /etc/hosts; echo --; hostname", network="host")
    resolv, hosts, name = result.stdout.decode().split("--\n")
    assert resolv == Path("/etc/resolv.conf").read_text() if Path("/etc/resolv.conf").exists() else resolv == ""
    assert hosts == Path("/etc/hosts").read_text()
    assert name.strip() == os.uname().nodename


def test_default_host_name_is_the_short_id(stocked: Engine) -> None:
    result = run(stocked, "hostname; echo $HOSTNAME; cat /etc/hostname")
    assert set(result.stdout.decode().split()) == {result.container_id[:12]}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"hostname": "under_score"}, "host name"),
        ({"hostname": "-dash"}, "host name"),
        ({"dns": ["not-an-address"]}, "not-an-address"),
        ({"extra_hosts": {"a": "b"}}, "'b'"),
        ({"network": "bridge"}, "network"),
        ({"pid": "container"}, "pid"),
        ({"shm_size": "much"}, "size"),
        ({"dns": "9.9.9.9"}, "list"),
    ],
)
def test_wrong_arguments(stocked: Engine, options: dict[str, object], message: str) -> None:
    with pytest.raises((ValueError, TypeError), match=message):
        run(stocked, "true", **options)
