"""The numbers that KEDA asks PostgreSQL for, on a real, migrated database."""

from __future__ import annotations

from typing import Any
from uuid import uuid4

import asyncpg
import pytest

from tests.chart.cases import full
from tests.chart.rendering import Refused
from tests.conftest import NewDatabase

RUNNING = ("process-email", "process-sms", "process-simulated")


def query(handler: str) -> str:
    scaled = full().handler("ScaledObject", handler)
    assert scaled is not None
    (trigger,) = (each for each in scaled.spec["triggers"] if each["type"] == "postgresql")
    found: str = trigger["metadata"]["query"]
    return found


async def asked(connection: asyncpg.Connection[Any], handler: str) -> float:
    """As KEDA does: one row, one number."""
    (row,) = await connection.fetch(query(handler))
    (number,) = row.values()
    return float(number)


@pytest.fixture
async def connection(new_database: NewDatabase) -> Any:
    connection = await asyncpg.connect((await new_database()).dsn.get_secret_value())
    yield connection
    await connection.close()


async def claim(connection: asyncpg.Connection[Any], task_type: str, count: int) -> None:
    rows = [(uuid4(), uuid4(), task_type) for _ in range(count)]
    await connection.executemany("INSERT INTO claims (task_id, worker, type, version) VALUES ($1, $2, $3, 1)", rows)


async def owe(connection: asyncpg.Connection[Any], due: str, *, count: int = 1, task_type: str = "email") -> None:
    await connection.execute(
        "INSERT INTO due (task_id, type, version, publish_at)"
        " SELECT gen_random_uuid(), $1, 1, now() + $2::text::interval FROM generate_series(1, $3)",
        task_type,
        due,
        count,
    )


@pytest.mark.parametrize("handler", RUNNING)
async def test_nothing_runs_at_first(connection: asyncpg.Connection[Any], handler: str) -> None:
    assert await asked(connection, handler) == 0


async def test_tasks_that_run_count_for_their_own_type(connection: asyncpg.Connection[Any]) -> None:
    await claim(connection, "email", 3)
    await claim(connection, "sms", 1)
    assert [await asked(connection, handler) for handler in RUNNING] == [3, 1, 0]


async def test_overdue_tasks_scale_the_relay_and_later_ones_do_not(
    connection: asyncpg.Connection[Any],
) -> None:
    assert await asked(connection, "relay") == 0
    await owe(connection, "1 hour", count=7)
    assert await asked(connection, "relay") == 0
    await owe(connection, "-1 minute", count=5)
    assert await asked(connection, "relay") == 5


async def test_tasks_behind_an_open_circuit_do_not_scale_the_relay(connection: asyncpg.Connection[Any]) -> None:
    await connection.execute(
        "INSERT INTO task_types (type, schema, max_attempts, ambiguous, provider)"
        " VALUES ('email', '{}', 6, 'resend', 'smtp')"
    )
    await connection.execute("INSERT INTO circuits (provider, open) VALUES ('smtp', true)")
    await owe(connection, "-1 minute", count=5)
    await owe(connection, "-1 minute", count=2, task_type="simulated")
    assert await asked(connection, "relay") == 2
    await connection.execute("UPDATE circuits SET open = false")
    assert await asked(connection, "relay") == 7


async def test_a_type_s_name_cannot_inject_sql(connection: asyncpg.Connection[Any]) -> None:
    """A type's name is part of the query text: a name that could end a string literal is refused."""
    with pytest.raises(Refused):
        full({"handlers": {"mine": {"target": "a.b:c", "taskType": "x'; DROP TABLE claims; --"}}})


async def test_the_queries_are_cheap_with_a_large_backlog(connection: asyncpg.Connection[Any]) -> None:
    await owe(connection, "-1 minute", count=30_000)
    await connection.execute("ANALYZE due")
    scaled = full().handler("ScaledObject", "relay")
    assert scaled is not None
    (trigger,) = scaled.spec["triggers"]
    enough = float(trigger["metadata"]["targetQueryValue"]) * scaled.spec["maxReplicaCount"]
    assert await asked(connection, "relay") == enough
