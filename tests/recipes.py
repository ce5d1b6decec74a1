"""The images that round trips are made with: one of oddities, one of 120 layers, one of very many small files."""

from __future__ import annotations

import functools
import os
import random
import struct
from collections.abc import Iterator
from pathlib import Path

import attrs

from tests import rootfs
from tests.images import Entry, Recipe, write_layer
from tests.trees import CAPABILITY

__all__ = ["chain", "node_modules", "node_modules_tar", "odd", "sparse", "text"]

_SECOND = 10**9
_USUAL = 1_700_000_000 * _SECOND
_OLD = -1_500_000_000 * _SECOND - 123_456_789  # 1922
_FINE = 1_600_000_000 * _SECOND + 987_654_321
_FAR = 7_258_118_400 * _SECOND  # the year 2200: more than 32 bits
# cap_net_raw+p of a user namespace whose root is 100000: struct vfs_ns_cap_data in linux/capability.h
_NAMESPACED = struct.pack("<6I", 0x03000000, 1 << 13, 0, 0, 0, 100_000)
# u::rw- u:1234:r-- g::r-- m::r-- o::--- as struct posix_acl_xattr_header and entries
_ACL = struct.pack(
    "<I" + "HHI" * 5, 2, *(1, 6, 2**32 - 1), *(2, 4, 1234), *(4, 4, 2**32 - 1), *(16, 4, 2**32 - 1), *(32, 0, 2**32 - 1)
)


def _directory(path: str, mode: int = 0o755, uid: int = 0, gid: int = 0, mtime_ns: int = _USUAL) -> Entry:
    return Entry(path=path, kind="directory", mode=mode, uid=uid, gid=gid, mtime_ns=mtime_ns)


def _text(path: str, text: str, mode: int = 0o644, uid: int = 0, gid: int = 0, mtime_ns: int = _USUAL) -> Entry:
    return Entry(path=path, mode=mode, pieces=((0, text.encode()),), uid=uid, gid=gid, mtime_ns=mtime_ns)


def _link(path: str, target: str) -> Entry:
    return Entry(path=path, kind="symlink", mode=0o777, target=target, mtime_ns=_FINE)


def _hard(path: str, target: Entry) -> Entry:
    """Return a link to what an entry makes, with its attributes: some tools take them from the last of the names."""
    return attrs.evolve(target, path=path, kind="hardlink", target=target.path, pieces=(), xattrs={})


def _gone(path: str) -> Entry:
    parent, _, name = path.rpartition("/")
    return Entry(path=f"{parent}/.wh.{name}".lstrip("/"), mode=0)


def _opaque(path: str) -> Entry:
    return Entry(path=f"{path}/.wh..wh..opq", mode=0)


@functools.cache
def odd() -> Recipe:
    """Return an image of all that a layer can hold and few do, with deletions of all kinds; busybox runs in it.

    Raises:
        CannotBuild: there is no static busybox.
    """
    busybox = (rootfs.busybox_tree() / "bin/busybox").read_bytes()
    layers = [_odd_base(busybox), _odd_deletions(), _odd_without_directories(), _odd_again()]
    return Recipe(layers=layers, config={"Cmd": ["/bin/sh"], "Env": ["PATH=/bin", "ODD=yes"], "Labels": {"odd": "1"}})


