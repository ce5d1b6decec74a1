"""Option words of mounts: each of the specification's has its meaning, combinations are those of mount(8)."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pycontainer.errors import StartError, Unsupported
from pycontainer.oci import runtime as oci
from pycontainer.runtime import mounts
from pycontainer.runtime.mounts import parse_options
from pycontainer.runtime.program import Program

RDONLY, NOSUID, NODEV, NOEXEC, NOATIME, STRICTATIME, NODIRATIME, NOSYMFOLLOW = (
    *(1, 2, 4, 8, 0x10, 0x20, 0x80, 0x200000),  # MOUNT_ATTR_* of linux/mount.h
)
ATIME = 0x70
MS_UNBINDABLE, MS_PRIVATE, MS_SLAVE, MS_SHARED = 1 << 17, 1 << 18, 1 << 19, 1 << 20

# word, attributes set, attributes cleared
ATTRIBUTES = [
    ("ro", RDONLY, 0),
    ("rw", 0, RDONLY),
    ("nosuid", NOSUID, 0),
    ("suid", 0, NOSUID),
    ("nodev", NODEV, 0),
    ("dev", 0, NODEV),
    ("noexec", NOEXEC, 0),
    ("exec", 0, NOEXEC),
    ("nodiratime", NODIRATIME, 0),
    ("diratime", 0, NODIRATIME),
    ("nosymfollow", NOSYMFOLLOW, 0),
    ("symfollow", 0, NOSYMFOLLOW),
    # The access time is a field, to be cleared whenever it is set.
    ("noatime", NOATIME, ATIME),
    ("strictatime", STRICTATIME, ATIME),
    ("relatime", 0, ATIME),
    ("atime", 0, ATIME),
    ("nostrictatime", 0, ATIME),
]
PROPAGATION = [
    ("private", MS_PRIVATE, False),
    ("rprivate", MS_PRIVATE, True),
    ("slave", MS_SLAVE, False),
    ("rslave", MS_SLAVE, True),
    ("shared", MS_SHARED, False),
    ("rshared", MS_SHARED, True),
    ("unbindable", MS_UNBINDABLE, False),
    ("runbindable", MS_UNBINDABLE, True),
]


@pytest.mark.parametrize(("word", "attributes", "clear"), ATTRIBUTES)
def test_attributes(word: str, attributes: int, clear: int) -> None:
    options = parse_options((word,))
    assert (options.attributes, options.clear, options.recursive) == (attributes, clear, False)
    assert options.data == ()
    if word == "relatime":
        return
    # With an r before it, for nested mounts too: mount_setattr(2) and config.md.
    recursive = parse_options((f"r{word}",))
    assert (recursive.attributes, recursive.clear, recursive.recursive) == (attributes, clear, True)
    assert recursive.data == ()


@pytest.mark.parametrize(("word", "propagation", "recursive"), PROPAGATION)
def test_propagation(word: str, propagation: int, recursive: bool) -> None:
    options = parse_options((word,))
    assert (options.propagation, options.propagation_recursive) == (propagation, recursive)
    assert options.data == ()
    assert options.attributes == options.clear == 0


@pytest.mark.parametrize("word", ["defaults", "async", "silent", "loud", "mand", "nomand", "norelatime"])
def test_words_that_are_the_default_or_nothing(word: str) -> None:
    options = parse_options((word,))
    assert options.data == ()
    assert options.attributes == options.clear == options.propagation == 0


def test_binds() -> None:
    assert parse_options(("bind",)).bind
    assert not parse_options(("bind",)).bind_recursive
    assert parse_options(("rbind",)).bind_recursive
    assert parse_options(("idmap",)).idmap
    assert parse_options(("ridmap",)).idmap
    assert not parse_options(()).bind


@pytest.mark.parametrize(
    "word", ["size=64k", "mode=755", "sync", "dirsync", "lazytime", "iversion", "x", "", "rx", "="]
)
def test_other_words_are_for_the_file_system(word: str) -> None:
    assert parse_options((word,)).data == (word,)


def test_a_mount_that_is_there_is_not_changed() -> None:
    with pytest.raises(Unsupported, match="'remount'"):
        parse_options(("remount", "ro"))


WORDS = st.lists(st.sampled_from([word for word, _, _ in ATTRIBUTES]), max_size=8).map(tuple)


@given(WORDS)
def test_the_last_word_about_a_thing_decides(words: tuple[str, ...]) -> None:
    options = parse_options(words)
    wanted: dict[int, int] = {}
    for word in words:
        _, attributes, clear = next(row for row in ATTRIBUTES if row[0] == word)
        field = ATIME if (attributes | clear) & ATIME else attributes | clear
        wanted[field] = attributes
    assert options.attributes == sum(wanted.values())
    for field, value in wanted.items():
        cleared = options.clear & field
        assert cleared == (field if field == ATIME else field & ~value)
    # What mount_setattr(2) refuses: a flag both set and cleared, but for the access time.
    assert not options.attributes & options.clear & ~ATIME


@given(st.lists(st.text(max_size=8).filter(lambda word: word != "remount"), max_size=5).map(tuple))
def test_any_words(words: tuple[str, ...]) -> None:
    options = parse_options(words)
    assert set(options.data) <= set(words)


# ── from mounts to steps ──


@pytest.mark.parametrize(
    ("mount", "expected"),
    [
        (oci.Mount(destination="/x", type="bind", source="/y"), True),
        (oci.Mount(destination="/x", source="/y", options=("rbind",)), True),
        (oci.Mount(destination="/x", type="none", source="/y", options=("bind",)), True),
        (oci.Mount(destination="/x", type="tmpfs", source="/y"), False),
    ],
)
def test_what_is_a_bind_mount(mount: oci.Mount, expected: bool) -> None:
    assert mounts.is_bind(mount) is expected


def test_words_that_are_not_for_bind_mounts() -> None:
    mount = oci.Mount(destination="/x", type="bind", source="/y", options=("rbind", "size=1m"))
    with pytest.raises(Unsupported, match="bind mount of /y: options size=1m are not for bind mounts"):
        mounts.add_bind(Program(), mount)


def test_a_relative_source_is_relative_to_a_bundle() -> None:
    mount = oci.Mount(destination="/x", type="bind", source="y", options=("rbind",))
    with pytest.raises(StartError, match="the source must be an absolute path on the host"):
        mounts.add_bind(Program(), mount)
    program = Program()
    mounts.add_bind(program, mount, bundle="/bundle")
    assert b"\0/bundle/y\0" in program.pack().data


def test_id_maps_are_for_bind_mounts() -> None:
    mount = oci.Mount(destination="/x", type="tmpfs", options=("idmap",))
    with pytest.raises(Unsupported, match="id mappings are for bind mounts, not for tmpfs"):
        mounts.create_mount(Program(), mount)
