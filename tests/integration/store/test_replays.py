"""Dead letters in PostgreSQL: found by filters, replayed once, carried on by any process."""

from __future__ import annotations

import asyncio
import json
import os
import random
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from uuid import UUID

import asyncpg
import pytest
from uuid_utils.compat import uuid7

from taskflux.store.claims import Claims, Settlement, Worker
from taskflux.store.database import Database, Row, Statement
from taskflux.store.dead_letters import DeadLetter, DeadLetterFilter, DeadLetters, Place, Plan
from taskflux.store.publishing import Publishing
from taskflux.store.retention import Retention
from taskflux.store.tasks import Tasks
from taskflux.tasks.causes import cause_of
from taskflux.tasks.decision import Decision
from taskflux.tasks.model import Submission
from taskflux.tasks.states import Event, State
from taskflux.upkeep.leader import BulkReplays
from tests.integration.store.scene import SOURCE, succeeded
from tests.integration.system.stack import eventually

T = "default"
ORIGIN = {"topic": "tasks.dlq", "partition": 0, "offset": 7, "timestamp": 1_900_000_000_000}
FAST = 5_000.0


class Graveyard:
    """Makes tasks that die, and looks at what became of them."""

    def __init__(self, database: Database) -> None:
        self.database = database
        self.dead_letters = DeadLetters(database)
        self.claims = Claims(database, Worker(uuid7(), "test", "test", 1, None, "email"), SOURCE)

    async def die(
        self,
        count: int = 1,
        task_type: str = "email",
        error: str = "Permanent",
        reason: str = "no such address",
        **changes: object,
    ) -> list[UUID]:
        """Tasks that were claimed and died; their ids."""
        submissions = [
            Submission(uuid7(), task_type, '{"to": "x"}', 8)._replace(**changes)  # type: ignore[arg-type]
            for _ in range(count)
        ]
        await Tasks(self.database).insert(submissions, 0.0)
        await self.settle([task.id for task in submissions], 1, task_type, error, reason)
        return [task.id for task in submissions]

    async def settle(
        self,
        tasks: Sequence[UUID],
        version: int,
        task_type: str = "email",
        error: str | None = None,
        reason: str = "no such address",
    ) -> None:
        """Claim these at `version` and let them die of `error`, or succeed."""
        claims = await self.claims.claim(task_type, dict.fromkeys(tasks, version))
        assert len(claims) == len(tasks)
        died = Decision(Event.DIED, State.DEAD, error_class=error, reason=reason, result={"seen": 1})
        decision = succeeded({}) if error is None else died
        await self.claims.settle_all([Settlement(claim.id, claim.version, decision) for claim in claims])
        if error is not None:
            await self.dead_letters.add([letter_of(claim.id, claim.version) for claim in claims])

    async def letters(self, wanted: DeadLetterFilter | None = None, state: str | None = None) -> Sequence[Row]:
        return await self.dead_letters.page(T, wanted or DeadLetterFilter(), state, None, 1000)

    async def letter(self, task: UUID) -> Row:
        [row] = [row for row in await self.letters() if row["task_id"] == task and row["state"] == "open"]
        return row

    async def task(self, task: UUID) -> Row:
        row = await Tasks(self.database).get(task, T)
        assert row is not None
        return row

    async def bulk(self, wanted: DeadLetterFilter, rate: float = FAST) -> UUID:
        row = await self.dead_letters.start_bulk(T, uuid7(), wanted, rate)
        identifier: UUID = row["id"]
        return identifier

    async def bulk_row(self, bulk: UUID) -> Row:
        row = await self.dead_letters.get_bulk(T, bulk)
        assert row is not None
        return row


def letter_of(task: UUID, version: int) -> DeadLetter:
    return DeadLetter(uuid7(), f"task:{task}:{version}", "Permanent", "", ORIGIN, task, version, "email")


def poison(topic: str = "tasks.email") -> DeadLetter:
    name = uuid7()
    origin = {"topic": topic, "partition": 1, "offset": 2, "timestamp": 3}
    return DeadLetter(name, f"record:{name}", "NotJson", "bad", origin, record_value=b"{")


