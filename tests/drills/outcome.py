"""What became of the tasks of a drill, from PostgreSQL and from the inbox."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from uuid import UUID

import asyncpg
import httpx

GONE = (OSError, asyncpg.PostgresError, asyncpg.InterfaceError, TimeoutError)
"""PostgreSQL may be unreachable: a drill kills it."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """The results of a drill, and its faults."""

    tasks: int
    seconds: float
    states: Counter[str]
    retried: int
    dead_letters: int
    mails: Counter[str]
    sms: Counter[str]
    faults: list[str] = field(default_factory=list)

    @property
    def lost(self) -> int:
        """Tasks that are neither done nor, as their policy says, held."""
        return self.tasks - self.states["succeeded"] - self.states["uncertain"]

    @property
    def repeats(self) -> int:
        """Messages that came more than once."""
        return self.mails["repeated"] + self.sms["repeated"]


class Ledger:
    """Reads the states of the tasks from PostgreSQL, with retries."""

    def __init__(self, dsn: str) -> None:
        self._dsn = dsn

    async def states(self) -> Counter[str]:
        """How many tasks are in each state."""
        rows = await self._fetch("SELECT state, count(*) AS tasks FROM tasks GROUP BY state")
        return Counter({row["state"]: row["tasks"] for row in rows})

    async def until_succeeded(self, number: int, patience: float) -> None:
        """Return once so many have succeeded."""
        deadline = time.monotonic() + patience
        while (await self.states())["succeeded"] < number:
            if time.monotonic() > deadline:
                raise RuntimeError(f"not {number} succeeded within {patience} s: {await self.states()}")
            await asyncio.sleep(0.05)

    async def until_ended(self, number: int, patience: float) -> Counter[str]:
        """The states once all tasks have ended or are held, or when `patience` seconds are over."""
        deadline = time.monotonic() + patience
        while True:
            states = await self.states()
            ended = sum(states[state] for state in ("succeeded", "dead", "cancelled", "uncertain"))
            if ended >= number or time.monotonic() > deadline:
                return states
            await asyncio.sleep(0.25)

    async def missing(self, tasks: Sequence[UUID]) -> int:
        """How many of those that were accepted have no row."""
        rows = await self._fetch("SELECT count(*) AS rows FROM tasks WHERE id = ANY($1)", list(tasks))
        return len(tasks) - int(rows[0]["rows"])

    async def retried(self, types: Sequence[str]) -> int:
        """Tasks of these types that took more than one attempt."""
        found = await self._fetch("SELECT count(*) AS n FROM tasks WHERE attempts > 1 AND type = ANY($1)", list(types))
        return int(found[0]["n"])

    async def dead_letters(self) -> int:
        """How many there are."""
        return int((await self._fetch("SELECT count(*) AS letters FROM dead_letters"))[0]["letters"])

    async def _fetch(self, statement: str, *arguments: object) -> list[asyncpg.Record]:
        for _ in range(200):
            try:
                connection = await asyncpg.connect(self._dsn, timeout=5.0)
                try:
                    rows: list[asyncpg.Record] = await connection.fetch(statement, *arguments)
                    return rows
                finally:
                    await connection.close(timeout=2.0)
            except GONE:
                await asyncio.sleep(0.2)
        raise RuntimeError("PostgreSQL does not come back")


async def received(inbox_url: str) -> dict[str, Counter[str]]:
    """For each kind: received, distinct, and repeated (those beyond the first of each)."""
    async with httpx.AsyncClient(base_url=inbox_url, timeout=60, trust_env=False) as client:
        counts = (await client.get("/api/counts")).json()
    return {
        kind: Counter(
            received=each["received"], distinct=each["distinct"], repeated=each["received"] - each["distinct"]
        )
        for kind, each in counts.items()
    }
