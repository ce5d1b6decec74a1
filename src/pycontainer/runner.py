"""The runs of one engine: what they share, and how wishes become a start."""

from __future__ import annotations

import contextlib
import errno
import os
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs

from pycontainer.attached import run_attached
from pycontainer.errors import StartError
from pycontainer.kept import Kept, inverse_map
from pycontainer.launch import Options, document, etc_files
from pycontainer.model import Mount
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
from pycontainer.streams import Attachment

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from pycontainer.image import Image
    from pycontainer.model import Result
    from pycontainer.running import Running
    from pycontainer.store import Store

__all__ = ["Runner"]

# What a start fails with when its keeper is gone.
_LOST = (errno.ECHILD, errno.EPIPE, errno.ECONNRESET, errno.ECONNREFUSED)


class Runner:
    """Runs containers; one for each engine, and as safe to share between threads.

    Args:
        store: where the layers are.
        root: directory of the store, for what runs leave for a while.

    Raises:
        StartError: what an earlier program left cannot be removed.
    """

    def __init__(self, store: Store, root: Path) -> None:
        self._store = store
        self._runs = root / "runs"
        self._lock = threading.Lock()
        self._closed = False
        self._keeper: Keeper | None = None
        self._accounts: dict[str, Accounts] = {}
        self._recipes = Recipes()
        self._filters = FilterCache(root / "cache" / "seccomp")
        self._skeleton = skeleton.prepare(root / "cache")
        self._user_namespaces = UserNamespaces()
        self._cgroups = Cgroups(device=root.stat().st_dev)
        try:
            recover(self._runs, self._cgroups)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Kill what still runs, remove what it left. Safe to call again."""
        self._closed = True
        with self._lock:
            keeper, self._keeper = self._keeper, None
        if keeper is not None:
            keeper.close()
        self._cgroups.close()
        self._user_namespaces.close()

    def info(self) -> Mapping[str, object]:
        """Return what of the host matters to runs."""
        return {
            "cgroup_version": self._cgroups.version,
            "cgroup_controllers": self._cgroups.controllers,
            "capabilities": capabilities.available(),
        }

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

    def run(
        self,
        image: Image,
        wishes: Mapping[str, Any],
        streams: Mapping[str, Any],
        *,
        seccomp: str,
        init: bool,
        cgroup_parent: str | None,
        began: float,
        timeout: float | None,
        check: bool,
        on_start: Callable[[Running], object] | None,
    ) -> Result:
        """Run a command of an image; see :meth:`pycontainer.Engine.run`.

        Args:
            image: the image.
            wishes: the fields of :class:`Options`.
            streams: the fields of :class:`Attachment`.
            seccomp: as for the engine.
            init: as for the engine.
            cgroup_parent: as for the engine.
            began: ``time.monotonic()`` of the call.
            timeout: as for the engine.
            check: as for the engine.
            on_start: as for the engine.
        """
        attachment = Attachment(**streams, tty=wishes["tty"])
        lowers = (*self._store.acquire(image.id), self._skeleton)
        try:
            return self._run_by_keeper(
                lambda keeper: self._start(image, wishes, lowers, keeper, seccomp, cgroup_parent, init=init),
                attachment,
                began=began,
                timeout=timeout,
                check=check,
                on_start=on_start,
            )
        finally:
            self._store.release(image.id)

    def run_kept(
        self,
        kept: Kept,
        image: Image,
        options: Options,
        streams: Mapping[str, Any],
        *,
        seccomp: str,
        init: bool,
        cgroup_parent: str | None,
        began: float,
        timeout: float | None,
        check: bool,
        on_start: Callable[[Running], object] | None,
    ) -> Result:
        """Run a container on its own writable layer; see :meth:`pycontainer.Container.run`.

        Args:
            kept: what it keeps; nobody else uses it meanwhile.
            image: the image that it is made from.
            options: what it is to be.
            streams: as for :meth:`run`.
            seccomp: as for :meth:`run`.
            init: as for :meth:`run`.
            cgroup_parent: as for :meth:`run`.
            began: as for :meth:`run`.
            timeout: as for :meth:`run`.
            check: as for :meth:`run`.
            on_start: as for :meth:`run`.
        """
        lowers = (*self._store.acquire(image.id), self._skeleton)
        try:

            def start(keeper: Keeper) -> plan.Start:
                made = self._plan(image, options, lowers, keeper, seccomp, cgroup_parent, init=init, kept=kept)
                kept.note_group(made.cgroup)
                return made

            return self._run_by_keeper(
                start,
                Attachment(**streams, tty=options.tty),
                began=began,
                timeout=timeout,
                check=check,
                on_start=on_start,
            )
        finally:
            self._store.release(image.id)

    def _run_by_keeper(
        self,
        make_start: Callable[[Keeper], plan.Start],
        attachment: Attachment,
        *,
        began: float,
        timeout: float | None,
        check: bool,
        on_start: Callable[[Running], object] | None,
    ) -> Result:
        for last in (False, True):
            keeper = self._running_keeper()
            start = make_start(keeper)
            try:
                return run_attached(start, attachment, began=began, timeout=timeout, check=check, on_start=on_start)
            except StartError as error:
                # Killed, the keeper takes no request and bears no process any more: nothing has started yet.
                if last or error.errno not in _LOST or not keeper.has_ended():
                    raise
        raise AssertionError  # the second attempt returned or raised

    def _start(
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
        """Return the start for a caller's wishes: a remembered one with new ids, or one compiled now."""
        key = None
        if cgroup_parent is None and seccomp in ("default", "unconfined") and not image.config.volumes:
            key = recipe_key(wishes, image.id, lowers, seccomp, init, keeper.instance)
        start = self._recipes.get(key) if key is not None else None
        if start is None:
            start = self._plan(image, Options(**wishes), lowers, keeper, seccomp, cgroup_parent, init=init)
            if key is not None:
                self._recipes.put(key, start)
        return start

    def _plan(
        self,
        image: Image,
        options: Options,
        lowers: tuple[str, ...],
        keeper: Keeper,
        seccomp: str,
        cgroup_parent: str | None,
        *,
        init: bool,
        kept: Kept | None = None,
    ) -> plan.Start:
        run_id = os.urandom(32).hex()
        container_id = run_id if kept is None else kept.id  # each run of a kept one has a group of its own
        try:
            if kept is None:
                options = self._with_volumes(image, options, lowers, keeper.instance / run_id)
            else:
                kept.renew_work()
                options = _with_kept_volumes(kept, options)
            spec = document(container_id, image.config, options, self._identify(image, lowers, options, kept))
            name = spec.hostname or os.uname().nodename
            directory = f"{keeper.instance}/{run_id}" if kept is None else str(kept.directory)
            return plan.Start(
                spec=spec,
                container_id=run_id,
                cgroup=self._cgroups.group(run_id, f"{cgroup_parent}/{run_id}" if cgroup_parent else None),
                root=self._root(lowers, directory, spec, keeper)._replace(kept=kept is not None),
                keeper=keeper,
                cgroups=self._cgroups,
                user_namespaces=self._user_namespaces,
                seccomp=self._filter(seccomp, spec, privileged=options.privileged),
                init=init,
                files=etc_files(name, options),
            )
        except BaseException:
            keeper.forget(run_id)  # its volumes may be there already
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
        paths = _volume_paths(image, options)
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
        return _open_root(program)

    def _identify(self, image: Image, lowers: tuple[str, ...], options: Options, kept: Kept | None = None) -> Identity:
        accounts = self._accounts.get(image.id) if kept is None else None
        if accounts is None:
            fd = self._open_image(lowers) if kept is None else self._open_whole(lowers, kept, options)
            try:
                accounts = read_accounts(fd)
            finally:
                os.close(fd)
            if kept is None:
                self._accounts[image.id] = accounts
        return accounts.identify(options.user if options.user is not None else image.config.user, options.groups)

    # ── containers that are kept ──

    @property
    def cgroups(self) -> Cgroups:
        """The control groups of this engine."""
        return self._cgroups

    def make_kept(self, kept: Kept, image: Image, options: Options) -> Kept:
        """Make what a container keeps, its volumes filled with what the image has there."""
        lowers = (*self._store.acquire(image.id), self._skeleton)
        try:
            root_fd = self._open_image(lowers)
            try:
                kept.make(root_fd, options.userns)
                kept = attrs.evolve(kept, volumes=tuple(_volume_paths(image, options)))
                for number, path in enumerate(kept.volumes):
                    volumes.fill(root_fd, path, kept.volume(number))
            finally:
                os.close(root_fd)
        finally:
            self._store.release(image.id)
        return kept

    @contextlib.contextmanager
    def open_layers(self, kept: Kept, image: Image, options: Options) -> Iterator[tuple[int, int]]:
        """Give the writable layer of a container and all that lies below it, open and read-only."""
        lowers = (*self._store.acquire(image.id), self._skeleton)
        try:
            upper = kept.open_upper(self._inverse(options))
            try:
                base = self._open_image(lowers)
                try:
                    yield upper, base
                finally:
                    os.close(base)
            finally:
                os.close(upper)
        finally:
            self._store.release(image.id)

    @contextlib.contextmanager
    def open_root(self, kept: Kept, image: Image, options: Options) -> Iterator[int]:
        """Give the root directory of a container as it is without the mount points that every container has."""
        lowers = self._store.acquire(image.id)
        try:
            root = self._open_whole(lowers, kept, options) if lowers else kept.open_upper(self._inverse(options))
            try:
                yield root
            finally:
                os.close(root)
        finally:
            self._store.release(image.id)

    def _open_whole(self, lowers: tuple[str, ...], kept: Kept, options: Options) -> int:
        program = Program()
        add_overlay(program, lowers, top=(str(kept.upper), self._inverse(options)))
        return _open_root(program)

    def _inverse(self, options: Options) -> int:
        """Return a user namespace that shows what a container wrote with the ids that it has inside, or -1."""
        if not options.userns:
            return -1
        text = inverse_map(options.userns)
        return self._user_namespaces.get(text, text, self._running_keeper().requests_fd)

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
        path: Path,
        streams: Mapping[str, Any],
        *,
        began: float,
        timeout: float | None,
        check: bool,
        on_start: Callable[[Running], object] | None,
    ) -> Result:
        """Run a bundle; see :meth:`pycontainer.Engine.run_bundle`."""
        from pycontainer import bundle as bundles  # its hooks need subprocess, which is slow to import

        bundle = bundles.read(path)
        spec = bundle.spec
        attachment = Attachment(**streams, tty=bool(spec.process and spec.process.terminal))
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
            if start.seccomp is not None and start.seccomp.has_listener:
                start.listener = bundles.Listener(bundle, container_id).hand_over
            hooks = bundles.Hooks(bundle, start)
            start.parks = hooks.parks
            try:
                return run_attached(
                    start,
                    attachment,
                    began=began,
                    timeout=timeout,
                    check=check,
                    on_start=hooks.started(on_start),
                    around=hooks.create if hooks.parks else None,
                )
            finally:
                hooks.stopped()


def _volume_paths(image: Image, options: Options) -> list[str]:
    """Return the volumes that an image declares and nothing else is mounted on."""
    taken = {mount.target.rstrip("/") for mount in options.mounts}
    return [path for path in image.config.volumes if path.rstrip("/") not in taken]


def _with_kept_volumes(kept: Kept, options: Options) -> Options:
    words = ("idmap",) if options.userns else ()
    made = [Mount.bind(str(kept.volume(number)), path, options=words) for number, path in enumerate(kept.volumes)]
    return attrs.evolve(options, mounts=(*options.mounts, *made))


def _open_root(program: Program) -> int:
    """Mount what a program says, and return its last result; the views of layers before it are held by that mount."""
    *others, root = program.prepare()
    for fd in others:
        os.close(fd)
    return root
