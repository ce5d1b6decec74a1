"""What we save, others read: skopeo, podman, umoci and docker, with every name, every digest and the same tree."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from pycontainer.images import Images
from pycontainer.model import ImageConfig
from pycontainer.store import Store
from tests.trees import describe, write_sample

if TYPE_CHECKING:
    from collections.abc import Iterator

NAME = "docker.io/library/sample:1"
OTHER = "localhost/team/sample:2"


def run(*command: str | Path) -> str:
    for program in command[:1]:
        if shutil.which(program) is None:
            pytest.skip(f"{program} is not installed")
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{command}: {done.stderr}"
    return done.stdout


@pytest.fixture
def images(tmp_path: Path) -> Iterator[Images]:
    busybox = shutil.which("busybox")
    if busybox is None:
        pytest.skip("busybox is not installed")
    tree = tmp_path / "tree"
    tree.mkdir()
    write_sample(tree, Path(busybox))
    (tree / "sparse").unlink()  # podman saves no layer that has holes, from whatever tool
    with Store.open(tmp_path / "store") as store:
        found = Images(store)
        found.import_rootfs(tree, reference="sample:1", config=ImageConfig(user="app", labels={"a": "b"}))
        yield found


@pytest.mark.parametrize("form", ["docker-archive", "oci-archive", "oci-dir"])
def test_skopeo_and_umoci(images: Images, tmp_path: Path, form: Any) -> None:
    image = images.get("sample:1")
    saved = tmp_path / "saved"
    images.save(saved, "sample:1", format=form)
    sources = {
        "docker-archive": [f"docker-archive:{saved}:{NAME}", f"docker-archive:{saved}", f"oci-archive:{saved}:{NAME}"],
        "oci-archive": [f"oci-archive:{saved}", f"oci-archive:{saved}:{NAME}"],
        "oci-dir": [f"oci:{saved}", f"oci:{saved}:{NAME}"],
    }[form]
    for number, source in enumerate(sources):
        out = tmp_path / f"out{number}"
        # Plain layers are compressed on their way into a layout, unless told otherwise.
        exact = [] if source.startswith("docker") else ["--preserve-digests"]
        run("skopeo", "--insecure-policy", "copy", *exact, source, f"oci:{out}:one")
        entry = json.loads((out / "index.json").read_text())["manifests"][0]
        manifest = json.loads((out / "blobs" / entry["digest"].replace(":", "/")).read_text())
        assert manifest["config"]["digest"] == image.id
        if not source.startswith("docker"):
            assert entry["digest"] == image.digest
    run("umoci", "unpack", "--image", f"{tmp_path / 'out0'}:one", tmp_path / "bundle")
    assert describe(tmp_path / "bundle/rootfs", root_too=False) == describe(tmp_path / "tree", root_too=False)


@pytest.mark.parametrize(
    ("form", "names"),  # of layouts podman loads those with one name only
    [("docker-archive", (NAME,)), ("docker-archive", (NAME, OTHER)), ("oci-archive", (NAME,)), ("oci-dir", (NAME,))],
)
def test_podman(images: Images, tmp_path_factory: pytest.TempPathFactory, form: Any, names: tuple[str, ...]) -> None:
    tmp_path = tmp_path_factory.mktemp("p")  # short, for podman refuses paths of over 50 characters
    image = images.tag("sample:1", OTHER)
    saved = tmp_path / "saved"
    images.save(saved, *names, format=form)
    podman = (
        *("podman", "--root", tmp_path / "podman", "--runroot", tmp_path / "run", "--storage-driver", "vfs"),
        *("--cgroup-manager", "cgroupfs", "--tmpdir", tmp_path / "tmp"),
    )
    run(*podman, "load", "-q", "-i", saved)
    shown = json.loads(run(*podman, "image", "inspect", image.id.removeprefix("sha256:")))[0]
    if form != "oci-dir":  # of which podman knows the path alone
        assert set(shown["RepoTags"]) == set(names)
    assert shown["RootFS"]["Layers"] == list(image.layers)
    assert (shown["User"], shown["Labels"]) == ("app", {"a": "b"})
    # There and back: the same image, to the last bit of its config.
    run(*podman, "tag", shown["Id"], *names)
    run(*podman, "save", "-q", "-o", tmp_path / "back.tar", *names)
    with Store.open(tmp_path / "back") as back:
        (loaded,) = Images(back).load_all(tmp_path / "back.tar")
        assert loaded.id == image.id
        assert set(loaded.references) == {"sample:1", *names[1:]}