@pytest.fixture
async def graves(database: Database) -> Graveyard:
    graves = Graveyard(database)
    await graves.claims.begin()
    return graves


async def test_a_replayed_task_starts_again_with_its_progress(graves: Graveyard) -> None:
    [task] = await graves.die()
    letter = await graves.letter(task)
    replayed = await graves.dead_letters.replay(T, letter["id"], '{"to": "y"}')
    assert replayed is not None
    assert (replayed.task_id, replayed.type, replayed.error_class) == (task, "email", "Permanent")
    row = await graves.task(task)
    assert (row["state"], row["version"], row["attempts"], row["replays"]) == ("scheduled", 3, 0, 1)
    assert (row["payload"], row["error_class"], row["error_reason"]) == ('{"to": "y"}', None, None)
    assert json.loads(row["result"]) == {"seen": 1}
    assert row["timeline"][-1].split("|")[1:] == ["replayed", "scheduled", "0", "1", "edited payload"]
    [due] = await Publishing(graves.database, 10.0).take("email", 10)
    assert (due.id, due.version) == (task, 4)
    assert await graves.database._pool.fetch("SELECT FROM parked WHERE task_id = $1", task) == []  # type: ignore[union-attr]


async def test_a_dead_letter_is_replayed_once_however_many_ask(graves: Graveyard) -> None:
    [task] = await graves.die()
    letter = await graves.letter(task)
    answers = await asyncio.gather(*(graves.dead_letters.replay(T, letter["id"], None) for _ in range(20)))
    assert sum(answer is not None for answer in answers) == 1
    assert (await graves.task(task))["replays"] == 1
    assert not await graves.dead_letters.discard(T, letter["id"], "too late")


async def test_a_discarded_dead_letter_is_not_replayed(graves: Graveyard) -> None:
    [task] = await graves.die()
    letter = await graves.letter(task)
    assert await graves.dead_letters.discard(T, letter["id"], "a test account")
    assert not await graves.dead_letters.discard(T, letter["id"], "another reason")
    assert await graves.dead_letters.replay(T, letter["id"], None) is None
    row = await graves.dead_letters.get(T, letter["id"])
    assert row is not None
    assert (row["state"], row["discard_reason"], row["task_state"]) == ("discarded", "a test account", "dead")


async def test_the_outcome_of_a_replay_is_shown_on_its_dead_letter(graves: Graveyard) -> None:
    [task] = await graves.die()
    first = await graves.letter(task)
    await graves.dead_letters.replay(T, first["id"], None)

    async def outcome(letter: UUID) -> list[str]:
        row = await graves.dead_letters.get(T, letter)
        assert row is not None
        return [entry[2] for entry in row["replays"]]

    assert await outcome(first["id"]) == ["scheduled"]
    await graves.settle([task], 3, error="Permanent")
    assert await outcome(first["id"]) == ["dead"]
    second = await graves.letter(task)
    assert second["id"] != first["id"]
    await graves.dead_letters.replay(T, second["id"], None)
    await graves.settle([task], 5)
    assert await outcome(first["id"]) == ["dead"]
    assert await outcome(second["id"]) == ["succeeded"]


async def test_a_dead_letter_whose_task_has_changed_replays_nothing(graves: Graveyard) -> None:
    [task] = await graves.die()
    await graves.dead_letters.add([letter_of(task, 1)])  # of a death that is no longer the task's last
    stale = [row["id"] for row in await graves.letters() if row["reason"] == ""]
    assert len(stale) == 1
    assert await graves.dead_letters.replay(T, stale[0], None) is None
    assert (await graves.task(task))["state"] == "dead"


async def test_an_expiry_that_has_passed_does_not_end_a_replay(graves: Graveyard) -> None:
    past = datetime.now(UTC) - timedelta(hours=1)
    ahead = datetime.now(UTC) + timedelta(hours=1)
    [gone] = await graves.die(expires_at=past)
    [waiting] = await graves.die(expires_at=ahead)
    for task in (gone, waiting):
        await graves.dead_letters.replay(T, (await graves.letter(task))["id"], None)
    assert (await graves.task(gone))["expires_at"] is None
    assert (await graves.task(waiting))["expires_at"] == ahead
    assert await Publishing(graves.database, 10.0).expire(10) == []


