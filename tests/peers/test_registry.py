"""The client against Debian's docker-registry: plain, with passwords, with tokens, with TLS; and skopeo beside it."""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from pycontainer.distribution import catalog
from pycontainer.distribution.credentials import Credential
from pycontainer.distribution.hosts import Registries
from pycontainer.distribution.remote import Client
from pycontainer.errors import ManifestUnknown, RegistryError, Unauthorized
from pycontainer.names import parse_reference
from pycontainer.oci.image import CONFIG, LAYER_GZIP, Descriptor, Manifest
from tests.registry import PASSWORD, USER, HarmfulProxy, Registry, Served, TokenServer, certificate

BLOB = os.urandom(3 << 20)


def digest_of(data: bytes) -> str:
    return "sha256:" + hashlib.sha256(data).hexdigest()


def whole_life(registry: Registry, registries: Registries) -> None:
    """Push, mount, list, pull and delete."""
    small = b"{}"
    with Client(registries) as client:
        place = client.origin(parse_reference(f"{registry.host}/team/app"), "pull", "push")
        other = client.origin(parse_reference(f"{registry.host}/team/other"), "pull", "push")
        assert place.upload(digest_of(BLOB), len(BLOB), lambda offset: io.BytesIO(BLOB[offset:])) == "sent"
        assert place.upload(digest_of(BLOB), len(BLOB), lambda offset: io.BytesIO(BLOB[offset:])) == "exists"
        assert place.upload(digest_of(small), 2, lambda offset: io.BytesIO(small[offset:]), chunk_size=1) == "sent"
        unread: list[int] = []
        options: dict[str, Any] = {"mount_from": "team/app", "progress": unread.append}
        assert other.upload(digest_of(BLOB), len(BLOB), lambda _offset: io.BytesIO(), **options) == "mounted"
        assert unread == []
        manifest = Manifest(
            config=Descriptor(media_type=CONFIG, digest=digest_of(small), size=2),
            layers=(Descriptor(media_type=LAYER_GZIP, digest=digest_of(BLOB), size=len(BLOB)),),
        )
        digest = place.put_manifest("1", manifest.to_bytes(), manifest.media_type)
        found = place.head("1")
        assert found is not None
        assert (found.digest, found.size) == (digest, len(manifest.to_bytes()))
        assert place.manifest("1").data == place.manifest(digest).data == manifest.to_bytes()
        with place.blob(manifest.layers[0], offset=1000) as stream:
            assert b"".join(iter(stream.read, b"")) == BLOB[1000:]
        assert list(place.tags()) == ["1"]
        assert list(catalog.catalog(client, registry.host)) == ["team/app", "team/other"]
        assert [item.name for item in catalog.search(client, "app", registry.host)] == [f"{registry.host}/team/app"]
        signature = json.dumps({**json.loads(manifest.to_bytes()), "subject": found.to_json(), "artifactType": "x/y"})
        place.put_manifest(digest_of(signature.encode()), signature.encode(), manifest.media_type)
        assert [item.digest for item in place.referrers(digest)] == [digest_of(signature.encode())]
        assert place.referrers(digest, "other/type") == []
        place.delete_manifest(digest)
        with pytest.raises(ManifestUnknown, match="MANIFEST_UNKNOWN"):
            place.manifest("1")
        other.delete_blob(digest_of(BLOB))
        assert other.blob_size(digest_of(BLOB)) is None


def test_plain(tmp_path: Path) -> None:
    with Registry(tmp_path / "registry") as registry:
        whole_life(registry, Registries(auth_file=tmp_path / "none"))


def test_many_tags(tmp_path: Path) -> None:
    with Registry(tmp_path / "registry") as registry, Client(Registries(auth_file=tmp_path / "none")) as client:
        place = client.origin(parse_reference(f"{registry.host}/a"), "pull", "push")
        place.upload(digest_of(b"{}"), 2, lambda _offset: io.BytesIO(b"{}"))
        config = Descriptor(media_type=CONFIG, digest=digest_of(b"{}"), size=2)
        manifest = Manifest(config=config, layers=())
        names = sorted(f"v{number}" for number in range(5))
        for name in names:
            place.put_manifest(name, manifest.to_bytes(), manifest.media_type)
        assert sorted(place.tags()) == names


def test_passwords(tmp_path: Path) -> None:
    with Registry.basic(tmp_path / "registry") as registry:
        whole_life(registry, Registries(credentials={registry.host: (USER, PASSWORD)}))
        for given, hint in (({}, "log in: pycontainer login"), ({registry.host: (USER, "wrong")}, "log in again")):
            with (
                Client(Registries(credentials=given, auth_file=tmp_path / "none")) as client,
                pytest.raises(Unauthorized, match=hint),
            ):
                client.origin(parse_reference(f"{registry.host}/team/app")).manifest("1")
        with Client(Registries(auth_file=tmp_path / "config.json")) as client:
            with pytest.raises(Unauthorized):
                catalog.login(client, registry.host, Credential(USER, "wrong"))
            assert not (tmp_path / "config.json").exists()
            catalog.login(client, registry.host, Credential(USER, PASSWORD))
        with Client(Registries(auth_file=tmp_path / "config.json")) as client:
            catalog.ping(client, registry.host)
            assert catalog.logout(client, registry.host)
        with Client(Registries(auth_file=tmp_path / "config.json")) as client, pytest.raises(Unauthorized):
            catalog.ping(client, registry.host)


