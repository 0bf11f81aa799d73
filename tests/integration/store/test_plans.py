"""No statement of the daily work scans a table, whatever the planner knows of its size, and updates stay in place."""

from __future__ import annotations

import asyncio
import json
import re
from typing import Any

import pytest
from uuid_utils.compat import uuid7

from taskflux.store.claims import SQL, Claims, Settlement
from taskflux.store.database import Database, Statement
from taskflux.store.migrate import migrate
from taskflux.store.tasks import TaskFilter
from taskflux.tasks.states import State
from tests.integration.store.scene import TYPE, Scene, succeeded
from tests.statements import every_statement

DAILY = (
    "insert_tasks", "insert_keyed", "find_created", "find_keys", "get_task", "claim", "reclaim", "settle", "confirm",
    "due_now", "take_due", "dead_now", "take_dead", "confirm_dead", "expired_now", "expire_waiting", "sweep", "requeue",
    "probes_now", "audit_page", "add_dead_letters", "measure_letters",
    "suspected", "begin_alone", "lapsed", "cleared", "clear",
    "find_recent", "find_by_key", "find_narrow", "list_found",
)  # fmt: skip
SMALL = {"task_types", "workers"}
"""Tables that stay small enough to be read as a whole."""
WHOLE = {"cleared": {"suspects"}, "lapsed": {"claims"}}
"""Narrow tables that these look through as a whole."""


FILL = """
INSERT INTO tasks (id, type, state, version, max_attempts, payload)
SELECT uuidv7(interval '1 microsecond' * n), 'email',
       (ARRAY['scheduled', 'queued', 'running', 'succeeded', 'dead'])[n % 5 + 1], 1, 8, repeat('x', 100)
FROM generate_series(1, $1::integer) AS n
"""


@pytest.mark.parametrize("size", [0, 30_000])
async def test_no_statement_of_the_daily_work_scans_a_table(size: int, own_scene: Scene) -> None:
    scene = own_scene
    await scene.sql(FILL, size)
    await scene.sql(
        "INSERT INTO due SELECT id, state = 'dead', type, version, now(), now() FROM tasks"
        " WHERE state IN ('scheduled', 'queued', 'dead')"
    )
    await scene.sql("UPDATE due SET publish_at = never() FROM tasks t WHERE t.id = task_id AND t.state = 'queued'")
    await scene.sql("INSERT INTO claims SELECT id, id, type, version FROM tasks WHERE state = 'running'")
    await scene.sql("INSERT INTO suspects SELECT id, id, id FROM tasks WHERE state IN ('scheduled', 'running')")
    if size:  # as autovacuum would: it leaves the partitions of weeks to come alone
        (row,) = await scene.sql("SELECT DISTINCT tableoid::regclass::text AS partition FROM tasks")
        await scene.direct.execute(f"ANALYZE {row['partition']}; ANALYZE due; ANALYZE claims; ANALYZE suspects")
    scans = {name: found for name in DAILY if (found := await scanned(scene, name))}
    assert scans == {}


async def test_a_look_at_the_outbox_reads_no_promise_that_was_kept(own_scene: Scene) -> None:
    scene, worker = own_scene, await own_scene.worker()
    await scene.direct.execute("VACUUM due")
    look = await scene.direct.prepare(STATEMENTS["next_due"].text)
    for _ in range(7):
        await look.fetch(0.5)  # its plan is kept from here on
    for _ in range(3):
        tasks = await scene.accepted(300)
        await scene.confirm(tasks)
        await worker.claim(TYPE, dict.fromkeys(tasks, 1))
    waiting = await scene.accepted(5)
    await scene.make_due(*waiting)
    before = await fetches(scene)
    assert [row["type"] for row in await look.fetch(0.5)] == [TYPE]
    after = await fetches(scene)
    assert [after[name] - before[name] for name in ("due", "due_by_type")] == [0, 1]


SELECTIVE = (
    TaskFilter(type="rare"),
    TaskFilter(type="email"),
    TaskFilter(State.SUCCEEDED, "rare"),
    TaskFilter(State.SCHEDULED, "rare"),
    TaskFilter(metadata={"order": "7"}),
    TaskFilter(metadata={"order": "none"}),
)


@pytest.mark.parametrize("analyzed", [False, True])
async def test_a_list_by_type_or_metadata_reads_no_more_than_it_shows(analyzed: bool, own_scene: Scene) -> None:
    scene = own_scene
    await migrate(scene.settings.model_copy(update={"metadata_keys": "order"}))
    await scene.sql(FILL, 30_000)
    await scene.sql("""UPDATE tasks SET metadata = format('{"order":%s}', abs(hashtext(id::text)) % 1000)""")
    await scene.sql("UPDATE tasks SET type = 'rare' WHERE abs(hashtext(id::text)) % 1500 = 0")
    await scene.sql("INSERT INTO due SELECT id, false, type, version, now() FROM tasks WHERE state = 'scheduled'")
    if analyzed:
        await scene.direct.execute("ANALYZE")
    for wanted in SELECTIVE:
        before = await fetches(scene)
        await scene.tasks.page("default", wanted, 10)
        read = {name: rows - before.get(name, 0) for name, rows in (await fetches(scene)).items()}
        assert sum(read.values()) < 150, (wanted, {name: rows for name, rows in read.items() if rows})


