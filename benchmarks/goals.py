"""The rows that TaskFlux is compared by, over all systems of a run, and the goal of each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any, Final

from benchmarks.report import Table, lined_up

FLOOR, OURS, FASTSTREAM = "floor", "TaskFlux", "FastStream"


@dataclass(frozen=True, slots=True)
class Goal:
    """A bound for TaskFlux: `factor`, or that many times what `system` has in the same round."""

    factor: float
    system: str | None = None
    least: bool = True

    def __str__(self) -> str:
        sign, number = "≥" if self.least else "≤", f"{self.factor:,g}"
        return f"{sign} {number}" if self.system is None else f"{sign} {number} × {self.system}"

    def found(self, row: Mapping[str, Sequence[float]]) -> float | None:
        """What is held against `factor`: the median, or that of the rounds' ratios; None without that system."""
        if self.system is None:
            return median(row[OURS])
        if self.system not in row:
            return None
        return median(ours / other for ours, other in zip(row[OURS], row[self.system], strict=True))

    def verdict(self, row: Mapping[str, Sequence[float]]) -> str:
        """Whether it is reached, and the ratio."""
        found = self.found(row)
        if found is None:
            return f"{self}: not measured"
        reached = found >= self.factor if self.least else found <= self.factor
        ratio = "" if self.system is None else f" ({found:.2f})"
        return f"{self}: {'reached' if reached else 'not reached'}{ratio}"


def at_most(factor: float) -> Goal:
    """TaskFlux has no more than `factor`."""
    return Goal(factor, least=False)


@dataclass(frozen=True, slots=True)
class Row:
    """One figure: `column` of the measure `key`."""

    title: str
    key: str
    column: str
    digits: int
    goals: Sequence[Goal]

    def values(self, table: Table) -> dict[str, list[float]]:
        """System → its value in each round."""
        found = {}
        for contestant, samples in table.samples.items():
            name = system(table, contestant)
            if name is not None:
                found[name] = [sample[self.column] for sample in samples]
        return found


OWN, POSTGRES = "CPU µs/task", "PostgreSQL µs/task"
AHEAD: Final = (Goal(0.4, FLOOR), Goal(3.5, FASTSTREAM))
ROWS: Final = (
    Row("no-op tasks/s, one worker, outcome durable", "backlog", "tasks/s", 0, AHEAD),
    Row("the same, the handler awaits 20 ms", "nap", "tasks/s", 0, (Goal(0.75, FLOOR),)),
    Row("worker CPU, µs per no-op task", "backlog", OWN, 0, (at_most(50),)),
    Row("PostgreSQL CPU, µs per task, claim to settlement", "backlog", POSTGRES, 0, (at_most(35),)),
    Row("WAL, bytes per task, whole life", "whole", "WAL bytes/task", 0, (at_most(2800),)),
    Row("HTTP submits/s, durable, 32 connections", "submit", "submits/s", 0, (Goal(1.3, FLOOR), Goal(1, FASTSTREAM))),
    Row("ingest CPU, µs per submit", "submit", OWN, 0, (at_most(200),)),
    Row("NDJSON batches, tasks/s, 1,000 lines × 4", "batch", "submits/s", 0, (Goal(22_000),)),
    Row("ingest CPU, µs per task of a batch", "batch", OWN, 0, (at_most(45),)),
    Row("latency at idle, 202 → handler started, p50 ms", "latency", "p50 ms", 1, (at_most(6),)),
    Row("the same, p99 ms", "latency", "p99 ms", 1, (at_most(15),)),
    Row("cold start: exec → waiting message handled, s", "cold-start", "exec → handled s", 2, (at_most(0.6),)),
    Row("the same, with Kafka's default delay of 3 s", "cold-start-delayed", "exec → handled s", 2, (at_most(1.0),)),
    Row("idle worker, PSS, MiB", "memory", "PSS MiB", 0, (at_most(42),)),
    Row("whole way by batch submit: CPU, µs per task", "whole", OWN, 0, (at_most(140),)),
    Row("whole way by batch submit: tasks/s, two cores", "whole", "tasks/s", 0, (Goal(14_000),)),
)

ROLES: Final = ("", "worker", "ingest", "process-simulated")
"""Of TaskFlux's contestants, of which each measure has one; only memory has several."""


def system(table: Table, contestant: str) -> str | None:
    """The system of a contestant; None if it is measured for another comparison."""
    if contestant == table.floor:
        return FLOOR
    if contestant.startswith(OURS):
        role = contestant.removeprefix(OURS).strip()
        wanted = ROLES[-1:] if table.key == "memory" else ROLES
        return OURS if role in wanted else None
    return contestant if contestant in table.peers else None


def summary(tables: Sequence[Table]) -> str:
    """Every row that was measured; empty when none was."""
    measured = {table.key: table for table in tables}
    rows = [(row, row.values(measured[row.key])) for row in ROWS if row.key in measured]
    if not rows:
        return ""
    names = list(dict.fromkeys(name for _, values in rows for name in values if name != OURS))
    systems = [*names, OURS]
    lines = [["", *systems, "goals"]]
    for row, values in rows:
        cells = [f"{median(values[name]):,.{row.digits}f}" if name in values else "–" for name in systems]
        lines.append([row.title, *cells, "; ".join(goal.verdict(values) for goal in row.goals)])
    return "\n".join(["all systems in one run (medians)", *lined_up(lines)])


def document(tables: Sequence[Table]) -> list[dict[str, Any]]:
    """The same for machines."""
    measured = {table.key: table for table in tables}
    return [
        {
            "title": row.title,
            "measure": row.key,
            "medians": {name: median(values) for name, values in row.values(measured[row.key]).items()},
            "goals": [goal.verdict(row.values(measured[row.key])) for goal in row.goals],
        }
        for row in ROWS
        if row.key in measured
    ]
