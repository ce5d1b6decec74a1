"""Several processes use one store and die at any moment: what was acknowledged is there, and nothing else stays.

Lives of stores, with a model of names and images. A command that was killed may have happened or not, in part where it
consists of parts; of two at the same time either may have been first. The next look at the store must find one of the
states that this allows.

``PYCONTAINER_MACHINE=EXAMPLES,STEPS`` makes it run longer.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import shutil
import signal
import sqlite3
import tarfile
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, Self

import attrs
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from pycontainer import Engine, Registries
from pycontainer.images import Images
from pycontainer.store import Store
from tests.archives import docker_archive, folder, member, oci_layout, sha, tar
from tests.registry import Registry
from tests.store_workers import Answer, Command, Nursery, Worker
from tests.trees import Description, describe

_EXAMPLES, _STEPS = map(int, os.environ.get("PYCONTAINER_MACHINE", "6,12").split(","))
_HUB = "docker.io/library/"
_LOCAL = ["app:1", "app:2", "app:3"]
_WORKERS = 3
_EVENTS = 150  # of a command that was not seen yet


# ── what the commands are about ───────────────────────────────────────────────────────────────────────────────────


@attrs.frozen
class Stock:
    """Images outside the store, in several forms.

    Attributes:
        ids: of images, by their letter.
        archives: files to load, and the letter of the image in them.
        trees: directories to import, and the letter of the image that each becomes.
        pulled: names in the registry, and the letter of the image.
        several: an archive of two images, with their whole names and letters.
        shown: what the layers of each image look like in a store where nobody dies, by id.
    """

    ids: Mapping[str, str]
    archives: Mapping[str, str]
    trees: Mapping[str, str]
    pulled: Mapping[str, str]
    several: tuple[str, Sequence[tuple[str, str]]]
    shown: Mapping[str, Sequence[Description]]


def layers_of(busybox: Path) -> dict[str, list[bytes]]:
    """Return the layers of the images a to d: shared ones, deletions, directories that only a lower layer describes."""
    program = (busybox / "bin/busybox").read_bytes()
    base = tar(folder("bin"), member("bin/busybox", program, mode=0o755), folder("etc", mode=0o751))
    more = tar(folder("data"), *(member(f"data/{number}", b"%d" % number * 3000) for number in range(12)))
    deleting = tar(folder("data"), member("data/.wh.3"), member("data/4", b"changed"))
    bare = tar(member("etc/deep/er/file", b"in directories that are not described"), member("data/x", b"x"))
    return {
        "a": [base, tar(member("id", b"a"))],
        "b": [base, more, tar(member("id", b"b"))],
        "c": [base, more, deleting, bare, tar(member("id", b"c"))],
        "d": [base, bare, tar(member("id", b"d"))],
    }


def made_stock(base: Path, busybox: Path, registry: Registry | None) -> Stock:
    layers = layers_of(busybox)
    archives: dict[str, str] = {}
    pulled: dict[str, str] = {}
    ids: dict[str, str] = {}
    for letter, parts in layers.items():
        (base / f"{letter}.tar").write_bytes(docker_archive(parts))
        layout = oci_layout(base / f"{letter}-layout", parts)  # the same image of compressed layers
        archives |= {str(base / f"{letter}.tar"): letter, str(layout): letter}
    (base / "several.tar").write_bytes(_several(layers["b"], layers["d"]))
    tree = base / "tree"
    (tree / "bin").mkdir(parents=True)
    shutil.copy2(busybox / "bin/busybox", tree / "bin/busybox")
    (tree / "id").write_text("t")
    registries = Registries(insecure=[registry.host] if registry else [], auth_file="/nonexistent")
    with Engine(base / "quiet", registries=registries) as engine:
        shown = {}
        for path, letter in archives.items():
            image = engine.images.load(path, reference="quiet")
            ids[letter] = image.id
            if registry is not None and path.endswith(".tar"):
                pulled[f"{registry.host}/app:{letter}"] = letter
                engine.images.push(image, f"{registry.host}/app:{letter}")
        ids["t"] = engine.images.import_rootfs(tree).id
    with Store.open(base / "quiet") as store:
        for identity in ids.values():
            shown[identity] = look(store, identity)
    shutil.rmtree(base / "quiet")
    several = (str(base / "several.tar"), [(f"{_HUB}several:b", "b"), (f"{_HUB}several:d", "d")])
    return Stock(ids, archives, {str(tree): "t"}, pulled, several, shown)


def _several(*images: Sequence[bytes]) -> bytes:
    """Return a docker archive of the images b and d."""
    files: dict[str, bytes] = {}
    items = []
    for letter, parts in zip("bd", images, strict=True):
        with tarfile.open(fileobj=io.BytesIO(docker_archive(parts))) as archive:
            config = archive.extractfile("c.json")
            assert config is not None
            files[f"{letter}.json"] = config.read()
        files |= {f"{sha(part)[7:]}.tar": part for part in parts}
        names = [f"{sha(part)[7:]}.tar" for part in parts]
        items.append({"Config": f"{letter}.json", "RepoTags": [f"several:{letter}"], "Layers": names})
    files["manifest.json"] = json.dumps(items).encode()
    return tar(*(member(name, data) for name, data in files.items()))


def look(store: Store, identity: str) -> list[Description]:
    """Return what the layers of an image look like, as overlay gets them; with times of files only.

    Whiteouts and directories that no layer describes have the time at which they were made here.
    """
    lowers = store.acquire(identity)
    try:
        found = [describe(Path(lower)) for lower in lowers]
    finally:
        store.release(identity)
    return [
        {
            name: (*about[:3], about[3] if str(about[0]).startswith("0o100") else None, *about[4:])
            for name, about in items
        }
        for items in (layer.items() for layer in found)
    ]


@pytest.fixture(scope="module")
def stock(tmp_path_factory: pytest.TempPathFactory, busybox_rootfs: Path) -> Iterator[Stock]:
    base = tmp_path_factory.mktemp("stock")
    with contextlib.ExitStack() as stack:
        registry = None
        if shutil.which("docker-registry"):
            registry = stack.enter_context(Registry(base / "registry"))
        yield made_stock(base, busybox_rootfs, registry)


# ── the model ─────────────────────────────────────────────────────────────────────────────────────────────────────


class State(NamedTuple):
    """What a store holds: which image each name means, the ids of all images, containers with their images."""

    names: frozenset[tuple[str, str]] = frozenset()
    ids: frozenset[str] = frozenset()
    containers: frozenset[tuple[str, str]] = frozenset()

    def find(self, name: str) -> str | None:
        """Return the id that a name or an id means."""
        return name if name in self.ids else dict(self.names).get(name)

    def add(self, identity: str, name: str) -> State:
        others = {pair for pair in self.names if pair[0] != name}
        return self._replace(names=frozenset(others | {(name, identity)}), ids=self.ids | {identity})

    def without(self, identity: str) -> State:
        names = frozenset(pair for pair in self.names if pair[1] != identity)
        return self._replace(names=names, ids=self.ids - {identity})


@attrs.frozen
class Step:
    """A part of a command that happens at once or not at all."""

    kind: str
    name: str
    other: str = ""

    def apply(self, state: State, held: Sequence[str]) -> tuple[State, str]:
        """Return the state after it, and how it ends: ``"ok"`` or the code of an error."""
        held = [*held, *(image for _, image in state.containers)]
        if self.kind == "add":
            return state.add(self.other, self.name), "ok"
        if self.kind == "delete":
            left = frozenset(pair for pair in state.containers if pair[0] != self.name)
            return state._replace(containers=left), "ok" if left != state.containers else "not-found"
        if self.kind == "prune":
            named = any(identity == self.name for _, identity in state.names)
            stays = self.name in held or (named and self.other != "all")
            return (state if stays else state.without(self.name)), "ok"
        identity = state.find(self.name)
        return (state, "not-found") if identity is None else self._apply_to(identity, state, held)

    def _apply_to(self, identity: str, state: State, held: Sequence[str]) -> tuple[State, str]:
        if self.kind == "tag":
            return state.add(identity, self.other), "ok"
        if self.kind == "create":
            if self.other in dict(state.containers):
                return state, "conflict"
            return state._replace(containers=state.containers | {(self.other, identity)}), "ok"
        return self._remove(state, identity, held) if self.kind == "remove" else (state, "ok")

    def _remove(self, state: State, identity: str, held: Sequence[str]) -> tuple[State, str]:
        names = [pair for pair in state.names if pair[1] == identity]
        if self.name == identity and len(names) > 1 and self.other != "force":
            return state, "conflict"
        if self.name != identity and (len(names) > 1 or (identity in held and self.other == "force")):
            return state._replace(names=state.names - {(self.name, identity)}), "ok"
        if identity in held:
            return state, "conflict"
        return state.without(identity), "ok"


def whole(name: str) -> str:
    return name if "/" in name or name.startswith("sha256:") else _HUB + name


def steps_of(command: Command, stock: Stock) -> list[Step]:
    """Return the parts of a command."""
    kind = command["do"]
    if kind == "load_all":
        return [Step("add", name, stock.ids[letter]) for name, letter in stock.several[1]]
    if kind == "prune":
        return [Step("prune", identity, "all" if command["all"] else "") for identity in stock.ids.values()]
    if kind == "delete":
        return [Step("delete", command["other"])]
    name = whole(command["name"])
    if kind in ("load", "import"):
        return [Step("add", name, stock.ids[{**stock.archives, **stock.trees}[command["path"]]])]
    if kind == "pull":
        return [Step("add", name, stock.ids[stock.pulled[name]])]
    if kind == "remove":
        return [Step("remove", name, "force" if command["force"] else "")]
    if kind == "tag":
        return [Step("tag", name, whole(command["other"]))]
    return [Step("create", name, command["other"]) if kind == "create" else Step("use", name)]


@attrs.frozen
class Done:
    """A command, its parts, and what became of it."""

    command: Command
    steps: Sequence[Step]
    answer: Answer


def allowed(state: State, done: Sequence[Done], held: Sequence[str]) -> set[State]:
    """Return the states that commands side by side may lead to, given their answers."""
    found: set[State] = set()
    together = len(done) > 1

    def ends(item: Done, position: int, now: State) -> bool:
        """Tell whether a command may have ended like this after so many of its parts."""
        if item.answer.kind in ("killed", "interrupted"):
            return True
        if position < len(item.steps):
            return False
        if item.answer.kind == "ok":
            return True
        # What was added is looked up at the end: the other may have removed it by then.
        gone = any(step.kind in ("add", "tag") and now.find(step.other) is None for step in item.steps)
        return together and item.answer.value == "not-found" and gone

    def explore(now: State, positions: tuple[int, ...], dead: frozenset[int]) -> None:
        if all(number in dead or ends(item, positions[number], now) for number, item in enumerate(done)):
            found.add(now)
        for number, item in enumerate(done):
            if number in dead or positions[number] == len(item.steps):
                continue
            step = item.steps[positions[number]]
            after, outcome = step.apply(now, held)
            nexts = tuple(at + (place == number) for place, at in enumerate(positions))
            if outcome == "ok":
                explore(after, nexts, dead)
            elif item.answer.kind == "error" and item.answer.value == outcome:
                explore(now, positions, dead | {number})
            # A prune does not take what came or was in use meanwhile; one that died took some, in whatever order.
            if step.kind == "prune" and (together or item.answer.kind != "ok"):
                explore(now, nexts, dead)
            if outcome == "ok" and together and step.kind == "remove" and step.other and _uses(done[1 - number]):
                kept, _ = step.apply(now, [*held, *now.ids])
                explore(kept, nexts, dead)
            # Who uses an image for a moment keeps it meanwhile; and one that is removed meanwhile is not found.
            if together and item.answer.kind == "error" and _collide(item, done[1 - number]):
                explore(now, positions, dead | {number})

    explore(state, (0,) * len(done), frozenset())
    return found


def _uses(item: Done) -> bool:
    return any(step.kind in ("use", "create") for step in item.steps)


def _collide(item: Done, other: Done) -> bool:
    if item.steps[0].kind == "remove":
        return item.answer.value == "conflict" and _uses(other)
    return item.answer.value == "not-found" and other.steps[0].kind in ("remove", "prune")


# ── lives ─────────────────────────────────────────────────────────────────────────────────────────────────────────


Death = tuple[str, float, int]  # by "events" or "time", as a part of how long the command takes; and the signal
_TYPICAL: dict[str, tuple[int, float]] = {}  # events and seconds that each kind of command takes


@attrs.frozen
class Doing:
    """A step: commands side by side, by a process and the next ones; without any, the process ends."""

    number: int
    commands: Sequence[Command]
    death: Death | None = None
    seen: bool = True


names = st.sampled_from(_LOCAL)


@st.composite
def commands(draw: st.DrawFn) -> Command:
    """Give commands; what depends on the stock is chosen by number."""
    often = ["load"] * 3 + ["remove"] * 3
    kind = draw(
        st.sampled_from(
            [*often, "pull", "tag", "load_all", "import", "save", "run", "prune", "create", "create", "delete"]
        )
    )
    choice = draw(st.integers(0, 99))
    if kind in ("load", "import"):
        return {"do": kind, "choice": choice, "name": draw(names)}
    if kind == "tag":
        return {"do": kind, "choice": choice, "other": draw(names)}
    if kind == "remove":
        return {"do": kind, "choice": choice, "force": draw(st.booleans())}
    if kind in ("create", "delete"):
        return {"do": kind, "choice": choice, "other": draw(st.sampled_from(["one", "two"]))}
    if kind == "prune":
        return {"do": kind, "choice": choice, "all": draw(st.booleans())}
    if kind == "save":
        return {"do": kind, "choice": choice, "form": draw(st.sampled_from(["docker-archive", "oci-archive"]))}
    return {"do": kind, "choice": choice}


@st.composite
def deaths(draw: st.DrawFn) -> Death:
    """Give a moment and a signal."""
    number = int(draw(st.sampled_from([signal.SIGKILL, signal.SIGKILL, signal.SIGINT])))
    return draw(st.sampled_from(["events", "time"])), draw(st.floats(0, 1.1)), number


@st.composite
def doings(draw: st.DrawFn) -> Doing:
    """Give steps of a life: mostly commands, of one process or of two at a time, and one of them may die over it."""
    kind = draw(st.sampled_from(["do", "do", "die", "die", "race", "race", "hold", "end"]))
    number = draw(st.integers(0, _WORKERS - 1))
    if kind == "hold":
        return Doing(number, [{"do": "hold", "choice": draw(st.integers(0, 99))}])
    if kind == "end":
        return Doing(number, [], death=draw(st.none() | st.just(("time", 0.0, 9))))
    mortal = kind == "die" or (kind == "race" and draw(st.booleans()))
    return Doing(
        number,
        [draw(commands()) for _ in range(1 + (kind == "race"))],
        death=draw(deaths()) if mortal else None,
        seen=kind == "race" or draw(st.booleans()),
    )


class Life:
    """A store from its making to the end of all that use it."""

    def __init__(self, stock: Stock, nursery: Nursery, base: Path) -> None:
        self.stock = stock
        self.nursery = nursery
        self.place = Path(tempfile.mkdtemp(dir=base))
        self.root = self.place / "root"
        self.saved = self.place / "saved"
        self.saved.mkdir()
        Store.open(self.root).close()
        self.workers: dict[int, Worker] = {}
        self.held: dict[int, list[str]] = {}
        self.states = {State()}
        self.log: list[str] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _trace: object) -> None:
        try:
            if error is None:
                self._check_end()
        except BaseException as late:
            error = late
            raise
        finally:
            if error is not None:
                error.add_note("\n".join(self.log))
            for worker in self.workers.values():
                worker.close(kill=True)
            shutil.rmtree(self.place)

    def do(self, doing: Doing) -> None:
        """Do one step, and check what is there afterwards."""
        if not doing.commands:
            self._end(doing.number, kill=doing.death is not None)
            return
        wanted = [
            ((doing.number + offset) % _WORKERS, self._complete(command))
            for offset, command in enumerate(doing.commands)
        ]
        held = self._held()
        done = self._carry_out(wanted, doing.death)
        first = done[0]
        if first.command["do"] == "hold" and first.answer.kind == "ok":
            self.held.setdefault(doing.number, []).append(first.answer.value)
        self._judge(done, [held, self._held()])
        if doing.seen:
            self._look()

    # ── how ───────────────────────────────────────────────────────────────────────────────────────────────────────

    def _name(self, choice: int) -> str:
        """Return something that an image may be called: mostly what one is called now."""
        state = min(self.states, key=repr)
        known = sorted({name.removeprefix(_HUB) for name, _ in state.names} | state.ids)
        called = [*_LOCAL, *self.stock.ids.values(), *self.stock.pulled, "several:b", "several:d"]
        if known and choice % 5:
            return known[choice % len(known)]
        return called[choice % len(called)]

    def _complete(self, command: Command) -> Command:
        command = dict(command)
        choice = command.pop("choice")
        kind = command["do"]
        if kind == "pull" and not self.stock.pulled:
            return {"do": "load_all", "path": self.stock.several[0]}
        sources: dict[str, Sequence[str]] = {
            "load": list(self.stock.archives),
            "import": list(self.stock.trees),
            "load_all": [self.stock.several[0]],
        }
        if kind in sources:
            return command | {"path": sources[kind][choice % len(sources[kind])]}
        if kind == "pull":
            return command | {"name": list(self.stock.pulled)[choice % len(self.stock.pulled)]}
        if kind in ("prune", "delete"):
            return command
        if kind == "save":
            command["target"] = str(self.saved / "archive.tar")
        return command | {"name": self._name(choice)}

    def _carry_out(self, wanted: Sequence[tuple[int, Command]], death: Death | None) -> list[Done]:
        kind = wanted[0][1]["do"]
        events, seconds = _TYPICAL.get(kind, (_EVENTS, 0.1))
        by, part, number = death or ("", 0.0, 0)
        sent = [dict(command) for _, command in wanted]
        if by == "events":
            sent[0] |= {"at": 1 + int(part * events), "signal": number}
        began = time.monotonic()
        for (index, _), command in zip(wanted, sent, strict=True):
            self._worker(index).begin(command)
        if by == "time":
            time.sleep(part * seconds)
            self._worker(wanted[0][0]).signal(number)
        done = []
        for (index, command), told in zip(wanted, sent, strict=True):
            answer = self._worker(index).answer()
            self.log.append(f"{index}: {told} -> {answer}")
            if answer.kind == "killed" or (by == "time" and number == signal.SIGKILL and index == wanted[0][0]):
                self._end(index, kill=True)
            done.append(Done(command, steps_of(command, self.stock), answer))
        if death is None and len(done) == 1 and done[0].answer.kind == "ok":
            _TYPICAL[kind] = (done[0].answer.events, time.monotonic() - began)
        return done

    def _worker(self, number: int) -> Worker:
        if number not in self.workers:
            self.workers[number] = self.nursery.worker(self.root)
        return self.workers[number]

    def _end(self, number: int, *, kill: bool) -> None:
        worker = self.workers.pop(number, None)
        if worker is not None:
            self.log.append(f"{number}: {'killed' if kill else 'ended'}")
            worker.close(kill=kill)
        self.held.pop(number, None)

    def _held(self) -> list[str]:
        return [identity for identities in self.held.values() for identity in identities]

    def _judge(self, done: Sequence[Done], either: Sequence[Sequence[str]]) -> None:
        """Keep the states that the answers allow, whichever of these images were in use."""
        before = self.states
        self.states = {after for state in before for held in either for after in allowed(state, done, held)}
        if not self.states:
            pytest.fail(f"no state allows these answers; before: {before}")
        for item in done:
            if item.answer.kind == "ok":
                self._check_value(item, before)
        for path in self.saved.iterdir():
            check_archive(path)  # whoever died: it is whole, or not there
            path.unlink()

    def _check_value(self, item: Done, before: set[State]) -> None:
        value, command = item.answer.value, item.command
        adds = [step.other for step in item.steps if step.kind == "add"]
        if command["do"] == "load_all":
            assert value == adds
        elif adds:
            assert [value] == adds
        elif command["do"] == "run":
            letters = {identity: letter for letter, identity in self.stock.ids.items()}
            found = {state.find(whole(command["name"])) for state in before | self.states}
            assert value in [[0, letters[identity]] for identity in found if identity]

    # ── what must be true ─────────────────────────────────────────────────────────────────────────────────────────

    def _look(self) -> None:
        check_records(self.root)
        with Store.open(self.root) as store:
            found = self._check_store(store)
        assert found in self.states
        self.states = {found}

    def _check_store(self, store: Store) -> State:
        rows = store.db.images()
        described = json.loads((self.root / "index.json").read_bytes())["manifests"]
        in_index = {(entry["digest"], entry.get("annotations", {}).get(REF)) for entry in described}
        assert in_index == {(row.digest, name) for row in rows for name in row.references or (None,)}
        for row in rows:
            assert look(store, row.id) == self.stock.shown[row.id]
        assert {image.id for image in Images(store).list()} == {row.id for row in rows}
        pairs = frozenset((name, row.id) for row in rows for name in row.references)
        containers = frozenset((row.name, row.image_id) for row in store.db.containers())
        return State(pairs, frozenset(row.id for row in rows), containers)

    def _check_end(self) -> None:
        for number in list(self.workers):
            self._end(number, kill=number % 2 == 0)
        self._look()
        with Engine(self.root) as engine:
            for image in engine.images:
                assert engine.run(image, ["/bin/busybox", "true"]).ok
            made = {container.id for container in engine.containers.list()}
            assert {path.name for path in (self.root / "containers").glob("*") if path.is_dir()} == made
            assert engine.check().ok, engine.check()
            engine.prune()
            assert list(self.root.glob("downloads/*")) == []
        check_nothing_else(self.root)
        deadline = time.monotonic() + 10
        while users_of(self.root) and time.monotonic() < deadline:  # what cleans up after the dead is on its way
            time.sleep(0.02)
        assert users_of(self.root) == []


REF = "org.opencontainers.image.ref.name"


def check_records(root: Path) -> None:
    """Check, without repairing anything, that all that the records name is there and is what it is called."""
    json.loads((root / "index.json").read_bytes())
    connection = sqlite3.connect(f"file:{root / 'state.db'}?mode=ro", uri=True)
    try:
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        assert connection.execute("PRAGMA foreign_key_check").fetchall() == []
        digests = connection.execute(
            "SELECT id FROM images UNION SELECT digest FROM images UNION SELECT digest FROM image_layers "
            "UNION SELECT digest FROM image_blobs"
        ).fetchall()
    finally:
        connection.close()
    for (digest,) in digests:
        data = (root / "blobs" / digest.replace(":", "/")).read_bytes()
        assert hashlib.sha256(data).hexdigest() == digest.removeprefix("sha256:")


def check_nothing_else(root: Path) -> None:
    """Check that a store, its processes gone and opened once more, has what its images need and no more."""
    with Store.open(root) as store:
        needed = store.db.content()
        assert needed.blobs <= set(store.blobs.list()) <= needed.blobs | needed.tars
        assert store.snapshots.list() == needed.snapshots
    assert list((root / "tmp").iterdir()) == []
    assert {path.name for path in root.glob("runs/*")} <= {"lock"}
    names = {path.name.removesuffix("-wal").removesuffix("-shm") for path in root.iterdir()}
    store_has = {"lock", "state.db", "oci-layout", "index.json", "blobs", "layers", "tmp", "downloads"}
    assert names <= store_has | {"runs", "cache", "volumes", "containers"}


def users_of(root: Path) -> list[str]:
    """Return mounts of a store's files, processes that have them open, and loop devices of them."""
    found = [line for line in Path("/proc/self/mountinfo").read_text().splitlines() if str(root) in line]
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # it ended meanwhile
            links = [*(process / "fd").iterdir(), process / "cwd", process / "root"]
            found += [f"{process.name}: {link.readlink()}" for link in links if str(root) in str(link.readlink())]
    for backing in Path("/sys/block").glob("loop*/loop/backing_file"):
        with contextlib.suppress(OSError):
            found += [backing.read_text()] * (str(root) in backing.read_text())
    return found


def check_archive(path: Path) -> None:
    with tarfile.open(path) as archive:
        members = {info.name: info for info in archive}
        assert {"oci-layout", "index.json"} <= members.keys()
        for name, info in members.items():
            if name.startswith("blobs/sha256/"):
                file = archive.extractfile(info)
                assert file is not None
                assert hashlib.sha256(file.read()).hexdigest() == name.rpartition("/")[2]


@pytest.mark.timeout(3600)
def test_a_store_under_fire(stock: Stock, tmp_path: Path) -> None:
    hosts = {name.partition("/")[0] for name in stock.pulled}
    with Nursery(*hosts) as nursery:

        @settings(
            max_examples=_EXAMPLES,
            deadline=None,
            # What depends on time does not shrink; a failure tells all that was done.
            phases=[Phase.explicit, Phase.reuse, Phase.generate],
            suppress_health_check=list(HealthCheck),
        )
        @given(st.lists(doings(), min_size=_STEPS, max_size=_STEPS))
        def live(steps: Sequence[Doing]) -> None:
            with Life(stock, nursery, tmp_path) as life:
                for step in steps:
                    life.do(step)

        live()
