"""One pass over a blob gives the tar, its index and both digests; what is refused, and with which words."""

from __future__ import annotations

import gzip
import hashlib
import io
import os
import struct
import tarfile
from contextlib import ExitStack
from pathlib import Path

import pytest
import zstandard

from pycontainer.distribution import erofs
from pycontainer.distribution.layer import LayerLimits
from pycontainer.errors import DigestMismatch, ImageError, StoreError

CAPABILITY = bytes.fromhex("0100000200200000000000000000000000000000")


def make_tar(files: dict[str, bytes], **pax: str) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            info.pax_headers = pax
            archive.addfile(info, io.BytesIO(content))
    return out.getvalue()


TAR = make_tar({"a": b"hello", "dir/b": os.urandom(700_000)})
BLOBS = {"plain": TAR, "gzip": gzip.compress(TAR, 1), "zstd": zstandard.compress(TAR)}


def sha(data: bytes) -> str:
    return "sha256:" + hashlib.sha256(data).hexdigest()


@pytest.mark.parametrize("name", BLOBS)
def test_one_pass_gives_everything(name: str, tmp_path: Path) -> None:
    blob, copy = BLOBS[name], io.BytesIO()
    tar, index = tmp_path / "tar", tmp_path / "index"
    indexed = erofs.index(
        io.BytesIO(blob), tar, index, expected_digest=sha(blob), expected_diff_id=sha(TAR), copy_to=copy.write
    )
    assert (indexed.digest, indexed.diff_id) == (sha(blob), sha(TAR))
    assert (indexed.size, indexed.bytes, indexed.entries, indexed.implied) == (len(blob), len(TAR), 2, 1)
    assert indexed.content == 700_005
    assert copy.getvalue() == blob
    assert tar.read_bytes() == TAR
    assert index.stat().st_size == indexed.index_size < 8192
    assert tar.stat().st_mode & 0o777 == index.stat().st_mode & 0o777 == 0o600
    assert sha(TAR)[7:].encode() in index.read_bytes(), "the index names its tar"


def test_the_same_tar_gives_the_same_index(tmp_path: Path) -> None:
    many = make_tar({f"{number * 31 % 997}/{number}": b"x" * number for number in range(1000)})
    for blob, name in ((many, "one"), (gzip.compress(many), "two")):
        erofs.index(io.BytesIO(blob), tmp_path / f"{name}.tar", tmp_path / name)
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()
    erofs.index(io.BytesIO(TAR), None, tmp_path / "three")
    uuids = {(tmp_path / name).read_bytes()[1024 + 48 : 1024 + 64] for name in ("one", "two", "three")}
    assert len(uuids) == 2
    tars = [tmp_path / "one.tar", tmp_path / "two.tar"]
    for name in ("merged", "again"):
        erofs.merge(tars, tmp_path / name, diff_ids=[sha(many), sha(many)])
    assert (tmp_path / "merged").read_bytes() == (tmp_path / "again").read_bytes()


def test_a_tar_of_zeros_takes_no_room(tmp_path: Path) -> None:
    zeros = make_tar({"zeros": bytes(40 << 20)})
    erofs.index(io.BytesIO(gzip.compress(zeros, 1)), tmp_path / "tar", tmp_path / "index")
    assert (tmp_path / "tar").stat().st_size == len(zeros)
    assert (tmp_path / "tar").stat().st_blocks * 512 < 2 << 20
    assert sha((tmp_path / "tar").read_bytes()) == sha(zeros)


def test_what_is_damaged_or_too_much_is_refused(tmp_path: Path) -> None:
    def refuse(blob: bytes, match: str, **options: object) -> None:
        index = tmp_path / str(len(list(tmp_path.iterdir())))
        with pytest.raises(ImageError, match=match):
            erofs.index(io.BytesIO(blob), None, index, **options)  # type: ignore[arg-type]

    refuse(TAR[:300_000], "cannot index the layer: .*cut short")
    refuse(BLOBS["gzip"][:300_000], "cut short")
    refuse(b"not a tar" * 1000, "is it a tar")
    refuse(TAR, "limit of entries 'dir/b'", limits=LayerLimits(entries=1))
    refuse(TAR, "more than 100,000 bytes", limits=LayerLimits(size=100_000))
    refuse(
        make_tar({f"{n}": b"" for n in range(5000)}), "limit of memory: .*LayerLimits", limits=LayerLimits(tree=1 << 18)
    )
    refuse(make_tar({"../x": b""}), "climbs")
    refuse(make_tar({"x": b""}, **{"SCHILY.xattr.security.capability": "no"}), "set an extended attribute 'x'")
    refuse(make_tar({"x": b""}, **{"SCHILY.xattr.system.posix_acl_access": "no"}), "set an extended attribute 'x'")
    refuse(make_tar({"x": b""}, **{"SCHILY.xattr.user.a": "v" * 70_000}), "set an extended attribute 'x'")
    refuse(make_tar({"x": b""}, **{f"SCHILY.xattr.user.{n}": "v" * 60_000 for n in range(9)}), "so many extended")
    with pytest.raises(DigestMismatch):
        erofs.index(io.BytesIO(TAR), None, tmp_path / "digest", expected_diff_id=sha(b""))


