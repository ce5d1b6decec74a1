"""Device rules: the generated program and the v1 writes against a plain model of the rules."""

from __future__ import annotations

import os
import struct
from typing import TYPE_CHECKING, Any, cast

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from pycontainer.errors import NotFound, Unsupported
from pycontainer.oci.defaults import DEVICE_RULES
from pycontainer.oci.runtime import DeviceRule
from pycontainer.runtime.devices import compile_bpf, stat_device, v1_writes

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

BITS = {"m": 1, "r": 2, "w": 4}
TYPES = {"b": 1, "c": 2}

# Few numbers, so that rules meet; the ends of the kernel's ranges among them.
MAJORS = st.sampled_from([0, 1, 5, 4095])
MINORS = st.sampled_from([0, 3, 0xFFFFF])
ACCESSES = st.sets(st.sampled_from("rwm"), min_size=1).map(lambda letters: "".join(sorted(letters)))
RULES = st.lists(
    st.builds(
        DeviceRule,
        allow=st.booleans(),
        type=st.sampled_from(["a", "b", "c"]),
        major=st.none() | MAJORS,
        minor=st.none() | MINORS,
        access=ACCESSES,
    ),
    max_size=8,
)


def allowed(rules: Sequence[DeviceRule], kind: str, major: int, minor: int, access: str) -> bool:
    """Ask the model: for each letter of the access, the last rule about it decides; without one it is denied."""

    def decide(letter: str) -> bool:
        for rule in reversed(rules):
            about = rule.type in ("a", kind) and rule.major in (None, major) and rule.minor in (None, minor)
            if about and letter in rule.access:
                return rule.allow
        return False

    return all(decide(letter) for letter in access)


def run(program: bytes, kind: str, major: int, minor: int, access: str) -> int:
    """Interpret the few instructions of eBPF that a device program uses."""
    context = struct.pack("=III", sum(BITS[letter] for letter in access) << 16 | TYPES[kind], major, minor)
    code = list(struct.iter_unpack("=BBhi", program))
    registers: list[int] = [0] * 11
    at = 0
    while True:
        op, pair, offset, immediate = code[at]
        at += 1
        target, source = pair & 15, pair >> 4
        if op == 0x61:
            assert source == 1
            registers[target] = struct.unpack_from("=I", context, offset)[0]
        elif op == 0xBF:
            registers[target] = registers[source]
        elif op == 0xB7:
            registers[target] = immediate
        elif op == 0x57:
            registers[target] &= immediate
        elif op == 0x77:
            registers[target] >>= immediate
        elif op == 0x05:
            at += offset
        elif op == 0x55:
            at += offset if registers[target] != immediate else 0
        elif op == 0x45:
            at += offset if registers[target] & immediate else 0
        else:
            assert op == 0x95
            return registers[0]


def v1_allows(writes: list[tuple[str, str]], kind: str, major: int, minor: int, access: str) -> bool:
    """Do as security/device_cgroup.c: a default, exceptions, and one exception must grant the whole access."""
    (file, text), *rest = writes
    assert text == "a"
    exceptions = []
    for other, line in rest:
        assert other != file
        its_type, numbers, letters = line.split()
        its_major, its_minor = numbers.split(":")
        if its_type == kind and its_major in ("*", str(major)) and its_minor in ("*", str(minor)):
            exceptions.append(set(letters))
    if file == "devices.allow":
        return not any(letters & set(access) for letters in exceptions)
    return any(set(access) <= letters for letters in exceptions)


@given(RULES, st.sampled_from("bc"), MAJORS, MINORS, ACCESSES)
def test_the_program_decides_as_the_rules_say(
    rules: list[DeviceRule], kind: str, major: int, minor: int, access: str
) -> None:
    assert run(compile_bpf(rules), kind, major, minor, access) == allowed(rules, kind, major, minor, access)


