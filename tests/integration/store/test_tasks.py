from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest
from uuid_utils.compat import uuid7

from taskflux.store.database import Database, Row, Statement
from taskflux.store.errors import RefusedData, StoreBusy
from taskflux.store.group_commit import GroupCommit
from taskflux.store.tasks import Tasks
from taskflux.tasks.model import Accepted, IdempotencyKey, KeyReused, Submission
from tests.integration.store.scene import GRACE, TYPE, Scene, submission, succeeded

Commit = GroupCommit[Submission, Accepted | KeyReused]
KEY = IdempotencyKey("order-17", b"digest")


def commit(scene: Scene) -> Commit:
    return GroupCommit(lambda batch: scene.tasks.insert(batch, GRACE))


async def submit(commit: Commit, *submissions: Submission) -> list[Accepted | KeyReused]:
    return await asyncio.gather(*[commit.submit(each, each.unique) for each in submissions])


async def count(scene: Scene) -> int:
    return len(await scene.sql("SELECT FROM tasks"))


async def insert(scene: Scene, *submissions: Submission) -> list[Accepted | KeyReused]:
    return list(await scene.tasks.insert(submissions, GRACE))


async def test_a_hundred_simultaneous_submits_of_one_key_make_one_task(scene: Scene) -> None:
    commits = [commit(scene) for _ in range(4)]  # four processes would have one each
    answers = await asyncio.gather(*(submit(commits[n % 4], submission(idempotency=KEY)) for n in range(100)))
    accepted = [answer for [answer] in answers if isinstance(answer, Accepted)]
    assert len(accepted) == 100
    assert len({(answer.id, answer.created_at) for answer in accepted}) == 1
    assert sum(not answer.repeated for answer in accepted) == 1
    assert await count(scene) == 1


async def test_the_same_key_for_another_request_is_refused(scene: Scene) -> None:
    await insert(scene, submission(idempotency=KEY))
    other = KEY._replace(digest=b"another")
    assert await insert(scene, submission(idempotency=other)) == [KeyReused("order-17")]
    assert await count(scene) == 1


async def test_a_key_twice_at_once_is_one_task_and_one_repeat(scene: Scene) -> None:
    first, second = await submit(commit(scene), submission(idempotency=KEY), submission(idempotency=KEY))
    assert isinstance(first, Accepted)
    assert isinstance(second, Accepted)
    assert (first.id, first.repeated, second.repeated) == (second.id, False, True)


async def test_a_key_twice_at_once_for_two_requests_is_one_task_and_one_refusal(scene: Scene) -> None:
    other = KEY._replace(digest=b"another")
    answers = await submit(commit(scene), submission(idempotency=KEY), submission(idempotency=other))
    assert [type(answer) for answer in answers] == [Accepted, KeyReused]


async def test_a_key_that_has_expired_is_free_for_another_request(scene: Scene) -> None:
    await insert(scene, submission(idempotency=KEY))
    await scene.sql("UPDATE idempotency_keys SET expires_at = now() - interval '1 second'")
    new = submission(idempotency=KEY._replace(digest=b"another"))
    (answer,) = await insert(scene, new)
    assert isinstance(answer, Accepted)
    assert (answer.id, answer.repeated) == (new.id, False)
    (again,) = await insert(scene, submission(idempotency=new.idempotency))
    assert isinstance(again, Accepted)
    assert (again.id, again.repeated) == (new.id, True)


async def test_a_key_is_its_tenants_own(scene: Scene) -> None:
    answers = await insert(
        scene, submission(idempotency=KEY), submission(idempotency=KEY._replace(digest=b"b"), tenant="other")
    )
    assert [type(answer) for answer in answers] == [Accepted, Accepted]
    assert await count(scene) == 2


async def test_a_key_that_expires_during_the_lookup_is_tried_again(scene: Scene) -> None:
    await insert(scene, submission(idempotency=KEY))

    class Late(Database):
        async def fetch(self, statement: Statement, /, **arguments: object) -> Sequence[Row]:
            if statement.name == "find_keys":
                await scene.sql("DELETE FROM idempotency_keys")
            return await scene.database.fetch(statement, **arguments)

    tasks = Tasks(Late(scene.settings))
    with pytest.raises(StoreBusy):
        await tasks.insert([submission(idempotency=KEY)], GRACE)
    assert isinstance((await tasks.insert([submission(idempotency=KEY)], GRACE))[0], Accepted)


