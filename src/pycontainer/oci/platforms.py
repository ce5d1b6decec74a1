"""Platforms in Go's words, and which image of an index fits one: image-spec ``image-index.md``, "Platform Variants".

The same processor has many names (``x86_64``, ``amd64``), and runs what was made for older ones of its family. Which
are taken, and in which order, is as containerd and docker have it.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import attrs

from pycontainer.errors import ImageError
from pycontainer.records import Record

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

__all__ = ["Platform", "choose", "fitting", "normalize", "parse_platform"]

_WORD = re.compile(r"[A-Za-z0-9_.-]{1,64}")
_SYSTEMS = frozenset(
    {
        *("aix", "android", "darwin", "dragonfly", "freebsd", "illumos", "ios", "js", "linux", "macos", "netbsd"),
        *("openbsd", "plan9", "solaris", "wasip1", "windows", "zos"),
    }
)
_ARCHITECTURES = {
    "aarch64": ("arm64", ""),
    "armel": ("arm", "v6"),
    "armhf": ("arm", "v7"),
    "armv6l": ("arm", "v6"),
    "armv7l": ("arm", "v7"),
    "i386": ("386", ""),
    "i686": ("386", ""),
    "loongarch64": ("loong64", ""),
    "x86-64": ("amd64", ""),
    "x86_64": ("amd64", ""),
}
_ARM = ("v8", "v7", "v6", "v5")
_AMD64 = ("v4", "v3", "v2", "")


@attrs.frozen(kw_only=True, eq=False, repr=False)
class Platform(Record):
    """What an image runs on, in Go's words: ``linux``, ``amd64``, ``v8``.

    Attributes:
        os: the operating system.
        architecture: the family of processors.
        variant: which of them at least, where it matters.
        os_version: of Windows, which has different system calls in each.
        os_features: what the operating system must have beside the usual.
    """

    os: str
    architecture: str
    variant: str = ""
    os_version: str = ""
    os_features: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Return the object for a document."""
        value: dict[str, Any] = {"architecture": self.architecture, "os": self.os}
        if self.variant:
            value["variant"] = self.variant
        if self.os_version:
            value["os.version"] = self.os_version
        if self.os_features:
            value["os.features"] = list(self.os_features)
        return value

    def __str__(self) -> str:
        return f"{self.os}/{self.architecture}" + (f"/{self.variant}" if self.variant else "")


def normalize(platform: Platform) -> Platform:
    """Return the same platform under its usual name.

    >>> str(normalize(Platform(os="Linux", architecture="aarch64", variant="v8")))
    'linux/arm64'
    """
    architecture, variant = platform.architecture.lower(), platform.variant.lower()
    architecture, implied = _ARCHITECTURES.get(architecture, (architecture, ""))
    variant = variant or implied
    if variant[:1].isdecimal():
        variant = f"v{variant}"
    if architecture == "arm":
        variant = variant or "v7"
    elif (architecture, variant) in {("arm64", "v8"), ("arm64", "v8.0"), ("amd64", "v1")}:
        variant = ""
    system = platform.os.lower()
    return attrs.evolve(
        platform, os="darwin" if system == "macos" else system, architecture=architecture, variant=variant
    )


def parse_platform(text: str, default: Platform) -> Platform:
    """Return the platform that a text means, as ``--platform`` takes it.

    Args:
        text: ``OS/ARCHITECTURE/VARIANT``, ``OS/ARCHITECTURE``, or one of the first two alone.
        default: what is left out is as here.

    Raises:
        ValueError: it is none.

    >>> host = Platform(os="linux", architecture="amd64")
    >>> [str(parse_platform(text, host)) for text in ("arm64", "linux/arm", "linux/x86_64/v3")]
    ['linux/arm64', 'linux/arm/v7', 'linux/amd64/v3']
    """
    words = text.split("/")
    if len(words) > 3 or not all(map(_WORD.fullmatch, words)):  # noqa: PLR2004 - the three of the docstring
        msg = f"not a platform: {text!r}; write OS/ARCHITECTURE or OS/ARCHITECTURE/VARIANT, as in 'linux/arm64'"
        raise ValueError(msg)
    if words[0].lower() not in _SYSTEMS:
        if len(words) > 1:
            msg = f"not a platform: {text!r}: {words[0]!r} is no operating system; write it as in 'linux/arm/v7'"
            raise ValueError(msg)
        words.insert(0, default.os)
    if len(words) == 1:
        return normalize(attrs.evolve(default, os=words[0]))
    return normalize(Platform(os=words[0], architecture=words[1], variant="".join(words[2:])))


def fitting(wanted: Platform) -> Sequence[Platform]:
    """Return the platforms whose programs run on one, the best first.

    >>> [str(platform) for platform in fitting(Platform(os="linux", architecture="arm", variant="v6"))]
    ['linux/arm/v6', 'linux/arm/v5']
    """
    wanted = normalize(wanted)
    kinds = [(wanted.architecture, wanted.variant)]
    if wanted.architecture == "amd64":
        kinds += [("amd64", variant) for variant in _below(wanted.variant, _AMD64)] + [("386", "")]
    elif wanted.architecture == "arm":
        kinds += [("arm", variant) for variant in _below(wanted.variant, _ARM)]
    elif wanted.architecture == "arm64":
        kinds += [("arm64", ""), *(("arm", variant) for variant in _ARM)]
    return [
        Platform(os=wanted.os, architecture=architecture, variant=variant)
        for architecture, variant in dict.fromkeys(kinds)
    ]


def _below(variant: str, descending: tuple[str, ...]) -> tuple[str, ...]:
    return descending[descending.index(variant) + 1 :] if variant in descending else ()


class _Entry(Protocol):
    @property
    def platform(self) -> Platform | None: ...


_E = TypeVar("_E", bound=_Entry)


def choose(entries: Iterable[_E], wanted: Platform, what: str) -> _E:
    """Return the entry of an index that fits a platform best.

    One without a platform fits all, if it is the only one of that kind.

    Args:
        entries: descriptors of images, in the order of the index.
        wanted: the platform.
        what: the index, for the message.

    Raises:
        ImageError: none fits; the message lists what there is.
    """
    entries = list(entries)
    order = [(item.os, item.architecture, item.variant) for item in fitting(wanted)]
    ranked: list[tuple[int, bool, int]] = []
    for number, entry in enumerate(entries):
        if entry.platform is None:
            continue
        known = normalize(entry.platform)
        kind = (known.os, known.architecture, known.variant)
        if kind in order and wanted.os_version in ("", known.os_version):
            ranked.append((order.index(kind), bool(known.os_features), number))
    if ranked:
        return entries[min(ranked)[2]]
    unnamed = [entry for entry in entries if entry.platform is None]
    if len(unnamed) == 1:
        return unnamed[0]
    offered = ", ".join(str(entry.platform or "one that does not say") for entry in entries) or "none at all"
    msg = f"{what} has no image for {wanted}; it has: {offered}"
    raise ImageError(msg)