async def test_a_late_report_of_the_attempt_before_does_not_end_a_replay(graves: Graveyard) -> None:
    [task] = await graves.die()
    await graves.dead_letters.replay(T, (await graves.letter(task))["id"], None)
    [late] = await graves.claims.settle_all([Settlement(task, 2, succeeded({}))])
    assert not late.written


async def test_a_repaired_record_becomes_a_task_once(graves: Graveyard) -> None:
    letter = poison()
    await graves.dead_letters.add([letter])
    mended = [Submission(uuid7(), "email", '{"to": "y"}', 5, traceparent="00-" + "1" * 32) for _ in range(10)]
    answers = await asyncio.gather(*(graves.dead_letters.replay_as(T, letter.id, each, edited=True) for each in mended))
    [made] = [answer for answer in answers if answer is not None]
    row = await graves.task(made.task_id)
    assert (row["state"], row["payload"], row["max_attempts"]) == ("scheduled", '{"to": "y"}', 5)
    [due] = await Publishing(graves.database, 10.0).take("email", 10)
    assert due.id == made.task_id
    shown = await graves.dead_letters.get(T, letter.id)
    assert shown is not None
    assert [entry[1:3] for entry in shown["replays"]] == [[str(made.task_id), "scheduled"]]


async def test_a_dead_letter_with_a_task_does_not_become_a_second_one(graves: Graveyard) -> None:
    [task] = await graves.die()
    letter = await graves.letter(task)
    other = Submission(uuid7(), "email", "{}", 5)
    assert await graves.dead_letters.replay_as(T, letter["id"], other, edited=False) is None
    assert await Tasks(graves.database).get(other.id, T) is None


async def test_every_filter_finds_what_it_names_and_groups_count_it(graves: Graveyard) -> None:
    await graves.die(2)
    await graves.die(1, "sms", "Expired")
    middle = (await graves.letters())[0]["created_at"] + timedelta(microseconds=1)
    await graves.die(3, "sms")
    await graves.dead_letters.add([poison("tasks.sms"), poison("other")])

    async def count(**wanted: object) -> int:
        found = DeadLetterFilter(**wanted)  # type: ignore[arg-type]
        letters = await graves.letters(found)
        groups = await graves.dead_letters.groups(T, found, None)
        counted = await graves.dead_letters.count(T, found, None)
        assert sum(group.letters for group in groups.groups) == groups.letters == len(letters) == counted
        return len(letters)

    assert await count() == 8
    assert await count(type="sms") == 4
    assert await count(type="sms", error_class="Permanent") == 3
    assert await count(created_before=middle) == 3
    assert await count(created_after=middle) == 5
    assert await count(origin_topic="tasks.sms") == 1
    assert await count(origin_topic="tasks.dlq") == 6
    groups = (await graves.dead_letters.groups(T, DeadLetterFilter(), "open")).groups
    assert [(group.type, group.error_class, group.letters) for group in groups][:2] == [
        ("sms", "Permanent", 3),
        ("email", "Permanent", 2),
    ]
    assert await graves.dead_letters.count("another", DeadLetterFilter(), None) == 0


KEY, FLOAT = "KeyError: 'amount'", "ValueError: could not convert string to float: '{}'"


async def test_two_causes_of_one_class_are_two_groups_and_one_is_replayed_alone(graves: Graveyard) -> None:
    broken = [task for n in range(3) for task in await graves.die(1, error="Crash", reason=FLOAT.format(f"{n},5"))]
    fixed = await graves.die(4, error="Crash", reason=KEY)
    groups = await graves.dead_letters.groups(T, DeadLetterFilter(error_class="Crash"), "open")
    assert [group.letters for group in groups.groups] == [4, 3]
    wanted = DeadLetterFilter(cause=groups.groups[0].cause)
    assert {row["task_id"] for row in await graves.letters(wanted)} == set(fixed)
    bulk = await graves.bulk(wanted)

    async def finished() -> bool:
        await BulkReplays(graves.dead_letters).tick()
        return bool((await graves.bulk_row(bulk))["status"] == "finished")

    await eventually(finished, "the bulk replay ends")
    assert {(await graves.task(task))["replays"] for task in fixed} == {1}
    assert {(await graves.task(task))["replays"] for task in broken} == {0}


