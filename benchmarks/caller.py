"""Time ``engine.run`` from a Python program; a worker as ``measure`` wants it.

Usage: ``caller.py --root DIR [--threads N] [--resident BYTES] [--import ROOTFS --filter FILE]``
"""

from __future__ import annotations

import argparse
import json
import sys
import threading
import time
from pathlib import Path

from pycontainer import Engine, Limits
from pycontainer.runtime import capabilities, seccomp

REFERENCE = "bench"


def main() -> None:
    """Import the image, or answer requests until the end of input."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--root", type=Path, required=True)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--resident", type=int, default=0, help="bytes of touched memory to hold meanwhile")
    parser.add_argument("--import", dest="rootfs", type=Path, help="import this directory, then end")
    parser.add_argument("--filter", type=Path, help="with --import: write the engine's compiled seccomp filter here")
    arguments = parser.parse_args()
    ballast = bytearray(arguments.resident)
    for page in range(0, len(ballast), 4096):
        ballast[page] = 1
    with Engine(arguments.root) as engine:
        if arguments.rootfs:
            engine.images.import_rootfs(arguments.rootfs, reference=REFERENCE)
            if arguments.filter:  # so that the floor loads the very program that the engine loads
                kept = frozenset(capabilities.resolve())
                arguments.filter.write_bytes(seccomp.FilterCache(None).default_filter(kept).program)
            return
        serve(engine, arguments.threads)


def serve(engine: Engine, threads: int) -> None:
    """Answer each line ``COUNT SLEEP_MS`` with the runs' times."""
    image = engine.images.get(REFERENCE)
    limits = Limits(memory="256M", cpus=1, pids=64)

    def work(count: int, sleep_ms: int, times: list[float]) -> None:
        for _ in range(count):
            if sleep_ms:
                time.sleep(sleep_ms / 1000)
            start = time.perf_counter_ns()
            result = engine.run(image, ["/bin/true"], network="none", limits=limits)
            times.append((time.perf_counter_ns() - start) / 1000)
            if result.exit_code != 0 or not result.usage.peak_memory:
                raise RuntimeError(f"not a full run: {result}")

    for line in sys.stdin:
        count, sleep_ms = map(int, line.split())
        times: list[float] = []
        start = time.perf_counter_ns()
        if threads == 1:
            work(count, sleep_ms, times)
        else:
            shares = [count // threads + (i < count % threads) for i in range(threads)]
            pool = [threading.Thread(target=work, args=(share, sleep_ms, times)) for share in shares]
            for thread in pool:
                thread.start()
            for thread in pool:
                thread.join()
        if len(times) != count:
            sys.exit("a run failed")
        print(json.dumps({"us": times, "wall_us": (time.perf_counter_ns() - start) / 1000}), flush=True)


if __name__ == "__main__":
    main()
