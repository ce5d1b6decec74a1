"""Unpack a layer with tar(1); replaced by ``pycontainer.distribution.layer``."""

from __future__ import annotations

import hashlib
import subprocess
from pathlib import Path

import attrs

from pycontainer.distribution.codec import plain_chunks
from pycontainer.errors import DigestMismatch, ImageError

__all__ = ["AppliedLayer", "apply"]


@attrs.frozen
class AppliedLayer:
    """What was unpacked."""

    diff_id: str
    digest: str
    bytes: int


def apply(
    blob: Path, directory: Path, *, expected_digest: str | None = None, expected_diff_id: str | None = None
) -> AppliedLayer:
    """Unpack a blob into a directory, verifying both digests."""
    with blob.open("rb") as file:
        digest = "sha256:" + hashlib.file_digest(file, "sha256").hexdigest()
    if expected_digest not in (None, digest):
        what = "the blob"
        raise DigestMismatch(what, str(expected_digest), digest)
    plain = hashlib.sha256()
    size = 0
    command = ["tar", "-xpf", "-", "--numeric-owner", "--xattrs", "--xattrs-include=*", "-C", str(directory)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stderr=subprocess.PIPE) as tar:  # noqa: S603
        assert tar.stdin is not None and tar.stderr is not None  # noqa: S101, PT018
        for chunk in plain_chunks(blob, "the layer"):
            plain.update(chunk)
            size += len(chunk)
            tar.stdin.write(chunk)
        tar.stdin.close()
        errors = tar.stderr.read()
    if tar.returncode:
        raise ImageError(errors.decode(errors="replace"))
    diff_id = "sha256:" + plain.hexdigest()
    if expected_diff_id not in (None, diff_id):
        what = "the layer"
        raise DigestMismatch(what, str(expected_diff_id), diff_id)
    return AppliedLayer(diff_id, digest, size)
