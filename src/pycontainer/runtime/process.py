"""One process born by a keeper: wait for it, signal it, feed it, read it. Tracked by pidfd, never by number."""

from __future__ import annotations

import errno
import os
import select
import struct
import termios
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import attrs

from pycontainer._ffi import ffi, lib, new_error, read_error
from pycontainer.errors import StartError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from pycontainer.runtime.program import Packed

__all__ = ["Exit", "Output", "Process", "Streams"]

_CHUNK = 1 << 16
_NO_LIMIT = (1 << 63) - 1
_LONGEST = 1 << 30  # milliseconds that poll(2) takes
_SIGKILL = 9
_CLD_EXITED = 1
_EXIT = struct.Struct("<iiqqq")  # PycExit of csrc/start.h

Sink = Callable[[bytes], object]


class Exit(NamedTuple):
    """How a process ended, see waitid(2).

    Attributes:
        status: its exit status, 0 when a signal ended it.
        signal: the signal that ended it, or 0.
        user_us: its CPU time in programs, microseconds, with that of the children it waited for.
        system_us: the same in the kernel.
        max_rss: its largest resident set, bytes.
    """

    status: int
    signal: int
    user_us: int
    system_us: int
    max_rss: int


class Output(NamedTuple):
    """What was read of a stream.

    Attributes:
        data: what was kept.
        dropped: bytes beyond the limit.
    """

    data: bytes
    dropped: int


@attrs.define(kw_only=True, eq=False, repr=False)
class Streams:
    """The caller's ends of a process's standard streams; closed by :meth:`Process.communicate`.

    Attributes:
        stdin: write end, or -1.
        data: what to write there before it is closed.
        outputs: read ends with the function that takes what arrives.
        relay: a descriptor whose bytes are passed on to stdin as they come (a terminal), or -1; not closed.
    """

    stdin: int = -1
    data: bytes = b""
    outputs: list[tuple[int, Sink]] = attrs.Factory(list)
    relay: int = -1

    def close(self) -> None:
        """Close what is open; safe to call again."""
        if self.stdin >= 0:
            os.close(self.stdin)
            self.stdin = -1
        while self.outputs:
            os.close(self.outputs.pop()[0])


