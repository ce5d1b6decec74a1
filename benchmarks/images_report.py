"""Results of the images' benchmark as people read them: tables, targets, the plot, the Markdown page."""

from __future__ import annotations

import io
import statistics
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

from benchmarks.report import Target

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

__all__ = ["judge", "markdown", "plot", "tables"]

_LABELS = {"ours": "pycontainer", "podman": "podman", "docker": "docker", "ctr": "containerd", "umoci": "umoci"}
_COLOURS = {"ours": "#d95f02", "podman": "#7570b3", "docker": "#1b9e77", "ctr": "#66a61e", "umoci": "#a6761d"}
# Ours against the best of the others, or against one: step, who, how many times.
_RATIOS = [
    ("load a gzip archive", "", 5.0),
    ("pull, gzip layers", "", 5.0),
    ("pull, zstd layers", "", 5.0),
    ("save", "podman", 4.0),
    ("commit, 10,000 changes", "podman", 6.0),
    ("remove the image", "", 5.0),
]
_DIFF_LIMIT = 200  # ms


def _medians(results: Mapping[str, Any], field: str = "seconds") -> dict[str, dict[str, float]]:
    return {
        step: {tool: statistics.median(one[field] for one in rounds) for tool, rounds in tools.items()}
        for step, tools in results["times"].items()
    }


def judge(results: Mapping[str, Any]) -> list[Target]:
    """Hold the medians against the promises."""
    found = _medians(results)
    targets = [_against(found.get(step, {}), results, step, peer, limit) for step, peer, limit in _RATIOS]
    diff = found.get("diff, 10,000 changes", {}).get("ours")
    targets.append(
        Target(
            text="diff of 10,000 changes, whole process",
            measured=None if diff is None else diff * 1000,
            limit=_DIFF_LIMIT,
            at_most=True,
            unit="ms",
            without=results["missing"].get("diff, 10,000 changes: ours", "not measured"),
        )
    )
    for mode, words in (("back_to_back", "back to back"), ("sparse", "50 ms apart")):
        times = results["starts"]["times"][mode]
        ratio = None
        if {"chain-1", "chain-120"} <= set(times):
            ratio = statistics.median(times["chain-120"]) / statistics.median(times["chain-1"])
        text = f"start of 120 layers / of one, {words}"
        targets.append(Target(text=text, measured=ratio, limit=1.2, at_most=True, without="not measured"))
    for kind in ("cold", "warm"):
        reads = results["reads"].get(kind, {})
        ratio = statistics.median(reads["ours"]) / statistics.median(reads["ext4"]) if len(reads) > 1 else None
        text = f"reading every file / from ext4, {kind}"
        targets.append(Target(text=text, measured=ratio, limit=1.0, at_most=True, without="not measured"))
    targets.append(_memory(results))
    return targets


def _memory(results: Mapping[str, Any]) -> Target:
    whole, small = (
        results["times"].get(f"pull, {step}", {}).get("ours") for step in ("gzip layers", "one layer of 25 MB")
    )
    ratio = max(one["memory"] for one in whole) / max(one["memory"] for one in small) if whole and small else None
    text = "memory of a pull: five layers, 1 GB / one layer, 25 MB"
    return Target(text=text, measured=ratio, limit=1.5, at_most=True, without="not measured")


def _against(tools: Mapping[str, float], results: Mapping[str, Any], step: str, peer: str, limit: float) -> Target:
    others = {name: value for name, value in tools.items() if name != "ours" and (not peer or name == peer)}
    text = f"{step}: {_LABELS.get(peer, 'the best other')} / pycontainer"
    if "ours" not in tools or not others:
        gone = "ours" if "ours" not in tools else peer or "others"
        reason = results["missing"].get(f"{step}: {gone}", "not measured")
        return Target(text=text, measured=None, limit=limit, at_most=False, without=f"{gone}: {reason}")
    return Target(text=text, measured=min(others.values()) / tools["ours"], limit=limit, at_most=False)


def _tools(results: Mapping[str, Any]) -> list[str]:
    return [tool for tool in _LABELS if any(tool in tools for tools in results["times"].values())]


def _times_table(results: Mapping[str, Any], field: str, title: str) -> Table:
    found, tools = _medians(results, field), _tools(results)
    table = Table(title=title, title_justify="left")
    table.add_column("step")
    for tool in tools:
        table.add_column(_LABELS[tool], justify="right")
    for step, values in found.items():
        ours = values.get("ours")
        cells = []
        for tool in tools:
            value = values.get(tool)
            ratio = f" ({value / ours:.1f}x)" if value and ours and tool != "ours" else ""
            cells.append("-" if value is None else f"{value:.2f}{ratio}")
        table.add_row(step, *cells)
    return table


def _memory_table(results: Mapping[str, Any]) -> Table:
    tools = [tool for tool in _tools(results) if tool != "umoci"]
    table = Table(title="Most memory of the process that does it, MiB (daemons: VmHWM)", title_justify="left")
    table.add_column("step")
    for tool in tools:
        table.add_column(_LABELS[tool], justify="right")
    for step, values in results["times"].items():
        cells = [
            f"{max(one['memory'] for one in values[tool]) / (1 << 20):.0f}" if tool in values else "-" for tool in tools
        ]
        table.add_row(step, *cells)
    return table


