"""Questions to the kernel, each answered by doing the thing in a child process that leaves nothing behind.

No answer is taken from version numbers: kernels are configured, patched, and confined by security modules and by the
container in which a program may itself run.
"""

from __future__ import annotations

import contextlib
import errno
import os
import tempfile
import threading
from pathlib import Path
from typing import TYPE_CHECKING

import attrs

from pycontainer._ffi import lib, new_error, read_error
from pycontainer.runtime.cgroups import find_hierarchies

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

__all__ = ["NAMESPACES", "PROBES", "Outcome", "existing_parent", "probe"]

# clone(2)'s flags, from <linux/sched.h>; `os` has them from Python 3.12 on.
NAMESPACES: Mapping[str, int] = {
    "mount": 0x00020000,
    "pid": 0x20000000,
    "net": 0x40000000,
    "ipc": 0x08000000,
    "uts": 0x04000000,
    "cgroup": 0x02000000,
    "user": 0x10000000,
    "time": 0x00000080,
}


@attrs.frozen(kw_only=True)
class Outcome:
    """What came of trying.

    Attributes:
        available: whether it can be done here, now, by this process.
        why: what failed, on what and why; ``""`` when nothing did.
        errno: the number of the reason, or 0.
        value: what the kernel answered, for a question with an answer (``landlock``: the version of its ABI).
    """

    available: bool
    why: str = ""
    errno: int = 0
    value: int = 0

    def __bool__(self) -> bool:
        return self.available


@attrs.frozen
class _Ask:
    """What to pass to ``pyc_probe``, see csrc/probe.h.

    Attributes:
        kind: which question.
        flags: of that question.
        text: its texts, after the path in a scratch directory when there is one.
        scratch: a path in a scratch directory on the file system of the store, or None.
        cgroup: whether it needs a cgroup v2 directory.
    """

    kind: int
    flags: int = 0
    text: tuple[str, ...] = ()
    scratch: str | None = None
    cgroup: bool = False


def _overlay(*options: str, flags: int = 0) -> _Ask:
    return _Ask(lib.PYC_PROBE_OVERLAY, flags, options, scratch=".")


def _filesystem(kind: str, *namespaces: str) -> _Ask:
    return _Ask(lib.PYC_PROBE_FILESYSTEM, sum(NAMESPACES[name] for name in namespaces), (kind,))


_ASKS: dict[str, _Ask] = {
    **{f"namespace-{name}": _Ask(lib.PYC_PROBE_UNSHARE, flag) for name, flag in NAMESPACES.items()},
    "mount-proc": _filesystem("proc", "pid"),
    "mount-sysfs": _filesystem("sysfs", "net"),
    "mount-tmpfs": _filesystem("tmpfs"),
    "mount-devpts": _filesystem("devpts"),
    "mount-mqueue": _filesystem("mqueue", "ipc"),
    "mount-in-user-namespace": _filesystem("tmpfs", "user"),
    "overlay": _overlay(),
    "overlay-lowerdir+": _overlay(flags=lib.PYC_PROBE_LOWER_PLUS),
    "overlay-volatile": _overlay("volatile"),
    "overlay-metacopy": _overlay("metacopy=on"),
    "overlay-userxattr": _overlay("userxattr"),
    "overlay-idmapped-lower": _overlay(flags=lib.PYC_PROBE_LOWER_IDMAPPED),
    "idmapped-mount": _Ask(lib.PYC_PROBE_IDMAP, scratch="lower"),
    "entry-types": _Ask(lib.PYC_PROBE_ENTRY_TYPES, scratch="."),
    "erofs-file": _Ask(lib.PYC_PROBE_EROFS_FILE, scratch="zeros"),
    "clone3": _Ask(lib.PYC_PROBE_CLONE3),
    "start-in-cgroup": _Ask(lib.PYC_PROBE_CLONE3, cgroup=True),
    "device-program": _Ask(lib.PYC_PROBE_DEVICE_PROGRAM, cgroup=True),
    "pidfd": _Ask(lib.PYC_PROBE_PIDFD),
    "openat2": _Ask(lib.PYC_PROBE_OPENAT2),
    "mount-setattr": _Ask(lib.PYC_PROBE_MOUNT_SETATTR),
    "clone-detached-mount": _Ask(lib.PYC_PROBE_CLONE_DETACHED),
    "seccomp": _Ask(lib.PYC_PROBE_SECCOMP),
    "nftables": _Ask(lib.PYC_PROBE_NFTABLES),
    "raise-limit": _Ask(lib.PYC_PROBE_RAISE_LIMIT),
    "landlock": _Ask(lib.PYC_PROBE_LANDLOCK),
    "time-at-exec": _Ask(lib.PYC_PROBE_TIME_AT_EXEC),
}
_XATTR = "trusted-xattr"

