"""The stores of the application, in memory: for everything that is decided before the database."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, cast
from uuid import UUID

from taskflux.store.dead_letters import (
    Change,
    DeadLetterFilter,
    DeadLetters,
    Group,
    Groups,
    Image,
    Place,
    Plan,
    Replayed,
    to_text,
)
from taskflux.store.errors import StoreError
from taskflux.store.tasks import Page, Resolution, SearchTooLong, TaskFilter, Tasks, TaskTypes
from taskflux.tasks.model import Accepted, KeyReused, Submission, TaskType
from taskflux.worker.intake import Intake

Row = dict[str, Any]
AT = "2030-01-01T00:00:00.000000Z"
ID = UUID("01890a5d-ac96-774b-bcce-b302099a8057")
NOW = datetime(2030, 1, 1, tzinfo=UTC)
CAUSE = "1-4f0c2a9be371"

EMAIL_SCHEMA = {
    "type": "object",
    "properties": {
        "to": {"anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}}]},
        "subject": {"type": "string", "maxLength": 100},
        "headers": {"type": "object", "additionalProperties": {"type": "string"}},
        "attachments": {
            "type": "array",
            "items": {"type": "object", "properties": {"name": {"type": "string"}}, "required": ["name"]},
        },
    },
    "required": ["to", "subject"],
    "additionalProperties": False,
}
TYPES = {
    "email": TaskType("email", json.dumps(EMAIL_SCHEMA), 6, "resend", "smtp"),
    "simulated": TaskType("simulated", "{}", 8, "resend", None),
}


def row(**columns: Any) -> Row:
    """The row of a task."""
    plain = {
        "id": ID, "tenant": "default", "type": "email", "state": "scheduled", "version": 1, "attempts": 0,
        "max_attempts": 8, "losses": 0, "replays": 0, "key": None, "payload": '{"to":"a"}', "metadata": None,
        "traceparent": None,
        "created_at": NOW, "updated_at": NOW, "due_at": NOW, "expires_at": None, "result": None, "error_class": None,
        "error_reason": None, "timeline": ["2030-01-01T00:00:00.000000Z|accepted|scheduled|0|1|"],
    }  # fmt: skip
    return plain | columns


class Clock:
    """A clock that advances only while a task sleeps."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(0)
        self.now += seconds


class Source(TaskTypes):
    """Registered types; `trouble` is raised instead while it is set, `gate` holds the answer back."""

    __setattr__ = object.__setattr__  # the real one is frozen

    def __init__(self, types: Mapping[str, TaskType] = TYPES) -> None:
        self.types = dict(types)
        self.trouble: StoreError | None = None
        self.asked = 0
        self.looks = asyncio.Semaphore(0)
        self.gate = asyncio.Event()
        self.gate.set()

    async def all(self) -> Mapping[str, TaskType]:
        self.asked += 1
        self.looks.release()
        found = dict(self.types)
        await self.gate.wait()
        if self.trouble is not None:
            raise self.trouble
        return found


class MemoryIntake(Intake):
    """Keeps what it accepts; `trouble` is raised instead while it is set, `gate` delays acceptance."""

    def __init__(self) -> None:
        self.accepted: list[Submission] = []
        self.arrived = asyncio.Event()
        self.entered = asyncio.Semaphore(0)
        self.keys: dict[str, tuple[bytes, Accepted]] = {}
        self.trouble: BaseException | None = None
        self.fail_from: int | None = None
        self.in_flight = 0
        self.most_in_flight = 0
        self.gate = asyncio.Event()
        self.gate.set()

    def accept(self, submission: Submission) -> asyncio.Future[Accepted | KeyReused]:
        return asyncio.ensure_future(self._accept(submission))

    async def _accept(self, submission: Submission) -> Accepted | KeyReused:
        self.in_flight += 1
        self.most_in_flight = max(self.most_in_flight, self.in_flight)
        self.entered.release()
        try:
            await self.gate.wait()
            await asyncio.sleep(0)
        finally:
            self.in_flight -= 1
        if self.trouble is not None and len(self.accepted) >= (self.fail_from or 0):
            raise self.trouble
        key = submission.idempotency
        if key is not None and key.key in self.keys:
            digest, first = self.keys[key.key]
            if digest != key.digest:
                return KeyReused(key.key)
            return Accepted(first.id, first.type, first.created_at, repeated=True)
        accepted = Accepted(submission.id, submission.type, NOW)
        if key is not None:
            self.keys[key.key] = (key.digest, accepted)
        self.accepted.append(submission)
        self.arrived.set()
        return accepted

    async def accept_all(self, submissions: Sequence[Submission]) -> Sequence[Accepted | KeyReused | StoreError]:
        outcomes = await asyncio.gather(*map(self.accept, submissions), return_exceptions=True)
        return cast("Sequence[Accepted | KeyReused | StoreError]", outcomes)


class MemoryTasks(Tasks):
    """Rows as the test has put them here, moved as the states allow; the list is `page_`, or raises `too_long`."""

    def __init__(self) -> None:
        self.rows: dict[UUID, Any] = {}
        self.trouble: StoreError | None = None
        self.page_ = Page([], None)
        self.too_long: SearchTooLong | None = None
        self.asked: list[tuple[TaskFilter, int, UUID | None]] = []
        self.reasons: list[str | None] = []

    async def get(self, task: UUID, tenant: str) -> Mapping[str, Any] | None:
        if self.trouble is not None:
            raise self.trouble
        return self.rows.get(task)

    async def page(self, tenant: str, wanted: TaskFilter, limit: int, after: UUID | None = None) -> Page:
        self.asked.append((wanted, limit, after))
        if self.too_long is not None:
            raise self.too_long
        return self.page_

    async def cancel(self, task: UUID, tenant: str, reason: str | None = None) -> bool:
        return self._move(task, ("scheduled", "queued"), "cancelled")

    async def resolve(self, task: UUID, tenant: str | None, resolution: Resolution, reason: str | None = None) -> bool:
        self.reasons.append(reason)
        follows = {Resolution.SUCCEEDED: "succeeded", Resolution.RESEND: "scheduled", Resolution.DEAD: "dead"}
        return self._move(task, ("uncertain",), follows[resolution])

    def _move(self, task: UUID, sources: Sequence[str], state: str) -> bool:
        if task not in self.rows or self.rows[task]["state"] not in sources:
            return False
        self.rows[task] = self.rows[task] | {"state": state}
        return True


