"""What follows an attempt, and what follows the loss of a worker: pure decisions, from values to the next transition.

Any of the tasks that a lost worker held may have ended it (`os._exit`, the OOM killer), and nothing says which. So they
run again in two halves, each with nothing else in flight. The half that ends its worker again is halved in its turn,
until a task is left alone: it ends one more worker, or it was not the cause. The others lose time, and no attempt.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final
from uuid import UUID

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

    @property
    def progress(self) -> Mapping[str, JsonValue] | None:
        """What a failed attempt has noted for the next one: it is stored where a success has its result."""
        return None if self.event is Event.SUCCEEDED else self.result


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


LOSSES_ALONE: Final = 3
"""Workers that a task may end while it runs alone, unless a setting says otherwise: the last of them is its end."""

_REASON: Final = "the worker that ran it was lost"
_RESEND: Final = Decision(Event.LEASE_RAN_OUT, State.SCHEDULED, give_back=True, error_class="Ambiguous", reason=_REASON)
_HOLD: Final = Decision(Event.LEASE_RAN_OUT, State.UNCERTAIN, error_class="Ambiguous", reason=_REASON)


@dataclass(frozen=True, slots=True)
class Held:
    """A claim of a worker whose lease has ended; `hold` is the policy of its type.

    `suspect`: it belonged to a group already, and `begun`: that group ran, where it did not wait for its turn. `alone`
    is how many workers were lost so far while they ran this task and nothing else.
    """

    task: UUID
    hold: bool = False
    suspect: bool = False
    begun: bool = False
    alone: int = 0


@dataclass(frozen=True, slots=True)
class Verdict:
    """What becomes of a claim whose worker is gone; `note` stands in its timeline.

    `group` is the one that it runs again in (None: it is no suspect, or as suspect as before). `alone`: it was all that
    its worker ran. `loss`: its worker was lost, and it may have been running then.
    """

    decision: Decision
    note: str = ""
    group: UUID | None = None
    alone: bool = False
    loss: bool = True


def judge(
    held: Sequence[Held], *, lost: bool, losses_alone: int, new_group: Callable[[], UUID]
) -> Mapping[UUID, Verdict]:
    """The verdict on each claim that one worker held when its lease ended; all of them have to be there.

    Not `lost`: the worker ended in order, so that no task was the cause. Suspects that waited for their turn were not
    the cause either.
    """
    verdicts = {
        each.task: Verdict(_HOLD if each.hold else _RESEND, loss=lost and (each.begun or not each.suspect))
        for each in held
    }
    causes = sorted((each for each in held if verdicts[each.task].loss), key=lambda each: each.task)
    halves = [causes] if len(causes) == 1 else [causes[: len(causes) // 2], causes[len(causes) // 2 :]]
    for half in halves:
        group = new_group()
        for each in half:
            if not each.hold:
                verdicts[each.task] = _suspected(each, group, len(half), len(causes) == 1, losses_alone)
    return verdicts


def _suspected(cause: Held, group: UUID, size: int, alone: bool, losses_alone: int) -> Verdict:
    if not alone:
        return Verdict(_RESEND, f"it runs again with {size - 1} others and nothing beside them", group)
    times = cause.alone + 1
    if times < losses_alone:
        return Verdict(
            _RESEND, f"it ran alone, {times} of {losses_alone} times; it runs alone again", group, alone=True
        )
    reason = f"it ended its worker while it ran alone, {times} times"
    dead = Decision(Event.DIED, State.DEAD, give_back=True, error_class="WorkerLost", reason=reason)
    return Verdict(dead, f"WorkerLost: {reason}")
