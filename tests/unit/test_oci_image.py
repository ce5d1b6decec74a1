"""The documents of images: what is written is valid, what is read is checked."""

from __future__ import annotations

import datetime as dt
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pycontainer.errors import ImageError
from pycontainer.model import ImageConfig
from pycontainer.oci.image import (
    CONFIG,
    DOCKER_CONFIG,
    DOCKER_MANIFEST,
    INDEX,
    LAYER_GZIP,
    MANIFEST,
    Descriptor,
    History,
    ImageDocument,
    Index,
    Manifest,
    Platform,
    parse_config,
    parse_index,
    parse_json,
    parse_manifest,
    parse_manifest_or_index,
)
from tests.schemas import validate

SHA = "sha256:" + "ab" * 32

text = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=20)
word = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0="), min_size=1, max_size=12)
digests = st.binary(min_size=32, max_size=32).map(lambda data: "sha256:" + data.hex())
times = st.datetimes(dt.datetime(1970, 1, 1), dt.datetime(2200, 1, 1), timezones=st.just(dt.UTC))  # noqa: DTZ001
descriptors = st.builds(
    Descriptor,
    media_type=st.sampled_from([LAYER_GZIP, MANIFEST, CONFIG]),
    digest=digests,
    size=st.integers(0, 2**53),
    annotations=st.dictionaries(word, text, max_size=2),
    platform=st.none()
    | st.builds(
        Platform, os=word, architecture=word, variant=text, os_version=text, os_features=st.lists(word).map(tuple)
    ),
    urls=st.lists(text, max_size=2).map(tuple),
    artifact_type=text,
)
configs = st.builds(
    ImageConfig,
    entrypoint=st.none() | st.lists(text, max_size=3),
    command=st.none() | st.lists(text, max_size=3),
    env=st.dictionaries(word, text, max_size=3),
    workdir=text,
    user=text,
    stop_signal=text,
    exposed_ports=st.lists(word, max_size=3, unique=True),
    volumes=st.lists(word, max_size=3, unique=True),
    labels=st.dictionaries(word, text, max_size=3),
)
documents = st.builds(
    ImageDocument,
    platform=st.builds(Platform, os=word, architecture=word, variant=text),
    diff_ids=st.lists(digests, max_size=3).map(tuple),
    config=configs,
    created=st.none() | times,
    author=text,
    history=st.lists(
        st.builds(History, created_by=text, comment=text, created=st.none() | times, empty_layer=st.booleans()),
        max_size=2,
    ).map(tuple),
)


@given(st.builds(Manifest, config=descriptors, layers=st.lists(descriptors, min_size=1, max_size=3).map(tuple)))
def test_manifests_come_back(manifest: Manifest) -> None:
    assert parse_manifest(manifest.to_bytes()) == manifest
    assert parse_manifest_or_index(manifest.to_bytes(), "it") == manifest


@given(st.builds(Index, manifests=st.lists(descriptors, max_size=3).map(tuple)))
def test_indexes_come_back(index: Index) -> None:
    assert parse_index(index.to_bytes()) == index


@given(documents)
def test_configs_come_back(document: ImageDocument) -> None:
    assert parse_config(document.to_bytes()) == document


def test_what_is_written_fits_the_schemas() -> None:
    layer = Descriptor(media_type=LAYER_GZIP, digest=SHA, size=1, annotations={"a": "b"})
    config = Descriptor(media_type=CONFIG, digest=SHA, size=1, platform=Platform(os="linux", architecture="arm64"))
    validate("image-manifest-schema.json", Manifest(config=config, layers=(layer,)).to_bytes())
    validate("image-index-schema.json", Index(manifests=(config,), annotations={"a": "b"}).to_bytes())
    document = ImageDocument(
        platform=Platform(os="linux", architecture="arm64", variant="v8"),
        diff_ids=(SHA,),
        config=ImageConfig(
            entrypoint="/init",
            command=["a", "b"],
            env={"PATH": "/bin"},
            workdir="/w",
            user="1:2",
            stop_signal="SIGINT",
            exposed_ports=["80/tcp"],
            volumes=["/v"],
            labels={"l": "x"},
        ),
        created=dt.datetime(2026, 1, 2, 3, 4, 5, 678, tzinfo=dt.UTC),
        author="somebody",
        history=(History(created_by="x", created=dt.datetime(2026, 1, 2, tzinfo=dt.UTC), empty_layer=True),),
    )
    validate("config-schema.json", document.to_bytes())


