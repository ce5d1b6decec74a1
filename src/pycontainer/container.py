"""One container that is kept: it can be run again, looked at, and made an image of."""

from __future__ import annotations

import contextlib
import datetime as dt
import json
import os
import time
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Literal

import attrs

from pycontainer.errors import Conflict, ExitError, NotFound, StartError, TimeoutExpired
from pycontainer.kept import Kept
from pycontainer.launch import Options, full_command
from pycontainer.model import Change, ImageConfig, parse_size
from pycontainer.names import parse_reference

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from pycontainer.image import Image
    from pycontainer.images import Images
    from pycontainer.model import ContainerState, Mount, Result, Size
    from pycontainer.progress import Progress
    from pycontainer.runner import Runner
    from pycontainer.running import Running
    from pycontainer.store import ContainerRow, Store
    from pycontainer.streams import Input, Output

__all__ = ["Container"]

_SHORT = 12
_KILLED = 137  # 128 and SIGKILL: what ends a run that is cut off
_NOT_FOUND, _NOT_EXECUTABLE, _NOT_STARTED = 127, 126, 128
_PATIENCE = 10.0  # seconds for a killed container to be gone
_POLL = 0.01


class Container:
    """A container of an engine: an image, its own writable layer, and what is to run in it.

    What it tells is read anew each time: other programs may run, rename or remove it meanwhile.

    Args:
        store: where it is recorded.
        runner: runs it.
        images: the images of the engine.
        row: its record.
    """

    def __init__(self, store: Store, runner: Runner, images: Images, row: ContainerRow) -> None:
        self._store = store
        self._runner = runner
        self._images = images
        self._id = row.id
        self._document: dict[str, Any] = json.loads(row.document)
        self._image_id = row.image_id
        self._created = row.created
        self._options = Options.from_json(self._document["options"])
        self._kept = Kept(
            id=row.id,
            directory=store.root / "containers" / row.id,
            volumes=tuple(self._document["volumes"]),
        )

    def __repr__(self) -> str:
        return f"Container({self._id[:_SHORT]!r})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Container) and (other._id, other._store.root) == (self._id, self._store.root)

    def __hash__(self) -> int:
        return hash(self._id)

    # ── what it is ────────────────────────────────────────────────────────────────────────────────────────────────

    @property
    def id(self) -> str:
        """Its 64 hexadecimal digits."""
        return self._id

    @property
    def short_id(self) -> str:
        """The first twelve digits of the id."""
        return self._id[:_SHORT]

    @property
    def name(self) -> str:
        """Its name, unique in the store."""
        return self._row().name

    @property
    def image(self) -> Image:
        """The image that it is made from."""
        return self._images.get(self._image_id)

    @property
    def image_name(self) -> str:
        """What the image was called when the container was made."""
        return str(self._document["image"])

    @property
    def created(self) -> dt.datetime:
        """When it was made."""
        return dt.datetime.fromtimestamp(self._created, dt.UTC)

    @property
    def command(self) -> tuple[str, ...]:
        """Program and arguments of its runs."""
        return full_command(self.image.config, self._options)

    @property
    def labels(self) -> Mapping[str, str]:
        """Free text by name, that of the image and its own."""
        return {**self.image.config.labels, **self._document["labels"]}

    @property
    def mounts(self) -> tuple[Mount, ...]:
        """What of the host is shown in it, and file systems in memory; without the volumes of the image."""
        return self._options.mounts

    @property
    def network(self) -> str:
        """``"none"`` or ``"host"``."""
        return self._options.network

    @property
    def tty(self) -> bool:
        """Whether its runs have a terminal."""
        return self._options.tty

    @property
    def config(self) -> ImageConfig:
        """How its runs begin, by the image's configuration and what was asked of the container."""
        image, options = self.image.config, self._options
        return attrs.evolve(
            image,
            entrypoint=image.entrypoint if options.entrypoint is None else options.entrypoint,
            command=options.command
            if options.command is not None
            else (image.command if options.entrypoint is None else None),
            env={**image.env, **options.env},
            workdir=image.workdir if options.workdir is None else options.workdir,
            user=image.user if options.user is None else options.user,
            labels=self.labels,
        )

    @property
    def state(self) -> ContainerState:
        """``"created"``, ``"running"`` or ``"exited"``."""
        return self._row().state

    @property
    def exit_code(self) -> int | None:
        """Exit status of the last run; None before the first, or when the program that ran it was killed."""
        return self._row().exit_code

    @property
    def started(self) -> dt.datetime | None:
        """When the last run began."""
        return _moment(self._row().started)

    @property
    def finished(self) -> dt.datetime | None:
        """When it ended, as far as that is known."""
        return _moment(self._row().finished)

    def size(self) -> int:
        """Return how many bytes of disk its own writable layer and its volumes take."""
        return _disk_usage(self._kept.directory)

    def _row(self) -> ContainerRow:
        row = self._store.db.container(self._id)
        if row is None or row.id != self._id:
            msg = f"no container {self._id[:_SHORT]} in {self._store.root}: it was removed"
            raise NotFound(msg)
        return self._settle(row) if row.state == "running" else row

    # ── locks ─────────────────────────────────────────────────────────────────────────────────────────────────────

    def _settle(self, row: ContainerRow) -> ContainerRow:
        """Look after a container that should be running: the program that ran it may have been killed."""
        held = self._store.take_container("life", self._id, wait=False)
        if held is None:
            return row
        try:
            current = self._store.db.container(self._id)
            if current is None or current.state != "running":
                return current or row
            self._clear_run()
            ended = attrs.evolve(current, state="exited", exit_code=None, finished=None)
            self._store.db.put_container(ended)
            return ended
        finally:
            self._store.give_back(held)

    def recover(self) -> None:
        """Bring the record up to what is: the program that ran it, or paused it, may have been killed."""
        row = self._row()
        group = self._kept.group()
        if row.state == "running" and group is not None and self._kept.frozen.exists():
            held = self._store.take_container("pause", self._id, wait=False)
            if held is not None:
                try:
                    self._thaw(group)
                finally:
                    self._store.give_back(held)

    def _clear_run(self) -> None:
        """Kill and remove what is left of a run that was cut off; the lock is held."""
        group = self._kept.group()
        if group is not None:
            self._thaw(group)
            self._runner.cgroups.kill(group)
            self._runner.cgroups.remove(group)
            self._kept.drop_group()

    def _thaw(self, group: str) -> None:
        from pycontainer.runtime import freezer

        if self._kept.frozen.exists():
            freezer.thaw(self._runner.cgroups, group)
            self._kept.frozen.unlink(missing_ok=True)

    @contextlib.contextmanager
    def _alone(self, verb: str) -> Iterator[ContainerRow]:
        """Hold the container for a run, a commit or a removal.

        Raises:
            Conflict: it is running.
        """
        while (held := self._store.take_container("life", self._id, wait=False)) is None:
            if self._row().state == "running":
                hint = "remove it with force" if verb == "remove" else "create another one"
                msg = f"cannot {verb} the container {self.name}: it is running; wait for its end, or {hint}"
                raise Conflict(msg)
            time.sleep(_POLL)  # it is committed or removed just now
        try:
            row = self._store.db.container(self._id)
            if row is None:
                msg = f"no container {self._id[:_SHORT]} in {self._store.root}: it was removed"
                raise NotFound(msg)
            if row.state == "running":
                self._clear_run()
                row = attrs.evolve(row, state="exited", exit_code=None, finished=None)
            yield row
        finally:
            self._store.give_back(held)

    @contextlib.contextmanager
    def _reading(self) -> Iterator[None]:
        """Keep its files from being removed."""
        held = self._store.take_container("files", self._id, shared=True)
        try:
            self._row()
            yield
        finally:
            if held is not None:  # as it always is: it was waited for
                self._store.give_back(held)

    # ── run ───────────────────────────────────────────────────────────────────────────────────────────────────────

    def run(
        self,
        *,
        input: bytes | None = None,  # noqa: A002 - as in subprocess.run
        stdin: Input = "none",
        stdout: Output = "capture",
        stderr: Output = "capture",
        output_limit: Size | None = "64M",
        timeout: float | None = None,
        check: bool = False,
        on_start: Callable[[Running], object] | None = None,
    ) -> Result:
        r"""Run its command and wait for it. What it writes stays for the next run.

        Args:
            input: bytes for its standard input.
            stdin: as for :meth:`Engine.run`.
            stdout: as for :meth:`Engine.run`.
            stderr: as for :meth:`Engine.run`.
            output_limit: as for :meth:`Engine.run`.
            timeout: as for :meth:`Engine.run`.
            check: as for :meth:`Engine.run`.
            on_start: as for :meth:`Engine.run`.

        Returns:
            Exit code, signal, output and usage.

        Raises:
            Conflict: it is running.
            NotFound: it was removed.
            CommandNotFound: the program is not there.
            StartError: a step of the start failed.
            TimeoutExpired: the time was up; carries the result so far.
            ExitError: it failed, with ``check``.

        >>> with Engine() as engine:
        ...     container = engine.containers.create(engine.images.host(), ["sh", "-c", "echo more >> /tmp/log"])
        ...     container.run().exit_code, container.state
        (0, 'exited')
        """
        began = time.monotonic()
        streams = {
            "stdin": stdin,
            "data": input,
            "stdout": stdout,
            "stderr": stderr,
            "output_limit": None if output_limit is None else parse_size(output_limit),
        }
        with self._alone("run") as before:
            running = attrs.evolve(before, state="running", started=time.time(), finished=None, exit_code=None)
            self._store.db.put_container(running)
            ended = attrs.evolve(running, state="exited", exit_code=_KILLED)
            try:
                result = self._attempt(streams, began, timeout=timeout, check=check, on_start=on_start)
                ended = attrs.evolve(ended, exit_code=result.exit_code)
            except (ExitError, TimeoutExpired) as error:
                error.result = attrs.evolve(error.result, container_id=self._id)
                ended = attrs.evolve(ended, exit_code=error.result.exit_code)
                raise
            except StartError as error:
                ended = attrs.evolve(before, exit_code=_start_code(error))
                raise
            finally:
                if ended.state == "exited" and ended.finished is None:
                    ended = attrs.evolve(ended, finished=time.time())
                self._store.db.put_container(attrs.evolve(ended, name=self._name_now(ended.name)))
                self._kept.drop_group()
        return attrs.evolve(result, container_id=self._id)

    def _name_now(self, name: str) -> str:
        row = self._store.db.container(self._id)  # it may have been renamed meanwhile
        return name if row is None else row.name

    def _attempt(
        self,
        streams: Mapping[str, Any],
        began: float,
        *,
        timeout: float | None,
        check: bool,
        on_start: Callable[[Running], object] | None,
    ) -> Result:
        image = self.image
        return self._runner.run_kept(
            self._kept,
            image,
            attrs.evolve(self._options, mounts=(*image.mounts, *self._options.mounts)),
            streams,
            seccomp=self._document["seccomp"],
            init=self._document["init"],
            cgroup_parent=self._document["cgroup_parent"],
            began=began,
            timeout=timeout,
            check=check,
            on_start=on_start,
        )

    # ── what it changed ───────────────────────────────────────────────────────────────────────────────────────────

    def diff(self) -> Sequence[Change]:
        """Return what differs from the image: added, changed and deleted paths.

        Exact: a file that was touched and is the same again is not listed. A directory is changed when something in
        it is. Volumes and other mounts are not part of it. It may be running.

        Raises:
            NotFound: it was removed.

        >>> with Engine() as engine:
        ...     container = engine.containers.create(engine.images.host(), ["touch", "/tmp/new"])
        ...     _ = container.run()
        ...     print(*container.diff(), sep="; ")
        C /tmp; A /tmp/new
        """
        from pycontainer.distribution.pack import list_changes

        with self._reading(), self._runner.open_layers(self._kept, self.image, self._options) as (upper, base):
            return list(list_changes(upper, base=base))

    def export(self, target: str | os.PathLike[str] | IO[bytes]) -> None:
        """Write its whole root file system as a tar, without volumes and other mounts.

        Args:
            target: a path, at which the file appears when it is complete, or a binary file.

        Raises:
            NotFound: it was removed.
            ImageError: something in it changed while it was read.
            OSError: the file cannot be written; nothing of it is left.
        """
        from pycontainer.distribution.pack import pack_root
        from pycontainer.distribution.sinks import open_sink

        place = Path(target) if isinstance(target, str | os.PathLike) else target
        opened = self._runner.open_root(self._kept, self.image, self._options)
        with self._reading(), opened as root, open_sink(place) as sink:
            pack_root(root, sink.write)

    def commit(
        self,
        reference: str | None = None,
        *,
        author: str = "",
        message: str = "",
        config: ImageConfig | None = None,
        pause: bool = True,
        squash: bool = False,
        compression: Literal["none", "gzip", "zstd"] = "none",
        progress: Callable[[Progress], object] | None = None,
    ) -> Image:
        """Make an image of what it is now: the layers of its image, and one of its own changes.

        Volumes and other mounts are not part of it. The same files give the same layer.

        Args:
            reference: the name that the image gets.
            author: who made it.
            message: a comment on the change.
            config: how containers of the new image run; :attr:`config` when not given, see ``attrs.evolve``.
            pause: stop its processes meanwhile, when it runs.
            squash: make one layer of everything.
            compression: of the new layer: ``"none"``, ``"gzip"`` or ``"zstd"``.
            progress: is called with a :class:`Progress` at each step.

        Raises:
            NotFound: it was removed.
            ImageError: something in it cannot be said in a layer, or changed meanwhile.
            Unsupported: this host cannot pause it.
            InvalidReference: the text cannot be the name of an image.

        >>> with Engine() as engine:
        ...     container = engine.containers.create(engine.images.host(), ["touch", "/tmp/new"])
        ...     _ = container.run()
        ...     container.commit("changed:1", message="with a new file").references
        ('changed:1',)
        """
        from pycontainer.distribution.commit import Commit, commit

        name = () if reference is None else (_new_name(reference),)
        with self._standing_still(pause=pause), self._reading():
            wanted = Commit(
                parent=self._image_id,
                config=config or self.config,
                created_by=" ".join(self.command),
                created=dt.datetime.now(dt.UTC),
                author=author,
                message=message,
                squash=squash,
                compression=compression,
                references=name,
            )
            produce = self._write_all if squash else self._write_changes
            return self._images.get(commit(self._store, wanted, produce, progress))

    def _write_changes(self, write: Callable[[bytes], object]) -> None:
        from pycontainer.distribution.pack import pack_upper

        with self._runner.open_layers(self._kept, self.image, self._options) as (upper, base):
            pack_upper(upper, write, base=base)

    def _write_all(self, write: Callable[[bytes], object]) -> None:
        from pycontainer.distribution.pack import pack_root

        with self._runner.open_root(self._kept, self.image, self._options) as root:
            pack_root(root, write, layer=True)

    @contextlib.contextmanager
    def _standing_still(self, *, pause: bool) -> Iterator[None]:
        """Keep it from being started; pause it when it runs."""
        with contextlib.ExitStack() as stack:
            try:
                stack.enter_context(self._alone("commit"))
            except Conflict:  # it runs
                if pause:
                    stack.enter_context(self._paused())
            yield

    @contextlib.contextmanager
    def _paused(self) -> Iterator[None]:
        from pycontainer.runtime import freezer

        held = self._store.take_container("pause", self._id)
        try:
            group = self._kept.group()
            if group is None:  # it ended just now
                yield
                return
            self._kept.frozen.touch()  # by which the next open lets it go on, should we be killed
            try:
                freezer.freeze(self._runner.cgroups, group)
                yield
            finally:
                self._thaw(group)
        finally:
            if held is not None:
                self._store.give_back(held)

    # ── its end ───────────────────────────────────────────────────────────────────────────────────────────────────

    def rename(self, name: str) -> None:
        """Give it another name.

        Raises:
            Conflict: another container has it.
            InvalidReference: it is no name for a container.
            NotFound: it was removed.
        """
        from pycontainer.names import check_container_name

        if not self._store.db.rename_container(self._id, check_container_name(name)):
            self._row()

    def remove(self, *, force: bool = False) -> None:
        """Delete it with its writable layer and its volumes.

        Args:
            force: kill it when it runs, whichever program runs it.

        Raises:
            Conflict: it is running.
            NotFound: it was removed already.
        """
        try:
            with self._alone("remove"):
                self._remove()
        except Conflict:
            if not force:
                raise
            self._kill()
            with self._alone("remove"):
                self._remove()

    def _kill(self) -> None:
        """Kill the run that goes on, and wait until the program that began it has seen that."""
        deadline = time.monotonic() + _PATIENCE
        while self._row().state == "running":
            group = self._kept.group()
            if group is not None:
                self._runner.cgroups.kill(group)
            if time.monotonic() > deadline:
                msg = (
                    f"cannot remove the container {self.name}: it was killed, but the program that runs it does not "
                    "see to that; is that program stopped?"
                )
                raise Conflict(msg)
            time.sleep(_POLL)

    def _remove(self) -> None:
        """Delete it; it is nobody else's. The record goes first: what is then left belongs to nobody."""
        from pycontainer.kept import remove_directory

        files = self._store.take_container("files", self._id)
        try:
            self._store.db.remove_container(self._id)
            remove_directory(self._kept.directory.parent, self._id)
        finally:
            if files is not None:
                self._store.give_back(files)


