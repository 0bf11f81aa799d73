"""What follows the loss of a worker: which of its tasks come under suspicion, in which groups they run again, and which
one is dead.

Any of the tasks that a worker held may have ended it (`os._exit`, the OOM killer), and nothing says which. So they run
again in two halves, each with nothing else in flight. The half that ends its worker again is halved in its turn, until
a task is left alone: it ends one more worker, or it was not the cause. The others lose time, and no attempt.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final
from uuid import UUID

from taskflux.tasks.decision import Decision
from taskflux.tasks.states import Event, State

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
