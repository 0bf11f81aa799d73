"""The steps of docs/protocol.md, each one statement, as the files of `taskflux/store/*.sql` have them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple

from taskflux.tasks.decision import Decision, Verdict
from taskflux.tasks.states import Event, State
from tests.protocol.mutations import Wrong
from tests.protocol.tables import Claim, Lock, Outbox, Place, Statement, Steps, Task, Worker, always

WAITING = (State.SCHEDULED, State.QUEUED)
LATE = (State.SCHEDULED, State.QUEUED, State.UNCERTAIN)


class Held(NamedTuple):
    """A claim as its worker knows it."""

    task: int
    version: int
    worker: int
    attempt: int
    max_attempts: int
    releases: int
    generation: int


class Settlement(NamedTuple):
    """The outcome of a claim."""

    task: int
    version: int
    decision: Decision


class Lapsed(NamedTuple):
    """A claim whose lease was ended."""

    task: int
    version: int
    worker: int
    lost: bool
    losses: int


def derived(task: Task, outbox: Outbox | None, claim: Claim | None) -> tuple[State | None, int]:
    """State and version as the view `task_states` has them; no state: nothing would ever move this task."""
    if task.state is not State.SCHEDULED:
        return task.state, task.version
    if claim is not None:
        return State.RUNNING, claim.version
    if outbox is None:
        return None, task.version
    return (State.SCHEDULED if outbox.place is None else State.QUEUED), task.version


class Protocol:
    """The steps; `wrong` names what is done differently."""

    def __init__(self, wrong: Iterable[Wrong] = ()) -> None:
        self.wrong = frozenset(wrong)

    # Publishing

    def insert(self, s: Statement, tasks: Mapping[int, Task], publish_at: int) -> Steps[None]:
        """Tasks are accepted, unless they were before (an insert whose answer was lost)."""
        accepted = []
        for key, task in sorted(tasks.items()):
            if (yield from s.insert(s.database.tasks, key, task)):
                accepted.append(key)
        for key in accepted:
            yield from s.insert(s.database.due, key, Outbox(1, publish_at))

    def due_now(self, s: Statement) -> dict[int, int]:
        """Pending outbox rows: task → version."""
        return {
            key: row.version for key, row in s.scan(s.database.due) if row.place is None and row.publish_at <= s.now
        }

    def promise(self, s: Statement, asked: Mapping[int, int], publish_at: int) -> Steps[dict[int, int]]:
        """A relay takes outbox rows before it publishes them: task → version of its record."""

        def same(key: int, task: Task) -> bool:
            return task.state is State.SCHEDULED and task.version == asked[key]

        def is_due(key: int, row: Outbox) -> bool:
            return row.version == asked[key] and row.place is None and row.publish_at <= s.now

        db = s.database
        stale = [key for key in asked if (task := s.read(db.tasks, key)) is None or not same(key, task)]
        free = yield from self._locked_and_unclaimed(s, asked, same, skip_locked=True)
        moved = yield from s.update(
            db.due,
            free,
            always if Wrong.OUTBOX_NOT_RECHECKED in self.wrong else is_due,
            lambda _, row: Outbox(row.version + 1, publish_at),
        )
        taken = yield from s.update(db.tasks, moved, always, lambda _, task: task._replace(version=task.version + 1))
        yield from self._drop_stale(s, stale, asked)
        return {key: task.version for key, task in taken.items()}

    def expire(self, s: Statement, asked: Mapping[int, int]) -> Steps[list[int]]:
        """Tasks that waited for too long are dead."""

        def same(key: int, task: Task) -> bool:
            return task.state is State.SCHEDULED and task.version == asked[key]

        def pending(key: int, row: Outbox) -> bool:
            return row.version == asked[key] and row.place is None

        db = s.database
        stale = [key for key in asked if (task := s.read(db.tasks, key)) is None or not same(key, task)]
        free = yield from self._locked_and_unclaimed(s, asked, same, skip_locked=True)
        gone = yield from s.delete(db.due, free, always if Wrong.OUTBOX_NOT_RECHECKED in self.wrong else pending)
        yield from s.update(
            db.tasks, gone, always, lambda _, task: task._replace(state=State.DEAD, version=task.version + 1)
        )
        s.transaction.events.update(dict.fromkeys(gone, Event.DIED))
        yield from self._drop_stale(s, stale, asked)
        return sorted(gone)

    def confirm(self, s: Statement, places: Mapping[int, tuple[int, Place]]) -> Steps[list[int]]:
        """Kafka has these records: their outbox rows are published, unless they are locked or at another version."""

        def same(key: int, row: Outbox) -> bool:
            any_version = Wrong.CONFIRM_ANY_VERSION in self.wrong
            return row.place is None and (any_version or row.version == places[key][0])

        db = s.database
        locked = yield from s.lock(db.due, places, same, Lock.UPDATE, skip_locked=True)
        done = yield from s.update(db.due, locked, always, lambda key, row: row._replace(place=places[key][1]))
        s.transaction.events.update(dict.fromkeys(done, Event.PUBLISHED))
        return sorted(done)

    # Claims

    def claim(self, s: Statement, worker: int, versions: Mapping[int, int]) -> Steps[list[Held] | None]:
        """Records become claims; None: the worker's lease was ended."""

        def claimable(key: int, task: Task) -> bool:
            return task.version == versions[key] and task.state in WAITING

        db = s.database
        lease = yield from s.lock(db.workers, [worker], lambda _, row: not row.ended, Lock.KEY_SHARE)
        if not lease:
            return None
        if Wrong.CLAIM_WITHOUT_LOCK in self.wrong:
            tasks = {key: task for key in versions if (task := s.read(db.tasks, key)) and claimable(key, task)}
        else:
            tasks = yield from s.lock(db.tasks, versions, claimable, Lock.NO_KEY_UPDATE)
        claimed = []
        for key, task in sorted(tasks.items()):
            row = Claim(task.version + 1, worker, task.attempts + 1)
            overwrite = (lambda _, row=row: row) if Wrong.CLAIM_OVERWRITES in self.wrong else None
            if (yield from s.insert(db.claims, key, row, on_conflict=overwrite)):
                s.transaction.events[key] = Event.CLAIMED
                claimed.append(_held(key, task, row))
        mine = [each.task for each in claimed]
        if Wrong.CLAIM_LEAVES_OUTBOX not in self.wrong:
            yield from s.delete(db.due, mine)
        yield from s.update(
            db.tasks,
            mine,
            lambda _, task: task.claim_version is not None,
            lambda _, task: task._replace(claim_version=None),
        )
        return claimed

    def held(self, s: Statement, worker: int) -> list[Held]:
        """The claims of a worker whose lease was not ended."""
        lease = s.read(s.database.workers, worker)
        if lease is None or lease.ended:
            return []
        return [
            _held(key, task, row)
            for key, row in s.scan(s.database.claims)
            if row.worker == worker and row.attempt is not None and (task := s.read(s.database.tasks, key))
        ]

    def settle(self, s: Statement, worker: int, settlements: Iterable[Settlement]) -> Steps[list[int]]:
        """Outcomes of claims; answers which were written."""
        outcomes = {each.task: each for each in settlements}
        unfenced = Wrong.SETTLE_UNFENCED in self.wrong

        def ours(key: int, task: Task) -> bool:
            version = outcomes[key].version
            if unfenced and task.state in (State.SCHEDULED, State.RUNNING):
                return True
            if task.state is State.SCHEDULED and task.version == version - 1:
                return True
            return task.claim_version == version and (
                (task.state is State.RUNNING and task.version == version) or is_late(key, task)
            )

        def is_late(key: int, task: Task) -> bool:
            known = outcomes[key].decision.state in (State.SUCCEEDED, State.DEAD)
            return known and task.state in LATE and task.claim_version == outcomes[key].version

        db = s.database
        locked = yield from s.lock(db.tasks, outcomes, ours, Lock.NO_KEY_UPDATE)
        late = [key for key, task in locked.items() if is_late(key, task)]
        released = yield from s.delete(
            db.claims,
            locked,
            lambda key, row: (
                unfenced or (row.version == outcomes[key].version and (row.worker == worker or row.attempt is None))
            ),
        )
        settled = [
            key
            for key, task in locked.items()
            if unfenced
            or task.version >= outcomes[key].version
            or (key in released and released[key].attempt is not None)
        ]
        now = yield from s.update(
            db.tasks,
            settled,
            always,
            lambda key, task: _settled(task, released.get(key), outcomes[key], late=key in late),
        )
        s.transaction.events |= {key: _event(outcomes[key].decision, late=key in late) for key in settled}
        s.transaction.settles |= {key: outcomes[key].version for key in settled}
        yield from self._withdraw(s, [key for key in settled if key in late])
        yield from self._outbox(s, {key: task for key, task in now.items() if task.state is State.SCHEDULED})
        return sorted(settled)

    # Leases

    def begin_lease(self, s: Statement, worker: int) -> Steps[None]:
        """A worker begins, under a new identity."""
        yield from s.insert(s.database.workers, worker, Worker())

    def beat(self, s: Statement, worker: int) -> Steps[bool]:
        """A lease is renewed, unless it was ended."""
        beaten = yield from s.update(
            s.database.workers,
            [worker],
            lambda _, row: not row.ended,
            lambda _, row: row._replace(beat=row.beat + 1),
        )
        return bool(beaten)

    def beats(self, s: Statement) -> dict[int, int]:
        """Leases that were not ended: worker → its last beat."""
        return {key: row.beat for key, row in s.scan(s.database.workers) if not row.ended}

    def end_lease(self, s: Statement, worker: int) -> Steps[None]:
        """A worker stops. A claim that still runs is waited for."""
        yield from self._end(s, [worker], always, lost=False)

    def end_silent(self, s: Statement, beats: Mapping[int, int], overdue: Mapping[int, int]) -> Steps[list[int]]:
        """Leases end whose beat is still the one that was seen. A worker whose claim runs is left for the next time,
        and not waited for once it is overdue: that claim must have ended.
        """

        def silent(key: int, row: Worker) -> bool:
            return not row.ended and beats[key] == row.beat

        ended = yield from self._end(s, beats, silent, lost=True, overdue=overdue)
        return ended

    def _end(
        self,
        s: Statement,
        workers: Iterable[int],
        where: Callable[[int, Worker], bool],
        *,
        lost: bool,
        overdue: Iterable[int] = (),
    ) -> Steps[list[int]]:
        db = s.database
        locked = yield from s.lock(db.workers, workers, where, Lock.UPDATE, skip_locked=lost)
        # Without waiting: two of these would wait for each other's rows.
        rest = [key for key in overdue if key not in locked]
        overdue = yield from s.lock(db.workers, rest, where, Lock.NO_KEY_UPDATE, skip_locked=True)
        ended = yield from s.update(
            db.workers,
            {*locked, *overdue},
            lambda key, row: key in locked or where(key, row),
            lambda _, row: row._replace(ended=True, lost=lost),
        )
        yield from self._end_claims(s, ended)
        return sorted(ended)

    def end_claims(self, s: Statement) -> Steps[None]:
        """Claims of ended leases that their wide rows do not say yet."""
        left = {row.worker for _, row in s.scan(s.database.claims) if row.attempt is not None}
        over = {worker for worker in left if (row := s.read(s.database.workers, worker)) is None or row.ended}
        yield from self._end_claims(s, over)

    def _end_claims(self, s: Statement, workers: Iterable[int]) -> Steps[None]:
        """The function, and the trigger that calls it: claims of these workers go into their wide rows."""
        db, over = s.database, set(workers)
        if not over:
            return
        yield None
        first = s.function()
        held = [key for key, row in first.scan(db.claims) if row.worker in over and row.attempt is not None]
        yield from s.function().lock(db.tasks, held, always, Lock.NO_KEY_UPDATE)
        yield None
        again = s.function()
        for key in held:
            row = again.read(db.claims, key)
            if row is not None and row.worker in over and row.attempt is not None:
                yield from self._end_claim(s, key, row, row.attempt)

    def _end_claim(self, s: Statement, key: int, row: Claim, attempt: int) -> Steps[None]:
        yield from s.function().update(
            s.database.tasks,
            [key],
            lambda _, task: task.version == row.version - 1 and task.state in WAITING,
            lambda _, task: task._replace(
                state=State.RUNNING, version=row.version, claim_version=row.version, attempts=attempt
            ),
        )
        yield from s.function().update(s.database.claims, [key], always, lambda _, row: row._replace(attempt=None))

    def lapsed(self, s: Statement) -> list[Lapsed]:
        """Claims whose lease was ended."""
        return [
            Lapsed(key, row.version, row.worker, worker.lost, task.losses)
            for key, row in s.scan(s.database.claims)
            if row.attempt is None and (worker := s.read(s.database.workers, row.worker)) and worker.ended
            if (task := s.read(s.database.tasks, key))
        ]

    def sweep(self, s: Statement, lapsed: Iterable[Lapsed], verdicts: Mapping[int, Verdict]) -> Steps[list[int]]:
        """The verdict on each claim whose lease was ended."""
        claims = {each.task: each for each in lapsed}
        db = s.database
        locked = yield from s.lock(
            db.tasks,
            claims,
            lambda key, task: task.state is State.RUNNING and task.version == claims[key].version,
            Lock.NO_KEY_UPDATE,
        )
        swept = yield from s.update(db.tasks, locked, always, lambda key, task: _swept(task, verdicts[key]))
        yield from s.delete(
            db.claims,
            claims,
            lambda key, row: row.version == claims[key].version and row.worker == claims[key].worker,
        )
        s.transaction.events |= {key: verdicts[key].decision.event for key in swept}
        yield from self._outbox(s, {key: task for key, task in swept.items() if task.state is State.SCHEDULED})
        return sorted(swept)

    # What a person decides, and the auditor

    def cancel(self, s: Statement, key: int) -> Steps[bool]:
        """A task that waits will not run."""
        free = yield from self._locked_and_unclaimed(
            s, [key], lambda _, task: task.state in WAITING, one_snapshot=Wrong.CANCEL_IN_ONE_SNAPSHOT in self.wrong
        )
        cancelled = yield from s.update(
            s.database.tasks,
            free,
            always,
            lambda _, task: task._replace(state=State.CANCELLED, version=task.version + 1, claim_version=None),
        )
        s.transaction.events.update(dict.fromkeys(cancelled, Event.CANCELLED))
        yield from self._withdraw(s, cancelled)
        return bool(cancelled)

    def published(self, s: Statement) -> dict[int, tuple[int, Place]]:
        """Published outbox rows: task → version, place."""
        return {key: (row.version, row.place) for key, row in s.scan(s.database.due) if row.place is not None}

    def requeue(self, s: Statement, asked: Mapping[int, int]) -> Steps[list[int]]:
        """Tasks whose records Kafka will not deliver are published again."""

        def same(key: int, task: Task) -> bool:
            return task.state in WAITING and task.version == asked[key]

        stale = [key for key in asked if (task := s.read(s.database.tasks, key)) is None or not same(key, task)]
        free = yield from self._locked_and_unclaimed(s, asked, same)
        requeued = yield from s.update(
            s.database.tasks,
            free,
            always,
            lambda _, task: task._replace(state=State.SCHEDULED, version=task.version + 1),
        )
        s.transaction.events.update(dict.fromkeys(requeued, Event.RECORD_LOST))
        yield from self._outbox(s, requeued)
        yield from self._drop_stale(s, stale, asked)
        return sorted(requeued)

    def in_state(self, s: Statement, state: State) -> dict[int, int]:
        """Tasks whose wide row has this state: task → version."""
        return {key: task.version for key, task in s.scan(s.database.tasks) if task.state is state}

    def resolve(self, s: Statement, key: int, event: Event, state: State) -> Steps[bool]:
        """An uncertain task has succeeded, is dead, or is sent again."""

        def change(_: int, task: Task) -> Task:
            if state is not State.SCHEDULED:
                return task._replace(state=state, version=task.version + 1, claim_version=None)
            attempts = min(task.attempts - (task.claim_version is not None), task.max_attempts - 1)
            generation = task.generation + 1
            return task._replace(
                state=state, version=task.version + 1, attempts=attempts, generation=generation, expires=False
            )

        db = s.database
        locked = yield from s.lock(db.tasks, [key], lambda _, task: task.state is State.UNCERTAIN, Lock.NO_KEY_UPDATE)
        resolved = yield from s.update(db.tasks, locked, always, change)
        s.transaction.events.update(dict.fromkeys(resolved, event))
        yield from self._outbox(s, resolved if state is State.SCHEDULED else {})
        return bool(resolved)

    def replay(self, s: Statement, key: int, version: int) -> Steps[bool]:
        """A dead task runs anew."""
        db = s.database
        locked = yield from s.lock(
            db.tasks,
            [key],
            lambda _, task: task.state is State.DEAD and task.version == version,
            Lock.NO_KEY_UPDATE,
        )
        replayed = yield from s.update(
            db.tasks,
            locked,
            always,
            lambda _, task: Task(task.max_attempts, version=task.version + 1, generation=task.generation + 1),
        )
        s.transaction.events.update(dict.fromkeys(replayed, Event.REPLAYED))
        yield from self._outbox(s, replayed)
        return bool(replayed)

    # Parts of several steps

    def _locked_and_unclaimed(
        self,
        s: Statement,
        keys: Iterable[int],
        where: Callable[[int, Task], bool],
        *,
        skip_locked: bool = False,
        one_snapshot: bool = False,
    ) -> Steps[list[int]]:
        """The wide rows that are locked now and have no claim."""
        locked = yield from s.lock(s.database.tasks, keys, where, Lock.NO_KEY_UPDATE, skip_locked=skip_locked)
        if Wrong.NARROW_BEFORE_LOCK not in self.wrong and not one_snapshot:
            yield None
            s = s.function()
        return [key for key in locked if s.read(s.database.claims, key) is None]

    def _outbox(self, s: Statement, tasks: Mapping[int, Task]) -> Steps[None]:
        """These tasks are due."""
        for key, task in sorted(tasks.items()):
            row = Outbox(task.version, s.now)
            yield from s.insert(s.database.due, key, row, on_conflict=lambda _, row=row: row)  # type: ignore[misc]

    def _withdraw(self, s: Statement, keys: Iterable[int]) -> Steps[None]:
        """Outbox rows of tasks that have ended; one may be from a transaction that this statement has waited for."""
        keys = list(keys)
        if keys and Wrong.OUTBOX_BY_SNAPSHOT not in self.wrong:
            yield None
            s = s.function()
        yield from s.delete(s.database.due, keys)

    def _drop_stale(self, s: Statement, stale: Iterable[int], asked: Mapping[int, int]) -> Steps[None]:
        """Outbox rows at a version that their task no longer had when the statement began."""
        locked = yield from s.lock(
            s.database.due, stale, lambda key, row: row.version == asked[key], Lock.UPDATE, skip_locked=True
        )
        yield from s.delete(s.database.due, locked)


