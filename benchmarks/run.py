"""Measure one isolated run against the kernel's floor and against the peers, all in the same run.

Usage, as root: ``python -m benchmarks [--quick] [--peers bwrap,crun,runc,podman,docker] [--out DIR]``
"""

from __future__ import annotations

import argparse
import contextlib
import datetime as dt
import json
import os
import platform
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs
from rich.console import Console

from benchmarks import contenders, filters, report
from benchmarks.measure import Contender, Samples, measure
from benchmarks.stage import Stage, open_stage

if TYPE_CHECKING:
    from collections.abc import Mapping

HERE = Path(__file__).parent


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Measure one isolated run against the kernel's floor and the peers.")
    parser.add_argument("--quick", action="store_true", help="few rounds, under a minute; numbers are rough")
    parser.add_argument("--peers", default=",".join(contenders.PEERS), help="which peers, separated by commas")
    parser.add_argument("--out", type=Path, default=HERE / "out", help="where results.json, the plot and the page go")
    parser.add_argument("--rounds", type=int, help="rounds back to back (default 40, quick 4)")
    parser.add_argument("--sparse-rounds", type=int, help="rounds with pauses (default 20, quick 2)")
    parser.add_argument("--pause-ms", type=int, default=100, help="the pause before a sparse run")
    parser.add_argument("--seccomp", type=Path, default=filters.DEFAULT_PROFILE, help="docker-style profile for all")
    parser.add_argument(
        "--lock", type=Path, default=Path(tempfile.gettempdir()) / "pycontainer-bench.lock", help="held while measuring"
    )
    arguments = parser.parse_args()
    arguments.peers = [name for name in arguments.peers.split(",") if name]
    unknown = set(arguments.peers) - set(contenders.PEERS)
    if unknown:
        parser.error(f"unknown peers: {', '.join(sorted(unknown))}")
    arguments.rounds = arguments.rounds or (4 if arguments.quick else 40)
    arguments.sparse_rounds = arguments.sparse_rounds or (2 if arguments.quick else 20)
    if os.geteuid() != 0:
        parser.error("needs root: namespaces, mounts and cgroups are made")
    return arguments


def _machine() -> dict[str, Any]:
    release = platform.freedesktop_os_release()
    processor = next(
        (
            line.split(":", 1)[1].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if "model name" in line
        ),
        platform.machine(),
    )
    pure = Path("/sys/fs/cgroup/cgroup.controllers").exists()
    hybrid = Path("/sys/fs/cgroup/unified").is_dir()
    return {
        "processors": len(os.sched_getaffinity(0)),
        "processor": processor,
        "kernel": platform.release(),
        "cgroup": "v2" if pure else "v1 and v2 (hybrid)" if hybrid else "v1",
        "system": release.get("PRETTY_NAME", "unknown"),
        "python": platform.python_version(),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
    }


def _load() -> float:
    return round(os.getloadavg()[0], 2)


def _gather(
    stage: Stage, arguments: argparse.Namespace, samples: Samples, stack: contextlib.ExitStack
) -> list[Contender]:
    found = contenders.floor(stage)
    try:
        found += contenders.ours(stage)
        found += contenders.python_starts(stage)
    except contenders.Missing as error:
        for name in ("ours", "ours_2gb", "ours_mounts", "pycontainer_run"):
            samples.missing[name] = str(error)
    for name in contenders.PEERS:
        if name not in arguments.peers:
            samples.missing[name] = "not asked for (--peers)"
            continue
        try:
            found.append(stack.enter_context(contenders.peer(stage, name)))
        except contenders.Missing as error:
            samples.missing[name] = str(error)
    return found


