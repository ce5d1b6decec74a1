"""A blob that comes from a registry: a stream that survives cuts, by asking for the rest (RFC 9110, section 14)."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Self

from pycontainer.errors import RegistryError

if TYPE_CHECKING:
    from pycontainer.distribution.wire import Answer, Wire

__all__ = ["RemoteBlob"]

_PIECE = 1 << 18
_PROGRESS = 1 << 20  # bytes after which the attempts are counted anew
_RANGE = re.compile(r"bytes (\d{1,19})-(\d{1,19})/(\d{1,19}|\*)")
_OK, _PARTIAL = 200, 206
_SLOW_SECONDS, _SLOW_BYTES = 30.0, 30 << 10  # less than this in that time is no connection

Open = Callable[[Mapping[str, str]], "Answer"]


class RemoteBlob:
    """The bytes of a blob, from an offset to its end, once. A context manager.

    A connection that breaks, stalls or crawls is replaced, and goes on where it was. The content is not verified: who
    reads it knows the digest.

    Args:
        wire: for the pauses between attempts.
        open_at: sends the request with the headers given, authorized, whatever the status of the answer.
        size: of the whole blob, as its descriptor promises; never more is read.
        offset: of the first byte wanted.
        action: what this is, for messages.
    """

    def __init__(self, wire: Wire, open_at: Open, size: int, *, offset: int = 0, action: str) -> None:
        self._wire = wire
        self._open = open_at
        self._size = size
        self._action = action
        self._answer: Answer | None = None
        self._validator = ""
        self._failures = 0
        self._counted = offset  # where the failures were last counted from
        self._window = (0.0, offset)
        self.offset = offset

    def read(self, size: int = _PIECE) -> bytes:
        """Return the next bytes as they come, ``b""`` at the end of the blob.

        Raises:
            RegistryError: the blob is not to be had, or not of the size that was promised.
        """
        while True:
            try:
                if self._answer is None:
                    if self.offset >= self._size:
                        return b""
                    self._answer = self._connect()
                piece = self._next(self._answer, size)
            except RegistryError as error:
                self.close()
                self._count(error)
                continue
            self.offset += len(piece)
            if not piece:
                self.close()
            return piece

    def _next(self, answer: Answer, size: int) -> bytes:
        began = time.monotonic()
        piece = answer.read(size)
        left = self._size - self.offset
        if len(piece) > left:
            reason = f"the blob is longer than the {self._size} bytes that its descriptor promises"
            raise RegistryError(self._action, answer.host, reason)
        if not piece and left:
            raise RegistryError(self._action, answer.host, f"the blob ends {left} bytes early", temporary=True)
        # Only the time spent here counts: the reader may be slow itself.
        spent, since = self._window[0] + time.monotonic() - began, self._window[1]
        if spent > _SLOW_SECONDS:
            if piece and self.offset + len(piece) - since < _SLOW_BYTES:
                reason = f"less than {_SLOW_BYTES} bytes within {_SLOW_SECONDS:g} s"
                raise RegistryError(self._action, answer.host, reason, temporary=True)
            spent, since = 0.0, self.offset + len(piece)
        self._window = (spent, since)
        return piece

    def _count(self, error: RegistryError) -> None:
        """Wait for the next attempt; raise the error when there were enough."""
        if self.offset - self._counted >= _PROGRESS:
            self._failures, self._counted = 0, self.offset
        self._failures += 1
        if not error.temporary or self._failures >= self._wire.registries.attempts:
            raise error
        self._wire.wait(self._failures, error.retry_after)
        self._window = (0.0, self.offset)

    def _connect(self) -> Answer:
        headers = {}
        if self.offset:
            headers["Range"] = f"bytes={self.offset}-"
            if self._validator:
                headers["If-Range"] = self._validator
        answer = self._open(headers)
        try:
            if answer.status not in (_OK, _PARTIAL):
                answer.refuse()
            start = self._start(answer)
            etag = answer.header("ETag")
            self._validator = etag if etag.startswith('"') else ""  # If-Range takes no weak ones
            self._skip(answer, self.offset - start)
        except BaseException:
            answer.close()
            raise
        return answer

    def _start(self, answer: Answer) -> int:
        """Return the offset of the first byte of an answer."""
        if answer.status == _OK:
            length = answer.header("Content-Length")
            if length.isdecimal() and length != str(self._size):
                reason = f"the blob has {length[:20]} bytes, its descriptor promises {self._size}"
                raise RegistryError(self._action, answer.host, reason)
            return 0
        match = _RANGE.fullmatch(answer.header("Content-Range"))
        if match is None or int(match[1]) != self.offset or match[3] not in ("*", str(self._size)):
            said = answer.header("Content-Range")[:64]
            reason = f"asked for the bytes from {self.offset} of {self._size}, it sends {said!r}"
            raise RegistryError(self._action, answer.host, reason)
        return self.offset

    def _skip(self, answer: Answer, count: int) -> None:
        while count > 0:
            piece = answer.read(min(count, _PIECE))
            if not piece:
                raise RegistryError(self._action, answer.host, "the blob ends early", temporary=True)
            count -= len(piece)

    def close(self) -> None:
        """Let go of the connection; a later read makes a new one."""
        answer, self._answer = self._answer, None
        if answer is not None:
            answer.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.close()
