"""Build the two compiled parts: the cffi extension and the static helper. All else is in pyproject.toml."""

import os
import shlex
import subprocess
from pathlib import Path
from typing import ClassVar

from setuptools import Command, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext

HELPER = "pycontainer-monitor"
HELPER_SOURCES = [
    f"csrc/{name}.c"
    for name in (
        *("monitor", "keep", "clean", "init"),
        *("program", "files", "mount", "copyup", "identity", "terminal", "tree", "error"),
    )
]
HELPER_FLAGS = ["-std=gnu11", "-D_GNU_SOURCE", "-O2", "-Wall", "-Wextra", "-static", "-s", "-Icsrc"]


class BuildHelper(Command):
    """Compile ``csrc/monitor.c`` to a static program; ``CC`` names the compiler, a cross compiler too."""

    description = f"build {HELPER}"
    user_options: ClassVar = [("target=", None, "path of the program to make")]

    def initialize_options(self) -> None:
        """Put the program beside the modules of a checkout unless told otherwise."""
        self.target = f"src/pycontainer/bin/{HELPER}"

    def finalize_options(self) -> None:
        """Make the directory."""
        Path(self.target).parent.mkdir(parents=True, exist_ok=True)

    def run(self) -> None:
        """Compile."""
        compiler = shlex.split(os.environ.get("CC", "gcc"))
        subprocess.run([*compiler, *HELPER_FLAGS, "-o", self.target, *HELPER_SOURCES], check=True)


class BuildWithHelper(build_ext):
    """Build the extension, then the helper beside it."""

    def run(self) -> None:
        """Build both."""
        super().run()
        helper = self.distribution.get_command_obj("build_helper")
        helper.target = str(Path(self.get_ext_fullpath("pycontainer._core")).parent / "bin" / HELPER)
        self.run_command("build_helper")


class Abi3Wheel(bdist_wheel):
    """Tag the wheel for every CPython from 3.11 on."""

    def finalize_options(self) -> None:
        """Set the limited-API tag."""
        self.py_limited_api = "cp311"
        super().finalize_options()


setup(
    cffi_modules=["csrc/build_ffi.py:ffibuilder"],
    cmdclass={"bdist_wheel": Abi3Wheel, "build_ext": BuildWithHelper, "build_helper": BuildHelper},
)
