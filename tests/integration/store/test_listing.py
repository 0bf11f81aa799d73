"""Lists of tasks from the tables that know them."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Sequence
from datetime import UTC, datetime, timedelta
from uuid import UUID

import pytest
import pytest_asyncio

from taskflux.store import tasks as listing
from taskflux.store.claims import Settlement
from taskflux.store.database import Database
from taskflux.store.migrate import migrate
from taskflux.store.publishing import Confirmation, Publishing
from taskflux.store.tasks import Resolution, SearchTooLong, TaskFilter, Tasks, TaskTypes
from taskflux.store.upkeep import Upkeep
from taskflux.tasks.model import TaskType
from taskflux.tasks.states import State
from tests.conftest import NewDatabase
from tests.integration.store.rows import DIED, DONE, HELD, end, old_tasks, sql, submit, worker

LOG = UUID(int=7)


async def listed(database: Database, wanted: TaskFilter, limit: int = 50) -> list[UUID]:
    """All pages of a list."""
    found: list[UUID] = []
    after: UUID | None = None
    while True:
        page = await Tasks(database).page("default", wanted, limit, after)
        assert len(page.rows) <= limit
        found += [row["id"] for row in page.rows]
        if page.after is None:
            return found
        assert after is None or page.after < after
        after = page.after


def newest_first(tasks: Sequence[UUID]) -> list[UUID]:
    return sorted(tasks, reverse=True)


async def one_of_each_state(database: Database) -> dict[State, list[UUID]]:
    tasks = {state: await submit(database, 3) for state in State}
    queued = tasks[State.QUEUED]
    await Publishing(database, 10.0).confirm([Confirmation(task, 1, LOG, 0, n) for n, task in enumerate(queued)])
    await (await worker(database)).claim("simulated", dict.fromkeys(tasks[State.RUNNING], 1))
    await end(database, tasks[State.SUCCEEDED], DONE)
    await end(database, tasks[State.DEAD], DIED)
    await end(database, tasks[State.UNCERTAIN], HELD)
    for task in tasks[State.CANCELLED]:
        assert await Tasks(database).cancel(task, "default")
    return tasks


async def test_every_state_is_found_by_its_name_newest_first(database: Database) -> None:
    tasks = await one_of_each_state(database)
    for state, ids in tasks.items():
        for limit in (1, 2, 50):
            assert await listed(database, TaskFilter(state), limit) == newest_first(ids), state
    everything = [task for ids in tasks.values() for task in ids]
    assert await listed(database, TaskFilter(), 4) == newest_first(everything)


async def test_another_tenant_sees_no_task(database: Database) -> None:
    await one_of_each_state(database)
    await submit(database, key="k")
    for wanted in (TaskFilter(), TaskFilter(key="k"), *(TaskFilter(state) for state in State)):
        page = await Tasks(database).page("another", wanted, 50)
        assert (page.rows, page.after) == ([], None)


async def test_a_list_goes_on_where_a_page_ended_though_tasks_are_added(database: Database) -> None:
    first = await submit(database, 5)
    page = await Tasks(database).page("default", TaskFilter(), 3)
    await submit(database, 5)
    rest = await Tasks(database).page("default", TaskFilter(), 3, page.after)
    assert [row["id"] for row in (*page.rows, *rest.rows)] == newest_first(first)


async def test_filters_narrow_each_other(database: Database) -> None:
    mail = await submit(database, 2, type="email", key="customer-7", metadata='{"order":17,"by":"Ann"}')
    await submit(database, 2, type="email", key="customer-8", metadata='{"order":18,"by":"Ann"}')
    texts = await submit(database, 2, key="customer-7", metadata='{"order":17}')
    assert await listed(database, TaskFilter(type="email", key="customer-7")) == newest_first(mail)
    assert await listed(database, TaskFilter(key="customer-7"), 1) == newest_first(mail + texts)
    assert await listed(database, TaskFilter(State.SCHEDULED, type="email", key="customer-7")) == newest_first(mail)
    assert await listed(database, TaskFilter(State.DEAD, key="customer-7")) == []
    assert await listed(database, TaskFilter(metadata={"order": "17", "by": "Ann"})) == newest_first(mail)
    assert await listed(database, TaskFilter(State.SCHEDULED, metadata={"order": "17"})) == newest_first(mail + texts)


@pytest.mark.parametrize(
    ("metadata", "name", "value", "found"),
    [
        ({"a": 1}, "a", "1", True),
        ({"a": 17}, "a", "1", False),
        ({"a": "1"}, "a", "1", True),
        ({"a": True}, "a", "true", True),
        ({"a": None}, "a", "null", True),
        ({"a": None}, "a", "None", False),
        ({"a": 1.5}, "a", "1.5", True),
        ({"a": {"b": "x"}}, "b", "x", False),
        ({"a": ["x"]}, "a", "x", False),
        ({"x": '"a":"x"'}, "a", "x", False),
        ({"ä\u0000": "\ud800 |%_"}, "ä\u0000", "\ud800 |%_", True),
        ({"a": ""}, "a", "", True),
        ({}, "a", "", False),
        (None, "a", "", False),
    ],
)
async def test_metadata_is_compared_by_its_own_members(
    metadata: object, name: str, value: str, found: bool, database: Database
) -> None:
    text = None if metadata is None else json.dumps(metadata, separators=(",", ":"))
    [task] = await submit(database, metadata=text)
    assert await listed(database, TaskFilter(metadata={name: value})) == [task] * found


async def test_a_list_by_time_is_exact_though_ids_are_older_than_their_rows(database: Database) -> None:
    tasks = [(await submit(database))[0] for _ in range(4)]
    rows = await sql(database, "SELECT id, created_at FROM tasks ORDER BY id")
    assert [row["id"] for row in rows] == tasks
    times = [row["created_at"] for row in rows]
    assert await listed(database, TaskFilter(created_from=times[1], created_before=times[3])) == [tasks[2], tasks[1]]
    assert await listed(database, TaskFilter(State.SCHEDULED, created_from=times[2])) == [tasks[3], tasks[2]]
    assert await listed(database, TaskFilter(created_before=times[0])) == []
    always = TaskFilter(created_from=datetime.min.replace(tzinfo=UTC), created_before=datetime.max.replace(tzinfo=UTC))
    assert await listed(database, always) == newest_first(tasks)


@pytest.fixture
def short_looks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Statements that read a few rows only."""
    monkeypatch.setattr(listing, "LOOK", 10)
    monkeypatch.setattr(listing, "LOOK_CLOSELY", 4)
    monkeypatch.setattr(listing, "FEW", 3)


