"""Classic BPF that finds the decision about a system call by a search over ranges of numbers.

libseccomp compares with every number a profile names, on every architecture. Most neighbours are treated alike, so a
program that looks for the range a number lies in has a fifth of the instructions, and the kernel checks, translates
and loads it in less than half the time, which every start of a container pays.

What is decided stays with libseccomp: its programs are followed for all numbers at once, which gives for each
architecture a list of ranges and, in each, what is left to compare, the arguments. The program made of these lists is
followed in the same way, and must give the same lists.
"""

from __future__ import annotations

import heapq
import itertools
import struct
from typing import TYPE_CHECKING, NamedTuple

from pycontainer.errors import Unsupported

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["Policy", "Ranges"]

_INSTRUCTION = struct.Struct("=HBBI")  # struct sock_filter

# <linux/bpf_common.h>: what libseccomp uses of the instructions, all on the accumulator.
_LOAD = 0x20  # BPF_LD | BPF_W | BPF_ABS
_AND = 0x54  # BPF_ALU | BPF_AND | BPF_K
_JUMP = 0x05  # BPF_JMP | BPF_JA
_EQUAL = 0x15  # BPF_JMP | BPF_JEQ | BPF_K
_GREATER = 0x25  # BPF_JGT
_NOT_LESS = 0x35  # BPF_JGE
_ANY_BIT = 0x45  # BPF_JSET
_RETURN = 0x06  # BPF_RET | BPF_K
_COMPARISONS = (_EQUAL, _GREATER, _NOT_LESS, _ANY_BIT)

# struct seccomp_data
_NUMBER, _ARCH, _ARGUMENTS = 0, 4, 16
_SIZE = 64
_ALL = 0xFFFFFFFF

_REACH = 253  # how far a conditional jump goes, 255, less the two jumps that may have to be put in between
_CHAIN = 4  # how many single numbers are compared with in a row before it is better to search

_Instruction = tuple[int, int, int, int]  # operation, jump if true, jump if false, operand
_Word = tuple[int, int]  # what the accumulator holds: an offset in the data, and the bits kept of what is there
Ranges = list[tuple[int, int]]  # first number, decision; in order, from 0, neighbours differ


class _Answer(NamedTuple):
    """A decision: what the filter returns."""

    value: int


class _Test(NamedTuple):
    """A decision: to compare a word of the arguments, and to go on with another decision, by its number."""

    word: _Word
    operation: int
    operand: int
    yes: int
    no: int


class _Decisions:
    """All decisions of some programs: equal ones have one number, and what a decision goes on with has a lower one."""

    def __init__(self) -> None:
        self.known: list[_Answer | _Test] = []
        self._numbers: dict[_Answer | _Test, int] = {}

    def number(self, decision: _Answer | _Test) -> int:
        """Return the number of a decision; of a test that cannot go both ways, that of what it always goes on with."""
        if isinstance(decision, _Test):
            if decision.yes == decision.no:
                return decision.yes
            if not decision.word[1]:
                return decision.yes if _holds(decision.operation, 0, decision.operand) else decision.no
        number = self._numbers.setdefault(decision, len(self.known))
        if number == len(self.known):
            self.known.append(decision)
        return number


