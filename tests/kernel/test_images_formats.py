"""Formats of archives: indexes, platforms, attestations, artifacts, foreign layers, and docker's from before 1.10."""

from __future__ import annotations

import gzip
import io
import json
import resource
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pycontainer.distribution.layer import LayerLimits
from pycontainer.distribution.transfer import host_platform
from pycontainer.errors import Error, ImageError
from pycontainer.images import Images
from pycontainer.store import Store
from tests.archives import OCI, docker_archive, folder, member, oci_layout, sha, tar

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

LAYER = tar(folder("etc"), member("etc/file", b"content"))
HOST = host_platform()
ARTIFACT = "application/vnd.example.sbom.v1+json"


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store.open(tmp_path / "store") as opened:
        yield opened


class Layout:
    """An OCI layout put together piece by piece."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.blobs = path / "blobs/sha256"
        self.blobs.mkdir(parents=True)
        (path / "oci-layout").write_text('{"imageLayoutVersion":"1.0.0"}')

    def put(self, data: bytes, media_type: str, **more: Any) -> dict[str, Any]:
        (self.blobs / sha(data)[7:]).write_bytes(data)
        return {"mediaType": media_type, "digest": sha(data), "size": len(data), **more}

    def put_json(self, value: Any, media_type: str, **more: Any) -> dict[str, Any]:
        return self.put(json.dumps(value, indent=1).encode(), media_type, **more)  # as nobody else writes it

    def image(self, text: bytes, architecture: str = HOST.architecture, **more: Any) -> dict[str, Any]:
        layer = tar(member("file", text))
        config = {"architecture": architecture, "os": "linux", "rootfs": {"type": "layers", "diff_ids": [sha(layer)]}}
        manifest = {
            "schemaVersion": 2,
            "mediaType": OCI + "manifest.v1+json",
            "config": self.put_json(config, OCI + "config.v1+json"),
            "layers": [self.put(layer, OCI + "layer.v1.tar")],
            "annotations": {"org.example": text.decode()},
        }
        platform = {"os": "linux", "architecture": architecture}
        return self.put_json(manifest, OCI + "manifest.v1+json", platform=platform) | more

    def attestation(self, about: str) -> dict[str, Any]:
        """Write what buildkit adds to an image."""
        config = {"architecture": "unknown", "os": "unknown", "rootfs": {"type": "layers", "diff_ids": [sha(b"{}")]}}
        manifest = {
            "schemaVersion": 2,
            "mediaType": OCI + "manifest.v1+json",
            "config": self.put_json(config, OCI + "config.v1+json"),
            "layers": [self.put(b'{"builder": "x"}', "application/vnd.in-toto+json")],
        }
        return self.put_json(manifest, OCI + "manifest.v1+json") | {
            "platform": {"os": "unknown", "architecture": "unknown"},
            "annotations": {"vnd.docker.reference.type": "attestation-manifest", "vnd.docker.reference.digest": about},
        }

    def artifact(self, subject: dict[str, Any] | None = None, **more: Any) -> dict[str, Any]:
        manifest = {
            "schemaVersion": 2,
            "mediaType": OCI + "manifest.v1+json",
            "artifactType": ARTIFACT,
            "config": self.put(b"{}", "application/vnd.oci.empty.v1+json"),
            "layers": [self.put(b"parts", ARTIFACT)],
        }
        if subject is not None:
            manifest["subject"] = {key: subject[key] for key in ("mediaType", "digest", "size")}
        return self.put_json(manifest, OCI + "manifest.v1+json", artifactType=ARTIFACT, **more)

    def index(self, *entries: dict[str, Any], **more: Any) -> dict[str, Any]:
        value = {"schemaVersion": 2, "mediaType": OCI + "index.v1+json", "manifests": entries}
        return self.put_json(value, OCI + "index.v1+json", **more)

    def finish(self, *entries: dict[str, Any]) -> Path:
        (self.path / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": entries}))
        return self.path


def named(name: str) -> dict[str, Any]:
    return {"annotations": {"org.opencontainers.image.ref.name": name}}


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    return Layout(tmp_path / "layout")


OTHER = "s390x" if HOST.architecture != "s390x" else "amd64"


# ── platforms ─────────────────────────────────────────────────────────────────────────────────────────────────────


def test_one_of_several_platforms_is_taken(store: Store, layout: Layout) -> None:
    ours, theirs = layout.image(b"ours"), layout.image(b"theirs", OTHER)
    index = layout.index(theirs, ours)
    path = layout.finish(index | named("example.org/app:1"))
    images = Images(store)
    assert images.load(path).digest == ours["digest"]
    other = images.load(path, platform=f"linux/{OTHER}")
    assert (other.digest, other.architecture) == (theirs["digest"], OTHER)
    assert other.references == ("example.org/app:1",)
    with pytest.raises(ImageError, match=f"has no image for linux/mips; it has: linux/{OTHER}, linux/"):
        images.load(path, platform="linux/mips")
    with pytest.raises(ValueError, match="not a platform"):
        images.load(path, platform="linux/")


def test_platforms_listed_on_top_under_one_name(store: Store, layout: Layout) -> None:
    ours, theirs = layout.image(b"ours") | named("a/app:1"), layout.image(b"theirs", OTHER) | named("a/app:1")
    second = layout.image(b"second") | named("a/app:2")
    loaded = Images(store).load_all(layout.finish(theirs, ours, second))
    assert [image.digest for image in loaded] == [ours["digest"], second["digest"]]


@pytest.mark.parametrize("form", ["oci", "docker"])
def test_one_image_for_another_platform_is_taken_unless_another_is_wanted(
    store: Store, layout: Layout, tmp_path: Path, form: str
) -> None:
    path = layout.finish(layout.image(b"theirs", OTHER))
    if form == "docker":
        layer = tar(member("file"))
        config = {"architecture": OTHER, "os": "linux", "rootfs": {"type": "layers", "diff_ids": [sha(layer)]}}
        path = tmp_path / "archive.tar"
        path.write_bytes(docker_archive([layer], files={"c.json": json.dumps(config).encode()}))
    images = Images(store)
    with pytest.raises(ImageError, match=f"is for linux/{OTHER}, not for linux/{HOST.architecture}"):
        images.load(path, platform=f"linux/{HOST.architecture}")
    assert store.blobs.list() == {}
    assert images.load(path).architecture == OTHER
    assert images.load(path, platform=OTHER).architecture == OTHER


# ── what is kept beside an image ──────────────────────────────────────────────────────────────────────────────────


def saved_blobs(images: Images, name: str, path: Path) -> dict[str, bytes]:
    images.save(path, name, format="oci-dir")
    return {"sha256:" + file.name: file.read_bytes() for file in (path / "blobs/sha256").iterdir()}


def test_an_index_with_its_attestation_goes_through_byte_for_byte(store: Store, layout: Layout, tmp_path: Path) -> None:
    image = layout.image(b"ours")
    attestation = layout.attestation(image["digest"])
    unknown = layout.put(b"\0\1\2", "application/x-unknown")
    index = layout.index(image, attestation, unknown)
    path = layout.finish(index | named("example.org/app:1"))
    images = Images(store)
    loaded = images.load(path)
    assert loaded.digest == image["digest"]
    again = saved_blobs(images, "example.org/app:1", tmp_path / "again")
    assert again == {sha(file.read_bytes()): file.read_bytes() for file in layout.blobs.iterdir()}
    (entry,) = json.loads((tmp_path / "again/index.json").read_text())["manifests"]
    assert entry["digest"] == index["digest"]
    with Store.open(tmp_path / "other") as other:
        assert Images(other).load(tmp_path / "again").id == loaded.id
        third = saved_blobs(Images(other), "example.org/app@" + index["digest"], tmp_path / "third")
        assert third == again
        assert Images(other).get(index["digest"]).id == loaded.id
    images.remove("example.org/app:1")
    assert store.blobs.list() == {}


def test_an_index_of_which_a_part_is_here_comes_back_too(store: Store, layout: Layout, tmp_path: Path) -> None:
    image = layout.image(b"ours")
    theirs = layout.image(b"theirs", OTHER)
    index = layout.index(theirs, image, layout.attestation(image["digest"]), layout.attestation(theirs["digest"]))
    images = Images(store)
    loaded = images.load(layout.finish(layout.index(index) | named("example.org/app:1")))
    first = saved_blobs(images, "example.org/app:1", tmp_path / "first")
    # What leads to nothing would stop other tools: they get the manifest, and we find the rest.
    (entry,) = json.loads((tmp_path / "first/index.json").read_text())["manifests"]
    assert entry["digest"] == image["digest"]
    assert index["digest"] in first
    assert theirs["digest"] not in first
    with Store.open(tmp_path / "other") as other:
        again = Images(other).load(tmp_path / "first")
        assert again.id == loaded.id
        assert saved_blobs(Images(other), "example.org/app:1", tmp_path / "second") == first
    assert (tmp_path / "first/index.json").read_bytes() == (tmp_path / "second/index.json").read_bytes()


def test_an_image_tagged_later_is_saved_with_its_index(store: Store, layout: Layout, tmp_path: Path) -> None:
    image = layout.image(b"ours")
    index = layout.index(image, layout.attestation(image["digest"]))
    images = Images(store)
    images.load(layout.finish(index | named("example.org/app:1")))
    images.tag("example.org/app:1", "another.example/app:2")
    blobs = saved_blobs(images, "another.example/app:2", tmp_path / "again")
    assert index["digest"] in blobs


@pytest.mark.parametrize("place", ["index", "top"])
def test_what_refers_to_an_image_is_kept_with_it(store: Store, layout: Layout, place: str) -> None:
    image, second = layout.image(b"ours"), layout.image(b"second")
    signature, other = layout.artifact(image), layout.artifact(second)
    if place == "top":
        path = layout.finish(image | named("a/a:1"), signature, other)
    else:
        path = layout.finish(layout.index(image, signature, other) | named("a/a:1"))
    loaded = Images(store).load(path)
    kept = store.db.blobs(loaded.id)
    assert signature["digest"] in kept
    assert sha(b"parts") in kept
    assert other["digest"] not in kept


def test_artifacts_are_no_images(store: Store, layout: Layout) -> None:
    artifact = layout.artifact() | named("a/sbom:1")
    chart = layout.put_json(
        {
            "schemaVersion": 2,
            "config": layout.put(b"{}", "application/vnd.cncf.helm.config.v1+json"),
            "layers": [layout.put(b"x", "application/vnd.cncf.helm.chart.content.v1.tar+gzip")],
        },
        OCI + "manifest.v1+json",
    ) | named("a/chart:1")
    images = Images(store)
    path = layout.finish(artifact, chart)
    with pytest.raises(
        ImageError, match=r"holds no image; .*its config is 'application/vnd.cncf.helm.*vnd.example.sbom"
    ):
        images.load_all(path)
    image = layout.image(b"ours") | named("a/app:1")
    path = layout.finish(artifact, image, chart)
    assert [loaded.references for loaded in images.load_all(path)] == [("a/app:1",)]
    for name, words in {"a/sbom:1": "sbom.v1", "a/chart:1": "helm.config"}.items():
        with pytest.raises(ImageError, match=f"is no container image.*{words}"):
            images.load(path, reference=name)


def test_a_signature_of_a_wrong_size_is_found(store: Store, layout: Layout) -> None:
    image = layout.image(b"ours")
    signature = layout.artifact(image)
    (layout.blobs / sha(b"parts")[7:]).write_bytes(b"PARTS")
    with pytest.raises(ImageError, match=r"the blob sha256:.* it should be sha256:"):
        Images(store).load(layout.finish(image, signature))
    assert store.db.images() == []
    assert store.blobs.list() == {}


# ── layers ────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("media_type", "packed"),
    [
        ("application/vnd.oci.image.layer.nondistributable.v1.tar+gzip", True),
        ("application/vnd.docker.image.rootfs.foreign.diff.tar.gzip", True),
        ("application/vnd.docker.image.rootfs.diff.tar.gzip", True),
        ("application/vnd.docker.image.rootfs.diff.tar", False),
        ("application/vnd.oci.image.layer.nondistributable.v1.tar", False),
    ],
)
def test_types_of_layers(store: Store, tmp_path: Path, media_type: str, packed: bool) -> None:
    def change(parts: dict[str, Any]) -> None:
        parts["layers"][0] |= {"mediaType": media_type, "urls": ["https://example.org/layer"]}
        if not packed:
            (tmp_path / "layout/blobs/sha256" / sha(LAYER)[7:]).write_bytes(LAYER)
            parts["layers"][0] |= {"digest": sha(LAYER), "size": len(LAYER)}

    path = oci_layout(tmp_path / "layout", [LAYER], change=change)
    image = Images(store).load(path)
    manifest = json.loads(store.blobs.read(image.digest, limit=1 << 20))
    assert manifest["layers"][0]["mediaType"] == media_type
    assert manifest["layers"][0]["urls"] == ["https://example.org/layer"]


def test_a_foreign_layer_that_is_elsewhere_is_refused_by_name(store: Store, tmp_path: Path) -> None:
    def change(parts: dict[str, Any]) -> None:
        foreign = "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip"
        parts["layers"][0] |= {"mediaType": foreign, "urls": ["https://example.org/layer"]}
        (tmp_path / "layout/blobs" / parts["layers"][0]["digest"].replace(":", "/")).unlink()

    path = oci_layout(tmp_path / "layout", [LAYER], change=change)
    with pytest.raises(ImageError, match=r"licence.*fetched from https://example.org/layer, which is not done"):
        Images(store).load(path)
    assert store.blobs.list() == {}


def test_a_directory_does_not_lead_out(store: Store, layout: Layout, tmp_path: Path) -> None:
    path = layout.finish(layout.image(b"ours"))
    (tmp_path / "elsewhere").mkdir()
    for file in list(layout.blobs.iterdir()):
        file.rename(tmp_path / "elsewhere" / file.name)
        file.symlink_to(tmp_path / "elsewhere" / file.name)
    with pytest.raises(ImageError, match="leads out of"):
        Images(store).load(path)
    layout.blobs.rename(tmp_path / "layout/inside")
    layout.blobs.symlink_to("../inside")
    for file in (tmp_path / "layout/inside").iterdir():
        file.unlink()
        (tmp_path / "elsewhere" / file.name).rename(file)
    assert Images(store).load(path).os == "linux"


def test_layers_of_a_directory_are_opened_one_after_the_other(store: Store, tmp_path: Path) -> None:
    layers = [tar(member(f"file{number}", b"x")) for number in range(200)]
    path = oci_layout(tmp_path / "layout", layers)
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (100, before[1]))
    try:
        assert len(Images(store).load(path).layers) == 200
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


def test_the_archive_as_a_whole_is_limited_too(store: Store, tmp_path: Path) -> None:
    path = tmp_path / "archive.tar.gz"
    path.write_bytes(gzip.compress(docker_archive([tar(member("zeros", bytes(1 << 20)))])))
    with pytest.raises(ImageError, match=r"archive.tar.gz unpacks to more than 1048576 bytes; raise LayerLimits"):
        Images(store).load(path, limits=LayerLimits(size=1 << 20))
    assert list((store.root / "tmp").iterdir()) == []


def test_limits(store: Store, tmp_path: Path) -> None:
    path = oci_layout(tmp_path / "layout", [tar(member("zeros", bytes(1 << 20)), member("other"))])
    images = Images(store)
    for limits in (LayerLimits(size=1 << 19), LayerLimits(entries=1)):
        with pytest.raises(ImageError, match="LayerLimits"):
            images.load(path, limits=limits)
    assert store.blobs.list() == {}
    assert images.load(path, limits=LayerLimits(size=1 << 21)).size > 1 << 20


def test_streams_of_any_kind(store: Store, tmp_path: Path) -> None:
    data = docker_archive([LAYER])
    images = Images(store)
    image = images.load(io.BytesIO(data))
    assert images.load(io.BytesIO(gzip.compress(data))) == image
    with pytest.raises(ImageError, match="the stream is not a tar"):
        images.load(io.BytesIO(b"x" * 2000))
    (tmp_path / "file").write_bytes(data[:-20000])
    with (tmp_path / "file").open("rb") as file, pytest.raises(ImageError, match="file"):
        images.load_all(file)


# ── docker before 1.10 ────────────────────────────────────────────────────────────────────────────────────────────


FIRST, SECOND, THIRD = (f"{number:064x}" for number in (1, 2, 0xABC))


def legacy(**change: Any) -> bytes:
    """Return an archive of two steps: a base with a file, and a command."""
    files = {
        f"{FIRST}/VERSION": b"1.0",
        f"{FIRST}/json": json.dumps(
            {
                "id": FIRST,
                "created": "2015-01-01T00:00:00Z",
                "container_config": {"Cmd": ["/bin/sh", "-c", "#(nop) ADD file in /"]},
                "architecture": "amd64",
                "os": "linux",
                "Size": 7,
            }
        ).encode(),
        f"{FIRST}/layer.tar": LAYER,
        f"{SECOND}/VERSION": b"1.0",
        f"{SECOND}/json": json.dumps(
            {
                "id": SECOND,
                "parent": FIRST,
                "created": "2015-01-02T00:00:00Z",
                "container_config": {"Cmd": ["/bin/sh", "-c", '#(nop) CMD ["/bin/true"]']},
                "config": {"Cmd": ["/bin/true"], "Env": ["A=1"]},
                "author": "somebody",
                "architecture": "amd64",
                "os": "linux",
            }
        ).encode(),
        f"{SECOND}/layer.tar": bytes(1024),
        "repositories": json.dumps({"old": {"1": SECOND, "latest": SECOND}, "base": {"1": FIRST}}).encode(),
        **change,
    }
    return tar(*(member(name, data) for name, data in files.items() if data is not None))


def test_docker_save_before_version_1_10(store: Store, tmp_path: Path) -> None:
    path = tmp_path / "old.tar"
    path.write_bytes(legacy())
    images = Images(store)
    loaded = {image.references: image for image in images.load_all(path)}
    assert set(loaded) == {("old:1", "old:latest"), ("base:1",)}
    image = loaded[("old:1", "old:latest")]
    assert image.layers == (sha(LAYER), sha(bytes(1024)))
    assert (image.config.command, image.config.env, image.architecture) == (("/bin/true",), {"A": "1"}, "amd64")
    config = json.loads(store.blobs.read(image.id, limit=1 << 20))
    assert {"id", "parent", "Size"}.isdisjoint(config)
    assert [item["created_by"] for item in config["history"]] == [
        "/bin/sh -c #(nop) ADD file in /",
        '/bin/sh -c #(nop) CMD ["/bin/true"]',
    ]
    images.save(tmp_path / "new.tar", "old:1", format="docker-archive")
    with Store.open(tmp_path / "other") as other:
        assert Images(other).load(tmp_path / "new.tar").id == image.id


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"repositories": b"[]"}, "object of objects"),
        ({"repositories": b'{"a": {"b": "../../etc/passwd"}}'}, "64 hexadecimal"),
        ({"repositories": b'{"a": {"b": "' + THIRD.encode() + b'"}}'}, "no file '0*abc/json'"),
        ({f"{FIRST}/json": json.dumps({"parent": SECOND}).encode()}, "its own ancestor"),
        ({f"{FIRST}/json": b'{"parent": 1}'}, "no id of 64"),
        ({f"{FIRST}/json": b"[]"}, "should be an object"),
        ({f"{FIRST}/layer.tar": None}, "no file '0*1/layer.tar'"),
        ({f"{FIRST}/layer.tar": gzip.compress(LAYER)[:-9]}, "cut short|damaged"),
        ({f"{SECOND}/json": json.dumps({"parent": FIRST, "config": []}).encode()}, "'config' should be an object"),
    ],
)
def test_broken_archives_from_before_version_1_10(
    store: Store, tmp_path: Path, change: dict[str, Any], words: str
) -> None:
    path = tmp_path / "old.tar"
    path.write_bytes(legacy(**change))
    with pytest.raises(ImageError, match=words):
        Images(store).load_all(path)
    assert store.db.images() == []
    assert store.blobs.list() == {}


# ── anything ──────────────────────────────────────────────────────────────────────────────────────────────────────

KEYS = (
    *("schemaVersion", "mediaType", "manifests", "config", "layers", "subject", "platform", "artifactType", "urls"),
    *("annotations", "digest", "size", "os", "architecture", "variant", "rootfs", "diff_ids"),
)
TYPES = (OCI + "manifest.v1+json", OCI + "index.v1+json", OCI + "config.v1+json", ARTIFACT)


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.data())
def test_a_layout_with_any_document_changed_gives_images_or_an_error(
    store: Store, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    layout = Layout(tmp_path_factory.mktemp("fuzz") / "layout")
    image = layout.image(b"ours")
    entries = [image, layout.attestation(image["digest"]), layout.artifact(image), layout.image(b"theirs", OTHER)]

    def disturb(value: Any) -> Any:
        if isinstance(value, dict) and value:
            key = data.draw(st.sampled_from([*value, *KEYS]))
            return value | {key: disturb(value.get(key))}
        if isinstance(value, list) and value and data.draw(st.booleans()):
            place = data.draw(st.integers(0, len(value) - 1))
            return [*value[:place], disturb(value[place]), *value[place + 1 :]]
        known = st.sampled_from([None, 2, -1, 1 << 70, "", "x", "linux", [], {}, *TYPES, image["digest"], *entries])
        return data.draw(known)

    for _ in range(data.draw(st.integers(1, 3))):
        place = data.draw(st.integers(0, len(entries) - 1))
        blob = layout.blobs / str(entries[place].get("digest"))[7:]
        if data.draw(st.booleans()) and blob.is_file():
            changed = layout.put_json(disturb(json.loads(blob.read_bytes())), OCI + "manifest.v1+json")
            entries[place] = entries[place] | {"digest": changed["digest"], "size": changed["size"]}
        else:
            entries[place] = disturb(entries[place])
    top = [layout.index(*entries)] if data.draw(st.booleans()) else entries
    path = layout.finish(*top)
    images = Images(store)
    try:
        loaded = images.load_all(path)
    except Error:
        loaded = ()
    for found in loaded:
        target = io.BytesIO()
        images.save(target, found.id)
        if images.exists(found.id):
            images.remove(found.id, force=True)
    assert store.db.images() == []
    assert store.blobs.list() == {}
    assert list((store.root / "tmp").iterdir()) == []
