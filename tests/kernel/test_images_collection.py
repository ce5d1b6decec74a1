"""The collection: filters, history, documents, names that come and go, what is removed and what stays."""

from __future__ import annotations

import datetime as dt
import json
import time
from typing import TYPE_CHECKING, Any

import pytest

from pycontainer.errors import Conflict, NotFound
from pycontainer.images import Images
from pycontainer.model import ImageConfig
from pycontainer.store import ContainerRow, Store
from tests.archives import docker_archive, member, sha, tar

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from pycontainer.model import ContainerState

LAYERS = [tar(member("a", b"a" * 1000)), tar(member("b", b"b" * 3000))]


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store.open(tmp_path / "store") as opened:
        yield opened


@pytest.fixture
def images(store: Store) -> Images:
    return Images(store)


def load(images: Images, tmp_path: Path, name: str | None, layers: list[bytes], **config: Any) -> str:
    """Load an image; return its id."""
    document = {
        "architecture": "amd64",
        "os": "linux",
        "rootfs": {"type": "layers", "diff_ids": [sha(layer) for layer in layers]},
        **config,
    }
    item = {
        "Config": "c.json",
        "RepoTags": [name] if name else None,
        "Layers": [f"{n}.tar" for n in range(len(layers))],
    }
    path = tmp_path / "archive.tar"
    documents = {"c.json": json.dumps(document).encode(), "manifest.json": json.dumps([item]).encode()}
    path.write_bytes(docker_archive(layers, files=documents))
    return images.load(path).id


def use(store: Store, image: str, state: ContainerState = "exited") -> None:
    store.db.put_container(ContainerRow("c" * 64, "web", image, time.time(), "{}", state))


# ── list ──────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def several(images: Images, tmp_path: Path) -> dict[str, str]:
    made = {
        name: load(images, tmp_path, name, LAYERS[:1], created=f"20{year}-01-01T00:00:00Z", config={"Labels": labels})
        for name, year, labels in (
            ("app:1", 20, {"team": "red", "old": ""}),
            ("app:2", 21, {"team": "red"}),
            ("registry.example/app:2", 22, {"team": "blue"}),
        )
    }
    made[""] = load(images, tmp_path, None, LAYERS[:1], author="nobody")  # made now, as it does not tell
    return made


@pytest.mark.parametrize(
    ("filters", "found"),
    [
        ({}, {"app:1", "app:2", "registry.example/app:2", ""}),
        ({"reference": "app"}, {"app:1", "app:2"}),
        ({"reference": ["app:1", "*/app"]}, {"app:1", "registry.example/app:2"}),
        ({"reference": "*:2"}, {"app:2"}),
        ({"label": "team"}, {"app:1", "app:2", "registry.example/app:2"}),
        ({"label": ["team=red", "old"]}, {"app:1"}),
        ({"label": "team=green"}, set()),
        ({"label": "old="}, {"app:1"}),
        ({"label": "team", "without_label": "team=red"}, {"registry.example/app:2"}),
        ({"dangling": True}, {""}),
        ({"dangling": False, "label": "old"}, {"app:1"}),
        ({"before": "app:2"}, {"app:1"}),
        ({"since": "app:2"}, {"registry.example/app:2", ""}),
        ({"since": "app:1", "before": "registry.example/app:2"}, {"app:2"}),
        ({"until": dt.datetime(2021, 6, 1, tzinfo=dt.UTC)}, {"app:1", "app:2"}),
        ({"until": dt.datetime(2020, 6, 1, tzinfo=dt.UTC), "before": "registry.example/app:2"}, {"app:1"}),
    ],
)
def test_filters(images: Images, several: dict[str, str], filters: Any, found: set[str]) -> None:
    assert {image.id for image in images.list(**filters)} == {several[name] for name in found}


@pytest.mark.usefixtures("several")
def test_filters_that_mean_nothing(images: Images) -> None:
    with pytest.raises(NotFound):
        images.list(before="nosuch")
    with pytest.raises(ValueError, match="not a pattern"):
        images.list(reference="[")


# ── one image ─────────────────────────────────────────────────────────────────────────────────────────────────────


def test_history(images: Images, tmp_path: Path) -> None:
    load(
        images,
        tmp_path,
        "app:1",
        LAYERS,
        history=[
            {"created": "2020-01-01T00:00:00Z", "created_by": "ADD a /"},
            {"created_by": "ENV x=1", "empty_layer": True},
            {"created_by": "ADD b /", "comment": "buildkit"},
        ],
    )
    last, env, first = images.history("app:1")
    assert (first.created_by, first.layer, first.size) == ("ADD a /", sha(LAYERS[0]), len(LAYERS[0]))
    assert first.created == dt.datetime(2020, 1, 1, tzinfo=dt.UTC)
    assert (env.created_by, env.layer, env.size, env.created) == ("ENV x=1", None, 0, None)
    assert (last.created_by, last.comment, last.layer) == ("ADD b /", "buildkit", sha(LAYERS[1]))