@given(RULES, st.sampled_from("bc"), MAJORS, MINORS, st.sampled_from("rwm"))
def test_the_writes_of_v1_decide_as_the_rules_say(
    rules: list[DeviceRule], kind: str, major: int, minor: int, access: str
) -> None:
    try:
        writes = v1_writes(rules)
    except Unsupported:
        assume(False)
        raise
    assert v1_allows(writes, kind, major, minor, access) == allowed(rules, kind, major, minor, access)


@pytest.mark.parametrize(
    ("device", "access", "expected"),
    [
        (("c", 1, 3), "rw", True),
        (("c", 1, 3), "rwm", True),
        (("c", 1, 7), "w", True),
        (("c", 136, 17), "rw", True),
        (("c", 5, 2), "rw", True),
        (("c", 1, 1), "r", False),  # /dev/mem
        (("c", 1, 1), "m", True),
        (("c", 10, 229), "rw", False),  # /dev/fuse
        (("b", 8, 0), "r", False),
        (("b", 8, 0), "m", True),
    ],
)
def test_the_default_rules(device: tuple[str, int, int], access: str, expected: bool) -> None:
    rules = DEVICE_RULES
    assert allowed(rules, *device, access) is expected
    assert bool(run(compile_bpf(rules), *device, access)) is expected
    assert v1_allows(v1_writes(rules), *device, access) is expected


def test_a_device_of_a_run_is_one_more_write() -> None:
    extra = DeviceRule(allow=True, type="c", major=10, minor=229, access="rw")
    assert v1_writes([*DEVICE_RULES, extra])[-1] == ("devices.allow", "c 10:229 rw")


def test_privileged_is_one_write() -> None:
    assert v1_writes([*DEVICE_RULES, DeviceRule(allow=True)]) == [("devices.allow", "a")]
    assert v1_writes([]) == [("devices.deny", "a")]


def test_what_v1_cannot_say_is_refused() -> None:
    rules = [
        DeviceRule(allow=True, type="c", access="rw"),
        DeviceRule(allow=False, type="c", major=10, minor=229, access="w"),
    ]
    with pytest.raises(Unsupported, match=r"cannot deny c 10:229 w after a rule for all of c \*:\*"):
        v1_writes(rules)
    assert not run(compile_bpf(rules), "c", 10, 229, "rw")
    assert run(compile_bpf(rules), "c", 10, 229, "r")


def test_access_may_be_granted_by_several_rules() -> None:
    rules = [
        DeviceRule(allow=True, type="c", major=1, minor=3, access="r"),
        DeviceRule(allow=True, type="c", major=1, minor=3, access="w"),
    ]
    assert v1_writes(rules)[1:] == [("devices.allow", "c 1:3 rw")]
    assert run(compile_bpf(rules), "c", 1, 3, "rw")


def test_devices_of_the_host(tmp_path: Path) -> None:
    null = stat_device("/dev/null")
    assert null[:3] == ("c", 1, 3)
    assert null.mode == os.stat("/dev/null").st_mode & 0o7777  # noqa: PTH116
    link = tmp_path / "link"
    link.symlink_to("/dev/null")
    assert stat_device(link) == null


@pytest.mark.parametrize(
    ("path", "error", "text"),
    [
        ("/dev/no-such-device", NotFound, "/dev/no-such-device.*driver"),
        ("/dev/null/x", NotFound, "Not a directory"),
        ("dev/null", ValueError, "absolute"),
        ("/dev", ValueError, "a directory"),
        ("/etc/passwd", ValueError, "not a device"),
    ],
)
def test_what_is_not_a_device_says_so(path: str, error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        stat_device(path)


def test_types_of_a_rule_are_those_of_the_specification() -> None:
    both = DeviceRule(allow=True, type=cast("Any", "a"), major=7, access="r")
    assert v1_writes([both])[1:] == [("devices.allow", "b 7:* r"), ("devices.allow", "c 7:* r")]
