from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Sequence
from typing import Any, cast
from uuid import UUID

import pytest

from taskflux import Receipt, Task, Transient
from taskflux.store.tasks import Tasks
from taskflux.stream.consumer import Consumer
from taskflux.stream.envelope import Envelope, Poison, Record, encode
from taskflux.worker.foreign import PoisonOutlet, Registration
from taskflux.worker.process import Process
from taskflux.worker.settings import Settings, WorkerSettings
from taskflux.worker.worker import Worker
from tests.integration.store.scene import GRACE, TYPE, Scene
from tests.unit.worker.workplace import LEASE, Payload, Workplace

TOPIC = "tasks.email"


def record(task: UUID, version: int = 1, *, offset: int = 0, probe: bool = False) -> Record:
    return Record(TOPIC, 0, offset, 0, *encode(Envelope(task, TYPE, version, probe=probe)))


def foreign(payload: object, *, task_id: str = "order-7", task_type: str = TYPE) -> Record:
    value = json.dumps({"taskId": task_id, "taskType": task_type, "payload": payload}).encode()
    return Record(TOPIC, 0, 0, 0, None, value)


class Topic:
    """In the consumer's place: batches that the test gives, and the records that need no redelivery.

    `idle` is set once all batches were fetched and dealt with. `before_done` is what PostgreSQL had been asked by the
    time that a batch was noted as done.
    """

    def __init__(self, process: Process, *batches: list[Record]) -> None:
        self.process = process
        self.batches = list(batches)
        self.done: list[Record] = []
        self.idle = asyncio.Event()
        self.stopped = False
        self.before_done: list[set[str]] = []
        self.seen: Callable[[], set[str]] = set

    async def fetch(self, max_records: int, timeout: float) -> list[Record]:
        if self.batches:
            return self.batches.pop(0)
        if not timeout:
            return []  # it has something else to do
        self.idle.set()
        await self.process.draining.wait()
        return []

    def note_done(self, records: Sequence[Record]) -> None:
        self.done += records
        self.before_done.append(self.seen())

    async def stop(self) -> None:
        self.stopped = True


class Outlet:
    """In the poison outlet's place; `durable` is whether it manages before it is told to drain."""

    def __init__(self, events: list[str]) -> None:
        self.poison: list[tuple[Record, Poison]] = []
        self.durable = True
        self.events = events

    async def put_aside(self, poison: Sequence[tuple[Record, Poison]]) -> bool:
        self.poison += poison
        self.events.append("poison")
        return self.durable


class Shift:
    """A worker at its work."""

    def __init__(self, place: Workplace, *batches: list[Record]) -> None:
        self.place = place
        self.process = Process("process-email", Settings(worker=WorkerSettings(beat_seconds=0.001, drain_seconds=5)))
        self.topic = Topic(self.process, *batches)
        self.topic.seen = lambda: set(place.database.ran)
        self.events: list[str] = []
        self.outlet = Outlet(self.events)
        registration = Registration(self.process, Tasks(place.database), GRACE)
        self.worker = Worker(
            self.process,
            cast("Consumer", self.topic),
            place.executor,
            registration,
            cast("PoisonOutlet", self.outlet),
        )

    async def work(self) -> None:
        """Take what there is, and drain."""
        async with asyncio.timeout(20):
            working = asyncio.create_task(self.worker.run())
            idle = asyncio.create_task(self.topic.idle.wait())
            await asyncio.wait([working, idle], return_when=asyncio.FIRST_COMPLETED)
            idle.cancel()
            while self.place.executor.in_flight and not working.done():
                await asyncio.wait([working], timeout=0.005)
            self.process.drain()
            await working


class Seen:
    """A handler that remembers its attempts."""

    def __init__(self) -> None:
        self.tasks: list[Task[Payload]] = []

    async def __call__(self, task: Task[Payload]) -> Receipt:
        self.tasks.append(task)
        return Receipt()


async def queued(scene: Scene, count: int = 1) -> list[UUID]:
    tasks = await scene.accepted(count)
    await scene.confirm(tasks)
    return tasks


