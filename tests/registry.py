"""Registries for tests: Debian's docker-registry in all its ways, a token server, and a proxy that does harm."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import shutil
import socket
import ssl
import subprocess
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Self
from urllib.parse import parse_qs, urlsplit

import attrs
import pytest

__all__ = ["PASSWORD", "USER", "Harm", "HarmfulProxy", "Registry", "Served", "TokenServer", "certificate", "serve"]

USER, PASSWORD = "tester", "secret"
_HTPASSWD = f"{USER}:$2y$05$abcdefghijklmnopqrstuuOQiyCxlgf/oeuTqixKmWdcYUh4Hjl0a\n"  # bcrypt of PASSWORD, a fixed salt


def openssl(*arguments: str | Path, data: bytes | None = None) -> bytes:
    if shutil.which("openssl") is None:
        pytest.skip("openssl is not installed")
    words = ["openssl", *map(str, arguments)]
    done = subprocess.run(words, input=data, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout


@attrs.frozen
class Certificate:
    """A key with its certificate, signed by an authority or by itself."""

    key: Path
    cert: Path


def certificate(directory: Path, name: str, authority: Certificate | None = None) -> Certificate:
    """Make a certificate for this machine."""
    made = Certificate(directory / f"{name}.key", directory / f"{name}.crt")
    words: list[str | Path] = ["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"]
    words += ["-keyout", made.key, "-out", made.cert, "-subj", f"/CN={name}", "-days", "2"]
    words += ["-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1,IP:::1"]
    if authority is not None:
        words += ["-CA", authority.cert, "-CAkey", authority.key, "-addext", "basicConstraints=critical,CA:FALSE"]
    openssl(*words)
    return made


class Registry:
    """One docker-registry process on a free port of the loopback.

    Args:
        directory: for its content.
        auth: lines of its configuration's ``auth``.
        tls: its certificate.
        clients: the authority of the client certificates that it wants.
        deletes: whether it deletes.
    """

    def __init__(
        self,
        directory: Path,
        *,
        auth: str = "",
        tls: Certificate | None = None,
        clients: Path | None = None,
        deletes: bool = True,
    ) -> None:
        self.directory = directory
        self.port = _free_port()
        self.host = f"localhost:{self.port}"
        lines = ["version: 0.1", "log: {accesslog: {disabled: true}, level: error}"]
        delete = f"delete: {{enabled: {str(deletes).lower()}}}"
        lines += [f"storage: {{filesystem: {{rootdirectory: {directory / 'data'}}}, {delete}}}"]
        lines += [f"http:\n  addr: 127.0.0.1:{self.port}\n  relativeurls: true\n  secret: test"]
        if tls is not None:
            lines += [f"  tls:\n    certificate: {tls.cert}\n    key: {tls.key}"]
        if clients is not None:
            lines += [f"    clientcas: [{clients}]"]
        self._config = "\n".join([*lines, auth, ""])

    def __enter__(self) -> Self:
        if shutil.which("docker-registry") is None:
            pytest.skip("docker-registry is not installed")
        self.directory.mkdir(parents=True, exist_ok=True)
        path = self.directory / "config.yml"
        path.write_text(self._config)
        with (self.directory / "log").open("wb") as log:
            self._process = subprocess.Popen(["docker-registry", "serve", str(path)], stdout=log, stderr=log)
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline and self._process.poll() is None:
            with contextlib.suppress(OSError):
                socket.create_connection(("127.0.0.1", self.port), 1).close()
                return self
            time.sleep(0.02)
        self.__exit__()
        pytest.fail(f"docker-registry did not start: {(self.directory / 'log').read_text()}")

    def __exit__(self, *_exc: object) -> None:
        self._process.kill()
        self._process.wait()

    def log(self) -> str:
        return (self.directory / "log").read_text()

    @classmethod
    def basic(cls, directory: Path, **options: Any) -> Registry:
        """Make one that wants USER and PASSWORD."""
        directory.mkdir(parents=True, exist_ok=True)
        (directory / "htpasswd").write_text(_HTPASSWD)
        return cls(directory, auth=f"auth: {{htpasswd: {{realm: test, path: {directory / 'htpasswd'}}}}}", **options)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


# ── servers of our own ────────────────────────────────────────────────────────────────────────────────────────────


@attrs.define
class Served:
    """A request that a server of ours got, and how to answer it."""

    method: str
    path: str
    headers: dict[str, str]
    body: bytes
    handler: BaseHTTPRequestHandler

    @property
    def query(self) -> dict[str, list[str]]:
        return parse_qs(urlsplit(self.path).query)

    def answer(self, status: int, body: bytes = b"", **headers: str) -> None:
        """Answer it; underscores in the names of headers are hyphens."""
        self.handler.send_response(status)
        for name, value in headers.items():
            self.handler.send_header(name.replace("_", "-"), value)
        if "Content_Length" not in headers:
            self.handler.send_header("Content-Length", str(len(body)))
        self.handler.end_headers()
        if self.method != "HEAD":
            self.handler.wfile.write(body)

    def cut(self) -> None:
        """Break the connection."""
        with contextlib.suppress(OSError):
            self.handler.wfile.flush()
            self.handler.connection.shutdown(socket.SHUT_RDWR)
        self.handler.close_connection = True


@contextmanager
def serve(
    respond: Callable[[Served], object], tls: Certificate | None = None, address: str = "127.0.0.1"
) -> Iterator[str]:
    """Run an HTTP server on the loopback for a block; give its ``host:port``."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        timeout = 20

        def _respond(self) -> None:
            length = int(self.headers.get("Content-Length") or 0)
            body = self.rfile.read(length)
            names = {name.lower() for name in self.headers}
            headers = {name: ", ".join(self.headers.get_all(name, [])) for name in names}
            with contextlib.suppress(ConnectionError):
                respond(Served(self.command, self.path, headers, body, self))

        do_GET = do_HEAD = do_POST = do_PUT = do_PATCH = do_DELETE = do_CONNECT = _respond  # noqa: N815 - names of the base class

        def log_message(self, *_arguments: object) -> None:
            pass

    class Server(ThreadingHTTPServer):
        address_family = socket.AF_INET6 if ":" in address else socket.AF_INET

        def handle_error(self, *_arguments: object) -> None:
            pass  # clients go away: that is what is tested

    with Server((address, 0), Handler) as server:
        if tls is not None:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(tls.cert, tls.key)
            server.socket = context.wrap_socket(server.socket, server_side=True)
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield f"{f'[{address}]' if ':' in address else address}:{server.server_address[1]}"
        finally:
            server.shutdown()
            thread.join()


