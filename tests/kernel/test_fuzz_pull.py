"""A registry that answers anything: a pull ends with an image or an error, in time, and leaves nothing else."""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pycontainer import Engine, Error, Registries
from tests.archives import OCI, folder, member, sha, tar
from tests.registry import Served, serve

LAYER = tar(folder("etc"), member("etc/one", b"one" * 2000))
PACKED = gzip.compress(LAYER, 1, mtime=0)
junk = st.one_of(
    st.none(),
    st.integers(-5, 2**66),
    st.text(max_size=8),
    st.sampled_from(
        [sha(LAYER), sha(b"other"), "sha512:" + "0" * 128, "../x", OCI + "index.v1+json", OCI + "layer.v1.tar"]
    ),
    st.lists(st.integers(), max_size=2),
    st.dictionaries(st.text(max_size=4), st.integers(), max_size=1),
)


class Script:
    """What the registry says, by the path of the request; set anew for each pull."""

    def __init__(self) -> None:
        self.bodies: dict[str, bytes] = {}
        self.status: dict[str, int] = {}
        self.headers: dict[str, str] = {}
        self.asked = 0

    def answer(self, request: Served) -> None:
        self.asked += 1
        last = urlsplit(request.path).path.rpartition("/")[2]
        if request.path.rstrip("/").endswith("/v2"):
            request.answer(200)
        elif last not in self.bodies:
            request.answer(404, b'{"errors":[{"code":"MANIFEST_UNKNOWN"}]}')
        else:
            headers = {"Content_Type": OCI + "manifest.v1+json"} if "/manifests/" in request.path else {}
            request.answer(self.status.get(last, 200), self.bodies[last], **(headers | self.headers))


@pytest.fixture(scope="module")
def registry() -> Iterator[tuple[Script, str]]:
    script = Script()
    with serve(script.answer) as host:
        yield script, host


@pytest.fixture(scope="module")
def engine(registry: tuple[Script, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    options: dict[str, Any] = {"insecure": [f"http://{registry[1]}"], "auth_file": "/nonexistent", "backoff": 0.001}
    with Engine(tmp_path_factory.mktemp("fuzz") / "root", registries=Registries(**options, read_timeout=2.0)) as opened:
        yield opened


def documents() -> tuple[dict[str, Any], dict[str, Any]]:
    """Return a manifest and a config that belong together, but for the config's digest."""
    config = {"architecture": "amd64", "os": "linux", "rootfs": {"type": "layers", "diff_ids": [sha(LAYER)]}}
    layer = {"mediaType": OCI + "layer.v1.tar+gzip", "digest": sha(PACKED), "size": len(PACKED)}
    return {"schemaVersion": 2, "mediaType": OCI + "manifest.v1+json", "layers": [layer]}, config


@st.composite
def scripts(draw: st.DrawFn) -> dict[str, Any]:
    """Give bodies, states and headers of a registry that is wrong in a few ways."""
    manifest, config = documents()
    broken = draw(st.sampled_from(["nothing", "manifest", "config", "layer", "bytes", "status", "headers"]))
    if broken == "config":
        config[draw(st.sampled_from(sorted(config)))] = draw(junk)
    text = json.dumps(config).encode()
    manifest["config"] = {"mediaType": OCI + "config.v1+json", "digest": sha(text), "size": len(text)}
    if broken == "manifest":
        place: Any = draw(st.sampled_from([manifest, manifest["config"], manifest["layers"][0]]))
        place[draw(st.sampled_from(sorted(place)))] = draw(junk)
    top = json.dumps(manifest).encode()
    blob = bytearray(PACKED)
    if broken == "layer":
        at = draw(st.integers(0, len(blob)))
        blob[at : at + draw(st.integers(0, 9))] = draw(st.binary(max_size=9))
    bodies = {"1": top, sha(top): top, sha(text): text, sha(PACKED): bytes(blob)}
    names = list(bodies)
    if broken == "bytes":
        bodies[draw(st.sampled_from(names))] = draw(st.binary(max_size=60) | st.just(b"[" * 5000))
    status = {draw(st.sampled_from(names)): draw(st.sampled_from([204, 206, 302, 304, 400, 404, 416, 500]))}
    headers = st.dictionaries(
        st.sampled_from(["Content_Type", "Docker_Content_Digest", "Content_Range", "Location", "Retry_After", "ETag"]),
        st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=20)
        | st.sampled_from(["0", "-1", sha(top)]),
        min_size=1,
        max_size=2,
    )
    return {
        "bodies": bodies,
        "status": status if broken == "status" else {},
        "headers": draw(headers) if broken == "headers" else {},
        "whole": broken == "nothing",
    }


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
@given(said=scripts())
def test_whatever_a_registry_answers(engine: Engine, registry: tuple[Script, str], said: dict[str, Any]) -> None:
    script, host = registry
    script.bodies, script.status, script.headers, script.asked = said["bodies"], said["status"], said["headers"], 0
    began = time.monotonic()
    image = None
    try:
        image = engine.images.pull(f"{host}/app:1")
    except Error as error:
        assert host in str(error) or "sha256:" in str(error)  # noqa: PT017 - an image is as good
        assert not said["whole"]
    assert time.monotonic() - began < 10
    assert script.asked < 60
    if image is not None:
        assert image.layers == (sha(LAYER),)
        engine.images.remove(image.id, force=True)
    check_empty(engine.root)


def check_empty(root: Path) -> None:
    """Check that nothing is left, but parts of what was really promised."""
    assert list(root.glob("blobs/*/*")) == []
    assert list(root.glob("layers/*/*")) == []
    assert list(root.glob("tmp/*")) == []
    for part in root.glob("downloads/*"):
        assert hashlib.sha256(LAYER).hexdigest() not in part.name
        assert part.stat().st_size <= len(PACKED)
        with contextlib.suppress(FileNotFoundError):
            part.unlink()
