from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from uuid import UUID

import pytest

from taskflux.store.database import Database
from taskflux.store.publishing import Confirmation, Publishing
from taskflux.tasks.decision import Decision, release
from taskflux.tasks.states import Event, State
from tests.integration.store.scene import GRACE, LOG, TYPE, Scene, submission

DEAD = Decision(Event.DIED, State.DEAD, error_class="Permanent", reason="never")
SOON = datetime.now(UTC) + timedelta(hours=1)


# Confirmations ------------------------------------------------------------------------------------------------------


async def test_a_confirmed_task_is_queued_at_its_place_and_no_longer_due(scene: Scene) -> None:
    (task,) = await scene.accepted()
    before = await scene.wide(task)
    await scene.publishing.confirm([Confirmation(task, 1, LOG, 3, 4_000_000_000)])
    assert await scene.state(task) == ("queued", 1)
    assert await scene.events(task) == ["accepted", "published"]
    row = await scene.due(task)
    assert row is not None
    assert (row["published_log"], row["published_partition"], row["published_offset"]) == (LOG, 3, 4_000_000_000)
    assert await scene.publishing.next_due(60.0) == {}
    assert await scene.publishing.take(TYPE, 10) == []
    assert await scene.wide(task) == before


async def test_a_confirmation_overtaken_by_its_claim_leaves_nothing_behind(scene: Scene) -> None:
    (task,) = await scene.accepted()
    worker = await scene.worker()
    await worker.claim(TYPE, {task: 1})
    await scene.confirm([task])
    assert await scene.state(task) == ("running", 2)
    assert await scene.due(task) is None


async def test_a_late_confirmation_of_an_older_publish_does_not_end_the_newer_one(scene: Scene) -> None:
    (task,) = await scene.accepted()
    await scene.make_due(task)
    await scene.publishing.take(TYPE, 10)
    await scene.confirm([task], version=1)
    due = await scene.due(task)
    assert due is not None
    assert due["version"] == 2
    assert await scene.state(task) == ("scheduled", 2)


async def test_a_late_confirmation_does_not_end_the_retry_that_followed_its_claim(scene: Scene) -> None:
    (task,) = await scene.accepted()
    worker = await scene.worker()
    (claim,) = await worker.claim(TYPE, {task: 1})
    await scene.settle(worker, claim, release("drain"))
    await scene.confirm([task], version=1)
    due = await scene.due(task)
    assert due is not None
    assert due["version"] == 2


async def test_the_same_confirmation_twice_changes_nothing_the_second_time(scene: Scene) -> None:
    (task,) = await scene.accepted()
    await scene.confirm([task])
    before = await scene.row(task)
    await scene.confirm([task])
    assert await scene.row(task) == before


async def test_of_two_publishes_of_one_task_in_a_batch_the_newer_counts(scene: Scene) -> None:
    (task,) = await scene.accepted()
    await scene.make_due(task)
    await scene.publishing.take(TYPE, 10)
    await scene.publishing.confirm([Confirmation(task, 2, LOG, 0, 9), Confirmation(task, 1, LOG, 0, 5)])
    row = await scene.due(task)
    assert row is not None
    assert row["published_offset"] == 9


async def test_a_confirmation_alone_does_not_wait_for_the_disk(scene: Scene) -> None:
    await scene.sql("CREATE TABLE commits (operation text, how text)")
    await scene.sql(
        "CREATE FUNCTION note_commit() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN INSERT INTO commits"
        " VALUES (lower(TG_OP) || ' ' || TG_TABLE_NAME, current_setting('synchronous_commit')); RETURN NULL; END $$"
    )
    for table in ("due", "claims"):
        await scene.sql(
            f"CREATE CONSTRAINT TRIGGER note AFTER INSERT OR UPDATE OR DELETE ON {table} DEFERRABLE INITIALLY DEFERRED"
            " FOR EACH ROW EXECUTE FUNCTION note_commit()"
        )
    (task,) = await scene.accepted()
    await scene.confirm([task])
    claims = await scene.worker()
    assert len(await claims.claim(TYPE, {task: 1})) == 1
    noted = {(row["operation"], row["how"]) for row in await scene.sql("SELECT * FROM commits")}
    assert noted == {("insert due", "on"), ("update due", "off"), ("delete due", "on"), ("insert claims", "on")}


async def test_no_confirmations_run_no_statement(scene: Scene) -> None:
    await Publishing(Database(scene.settings), grace=0.0).confirm([])  # which is not open


# Pending publishes ----------------------------------------------------------------------------------------------------


