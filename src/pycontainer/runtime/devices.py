"""Which devices a container may use: the rules in the forms that cgroup v1 and v2 take, and devices of the host.

v1 has files to write (kernel, ``cgroup-v1/devices.rst``). v2 has no files: a program is attached to the cgroup that
answers each access (``BPF_PROG_TYPE_CGROUP_DEVICE``), made here out of `DeviceRule` objects.
"""

from __future__ import annotations

import errno
import os
import stat
import struct
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple

from pycontainer.errors import NotFound, Unsupported

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from pycontainer.oci.runtime import DeviceRule

__all__ = ["HostDevice", "compile_bpf", "stat_device", "v1_writes"]

_ALL_ACCESS = "rwm"
_BOTH_TYPES = ("b", "c")


def _types(rule: DeviceRule) -> tuple[str, ...]:
    return _BOTH_TYPES if rule.type == "a" else (rule.type,)


def _is_total(rule: DeviceRule) -> bool:
    """Return whether a rule is about everything, so that the rules before it do not matter."""
    anything = rule.type == "a" and rule.major is None and rule.minor is None
    return anything and set(rule.access) == set(_ALL_ACCESS)


# ── cgroup v1 ─────────────────────────────────────────────────────────────────────────────────────────────────────

_Node = tuple[str, int | None, int | None]


def v1_writes(rules: Iterable[DeviceRule]) -> list[tuple[str, str]]:
    """Return what to write into the ``devices`` cgroup of a container, so that its rules hold.

    The kernel keeps a default and a list of exceptions. The rules are brought to that form first, so that the writes
    are few and do not depend on what the cgroup had before. An access must be granted by one exception as a whole.

    Args:
        rules: later ones win; what none of them is about is denied.

    Returns:
        (file, text) in the order of writing; file is ``devices.allow`` or ``devices.deny``.

    Raises:
        Unsupported: a rule takes back a part of what an earlier, wider one gave, which v1 cannot say.
    """
    allowed = False
    exceptions: dict[_Node, set[str]] = {}
    for rule in rules:
        if _is_total(rule):
            allowed = rule.allow
            exceptions.clear()
            continue
        for kind in _types(rule):
            node = (kind, rule.major, rule.minor)
            if rule.allow != allowed:
                exceptions.setdefault(node, set()).update(rule.access)
            else:
                _take_back(exceptions, node, set(rule.access), allowed=allowed)
    first, then = ("devices.allow", "devices.deny") if allowed else ("devices.deny", "devices.allow")
    writes = [(first, "a")]
    for (kind, major, minor), access in exceptions.items():
        letters = "".join(letter for letter in _ALL_ACCESS if letter in access)
        writes.append((then, f"{kind} {_number(major)}:{_number(minor)} {letters}"))
    return writes


def _take_back(exceptions: dict[_Node, set[str]], node: _Node, access: set[str], *, allowed: bool) -> None:
    """Restore the default for a node, which is possible for whole exceptions only."""
    for other in list(exceptions):
        common = exceptions[other] & access
        if not common or not _overlap(node, other):
            continue
        if not _covers(node, other):
            verb = "allow" if allowed else "deny"
            raise Unsupported(
                f"cannot {verb} {_text(node)} {''.join(sorted(common))} after a rule for all of {_text(other)}: "
                "cgroup v1 knows no exception from an exception; "
                "name the devices one by one, or boot with cgroup v2 (systemd.unified_cgroup_hierarchy=1)"
            )
        exceptions[other] -= common
        if not exceptions[other]:
            del exceptions[other]


def _overlap(one: _Node, other: _Node) -> bool:
    return one[0] == other[0] and all(a is None or b is None or a == b for a, b in zip(one[1:], other[1:], strict=True))


def _covers(wide: _Node, narrow: _Node) -> bool:
    return wide[0] == narrow[0] and all(a is None or a == b for a, b in zip(wide[1:], narrow[1:], strict=True))


def _number(number: int | None) -> str:
    return "*" if number is None else str(number)


def _text(node: _Node) -> str:
    return f"{node[0]} {_number(node[1])}:{_number(node[2])}"


# ── cgroup v2 ─────────────────────────────────────────────────────────────────────────────────────────────────────

# <linux/bpf.h>: the context of the program is struct bpf_cgroup_dev_ctx {access_type, major, minor}, three u32, where
# access_type is the access in the upper half and the type in the lower.
_TYPE_BITS = {"b": 1, "c": 2}
_ACCESS_BITS = {"m": 1, "r": 2, "w": 4}
_ALL_BITS = 7

_INSN = struct.Struct("=BBhi")  # struct bpf_insn: code, registers, offset, immediate
_LOAD_WORD = 0x61  # BPF_LDX | BPF_MEM | BPF_W
_MOVE = 0xBF  # BPF_ALU64 | BPF_MOV | BPF_X
_SET = 0xB7  # BPF_ALU64 | BPF_MOV | BPF_K
_AND = 0x57  # BPF_ALU64 | BPF_AND | BPF_K
_SHIFT_RIGHT = 0x77  # BPF_ALU64 | BPF_RSH | BPF_K
_JUMP_NOT_EQUAL = 0x55  # BPF_JMP | BPF_JNE | BPF_K
_JUMP_ANY_SET = 0x45  # BPF_JMP | BPF_JSET | BPF_K
_JUMP = 0x05  # BPF_JMP | BPF_JA
_EXIT = 0x95
_RESULT, _CONTEXT, _TYPE, _ACCESS, _MAJOR, _MINOR = 0, 1, 2, 3, 4, 5


