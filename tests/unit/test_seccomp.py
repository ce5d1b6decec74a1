"""System call filters: our default profile against Docker's, compiled programs against a model, the cache."""

from __future__ import annotations

import errno
import functools
import itertools
import json
import os
import struct
import subprocess
import sys
import time
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any

import attrs
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pycontainer.errors import NotFound, StoreError, Unsupported
from pycontainer.oci.runtime import Seccomp, SyscallArg, SyscallRule
from pycontainer.runtime import seccomp, seccomp_compiler, seccomp_profile, seccomp_trees
from pycontainer.runtime.capabilities import DEFAULT, NAMES
from pycontainer.runtime.seccomp import Filter, FilterCache, compile_filter, default_profile, load_profile

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

DOCKER = Path(__file__).parents[2].parent / "shared" / "spec" / "seccomp" / "docker-default.json"

X86_64, X86, X32 = 0xC000003E, 0x40000003, 0x4000003E
X32_BIT = 0x40000000
ALLOW, KILL = 0x7FFF0000, 0
EPERM, ENOSYS = 0x50000 | errno.EPERM, 0x50000 | errno.ENOSYS
PLAIN = frozenset(DEFAULT)

needs_x86_64 = pytest.mark.skipif(os.uname().machine != "x86_64", reason="expects the system calls of x86_64")


# ── an interpreter of classic BPF, as far as filters use it ───────────────────────────────────────────────────────


@functools.lru_cache(maxsize=8)
def instructions(program: bytes) -> list[tuple[int, int, int, int]]:
    return list(struct.iter_unpack("=HBBI", program))


def run(
    program: bytes, number: int, arch: int = X86_64, args: tuple[int, ...] = (), loads: list[int] | None = None
) -> int:
    """Return what the kernel would do with a call, and note which offsets of its data are looked at."""
    data = struct.pack("=IIQ6Q", number, arch, 0, *args, *[0] * (6 - len(args)))
    code = instructions(program)
    accumulator = at = 0
    while True:
        op, yes, no, k = code[at]
        at += 1
        if op == 0x20:  # ld [k]
            (accumulator,) = struct.unpack_from("=I", data, k)
            if loads is not None:
                loads.append(k)
        elif op == 0x54:  # and #k
            accumulator &= k
        elif op == 0x05:  # ja
            at += k
        elif op == 0x06:  # ret
            return int(k)
        else:
            taken = {
                0x15: accumulator == k,
                0x25: accumulator > k,
                0x35: accumulator >= k,
                0x45: bool(accumulator & k),
            }[op]
            at += yes if taken else no


# What libseccomp names by a number of its own, because 32-bit x86 has it both under socketcall or ipc and directly.
MULTIPLEXED = {
    "recvmmsg": 337, "sendmmsg": 345, "socket": 359, "socketpair": 360, "bind": 361, "connect": 362, "listen": 363,
    "accept4": 364, "getsockopt": 365, "setsockopt": 366, "getsockname": 367, "getpeername": 368, "sendto": 369,
    "sendmsg": 370, "recvfrom": 371, "recvmsg": 372, "shutdown": 373, "semget": 393, "semctl": 394, "shmget": 395,
    "shmctl": 396, "shmat": 397, "shmdt": 398, "msgget": 399, "msgsnd": 400, "msgrcv": 401, "msgctl": 402,
}  # fmt: skip


def number_of(name: str, arch: int = X86_64) -> int:
    if arch == X86 and name in MULTIPLEXED:
        return MULTIPLEXED[name]
    return int(seccomp_compiler._library().seccomp_syscall_resolve_name_arch(arch, name.encode()))


COMPARE: dict[str, Callable[[int, int, int], bool]] = {
    "SCMP_CMP_NE": lambda have, value, _: have != value,
    "SCMP_CMP_LT": lambda have, value, _: have < value,
    "SCMP_CMP_LE": lambda have, value, _: have <= value,
    "SCMP_CMP_EQ": lambda have, value, _: have == value,
    "SCMP_CMP_GE": lambda have, value, _: have >= value,
    "SCMP_CMP_GT": lambda have, value, _: have > value,
    "SCMP_CMP_MASKED_EQ": lambda have, value, second: have & value == second,
}


def matches(rule: SyscallRule, args: tuple[int, ...]) -> bool:
    results = [COMPARE[arg.op](args[arg.index], arg.value, arg.value_two) for arg in rule.args]
    several = len({arg.index for arg in rule.args}) < len(rule.args)
    return any(results) if several else all(results)


def action_of(name: str, errno_ret: int | None) -> int:
    carries = name in seccomp_compiler._LARGEST_DATA
    return seccomp_compiler._ACTIONS[name] | ((errno.EPERM if errno_ret is None else errno_ret) if carries else 0)