async def test_a_taken_task_is_left_to_its_publisher_for_the_grace(scene: Scene) -> None:
    (task,) = await scene.accepted(key="k", traceparent="00-x")
    await scene.make_due(task)
    (taken,) = await scene.publishing.take(TYPE, 10)
    assert (taken.id, taken.type, taken.version, taken.key, taken.traceparent) == (task, TYPE, 2, "k", "00-x")
    due = await scene.due(task)
    assert due is not None
    assert due["version"] == 2
    assert due["wait"] == pytest.approx(GRACE, abs=3)
    assert await scene.publishing.take(TYPE, 10) == []


async def test_a_task_whose_publish_was_promised_is_left_alone(scene: Scene) -> None:
    await scene.accepted(grace=GRACE)
    assert await scene.publishing.take(TYPE, 10) == []


async def test_a_task_whose_publish_was_not_promised_is_due_at_once(scene: Scene) -> None:
    (task,) = await scene.accepted(grace=0.0)
    assert [taken.id for taken in await scene.publishing.take(TYPE, 10)] == [task]


async def test_a_task_scheduled_for_later_is_due_then(scene: Scene) -> None:
    (delayed,) = await scene.accepted(delay=100.0)
    (at,) = await scene.accepted(schedule_at=datetime.now(UTC) + timedelta(hours=1))
    assert await scene.publishing.take(TYPE, 10) == []
    waits = [due["wait"] for due in [await scene.due(delayed), await scene.due(at)] if due]
    assert waits == [pytest.approx(100, abs=5), pytest.approx(3600, abs=60)]


async def test_the_task_that_has_waited_longest_is_taken_first(scene: Scene) -> None:
    tasks = await scene.accepted(5)
    for place, task in enumerate(reversed(tasks)):
        await scene.sql(
            "UPDATE due SET publish_at = now() - $2 * interval '1 second' WHERE task_id = $1", task, place + 1
        )
    assert [taken.id for taken in await scene.publishing.take(TYPE, 1)] == [tasks[0]]


async def test_two_relays_at_once_never_take_the_same_task(scene: Scene) -> None:
    tasks = await scene.accepted(300)
    await scene.make_due(*tasks)
    taken: list[tuple[object, int]] = []

    async def relay() -> None:
        while found := await scene.publishing.take(TYPE, 37):
            taken.extend((each.id, each.version) for each in found)

    await asyncio.gather(*(relay() for _ in range(4)))
    assert len(taken) == len(set(taken)) == 300
    assert {version for _, version in taken} == {2}


async def test_a_locked_task_is_left_for_the_next_round(scene: Scene) -> None:
    busy, free = await scene.accepted(2)
    await scene.make_due(busy, free)
    async with scene.direct.transaction():
        await scene.sql("SELECT FROM tasks WHERE id = $1 FOR UPDATE", busy)
        assert [taken.id for taken in await scene.publishing.take(TYPE, 10)] == [free]
    assert [taken.id for taken in await scene.publishing.take(TYPE, 10)] == [busy]


async def test_the_outbox_row_of_a_task_that_changed_is_dropped(scene: Scene) -> None:
    tasks = await scene.accepted(3)
    worker = await scene.worker()
    await worker.claim(TYPE, {tasks[0]: 1, tasks[1]: 1})
    await scene.make_due(*tasks)
    assert [taken.id for taken in await scene.publishing.take(TYPE, 10)] == [tasks[2]]
    assert await scene.due(tasks[0]) is None
    assert await scene.due(tasks[1]) is None


async def test_a_row_that_another_process_is_dropping_is_not_waited_for(scene: Scene) -> None:
    gone, there = await scene.accepted(2)
    await (await scene.worker()).claim(TYPE, {gone: 1})
    await scene.make_due(gone, there)
    async with scene.direct.transaction():
        await scene.sql("SELECT FROM due WHERE task_id = $1 FOR UPDATE", gone)
        assert [taken.id for taken in await asyncio.wait_for(scene.publishing.take(TYPE, 10), 5.0)] == [there]
        await asyncio.wait_for(scene.confirm([gone]), 5.0)


async def test_a_type_is_taken_apart_from_the_others(scene: Scene) -> None:
    await scene.register("sms")
    (mail,), (text,) = await scene.accepted(grace=0.0), await scene.accepted(grace=0.0, type="sms")
    assert [taken.id for taken in await scene.publishing.take("sms", 10)] == [text]
    assert [taken.id for taken in await scene.publishing.take(TYPE, 10)] == [mail]


async def test_the_next_due_time_is_known_by_type(scene: Scene) -> None:
    await scene.register("sms")
    assert await scene.publishing.next_due(60.0) == {}
    worker = await scene.worker()
    (claim,) = await scene.running(worker)
    await scene.settle(worker, claim, DEAD)
    await scene.accepted(delay=50.0)
    await scene.accepted(delay=10.0)
    (overdue,) = await scene.accepted(type="sms")
    await scene.make_due(overdue)
    due = await scene.publishing.next_due(60.0)
    assert due.keys() == {TYPE, "sms", None}
    assert due[TYPE] == pytest.approx(10, abs=3)
    assert due["sms"] < 0
    assert due[None] <= 0
    assert (await scene.publishing.next_due(0.5)).keys() == {"sms", None}


