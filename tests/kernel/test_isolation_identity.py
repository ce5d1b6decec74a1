"""Who a process in a container is: ids, groups, capabilities, and what it can become."""

from __future__ import annotations

import errno
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from pycontainer.errors import NotFound, Unsupported
from pycontainer.model import Rlimit
from pycontainer.oci import defaults
from pycontainer.runtime import capabilities

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tests.kernel.attacks.jail import Jail

SETS = ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")
USUAL = capabilities.to_mask(defaults.CAPABILITIES)


def status(jail: Jail, **options: Any) -> dict[str, str]:
    """Return the fields of proc_pid_status(5) of a program in a container."""
    text = jail.run("/bin/cat", "/proc/self/status", **options).stdout.decode()
    return {name: value.strip() for name, _, value in (line.partition(":") for line in text.splitlines())}


def sets(jail: Jail, **options: Any) -> tuple[int, ...]:
    fields = status(jail, **options)
    return tuple(int(fields[name], 16) for name in SETS)


def mask(*names: str) -> int:
    return capabilities.to_mask(tuple(f"CAP_{name}" for name in names))


@pytest.mark.parametrize("options", [{}, {"init": True}, {"tty": True}, {"no_new_privileges": True}], ids=str)
def test_root_has_the_usual_capabilities_and_none_to_hand_on(jail: Jail, options: dict[str, Any]) -> None:
    """What is inheritable would be gained by files that name it (CVE-2022-24769)."""
    assert sets(jail, **options) == (0, USUAL, USUAL, USUAL, 0)


def test_a_user_has_no_capabilities(jail: Jail) -> None:
    assert sets(jail, user="app") == (0, 0, 0, USUAL, 0)
    assert sets(jail, user="1234:1234") == (0, 0, 0, USUAL, 0)


def test_a_user_that_is_given_capabilities_has_them_in_reach_of_setuid_programs_only(jail: Jail) -> None:
    assert sets(jail, user="app", cap_add=["NET_ADMIN"]) == (0, 0, 0, USUAL | mask("NET_ADMIN"), 0)


@pytest.mark.parametrize(
    ("add", "drop", "expected"),
    [
        ((), ("ALL",), 0),
        (("CHOWN",), ("ALL",), mask("CHOWN")),
        (("SYS_PTRACE",), ("CHOWN", "KILL"), USUAL & ~mask("CHOWN", "KILL") | mask("SYS_PTRACE")),
    ],
)
def test_capabilities_are_added_and_dropped_in_all_sets(
    jail: Jail, add: Sequence[str], drop: Sequence[str], expected: int
) -> None:
    assert sets(jail, cap_add=add, cap_drop=drop) == (0, expected, expected, expected, 0)


def test_what_was_dropped_does_not_come_back(jail: Jail) -> None:
    assert jail.attack("setuid", 0, user="app") == errno.EPERM
    assert jail.attack("setgroups", 0, user="app") == errno.EPERM
    assert jail.sh("chown 5 /tmp 2>/dev/null || echo no", cap_drop=["CHOWN"]) == "no"
    assert jail.sh("su app -c 'exit 0' 2>/dev/null || echo no", cap_drop=["SETUID", "SETGID"]) == "no"


def test_a_setuid_program_of_the_image_gains_root_unless_forbidden(jail: Jail) -> None:
    program = "/bin/attack-setuid"
    assert jail.attack("root", program=program, user="app") == 0
    assert jail.attack("root", program=program, user="app", no_new_privileges=True) == errno.EPERM


def test_root_by_way_of_a_setuid_program_has_no_more_than_the_containers_root(jail: Jail) -> None:
    words = ("call", "mount", "@tmpfs", "@/tmp", "@tmpfs", 0, 0)
    assert jail.attack(*words, program="/bin/attack-setuid", user="app", seccomp="unconfined") == errno.EPERM


def test_no_new_privileges_is_seen_by_the_process(jail: Jail) -> None:
    assert status(jail)["NoNewPrivs"] == "0"
    assert status(jail, no_new_privileges=True)["NoNewPrivs"] == "1"


@pytest.mark.parametrize("options", [{}, {"init": True}, {"user": "app"}, {"no_new_privileges": True}], ids=str)
def test_the_filter_is_loaded(jail: Jail, options: dict[str, Any]) -> None:
    assert status(jail, **options)["Seccomp"] == "2"
    assert status(jail, seccomp="unconfined", **options)["Seccomp"] == "0"


def test_ids_and_groups_are_those_of_the_image(jail: Jail) -> None:
    fields = status(jail, user="app")
    assert fields["Uid"].split() == ["1000"] * 4
    assert fields["Gid"].split() == ["1000"] * 4
    assert fields["Groups"].split() == ["29", "50"]
    assert status(jail, user="app:staff")["Groups"] == ""
    assert status(jail)["Groups"] == ""
    assert status(jail, user="5:6", groups=["audio"])["Groups"] == "29"


@pytest.mark.parametrize("user", ["nobody-of-that-name", "app:no-such-group", "root:x", "-1", "0x0", " 0"])
def test_a_user_that_is_not_in_the_image_is_not_taken_for_root(jail: Jail, user: str) -> None:
    with pytest.raises((NotFound, ValueError)):
        jail.run("/bin/id", user=user)


@pytest.mark.parametrize("user", ["4294967295", "4294967296", "1:4294967295", "18446744073709551616"])
def test_an_id_that_would_wrap_around_to_another_is_refused(jail: Jail, user: str) -> None:
    with pytest.raises(ValueError, match="out of range"):
        jail.run("/bin/id", user=user)


def test_limits_of_the_process_bind_it(jail: Jail) -> None:
    limits = [Rlimit("nofile", 10), Rlimit("core", 0), Rlimit("fsize", 4096, 8192)]
    seen = jail.sh("ulimit -n; ulimit -Hn; ulimit -c; ulimit -f; ulimit -Hf", rlimits=limits)
    assert seen.split() == ["10", "10", "0", "8", "16"]


def test_a_capability_that_the_caller_lacks_is_not_promised(jail: Jail) -> None:
    lacking = [name for name, bit in BITS.items() if not bounding() & 1 << bit]
    if not lacking:
        pytest.skip("the caller has every capability of these")
    with pytest.raises(Unsupported, match=lacking[0]):
        jail.run("/bin/true", cap_add=[lacking[0]])


BITS = {"CAP_SYS_ADMIN": 21, "CAP_SYS_BOOT": 22, "CAP_SYS_RESOURCE": 24, "CAP_SYS_TIME": 25, "CAP_SYS_MODULE": 16}


def bounding() -> int:
    """Return the bounding set of this program."""
    text = Path("/proc/thread-self/status").read_text()
    return int(text.partition("CapBnd:")[2].split()[0], 16)
