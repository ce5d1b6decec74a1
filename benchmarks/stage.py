"""The place where a benchmark happens: own mount namespace, scratch file systems, the compiled C parts, one root.

Everything lies below one temporary directory and in one private mount namespace, so the machine is left as it was.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import shutil
import signal
import subprocess
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

import attrs

from benchmarks import filters

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

__all__ = ["CAPABILITIES", "Stage", "end_orphans", "open_stage", "private_mounts", "remove_groups"]

CAPABILITIES = tuple(
    f"CAP_{name}"
    for name in (
        *("CHOWN", "DAC_OVERRIDE", "FOWNER", "FSETID", "KILL", "SETGID", "SETUID", "SETPCAP"),
        *("NET_BIND_SERVICE", "NET_RAW", "SYS_CHROOT", "MKNOD", "AUDIT_WRITE", "SETFCAP"),
    )
)
MASKED = [
    *("/proc/asound", "/proc/acpi", "/proc/interrupts", "/proc/kcore", "/proc/keys", "/proc/latency_stats"),
    *("/proc/timer_list", "/proc/timer_stats", "/proc/sched_debug", "/proc/scsi", "/sys/firmware"),
    "/sys/devices/virtual/powercap",
]
READ_ONLY = ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"]
NAMESPACES = ("mount", "pid", "network", "ipc", "uts", "cgroup")
_FLOOR = Path(__file__).parent / "floor"
_CLONE_NEWNS = 0x20000
_PR_SET_CHILD_SUBREAPER = 36
_CGROUPS = Path("/sys/fs/cgroup")


@attrs.frozen(kw_only=True)
class Stage:
    """Paths and names that contenders are built from.

    Attributes:
        disk: an ext4 file system on a loop device; stores and run directories of all but docker and podman.
        memory: a tmpfs; docker and podman keep their state here, so that their syncs cost them nothing.
        rootfs: a root holding one static busybox.
        profile: the seccomp profile for all, or ``None`` where none could be had.
        group: name of the cgroup that the peers' groups lie in.
    """

    disk: Path
    memory: Path
    rootfs: Path
    profile: filters.Profile | None
    group: str

    @property
    def floor(self) -> Path:
        """The floor program."""
        return self.memory / "floor"

    @property
    def spawn(self) -> Path:
        """The spawner for peers."""
        return self.memory / "spawn"

    @property
    def bpf(self) -> Path:
        """The compiled filter."""
        return self.memory / "filter.bpf"


def _run(*command: str | Path) -> None:
    done = subprocess.run([str(c) for c in command], capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(map(str, command))}: {done.stderr.strip() or done.stdout.strip()}")


def private_mounts() -> None:
    """Have a mount namespace of our own, and be the parent of what our children leave."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(_CLONE_NEWNS) < 0:
        raise OSError(ctypes.get_errno(), "a mount namespace of its own (needs root)")
    # containerd's shims outlive their parents; as their subreaper we can end them.
    libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    _run("mount", "--make-rprivate", "/")


def _build(stage: Stage) -> None:
    compiler = os.environ.get("CC", "gcc")
    flags = ["-std=gnu11", "-O2", "-Wall", "-Wextra", "-Wconversion", "-Werror"]
    parts = [_FLOOR / name for name in ("floor.c", "child.c", "cgroup.c", "serve.c")]
    _run(compiler, *flags, "-pthread", "-o", stage.floor, *parts)
    _run(compiler, *flags, "-o", stage.spawn, _FLOOR / "spawn.c", _FLOOR / "serve.c")


def _make_rootfs(rootfs: Path) -> None:
    busybox = shutil.which("busybox")
    if busybox is None:
        raise RuntimeError("busybox is missing: apt-get install busybox-static")
    for name in ("bin", "dev", "etc", "mnt", "proc", "root", "sys", "tmp"):
        (rootfs / name).mkdir(parents=True)
    shutil.copy2(busybox, rootfs / "bin/busybox")
    for name in ("true", "sh"):
        (rootfs / "bin" / name).symlink_to("busybox")
    for name in ("hosts", "hostname", "resolv.conf"):
        (rootfs / "etc" / name).touch()


