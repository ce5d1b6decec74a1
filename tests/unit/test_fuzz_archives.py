"""Archives that fuzzing makes: each is an image or an error that says why, in time that goes with its size."""

from __future__ import annotations

import copy
import io
import json
import tarfile
import time
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pycontainer.distribution.layout import open_archive, read_contents
from pycontainer.errors import ImageError
from tests.archives import docker_archive, folder, member, oci_layout, tar

LAYERS = [tar(folder("etc"), member("etc/one", b"one")), tar(member("two", b"two"))]
few = settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)


def read(path: Path) -> None:
    """Read all documents of an archive, and some of each of its layers."""
    workspace = path.parent / "workspace"
    workspace.mkdir(exist_ok=True)
    try:
        with closing(open_archive(path, workspace, "the archive")) as opened:
            for source in read_contents(opened, "the archive").sources:
                for layer in source.layers:
                    with closing(layer.open()) as stream:
                        while stream.read(1 << 20):
                            pass
    except ImageError as error:
        assert 20 < len(str(error)) < 3000  # noqa: PT017 - an image is as good
    finally:
        for left in workspace.iterdir():
            left.unlink()


# ── documents ─────────────────────────────────────────────────────────────────────────────────────────────────────

junk = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**70), 2**70),
    st.floats(allow_nan=False, allow_infinity=False),
    st.text(max_size=12),
    st.sampled_from(
        ["sha256:" + "0" * 64, "sha512:" + "a" * 128, "../../etc/passwd", "/", "", "\0", "\ud800", "x" * 300]
    ),
    st.lists(st.integers(), max_size=2),
    st.dictionaries(st.text(max_size=4), st.integers(), max_size=2),
)


