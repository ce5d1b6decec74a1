"""Names by their grammars: image references, digests, container names and ids; pure, no I/O.

The reference grammar is that of the distribution project, with the defaults that every ``docker`` user knows: no
registry means ``docker.io``, a single word there means ``library/``, no tag means ``latest``.
"""

from __future__ import annotations

import functools
import os
import re

import attrs

from pycontainer.errors import InvalidReference
from pycontainer.records import Record

__all__ = [
    "DEFAULT_REGISTRY",
    "DEFAULT_TAG",
    "Reference",
    "check_container_name",
    "check_digest",
    "is_container_id",
    "is_digest",
    "is_id_prefix",
    "matches",
    "new_container_id",
    "new_reference",
    "parse_reference",
    "random_name",
]

DEFAULT_REGISTRY = "docker.io"
DEFAULT_TAG = "latest"
_LIBRARY = "library/"
_MAX_NAME = 255  # registry and repository together, as the distribution project counts

_LABEL = r"[a-zA-Z0-9](?:[a-zA-Z0-9-]*[a-zA-Z0-9])?"
_HOST = rf"(?:{_LABEL}(?:\.{_LABEL})*|\[[a-fA-F0-9:]+\])"
_REGISTRY = re.compile(rf"{_HOST}(?::[0-9]+)?")
_COMPONENT = r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*"
_REPOSITORY = re.compile(rf"{_COMPONENT}(?:/{_COMPONENT})*")
_TAG = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}")
_DIGEST = re.compile(r"[a-z0-9]+(?:[+._-][a-z0-9]+)*:[a-zA-Z0-9=_-]+")  # image-spec, descriptor.md
_HEX_LENGTHS = {"sha256": 64, "sha384": 96, "sha512": 128}
_LOWER_HEX = re.compile(r"[0-9a-f]+")
_ID_DIGITS = 64
_CONTAINER_ID = re.compile(r"[0-9a-f]{64}")
_CONTAINER_NAME = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9_.-]+")
_MAX_CONTAINER_NAME = 255


@attrs.frozen(eq=False, repr=False)
class Reference(Record):
    """The name of an image, complete: made by :func:`parse_reference`, shown by ``str``.

    Attributes:
        registry: host, with a port where it has one.
        repository: path within the registry, e.g. ``"library/debian"``.
        tag: ``None`` only together with a digest.
        digest: of the manifest, when the name pins one.

    >>> reference = parse_reference("debian")
    >>> str(reference), reference.familiar
    ('docker.io/library/debian:latest', 'debian:latest')
    """

    registry: str = attrs.field()
    repository: str = attrs.field()
    tag: str | None = attrs.field(default=None)
    digest: str | None = attrs.field(default=None)

    def __attrs_post_init__(self) -> None:
        if not _REGISTRY.fullmatch(self.registry):
            msg = f"not a registry: {self.registry!r}; a host name or address is needed, as in 'registry.example:5000'"
            raise InvalidReference(msg)
        if not _REPOSITORY.fullmatch(self.repository):
            msg = (
                f"not a repository: {self.repository!r}; it is made of lower-case letters and digits, "
                "parted by '/', '.', '_' or '-'"
            )
            raise InvalidReference(msg)
        if len(self.name) > _MAX_NAME:
            msg = f"the name of the image is {len(self.name)} characters long, {_MAX_NAME} are allowed: {self.name!r}"
            raise InvalidReference(msg)
        if self.tag is not None and not _TAG.fullmatch(self.tag):
            msg = f"not a tag: {self.tag!r}; up to 128 letters, digits, '_', '.' and '-', not starting with '.' or '-'"
            raise InvalidReference(msg)
        if self.digest is not None:
            check_digest(self.digest)
            if self.digest.partition(":")[0] not in _HEX_LENGTHS:
                msg = f"not a digest that can be verified: {self.digest!r}; use sha256"
                raise InvalidReference(msg)
        elif self.tag is None:
            msg = f"a reference needs a tag or a digest: {self.name!r}"
            raise InvalidReference(msg)

    @property
    def name(self) -> str:
        """Registry and repository, without tag and digest."""
        return f"{self.registry}/{self.repository}"

    @property
    def familiar(self) -> str:
        """The shortest text that means the same, as ``docker`` shows it."""
        if self.registry != DEFAULT_REGISTRY:
            name = self.name
        else:
            name = self.repository
            short = name.removeprefix(_LIBRARY)
            if short and "/" not in short:
                name = short
            elif _is_registry(name.partition("/")[0]):
                name = self.name  # "localhost/x" on its own would be read as a registry
        return name + self._suffix()

    def _suffix(self) -> str:
        tag = f":{self.tag}" if self.tag is not None else ""
        return tag + (f"@{self.digest}" if self.digest is not None else "")

    def __str__(self) -> str:
        return self.name + self._suffix()


