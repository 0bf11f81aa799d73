"""What follows an attempt: a pure decision from policy, attempt and error to the next transition."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Final

from taskflux.tasks.errors import (
    Ambiguous,
    Crash,
    Expired,
    JsonValue,
    Permanent,
    ProviderError,
    TaskError,
    Transient,
)
from taskflux.tasks.policy import Policy
from taskflux.tasks.states import Event, State

HANDBACK_DELAY: Final = 5.0
"""Seconds (before jitter) that a task waits after its provider failed; doubled by each further failure of it alone."""

FREE_HANDBACKS: Final = 3
"""Hand-backs that cost nothing while other tasks of the same provider succeeded; from the next one on, each pays."""


LONGEST_DELAY: Final = 30 * 86400.0
"""Seconds; no other side's `retry_after` counts for more."""


@dataclass(frozen=True, slots=True)
class Attempt:
    """What `decide` has to know of the claim: its number (from 1), the budget, and hand-backs counted so far.

    `others_succeeded`: the provider has served other tasks since it last failed for this one.
    """

    number: int
    max_attempts: int
    handbacks: int = 0
    others_succeeded: bool = False


@dataclass(frozen=True, slots=True)
class Decision:
    """The transition that settles an attempt. Delays are in seconds, counted by the store from its own clock."""

    event: Event
    state: State
    delay: float = 0.0
    give_back: bool = False
    handbacks: int = 0
    error_class: str | None = None
    reason: str | None = None
    result: Mapping[str, JsonValue] | None = None


def hand_back(reason: str, *, handbacks: int = 0) -> Decision:
    """The side effect was not begun (drain, open circuit, lost lease): the attempt is given back."""
    return Decision(Event.HANDED_BACK, State.SCHEDULED, give_back=True, handbacks=handbacks, reason=reason)


def unforeseen(policy: Policy, reason: str, *, called: bool) -> TaskError:
    """What an attempt has failed with that was left by something else than one of a handler's errors.

    Once its handler was `called`, the side effect may have happened: under `hold` nobody repeats it unasked.
    """
    return Ambiguous(reason) if called and policy.ambiguous == "hold" else Crash(reason)


def decide(policy: Policy, attempt: Attempt, error: TaskError, jitter: float) -> Decision:
    """The transition after `error`; `jitter` is a draw from [0, 1)."""
    match error:
        case ProviderError():
            return _provider_failed(policy, attempt, error, jitter)
        case Ambiguous() if policy.ambiguous == "hold":
            return _failed(Event.HELD, State.UNCERTAIN, error)
        case Permanent():
            # A claim that came too late never ran: the row shows the attempts that did.
            return _failed(Event.DIED, State.DEAD, error, give_back=isinstance(error, Expired))
        case Transient() | Ambiguous() | Crash():
            return _retry(policy, attempt, error, jitter)
        case _:
            raise TypeError(f"{type(error).__name__} is none of the errors that a handler may raise")


def _provider_failed(policy: Policy, attempt: Attempt, error: ProviderError, jitter: float) -> Decision:
    # The first failure counts in any case: the next probe is rather drawn from tasks that have not failed.
    handbacks = max(1, attempt.handbacks + attempt.others_succeeded)
    longest = max(policy.retry.max_delay, HANDBACK_DELAY)
    delay = min(HANDBACK_DELAY * 2.0 ** min(handbacks - 1, 30), longest) * (0.5 + jitter / 2)
    if attempt.others_succeeded and handbacks > FREE_HANDBACKS:
        # The provider serves others: it is this task that it cannot stand.
        paid = _retry(policy, attempt, error, jitter)
        return replace(paid, delay=max(paid.delay, delay), handbacks=handbacks)
    return _failed(Event.HANDED_BACK, State.SCHEDULED, error, delay=delay, give_back=True, handbacks=handbacks)


def _retry(policy: Policy, attempt: Attempt, error: TaskError, jitter: float) -> Decision:
    if attempt.number >= attempt.max_attempts:
        return _failed(Event.DIED, State.DEAD, error)
    delay = policy.retry.delay(attempt.number, jitter)
    if isinstance(error, Transient) and error.retry_after is not None:
        delay = max(delay, min(error.retry_after, LONGEST_DELAY))  # no number at all counts for nothing
    return _failed(Event.RETRY, State.SCHEDULED, error, delay=delay)


def _failed(
    event: Event,
    state: State,
    error: TaskError,
    *,
    delay: float = 0.0,
    give_back: bool = False,
    handbacks: int = 0,
) -> Decision:
    return Decision(event, state, delay, give_back, handbacks, error.error_class, error.reason, error.progress)
