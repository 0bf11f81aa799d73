"""READ COMMITTED as PostgreSQL has it, for the four tables of the protocol: versions of rows, snapshots, row locks.

A statement sees the tables as of its start. It finds rows by that snapshot, waits for their locks, and checks the
newest version again if another transaction has changed it; if the other one only locked it, the row is taken as it was.
A unique key waits for whoever inserts or deletes it, and then knows rows that the snapshot does not have.

What may wait, or may be interrupted, is a generator. It yields the transaction that it waits for, or None where
PostgreSQL could switch to another one.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator
from enum import IntEnum
from typing import Final, Generic, NamedTuple, TypeAlias, TypeVar

from taskflux.tasks.states import Event, State

RUNNING: Final = 1 << 60
"""When a transaction was committed that still runs: after every snapshot."""

R = TypeVar("R")
T = TypeVar("T")


class Place(NamedTuple):
    """Where a record stands in Kafka."""

    log: int
    partition: int
    offset: int


class Task(NamedTuple):
    """The wide row. `generation` counts what a person began anew: replays, and uncertain tasks that are sent again."""

    max_attempts: int
    state: State = State.SCHEDULED
    version: int = 1
    attempts: int = 0
    claim_version: int | None = None
    generation: int = 0
    losses: int = 0
    releases: int = 0
    expires: bool = False


class Outbox(NamedTuple):
    """A row of `due`: it is pending from `publish_at` on, or published at `place`."""

    version: int
    publish_at: int
    place: Place | None = None


class Claim(NamedTuple):
    """A row of `claims`; `attempt` None: its lease has ended, and the wide row says it."""

    version: int
    worker: int
    attempt: int | None


class Worker(NamedTuple):
    """A row of `workers`: a lease."""

    beat: int = 0
    ended: bool = False
    lost: bool = False


class Lock(IntEnum):
    """Strengths of row locks: two conflict if their sum is 2 or more."""

    KEY_SHARE = 0
    NO_KEY_UPDATE = 1
    UPDATE = 2


class Transaction:
    """One statement, committed as a whole or not at all.

    `events` says what it does to which task, and `settles` at which version of its claim.
    """

    __slots__ = ("committed_at", "events", "held", "label", "settles", "written")

    def __init__(self, label: str) -> None:
        self.label = label
        self.committed_at = RUNNING
        self.held: list[Line[Task] | Line[Outbox] | Line[Claim] | Line[Worker]] = []
        self.written: list[tuple[str, int]] = []
        self.events: dict[int, Event] = {}
        self.settles: dict[int, int] = {}

    @property
    def running(self) -> bool:
        return self.committed_at == RUNNING


Steps: TypeAlias = Generator["Transaction | None", None, T]


class Version(NamedTuple, Generic[R]):
    """A row as one transaction has written it; None: it was deleted."""

    row: R | None
    writer: Transaction


class Line(Generic[R]):
    """The versions of one row, and who has locked it. A row that is inserted again after its deletion is another."""

    __slots__ = ("locks", "versions")

    def __init__(self, first: Version[R]) -> None:
        self.versions = [first]
        self.locks: dict[Transaction, int] = {}

    def seen(self, at: int, own: Transaction | None = None) -> Version[R] | None:
        """The version in a snapshot, which may have the writes of its `own` transaction."""
        for version in reversed(self.versions):
            if version.writer.committed_at <= at or version.writer is own:
                return version
        return None

    def conflict(self, transaction: Transaction, strength: int) -> Transaction | None:
        """Another transaction that holds a lock against this one."""
        for other, held in self.locks.items():
            if other is not transaction and held + strength >= 2:
                return other
        return None


class Table(Generic[R]):
    """The lines of each key, the newest last."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.lines: dict[int, list[Line[R]]] = {}

    def seen(self, key: int, at: int, own: Transaction | None = None) -> tuple[Line[R], Version[R]] | None:
        """The line and the version that a snapshot has for this key."""
        for line in reversed(self.lines.get(key, ())):
            for version in reversed(line.versions):
                if version.writer.committed_at <= at or version.writer is own:
                    return None if version.row is None else (line, version)
        return None


class Database:
    """The tables, and the number of the last commit."""

    def __init__(self) -> None:
        self.commits = 0
        self.tasks: Table[Task] = Table("tasks")
        self.due: Table[Outbox] = Table("due")
        self.claims: Table[Claim] = Table("claims")
        self.workers: Table[Worker] = Table("workers")

    def read(self, table: Table[R], key: int) -> R | None:
        """What is committed."""
        found = table.seen(key, self.commits)
        return None if found is None else found[1].row

    def commit(self, transaction: Transaction) -> None:
        self.commits += 1
        transaction.committed_at = self.commits
        self._release(transaction)

    def abort(self, transaction: Transaction) -> None:
        transaction.committed_at = RUNNING + 1
        self._undo(self.tasks, transaction)
        self._undo(self.due, transaction)
        self._undo(self.claims, transaction)
        self._undo(self.workers, transaction)
        self._release(transaction)

    def _undo(self, table: Table[R], transaction: Transaction) -> None:
        for name, key in transaction.written:
            if name == table.name:
                for line in table.lines[key]:
                    line.versions = [each for each in line.versions if each.writer is not transaction]
                table.lines[key] = [line for line in table.lines[key] if line.versions]

    def _release(self, transaction: Transaction) -> None:
        for line in transaction.held:
            line.locks.pop(transaction, None)
        transaction.held.clear()


