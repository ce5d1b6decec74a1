"""What a container sees is its own: processes, network, names, clocks, mounts, control groups."""

from __future__ import annotations

import os
import socket
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from pycontainer.model import Mount

if TYPE_CHECKING:
    from tests.kernel.attacks.jail import Jail

KINDS = ("mnt", "pid", "net", "ipc", "uts", "cgroup")
SHARED: dict[str, dict[str, Any]] = {
    "pid": {"pid": "host"},
    "net": {"network": "host"},
    "ipc": {"ipc": "host", "mounts": [Mount.tmpfs("/dev/mqueue")]},
    "uts": {"uts": "host"},
    "cgroup": {"cgroupns": "host"},
}


def inside(jail: Jail, kind: str, **options: Any) -> str:
    return jail.run("/bin/readlink", f"/proc/self/ns/{kind}", **options).stdout.decode().strip()


def outside(kind: str) -> str:
    return str(Path(f"/proc/self/ns/{kind}").readlink())


@pytest.mark.parametrize("kind", KINDS)
def test_a_namespace_of_its_own(jail: Jail, kind: str) -> None:
    first, second = inside(jail, kind), inside(jail, kind, hostname="other")
    assert first.startswith(f"{kind}:[")
    assert first != outside(kind)
    assert second != outside(kind)


@pytest.mark.parametrize("kind", SHARED)
def test_the_hosts_namespace_only_when_asked_for(jail: Jail, kind: str) -> None:
    assert inside(jail, kind, **SHARED[kind]) == outside(kind)


@pytest.mark.parametrize("kind", SHARED)
def test_sharing_one_namespace_shares_no_other(jail: Jail, kind: str) -> None:
    for other in set(KINDS) - {kind}:
        assert inside(jail, other, **SHARED[kind]) != outside(other), other


@pytest.mark.parametrize("kind", ["user", "time"])
def test_namespaces_on_request(jail: Jail, kind: str) -> None:
    assert inside(jail, kind) == outside(kind)
    if kind == "time":
        assert inside(jail, kind, timens={"boottime": 5}) != outside(kind)


def test_containers_do_not_share_namespaces_with_each_other(jail: Jail) -> None:
    """Two that run at the same time; afterwards the kernel may use a number again."""
    seen: list[str] = []
    look = "readlink /proc/self/ns/* | sort -u"
    result = jail.run("/bin/sh", "-c", look, on_start=lambda _running: seen.append(jail.sh(look)))
    common = set(result.stdout.decode().split()) & set(seen[0].split())
    assert {name.partition(":")[0] for name in common} <= {"user", "time"}


def test_the_host_keeps_its_name(jail: Jail) -> None:
    before = os.uname()
    renamed = jail.sh(
        "hostname owned; hostname; cat /etc/hostname",
        hostname="mine",
        domainname="example",
        seccomp="unconfined",
        cap_add=["SYS_ADMIN"],
    )
    assert renamed.split() == ["owned", "mine"]
    assert os.uname() == before
    assert jail.sh("cat /proc/sys/kernel/domainname", domainname="example") == "example"


def test_a_network_of_none_has_a_loopback_interface_and_nothing_else(jail: Jail) -> None:
    assert jail.sh("ls /sys/class/net; cat /proc/net/route | wc -l").split() == ["lo", "1"]
    assert "UP" in jail.sh("ip link show lo")
    assert jail.sh("ping -c 1 -W 2 127.0.0.1 >/dev/null && echo yes") == "yes"
    assert jail.run("/bin/ping", "-c", "1", "-W", "1", "192.0.2.1").exit_code != 0


def test_the_hosts_interfaces_only_with_the_hosts_network(jail: Jail) -> None:
    names = {name for _, name in socket.if_nameindex()}
    listed = jail.sh("sed -n 's/^ *\\([^:]*\\):.*/\\1/p' /proc/net/dev", network="host").split()
    assert set(listed) == names


def test_clocks_are_moved_for_the_container_alone(jail: Jail) -> None:
    def clock(**options: Any) -> int:
        return int(jail.told("clock", **options)[1])

    assert abs(clock() - time.monotonic()) < 60
    assert abs(clock(timens={"monotonic": 100_000.0}) - time.monotonic() - 100_000) < 60


def test_nothing_of_the_hosts_mounts_is_seen(jail: Jail) -> None:
    """The root's own line names its layers, as everywhere with overlayfs; no path leads there."""
    places = jail.sh("cut -d' ' -f5 /proc/self/mountinfo").split()
    allowed = ("/proc", "/dev", "/sys", "/etc/hosts", "/etc/hostname", "/etc/resolv.conf")
    assert all(place == "/" or place.startswith(allowed) for place in places)
    host = {line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()}
    assert not {place for place in host if place.startswith("/mnt")} & set(places)


def test_mounts_made_inside_do_not_come_out(jail: Jail, tmp_path: Path) -> None:
    before = Path("/proc/self/mountinfo").read_text().count(str(tmp_path))
    (tmp_path / "here").mkdir()
    jail.sh(
        "mount -t tmpfs none /volume/here; touch /volume/here/x",
        mounts=[Mount.bind(str(tmp_path), "/volume")],
        seccomp="unconfined",
        cap_add=["SYS_ADMIN"],
    )
    assert list((tmp_path / "here").iterdir()) == []
    assert Path("/proc/self/mountinfo").read_text().count(str(tmp_path)) == before


def test_its_place_among_the_control_groups_is_the_top(jail: Jail) -> None:
    assert set(jail.sh("cut -d: -f3 /proc/self/cgroup").split()) == {"/"}
    assert any("pycontainer" in line for line in jail.sh("cat /proc/self/cgroup", cgroupns="host").split())
