"""One run of a container from its start to its result: streams, timeout, exit, usage, clean-up."""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Callable
from typing import IO, Any, Literal, TypeAlias

import attrs

from pycontainer.errors import CommandNotFound, ExitError, OutOfMemory, StartError, TimeoutExpired
from pycontainer.model import Result, Usage
from pycontainer.runtime import plan
from pycontainer.runtime.process import Exit, Process, Streams

__all__ = ["Input", "Output", "Running", "run_attached"]

Input: TypeAlias = Literal["none", "inherit"] | int | IO[Any]
Output: TypeAlias = Literal["capture", "inherit", "discard"] | int | IO[Any] | Callable[[bytes], object]

_SIGKILL = 9


class Running:
    """A container that runs right now, as :meth:`pycontainer.Engine.run` hands it to ``on_start``."""

    def __init__(self, container_id: str, process: Process) -> None:
        self.container_id = container_id
        self._process = process

    @property
    def pid(self) -> int:
        """The number of its first process in the caller's pid namespace."""
        return self._process.pid

    def kill(self, signal: int = _SIGKILL) -> None:
        """Send a signal to its first process; nothing happens when that has ended."""
        self._process.kill(signal)

    def resize(self, rows: int, columns: int) -> None:
        """Tell its terminal how large the window is; nothing happens without one."""
        self._process.resize(rows, columns)


@attrs.define(kw_only=True)
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

    def open(self) -> tuple[int, int, int]:
        """Make the pipes; return the descriptors for the child's 0, 1 and 2, -1 for none."""
        if self.tty:
            self._streams.data = (self.data + b"\x04") if self.data is not None else b""
            return -1, -1, -1
        return self._open_stdin(), self._open_output("stdout", 1), self._open_output("stderr", 2)

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

    def started(self, process: Process) -> Streams:
        """Close the child's ends; return ours."""
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
        return self._streams

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


def run_attached(
    start: plan.Start,
    attachment: Attachment,
    *,
    began: float,
    timeout: float | None = None,
    check: bool = False,
    on_start: Callable[[Running], object] | None = None,
    around: Callable[[Process], object] | None = None,
) -> Result:
    """Run a container to its end.

    Args:
        start: what to start.
        attachment: where its streams go.
        began: ``time.monotonic()`` of the caller's call.
        timeout: seconds from ``began``.
        check: raise when it fails.
        on_start: called when its program runs.
        around: called when it is parked, to run hooks; it resumes the process.

    Raises:
        StartError: it did not start.
        ExitError: it failed, with ``check``.
        TimeoutExpired: it was killed at the timeout.
    """
    process = None
    own_group = start.cgroup == start.container_id
    try:
        if not own_group:
            start.keeper.note_group(start.container_id, start.cgroup)
            start.cgroups.make_parents(start.cgroup)
        start.stdio = attachment.open()
        try:
            process = Process(plan.build(start), start.keeper.requests_fd)
            if around is not None:
                around(process)
        except StartError as error:
            raise explain(error, start) from error
        streams = attachment.started(process)
        if on_start is not None:
            on_start(Running(start.container_id, process))
        deadline = None if timeout is None else began + timeout
        in_time = process.communicate(streams, deadline=deadline)
        if not in_time:
            process.kill()
        ended = process.wait()
        if "pid" not in {n.type for n in start.spec.linux.namespaces}:
            start.cgroups.kill(start.cgroup)  # what it left running in the host's pid namespace
        if not in_time:
            _drain_rest(process, streams)
        result = _result(start, attachment, ended, time.monotonic() - began)
    finally:
        if process is not None:
            process.close()
        attachment.close()
        if not own_group:
            start.cgroups.remove(start.cgroup)
            start.keeper.drop_group(start.container_id)
        start.keeper.forget(start.container_id)
    if not in_time:
        raise TimeoutExpired(timeout or 0.0, result)
    if check and not result.ok:
        raise OutOfMemory(result) if result.oom_killed else ExitError(result)
    return result


