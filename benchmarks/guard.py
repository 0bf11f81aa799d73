"""`python -m benchmarks.guard`: fails when a task costs the worker or ingest a fifth more than its baseline.

What is compared is a ratio: what a task costs TaskFlux ÷ what it costs the floor, which is measured in turns with it in
the same run, so that a machine that is faster, slower or busy changes both. The cost is the number of retired
instructions where the machine counts them and the baseline has that, else CPU time. The median of the rounds' ratios
counts.

No two processes are alike, and what else the machine does can hit one side for a minute. So what seems too slow is
measured again with new processes and servers, twice at most, and the least counts; the baseline is the least of three
such attempts, too. The limit lies below the 30 % that must be noticed. `--write` makes the baseline anew, after a
change that is meant.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import math
import sys
import tempfile
from collections.abc import Awaitable, Callable, Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from statistics import median
from typing import Final

from benchmarks.backlog import BATCHED, NOOP, open_consumers, worked_off
from benchmarks.cpu import INSTRUCTIONS, OWN
from benchmarks.lab import Build, open_lab
from benchmarks.report import Sample
from benchmarks.rounds import QUICK
from benchmarks.submit import Load, open_services, submitted
from taskflux.local.console import Trouble

BASELINE: Final = Path(__file__).with_name("guard.json")
LIMIT: Final = 1.2
ROUNDS: Final = 6
ATTEMPTS: Final = 3
COSTS: Final = {"instructions": INSTRUCTIONS, "cpu": OWN}
"""The baseline's name of a cost, and where samples have it; the first that can be compared counts."""

FLOORS: Final = {"INSERTs in groups": "grouped", "INSERT, produce, answer": "durable"}
INGEST: Final = (
    ("ingest", Load.single(0.7), "INSERTs in groups"),
    ("ingest, batches", Load.lines(0.7), "INSERT, produce, answer"),
)
"""Each beside the floor that does the same work with the load at hand."""

Round = Callable[[], Awaitable[Sample]]


@dataclass
class Check:
    """What a task costs on one path: rounds of both sides, in turns."""

    name: str
    ours: Round
    floor: Round
    pairs: list[tuple[Sample, Sample]] = field(default_factory=list)

    async def measure(self, rounds: int) -> None:
        """More rounds; who begins changes."""
        for number in range(rounds):
            if number % 2:
                ours, floor = await self.ours(), await self.floor()
            else:
                floor, ours = await self.floor(), await self.ours()
            self.pairs.append((ours, floor))

    def ratios(self) -> dict[str, float]:
        """Each cost that was counted, as a multiple of the floor's."""
        found = {
            cost: median(ours[column] / floor[column] for ours, floor in self.pairs) for cost, column in COSTS.items()
        }
        return {cost: ratio for cost, ratio in found.items() if not math.isnan(ratio)}


@dataclass(frozen=True, slots=True)
class Verdict:
    """A check against its baseline."""

    name: str
    cost: str
    ratio: float
    baseline: float

    @property
    def excess(self) -> float:
        """How many times the baseline."""
        return self.ratio / self.baseline

    @property
    def passed(self) -> bool:
        """Whether it is below the limit."""
        return self.excess < LIMIT

    def __str__(self) -> str:
        change = f"{self.ratio:.2f} × floor, {self.baseline:.2f} in the baseline: {self.excess - 1:+.0%}"
        return f"{self.name}: {change} ({self.cost}){'' if self.passed else ', too slow'}"


def verdict(name: str, ratios: Mapping[str, float], baseline: Mapping[str, Mapping[str, float]]) -> Verdict:
    """Compare by the best cost that both have.

    Raises:
        Trouble: the baseline has none.
    """
    for cost in COSTS:
        if cost in ratios and name in baseline.get(cost, {}):
            return Verdict(name, cost, ratios[cost], baseline[cost][name])
    raise Trouble(f"{BASELINE.name} has nothing for {name}: run python -m benchmarks.guard --write")


async def measured(rounds: int) -> list[Check]:
    """All checks, with processes and servers of their own."""
    with tempfile.TemporaryDirectory(prefix="taskflux-guard-") as directory:
        async with AsyncExitStack() as stack:
            lab = await stack.enter_async_context(open_lab(Path(directory), [Build("TaskFlux")], apache=False))
            checks = []
            async with open_consumers(lab, QUICK, NOOP) as consumers:
                ours = partial(worked_off, replace(consumers["TaskFlux worker"], tasks=4_000))
                floor = partial(worked_off, replace(consumers[BATCHED], tasks=16_000))  # the more, the steadier
                checks.append(Check("worker", ours, floor))
                await checks[-1].measure(rounds)
            async with open_services(lab, FLOORS) as services:
                for name, load, bare in INGEST:
                    ours, floor = (partial(submitted, services[each], load) for each in ("TaskFlux ingest", bare))
                    checks.append(Check(name, ours, floor))
                    await checks[-1].measure(rounds)
    return checks


Ratios = dict[str, dict[str, float]]
"""Check → cost → multiple of the floor's."""


async def least(attempt: Callable[[], Awaitable[Ratios]], enough: Callable[[Ratios], bool]) -> Ratios:
    """The least of each ratio, over as many attempts as are allowed, or until it is `enough`."""
    found = await attempt()
    for _ in range(ATTEMPTS - 1):
        if enough(found):
            break
        again = await attempt()
        found = {
            name: {cost: min(ratio, again[name][cost]) for cost, ratio in each.items()} for name, each in found.items()
        }
    return found


def write(found: Ratios) -> None:
    """Make the baseline of these; costs that were not counted keep what they have."""
    known = json.loads(BASELINE.read_text()) if BASELINE.exists() else {}
    for name, ratios in found.items():
        for cost, ratio in ratios.items():
            known.setdefault(cost, {})[name] = round(ratio, 3)
    BASELINE.write_text(json.dumps(known, indent=2) + "\n")


def main() -> int:
    """0 when no check is too slow."""
    parser = argparse.ArgumentParser("python -m benchmarks.guard", description="What tasks cost, against a baseline.")
    parser.add_argument("--rounds", type=int, default=ROUNDS, help="rounds of each check")
    parser.add_argument("--write", action="store_true", help="make the baseline anew")
    options = parser.parse_args()

    async def attempt() -> Ratios:
        return {check.name: check.ratios() for check in await measured(options.rounds)}

    def verdicts(found: Ratios) -> list[Verdict]:
        return [verdict(name, ratios, baseline) for name, ratios in found.items()]

    def enough(found: Ratios) -> bool:
        print(*verdicts(found), sep="\n", flush=True)
        return all(each.passed for each in verdicts(found))

    try:
        if options.write:
            write(asyncio.run(least(attempt, lambda found: False)))
            print(BASELINE.read_text(), end="")
            return 0
        baseline = json.loads(BASELINE.read_text())
        found = verdicts(asyncio.run(least(attempt, enough)))
    except Trouble as trouble:
        print(f"benchmarks.guard: {trouble}", file=sys.stderr)
        return 1
    print(*found, sep="\n")
    return 0 if all(each.passed for each in found) else 1


if __name__ == "__main__":
    sys.exit(main())