class Policy:
    """What is decided about each number, on each architecture and on all others (None)."""

    def __init__(self) -> None:
        self.ranges: dict[int | None, Ranges] = {}
        self._decisions = _Decisions()

    def answer(self, value: int) -> Ranges:
        """Return ranges that answer every call with this value (``SECCOMP_RET_*``)."""
        return [(0, self._decisions.number(_Answer(value)))]

    def read(self, program: bytes) -> dict[int | None, Ranges]:
        """Return what a program decides, for each architecture that it compares with, in order, then for all others.

        Args:
            program: an array of ``struct sock_filter``.

        Raises:
            Unsupported: an instruction, or how it is used, is not understood.
        """
        return self._read(list(_INSTRUCTION.iter_unpack(program)))

    def replace(self, arch: int | None, ranges: Ranges, first: int = 0, last: int = _ALL) -> None:
        """Decide about the numbers from the first to the last as these ranges do."""
        before = self.ranges.get(arch, ranges)
        merged: Ranges = []
        parts = _cut(before, 0, first - 1), _cut(ranges, first, last), _cut(before, last + 1, _ALL)
        for number, decision in itertools.chain(*parts):
            if not merged or merged[-1][1] != decision:
                merged.append((number, decision))
        self.ranges[arch] = merged

    def program(self) -> bytes:
        """Return a program that decides so; the architectures are compared with in their order."""
        code = _Layout(self._decisions).program(self.ranges)
        if self._read(code) != self.ranges:
            raise AssertionError("the seccomp filter was written wrong: its decisions are not those of the profile")
        return b"".join(_INSTRUCTION.pack(*instruction) for instruction in code)

    def _read(self, code: list[_Instruction]) -> dict[int | None, Ranges]:
        others = _Walk(code, self._decisions, None)
        ranges = others.ranges()
        known = dict.fromkeys(others.architectures)
        return {**{arch: _Walk(code, self._decisions, arch).ranges() for arch in known}, None: ranges}


def _cut(ranges: Ranges, first: int, last: int) -> Ranges:
    """Return what ranges decide from the first to the last number."""
    ends = [start - 1 for start, _ in ranges[1:]] + [_ALL]
    return [
        (max(start, first), decision)
        for (start, decision), end in zip(ranges, ends, strict=True)
        if max(start, first) <= min(end, last)
    ]


# ── from instructions to ranges ───────────────────────────────────────────────────────────────────────────────────


def _holds(operation: int, value: int, operand: int) -> bool:
    """Return whether a comparison is true of a value."""
    if operation == _EQUAL:
        return value == operand
    if operation == _GREATER:
        return value > operand
    if operation == _NOT_LESS:
        return value >= operand
    return bool(value & operand)


def _not_understood(operation: int) -> Unsupported:
    return Unsupported(
        f"cannot lay out the seccomp filter: this libseccomp uses the BPF instruction {operation:#04x} in a way that "
        "pycontainer does not know; use another version of libseccomp, and report this one"
    )


