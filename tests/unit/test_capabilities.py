"""Capabilities: Docker's arithmetic of adding and dropping, names, masks, and agreement with the kernel."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pycontainer.errors import Unsupported
from pycontainer.runtime import capabilities as caps

NAME = st.sampled_from(caps.NAMES)


def test_names_and_numbers_are_those_of_the_kernel_headers() -> None:
    header = Path("/usr/include/linux/capability.h")
    if not header.exists():
        pytest.skip(f"{header} is not installed (linux-libc-dev)")
    defined = dict(re.findall(r"^#define (CAP_[A-Z_]+)\s+(\d+)$", header.read_text(), re.MULTILINE))
    assert {name: int(number) for name, number in defined.items()} == {
        name: number for name, number in caps.NUMBERS.items() if name in defined
    }
    assert len(caps.NAMES) == 41


def test_nothing_asked_gives_the_fourteen_of_docker() -> None:
    assert caps.resolve() == caps.DEFAULT
    assert len(caps.DEFAULT) == 14
    assert caps.to_mask(caps.DEFAULT) == 0xA80425FB


@pytest.mark.parametrize(
    ("add", "drop", "expected"),
    [
        (["NET_ADMIN"], [], {*caps.DEFAULT, "CAP_NET_ADMIN"}),
        (["cap_net_admin"], ["all"], {"CAP_NET_ADMIN"}),
        ([], ["ALL"], set()),
        ([], ["CAP_ALL"], set()),
        ([], ["chown"], set(caps.DEFAULT) - {"CAP_CHOWN"}),
        (["CHOWN"], ["CHOWN"], set(caps.DEFAULT)),
        (["ALL"], ["sys_admin"], set(caps.available()) - {"CAP_SYS_ADMIN"}),
        (["ALL"], ["ALL"], set(caps.available())),
        (["ALL", "CHOWN"], ["CHOWN"], set(caps.available()) - {"CAP_CHOWN"}),
    ],
)
def test_add_and_drop_as_docker(add: list[str], drop: list[str], expected: set[str]) -> None:
    result = caps.resolve(add, drop)
    assert set(result) == expected
    assert list(result) == sorted(result, key=caps.NUMBERS.__getitem__)


def test_privileged_gives_all_that_is_available_but_still_checks_names() -> None:
    assert caps.resolve(drop=["CHOWN"], privileged=True) == caps.available()
    with pytest.raises(ValueError, match="NET_ADMN"):
        caps.resolve(add=["NET_ADMN"], privileged=True)


def test_a_wrong_name_is_refused_with_the_nearest_ones() -> None:
    with pytest.raises(ValueError, match="'NET_ADMN' is not a capability: did you mean CAP_NET_ADMIN"):
        caps.resolve(add=["NET_ADMN"])
    with pytest.raises(ValueError, match=r"capabilities\(7\)"):
        caps.resolve(drop=["xyzzy"])


def test_what_the_bounding_set_lacks_cannot_be_added(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(caps, "available", lambda: caps.DEFAULT)
    with pytest.raises(Unsupported, match=r"CAP_SYS_ADMIN.*bounding set"):
        caps.resolve(add=["SYS_ADMIN"])
    assert caps.resolve(add=["ALL"]) == caps.DEFAULT


def test_supported_is_what_the_kernel_says() -> None:
    last = int(Path("/proc/sys/kernel/cap_last_cap").read_text())
    assert caps.supported() == caps.NAMES[: last + 1]
    assert set(caps.available()) <= set(caps.supported())


@given(st.frozensets(NAME))
def test_masks_go_both_ways(names: frozenset[str]) -> None:
    assert set(caps.from_mask(caps.to_mask(names))) == names


@given(NAME, st.booleans(), st.booleans())
def test_spelling_does_not_matter(name: str, short: bool, lower: bool) -> None:
    spelled = name.removeprefix("CAP_") if short else name
    assert caps.normalize(spelled.lower() if lower else spelled) == name


@given(st.lists(NAME), st.lists(NAME))
def test_what_is_added_is_there_and_what_is_only_dropped_is_not(add: list[str], drop: list[str]) -> None:
    add = [name for name in add if name in caps.available()]
    result = set(caps.resolve(add, drop))
    assert set(add) <= result
    assert not (set(drop) - set(add)) & result