async def fetches(scene: Scene) -> dict[str, int]:
    """Rows that were read of each table as a whole, and entries of each index."""
    await scene.sql("SELECT pg_stat_force_next_flush()")
    await scene.database.close()  # a connection reports what it did at the latest when it ends
    await scene.database.open()
    others = "SELECT FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"
    while await scene.sql(others):  # noqa: ASYNC110  # what PostgreSQL does sets no event of ours
        await asyncio.sleep(0.01)
    rows = await scene.sql(
        "SELECT relname AS name, seq_tup_read AS read FROM pg_stat_user_tables"
        " UNION ALL SELECT indexrelname, idx_tup_read FROM pg_stat_user_indexes"
    )
    return {row["name"]: row["read"] for row in rows}


STATEMENTS = every_statement()
LOCKING = [
    name for name, each in STATEMENTS.items() if re.search(r"FOR UPDATE|UPDATE tasks|DELETE FROM tasks", each.text)
]
AT_START = re.compile(r"= ANY|(=|>=|<=|>|<) \$\d+")
"""Conditions on an id that prune partitions before a statement begins, or not at all."""


@pytest.mark.parametrize("size", [0, 30_000])
async def test_no_statement_that_locks_rows_prunes_partitions_while_it_runs(size: int, own_scene: Scene) -> None:
    """PostgreSQL 18 before 18.7 corrupts its memory where such a statement has waited for a row that changed."""
    scene = own_scene
    await scene.sql(FILL, size)
    if size:
        await scene.direct.execute("ANALYZE")
    found = {name: pruned for name in LOCKING if (pruned := await prunes_while_it_runs(scene, name))}
    assert found == {}


async def prunes_while_it_runs(scene: Scene, name: str) -> set[str]:
    """Conditions on a task's id, in the statement's generic plan, whose value is only known while it runs."""
    tasks = [node for node in await plan(scene, name) if node.get("Relation Name", "").startswith("tasks_")]
    conditions = [str(node.get(kind, "")) for node in tasks for kind in ("Index Cond", "Recheck Cond", "Filter")]
    on_id = {found for each in conditions for found in re.findall(r"\(id [^()]*(?:\(\(.*?\)\)|\(.*?\))?", each)}
    return {each for each in on_id if not AT_START.search(each)}


GENERIC_PLAN = """
CREATE OR REPLACE FUNCTION pg_temp.generic_plan(statement text) RETURNS json LANGUAGE plpgsql AS $$
DECLARE
    plan json;
BEGIN
    EXECUTE 'EXPLAIN (GENERIC_PLAN, FORMAT JSON) ' || statement INTO plan;
    RETURN plan;
END $$
"""


async def plan(scene: Scene, name: str) -> list[Any]:
    """The nodes of the statement's generic plan."""
    await scene.direct.execute(GENERIC_PLAN)
    (row,) = await scene.sql("SELECT pg_temp.generic_plan($1)", STATEMENTS[name].text)
    return nodes_of(row[0])


def nodes_of(explained: str) -> list[Any]:
    """All nodes of a plan in JSON."""
    found, nodes = [], [json.loads(explained)[0]["Plan"]]
    while nodes:
        found.append(nodes.pop())
        nodes += found[-1].get("Plans", [])
    return found


async def scanned(scene: Scene, name: str) -> set[str]:
    """Tables, the small ones aside, that the generic plan of the statement reads from beginning to end."""
    nodes = await plan(scene, name)
    return {node["Relation Name"] for node in nodes if node["Node Type"] == "Seq Scan"} - SMALL - WHOLE.get(name, set())


OF_THE_OUTBOX = (
    "confirm", "claim", "due_now", "probes_now", "take_due", "expired_now", "expire_waiting", "requeue", "cancel",
    "get_task", "list_found",
)  # fmt: skip


@pytest.mark.parametrize("fixed", [True, False])
async def test_a_plan_from_when_the_outbox_was_empty_finds_its_rows_by_an_index(fixed: bool, own_scene: Scene) -> None:
    """It is kept while thousands of tasks are accepted, and a look through all of them would be slow for each batch."""
    scene = own_scene
    if scene.settings.pooler:
        pytest.skip("no plan is kept behind a pooler")
    await scene.accepted(300)
    await scene.sql("DELETE FROM due")
    await scene.direct.execute("VACUUM ANALYZE due")
    database = Database(scene.settings, pool_size=1, fixed_plans=fixed)
    await database.open()
    await database.fetch(Statement("function", GENERIC_PLAN, ()))
    explain = Statement("explain", "SELECT pg_temp.generic_plan($1)", ("statement",))
    found: dict[str, list[tuple[str, str]]] = {}
    for name in OF_THE_OUTBOX:
        (row,) = await database.fetch(explain, statement=STATEMENTS[name].text)
        found[name] = [
            (node["Node Type"], node.get("Index Cond", ""))
            for node in nodes_of(row[0])
            if node.get("Relation Name") == "due" and "Scan" in node["Node Type"]
        ]
    await database.close()
    assert [name for name in found if not found[name]] == []
    assert {kind for scans in found.values() for kind, _ in scans} == {"Index Scan"}
    assert [name for name, scans in found.items() if not all(condition for _, condition in scans)] == []


