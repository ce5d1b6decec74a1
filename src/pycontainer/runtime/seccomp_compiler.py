"""From the OCI ``seccomp`` object to classic BPF: libseccomp decides, `seccomp_trees` writes the program.

Imported when something must be compiled, not before: a start that finds its filter needs neither `ctypes` nor
libseccomp. That is called through `ctypes` because cffi's ABI mode would first load a C parser (30 ms, against 2).
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import functools
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pycontainer.errors import Unsupported
from pycontainer.runtime.seccomp_check import Call, Comparison, check
from pycontainer.runtime.seccomp_trees import Policy

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
    "SCMP_ACT_NOTIFY": 0x7FC00000,
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
_ARCH_64BIT = 0x80000000
_ARCH_N32 = 0x20000000  # of MIPS: words of 32 bits on 64
_X32_BIT = 0x40000000
_LAST_NUMBER = 0xFFFFFFFF
# x32 is x86_64 with a bit in the number: these two share what the kernel calls an architecture.
_NUMBERS = {_ARCH_X86_64: (0, _X32_BIT - 1), _ARCH_X32: (_X32_BIT, _LAST_NUMBER)}
_UNKNOWN_SYSCALL = -1

_INSTRUCTION_SIZE = 8  # sizeof(struct sock_filter)
_MAX_INSTRUCTIONS = 4096  # BPF_MAXINSNS
_MAX_ARGUMENTS = 6
_NOTIFY = "SCMP_ACT_NOTIFY"
_TSYNC, _NEW_LISTENER, _TSYNC_ESRCH = 1 << 0, 1 << 3, 1 << 4  # SECCOMP_FILTER_FLAG_*
_DEFAULT = "the default action"
_UINT64_END = 1 << 64


def compile_program(seccomp: Seccomp) -> tuple[bytes, int]:
    """Compile; see `pycontainer.runtime.seccomp.compile_filter`.

    Returns:
        The program and the flags of ``seccomp(2)``.
    """
    flags = _flags(seccomp.flags)
    if _has_listener(seccomp):
        flags |= _NEW_LISTENER | (_TSYNC_ESRCH if flags & _TSYNC else 0)
    default = _action(seccomp.default_action, seccomp.default_errno_ret, _DEFAULT)
    library = _library()
    policy = _policy(library, seccomp, default)
    program = policy.program()
    count = len(program) // _INSTRUCTION_SIZE
    if count > _MAX_INSTRUCTIONS:
        raise Unsupported(
            f"the seccomp profile compiles to {count} instructions, the kernel takes {_MAX_INSTRUCTIONS}: "
            "use fewer conditions on arguments or fewer architectures"
        )
    _check(library, seccomp, program, default)
    return program, flags


def _check(library: ctypes.CDLL, seccomp: Seccomp, program: bytes, default: int) -> None:
    """Check the calls with several conditions, where one action is all there is to decide between."""
    by_name: dict[str, list[tuple[int, list[Comparison]]]] = {}
    for action, _, array, name, _ in _calls(library, seccomp.syscalls, default):
        conditions = [Comparison(one.arg, one.op, one.datum_a, one.datum_b) for one in array]
        by_name.setdefault(name, []).append((action, conditions))
    for token in _architectures(library, seccomp.architectures):
        bit = _X32_BIT if token == _ARCH_X32 else 0
        for name, rules in by_name.items():
            actions = {action for action, _ in rules}
            number = library.seccomp_syscall_resolve_name_arch(token, name.encode())
            if len(rules) < 2 or len(actions) > 1 or number < 0:  # noqa: PLR2004 - one rule is not merged with others
                continue
            check(
                program,
                Call(
                    name=name,
                    arch=_ARCH_X86_64 if bit else token,
                    number=number | bit,
                    bits=64 if token & _ARCH_64BIT and not token & _ARCH_N32 else 32,
                    rules=[conditions for _, conditions in rules],
                    action=actions.pop(),
                ),
                default,
            )


def _policy(library: ctypes.CDLL, seccomp: Seccomp, default: int) -> Policy:
    """Return what the profile decides.

    libseccomp is asked for one architecture at a time, because the time it takes to generate a filter grows with the
    square of its size.
    """
    architectures = _architectures(library, seccomp.architectures)
    calls = list(_calls(library, seccomp.syscalls, default))
    enosys = _ACTIONS["SCMP_ACT_ERRNO"] | errno.ENOSYS
    bounded = seccomp.default_action not in _PERMISSIVE
    policy = Policy()
    for token in architectures:
        with _context(library, default) as context:
            # Before 2.5 there is no tree: the filter is as right, only slower to read.
            library.seccomp_attr_set(context, _FLTATR_CTL_OPTIMIZE, _BINARY_TREE)
            _filter_only(library, context, token)
            for call in calls:
                _add_rule(library, context, call)
            decided = policy.read(_export(library, context))
        # Where only one of x86_64 and x32 is filtered, its filter kills the calls of the other.
        first, last = _NUMBERS.get(token, (0, _LAST_NUMBER))
        for arch, ranges in decided.items():
            policy.replace(arch, ranges, first, last)
            newest = _newest(library, seccomp, token) if bounded and arch is not None else _UNKNOWN_SYSCALL
            if newest >= 0:
                policy.replace(arch, policy.answer(enosys), newest + 1, last)
    return policy


def _newest(library: ctypes.CDLL, seccomp: Seccomp, token: int) -> int:
    """Return the largest number that an architecture has for the names of a profile; a negative one when it has none.

    Numbers of system calls only grow. One above all that the profile names did not exist for its author: to deny it
    with ``EPERM`` would break programs that try the new call first, with no gain, since nothing is let through. Such
    a call gets ``ENOSYS``, unless the default lets it through.
    """
    names = {name.encode() for rule in seccomp.syscalls for name in rule.names}
    numbers = (library.seccomp_syscall_resolve_name_arch(token, name) for name in names)
    return max(numbers, default=_UNKNOWN_SYSCALL)


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
        "seccomp_arch_remove": (ctypes.c_int, context, u32),
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
    if name == _NOTIFY and what == _DEFAULT:
        raise Unsupported(f"{what} is {_NOTIFY}: the start itself would wait for the listener; use another action")
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


def _has_listener(seccomp: Seccomp) -> bool:
    """Return whether some calls are answered by a listener."""
    names = [name for rule in seccomp.syscalls if rule.action == _NOTIFY for name in rule.names]
    if names and not seccomp.listener_path:
        raise Unsupported(f"{', '.join(names[:3])} are to be answered by a listener ({_NOTIFY}), and none is named")
    if "sendmsg" in names:
        raise Unsupported(f"sendmsg cannot be {_NOTIFY}: the start hands the listener over by it")
    return bool(names)


def _flags(names: Iterable[str]) -> int:
    """Return the bits of the flags of ``seccomp(2)``."""
    bits = 0
    for name in names:
        if name not in _FLAGS:
            raise ValueError(f"{name!r} is not a flag of a seccomp filter: use {', '.join(_FLAGS)}")
        bits |= _FLAGS[name]
    return bits


def _architectures(library: ctypes.CDLL, names: Iterable[str]) -> tuple[int, ...]:
    """Return libseccomp's tokens of the architectures to filter, the native one first, each once."""
    tokens = [library.seccomp_arch_native()]
    for name in names:
        token = library.seccomp_arch_resolve_name(name.removeprefix("SCMP_ARCH_").lower().encode())
        if not token:
            raise Unsupported(
                f"this libseccomp does not know the architecture {name!r}: remove it or upgrade libseccomp"
            )
        tokens.append(token)
    return tuple(dict.fromkeys(tokens))


