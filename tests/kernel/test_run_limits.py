"""engine.run: control groups hold, their counts are true, devices are given or not."""

from __future__ import annotations

import os
import stat
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from pycontainer import Device, Engine, Error, Limits, NotFound, Result, StartError, Unsupported
from pycontainer.runtime.cgroups import Cgroups, find_hierarchies

MIB = 1 << 20
EAT = "import sys; n = int(sys.argv[1]); x = bytearray(n << 20); x[::4096] = b'x' * len(x[::4096]); print('ate', n)"


def run(engine: Engine, script: str, image: str = "busybox:test", **options: object) -> Result:
    return engine.run(image, ["sh", "-c", script], timeout=60, **options)  # type: ignore[arg-type]


def eat(engine: Engine, mebibytes: int, limits: Limits) -> Result:
    return engine.run("debian:test", ["python3", "-c", EAT, str(mebibytes)], limits=limits, timeout=60)


def group_value(engine: Engine, controller: str, v1: str, v2: str, limits: Limits) -> str:
    """Return what the file of the container's own group says, as the container sees it."""
    cgroups = Cgroups()
    try:
        hierarchy = next(h for h in cgroups.hierarchies if controller in h.controllers)
    except StopIteration:
        pytest.skip(f"this host has no {controller} controller")
    finally:
        version = cgroups.version
        cgroups.close()
    path = f"/sys/fs/cgroup/{v2}" if version == "v2" else f"/sys/fs/cgroup/{hierarchy.name}/{v1}"
    result = run(engine, f"cat {path}", limits=limits)
    assert result.exit_code == 0, result
    return result.stdout.decode().strip()


# ── memory ──


def test_below_the_memory_limit_all_is_well(stocked: Engine) -> None:
    result = eat(stocked, 20, Limits(memory="100M"))
    assert (result.exit_code, result.stdout, result.oom_killed) == (0, b"ate 20\n", False)
    assert result.usage.peak_memory is not None
    assert 20 * MIB < result.usage.peak_memory < 100 * MIB


def test_beyond_the_memory_limit_it_is_killed(stocked: Engine) -> None:
    result = eat(stocked, 200, Limits(memory="40M", memory_swap="40M"))
    assert (result.exit_code, result.signal, result.oom_killed) == (137, 9, True)
    assert result.usage.peak_memory is not None
    assert result.usage.peak_memory <= 41 * MIB


def test_a_child_killed_for_memory_is_told_though_the_program_lives(stocked: Engine) -> None:
    script = f'python3 -c "{EAT}" 200; echo survived $?'
    result = run(stocked, script, "debian:test", limits=Limits(memory="40M", memory_swap="40M"))
    assert (result.exit_code, result.stdout, result.oom_killed) == (0, b"survived 137\n", True)


def test_a_kill_is_not_taken_for_lack_of_memory(stocked: Engine) -> None:
    result = run(stocked, "sleep 0.2 & kill -9 $!; wait $!; exit 137", limits=Limits(memory="40M"))
    assert (result.exit_code, result.oom_killed) == (137, False)


def test_page_cache_counts_and_gives_way(stocked: Engine) -> None:
    result = run(stocked, "head -c 60000000 /dev/zero >/file && wc -c </file", limits=Limits(memory="30M"))
    assert (result.exit_code, result.stdout, result.oom_killed) == (0, b"60000000\n", False)


@pytest.mark.parametrize(
    ("controller", "v1", "v2", "limits", "value"),
    [
        ("memory", "memory.limit_in_bytes", "memory.max", Limits(memory="64M"), {str(64 * MIB)}),
        (
            "memory",
            "memory.soft_limit_in_bytes",
            "memory.low",
            Limits(memory_reservation="32M", memory="64M"),
            {str(32 * MIB)},
        ),
        ("cpu", "cpu.cfs_quota_us", "cpu.max", Limits(cpus=1.5), {"150000", "150000 100000"}),
        ("cpu", "cpu.shares", "cpu.weight", Limits(cpu_shares=512), {"512", "20"}),
        ("cpuset", "cpuset.cpus", "cpuset.cpus", Limits(cpuset_cpus="0"), {"0"}),
        ("cpuset", "cpuset.mems", "cpuset.mems", Limits(cpuset_mems="0"), {"0"}),
        ("pids", "pids.max", "pids.max", Limits(pids=33), {"33"}),
    ],
)
def test_limits_are_in_the_group(
    stocked: Engine, controller: str, v1: str, v2: str, limits: Limits, value: set[str]
) -> None:
    assert group_value(stocked, controller, v1, v2, limits) in value


