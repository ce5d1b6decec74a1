"""The client against servers that misbehave: cuts, lies, floods, detours. No registry is needed."""

from __future__ import annotations

import base64
import gzip
import hashlib
import io
import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pycontainer.distribution.catalog import search
from pycontainer.distribution.hosts import Registries
from pycontainer.distribution.remote import Client, Remote
from pycontainer.errors import DigestMismatch, ImageError, ManifestUnknown, RegistryError, Unauthorized
from pycontainer.names import parse_reference
from pycontainer.oci.image import INDEX, LAYER, MANIFEST, MAX_DOCUMENT, Descriptor
from tests.registry import PASSWORD, USER, Served, certificate, serve

DATA = bytes(range(256)) * 4096 * 3
QUICK: dict[str, Any] = {"backoff": 0.001, "read_timeout": 0.5, "attempts": 4}


def digest_of(data: bytes) -> str:
    return "sha256:" + hashlib.sha256(data).hexdigest()


def descriptor(data: bytes = DATA, size: int | None = None) -> Descriptor:
    return Descriptor(media_type=LAYER, digest=digest_of(data), size=len(data) if size is None else size)


@contextmanager
def remote(respond: Callable[[Served], object], **options: Any) -> Iterator[Remote]:
    """Give a repository of a server that answers so."""
    with ExitStack() as stack:
        host = stack.enter_context(serve(respond))
        settings = {**QUICK, "insecure": [f"http://{host}"], "proxy": "", "auth_file": "/nonexistent", **options}
        client = stack.enter_context(Client(Registries(**settings)))
        yield client.origin(parse_reference(f"{host}/team/app:1"), "pull", "push")


def read(remote: Remote, wanted: Descriptor | None = None) -> bytes:
    with remote.blob(wanted or descriptor()) as stream:
        return b"".join(iter(stream.read, b""))


def test_a_blob_goes_on_where_it_was_cut() -> None:
    ranges: list[str | None] = []

    def respond(request: Served) -> None:
        ranges.append(request.headers.get("range"))
        assert (request.headers.get("if-range") is not None) == (len(ranges) > 1)
        start = int((ranges[-1] or "bytes=0-")[6:-1])
        end = min(len(DATA), start + 700_000)
        headers = {"Content_Length": str(len(DATA) - start), "ETag": '"x"'}
        if start:
            headers["Content_Range"] = f"bytes {start}-{len(DATA) - 1}/{len(DATA)}"
        request.answer(206 if start else 200, DATA[start:end], **headers)
        if end < len(DATA):
            request.cut()

    with remote(respond, attempts=3) as place:
        assert read(place) == DATA
    assert len(ranges) > 3, "more cuts than attempts: progress counts them anew"
    assert len(set(ranges)) == len(ranges)


def test_a_server_without_ranges_starts_again() -> None:
    count = 0

    def respond(request: Served) -> None:
        nonlocal count
        count += 1
        request.answer(200, DATA[: 10_000 * count] if count < 3 else DATA, Content_Length=str(len(DATA)))
        if count < 3:
            request.cut()

    with remote(respond) as place:
        assert read(place) == DATA


def test_a_blob_that_stalls_is_asked_for_again() -> None:
    count = 0

    def respond(request: Served) -> None:
        nonlocal count
        count += 1
        start = int(request.headers.get("range", "bytes=0-")[6:-1])
        words = {"Content_Range": f"bytes {start}-{len(DATA) - 1}/{len(DATA)}"} if start else {}
        request.answer(
            206 if start else 200, DATA[start : start + 1000] if count < 2 else DATA[start:],
            Content_Length=str(len(DATA) - start), **words,
        )  # fmt: skip
        if count < 2:
            request.handler.wfile.flush()
            time.sleep(1.0)
            request.cut()

    with remote(respond) as place:
        assert read(place) == DATA
    assert count == 2


