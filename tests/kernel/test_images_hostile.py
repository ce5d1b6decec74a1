"""Archives that are broken or mean harm give an ``ImageError``, and nothing of them stays."""

from __future__ import annotations

import gzip
import json
import lzma
import tarfile
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pycontainer.distribution.parents import chain_ids
from pycontainer.errors import Error, ImageError
from pycontainer.images import Images
from pycontainer.store import Store
from tests.archives import OCI, docker_archive, folder, member, oci_layout, sha, tar
from tests.erofs import overlaid
from tests.trees import describe

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence


@pytest.fixture(params=["indexes", "directories"])
def store(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Store]:
    with Store.open(tmp_path / "store") as opened:
        if request.param == "directories":
            opened.indexed = False
        yield opened
        if not opened.db.images():
            assert opened.blobs.list() == {}
            assert opened.snapshots.list() == set()
        assert list((opened.root / "tmp").iterdir()) == []


LAYER = tar(folder("etc"), member("etc/file", b"content"))


def refuse(store: Store, path: Path, words: str) -> None:
    with pytest.raises(ImageError, match=words):
        Images(store).load_all(path)
    assert store.db.images() == []
    assert store.blobs.list() == {}
    assert store.snapshots.list() == set()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"without": ["c.json"]}, "no file 'c.json': the archive is incomplete"),
        ({"without": ["0.tar"]}, "no file '0.tar'"),
        ({"without": ["manifest.json"]}, "no image archive.*import_rootfs"),
        ({"files": {"manifest.json": b"[]"}}, "holds no image"),
        ({"files": {"manifest.json": b"{}"}}, "should be an array"),
        ({"files": {"manifest.json": b"[1]"}}, "should be an object"),
        ({"files": {"manifest.json": b'[{"Config": 1}]'}}, "'Config', a string"),
        ({"files": {"manifest.json": b'[{"Config": "/etc/passwd", "Layers": []}]'}}, "outside itself"),
        ({"files": {"manifest.json": b'[{"Config": "../x", "Layers": []}]'}}, "outside itself"),
        ({"files": {"manifest.json": b'[{"Config": "c.json", "Layers": []}]'}}, "names 1 layers, the manifest 0"),
        ({"files": {"c.json": b"{}"}}, "no 'rootfs'"),
        ({"files": {"c.json": b"x"}}, "not valid JSON"),
        ({"files": {"0.tar": LAYER.replace(b"content", b"CONTENT")}}, "it should be sha256:.*, it is sha256:"),
        ({"files": {"0.tar": gzip.compress(LAYER)[:-9]}}, "cut short|damaged"),
    ],
)
def test_broken_docker_archives(store: Store, tmp_path: Path, change: dict[str, Any], words: str) -> None:
    (tmp_path / "x.tar").write_bytes(docker_archive([LAYER], **change))
    refuse(store, tmp_path / "x.tar", words)


def test_a_config_that_is_not_what_its_name_says(store: Store, tmp_path: Path) -> None:
    name = "0" * 64 + ".json"
    config = json.dumps({"rootfs": {"diff_ids": [sha(LAYER)]}}).encode()
    item = json.dumps([{"Config": name, "Layers": ["0.tar"]}]).encode()
    (tmp_path / "x.tar").write_bytes(docker_archive([LAYER], files={name: config, "manifest.json": item}))
    refuse(store, tmp_path / "x.tar", "damaged or was tampered with")


