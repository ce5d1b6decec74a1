"""Saving: the same images give the same bytes, what was saved loads as the same, and failures leave nothing."""

from __future__ import annotations

import hashlib
import io
import json
import os
import signal
import subprocess
import sys
import tarfile
import time
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from pycontainer.distribution.layout import open_archive
from pycontainer.errors import AlreadyExists, Conflict, NotFound, StoreError
from pycontainer.images import Images
from pycontainer.model import ImageConfig
from pycontainer.names import parse_reference
from pycontainer.store import Store
from tests.schemas import validate

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pycontainer.progress import Progress

FORMATS = ("docker-archive", "oci-archive", "oci-dir")


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store.open(tmp_path / "store") as opened:
        yield opened


@pytest.fixture
def images(store: Store, tmp_path: Path) -> Images:
    found = Images(store)
    for name in ("one", "two"):
        tree = tmp_path / "trees" / name
        (tree / "etc").mkdir(parents=True)
        (tree / "etc/name").write_text(name)
        (tree / "bulk").write_bytes(hashlib.shake_128(name.encode()).digest(3 << 20))
        found.import_rootfs(tree, reference=f"{name}:1", config=ImageConfig(labels={"name": name}))
    found.tag("one:1", "localhost:5000/team/one:stable")
    return found


def load_into(root: Path, path: Path) -> dict[str, tuple[str, tuple[str, ...]]]:
    with Store.open(root) as other:
        return {image.id: (image.digest, image.references) for image in Images(other).load_all(path)}


@pytest.mark.parametrize("form", FORMATS)
def test_what_is_saved_loads_as_the_same(images: Images, tmp_path: Path, form: Any) -> None:
    images.save(tmp_path / "saved", "one:1", "localhost:5000/team/one:stable", "two:1", format=form)
    expected = {image.id: (image.digest, image.references) for image in images}
    assert load_into(tmp_path / "other", tmp_path / "saved") == expected
    # Saved elsewhere and saved again: the same bytes.
    if form != "oci-dir":
        with Store.open(tmp_path / "other") as other:
            again = io.BytesIO()
            Images(other).save(again, "one:1", "localhost:5000/team/one:stable", "two:1", format=form)
        assert again.getvalue() == (tmp_path / "saved").read_bytes()


@pytest.mark.parametrize("compress", ["gzip", "zstd"])
def test_compressed_as_a_whole(images: Images, tmp_path: Path, compress: Any) -> None:
    first, second = io.BytesIO(), io.BytesIO()
    images.save(first, "one:1", compress=compress)
    images.save(second, "one:1", compress=compress)
    assert first.getvalue() == second.getvalue()
    (tmp_path / "saved").write_bytes(first.getvalue())
    assert list(load_into(tmp_path / "other", tmp_path / "saved")) == [images.get("one:1").id]


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["one:1"], {"one:1"}),
        (["one"], {"one:1"}),
        (["localhost:5000/team/one"], {"localhost:5000/team/one:stable"}),
        (["one:1", "one:1", "one"], {"one:1"}),
        (["one:1", "localhost:5000/team/one:stable"], {"one:1", "localhost:5000/team/one:stable"}),
    ],
)
def test_names_that_are_saved(images: Images, names: list[str], expected: set[str]) -> None:
    assert saved_names(images, *names) == expected


def saved_names(images: Images, *names: Any) -> set[str]:
    target = io.BytesIO()
    images.save(target, *names)
    target.seek(0)
    with tarfile.open(fileobj=target) as archive:
        file = archive.extractfile("manifest.json")
        assert file is not None
        return {parse_reference(tag).familiar for item in json.load(file) for tag in item["RepoTags"] or ()}


def test_by_id_there_is_no_name_and_by_image_there_are_all(images: Images) -> None:
    image = images.get("one:1")
    assert saved_names(images, image.id) == saved_names(images, image.short_id) == set()
    assert saved_names(images, image) == set(image.references)
    images.tag("two:1", "one:2")
    assert saved_names(images, "one") == {"one:1", "one:2"}


