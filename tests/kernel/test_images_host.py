"""The image of the host's own programs: usable, read-only, the same every time, and without secrets."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import pycontainer.host
from pycontainer.image import Image
from pycontainer.images import Images
from pycontainer.store import Store

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store.open(tmp_path / "store") as opened:
        yield opened


@pytest.fixture
def layer(store: Store) -> Iterator[tuple[Image, Path]]:
    store.indexed = False  # other programs are to see it too
    image = Images(store).host()
    (path,) = store.acquire(image.id)
    yield image, Path(path)
    store.release(image.id)


def test_it_is_made_once_and_found_by_name(store: Store) -> None:
    images = Images(store)
    image = images.host()
    assert images.host() == image == images.get("host:latest") == images.get("host")
    assert len(images.list()) == 1
    assert image.size < 20 << 20


def test_it_is_the_same_in_every_store(store: Store, tmp_path: Path) -> None:
    with Store.open(tmp_path / "other") as other:
        assert Images(other).host() == Images(store).host()


def test_it_is_made_anew_when_the_host_changes(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    images = Images(store)
    first = images.host()
    monkeypatch.setitem(pycontainer.host._DIRECTORIES, "extra", 0o755)
    monkeypatch.setattr(pycontainer.host, "_RECIPE", 2)
    second = images.host()
    assert second.id != first.id
    assert [image.id for image in images.list()] == [second.id]
    monkeypatch.undo()
    store.acquire(second.id)
    assert images.host().id == first.id
    assert len(images.list()) == 2  # the other one is in use
    store.release(second.id)


def test_its_mounts_are_the_systems_and_read_only(layer: tuple[Image, Path]) -> None:
    image, path = layer
    assert image.mounts
    assert "/usr" in {mount.source for mount in image.mounts}
    for mount in image.mounts:
        assert mount.type == "bind"
        assert mount.read_only
        assert mount.source == mount.target
        assert (path / mount.target[1:]).is_dir()
    for name in ("bin", "sbin", "lib", "lib64"):
        host = Path("/", name)
        if host.is_symlink():
            assert (path / name).readlink() == host.readlink()


def test_there_are_no_secrets(layer: tuple[Image, Path]) -> None:
    image, path = layer
    names = {str(entry.relative_to(path)) for entry in path.rglob("*")}
    for secret in (
        "etc/shadow",
        "etc/gshadow",
        "etc/machine-id",
        "etc/ssh",
        "etc/sudoers",
        "etc/fstab",
        "etc/ssl/private",
    ):
        assert secret not in names
    for entry in path.rglob("*"):
        if entry.is_file() and not entry.is_symlink():
            data = entry.read_bytes()
            assert b"PRIVATE KEY" not in data, entry
            assert Path("/", entry.relative_to(path)).name not in {"shadow", "gshadow"}
    for line in (path / "etc/passwd").read_text().splitlines():
        name, hashed, uid, _, gecos, _, _ = line.split(":")
        assert hashed == "*"
        assert int(uid) < 1000 or int(uid) == 65534
        assert gecos in ("", "root"), name
    homes = {entry for entry in names if entry.startswith(("home/", "root/"))}
    targets = {mount.target[1:] for mount in image.mounts}
    assert all(any(target == home or target.startswith(home + "/") for target in targets) for home in homes)
    assert not list((path / "var").rglob("*.log"))


def test_a_host_secret_made_readable_stays_out(tmp_path: Path) -> None:
    secret = tmp_path / "key.pem"
    secret.write_text("-----BEGIN PRIVATE KEY-----\n")
    secret.chmod(0o644)
    target = tmp_path / "copy"
    pycontainer.host._copy_public(secret, target)
    assert not target.exists()
    secret.write_text("public")
    secret.chmod(0o600)
    pycontainer.host._copy_public(secret, target)
    assert not target.exists()
    secret.chmod(0o644)
    pycontainer.host._copy_public(secret, target)
    assert target.read_text() == "public"


def test_modes(layer: tuple[Image, Path]) -> None:
    _, path = layer
    modes = {name: oct((path / name).stat().st_mode & 0o7777) for name in ("root", "tmp", "var/tmp", "proc", "etc")}
    assert modes == {"root": "0o700", "tmp": "0o1777", "var/tmp": "0o1777", "proc": "0o555", "etc": "0o755"}


def test_a_program_runs_in_it(layer: tuple[Image, Path]) -> None:
    image, path = layer
    # With the means of unshare(1) and chroot(8): the image by itself, without an engine.
    binds = "".join(f"mount --rbind {mount.source} {path}{mount.target}\n" for mount in image.mounts)
    script = (
        f"set -e\nmount --make-rprivate /\nmount --bind {path} {path}\n{binds}"
        f"exec chroot {path} env -i PATH={image.config.env['PATH']} python3 -c 'import sys, ssl; print(sys.version)'\n"
    )
    done = subprocess.run(
        ["unshare", "--mount", "sh", "-c", script], capture_output=True, text=True, check=False, env=dict(os.environ)
    )
    assert done.stdout.strip() == sys.version.strip(), done.stderr
