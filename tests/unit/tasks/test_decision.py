from __future__ import annotations

import math
from dataclasses import replace

import pytest

from taskflux.tasks.decision import FREE_HANDBACKS, HANDBACK_DELAY, LONGEST_DELAY, Attempt, Decision, decide, hand_back
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
BACK = (Event.HANDED_BACK, State.SCHEDULED)


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


def test_the_other_sides_retry_after_is_the_least_delay() -> None:
    assert after(Transient("x", retry_after=300)).delay == 300
    assert after(Transient("x", retry_after=1)).delay == 5.0


@pytest.mark.parametrize("retry_after", [math.inf, 1e300])
def test_no_retry_after_is_longer_than_a_timestamp_bears(retry_after: float) -> None:
    assert after(Transient("x", retry_after=retry_after)).delay == LONGEST_DELAY


@pytest.mark.parametrize("retry_after", [math.nan, -math.inf, -5.0])
def test_a_retry_after_that_says_nothing_counts_for_nothing(retry_after: float) -> None:
    assert after(Transient("x", retry_after=retry_after)).delay == 5.0


def test_a_retry_after_does_not_stretch_the_budget() -> None:
    assert after(Transient("x", retry_after=300), LAST).state is State.DEAD


def test_an_attempt_beyond_the_budget_dies_too() -> None:
    assert after(Transient("x"), Attempt(6, 5)).state is State.DEAD


def test_a_single_attempt_is_never_retried() -> None:
    assert after(Crash("x"), Attempt(1, 1)).state is State.DEAD


def test_what_was_achieved_is_kept_for_the_next_attempt() -> None:
    assert after(Transient("x", progress={"sent": ["a"]})).result == {"sent": ["a"]}
    assert after(Transient("x")).result is None


def test_a_provider_that_is_away_costs_no_attempt_however_often() -> None:
    attempt = FIRST
    for _ in range(100):
        decision = after(Unavailable("x"), attempt)
        assert decision.give_back
        assert decision.event is Event.HANDED_BACK
        attempt = replace(attempt, handbacks=decision.handbacks)


def test_a_hand_back_waits_a_little_and_not_all_of_them_alike() -> None:
    delays = [decide(Policy(RETRY), FIRST, Unavailable("x"), jitter).delay for jitter in (0.0, 0.999)]
    assert delays == pytest.approx([HANDBACK_DELAY / 2, HANDBACK_DELAY], rel=0.01)


def test_a_task_handed_back_three_times_while_others_succeeded_pays() -> None:
    attempt = replace(FIRST, others_succeeded=True)
    for count in range(1, FREE_HANDBACKS + 1):
        decision = after(Unavailable("x"), attempt)
        assert (decision.give_back, decision.handbacks) == (True, count)
        attempt = replace(attempt, handbacks=decision.handbacks)
    paid = after(Unavailable("x"), attempt)
    assert paid.event is Event.RETRY
    assert not paid.give_back
    assert paid.error_class == "Unavailable"


def test_who_has_paid_goes_on_paying_until_it_succeeds() -> None:
    attempt = replace(FIRST, max_attempts=100, handbacks=FREE_HANDBACKS, others_succeeded=True)
    for number in range(1, 6):
        paid = after(Misconfigured("x"), replace(attempt, number=number))
        assert (paid.event, paid.give_back, paid.handbacks) == (Event.RETRY, False, FREE_HANDBACKS + number)
        attempt = replace(attempt, handbacks=paid.handbacks)


def test_a_task_that_alone_fails_waits_twice_as_long_each_time() -> None:
    attempt, delays = replace(FIRST, max_attempts=100, others_succeeded=True), []
    for number in range(1, 9):
        decision = after(Misconfigured("x"), replace(attempt, number=number))
        delays.append(decision.delay)
        attempt = replace(attempt, handbacks=decision.handbacks)
    assert delays == [3.75, 7.5, 15.0, 40.0, 60.0, 75.0, 75.0, 75.0]  # the retry's own backoff where that is longer


def test_the_first_failure_is_counted_whoever_s_fault_it_is_and_further_ones_of_the_provider_are_not() -> None:
    attempt = FIRST
    for _ in range(20):
        decision = after(Unavailable("x"), attempt)
        assert (decision.handbacks, decision.delay) == (1, 3.75)
        attempt = replace(attempt, handbacks=decision.handbacks)


def test_a_hand_back_of_the_whole_provider_leaves_the_count_alone() -> None:
    assert after(Unavailable("x"), replace(FIRST, handbacks=2)).handbacks == 2
    assert hand_back("the circuit is open", handbacks=2).handbacks == 2


def test_paying_at_the_last_attempt_is_death() -> None:
    paying = replace(LAST, handbacks=FREE_HANDBACKS, others_succeeded=True)
    assert after(Misconfigured("x"), paying).state is State.DEAD


def test_a_task_that_came_too_late_gives_back_the_attempt_that_never_ran() -> None:
    assert after(Expired("x"), FIRST).give_back


@pytest.mark.parametrize("error", [Permanent("x"), Transient("x"), Ambiguous("x"), Crash("x")])
def test_an_attempt_that_ran_is_not_given_back(error: TaskError) -> None:
    assert not after(error, LAST).give_back


def test_what_was_not_begun_is_handed_back_at_once_and_free() -> None:
    decision = hand_back("the worker ended")
    assert (decision.event, decision.state, decision.delay, decision.give_back) == (*BACK, 0.0, True)


def test_a_kind_of_a_handlers_own_is_treated_as_what_it_derives_from() -> None:
    class OutOfStock(Transient):
        pass

    decision = after(OutOfStock("x"))
    assert decision.event is Event.RETRY
    assert decision.error_class == "OutOfStock"


def test_a_bare_task_error_says_not_what_happens_next_and_is_refused() -> None:
    with pytest.raises(TypeError, match="none of the errors"):
        after(TaskError("x"))