def _import_times(code: str) -> list[tuple[str, float]]:
    """Return the packages that ``code`` imports with their own milliseconds, the dearest first."""
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-c", code],
        env=contenders.environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    totals: dict[str, float] = {}
    for line in done.stderr.splitlines():
        fields = line.removeprefix("import time:").split("|")
        if not line.startswith("import time:") or not fields[0].strip().isdigit():
            continue
        package = fields[2].strip().split(".")[0]
        totals[package] = totals.get(package, 0) + int(fields[0]) / 1000
    return sorted(totals.items(), key=lambda item: -item[1])


def _breakdown(samples: Samples) -> list[str]:
    found = report.summaries(samples)["back_to_back"]
    steps = [
        ("python_pass_isolated", "the interpreter alone (python -I -S -c pass)"),
        ("python_pass", "site and its .pth files (python -c pass)"),
        ("python_import", contenders.IMPORT),
        ("python_import_cli", "what else a run takes is imported"),
        ("pycontainer_run", "open the engine, run, read usage, exit"),
    ]
    if any(name not in found for name, _ in steps):
        return ["not measured: " + samples.missing.get("pycontainer_run", "a part is missing")]
    lines, before = [], 0.0
    for name, text in steps:
        lines.append(f"{found[name].median - before:.1f} ms: {text}")
        before = found[name].median
    for code in (contenders.IMPORT, contenders.CLI_IMPORTS):
        dear = ", ".join(f"{package} {ms:.1f}" for package, ms in _import_times(code)[:10])
        lines.append(f"`{code}` under -X importtime, ms by package: {dear}")
    return lines


def _measure(stage: Stage, arguments: argparse.Namespace, samples: Samples) -> dict[str, str]:
    with contextlib.ExitStack() as stack:
        found = _gather(stage, arguments, samples, stack)
        rates = stack.enter_context(
            contenders.throughput(
                stage,
                with_ours="ours" not in samples.missing,
                with_bwrap="bwrap" not in samples.missing,
                count=60 if arguments.quick else 200,
            )
        )
        measure(
            found,
            samples,
            rounds=arguments.rounds,
            sparse_rounds=arguments.sparse_rounds,
            pause_ms=arguments.pause_ms,
            lock=arguments.lock,
            throughput=rates,
        )
        return {contender.name: contender.label for contender in found}


def _write(out: Path, results: Mapping[str, Any], samples: Samples, labels: Mapping[str, str]) -> None:
    out.mkdir(parents=True, exist_ok=True)
    (out / "results.json").write_text(json.dumps(results, indent=1) + "\n")
    (out / "report.md").write_text(report.markdown(results, samples, labels))
    for name in ("start.svg", "start.png"):
        problem = report.plot(samples, labels, out / name)
        if problem:
            print(problem, file=sys.stderr)
            break


def main() -> int:
    """Run the benchmark; the status is 1 when a target that could be measured was missed."""
    arguments = _arguments()
    machine = {**_machine(), "load_before": _load()}
    samples = Samples()
    if not arguments.seccomp.exists():
        print(f"no seccomp profile at {arguments.seccomp}: measured without seccomp", file=sys.stderr)
    with open_stage(arguments.seccomp) as stage:
        labels = _measure(stage, arguments, samples)
    machine["load_after"] = _load()
    targets = report.judge(samples)
    results = {
        "taken": dt.datetime.now(dt.UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "machine": machine,
        "options": {key: str(value) if isinstance(value, Path) else value for key, value in vars(arguments).items()},
        "versions": contenders.versions(),
        "targets": [{**attrs.asdict(target), "verdict": target.verdict} for target in targets],
        "breakdown": _breakdown(samples),
        "microseconds": samples.times,
        "containers_per_second": samples.rates,
        "missing": samples.missing,
    }
    _write(arguments.out, results, samples, labels)
    report.tables(samples, labels, Console(width=100))
    for line in results["breakdown"]:
        print(line)
    if machine["load_before"] > machine["processors"] / 2:
        print(f"the machine was busy before we began (load {machine['load_before']}): ratios are rough")
    return int(any(target.verdict == "FAIL" for target in targets))