def _is_registry(first: str) -> bool:
    """Tell a host from the first word of a repository: it has a dot or a port, is localhost or has upper case."""
    return "." in first or ":" in first or first == "localhost" or first != first.lower()


@functools.lru_cache(maxsize=1024)
def parse_reference(text: str) -> Reference:
    """Return the reference that a text means, its defaults filled in.

    Args:
        text: e.g. ``"debian"``, ``"debian:12"``, ``"registry.example:5000/team/app@sha256:…"``.

    Raises:
        InvalidReference: the text is no reference; the message says which part.

    >>> str(parse_reference("localhost:5000/app:1"))
    'localhost:5000/app:1'
    """
    if not text:
        msg = "an image reference cannot be empty; write a name such as 'debian:12'"
        raise InvalidReference(msg)
    rest, at, digest = text.partition("@")
    first, slash, remainder = rest.partition("/")
    if slash and _is_registry(first):
        registry, path = first, remainder
    else:
        registry, path = DEFAULT_REGISTRY, rest
    if registry == "index.docker.io":
        registry = DEFAULT_REGISTRY
    path, colon, tag = path.partition(":")
    if registry == DEFAULT_REGISTRY and "/" not in path:
        path = _LIBRARY + path
    try:
        return Reference(
            registry,
            path,
            tag if colon else (None if at else DEFAULT_TAG),
            digest if at else None,
        )
    except InvalidReference as error:
        hint = ""
        if path != path.lower():
            hint = f"; did you mean {text.lower()!r}?"
        msg = f"not an image reference: {text!r}: {error}{hint}"
        raise InvalidReference(msg) from None


def matches(pattern: str, reference: Reference) -> bool:
    """Tell whether a reference, or its name alone, is what a pattern with ``*``, ``?`` and ``[a-z]`` describes.

    As in Go's path.Match, which docker uses, ``*`` and ``?`` do not match a slash.

    Raises:
        ValueError: a bracket is open.

    >>> matches("deb*", parse_reference("debian:12")), matches("*", parse_reference("a/b:1"))
    (True, False)
    """
    compiled = _compile(pattern)
    familiar = reference.familiar
    name = familiar[: len(familiar) - len(reference._suffix())]  # noqa: SLF001 - one module
    texts = (familiar, name, str(reference), reference.name)
    return pattern in texts or any(map(compiled.fullmatch, texts))  # an address has brackets and means itself


_PATTERN = re.compile(
    r"(?P<star>\*)|(?P<any>\?)|\[(?P<not>\^?)(?P<set>(?:\\.|[^\]\\])+)\]|\\(?P<plain>.)|(?P<other>[^\[\\])", re.DOTALL
)
_RANGE = re.compile(r"(\\.|.)(?:-(\\.|.))?", re.DOTALL)


def _escape_range(match: re.Match[str]) -> str:
    return "-".join(re.escape(word[-1]) for word in match.groups() if word is not None)


@functools.lru_cache(maxsize=64)
def _compile(pattern: str) -> re.Pattern[str]:
    text, place = "", 0
    while place < len(pattern):
        match = _PATTERN.match(pattern, place)
        if match is None:
            msg = f"not a pattern: {pattern!r}; a bracket is open, or a backslash at the end"
            raise ValueError(msg)
        place = match.end()
        if match["star"]:
            text += "[^/]*"
        elif match["any"]:
            text += "[^/]"
        elif match["set"]:
            text += f"(?!/)[{match['not']}{_RANGE.sub(_escape_range, match['set'])}]"
        else:
            text += re.escape(match["plain"] or match["other"])
    try:
        return re.compile(text)
    except re.error as error:  # a range that goes backwards
        msg = f"not a pattern: {pattern!r}: {error}"
        raise ValueError(msg) from None


def new_reference(text: str) -> str:
    """Return the whole reference that is to be given to an image.

    Raises:
        InvalidReference: the text is no reference, or can be taken for an id.
        ValueError: it has a digest, which is what an image is and not what it is called.

    >>> new_reference("debian:12")
    'docker.io/library/debian:12'
    """
    reference = parse_reference(text)
    if _CONTAINER_ID.fullmatch(text):
        msg = f"not a name for an image: {text!r}; 64 hexadecimal digits are an id"
        raise InvalidReference(msg)
    if reference.digest is not None:
        msg = f"a name given to an image has a tag, not a digest: {text!r}"
        raise ValueError(msg)
    return str(reference)


