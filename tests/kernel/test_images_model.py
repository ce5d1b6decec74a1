"""Any layers become the tree that a model of the specification makes of them, in a few lines without a file system."""

from __future__ import annotations

import tempfile
from pathlib import Path

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pycontainer.images import Images
from pycontainer.store import Store
from tests.images import Compression, Entry, Recipe, agreed, expected, write_layout
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
