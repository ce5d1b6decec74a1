"""Whatever an image is made of: saved and loaded elsewhere it is the same, and saved again the same bytes."""

from __future__ import annotations

import gzip
import io
import json
from typing import TYPE_CHECKING, Any

import attrs
import zstandard
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from pycontainer.images import Images
from pycontainer.store import Store
from tests.archives import member, sha, tar

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    import pytest

OCI = "application/vnd.oci.image."
DOCKER = "application/vnd.docker."
PACK: dict[str, Callable[[bytes], bytes]] = {"": bytes, "gzip": gzip.compress, "zstd": zstandard.compress}
LAYER_TYPES = {
    False: {"": OCI + "layer.v1.tar", "gzip": OCI + "layer.v1.tar+gzip", "zstd": OCI + "layer.v1.tar+zstd"},
    True: {
        "": DOCKER + "image.rootfs.diff.tar",
        "gzip": DOCKER + "image.rootfs.diff.tar.gzip",
        "zstd": DOCKER + "image.rootfs.diff.tar.zstd",
    },
}
TOPS = {False: OCI + "manifest.v1+json", True: DOCKER + "distribution.manifest.v2+json"}
LISTS = {False: OCI + "index.v1+json", True: DOCKER + "distribution.manifest.list.v2+json"}
CONFIGS = {False: OCI + "config.v1+json", True: DOCKER + "container.image.v1+json"}


@attrs.frozen(kw_only=True)
class Recipe:
    """An image to put together: numbers of its layers, and how each is packed."""

    layers: tuple[tuple[int, str], ...]
    docker: bool
    indent: int | None
    annotations: dict[str, str]
    names: tuple[str, ...]
    indexed: bool


word = st.text("abcdefgh", min_size=1, max_size=6)
recipes = st.builds(
    Recipe,
    layers=st.lists(st.tuples(st.integers(0, 5), st.sampled_from(["", "gzip", "zstd"])), min_size=1, max_size=5).map(
        tuple
    ),
    docker=st.booleans(),
    indent=st.none() | st.integers(0, 3),
    annotations=st.dictionaries(word, st.text(st.characters(exclude_categories=["Cs", "Cc"]), max_size=8), max_size=2),
    names=st.lists(st.builds("{}.example/{}:{}".format, word, word, word), max_size=3, unique=True).map(tuple),
    indexed=st.booleans(),
)


def write(base: Path, made: Sequence[Recipe]) -> None:
    """Write the images as a layout."""
    blobs = base / "blobs/sha256"
    blobs.mkdir(parents=True)
    (base / "oci-layout").write_text('{"imageLayoutVersion":"1.0.0"}')

    def put(data: bytes, media_type: str) -> dict[str, Any]:
        (blobs / sha(data)[7:]).write_bytes(data)
        return {"mediaType": media_type, "digest": sha(data), "size": len(data)}

    entries = []
    for order, recipe in enumerate(made):

        def put_json(value: Any, media_type: str, indent: int | None = recipe.indent) -> dict[str, Any]:
            return put(json.dumps(value, indent=indent).encode(), media_type)

        # One blob for each layer of an image: a layer that comes twice comes from the same one.
        packing = dict(recipe.layers)
        plain = {number: tar(member(f"file{number}", b"x" * number)) for number in packing}
        config = {
            "architecture": "amd64",
            "os": "linux",
            "rootfs": {"type": "layers", "diff_ids": [sha(plain[number]) for number, _ in recipe.layers]},
            "author": f"the maker of image {order}",  # no two of them are one image
            "unknown": recipe.annotations,
        }
        manifest = {
            "schemaVersion": 2,
            "mediaType": TOPS[recipe.docker],
            "config": put_json(config, CONFIGS[recipe.docker]),
            "layers": [
                put(PACK[packing[number]](plain[number]), LAYER_TYPES[recipe.docker][packing[number]])
                for number, _ in recipe.layers
            ],
            "annotations": recipe.annotations,
        }
        entry = put_json(manifest, TOPS[recipe.docker])
        if recipe.indexed:
            entry["platform"] = {"os": "linux", "architecture": "amd64"}
            index = {"schemaVersion": 2, "mediaType": LISTS[recipe.docker], "manifests": [entry]}
            entry = put_json(index, LISTS[recipe.docker])
        entries += [entry | {"annotations": {"org.opencontainers.image.ref.name": name}} for name in recipe.names] or [
            entry
        ]
    (base / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": entries}))


def known(images: Images) -> dict[str, Any]:
    """Return what an archive tells of each image: digests go with names, so not those of names that it lost."""
    found = {}
    for image in images:
        repositories = {name.rpartition(":")[0] for name in image.references}
        digests = [text for text in image.repo_digests if text.partition("@")[0] in repositories]
        found[image.id] = (image.digest, image.references, digests, images.inspect(image).further)
    return found


def files(base: Path) -> dict[Path, bytes]:
    return {path.relative_to(base): path.read_bytes() for path in base.rglob("*") if path.is_file()}


@settings(max_examples=15, deadline=None, suppress_health_check=list(HealthCheck), phases=set(Phase) - {Phase.shrink})
@given(
    st.lists(recipes, min_size=1, max_size=2),
    st.sampled_from(["docker-archive", "oci-archive", "oci-dir"]),
    st.sampled_from([None, "gzip", "zstd"]),
)
def test_an_image_is_the_same_everywhere(
    tmp_path_factory: pytest.TempPathFactory, made: list[Recipe], form: Any, compress: Any
) -> None:
    base = tmp_path_factory.mktemp("identity")
    write(base / "layout", made)
    compress = None if form == "oci-dir" else compress
    with Store.open(base / "one") as one, Store.open(base / "two") as two:
        here, there = Images(one), Images(two)
        here.load_all(base / "layout", platform="linux/amd64")
        everything = list(here)
        here.save(base / "first", *everything, format=form, compress=compress)
        there.load_all(base / "first", platform="linux/amd64")
        assert known(there) == known(here)
        # In the same order, as that is by what came first.
        again = [there.get(image.id) for image in everything]
        there.save(base / "second", *again, format=form, compress=compress)
        if form == "oci-dir":
            first, second = (files(base / name) for name in ("first", "second"))
            assert first == second
        else:
            assert (base / "first").read_bytes() == (base / "second").read_bytes()
        stream = io.BytesIO()
        there.save(stream, *again, compress="zstd")
        stream.seek(0)
        assert {image.id for image in here.load_all(stream, platform="linux/amd64")} == set(known(here))
        assert known(here) == known(there)