@pytest.mark.usefixtures("short_looks")
async def test_no_page_is_empty_while_rows_follow(database: Database) -> None:
    tasks = [
        (await submit(database, type="email", key="k", metadata='{"a":1}'))[0]
        for others in (0, 25, 7)
        if await submit(database, others, key="k") or not others
    ]
    queued = [await submit(database, 5, type=type) for type in ("email", "simulated")]
    confirmations = [Confirmation(task, 1, LOG, 0, n) for n, task in enumerate(queued[0] + queued[1])]
    await Publishing(database, 10.0).confirm(confirmations)
    all_of_type = newest_first(tasks + queued[0])
    for state, expected in ((None, all_of_type), (State.SCHEDULED, newest_first(tasks)), (State.QUEUED, queued[0])):
        for limit in (1, 2, 50):
            assert await listed(database, TaskFilter(state, type="email"), limit) == newest_first(expected)
    for state in (None, State.SCHEDULED):
        for limit in (1, 2, 50):
            for each in (TaskFilter(state, metadata={"a": "1"}), TaskFilter(state, type="email", key="k")):
                assert await listed(database, each, limit) == newest_first(tasks)
    succeeded = [(await submit(database))[0] for _ in range(2)]
    await end(database, succeeded, DONE)
    await submit(database, 35)
    assert await listed(database, TaskFilter(State.SUCCEEDED), 1) == newest_first(succeeded)
    assert await listed(database, TaskFilter(State.SUCCEEDED, type="simulated"), 1) == newest_first(succeeded)


@pytest.mark.usefixtures("short_looks")
async def test_a_search_without_an_index_ends_in_time(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listing, "SEARCH", 0.0)
    (wanted,) = await submit(database, metadata='{"a":1}')
    assert (await Tasks(database).page("default", TaskFilter(metadata={"a": "1"}), 50)).after is None
    await submit(database, 25, type="email", key="k")
    with pytest.raises(SearchTooLong) as raised:
        await Tasks(database).page("default", TaskFilter(metadata={"a": "1"}), 50)
    assert set(raised.value.not_indexed) == {"a"}
    assert abs(raised.value.since - datetime.now(UTC)) < timedelta(minutes=5)
    with pytest.raises(SearchTooLong) as raised:
        await Tasks(database).page("default", TaskFilter(type="sms", key="k"), 50)
    assert not raised.value.not_indexed
    page = await Tasks(database).page("default", TaskFilter(type="simulated"), 50)  # by the index of types
    assert [row["id"] for row in page.rows] == [wanted]


@pytest_asyncio.fixture
async def declared(new_database: NewDatabase) -> AsyncIterator[Database]:
    """A database with indexes for the keys `a` and `order`."""
    settings = (await new_database()).model_copy(update={"metadata_keys": "a, order"})
    await migrate(settings)
    database = Database(settings, pool_size=8)
    await database.open()
    yield database
    await database.close()


