from __future__ import annotations

import math

import pytest

from taskflux.tasks.decision import FREE_RELEASES, LONGEST_DELAY, RELEASE_DELAY, Attempt, Decision, decide, release
from taskflux.tasks.errors import (
    Ambiguous,
    Crash,
    Expired,
    InvalidPayload,
    Misconfigured,
    Permanent,
    TaskError,
    Transient,
    Unavailable,
    WorkerLost,
)
from taskflux.tasks.policy import AmbiguousPolicy, Policy, RetryPolicy
from taskflux.tasks.states import Event, State, allowed

RETRY = RetryPolicy(max_attempts=5, first_delay=10, max_delay=100)
FIRST = Attempt(1, 5)
LAST = Attempt(5, 5)

RETRIED = (Event.RETRY, State.SCHEDULED)
DIED = (Event.DIED, State.DEAD)
HELD = (Event.HELD, State.UNCERTAIN)
BACK = (Event.RELEASED, State.SCHEDULED)


def after(error: TaskError, attempt: Attempt = FIRST, ambiguous: AmbiguousPolicy = "resend") -> Decision:
    return decide(Policy(RETRY, ambiguous), attempt, error, 0.5)


@pytest.mark.parametrize(
    ("error", "ambiguous", "first", "last"),
    [
        (Transient("x"), "resend", RETRIED, DIED),
        (Transient("x"), "hold", RETRIED, DIED),
        (Permanent("x"), "resend", DIED, DIED),
        (Permanent("x"), "hold", DIED, DIED),
        (InvalidPayload("x"), "resend", DIED, DIED),
        (Expired("x"), "hold", DIED, DIED),
        (WorkerLost("x"), "resend", DIED, DIED),
        (WorkerLost("x"), "hold", DIED, DIED),
        (Ambiguous("x"), "resend", RETRIED, DIED),
        (Ambiguous("x"), "hold", HELD, HELD),
        (Unavailable("x"), "resend", BACK, BACK),
        (Unavailable("x"), "hold", BACK, BACK),
        (Misconfigured("x"), "resend", BACK, BACK),
        (Misconfigured("x"), "hold", BACK, BACK),
        (Crash("x"), "resend", RETRIED, DIED),
        (Crash("x"), "hold", RETRIED, DIED),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, TaskError) else str(value),
)
def test_each_error_has_its_consequence_at_the_first_and_at_the_last_attempt(
    error: TaskError,
    ambiguous: AmbiguousPolicy,
    first: tuple[Event, State],
    last: tuple[Event, State],
) -> None:
    for attempt, expected in ((FIRST, first), (LAST, last)):
        decision = after(error, attempt, ambiguous)
        assert (decision.event, decision.state) == expected
        assert allowed(decision.event, State.RUNNING, decision.state)
        assert decision.error_class == type(error).__name__
        assert decision.reason == "x"


def test_a_retry_waits_for_its_share_of_the_backoff() -> None:
    assert after(Transient("x"), Attempt(3, 5)).delay == 20.0


def test_retry_after_is_a_lower_bound_of_the_delay() -> None:
    assert after(Transient("x", retry_after=300)).delay == 300
    assert after(Transient("x", retry_after=1)).delay == 5.0


@pytest.mark.parametrize("retry_after", [math.inf, 1e300])
def test_a_retry_after_beyond_the_range_of_timestamps_is_capped(retry_after: float) -> None:
    assert after(Transient("x", retry_after=retry_after)).delay == LONGEST_DELAY


@pytest.mark.parametrize("retry_after", [math.nan, -math.inf, -5.0])
def test_an_invalid_retry_after_is_ignored(retry_after: float) -> None:
    assert after(Transient("x", retry_after=retry_after)).delay == 5.0


def test_a_retry_after_does_not_add_attempts() -> None:
    assert after(Transient("x", retry_after=300), LAST).state is State.DEAD


def test_an_attempt_beyond_the_budget_dies_too() -> None:
    assert after(Transient("x"), Attempt(6, 5)).state is State.DEAD


def test_a_single_attempt_is_never_retried() -> None:
    assert after(Crash("x"), Attempt(1, 1)).state is State.DEAD


