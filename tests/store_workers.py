"""Processes that use one store at the same time, do what they are told, and are killed or interrupted while they do.

A *nursery* has imported everything and bears each worker with fork(2), so that one costs milliseconds. A worker reads
commands from a socket and answers each one. Where it dies is told by time, or by the number of audit events (see
``sys.addaudithook``) since the command began: nearly each call that changes the file system is one, so a death falls
between two of them, and falls there again.
"""

from __future__ import annotations

import contextlib
import faulthandler
import json
import os
import select
import signal
import socket
import subprocess
import sys
import time
import traceback
from pathlib import Path
from typing import Any, Literal, NoReturn, Self

import attrs

__all__ = ["Answer", "Command", "Nursery", "Worker"]

Command = dict[str, Any]
_PATIENCE = 60.0
_COUNTED = ("os.", "open", "shutil.", "fcntl.", "sqlite3.connect", "ctypes.", "socket.connect")


@attrs.frozen
class Answer:
    """What became of a command.

    Attributes:
        kind: ``"ok"``; ``"error"``, one of pycontainer's; ``"interrupted"``; ``"killed"``.
        value: what it returned, or the error's code.
        text: of the error.
        events: audit events that it took.
    """

    kind: Literal["ok", "error", "interrupted", "killed"]
    value: Any = None
    text: str = ""
    events: int = 0


class Worker:
    """One process, seen from the test."""

    def __init__(self, channel: socket.socket) -> None:
        self._channel = channel
        self._lines = channel.makefile("rb")
        self.pid = int(json.loads(self._lines.readline())["pid"])
        self._pidfd = os.pidfd_open(self.pid)

    def begin(self, command: Command) -> None:
        """Send a command without waiting for what becomes of it."""
        self._channel.sendall(json.dumps(command).encode() + b"\n")

    def answer(self) -> Answer:
        """Wait for what became of it."""
        try:
            line = self._lines.readline()
        except ConnectionResetError:  # it died before it had read the command
            line = b""
        except TimeoutError:
            self.signal(signal.SIGABRT)  # it shows where its threads are, see faulthandler
            raise
        if not line:
            return Answer("killed")
        answer = json.loads(line)
        assert "bug" not in answer, answer["bug"]
        return Answer(**answer)

    def call(self, command: Command) -> Answer:
        """Do a command."""
        self.begin(command)
        return self.answer()

    def signal(self, number: int) -> None:
        """Send a signal; to one that is dead already, none."""
        try:
            signal.pidfd_send_signal(self._pidfd, number)
        except ProcessLookupError:
            return

    def close(self, *, kill: bool = False) -> None:
        """End it: by closing its engine, or by a kill; return when it is gone."""
        if kill:
            self.signal(signal.SIGKILL)
        rest = b""
        with contextlib.suppress(ConnectionError):
            self._channel.shutdown(socket.SHUT_WR)
            rest = self._lines.read()
        select.select([self._pidfd], [], [], _PATIENCE)  # its descriptors go one by one, the channel early
        assert b'"bug"' not in rest, json.loads(rest.splitlines()[-1])["bug"]
        self._lines.close()
        self._channel.close()
        os.close(self._pidfd)


class Nursery:
    """Bears workers. A context manager; all workers must be closed before it ends.

    Args:
        insecure: registries that are reached without TLS.
    """

    def __init__(self, *insecure: str) -> None:
        self._ours, theirs = socket.socketpair()
        words = [sys.executable, "-c", f"from {__name__} import _bear; _bear()", str(theirs.fileno()), *insecure]
        with theirs:
            self._process = subprocess.Popen(words, pass_fds=[theirs.fileno()], cwd=Path(__file__).parents[1])

    def worker(self, root: Path) -> Worker:
        """Give a new worker, which opens an engine on a root with its first command."""
        ours, theirs = socket.socketpair()
        ours.settimeout(_PATIENCE)
        with theirs:
            socket.send_fds(self._ours, [os.fsencode(root)], [theirs.fileno()])
        return Worker(ours)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exc: object) -> None:
        self._ours.close()
        assert self._process.wait(_PATIENCE) == 0


# ── the nursery's side ────────────────────────────────────────────────────────────────────────────────────────────


def _bear() -> None:
    import pycontainer.distribution.load
    import pycontainer.distribution.pull
    import pycontainer.distribution.save
    import pycontainer.runner  # noqa: F401 - for all workers

    faulthandler.enable()
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    link = socket.socket(fileno=int(sys.argv[1]))
    while True:
        name, fds, _, _ = socket.recv_fds(link, 4096, 1)
        if not name:
            break
        if os.fork() == 0:
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            link.close()
            _work(Path(os.fsdecode(name)), fds[0], sys.argv[2:])
        os.close(fds[0])
    with contextlib.suppress(ChildProcessError):
        os.wait()  # until the last one has ended, see wait(2) on SIGCHLD