class MemoryLetters(DeadLetters):
    """Dead letters that the test has added; `last_asked` is what the last page or groups were asked for."""

    __setattr__ = object.__setattr__  # the real one is frozen

    def __init__(self) -> None:
        self.rows: dict[UUID, Row] = {}
        self._asked: tuple[DeadLetterFilter | None, str | None, Place | None, int | None] = None, None, None, None
        self.sent: list[tuple[UUID, str | None]] = []
        self.made: list[tuple[Submission, bool]] = []
        self.bulk: dict[UUID, Row] = {}
        self.moved_on = False

    def put(self, row: Row) -> UUID:
        identifier: UUID = row["id"]
        self.rows[identifier] = row
        return identifier

    def last_asked(self) -> tuple[DeadLetterFilter | None, str | None, Place | None, int | None]:
        return self._asked

    async def page(
        self, tenant: str, wanted: DeadLetterFilter, state: str | None, behind: Place | None, limit: int
    ) -> Sequence[Row]:
        self._asked = wanted, state, behind, limit
        newest = sorted(self.rows.values(), key=lambda row: (row["created_at"], row["id"]), reverse=True)
        return [
            row for row in newest if behind is None or (row["created_at"], row["id"]) < (behind.created_at, behind.id)
        ][:limit]

    async def groups(self, tenant: str, wanted: DeadLetterFilter, state: str | None) -> Groups:
        self._asked = wanted, state, None, None
        if not self.rows:
            return Groups([], 0, 0)
        sample, *_ = self.rows.values()
        ran, latest = Image("own:1", NOW), Image("own:2", NOW)
        seen, trend = (NOW, NOW, NOW, NOW), [0] * 23 + [len(self.rows)]
        about = sample["id"], sample["reason"], trend, Change(ran, None, latest)
        return Groups([Group("email", "Permanent", CAUSE, len(self.rows), *seen, *about)], 3, 7)

    async def count(self, tenant: str, wanted: DeadLetterFilter, state: str | None) -> int:
        return len(self.rows)

    async def get(self, tenant: str, letter: UUID) -> Row | None:
        return self.rows.get(letter)

    async def discard(self, tenant: str, letter: UUID, reason: str) -> bool:
        row = self.rows[letter]
        if row["state"] != "open":
            return False
        row.update(state="discarded", discarded_at=NOW, discard_reason=reason)
        return True

    async def replay(self, tenant: str, letter: UUID, payload: str | None) -> Replayed | None:
        if self.moved_on:
            return None
        row = self.rows[letter]
        self.sent.append((letter, payload))
        return self._replayed(row, row["task_id"], row["type"])

    async def replay_as(self, tenant: str, letter: UUID, repaired: Submission, *, edited: bool) -> Replayed | None:
        self.made.append((repaired, edited))
        return self._replayed(self.rows[letter], repaired.id, repaired.type)

    async def start_bulk(
        self, tenant: str, job: UUID, wanted: DeadLetterFilter, rate: float, plan: Plan | None = None
    ) -> Row:
        plan = plan or Plan()
        how = {"who": plan.who, "reason": plan.reason, "canary": plan.canary, "most_failures": plan.most_failures}
        action, status = ("replay", "canary") if plan.reason is None else ("discard", "discarding")
        counts = {"matched": len(self.rows), "replayed": 0, "skipped": 0, "action": action, "status": status}
        times = {"created_at": NOW, "updated_at": NOW + timedelta(seconds=1), "stopped_because": None}
        self.bulk[job] = {"id": job, "filter": to_text(wanted), "rate": rate, **counts, **times, **how}
        return self.bulk[job]

    async def recent_throughput(self, task_type: str) -> float:
        return 80.0 if task_type == "email" else 0.0

    async def list_bulk(self, tenant: str, behind: UUID | None, limit: int) -> Sequence[Row]:
        newest = sorted(self.bulk.values(), key=lambda row: row["id"], reverse=True)
        return [row for row in newest if behind is None or row["id"] < behind][:limit]

    async def new_causes(self, job: UUID) -> Mapping[str, int]:
        return {CAUSE: 1}

    async def get_bulk(self, tenant: str, job: UUID) -> Row | None:
        return self.bulk.get(job)

    async def bulk_outcomes(self, job: UUID) -> Mapping[str, int]:
        return {"succeeded": 2, "dead": 1}

    async def stop_bulk(self, tenant: str, job: UUID, because: str = "by hand") -> bool:
        if job not in self.bulk or self.bulk[job]["status"] not in ("running", "canary", "discarding"):
            return False
        self.bulk[job] |= {"status": "stopped", "stopped_because": because}
        return True

    def _replayed(self, row: Row, task: UUID, task_type: str) -> Replayed:
        row.update(state="replayed", replays=[[AT, str(task), "scheduled", None]])
        return Replayed(row["id"], task, task_type, row["error_class"])
