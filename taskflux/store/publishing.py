"""The outbox: pending publishes, which process publishes them, what Kafka has confirmed; and the circuits that pause
them.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime
from functools import partial
from typing import Final, NamedTuple
from uuid import UUID

from taskflux.store.database import Database, Row, shared, statements
from taskflux.store.errors import until_available
from taskflux.store.texts import storable
from taskflux.tasks.policy import FIRST_PROBE, LAST_PROBE, MOST_PROBES
from taskflux.telemetry import metrics

SQL: Final = statements("publishing")


class PendingPublish(NamedTuple):
    """A task that the caller has promised to publish, at the version that its record must carry."""

    id: UUID
    type: str
    version: int
    key: str | None = None
    traceparent: str | None = None


class PendingDeadLetter(NamedTuple):
    """A dead task that the caller has promised to publish to the dead-letter topic."""

    id: UUID
    type: str
    version: int
    error_class: str
    attempts: int
    traceparent: str | None


class Confirmation(NamedTuple):
    """Kafka holds the record of (id, version) at this place of this log."""

    id: UUID
    version: int
    log: UUID
    partition: int
    offset: int


class Publishing:
    """The outbox, a narrow table. `grace` (seconds) must be longer than the producer's own deadline."""

    def __init__(self, database: Database, grace: float) -> None:
        self.database = database
        self.grace = grace
        self._batch = metrics.BATCH.labels("confirm")

    async def next_due(self, within: float) -> Mapping[str | None, float]:
        """Seconds until each type's next row is due, negative when overdue; None is the key of dead letters.

        Types without a row that is due in `within` seconds are left out.
        """
        return {row["type"]: row["wait"] for row in await self.database.fetch(SQL["next_due"], within=within)}

    async def take(self, task_type: str, limit: int, *, probe: bool = False) -> Sequence[PendingPublish]:
        """Promise to publish up to `limit` tasks that are due now.

        `probe`: those that tell most about their provider (see `probes_now`), not those that have waited longest.
        """
        statement = SQL["probes_now" if probe else "due_now"]
        found = _versions(await self.database.fetch(statement, type=task_type, limit=limit))
        if not found:
            return []
        ids = list(found)
        rows = await self.database.fetch(
            SQL["take_due"],
            ids=ids,
            versions=list(found.values()),
            least=ids[0],
            greatest=ids[-1],
            grace=self.grace,
        )
        return [PendingPublish(row["id"], task_type, row["version"], row["key"], row["traceparent"]) for row in rows]

    async def take_dead(self, limit: int) -> Sequence[PendingDeadLetter]:
        """Promise to publish up to `limit` dead letters."""
        ids = sorted(row["task_id"] for row in await self.database.fetch(SQL["dead_now"], limit=limit))
        if not ids:
            return []
        rows = await self.database.fetch(SQL["take_dead"], ids=ids, least=ids[0], greatest=ids[-1], grace=self.grace)
        return [PendingDeadLetter(**row) for row in rows]

    async def confirm(self, confirmations: Iterable[Confirmation]) -> None:
        """Note that the records are in Kafka; of two of one task, the newer one counts.

        Raises:
            StoreError: it is not known to be written.
        """
        batch = {each.id: each for each in sorted(confirmations)}
        if not batch:
            return
        ids = list(batch)
        confirm = partial(
            self.database.fetch,
            SQL["confirm"],
            ids=ids,
            **shared(version=[each.version for each in batch.values()], log=[each.log for each in batch.values()]),
            partitions=[each.partition for each in batch.values()],
            offsets=[each.offset for each in batch.values()],
        )
        # Without this, a record is published again after its grace; its version makes the second one harmless.
        await until_available(confirm, seconds=self.grace)
        self._batch.observe(len(ids))

    async def confirm_dead(self, dead_letters: Sequence[PendingDeadLetter]) -> None:
        """Note that the dead letters are in their topic."""
        await self.database.fetch(
            SQL["confirm_dead"],
            ids=[each.id for each in dead_letters],
            versions=[each.version for each in dead_letters],
        )

    async def expire(self, limit: int) -> Sequence[str]:
        """Make waiting tasks dead whose expiresAt has passed, and return their types."""
        found = _versions(await self.database.fetch(SQL["expired_now"], limit=limit))
        if not found:
            return []
        ids = list(found)
        rows = await self.database.fetch(
            SQL["expire_waiting"], ids=ids, versions=list(found.values()), least=ids[0], greatest=ids[-1]
        )
        return [row["type"] for row in rows]


def _versions(rows: Sequence[Row]) -> dict[UUID, int]:
    """Id → version, in the order of the ids."""
    return dict(sorted((row["task_id"], row["version"]) for row in rows))


class Circuit(NamedTuple):
    """A provider's circuit; `closed_for` is seconds since it last closed, None if it never opened.

    `served_for` is seconds since it last closed because a task succeeded, not because of the client's own check.
    """

    provider: str
    open: bool
    reason: str | None
    closed_for: float | None
    served_for: float | None = None


class Circuits:
    """The circuits of all providers. `clock` returns monotonic seconds."""

    def __init__(self, database: Database, clock: Callable[[], float] = time.monotonic) -> None:
        self._database = database
        self._clock = clock
        # When it closed, and when a task's success closed it: by PostgreSQL's clock and by ours.
        self._known: dict[tuple[str, str], tuple[datetime, float]] = {}

    async def all(self) -> Mapping[str, Circuit]:
        """Every circuit that ever opened, by provider."""
        rows = await self._database.fetch(SQL["list_circuits"])
        return {
            row["provider"]: Circuit(
                row["provider"], row["open"], row["reason"], self._since(row, "closed"), self._since(row, "served")
            )
            for row in rows
        }

    def _since(self, row: Row, what: str) -> float | None:
        """Seconds since `what`, counted from when we first read it, whatever PostgreSQL's clock does."""
        if (then := row[f"{what}_at"]) is None:
            return None
        now, key = self._clock(), (row["provider"], what)
        known = self._known.get(key)
        if known is None or known[0] != then:
            known = self._known[key] = then, now - max(0.0, row[f"{what}_for"])
        return now - known[1]

    async def open(self, provider: str, error_class: str, reason: str) -> bool:
        """Stop publishing for `provider`, and return whether this call opened the circuit."""
        row = await self._database.fetchrow(
            SQL["open_circuit"],
            provider=provider,
            error_class=error_class,
            reason=storable(reason),
            first_probe=FIRST_PROBE,
        )
        return row is not None

    async def close(self, provider: str, *, served: bool = True) -> bool:
        """Close the circuit, and return whether this call did. `served`: a task succeeded, not only a check."""
        return await self._database.fetchrow(SQL["close_circuit"], provider=provider, served=served) is not None

    async def take_probe(self, provider: str) -> int:
        """Take the right to send the probe that is due: its number of tasks, 0 without the right."""
        row = await self._database.fetchrow(
            SQL["take_probe"], provider=provider, first_probe=FIRST_PROBE, last_probe=LAST_PROBE
        )
        return 0 if row is None else int(row["breadth"])

    async def probe_failed(self, provider: str, error_class: str, reason: str, *, refused: bool) -> None:
        """Note that a probe's task failed. `refused`: the provider answered it.

        A provider that answers may refuse only those very tasks: so the next probe has twice as many, up to
        `MOST_PROBES`. While it does not answer, a probe is one task, since its outcome may stay unknown.
        """
        await self._database.fetch(
            SQL["probe_failed"],
            provider=provider,
            error_class=error_class,
            reason=storable(reason),
            refused=refused,
            most_probes=MOST_PROBES,
        )
