"""One round of `writes`: tasks go through their lives by the store's own statements, and each step is metered.

It runs over the taskflux that PYTHONPATH names first, also the release before, so it uses only what both have::

    python -P -m benchmarks.steps migrate
    python -P -m benchmarks.steps round <batches to warm up> <batches to measure>

A round prints figure → what it cost per task, as JSON. One connection runs every statement; another one reads the
counters, so that this costs the first one nothing.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections import defaultdict
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from time import perf_counter
from typing import Any, Final, TypeVar
from uuid import UUID

import asyncpg
from pydantic import SecretStr
from uuid_utils.compat import uuid7

import taskflux
from benchmarks.proc import cpu_seconds
from taskflux.store.claims import Claim, Claims, Settlement, Worker
from taskflux.store.database import Database, Statement
from taskflux.store.migrate import migrate
from taskflux.store.publishing import Confirmation, PendingPublish, Publishing
from taskflux.store.settings import PostgresSettings
from taskflux.store.tasks import Tasks, TaskTypes
from taskflux.store.upkeep import Upkeep
from taskflux.tasks.decision import Decision
from taskflux.tasks.model import Submission, TaskType
from taskflux.tasks.states import Event, State
from taskflux.telemetry.tracing import Destination

BATCH: Final = 500
RARE: Final = 3
"""One batch of each other life is measured for so many that succeed at once."""
CANCELS: Final = 50
"""Tasks that a round cancels in the place of a batch: each takes a statement of its own."""
TYPE: Final = "bench"
PAYLOAD: Final = json.dumps({"text": "x" * (300 - len('{"text": ""}'))})
GRACE: Final = 15.0
SOON: Final = 0.1
"""Seconds that a task is scheduled ahead: no more than it takes to insert the others of its batch."""
LOG: Final = UUID(int=77)
AT_ONCE: Final = 1e9
"""Tasks a second that a sweep makes due again."""

DONE: Final = Decision(Event.SUCCEEDED, State.SUCCEEDED)
RETRY: Final = Decision(Event.RETRY, State.SCHEDULED, error_class="Transient", reason="not now")

PID: Final = Statement("pid", "SELECT pg_backend_pid() AS pid", ())
FLUSH: Final = Statement("flush", "SELECT pg_stat_force_next_flush()", ())
COUNTERS: Final = """
    SELECT pg_current_wal_insert_lsn() - '0/0' AS wal, sum(pg_stat_get_tuples_updated(inhrelid)) AS updates,
           sum(pg_stat_get_tuples_hot_updated(inhrelid)) AS hot
    FROM pg_inherits WHERE inhparent = 'tasks'::regclass
"""

T = TypeVar("T")


class Surprise(Exception):
    """A step did not do to every task what it should: its figures would mean nothing."""


@dataclass
class Meter:
    """What each figure took so far: seconds of the backend's CPU and of the caller, bytes of WAL, updates of wide rows.

    `on`: what runs now counts; the first batches only warm up.
    """

    database: Database
    observer: Any
    pid: int
    on: bool = False
    spent: dict[str, dict[str, float]] = field(default_factory=lambda: defaultdict(lambda: defaultdict(float)))

    async def step(self, figures: Sequence[str], tasks: int, work: Awaitable[T]) -> T:
        """Do `work`, which brings `tasks` one step further, and add what it takes to each of these figures."""
        before = await self._counters()
        cpu, began = cpu_seconds(self.pid), perf_counter()
        result = await work
        took, cpu = perf_counter() - began, cpu_seconds(self.pid) - cpu
        after = await self._counters()
        if self.on:
            for figure in figures:
                spent = self.spent[figure]
                spent["cpu"] += cpu / tasks
                spent["elapsed"] += took / tasks
                for name, value in before.items():
                    spent[name] += (after[name] - value) / tasks
        return result

    async def _counters(self) -> dict[str, float]:
        """WAL and updates, up to the last statement."""
        await self.database.fetch(FLUSH)
        return {name: float(value) for name, value in (await self.observer.fetchrow(COUNTERS)).items()}


@dataclass
class Round:
    """Batches of tasks over one database, and the steps that they take."""

    database: Database
    meter: Meter
    offset: int = 0

    @property
    def tasks(self) -> Tasks:
        return Tasks(self.database)

    @property
    def publishing(self) -> Publishing:
        return Publishing(self.database, GRACE)

    @property
    def upkeep(self) -> Upkeep:
        return Upkeep(self.database)

    async def worker(self) -> Claims:
        """A worker that has taken its lease."""
        worker = Worker(uuid7(), "process-bench", "process-bench@host:1", 1, None, TYPE)
        claims = Claims(self.database, worker, Destination("tasks.bench", "taskflux.bench"))
        await claims.begin()
        return claims

    async def insert(self, figures: Sequence[str], count: int = BATCH, delay: float = 0.0) -> Sequence[PendingPublish]:
        """New tasks, at the version of their first record."""
        made = [Submission(uuid7(), TYPE, PAYLOAD, 8, delay=delay) for _ in range(count)]
        accepted = await self.meter.step(figures, count, self.tasks.insert(made, GRACE))
        _all(accepted, count, "inserted")
        return [PendingPublish(each.id, TYPE, 1) for each in made]

    async def confirm(self, figures: Sequence[str], published: Sequence[PendingPublish]) -> None:
        """Kafka has these."""
        places = []
        for each in published:
            self.offset += 1
            places.append(Confirmation(each.id, each.version, LOG, 0, self.offset))
        await self.meter.step(figures, len(places), self.publishing.confirm(places))

    async def take(self, figures: Sequence[str]) -> Sequence[PendingPublish]:
        """The relay's promise to publish what waits."""
        taken = await self.meter.step(figures, BATCH, self.publishing.take(TYPE, BATCH))
        return _all(taken, BATCH, "promised")

    async def claim(
        self, figures: Sequence[str], worker: Claims, published: Sequence[PendingPublish], *, suspects: bool = False
    ) -> Sequence[Claim]:
        """A worker gets the records."""
        versions = {each.id: each.version for each in published}
        claimed = await self.meter.step(figures, len(versions), worker.claim(TYPE, versions, suspects=suspects))
        return _all(claimed, len(versions), "claimed")

    async def settle(
        self, figures: Sequence[str], worker: Claims, claims: Sequence[Claim], decision: Decision = DONE
    ) -> None:
        """The worker is done with them."""
        settlements = [Settlement(claim.id, claim.version, decision) for claim in claims]
        settled = await self.meter.step(figures, len(claims), worker.settle_all(settlements))
        _all([each for each in settled if each.written and not each.late], len(claims), "settled")

    async def end_lease(self, worker: Claims) -> None:
        """The leader ends the lease of a silent worker."""
        beats = await self.upkeep.beats()
        identity = worker.worker.id
        _all(await self.upkeep.end_silent({identity: beats[identity]}, ()), 1, "ended")


