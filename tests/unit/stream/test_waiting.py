from __future__ import annotations

from uuid import UUID

from handlers.stream.positions import PartitionPositions, TopicPositions
from handlers.stream.waiting import MOST, Waiting

LOG = UUID(int=1)


def topic(*partitions: tuple[int, int], start: int = 0) -> dict[str, TopicPositions]:
    """Partitions as (the group's commit, the log's end)."""
    at = {number: PartitionPositions(start, end, commit) for number, (commit, end) in enumerate(partitions)}
    return {"tasks.email": TopicPositions(LOG, at)}


def looks(*series: tuple[float, dict[str, TopicPositions]]) -> float:
    """What the last of several looks says."""
    waiting = Waiting()
    age = 0.0
    for now, positions in series:
        age = waiting.look(positions, now)["tasks.email"]
    return age


def test_nothing_waits_where_all_is_taken() -> None:
    assert looks((0, topic((5, 5))), (10, topic((9, 9)))) == 0


def test_a_record_is_at_most_as_old_as_the_last_look_without_it() -> None:
    assert looks((0, topic((5, 5))), (10, topic((5, 6))), (25, topic((5, 6)))) == 25
    assert looks((0, topic((5, 5))), (10, topic((5, 5))), (15, topic((5, 6)))) == 5


def test_what_is_taken_makes_the_oldest_younger() -> None:
    rising = [(float(now), topic((0, now))) for now in range(0, 50, 10)]
    assert looks(*rising) == 40
    assert looks(*rising, (50.0, topic((30, 50)))) == 20


def test_before_the_first_look_nothing_is_known() -> None:
    assert looks((100, topic((0, 1000)))) == 0
    assert looks((100, topic((0, 1000))), (160, topic((0, 1000)))) == 60


def test_the_oldest_of_all_partitions_counts() -> None:
    assert looks((0, topic((5, 5), (1, 1))), (10, topic((5, 5), (1, 2))), (20, topic((5, 6), (1, 2)))) == 20


def test_a_log_that_was_made_anew_begins_anew() -> None:
    assert looks((0, topic((0, 900))), (50, topic((0, 3)))) == 0


def test_marks_are_bounded_and_the_age_of_the_oldest_stays() -> None:
    waiting = Waiting()
    for now in range(5 * MOST):
        age = waiting.look(topic((0, now)), float(now))["tasks.email"]
    assert age == 5 * MOST - 1
    assert all(len(marks) <= MOST + 1 for marks in waiting._marks.values())
