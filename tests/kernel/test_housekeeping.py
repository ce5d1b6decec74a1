"""What the store takes of the disk, what can go, and what a check finds and repairs."""

from __future__ import annotations

import fcntl
import gzip
import json
import os
import shutil
import subprocess
import sys
import tarfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from pycontainer import Conflict, Engine, Unsupported
from pycontainer.store import downloads, views
from pycontainer.store.usage import disk_size
from tests.archives import docker_archive, folder, member, oci_layout, tar

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pycontainer import CheckReport, Image
    from pycontainer.store import Store

UPPER = tar(folder("etc"), member("etc/new", b"n" * 200_000))
IMPLIED = tar(member("etc/more/x", b"x"))


@pytest.fixture(scope="module")
def base_layer() -> bytes:
    busybox = shutil.which("busybox")
    if busybox is None:
        pytest.skip("busybox is not installed")
    return tar(
        folder("bin"),
        member("bin/sh", Path(busybox).read_bytes(), mode=0o755),
        member("bin/cat", type=tarfile.LNKTYPE, linkname="bin/sh"),
        folder("etc"),
        member("etc/file", b"content"),
    )


@pytest.fixture(params=["indexes", "directories"])
def engine(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Engine]:
    with Engine(root=tmp_path / "store") as opened:
        if request.param == "directories":
            store_of(opened).indexed = False
        yield opened


def store_of(engine: Engine) -> Store:
    return engine._store


def load_gzip(engine: Engine, base: Path, layers: list[bytes], name: str) -> Image:
    """Load an image whose layers are compressed: tars and blobs are two things."""
    return engine.images.load(oci_layout(base / name, layers), reference=name)


def cat(engine: Engine, image: Image, *paths: str) -> bytes:
    return engine.run(image, ["cat", *paths], network="none", check=True, timeout=20).stdout


def kinds(report: CheckReport) -> set[str]:
    return {problem.kind for problem in report.problems}


# ── check ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_store_that_is_whole(engine: Engine, tmp_path: Path, base_layer: bytes) -> None:
    load_gzip(engine, tmp_path, [base_layer, UPPER, IMPLIED], "one")
    (tmp_path / "x.tar").write_bytes(docker_archive([base_layer, UPPER]))
    engine.images.load(tmp_path / "x.tar")
    engine.images.host()
    report = engine.check()
    assert report.problems == ()
    assert report.ok
    assert report.images == 3
    assert report.size > len(gzip.compress(base_layer))


def test_layers_are_made_anew(engine: Engine, tmp_path: Path, base_layer: bytes) -> None:
    image = load_gzip(engine, tmp_path, [base_layer, UPPER, IMPLIED], "one")
    store = store_of(engine)
    row = store.db.by_id(image.id)
    assert row is not None
    paths = [*(tmp_path / "store/layers/sha256").iterdir()]
    for path in paths:
        if path.is_dir():
            shutil.rmtree(path)
        elif path.name.startswith(image.layers[0][7:17]):
            path.write_bytes(path.read_bytes()[:-1] + b"?")
        else:
            path.unlink()
    found = engine.check()
    assert kinds(found) == {"layer"}
    assert not found.ok
    assert {image.id} == {identity for problem in found.problems for identity in problem.images}
    repaired = engine.check(repair=True)
    assert repaired.ok
    assert len(repaired.problems) == len(found.problems)
    assert engine.check().problems == ()
    assert cat(engine, image, "etc/file", "etc/more/x") == b"contentx"


def test_tars_are_made_anew_from_blobs(engine: Engine, tmp_path: Path, base_layer: bytes) -> None:
    image = load_gzip(engine, tmp_path, [base_layer, UPPER], "one")
    store = store_of(engine)
    if not store.indexed:
        pytest.skip("layers that are directories have no tars")
    first, second = (store.blobs.path(diff_id) for diff_id in image.layers)
    first.unlink()
    data = second.read_bytes()
    second.write_bytes(data[:1000] + b"?" + data[1001:])
    report = engine.check()
    assert {problem.name: problem.kind for problem in report.problems} == dict.fromkeys(image.layers, "tar")
    assert engine.check(repair=True).ok
    assert second.read_bytes() == data
    assert engine.check().problems == ()
    assert cat(engine, image, "etc/file") == b"content"


def test_a_damaged_blob_comes_back_with_the_next_load(engine: Engine, tmp_path: Path, base_layer: bytes) -> None:
    image = load_gzip(engine, tmp_path, [base_layer, UPPER], "one")
    store = store_of(engine)
    blob = store.blobs.path(store.db.layers(image.id)[1].digest)
    blob.write_bytes(gzip.compress(b"something else"))
    report = engine.check()
    assert [(problem.kind, problem.name) for problem in report.problems] == [("blob", "sha256:" + blob.name)]
    assert not engine.check(repair=True).ok
    assert not blob.exists()
    assert cat(engine, image, "etc/file") == b"content"  # its layers are as good as before
    assert engine.images.load(tmp_path / "one", reference="one").id == image.id
    assert engine.check().problems == ()