def test_swap_is_limited_where_it_is_counted(stocked: Engine) -> None:
    if not Path("/sys/fs/cgroup/memory/memory.memsw.limit_in_bytes").exists():
        pytest.skip("the kernel does not count swap here (cgroup v1 file memory.memsw.*)")
    file = "memory.memsw.limit_in_bytes"
    assert group_value(stocked, "memory", file, "", Limits(memory="8M", memory_swap="20M")) == str(20 * MIB)
    assert group_value(stocked, "memory", file, "", Limits(memory="8M")) == str(16 * MIB)
    assert int(group_value(stocked, "memory", file, "", Limits(memory="8M", memory_swap=-1))) > 1 << 50


# ── processors ──


BURN = "import time\nend = time.process_time() + {0}\nwhile time.process_time() < end: pass"


def test_processor_time_is_counted(stocked: Engine) -> None:
    result = stocked.run("debian:test", ["python3", "-c", BURN.format(0.3)], timeout=60)
    assert result.exit_code == 0
    assert 0.3 <= result.usage.cpu_seconds < 1.0
    assert result.usage.cpu_user_seconds > 0
    assert result.usage.cpu_system_seconds >= 0


def test_processor_time_of_children_nobody_waited_for_is_counted(stocked: Engine) -> None:
    script = f"python3 -c '{BURN.format(0.3)}\nprint(1)' | cat"
    result = run(stocked, f"({script}) & sleep 0.01; wait", "debian:test")
    assert result.usage.cpu_seconds >= 0.3


def test_quota_slows_down(stocked: Engine) -> None:
    began = time.monotonic()
    result = stocked.run(
        "debian:test", ["python3", "-c", BURN.format(0.15)], limits=Limits(cpus=0.25), timeout=60, check=True
    )
    assert time.monotonic() - began > 0.3  # 0.15 s of work at a quarter of a processor
    assert result.usage.wall_seconds > 0.3


def test_only_the_given_processors(stocked: Engine) -> None:
    result = run(stocked, "nproc; grep Cpus_allowed_list /proc/self/status", limits=Limits(cpuset_cpus="0"))
    assert result.stdout.split() == [b"1", b"Cpus_allowed_list:", b"0"]


# ── processes ──


def test_fork_bomb_is_contained(stocked: Engine) -> None:
    result = run(stocked, "i=0; while [ $i -lt 100 ]; do sleep 5 & i=$((i+1)); done; exit 3", limits=Limits(pids=20))
    assert result.exit_code != 0
    assert b"fork" in result.stderr
    assert result.usage.peak_pids is None or result.usage.peak_pids <= 20


def test_peak_of_processes(stocked: Engine) -> None:
    result = run(stocked, "for i in 1 2 3 4 5 6 7; do sleep 0.1 & done; wait")
    if result.usage.peak_pids is None:
        pytest.skip("this kernel has no pids.peak")
    assert 8 <= result.usage.peak_pids <= 10


def test_one_process_only(stocked: Engine) -> None:
    assert run(stocked, "echo alone", limits=Limits(pids=1)).stdout == b"alone\n"
    assert run(stocked, "/bin/true; /bin/echo two", limits=Limits(pids=1)).exit_code != 0


# ── block I/O ──


@pytest.fixture
def counting(stocked_root: Path) -> Iterator[None]:
    """Have version 1 count the I/O of the store's disk: since Linux 6.9 it does so from a first throttling rule on."""
    _, v1 = find_hierarchies()
    device = stocked_root.stat().st_dev
    for hierarchy in v1:
        if "blkio" in hierarchy.controllers and os.major(device):
            group = Path(hierarchy.path, f"rule-{os.getpid()}")
            group.mkdir()
            try:
                rule = f"{os.major(device)}:{os.minor(device)} {1 << 40}"
                (group / "blkio.throttle.read_bps_device").write_text(rule)
                yield
            finally:
                group.rmdir()
            return
    yield


@pytest.mark.usefixtures("counting")
def test_block_io_is_counted(stocked: Engine, stocked_root: Path) -> None:
    script = (
        "import mmap, os\n"
        "fd = os.open('/file', os.O_RDWR | os.O_CREAT | os.O_DIRECT)\n"
        "page = mmap.mmap(-1, 1 << 20)\n"
        "for i in range(4): os.pwrite(fd, page, i << 20)\n"
        "os.preadv(fd, [page], 0)\n"
    )
    result = stocked.run("debian:test", ["python3", "-c", script], timeout=60)
    if b"Invalid argument" in result.stderr:
        pytest.skip(f"the file system of {stocked_root} has no O_DIRECT")
    assert result.exit_code == 0, result
    if os.major(stocked_root.stat().st_dev) == 0 or result.usage.block_written is None:
        pytest.skip("the store is not on a block device, or there is no I/O controller")
    assert 4 * MIB <= result.usage.block_written < 8 * MIB
    assert result.usage.block_read is not None
    assert MIB <= result.usage.block_read < 64 * MIB


