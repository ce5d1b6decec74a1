"""From a runtime document to a program of steps: the one way in which every container starts.

The order is the specification's: cgroup, namespaces, root, mounts, devices, masks, identity, execve. Whatever needs a
path of the host is done by host steps and enters as a descriptor; after pivot_root every path is the container's.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import NamedTuple

import attrs

from pycontainer._ffi import lib
from pycontainer.errors import Unsupported
from pycontainer.oci import runtime as oci
from pycontainer.oci.defaults import DEVICE_RULES
from pycontainer.runtime import identity, idmaps, labels, mounts
from pycontainer.runtime.cgroups import Cgroups
from pycontainer.runtime.dev import add_devices
from pycontainer.runtime.keeper import ATTACH_POINT, Keeper, helper_fd
from pycontainer.runtime.overlay import add_overlay, kernel_version
from pycontainer.runtime.program import CWD, Packed, Program
from pycontainer.runtime.seccomp import Filter

__all__ = [
    "CLONE",
    "SYNC_CREATE_CONTAINER",
    "SYNC_CREATE_RUNTIME",
    "SYNC_START_CONTAINER",
    "Directory",
    "Overlay",
    "Start",
    "build",
    "shared_guard",
]

CLONE = {
    "mount": 0x00020000,
    "cgroup": 0x02000000,
    "uts": 0x04000000,
    "ipc": 0x08000000,
    "user": 0x10000000,
    "pid": 0x20000000,
    "network": 0x40000000,
    "time": 0x00000080,
}
# Where a process waits for hooks, see the specification's runtime.md, "Lifecycle".
SYNC_CREATE_RUNTIME, SYNC_CREATE_CONTAINER, SYNC_START_CONTAINER = 1, 2, 3
_TIME_AT_EXEC = (6, 3)  # the kernel that enters a new time namespace at execve
O_PATH = 0o10000000
_MS_PRIVATE = 1 << 18

_O_CREAT = os.O_CREAT
_CGROUP_TYPES = ("cgroup", "cgroup2")
_S_IFREG = 0o100000


class Overlay(NamedTuple):
    """A root made of read-only layers with a writable one on top.

    Attributes:
        lowers: directories, topmost first.
        directory: holds ``upper`` and ``work``, made by the start unless they are kept.
        owner: user and group of the writable layer's own root, as the host sees them.
        userns_fd: user namespace through whose id maps the layers are shown, or -1.
        kept: the writable layer is there already and stays.
    """

    lowers: tuple[str, ...]
    directory: str
    owner: tuple[int, int] = (0, 0)
    userns_fd: int = -1
    kept: bool = False


class Directory(NamedTuple):
    """A root that is a directory of the host as it is, as in a bundle."""

    path: str


@attrs.define(kw_only=True, eq=False, repr=False)
class Start:
    """All that one start needs beside its document.

    Attributes:
        spec: the document, with a process.
        container_id: its 64 hex digits.
        cgroup: its control group, from :meth:`Cgroups.group`.
        root: the root file system.
        keeper: in whose namespaces it is born.
        cgroups: the control groups of the engine.
        user_namespaces: those that carry id maps for mounts.
        seccomp: the compiled filter, or None.
        init: run the helper as PID 1, which starts the program, reaps, and tells by the pipe ``ended`` which signal
            ended the program.
        files: small files laid over the image's, by path.
        bundle: directory to which relative sources refer.
        parks: the ``SYNC_*`` at which it waits for :meth:`Process.resume`, for hooks.
        packed: the finished program, where it is known already.
        join: descriptors of namespaces to join, by type.
        listener: takes the listener of the filter and the process's pid, where the filter has one.
    """

    spec: oci.Spec
    container_id: str
    cgroup: str
    root: Overlay | Directory
    keeper: Keeper
    cgroups: Cgroups
    user_namespaces: idmaps.UserNamespaces
    seccomp: Filter | None = None
    init: bool = False
    files: Mapping[str, bytes] = attrs.Factory(dict)
    bundle: str | None = None
    parks: frozenset[int] = frozenset()
    packed: Packed | None = None
    join: Mapping[str, int] = attrs.Factory(dict)
    listener: Callable[[int, int], object] | None = None


def build(start: Start) -> Program:
    """Return the program that starts a container.

    Raises:
        Unsupported: the document asks for something that this host or version cannot do.
    """
    return _Builder(start).build()


class _Builder:
    def __init__(self, start: Start) -> None:
        self.start = start
        self.spec = start.spec
        self.linux = start.spec.linux
        if start.spec.process is None:
            msg = "the document has no process to start"
            raise Unsupported(msg)
        self.process = start.spec.process
        self.program = Program()
        self.new = {n.type for n in self.linux.namespaces if n.type not in start.join}
        self.has = self.new | set(start.join)
        self.userns = "user" in self.has
        self.cgroup_top = self.empty = -1
        self.guard: str | None = None

    def build(self) -> Program:
        refuse_unsupported(self.spec)
        self._clone()
        resources = self.linux.resources or oci.Resources()
        self.program.mkdir(
            "make the container's directory",
            self.start.container_id,
            fd=self.start.keeper.instance_fd,
            flags=lib.PYC_EXISTS_OK,  # where its volumes lie already
            host=True,
        )
        born_in_group = self.start.cgroups.version == "v2"  # else it joins by itself, and may be born meanwhile
        if not born_in_group:
            self.program.mark_early()
        self.guard = shared_guard(self.start)
        self.start.cgroups.add_steps(self.program, self.start.cgroup, resources, self.guard)
        if born_in_group:
            self.program.mark_early()
        root = self._root()
        binds = self._binds()
        self._enter_namespaces()
        files = self._small_things()
        self._park(SYNC_CREATE_RUNTIME)
        prepared = {**binds, **self._early_mounts()}
        if SYNC_CREATE_CONTAINER in self.start.parks:
            self._show_host(root)
            self._mounts(prepared, files, root)
            self._park(SYNC_CREATE_CONTAINER)
            self.program.step(lib.PYC_OP_PIVOT, "enter the container's root", fd=root)
        else:
            self.program.step(lib.PYC_OP_PIVOT, "enter the container's root", ATTACH_POINT, fd=root)
            self._mounts(prepared, files)
        add_devices(self.program, self.spec, userns=self.userns)
        self._protect()
        self._identity()
        self._execute()
        return self.program

    # ── namespaces ──

    def _clone(self) -> None:
        program = self.program
        if "mount" not in self.has:
            msg = "linux.namespaces: a container needs a mount namespace of its own; add {'type': 'mount'}"
            raise Unsupported(msg)
        if "mount" in self.start.join:
            msg = "linux.namespaces: joining a mount namespace by path is not possible at the start of a container"
            raise Unsupported(msg)
        if "user" in self.start.join:  # what is made before would not belong to it
            program.clone_flags = sum(CLONE[name] for name in self.new & {"pid"})
        else:
            program.clone_flags = sum(CLONE[name] for name in self.new - {"cgroup", "time"})
        program.pidns_fd = self.start.join.get("pid", -1)
        if "user" in self.new:
            program.uid_map = idmaps.map_text(self.linux.uid_mappings)
            program.gid_map = idmaps.map_text(self.linux.gid_mappings)
        program.step(lib.PYC_OP_UMASK, "clear the umask", a=0)

    def _enter_namespaces(self) -> None:
        program = self.program
        if self.process.oom_score_adj is not None:
            program.write(
                "set oom_score_adj", "/proc/self/oom_score_adj", str(self.process.oom_score_adj).encode(), proc=True
            )
        labels.add_labels(program, self.process)
        self._time_namespace()
        if self.userns:
            self._enter_user_namespace()
        if "cgroup" in self.new:
            program.step(lib.PYC_OP_UNSHARE, "make the cgroup namespace", a=CLONE["cgroup"])
        for kind in ("network", "ipc", "uts", "cgroup"):
            if kind in self.start.join:
                self._join(kind)
        if self.spec.hostname:
            self._need("uts", "hostname")
            program.step(lib.PYC_OP_HOSTNAME, "set the host name", self.spec.hostname)
        if self.spec.domainname:
            self._need("uts", "domainname")
            program.step(lib.PYC_OP_DOMAINNAME, "set the domain name", self.spec.domainname)
        if "network" in self.new:
            program.step(lib.PYC_OP_LOOPBACK, "bring up the loopback interface")

    def _join(self, kind: str) -> None:
        fd = self.program.share(self.start.join[kind])
        self.program.step(lib.PYC_OP_SETNS, f"join the {kind} namespace", fd=fd, a=CLONE[kind])

    def _enter_user_namespace(self) -> None:
        program = self.program
        if "user" in self.start.join:
            self._join("user")
            flags = sum(CLONE[name] for name in self.new - {"user", "pid", "cgroup", "time"})
            program.step(lib.PYC_OP_UNSHARE, "make the namespaces", a=flags)
        program.step(lib.PYC_OP_GROUPS, "drop the caller's groups", data=b"", flags=lib.PYC_DENIED_OK)
        program.step(lib.PYC_OP_IDS, "become root of the user namespace")

    def _time_namespace(self) -> None:
        if "time" in self.start.join:
            self._join("time")
        if "time" not in self.new:
            return
        if kernel_version() < _TIME_AT_EXEC:
            msg = "a time namespace needs Linux 6.3 or newer, whose execve enters it"
            raise Unsupported(msg)
        self.program.step(lib.PYC_OP_UNSHARE, "make the time namespace", a=CLONE["time"])
        offsets = self.linux.time_offsets
        for name in ("monotonic", "boottime"):
            offset = getattr(offsets, name) if offsets else None
            if offset is not None:
                text = f"{name} {offset.secs} {offset.nanosecs}\n"
                self.program.write(f"set the {name} clock", "/proc/self/timens_offsets", text.encode(), proc=True)

    def _need(self, namespace: str, what: str) -> None:
        if namespace not in self.has:
            msg = f"{what} would change the host: it needs a {namespace} namespace of the container's own"
            raise Unsupported(msg)

    # ── root ──

    def _root(self) -> int:
        program, root = self.program, self.start.root
        if isinstance(root, Directory):
            # Nothing is kept there, but by it the cleaner knows the container.
            fd = program.step(
                lib.PYC_OP_OPEN_TREE,
                "open the root directory",
                root.path,
                fd=CWD,
                a=mounts.OPEN_TREE_CLONE | mounts.AT_RECURSIVE,
                host=True,
                result=True,
            )
            program.step(
                lib.PYC_OP_SETATTR,
                "make the root private",
                fd=fd,
                c=_MS_PRIVATE,
                flags=lib.PYC_RECURSIVE,
                host=True,
            )
            return fd
        if not root.kept:
            self._make_layer(root)
        return add_overlay(program, root.lowers, root.directory, userns_fd=root.userns_fd, kept=root.kept)

    def _make_layer(self, root: Overlay) -> None:
        program, name, keeper = self.program, self.start.container_id, self.start.keeper
        for path in (f"{name}/upper", f"{name}/work"):
            program.mkdir("make the container's directory", path, fd=keeper.instance_fd, exact=True, host=True)
        if root.owner != (0, 0):
            program.step(
                lib.PYC_OP_CHOWN,
                "give the container its root directory",
                f"{name}/upper",
                fd=keeper.instance_fd,
                a=root.owner[0],
                b=root.owner[1],
                host=True,
            )

    def _park(self, number: int) -> None:
        if number in self.start.parks:
            self.program.step(lib.PYC_OP_SYNC, "wait for the hooks", a=number)

    def _show_host(self, root: int) -> None:
        """Attach the root where it is on the host, in a copy of the host's mounts, for hooks that look for it there."""
        program, path = self.program, getattr(self.start.root, "path", "")
        label = "show the host to the hooks"
        flags = mounts.OPEN_TREE_CLONE | mounts.AT_RECURSIVE
        host = program.step(lib.PYC_OP_OPEN_TREE, label, "/", fd=CWD, a=flags, host=True, result=True)
        program.step(lib.PYC_OP_SETATTR, label, fd=host, c=_MS_PRIVATE, flags=lib.PYC_RECURSIVE, host=True)
        program.attach(label, host, ATTACH_POINT)
        program.attach(label, root, os.path.realpath(path), below=host)

    # ── mounts ──

    def _binds(self) -> dict[int, int]:
        """Open the sources of all bind mounts on the host; by the mount's number."""
        return {
            number: mounts.add_bind(self.program, mount, bundle=self.start.bundle, userns_fd=self._mount_userns(mount))
            for number, mount in enumerate(self.spec.mounts)
            if mounts.is_bind(mount)
        }

    def _mount_userns(self, mount: oci.Mount) -> int:
        """Return the namespace through whose maps a bind mount is shown, or -1; the container's own by default."""
        if not (mount.uid_mappings or mount.gid_mappings or mounts.parse_options(mount.options).idmap):
            return -1
        uids = mount.uid_mappings or self.linux.uid_mappings
        gids = mount.gid_mappings or self.linux.gid_mappings
        return self.start.user_namespaces.get(
            idmaps.map_text(uids), idmaps.map_text(gids), self.start.keeper.requests_fd
        )

    def _small_things(self) -> dict[str, int]:
        """Make a tmpfs for what is small: files of /etc, the directory of the cgroups, the empty one for masks.

        It is seen nowhere but where its parts are bound. Return the operands of the files by path.
        """
        program, files = self.program, self.start.files
        v1 = self.start.cgroups.version != "v2" and any(m.type in _CGROUP_TYPES for m in self.spec.mounts)
        if not (files or v1 or self.linux.masked_paths):
            return {}
        label = "make the container's own small files"
        fd = program.mount(label, "tmpfs", ["mode=755", "size=1m"])
        program.attach(label, fd, ATTACH_POINT)

        def part(name: str) -> int:
            return program.step(lib.PYC_OP_OPEN_TREE, label, name, fd=fd, a=mounts.OPEN_TREE_CLONE, result=True)

        operands = {}
        for number, (path, data) in enumerate(files.items()):
            program.write(label, str(number), data, fd=fd, open_flags=_O_CREAT)
            operands[path] = part(str(number))
        if v1:
            program.mkdir(label, "cgroup", fd=fd)
            self.cgroup_top = part("cgroup")
        if self.linux.masked_paths:
            program.mkdir(label, "empty", fd=fd, mode=0o555)
            self.empty = part("empty")
            program.step(lib.PYC_OP_SETATTR, label, fd=self.empty, a=mounts.RDONLY)
        return operands

    def _early_mounts(self) -> dict[int, int]:
        """Make proc and sysfs of a user namespace while the host's are still in sight; by the mount's number.

        The kernel wants to see that they reveal nothing new, see user_namespaces(7) and mount_too_revealing() in
        fs/namespace.c.
        """
        if not self.userns:
            return {}
        return {
            number: mounts.create_mount(self.program, mount)
            for number, mount in enumerate(self.spec.mounts)
            if mount.type in ("proc", "sysfs")
        }

    def _mounts(self, prepared: Mapping[int, int], files: Mapping[str, int], below: int = CWD) -> None:
        covered = set()
        proc = -1
        for number, mount in enumerate(self.spec.mounts):
            covered.add(mount.destination.rstrip("/"))
            if mount.type in _CGROUP_TYPES and number not in prepared:
                self._cgroup_mount(mount, below)
                continue
            fd = prepared.get(number)
            if fd is None:
                fd = mounts.create_mount(self.program, self._with_mapped_group(mount), below)
            if mount.type == "proc":
                proc = fd
            mounts.attach_mount(self.program, mount, fd, below)
        self._sysctls(proc)
        for path, fd in files.items():
            if path not in covered:
                self.program.attach(f"lay {path} over the image's", fd, path, below=below, flags=lib.PYC_MAKE_FILE)

    def _with_mapped_group(self, mount: oci.Mount) -> oci.Mount:
        """Leave out the group of terminals where the user namespace has no such group: the kernel would refuse it."""
        maps = self.linux.gid_mappings
        if mount.type != "devpts" or not maps:
            return mount

        def is_mapped(word: str) -> bool:
            gid = word.removeprefix("gid=")
            return any(m.container_id <= int(gid) < m.container_id + m.size for m in maps)

        words = tuple(word for word in mount.options if not word.startswith("gid=") or is_mapped(word))
        return attrs.evolve(mount, options=words)

    def _sysctls(self, proc: int) -> None:
        """Write kernel parameters through the very procfs that was just made, whatever lies over it by now."""
        if not self.linux.sysctl:
            return
        from pycontainer.oci.runtime_rules import sysctl_path  # few containers need it

        for name, value in self.linux.sysctl.items():
            if proc == -1:
                msg = "linux.sysctl: the document mounts no proc, by which kernel parameters are set"
                raise Unsupported(msg)
            label = f"set the kernel parameter {name} = {value} by"
            self.program.write(label, "sys/" + sysctl_path(name), value.encode(), fd=proc, flags=lib.PYC_BENEATH)

    def _cgroup_mount(self, mount: oci.Mount, below: int) -> None:
        program, cgroups = self.program, self.start.cgroups
        options = mounts.parse_options(mount.options)
        target = mount.destination
        if cgroups.version == "v2":
            if "cgroup" in self.has:
                unified = attrs.evolve(mount, type="cgroup2", source="cgroup2")
                mounts.attach_mount(program, unified, mounts.create_mount(program, unified), below)
                return
            parent = next(iter(cgroups.parent_fds), -1)
            fd = self._cgroup_tree("", options.attributes, parent, self.start.cgroup)
            program.attach("mount the control group on", fd, target, below=below, flags=lib.PYC_MAKE_DIR)
            return
        label = "mount the control groups on"
        top = self.cgroup_top
        program.attach(label, top, target, below=below, flags=lib.PYC_MAKE_DIR)
        resources = self.linux.resources or oci.Resources()
        for hierarchy, parent, group in cgroups.places(self.start.cgroup, resources, self.guard):
            fd = self._cgroup_tree(hierarchy.name, options.attributes, parent, group)
            program.mkdir(label, hierarchy.name, fd=top)
            program.attach(label, fd, hierarchy.name, below=top)
            for name in hierarchy.name.split(","):
                if name != hierarchy.name:
                    program.step(lib.PYC_OP_SYMLINK, label, name, fd=top, text=hierarchy.name)
        program.step(lib.PYC_OP_SETATTR, label, fd=top, a=options.attributes & ~mounts.ATIME)

    def _cgroup_tree(self, name: str, attributes: int, parent: int, group: str) -> int:
        label = f"open the control group {name}".rstrip()
        fd = self.program.step(
            lib.PYC_OP_OPEN_TREE,
            label,
            group,
            fd=parent,
            a=mounts.OPEN_TREE_CLONE,
            host=True,
            result=True,
        )
        self.program.step(lib.PYC_OP_SETATTR, label, fd=fd, a=attributes & ~mounts.ATIME, c=_MS_PRIVATE, host=True)
        return fd

    # ── /dev and protection ──

    def _protect(self) -> None:
        program, linux = self.program, self.linux
        if self.process.terminal:
            console = "/dev/console"
            program.step(
                lib.PYC_OP_MKNOD, "make the console", console, fd=CWD, a=_S_IFREG | 0o600, flags=lib.PYC_EXISTS_OK
            )
        program.step(lib.PYC_OP_MKDIR_IN, "make the working directory", self.process.cwd)
        if linux.rootfs_propagation:
            word = linux.rootfs_propagation
            options = mounts.parse_options((word,))
            recursive = lib.PYC_RECURSIVE if options.propagation_recursive else 0
            program.step(
                lib.PYC_OP_SETATTR, f"make the root {word}", "/", fd=CWD, c=options.propagation, flags=recursive
            )
        for path in linux.readonly_paths:
            program.step(lib.PYC_OP_READONLY, "make read-only:", path, flags=lib.PYC_MISSING_OK)
        if linux.masked_paths:
            null = program.step(
                lib.PYC_OP_OPEN, "open the null device of the container", "/dev/null", fd=CWD, a=O_PATH, result=True
            )
            for path in linux.masked_paths:
                program.step(lib.PYC_OP_MASK, "mask", path, fd=null, fd2=self.empty, flags=lib.PYC_MISSING_OK)

    # ── identity ──

    def _identity(self) -> None:
        program, process = self.program, self.process
        if self.spec.root.readonly:
            program.step(lib.PYC_OP_SETATTR, "make the root read-only", "/", fd=CWD, a=mounts.RDONLY)
        identity.add_scheduling(program, process, self.linux)
        program.step(lib.PYC_OP_KEYRING, "make a session keyring", flags=lib.PYC_DENIED_OK)
        self._park(SYNC_START_CONTAINER)
        self._streams()
        init = self.start.init
        helper, ended = (program.share(helper_fd()), program.share("ended")) if init else (-1, -1)
        program.step(lib.PYC_OP_CLOSE_ALL, "close all other descriptors", fd=helper, fd2=ended)
        identity.add_credentials(program, process, self.start.seccomp)

    def _streams(self) -> None:
        program, process = self.program, self.process
        if process.terminal:
            size = process.console_size
            devpts = program.step(
                lib.PYC_OP_OPEN,
                "open the terminals of the container",
                "/dev/pts",
                fd=CWD,
                a=os.O_DIRECTORY,
                result=True,
            )
            program.step(
                lib.PYC_OP_TTY,
                "make the terminal",
                "/dev/console",
                fd=devpts,
                a=(size.height << 16 | size.width) if size else 0,
                b=process.user.uid,
            )
            return
        program.step(lib.PYC_OP_SETSID, "start a session")
        program.step(
            lib.PYC_OP_STDIO,
            "give the process its standard streams",
            fd=program.share("stdin"),
            fd2=program.share("stdout"),
            a=program.share("stderr"),
            b=process.user.uid,
            c=process.user.gid,
        )

    def _execute(self) -> None:
        process = self.process
        path = next(
            (v[5:] for v in process.env if v.startswith("PATH=")),
            "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        )
        if self.start.init:
            self.program.status_target = 3
            self.program.execute("execute the init", "", ["pycontainer-init", "init", *process.args], process.env, fd=4)
            return
        self.program.execute("execute", process.args[0], process.args, process.env, search_path=path)


def shared_guard(start: Start) -> str | None:
    """Return the group of the usual rules for devices, if nothing in the container can change them for others."""
    resources, process = start.spec.linux.resources, start.spec.process
    if resources is None or resources.devices != DEVICE_RULES or start.cgroup != start.container_id:
        return None
    sets = process.capabilities if process is not None else None
    shown = (mounts.parse_options(m.options).attributes for m in start.spec.mounts if m.type in _CGROUP_TYPES)
    unable = sets is not None and "CAP_SYS_ADMIN" not in {*sets.bounding, *sets.effective, *sets.permitted}
    if unable and all(attributes & mounts.RDONLY for attributes in shown):
        return start.keeper.guard()
    return None


def refuse_unsupported(spec: oci.Spec) -> None:
    """Refuse what a document may ask for and this version does not do.

    Raises:
        Unsupported: naming the property.
    """
    linux = spec.linux
    refused = {
        "linux.intelRdt": linux.intel_rdt,
        "linux.netDevices": linux.net_devices,
        "linux.mountLabel": linux.mount_label,
    }
    for name, value in refused.items():
        if value:
            msg = f"{name} is not supported by this version of pycontainer; remove it from the document"
            raise Unsupported(msg)