def _targets_table(targets: Sequence[Target]) -> Table:
    table = Table(title="Targets", title_justify="left")
    for column in ("what", "medians", "must be", ""):
        table.add_column(column, justify="right" if column in {"medians", "must be"} else "left")
    colour = {"PASS": "[green]PASS[/]", "FAIL": "[red]FAIL[/]", "n/a": "[yellow]n/a[/]"}
    for target in targets:
        measured = "-" if target.measured is None else f"{target.measured:.2f} {target.unit}"
        sign = "<=" if target.at_most else ">="
        table.add_row(target.text, measured, f"{sign} {target.limit:g} {target.unit}", colour[target.verdict])
    return table


def tables(results: Mapping[str, Any], console: Console) -> None:
    """Print times, memory, starts, reads, targets and who is missing."""
    title = "Seconds, medians, and as a multiple of pycontainer's"
    console.print(_times_table(results, "seconds", title))
    console.print(_times_table(results, "synced", "The same until all of it is on the disk (sync)"))
    console.print(_memory_table(results))
    for mode, times in results["starts"]["times"].items():
        for name, values in times.items():
            console.print(f"start, {mode}, {name}: {statistics.median(values) / 1000:.2f} ms", highlight=False)
    for kind, reads in results["reads"].items():
        words = ", ".join(f"{name} {statistics.median(values):.2f} s" for name, values in reads.items())
        console.print(f"reading every file, {kind}: {words}", highlight=False)
    console.print(_targets_table(judge(results)))
    for what, reason in results["missing"].items():
        console.print(f"missing: {what}: {reason}", markup=False, highlight=False)


def plot(results: Mapping[str, Any], path: Path) -> str | None:
    """Draw the medians of every step on a logarithmic axis.

    Returns:
        Why there is no plot, or ``None`` when it was drawn.
    """
    try:
        import matplotlib as mpl
    except ImportError:
        return "no plot: matplotlib is not installed (pip install 'pycontainer-engine[bench]')"
    mpl.use("Agg")
    from matplotlib import pyplot as plt

    found = _medians(results)
    if not found:
        return "no plot: nothing was measured"
    columns = 2
    rows = -(-len(found) // columns)
    figure, axes = plt.subplots(rows, columns, figsize=(10, 1.7 * rows + 0.4), squeeze=False)
    for axis in axes.flat[len(found) :]:
        axis.remove()
    for axis, (step, values) in zip(axes.flat, found.items(), strict=False):
        names = [tool for tool in _LABELS if tool in values]
        for row, tool in enumerate(names):
            axis.barh(row, values[tool], color=_COLOURS[tool])
            axis.text(values[tool], row, f" {values[tool]:.2f}", va="center", fontsize=8)
        axis.set_yticks(range(len(names)), [_LABELS[name] for name in names], fontsize=8)
        axis.invert_yaxis()
        axis.set_xlim(0, max(values.values()) * 1.15)
        axis.set_title(f"{step}, seconds", fontsize=9, loc="left")
        axis.grid(visible=True, axis="x", alpha=0.2)
    figure.tight_layout()
    figure.savefig(path)
    plt.close(figure)
    return None


def _disturbed(machine: Mapping[str, Any]) -> str:
    """Return a warning when other work took processors away."""
    if machine["load_before"] <= machine["processors"] / 2:
        return ""
    return " **Other work took the processors meanwhile: times are too long, and ratios are rough.**"


def markdown(results: Mapping[str, Any]) -> str:
    """Return the page that is kept with the source."""
    text = io.StringIO()
    tables(results, Console(file=text, width=118, color_system=None))
    machine, layers = results["machine"], results["image"]["layers"]
    sizes = {kind: sum(layer["sizes"][kind] for layer in layers) / 1e6 for kind in ("plain", "gzip", "zstd")}
    entries = sum(layer["entries"] for layer in layers)
    versions = [f"- {_LABELS[name]}: {version}" for name, version in results["versions"].items()]
    return "\n".join(
        [
            "# What the life of an image costs",
            "",
            (
                f"Taken {results['taken']} by `python -m benchmarks.images` in {results['seconds'] / 60:.0f} min. "
                f"{machine['processors']} processors ({machine['processor']}), kernel {machine['kernel']}, "
                f"{machine['system']}, Python {machine['python']}; load {machine['load_before']} before, "
                f"{machine['load_after']} after." + _disturbed(machine)
            ),
            "",
            "![plot](images.svg)",
            "",
            "```text",
            text.getvalue().rstrip(),
            "```",
            "",
            "## Method",
            "",
            (
                f"- The image: {len(layers)} layers, {entries:,} entries, {sizes['plain']:,.0f} MB of tar, "
                f"{sizes['gzip']:,.0f} MB as gzip -6, {sizes['zstd']:,.0f} MB as zstd -3: a Debian, its Python, its "
                "compiler, data, and a node_modules of 53,000 files."
            ),
            (
                "- Every time is that of a whole command, `pycontainer` as a fresh Python process too, from its start "
                "to its end. Each step starts with nothing left to write; how long the disk takes afterwards is told "
                "apart. Archives and the registry's blobs are in the page cache."
            ),
            (
                "- All stores are on one fresh ext4 with a journal, on a loop device: an ext4 without one makes files "
                "many times slower for minutes after a large removal. The registry is Debian's, on loopback, plain."
            ),
            (
                "- One archive for all: docker's manifest.json and an OCI layout over the same gzip layers; umoci "
                "unpacks the layout. After each load and pull the id is compared."
            ),
            (
                "- The container of diff and commit: 5,000 files of the image with a line added, 5,000 new ones. "
                "Reading every file: GNU tar into a pipe, in a container of ours and in an overlay of the layers as "
                "GNU tar unpacks them on ext4; cold is after dropping all caches."
            ),
            "",
            "## Versions",
            "",
            *versions,
            "",
        ]
    )
