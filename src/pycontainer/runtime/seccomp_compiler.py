"""From the OCI ``seccomp`` object to classic BPF, by libseccomp.

Imported when something must be compiled, not before: a start that finds its filter needs neither `ctypes` nor
libseccomp. That is called through `ctypes` because cffi's ABI mode would first load a C parser (30 ms, against 2).
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import functools
import os
import struct
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pycontainer.errors import Unsupported

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from pycontainer.oci.runtime import Seccomp, SyscallArg, SyscallRule

__all__ = ["compile_program", "library_path"]

_LIBRARY = "libseccomp.so.2"

# <linux/seccomp.h>: what seccomp(2) does with a matching call.
_ACTIONS: dict[str, int] = {
    "SCMP_ACT_KILL": 0x00000000,
    "SCMP_ACT_KILL_THREAD": 0x00000000,
    "SCMP_ACT_KILL_PROCESS": 0x80000000,
    "SCMP_ACT_TRAP": 0x00030000,
    "SCMP_ACT_ERRNO": 0x00050000,
    "SCMP_ACT_TRACE": 0x7FF00000,
    "SCMP_ACT_LOG": 0x7FFC0000,
    "SCMP_ACT_ALLOW": 0x7FFF0000,
}
# Those that carry a number, and the largest: MAX_ERRNO of the kernel, SECCOMP_RET_DATA.
_LARGEST_DATA = {"SCMP_ACT_ERRNO": 4095, "SCMP_ACT_TRACE": 0xFFFF}
_PERMISSIVE = ("SCMP_ACT_ALLOW", "SCMP_ACT_LOG", "SCMP_ACT_TRACE")

_FLAGS: dict[str, int] = {
    "SECCOMP_FILTER_FLAG_TSYNC": 1 << 0,
    "SECCOMP_FILTER_FLAG_LOG": 1 << 1,
    "SECCOMP_FILTER_FLAG_SPEC_ALLOW": 1 << 2,
    # How the caller waits for a listener's answer: without a listener the kernel refuses it, and it means nothing.
    "SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV": 0,
}

# <seccomp.h>
_OPERATORS = {
    "SCMP_CMP_NE": 1,
    "SCMP_CMP_LT": 2,
    "SCMP_CMP_LE": 3,
    "SCMP_CMP_EQ": 4,
    "SCMP_CMP_GE": 5,
    "SCMP_CMP_GT": 6,
    "SCMP_CMP_MASKED_EQ": 7,
}
_FLTATR_CTL_OPTIMIZE = 8
_BINARY_TREE = 2
_ARCH_X86_64 = 0xC000003E
_ARCH_X32 = 0x4000003E
_X32_BIT = 0x40000000
_UNKNOWN_SYSCALL = -1

_INSTRUCTION = struct.Struct("=HBBI")  # struct sock_filter
_MAX_INSTRUCTIONS = 4096  # BPF_MAXINSNS
_MAX_ARGUMENTS = 6
_UINT64_END = 1 << 64


def compile_program(seccomp: Seccomp) -> tuple[bytes, int]:
    """Compile; see `pycontainer.runtime.seccomp.compile_filter`.

    Returns:
        The program and the flags of ``seccomp(2)``.
    """
    if seccomp.listener_path:
        raise Unsupported(
            f"cannot hand system calls to the listener at {seccomp.listener_path}: "
            "pycontainer has no seccomp notification; remove listenerPath and SCMP_ACT_NOTIFY from the profile"
        )
    flags = _flags(seccomp.flags)
    default = _action(seccomp.default_action, seccomp.default_errno_ret, "the default action")
    library = _library()
    with _context(library, default) as context:
        # Before 2.5 there is no tree: the filter is as right, only slower.
        library.seccomp_attr_set(context, _FLTATR_CTL_OPTIMIZE, _BINARY_TREE)
        architectures = _add_architectures(library, context, seccomp.architectures)
        for rule in seccomp.syscalls:
            _add_rule(library, context, rule, default)
        program = _enosys_stub(library, seccomp, default, architectures) + _export(library, context)
    count = len(program) // _INSTRUCTION.size
    if count > _MAX_INSTRUCTIONS:
        raise Unsupported(
            f"the seccomp profile compiles to {count} instructions, the kernel takes {_MAX_INSTRUCTIONS}: "
            "use fewer conditions on arguments or fewer architectures"
        )
    return program, flags


@functools.cache
def _library() -> ctypes.CDLL:
    """Open libseccomp and declare what is used of it (``seccomp_init(3)`` and its neighbours)."""
    try:
        library = ctypes.CDLL(_LIBRARY, use_errno=False)
    except OSError as error:
        raise Unsupported(
            f"cannot compile a seccomp filter: {_LIBRARY} cannot be opened ({error}); "
            "install libseccomp2 (Debian, Ubuntu) or libseccomp (Fedora, Alpine, Arch)"
        ) from error
    context, u32 = ctypes.c_void_p, ctypes.c_uint32
    signatures: dict[str, tuple[Any, ...]] = {  # name: (result, *arguments)
        "seccomp_init": (context, u32),
        "seccomp_release": (None, context),
        "seccomp_arch_native": (u32,),
        "seccomp_arch_resolve_name": (u32, ctypes.c_char_p),
        "seccomp_arch_add": (ctypes.c_int, context, u32),
        "seccomp_attr_set": (ctypes.c_int, context, ctypes.c_int, u32),
        "seccomp_syscall_resolve_name": (ctypes.c_int, ctypes.c_char_p),
        "seccomp_syscall_resolve_name_arch": (ctypes.c_int, u32, ctypes.c_char_p),
        "seccomp_rule_add_array": (ctypes.c_int, context, u32, ctypes.c_int, ctypes.c_uint, ctypes.POINTER(_Compare)),
        "seccomp_export_bpf": (ctypes.c_int, context, ctypes.c_int),
    }
    for name, (result, *arguments) in signatures.items():
        function = getattr(library, name)
        function.restype, function.argtypes = result, arguments
    return library


class _Compare(ctypes.Structure):
    """``struct scmp_arg_cmp``."""

    _fields_ = (
        ("arg", ctypes.c_uint),
        ("op", ctypes.c_int),
        ("datum_a", ctypes.c_uint64),
        ("datum_b", ctypes.c_uint64),
    )


@contextlib.contextmanager
def _context(library: ctypes.CDLL, default: int) -> Iterator[int]:
    """Give a filter under construction."""
    context = library.seccomp_init(default)
    if not context:
        raise Unsupported(
            f"libseccomp cannot make a filter with the default action {default:#x}: "
            "it, or this kernel, is too old for that action"
        )
    try:
        yield context
    finally:
        library.seccomp_release(context)


def _action(name: str, errno_ret: int | None, what: str) -> int:
    """Return the kernel's number of an action."""
    if name == "SCMP_ACT_NOTIFY":
        raise Unsupported(f"{what} is SCMP_ACT_NOTIFY: pycontainer has no seccomp notification; use another action")
    if name not in _ACTIONS:
        raise ValueError(f"{what} is {name!r}: use one of {', '.join(_ACTIONS)}")
    if name in _LARGEST_DATA:
        data = errno.EPERM if errno_ret is None else errno_ret
        if not 0 <= data <= _LARGEST_DATA[name]:
            raise ValueError(f"{what}, {name}, cannot return {data}: the number is in 0..{_LARGEST_DATA[name]}")
        return _ACTIONS[name] | data
    if errno_ret is not None:
        raise ValueError(
            f"{what}, {name}, cannot return an error number ({errno_ret}): only {' and '.join(_LARGEST_DATA)} can"
        )
    return _ACTIONS[name]


