"""Images to and from docker-registry: by us, by skopeo and by podman; through a proxy that does harm; after kills."""

from __future__ import annotations

import json
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from platform import machine
from typing import Any

import pytest

from pycontainer import (
    DigestMismatch,
    Engine,
    Error,
    ImageError,
    ManifestUnknown,
    NotFound,
    Progress,
    Registries,
    RegistryError,
    StoreError,
    Unauthorized,
)
from tests.images import Entry, Recipe, write_layout
from tests.peers.podman import Podman
from tests.registry import PASSWORD, USER, Harm, HarmfulProxy, Registry, Served, TokenServer

SIZE = 3 << 20


def recipe(seed: int = 1, layers: int = 3) -> Recipe:
    """Return an image of some layers that do not compress."""
    noise = random.Random(seed)  # noqa: S311 - test data
    made = [[Entry(path=f"file{number}", pieces=((0, noise.randbytes(SIZE)),))] for number in range(layers)]
    return Recipe(layers=made, config={"Cmd": ["/bin/sh"], "Labels": {"seed": str(seed)}})


@pytest.fixture(scope="module")
def layout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("layout") / "image"
    write_layout(path, recipe(), tag="1", compression="gzip")
    return path


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory, layout: Path) -> Iterator[Registry]:
    """Give a registry that has the layout as ``app:1``, put there by us."""
    with Registry(tmp_path_factory.mktemp("registry")) as running:
        with Engine(tmp_path_factory.mktemp("pusher") / "root", registries=plain(running)) as engine:
            image = engine.images.load(layout)
            pinned = engine.images.push(image, f"{running.host}/app:1")
            assert pinned == f"{running.host}/app@{digest_in(layout)}"
        yield running


def digest_in(layout: Path) -> str:
    index = json.loads((layout / "index.json").read_bytes())
    digest: str = index["manifests"][0]["digest"]
    return digest


def plain(*places: Registry | HarmfulProxy, **options: Any) -> Registries:
    hosts = [f"http://{place.host}" for place in places]
    return Registries(
        **{"insecure": hosts, "auth_file": "/nonexistent", "backoff": 0.01, "read_timeout": 5.0, **options}
    )