@pytest.mark.parametrize(
    ("status", "headers", "body", "words"),
    [
        (200, {"Content_Length": "7"}, DATA[:7], f"has 7 bytes, its descriptor promises {len(DATA)}"),
        (200, {"Content_Length": str(len(DATA) + 1)}, DATA + b"x", "its descriptor promises"),
        (206, {"Content_Range": "bytes 5-9/10"}, DATA[:5], "it sends 'bytes 5-9/10'"),
        (206, {}, DATA, "asked for the bytes from 0"),
        (404, {}, b"", "404"),
        (416, {}, b"", "416"),
        (500, {}, b"<html>no</html>", "500"),
    ],
)
def test_lies_about_a_blob_are_refused(status: int, headers: dict[str, str], body: bytes, words: str) -> None:
    with remote(lambda request: request.answer(status, body, **headers)) as place:
        with pytest.raises(RegistryError, match=words) as caught:
            read(place)
        assert caught.value.status in (status, 0)


def test_a_blob_without_length_never_exceeds_its_descriptor() -> None:
    def respond(request: Served) -> None:
        request.handler.send_response(200)
        request.handler.send_header("Connection", "close")
        request.handler.end_headers()
        request.handler.wfile.write(DATA + b"more")
        request.handler.close_connection = True

    with remote(respond) as place, pytest.raises(RegistryError, match=f"longer than the {len(DATA)} bytes"):
        read(place)


@pytest.mark.parametrize("status", [408, 429, 500, 502, 503, 504])
def test_what_may_pass_is_tried_again(status: int) -> None:
    count = 0

    def respond(request: Served) -> None:
        nonlocal count
        count += 1
        if count < 4:
            request.answer(status, b"busy", Retry_After="0")
        else:
            request.answer(200, DATA)

    with remote(respond) as place:
        assert read(place) == DATA
    assert count == 4


def test_patience_ends() -> None:
    seen = []

    def respond(request: Served) -> None:
        seen.append(request.path)
        request.answer(
            429, b'{"errors":[{"code":"TOOMANYREQUESTS","message":"pull\\u001b[31m rate"}]}', Retry_After="0"
        )

    with (
        remote(respond) as place,
        pytest.raises(RegistryError, match=r"429 TOOMANYREQUESTS: pull \[31m rate") as caught,
    ):
        place.manifest("1")
    assert (caught.value.status, caught.value.registry_code, caught.value.temporary) == (429, "TOOMANYREQUESTS", True)
    assert len(seen) == QUICK["attempts"]


def test_nobody_waits_for_hours() -> None:
    with (
        remote(lambda request: request.answer(503, b"", Retry_After="7200")) as place,
        pytest.raises(RegistryError, match="asks to come back in 7200 s"),
    ):
        place.manifest("1")


def test_dates_of_return_are_understood() -> None:
    seen = []

    def respond(request: Served) -> None:
        seen.append(0)
        words = {"Retry_After": "Wed, 21 Oct 2015 07:28:00 GMT"} if len(seen) < 2 else {}
        request.answer(503 if len(seen) < 2 else 200, DATA, **words)

    with remote(respond) as place:
        assert read(place) == DATA


# ── redirects and authorization ───────────────────────────────────────────────────────────────────────────────────


def test_a_redirect_to_another_host_does_not_carry_the_password() -> None:
    stored: list[Served] = []

    def store(request: Served) -> None:
        stored.append(request)
        request.answer(200, DATA)

    with serve(store) as storage:
        asked = []

        def respond(request: Served) -> None:
            asked.append(request.headers.get("authorization"))
            if asked[-1] is None:
                request.answer(401, b"", WWW_Authenticate='Basic realm="x"')
            else:
                request.answer(307, b"", Location=f"http://{storage}/x?signature=1")

        with remote(respond) as place:
            object.__setattr__(place.client.registries, "credentials", {place.endpoint.registry: (USER, PASSWORD)})
            assert read(place) == DATA
    assert len(asked) == 2
    assert (asked[1] or "").startswith("Basic ")
    assert [request.headers.get("authorization") for request in stored] == [None]
    assert stored[0].path == "/x?signature=1"


