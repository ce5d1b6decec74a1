"""Runtime bundles made by others: reading them, the namespaces they join, the hooks around their life.

OCI runtime specification, bundle.md and runtime.md, "Lifecycle".
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import time
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

import attrs

from pycontainer.errors import StartError, Unsupported
from pycontainer.oci import defaults
from pycontainer.oci import runtime as oci
from pycontainer.runtime import entering, plan
from pycontainer.runtime.process import Process
from pycontainer.streams import Attachment

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from pycontainer.running import Running

__all__ = ["Bundle", "Hooks", "Listener", "open_namespaces", "read"]

_MAX_CONFIG = 16 << 20
_MAX_WORDS = 64 << 10
_LISTENER_SECONDS = 10.0


@attrs.frozen(kw_only=True)
class Bundle:
    """A directory with a document and a root file system.

    Attributes:
        path: the directory, absolute.
        spec: its document.
        root: the root file system, absolute.
    """

    path: Path
    spec: oci.Spec
    root: Path


def read(path: Path) -> Bundle:
    """Read a bundle.

    Raises:
        StartError: it has no readable ``config.json`` or no root.
        InvalidSpec: the document is malformed.
        Unsupported: it asks for something that is not for Linux.
    """
    path = path.absolute()
    config = path / "config.json"
    try:
        with config.open("rb") as file:
            data = file.read(_MAX_CONFIG + 1)
    except OSError as error:
        hint = "a bundle is a directory with config.json; make one with 'runc spec' or umoci"
        raise StartError("read the bundle's", str(config), error.errno or 0, hint) from error
    if len(data) > _MAX_CONFIG:
        raise StartError("read the bundle's", str(config), 0, f"it is larger than {_MAX_CONFIG} bytes")
    spec = oci.parse(data)
    if spec.process is None:
        msg = f"{config}: there is no process to run"
        raise Unsupported(msg)
    root = Path(path, spec.root.path)
    if not root.is_dir():
        raise StartError("open the bundle's root", str(root), 0, "root.path must name a directory")
    return Bundle(path=path, spec=_complete(spec), root=root)


def _complete(spec: oci.Spec) -> oci.Spec:
    """Return the document with what the specification leaves to the runtime.

    The default devices stay usable whatever the document's rules deny (config-linux.md, "Default Devices").
    """
    linux = spec.linux
    resources = linux.resources or oci.Resources()
    rules = (*resources.devices, *defaults.DEVICE_RULES[1:]) if resources.devices else defaults.DEVICE_RULES
    return attrs.evolve(spec, linux=attrs.evolve(linux, resources=attrs.evolve(resources, devices=rules)))


def open_namespaces(spec: oci.Spec, stack: contextlib.ExitStack) -> dict[str, int]:
    """Open the namespaces that a document joins by path; closed by the stack.

    Raises:
        StartError: one cannot be opened, or is of another kind.
    """
    fds: dict[str, int] = {}
    for namespace in spec.linux.namespaces:
        if namespace.path is None:
            continue
        try:
            fd = os.open(namespace.path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise StartError(f"join the {namespace.type} namespace", namespace.path, error.errno or 0) from error
        stack.callback(os.close, fd)
        kind = str(Path(f"/proc/self/fd/{fd}").readlink()).partition(":")[0]
        if kind != {"network": "net", "mount": "mnt"}.get(namespace.type, namespace.type):
            raise StartError(f"join the {namespace.type} namespace", namespace.path, 0, f"it is {kind!r}")
        fds[namespace.type] = fd
    return fds


class Listener:
    """Where the listener of a bundle's seccomp filter goes (config-linux.md, "The Container Process State")."""

    def __init__(self, bundle: Bundle, container_id: str) -> None:
        self._bundle = bundle
        self._id = container_id

    def hand_over(self, fd: int, pid: int) -> None:
        """Send the listener to the socket that the document names.

        Args:
            fd: the listener, see seccomp_unotify(2).
            pid: the container's first process.

        Raises:
            StartError: nobody takes it.
        """
        import socket  # slow to import, and few bundles have a listener

        filters = self._bundle.spec.linux.seccomp
        path = (filters and filters.listener_path) or ""
        state = json.loads(_state(self._bundle, self._id, "creating", pid))
        process = {"ociVersion": state["ociVersion"], "fds": ["seccompFd"], "pid": pid, "state": state}
        if filters is not None and filters.listener_metadata is not None:
            process["metadata"] = filters.listener_metadata
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as peer:
                peer.settimeout(_LISTENER_SECONDS)
                peer.connect(path)
                data = json.dumps(process).encode()
                sent = socket.send_fds(peer, [data], [fd])
                if sent < len(data):
                    peer.sendall(data[sent:])
        except OSError as error:
            hint = "the program that answers the container's system calls must listen there"
            raise StartError("hand the seccomp listener to", path, error.errno or 0, hint) from error


