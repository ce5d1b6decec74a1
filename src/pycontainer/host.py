"""The image of the host's own programs: nothing is downloaded and hardly anything is copied.

It has two parts. A layer of a few hundred kilobytes holds what a root file system needs besides programs: empty
directories and an ``/etc`` made from scratch, with the public files of the host's that programs look for (where
libraries are, certificates of authorities, time zone, names of services, system users without passwords). The programs
are read-only bind mounts of the host's system directories, ``/usr`` and its kin, and, when the running interpreter
lives outside them, of its prefix (``sys.base_prefix``), whose ``bin`` comes first in ``PATH``.

Nothing personal and nothing secret is in it: no home directories, no ``/etc/shadow``, keys, machine id, no ``/opt``,
``/srv`` or ``/var`` of the host's. Whoever keeps secrets below ``/usr`` should not use it.
"""

from __future__ import annotations

import json
import os
import pwd
import stat
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from pycontainer.errors import Conflict, NotFound
from pycontainer.model import ImageConfig
from pycontainer.names import parse_reference

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pycontainer.store import Store

__all__ = ["REFERENCE", "host_image"]

REFERENCE = "host:latest"
_RECIPE = 1  # raised when the skeleton below changes, so that stores make it anew
_SYSTEM = ("usr", "bin", "sbin", "lib", "lib32", "lib64", "libx32")
_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_FILES = (
    "os-release",
    "debian_version",
    "ld.so.cache",
    "ld.so.conf",
    "localtime",
    "timezone",
    "mime.types",
    "services",
    "protocols",
    "shells",
    "magic",
    "ssl/openssl.cnf",
)
_TREES = ("ld.so.conf.d", "alternatives", "ssl/certs", "pki/tls/certs", "pki/ca-trust/extracted/pem")
_DIRECTORIES = {
    "dev": 0o755,
    "etc": 0o755,
    "home": 0o755,
    "media": 0o755,
    "mnt": 0o755,
    "opt": 0o755,
    "proc": 0o555,
    "root": 0o700,
    "run": 0o755,
    "run/lock": 0o1777,
    "srv": 0o755,
    "sys": 0o555,
    "tmp": 0o1777,
    "var": 0o755,
    "var/cache": 0o755,
    "var/lib": 0o755,
    "var/log": 0o755,
    "var/tmp": 0o1777,
}
_LINKS = {"var/run": "/run", "var/lock": "/run/lock", "etc/mtab": "../proc/self/mounts"}
_TEXTS = {
    "etc/nsswitch.conf": "passwd: files\ngroup: files\nshadow: files\nhosts: files dns\nnetworks: files\n"
    "protocols: files\nservices: files\n",
    "etc/hosts": "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n",
    "etc/hostname": "",  # these two are given to each container when it starts
    "etc/resolv.conf": "",
}
_FIRST_PERSON = 1000
_NOBODY = 65534
_MAX_FILE = 16 * 1024 * 1024


def host_image(store: Store) -> str:
    """Return the id of the host's image, made or made anew when the host changed.

    Args:
        store: where it is kept, under the name ``host:latest``.
    """
    mounts = json.dumps(_mounts())
    fingerprint = _fingerprint(mounts)
    whole = str(parse_reference(REFERENCE))
    row = store.db.by_name(whole)
    known = json.loads(store.db.meta("host") or "{}")
    if row is not None and known == {"fingerprint": fingerprint, "id": row.id}:
        return row.id
    from pycontainer.distribution.transfer import add_rootfs  # slow to import, and the image is rarely made anew

    with store.workspace() as workspace:
        root = workspace / "host"
        _build(root)
        identity = add_rootfs(store, root, _config(), references=(whole,), mounts=mounts)
    store.db.put_meta("host", json.dumps({"fingerprint": fingerprint, "id": identity}))
    _remove_former(store, identity)
    return identity


def _remove_former(store: Store, identity: str) -> None:
    """Delete host images that lost their name to a newer one, unless a container still uses them."""
    for row in store.db.images():
        if row.id != identity and row.mounts != "[]" and not row.references:
            try:
                store.remove_image(row.id)
            except (Conflict, NotFound):
                continue  # in use: the next change of the host tries again; gone: somebody else did it


def _config() -> ImageConfig:
    prefix = _python_prefix()
    path = _PATH if prefix is None else f"{prefix}/bin:{_PATH}"
    shell = next((name for name in ("/bin/bash", "/bin/sh") if os.access(name, os.X_OK)), "/bin/sh")
    return ImageConfig(
        command=(shell,),
        env={"PATH": path, "LANG": "C.UTF-8"},
        labels={"org.opencontainers.image.title": "the programs of the host"},
    )


# ── what is bound ─────────────────────────────────────────────────────────────────────────────────────────────────


def _mounts() -> list[dict[str, str]]:
    paths = [f"/{name}" for name in _SYSTEM if Path("/", name).is_dir() and not Path("/", name).is_symlink()]
    prefix = _python_prefix()
    if prefix is not None:
        paths.append(str(prefix))
    return [{"source": path, "target": path} for path in paths]