async def test_records_become_running_tasks_and_are_done_with_once_their_claims_are_durable(scene: Scene) -> None:
    seen = Seen()
    place = await Workplace.of(scene, seen)
    tasks = await queued(scene, 3)
    records = [record(task, offset=offset) for offset, task in enumerate(tasks)]
    shift = Shift(place, records)
    await shift.work()
    assert {task.id for task in seen.tasks} == set(tasks)
    assert [(await scene.state(task))[0] for task in tasks] == ["succeeded"] * 3
    assert (shift.topic.done, place.database.ran["claim"], shift.topic.stopped) == (records, 1, True)
    assert "claim" in shift.topic.before_done[0]


async def test_a_record_whose_task_has_moved_on_is_done_with_and_not_run(scene: Scene) -> None:
    seen = Seen()
    place = await Workplace.of(scene, seen)
    (task,) = await queued(scene)
    shift = Shift(place, [record(task, version=0), record(UUID(int=5))])
    await shift.work()
    assert (seen.tasks, len(shift.topic.done)) == ([], 2)
    assert (await scene.state(task))[0] == "queued"


async def test_a_record_that_is_delivered_twice_is_run_once(scene: Scene) -> None:
    seen = Seen()
    place = await Workplace.of(scene, seen)
    (task,) = await queued(scene)
    shift = Shift(place, [record(task, offset=1), record(task, offset=2)], [record(task, offset=1)])
    await shift.work()
    assert ([each.attempt for each in seen.tasks], len(shift.topic.done)) == ([1], 3)


async def test_of_two_records_of_a_task_the_newer_version_counts(scene: Scene) -> None:
    seen = Seen()
    place = await Workplace.of(scene, seen)
    (task,) = await scene.accepted(grace=0.0)
    (due,) = await scene.publishing.take(TYPE, 1)
    await Shift(place, [record(task, due.version, offset=1), record(task, 1, offset=2)]).work()
    assert [each.id for each in seen.tasks] == [task]


async def test_while_postgresql_is_unreachable_nothing_is_done_with_and_then_all_of_it_is_claimed(scene: Scene) -> None:
    seen = Seen()
    place = await Workplace.of(scene, seen)
    (task,) = await queued(scene)
    shift = Shift(place, [record(task)])
    place.database.unreachable.add("claim")
    working = asyncio.create_task(shift.work())
    await place.database.failed.wait()
    assert shift.topic.done == []
    place.database.unreachable.clear()
    await working
    assert ([each.id for each in seen.tasks], len(shift.topic.done)) == ([task], 1)


async def test_a_drain_while_postgresql_is_unreachable_leaves_the_records_to_others(scene: Scene) -> None:
    place = await Workplace.of(scene, Seen())
    shift = Shift(place, [record(task) for task in await queued(scene)])
    place.database.unreachable.add("claim")
    working = asyncio.create_task(shift.worker.run())
    await place.database.failed.wait()
    shift.process.drain()
    await working
    assert (shift.topic.done, shift.topic.stopped) == ([], True)


async def test_a_claim_whose_answer_was_lost_is_found_again_and_run_once(scene: Scene) -> None:
    seen = Seen()
    place = await Workplace.of(scene, seen)
    tasks = await queued(scene, 2)
    place.database.mute.add("claim")
    await Shift(place, [record(task) for task in tasks]).work()
    assert {task.id for task in seen.tasks} == set(tasks)
    assert [task.attempt for task in seen.tasks] == [1, 1]
    assert [(await scene.state(task))[0] for task in tasks] == ["succeeded", "succeeded"]


@pytest.mark.parametrize("known", [True, False], ids=["it has found out", "the claim finds out"])
async def test_a_worker_whose_lease_was_ended_claims_under_a_new_identity(scene: Scene, known: bool) -> None:
    seen = Seen()
    place = await Workplace.of(scene, seen)
    tasks, before = await queued(scene, 3), place.claims.worker.id
    shift = Shift(place, [record(task) for task in tasks])
    await place.claims.end()
    if known:
        place.clock.now += LEASE
    await shift.work()
    assert place.claims.worker.id != before
    assert {task.id for task in seen.tasks} == set(tasks)
    assert {(await scene.state(task))[0] for task in tasks} == {"succeeded"}
    assert len(shift.topic.done) == 3


