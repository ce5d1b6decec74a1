"""How the documentation is built: Sphinx with furo; nitpicky, warnings are errors, examples are run."""

from __future__ import annotations

import os
import sys
import tempfile
import tomllib
from pathlib import Path

_project = tomllib.loads((Path(__file__).parent.parent / "pyproject.toml").read_text())["project"]

project = "pycontainer"
author = "the pycontainer authors"
project_copyright = author
version = release = _project["version"]

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.doctest",
    "sphinx.ext.napoleon",
]
exclude_patterns = ["_build"]
html_theme = "furo"
html_title = f"pycontainer {release}"

nitpicky = True
nitpick_ignore_regex = [
    # The documentation of Python is on another site, and building ours must not need the network.
    ("py:.*", r"(collections\.abc|datetime|os|pathlib|types|typing)\..*|Path|datetime"),
    # Named in passing; not part of the public interface.
    ("py:.*", r"pycontainer\.(host|distribution\..*)"),
]
suppress_warnings = ["myst.header"]

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_preserve_defaults = True
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True

# Examples start real containers, which takes root; without it they are left out and we say so.
AS_ROOT = os.geteuid() == 0
doctest_test_doctest_blocks = "default" if AS_ROOT else ""
SCRATCH = tempfile.TemporaryDirectory(prefix="pycontainer-docs-")
doctest_global_setup = f"""
AS_ROOT = {AS_ROOT}
if AS_ROOT:
    import pathlib
    import pycontainer.engine
    from pycontainer import *
    scratch = pathlib.Path({SCRATCH.name!r})
    pycontainer.engine.default_root = lambda: scratch / "default"  # the reader's own is not for examples
    opened = engine = Engine(scratch / "store")
    image = engine.images.host()
"""
doctest_global_cleanup = """
if AS_ROOT:
    opened.close()
"""
if not AS_ROOT:
    print("The examples are not run: they start containers, which needs root.", file=sys.stderr)
