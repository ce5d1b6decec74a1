"""HTTP as a client of registries needs it: bounded answers, patience, redirects; by urllib3, imported with this module.

A :class:`Wire` sends requests and gives :class:`Answer` objects. What strangers send is bounded here: the length of an
answer, the time it takes, where it sends us. Authorization is :mod:`~.auth`'s.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import random
import re
import socket
import threading
import time
import weakref
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, NoReturn, Protocol, Self
from urllib.parse import SplitResult, unquote, urljoin, urlsplit
from urllib.request import getproxies_environment

import urllib3
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.connectionpool import HTTPConnectionPool, HTTPSConnectionPool
from urllib3.exceptions import HTTPError, IncompleteRead, NameResolutionError, SSLError

from pycontainer.distribution.hosts import Registries, bypasses_proxy
from pycontainer.errors import ImageError, ManifestUnknown, RegistryError, Unauthorized
from pycontainer.oci.image import parse_json

if TYPE_CHECKING:
    import ssl

    from urllib3.response import BaseHTTPResponse

__all__ = ["Answer", "Body", "Wire", "host_of", "origin_of", "printable", "resolve"]


class Readable(Protocol):
    """What a body is read from."""

    def read(self, size: int = -1, /) -> bytes:
        """Return the next bytes, ``b""`` at the end."""


Body = bytes | Readable

_TEMPORARY = frozenset({408, 429, 500, 502, 503, 504})
_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_MAX_REDIRECTS = 5
_MAX_URL = 16 << 10  # signed URLs of object stores are long
_MAX_ERROR = 64 << 10
_MAX_PATIENCE = 120.0  # seconds that a registry may have us wait
_MAX_BACKOFF = 30.0
_PIECE = 1 << 18
_SAID = 500  # characters of what a registry says that are shown
_UNPRINTABLE = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]+")
_BAD_URL = re.compile(r"[\x00-\x20\x7f-\U0010ffff\\]")


class Answer:
    """What a server answered: its head read, its body not yet. A context manager.

    Attributes:
        status: of HTTP.
        headers: by name, whatever their case.
        url: where it came from, after redirects.
    """

    def __init__(self, response: BaseHTTPResponse, url: str, action: str, patience: float) -> None:
        self.status = response.status
        self.headers = response.headers
        self.url = url
        self.action = action
        self._response = response
        self._patience = patience

    @property
    def host(self) -> str:
        """Who answered."""
        return host_of(self.url)

    def header(self, name: str) -> str:
        """Return a header, or ``""``."""
        return self.headers.get(name, "")

    def read(self, size: int = _PIECE) -> bytes:
        """Return the next bytes of the body as they come, ``b""`` at its end.

        Raises:
            RegistryError: the connection broke.
        """
        try:
            return self._response.read1(size, decode_content=False)
        except (HTTPError, OSError, ValueError) as error:
            _raise_cut(self.action, self.host, error)

    def body(self, limit: int) -> bytes:
        """Return the whole body.

        Args:
            limit: bytes allowed.

        Raises:
            RegistryError: it is larger, it takes too long, or the connection broke.
        """
        deadline = time.monotonic() + self._patience
        pieces: list[bytes] = []
        size = 0
        while piece := self.read():
            pieces.append(piece)
            size += len(piece)
            if size > limit:
                reason = f"the answer has more than the {limit} bytes that are accepted for it"
                raise RegistryError(self.action, self.host, reason, status=self.status)
            if time.monotonic() > deadline:
                reason = f"no whole answer within {self._patience:g} s"
                raise RegistryError(self.action, self.host, reason, temporary=True)
        return b"".join(pieces)

    def json(self, limit: int) -> Any:  # noqa: ANN401 - JSON has no static type
        """Return the body as JSON.

        Raises:
            RegistryError: it is none, or too large.
        """
        data = self.body(limit)
        try:
            return parse_json(data, "the answer", limit=limit)
        except ImageError as error:
            raise RegistryError(self.action, self.host, str(error), status=self.status) from None

    def retry_after(self) -> float:
        """Return how long the server wants us to wait, in seconds; RFC 9110, section 10.2.3."""
        text = self.header("Retry-After").strip()
        if text.isdecimal() and len(text) < 10:  # noqa: PLR2004 - more is no time
            return float(text)
        if not text:
            return 0.0
        from email.utils import parsedate_to_datetime

        try:
            return max(0.0, parsedate_to_datetime(text).timestamp() - time.time())
        except (ValueError, OverflowError, TypeError):
            return 0.0

    def refuse(self, hint: str = "") -> NoReturn:
        """Raise what a status means that is no success, with what the registry says about it."""
        codes, said = _complaint(self)
        reason = f"{self.status} {said or printable(self._response.reason or '')[:_SAID]}".strip()
        kind: type[RegistryError] = RegistryError
        if self.status in {401, 403} or codes[:1] in (["UNAUTHORIZED"], ["DENIED"]):
            kind = Unauthorized
        elif codes[:1] in (["MANIFEST_UNKNOWN"], ["NAME_UNKNOWN"]):
            kind = ManifestUnknown
        raise kind(
            self.action,
            self.host,
            reason,
            status=self.status,
            registry_code=codes[0] if codes else "",
            hint=hint,
            temporary=self.status in _TEMPORARY and self.retry_after() <= _MAX_PATIENCE,
            retry_after=self.retry_after(),
        )

    def close(self) -> None:
        """Give the connection back when the body was read, drop it otherwise."""
        response = self._response
        if response.length_remaining == 0:
            response.drain_conn()  # it has to be told that nothing comes
        else:
            response.close()
        response.release_conn()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.close()


def printable(text: str) -> str:
    """Return a text from a stranger as a line that does nothing to a terminal."""
    return _UNPRINTABLE.sub(" ", text)


def _complaint(answer: Answer) -> tuple[list[str], str]:
    """Return codes and words of an error document, see distribution-spec "Error codes"; of anything else, its start."""
    try:
        data = answer.body(_MAX_ERROR)
    except RegistryError:
        return [], ""  # the status says enough
    try:
        document = parse_json(data, "")
    except ImageError:
        text = "" if data.lstrip().startswith(b"<") else data.decode(errors="replace")
        return [], printable(text).strip()[:_SAID]
    errors = document.get("errors") if isinstance(document, dict) else None
    errors = [item for item in errors if isinstance(item, dict)] if isinstance(errors, list) else []
    codes = [str(item.get("code") or "")[:64] for item in errors]
    if not errors and isinstance(document, dict):  # token servers and proxies
        errors = [{"message": document.get("details") or document.get("message") or document.get("error")}]
    words = (f"{item.get('code') or ''}: {item.get('message') or ''}".strip(": ") for item in errors)
    return codes, printable("; ".join(filter(None, words)))[:_SAID]


def _raise_cut(action: str, host: str, error: Exception) -> NoReturn:
    """Raise an error of the connection: it may be gone with the next attempt, unless the certificate is the cause."""
    cause: BaseException = error
    while (deeper := getattr(cause, "reason", None) or cause.__cause__) and isinstance(deeper, BaseException):
        cause = deeper
    alert = "_ALERT_" in str(error)  # it did not like ours
    certificate = isinstance(error, SSLError) and "certificate" in str(error).lower() and not alert
    hint = ""
    if isinstance(error, IncompleteRead) or isinstance(cause, IncompleteRead):
        reason = "the connection was cut in the middle of the answer"
    elif certificate:
        reason = f"its certificate is not trusted: {printable(str(cause))}"
        hint = (
            f"put the authority's certificate into /etc/pycontainer/certs.d/{host}/ca.crt, or list the host as insecure"
        )
    elif alert:
        reason = f"it wants a client certificate: {printable(str(cause))}"
        hint = f"put client.cert and client.key into /etc/pycontainer/certs.d/{host}"
    else:
        words = (cause.strerror if isinstance(cause, OSError) else "") or str(cause) or type(cause).__name__
        reason = printable(words)[:_SAID]
    # A name that is not known, and what is no URL at all, stay so.
    lasting = certificate or alert or isinstance(error, NameResolutionError | ValueError)
    raise RegistryError(action, host, reason, hint=hint, temporary=not lasting) from error


# ── URLs ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def origin_of(url: str) -> tuple[str, str]:
    """Return what credentials are bound to: scheme and host."""
    parts = urlsplit(url)
    return parts.scheme, parts.netloc.lower()


def host_of(url: str) -> str:
    """Return the host of a URL, with its port where it has one."""
    return urlsplit(url).netloc


def resolve(base: str, target: str, action: str, what: str) -> str:
    """Return the URL that a server sends us to.

    Args:
        base: what was asked.
        target: what it answered, whole or relative.
        action: what was tried, for the message.
        what: the target, likewise.

    Raises:
        RegistryError: it is none, or it would have us leave TLS.
    """

    def refuse(reason: str) -> NoReturn:
        shown = printable(target)[:200]
        raise RegistryError(action, host_of(base), f"{what} is {shown!r}, {reason}")

    if not target or len(target) > _MAX_URL or _BAD_URL.search(target):
        refuse("which is no URL")
    try:
        url = urljoin(base, target)
        parts: SplitResult = urlsplit(url)
        known = bool(parts.hostname) and parts.port != 0 and parts.scheme in {"http", "https"}
    except ValueError:
        known = False
        parts, url = urlsplit(""), ""
    if not known:
        refuse("which is no URL of http or https")
    if parts.username is not None or parts.password is not None:
        refuse("which carries a user")
    if parts.scheme == "http" and urlsplit(base).scheme == "https":
        refuse("which is not encrypted although the registry is; refused")
    return url


# ── connections ───────────────────────────────────────────────────────────────────────────────────────────────────


@functools.cache
def _usual_context() -> ssl.SSLContext:
    """Return what trusts the system's authorities; it takes a while to read those."""
    import ssl

    return ssl.create_default_context()