async def test_what_an_ended_lease_had_claimed_without_an_answer_is_left_to_the_sweep(scene: Scene) -> None:
    seen = Seen()
    place = await Workplace.of(scene, seen)
    tasks = await queued(scene, 2)
    place.database.mute.add("claim")

    async def ended() -> None:
        place.database.when.clear()
        await scene.lose(place.claims)

    place.database.when["reclaim"] = ended
    await Shift(place, [record(task) for task in tasks]).work()
    assert seen.tasks == []
    assert {(await scene.state(task))[0] for task in tasks} == {"running"}
    await scene.upkeep.sweep(10, 1000.0)
    assert {await scene.state(task) for task in tasks} == {("scheduled", 3)}


async def test_what_was_found_again_before_the_lease_was_ended_is_not_run(scene: Scene) -> None:
    seen = Seen()
    place = await Workplace.of(scene, seen)
    (task,) = await queued(scene)
    place.database.mute.add("claim")

    async def ended() -> None:
        place.database.when.clear()
        await scene.lose(place.claims)

    async def found_again() -> None:
        place.database.when = {"claim": ended}

    place.database.when["reclaim"] = found_again
    await Shift(place, [record(task), record(UUID(int=5))]).work()
    assert seen.tasks == []
    await scene.upkeep.sweep(10, 1000.0)
    assert await scene.state(task) == ("scheduled", 3)


async def test_a_worker_that_was_cut_off_renews_its_lease_before_it_claims(scene: Scene) -> None:
    seen = Seen()
    place = await Workplace.of(scene, seen)
    place.clock.now += LEASE
    term = place.lease.term
    await Shift(place, [record(task) for task in await queued(scene)]).work()
    assert (len(seen.tasks), place.lease.term) == (1, term + 1)


async def test_another_producer_s_task_is_registered_once_and_run(scene: Scene) -> None:
    seen = Seen()
    place = await Workplace.of(scene, seen)
    await Shift(place, [foreign({"to": "ada"}, task_id="a")], [foreign({"to": "ada"}, task_id="a")]).work()
    assert [task.payload for task in seen.tasks] == [Payload(to="ada")]


@pytest.mark.parametrize("together", [True, False])
async def test_an_id_that_comes_again_with_another_payload_is_poison(scene: Scene, *, together: bool) -> None:
    place = await Workplace.of(scene, Seen())
    records = [foreign({"to": "ada"}, task_id="b"), foreign({"to": "bob"}, task_id="b")]
    shift = Shift(place, *([records] if together else [[each] for each in records]))
    await shift.work()
    ((put_aside, why),) = shift.outlet.poison
    assert (put_aside, why.error_class) == (records[1], "IdReused")
    assert [row["payload"] for row in await scene.sql("SELECT payload FROM tasks")] == ['{"to":"ada"}']


async def test_poison_is_put_aside_before_anything_is_claimed_or_done_with(scene: Scene) -> None:
    place = await Workplace.of(scene, Seen())
    (task,) = await queued(scene)
    bad = Record(TOPIC, 0, 1, 0, None, b"no json")
    shift = Shift(place, [record(task), bad])
    await shift.work()
    ((put_aside, why),) = shift.outlet.poison
    assert (put_aside, why.error_class, len(shift.topic.done)) == (bad, "NotJson", 2)


async def test_poison_that_could_not_be_put_aside_holds_its_whole_batch(scene: Scene) -> None:
    seen = Seen()
    place = await Workplace.of(scene, seen)
    (task,) = await queued(scene)
    shift = Shift(place, [record(task), Record(TOPIC, 0, 1, 0, None, b"no json")])
    shift.outlet.durable = False
    await shift.work()
    assert (seen.tasks, shift.topic.done, (await scene.state(task))[0]) == ([], [], "queued")


