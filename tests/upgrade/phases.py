"""The phases of the drill: the release before alone, the migration, both at once, the new one alone, and back again."""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from uuid import UUID

import asyncpg
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.errors import UnknownTopicOrPartitionError

from taskflux.local.console import Trouble
from taskflux.stream.client import KafkaUnavailable
from taskflux.stream.positions import Positions
from taskflux.stream.provision import ensure_topics
from taskflux.stream.topics import task_topic
from taskflux.tasks.states import Event
from tests.drills.outcome import GONE
from tests.integration.stream.patience import eventually
from tests.upgrade.fleet import DEPLOYMENTS, Fleet, Servers
from tests.upgrade.judge import Evidence, effects_of, faults
from tests.upgrade.ledger import Ledger
from tests.upgrade.load import LATE, TYPES, Duplicates, Load
from tests.upgrade.releases import Release

LATE_TASKS = 40
LONGEST_STALL = 5.0
"""Seconds that the migration may keep a submit waiting: its statements wait 3 s for a lock and then try again."""
MIGRATION = "migration"
DEADLOCKS = 3
"""At most, with the migration's locks: a prepared confirmation of the release before locks `due` before `tasks`."""
SHOWN = 10
"""Faults of each phase that are told."""


@dataclass(slots=True)
class Result:
    """A row of the table."""

    phase: str
    tasks: int = 0
    cancels: int = 0
    duplicates: int = 0
    kills: int = 0
    claims: int = 0
    """What the killed workers held."""
    held: int = 0
    repeats: int = 0
    deadlocks: int = 0
    stall: float = 0.0
    seconds: float = 0.0
    faults: list[str] = field(default_factory=list)