def _drain_rest(process: Process, streams: Streams) -> None:
    """After a timeout, take what the pipes still hold: the result carries it."""
    process.communicate(Streams(outputs=list(streams.outputs)), deadline=time.monotonic())


def _result(start: plan.Start, attachment: Attachment, ended: Exit, wall: float) -> Result:
    counters = start.cgroups.read(start.cgroup)
    process = start.spec.process
    user, system = counters.cpu_user_us, counters.cpu_system_us
    return Result(
        container_id=start.container_id,
        command=process.args if process else (),
        exit_code=128 + ended.signal if ended.signal else ended.status,
        signal=ended.signal,
        stdout=attachment.captured("stdout"),
        stderr=attachment.captured("stderr"),
        truncated=attachment.truncated,
        oom_killed=counters.oom_kills > 0,
        usage=Usage(
            wall_seconds=wall,
            cpu_user_seconds=(ended.user_us if user is None else user) / 1e6,
            cpu_system_seconds=(ended.system_us if system is None else system) / 1e6,
            peak_memory=counters.peak_memory,
            block_read=counters.block_read,
            block_written=counters.block_written,
            peak_pids=counters.peak_pids,
        ),
    )


def explain(error: StartError, start: plan.Start) -> StartError:
    """Return the error of a failed start with what to do about it."""
    process = start.spec.process
    if error.step == "execute" and process is not None:
        name = process.args[0]
        path = next((v[5:] for v in process.env if v.startswith("PATH=")), "the default")
        if error.errno in (errno.ENOENT, errno.ENOTDIR):
            where = "" if "/" in name else f", PATH was {path}"
            return CommandNotFound(
                f"command not found in image: {name}{where}; if the file is there, its interpreter is not:",
                name,
                error.errno,
            )
        hint = {
            errno.EACCES: "it is not an executable file, or the user may not run it",
            errno.ENOEXEC: "it is no program for this machine, or a script without #!",
            errno.EISDIR: "it is a directory",
            errno.EPERM: "the file system is mounted noexec, or a capability it needs is missing",
        }.get(error.errno, "")
        return CommandNotFound("execute", name, error.errno, hint or error.hint)
    return StartError(error.step, error.path, error.errno, error.hint or _hint(error))


_CLONE_HINTS = {
    errno.ENOSPC: "a limit in /proc/sys/user/max_*_namespaces is reached",
    errno.EPERM: "this takes root: CAP_SYS_ADMIN",
    errno.EAGAIN: "a limit on processes is reached: ulimit -u, or pids.max of the caller's own cgroup",
    errno.EINVAL: "this kernel lacks a namespace; see pycontainer doctor",
}
_CGROUP_HINTS = {
    errno.ENOENT: "this kernel has no such file: weights of I/O need the bfq scheduler, swap limits swap accounting",
    errno.EINVAL: "the kernel refuses the value",
    errno.EBUSY: "the value is below what is in use already",
}
_STEP_HINTS = (  # by how the step's name starts
    ("mount the root overlay", "the store must lie on a file system fit for overlayfs; see pycontainer doctor"),
    ("open the source of a bind mount", "it must exist on the host; create it first"),
    ("mount bind on /proc", "mounts over files of /proc are refused: they could lead writes of the host astray"),
    ("set RLIMIT", "raising a hard limit takes CAP_SYS_RESOURCE"),
    ("start the process", "perhaps the memory limit is too small for the start itself"),
)


def _hint(error: StartError) -> str:
    if error.step.startswith("clone"):
        return _CLONE_HINTS.get(error.errno, "")
    if error.step.startswith("set ") and error.step.endswith("in the control group"):
        return _CGROUP_HINTS.get(error.errno, "")
    if error.errno == errno.ENOSPC:
        return "no space left: on the file system of the store, or a limit of the kernel is reached"
    return next((hint for start, hint in _STEP_HINTS if error.step.startswith(start)), "")
