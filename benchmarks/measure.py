"""Samples: workers that speak one protocol, asked in turn so that drift of the machine hits all alike.

A worker reads lines ``COUNT SLEEP_MS`` and answers each with one JSON object: ``us``, the time of every run in
microseconds, and ``wall_us`` for the whole batch.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import math
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

import attrs

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["Contender", "Samples", "Summary", "Worker", "exclusive", "measure", "summarize"]


@attrs.frozen(kw_only=True)
class Contender:
    """One thing to be timed.

    Attributes:
        name: key in the results.
        label: what the table calls it.
        argv: the worker's command line.
        env: its whole environment, or ``None`` to inherit.
        batch: runs per turn when measured back to back.
        sparse_batch: runs per turn when measured with pauses; 0 leaves it out there.
        share: in how many of the rounds it takes part, 1.0 for all; slow peers need fewer.
    """

    name: str
    label: str
    argv: Sequence[str]
    env: Mapping[str, str] | None = None
    batch: int = 10
    sparse_batch: int = 3
    share: float = 1.0


class Worker:
    """A running contender."""

    def __init__(self, contender: Contender) -> None:
        """Start the worker; it is ready when it has answered its first request."""
        self.contender = contender
        self.last_words = ""
        self._process = subprocess.Popen(
            contender.argv, env=contender.env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        if self._process.stdin is None or self._process.stdout is None:
            raise RuntimeError(f"{contender.label}: no pipes to its worker")
        self._requests, self._answers = self._process.stdin, self._process.stdout

    def ask(self, count: int, sleep_ms: int = 0) -> tuple[list[float], float]:
        """Time ``count`` runs with a pause before each.

        Returns:
            The runs' times and the time of the whole batch, both in microseconds.

        Raises:
            RuntimeError: the worker ended; carries what it wrote to standard error.
        """
        # A worker that has gone is found out by its empty answer, and its last words say more than EPIPE.
        with contextlib.suppress(BrokenPipeError):
            self._requests.write(f"{count} {sleep_ms}\n".encode())
            self._requests.flush()
        line = self._answers.readline()
        if not line:
            self.close()
            raise RuntimeError(self.last_words)
        answer = json.loads(line)
        return answer["us"], answer["wall_us"]

    def close(self) -> None:
        """End the worker and keep what it said."""
        if self._process.returncode is None:
            _, err = self._process.communicate()
            lines = err.decode(errors="replace").strip().splitlines()
            self.last_words = " | ".join(lines[-4:]) or f"ended with status {self._process.returncode}"


@attrs.define
class Samples:
    """All that was measured.

    Attributes:
        times: mode (``back_to_back`` or ``sparse``) to contender to microseconds.
        rates: contender to containers per second, one value per round.
        missing: contender to the reason why it was not measured.
    """

    times: dict[str, dict[str, list[float]]] = attrs.field(factory=lambda: {"back_to_back": {}, "sparse": {}})
    rates: dict[str, list[float]] = attrs.field(factory=dict)
    missing: dict[str, str] = attrs.field(factory=dict)


@attrs.frozen
class Summary:
    """Middle and edges of one list of samples, in the samples' unit."""

    median: float
    p10: float
    p90: float
    count: int


def summarize(values: Sequence[float]) -> Summary:
    """Return median, tenth and ninetieth percentile.

    >>> summarize([1.0, 2.0, 3.0])
    Summary(median=2.0, p10=1.0, p90=3.0, count=3)
    """
    ordered = sorted(values)
    last = len(ordered) - 1
    return Summary(
        statistics.median(ordered), ordered[math.floor(last * 0.1)], ordered[math.ceil(last * 0.9)], len(ordered)
    )


@contextlib.contextmanager
def exclusive(lock: Path) -> Iterator[None]:
    """Hold ``lock`` so that no other benchmark on this machine measures at the same time."""
    with lock.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _start(contenders: Sequence[Contender], samples: Samples) -> list[Worker]:
    workers = []
    for contender in contenders:
        worker = Worker(contender)
        try:
            worker.ask(3 if contender.share == 1.0 else 1)
        except RuntimeError as error:
            samples.missing[contender.name] = str(error)
            _say(f"  {contender.label}: left out: {error}")
            continue
        workers.append(worker)
    return workers


def measure(
    contenders: Sequence[Contender],
    samples: Samples,
    *,
    rounds: int,
    sparse_rounds: int,
    pause_ms: int,
    lock: Path,
    throughput: Sequence[tuple[str, Callable[[], float]]] = (),
) -> None:
    """Ask every contender in turn, round after round, and add the answers to ``samples``.

    Args:
        contenders: who takes part; one that cannot start is recorded as missing with its own words.
        samples: receives the times.
        rounds: turns back to back.
        sparse_rounds: turns with a pause before every run.
        pause_ms: that pause.
        lock: held for one round at a time.
        throughput: names and functions that measure containers per second, called once in every fourth round.
    """
    workers = _start(contenders, samples)
    try:
        for mode, count, pause in (("back_to_back", rounds, 0), ("sparse", sparse_rounds, pause_ms)):
            began = time.monotonic()
            for turn in range(count):
                with exclusive(lock):
                    _one_round(workers, samples, mode=mode, turn=turn, pause_ms=pause)
                    if not pause and turn % 4 == 0:
                        for name, rate in throughput:
                            samples.rates.setdefault(name, []).append(rate())
            _say(f"  {mode}: {count} rounds in {time.monotonic() - began:.0f} s")
    finally:
        for worker in workers:
            worker.close()


def _one_round(workers: list[Worker], samples: Samples, *, mode: str, turn: int, pause_ms: int) -> None:
    # The order turns too, so that nobody always runs behind the same neighbour.
    for worker in [*workers[turn % len(workers) :], *workers[: turn % len(workers)]]:
        contender = worker.contender
        count = contender.sparse_batch if pause_ms else contender.batch
        its_turn = turn == 0 or math.floor((turn + 1) * contender.share) > math.floor(turn * contender.share)
        if count == 0 or not its_turn:
            continue
        times, _ = worker.ask(count, pause_ms)
        samples.times[mode].setdefault(contender.name, []).extend(times)
