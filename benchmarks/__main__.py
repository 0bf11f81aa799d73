"""`python -m benchmarks`: run the measures and print their tables."""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from benchmarks.backlog import nap_backlog, noop_backlog
from benchmarks.cold_start import cold_start
from benchmarks.lab import Build, Lab, open_lab
from benchmarks.latency import latency
from benchmarks.measuring import measuring
from benchmarks.memory import memory
from benchmarks.observability import observability
from benchmarks.report import Table
from benchmarks.rounds import FULL, QUICK, Effort
from benchmarks.submit import submit, submit_batch
from benchmarks.writes import writes
from taskflux.local.console import Trouble

Measure = Callable[[Lab, Effort], Awaitable[Table]]

MEASURES: Final[Mapping[str, Measure]] = {
    "submit": submit,
    "batch": submit_batch,
    "backlog": noop_backlog,
    "nap": nap_backlog,
    "latency": latency,
    "cold-start": cold_start,
    "memory": memory,
    "observability": observability,
    "measuring": measuring,
    "writes": writes,
}


async def run(names: Sequence[str], effort: Effort, builds: Sequence[Build], apache: bool) -> list[Table]:
    """Run these measures one after the other, printing each as it is done."""
    tables = []
    with tempfile.TemporaryDirectory(prefix="taskflux-bench-") as directory:
        async with open_lab(Path(directory), builds, apache=apache) as lab:
            for name in names:
                began = time.monotonic()
                tables.append(await MEASURES[name](lab, effort))
                print(f"\n{tables[-1].text()}\n  ({time.monotonic() - began:.0f} s)", flush=True)
    return tables


def machine() -> dict[str, Any]:
    """What the figures depend on."""
    return {
        "cpus": len(os.sched_getaffinity(0)),
        "load": os.getloadavg()[0],
        "python": platform.python_version(),
        "machine": f"{platform.system()} {platform.machine()}",
    }


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser("python -m benchmarks", description="TaskFlux next to bare floors, in one run.")
    parser.add_argument("--only", action="append", choices=list(MEASURES), help="this measure (may be given again)")
    parser.add_argument("--quick", action="store_true", help="one short round of each, to see that it works")
    parser.add_argument("--kafka", action="store_true", help="Apache Kafka (Java 17, Maven) for the embedded broker")
    parser.add_argument("--rounds", type=int, help="rounds of each measure")
    parser.add_argument("--against", type=Path, metavar="DIR", help="another checkout, measured next to this one")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every sample there")
    return parser.parse_args()


def main() -> None:
    """Measure, print, write."""
    options = arguments()
    effort = QUICK if options.quick else FULL
    if options.rounds:
        effort = Effort(options.rounds, options.rounds, effort.scale)
    builds = [Build("TaskFlux")]
    if options.against:
        builds.append(Build(f"TaskFlux in {options.against.name}", options.against.resolve()))
    broker, found, began = "Apache Kafka" if options.kafka else "the embedded broker", machine(), time.monotonic()
    print(f"PostgreSQL and {broker} on the same {found['cpus']} CPUs, load before {found['load']:.1f}")
    try:
        tables = asyncio.run(run(options.only or list(MEASURES), effort, builds, options.kafka))
    except Trouble as trouble:
        sys.exit(f"benchmarks: {trouble}")
    print(f"\n{time.monotonic() - began:.0f} s, load {os.getloadavg()[0]:.1f}")
    if options.json:
        document = {"machine": found, "broker": broker, "measures": {table.key: table.document() for table in tables}}
        options.json.write_text(json.dumps(document, indent=2, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
