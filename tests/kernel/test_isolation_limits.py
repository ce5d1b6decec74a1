"""What a container takes from others is bounded: processes, memory, output, time, space in memory."""

from __future__ import annotations

import errno
import time
from typing import TYPE_CHECKING, Any

import pytest

from pycontainer.errors import OutOfMemory, TimeoutExpired
from pycontainer.model import Device, Limits, Mount

if TYPE_CHECKING:
    from tests.kernel.attacks.jail import Jail


def test_a_fork_bomb_stops_at_the_limit(jail: Jail) -> None:
    code, made = jail.told("forks", limits=Limits(pids=20))
    assert code == errno.EAGAIN
    assert int(made) == 19  # and the bomb itself
    code, made = jail.told("forks", limits=Limits(pids=40))
    assert int(made) == 39


def test_a_fork_bomb_in_a_shell_ends_with_its_time(jail: Jail) -> None:
    with pytest.raises(TimeoutExpired) as caught:
        jail.run("/bin/sh", "-c", "f() { f | f & }; f; sleep 60", limits=Limits(pids=32), timeout=1.0)
    assert caught.value.result.usage.peak_pids is None or caught.value.result.usage.peak_pids <= 32


def test_too_much_memory_ends_the_container_and_is_told(jail: Jail) -> None:
    result = jail.run("/bin/attack", "memory", "64", limits=Limits(memory="16M", memory_swap="16M"))
    assert result.oom_killed
    assert result.signal == 9
    with pytest.raises(OutOfMemory):
        jail.run("/bin/attack", "memory", "64", limits=Limits(memory="16M", memory_swap="16M"), check=True)
    enough = jail.run("/bin/attack", "memory", "64", limits=Limits(memory="128M"))
    assert (enough.stdout, enough.oom_killed) == (b"0\n", False)


def test_a_kill_is_not_told_as_too_much_memory(jail: Jail) -> None:
    result = jail.run("/bin/sh", "-c", "sleep 60", on_start=lambda running: running.kill())
    assert (result.signal, result.oom_killed) == (9, False)


def test_files_in_memory_count_as_memory(jail: Jail) -> None:
    fill = "dd if=/dev/zero of=/dev/shm/x bs=1M count=64 2>/dev/null"
    limits = Limits(memory="16M", memory_swap="16M")
    assert jail.run("/bin/sh", "-c", fill, limits=limits).exit_code != 0
    assert jail.run("/bin/sh", "-c", fill, limits=Limits(memory="256M")).exit_code == 0


@pytest.mark.parametrize("place", ["/dev/shm", "/scratch", "/etc", "/dev"])
def test_space_in_memory_is_bounded(jail: Jail, place: str) -> None:
    """/etc/hosts and its like lie on a small tmpfs, /dev on one of 64 MB."""
    file = f"{place}/hosts" if place == "/etc" else f"{place}/x"
    fill = f"dd if=/dev/zero of={file} bs=1M count=80 2>&1 | grep -c 'No space left'"
    mounts = [Mount.tmpfs("/scratch", size="2M")]
    assert jail.sh(fill, mounts=mounts, shm_size="2M", limits=Limits(memory="256M")) == "1"


def test_output_without_end_is_cut_at_the_limit(jail: Jail) -> None:
    result = jail.run("/bin/sh", "-c", "yes | head -c 30000000; yes no | head -c 30000000 >&2", output_limit="1M")
    assert (len(result.stdout), len(result.stderr), result.truncated) == (1 << 20, 1 << 20, True)
    assert result.exit_code == 0


@pytest.mark.timeout(20)
def test_output_without_end_ends_with_its_time(jail: Jail) -> None:
    with pytest.raises(TimeoutExpired) as caught:
        jail.run("yes", output_limit="64K", timeout=0.5)
    assert len(caught.value.result.stdout) == 65536


@pytest.mark.parametrize("init", [False, True], ids=["", "with-init"])
@pytest.mark.parametrize(
    "script",
    [
        "trap '' TERM INT HUP QUIT; sleep 60",
        "(setsid sleep 60 &); sleep 60",
        "sleep 60 & setsid sleep 60 & wait",
        "kill -STOP $$; sleep 60",
    ],
    ids=["ignores-signals", "new-session", "in-the-background", "stopped"],
)
def test_time_that_is_up_ends_the_whole_tree(jail: Jail, script: str, init: bool) -> None:
    """That nothing stays is what the leak check looks at."""
    began = time.monotonic()
    with pytest.raises(TimeoutExpired):
        jail.run("/bin/sh", "-c", script, timeout=0.5, init=init)
    assert time.monotonic() - began < 5


def test_what_the_first_process_leaves_running_ends_with_it(jail: Jail) -> None:
    began = time.monotonic()
    result = jail.run("/bin/sh", "-c", "sleep 60 >/dev/null 2>&1 & setsid sleep 60 >/dev/null 2>&1 & exit 0")
    assert result.exit_code == 0
    assert time.monotonic() - began < 10


def test_a_limit_of_one_container_is_not_anothers(jail: Jail) -> None:
    seen: list[int] = []
    jail.run(
        "/bin/sleep",
        "0.1",
        limits=Limits(pids=2),
        on_start=lambda _running: seen.append(int(jail.told("forks", limits=Limits(pids=10))[1])),
    )
    assert seen == [9]


def groups_of(jail: Jail, **options: Any) -> dict[str, str]:
    """Return the path of a container's group by controller, as the host sees it."""
    lines = jail.sh("cat /proc/self/cgroup", cgroupns="host", **options).splitlines()
    return {name: path for _, names, path in (line.split(":", 2) for line in lines) for name in names.split(",")}


def test_the_usual_rules_for_devices_are_shared_by_those_who_cannot_change_them(jail: Jail) -> None:
    first, second = groups_of(jail), groups_of(jail)
    if jail.engine.info()["cgroup_version"] != "v1" or first["devices"] == first["memory"]:
        pytest.skip("groups that only have rules for devices are of version 1")
    assert first["devices"] == second["devices"]
    assert first["memory"] != second["memory"]
    for options in ({"cap_add": ["SYS_ADMIN"]}, {"privileged": True}, {"devices": [Device("/dev/fuse")]}):
        own = groups_of(jail, **options)
        assert own["devices"] == own["memory"] != first["memory"]


def test_the_shared_rules_hold_and_stay(jail: Jail) -> None:
    if jail.engine.info()["cgroup_version"] != "v1":
        pytest.skip("version 2 has a program in place of files")
    script = """
        cd /sys/fs/cgroup/devices
        ! echo a 2>/dev/null >devices.allow
        cat devices.list
        mknod /dev/mem0 c 1 1
        ! head -c 1 /dev/mem0 2>/dev/null
    """
    rules = jail.sh(script)
    assert "a *:* rwm" not in rules
    assert "c 1:3 rwm" in rules
    jail.sh("mount -t tmpfs none /tmp", cap_add=["SYS_ADMIN"], seccomp="unconfined")
    assert jail.sh("cat /sys/fs/cgroup/devices/devices.list") == rules