PROBES: tuple[str, ...] = (*_ASKS, _XATTR)
"""The names that `probe` takes."""


def probe(name: str, root: str | os.PathLike[str] | None = None) -> Outcome:
    """Try one thing, in a child process; under a millisecond for most.

    Args:
        name: one of `PROBES`.
        root: the store, for what depends on its file system; it need not exist yet.

    Raises:
        ValueError: there is no such probe.
    """
    if name not in PROBES:
        msg = f"no probe is called {name!r}; there are: {', '.join(PROBES)}"
        raise ValueError(msg)
    ask = _ASKS.get(name)
    try:
        if ask is None or ask.scratch is not None:
            with _scratch(existing_parent(Path(root) if root is not None else Path("/var/lib"))) as scratch:
                return _try_xattr(scratch) if ask is None else _ask(ask, str(scratch / (ask.scratch or "")))
        if ask.cgroup:
            with _scratch_cgroup() as fd:
                return _ask(ask, fd=fd)
        return _ask(ask)
    except OSError as error:
        return _failed(error)


def existing_parent(path: Path) -> Path:
    """Return ``path`` or the nearest directory above it that exists, as far as this process may see."""
    path = path.absolute()
    return next(parent for parent in (path, *path.parents) if os.path.isdir(parent))  # noqa: PTH112 - Path.is_dir raises EACCES


def _ask(ask: _Ask, *paths: str, fd: int = -1) -> Outcome:
    text = b"".join(os.fsencode(part) + b"\0" for part in (*paths, *ask.text))
    err = new_error()
    result = lib.pyc_probe(ask.kind, text, len(text), ask.flags, fd, err)
    if result >= 0:
        return Outcome(available=True, value=result)
    step, path, code = read_error(err)
    return Outcome(available=False, why=f"{step}{' ' if path else ''}{path}: {os.strerror(code)}", errno=code)


def _failed(error: OSError) -> Outcome:
    where = f"{error.filename}: " if error.filename else ""
    return Outcome(available=False, why=f"{where}{error.strerror}", errno=error.errno or 0)


def _try_xattr(scratch: Path) -> Outcome:
    try:
        os.setxattr(scratch, "trusted.overlay.pycontainer", b"y")
    except OSError as error:
        return Outcome(
            available=False,
            why=f"set a trusted extended attribute in {scratch.parent}: {error.strerror}",
            errno=error.errno or 0,
        )
    return Outcome(available=True)


@contextlib.contextmanager
def _scratch(parent: Path) -> Iterator[Path]:
    """Make a directory with what probe.h wants there."""
    with tempfile.TemporaryDirectory(dir=parent, prefix=".pycontainer-probe-") as name:
        scratch = Path(name)
        for part in ("lower", "lower2", "upper", "work"):
            (scratch / part).mkdir()
        (scratch / "lower/file").touch()
        (scratch / "zeros").write_bytes(bytes(4096))
        yield scratch


@contextlib.contextmanager
def _scratch_cgroup() -> Iterator[int]:
    """Make a cgroup in the v2 hierarchy and give its descriptor."""
    unified, _ = find_hierarchies()
    if unified is None:
        raise OSError(errno.ENOENT, "cgroup v2 is not mounted")
    path = Path(unified.path, f"pycontainer-probe-{os.getpid()}-{threading.get_ident()}")
    path.mkdir()
    try:
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            yield fd
        finally:
            os.close(fd)
    finally:
        path.rmdir()
