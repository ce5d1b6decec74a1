"""Images from anywhere: streams read once, held to what was promised, nothing left when one fails."""

from __future__ import annotations

import functools
import gzip
import io
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from pycontainer.distribution.sources import BlobSource, LayerSource, Source
from pycontainer.distribution.transfer import add_image, host_platform
from pycontainer.errors import DigestMismatch, ImageError
from pycontainer.model import ImageConfig
from pycontainer.oci.image import LAYER_GZIP, Descriptor, ImageDocument, Index, Manifest
from pycontainer.store import Store
from tests.archives import member, sha, tar

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from pycontainer.progress import Progress

ONE = tar(member("one", b"1" * 100_000))
TWO = tar(member("two", b"2" * 100_000))


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store.open(tmp_path / "store") as opened:
        yield opened


class Stream:
    """What a registry gives: short reads, no file behind it, and a note of being closed."""

    closed = 0

    def __init__(self, data: bytes, kept: Path | None = None) -> None:
        self._data = io.BytesIO(data)
        self.kept = kept

    def read(self, size: int, /) -> bytes:
        data = self._data.read(min(size, 7000))
        if self.kept is not None:
            with self.kept.open("ab") as file:
                file.write(data)
        return data

    def close(self) -> None:
        type(self).closed += 1


def layer(
    plain: bytes, blob: bytes | None = None, *, opened: Callable[[], Stream] | None = None, size: int | None = None
) -> LayerSource:
    blob = gzip.compress(plain, mtime=0) if blob is None else blob
    return LayerSource(
        name="the layer",
        open=opened or functools.partial(Stream, blob),
        digest=sha(blob),
        size=len(blob) if size is None else size,
        media_type=LAYER_GZIP,
        diff_id=sha(plain),
        state="downloading",
    )


def source(*layers: LayerSource, blobs: tuple[BlobSource, ...] = (), digests: tuple[str, ...] = ()) -> Source:
    document = ImageDocument(
        platform=host_platform(), diff_ids=tuple(item.diff_id for item in layers), config=ImageConfig()
    )
    config = document.to_bytes()
    described = [Descriptor(media_type=LAYER_GZIP, digest=item.digest or "", size=item.size or 0) for item in layers]
    manifest = Manifest(
        config=Descriptor(media_type="application/vnd.oci.image.config.v1+json", digest=sha(config), size=len(config)),
        layers=tuple(described),
    )
    return Source(
        config=config,
        document=document,
        layers=layers,
        manifest=manifest.to_bytes(),
        media_type=manifest.media_type,
        blobs=blobs,
        digests=digests,
    )


def is_empty(store: Store) -> bool:
    left = [*store.blobs.list(), *store.snapshots.list(), *store.db.images(), *(store.root / "tmp").iterdir()]
    return left == []


def test_streams_become_an_image_byte_for_byte(store: Store) -> None:
    Stream.closed = 0
    wanted = source(layer(ONE), layer(TWO))
    identity = add_image(store, wanted, references=["docker.io/library/x:1"])
    assert Stream.closed == 2
    row = store.db.by_name("docker.io/library/x:1")
    assert row is not None
    assert row.id == identity
    assert store.blobs.read(row.digest, limit=1 << 20) == wanted.manifest
    for item in wanted.layers:
        with store.blobs.open(item.digest or "") as file:
            assert sha(file.read()) == item.digest
    lowers = store.acquire(identity)
    store.release(identity)
    assert [len(list(Path(lower).iterdir())) for lower in lowers] == [1, 1]


def test_a_layer_that_is_here_is_not_opened(store: Store) -> None:
    def refuse() -> Stream:
        pytest.fail("it was fetched again")

    first = source(layer(ONE), layer(TWO))
    add_image(store, first, references=[])
    again = source(layer(ONE, opened=refuse), layer(TWO, opened=refuse))
    events: list[Progress] = []
    add_image(store, again, references=["docker.io/library/y:1"], progress=events.append)
    add_image(store, source(layer(ONE, opened=refuse)), references=[], progress=events.append)
    states = [event.state for event in events]
    assert states == ["waiting", "waiting", "exists", "exists", "image", "waiting", "exists", "image"]
    assert [event.moved for event in events] == [0] * len(events)


def test_another_blob_of_a_layer_is_verified_and_kept(store: Store) -> None:
    add_image(store, source(layer(ONE)), references=["docker.io/library/x:1"])
    other = layer(ONE, gzip.compress(ONE, compresslevel=1, mtime=5))
    wrong = layer(ONE, gzip.compress(TWO))
    with pytest.raises(DigestMismatch, match="the layer is damaged"):
        add_image(store, source(wrong), references=[])
    states: list[str] = []
    add_image(store, source(other), references=[], progress=lambda event: states.append(event.state))
    assert states[:2] == ["waiting", "verifying"]
    assert sha(gzip.compress(ONE, compresslevel=1, mtime=5)) in store.blobs


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (lambda blob: {"size": len(blob) - 1}, ImageError, r"should have \d+ bytes, there are more"),
        (lambda blob: {"size": len(blob) + 1}, ImageError, r"should have \d+ bytes, there are only \d+"),
        (lambda blob: {"opened": lambda: Stream(blob + b"x")}, ImageError, "there are more"),
        (lambda blob: {"opened": lambda: Stream(blob[:-1])}, DigestMismatch, "the layer's blob"),
        (lambda blob: {"opened": lambda: Stream(blob[:99] + b"xx" + blob[101:])}, DigestMismatch, "the layer's blob"),
    ],
)
def test_streams_that_break_their_promise(
    store: Store, change: Callable[[bytes], dict[str, object]], error: type[Exception], message: str
) -> None:
    blob = gzip.compress(ONE, mtime=0)
    with pytest.raises(error, match=message):
        add_image(store, source(layer(ONE, blob, **change(blob))), references=["x"])  # type: ignore[arg-type]
    assert is_empty(store)


