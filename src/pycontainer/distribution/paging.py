"""Lists that registries give in pages; distribution-spec "Listing Tags", RFC 8288. They end, whatever is sent."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator

from pycontainer.distribution.wire import Answer, origin_of, resolve
from pycontainer.errors import RegistryError

__all__ = ["PAGE", "listed", "next_page", "pages"]

PAGE = 1000  # names to ask for at a time
_OK = 200
_MAX_PAGE = 4 << 20
_MAX_NAMES = 100_000
_MAX_PAGES = 2000
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._/-]{0,254}")  # of tags and repositories, as far as it matters
# A string without its end matches too, and nothing is tried twice: linear for whatever is sent.
_LINK = re.compile(
    r'\s*+<([^>]*+)>((?:\s*+;\s*+[\w*!#$&+.^`|~-]++\s*+(?:=\s*+(?:"(?:[^"\\]++|\\.)*+"|[^\s;,"]++))?+)*+)\s*+(?:,|$)'
)
_RELATION = re.compile(r';\s*+rel\s*+=\s*+(?:"([^"]*+)"|([^\s;,"]++))', re.IGNORECASE)


def next_page(header: str) -> str:
    """Return the target of a ``Link`` header's ``next``, or ``""``; RFC 8288.

    >>> next_page('</v2/_catalog?last=a&n=1>; rel="next"')
    '/v2/_catalog?last=a&n=1'
    """
    position = 0
    while match := _LINK.match(header, position):
        position = match.end()
        relation = _RELATION.search(match[2])
        if relation and "next" in (relation[1] or relation[2] or "").lower().split():
            return match[1]
        if position >= len(header):
            break
    return ""


def pages(first: Callable[[str], Answer], path: str, send: Callable[..., Answer]) -> Iterator[Answer]:
    """Give the pages of a list; each is closed when the next is wanted.

    Args:
        first: sends the request for the first page.
        path: of that.
        send: sends further requests, by whole URLs.

    Raises:
        RegistryError: the list leads elsewhere, or in circles.
    """
    answer = first(path)
    seen = {answer.url}
    while True:
        with answer:
            yield answer
            target = next_page(answer.header("Link"))
            if not target:
                return
            url = resolve(answer.url, target, answer.action, "the next page")
            if origin_of(url) != origin_of(answer.url) or url in seen or len(seen) > _MAX_PAGES:
                raise RegistryError(answer.action, answer.host, f"the list goes on at {url[:200]!r}, refused")
            seen.add(url)
        answer = send("GET", url, action=answer.action, retry=True)


def listed(
    first: Callable[[str], Answer],
    path: str,
    send: Callable[..., Answer],
    field: str,
    refuse: Callable[[Answer], object],
) -> Iterator[str]:
    """Give the names of a list in pages, those that a reference can have.

    Args:
        first: as for :func:`pages`.
        path: likewise.
        send: likewise.
        field: of each page.
        refuse: raises what the status of a page means.

    Raises:
        RegistryError: a page is none, or there are too many names.
    """
    count = 0
    for answer in pages(first, path, send):
        if answer.status != _OK:
            refuse(answer)
        document = answer.json(_MAX_PAGE)
        names = document.get(field) if isinstance(document, dict) else None
        names = [] if names is None else names
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise RegistryError(answer.action, answer.host, f"its answer should have {field!r}, a list of names")
        count += len(names)
        if count > _MAX_NAMES:
            raise RegistryError(answer.action, answer.host, f"the list has more than {_MAX_NAMES} names")
        yield from filter(_NAME.fullmatch, names)