async def test_only_expired_keys_are_deleted(scene: Scene) -> None:
    await insert(scene, *(submission(idempotency=KEY._replace(key=f"k{n}")) for n in range(5)))
    await scene.sql("UPDATE idempotency_keys SET expires_at = now() WHERE key < 'k3'")
    assert [await scene.upkeep.forget_keys(2) for _ in range(3)] == [2, 1, 0]
    assert [row["key"] for row in await scene.sql("SELECT key FROM idempotency_keys ORDER BY key")] == ["k3", "k4"]


async def test_deleting_keys_does_not_wait_for_one_that_is_being_used(scene: Scene) -> None:
    await insert(scene, submission(idempotency=KEY))
    await scene.sql("UPDATE idempotency_keys SET expires_at = now()")
    async with scene.direct.transaction():
        await scene.sql("UPDATE idempotency_keys SET digest = 'x'")
        assert await asyncio.wait_for(scene.upkeep.forget_keys(10), 5.0) == 0


@pytest.mark.parametrize("idempotency", [None, KEY], ids=["without a key", "with a key"])
async def test_an_insert_whose_answer_was_lost_is_recognized(idempotency: IdempotencyKey | None, scene: Scene) -> None:
    first = submission(idempotency=idempotency)
    (lost,) = await insert(scene, first)
    (again,) = await insert(scene, first)
    assert isinstance(lost, Accepted)
    assert isinstance(again, Accepted)
    assert (again.id, again.created_at, again.repeated) == (lost.id, lost.created_at, False)
    assert not again.publish_now  # the promise was made by the first; the relay keeps it
    assert await count(scene) == 1


async def test_a_batch_of_all_kinds_is_answered_in_its_order(scene: Scene) -> None:
    known = submission(idempotency=KEY)
    await insert(scene, known)
    batch = [
        submission(),
        submission(idempotency=KEY._replace(digest=b"b")),
        submission(idempotency=KEY._replace(key="new")),
        submission(delay=10.0),
    ]
    answers = await insert(scene, *batch)
    assert [type(answer) for answer in answers] == [Accepted, KeyReused, Accepted, Accepted]
    assert [getattr(answer, "id", None) for answer in answers] == [batch[0].id, None, batch[2].id, batch[3].id]


async def test_of_a_batch_without_keys_what_an_earlier_try_has_written_stays_and_the_rest_is_inserted(
    scene: Scene,
) -> None:
    first, second = submission(), submission()
    (written,) = await insert(scene, first)
    answers = await insert(scene, first, second)
    assert [(answer.id, answer.repeated) for answer in answers if isinstance(answer, Accepted)] == [
        (first.id, False),
        (second.id, False),
    ]
    assert isinstance(written, Accepted)
    assert isinstance(answers[0], Accepted)
    assert answers[0].created_at == written.created_at
    assert await count(scene) == 2


TRACE = f"00-{'a' * 32}-{'b' * 16}-00"


@pytest.mark.parametrize("idempotency", [None, KEY], ids=["plain", "with a key"])
async def test_what_tasks_of_a_batch_do_not_share_is_stored_for_each(
    idempotency: IdempotencyKey | None, scene: Scene
) -> None:
    given = [
        submission(type="email", max_attempts=8, traceparent=TRACE, tenant="one", idempotency=idempotency),
        submission(type="sms", max_attempts=3, traceparent=None, tenant="two", delay=60.0, key="k", metadata="{}"),
        submission(type="email", max_attempts=8, traceparent=None, tenant="one"),
    ]
    answers = await insert(scene, *given)
    assert [(a.id, a.type, a.publish_now) for a in answers if isinstance(a, Accepted)] == [
        (given[0].id, "email", True),
        (given[1].id, "sms", False),
        (given[2].id, "email", True),
    ]
    stored = await scene.sql(
        "SELECT id, type, max_attempts, traceparent, tenant, key, metadata, due_at > now() FROM tasks ORDER BY id"
    )
    assert [tuple(row) for row in stored] == [
        (each.id, each.type, each.max_attempts, each.traceparent, each.tenant, each.key, each.metadata, each.delay > 0)
        for each in given
    ]


