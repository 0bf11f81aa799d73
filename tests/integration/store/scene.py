"""Tasks brought to where a test begins, and a look at what stands in the tables."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from itertools import pairwise
from typing import Any
from uuid import UUID

import asyncpg
from uuid_utils.compat import uuid7

from taskflux.http.tasks import TimelineEntry, parse_timeline
from taskflux.store.claims import Claim, Claims, Settled, Settlement, Worker
from taskflux.store.database import Database, Row
from taskflux.store.dead_letters import DeadLetters
from taskflux.store.publishing import Circuits, Confirmation, Publishing
from taskflux.store.settings import PostgresSettings
from taskflux.store.tasks import Tasks, TaskTypes
from taskflux.store.upkeep import Upkeep
from taskflux.tasks.decision import Decision
from taskflux.tasks.model import Submission, TaskType
from taskflux.tasks.states import Event, State, allowed
from taskflux.telemetry.tracing import Destination

TYPE = "email"
LOG = UUID(int=77)
GRACE = 15.0
SOURCE = Destination("tasks.email", "taskflux.email")


def submission(**changes: Any) -> Submission:
    """A task that is due now."""
    fields: dict[str, Any] = {"id": uuid7(), "type": TYPE, "payload": '{"to": "x"}', "max_attempts": 8}
    return Submission(**(fields | changes))


def succeeded(result: Mapping[str, Any] | None) -> Decision:
    """The side effect happened."""
    return Decision(Event.SUCCEEDED, State.SUCCEEDED, result=result)


@dataclass(frozen=True, slots=True)
class Scene:
    """One database: `settings` reach it as the program does, `direct` is a connection past any pooler."""

    settings: PostgresSettings
    database: Database
    direct: Any

    @classmethod
    @asynccontextmanager
    async def over(cls, settings: PostgresSettings, database: Database) -> AsyncIterator[Scene]:
        direct = await asyncpg.connect(settings.migrate_dsn.get_secret_value() if settings.migrate_dsn else "")
        try:
            yield cls(settings, database, direct)
        finally:
            await direct.close()

    @classmethod
    @asynccontextmanager
    async def of(cls, settings: PostgresSettings, database: Database) -> AsyncIterator[Scene]:
        """A scene over a database of its own, which is opened for it; its type is registered."""
        await database.open()
        try:
            async with cls.over(settings, database) as scene:
                await scene.register(TYPE)
                yield scene
        finally:
            await database.close()

    @property
    def tasks(self) -> Tasks:
        return Tasks(self.database)

    @property
    def publishing(self) -> Publishing:
        return Publishing(self.database, GRACE)

    @property
    def upkeep(self) -> Upkeep:
        return Upkeep(self.database)

    @property
    def circuits(self) -> Circuits:
        return Circuits(self.database)

    @property
    def dead_letters(self) -> DeadLetters:
        return DeadLetters(self.database)

    # What happens to tasks ------------------------------------------------------------------------------------------

    async def register(self, name: str, ambiguous: str = "resend", provider: str | None = None) -> None:
        await TaskTypes(self.database).register(TaskType(name, "{}", 8, ambiguous, provider))

    async def accepted(self, count: int = 1, *, grace: float = GRACE, **changes: Any) -> list[UUID]:
        """New tasks at version 1; their process has promised to publish them within the grace."""
        made = [submission(**changes) for _ in range(count)]
        await self.tasks.insert(made, grace)
        return [each.id for each in made]

    async def confirm(self, tasks: Sequence[UUID], version: int = 1) -> None:
        places = [Confirmation(task, version, LOG, 0, offset) for offset, task in enumerate(tasks)]
        await self.publishing.confirm(places)

    async def worker(self, **changes: Any) -> Claims:
        """A worker that has taken its lease."""
        fields: dict[str, Any] = {
            "id": uuid7(),
            "handler": "x",
            "label": "x@host:1",
            "pid": 1,
            "origin": None,
            "type": TYPE,
        }
        claims = Claims(self.database, Worker(**(fields | changes)), SOURCE)
        await claims.begin()
        return claims

    async def running(self, worker: Claims, count: int = 1, **changes: Any) -> list[Claim]:
        """Tasks that `worker` has claimed."""
        tasks = await self.accepted(count, **changes)
        await self.confirm(tasks)
        return list(await worker.claim(changes.get("type", TYPE), dict.fromkeys(tasks, 1)))

    async def settle(self, worker: Claims, claim: Claim, decision: Decision) -> Settled:
        (settled,) = await worker.settle_all([Settlement(claim.id, claim.version, decision)])
        return settled

    async def lose(self, worker: Claims) -> None:
        """The leader has ended the worker's lease, since it did not beat."""
        await self.sql("UPDATE workers SET ended = true, lost = true WHERE id = $1", worker.worker.id)

    async def make_due(self, *tasks: UUID) -> None:
        """Their time to be published has come."""
        await self.sql("UPDATE due SET publish_at = now() - interval '1 second' WHERE task_id = ANY($1)", tasks)

    # What stands in the tables --------------------------------------------------------------------------------------

    async def sql(self, statement: str, *arguments: Any) -> list[Any]:
        return list(await self.direct.fetch(statement, *arguments))

    async def until_blocked(self) -> None:
        """Return once a statement waits for a lock of `direct`'s transaction."""
        statement = "SELECT FROM pg_stat_activity WHERE pg_backend_pid() = ANY(pg_blocking_pids(pid))"
        async with asyncio.timeout(60):
            while not await self.sql(statement):  # noqa: ASYNC110  # what PostgreSQL does sets no event of ours
                await asyncio.sleep(0.01)

    async def row(self, task: UUID) -> Row:
        """The wide row, with what `task_states` says in place of what it says itself."""
        shown = await self.direct.fetchrow("SELECT * FROM task_states WHERE id = $1", task)
        return shown and dict(await self.wide(task)) | dict(shown)

    async def wide(self, task: UUID) -> Row:
        """The row of `tasks` alone, which knows neither claims nor confirmations."""
        return await self.direct.fetchrow("SELECT * FROM tasks WHERE id = $1", task)

    async def state(self, task: UUID) -> tuple[str, int]:
        """(state, version)."""
        row = await self.row(task)
        return row["state"], row["version"]

    async def timeline(self, task: UUID) -> list[TimelineEntry]:
        return parse_timeline((await self.row(task))["timeline"])

    async def events(self, task: UUID) -> list[str]:
        return [entry["event"] for entry in await self.timeline(task)]

    async def due(self, task: UUID, *, dead: bool = False) -> Row | None:
        """The task's outbox row; `wait` is the number of seconds until it is due."""
        row = "SELECT *, extract(epoch FROM publish_at - now())::float8 AS wait FROM due"
        return await self.direct.fetchrow(f"{row} WHERE task_id = $1 AND dead = $2", task, dead)

    async def claims(self) -> set[tuple[UUID, int]]:
        """(id, version) of what runs."""
        return {(row["task_id"], row["version"]) for row in await self.sql("SELECT * FROM claims")}

    async def holder(self, task: UUID) -> UUID | None:
        """The worker that has claimed it."""
        rows = await self.sql("SELECT worker FROM claims WHERE task_id = $1", task)
        return rows[0]["worker"] if rows else None

    async def groups(self) -> list[set[UUID]]:
        """The groups of suspects, the one with the least task first."""
        rows = await self.sql(
            "SELECT array_agg(task_id) AS tasks FROM suspects GROUP BY group_id ORDER BY min(task_id::text)"
        )
        return [set(row["tasks"]) for row in rows]

    async def check_transitions(self) -> None:
        """Every step of every timeline is a row of the table of transitions."""
        for row in await self.sql("SELECT id, state, timeline FROM task_states"):
            entries = [entry for entry in parse_timeline(row["timeline"]) if entry["event"] != "reported"]
            if any("times" in entry for entry in entries) or not entries:
                continue  # folded: neighbours there were none in life
            assert (entries[0]["event"], entries[0]["state"]) == ("accepted", "scheduled")
            for before, after in pairwise(entries):
                step = Event(after["event"]), State(before["state"]), State(after["state"])
                assert allowed(*step), (row["id"], *step)
            assert entries[-1]["state"] == row["state"], (row["id"], entries)

    async def check_whereabouts(self) -> None:
        """A task that has not ended and is not held is due, in Kafka, or under a lease; and only such a task is a
        suspect."""
        lost = await self.sql(
            """
            SELECT t.id, t.state, t.version, d.version AS due, c.version AS claimed, d.published_offset
            FROM task_states t
            LEFT JOIN due d ON d.task_id = t.id AND NOT d.dead LEFT JOIN claims c ON c.task_id = t.id
            WHERE CASE t.state
                WHEN 'scheduled' THEN d.version IS DISTINCT FROM t.version OR c.version IS NOT NULL
                WHEN 'queued' THEN d.version IS DISTINCT FROM t.version OR d.published_log IS NULL
                                   OR d.published_offset IS NULL OR c.version IS NOT NULL
                WHEN 'running' THEN c.version IS DISTINCT FROM t.version OR d.version IS NOT NULL
                ELSE c.version IS NOT NULL
            END
            """
        )
        assert not lost, lost
        left = await self.sql(
            "SELECT s.task_id, t.state FROM suspects s LEFT JOIN tasks t ON t.id = s.task_id"
            " WHERE t.state IS NULL OR t.state NOT IN ('scheduled', 'queued', 'running')"
        )
        assert not left, left
