"""Build the two compiled parts: the cffi extension and the static helper. All else is in pyproject.toml."""

import os
import shlex
import subprocess
from pathlib import Path

from setuptools import setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext

HELPER = "pycontainer-monitor"


class BuildWithHelper(build_ext):
    """Compile ``csrc/monitor.c`` to a static program that lies beside the package's modules."""

    def run(self) -> None:
        """Build the extension, then the helper."""
        super().run()
        package = Path(self.get_ext_fullpath("pycontainer._core")).parent
        target = package / "bin" / HELPER
        target.parent.mkdir(parents=True, exist_ok=True)
        compiler = shlex.split(os.environ.get("CC", "gcc"))
        sources = ["csrc/monitor.c", "csrc/tree.c", "csrc/error.c"]
        flags = ["-std=gnu11", "-D_GNU_SOURCE", "-O2", "-Wall", "-Wextra", "-static", "-s", "-Icsrc"]
        subprocess.run([*compiler, *flags, "-o", str(target), *sources], check=True)


class Abi3Wheel(bdist_wheel):
    """Tag the wheel for every CPython from 3.11 on."""

    def finalize_options(self) -> None:
        """Set the limited-API tag."""
        self.py_limited_api = "cp311"
        super().finalize_options()


setup(
    cffi_modules=["csrc/build_ffi.py:ffibuilder"],
    cmdclass={"build_ext": BuildWithHelper, "bdist_wheel": Abi3Wheel},
)
