"""Build the table of steps by which the C core starts a process (``csrc/program.h``).

A program has host steps, run in the calling thread, and child steps, run by the new process before its execve. It is
one relocatable buffer: steps of 64 bytes and a pool of texts to which they point by offset.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

import attrs

from pycontainer._ffi import ffi, lib, new_error, read_error
from pycontainer.errors import StartError
from pycontainer.records import Record

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

__all__ = ["CWD", "Packed", "Program"]

CWD = -100  # AT_FDCWD
NONE = -1

_HEADER = struct.Struct("<IIIIIIQIIiiiI")
_STEP = struct.Struct("<HHIiiQQQIIIIiI")
_U64 = (1 << 64) - 1

Text = str | bytes
Shared = int | str


@attrs.frozen(eq=False, repr=False)
class Packed(Record):
    """A program as the core takes it.

    Attributes:
        data: the buffer.
        shared: the caller's descriptors that child steps use, by number or by name.
    """

    data: bytes
    shared: tuple[Shared, ...]

    def replace(self, old: str, new: str) -> Packed:
        """Return the program with one text of a fixed length put for another, wherever it stands."""
        return Packed(self.data.replace(old.encode(), new.encode()), self.shared)


class Program:
    """The steps of one start, in the order in which they will run.

    ``fd`` operands are :data:`CWD`, what :meth:`share` and steps with results return and, in host steps only, plain
    descriptors of the caller.
    The label of a step is what an error calls it: "mount proc".
    """

    __slots__ = (
        "_child",
        "_host",
        "_pool",
        "_shared",
        "_slots",
        "_texts",
        "cgroup_fd",
        "clone_flags",
        "early_steps",
        "exec_pointers",
        "gid_map",
        "pidns_fd",
        "status_target",
        "uid_map",
    )

    def __init__(self) -> None:
        self._pool = bytearray(b"\0")
        self._texts: dict[Text, int] = {"": 0, b"": 0}
        self._host: list[bytes] = []
        self._child: list[bytes] = []
        self._slots = 0
        self._shared: dict[Shared, int] = {}
        self.early_steps = 0
        self.clone_flags = 0
        self.cgroup_fd = NONE
        self.pidns_fd = NONE
        self.uid_map = ""
        self.gid_map = ""
        self.status_target = NONE
        self.exec_pointers = 0

    def share(self, fd: Shared) -> int:
        """Return the operand by which child steps know a descriptor of the caller.

        Args:
            fd: a descriptor that stays open for the start, or the name of one that is given at the start.
        """
        index = self._shared.setdefault(fd, len(self._shared))
        return int(lib.PYC_SLOT_BASE) - int(lib.PYC_SHARED) - index

    def mark_early(self) -> None:
        """Have the host steps so far run before the process is born, the others while it is being born."""
        self.early_steps = len(self._host)

    def text(self, value: Text) -> int:
        """Put a text into the pool, once, and return its offset."""
        offset = self._texts.get(value)
        if offset is None:
            offset = self._texts[value] = len(self._pool)
            data = value.encode(errors="surrogateescape") if isinstance(value, str) else value
            if isinstance(value, str) and "\0" in value:
                msg = f"a path or name cannot hold a NUL byte: {value!r}"
                raise ValueError(msg)
            self._pool += data
            self._pool.append(0)
        return offset

    def data(self, value: bytes, align: int = 8) -> int:
        """Put binary data into the pool, aligned, and return its offset."""
        offset = self._texts.get(value)
        if offset is None or offset % align:
            self._pool += bytes(-len(self._pool) % align)
            offset = self._texts[value] = len(self._pool)
            self._pool += value
            self._pool.append(0)
        return offset

    def _take_slot(self) -> int:
        slot = self._slots
        if slot + len(self._shared) >= lib.PYC_PASSED:
            msg = f"too many mounts and devices for one container (room for {lib.PYC_PASSED})"
            raise ValueError(msg)
        self._slots += 1
        return slot

    def _add(
        self,
        where: list[bytes],
        op: int,
        label: str,
        *,
        fd: int = NONE,
        fd2: int = NONE,
        a: int = 0,
        b: int = 0,
        c: int = 0,
        s1: Text = "",
        s2: int = 0,
        length: int = 0,
        s3: int = 0,
        ret: int = NONE,
        flags: int = 0,
    ) -> None:
        texts = self._texts
        where.append(
            _STEP.pack(
                op,
                flags,
                texts.get(label) or self.text(label),
                fd,
                fd2,
                a & _U64,
                b & _U64,
                c & _U64,
                texts[s1] if s1 in texts else self.text(s1),
                s2,
                s3,
                length,
                ret,
                0,
            )
        )

    def step(
        self,
        op: int,
        label: str,
        path: Text = "",
        *,
        fd: int = NONE,
        fd2: int = NONE,
        a: int = 0,
        b: int = 0,
        c: int = 0,
        data: bytes | None = None,
        text: Text | None = None,
        kind: Text = "",
        flags: int = 0,
        host: bool = False,
        result: bool = False,
    ) -> int:
        """Append any step; return the operand that stands for its result when it has one.

        Args:
            op: a ``PYC_OP_*`` number.
            label: its name in errors.
            path: the first text.
            fd: the first descriptor.
            fd2: the second descriptor.
            a: first number.
            b: second number.
            c: third number.
            data: binary data as second text.
            text: second text, instead of data.
            kind: third text.
            flags: ``PYC_*`` step flags.
            host: run it in the caller, before clone.
            result: keep the descriptor it returns.
        """
        slot = self._take_slot() if result else NONE
        s2 = length = 0
        if data is not None:
            s2, length = self.data(data), len(data)
        elif text is not None:
            s2, length = self.text(text), len(text)
        self._add(
            self._host if host else self._child,
            op,
            label,
            fd=fd,
            fd2=fd2,
            a=a,
            b=b,
            c=c,
            s1=path,
            s2=s2,
            length=length,
            s3=self.text(kind),
            ret=slot,
            flags=flags,
        )
        return int(lib.PYC_SLOT_BASE) - slot

    def mkdir(
        self,
        label: str,
        path: Text,
        *,
        fd: int = CWD,
        mode: int = 0o755,
        exact: bool = False,
        flags: int = 0,
        host: bool = False,
    ) -> None:
        """Make a directory; with ``exact`` its mode is this one whatever the caller's umask."""
        self.step(lib.PYC_OP_MKDIR, label, path, fd=fd, a=mode, c=int(exact), flags=flags, host=host)

    def write(
        self,
        label: str,
        path: Text,
        data: bytes,
        *,
        fd: int = CWD,
        open_flags: int = 0,
        mode: int = 0o644,
        proc: bool = False,
        flags: int = 0,
        host: bool = False,
    ) -> None:
        """Open a file, write data and close it; with ``proc`` only if it really lies on procfs."""
        self.step(
            lib.PYC_OP_WRITE, label, path, fd=fd, data=data, a=open_flags, b=mode, c=int(proc), flags=flags, host=host
        )

    def mount(
        self, label: str, kind: str, options: Iterable[str] = (), *, attributes: int = 0, host: bool = False
    ) -> int:
        """Make a new mount, attached nowhere yet; return its operand."""
        data = b"".join(option.encode(errors="surrogateescape") + b"\0" for option in options)
        return self.step(lib.PYC_OP_FSMOUNT, label, kind, data=data, a=attributes, host=host, result=True)

    def attach(self, label: str, mount: int, target: Text, *, below: int = CWD, flags: int = 0) -> None:
        """Attach a mount below a directory; the current one is the root, of the namespace or the container."""
        self.step(lib.PYC_OP_ATTACH, label, target, fd=mount, fd2=below, flags=flags)

    def execute(
        self,
        label: str,
        program: Text,
        argv: Sequence[Text],
        env: Sequence[Text],
        *,
        search_path: Text = "",
        fd: int = NONE,
    ) -> None:
        """End with execve; ``program`` without a slash is looked for along ``search_path``, or ``fd`` is executed."""
        self.exec_pointers = len(argv) + len(env)
        self._add(
            self._child,
            lib.PYC_OP_EXEC,
            label,
            fd=fd,
            a=len(argv),
            b=len(env),
            c=self.text(search_path),
            s1=program,
            s2=self._block(argv),
            s3=self._block(env),
        )

    def _block(self, texts: Sequence[Text]) -> int:
        data = b"\0".join(t.encode(errors="surrogateescape") if isinstance(t, str) else t for t in texts)
        if data.count(b"\0") != max(len(texts) - 1, 0):
            msg = "arguments and environment cannot hold NUL bytes"
            raise ValueError(msg)
        offset = len(self._pool)
        self._pool += data
        self._pool.append(0)
        return offset

    def launch(self) -> None:
        """Run the child steps in a process that is nobody's child for long; it must end in :meth:`execute`.

        Raises:
            StartError: a step failed; the process is gone.
        """
        packed = self.pack().data
        err = new_error()
        if lib.pyc_launch(ffi.from_buffer(packed), len(packed), err) < 0:
            raise StartError(*read_error(err))

    def prepare(self) -> tuple[int, ...]:
        """Run the host steps alone; return the descriptors of their results, now the caller's.

        Raises:
            StartError: a step failed; nothing is open.
        """
        packed = self.pack().data
        fds = ffi.new("int32_t[]", max(self._slots, 1))
        err = new_error()
        count = lib.pyc_prepare(ffi.from_buffer(packed), len(packed), fds, self._slots, err)
        if count < 0:
            raise StartError(*read_error(err))
        return tuple(fds[0:count])

    def pack(self) -> Packed:
        """Return the program as the core takes it."""
        uid_map, gid_map = self.text(self.uid_map), self.text(self.gid_map)
        self._pool.append(0)
        steps = b"".join(self._host) + b"".join(self._child)
        pool_offset = _HEADER.size + len(steps)
        header = _HEADER.pack(
            lib.PYC_PROGRAM_MAGIC,
            pool_offset + len(self._pool),
            len(self._host),
            self.early_steps,
            len(self._child),
            pool_offset,
            self.clone_flags,
            uid_map,
            gid_map,
            self.cgroup_fd,
            self.pidns_fd,
            self.status_target,
            self.exec_pointers,
        )
        return Packed(b"".join((header, steps, self._pool)), tuple(self._shared))
