from __future__ import annotations

import pytest

from taskflux.tasks.policy import RAMP_SECONDS, RAMP_START, Policy, RetryPolicy, release_rate


def test_the_ceiling_doubles_with_each_attempt_up_to_the_longest_delay() -> None:
    policy = RetryPolicy(first_delay=2, max_delay=60)
    assert [policy.ceiling(attempt) for attempt in range(1, 8)] == [2, 4, 8, 16, 32, 60, 60]


def test_the_thousandth_attempt_waits_the_longest_delay() -> None:
    assert RetryPolicy(max_attempts=1000, first_delay=0.001, max_delay=3600).ceiling(1000) == 3600


@pytest.mark.parametrize(("jitter", "delay"), [(0.0, 0.0), (0.5, 4.0), (0.999, 7.992)])
def test_the_delay_is_a_draw_from_zero_to_the_ceiling(jitter: float, delay: float) -> None:
    assert RetryPolicy(first_delay=2, max_delay=60).delay(3, jitter) == pytest.approx(delay)


def test_without_a_first_delay_every_retry_comes_at_once() -> None:
    assert RetryPolicy(first_delay=0, max_delay=0).delay(1000, 0.9) == 0


@pytest.mark.parametrize(
    ("arguments", "names"),
    [
        ({"max_attempts": 0}, "max_attempts"),
        ({"max_attempts": 1001}, "max_attempts"),
        ({"first_delay": -1}, "first_delay"),
        ({"first_delay": 10, "max_delay": 9}, "max_delay"),
    ],
)
def test_a_retry_policy_that_contradicts_itself_is_refused(arguments: dict[str, float], names: str) -> None:
    with pytest.raises(ValueError, match=names):
        RetryPolicy(**arguments)  # type: ignore[arg-type]


def test_an_unknown_word_for_ambiguous_outcomes_is_refused() -> None:
    with pytest.raises(ValueError, match="'resend' or 'hold'"):
        Policy(ambiguous="drop")  # type: ignore[arg-type]


@pytest.mark.parametrize("timeout", [0, -1])
def test_a_timeout_of_zero_or_less_is_refused(timeout: float) -> None:
    with pytest.raises(ValueError, match="timeout"):
        Policy(timeout=timeout)


def test_work_comes_back_at_a_rate_that_doubles_every_two_seconds() -> None:
    assert [release_rate(seconds) for seconds in (0.0, 2.0, 4.0)] == [RAMP_START, 2 * RAMP_START, 4 * RAMP_START]


@pytest.mark.parametrize("closed_for", [None, RAMP_SECONDS, 1e9])
def test_a_circuit_that_never_opened_or_closed_long_ago_does_not_limit_the_rate(closed_for: float | None) -> None:
    assert release_rate(closed_for) is None


def test_a_clock_that_was_set_back_does_not_stop_publishing() -> None:
    assert release_rate(-3.0) == RAMP_START
