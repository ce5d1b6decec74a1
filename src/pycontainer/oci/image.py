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
    "parse_config",
    "parse_index",
    "parse_json",
    "parse_manifest",
    "parse_manifest_or_index",
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

MAX_DOCUMENT = 4 * 1024 * 1024  # what registries allow for a manifest
MAX_CONFIG = 16 * 1024 * 1024  # configs with long histories outgrow that
_SCHEMA_VERSION = 2
_MAX_DEPTH = 64
_MAX_LAYERS = 4096
_MAX_MANIFESTS = 4096
_MAX_SIZE = 2**63 - 1

_MEDIA_TYPE = re.compile(r"[A-Za-z0-9][A-Za-z0-9!#$&^_.+-]{0,126}/[A-Za-z0-9][A-Za-z0-9!#$&^_.+-]{0,126}(?:\s*;.*)?")
_TIME = re.compile(r"(\d{4}-\d\d-\d\d)[Tt ](\d\d:\d\d:\d\d)(?:\.(\d+))?([Zz]|[+-]\d\d:\d\d)")


def parse_json(data: bytes, what: str, *, limit: int = MAX_DOCUMENT) -> Any:  # noqa: ANN401 - JSON has no static type
    """Return the value of a JSON text from a stranger.

    Args:
        data: the text.
        what: what it is, for the message.
        limit: bytes allowed.

    Raises:
        ImageError: it is too large, nested too deep, or not JSON in UTF-8.
    """
    if len(data) > limit:
        msg = f"{what} has {len(data)} bytes, at most {limit} are accepted"
        raise ImageError(msg)
    _check_depth(data, what)
    try:
        return json.loads(data.decode(), parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        msg = f"{what} is not valid JSON: {error}"
        raise ImageError(msg) from None


# Possessive, and a string without its end matches too: linear in time for whatever is sent.
_BRACKETS = re.compile(rb'"(?:[^"\\]++|\\.)*+"?|[\[{]|[\]}]', re.DOTALL)


def _check_depth(data: bytes, what: str) -> None:
    # Before the parser sees it: json recurses in C, and where it stops depends on the thread's stack.
    depth = 0
    for match in _BRACKETS.finditer(data):
        kind = match[0][:1]
        if kind in b"[{":
            depth += 1
            if depth > _MAX_DEPTH:
                msg = f"{what} is nested deeper than {_MAX_DEPTH} levels"
                raise ImageError(msg)
        elif kind != b'"':
            depth -= 1


def _no_constant(text: str) -> float:
    msg = f"{text} is not JSON"
    raise ValueError(msg)


class _Reader:
    """An object of a document, read field by field with every type checked."""

    def __init__(self, value: object, what: str) -> None:
        if not isinstance(value, dict):
            msg = f"{what} should be an object, it is {_kind(value)}"
            raise ImageError(msg)
        self.value: dict[str, Any] = value
        self.what = what

    def _get(self, key: str, kind: type | tuple[type, ...], name: str) -> Any:  # noqa: ANN401 - JSON has no static type
        value = self.value.get(key)
        if value is not None and (not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool)):
            msg = f"{self.what}: {key!r} should be {name}, it is {_kind(value)}"
            raise ImageError(msg)
        return value

    def text(self, key: str) -> str:
        """Return a string, empty when the field is absent or null."""
        value: str = self._get(key, str, "a string") or ""
        _check_text(value, f"{self.what}: {key!r}")
        return value

    def whole(self, key: str) -> int | None:
        value: int | None = self._get(key, int, "a whole number")
        return value

    def flag(self, key: str) -> bool:
        return bool(self._get(key, bool, "true or false"))

    def array(self, key: str, limit: int) -> list[Any] | None:
        value: list[Any] | None = self._get(key, list, "an array")
        if value is not None and len(value) > limit:
            msg = f"{self.what}: {key!r} has {len(value)} items, at most {limit} are accepted"
            raise ImageError(msg)
        return value

    def strings(self, key: str) -> tuple[str, ...] | None:
        value = self.array(key, 65536)
        if value is None:
            return None
        for item in value:
            if not isinstance(item, str):
                msg = f"{self.what}: {key!r} should hold strings, it holds {_kind(item)}"
                raise ImageError(msg)
            _check_text(item, f"{self.what}: {key!r}")
        return tuple(value)

    def child(self, key: str) -> _Reader | None:
        value = self._get(key, dict, "an object")
        return None if value is None else _Reader(value, f"{self.what}: {key!r}")

    def keys(self, key: str) -> tuple[str, ...]:
        value: dict[str, object] = self._get(key, dict, "an object") or {}
        for name in value:
            _check_text(name, f"{self.what}: {key!r}")
        return tuple(value)

    def string_map(self, key: str) -> dict[str, str]:
        value: dict[str, Any] = self._get(key, dict, "an object") or {}
        for name, item in value.items():
            if not isinstance(item, str):
                msg = f"{self.what}: {key!r}: {name!r} should be a string, it is {_kind(item)}"
                raise ImageError(msg)
            _check_text(item, f"{self.what}: {key!r}: {name!r}")
        return dict(value)


