"""Image archives made by hand, so that each part can be wrong."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import tarfile
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path


def sha(data: bytes) -> str:
    return "sha256:" + hashlib.sha256(data).hexdigest()


def member(name: str, data: bytes = b"", **fields: Any) -> tuple[tarfile.TarInfo, bytes]:
    info = tarfile.TarInfo(name)
    info.size = len(data)
    info.mtime = 10**9
    for key, value in fields.items():
        setattr(info, key, value)
    return info, data


def folder(name: str, **fields: Any) -> tuple[tarfile.TarInfo, bytes]:
    return member(name, type=tarfile.DIRTYPE, **({"mode": 0o755} | fields))


def tar(*members: tuple[tarfile.TarInfo, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for info, data in members:
            archive.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def docker_archive(layers: Sequence[bytes], **change: Any) -> bytes:
    config = {
        "architecture": "amd64",
        "os": "linux",
        "rootfs": {"type": "layers", "diff_ids": [sha(x) for x in layers]},
    }
    item = {"Config": "c.json", "RepoTags": ["x:1"], "Layers": [f"{number}.tar" for number in range(len(layers))]}
    files = {"c.json": json.dumps(config).encode()} | {f"{number}.tar": data for number, data in enumerate(layers)}
    files["manifest.json"] = json.dumps([item]).encode()
    files |= change.get("files", {})
    for name in change.get("without", ()):
        del files[name]
    return tar(*(member(name, data) for name, data in files.items()))


OCI = "application/vnd.oci.image."


def oci_layout(
    base: Path, layers: Sequence[bytes], *, change: Callable[[dict[str, Any]], None] | None = None, **extra: Any
) -> Path:
    """Write a layout; ``change`` may alter the parts before they are put together."""
    blobs = base / "blobs/sha256"
    blobs.mkdir(parents=True)

    def put(data: bytes, kind: str) -> dict[str, Any]:
        (blobs / sha(data)[7:]).write_bytes(data)
        return {"mediaType": OCI + kind, "digest": sha(data), "size": len(data)}

    parts: dict[str, Any] = {
        "config": {
            "architecture": "amd64",
            "os": "linux",
            "rootfs": {"type": "layers", "diff_ids": [sha(x) for x in layers]},
        },
        "layers": [put(gzip.compress(layer, 1), "layer.v1.tar+gzip") for layer in layers],
    }
    if change:
        change(parts)
    config = put(json.dumps(parts["config"]).encode(), "config.v1+json") | parts.get("config_descriptor", {})
    manifest = {"schemaVersion": 2, "config": config, "layers": parts["layers"]} | extra
    entry = put(json.dumps(manifest).encode(), "manifest.v1+json") | parts.get("entry", {})
    (base / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": [entry]}))
    (base / "oci-layout").write_text(json.dumps({"imageLayoutVersion": "1.0.0"}))
    return base
