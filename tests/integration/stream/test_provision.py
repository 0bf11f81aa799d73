import asyncio

import pytest

from taskflux.local.ports import free_port
from taskflux.stream.client import KafkaUnavailable
from taskflux.stream.positions import Positions
from taskflux.stream.provision import ensure_topics
from taskflux.stream.settings import KafkaSettings


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
    assert len(await positions.end_offsets(f"{settings.topic_prefix}tasks.email")) == 3
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
