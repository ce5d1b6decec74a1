"""Platforms: their many names, what runs what, and the choice from an index."""

from __future__ import annotations

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pycontainer.errors import ImageError
from pycontainer.oci.image import MANIFEST, Descriptor
from pycontainer.oci.platforms import Platform, choose, fitting, normalize, parse_platform

HOST = Platform(os="linux", architecture="amd64")


@pytest.mark.parametrize(
    ("text", "platform"),
    [
        ("linux", "linux/amd64"),
        ("windows", "windows/amd64"),
        ("macOS/arm64", "darwin/arm64"),
        ("arm64", "linux/arm64"),
        ("aarch64", "linux/arm64"),
        ("linux/arm64/v8", "linux/arm64"),
        ("linux/arm64/8", "linux/arm64"),
        ("linux/arm64/v9", "linux/arm64/v9"),
        ("linux/x86_64/v1", "linux/amd64"),
        ("Linux/AMD64/V3", "linux/amd64/v3"),
        ("armhf", "linux/arm/v7"),
        ("armel", "linux/arm/v6"),
        ("linux/arm/6", "linux/arm/v6"),
        ("linux/arm", "linux/arm/v7"),
        ("i386", "linux/386"),
        ("riscv64", "linux/riscv64"),
    ],
)
def test_platforms_are_read(text: str, platform: str) -> None:
    assert str(parse_platform(text, HOST)) == platform


@pytest.mark.parametrize("text", ["", "/", "linux/", "linux//v7", "linux/arm/v7/x", "a b", "arm/v7", "linux/\0"])
def test_what_is_no_platform(text: str) -> None:
    with pytest.raises(ValueError, match="not a platform"):
        parse_platform(text, HOST)


words = st.text("abcdefvx_0123456789.-AV", min_size=1, max_size=9)
platforms = st.builds(
    Platform,
    os=st.sampled_from(["linux", "Linux", "macos", "windows"]) | words,
    architecture=st.sampled_from(["amd64", "x86_64", "arm", "arm64", "armel", "i386"]) | words,
    variant=st.sampled_from(["", "v1", "v2", "v8", "8", "7"]) | words,
)


@given(platforms)
def test_a_normal_name_stays_and_fits_itself_first(platform: Platform) -> None:
    normal = normalize(platform)
    assert normalize(normal) == normal
    assert fitting(platform)[0] == normal
    assert len(set(fitting(platform))) == len(fitting(platform))


@given(st.text(max_size=12))
def test_any_text_is_read_or_refused(text: str) -> None:
    try:
        platform = parse_platform(text, HOST)
    except ValueError:
        return
    assert parse_platform(str(platform), HOST) == platform


def entry(text: str | None, *features: str) -> Descriptor:
    platform = None
    if text is not None:
        platform = attrs.evolve(parse_platform(text, HOST), os_features=features)
    return Descriptor(media_type=MANIFEST, digest="sha256:" + "0" * 64, size=1, platform=platform)


@pytest.mark.parametrize(
    ("wanted", "offered", "chosen"),
    [
        ("amd64", ["arm64", "amd64"], 1),
        ("amd64", ["linux/amd64/v2", "amd64", "amd64"], 1),
        ("linux/amd64/v3", ["amd64", "linux/amd64/v2", "linux/amd64/v4"], 1),
        ("amd64", ["i386", "windows/amd64"], 0),
        ("linux/arm/v7", ["linux/arm/v5", "linux/arm/v6", "arm64"], 1),
        ("arm64", ["linux/arm/v7", "amd64"], 0),
        ("arm64", ["linux/arm64/v8"], 0),
        ("linux/arm64/v9", ["linux/arm/v7", "arm64"], 1),
        ("amd64", [None, "arm64"], 0),
        ("amd64", [None, "amd64"], 1),
    ],
)
def test_the_best_that_fits_is_chosen(wanted: str, offered: list[str | None], chosen: int) -> None:
    entries = [entry(text) for text in offered]
    assert choose(entries, parse_platform(wanted, HOST), "the index") is entries[chosen]


@pytest.mark.parametrize(
    ("wanted", "offered"),
    [
        ("amd64", []),
        ("amd64", ["arm64", "linux/amd64/v2"]),
        ("i386", ["amd64"]),
        ("amd64", ["windows/amd64"]),
        ("amd64", [None, None]),
    ],
)
def test_what_does_not_fit_is_an_error_that_lists_what_there_is(wanted: str, offered: list[str | None]) -> None:
    with pytest.raises(ImageError, match=r"the index has no image for linux/.*; it has: ") as caught:
        choose([entry(text) for text in offered], parse_platform(wanted, HOST), "the index")
    assert all(str(text) in str(caught.value) for text in offered if text and "/" in text)


def test_what_needs_no_features_comes_first() -> None:
    entries = [entry("amd64", "gpu"), entry("amd64")]
    assert choose(entries, HOST, "the index") is entries[1]
    assert choose(entries[:1], HOST, "the index") is entries[0]


def test_a_version_of_the_system_is_kept_apart() -> None:
    entries = [
        attrs.evolve(entry("amd64"), platform=attrs.evolve(HOST, os="windows", os_version=version))
        for version in ("10.0.1", "10.0.2")
    ]
    wanted = attrs.evolve(HOST, os="windows", os_version="10.0.2")
    assert choose(entries, wanted, "the index") is entries[1]