class Model:
    """What the specification says about a profile, worked out the slow way."""

    def __init__(self, profile: Seccomp, arch: int) -> None:
        self.default = action_of(profile.default_action, profile.default_errno_ret)
        self.rules: dict[int, list[SyscallRule]] = {}
        for rule in profile.syscalls:
            for name in rule.names:
                if (number := number_of(name, arch)) >= 0:
                    self.rules.setdefault(number, []).append(rule)
        permissive = profile.default_action in ("SCMP_ACT_ALLOW", "SCMP_ACT_LOG", "SCMP_ACT_TRACE")
        self.newest = None if permissive or not self.rules else max(self.rules)

    def __call__(self, number: int, args: tuple[int, ...] = (0,) * 6) -> int:
        if self.newest is not None and number > self.newest:
            return ENOSYS
        for rule in self.rules.get(number, ()):
            if matches(rule, args):
                return action_of(rule.action, rule.errno_ret)
        return self.default


# ── the default profile ───────────────────────────────────────────────────────────────────────────────────────────


def effective(profile: Seccomp) -> dict[str, set[Any]]:
    """Return what a profile says, however its rules are grouped and ordered."""
    calls: dict[str, set[Any]] = {}
    for rule in profile.syscalls:
        for name in rule.names:
            calls.setdefault(name, set()).add((rule.action, rule.errno_ret, rule.args))
    return calls


CAPABILITY_SETS = [
    frozenset[str](),
    PLAIN,
    frozenset(NAMES),
    frozenset(NAMES) - {"CAP_SYS_ADMIN"},
    *(PLAIN | {name} for name in sorted(seccomp_profile.RELEVANT_CAPABILITIES)),
]


@pytest.mark.parametrize("kernel", [(4, 7), (4, 8), (6, 1)])
@pytest.mark.parametrize("machine", ["x86_64", "i686", "aarch64", "armv7l", "ppc64le", "s390x", "riscv64", "sparc64"])
def test_the_default_profile_is_dockers(machine: str, kernel: tuple[int, int]) -> None:
    """There is no deliberate difference: an exception goes here, with its reason."""
    if not DOCKER.exists():
        pytest.skip(f"the data of Docker's profile is not at {DOCKER}")
    for capabilities in CAPABILITY_SETS:
        ours = default_profile(capabilities, machine=machine, kernel=kernel)
        theirs = load_profile(DOCKER, capabilities, machine=machine, kernel=kernel)
        assert effective(ours) == effective(theirs)
        assert attrs.evolve(ours, syscalls=()) == attrs.evolve(theirs, syscalls=())


def test_no_call_is_named_twice_in_a_group() -> None:
    for rule in seccomp_profile.RULES:
        assert len(set(rule.names)) == len(rule.names)


@pytest.fixture(scope="module")
def default() -> tuple[Seccomp, bytes]:
    profile = default_profile(PLAIN)
    return profile, compile_filter(profile).program


@needs_x86_64
@pytest.mark.parametrize("arch", [X86_64, X86, X32])
def test_the_default_filter_does_what_the_profile_says_for_every_number(
    default: tuple[Seccomp, bytes], arch: int
) -> None:
    profile, program = default
    model = Model(profile, arch)
    token, base = (X86_64, X32_BIT) if arch == X32 else (arch, 0)
    interesting = [0, 8, 16, 38, 39, 40, 41, 0x20000, 0x10000000, 0x7E020000, 0xFFFFFFFF]
    for number in range(base, base + 700):
        for first in interesting if number in model.rules else [0]:
            args = (first, 0, 0, 0, 0, 0)
            assert run(program, number, token, args) == model(number, args), (number - base, args)


@needs_x86_64
def test_landmarks_of_the_default_filter(default: tuple[Seccomp, bytes]) -> None:
    _profile, program = default
    assert run(program, number_of("read")) == ALLOW
    assert run(program, number_of("mount")) == EPERM
    assert run(program, number_of("clone3")) == ENOSYS
    assert run(program, number_of("clone"), args=(0x11,)) == ALLOW
    assert run(program, number_of("clone"), args=(0x10000011,)) == EPERM  # CLONE_NEWUSER
    assert run(program, number_of("socket"), args=(2,)) == ALLOW
    assert run(program, number_of("socket"), args=(38,)) == EPERM  # AF_ALG
    assert run(program, number_of("socket"), args=(40,)) == EPERM  # AF_VSOCK
    assert run(program, 5000) == ENOSYS
    assert run(program, 0, arch=0xC00000B7) == KILL  # aarch64, not of this host


@needs_x86_64
def test_capabilities_open_calls() -> None:
    program = compile_filter(default_profile(PLAIN | {"CAP_SYS_ADMIN"})).program
    assert run(program, number_of("mount")) == ALLOW
    assert run(program, number_of("clone3")) == ALLOW
    assert run(program, number_of("clone"), args=(0x10000011,)) == ALLOW


# ── compiling ─────────────────────────────────────────────────────────────────────────────────────────────────────

# Calls that the three tables of x86 have under the same name, none of them multiplexed, spread over the numbers.
CALLS = ("read", "getpid", "kill", "chdir", "sysinfo", "openat", "prlimit64", "getrandom", "statx", "openat2")
ACTIONS = st.sampled_from(
    [
        ("SCMP_ACT_ALLOW", None),
        ("SCMP_ACT_ERRNO", None),
        ("SCMP_ACT_ERRNO", 13),
        ("SCMP_ACT_KILL_PROCESS", None),
        ("SCMP_ACT_LOG", None),
        ("SCMP_ACT_TRAP", None),
        ("SCMP_ACT_TRACE", 7),
    ]
)
VALUES = st.sampled_from([0, 1, 2, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, 0x1_0000_0000, 0xFFFF_FFFF_FFFF_FFFF])