async def test_a_group_says_since_when_how_often_and_under_which_image(graves: Graveyard) -> None:
    for image in ("own:1", "own:1", "own:2"):
        graves.claims.worker = graves.claims.worker._replace(image=image)
        await graves.claims.begin()
    first, second = await graves.die(2, reason="no user 17")
    await graves.dead_letters.replay(T, (await graves.letter(first))["id"], None)
    graves.claims.worker = graves.claims.worker._replace(image="own:3")
    await graves.claims.begin()
    [group] = (await graves.dead_letters.groups(T, DeadLetterFilter(), "open")).groups
    letter = await graves.letter(second)
    assert (group.letters, group.sample, group.reason) == (1, letter["id"], "no user 17")
    assert group.first_seen == group.last_seen == group.oldest == group.newest == letter["created_at"]
    assert sum(group.trend) == 2  # whatever became of them
    assert group.change is not None
    names = [image and image.name for image in group.change[:2]]
    assert (names, group.change.latest.name) == (["own:2", "own:1"], "own:3")


async def test_counts_by_cause_are_those_of_the_table_whatever_happens_at_once(graves: Graveyard) -> None:
    reasons = ["no user 17", "no mailbox", KEY]
    tasks = [task for reason in reasons for task in await graves.die(12, reason=reason)]
    letters = [(await graves.letter(task))["id"] for task in tasks]
    await asyncio.gather(
        *(graves.dead_letters.replay(T, letter, None) for letter in letters[::3]),
        *(graves.dead_letters.discard(T, letter, "a test") for letter in letters[1::3]),
        *(graves.dead_letters.add([poison() for _ in range(20)]) for _ in range(4)),
    )
    delete = Statement("", "DELETE FROM dead_letters WHERE id = ANY($1)", ("ids",))
    await graves.database.fetch(delete, ids=letters[:9])
    counted = await graves.database.fetch(Statement("", COUNTS, ()))
    assert counted == []
    await graves.dead_letters.forget_counts()
    assert await graves.database.fetch(Statement("", COUNTS, ())) == []


COUNTS = """
SELECT state, cause, type, hour, sum(letters) FROM (
    SELECT state, cause, type, hour, letters FROM dead_letter_counts WHERE letters <> 0
    UNION ALL
    SELECT state, cause, COALESCE(type, ''), span.hour, -count(*) FROM dead_letters
    CROSS JOIN LATERAL (VALUES ('-infinity'), (date_trunc('hour', created_at, 'UTC'))) AS span (hour)
    GROUP BY 1, 2, 3, 4
) AS both_ways GROUP BY 1, 2, 3, 4 HAVING sum(letters) <> 0
"""


async def test_causes_that_are_missing_are_computed_batch_by_batch(graves: Graveyard) -> None:
    """Dead letters and dead tasks from before there were causes, or from a worker of the release before."""
    tasks = await graves.die(5, reason=KEY)
    await graves.dead_letters.add([poison() for _ in range(3)])
    expected = await causes(graves)
    assert len(set(expected.values())) == 2
    for table in ("dead_letters", "parked"):
        await graves.database.fetch(Statement("", f"UPDATE {table} SET cause = NULL", ()))
    done = 0
    while found := await graves.dead_letters.backfill_causes(2):
        done += found
    assert (done, await causes(graves)) == (8 + 5, expected)
    assert set(expected) >= set(tasks)


async def causes(graves: Graveyard) -> dict[UUID, str]:
    both = "SELECT id, cause FROM dead_letters UNION ALL SELECT task_id, cause FROM parked"
    return {row["id"]: row["cause"] for row in await graves.database.fetch(Statement("", both, ()))}