class _Walk:
    """A walk through a program for one architecture and all numbers.

    Args:
        arch: the architecture; None is one that the program does not know.
    """

    def __init__(self, code: list[_Instruction], decisions: _Decisions, arch: int | None) -> None:
        self.architectures: list[int] = []  # that this one was compared with
        self._code = code
        self._decisions = decisions
        self._arch = arch

    def ranges(self) -> Ranges:
        """Return what is decided for each number.

        Raises:
            Unsupported: an instruction, or how it is used, is not understood.
        """
        found: Ranges = []
        pending: list[tuple[int, _Word, int, int]] = [(0, (_SIZE, _ALL), 0, _ALL)]  # at, accumulator, first, last
        while pending:
            at, word, first, last = pending.pop()
            at, word, change = self._advance(at, word, first, last)
            decision = 0
            if not change:
                decision, change = self._decision(at, word, first, last)
            if change:
                pending += [(at, word, change, last), (at, word, first, change - 1)]  # the lower numbers come first
            elif not found or found[-1][1] != decision:
                found.append((first, decision))
        return found

    def _advance(self, at: int, word: _Word, first: int, last: int) -> tuple[int, _Word, int]:
        """Follow the program as far as it goes one way for all of these numbers.

        Returns:
            Where it ends, what the accumulator holds there, and 0 when it ends with an answer or with the test of an
            argument, else the first number that goes another way than the first.
        """
        while True:
            operation, yes, no, operand = self._code[at]
            if operation == _EQUAL and word == (_NUMBER, _ALL):  # most are
                if first < operand <= last:
                    return at, word, operand
                if first == operand < last:
                    return at, word, operand + 1
                at += 1 + (yes if first == operand else no)
            elif operation == _RETURN:
                return at, word, 0
            elif operation == _LOAD:
                word = (operand, _ALL)
                at += 1
            elif operation == _AND:
                word = (word[0], word[1] & operand)
                at += 1
            elif operation == _JUMP:
                at += 1 + operand
            elif word == (_NUMBER, _ALL) and operation in (_GREATER, _NOT_LESS):
                change = operand + (operation == _GREATER)  # from here on the comparison is true
                if first < change <= last:
                    return at, word, change
                at += 1 + (yes if _holds(operation, first, operand) else no)
            elif word == (_ARCH, _ALL) and operation == _EQUAL:
                self.architectures.append(operand)
                at += 1 + (yes if self._arch == operand else no)
            elif _ARGUMENTS <= word[0] < _SIZE and operation in _COMPARISONS:
                return at, word, 0
            else:
                raise _not_understood(operation)

    def _decision(self, at: int, word: _Word, first: int, last: int) -> tuple[int, int]:
        """Return what is decided from an answer or a test on, and 0; or anything, and where the numbers part ways."""
        if self._code[at][0] == _RETURN:
            return self._decisions.number(_Answer(self._code[at][3])), 0
        # Jumps only go forward: taken in the order of the program, all that leads to a place comes before it.
        start = (at, word)
        pending = [start]
        reached: dict[tuple[int, _Word], list[tuple[int, _Word]]] = {}
        while pending:
            at, word = state = heapq.heappop(pending)
            if state in reached:
                continue
            operation, yes, no, _operand = self._code[at]
            reached[state] = []
            for jump in () if operation == _RETURN else (yes, no):
                next_at, next_word, change = self._advance(at + 1 + jump, word, first, last)
                if change:
                    return 0, change
                reached[state].append((next_at, next_word))
                heapq.heappush(pending, (next_at, next_word))
        numbers: dict[tuple[int, _Word], int] = {}
        for state, ways in reversed(reached.items()):
            operation, _, _, operand = self._code[state[0]]
            if ways:
                yes, no = (numbers[way] for way in ways)
                numbers[state] = self._decisions.number(_Test(state[1], operation, operand, yes, no))
            else:
                numbers[state] = self._decisions.number(_Answer(operand))
        return numbers[start], 0


# ── from ranges to instructions ───────────────────────────────────────────────────────────────────────────────────


class _Segment(NamedTuple):
    """Neighbouring ranges: one decision for all numbers from the first on, with exceptions."""

    first: int
    decision: int
    exceptions: list[tuple[int, int]]  # number, decision


def _segments(ranges: Ranges) -> list[_Segment]:
    """Group ranges so that the fewest comparisons find a decision.

    To find one of two segments is one comparison, an exception is one; so two ranges around a single number cost two
    as ranges, one as a segment.
    """
    ends = [first for first, _ in ranges[1:]] + [_ALL + 1]
    best: list[tuple[int, int, int]] = [(0, 0, 0)] * (len(ranges) + 1)  # comparisons, next segment's index, decision
    for start in range(len(ranges) - 1, -1, -1):
        best[start] = (len(ranges) * 2, 0, 0)
        counts: dict[int, int] = {}
        wide: int | None = None
        for end in range(start, min(start + 2 * _CHAIN + 1, len(ranges))):
            first, decision = ranges[end]
            if ends[end] - first > 1:
                if wide is not None and wide != decision:
                    break
                wide = decision
            counts[decision] = counts.get(decision, 0) + 1
            common = max(counts, key=counts.__getitem__) if wide is None else wide
            exceptions = end + 1 - start - counts[common]
            if exceptions <= _CHAIN:
                best[start] = min(best[start], (best[end + 1][0] + exceptions + 1, end + 1, common))
    segments, start = [], 0
    while start < len(ranges):
        _cost, end, common = best[start]
        singles = [(first, decision) for first, decision in ranges[start:end] if decision != common]
        segments.append(_Segment(ranges[start][0], common, singles))
        start = end
    return segments


