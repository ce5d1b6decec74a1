"""From the mounts of a runtime document to steps: option words, sources opened on the host, attachment inside.

The option words are those of mount(8) and of the specification (config.md, "Linux mount options"). A word that is none
goes to the file system, whose answer decides.
"""

from __future__ import annotations

import functools
from pathlib import Path
from typing import TYPE_CHECKING

import attrs

from pycontainer._ffi import lib
from pycontainer.errors import StartError, Unsupported
from pycontainer.runtime.program import CWD, Program

if TYPE_CHECKING:
    from pycontainer.oci import runtime as oci

__all__ = ["Options", "add_bind", "attach_mount", "create_mount", "is_bind", "parse_options"]

RDONLY = 0x00000001  # MOUNT_ATTR_* of linux/mount.h
NOSUID = 0x00000002
NODEV = 0x00000004
NOEXEC = 0x00000008
ATIME = 0x00000070  # a field, not a flag: relatime is 0
NOATIME = 0x00000010
STRICTATIME = 0x00000020
NODIRATIME = 0x00000080
NOSYMFOLLOW = 0x00200000

OPEN_TREE_CLONE = 1
AT_RECURSIVE = 0x8000

_SET = {
    "ro": RDONLY,
    "nosuid": NOSUID,
    "nodev": NODEV,
    "noexec": NOEXEC,
    "noatime": NOATIME,
    "strictatime": STRICTATIME,
    "nodiratime": NODIRATIME,
    "nosymfollow": NOSYMFOLLOW,
}
_CLEAR = {
    "rw": RDONLY,
    "suid": NOSUID,
    "dev": NODEV,
    "exec": NOEXEC,
    "diratime": NODIRATIME,
    "symfollow": NOSYMFOLLOW,
}
_ATIME_WORDS = {"relatime", "atime", "nostrictatime"}
_PROPAGATION = {"private": 1 << 18, "slave": 1 << 19, "shared": 1 << 20, "unbindable": 1 << 17}
_IGNORED = {
    "defaults",
    "silent",
    "loud",
    "nofail",
    "mand",
    "nomand",
    "norelatime",
    "async",
}  # the kernel's default, or no meaning
_SUPERBLOCK = {"sync", "dirsync", "lazytime", "nolazytime", "iversion", "noiversion"}


@attrs.define(kw_only=True, eq=False, repr=False)
class Options:
    """The option words of one mount, sorted out.

    Attributes:
        attributes: ``MOUNT_ATTR_*`` to set.
        clear: ``MOUNT_ATTR_*`` to clear.
        recursive: whether attributes hold for nested mounts too (``rro`` and its like).
        bind: a bind mount.
        bind_recursive: with the mounts below it.
        propagation: ``MS_*`` of mount_namespaces(7).
        propagation_recursive: for nested mounts too.
        idmap: show it through id mappings.
        copy_up: a tmpfs is filled with what it covers.
        data: the words for the file system.
    """

    attributes: int = 0
    clear: int = 0
    recursive: bool = False
    bind: bool = False
    bind_recursive: bool = False
    propagation: int = 0
    propagation_recursive: bool = False
    idmap: bool = False
    copy_up: bool = False
    data: tuple[str, ...] = ()


@functools.lru_cache(maxsize=512)
def parse_options(words: tuple[str, ...]) -> Options:
    """Sort out the option words of a mount; the result is shared, so it is not to be changed.

    Raises:
        Unsupported: a word would change a mount that is there already (``remount``).
    """
    options = Options()
    for word in words:
        if _take_attribute(options, word):
            continue
        plain = word.removeprefix("r")
        if word in ("bind", "rbind"):
            options.bind = True
            options.bind_recursive |= word == "rbind"
        elif plain in _PROPAGATION:
            options.propagation = _PROPAGATION[plain]
            options.propagation_recursive = word != plain
        elif word in ("idmap", "ridmap"):
            options.idmap = True
        elif word == "remount":
            msg = "mount option 'remount' changes a mount that is there already; give it its final options"
            raise Unsupported(msg)
        elif word == "tmpcopyup":
            options.copy_up = True
        elif word not in _IGNORED:
            options.data = (*options.data, word)
    return options


def _take_attribute(options: Options, word: str) -> bool:
    """Note a word that sets or clears attributes of a mount; ``rro`` and its like do so for nested mounts too."""
    known = word in _SET or word in _CLEAR or word in _ATIME_WORDS
    if not known and word.startswith("r") and _take_attribute(options, word[1:]):
        options.recursive = True
        return True
    if word in _ATIME_WORDS or _SET.get(word, 0) & ATIME:
        options.attributes = options.attributes & ~ATIME | _SET.get(word, 0)
        options.clear |= ATIME
    elif word in _SET:
        options.attributes |= _SET[word]
        options.clear &= ~_SET[word]
    elif word in _CLEAR:
        options.attributes &= ~_CLEAR[word]
        options.clear |= _CLEAR[word]
    return known


