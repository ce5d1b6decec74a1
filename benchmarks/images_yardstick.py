"""The image that everybody gets: five layers, about 1 GB of tar, 70,000 entries; made once and kept.

A Debian without its Python, its Python, its compiler, data, and a node_modules of 53,000 files. Every layer is kept
plain, as gzip -6 and as zstd -3.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import re
import shutil
import subprocess
import tarfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import attrs

from tests import recipes, rootfs
from tests.images import Entry, write_layer

__all__ = ["COMPRESSIONS", "Yardstick", "write_layout", "yardstick"]

COMPRESSIONS = {"gzip": ".gz", "zstd": ".zst", "plain": ""}
PACKAGES = ("python3", "gcc", "libc6-dev")
NODE_FILES, NODE_MEAN = 53_000, 5_000
DATA_FILES, DATA_SIZE = 320, 1 << 20
_PYTHON = re.compile(r"(lib)?python3|libexpat|libsqlite|libreadline|media-types|libncurses|libnsl|libtirpc|libffi")
_COMPILER = re.compile(
    r"gcc|cpp|binutils|lib(binutils|ctf|cc1|gomp|itm|atomic|asan|lsan|tsan|ubsan|quadmath|gprofng|isl|mpc|mpfr|jansson)"
    r"|libgcc-.*-dev|libc6-dev|libc-dev-bin|linux-libc-dev|libcrypt-dev|libtirpc-dev|libnsl-dev|rpcsvc-proto"
)
_LISTS = re.compile(r"\.?/?var/lib/dpkg/info/([^:/]+)(?::[^/]*)?\.list")
_OCI = "application/vnd.oci.image"


@attrs.frozen
class Yardstick:
    """The image, in a directory of the cache.

    Attributes:
        directory: holds ``N.tar``, ``N.tar.gz`` and ``N.tar.zst`` of each layer, and ``facts.json``.
    """

    directory: Path

    @property
    def facts(self) -> dict[str, Any]:
        """What it is made of: entries and bytes of each layer, plain and compressed; the diff IDs."""
        found: dict[str, Any] = json.loads((self.directory / "facts.json").read_text())
        return found

    def layers(self, compression: str) -> list[Path]:
        """Return the blobs of all layers, the lowest first."""
        return [self.directory / f"{n}.tar{COMPRESSIONS[compression]}" for n in range(1, 6)]


def yardstick() -> Yardstick:
    """Return the image; made in about three minutes the first time.

    Raises:
        CannotBuild: there is no mmdebstrap, or it failed.
    """
    debian = rootfs.debian_tar(include=PACKAGES)
    name = rootfs.key_of(debian.name, f"{NODE_FILES} {NODE_MEAN} {DATA_FILES} {DATA_SIZE}", "2")
    return Yardstick(rootfs.once(f"yardstick-{name}", lambda target: _build(target, debian)))


def _build(target: Path, debian: Path) -> None:
    target.mkdir()
    _split(debian, [target / f"{n}.tar" for n in (1, 2, 3)])
    with (target / "4.tar").open("wb") as file:
        write_layer(file, _data())
    with (target / "5.tar").open("wb") as file:
        write_layer(file, recipes.node_modules(NODE_FILES, mean=NODE_MEAN, variety=48 << 20))
    plain = [target / f"{n}.tar" for n in range(1, 6)]
    commands = [command for path in plain for command in (["gzip", "-kn6", path], ["zstd", "-q3", "-T1", path])]
    with ThreadPoolExecutor(os.process_cpu_count() if hasattr(os, "process_cpu_count") else os.cpu_count()) as pool:
        for done in pool.map(lambda command: subprocess.run(command, capture_output=True, check=False), commands):
            if done.returncode:
                raise rootfs.CannotBuild(f"{done.args[0]}: {done.stderr.decode(errors='replace')}")
    (target / "facts.json").write_text(json.dumps({"layers": [_facts(path) for path in plain]}, indent=1))


def _facts(path: Path) -> dict[str, Any]:
    with tarfile.open(path) as archive:
        entries = sum(1 for _ in archive)
    sizes = {name: Path(f"{path}{end}").stat().st_size for name, end in COMPRESSIONS.items()}
    digests = {name: _digest(Path(f"{path}{end}")) for name, end in COMPRESSIONS.items()}
    return {"entries": entries, "sizes": sizes, "digests": digests}


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return "sha256:" + hashlib.file_digest(file, "sha256").hexdigest()


def _split(debian: Path, targets: list[Path]) -> None:
    """Divide a Debian into layers: all but these, Python, the compiler, by the packages that own the files."""
    with tarfile.open(debian) as archive:
        owners: dict[str, set[int]] = {}
        for member in archive:
            found = _LISTS.fullmatch(member.name)
            content = archive.extractfile(member) if found else None
            if found and content:
                layer = (
                    1
                    if _PYTHON.match(found[1])
                    else 2
                    if _COMPILER.fullmatch(found[1]) or _COMPILER.match(found[1])
                    else 0
                )
                for line in content.read().decode().splitlines():
                    owners.setdefault(_merged(line.strip("/")), set()).add(layer)
        outs = [tarfile.open(path, "w", format=tarfile.PAX_FORMAT) for path in targets]  # noqa: SIM115
        try:
            for member in archive:
                name = member.name.removeprefix("./").strip("/")
                layers = owners.get(_merged(name), {0})
                for layer in sorted(layers) if member.isdir() else [min(layers)]:
                    outs[layer].addfile(member, archive.extractfile(member) if member.isreg() else None)
        finally:
            for out in outs:
                out.close()


def _merged(name: str) -> str:
    """Return where a path of a package is since /bin and the like are links into /usr."""
    return f"usr/{name}" if name.split("/", maxsplit=1)[0] in {"bin", "sbin", "lib", "lib64"} and "/" in name else name


def _data() -> list[Entry]:
    """Return files of 1 MiB that compress as programs and data do, to about a third."""
    rng = random.Random(4)  # noqa: S311 - the same every time
    pool = recipes.text(rng, 24 << 20)
    entries = [Entry(path="data", kind="directory", mode=0o755)]
    for number in range(DATA_FILES):
        start = rng.randrange(len(pool) - DATA_SIZE)
        content = rng.randbytes(DATA_SIZE // 5) + pool[start : start + DATA_SIZE * 4 // 5]
        entries.append(Entry(path=f"data/{number:04}", pieces=((0, content),)))
    return entries


# ── its forms ─────────────────────────────────────────────────────────────────────────────────────────────────────


def write_layout(image: Yardstick, target: Path, compression: str, tag: str, chosen: Sequence[int] = range(5)) -> str:
    """Write an OCI image layout; return the image's id.

    Args:
        image: the image.
        target: a new directory.
        compression: of its layers: ``gzip``, ``zstd`` or ``plain``.
        tag: its name there.
        chosen: which layers it has.
    """
    blobs = target / "blobs/sha256"
    blobs.mkdir(parents=True)
    kind = f"{_OCI}.layer.v1.tar" + ("" if compression == "plain" else f"+{compression}")
    facts = [image.facts["layers"][number] for number in chosen]
    paths = [image.layers(compression)[number] for number in chosen]
    layers = []
    for path, layer in zip(paths, facts, strict=True):
        digest = layer["digests"][compression]
        shutil.copyfile(path, blobs / digest.removeprefix("sha256:"))
        layers.append({"mediaType": kind, "digest": digest, "size": layer["sizes"][compression]})
    machine = os.uname().machine
    config = {
        "created": "2026-01-01T00:00:00Z",
        "architecture": {"x86_64": "amd64", "aarch64": "arm64"}.get(machine, machine),
        "os": "linux",
        "config": {"Cmd": ["/bin/sh"], "Env": ["PATH=/usr/sbin:/usr/bin:/sbin:/bin"]},
        "rootfs": {"type": "layers", "diff_ids": [layer["digests"]["plain"] for layer in facts]},
        "history": [{"created": "2026-01-01T00:00:00Z", "created_by": f"layer {n}"} for n in chosen],
    }

    def put(document: object, media_type: str) -> dict[str, Any]:
        data = json.dumps(document).encode()
        name = hashlib.sha256(data).hexdigest()
        (blobs / name).write_bytes(data)
        return {"mediaType": f"{_OCI}.{media_type}", "digest": f"sha256:{name}", "size": len(data)}

    described = put(config, "config.v1+json")
    manifest: dict[str, Any] = {
        "schemaVersion": 2,
        "mediaType": f"{_OCI}.manifest.v1+json",
        "config": described,
        "layers": layers,
    }
    entry = put(manifest, "manifest.v1+json") | {"annotations": {"org.opencontainers.image.ref.name": tag}}
    (target / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": [entry]}))
    (target / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')
    return str(described["digest"])
