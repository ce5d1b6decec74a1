"""Start containers of an image again and again, as ``measure`` wants it; or load images; or hold one container open.

Usage: ``images_caller.py --root DIR (--load LAYOUT NAME | --start NAME | --hold NAME)``
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path

from pycontainer import Engine
from pycontainer.running import Running


def main() -> None:
    """Do one of these."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--root", type=Path, required=True)
    parser.add_argument("--load", nargs=2, metavar=("LAYOUT", "NAME"))
    parser.add_argument(
        "--start", metavar="NAME", help="answer each line COUNT SLEEP_MS with the times of so many runs"
    )
    parser.add_argument("--hold", metavar="NAME", help="print the pid of a container that lasts until end of input")
    arguments = parser.parse_args()
    with Engine(arguments.root) as engine:
        if arguments.load:
            engine.images.load(arguments.load[0], reference=arguments.load[1])
        elif arguments.start:
            _start(engine, arguments.start)
        else:
            engine.run(arguments.hold, ["sleep", "3600"], on_start=_hold)


def _start(engine: Engine, name: str) -> None:
    image = engine.images.get(name)
    for line in sys.stdin:
        count, sleep_ms = map(int, line.split())
        times: list[float] = []
        began = time.perf_counter_ns()
        for _ in range(count):
            time.sleep(sleep_ms / 1000)
            start = time.perf_counter_ns()
            result = engine.run(image, ["/bin/true"])
            times.append((time.perf_counter_ns() - start) / 1000)
            if result.exit_code != 0:
                raise RuntimeError(f"not a full run: {result}")
        print(json.dumps({"us": times, "wall_us": (time.perf_counter_ns() - began) / 1000}), flush=True)


def _hold(running: Running) -> None:
    print(running.pid, flush=True)
    sys.stdin.read()
    running.kill()


if __name__ == "__main__":
    main()
