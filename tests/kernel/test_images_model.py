"""Any layers become the tree that a model of the specification makes of them, in a few lines without a file system."""

from __future__ import annotations

import errno
import hashlib
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pycontainer.distribution import erofs
from pycontainer.images import Images
from pycontainer.store import Store
from tests import recipes, rootfs
from tests.erofs import mounted
from tests.images import Compression, Entry, Recipe, agreed, expected, write_layer, write_layout
from tests.peers.tools import overlay
from tests.strategies_images import layers
from tests.trees import describe, differences

COMPRESSIONS: list[Compression] = ["", "gzip", "zstd"]


@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(stack=layers(), compression=st.sampled_from(COMPRESSIONS))
def test_any_layers_become_the_tree_of_the_model(stack: list[list[Entry]], compression: Compression) -> None:
    with tempfile.TemporaryDirectory(dir="/dev/shm") as name:
        base = Path(name)
        write_layout(base / "layout", Recipe(layers=stack), tag="it", compression=compression)
        with Store.open(base / "store") as store:
            image = Images(store).load(base / "layout")
            with overlay(store.acquire(image.id)) as merged:
                found = describe(merged, whole_seconds=False, root_too=False)
            store.release(image.id)
        assert differences(found, agreed(found, expected(stack))) == {}


@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(stack=layers(most=8))
def test_one_index_of_any_layers_is_the_tree_of_the_model(stack: list[list[Entry]]) -> None:
    check_one_index(stack)


@pytest.mark.parametrize("make", [recipes.odd, recipes.chain, recipes.sparse])
def test_one_index_is_the_tree_of_the_model(make: Callable[[], Recipe]) -> None:
    try:
        recipe = make()
    except rootfs.CannotBuild as reason:
        pytest.skip(str(reason))
    check_one_index(recipe.layers)


def check_one_index(stack: Sequence[Sequence[Entry]]) -> None:
    with tempfile.TemporaryDirectory() as name:  # not in memory: erofs cannot read from tmpfs
        base = Path(name)
        tars = [base / f"{number}.tar" for number in range(len(stack))]
        for tar, layer in zip(tars, stack, strict=True):
            with tar.open("wb") as file:
                write_layer(file, layer)
        diff_ids = ["sha256:" + hashlib.sha256(tar.read_bytes()).hexdigest() for tar in tars]
        erofs.merge(tars, base / "index", diff_ids=diff_ids)
        try:
            with mounted(base / "index", tars, base / "mounted") as root:
                found = describe(root, whole_seconds=False, root_too=False)
        except OSError as error:
            if error.errno in (errno.ENODEV, errno.ENOTBLK, errno.ENOSYS):
                pytest.skip(f"this kernel does not mount erofs from files: {error}")
            raise
    assert differences(found, agreed(found, expected(stack))) == {}