class TokenServer:
    """Gives tokens that docker-registry takes: JSON web tokens signed with a key of its own. A context manager.

    Args:
        directory: for the key.
        lifetime: seconds, as it says and as the registry believes.
        anonymous: whether it lets read without a user.
    """

    def __init__(self, directory: Path, *, lifetime: int = 300, anonymous: bool = False) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self.key = certificate(directory, "token")
        self.lifetime = lifetime
        self.anonymous = anonymous
        self.requests: list[Served] = []
        self.refresh_token = "refresh-me"  # noqa: S105 - of a test
        self._lock = threading.Lock()

    def __enter__(self) -> Self:
        self._stack = contextlib.ExitStack()
        self.host = self._stack.enter_context(serve(self._respond))
        return self

    def __exit__(self, *_exc: object) -> None:
        self._stack.close()

    @property
    def auth(self) -> str:
        """Lines for a registry's configuration."""
        realm = f"realm: http://{self.host}/token, service: test, issuer: tester, rootcertbundle: {self.key.cert}"
        return f"auth: {{token: {{{realm}}}}}"

    def _respond(self, request: Served) -> None:
        with self._lock:
            self.requests.append(request)
        basic = "Basic " + base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode()
        if request.method == "POST":
            fields = parse_qs(request.body.decode())
            known = fields.get("refresh_token") == [self.refresh_token]
            scopes = fields.get("scope", [""])[0].split()
        else:
            known = request.headers.get("authorization") == basic
            scopes = request.query.get("scope", [])
            if request.headers.get("authorization") not in (None, basic):
                request.answer(401, b'{"details": "incorrect username or password"}')
                return
        if not known and (request.method == "POST" or not self.anonymous):
            request.answer(401, b'{"details": "incorrect username or password"}')
            return
        answer = {"token": self.token(scopes, full=known), "expires_in": self.lifetime}
        if known and request.query.get("offline_token"):
            answer["refresh_token"] = self.refresh_token
        request.answer(200, json.dumps(answer).encode(), Content_Type="application/json")

    def token(self, scopes: Sequence[str], *, full: bool = True) -> str:
        """Make a token for some scopes."""
        access = []
        for scope in scopes:
            kind, _, rest = scope.partition(":")
            name, _, actions = rest.rpartition(":")
            wanted = [action for action in actions.split(",") if full or action == "pull"]
            access.append({"type": kind, "name": name, "actions": wanted})
        now = int(time.time())
        claims = {"iss": "tester", "sub": USER, "aud": "test", "exp": now + self.lifetime, "nbf": now - 10, "iat": now}
        claims |= {"jti": hashlib.sha256(str(time.time_ns()).encode()).hexdigest(), "access": access}
        pem = self.key.cert.read_text().split("-----")[2].replace("\n", "")
        head = {"typ": "JWT", "alg": "ES256", "x5c": [pem]}
        text = ".".join(_base64url(json.dumps(part).encode()) for part in (head, claims))
        der = openssl("dgst", "-sha256", "-sign", self.key.key, data=text.encode())
        return f"{text}.{_base64url(_raw_signature(der))}"


