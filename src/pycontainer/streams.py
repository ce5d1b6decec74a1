"""Where the streams of a run come from and go to: pipes, files, functions, a terminal."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import IO, TYPE_CHECKING, Any, Literal, TypeAlias

import attrs

from pycontainer.runtime.process import Streams

if TYPE_CHECKING:
    from pycontainer.runtime.process import Process

__all__ = ["Attachment", "Input", "Output"]

Input: TypeAlias = Literal["none", "inherit"] | int | IO[Any]
Output: TypeAlias = Literal["capture", "inherit", "discard"] | int | IO[Any] | Callable[[bytes], object]


@attrs.define(kw_only=True, eq=False, repr=False)
class Attachment:
    """Where the streams of a run go."""

    stdin: Input = "none"
    data: bytes | None = None
    stdout: Output = "capture"
    stderr: Output = "capture"
    output_limit: int | None = None
    tty: bool = False

    _child_fds: list[int] = attrs.field(factory=list, init=False)
    _captured: dict[str, list[bytes]] = attrs.field(factory=dict, init=False)
    _streams: Streams = attrs.field(factory=Streams, init=False)
    _dropped: int = attrs.field(default=0, init=False)
    _ended: int = attrs.field(default=-1, init=False)

    def open(self, *, init: bool = False) -> dict[str, int]:
        """Make the pipes; return the descriptors for the child by name, -1 for none.

        Args:
            init: make the pipe by which an init tells how its program ended.
        """
        named = self._open_streams()
        if init:
            self._ended, named["ended"] = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
            self._child_fds.append(named["ended"])
        return named

    def _open_streams(self) -> dict[str, int]:
        if self.tty:
            self._streams.data = (self.data + b"\x04") if self.data is not None else b""
            return {"stdin": -1, "stdout": -1, "stderr": -1}
        return {
            "stdin": self._open_stdin(),
            "stdout": self._open_output("stdout", 1),
            "stderr": self._open_output("stderr", 2),
        }

    def _open_stdin(self) -> int:
        if self.data is not None:
            theirs, ours = os.pipe2(os.O_CLOEXEC)
            self._child_fds.append(theirs)
            self._streams.stdin = ours
            self._streams.data = self.data
            return theirs
        if self.stdin == "inherit":
            return 0
        if self.stdin == "none":
            return -1
        return self.stdin if isinstance(self.stdin, int) else self.stdin.fileno()

    def _open_output(self, name: str, number: int) -> int:
        target: Output = getattr(self, name)
        if target == "inherit":
            return number
        if target == "discard":
            return -1
        if target == "capture" or callable(target):
            ours, theirs = os.pipe2(os.O_CLOEXEC)
            self._child_fds.append(theirs)
            self._streams.outputs.append((ours, self._sink(name, target)))
            return theirs
        if isinstance(target, int):
            return target
        if hasattr(target, "fileno"):
            return int(target.fileno())
        msg = f"{name} is 'capture', 'inherit', 'discard', a file, a descriptor or a function, not {target!r}"
        raise ValueError(msg)

    def _sink(self, name: str, target: Output) -> Callable[[bytes], object]:
        if callable(target):
            return target
        parts = self._captured.setdefault(name, [])
        left = self.output_limit

        def keep(data: bytes) -> None:
            nonlocal left
            if left is not None:
                self._dropped += max(0, len(data) - left)
                data = data[:left]
                left -= len(data)
            if data:
                parts.append(data)

        return keep

    def started(self, process: Process) -> None:
        """Close the child's ends; open ours of a terminal."""
        self._close_child_fds()
        if self.tty:
            fd = os.dup(process.terminal)
            if self.stdin == "inherit":
                self._streams.relay = 0
            elif not isinstance(self.stdin, str):
                self._streams.relay = self.stdin if isinstance(self.stdin, int) else self.stdin.fileno()
            if self._streams.relay >= 0 or self._streams.data:
                self._streams.stdin = os.dup(process.terminal)
            self._streams.outputs.append((fd, self._terminal_sink()))

    def exchange(self, process: Process, deadline: float | None) -> bool:
        """Feed and read a process until it has ended; return False at the deadline, with it killed."""
        streams = self._streams
        names = list(self._captured)
        if len(names) == len(streams.outputs) and streams.stdin < 0 and not self.tty:
            fds = [fd for fd, _ in streams.outputs]
            streams.outputs.clear()
            ended, outputs = process.collect(fds, self.output_limit, deadline)
            for name, output in zip(names, outputs, strict=True):
                self._captured[name].append(output.data)
                self._dropped += output.dropped
        else:
            ended = process.communicate(streams, deadline=deadline)
        if not ended:
            process.kill()
            if streams.outputs:  # what the pipes still hold belongs to the result
                process.wait()
                process.communicate(Streams(outputs=streams.outputs), deadline=time.monotonic())
        return ended

    def _terminal_sink(self) -> Callable[[bytes], object]:
        target = self.stdout
        if target == "capture" or callable(target):
            return self._sink("stdout", target)
        if target == "discard":
            return lambda _data: None
        fd = 1 if target == "inherit" else target if isinstance(target, int) else int(target.fileno())
        return lambda data: _write_all(fd, data)

    def _close_child_fds(self) -> None:
        while self._child_fds:
            os.close(self._child_fds.pop())

    def close(self) -> None:
        """Close whatever is open; safe to call again."""
        self._close_child_fds()
        self._streams.close()
        if self._ended >= 0:
            os.close(self._ended)
            self._ended = -1

    def signal_told(self) -> int:
        """Return the signal that ended the program of an init that has ended, 0 for none."""
        if self._ended < 0:
            return 0
        try:
            told = os.read(self._ended, 1)
        except BlockingIOError:  # it was killed itself, and one that it left behind holds the pipe
            return 0
        return told[0] if told else 0

    def captured(self, name: str) -> bytes:
        """What was kept of a stream."""
        return b"".join(self._captured.get(name, ()))

    @property
    def truncated(self) -> bool:
        """Whether some output was over the limit."""
        return self._dropped > 0


def _write_all(fd: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]
