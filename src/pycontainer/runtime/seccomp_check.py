"""A second opinion on filters: a compiled program is run on arguments at the borders of a profile's conditions.

libseccomp merges the conditions of a system call into a tree, and its versions have had faults there: 2.5.4 lets all
through for "argument at most 0" beside "argument at least 2**32". A filter that does not do what its profile says is
refused, not loaded.
"""

from __future__ import annotations

import itertools
import struct
from typing import TYPE_CHECKING, NamedTuple

from pycontainer.errors import Unsupported

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

__all__ = ["Call", "Comparison", "check"]

_INSTRUCTION = struct.Struct("=HBBI")
_DATA = struct.Struct("=iIQ6Q")  # struct seccomp_data
_MOST = 2000  # combinations of arguments for one call

_LD, _ALU, _JMP, _RET = 0, 4, 5, 6
_AND, _JEQ, _JGT, _JGE, _JSET = 0x50, 0x10, 0x20, 0x30, 0x40


def _holds(operator: int, value: int, first: int, second: int) -> bool:
    """Compare as ``SCMP_CMP_*`` of seccomp.h says."""
    return {
        1: value != first,
        2: value < first,
        3: value <= first,
        4: value == first,
        5: value >= first,
        6: value > first,
        7: value & first == second,
    }[operator]


class Comparison(NamedTuple):
    """One condition on an argument, as libseccomp has it."""

    argument: int
    operator: int
    first: int
    second: int

    def holds(self, arguments: Sequence[int]) -> bool:
        """Whether it is met."""
        return _holds(self.operator, arguments[self.argument], self.first, self.second)


class Call(NamedTuple):
    """One system call and its rules, which all have one action.

    Attributes:
        name: of the call, for the error.
        arch: ``AUDIT_ARCH_*``.
        number: of the call there.
        bits: of an argument there.
        rules: in each, all conditions must hold.
        action: what a rule that holds decides.
    """

    name: str
    arch: int
    number: int
    bits: int
    rules: Sequence[Sequence[Comparison]]
    action: int


def check(program: bytes, call: Call, default: int) -> None:
    """Compare what a program does for a call with what its rules say.

    Args:
        program: the filter.
        call: the call.
        default: what is decided where no rule holds.

    Raises:
        Unsupported: they differ.
    """
    code = list(_INSTRUCTION.iter_unpack(program))
    for arguments in _borders(call):
        wanted = call.action if any(all(c.holds(arguments) for c in rule) for rule in call.rules) else default
        if _run(code, _DATA.pack(call.number, call.arch, 0, *arguments)) != wanted:
            msg = (
                f"the seccomp profile's conditions on {call.name} are compiled wrongly by this version of libseccomp "
                f"(arguments {', '.join(map(hex, arguments))}); write them as fewer or other comparisons"
            )
            raise Unsupported(msg)


def _borders(call: Call) -> Iterator[tuple[int, ...]]:
    end = 1 << call.bits
    values: list[set[int]] = [{0} for _ in range(6)]
    for comparison in itertools.chain.from_iterable(call.rules):
        near = (point + step for point in (comparison.first, comparison.second) for step in (-1, 0, 1))
        values[comparison.argument].update({end - 1, *(value for value in (*near, 1 << 32) if 0 <= value < end)})
    return itertools.islice(itertools.product(*map(sorted, values)), _MOST)


def _run(code: Sequence[tuple[int, int, int, int]], data: bytes) -> int:
    """Run a program of classic BPF as the kernel does, see bpf(4) and seccomp(2)."""
    accumulator = position = 0
    while True:
        operation, if_true, if_false, operand = code[position]
        position += 1
        kind = operation & 0x07
        if kind == _RET:
            return operand
        if kind == _LD:
            (accumulator,) = struct.unpack_from("=I", data, operand)
        elif kind == _ALU and operation & 0xF0 == _AND:
            accumulator &= operand
        elif kind == _JMP:
            test = operation & 0xF0
            if test == 0:
                position += operand
                continue
            true = {
                _JEQ: accumulator == operand,
                _JGT: accumulator > operand,
                _JGE: accumulator >= operand,
                _JSET: bool(accumulator & operand),
            }[test]
            position += if_true if true else if_false
        else:
            msg = f"the seccomp filter has an instruction that is not understood: {operation:#x}"
            raise Unsupported(msg)