def test_redirects_do_not_go_round() -> None:
    with (
        remote(lambda request: request.answer(302, b"", Location=request.path)) as place,
        pytest.raises(RegistryError, match="more than 5 redirects"),
    ):
        read(place)


def test_tls_is_not_left(tmp_path: Path) -> None:
    made = certificate(tmp_path, "server")
    seen = []

    def respond(request: Served) -> None:
        seen.append(request.path)
        if "manifests" in request.path:
            request.answer(307, b"", Location="http://127.0.0.1:1/x")
        else:
            request.answer(401, b"", WWW_Authenticate='Bearer realm="http://127.0.0.1:1/token"')

    with serve(respond, made) as host:
        trusted = tmp_path / host
        trusted.mkdir()
        (trusted / "ca.crt").write_bytes(made.cert.read_bytes())
        with Client(Registries(certs=[tmp_path], auth_file=tmp_path / "none", **QUICK)) as client:
            place = client.origin(parse_reference(f"{host}/a"))
            with pytest.raises(RegistryError, match=r"the redirect is .* not encrypted although"):
                place.manifest("1")
            with pytest.raises(RegistryError, match=r"the realm of its challenge is .* not encrypted although"):
                read(place)
        with (
            Client(Registries(auth_file=tmp_path / "none", **QUICK)) as client,
            pytest.raises(RegistryError, match=r"its certificate is not trusted.*ca\.crt"),
        ):
            client.origin(parse_reference(f"{host}/a")).manifest("1")
        with (
            Client(Registries(insecure=[host], auth_file=tmp_path / "none", **QUICK)) as client,
            pytest.raises(RegistryError, match="not encrypted"),
        ):
            client.origin(parse_reference(f"{host}/a")).manifest("1")


def test_a_plain_registry_is_found_after_https() -> None:
    with (
        serve(lambda request: request.answer(200, DATA, Content_Type=MANIFEST)) as host,
        Client(Registries(auth_file="/nonexistent", **QUICK)) as client,
    ):
        assert client.origin(parse_reference(f"{host}/a")).manifest("1").digest == digest_of(DATA)


def test_who_is_not_there_is_told_by_both_ways() -> None:
    with (
        Client(Registries(auth_file="/nonexistent", **QUICK)) as client,
        pytest.raises(RegistryError, match=r"127\.0\.0\.1:1: by https: Connection refused; by http: Connection"),
    ):
        client.origin(parse_reference("127.0.0.1:1/a")).manifest("1")


def test_tokens_are_asked_for_once_by_many_threads_and_renewed() -> None:
    tokens: list[Served] = []
    valid = "first"

    def issue(request: Served) -> None:
        tokens.append(request)
        request.answer(200, json.dumps({"access_token": valid, "expires_in": 300}).encode())

    with serve(issue) as issuer:

        def respond(request: Served) -> None:
            if request.headers.get("authorization") != f"Bearer {valid}":
                challenge = f'Bearer realm="http://{issuer}/token",service="s",scope="repository:team/app:pull"'
                request.answer(401, b"", WWW_Authenticate=challenge)
            else:
                request.answer(200, DATA)

        with remote(respond) as place:
            results: list[bytes] = []
            threads = [threading.Thread(target=lambda: results.append(read(place))) for _ in range(6)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            assert results == [DATA] * 6
            assert len(tokens) == 1
            assert tokens[0].query == {"service": ["s"], "scope": ["repository:team/app:pull,push"]}
            valid = "second"  # the first one is worth nothing any more
            assert read(place) == DATA
            assert len(tokens) == 2


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"[]", "should be an object"),
        (b"{}", "no usable token"),
        (b'{"token": "a\\r\\nX: y"}', "no usable token"),
        (b'{"token": 1}', "no usable token"),
        (b"{" * 1000, "not valid JSON|nested"),
        (b'{"token": "' + b"a" * (2 << 20) + b'"}', "more than the"),
    ],
)
def test_token_servers_are_not_trusted(body: bytes, words: str) -> None:
    with serve(lambda request: request.answer(200, body)) as issuer:

        def respond(request: Served) -> None:
            request.answer(401, b"", WWW_Authenticate=f'Bearer realm="http://{issuer}/"')

        with remote(respond) as place, pytest.raises(RegistryError, match=words):
            place.manifest("1")