def test_links_in_archives_do_not_lead_out_or_in_circles(store: Store, tmp_path: Path) -> None:
    for target in ("/etc/passwd", "../../../../etc/passwd", "c.json"):
        data = tar(
            member("manifest.json", b'[{"Config": "c.json", "Layers": ["a"]}]'),
            member("c.json", type=tarfile.SYMTYPE, linkname=target),
        )
        (tmp_path / "x.tar").write_bytes(data)
        refuse(store, tmp_path / "x.tar", "the archive is incomplete")


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "not a tar archive"),
        (b"x" * 5000, "not a tar archive"),
        (bytes(10240), "not a tar archive"),
        (docker_archive([LAYER])[:1000], "cut short"),
        (docker_archive([LAYER])[:512] + b"y" * 2000, "cut short|damaged"),
        (gzip.compress(b"x" * 5000), "not a tar archive"),
        (gzip.compress(docker_archive([LAYER]))[:-20], "not valid gzip"),
        (b"\x28\xb5\x2f\xfd" + b"z" * 100, "not valid zstd"),
        (b"BZh" + b"z" * 100, "not valid bzip2"),
    ],
)
def test_what_is_no_archive(store: Store, tmp_path: Path, data: bytes, words: str) -> None:
    (tmp_path / "x.tar").write_bytes(data)
    refuse(store, tmp_path / "x.tar", words)


def test_a_decompression_bomb(store: Store, tmp_path: Path) -> None:
    data = lzma.compress(docker_archive([LAYER]) + bytes(200 << 20), preset=1)
    (tmp_path / "x.tar").write_bytes(data)
    refuse(store, tmp_path / "x.tar", "decompression bomb")
    with pytest.raises(ImageError, match="decompression bomb"):
        Images(store).import_rootfs(tmp_path / "x.tar")


def changed(**fields: Any) -> Callable[[dict[str, Any]], None]:
    def change(parts: dict[str, Any]) -> None:
        for name, value in fields.items():
            if name == "layer":
                parts["layers"][0] |= value
            else:
                parts[name] = value

    return change


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (changed(layer={"size": 1}), "should have 1 bytes"),
        (changed(layer={"digest": "sha256:" + "0" * 64}), "the archive is incomplete|cannot read"),
        (changed(layer={"digest": "sha512:" + "0" * 128}), "only sha256"),
        (changed(layer={"mediaType": "application/vnd.cncf.helm.chart.content.v1.tar+gzip"}), "cannot be unpacked"),
        (changed(layer={"mediaType": OCI + "layer.v1.tar+encrypted"}), "cannot be unpacked"),
        (changed(config_descriptor={"mediaType": "application/vnd.oci.empty.v1+json"}), "no container image"),
        (changed(config_descriptor={"digest": "sha256:" + "1" * 64}), "cannot read"),
        (changed(config_descriptor={"size": 3}), "its descriptor says 3"),
        (changed(config_descriptor={"size": 1 << 40}), "at most"),
        (changed(entry={"size": 1}), "its descriptor says 1"),
        (changed(config={"rootfs": {"diff_ids": [sha(b"x")]}}), "damaged or was tampered with"),
        (changed(config={"rootfs": {"diff_ids": []}}), "names 0 layers"),
        (changed(config={"rootfs": {"diff_ids": ["sha512:" + "0" * 128]}}), "only sha256"),
    ],
)
def test_broken_layouts(store: Store, tmp_path: Path, change: Callable[[dict[str, Any]], None], words: str) -> None:
    refuse(store, oci_layout(tmp_path / "layout", [LAYER], change=change), words)


def test_a_manifest_that_is_an_index_too(store: Store, tmp_path: Path) -> None:
    refuse(store, oci_layout(tmp_path / "layout", [LAYER], manifests=[]), "ambiguous")


def test_a_blob_that_was_changed(store: Store, tmp_path: Path) -> None:
    layout = oci_layout(tmp_path / "layout", [LAYER])
    for path in sorted((layout / "blobs/sha256").iterdir()):
        data = path.read_bytes()
        path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
        refuse(store, layout, "damaged or was tampered with")
        path.write_bytes(data)
    Images(store).load(layout)


