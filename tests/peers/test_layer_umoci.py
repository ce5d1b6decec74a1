"""Two layers, the upper one with deletions, show the same tree through an overlay as umoci unpacks."""

from __future__ import annotations

import hashlib
import io
import json
import shutil
import subprocess
import tarfile
import tempfile
from pathlib import Path

import attrs
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pycontainer.distribution.layer import apply
from tests.strategies import Node, trees, write_tree
from tests.trees import describe

pytestmark = pytest.mark.skipif(shutil.which("umoci") is None, reason="umoci is not installed: apt-get install umoci")

OCI = "application/vnd.oci.image"
XATTRS = ("--xattrs", "--xattrs-include=*")


def add_blob(layout: Path, data: bytes, media_type: str) -> dict[str, object]:
    name = hashlib.sha256(data).hexdigest()
    (layout / "blobs/sha256" / name).write_bytes(data)
    return {"mediaType": f"{OCI}.{media_type}", "digest": f"sha256:{name}", "size": len(data)}


def write_layout(layout: Path, layers: list[bytes]) -> None:
    """Write an OCI image layout of one image, tagged ``x``."""
    (layout / "blobs/sha256").mkdir(parents=True)
    found = [add_blob(layout, layer, "layer.v1.tar") for layer in layers]
    rootfs = {"type": "layers", "diff_ids": [layer["digest"] for layer in found]}
    config = json.dumps({"architecture": "amd64", "os": "linux", "config": {}, "rootfs": rootfs}).encode()
    manifest = {"schemaVersion": 2, "config": add_blob(layout, config, "config.v1+json"), "layers": found}
    index = add_blob(layout, json.dumps(manifest).encode(), "manifest.v1+json")
    index["annotations"] = {"org.opencontainers.image.ref.name": "x"}
    (layout / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": [index]}))
    (layout / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')


def whiteouts(root: Path, chosen: list[int], opaque: list[int]) -> list[str]:
    """Name some paths of the tree as deleted, and some of its directories as opaque.

    Nothing is deleted below what is deleted or opaque: in a directory that hides the lower ones, an overlay lists
    whiteouts as names without files.
    """
    paths = sorted(root.rglob("*"))
    gone = {paths[number % len(paths)] for number in chosen if paths}
    hiding = {paths[number % len(paths)] for number in opaque if paths}
    hidden = gone | hiding
    gone = {path for path in gone if not hidden & {*path.parents} and len(path.name) < 250}
    hiding = {
        path for path in hiding - gone if not hidden & {*path.parents} and path.is_dir() and not path.is_symlink()
    }
    found = [path.with_name(f".wh.{path.name}") for path in gone] + [path / ".wh..wh..opq" for path in hiding]
    return sorted({str(path.relative_to(root)) for path in found})


def upper_layer(lower: Path, names: list[str]) -> bytes:
    """Make a layer of deletions and a new file; parents come along with their attributes, as differs write them."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.GNU_FORMAT) as archive:
        parents = {parent for name in names for parent in Path(name).parents}
        for parent in sorted(parents):
            archive.add(lower / parent, str(parent), recursive=False)
        for name in names:
            archive.addfile(tarfile.TarInfo(name))
        new = tarfile.TarInfo("new file")
        new.size, new.mtime = 3, 10**9
        archive.addfile(new, io.BytesIO(b"new"))
    return out.getvalue()


@settings(deadline=None, max_examples=15, suppress_health_check=[HealthCheck.too_slow])
@given(trees(), st.lists(st.integers(0, 40), max_size=3), st.lists(st.integers(0, 40), max_size=2))
def test_two_layers_are_what_umoci_makes_of_them(tree: list[Node], gone: list[int], opaque: list[int]) -> None:
    with tempfile.TemporaryDirectory(dir="/dev/shm", ignore_cleanup_errors=True) as name:
        base = Path(name)
        for directory in ("tree", "lower", "upper", "merged", "umoci"):
            (base / directory).mkdir()
        # Go's tar reader does not undo GNU tar's escape of "=" in names of xattrs, and drops empty ones.
        tree = [
            attrs.evolve(node, xattrs={key: value for key, value in node.xattrs.items() if value and "=" not in key})
            for node in tree
        ]
        write_tree(base / "tree", tree)
        command: list[str | Path] = [
            "tar",
            "-C",
            base / "tree",
            "--format=posix",
            *XATTRS,
            "-cf",
            base / "layer.tar",
            ".",
        ]
        subprocess.run(command, check=True)
        upper = upper_layer(base / "tree", whiteouts(base / "tree", gone, opaque))
        write_layout(base / "oci", [(base / "layer.tar").read_bytes(), upper])
        apply(base / "layer.tar", base / "lower")
        apply(io.BytesIO(upper), base / "upper")
        options = f"lowerdir={base}/upper:{base}/lower"
        subprocess.run(["mount", "-t", "overlay", "overlay", "-o", options, base / "merged"], check=True)
        try:
            command = ["umoci", "raw", "unpack", "--image", f"{base}/oci:x", base / "umoci/root"]
            subprocess.run(command, check=True, capture_output=True)
            ours = describe(base / "merged", whole_seconds=False, root_too=False)
            theirs = describe(base / "umoci/root", whole_seconds=False, root_too=False)
            different = {
                key: (ours.get(key), theirs.get(key)) for key in {*ours, *theirs} if ours.get(key) != theirs.get(key)
            }
            assert different == {}
        finally:
            subprocess.run(["umount", base / "merged"], check=True)