class Process:
    """A process born by a keeper: started, or parked at a ``SYNC`` step.

    Args:
        program: the steps; its host steps run in this thread.
        keeper_socket: where the keeper takes requests.
        named: the descriptors that the program shares by name; -1 for none.

    Raises:
        StartError: a step failed; the process is gone.
    """

    __slots__ = ("_child", "_exit", "_listener", "_owner", "exit_fd", "pidfd", "terminal")

    def __init__(
        self,
        program: Packed,
        keeper_socket: int,
        named: Mapping[str, int] | None = None,
        *,
        listener: Callable[[int, int], object] | None = None,
    ) -> None:
        self._child = ffi.new("PycChild *")
        self._child.pidfd = self._child.exit_fd = self._child.tty_fd = self._child.status_fd = -1
        self._child.listener_fd = -1
        self._listener = listener
        self._exit: Exit | None = None
        self._owner = os.getpid()
        self.pidfd = self.exit_fd = self.terminal = -1
        err = new_error()
        fds = [fd if isinstance(fd, int) else (named or {})[fd] for fd in program.shared]
        code = lib.pyc_start(
            ffi.from_buffer(program.data), len(program.data), fds, len(fds), keeper_socket, self._child, err
        )
        self._take(code, err)

    def _take(self, code: int, err: Any) -> None:  # noqa: ANN401 - a cffi struct has no static type
        """Follow a start, letting Python handle signals in between, and take over what it opened."""
        while code == 0 and self._child.event in (lib.PYC_EVENT_INTERRUPTED, lib.PYC_EVENT_LISTENER):
            if self._child.event == lib.PYC_EVENT_LISTENER:
                self._hand_over_listener()
            code = lib.pyc_follow(self._child, err)
        self.pidfd = self._child.pidfd
        self.exit_fd = self._child.exit_fd
        self.terminal = self._child.tty_fd
        if code < 0:
            raise StartError(*read_error(err))

    def _hand_over_listener(self) -> None:
        """Pass the listener of its filter on, before it goes on: its next call may be one that the listener answers."""
        fd, self._child.listener_fd = self._child.listener_fd, -1
        try:
            if self._listener is not None:
                self._listener(fd, self.pid)
        except BaseException:
            self.close()
            raise
        finally:
            os.close(fd)

    @property
    def pid(self) -> int:
        """Its number in the caller's pid namespace, for people and for hooks; use :attr:`pidfd` to act on it."""
        return int(self._child.pid)

    @property
    def parked_at(self) -> int | None:
        """The number of the ``SYNC`` step at which it waits, or None when it runs its program."""
        return int(self._child.value) if self._child.event == lib.PYC_EVENT_PARKED else None

    def resume(self) -> None:
        """Let a parked process go on to its next ``SYNC`` step or to its program.

        Raises:
            StartError: a step failed; the process is gone.
        """
        err = new_error()
        self._take(lib.pyc_resume(self._child, err), err)

    def kill(self, signal: int = _SIGKILL) -> None:
        """Send a signal; to a process that has ended, nothing happens.

        Raises:
            OSError: the kernel refused.
        """
        if self._exit is None and self.pidfd >= 0 and self._owner == os.getpid():
            code = lib.pyc_kill(self.pidfd, signal)
            if code < 0 and code != -errno.ESRCH:
                raise OSError(-code, os.strerror(-code))

    def wait(self) -> Exit:
        """Wait until it has ended and the keeper has reaped it; return how it ended."""
        if self._exit is None:
            data = os.read(self.exit_fd, _EXIT.size)
            if len(data) == _EXIT.size:
                code, status, user_us, system_us, max_rss = _EXIT.unpack(data)
            else:  # the keeper was killed, and the kernel kills what it bore: make sure of it
                lib.pyc_kill(self.pidfd, _SIGKILL)
                select.select([self.pidfd], [], [])
                code, status, user_us, system_us, max_rss = 0, _SIGKILL, 0, 0, 0
            exited = code == _CLD_EXITED
            self._exit = Exit(
                status=status if exited else 0,
                signal=0 if exited else status,
                user_us=user_us,
                system_us=system_us,
                max_rss=max_rss,
            )
        return self._exit

    def resize(self, rows: int, columns: int) -> None:
        """Set the window size of its terminal, if it has one; see ioctl_tty(2)."""
        if self.terminal >= 0:
            termios.tcsetwinsize(self.terminal, (rows, columns))

    def close(self) -> None:
        """Close the descriptors; a process that still runs is killed first and waited for. Safe to call again.

        In a process forked off the one that started it, only the descriptors are closed.
        """
        child = self._child
        if self._owner == os.getpid() and self._exit is None and child.exit_fd >= 0:
            # A signal's handler may have raised in the midst of a start, which takes milliseconds: see it through.
            while child.event == lib.PYC_EVENT_INTERRUPTED:
                if lib.pyc_follow(child, new_error()) < 0:
                    break
            self.pidfd, self.exit_fd, self.terminal = child.pidfd, child.exit_fd, child.tty_fd
            if child.status_fd >= 0:  # parked
                os.close(child.status_fd)
            self.kill()
            if self.pidfd >= 0:
                self.wait()
        for fd in (self.pidfd, self.exit_fd, self.terminal, child.listener_fd):
            if fd >= 0:
                os.close(fd)
        self.pidfd = self.exit_fd = self.terminal = -1
        child.pidfd = child.exit_fd = child.tty_fd = child.status_fd = child.listener_fd = -1

    def __del__(self) -> None:
        """Never leave a process behind, even one whose owner was interrupted before it had it."""
        if hasattr(self, "exit_fd"):
            self.close()

    def collect(self, outputs: Sequence[int], limit: int | None, deadline: float | None) -> tuple[bool, list[Output]]:
        """Read up to two streams to their end and wait for the process to end; the quick way, all in one call.

        Args:
            outputs: read ends of pipes, which are closed.
            limit: bytes to keep of each.
            deadline: a ``time.monotonic()`` at which to give up.

        Returns:
            Whether it ended, and what was read. An exception, such as KeyboardInterrupt, leaves it running.
        """
        fds = ffi.new("int32_t[2]", [*outputs, -1, -1][:2])
        kept = ffi.new("PycOutput[2]")
        kept[0].limit = kept[1].limit = _NO_LIMIT if limit is None else limit
        ended = ffi.new("int32_t *")
        err = new_error()
        try:
            while True:
                left = -1 if deadline is None else min(_LONGEST, max(0, int((deadline - time.monotonic()) * 1000) + 1))
                code = lib.pyc_collect(self.pidfd, fds, kept, left, ended, err)
                if code not in (0, -errno.EINTR, -errno.ETIME):
                    step, _, number = read_error(err)
                    raise OSError(number or -code, step or "wait for the process")
                if code == 0 or (deadline is not None and time.monotonic() >= deadline):
                    break
            found = [Output(bytes(ffi.buffer(out.data, out.size)) if out.size else b"", out.dropped) for out in kept]
            return bool(ended[0]), found[: len(outputs)]
        finally:
            for fd in fds:
                if fd >= 0:
                    os.close(fd)
            for number in range(2):
                lib.pyc_free_output(kept + number)

    def communicate(self, streams: Streams, *, deadline: float | None = None) -> bool:
        """Feed and read the process until it has ended and its output is drained.

        Args:
            streams: the caller's ends.
            deadline: a ``time.monotonic()`` at which to give up.

        Returns:
            Whether it ended; False at the deadline. An exception, such as KeyboardInterrupt, leaves it running.
        """
        exchange = _Exchange(self.pidfd, streams)
        while not exchange.done:
            # Once it has ended nobody writes any more, unless a stranger holds the pipe: take what is there.
            left = None if deadline is None else max(0.0, deadline - time.monotonic()) * 1000
            if not exchange.turn(0.0 if exchange.ended else left) or (left == 0 and not exchange.ended):
                break
        return exchange.ended


