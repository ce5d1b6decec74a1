# make demo | test | lint | docs | bench: each does all the set-up it needs, and a second call does none.
# Needs: git, make, gcc, Python >= 3.11; on Debian, as root, everything else is fetched (see scripts/system-packages.sh).
PYTHON ?= python3
VENV ?= .venv
PYTEST_ARGS ?=

export PYTHON
PY := $(VENV)/bin/python
PIP := $(PY) -m pip install --quiet --disable-pip-version-check
DONE := $(VENV)/done

CORE := $(wildcard csrc/*.c csrc/*.h csrc/*.cdef csrc/build_ffi.py)
C_FILES := $(wildcard csrc/*.c csrc/*.h csrc/tests/*.c csrc/tests/*.h benchmarks/floor/*.c benchmarks/floor/*.h)
SOURCES := $(wildcard csrc/*.c)
PYTHON_DIRS := $(wildcard src tests docs benchmarks examples scripts)

WARNINGS := -std=gnu11 -D_GNU_SOURCE -O2 -Wall -Wextra -Wconversion -Werror -fvisibility=hidden -fno-strict-aliasing -Icsrc
CROSS := aarch64-linux-gnu-

.PHONY: help demo test lint docs bench bench-images cross asan valgrind fuzz build clean
help:
	@sed -n '1,2s/^# //p' Makefile

# ── set-up, each step once ──
$(DONE)/venv: scripts/system-packages.sh scripts/venv.sh
	@scripts/system-packages.sh build
	@scripts/venv.sh $(VENV)
	@mkdir -p $(DONE) && touch $@

# Headers are not among what setuptools compares, so the old module goes first.
$(DONE)/package: $(DONE)/venv pyproject.toml setup.py $(CORE)
	@echo "Building the C core"
	@rm -f src/pycontainer/_core*.so
	@$(PIP) --no-build-isolation --editable .
	@touch $@

$(DONE)/extra-%: $(DONE)/package pyproject.toml scripts/requirements.py
	@$(PY) scripts/requirements.py $* | $(PIP) --requirement /dev/stdin
	@touch $@

$(DONE)/system-%: $(DONE)/venv scripts/system-packages.sh
	@scripts/system-packages.sh $*
	@touch $@

build: $(DONE)/package

# ── what people call ──
demo: $(DONE)/package $(DONE)/system-images
	@$(PY) -m examples.demo

test: $(DONE)/extra-test $(DONE)/system-images $(DONE)/system-peers $(DONE)/system-vm $(DONE)/system-c-tests
	$(MAKE) -C csrc/tests check
	$(PY) -m pytest $(PYTEST_ARGS)

# The C tests under sanitizers, under valgrind, and fed with what a fuzzer makes up: SECONDS for each target.
asan valgrind fuzz: $(DONE)/system-c-tests
	$(MAKE) -C csrc/tests $@

lint: $(DONE)/extra-test $(DONE)/extra-lint $(DONE)/extra-docs $(DONE)/extra-bench $(DONE)/system-lint cross
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy $(PYTHON_DIRS)
	$(VENV)/bin/clang-format --dry-run -Werror $(C_FILES)
	@set -e; for file in $(SOURCES); do for compiler in gcc clang; do \
	    $$compiler $(WARNINGS) -fsyntax-only $$file; done; done; echo "$(words $(SOURCES)) C files, gcc and clang: no warnings"

cross: $(DONE)/package $(DONE)/system-cross
	@rm -rf build/aarch64 && mkdir -p build/aarch64
	@set -e; for file in $(SOURCES); do $(CROSS)gcc $(WARNINGS) -fPIC -c -o build/aarch64/$$(basename $$file .c).o $$file; done
	@CC=$(CROSS)gcc $(PY) setup.py --quiet build_helper --target build/aarch64/pycontainer-monitor
	@echo "$(words $(SOURCES)) C files and pycontainer-monitor cross-compile for aarch64"

docs: $(DONE)/extra-docs
	$(PY) -m sphinx -q -n -W --keep-going -b html docs docs/_build/html
	$(PY) -m sphinx -q -n -W -b doctest docs docs/_build/doctest
	@echo "docs/_build/html/index.html"

bench: $(DONE)/extra-bench $(DONE)/system-images $(DONE)/system-peers $(DONE)/system-bench
	$(PY) -m benchmarks

bench-images: $(DONE)/extra-bench $(DONE)/system-images $(DONE)/system-peers $(DONE)/system-bench
	$(PY) -m benchmarks.images

clean:
	rm -rf build dist $(VENV) docs/_build src/*.egg-info src/pycontainer/bin src/pycontainer/_core*
