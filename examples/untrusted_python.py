"""Run Python that nobody has read, written by a model or a stranger, and use what it computes.

    sudo .venv/bin/python examples/untrusted_python.py

``run_untrusted`` is the part to copy. What it starts has no network, no privileges, no files of the host but its
read-only programs, little memory, few processes and little time; whatever it does, nothing of it is left afterwards.
"""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Any

from pycontainer import Engine, Error, ExitError, Limits, Mount, OutOfMemory, TimeoutExpired

if TYPE_CHECKING:
    from pycontainer import Image

LIMITS = Limits(memory="128M", memory_swap="128M", cpus=1, pids=32)


def run_untrusted(engine: Engine, image: Image | str, code: str, data: object = None, *, timeout: float = 5) -> Any:  # noqa: ANN401 - any JSON value
    """Run code that reads JSON from stdin and prints JSON, and return what it printed.

    Args:
        engine: where to run it.
        image: an image with python3 in it; ``engine.images.host()`` is one on most machines.
        code: the program.
        data: what it finds on its stdin, as JSON.
        timeout: seconds until it and everything that it started is killed.

    Raises:
        TimeoutExpired: the time was up.
        OutOfMemory: it wanted more memory than it may have.
        ExitError: it failed in another way; the error carries its output.
        ValueError: it printed something that is not JSON.
    """
    result = engine.run(
        image,
        ["python3", "-I", "-c", code],
        input=json.dumps(data).encode(),
        network="none",
        limits=LIMITS,
        timeout=timeout,
        output_limit="1M",
        user="65534:65534",
        cap_drop=["ALL"],
        no_new_privileges=True,
        read_only=True,
        mounts=[Mount.tmpfs("/tmp", size="16M")],
        workdir="/tmp",
        env={"PYTHONDONTWRITEBYTECODE": "1"},
        check=True,
    )
    return json.loads(result.stdout)


MEAN = """
import json, statistics, sys
numbers = json.load(sys.stdin)
print(json.dumps({"mean": statistics.mean(numbers), "spread": statistics.stdev(numbers)}))
"""

MISCHIEF = {
    "run for ever": "while True: pass",
    "take all memory": "block = [bytearray(10_000_000) for _ in range(1000)]",
    "start processes without end": "import os\nwhile True: os.fork()",
    "call home": "import socket; socket.create_connection(('1.1.1.1', 443), timeout=3)",
    "read the passwords": "print(open('/etc/shadow').read())",
    "change the system": "open('/usr/bin/evil', 'w')",
    "fill the disk": "f = open('/tmp/big', 'wb')\nwhile True: f.write(bytes(1_000_000))",
    "print without end": "while True: print('spam' * 1000)",
    "kill everybody": "import os, signal; os.kill(-1, signal.SIGKILL)",
}


def main() -> None:
    """Use a good program, then let bad ones try."""
    with Engine() as engine:
        image = engine.images.get(sys.argv[1]) if len(sys.argv) > 1 else engine.images.host()
        print("statistics of [3, 1, 4, 1, 5]:", run_untrusted(engine, image, MEAN, [3, 1, 4, 1, 5]))
        for what, code in MISCHIEF.items():
            try:
                answer = f"printed {run_untrusted(engine, image, code, timeout=2)!r}"
            except TimeoutExpired:
                answer = "stopped: its time was up"
            except OutOfMemory:
                answer = "stopped: its memory was used up"
            except ExitError as error:
                last_words = error.result.stderr.decode(errors="replace").strip().splitlines()
                answer = f"failed: {last_words[-1] if last_words else error}"
            print(f"{what}: {answer}")


if __name__ == "__main__":
    try:
        main()
    except Error as error:
        sys.exit(f"{error.code}: {error}")
