"""Read a packed table of steps as the C core does, checking every number on which the core relies."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

import attrs

from pycontainer._ffi import lib

if TYPE_CHECKING:
    from pycontainer.runtime.program import Packed

__all__ = ["HEADER", "HEADER_SIZE", "STEP", "STEP_SIZE", "Read", "Step", "op_names", "read", "text_at"]

# csrc/program.h, written down once more: PycHeader and PycStep.
HEADER = struct.Struct("<6I Q 2I 3i I")
STEP = struct.Struct("<2H I 2i 3Q 4I i I")
HEADER_SIZE, STEP_SIZE = 56, 64


@attrs.frozen
class Step:
    """One step of a packed program, its texts looked up."""

    op: int
    flags: int
    label: str
    fd: int
    fd2: int
    a: int
    b: int
    c: int
    s1: bytes
    data: bytes
    s3: bytes
    ret: int
    s2: int
    s3_offset: int


@attrs.frozen
class Read:
    """A packed program, read."""

    host: list[Step]
    child: list[Step]
    early: int
    pool: bytes
    header: tuple[int, ...]


def text_at(pool: bytes, offset: int) -> bytes:
    assert 0 <= offset < len(pool)
    return pool[offset : pool.index(b"\0", offset)]


def read(packed: Packed) -> Read:
    """Read a program as the core does, checking every number that the core relies on."""
    data = packed.data
    header = HEADER.unpack_from(data)
    magic, size, host, early, child, pool_offset = header[:6]
    assert magic == lib.PYC_PROGRAM_MAGIC == 0x50594331
    assert size == len(data)
    assert early <= host
    assert pool_offset == HEADER_SIZE + STEP_SIZE * (host + child)
    pool = data[pool_offset:]
    assert pool[:1] == b"\0"  # offset 0 is the empty text
    assert pool[-1:] == b"\0"  # no text runs over the end
    for offset in header[7:9]:
        text_at(pool, offset)
    steps = []
    for number in range(host + child):
        op, flags, label, fd, fd2, a, b, c, s1, s2, s3, length, ret, unused = STEP.unpack_from(
            data, HEADER_SIZE + STEP_SIZE * number
        )
        assert unused == 0
        assert s2 + length < len(pool)
        assert -1 <= ret < lib.PYC_PASSED
        steps.append(
            Step(
                op,
                flags,
                text_at(pool, label).decode(errors="surrogateescape"),
                fd,
                fd2,
                a,
                b,
                c,
                text_at(pool, s1),
                pool[s2 : s2 + length],
                text_at(pool, s3),
                ret,
                s2,
                s3,
            )
        )
    return Read(steps[:host], steps[host:], early, pool, header)


def op_names(steps: list[Step]) -> list[str]:
    """Return what the steps do, by the names of the core without their prefix."""
    names = {getattr(lib, name): name.removeprefix("PYC_OP_") for name in dir(lib) if name.startswith("PYC_OP_")}
    return [names[step.op] for step in steps]
