from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, cast
from uuid import UUID

import pytest

from taskflux.store.errors import StoreUnavailable
from taskflux.store.publishing import PendingPublish, Publishing
from taskflux.stream.envelope import OutRecord
from taskflux.stream.producer import NotPublished, Producer, Published
from taskflux.tasks.decision import Decision
from taskflux.tasks.states import Event, State
from taskflux.worker.publisher import Publisher
from tests.integration.store.scene import GRACE, LOG, TYPE, Scene
from tests.unit.world import WatchedDatabase

LATE = NotPublished("Timeout", "Kafka did not answer in time")


class Kafka:
    """In the producer's place: keeps what it is given, and answers what the test says, else that it has the record."""

    def __init__(self, scene: Scene) -> None:
        self.scene = scene
        self.healthy = True
        self.records: list[OutRecord] = []
        self.refused: dict[int, NotPublished] = {}
        self.rows: list[Any] = []

    async def publish(self, records: Sequence[OutRecord]) -> list[Published | NotPublished]:
        self.rows = await self.scene.sql(
            "SELECT t.state, t.version, extract(epoch FROM d.publish_at - now())::float8 AS wait"
            " FROM tasks t JOIN due d ON d.task_id = t.id ORDER BY t.id"
        )
        self.records += records
        return [self.refused.get(place) or Published(3, 70 + place, LOG) for place in range(len(records))]


def a_publisher(scene: Scene, kafka: Kafka, grace: float = GRACE) -> Publisher:
    return Publisher(cast("Producer", kafka), Publishing(scene.database, grace), "shop-")


async def promised(scene: Scene, count: int = 1, **changes: Any) -> list[PendingPublish]:
    """Tasks whose publish a relay has just promised."""
    tasks = await scene.accepted(count, grace=0.0, **changes)
    assert len(tasks) == count
    return list(await scene.publishing.take(TYPE, count))


async def test_a_publish_is_promised_before_kafka_is_asked_and_confirmed_after(scene: Scene) -> None:
    kafka = Kafka(scene)
    (due,) = await promised(scene)
    assert await a_publisher(scene, kafka).publish([due]) == 1
    ((state, version, wait),) = kafka.rows
    assert (state, version, wait) == ("scheduled", due.version, pytest.approx(GRACE, abs=5))
    assert await scene.state(due.id) == ("queued", due.version)
    row = await scene.due(due.id)
    assert row is not None
    assert (row["published_log"], row["published_partition"], row["published_offset"]) == (LOG, 3, 70)


async def test_a_record_names_its_task_and_version_and_carries_no_payload(scene: Scene) -> None:
    kafka = Kafka(scene)
    (due,) = await promised(scene, payload='{"to": "ada@example.org"}', traceparent=f"00-{'a' * 32}-{'b' * 16}-00")
    await a_publisher(scene, kafka).publish([due])
    (record,) = kafka.records
    assert (record.topic, record.key) == ("shop-tasks.email", str(due.id).encode())
    assert json.loads(record.value or b"") == {"taskId": str(due.id), "taskType": TYPE, "version": due.version}
    assert record.headers == (("traceparent", (due.traceparent or "").encode()),)


async def test_a_task_s_key_picks_the_partition_and_a_probe_says_so(scene: Scene) -> None:
    kafka = Kafka(scene)
    (due,) = await promised(scene, key="customer-1")
    await a_publisher(scene, kafka).publish([due], probe=True)
    (record,) = kafka.records
    assert record.key == b"customer-1"
    assert json.loads(record.value or b"")["probe"] is True


async def test_what_kafka_did_not_accept_stays_pending_and_a_relay_publishes_it_after_its_grace(
    scene: Scene,
) -> None:
    kafka = Kafka(scene)
    kafka.refused[0] = LATE
    (due,) = await promised(scene)
    assert await a_publisher(scene, kafka).publish([due]) == 0
    assert await scene.state(due.id) == ("scheduled", due.version)
    assert await scene.publishing.take(TYPE, 10) == []  # within its grace it is left alone
    await scene.make_due(due.id)
    (again,) = await scene.publishing.take(TYPE, 10)
    assert (again.id, again.version > due.version) == (due.id, True)


async def test_of_records_sent_together_only_those_that_kafka_took_are_confirmed(scene: Scene) -> None:
    kafka = Kafka(scene)
    kafka.refused[1] = LATE
    due = await promised(scene, 3)
    assert await a_publisher(scene, kafka).publish(due) == 2
    assert [(await scene.state(each.id))[0] for each in due] == ["queued", "scheduled", "queued"]
    assert isinstance(scene.database, WatchedDatabase)
    assert scene.database.ran["confirm"] == 1


async def test_a_record_that_postgresql_does_not_know_of_stays_pending(scene: Scene) -> None:
    assert isinstance(scene.database, WatchedDatabase)
    kafka = Kafka(scene)
    (due,) = await promised(scene)
    scene.database.unreachable.add("confirm")
    with pytest.raises(StoreUnavailable):
        await a_publisher(scene, kafka, grace=0.01).publish([due])
    assert await scene.due(due.id) is not None


async def test_a_confirmation_of_an_older_publish_ends_no_newer_one(scene: Scene) -> None:
    kafka = Kafka(scene)
    (due,) = await promised(scene)
    await scene.make_due(due.id)
    (newer,) = await scene.publishing.take(TYPE, 10)
    await a_publisher(scene, kafka).publish([due])
    assert await scene.state(due.id) == ("scheduled", newer.version)
    assert await scene.due(due.id) is not None


async def a_dead_task(scene: Scene) -> UUID:
    worker = await scene.worker()
    (claim,) = await scene.running(worker)
    await scene.settle(worker, claim, Decision(Event.DIED, State.DEAD, error_class="Permanent", reason="no"))
    return claim.id


@pytest.mark.parametrize("taken", [True, False])
async def test_a_dead_letter_is_pending_until_kafka_has_it(scene: Scene, taken: bool) -> None:
    kafka = Kafka(scene)
    task = await a_dead_task(scene)
    if not taken:
        kafka.refused[0] = LATE
    letters = await scene.publishing.take_dead(10)
    assert await a_publisher(scene, kafka).publish_dead(letters) == taken
    (record,) = kafka.records
    assert record.topic == "shop-tasks.dlq"
    assert json.loads(record.value or b"")["errorClass"] == "Permanent"
    assert (await scene.due(task, dead=True) is None) is taken


async def test_publishing_is_worth_a_try_while_the_producer_is_healthy(scene: Scene) -> None:
    kafka = Kafka(scene)
    publisher = a_publisher(scene, kafka)
    assert publisher.healthy
    kafka.healthy = False
    assert not publisher.healthy
