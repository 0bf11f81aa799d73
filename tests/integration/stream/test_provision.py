import asyncio

import pytest
from aiokafka.admin import AIOKafkaAdminClient

from taskflux.local.ports import free_port
from taskflux.stream import client
from taskflux.stream.client import KafkaUnavailable
from taskflux.stream.consumer import Consumer
from taskflux.stream.envelope import OutRecord
from taskflux.stream.positions import Positions
from taskflux.stream.producer import NotPublished, Producer, Published
from taskflux.stream.provision import ensure_topics
from taskflux.stream.settings import KafkaSettings
from tests.integration.stream.patience import eventually, log_ends, take


async def test_missing_topics_are_created_and_existing_ones_left_alone(settings: KafkaSettings) -> None:
    email, dead = f"{settings.topic_prefix}tasks.email", f"{settings.topic_prefix}tasks.dlq"
    first = await ensure_topics(settings, ["email"])
    assert (sorted(first.created), first.existing, first.refused) == ([dead, email], [], {})
    second = await ensure_topics(settings, ["email", "sms"])
    assert second.created == [f"{settings.topic_prefix}tasks.sms"]
    assert sorted(second.existing) == [dead, email]


async def test_fewer_partitions_than_asked_are_reported_and_not_changed(settings: KafkaSettings) -> None:
    await ensure_topics(settings, ["email"])
    report = await ensure_topics(settings.model_copy(update={"partitions": 5}), ["email"])
    assert report.too_few_partitions[f"{settings.topic_prefix}tasks.email"] == 3
    positions = Positions(settings)
    assert len(await log_ends(positions, f"{settings.topic_prefix}tasks.email")) == 3
    await positions.close()


async def test_several_processes_may_create_the_same_topics_at_once(settings: KafkaSettings) -> None:
    reports = await asyncio.gather(*(ensure_topics(settings, ["email", "sms"]) for _ in range(5)))
    assert all(not report.refused for report in reports)
    assert all(len(report.created) + len(report.existing) == 3 for report in reports)


async def test_a_name_that_cannot_be_a_type_is_refused_before_kafka_is_asked(settings: KafkaSettings) -> None:
    with pytest.raises(ValueError, match="reserved"):
        await ensure_topics(settings, ["dlq"])


async def test_without_brokers_it_says_so() -> None:
    nobody = KafkaSettings(bootstrap_servers=f"127.0.0.1:{free_port()}")
    with pytest.raises(KafkaUnavailable, match="Kafka did not answer"):
        await ensure_topics(nobody, ["email"])


async def test_a_deleted_topic_is_not_created_again_by_its_clients(
    settings: KafkaSettings, producer: Producer, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Brokers make a topic that a client asks for by its name, unless that is switched off.
    monkeypatch.setattr(client, "METADATA_MAX_AGE_MS", 300)
    await ensure_topics(settings, ["email"])
    topic, group = f"{settings.topic_prefix}tasks.email", f"{settings.topic_prefix}group"
    consumer, positions = Consumer(settings, group, topic), Positions(settings)
    await consumer.start()
    (sent,) = await producer.publish([OutRecord(topic, b"k", b"v")])
    assert isinstance(sent, Published)
    assert len(await take(consumer, 1)) == 1
    assert await positions.written_at({(topic, sent.partition): sent.offset})
    admin = AIOKafkaAdminClient(bootstrap_servers=settings.bootstrap_servers)
    await admin.start()
    await admin.delete_topics([topic])

    async def nobody_has_it() -> bool:
        (outcome,) = await producer.publish([OutRecord(topic, b"k", b"v")])
        await consumer.fetch(1, 0.1)
        refused = isinstance(outcome, NotPublished) and outcome.error == "UnknownTopic"
        return await positions.lag(group, topic) is None and refused and not consumer.assigned

    await eventually(nobody_has_it)
    for _ in range(10):
        assert await nobody_has_it()
        assert topic not in await admin.list_topics()
    await admin.close()
    await consumer.stop()
    await positions.close()