class _Live:
    """The connections of a wire, and whether they are to end. Thread-safe.

    Attributes:
        stopped: set when nothing more is to be sent.
    """

    def __init__(self) -> None:
        self.stopped = threading.Event()
        self._lock = threading.Lock()
        self._connections: weakref.WeakSet[HTTPConnection] = weakref.WeakSet()

    def add(self, connection: HTTPConnection) -> None:
        """Count a connection among those to break."""
        with self._lock:
            self._connections.add(connection)

    def check(self, connection: HTTPConnection) -> None:
        """End a connection that was made while all were broken."""
        if self.stopped.is_set():
            connection.close()
            raise ConnectionAbortedError(errno.ECONNABORTED, "the transfer was ended")

    def break_all(self) -> None:
        """Break what waits for bytes in any thread."""
        self.stopped.set()
        with self._lock:
            connections = list(self._connections)
        for connection in connections:
            sock = getattr(connection, "sock", None)
            if sock is not None:
                with contextlib.suppress(OSError):  # closed meanwhile
                    sock.shutdown(socket.SHUT_RDWR)


class _Connection(HTTPConnection):
    """A connection that its wire can break from another thread."""

    def __init__(self, *arguments: Any, live: _Live, **options: Any) -> None:  # noqa: ANN401 - urllib3's
        super().__init__(*arguments, **options)
        self._live = live
        live.add(self)

    def connect(self) -> None:
        """Connect, unless all is to end."""
        super().connect()
        self._live.check(self)


