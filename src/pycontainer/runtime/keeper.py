"""The keeper: one tiny process for each program that runs containers. It makes their end and their clean-up certain.

Every container hands the keeper a pidfd of itself before it executes its program. When the program that runs containers
ends, in whatever way, the keeper sees its socket close: it kills what still runs, removes what the containers leave,
and ends. While the program lives, the keeper removes the leftovers of ended containers, off the path of the next
start. Its mount namespace holds three mounts; containers start from a copy of it, so that their start costs the same
however many mounts the host has.

On disk: ``runs/<instance>/lock``, held by program and keeper for as long as one of them lives, and
``runs/<instance>/<container id>/`` for each container. What a killed keeper left is removed by :func:`recover`.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import re
import secrets
import socket
import weakref
from typing import TYPE_CHECKING

from pycontainer._ffi import HELPER, lib, new_error, read_error
from pycontainer.errors import StartError
from pycontainer.runtime.process import Process
from pycontainer.runtime.program import CWD, Program

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from pycontainer.runtime.cgroups import Cgroups

__all__ = ["ATTACH_POINT", "Keeper", "helper_fd", "recover"]

ATTACH_POINT = "/r"  # in the keeper's mount namespace: where a container's root is attached before pivot_root
CLONE_NEWNS = 0x00020000
_MS_PRIVATE = 1 << 18
_ID = re.compile(r"[0-9a-f]{64}")
_HIGH = 200  # descriptors are lifted above every number that the keeper's own take
_SEALS = (
    fcntl.F_SEAL_SEAL | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE
    if hasattr(fcntl, "F_SEAL_SEAL")
    else 15
)

_helper: int | None = None


def helper_fd() -> int:
    """Return a descriptor of a sealed copy of the helper in memory.

    A container that runs the helper as its init can open it by ``/proc/1/exe``: there is nothing behind it to overwrite
    (CVE-2019-5736).
    """
    global _helper  # noqa: PLW0603 - one copy for the whole process
    if _helper is None:
        fd = os.memfd_create("pycontainer-monitor", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        try:
            data = memoryview(HELPER.read_bytes())
            while data:
                data = data[os.write(fd, data) :]
            os.fchmod(fd, 0o555)
            fcntl.fcntl(fd, 1033, _SEALS)  # F_ADD_SEALS
        except BaseException:
            os.close(fd)
            raise
        _helper = fd
    return _helper


@contextlib.contextmanager
def _runs_lock(runs: Path) -> Iterator[None]:
    """Hold the lock under which instances are made and dead ones are found."""
    fd = os.open(runs / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)


class Keeper:
    """The keeper of this process; started when made.

    Args:
        runs: the directory of all instances.
        cgroups: the control groups whose leftovers it removes.

    Attributes:
        instance: directory of this instance.
        instance_fd: the same, open.
        pidfd: of the keeper, from whose mount namespace containers start.
        own_pidns_fd: the pid namespace that children of this process get otherwise.
    """

    def __init__(self, runs: Path, cgroups: Cgroups) -> None:
        self._owner = os.getpid()
        self._cgroups = cgroups
        self._stack = contextlib.ExitStack()
        with self._stack:
            runs.mkdir(mode=0o700, parents=True, exist_ok=True)
            self.instance = runs / secrets.token_hex(8)
            with _runs_lock(runs):
                self.instance.mkdir(mode=0o700)
                self._stack.callback(self._remove_instance)
                lock = self._own(os.open(self.instance / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
                fcntl.flock(lock, fcntl.LOCK_EX)
            self._lock_fd = lock
            self.instance_fd = self._own(os.open(self.instance, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC))
            self.own_pidns_fd = self._own(os.open("/proc/self/ns/pid_for_children", os.O_RDONLY | os.O_CLOEXEC))
            runs_fd = os.open(runs, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            with contextlib.closing(_Descriptor(runs_fd)):
                ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
                self._socket = ours
                self._stack.callback(ours.close)
                with theirs:
                    fds = [theirs.fileno(), runs_fd, lock, *cgroups.parent_fds]
                    self._process = _start(runs, self.instance.name, fds)
            self.pidfd = self._process.pidfd
            self._stack.pop_all()  # all is well: close() takes over
        _open_keepers.add(self)

    def _own(self, fd: int) -> int:
        self._stack.callback(os.close, fd)
        return fd

    def _remove_instance(self) -> None:
        (self.instance / "lock").unlink(missing_ok=True)
        self.instance.rmdir()

    @property
    def alive(self) -> bool:
        """Whether it runs and belongs to this process, not to the one that forked us."""
        return self._owner == os.getpid() and self.pidfd >= 0 and self._process.wait(block=False) is None

    @property
    def socket_fd(self) -> int:
        """Where a starting container hands in its pidfd."""
        return self._socket.fileno()

    def forget(self, container_id: str) -> None:
        """Have the leftovers of an ended container removed; returns before it is done."""
        try:
            self._socket.send(container_id.encode())
        except OSError:  # the keeper was killed: do its work here
            clean(self.instance_fd, container_id, self._cgroups)

    def note_group(self, container_id: str, group: str) -> None:
        """Note a control group at a place of the caller's choice, so that the next open can remove it after a crash."""
        (self.instance / f"{container_id}.cgroup").write_text(group)

    def drop_group(self, container_id: str) -> None:
        """Drop that note; the group is gone."""
        (self.instance / f"{container_id}.cgroup").unlink(missing_ok=True)

    def close(self) -> None:
        """Kill what still runs, remove what is left, end the keeper, and wait for all that. Safe to call again."""
        if self._owner != os.getpid() or self.pidfd < 0:
            return
        _open_keepers.discard(self)
        self._socket.close()
        self._process.wait()
        self._process.close()
        self.pidfd = -1
        self._close_descriptors()

    def drop(self) -> None:
        """After a fork, in the child: let go of the parent's keeper without ending it."""
        self._socket.close()
        self.pidfd = -1
        self._close_descriptors()  # the lock above all: held here, it would outlive its owner

    def _close_descriptors(self) -> None:
        for fd in (self._lock_fd, self.instance_fd, self.own_pidns_fd):
            os.close(fd)