def _odd_base(busybox: bytes) -> list[Entry]:
    program = Entry(path="bin/busybox", mode=0o755, pieces=((0, busybox),))
    fifo = Entry(path="dev/fifo", kind="fifo", mode=0o640, uid=7, mtime_ns=_FINE)
    one = _text("usr/lib/one", "one inode, four names in three directories", uid=33, mtime_ns=_FINE)
    loop = _link("links/self", "self")
    bytes_of_latin1 = os.fsdecode("caf\xe9".encode("latin-1"))
    return [
        *map(_directory, ("bin", "dev", "etc", "files", "usr", "usr/lib")),
        _directory("opt", 0o751),
        *map(_directory, ("links", "links/deep", "links/deep/er")),
        program,
        *(_hard(f"bin/{name}", program) for name in ("sh", "cat")),
        _text("etc/passwd", "root:x:0:0:root:/root:/bin/sh\n"),
        # devices, fifos
        Entry(path="dev/null", kind="char", mode=0o666, device=(1, 3)),
        Entry(path="dev/loop300", kind="block", mode=0o660, gid=6, device=(7, 300)),
        Entry(path="dev/large", kind="char", mode=0o600, device=(4095, 1_048_575)),
        fifo,
        # modes, owners, times
        _directory("tmp", 0o1777),
        _directory("shut", 0o000, uid=12345),
        _directory("grouped", 0o2775, gid=50),
        _text("files/setuid", "#!/bin/sh\n", 0o4755),
        _text("files/setgid", "#!/bin/sh\n", 0o2755, gid=42),
        _text("files/all", "", 0o7777),
        _text("files/none", "secret", 0o000),
        _text("files/big owner", "x", uid=3_000_000, gid=4_294_967_294),
        _text("files/fine", "x", mtime_ns=_FINE),
        _text("files/old", "x", mtime_ns=_OLD),
        _text("files/epoch", "x", mtime_ns=0),
        _text("files/far", "x", mtime_ns=_FAR),
        _directory("files/old directory", mtime_ns=_OLD),
        # attributes
        Entry(path="files/ping", mode=0o755, xattrs={"security.capability": CAPABILITY}),
        Entry(path="files/ns-ping", mode=0o755, xattrs={"security.capability": _NAMESPACED}),
        Entry(path="files/acl", mode=0o640, xattrs={"system.posix_acl_access": _ACL}),
        Entry(path="files/attributes", xattrs={"user.text": b"plain", "user.bytes": b"\0\xff\n=\x01", "user.no": b""}),
        Entry(path="files/attributed", kind="directory", mode=0o755, xattrs={"user.on.directory": b"y" * 1000}),
        # names
        _text("files/" + bytes_of_latin1, "latin 1"),
        _text("files/" + os.fsdecode(bytes(range(1, 47)) + bytes(range(48, 160))), "all bytes"),
        _text("files/naïve ☃ \U0001f4e6", "utf-8"),
        _text("files/" + "n" * 255, "255"),
        _text("files/ leading and trailing ", "blanks"),
        _text("files/-rf", "an option"),
        _text("files/a\\b", "backslash"),
        *(_directory("/".join(["files", *["d" * 200] * depth])) for depth in range(1, 6)),
        _text("/".join(["files", *["d" * 200] * 5, "deep"]), "a path of over 1000 bytes"),
        # links
        loop,
        _link("links/ping", "pong"),
        _link("links/pong", "ping"),
        _link("links/dangling", "/no/where"),
        _link("links/out", "../../../../../../etc/passwd"),
        _link("links/" + bytes_of_latin1, bytes_of_latin1),
        _link("links/long", "t" * 1000),
        one,
        *(_hard(path, one) for path in ("links/one", "links/deep/er/one", "usr/lib/one too")),
        _hard("links/deep/fifo", fifo),
        _hard("links/deep/self", loop),
        Entry(path="files/holes", size=48 << 20, pieces=((1 << 20, b"an island"), (33 << 20, b"another" * 1000))),
        # what the layers above take away and cover
        _directory("opt/replaced", 0o700, uid=5),
        _text("opt/replaced/old", "hidden"),
        _directory("opt/gone"),
        _text("opt/gone/file", "deleted"),
        _directory("opt/kept", 0o750, uid=77, gid=78, mtime_ns=_FINE),
        _text("opt/kept/lower", "stays"),
        _directory("opt/hidden", 0o711),
        _text("opt/hidden/a", "a"),
        _directory("opt/hidden/sub"),
        _text("opt/hidden/sub/b", "b"),
        _text("opt/file becomes directory", "x"),
        _directory("opt/directory becomes file"),
        _text("opt/directory becomes file/x", "x"),
        _link("opt/link becomes directory", "gone"),
        _directory("opt/directory becomes link"),
        _text("opt/directory becomes link/x", "x"),
        _text("opt/twice", "first"),
    ]  # fmt: skip