@pytest.mark.parametrize("header", ["", "Negotiate", 'Bearer service="x"', 'Bearer realm="ftp://x"', 'Basic realm="x"'])
def test_challenges_without_an_answer(header: str) -> None:
    with (
        remote(lambda request: request.answer(401, b"", WWW_Authenticate=header)) as place,
        pytest.raises(RegistryError, match=r"pycontainer login|no URL"),
    ):
        place.manifest("1")


def test_a_403_says_what_to_do() -> None:
    with (
        remote(lambda request: request.answer(403, b'{"errors":[{"code":"DENIED","message":"no"}]}')) as place,
        pytest.raises(Unauthorized, match=r"403 DENIED: no .*pycontainer login"),
    ):
        place.manifest("1")


def test_proxies_are_used_for_others_than_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Served] = []

    def proxy(request: Served) -> None:
        asked.append(request)
        request.answer(403 if request.method == "CONNECT" else 200, DATA, Content_Type=MANIFEST)

    with serve(proxy) as host, serve(lambda request: request.answer(200, b"{}")) as local:
        plain = ["http://registry.test:5000", f"http://{local}"]
        with Client(Registries(insecure=plain, proxy=f"me:p%40ss@{host}", auth_file="/nonexistent", **QUICK)) as client:
            assert client.origin(parse_reference("registry.test:5000/a")).manifest("1").data == DATA
            assert client.origin(parse_reference(f"{local}/a")).manifest("1").data == b"{}"
            with pytest.raises(RegistryError, match=r"registry.test: .*403"):
                client.origin(parse_reference("registry.test/a")).manifest("1")
        assert asked[0].path == "http://registry.test:5000/v2/a/manifests/1"
        assert asked[0].headers["proxy-authorization"] == "Basic " + base64.b64encode(b"me:p@ss").decode()
        assert asked[-1].path == "registry.test:443"

        asked.clear()
        monkeypatch.setenv("http_proxy", f"http://{host}")
        monkeypatch.setenv("no_proxy", "other.test")
        with Client(Registries(insecure=plain, auth_file="/nonexistent", **QUICK)) as client:
            assert client.origin(parse_reference("registry.test:5000/a")).manifest("1").data == DATA
        assert len(asked) == 1
        monkeypatch.setenv("no_proxy", "test")
        with (
            Client(Registries(insecure=plain, auth_file="/nonexistent", **QUICK)) as client,
            pytest.raises(RegistryError, match=r"registry\.test:5000: "),  # there is no such host
        ):
            client.origin(parse_reference("registry.test:5000/a")).manifest("1")
        assert len(asked) == 1


def test_addresses_of_version_6() -> None:
    with serve(lambda request: request.answer(200, DATA, Content_Type=MANIFEST), address="::1") as host:
        assert host.startswith("[::1]:")
        with Client(Registries(auth_file="/nonexistent", **QUICK)) as client:
            assert client.origin(parse_reference(f"{host}/a")).manifest("1").data == DATA


# ── manifests ─────────────────────────────────────────────────────────────────────────────────────────────────────


