"""What a day's tasks need: `python -m benchmarks.model build/bench.json`, as a table in Markdown.

Its inputs are the medians of the measure `whole`; the rest are the assumptions below.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self

DAY: Final = 86_400
PEAK: Final = 3.0
"""The busiest hour's rate, as a multiple of the day's average."""
BUSY: Final = 0.6
"""How much of a core may be busy at the peak: what is above it is for outages, vacuum and backups."""
PARTITIONS: Final = 12
"""The least that a type has; more are made when more workers need them."""
DAYS: Final = (1_000_000, 10_000_000, 100_000_000, 1_000_000_000)


@dataclass(frozen=True, slots=True)
class Inputs:
    """What one task takes: microseconds of CPU, and bytes."""

    ingest: float
    worker: float
    postgres: float
    kafka: float
    wal: float
    stored: float

    @classmethod
    def of(cls, medians: Mapping[str, float]) -> Self:
        """Those that `whole` has measured."""
        ingest, worker, postgres, kafka = (
            medians[f"{part} µs"] for part in ("ingest", "worker", "PostgreSQL", "Kafka")
        )
        return cls(ingest, worker, postgres, kafka, medians["WAL bytes/task"], medians["stored bytes/task"])


@dataclass(frozen=True, slots=True)
class Need:
    """What so many tasks a day need at their peak."""

    a_day: int
    inputs: Inputs

    @property
    def peak(self) -> float:
        """Tasks a second in the busiest hour."""
        return self.a_day / DAY * PEAK

    def cores(self, microseconds: float) -> float:
        """How many cores run that much for each task, at the peak."""
        return self.peak * microseconds / 1e6 / BUSY

    @property
    def partitions(self) -> int:
        """In multiples of twelve, so that each worker process, of one core, has one."""
        return max(PARTITIONS, math.ceil(self.cores(self.inputs.worker) / PARTITIONS) * PARTITIONS)

    def cells(self) -> list[str]:
        """A row of the table."""
        cores = (self.inputs.ingest, self.inputs.worker, self.inputs.postgres, self.inputs.kafka)
        return [
            f"{self.a_day:,}",
            f"{self.peak:,.0f}",
            *(f"{self.cores(each):,.1f}" for each in cores),
            f"{self.partitions}",
            f"{self.peak * self.inputs.wal / 1e6:,.1f}",
            f"{self.a_day * self.inputs.wal / 1e9:,.0f}",
            f"{self.a_day * self.inputs.stored / 1e9:,.0f}",
        ]


HEADER: Final = (
    "tasks a day",
    "a second at the peak",
    "cores: ingest",
    "workers",
    "PostgreSQL",
    "Kafka",
    "partitions",
    "WAL, MB/s at the peak",
    "WAL, GB a day",
    "stored, GB a day",
)


def table(inputs: Inputs) -> str:
    """Markdown."""
    rows = [HEADER, ["---"] * len(HEADER), *(Need(a_day, inputs).cells() for a_day in DAYS)]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows).replace("| --- |", "|---|").replace(" --- |", "---|")


def main() -> None:
    """Print it."""
    document = json.loads(Path(sys.argv[1]).read_text())
    (medians,) = (each["medians"] for each in document["measures"]["whole"]["contestants"].values())
    inputs = Inputs.of(medians)
    print(inputs, table(inputs), sep="\n\n")


if __name__ == "__main__":
    main()
