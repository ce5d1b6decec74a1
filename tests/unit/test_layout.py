"""The shape of the code: who may import whom, how long a module may be, what is public."""

from __future__ import annotations

import ast
import importlib
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
PACKAGE = ROOT / "src/pycontainer"
MODULES = sorted(PACKAGE.rglob("*.py"))
LONGEST = 650
PUBLIC = {
    f"pycontainer.{name}" for name in ("engine", "errors", "housekeeping", "image", "images", "model", "progress")
}  # what users import comes from these

# From the bottom up. A module may import from levels below its own and from its own room.
FACTS, MECHANISM, LIBRARY, DOOR, PROGRAMS = range(5)
FACT_MODULES = {"errors", "housekeeping", "lowers", "model", "names", "oci", "progress", "records"}
MECHANISM_ROOMS = {"_ffi", "store", "runtime", "net", "distribution"}
PROGRAM_ROOMS = {"cli", "daemon", "registry", "oci_runtime", "__main__"}
# Mechanism rooms do not know each other, but for these.
ALLOWED = {("distribution", "store")} | {(room, "_ffi") for room in MECHANISM_ROOMS}


def dotted(path: Path) -> str:
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def room(module: str) -> str:
    """Return the first name below the package, ``""`` for the package itself."""
    name = [*module.split("."), ""][1]
    return "cli" if name == "__main__" else name  # the same program by another way


def level(module: str) -> int:
    name = room(module)
    if name == "":
        return DOOR
    if name in FACT_MODULES:
        return FACTS
    if name in MECHANISM_ROOMS:
        return MECHANISM
    return PROGRAMS if name in PROGRAM_ROOMS else LIBRARY


def imports(path: Path) -> set[str]:
    """Return the modules of this package that a module imports anywhere, inside functions and for types too."""
    found: set[str] = set()
    known = {dotted(module) for module in MODULES} | {"pycontainer._core"}
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: imports are absolute"
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                found.add(inner if inner in known else str(node.module))
    return {name for name in found if name.split(".")[0] == "pycontainer"}


def names_of_modules(modules: list[Path]) -> list[str]:
    return [dotted(module) for module in modules]


@pytest.mark.parametrize("path", MODULES, ids=dotted)
def test_imports_go_down(path: Path) -> None:
    module = dotted(path)
    for target in imports(path) - {"pycontainer._core"}:
        here, there = level(module), level(target)
        if room(module) == room(target):
            continue
        if here == there == MECHANISM:
            assert (room(module), room(target)) in ALLOWED, f"{module} imports {target}: these rooms are strangers"
        elif here == there:
            assert here in {FACTS, LIBRARY}, f"{module} imports {target}: programs do not know each other"
        else:
            assert there < here, f"{module} imports {target}, which is above it"


@pytest.mark.parametrize("path", MODULES, ids=dotted)
def test_only_one_module_imports_the_core(path: Path) -> None:
    assert "pycontainer._core" not in imports(path) or dotted(path) == "pycontainer._ffi"


@pytest.mark.parametrize("path", [path for path in MODULES if level(dotted(path)) == PROGRAMS], ids=dotted)
def test_programs_use_the_public_api(path: Path) -> None:
    """What a program needs and cannot import is missing from the public API."""
    for target in imports(path):
        assert level(target) in {DOOR, LIBRARY, FACTS} or room(target) == room(dotted(path)), target


@pytest.mark.parametrize("path", MODULES, ids=dotted)
def test_modules_are_short(path: Path) -> None:
    assert len(path.read_text().splitlines()) < LONGEST


@pytest.mark.parametrize("path", sorted((ROOT / "csrc").rglob("*.[ch]")), ids=lambda path: path.name)
def test_c_files_are_short_and_say_what_they_own(path: Path) -> None:
    text = path.read_text()
    assert len(text.splitlines()) < 2 * LONGEST
    assert text.startswith("/*"), "the first lines say what the file owns, which kernel interfaces, who calls it"


@pytest.mark.parametrize("name", names_of_modules(MODULES))
def test_all_is_kept_honest(name: str) -> None:
    """Every name in ``__all__`` exists; in a module of the public API every class is in it or private."""
    if name.endswith("__main__"):
        return
    module = importlib.import_module(name)
    public = getattr(module, "__all__", None)
    if public is None:
        assert level(name) == PROGRAMS or room(name) in MECHANISM_ROOMS, (
            "a module of the public API says what is public"
        )
        return
    assert len(public) == len(set(public))
    assert [entry for entry in public if not hasattr(module, entry)] == []
    if name in PUBLIC:
        own = {
            entry
            for entry, value in vars(module).items()
            if not entry.startswith("_") and getattr(value, "__module__", None) == name and isinstance(value, type)
        }
        assert own - set(public) == set(), "public by name, missing in __all__"


def test_the_package_exports_sorted_names() -> None:
    package = importlib.import_module("pycontainer")
    names = [name for name in package.__all__ if not name.startswith("__")]
    assert names == sorted(names)


def test_the_package_exports_every_error() -> None:
    package = importlib.import_module("pycontainer")
    errors = importlib.import_module("pycontainer.errors")
    assert set(errors.__all__) <= set(package.__all__)


def test_import_is_light() -> None:
    """The command line's libraries, and what only a registry client needs, are not loaded for an engine."""
    code = "import sys; from pycontainer import Engine; print(*sorted({name.split('.')[0] for name in sys.modules}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not {"click", "rich", "urllib3", "asyncio", "unittest", "http"} & set(done.stdout.split())


def tracked_files() -> list[Path]:
    done = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        pytest.skip(f"not a git checkout: {done.stderr.strip()}")
    return [ROOT / name for name in done.stdout.split("\0") if name]


def test_no_file_names_a_machine() -> None:
    """Paths of one developer's machine mean nothing on another."""
    pattern = re.compile(rb"""(?:^|[\s"'`=(\[,])(/(?:work|tmp/venv|home/(?!app\b|ci\b|me\b)[a-z]+)\b)""", re.MULTILINE)
    found = [
        f"{path.relative_to(ROOT)}: {match[1].decode()}"
        for path in tracked_files()
        if path.is_file() and path.name != "test_layout.py"
        for match in pattern.finditer(path.read_bytes())
    ]
    assert found == []


def test_no_room_is_called_after_nothing() -> None:
    names = {"utils", "util", "helpers", "helper", "common", "manager", "misc"}
    assert [path for path in MODULES if path.stem in names or path.parent.name in names] == []


@pytest.mark.skipif(not (ROOT / "docs").is_dir(), reason="only the tests are on this machine, not the documentation")
def test_every_public_name_is_documented() -> None:
    documented = set()
    for page in ("reference.rst", "errors.rst"):
        text = (ROOT / "docs" / page).read_text()
        documented |= set(re.findall(r"^\.\. (?:auto(?:class|exception)|py:type):: (\w+)", text, re.MULTILINE))
    assert set(importlib.import_module("pycontainer").__all__) - documented == set()