async def at_once(round_: Round, worker: Claims) -> None:
    """Due at once, and the first attempt succeeds."""
    life = "whole life"
    published = await round_.insert(["insert", life])
    await round_.confirm(["confirm", life], published)
    claims = await round_.claim(["claim", "claim to settle", life], worker, published)
    await round_.settle(["settle", "claim to settle", life], worker, claims)


async def retry(round_: Round, worker: Claims) -> None:
    """The first attempt fails. The figure is what that adds, until the next attempt runs."""
    more = ["a retry, added"]
    published = await round_.insert([])
    await round_.confirm([], published)
    claims = await round_.claim([], worker, published)
    await round_.settle(more, worker, claims, RETRY)
    published = await round_.take(more)
    await round_.confirm(more, published)
    claims = await round_.claim(more, worker, published)
    await round_.settle([], worker, claims)


async def future(round_: Round, worker: Claims) -> None:
    """Scheduled ahead, published by the relay, and the first attempt succeeds."""
    life = ["future send, whole life"]
    await round_.insert(life, delay=SOON)
    await asyncio.sleep(SOON)
    published = await round_.take(life)
    await round_.confirm(life, published)
    claims = await round_.claim(life, worker, published)
    await round_.settle(life, worker, claims)


async def cancel(round_: Round, worker: Claims) -> None:
    """Cancelled while it waits for its time; the figure is the cancel alone, one statement a task."""
    waiting = await round_.insert([], CANCELS, delay=3600.0)

    async def cancelled() -> list[bool]:
        return [await round_.tasks.cancel(each.id, "default") for each in waiting]

    done = await round_.meter.step(["a cancel"], CANCELS, cancelled())
    _all([each for each in done if each], CANCELS, "cancelled")


async def lost_worker(round_: Round, worker: Claims) -> None:
    """Its worker is lost. The figure is what that adds, until the next attempt runs."""
    more = ["a lost worker, added"]
    lost = await round_.worker()
    published = await round_.insert([])
    await round_.confirm([], published)
    await round_.claim([], lost, published)
    await round_.meter.step(more, BATCH, round_.end_lease(lost))
    swept = await round_.meter.step(more, BATCH, round_.upkeep.sweep(BATCH, AT_ONCE))
    if swept.looked_at != BATCH:
        raise Surprise(f"{swept.looked_at} of {BATCH} claims were freed")
    published = await round_.take(more)
    await round_.confirm(more, published)
    claims = await round_.claim(more, worker, published, suspects=True)
    await round_.settle([], worker, claims)


Life = Callable[[Round, Claims], Awaitable[None]]
LIVES: Final[Sequence[Life]] = (at_once, retry, future, cancel, lost_worker)


def _all(found: Sequence[T], count: int, what: str) -> Sequence[T]:
    if len(found) != count:
        raise Surprise(f"{len(found)} of {count} were {what}")
    return found


async def measured(settings: PostgresSettings, warm: int, batches: int) -> dict[str, dict[str, float]]:
    """Figure → what it took per task: `cpu` and `elapsed` in seconds, `wal` in bytes, `updates`, and `hot` of them."""
    database = Database(settings, pool_size=1)
    await database.open()
    observer = await asyncpg.connect(settings.dsn.get_secret_value())
    found: dict[str, dict[str, float]] = {}
    try:
        await TaskTypes(database).register(TaskType(TYPE, "{}", 8, "resend", None))
        (row,) = await database.fetch(PID)
        meter = Meter(database, observer, row["pid"])
        round_ = Round(database, meter)
        worker = await round_.worker()
        for life in LIVES:
            counted = batches if life is at_once else max(1, batches // RARE)
            for number in range(warm + counted):
                meter.on = number >= warm
                await life(round_, worker)
            found |= {
                name: {kind: value / counted for kind, value in spent.items()} for name, spent in meter.spent.items()
            }
            meter.spent.clear()
        await worker.end()
        await round_.upkeep.forget_workers()
    finally:
        await observer.close()
        await database.close()
    return found


def main() -> None:
    """Do what the command line says; where this taskflux comes from is printed first."""
    command, *numbers = sys.argv[1:]
    settings = PostgresSettings(dsn=SecretStr(os.environ["TASKFLUX_POSTGRES__DSN"]))
    print(Path(taskflux.__file__).parent)
    if command == "migrate":
        asyncio.run(migrate(settings))
    else:
        warm, batches = map(int, numbers)
        print(json.dumps(asyncio.run(measured(settings, warm, batches))))


if __name__ == "__main__":
    main()
