"""The keeper and the cleaner: two tiny processes beside each program that runs containers.

The keeper bears the containers' processes: it is their parent, so the program never gets a signal for them or finds
them in its own wait(2) calls, and nothing of the program (memory, descriptors, executable) is in reach of what runs in
them. When the program ends, in whatever way, the keeper sees its socket close, kills what still runs and ends. Its
mount namespace holds three mounts; containers start from a copy of it, however many mounts the host has.

The cleaner removes what ended containers leave, off the path of the next start, and all of it when the program is gone.

On disk: ``runs/<instance>/lock``, held by program and cleaner for as long as one of them lives, and
``runs/<instance>/<container id>/`` for each container. What two killed helpers left is removed by :func:`recover`.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import re
import select
import threading
import time
import weakref
from typing import TYPE_CHECKING

from pycontainer._ffi import HELPER, ffi, lib, new_error, read_error
from pycontainer.errors import StartError
from pycontainer.oci.defaults import DEVICE_RULES
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
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
_MOUNT_ATTR_RDONLY = 1
_DYING = 0.1  # seconds

_helper: int | None = None


def helper_fd() -> int:
    """Return a descriptor of a copy of the helper on a read-only file system in memory, made once.

    A container that runs the helper as its init can reach it by ``/proc/1/exe``, and all others run the same file: its
    content, mode and owner are out of reach (CVE-2019-5736).

    Raises:
        StartError: it cannot be made.
    """
    global _helper  # noqa: PLW0603 - one copy for the whole process
    if _helper is None:
        label = "make a copy of the helper"
        program = Program()
        program.mount(label, "tmpfs", ["mode=755", "size=8m"], host=True)
        (mount_fd,) = program.prepare()
        with contextlib.ExitStack() as stack:
            stack.callback(os.close, mount_fd)  # the mount, attached nowhere, lives on with the file
            try:
                fd = _copy_helper(mount_fd)
            except OSError as error:
                raise StartError(label, str(HELPER), error.errno or 0) from error
            protect = Program()
            protect.step(lib.PYC_OP_SETATTR, label, fd=mount_fd, a=_MOUNT_ATTR_RDONLY, host=True)
            protect.prepare()
        _helper = fd
    return _helper


def _copy_helper(directory_fd: int) -> int:
    """Copy the helper into a directory; return it open, for reading alone, since a file open for writing cannot run."""
    name = HELPER.name
    with HELPER.open("rb") as source:
        copy = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600, dir_fd=directory_fd)
        try:
            while os.sendfile(copy, source.fileno(), None, 1 << 30):
                pass
            os.fchmod(copy, 0o555)
        finally:
            os.close(copy)
    return os.open(name, os.O_RDONLY | os.O_CLOEXEC, dir_fd=directory_fd)


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
    """The keeper and the cleaner of this process; started when made.

    Args:
        runs: the directory of all instances.
        cgroups: the control groups whose leftovers are removed.

    Attributes:
        instance: directory of this instance.
        instance_fd: the same, open.
        requests_fd: where the keeper takes requests for processes; -1 once closed.
    """

    def __init__(self, runs: Path, cgroups: Cgroups) -> None:
        self._owner = os.getpid()
        self._cgroups = cgroups
        self._lock = threading.Lock()
        self._guard: str | None = None
        self._stack = contextlib.ExitStack()
        self._sockets = contextlib.ExitStack()
        self._stack.push(self._sockets)
        runs.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.instance = runs / os.urandom(8).hex()
        with contextlib.ExitStack() as undo, contextlib.ExitStack() as theirs:
            undo.push(self._stack)
            with _runs_lock(runs):
                self.instance.mkdir(mode=0o700)
                undo.callback(self._remove_instance)
                lock = self._own(os.open(self.instance / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
                fcntl.flock(lock, fcntl.LOCK_EX)
            self.instance_fd = self._own(os.open(self.instance, _DIRECTORY))
            runs_fd = os.open(runs, _DIRECTORY)
            theirs.callback(os.close, runs_fd)
            done, done_end = os.pipe2(os.O_CLOEXEC)
            self._done = self._own(done)
            kept, keeping = os.pipe2(os.O_CLOEXEC)
            for fd in (done_end, kept, keeping):
                theirs.callback(os.close, fd)
            self.requests_fd, requests = self._pair(theirs)
            self._ids, ids = self._pair(theirs)
            _launch_cleaner(self.instance.name, (ids, runs_fd, lock, kept, done_end, *cgroups.parent_fds))
            _launch_keeper(runs, (requests, keeping, done_end))
            undo.pop_all()  # all is well: close() takes over
        _open_keepers.add(self)

    def _own(self, fd: int) -> int:
        self._stack.callback(os.close, fd)
        return fd

    def _pair(self, theirs: contextlib.ExitStack) -> tuple[int, int]:
        """Return two ends of a socket for packets; the module socket takes as long to import as a run takes."""
        ends = ffi.new("int32_t[2]")
        err = new_error()
        if lib.pyc_socket_pair(ends, err) < 0:
            raise StartError(*read_error(err))
        self._sockets.callback(os.close, ends[0])
        theirs.callback(os.close, ends[1])
        return ends[0], ends[1]

    def _remove_instance(self) -> None:
        (self.instance / "lock").unlink(missing_ok=True)
        self.instance.rmdir()

    @property
    def alive(self) -> bool:
        """Whether it takes requests and belongs to this process, not to the one that forked us."""
        if self._owner != os.getpid() or self.requests_fd < 0:
            return False
        poller = select.poll()
        poller.register(self.requests_fd, 0)
        return not poller.poll(0)

    def has_ended(self) -> bool:
        """Whether it ends right now or has ended: its socket closes a little after its processes are killed."""
        deadline = time.monotonic() + _DYING
        while self.alive and time.monotonic() < deadline:
            time.sleep(0.001)
        return not self.alive

    def forget(self, container_id: str) -> None:
        """Have the leftovers of an ended container removed; returns before it is done."""
        code = -errno.EINTR
        while code == -errno.EINTR:  # handlers of signals run in between
            code = lib.pyc_send(self._ids, container_id.encode(), len(container_id))
        if code < 0:  # the cleaner was killed: do its work here
            clean(self.instance_fd, container_id, self._cgroups)

    def guard(self) -> str | None:
        """Return the group that containers with the usual rules for devices share, None where each has its own.

        It lives as long as the keeper; to the cleaner and to :func:`recover` it is one more container's.

        Raises:
            StartError: it cannot be made.
        """
        if not self._cgroups.has_guards:
            return None
        with self._lock:
            if self._guard is None:
                name = os.urandom(32).hex()
                os.mkdir(name, dir_fd=self.instance_fd)
                try:
                    self._cgroups.make_guard(name, DEVICE_RULES)
                except BaseException:
                    os.rmdir(name, dir_fd=self.instance_fd)
                    raise
                self._guard = name
            return self._guard

    def note_group(self, container_id: str, group: str) -> None:
        """Note a control group at a place of the caller's choice, so that the next open can remove it after a crash."""
        (self.instance / f"{container_id}.cgroup").write_text(group)

    def drop_group(self, container_id: str) -> None:
        """Drop that note; the group is gone."""
        (self.instance / f"{container_id}.cgroup").unlink(missing_ok=True)

    def close(self) -> None:
        """Kill what still runs, remove what is left, end both helpers, and wait for all that. Safe to call again."""
        if self._owner != os.getpid() or self.requests_fd < 0:
            return
        _open_keepers.discard(self)
        self.requests_fd = self._ids = -1
        self._sockets.close()
        os.read(self._done, 1)  # the end of the stream: both have ended
        if self.instance.exists():  # the cleaner was killed
            clean_instance(self.instance, self._cgroups)
        self._stack.close()

    def drop(self) -> None:
        """After a fork, in the child: let go of the parent's helpers without ending them."""
        self.requests_fd = self._ids = -1
        self._stack.close()


