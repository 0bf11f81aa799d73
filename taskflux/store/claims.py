"""Claims, which make records into running tasks; settlements, which end them; and the leases that guard them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from operator import attrgetter
from typing import Any, Final, NamedTuple
from uuid import UUID

from uuid_utils.compat import uuid7

from taskflux.store.database import Database, Row, shared, statements
from taskflux.store.texts import json_text, note, storable
from taskflux.tasks.causes import cause_of
from taskflux.tasks.decision import Decision
from taskflux.tasks.states import Event, State
from taskflux.telemetry import metrics, tracing
from taskflux.telemetry.tracing import UNTRACED, Destination

SQL: Final = statements("claims")
SETTLE_BATCH: Final = 500
CARRIED: Final = 64 * 1024
"""The largest payload that comes with its claim, in bytes: a batch of claims could otherwise take gigabytes."""
_NUMBER: Final = attrgetter("int")
NO_TASK: Final = UUID(int=0)
_PARKED: Final = (State.DEAD, State.UNCERTAIN)
_SUCCEEDED: Final = Event.SUCCEEDED  # looked up once, since it is compared with every outcome


class Claim(NamedTuple):
    """A task that this worker holds until it settles it or its lease expires. `waited` is seconds since it was due.

    The columns of `claim` and `reclaim` are in this order.

    `created` is in seconds since 1970: asyncpg takes a third of the time of a row for a time stamp with a time zone.
    `attempt_span` is the traceparent of the last recorded span of an attempt. `size` is the payload's, in bytes; a
    payload larger than `CARRIED` is None here: `Claims.payload` reads it.
    """

    id: UUID
    version: int
    attempt: int
    max_attempts: int
    releases: int
    replays: int
    tenant: str
    key: str | None
    payload: str | None
    metadata: str | None
    progress: str | None
    traceparent: str | None
    attempt_span: str | None
    created: float
    expired: bool
    waited: float
    size: int = 0


@dataclass(slots=True, eq=False)
class Settlement:
    """How a claim ended. Foreign values become plain texts and numbers here, before they share a statement with others.

    `span` is the traceparent of its attempt's span, if that is recorded; `seconds` is how long its handler took, None
    if it was not called.
    """

    id: UUID
    version: int
    decision: Decision
    span: str | None = None
    seconds: float | None = None
    result: str | None = field(init=False)
    reason: str | None = field(init=False)
    note: str = field(init=False)
    cause: str | None = field(init=False, default=None)
    """Of a task that is held or dead: what failures of its kind are grouped by."""

    def __post_init__(self) -> None:
        decision = self.decision
        self.result = None if decision.result is None else json_text(decision.result)
        if decision.reason is None and decision.error_class is None:
            self.reason, self.note = None, ""
            return
        self.reason = None if decision.reason is None else storable(decision.reason)
        self.note = note(": ".join(each for each in (decision.error_class, decision.reason) if each))
        if decision.state in _PARKED:
            self.cause = cause_of(decision.error_class or "", self.reason).fingerprint


class LeaseEnded(Exception):
    """The lease of this worker was ended: others may claim what it held, and its identity can claim nothing more."""


class Settled(NamedTuple):
    """The outcome of a settlement; `age` is seconds since the task was accepted.

    Not `written`: the lease had expired and another worker has claimed the task since, or an earlier try of the same
    settlement was written, though its answer was lost.
    """

    written: bool
    late: bool = False
    age: float = 0.0


class Worker(NamedTuple):
    """One process, as it is stored."""

    id: UUID
    handler: str
    label: str
    pid: int
    origin: str | None
    type: str
    image: str = ""
    """What its code comes from; empty if that is not known."""


class Claims:
    """The claims of one worker; the records of its tasks are in `source`."""

    def __init__(self, database: Database, worker: Worker, source: Destination) -> None:
        self.database = database
        self.worker = worker
        self.source = source
        self._identities = [worker.id]

    async def begin(self, in_flight: int = 0) -> None:
        """Take a lease under a new identity. Claims under a former one stay with that."""
        worker = self.worker._replace(id=uuid7())
        await self.database.fetch(
            SQL["begin_lease"],
            id=worker.id,
            handler=worker.handler,
            label=worker.label,
            origin=worker.origin,
            pid=worker.pid,
            in_flight=in_flight,
            type=worker.type,
            image=worker.image,
        )
        self.worker = worker
        self._identities.append(worker.id)

    async def prepare(self, task_type: str) -> None:
        """Claim and settle a task that does not exist, so that the first real one is as quick as those that follow.

        A connection's first claim takes tens of times as long: PostgreSQL reads its catalogs, and makes a plan.
        """
        with suppress(LeaseEnded):
            await self.claim(task_type, {NO_TASK: 0})
        await self._write([Settlement(NO_TASK, 0, Decision(_SUCCEEDED, State.SUCCEEDED))])

    async def beat(self, in_flight: int) -> bool:
        """Renew the lease; false if it was ended, or never began."""
        return await self.database.fetchrow(SQL["beat"], id=self.worker.id, in_flight=in_flight) is not None

    async def end(self) -> None:
        """End the lease: claims that are not settled are freed at once."""
        await self.database.fetch(SQL["end_lease"], id=self.worker.id)

    async def clear_suspects(self) -> None:
        """Clear the tasks that are suspects only because this worker's lease expired: the worker is alive."""
        await self.database.fetch(SQL["clear_own_suspects"], worker=self.worker.id)

    async def claim(self, task_type: str, versions: Mapping[UUID, int], *, suspects: bool = False) -> Sequence[Claim]:
        """Claim these tasks (id → version of the record); those not claimable at their version are left out.

        So are suspects, unless `suspects` says that these are members of a group.

        Raises:
            LeaseEnded: nothing was claimed, because our lease was ended.
        """
        ids = sorted(versions, key=_NUMBER)  # Python compares these faster than UUIDs
        if not ids:
            return []
        rows = await self.database.fetch(
            SQL["claim"],
            ids=ids,
            **shared(version=[versions[task] for task in ids]),
            least=ids[0],
            greatest=ids[-1],
            type=task_type,
            suspects=suspects,
            worker=self.worker.id,
            carried=CARRIED,
        )
        if not rows:
            raise LeaseEnded
        return [Claim._make(row) for row in rows if row[0] is not None]

    async def payload(self, task: UUID) -> str:
        """The payload of a task, which exists as long as this worker holds it."""
        row = await self.database.fetchrow(SQL["payload"], id=task)
        return "" if row is None else str(row["payload"])

    async def suspected(self, versions: Mapping[UUID, int]) -> Sequence[Mapping[UUID, int]]:
        """The groups of suspects that these tasks (id → version of the record) belong to: the members of each group
        that can be claimed now, with their versions."""
        ids = sorted(versions)
        rows = await self.database.fetch(SQL["suspected"], ids=ids, versions=[versions[task] for task in ids])
        groups: dict[UUID, dict[UUID, int]] = {}
        for group, task, version in rows:
            groups.setdefault(group, {})[task] = version
        return list(groups.values())

    async def begin_alone(self, group: Sequence[Claim]) -> None:
        """Note that these suspects begin to run, with nothing else in flight."""
        batch = sorted((claim.id, claim.version) for claim in group)
        ids, versions = zip(*batch, strict=True)
        await self.database.fetch(SQL["begin_alone"], ids=ids, versions=versions)

    async def reclaim(self, versions: Mapping[UUID, int]) -> Sequence[Claim]:
        """Those of these tasks that an earlier `claim` took although its answer was lost.

        The caller leaves out what it already runs.
        """
        ids = sorted(versions)
        if not ids:
            return []
        rows = await self.database.fetch(
            SQL["reclaim"],
            ids=ids,
            versions=[versions[task] for task in ids],
            worker=self.worker.id,
            carried=CARRIED,
        )
        return [Claim._make(row) for row in rows]

    async def held(self) -> Mapping[UUID, int]:
        """The versions of all claims that are stored for this worker."""
        rows = await self.database.fetch(SQL["held"], worker=self.worker.id)
        return {row["task_id"]: row["version"] for row in rows}

    async def settle_all(self, settlements: Sequence[Settlement]) -> Sequence[Settled]:
        """Write these outcomes in one statement, and count them; one answer for each. Each task is there once.

        Raises:
            RefusedData: one of them cannot be stored.
            StoreError: they are not known to be written; they may be settled again.
        """
        if not settlements:
            return []
        order = sorted(range(len(settlements)), key=lambda place: settlements[place].id)
        batch = [settlements[place] for place in order]
        with tracing.batch(self.source.settle, [each.span for each in batch]) if tracing.on else UNTRACED:
            settled = await self._write(batch)
        self._count(batch, settled)
        answers = settled.copy()
        for place, answer in zip(order, settled, strict=True):
            answers[place] = answer
        return answers

    async def _write(self, batch: Sequence[Settlement]) -> list[Settled]:
        """What has become of these, which are in the order of their ids."""
        decisions = [settlement.decision for settlement in batch]
        ids = [settlement.id for settlement in batch]
        row = await self.database.fetchrow(
            SQL["settle"],
            ids=ids,
            **shared(
                version=[settlement.version for settlement in batch],
                state=[decision.state for decision in decisions],
                event=[decision.event for decision in decisions],
            ),
            delays=_unless(0, [decision.delay for decision in decisions]),
            given_back=_unless(0, [int(decision.give_back) for decision in decisions]),
            releases=_unless(0, [decision.releases for decision in decisions]),
            results=_unless(None, [settlement.result for settlement in batch]),
            error_classes=_unless(None, [decision.error_class for decision in decisions]),
            reasons=_unless(None, [settlement.reason for settlement in batch]),
            notes=_unless("", [settlement.note for settlement in batch]),
            spans=_unless(None, [settlement.span for settlement in batch]),
            causes=_unless(None, [settlement.cause for settlement in batch]),
            workers=self._identities,
            label=self.worker.label,
            least=ids[0],
            greatest=ids[-1],
        )
        return _settled(len(batch), row)

    def _count(self, settlements: Sequence[Settlement], settled: Sequence[Settled]) -> None:
        """Count what one statement has written: together, except those with a span, whose exemplars point to it."""
        task_type = self.worker.type
        processing, end_to_end = metrics.PROCESSING.labels(task_type), metrics.END_TO_END.labels(task_type)
        took: list[float] = []
        ages: list[float] = []
        others: Counter[Event] = Counter()
        for settlement, (written, late, age) in zip(settlements, settled, strict=True):
            decision, span, seconds = settlement.decision, settlement.span, settlement.seconds
            if seconds is not None:
                if span is None:
                    took.append(seconds)
                else:
                    processing.observe(seconds, tracing.exemplar(span))
            if decision.event is not _SUCCEEDED:
                others[decision.event] += 1
                if decision.event is Event.RETRY and decision.error_class == "Ambiguous":
                    metrics.REPEATS.labels(task_type).inc()
            elif written and span is None:
                ages.append(age)
            elif written:
                end_to_end.observe(age, tracing.exemplar(span))
            if late or not written:
                metrics.LATE_SETTLES.labels(task_type, str(written).lower()).inc()
        processing.observe_all(took)
        end_to_end.observe_all(ages)
        metrics.ATTEMPTS.labels(task_type, _SUCCEEDED.value).inc(len(settlements) - others.total())
        for event, count in others.items():
            metrics.ATTEMPTS.labels(task_type, event.value).inc(count)


def _settled(count: int, row: Row) -> list[Settled]:
    """The answer of `settle` for each of so many outcomes."""
    ages, places, late = row["ages"] or (), row["places"], row["late"] or ()
    if len(ages) == count and not late:
        return [Settled(True, False, age) for age in ages]
    settled = [Settled(False)] * count
    for place, age in zip(places or range(1, len(ages) + 1), ages, strict=True):
        settled[place - 1] = Settled(True, place in late, age)
    return settled


def _unless(usual: object, values: list[Any]) -> list[Any]:
    """`values`, or none where each is the `usual` one: asyncpg looks closely at every element of an array."""
    return values if values.count(usual) < len(values) else []
