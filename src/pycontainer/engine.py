"""The engine: one store on disk and everything that acts on it. The one door to the library."""

from __future__ import annotations

import contextlib
import os
import threading
import time
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import attrs

from pycontainer.attached import Running, run_attached
from pycontainer.errors import Unsupported
from pycontainer.image import Image, Images
from pycontainer.launch import Namespace, Options, document, etc_files
from pycontainer.model import Device, IdMap, Limits, Mount, Result, Rlimit, Size, parse_size
from pycontainer.oci import runtime as oci
from pycontainer.recipes import Recipes, recipe_key
from pycontainer.runtime import capabilities, plan, seccomp_profile, skeleton, volumes
from pycontainer.runtime.cgroups import Cgroups
from pycontainer.runtime.idmaps import UserNamespaces, map_text, outside_id
from pycontainer.runtime.keeper import Keeper, recover
from pycontainer.runtime.overlay import add_overlay
from pycontainer.runtime.program import Program
from pycontainer.runtime.seccomp import Filter, FilterCache
from pycontainer.runtime.users import Accounts, Identity, read_accounts
from pycontainer.store import Store
from pycontainer.streams import Attachment, Input, Output

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from types import TracebackType

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

    Raises:
        StoreError: the directory cannot be used.
        Unsupported: this process lacks the rights.

    >>> with Engine() as engine:
    ...     engine.run(engine.images.host(), ["echo", "hello"]).stdout
    b'hello\n'
    """

    def __init__(self, root: str | os.PathLike[str] | None = None) -> None:
        self._closed = True
        if os.geteuid() != 0:
            msg = "pycontainer needs root in this version: CAP_SYS_ADMIN for namespaces, mounts and cgroups"
            raise Unsupported(msg)
        self.root = Path(root) if root is not None else default_root()
        self.root = self.root.absolute()
        self._lock = threading.Lock()
        self._keeper: Keeper | None = None
        self._accounts: dict[str, Accounts] = {}
        self._recipes = Recipes()
        self._filters = FilterCache(self.root / "cache" / "seccomp")
        with contextlib.ExitStack() as opened:
            self._store = Store.open(self.root)
            opened.callback(self._store.close)
            self._skeleton = skeleton.prepare(self.root / "cache")
            self._user_namespaces = UserNamespaces()
            opened.callback(self._user_namespaces.close)
            self._cgroups = Cgroups(device=self.root.stat().st_dev)
            opened.callback(self._cgroups.close)
            recover(self._runs, self._cgroups)
            self._opened = opened.pop_all()
        self._closed = False
        self.images = Images(self._store)

    @property
    def _runs(self) -> Path:
        return self.root / "runs"

    def close(self) -> None:
        """Kill what still runs, remove what it left, close the store. Safe to call again."""
        if self._closed:
            return
        self._closed = True
        with self._lock:
            keeper, self._keeper = self._keeper, None
        if keeper is not None:
            keeper.close()
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

    def _running_keeper(self) -> Keeper:
        """Return the keeper of this process, started when there is none yet: first run, after fork, after its death."""
        if self._closed:
            msg = "this engine is closed"
            raise ValueError(msg)
        with self._lock:
            if self._keeper is None or not self._keeper.alive:
                if self._keeper is not None:
                    self._keeper.close()
                self._keeper = Keeper(self._runs, self._cgroups)
            return self._keeper

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
            NotFound: there is no such image, or no such user in it.
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
        found = self.images.get(image) if isinstance(image, str) else image
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
        attachment = Attachment(
            stdin=stdin,
            data=input,
            stdout=stdout,
            stderr=stderr,
            output_limit=None if output_limit is None else parse_size(output_limit),
            tty=tty,
        )
        keeper = self._running_keeper()
        key = None
        if cgroup_parent is None and seccomp in ("default", "unconfined") and not found.config.volumes:
            key = recipe_key(wishes, found.id, seccomp, init, keeper.instance)
        lowers = (*self._store.acquire(found.id), self._skeleton)
        try:
            start = self._recipes.get(key) if key is not None else None
            if start is None:
                start = self._plan(found, wishes, lowers, keeper, seccomp, cgroup_parent, init=init)
                if key is not None:
                    self._recipes.put(key, start)
            return run_attached(start, attachment, began=began, timeout=timeout, check=check, on_start=on_start)
        finally:
            self._store.release(found.id)

    def _plan(
        self,
        image: Image,
        wishes: Mapping[str, Any],
        lowers: tuple[str, ...],
        keeper: Keeper,
        seccomp: str,
        cgroup_parent: str | None,
        *,
        init: bool,
    ) -> plan.Start:
        options = Options(**wishes)
        container_id = os.urandom(32).hex()
        try:
            options = self._with_volumes(image, options, lowers, keeper.instance / container_id)
            spec = document(container_id, image.config, options, self._identify(image, lowers, options))
            name = spec.hostname or os.uname().nodename
            return plan.Start(
                spec=spec,
                container_id=container_id,
                cgroup=self._cgroups.group(container_id, f"{cgroup_parent}/{container_id}" if cgroup_parent else None),
                root=self._root(lowers, f"{keeper.instance}/{container_id}", spec, keeper),
                keeper=keeper,
                cgroups=self._cgroups,
                user_namespaces=self._user_namespaces,
                seccomp=self._filter(seccomp, spec, privileged=options.privileged),
                init=init,
                files=etc_files(name, options),
            )
        except BaseException:
            keeper.forget(container_id)  # its volumes may be there already
            raise

    def _root(self, lowers: tuple[str, ...], directory: str, spec: oci.Spec, keeper: Keeper) -> plan.Overlay:
        """Return the root of a container; in a user namespace its layers are shown with the container's ids."""
        uids, gids = spec.linux.uid_mappings, spec.linux.gid_mappings
        if not uids:
            return plan.Overlay(lowers=lowers, directory=directory)
        return plan.Overlay(
            lowers=lowers,
            directory=directory,
            owner=(outside_id(uids, 0), outside_id(gids, 0)),
            userns_fd=self._user_namespaces.get(map_text(uids), map_text(gids), keeper.requests_fd),
        )

    def _with_volumes(self, image: Image, options: Options, lowers: tuple[str, ...], directory: Path) -> Options:
        """Give each volume that the image declares a directory of its own, filled with what the image has there."""
        taken = {mount.target.rstrip("/") for mount in options.mounts}
        paths = [path for path in image.config.volumes if path.rstrip("/") not in taken]
        if not paths:
            return options
        root_fd = self._open_image(lowers)
        try:
            (directory / "volumes").mkdir(mode=0o755, parents=True)
            mounts = []
            for number, path in enumerate(paths):
                target = directory / "volumes" / str(number)
                volumes.fill(root_fd, path, target)
                mounts.append(Mount.bind(str(target), path, options=("idmap",) if options.userns else ()))
        finally:
            os.close(root_fd)
        return attrs.evolve(options, mounts=(*options.mounts, *mounts))

    @staticmethod
    def _open_image(lowers: tuple[str, ...]) -> int:
        """Return the root directory of an image, open and read-only."""
        program = Program()
        add_overlay(program, lowers)
        return program.prepare()[0]

    def _identify(self, image: Image, lowers: tuple[str, ...], options: Options) -> Identity:
        accounts = self._accounts.get(image.id)
        if accounts is None:
            fd = self._open_image(lowers)
            try:
                accounts = read_accounts(fd)
            finally:
                os.close(fd)
            self._accounts[image.id] = accounts
        return accounts.identify(options.user if options.user is not None else image.config.user, options.groups)

    def _filter(self, seccomp: str, spec: oci.Spec, *, privileged: bool) -> Filter | None:
        if seccomp == "unconfined" or (privileged and seccomp == "default"):
            return None
        sets = spec.process.capabilities if spec.process and spec.process.capabilities else oci.Capabilities()
        names = frozenset(sets.bounding)
        if seccomp == "default":
            return self._filters.default_filter(names)
        try:
            return self._filters.get(seccomp_profile.load_profile(Path(seccomp), names))
        except ValueError as error:
            msg = f"seccomp profile {seccomp}: {error}"
            raise ValueError(msg) from error

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
        from pycontainer import bundle as bundles  # its hooks need subprocess, which is slow to import

        began = time.monotonic()
        bundle = bundles.read(Path(path))
        spec = bundle.spec
        attachment = Attachment(
            stdin=stdin,
            data=input,
            stdout=stdout,
            stderr=stderr,
            output_limit=None if output_limit is None else parse_size(output_limit),
            tty=bool(spec.process and spec.process.terminal),
        )
        filters = spec.linux.seccomp
        with contextlib.ExitStack() as stack:
            container_id = os.urandom(32).hex()
            start = plan.Start(
                spec=spec,
                container_id=container_id,
                cgroup=self._cgroups.group(container_id, spec.linux.cgroups_path),
                root=plan.Directory(path=str(bundle.root)),
                keeper=self._running_keeper(),
                cgroups=self._cgroups,
                user_namespaces=self._user_namespaces,
                seccomp=self._filters.get(filters) if filters is not None else None,
                bundle=str(bundle.path),
                join=bundles.open_namespaces(spec, stack),
            )
            hooks = bundles.Hooks(bundle, start.container_id)
            start.park = hooks.park
            try:
                return run_attached(
                    start,
                    attachment,
                    began=began,
                    timeout=timeout,
                    check=check,
                    on_start=hooks.started(on_start),
                    around=hooks.create if hooks.park else None,
                )
            finally:
                hooks.stopped()

    def info(self) -> Mapping[str, object]:
        """Return what this engine and its host are, for people and bug reports."""
        return {
            "root": str(self.root),
            "images": len(self.images.list()),
            "cgroup_version": self._cgroups.version,
            "cgroup_controllers": self._cgroups.controllers,
            "capabilities": capabilities.available(),
        }
