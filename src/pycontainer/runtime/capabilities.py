"""Capabilities: their names and numbers, and what a container gets of them (``capabilities(7)``)."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import TYPE_CHECKING

from pycontainer.errors import Unsupported

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["DEFAULT", "NAMES", "NUMBERS", "available", "from_mask", "normalize", "resolve", "supported", "to_mask"]

# In the order of their numbers, as in <linux/capability.h>.
NAMES: tuple[str, ...] = (
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_DAC_READ_SEARCH",
    "CAP_FOWNER",
    "CAP_FSETID",
    "CAP_KILL",
    "CAP_SETGID",
    "CAP_SETUID",
    "CAP_SETPCAP",
    "CAP_LINUX_IMMUTABLE",
    "CAP_NET_BIND_SERVICE",
    "CAP_NET_BROADCAST",
    "CAP_NET_ADMIN",
    "CAP_NET_RAW",
    "CAP_IPC_LOCK",
    "CAP_IPC_OWNER",
    "CAP_SYS_MODULE",
    "CAP_SYS_RAWIO",
    "CAP_SYS_CHROOT",
    "CAP_SYS_PTRACE",
    "CAP_SYS_PACCT",
    "CAP_SYS_ADMIN",
    "CAP_SYS_BOOT",
    "CAP_SYS_NICE",
    "CAP_SYS_RESOURCE",
    "CAP_SYS_TIME",
    "CAP_SYS_TTY_CONFIG",
    "CAP_MKNOD",
    "CAP_LEASE",
    "CAP_AUDIT_WRITE",
    "CAP_AUDIT_CONTROL",
    "CAP_SETFCAP",
    "CAP_MAC_OVERRIDE",
    "CAP_MAC_ADMIN",
    "CAP_SYSLOG",
    "CAP_WAKE_ALARM",
    "CAP_BLOCK_SUSPEND",
    "CAP_AUDIT_READ",
    "CAP_PERFMON",
    "CAP_BPF",
    "CAP_CHECKPOINT_RESTORE",
)
NUMBERS: dict[str, int] = {name: number for number, name in enumerate(NAMES)}

# What Docker gives to a container that asks for nothing.
DEFAULT: tuple[str, ...] = (
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_FOWNER",
    "CAP_FSETID",
    "CAP_KILL",
    "CAP_SETGID",
    "CAP_SETUID",
    "CAP_SETPCAP",
    "CAP_NET_BIND_SERVICE",
    "CAP_NET_RAW",
    "CAP_SYS_CHROOT",
    "CAP_MKNOD",
    "CAP_AUDIT_WRITE",
    "CAP_SETFCAP",
)

_ALL = "ALL"
_LAST_CAP = Path("/proc/sys/kernel/cap_last_cap")
_STATUS = Path("/proc/thread-self/status")


def resolve(add: Iterable[str] = (), drop: Iterable[str] = (), *, privileged: bool = False) -> tuple[str, ...]:
    """Return the capabilities of a container, as Docker works them out.

    ``ALL`` in ``add`` gives all that are available except those named in ``drop``; ``ALL`` in ``drop`` leaves only
    those named in ``add``; otherwise ``drop`` is taken from the default set first, then ``add`` is added.

    Args:
        add: names to give; with or without ``CAP_``, in any case, or ``ALL``.
        drop: names to take away, written the same way.
        privileged: give everything available; ``add`` and ``drop`` are then only checked.

    Returns:
        Names in the order of their numbers, each once.

    Raises:
        ValueError: a name is no capability; the text offers the nearest names.
        Unsupported: a capability to add is unknown to this kernel, or this process may not hand it out.

    >>> resolve(add=["net_admin"], drop=["all"])
    ('CAP_NET_ADMIN',)
    """
    if not privileged and not add and not drop:
        return DEFAULT
    added = {normalize(name) for name in add}
    dropped = {normalize(name) for name in drop}
    if privileged:
        return available()
    if _ALL in added:
        wanted = set(available()) - dropped
    elif _ALL in dropped:
        wanted = added
    else:
        wanted = (set(DEFAULT) - dropped) | added
    for name in sorted(added - {_ALL} - set(available())):
        raise Unsupported(
            f"cannot add {name} to a container: this kernel ({_LAST_CAP}) does not know it, "
            f"or it is not in the bounding set of this process (CapBnd in {_STATUS})"
        )
    return tuple(sorted(wanted, key=NUMBERS.__getitem__))


def normalize(name: str) -> str:
    """Return the kernel's spelling of a capability: ``net_admin`` becomes ``CAP_NET_ADMIN``, ``all`` becomes ``ALL``.

    Args:
        name: with or without ``CAP_``, in any case.

    Returns:
        One of `NAMES`, or ``ALL``.

    Raises:
        ValueError: it is no capability; the text offers the nearest names.
    """
    upper = name.strip().upper()
    if upper in (_ALL, f"CAP_{_ALL}"):
        return _ALL
    full = upper if upper.startswith("CAP_") else f"CAP_{upper}"
    if full in NUMBERS:
        return full
    import difflib  # slow to import, and only errors need it

    close = difflib.get_close_matches(full, NAMES, n=3)
    hint = f"did you mean {' or '.join(close)}?" if close else "capabilities(7) lists them, ALL means every one"
    raise ValueError(f"{name!r} is not a capability: {hint}")


def to_mask(names: Iterable[str]) -> int:
    """Return the bit mask of capability names, as ``capset(2)`` and ``/proc/PID/status`` use it.

    Raises:
        ValueError: a name is no capability.

    >>> hex(to_mask(["CAP_CHOWN", "CAP_KILL"]))
    '0x21'
    """
    mask = 0
    for name in names:
        number = NUMBERS.get(name)
        if number is None:
            full = normalize(name)
            mask |= to_mask(available()) if full == _ALL else 1 << NUMBERS[full]
        else:
            mask |= 1 << number
    return mask


def from_mask(mask: int) -> tuple[str, ...]:
    """Return the names in a bit mask, in the order of their numbers; bits without a name are left out.

    >>> from_mask(0x21)
    ('CAP_CHOWN', 'CAP_KILL')
    """
    return tuple(name for number, name in enumerate(NAMES) if mask >> number & 1)


@functools.cache
def supported() -> tuple[str, ...]:
    """Return the capabilities that the running kernel knows (``/proc/sys/kernel/cap_last_cap``)."""
    return NAMES[: int(_LAST_CAP.read_text()) + 1]


@functools.cache
def available() -> tuple[str, ...]:
    """Return the capabilities this process can hand out: known to the kernel and in its bounding set.

    Inside another container this is less than `supported`. Read once per process.
    """
    for line in _STATUS.read_text().splitlines():
        key, _, value = line.partition(":")
        if key == "CapBnd":
            bounding = int(value, 16)
            return tuple(name for name in supported() if bounding >> NUMBERS[name] & 1)
    raise Unsupported(f"{_STATUS} has no line CapBnd: this needs Linux 2.6.26 or newer with /proc mounted")