@st.composite
def arguments(draw: st.DrawFn) -> SyscallArg:
    op = draw(st.sampled_from(sorted(COMPARE)))
    value = draw(VALUES)
    second = draw(VALUES) & value if op == "SCMP_CMP_MASKED_EQ" else 0
    return SyscallArg(index=draw(st.integers(0, 5)), value=value, value_two=second, op=op)  # type: ignore[arg-type]


@st.composite
def profiles(draw: st.DrawFn) -> Seccomp:
    rules = []
    for name in draw(st.lists(st.sampled_from(CALLS), min_size=1, unique=True)):
        action, errno_ret = draw(ACTIONS)
        args = tuple(draw(st.lists(arguments(), max_size=2)))
        rules.append(SyscallRule(names=(name,), action=action, errno_ret=errno_ret, args=args))  # type: ignore[arg-type]
    action, errno_ret = draw(ACTIONS)
    return Seccomp(default_action=action, default_errno_ret=errno_ret, syscalls=tuple(rules))  # type: ignore[arg-type]


@needs_x86_64
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(profiles(), st.lists(st.tuples(*[VALUES] * 6), max_size=5))
def test_any_filter_does_what_its_profile_says(profile: Seccomp, samples: list[tuple[int, ...]]) -> None:
    try:
        program = compile_filter(profile).program
    except Unsupported:  # libseccomp was wrong about it, which the next test shows, and we noticed
        return
    model = Model(profile, X86_64)
    for number, args in itertools.product([*map(number_of, CALLS), 1, 300, 600], [(0,) * 6, *samples]):
        assert run(program, number, X86_64, args) == model(number, args)


@needs_x86_64
def test_what_libseccomp_merges_wrongly_is_refused() -> None:
    """With libseccomp 2.5.4 these two let all through; a version that does it right may compile them."""
    args = (
        SyscallArg(index=2, value=1 << 32, op="SCMP_CMP_GE"),
        SyscallArg(index=2, value=0, op="SCMP_CMP_LE"),
    )
    rule = SyscallRule(names=("read",), action="SCMP_ACT_ALLOW", args=args)
    profile = Seccomp(default_action="SCMP_ACT_ERRNO", syscalls=(rule,))
    try:
        program = compile_filter(profile).program
    except Unsupported:
        return
    assert run(program, number_of("read"), args=(0, 0, 1)) == EPERM


@needs_x86_64
def test_comparisons_of_one_argument_are_alternatives() -> None:
    args = tuple(SyscallArg(index=0, value=value, op="SCMP_CMP_EQ") for value in (3, 5))
    rule = SyscallRule(names=("close",), action="SCMP_ACT_ALLOW", args=args)
    program = compile_filter(Seccomp(default_action="SCMP_ACT_ERRNO", syscalls=(rule,))).program
    assert [run(program, number_of("close"), args=(fd,)) for fd in (3, 4, 5)] == [ALLOW, EPERM, ALLOW]


@needs_x86_64
def test_unknown_names_and_repetitions_of_the_default_are_passed_over() -> None:
    rules = (
        SyscallRule(names=("no_such_call", "read"), action="SCMP_ACT_ALLOW"),
        SyscallRule(names=("write",), action="SCMP_ACT_ERRNO", errno_ret=errno.EPERM),
    )
    program = compile_filter(Seccomp(default_action="SCMP_ACT_ERRNO", syscalls=rules)).program
    assert run(program, number_of("read")) == ALLOW
    assert run(program, number_of("write")) == EPERM


@needs_x86_64
@pytest.mark.parametrize(
    ("action", "errno_ret", "expected"),
    [
        ("SCMP_ACT_ERRNO", None, ENOSYS),
        ("SCMP_ACT_KILL", None, ENOSYS),
        ("SCMP_ACT_ERRNO", errno.ENOSYS, ENOSYS),
        ("SCMP_ACT_ALLOW", None, ALLOW),
        ("SCMP_ACT_LOG", None, 0x7FFC0000),
    ],
)
def test_calls_newer_than_the_profile_get_enosys_unless_the_default_lets_them_through(
    action: Any, errno_ret: int | None, expected: int
) -> None:
    rule = SyscallRule(names=("openat2",), action="SCMP_ACT_TRAP")
    profile = Seccomp(default_action=action, default_errno_ret=errno_ret, syscalls=(rule,))
    assert run(compile_filter(profile).program, number_of("openat2") + 1) == expected


@needs_x86_64
def test_an_architecture_that_is_not_listed_kills() -> None:
    rule = SyscallRule(names=("read",), action="SCMP_ACT_ALLOW")
    program = compile_filter(Seccomp(default_action="SCMP_ACT_ERRNO", syscalls=(rule,))).program
    assert run(program, 3, X86) == KILL
    assert run(program, X32_BIT, X86_64) == KILL


