"""The guarantees, checked over everything that was sent so far."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from uuid import UUID

from taskflux.http.tasks import TimelineEntry, parse_timeline
from taskflux.tasks.states import Event, State, allowed
from tests.upgrade.ledger import WAITING, Attempt, Row
from tests.upgrade.load import Sent

HOLD = ("sms", "drill-held")


@dataclass(frozen=True, slots=True)
class Evidence:
    """What is known of the tasks. `killed` are the ids of processes that ended without a drain."""

    sent: Mapping[UUID, Sent]
    rows: Mapping[UUID, Row]
    mails: Mapping[int, Sequence[float]]
    texts: Mapping[int, Sequence[float]]
    attempts: Mapping[UUID, Sequence[Attempt]]
    killed: Collection[int]
    exempt: Collection[UUID] = ()
    """Tasks that need not have ended: their worker does not run yet."""


def faults(evidence: Evidence) -> Iterator[str]:
    """A sentence for each guarantee that a task breaks."""
    for task in evidence.sent.values():
        row = evidence.rows.get(task.id)
        if row is None:
            yield f"{task.id} was accepted and has no row"
            continue
        timeline = parse_timeline(row["timeline"])
        told = f"{task.type} {task.id}"
        yield from (f"{told} {fault}" for fault in _of_state(evidence, task, row, timeline))
        yield from (f"{told} {fault}" for fault in _of_effects(evidence, task, row, timeline))
        yield from (f"{told} {fault}" for fault in _of_cancel(evidence, task, row))
        yield from (f"{told} {fault}" for fault in _of_timeline(row, timeline))


def _of_state(evidence: Evidence, task: Sent, row: Row, timeline: Sequence[TimelineEntry]) -> Iterator[str]:
    state = row["state"]
    if state in WAITING:
        if task.id not in evidence.exempt:
            yield f"has not ended: it is {state}"
        return
    if state == "uncertain" and not (task.type in HOLD and _was_killed(timeline, evidence.killed)):
        yield "is held, and no kill fell into its attempts"
    if row["losses"] and not _was_killed(timeline, evidence.killed):
        yield f"lost a worker {row['losses']} times, none of which was killed"
    if state == "dead" and not (task.must_die or (task.may_expire and row["error_class"] == "Expired")):
        yield f"died of {row['error_class']}"
    if state == "succeeded" and task.must_die:
        yield "succeeded, and can only fail"
    if state == "cancelled" and not task.cancel_asked:
        yield "was cancelled by nobody"


def _was_killed(timeline: Sequence[TimelineEntry], killed: Collection[int]) -> bool:
    """Whether a worker that claimed the task was killed: an entry's note is the worker's label, `name@host:pid`."""
    workers = [entry["note"] for entry in timeline if entry["event"] == Event.CLAIMED and "note" in entry]
    return any(int(worker.rpartition(":")[2]) in killed for worker in workers)


def effects_of(evidence: Evidence, task: Sent) -> list[float]:
    """When the side effects of a task happened: a message came, or an attempt began that is not asked to fail."""
    match task.type:
        case "email":
            return list(evidence.mails.get(task.number, ()))
        case "sms":
            return list(evidence.texts.get(task.number, ()))
        case "drill-held" | "drill-late":
            fail = task.document["payload"].get("failures", 0)
            return [each.began for each in evidence.attempts.get(task.id, ()) if each.number > fail]
    return []


def _of_effects(evidence: Evidence, task: Sent, row: Row, timeline: Sequence[TimelineEntry]) -> Iterator[str]:
    if task.type == "simulated":
        return
    happened = len(effects_of(evidence, task))
    if row["state"] == "succeeded" and not happened:
        yield "succeeded, and its side effect never happened"
    if happened > 1 and (task.type in HOLD or not _was_killed(timeline, evidence.killed)):
        yield f"had its side effect {happened} times"
    attempts = evidence.attempts.get(task.id, ())
    for before, after in pairwise(attempts):
        if (before.ended or 0.0 if before.pid in evidence.killed else before.ended or after.began + 1) > after.began:
            yield f"ran twice at once: attempts {before.number} and {after.number}"
    if task.type in HOLD and len({attempt.number for attempt in attempts}) < len(attempts):
        yield f"repeated an attempt: {[attempt.number for attempt in attempts]}"


def _of_cancel(evidence: Evidence, task: Sent, row: Row) -> Iterator[str]:
    if task.cancelled_at is None:
        return
    if row["state"] != "cancelled":
        yield f"was cancelled, and is {row['state']}"
    happened = effects_of(evidence, task)
    if any(at > task.cancelled_at for at in happened):
        yield "had a side effect after its cancel was answered"
    if happened and not row["losses"]:
        yield "was cancelled after its side effect"


def _of_timeline(row: Row, timeline: Sequence[TimelineEntry]) -> Iterator[str]:
    if any("times" in entry for entry in timeline) or not timeline:
        return  # folded
    for before, after in pairwise(timeline):
        if not allowed(Event(after["event"]), State(before["state"]), State(after["state"])):
            yield f"went from {before['state']} by {after['event']} to {after['state']}"
    if row["state"] not in WAITING and timeline[-1]["state"] != row["state"]:
        yield f"is {row['state']}, and its timeline ends with {timeline[-1]['state']}"