_open_keepers: weakref.WeakSet[Keeper] = weakref.WeakSet()


def _drop_all() -> None:
    for keeper in list(_open_keepers):
        keeper.drop()
    _open_keepers.clear()


os.register_at_fork(after_in_child=_drop_all)


def _execute_helper(program: Program, argv: tuple[str, ...], fds: tuple[int, ...]) -> None:
    """Append the last steps of a helper, which gets ``fds`` from number 3 on, and launch it.

    Raises:
        StartError: it cannot be started.
    """
    lifted: list[int] = []
    try:
        null = os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC)
        lifted.append(null)
        for fd in (helper_fd(), *fds):
            lifted.append(fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 3 + len(fds)))  # noqa: PERF401 - closed one by one
        program.step(lib.PYC_OP_SETSID, "start a session")
        program.step(lib.PYC_OP_STDIO, "give the helper its standard streams", fd=null, fd2=null, a=null)
        for number, fd in enumerate(lifted[2:], start=3):
            program.step(lib.PYC_OP_DUP, "give the helper its descriptors", fd=fd, a=number)
        program.execute("execute the helper", "", [f"pycontainer-{argv[0]}", *argv], [], fd=lifted[1])
        program.launch()
    except OSError as error:
        hint = "more open files must be allowed: ulimit -n" if error.errno in (errno.EINVAL, errno.EMFILE) else ""
        raise StartError("start the keeper", "", error.errno or 0, hint) from error
    finally:
        for fd in lifted:
            os.close(fd)


def _launch_cleaner(name: str, fds: tuple[int, ...]) -> None:
    program = Program()
    program.step(lib.PYC_OP_SEAL_FDS, "close the caller's descriptors", a=3)
    program.step(lib.PYC_OP_CHDIR, "leave the caller's directory", "/")
    _execute_helper(program, ("clean", name), fds)


def _launch_keeper(runs: Path, fds: tuple[int, ...]) -> None:
    program = Program()
    program.clone_flags = CLONE_NEWNS
    program.step(lib.PYC_OP_SEAL_FDS, "close the caller's descriptors", a=3)
    program.step(lib.PYC_OP_UMASK, "clear the umask")
    program.step(
        lib.PYC_OP_SETATTR, "make the keeper's mounts private", "/", fd=CWD, c=_MS_PRIVATE, flags=lib.PYC_RECURSIVE
    )
    root = program.mount("mount the keeper's root", "tmpfs", ["mode=755", "size=64k"])
    for directory in (ATTACH_POINT, "/proc", "/sys"):
        program.mkdir("make the keeper's root", directory.removeprefix("/"), fd=root)
    program.step(lib.PYC_OP_PIVOT, "enter the keeper's root", str(runs), fd=root)
    for kind, path in (("proc", "/proc"), ("sysfs", "/sys")):
        label = f"mount {kind} for the keeper"
        program.attach(label, program.mount(label, kind), path)
    _execute_helper(program, ("keep",), fds)


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
            try:
                fd = os.open(entry / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            except FileNotFoundError:  # its cleaner was quicker
                continue
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
            clean_instance(entry, cgroups)
    finally:
        for _, fd in dead:
            os.close(fd)
    return len(dead)


def clean_instance(instance: Path, cgroups: Cgroups) -> None:
    """Kill and remove all that an instance without helpers has left.

    Raises:
        StartError: something cannot be removed.
    """
    try:
        fd = os.open(instance, _DIRECTORY)
    except FileNotFoundError:  # its cleaner was quicker
        return
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
