"""Real root file systems for tests, benchmarks and the demo: a busybox tree and a Debian made by mmdebstrap.

Each is built once, under a lock, into ``${XDG_CACHE_HOME:-~/.cache}/pycontainer-tests/`` and named by a key of all that
went into it, so that a changed recipe builds anew. Delete the directory to start over.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

__all__ = ["CannotBuild", "busybox_tree", "cache_directory", "debian_tar", "host_suite", "key_of", "once"]

USERS = """\
root:x:0:0:root:/root:/bin/sh
daemon:x:1:1:daemon:/usr/sbin:/bin/false
app:x:1000:1000:Application:/home/app:/bin/sh
nobody:x:65534:65534:nobody:/nonexistent:/bin/false
"""
GROUPS = """\
root:x:0:
daemon:x:1:
audio:x:29:app
app:x:1000:
staff:x:50:app,daemon
nogroup:x:65534:
"""
# Translations, manuals and package lists are most of the files of a small Debian and nothing of what it does.
LEAN = (
    '--aptopt=APT::Install-Recommends "false"',
    '--aptopt=Acquire::Languages "none"',
    "--dpkgopt=path-exclude=/usr/share/doc/*",
    "--dpkgopt=path-exclude=/usr/share/man/*",
    "--dpkgopt=path-exclude=/usr/share/locale/*",
)


class CannotBuild(Exception):
    """A tool or the package archive is missing; the text says which and why."""


def cache_directory() -> Path:
    """Return the directory of what is built once, made if needed."""
    base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    path = base / "pycontainer-tests"
    path.mkdir(parents=True, exist_ok=True)
    return path


def host_suite() -> str:
    """Return the code name of the Debian release this host runs; Debian 12's elsewhere.

    See os-release(5).
    """
    release = platform.freedesktop_os_release()
    return release.get("VERSION_CODENAME", "bookworm") if release.get("ID") == "debian" else "bookworm"


def busybox_tree() -> Path:
    """Return a root directory with static busybox, all its applets, and a user ``app`` in additional groups.

    Raises:
        CannotBuild: there is no static busybox.
    """
    busybox = shutil.which("busybox")
    if busybox is None:
        msg = "busybox is not installed; as root: apt-get install busybox-static"
        raise CannotBuild(msg)
    program = Path(busybox).read_bytes()
    if b"/ld-linux" in program or b"/ld-musl" in program:
        msg = f"{busybox} is not static; as root: apt-get install busybox-static"
        raise CannotBuild(msg)
    key = key_of(hashlib.sha256(program).hexdigest(), USERS, GROUPS, "1")
    return once(f"busybox-{key}", lambda target: _fill_busybox(target, busybox))


def debian_tar(*, suite: str | None = None, include: Sequence[str] = ("python3",)) -> Path:
    """Return a tar of the root of a minimal Debian; about 40 s the first time, nothing after that.

    Args:
        suite: code name of the release; the host's when not given.
        include: packages beyond the essential ones and apt.

    Raises:
        CannotBuild: mmdebstrap is missing or failed; the text holds its last words.
    """
    suite = suite or host_suite()
    tool = shutil.which("mmdebstrap")
    command = [tool or "mmdebstrap", "--quiet", "--variant=minbase", "--format=tar", *LEAN]
    command += [f"--include={','.join(include)}"] if include else []
    key = key_of(suite, platform.machine(), *command[1:])
    cached = cache_directory() / f"debian-{suite}-{key}.tar"
    if tool is None and not cached.exists():
        msg = "mmdebstrap is not installed; as root: apt-get install mmdebstrap"
        raise CannotBuild(msg)

    def build(target: Path) -> None:
        done = subprocess.run(
            [*command, suite, str(target)], stdin=subprocess.DEVNULL, capture_output=True, check=False
        )
        if done.returncode != 0:
            last_words = done.stderr.decode(errors="replace").strip().splitlines()[-3:]
            msg = f"mmdebstrap could not make {suite}: {' | '.join(last_words)}"
            raise CannotBuild(msg)

    return once(cached.name, build)


def key_of(*parts: str) -> str:
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:12]


def once(name: str, build: Callable[[Path], None]) -> Path:
    """Return the entry ``name`` of the cache, built by ``build`` into a new path when it is not there."""
    target = cache_directory() / name
    with _lock(name):
        if not target.exists():
            with tempfile.TemporaryDirectory(dir=target.parent, prefix=".building-") as scratch:
                part = Path(scratch) / name
                build(part)
                part.rename(target)
    return target


@contextlib.contextmanager
def _lock(name: str) -> Iterator[None]:
    with (cache_directory() / f".{name}.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _fill_busybox(root: Path, busybox: str) -> None:
    for name in ("bin", "dev", "etc", "home/app", "proc", "root", "run", "sys", "tmp", "usr/bin", "var/tmp"):
        (root / name).mkdir(parents=True)
    for directory in (root, *root.rglob("*")):
        directory.chmod(0o755)
    for shared in ("tmp", "var/tmp"):
        (root / shared).chmod(0o1777)
    (root / "root").chmod(0o700)
    shutil.copy(busybox, root / "bin/busybox")
    (root / "bin/busybox").chmod(0o755)
    applets = subprocess.run([busybox, "--list"], capture_output=True, check=True, text=True).stdout.split()
    for applet in applets:
        if applet != "busybox":
            (root / "bin" / applet).symlink_to("busybox")
    (root / "usr/bin/env").symlink_to("/bin/busybox")
    for name, text in {"passwd": USERS, "group": GROUPS, "os-release": "ID=busybox\nNAME=BusyBox\n"}.items():
        (root / "etc" / name).write_text(text)
        (root / "etc" / name).chmod(0o644)
    if os.geteuid() == 0:
        os.chown(root / "home/app", 1000, 1000)