class _Exchange:
    """The conversation with one process: which descriptors are watched, what is still to be written."""

    def __init__(self, pidfd: int, streams: Streams) -> None:
        self.ended = False
        self._pidfd = pidfd
        self._streams = streams
        self._poller = select.poll()
        self._poller.register(pidfd, select.POLLIN)
        self._sinks: dict[int, Sink] = dict(streams.outputs)
        for fd in self._sinks:
            os.set_blocking(fd, False)
            self._poller.register(fd, select.POLLIN)
        self._pending = memoryview(streams.data)
        if streams.relay >= 0:
            self._poller.register(streams.relay, select.POLLIN)
        if streams.stdin >= 0:
            os.set_blocking(streams.stdin, False)
            if self._pending:
                self._poller.register(streams.stdin, select.POLLOUT)
            elif streams.relay < 0:
                self._close_stdin()

    @property
    def done(self) -> bool:
        """Whether it has ended and every output is at its end."""
        return self.ended and not self._sinks

    def turn(self, timeout: float | None) -> bool:
        """Wait up to ``timeout`` milliseconds and do what can be done; return whether there was anything."""
        events = self._poller.poll(timeout)
        for fd, _ in events:
            if fd == self._pidfd:
                self.ended = True
                self._poller.unregister(fd)
            elif fd in self._sinks:
                if not _drain(fd, self._sinks[fd]):
                    del self._sinks[fd]
                    self._poller.unregister(fd)
            elif fd == self._streams.relay:
                self._relay()
            else:
                self._feed()
        return bool(events)

    def _close_stdin(self) -> None:
        os.close(self._streams.stdin)
        self._streams.stdin = -1

    def _feed(self) -> None:
        try:
            self._pending = self._pending[os.write(self._streams.stdin, self._pending[:_CHUNK]) :]
        except BlockingIOError:
            return
        except OSError:  # EPIPE, EIO: it does not read any more, which is its right
            self._pending = memoryview(b"")
            self._end_relay()
        if not self._pending:
            self._poller.unregister(self._streams.stdin)
            if self._streams.relay < 0:
                self._close_stdin()

    def _end_relay(self) -> None:
        if self._streams.relay >= 0:
            self._poller.unregister(self._streams.relay)
            self._streams.relay = -1

    def _relay(self) -> None:
        data = os.read(self._streams.relay, _CHUNK)
        if not data:
            self._end_relay()
            if not self._pending:
                self._close_stdin()
            return
        if not self._pending:
            self._poller.register(self._streams.stdin, select.POLLOUT)
        self._pending = memoryview(bytes(self._pending) + data)


def _drain(fd: int, sink: Sink) -> bool:
    """Take what can be read now; return whether more may come."""
    try:
        data = os.read(fd, _CHUNK)
    except BlockingIOError:
        return True
    except OSError as error:
        if error.errno == 5:  # noqa: PLR2004 - EIO: the last process let go of the terminal
            return False
        raise
    if data:
        sink(data)
    return bool(data)
