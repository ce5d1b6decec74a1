"""What is loaded is the tree that the layers say, to the last attribute: odd files, 120 layers, 8 GB of holes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from pycontainer.image import Image
from pycontainer.images import Images
from pycontainer.store import Store
from tests import recipes, rootfs
from tests.erofs import overlaid
from tests.images import Compression, Recipe, agreed, expected, write_hybrid, write_layout
from tests.trees import describe, differences, tree_hash

RECIPES: list[tuple[Callable[[], Recipe], Compression]] = [
    (recipes.odd, ""),
    (recipes.odd, "gzip"),
    (recipes.odd, "zstd"),
    (recipes.chain, "gzip"),
    (recipes.sparse, ""),
    (recipes.sparse, "zstd"),
]


@contextmanager
def shown(store: Store, image: Image, base: Path) -> Iterator[Path]:
    """Mount the layers of an image, as a container sees them."""
    (base / "e").mkdir(parents=True)
    lowers = store.acquire(image.id)
    try:
        with overlaid([base / "e", *map(Path, reversed(lowers))], base / "merged") as merged:
            yield merged
    finally:
        store.release(image.id)


@pytest.mark.parametrize(
    ("make", "compression"), RECIPES, ids=lambda value: getattr(value, "__name__", value or "plain")
)
def test_a_loaded_image_is_the_tree_of_its_layers(
    make: Callable[[], Recipe], compression: Compression, tmp_path: Path
) -> None:
    try:
        recipe = make()
    except rootfs.CannotBuild as reason:
        pytest.skip(str(reason))
    write_layout(tmp_path / "layout", recipe, tag="it", compression=compression)
    write_hybrid(tmp_path / "layout", tmp_path / "hybrid.tar", "docker.io/library/it:1")
    model = expected(recipe.layers)
    with Store.open(tmp_path / "store") as store:
        images = Images(store)
        image = images.load(tmp_path / "layout", reference="it:2")
        assert len(image.layers) == len(recipe.layers)
        with shown(store, image, tmp_path / "shown") as merged:
            found = describe(merged, whole_seconds=False, root_too=False)
            assert merged.stat().st_mode == (tmp_path / "shown/e").stat().st_mode
        assert differences(found, agreed(found, model)) == {}
        assert tree_hash(found) == tree_hash(agreed(found, model))
        again = images.load(tmp_path / "hybrid.tar")
        assert (again.id, again.digest) == (image.id, image.digest)
        assert set(again.references) == {"it:1", "it:2"}
