"""Images go from us to other tools and come back: each shows the tree that the layers say, and no digest changes."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import attrs
import pytest

from pycontainer import Engine
from pycontainer.distribution.save import ArchiveFormat
from pycontainer.image import Image
from pycontainer.images import Images
from pycontainer.store import Store
from tests import recipes, rootfs
from tests.images import Compression, Recipe, agreed, expected, undescribed, write_layout
from tests.peers.tools import Containers, Docker, dockerd, need, overlay, registry, run, scratch, skopeo
from tests.trees import Description, describe, differences, tree_hash


@attrs.frozen(kw_only=True)
class Picture:
    """An image to send around.

    Attributes:
        name: of it.
        layout: where it comes from.
        model: the tree that it is.
        implied: directories that the last layer to touch them does not describe.
        id: digest of its config.
        digest: digest of its manifest.
    """

    name: str
    layout: Path
    model: Description
    implied: set[str]
    id: str
    digest: str

    @property
    def reference(self) -> str:
        """Its name and tag."""
        return f"{self.name}:1"


def _node_modules() -> Recipe:
    return Recipe(layers=[list(recipes.node_modules())])


def _debian() -> Path:
    return rootfs.debian_tar(include=("python3", "gcc", "libc6-dev"))


def _extracted(tar: Path, target: Path) -> Description:
    """Describe what GNU tar makes of a layer."""
    target.mkdir(parents=True)
    run("tar", "-C", target, "--numeric-owner", "--xattrs", "--xattrs-include=*", "-xpf", tar)
    found = describe(target, whole_seconds=False, root_too=False)
    shutil.rmtree(target)
    return found


RECIPES: dict[str, tuple[Callable[[], Recipe], Compression]] = {
    "odd": (recipes.odd, "gzip"),
    "chain": (recipes.chain, "gzip"),
    "sparse": (recipes.sparse, "zstd"),
    "node_modules": (_node_modules, "gzip"),
    "debian": (lambda: Recipe(layers=[]), "gzip"),
}


@pytest.fixture(scope="module")
def pictures() -> Iterator[Callable[[str], Picture]]:
    """Give a function that gives a picture, made at the first call."""
    made: dict[str, Picture] = {}
    with scratch() as base:

        def picture(name: str) -> Picture:
            if name not in made:
                made[name] = _make(name, base / name)
            return made[name]

        yield picture


def _make(name: str, home: Path) -> Picture:
    make, compression = RECIPES[name]
    try:
        recipe = make()
        tars = {"node_modules": recipes.node_modules_tar, "debian": _debian}
        layers = [tars[name]()] if name in tars else []
    except rootfs.CannotBuild as reason:
        pytest.skip(str(reason))
    manifest = write_layout(home / "layout", recipe, tag=name, compression=compression, layers=layers)
    index = json.loads((home / "layout/index.json").read_bytes())
    return Picture(
        name=name,
        layout=home / "layout",
        model=expected(recipe.layers) if recipe.layers else _extracted(layers[0], home / "tree"),
        implied=undescribed(recipe.layers),
        id=manifest["config"]["digest"],
        digest=index["manifests"][0]["digest"],
    )


@pytest.fixture
def base() -> Iterator[Path]:
    """Give a directory in memory."""
    with scratch() as path:
        yield path


@pytest.fixture
def images(tmp_path: Path) -> Iterator[Images]:
    """Give the images of an empty store; on a disk, for in memory layers cannot be indexed."""
    with Store.open(tmp_path / "store") as store:
        yield Images(store)


@pytest.fixture(scope="module")
def docker() -> Iterator[Docker]:
    """Give a docker daemon for all tests."""
    with scratch() as path, dockerd(path) as daemon:
        yield daemon


def sent(images: Images, picture: Picture, target: Path, form: ArchiveFormat = "docker-archive") -> Path:
    """Load a picture from where it comes from and save it."""
    image = images.load(picture.layout, reference=picture.reference)
    assert (image.id, image.digest) == (picture.id, picture.digest)
    images.save(target, picture.reference, format=form)
    return target


def come_back(archive: Path, picture: Picture) -> Image:
    """Load what a tool saved into another store: it is the same image, and its tree is the same."""
    with tempfile.TemporaryDirectory() as place, Store.open(f"{place}/back") as store:
        image = Images(store).load(archive, reference=picture.reference)
        check(store, image, picture)
    return image


def check(store: Store, image: Image, picture: Picture) -> None:
    """Compare an image of ours with the picture."""
    assert image.id == picture.id
    with overlay(store.acquire(image.id)) as merged:
        found = describe(merged, whole_seconds=False, root_too=False)
    store.release(image.id)
    assert differences(found, agreed(found, picture.model)) == {}
    assert tree_hash(found) == tree_hash(agreed(found, picture.model))


def as_go_unpacks(found: Description, picture: Picture, *, old_times: bool, parents: bool) -> Description:
    """Return what a tool written in Go makes of a picture.

    Its tar drops extended attributes of no bytes. Podman and docker set times before 1970 to 1970, and make directories
    that a layer does not describe anew, with mode 0755 and owner root, whatever lies below; umoci does neither.
    """
    model = agreed(found, picture.model)
    for name, (mode, uid, gid, time, attributes, content, partner) in model.items():
        assert isinstance(attributes, dict)
        assert isinstance(time, int)
        kept = {key: value for key, value in attributes.items() if value}
        seen = found.get(name, (None,) * 4)
        if name in picture.implied:
            mode, uid, gid = (mode, uid, gid) if parents else ("0o40755", 0, 0)  # noqa: PLW2901
        when = seen[3] if name in picture.implied else time if old_times else max(time, 0)
        model[name] = (mode, uid, gid, when, kept, content, partner)
    return model


# ── podman, docker ────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("name", "forms"),
    [
        ("odd", ["docker-archive", "oci-archive"]),
        ("chain", ["docker-archive"]),
        ("node_modules", ["oci-archive"]),
        ("debian", ["docker-archive"]),
    ],
)
def test_through_podman(
    pictures: Callable[[str], Picture], images: Images, base: Path, name: str, forms: list[str]
) -> None:
    picture = pictures(name)
    podman = Containers(base)
    podman("load", "--quiet", "--input", sent(images, picture, base / "ours.tar"))
    told = podman.image(picture.reference)
    assert "sha256:" + told["Id"] == picture.id
    assert f"docker.io/library/{picture.reference}" in told["RepoTags"]
    found = podman.tree(picture.reference)
    assert differences(found, as_go_unpacks(found, picture, old_times=False, parents=False)) == {}
    for form in forms:
        podman("save", "--quiet", "--format", form, "--output", base / form, picture.reference)
        come_back(base / form, picture)


@pytest.mark.parametrize("name", ["odd", "chain", "node_modules"])
def test_through_docker(
    pictures: Callable[[str], Picture], images: Images, base: Path, docker: Docker, name: str
) -> None:
    picture = pictures(name)
    docker("load", "--quiet", "--input", sent(images, picture, base / "ours.tar"))
    assert docker.image(picture.reference)["Id"] == picture.id
    found = docker.tree(picture.reference)
    assert differences(found, as_go_unpacks(found, picture, old_times=False, parents=False)) == {}
    docker("save", "--output", base / "saved.tar", picture.reference)
    docker("rmi", picture.reference)
    come_back(base / "saved.tar", picture)


# ── umoci, buildah ────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("name", ["odd", "chain"])
def test_through_umoci(pictures: Callable[[str], Picture], images: Images, base: Path, name: str) -> None:
    need("umoci")
    picture = pictures(name)
    layout = sent(images, picture, base / "layout", "oci-dir")
    (tag,) = run("umoci", "ls", "--layout", layout).split()
    run("umoci", "unpack", "--image", f"{layout}:{tag}", base / "bundle")
    root = base / "bundle/rootfs"
    found = describe(root, whole_seconds=False, root_too=False)
    assert differences(found, as_go_unpacks(found, picture, old_times=True, parents=True)) == {}
    come_back(layout, picture)
    (root / "added").write_text("by umoci")
    shutil.rmtree(root / "bin")
    run("umoci", "repack", "--image", f"{layout}:changed", base / "bundle")
    with tempfile.TemporaryDirectory() as place, Store.open(f"{place}/changed") as store:
        image = Images(store).load(layout, reference="changed")
        assert image.layers[:-1] == images.get(picture.reference).layers
        with overlay(store.acquire(image.id)) as merged:
            names = {*describe(merged, root_too=False)}
        store.release(image.id)
    assert names == {name for name in picture.model if name.split("/", 1)[0] != "bin"} | {"added"}


def test_through_buildah(pictures: Callable[[str], Picture], images: Images, base: Path) -> None:
    picture = pictures("odd")
    buildah = Containers(base)
    archive = sent(images, picture, base / "ours.tar", "oci-archive")
    buildah("from", "--quiet", "--name", "work", f"oci-archive:{archive}", program="buildah")
    (base / "file").write_text("by buildah")
    buildah("add", "--quiet", "work", base / "file", "/added", program="buildah")
    buildah("commit", "--quiet", "work", f"oci-archive:{base}/built:built:1", program="buildah")
    with tempfile.TemporaryDirectory() as place, Store.open(f"{place}/built") as store:
        image = Images(store).load(base / "built")
        assert image.layers[:-1] == images.get(picture.reference).layers
        with overlay(store.acquire(image.id)) as merged:
            found = describe(merged, whole_seconds=False, root_too=False)
            assert (merged / "added").read_text() == "by buildah"
        store.release(image.id)
    del found["added"]
    assert differences(found, agreed(found, picture.model)) == {}


# ── what containers of ours changed ───────────────────────────────────────────────────────────────────────────────

CHANGES = r"""
rm -r /opt/kept; mkdir /opt/kept; echo x >/opt/kept/new
rm /usr/lib/one; echo more >>/files/fine; chmod 4711 /files/none; chown 5:3000000 /opt/gone/other
ln /files/acl /links/acl; mknod /files/null c 1 3; mkfifo /files/fifo; ln -s loop /links/new
dd if=/dev/zero of=/files/mostly-hole bs=1M seek=20 count=1 2>/dev/null; truncate -s 40M /files/mostly-hole
mv '/files/a\b' /files/moved; mv /grouped /moved; rm '/opt/file becomes directory/y'
rmdir '/opt/file becomes directory'
echo x >'/opt/file becomes directory'; touch -d '1975-01-02 03:04:05' /files/epoch; touch "/files/$(printf 'caf\351 2')"
rm -r /opt/new; mkdir -p /deep/er/and/er; echo x >/deep/er/and/er/file; chmod 700 /deep/er; rm /links/ping
"""
SHELL = (
    'for name in rm mkdir chmod chown ln mknod mkfifo dd truncate mv rmdir touch; do alias $name="busybox $name"; done'
)


def test_what_we_commit_is_the_same_everywhere(
    pictures: Callable[[str], Picture], base: Path, tmp_path: Path, docker: Docker
) -> None:
    need("umoci")
    picture = pictures("odd")
    with Engine(tmp_path / "engine") as engine:
        engine.images.load(picture.layout, reference=picture.reference)
        container = engine.containers.create(picture.reference, ["sh", "-ec", f'{SHELL}; eval "$1"', "sh", CHANGES])
        result = container.run()
        assert (result.exit_code, result.stderr) == (0, b"")
        container.export(base / "export.tar")
        image = container.commit("committed:1", compression="gzip")
        engine.images.save(base / "layout", "committed:1", format="oci-dir")
        engine.images.save(base / "archive", "committed:1")
        with overlay(engine._store.acquire(image.id)) as merged:
            ours = describe(merged, whole_seconds=False, root_too=False)
        engine._store.release(image.id)
    exported = _extracted(base / "export.tar", base / "exported")
    assert differences(ours, exported) == {}
    changed = attrs.evolve(picture, name="committed", model=ours)
    (tag,) = run("umoci", "ls", "--layout", base / "layout").split()
    run("umoci", "unpack", "--image", f"{base}/layout:{tag}", base / "bundle")
    found = describe(base / "bundle/rootfs", whole_seconds=False, root_too=False)
    assert differences(found, as_go_unpacks(found, changed, old_times=True, parents=True)) == {}
    podman = Containers(base)
    podman("load", "--quiet", "--input", base / "archive")
    docker("load", "--quiet", "--input", base / "archive")
    for found in (podman.tree("committed:1"), docker.tree("committed:1")):
        assert differences(found, as_go_unpacks(found, changed, old_times=False, parents=False)) == {}
    docker("rmi", "committed:1")


# ── skopeo, a registry ────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("name", "ours", "theirs"),
    [
        ("odd", "docker-archive", "docker-archive"),
        ("odd", "oci-archive", "oci"),
        ("odd", "oci-dir", "oci-archive"),
        ("chain", "oci-archive", "oci-archive"),
        ("sparse", "oci-archive", "oci"),
        ("sparse", "docker-archive", "docker-archive"),
        ("node_modules", "docker-archive", "docker-archive"),
        ("debian", "docker-archive", "docker-archive"),
    ],
)
def test_through_skopeo(
    pictures: Callable[[str], Picture], images: Images, base: Path, name: str, ours: ArchiveFormat, theirs: str
) -> None:
    picture = pictures(name)
    archive = sent(images, picture, base / "ours", ours)
    kind = {"docker-archive": "docker-archive", "oci-archive": "oci-archive", "oci-dir": "oci"}[ours]
    skopeo(f"{kind}:{archive}", f"{theirs}:{base}/copy:{picture.reference}")
    image = come_back(base / "copy", picture)
    if "docker-archive" not in (ours, theirs):  # which has no manifest
        assert image.digest == picture.digest


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    """Give ``host:port`` of a registry for all tests."""
    with scratch() as path, registry(path) as found:
        yield found


@pytest.mark.parametrize("name", ["odd", "chain", "sparse", "node_modules"])
def test_through_a_registry_by_us_and_by_skopeo(
    pictures: Callable[[str], Picture], images: Images, address: str, name: str
) -> None:
    picture = pictures(name)
    images.load(picture.layout, reference=picture.reference)
    pushed = images.push(picture.reference, f"{address}/by-us/{picture.reference}")
    assert pushed == f"{address}/by-us/{name}@{picture.digest}"
    source, target = (f"docker://{address}/{place}/{picture.reference}" for place in ("by-us", "by-skopeo"))
    skopeo(source, target, "--src-tls-verify=false", "--dest-tls-verify=false")
    image = pulled(f"{address}/by-skopeo/{picture.reference}", picture)
    assert image.digest == picture.digest


def test_through_a_registry_by_podman(
    pictures: Callable[[str], Picture], images: Images, base: Path, address: str
) -> None:
    picture, podman = pictures("odd"), Containers(base)
    images.load(picture.layout, reference=picture.reference)
    images.push(picture.reference, f"{address}/to-podman/{picture.reference}")
    podman("pull", "--quiet", "--tls-verify=false", f"{address}/to-podman/{picture.reference}")
    told = podman.image(f"{address}/to-podman/{picture.reference}")
    assert ("sha256:" + told["Id"], told["Digest"]) == (picture.id, picture.digest)
    reference = f"{address}/from-podman/{picture.reference}"
    podman("push", "--quiet", "--tls-verify=false", told["Id"], reference)
    pulled(reference, picture)


def test_through_a_registry_by_docker(
    pictures: Callable[[str], Picture], images: Images, address: str, docker: Docker
) -> None:
    picture = pictures("odd")
    images.load(picture.layout, reference=picture.reference)
    pushed = images.push(picture.reference, f"{address}/to-docker/{picture.reference}")
    docker("pull", "--quiet", f"{address}/to-docker/{picture.reference}")
    told = docker.image(pushed)
    assert (told["Id"], told["RepoDigests"]) == (picture.id, [pushed])
    reference = f"{address}/from-docker/{picture.reference}"
    docker("tag", pushed, reference)
    docker("push", reference)
    pulled(reference, picture)
    docker("rmi", "--force", picture.id)


def pulled(reference: str, picture: Picture) -> Image:
    """Pull an image into another store: it is the picture."""
    with tempfile.TemporaryDirectory() as place, Store.open(f"{place}/pulled") as store:
        image = Images(store).pull(reference)
        check(store, image, picture)
    return image