def bundle_config(stage: Stage, cgroup: str) -> dict[str, object]:
    """Return a runtime-spec document equal to what ``engine.run`` does by default, but for the overlay."""
    capabilities = list(CAPABILITIES)
    safe = ["nosuid", "noexec", "nodev"]
    mounts = [
        ("/proc", "proc", safe),
        ("/dev", "tmpfs", ["nosuid", "strictatime", "mode=755", "size=65536k"]),
        ("/dev/pts", "devpts", ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"]),
        ("/dev/shm", "tmpfs", [*safe, "mode=1777", "size=65536k"]),  # noqa: S108 - a path in the container
        ("/dev/mqueue", "mqueue", safe),
        ("/sys", "sysfs", [*safe, "ro"]),
        ("/sys/fs/cgroup", "cgroup", [*safe, "relatime", "ro"]),
    ]
    linux: dict[str, object] = {
        "cgroupsPath": f"/{stage.group}/{cgroup}",
        "namespaces": [{"type": name} for name in NAMESPACES],
        "maskedPaths": MASKED,
        "readonlyPaths": READ_ONLY,
        "resources": {
            "memory": {"limit": 256 << 20, "swap": 512 << 20},
            "cpu": {"quota": 100_000, "period": 100_000},
            "pids": {"limit": 64},
        },
    }
    if stage.profile is not None:
        linux["seccomp"] = stage.profile
    return {
        "ociVersion": "1.0.2",
        "process": {
            "user": {"uid": 0, "gid": 0},
            "args": ["/bin/true"],
            "env": ["PATH=/usr/sbin:/usr/bin:/sbin:/bin"],
            "cwd": "/",
            "capabilities": dict.fromkeys(("bounding", "effective", "permitted"), capabilities),
            "rlimits": [{"type": "RLIMIT_NOFILE", "hard": 4096, "soft": 1024}],
            "noNewPrivileges": True,
        },
        "root": {"path": str(stage.rootfs)},
        "hostname": "bench",
        "mounts": [
            {"destination": where, "type": kind, "source": kind, "options": options} for where, kind, options in mounts
        ],
        "linux": linux,
    }


def write_bundle(stage: Stage, name: str) -> Path:
    """Make a bundle directory and return it."""
    bundle = stage.disk / name
    bundle.mkdir()
    (bundle / "config.json").write_text(json.dumps(bundle_config(stage, name)))
    return bundle


def remove_groups(names: Sequence[str]) -> None:
    """Remove the control groups whose names start like this, in every hierarchy."""
    for hierarchy in [_CGROUPS, *_CGROUPS.iterdir()]:
        for group in [found for name in names for found in hierarchy.glob(f"{name}*") if found.is_dir()]:
            for directory, _, _ in os.walk(group, topdown=False):
                with contextlib.suppress(FileNotFoundError):  # a peer was quicker
                    Path(directory).rmdir()


def end_orphans() -> None:
    """End what outlived the processes that we started."""
    # Only what was started below us and lost its parent: as subreaper we are its parent now.
    children = Path(f"/proc/{os.getpid()}/task/{os.getpid()}/children")
    for _ in range(50):
        pids = [int(pid) for pid in children.read_text().split()]
        if not pids:
            return
        for pid in pids:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
        time.sleep(0.02)


@contextlib.contextmanager
def open_stage(profile: Path) -> Iterator[Stage]:
    """Set the stage and clear it away afterwards.

    Args:
        profile: a docker-style seccomp profile; when absent the contenders run without seccomp, and the report says so.
    """
    private_mounts()
    had_libpod = {hierarchy for hierarchy in _CGROUPS.iterdir() if (hierarchy / "libpod_parent").exists()}
    group = f"pycontainer-bench-{os.getpid()}"
    base = Path(tempfile.mkdtemp(prefix="pyc-bench-", dir="/var/tmp"))
    try:
        disk, memory, image = base / "disk", base / "memory", base / "disk.ext4"
        disk.mkdir()
        memory.mkdir()
        with image.open("wb") as file:
            file.truncate(2 << 30)
        _run("mkfs.ext4", "-q", image)
        _run("mount", "-o", "loop", image, disk)
        _run("mount", "-t", "tmpfs", "-o", "size=2g", "bench", memory)
        rules = filters.load_profile(profile, CAPABILITIES) if profile.exists() else None
        stage = Stage(disk=disk, memory=memory, rootfs=disk / "rootfs", profile=rules, group=group)
        allow_all = (0x06).to_bytes(2, "little") + bytes(2) + (0x7FFF0000).to_bytes(4, "little")
        stage.bpf.write_bytes(filters.compile_bpf(rules) if rules else allow_all)
        _build(stage)
        _make_rootfs(stage.rootfs)
        (disk / "runs").mkdir()
        yield stage
    finally:
        end_orphans()
        remove_groups([group] if had_libpod else [group, "libpod_parent"])
        for mount in ("memory", "disk"):
            if os.path.ismount(base / mount):
                _run("umount", "--lazy", "--recursive", base / mount)
        shutil.rmtree(base)
