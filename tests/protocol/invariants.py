"""What must hold after every commit, at every call of a handler, and in the end."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field

from taskflux.tasks.states import ENDED, Event, State, allowed
from tests.protocol.kafka import Record, Topic
from tests.protocol.statements import Held, derived
from tests.protocol.tables import Database, Place, Transaction


class Violation(AssertionError):
    """The protocol does not keep what it promises; the sentence says what."""


@dataclass(slots=True, eq=False)
class Attempt:
    """A call of a handler. `excused`: it may be repeated, since its outcome is not known, or its lease has ended."""

    held: Held
    effect: bool = False
    excused: bool = False


@dataclass(slots=True)
class Watch:
    """Looks on. `hold`: the policy of all tasks."""

    database: Database
    topic: Topic
    hold: bool
    states: dict[int, tuple[State, int]] = field(default_factory=dict)
    attempts: dict[tuple[int, int], Attempt] = field(default_factory=dict)
    effects: dict[tuple[int, int], list[Attempt]] = field(default_factory=lambda: defaultdict(list))
    repeats: int = 0

    def committed(self, transaction: Transaction) -> None:
        """Look at the tasks that a transaction has written."""
        tasks = {key for table, key in transaction.written if table != "workers"}
        workers = {key for table, key in transaction.written if table == "workers"}
        if workers:
            tasks |= {key for key in self.database.claims.lines if self._worker_of(key) in workers}
        for key in sorted(tasks):
            self._task(key, transaction)

    def _worker_of(self, key: int) -> int | None:
        claim = self.database.read(self.database.claims, key)
        return None if claim is None else claim.worker

    def _task(self, key: int, transaction: Transaction) -> None:
        db, said = self.database, transaction.label
        task, outbox, claim = db.read(db.tasks, key), db.read(db.due, key), db.read(db.claims, key)
        if task is None:
            raise Violation(f"{said}: narrow rows of task {key} stand without a wide row")
        state, version = derived(task, outbox, claim)
        if state is None:
            raise Violation(f"{said}: task {key} is scheduled, and no outbox row and no claim would ever move it")
        self._transition(key, state, version, transaction)
        if claim is not None:
            if outbox is not None:
                raise Violation(f"{said}: task {key} has a claim and an outbox row")
            if task.state not in (State.SCHEDULED, State.RUNNING):
                raise Violation(f"{said}: task {key} is {task.state}, and has a claim")
            if claim.attempt is not None and claim.attempt > task.max_attempts:
                raise Violation(f"{said}: attempt {claim.attempt} of task {key} is beyond its budget")
            if claim.version != task.version + (task.state is State.SCHEDULED):
                raise Violation(
                    f"{said}: the claim of task {key} is at {claim.version}, its wide row at {task.version}"
                )
            if (claim.attempt is None) != (task.state is State.RUNNING):
                raise Violation(f"{said}: task {key} is {task.state}, and its claim says attempt {claim.attempt}")
            if task.state is State.RUNNING and (attempt := self.attempts.get((key, claim.version))):
                attempt.excused = True
        elif task.state is State.RUNNING:
            raise Violation(f"{said}: task {key} is running without a claim")
        if outbox is not None and task.state in ENDED:
            raise Violation(f"{said}: task {key} is {task.state}, and has an outbox row")
        if outbox is not None and outbox.version != task.version:
            raise Violation(
                f"{said}: the outbox row of task {key} is at {outbox.version}, its wide row at {task.version}"
            )
        if transaction.events.get(key) is Event.PUBLISHED and outbox is not None and outbox.place is not None:
            self._place(key, outbox.version, outbox.place, said)

    def _place(self, key: int, version: int, place: Place, said: str) -> None:
        if not self.topic.had(place, Record(key, version)):
            raise Violation(f"{said}: the outbox row of task {key}, at {version}, names a record of another version")

    def _transition(self, key: int, state: State, version: int, transaction: Transaction) -> None:
        event, said = transaction.events.get(key), transaction.label
        before = self.states.get(key)
        settles = transaction.settles.get(key)
        if before is not None and before[0] is State.RUNNING and settles not in (None, before[1]):
            raise Violation(f"{said}: the claim of task {key} was at {before[1]}, and is another one's")
        self.states[key] = (state, version)
        if before is None:
            return
        if version < before[1]:
            raise Violation(f"{said}: the version of task {key} falls from {before[1]} to {version}")
        if event is None and state is not before[0]:
            raise Violation(f"{said}: task {key} goes from {before[0]} to {state} without an event")
        if event is not None and not allowed(event, before[0], state):
            raise Violation(
                f"{said}: task {key} goes from {before[0]} to {state} by {event.name}, which is not allowed"
            )

    def called(self, held: Held) -> Attempt:
        """A handler is called."""
        db = self.database
        claim = db.read(db.claims, held.task)
        state = self.states[held.task][0]
        if claim is None or (claim.version, claim.worker) != (held.version, held.worker):
            raise Violation(f"the handler of task {held.task} is called at {held.version}: it is {state} by now")
        attempt = self.attempts[held.task, held.version] = Attempt(held)
        return attempt

    def effect(self, attempt: Attempt) -> None:
        """A side effect happens."""
        held = attempt.held
        earlier = self.effects[held.task, held.generation]
        if earlier:
            if self.hold:
                raise Violation(f"the side effect of task {held.task} happens again under hold")
            if not all(each.excused for each in earlier):
                raise Violation(f"the side effect of task {held.task} happens again, and nothing had failed")
            self.repeats += 1
        attempt.effect = True
        earlier.append(attempt)

    def finished(self) -> None:
        """All is quiet."""
        db = self.database
        for key, (state, _) in sorted(self.states.items()):
            if state not in ENDED:
                raise Violation(f"task {key} is lost: it is {state} for ever")
            if db.read(db.due, key) is not None:
                raise Violation(f"an outbox row remains beside task {key}, which is {state}")
            if db.read(db.claims, key) is not None:
                raise Violation(f"a claim remains beside task {key}, which is {state}")