def _flags(names: Iterable[str]) -> int:
    """Return the bits of the flags of ``seccomp(2)``."""
    bits = 0
    for name in names:
        if name not in _FLAGS:
            raise ValueError(f"{name!r} is not a flag of a seccomp filter: use {', '.join(_FLAGS)}")
        bits |= _FLAGS[name]
    return bits


def _add_architectures(library: ctypes.CDLL, context: int, names: Iterable[str]) -> tuple[int, ...]:
    """Add architectures to the filter; return the tokens of all it has, the native one among them."""
    tokens = [library.seccomp_arch_native()]
    for name in names:
        token = library.seccomp_arch_resolve_name(name.removeprefix("SCMP_ARCH_").lower().encode())
        if not token:
            raise Unsupported(
                f"this libseccomp does not know the architecture {name!r}: remove it or upgrade libseccomp"
            )
        code = -library.seccomp_arch_add(context, token)
        if code and code != errno.EEXIST:
            raise Unsupported(
                f"libseccomp cannot filter {name} here: {os.strerror(code)} "
                "(all architectures of a filter have the byte order of the host)"
            )
        if token not in tokens:
            tokens.append(token)
    return tuple(tokens)


def _add_rule(library: ctypes.CDLL, context: int, rule: SyscallRule, default: int) -> None:
    """Add a rule for all of its system calls."""
    what = f"the action of the rule for {', '.join(rule.names[:3])}{', …' if len(rule.names) > 3 else ''}"  # noqa: PLR2004
    action = _action(rule.action, rule.errno_ret, what)
    if action == default:
        return
    comparisons = [_comparison(arg) for arg in rule.args]
    # libseccomp takes one comparison per argument of a call. The specification's reading of more, settled by runc, is
    # that then any one of the comparisons is enough.
    several = len({arg.index for arg in rule.args}) < len(rule.args)
    for alternative in [[one] for one in comparisons] if several else [comparisons]:
        array = (_Compare * len(alternative))(*alternative)
        for name in rule.names:
            number = library.seccomp_syscall_resolve_name(name.encode())
            if number == _UNKNOWN_SYSCALL:
                continue
            code = -library.seccomp_rule_add_array(context, action, number, len(alternative), array)
            if code:
                raise ValueError(f"libseccomp refuses a rule for {name} ({rule.action}): {os.strerror(code)}")


