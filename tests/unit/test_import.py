"""What ``import pycontainer`` loads: programs that start one container pay for it each time."""

from __future__ import annotations

import subprocess
import sys

import pytest

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


def test_rare_classes_of_documents_come_when_asked_for() -> None:
    code = (
        "import sys, typing; from pycontainer.oci import runtime\n"
        "assert 'pycontainer.oci.runtime_rare' not in sys.modules\n"
        "assert all(getattr(runtime, name) for name in runtime.__all__)\n"
        "assert typing.get_type_hints(runtime.Resources)['network'] == runtime.Network | None\n"
        "assert not hasattr(runtime, 'Nonsense')"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
