"""Retention: partitions whose tasks are all past their age are dropped, other rows are deleted in small batches.

A live task is never lost: while a partition is read, a guard records every row that is added or changed in it; when the
partition is dropped, the rows that must stay move to tasks_default in the same transaction.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Final, TypeVar
from uuid import UUID

from uuid_utils.compat import uuid7

from taskflux.store.errors import StoreBusy
from taskflux.store.retention import Ages, Cuts, Range, Retention, old_ranges
from taskflux.store.tasks import FIRST_ID
from taskflux.store.upkeep import Upkeep

T = TypeVar("T")

log = logging.getLogger(__name__)

NAME: Final = "prune"
LEASE: Final = 60.0
"""Seconds for which a prune that was killed blocks the next one; longer than any statement may take."""
LOOK: Final = 20_000
DELETE: Final = 1_000
MOST_MOVED: Final = 5_000
"""The most rows that are moved out of a partition: all writers wait meanwhile (about 30 µs a row)."""
TRIES: Final = 5
PAUSE: Final = 1.0
"""Seconds between two tries to lock a partition: while one waits for the lock, others wait behind it."""


class PruneRefused(Exception):
    """A sentence that says why nothing was done."""


@dataclass(slots=True)
class Pruned:
    """What was deleted, or would be in a dry run. `tasks` is by state; `trouble` is what was left for the next run."""

    tasks: Counter[str] = field(default_factory=Counter)
    partitions: list[str] = field(default_factory=list)
    moved: int = 0
    dead_letters: int = 0
    notes: int = 0
    trouble: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class _Judged:
    """A range that was read; not `whole`: reading stopped early, since too many of its rows stay."""

    goes: Counter[str]
    staying: Sequence[UUID]
    whole: bool

    @property
    def droppable(self) -> bool:
        """Whether dropping the partition is less work than deleting rows."""
        return self.whole and (len(self.staying) <= self.goes.total() or not self.staying)


def check_ages(ages: Ages, retention_hours: float) -> None:
    """Refuse ages that would delete the rows of records that Kafka still holds.

    Raises:
        PruneRefused: with what to change.
    """
    if not ages.given:
        raise PruneRefused("say what to delete: at least one of --succeeded, --dead, --cancelled, --dead-letters")
    retention = timedelta(hours=retention_hours)
    if min(ages.given) < retention:
        raise PruneRefused(
            f"an age of {min(ages.given) / timedelta(hours=1):.3g} hours is below the topics' retention"
            f" (TASKFLUX_KAFKA__RETENTION_HOURS, {retention_hours:g} hours): Kafka may still deliver the record of a"
            " deleted task. Give a longer age"
        )


class Pruner:
    """Deletes old tasks and dead letters; only one prune runs at a time, over all processes."""

    def __init__(self, retention: Retention, upkeep: Upkeep) -> None:
        self._retention = retention
        self._upkeep = upkeep
        self._id = uuid7()

    async def run(self, ages: Ages, *, dry_run: bool = False) -> Pruned:
        """Delete what is past its age. Interrupted at any moment, the next run continues.

        Raises:
            PruneRefused: another prune is running.
            StoreError: PostgreSQL is unavailable.
        """
        await self._lead()
        try:
            pruned = Pruned()
            cuts, now = await self._retention.cuts(ages)
            if cuts.latest is not None:
                await self._prune_tasks(cuts, cuts.latest, pruned, dry_run)
            if ages.dead_letters is not None:
                await self._prune_letters(now - ages.dead_letters, pruned, dry_run)
            if not dry_run:
                pruned.notes = await self._repeat(lambda: self._retention.delete_notes(now - max(ages.given), DELETE))
                await self._repeat(lambda: self._upkeep.forget_keys(DELETE))
            return pruned
        finally:
            await self._upkeep.resign(NAME, self._id)

    async def _lead(self) -> None:
        if not await self._upkeep.lead(NAME, self._id, LEASE, None):
            raise PruneRefused(f"another prune is running, or was killed less than {LEASE:g} s ago")

    async def _prune_tasks(self, cuts: Cuts, latest: UUID, pruned: Pruned, dry_run: bool) -> None:
        # Partitions first: the rows that they leave behind are then in the gaps.
        for each in old_ranges(await self._retention.partitions(), latest):
            if dry_run:
                await self._foresee(each, cuts, pruned)
            elif each.partition is not None:
                await self._prune_partition(each, each.partition, cuts, pruned)
        if dry_run:
            return
        for each in old_ranges(await self._retention.partitions(), latest):
            if each.partition is None:
                pruned.tasks += await self._delete(each, cuts)
        after: UUID | None = FIRST_ID
        while after is not None:
            await self._lead()
            after = await self._retention.forget_parked(after, latest, LOOK)

    async def _foresee(self, each: Range, cuts: Cuts, pruned: Pruned) -> None:
        judged = await self._judge(each, cuts, most_staying=None)
        pruned.tasks += judged.goes
        if each.partition is not None and judged.droppable and len(judged.staying) <= MOST_MOVED:
            pruned.partitions.append(each.partition)
            pruned.moved += len(judged.staying)

    async def _prune_partition(self, each: Range, name: str, cuts: Cuts, pruned: Pruned) -> None:
        guard = await self._patiently(lambda: self._retention.guard(name), name, pruned)
        if guard is None:
            return
        judged = await self._judge(each, cuts, most_staying=MOST_MOVED)
        if judged.droppable:
            moved = await self._patiently(lambda: self._retention.drop(name, guard, judged.staying), name, pruned)
            if moved is not None:
                log.info("a partition was dropped", extra={"partition": name, "moved": moved})
                pruned.tasks += judged.goes
                pruned.partitions.append(name)
                pruned.moved += moved
                return
        with suppress(StoreBusy):  # if it stays, it records a few ids, and the next guard replaces it
            await self._retention.unguard(name)
        if not judged.droppable:
            pruned.tasks += await self._delete(each, cuts)

    async def _judge(self, each: Range, cuts: Cuts, most_staying: int | None) -> _Judged:
        goes: Counter[str] = Counter()
        staying: list[UUID] = []
        after: UUID | None = _before(each.start)
        while after is not None:
            await self._lead()
            seen = await self._retention.look(after, each.below, LOOK, cuts)
            goes.update(seen.goes)
            staying += seen.staying
            if most_staying is not None and len(staying) > most_staying:
                return _Judged(goes, staying, whole=False)
            after = seen.last
        return _Judged(goes, staying, whole=True)

    async def _delete(self, each: Range, cuts: Cuts) -> Counter[str]:
        deleted: Counter[str] = Counter()
        loop = asyncio.get_running_loop()
        after: UUID | None = _before(each.start)
        while after is not None:
            await self._lead()
            began = loop.time()
            seen = await self._retention.delete(after, each.below, DELETE, cuts)
            deleted.update(seen.goes)
            after = seen.last
            await asyncio.sleep(loop.time() - began)  # half of the time is left to others
        return deleted

    async def _prune_letters(self, before: datetime, pruned: Pruned, dry_run: bool) -> None:
        if dry_run:
            pruned.dead_letters = await self._retention.old_letters(before)
        else:
            pruned.dead_letters = await self._repeat(lambda: self._retention.delete_letters(before, DELETE))

    async def _repeat(self, step: Callable[[], Awaitable[int]]) -> int:
        """Run `step` until it finds nothing more, and return how much it found."""
        total = 0
        while found := await step():
            await self._lead()
            total += found
        return total

    async def _patiently(self, step: Callable[[], Awaitable[T]], name: str, pruned: Pruned) -> T | None:
        """The result of `step` once it gets its locks; None, with the trouble recorded, if it does not."""
        for _ in range(TRIES):
            await self._lead()
            try:
                return await step()
            except StoreBusy:
                await asyncio.sleep(PAUSE)
        pruned.trouble.append(f"{name} could not be locked (is a backup running?) and is left for the next prune")
        return None


def _before(start: UUID) -> UUID:
    """The id before `start`; no task has the least id of all."""
    return UUID(int=max(0, start.int - 1))