def _filter_only(library: ctypes.CDLL, context: int, token: int) -> None:
    """Let a new filter, which is one of the native architecture, be one of this architecture."""
    native = library.seccomp_arch_native()
    if token == native:
        return
    code = -library.seccomp_arch_add(context, token) or -library.seccomp_arch_remove(context, native)
    if code:
        raise Unsupported(
            f"libseccomp cannot filter the architecture {token:#x} here: {os.strerror(code)} "
            "(all architectures of a filter have the byte order of the host)"
        )


# Action, number, comparisons, and, for errors, the names of the call and of the action.
_Call = tuple[int, int, "ctypes.Array[_Compare]", str, str]


def _calls(library: ctypes.CDLL, rules: Iterable[SyscallRule], default: int) -> Iterator[_Call]:
    """Give the rules for each single system call, in order, without those that say what the default says."""
    for rule in rules:
        some = f"{', '.join(rule.names[:3])}{', …' if len(rule.names) > 3 else ''}"  # noqa: PLR2004
        action = _action(rule.action, rule.errno_ret, f"the action of the rule for {some}")
        if action == default:
            continue
        comparisons = [_comparison(arg) for arg in rule.args]
        numbers = [(library.seccomp_syscall_resolve_name(name.encode()), name) for name in rule.names]
        # libseccomp takes one comparison per argument of a call. The specification's reading of more, settled by runc,
        # is that then any one of the comparisons is enough.
        several = len({arg.index for arg in rule.args}) < len(rule.args)
        for alternative in [[one] for one in comparisons] if several else [comparisons]:
            array = (_Compare * len(alternative))(*alternative)
            for number, name in numbers:
                if number != _UNKNOWN_SYSCALL:
                    yield action, number, array, name, rule.action


def _add_rule(library: ctypes.CDLL, context: int, call: _Call) -> None:
    """Add a rule to the filter."""
    action, number, array, name, action_name = call
    code = -library.seccomp_rule_add_array(context, action, number, len(array), array)
    if code:
        raise ValueError(f"libseccomp refuses a rule for {name} ({action_name}): {os.strerror(code)}")


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