@pytest.mark.parametrize("which", ["config", "manifest"])
def test_damaged_documents_and_dropping(engine: Engine, tmp_path: Path, base_layer: bytes, which: str) -> None:
    image = load_gzip(engine, tmp_path, [base_layer, UPPER], "one")
    other = load_gzip(engine, tmp_path, [base_layer], "two")
    store = store_of(engine)
    store.blobs.path(image.id if which == "config" else image.digest).write_bytes(b"{}")
    report = engine.check()
    assert kinds(report) == {"document"}
    assert not engine.check(repair=True).ok
    dropped = engine.check(repair=True, drop=True)
    assert dropped.dropped == (image.id,)
    assert dropped.ok
    assert engine.check().problems == ()
    assert [known.id for known in engine.images.list()] == [other.id]
    assert cat(engine, other, "etc/file") == b"content"


def test_an_image_with_containers_is_not_dropped(engine: Engine, tmp_path: Path, base_layer: bytes) -> None:
    image = load_gzip(engine, tmp_path, [base_layer], "one")
    engine.containers.create(image, ["cat", "etc/file"])
    store_of(engine).blobs.path(image.digest).unlink()
    report = engine.check(repair=True, drop=True)
    assert report.dropped == ()
    assert not report.ok
    with pytest.raises(Conflict):
        engine.images.remove(image.id)


def test_what_belongs_to_nobody_and_a_wrong_index(engine: Engine, tmp_path: Path, base_layer: bytes) -> None:
    load_gzip(engine, tmp_path, [base_layer], "one")
    root = tmp_path / "store"
    (root / "blobs/sha256" / ("0" * 64)).write_bytes(b"x")
    (root / "layers/sha256" / ("1" * 64)).mkdir()
    (root / "index.json").write_text("{}")
    report = engine.check()
    assert kinds(report) == {"unreferenced", "index.json"}
    assert engine.disk_usage().unreferenced > 0
    assert engine.check(repair=True).ok
    assert engine.check().problems == ()
    assert len(json.loads((root / "index.json").read_text())["manifests"]) == 1
    assert engine.disk_usage().unreferenced == 0


