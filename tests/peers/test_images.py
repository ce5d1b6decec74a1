"""Images made by other tools become the same trees here as there; and the store is a layout that they read."""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import shutil
import subprocess
import tarfile
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from pycontainer.errors import ImageError
from pycontainer.image import Image
from pycontainer.images import Images
from pycontainer.store import Store
from tests.erofs import overlaid
from tests.trees import describe, write_sample

if TYPE_CHECKING:
    from collections.abc import Iterator

NAME = "docker.io/library/sample:1"


def run(*command: str | Path, **keywords: Any) -> str:
    words = [str(word) for word in command]
    done: subprocess.CompletedProcess[str] = subprocess.run(
        words, capture_output=True, text=True, check=False, **keywords
    )
    assert done.returncode == 0, f"{command}: {done.stderr}"
    return done.stdout


def need(*programs: str) -> None:
    for program in programs:
        if shutil.which(program) is None:
            pytest.skip(f"{program} is not installed")


@contextmanager
def shown(store: Store, image: Image, base: Path) -> Iterator[Path]:
    """Mount the layers of an image, as a container sees them."""
    (base / "empty").mkdir(parents=True)
    lowers = store.acquire(image.id)
    try:
        with overlaid([base / "empty", *map(Path, reversed(lowers))], base / "merged") as merged:
            yield merged
    finally:
        store.release(image.id)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store.open(tmp_path / "store") as opened:
        yield opened


