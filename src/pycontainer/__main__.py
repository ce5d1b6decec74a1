"""``python -m pycontainer`` is the command ``pycontainer``."""

from pycontainer.cli import main

main()
