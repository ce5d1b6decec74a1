"""Facts of this host, read from the kernel and from the disk."""

from __future__ import annotations

import ctypes
import os
import platform
import pwd
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import attr
import attrs

from pycontainer.doctor.probes import NAMESPACES, existing_parent, probe
from pycontainer.runtime.cgroups import find_hierarchies

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = [
    "Cgroups",
    "HostInfo",
    "Security",
    "StoreInfo",
    "SubordinateIds",
    "cgroups",
    "info",
    "libseccomp",
    "read_text",
    "security",
    "store",
    "store_root",
    "subordinate_ids",
    "sysctl",
    "tool",
]

CgroupVersion: TypeAlias = Literal["none", "v1", "hybrid", "v2"]

TOOLS = ("nft", "newuidmap", "newgidmap", "pasta", "slirp4netns", "qemu-system-x86_64", "mmdebstrap")
LIMITS = (
    "user.max_user_namespaces",
    "user.max_mnt_namespaces",
    "user.max_pid_namespaces",
    "user.max_net_namespaces",
    "kernel.pid_max",
    "kernel.threads-max",
    "fs.mount-max",
    "fs.nr_open",
    "fs.inotify.max_user_instances",
    "kernel.keys.maxkeys",
    "kernel.unprivileged_userns_clone",
    "kernel.apparmor_restrict_unprivileged_userns",
    "kernel.unprivileged_bpf_disabled",
    "net.ipv4.ip_unprivileged_port_start",
    "net.ipv4.ip_forward",
)
_OVERLAY_FEATURES = ("lowerdir+", "volatile", "metacopy", "userxattr", "idmapped-lower")
_KERNEL_FEATURES = (
    "clone3",
    "start-in-cgroup",
    "pidfd",
    "openat2",
    "mount-setattr",
    "clone-detached-mount",
    "time-at-exec",
    "nftables",
    "idmapped-mount",
    "erofs-file",
    "device-program",
)


@attrs.frozen(kw_only=True)
class Cgroups:
    """The control groups of this host.

    Attributes:
        version: ``"hybrid"`` when both versions are mounted; limits are then set through version 1.
        controllers: where each controller is mounted, by its name.
        own: the groups of this process, lines of ``/proc/self/cgroup`` (cgroups(7)).
    """

    version: CgroupVersion
    controllers: Mapping[str, str]
    own: tuple[str, ...]


@attrs.frozen(kw_only=True)
class Security:
    """What confines programs here.

    Attributes:
        seccomp: whether a filter can be installed.
        seccomp_actions: what a filter may answer, see seccomp(2).
        libseccomp: version of the library that compiles filters, or ``""``.
        apparmor: whether AppArmor is on.
        apparmor_profile: the profile of this process, ``""`` without AppArmor.
        selinux: ``"enforcing"``, ``"permissive"`` or ``""``.
        landlock: version of its ABI, 0 without it.
        capabilities: the effective ones of this process, as a mask (capabilities(7)).
    """

    seccomp: bool
    seccomp_actions: tuple[str, ...]
    libseccomp: str
    apparmor: bool
    apparmor_profile: str
    selinux: str
    landlock: int
    capabilities: int


@attrs.frozen(kw_only=True)
class StoreInfo:
    """Where images and containers lie.

    Attributes:
        root: directory of the store; it need not exist.
        filesystem: type of the file system it is, or would be, on.
        mount_point: of that file system.
        options: of the mount.
        size: bytes.
        free: bytes that this process may use.
        free_inodes: files that can still be made; 0 where the file system does not count them.
    """

    root: str
    filesystem: str
    mount_point: str
    options: str
    size: int
    free: int
    free_inodes: int


@attrs.frozen(kw_only=True)
class SubordinateIds:
    """The ids that /etc/subuid and /etc/subgid give to this user, as ``(first, count)``; see subuid(5)."""

    uids: tuple[tuple[int, int], ...]
    gids: tuple[tuple[int, int], ...]


