"""`python -m tests.drills`: bursts of mixed tasks through `taskflux dev`, in the middle of which something dies.

Prints a table; ends with 1 where anything was lost, or repeated beyond what was in mid-call.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import tempfile
from pathlib import Path

from tests.drills.outcome import Outcome
from tests.drills.scenarios import run, run_smtp_outage, scenarios

SMTP_OUTAGE = "SMTP away"
LINE = "{:<26} {:>7} {:>6} {:>8} {:>6} {:>13} {:>9}  {}"


def main() -> int:
    """Parse the command line and run the drills; answers the exit code."""
    parser = argparse.ArgumentParser(prog="python -m tests.drills", description=__doc__)
    parser.add_argument("--tasks", type=int, default=20_000, help="tasks of each drill (20,000)")
    parser.add_argument("--only", action="append", help="only drills whose name contains this; may be repeated")
    parser.add_argument("--seed", type=int, default=1, help="decides over the mix, and when something dies")
    parser.add_argument("--away", type=float, default=120.0, help="seconds that the SMTP server is unreachable (120)")
    parser.add_argument("--kafka", action="store_true", help="Apache Kafka (Java 17, Maven) for the embedded broker")
    parser.add_argument("--keep", type=Path, help="keep data and logs in this directory")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="taskflux-drills-") as temporary:
        return asyncio.run(_run_all(arguments, (arguments.keep or Path(temporary)).resolve()))


async def _run_all(arguments: argparse.Namespace, directory: Path) -> int:
    names = [scenario.name for scenario in scenarios(apache=arguments.kafka)] + [SMTP_OUTAGE]
    chosen = [name for name in names if not arguments.only or any(part in name for part in arguments.only)]
    print(LINE.format("drill", "tasks", "lost", "repeats", "held", "dead letters", "seconds", "faults"), flush=True)
    faults = 0
    for number, name in enumerate(chosen):
        place = directory / f"{number:02}"
        place.mkdir(parents=True)
        outcome = await _run(name, place / "data", arguments)
        faults += len(outcome.faults)
        print(_line(name, outcome), flush=True)
    return 1 if faults else 0


async def _run(name: str, directory: Path, arguments: argparse.Namespace) -> Outcome:
    if name == SMTP_OUTAGE:
        return await run_smtp_outage(directory, arguments.tasks, arguments.seed, arguments.away, apache=arguments.kafka)
    (scenario,) = [each for each in scenarios(apache=arguments.kafka) if each.name == name]
    return await run(scenario, directory, arguments.tasks, arguments.seed, apache=arguments.kafka)


def _line(name: str, outcome: Outcome) -> str:
    return LINE.format(
        name,
        outcome.tasks,
        outcome.lost,
        outcome.repeats,
        outcome.states["uncertain"],
        outcome.dead_letters,
        f"{outcome.seconds:.1f}",
        "; ".join(outcome.faults) or "none",
    )


if __name__ == "__main__":
    sys.exit(main())
