"""Layers that attack the host or the overlay, and layers that are noise: refused or confined, never followed."""

from __future__ import annotations

import io
import os
import re
import stat
import subprocess
import tarfile
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import attrs
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pycontainer.distribution import erofs
from pycontainer.distribution.layer import AppliedLayer, LayerLimits, apply
from pycontainer.errors import Error, ImageError

SYMLINK, HARDLINK, DIRECTORY, CHAR, BLOCK = (
    tarfile.SYMTYPE,
    tarfile.LNKTYPE,
    tarfile.DIRTYPE,
    tarfile.CHRTYPE,
    tarfile.BLKTYPE,
)
Member = tuple[str, bytes, str, bytes]  # name, type, link, content


def member(name: str, kind: bytes = tarfile.REGTYPE, link: str = "", content: bytes = b"") -> Member:
    return name, kind, link, content


def make(*members: Member, pax: dict[str, str] | None = None) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for name, kind, link, content in members:
            info = tarfile.TarInfo(name)
            info.type, info.linkname, info.size = kind, link, len(content)
            info.mode = 0o755
            info.devmajor, info.devminor = (1, 3) if kind in (CHAR, BLOCK) else (0, 0)
            info.pax_headers = pax or {}
            archive.addfile(info, io.BytesIO(content))
    return out.getvalue()


def reason(error: ImageError) -> str:
    """Return why a layer was refused, without the names, of which one way may tell the beginning only."""
    return re.sub(r" '.*'", "", str(error).removeprefix("cannot apply").removeprefix("cannot index"), flags=re.DOTALL)


class Place:
    """A layer's directory with something valuable beside it."""

    def __init__(self, base: Path) -> None:
        self.layer = base / "layer"
        self.layer.mkdir()
        self.outside = base / "outside"
        self.outside.mkdir()
        (self.outside / "secret").write_text("secret")
        (self.outside / "secret").chmod(0o600)
        self._before = self._look(base)
        self._base = base

    def apply(self, blob: bytes, **options: Any) -> AppliedLayer:
        """Unpack a layer; and index it, with the same outcome, where it is refused for the same reason."""
        with tempfile.TemporaryDirectory() as elsewhere:
            index = Path(elsewhere) / "index"
            try:
                applied = apply(io.BytesIO(blob), self.layer, **options)
            except ImageError as error:
                with pytest.raises(ImageError) as caught:
                    erofs.index(io.BytesIO(blob), None, index, **options)
                assert reason(caught.value) == reason(error)  # noqa: PT017 - both outcomes are compared
                raise
            indexed = erofs.index(io.BytesIO(blob), None, index, **options)
        for field in attrs.fields_dict(AppliedLayer).keys() - {"implied"}:  # which may count more than there are
            assert getattr(indexed, field) == getattr(applied, field), field
        return applied

    def check(self) -> None:
        """Check that nothing but the layer's directory changed."""
        assert self._look(self._base) == self._before

    def _look(self, base: Path) -> list[tuple[object, ...]]:
        paths = [path for path in (*base.iterdir(), *self.outside.iterdir()) if path != self.layer]
        return [
            (
                path,
                info.st_ino,
                info.st_mode,
                info.st_uid,
                info.st_size,
                info.st_nlink,
                info.st_mtime_ns,
                info.st_ctime_ns,
            )
            for path in sorted(paths)
            for info in [path.lstat()]
        ]


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    made = Place(tmp_path)
    yield made
    made.check()


@pytest.mark.parametrize(
    "name", ["../evil", "a/../../evil", "/../evil", "..", "a/..", "./../x", "x/../../outside/secret"]
)
@pytest.mark.parametrize("kind", [tarfile.REGTYPE, SYMLINK, DIRECTORY, CHAR])
def test_names_that_climb_are_refused(place: Place, name: str, kind: bytes) -> None:
    with pytest.raises(ImageError, match=r"climbs with '\.\.'"):
        place.apply(make(member(name, kind, "x")))


def test_absolute_names_are_inside(place: Place) -> None:
    place.apply(make(member(f"{place.outside}/secret", content=b"mine")))
    assert (place.layer / str(place.outside / "secret").lstrip("/")).read_bytes() == b"mine"


@pytest.mark.parametrize(
    "target", ["..", "../outside", "/proc/self/root", "{outside}", "../../../../../../../..{outside}"]
)
def test_symlinked_parents_resolve_inside(place: Place, target: str) -> None:
    link = target.format(outside=place.outside)
    place.apply(
        make(
            member("link", SYMLINK, link),
            member("link/secret", content=b"mine"),
            member("link/dir", DIRECTORY),
            member("link/.wh.other"),
            member("link/.wh..wh..opq"),
            member("link/pipe", tarfile.FIFOTYPE),
        )
    )
    assert [path.read_bytes() for path in place.layer.rglob("secret")] == [b"mine"]


