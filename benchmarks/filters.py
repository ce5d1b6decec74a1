"""Seccomp for the contenders: one profile, as OCI JSON for crun and runc and as compiled BPF for the floor.

The BPF is made by libseccomp in its binary-tree form, before anything is timed.
"""

from __future__ import annotations

import ctypes
import json
import os
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

__all__ = ["Profile", "compile_bpf", "load_profile"]

Profile = Mapping[str, Any]

DEFAULT_PROFILE = Path("/usr/share/containers/seccomp.json")
"""Installed with podman; docker's default profile in the same format, kept by the same people."""

_ARCHITECTURE = {"x86_64": "SCMP_ARCH_X86_64", "aarch64": "SCMP_ARCH_AARCH64"}
_ARCHITECTURE_TOKEN = {
    "SCMP_ARCH_X86": 0x40000003,
    "SCMP_ARCH_X86_64": 0xC000003E,
    "SCMP_ARCH_X32": 0x4000003E,
    "SCMP_ARCH_AARCH64": 0xC00000B7,
    "SCMP_ARCH_ARM": 0x40000028,
}
_OPERATOR = {
    "SCMP_CMP_NE": 1,
    "SCMP_CMP_LT": 2,
    "SCMP_CMP_LE": 3,
    "SCMP_CMP_EQ": 4,
    "SCMP_CMP_GE": 5,
    "SCMP_CMP_GT": 6,
    "SCMP_CMP_MASKED_EQ": 7,
}
_OPTIMIZE = 8
_BAD_ARCHITECTURE_ACTION = 2


def _applies(rule: Mapping[str, Any], capabilities: Sequence[str], short_arch: str) -> bool:
    includes, excludes = rule.get("includes") or {}, rule.get("excludes") or {}
    if short_arch in excludes.get("arches", ()) or set(excludes.get("caps", ())) & set(capabilities):
        return False
    if includes.get("arches") and short_arch not in includes["arches"]:
        return False
    return set(includes.get("caps", ())) <= set(capabilities)


def load_profile(path: Path, capabilities: Sequence[str]) -> Profile:
    """Return the ``linux.seccomp`` object of the OCI runtime spec that a docker-style profile means here.

    Args:
        path: a profile with ``archMap``, ``includes`` and ``excludes``, as docker and podman ship it.
        capabilities: what the container keeps; some rules depend on it.
    """
    raw = json.loads(path.read_text())
    machine = os.uname().machine
    native = _ARCHITECTURE[machine]
    architectures = [native]
    for entry in raw.get("archMap", ()):
        if entry["architecture"] == native:
            architectures += entry.get("subArchitectures") or []
    short = {"x86_64": "amd64", "aarch64": "arm64"}[machine]
    rules = []
    for rule in raw["syscalls"]:
        if not _applies(rule, capabilities, short):
            continue
        kept = {"names": rule["names"], "action": rule["action"]}
        if rule.get("args"):
            kept["args"] = [
                {"index": a["index"], "value": a["value"], "valueTwo": a.get("valueTwo", 0), "op": a["op"]}
                for a in rule["args"]
            ]
        if rule.get("errnoRet") is not None:
            kept["errnoRet"] = rule["errnoRet"]
        rules.append(kept)
    return {
        "defaultAction": raw["defaultAction"],
        "defaultErrnoRet": raw.get("defaultErrnoRet", 1),
        "architectures": architectures,
        "syscalls": rules,
    }


class _Compare(ctypes.Structure):
    _fields_ = (
        ("argument", ctypes.c_uint),
        ("operator", ctypes.c_int),
        ("first", ctypes.c_uint64),
        ("second", ctypes.c_uint64),
    )


def _action(name: str, errno_value: int) -> int:
    values = {
        "SCMP_ACT_ALLOW": 0x7FFF0000,
        "SCMP_ACT_ERRNO": 0x00050000 | errno_value,
        "SCMP_ACT_KILL_PROCESS": 0x80000000,
        "SCMP_ACT_KILL": 0,
        "SCMP_ACT_LOG": 0x7FFC0000,
    }
    return values[name]


def _libseccomp() -> ctypes.CDLL:
    library = ctypes.CDLL("libseccomp.so.2")
    library.seccomp_init.restype = ctypes.c_void_p
    library.seccomp_init.argtypes = [ctypes.c_uint32]
    library.seccomp_release.argtypes = [ctypes.c_void_p]
    library.seccomp_arch_add.argtypes = [ctypes.c_void_p, ctypes.c_uint32]
    library.seccomp_attr_set.argtypes = [ctypes.c_void_p, ctypes.c_int, ctypes.c_uint32]
    library.seccomp_export_bpf.argtypes = [ctypes.c_void_p, ctypes.c_int]
    library.seccomp_rule_add_array.argtypes = [
        ctypes.c_void_p,
        ctypes.c_uint32,
        ctypes.c_int,
        ctypes.c_uint,
        ctypes.POINTER(_Compare),
    ]
    library.seccomp_syscall_resolve_name.argtypes = [ctypes.c_char_p]
    return library


def _check(code: int, step: str) -> None:
    if code < 0:
        raise OSError(-code, f"libseccomp: {step}: {os.strerror(-code)}")


def compile_bpf(profile: Profile) -> bytes:
    """Compile a ``linux.seccomp`` object to BPF instructions in binary-tree form.

    Raises:
        OSError: libseccomp is not installed or refused a rule.
    """
    library = _libseccomp()
    default = _action(profile["defaultAction"], profile.get("defaultErrnoRet", 1))
    context = library.seccomp_init(default)
    if not context:
        raise OSError(0, "libseccomp: seccomp_init failed")
    try:
        _check(library.seccomp_attr_set(context, _BAD_ARCHITECTURE_ACTION, 0x00050001), "set bad-arch action")
        _check(library.seccomp_attr_set(context, _OPTIMIZE, 2), "ask for a binary tree")
        for name in profile["architectures"][1:]:
            _check(library.seccomp_arch_add(context, _ARCHITECTURE_TOKEN[name]), f"add {name}")
        for rule in profile["syscalls"]:
            _add_rule(library, context, rule, default)
        with tempfile.TemporaryFile() as out:
            _check(library.seccomp_export_bpf(context, out.fileno()), "export BPF")
            out.seek(0)
            return out.read()
    finally:
        library.seccomp_release(context)


def _add_rule(library: ctypes.CDLL, context: int, rule: Mapping[str, Any], default: int) -> None:
    action = _action(rule["action"], rule.get("errnoRet", 1))
    if action == default:
        return
    arguments = rule.get("args", ())
    compare = (_Compare * max(1, len(arguments)))()
    for slot, argument in zip(compare, arguments, strict=False):
        slot.argument, slot.operator = argument["index"], _OPERATOR[argument["op"]]
        slot.first, slot.second = argument["value"], argument.get("valueTwo", 0)
    for name in rule["names"]:
        number = library.seccomp_syscall_resolve_name(name.encode())
        if number == -1:  # newer than this libseccomp: the kernel answers as for any unlisted call
            continue
        code = library.seccomp_rule_add_array(context, action, number, len(arguments), compare)
        _check(code, f"add rule for {name}")