def test_a_stream_that_keeps_its_bytes_gives_its_file(store: Store) -> None:
    kept = store.root / "partial"
    blob = gzip.compress(ONE, mtime=0)
    wrong = layer(ONE, blob, opened=lambda: Stream(blob[:-9] + b"x" * 9, kept))
    with pytest.raises(DigestMismatch):
        add_image(store, source(wrong), references=[])
    assert not kept.exists()
    short = layer(ONE, blob, opened=lambda: fail_after(Stream(blob, kept), 2))
    with pytest.raises(ConnectionError):
        add_image(store, source(short), references=[])
    assert kept.read_bytes() == blob[: kept.stat().st_size] != blob  # to be resumed
    kept.unlink()
    add_image(store, source(layer(ONE, blob, opened=lambda: Stream(blob, kept))), references=[])
    assert not kept.exists()
    with store.blobs.open(sha(blob)) as file:
        assert file.read() == blob


def fail_after(stream: Stream, reads: int) -> Stream:
    original, count = stream.read, iter(range(reads))

    def read(size: int, /) -> bytes:
        if next(count, None) is None:
            msg = "cut"
            raise ConnectionError(msg)
        return original(min(size, 20))

    stream.read = read  # type: ignore[method-assign]
    return stream


def test_the_failure_of_one_layer_ends_the_other(store: Store) -> None:
    going = threading.Event()

    class Endless(Stream):
        def read(self, size: int, /) -> bytes:
            going.set()
            time.sleep(0.005)
            return bytes(min(size, 512))

    class Failing(Stream):
        def read(self, _size: int, /) -> bytes:
            assert going.wait(10)
            msg = "the wire broke"
            raise ConnectionError(msg)

    slow = layer(ONE, b"\0" * 10, opened=lambda: Endless(b""), size=1 << 40)
    fails = layer(TWO, opened=lambda: Failing(b""))
    begin = time.monotonic()
    with pytest.raises(ConnectionError, match="the wire broke"):
        add_image(store, source(slow, fails, layer(tar(member("three", b"3")))), references=["x"])
    assert time.monotonic() - begin < 5
    assert is_empty(store)


def test_a_callback_that_fails_ends_the_transfer(store: Store) -> None:
    def report(event: Progress) -> None:
        if event.state == "done":
            msg = "enough"
            raise RuntimeError(msg)

    with pytest.raises(RuntimeError, match="enough"):
        add_image(store, source(layer(ONE), layer(TWO)), references=["x"], progress=report)
    assert is_empty(store)


def test_further_blobs_are_kept_with_the_image(store: Store) -> None:
    index = Index(manifests=()).to_bytes()
    attestation = b'{"_type":"https://in-toto.io/Statement/v0.1"}'
    blobs = (
        BlobSource.document(index, sha(index)),
        BlobSource(name="an attestation", open=lambda: Stream(attestation), digest=sha(attestation)),
    )
    digests = (f"r.example/x@{sha(index)}",)
    bare = source(layer(ONE))
    identity = add_image(store, bare, references=[])
    assert add_image(store, source(layer(ONE), blobs=blobs, digests=digests), references=[]) == identity
    row = store.db.by_id(identity)
    assert row is not None
    assert row.digests == digests
    assert set(store.db.blobs(identity)) == {sha(index), sha(attestation)}
    assert store.blobs.read(sha(attestation), limit=1000) == attestation
    store.collect()
    assert sha(index) in store.blobs
    store.remove_image(identity)
    assert is_empty(store)
    bad = BlobSource(name="a thing", open=lambda: Stream(b"x"), digest=sha(b"y"))
    with pytest.raises(DigestMismatch, match="a thing is damaged"):
        add_image(store, source(layer(ONE), blobs=(bad,)), references=[])
    assert is_empty(store)


def test_progress_adds_up(store: Store) -> None:
    events: list[Progress] = []
    wanted = source(layer(ONE), layer(TWO))
    total = sum(item.size or 0 for item in wanted.layers)
    identity = add_image(store, wanted, references=[], progress=events.append)
    assert [event.state for event in events[:2]] == ["waiting", "waiting"]
    assert events[1].total == total
    for item in wanted.layers:
        mine = [event for event in events if event.name == item.diff_id]
        assert mine[-1].state == "done"
        assert {event.state for event in mine} == {"waiting", "downloading", "done"}
        assert [event.done for event in mine] == sorted(event.done for event in mine)
        assert mine[-1].done == mine[-1].size == item.size
    last = events[-1]
    assert (last.state, last.name, last.size) == ("image", identity, len(ONE) + len(TWO))
    assert last.total_done == last.total == last.moved == total
    assert last.rate > 0