@attrs.frozen(kw_only=True)
class HostInfo:
    """What this host is and has.

    Attributes:
        kernel: release, e.g. ``"6.1.0-18-amd64"``.
        architecture: as ``uname -m`` says.
        system: the distribution's name for itself.
        python: version of the running interpreter.
        cpus: processors that this process may use.
        memory: bytes.
        swap: bytes.
        cgroups: control groups.
        namespaces: of each kind, why a new one cannot be made; ``""`` when it can.
        security: filters and security modules.
        overlay: of the overlay and each of its features, why it does not work on the store's file system, or ``""``.
        features: the same of system calls and subsystems, by names of `pycontainer.doctor.PROBES`.
        limits: sysctl settings that containers run into; those that exist.
        tools: where programs are that some functions and tests use; ``""`` when missing.
        store: the file system of the store.
        subordinate_ids: ids for user namespaces.
    """

    kernel: str
    architecture: str
    system: str
    python: str
    cpus: int
    memory: int
    swap: int
    cgroups: Cgroups
    namespaces: Mapping[str, str]
    security: Security
    overlay: Mapping[str, str]
    features: Mapping[str, str]
    limits: Mapping[str, str]
    tools: Mapping[str, str]
    store: StoreInfo
    subordinate_ids: SubordinateIds

    def to_dict(self) -> dict[str, Any]:
        """Return the same as dictionaries, lists, numbers and texts, as JSON has them."""
        return attr.asdict(self, retain_collection_types=False)


def info(root: str | os.PathLike[str] | None = None) -> HostInfo:
    """Return the facts of this host; about 50 ms.

    Args:
        root: the store; the engine's default when not given.
    """
    where = store_root(root)
    memory = _meminfo()
    return HostInfo(
        kernel=os.uname().release,
        architecture=os.uname().machine,
        system=platform.freedesktop_os_release().get("PRETTY_NAME", "") if Path("/etc/os-release").exists() else "",
        python=platform.python_version(),
        cpus=len(os.sched_getaffinity(0)),
        memory=memory.get("MemTotal", 0),
        swap=memory.get("SwapTotal", 0),
        cgroups=cgroups(),
        namespaces={name: probe(f"namespace-{name}").why for name in NAMESPACES},
        security=security(),
        overlay={
            "overlay": probe("overlay", where).why,
            **{name: probe(f"overlay-{name}", where).why for name in _OVERLAY_FEATURES},
        },
        features={name: probe(name, where).why for name in _KERNEL_FEATURES},
        limits={name: value for name in LIMITS if (value := sysctl(name))},
        tools={name: tool(name) for name in TOOLS},
        store=store(where),
        subordinate_ids=subordinate_ids(),
    )


def store_root(root: str | os.PathLike[str] | None) -> Path:
    """Return the directory of the store."""
    if root is not None:
        return Path(root).absolute()
    from pycontainer.engine import default_root

    return default_root().absolute()


def cgroups() -> Cgroups:
    """Return the control groups of this host."""
    unified, v1 = find_hierarchies()
    controllers = {name: hierarchy.path for hierarchy in v1 for name in hierarchy.controllers}
    version: CgroupVersion = "v1" if controllers else "none"
    if unified is not None:
        version = "hybrid" if controllers else "v2"
        controllers = {**dict.fromkeys(unified.controllers, unified.path), **controllers}
    own = tuple(read_text("/proc/self/cgroup").split())
    return Cgroups(version=version, controllers=controllers, own=own)