def test_manifests_are_what_their_digest_says() -> None:
    said = digest_of(DATA)
    with remote(lambda request: request.answer(200, b"{}", Docker_Content_Digest=said)) as place:
        for name in ("1", said):
            with pytest.raises(DigestMismatch, match=r"the manifest of .*/team/app"):
                place.manifest(name)
    with remote(lambda request: request.answer(200, b"{}", Docker_Content_Digest="nonsense")) as place:
        assert place.manifest("1").digest == digest_of(b"{}")
        wanted = "sha512:" + hashlib.sha512(b"{}").hexdigest()
        assert place.manifest(wanted).digest == wanted


def test_floods_are_cut() -> None:
    def respond(request: Served) -> None:
        request.answer(200, b"", Content_Length=str(1 << 40))
        for _ in range(100):
            request.handler.wfile.write(b" " * (1 << 20))

    with remote(respond) as place, pytest.raises(RegistryError, match=f"more than the {MAX_DOCUMENT} bytes"):
        place.manifest("1")


def test_drops_are_cut() -> None:
    def respond(request: Served) -> None:
        request.answer(200, b"", Content_Length="1000")
        for _ in range(20):
            request.handler.wfile.write(b" ")
            request.handler.wfile.flush()
            time.sleep(0.1)

    with remote(respond, attempts=1) as place, pytest.raises(RegistryError, match=r"no whole answer within 0\.5 s"):
        place.manifest("1")


def test_a_compressed_answer_is_not_unpacked() -> None:
    bomb = gzip.compress(bytes(50 << 20))
    with remote(lambda request: request.answer(200, bomb, Content_Encoding="gzip")) as place:
        assert place.manifest("1").data == bomb


def test_missing_ones_are_told_apart() -> None:
    with remote(lambda request: request.answer(404, b'{"errors":[{"code":"MANIFEST_UNKNOWN"}]}')) as place:
        with pytest.raises(ManifestUnknown, match="check the name and the tag"):
            place.manifest("1")
        with pytest.raises(ManifestUnknown):
            place.head("1")
        assert place.blob_size(digest_of(DATA)) is None


@pytest.mark.parametrize("generation", ["new", "old"])
def test_referrers_come_by_both_ways(generation: str) -> None:
    subject = digest_of(DATA)
    entry = {"mediaType": MANIFEST, "digest": digest_of(b"sig"), "size": 3, "artifactType": "application/sig"}
    index = json.dumps({"schemaVersion": 2, "mediaType": INDEX, "manifests": [entry]}).encode()
    seen = []

    def respond(request: Served) -> None:
        seen.append(request.path)
        old = "/referrers/" in request.path and generation == "old"
        request.answer(404 if old else 200, b"" if old else index, Content_Type=INDEX)

    with remote(respond) as place:
        (found,) = place.referrers(subject)
        assert (found.digest, found.artifact_type) == (entry["digest"], "application/sig")
        assert place.referrers(subject, "application/other") == []
    if generation == "old":
        assert seen[-1] == f"/v2/team/app/manifests/sha256-{subject[7:]}"


# ── lists ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_lists_have_pages() -> None:
    def respond(request: Served) -> None:
        page = int(request.query.get("last", ["0"])[0])
        words = {"Link": f'</v2/team/app/tags/list?n=2&last={page + 1}>; rel="next"'} if page < 3 else {}
        request.answer(200, json.dumps({"tags": [f"t{page}"]}).encode(), **words)

    with remote(respond) as place:
        assert list(place.tags()) == ["t0", "t1", "t2", "t3"]


@pytest.mark.parametrize(
    ("link", "words"),
    [
        ('</v2/team/app/tags/list?n=1000>; rel="next"', "goes on at .* refused"),
        ('<http://127.0.0.1:1/>; rel="next"', "goes on at .* refused"),
        ('<ftp://x/>; rel="next"', "no URL"),
    ],
)
def test_lists_stay_where_they_are(link: str, words: str) -> None:
    with (
        remote(lambda request: request.answer(200, b'{"tags": null}', Link=link)) as place,
        pytest.raises(RegistryError, match=words),
    ):
        list(place.tags())