def test_io_weight_works_or_says_what_it_needs(stocked: Engine) -> None:
    try:
        result = run(stocked, "true", limits=Limits(io_weight=200))
    except (StartError, Unsupported) as error:
        text = str(error)
    else:
        text = "weight: bfq" if result.ok else "it failed"
    assert "weight" in text
    assert "bfq" in text or "controller is not available" in text


def test_usage_of_a_run_that_does_nothing(stocked: Engine) -> None:
    usage = run(stocked, "true").usage
    assert 0 < usage.wall_seconds < 30
    assert usage.cpu_seconds < 1
    assert usage.peak_memory is None or 0 < usage.peak_memory < 64 * MIB


def test_the_container_sees_its_own_group_as_the_root(stocked: Engine) -> None:
    lines = run(stocked, "cat /proc/self/cgroup").stdout.decode().splitlines()
    unified, v1 = find_hierarchies()
    ours = {name for hierarchy in v1 for name in hierarchy.controllers} or {""}
    for line in lines:
        _, names, path = line.split(":", 2)
        if set(names.split(",")) & ours & {"memory", "pids", ""} and (names or unified):
            assert path == "/" or (names == "" and v1), line


def test_groups_cannot_be_written(stocked: Engine) -> None:
    result = run(
        stocked, "find /sys/fs/cgroup -name 'cgroup.procs' -exec sh -c 'echo 1 >{}' \\; ; mkdir /sys/fs/cgroup/x"
    )
    assert b"Read-only file system" in result.stderr
    assert result.exit_code != 0


# ── devices ──


def test_only_the_usual_devices_are_there(stocked: Engine) -> None:
    names = set(run(stocked, "ls /dev").stdout.decode().split())
    assert names == {
        *("fd", "full", "mqueue", "null", "ptmx", "pts", "random", "shm", "stderr", "stdin", "stdout", "tty"),
        *("urandom", "zero"),
    }
    script = "head -c 4 /dev/zero | xxd -p; head -c 9 /dev/urandom | wc -c; echo x >/dev/null; echo x >/dev/full"
    result = run(stocked, script)
    assert result.stdout == b"00000000\n9\n"
    assert b"No space left" in result.stderr


def test_devices_made_inside_cannot_be_opened(stocked: Engine) -> None:
    result = run(stocked, "mknod /m c 1 1 && head -c 1 /m")
    assert result.exit_code != 0
    assert b"Operation not permitted" in result.stderr


def test_a_device_is_given(stocked: Engine) -> None:
    device = Device("/dev/kmsg", "/dev/sub/log", "r")
    result = run(
        stocked,
        "ls -l /dev/sub/log; dd if=/dev/sub/log bs=8192 count=1 >/dev/null",
        devices=[device],
        cap_add=["SYSLOG"],
    )
    number = Path("/dev/kmsg").stat().st_rdev
    assert f"{os.major(number)}, {' ' * 2}{os.minor(number)}".replace(" ", "") in result.stdout.decode().replace(
        " ", ""
    )
    assert b"Operation not permitted" not in result.stderr
    denied = run(stocked, "echo x >/dev/sub/log", devices=[device])
    assert denied.exit_code != 0


def test_a_device_that_is_none(stocked: Engine, tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="absent"):
        run(stocked, "true", devices=[Device(str(tmp_path / "absent"))])
    with pytest.raises((Error, ValueError), match="/etc/passwd"):
        run(stocked, "true", devices=[Device("/etc/passwd")])


def test_privileged_has_the_hosts_devices(stocked: Engine) -> None:
    inside = set(run(stocked, "ls /dev", privileged=True).stdout.decode().split())
    nodes = {
        path.name
        for path in Path("/dev").iterdir()
        if stat.S_ISBLK(path.lstat().st_mode) or stat.S_ISCHR(path.lstat().st_mode)
    }
    assert nodes - inside <= {"console"}
    opened = run(stocked, "mknod /m c 1 11 && dd if=/m bs=8192 count=1 >/dev/null", privileged=True)
    assert opened.exit_code == 0, opened
