"""What a container has unless told otherwise, as pieces of a :class:`~pycontainer.oci.runtime.Spec`.

These are the defaults that Docker's users know. They are made once, frozen and shared by every start; a container that
differs gets its own with ``attrs.evolve``.
"""

from __future__ import annotations

from pycontainer.oci.runtime import Capabilities, DeviceRule, LinuxDevice, Mount, Namespace

__all__ = [
    "CAPABILITIES",
    "CAPABILITY_SETS",
    "DEVICES",
    "DEVICE_RULES",
    "MASKED_GLOBS",
    "MASKED_PATHS",
    "MOUNTS",
    "NAMESPACES",
    "PATH",
    "READONLY_PATHS",
    "SHM_SIZE",
]

PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
"""The ``PATH`` of a container whose image sets none."""

SHM_SIZE = 64 * 1024**2
"""The size of ``/dev/shm``, bytes."""

_SAFE = ("nosuid", "noexec", "nodev")

MOUNTS: tuple[Mount, ...] = (
    Mount(destination="/proc", type="proc", source="proc", options=_SAFE),
    Mount(
        destination="/dev", type="tmpfs", source="tmpfs", options=("nosuid", "strictatime", "mode=755", "size=65536k")
    ),
    Mount(
        destination="/dev/pts",
        type="devpts",
        source="devpts",
        # 5 is the group tty in every distribution; grantpt(3) expects it.
        options=("nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"),
    ),
    Mount(destination="/sys", type="sysfs", source="sysfs", options=(*_SAFE, "ro")),
    Mount(destination="/sys/fs/cgroup", type="cgroup", source="cgroup", options=(*_SAFE, "ro")),
    Mount(destination="/dev/mqueue", type="mqueue", source="mqueue", options=_SAFE),
    Mount(
        destination="/dev/shm",  # noqa: S108 - in the container
        type="tmpfs",
        source="shm",
        options=(*_SAFE, "mode=1777", f"size={SHM_SIZE // 1024}k"),
    ),
)
"""The file systems that programs expect, in the order of mounting."""

NAMESPACES: tuple[Namespace, ...] = (
    Namespace(type="mount"),
    Namespace(type="network"),
    Namespace(type="uts"),
    Namespace(type="pid"),
    Namespace(type="ipc"),
    Namespace(type="cgroup"),
)
"""A new namespace of every kind but user and time; Docker has the cgroup one where the host is on cgroup v2."""

MASKED_PATHS: tuple[str, ...] = (
    "/proc/acpi",
    "/proc/asound",
    "/proc/interrupts",  # its counts tell what is typed on the host, GHSA-6fw5-f8r9-fgfm
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/sys/devices/virtual/powercap",  # the power used tells the keys computed with, GHSA-jq35-85cj-fj4p
    "/sys/firmware",
)
"""What is unreadable in a container: facts of the host that are none of its business."""

MASKED_GLOBS: tuple[str, ...] = ("/sys/devices/system/cpu/cpu[0-9]*/thermal_throttle",)
"""Patterns of more of that, one match per processor; to be expanded on the host, once (GHSA-6fw5-f8r9-fgfm)."""

READONLY_PATHS: tuple[str, ...] = ("/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger")
"""What cannot be written in a container: knobs of the host."""

CAPABILITIES: tuple[str, ...] = (
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_FSETID",
    "CAP_FOWNER",
    "CAP_MKNOD",
    "CAP_NET_RAW",
    "CAP_SETGID",
    "CAP_SETUID",
    "CAP_SETFCAP",
    "CAP_SETPCAP",
    "CAP_NET_BIND_SERVICE",
    "CAP_SYS_CHROOT",
    "CAP_KILL",
    "CAP_AUDIT_WRITE",
)
"""What root in a container may do (capabilities(7)): enough for packages to install, nothing against the host."""

CAPABILITY_SETS = Capabilities(bounding=CAPABILITIES, effective=CAPABILITIES, permitted=CAPABILITIES)
"""The same as the sets of root's process; nothing is inheritable or ambient (CVE-2022-24769)."""

_NODES: tuple[tuple[str, int, int], ...] = (
    ("null", 1, 3),
    ("zero", 1, 5),
    ("full", 1, 7),
    ("random", 1, 8),
    ("urandom", 1, 9),
    ("tty", 5, 0),
)

DEVICES: tuple[LinuxDevice, ...] = tuple(
    LinuxDevice(type="c", path=f"/dev/{name}", major=major, minor=minor, file_mode=0o666, uid=0, gid=0)
    for name, major, minor in _NODES
)
"""The nodes that every container has, besides the terminal's (config-linux.md, "Default Devices")."""

DEVICE_RULES: tuple[DeviceRule, ...] = (
    DeviceRule(allow=False),
    # Making a node gives nothing that opening it does not have to be allowed for.
    DeviceRule(allow=True, type="c", access="m"),
    DeviceRule(allow=True, type="b", access="m"),
    *(DeviceRule(allow=True, type="c", major=major, minor=minor) for _name, major, minor in _NODES),
    DeviceRule(allow=True, type="c", major=5, minor=2),  # ptmx
    DeviceRule(allow=True, type="c", major=136),  # pts
)
"""The device allow-list, in order: Docker's, without 5:1. A container's console is a pty; 5:1 is the host's."""