def skopeo(*words: str | Path) -> str:
    if shutil.which("skopeo") is None:
        pytest.skip("skopeo is not installed")
    done = subprocess.run(["skopeo", *map(str, words)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def leftovers(root: Path) -> list[Path]:
    """Return what a failed or finished pull must not leave: workspaces, and content of no image."""
    with Engine(root) as engine:
        store = engine._store
        needed, there = store.db.content(), set(store.blobs.list())
        assert needed.blobs <= there
        unneeded = there - needed.blobs - needed.tars
        return [*(root / "tmp").iterdir(), *(Path(digest) for digest in unneeded)]


# ── both ways ─────────────────────────────────────────────────────────────────────────────────────────────────────


def test_skopeo_reads_what_we_push(registry: Registry, layout: Path, tmp_path: Path) -> None:
    skopeo("copy", "--src-tls-verify=false", f"docker://{registry.host}/app:1", f"oci:{tmp_path}/copy:1")
    ours, theirs = (
        sorted(path.name for path in (base / "blobs/sha256").iterdir()) for base in (layout, tmp_path / "copy")
    )
    assert ours == theirs


def test_we_read_what_skopeo_pushes(registry: Registry, layout: Path, tmp_path: Path) -> None:
    skopeo("copy", "--dest-tls-verify=false", f"oci:{layout}:1", f"docker://{registry.host}/by-skopeo:2")
    schema2 = f"docker://{registry.host}/by-skopeo:v2s2"
    skopeo("copy", "--dest-tls-verify=false", "--format=v2s2", f"oci:{layout}:1", schema2)
    with Engine(tmp_path / "root", registries=plain(registry)) as engine:
        image = engine.images.pull(f"{registry.host}/by-skopeo:2")
        assert image.digest == digest_in(layout)
        assert image.references == (f"{registry.host}/by-skopeo:2",)
        docker = engine.images.pull(f"{registry.host}/by-skopeo:v2s2")
        assert docker.layers == image.layers
        pinned = engine.images.push(docker, f"{registry.host}/back:1")
        assert pinned == f"{registry.host}/back@{docker.digest}", "docker's manifest too is pushed as it is"
    assert leftovers(tmp_path / "root") == []


def test_podman_and_we_exchange_images(registry: Registry, tmp_path: Path) -> None:
    with tempfile.TemporaryDirectory(prefix="pyc-") as name:
        podman = Podman(Path(name), "crun", "vfs")
        try:
            done = podman("pull", "--quiet", "--tls-verify=false", f"{registry.host}/app:1")
            assert done.returncode == 0, done.stderr.decode()
            identity = done.stdout.decode().strip()
            done = podman("push", "--quiet", "--tls-verify=false", identity, f"{registry.host}/by-podman:1")
            assert done.returncode == 0, done.stderr.decode()
            podman("rmi", "--force", identity)
        finally:
            podman.close()
    with Engine(tmp_path / "root", registries=plain(registry)) as engine:
        image = engine.images.pull(f"{registry.host}/by-podman:1")
        assert image.id == f"sha256:{identity}"
        assert image.id == engine.images.pull(f"{registry.host}/app:1").id


def test_with_tokens(layout: Path, tmp_path: Path) -> None:
    with (
        TokenServer(tmp_path / "tokens", anonymous=True) as issuer,
        Registry(tmp_path / "registry", auth=issuer.auth) as running,
    ):
        with Engine(tmp_path / "a", registries=plain(running)) as engine:
            image = engine.images.load(layout)
            with pytest.raises(Unauthorized, match="pycontainer login"):
                engine.images.push(image, f"{running.host}/team/app:1")
        with Engine(tmp_path / "a", registries=plain(running, credentials={running.host: (USER, PASSWORD)})) as engine:
            engine.images.push(image.id, f"{running.host}/team/app:1")
        with Engine(tmp_path / "b", registries=plain(running)) as engine:
            assert engine.images.pull(f"{running.host}/team/app:1").id == image.id


# ── what travels ──────────────────────────────────────────────────────────────────────────────────────────────────


def test_only_what_is_missing_travels(registry: Registry, tmp_path: Path) -> None:
    events: list[Progress] = []
    with (
        HarmfulProxy(registry.host, lambda *_: "pass") as proxy,
        Engine(tmp_path / "root", registries=plain(proxy)) as engine,
    ):
        name = f"{proxy.host}/app:1"
        image = engine.images.pull(name, progress=events.append)
        assert proxy.asked("GET", "/blobs/") == 4, "three layers and a config"
        assert proxy.asked("", "/manifests/") == 0
        assert {event.state for event in events} >= {"waiting", "downloading", "done", "image"}
        assert events[-1].state == "image"

        proxy.requests.clear()
        assert engine.images.pull(name) == image
        assert [request.method for request in proxy.requests] == ["HEAD"], "an image that is up to date: one request"

        proxy.requests.clear()
        assert engine.images.pull(f"{proxy.host}/app@{image.digest}").id == image.id
        assert proxy.requests == []
        assert engine.images.get(f"{proxy.host}/app@{image.digest}").id == image.id

        engine.images.push(name, f"{proxy.host}/elsewhere:1")
        assert proxy.asked("PATCH", "") == 0, "the layers are mounted from the repository they came from"
        assert proxy.asked("POST", "mount=") == 3
        proxy.requests.clear()
        engine.images.push(name, f"{proxy.host}/elsewhere:2")
        assert proxy.asked("POST", "") == 0


def test_an_image_made_here_is_compressed_on_its_way(registry: Registry, tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    tree.mkdir()
    (tree / "zeros").write_bytes(bytes(20 << 20))
    name = f"{registry.host}/made:1"
    with Engine(tmp_path / "a", registries=plain(registry)) as engine:
        made = engine.images.import_rootfs(tree, reference=name)
        assert engine.images.push(name) == engine.images.push(made, f"{registry.host}/made:2"), (
            "always to the same bytes"
        )
    raw = json.loads(skopeo("inspect", "--tls-verify=false", "--raw", f"docker://{name}"))
    assert raw["layers"][0]["mediaType"].endswith("tar+gzip")
    assert raw["layers"][0]["size"] < 1 << 20
    with Engine(tmp_path / "b", registries=plain(registry)) as engine:
        assert engine.images.pull(name).id == made.id


def test_all_tags(registry: Registry, layout: Path, tmp_path: Path) -> None:
    with Engine(tmp_path / "a", registries=plain(registry)) as engine:
        image = engine.images.load(layout)
        for tag in ("a", "b"):
            engine.images.push(image, f"{registry.host}/tags:{tag}")
    with Engine(tmp_path / "b", registries=plain(registry)) as engine:
        assert [item.id for item in engine.images.pull_all(f"{registry.host}/tags")] == [image.id] * 2
        assert set(engine.images.get(image.id).references) == {f"{registry.host}/tags:{tag}" for tag in ("a", "b")}
        with pytest.raises(ValueError, match="names one of them"):
            engine.images.pull_all(f"{registry.host}/tags:a")


def test_an_index_is_chosen_from_kept_and_pushed_whole(registry: Registry, tmp_path: Path) -> None:
    """An image for two platforms: the whole index goes on when both are here, one image of it else."""
    index: dict[str, Any] = {
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.index.v1+json",
        "manifests": [],
    }
    layout = tmp_path / "layout"
    for architecture, seed in (("arm64", 5), ("amd64", 6)):
        write_layout(tmp_path / architecture, recipe(seed, 1), tag="1", compression="gzip")
        shutil.copytree(tmp_path / architecture / "blobs", layout / "blobs", dirs_exist_ok=True)
        entry = json.loads((tmp_path / architecture / "index.json").read_bytes())["manifests"][0]
        manifest = json.loads((layout / "blobs/sha256" / entry["digest"][7:]).read_bytes())
        config = json.loads((layout / "blobs/sha256" / manifest["config"]["digest"][7:]).read_bytes())
        config["architecture"] = architecture
        manifest["config"] |= put(layout, json.dumps(config).encode())
        described = {"mediaType": entry["mediaType"], **put(layout, json.dumps(manifest).encode())}
        index["manifests"].append({**described, "platform": {"os": "linux", "architecture": architecture}})
    top = put(layout, json.dumps(index).encode())
    outer = {"schemaVersion": 2, "manifests": [{"mediaType": index["mediaType"], **top}]}
    (layout / "index.json").write_text(json.dumps(outer))
    (layout / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')
    skopeo("copy", "--all", "--dest-tls-verify=false", f"oci:{layout}", f"docker://{registry.host}/multi:1")
    name = f"{registry.host}/multi:1"
    with Engine(tmp_path / "root", registries=plain(registry)) as engine:
        arm = engine.images.pull(name, platform="arm64")
        assert (arm.architecture, arm.digest) == ("arm64", index["manifests"][0]["digest"])
        one = engine.images.push(arm, f"{registry.host}/multi:arm")
        assert one == f"{registry.host}/multi@{arm.digest}"
        amd = engine.images.pull(name, platform="linux/amd64")
        assert amd.references == (name,), "the name means what was pulled last"
        assert engine.images.get(f"{registry.host}/multi@{amd.digest}").id == amd.id
        whole = engine.images.push(amd, f"{registry.host}/copy:1")
        assert whole == f"{registry.host}/copy@{top['digest']}"
        with pytest.raises(ImageError, match=r"no image for linux/s390x; it has: linux/arm64, linux/amd64"):
            engine.images.pull(name, platform="s390x")
        pinned = engine.images.pull(f"{registry.host}/copy@{top['digest']}", platform="arm64")
        assert pinned.id == arm.id
    raw = skopeo("inspect", "--tls-verify=false", "--raw", f"docker://{registry.host}/copy:1")
    assert json.loads(raw) == index


def test_attestations_come_along_and_go_on(registry: Registry, tmp_path: Path) -> None:
    """What buildx pushes: an index of one image and of a manifest that tells how it was built."""
    layout = tmp_path / "layout"
    write_layout(layout, recipe(9, 1), tag="1", compression="gzip")
    image = json.loads((layout / "index.json").read_bytes())["manifests"][0]
    platform = {"os": "linux", "architecture": {"x86_64": "amd64", "aarch64": "arm64"}.get(machine(), machine())}
    oci = "application/vnd.oci.image"
    proof = {
        "schemaVersion": 2,
        "mediaType": f"{oci}.manifest.v1+json",
        "config": {"mediaType": f"{oci}.config.v1+json", **put(layout, b'{"architecture":"unknown","os":"unknown"}')},
        "layers": [{"mediaType": "application/vnd.in-toto+json", **put(layout, b'{"_type":"proof"}')}],
    }
    about = {"vnd.docker.reference.type": "attestation-manifest", "vnd.docker.reference.digest": image["digest"]}
    nowhere = {"os": "unknown", "architecture": "unknown"}
    entries = [
        {"mediaType": image["mediaType"], "digest": image["digest"], "size": image["size"], "platform": platform},
        {"mediaType": proof["mediaType"], **put(layout, json.dumps(proof).encode()), "platform": nowhere}
        | {"annotations": about},
    ]
    index = {"schemaVersion": 2, "mediaType": f"{oci}.index.v1+json", "manifests": entries}
    top = put(layout, json.dumps(index).encode())
    outer = {"schemaVersion": 2, "manifests": [{"mediaType": index["mediaType"], **top}]}
    (layout / "index.json").write_text(json.dumps(outer))
    skopeo("copy", "--all", "--dest-tls-verify=false", f"oci:{layout}", f"docker://{registry.host}/built:1")
    with (
        HarmfulProxy(registry.host, lambda *_: "pass") as proxy,
        Engine(tmp_path / "root", registries=plain(proxy)) as engine,
    ):
        engine.images.pull(f"{proxy.host}/built:1")
        pinned = engine.images.push(f"{proxy.host}/built:1", f"{proxy.host}/rebuilt:1")
        assert pinned == f"{proxy.host}/rebuilt@{top['digest']}"
        proxy.requests.clear()
        engine.images.pull(f"{proxy.host}/built:1")
        assert [request.method for request in proxy.requests] == ["HEAD"]
    assert json.loads(skopeo("inspect", "--tls-verify=false", "--raw", f"docker://{registry.host}/rebuilt:1")) == index
    assert leftovers(tmp_path / "root") == []


def put(layout: Path, data: bytes) -> dict[str, Any]:
    import hashlib

    digest = hashlib.sha256(data).hexdigest()
    (layout / "blobs/sha256" / digest).write_bytes(data)
    return {"digest": f"sha256:{digest}", "size": len(data)}


def test_mirrors_are_asked_first_and_may_fail(registry: Registry, tmp_path: Path) -> None:
    def broken(request: Served, _body: bytes) -> str | tuple[str, int]:
        return ("status", 404) if "/blobs/" in request.path else "pass"

    with HarmfulProxy(registry.host, lambda *_: "pass") as mirror, HarmfulProxy(registry.host, broken) as half:
        mirrors = {registry.host: [f"http://{half.host}", f"http://{mirror.host}"]}
        with Engine(tmp_path / "root", registries=plain(registry, mirrors=mirrors)) as engine:
            image = engine.images.pull(f"{registry.host}/app:1")
            assert image.references == (f"{registry.host}/app:1",)
        assert half.asked("GET", "/manifests/") == 1
        assert mirror.asked("GET", "/blobs/") == 4


# ── harm ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def once(kind: str, number: int, part: str = "/blobs/") -> Harm:
    """Do harm to the first answer of each path only."""
    seen: set[str] = set()

    def plan(request: Served, body: bytes) -> str | tuple[str, int]:
        if request.method != "GET" or part not in request.path or request.path in seen or len(body) < number:
            return "pass"
        seen.add(request.path)
        return (kind, number)

    return plan


@pytest.mark.parametrize(
    "harm",
    [
        ("cut", 100_000),
        ("cut", 0),
        ("stall", 200_000),
        ("status", 429),
        ("status", 500),
        ("status", 503),
        ("status", 401),
    ],
    ids=lambda harm: f"{harm[0]}-{harm[1]}",
)
def test_harm_that_passes_is_survived(registry: Registry, tmp_path: Path, harm: tuple[str, int]) -> None:
    ranges: list[str] = []
    inner = once(*harm)

    def plan(request: Served, body: bytes) -> str | tuple[str, int]:
        ranges.append(request.headers.get("range", ""))
        return inner(request, body)

    with (
        TokenServer(tmp_path / "tokens", anonymous=True) as issuer,
        HarmfulProxy(registry.host, plan, f'Bearer realm="http://{issuer.host}/token"') as proxy,
        Engine(tmp_path / "root", registries=plain(proxy, read_timeout=1.0)) as engine,
    ):
        assert len(engine.images.pull(f"{proxy.host}/app:1").layers) == 3
        if harm == ("status", 401):
            assert len(issuer.requests) >= 1
    if harm[0] in ("cut", "stall") and harm[1]:
        assert f"bytes={harm[1]}-" in ranges, "what had arrived is not asked for again"
    assert leftovers(tmp_path / "root") == []


def test_a_flipped_bit_fails_cleanly_and_is_not_kept(registry: Registry, tmp_path: Path) -> None:
    failures = 0
    with (
        HarmfulProxy(registry.host, once("flip", 1_000_000)) as proxy,
        Engine(tmp_path / "root", registries=plain(proxy)) as engine,
    ):
        while not engine.images.exists(f"{proxy.host}/app:1"):
            try:
                engine.images.pull(f"{proxy.host}/app:1")
            except DigestMismatch as error:
                failures += 1
                assert "damaged or was tampered with" in str(error)  # noqa: PT017 - how often is not known
                assert engine.images.list() == []
        assert 1 <= failures <= 3, "each layer is damaged once"
    assert leftovers(tmp_path / "root") == []


def test_a_registry_that_stays_away_fails_cleanly(registry: Registry, tmp_path: Path) -> None:
    def plan(request: Served, body: bytes) -> str | tuple[str, int]:
        return ("cut", 1000) if "/blobs/" in request.path and len(body) > 1000 else "pass"

    with (
        HarmfulProxy(registry.host, plan) as proxy,
        Engine(tmp_path / "root", registries=plain(proxy, attempts=2)) as engine,
    ):
        with pytest.raises(RegistryError, match=r"the connection was cut"):
            engine.images.pull(f"{proxy.host}/app:1")
        assert engine.images.list() == []
        with pytest.raises(ManifestUnknown):
            engine.images.pull(f"{proxy.host}/app:2")
    assert leftovers(tmp_path / "root") == []


def test_what_an_earlier_pull_left_is_verified(registry: Registry, layout: Path, tmp_path: Path) -> None:
    manifest = json.loads((layout / "blobs/sha256" / digest_in(layout)[7:]).read_bytes())
    digest = manifest["layers"][1]["digest"]
    good = (layout / "blobs/sha256" / digest[7:]).read_bytes()
    for number, left in enumerate((good[:500_000], good, b"x" * 500_000, good + b"longer", b"")):
        root = tmp_path / f"root{number}"
        with HarmfulProxy(registry.host, lambda *_: "pass") as proxy, Engine(root, registries=plain(proxy)) as engine:
            (root / "downloads").mkdir(exist_ok=True)
            (root / "downloads" / digest.replace(":", "-")).write_bytes(left)
            engine.images.pull(f"{proxy.host}/app:1")
            ranges = [item.headers.get("range") for item in proxy.requests if item.path.endswith(digest)]
            assert ranges == [["bytes=500000-"], [], ["bytes=500000-", None], [None], [None]][number]
        assert list((root / "downloads").iterdir()) == []
        assert leftovers(root) == []


# ── ends ──────────────────────────────────────────────────────────────────────────────────────────────────────────

PULL = """
import sys
from pycontainer import Engine, Registries
root, host, name = sys.argv[1:]
with Engine(root, registries=Registries(insecure=[f"http://{host}"], auth_file="/nonexistent")) as engine:
    print(engine.images.pull(f"{host}/{name}").id)
"""


def pulling(root: Path, proxy: HarmfulProxy, name: str = "app:1") -> subprocess.Popen[bytes]:
    words = [sys.executable, "-c", PULL, str(root), proxy.host, name]
    return subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_a_pull_that_was_ended_goes_on(registry: Registry, tmp_path: Path, number: signal.Signals) -> None:
    reached = threading.Event()
    release = threading.Event()

    def plan(_request: Served, body: bytes) -> str | tuple[str, int]:
        if len(body) > SIZE and not release.is_set():
            reached.set()
            return ("stall", 700_000)
        return "pass"

    with HarmfulProxy(registry.host, plan) as proxy:
        process = pulling(tmp_path / "root", proxy)
        try:
            assert reached.wait(20)
            partial = tmp_path / "root/downloads"
            deadline = time.monotonic() + 10
            while time.monotonic() < deadline and not any(path.stat().st_size == 700_000 for path in partial.glob("*")):
                time.sleep(0.02)
            began = time.monotonic()
            process.send_signal(number)
            _, said = process.communicate(timeout=20)
            assert time.monotonic() - began < 5, "nobody waits for a registry that is silent"
            assert process.returncode == -number if number == signal.SIGKILL else b"KeyboardInterrupt" in said
        finally:
            process.kill()
            process.wait()
        release.set()
        with Engine(tmp_path / "root", registries=plain(proxy)) as engine:
            assert engine.images.list() == []
            proxy.requests.clear()
            engine.images.pull(f"{proxy.host}/app:1")
        assert "bytes=700000-" in [request.headers.get("range") for request in proxy.requests]
        assert list((tmp_path / "root/downloads").iterdir()) == []
    assert leftovers(tmp_path / "root") == []


PUSH = """
import sys
from pycontainer import Engine, Registries
root, host, name = sys.argv[1:]
with Engine(root, registries=Registries(insecure=[f"http://{host}"], auth_file="/nonexistent")) as engine:
    engine.images.push(engine.images.list()[0], f"{host}/{name}")
"""


def test_a_push_can_be_interrupted(registry: Registry, layout: Path, tmp_path: Path) -> None:
    reached = threading.Event()

    def plan(request: Served, _body: bytes) -> str | tuple[str, int]:
        if request.method != "PATCH":
            return "pass"
        reached.set()
        return ("silence", 0)

    with HarmfulProxy(registry.host, plan) as proxy:
        with Engine(tmp_path / "root", registries=plain(proxy)) as engine:
            image = engine.images.load(layout)
        words = [sys.executable, "-c", PUSH, str(tmp_path / "root"), proxy.host, "interrupted:1"]
        process = subprocess.Popen(words, stderr=subprocess.PIPE)
        try:
            assert reached.wait(20)
            time.sleep(0.2)
            began = time.monotonic()
            process.send_signal(signal.SIGINT)
            _, said = process.communicate(timeout=20)
            assert time.monotonic() - began < 3
            assert b"KeyboardInterrupt" in said
        finally:
            process.kill()
            process.wait()
        proxy.plan = lambda *_: "pass"
        with Engine(tmp_path / "root", registries=plain(proxy)) as engine:
            engine.images.push(image.id, f"{proxy.host}/interrupted:1")
    assert leftovers(tmp_path / "root") == []


def test_who_waits_for_another_process_can_be_interrupted(registry: Registry, tmp_path: Path) -> None:
    reached = threading.Event()

    def plan(_request: Served, body: bytes) -> str | tuple[str, int]:
        if len(body) > SIZE:
            reached.set()
            return ("stall", 0)
        return "pass"

    with HarmfulProxy(registry.host, plan) as proxy:
        first = pulling(tmp_path / "root", proxy)
        second = None
        try:
            assert reached.wait(20)
            second = pulling(tmp_path / "root", proxy)
            deadline = time.monotonic() + 10
            while time.monotonic() < deadline and proxy.asked("GET", "/manifests/") < 2:
                time.sleep(0.02)
            time.sleep(0.2)
            began = time.monotonic()
            second.send_signal(signal.SIGINT)
            _, said = second.communicate(timeout=20)
            assert time.monotonic() - began < 3
            assert b"KeyboardInterrupt" in said
        finally:
            for process in filter(None, (first, second)):
                process.kill()
                process.communicate()
    assert leftovers(tmp_path / "root") == []


def test_two_processes_fetch_each_blob_once(registry: Registry, tmp_path: Path) -> None:
    with HarmfulProxy(registry.host, lambda *_: "pass") as proxy:
        processes = [pulling(tmp_path / "root", proxy) for _ in range(3)]
        try:
            said = [process.communicate(timeout=60) for process in processes]
        finally:
            for process in processes:
                process.kill()
                process.wait()
        assert [process.returncode for process in processes] == [0, 0, 0], said
        assert len({out for out, _ in said}) == 1
        layers = [item.path for item in proxy.requests if item.method == "GET" and "/blobs/" in item.path]
        counts = sorted(layers.count(path) for path in set(layers))
        assert counts[:3] == [1, 1, 1], "layers; a config is small and may be asked for by each"
    assert leftovers(tmp_path / "root") == []


def test_a_full_disk_is_told_and_left_usable(registry: Registry, tmp_path: Path) -> None:
    mount = tmp_path / "small"
    mount.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={SIZE * 3}", "tmpfs", mount], check=True)
    try:
        with Engine(mount / "root", registries=plain(registry)) as engine:
            with pytest.raises(StoreError, match="No space left on device"):
                engine.images.pull(f"{registry.host}/app:1")
            assert engine.images.list() == []
        assert leftovers(mount / "root") == []
    finally:
        subprocess.run(["umount", mount], check=True)


def test_a_push_that_was_interrupted_leaves_the_image(registry: Registry, layout: Path, tmp_path: Path) -> None:
    def plan(request: Served, _body: bytes) -> str | tuple[str, int]:
        return ("status", 500) if request.method in ("PATCH", "PUT") else "pass"

    with HarmfulProxy(registry.host, plan) as proxy, Engine(tmp_path / "root", registries=plain(proxy)) as engine:
        image = engine.images.load(layout)
        with pytest.raises(Error):
            engine.images.push(image, f"{proxy.host}/fresh:1")
        assert engine.images.get(image.id).layers == image.layers
        with pytest.raises(NotFound):
            engine.images.push("nothing:1")
        with pytest.raises(ValueError, match="has 0 names; say what to push it as"):
            engine.images.push(image.id)
        with pytest.raises(ImageError, match="those of the host"):
            engine.images.push(engine.images.host(), f"{proxy.host}/host:1")