def _odd_deletions() -> list[Entry]:
    return [
        _directory("opt", 0o755, mtime_ns=_FINE),
        _gone("opt/gone"),
        _gone("opt/never was"),
        _directory("opt/replaced", 0o755),
        _opaque("opt/replaced"),
        _text("opt/replaced/new", "what is there instead"),
        _directory("opt/hidden", 0o755, uid=9),
        _opaque("opt/hidden"),
        _directory("opt/file becomes directory"),
        _text("opt/file becomes directory/y", "y"),
        _text("opt/directory becomes file", "y"),
        _directory("opt/link becomes directory"),
        _link("opt/directory becomes link", "replaced"),
        _gone("opt/twice"),
        _directory("links"),
        _gone("links/one"),
    ]


def _odd_without_directories() -> list[Entry]:
    """Return a layer with no entries for directories: some are below, with modes and owners of their own."""
    return [
        _text("opt/kept/upper", "in a directory that only a lower layer describes"),
        _text("opt/new/and/deep", "in directories that none describes"),
        _text("tmp/left", "x", 0o600, uid=1000),
        _gone("usr/lib/one too"),
        _text("opt/twice", "second"),
    ]


def _odd_again() -> list[Entry]:
    return [
        _directory("opt/gone", 0o710),
        _text("opt/gone/other", "made again after its deletion"),
        _directory("opt/hidden", 0o500, gid=3),
        _gone("opt/twice"),
        _directory("dev"),
        _gone("dev/large"),
        _text("dev/loop300", "a file where a device was"),
    ]  # fmt: skip


def sparse(size: int = 8 << 30) -> Recipe:
    """Return an image with a file of 8 GB that is holes but for three pieces, written as a sparse entry."""
    pieces = ((4096, b"near the start"), ((5 << 30) + 123, b"between" * 10_000), (size - 3, b"end"))
    file = Entry(path="disk", mode=0o600, uid=1, pieces=pieces, size=size, mtime_ns=_FINE, sparse=True)
    return Recipe(layers=[[_text("first", "x"), file, _text("last", "y")]])


def chain(count: int = 120) -> Recipe:
    """Return an image of so many layers, each with something added, changed, deleted, and without a directory."""
    busybox = (rootfs.busybox_tree() / "bin/busybox").read_bytes()
    base = [
        *map(_directory, ("bin", "data", "etc", "log")),
        Entry(path="bin/busybox", mode=0o755, pieces=((0, busybox),)),
        *(_link(f"bin/{name}", "busybox") for name in ("sh", "true", "cat")),
    ]
    layers = [base]
    for number in range(1, count):
        layer = [
            _text(f"data/{number}", f"file of layer {number}\n" * 20, mtime_ns=number * _SECOND),
            _text("etc/current", str(number), mtime_ns=number * _SECOND),
            _text(f"log/{number % 7}/{number}", "x"),
        ]
        if number % 3 == 0:
            layer += [_directory("data", 0o755, mtime_ns=number * _SECOND), _gone(f"data/{number - 2}")]
        if number % 11 == 0:
            layer += [_directory(f"log/{number % 7}", 0o700 + number % 8), _opaque(f"log/{number % 7}")]
        layers.append(layer)
    return Recipe(layers=layers, config={"Cmd": ["/bin/sh"], "Env": ["PATH=/bin"]})


# ── many small files ──────────────────────────────────────────────────────────────────────────────────────────────


