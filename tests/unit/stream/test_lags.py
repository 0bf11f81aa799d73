from __future__ import annotations

from collections.abc import Mapping
from uuid import UUID

from aiokafka import TopicPartition

from taskflux.stream.positions import AT_REST, Behind, Lags, Log

EMAIL, SMS = Log("tasks.email", "taskflux.email"), Log("tasks.sms", "taskflux.sms")
IDS: Mapping[Log, UUID] = {EMAIL: UUID(int=1), SMS: UUID(int=2)}


def ends(email: int = 10, sms: int = 5) -> dict[TopicPartition, int]:
    return {
        TopicPartition("tasks.email", 0): email,
        TopicPartition("tasks.email", 1): 3,
        TopicPartition("tasks.sms", 0): sms,
    }


def at_rest() -> Lags:
    """Both groups have read everything."""
    lags = Lags()
    lags.unsettled(IDS, ends())
    lags.note(EMAIL, IDS[EMAIL], {("tasks.email", 0): 10, ("tasks.email", 1): 3})
    lags.note(SMS, IDS[SMS], {("tasks.sms", 0): 5})
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
    lags.note(EMAIL, IDS[EMAIL], {("tasks.email", 0): 12, ("tasks.email", 1): 3})
    assert lags.unsettled(IDS, busy) == [SMS, EMAIL]
    assert lags.behind(EMAIL, busy).lag == 8


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
    more = {**ends(), TopicPartition("tasks.sms", 1): 4}
    assert lags.behind(SMS, more) == Behind(4, 2)


def test_a_log_that_nobody_asks_for_any_more_is_forgotten() -> None:
    lags = at_rest()
    lags.unsettled({EMAIL: IDS[EMAIL]}, ends())
    assert SMS not in lags