async def test_without_poison_nothing_is_put_aside(scene: Scene) -> None:
    place = await Workplace.of(scene, Seen())
    shift = Shift(place, [record(task) for task in await queued(scene)])
    await shift.work()
    assert shift.events == []


async def test_a_probe_says_so_to_the_executor(scene: Scene) -> None:
    seen = Seen()
    place = await Workplace.of(scene, seen, client=object())
    await scene.circuits.open("outside", "Unavailable", "down")
    await place.watch.refresh()
    probe, other = await queued(scene, 2)
    await Shift(place, [record(probe, probe=True)]).work()
    assert [task.id for task in seen.tasks] == [probe]
    assert (await scene.state(other))[0] == "queued"


async def test_the_lease_is_renewed_while_tasks_run_and_after_a_beat_that_failed(scene: Scene) -> None:
    place = await Workplace.of(scene, Seen())
    shift = Shift(place)
    place.database.unreachable.add("beat")
    place.clock.now += LEASE
    beating = asyncio.create_task(shift.worker.keep_lease())
    await place.database.failed.wait()
    assert not place.lease.valid
    place.database.unreachable.clear()
    async with asyncio.timeout(20):
        while not place.lease.valid:
            await asyncio.wait([beating], timeout=0.001)
    beating.cancel()


async def test_a_worker_has_its_lease_and_its_statements_ready_before_a_record_is_there(scene: Scene) -> None:
    place = await Workplace.of(scene, Seen())
    place.lease.lose()
    beating = asyncio.create_task(Shift(place).worker.keep_lease())
    async with asyncio.timeout(20):
        while not {"beat", "claim", "settle"} <= set(place.database.ran):
            await asyncio.wait([beating], timeout=0.001)
    beating.cancel()
    assert place.lease.valid
    assert place.database.ran["claim"] == 1


# Claims that have lost their attempt ---------------------------------------------------------------------------------


async def test_a_claim_that_no_attempt_has_begun_is_released(scene: Scene) -> None:
    seen = Seen()
    place = await Workplace.of(scene, seen, ambiguous="hold")
    (claim,) = await place.claim()
    await Shift(place).worker.release_lost()
    await place.settled()
    row = await scene.row(claim.id)
    assert (row["state"], row["attempts"], seen.tasks) == ("scheduled", 0, [])
    assert row["error_reason"] == "its worker has lost track of the attempt"


@pytest.mark.parametrize(
    ("policy", "state", "event"), [("resend", "scheduled", "retry"), ("hold", "uncertain", "held")]
)
async def test_a_claim_whose_attempt_a_bug_of_ours_has_ended_is_settled_by_its_policy(
    scene: Scene, policy: Any, state: str, event: str
) -> None:
    draws: list[float] = []

    def fails_at_first() -> float:
        draws.append(0.5)
        if len(draws) == 1:
            raise RuntimeError("a bug in the executor")
        return 0.5

    async def work(task: Task[Payload]) -> Receipt:
        raise Transient("later")

    asyncio.get_running_loop().set_exception_handler(lambda loop, context: None)
    place = await Workplace.of(scene, work, ambiguous=policy, jitter=fails_at_first)
    (claim,) = await place.claim()
    place.begin(claim)
    await place.settled()
    assert (await scene.state(claim.id))[0] == "running"
    assert place.executor.holds(claim.id, claim.version)  # a claim whose answer was lost would find it, too
    worker = Shift(place).worker
    await worker.release_lost()
    await place.settled()
    row = await scene.row(claim.id)
    assert (row["state"], row["attempts"], row["error_class"]) == (state, 1, "Ambiguous")
    await worker.release_lost()
    assert await scene.events(claim.id) == ["accepted", "published", "claimed", event]
    assert not place.executor.holds(claim.id, claim.version)