def node_modules(files: int = 30_000, *, mean: int = 2_200, variety: int = 3 << 20) -> Iterator[Entry]:
    """Give the entries of a directory as npm fills it: packages in packages, scopes, links in .bin, small texts.

    Args:
        files: how many.
        mean: size of a file in bytes.
        variety: bytes of text that the files are pieces of.
    """
    rng = random.Random(1)  # noqa: S311 - the same tree every time
    pool = text(rng, variety)
    yield _directory("app")
    yield _directory("app/node_modules")
    yield _directory("app/node_modules/.bin")
    made, number = 0, 0
    scopes: set[str] = set()
    packages: list[str] = []
    while made < files:
        number += 1
        name = f"{rng.choice(_STEMS)}-{rng.choice(_STEMS)}-{number}"
        home = "app/node_modules"
        if packages and number % 6 == 0:  # a version of its own, within the package that needs it
            home = f"{rng.choice(packages)}/node_modules"
            if home not in scopes:
                scopes.add(home)
                yield _directory(home)
        elif number % 5 == 0:
            home = f"app/node_modules/@{rng.choice(_STEMS)}"
            if home not in scopes:
                scopes.add(home)
                yield _directory(home)
        package = f"{home}/{name}"
        if home.count("node_modules") < 3:
            packages.append(package)
        count = min(files - made, max(3, int(rng.expovariate(1 / 22))))
        made += count
        yield from _package(package, count, mean, pool, rng)
        if number % 9 == 0:
            yield _link(f"app/node_modules/.bin/{name}", f"../{package.removeprefix('app/node_modules/')}/index.js")


def text(rng: random.Random, size: int) -> bytes:
    """Return so many bytes that compress as programs do: some words and phrases are everywhere, most are rare."""
    letters = b"abcdefghijklmnopqrstuvwxyzeeeeaaattt_"
    words = [bytes(rng.choices(letters, k=rng.randint(2, 9))) for _ in range(2000)]
    words += [b"(", b")", b"{\n", b"}\n", b" = ", b";\n", b".", b", "] * 20
    weights = [1 / (1 + rank % 2000) for rank in range(len(words))]
    phrases = [b" ".join(rng.choices(words, weights, k=rng.randint(2, 12))) for _ in range(6000)]
    usual = [1 / (5 + rank) for rank in range(len(phrases))]
    parts, length = list[bytes](), 0
    while length < size:
        parts.append(b"\n  ".join(rng.choices(phrases, usual, k=5000)))
        length += len(parts[-1])
    return b"\n".join(parts)[:size]


_STEMS = (
    "core",
    "util",
    "is",
    "parse",
    "fs",
    "stream",
    "lodash",
    "babel",
    "type",
    "glob",
    "env",
    "path",
    "react",
    "ansi",
)


def _package(package: str, count: int, mean: int, pool: bytes, rng: random.Random) -> Iterator[Entry]:
    yield _directory(package)
    for name in ("lib", "dist", "dist/esm")[: 1 + count // 8]:
        yield _directory(f"{package}/{name}")
    homes = ["lib", "dist", "dist/esm"][: 1 + count // 8]
    for index in range(count):
        size = min(int(rng.expovariate(1 / mean)), 400_000)
        start = rng.randrange(len(pool) - size if size < len(pool) else 1)
        name = (
            ("package.json", "README.md", "index.js")[index]
            if index < 3
            else f"{homes[index % len(homes)]}/m{index}.js"
        )
        mode = 0o755 if name == "index.js" else 0o644
        yield Entry(
            path=f"{package}/{name}",
            mode=mode,
            pieces=((0, pool[start : start + size]),),
            mtime_ns=499_162_500 * _SECOND,
        )


def node_modules_tar(files: int = 30_000, *, mean: int = 2_200) -> Path:
    """Return a tar of :func:`node_modules`, kept for the next time."""

    def build(target: Path) -> None:
        with target.open("wb") as file:
            write_layer(file, node_modules(files, mean=mean))

    return rootfs.once(f"node-modules-{rootfs.key_of(str(files), str(mean), '2')}.tar", build)