@pytest.mark.parametrize(
    ("told", "shown"), [([], ["", ""]), (["one"], ["", "one"]), (["one", "two", "three"], ["three", "two", "one"])]
)
def test_a_history_of_another_length(images: Images, tmp_path: Path, told: list[str], shown: list[str]) -> None:
    load(images, tmp_path, "app:1", LAYERS, history=[{"created_by": text} for text in told])
    entries = images.history("app:1")
    assert [entry.created_by for entry in entries] == shown
    assert {entry.layer for entry in entries} - {None} == {sha(layer) for layer in LAYERS}


def test_details(images: Images, tmp_path: Path) -> None:
    load(images, tmp_path, "one:1", LAYERS, author="somebody", history=[{"comment": "x"}, {"comment": "last"}])
    load(images, tmp_path, "two:1", LAYERS[:1])
    one = images.inspect("one:1")
    assert one.image == images.get("one:1")
    assert sha(one.config) == one.image.id
    assert sha(one.manifest) == one.image.digest
    assert json.loads(one.manifest)["mediaType"] == one.manifest_type
    assert (one.author, one.comment, one.further, one.indexes) == ("somebody", "last", (), {})
    assert (one.shared_size, one.unique_size) == (len(LAYERS[0]), len(LAYERS[1]))
    assert one.image.size == sum(map(len, LAYERS))
    assert dt.datetime.now(dt.UTC) - one.added < dt.timedelta(minutes=5)
    images.remove("two:1")
    assert images.inspect("one:1").shared_size == 0


# ── names ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_untag(images: Images, tmp_path: Path) -> None:
    identity = load(images, tmp_path, "app:1", LAYERS)
    images.tag("app:1", "app:2")
    images.tag("app:1", "other/app:3")
    with pytest.raises(NotFound, match="is not called 'nosuch:latest'"):
        images.untag("app:1", "app:2", "nosuch")
    assert images.untag("app:1", "app:2").references == ("app:1", "other/app:3")
    image = images.untag("app:1")
    assert (image.id, image.references) == (identity, ())
    assert images.list(dangling=True) == [image]


def test_what_a_removal_tells(images: Images, tmp_path: Path) -> None:
    one = load(images, tmp_path, "one:1", LAYERS)
    load(images, tmp_path, "two:1", LAYERS[:1])
    images.tag("one:1", "one:2")
    first = images.remove("one:1")
    assert (first.untagged, first.deleted, first.size) == (("one:1",), (), 0)
    second = images.remove("one:2")
    assert (second.untagged, second.deleted, second.size) == (("one:2",), (one,), len(LAYERS[1]))


def test_an_image_of_a_container_loses_only_its_name_and_only_by_force(
    images: Images, store: Store, tmp_path: Path
) -> None:
    identity = load(images, tmp_path, "app:1", LAYERS)
    use(store, identity)
    for force in (False, True):
        with pytest.raises(Conflict, match=r"in use by the container web \(cccccccccccc, exited\)"):
            images.remove(identity, force=force)
    with pytest.raises(Conflict, match="container web"):
        images.remove("app:1")
    gone = images.remove("app:1", force=True)
    assert (gone.untagged, gone.deleted) == (("app:1",), ())
    assert images.get(identity).references == ()
    assert images.prune(all=True).deleted == ()
    store.db.remove_container("c" * 64)
    assert images.prune().deleted == (identity,)


def test_prune(images: Images, several: dict[str, str], store: Store) -> None:
    pruned = images.prune()
    assert (pruned.deleted, pruned.untagged, pruned.size) == ((several[""],), (), 0)
    assert images.prune(all=True, label="old", until=dt.datetime(2019, 1, 1, tzinfo=dt.UTC)).deleted == ()
    assert images.prune(all=True, label="old").untagged == ("app:1",)
    use(store, several["app:2"], "created")
    pruned = images.prune(all=True)
    assert (pruned.deleted, pruned.untagged) == ((several["registry.example/app:2"],), ("registry.example/app:2",))
    assert [image.references for image in images] == [("app:2",)]
    store.db.remove_container("c" * 64)
    assert images.prune(all=True).size == len(LAYERS[0])
    assert store.blobs.list() == {}


def test_lookup_by_digests(images: Images, store: Store, tmp_path: Path) -> None:
    identity = load(images, tmp_path, "registry.example/app:1", LAYERS)
    image = images.get(identity)
    store.put_digests(identity, [f"registry.example/app@{image.digest}"])
    image = images.get(identity)
    assert image.repo_digests == (f"registry.example/app@{image.digest}",)
    for name in (image.digest, f"registry.example/app@{image.digest}", identity[7:20], identity[:20], identity[7:]):
        assert images.get(name) == image
    images.untag(image)
    assert images.get(f"registry.example/app@{image.digest}").id == identity
    with pytest.raises(NotFound):
        images.get(f"other.example/app@{image.digest}")


def test_labels_are_those_of_the_config(images: Images, tmp_path: Path) -> None:
    (tmp_path / "tree").mkdir()
    (tmp_path / "tree/file").touch()
    image = images.import_rootfs(
        tmp_path / "tree", config=ImageConfig(labels={"a": "b"}), message="by hand", platform="linux/arm/v6"
    )
    assert image.labels == {"a": "b"}
    assert (image.architecture, image.variant) == ("arm", "v6")
    assert images.history(image)[0].comment == "by hand"