async def test_pages_hold_every_dead_letter_once(graves: Graveyard) -> None:
    await graves.die(25)  # one statement stores them, so that all have the same time
    seen: list[UUID] = []
    behind: Place | None = None
    while rows := await graves.dead_letters.page(T, DeadLetterFilter(), "open", behind, 7):
        seen += [row["id"] for row in rows]
        behind = Place(rows[-1]["created_at"], rows[-1]["id"])
    assert len(seen) == len(set(seen)) == 25
    assert seen == sorted(seen, reverse=True)


async def test_a_bulk_replay_replays_what_its_filter_found_and_nothing_later(graves: Graveyard) -> None:
    tasks = await graves.die(40)
    others = await graves.die(5, "sms")
    await graves.dead_letters.add([poison()])
    bulk = await graves.bulk(DeadLetterFilter(created_after=datetime(2000, 1, 1, tzinfo=UTC), error_class="Permanent"))
    carrier = BulkReplays(graves.dead_letters)
    later = await graves.die(3)

    async def finished() -> bool:
        await carrier.tick()
        return bool((await graves.bulk_row(bulk))["status"] == "finished")

    await eventually(finished, "the bulk replay ends")
    row = await graves.bulk_row(bulk)
    assert (row["matched"], row["replayed"], row["skipped"]) == (45, 45, 0)
    assert {(await graves.task(task))["replays"] for task in (*tasks, *others)} == {1}
    assert {(await graves.task(task))["state"] for task in later} == {"dead"}
    await graves.settle(tasks[:10], 3)
    await graves.settle(tasks[10:14], 3, error="Permanent")
    assert await graves.dead_letters.bulk_outcomes(bulk) == {"succeeded": 10, "dead": 4, "scheduled": 31}
    assert (await graves.letters(state="replayed"))[0]["replays"][0][3] == str(bulk)


async def test_a_bulk_replay_skips_poison_records_and_tasks_that_changed(graves: Graveyard) -> None:
    [task] = await graves.die()
    await graves.dead_letters.add([poison(), letter_of(task, 1)])
    bulk = await graves.bulk(DeadLetterFilter(created_after=datetime(2000, 1, 1, tzinfo=UTC)))

    async def finished() -> bool:
        await BulkReplays(graves.dead_letters).tick()
        return bool((await graves.bulk_row(bulk))["status"] == "finished")

    await eventually(finished, "the bulk replay ends")
    row = await graves.bulk_row(bulk)
    assert (row["matched"], row["replayed"], row["skipped"]) == (3, 1, 2)
    assert len(await graves.letters(state="open")) == 2


async def test_two_processes_with_the_same_batch_replay_each_dead_letter_once(graves: Graveyard) -> None:
    tasks = await graves.die(200)
    bulk = await graves.bulk(DeadLetterFilter(type="email"))

    async def allowed() -> bool:
        return any(each.allowance >= 100 for each in await graves.dead_letters.running_bulk())

    await eventually(allowed, "the bulk replay may send a hundred")
    [current] = await graves.dead_letters.running_bulk()
    answers = await asyncio.gather(*(graves.dead_letters.carry_on(current, 50) for _ in range(6)))
    assert sorted(len(sent) for _, sent in answers) == [0, 0, 0, 0, 0, 50]
    row = await graves.bulk_row(bulk)
    assert (row["replayed"], row["status"]) == (50, "running")
    assert sum([(await graves.task(task))["replays"] for task in tasks]) == 50


async def test_a_bulk_replay_keeps_its_rate_whichever_process_runs_it(graves: Graveyard) -> None:
    await graves.die(100)
    bulk = await graves.bulk(DeadLetterFilter(type="email"), rate=20.0)
    started = (await graves.bulk_row(bulk))["created_at"]

    async def thirty() -> bool:
        await asyncio.gather(*(BulkReplays(graves.dead_letters).tick() for _ in range(3)))
        return bool((await graves.bulk_row(bulk))["replayed"] >= 30)

    await eventually(thirty, "the bulk replay has sent thirty")
    row = await graves.bulk_row(bulk)
    assert (row["updated_at"] - started).total_seconds() >= 30 / 20 - 0.05
    assert row["replayed"] <= (row["updated_at"] - started).total_seconds() * 20 + 1


