"""System call filters: compiled once, remembered in memory and on disk.

Compiling takes some ten milliseconds, more than the rest of a container's start, so the start only looks programs up.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import attrs

from pycontainer.errors import StoreError
from pycontainer.records import Record
from pycontainer.runtime import seccomp_profile
from pycontainer.runtime.seccomp_profile import default_profile, load_profile

if TYPE_CHECKING:
    from collections.abc import Callable

    from pycontainer.oci.runtime import Seccomp

__all__ = ["Filter", "FilterCache", "compile_filter", "default_profile", "load_profile"]

_INSTRUCTION_SIZE = 8  # sizeof(struct sock_filter)
_MAX_INSTRUCTIONS = 4096  # BPF_MAXINSNS
# SECCOMP_FILTER_FLAG_NEW_LISTENER, and with it those that make no sense without: TSYNC_ESRCH, WAIT_KILLABLE_RECV
NEW_LISTENER = 1 << 3
LISTENER_FLAGS = NEW_LISTENER | 1 << 4 | 1 << 5


@attrs.frozen(eq=False, repr=False)
class Filter(Record):
    """A compiled filter, as ``seccomp(2)`` takes it.

    Args:
        program: an array of ``struct sock_filter`` in the byte order of this host.
        flags: ``SECCOMP_FILTER_FLAG_*`` bits.
    """

    program: bytes
    flags: int = 0

    @property
    def has_listener(self) -> bool:
        """Whether some calls are answered by a listener, see seccomp_unotify(2)."""
        return bool(self.flags & NEW_LISTENER)

    def __repr__(self) -> str:
        return f"Filter(<{len(self.program) // _INSTRUCTION_SIZE} instructions>, flags={self.flags})"


def compile_filter(seccomp: Seccomp) -> Filter:
    """Compile an OCI ``seccomp`` object.

    Names that this libseccomp does not know are left out, as are rules that say what the default says. A call newer
    than every call the profile names gets ``ENOSYS`` instead of a denying default, so that programs fall back to
    what older kernels offer. A call through an architecture that the profile does not list kills the thread.

    Args:
        seccomp: the profile (config-linux.md, "Seccomp").

    Raises:
        ValueError: an action, operator, flag or value is not one of the specification's.
        Unsupported: libseccomp is missing or too old, or the profile asks for a listener and names none.
    """
    from pycontainer.runtime.seccomp_compiler import compile_program

    return Filter(*compile_program(seccomp))


# ── remembering ───────────────────────────────────────────────────────────────────────────────────────────────────

_FORMAT = 3  # of the files, and of what this module makes of a profile: raise it when either changes
_MEMORY_LIMIT = 256

_Key = TypeVar("_Key")
_Value = TypeVar("_Value")


class FilterCache:
    """Compiled filters, looked up in memory, then on disk, then compiled.

    A file is named by the digest of the profile, the machine and the format. It holds a line of JSON (flags, checksum,
    and which libseccomp made it: version, path, size and time of the library's file) and the program. A file that is
    damaged, or made by another libseccomp, is replaced. Several threads and processes may share a directory.

    Args:
        directory: where files are kept, made when missing; None keeps filters in memory only.
    """

    def __init__(self, directory: Path | None) -> None:
        self.directory = directory
        # By identity, because to hash a profile costs more than all else; the profile is kept so that its id stays its.
        self._profiles: dict[int, tuple[Seccomp, Filter]] = {}
        self._defaults: dict[frozenset[str], Filter] = {}
        self._keys: dict[str, Filter] = {}

    def get(self, seccomp: Seccomp) -> Filter:
        """Return the compiled form of a profile.

        Args:
            seccomp: the profile; while it is the same object, it is found in well under a microsecond.

        Raises:
            ValueError: the profile is wrong, see `compile_filter`.
            Unsupported: libseccomp is needed and missing, see `compile_filter`.
            StoreError: the directory cannot be read or written.
        """
        found = self._profiles.get(id(seccomp))
        if found is not None:
            return found[1]
        text = json.dumps(attrs.asdict(seccomp), sort_keys=True, separators=(",", ":"))
        result = self._find("profile", text, lambda: seccomp)
        _remember(self._profiles, id(seccomp), (seccomp, result))
        return result

    def default_filter(self, capabilities: frozenset[str]) -> Filter:
        """Return the compiled default profile for a container with these capabilities.

        The profile itself is only built when it must be compiled.

        Args:
            capabilities: the bounding set, names as in `capabilities.NAMES`.

        Raises:
            Unsupported: libseccomp is needed and missing, see `compile_filter`.
            StoreError: the directory cannot be read or written.
        """
        found = self._defaults.get(capabilities)
        if found is not None:
            return found
        relevant = sorted(capabilities & seccomp_profile.RELEVANT_CAPABILITIES)
        text = json.dumps([seccomp_profile.fingerprint(), seccomp_profile.host_kernel(), relevant])
        result = self._find("default", text, lambda: default_profile(capabilities))
        _remember(self._defaults, capabilities, result)
        return result

    def _find(self, kind: str, text: str, make: Callable[[], Seccomp]) -> Filter:
        """Look a profile up by its content, and compile what is not there."""
        key = hashlib.sha256(json.dumps([_FORMAT, kind, os.uname().machine, text]).encode()).hexdigest()
        result = self._keys.get(key)
        if result is None:
            path = None if self.directory is None else self.directory / f"{key}.bpf"
            result = None if path is None else _read(path, key)
            if result is None:
                result = compile_filter(make())
                library = None if path is None else _loaded_library()
                if path is not None and library is not None:
                    _write(path, _encode(result, key, library))
            _remember(self._keys, key, result)
        return result


def _remember(known: dict[_Key, _Value], key: _Key, value: _Value) -> None:
    """Add an entry; too many are more likely a stream of new profiles than ones to come again, and are all dropped."""
    if len(known) >= _MEMORY_LIMIT:
        known.clear()
    known[key] = value


def _read(path: Path, key: str) -> Filter | None:
    try:
        return _decode(path.read_bytes(), key)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise StoreError(f"cannot read the compiled seccomp filter {path}: {error.strerror}") from error


def _digest(program: bytes, flags: int, key: str) -> str:
    return hashlib.sha256(f"{key} {flags} ".encode() + program).hexdigest()


def _encode(compiled: Filter, key: str, library: dict[str, Any]) -> bytes:
    head = {
        "flags": compiled.flags,
        "library": library,
        "sha256": _digest(compiled.program, compiled.flags, key),
    }
    return json.dumps(head).encode() + b"\n" + compiled.program


def _decode(data: bytes, key: str) -> Filter | None:
    """Return the filter in a file, or None when it is damaged or another libseccomp made it."""
    head, _, program = data.partition(b"\n")
    try:
        fields = json.loads(head)
        flags, library, digest = fields["flags"], fields["library"], fields["sha256"]
        path, state = library["path"], library["state"]
    except (ValueError, KeyError, TypeError):
        return None
    if not program or len(program) % _INSTRUCTION_SIZE or len(program) // _INSTRUCTION_SIZE > _MAX_INSTRUCTIONS:
        return None
    if digest != _digest(program, flags, key) or _file_state(path) != state:
        return None
    return Filter(program, flags)


def _write(path: Path, data: bytes) -> None:
    """Put a file in place at once. It is not synced: a torn one is found out by its checksum and made again."""
    import tempfile  # slow to import, and rarely needed

    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        fd, temporary = tempfile.mkstemp(prefix=".", suffix=".tmp", dir=path.parent)
        try:
            with os.fdopen(fd, "wb") as file:
                file.write(data)
            Path(temporary).replace(path)
        except BaseException:
            Path(temporary).unlink()
            raise
    except OSError as error:
        raise StoreError(f"cannot keep the compiled seccomp filter {path}: {error.strerror}") from error


def _file_state(path: str) -> list[int] | None:
    """Return what tells one version of a file from another without reading it."""
    try:
        status = os.stat(path)  # noqa: PTH116 - a Path would cost more than the call
    except FileNotFoundError:
        return None
    return [status.st_ino, status.st_size, status.st_mtime_ns]


@functools.cache
def _loaded_library() -> dict[str, Any] | None:
    """Return which libseccomp this process compiles with, for the head of a file; None when that cannot be told.

    Its version would be in ``seccomp_version(3)``, but to ask, a process must load it, which a hit shall not need.
    """
    from pycontainer.runtime.seccomp_compiler import library_path

    path = library_path()
    state = None if path is None else _file_state(path)
    return None if state is None else {"path": path, "state": state}