def test_a_symlink_in_the_place_of_a_parent_in_use_is_not_followed(place: Place) -> None:
    """The directory is known to the reader already when it becomes a link."""
    place.apply(
        make(
            member("dir", DIRECTORY),
            member("dir/first"),
            member("dir", SYMLINK, str(place.outside)),
            member("dir/secret", content=b"mine"),
        )
    )
    assert (place.layer / "dir").is_symlink()


def test_files_replace_symlinks_instead_of_writing_through_them(place: Place) -> None:
    secret = str(place.outside / "secret")
    place.apply(make(member("x", SYMLINK, secret), member("x", content=b"mine"), member("y", SYMLINK, secret)))
    assert (place.layer / "x").read_bytes() == b"mine"
    assert not (place.layer / "x").is_symlink()


@pytest.mark.parametrize("target", ["../outside/secret", "a/../../outside/secret"])
def test_hard_links_that_climb_are_refused(place: Place, target: str) -> None:
    with pytest.raises(ImageError, match="climbs"):
        place.apply(make(member("x", HARDLINK, target)))


def test_hard_links_to_absolute_or_linked_targets_stay_inside(place: Place) -> None:
    secret = str(place.outside / "secret")
    with pytest.raises(ImageError, match="open the parent"):
        place.apply(make(member("x", HARDLINK, secret)))
    with pytest.raises(ImageError, match=r"target of the hard link 'z'|open the parent"):
        place.apply(make(member("link", SYMLINK, str(place.outside)), member("z", HARDLINK, "link/secret")))


def test_a_hard_link_to_a_symlink_is_a_link_to_the_link(place: Place) -> None:
    place.apply(
        make(
            member("soft", SYMLINK, str(place.outside / "secret")),
            member("hard", HARDLINK, "soft"),
            member("hard", content=b"mine"),
        )
    )
    assert (place.layer / "soft").is_symlink()
    assert (place.layer / "hard").read_bytes() == b"mine"


def test_hard_links_to_directories_and_whiteouts_are_refused(place: Place) -> None:
    with pytest.raises(ImageError, match="hard-link to a directory"):
        place.apply(make(member("d", DIRECTORY), member("x", HARDLINK, "d")))
    with pytest.raises(ImageError, match="hard-link to a directory or whiteout"):
        place.apply(make(member(".wh.gone"), member("y", HARDLINK, "gone")))


@pytest.mark.parametrize("kind", [CHAR, BLOCK])
def test_device_nodes_are_refused_where_not_allowed(place: Place, kind: bytes) -> None:
    with pytest.raises(ImageError, match="refuse a device node 'dev/x'"):
        place.apply(make(member("dev/x", kind)), devices=False)
    place.apply(make(member("dev/x", kind)))
    assert (place.layer / "dev/x").stat().st_rdev == os.makedev(1, 3)


@pytest.mark.parametrize("name", [".wh.", ".wh..", ".wh...", "d/.wh..", ".wh.x/y", "a/.wh.b/c"])
def test_whiteouts_of_nothing_are_refused(place: Place, name: str) -> None:
    with pytest.raises(ImageError, match="whiteout"):
        place.apply(make(member(name)))


@pytest.mark.parametrize("name", [".wh..wh.plnk", ".wh..wh.aufs", ".wh..wh.plnk/1.2", "d/.wh..wh.orph/x"])
def test_what_aufs_kept_for_itself_is_skipped(place: Place, name: str) -> None:
    place.apply(make(member(name, content=b"x")))
    assert not [path for path in place.layer.rglob("*") if path.is_file()]


@pytest.mark.parametrize(
    "name",
    [
        "trusted.overlay.redirect",
        "trusted.overlay.metacopy",
        "trusted.overlay.opaque",
        "trusted.overlay.overlay.opaque",
        "user.overlay.opaque",
        "user.overlay.whiteout",
        "security.selinux",
        "security.ima",
    ],
)
def test_attributes_that_mean_something_to_the_host_are_dropped(place: Place, name: str) -> None:
    blob = make(member("d", DIRECTORY), member("f"), pax={f"SCHILY.xattr.{name}": "y", "SCHILY.xattr.user.ok": "y"})
    assert place.apply(blob).dropped_xattrs == 2
    assert os.listxattr(place.layer / "d") == ["user.ok"]
    assert os.listxattr(place.layer / "f") == ["user.ok"]


@pytest.mark.parametrize(("marks", "prefix"), [("trusted", "trusted"), ("user", "user")])
def test_whiteouts_as_an_overlay_wants_them(place: Place, marks: str, prefix: str) -> None:
    blob = make(
        member("d", DIRECTORY),
        member("d/.wh..wh..opq"),
        member("d/.wh.gone"),
        member(".wh.remade"),
        member("remade", DIRECTORY),
        member("plain", DIRECTORY),
    )
    assert not place.apply(blob, marks=marks).hides_all
    gone = (place.layer / "d/gone").lstat()
    assert stat.S_ISCHR(gone.st_mode)
    assert gone.st_rdev == 0
    opaque = f"{prefix}.overlay.opaque"
    assert os.getxattr(place.layer / "d", opaque) == b"y"
    assert os.getxattr(place.layer / "remade", opaque) == b"y"
    assert os.listxattr(place.layer / "plain") == []
    assert place.apply(make(member(".wh..wh..opq"))).hides_all