class Hooks:
    """The hooks of one run of a bundle."""

    def __init__(self, bundle: Bundle, start: plan.Start) -> None:
        self._bundle = bundle
        self._hooks = bundle.spec.hooks
        self._start = start
        self._created = False

    @property
    def parks(self) -> frozenset[int]:
        """Where the process has to wait for hooks."""
        hooks = self._hooks
        moments = {
            plan.SYNC_CREATE_RUNTIME: hooks.prestart or hooks.create_runtime,
            plan.SYNC_CREATE_CONTAINER: hooks.create_container,
            plan.SYNC_START_CONTAINER: hooks.start_container,
        }
        return frozenset(moment for moment, wanted in moments.items() if wanted)

    def create(self, process: Process) -> None:
        """Run the hooks for which the process is parked, then let it go on, until it is parked no more.

        Raises:
            StartError: a hook failed; the process is gone.
        """
        self._created = True
        try:
            while (moment := process.parked_at) is not None:
                if moment == plan.SYNC_CREATE_RUNTIME:
                    self._run((*self._hooks.prestart, *self._hooks.create_runtime), "creating", process.pid)
                elif moment == plan.SYNC_CREATE_CONTAINER:
                    self._run_inside(self._hooks.create_container, "creating", process.pid, moment)
                else:
                    self._run_inside(self._hooks.start_container, "created", process.pid, moment)
                process.resume()
        except BaseException:
            process.close()
            raise

    def started(self, then: Callable[[Running], object] | None) -> Callable[[Running], object]:
        """Return the function to call at the start: ``poststart`` hooks, then the caller's own."""

        def call(running: Running) -> None:
            self._created = True
            self._run(self._hooks.poststart, "running", running.pid)
            if then is not None:
                then(running)

        return call

    def stopped(self) -> None:
        """Run ``poststop``; a failure is told, not raised, for the container is gone (runtime.md)."""
        if not self._created:
            return
        for hook in self._hooks.poststop:
            try:
                self._run((hook,), "stopped", None)
            except StartError as error:
                warnings.warn(str(error), RuntimeWarning, stacklevel=2)

    def _run(self, hooks: Sequence[oci.Hook], status: oci.Status, pid: int | None) -> None:
        """Run hooks on the host."""
        for hook in hooks:
            env = dict(text.partition("=")[::2] for text in hook.env)
            try:
                done = subprocess.run(
                    hook.args or (hook.path,),
                    executable=hook.path,
                    input=_state(self._bundle, self._start.container_id, status, pid),
                    env=env,
                    timeout=hook.timeout,
                    capture_output=True,
                    check=False,
                    cwd=self._bundle.path,
                )
            except subprocess.TimeoutExpired as error:
                raise _too_long(hook) from error
            except OSError as error:
                raise StartError("run the hook", hook.path, error.errno or 0) from error
            _check(hook, done.returncode, done.stderr or done.stdout)

    def _run_inside(self, hooks: Sequence[oci.Hook], status: oci.Status, pid: int, moment: int) -> None:
        """Run hooks in the namespaces of the container, whose first process is parked."""
        state = _state(self._bundle, self._start.container_id, status, entering.inner_pid(pid))
        for hook in hooks:
            streams = Attachment(data=state, output_limit=_MAX_WORDS)
            deadline = None if hook.timeout is None else time.monotonic() + hook.timeout
            with contextlib.ExitStack() as stack:
                stack.callback(streams.close)
                argv = hook.args or (hook.path,)
                packed = stack.enter_context(
                    entering.enter(self._start, pid, argv, hook.env, program=hook.path, at=moment)
                )
                try:
                    process = Process(packed, self._start.keeper.requests_fd, streams.open())
                except StartError as error:
                    raise StartError("run the hook", hook.path, error.errno, f"{error.step} {error.path}") from error
                stack.callback(process.close)
                streams.started(process)
                if not streams.exchange(process, deadline):
                    raise _too_long(hook)
                ended = process.wait()
                _check(hook, -ended.signal or ended.status, streams.captured("stderr") or streams.captured("stdout"))


def _state(bundle: Bundle, container_id: str, status: oci.Status, pid: int | None) -> bytes:
    """Return what hooks and listeners are told of a container (runtime.md, "State")."""
    state = oci.State(
        id=container_id,
        status=status,
        pid=pid,
        bundle=str(bundle.path),
        annotations=bundle.spec.annotations,
    )
    return oci.to_json(state)


def _too_long(hook: oci.Hook) -> StartError:
    return StartError("run the hook", hook.path, 0, f"killed after its timeout of {hook.timeout} s")


def _check(hook: oci.Hook, code: int, words: bytes) -> None:
    if code != 0:
        tail = words[-1000:].decode(errors="replace").strip()
        raise StartError("run the hook", hook.path, 0, f"it ended with {code}: {tail}")