def _python_prefix() -> Path | None:
    """Return the prefix of the running interpreter when it is not among the system directories.

    One that is a home directory, or has one inside, is left out: it would show more than Python.
    """
    prefix = Path(sys.base_prefix).resolve()
    if _is_system(prefix) or not (prefix / "bin/python3").exists() or len(prefix.parts) < 3:  # noqa: PLR2004 - /x/y
        return None
    homes = [Path(user.pw_dir) for user in pwd.getpwall() if user.pw_dir.startswith("/")]
    if any(home == prefix or prefix in home.parents for home in homes):
        return None
    return prefix


def _is_system(path: Path) -> bool:
    return len(path.parts) > 1 and path.parts[1] in _SYSTEM


# ── what is made ──────────────────────────────────────────────────────────────────────────────────────────────────


def _build(root: Path) -> None:
    """Make the skeleton; its times are all zero, so that the same host gives the same image."""
    root.mkdir()
    for name in _SYSTEM:
        if Path("/", name).is_symlink():
            (root / name).symlink_to(Path("/", name).readlink())
    for mount in _mounts():
        (root / mount["target"].lstrip("/")).mkdir(parents=True, exist_ok=True)
    for name in _DIRECTORIES:
        (root / name).mkdir(exist_ok=True)
    for name, target in _LINKS.items():
        (root / name).symlink_to(target)
    for name, text in _TEXTS.items():
        (root / name).write_text(text)
    people = _passwd()
    (root / "etc/passwd").write_text(people)
    (root / "etc/group").write_text(_group({line.split(":")[0] for line in people.splitlines()}))
    for source in _sources():
        _copy_public(source, root / "etc" / source.relative_to("/etc"))
    _settle(root)


def _sources() -> Iterator[Path]:
    etc = Path("/etc")
    for name in _FILES:
        yield etc / name
    for pattern in _TREES:
        if (etc / pattern).is_dir():
            yield from sorted((etc / pattern).iterdir())
    yield from sorted(etc.glob("python3*/*.py"))


def _copy_public(source: Path, target: Path) -> None:
    """Copy one file, or point to it where the container has it too; leave out what is not for everybody."""
    real = source.resolve()
    try:
        info = real.stat()
    except OSError:
        return  # not on this host, or a link to nothing
    if target.is_symlink() or target.exists():
        return
    if _is_system(real):
        target.parent.mkdir(parents=True, exist_ok=True)
        target.symlink_to(real)
    elif stat.S_ISREG(info.st_mode) and info.st_mode & stat.S_IROTH and info.st_size <= _MAX_FILE:
        data = real.read_bytes()
        if b"PRIVATE KEY" not in data:
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(data)


def _settle(root: Path) -> None:
    for directory, names, files in os.walk(root, topdown=False):
        for name in [*names, *files]:
            path = Path(directory, name)
            if not path.is_symlink():
                path.chmod(_DIRECTORIES.get(str(path.relative_to(root)), 0o755 if path.is_dir() else 0o644))
            os.utime(path, (0, 0), follow_symlinks=False)
    root.chmod(0o755)
    os.utime(root, (0, 0))


def _lines(path: str, fields: int) -> list[list[str]]:
    try:
        text = Path(path).read_text(errors="replace")
    except FileNotFoundError:
        return []
    return [parts for line in text.splitlines() if len(parts := line.split(":")) == fields]


def _is_system_id(text: str) -> bool:
    return text.isdecimal() and (int(text) < _FIRST_PERSON or int(text) == _NOBODY)


def _passwd() -> str:
    """Return the system users: no persons, no passwords, no free text."""
    users = [["root", "*", "0", "0", "root", "/root", "/bin/sh"]]
    for name, _, uid, gid, _, home, shell in _lines("/etc/passwd", 7):
        if _is_system_id(uid) and _is_system_id(gid) and name != "root":
            users.append([name, "*", uid, gid, "", home, shell])
    return "".join(":".join(user) + "\n" for user in users)


def _group(users: set[str]) -> str:
    groups = [["root", "*", "0", ""]]
    for name, _, gid, members in _lines("/etc/group", 4):
        if _is_system_id(gid) and name != "root":
            groups.append([name, "*", gid, ",".join(member for member in members.split(",") if member in users)])
    return "".join(":".join(group) + "\n" for group in groups)


def _fingerprint(mounts: str) -> str:
    """Return a text that changes with what the skeleton is made from; a hundred lstat(2), no reading."""
    etc = Path("/etc")
    paths = [etc / name for name in (*_FILES, *_TREES, "passwd", "group", "ld.so.conf.d")]
    paths += sorted(etc.glob("python3*/*.py"))
    paths += [Path("/", name) for name in _SYSTEM]
    known: list[object] = [_RECIPE, mounts, _config().env["PATH"]]
    for path in paths:
        try:
            info = path.stat()
        except OSError:
            continue
        # Of /usr and its kin only whether they are links: what is in them is not copied.
        detail = path.is_symlink() if path.parts[1] in _SYSTEM else (info.st_mtime_ns, info.st_size, info.st_ino)
        known.append((str(path), detail))
    return repr(known)
