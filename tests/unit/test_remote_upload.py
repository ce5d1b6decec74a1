"""Uploads to a registry that loses connections, answers and sessions: the blob arrives, or the error is clear."""

from __future__ import annotations

import hashlib
import io
import random
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from urllib.parse import urlsplit

import attrs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pycontainer.distribution.hosts import Registries
from pycontainer.distribution.remote import Client, Remote
from pycontainer.errors import RegistryError
from pycontainer.names import parse_reference
from tests.registry import Served, serve

DATA = random.Random(7).randbytes(3 << 20)  # noqa: S311 - test data
DIGEST = "sha256:" + hashlib.sha256(DATA).hexdigest()


@attrs.define
class Store:
    """A registry's uploads, and what goes wrong with them.

    Attributes:
        faults: for each request in turn: ``""``, ``"lost answer"``, ``"busy"``, ``"cut"`` in the middle of the body,
            ``"forgotten"`` session, ``"refused"`` offset.
    """

    faults: list[str] = attrs.field(factory=list)
    sessions: dict[str, bytes] = attrs.field(factory=dict)
    blobs: dict[str, bytes] = attrs.field(factory=dict)
    seen: list[str] = attrs.field(factory=list)
    least: int = 0

    def respond(self, request: Served) -> None:
        fault = self.faults.pop(0) if self.faults and request.method != "HEAD" else ""
        self.seen.append(f"{request.method} {fault}".strip())
        if fault == "busy":
            request.answer(503, b"", Retry_After="0")
            return
        path = urlsplit(request.path).path
        session = path.rpartition("/")[2]
        if request.method == "POST":
            session = f"s{len(self.seen)}"
            self.sessions[session] = b""
        elif request.method == "HEAD":
            self._head(request, session)
            return
        elif session not in self.sessions or fault == "forgotten":
            self.sessions.pop(session, None)
            request.answer(404, b'{"errors":[{"code":"BLOB_UPLOAD_UNKNOWN"}]}')
            return
        self._work(request, session, path, fault)

    def _head(self, request: Served, digest: str) -> None:
        found = self.blobs.get(digest)
        request.answer(404 if found is None else 200, Content_Length=str(len(found or b"")))

    def _work(self, request: Served, session: str, path: str, fault: str) -> None:
        held = self.sessions[session]
        if request.method == "DELETE":
            del self.sessions[session]
            request.answer(204)
            return
        if request.method in ("PATCH", "PUT"):
            start = request.headers.get("content-range", f"{len(held)}-").partition("-")[0]
            if fault == "refused" or int(start) != len(held):
                request.answer(416, Location=path, Range=f"0-{max(0, len(held) - 1)}")
                return
            body = request.body[: len(request.body) // 2] if fault == "cut" else request.body
            held = self.sessions[session] = held + body
        status = 204 if request.method == "GET" else 202
        if request.method == "PUT" and fault != "cut":
            digest = request.query["digest"][0]
            status = 201 if "sha256:" + hashlib.sha256(held).hexdigest() == digest else 400
            if status == 201:
                self.blobs[digest] = held
            self.sessions.pop(session)
        if fault in ("cut", "lost answer"):
            request.cut()
            return
        words = {"OCI_Chunk_Min_Length": str(self.least)} if self.least else {}
        place = path if request.method != "POST" else path + session
        request.answer(status, b"", Location=place, Range=f"0-{max(0, len(held) - 1)}", **words)


@contextmanager
def uploading(store: Store) -> Iterator[Remote]:
    with ExitStack() as stack:
        host = stack.enter_context(serve(store.respond))
        options = Registries(insecure=[f"http://{host}"], auth_file="/nonexistent", backoff=0.001, read_timeout=2.0)
        client = stack.enter_context(Client(options))
        yield client.origin(parse_reference(f"{host}/team/app"), "pull", "push")


def send(remote: Remote, data: bytes = DATA, chunk_size: int | None = None) -> str:
    digest = "sha256:" + hashlib.sha256(data).hexdigest()
    return remote.upload(digest, len(data), lambda offset: io.BytesIO(data[offset:]), chunk_size=chunk_size)


def test_without_faults() -> None:
    store = Store()
    with uploading(store) as remote:
        assert send(remote) == "sent"
        assert store.seen == ["HEAD", "POST", "PATCH", "PUT"]
        assert send(remote) == "exists"
        store.seen.clear()
        assert send(remote, b"small") == "sent"
        assert store.seen == ["HEAD", "POST", "PUT"], "what is small goes with the last request"
        store.seen.clear()
        assert send(remote, b"") == "sent"
    assert store.blobs[DIGEST] == DATA
    assert store.sessions == {}


def test_chunks_are_as_large_as_the_registry_wants() -> None:
    store = Store(least=1 << 20)
    with uploading(store) as remote:
        assert send(remote, chunk_size=1000) == "sent"
    assert store.seen.count("PATCH") == 3
    assert store.blobs[DIGEST] == DATA


@pytest.mark.parametrize(
    ("faults", "chunk_size"),
    [
        (["busy", "", "busy", ""], None),
        (["", "lost answer"], None),
        (["", "cut"], None),
        (["", "cut", "busy"], None),
        (["", "", "refused", "", "lost answer"], 1 << 20),
        (["", "cut", "forgotten"], None),
        (["", "", "lost answer"], None),
        (["", "", "cut"], None),
        (["lost answer"], None),
        (["", "", "forgotten"], 1 << 20),
    ],
)
def test_faults_are_survived(faults: list[str], chunk_size: int | None) -> None:
    store = Store(faults)
    with uploading(store) as remote:
        assert send(remote, chunk_size=chunk_size) == "sent"
    assert store.blobs[DIGEST] == DATA


def test_what_arrived_is_not_sent_again() -> None:
    store = Store(["", "cut"])
    offsets: list[int] = []

    def open_at(offset: int) -> io.BytesIO:
        offsets.append(offset)
        return io.BytesIO(DATA[offset:])

    with uploading(store) as remote:
        assert remote.upload(DIGEST, len(DATA), open_at) == "sent"
    assert offsets == [0, len(DATA) // 2]


def test_patience_ends_and_the_upload_is_cancelled() -> None:
    store = Store(["", *["busy"] * 50])
    with uploading(store) as remote, pytest.raises(RegistryError, match="503") as caught:
        send(remote)
    assert caught.value.status == 503
    assert 5 < len(store.seen) < 50


@pytest.mark.parametrize(
    ("headers", "words"),
    [
        ({}, "does not say where the upload goes"),
        ({"Location": "ftp://x/"}, "no URL of http"),
        ({"Location": "/a b"}, "no URL"),
    ],
)
def test_where_an_upload_goes_is_checked(headers: dict[str, str], words: str) -> None:
    def respond(request: Served) -> None:
        request.answer(404 if request.method == "HEAD" else 202, b"", **headers)

    with (
        serve(respond) as host,
        Client(Registries(insecure=[f"http://{host}"], auth_file="/nonexistent")) as client,
        pytest.raises(RegistryError, match=words),
    ):
        send(client.origin(parse_reference(f"{host}/a"), "pull", "push"))


def test_a_registry_cannot_have_more_than_was_sent() -> None:
    def respond(request: Served) -> None:
        if request.method == "HEAD":
            request.answer(404)
        else:
            request.answer(202, Location="/v2/a/blobs/uploads/x", Range="0-99999999999")

    with (
        serve(respond) as host,
        Client(Registries(insecure=[f"http://{host}"], auth_file="/nonexistent")) as client,
        pytest.raises(RegistryError, match="it says it has 100000000000 bytes"),
    ):
        send(client.origin(parse_reference(f"{host}/a"), "pull", "push"))


@settings(max_examples=25, deadline=None)
@given(
    faults=st.lists(st.sampled_from(["", "", "lost answer", "busy", "cut", "forgotten", "refused"]), max_size=8),
    chunk_size=st.sampled_from([None, 1 << 20, 700_000]),
)
def test_it_arrives_or_fails_clearly(faults: list[str], chunk_size: int | None) -> None:
    store = Store(faults)
    with uploading(store) as remote:
        try:
            sent = send(remote, chunk_size=chunk_size)
        except RegistryError as error:
            sent = str(error)
    assert sent in ("sent", "exists") or len(sent) > 20
    if sent in ("sent", "exists"):
        assert store.blobs == {DIGEST: DATA}
