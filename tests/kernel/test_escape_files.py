"""Knobs of the kernel, devices of the host, links that lead out of an image, targets that lead out of a container."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from pycontainer.errors import Error
from pycontainer.model import Device, ImageConfig, Mount
from pycontainer.oci import defaults
from tests.kernel.attacks.jail import PRIVILEGED

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.kernel.attacks.jail import Jail

# ── knobs ──────────────────────────────────────────────────────────────────────────────────────────────────────────

KNOBS = (
    "/proc/sys/kernel/core_pattern",
    "/proc/sys/kernel/hostname",
    "/proc/sys/kernel/modprobe",
    "/proc/sys/kernel/panic",
    "/proc/sys/kernel/sysrq",
    "/proc/sys/vm/overcommit_memory",
    "/proc/sys/fs/file-max",
    "/proc/sys/fs/binfmt_misc/register",
    "/proc/sys/net/ipv4/ip_forward",
    "/proc/sysrq-trigger",
    "/proc/irq/default_smp_affinity",
    "/proc/fs/ext4/mb_groups",
    "/sys/kernel/uevent_helper",
    "/sys/kernel/mm/transparent_hugepage/enabled",
    "/sys/power/state",
    "/sys/fs/cgroup/memory/memory.limit_in_bytes",
    "/sys/fs/cgroup/cgroup.procs",
    "/sys/block/loop0/uevent",
)


@pytest.mark.parametrize("path", KNOBS)
def test_a_knob_of_the_kernel_cannot_be_opened_for_writing(jail: Jail, path: str) -> None:
    assert jail.attack("open", path, os.O_WRONLY) in (errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOENT)
    if not Path(path).exists():
        pytest.skip("this kernel has not got it")
    allowed = jail.attack("open", path, os.O_WRONLY, **PRIVILEGED)
    assert allowed in (0, errno.ENOENT)  # a control group's root has files that those below it have not


def test_a_knob_stays_closed_for_a_container_with_admin_rights_but_without_mounts(jail: Jail) -> None:
    """With CAP_SYS_ADMIN it could mount them anew: that is what giving it means. The existing ones stay as they are."""
    options: dict[str, Any] = {"cap_add": ["SYS_NICE", "SYS_PTRACE", "NET_ADMIN"]}
    assert jail.attack("open", "/proc/sys/kernel/core_pattern", os.O_WRONLY, **options) == errno.EROFS


def present(paths: tuple[str, ...]) -> list[str]:
    return [path for path in paths if os.path.lexists(path)]


@pytest.mark.parametrize("path", present(defaults.MASKED_PATHS))
def test_a_masked_path_tells_nothing(jail: Jail, path: str) -> None:
    count = f"if [ -d {path} ]; then ls -A {path} | wc -l; else head -c 64 {path} | wc -c; fi"
    assert jail.sh(count) == "0"
    if os.access(path, os.R_OK) and (list(Path(path).iterdir()) if Path(path).is_dir() else open_bytes(path)):
        assert jail.sh(count, masked_paths=()) != "0"


def open_bytes(path: str) -> bytes:
    with open(path, "rb") as file:  # noqa: PTH123 - unbuffered reading of /proc
        return file.read(64)


@pytest.mark.parametrize("path", ["/proc/keys", "/proc/interrupts"])
def test_a_mask_cannot_be_written_removed_or_renamed(jail: Jail, path: str) -> None:
    assert jail.run("/bin/rm", "-f", path).exit_code != 0
    assert jail.run("/bin/mv", path, "/tmp/x").exit_code != 0
    assert jail.sh(f"umount {path} 2>/dev/null || echo no") == "no"
    assert jail.sh(f"umount {path} && echo gone", seccomp="unconfined", cap_add=["SYS_ADMIN"]) == "gone"


def test_the_view_of_procfs_and_sysfs_is_the_own_one(jail: Jail) -> None:
    assert jail.sh("cat /proc/sys/kernel/hostname", hostname="inside") == "inside"
    assert jail.sh("ls /sys/class/net") == "lo"
    assert jail.sh("cut -d: -f3 /proc/self/cgroup | sort -u") == "/"


# ── devices ────────────────────────────────────────────────────────────────────────────────────────────────────────


def host_disk() -> tuple[int, int]:
    """Return the numbers of a block device that root of this host can open; an idle loop device if need be."""
    for entry in sorted(Path("/dev").iterdir()):
        st = entry.stat()
        if stat.S_ISBLK(st.st_mode):
            with contextlib.suppress(OSError):
                os.close(os.open(entry, os.O_RDONLY | os.O_NONBLOCK))
                return os.major(st.st_rdev), os.minor(st.st_rdev)
    pytest.skip("root can open no block device of this host, so nothing would be shown")


def test_a_disk_of_the_host_is_not_read_through_a_new_node(jail: Jail) -> None:
    """Making the node is allowed, as in docker; opening it is what the device rules refuse."""
    disk = host_disk()
    assert jail.attack("device", "b", *disk) == errno.EPERM
    assert jail.attack("device", "b", *disk, seccomp="unconfined", cap_add=["ALL"]) == errno.EPERM
    assert jail.attack("device", "b", *disk, cap_drop=["MKNOD"]) == errno.EPERM
    assert jail.attack("device", "b", *disk, **PRIVILEGED) == 0


@pytest.mark.parametrize(
    ("name", "number"),
    [
        ("mem", (1, 1)),
        ("port", (1, 4)),
        ("kmsg", (1, 11)),
        ("console", (5, 1)),
        ("tty1", (4, 1)),
        ("fuse", (10, 229)),
        ("kvm", (10, 232)),
        ("loop-control", (10, 237)),
        ("tun", (10, 200)),
    ],
)
def test_a_device_of_the_host_is_not_opened(jail: Jail, name: str, number: tuple[int, int]) -> None:
    assert jail.attack("device", "c", *number) == errno.EPERM, name
    assert jail.attack("device", "c", *number, seccomp="unconfined", cap_add=["ALL"]) == errno.EPERM, name


def test_the_log_of_the_kernel_is_opened_when_nothing_protects(jail: Jail) -> None:
    """The control of the last test, by the one device that every host has and that does no harm."""
    assert jail.attack("device", "c", 1, 11, **PRIVILEGED) == errno.EINVAL  # opened: one byte is too few to read there


def test_a_device_node_in_an_image_opens_nothing(jail: Jail) -> None:
    major, minor = host_disk()
    image = jail.variant("node", lambda tree: os.mknod(tree / "disk", 0o60666, os.makedev(major, minor)))
    assert jail.attack("open", "/disk", os.O_RDONLY, image=image) in (errno.EPERM, errno.EACCES, errno.ENOENT)


def test_a_device_node_on_a_volume_opens_nothing(jail: Jail, tmp_path: Path) -> None:
    os.mknod(tmp_path / "disk", 0o60666, os.makedev(*host_disk()))
    shown: dict[str, Any] = {"mounts": [Mount.bind(str(tmp_path), "/volume")]}
    assert jail.attack("open", "/volume/disk", os.O_RDONLY, **shown) == errno.EPERM
    assert jail.attack("open", "/volume/disk", os.O_RDONLY, **shown, **PRIVILEGED) == 0


def test_a_device_is_given_for_what_was_said_and_no_more(jail: Jail) -> None:
    if not Path("/dev/fuse").exists():
        pytest.skip("this host has no /dev/fuse to give")
    given = [Device("/dev/fuse", "/dev/given", access="r")]
    assert jail.attack("open", "/dev/given", os.O_RDONLY, devices=given) == 0
    assert jail.attack("open", "/dev/given", os.O_WRONLY, devices=given) == errno.EPERM
    assert jail.attack("device", "c", 1, 1, devices=given) == errno.EPERM
    assert jail.attack("open", "/dev/given", os.O_RDONLY) == errno.ENOENT


def test_the_devices_that_every_program_needs_work(jail: Jail) -> None:
    for name, flags in (("null", os.O_RDWR), ("zero", os.O_RDWR), ("full", os.O_RDWR), ("urandom", os.O_RDONLY)):
        assert jail.attack("open", f"/dev/{name}", flags, user="app") == 0, name
    assert jail.sh("ls /dev | sort | xargs") == (
        "fd full mqueue null ptmx pts random shm stderr stdin stdout tty urandom zero"
    )


# ── images whose links lead out ────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def canary(tmp_path: Path) -> Iterator[Path]:
    """Give a directory of the host that must be found as it was."""
    directory = tmp_path / "canary"
    directory.mkdir()
    (directory / "file").write_text("of the host\n")
    yield directory
    assert [path.name for path in directory.iterdir()] == ["file"]
    assert (directory / "file").read_text() == "of the host\n"


def replaced(name: str, target: str) -> Callable[[Path], None]:
    """Return a change that puts a symbolic link in place of what an image has."""

    def change(tree: Path) -> None:
        place = tree / name
        if place.is_dir() and not place.is_symlink():
            place.rename(tree / "moved")
        elif os.path.lexists(place):
            place.unlink()
        place.symlink_to(target)

    return change


@pytest.mark.parametrize("name", ["hosts", "hostname", "resolv.conf"])
@pytest.mark.parametrize("up", ["", "../../../../../../../.."])
def test_a_file_in_etc_that_is_a_link(jail: Jail, canary: Path, name: str, up: str) -> None:
    """Its target is looked for inside; the host's file is neither covered nor written nor shown."""
    image = jail.variant(f"etc-{name}-{bool(up)}", replaced(f"etc/{name}", f"{up}{canary}/file"))
    result = jail.run("/bin/cat", f"/etc/{name}", image=image, dns=["192.0.2.1"])
    assert b"of the host" not in result.stdout
    assert str(canary) not in Path("/proc/self/mountinfo").read_text()


