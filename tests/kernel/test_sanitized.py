"""The core under AddressSanitizer and UndefinedBehaviorSanitizer, with real containers: starts that succeed or fail."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FLAGS = "-fsanitize=address,undefined -fno-omit-frame-pointer -g -O1"

# What it prints is compared, so that a run that did not happen cannot pass.
RUNS = """
import sys, threading
from pycontainer import Device, Engine, Error, IdMap, Limits, Mount, Rlimit

def run(engine, image, script, **wishes):
    try:
        result = engine.run(image, ["sh", "-c", script], **wishes)
        return result.exit_code, result.stdout[:20]
    except Error as error:
        return type(error).__name__

with Engine(sys.argv[1]) as engine:
    image = engine.images.import_rootfs(sys.argv[2], reference="sanitized")
    limits = Limits(memory="64M", cpus=1, pids=32)
    print(run(engine, image, "echo a; exit 3", limits=limits))
    print(run(engine, image, "cat", input=b"x" * 300000, output_limit=10))
    print(run(engine, image, "id -u", tty=True, user="1000:1000"))
    print(run(engine, image, "id -u", init=True, userns=[IdMap(0, 100000, 65536)]))
    print(run(engine, image, "cat /a/b", mounts=[Mount.bind("/etc/hostname", "/a/b"), Mount.tmpfs("/t", size="1M")])[0])
    print(run(engine, image, "true", mounts=[Mount.bind("/nowhere", "/a")]))
    print(run(engine, image, "true", rlimits=[Rlimit("nofile", 1 << 40)]))
    print(run(engine, image, "sleep 60", timeout=0.2))
    print(run(engine, image, "head -c 200m /dev/zero | tail", limits=limits)[0])
    print(run(engine, image, "true", devices=[Device("/dev/null", "/dev/x/null")], privileged=True))
    done = []
    threads = [threading.Thread(target=lambda: done.append(run(engine, image, "true"))) for _ in range(8)]
    for thread in threads: thread.start()
    for thread in threads: thread.join()
    print(set(done))
    script = (
        "mkdir -p /a/b/c; echo x > /a/b/c/f; ln /a/b/c/f /l; ln -s $(printf %03000d) /long; mkfifo /p; "
        "truncate -s 5G /hole; echo end >> /hole; rm -r /home /etc/group; mkdir /home; chmod 711 /bin/busybox; "
        "for i in $(seq 300); do mkdir d; cd d; echo x > f; done"
    )
    box = engine.containers.create(image, ["sh", "-c", script], userns=[IdMap(0, 100000, 65536)])
    print(box.run().exit_code, len(box.diff()))
    box.export(sys.argv[1] + "/box.tar")
    print(run(engine, box.commit(), "stat -c %s /hole; cat /a/b/c/f"))
    print(run(engine, box.commit(squash=True, compression="gzip"), "ls /home /p"))
"""
EXPECTED = """\
(3, b'a\\n')
(0, b'xxxxxxxxxx')
(0, b'1000\\r\\n')
(0, b'0\\n')
0
StartError
StartError
TimeoutExpired
137
(0, b'')
{(0, b'')}
0 614
(0, b'5368709124\\nx\\n')
(0, b'/p\\n\\n/home:\\n')
"""


@pytest.mark.slow
def test_the_core_is_clean_under_sanitizers(busybox_rootfs: Path, tmp_path: Path) -> None:
    if not (ROOT / "setup.py").exists() or shutil.which("gcc") is None:
        pytest.skip("needs the sources and gcc")
    tree = tmp_path / "tree"
    for name in ("csrc", "src"):
        ignored = shutil.ignore_patterns("*.so", "bin", "__pycache__", "tests")
        shutil.copytree(ROOT / name, tree / name, ignore=ignored)
    for name in ("setup.py", "pyproject.toml", "README.md"):
        shutil.copy(ROOT / name, tree)
    env = {**os.environ, "CFLAGS": FLAGS, "LDFLAGS": FLAGS}
    build = [sys.executable, "setup.py", "--quiet", "build_ext", "--inplace"]
    made = subprocess.run(build, cwd=tree, env=env, capture_output=True, text=True, check=False)
    if made.returncode != 0 and "cannot find" in made.stderr:
        pytest.skip("gcc has no sanitizers here")
    assert made.returncode == 0, made.stderr[-3000:]

    def library(name: str) -> str:
        return subprocess.check_output(["gcc", f"-print-file-name={name}"], text=True).strip()

    env = {
        **os.environ,
        "PYTHONPATH": str(tree / "src"),
        "LD_PRELOAD": f"{library('libasan.so')} {library('libubsan.so')}",
        # The interpreter itself never frees all.
        "ASAN_OPTIONS": "detect_leaks=0",
        "UBSAN_OPTIONS": "print_stacktrace=1:halt_on_error=1",
    }
    command = [sys.executable, "-c", RUNS, str(tmp_path / "store"), str(busybox_rootfs)]
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False, timeout=120)
    assert "Sanitizer" not in done.stderr, done.stderr[-5000:]
    assert "runtime error" not in done.stderr, done.stderr[-5000:]
    assert (done.stdout, done.returncode) == (EXPECTED, 0), done.stderr[-3000:]
