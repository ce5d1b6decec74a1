"""Print the requirements of extras of pyproject.toml, one a line, for ``pip install -r``.

The package itself is installed once, in place; asking pip for ``.[extra]`` would compile it again for each extra.
"""

from __future__ import annotations

import sys
import tomllib
from pathlib import Path


def main(extras: list[str]) -> None:
    """Print what the extras require."""
    project = tomllib.loads((Path(__file__).parent.parent / "pyproject.toml").read_text())["project"]
    for extra in extras:
        print("\n".join(project["optional-dependencies"][extra]))


if __name__ == "__main__":
    main(sys.argv[1:])
