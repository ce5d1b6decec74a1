"""The programs of erofs-utils find no fault with our indexes, and read from them what was put in."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from pycontainer.distribution import erofs
from tests.trees import describe, write_sample

OLDEST = (1, 7)  # that reads blocks of 512 bytes


@pytest.fixture(scope="module")
def fsck() -> str:
    found = shutil.which("fsck.erofs")
    if found is None:
        pytest.skip("fsck.erofs is not installed (Debian: erofs-utils)")
    said = subprocess.run([found, "-V"], check=False, capture_output=True, text=True)
    version = re.search(r"(\d+)\.(\d+)", said.stdout + said.stderr)
    if version is None or (int(version[1]), int(version[2])) < OLDEST:
        pytest.skip(f"fsck.erofs {version[0] if version else '?'} is older than 1.7: no blocks of 512 bytes")
    return found


def test_fsck_extracts_what_was_indexed(fsck: str, tmp_path: Path, busybox_rootfs: Path) -> None:
    tree, out = tmp_path / "tree", tmp_path / "out"
    tree.mkdir()
    write_sample(tree, busybox_rootfs / "bin/busybox")
    os.truncate(tree / "sparse", (3 << 20) + 9)  # fsck.erofs 1.8 cuts off holes at the end
    tar = ["tar", "-C", tree, "--format=posix", "-S", "--xattrs", "--xattrs-include=*", "-cf", tmp_path / "tar", "."]
    subprocess.run(list(map(str, tar)), check=True)
    erofs.index(tmp_path / "tar", None, tmp_path / "index")
    check = [
        fsck,
        f"--device={tmp_path / 'tar'}",
        f"--extract={out}",
        "--preserve",
        "--xattrs",
        str(tmp_path / "index"),
    ]
    said = subprocess.run(check, check=False, capture_output=True, text=True)
    assert said.returncode == 0, said.stderr
    links = ("etc/passwd.same",)  # extracted as a file of its own by some versions
    ours, theirs = describe(tree, root_too=False), describe(out, root_too=False)
    assert {k: v[:4] for k, v in theirs.items() if k not in links} == {
        k: v[:4] for k, v in ours.items() if k not in links
    }
    assert {k: v[5] for k, v in theirs.items()} == {k: v[5] for k, v in ours.items()}