def is_digest(text: str) -> bool:
    """Tell whether a text is a digest by the OCI grammar, of the right length where the algorithm is known.

    >>> is_digest("sha256:" + "0" * 64)
    True
    """
    if not _DIGEST.fullmatch(text):
        return False
    algorithm, _, encoded = text.partition(":")
    length = _HEX_LENGTHS.get(algorithm)
    return length is None or (len(encoded) == length and _LOWER_HEX.fullmatch(encoded) is not None)


def check_digest(text: str) -> str:
    """Return the digest given.

    Raises:
        InvalidReference: it is none.
    """
    if not is_digest(text):
        msg = f"not a digest: {text!r}; it reads like 'sha256:' and 64 lower-case hexadecimal digits"
        raise InvalidReference(msg)
    return text


def is_id_prefix(text: str) -> bool:
    """Tell whether a text may be the beginning of an id: up to 64 lower-case hexadecimal digits.

    >>> is_id_prefix("0a1b2c"), is_id_prefix("web")
    (True, False)
    """
    return len(text) <= _ID_DIGITS and _LOWER_HEX.fullmatch(text) is not None


def is_container_id(text: str) -> bool:
    """Tell whether a text is a whole container id.

    >>> is_container_id("f" * 64)
    True
    """
    return _CONTAINER_ID.fullmatch(text) is not None


def new_container_id() -> str:
    """Return a new random id of 64 hexadecimal digits.

    Its first twelve are never all decimal: the short form serves as the host name, and a number is a poor one.
    """
    while True:
        identity = os.urandom(_ID_DIGITS // 2).hex()
        if not identity[:12].isdecimal():
            return identity


def check_container_name(text: str) -> str:
    """Return the container name given.

    Raises:
        InvalidReference: it breaks docker's grammar: two characters or more, letters, digits, ``_``, ``.``, ``-``.

    >>> check_container_name("web-1")
    'web-1'
    """
    if not _CONTAINER_NAME.fullmatch(text) or len(text) > _MAX_CONTAINER_NAME:
        msg = (
            f"not a container name: {text!r}; 2 to {_MAX_CONTAINER_NAME} letters, digits, '_', '.' and '-', "
            "starting with a letter or digit"
        )
        raise InvalidReference(msg)
    return text


_MANNERS = (
    "agile amber ample azure bold brave breezy bright brisk calm candid cheery civil clever cosy crisp curious "
    "daring deft eager early easy fair fancy fleet fond frank fresh gentle giddy glad golden grand happy hardy "
    "hasty honest humble jolly keen kind lively loyal lucky mellow merry mild misty modest neat nimble noble "
    "patient placid plucky polite proud quick quiet rapid ready rosy rustic serene sharp shiny silent silver "
    "sleek smooth snowy sober solid spry steady still stout subtle sunny swift tidy tranquil trusty upbeat vivid "
    "warm wary wise witty zesty"
)
_BIRDS = (
    "albatross auk avocet bittern blackbird bunting bustard buzzard chaffinch chough condor coot cormorant crane "
    "crossbill crow curlew dipper dotterel dove dunlin dunnock eagle egret eider falcon fieldfare finch flamingo "
    "gannet godwit goldcrest goose goshawk grebe greenfinch grouse guillemot gull harrier hawk heron hobby hoopoe "
    "ibis jackdaw jay kestrel kingfisher kite kittiwake knot lapwing lark linnet magpie martin merlin moorhen "
    "nightjar nuthatch oriole osprey ouzel owl partridge pelican petrel pheasant pigeon pintail pipit plover "
    "pochard ptarmigan puffin quail rail raven redpoll redshank redstart robin rook ruff sanderling shearwater "
    "shrike siskin skua snipe sparrow spoonbill starling stilt stint stonechat stork swallow swan swift teal tern "
    "thrush turnstone wagtail warbler waxwing wheatear whimbrel whinchat wigeon woodcock woodpecker wren wryneck"
)


def random_name() -> str:
    """Return a name for a container that nobody named: a manner and a bird."""
    manners, birds = _MANNERS.split(), _BIRDS.split()
    number = int.from_bytes(os.urandom(4), "little")
    return f"{manners[number % len(manners)]}_{birds[number // len(manners) % len(birds)]}"