def _held(key: int, task: Task, row: Claim) -> Held:
    attempt = task.attempts if row.attempt is None else row.attempt
    return Held(key, row.version, row.worker, attempt, task.max_attempts, task.releases, task.generation)


def _event(decision: Decision, *, late: bool) -> Event:
    if not late:
        return decision.event
    return Event.LATE_SUCCESS if decision.state is State.SUCCEEDED else Event.LATE_DEATH


def _settled(task: Task, claim: Claim | None, settlement: Settlement, *, late: bool) -> Task:
    decision = settlement.decision
    if claim is not None and claim.attempt is not None:
        attempts = claim.attempt
    else:  # the wide row says it; the sweep has given the attempt back where the task waits again
        attempts = task.attempts + (task.state in WAITING)
    return task._replace(
        state=decision.state,
        version=task.version + 1 if late else settlement.version,
        attempts=attempts - decision.give_back,
        claim_version=None,
        releases=decision.releases,
    )


def _swept(task: Task, verdict: Verdict) -> Task:
    decision = verdict.decision
    return task._replace(
        state=decision.state,
        version=task.version + 1,
        attempts=task.attempts - decision.give_back,
        claim_version=None if decision.state is State.DEAD else task.claim_version,
        losses=task.losses + verdict.loss,
    )