def test_tokens(tmp_path: Path) -> None:
    with TokenServer(tmp_path / "tokens") as issuer, Registry(tmp_path / "registry", auth=issuer.auth) as registry:
        whole_life(registry, Registries(credentials={registry.host: (USER, PASSWORD)}))
        with Client(Registries(auth_file=tmp_path / "config.json")) as client:
            catalog.login(client, registry.host, Credential(USER, PASSWORD))
        entry = json.loads((tmp_path / "config.json").read_text())["auths"][registry.host]
        assert entry["identitytoken"] == issuer.refresh_token
        with Client(Registries(auth_file=tmp_path / "config.json")) as client:
            place = client.origin(parse_reference(f"{registry.host}/team/app"))
            with pytest.raises(ManifestUnknown):
                place.manifest("gone")
        assert issuer.requests[-1].method == "POST", "an identity token goes in a form"
        issuer.refresh_token = "another"  # noqa: S105 - of a test
        with (
            Client(Registries(auth_file=tmp_path / "config.json")) as client,
            pytest.raises(Unauthorized, match=r"incorrect username or password .*config\.json"),
        ):
            client.origin(parse_reference(f"{registry.host}/team/app")).manifest("1")


def test_certificates(tmp_path: Path) -> None:
    authority = certificate(tmp_path, "authority")
    server = certificate(tmp_path, "server", authority)
    with Registry(tmp_path / "registry", tls=server, clients=authority.cert) as registry:
        trusted = tmp_path / "certs.d" / registry.host
        trusted.mkdir(parents=True)
        registries = Registries(certs=[tmp_path / "certs.d"], auth_file=tmp_path / "none")
        with Client(registries) as client, pytest.raises(RegistryError, match="its certificate is not trusted"):
            catalog.ping(client, registry.host)
        (trusted / "ca.crt").write_bytes(authority.cert.read_bytes())
        with Client(registries) as client, pytest.raises(RegistryError, match="wants a client certificate"):
            catalog.ping(client, registry.host)
        ours = certificate(tmp_path, "ours", authority)
        (trusted / "client.cert").write_bytes(ours.cert.read_bytes())
        (trusted / "client.key").write_bytes(ours.key.read_bytes())
        whole_life(registry, registries)


def test_an_upload_goes_on_after_harm(tmp_path: Path) -> None:
    """Answers to requests that arrived are lost, and the registry is busy: the blob arrives, once."""
    harmed: list[str] = []

    def plan(request: Served, _body: bytes) -> str | tuple[str, int]:
        if request.method in ("PATCH", "PUT", "POST") and harmed.count(request.method) < 2:
            harmed.append(request.method)
            return ("status", 503) if harmed.count(request.method) == 1 else ("status", 500)
        return "pass"

    with Registry(tmp_path / "registry") as registry, HarmfulProxy(registry.host, plan) as proxy:
        registries = Registries(insecure=[f"http://{proxy.host}"], auth_file=tmp_path / "none", backoff=0.01, proxy="")
        with Client(registries) as client:
            place = client.origin(parse_reference(f"{proxy.host}/a"), "pull", "push")
            sent: list[int] = []
            done = place.upload(
                digest_of(BLOB),
                len(BLOB),
                lambda offset: io.BytesIO(BLOB[offset:]),
                chunk_size=1 << 20,
                progress=sent.append,
            )
            assert done == "sent"
            with place.blob(Descriptor(media_type=LAYER_GZIP, digest=digest_of(BLOB), size=len(BLOB))) as stream:
                assert b"".join(iter(stream.read, b"")) == BLOB
        assert sorted(set(harmed)) == ["PATCH", "POST", "PUT"]


def test_a_refused_upload_is_cancelled(tmp_path: Path) -> None:
    with Registry(tmp_path / "registry") as registry, HarmfulProxy(registry.host, lambda *_: "pass") as proxy:
        with Client(Registries(insecure=[f"http://{proxy.host}"], auth_file=tmp_path / "none")) as client:
            place = client.origin(parse_reference(f"{proxy.host}/a"), "pull", "push")
            with pytest.raises(RegistryError, match="DIGEST_INVALID"):
                place.upload(digest_of(b"other"), len(BLOB), lambda offset: io.BytesIO(BLOB[offset:]))
        assert proxy.asked("DELETE", "/blobs/uploads/") == 1


def test_logins_are_shared_with_skopeo(tmp_path: Path) -> None:
    if shutil.which("skopeo") is None:
        pytest.skip("skopeo is not installed")

    def skopeo(verb: str, *words: str) -> None:
        command = ["skopeo", verb, "--tls-verify=false", "--authfile", str(tmp_path / "auth.json"), *words]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr

    with Registry.basic(tmp_path / "registry") as registry:
        ours = Registries(auth_file=tmp_path / "auth.json")
        skopeo("login", "-u", USER, "-p", PASSWORD, registry.host)
        with Client(ours) as client:
            catalog.ping(client, registry.host)
        assert ours.logout(registry.host)
        with Client(ours) as client, pytest.raises(Unauthorized):
            catalog.ping(client, registry.host)
        assert ours.login(registry.host, USER, PASSWORD) == str(tmp_path / "auth.json")
        skopeo("login", "--get-login", registry.host)
        with Client(ours) as client:
            place = client.origin(parse_reference(f"{registry.host}/a"), "pull", "push")
            place.upload(digest_of(b"{}"), 2, lambda _offset: io.BytesIO(b"{}"))
            manifest = Manifest(config=Descriptor(media_type=CONFIG, digest=digest_of(b"{}"), size=2), layers=())
            place.put_manifest("1", manifest.to_bytes(), manifest.media_type)
        skopeo("inspect", "--raw", f"docker://{registry.host}/a:1")