def _work(root: Path, channel: int, insecure: list[str]) -> NoReturn:
    status = 1
    try:
        worker = _Work(root, socket.socket(fileno=channel), insecure)
        worker.serve()
        status = 0
    finally:
        os._exit(status)


class _Trap:
    """Sends this process a signal at a certain audit event."""

    def __init__(self) -> None:
        self.count = 0
        self._at = 0
        self._signal = signal.SIGKILL
        sys.addaudithook(self._hook)

    def set(self, at: int, number: int) -> None:
        self.count, self._at, self._signal = 0, at, signal.Signals(number)

    def _hook(self, event: str, _arguments: object) -> None:
        if event.startswith(_COUNTED):
            self.count += 1
            if self.count == self._at:
                os.kill(os.getpid(), self._signal)


class _Work:
    """The worker itself."""

    def __init__(self, root: Path, channel: socket.socket, insecure: list[str]) -> None:
        self._root = root
        self._channel = channel
        self._insecure = insecure
        self._engine: Any = None
        self._trap = _Trap()
        self._holders: list[Any] = []

    def serve(self) -> None:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        self._send({"pid": os.getpid()})
        with self._channel.makefile("rb") as lines:
            for line in lines:
                self._send(self._safely(json.loads(line)))
        try:
            if self._engine is not None:
                self._engine.close()
            for thread in self._holders:
                thread.join()
        except BaseException:  # noqa: BLE001 - it is told
            self._send({"bug": traceback.format_exc()})

    def _send(self, document: object) -> None:
        self._channel.sendall(json.dumps(document).encode() + b"\n")

    def _safely(self, command: Command) -> object:
        try:
            try:
                return self._answer(command)
            finally:
                signal.signal(signal.SIGINT, signal.SIG_IGN)
        except KeyboardInterrupt:
            return {"kind": "interrupted", "events": self._trap.count}

    def _answer(self, command: Command) -> object:
        from pycontainer import Error

        signal.signal(signal.SIGINT, signal.default_int_handler)
        self._trap.set(command.pop("at", 0), command.pop("signal", signal.SIGKILL))
        try:
            value = getattr(self, "_do_" + command.pop("do"))(**command)
        except Error as error:
            return {"kind": "error", "value": error.code, "text": str(error), "events": self._trap.count}
        except Exception:  # noqa: BLE001 - it is told
            return {"bug": traceback.format_exc()}
        return {"kind": "ok", "value": value, "events": self._trap.count}

    @property
    def _images(self) -> Any:
        return self._opened.images

    @property
    def _opened(self) -> Any:
        from pycontainer import Engine, Registries

        if self._engine is None:
            registries = Registries(insecure=self._insecure, auth_file="/nonexistent", backoff=0.01)
            self._engine = Engine(self._root, registries=registries)
        return self._engine

    # ── commands ──────────────────────────────────────────────────────────────────────────────────────────────────

    def _do_open(self) -> None:
        self._opened.images.list()

    def _do_load(self, path: str, name: str) -> str:
        return str(self._images.load(path, reference=name).id)

    def _do_load_all(self, path: str) -> list[str]:
        return [image.id for image in self._images.load_all(path)]

    def _do_import(self, path: str, name: str) -> str:
        return str(self._images.import_rootfs(path, reference=name).id)

    def _do_pull(self, name: str) -> str:
        return str(self._images.pull(name).id)

    def _do_tag(self, name: str, other: str) -> str:
        return str(self._images.tag(name, other).id)

    def _do_remove(self, name: str, *, force: bool) -> None:
        self._images.remove(name, force=force)

    def _do_create(self, name: str, other: str) -> None:
        self._opened.containers.create(name, ["/bin/busybox", "true"], name=other, pull="never")

    def _do_delete(self, other: str) -> None:
        self._opened.containers.remove(other)

    def _do_prune(self, *, all: bool) -> list[str]:  # noqa: A002 - as the engine calls it
        return list(self._images.prune(all=all).deleted)

    def _do_save(self, name: str, target: str, form: str) -> None:
        self._images.save(target, name, format=form)

    def _do_run(self, name: str) -> list[Any]:
        result = self._opened.run(name, ["/bin/busybox", "cat", "/id"], pull="never", timeout=30)
        return [result.exit_code, result.stdout.decode()]

    def _do_hold(self, name: str) -> str:
        """Run a container that lasts until this worker ends; return the id of its image."""
        import threading

        engine = self._opened
        image = engine.images.get(name)
        started = threading.Event()
        failures: list[BaseException] = []

        def hold() -> None:
            try:
                engine.run(image, ["/bin/busybox", "sleep", "1000"], on_start=lambda _running: started.set())
            except BaseException as error:  # noqa: BLE001 - it is raised below
                failures.append(error)
                started.set()

        thread = threading.Thread(target=hold)
        thread.start()
        self._holders.append(thread)
        while not started.wait(0.05):
            assert thread.is_alive()
        if failures:
            raise failures[0]
        return str(image.id)

    def _do_wait(self, seconds: float) -> None:
        time.sleep(seconds)
