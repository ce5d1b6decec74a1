"""The JSON schemas of the OCI image specification, from a copy beside the project or from Debian's package."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

__all__ = ["validate"]

PLACES = [
    Path(__file__).parents[2] / "shared/spec/image",
    Path(
        "/usr/share/gocode/src/github.com/opencontainers/image-spec/schema"
    ),  # golang-github-opencontainers-image-spec-dev
]


def validate(name: str, data: bytes) -> None:
    """Check a document against a schema, such as ``image-manifest-schema.json``; skip the test without schemas."""
    jsonschema = pytest.importorskip("jsonschema")
    directory = next((path for path in PLACES if path.is_dir()), None)
    if directory is None:
        pytest.skip(f"no schemas of the image specification in {' or '.join(map(str, PLACES))}")
    store: dict[str, Any] = {}
    for path in directory.glob("*.json"):
        schema = json.loads(path.read_text())
        store[path.name] = store["https://opencontainers.org/schema/" + path.name] = schema
        store["https://opencontainers.org/schema/image/" + path.name] = schema
    schema = dict(store[name])
    schema.pop("id", None)
    import referencing
    import referencing.jsonschema

    registry: Any = referencing.Registry().with_resources(
        (uri, referencing.jsonschema.DRAFT4.create_resource({k: v for k, v in item.items() if k != "id"}))
        for uri, item in store.items()
    )
    jsonschema.Draft4Validator(schema, registry=registry).validate(json.loads(data))