def places(document: object, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Give the paths of all values in a document."""
    if path:
        yield path
    items: Any = ()
    if isinstance(document, dict):
        items = document.items()
    elif isinstance(document, list):
        items = enumerate(document)
    for key, value in items:
        yield from places(value, (*path, key))


@st.composite
def changed(draw: st.DrawFn, document: Any) -> Any:
    """Give a document with some values replaced, dropped, or doubled."""
    made = copy.deepcopy(document)
    for _ in range(draw(st.integers(1, 3))):
        found = list(places(made))
        if not found:
            return draw(junk)
        *way, last = draw(st.sampled_from(found))
        parent = made
        for key in way:
            parent = parent[key]
        how = draw(st.sampled_from(["replace", "replace", "drop", "double"]))
        if how == "drop":
            del parent[last]
        elif how == "double" and isinstance(parent, list):
            parent.append(copy.deepcopy(parent[last]))
        else:
            parent[last] = draw(junk)
    return made


def documents_of(archive: bytes, names: Sequence[str]) -> dict[str, Any]:
    with tarfile.open(fileobj=io.BytesIO(archive)) as opened:
        found = {name: opened.extractfile(name) for name in names}
        return {name: json.loads(file.read()) for name, file in found.items() if file is not None}


@few
@given(st.data())
def test_any_document_of_a_docker_archive(tmp_path: Path, data: st.DataObject) -> None:
    documents = documents_of(docker_archive(LAYERS), ["manifest.json", "c.json"])
    name = data.draw(st.sampled_from(sorted(documents)))
    text = json.dumps(data.draw(changed(documents[name]))).encode()
    (tmp_path / "x.tar").write_bytes(docker_archive(LAYERS, files={name: text}))
    read(tmp_path / "x.tar")


@few
@given(st.data())
def test_any_document_of_a_layout(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    base = tmp_path_factory.mktemp("layouts")
    what = data.draw(st.sampled_from(["config", "manifest", "index"]))

    def change(parts: dict[str, Any]) -> None:
        if what == "config":
            parts["config"] = data.draw(changed(parts["config"]))
        elif what == "manifest":
            parts["layers"] = data.draw(changed(parts["layers"]))

    layout = oci_layout(base / "layout", LAYERS, change=change)
    if what == "index":
        index = json.loads((layout / "index.json").read_bytes())
        (layout / "index.json").write_text(json.dumps(data.draw(changed(index))))
    read(layout)


@few
@given(st.data())
def test_any_bytes_in_a_document(tmp_path: Path, data: st.DataObject) -> None:
    documents = documents_of(docker_archive(LAYERS), ["manifest.json", "c.json"])
    name = data.draw(st.sampled_from(sorted(documents)))
    text = bytearray(json.dumps(documents[name]).encode())
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(text)))
        text[at : at + data.draw(st.integers(0, 6))] = data.draw(st.binary(max_size=6))
    (tmp_path / "x.tar").write_bytes(docker_archive(LAYERS, files={name: bytes(text)}))
    read(tmp_path / "x.tar")


# ── tar ───────────────────────────────────────────────────────────────────────────────────────────────────────────

# Offsets and lengths of the fields of a header, see tar(5).
_FIELDS = {
    "name": (0, 100),
    "size": (124, 12),
    "kind": (156, 1),
    "link": (157, 100),
    "magic": (257, 8),
    "prefix": (345, 155),
}


@st.composite
def fields(draw: st.DrawFn) -> tuple[str, bytes]:
    """Give a field of a header, and something for it: plausible, or noise."""
    name = draw(st.sampled_from(sorted(_FIELDS)))
    usual = {
        "size": [b"0" * 11, b"7" * 11, b"-1", b"\x80" + b"\xff" * 11, b"\xff" * 12, b"0000000000 ", b"1_0", b""],
        "kind": [bytes([kind]) for kind in b"0123456789xgLKSDVMN\0"],
        "name": [b"manifest.json", b"../c.json", b"/", b"c.json/", b"./././c.json"],
        "link": [b"c.json", b"../../x", b"manifest.json", b""],
        "magic": [b"ustar\x0000", b"ustar  \0", b""],
        "prefix": [b"a/b", b"..", b""],
    }[name]
    return name, draw(st.sampled_from(usual) | st.binary(max_size=_FIELDS[name][1]))


@few
@given(st.data())
def test_any_headers(tmp_path: Path, data: st.DataObject) -> None:
    archive = bytearray(docker_archive(LAYERS))
    headers = [at for at in range(0, len(archive) - 512, 512) if archive[at + 257 : at + 262] == b"ustar"]
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.sampled_from(headers))
        name, value = data.draw(fields())
        start, length = _FIELDS[name]
        archive[at + start : at + start + length] = value.ljust(length, b"\0")
        archive[at + 148 : at + 156] = b" " * 8
        archive[at + 148 : at + 156] = b"%06o\0 " % sum(archive[at : at + 512])
    (tmp_path / "x.tar").write_bytes(archive)
    read(tmp_path / "x.tar")


@few
@given(
    records=st.lists(st.binary(max_size=20) | st.sampled_from([b"path=c.json", b"size=5", b"size=-1", b"linkpath="]))
)
def test_any_extended_header(tmp_path: Path, records: list[bytes]) -> None:
    data = b"".join(b"%d %s\n" % (len(record) + 4, record) for record in records)
    (tmp_path / "x.tar").write_bytes(extended(data) + docker_archive(LAYERS))
    read(tmp_path / "x.tar")


def extended(data: bytes) -> bytes:
    header = tarfile.TarInfo("pax")
    header.type, header.size = b"x", len(data)
    return header.tobuf(tarfile.USTAR_FORMAT) + data + bytes(-len(data) % 512)


@pytest.mark.parametrize("record", [b"5 a=\n", b"9 path=x\n", b"0" * 30, b"5" * 4000 + b" a=\n"])
def test_long_extended_headers_take_no_time(tmp_path: Path, record: bytes) -> None:
    data = record * ((1 << 20) // len(record))
    (tmp_path / "x.tar").write_bytes(extended(data) + docker_archive(LAYERS))
    began = time.process_time()
    read(tmp_path / "x.tar")
    assert time.process_time() - began < 2
