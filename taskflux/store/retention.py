"""Deleting what is past its age: the statements, and their arguments. `taskflux.upkeep.pruner` decides.

Tasks are deleted by partition: dropping one takes an instant however many tasks it holds, and leaves nothing to vacuum.
So a task is deleted once the whole week in which it was accepted is past its age, up to seven days later.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime, timedelta
from itertools import pairwise
from typing import Any, Final
from uuid import UUID

from taskflux.store.database import Database, statements
from taskflux.store.tasks import FIRST_ID, uuid_floor
from taskflux.tasks.states import State

SQL: Final = statements("retention")


@dataclass(frozen=True, slots=True)
class Ages:
    """How long tasks are kept after they have ended, and dead letters after they were stored; None: for ever."""

    succeeded: timedelta | None = None
    dead: timedelta | None = None
    cancelled: timedelta | None = None
    dead_letters: timedelta | None = None

    @property
    def given(self) -> Sequence[timedelta]:
        """Those that are not None."""
        return [age for age in (*self.of_tasks, self.dead_letters) if age is not None]

    @property
    def of_tasks(self) -> Sequence[timedelta | None]:
        """In the order of the statements."""
        return [self.succeeded, self.dead, self.cancelled]


@dataclass(frozen=True, slots=True)
class Cuts:
    """The times before which a task must have ended to be deleted, by the store's clock."""

    succeeded: datetime | None
    dead: datetime | None
    cancelled: datetime | None

    @property
    def latest(self) -> UUID | None:
        """Ids below this one may be past their age: a task ends after it was accepted. None: none may."""
        given = [cut for cut in (self.succeeded, self.dead, self.cancelled) if cut is not None]
        return uuid_floor(max(given)) if given else None


@dataclass(frozen=True, slots=True)
class Range:
    """Ids from `start` on, below `below`; in a partition of their own, or (None) in tasks_default."""

    partition: str | None
    start: UUID
    below: UUID


@dataclass(frozen=True, slots=True)
class Seen:
    """What was found among some rows: `last` is where to look next (None: nowhere)."""

    last: UUID | None
    goes: Mapping[str, int]
    staying: Sequence[UUID] = ()


def old_ranges(partitions: Sequence[Range], latest: UUID) -> Iterator[Range]:
    """The partitions wholly below `latest`, and the gaps between partitions, whose ids are in tasks_default."""
    for partition in partitions:
        if partition.below <= latest:
            yield partition
    edges = [FIRST_ID, *(edge for each in partitions for edge in (each.start, each.below))]
    for start, below in list(pairwise(edges))[::2]:
        if start < below and start < latest:
            yield Range(None, start, min(below, latest))


@dataclass(frozen=True, slots=True)
class Retention:
    """The statements."""

    database: Database

    async def cuts(self, ages: Ages) -> tuple[Cuts, datetime]:
        """The times of these ages, and the store's now."""
        row = await self.database.fetchrow(SQL["store_now"])
        assert row is not None
        now: datetime = row[0]
        return Cuts(*(None if age is None else now - age for age in ages.of_tasks)), now

    async def partitions(self) -> Sequence[Range]:
        """All but tasks_default, oldest first."""
        return [Range(*row) for row in await self.database.fetch(SQL["task_partitions"])]

    async def look(self, after: UUID, below: UUID, limit: int, cuts: Cuts) -> Seen:
        """What may be deleted among the next `limit` tasks behind `after`, and which ones stay."""
        row = await self.database.fetchrow(SQL["look_for_old"], after=after, below=below, limit=limit, **asdict(cuts))
        return _seen(row, row["staying"] if row else ())

    async def delete(self, after: UUID, below: UUID, limit: int, cuts: Cuts) -> Seen:
        """Delete what may be deleted among the next `limit` tasks behind `after`."""
        row = await self.database.fetchrow(SQL["delete_old"], after=after, below=below, limit=limit, **asdict(cuts))
        return _seen(row)

    async def guard(self, partition: str) -> str:
        """Record from now on which rows of `partition` are added or changed; the id of the recording.

        Raises:
            StoreBusy: it could not be locked in time.
        """
        row = await self.database.fetchrow(SQL["guard_partition"], partition=partition)
        assert row is not None
        return str(row[0])

    async def unguard(self, partition: str) -> None:
        """Stop recording."""
        await self.database.fetchrow(SQL["unguard_partition"], partition=partition)

    async def drop(self, partition: str, guard: str, staying: Sequence[UUID]) -> int:
        """Drop `partition`; `staying` and what `guard` has recorded move to tasks_default. Returns how many.

        Raises:
            StoreBusy: it could not be locked in time.
        """
        row = await self.database.fetchrow(SQL["drop_partition"], partition=partition, guard=guard, staying=staying)
        assert row is not None
        return int(row[0])

    async def forget_parked(self, after: UUID, below: UUID, limit: int) -> UUID | None:
        """Delete rows in `parked` of deleted tasks; where to look next."""
        row = await self.database.fetchrow(SQL["forget_parked"], after=after, below=below, limit=limit)
        return row["last"] if row else None

    async def old_letters(self, before: datetime) -> int:
        """How many dead letters were stored before `before`."""
        row = await self.database.fetchrow(SQL["count_old_letters"], before=before)
        return int(row[0]) if row else 0

    async def delete_letters(self, before: datetime, limit: int) -> int:
        """Delete up to `limit` dead letters that were stored before `before`; how many."""
        return len(await self.database.fetch(SQL["delete_old_letters"], before=before, limit=limit))

    async def delete_notes(self, before: datetime, limit: int) -> int:
        """Delete up to `limit` of each: ended bulk replays, foreign identities, notifications by name; how many."""
        deleted = 0
        for name in ("delete_old_replays", "delete_old_foreign", "delete_old_notifications"):
            deleted += len(await self.database.fetch(SQL[name], before=before, limit=limit))
        return deleted


def _seen(row: Any, staying: Sequence[UUID] = ()) -> Seen:
    goes = {state.value: row[state.value] for state in (State.SUCCEEDED, State.DEAD, State.CANCELLED)}
    return Seen(row["last"], goes, staying)
