from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from types import SimpleNamespace
from typing import Any
from uuid import UUID

import pytest
from aiokafka import TopicPartition
from aiokafka.errors import GroupAuthorizationFailedError, InvalidTopicError, TopicAuthorizationFailedError

from taskflux.stream.positions import AT_REST, REFUSED, Behind, Lags, Log, read_lags

EMAIL, SMS = Log("tasks.email", "taskflux.email"), Log("tasks.sms", "taskflux.sms")
IDS: Mapping[Log, UUID] = {EMAIL: UUID(int=1), SMS: UUID(int=2)}


def ends(email: int = 10, sms: int = 5) -> dict[str, dict[tuple[str, int], int]]:
    return {
        "tasks.email": {("tasks.email", 0): email, ("tasks.email", 1): 3},
        "tasks.sms": {("tasks.sms", 0): sms},
    }


def at_rest() -> Lags:
    """Both groups have read everything."""
    lags = Lags()
    lags.unsettled(IDS, ends())
    lags.note(EMAIL, IDS[EMAIL], {("tasks.email", 0): 10, ("tasks.email", 1): 3}, ends())
    lags.note(SMS, IDS[SMS], {("tasks.sms", 0): 5}, ends())
    return lags


def test_a_group_that_is_not_known_is_asked_first() -> None:
    lags = Lags()
    assert lags.unsettled(IDS, ends()) == [EMAIL, SMS]
    assert EMAIL not in lags


def test_groups_at_rest_are_not_asked() -> None:
    lags = at_rest()
    assert lags.unsettled(IDS, ends()) == []
    assert lags.behind(EMAIL, ends()) == Behind(0, 2)


def test_a_record_is_lag_before_its_group_is_asked_again() -> None:
    lags = at_rest()
    assert lags.behind(EMAIL, ends(email=11)) == Behind(1, 2)
    assert lags.unsettled(IDS, ends(email=11)) == [EMAIL]


def test_busy_groups_take_turns() -> None:
    lags = at_rest()
    busy = ends(email=20, sms=20)
    assert lags.unsettled(IDS, busy) == [EMAIL, SMS]
    lags.note(EMAIL, IDS[EMAIL], {("tasks.email", 0): 12, ("tasks.email", 1): 3}, busy)
    assert lags.unsettled(IDS, busy) == [SMS, EMAIL]
    assert lags.behind(EMAIL, busy).lag == 8


def test_what_a_group_that_keeps_up_has_read_since_is_no_lag() -> None:
    """With many busy groups, each is asked every few seconds: these seconds' records would call for pods."""
    lags = at_rest()
    assert lags.behind(EMAIL, ends(email=610)) == Behind(1, 2)
    lags.note(EMAIL, IDS[EMAIL], {("tasks.email", 0): 608, ("tasks.email", 1): 3}, ends(email=610))
    assert lags.behind(EMAIL, ends(email=1210)) == Behind(2, 2)


def test_a_recreated_topic_is_asked_for_as_if_it_were_new() -> None:
    lags = at_rest()
    recreated = {**IDS, EMAIL: UUID(int=9)}
    assert lags.unsettled(recreated, ends(email=0)) == [EMAIL]
    assert EMAIL not in lags


def test_a_group_at_rest_is_asked_again_after_a_while_since_somebody_may_have_moved_it() -> None:
    lags = at_rest()
    for _ in range(AT_REST):
        assert lags.unsettled(IDS, ends()) == []
    assert lags.unsettled(IDS, ends()) == [EMAIL, SMS]


def test_a_new_partition_counts_from_its_start() -> None:
    lags = at_rest()
    more = {"tasks.sms": {("tasks.sms", 0): 5, ("tasks.sms", 1): 4}}
    assert lags.behind(SMS, more) == Behind(1, 2)
    lags.note(SMS, IDS[SMS], {("tasks.sms", 0): 5}, more)
    assert lags.behind(SMS, more) == Behind(4, 2)


def test_a_log_that_nobody_asks_for_any_more_is_forgotten() -> None:
    lags = at_rest()
    lags.unsettled({EMAIL: IDS[EMAIL]}, ends())
    assert SMS not in lags


def test_a_group_that_could_not_be_read_is_unknown_and_leaves_its_turn_to_others() -> None:
    lags = at_rest()
    lags.refuse(SMS)
    assert SMS not in lags
    for _ in range(REFUSED - 1):
        assert lags.unsettled(IDS, ends()) == []
    assert lags.unsettled(IDS, ends()) == [SMS]


class Kafka:
    """A cluster of two topics with a partition of 7 records each, which refuses one topic, or one group.

    `led` is what leads further partitions of the first topic; -1: nothing does.
    """

    def __init__(self, topic_error: int = 0, refused_group: str = "", led: Sequence[int] = ()) -> None:
        self._error, self._refused_group, self._led = topic_error, refused_group, led
        self.reading = asyncio.Lock()

    async def plain(self) -> Any:
        return self

    admin = reader = plain

    def get_random_node(self) -> int:
        return 1

    async def send(self, node: int, request: object) -> Any:
        names = [(0, "tasks.email"), (self._error, "tasks.sms")]
        led = {"tasks.email": [1, *self._led], "tasks.sms": [1]}
        return SimpleNamespace(
            topics=[
                (code, name, 0, 1, False, [(0, number, leader) for number, leader in enumerate(led[name])])
                for code, name in names
            ]
        )

    def partitions_for_topic(self, topic: str) -> set[int]:
        return set(range(1 + len(self._led)))

    async def end_offsets(self, places: list[TopicPartition]) -> dict[TopicPartition, int]:
        return dict.fromkeys(places, 7)

    async def beginning_offsets(self, places: list[TopicPartition]) -> dict[TopicPartition, int]:
        return dict.fromkeys(places, 0)

    async def list_consumer_group_offsets(self, group: str, partitions: list[TopicPartition]) -> dict[Any, Any]:
        if group == self._refused_group:
            raise GroupAuthorizationFailedError(group)
        return {place: SimpleNamespace(offset=5) for place in partitions}


@pytest.mark.parametrize(
    "kafka",
    [
        Kafka(topic_error=InvalidTopicError.errno),
        Kafka(topic_error=TopicAuthorizationFailedError.errno),
        Kafka(refused_group=SMS.group),
    ],
)
async def test_a_log_that_kafka_refuses_to_describe_hides_no_other(kafka: Any) -> None:
    assert await read_lags(kafka, [SMS, EMAIL], Lags(), tansu=False) == {EMAIL: Behind(2, 1)}


async def test_a_partition_without_a_leader_hides_no_other() -> None:
    kafka: Any = Kafka(led=[-1, 1])
    assert await read_lags(kafka, [EMAIL], Lags(), tansu=False) == {EMAIL: Behind(4, 2)}