async def test_a_claim_whose_attempt_was_cancelled_before_its_first_step_is_released(scene: Scene) -> None:
    seen = Seen()
    place = await Workplace.of(scene, seen)
    (claim,) = await place.claim()
    before = asyncio.all_tasks()
    place.begin(claim, turn=asyncio.Event())
    (attempt,) = asyncio.all_tasks() - before
    attempt.cancel()
    await asyncio.wait([attempt])
    await Shift(place).worker.release_lost()
    await place.settled()
    assert (await scene.events(claim.id))[-1] == "handed-back"
    assert seen.tasks == []


async def test_a_claim_in_line_whose_asyncio_task_was_cancelled_before_its_first_step_runs_in_another(
    scene: Scene,
) -> None:
    seen = Seen()
    place = await Workplace.of(scene, seen)
    (claim,) = await place.claim()
    before = asyncio.all_tasks()
    place.begin(claim)
    (attempt,) = asyncio.all_tasks() - before
    attempt.cancel()
    await place.settled()
    assert [task.id for task in seen.tasks] == [claim.id]
    assert (await scene.state(claim.id))[0] == "succeeded"


async def test_a_claim_that_waited_for_its_turn_takes_no_part_in_the_count_once_it_is_released(scene: Scene) -> None:
    place = await Workplace.of(scene, Seen())
    room = place.executor.room
    (claim,) = await place.claim()
    before = asyncio.all_tasks()
    place.begin(claim, turn=asyncio.Event())
    (attempt,) = asyncio.all_tasks() - before
    attempt.cancel()
    await asyncio.wait([attempt])
    await Shift(place).worker.release_lost()
    await place.settled()
    assert place.executor.room == room


async def test_a_claim_whose_answer_is_under_way_is_not_released(scene: Scene) -> None:
    seen = Seen()
    place = await Workplace.of(scene, seen)
    (task,) = await queued(scene)
    shift = Shift(place, [record(task)])
    place.database.mute.add("claim")
    looks: list[None] = []

    async def look() -> None:
        if not looks:
            looks.append(None)
            await shift.worker.release_lost()

    place.database.when["reclaim"] = look
    await shift.work()
    assert (len(looks), [each.attempt for each in seen.tasks]) == (1, [1])
    assert await scene.events(task) == ["accepted", "published", "claimed", "succeeded"]


async def test_a_claim_that_is_asked_for_again_while_it_is_looked_at_is_not_released(scene: Scene) -> None:
    seen = Seen()
    place = await Workplace.of(scene, seen)
    (claim,) = await place.claim()
    shift = Shift(place, [record(claim.id)])
    place.database.mute.add("claim")
    asked, looked, finds = asyncio.Event(), asyncio.Event(), list[asyncio.Task[None]]()

    async def find() -> None:
        if not finds:
            finds.append(asyncio.create_task(shift.work()))
            await asked.wait()
        else:
            asked.set()
            await looked.wait()

    place.database.when["reclaim"] = find
    await shift.worker.release_lost()
    looked.set()
    await asyncio.gather(*finds)
    assert [each.attempt for each in seen.tasks] == [1]
    assert await scene.events(claim.id) == ["accepted", "published", "claimed", "succeeded"]


async def test_a_claim_whose_outcome_is_under_way_is_not_released(
    scene: Scene, caplog: pytest.LogCaptureFixture
) -> None:
    place = await Workplace.of(scene, Seen())
    (claim,) = await place.claim()
    place.database.unreachable.add("settle")
    place.begin(claim)
    await place.database.failed.wait()
    await Shift(place).worker.release_lost()
    place.database.unreachable.clear()
    await place.settled()
    assert (await scene.events(claim.id))[-2:] == ["claimed", "succeeded"]
    assert "no longer had an attempt" not in caplog.text


async def test_a_worker_looks_for_lost_claims_again_after_postgresql_was_unreachable(scene: Scene) -> None:
    place = await Workplace.of(scene, Seen())
    (claim,) = await place.claim()
    place.database.unreachable.add("held")
    looking = asyncio.create_task(Shift(place).worker.keep_claims(0.001))
    await place.database.failed.wait()
    place.database.unreachable.clear()
    async with asyncio.timeout(20):
        while (await scene.state(claim.id))[0] == "running":
            await asyncio.wait([looking], timeout=0.001)
    looking.cancel()