def test_links_that_lead_ever_deeper_are_refused(tmp_path: Path) -> None:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as archive:
        base = "top"
        for number in range(5):
            deep = base + "/d" * 1000
            directory, link = tarfile.TarInfo(deep), tarfile.TarInfo(f"to-{number}")
            directory.type, link.type, link.linkname = tarfile.DIRTYPE, tarfile.SYMTYPE, f"/{deep}"
            archive.addfile(directory)
            archive.addfile(link)
            base = f"to-{number}"
    with pytest.raises(ImageError, match="within a depth of 4096 'to-3/d"):
        erofs.index(io.BytesIO(out.getvalue()), None, tmp_path / "index")


@pytest.mark.parametrize("signed", [False, True])
def test_checksums_of_old_writers_are_good_and_wrong_ones_are_not(tmp_path: Path, signed: bool) -> None:
    header = bytearray(tarfile.TarInfo("n\u00e9\u00ff").tobuf(tarfile.USTAR_FORMAT, "latin-1"))
    header[148:156] = b" " * 8
    total = sum(byte - 256 if signed and byte > 127 else byte for byte in header)
    for wrong in (0, 1, -1, 256):
        header[148:156] = b"%06o\0 " % (total + wrong)
        archive = io.BytesIO(bytes(header) + bytes(1024))
        if not wrong:
            assert erofs.index(archive, None, tmp_path / "good").entries == 1
            continue
        with pytest.raises(ImageError, match="checksum"):
            erofs.index(archive, None, tmp_path / str(wrong))


def test_maps_of_sparse_files_are_limited(tmp_path: Path) -> None:
    """Files of nearly 8 EiB without content: each is a hole, cut into chunks of the largest size."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for number in range(3):
            info = tarfile.TarInfo(f"{number}")
            info.pax_headers = {"GNU.sparse.map": "0,0", "GNU.sparse.size": f"{9 * 10**18}"}
            archive.addfile(info)
    with pytest.raises(ImageError, match=r"maps of sparse files within the limit '1'"):
        erofs.index(io.BytesIO(out.getvalue()), None, tmp_path / "index")


def test_a_mark_for_overlays_of_users(tmp_path: Path) -> None:
    layer = make_tar({"d/.wh..wh..opq": b"", ".wh.x": b""})
    for marks, there, absent in (("trusted", 4, 1), ("user", 1, 4)):
        indexed = erofs.index(io.BytesIO(layer), None, tmp_path / marks, marks=marks)  # type: ignore[arg-type]
        assert not indexed.hides_all
        found = (tmp_path / marks).read_bytes()
        assert struct.pack("<BBH", 14, there, 1) + b"overlay.opaquey" in found
        assert struct.pack("<BBH", 14, absent, 1) + b"overlay.opaquey" not in found
    assert erofs.index(io.BytesIO(make_tar({".wh..wh..opq": b""})), None, tmp_path / "all").hides_all


def test_attributes_that_mean_something_to_the_host_are_dropped(tmp_path: Path) -> None:
    names = ("trusted.overlay.redirect", "security.selinux", "user.overlay.opaque", "system.nfs4_acl", "odd")
    pax = {f"SCHILY.xattr.{name}": "y" for name in names} | {"SCHILY.xattr.user.kept": "v"}
    indexed = erofs.index(io.BytesIO(make_tar({"x": b""}, **pax)), None, tmp_path / "index")
    assert indexed.dropped_xattrs == len(names)
    assert b"keptv" in (tmp_path / "index").read_bytes()


def test_files_that_cannot_be_made_or_read(tmp_path: Path) -> None:
    (tmp_path / "there").write_bytes(b"")
    with pytest.raises(StoreError, match=r"make the file .*there: File exists"):
        erofs.index(io.BytesIO(TAR), tmp_path / "there", tmp_path / "index")
    with pytest.raises(StoreError, match=r"open .*absent: No such file"):
        erofs.merge([tmp_path / "absent"], tmp_path / "merged", diff_ids=[sha(b"")])
    with pytest.raises(ValueError, match="not 1 and 0"):
        erofs.merge([tmp_path / "absent"], tmp_path / "more", diff_ids=[])
    (tmp_path / "cut").write_bytes(TAR[:400_000])
    with pytest.raises(ImageError, match="cannot index the layers: read on: the archive is cut short"):
        erofs.merge([tmp_path / "cut"], tmp_path / "short", diff_ids=[sha(b"")])


@pytest.mark.parametrize("which", ["tar", "index"])
def test_a_full_disk_is_not_the_images_fault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, which: str) -> None:
    create = erofs._create

    def create_full(stack: ExitStack, path: Path) -> int:
        if path.name != which:
            return create(stack, path)
        fd = os.open("/dev/full", os.O_RDWR)
        stack.callback(os.close, fd)
        return fd

    monkeypatch.setattr(erofs, "_create", create_full)
    with pytest.raises(StoreError, match=r"No space left on device; free some space"):
        erofs.index(io.BytesIO(TAR), tmp_path / "tar", tmp_path / "index")


def test_an_error_of_the_reader_is_passed_on_and_nothing_leaks(tmp_path: Path) -> None:
    def fail(_: bytes) -> None:
        raise OSError(28, "no space for the copy")

    before = len(list(Path("/proc/self/fd").iterdir()))
    with pytest.raises(OSError, match="no space for the copy"):
        erofs.index(io.BytesIO(TAR), tmp_path / "tar", tmp_path / "index", copy_to=fail)
    with pytest.raises(ImageError):
        erofs.index(io.BytesIO(TAR[:5000]), tmp_path / "tar2", tmp_path / "index2")
    assert len(list(Path("/proc/self/fd").iterdir())) == before
