"""The engine: one store on disk and everything that acts on it. The one door to the library."""

from __future__ import annotations

import contextlib
import os
import time
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Self

from pycontainer.errors import NotFound, RegistryError, Unsupported
from pycontainer.image import Image
from pycontainer.images import Images
from pycontainer.model import Device, IdMap, Limits, Mount, Result, Rlimit, Size, parse_size
from pycontainer.store import Store

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from types import TracebackType

    from pycontainer.containers import Containers
    from pycontainer.distribution.hosts import Registries
    from pycontainer.housekeeping import CheckReport, DiskUsage, Pruned
    from pycontainer.launch import Namespace
    from pycontainer.running import Running
    from pycontainer.streams import Input, Output

__all__ = ["Engine"]


def default_root() -> Path:
    """Return where the store is unless told otherwise: /var/lib/pycontainer, or below the XDG data directory."""
    if os.geteuid() == 0:
        return Path("/var/lib/pycontainer")
    data = os.environ.get("XDG_DATA_HOME") or str(Path.home() / ".local/share")
    return Path(data) / "pycontainer"


class Engine:
    r"""A store on disk and the containers run from it.

    Any number of threads may use one engine, and any number of processes one root.

    Args:
        root: directory of the store, made when missing; /var/lib/pycontainer by default.
        registries: how registries are reached; as the configuration files say by default.

    Raises:
        StoreError: the directory cannot be used.
        Unsupported: this process lacks the rights.

    >>> with Engine() as engine:
    ...     engine.run(engine.images.host(), ["echo", "hello"]).stdout
    b'hello\n'
    """

    def __init__(self, root: str | os.PathLike[str] | None = None, *, registries: Registries | None = None) -> None:
        self._closed = True
        if os.geteuid() != 0:
            msg = "pycontainer needs root in this version: CAP_SYS_ADMIN for namespaces, mounts and cgroups"
            raise Unsupported(msg)
        self.root = Path(root) if root is not None else default_root()
        self.root = self.root.absolute()
        # What a run needs is loaded when there is an engine: a program that imports us may never run anything.
        from pycontainer.kept import has_leftovers
        from pycontainer.runner import Runner

        with contextlib.ExitStack() as opened:
            self._store = Store.open(self.root)
            opened.callback(self._store.close)
            self._runner = Runner(self._store, self.root)
            opened.callback(self._runner.close)
            self.images = Images(self._store, registries)
            self._containers: Containers | None = None
            if has_leftovers(self._store):
                self.containers.recover()
            self._opened = opened.pop_all()
        self._closed = False

    def close(self) -> None:
        """Kill what still runs, remove what it left, close the store. Safe to call again."""
        if self._closed:
            return
        self._closed = True
        self._opened.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __del__(self) -> None:
        """Close a forgotten engine, and say so."""
        if not getattr(self, "_closed", True):
            warnings.warn(f"unclosed {self!r}", ResourceWarning, source=self, stacklevel=2)
            self.close()

    def __repr__(self) -> str:
        return f"Engine({str(self.root)!r})"

    @property
    def containers(self) -> Containers:
        """The containers that are kept; those of :meth:`run` are not."""
        if self._containers is None:
            from pycontainer.containers import Containers  # few programs that run something need it

            self._containers = Containers(self._store, self._runner, self.images, self._image)
        return self._containers

    # ── run ──

    def run(
        self,
        image: Image | str,
        command: str | Sequence[str] | None = None,
        *,
        entrypoint: str | Sequence[str] | None = None,
        env: Mapping[str, str] | None = None,
        workdir: str | None = None,
        user: str | None = None,
        groups: Sequence[str] = (),
        hostname: str | None = None,
        domainname: str | None = None,
        extra_hosts: Mapping[str, str] | None = None,
        dns: Sequence[str] = (),
        network: str = "none",
        mounts: Sequence[Mount] = (),
        limits: Limits | None = None,
        read_only: bool = False,
        cap_add: Sequence[str] = (),
        cap_drop: Sequence[str] = (),
        privileged: bool = False,
        seccomp: str = "default",
        no_new_privileges: bool = False,
        masked_paths: Sequence[str] | None = None,
        readonly_paths: Sequence[str] | None = None,
        rlimits: Sequence[Rlimit] = (),
        sysctls: Mapping[str, str] | None = None,
        oom_score_adj: int | None = None,
        devices: Sequence[Device] = (),
        shm_size: Size = "64M",
        userns: Sequence[IdMap] = (),
        pid: Namespace = "private",
        ipc: Namespace = "private",
        uts: Namespace = "private",
        cgroupns: Namespace = "private",
        cgroup_parent: str | None = None,
        timens: Mapping[str, float] | None = None,
        init: bool = False,
        tty: bool = False,
        pull: Literal["missing", "always", "never"] = "missing",
        input: bytes | None = None,  # noqa: A002 - as in subprocess.run
        stdin: Input = "none",
        stdout: Output = "capture",
        stderr: Output = "capture",
        output_limit: Size | None = "64M",
        timeout: float | None = None,
        check: bool = False,
        on_start: Callable[[Running], object] | None = None,
    ) -> Result:
        r"""Run a command in a new container of an image, wait for it, remove the container, return what happened.

        Args:
            image: an :class:`Image`, its reference, its id or a unique prefix of that.
            command: program and arguments; a text is the program alone. The image's own when not given.
            entrypoint: put before the command instead of the image's entrypoint.
            env: environment variables beside the image's.
            workdir: working directory in the container, made when missing.
            user: ``name``, ``uid``, ``name:group`` or ``uid:gid``, looked up in the image.
            groups: supplementary groups beside the user's own.
            hostname: the first 12 digits of the container's id when not given.
            domainname: NIS domain name.
            extra_hosts: addresses by name for /etc/hosts.
            dns: name servers for /etc/resolv.conf.
            network: ``"none"`` (only a loopback interface) or ``"host"``.
            mounts: what of the host is shown in it, and file systems in memory.
            limits: memory, processors, processes, I/O.
            read_only: make the root read-only.
            cap_add: capabilities beside the usual ones, or ``ALL``.
            cap_drop: capabilities to take away, or ``ALL``.
            privileged: all capabilities and devices, no seccomp, nothing masked. This is no isolation.
            seccomp: ``"default"``, ``"unconfined"``, or the path of a profile as docker takes it.
            no_new_privileges: setuid programs gain nothing.
            masked_paths: paths to make unreadable, instead of the usual ones.
            readonly_paths: paths to make read-only, instead of the usual ones.
            rlimits: resource limits of the process.
            sysctls: kernel parameters of the container's namespaces.
            oom_score_adj: -1000 to 1000, how likely the kernel kills it when the host runs out of memory.
            devices: nodes of the host's devices.
            shm_size: size of /dev/shm.
            userns: id ranges of a user namespace; empty for none.
            pid: ``"host"`` shows it all processes.
            ipc: ``"host"`` shares System V IPC and POSIX message queues.
            uts: ``"host"`` shares the host name.
            cgroupns: ``"host"`` shows its place among the host's control groups.
            cgroup_parent: group to make the container's group in, absolute from the root of the hierarchies.
            timens: seconds to add to the clocks ``monotonic`` and ``boottime``.
            init: run a small init as PID 1, which reaps orphans and hands signals on.
            tty: give it a terminal; its output arrives as ``stdout``.
            pull: ``"missing"``: an image that is not here is pulled; ``"always"``: it is brought up to date first;
                ``"never"``: only what is here is used.
            input: bytes for its standard input, which ends after them.
            stdin: ``"none"``, ``"inherit"``, or a file or descriptor.
            stdout: ``"capture"``, ``"inherit"``, ``"discard"``, a file or descriptor, or a function for the pieces.
            stderr: the same.
            output_limit: bytes kept of each captured stream, None for all; the rest is read and dropped.
            timeout: seconds until the whole process tree is killed.
            check: raise :class:`ExitError` when it fails.
            on_start: called with a :class:`Running` when the program runs.

        Returns:
            Exit code, signal, output and usage.

        Raises:
            NotFound: there is no such image, nor can it be pulled; or no such user in it.
            CommandNotFound: the program is not in the image.
            StartError: a step of the start failed; ``step``, ``path``, ``errno`` and ``hint`` say which and why.
            TimeoutExpired: the time was up; carries the result so far.
            ExitError: it failed, with ``check``; carries the result.
            Unsupported: this host cannot do what was asked.

        >>> with Engine() as engine:
        ...     result = engine.run(engine.images.host(), ["sh", "-c", "echo $((6*7)); exit 3"], timeout=10)
        >>> result.exit_code, result.stdout
        (3, b'42\n')
        """
        began = time.monotonic()
        found = self._image(image, pull) if isinstance(image, str) else image
        wishes = {
            "command": command,
            "entrypoint": entrypoint,
            "env": env or {},
            "workdir": workdir,
            "user": user,
            "groups": groups,
            "hostname": hostname,
            "domainname": domainname,
            "extra_hosts": extra_hosts or {},
            "dns": dns,
            "network": network,
            "mounts": (*found.mounts, *mounts),
            "limits": limits or Limits(),
            "read_only": read_only,
            "cap_add": cap_add,
            "cap_drop": cap_drop,
            "privileged": privileged,
            "no_new_privileges": no_new_privileges,
            "masked_paths": None if masked_paths is None else tuple(masked_paths),
            "readonly_paths": None if readonly_paths is None else tuple(readonly_paths),
            "rlimits": tuple(rlimits),
            "sysctls": sysctls or {},
            "oom_score_adj": oom_score_adj,
            "devices": tuple(devices),
            "shm_size": shm_size,
            "userns": tuple(userns),
            "pid": pid,
            "ipc": ipc,
            "uts": uts,
            "cgroupns": cgroupns,
            "timens": timens,
            "tty": tty,
        }
        streams = {
            "stdin": stdin,
            "data": input,
            "stdout": stdout,
            "stderr": stderr,
            "output_limit": None if output_limit is None else parse_size(output_limit),
        }
        return self._runner.run(
            found,
            wishes,
            streams,
            seccomp=seccomp,
            init=init,
            cgroup_parent=cgroup_parent,
            began=began,
            timeout=timeout,
            check=check,
            on_start=on_start,
        )

    def _image(self, name: str, pull: str) -> Image:
        """Return an image by name, pulled where that is wanted."""
        if pull not in ("missing", "always", "never"):
            msg = f"an image is pulled when missing, always or never, not {pull!r}"
            raise ValueError(msg)
        if pull == "always":
            return self.images.pull(name)
        try:
            return self.images.get(name)
        except NotFound as missing:
            if pull == "never" or name.startswith("sha256:"):
                raise
            try:
                return self.images.pull(name)
            except RegistryError as error:
                msg = f"{missing}; nor can it be pulled: {error}"
                raise NotFound(msg) from error

    def run_bundle(
        self,
        path: str | os.PathLike[str],
        *,
        input: bytes | None = None,  # noqa: A002
        stdin: Input = "none",
        stdout: Output = "capture",
        stderr: Output = "capture",
        output_limit: Size | None = "64M",
        timeout: float | None = None,
        check: bool = False,
        on_start: Callable[[Running], object] | None = None,
    ) -> Result:
        """Run an OCI runtime bundle made by others: a directory with ``config.json`` and a root file system.

        Every field of the document is honoured or refused. The root is used as it is: writes go to it.

        Args:
            path: the bundle.
            input: bytes for its standard input.
            stdin: as for :meth:`run`.
            stdout: as for :meth:`run`.
            stderr: as for :meth:`run`.
            output_limit: as for :meth:`run`.
            timeout: as for :meth:`run`.
            check: as for :meth:`run`.
            on_start: as for :meth:`run`.

        Returns:
            Exit code, signal, output and usage.

        Raises:
            InvalidSpec: the document is malformed.
            Unsupported: it asks for something that this host or version does not do.
            StartError: a step of the start failed.
        """
        began = time.monotonic()
        streams = {
            "stdin": stdin,
            "data": input,
            "stdout": stdout,
            "stderr": stderr,
            "output_limit": None if output_limit is None else parse_size(output_limit),
        }
        return self._runner.run_bundle(
            Path(path), streams, began=began, timeout=timeout, check=check, on_start=on_start
        )

    def info(self) -> Mapping[str, object]:
        """Return what this engine and its host are, for people and bug reports."""
        return {
            "root": str(self.root),
            "images": len(self.images.list()),
            **self._runner.info(),
        }

    # ── housekeeping ──────────────────────────────────────────────────────────────────────────────────────────────

    def disk_usage(self) -> DiskUsage:
        """Return what the store takes of the disk, and what of it can go; what several share counts once.

        >>> with Engine() as engine:
        ...     usage = engine.disk_usage()
        >>> usage.images.size >= usage.images.reclaimable >= 0
        True
        """
        from pycontainer.housekeeping import DiskUsage, SpaceUsage
        from pycontainer.store.usage import disk_size, measure_downloads, measure_images

        images, by_image, unreferenced = measure_images(self._store)
        layers: list[tuple[bool, int]] = []
        volumes: list[int] = []
        for container in self.containers.list():
            directory = self.root / "containers" / container.id
            layers.append((container.state == "running", disk_size(directory / "upper")))
            if (directory / "volumes").is_dir():
                volumes += [disk_size(path) for path in (directory / "volumes").iterdir()]
        return DiskUsage(
            images=images,
            containers=SpaceUsage(
                len(layers),
                sum(runs for runs, _ in layers),
                sum(size for _, size in layers),
                sum(size for runs, size in layers if not runs),
            ),
            volumes=SpaceUsage(len(volumes), len(volumes), sum(volumes), 0),
            downloads=measure_downloads(self._store),
            unreferenced=unreferenced,
            by_image=tuple(by_image),
        )

    def prune(self, *, all: bool = False) -> Pruned:  # noqa: A002 - as docker calls it
        """Delete containers that do not run, images that nobody needs, and interrupted downloads.

        Args:
            all: also images that have names, if no container uses them; not only those without a name.

        Returns:
            What went. Volumes go with their containers.
        """
        from pycontainer.housekeeping import Pruned
        from pycontainer.store import downloads
        from pycontainer.store.usage import disk_size

        parts = [self.root / name for name in ("blobs", "layers", "downloads", "containers")]
        before = sum(map(disk_size, parts))
        containers = self.containers.prune()
        images = self.images.prune(all=all)
        count = downloads.remove(self.root)
        self._store.collect()
        return Pruned(
            containers=containers.containers,
            untagged=images.untagged,
            images=images.deleted,
            downloads=count,
            size=max(before - sum(map(disk_size, parts)), 0),
        )

    def check(self, *, repair: bool = False, drop: bool = False) -> CheckReport:
        """Verify the store: blobs, layers, records and ``index.json`` against each other. All of it is read.

        Others may use the store meanwhile. A layer that is a directory, not an indexed tar, is only looked for.

        Args:
            repair: make anew what can be made from the rest, and delete what is damaged, so that the next load or pull
                of the image brings it in again.
            drop: delete images that stay damaged, unless a container is made from them.

        >>> with Engine() as engine:
        ...     engine.check().ok
        True
        """
        from pycontainer.distribution.check import check

        return check(self._store, repair=repair, drop=drop)
