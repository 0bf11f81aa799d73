"""How much waits, runs, and lies about: what the leader measures, since handlers at zero tell nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from taskflux.store.database import Database


@dataclass(frozen=True, slots=True)
class Depth:
    """How many tasks of a type are in a state; where that is `due`, how long the oldest has been (seconds)."""

    type: str
    state: str
    tasks: int
    oldest: float | None


@dataclass(frozen=True, slots=True)
class CircuitState:
    """A provider's circuit, and for how long it has been open (seconds) since it last opened."""

    provider: str
    open: bool
    error_class: str
    seconds: float


@dataclass(frozen=True, slots=True)
class Measured:
    """All of it, as of one moment each; `types` are the registered ones with their providers."""

    depths: Sequence[Depth]
    parked: Mapping[tuple[str, str], int]
    workers: Mapping[str, int]
    letters: Mapping[str, int]
    circuits: Sequence[CircuitState]
    types: Mapping[str, str | None]


@dataclass(frozen=True, slots=True)
class Measures:
    """Reads the narrow tables. What it costs grows with what waits, not with what was ever done."""

    database: Database

    async def read(self, lease: float) -> Measured:
        """Measure once; a worker counts while it has beaten within `lease` seconds. Raises StoreError."""
        fetch = self.database.fetch
        depths = [Depth(*row) for row in await fetch("measure_tasks")]
        parked = {(row["type"], row["state"]): row["tasks"] for row in await fetch("measure_parked")}
        workers = {row["type"]: row["workers"] for row in await fetch("measure_workers", lease)}
        letters = {row["error_class"]: row["letters"] for row in await fetch("measure_letters")}
        circuits = [CircuitState(*row) for row in await fetch("measure_circuits")]
        types = {row["type"]: row["provider"] for row in await fetch("measure_types")}
        return Measured(depths, parked, workers, letters, circuits, types)
