"""What docs/upgrading.md promises of every migration: pods of the previous version keep working while it runs."""

from __future__ import annotations

from typing import Any, NamedTuple

import asyncpg
import pytest

from taskflux.local.servers import PostgresServer
from taskflux.store.migrate import Migration, migrations

COLUMNS = """
SELECT relname AS "table", attname AS name, format_type(atttypid, atttypmod) AS type, attnotnull AS required,
       atthasdef OR attidentity <> '' AS filled
FROM pg_attribute JOIN pg_class ON pg_class.oid = attrelid
WHERE relnamespace = 'public'::regnamespace AND relkind IN ('r', 'p') AND attnum > 0 AND NOT attisdropped
"""
FUNCTIONS = """
SELECT oid::regprocedure::text AS name, pg_get_functiondef(oid) AS body
FROM pg_proc WHERE pronamespace = 'public'::regnamespace AND prokind IN ('f', 'p')
"""
# What refuses a row: every CHECK, key and unique index, with the columns that it looks at.
RULES = """
SELECT conrelid::regclass::text AS "table", pg_get_constraintdef(pg_constraint.oid) AS rule,
       ARRAY(SELECT attname::text FROM pg_attribute WHERE attrelid = conrelid AND attnum = ANY (conkey)) AS columns
FROM pg_constraint
WHERE connamespace = 'public'::regnamespace AND contype IN ('c', 'p', 'u', 'f', 'x') AND conrelid <> 0
UNION ALL
SELECT indrelid::regclass::text, pg_get_indexdef(indexrelid),
       ARRAY(SELECT attname::text FROM pg_attribute WHERE attrelid = indrelid AND attnum = ANY (indkey::int2[]))
FROM pg_index JOIN pg_class ON pg_class.oid = indexrelid
WHERE indisunique AND relnamespace = 'public'::regnamespace
"""


class Column(NamedTuple):
    type: str
    required: bool
    filled: bool


class Schema(NamedTuple):
    """What pods meet: their columns, the functions that they call, and the rules that their rows have to keep."""

    columns: dict[tuple[str, str], Column]
    functions: dict[str, str]
    rules: dict[tuple[str, str], frozenset[str]]

    @property
    def tables(self) -> set[str]:
        return {table for table, _ in self.columns}


async def schema(connection: Any) -> Schema:
    columns = await connection.fetch(COLUMNS)
    functions = await connection.fetch(FUNCTIONS)
    rules = await connection.fetch(RULES)
    return Schema(
        {(row["table"], row["name"]): Column(row["type"], row["required"], row["filled"]) for row in columns},
        {row["name"]: row["body"] for row in functions},
        {(row["table"], row["rule"]): frozenset(row["columns"]) for row in rules},
    )


def broken_promises(before: Schema, after: Schema) -> list[str]:
    """What breaks a pod that expects `before` in `after`."""
    found = []
    for (table, name), was in before.columns.items():
        now = after.columns.get((table, name))
        if now is None:
            found.append(f"{table}.{name} is missing")
        elif now.type != was.type or (now.required and not was.required) or (was.filled and not now.filled):
            found.append(f"{table}.{name} was {was}, is {now}")
    found += [
        f"{table}.{name} is new and has to be given"
        for (table, name), now in after.columns.items()
        if table in before.tables and (table, name) not in before.columns and now.required and not now.filled
    ]
    found += [
        f"the function {name} is missing or does something else"
        for name, body in before.functions.items()
        if after.functions.get(name) != body
    ]
    found += [
        f"{table} refuses more: {rule}"
        for (table, rule), columns in after.rules.items()
        if (table, rule) not in before.rules and any((table, column) in before.columns for column in columns)
    ]
    return found


async def migrated(connection: Any, steps: list[Migration]) -> None:
    for step in steps:
        await connection.execute(step.sql)


@pytest.fixture
async def connection(postgres: PostgresServer) -> Any:
    """To a database without any schema."""
    administrator = await asyncpg.connect(postgres.dsn)
    await administrator.execute("DROP DATABASE IF EXISTS expanding")
    await administrator.execute("CREATE DATABASE expanding")
    await administrator.close()
    connection = await asyncpg.connect(postgres.dsn_of("expanding"))
    yield connection
    await connection.close()


async def test_every_migration_only_adds(connection: Any) -> None:
    first, *others = migrations()
    await migrated(connection, [first])
    for step in others:
        before = await schema(connection)
        await migrated(connection, [step])
        assert not broken_promises(before, await schema(connection)), str(step)


@pytest.mark.parametrize(
    "breach",
    [
        "ALTER TABLE workers DROP COLUMN label CASCADE",
        "ALTER TABLE workers RENAME COLUMN label TO called",
        "DROP TABLE circuits CASCADE",
        "ALTER TABLE tasks ALTER COLUMN delivery SET NOT NULL",
        "ALTER TABLE workers ALTER COLUMN pid TYPE smallint",
        "ALTER TABLE workers ADD COLUMN rack text NOT NULL",
        "ALTER TABLE workers ADD CHECK (length(label) < 10)",
        "CREATE UNIQUE INDEX ON workers (label)",
        "CREATE OR REPLACE FUNCTION drop_task_partition(partition text, guarded_by text, staying uuid[])"
        " RETURNS integer LANGUAGE sql AS 'SELECT 1'",
    ],
)
async def test_a_migration_that_breaks_older_pods_is_found(connection: Any, breach: str) -> None:
    await migrated(connection, list(migrations()))
    before = await schema(connection)
    await connection.execute(breach)
    assert len(broken_promises(before, await schema(connection))) >= 1


@pytest.mark.parametrize(
    "addition",
    [
        "CREATE TABLE racks (name text PRIMARY KEY)",
        "ALTER TABLE workers ADD COLUMN rack text",
        "ALTER TABLE workers ADD COLUMN rack text NOT NULL DEFAULT '' CHECK (length(rack) < 10)",
        "CREATE INDEX ON workers (label)",
        "CREATE FUNCTION racks() RETURNS integer LANGUAGE sql AS 'SELECT 1'",
    ],
)
async def test_a_migration_that_only_adds_is_accepted(connection: Any, addition: str) -> None:
    await migrated(connection, list(migrations()))
    before = await schema(connection)
    await connection.execute(addition)
    assert not broken_promises(before, await schema(connection))
