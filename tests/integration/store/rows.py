"""Tasks in a state, and of an age, that no submit could make."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from typing import Any
from uuid import UUID

from uuid_utils.compat import uuid7

from taskflux.store.claims import Claims, Settlement, Worker
from taskflux.store.database import Database, Statement
from taskflux.store.tasks import Tasks, uuid_floor
from taskflux.tasks.decision import Decision
from taskflux.tasks.model import Submission
from taskflux.tasks.states import Event, State
from tests.integration.store.scene import SOURCE

DIED = Decision(Event.DIED, State.DEAD, error_class="Permanent", reason="never")
HELD = Decision(Event.HELD, State.UNCERTAIN, error_class="Ambiguous", reason="perhaps")
DONE = Decision(Event.SUCCEEDED, State.SUCCEEDED)


async def sql(database: Database, statement: str, *args: object) -> Sequence[Any]:
    """Rows of a statement that only tests need."""
    arguments = {f"_{place}": value for place, value in enumerate(args, 1)}
    return await database.fetch(Statement("of a test", statement, tuple(arguments)), **arguments)


def submission(**changes: Any) -> Submission:
    plain: dict[str, Any] = {"id": uuid7(), "type": "simulated", "payload": "{}", "max_attempts": 8}
    return Submission(**(plain | changes))


async def submit(database: Database, count: int = 1, **changes: Any) -> list[UUID]:
    """New tasks, due at once."""
    batch = [submission(**changes) for _ in range(count)]
    await Tasks(database).insert(batch, 10.0)
    return [each.id for each in batch]


async def worker(database: Database) -> Claims:
    claims = Claims(database, Worker(uuid7(), "simulated", "worker@here:1", 1, None, "simulated"), SOURCE)
    await claims.begin()
    return claims


async def end(database: Database, tasks: Sequence[UUID], decision: Decision) -> None:
    """Claim these at version 1 and settle them so."""
    claims = await worker(database)
    held = await claims.claim("simulated", dict.fromkeys(tasks, 1))
    await claims.settle_all([Settlement(claim.id, claim.version, decision) for claim in held])


async def state_of(database: Database, task: UUID) -> str | None:
    rows = await sql(database, "SELECT state FROM task_states WHERE id = $1", task)
    return rows[0]["state"] if rows else None


async def old_tasks(database: Database, state: str, age: timedelta, count: int = 1) -> list[UUID]:
    """Tasks that were accepted and have not changed since so long ago, in the partition of that time."""
    [[moment]] = await sql(database, "SELECT now() - $1::interval", age)
    ids = [UUID(int=uuid_floor(moment).int + uuid7().int % (1 << 60)) for _ in range(count)]
    await sql(database, "SELECT create_task_partition($1)", moment)
    insert = (
        "INSERT INTO tasks (id, type, payload, max_attempts, created_at, updated_at)"
        " SELECT id, 'simulated', '{}', 8, $2, $2 FROM unnest($1::uuid[]) AS id"
    )
    await sql(database, insert, ids, moment)
    await sql(database, "UPDATE tasks SET state = $2 WHERE id = ANY($1)", ids, state)
    return ids