def _moment(seconds: float | None) -> dt.datetime | None:
    return None if seconds is None else dt.datetime.fromtimestamp(seconds, dt.UTC)


def _start_code(error: StartError) -> int:
    """Return the exit status that docker has for a start that failed."""
    import errno

    from pycontainer.errors import CommandNotFound

    if not isinstance(error, CommandNotFound):
        return _NOT_STARTED
    return _NOT_FOUND if error.errno in (0, errno.ENOENT, errno.ENOTDIR) else _NOT_EXECUTABLE


def _new_name(reference: str) -> str:
    parsed = parse_reference(reference)
    if parsed.digest is not None:
        msg = f"a name given to an image has a tag, not a digest: {reference!r}"
        raise ValueError(msg)
    return str(parsed)


def _disk_usage(directory: Path) -> int:
    """Return the bytes that a tree takes on disk; what lies too deep for a path is not counted."""
    total, pending = 0, [str(directory)]
    seen: set[int] = set()
    while pending:
        with contextlib.suppress(OSError), os.scandir(pending.pop()) as entries:
            for entry in entries:
                info = entry.stat(follow_symlinks=False)
                if entry.is_dir(follow_symlinks=False):
                    pending.append(entry.path)
                elif info.st_nlink > 1:
                    if info.st_ino in seen:
                        continue
                    seen.add(info.st_ino)
                total += info.st_blocks * 512
    return total
