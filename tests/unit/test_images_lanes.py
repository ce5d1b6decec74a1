"""One stream for several consumers: all get all of it, and a failure of anybody ends everybody."""

from __future__ import annotations

import threading
from typing import IO, TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pycontainer.distribution.lanes import Abandoned, Lane, feed

if TYPE_CHECKING:
    from collections.abc import Callable


def read_all(stream: IO[bytes], size: int = 1000) -> bytes:
    return b"".join(iter(lambda: stream.read(size), b""))


@given(st.lists(st.binary(max_size=50), max_size=20), st.integers(1, 60))
@settings(deadline=None, max_examples=50)
def test_every_lane_gets_the_whole_stream(pieces: list[bytes], size: int) -> None:
    lanes = [Lane(lambda stream: read_all(stream, size)) for _ in range(2)]
    feed(lambda write: [write(piece) for piece in pieces], *lanes)
    assert [lane.result() for lane in lanes] == [b"".join(pieces)] * 2


def produce_much(write: Callable[[bytes], object]) -> None:
    for _ in range(64):
        write(bytes(1 << 20))


def test_a_consumer_that_fails_stops_the_producer() -> None:
    def fail(stream: IO[bytes]) -> None:
        stream.read(10)
        msg = "enough"
        raise ValueError(msg)

    other = Lane(read_all)
    with pytest.raises(ValueError, match="enough"):
        feed(produce_much, Lane(fail), other)
    assert not [thread for thread in threading.enumerate() if thread.name == "pycontainer-lane"]


def test_a_consumer_that_fails_at_the_end_is_seen_in_the_result() -> None:
    def fail(stream: IO[bytes]) -> None:
        read_all(stream)
        msg = "at the end"
        raise ValueError(msg)

    lane = Lane(fail)
    feed(lambda write: write(b"x"), lane)
    with pytest.raises(ValueError, match="at the end"):
        lane.result()


def test_a_producer_that_fails_ends_the_consumers_without_a_result() -> None:
    def fail(write: Callable[[bytes], object]) -> None:
        write(b"x" * (3 << 20))
        msg = "no more"
        raise ValueError(msg)

    lane = Lane(read_all)
    with pytest.raises(ValueError, match="no more"):
        feed(fail, lane)
    with pytest.raises(Abandoned, match="the producer failed"):
        lane.result()
    assert not [thread for thread in threading.enumerate() if thread.name == "pycontainer-lane"]


def test_a_consumer_that_does_not_read_does_not_block() -> None:
    lane = Lane(lambda _stream: "done")
    feed(produce_much, lane)
    assert lane.result() == "done"


def test_lanes_that_never_began_have_no_threads() -> None:
    def interrupted(_write: Callable[[bytes], object]) -> None:
        raise KeyboardInterrupt

    Lane(read_all)  # and an interrupt before it is fed
    lane = Lane(read_all)
    with pytest.raises(KeyboardInterrupt):
        feed(interrupted, lane)
    lane.end(abandoned=True)
    assert not [thread for thread in threading.enumerate() if thread.name == "pycontainer-lane"]
