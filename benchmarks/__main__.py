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
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, aclosing
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from benchmarks import goals
from benchmarks.backlog import nap_backlog, noop_backlog
from benchmarks.cold_start import cold_start, cold_start_delayed
from benchmarks.curves import CURVES
from benchmarks.growth import growth
from benchmarks.lab import ROOT, Build, Lab, open_lab
from benchmarks.latency import latency
from benchmarks.mail import mail
from benchmarks.measuring import measuring
from benchmarks.memory import memory
from benchmarks.observability import observability
from benchmarks.peers.contest import PROMISES, open_contest
from benchmarks.report import Table
from benchmarks.rounds import FULL, QUICK, Effort
from benchmarks.submit import submit, submit_batch
from benchmarks.whole import whole
from benchmarks.writes import writes
from taskflux.local.console import Trouble
from tests.kafka.classpath import java, server_classpath

JSON: Final = ROOT / "build" / "bench.json"
Measure = Callable[[Lab, Effort], Awaitable[Table]]

MEASURES: Final[Mapping[str, Measure]] = {
    "submit": submit,
    "batch": submit_batch,
    "backlog": noop_backlog,
    "nap": nap_backlog,
    "latency": latency,
    "cold-start": cold_start,
    "cold-start-delayed": cold_start_delayed,
    "memory": memory,
    "whole": whole,
    "mail": mail,
    **CURVES,
    "observability": observability,
    "measuring": measuring,
    "writes": writes,
    "growth": growth,
}


async def run(
    names: Sequence[str], effort: Effort, builds: Sequence[Build], *, apache: bool, peers: bool
) -> AsyncGenerator[Table, None]:
    """These measures one after the other; one that fails is reported, and the next one goes on."""
    with tempfile.TemporaryDirectory(prefix="taskflux-bench-") as directory:
        async with AsyncExitStack() as stack:
            lab = await stack.enter_async_context(open_lab(Path(directory), builds, apache=apache))
            if peers:
                lab.contest = await stack.enter_async_context(open_contest(lab))
            for name in names:
                began = time.monotonic()
                try:
                    table = await MEASURES[name](lab, effort)
                except (Trouble, RuntimeError, OSError) as error:
                    print(f"\n{name} failed: {error}", flush=True)
                    continue
                print(f"\n{table.text()}\n  ({time.monotonic() - began:.0f} s)", flush=True)
                yield table


def machine() -> dict[str, Any]:
    """What the figures depend on."""
    return {
        "cpus": len(os.sched_getaffinity(0)),
        "load": os.getloadavg()[0],
        "python": platform.python_version(),
        "machine": f"{platform.system()} {platform.machine()}",
    }


def has_kafka() -> bool:
    """Whether Apache Kafka can be started here; if not, it is said why."""
    try:
        java()
        server_classpath()
    except Trouble as trouble:
        print(f"{trouble}; the embedded broker is used instead")
        return False
    return True


def defaults(peers: bool) -> list[str]:
    """The measures of a run that names none: with peers, those that compare."""
    return [name for name in MEASURES if not peers or any(row.key == name for row in goals.ROWS)]


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser("python -m benchmarks", description="TaskFlux next to bare floors, in one run.")
    parser.add_argument("--only", action="append", choices=list(MEASURES), help="this measure (may be given again)")
    parser.add_argument("--quick", action="store_true", help="one short round of each, to see that it works")
    parser.add_argument("--embedded", action="store_true", help="the embedded broker, also where Java and Maven are")
    parser.add_argument("--peers", action="store_true", help="other task systems on the same servers: make bench-peers")
    parser.add_argument("--rounds", type=int, help="rounds of each measure")
    parser.add_argument("--rows", type=int, help="tasks in the grown database of `growth`, 2 million by default")
    parser.add_argument("--waiting", type=int, help="of these, tasks that wait, 200,000 by default")
    parser.add_argument("--against", type=Path, metavar="DIR", help="another checkout, measured next to this one")
    parser.add_argument(
        "--json",
        type=Path,
        metavar="FILE",
        default=JSON,
        help="every sample is written there",
    )
    return parser.parse_args()


async def measured(options: argparse.Namespace) -> bool:
    """Measure, print, and write after each measure; whether all went well."""
    effort = QUICK if options.quick else FULL
    if options.rounds:
        effort = replace(effort, rounds=options.rounds, few=options.rounds)
    effort = replace(effort, rows=options.rows or effort.rows, waiting=options.waiting or effort.waiting)
    builds = [Build("TaskFlux")]
    if options.against:
        builds.append(Build(f"TaskFlux in {options.against.name}", options.against.resolve()))
    apache, began = not options.embedded and has_kafka(), time.monotonic()
    names = options.only or defaults(options.peers)
    broker, found = "Apache Kafka" if apache else "the embedded broker", machine()
    print(f"PostgreSQL and {broker} on the same {found['cpus']} CPUs, load before {found['load']:.1f}")
    tables: list[Table] = []
    async with aclosing(run(names, effort, builds, apache=apache, peers=options.peers)) as running:
        async for table in running:
            tables.append(table)
            write(options.json, {"machine": found, "broker": broker, "rows": goals.document(tables)}, tables)
    if rows := goals.summary(tables):
        print(f"\n{rows}")
    if options.peers:
        print("\n".join(["\nwhat each promises", *(f"  {promise}" for promise in PROMISES)]))
    print(f"\n{time.monotonic() - began:.0f} s, load {os.getloadavg()[0]:.1f}; all samples are in {options.json}")
    return len(tables) == len(names)


def write(path: Path, about: Mapping[str, Any], tables: Sequence[Table]) -> None:
    """All samples, as JSON."""
    path.parent.mkdir(parents=True, exist_ok=True)
    document = {**about, "measures": {table.key: table.document() for table in tables}}
    path.write_text(json.dumps(document, indent=2, ensure_ascii=False) + "\n")


def main() -> int:
    """0 when nothing has failed."""
    try:
        return 0 if asyncio.run(measured(arguments())) else 1
    except Trouble as trouble:
        print(f"benchmarks: {trouble}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
