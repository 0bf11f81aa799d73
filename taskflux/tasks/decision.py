"""What follows an attempt, and what follows the loss of a worker: pure decisions, from values to the next transition.

Any of the tasks that a lost worker held may have ended it (`os._exit`, the OOM killer), and nothing says which. So they
run again in two halves, each with nothing else in flight. The half that ends its worker again is halved in its turn,
until a task is left alone: it ends one more worker, or it was not the cause. The others lose time, and no attempt.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final, NamedTuple
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

RELEASE_DELAY: Final = 5.0
"""Seconds (before jitter) that a task waits after its provider failed; doubled by each further failure of this task
alone."""

FREE_RELEASES: Final = 3
"""Releases that cost no attempt while other tasks of the same provider succeed; each further one costs an attempt."""


LONGEST_DELAY: Final = 30 * 86400.0
"""Seconds; a longer `retry_after` counts as this."""


class Attempt(NamedTuple):
    """What `decide` has to know of the claim: its number (from 1), the budget, and the releases counted so far.

    `others_succeeded`: the provider has served other tasks since it last failed for this one.
    """

    number: int
    max_attempts: int
    releases: int = 0
    others_succeeded: bool = False


@dataclass(frozen=True, slots=True)
class Decision:
    """The transition that settles an attempt. `delay` is in seconds from the store's now; `give_back`: the attempt does
    not count.
    """

    event: Event
    state: State
    delay: float = 0.0
    give_back: bool = False
    releases: int = 0
    error_class: str | None = None
    reason: str | None = None
    result: Mapping[str, JsonValue] | None = None

    @property
    def progress(self) -> Mapping[str, JsonValue] | None:
        """What a failed attempt has noted for the next one: it is stored where a success has its result."""
        return None if self.event is Event.SUCCEEDED else self.result


def release(reason: str, *, releases: int = 0) -> Decision:
    """The side effect was not begun (drain, open circuit, lost lease): the attempt does not count."""
    return Decision(Event.RELEASED, State.SCHEDULED, give_back=True, releases=releases, reason=reason)


def unforeseen(policy: Policy, reason: str, *, called: bool) -> TaskError:
    """The error of an attempt that ended with an exception that is not one of a handler's errors.

    Once its handler was `called`, the side effect may have happened: under `hold` it is not repeated automatically.
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
            raise TypeError(f"{type(error).__name__} is not one of the errors that a handler may raise")


def _provider_failed(policy: Policy, attempt: Attempt, error: ProviderError, jitter: float) -> Decision:
    # The first failure counts in any case: the next probe prefers tasks that have not failed.
    releases = max(1, attempt.releases + attempt.others_succeeded)
    longest = max(policy.retry.max_delay, RELEASE_DELAY)
    delay = min(RELEASE_DELAY * 2.0 ** min(releases - 1, 30), longest) * (0.5 + jitter / 2)
    if attempt.others_succeeded and releases > FREE_RELEASES:
        # The provider serves others: the fault lies with this task.
        counted = _retry(policy, attempt, error, jitter)
        return replace(counted, delay=max(counted.delay, delay), releases=releases)
    return _failed(Event.RELEASED, State.SCHEDULED, error, delay=delay, give_back=True, releases=releases)


def _retry(policy: Policy, attempt: Attempt, error: TaskError, jitter: float) -> Decision:
    if attempt.number >= attempt.max_attempts:
        return _failed(Event.DIED, State.DEAD, error)
    delay = policy.retry.delay(attempt.number, jitter)
    if isinstance(error, Transient) and error.retry_after is not None:
        delay = max(delay, min(error.retry_after, LONGEST_DELAY))  # NaN is ignored
    return _failed(Event.RETRY, State.SCHEDULED, error, delay=delay)


def _failed(
    event: Event,
    state: State,
    error: TaskError,
    *,
    delay: float = 0.0,
    give_back: bool = False,
    releases: int = 0,
) -> Decision:
    return Decision(event, state, delay, give_back, releases, error.error_class, error.reason, error.progress)


LOSSES_ALONE: Final = 3
"""Workers that a task may end while it runs alone, unless a setting says otherwise: the last one makes it dead."""

_REASON: Final = "the worker that ran it was lost"
_RESEND: Final = Decision(Event.LEASE_EXPIRED, State.SCHEDULED, give_back=True, error_class="Ambiguous", reason=_REASON)
_HOLD: Final = Decision(Event.LEASE_EXPIRED, State.UNCERTAIN, error_class="Ambiguous", reason=_REASON)


class Held(NamedTuple):
    """A claim of a worker whose lease has ended; `hold` is the policy of its type.

    `suspect`: it already belonged to a group; `begun`: that group was running, not waiting for its turn. `alone` is how
    many workers were lost so far while they ran this task and nothing else.
    """

    task: UUID
    hold: bool = False
    suspect: bool = False
    begun: bool = False
    alone: int = 0


class Verdict(NamedTuple):
    """What follows for a claim whose worker was lost; `note` goes into its timeline.

    `group` is the one that it runs again in (None: it is not a suspect, or its group stays the same). `alone`: its
    worker ran nothing else. `loss`: its worker was lost, and it may have been running then.
    """

    decision: Decision
    note: str = ""
    group: UUID | None = None
    alone: bool = False
    loss: bool = True


def judge(
    held: Sequence[Held], *, lost: bool, losses_alone: int, new_group: Callable[[], UUID]
) -> Mapping[UUID, Verdict]:
    """The verdict on each claim that one worker held when its lease ended; `held` must be all of them.

    Not `lost`: the worker stopped normally, so no task was the cause. Suspects that waited for their turn were not the
    cause either.
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
        return Verdict(_RESEND, f"it runs again with {size - 1} others and nothing else", group)
    times = cause.alone + 1
    if times < losses_alone:
        return Verdict(
            _RESEND, f"it ran alone, {times} of {losses_alone} times; it runs alone again", group, alone=True
        )
    reason = f"it ended its worker while it ran alone, {times} times"
    dead = Decision(Event.DIED, State.DEAD, give_back=True, error_class="WorkerLost", reason=reason)
    return Verdict(dead, f"WorkerLost: {reason}")