class _SecureConnection(HTTPSConnection):
    """The same with TLS."""

    def __init__(self, *arguments: Any, live: _Live, **options: Any) -> None:  # noqa: ANN401 - urllib3's
        super().__init__(*arguments, **options)
        self._live = live
        live.add(self)

    def connect(self) -> None:
        """Connect, without urllib3's warning where no check is what was asked for."""
        super().connect()
        self.is_verified = True
        self._live.check(self)


def _pool_of(
    base: type[HTTPConnectionPool], kind: Callable[..., HTTPConnection], live: _Live
) -> type[HTTPConnectionPool]:
    def connect(*arguments: Any, **options: Any) -> HTTPConnection:  # noqa: ANN401 - urllib3's
        return kind(*arguments, live=live, **options)

    return type(base.__name__, (base,), {"ConnectionCls": staticmethod(connect)})


class Wire:
    """Sends requests. Thread-safe; a context manager.

    Args:
        registries: how registries are reached.
    """

    def __init__(self, registries: Registries) -> None:
        self.registries = registries
        self._live = _Live()
        self._managers: dict[tuple[str, str, str], urllib3.PoolManager] = {}
        self._lock = threading.Lock()
        self._stopped = self._live.stopped
        self._unchecked: set[str] = set()

    def interrupt(self) -> None:
        """Break what is under way in any thread; nothing more is sent until :meth:`resume`."""
        self._live.break_all()

    def resume(self) -> None:
        """Allow requests again."""
        self._stopped.clear()

    def close(self) -> None:
        """Break what is under way in any thread, and close all connections."""
        self.interrupt()
        with self._lock:
            for manager in self._managers.values():
                manager.clear()
            self._managers.clear()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.close()

    def trust(self, host: str) -> None:
        """Do not check the certificate of a host: it is listed as insecure."""
        self._unchecked.add(host.lower())

    # ── requests ──

    def request(
        self,
        method: str,
        url: str,
        headers: Mapping[str, str],
        *,
        action: str,
        body: Body | None = None,
        attempts: int | None = None,
        patience: float = 1.0,
        seconds: float | None = None,
    ) -> Answer:
        """Send a request, follow redirects of what only reads, try again what may pass.

        Args:
            method: of HTTP.
            url: whole.
            headers: the ``Authorization`` among them goes to this URL's host only.
            action: what this is, for messages.
            body: bytes, or a stream when ``attempts`` is 1.
            attempts: instead of the registries' own.
            patience: how many times the read timeout the answer may take.
            seconds: instead of all timeouts.

        Returns:
            The answer, whatever its status.

        Raises:
            RegistryError: nobody answers, or not by the rules.
        """
        known = self.registries
        limits = (seconds or known.connect_timeout, seconds or known.read_timeout * patience)
        count = attempts or self.registries.attempts
        for number in range(1, count + 1):
            last = number == count
            try:
                answer = self._follow(method, url, headers, action, body, limits)
            except RegistryError as error:
                if last or not error.temporary or self._stopped.is_set():
                    raise
                self.wait(number)
                continue
            if last or answer.status not in _TEMPORARY:
                return answer
            delay = answer.retry_after()
            if delay > _MAX_PATIENCE:
                with answer:
                    answer.refuse(f"it asks to come back in {delay:.0f} s")
            answer.close()
            self.wait(number, delay)
        raise AssertionError(attempts)  # the last attempt returns or raises

    def wait(self, number: int, at_least: float = 0.0) -> None:
        """Wait after a failed attempt: longer each time, and not in step with others.

        Args:
            number: of the attempt that failed, from 1.
            at_least: seconds.

        Raises:
            RegistryError: the wire was closed meanwhile.
        """
        backoff = min(_MAX_BACKOFF, self.registries.backoff * 2.0 ** min(number - 1, 16))
        if self._stopped.wait(max(at_least, backoff * random.uniform(0.5, 1.5))):  # noqa: S311 - no secret
            raise RegistryError("wait for the next attempt", "this host", "the transfer was ended")

    def _follow(
        self,
        method: str,
        url: str,
        headers: Mapping[str, str],
        action: str,
        body: Body | None,
        limits: tuple[float, float],
    ) -> Answer:
        for _ in range(_MAX_REDIRECTS + 1):
            answer = self._send(method, url, headers, action, body, limits)
            if answer.status not in _REDIRECTS or method not in {"GET", "HEAD"}:
                return answer
            with answer:
                target = resolve(url, answer.header("Location"), action, "the redirect")
            if origin_of(target) != origin_of(url):
                headers = {name: value for name, value in headers.items() if name.lower() != "authorization"}
            url = target
        raise RegistryError(action, host_of(url), f"more than {_MAX_REDIRECTS} redirects")

    def _send(
        self,
        method: str,
        url: str,
        headers: Mapping[str, str],
        action: str,
        body: Body | None,
        limits: tuple[float, float],
    ) -> Answer:
        manager = self._manager(url)
        timeout = urllib3.Timeout(connect=limits[0], read=limits[1])
        try:
            response = manager.urlopen(
                method,
                url,
                body=body,
                headers={"User-Agent": "pycontainer", "Accept-Encoding": "identity", **headers},
                redirect=False,
                retries=False,
                preload_content=False,
                decode_content=False,
                timeout=timeout,
            )
        except (HTTPError, OSError, ValueError) as error:
            _raise_cut(action, host_of(url), error)
        return Answer(response, url, action, limits[1])

    # ── connections ──

    def _manager(self, url: str) -> urllib3.PoolManager:
        scheme, host = origin_of(url)
        # Certificates may belong to a host; hosts without any of their own share a manager.
        owner = host if scheme == "https" and self._is_special(host) else ""
        proxy = self._proxy(scheme, host)
        with self._lock:
            if self._stopped.is_set():
                raise RegistryError("connect", host, "the transfer was ended")
            manager = self._managers.get((scheme, owner, proxy))
            if manager is None:
                context = self._context(owner) if scheme == "https" else None
                manager = self._managers[scheme, owner, proxy] = self._new_manager(proxy, context)
            return manager

    def _is_special(self, host: str) -> bool:
        certificates = self.registries.certificates(host)
        return host in self._unchecked or bool(certificates.authorities or certificates.clients)

    def _proxy(self, scheme: str, host: str) -> str:
        proxy = self.registries.proxy
        if proxy is None:
            found = getproxies_environment()  # leaves HTTP_PROXY out where a web server could have set it
            if bypasses_proxy(host, found.get("no", "")):
                return ""
            proxy = found.get(scheme) or found.get("all", "")
        elif bypasses_proxy(host, ""):
            return ""
        return proxy if "://" in proxy or not proxy else f"http://{proxy}"

    def _new_manager(self, proxy: str, context: ssl.SSLContext | None) -> urllib3.PoolManager:
        options: dict[str, Any] = {"num_pools": 16, "maxsize": self.registries.parallel + 1, "blocksize": _PIECE}
        if context is not None:
            options["ssl_context"] = context
        manager: urllib3.PoolManager
        if proxy:
            user = urlsplit(proxy)
            pair = f"{unquote(user.username)}:{unquote(user.password or '')}" if user.username is not None else None
            headers = urllib3.make_headers(proxy_basic_auth=pair) if pair else None
            try:
                manager = urllib3.ProxyManager(proxy, proxy_headers=headers, **options)
            except HTTPError as error:
                raise ValueError(f"use the proxy {user.hostname}: {error}; proxies are http:// or https://") from None
        else:
            manager = urllib3.PoolManager(**options)
        manager.pool_classes_by_scheme = {
            "http": _pool_of(HTTPConnectionPool, _Connection, self._live),
            "https": _pool_of(HTTPSConnectionPool, _SecureConnection, self._live),
        }
        return manager

    def _context(self, host: str) -> ssl.SSLContext:
        import ssl

        if not host:
            return _usual_context()
        context = ssl.create_default_context()
        certificates = self.registries.certificates(host)
        try:
            for path in certificates.authorities:
                context.load_verify_locations(path)
            for pair in certificates.clients:
                context.load_cert_chain(*pair)
        except (OSError, ssl.SSLError) as error:
            raise ValueError(f"read the certificates for {host}: {error}") from error
        if host in self._unchecked:
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
        return context