def _base64url(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def _raw_signature(der: bytes) -> bytes:
    """Turn an ECDSA signature from DER to the two numbers of JWS."""
    first = der[3]
    second = der[5 + first]
    numbers = (der[4 : 4 + first], der[6 + first : 6 + first + second])
    return b"".join(number.lstrip(b"\0").rjust(32, b"\0") for number in numbers)


Harm = Callable[[Served, bytes], "str | tuple[str, int]"]


class HarmfulProxy:
    """Stands before a registry and does what a plan says to each answer. A context manager.

    The plan is called with the request and the whole answer's body and says: ``"pass"``, ``("cut", N)`` after N bytes,
    ``("flip", N)`` the byte N, ``("status", CODE)`` instead, ``("stall", N)`` after N bytes, or ``("silence", 0)``: no
    answer.

    Args:
        upstream: ``host:port`` of the registry.
        plan: what to do.
        challenge: sent with a status of 401.
    """

    def __init__(self, upstream: str, plan: Harm, challenge: str = "") -> None:
        self.upstream = upstream
        self.plan = plan
        self.challenge = challenge
        self.requests: list[Served] = []
        self._lock = threading.Lock()
        self._ended = threading.Event()

    def __enter__(self) -> Self:
        self._stack = contextlib.ExitStack()
        self.host = self._stack.enter_context(serve(self._respond))
        self._stack.callback(self._ended.set)
        return self

    def __exit__(self, *_exc: object) -> None:
        self._stack.close()

    def asked(self, method: str, part: str) -> int:
        """Count the requests with a method, and a part in their paths."""
        with self._lock:
            return sum(1 for request in self.requests if request.method == method and part in request.path)

    def _respond(self, request: Served) -> None:
        with self._lock:
            self.requests.append(request)
        headers = {name: value for name, value in request.headers.items() if name not in ("host", "connection")}
        asked = urllib.request.Request(
            f"http://{self.upstream}{request.path}", request.body or None, headers, method=request.method
        )
        opener = urllib.request.build_opener(_NoErrors, urllib.request.ProxyHandler({}))
        with opener.open(asked, timeout=20) as response:
            body = response.read()
            given = {
                name: value
                for name, value in response.headers.items()
                if name.lower() not in ("connection", "transfer-encoding", "date", "content-length")
            }
            given["Content-Length"] = response.headers.get("Content-Length") or str(len(body))
            self._harm(request, response.status, given, body)

    def _harm(self, request: Served, status: int, headers: dict[str, str], body: bytes) -> None:
        harm = self.plan(request, body)
        kind, number = (harm, 0) if isinstance(harm, str) else harm
        if kind == "status":
            words = {429: {"Retry_After": "0"}, 401: {"WWW_Authenticate": self.challenge}}.get(number, {})
            request.answer(number, b'{"errors":[{"code":"TOOMANYREQUESTS","message":"slow down"}]}', **words)
            return
        if kind == "silence":
            self._ended.wait(10)
            request.cut()
            return
        if kind == "flip":
            body = body[:number] + bytes([body[number] ^ 1]) + body[number + 1 :]
        handler = request.handler
        handler.send_response(status)
        for name, value in headers.items():
            handler.send_header(name, value)
        handler.end_headers()
        if request.method == "HEAD":
            return
        if kind in ("cut", "stall"):
            handler.wfile.write(body[:number])
            if kind == "stall":
                handler.wfile.flush()
                self._ended.wait(10)
            request.cut()
            return
        handler.wfile.write(body)


class _NoErrors(urllib.request.HTTPErrorProcessor):
    def http_response(self, request: Any, response: Any) -> Any:  # noqa: ARG002 - of the base class
        return response

    https_response = http_response