async def test_many_writers_of_many_keys_in_any_order_do_not_deadlock(scene: Scene) -> None:
    keys = [KEY._replace(key=f"k{n}") for n in range(40)]
    commits = [commit(scene) for _ in range(6)]
    answers = await asyncio.gather(
        *(
            submit(each, *[submission(idempotency=key) for key in (keys if n % 2 else reversed(keys))])
            for n, each in enumerate(commits)
        )
    )
    assert len({answer.id for batch in answers for answer in batch if isinstance(answer, Accepted)}) == 40
    assert await count(scene) == 40


@pytest.mark.parametrize(
    "bad",
    [
        {"key": "nul \x00"},
        {"payload": "lone \ud800"},
        {"max_attempts": 2**31},
        {"delay": 1e300},
        {"idempotency": IdempotencyKey("nul \x00", b"x")},
    ],
    ids=["NUL", "surrogate", "too large a number", "too long a delay", "NUL in a key"],
)
async def test_only_what_postgresql_refuses_fails(bad: dict[str, object], scene: Scene) -> None:
    batch = commit(scene)
    waiting = [batch.submit(submission(**(bad if n == 33 else {})), n) for n in range(64)]
    answers = await asyncio.gather(*waiting, return_exceptions=True)
    assert isinstance(answers[33], RefusedData)
    assert sum(isinstance(answer, Accepted) for answer in answers) == 63
    assert await count(scene) == 63


async def test_a_task_is_read_by_its_own_tenant(scene: Scene) -> None:
    (task,) = await scene.accepted(tenant="a")
    assert await scene.tasks.get(task, "b") is None
    assert await scene.tasks.get(uuid7(), "a") is None
    row = await scene.tasks.get(task, "a")
    assert row is not None
    assert (row["id"], row["state"], row["timeline"][0].split("|")[1]) == (task, "scheduled", "accepted")


async def test_why_a_task_waits_is_read_from_the_narrow_tables(scene: Scene) -> None:
    older, task = await scene.accepted(2)
    facts = await scene.tasks.why(task, TYPE)
    assert (facts["workers"], facts["seen"], facts["ahead"], facts["leaderless"]) == (0, None, 0, None)
    await scene.make_due(older, task)
    worker = await scene.worker()
    facts = await scene.tasks.why(task, TYPE)
    assert (facts["workers"], facts["ahead"], facts["ended"], facts["open"]) == (1, 1, 0.0, False)
    assert facts["seen"] < 30
    await scene.confirm([older], version=1)
    await worker.claim(TYPE, {older: 1})
    assert (await scene.tasks.why(task, TYPE))["ahead"] == 0
    assert (await scene.tasks.why(task, TYPE))["looked"] == 0


async def test_the_tasks_that_have_ended_are_found_behind_a_long_queue(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The newest tasks of a type wait: how fast its tasks end is seen before and beside the first that waits."""
    monkeypatch.setattr("taskflux.store.tasks.NEWEST", 3)
    ended, worker = await scene.accepted(2), await scene.worker()
    waiting = await scene.accepted(10)
    for claim in await worker.claim(TYPE, dict.fromkeys(ended, 1)):
        await scene.settle(worker, claim, succeeded(None))
    await scene.make_due(*waiting)
    facts = await scene.tasks.why(waiting[-1], TYPE)
    assert (facts["ahead"], facts["looked"], facts["ended"]) == (9, 9, pytest.approx(2 / 60))


async def test_no_more_than_a_bounded_number_is_looked_at_before_a_task(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another type's tasks are between them: all that can be said then is `at least`."""
    monkeypatch.setattr("taskflux.store.tasks.MOST_AHEAD", 6)
    await scene.make_due(*await scene.accepted(3))
    await scene.make_due(*await scene.accepted(4, type="another"))
    *_, task = nearest = await scene.accepted(3)
    await scene.make_due(*nearest)
    facts = await scene.tasks.why(task, TYPE)
    assert (facts["ahead"], facts["looked"]) == (2, 6)