def _kind(value: object) -> str:
    names = {dict: "an object", list: "an array", str: "a string", bool: "true or false", type(None): "null"}
    return names.get(type(value), "a number")


def _check_text(value: str, what: str) -> None:
    """Refuse what execve(2), paths and SQLite cannot carry: null characters and lone surrogates."""
    if "\0" in value:
        msg = f"{what} holds a null character"
        raise ImageError(msg)
    try:
        value.encode()
    except UnicodeEncodeError:
        msg = f"{what} holds a lone surrogate, which no UTF-8 text has"
        raise ImageError(msg) from None


@attrs.frozen(kw_only=True, eq=False, repr=False)
class Platform(Record):
    """What an image runs on, in Go's words: ``linux``, ``amd64``, ``v8``."""

    os: str
    architecture: str
    variant: str = ""

    def __str__(self) -> str:
        return f"{self.os}/{self.architecture}" + (f"/{self.variant}" if self.variant else "")


@attrs.frozen(kw_only=True, eq=False, repr=False)
class Descriptor(Record):
    """A reference to content: what it is, its digest and its size in bytes."""

    media_type: str
    digest: str
    size: int
    annotations: Mapping[str, str] = attrs.field(factory=dict)
    platform: Platform | None = None

    def to_json(self) -> dict[str, Any]:
        """Return the object for a document."""
        value: dict[str, Any] = {"mediaType": self.media_type, "digest": self.digest, "size": self.size}
        if self.annotations:
            value["annotations"] = dict(self.annotations)
        if self.platform is not None:
            value["platform"] = {"architecture": self.platform.architecture, "os": self.platform.os}
            if self.platform.variant:
                value["platform"]["variant"] = self.platform.variant
        return value


@attrs.frozen(kw_only=True, eq=False, repr=False)
class Manifest(Record):
    """An image: its config and its layers, the lowest first."""

    config: Descriptor
    layers: tuple[Descriptor, ...]
    media_type: str = MANIFEST
    annotations: Mapping[str, str] = attrs.field(factory=dict)

    def to_bytes(self) -> bytes:
        """Return the document, always the same bytes for the same value."""
        value: dict[str, Any] = {
            "schemaVersion": 2,
            "mediaType": self.media_type,
            "config": self.config.to_json(),
            "layers": [layer.to_json() for layer in self.layers],
        }
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
        value: dict[str, Any] = {"architecture": self.platform.architecture, "os": self.platform.os}
        if self.platform.variant:
            value["variant"] = self.platform.variant
        if self.created is not None:
            value["created"] = _time_text(self.created)
        if self.author:
            value["author"] = self.author
        value["config"] = _config_json(self.config)
        value["rootfs"] = {"type": "layers", "diff_ids": list(self.diff_ids)}
        if self.history:
            value["history"] = [_history_json(item) for item in self.history]
        return _to_bytes(value)