def test_in_a_plain_tree_whiteouts_are_files(place: Place) -> None:
    place.apply(make(member(".wh.x", content=b"x"), member("d/.wh..wh..opq")), marks="none")
    assert (place.layer / ".wh.x").read_bytes() == b"x"
    assert (place.layer / "d/.wh..wh..opq").is_file()
    assert os.listxattr(place.layer / "d") == []


def test_long_and_odd_names(place: Place) -> None:
    with pytest.raises(ImageError, match="use the name"):
        place.apply(make(member("x" * 256)))
    with pytest.raises(ImageError, match="use the name"):
        place.apply(make(member("/".join(["x" * 200] * 21))))
    place.apply(make(member("/".join(["y" * 200] * 20))))
    with pytest.raises(ImageError, match="PAX record 'path'"):
        place.apply(make(member("name"), pax={"path": "a\0b"}))
    with pytest.raises(ImageError, match=r"cannot apply the layer: replace the root"):
        place.apply(make(member("./", SYMLINK, str(place.outside))))


def test_chains_of_dangling_links_end(place: Place) -> None:
    links = [member(f"l{number}", SYMLINK, f"l{number + 1}") for number in range(30)]
    with pytest.raises(ImageError, match="too many symbolic links"):
        place.apply(make(*links, member("l0/x")))


def test_trees_deeper_than_a_path_is_long_can_be_replaced(place: Place) -> None:
    """Every link leads deeper than a path can say; then a file takes the place of all."""
    members = []
    for number in range(6):
        deep = "/".join(["d" * 200] * 15)
        base = "top" if number == 0 else f"to-{number - 1}"
        members += [member(f"{base}/{deep}", DIRECTORY), member(f"to-{number}", SYMLINK, f"/{base}/{deep}")]
    place.apply(make(*members, member("top", content=b"flat")))
    assert (place.layer / "top").read_bytes() == b"flat"


def test_owners_beyond_32_bits_are_refused(place: Place) -> None:
    with pytest.raises(ImageError, match="owner"):
        place.apply(make(member("x"), pax={"uid": str(2**32 - 1)}))
    place.apply(make(member("x"), pax={"uid": str(2**32 - 2)}))
    assert (place.layer / "x").stat().st_uid == 2**32 - 2


def test_a_full_disk_is_not_the_images_fault(tmp_path: Path) -> None:
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "none", tmp_path], check=True)
    try:
        with pytest.raises(
            Error, match=r"cannot apply the layer: write 'big': No space left.*free some space"
        ) as caught:
            apply(io.BytesIO(make(member("big", content=bytes(1 << 20)))), tmp_path)
        assert caught.value.code == "store"
    finally:
        subprocess.run(["umount", tmp_path], check=True)


VALID = [
    make(
        member("d", DIRECTORY), member("d/f", content=b"x" * 700), member("l", SYMLINK, "../.."), member("l/outside/x")
    ),
    make(
        member("n" * 150, content=b"y"),
        member("h", HARDLINK, "n" * 150),
        pax={"SCHILY.xattr.user.a": "b", "mtime": "1.5"},
    ),
    make(member("a/.wh.b"), member("a/.wh..wh..opq"), member("p", tarfile.FIFOTYPE), member("c", CHAR)),
]


def repair(blob: bytearray) -> None:
    for at in range(0, len(blob) - 511, 512):
        if blob[at + 257 : at + 262] == b"ustar":
            blob[at + 148 : at + 156] = b" " * 8
            blob[at + 148 : at + 156] = b"%06o\0 " % sum(blob[at : at + 512])


@settings(deadline=None, max_examples=200, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.sampled_from(VALID),
    st.lists(st.tuples(st.integers(0, 6000), st.binary(min_size=1, max_size=12)), max_size=6),
    st.booleans(),
    st.one_of(st.none(), st.integers(0, 6000)),
)
def test_damaged_archives_give_an_error_or_a_tree(
    blob: bytes, changes: list[tuple[int, bytes]], checksums: bool, end: int | None
) -> None:
    damaged = bytearray(blob)
    for at, data in changes:
        damaged[at : at + len(data)] = data
    if checksums:
        repair(damaged)
    with tempfile.TemporaryDirectory(dir="/dev/shm") as name:
        place = Place(Path(name))
        try:
            place.apply(bytes(damaged[:end]), limits=LayerLimits(size=1 << 24, entries=1000))
        except ImageError as error:
            assert "layer" in str(error)  # noqa: PT017 - both outcomes are right
        place.check()
