"""With a user namespace, root inside is nobody outside."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from pycontainer.model import IdMap, Mount
from tests.kernel.attacks.jail import Node

if TYPE_CHECKING:
    from pycontainer import Engine
    from tests.kernel.attacks.jail import Jail

MAPPED: dict[str, Any] = {"userns": [IdMap(0, 100_000, 65_536)]}
# With everything that root of a user namespace can have.
ALMIGHTY: dict[str, Any] = {**MAPPED, "cap_add": ["ALL"], "seccomp": "unconfined", "readonly_paths": ()}


TWO_RANGES: dict[str, Any] = {"userns": [IdMap(0, 200_000, 1000), IdMap(1000, 300_000, 1)]}


@pytest.fixture(scope="module", autouse=True)
def warm(built_jail: Jail) -> None:
    """Have the engine make what it keeps for each map of ids, so that no test is blamed for it."""
    for options in (MAPPED, TWO_RANGES):
        built_jail.run("/bin/true", **options)


@pytest.fixture
def volume(tmp_path: Path) -> Path:
    """Give a directory of the host in which anybody may write, with a file that only root may read."""
    directory = tmp_path / "volume"
    directory.mkdir()
    directory.chmod(0o777)
    (directory / "secret").write_text("of root")
    (directory / "secret").chmod(0o600)
    return directory


def test_root_inside_is_another_user_outside(jail: Jail) -> None:
    seen: list[str] = []
    result = jail.run(
        "/bin/sh",
        "-c",
        "sleep 0.1; id -u; cat /proc/self/uid_map /proc/self/gid_map",
        on_start=lambda running: seen.append(Path(f"/proc/{running.pid}/status").read_text()),
        **MAPPED,
    )
    assert result.stdout.split() == [b"0", b"0", b"100000", b"65536", b"0", b"100000", b"65536"]
    assert "Uid:\t100000\t100000\t100000\t100000" in seen[0]
    assert "Gid:\t100000\t100000\t100000\t100000" in seen[0]


def test_a_user_inside_is_its_mapped_self_outside(jail: Jail) -> None:
    seen: list[str] = []
    jail.run(
        "/bin/sleep",
        "0.1",
        user="app",
        on_start=lambda running: seen.append(Path(f"/proc/{running.pid}/status").read_text()),
        **MAPPED,
    )
    assert "Uid:\t101000\t101000\t101000\t101000" in seen[0]
    assert "Groups:\t100029 100050" in seen[0]


def test_files_of_the_image_belong_to_those_they_belonged_to(jail: Jail) -> None:
    assert jail.sh("stat -c %u:%g /bin/busybox /home/app", **MAPPED).split() == ["0:0", "1000:1000"]
    assert jail.sh("echo x >> /etc/passwd; chown 5:6 /home/app; stat -c %u:%g /home/app", **MAPPED) == "5:6"


def test_files_on_a_volume_belong_to_the_mapped_users(jail: Jail, volume: Path) -> None:
    shown = [Mount.bind(str(volume), "/volume")]
    jail.sh("touch /volume/root", mounts=shown, **MAPPED)
    jail.sh("touch /volume/app", mounts=shown, user="app", **MAPPED)
    assert (Node.of(str(volume / "root")).uid, Node.of(str(volume / "app")).uid) == (100_000, 101_000)


def test_files_of_the_hosts_root_are_not_read_written_or_taken(jail: Jail, volume: Path) -> None:
    shown = [Mount.bind(str(volume), "/volume")]
    assert jail.attack("open", "/volume/secret", os.O_RDONLY, mounts=shown, **ALMIGHTY) == errno.EACCES
    for command in ("chown 0 /volume/secret", "chmod 777 /volume/secret", "echo x > /volume/secret"):
        assert jail.sh(f"({command}) 2>/dev/null || echo no", mounts=shown, **ALMIGHTY) == "no"
    assert jail.attack("open", "/volume/secret", os.O_RDWR, mounts=shown) == 0  # the control


def test_a_setuid_file_left_on_a_volume_is_not_roots(jail: Jail, volume: Path) -> None:
    leave = "cp /bin/attack-setuid /volume/left; chmod 4755 /volume/left"
    jail.sh(leave, mounts=[Mount.bind(str(volume), "/volume")], **MAPPED)
    assert Node.of(str(volume / "left")).uid == 100_000
    jail.sh(leave.replace("left", "control"), mounts=[Mount.bind(str(volume), "/volume")])
    assert Node.of(str(volume / "control")).uid == 0


def test_ids_outside_of_the_map_do_not_exist(jail: Jail) -> None:
    assert jail.attack("setuid", 70_000, **MAPPED) == errno.EINVAL
    assert jail.attack("setgroups", 70_000, **MAPPED) == errno.EINVAL
    assert jail.attack("setuid", 70_000) == 0


def test_all_capabilities_of_a_user_namespace_are_none_against_the_host(jail: Jail) -> None:
    assert jail.attack("open", "/proc/sys/kernel/core_pattern", os.O_WRONLY, **ALMIGHTY) == errno.EACCES
    assert jail.attack("device", "c", 1, 11, **ALMIGHTY) == errno.EPERM
    assert jail.attack("call", "syslog", 3, "z", 4096, **ALMIGHTY) == errno.EPERM
    assert jail.attack("call", "reboot", 0, 0, 0, 0, network="none", **ALMIGHTY) in (errno.EPERM, errno.EINVAL)
    assert jail.attack("call", "swapon", "@/no/such", 0, **ALMIGHTY) == errno.EPERM


def test_control_groups_mounted_by_root_of_a_user_namespace_are_the_own_ones_and_not_writable(jail: Jail) -> None:
    """Root of a control group namespace may mount them (CVE-2022-0492 was that it could set release_agent there)."""
    if not Path("/sys/fs/cgroup/pids").exists():
        pytest.skip("no control groups of version 1 on this host")
    script = (
        "mkdir /tmp/cg; mount -t cgroup -o pids cgroup /tmp/cg; cd /tmp/cg; ls release_agent 2>/dev/null || echo none;"
        " (echo max > pids.max) 2>/dev/null || echo no"
    )
    assert jail.sh(script, **ALMIGHTY).split() == ["none", "no"]


def test_the_devices_that_every_program_needs_work(jail: Jail) -> None:
    assert (
        jail.sh("echo x > /dev/null; head -c 4 /dev/urandom | wc -c; head -c 4 /dev/zero | wc -c", **MAPPED) == "4\n4"
    )


@pytest.mark.parametrize("options", [{"init": True}, {"tty": True}, {"read_only": True}, {"network": "host"}], ids=str)
def test_it_goes_with_everything_else(jail: Jail, options: dict[str, Any]) -> None:
    assert jail.run("/bin/id", "-u", **MAPPED, **options).stdout.strip() == b"0"


def test_two_ranges(jail: Jail) -> None:
    assert jail.sh("cat /proc/self/uid_map", **TWO_RANGES).split() == ["0", "200000", "1000", "1000", "300000", "1"]
    assert jail.attack("setuid", 1001, **TWO_RANGES) == errno.EINVAL
    assert jail.attack("setuid", 1000, **TWO_RANGES) == 0


def test_a_map_without_the_group_of_terminals(engine: Engine, busybox_rootfs: Path) -> None:
    image = engine.images.import_rootfs(busybox_rootfs, reference="busybox:test")
    assert engine.run(image, ["id", "-u"], userns=[IdMap(0, 200_000, 1)], timeout=20).stdout == b"0\n"


def test_the_image_on_disk_keeps_its_owners(jail: Jail) -> None:
    layers = jail.engine.root / "layers"
    before = {path: Node.of(str(path)) for path in layers.rglob("*") if not path.is_symlink()}
    jail.sh("chown -R 1000:1000 /etc /home /bin/attack; chmod -R 700 /etc", **MAPPED)
    assert {path: Node.of(str(path)) for path in layers.rglob("*") if not path.is_symlink()} == before