def create_mount(program: Program, mount: oci.Mount, below: int = CWD) -> int:
    """Append the steps that make a new file system, in the container's namespaces; return the mount's operand.

    Args:
        program: where to.
        mount: what the document says of it.
        below: the container's root, while it is not the process's own yet.

    Raises:
        Unsupported: id mappings are asked for something else than a bind mount.
    """
    options = parse_options(mount.options)
    if mount.uid_mappings or mount.gid_mappings or options.idmap:
        msg = f"mount {mount.destination}: id mappings are for bind mounts, not for {mount.type}"
        raise Unsupported(msg)
    kind = mount.type or "none"
    label = f"mount {kind} on {mount.destination}:"
    data = options.data
    if mount.source and mount.source not in (kind, "none") and kind not in _NO_SOURCE:
        data = (f"source={mount.source}", *data)
    attributes = options.attributes & ~RDONLY if options.copy_up else options.attributes
    fd = program.mount(label, kind, data, attributes=attributes)
    if options.propagation:
        program.step(lib.PYC_OP_SETATTR, label, fd=fd, c=options.propagation)
    if options.copy_up:
        if kind != "tmpfs":
            msg = f"mount {mount.destination}: tmpcopyup is for a tmpfs, not for {kind}"
            raise Unsupported(msg)
        own = not any(word.startswith("mode=") for word in options.data)
        program.step(
            lib.PYC_OP_COPY_UP, "fill the tmpfs with what it covers,", mount.destination, fd=fd, fd2=below, a=int(own)
        )
        if options.attributes & RDONLY:
            program.step(lib.PYC_OP_SETATTR, label, fd=fd, a=RDONLY)
    return fd


def attach_mount(program: Program, mount: oci.Mount, fd: int, below: int = CWD) -> None:
    """Append the step that attaches a mount where the container sees it; missing targets are made.

    Args:
        program: where to.
        mount: what the document says of it.
        fd: the mount.
        below: the container's root, while it is not the process's own yet.
    """
    if is_bind(mount):
        flags = lib.PYC_MAKE_LIKE
    else:  # a symlink of the image must not decide where /proc is (CVE-2019-19921)
        flags = lib.PYC_MAKE_DIR | (lib.PYC_NOFOLLOW if mount.type in ("proc", "sysfs") else 0)
    if mount.type != "proc" and mount.destination not in _ON_PROC:
        flags |= lib.PYC_NOT_PROC
    program.attach(f"mount {mount.type or 'bind'} on", fd, mount.destination, below=below, flags=flags)


# What may be covered of /proc: files with which lxcfs and its like show a container its own limits.
_ON_PROC = {
    f"/proc/{name}"
    for name in ("cpuinfo", "diskstats", "loadavg", "meminfo", "net/dev", "slabinfo", "stat", "swaps", "uptime")
}
_NO_SOURCE = {"proc", "sysfs", "tmpfs", "devpts", "mqueue", "cgroup", "cgroup2", "shm"}


def add_bind(program: Program, mount: oci.Mount, *, bundle: str | None = None, userns_fd: int = -1) -> int:
    """Append the host steps that open the source of a bind mount with all its attributes; return the mount's operand.

    Everything is done on the detached copy, before the container can see it: there is no moment at which a read-only
    bind is writable, and no path of the container takes part (CVE-2021-30465).
    """
    options = parse_options(mount.options)
    source = mount.source or ""
    if not source.startswith("/"):
        if bundle is None:
            raise StartError("bind mount", source, 0, "the source must be an absolute path on the host")
        source = str(Path(bundle, source))
    if options.data:
        msg = f"bind mount of {source}: options {', '.join(options.data)} are not for bind mounts"
        raise Unsupported(msg)
    flags = OPEN_TREE_CLONE | (AT_RECURSIVE if options.bind_recursive else 0)
    fd = program.step(
        lib.PYC_OP_OPEN_TREE, "open the source of a bind mount,", source, fd=CWD, a=flags, host=True, result=True
    )
    recursive = lib.PYC_RECURSIVE if options.recursive else 0
    if options.attributes or options.clear:
        program.step(
            lib.PYC_OP_SETATTR,
            f"set {','.join(mount.options)} on the bind mount of {source}",
            fd=fd,
            a=options.attributes,
            b=options.clear,
            flags=recursive,
            host=True,
        )
    program.step(
        lib.PYC_OP_SETATTR,
        f"set the propagation of the bind mount of {source}",
        fd=fd,
        c=options.propagation or _PROPAGATION["private"],
        flags=lib.PYC_RECURSIVE if options.propagation_recursive or not options.propagation else 0,
        host=True,
    )
    if userns_fd >= 0:
        program.step(lib.PYC_OP_SETATTR, f"map the ids of the bind mount of {source}", fd=fd, fd2=userns_fd, host=True)
    return fd


def is_bind(mount: oci.Mount) -> bool:
    """Whether a mount shows something of the host."""
    return mount.type == "bind" or parse_options(mount.options).bind
