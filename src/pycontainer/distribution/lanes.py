"""Give one stream to several consumers at the same time, each in a thread of its own, with bounded memory.

An interrupt may come in the middle of any line, also of the standard library's. Therefore the queues are of the kind
that is written in C: one of :class:`queue.Queue` may be left so that its reader waits for ever.
"""

from __future__ import annotations

import queue
import threading
from typing import IO, TYPE_CHECKING, Any, Generic, TypeVar, cast

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Abandoned", "Lane", "feed"]

_CHUNK = 1 << 20  # small pieces are gathered
_DEPTH = 4  # chunks that wait for a consumer
_T = TypeVar("_T")


class Abandoned(Exception):
    """The producer failed; its own exception is the one to see."""


class _Stream:
    """What a consumer reads from: at most as much as it asks for."""

    def __init__(self) -> None:
        self.chunks: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        self.room: queue.SimpleQueue[None] = queue.SimpleQueue()
        for _ in range(_DEPTH):
            self.room.put(None)
        self._rest = memoryview(b"")
        self.ended = False
        self.abandoned = False

    def read(self, size: int) -> bytes:
        while not self._rest and not self.ended:
            chunk = self._next()
            if chunk is None:
                if self.abandoned:
                    msg = "there is no more to read: the producer failed"
                    raise Abandoned(msg)
                break
            self._rest = memoryview(chunk)
        piece, self._rest = self._rest[:size], self._rest[size:]
        return bytes(piece)

    def _next(self) -> bytes | None:
        chunk = self.chunks.get()
        self.room.put(None)
        self.ended = chunk is None
        return chunk

    def drain(self) -> None:
        while not self.ended:
            self._next()


class Lane(Generic[_T]):
    """A consumer: reads a binary stream to its end and returns something.

    Args:
        consume: is called in a new thread with the stream, when :func:`feed` begins.
    """

    def __init__(self, consume: Callable[[IO[bytes]], _T]) -> None:
        self._stream = _Stream()
        self._consume = consume
        self._result: _T | None = None
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="pycontainer-lane", daemon=True)

    def start(self) -> None:
        """Start the consumer."""
        self._thread.start()

    def _run(self) -> None:
        try:
            self._result = self._consume(cast("IO[bytes]", self._stream))
        except BaseException as error:  # noqa: BLE001 - the caller of result() gets it
            self._error = error
        self._stream.drain()  # so that the producer never waits for a consumer that is gone

    def put(self, chunk: bytes) -> None:
        """Hand over the next bytes; waits while the consumer is behind.

        Raises:
            BaseException: what the consumer failed with: there is no use in producing more.
        """
        if self._error is not None:
            raise self._error
        self._stream.room.get()
        self._stream.chunks.put(chunk)

    def end(self, *, abandoned: bool = False) -> None:
        """Say that there is no more, and wait for the consumer; a second call does no harm."""
        self._stream.abandoned = abandoned
        self._stream.chunks.put(None)
        if self._thread.ident is not None:  # it was started
            self._thread.join()

    def result(self) -> _T:
        """Return what the consumer returned, after :meth:`end`; raise what it raised."""
        if self._error is not None:
            raise self._error
        return cast("_T", self._result)


def feed(produce: Callable[[Callable[[bytes], object]], object], *lanes: Lane[Any]) -> None:
    """Run a producer in this thread and give what it writes to all lanes, until the last of them is done.

    Args:
        produce: is called with the function that takes the bytes.
        lanes: the consumers.

    Raises:
        BaseException: what the producer or a consumer failed with.
    """
    pieces: list[bytes] = []
    pending = 0

    def write(piece: bytes) -> None:
        nonlocal pending
        pieces.append(piece)
        pending += len(piece)
        if pending >= _CHUNK:
            flush()

    def flush() -> None:
        nonlocal pending
        chunk = b"".join(pieces)
        pieces.clear()
        pending = 0
        for lane in lanes:
            lane.put(chunk)

    try:
        for lane in lanes:
            lane.start()
        produce(write)
        flush()
        for lane in lanes:
            lane.end()
    except BaseException:
        for lane in lanes:
            lane.end(abandoned=True)
        raise