@dataclass(slots=True)
class Drill:
    """One run. `old` and `new` are the releases; `seconds` is how long the load runs before something happens."""

    servers: Servers
    fleet: Fleet
    load: Load
    duplicates: Duplicates
    ledger: Ledger
    old: Release
    new: Release
    seconds: float
    patience: float
    dropped: Sequence[str] = ()
    """Triggers of the migration that are dropped after it, to see that the drill notices."""
    _told: set[str] = field(default_factory=set)
    _late: list[UUID] = field(default_factory=list)

    def phases(self) -> list[tuple[str, Callable[[Result], Awaitable[None]]]]:
        """In their order: each needs what the one before it has left."""
        return [
            ("old alone", self._old_alone),
            (MIGRATION, self._migration),
            ("both", self._both),
            ("new alone", self._new_alone),
            ("rollback", self._rollback),
            ("forward again", self._forward_again),
        ]

    async def run(self, phase: str, work: Callable[[Result], Awaitable[None]]) -> Result:
        """Run one phase and check everything so far."""
        result, began = Result(phase), time.monotonic()
        before = len(self.load.sent), self.load.cancels, self.duplicates.written, len(self.fleet.killed)
        held, evidence = self.fleet.held_at_kills, await self._evidence()
        deadlocks = self.ledger.deadlocks()
        self.load.longest = 0.0
        try:
            await work(result)
        except (RuntimeError, AssertionError, OSError, Trouble, *GONE) as error:
            result.faults.append(f"the phase broke off: {type(error).__name__}: {error}")
            await self.load.stop()
        after = len(self.load.sent), self.load.cancels, self.duplicates.written, len(self.fleet.killed)
        result.tasks, result.cancels, result.duplicates, result.kills = (
            now - then for now, then in zip(after, before, strict=True)
        )
        result.claims = self.fleet.held_at_kills - held
        counts, former = _counts(await self._evidence()), _counts(evidence)
        result.held, result.repeats = counts["held"] - former["held"], counts["repeats"] - former["repeats"]
        result.stall = self.load.longest
        result.deadlocks = self.ledger.deadlocks() - deadlocks
        if result.deadlocks > (DEADLOCKS if phase == MIGRATION else 0):
            result.faults.append(f"{result.deadlocks} deadlocks: {self.ledger.postgres_log}")
        result.seconds = time.monotonic() - began
        return result

    # The phases ------------------------------------------------------------------------------------------------------

    async def _old_alone(self, result: Result) -> None:
        old = self.old
        await self.fleet.start(old, *DEPLOYMENTS, "late")
        await self.fleet.stop(old, "late")  # its type and its topic are known now
        await self.duplicates.start(TYPES)
        async with self._loaded(result):
            await self._kill_and_restart(old, "held", "sms")
            self._late = await self.load.send_now(self.load.late(LATE_TASKS))
            await self.ledger.until_published(self._late)
        self._note(result, [])

    async def _migration(self, result: Result) -> None:
        """The load goes on: the next phase begins with what this one has left."""
        self.load.start()
        await asyncio.sleep(self.seconds / 2)
        self.load.longest = 0.0
        took = await self.fleet.migrate(self.new)
        await self.ledger.drop(self.dropped)
        await asyncio.sleep(self.seconds / 2)
        if self.load.longest > LONGEST_STALL:
            result.faults.append(f"a submit waited {self.load.longest:.1f} s; the migration took {took:.1f} s")
        await self._check(result, ended=False)

    async def _both(self, result: Result) -> None:
        old, new = self.old, self.new
        async with self._loaded(result, running=True):
            await self.fleet.start(new)
            await asyncio.sleep(self.seconds)
            for leading, losing in ((old, new), (new, old)):
                await self.fleet.let_lead(leading)
                await self._kill_and_restart(losing, "held", "sms", "email")
                await self.fleet.until_freed()
                await self.fleet.kill_leader(leading)

    async def _new_alone(self, result: Result) -> None:
        old, new = self.old, self.new
        async with self._loaded(result):
            for deployment in ("held", "email"):
                await self.fleet.kill_in_mid_task(old, deployment)
            await self.fleet.stop(old)
            await asyncio.sleep(self.seconds / 2)
            await self._lose_the_log(result, new)
            self._late = await self.load.send_now(self.load.late(LATE_TASKS))
            await self.ledger.until_published(self._late)

    async def _rollback(self, result: Result) -> None:
        old, new = self.old, self.new
        async with self._loaded(result):
            await self.fleet.start(old)
            await asyncio.sleep(self.seconds / 2)
            for deployment in ("held", "sms"):
                await self.fleet.kill_in_mid_task(new, deployment)
            await self.fleet.kill_leader(new)
            self.fleet.kill(new, "ingest")
            await self.fleet.stop(new)
            await asyncio.sleep(self.seconds / 2)
            await self._lose_the_log(result, old)
            self._late = await self.load.send_now(self.load.late(LATE_TASKS))
            await self.ledger.until_published(self._late)

    async def _forward_again(self, result: Result) -> None:
        old, new = self.old, self.new
        async with self._loaded(result):
            for deployment in ("held", "sms", "email"):
                await self.fleet.kill_in_mid_task(old, deployment)
            self.fleet.kill(old)  # what they had queued, claimed and promised stays as it is
            await self.fleet.start(new)
            await asyncio.sleep(self.seconds / 2)
            await self._lose_the_log(result, new)

    # What happens in them --------------------------------------------------------------------------------------------

    @asynccontextmanager
    async def _loaded(self, result: Result, *, running: bool = False) -> AsyncIterator[None]:
        """The load before and during the block; afterwards everything has to end."""
        if not running:
            self.load.start()
            await asyncio.sleep(self.seconds)
        yield
        await self.load.stop()
        await self._check(result)

    async def _kill_and_restart(self, release: Release, *deployments: str) -> None:
        async def each(deployment: str) -> None:
            await self.fleet.kill_in_mid_task(release, deployment)
            await self.fleet.start(release, deployment)

        await asyncio.gather(*map(each, deployments))

    async def _lose_the_log(self, result: Result, release: Release) -> None:
        """The topic of the published tasks that nobody has claimed is lost; then a worker of `release` comes."""
        tasks = self._late
        await recreate(self.servers, LATE)
        await self.fleet.start(release, "late")
        left = await self.ledger.until_ended(tasks, self.patience)
        told = [f"{len(left)} tasks whose records were lost have not ended", *await self._explain(left)]
        self._note(result, told if left else [])
        found = [row for row in (await self.ledger.rows(tasks)).values() if f"|{Event.RECORD_LOST}|" in str(row)]
        if len(found) < len(tasks):
            result.faults.append(f"the auditor found {len(found)} of {len(tasks)} lost records")
        await self.fleet.stop(release, "late")
        self._late = []

    # What is checked -------------------------------------------------------------------------------------------------

    async def _check(self, result: Result, *, ended: bool = True) -> None:
        waiting = set(self._late)
        if ended:
            left = await self.ledger.until_ended(set(self.load.sent) - waiting, self.patience)
            self._note(result, [f"{len(left)} tasks have not ended", *await self._explain(left)] if left else [])
            rows = await self.ledger.left(waiting, stale=not self.fleet.runs(self.old))
            told = [f"{row['of']} of a task that is {row['state']} {row['version']}: {row['row']}" for row in rows]
            self._note(result, [f"{len(rows)} rows are left", *told[:3]] if rows else [])
            await self._check_tasks(result)
        self._note(result, await self.ledger.forbidden())
        self._note(result, self.load.faults)
        self._note(result, [f"{origin} has ended by itself" for origin in self.fleet.died()])

    async def _check_tasks(self, result: Result) -> None:
        evidence = await self._evidence()
        self._note(result, list(faults(evidence)))
        dead = [task for task, row in evidence.rows.items() if row["state"] == "dead"]
        letters = await self.ledger.dead_letters(dead)
        wrong = [task for task in dead if letters.get(task) != 1]
        self._note(result, [f"{task} is dead and has {letters.get(task, 0)} dead letters" for task in wrong])

    async def _evidence(self) -> Evidence:
        mails, texts = self.ledger.messages()
        return Evidence(
            self.load.sent,
            await self.ledger.rows(self.load.sent),
            mails,
            texts,
            self.ledger.attempts(),
            self.fleet.killed,
            self._late,
        )

    async def _explain(self, tasks: list[UUID]) -> list[str]:
        return await self.ledger.explain(tasks[:SHOWN])

    def _note(self, result: Result, found: list[str]) -> None:
        """Tell each fault in the phase in which it is seen first."""
        result.faults += [fault for fault in found if fault not in self._told]
        self._told.update(found)