# ── against libseccomp's own program ──────────────────────────────────────────────────────────────────────────────

TOKENS: dict[Any, int] = {  # of libseccomp, all little-endian as x86
    "SCMP_ARCH_X86": X86, "SCMP_ARCH_X32": X32, "SCMP_ARCH_X86_64": X86_64, "SCMP_ARCH_ARM": 0x40000028,
    "SCMP_ARCH_AARCH64": 0xC00000B7, "SCMP_ARCH_PPC64LE": 0xC0000015, "SCMP_ARCH_RISCV64": 0xC00000F3,
    "SCMP_ARCH_MIPSEL": 0x40000008, "SCMP_ARCH_MIPSEL64": 0xC0000008, "SCMP_ARCH_MIPSEL64N32": 0xE0000008,
}  # fmt: skip
LAST = 0xFFFFFFFF


class Oracle:
    """What libseccomp's generator, asked for all architectures at once, and the rule about newer calls decide."""

    def __init__(self, profile: Seccomp) -> None:
        library = seccomp_compiler._library()
        default = action_of(profile.default_action, profile.default_errno_ret)
        self.tokens = list(dict.fromkeys([X86_64, *(TOKENS[name] for name in profile.architectures)]))
        with seccomp_compiler._context(library, default) as context:
            # Without the tree, 2.5.4 at times takes the architecture for the number, after the first architecture.
            library.seccomp_attr_set(context, seccomp_compiler._FLTATR_CTL_OPTIMIZE, seccomp_compiler._BINARY_TREE)
            for token in self.tokens[1:]:
                assert library.seccomp_arch_add(context, token) == 0
            for call in seccomp_compiler._calls(library, profile.syscalls, default):
                seccomp_compiler._add_rule(library, context, call)
            self.program = seccomp_compiler._export(library, context)
        names = {name for rule in profile.syscalls for name in rule.names}
        self.newest: dict[int, int] = {}
        if profile.default_action not in ("SCMP_ACT_ALLOW", "SCMP_ACT_LOG", "SCMP_ACT_TRACE"):
            for token in self.tokens:
                numbers = [library.seccomp_syscall_resolve_name_arch(token, name.encode()) for name in names]
                self.newest[token] = max(numbers, default=-1)

    def __call__(self, number: int, arch: int, args: tuple[int, ...] = ()) -> int:
        token = X32 if arch == X86_64 and number >= X32_BIT else arch
        if 0 <= self.newest.get(token, -1) < number:
            return ENOSYS
        return run(self.program, number, arch, args)


def boundaries(profile: Seccomp, name: str) -> list[tuple[int, ...]]:
    """Return arguments around all that the rules for a call compare with."""
    values: dict[int, set[int]] = {}
    for rule in profile.syscalls:
        for arg in rule.args if name in rule.names else ():
            for value in (arg.value, arg.value_two):
                near = {value - 1, value, value + 1, value ^ 1 << 32, value ^ 1 << 31, value & LAST, value ^ 1}
                values.setdefault(arg.index, {0, (1 << 64) - 1}).update(one & (1 << 64) - 1 for one in near)
    return list(itertools.product(*(sorted(values.get(index, {0})) for index in range(6))))


def numbers_of(profile: Seccomp, token: int) -> dict[int, set[str]]:
    """Return under which numbers an architecture has the calls of a profile: pseudo numbers are given as they are."""
    library = seccomp_compiler._library()
    numbers: dict[int, set[str]] = {}
    for name in {name for rule in profile.syscalls for name in rule.names}:
        numbers.setdefault(library.seccomp_syscall_resolve_name_arch(token, name.encode()), set()).add(name)
        if token == X86 and name in MULTIPLEXED:
            numbers.setdefault(MULTIPLEXED[name], set()).add(name)
            numbers.setdefault(102, set()).add(name)  # socketcall
            numbers.setdefault(117, set()).add(name)  # ipc
    return numbers


def assert_decides_as_libseccomp(profile: Seccomp, numbers: Iterable[int], limit: int = 1000) -> None:
    """Compare for these numbers, with and without the bit of x32, on all architectures and on one not filtered."""
    program = compile_filter(profile).program
    oracle = Oracle(profile)
    for token in [*oracle.tokens, 0xC0000016]:  # s390x
        if token == X32:
            continue  # under X86_64
        for known in (token, X32) if token == X86_64 and X32 in oracle.tokens else (token,):
            for number, names in numbers_of(profile, known).items():
                for args in sorted({args for name in names for args in boundaries(profile, name)})[:limit]:
                    if number >= 0:
                        assert run(program, number, token, args) == oracle(number, token, args), (number, token, args)
        for number in numbers:
            for args in [(), ((1 << 64) - 1,) * 6]:
                assert run(program, number, token, args) == oracle(number, token, args), (number, token, args)


EDGES = [
    *(base + offset for base in (0x0F0000, 1 << 29, X32_BIT, 1 << 31, X32_BIT | 1 << 31) for offset in range(-2, 8)),
    *(base + offset for base in (4000, 5000, 6000) for offset in range(0, 400, 7)),  # where mips counts from
    *range(LAST - 5, LAST + 1),
]


