"""Retention: what is deleted, what stays, and that no live task is lost while everything runs."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from uuid import UUID

import pytest
from uuid_utils.compat import uuid7

from taskflux.store.claims import Settlement
from taskflux.store.database import Database
from taskflux.store.dead_letters import DeadLetter, DeadLetters
from taskflux.store.errors import StoreError
from taskflux.store.retention import Ages, Range, Retention, old_ranges
from taskflux.store.tasks import FIRST_ID, Tasks
from taskflux.store.upkeep import Upkeep
from taskflux.tasks.model import IdempotencyKey
from taskflux.upkeep import pruner
from taskflux.upkeep.pruner import Pruned, Pruner, PruneRefused, check_ages
from tests.integration.store.rows import DONE, end, old_tasks, sql, state_of, submission, submit, worker
from tests.integration.store.scene import Scene

DAY = timedelta(days=1)
MONTH = Ages(30 * DAY, 90 * DAY, 30 * DAY, 90 * DAY)


async def prune(database: Database, ages: Ages = MONTH, *, dry_run: bool = False) -> Pruned:
    return await Pruner(Retention(database), Upkeep(database)).run(ages, dry_run=dry_run)


async def names(database: Database) -> list[str]:
    return [each.partition or "" for each in await Retention(database).partitions()]


async def every_task(database: Database) -> set[UUID]:
    return {row["id"] for row in await sql(database, "SELECT id FROM tasks")}


async def moved(database: Database) -> set[UUID]:
    return {row["id"] for row in await sql(database, "SELECT id FROM ONLY tasks_default")}


async def test_a_partition_whose_tasks_are_all_past_their_age_is_dropped(database: Database) -> None:
    before = await names(database)
    await old_tasks(database, "succeeded", 60 * DAY, 5)
    await old_tasks(database, "cancelled", 60 * DAY, 2)
    young = await submit(database, 3)
    pruned = await prune(database)
    assert (pruned.tasks, len(pruned.partitions), pruned.moved) == ({"succeeded": 5, "cancelled": 2}, 1, 0)
    assert await names(database) == before
    assert await every_task(database) == set(young)
    assert await sql(database, "SELECT FROM parked") == []


async def test_few_remaining_tasks_are_moved_and_live_on(database: Database) -> None:
    await old_tasks(database, "succeeded", 60 * DAY, 20)
    kept = await old_tasks(database, "dead", 60 * DAY, 2)  # not yet past its own age
    kept += await old_tasks(database, "uncertain", 60 * DAY, 1)
    [waiting] = await old_tasks(database, "scheduled", 60 * DAY, 1)
    await sql(database, "INSERT INTO due VALUES ($1, false, 'simulated', 1, now(), NULL)", waiting)
    pruned = await prune(database)
    assert (pruned.tasks, pruned.moved, len(pruned.partitions)) == ({"succeeded": 20}, 4, 1)
    assert await moved(database) == {*kept, waiting}
    await end(database, [waiting], DONE)
    assert await state_of(database, waiting) == "succeeded"
    assert {row["task_id"] for row in await sql(database, "SELECT task_id FROM parked")} == set(kept)
    # Once they are past their age too, they go row by row; and a task of that time can still come.
    await sql(database, "UPDATE tasks SET state = 'succeeded', updated_at = now() - interval '31 days'")
    late = UUID(int=kept[0].int ^ (1 << 20))
    await sql(database, "INSERT INTO tasks (id, type, payload, max_attempts) VALUES ($1, 'x', '1', 1)", late)
    pruned = await prune(database)
    assert pruned.tasks == {"succeeded": 4}
    assert await every_task(database) == {late}


async def test_if_most_tasks_stay_rows_are_deleted_instead(database: Database) -> None:
    await old_tasks(database, "succeeded", 60 * DAY, 3)
    kept = await old_tasks(database, "dead", 60 * DAY, 5)
    before = await names(database)
    pruned = await prune(database)
    assert (pruned.tasks, pruned.partitions, pruned.moved) == ({"succeeded": 3}, [], 0)
    assert await names(database) == before
    assert await every_task(database) == set(kept)
    assert await sql(database, "SELECT FROM pg_trigger WHERE tgname LIKE 'guard%'") == []


async def test_too_many_remaining_tasks_are_not_moved(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pruner, "MOST_MOVED", 2)
    monkeypatch.setattr(pruner, "DELETE", 4)
    await old_tasks(database, "succeeded", 60 * DAY, 30)
    kept = await old_tasks(database, "dead", 60 * DAY, 3)
    pruned = await prune(database)
    assert (pruned.tasks, pruned.partitions) == ({"succeeded": 30}, [])
    assert await every_task(database) == set(kept)


async def test_a_partition_is_dropped_only_when_its_whole_week_is_past(database: Database) -> None:
    young = await old_tasks(database, "succeeded", 29 * DAY, 2)
    [[edge]] = await sql(database, "SELECT date_trunc('week', now() - interval '30 days', 'UTC') + interval '1 minute'")
    [[age]] = await sql(database, "SELECT now() - $1::timestamptz", edge)
    straddling = await old_tasks(database, "succeeded", age, 2)
    assert (await prune(database)).tasks == {}
    assert await every_task(database) == {*young, *straddling}


async def test_tasks_without_an_age_are_kept_for_ever(database: Database) -> None:
    dead = await old_tasks(database, "dead", 900 * DAY, 2)
    done = await old_tasks(database, "succeeded", 900 * DAY, 3)
    assert (await prune(database, Ages(dead_letters=30 * DAY))).tasks == {}
    assert (await prune(database, Ages(succeeded=30 * DAY))).tasks == {"succeeded": 3}
    assert await every_task(database) == set(dead)
    assert not set(done) & await every_task(database)


async def test_a_dry_run_says_the_same_and_changes_nothing(database: Database) -> None:
    await old_tasks(database, "succeeded", 60 * DAY, 20)
    await old_tasks(database, "dead", 60 * DAY, 2)
    await old_tasks(database, "cancelled", 80 * DAY, 2)
    before = await every_task(database)
    foreseen = await prune(database, dry_run=True)
    assert await every_task(database) == before
    assert await prune(database) == foreseen


async def test_a_dead_task_stays_until_its_dead_letter_is_published(database: Database) -> None:
    [owed, done] = await old_tasks(database, "dead", 120 * DAY, 2)
    await sql(database, "INSERT INTO due VALUES ($1, true, 'simulated', 1, now(), NULL)", owed)
    assert (await prune(database)).tasks == {"dead": 1}
    assert await every_task(database) == {owed}
    assert done != owed


async def test_a_replayed_task_is_kept_by_its_new_time(database: Database) -> None:
    [task] = await old_tasks(database, "succeeded", 120 * DAY, 1)
    await sql(database, "UPDATE tasks SET updated_at = now() - interval '2 days'")
    await prune(database)
    assert await every_task(database) == {task}


async def letter(database: Database, age: timedelta) -> UUID:
    new = DeadLetter(uuid7(), f"record:{uuid7()}", "Malformed", "not JSON", {"topic": "t"})
    await DeadLetters(database).add([new])
    await sql(database, "UPDATE dead_letters SET created_at = now() - $2::interval WHERE id = $1", new.id, age)
    return new.id


async def test_dead_letters_are_deleted_by_their_age_with_their_replays(database: Database) -> None:
    old, young = await letter(database, 91 * DAY), await letter(database, 89 * DAY)
    for each in (old, young):
        insert = "INSERT INTO dead_letter_replays (letter_id, task_id, replay, edited) VALUES ($1, $1, 1, false)"
        await sql(database, insert, each)
    assert (await prune(database, dry_run=True)).dead_letters == 1
    assert (await prune(database)).dead_letters == 1
    assert [row["id"] for row in await sql(database, "SELECT id FROM dead_letters")] == [young]
    assert [row["letter_id"] for row in await sql(database, "SELECT letter_id FROM dead_letter_replays")] == [young]


async def test_records_that_suppress_repeats_outlive_every_task_and_are_then_deleted(database: Database) -> None:
    for days in (89, 91):
        name, then = f"id-{days}", timedelta(days=days)
        foreign = "INSERT INTO foreign_tasks VALUES ($1, $2, '', now() - $3::interval)"
        await sql(database, foreign, name, uuid7(), then)
        sent = "INSERT INTO notifications (id, state, attempt, created_at, updated_at)"
        await sql(database, f"{sent} SELECT $1, 'sent', 1, t, t FROM (SELECT now() - $2::interval AS t) x", name, then)
    await prune(database)
    assert [row["identity"] for row in await sql(database, "SELECT identity FROM foreign_tasks")] == ["id-89"]
    assert [row["id"] for row in await sql(database, "SELECT id FROM notifications")] == ["id-89"]


async def test_an_idempotency_key_answers_until_it_expires_though_its_task_was_deleted(database: Database) -> None:
    key = IdempotencyKey("order-17", b"digest", 86400.0 * 365)
    [task] = await submit(database, idempotency=key)
    [[moment]] = await sql(database, "SELECT now() - interval '60 days'")
    await sql(database, "SELECT create_task_partition($1)", moment)
    old = UUID(int=(int(moment.timestamp() * 1000) << 80) + task.int % (1 << 60))
    await sql(
        database,
        "UPDATE tasks SET id = $2, state = 'succeeded', updated_at = now() - interval '60 days' WHERE id = $1",
        task,
        old,
    )
    assert (await prune(database)).tasks == {"succeeded": 1}
    [again] = await Tasks(database).insert([submission(idempotency=key)], 10.0)
    assert again.repeated  # type: ignore[union-attr]
    assert await every_task(database) == set()


async def test_one_prune_at_a_time(database: Database) -> None:
    assert await Upkeep(database).lead(pruner.NAME, uuid7(), 60.0, None)
    with pytest.raises(PruneRefused, match="another prune"):
        await prune(database)


async def test_a_prune_that_was_interrupted_is_continued(database: Database) -> None:
    await old_tasks(database, "succeeded", 60 * DAY, 20)
    [kept] = await old_tasks(database, "dead", 60 * DAY, 1)
    retention = Retention(database)
    [partition, *_] = [each.partition for each in await retention.partitions()]
    void = await retention.guard(partition or "")
    await sql(database, "UPDATE tasks SET updated_at = updated_at WHERE id = $1", kept)
    assert (await prune(database)).moved == 1
    assert await every_task(database) == {kept}
    assert await sql(database, "SELECT FROM touched_tasks") == []
    assert void.startswith("guard_")


async def test_without_its_guard_a_partition_is_not_dropped(database: Database) -> None:
    tasks = await old_tasks(database, "succeeded", 60 * DAY, 2)
    retention = Retention(database)
    [partition, *_] = [each.partition or "" for each in await retention.partitions()]
    first = await retention.guard(partition)
    await retention.guard(partition)
    with pytest.raises(StoreError, match="is not guarded by"):
        await retention.drop(partition, first, [])
    assert await every_task(database) == set(tasks)


async def test_changes_while_a_partition_is_read_are_not_lost(database: Database) -> None:
    await old_tasks(database, "succeeded", 60 * DAY, 50)
    dead = await old_tasks(database, "dead", 120 * DAY, 3)
    dead += await old_tasks(database, "dead", 60 * DAY, 3)
    retention = Retention(database)
    partition = next(each.partition or "" for each in await retention.partitions() if each.below > dead[3])
    guard = await retention.guard(partition)
    cuts, _ = await retention.cuts(Ages(30 * DAY, 30 * DAY, 30 * DAY))
    seen = await retention.look(FIRST_ID, UUID(int=(1 << 128) - 1), 1000, cuts)
    assert seen.staying == []
    # A person replays one, and another task comes with an id of that time: its maker's clock is far behind.
    await sql(database, "UPDATE tasks SET state = 'scheduled', version = version + 1 WHERE id = $1", dead[3])
    late = UUID(int=dead[3].int ^ (1 << 20))
    await sql(database, "INSERT INTO tasks (id, type, payload, max_attempts) VALUES ($1, 'x', '1', 1)", late)
    assert await retention.drop(partition, guard, seen.staying) == 2
    assert await every_task(database) == {*dead[:3], dead[3], late}


async def test_a_partition_that_is_in_use_is_left_for_the_next_time(
    own_scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    database, reader = own_scene.database, own_scene.direct
    monkeypatch.setattr(pruner, "PAUSE", 0.0)
    monkeypatch.setattr(pruner, "TRIES", 2)
    await old_tasks(database, "succeeded", 60 * DAY, 2)
    async with reader.transaction():
        await reader.fetch("SELECT FROM tasks")  # a backup holds such a lock for hours
        pruned = await prune(database)
        [trouble] = pruned.trouble
        assert "could not be locked" in trouble
        assert pruned.tasks == {}
    assert (await prune(database)).tasks == {"succeeded": 2}


async def test_no_task_is_lost_or_stuck_while_workers_and_replays_go_on(database: Database) -> None:
    """Old tasks are replayed, claimed and settled while their partitions are dropped under them."""
    busy: list[UUID] = []
    for days in (60, 70, 80):
        await old_tasks(database, "succeeded", days * DAY, 200)
        busy += await old_tasks(database, "dead", days * DAY, 20)
    stop = asyncio.Event()
    rounds = asyncio.Semaphore(0)

    async def keep_working() -> None:
        claims = await worker(database)
        replay = (
            "UPDATE tasks SET state = 'scheduled', version = version + 1, attempts = 0, updated_at = now()"
            " WHERE id = ANY($1) AND state IN ('dead', 'succeeded') RETURNING id, version"
        )
        while not stop.is_set():
            rows = await sql(database, replay, busy)
            assert len(rows) == len(busy)
            held = await claims.claim("simulated", {row["id"]: row["version"] for row in rows})
            assert len(held) == len(busy)
            settled = await claims.settle_all([Settlement(claim.id, claim.version, DONE) for claim in held])
            assert all(each.written for each in settled)
            rounds.release()

    async with asyncio.TaskGroup() as group:
        group.create_task(keep_working())
        await rounds.acquire()
        pruned = await prune(database, Ages(30 * DAY, 30 * DAY, 30 * DAY))
        while not rounds.locked():
            await rounds.acquire()
        await rounds.acquire()
        await rounds.acquire()
        stop.set()
    assert (len(pruned.partitions), pruned.moved, pruned.trouble) == (3, len(busy), [])
    assert await every_task(database) == set(busy)
    assert await moved(database) == set(busy)


def test_gaps_between_partitions_are_pruned_row_by_row() -> None:
    ids = [UUID(int=n) for n in range(60)]
    partitions = [Range("a", ids[10], ids[20]), Range("b", ids[20], ids[30]), Range("c", ids[40], ids[50])]
    assert list(old_ranges(partitions, ids[45])) == [
        *partitions[:2],
        Range(None, ids[0], ids[10]),
        Range(None, ids[30], ids[40]),
    ]
    assert list(old_ranges(partitions, ids[35])) == [
        *partitions[:2],
        Range(None, ids[0], ids[10]),
        Range(None, ids[30], ids[35]),
    ]
    assert list(old_ranges([], ids[35])) == []


@pytest.mark.parametrize(
    ("ages", "sentence"),
    [
        (Ages(), "say what to delete"),
        (Ages(succeeded=30 * DAY, dead=3 * DAY), "72 hours is below the topics' retention"),
        (Ages(dead_letters=timedelta(seconds=30)), "TASKFLUX_KAFKA__RETENTION_HOURS, 96 hours"),
    ],
)
def test_ages_below_the_topics_retention_are_refused(ages: Ages, sentence: str) -> None:
    with pytest.raises(PruneRefused, match=sentence):
        check_ages(ages, 96.0)


def test_ages_above_the_topics_retention_are_taken() -> None:
    check_ages(Ages(succeeded=4 * DAY), 96.0)
