"""The documents of the OCI image specification and of Docker's schema 2, and their way to and from bytes.

What comes in is not trusted: size, nesting and every type are checked, and what is wrong is an :class:`ImageError` that
names the field. Fields that are not known here are not kept in the values; the bytes of a document are kept by the
store, and those are what is served again. See image-spec ``manifest.md``, ``image-index.md``, ``config.md``.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import attrs

from pycontainer.errors import ImageError
from pycontainer.model import ImageConfig
from pycontainer.names import is_digest
from pycontainer.oci.platforms import Platform
from pycontainer.oci.reading import MAX_DOCUMENT, Reader, parse_json
from pycontainer.records import Record

if TYPE_CHECKING:
    import datetime as dt

__all__ = [
    "CONFIG",
    "DOCKER_CONFIG",
    "DOCKER_LIST",
    "DOCKER_MANIFEST",
    "INDEX",
    "LAYER",
    "LAYER_GZIP",
    "LAYER_ZSTD",
    "MANIFEST",
    "MAX_CONFIG",
    "MAX_DOCUMENT",
    "REF_NAME",
    "Descriptor",
    "History",
    "ImageDocument",
    "Index",
    "Manifest",
    "Platform",
    "config_json",
    "parse_config",
    "parse_index",
    "parse_json",
    "parse_manifest",
    "parse_manifest_or_index",
    "time_text",
]

MANIFEST = "application/vnd.oci.image.manifest.v1+json"
INDEX = "application/vnd.oci.image.index.v1+json"
CONFIG = "application/vnd.oci.image.config.v1+json"
LAYER = "application/vnd.oci.image.layer.v1.tar"
LAYER_GZIP = LAYER + "+gzip"
LAYER_ZSTD = LAYER + "+zstd"
DOCKER_MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
DOCKER_LIST = "application/vnd.docker.distribution.manifest.list.v2+json"
DOCKER_CONFIG = "application/vnd.docker.container.image.v1+json"
REF_NAME = "org.opencontainers.image.ref.name"

MAX_CONFIG = 16 * 1024 * 1024  # configs with long histories outgrow that
_SCHEMA_VERSION = 2
_MAX_LAYERS = 4096
_MAX_MANIFESTS = 4096
_MAX_SIZE = 2**63 - 1

_MEDIA_TYPE = re.compile(r"[A-Za-z0-9][A-Za-z0-9!#$&^_.+-]{0,126}/[A-Za-z0-9][A-Za-z0-9!#$&^_.+-]{0,126}(?:\s*;.*)?")
_TIME = re.compile(r"(\d{4}-\d\d-\d\d)[Tt ](\d\d:\d\d:\d\d)(?:\.(\d+))?([Zz]|[+-]\d\d:\d\d)")


@attrs.frozen(kw_only=True, eq=False, repr=False)
class Descriptor(Record):
    """A reference to content: what it is, its digest and its size in bytes.

    Attributes:
        media_type: what it is.
        digest: of the content.
        size: bytes.
        annotations: free text by name.
        platform: what an image is made for.
        urls: where else it can be had.
        artifact_type: what an artifact is that is no image.
    """

    media_type: str
    digest: str
    size: int
    annotations: Mapping[str, str] = attrs.field(factory=dict)
    platform: Platform | None = None
    urls: tuple[str, ...] = ()
    artifact_type: str = ""

    def to_json(self) -> dict[str, Any]:
        """Return the object for a document."""
        value: dict[str, Any] = {"mediaType": self.media_type, "digest": self.digest, "size": self.size}
        if self.urls:
            value["urls"] = list(self.urls)
        if self.annotations:
            value["annotations"] = dict(self.annotations)
        if self.platform is not None:
            value["platform"] = self.platform.to_json()
        if self.artifact_type:
            value["artifactType"] = self.artifact_type
        return value


@attrs.frozen(kw_only=True, eq=False, repr=False)
class Manifest(Record):
    """An image: its config and its layers, the lowest first; or an artifact, which has something else in their places.

    Attributes:
        config: of the image.
        layers: the lowest first.
        media_type: of the manifest.
        annotations: free text by name.
        artifact_type: what it is, if no image.
        subject: what it is about, e.g. the image that it signs.
    """

    config: Descriptor
    layers: tuple[Descriptor, ...]
    media_type: str = MANIFEST
    annotations: Mapping[str, str] = attrs.field(factory=dict)
    artifact_type: str = ""
    subject: Descriptor | None = None

    def to_bytes(self) -> bytes:
        """Return the document, always the same bytes for the same value."""
        value: dict[str, Any] = {
            "schemaVersion": 2,
            "mediaType": self.media_type,
            "config": self.config.to_json(),
            "layers": [layer.to_json() for layer in self.layers],
        }
        if self.artifact_type:
            value["artifactType"] = self.artifact_type
        if self.subject is not None:
            value["subject"] = self.subject.to_json()
        if self.annotations:
            value["annotations"] = dict(self.annotations)
        return _to_bytes(value)


@attrs.frozen(kw_only=True, eq=False, repr=False)
class Index(Record):
    """A list of manifests, or of further indexes: one image for several platforms, or all images of a layout."""

    manifests: tuple[Descriptor, ...]
    media_type: str = INDEX
    annotations: Mapping[str, str] = attrs.field(factory=dict)

    def to_bytes(self) -> bytes:
        """Return the document, always the same bytes for the same value."""
        value: dict[str, Any] = {
            "schemaVersion": 2,
            "mediaType": self.media_type,
            "manifests": [manifest.to_json() for manifest in self.manifests],
        }
        if self.annotations:
            value["annotations"] = dict(self.annotations)
        return _to_bytes(value)


@attrs.frozen(kw_only=True, eq=False, repr=False)
class History(Record):
    """How one layer, or a step without one, came to be."""

    created_by: str = ""
    comment: str = ""
    created: dt.datetime | None = None
    empty_layer: bool = False


@attrs.frozen(kw_only=True, eq=False, repr=False)
class ImageDocument(Record):
    """The image config document: platform, the diff IDs of the layers and how to run it."""

    platform: Platform
    diff_ids: tuple[str, ...]
    config: ImageConfig = attrs.field(factory=ImageConfig)
    created: dt.datetime | None = None
    author: str = ""
    history: tuple[History, ...] = ()

    def to_bytes(self) -> bytes:
        """Return the document, always the same bytes for the same value."""
        value: dict[str, Any] = self.platform.to_json()
        if self.created is not None:
            value["created"] = time_text(self.created)
        if self.author:
            value["author"] = self.author
        value["config"] = config_json(self.config)
        value["rootfs"] = {"type": "layers", "diff_ids": list(self.diff_ids)}
        if self.history:
            value["history"] = [_history_json(item) for item in self.history]
        return _to_bytes(value)


def _to_bytes(value: object) -> bytes:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()


def _history_json(item: History) -> dict[str, Any]:
    value: dict[str, Any] = {}
    if item.created is not None:
        value["created"] = time_text(item.created)
    if item.created_by:
        value["created_by"] = item.created_by
    if item.comment:
        value["comment"] = item.comment
    if item.empty_layer:
        value["empty_layer"] = True
    return value


def config_json(config: ImageConfig) -> dict[str, Any]:
    """Return the ``config`` object of a document."""
    value: dict[str, Any] = {}
    if config.user:
        value["User"] = config.user
    if config.exposed_ports:
        value["ExposedPorts"] = {port: {} for port in config.exposed_ports}
    if config.env:
        value["Env"] = [f"{name}={item}" for name, item in config.env.items()]
    if config.entrypoint is not None:
        value["Entrypoint"] = list(config.entrypoint)
    if config.command is not None:
        value["Cmd"] = list(config.command)
    if config.volumes:
        value["Volumes"] = {path: {} for path in config.volumes}
    if config.workdir:
        value["WorkingDir"] = config.workdir
    if config.labels:
        value["Labels"] = dict(config.labels)
    if config.stop_signal:
        value["StopSignal"] = config.stop_signal
    return value


def _parse_digest(reader: Reader) -> str:
    digest = reader.text("digest")
    if not is_digest(digest):
        msg = f"{reader.what}: {digest!r} is not a digest"
        raise ImageError(msg)
    return digest


def _parse_platform(reader: Reader) -> Platform:
    return Platform(
        os=reader.text("os"),
        architecture=reader.text("architecture"),
        variant=reader.text("variant"),
        os_version=reader.text("os.version"),
        os_features=reader.strings("os.features") or (),
    )


def _parse_descriptor(value: object, what: str) -> Descriptor:
    reader = Reader(value, what)
    size = reader.whole("size")
    if size is None or not 0 <= size <= _MAX_SIZE:
        msg = f"{what}: 'size' should be a number of bytes, it is {size!r}"
        raise ImageError(msg)
    media_type = reader.text("mediaType")
    if not _MEDIA_TYPE.fullmatch(media_type):
        msg = f"{what}: {media_type!r} is not a media type"
        raise ImageError(msg)
    platform = reader.child("platform")
    return Descriptor(
        media_type=media_type,
        digest=_parse_digest(reader),
        size=size,
        annotations=reader.string_map("annotations"),
        platform=None if platform is None else _parse_platform(platform),
        urls=reader.strings("urls") or (),
        artifact_type=reader.text("artifactType"),
    )


def _check_version(reader: Reader, accepted: tuple[str, ...]) -> str:
    version = reader.whole("schemaVersion")
    if version == 1:
        msg = f"{reader.what} is of Docker's schema 1, which is no longer in use; have the image pushed again"
        raise ImageError(msg)
    if version != _SCHEMA_VERSION:
        msg = f"{reader.what}: 'schemaVersion' should be 2, it is {version!r}"
        raise ImageError(msg)
    media_type = reader.text("mediaType")
    if media_type and media_type not in accepted:
        msg = f"{reader.what} says it is {media_type!r}; expected {' or '.join(accepted)}"
        raise ImageError(msg)
    return media_type


def _descriptors(reader: Reader, key: str, limit: int) -> tuple[Descriptor, ...]:
    items = reader.array(key, limit)
    if items is None:
        msg = f"{reader.what} has no {key!r}"
        raise ImageError(msg)
    return tuple(_parse_descriptor(item, f"{reader.what}: {key}[{number}]") for number, item in enumerate(items))


def parse_manifest(data: bytes, what: str = "the image manifest") -> Manifest:
    """Return an image manifest of OCI or of Docker's schema 2.

    Args:
        data: the document.
        what: what it is, for the messages.

    Raises:
        ImageError: it is not one; the message names the field.
    """
    return _manifest(Reader(parse_json(data, what), what))


def _manifest(reader: Reader) -> Manifest:
    media_type = _check_version(reader, (MANIFEST, DOCKER_MANIFEST))
    config = reader.child("config")
    if config is None:
        msg = f"{reader.what} has no 'config'"
        raise ImageError(msg)
    subject = reader.child("subject")
    return Manifest(
        config=_parse_descriptor(config.value, f"{reader.what}: config"),
        layers=_descriptors(reader, "layers", _MAX_LAYERS),
        media_type=media_type or MANIFEST,
        annotations=reader.string_map("annotations"),
        artifact_type=reader.text("artifactType"),
        subject=None if subject is None else _parse_descriptor(subject.value, subject.what),
    )


def parse_index(data: bytes, what: str = "the image index") -> Index:
    """Return an image index of OCI or a manifest list of Docker.

    Args:
        data: the document.
        what: what it is, for the messages.

    Raises:
        ImageError: it is not one; the message names the field.
    """
    return _index(Reader(parse_json(data, what), what))


def _index(reader: Reader) -> Index:
    media_type = _check_version(reader, (INDEX, DOCKER_LIST))
    return Index(
        manifests=_descriptors(reader, "manifests", _MAX_MANIFESTS),
        media_type=media_type or INDEX,
        annotations=reader.string_map("annotations"),
    )


def parse_manifest_or_index(data: bytes, what: str) -> Manifest | Index:
    """Return whichever of the two a document is.

    A document with the fields of both is refused: two readers could see two images in it (CVE-2021-41190).

    Args:
        data: the document.
        what: what it is, for the messages.

    Raises:
        ImageError: it is neither, or both.
    """
    value = parse_json(data, what)
    reader = Reader(value, what)
    has_manifests, has_layers = "manifests" in value, "layers" in value or "config" in value
    if has_manifests and has_layers:
        msg = f"{what} has both 'manifests' and 'layers': it is ambiguous and refused"
        raise ImageError(msg)
    return _index(reader) if has_manifests else _manifest(reader)


def parse_config(data: bytes, what: str = "the image config", *, limit: int = MAX_CONFIG) -> ImageDocument:
    """Return an image config of OCI or Docker.

    Args:
        data: the document.
        what: what it is, for the messages.
        limit: bytes allowed.

    Raises:
        ImageError: it is not one; the message names the field.
    """
    reader = Reader(parse_json(data, what, limit=limit), what)
    rootfs = reader.child("rootfs")
    if rootfs is None:
        msg = f"{what} has no 'rootfs': this is no image config"
        raise ImageError(msg)
    diff_ids = rootfs.strings("diff_ids") or ()
    if len(diff_ids) > _MAX_LAYERS:
        msg = f"{what} has {len(diff_ids)} layers, at most {_MAX_LAYERS} are accepted"
        raise ImageError(msg)
    for diff_id in diff_ids:
        if not is_digest(diff_id):
            msg = f"{what}: rootfs: {diff_id!r} is not a digest"
            raise ImageError(msg)
    platform = _parse_platform(reader)
    return ImageDocument(
        platform=attrs.evolve(platform, os=platform.os or "linux"),
        diff_ids=diff_ids,
        config=_container_config(reader.child("config")),
        created=_time(reader.text("created"), what),
        author=reader.text("author"),
        history=_history(reader),
    )


def _history(reader: Reader) -> tuple[History, ...]:
    items = reader.array("history", _MAX_LAYERS * 4) or []
    readers = [Reader(item, f"{reader.what}: history[{number}]") for number, item in enumerate(items)]
    return tuple(
        History(
            created_by=item.text("created_by"),
            comment=item.text("comment"),
            created=_time(item.text("created"), item.what),
            empty_layer=item.flag("empty_layer"),
        )
        for item in readers
    )


def _container_config(reader: Reader | None) -> ImageConfig:
    if reader is None:
        return ImageConfig()
    env: Any = {}
    for item in reader.strings("Env") or ():
        name, _, value = item.partition("=")
        if name:
            env[name] = value
    labels: Any = reader.string_map("Labels")  # mypy takes the converter `dict` for more than it is
    return ImageConfig(
        entrypoint=reader.strings("Entrypoint"),
        command=reader.strings("Cmd"),
        env=env,
        workdir=reader.text("WorkingDir"),
        user=reader.text("User"),
        stop_signal=reader.text("StopSignal"),
        exposed_ports=reader.keys("ExposedPorts"),
        volumes=reader.keys("Volumes"),
        labels=labels,
    )


def _time(text: str, what: str) -> dt.datetime | None:
    """Read RFC 3339 with any number of fractional digits; Docker's year 1 stands for no time at all."""
    if not text:
        return None
    match = _TIME.fullmatch(text)
    if match is None:
        msg = f"{what}: {text[:64]!r} is not a time by RFC 3339"
        raise ImageError(msg)
    import datetime as dt  # slow to import, and not every image tells

    date, clock, fraction, zone = match.groups()
    zone = "+00:00" if zone in "Zz" else zone
    try:
        time = dt.datetime.fromisoformat(f"{date}T{clock}.{(fraction or '0')[:6]:0<6}{zone}")
        return None if time.year == 1 else time.astimezone(dt.UTC)
    except (ValueError, OverflowError):
        msg = f"{what}: {text[:64]!r} is not a time"
        raise ImageError(msg) from None


def time_text(time: dt.datetime) -> str:
    """Return a time as documents have it, see RFC 3339."""
    import datetime as dt

    return time.astimezone(dt.UTC).isoformat().replace("+00:00", "Z")