_open_keepers: weakref.WeakSet[Keeper] = weakref.WeakSet()


def _drop_all() -> None:
    for keeper in list(_open_keepers):
        keeper.drop()
    _open_keepers.clear()


os.register_at_fork(after_in_child=_drop_all)


class _Descriptor:
    def __init__(self, fd: int) -> None:
        self._fd = fd

    def close(self) -> None:
        os.close(self._fd)


def _start(runs: Path, name: str, fds: list[int]) -> Process:
    program = Program()
    program.clone_flags = CLONE_NEWNS
    program.step(lib.PYC_OP_SEAL_FDS, "close the caller's descriptors", a=3)
    program.step(
        lib.PYC_OP_SETATTR, "make the keeper's mounts private", "/", fd=CWD, c=_MS_PRIVATE, flags=lib.PYC_RECURSIVE
    )
    root = program.mount("mount the keeper's root", "tmpfs", ["mode=755", "size=64k"])
    for directory in ("r", "proc", "sys"):
        program.mkdir("make the keeper's root", directory, fd=root)
    program.step(lib.PYC_OP_PIVOT, "enter the keeper's root", str(runs), fd=root)
    program.attach("mount proc for the keeper", program.mount("mount proc for the keeper", "proc"), "/proc")
    program.attach("mount sysfs for the keeper", program.mount("mount sysfs for the keeper", "sysfs"), "/sys")
    program.step(lib.PYC_OP_SETSID, "start the keeper's session")
    lifted = [fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, _HIGH) for fd in (helper_fd(), *fds)]
    null = os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC)
    try:
        program.step(lib.PYC_OP_STDIO, "give the keeper its standard streams", fd=null, fd2=null, a=null)
        for number, fd in enumerate(lifted[1:], start=3):
            program.step(lib.PYC_OP_DUP, "give the keeper its descriptors", fd=fd, a=number)
        program.execute("execute the keeper", "", ["pycontainer-keeper", "keep", name], [], fd=lifted[0])
        return Process(program)
    finally:
        for fd in (null, *lifted):
            os.close(fd)


def clean(instance_fd: int, container_id: str, cgroups: Cgroups) -> None:
    """Remove all that a container whose processes are gone has left.

    Raises:
        StartError: something cannot be removed.
    """
    cgroups.remove(container_id)
    err = new_error()
    if lib.pyc_remove_tree(instance_fd, container_id.encode(), err) < 0:
        raise StartError(*read_error(err))


def recover(runs: Path, cgroups: Cgroups) -> int:
    """Remove what programs left whose keeper was killed with them; return how many instances that were."""
    if not runs.exists():
        return 0
    dead: list[tuple[Path, int]] = []
    with _runs_lock(runs):
        for entry in runs.iterdir():
            if not entry.is_dir():
                continue
            fd = os.open(entry / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                os.close(fd)
                if error.errno not in (errno.EAGAIN, errno.EACCES):
                    raise
                continue
            dead.append((entry, fd))
    try:
        for entry, _ in dead:
            _clean_instance(entry, cgroups)
    finally:
        for _, fd in dead:
            os.close(fd)
    return len(dead)


def _clean_instance(instance: Path, cgroups: Cgroups) -> None:
    fd = os.open(instance, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        for name in os.listdir(fd):  # noqa: PTH208 - by descriptor: the path may be another directory by now
            if name.endswith(".cgroup"):
                group = (instance / name).read_text()
                cgroups.kill(group)
                cgroups.remove(group)
            elif _ID.fullmatch(name):
                cgroups.kill(name)
                clean(fd, name, cgroups)
    finally:
        os.close(fd)
    err = new_error()
    parent = os.open(instance.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        if lib.pyc_remove_tree(parent, instance.name.encode(), err) < 0:
            raise StartError(*read_error(err))
    finally:
        os.close(parent)