def test_no_platform_of_ours(store: Store, tmp_path: Path) -> None:
    layout = oci_layout(tmp_path / "layout", [LAYER])
    entry = json.loads((layout / "index.json").read_text())["manifests"][0]
    entries = [entry | {"platform": {"os": "linux", "architecture": name}} for name in ("mips", "s390x")]
    (layout / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": entries}))
    refuse(store, layout, "no image for linux/.*; it has: linux/mips, linux/s390x")


def test_indexes_that_contain_each_other_end(store: Store, tmp_path: Path) -> None:
    layout = oci_layout(tmp_path / "layout", [LAYER])
    entry = json.loads((layout / "index.json").read_text())["manifests"][0]
    for _ in range(6):
        data = json.dumps({"schemaVersion": 2, "mediaType": OCI + "index.v1+json", "manifests": [entry]}).encode()
        (layout / "blobs/sha256" / sha(data)[7:]).write_bytes(data)
        entry = {"mediaType": OCI + "index.v1+json", "digest": sha(data), "size": len(data)}
    (layout / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": [entry]}))
    refuse(store, layout, "nested deeper")


@pytest.mark.parametrize(
    "hostile",
    [
        [member("../out", b"x")],
        [member("/../../out", b"x")],
        [member("link", type=tarfile.SYMTYPE, linkname="/"), member("link/../../out", b"x")],
        [member("hard", type=tarfile.LNKTYPE, linkname="../../../../../etc/passwd")],
    ],
)
def test_layers_that_lead_out(store: Store, tmp_path: Path, hostile: list[tuple[tarfile.TarInfo, bytes]]) -> None:
    before = describe(tmp_path, root_too=False).keys()
    (tmp_path / "x.tar").write_bytes(docker_archive([LAYER, tar(*hostile)]))
    refuse(store, tmp_path / "x.tar", "cannot (apply|index) the layer")
    after = {name for name in describe(tmp_path, root_too=False) if not name.startswith("store/")}
    assert after - before == {"x.tar"}


def test_the_second_of_two_images_fails_and_the_first_stays_whole(store: Store, tmp_path: Path) -> None:
    good = oci_layout(tmp_path / "layout", [LAYER])
    images = Images(store)
    image = images.load(good, reference="good")
    (tmp_path / "x.tar").write_bytes(docker_archive([LAYER, tar(member("../out", b"x"))]))
    with pytest.raises(ImageError):
        images.load(tmp_path / "x.tar")
    assert images.list() == [image]
    needed = store.db.content()
    assert needed.blobs <= set(store.blobs.list()) <= needed.blobs | needed.tars
    assert store.snapshots.list() == needed.snapshots


@given(st.data())
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_archives_with_any_damage_give_an_image_or_an_error(store: Store, tmp_path: Path, data: st.DataObject) -> None:
    whole = bytearray(docker_archive([LAYER]))
    for _ in range(data.draw(st.integers(1, 4))):
        place = data.draw(st.integers(0, len(whole) - 1))
        whole[place : place + data.draw(st.integers(0, 3))] = data.draw(st.binary(max_size=4))
    (tmp_path / "x.tar").write_bytes(whole)
    images = Images(store)
    try:
        images.load_all(tmp_path / "x.tar")
    except Error as error:
        assert str(error)  # noqa: PT017 - an image is as good
    for image in images.list():
        images.remove(image.id, force=True)
    assert store.blobs.list() == {}
    assert store.snapshots.list() == set()


# ── parents that a layer does not describe ────────────────────────────────────────────────────────────────────────


@contextmanager
def loaded(store: Store, path: Path, layers: Sequence[bytes]) -> Iterator[Path]:
    """Load an image of these layers and give what a container sees of it."""
    path.write_bytes(docker_archive(layers))
    image = Images(store).load(path)
    empty = path.with_suffix(".empty")
    empty.mkdir(exist_ok=True)
    try:
        lowers = store.acquire(image.id)
        with overlaid([empty, *reversed([Path(lower) for lower in lowers])], path.with_suffix(".merged")) as merged:
            yield merged
    finally:
        store.release(image.id)


def status(path: Path) -> tuple[str, int, int, int]:
    info = path.lstat()
    return oct(info.st_mode), info.st_uid, info.st_gid, int(info.st_mtime)


def test_a_directory_that_is_not_described_is_what_it_is_below(store: Store, tmp_path: Path) -> None:
    below = tar(folder("home"), folder("home/app", mode=0o2750, uid=1000, gid=3_000_000, mtime=5))
    above = tar(member("home/app/new", b"x"), member("opt/new/file", b"y"))
    for _ in range(2):
        with loaded(store, tmp_path / "x.tar", [below, above]) as root:
            assert status(root / "home/app") == ("0o42750", 1000, 3_000_000, 5)
            assert status(root / "opt/new")[:3] == ("0o40755", 0, 0)
            assert (root / "home/app/new").read_bytes() == b"x"
    assert store.snapshots.list() == store.db.content().snapshots
    # It depends on the layers below, so it is not what another image gets.
    with loaded(store, tmp_path / "y.tar", [tar(folder("home", mode=0o711)), above]) as root:
        assert status(root / "home/app")[:3] == ("0o40755", 0, 0)
        assert status(root / "home")[0] == "0o40711"
    chains = {chain_ids([sha(below), sha(above)])[1], chain_ids([sha(tar(folder("home", mode=0o711))), sha(above)])[1]}
    assert chains <= {name.removesuffix(".merged") for name in store.snapshots.list()}


def test_what_was_deleted_below_does_not_count(store: Store, tmp_path: Path) -> None:
    lowest = tar(folder("a", mode=0o700), folder("b", mode=0o700), folder("b/c", mode=0o700))
    middle = tar(member(".wh.a"), folder("b", mode=0o701), member("b/.wh..wh..opq"))
    with loaded(store, tmp_path / "x.tar", [lowest, middle, tar(member("a/x"), member("b/c/x"))]) as root:
        modes = [status(root / name)[0] for name in ("a", "b", "b/c")]
    assert modes == ["0o40755", "0o40701", "0o40755"]


def test_a_link_below_is_followed(store: Store, tmp_path: Path) -> None:
    below = tar(
        folder("usr"),
        folder("usr/lib", mode=0o751),
        member("lib", type=tarfile.SYMTYPE, linkname="usr/lib"),
        member("lib2", type=tarfile.SYMTYPE, linkname="/lib"),
        member("out", type=tarfile.SYMTYPE, linkname="../../../usr"),
    )
    above = tar(member("lib/one", b"1"), member("lib2/two/x", b"2"), member("out/three", b"3"), member("usr/lib/four"))
    with loaded(store, tmp_path / "x.tar", [below, above]) as root:
        names = ("usr", "usr/lib", "usr/lib/four", "usr/lib/one", "usr/lib/two", "usr/lib/two/x", "usr/three")
        assert sorted(describe(root, root_too=False)) == sorted([*names, "lib", "lib2", "out"])
        assert status(root / "usr/lib")[0] == "0o40751"


def test_a_layer_that_hides_all(store: Store, tmp_path: Path) -> None:
    with loaded(store, tmp_path / "x.tar", [LAYER, tar(member(".wh..wh..opq"), member("new", b"x"))]) as root:
        assert list(describe(root, root_too=False)) == ["new"]


def test_a_layer_that_comes_twice_is_where_it_is_topmost(store: Store, tmp_path: Path) -> None:
    other = tar(folder("etc"), member("etc/file", b"changed"), member("other", b"x"))
    with loaded(store, tmp_path / "x.tar", [LAYER, other, LAYER]) as root:
        assert (root / "etc/file").read_bytes() == b"content"
        assert (root / "other").read_bytes() == b"x"


def tree_of(files: Mapping[str, bytes], base: Path) -> Path:
    for name, data in files.items():
        (base / name).parent.mkdir(parents=True, exist_ok=True)
        (base / name).write_bytes(data)
    return base


def test_names_that_layers_reserve_cannot_be_imported(store: Store, tmp_path: Path) -> None:
    tree = tree_of({"a/.wh.b": b""}, tmp_path / "tree")
    with pytest.raises(ImageError, match=r"a/\.wh\.b.*mean deletions"):
        Images(store).import_rootfs(tree)
