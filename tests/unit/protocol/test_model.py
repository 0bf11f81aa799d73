"""The model of docs/protocol.md, for a few schedules: `make protocol` runs many."""

from __future__ import annotations

from collections import Counter

import pytest

from taskflux.tasks.states import Event
from tests.protocol.__main__ import main
from tests.protocol.mutations import Wrong
from tests.protocol.schedule import schedule_of
from tests.protocol.statements import Protocol
from tests.protocol.tables import Claim, Database, Lock, Outbox, Statement, Steps, Task, Transaction, Worker, always

SCHEDULES = 300
NOTICED = {
    Wrong.NARROW_BEFORE_LOCK: 2,
    Wrong.CLAIM_OVERWRITES: 15,
    Wrong.SETTLE_UNFENCED: 94,
    Wrong.CLAIM_LEAVES_OUTBOX: 1,
    Wrong.CONFIRM_ANY_VERSION: 11,
    Wrong.CLAIM_WITHOUT_LOCK: 10,
    Wrong.CANCEL_IN_ONE_SNAPSHOT: 31,
    Wrong.OUTBOX_NOT_RECHECKED: 2,
    Wrong.OUTBOX_BY_SNAPSHOT: 61,
}
"""Mutation → the first seed that breaks it; `python -m tests.protocol --mutation NAME` finds it again."""


def test_all_schedules_hold_and_together_reach_every_event() -> None:
    counts: Counter[str] = Counter()
    for seed in range(1, SCHEDULES + 1):
        outcome = schedule_of(seed)
        assert outcome.violation is None, f"seed {seed}"
        counts += outcome.counts
    assert {event.name for event in Event} - set(counts) <= {"LATE_DEATH"}
    assert all(counts[name] for name in ("waits", "crashes", "lost answers", "lost logs", "rebalances"))


@pytest.mark.parametrize("wrong", Wrong)
def test_each_mutation_is_noticed_by_its_seed_with_which_the_protocol_holds(wrong: Wrong) -> None:
    seed = NOTICED[wrong]
    assert schedule_of(seed).violation is None
    assert schedule_of(seed, [wrong]).violation is not None


def test_a_seed_gives_the_same_schedule_again(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--seed", "3", "--mutation", "narrow-before-lock"]) == 1
    first = capsys.readouterr().out
    assert main(["--seed", "3", "--mutation", "narrow-before-lock"]) == 1
    assert capsys.readouterr().out == first
    assert "VIOLATION" in first


class Session:
    """A transaction of one statement, stepped by hand."""

    def __init__(self, database: Database, name: str) -> None:
        self.database = database
        self.transaction = Transaction(name)
        self.statement = Statement(database, self.transaction, 0)

    def run(self, steps: Steps[object]) -> object:
        """Go on until the end, or until it must wait: what it ends with, or the transaction that it waits for."""
        try:
            while True:
                waits_for = steps.send(None)
                if waits_for is not None and waits_for.running:
                    return waits_for
        except StopIteration as stop:
            return stop.value

    def commit(self) -> None:
        self.database.commit(self.transaction)


@pytest.fixture
def database() -> Database:
    """One task, pending, and one worker."""
    made = Database()
    session = Session(made, "set-up")
    session.run(Protocol().insert(session.statement, {1: Task(max_attempts=3)}, 0))
    session.run(session.statement.insert(made.workers, 7, Worker()))
    session.commit()
    return made


def test_a_statement_sees_the_tables_as_of_its_start_and_a_function_anew(database: Database) -> None:
    early, writer = Session(database, "early"), Session(database, "writer")
    writer.run(writer.statement.insert(database.claims, 1, Claim(2, 7, 1)))
    assert early.statement.function().read(database.claims, 1) is None
    writer.commit()
    assert early.statement.read(database.claims, 1) is None
    assert early.statement.function().read(database.claims, 1) == Claim(2, 7, 1)


def test_a_row_that_was_waited_for_is_checked_again_if_it_was_changed(database: Database) -> None:
    changes, waits = Session(database, "changes"), Session(database, "waits")
    changes.run(
        changes.statement.update(database.tasks, [1], always, lambda _, task: task._replace(version=task.version + 1))
    )
    steps = waits.statement.lock(database.tasks, [1], lambda _, task: task.version == 1, Lock.NO_KEY_UPDATE)
    assert waits.run(steps) is changes.transaction
    changes.commit()
    assert waits.run(steps) == {}


def test_a_row_that_was_only_locked_is_taken_as_it_was(database: Database) -> None:
    locks, waits = Session(database, "locks"), Session(database, "waits")
    locks.run(locks.statement.lock(database.tasks, [1], always, Lock.NO_KEY_UPDATE))
    locks.run(locks.statement.insert(database.claims, 1, Claim(2, 7, 1)))
    steps = waits.statement.lock(
        database.tasks, [1], lambda key, _: waits.statement.read(database.claims, key) is None, Lock.NO_KEY_UPDATE
    )
    assert waits.run(steps) is locks.transaction
    locks.commit()
    assert list(waits.run(steps)) == [1]  # type: ignore[call-overload]  # the claim does not show


def test_a_unique_key_waits_and_knows_a_row_that_the_snapshot_has_not(database: Database) -> None:
    first, second = Session(database, "first"), Session(database, "second")
    first.run(first.statement.insert(database.claims, 1, Claim(2, 7, 1)))
    steps = second.statement.insert(database.claims, 1, Claim(2, 8, 1))
    assert second.run(steps) is first.transaction
    first.commit()
    assert second.run(steps) is False
    assert second.statement.read(database.claims, 1) is None


def test_a_row_inserted_after_the_snapshot_is_not_deleted(database: Database) -> None:
    early, writer = Session(database, "early"), Session(database, "writer")
    writer.run(writer.statement.delete(database.due, [1]))
    writer.run(writer.statement.insert(database.due, 1, Outbox(2, 0)))
    writer.commit()
    assert early.run(early.statement.delete(database.due, [1])) == {}
    assert database.read(database.due, 1) == Outbox(2, 0)


def test_what_is_undone_leaves_no_row_and_no_lock(database: Database) -> None:
    undone, after = Session(database, "undone"), Session(database, "after")
    undone.run(undone.statement.delete(database.due, [1]))
    undone.run(undone.statement.insert(database.claims, 1, Claim(2, 7, 1)))
    database.abort(undone.transaction)
    assert database.read(database.due, 1) == Outbox(1, 0)
    assert after.run(after.statement.insert(database.claims, 1, Claim(2, 8, 1))) is True


def test_locks_conflict_as_in_postgresql(database: Database) -> None:
    shares, beats, ends = (Session(database, name) for name in ("shares", "beats", "ends"))
    shares.run(shares.statement.lock(database.workers, [7], always, Lock.KEY_SHARE))
    assert beats.run(Protocol().beat(beats.statement, 7)) is True
    beats.commit()
    assert ends.run(ends.statement.lock(database.workers, [7], always, Lock.UPDATE, skip_locked=True)) == {}
    assert ends.run(ends.statement.lock(database.workers, [7], always, Lock.UPDATE)) is shares.transaction