ENTRIES_READ = """
CREATE OR REPLACE FUNCTION pg_temp.entries_read(name text, tasks uuid[]) RETURNS json LANGUAGE plpgsql AS $$
BEGIN
    EXECUTE format('SELECT %I($1)', name) USING tasks;
    RETURN (SELECT json_object_agg(relname, read) FROM (
        SELECT relname, pg_stat_get_xact_tuples_returned(oid) AS read FROM pg_class WHERE relname ~ '^(due|claims)'
    ) WHERE read > 0);
END $$
"""


@pytest.mark.parametrize("name", ["unclaimed", "withdraw_rows"])
@pytest.mark.parametrize("fixed", [True, False])
async def test_a_function_finds_its_rows_by_a_key_though_its_plan_is_from_when_there_were_none(
    fixed: bool, name: str, own_scene: Scene
) -> None:
    scene = own_scene
    if scene.settings.pooler:
        pytest.skip("no plan is kept behind a pooler")
    await scene.accepted(300)
    await scene.sql("DELETE FROM due")
    await scene.direct.execute("VACUUM ANALYZE due")
    await scene.direct.execute("VACUUM ANALYZE claims")
    database = Database(scene.settings, pool_size=1, fixed_plans=fixed)
    await database.open()
    await database.fetch(Statement("function", ENTRIES_READ, ()))
    read = Statement("read", "SELECT pg_temp.entries_read($1, $2)", ("name", "tasks"))
    for _ in range(7):
        await database.fetch(read, name=name, tasks=[uuid7()])  # its plan is kept from here on
    tasks = await scene.accepted(300)
    await (await scene.worker()).claim(TYPE, dict.fromkeys(await scene.accepted(300), 1))
    (row,) = await database.fetch(read, name=name, tasks=tasks[:1])
    await database.close()
    assert json.loads(row[0] or "{}") in ({"due_pkey": 1}, {})


async def test_the_life_of_a_task_updates_its_row_once_and_in_place(own_scene: Scene) -> None:
    scene, worker = own_scene, await own_scene.worker()
    for _ in range(5):
        tasks = await scene.accepted(200, payload='{"text": "' + "x" * 200 + '"}')
        await scene.confirm(tasks)
        claims = await worker.claim(TYPE, dict.fromkeys(tasks, 1))
        await worker.settle_all([Settlement(claim.id, claim.version, succeeded({"id": 7})) for claim in claims])
    updates, in_place = await updates_of_tasks(scene, 1000)
    assert updates == 1000  # one for each
    assert in_place / updates > 0.85


async def updates_of_tasks(scene: Scene, expected: int) -> tuple[int, int]:
    """Updates of tasks since the database was made, and how many of them wrote no index."""
    await scene.database.close()  # a connection reports what it did at the latest when it ends
    async with asyncio.timeout(10):
        while True:
            (row,) = await scene.sql(
                "SELECT sum(n_tup_upd)::integer AS updates, sum(n_tup_hot_upd)::integer AS in_place"
                " FROM pg_stat_user_tables WHERE relname LIKE 'tasks_%'"
            )
            if row["updates"] >= expected:
                return row["updates"], row["in_place"]


@pytest.mark.parametrize("fixed", [True, False])
async def test_a_worker_plans_its_claims_and_settlements_once(fixed: bool, own_scene: Scene) -> None:
    if own_scene.settings.pooler:
        pytest.skip("no plan is kept behind a pooler")
    database = Database(own_scene.settings, pool_size=1, fixed_plans=fixed)
    await database.open()
    worker = await own_scene.worker()
    claims = Claims(database, worker.worker, worker.source)
    for task in await own_scene.accepted(9):
        (claim,) = await claims.claim(TYPE, {task: 1})
        assert (await claims.settle_all([Settlement(claim.id, claim.version, succeeded(None))]))[0].written
    shown = Statement("shown", "SELECT statement, generic_plans, custom_plans FROM pg_prepared_statements", ())
    kept = {row["statement"]: (row["generic_plans"], row["custom_plans"]) for row in await database.fetch(shown)}
    await database.close()
    for name in ("claim", "settle"):
        generic, custom = kept[SQL[name].text]
        assert generic + custom == 9
        assert (custom == 0) == fixed