def security() -> Security:
    """Return what confines programs here."""
    apparmor = read_text("/sys/module/apparmor/parameters/enabled") == "Y"
    enforce = read_text("/sys/fs/selinux/enforce")
    status = dict(line.split(":", 1) for line in read_text("/proc/self/status").splitlines())
    return Security(
        seccomp=probe("seccomp").available,
        seccomp_actions=tuple(read_text("/proc/sys/kernel/seccomp/actions_avail").split()),
        libseccomp=libseccomp(),
        apparmor=apparmor,
        apparmor_profile=read_text("/proc/self/attr/current").rstrip("\0") if apparmor else "",
        selinux={"1": "enforcing", "0": "permissive"}.get(enforce, ""),
        landlock=probe("landlock").value,
        capabilities=int(status["CapEff"], 16),
    )


class _Version(ctypes.Structure):
    """``struct scmp_version``, see seccomp_version(3)."""

    _fields_ = (("major", ctypes.c_uint), ("minor", ctypes.c_uint), ("micro", ctypes.c_uint))


def libseccomp() -> str:
    """Return the version of libseccomp, ``""`` when it is not installed."""
    try:
        library = ctypes.CDLL("libseccomp.so.2")
    except OSError:
        return ""
    library.seccomp_version.restype = ctypes.POINTER(_Version)
    version = library.seccomp_version().contents
    return f"{version.major}.{version.minor}.{version.micro}"


def store(root: Path) -> StoreInfo:
    """Return where the store is or would be."""
    parent = existing_parent(root)
    kind, point, options = _mount_of(parent)
    space = os.statvfs(parent)
    return StoreInfo(
        root=str(root),
        filesystem=kind,
        mount_point=point,
        options=options,
        size=space.f_blocks * space.f_frsize,
        free=space.f_bavail * space.f_frsize,
        free_inodes=space.f_favail,
    )


def subordinate_ids() -> SubordinateIds:
    """Return the ids that this user may map into user namespaces."""
    uid = os.getuid()
    try:
        user = pwd.getpwuid(uid).pw_name
    except KeyError:
        user = ""
    return SubordinateIds(uids=_ranges("/etc/subuid", user, uid), gids=_ranges("/etc/subgid", user, uid))


def sysctl(name: str) -> str:
    """Read a kernel parameter; ``""`` when this kernel has none of that name."""
    return read_text("/proc/sys/" + name.replace(".", "/"))


def tool(name: str) -> str:
    """Return where a program is, ``""`` when it is not installed; in the system's directories of programs too."""
    return shutil.which(name) or shutil.which(name, path="/usr/local/sbin:/usr/sbin:/sbin") or ""


def read_text(path: str) -> str:
    """Return the stripped text of a file of the kernel's, ``""`` when it is not there or says nothing to us."""
    try:
        return Path(path).read_text().strip()
    except OSError:
        return ""


def _ranges(path: str, user: str, uid: int) -> tuple[tuple[int, int], ...]:
    lines = (line.split(":") for line in read_text(path).splitlines() if line.count(":") == 2)  # noqa: PLR2004
    return tuple((int(first), int(count)) for name, first, count in lines if name in {user, str(uid)})


def _meminfo() -> dict[str, int]:
    lines = (line.split() for line in read_text("/proc/meminfo").splitlines())
    return {words[0].rstrip(":"): int(words[1]) * 1024 for words in lines}


def _mount_of(path: Path) -> tuple[str, str, str]:
    """Return type, mount point and options of the mount that ``path`` is on, see proc_pid_mountinfo(5)."""
    found = ("", "", "")
    device = os.stat(path).st_dev  # noqa: PTH116 - follows links, as the store does
    number = f"{os.major(device)}:{os.minor(device)}"
    text = os.fspath(path.resolve())
    for line in read_text("/proc/self/mountinfo").splitlines():
        left, _, right = line.partition(" - ")
        words = left.split(" ")
        point = words[4].encode().decode("unicode_escape") if "\\" in words[4] else words[4]
        inside = text == point or text.startswith(point.rstrip("/") + "/")
        if inside and len(point) >= len(found[1]) and (words[2] == number or not found[1]):
            found = (right.split(" ")[0], point, words[5])
    return found
