"""Users and groups of an image: docker's rules, and files made by somebody hostile."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pycontainer.errors import NotFound
from pycontainer.runtime.users import Accounts, Identity, read_accounts

PASSWD = b"""\
root:x:0:0:root:/root:/bin/sh
# comment:x:9:9::/:/bin/sh
app:x:1000:100:App:/home/app:/bin/sh
1234:x:7:7:a name of digits:/seven:/bin/sh
bare:x:5:5::
short:x:6:6
app:x:2000:2000:again:/other:/bin/sh
homeless:x:8:8:::/bin/sh
"""
GROUP = b"""\
root:x:0:
users:x:100:app
audio:x:29:app,root,
staff:x:50:daemon,app
777:x:51:
broken:x:99
"""


def accounts(passwd: bytes | None = PASSWD, group: bytes | None = GROUP) -> Accounts:
    """Read the accounts of a root directory that holds these files."""
    with tempfile.TemporaryDirectory() as root:
        (Path(root) / "etc").mkdir()
        for name, data in (("passwd", passwd), ("group", group)):
            if data is not None:
                (Path(root) / "etc" / name).write_bytes(data)
        return at(Path(root))


def at(root: Path) -> Accounts:
    fd = os.open(root, os.O_RDONLY | os.O_DIRECTORY)
    try:
        return read_accounts(fd)
    finally:
        os.close(fd)


KNOWN = accounts()


@pytest.mark.parametrize(
    ("user", "uid", "gid", "groups", "home"),
    [
        ("", 0, 0, (29,), "/root"),
        ("root", 0, 0, (29,), "/root"),
        ("0", 0, 0, (29,), "/root"),
        ("app", 1000, 100, (29, 50), "/home/app"),  # the first line of a name counts
        ("1000", 1000, 100, (29, 50), "/home/app"),
        ("app:audio", 1000, 29, (), "/home/app"),  # with a group, the user's own do not count
        ("app:0", 1000, 0, (), "/home/app"),
        ("1000:7777", 1000, 7777, (), "/home/app"),
        ("4321", 4321, 0, (), "/"),  # in no file
        ("4321:4322", 4321, 4322, (), "/"),
        ("1234", 7, 7, (), "/seven"),  # a name before a number
        ("0:777", 0, 51, (), "/root"),  # the same of groups
        ("bare", 5, 5, (), "/"),
        ("homeless", 8, 8, (), "/"),
        (":audio", 0, 29, (), "/root"),
        ("app:", 1000, 100, (29, 50), "/home/app"),
        ("4294967294", 4294967294, 0, (), "/"),
    ],
)
def test_who_a_user_is(user: str, uid: int, gid: int, groups: tuple[int, ...], home: str) -> None:
    assert KNOWN.identify(user) == Identity(uid=uid, gid=gid, groups=groups, home=home)


def test_more_groups() -> None:
    assert KNOWN.identify("app", ["staff", "7", "users"]).groups == (7, 29, 50)
    assert KNOWN.identify("app:audio", ["staff"]).groups == (50,)


@pytest.mark.parametrize(
    ("user", "words"),
    [
        ("nobody", "no such user 'nobody' in the image's /etc/passwd; give a number, or a name that is there"),
        ("short", "no such user 'short'"),
        ("# comment", "no such user"),
        ("-1", "no such user '-1'"),
        ("app:nobody", "no such group 'nobody' in the image's /etc/group"),
        ("app:broken", "no such group 'broken'"),
        ("\N{ARABIC-INDIC DIGIT THREE}", "no such user"),
        ("app:a:b", "no such group 'a:b'"),
    ],
)
def test_who_is_not_there(user: str, words: str) -> None:
    with pytest.raises(NotFound, match=words):
        KNOWN.identify(user)


@pytest.mark.parametrize("user", ["4294967295", "99999999999", "0:4294967295"])
def test_numbers_that_are_no_ids(user: str) -> None:
    """(uid_t)-1 means "leave it" to the kernel, so that it would not be changed."""
    with pytest.raises(ValueError, match="id out of range"):
        KNOWN.identify(user)


def test_without_files_there_are_numbers() -> None:
    empty = accounts(None, None)
    assert empty == Accounts((), ())
    assert empty.identify("") == Identity(uid=0, gid=0, groups=(), home="/")
    assert empty.identify("5:6") == Identity(uid=5, gid=6, groups=(), home="/")


# ── hostile files ──

fields = st.one_of(
    st.sampled_from(
        [b"", b"root", b"app", b"0", b"1000", b"-1", b"4294967295", b"4294967294", b"99999999999999999999"]
    ),
    st.sampled_from(
        [b" 0", b"0x0", b"1_0", "\N{ARABIC-INDIC DIGIT THREE}".encode(), b"\xff", b"\0", b"root,app", b"#"]
    ),
    st.binary(max_size=8),
)
lines = st.lists(fields, max_size=9).map(b":".join)
files = st.lists(lines, max_size=8).map(b"\n".join) | st.binary(max_size=200)
users = st.sampled_from(["", "root", "app", "0", "1000", "root:app", "0:0", ":", "::", "1000:"]) | st.text(max_size=12)


@given(files, files, users, st.lists(users, max_size=2))
def test_hostile_files_give_ids_or_a_clear_no(passwd: bytes, group: bytes, user: str, extra: list[str]) -> None:
    known = accounts(passwd, group)
    try:
        identity = known.identify(user, extra)
    except (NotFound, ValueError):
        return
    for number in (identity.uid, identity.gid, *identity.groups):
        assert 0 <= number < (1 << 32) - 1
    assert list(identity.groups) == sorted(set(identity.groups) - {identity.gid})
    assert identity.home


@pytest.mark.parametrize("line", [b"x:x:%s:0::/:\n", b"x:x:0:%s::/:\n"])
def test_an_endless_number_is_a_line_that_is_none(line: bytes) -> None:
    hostile = line % (b"9" * 5000) + b"app:x:1000:1000::/home/app:/bin/sh\n"
    assert accounts(hostile, b"x:x:%s:\n" % (b"9" * 5000)).identify("app").uid == 1000


@pytest.mark.parametrize(
    "make",
    [
        lambda path: path.mkdir(),
        os.mkfifo,
        lambda path: path.symlink_to("/etc/passwd"),  # of the image, which has none: it is this very link
        lambda path: path.symlink_to("../../../../../../etc/shadow"),
        lambda path: path.symlink_to("/proc/self/environ"),
        lambda path: path.symlink_to("passwd"),
    ],
    ids=["directory", "pipe", "absolute", "climbing", "proc", "loop"],
)
def test_what_is_no_file_has_no_lines(tmp_path: Path, make: Callable[[Path], None]) -> None:
    (tmp_path / "etc").mkdir()
    make(tmp_path / "etc/passwd")
    assert at(tmp_path) == Accounts((), ())


def test_a_link_leads_within_the_image(tmp_path: Path) -> None:
    (tmp_path / "etc").mkdir()
    (tmp_path / "run").mkdir()
    (tmp_path / "run/passwd").write_bytes(b"inside:x:1:2::/home:/bin/sh\n")
    (tmp_path / "etc/passwd").symlink_to("/run/passwd")
    assert at(tmp_path).identify("inside").uid == 1


def test_a_file_is_read_up_to_a_limit(tmp_path: Path) -> None:
    (tmp_path / "etc").mkdir()
    with (tmp_path / "etc/passwd").open("wb") as file:
        file.write(b"first:x:1:1::/:\n")
        file.truncate(1 << 40)  # a terabyte of zeros that takes no room
    assert at(tmp_path).identify("first").uid == 1
