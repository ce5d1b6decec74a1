#!/bin/sh
# venv.sh DIR: make the virtual environment DIR with what building the package needs, and say clearly when it cannot be.
set -eu
python=${PYTHON:-python3}
"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || {
    echo "$python is $("$python" --version 2>&1): pycontainer needs Python 3.11 or newer; make PYTHON=/path/to/python3.11" >&2
    exit 1
}
[ -x "$1/bin/python" ] && "$1/bin/python" -c '' 2>/dev/null || { rm -rf "$1"; "$python" -m venv "$1"; }
"$1/bin/python" -m pip install --quiet --disable-pip-version-check 'setuptools>=77' 'cffi>=1.16'