def always(_key: int, _row: object) -> bool:
    """No condition."""
    return True


class Statement:
    """One statement in its transaction. Its CTEs share the snapshot, and do not see each other's effects.

    `now` is the time of its start.
    """

    def __init__(self, database: Database, transaction: Transaction, now: int, *, function: bool = False) -> None:
        self.database = database
        self.transaction = transaction
        self.now = now
        self._at = database.commits
        self._own = transaction if function else None

    def function(self) -> Statement:
        """A query in a VOLATILE function: it has a fresh snapshot, and sees what its transaction has written."""
        return Statement(self.database, self.transaction, self.now, function=True)

    def read(self, table: Table[R], key: int) -> R | None:
        """A row, as of the snapshot."""
        found = table.seen(key, self._at, self._own)
        return None if found is None else found[1].row

    def scan(self, table: Table[R]) -> Iterator[tuple[int, R]]:
        """All rows, as of the snapshot, in the order of their keys."""
        for key in sorted(table.lines):
            row = self.read(table, key)
            if row is not None:
                yield key, row

    def lock(
        self,
        table: Table[R],
        keys: Iterable[int],
        where: Callable[[int, R], bool],
        strength: Lock,
        *,
        skip_locked: bool = False,
    ) -> Steps[dict[int, R]]:
        """SELECT … ORDER BY key FOR …: the locked rows, in their newest version."""
        locked: dict[int, R] = {}
        for key in sorted(keys):
            target = yield from self._target(table, key, where, strength, skip_locked=skip_locked)
            if target is not None:
                locked[key] = target[1]
        return locked

    def update(
        self, table: Table[R], keys: Iterable[int], where: Callable[[int, R], bool], change: Callable[[int, R], R]
    ) -> Steps[dict[int, R]]:
        """UPDATE … WHERE key = ANY(keys) AND …: the rows as they are now."""
        updated: dict[int, R] = {}
        for key in sorted(keys):
            target = yield from self._target(table, key, where, Lock.NO_KEY_UPDATE)
            if target is not None:
                updated[key] = change(key, target[1])
                self._write(table, key, target[0], updated[key])
        return updated

    def delete(
        self, table: Table[R], keys: Iterable[int], where: Callable[[int, R], bool] = always
    ) -> Steps[dict[int, R]]:
        """DELETE … WHERE key = ANY(keys) AND …: the rows as they were."""
        deleted: dict[int, R] = {}
        for key in sorted(keys):
            target = yield from self._target(table, key, where, Lock.UPDATE)
            if target is not None:
                deleted[key] = target[1]
                self._write(table, key, target[0], None)
        return deleted

    def _target(
        self, table: Table[R], key: int, where: Callable[[int, R], bool], strength: Lock, *, skip_locked: bool = False
    ) -> Steps[tuple[Line[R], R] | None]:
        """The row that the snapshot has, once it is locked, in its newest version; None: there is none any more."""
        found = table.seen(key, self._at, self._own)
        if found is None or found[1].row is None or not where(key, found[1].row):
            return None
        line, version = found
        yield None
        if skip_locked and line.conflict(self.transaction, strength):
            return None
        newest = yield from self._acquire(line, strength)
        if newest.row is None or (newest is not version and not where(key, newest.row)):
            return None
        return line, newest.row

    def insert(self, table: Table[R], key: int, row: R, *, on_conflict: Callable[[R], R] | None = None) -> Steps[bool]:
        """INSERT … ON CONFLICT DO NOTHING, or DO UPDATE if `on_conflict` says to what; whether a row was written."""
        yield None
        while True:
            line = self._standing(table, key)
            if line is None:
                fresh = Line(Version(row, self.transaction))
                table.lines.setdefault(key, []).append(fresh)
                self._hold(fresh, Lock.UPDATE)
                self.transaction.written.append((table.name, key))
                return True
            newest = line.versions[-1]
            if newest.writer.running and newest.writer is not self.transaction:
                yield newest.writer
                continue
            if on_conflict is None:
                return False
            if (yield from self._acquire(line, Lock.NO_KEY_UPDATE)) is newest and newest.row is not None:
                self._write(table, key, line, on_conflict(newest.row))
                return True

    def _standing(self, table: Table[R], key: int) -> Line[R] | None:
        """The line that a unique index finds: all but those whose deletion is committed, or our own."""
        for line in table.lines.get(key, ()):
            row, writer = line.versions[-1]
            if row is not None or (writer.running and writer is not self.transaction):
                return line
        return None

    def _acquire(self, line: Line[R], strength: Lock) -> Steps[Version[R]]:
        """Wait for the row's lock, and take it. It is kept even where the row is then not wanted."""
        while (other := line.conflict(self.transaction, strength)) is not None:
            yield other
        self._hold(line, strength)
        return line.seen(self.database.commits, self.transaction) or line.versions[-1]

    def _hold(self, line: Line[R], strength: Lock) -> None:
        if self.transaction not in line.locks:
            self.transaction.held.append(line)  # type: ignore[arg-type]  # one of the four
        line.locks[self.transaction] = max(line.locks.get(self.transaction, 0), strength)

    def _write(self, table: Table[R], key: int, line: Line[R], row: R | None) -> None:
        line.versions.append(Version(row, self.transaction))
        self.transaction.written.append((table.name, key))
