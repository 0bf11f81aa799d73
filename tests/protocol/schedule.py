"""One schedule: actors in an order that follows from a seed, with crashes, lost answers and lost logs; then quiet."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Generator, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from taskflux.stream.positions import TopicPositions
from taskflux.tasks.policy import Policy, RetryPolicy
from taskflux.tasks.states import ENDED
from tests.protocol import actors
from tests.protocol.actors import START
from tests.protocol.invariants import Violation, Watch
from tests.protocol.kafka import Topic
from tests.protocol.mutations import Wrong
from tests.protocol.statements import Protocol
from tests.protocol.tables import Database, Place, Statement, Transaction
from tests.protocol.world import Ask, Call, Look, Lost, Pause, Process, Program, World, listed

ROUNDS: Final = 30
"""Turns of all actors after the schedule, without a fault, in which every task must end."""
MOST_STEPS: Final = 20_000
"""Steps after which a schedule counts as stuck."""
NEVER: Final = 1 << 60


@dataclass(slots=True)
class Outcome:
    """What one schedule has shown. `violation`: what did not hold; `log`: its steps, where they were asked for."""

    seed: int
    violation: str | None
    counts: Counter[str]
    log: list[str]


@dataclass(slots=True, eq=False)
class Session:
    """A request under way in PostgreSQL or Kafka; it may outlive who asked (`actor` None)."""

    who: str
    label: str
    steps: Generator[Transaction | None, None, Any]
    transaction: Transaction | None
    actor: Actor | None
    blocked_on: Transaction | None = None
    wakes_at: int = 0


@dataclass(slots=True, eq=False)
class Actor:
    """A program, and what it is sent next; it does nothing before `wakes_at`, or while it has a request under way."""

    name: str
    program: Program[Any] | None
    wakes_at: int = 0
    answer: object = None
    session: Session | None = None


@dataclass(slots=True)
class Schedule:
    """Everything that happens is drawn from `world.rng`."""

    world: World
    faults: float
    steps: int
    counts: Counter[str] = field(default_factory=Counter)
    actors: list[Actor] = field(default_factory=list)
    sessions: list[Session] = field(default_factory=list)

    def run(self) -> None:
        """The whole schedule. Raises Violation."""
        w = self.world
        self.actors = [Actor(name, start(w), w.rng.randint(0, 10)) for name, start in START.items()]
        self.rebalance()
        while self.step():
            if w.now > MOST_STEPS:
                raise Violation("the schedule does not end")
            w.stopping = w.stopping or w.now >= self.steps
            if not w.stopping and w.rng.random() < self.faults:
                self.fault()
        self.quiet()
        w.watch.finished()

    def step(self) -> bool:
        """One actor, or one request, goes on to its next yield. Time passes until one is ready; false: none is left."""
        w = self.world
        now, soonest = w.now + 1, NEVER
        ready: list[Actor | Session] = []
        for actor in self.actors:
            if actor.session is None and actor.program is not None:
                if actor.wakes_at <= now:
                    ready.append(actor)
                soonest = min(soonest, actor.wakes_at)
        for session in self.sessions:
            if session.blocked_on is None or not session.blocked_on.running:
                if session.wakes_at <= now:
                    ready.append(session)
                soonest = min(soonest, session.wakes_at)
        if soonest == NEVER:
            return False
        w.now = max(now, soonest)
        if not ready:
            return True
        chosen = ready[int(w.rng.random() * len(ready))]
        if isinstance(chosen, Session):
            self.advance(chosen)
        else:
            self.resume(chosen)
        return True

    def resume(self, actor: Actor) -> None:
        answer, actor.answer = actor.answer, None
        assert actor.program is not None
        try:
            asked = actor.program.throw(answer) if isinstance(answer, Lost) else actor.program.send(answer)
        except StopIteration:
            actor.program = None
        except Lost:  # this one begins anew, as after a crash
            self.restart(actor)
        else:
            if isinstance(asked, Pause):
                actor.wakes_at = self.world.now + asked.steps
            else:
                actor.session = self.request(asked, actor)

    def request(self, asked: Call | Look | Ask, actor: Actor) -> Session:
        if isinstance(asked, Ask):
            session = Session(actor.name, asked.label, self._ask(asked), None, actor)
        elif isinstance(asked, Look):
            session = Session(actor.name, asked.label, self._look(asked), None, actor)
        else:
            transaction = Transaction(f"{actor.name} {asked.label}")
            session = Session(actor.name, asked.label, self._statement(asked, transaction), transaction, actor)
        self.sessions.append(session)
        return session

    def _look(self, asked: Look) -> Generator[None, None, object]:
        self.counts["statements"] += 1
        yield from ()
        return asked.body(Statement(self.world.database, Transaction(asked.label), self.world.now))

    def _ask(self, asked: Ask) -> Generator[None, None, object]:
        self.counts["requests to Kafka"] += 1
        yield from ()
        return asked.answer()

    def _statement(self, asked: Call, transaction: Transaction) -> Generator[Transaction | None, None, object]:
        w = self.world
        statement = Statement(w.database, transaction, w.now)
        yield None
        result = yield from asked.body(statement)
        if transaction.written:
            yield None
        w.database.commit(transaction)
        self.counts["statements"] += 1
        self.counts.update(event.name for event in transaction.events.values())
        w.watch.committed(transaction)
        if transaction.written and w.done():
            w.stopping = True
        return result

    def advance(self, session: Session) -> None:
        """One step of a request."""
        w = self.world
        if session.transaction is not None and not session.wakes_at:
            w.note(session.who, f"{session.label} …")
        session.wakes_at = w.now + w.rng.randint(5, 60) if w.rng.random() < 0.04 else w.now
        session.blocked_on = None
        try:
            session.blocked_on = session.steps.send(None)
        except StopIteration as stop:
            self.sessions.remove(session)
            self.answered(session, stop.value)
            return
        if session.blocked_on is not None:
            w.note(session.who, f"{session.label}: waits for “{session.blocked_on.label}”")
            self.counts["waits"] += 1
            if self.deadlocked(session):
                raise Violation(f"deadlock: {session.label}")

    def answered(self, session: Session, result: object) -> None:
        if session.actor is not None:
            session.actor.session, session.actor.answer = None, result
        if self.world.log is None:
            return
        done = session.transaction and session.transaction.events
        said = "; ".join(f"task {key} {event.name}" for key, event in sorted(done.items())) if done else told(result)
        self.world.note(session.who, f"{session.label}: {said}" + ("" if session.actor else " (nobody hears of it)"))

    def deadlocked(self, session: Session) -> bool:
        """Whether those that wait for each other are a circle."""
        waits = {each.transaction: each.blocked_on for each in self.sessions if each.transaction}
        at = session.blocked_on
        while at is not None and at.running:
            if at is session.transaction:
                return True
            at = waits.get(at)
        return False

    # Faults

    def fault(self) -> None:
        """Something fails."""
        w = self.world
        draw = w.rng.random()
        if draw < 0.4:
            actor = w.rng.choice([each for each in self.actors if each.name != "clock"])
            if actor.program is not None:
                self.counts["crashes"] += 1
                w.note(actor.name, "CRASHES")
                self.restart(actor)
        elif draw < 0.75:
            asking = [each for each in self.actors if each.session]
            if asking:
                actor = w.rng.choice(asking)
                self.counts["lost answers"] += 1
                w.note(actor.name, "LOSES THE ANSWER")
                self.detach(actor)
                actor.answer = Lost()
        elif draw < 0.87:
            self.rebalance()
        else:
            self.lose_log()

    def restart(self, actor: Actor) -> None:
        """A process ends at once, and another one takes its place."""
        w = self.world
        self.detach(actor)
        if actor.program is not None:
            actor.program.close()
        mine = w.workers.get(actor.name)
        if mine is not None:
            mine.alive = mine.valid = False
        actor.answer, actor.program = None, START[actor.name](w)
        actor.wakes_at = w.now + w.rng.randint(0, 80)

    def detach(self, actor: Actor) -> None:
        """What an actor has asked for goes on without it, or is undone."""
        session, actor.session = actor.session, None
        if session is None:
            return
        session.actor = None
        if self.world.chance(0.4):
            self.sessions.remove(session)
            session.steps.close()
            if session.transaction is not None:
                self.world.database.abort(session.transaction)
                self.world.note(session.who, f"{session.label}: undone")

    def rebalance(self) -> None:
        """The group gives its partitions to other workers."""
        w = self.world
        for number, at in enumerate(w.topic.partitions):
            at.owner = f"worker {w.rng.randint(1, 3)}"
            at.generation += 1
            w.note("Kafka", f"gives partition {number} to {at.owner}")
        self.counts["rebalances"] += 1

    def lose_log(self) -> None:
        w = self.world
        kind, partition = w.rng.randrange(3), w.rng.randrange(len(w.topic.partitions))
        self.counts["lost logs"] += 1
        if kind == 0:
            w.topic.recreate()
            w.note("Kafka", "LOSES THE TOPIC, which is created again")
        elif kind == 1:
            w.topic.lose_the_end(partition)
            w.note("Kafka", f"LOSES THE LAST RECORDS of partition {partition}")
        else:
            w.topic.lose_the_start(partition)
            w.note("Kafka", f"DELETES THE FIRST RECORDS of partition {partition}")

    # The end

    def quiet(self) -> None:
        """One actor after the other, without faults, until every task has ended and no narrow row remains."""
        w = self.world
        w.quiet, w.stopping = True, False
        last = Process("worker 0")
        self.alone("worker 0", actors.begin(w, last))
        for at in w.topic.partitions:
            at.owner, at.generation = last.name, at.generation + 1
        for _ in range(ROUNDS):
            w.now += MOST_STEPS
            self.alone("leader", actors.end_silent(w))
            self.alone("leader", actors.sweep(w))
            self.alone("relay", actors.relay_once(w))
            while actors.behind(w, last):
                self.alone("worker 0", actors.work(w, last))
            self.alone("auditor", actors.audit(w))
            if all(state in ENDED for state, _ in w.watch.states.values()) and not self.remains():
                return

    def remains(self) -> bool:
        db = self.world.database
        keys = self.world.watch.states
        return any(db.read(db.due, key) is not None for key in keys) or self.world.claimed()

    def alone(self, name: str, program: Program[Any]) -> None:
        actor = Actor(name, program)
        while actor.program is not None:
            self.resume(actor)
            while actor.session is not None:
                self.advance(actor.session)


def told(result: object) -> str:
    """An answer, to be read."""
    match result:
        case None | True:
            return "done"
        case False:
            return "not done"
        case Place(_, partition, offset):
            return f"it is at offset {offset} of partition {partition}"
        case TopicPositions():
            return "; ".join(
                f"partition {number} from {at.start} to {at.end}, next is {at.next}"
                for number, at in result.partitions.items()
            )
        case Mapping():
            versions = {key: each[0] if isinstance(each, tuple) else each for key, each in result.items()}
            return listed(versions)
        case _:
            return ", ".join(map(str, result)) or "nothing" if isinstance(result, Sequence) else str(result)


def schedule_of(seed: int, wrong: Iterable[Wrong] = (), *, log: bool = False) -> Outcome:
    """Run one schedule: the same seed, the same schedule."""
    rng = random.Random(seed)
    hold = rng.random() < 0.5
    topic, database = Topic(rng.choice((1, 1, 2))), Database()
    policy = Policy(RetryPolicy(max_attempts=3), "hold" if hold else "resend")
    watch = Watch(database, topic, hold)
    world = World(rng, Protocol(wrong), topic, database, watch, policy, rng.choice((1, 1, 2, 3)), [] if log else None)
    schedule = Schedule(world, rng.choice((0.0, 0.01, 0.02, 0.04)), rng.randint(150, 500))
    violation = None
    try:
        schedule.run()
    except Violation as found:
        violation = str(found)
        world.note("", f"VIOLATION: {violation}")
    schedule.counts["schedules"] += 1
    schedule.counts["repeated side effects under resend"] += watch.repeats
    return Outcome(seed, violation, schedule.counts, world.log or [])