def test_lists_are_bounded_and_harmless() -> None:
    many = json.dumps({"tags": [f"t{number}" for number in range(60_000)]}).encode()

    def respond(request: Served) -> None:
        page = int(request.query.get("last", ["0"])[0])
        request.answer(200, many, Link=f'</v2/team/app/tags/list?n=1&last={page + 1}>; rel="next"')

    with remote(respond) as place, pytest.raises(RegistryError, match="more than 100000 names"):
        list(place.tags())
    odd = json.dumps({"tags": ["good", "\x1b[31m", "-x", "a" * 300, ""]}).encode()
    with remote(lambda request: request.answer(200, odd)) as place:
        assert list(place.tags()) == ["good"]


def test_searches_know_results_and_lists() -> None:
    def respond(request: Served) -> None:
        if request.path.startswith("/v1/"):
            body = {
                "results": [
                    {"name": "a/b", "description": "x\n \x1b[31my", "star_count": 3, "is_official": True},
                    {"x": 1},
                ]
            }
            request.answer(200 if modern else 404, json.dumps(body).encode())
        else:
            request.answer(200, b'{"repositories": ["team/app", "other"]}')

    for modern in (True, False):
        with remote(respond) as place:
            found = search(place.client, "APP", place.endpoint.registry)
            names = [item.name.removeprefix(f"{place.endpoint.registry}/") for item in found]
            assert names == (["a/b"] if modern else ["team/app"])
            assert found[0].description == ("x [31my" if modern else "")


_ANSWERS = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["tags", "results", "name", "errors", "manifests", "digest"]), inner, max_size=4
        )
    ),
    max_leaves=8,
).map(lambda value: json.dumps(value).encode())
ANSWER: tuple[int, bytes] = (200, b"")


@pytest.fixture(scope="module")
def fuzzed() -> Iterator[Remote]:
    with remote(lambda request: request.answer(ANSWER[0], ANSWER[1], Content_Type=INDEX), attempts=1) as place:
        yield place


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=30, deadline=None)
@given(status=st.sampled_from([200, 201, 204, 400, 401, 404, 500]), body=_ANSWERS | st.binary(max_size=50))
def test_any_answer_is_a_value_or_a_clear_error(fuzzed: Remote, status: int, body: bytes) -> None:
    global ANSWER  # noqa: PLW0603 - the server of the fixture sends it
    ANSWER = (status, b"" if status == 204 else body)
    for ask in (
        lambda: list(fuzzed.tags()),
        lambda: fuzzed.manifest("1"),
        lambda: fuzzed.head("1"),
        lambda: fuzzed.referrers(digest_of(b"")),
        lambda: search(fuzzed.client, "x", fuzzed.endpoint.registry),
        lambda: fuzzed.upload(digest_of(b"x"), 1, lambda _offset: io.BytesIO(b"x")),
    ):
        shown = ""
        try:
            ask()
        except ImageError as error:
            shown = str(error)
        assert shown.isprintable()


# ── ends ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_closing_ends_what_waits_in_other_threads() -> None:
    reached = threading.Event()
    release = threading.Event()

    def respond(request: Served) -> None:
        request.answer(200, DATA[:100], Content_Length=str(len(DATA)))
        request.handler.wfile.flush()
        reached.set()
        release.wait(10)

    with remote(respond, read_timeout=30.0) as place:
        failed: list[BaseException] = []

        def wait() -> None:
            try:
                read(place)
            except RegistryError as error:
                failed.append(error)

        thread = threading.Thread(target=wait)
        thread.start()
        assert reached.wait(5)
        began = time.monotonic()
        place.client.close()
        thread.join(5)
        release.set()
        assert not thread.is_alive()
        assert time.monotonic() - began < 2
        assert len(failed) == 1
