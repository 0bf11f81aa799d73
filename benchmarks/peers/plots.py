"""Draws what was measured: `python -m benchmarks.peers.plots SAMPLES.json... FOLDER`, in the environment of the peers.

What no file has is not drawn. Lines are medians; bands reach from the least to the greatest of the rounds.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any, Final

import matplotlib as mpl

mpl.use("Agg")
import matplotlib.pyplot as plt

INK, OURS, FLOOR, OTHERS = "#333333", "#0b6e99", "#b0662f", "#9aa5b1"
COLOURS: Final = {"TaskFlux": OURS, "floor": FLOOR}
PEERS: Final = ("FastStream", "taskiq", "Dramatiq", "arq", "procrastinate", "Celery")

Measures = Mapping[str, Mapping[str, Any]]
Lines = Mapping[str, Sequence[tuple[float, Sequence[float]]]]


def lines(measure: Mapping[str, Any], column: str) -> Lines:
    """System → x and the values of the rounds there, in the order of x."""
    found: dict[str, list[tuple[float, Sequence[float]]]] = {}
    for name, contestant in measure["contestants"].items():
        system, _, x = name.partition(" · ")
        values = [sample[column] for sample in contestant["samples"]]
        found.setdefault(system, []).append((float(x.replace(",", "")), values))
    return {system: sorted(points) for system, points in sorted(found.items())}


def draw_lines(axes: Any, found: Lines, x_label: str, y_label: str, style: str = "-", what: str = "") -> None:
    """One line for each system; a single point is a mark."""
    for system, points in found.items():
        xs = [x for x, _ in points]
        colour, label = COLOURS[system], f"{system}{what}"
        axes.plot(xs, [median(values) for _, values in points], style, marker="o", ms=4, color=colour, label=label)
        axes.fill_between(
            xs, [min(values) for _, values in points], [max(values) for _, values in points], color=colour, alpha=0.15
        )
    axes.set_xlabel(x_label)
    axes.set_ylabel(y_label)
    axes.yaxis.set_major_formatter("{x:,.0f}")
    axes.legend(frameon=False)


def show_ticks(axes: Any, found: Lines) -> None:
    """What was measured, and nothing between."""
    ticks = sorted({x for points in found.values() for x, _ in points})
    axes.set_xticks(ticks, [f"{x:,.0f}" for x in ticks])
    axes.minorticks_off()


def throughput(measures: Measures, folder: Path) -> None:
    """Against connections, concurrency, and the sizes of batches and payloads."""
    panels = (
        ("connections", "submits/s", "connections", "submits a second"),
        ("slots", "tasks/s", "attempts at once (20 ms each)", "tasks a second"),
        ("batch-sizes", "submits/s", "lines in a batch", "tasks a second"),
        ("payload-sizes", "submits/s", "bytes of payload", "submits a second"),
    )
    shown = [panel for panel in panels if panel[0] in measures]
    if not shown:
        return
    figure, grid = plt.subplots(2, 2, figsize=(10, 7.4))
    for axes, (key, column, x_label, y_label) in zip(grid.flat, shown, strict=False):
        draw_lines(axes, lines(measures[key], column), x_label, y_label)
        axes.set_title(measures[key]["title"], fontsize=9)
        axes.set_xscale("log")
        show_ticks(axes, lines(measures[key], column))
        axes.set_ylim(bottom=0)
    for axes in list(grid.flat)[len(shown) :]:
        axes.set_visible(False)
    save(figure, folder / "bench-throughput.png")


def latency(measures: Measures, folder: Path) -> None:
    """Under load: the answer, and the start of the handler."""
    if "under-load" not in measures:
        return
    figure, grid = plt.subplots(1, 2, figsize=(10, 4))
    for axes, what in zip(grid, ("answer", "row → started"), strict=True):
        for share, style in (("p50", "-"), ("p99", "--")):
            found = lines(measures["under-load"], f"{what} {share} ms")
            draw_lines(axes, found, "submits a second", "ms", style, f", {share}")
        axes.set_title({"answer": "submit → 202"}.get(what, "row stored → handler started"), fontsize=9)
        axes.set_yscale("log")
        axes.set_ylim(bottom=1)
        show_ticks(axes, found)
        axes.yaxis.set_major_formatter("{x:,.0f}")
    save(figure, folder / "bench-latency.png")


def peers(measures: Measures, folder: Path) -> None:
    """All systems: tasks a second, and the CPU of a task."""
    panels = (
        ("backlog", "tasks/s", "no-op tasks a second", False),
        ("nap", "tasks/s", "tasks of 20 ms a second", False),
        ("submit", "submits/s", "HTTP submits a second", False),
        ("backlog", "CPU µs/task", "worker CPU, µs per no-op task", True),
    )
    if any(key not in measures or PEERS[0] not in measures[key]["contestants"] for key, *_ in panels):
        return
    figure, grid = plt.subplots(2, 2, figsize=(10, 6.4))
    for axes, (key, column, title, log) in zip(grid.flat, panels, strict=True):
        contestants = measures[key]["contestants"]
        ours = next(name for name in contestants if name.startswith("TaskFlux"))
        names = [*PEERS[::-1], ours, measures[key]["floor"]]
        values = [contestants[name]["medians"][column] for name in names]
        colours = [OTHERS] * len(PEERS) + [OURS, FLOOR]
        bars = axes.barh([*PEERS[::-1], "TaskFlux", "floor"], values, color=colours)
        axes.bar_label(bars, labels=[f"{value:,.0f}" for value in values], padding=3, fontsize=8)
        axes.set_title(title, fontsize=9)
        axes.set_xscale("log" if log else "linear")
        axes.margins(x=0.18)
        axes.xaxis.set_visible(False)
        axes.spines["bottom"].set_visible(False)
    save(figure, folder / "bench-peers.png")


def growth(measures: Measures, folder: Path) -> None:
    """Empty tables beside grown ones: the steps of a task, and what is looked up."""
    if "growth" not in measures:
        return
    contestants = measures["growth"]["contestants"]
    kinds = (("CPU µs of PostgreSQL per task", ", CPU µs"), ("ms (log)", ", ms"))
    figure, grid = plt.subplots(1, 2, figsize=(10, 4.2))
    for axes, (label, end) in zip(grid, kinds, strict=True):
        names = [name for name in contestants if name.endswith(end)][::-1]
        for offset, (column, colour) in zip((0.2, -0.2), (("empty", OTHERS), ("grown", OURS)), strict=True):
            values = [contestants[name]["medians"][column] for name in names]
            bars = axes.barh([place + offset for place in range(len(names))], values, 0.38, color=colour, label=column)
            axes.bar_label(bars, labels=[f"{value:,.1f}" for value in values], padding=3, fontsize=7)
        axes.set_yticks(range(len(names)), [name.removesuffix(end).removeprefix("list: ") for name in names])
        axes.set_xlabel(label)
        axes.set_xscale("log" if "log" in label else "linear")
        axes.xaxis.set_major_formatter("{x:,g}")
        axes.margins(x=0.15)
        axes.legend(frameon=False, loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=2)
    save(figure, folder / "bench-growth.png")


def save(figure: Any, path: Path) -> None:
    """Write the picture."""
    figure.tight_layout()
    figure.savefig(path, dpi=110, metadata={"Software": None})
    print(path)


def main(*arguments: str) -> None:
    """Draw everything that these files have."""
    *files, folder = map(Path, arguments)
    measures: dict[str, Mapping[str, Any]] = {}
    for file in files:
        measures |= json.loads(file.read_text())["measures"]
    plt.rcParams |= {"axes.spines.top": False, "axes.spines.right": False, "font.size": 9, "text.color": INK}
    folder.mkdir(parents=True, exist_ok=True)
    for draw in (throughput, latency, peers, growth):
        draw(measures, folder)


if __name__ == "__main__":
    main(*sys.argv[1:])