@pytest.mark.parametrize(
    ("metadata", "value", "found"),
    [
        ({"a": 1}, "1", True),
        ({"a": 17}, "1", False),
        ({"a": "1"}, "1", True),
        ({"a": True}, "true", True),
        ({"a": None}, "null", True),
        ({"a": 1.5}, "1.5", True),
        ({"a": {"a": "x"}}, "x", False),
        ({"b": {"a": "x"}, "a": "y"}, "y", True),
        ({"b": '"a":"x"'}, "x", False),
        ({"ä\u0000": "\ud800", "a": "\ud800 |%_ \\u00e9 \U0001f600 é/\\"}, "\ud800 |%_ \\u00e9 \U0001f600 é/\\", True),
        ({"a": "x" * 100_000}, "x" * 1000, False),
        ({"a": ""}, "", True),
        (None, "", False),
    ],
)
@pytest.mark.usefixtures("short_looks")
async def test_metadata_of_a_declared_key_is_found_by_its_index(
    metadata: object, value: str, found: bool, declared: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listing, "SEARCH", 0.0)
    text = None if metadata is None else json.dumps(metadata, separators=(",", ":"))
    tasks = await submit(declared, 6, metadata=text)
    await submit(declared, 40, metadata='{"a":"another"}')
    expected = newest_first(tasks) if found else []
    assert await listed(declared, TaskFilter(metadata={"a": value}), 5) == expected
    assert await listed(declared, TaskFilter(State.SCHEDULED, "simulated", metadata={"a": value}), 5) == expected
    assert await listed(declared, TaskFilter(metadata={"a": value, "order": "1"})) == []


async def test_metadata_that_is_no_json_can_be_stored_though_a_key_is_declared(declared: Database) -> None:
    (task,) = await submit(declared, metadata='{"a":NaN')
    assert await listed(declared, TaskFilter()) == [task]


async def test_tasks_that_have_ended_are_found_among_and_behind_many_that_wait(database: Database) -> None:
    """The outbox is passed in blocks of 5,000."""
    behind = await submit(database, 2)
    await end(database, behind, DONE)
    await sql(database, WAITING, 11_000)
    assert await listed(database, TaskFilter(State.SUCCEEDED)) == newest_first(behind)
    among = [row["id"] for row in await sql(database, "SELECT id FROM tasks ORDER BY id OFFSET 3000 LIMIT 2")]
    await sql(database, "UPDATE tasks SET state = 'succeeded' WHERE id = ANY($1)", among)
    await sql(database, "DELETE FROM due WHERE task_id = ANY($1)", among)
    await sql(database, "UPDATE tasks SET state = 'dead' WHERE id = (SELECT id FROM tasks ORDER BY id DESC LIMIT 1)")
    for limit in (1, 50):
        found = await listed(database, TaskFilter(State.SUCCEEDED), limit)
        assert found == newest_first(among + behind)
        assert await listed(database, TaskFilter(State.SUCCEEDED, "simulated"), limit) == found


WAITING = """
WITH made AS (
    INSERT INTO tasks (id, type, payload, max_attempts) SELECT uuidv7(), 'simulated', '{}', 8
    FROM generate_series(1, $1::integer) RETURNING id, type
)
INSERT INTO due (task_id, type, version, publish_at) SELECT id, type, 1, never() FROM made
"""


async def test_a_task_that_no_longer_waits_is_not_listed_though_due_still_has_its_row(database: Database) -> None:
    tasks = await submit(database, 3)
    [row] = await sql(database, "SELECT * FROM due WHERE task_id = $1", tasks[1])
    await Tasks(database).cancel(tasks[1], "default")
    await sql(database, "INSERT INTO due SELECT ($1::due).*", row)  # one that a cancel did not see
    assert len(await sql(database, "SELECT FROM due")) == 3
    assert await listed(database, TaskFilter(State.SCHEDULED), 1) == [tasks[2], tasks[0]]


async def parked(database: Database) -> dict[UUID, str]:
    return {row["task_id"]: row["state"] for row in await sql(database, "SELECT task_id, state FROM parked")}


async def test_the_list_of_held_and_dead_tasks_follows_every_transition(database: Database) -> None:
    await TaskTypes(database).register(TaskType("simulated", "{}", 8, "hold", None))
    [swept] = await submit(database)
    claims = await worker(database)
    [claim] = await claims.claim("simulated", {swept: 1})
    await claims.end()
    await Upkeep(database).sweep(10, 100.0)
    assert await parked(database) == {swept: "uncertain"}
    await claims.settle_all([Settlement(swept, claim.version, DONE)])  # late, and better known than guessed
    assert await parked(database) == {}
    [expiring] = await submit(database)
    await sql(database, "UPDATE due SET expires_at = now() WHERE task_id = $1", expiring)
    await Publishing(database, 10.0).expire(10)
    assert await parked(database) == {expiring: "dead"}
    [held] = await submit(database)
    await end(database, [held], HELD)
    await Tasks(database).resolve(held, "default", Resolution.DEAD)
    assert await parked(database) == {expiring: "dead", held: "dead"}


async def test_a_page_of_a_day_long_ago_is_found_by_its_ids(database: Database) -> None:
    old = await old_tasks(database, "succeeded", timedelta(days=40), 3)
    await submit(database, 3)
    [[now]] = await sql(database, "SELECT now()")
    day = TaskFilter(created_from=now - timedelta(days=41), created_before=now - timedelta(days=39))
    assert await listed(database, day) == newest_first(old)
