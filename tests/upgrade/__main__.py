"""`python -m tests.upgrade`: upgrade from the release before and roll back, with processes of both under load.

Prints a table. Ends with 1 where a guarantee was broken, and with 75 where git's history lacks the release before.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

from taskflux.local.console import Trouble
from tests.upgrade.phases import SHOWN, Result, prepared
from tests.upgrade.releases import HistoryMissing, before, present

SKIPPED = 75
LINE = "{:<14} {:>6} {:>8} {:>11} {:>6} {:>7} {:>5} {:>8} {:>9} {:>8} {:>8}  {}"
HEAD = (
    "phase",
    "tasks",
    "cancels",
    "duplicates",
    "kills",
    "claims",
    "held",
    "repeats",
    "deadlocks",
    "stall s",
    "seconds",
    "faults",
)


def main() -> int:
    """Parse the command line and run the drill; the exit code."""
    parser = argparse.ArgumentParser(prog="python -m tests.upgrade", description=__doc__)
    parser.add_argument("--rate", type=float, default=60.0, help="tasks a second (60)")
    parser.add_argument("--seconds", type=float, default=8.0, help="of load before something happens (8)")
    parser.add_argument(
        "--rows", type=int, default=100_000, help="ended tasks in the table before the migration (100,000)"
    )
    parser.add_argument("--seed", type=int, default=1, help="decides over the mix of tasks")
    parser.add_argument(
        "--kafka", action="store_true", help="Apache Kafka in the embedded broker's place (Java, Maven)"
    )
    parser.add_argument("--phases", type=int, default=6, help="only so many of the six")
    parser.add_argument(
        "--only-old", action="store_true", help="the release before in both roles: checks the drill itself"
    )
    parser.add_argument(
        "--drop", action="append", default=[], metavar="TRIGGER", help="without it, faults must be found"
    )
    parser.add_argument("--keep", type=Path, help="keep data and logs in this directory, which must not exist")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="taskflux-upgrade-", ignore_cleanup_errors=True) as temporary:
        Path(temporary).chmod(0o755)  # as root, PostgreSQL runs as another user
        directory = (arguments.keep or Path(temporary) / "drill").resolve()
        directory.mkdir(parents=True)
        try:
            return asyncio.run(_run(arguments, directory))
        except HistoryMissing as missing:
            print(missing)
            return SKIPPED
        except Trouble as trouble:
            print(f"the drill cannot begin: {trouble}")
            return 1


async def _run(arguments: argparse.Namespace, directory: Path) -> int:
    old = before(directory)
    new = replace(old, name="new") if arguments.only_old else present()
    total = 0
    async with prepared(
        directory,
        old,
        new,
        kafka=arguments.kafka,
        rate=arguments.rate,
        seconds=arguments.seconds,
        seed=arguments.seed,
        rows=arguments.rows,
    ) as drill:
        drill.dropped = arguments.drop
        print(LINE.format(*HEAD), flush=True)
        for name, work in drill.phases()[: arguments.phases]:
            result = await drill.run(name, work)
            total += len(result.faults)
            print(_line(result), flush=True)
            with (directory / "faults").open("a") as file:
                file.writelines(f"{name}: {fault}\n" for fault in result.faults)
            if any("broke off" in fault for fault in result.faults):
                break
        await drill.load.stop()
    print(f"{len(drill.load.sent)} tasks, {len(drill.fleet.killed)} processes killed, {total} faults")
    return 1 if total else 0


def _line(result: Result) -> str:
    line = LINE.format(
        result.phase,
        result.tasks,
        result.cancels,
        result.duplicates,
        result.kills,
        result.claims,
        result.held,
        result.repeats,
        result.deadlocks,
        f"{result.stall:.2f}",
        f"{result.seconds:.1f}",
        len(result.faults) or "none",
    )
    more = [f"  … and {len(result.faults) - SHOWN} more"] if len(result.faults) > SHOWN else []
    return "\n".join([line, *(f"  {fault}" for fault in result.faults[:SHOWN]), *more])


if __name__ == "__main__":
    sys.exit(main())
