"""Results as people read them: the table, the targets, the plot and the Markdown page."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any

import attrs
from rich.console import Console
from rich.table import Table

from benchmarks.measure import Samples, Summary, summarize

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

__all__ = ["Target", "judge", "markdown", "plot", "summaries", "tables"]

MODES = {"back_to_back": "back to back", "sparse": "100 ms apart"}


@attrs.frozen(kw_only=True)
class Target:
    """One promise about speed and what was measured.

    Attributes:
        text: the promise.
        measured: the number, or ``None`` when a contender is missing.
        quiet: the same of the tenth percentiles, which other work on the machine disturbs least; not judged.
        limit: what it is held against.
        at_most: the number must not be above the limit; otherwise not below it.
        unit: ``"x"`` or ``"ms"``.
        without: why there is no number.
    """

    text: str
    measured: float | None
    quiet: float | None = None
    limit: float
    at_most: bool
    unit: str = "x"
    without: str = ""

    @property
    def verdict(self) -> str:
        """``PASS``, ``FAIL`` or ``n/a``."""
        if self.measured is None:
            return "n/a"
        good = self.measured <= self.limit if self.at_most else self.measured >= self.limit
        return "PASS" if good else "FAIL"


def summaries(samples: Samples) -> dict[str, dict[str, Summary]]:
    """Return mode to contender to summary in milliseconds."""
    return {
        mode: {name: summarize([us / 1000 for us in values]) for name, values in contenders.items()}
        for mode, contenders in samples.times.items()
    }


def _ratio(found: Mapping[str, Summary], above: str, below: str) -> float | None:
    if above not in found or below not in found:
        return None
    return float(found[above].median / found[below].median)


def _quiet_ratio(found: Mapping[str, Summary], above: str, below: str) -> float | None:
    if above not in found or below not in found:
        return None
    return found[above].p10 / found[below].p10


def judge(samples: Samples) -> list[Target]:
    """Hold the medians against the promises."""
    found = summaries(samples)
    targets = []

    def add(text: str, above: str, below: str, limit: float, *, at_most: bool) -> None:
        for mode, words in MODES.items():
            measured = _ratio(found[mode], above, below)
            quiet = _quiet_ratio(found[mode], above, below)
            gone = [n for n in (above, below) if n not in found[mode]]
            without = "; ".join(f"{n}: {samples.missing.get(n, 'not measured')}" for n in gone)
            targets.append(
                Target(
                    text=f"{text}, {words}",
                    measured=measured,
                    quiet=quiet,
                    limit=limit,
                    at_most=at_most,
                    without=without,
                )
            )

    add("engine.run / kernel floor", "ours", "floor", 1.3, at_most=True)
    add("engine.run / bwrap", "ours", "bwrap", 1.0, at_most=True)
    add("crun with seccomp / engine.run", "crun", "ours", 5, at_most=False)
    add("docker run / engine.run", "docker", "ours", 40, at_most=False)
    add("2 GB resident / small caller", "ours_2gb", "ours", 1.1, at_most=True)
    add("500 other mounts / none", "ours_mounts", "ours", 1.1, at_most=True)
    targets.append(_throughput(samples))
    back = found["back_to_back"]
    command: tuple[float | None, float | None] = (None, None)
    imports = command
    if "pycontainer_run" in back:
        command = (back["pycontainer_run"].median, back["pycontainer_run"].p10)
    if "python_import" in back and "python_pass" in back:
        loaded, bare = back["python_import"], back["python_pass"]
        imports = (loaded.median - bare.median, loaded.p10 - bare.p10)
    for text, (value, quiet), limit in (
        ("pycontainer run, whole process", command, 100),
        ("from pycontainer import Engine, above python -c pass", imports, 60),
    ):
        without = "" if value is not None else samples.missing.get("pycontainer_run", "not measured")
        targets.append(
            Target(text=text, measured=value, quiet=quiet, limit=limit, at_most=True, unit="ms", without=without)
        )
    return targets


def _throughput(samples: Samples) -> Target:
    text = "containers/s of 4 threads / bwrap under xargs -P4"
    if "ours" not in samples.rates or "bwrap" not in samples.rates:
        gone = [name for name in ("ours", "bwrap") if name not in samples.rates]
        reason = "; ".join(f"{name}: {samples.missing.get(name, 'not measured')}" for name in gone)
        return Target(text=text, measured=None, limit=1.3, at_most=False, without=reason)
    ours, bwrap = (summarize(samples.rates[name]) for name in ("ours", "bwrap"))
    # The undisturbed end of a rate is its upper one.
    return Target(text=text, measured=ours.median / bwrap.median, quiet=ours.p90 / bwrap.p90, limit=1.3, at_most=False)


def _times_table(samples: Samples, labels: Mapping[str, str]) -> Table:
    found = summaries(samples)
    table = Table(
        title="Time of one run, ms: median (p10 - p90), and as a multiple of engine.run", title_justify="left"
    )
    table.add_column("contender", max_width=38)
    for words in MODES.values():
        table.add_column(words, justify="right", no_wrap=True)
        table.add_column("x", justify="right", no_wrap=True)
    for name, label in labels.items():
        if name in samples.missing:
            continue
        cells = []
        for mode in MODES:
            summary = found[mode].get(name)
            ratio = _ratio(found[mode], name, "ours")
            cells.append(f"{summary.median:.2f} ({summary.p10:.2f}-{summary.p90:.2f})" if summary else "-")
            cells.append(f"{ratio:.2f}" if ratio else "-")
        table.add_row(label, *cells)
    return table


def _rates_table(samples: Samples) -> Table:
    table = Table(title="Throughput, four at a time, containers/s", title_justify="left")
    for column in ("contender", "median", "p10", "p90"):
        table.add_column(column, justify="left" if column == "contender" else "right")
    for name, values in samples.rates.items():
        summary = summarize(values)
        table.add_row(name, *(f"{value:.0f}" for value in (summary.median, summary.p10, summary.p90)))
    return table


def _targets_table(targets: Sequence[Target]) -> Table:
    table = Table(title="Targets", title_justify="left")
    table.add_column("what", max_width=56)
    table.add_column("medians", justify="right")
    table.add_column("p10s", justify="right")
    table.add_column("must be", justify="right")
    table.add_column("")
    colour = {"PASS": "[green]PASS[/]", "FAIL": "[red]FAIL[/]", "n/a": "[yellow]n/a[/]"}
    for target in targets:
        measured = "-" if target.measured is None else f"{target.measured:.2f} {target.unit}"
        quiet = "-" if target.quiet is None else f"{target.quiet:.2f} {target.unit}"
        sign = "<=" if target.at_most else ">="
        table.add_row(target.text, measured, quiet, f"{sign} {target.limit:g} {target.unit}", colour[target.verdict])
    return table


def tables(samples: Samples, labels: Mapping[str, str], console: Console) -> None:
    """Print times, rates, targets and who is missing, in at most 100 columns."""
    targets = judge(samples)
    console.print(_times_table(samples, labels))
    if samples.rates:
        console.print(_rates_table(samples))
    console.print(_targets_table(targets))
    for name, reason in samples.missing.items():
        console.print(f"missing: {labels.get(name, name)}: {reason}", markup=False)


def plot(samples: Samples, labels: Mapping[str, str], path: Path) -> str | None:
    """Draw medians with their p10-p90 on a logarithmic axis.

    Returns:
        Why there is no plot, or ``None`` when it was drawn.
    """
    try:
        import matplotlib as mpl
    except ImportError:
        return "no plot: matplotlib is not installed (pip install 'pycontainer-engine[bench]')"
    mpl.use("Agg")
    from matplotlib import pyplot as plt

    found = summaries(samples)
    names = [name for name in labels if name in found["back_to_back"] and not name.startswith("python_")]
    figure, axes = plt.subplots(1, 2, figsize=(11, 0.45 * len(names) + 1.6), sharey=True)
    for axis, (mode, words) in zip(axes, MODES.items(), strict=True):
        for row, name in enumerate(names):
            summary = found[mode].get(name)
            if summary is None:
                continue
            colour = "#d95f02" if name.startswith("ours") else "#444444" if name.startswith("floor") else "#7570b3"
            error = [[summary.median - summary.p10], [summary.p90 - summary.median]]
            axis.barh(row, summary.median, color=colour, xerr=error, error_kw={"elinewidth": 1, "ecolor": "#999999"})
            axis.text(summary.p90 * 1.08, row, f"{summary.median:.1f}", va="center", fontsize=8)
        axis.set_xscale("log")
        axis.set_xlim(1, 2000)
        axis.set_xlabel(f"ms per run, {words} (median, p10-p90)")
        axis.grid(visible=True, axis="x", which="both", alpha=0.2)
    axes[0].set_yticks(range(len(names)), [labels[name] for name in names], fontsize=8)
    axes[0].invert_yaxis()
    figure.tight_layout()
    figure.savefig(path)
    plt.close(figure)
    return None


def markdown(results: Mapping[str, Any], samples: Samples, labels: Mapping[str, str]) -> str:
    """Return the page that is kept with the source."""
    text = io.StringIO()
    tables(samples, labels, Console(file=text, width=100, color_system=None))
    machine, options = results["machine"], results["options"]
    lines = [
        "# What one isolated run costs",
        "",
        (
            f"Taken {results['taken']} by `python -m benchmarks`. {machine['processors']} processors "
            f"({machine['processor']}), kernel {machine['kernel']}, cgroup {machine['cgroup']}, "
            f"{machine['system']}, Python {machine['python']}; load {machine['load_before']} before, "
            f"{machine['load_after']} after."
        ),
        "",
        "```text",
        text.getvalue().rstrip(),
        "```",
        "",
        "## Where `pycontainer run` spends its time",
        "",
        *(f"- {line}" for line in results["breakdown"]),
        "",
        "## Method",
        "",
        (
            f"- All contenders are asked in turn, {options['rounds']} rounds back to back and "
            f"{options['sparse_rounds']} with a pause of {options['pause_ms']} ms before every run, in a rotating "
            "order; medians are compared, so drift of the machine hits all alike."
        ),
        (
            "- The pauses matter: a write to `cgroup.procs` waits for an RCU grace period (11-16 ms) when starts are "
            "sparse and almost not at all in a tight loop."
        ),
        (
            "- Stores and run directories are on a fresh ext4 on a loop device: on an ext4 without a journal, creating "
            "files is many times slower for minutes after a large removal. docker and podman keep theirs on tmpfs, "
            "so their syncs are not counted against them."
        ),
        (
            "- `engine.run` and the floor: `/bin/true` of a static busybox; overlay, all six namespaces, limits on "
            "memory, cpu and pids, device rules, seccomp, capabilities, /proc, /sys, /dev and the rest, masked and "
            "read-only paths, both outputs captured to their end, exit status and usage read. Removal is off the path "
            "in both. The floor loads the engine's own compiled filter."
        ),
        (
            "- Peers are started by `floor/spawn.c` (posix_spawn, output read to its end), never from Python. "
            "bwrap has no cgroup, no seccomp and no overlay; crun and runc no overlay and run a bundle with "
            "the same namespaces, mounts, limits, capabilities and seccomp profile."
        ),
        "- On a host with hybrid cgroups, crun and podman see the v1 hierarchies only: crun 1.8 refuses hybrid.",
        (
            "- The 2 GB are touched pages of the calling Python; the 500 mounts are tmpfs mounts in the namespace that "
            "the caller takes for the host's."
        ),
        "",
        "## Versions",
        "",
        *(f"- {name}: {version}" for name, version in results["versions"].items()),
        "",
    ]
    return "\n".join(lines)
