"""Who we are, as registries want to be told: challenges, bearer tokens and their scopes, Basic.

See the distribution project's token authentication, RFC 6749, and RFC 9110 section 11. A server's challenge decides
where the registry's credentials go: only to an encrypted place when the registry is one.
"""

from __future__ import annotations

import base64
import re
import threading
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NoReturn
from urllib.parse import urlencode, urlsplit

import attrs

from pycontainer.distribution.wire import Answer, Wire, host_of, resolve
from pycontainer.errors import RegistryError, Unauthorized

if TYPE_CHECKING:
    from pycontainer.distribution.credentials import Credential

__all__ = ["Authorizer", "Challenge", "parse_challenges"]

_WORD = r"[!#$%&'*+\-.^_`|~0-9A-Za-z]++"
_END = r"(?=\s*+(?:,|$))"
# The next piece of a WWW-Authenticate header: a parameter or a scheme. Possessive: linear for whatever is sent.
_PIECE = re.compile(
    rf"""[\s,]*+(?:
        (?P<name>{_WORD})\s*+=\s*+(?:"(?P<quoted>(?:[^"\\]++|\\.)*+)"|(?P<plain>{_WORD})){_END}
        | (?P<scheme>{_WORD})(?:\s++[A-Za-z0-9\-._~+/]++=*+{_END})?+(?=[\s,]|$)
    )""",
    re.VERBOSE | re.DOTALL,
)
_MAX_HEADER = 16 << 10
_MAX_ANSWER = 1 << 20
_MAX_TOKEN = 64 << 10
_SAFE_TOKEN = re.compile(r"[\x21-\x7e]+")
_CLIENT = "pycontainer"
_SHORTEST, _LONGEST = 60.0, 24 * 3600.0  # seconds that a token is taken to be good; the first is the standard's
_EARLY = 0.9  # of its time a token is used


@attrs.frozen
class Challenge:
    """One way to identify oneself that a server offers.

    Attributes:
        scheme: in lower case.
        parameters: by name in lower case.
    """

    scheme: str
    parameters: dict[str, str] = attrs.field(factory=dict)


def parse_challenges(header: str) -> list[Challenge]:
    """Return the challenges of a ``WWW-Authenticate`` header; what breaks the grammar ends the list.

    >>> parse_challenges('Bearer realm="https://auth.example/token",service="r"')[0].parameters["service"]
    'r'
    """
    found: list[Challenge] = []
    position = 0
    text = header[:_MAX_HEADER]
    while match := _PIECE.match(text, position):
        position = match.end()
        if match["scheme"] is not None:
            found.append(Challenge(match["scheme"].lower()))
        elif not found:
            break
        else:
            value = (
                match["plain"] if match["quoted"] is None else re.sub(r"\\(.)", r"\1", match["quoted"], flags=re.DOTALL)
            )
            found[-1].parameters.setdefault(match["name"].lower(), value)
    return found


