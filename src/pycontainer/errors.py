"""Every error that pycontainer raises on purpose.

::

    Error                      code
    ├── NotFound               not-found           no such image, container, user or file in the image
    │   └── CommandNotFound    command-not-found   (also a StartError) the program is not in the image
    ├── AlreadyExists          already-exists      the name is taken
    ├── Conflict               conflict            the object is in use or in the wrong state
    ├── InvalidReference       invalid-reference   (also a ValueError) not an image reference, digest or name
    ├── InvalidSpec            invalid-spec        (also a ValueError) not a container by the OCI runtime specification
    ├── ImageError             image               the image or archive is broken or hostile
    │   ├── DigestMismatch     digest-mismatch     content is not what its digest says
    │   └── RegistryError      registry            a registry cannot be reached, refuses, or answers nonsense
    │       ├── Unauthorized   unauthorized        it wants other credentials, or some at all
    │       └── ManifestUnknown manifest-unknown   (also a NotFound) it has no such image
    ├── StoreError             store               the store on disk cannot be used
    ├── StartError             start               a step of a container's start failed
    ├── ExitError              exit                the program ended with a failure; carries the result
    │   └── OutOfMemory        out-of-memory       the kernel killed it at its memory limit
    ├── TimeoutExpired         timeout             (also a TimeoutError) carries the result so far
    └── Unsupported            unsupported         this host or version cannot do it; says what to enable

Wrong arguments are ``TypeError`` or ``ValueError``, as everywhere in Python. ``code`` is stable: programs may rely
on it.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, ClassVar

if TYPE_CHECKING:
    from pycontainer.model import Result

__all__ = [
    "AlreadyExists",
    "CommandNotFound",
    "Conflict",
    "DigestMismatch",
    "Error",
    "ExitError",
    "ImageError",
    "InvalidReference",
    "InvalidSpec",
    "ManifestUnknown",
    "NotFound",
    "OutOfMemory",
    "RegistryError",
    "StartError",
    "StoreError",
    "TimeoutExpired",
    "Unauthorized",
    "Unsupported",
]


class Error(Exception):
    """Base of all errors of pycontainer; ``str()`` says what was tried, on what, why it failed and what to do."""

    code: ClassVar[str] = "error"


class NotFound(Error):
    """The named object does not exist."""

    code = "not-found"


class AlreadyExists(Error):
    """The name is taken by another object."""

    code = "already-exists"


class Conflict(Error):
    """The object is in use, or in a state that does not allow this."""

    code = "conflict"


class InvalidReference(Error, ValueError):
    """The text is not an image reference, a digest or a name by the grammar."""

    code = "invalid-reference"


class InvalidSpec(Error, ValueError):
    """A document breaks the OCI runtime specification.

    Args:
        path: where in the document, e.g. ``linux.devices[2].type``; ``""`` is the whole of it.
        reason: what is wrong there.
    """

    code = "invalid-spec"

    def __init__(self, path: str, reason: str) -> None:
        super().__init__(path, reason)
        self.path = path
        self.reason = reason

    def __str__(self) -> str:
        return f"read config.json: {self.path}: {self.reason}" if self.path else f"read config.json: {self.reason}"


class ImageError(Error):
    """An image, a layer or an archive is broken, unsupported or hostile."""

    code = "image"


class DigestMismatch(ImageError):
    """Content does not hash to its digest.

    Args:
        what: the content, in words.
        expected: the digest that was promised.
        actual: the digest of what is there.
    """

    code = "digest-mismatch"

    def __init__(self, what: str, expected: str, actual: str) -> None:
        super().__init__(what, expected, actual)
        self.what = what
        self.expected = expected
        self.actual = actual

    def __str__(self) -> str:
        return f"{self.what} is damaged or was tampered with: it should be {self.expected}, it is {self.actual}"


class RegistryError(ImageError):
    """A registry cannot be reached, refuses what was asked, or answers what it should not.

    Args:
        action: what was tried, on what.
        host: of the registry, or of whoever it sent us to.
        reason: why it failed.
        status: of HTTP, 0 when there was no answer.
        registry_code: the registry's own word for it, as the distribution specification lists them: ``"DENIED"``.
        hint: what to do about it, or ``""``.
        temporary: the same may succeed later.
        retry_after: seconds until then, where the registry told.
    """

    code = "registry"

    def __init__(
        self,
        action: str,
        host: str,
        reason: str,
        *,
        status: int = 0,
        registry_code: str = "",
        hint: str = "",
        temporary: bool = False,
        retry_after: float = 0.0,
    ) -> None:
        super().__init__(action, host, reason)
        self.action = action
        self.host = host
        self.reason = reason
        self.status = status
        self.registry_code = registry_code
        self.hint = hint
        self.temporary = temporary
        self.retry_after = retry_after

    def __str__(self) -> str:
        text = f"{self.action}: {self.host}: {self.reason}"
        return f"{text} ({self.hint})" if self.hint else text


class Unauthorized(RegistryError):
    """The registry wants credentials, others than were given, or ones with more rights."""

    code = "unauthorized"


class ManifestUnknown(RegistryError, NotFound):
    """The registry has no such image, tag or repository."""

    code = "manifest-unknown"


class StoreError(Error):
    """The store on disk cannot be opened, read or written."""

    code = "store"


class StartError(Error):
    """A step of the start of a container failed; nothing of it is left.

    Args:
        step: what was tried, e.g. ``"mount proc"``.
        path: on what, or ``""``.
        errno: why, an ``errno`` number; 0 when the kernel was not asked.
        hint: what to do about it, or ``""``.
    """

    code = "start"

    def __init__(self, step: str, path: str = "", errno: int = 0, hint: str = "") -> None:
        super().__init__(step, path, errno, hint)
        self.step = step
        self.path = path
        self.errno = errno
        self.hint = hint

    def __str__(self) -> str:
        text = self.step
        if self.path:
            text += f" {self.path}"
        if self.errno:
            text += f": {os.strerror(self.errno)}"
        if self.hint:
            text += f" ({self.hint})"
        return text


class CommandNotFound(StartError, NotFound):
    """The program to run is not in the image, or cannot be executed."""

    code = "command-not-found"


class ExitError(Error):
    """The program ran and failed: non-zero exit status or death by a signal.

    Args:
        result: all that is known, including the output.
    """

    code = "exit"

    def __init__(self, result: Result) -> None:
        super().__init__(result)
        self.result = result

    def __str__(self) -> str:
        result = self.result
        end = f"was killed by signal {result.signal}" if result.signal else f"exited with status {result.exit_code}"
        tail = (result.stderr or result.stdout)[-2000:].decode(errors="replace").strip()
        return f"{' '.join(result.command)!r} {end}" + (f"; its last words:\n{tail}" if tail else "")


class OutOfMemory(ExitError):
    """The kernel killed the program because the container reached its memory limit."""

    code = "out-of-memory"

    def __str__(self) -> str:
        return f"{' '.join(self.result.command)!r} was killed at its memory limit; raise Limits(memory=...)"


class TimeoutExpired(Error, TimeoutError):
    """The time was up; the whole process tree was killed.

    Args:
        timeout: the limit, in seconds.
        result: what there was until then.
    """

    code = "timeout"

    def __init__(self, timeout: float, result: Result) -> None:
        super().__init__(timeout, result)
        self.timeout = timeout
        self.result = result

    def __str__(self) -> str:
        return f"{' '.join(self.result.command)!r} was killed after {self.timeout:g} s"


class Unsupported(Error):
    """This host, or this version of pycontainer, cannot do what was asked; the text says what to enable."""

    code = "unsupported"