def test_what_cannot_be_saved(images: Images, tmp_path: Path) -> None:
    target = tmp_path / "saved"
    with pytest.raises(NotFound, match="no image 'three'"):
        images.save(target, "one:1", "three")
    with pytest.raises(ValueError, match="no image to save"):
        images.save(target)
    with pytest.raises(ValueError, match="no format of archives"):
        images.save(target, "one", format="tar")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="gzip or zstd"):
        images.save(target, "one", compress="xz")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="is a directory: it takes a path"):
        images.save(target, "one", format="oci-dir", compress="gzip")
    with pytest.raises(FileNotFoundError):
        images.save(tmp_path / "missing/saved", "one")
    with pytest.raises(IsADirectoryError):
        images.save(tmp_path, "one")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["store", "trees"]


def test_streams(images: Images, tmp_path: Path) -> None:
    images.save(tmp_path / "file", "one", "two")
    expected = (tmp_path / "file").read_bytes()
    with (tmp_path / "buffered").open("wb") as stream:
        stream.write(b"before")
        images.save(stream, "one", "two")
        stream.write(b"after")
    assert (tmp_path / "buffered").read_bytes() == b"before" + expected + b"after"
    with (tmp_path / "appended").open("ab") as stream:
        images.save(stream, "one", "two")
    assert (tmp_path / "appended").read_bytes() == expected
    with (tmp_path / "piped").open("wb") as piped, subprocess.Popen(["cat"], stdin=-1, stdout=piped) as reader:
        assert reader.stdin is not None
        images.save(reader.stdin, "one", "two")
    assert (tmp_path / "piped").read_bytes() == expected
    os.mkfifo(tmp_path / "fifo")
    with (tmp_path / "read").open("wb") as read, subprocess.Popen(["cat", tmp_path / "fifo"], stdout=read):
        images.save(tmp_path / "fifo", "one", "two")
    assert (tmp_path / "read").read_bytes() == expected