def _counts(evidence: Evidence) -> Counter[str]:
    repeats = [len(effects_of(evidence, task)) - 1 for task in evidence.sent.values()]
    return Counter(
        held=sum(row["state"] == "uncertain" for row in evidence.rows.values()),
        repeats=sum(number for number in repeats if number > 0),
    )


async def recreate(servers: Servers, task_type: str) -> None:
    """Delete the topic of a type, with its records, and create it again."""
    settings = servers.kafka
    topic, positions = task_topic(settings.topic_prefix, task_type), Positions(settings)
    former = await positions.log_id(topic)
    admin = AIOKafkaAdminClient(bootstrap_servers=settings.bootstrap_servers)
    await admin.start()

    async def deleted() -> bool:
        ((_, code),) = (await admin.delete_topics([topic])).topic_error_codes
        return code in (0, UnknownTopicOrPartitionError.errno)

    async def created() -> bool:
        with suppress(KafkaUnavailable):
            await ensure_topics(settings, [task_type])
            return await positions.log_id(topic) not in (None, former)
        return False

    try:
        await eventually(deleted, f"{topic} is deleted")
        await eventually(created, f"{topic} is created")
    finally:
        await admin.close()
        await positions.close()


@asynccontextmanager
async def prepared(
    directory: Path, old: Release, new: Release, *, kafka: bool, rate: float, seconds: float, seed: int, rows: int
) -> AsyncIterator[Drill]:
    """The servers with the old release's schema, and nothing that runs yet."""
    async with AsyncExitStack() as exits:
        servers = await Servers.start(directory, exits, kafka=kafka)
        sql = await exits.enter_async_context(asyncpg.create_pool(servers.postgres.dsn, min_size=0, max_size=4))
        work = directory / "work"
        work.mkdir()
        (work / "work.py").write_text(Path(__file__).with_name("work.py").read_text())
        for release in (old, new):
            release.check(work)
        fleet = Fleet(directory, work, servers.environment(), sql)
        exits.callback(fleet.end)
        await fleet.migrate(old)
        await ensure_topics(servers.kafka, ["email", "sms", "simulated"])
        ledger = Ledger(sql, servers.inbox_file, work / "traces", servers.postgres.log)
        await ledger.watch(rows)
        load = Load(fleet.urls, rate, random.Random(f"{seed} load"))
        exits.push_async_callback(load.stop)
        duplicates = Duplicates(servers.kafka, random.Random(f"{seed} duplicates"))
        exits.push_async_callback(duplicates.stop)
        yield Drill(servers, fleet, load, duplicates, ledger, old, new, seconds, patience=90.0)