@needs_x86_64
@pytest.mark.parametrize("capabilities", CAPABILITY_SETS[:4], ids=["none", "default", "all", "most"])
def test_the_default_filter_decides_as_libseccomps_own_program(capabilities: frozenset[str]) -> None:
    numbers = [*range(1024), *range(X32_BIT, X32_BIT + 1024), *EDGES]
    assert_decides_as_libseccomp(default_profile(capabilities), numbers)


@needs_x86_64
def test_the_default_profile_for_every_architecture_decides_as_libseccomps_own_program() -> None:
    profile = attrs.evolve(default_profile(PLAIN), architectures=tuple(TOKENS))
    assert_decides_as_libseccomp(profile, [*range(1024), *EDGES])


NAMED = sorted({name for rule in default_profile(frozenset(NAMES)).syscalls for name in rule.names})
PROFILE_ACTIONS = st.one_of(ACTIONS, st.tuples(st.just("SCMP_ACT_ERRNO"), st.integers(1, 4094)))


@st.composite
def any_profiles(draw: st.DrawFn) -> Seccomp:
    """Profiles with several rules for a call, of any calls, also of those behind socketcall and ipc on 32-bit x86."""
    names = st.one_of(st.sampled_from(NAMED), st.sampled_from([*CALLS[:4], "socket", "shmget", "set_tls", "clone3"]))
    rules = []
    for _ in range(draw(st.integers(1, 6))):
        action, errno_ret = draw(PROFILE_ACTIONS)
        args = tuple(draw(st.lists(arguments(), max_size=3)))
        many = tuple(draw(st.lists(names, min_size=1, max_size=12 if args else 80, unique=True)))
        rules.append(SyscallRule(names=many, action=action, errno_ret=errno_ret, args=args))  # type: ignore[arg-type]
    action, errno_ret = draw(PROFILE_ACTIONS)
    return Seccomp(
        default_action=action,  # type: ignore[arg-type]
        default_errno_ret=errno_ret,
        architectures=tuple(draw(st.lists(st.sampled_from(sorted(TOKENS)), max_size=4, unique=True))),
        syscalls=tuple(rules),
    )


def refusal(action: Callable[[], object]) -> str:
    try:
        action()
    except (Unsupported, ValueError) as error:
        return str(error)
    return ""


@needs_x86_64
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much])
@given(any_profiles(), st.integers(0, 6))
def test_any_filter_decides_as_libseccomps_own_program(profile: Seccomp, phase: int) -> None:
    refusals = [refusal(lambda: Oracle(profile)), refusal(lambda: compile_filter(profile))]
    if "compiled wrongly" in str(refusals[1]):  # the oracle is at fault, and we do not follow it
        return
    assert refusals[0] == refusals[1]
    if refusals[0]:  # rules that contradict each other
        return
    numbers = [*range(phase, 600, 7), *range(X32_BIT + phase, X32_BIT + 600, 7), *EDGES[phase::3]]
    assert_decides_as_libseccomp(profile, numbers, limit=60)


# ── the layout ────────────────────────────────────────────────────────────────────────────────────────────────────


@needs_x86_64
@pytest.mark.parametrize("capabilities", CAPABILITY_SETS[:4], ids=["none", "default", "all", "most"])
def test_the_default_filter_is_small_and_looks_at_arguments_only_where_they_decide(
    capabilities: frozenset[str],
) -> None:
    """The kernel remembers which calls are always allowed, if the filter reads but their number and architecture."""
    profile = default_profile(capabilities)
    program = compile_filter(profile).program
    assert len(program) // 8 < 256 < len(Oracle(profile).program) // 8
    for token, base in ((X86_64, 0), (X86, 0), (X86_64, X32_BIT)):
        numbers = numbers_of(profile, X32 if base else token)
        for number in range(base, base + 600):
            loads: list[int] = []
            run(program, number, token, (), loads)
            conditional = {rule.args for rule in profile.syscalls if numbers.get(number, set()) & set(rule.names)}
            assert loads[:2] == [4, 0]
            assert not loads[2:] or conditional - {()}


VALUES_32 = (0, 1, 2, 0x0F, 0xF0, 0x7FFFFFFF, 0x80000000, LAST)


@st.composite
def policies(draw: st.DrawFn) -> tuple[seccomp_trees.Policy, dict[int | None, list[tuple[int, int]]]]:
    """Ranges of made-up decisions: enough of them, and of tests, that conditional jumps do not reach."""
    policy = seccomp_trees.Policy()
    decisions = policy._decisions
    known = [decisions.number(seccomp_trees._Answer(value)) for value in draw(st.lists(st.integers(0, 9), min_size=1))]
    random = Random(draw(st.integers(0, LAST)))  # noqa: S311 - too many choices for hypothesis to make one by one
    for _ in range(draw(st.sampled_from([0, 5, 60, 400]))):
        word = (random.choice([16, 20, 32]), random.choice([LAST, 0xFF, 0xF0]))
        operation = random.choice([0x15, 0x25, 0x35, 0x45])
        ways = random.choice(known), random.choice(known[-20:])
        known.append(decisions.number(seccomp_trees._Test(word, operation, random.choice(VALUES_32), *ways)))
    for arch in [*draw(st.lists(st.sampled_from([1, 2, 3]), unique=True)), None]:
        width = draw(st.sampled_from([1, 2, 40]))
        start, ranges = 0, [(0, random.choice(known))]
        for _ in range(draw(st.sampled_from([0, 1, 2, 9, 120, 300]))):
            start += random.randint(1, width)
            decision = random.choice(known if random.random() < 0.5 else known[:2])
            if decision != ranges[-1][1]:
                ranges.append((start, decision))
        policy.replace(arch, ranges)
    return policy, policy.ranges


