"""Where a registry is and how it is reached: host names, mirrors, plain http, certificates, proxies; no I/O but files.

A registry is called by the name that references carry: ``docker.io``, ``registry.example:5000``. An
:class:`Endpoint` is a place to ask for it.
"""

from __future__ import annotations

import ipaddress
import os
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs

from pycontainer.errors import InvalidReference
from pycontainer.names import DEFAULT_REGISTRY, Reference, parse_reference

if TYPE_CHECKING:
    from pycontainer.distribution.catalog import SearchResult

__all__ = ["Certificates", "Endpoint", "Registries", "bypasses_proxy", "is_loopback", "split_port"]

_HUB = "registry-1.docker.io"  # where docker.io's images are served
_SYSTEM_CERTS = (Path("/etc/pycontainer/certs.d"), Path("/etc/containers/certs.d"), Path("/etc/docker/certs.d"))
_SYSTEM_FILE = Path("/etc/pycontainer/registries.toml")
_PORTS = {"http": 80, "https": 443}
_KEYS = {"insecure", "mirrors", "certs", "proxy", "auth_file"}


@attrs.frozen
class Endpoint:
    """A place that serves a registry's images.

    Attributes:
        registry: by the name that references carry.
        host: with a port where it is not the usual one.
        schemes: to try, in order.
        verify: the certificate must be good.
        prefix: of the repositories there, ending in ``/``, or ``""``.
        mirror: it is not the registry itself: only read from.
    """

    registry: str
    host: str
    schemes: tuple[str, ...] = ("https",)
    verify: bool = True
    prefix: str = ""
    mirror: bool = False


@attrs.frozen
class Certificates:
    """Files of TLS for one host.

    Attributes:
        authorities: certificates to trust beside the system's.
        clients: pairs of certificate and key to show.
    """

    authorities: tuple[Path, ...] = ()
    clients: tuple[tuple[Path, Path], ...] = ()


def _texts(values: Sequence[str]) -> tuple[str, ...]:
    if isinstance(values, str):
        raise TypeError(f"a list of hosts is expected, not {values!r}")
    return tuple(values)


def _paths(values: Sequence[str | os.PathLike[str]]) -> tuple[Path, ...]:
    return tuple(Path(value) for value in values)


def _mirrors(values: Mapping[str, Sequence[str]]) -> Mapping[str, tuple[str, ...]]:
    return {_canonical(name): tuple(places) for name, places in values.items()}


def _optional_path(value: str | os.PathLike[str] | None) -> Path | None:
    return None if value is None else Path(value)


