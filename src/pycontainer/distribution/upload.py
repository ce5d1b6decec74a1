"""Send a blob to a registry: POST, PATCH and PUT, going on where a connection broke; distribution-spec "Push"."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Mapping
from typing import IO, TYPE_CHECKING, Literal
from urllib.parse import quote

import attrs

from pycontainer.distribution.wire import Answer, resolve
from pycontainer.errors import RegistryError

if TYPE_CHECKING:
    from pycontainer.distribution.remote import Remote

__all__ = ["Sent", "upload"]

Sent = Literal["exists", "mounted", "sent"]
OpenAt = Callable[[int], IO[bytes]]
Report = Callable[[int], object]

_SMALL = 1 << 20  # bytes that go with the last request
_PROGRESS = 1 << 20
_RANGE = re.compile(r"(?:bytes=)?0-(\d{1,19})")
_CREATED, _ACCEPTED, _NO_CONTENT, _NOT_FOUND, _GONE = 201, 202, 204, 404, 410
_PATIENCE = 5.0  # times the read timeout: the registry hashes and moves the blob before it answers
_BYTES = "application/octet-stream"


class _Counted:
    """A stream that tells how far it was read; never more than its share."""

    def __init__(self, stream: IO[bytes], size: int, offset: int, report: Report) -> None:
        self._stream = stream
        self._left = size
        self._offset = offset
        self._report = report

    def read(self, size: int = -1) -> bytes:
        """Return the next bytes."""
        piece = self._stream.read(self._left if size < 0 else min(size, self._left))
        self._left -= len(piece)
        self._offset += len(piece)
        self._report(self._offset)
        return piece


@attrs.define
class _Session:
    """An upload under way.

    Attributes:
        url: where the next request goes.
        offset: bytes that the registry has.
        chunk_least: bytes that a chunk must have, but the last.
    """

    url: str
    offset: int = 0
    chunk_least: int = 0


def upload(
    remote: Remote,
    digest: str,
    size: int,
    open_at: OpenAt,
    *,
    mount_from: str | None = None,
    chunk_size: int | None = None,
    progress: Report | None = None,
) -> Sent:
    """Make a blob part of a repository; nothing is sent that the registry has.

    Args:
        remote: the repository.
        digest: of the blob.
        size: in bytes.
        open_at: gives a new stream of the blob from an offset.
        mount_from: a repository of the same registry that may have it.
        chunk_size: bytes for each request; all in one by default.
        progress: is told the bytes that were sent.

    Returns:
        What was needed.

    Raises:
        RegistryError: the registry cannot be reached, refuses, or loses what was sent. The upload is cancelled then.
    """
    if remote.blob_size(digest) is not None:
        return "exists"
    job = _Upload(remote, digest, size, open_at, chunk_size, progress or (lambda _offset: None))
    return job.run(mount_from)


class _Upload:
    """One blob on its way; see :func:`upload`."""

    def __init__(
        self, remote: Remote, digest: str, size: int, open_at: OpenAt, chunk_size: int | None, report: Report
    ) -> None:
        self._remote = remote
        self._digest = digest
        self._size = size
        self._open_at = open_at
        self._chunk_size = chunk_size
        self._report = report
        self._action = f"push the blob {digest} to {remote.name}"
        self._failures = 0

    def run(self, mount_from: str | None) -> Sent:
        session = self._start(mount_from)
        while session is not None:
            try:
                if self._size > _SMALL or self._chunk_size is not None:
                    self._send(session)
                self._finish(session)
            except RegistryError as error:
                if not error.temporary or not self._another_try(error):
                    self._cancel(session)
                    raise
                # A connection that broke at the last request may have broken after it was heard.
                if self._remote.blob_size(self._digest) is not None:
                    return "sent"
                session = self._start(None)
            except BaseException:
                self._cancel(session)
                raise
            else:
                return "sent"
        return "mounted"

    def _another_try(self, error: RegistryError) -> bool:
        self._failures += 1
        if self._failures >= self._remote.wire.registries.attempts:
            return False
        self._remote.wire.wait(self._failures, error.retry_after)
        return True

    def _start(self, mount_from: str | None) -> _Session | None:
        """Begin an upload; None when the blob could be mounted instead."""
        path = "blobs/uploads/"
        sources: tuple[str, ...] = ()
        if mount_from:
            path += f"?mount={quote(self._digest)}&from={quote(mount_from, safe='')}"
            sources = (mount_from,)
        answer = self._remote.request("POST", path, action=self._action, headers={"Content-Length": "0"}, reads=sources)
        with answer:
            if answer.status == _CREATED and mount_from:
                return None
            if answer.status != _ACCEPTED:
                answer.refuse()
            least = answer.header("OCI-Chunk-Min-Length")
            session = _Session(answer.url, chunk_least=int(least) if least.isdecimal() and len(least) < 12 else 0)  # noqa: PLR2004 - digits of a sane size
            self._follow(session, answer)
            return session

    def _follow(self, session: _Session, answer: Answer) -> None:
        location = answer.header("Location")
        if location:
            session.url = resolve(answer.url, location, self._action, "the place of the upload")
        elif (
            session.url == answer.url
            and answer.status == _ACCEPTED
            and answer.url.partition("?")[0].endswith("uploads/")
        ):
            raise RegistryError(
                self._action, answer.host, "it does not say where the upload goes", status=answer.status
            )

    def _send(self, session: _Session) -> None:
        """Send all of the blob, in one or more requests."""
        while session.offset < self._size:
            before = session.offset
            try:
                self._patch(session)
            except RegistryError as error:
                if not error.temporary or not self._another_try(error):
                    raise
                self._ask_offset(session)
            if session.offset - before >= _PROGRESS:
                self._failures = 0

    def _patch(self, session: _Session) -> None:
        count = self._size - session.offset
        if self._chunk_size is not None:
            count = min(count, max(self._chunk_size, session.chunk_least))
        headers = {"Content-Type": _BYTES, "Content-Length": str(count)}
        if self._chunk_size is not None or session.offset:
            headers["Content-Range"] = f"{session.offset}-{session.offset + count - 1}"
        with self._open_at(session.offset) as stream:
            body = _Counted(stream, count, session.offset, self._report)
            answer = self._remote.send(
                "PATCH", session.url, action=self._action, headers=headers, body=body, patience=_PATIENCE
            )
        with answer:
            if answer.status == 416:  # noqa: PLR2004 - it has another offset
                raise RegistryError(self._action, answer.host, "it has other bytes than it said", temporary=True)
            self._check_known(answer)
            if answer.status not in (_ACCEPTED, _CREATED, _NO_CONTENT):
                answer.refuse()
            self._follow(session, answer)
            session.offset = self._range_end(answer, session.offset + count, session.offset + count)

    def _range_end(self, answer: Answer, default: int, most: int) -> int:
        """Return how many bytes the registry has; its Range header is that of the last byte."""
        text = answer.header("Range")
        match = _RANGE.fullmatch(text)
        if match is None:
            return default
        end = int(match[1]) + 1
        if end == 1 and default == 0:
            end = 0  # "0-0" is how registries write that there is nothing yet
        if end > most:
            raise RegistryError(self._action, answer.host, f"it says it has {end} bytes, {most} were sent")
        return end

    def _ask_offset(self, session: _Session) -> None:
        """Ask how much of it arrived; an upload that is gone begins anew."""
        answer = self._remote.send("GET", session.url, action=self._action, retry=True)
        with answer:
            if answer.status in (_NOT_FOUND, _GONE):
                fresh = self._start(None)
                assert fresh is not None  # noqa: S101 - nothing was to be mounted
                session.url, session.offset = fresh.url, 0
                return
            if answer.status not in (_NO_CONTENT, 200):
                answer.refuse()
            self._follow(session, answer)
            session.offset = self._range_end(answer, 0, self._size)

    def _finish(self, session: _Session) -> None:
        """Send what is left, with the digest."""
        count = self._size - session.offset
        url = f"{session.url}{'&' if '?' in session.url else '?'}digest={quote(self._digest)}"
        headers: Mapping[str, str] = {"Content-Type": _BYTES, "Content-Length": str(count)}
        body = b""
        if count:
            with self._open_at(session.offset) as stream:
                body = _all_of(stream, count)
            self._report(self._size)
        answer = self._remote.send("PUT", url, action=self._action, headers=headers, body=body, patience=_PATIENCE)
        with answer:
            self._check_known(answer)
            if answer.status != _CREATED:
                answer.refuse()

    def _check_known(self, answer: Answer) -> None:
        if answer.status in (_NOT_FOUND, _GONE):
            raise RegistryError(self._action, answer.host, "it has forgotten the upload", temporary=True)

    def _cancel(self, session: _Session) -> None:
        with contextlib.suppress(RegistryError):  # the registry forgets it in time
            self._remote.send("DELETE", session.url, action=self._action).close()


def _all_of(stream: IO[bytes], count: int) -> bytes:
    pieces = []
    while count and (piece := stream.read(count)):
        pieces.append(piece)
        count -= len(piece)
    return b"".join(pieces)