def test_an_etc_that_is_a_link(jail: Jail, canary: Path) -> None:
    image = jail.variant("etc", replaced("etc", str(canary)))
    with contextlib.suppress(Error):
        assert b"of the host" not in jail.run("/bin/cat", "/etc/file", image=image).stdout


def test_users_are_not_looked_up_on_the_host(jail: Jail, canary: Path) -> None:
    (canary / "file").write_text("toor:x:0:0::/:/bin/sh\nof the host:x:7:7::/:/bin/sh\n")
    try:
        for up in ("", "../../../../../../../.."):
            image = jail.variant(f"passwd-{bool(up)}", replaced("etc/passwd", f"{up}{canary}/file"))
            with pytest.raises(Error, match="no such user"):
                jail.run("/bin/true", image=image, user="toor")
    finally:
        (canary / "file").write_text("of the host\n")


@pytest.mark.parametrize("kind", ["fifo", "directory", "zero"])
def test_users_of_an_image_whose_passwd_is_no_file(jail: Jail, kind: str) -> None:
    """Reading it must not hang, nor never end."""

    def change(tree: Path) -> None:
        place = tree / "etc/passwd"
        place.unlink()
        if kind == "fifo":
            os.mkfifo(place)
        elif kind == "directory":
            place.mkdir()
        else:
            os.mknod(place, 0o20666, os.makedev(1, 5))

    image = jail.variant(f"passwd-{kind}", change)
    assert b"Uid:\t77\t77" in jail.run("/bin/grep", "Uid", "/proc/self/status", image=image, user="77").stdout