def test_a_config_as_docker_writes_it() -> None:
    value = {
        "architecture": "amd64",
        "os": "linux",
        "created": "2024-05-01T10:11:12.123456789+02:00",
        "docker_version": "26.1",
        "container": "not known to the specification",
        "config": {
            "Hostname": "x",
            "User": "",
            "Env": ["PATH=/bin", "EMPTY=", "A=b=c", "=odd", "NOTHING"],
            "Cmd": None,
            "Entrypoint": ["/e"],
            "ExposedPorts": {"80/tcp": {}},
            "Volumes": None,
            "Labels": None,
            "OnBuild": [],
        },
        "rootfs": {"type": "layers", "diff_ids": [SHA]},
        "history": [{"created_by": "/bin/sh -c #(nop)", "empty_layer": True, "created": "0001-01-01T00:00:00Z"}],
    }
    document = parse_config(json.dumps(value).encode())
    assert document.config.env == {"PATH": "/bin", "EMPTY": "", "A": "b=c", "NOTHING": ""}
    assert document.config.command is None
    assert document.config.entrypoint == ("/e",)
    assert document.created == dt.datetime(2024, 5, 1, 8, 11, 12, 123456, tzinfo=dt.UTC)
    assert document.history[0].created is None


def test_a_manifest_as_docker_writes_it() -> None:
    value = {
        "schemaVersion": 2,
        "mediaType": DOCKER_MANIFEST,
        "config": {"mediaType": DOCKER_CONFIG, "size": 3, "digest": SHA},
        "layers": [{"mediaType": "application/vnd.docker.image.rootfs.diff.tar.gzip", "size": 1, "digest": SHA}],
    }
    assert parse_manifest(json.dumps(value).encode()).media_type == DOCKER_MANIFEST


GOOD: dict[str, Any] = {
    "schemaVersion": 2,
    "config": {"mediaType": CONFIG, "size": 3, "digest": SHA},
    "layers": [{"mediaType": LAYER_GZIP, "size": 1, "digest": SHA}],
}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"schemaVersion": 1}, "schema 1"),
        ({"schemaVersion": "2"}, "whole number"),
        ({"schemaVersion": True}, "whole number"),
        ({"mediaType": INDEX}, "expected"),
        ({"config": None}, "no 'config'"),
        ({"layers": None}, "no 'layers'"),
        ({"layers": {}}, "an array"),
        ({"layers": [1]}, r"layers\[0\] should be an object"),
        ({"layers": [{"mediaType": LAYER_GZIP, "size": -1, "digest": SHA}]}, "'size'"),
        ({"layers": [{"mediaType": LAYER_GZIP, "size": 2**63, "digest": SHA}]}, "'size'"),
        ({"layers": [{"mediaType": LAYER_GZIP, "size": 1.0, "digest": SHA}]}, "'size'"),
        ({"layers": [{"mediaType": LAYER_GZIP, "size": 1, "digest": "sha256:../../x"}]}, "not a digest"),
        ({"layers": [{"mediaType": "x", "size": 1, "digest": SHA}]}, "media type"),
        ({"layers": [GOOD["layers"][0]] * 5000}, "at most"),
        ({"annotations": {"a": 1}}, "should be a string"),
        ({"annotations": {"a": "\0"}}, "null character"),
        ({"annotations": {"a": "\ud800"}}, "surrogate"),
        ({"manifests": []}, "ambiguous"),
    ],
)
def test_hostile_manifests_are_refused_by_field(change: dict[str, Any], words: str) -> None:
    with pytest.raises(ImageError, match=words):
        parse_manifest_or_index(json.dumps(GOOD | change).encode(), "the manifest")


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "not valid JSON"),
        (b"\xff", "not valid JSON"),
        (b"NaN", "not valid JSON"),
        (b"[" * 100_000, "deeper"),
        (b'{"a":' * 100_000, "deeper"),
        (b"9" * 10_000, "not valid JSON"),
        (b'"' + b'\\"' * 1_000_000, "not valid JSON"),
        (b" " * (5 << 20), "at most"),
    ],
)
@pytest.mark.timeout(10)
def test_hostile_json_is_refused_quickly(data: bytes, words: str) -> None:
    with pytest.raises(ImageError, match=words):
        parse_json(data, "it")


def test_brackets_within_strings_do_not_count() -> None:
    assert parse_json(json.dumps(["[" * 1000, '\\"[{' * 100]).encode(), "it")[0] == "[" * 1000


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=10),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=10), inner, max_size=4),
    max_leaves=20,
)
KEYS = ("schemaVersion", "config", "layers", "manifests", "rootfs", "history", "created", "os", "mediaType", "digest")


@given(st.dictionaries(st.sampled_from(KEYS), json_values, max_size=6) | json_values)
def test_any_json_gives_a_value_or_an_image_error(value: object) -> None:
    data = json.dumps(value).encode()
    for parse in (parse_manifest, parse_index, parse_config):
        try:
            parse(data)
        except ImageError as error:
            assert str(error)  # noqa: PT017 - a value is as good


@given(documents, st.data())
def test_any_change_of_a_config_gives_a_value_or_an_image_error(document: ImageDocument, data: st.DataObject) -> None:
    value = json.loads(document.to_bytes())
    place: Any = value
    while isinstance(place, dict) and place:
        key = data.draw(st.sampled_from(sorted(place)))
        if not isinstance(place[key], dict) or data.draw(st.booleans()):
            place[key] = data.draw(json_values)
            break
        place = place[key]
    try:
        parse_config(json.dumps(value).encode())
    except ImageError as error:
        assert str(error)  # noqa: PT017 - a value is as good
