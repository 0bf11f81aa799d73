from __future__ import annotations

import asyncio
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, cast

import pytest

from taskflux.store.errors import StoreUnavailable
from taskflux.store.publishing import Circuits, PendingPublish
from taskflux.store.tasks import Tasks
from taskflux.tasks.model import Accepted, IdempotencyKey, KeyReused, Submission
from taskflux.worker.circuits import CircuitWatch
from taskflux.worker.intake import Intake
from taskflux.worker.publisher import Publisher
from tests.integration.store.scene import GRACE, Scene, submission
from tests.unit.world import WatchedDatabase


class Handed:
    """In the publisher's place: what was handed on to be published, and whether its row was durable by then."""

    def __init__(self, scene: Scene) -> None:
        self.scene = scene
        self.healthy = True
        self.tasks: list[PendingPublish] = []
        self.durable: list[bool] = []
        self.error: Exception | None = None

    async def publish(self, tasks: Sequence[PendingPublish], *, probe: bool = False) -> int:
        self.durable += [await self.scene.row(task.id) is not None for task in tasks]
        self.tasks += tasks
        if self.error is not None:
            raise self.error
        return len(tasks)


class Desk:
    """An intake, whom it hands on to, and the circuits that it knows."""

    def __init__(self, scene: Scene, together: bool = False) -> None:
        """`together`: it accepts as a batch does."""
        self.together = together
        self.handed = Handed(scene)
        self.circuits = CircuitWatch(Circuits(scene.database))
        self.database = cast("WatchedDatabase", scene.database)
        self.intake = Intake(Tasks(scene.database), cast("Publisher", self.handed), self.circuits, GRACE)

    async def accept(self, *submissions: Submission) -> list[Accepted | KeyReused]:
        async with asyncio.timeout(20):
            if self.together:
                answers = cast("list[Accepted | KeyReused]", list(await self.intake.accept_all(submissions)))
            else:
                answers = await asyncio.gather(*map(self.intake.accept, submissions))
            await self.intake.drain()
        return answers


@pytest.fixture(params=["one by one", "together"])
def desk(scene: Scene, request: pytest.FixtureRequest) -> Desk:
    return Desk(scene, request.param == "together")


def keyed(key: str, digest: bytes = b"digest", **changes: Any) -> Submission:
    return submission(idempotency=IdempotencyKey(key, digest), **changes)


async def test_a_task_is_durable_before_it_is_published(desk: Desk, scene: Scene) -> None:
    given = submission(key="customer-1", traceparent=f"00-{'a' * 32}-{'b' * 16}-00")
    (answer,) = await desk.accept(given)
    assert isinstance(answer, Accepted)
    assert (answer.id, answer.type, answer.repeated) == (given.id, "email", False)
    assert desk.handed.tasks == [PendingPublish(given.id, "email", 1, "customer-1", given.traceparent)]
    assert desk.handed.durable == [True]


async def test_who_publishes_at_once_has_promised_it_for_its_grace(desk: Desk, scene: Scene) -> None:
    given = submission()
    await desk.accept(given)
    due = await scene.due(given.id)
    assert due is not None
    assert due["wait"] == pytest.approx(GRACE, abs=5)


async def test_requests_that_come_together_share_a_statement_and_each_has_its_own_answer(
    desk: Desk, scene: Scene
) -> None:
    given = [submission() for _ in range(100)]
    answers = await desk.accept(*given)
    assert [cast("Accepted", each).id for each in answers] == [each.id for each in given]
    assert desk.database.ran["insert_tasks"] == 1
    assert {task.id for task in desk.handed.tasks} == {each.id for each in given}


async def test_a_repeated_key_is_answered_with_the_task_made_then_and_publishes_nothing(
    desk: Desk, scene: Scene
) -> None:
    first, second = keyed("order-7"), keyed("order-7")
    await desk.accept(first)
    desk.handed.tasks.clear()
    (answer,) = await desk.accept(second)
    assert isinstance(answer, Accepted)
    assert (answer.id, answer.repeated, desk.handed.tasks) == (first.id, True, [])
    assert await scene.row(second.id) is None


async def test_a_key_with_another_request_is_refused(desk: Desk, scene: Scene) -> None:
    await desk.accept(keyed("order-7"))
    assert await desk.accept(keyed("order-7", b"another")) == [KeyReused("order-7")]


async def test_of_requests_with_one_key_that_come_together_one_makes_the_task(desk: Desk, scene: Scene) -> None:
    answers = [cast("Accepted", each) for each in await desk.accept(*(keyed("order-7") for _ in range(5)))]
    assert len({answer.id for answer in answers}) == 1
    assert sorted(answer.repeated for answer in answers) == [False, True, True, True, True]
    assert len(desk.handed.tasks) == 1


async def test_an_insert_whose_answer_was_lost_makes_one_task(desk: Desk, scene: Scene) -> None:
    given = [submission(), keyed("order-7")]
    desk.database.mute |= {"insert_tasks", "insert_keyed"}
    answers = [cast("Accepted", each) for each in await desk.accept(*given)]
    assert [(answer.id, answer.repeated) for answer in answers] == [(each.id, False) for each in given]
    assert len(await scene.sql("SELECT id FROM tasks")) == 2


@pytest.mark.parametrize("later", [{"delay": 60.0}, {"schedule_at": datetime.now(UTC) + timedelta(hours=1)}])
async def test_a_task_for_later_is_left_to_the_relay(desk: Desk, scene: Scene, later: dict[str, Any]) -> None:
    given = submission(**later)
    await desk.accept(given)
    due = await scene.due(given.id)
    assert due is not None
    assert (desk.handed.tasks, due["wait"] > 30) == ([], True)


async def test_while_kafka_is_unreachable_tasks_are_left_to_the_relay_at_once(desk: Desk, scene: Scene) -> None:
    given = submission()
    desk.handed.healthy = False
    await desk.accept(given)
    due = await scene.due(given.id)
    assert due is not None
    assert (desk.handed.tasks, due["wait"] <= 0) == ([], True)


async def test_while_the_provider_s_circuit_is_open_its_tasks_alone_are_left_to_the_relay(
    desk: Desk, scene: Scene
) -> None:
    held, free = submission(provider="smtp"), submission()
    await scene.circuits.open("smtp", "Unavailable", "down")
    await desk.circuits.refresh()
    await desk.accept(held, free)
    assert [task.id for task in desk.handed.tasks] == [free.id]
    due = await scene.due(held.id)
    assert due is not None
    assert due["wait"] <= 0


async def test_a_publish_that_postgresql_could_not_confirm_does_not_stop_the_next(desk: Desk, scene: Scene) -> None:
    first, second = submission(), submission()
    desk.handed.error = StoreUnavailable("unreachable")
    await desk.accept(first)
    desk.handed.error = None
    await desk.accept(second)
    assert [task.id for task in desk.handed.tasks] == [first.id, second.id]


async def test_a_drain_waits_for_what_was_promised(desk: Desk, scene: Scene) -> None:
    given = submission()
    await desk.intake.accept(given)
    assert desk.handed.tasks == []
    await desk.intake.drain()
    assert [task.id for task in desk.handed.tasks] == [given.id]
