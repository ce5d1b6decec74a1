"""The values of the public API: what they take, what they refuse and with which words."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pycontainer.model import Device, IdMap, ImageConfig, Limits, Mount, Result, Rlimit, Usage, parse_size

UNITS = {"": 1, "b": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "t": 1 << 40, "p": 1 << 50}
USAGE = Usage(
    wall_seconds=1.0,
    cpu_user_seconds=0.5,
    cpu_system_seconds=0.25,
    peak_memory=1,
    block_read=2,
    block_written=3,
    peak_pids=4,
)


# ── sizes ──


@given(st.integers(0, 1 << 63))
def test_bytes_are_bytes(number: int) -> None:
    assert parse_size(number) == number


@given(st.integers(0, 1 << 20), st.sampled_from(sorted(UNITS)), st.sampled_from(["", "b", "ib"]), st.booleans())
def test_units_are_binary_in_any_spelling(number: int, unit: str, end: str, upper: bool) -> None:
    if unit in ("", "b"):
        end = ""
    text = f"{number}{unit}{end}"
    assert parse_size(text.upper() if upper else text) == number * UNITS[unit]
    assert parse_size(f"  {number} {unit}{end} ") == number * UNITS[unit]


@given(st.integers(0, 1000), st.integers(0, 3), st.sampled_from(["k", "m", "g"]))
def test_fractions(whole: int, quarters: int, unit: str) -> None:
    assert parse_size(f"{whole}.{quarters * 25:02}{unit}") == whole * UNITS[unit] + quarters * UNITS[unit] // 4


@given(st.text(max_size=20))
def test_any_text_is_a_size_or_a_value_error_that_shows_it(text: str) -> None:
    try:
        size = parse_size(text)
    except ValueError as error:
        assert repr(text) in str(error)  # noqa: PT017 - either answer is right
    else:
        assert size >= 0
        assert any(letter.isdecimal() for letter in text)


@pytest.mark.parametrize(
    "text", ["", "m", "-1", "1x", "1,5m", "0x10", "1e6", "1mb2", "1 2", ".5m", "inf", "nan", "1.m"]
)
def test_what_is_no_size(text: str) -> None:
    with pytest.raises(ValueError, match=r"not a size: .*; write bytes or a number with k, m, g or t"):
        parse_size(text)


@pytest.mark.parametrize("value", [True, 1.5, None, b"1", [1]])
def test_what_has_no_size(value: Any) -> None:
    with pytest.raises(TypeError, match=f"not {type(value).__name__}"):
        parse_size(value)


def test_no_size_is_negative() -> None:
    with pytest.raises(ValueError, match="cannot be negative: -1"):
        parse_size(-1)


# ── limits ──


@given(
    st.builds(
        dict,
        memory=st.none() | st.integers(512 << 10, 1 << 50),
        cpus=st.none() | st.floats(0.01, 4096),
        cpu_shares=st.none() | st.integers(2, 262144),
        pids=st.none() | st.integers(1, 4194304),
        io_weight=st.none() | st.integers(10, 1000),
    )
)
def test_limits_keep_what_they_are_given(values: dict[str, Any]) -> None:
    limits = Limits(**values)
    assert {name: getattr(limits, name) for name in values} == values
    assert limits == Limits(**values)
    assert hash(limits) == hash(Limits(**values))
    assert pickle.loads(pickle.dumps(limits)) == limits  # noqa: S301 - our own
    assert eval(repr(limits)) == limits  # noqa: S307 - our own text


@given(st.integers(512 << 10, 1 << 40), st.integers(-1, 1 << 41))
def test_swap_counts_both(memory: int, swap: int) -> None:
    if swap == -1 or swap >= memory:
        assert Limits(memory=memory, memory_swap=swap).memory_swap == swap
    else:
        with pytest.raises(ValueError, match="memory and swap together"):
            Limits(memory=memory, memory_swap=swap)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"memory": "511k"}, "memory must be at least 512K, got 523264 bytes"),
        ({"memory": 0}, "at least 512K"),
        ({"memory": -1}, "negative"),
        ({"memory": "lots"}, "not a size: 'lots'"),
        ({"memory_swap": "1g"}, "memory_swap needs memory"),
        ({"memory_swap": -2}, "negative"),
        ({"memory_reservation": -1}, "negative"),
        ({"cpus": 0}, "cpus must be between 0.01 and 4096, got 0"),
        ({"cpus": float("nan")}, "cpus must be between"),
        ({"cpus": float("inf")}, "cpus must be between"),
        ({"cpu_shares": 1}, "cpu_shares must be between 2 and 262144, got 1"),
        ({"cpu_shares": 262145}, "cpu_shares"),
        ({"pids": 0}, "pids must be between"),
        ({"io_weight": 9}, "io_weight must be between 10 and 1000, got 9"),
        ({"io_weight": 1001}, "io_weight"),
        ({"cpuset_cpus": "0-"}, "cpuset_cpus is a list such as '0-2,4', not '0-'"),
        ({"cpuset_cpus": "0\n"}, "cpuset_cpus"),
        ({"cpuset_cpus": ""}, "cpuset_cpus"),
        ({"cpuset_mems": "a"}, "cpuset_mems"),
    ],
)
def test_limits_that_make_no_sense(values: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Limits(**values)


@pytest.mark.parametrize("text", ["0", "0-2,4", "1,3,5-7"])
def test_sets_of_processors(text: str) -> None:
    assert Limits(cpuset_cpus=text, cpuset_mems=text).cpuset_cpus == text


# ── mounts ──


def test_a_bind_mount() -> None:
    mount = Mount.bind("/srv", "/data", read_only=True, propagation="rslave", options=["noexec"])
    assert (mount.type, mount.source, mount.target) == ("bind", "/srv", "/data")
    assert (mount.read_only, mount.propagation, mount.options) == (True, "rslave", ("noexec",))
    assert Mount.bind("/srv", "/data").propagation == "rprivate"


def test_a_tmpfs() -> None:
    mount = Mount.tmpfs("/scratch", size="64M", mode=0o700, options=["noexec"])
    assert (mount.type, mount.source, mount.size, mount.mode) == ("tmpfs", None, 64 << 20, 0o700)
    assert Mount.tmpfs("/scratch").size is None


@pytest.mark.parametrize("target", ["", "data", "./data", "../data", "/a\0b"])
def test_a_target_is_absolute(target: str) -> None:
    for make in (Mount.tmpfs, lambda path: Mount.bind("/srv", path)):
        with pytest.raises(ValueError, match="the target of a mount is an absolute path in the container"):
            make(target)


@pytest.mark.parametrize("source", ["", "srv", "~/srv"])
def test_a_source_is_absolute(source: str) -> None:
    with pytest.raises(ValueError, match="the source of a bind mount is an absolute path on the host"):
        Mount.bind(source, "/data")


# ── the small ones ──


@given(st.sampled_from(["nofile", "NOFILE", "RLIMIT_NOFILE", "rlimit_nofile"]), st.integers(-1, 1 << 63))
def test_limits_of_resources_in_any_spelling(name: str, soft: int) -> None:
    limit = Rlimit(name, soft)
    assert (limit.type, limit.soft, limit.hard) == ("nofile", soft, soft)
    assert Rlimit(name, soft, 7).hard == 7


def test_a_device_has_the_same_path_unless_told() -> None:
    assert Device("/dev/fuse") == Device("/dev/fuse", "/dev/fuse", "rwm")
    assert Device("/dev/fuse", "/dev/other", "r").target == "/dev/other"


@pytest.mark.parametrize("access", ["", "x", "rwmr", "rw\n", "RW"])
def test_access_to_a_device(access: str) -> None:
    with pytest.raises(ValueError, match="access"):
        Device("/dev/fuse", access=access)


@pytest.mark.parametrize(("inside", "outside", "count"), [(-1, 0, 1), (0, -1, 1), (0, 0, 0)])
def test_a_range_of_ids(inside: int, outside: int, count: int) -> None:
    with pytest.raises(ValueError, match=r"'(inside|outside|count)' must be >= "):
        IdMap(inside, outside, count)
    assert IdMap(0, 100000, 65536).count == 65536


def test_the_configuration_of_an_image() -> None:
    config = ImageConfig(entrypoint="sh -c 'a b'", command=["x"], env={"A": "1"}, volumes=["/data"])
    assert config.entrypoint == ("sh", "-c", "a b")
    assert config.command == ("x",)
    assert config.volumes == ("/data",)
    assert ImageConfig().entrypoint is None
    assert ImageConfig(entrypoint=()).entrypoint == ()  # "none of its own" is not "not said"


def test_the_environment_of_an_image_is_a_copy() -> None:
    env = {"A": "1"}
    config = ImageConfig(env=env)
    env["B"] = "2"
    assert config.env == {"A": "1"}


def test_the_result_of_a_run() -> None:
    result = Result(
        container_id="0" * 64, command=("true",), exit_code=0, signal=0, stdout=b"", stderr=b"", oom_killed=False,
        usage=USAGE,
    )  # fmt: skip
    assert result.ok
    assert not attrs.evolve(result, exit_code=1).ok
    assert not result.truncated
    assert result.usage.cpu_seconds == 0.75


VALUES = [
    Limits(memory="1m"),
    Mount.tmpfs("/x"),
    Mount.bind("/x", "/y"),
    Rlimit("core", 0),
    Device("/dev/null"),
    IdMap(0, 1, 2),
    ImageConfig(command=["x"]),
    USAGE,
]


@pytest.mark.parametrize("value", VALUES, ids=lambda value: type(value).__name__)
@pytest.mark.parametrize(
    "copied",
    [copy.copy, copy.deepcopy, attrs.evolve, lambda value: pickle.loads(pickle.dumps(value))],  # noqa: S301 - our own
)
def test_values_are_frozen_equal_and_can_travel(value: Any, copied: Callable[[Any], Any]) -> None:
    again = copied(value)
    assert again == value
    assert repr(again) == repr(value)
    assert value != object()
    with pytest.raises(attrs.exceptions.FrozenInstanceError):
        setattr(value, attrs.fields(type(value))[0].name, None)


def test_values_of_two_classes_are_never_equal() -> None:
    assert len({repr(value) for value in VALUES}) == len(VALUES)
    for number, value in enumerate(VALUES):
        assert [other == value for other in VALUES].index(True) == number


@pytest.mark.parametrize("text", ["9" * 400, "9" * 400 + "p"])
def test_a_size_beyond_all_measure_is_a_value_error(text: str) -> None:
    with pytest.raises(ValueError, match="size"):
        parse_size(text)