@attrs.frozen(kw_only=True)
class Registries:
    """How registries are reached.

    Args:
        insecure: hosts, ``host:port`` or networks of addresses (``"10.0.0.0/8"``) whose certificate is not checked, and
            that may speak plain http; with ``http://`` before it, a host that does and is not asked for https first.
            Loopback addresses may speak plain http without being listed.
        mirrors: places to read from first, by registry: ``{"docker.io": ["mirror.example"]}``. A place is
            ``[scheme://]host[:port][/prefix]``.
        certs: directories with a directory ``host[:port]`` each that holds ``*.crt`` (authorities) and ``*.cert`` with
            ``*.key`` (client certificates), searched before those of docker and podman.
        proxy: URL of the proxy for all registries; ``""`` for none; by default as the environment's ``HTTP_PROXY``,
            ``HTTPS_PROXY`` and ``NO_PROXY`` say.
        auth_file: credentials, as docker's ``config.json``; by default those that docker and podman use.
        credentials: user and password by registry, instead of any file.
        connect_timeout: seconds.
        read_timeout: seconds without a byte.
        attempts: how often something is tried that fails for reasons that pass.
        backoff: seconds before the second attempt; doubled for each further one.
        parallel: blobs at a time.

    >>> Registries(mirrors={"docker.io": ["http://localhost:5000"]}).endpoints("docker.io")[0].host
    'localhost:5000'
    """

    insecure: tuple[str, ...] = attrs.field(default=(), converter=_texts)
    mirrors: Mapping[str, tuple[str, ...]] = attrs.field(factory=dict, converter=_mirrors)
    certs: tuple[Path, ...] = attrs.field(default=(), converter=_paths)
    proxy: str | None = None
    auth_file: Path | None = attrs.field(default=None, converter=_optional_path)
    credentials: Mapping[str, tuple[str, str]] = attrs.field(factory=dict, repr=False)
    connect_timeout: float = 10.0
    read_timeout: float = 60.0
    attempts: int = attrs.field(default=5, validator=attrs.validators.ge(1))
    backoff: float = 0.5
    parallel: int = attrs.field(default=3, validator=attrs.validators.ge(1))

    @classmethod
    def from_files(cls, *paths: str | os.PathLike[str]) -> Registries:
        """Return what configuration files say.

        Args:
            paths: TOML files that must exist, later ones winning field by field. By default those that exist of
                /etc/pycontainer/registries.toml and pycontainer/registries.toml below the XDG configuration directory.

        Raises:
            ValueError: a file is not understood; the message names the field.
        """
        found = _paths(paths) or tuple(
            path for path in (_SYSTEM_FILE, _user_directory() / _SYSTEM_FILE.name) if path.is_file()
        )
        fields: dict[str, Any] = {}
        for path in found:
            fields |= _read(path)
        return cls(**fields)

    def endpoints(self, registry: str) -> tuple[Endpoint, ...]:
        """Return where to read a registry's images, in order: its mirrors, then itself.

        Args:
            registry: by the name that references carry.
        """
        places = [self._mirror(registry, place) for place in self.mirrors.get(registry, ())]
        return (*places, self.origin(registry))

    def origin(self, registry: str) -> Endpoint:
        """Return the registry itself, where to write."""
        host = _HUB if registry == DEFAULT_REGISTRY else registry
        return self._endpoint(registry, host, "", "", mirror=False)

    def _mirror(self, registry: str, place: str) -> Endpoint:
        scheme, separator, rest = place.rpartition("://")
        host, _, prefix = rest.strip("/").partition("/")
        try:
            Reference(host, prefix or "x", "latest")
        except InvalidReference as error:
            raise ValueError(f"not a mirror of {registry}: {place!r}: {error}") from None
        if separator and scheme not in _PORTS:
            raise ValueError(f"not a mirror of {registry}: {place!r}: the scheme is https or http")
        return self._endpoint(registry, host, scheme, f"{prefix}/" if prefix else "", mirror=True)

    def _endpoint(self, registry: str, host: str, scheme: str, prefix: str, *, mirror: bool) -> Endpoint:
        insecure = self._is_insecure(host)
        if not scheme and f"http://{host}".lower() in (entry.lower().rstrip("/") for entry in self.insecure):
            scheme = "http"
        schemes = (scheme,) if scheme else ("https", "http") if insecure or is_loopback(host) else ("https",)
        return Endpoint(registry, host, schemes, not insecure, prefix, mirror)

    def _is_insecure(self, host: str) -> bool:
        name, _ = split_port(host)
        address = _address(name)
        for entry in self.insecure:
            if entry.lower() in (host.lower(), name.lower()):
                return True
            if address is not None and "/" in entry and _contains(entry, address):
                return True
        return False

    def certificates(self, host: str) -> Certificates:
        """Return what TLS with a host needs beside the system's certificates.

        Args:
            host: with its port where that is not the usual one.

        Raises:
            ValueError: a client certificate has no key, or a key no certificate.
        """
        places = (*self.certs, _user_directory() / "certs.d", *_SYSTEM_CERTS)
        for place in places:
            directory = place / host
            if directory.is_dir():
                return _certificates(directory)
        return Certificates()

    # ── what concerns a registry as a whole ───────────────────────────────────────────────────────────────────────

    def login(self, registry: str, username: str, password: str) -> str:
        """Have a registry verify credentials, and keep them where docker and podman find them.

        Args:
            registry: by the name that references carry.
            username: the user.
            password: or an access token.

        Returns:
            The file or the credential helper that keeps them now.

        Raises:
            Unauthorized: the registry does not take them; nothing is kept.
            RegistryError: it cannot be reached, or they cannot be kept.
        """
        from pycontainer.distribution import catalog
        from pycontainer.distribution.credentials import Credential
        from pycontainer.distribution.remote import Client

        with Client(self) as client:
            return catalog.login(client, _canonical(registry), Credential(username, password))

    def logout(self, registry: str) -> bool:
        """Forget the credentials of a registry, wherever they are kept.

        Returns:
            Whether there were any.
        """
        from pycontainer.distribution.credentials import CredentialFiles

        return CredentialFiles(self.auth_file).erase(_canonical(registry))

    def search(self, term: str, *, registry: str = DEFAULT_REGISTRY, limit: int = 25) -> Sequence[SearchResult]:
        """Find repositories by a word.

        Args:
            term: the word.
            registry: where; one without a search of its own is asked for the list of its repositories.
            limit: results, at most 100.

        Raises:
            RegistryError: it cannot be reached, or offers neither.
        """
        from pycontainer.distribution import catalog
        from pycontainer.distribution.remote import Client

        with Client(self) as client:
            return catalog.search(client, term, _canonical(registry), limit=limit)

    def tags(self, repository: str) -> Sequence[str]:
        """Return the tags of a repository.

        Args:
            repository: its name, e.g. ``"debian"``.

        Raises:
            ManifestUnknown: there is no such repository.
            RegistryError: the registry cannot be reached, or refuses.
        """
        from pycontainer.distribution.remote import Client

        with Client(self) as client:
            return list(client.origin(parse_reference(repository)).tags())