def _comparison(arg: SyscallArg) -> _Compare:
    if arg.op not in _OPERATORS:
        raise ValueError(f"{arg.op!r} does not compare: use one of {', '.join(_OPERATORS)}")
    if not 0 <= arg.index < _MAX_ARGUMENTS:
        raise ValueError(f"a system call has no argument {arg.index}: the index is in 0..{_MAX_ARGUMENTS - 1}")
    second = arg.value_two
    if not (0 <= arg.value < _UINT64_END and 0 <= second < _UINT64_END):
        raise ValueError(f"argument {arg.index} is compared with {arg.value}, {second}: values have 64 bits, no sign")
    return _Compare(arg.index, _OPERATORS[arg.op], arg.value, second)


def _export(library: ctypes.CDLL, context: int) -> bytes:
    """Return the program of a finished filter."""
    fd = os.memfd_create("seccomp")
    try:
        code = -library.seccomp_export_bpf(context, fd)
        if code:
            raise Unsupported(f"libseccomp cannot generate the filter: {os.strerror(code)}")
        size = os.fstat(fd).st_size
        return os.pread(fd, size, 0)
    finally:
        os.close(fd)


# ── ENOSYS for the calls of newer kernels ─────────────────────────────────────────────────────────────────────────

_LOAD = 0x20  # BPF_LD | BPF_W | BPF_ABS
_JUMP_EQUAL = 0x15  # BPF_JMP | BPF_JEQ | BPF_K
_JUMP_GREATER = 0x25
_JUMP_NOT_LESS = 0x35
_RETURN = 0x06
_AT_NUMBER = 0  # offsetof(struct seccomp_data, nr)
_AT_ARCH = 4


def _enosys_stub(library: ctypes.CDLL, seccomp: Seccomp, default: int, architectures: tuple[int, ...]) -> bytes:
    """Return instructions, to go before the filter, that answer calls newer than the profile with ``ENOSYS``.

    Numbers of system calls only grow. One above all that the profile names did not exist for its author: to deny it
    with ``EPERM`` would break programs that try the new call first, with no gain, since nothing is let through.
    """
    enosys = _ACTIONS["SCMP_ACT_ERRNO"] | errno.ENOSYS
    if seccomp.default_action in _PERMISSIVE or default == enosys:
        return b""
    names = {name.encode() for rule in seccomp.syscalls for name in rule.names}
    newest = {
        token: max((library.seccomp_syscall_resolve_name_arch(token, name) for name in names), default=-1)
        for token in architectures
    }
    # Labels are resolved at the end: "end" is the filter, "enosys" the last instruction before it.
    code: list[tuple[int, str, str, int]] = [(_LOAD, "", "", _AT_ARCH)]
    labels: dict[str, int] = {}
    for token, last in newest.items():
        if token == _ARCH_X32 or last < 0:
            continue  # x32 is x86_64 with a bit in the number: both are under x86_64
        code += [(_JUMP_EQUAL, "", f"after {token}", token), (_LOAD, "", "", _AT_NUMBER)]
        if token == _ARCH_X86_64:
            code.append((_JUMP_NOT_LESS, "x32", "", _X32_BIT))
        code.append((_JUMP_GREATER, "enosys", "end", last))
        if token == _ARCH_X86_64:
            labels["x32"] = len(code)
            last_x32 = newest.get(_ARCH_X32, -1)
            # Without rules for x32, the filter decides (it kills).
            code.append((_JUMP_GREATER, "enosys" if last_x32 >= 0 else "end", "end", max(last_x32, 0)))
        labels[f"after {token}"] = len(code)
    # Calls of an architecture without a bound fall out of the last comparison, over the return.
    code.append((_JUMP_EQUAL, "end", "end", 0))
    labels["enosys"] = len(code)
    code.append((_RETURN, "", "", enosys))
    labels["end"] = len(code)

    def offset(label: str, at: int) -> int:
        return labels[label] - at - 1 if label else 0

    return b"".join(
        _INSTRUCTION.pack(op, offset(yes, at), offset(no, at), k) for at, (op, yes, no, k) in enumerate(code)
    )


@functools.cache
def library_path() -> str | None:
    """Return the file that the libseccomp of this process was loaded from; None when the kernel does not tell."""
    _library()
    with Path("/proc/self/maps").open() as maps:
        for line in maps:
            path = line.split(maxsplit=5)[-1].rstrip("\n")
            if os.path.basename(path).startswith("libseccomp.so."):  # noqa: PTH119 - thousands of lines
                return path
    return None
