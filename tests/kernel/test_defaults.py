"""What a container gets when nothing is asked for, as seen from inside: the sum of all defaults, in one place."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from pycontainer.oci import defaults
from pycontainer.runtime import capabilities
from tests.kernel.attacks.jail import PRIVILEGED

if TYPE_CHECKING:
    from tests.kernel.attacks.jail import Jail

SAFE = {"nosuid", "nodev", "noexec"}
# Target: type, and what its options must hold.
MOUNTS: dict[str, tuple[str, set[str]]] = {
    "/": ("overlay", {"rw"}),
    "/proc": ("proc", {"rw", *SAFE}),
    "/proc/bus": ("proc", {"ro", *SAFE}),
    "/proc/fs": ("proc", {"ro", *SAFE}),
    "/proc/irq": ("proc", {"ro", *SAFE}),
    "/proc/sys": ("proc", {"ro", *SAFE}),
    "/sys": ("sysfs", {"ro", *SAFE}),
    "/dev": ("tmpfs", {"rw", "nosuid"}),
    "/dev/pts": ("devpts", {"rw", "nosuid", "noexec"}),
    "/dev/shm": ("tmpfs", {"rw", *SAFE}),
    "/dev/mqueue": ("mqueue", {"rw", *SAFE}),
    "/sys/firmware": ("tmpfs", {"ro"}),
}


def mounts(jail: Jail, **options: Any) -> dict[str, tuple[str, set[str]]]:
    """Return type and options by target, see proc_pid_mountinfo(5)."""
    found = {}
    for line in jail.sh("cat /proc/self/mountinfo", **options).splitlines():
        before, _, after = line.partition(" - ")
        fields = before.split()
        found[fields[4]] = (after.split()[0], set(fields[5].split(",")))
    return found


def test_the_mounts(jail: Jail) -> None:
    found = mounts(jail)
    for target, (kind, options) in MOUNTS.items():
        if target != "/sys/firmware" or Path(target).exists():
            assert found[target][0] == kind, target
            assert options <= found[target][1], target
    groups = {target: what for target, what in found.items() if target.startswith("/sys/fs/cgroup")}
    assert groups
    for target, (_, options) in groups.items():
        assert {"ro", *SAFE} <= options, target


def test_every_mount_is_private_to_the_container(jail: Jail) -> None:
    lines = jail.sh("cat /proc/self/mountinfo").splitlines()
    assert not [line for line in lines if re.search(r"\b(shared|master|propagate_from):", line)]


def test_nothing_is_writable_but_what_is_meant_to_be(jail: Jail) -> None:
    writable = {target for target, (_, options) in mounts(jail, read_only=True).items() if "rw" in options}
    allowed = {
        "/proc",
        "/dev",
        "/dev/pts",
        "/dev/shm",
        "/dev/mqueue",
        "/etc/hosts",
        "/etc/hostname",
        "/etc/resolv.conf",
    }
    masks = {target for target in writable if target.startswith("/proc/")}
    assert masks <= set(defaults.MASKED_PATHS)  # the null device swallows what is written
    assert writable - masks <= allowed


def test_the_masked_paths(jail: Jail) -> None:
    found = mounts(jail)
    for path in defaults.MASKED_PATHS:
        assert path in found or not Path(path).exists(), path


def test_privileged_is_what_it_says(jail: Jail) -> None:
    found = mounts(jail, **PRIVILEGED)
    assert not set(found) & set(defaults.MASKED_PATHS)
    assert "rw" in found["/sys"][1]
    status = jail.sh("grep -E 'CapEff|Seccomp:' /proc/self/status", **PRIVILEGED).split()
    assert status == ["CapEff:", f"{sum(1 << bit for bit in caller_bits()):016x}", "Seccomp:", "0"]


def caller_bits() -> list[int]:
    text = Path("/proc/thread-self/status").read_text()
    mask = int(text.partition("CapBnd:")[2].split()[0], 16)
    return [bit for bit in range(64) if mask & 1 << bit]


def test_the_process(jail: Jail) -> None:
    fields = dict(line.split(":", 1) for line in jail.run("/bin/cat", "/proc/self/status").stdout.decode().splitlines())
    usual = f"{capabilities.to_mask(defaults.CAPABILITIES):016x}"
    expected = {
        "Pid": "1",
        "PPid": "0",
        "Uid": "0\t0\t0\t0",
        "Gid": "0\t0\t0\t0",
        "Groups": "",
        "Umask": "0022",
        "NoNewPrivs": "0",
        "Seccomp": "2",
        "CapInh": "0" * 16,
        "CapPrm": usual,
        "CapEff": usual,
        "CapBnd": usual,
        "CapAmb": "0" * 16,
        "SigBlk": "0" * 16,
        "SigIgn": "0" * 16,
        "TracerPid": "0",
    }
    assert {name: fields[name].strip() for name in expected} == expected


def test_the_environment(jail: Jail) -> None:
    result = jail.run("/bin/env")
    assert set(result.stdout.decode().splitlines()) == {
        f"PATH={defaults.PATH}",
        "HOME=/root",
        f"HOSTNAME={result.container_id[:12]}",
    }


def test_name_directory_and_files_of_etc(jail: Jail) -> None:
    result = jail.run("/bin/sh", "-c", "hostname; pwd; cat /etc/hostname; cat /etc/resolv.conf; grep -c . /etc/hosts")
    name = result.container_id[:12]
    assert result.stdout.decode().split() == [name, "/", name, "5"]


@pytest.mark.parametrize("name", ["stdin", "stdout", "stderr"])
def test_the_standard_streams_are_no_files_of_the_host(jail: Jail, name: str) -> None:
    number = {"stdin": 0, "stdout": 1, "stderr": 2}[name]
    target = jail.sh(f"readlink /proc/self/fd/{number}")
    assert target == "/dev/null" if number == 0 else target.startswith("pipe:")
    device = jail.sh("stat -Lc %d /proc/self/fd/0; stat -c %d /dev/null").split()
    assert device[0] == device[1]


def test_the_writable_layer_is_empty_at_the_start(jail: Jail) -> None:
    assert jail.sh("ls -A /tmp /run /root").split() == ["/root:", "/run:", "/tmp:"]
    jail.sh("touch /tmp/x /run/x /root/x")
    assert jail.sh("ls -A /tmp /run /root").split() == ["/root:", "/run:", "/tmp:"]
