"""Who a container's process is: user and group names looked up in the image's own /etc/passwd and /etc/group.

The files are hostile: they are opened inside the image's root, read up to a limit, and lines that are none are skipped.
See passwd(5), group(5) and docker's rules for ``--user``.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, NamedTuple

import attrs

from pycontainer._ffi import lib, new_error
from pycontainer.errors import NotFound
from pycontainer.records import Record

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

__all__ = ["Accounts", "Identity", "read_accounts"]

_LIMIT = 16 << 20
_MAX_ID = (1 << 32) - 2
_DIGITS = 10  # as many as the largest id has


class _User(NamedTuple):
    name: str
    uid: int
    gid: int
    home: str


class _Group(NamedTuple):
    name: str
    gid: int
    members: tuple[str, ...]


class Identity(NamedTuple):
    """The numbers that a process gets.

    Attributes:
        uid: user id.
        gid: group id.
        groups: supplementary group ids, sorted.
        home: home directory.
    """

    uid: int
    gid: int
    groups: tuple[int, ...]
    home: str


@attrs.frozen(eq=False, repr=False)
class Accounts(Record):
    """The users and groups of an image."""

    users: tuple[_User, ...]
    groups: tuple[_Group, ...]

    def identify(self, user: str, extra_groups: Sequence[str] = ()) -> Identity:
        """Return the ids for ``user``.

        Args:
            user: ``""`` (root), ``name``, ``uid``, and either with ``:group`` or ``:gid``. Without a group the user's
                own supplementary groups count, as in docker.
            extra_groups: more groups, names or numbers.

        Raises:
            NotFound: a name is in neither file.
            ValueError: a number is out of range.
        """
        name, _, group = user.partition(":")
        found = self._find_user(name or "0")
        if found is None:
            uid, gid, home = _number(name, "user", "/etc/passwd"), 0, "/"
        else:
            uid, gid, home = found.uid, found.gid, found.home
        groups: set[int] = set()
        if group:
            gid = self._find_group(group)
        elif found is not None:
            groups.update(g.gid for g in self.groups if found.name in g.members)
        groups.update(self._find_group(extra) for extra in extra_groups)
        groups.discard(gid)
        return Identity(uid=uid, gid=gid, groups=tuple(sorted(groups)), home=home or "/")

    def _find_user(self, name: str) -> _User | None:
        for user in self.users:
            if user.name == name or (
                name.isascii() and name.isdecimal() and len(name) <= _DIGITS and user.uid == int(name)
            ):
                return user
        return None

    def _find_group(self, name: str) -> int:
        for group in self.groups:
            if group.name == name:
                return group.gid
        return _number(name, "group", "/etc/group")


def _number(text: str, kind: str, file: str) -> int:
    if not text:
        return 0
    if not (text.isascii() and text.isdecimal()):
        msg = f"no such {kind} {text!r} in the image's {file}; give a number, or a name that is there"
        raise NotFound(msg)
    number = int(text) if len(text) <= _DIGITS else _MAX_ID + 1
    if number > _MAX_ID:
        msg = f"{kind} id out of range: {text[:20]}"
        raise ValueError(msg)
    return number


def _lines(root_fd: int, path: str) -> Iterable[list[str]]:
    fd = lib.pyc_open_in_root(root_fd, path.encode(), os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY, new_error())
    if fd < 0:
        return
    try:
        data = b""
        while len(data) < _LIMIT:
            chunk = os.read(fd, 1 << 16)
            if not chunk:
                break
            data += chunk
    except OSError:  # a directory or a device: not a file of accounts
        return
    finally:
        os.close(fd)
    for line in data.decode(errors="surrogateescape").split("\n"):
        if line and not line.startswith("#"):
            yield line.split(":")


def _id(text: str) -> int | None:
    if not (text.isascii() and text.isdecimal() and len(text) <= _DIGITS):
        return None
    return int(text) if int(text) <= _MAX_ID else None


def read_accounts(root_fd: int) -> Accounts:
    """Read the users and groups of the image whose root directory is open as ``root_fd``."""
    users, groups = [], []
    for fields in _lines(root_fd, "etc/passwd"):
        if len(fields) >= 6:  # noqa: PLR2004 - name:password:uid:gid:gecos:home[:shell]
            uid, gid = _id(fields[2]), _id(fields[3])
            if uid is not None and gid is not None:
                users.append(_User(fields[0], uid, gid, fields[5]))
    for fields in _lines(root_fd, "etc/group"):
        if len(fields) >= 4:  # noqa: PLR2004 - name:password:gid:members
            gid = _id(fields[2])
            if gid is not None:
                groups.append(_Group(fields[0], gid, tuple(m for m in fields[3].split(",") if m)))
    return Accounts(tuple(users), tuple(groups))
