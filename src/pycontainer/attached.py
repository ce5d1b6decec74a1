"""One run of a container from its start to its result: streams, timeout, exit, usage, clean-up."""

from __future__ import annotations

import errno
import time
from typing import TYPE_CHECKING

from pycontainer.errors import CommandNotFound, ExitError, OutOfMemory, StartError, TimeoutExpired
from pycontainer.model import Result, Usage
from pycontainer.running import Running
from pycontainer.runtime import plan
from pycontainer.runtime.process import Process

if TYPE_CHECKING:
    from collections.abc import Callable

    from pycontainer.runtime.counts import Counters
    from pycontainer.runtime.process import Exit
    from pycontainer.streams import Attachment

__all__ = ["run_attached"]


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
        named = attachment.open(init=start.init)
        try:
            packed = start.packed or plan.build(start).pack()
            process = Process(packed, start.keeper.requests_fd, named, listener=start.listener)
            if around is not None:
                around(process)
        except StartError as error:
            raise explain(error, start) from error
        attachment.started(process)
        if on_start is not None:
            on_start(Running(start.container_id, process))
        deadline = None if timeout is None else began + timeout
        in_time = attachment.exchange(process, deadline)
        if all(namespace.type != "pid" for namespace in start.spec.linux.namespaces):
            process.wait()
            start.cgroups.kill(start.cgroup)  # what it left running in the host's pid namespace
        counters = start.cgroups.read(start.cgroup)  # while the keeper reaps it
        result = _result(start, attachment, process.wait(), counters, time.monotonic() - began)
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


def _result(start: plan.Start, attachment: Attachment, ended: Exit, counters: Counters, wall: float) -> Result:
    process = start.spec.process
    signal = ended.signal
    if not signal and attachment.signal_told() == ended.status - 128:  # all that a PID 1 can do is to exit
        signal = ended.status - 128
    user, system = counters.cpu_user_us, counters.cpu_system_us
    return Result(
        container_id=start.container_id,
        command=process.args if process else (),
        exit_code=128 + signal if signal else ended.status,
        signal=signal,
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
    ("mount bind on /proc/", "mounts over files of /proc are refused: they could lead writes of the host astray"),
    ("mount bind on", "a directory goes over a directory, a file over a file"),
    ("set the AppArmor profile", "it must be loaded: apparmor_parser --replace FILE; see aa-status"),
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
    what = f"{error.step} {error.path}"
    return next((hint for start, hint in _STEP_HINTS if what.startswith(start)), "")
