"""What a directory tree is made of, as values to compare; and a small tree that has a bit of everything."""

from __future__ import annotations

import hashlib
import os
import shutil
import stat
from pathlib import Path

__all__ = ["describe", "write_sample"]


def describe(root: Path, *, whole_seconds: bool = True, root_too: bool = True) -> dict[str, tuple[object, ...]]:
    """Return type, mode, owner, time, attributes, content and link partners of everything below a directory.

    Args:
        root: the directory.
        whole_seconds: leave out what is below a second.
        root_too: describe the directory itself as well.
    """
    found: dict[str, tuple[object, ...]] = {}
    partners: dict[tuple[int, int], str] = {}
    paths = sorted(Path(directory, name) for directory, names, files in os.walk(root) for name in [*names, *files])
    for path in [root, *paths] if root_too else paths:
        info = path.lstat()
        kind = stat.S_IFMT(info.st_mode)
        content: object = None
        if kind == stat.S_IFREG:
            content = hashlib.sha256(path.read_bytes()).hexdigest()
        elif kind == stat.S_IFLNK:
            content = str(path.readlink())
        elif kind in (stat.S_IFCHR, stat.S_IFBLK):
            content = info.st_rdev
        name = str(path.relative_to(root))
        first = partners.setdefault((info.st_dev, info.st_ino), name) if kind != stat.S_IFDIR else name
        attributes = {
            key: os.getxattr(path, key, follow_symlinks=False)
            for key in os.listxattr(path, follow_symlinks=False)
            if not key.startswith("trusted.overlay.") and key != "security.selinux"
        }
        time = info.st_mtime_ns // 10**9 if whole_seconds else info.st_mtime_ns
        found[name] = (oct(info.st_mode), info.st_uid, info.st_gid, time, attributes, content, first)
    return found


# cap_net_bind_service+ep, version 2: see struct vfs_cap_data in linux/capability.h
CAPABILITY = bytes.fromhex("0100000200040000000000000000000000000000")


def write_sample(root: Path, busybox: Path) -> None:
    """Fill an empty directory with a small root file system that has a bit of everything a layer can hold."""
    for name in ("bin", "etc", "home/app", "tmp", "var/empty", "usr/share/doc", "dev"):
        (root / name).mkdir(parents=True)
    shutil.copy2(busybox, root / "bin/busybox")
    for name in ("sh", "ls", "cat", "true"):
        (root / "bin" / name).symlink_to("busybox")
    (root / "etc/passwd").write_text("root:x:0:0:root:/root:/bin/sh\napp:x:1000:1000::/home/app:/bin/sh\n")
    os.link(root / "etc/passwd", root / "etc/passwd.same")
    (root / "home/app/naïve ñ ☃.txt").write_text("unicode")
    os.chown(root / "home/app", 1000, 1000)
    os.chown(root / "home/app/naïve ñ ☃.txt", 1000, 3_000_000)
    (root / "tmp").chmod(0o1777)
    (root / "var/empty").chmod(0o711)
    (root / ("usr/share/doc/" + "long-" * 30)).write_text("a name of 150 characters")
    (root / "usr/share/doc/link").symlink_to("x" * 200)
    with (root / "sparse").open("wb") as file:
        file.seek(3 << 20)
        file.write(b"an island")
        file.truncate(8 << 20)
    (root / "bin/server").write_bytes(b"#!/bin/sh\n")
    (root / "bin/server").chmod(0o755)
    os.setxattr(root / "bin/server", "security.capability", CAPABILITY)
    (root / "bin/setuid").write_bytes(b"#!/bin/sh\n")
    (root / "bin/setuid").chmod(0o4755)
    os.mkfifo(root / "dev/fifo")
    os.mknod(root / "dev/null", 0o666 | stat.S_IFCHR, os.makedev(1, 3))
    (root / "dev/null").chmod(0o666)
    for number, path in enumerate(sorted(root.rglob("*"), reverse=True)):
        os.utime(path, (10**9 + number, 10**9 + number), follow_symlinks=False)