def _insn(code: int, target: int = 0, source: int = 0, offset: int = 0, immediate: int = 0) -> bytes:
    # The two registers share a byte, whose halves follow the byte order of the host.
    low, high = (target, source) if struct.pack("=H", 1)[0] else (source, target)
    return _INSN.pack(code, high << 4 | low, offset, immediate)


def compile_bpf(rules: Sequence[DeviceRule]) -> bytes:
    """Return the program that holds the rules, for ``bpf(BPF_PROG_LOAD)`` as ``BPF_PROG_TYPE_CGROUP_DEVICE``.

    It goes through the rules from the last to the first, with the bits of access that were asked for and not decided
    yet. A rule that allows takes its bits out, and when none is left the access is granted. A rule that denies any
    bit that is left ends it, as does the end of the rules. It calls no helper: the licence can be any.

    Args:
        rules: later ones win, for each bit of access; what none of them is about is denied.

    Returns:
        An array of ``struct bpf_insn`` in the byte order of this host.
    """
    code = [
        _insn(_LOAD_WORD, _ACCESS, _CONTEXT, 0),
        _insn(_MOVE, _TYPE, _ACCESS),
        _insn(_AND, _TYPE, immediate=0xFFFF),
        _insn(_SHIFT_RIGHT, _ACCESS, immediate=16),
        _insn(_LOAD_WORD, _MAJOR, _CONTEXT, 4),
        _insn(_LOAD_WORD, _MINOR, _CONTEXT, 8),
    ]
    for rule in reversed(rules):
        if _is_total(rule):
            code += _answer(rule.allow)
            break
        code += _rule_code(rule)
    else:
        code += _answer(allow=False)
    return b"".join(code)


def _answer(allow: bool) -> list[bytes]:  # noqa: FBT001 - the answer is yes or no
    return [_insn(_SET, _RESULT, immediate=int(allow)), _insn(_EXIT)]


def _rule_code(rule: DeviceRule) -> list[bytes]:
    bits = sum(_ACCESS_BITS[letter] for letter in set(rule.access))
    if rule.allow:
        verdict = [
            _insn(_AND, _ACCESS, immediate=_ALL_BITS & ~bits),
            _insn(_JUMP_NOT_EQUAL, _ACCESS, offset=2, immediate=0),
            *_answer(allow=True),
        ]
    else:
        verdict = [
            _insn(_JUMP_ANY_SET, _ACCESS, offset=1, immediate=bits),
            _insn(_JUMP, offset=2),
            *_answer(allow=False),
        ]
    conditions = [
        (register, value)
        for register, value in (
            (_TYPE, None if rule.type == "a" else _TYPE_BITS[rule.type]),
            (_MAJOR, rule.major),
            (_MINOR, rule.minor),
        )
        if value is not None
    ]
    total = len(conditions) + len(verdict)
    tests = [
        _insn(_JUMP_NOT_EQUAL, register, offset=total - at - 1, immediate=value)
        for at, (register, value) in enumerate(conditions)
    ]
    return tests + verdict


# ── devices of the host ───────────────────────────────────────────────────────────────────────────────────────────


class HostDevice(NamedTuple):
    """A device node of the host.

    Attributes:
        type: ``c`` or ``b``.
        major: major number.
        minor: minor number.
        mode: permission bits.
        uid: owner.
        gid: group.
    """

    type: Literal["c", "b"]
    major: int
    minor: int
    mode: int
    uid: int
    gid: int


def stat_device(path: str | os.PathLike[str]) -> HostDevice:
    """Return what a device of the host is, following symbolic links (``/dev/disk/by-id/…``).

    Args:
        path: absolute path.

    Raises:
        NotFound: there is nothing at that path.
        ValueError: the path is relative, or what is there is not a device.
    """
    device = Path(path)
    if not device.is_absolute():
        raise ValueError(f"cannot pass the device {path} to a container: the path must be absolute, such as /dev/fuse")
    try:
        status = device.stat()
    except OSError as error:
        if error.errno not in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP):
            raise
        raise NotFound(
            f"cannot pass the device {path} to a container: {error.strerror}; is its driver loaded on the host?"
        ) from error
    if stat.S_ISCHR(status.st_mode):
        kind: Literal["c", "b"] = "c"
    elif stat.S_ISBLK(status.st_mode):
        kind = "b"
    else:
        what = "a directory" if stat.S_ISDIR(status.st_mode) else "not a device"
        raise ValueError(f"cannot pass the device {path} to a container: it is {what}; mount it instead")
    numbers = os.major(status.st_rdev), os.minor(status.st_rdev)
    return HostDevice(kind, *numbers, stat.S_IMODE(status.st_mode), status.st_uid, status.st_gid)
