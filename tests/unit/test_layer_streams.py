"""Blobs and their compression, digests and limits: what goes around the tar of a layer."""

from __future__ import annotations

import gzip
import hashlib
import io
import os
import tarfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import zstandard

from pycontainer.distribution.layer import LayerLimits, apply
from pycontainer.errors import DigestMismatch, ImageError

SKIPPABLE = b"\x50\x2a\x4d\x18\x04\0\0\0abcd"  # RFC 8878, section 3.1.2


def make_tar(files: dict[str, bytes]) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            info.uid, info.gid = os.geteuid(), os.getegid()
            archive.addfile(info, io.BytesIO(content))
    return out.getvalue()


FILES = {"a": b"hello", "dir/b": os.urandom(1 << 20)}
TAR = make_tar(FILES)
HALF = len(TAR) // 2
GZIP = gzip.compress(TAR, 1)
ZSTD = zstandard.compress(TAR)
BLOBS = {
    "plain": TAR,
    "gzip": GZIP,
    "gzip members": gzip.compress(TAR[:HALF]) + gzip.compress(b"") + gzip.compress(TAR[HALF:]),
    "gzip and padding": GZIP + bytes(700_000),
    "zstd": ZSTD,
    "zstd frames": SKIPPABLE + zstandard.compress(TAR[:HALF]) + SKIPPABLE + zstandard.compress(TAR[HALF:]) + SKIPPABLE,
}


def sha(data: bytes) -> str:
    return "sha256:" + hashlib.sha256(data).hexdigest()


@pytest.fixture
def target(tmp_path: Path) -> Path:
    path = tmp_path / "layer"
    path.mkdir()
    return path


@pytest.mark.parametrize("name", BLOBS)
def test_one_pass_gives_both_digests_and_the_copy(name: str, target: Path) -> None:
    blob, copy = BLOBS[name], io.BytesIO()
    applied = apply(io.BytesIO(blob), target, expected_digest=sha(blob), expected_diff_id=sha(TAR), copy_to=copy.write)
    assert (applied.digest, applied.diff_id) == (sha(blob), sha(TAR))
    assert (applied.size, applied.bytes, applied.entries) == (len(blob), len(TAR), 2)
    assert applied.content == sum(map(len, FILES.values()))
    assert copy.getvalue() == blob
    assert {path: (target / path).read_bytes() for path in FILES} == FILES


def test_paths_descriptors_and_streams_are_the_same(tmp_path: Path, target: Path) -> None:
    path = tmp_path / "blob"
    path.write_bytes(b"before" + GZIP)
    fd = os.open(target, os.O_RDONLY)
    blob = os.open(path, os.O_RDONLY)
    try:
        os.lseek(blob, 6, os.SEEK_SET)
        assert apply(blob, fd).digest == sha(GZIP)
        os.fstat(fd)
        os.fstat(blob)
    finally:
        os.close(fd)
        os.close(blob)
    assert (target / "a").read_bytes() == b"hello"


@pytest.mark.parametrize("name", [name for name in BLOBS if name != "gzip and padding"])
@pytest.mark.parametrize("part", [0.1, 0.5, 0.9])
def test_blobs_that_are_cut_short_are_refused(name: str, part: float, target: Path) -> None:
    blob = BLOBS[name]
    cut = blob[: int(len(blob) * part)]
    with pytest.raises(ImageError):
        apply(io.BytesIO(cut), target)
    with pytest.raises(DigestMismatch, match="blob is damaged"):
        apply(io.BytesIO(cut), target, expected_digest=sha(blob))


@pytest.mark.parametrize("blob", [GZIP + b"garbage", ZSTD + b"garbage", b"", b"not a tar" * 1000, GZIP[:100] + ZSTD])
def test_what_is_no_layer_is_refused(blob: bytes, target: Path) -> None:
    with pytest.raises(ImageError):
        apply(io.BytesIO(blob), target)


def test_every_digest_is_verified(target: Path) -> None:
    with pytest.raises(DigestMismatch) as caught:
        apply(io.BytesIO(GZIP), target, expected_diff_id=sha(b""))
    assert (caught.value.expected, caught.value.actual) == (sha(b""), sha(TAR))
    with pytest.raises(DigestMismatch):
        apply(io.BytesIO(GZIP), target, expected_digest=sha(b""), expected_diff_id=sha(TAR))
    changed = bytearray(TAR)
    changed[-1] ^= 1  # behind the end of the archive, where no reader of tar looks
    with pytest.raises(DigestMismatch):
        apply(io.BytesIO(bytes(changed)), target, expected_diff_id=sha(TAR))


def test_an_end_marker_is_needed_unless_a_digest_vouches(target: Path) -> None:
    bare = TAR.rstrip(b"\0")
    bare += bytes(-len(bare) % 512)
    with pytest.raises(ImageError, match="cut short"):
        apply(io.BytesIO(bare), target)
    assert apply(io.BytesIO(bare), target, expected_diff_id=sha(bare)).entries == 2


@pytest.mark.parametrize("compress", [gzip.compress, zstandard.compress])
def test_decompression_bombs_are_refused(compress: object, target: Path) -> None:
    assert callable(compress)
    bomb = compress(make_tar({"zeros": bytes(80 << 20)}))
    with pytest.raises(ImageError, match="decompression bomb"):
        apply(io.BytesIO(bomb), target, limits=LayerLimits(ratio=20))
    with pytest.raises(ImageError, match="limit of bytes"):
        apply(io.BytesIO(bomb), target, limits=LayerLimits(size=1 << 20))


def test_the_number_of_entries_is_limited(target: Path) -> None:
    blob = make_tar({f"{number}": b"" for number in range(11)})
    with pytest.raises(ImageError, match=r"limit of entries '10'.*LayerLimits"):
        apply(io.BytesIO(blob), target, limits=LayerLimits(entries=10))
    deep = make_tar({"/".join("d" * 20): b""})
    with pytest.raises(ImageError, match="limit of entries"):
        apply(io.BytesIO(deep), target, limits=LayerLimits(entries=10))


def test_long_headers_are_limited(target: Path) -> None:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as archive:
        info = tarfile.TarInfo("x")
        info.pax_headers = {"comment": "x" * 5000}
        archive.addfile(info)
    with pytest.raises(ImageError, match="extended header"):
        apply(io.BytesIO(out.getvalue()), target, limits=LayerLimits(header=4096))


def test_unknown_compression_is_a_wrong_argument(target: Path) -> None:
    with pytest.raises(ValueError, match="'lzma'"):
        apply(io.BytesIO(TAR), target, compression="lzma")  # type: ignore[arg-type]


def test_an_error_of_the_reader_is_passed_on_and_nothing_leaks(target: Path) -> None:
    def fail(_: bytes) -> None:
        raise OSError(28, "no space for the copy")

    before = len(list(Path("/proc/self/fd").iterdir()))
    with pytest.raises(OSError, match="no space for the copy"):
        apply(io.BytesIO(GZIP), target, copy_to=fail)
    with pytest.raises(ImageError):
        apply(io.BytesIO(GZIP[:-5000]), target)
    assert len(list(Path("/proc/self/fd").iterdir())) == before


def test_threads_apply_side_by_side(tmp_path: Path) -> None:
    targets = [tmp_path / str(number) for number in range(4)]
    for path in targets:
        path.mkdir()
    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(lambda path: apply(io.BytesIO(GZIP), path), targets))
    assert len(set(results)) == 1
