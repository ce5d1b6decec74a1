"""The specification's own JSON schema as the oracle: nothing of it is missing, and what we write is valid by it."""

from __future__ import annotations

import json
import re
import types
import typing
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import attrs
import pytest
from hypothesis import given, settings
from jsonschema import Draft4Validator
from referencing import Registry
from referencing.jsonschema import DRAFT4

from pycontainer.oci import runtime
from pycontainer.oci.documents import Bounds, json_name
from tests import strategies_runtime as strategies

SCHEMAS = Path(__file__).parents[3] / "shared/spec/runtime"
pytestmark = pytest.mark.skipif(
    not SCHEMAS.is_dir(), reason="the JSON schemas of opencontainers/runtime-spec are not beside the project"
)

# Properties that are refused, each with its reason.
REFUSED = {
    "process.commandLine": "Windows: one text instead of args",
    "process.user.username": "Windows: users by name",
    "solaris": "another platform",
    "windows": "another platform",
    "vm": "containers that are virtual machines",
    "zos": "another platform",
    "freebsd": "another platform",
}
# Where we take less or more than the schema, each with its reason.
DIFFERENT = {
    "process.user.umask": "a mask has nine bits",
    "process.oomScoreAdj": "the kernel takes -1000 to 1000",
    "process.rlimits[].type": "the limits that Linux has, instead of a pattern",
    "hooks.prestart[].timeout": "seconds that a timer can count",
    "hooks.createRuntime[].timeout": "the same",
    "hooks.createContainer[].timeout": "the same",
    "hooks.startContainer[].timeout": "the same",
    "hooks.poststart[].timeout": "the same",
    "hooks.poststop[].timeout": "the same",
    "linux.devices[].fileMode": "makers put the file type there, as stat(2) does",
    "linux.devices[].type": "a pattern there, choices here",
    "linux.rootfsPropagation": "the recursive ones are in use too",
    "linux.resources.devices[].type": "any text there, a class of devices here",
    "linux.seccomp.syscalls[].args[].index": "a system call has six arguments",
    "pid": "a process id has 31 bits at most",
    "status": "runtimes add paused",
}


def resolve(schema: dict[str, Any], file: str) -> tuple[dict[str, Any], str]:
    """Return a schema without references, and the file it is in."""
    while "$ref" in schema or "allOf" in schema or "anyOf" in schema:
        if "$ref" in schema:
            name, pointer = schema["$ref"].split("#/")
            file = name or file
            schema = json.loads((SCHEMAS / file).read_text())
            for step in pointer.split("/"):
                schema = schema[step]
            continue
        merged: dict[str, Any] = {}
        for part in schema.get("allOf", []) + schema.get("anyOf", []):
            found, file = resolve(part, file)
            merged.update(found.get("properties", {}))
        schema = {"type": "object", "properties": merged}
    return schema, file


def differences(schema: dict[str, Any], file: str, hint: Any, path: str) -> Iterator[str]:
    """Give the paths where an annotation is not what the schema says."""
    schema, file = resolve(schema, file)
    if isinstance(hint, types.UnionType) or typing.get_origin(hint) is typing.Union:
        (hint,) = (argument for argument in typing.get_args(hint) if argument is not type(None))
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if isinstance(hint, type) and attrs.has(hint):
        yield from object_differences(schema, file, hint, path)
    elif origin is tuple:
        assert schema["type"] == "array", path
        yield from differences(schema["items"], file, arguments[0], f"{path}[]")
    elif origin is Mapping:
        assert schema["type"] == "object", path
        entries = schema.get("additionalProperties") or schema["patternProperties"][".{1,}"]
        yield from differences(entries, file, arguments[1], f"{path}.*")
    elif (origin is Literal and set(arguments) != set(schema.get("enum", []))) or (
        origin is Annotated
        and isinstance(arguments[1], Bounds)
        and (arguments[1].low, arguments[1].high) != (schema.get("minimum"), schema.get("maximum"))
    ):
        yield path
    else:
        kind = {str: "string", int: "integer", bool: "boolean"}
        scalar = str if origin is Literal else arguments[0] if origin is Annotated else hint
        assert schema["type"] == kind[scalar], path


def object_differences(schema: dict[str, Any], file: str, cls: type[Any], path: str) -> Iterator[str]:
    properties = schema["properties"]
    hints = typing.get_type_hints(cls, include_extras=True)
    ours = {json_name(field): hints[field.name] for field in attrs.fields(cls)}
    for name in sorted(properties.keys() | ours.keys()):
        inner = f"{path}.{name}" if path else name
        if name not in ours or name not in properties:
            yield inner
        else:
            yield from differences(properties[name], file, ours[name], inner)


def test_every_property_is_an_attribute_or_refused_on_purpose() -> None:
    schema = json.loads((SCHEMAS / "config-schema.json").read_text())
    state = json.loads((SCHEMAS / "state-schema.json").read_text())
    found = set(object_differences(schema, "config-schema.json", runtime.Spec, ""))
    found |= set(object_differences(state, "state-schema.json", runtime.State, ""))
    assert found == REFUSED.keys() | DIFFERENT.keys()


def test_attributes_are_the_names_of_the_specification_in_snake_case() -> None:
    classes = [value for value in vars(runtime).values() if isinstance(value, type) and attrs.has(value)]
    assert len(classes) > 40
    for cls in classes:
        for field in attrs.fields(cls):
            words = re.findall(r"[A-Z]?[a-z0-9]+|[A-Z]+(?![a-z])", json_name(field))
            assert field.name.rstrip("_") == "_".join(words).lower(), cls


@pytest.fixture(scope="module")
def validators() -> dict[str, Draft4Validator]:
    schemas = {path.name: json.loads(path.read_text()) for path in SCHEMAS.glob("*.json")}
    registry: Registry[Any] = Registry().with_resources(
        (name, DRAFT4.create_resource(schema)) for name, schema in schemas.items()
    )
    return {
        name: Draft4Validator(schemas[name], registry=registry) for name in ("config-schema.json", "state-schema.json")
    }


@settings(max_examples=40, deadline=None)
@given(spec=strategies.specs())
def test_what_is_written_is_valid_by_the_schema(spec: runtime.Spec, validators: dict[str, Draft4Validator]) -> None:
    validators["config-schema.json"].validate(json.loads(runtime.to_json(spec)))


@pytest.mark.parametrize("status", ["creating", "created", "running", "stopped"])
def test_states_are_valid_by_the_schema(status: Any, validators: dict[str, Draft4Validator]) -> None:
    state = runtime.State(id="c1", status=status, pid=7, bundle="/run/c1", annotations={"a": "b"})
    validators["state-schema.json"].validate(json.loads(runtime.to_json(state)))
