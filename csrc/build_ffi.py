"""Describe the extension module ``pycontainer._core`` to cffi: every ``*.cdef`` here, compiled with every ``*.c``."""

from pathlib import Path

import cffi

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
HELPERS = {"monitor.c", "keep.c", "clean.c", "init.c"}  # programs of their own, never part of the extension

CFLAGS = [
    "-std=gnu11",
    "-D_GNU_SOURCE",
    "-O2",
    "-Wall",
    "-Wextra",
    "-fvisibility=hidden",
    "-fno-strict-aliasing",
]

ffibuilder = cffi.FFI()
# First those that declare what others use.
FIRST = ["error.cdef", "layer.cdef"]
for cdef in [HERE / name for name in FIRST] + sorted(set(HERE.glob("*.cdef")) - {HERE / name for name in FIRST}):
    ffibuilder.cdef(cdef.read_text())

ffibuilder.set_source(
    "pycontainer._core",
    '#include "pyc.h"\n',
    sources=[str(p.relative_to(ROOT)) for p in sorted(HERE.glob("*.c")) if p.name not in HELPERS],
    include_dirs=["csrc"],
    extra_compile_args=CFLAGS,
    py_limited_api=True,
)
