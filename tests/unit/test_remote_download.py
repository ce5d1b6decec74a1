"""Downloads from a registry of which anything may be wrong: the blob arrives as it is, or the error is clear."""

from __future__ import annotations

import fcntl
import random
import threading
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pycontainer.distribution.download import RemoteBlob
from pycontainer.distribution.hosts import Registries
from pycontainer.distribution.partial import Download
from pycontainer.distribution.remote import Client
from pycontainer.errors import RegistryError
from pycontainer.names import parse_reference
from pycontainer.oci.image import LAYER, Descriptor
from tests.registry import Served, serve

DATA = random.Random(3).randbytes(2_500_000)  # noqa: S311 - test data
DIGEST = "sha256:" + "0" * 64  # nobody here looks
BLOB = Descriptor(media_type=LAYER, digest=DIGEST, size=len(DATA))
FAULTS = ("", "cut", "reset", "busy", "no ranges", "other range", "short", "long", "gone")


class Server:
    """Serves the blob, with a fault for each request in turn."""

    def __init__(self, faults: list[str]) -> None:
        self.faults = faults
        self.ranges: list[str | None] = []

    def respond(self, request: Served) -> None:
        fault = self.faults.pop(0) if self.faults else ""
        asked = request.headers.get("range")
        self.ranges.append(asked)
        start = int(asked[6:-1]) if asked and fault != "no ranges" else 0
        if fault == "busy":
            request.answer(503, b"", Retry_After="0")
        elif fault == "gone":
            request.answer(404, b"")
        elif fault == "reset":
            request.cut()
        else:
            shown = start + 7 if fault == "other range" else start
            total = len(DATA) + {"short": -1, "long": 1}.get(fault, 0)
            words = {"Content_Range": f"bytes {shown}-{total - 1}/{total}"} if start else {}
            body = DATA[start:] + (b"x" if fault == "long" else b"")
            body = body[: total - start]
            sent = body[: len(body) // 2] if fault == "cut" else body
            request.answer(206 if start else 200, sent, Content_Length=str(len(body)), **words)
            if fault == "cut":
                request.cut()


def fetch(server: Server) -> bytes:
    with serve(server.respond) as host:
        registries = Registries(insecure=[f"http://{host}"], auth_file="/nonexistent", backoff=0.001, read_timeout=2.0)
        with Client(registries) as client, client.origin(parse_reference(f"{host}/a")).blob(BLOB) as stream:
            return b"".join(iter(stream.read, b""))


@settings(max_examples=40, deadline=None)
@given(st.lists(st.sampled_from(FAULTS), max_size=7))
def test_it_arrives_or_fails_clearly(faults: list[str]) -> None:
    server = Server(list(faults))
    try:
        got: bytes | None = fetch(server)
    except RegistryError as error:
        assert len(str(error)) > 20  # noqa: PT017 - whether it fails is not known
        got = None
    if got is not None:
        assert got == DATA
    elif not set(faults) & {"other range", "short", "long", "gone"}:
        assert len(faults) >= 5, "what passes is survived, up to the attempts allowed"


@pytest.mark.parametrize("fault", ["short", "long", "gone"])
def test_a_lie_is_not_believed_the_second_time_either(fault: str) -> None:
    with pytest.raises(RegistryError):
        fetch(Server(["cut", fault, fault, fault, fault, fault]))


# ── kept ──────────────────────────────────────────────────────────────────────────────────────────────────────────


class _Fake(RemoteBlob):
    """Bytes from memory in place of a registry's."""

    def __init__(self, offset: int) -> None:
        self.offset = offset

    def read(self, size: int = 1 << 16) -> bytes:
        piece = DATA[self.offset : self.offset + min(size, 100_000)]
        self.offset += len(piece)
        return piece

    def close(self) -> None:
        pass


@given(left=st.integers(0, len(DATA) + 5), sizes=st.lists(st.integers(20_000, 300_000), min_size=1, max_size=4))
@settings(max_examples=25, deadline=None)
def test_what_was_left_comes_first(tmp_path_factory: pytest.TempPathFactory, left: int, sizes: list[int]) -> None:
    directory = tmp_path_factory.mktemp("downloads")
    (directory / DIGEST.replace(":", "-")).write_bytes((DATA + b"extra")[:left])
    asked: list[int] = []

    def begin(offset: int) -> RemoteBlob:
        asked.append(offset)
        return _Fake(offset)

    download = Download(directory, DIGEST, len(DATA), begin)
    pieces: list[bytes] = []
    while piece := download.read(sizes[len(pieces) % len(sizes)]):
        pieces.append(piece)
    download.close()
    assert b"".join(pieces) == DATA == download.kept.read_bytes()
    assert asked[:1] == [0 if left > len(DATA) else left]


def test_one_writer_at_a_time(tmp_path: Path) -> None:
    first = Download(tmp_path, DIGEST, len(DATA), _Fake)
    first.read(1000)
    found: list[Download] = []
    thread = threading.Thread(target=lambda: found.append(Download(tmp_path, DIGEST, len(DATA), _Fake)))
    thread.start()
    time.sleep(0.1)
    assert found == [], "it waits for the first"
    first.kept.rename(tmp_path / "published")
    first.close()
    thread.join(5)
    assert found[0].resumed == 0, "what was moved away is not written to any more"
    found[0].read(1000)
    assert (tmp_path / "published").stat().st_size == 1000
    with found[0].kept.open("rb") as other, pytest.raises(BlockingIOError):
        fcntl.flock(other, fcntl.LOCK_SH | fcntl.LOCK_NB)
    found[0].close()