async def test_a_stopped_bulk_replay_replays_nothing_more_and_another_continues_there(graves: Graveyard) -> None:
    tasks = await graves.die(60)
    first = await graves.bulk(DeadLetterFilter(type="email"), rate=30.0)

    async def some() -> bool:
        await BulkReplays(graves.dead_letters).tick()
        return bool((await graves.bulk_row(first))["replayed"] >= 10)

    await eventually(some, "the bulk replay has sent some")
    assert await graves.dead_letters.stop_bulk(T, first)
    assert not await graves.dead_letters.stop_bulk(T, first)
    sent = (await graves.bulk_row(first))["replayed"]
    await BulkReplays(graves.dead_letters).tick()
    assert (await graves.bulk_row(first))["replayed"] == sent
    second = await graves.bulk(DeadLetterFilter(type="email"))

    async def finished() -> bool:
        await BulkReplays(graves.dead_letters).tick()
        return bool((await graves.bulk_row(second))["status"] == "finished")

    await eventually(finished, "the bulk replay ends")
    row = await graves.bulk_row(second)
    assert (row["matched"], row["replayed"]) == (60 - sent, 60 - sent)
    assert {(await graves.task(task))["replays"] for task in tasks} == {1}


async def finish(graves: Graveyard, job: UUID) -> str:
    """The status of a job once the leader cannot carry it on any more."""

    async def waits() -> bool:
        before = await graves.bulk_row(job)
        await BulkReplays(graves.dead_letters).tick()
        row = await graves.bulk_row(job)
        return row["status"] in ("finished", "stopped") or row["replayed"] == before["replayed"] == row["canary"]

    await eventually(waits, "the job has done what it can")
    status: str = (await graves.bulk_row(job))["status"]
    return status


CANARY = Plan("ann", canary=4, most_failures=0.5)


async def test_the_rest_follows_once_the_canary_went_well(graves: Graveyard) -> None:
    tasks = await graves.die(30)
    job = (await graves.dead_letters.start_bulk(T, uuid7(), DeadLetterFilter(type="email"), FAST, CANARY))["id"]
    [current] = await graves.dead_letters.running_bulk()
    ended, replayed = await graves.dead_letters.carry_on(current, 20)
    assert (ended, len(replayed)) == (False, 4)
    assert await finish(graves, job) == "canary"
    sent = [task for task in tasks if (await graves.task(task))["replays"]]
    assert len(sent) == 4
    await graves.settle(sent[:2], 3)
    assert await finish(graves, job) == "canary"  # not all of them have an outcome yet
    await graves.settle(sent[2:3], 3, error="Permanent")
    await graves.settle(sent[3:], 3)
    assert await finish(graves, job) == "finished"
    row = await graves.bulk_row(job)
    assert (row["who"], row["replayed"], row["stopped_because"]) == ("ann", 30, None)


async def test_a_canary_that_fails_stops_the_job(graves: Graveyard) -> None:
    """A retry with the cause that it died of counts as a failure; one with another cause does not yet."""
    await graves.die(30, error="Crash", reason=KEY)
    job = (await graves.dead_letters.start_bulk(T, uuid7(), DeadLetterFilter(type="email"), FAST, CANARY))["id"]
    assert await finish(graves, job) == "canary"
    sent = [row["task_id"] for row in await graves.letters(state="replayed")]

    async def retry(tasks: list[UUID], reason: str) -> None:
        claims = await graves.claims.claim("email", dict.fromkeys(tasks, 3))
        again = Decision(Event.RETRY, State.SCHEDULED, 60.0, error_class="Crash", reason=reason)
        await graves.claims.settle_all([Settlement(claim.id, claim.version, again) for claim in claims])

    await retry(sent[:1], FLOAT.format("12,50"))
    await retry(sent[1:3], KEY)
    assert await finish(graves, job) == "canary"
    await retry(sent[3:], KEY)
    assert await finish(graves, job) == "stopped"
    row = await graves.bulk_row(job)
    assert (row["replayed"], row["stopped_because"]) == (4, "3 of the 4 that were tried first failed")


