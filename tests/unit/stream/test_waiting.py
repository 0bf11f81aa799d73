from __future__ import annotations

from uuid import UUID

from taskflux.stream.positions import MOST, PartitionPositions, TopicPositions, Waiting

LOG = UUID(int=1)
PLACE = ("tasks.email", 0)


def topic(*partitions: tuple[int, int], start: int = 0) -> dict[str, TopicPositions]:
    """Partitions as (the group's commit, the log's end)."""
    at = {number: PartitionPositions(start, end, commit) for number, (commit, end) in enumerate(partitions)}
    return {"tasks.email": TopicPositions(LOG, at)}


def looks(*series: tuple[float, dict[str, TopicPositions]]) -> float:
    """What the last of several looks says where no record can be read."""
    waiting = Waiting()
    age = 0.0
    for now, positions in series:
        age = waiting.look(positions, now)["tasks.email"]
    return age


def reads(*series: tuple[float, dict[str, TopicPositions], float | None]) -> float:
    """What the last of several looks says where the record of partition 0 says how old it is; None: it was read."""
    waiting = Waiting()
    age = 0.0
    for now, positions, told in series:
        unknown = waiting.unknown(positions)
        assert bool(unknown) == (told is not None)
        age = waiting.look(positions, now, {PLACE: told} if told is not None else {})["tasks.email"]
    return age


def test_nothing_waits_if_every_record_was_read() -> None:
    assert looks((0, topic((5, 5))), (10, topic((9, 9)))) == 0


def test_a_record_is_at_most_as_old_as_the_last_look_without_it() -> None:
    assert looks((0, topic((5, 5))), (10, topic((5, 6))), (25, topic((5, 6)))) == 25
    assert looks((0, topic((5, 5))), (10, topic((5, 5))), (15, topic((5, 6)))) == 5


def test_a_record_that_came_a_moment_ago_has_waited_a_moment() -> None:
    assert reads((0, topic((5, 5)), None), (5, topic((5, 6)), 0.25)) == 0.25
    assert reads((0, topic((5, 5)), None), (5, topic((8, 9)), 0.5), (10, topic((9, 10)), 0.25)) == 0.25


def test_a_record_that_stays_is_read_once_and_gets_older() -> None:
    assert reads((0, topic((5, 5)), None), (5, topic((5, 6)), 2.0), (15, topic((5, 9)), None)) == 12.0


def test_a_new_leader_knows_how_long_the_oldest_has_waited_before_it() -> None:
    assert reads((100, topic((0, 1000)), 700.0)) == 700.0
    assert reads((100, topic((0, 1000)), 700.0), (160, topic((0, 1000)), None)) == 760.0


def test_a_record_missing_at_a_look_is_no_older_whatever_its_timestamp_says() -> None:
    assert reads((0, topic((5, 5)), None), (5, topic((5, 6)), 1e9)) == 5.0


def test_a_record_present_at_the_first_look_is_no_younger_whatever_its_timestamp_says() -> None:
    assert reads((0, topic((5, 6)), 0.0), (30, topic((5, 6)), None)) == 30.0
    assert reads((0, topic((5, 6)), -3600.0)) == 0.0


def test_reading_records_makes_the_oldest_younger() -> None:
    rising = [(float(now), topic((0, now))) for now in range(0, 50, 10)]
    assert looks(*rising) == 40
    assert looks(*rising, (50.0, topic((30, 50)))) == 20


def test_before_the_first_look_nothing_is_known() -> None:
    assert looks((100, topic((0, 1000)))) == 0
    assert looks((100, topic((0, 1000))), (160, topic((0, 1000)))) == 60


def test_the_oldest_of_all_partitions_counts() -> None:
    assert looks((0, topic((5, 5), (1, 1))), (10, topic((5, 5), (1, 2))), (20, topic((5, 6), (1, 2)))) == 20


def test_a_recreated_log_starts_again() -> None:
    assert looks((0, topic((0, 900))), (50, topic((0, 3)))) == 0


def test_marks_are_bounded_and_the_age_of_the_oldest_is_kept() -> None:
    waiting = Waiting()
    for now in range(5 * MOST):
        age = waiting.look(topic((0, now)), float(now))["tasks.email"]
    assert age == 5 * MOST - 1
    assert all(len(marks) <= MOST + 1 for marks in waiting._marks.values())
