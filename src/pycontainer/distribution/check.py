"""Check a store: everything that an image needs is there, is what its digest says, and agrees with everything else.

Blobs and tars are hashed. Of an index the tar is indexed again: the same tar gives the same bytes. A layer that is a
directory is only looked for: programs of the host may have it open, and what it was made of, the blob, is hashed.

Repairs bring back what can be made from the rest: indexes and directories from tars or blobs, tars from blobs. What is
damaged and cannot be made anew is deleted, so that the next load or pull of the image brings it in again.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import attrs

from pycontainer.distribution import erofs
from pycontainer.distribution.forms import choose_form
from pycontainer.distribution.layer import LayerLimits
from pycontainer.errors import Conflict, Error, NotFound
from pycontainer.housekeeping import CheckReport, Problem
from pycontainer.oci.image import MAX_DOCUMENT, Manifest, parse_manifest_or_index

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from pycontainer.housekeeping import ProblemKind
    from pycontainer.store import ImageRow, LayerRow, Store

__all__ = ["check"]

_CHUNK = 1 << 20


def check(store: Store, *, repair: bool = False, drop: bool = False) -> CheckReport:
    """Check a store.

    Args:
        store: which one; others may use it meanwhile.
        repair: make anew what can be made.
        drop: delete images of which something is missing that cannot be made anew, unless a container uses them.

    Raises:
        StoreError: the disk cannot be read or written.
    """
    with store.adding() as workspace:
        checker = _Checker(store, workspace)
        checker.run()
        if repair:
            checker.repair()
    dropped = checker.drop() if drop else ()
    if repair:
        store.write_index()
        store.collect()
    return CheckReport(problems=tuple(checker.problems), images=checker.images, size=checker.size, dropped=dropped)


class _Checker:
    def __init__(self, store: Store, workspace: Path) -> None:
        self._store = store
        self._workspace = workspace
        self._form = choose_form(store, workspace, LayerLimits())  # finds out what this kernel mounts
        self._good: dict[str, bool] = {}  # by digest: whether a blob is there and right
        self.problems: list[Problem] = []
        self.images = 0
        self.size = 0

    # ── look ──

    def run(self) -> None:
        store = self._store
        for text in store.db.damage():
            self._note("database", "state.db", text)
        rows = store.db.images()
        self.images = len(rows)
        for row in rows:
            self._check_documents(row)
            for layer in store.db.layers(row.id):
                self._check_layer(row, layer)
            if row.merged:
                self._check_merged(row)
        if not store.index_is_current():
            self._note("index.json", "index.json", "it does not list the images of the store")
        needed = store.db.content()
        for digest in sorted(store.blobs.list().keys() - needed.blobs - needed.tars):
            self._note("unreferenced", digest, "a blob that no image needs")
        for name in sorted(store.snapshots.list() - needed.snapshots):
            self._note("unreferenced", name, "a layer that no image needs")

    def _note(self, kind: ProblemKind, name: str, detail: str, image: str | None = None) -> None:
        for number, known in enumerate(self.problems):
            if (known.kind, known.name) == (kind, name):
                if image is not None and image not in known.images:
                    self.problems[number] = attrs.evolve(known, images=(*known.images, image))
                return
        images = () if image is None else (image,)
        self.problems.append(Problem(kind=kind, name=name, detail=detail, images=images))

    def _check_documents(self, row: ImageRow) -> None:
        for digest in (row.id, row.digest, *self._store.db.blobs(row.id)):
            self._check_blob("document", digest, row.id)
        if not self._good[row.digest]:
            return
        try:
            data = self._store.blobs.read(row.digest, limit=MAX_DOCUMENT)
            manifest = parse_manifest_or_index(data, f"the manifest {row.digest}")
        except Error as error:
            self._note("document", row.digest, str(error), row.id)
            return
        recorded = [layer.digest for layer in self._store.db.layers(row.id)]
        if not isinstance(manifest, Manifest) or manifest.config.digest != row.id:
            self._note("document", row.digest, f"it is not the manifest of {row.id}", row.id)
        elif [layer.digest for layer in manifest.layers] != recorded:
            self._note("document", row.digest, "it lists other layers than are recorded", row.id)

    def _check_blob(self, kind: ProblemKind, digest: str, image: str) -> bool:
        if digest not in self._good:
            self._good[digest] = self._is_good(kind, digest, image)
        elif not self._good[digest]:
            self._note(kind, digest, "", image)
        return self._good[digest]

    def _is_good(self, kind: ProblemKind, digest: str, image: str) -> bool:
        algorithm, _, encoded = digest.partition(":")
        hashed = hashlib.new(algorithm)
        try:
            with self._store.blobs.open(digest) as file:
                while chunk := file.read(_CHUNK):
                    hashed.update(chunk)
                    self.size += len(chunk)
        except NotFound:
            self._note(kind, digest, "it is missing", image)
            return False
        except OSError as error:
            self._note(kind, digest, f"it cannot be read: {error.strerror}", image)
            return False
        if hashed.hexdigest() != encoded:
            self._note(kind, digest, f"its content is {algorithm}:{hashed.hexdigest()}", image)
            return False
        return True

    def _check_layer(self, row: ImageRow, layer: LayerRow) -> None:
        snapshots = self._store.snapshots
        self._check_blob("blob", layer.digest, row.id)
        indexed = snapshots.has_index(layer.snapshot)
        if indexed or layer.diff_id in self._store.blobs:
            kind: ProblemKind = "blob" if layer.digest == layer.diff_id else "tar"
            self._check_blob(kind, layer.diff_id, row.id)
        if indexed:
            self._check_index(layer.snapshot, [layer.diff_id], row.id)
        elif not snapshots.has_directory(layer.snapshot):
            self._note("layer", layer.snapshot, "it is missing", row.id)
        if indexed and not self._store.indexed:
            self._note("layer", layer.snapshot, "this kernel cannot mount its index", row.id)

    def _check_merged(self, row: ImageRow) -> None:
        diff_ids = [layer.diff_id for layer in self._store.db.layers(row.id)]
        for diff_id in diff_ids:
            self._check_blob("tar", diff_id, row.id)
        if not self._store.snapshots.has_index(row.merged):
            self._note("layer", row.merged, "it is missing", row.id)
        else:
            self._check_index(row.merged, diff_ids, row.id)

    def _check_index(self, name: str, diff_ids: list[str], image: str) -> None:
        key = f"index {name}"
        if key not in self._good:
            if not all(self._good.get(diff_id) for diff_id in diff_ids):
                return  # that is the problem to tell
            self._good[key] = self._is_index_good(name, diff_ids)
        if not self._good[key]:
            self._note("layer", name, "its index is not the one of its tar", image)

    def _is_index_good(self, name: str, diff_ids: list[str]) -> bool:
        again = self._workspace / "again.erofs"
        tars = [self._store.blobs.path(diff_id) for diff_id in diff_ids]
        try:
            if name == diff_ids[0]:
                erofs.index(tars[0], None, again, compression="none", expected_diff_id=name)
            else:
                erofs.merge(tars, again, diff_ids=diff_ids)
            return _same(again, self._store.snapshots.index(name))
        finally:
            again.unlink(missing_ok=True)

    # ── repair ──

    def repair(self) -> None:
        store = self._store
        for problem in self.problems:
            self._delete_damaged(problem)
        broken: set[str] = set()
        for row in store.db.images():
            layers = store.db.layers(row.id)
            try:
                rows, merged = self._form.join(layers)
            except (FileNotFoundError, Error):
                broken.add(row.id)  # its blobs are gone: told already
                continue
            if (tuple(rows), merged) != (tuple(layers), row.merged):
                store.put_layers(row.id, rows, merged)
        self.problems = [
            attrs.evolve(problem, repaired=self._is_repaired(problem, broken)) for problem in self.problems
        ]

    def _delete_damaged(self, problem: Problem) -> None:
        """Take away what is wrong, so that it is made anew now, or brought in by the next load."""
        store = self._store
        if problem.kind in ("document", "blob", "tar"):
            if not self._good.get(problem.name, True):
                store.blobs.remove(problem.name)
        elif problem.kind == "layer":
            store.snapshots.index(problem.name).unlink(missing_ok=True)

    def _is_repaired(self, problem: Problem, broken: set[str]) -> bool:
        if problem.kind in ("index.json", "unreferenced"):
            return True
        if problem.kind == "tar":
            return problem.name in self._store.blobs or not set(problem.images) & broken
        if problem.kind == "blob":
            return problem.name in self._store.blobs
        return problem.kind == "layer" and not set(problem.images) & broken

    def drop(self) -> tuple[str, ...]:
        """Delete images that stay damaged."""
        dropped: list[str] = []
        hurt: Iterable[str] = dict.fromkeys(
            image for problem in self.problems if not problem.repaired for image in problem.images
        )
        for identity in hurt:
            try:
                self._store.remove_image(identity)
            except (Conflict, NotFound):
                continue  # a container uses it: what its layers still show is for its owner to save
            dropped.append(identity)
        gone = set(dropped)
        self.problems = [
            attrs.evolve(problem, repaired=problem.repaired or (bool(problem.images) and set(problem.images) <= gone))
            for problem in self.problems
        ]
        return tuple(dropped)


def _same(one: Path, two: Path) -> bool:
    if one.stat().st_size != two.stat().st_size:
        return False
    with one.open("rb") as left, two.open("rb") as right:
        while chunk := left.read(_CHUNK):
            if chunk != right.read(_CHUNK):
                return False
    return True
