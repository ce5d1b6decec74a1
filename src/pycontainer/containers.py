"""The collection of all containers of a store that are kept."""

from __future__ import annotations

import json
import os
import time
from typing import TYPE_CHECKING, Any, Literal

import attrs

from pycontainer.container import Container
from pycontainer.errors import Conflict, NotFound
from pycontainer.kept import Kept, remove_directory
from pycontainer.launch import Options, full_command
from pycontainer.model import Limits
from pycontainer.names import check_container_name, is_container_id, is_id_prefix, new_container_id, random_name
from pycontainer.store import ContainerRow

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from pycontainer.image import Image
    from pycontainer.images import Images
    from pycontainer.launch import Namespace
    from pycontainer.model import ContainerState, Device, IdMap, Mount, Rlimit, Size
    from pycontainer.runner import Runner
    from pycontainer.store import Store

__all__ = ["Containers", "PrunedContainers"]

_ATTEMPTS = 20


@attrs.frozen
class PrunedContainers:
    """What a clean-up removed.

    Attributes:
        containers: ids of the containers.
        size: bytes of disk that are free now.
    """

    containers: tuple[str, ...]
    size: int


class Containers:
    """The containers of a store, as ``engine.containers``.

    Wherever a name is taken, a name, an id or the unique beginning of an id works.

    Args:
        store: where they are.
        runner: runs them.
        images: the images of the engine.
        find_image: returns an image by name, pulled where that is wanted.
    """

    def __init__(self, store: Store, runner: Runner, images: Images, find_image: Callable[[str, str], Image]) -> None:
        self._store = store
        self._runner = runner
        self._images = images
        self._find_image = find_image
        self._directory = store.root / "containers"

    # ── look up ───────────────────────────────────────────────────────────────────────────────────────────────────

    def get(self, name: str | Container) -> Container:
        """Return a container.

        Args:
            name: its name, its id, or the unique beginning of that.

        Raises:
            NotFound: there is none; the message lists names that are alike.
            Conflict: several ids start like this.
        """
        return self._container(self._find(name.id if isinstance(name, Container) else name))

    def exists(self, name: str) -> bool:
        """Tell whether there is such a container."""
        try:
            self._find(name)
        except NotFound:
            return False
        return True

    def list(
        self,
        *,
        state: ContainerState | None = None,
        name: str | None = None,
        image: str | Image | None = None,
        labels: Mapping[str, str | None] | None = None,
        exit_code: int | None = None,
        before: str | Container | None = None,
        since: str | Container | None = None,
    ) -> list[Container]:
        """Return containers, the newest first; all of them, or those that fit everything given.

        Args:
            state: ``"created"``, ``"running"`` or ``"exited"``.
            name: a part of the name.
            image: what they are made from; images made of that one count too.
            labels: labels that they have; with this value, or with any where that is None.
            exit_code: of their last run.
            before: made before this one.
            since: made after this one.

        >>> with Engine() as engine:
        ...     _ = engine.containers.create(engine.images.host(), ["true"], labels={"tier": "db"})
        ...     [container.state for container in engine.containers.list(labels={"tier": "db"})]
        ['created']
        """
        rows = self._store.db.containers()
        if before is not None:
            limit = self.get(before)
            rows = [row for row in rows if row.created < limit.created.timestamp() and row.id != limit.id]
        if since is not None:
            limit = self.get(since)
            rows = [row for row in rows if row.created > limit.created.timestamp() and row.id != limit.id]
        if name is not None:
            rows = [row for row in rows if name in row.name]
        found = [self._container(row) for row in rows]
        if image is not None:
            layers = self._images.get(image).layers
            found = [item for item in found if item.image.layers[: len(layers)] == layers]
        if labels:
            found = [item for item in found if _has_labels(item, labels)]
        if state is not None:
            found = [item for item in found if item.state == state]
        if exit_code is not None:
            found = [item for item in found if item.state == "exited" and item.exit_code == exit_code]
        return found

    def __iter__(self) -> Iterator[Container]:
        return iter(self.list())

    def _container(self, row: ContainerRow) -> Container:
        return Container(self._store, self._runner, self._images, row)

    def _find(self, name: str) -> ContainerRow:
        row = self._store.db.container(name)
        if row is not None:
            return row
        rows = self._store.db.containers(name) if name and is_id_prefix(name) else []
        if len(rows) > 1:
            msg = f"the ids of several containers start with {name!r}; give more digits"
            raise Conflict(msg)
        if not rows:
            raise NotFound(self._not_found(name))
        return rows[0]

    def _not_found(self, name: str) -> str:
        import difflib  # slow to import, and only errors need it

        known = [row.name for row in self._store.db.containers()]
        close = difflib.get_close_matches(name, known, 5, 0.6)
        msg = f"no container {name!r} in {self._store.root}"
        return msg + (f"; there is {', '.join(close)}" if close else "")

    # ── make ──────────────────────────────────────────────────────────────────────────────────────────────────────

    def create(
        self,
        image: Image | str,
        command: str | Sequence[str] | None = None,
        *,
        name: str | None = None,
        labels: Mapping[str, str] | None = None,
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
    ) -> Container:
        r"""Make a container that is kept until it is removed; :meth:`Container.run` runs it.

        As long as it is there, its image cannot be removed. All that is not told here is as for :meth:`Engine.run`.

        Args:
            image: an :class:`Image`, its reference, its id or a unique prefix of that.
            command: program and arguments.
            name: unique among containers; a random one when not given.
            labels: free text by name, beside the image's.
            entrypoint: as for :meth:`Engine.run`.
            env: as for :meth:`Engine.run`.
            workdir: as for :meth:`Engine.run`.
            user: as for :meth:`Engine.run`; looked up in the container at each run.
            groups: as for :meth:`Engine.run`.
            hostname: as for :meth:`Engine.run`.
            domainname: as for :meth:`Engine.run`.
            extra_hosts: as for :meth:`Engine.run`.
            dns: as for :meth:`Engine.run`.
            network: as for :meth:`Engine.run`.
            mounts: as for :meth:`Engine.run`.
            limits: as for :meth:`Engine.run`.
            read_only: as for :meth:`Engine.run`.
            cap_add: as for :meth:`Engine.run`.
            cap_drop: as for :meth:`Engine.run`.
            privileged: as for :meth:`Engine.run`.
            seccomp: as for :meth:`Engine.run`.
            no_new_privileges: as for :meth:`Engine.run`.
            masked_paths: as for :meth:`Engine.run`.
            readonly_paths: as for :meth:`Engine.run`.
            rlimits: as for :meth:`Engine.run`.
            sysctls: as for :meth:`Engine.run`.
            oom_score_adj: as for :meth:`Engine.run`.
            devices: as for :meth:`Engine.run`.
            shm_size: as for :meth:`Engine.run`.
            userns: as for :meth:`Engine.run`.
            pid: as for :meth:`Engine.run`.
            ipc: as for :meth:`Engine.run`.
            uts: as for :meth:`Engine.run`.
            cgroupns: as for :meth:`Engine.run`.
            cgroup_parent: as for :meth:`Engine.run`.
            timens: as for :meth:`Engine.run`.
            init: as for :meth:`Engine.run`.
            tty: as for :meth:`Engine.run`.
            pull: as for :meth:`Engine.run`.

        Raises:
            NotFound: there is no such image.
            Conflict: another container has the name.
            InvalidReference: the name is none for a container.
            ValueError: an option makes no sense.

        >>> with Engine() as engine:
        ...     container = engine.containers.create(engine.images.host(), ["hostname"], name="web", hostname="here")
        ...     container.run().stdout, container.name
        (b'here\n', 'web')
        """
        found = self._find_image(image, pull) if isinstance(image, str) else image
        options = Options(
            command=command,
            entrypoint=entrypoint,
            env=env or {},
            workdir=workdir,
            user=user,
            groups=groups,
            hostname=hostname,
            domainname=domainname,
            extra_hosts=extra_hosts or {},
            dns=dns,
            network=network,
            mounts=tuple(mounts),
            limits=limits or Limits(),
            read_only=read_only,
            cap_add=cap_add,
            cap_drop=cap_drop,
            privileged=privileged,
            no_new_privileges=no_new_privileges,
            masked_paths=None if masked_paths is None else tuple(masked_paths),
            readonly_paths=None if readonly_paths is None else tuple(readonly_paths),
            rlimits=tuple(rlimits),
            sysctls=sysctls or {},
            oom_score_adj=oom_score_adj,
            devices=tuple(devices),
            shm_size=shm_size,
            userns=tuple(userns),
            pid=pid,
            ipc=ipc,
            uts=uts,
            cgroupns=cgroupns,
            timens=timens,
            tty=tty,
        )
        full_command(found.config, options)  # refuses what has nothing to run
        if name is not None:
            check_container_name(name)
        document: dict[str, Any] = {
            "image": str(image),
            "labels": dict(labels or {}),
            "seccomp": seccomp if seccomp in ("default", "unconfined") else os.path.abspath(seccomp),  # noqa: PTH100
            "init": init,
            "cgroup_parent": cgroup_parent,
            "options": options.to_json(),
        }
        return self._make(found, options, document, name)

    def _make(self, image: Image, options: Options, document: dict[str, Any], name: str | None) -> Container:
        identity = new_container_id()
        kept = Kept(id=identity, directory=self._directory / identity)
        self._directory.mkdir(mode=0o700, exist_ok=True)
        held = self._store.take_container("life", identity)
        try:
            kept = self._runner.make_kept(kept, image, options)
            document["volumes"] = list(kept.volumes)
            row = self._record(identity, image.id, json.dumps(document), name)
        except BaseException:
            remove_directory(self._directory, identity)
            raise
        finally:
            if held is not None:  # as it always is: it was waited for
                self._store.give_back(held)
        return self._container(row)

    def _record(self, identity: str, image_id: str, document: str, name: str | None) -> ContainerRow:
        for attempt in range(_ATTEMPTS):
            chosen = name or random_name() + (str(attempt) if attempt > 1 else "")
            row = ContainerRow(identity, chosen, image_id, time.time(), document)
            try:
                self._store.db.put_container(row)
            except Conflict:
                if name is not None or attempt == _ATTEMPTS - 1:
                    raise
            else:
                return row
        raise AssertionError  # the last attempt returned or raised

    # ── remove ────────────────────────────────────────────────────────────────────────────────────────────────────

    def remove(self, name: str | Container, *, force: bool = False) -> None:
        """Delete a container; see :meth:`Container.remove`."""
        self.get(name).remove(force=force)

    def prune(self, *, labels: Mapping[str, str | None] | None = None, before: float | None = None) -> PrunedContainers:
        """Delete all containers that do not run.

        Args:
            labels: only those that have these; with this value, or with any where that is None.
            before: only those made before this time, in seconds since the epoch.
        """
        removed: list[str] = []
        size = 0
        for container in self.list(labels=labels):
            if before is not None and container.created.timestamp() >= before:
                continue
            taken = container.size()
            try:
                container.remove()
            except (Conflict, NotFound):  # it runs, or somebody else was quicker
                continue
            removed.append(container.id)
            size += taken
        return PrunedContainers(tuple(removed), size)

    def recover(self) -> None:
        """Look after what killed programs left: runs that go on without them, and what was half made or removed."""
        for row in self._store.db.containers():
            if row.state == "running":
                self._container(row).recover()
        for identity in os.listdir(self._directory):  # noqa: PTH208 - only names are wanted
            if not is_container_id(identity) or self._store.db.container(identity) is not None:
                continue
            held = self._store.take_container("life", identity, wait=False)
            if held is None:
                continue
            try:
                if self._store.db.container(identity) is None:
                    remove_directory(self._directory, identity)
            finally:
                self._store.give_back(held)


def _has_labels(container: Container, labels: Mapping[str, str | None]) -> bool:
    own = container.labels
    return all(name in own and value in (None, own[name]) for name, value in labels.items())
