from __future__ import annotations

from uuid import UUID

import pytest

from taskflux.tasks.circuit import (
    FIRST_PROBE,
    LAST_PROBE,
    OPEN_AFTER,
    RAMP_SECONDS,
    RAMP_START,
    Health,
    probe_delay,
    release_rate,
)

A, B, C = (UUID(int=number) for number in (1, 2, 3))


def test_failures_of_several_different_tasks_open_the_circuit() -> None:
    health = Health()
    assert [health.failure(task) for task in (A, B, C)] == [False, False, True]
    assert OPEN_AFTER == 3


def test_one_task_that_fails_again_and_again_does_not() -> None:
    health = Health()
    assert not any(health.failure(A) for _ in range(100))


def test_a_success_in_between_starts_the_count_anew() -> None:
    health = Health()
    health.failure(A)
    health.failure(B)
    health.success(1.0)
    assert not health.failure(C)


def test_once_it_was_enough_it_stays_enough_until_a_success() -> None:
    health = Health()
    for task in (A, B, C):
        health.failure(task)
    assert health.failure(A)


def test_a_success_counts_only_for_those_who_began_before() -> None:
    health = Health()
    assert not health.succeeded_since(0.0)
    health.success(10.0)
    assert health.succeeded_since(9.0)
    assert not health.succeeded_since(10.0)


def test_probes_come_ever_more_slowly_up_to_a_bound() -> None:
    assert [probe_delay(probes) for probes in range(6)] == [FIRST_PROBE, 2.0, 4.0, 8.0, LAST_PROBE, LAST_PROBE]
    assert probe_delay(10**9) == LAST_PROBE


def test_work_comes_back_at_a_rate_that_doubles_every_two_seconds() -> None:
    assert [release_rate(seconds) for seconds in (0.0, 2.0, 4.0)] == [RAMP_START, 2 * RAMP_START, 4 * RAMP_START]


@pytest.mark.parametrize("closed_for", [None, RAMP_SECONDS, 1e9])
def test_a_circuit_that_never_opened_or_closed_long_ago_holds_nothing_back(closed_for: float | None) -> None:
    assert release_rate(closed_for) is None


def test_a_clock_that_went_back_does_not_stop_the_release() -> None:
    assert release_rate(-3.0) == RAMP_START