def test_a_file_is_replaced_and_a_link_followed(images: Images, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere/file").write_text("old")
    (tmp_path / "link").symlink_to("elsewhere/file")
    images.save(tmp_path / "link", "one")
    assert (tmp_path / "link").is_symlink()
    assert tarfile.is_tarfile(tmp_path / "elsewhere/file")
    assert [path.name for path in (tmp_path / "elsewhere").iterdir()] == ["file"]
    images.save("/dev/null", "one")


def test_a_path_that_leads_to_a_pipe(images: Images, store: Store, tmp_path: Path) -> None:
    images.save(tmp_path / "file", "one:1")
    code = """
import sys
from pycontainer.images import Images
from pycontainer.store import Store
with Store.open(sys.argv[1]) as store:
    Images(store).save("/dev/stdout", "one:1")
"""
    done = subprocess.run([sys.executable, "-c", code, store.root], stdout=subprocess.PIPE, check=True)
    assert done.stdout == (tmp_path / "file").read_bytes()


def test_a_directory_that_is_not_empty_is_left_alone(images: Images, tmp_path: Path) -> None:
    images.save(tmp_path / "layout", "one", format="oci-dir")
    before = (tmp_path / "layout/index.json").read_bytes()
    with pytest.raises(AlreadyExists, match="new or empty"):
        images.save(tmp_path / "layout", "two", format="oci-dir")
    with pytest.raises(AlreadyExists, match="new or empty"):
        images.save(tmp_path / "layout/index.json", "two", format="oci-dir")
    assert (tmp_path / "layout/index.json").read_bytes() == before
    (tmp_path / "empty").mkdir()
    images.save(tmp_path / "empty", "one", format="oci-dir")
    assert (tmp_path / "empty/index.json").read_bytes() == before


@pytest.mark.parametrize("form", FORMATS)
def test_a_blob_that_is_cut_short_is_found(images: Images, store: Store, tmp_path: Path, form: Any) -> None:
    digest = store.db.layers(images.get("one:1").id)[0].digest
    size = store.blobs.path(digest).stat().st_size

    def shorten(*_arguments: object) -> None:
        os.truncate(store.blobs.path(digest), size - 1)

    target = tmp_path / "saved"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pycontainer.distribution.save.os.fstat", _fstat_then(shorten, size))
        with pytest.raises(StoreError, match="1 bytes shorter"):
            images.save(target, "one", format=form)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["store", "trees"]


def _fstat_then(change: Any, size: int) -> Any:
    real = os.fstat

    def fstat(fd: int) -> os.stat_result:
        found = real(fd)
        if found.st_size == size:
            change()
        return found

    return fstat


@pytest.mark.parametrize("form", FORMATS)
def test_a_full_disk_leaves_nothing(images: Images, tmp_path: Path, form: Any) -> None:
    small = tmp_path / "small"
    small.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", small], check=True)
    try:
        with pytest.raises(OSError, match=r"No space.*/small/saved"):
            images.save(small / "saved", "one", "two", format=form)
        assert list(small.iterdir()) == []
    finally:
        subprocess.run(["umount", small], check=True)


def test_an_image_that_is_being_saved_is_not_removed(images: Images) -> None:
    class Stream(io.BytesIO):
        def write(self, data: Any, /) -> int:
            if not self.tell():
                with pytest.raises(Conflict, match="in use"):
                    images.remove("two:1")
            return super().write(data)

    images.save(Stream(), "two:1")
    images.remove("two:1")
    assert not images.exists("two:1")


KILLED = """
import os, shutil, sys
from pycontainer.images import Images
from pycontainer.names import parse_reference
from pycontainer.store import Store
with Store.open(sys.argv[1]) as store:
    print(flush=True)
    while True:
        Images(store).save(sys.argv[2], "one", "two", format=sys.argv[3])
        if sys.argv[3] == "oci-dir":
            shutil.rmtree(sys.argv[2])
        else:
            os.unlink(sys.argv[2])
"""


@pytest.mark.parametrize("form", FORMATS)
def test_kill_9_leaves_no_file_and_a_directory_to_go_on_with(
    images: Images, store: Store, tmp_path: Path, form: Any
) -> None:
    target = tmp_path / "out" / "saved"
    target.parent.mkdir()
    process = subprocess.Popen([sys.executable, "-c", KILLED, store.root, target, form], stdout=subprocess.PIPE)
    with process:
        assert process.stdout is not None
        process.stdout.readline()
        time.sleep(int.from_bytes(os.urandom(2)) / 2**16 / 20)
        process.send_signal(signal.SIGKILL)
    assert {path.name for path in target.parent.iterdir()} <= {"saved"}
    if form == "oci-dir":
        for name in ("index.json", "oci-layout"):  # the loop may have been removing
            (target / name).unlink(missing_ok=True)
    elif target.exists():
        assert len(load_into(tmp_path / "other", target)) == 2
    images.save(target, "one", "two", format=form)
    assert len(load_into(tmp_path / "another", target)) == 2


@pytest.mark.parametrize("form", FORMATS)
def test_progress(images: Images, tmp_path: Path, form: Any) -> None:
    events: list[Progress] = []
    images.save(tmp_path / "saved", "one", "two", format=form, progress=events.append)
    layers = {event.name for event in events if event.state == "waiting"}
    assert len(layers) == 2
    for name in layers:
        states = [event.state for event in events if event.name == name]
        assert states == sorted(states, key=["waiting", "saving", "done"].index)
        assert set(states) == {"waiting", "saving", "done"}
    last = events[-1]
    assert last.state == "image"
    assert last.total_done == last.total == last.moved > 6 << 20
    assert [event.total_done for event in events] == sorted(event.total_done for event in events)


def test_what_progress_raises_ends_it(images: Images, tmp_path: Path) -> None:
    def stop(event: Progress) -> None:
        if event.state == "saving":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        images.save(tmp_path / "saved", "one", progress=stop)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["store", "trees"]


@pytest.mark.parametrize("form", ["docker-archive", "oci-dir"])
def test_what_is_written_fits_the_schemas(images: Images, tmp_path: Path, form: Any) -> None:
    images.save(tmp_path / "saved", *images, format=form)
    with closing(open_archive(tmp_path / "saved", tmp_path, "saved")) as archive:
        validate("image-layout-schema.json", archive.read("oci-layout", 1000))
        index = archive.read("index.json", 1 << 20)
        validate("image-index-schema.json", index)
        for entry in json.loads(index)["manifests"]:
            manifest = archive.read("blobs/" + entry["digest"].replace(":", "/"), 1 << 20)
            validate("image-manifest-schema.json", manifest)
            config = json.loads(manifest)["config"]["digest"]
            validate("config-schema.json", archive.read("blobs/" + config.replace(":", "/"), 1 << 20))
    assert len(json.loads(index)["manifests"]) == 3