@pytest.fixture(scope="session")
def layout(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Give a layout made by umoci with the image ``sample`` of three layers, and its tree, unpacked by umoci."""
    need("umoci", "busybox")
    base = tmp_path_factory.mktemp("umoci")
    path, bundle = base / "layout", base / "bundle"
    run("umoci", "init", "--layout", path)
    run("umoci", "new", "--image", f"{path}:sample")
    for change in (_first_layer, _second_layer, _third_layer):
        run("umoci", "unpack", "--image", f"{path}:sample", bundle)
        change(bundle / "rootfs")
        run("umoci", "repack", "--image", f"{path}:sample", bundle)
        shutil.rmtree(bundle)
    run(
        *("umoci", "config", "--image", f"{path}:sample", "--config.entrypoint", "/bin/sh", "--config.cmd", "-c"),
        *("--config.env", "A=b=c", "--config.user", "app", "--config.workingdir", "/tmp", "--config.label", "x=y"),
        *("--config.exposedports", "80/tcp", "--config.volume", "/data", "--config.stopsignal", "SIGINT"),
    )
    run("umoci", "unpack", "--image", f"{path}:sample", bundle)
    return path, bundle / "rootfs"


def _first_layer(root: Path) -> None:
    write_sample(root, Path(shutil.which("busybox") or ""))
    (root / "gone").mkdir()
    (root / "gone/file").write_text("deleted in the next layer")
    (root / "replaced").mkdir()
    (root / "replaced/old").write_text("hidden by the next layer")


def _second_layer(root: Path) -> None:
    shutil.rmtree(root / "gone")
    shutil.rmtree(root / "replaced")
    (root / "replaced").mkdir()
    (root / "replaced/new").write_text("what is there instead")
    (root / "etc/passwd.same").unlink()
    (root / "bin/ls").unlink()
    (root / "bin/ls").write_text("a file where a link was")


def _third_layer(root: Path) -> None:
    (root / "gone").write_text("a file where a directory was")
    (root / "home/app").chmod(0o700)


def check(store: Store, image: Image, expected: Path, base: Path) -> None:
    with shown(store, image, base) as merged:
        assert describe(merged, root_too=False) == describe(expected, root_too=False)
    config = image.config
    assert (config.entrypoint, config.command, config.env["A"]) == (("/bin/sh",), ("-c",), "b=c")
    assert (config.user, config.workdir, config.stop_signal) == ("app", "/tmp", "SIGINT")
    assert (config.exposed_ports, config.volumes, config.labels["x"]) == (("80/tcp",), ("/data",), "y")
    assert len(image.layers) == 3


@pytest.mark.parametrize(
    ("form", "compression"),
    [
        ("docker-archive", ""),
        ("oci-archive", ""),
        ("oci-archive", "gzip"),
        ("oci-archive", "zstd"),
        ("oci", "zstd"),
        ("oci", "gzip"),
    ],
)
def test_images_copied_by_skopeo(
    layout: tuple[Path, Path], store: Store, tmp_path: Path, form: str, compression: str
) -> None:
    need("skopeo")
    path = tmp_path / "copy"
    # Layers that are compressed already are copied as they are, except into a directory of plain files in between.
    options = ["--dest-compress-format", compression] if compression else []
    if compression:
        plain = tmp_path / "plain"
        run("skopeo", "--insecure-policy", "copy", "--dest-decompress", f"oci:{layout[0]}:sample", f"dir:{plain}")
        source = f"dir:{plain}"
    else:
        source = f"oci:{layout[0]}:sample"
    run("skopeo", "--insecure-policy", "copy", *options, source, f"{form}:{path}:sample:1")
    image = Images(store).load(path)
    assert image.references == ("sample:1",)
    check(store, image, layout[1], tmp_path / "shown")
    if compression:
        manifest = json.loads(store.blobs.read(image.digest, limit=1 << 20))
        assert {layer["mediaType"].rpartition("+")[2] for layer in manifest["layers"]} == {compression}


@pytest.mark.parametrize("compression", ["gz", "bz2", "xz", "zst"])
def test_a_layout_in_a_compressed_tar(
    layout: tuple[Path, Path], store: Store, tmp_path: Path, compression: str
) -> None:
    path = tmp_path / f"layout.tar.{compression}"
    program = {"gz": "gzip", "bz2": "bzip2", "xz": "xz", "zst": "zstd"}[compression]
    need(program)
    run("tar", "-C", layout[0], "-I", program, "-cf", path, ".")
    image = Images(store).load(path, reference="mine")
    assert image.references == ("mine:latest",)
    check(store, image, layout[1], tmp_path / "shown")


def test_a_layout_by_umoci_has_a_tag_and_no_name(layout: tuple[Path, Path], store: Store) -> None:
    images = Images(store)
    image = images.load(layout[0])
    assert image.references == ()
    assert images.load(layout[0], reference="sample") == images.get(image.id)
    assert images.get("sample").id == image.id


def test_an_image_without_layers_is_refused(store: Store, tmp_path: Path) -> None:
    need("umoci")
    run("umoci", "init", "--layout", tmp_path / "layout")
    run("umoci", "new", "--image", f"{tmp_path / 'layout'}:empty")
    with pytest.raises(ImageError, match="no layers"):
        Images(store).load(tmp_path / "layout")


def podman(base: Path, *words: str | Path) -> str:
    return run(
        *("podman", "--root", base / "root", "--runroot", base / "run", "--storage-driver", "vfs"),
        *("--cgroup-manager", "cgroupfs", "--tmpdir", base / "tmp", *words),
    )


@pytest.fixture(scope="session")
def in_podman(layout: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    need("podman", "skopeo")
    base = tmp_path_factory.mktemp("podman")
    archive = base / "sample.tar"
    run("skopeo", "--insecure-policy", "copy", f"oci:{layout[0]}:sample", f"docker-archive:{archive}:{NAME}")
    podman(base, "load", "-q", "-i", archive)
    podman(base, "tag", NAME, "localhost/other:2")
    return base


@pytest.mark.parametrize("form", ["docker-archive", "oci-archive", "docker-dir", "oci-dir"])
def test_images_saved_by_podman(
    in_podman: Path, layout: tuple[Path, Path], store: Store, tmp_path: Path, form: str
) -> None:
    path = tmp_path / "saved"
    if form == "docker-dir":
        # That is skopeo's dir: transport, which is no format of images; it is refused by name.
        podman(in_podman, "save", "-q", "--format", form, "-o", path, NAME)
        with pytest.raises(ImageError, match="not an image archive"):
            Images(store).load(path)
        return
    podman(in_podman, "save", "-q", "--format", form, "-o", path, NAME)
    image = Images(store).load(path)
    assert image.references == ("sample:1",)
    check(store, image, layout[1], tmp_path / "shown")


def test_several_images_saved_by_podman(in_podman: Path, store: Store, tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    tree.mkdir()
    (tree / "file").write_text("x")
    run("tar", "-C", tree, "-cf", tmp_path / "tree.tar", ".")
    podman(in_podman, "import", "-q", tmp_path / "tree.tar", "localhost/third:1")
    path = tmp_path / "saved"
    podman(in_podman, "save", "-q", "-m", "-o", path, NAME, "localhost/other:2", "localhost/third:1")
    images = Images(store)
    with pytest.raises(ImageError, match="load_all"):
        images.load(path)
    assert images.list() == []
    assert images.load(path, reference="localhost/third:1").references == ("localhost/third:1",)
    loaded = images.load_all(path)
    assert [image.references for image in loaded] == [("sample:1", "localhost/other:2"), ("localhost/third:1",)]


@pytest.mark.parametrize("form", ["oci-archive", "docker-archive"])
def test_images_committed_by_buildah(store: Store, tmp_path: Path, form: str) -> None:
    need("buildah", "busybox")
    tree = tmp_path / "tree"
    tree.mkdir()
    write_sample(tree, Path(shutil.which("busybox") or ""))
    buildah = [
        *("buildah", "--root", str(tmp_path / "root"), "--runroot", str(tmp_path / "run"), "--storage-driver", "vfs"),
    ]
    environment = os.environ | {"BUILDAH_ISOLATION": "chroot"}
    container = run(*buildah, "from", "scratch", env=environment).strip()
    mounted = run(*buildah, "mount", container, env=environment).strip()
    run("cp", "-a", f"{tree}/.", mounted)
    expected = describe(Path(mounted), root_too=False)
    run(*buildah, "config", "--cmd", "true", "--user", "1000:1000", container, env=environment)
    path = tmp_path / "image"
    target = f"{form}:{path}:built:1"
    run(*buildah, "commit", "-q", container, target, env=environment)
    run(*buildah, "umount", container, env=environment)
    image = Images(store).load(path)
    assert image.references == ("built:1",)
    assert image.config.user == "1000:1000"
    with shown(store, image, tmp_path / "shown") as merged:
        assert describe(merged, root_too=False) == expected


# ── formats of docker, put together here as its versions write them ───────────────────────────────────────────────


def _blob(path: Path, digest: str) -> bytes:
    return (path / "blobs" / digest.replace(":", "/")).read_bytes()


def _parts(path: Path) -> tuple[bytes, list[bytes]]:
    """Return config and plain layers of the image in a layout."""
    entry = json.loads((path / "index.json").read_text())["manifests"][0]
    manifest = json.loads(_blob(path, entry["digest"]))
    layers = [gzip.decompress(_blob(path, layer["digest"])) for layer in manifest["layers"]]
    return _blob(path, manifest["config"]["digest"]), layers


def test_docker_save_before_version_25(layout: tuple[Path, Path], store: Store, tmp_path: Path) -> None:
    config, layers = _parts(layout[0])
    base = tmp_path / "saved"
    name = hashlib.sha256(config).hexdigest() + ".json"
    base.mkdir()
    (base / name).write_bytes(config)
    for number, layer in enumerate(layers):
        (base / f"{number:064}").mkdir()
        (base / f"{number:064}/layer.tar").write_bytes(layer)
        (base / f"{number:064}/VERSION").write_text("1.0")
    shutil.move(base / f"{0:064}/layer.tar", base / "elsewhere.tar")
    (base / f"{0:064}/layer.tar").symlink_to("../elsewhere.tar")  # as docker did for layers that come twice
    item = {
        "Config": name,
        "RepoTags": ["sample:1", "sample:latest"],
        "Layers": [f"{number:064}/layer.tar" for number in range(len(layers))],
    }
    (base / "manifest.json").write_text(json.dumps([item]))
    (base / "repositories").write_text("{}")
    run("tar", "-C", base, "-cf", tmp_path / "saved.tar", *sorted(path.name for path in base.iterdir()))
    image = Images(store).load(tmp_path / "saved.tar")
    assert image.references == ("sample:1", "sample:latest")
    assert image.id == "sha256:" + hashlib.sha256(config).hexdigest()
    check(store, image, layout[1], tmp_path / "shown")


@pytest.mark.parametrize("index_too", [False, True])
def test_docker_save_since_version_25(
    layout: tuple[Path, Path], store: Store, tmp_path: Path, *, index_too: bool
) -> None:
    config, layers = _parts(layout[0])
    base = tmp_path / "saved"
    (base / "blobs/sha256").mkdir(parents=True)

    def put(data: bytes, media_type: str) -> dict[str, Any]:
        digest = hashlib.sha256(data).hexdigest()
        (base / "blobs/sha256" / digest).write_bytes(data)
        return {"mediaType": media_type, "digest": "sha256:" + digest, "size": len(data)}

    oci = "application/vnd.oci.image."
    manifest: dict[str, Any] = {
        "schemaVersion": 2,
        "mediaType": oci + "manifest.v1+json",
        "config": put(config, oci + "config.v1+json"),
        "layers": [put(layer, oci + "layer.v1.tar") for layer in layers],
    }
    entry = put(json.dumps(manifest).encode(), oci + "manifest.v1+json")
    if index_too:
        platforms = [
            entry
            | {"platform": {"os": "linux", "architecture": "amd64" if os.uname().machine == "x86_64" else "arm64"}},
            {
                "mediaType": oci + "manifest.v1+json",
                "digest": "sha256:" + "0" * 64,
                "size": 7,
                "platform": {"os": "linux", "architecture": "s390x"},
            },
            {
                "mediaType": oci + "manifest.v1+json",
                "digest": "sha256:" + "1" * 64,
                "size": 7,
                "platform": {"os": "unknown", "architecture": "unknown"},
                "annotations": {"vnd.docker.reference.type": "attestation-manifest"},
            },
        ]
        index = {"schemaVersion": 2, "mediaType": oci + "index.v1+json", "manifests": platforms}
        entry = put(json.dumps(index).encode(), oci + "index.v1+json")
    entry["annotations"] = {"io.containerd.image.name": NAME, "org.opencontainers.image.ref.name": "1"}
    (base / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": [entry]}))
    (base / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')
    names = [item["digest"] for item in (manifest["config"], *manifest["layers"])]
    paths = ["blobs/" + name.replace(":", "/") for name in names]
    (base / "manifest.json").write_text(
        json.dumps([{"Config": paths[0], "RepoTags": ["sample:1"], "Layers": paths[1:]}])
    )
    run("tar", "-C", base, "-cf", tmp_path / "saved.tar", *sorted(path.name for path in base.iterdir()))
    image = Images(store).load(tmp_path / "saved.tar")
    assert image.references == ("sample:1",)
    check(store, image, layout[1], tmp_path / "shown")


# ── the other way: they read our store ────────────────────────────────────────────────────────────────────────────


def test_the_store_is_a_layout_that_others_read(store: Store, tmp_path: Path) -> None:
    need("skopeo", "umoci", "busybox")
    tree = tmp_path / "tree"
    tree.mkdir()
    write_sample(tree, Path(shutil.which("busybox") or ""))
    images = Images(store)
    image = images.import_rootfs(tree, reference="sample:1")
    seen = json.loads(run("skopeo", "inspect", f"oci:{store.root}:{NAME}"))
    assert seen["Layers"] == [json.loads(store.blobs.read(image.digest, limit=1 << 20))["layers"][0]["digest"]]
    run("skopeo", "--insecure-policy", "copy", f"oci:{store.root}:{NAME}", f"oci:{tmp_path / 'out'}:one")
    run("umoci", "unpack", "--image", f"{tmp_path / 'out'}:one", tmp_path / "bundle")
    assert describe(tmp_path / "bundle/rootfs", root_too=False) == describe(tree, root_too=False)
    assert "docker.io" in run("umoci", "ls", "--layout", store.root)
    images.remove("sample:1")
    assert run("umoci", "ls", "--layout", store.root) == ""


def test_the_layer_of_a_directory_is_what_tar_makes_of_it(store: Store, tmp_path: Path) -> None:
    need("busybox", "tar")
    tree = tmp_path / "tree"
    tree.mkdir()
    write_sample(tree, Path(shutil.which("busybox") or ""))
    images = Images(store)
    image = images.import_rootfs(tree)
    with store.blobs.open(json.loads(store.blobs.read(image.digest, limit=1 << 20))["layers"][0]["digest"]) as file:
        plain = file.read()
    assert image.layers == ("sha256:" + hashlib.sha256(plain).hexdigest(),)
    (tmp_path / "layer.tar").write_bytes(plain)
    out = tmp_path / "out"
    out.mkdir()
    run("tar", "-C", out, "--xattrs", "--xattrs-include=*", "--numeric-owner", "-xpf", tmp_path / "layer.tar")
    assert describe(out) == describe(tree)
    assert (out / "sparse").stat().st_blocks < (8 << 20) // 512
    with tarfile.open(tmp_path / "layer.tar") as archive:
        assert sum(1 for _ in archive) == len(describe(tree))
    # The same tree gives the same layer, and a tar of it the same image as the directory.
    again = tmp_path / "again"
    run("cp", "-a", tree, again)
    assert images.import_rootfs(again).id == image.id
    assert images.import_rootfs(tmp_path / "layer.tar").layers == image.layers


@pytest.mark.parametrize("compression", ["", "gzip", "zstd", "xz", "bzip2"])
def test_a_root_file_system_in_a_tar(store: Store, tmp_path: Path, compression: str) -> None:
    need("busybox", "tar", *([compression] if compression else []))
    tree = tmp_path / "tree"
    tree.mkdir()
    write_sample(tree, Path(shutil.which("busybox") or ""))
    path = tmp_path / "root.tar"
    options = ("-I", compression) if compression else ()
    run("tar", "-C", tree, "--xattrs", "--sparse", "--format=pax", *options, "-cf", path, ".")
    images = Images(store)
    image = images.import_rootfs(path, reference="rootfs")
    (lower,) = store.acquire(image.id)
    store.release(image.id)
    assert describe(Path(lower), root_too=False) == describe(tree, root_too=False)
    assert images.import_rootfs(path, reference="rootfs") == image
    layer = json.loads(store.blobs.read(image.digest, limit=1 << 20))["layers"][0]
    assert layer["mediaType"].endswith({"gzip": ".tar+gzip", "zstd": ".tar+zstd"}.get(compression, ".v1.tar"))
    images.remove("rootfs")
    (tmp_path / "bad.tar").write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(ImageError):
        images.import_rootfs(tmp_path / "bad.tar")
    assert store.blobs.list() == {}
    assert store.snapshots.list() == set()
