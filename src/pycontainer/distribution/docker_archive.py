"""Archives of ``docker save`` from its first version to 24, and of ``podman save``.

Since 1.10 ``manifest.json`` lists config and layers of each image. Before, an image was the last of a chain of
directories, one for each step of its making: ``json`` names the parent, ``layer.tar`` has the changes, and
``repositories`` the names. Those get the config that docker itself makes of them.
"""

from __future__ import annotations

import functools
import json
import re
from contextlib import closing
from typing import TYPE_CHECKING, Any, cast

from pycontainer.distribution.contents import (
    check_digest,
    check_platform,
    clean_name,
    image_document,
    layer_source,
    whole_references,
)
from pycontainer.distribution.layer import LayerLimits, verify
from pycontainer.distribution.sources import Source
from pycontainer.errors import ImageError
from pycontainer.oci.image import CONFIG, MAX_CONFIG, MAX_DOCUMENT, parse_json

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import IO

    from pycontainer.distribution.archive import Archive
    from pycontainer.oci.platforms import Platform

__all__ = ["docker_sources", "legacy_sources"]

_HASH_NAME = re.compile(r"(?:blobs/sha256/)?([0-9a-f]{64})(?:\.json)?")
_LEGACY_ID = re.compile(r"[0-9a-f]{64}")
_MAX_STEPS = 512  # docker allowed 127
# What a step says of itself and its config does not, see docker's image/v1.
_OF_STEPS = ("id", "parent", "parent_id", "Size", "layer_id", "throwaway")


def docker_sources(archive: Archive, path: str, wanted: Platform | None) -> list[Source]:
    """Return the images of ``manifest.json``, one for each item.

    Args:
        archive: the files.
        path: its name, for messages.
        wanted: refuse images for other platforms.

    Raises:
        ImageError: a document is missing, damaged or hostile.
    """
    what = f"{path}: manifest.json"
    items = parse_json(archive.read("manifest.json", MAX_DOCUMENT), what)
    if isinstance(items, dict) and "schemaVersion" in items:
        msg = f"{path} is a directory of skopeo's dir: transport, not an image archive; copy it to oci-archive:FILE"
        raise ImageError(msg)
    if not isinstance(items, list):
        msg = f"{what} should be an array"
        raise ImageError(msg)
    return [_docker_source(archive, item, f"{what}: item {number}", wanted) for number, item in enumerate(items)]


def _docker_source(archive: Archive, item: object, what: str, wanted: Platform | None) -> Source:
    if not isinstance(item, dict):
        msg = f"{what} should be an object"
        raise ImageError(msg)
    name, layers, tags = item.get("Config"), item.get("Layers") or [], item.get("RepoTags") or []
    if not isinstance(name, str) or not _all_text(layers) or not _all_text(tags):
        msg = f"{what} should have 'Config', a string, 'Layers' and 'RepoTags', arrays of strings"
        raise ImageError(msg)
    config = archive.read(clean_name(name), MAX_CONFIG)
    promised = _HASH_NAME.fullmatch(name)
    if promised:
        check_digest(config, "sha256:" + promised[1], f"{what}: the config {name}")
    document = image_document(config, f"{what}: {name}", len(layers))
    check_platform(document, wanted, f"{what}: the image {tags[0] if tags else name}")
    return Source(
        config=config,
        config_type=CONFIG,
        document=document,
        layers=tuple(
            layer_source(archive, clean_name(layer), diff_id, size=archive.size(clean_name(layer)))
            for layer, diff_id in zip(layers, document.diff_ids, strict=True)
        ),
        references=whole_references(tuple(tags)),
        labels=tuple(tags),
    )


def _all_text(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(item, str) and "\0" not in item for item in value)


# ── before 1.10 ───────────────────────────────────────────────────────────────────────────────────────────────────


def legacy_sources(archive: Archive, path: str, wanted: Platform | None, limits: LayerLimits | None) -> list[Source]:
    """Return the images of ``repositories``.

    Args:
        archive: the files.
        path: its name, for messages.
        wanted: refuse images for other platforms.
        limits: what is too much for a layer: each is read once to know its diff ID.

    Raises:
        ImageError: a document or a layer is missing, damaged or hostile.
    """
    what = f"{path}: repositories"
    names: dict[str, list[str]] = {}
    repositories = parse_json(archive.read("repositories", MAX_DOCUMENT), what)
    if not isinstance(repositories, dict) or not all(isinstance(tags, dict) for tags in repositories.values()):
        msg = f"{what} should be an object of objects"
        raise ImageError(msg)
    for repository, tags in repositories.items():
        for tag, identity in tags.items():
            if not isinstance(identity, str) or not _LEGACY_ID.fullmatch(identity):
                msg = f"{what}: {repository}:{tag} should be an id of 64 hexadecimal digits"
                raise ImageError(msg)
            names.setdefault(identity, []).append(f"{repository}:{tag}")

    @functools.cache
    def diff_id(name: str) -> str:
        with closing(archive.open(name)) as stream:
            return verify(cast("IO[bytes]", stream), limits=limits)[1]

    found = []
    for identity, tags in names.items():
        source = _legacy_source(archive, path, identity, tuple(tags), diff_id)
        check_platform(source.document, wanted, f"{path}: the image {tags[0]}")
        found.append(source)
    return found


def _legacy_source(
    archive: Archive, path: str, identity: str, tags: tuple[str, ...], diff_id: Callable[[str], str]
) -> Source:
    steps = _legacy_steps(archive, path, identity)
    layers = [f"{step}/layer.tar" for step, _ in steps]
    found = [diff_id(layer) for layer in layers]
    last = steps[-1][1]
    config = {key: value for key, value in last.items() if key not in _OF_STEPS}
    config["rootfs"] = {"type": "layers", "diff_ids": found}
    config["history"] = [_legacy_history(step) for _, step in steps]
    data = json.dumps(config, sort_keys=True, ensure_ascii=False, separators=(",", ":")).encode()
    return Source(
        config=data,
        document=image_document(data, f"{path}: {identity}/json", len(layers)),
        layers=tuple(
            layer_source(archive, layer, known, size=archive.size(layer))
            for layer, known in zip(layers, found, strict=True)
        ),
        references=whole_references(tags),
        labels=tags,
    )


def _legacy_steps(archive: Archive, path: str, identity: str) -> list[tuple[str, dict[str, Any]]]:
    """Return the steps that led to an image, the first one first."""
    steps: dict[str, dict[str, Any]] = {}
    current: object = identity
    while current:
        what = f"{path}: the parent {current!r}"
        if not isinstance(current, str) or not _LEGACY_ID.fullmatch(current):
            msg = f"{what} is no id of 64 hexadecimal digits"
            raise ImageError(msg)
        if current in steps or len(steps) == _MAX_STEPS:
            msg = f"{what} is its own ancestor, or has more than {_MAX_STEPS} of them"
            raise ImageError(msg)
        step = parse_json(archive.read(f"{current}/json", MAX_DOCUMENT), f"{path}: {current}/json")
        if not isinstance(step, dict):
            msg = f"{path}: {current}/json should be an object"
            raise ImageError(msg)
        steps[current] = step
        current = step.get("parent")
    return list(reversed(steps.items()))


def _legacy_history(step: dict[str, Any]) -> dict[str, Any]:
    made_by = step.get("container_config")
    words = made_by.get("Cmd") if isinstance(made_by, dict) else None
    value: dict[str, Any] = {key: step[key] for key in ("created", "author", "comment") if step.get(key)}
    if isinstance(words, list) and all(isinstance(word, str) for word in words):
        value["created_by"] = " ".join(words)
    return value
