import uuid

from taskflux.stream.positions import PartitionPositions, TopicPositions

LOG = uuid.uuid4()
TOPIC = TopicPositions(LOG, {0: PartitionPositions(10, 50, 30), 1: PartitionPositions(10, 50, None)})


def test_lag_counts_from_the_commit_or_else_from_the_logs_start() -> None:
    assert [TOPIC.partitions[number].lag for number in (0, 1)] == [20, 40]
    assert TOPIC.lag == 60


def test_a_commit_before_the_start_or_beyond_the_end_does_not_change_the_lag() -> None:
    assert PartitionPositions(10, 50, 3).lag == 40
    assert PartitionPositions(0, 5, 900).lag == 0


def test_records_between_the_commit_and_the_end_will_be_delivered() -> None:
    assert [TOPIC.will_deliver(LOG, 0, offset) for offset in (29, 30, 49, 50)] == [False, True, True, False]
    assert [TOPIC.will_deliver(LOG, 1, offset) for offset in (9, 10, 49, 50)] == [False, True, True, False]


def test_a_missing_partition_or_a_recreated_topic_delivers_nothing() -> None:
    assert not TOPIC.will_deliver(LOG, 7, 30)
    assert not TOPIC.will_deliver(uuid.uuid4(), 0, 30)
