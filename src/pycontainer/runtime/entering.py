"""A second process in the namespaces of a container that is being made, for the hooks that run there.

Born by the keeper like the container's own, it joins the other's namespaces before it executes anything; see setns(2).
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import TYPE_CHECKING

from pycontainer._ffi import lib
from pycontainer.errors import StartError
from pycontainer.runtime import identity, plan
from pycontainer.runtime.keeper import ATTACH_POINT
from pycontainer.runtime.program import Program
from pycontainer.runtime.seccomp import LISTENER_FLAGS, Filter

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from pycontainer.runtime.program import Packed

__all__ = ["enter", "inner_pid"]

# The user namespace is joined last, for the others belong to it; that of processes is where one is born.
_ORDER = ("cgroup", "network", "ipc", "uts", "mount", "user")
_FILES = {"network": "net", "mount": "mnt"}


def inner_pid(pid: int) -> int:
    """Return the number that a process has in its own pid namespace.

    Args:
        pid: its number here.

    Raises:
        StartError: it is gone.
    """
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError as error:
        raise StartError("look up the container's process", f"/proc/{pid}/status", error.errno or 0) from error
    numbers = next(line for line in status.splitlines() if line.startswith("NSpid:"))
    return int(numbers.split()[-1])


@contextlib.contextmanager
def enter(
    start: plan.Start, pid: int, argv: Sequence[str], env: Sequence[str], *, program: str, at: int
) -> Iterator[Packed]:
    """Give the program of a process that joins a container's namespaces and executes something.

    Args:
        start: the container's start.
        pid: its first process, which is parked.
        argv: arguments.
        env: environment.
        program: path of the executable.
        at: where the container is parked. Before it has entered its root, the process sees the host's files and is root
            of the host; afterwards it is confined as the container's own program will be.
    """
    process, root = start.spec.process, start.root
    if process is None or not isinstance(root, plan.Directory):
        msg = "hooks run in a container that a bundle describes"
        raise TypeError(msg)
    kinds = {namespace.type for namespace in start.spec.linux.namespaces}
    with contextlib.ExitStack() as stack:
        fds = {kind: _open_namespace(pid, kind, stack) for kind in (*_ORDER, "pid") if kind in kinds}
        made = Program()
        made.pidns_fd = fds.get("pid", -1)
        inside = at == plan.SYNC_START_CONTAINER
        if inside:
            start.cgroups.add_join(made, start.cgroup, start.spec.linux.resources, plan.shared_guard(start))
            made.mark_early()  # one is born into a group of version 2
        for kind in _ORDER:
            if kind in fds:
                label = f"join the {kind} namespace of the container"
                made.step(lib.PYC_OP_SETNS, label, fd=made.share(fds[kind]), a=plan.CLONE[kind])
        if "user" in fds:
            made.step(lib.PYC_OP_GROUPS, "drop the caller's groups", data=b"", flags=lib.PYC_DENIED_OK)
            made.step(lib.PYC_OP_IDS, "become root of the user namespace")
        if not inside:
            made.step(lib.PYC_OP_CHROOT, "enter the host's root", ATTACH_POINT)
        made.step(lib.PYC_OP_SETSID, "start a session")
        made.step(
            lib.PYC_OP_STDIO,
            "give the hook its standard streams",
            fd=made.share("stdin"),
            fd2=made.share("stdout"),
            a=made.share("stderr"),
        )
        made.step(lib.PYC_OP_CLOSE_ALL, "close all other descriptors")
        if inside:
            identity.add_credentials(made, process, _without_listener(start.seccomp))
        else:
            made.step(lib.PYC_OP_CHDIR, "enter the container's root directory", os.path.realpath(root.path))
            made.step(lib.PYC_OP_UMASK, "set the umask", a=0o022)
            made.step(lib.PYC_OP_PRCTL, "tie the hook to its caller", a=identity.PR_SET_PDEATHSIG, b=9)
        made.execute("execute", program, argv, env)
        yield made.pack()


def _without_listener(compiled: Filter | None) -> Filter | None:
    """The listener is the container's alone: calls that it would answer fail with ENOSYS in a hook."""
    return None if compiled is None else Filter(compiled.program, compiled.flags & ~LISTENER_FLAGS)


def _open_namespace(pid: int, kind: str, stack: contextlib.ExitStack) -> int:
    path = f"/proc/{pid}/ns/{_FILES.get(kind, kind)}"
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise StartError(f"open the {kind} namespace of the container", path, error.errno or 0) from error
    stack.callback(os.close, fd)
    return fd