def test_a_check_finds_out_what_the_kernel_mounts(
    tmp_path: Path, base_layer: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Engine(root=tmp_path / "store") as engine:
        image = load_gzip(engine, tmp_path, [base_layer], "one")
        if not store_of(engine).indexed:
            pytest.skip("this kernel mounts no erofs from files here")
    monkeypatch.setattr(views.Views, "open", unable)
    with Engine(root=tmp_path / "store") as engine:
        with pytest.raises(Unsupported, match="system check --repair"):
            engine.run(image, ["cat", "etc/file"], network="none")
        assert kinds(engine.check()) == {"layer"}
        assert engine.check(repair=True).ok
        assert cat(engine, image, "etc/file") == b"content"


def unable(_self: object, _name: str, index: Path, _devices: object) -> str:
    msg = f"mount the layer {index}: this kernel has no erofs; pycontainer system check --repair unpacks the layers"
    raise Unsupported(msg)


def test_a_store_is_taken_to_a_kernel_without_erofs(tmp_path: Path, base_layer: bytes) -> None:
    with Engine(root=tmp_path / "store") as engine:
        image = load_gzip(engine, tmp_path, [base_layer, UPPER, IMPLIED], "one")
        store = store_of(engine)
        if not store.indexed:
            pytest.skip("this kernel mounts no erofs from files here")
        store.indexed = False
        assert kinds(engine.check()) == {"layer"}
        assert engine.check(repair=True).ok
        row = store.db.by_id(image.id)
        assert row is not None
        assert row.merged == ""
        assert all(store.snapshots.has_directory(layer.snapshot) for layer in store.db.layers(image.id))
        assert not list((tmp_path / "store/layers/sha256").glob("*.erofs"))
        assert cat(engine, image, "etc/file", "etc/more/x") == b"contentx"
        store.indexed = None
        assert engine.check().problems == ()


# ── usage and prune ───────────────────────────────────────────────────────────────────────────────────────────────


def test_usage_tells_shared_and_unique_truthfully(engine: Engine, tmp_path: Path, base_layer: bytes) -> None:
    one = load_gzip(engine, tmp_path, [base_layer], "one")
    two = load_gzip(engine, tmp_path, [base_layer, UPPER], "two")
    usage = engine.disk_usage()
    by_id = {item.id: item for item in usage.by_image}
    root = tmp_path / "store"
    on_disk = sum(disk_size(path) for name in ("blobs", "layers") for path in (root / name / "sha256").iterdir())
    assert usage.images.size == on_disk
    assert usage.images.reclaimable == on_disk
    assert (usage.images.total, usage.images.active) == (2, 0)
    assert by_id[one.id].shared == by_id[two.id].shared > 0
    assert by_id[one.id].unique + by_id[two.id].unique + by_id[one.id].shared == on_disk
    container = engine.containers.create(one, ["sh", "-c", "cat etc/file etc/file > written"])
    container.run()
    usage = engine.disk_usage()
    assert (usage.images.active, usage.containers.total, usage.containers.active) == (1, 1, 0)
    assert usage.images.reclaimable == by_id[two.id].unique
    assert usage.containers.reclaimable == usage.containers.size > 0
    engine.images.remove(two.id, force=True)
    freed = on_disk - sum(
        disk_size(path) for name in ("blobs", "layers") for path in (root / name / "sha256").iterdir()
    )
    assert freed == by_id[two.id].unique


def test_prune(engine: Engine, tmp_path: Path, base_layer: bytes) -> None:
    one = load_gzip(engine, tmp_path, [base_layer], "one")
    named = load_gzip(engine, tmp_path, [base_layer, UPPER], "two")
    container = engine.containers.create(one, ["sh", "-c", ": > x"])
    left = tmp_path / "store/downloads/sha256-x"
    left.parent.mkdir(exist_ok=True)
    left.write_bytes(bytes(10_000))
    busy = left.with_name("sha256-y")
    with busy.open("wb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        gone = engine.prune()
        assert (gone.containers, gone.images, gone.downloads) == ((container.id,), (), 1)
        assert gone.size > 0
        assert not left.exists()
        assert busy.exists()
    gone = engine.prune(all=True)
    assert set(gone.images) == {one.id, named.id}
    assert set(gone.untagged) == {"one:latest", "two:latest"}
    assert engine.disk_usage().images.size == 0
    assert list((tmp_path / "store/blobs/sha256").iterdir()) == []


def test_interrupted_downloads_stay_for_a_week(tmp_path: Path) -> None:
    with Engine(root=tmp_path / "store") as engine:
        left = engine.root / "downloads"
        left.mkdir(exist_ok=True)
        for name, days in (("sha256-new", 6), ("sha256-old", 8)):
            (left / name).write_bytes(b"x" * 5000)
            when = time.time() - days * 24 * 3600
            os.utime(left / name, (when, when))
        assert engine.disk_usage().downloads.total == 2
    with Engine(root=tmp_path / "store") as engine:
        assert list(downloads.sizes(engine.root)) == ["sha256-new"]
        assert engine.check().ok


# ── the command ───────────────────────────────────────────────────────────────────────────────────────────────────


def command(root: Path, *words: str) -> subprocess.CompletedProcess[str]:
    line = [sys.executable, "-m", "pycontainer", "--root", str(root), "system", *words]
    return subprocess.run(line, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL)


def test_the_command(tmp_path: Path, base_layer: bytes) -> None:
    root = tmp_path / "store"
    with Engine(root=root) as engine:
        image = load_gzip(engine, tmp_path, [base_layer, UPPER], "one")
        load_gzip(engine, tmp_path, [base_layer], "two")
        digest = store_of(engine).db.layers(image.id)[1].digest
        blob = store_of(engine).blobs.path(digest)
    lines = command(root, "df").stdout.splitlines()
    assert lines[0].split() == ["TYPE", "TOTAL", "ACTIVE", "SIZE", "RECLAIMABLE"]
    assert lines[1].split()[:3] == ["Images", "2", "0"]
    assert lines[1].endswith("(100%)")
    assert [line.split()[0] for line in lines[2:]] == ["Containers", "Local", "Downloads"]
    rows = [json.loads(line) for line in command(root, "df", "--format", "json").stdout.splitlines()]
    assert rows[0]["TotalCount"] == 2
    verbose = command(root, "df", "-v").stdout
    assert "SHARED SIZE" in verbose
    assert image.short_id in verbose
    whole = command(root, "check")
    assert (whole.returncode, whole.stdout.split()[-1]) == (0, "whole")
    blob.write_bytes(b"x")
    damaged = command(root, "check")
    assert damaged.returncode == 1
    assert f"blob {digest}: its content is sha256:" in damaged.stdout
    assert f"  image {image.id}" in damaged.stdout
    assert json.loads(command(root, "check", "--format", "json").stdout)["ok"] is False
    dropped = command(root, "check", "--repair", "--drop")
    assert (dropped.returncode, f"deleted: {image.id}" in dropped.stdout) == (0, True)
    asked = command(root, "prune")
    assert (asked.returncode, "give --force" in asked.stderr) == (1, True)
    pruned = command(root, "prune", "-f", "-a").stdout
    assert "untagged: two:latest" in pruned
    assert pruned.splitlines()[-1].startswith("Total reclaimed space: ")