@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(policies(), st.integers(0, LAST))
def test_a_program_decides_as_its_ranges(
    made: tuple[seccomp_trees.Policy, dict[int | None, list[tuple[int, int]]]], seed: int
) -> None:
    policy, all_ranges = made
    random = Random(seed)  # noqa: S311 - for samples
    program = policy.program()
    assert instructions(program)[-1][0] == 0x06  # the kernel wants a return at the end
    decisions = policy._decisions.known
    for arch, ranges in all_ranges.items():
        for index, (first, decision) in enumerate(ranges):
            last = ranges[index + 1][0] - 1 if index + 1 < len(ranges) else LAST
            args = tuple(random.choice(VALUES_32) | random.choice(VALUES_32) << 32 for _ in range(6))
            data = struct.pack("=IIQ6Q", 0, 0, 0, *args)
            known = decisions[decision]
            while isinstance(known, seccomp_trees._Test):
                value = struct.unpack_from("=I", data, known.word[0])[0] & known.word[1]
                holds = {0x15: value == known.operand, 0x25: value > known.operand, 0x35: value >= known.operand}
                known = decisions[known.yes if holds.get(known.operation, value & known.operand) else known.no]
            for number in {first, last, (first + last) // 2}:
                assert run(program, number, 77 if arch is None else arch, args) == known.value


@pytest.mark.parametrize(
    "code",
    [
        [(0x20, 0, 0, 8), (0x15, 0, 0, 1)],  # the instruction pointer
        [(0x20, 0, 0, 0), (0x45, 0, 0, 1)],  # a bit of the number
        [(0x20, 0, 0, 0), (0x54, 0, 0, 7), (0x15, 0, 0, 1)],
        [(0x20, 0, 0, 4), (0x35, 0, 0, 1)],  # an order of architectures
        [(0x20, 0, 0, 16), (0x04, 0, 0, 1)],  # an addition
        [(0x15, 0, 0, 1)],  # nothing loaded
    ],
)
def test_a_program_that_is_not_understood_is_refused(code: list[tuple[int, int, int, int]]) -> None:
    program = b"".join(struct.pack("=HBBI", *instruction) for instruction in [*code, (0x06, 0, 0, ALLOW)])
    with pytest.raises(Unsupported, match="BPF instruction"):
        seccomp_trees.Policy().read(program)


def test_flags_become_bits() -> None:
    profile = Seccomp(
        default_action="SCMP_ACT_ALLOW",
        flags=("SECCOMP_FILTER_FLAG_TSYNC", "SECCOMP_FILTER_FLAG_LOG", "SECCOMP_FILTER_FLAG_SPEC_ALLOW"),
    )
    assert compile_filter(profile).flags == 0b111


ANY: Any = "SCMP_ACT_WHATEVER"


@pytest.mark.parametrize(
    ("profile", "error", "text"),
    [
        (Seccomp(default_action=ANY), ValueError, "'SCMP_ACT_WHATEVER': use one of SCMP_ACT_KILL"),
        (Seccomp(default_action="SCMP_ACT_NOTIFY"), Unsupported, "wait for the listener"),
        (
            Seccomp(
                default_action="SCMP_ACT_ALLOW", syscalls=(SyscallRule(names=("mkdir",), action="SCMP_ACT_NOTIFY"),)
            ),
            Unsupported,
            "none is named",
        ),
        (
            Seccomp(
                default_action="SCMP_ACT_ALLOW",
                listener_path="/run/l",
                syscalls=(SyscallRule(names=("sendmsg",), action="SCMP_ACT_NOTIFY"),),
            ),
            Unsupported,
            "sendmsg",
        ),
        (Seccomp(default_action="SCMP_ACT_ALLOW", default_errno_ret=1), ValueError, "cannot return an error number"),
        (Seccomp(default_action="SCMP_ACT_ERRNO", default_errno_ret=5000), ValueError, r"0\.\.4095"),
        (Seccomp(default_action="SCMP_ACT_ALLOW", flags=(ANY,)), ValueError, "not a flag"),
        (Seccomp(default_action="SCMP_ACT_ALLOW", architectures=(ANY,)), Unsupported, "does not know"),
    ],
)
def test_what_cannot_be_compiled_says_why(profile: Seccomp, error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        compile_filter(profile)


def test_a_missing_libseccomp_names_the_package() -> None:
    code = (
        "from pycontainer.runtime import seccomp_compiler as c\n"
        "c._LIBRARY = 'libno-such-thing.so.2'\n"
        "from pycontainer.runtime.seccomp import FilterCache\n"
        "FilterCache(None).default_filter(frozenset())\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "pycontainer.errors.Unsupported" in done.stderr
    assert "install libseccomp2" in done.stderr


# ── profiles in Docker's form ─────────────────────────────────────────────────────────────────────────────────────


def conditional(**conditions: Any) -> dict[str, Any]:
    return {
        "defaultAction": "SCMP_ACT_ERRNO",
        "syscalls": [{"names": ["read"], "action": "SCMP_ACT_ALLOW", **conditions}],
    }


@pytest.mark.parametrize(
    ("conditions", "holds"),
    [
        ({}, True),
        ({"includes": {"caps": ["CAP_CHOWN"]}}, True),
        ({"includes": {"caps": ["CAP_CHOWN", "CAP_BPF"]}}, False),
        ({"excludes": {"caps": ["CAP_CHOWN", "CAP_BPF"]}}, False),
        ({"excludes": {"caps": ["CAP_BPF"]}}, True),
        ({"includes": {"arches": ["amd64"]}}, True),
        ({"includes": {"arches": ["arm64"]}}, False),
        ({"excludes": {"arches": ["amd64"]}}, False),
        ({"includes": {"minKernel": "5.10"}}, True),
        ({"includes": {"minKernel": "5.11"}}, False),
        ({"excludes": {"minKernel": "5.11"}}, True),
        ({"excludes": {"minKernel": "4.8"}}, False),
    ],
)
def test_conditions(conditions: dict[str, Any], holds: bool) -> None:
    profile = load_profile(conditional(**conditions), {"CAP_CHOWN"}, machine="x86_64", kernel=(5, 10))
    assert bool(profile.syscalls) is holds


def test_the_map_of_architectures_and_the_old_spelling_of_names() -> None:
    table = [{"architecture": "SCMP_ARCH_X86_64", "subArchitectures": ["SCMP_ARCH_X86"]}]
    document = {
        "defaultAction": "SCMP_ACT_KILL",
        "archMap": table,
        "flags": ["SECCOMP_FILTER_FLAG_LOG"],
        "syscalls": [{"name": "read", "action": "SCMP_ACT_ERRNO", "errnoRet": 5}],
    }
    profile = load_profile(document, (), machine="x86_64")
    assert profile.architectures == ("SCMP_ARCH_X86_64", "SCMP_ARCH_X86")
    assert profile.syscalls == (SyscallRule(names=("read",), action="SCMP_ACT_ERRNO", errno_ret=5),)
    assert profile.flags == ("SECCOMP_FILTER_FLAG_LOG",)
    assert load_profile(document, (), machine="aarch64").architectures == ()


@pytest.mark.parametrize(
    ("document", "text"),
    [
        ({}, "no defaultAction"),
        (conditional(name="write"), "both name and names"),
        (conditional(includes={"caps": ["SYS_ADMIN"]}), "'SYS_ADMIN': write it CAP_SYS_ADMIN"),
        (conditional(includes={"minKernel": "new"}), "not a kernel version"),
        (
            {"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{"names": [], "action": "SCMP_ACT_KILL"}]},
            "names no system",
        ),
        ({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{"names": ["read"]}]}, "no action"),
        ({"defaultAction": "SCMP_ACT_ALLOW", "architectures": ["a"], "archMap": [{}]}, "not both"),
        ({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": ["read"]}, "is not a profile"),
    ],
)
def test_a_wrong_profile_is_refused_with_the_reason(tmp_path: Path, document: dict[str, Any], text: str) -> None:
    path = tmp_path / "profile.json"
    path.write_text(json.dumps(document))
    with pytest.raises(ValueError, match=text) as caught:
        load_profile(path, ())
    assert str(path) in str(caught.value)


def test_a_missing_or_broken_file(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="no such file"):
        load_profile(tmp_path / "nothing.json", ())
    (tmp_path / "broken.json").write_text("{")
    with pytest.raises(ValueError, match="is not JSON"):
        load_profile(tmp_path / "broken.json", ())
    (tmp_path / "list.json").write_text("[]")
    with pytest.raises(ValueError, match="not an object"):
        load_profile(str(tmp_path / "list.json"), ())


# ── the cache ─────────────────────────────────────────────────────────────────────────────────────────────────────

SMALL = Seccomp(
    default_action="SCMP_ACT_ERRNO",
    flags=("SECCOMP_FILTER_FLAG_LOG",),
    syscalls=(SyscallRule(names=("read", "write"), action="SCMP_ACT_ALLOW"),),
)


@pytest.fixture
def compiled(monkeypatch: pytest.MonkeyPatch) -> list[Seccomp]:
    """Give the profiles that were really compiled."""
    calls: list[Seccomp] = []
    real = seccomp_compiler.compile_program

    def counted(profile: Seccomp) -> tuple[bytes, int]:
        calls.append(profile)
        return real(profile)

    monkeypatch.setattr(seccomp_compiler, "compile_program", counted)
    return calls


def test_a_profile_is_compiled_once_for_all_processes(tmp_path: Path, compiled: list[Seccomp]) -> None:
    cache = FilterCache(tmp_path / "cache" / "seccomp")
    first = cache.get(SMALL)
    assert cache.get(SMALL) is first
    assert FilterCache(tmp_path / "cache" / "seccomp").get(attrs.evolve(SMALL)) == first == compile_filter(SMALL)
    assert len(compiled) == 2  # the first, and the line above
    assert first.flags == 2
    (file,) = (tmp_path / "cache" / "seccomp").iterdir()
    assert file.stat().st_mode & 0o777 == 0o600


def test_an_equal_profile_is_found_by_its_content(compiled: list[Seccomp]) -> None:
    cache = FilterCache(None)
    assert cache.get(SMALL) is cache.get(attrs.evolve(SMALL))
    assert len(compiled) == 1


def test_a_stream_of_profiles_does_not_pile_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(seccomp, "_MEMORY_LIMIT", 3)
    cache = FilterCache(None)
    for number in range(8):
        cache.get(attrs.evolve(SMALL, default_errno_ret=number + 1))
    assert len(cache._profiles) <= 3
    assert len(cache._keys) <= 3


def test_another_profile_is_another_filter(tmp_path: Path) -> None:
    cache = FilterCache(tmp_path)
    assert cache.get(SMALL) != cache.get(attrs.evolve(SMALL, default_errno_ret=5))
    assert cache.default_filter(PLAIN) != cache.default_filter(PLAIN | {"CAP_SYS_ADMIN"})
    assert len(list(tmp_path.iterdir())) == 4


def test_capabilities_without_meaning_for_the_profile_share_a_file(tmp_path: Path, compiled: list[Seccomp]) -> None:
    cache = FilterCache(tmp_path)
    assert cache.default_filter(PLAIN) == cache.default_filter(PLAIN | {"CAP_NET_ADMIN"})
    assert len(compiled) == 1


def test_the_default_filter_is_the_compiled_default_profile(tmp_path: Path) -> None:
    assert FilterCache(tmp_path).default_filter(PLAIN) == compile_filter(default_profile(PLAIN))
    assert FilterCache(None).default_filter(PLAIN) == compile_filter(default_profile(PLAIN))


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: data[:0],
        lambda data: data[:-8],
        lambda data: data[:-3],
        lambda data: data[:-1] + bytes([data[-1] ^ 1]),
        lambda data: data.partition(b"\n")[2],
        lambda data: data.replace(b'"flags": 2', b'"flags": 0'),
        lambda data: data.replace(b"/libseccomp", b"/libsecpomc"),
        lambda data: b"[]\n" + data.partition(b"\n")[2],
    ],
)
def test_a_damaged_file_is_made_again(tmp_path: Path, damage: Any, compiled: list[Seccomp]) -> None:
    good = FilterCache(tmp_path).get(SMALL)
    (file,) = tmp_path.iterdir()
    content = file.read_bytes()
    file.write_bytes(damage(content))
    assert FilterCache(tmp_path).get(SMALL) == good
    assert file.read_bytes() == content
    assert len(compiled) == 2


def test_the_file_of_another_profile_is_not_taken(tmp_path: Path) -> None:
    FilterCache(tmp_path).get(Seccomp(default_action="SCMP_ACT_ALLOW"))
    (lenient,) = tmp_path.iterdir()
    good = FilterCache(tmp_path).get(SMALL)
    (strict,) = set(tmp_path.iterdir()) - {lenient}
    strict.write_bytes(lenient.read_bytes())
    assert FilterCache(tmp_path).get(SMALL) == good


def test_a_directory_that_cannot_be_made_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StoreError, match="compiled seccomp filter"):
        FilterCache(tmp_path / "file").get(SMALL)


def test_a_hit_costs_less_than_two_microseconds() -> None:
    cache = FilterCache(None)
    capabilities = PLAIN
    cache.default_filter(capabilities)
    cache.get(SMALL)
    calls: list[Callable[[], Filter]] = [lambda: cache.default_filter(capabilities), lambda: cache.get(SMALL)]
    for call in calls:
        best = float("inf")
        for _ in range(20):
            start = time.perf_counter()
            for _ in range(200):
                call()
            best = min(best, (time.perf_counter() - start) / 200)
        assert best < 2e-6


def test_a_hit_on_disk_does_not_load_libseccomp(tmp_path: Path) -> None:
    expected: Filter = FilterCache(tmp_path).default_filter(PLAIN)
    code = (
        "import sys, pathlib\n"
        "from pycontainer.runtime.capabilities import DEFAULT\n"
        "from pycontainer.runtime.seccomp import FilterCache\n"
        "found = FilterCache(pathlib.Path(sys.argv[1])).default_filter(frozenset(DEFAULT))\n"
        "assert 'pycontainer.runtime.seccomp_compiler' not in sys.modules\n"
        "sys.stdout.buffer.write(found.program)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, tmp_path], capture_output=True, check=True)
    assert done.stdout == expected.program
