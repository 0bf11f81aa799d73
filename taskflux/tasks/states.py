"""The states of a task, and the table of its transitions.

::

            accepted
               │
               ▼      publish confirmed
      ┌──► scheduled ───────────────► queued ──┐
      │     │  ▲ ▲  ◄─────────────────  │      │ claim
      │     │  │ │  record lost (audit) │      │ (the record may overtake
      │     │  │ │                      │      │  its confirmation)
      │     │  │ │ retry, release,      │      ▼
      │     │  │ └──────────────────────┼── running ──► succeeded
      │     │  │   lease expired        │      │  │
      │     │  │                        │      │  └──► uncertain ──► succeeded
      │     │  └──── resend ────────────┼──────┼────────── │ │
      │     ▼                           ▼      ▼           │ │
      │  cancelled ◄────────────────────┘    dead ◄────────┘ │
      │     │ replay                          │              │
      └─────┴─────────────────────────────────┘   late settle (see below)

The task's row does not say `queued` and `running`: the outbox and the claims do (docs/protocol.md).

A worker whose lease expired may still report the outcome, as long as the task was not claimed again: a known outcome is
better than a guess (`LATE_SUCCESS`, `LATE_DEATH`).
"""

from __future__ import annotations

from enum import StrEnum
from typing import Final


class State(StrEnum):
    SCHEDULED = "scheduled"
    QUEUED = "queued"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    DEAD = "dead"
    UNCERTAIN = "uncertain"
    CANCELLED = "cancelled"


ENDED: Final = frozenset({State.SUCCEEDED, State.DEAD, State.UNCERTAIN, State.CANCELLED})
"""States that last: `uncertain` until a delivery report or a person decides."""


class Event(StrEnum):
    """What happens to a task; the value is the word in its timeline."""

    PUBLISHED = "published"  # Kafka confirmed the record
    CLAIMED = "claimed"  # a worker owns it from here on
    SUCCEEDED = "succeeded"
    RETRY = "retry"  # an attempt failed, another follows
    RELEASED = "handed-back"  # no attempt spent: drain, open circuit, unreachable provider
    DIED = "died"  # permanent, exhausted, expired, or it ended its workers
    HELD = "held"  # the side effect may have happened, and the policy is `hold`
    LEASE_EXPIRED = "lease-ran-out"
    RECORD_LOST = "not-owed"  # the log no longer holds its record
    CANCELLED = "cancelled"
    REPLAYED = "replayed"
    RESOLVED_SUCCEEDED = "resolved-succeeded"
    RESOLVED_RESEND = "resolved-resend"
    RESOLVED_DEAD = "resolved-dead"
    LATE_SUCCESS = "late-success"
    LATE_DEATH = "late-death"


_S = State
TRANSITIONS: Final[dict[Event, tuple[frozenset[State], frozenset[State]]]] = {
    Event.PUBLISHED: (frozenset({_S.SCHEDULED}), frozenset({_S.QUEUED})),
    Event.CLAIMED: (frozenset({_S.SCHEDULED, _S.QUEUED}), frozenset({_S.RUNNING})),
    Event.SUCCEEDED: (frozenset({_S.RUNNING}), frozenset({_S.SUCCEEDED})),
    Event.RETRY: (frozenset({_S.RUNNING}), frozenset({_S.SCHEDULED})),
    Event.RELEASED: (frozenset({_S.RUNNING}), frozenset({_S.SCHEDULED})),
    Event.DIED: (frozenset({_S.RUNNING, _S.SCHEDULED}), frozenset({_S.DEAD})),  # scheduled: it expired while it waited
    Event.HELD: (frozenset({_S.RUNNING}), frozenset({_S.UNCERTAIN})),
    Event.LEASE_EXPIRED: (frozenset({_S.RUNNING}), frozenset({_S.SCHEDULED, _S.UNCERTAIN})),
    Event.RECORD_LOST: (frozenset({_S.QUEUED}), frozenset({_S.SCHEDULED})),
    Event.CANCELLED: (frozenset({_S.SCHEDULED, _S.QUEUED}), frozenset({_S.CANCELLED})),
    Event.REPLAYED: (frozenset({_S.DEAD, _S.CANCELLED}), frozenset({_S.SCHEDULED})),
    Event.RESOLVED_SUCCEEDED: (frozenset({_S.UNCERTAIN}), frozenset({_S.SUCCEEDED})),
    Event.RESOLVED_RESEND: (frozenset({_S.UNCERTAIN}), frozenset({_S.SCHEDULED})),
    Event.RESOLVED_DEAD: (frozenset({_S.UNCERTAIN}), frozenset({_S.DEAD})),
    Event.LATE_SUCCESS: (frozenset({_S.SCHEDULED, _S.QUEUED, _S.UNCERTAIN}), frozenset({_S.SUCCEEDED})),
    Event.LATE_DEATH: (frozenset({_S.SCHEDULED, _S.QUEUED, _S.UNCERTAIN}), frozenset({_S.DEAD})),
}
"""Event → (states it may start from, states it may lead to). Every statement in `store` follows a row of it."""


def allowed(event: Event, before: State, after: State) -> bool:
    """Whether `event` may take a task from `before` to `after`."""
    sources, targets = TRANSITIONS[event]
    return before in sources and after in targets