def _user_directory() -> Path:
    base = os.environ.get("XDG_CONFIG_HOME") or os.path.expanduser("~/.config")  # noqa: PTH111 - a home may be missing
    return Path(base) / "pycontainer"


def _canonical(registry: str) -> str:
    return DEFAULT_REGISTRY if registry in {"index.docker.io", _HUB} else registry


def _certificates(directory: Path) -> Certificates:
    names = sorted(entry.name for entry in directory.iterdir())
    pairs = []
    for name in names:
        stem, _, kind = name.rpartition(".")
        other = {"cert": "key", "key": "cert"}.get(kind)
        if other and f"{stem}.{other}" not in names:
            raise ValueError(f"{directory / name} has no {stem}.{other} beside it; a client certificate is both")
        if kind == "cert":
            pairs.append((directory / name, directory / f"{stem}.key"))
    return Certificates(tuple(directory / name for name in names if name.endswith(".crt")), tuple(pairs))


def _read(path: Path) -> dict[str, Any]:
    try:
        with path.open("rb") as file:
            fields = tomllib.load(file)
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"read {path}: {error}") from None
    for key, value in fields.items():
        if key not in _KEYS:
            raise ValueError(f"read {path}: there is no field {key!r}; there are {', '.join(sorted(_KEYS))}")
        if key == "mirrors":
            good = isinstance(value, dict) and all(map(_is_texts, value.values()))
        else:
            good = isinstance(value, str) if key in {"proxy", "auth_file"} else _is_texts(value)
        if not good:
            raise ValueError(f"read {path}: {key!r} holds {value!r}; see the page on registries for what it takes")
    return fields


def _is_texts(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(item, str) for item in value)


# ── hosts ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def split_port(host: str) -> tuple[str, int | None]:
    """Return name and port of a host; an IPv6 address comes without its brackets.

    >>> split_port("[::1]:5000"), split_port("registry.example")
    (('::1', 5000), ('registry.example', None))
    """
    name, colon, port = host.rpartition(":")
    if not colon or port.endswith("]"):
        name, port = host, ""
    return name.removeprefix("[").removesuffix("]"), int(port) if port else None


def _address(name: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(name)
    except ValueError:
        return None


def _contains(network: str, address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> bool:
    try:
        return address in ipaddress.ip_network(network, strict=False)
    except ValueError:
        return False


def is_loopback(host: str) -> bool:
    """Tell whether a host is this machine, by its name or address alone.

    >>> is_loopback("localhost:5000"), is_loopback("127.0.0.2"), is_loopback("registry.example")
    (True, True, False)
    """
    name, _ = split_port(host)
    address = _address(name)
    return name.lower() == "localhost" or (address is not None and address.is_loopback)


def bypasses_proxy(host: str, no_proxy: str) -> bool:
    """Tell whether a host is reached without a proxy, as Go's programs read ``NO_PROXY``.

    This machine always is. An entry is ``*``, a name (with all below it), an address, a network, each but the last with
    an optional port.

    >>> bypasses_proxy("a.example:443", "b.example, .example"), bypasses_proxy("10.1.2.3:80", "10.0.0.0/8")
    (True, True)
    """
    if is_loopback(host):
        return True
    name, port = split_port(host.lower())
    address = _address(name)
    for text in no_proxy.lower().split(","):
        entry = text.strip()
        if entry == "*":
            return True
        if address is not None and "/" in entry and _contains(entry, address):
            return True
        try:
            wanted, wanted_port = split_port(entry)
        except ValueError:
            continue  # a bare IPv6 address has no port
        wanted = wanted.removeprefix("*").removeprefix(".")
        if wanted and wanted_port in (None, port) and (name == wanted or name.endswith(f".{wanted}")):
            return True
        if address is not None and address == _address(entry):
            return True
    return False