def test_progress_is_kept_for_the_next_attempt() -> None:
    assert after(Transient("x", progress={"sent": ["a"]})).result == {"sent": ["a"]}
    assert after(Transient("x")).result is None


def test_an_unreachable_provider_never_costs_an_attempt() -> None:
    attempt = FIRST
    for _ in range(100):
        decision = after(Unavailable("x"), attempt)
        assert decision.give_back
        assert decision.event is Event.RELEASED
        attempt = attempt._replace(releases=decision.releases)


def test_a_release_waits_for_a_short_time_with_jitter() -> None:
    delays = [decide(Policy(RETRY), FIRST, Unavailable("x"), jitter).delay for jitter in (0.0, 0.999)]
    assert delays == pytest.approx([RELEASE_DELAY / 2, RELEASE_DELAY], rel=0.01)


def test_a_task_released_three_times_while_others_succeeded_spends_attempts() -> None:
    attempt = FIRST._replace(others_succeeded=True)
    for count in range(1, FREE_RELEASES + 1):
        decision = after(Unavailable("x"), attempt)
        assert (decision.give_back, decision.releases) == (True, count)
        attempt = attempt._replace(releases=decision.releases)
    paid = after(Unavailable("x"), attempt)
    assert paid.event is Event.RETRY
    assert not paid.give_back
    assert paid.error_class == "Unavailable"


def test_such_a_task_goes_on_spending_attempts_until_it_succeeds() -> None:
    attempt = FIRST._replace(max_attempts=100, releases=FREE_RELEASES, others_succeeded=True)
    for number in range(1, 6):
        paid = after(Misconfigured("x"), attempt._replace(number=number))
        assert (paid.event, paid.give_back, paid.releases) == (Event.RETRY, False, FREE_RELEASES + number)
        attempt = attempt._replace(releases=paid.releases)


def test_a_task_that_alone_fails_waits_twice_as_long_each_time() -> None:
    attempt, delays = FIRST._replace(max_attempts=100, others_succeeded=True), []
    for number in range(1, 9):
        decision = after(Misconfigured("x"), attempt._replace(number=number))
        delays.append(decision.delay)
        attempt = attempt._replace(releases=decision.releases)
    assert delays == [3.75, 7.5, 15.0, 40.0, 60.0, 75.0, 75.0, 75.0]  # the retry's own backoff where that is longer


def test_the_first_failure_counts_and_further_ones_of_the_whole_provider_do_not() -> None:
    attempt = FIRST
    for _ in range(20):
        decision = after(Unavailable("x"), attempt)
        assert (decision.releases, decision.delay) == (1, 3.75)
        attempt = attempt._replace(releases=decision.releases)


def test_a_release_for_the_whole_provider_does_not_count() -> None:
    assert after(Unavailable("x"), FIRST._replace(releases=2)).releases == 2
    assert release("the circuit is open", releases=2).releases == 2


def test_a_release_that_costs_the_last_attempt_makes_the_task_dead() -> None:
    paying = LAST._replace(releases=FREE_RELEASES, others_succeeded=True)
    assert after(Misconfigured("x"), paying).state is State.DEAD


def test_an_expired_task_that_never_ran_spends_no_attempt() -> None:
    assert after(Expired("x"), FIRST).give_back


@pytest.mark.parametrize("error", [Permanent("x"), Transient("x"), Ambiguous("x"), Crash("x")])
def test_an_attempt_that_ran_is_spent(error: TaskError) -> None:
    assert not after(error, LAST).give_back


def test_a_claim_that_was_not_begun_is_released_at_once_and_spends_no_attempt() -> None:
    decision = release("the worker ended")
    assert (decision.event, decision.state, decision.delay, decision.give_back) == (*BACK, 0.0, True)


def test_a_handlers_own_error_class_is_treated_as_its_base_class() -> None:
    class OutOfStock(Transient):
        pass

    decision = after(OutOfStock("x"))
    assert decision.event is Event.RETRY
    assert decision.error_class == "OutOfStock"


def test_a_bare_task_error_is_refused() -> None:
    with pytest.raises(TypeError, match="not one of the errors"):
        after(TaskError("x"))
