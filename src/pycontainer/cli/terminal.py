"""The caller's terminal and signals while a container runs in the foreground: termios(3), signal(7)."""

from __future__ import annotations

import os
import signal
import sys
import termios
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType, TracebackType
from typing import Any, Self

from pycontainer import Running

_STREAMS = (0, 1, 2)
_CHUNK = 1 << 16
# What a program may be sent from outside. Those that stop (Ctrl-Z without a terminal of its own) stop pycontainer.
_FORWARDED = (
    signal.SIGHUP,
    signal.SIGINT,
    signal.SIGQUIT,
    signal.SIGUSR1,
    signal.SIGUSR2,
    signal.SIGALRM,
    signal.SIGTERM,
    signal.SIGCONT,
    *range(signal.SIGRTMIN, signal.SIGRTMAX + 1),
)
_INSISTENT = (signal.SIGINT, signal.SIGTERM)
_HANGUP_SECONDS = 3.0
_INSIST_TIMES, _INSIST_SECONDS = 3, 10.0


def open_standard_streams() -> None:
    """Open /dev/null where a standard stream is closed: else the next file opened would become the container's."""
    for fd in _STREAMS:
        try:
            os.fstat(fd)
        except OSError:  # EBADF; open takes the lowest free number, which is this one
            os.open("/dev/null", os.O_RDONLY if fd == 0 else os.O_WRONLY)
    if sys.stdout is None:
        sys.stdout = open(1, "w", closefd=False)  # noqa: SIM115 - a descriptor, for the whole process
    if sys.stderr is None:
        sys.stderr = open(2, "w", closefd=False)  # noqa: SIM115


def window() -> tuple[int, int] | None:
    """Return rows and columns of the caller's terminal, None without one."""
    for fd in _STREAMS:
        try:
            return termios.tcgetwinsize(fd)
        except termios.error:
            continue
    return None


class Foreground:
    """Ties the caller's terminal and signals to one container; undoes all of it at the end, whatever happens.

    Signals that come before the program runs wait for it; who insists ends pycontainer, and with it what was started.

    Args:
        tty: the container has a terminal.
        interactive: the caller's input goes to it.
        proxy: signals go to it.
    """

    def __init__(self, *, tty: bool, interactive: bool, proxy: bool = True) -> None:
        self._tty = tty
        self._interactive = interactive
        self._proxy = proxy
        self._running: Running | None = None
        self._saved: list[Any] | None = None
        self._handlers: dict[int, Any] = {}
        self._insisted: list[float] = []
        self._waiting: list[int] = []

    def __enter__(self) -> Self:
        if self._tty and self._interactive and not os.isatty(0):
            msg = "the input is not a terminal; leave out -t, or -i"
            raise ValueError(msg)
        if self._proxy:
            for number in _FORWARDED:
                self._handle(number, self._forward)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._saved is not None:
            with suppress(termios.error):  # the terminal was hung up: there is nothing to restore
                termios.tcsetattr(0, termios.TCSADRAIN, self._saved)
        self._let_go()

    def _let_go(self) -> None:
        while self._handlers:
            signal.signal(*self._handlers.popitem())

    def started(self, running: Running) -> None:
        """Take over; to be called when the program runs, in the main thread."""
        self._running = running
        while self._waiting:
            running.kill(self._waiting.pop(0))
        if self._tty:
            self._resize()
            self._handle(signal.SIGWINCH, self._resized)
            if self._interactive:
                self._saved = termios.tcgetattr(0)
                self._make_raw()

    def _make_raw(self) -> None:
        import tty  # few runs have a terminal

        tty.setraw(0, termios.TCSANOW)

    def _handle(self, number: int, handler: Callable[[int, FrameType | None], None]) -> None:
        previous = signal.getsignal(number)
        if previous is not None and previous != signal.SIG_IGN:  # as nohup(1) left it
            self._handlers[number] = previous
            signal.signal(number, handler)

    def _forward(self, number: int, _frame: FrameType | None) -> None:
        if number == signal.SIGCONT and self._saved is not None:
            with suppress(termios.error):  # SIGCONT comes with a hang-up too
                self._make_raw()  # the shell had its own modes meanwhile
            self._resize()
        if number == signal.SIGHUP and self._tty and self._interactive and not os.isatty(0):
            self._end_soon()
        insists = number in _INSISTENT and self._insists()
        if self._running is not None:
            self._running.kill(signal.SIGKILL if insists else number)
        elif insists:
            self._let_go()
            signal.raise_signal(number)
        else:
            self._waiting.append(number)

    def _end_soon(self) -> None:
        """Let a program in a terminal that was hung up end by itself, but not stay where nobody can reach it."""
        if self._running is not None:
            timer = threading.Timer(_HANGUP_SECONDS, self._running.kill)
            timer.daemon = True
            timer.start()

    def _insists(self) -> bool:
        now = time.monotonic()
        self._insisted = [*(at for at in self._insisted if now - at < _INSIST_SECONDS), now]
        return len(self._insisted) >= _INSIST_TIMES

    def _resized(self, _number: int, _frame: FrameType | None) -> None:
        self._resize()

    def _resize(self) -> None:
        size = window()
        if size is not None and self._running is not None:
            self._running.resize(*size)


def output(fd: int) -> Any:  # noqa: ANN401 - what Engine.run takes
    """Return where a stream of a container without a terminal goes: files and pipes are inherited.

    The caller's own terminal is not: whoever holds its descriptor can read what is typed.
    """
    if not os.isatty(fd):
        return "inherit"

    return lambda data: _write_all(fd, data)


def _write_all(fd: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]


@contextmanager
def typed_input() -> Iterator[Any]:
    """Give what a container without a terminal has as its input: the caller's, but never the caller's terminal."""
    if not os.isatty(0):
        yield "inherit"
        return
    theirs, ours = os.pipe2(os.O_CLOEXEC)

    def pump() -> None:
        try:
            while data := os.read(0, _CHUNK):
                _write_all(ours, data)
        except BrokenPipeError:
            return  # it does not read any more
        except OSError as error:
            sys.stderr.write(f"pycontainer: read the terminal: {error.strerror}\n")
        finally:
            os.close(ours)

    threading.Thread(target=pump, name="pycontainer-input", daemon=True).start()
    try:
        yield theirs
    finally:
        os.close(theirs)