async def test_a_canary_without_an_outcome_in_time_stops_the_job(graves: Graveyard) -> None:
    await graves.die(30)
    plan = Plan(canary=4, canary_seconds=0.05)
    job = (await graves.dead_letters.start_bulk(T, uuid7(), DeadLetterFilter(type="email"), FAST, plan))["id"]

    async def stopped() -> bool:
        return await finish(graves, job) == "stopped"

    await eventually(stopped, "the job is stopped")
    row = await graves.bulk_row(job)
    assert (row["replayed"], row["stopped_because"]) == (
        4,
        "4 of the 4 that were tried first have no outcome in time",
    )


async def test_a_job_stops_by_itself_when_too_many_of_the_last_hundred_fail(graves: Graveyard) -> None:
    tasks = await graves.die(60)
    plan = Plan(most_failures=0.2)
    wanted = DeadLetterFilter(type="email")
    job = (await graves.dead_letters.start_bulk(T, uuid7(), wanted, 40.0, plan))["id"]

    async def some() -> bool:
        await BulkReplays(graves.dead_letters).tick()
        return bool((await graves.bulk_row(job))["replayed"] >= 25)

    await eventually(some, "some are replayed")
    sent = [task for task in tasks if (await graves.task(task))["replays"]]
    await graves.settle(sent[:20], 3, error="Permanent", reason="another one")
    assert await graves.dead_letters.recent_of_bulk(job, 1000, 100) == (len(sent) - 20, 20)
    await graves.settle(sent[20:21], 3, error="Permanent", reason="another one")
    await BulkReplays(graves.dead_letters).tick()
    row = await graves.bulk_row(job)
    assert (row["status"], row["stopped_because"]) == ("stopped", "21 of its last 100 replays failed")
    assert await graves.dead_letters.new_causes(job) == {cause_of("Permanent", "another one").fingerprint: 21}


async def test_dead_letters_are_discarded_by_a_filter_with_a_reason(graves: Graveyard) -> None:
    await graves.die(20)
    others = await graves.die(2, "sms")
    await graves.dead_letters.add([poison("tasks.email")])
    wanted = DeadLetterFilter(created_after=datetime(2000, 1, 1, tzinfo=UTC), error_class="Permanent", type="email")
    plan = Plan("bob", reason="test addresses")
    job = (await graves.dead_letters.start_bulk(T, uuid7(), wanted, 50.0, plan))["id"]
    assert await finish(graves, job) == "finished"
    row = await graves.bulk_row(job)
    assert (row["action"], row["matched"], row["replayed"], row["skipped"]) == ("discard", 20, 20, 0)
    assert {row["discard_reason"] for row in await graves.letters(state="discarded")} == {"test addresses"}
    assert len(await graves.letters(state="discarded")) == 20
    assert {row["task_id"] for row in await graves.letters(state="open")} == {*others, None}


@pytest.mark.skipif(
    "TASKFLUX_TEST_PGBOUNCER" in os.environ, reason="PgBouncer's connection is cut then, and not the leader's"
)
@pytest.mark.parametrize("seed", range(3))
async def test_no_dead_letter_is_replayed_twice_whenever_the_leader_is_killed(graves: Graveyard, seed: int) -> None:
    """Its connection is cut, as a killed process leaves it, at drawn points; another one carries on."""
    drawn = random.Random(seed)
    tasks = await graves.die(120)
    plan = Plan(canary=5, most_failures=0.5)
    job = (await graves.dead_letters.start_bulk(T, uuid7(), DeadLetterFilter(type="email"), FAST, plan))["id"]
    cut = Statement("", "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = $1", ("name",))
    lives = kills = 0

    async def ended() -> bool:
        nonlocal lives, kills
        lives += 1
        leader = Database(graves.database._settings, pool_size=1, name=f"leader {lives}")
        await leader.open()
        work = asyncio.create_task(BulkReplays(DeadLetters(leader)).tick())
        await asyncio.wait([work], timeout=drawn.uniform(0.0, 0.02 * lives))  # at last, any machine gets through
        kills += not work.done()
        await graves.database.fetch(cut, name=f"leader {lives}")
        work.cancel()
        await asyncio.gather(work, return_exceptions=True)
        await leader.close()
        row = await graves.bulk_row(job)
        if row["status"] == "canary" and row["replayed"] == 5:
            sent = [t for t in tasks if (task := await graves.task(t))["replays"] and task["state"] == "scheduled"]
            if sent:
                await graves.settle(sent, 3)
        return bool(row["status"] == "finished")

    await eventually(ended, "the job is finished")
    assert kills > 0
    assert {(await graves.task(task))["replays"] for task in tasks} == {1}
    row = await graves.bulk_row(job)
    assert (row["replayed"], row["skipped"]) == (120, 0)
    assert await graves.dead_letters.bulk_outcomes(job) == {"succeeded": 5, "scheduled": 115}