def _to_bytes(value: object) -> bytes:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()


def _history_json(item: History) -> dict[str, Any]:
    value: dict[str, Any] = {}
    if item.created is not None:
        value["created"] = _time_text(item.created)
    if item.created_by:
        value["created_by"] = item.created_by
    if item.comment:
        value["comment"] = item.comment
    if item.empty_layer:
        value["empty_layer"] = True
    return value


def _config_json(config: ImageConfig) -> dict[str, Any]:
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


def _parse_digest(reader: _Reader) -> str:
    digest = reader.text("digest")
    if not is_digest(digest):
        msg = f"{reader.what}: {digest!r} is not a digest"
        raise ImageError(msg)
    return digest


def _parse_platform(reader: _Reader | None) -> Platform | None:
    if reader is None:
        return None
    return Platform(os=reader.text("os"), architecture=reader.text("architecture"), variant=reader.text("variant"))


def _parse_descriptor(value: object, what: str) -> Descriptor:
    reader = _Reader(value, what)
    size = reader.whole("size")
    if size is None or not 0 <= size <= _MAX_SIZE:
        msg = f"{what}: 'size' should be a number of bytes, it is {size!r}"
        raise ImageError(msg)
    media_type = reader.text("mediaType")
    if not _MEDIA_TYPE.fullmatch(media_type):
        msg = f"{what}: {media_type!r} is not a media type"
        raise ImageError(msg)
    return Descriptor(
        media_type=media_type,
        digest=_parse_digest(reader),
        size=size,
        annotations=reader.string_map("annotations"),
        platform=_parse_platform(reader.child("platform")),
    )


def _check_version(reader: _Reader, accepted: tuple[str, ...]) -> str:
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


def _descriptors(reader: _Reader, key: str, limit: int) -> tuple[Descriptor, ...]:
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
    return _manifest(_Reader(parse_json(data, what), what))


def _manifest(reader: _Reader) -> Manifest:
    media_type = _check_version(reader, (MANIFEST, DOCKER_MANIFEST))
    config = reader.child("config")
    if config is None:
        msg = f"{reader.what} has no 'config'"
        raise ImageError(msg)
    return Manifest(
        config=_parse_descriptor(config.value, f"{reader.what}: config"),
        layers=_descriptors(reader, "layers", _MAX_LAYERS),
        media_type=media_type or MANIFEST,
        annotations=reader.string_map("annotations"),
    )


def parse_index(data: bytes, what: str = "the image index") -> Index:
    """Return an image index of OCI or a manifest list of Docker.

    Args:
        data: the document.
        what: what it is, for the messages.

    Raises:
        ImageError: it is not one; the message names the field.
    """
    return _index(_Reader(parse_json(data, what), what))


def _index(reader: _Reader) -> Index:
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
    reader = _Reader(value, what)
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
    reader = _Reader(parse_json(data, what, limit=limit), what)
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
    return ImageDocument(
        platform=Platform(
            os=reader.text("os") or "linux",
            architecture=reader.text("architecture"),
            variant=reader.text("variant"),
        ),
        diff_ids=diff_ids,
        config=_container_config(reader.child("config")),
        created=_time(reader.text("created"), what),
        author=reader.text("author"),
        history=_history(reader),
    )


def _history(reader: _Reader) -> tuple[History, ...]:
    items = reader.array("history", _MAX_LAYERS * 4) or []
    readers = [_Reader(item, f"{reader.what}: history[{number}]") for number, item in enumerate(items)]
    return tuple(
        History(
            created_by=item.text("created_by"),
            comment=item.text("comment"),
            created=_time(item.text("created"), item.what),
            empty_layer=item.flag("empty_layer"),
        )
        for item in readers
    )


def _container_config(reader: _Reader | None) -> ImageConfig:
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


def _time_text(time: dt.datetime) -> str:
    import datetime as dt

    return time.astimezone(dt.UTC).isoformat().replace("+00:00", "Z")
