from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from uuid import UUID

from uuid_utils.compat import uuid7

from taskflux.tasks.decision import release
from tests.integration.store.scene import TYPE, Scene


async def test_a_claim_makes_a_task_running_and_brings_its_payload(scene: Scene) -> None:
    (task,) = await scene.accepted(payload='{"n": 1e400}', key="k", metadata='{"m": 1}', traceparent="00-x")
    await scene.confirm([task])
    worker = await scene.worker()
    (claim,) = await worker.claim(TYPE, {task: 1})
    assert (claim.id, claim.version, claim.attempt, claim.max_attempts) == (task, 2, 1, 8)
    assert (claim.payload, claim.key, claim.metadata, claim.traceparent) == ('{"n": 1e400}', "k", '{"m": 1}', "00-x")
    assert (claim.expired, claim.progress, claim.releases, claim.replays) == (False, None, 0, 0)
    assert 0 < claim.waited < 60
    assert await scene.state(task) == ("running", 2)
    assert await scene.claims() == {(task, 2)}
    assert await scene.events(task) == ["accepted", "published", "claimed"]


async def test_a_claim_brings_when_its_task_was_accepted_to_the_microsecond(scene: Scene) -> None:
    claims = await scene.running(await scene.worker(), 3)
    accepted = {claim.id: (await scene.wide(claim.id))["created_at"] for claim in claims}
    assert {claim.id: datetime.fromtimestamp(claim.created, UTC) for claim in claims} == accepted


async def test_records_of_several_versions_each_claim_at_their_own(scene: Scene) -> None:
    tasks = sorted(await scene.accepted(4))
    await scene.make_due(tasks[1], tasks[3])
    await scene.publishing.take(TYPE, 10)
    worker = await scene.worker()
    wrong = dict(zip(tasks, (2, 1, 2, 1), strict=True))
    assert await worker.claim(TYPE, wrong) == []
    right = dict(zip(tasks, (1, 2, 1, 1), strict=True))
    claims = await worker.claim(TYPE, right)
    assert [(claim.id, claim.version) for claim in claims] == [(tasks[0], 2), (tasks[1], 3), (tasks[2], 2)]


async def test_a_record_may_overtake_its_confirmation(scene: Scene) -> None:
    (task,) = await scene.accepted()
    worker = await scene.worker()
    assert len(await worker.claim(TYPE, {task: 1})) == 1
    assert await scene.state(task) == ("running", 2)
    assert await scene.events(task) == ["accepted", "claimed"]


async def test_of_two_workers_with_the_same_record_one_gets_the_task(scene: Scene) -> None:
    tasks = await scene.accepted(200)
    workers = [await scene.worker() for _ in range(4)]
    taken = await asyncio.gather(*(worker.claim(TYPE, dict.fromkeys(tasks, 1)) for worker in workers))
    assert sorted(claim.id for claims in taken for claim in claims) == sorted(tasks)


async def test_a_record_of_an_older_version_claims_nothing(scene: Scene) -> None:
    (task,) = await scene.accepted()
    await scene.make_due(task)
    (due,) = await scene.publishing.take(TYPE, 10)
    assert due.version == 2
    worker = await scene.worker()
    assert await worker.claim(TYPE, {task: 1}) == []
    assert await scene.state(task) == ("scheduled", 2)
    assert len(await worker.claim(TYPE, {task: 2})) == 1


async def test_a_duplicate_of_a_record_claims_nothing(scene: Scene) -> None:
    worker = await scene.worker()
    (claim,) = await scene.running(worker)
    assert await worker.claim(TYPE, {claim.id: 1}) == []
    assert await worker.claim(TYPE, {claim.id: 2}) == []
    assert (await scene.row(claim.id))["attempts"] == 1


async def test_a_record_without_a_row_and_one_of_another_type_claim_nothing(scene: Scene) -> None:
    (task,) = await scene.accepted()
    worker = await scene.worker()
    assert await worker.claim(TYPE, {uuid7(): 1, UUID(int=0): 1}) == []
    assert await worker.claim("sms", {task: 1}) == []


async def test_nothing_to_claim_runs_no_statement(scene: Scene) -> None:
    worker = await scene.worker()
    assert await worker.claim(TYPE, {}) == []
    assert await worker.reclaim({}) == []


async def test_a_task_past_its_expiry_says_so_at_the_claim(scene: Scene) -> None:
    soon = datetime.now(UTC) + timedelta(hours=1)
    worker = await scene.worker()
    (late,) = await scene.accepted(expires_at=soon)
    await scene.sql("UPDATE tasks SET expires_at = now() - interval '1 second'")
    (in_time,) = await scene.accepted(expires_at=soon)
    claims = {claim.id: claim for claim in await worker.claim(TYPE, {late: 1, in_time: 1})}
    assert claims[late].expired
    assert not claims[in_time].expired


async def test_each_claim_counts_an_attempt_and_a_release_takes_it_back(scene: Scene) -> None:
    worker = await scene.worker()
    (claim,) = await scene.running(worker)
    await scene.settle(worker, claim, release("drain"))
    assert (await scene.row(claim.id))["attempts"] == 0
    (again,) = await worker.claim(TYPE, {claim.id: 2})
    assert (again.attempt, again.version) == (1, 3)


async def test_claims_whose_answer_was_lost_are_found_again(scene: Scene) -> None:
    worker = await scene.worker()
    tasks = await scene.accepted(3)
    lost = await worker.claim(TYPE, dict.fromkeys(tasks, 1))
    found = await worker.reclaim(dict.fromkeys(tasks, 1))
    # `waited` goes on: all else is as the first answer said.
    assert {(c.id, c.version, c.attempt, c.payload) for c in found} == {
        (c.id, c.version, c.attempt, c.payload) for c in lost
    }


async def test_other_workers_claims_are_not_found_again(scene: Scene) -> None:
    mine, other = await scene.worker(), await scene.worker()
    (claim,) = await scene.running(other)
    assert await mine.reclaim({claim.id: 1}) == []


async def test_tasks_that_changed_since_are_not_found_again(scene: Scene) -> None:
    worker = await scene.worker()
    (claim,) = await scene.running(worker)
    assert await worker.reclaim({claim.id: 2}) == []
    await scene.lose(worker)
    await scene.upkeep.sweep(100, 1000)
    assert await worker.reclaim({claim.id: 1}) == []


async def test_preparing_to_claim_changes_nothing(scene: Scene) -> None:
    (task,) = await scene.accepted()
    worker = await scene.worker()
    await worker.prepare(TYPE)
    assert (await scene.claims(), await scene.state(task)) == (set(), ("scheduled", 1))
    assert len(await worker.claim(TYPE, {task: 1})) == 1
    await scene.lose(worker)
    await worker.prepare(TYPE)  # whose lease is over
