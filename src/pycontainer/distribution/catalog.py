"""What concerns a registry as a whole: is it there, who are we, what has it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode

import attrs

from pycontainer.distribution.auth import Authorizer
from pycontainer.distribution.credentials import Credential
from pycontainer.distribution.paging import PAGE, listed
from pycontainer.distribution.remote import Client
from pycontainer.distribution.wire import Answer, origin_of, printable
from pycontainer.errors import RegistryError
from pycontainer.names import DEFAULT_REGISTRY

if TYPE_CHECKING:
    from pycontainer.distribution.hosts import Endpoint

__all__ = ["SearchResult", "catalog", "login", "logout", "ping", "search"]

_OK, _UNAUTHORIZED, _NOT_FOUND = 200, 401, 404
_CATALOG = ("registry:catalog:*",)
_MAX_ANSWER = 8 << 20
_HUB_SEARCH = "https://index.docker.io"
_MAX_RESULTS = 100


@attrs.frozen(kw_only=True)
class SearchResult:
    """A repository that a search found.

    Attributes:
        name: as references have it, without the registry on docker.io.
        description: in a line.
        stars: how many people like it.
        official: the registry's owner answers for it.
    """

    name: str
    description: str = ""
    stars: int = 0
    official: bool = False


def _get(client: Client, authorizer: Authorizer, url: str, action: str, scopes: tuple[str, ...] = ()) -> Answer:
    """Send a GET to a registry, identifying ourselves when it asks for that."""
    header = authorizer.header(scopes)
    answer = client.wire.request("GET", url, {"Authorization": header} if header else {}, action=action)
    if answer.status != _UNAUTHORIZED or origin_of(answer.url) != origin_of(url):
        return answer
    with answer:
        header = authorizer.answer(answer, scopes, header)
    return client.wire.request("GET", url, {"Authorization": header}, action=action)


def _at(client: Client, registry: str) -> tuple[Endpoint, str]:
    endpoint = client.registries.origin(registry)
    return endpoint, client.base(endpoint)


def ping(client: Client, registry: str, authorizer: Authorizer | None = None) -> None:
    """Check that a registry is there and takes our credentials.

    Raises:
        Unauthorized: it does not.
        RegistryError: it cannot be reached, or is no registry.
    """
    endpoint, base = _at(client, registry)
    authorizer = authorizer or client.authorizer(endpoint, "")
    with _get(client, authorizer, f"{base}/v2/", f"log in to {registry}") as answer:
        if answer.status == _NOT_FOUND:
            raise RegistryError(answer.action, answer.host, "it is no registry: it has no /v2/", status=answer.status)
        if answer.status != _OK:
            answer.refuse(authorizer.hint())


def login(client: Client, registry: str, credential: Credential) -> str:
    """Verify credentials and keep them.

    Args:
        client: whose files and connections are used.
        registry: by the name that references carry.
        credential: to keep; where the registry gives an identity token for it, that is kept instead.

    Returns:
        Where they are kept, for people.

    Raises:
        Unauthorized: the registry does not take them.
        RegistryError: it cannot be reached, or the credentials cannot be kept.
    """
    authorizer = Authorizer(client.wire, registry, lambda: credential, offline=True)
    ping(client, registry, authorizer)
    if authorizer.identity_token and not credential.identity_token:
        credential = attrs.evolve(credential, password="", identity_token=authorizer.identity_token)
    return client.files.store(registry, credential)


def logout(client: Client, registry: str) -> bool:
    """Forget the credentials of a registry; see :meth:`CredentialFiles.erase`."""
    return client.files.erase(registry)


def catalog(client: Client, registry: str) -> Iterator[str]:
    """Give the repositories of a registry, as far as it lists them.

    Raises:
        RegistryError: it cannot be reached, or refuses.
    """
    endpoint, base = _at(client, registry)
    authorizer = client.authorizer(endpoint, "")
    action = f"list the repositories of {registry}"

    def send(_method: str, url: str, *, action: str, retry: bool) -> Answer:  # noqa: ARG001 - as Remote.send
        return _get(client, authorizer, url, action, _CATALOG)

    def first(path: str) -> Answer:
        return _get(client, authorizer, f"{base}/v2/{path}", action, _CATALOG)

    def refuse(answer: Answer) -> None:
        answer.refuse(authorizer.hint())

    return listed(first, f"_catalog?n={PAGE}", send, "repositories", refuse)


def search(client: Client, term: str, registry: str = DEFAULT_REGISTRY, *, limit: int = 25) -> list[SearchResult]:
    """Find repositories by a word, with the registry's own search, or else in its list of repositories.

    Args:
        client: whose connections are used.
        term: the word.
        registry: where.
        limit: results, at most 100.

    Raises:
        ValueError: the limit is beyond that.
        RegistryError: the registry cannot be reached, or offers neither.
    """
    if not 0 < limit <= _MAX_RESULTS:
        raise ValueError(f"a search gives 1 to {_MAX_RESULTS} results, not {limit}")
    endpoint = client.registries.origin(registry)
    authorizer = client.authorizer(endpoint, "")
    base = _HUB_SEARCH if registry == DEFAULT_REGISTRY else client.base(endpoint)
    url = f"{base}/v1/search?{urlencode({'q': term, 'n': limit})}"
    # The Hub's search is another host than its registry: it is asked without credentials.
    action = f"search {registry} for {term!r}"
    if registry == DEFAULT_REGISTRY:
        answer = client.wire.request("GET", url, {}, action=action)
    else:
        answer = _get(client, authorizer, url, action)
    with answer:
        if answer.status == _OK:
            return _results(answer, registry)[:limit]
        if registry == DEFAULT_REGISTRY or answer.status not in (_NOT_FOUND, 405):
            answer.refuse()
    names = (name for name in catalog(client, registry) if term.lower() in name)
    return [SearchResult(name=f"{registry}/{name}") for name, _ in zip(names, range(limit), strict=False)]


def _results(answer: Answer, registry: str) -> list[SearchResult]:
    document = answer.json(_MAX_ANSWER)
    items = document.get("results") if isinstance(document, dict) else None
    if not isinstance(items, list) or not all(isinstance(item, dict) for item in items):
        raise RegistryError(answer.action, answer.host, "its answer should have 'results', a list of objects")
    before = "" if registry == DEFAULT_REGISTRY else f"{registry}/"
    return [_found(item, before) for item in items if isinstance(item.get("name"), str) and item["name"].isprintable()]


def _found(item: Mapping[str, Any], before: str) -> SearchResult:
    stars, description = item.get("star_count"), item.get("description")
    return SearchResult(
        name=before + item["name"],
        description=" ".join(printable(description).split()) if isinstance(description, str) else "",
        stars=stars if isinstance(stars, int) else 0,
        official=item.get("is_official") is True,
    )