# Dead letters -------------------------------------------------------------------------------------------------------


async def test_a_dead_letter_is_pending_until_it_is_confirmed(scene: Scene) -> None:
    worker = await scene.worker()
    (claim,) = await scene.running(worker)
    await scene.settle(worker, claim, DEAD)
    (letter,) = await scene.publishing.take_dead(10)
    assert (letter.id, letter.type, letter.version) == (claim.id, TYPE, claim.version)
    assert (letter.error_class, letter.attempts) == ("Permanent", 1)
    assert await scene.publishing.take_dead(10) == []
    await scene.make_due(claim.id)
    assert await scene.publishing.take_dead(10) == [letter]
    await scene.publishing.confirm_dead([letter])
    assert await scene.due(claim.id, dead=True) is None


async def test_a_late_confirmation_does_not_end_the_dead_letter_of_a_later_death(scene: Scene) -> None:
    worker = await scene.worker()
    (claim,) = await scene.running(worker)
    await scene.settle(worker, claim, DEAD)
    (letter,) = await scene.publishing.take_dead(10)
    await scene.publishing.confirm_dead([letter._replace(version=letter.version - 1)])
    assert await scene.due(claim.id, dead=True) is not None


async def test_two_relays_at_once_never_take_the_same_dead_letter(scene: Scene) -> None:
    worker = await scene.worker()
    for claim in await scene.running(worker, 40):
        await scene.settle(worker, claim, DEAD)
    taken = await asyncio.gather(*(scene.publishing.take_dead(15) for _ in range(4)))
    ids = [letter.id for letters in taken for letter in letters]
    assert len(ids) == len(set(ids))


async def test_a_dead_letter_whose_task_was_deleted_is_not_published(scene: Scene) -> None:
    worker = await scene.worker()
    (gone, there) = await scene.running(worker, 2)
    for claim in (gone, there):
        await scene.settle(worker, claim, DEAD)
    await scene.sql("DELETE FROM tasks WHERE id = $1", gone.id)
    assert [letter.id for letter in await scene.publishing.take_dead(10)] == [there.id]
    assert await scene.due(gone.id, dead=True) is None


# Expiry -------------------------------------------------------------------------------------------------------------


async def expired(scene: Scene, count: int = 1) -> list[UUID]:
    tasks = await scene.accepted(count, delay=1000.0, expires_at=SOON)
    await scene.sql("UPDATE due SET expires_at = now() - interval '1 second' WHERE task_id = ANY($1)", tasks)
    return tasks


async def test_a_task_that_waits_beyond_its_expiry_is_dead_and_its_dead_letter_pending(scene: Scene) -> None:
    (waits,) = await scene.accepted(expires_at=SOON)
    (task,) = await expired(scene)
    assert await scene.publishing.expire(10) == [TYPE]
    row = await scene.row(task)
    assert (row["state"], row["version"], row["error_class"]) == ("dead", 2, "Expired")
    assert await scene.due(task) is None
    (letter,) = await scene.publishing.take_dead(10)
    assert (letter.id, letter.version, letter.error_class) == (task, 2, "Expired")
    assert await scene.state(waits) == ("scheduled", 1)


async def test_the_record_of_an_expired_task_finds_nothing(scene: Scene) -> None:
    (task,) = await expired(scene)
    await scene.publishing.expire(10)
    worker = await scene.worker()
    assert await worker.claim(TYPE, {task: 1}) == []
    await scene.confirm([task])
    assert await scene.state(task) == ("dead", 2)


async def test_a_running_task_does_not_expire_and_its_outbox_row_is_dropped(scene: Scene) -> None:
    (task,) = await expired(scene)
    await (await scene.worker()).claim(TYPE, {task: 1})
    assert await scene.publishing.expire(10) == []
    assert await scene.state(task) == ("running", 2)
    assert await scene.due(task) is None


async def test_two_leaders_at_once_expire_each_task_once(scene: Scene) -> None:
    await expired(scene, 60)
    done = await asyncio.gather(*(scene.publishing.expire(50) for _ in range(3)))
    done.append(await scene.publishing.expire(60))  # what the ones left to the others
    assert sum(map(len, done)) == 60
    assert len(await scene.sql("SELECT FROM due WHERE dead")) == 60


async def test_the_answer_to_an_insert_says_whether_to_publish_the_task_now(scene: Scene) -> None:
    now, later = submission(), submission(delay=60.0)
    answers = await scene.tasks.insert([now, later], GRACE)
    assert [getattr(answer, "publish_now", None) for answer in answers] == [True, False]
    (left,) = await scene.tasks.insert([submission()], 0.0)
    assert not getattr(left, "publish_now", None)