def test_a_working_directory_that_is_a_link(jail: Jail, canary: Path) -> None:
    image = jail.variant("workdir", replaced("job", str(canary)), config=ImageConfig(workdir="/job/made"))
    with contextlib.suppress(Error):
        assert b"of the host" not in jail.run("/bin/ls", "-R", "/job/", image=image).stdout


@pytest.mark.parametrize(
    "target",
    [
        "/link",
        "/link/below",
        "/link/../below",
        "/../../../../..{canary}",
        "/tmp/../..{canary}/x",
        "/dir/up/x",
        "{canary}",
    ],
)
@pytest.mark.parametrize("kind", ["tmpfs", "bind", "file"])
def test_a_target_that_leads_out(jail: Jail, canary: Path, tmp_path: Path, target: str, kind: str) -> None:
    """Whatever it says, it means a place inside."""

    def change(tree: Path) -> None:
        (tree / "link").symlink_to(canary)
        (tree / "dir").mkdir()
        (tree / "dir/up").symlink_to("../" * 20 + str(canary)[1:])

    place = target.format(canary=canary)
    source = tmp_path / "source"
    source.mkdir()
    (source / "data").write_text("data")
    mount = {
        "tmpfs": Mount.tmpfs(place),
        "bind": Mount.bind(str(source), place),
        "file": Mount.bind(str(source / "data"), place),
    }[kind]
    image = jail.variant(f"target-{kind}-{abs(hash(target))}", change)
    assert (Path("/") / canary).exists()
    with contextlib.suppress(Error):
        jail.run("/bin/touch", f"{place}/made", image=image, mounts=[mount])
    assert str(canary) not in Path("/proc/self/mountinfo").read_text()