class Authorizer:
    """Makes ``Authorization`` headers for one registry. Thread-safe.

    Args:
        wire: sends the requests for tokens.
        registry: by the name that references carry, for messages.
        find: gives the credentials, when they are wanted.
        offline: ask for an identity token too, to be kept instead of a password.

    Attributes:
        identity_token: what came of that, or ``""``.
    """

    def __init__(
        self, wire: Wire, registry: str, find: Callable[[], Credential | None], *, offline: bool = False
    ) -> None:
        self._wire = wire
        self._registry = registry
        self._find = find
        self._offline = offline
        self._lock = threading.Lock()
        self._basic: str | None = None
        self._challenge: Challenge | None = None
        self._base = ""
        self._tokens: dict[tuple[str, ...], tuple[str, float]] = {}
        self._known: Credential | None = None
        self._looked = False
        self.identity_token = ""

    def header(self, scopes: tuple[str, ...]) -> str | None:
        """Return what to send for some scopes, as far as earlier answers tell; a token that expired is renewed."""
        with self._lock:
            credential = self._credential() if self._looked else None
            if credential is not None and credential.registry_token:
                return f"Bearer {credential.registry_token}"
            if self._basic is not None:
                return self._basic
            if self._challenge is None:
                return None
            header, until = self._tokens.get(scopes, ("", 0.0))
            return header if time.monotonic() < until else self._fetch(scopes)

    def answer(self, refused: Answer, scopes: tuple[str, ...], sent: str | None) -> str:
        """Return what to send after a 401.

        Args:
            refused: the answer with the challenge.
            scopes: what is needed.
            sent: what was sent and refused.

        Raises:
            Unauthorized: there is nothing else to send.
            RegistryError: the challenge or the token server is broken.
        """
        challenges = parse_challenges(", ".join(refused.headers.getlist("WWW-Authenticate")))
        with self._lock:
            credential = self._credential()
            if credential is not None and credential.registry_token:
                header = f"Bearer {credential.registry_token}"
                if header == sent:
                    self._refuse(refused)
                return header
            held = self._basic or self._tokens.get(scopes, ("", 0.0))[0]
            if held and held != sent:
                return held  # another thread was quicker
            bearer = next((item for item in challenges if item.scheme == "bearer" and "realm" in item.parameters), None)
            if bearer is not None:
                self._challenge, self._base = bearer, refused.url
                self._tokens.pop(scopes, None)
                return self._fetch(scopes)
            if any(item.scheme == "basic" for item in challenges) and credential is not None and credential.username:
                header = _basic(credential)
                if header != sent:
                    self._basic = header
                    return header
                self._basic = None
            return self._refuse(refused)

    def _credential(self) -> Credential | None:
        if not self._looked:
            self._known = self._find()
            self._looked = True
        return self._known

    def _refuse(self, refused: Answer) -> NoReturn:
        refused.refuse(self.hint())

    def hint(self) -> str:
        """Return what a user may do when the registry refuses."""
        name = self._registry
        if self._known is not None:
            where = f" from {self._known.origin}" if self._known.origin else ""
            return f"the credentials{where} do not suffice; log in again: pycontainer login {name}"
        return f"it may not exist, or be for others only; log in: pycontainer login {name}"

    # ── tokens ──

    def _fetch(self, scopes: tuple[str, ...]) -> str:
        """Get a token for some scopes from the server that the challenge names; the lock is held."""
        challenge, credential = self._challenge, self._credential()
        assert challenge is not None  # noqa: S101 - every caller has seen to it
        action = f"get a token for {self._registry}"
        realm = resolve(self._base, challenge.parameters["realm"], action, "the realm of its challenge")
        asked = [*scopes, *_more(challenge.parameters.get("scope", ""), scopes)]
        fields = [(name, value) for name in ("service",) if (value := challenge.parameters.get(name))]
        if credential is not None and credential.identity_token:
            fields += [("client_id", _CLIENT), ("grant_type", "refresh_token"), ("scope", " ".join(asked))]
            fields += [("refresh_token", credential.identity_token)]
            headers = {"Content-Type": "application/x-www-form-urlencoded"}
            answer = self._wire.request("POST", realm, headers, action=action, body=urlencode(fields).encode())
        else:
            fields += [("scope", scope) for scope in asked]
            headers = {}
            if credential is not None and credential.username:
                fields += [("account", credential.username), ("client_id", _CLIENT)]
                fields += [("offline_token", "true")] if self._offline else []
                headers["Authorization"] = _basic(credential)
            url = realm + ("&" if urlsplit(realm).query else "?") + urlencode(fields)
            answer = self._wire.request("GET", url, headers, action=action)
        with answer:
            return self._keep(answer, scopes)

    def _keep(self, answer: Answer, scopes: tuple[str, ...]) -> str:
        if answer.status != 200:  # noqa: PLR2004 - of HTTP
            if answer.status in {400, 401, 403}:
                _refuse_token(answer, self.hint())
            answer.refuse(self.hint())
        document = answer.json(_MAX_ANSWER)
        if not isinstance(document, dict):
            raise RegistryError(answer.action, answer.host, "the answer should be an object")
        token = document.get("token") or document.get("access_token")
        if not isinstance(token, str) or not 0 < len(token) <= _MAX_TOKEN or not _SAFE_TOKEN.fullmatch(token):
            raise RegistryError(answer.action, answer.host, "there is no usable token in its answer")
        lifetime = document.get("expires_in")
        seconds = float(lifetime) if isinstance(lifetime, int | float) and not isinstance(lifetime, bool) else _SHORTEST
        refresh = document.get("refresh_token")
        if isinstance(refresh, str) and _SAFE_TOKEN.fullmatch(refresh) and len(refresh) <= _MAX_TOKEN:
            self.identity_token = refresh
        header = f"Bearer {token}"
        self._tokens[scopes] = (header, time.monotonic() + _EARLY * min(max(seconds, _SHORTEST), _LONGEST))
        return header


def _refuse_token(answer: Answer, hint: str) -> NoReturn:
    """Raise Unauthorized: OAuth 2 servers refuse with 400 too, RFC 6749 section 5.2."""
    try:
        answer.refuse(hint)
    except Unauthorized:
        raise
    except RegistryError as error:
        raise Unauthorized(
            error.action, host_of(answer.url), error.reason, status=error.status, hint=error.hint
        ) from None


def _more(scope: str, known: Sequence[str]) -> list[str]:
    return [item for item in scope.split(" ") if item and not _covered(item, known)][:16]


def _covered(item: str, known: Sequence[str]) -> bool:
    """Tell whether a scope asks for no more than another: ``repository:NAME:pull`` is part of ``…:pull,push``."""
    resource, _, actions = item.rpartition(":")
    wanted = set(actions.split(","))
    return any(
        other.rpartition(":")[0] == resource and wanted <= set(other.rpartition(":")[2].split(",")) for other in known
    )


def _basic(credential: Credential) -> str:
    pair = f"{credential.username}:{credential.password}".encode()
    return f"Basic {base64.b64encode(pair).decode()}"