class _Layout:
    """A program, written from its end to its start, so that where a jump goes is known when it is written.

    A place is counted from the end of the program.
    """

    def __init__(self, decisions: _Decisions) -> None:
        self._decisions = decisions.known
        self._reversed: list[_Instruction] = []
        self._places: dict[int, int] = {}  # of decisions
        self._loaded: dict[int, int] = {}  # of tests, for when the accumulator holds the word already
        self._needs_load: set[int] = set()

    def program(self, policy: dict[int | None, Ranges]) -> list[_Instruction]:
        """Return the program for the ranges of all architectures."""
        self._plan(decision for ranges in policy.values() for _first, decision in ranges)
        trees = {arch: self._tree(_segments(ranges)) for arch, ranges in reversed(policy.items())}
        place = trees.pop(None)
        for arch, tree in trees.items():
            place = self._compare(_EQUAL, arch or 0, tree, place)
        self._append(_LOAD, _ARCH)
        return self._reversed[::-1]

    def _plan(self, roots: Iterable[int]) -> None:
        """Find the tests before which their word must be loaded."""
        pending = list(dict.fromkeys(roots))
        self._needs_load.update(pending)
        seen: set[int] = set()
        while pending:
            number = pending.pop()
            test = self._decisions[number]
            if number in seen or isinstance(test, _Answer):
                continue
            seen.add(number)
            pending += test.yes, test.no
            self._needs_load.update(way for way in (test.yes, test.no) if not self._continues(test, way))

    def _continues(self, test: _Test, way: int) -> bool:
        """Return whether a decision compares the same word as the test before it."""
        following = self._decisions[way]
        return isinstance(following, _Test) and following.word == test.word

    def _tree(self, segments: list[_Segment]) -> int:
        """Write the search for a number; return its place."""
        place = self._search(segments)
        if len(segments) == 1 and not segments[0].exceptions:
            return place  # perhaps shared, and no number is compared with
        return self._append(_LOAD, _NUMBER)

    def _search(self, segments: list[_Segment]) -> int:
        if len(segments) > 1:
            middle = len(segments) // 2
            above = self._search(segments[middle:])
            return self._compare(_NOT_LESS, segments[middle].first, above, self._search(segments[:middle]))
        ((_first, decision, exceptions),) = segments
        place = self._place(decision)
        for number, exception in reversed(exceptions):
            place = self._compare(_EQUAL, number, self._place(exception), place)
        return place

    def _place(self, decision: int) -> int:
        """Return where a decision is, after writing it if need be."""
        pending, needed = [decision], set[int]()
        while pending:
            number = pending.pop()
            if number in needed or number in self._places or number in self._loaded:
                continue
            needed.add(number)
            if isinstance(test := self._decisions[number], _Test):
                pending += test.yes, test.no
        for number in sorted(needed):  # what a decision goes on with has a lower number
            self._write(number)
        return self._places[decision]

    def _write(self, number: int) -> None:
        decision = self._decisions[number]
        if isinstance(decision, _Answer):
            self._places[number] = self._append(_RETURN, decision.value)
            return
        ways = (decision.yes, decision.no)
        yes, no = ((self._loaded if self._continues(decision, way) else self._places)[way] for way in ways)
        self._loaded[number] = self._compare(decision.operation, decision.operand, yes, no)
        if number in self._needs_load:
            offset, mask = decision.word
            if mask != _ALL:
                self._append(_AND, mask)
            self._places[number] = self._append(_LOAD, offset)

    def _compare(self, operation: int, operand: int, yes: int, no: int) -> int:
        """Write a conditional jump to two places; return its place."""
        yes, no = self._within_reach(yes), self._within_reach(no)
        here = len(self._reversed)
        return self._append(operation, operand, here - yes - 1, here - no - 1)

    def _within_reach(self, place: int) -> int:
        """Return the place, or a near one, written for this, from which it goes on in the same way."""
        here = len(self._reversed)
        if here - place <= _REACH:
            return place
        operation, _yes, _no, operand = self._reversed[place]
        if operation == _RETURN:
            return self._append(_RETURN, operand)
        return self._append(_JUMP, here - place - 1)

    def _append(self, operation: int, operand: int, yes: int = 0, no: int = 0) -> int:
        self._reversed.append((operation, yes, no, operand))
        return len(self._reversed) - 1
