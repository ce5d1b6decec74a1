"""What ``import pycontainer`` loads: programs that start one container pay for it each time."""

from __future__ import annotations

import ast
import importlib
import subprocess
import sys
from pathlib import Path

import pytest

import pycontainer

# Each takes a millisecond or more and serves only what few programs ask for.
SLOW = (
    "concurrent.futures",
    "difflib",
    "isal",
    "pycontainer.bundle",
    "pycontainer.cli",
    "pycontainer.distribution",
    "pycontainer.doctor",
    "pycontainer.host",
    "pycontainer.oci.runtime_rare",
    "pycontainer.oci.runtime_rules",
    "pycontainer.runtime.seccomp_compiler",
    "secrets",
    "shutil",
    "subprocess",
    "tempfile",
    "zstandard",
)


@pytest.mark.parametrize("statement", ["import pycontainer", "from pycontainer import Engine"])
def test_what_few_need_is_not_imported(statement: str) -> None:
    code = f"import sys; before = set(sys.modules); {statement}; print(*(set(sys.modules) - before))"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not set(run.stdout.split()) & set(SLOW)


def test_the_command_loads_no_more_to_run_a_container() -> None:
    """Of a run by the command, most of the time goes into imports."""
    code = (
        "import sys; before = set(sys.modules); import pycontainer.cli.foreground, pycontainer.runner; "
        "print(*(set(sys.modules) - before))"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = set(run.stdout.split())
    assert not loaded & {*SLOW, "click", "rich", "selectors", "socket", "tty"} - {"pycontainer.cli"}
    assert {name for name in loaded if name.startswith("pycontainer.cli.")} == {
        f"pycontainer.cli.{name}" for name in ("flags", "foreground", "options", "terminal")
    }


def test_the_package_alone_loads_nothing() -> None:
    code = "import sys, pycontainer; print(*(name for name in sys.modules if name.startswith('pycontainer')))"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.split() == ["pycontainer"]


def test_names_are_loaded_from_where_type_checkers_find_them() -> None:
    """What is imported for types alone and what is found at run time are the same."""
    tree = ast.parse(Path(pycontainer.__file__).read_text())
    found = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("pycontainer."):
            found.update({alias.name: node.module for alias in node.names})
    assert sorted(found) == pycontainer.__all__
    for name, module in found.items():
        assert getattr(pycontainer, name) is getattr(importlib.import_module(module), name)
        assert name in importlib.import_module(module).__all__
    assert set(pycontainer.__all__) <= set(dir(pycontainer))


def test_other_names_are_refused() -> None:
    with pytest.raises(AttributeError, match="module 'pycontainer' has no attribute 'Nonsense'"):
        getattr(pycontainer, "Nonsense")  # noqa: B009 - to mypy there is no such name


def test_rare_classes_of_documents_come_when_asked_for() -> None:
    code = (
        "import sys, typing; from pycontainer.oci import runtime\n"
        "assert 'pycontainer.oci.runtime_rare' not in sys.modules\n"
        "assert all(getattr(runtime, name) for name in runtime.__all__)\n"
        "assert typing.get_type_hints(runtime.Resources)['network'] == runtime.Network | None\n"
        "assert not hasattr(runtime, 'Nonsense')"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