def test_a_volume_whose_links_lead_out(jail: Jail, canary: Path, tmp_path: Path) -> None:
    volume = tmp_path / "volume"
    volume.mkdir()
    (volume / "absolute").symlink_to(canary)
    (volume / "relative").symlink_to("../canary")
    shown = [Mount.bind(str(volume), "/volume"), Mount.tmpfs("/volume/absolute/x"), Mount.tmpfs("/volume/relative/y")]
    with contextlib.suppress(Error):
        result = jail.run("/bin/sh", "-c", "cat /volume/absolute/file /volume/relative/file", mounts=shown)
        assert b"of the host" not in result.stdout
    assert (volume / "absolute/file").exists()  # the control: outside they do lead there


@pytest.mark.parametrize("target", ["/proc", "/proc/sys", "/proc/self", "/proc/1/attr", "/sys/kernel", "/dev/null"])
def test_a_volume_over_what_the_kernel_shows_opens_no_knob(jail: Jail, tmp_path: Path, target: str) -> None:
    source = tmp_path / "volume"
    source.mkdir()
    with contextlib.suppress(Error, ValueError):
        code = jail.attack(
            "open", "/proc/sys/kernel/core_pattern", os.O_WRONLY, mounts=[Mount.bind(str(source), target)]
        )
        assert code in (errno.EROFS, errno.ENOENT)
    assert list(source.iterdir()) == [] or target == "/proc"


# ── volumes and the root keep their promises ───────────────────────────────────────────────────────────────────────


def test_a_read_only_volume_cannot_be_written(jail: Jail, tmp_path: Path) -> None:
    volume = Mount.bind(str(tmp_path), "/volume", read_only=True)
    assert jail.sh("touch /volume/x 2>/dev/null || echo no", mounts=[volume]) == "no"
    assert jail.sh("mount -o remount,rw /volume 2>/dev/null || echo no", mounts=[volume]) == "no"
    assert list(tmp_path.iterdir()) == []
    jail.sh("touch /volume/x", mounts=[Mount.bind(str(tmp_path), "/volume")])
    assert [path.name for path in tmp_path.iterdir()] == ["x"]


def test_a_read_only_root_cannot_be_written(jail: Jail) -> None:
    for place in ("/x", "/etc/passwd", "/bin/attack", "/root/x", "/tmp/x"):
        assert jail.sh(f"echo x 2>/dev/null > {place} || echo no", read_only=True) == "no", place
        assert jail.sh(f"echo x 2>/dev/null > {place}; echo yes") == "yes", place
    jail.sh("touch /dev/shm/x", read_only=True)


def test_a_volume_shows_nothing_above_it(jail: Jail, tmp_path: Path) -> None:
    volume = tmp_path / "volume"
    volume.mkdir()
    (tmp_path / "secret").touch()
    seen = jail.sh("ls /volume/.. /volume/../..; cd /volume; ls ..; ls -A", mounts=[Mount.bind(str(volume), "/volume")])
    assert "secret" not in seen


def test_a_setuid_program_that_is_left_on_a_tmpfs_gains_nothing(jail: Jail) -> None:
    leave = (
        "cp /bin/attack-setuid /scratch/; chmod 4755 /scratch/attack-setuid; su app -c '/scratch/attack-setuid root'"
    )
    assert jail.sh(leave, mounts=[Mount.tmpfs("/scratch")]) == str(errno.EPERM)
    assert jail.sh(leave.replace("/scratch", "/home")) == "0"


def test_nothing_of_the_store_is_mounted_where_it_could_be_reached(jail: Jail) -> None:
    seen = jail.sh("ls -d /r /oldroot /.pivot* 2>/dev/null || true; cut -d' ' -f5 /proc/self/mountinfo")
    assert all(
        line.startswith(("/proc", "/dev", "/sys", "/etc/host", "/etc/resolv", "/\n")) or line == "/"
        for line in seen.split("\n")
    )


def test_the_upper_layer_is_not_for_others_of_the_host_to_read(jail: Jail) -> None:
    """What containers write lies in directories that only root enters: a setuid program left there is of no use."""
    path = jail.engine.root / "runs"
    while path != path.parent:
        if not path.stat().st_mode & stat.S_IXOTH:
            break
        path = path.parent
    assert str(path).startswith(str(jail.engine.root))
