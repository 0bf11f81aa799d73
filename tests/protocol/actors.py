"""Who takes part: ingest, relays, workers, a leader that ends leases, sweeps and audits, and people."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Final
from uuid import UUID

from taskflux.stream.positions import TopicPositions
from taskflux.tasks import decision as decisions
from taskflux.tasks.decision import LOSSES_ALONE, Decision, decide, judge, release, unforeseen
from taskflux.tasks.errors import Ambiguous, Expired, Permanent, TaskError, Transient, Unavailable
from taskflux.tasks.states import Event, State
from tests.protocol.kafka import Record, lost
from tests.protocol.statements import Held, Settlement
from tests.protocol.tables import Place, Task
from tests.protocol.world import Lost, Pause, Process, Program, World, ask, call, listed, look

# Publishing -----------------------------------------------------------------------------------------------------------


def ingest(w: World) -> Program[None]:
    """Accepts the tasks, one by one or together, and publishes those that are due at once."""
    fresh = {key: Task(max_attempts=w.rng.randint(1, 3), expires=w.chance(0.2)) for key in range(1, w.tasks + 1)}
    groups = [fresh] if w.chance(0.4) else [{key: task} for key, task in fresh.items()]
    for group in groups:
        later = w.chance(0.2)
        publish_at = w.now + w.rng.randint(0, 60)
        try:
            yield from call(
                f"inserts {listed(dict.fromkeys(group, 1))}",
                partial(w.protocol.insert, tasks=group, publish_at=publish_at),
            )
        except Lost:
            continue
        if not later:
            yield from publish(w, dict.fromkeys(group, 1))
        yield Pause(w.rng.randint(0, 40))


def publish(w: World, versions: Mapping[int, int]) -> Program[None]:
    """Sends records, and confirms those that Kafka has."""
    places: dict[int, tuple[int, Place]] = {}
    for key, version in sorted(versions.items()):
        partition = w.rng.randrange(len(w.topic.partitions))
        try:
            place = yield from ask(
                f"sends the record of task {key} at {version}",
                partial(w.topic.append, Record(key, version), partition),
            )
        except Lost:
            continue
        places[key] = version, place
    if places:
        label = f"confirms {listed({key: version for key, (version, _) in places.items()})}"
        yield from call(label, lambda s: w.protocol.confirm(s, places))


def relay(w: World) -> Program[None]:
    """Publishes tasks whose time has come, and ends those that have expired."""
    while not w.stopping:
        found = yield from relay_once(w)
        yield Pause(w.rng.randint(0, 20 if found else 60))


def relay_once(w: World) -> Program[bool]:
    """One round; whether something was due."""
    due = w.some((yield from look("reads pending outbox rows", w.protocol.due_now)))
    expired = {key: version for key, version in due.items() if w.expired and _expires(w, key)}
    if expired:
        yield from call(f"expires {listed(expired)}", lambda s: w.protocol.expire(s, expired))
    due = {key: version for key, version in due.items() if key not in expired}
    if due:
        publish_at = w.now + w.rng.randint(10, 80)
        taken = yield from call(f"promises {listed(due)}", lambda s: w.protocol.promise(s, due, publish_at))
        yield from publish(w, taken)
    return bool(due or expired)


def _expires(w: World, key: int) -> bool:
    task = w.database.read(w.database.tasks, key)
    return task is not None and task.expires


# Workers --------------------------------------------------------------------------------------------------------------


def worker(w: World, me: Process) -> Program[None]:
    """Reads records, claims their tasks, runs them and settles them, until it is told to stop."""
    w.workers[me.name] = me
    yield from begin(w, me)
    while not w.stopping:
        yield Pause(w.rng.randint(0, 12))
        if w.chance(0.08) or not me.valid:
            yield from beat(w, me)
        if w.chance(0.1) and w.claimed():
            yield from release_lost(w, me)
        yield from work(w, me)
        if w.chance(0.01):
            break
    while True:
        try:
            yield from call("ends its own lease", lambda s: w.protocol.end_lease(s, me.lease))
            break
        except Lost:
            continue
    me.alive = me.valid = False


def begin(w: World, me: Process) -> Program[None]:
    """A new identity."""
    while True:
        w.leases += 1
        lease = w.leases
        try:
            yield from call(f"begins lease {lease}", partial(w.protocol.begin_lease, worker=lease))
            break
        except Lost:
            continue
    me.lease, me.beat, me.valid = lease, 0, True
    me.term += 1
    w.processes[lease] = me


def beat(w: World, me: Process) -> Program[None]:
    """Renews the lease, or begins another one."""
    held, me.beating = me.valid, True
    me.beat += 1
    try:
        renewed = yield from call("beats", lambda s: w.protocol.beat(s, me.lease))
    except Lost:
        me.beating = False
        return
    me.beating = False
    if not renewed:
        w.note(me.name, "finds that its lease was ended")
        me.valid = False
        yield from begin(w, me)
        return
    me.term += not held
    me.valid = True


def release_lost(w: World, me: Process) -> Program[None]:
    """Releases claims that PostgreSQL has and this process does not run: it runs none between two batches."""
    try:
        held = yield from look("reads its claims", lambda s: w.protocol.held(s, me.lease))
    except Lost:
        return
    if held:
        yield from settle(w, me, [(each, release("its worker has lost track of the attempt")) for each in held])


def work(w: World, me: Process) -> Program[None]:
    """One batch of records."""
    records, ends = read(w, me)
    if not ends:
        return
    claimed: list[Held] = []
    while records:
        term = me.term
        try:
            answer = yield from call(
                f"claims {listed(records)}",
                partial(w.protocol.claim, worker=me.lease, versions=dict(records)),
            )
            if answer is not None:
                claimed += answer
                break
            w.note(me.name, "finds that its lease was ended")
            me.valid = False
            yield from begin(w, me)
        except Lost:
            claimed += yield from reclaim(w, me, records)
            records = {key: each for key, each in records.items() if key not in {held.task for held in claimed}}
    early = w.chance(0.6)
    if early:
        yield from commit(w, me, ends)
    outcomes = []
    for held in claimed:
        outcomes.append((held, (yield from run(w, me, held, term))))
        if w.chance(0.6):
            yield from settle(w, me, outcomes)
            outcomes = []
    yield from settle(w, me, outcomes)
    if not early:
        yield from commit(w, me, ends)


def reclaim(w: World, me: Process, records: Mapping[int, int]) -> Program[list[Held]]:
    """What a claim took whose answer was lost."""
    while True:
        try:
            held = yield from look("reads what its claim took", lambda s: w.protocol.held(s, me.lease))
            return [each for each in held if records.get(each.task) == each.version - 1]
        except Lost:
            continue


def behind(w: World, me: Process) -> bool:
    """Whether a process has records left to read."""
    for number, at in enumerate(w.topic.partitions):
        generation, position = me.read.get(number, (-1, 0))
        if at.records and (generation != at.generation or position != at.end):
            return True
    return False


def read(w: World, me: Process) -> tuple[dict[int, int], dict[int, int]]:
    """The next records of the partitions that the group has given to this process, and where it is behind them."""
    records: dict[int, int] = {}
    ends: dict[int, int] = {}
    for number, at in enumerate(w.topic.partitions):
        if at.owner != me.name:
            continue
        generation, position = me.read.get(number, (-1, 0))
        if generation != at.generation:
            position = at.start if at.committed is None else at.committed
        if not at.start <= position <= at.end:
            position = at.start
        for record in at.records[position - at.start : position - at.start + w.rng.randint(1, 3)]:
            if record.task in records:
                break
            records[record.task] = record.version
            position += 1
            ends[number] = position
        me.read[number] = at.generation, position
    return records, ends


def commit(w: World, me: Process, ends: Mapping[int, int]) -> Program[None]:
    """Commits offsets: the records before them need not be delivered again."""

    def commit_all() -> None:
        for number, offset in ends.items():
            at = w.topic.partitions[number]
            if at.owner == me.name and me.read[number][0] == at.generation:
                at.committed = offset

    try:
        yield from ask("commits its offsets", commit_all)
    except Lost:
        return


def run(w: World, me: Process, held: Held, term: int) -> Program[Decision]:
    """One attempt, and what follows it."""
    if not (me.valid and me.term == term):
        return release("the worker could not renew its lease", releases=held.releases)
    number = decisions.Attempt(held.attempt, held.max_attempts, held.releases, others_succeeded=w.chance(0.5))
    if w.expired and _expires(w, held.task):
        return decide(w.policy, number, Expired("its expiresAt had passed when a worker took it"), 0.5)
    w.note(me.name, f"calls the handler of task {held.task} at {held.version}, attempt {held.attempt}")
    attempt = w.watch.called(held)
    yield Pause(w.rng.choice((0, 0, 20, 150)))
    error, happens = _outcome(w)
    if happens:
        w.note(me.name, f"the side effect of task {held.task} happens")
        w.watch.effect(attempt)
    yield Pause(w.rng.choice((0, 0, 20, 150)))
    if error is None:
        return Decision(Event.SUCCEEDED, State.SUCCEEDED)
    attempt.excused = True
    w.note(me.name, f"the handler of task {held.task} raises {error.error_class}")
    return decide(w.policy, number, error, 0.5)


def _outcome(w: World) -> tuple[TaskError | None, bool]:
    """What a handler raises, and whether its side effect has happened all the same."""
    draw = 1.0 if w.quiet else w.rng.random()
    if draw < 0.1:
        return Transient("busy"), False
    if draw < 0.14:
        return Permanent("refused"), False
    if draw < 0.2:
        return Unavailable("unreachable"), False
    if draw < 0.3:
        return Ambiguous("no answer"), w.chance(0.5)
    if draw < 0.35:
        return unforeseen(w.policy, "a bug", called=True), w.chance(0.5)
    return None, True


def settle(w: World, me: Process, outcomes: Sequence[tuple[Held, Decision]]) -> Program[None]:
    """Writes outcomes, however long that takes."""
    if not outcomes:
        return
    said = ", ".join(f"task {held.task} at {held.version} as {decision.state}" for held, decision in outcomes)
    settlements = [Settlement(held.task, held.version, decision) for held, decision in outcomes]
    while True:
        try:
            yield from call(f"settles {said}", lambda s: w.protocol.settle(s, me.lease, settlements))
            return
        except Lost:
            continue


# The leader -----------------------------------------------------------------------------------------------------------


def leader(w: World) -> Program[None]:
    """Ends the leases of silent workers, and frees their claims."""
    while not w.stopping:
        yield Pause(w.rng.randint(10, 80))
        if w.chance(0.6):
            yield from end_silent(w)
        yield Pause(w.rng.choice((0, 0, 20)))
        yield from sweep(w)


def end_silent(w: World) -> Program[None]:
    """Ends leases that have expired: a worker knows that before, since it counts from an earlier moment."""
    beats = yield from look("reads the beats of leases", w.protocol.beats)
    yield Pause(w.rng.randint(0, 20))
    silent: dict[int, int] = {}
    for lease, beat in beats.items():
        owner = w.processes.get(lease)
        if owner is None or not owner.alive or owner.lease != lease:
            silent[lease] = beat
        elif not w.quiet and w.chance(0.4) and not owner.beating and owner.beat <= beat:
            owner.valid = False
            w.note(owner.name, f"does not beat for as long as lease {lease} lasts")
            silent[lease] = beat
    overdue = {lease: beat for lease, beat in silent.items() if w.chance(0.4)}
    if silent:
        said = ", ".join(f"lease {lease} of {_owner(w, lease)}" for lease in silent)
        yield from call(f"ends {said}", lambda s: w.protocol.end_silent(s, silent, overdue))


def _owner(w: World, lease: int) -> str:
    owner = w.processes.get(lease)
    return "nobody" if owner is None else owner.name


def sweep(w: World) -> Program[None]:
    """Frees the claims of leases that were ended, by the verdicts of the real code."""
    if w.claimed():
        yield from call("ends the claims of ended leases", w.protocol.end_claims)
    lapsed = yield from look("reads claims whose lease was ended", w.protocol.lapsed)
    verdicts: dict[int, decisions.Verdict] = {}
    for lease in sorted({each.worker for each in lapsed}):
        mine = [each for each in lapsed if each.worker == lease]
        held = [
            decisions.Held(UUID(int=each.task), w.watch.hold, each.losses > 0, each.losses > 0, each.losses)
            for each in mine
        ]
        judged = judge(held, lost=mine[0].lost, losses_alone=LOSSES_ALONE, new_group=lambda: UUID(int=0))
        verdicts |= {task.int: verdict for task, verdict in judged.items()}
    if lapsed:
        said = ", ".join(f"task {each.task} at {each.version}" for each in lapsed)
        yield from call(f"sweeps {said}", lambda s: w.protocol.sweep(s, lapsed, verdicts))


def auditor(w: World) -> Program[None]:
    """Compares published outbox rows with Kafka: the rows first, the positions after.

    Every second pass begins with the positions of the one before, and compares with new ones what these do not explain.
    """
    known = None
    while not w.stopping:
        yield Pause(w.rng.randint(20, 120))
        known = yield from audit(w, known)


def audit(w: World, known: TopicPositions | None = None) -> Program[TopicPositions | None]:
    published = yield from look("reads published outbox rows", w.protocol.published)
    suspects = {key: at for key, at in published.items() if known is None or lost(key, *at, known)}
    if not suspects:
        return None
    yield Pause(w.rng.choice((0, 0, 10)))
    positions = yield from ask("reads Kafka's positions", w.topic.positions)
    missing = {key: version for key, (version, place) in suspects.items() if lost(key, version, place, positions)}
    if missing:
        yield from call(f"requeues {listed(missing)}", lambda s: w.protocol.requeue(s, missing))
    return positions if known is None else None


# People and providers -------------------------------------------------------------------------------------------------


def canceller(w: World) -> Program[None]:
    """Cancels some of the tasks."""
    while not w.stopping and w.chance(0.7):
        yield Pause(w.rng.randint(0, 150))
        key = w.rng.randint(1, w.tasks)
        yield from call(f"cancels task {key}", partial(w.protocol.cancel, key=key))


def replayer(w: World) -> Program[None]:
    """Replays tasks that are dead."""
    while not w.stopping:
        yield Pause(w.rng.randint(20, 150))
        dead = yield from look("reads dead tasks", lambda s: w.protocol.in_state(s, State.DEAD))
        for key, version in w.some(dead).items():
            yield from call(
                f"replays task {key} at {version}",
                partial(w.protocol.replay, key=key, version=version),
            )


def resolver(w: World) -> Program[None]:
    """Decides what became of uncertain tasks."""
    choices = (
        (Event.RESOLVED_SUCCEEDED, State.SUCCEEDED),
        (Event.RESOLVED_DEAD, State.DEAD),
        (Event.RESOLVED_RESEND, State.SCHEDULED),
        (Event.RESOLVED_RESEND, State.SCHEDULED),
    )
    while not w.stopping:
        yield Pause(w.rng.randint(20, 150))
        uncertain = yield from look("reads uncertain tasks", lambda s: w.protocol.in_state(s, State.UNCERTAIN))
        for key in w.some(uncertain):
            event, state = w.rng.choice(choices)
            yield from call(
                f"resolves task {key} as {state}",
                partial(w.protocol.resolve, key=key, event=event, state=state),
            )


def clock(w: World) -> Program[None]:
    """The `expiresAt` of the tasks that have one passes."""
    yield Pause(w.rng.randint(0, 400))
    w.expired = True


START: Final[Mapping[str, Callable[[World], Program[None]]]] = {
    "ingest": ingest,
    "relay 1": relay,
    "relay 2": relay,
    "worker 1": lambda w: worker(w, Process("worker 1")),
    "worker 2": lambda w: worker(w, Process("worker 2")),
    "worker 3": lambda w: worker(w, Process("worker 3")),
    "leader 1": leader,
    "leader 2": leader,
    "auditor": auditor,
    "canceller": canceller,
    "replayer": replayer,
    "resolver": resolver,
    "clock": clock,
}
"""Name → how the actor starts, and starts again after a crash."""