async def test_a_job_that_has_not_ended_is_not_pruned_however_long_it_rests(graves: Graveyard) -> None:
    await graves.die(3)
    wanted = DeadLetterFilter(type="email")
    plans = [CANARY, Plan(), Plan(reason="test addresses")]
    jobs = [(await graves.dead_letters.start_bulk(T, uuid7(), wanted, FAST, plan))["id"] for plan in plans]
    tomorrow, retention = datetime.now(UTC) + timedelta(days=1), Retention(graves.database)
    assert await retention.delete_notes(tomorrow, 10) == 0
    for job in jobs:
        assert await graves.dead_letters.stop_bulk(T, job)
    assert await retention.delete_notes(tomorrow, 10) == 3


async def test_counts_that_are_being_changed_are_forgotten_another_time(graves: Graveyard) -> None:
    """Whoever changes them has their locks in one order, and the clean-up must not wait in another one."""
    await graves.die(2)
    await graves.database.fetch(Statement("", "DELETE FROM dead_letters", ()))
    dsn = graves.database._settings.dsn.get_secret_value()
    other = await asyncpg.connect(dsn)
    async with other.transaction():
        assert (
            await other.execute("UPDATE dead_letter_counts SET letters = letters + 1 WHERE hour = '-infinity'")
            == "UPDATE 1"
        )
        async with asyncio.timeout(10):
            await graves.dead_letters.forget_counts()
    assert await other.fetchval("SELECT count(*) FROM dead_letter_counts WHERE letters = 1 AND hour = '-infinity'") == 1
    assert await other.fetchval("SELECT count(*) FROM dead_letter_counts") == 1
    await other.close()


async def test_jobs_are_listed_newest_first(graves: Graveyard) -> None:
    await graves.die(2)
    made = [await graves.bulk(DeadLetterFilter(type="email")) for _ in range(3)]
    assert [row["id"] for row in await graves.dead_letters.list_bulk(T, None, 2)] == made[:0:-1]
    assert [row["id"] for row in await graves.dead_letters.list_bulk(T, made[1], 5)] == made[:1]
    assert await graves.dead_letters.list_bulk("another", None, 5) == []


async def test_the_throughput_of_a_type_counts_what_has_ended_lately(graves: Graveyard) -> None:
    assert await graves.dead_letters.recent_throughput("email") == 0.0
    await graves.die(6)
    assert await graves.dead_letters.recent_throughput("email") == pytest.approx(6 / 60)


async def test_a_bulk_replay_of_nothing_is_finished_at_once(graves: Graveyard) -> None:
    bulk = await graves.bulk(DeadLetterFilter(type="nobody"))
    assert (await graves.bulk_row(bulk))["status"] == "finished"
    assert await graves.dead_letters.running_bulk() == []


async def test_the_filter_of_a_bulk_replay_is_read_back_as_it_was_given(graves: Graveyard) -> None:
    await graves.die()
    at = datetime(2000, 1, 2, 3, 4, 5, 6, tzinfo=UTC)
    cause = cause_of("Permanent", "no such address").fingerprint
    wanted = DeadLetterFilter("email", "Permanent", at, at + timedelta(days=9999), "tasks.dlq", cause)
    await graves.bulk(wanted)
    [running] = await graves.dead_letters.running_bulk()
    assert running.filter == wanted
