"""The protocol of the store (docs/protocol.md) over PostgreSQL, in orders that hypothesis finds and shrinks.

One after the other, and several at once behind an open transaction, the statements must do what the model says. Then
all actors run at once, and whatever they do, no task is lost, claimed twice or moved back.

`make test` tries the same few examples each time. `TASKFLUX_TEST_PROTOCOL` is a number of examples for each test to
try in their place: other ones each time, and shrunk where one fails (with `--timeout 0`, since that takes long).
`make test-protocol` tries 200.
"""

from __future__ import annotations

import asyncio
import os
from collections import Counter
from collections.abc import Awaitable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import permutations, product
from typing import Any, Final, TypeVar
from uuid import UUID

import asyncpg
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule, run_state_machine_as_test

from taskflux.store.database import Database
from taskflux.store.settings import PostgresSettings
from taskflux.tasks.states import ENDED, State
from tests.conftest import NewDatabase
from tests.integration.store.conftest import EMPTY
from tests.integration.store.scene import Scene
from tests.integration.store.steps.drawn import CROWD, HOLDS, INSERTS, LOCKS, LOOKS, MOVES, PROGRAMS, WORKERS
from tests.integration.store.steps.publishing import Insert
from tests.integration.store.steps.tasks import Hold
from tests.integration.store.steps.world import HOLD, RESEND, Answer, Inside, Known, Leases, Move, Step, World
from tests.integration.store.test_stress import bring_home

T = TypeVar("T")

EXAMPLES: Final = int(os.environ.get("TASKFLUX_TEST_PROTOCOL", "0"))
MOST_TASKS, AT_ONCE = 4, 3

SHOWN: Final = """
SELECT t.id, s.state, s.version, s.attempts, t.type, t.replays, t.expires_at IS NOT NULL AS expires, t.claim_version,
       c.worker, c.version AS claimed, d.version AS outbox, d.publish_at <= now() AS due,
       d.publish_at > now() + interval '1 year' AS published, b.version AS buried, u.task_id IS NOT NULL AS suspect,
       ARRAY(SELECT task_version FROM dead_letters WHERE task_id = t.id AND state = 'open') AS letters,
       e.task_id IS NOT NULL AS early, COALESCE((t.delivery::json ->> 'replay')::integer, 0) AS reported_replay,
       t.delivery::json ->> 'reportedAt' AS reported_at
FROM tasks t JOIN task_states s ON s.id = t.id
LEFT JOIN claims c ON c.task_id = t.id
LEFT JOIN due d ON d.task_id = t.id AND NOT d.dead
LEFT JOIN due b ON b.task_id = t.id AND b.dead
LEFT JOIN suspects u ON u.task_id = t.id
LEFT JOIN early_reports e ON e.task_id = t.id
"""
LEASES: Final = "SELECT id, lost FROM workers WHERE ended"
WAITING: Final = """
SELECT count(*) FROM pg_stat_activity
WHERE datname = current_database() AND state = 'active' AND wait_event_type = 'Lock'
"""


def known(row: Any) -> Known:
    """A task as the tables show it; whatever no state allows fails here."""
    state = State(row["state"])
    waits = state in (State.SCHEDULED, State.QUEUED)
    assert (row["claimed"] is not None) == (state is State.RUNNING), dict(row)
    assert row["claimed"] in (None, row["version"]), dict(row)
    assert (row["outbox"] is not None) == waits, dict(row)
    assert row["outbox"] in (None, row["version"]), dict(row)
    assert bool(row["published"]) == (state is State.QUEUED), dict(row)
    return Known(
        row["type"],
        state,
        row["version"],
        row["attempts"],
        row["replays"],
        bool(row["due"]),
        row["expires"],
        row["worker"],
        row["claim_version"] if waits or state is State.UNCERTAIN else None,
        row["suspect"],
        row["buried"],
        frozenset(row["letters"]),
        row["early"],
        row["reported_at"] and (row["reported_replay"], row["reported_at"]),
    )


@dataclass(slots=True)
class Stage:
    """A loop and a database of its own, for examples that are functions and not coroutines."""

    runner: asyncio.Runner
    scene: Scene
    observer: Any

    def run(self, work: Awaitable[T]) -> T:
        async def awaited() -> T:
            async with asyncio.timeout(60):
                return await work

        return self.runner.run(awaited())

    async def world(self) -> World:
        """Empty tables, and workers with their leases."""
        await self.scene.direct.execute(EMPTY)
        await self.scene.register(RESEND, "resend")
        await self.scene.register(HOLD, "hold")
        return World(self.scene, [await self.scene.worker(origin=f"/{number}") for number in range(WORKERS)])


@contextmanager
def stage(new_database: NewDatabase) -> Iterator[Stage]:
    async def set_up() -> Stage:
        settings: PostgresSettings = await new_database()
        database = Database(settings, pool_size=10)
        await database.open()
        dsn = (settings.migrate_dsn or settings.dsn).get_secret_value()
        direct, observer = await asyncpg.connect(dsn), await asyncpg.connect(dsn)
        return Stage(runner, Scene(settings, database, direct), observer)

    async def tear_down(stage: Stage) -> None:
        await stage.scene.direct.close()
        await stage.observer.close()
        await stage.scene.database.close()

    with asyncio.Runner() as runner:
        made = runner.run(set_up())
        try:
            yield made
        finally:
            runner.run(tear_down(made))


def tried(few: int, *, shrunk: bool = True, **changes: Any) -> settings:
    return settings(
        max_examples=EXAMPLES or few,
        derandomize=not EXAMPLES,
        phases=list(Phase) if EXAMPLES and shrunk else [Phase.generate],
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
        **changes,
    )


# One after the other, and behind an open transaction ----------------------------------------------------------------


class Protocol(RuleBasedStateMachine):
    """The statements, beside the model."""

    stage: Stage

    def __init__(self) -> None:
        super().__init__()
        self.world = self.stage.run(self.stage.world())
        self.leases = Leases()

    @initialize(step=INSERTS)
    def begin(self, step: Step) -> None:
        self.stage.run(self._alone([step]))

    @precondition(lambda self: sum(each.state not in ENDED for each in self.world.model.values()) < MOST_TASKS)
    @rule(step=INSERTS)
    def insert(self, step: Step) -> None:
        self.stage.run(self._alone([step]))

    @rule(step=LOOKS)
    def look(self, step: Step) -> None:
        self.stage.run(self._alone([step]))

    @rule(step=MOVES)
    def move(self, step: Step) -> None:
        """Most often it comes too early or too late, and must change nothing."""
        self.stage.run(self._alone([step]))

    @rule(steps=st.lists(MOVES, min_size=2, max_size=8))
    def step(self, steps: list[Step]) -> None:
        """The first of these that changes something."""
        self.stage.run(self._alone(steps))

    @rule(hold=st.none() | HOLDS, steps=st.lists(MOVES, min_size=2, max_size=12), last=MOVES, crash=st.booleans())
    def race(self, hold: Step | None, steps: list[Step], last: Step, crash: bool) -> None:
        """The first (`hold`, or the first step that changes something) has its locks, and may lose its transaction
        (`crash`), while others that would change something run into them, and a `last` one, whatever it is."""
        self.stage.run(self._at_once([hold, *steps] if hold else steps, last, crash))

    def teardown(self) -> None:
        self.stage.run(self.stage.scene.check_transitions())
        self.stage.run(self.stage.scene.check_whereabouts())

    def _changes(self, move: Move, first: Move | None = None) -> bool:
        """Whether it changes something, now or after `first`."""

        def after(moves: Sequence[Move], task: UUID) -> tuple[Known, Leases]:
            known, leases = self.world.model[task], self.leases
            for each in moves:
                known, leases = each.follows(task, known, leases)[0], each.leases(leases)
            return known, leases

        before = [[], [first]] if first else [[]]
        return any(after(each, task) != after([*each, move], task) for each in before for task in self.world.model)

    async def _alone(self, steps: Sequence[Step]) -> None:
        moves = [await step.bind(self.world) for step in steps]
        number = next((number for number, move in enumerate(moves) if self._changes(move)), 0)
        answers = await moves[number].run(self.world.database)
        await self._compare([moves[number]], [answers], [steps[number]])
        moves[number].learn(answers)

    async def _at_once(self, steps: Sequence[Step], last: Step, crash: bool) -> None:
        chosen: list[tuple[Step, Move]] = []
        for step in steps:
            move = await step.bind(self.world)
            if isinstance(step, Hold) or self._changes(move, chosen[0][1] if chosen else None):
                chosen.append((step, move))
            if len(chosen) == AT_ONCE:
                break
        if not chosen:
            return
        chosen.append((last, await last.bind(self.world)))
        moves = [move for _, move in chosen]
        answers: list[Mapping[UUID, Answer]] = []
        running: list[asyncio.Future[Mapping[UUID, Answer]]] = []
        transaction = self.stage.scene.direct.transaction()
        await transaction.start()
        try:
            answers.append(await moves[0].run(Inside(self.stage.scene.direct)))
            for move in moves[1:]:
                running.append(asyncio.ensure_future(move.run(self.world.database)))
                await self._until_all_wait(running)
        finally:
            await (transaction.rollback() if crash else transaction.commit())
            answers += await asyncio.gather(*running)
        await self._compare(moves[crash:], answers[crash:], [step for step, _ in chosen], raced=True)
        for move, answer in list(zip(moves, answers, strict=True))[crash:]:
            move.learn(answer)

    async def _until_all_wait(self, running: Sequence[asyncio.Future[Any]]) -> None:
        async def some_run() -> bool:
            left = sum(not each.done() for each in running)
            return left > 0 and left > await self.stage.observer.fetchval(WAITING)

        while await some_run():  # noqa: ASYNC110  # what PostgreSQL does sets no event of ours
            await asyncio.sleep(0.001)

    async def _compare(
        self,
        moves: Sequence[Move],
        answers: Sequence[Mapping[UUID, Answer]],
        steps: Sequence[Step],
        raced: bool = False,
    ) -> None:
        """Each task, and what was answered about it, is as after these moves in one order or another."""
        async with self.stage.observer.transaction(isolation="repeatable_read", readonly=True):
            rows = await self.stage.observer.fetch(SHOWN)
            ended = await self.stage.observer.fetch(LEASES)
        lost = frozenset(each["id"] for each in ended if each["lost"])
        leases = Leases(frozenset(each["id"] for each in ended), lost)
        found = {row["id"]: known(row) for row in rows}
        assert found.keys() == self.world.model.keys()
        for task, now in found.items():
            seen = now, leases, tuple(each.get(task) for each in answers)
            possible = outcomes_of(moves, task, self.world.model[task], self.leases, raced)
            assert seen in possible, (
                f"{steps}\n\ntask {task} was {self.world.model[task]}\n\nand is {seen}\n\nnot one of\n"
                + "\n".join(map(str, possible))
            )
        self.world.model, self.leases = found, leases


def outcomes_of(moves: Sequence[Move], task: UUID, before: Known, leases: Leases, raced: bool) -> list[Any]:
    """What may become of a task: whatever the order, and whoever leaves locked rows alone."""
    found = []
    optional = [(True, False) if move.skips and raced else (True,) for move in moves]
    for order in permutations(range(len(moves))):
        for runs in product(*optional):
            known, now, answers = before, leases, [None] * len(moves)
            for number in order:
                if runs[number]:
                    known, answers[number] = moves[number].follows(task, known, now)
                    now = moves[number].leases(now)
            if (outcome := (known, now, tuple(answers))) not in found:
                found.append(outcome)
    return found


def test_whatever_meets_whatever_the_statements_do_what_the_model_says(new_database: NewDatabase) -> None:
    with stage(new_database) as made:
        # What keeps claims from statements of the release before: ours have to be right by themselves.
        made.run(made.scene.direct.execute("ALTER TABLE tasks DISABLE TRIGGER keep_claimed"))
        machine: type[Protocol] = type("Machine", (Protocol,), {"stage": made})
        run_state_machine_as_test(machine, settings=tried(5, stateful_step_count=30))


# All actors at once -------------------------------------------------------------------------------------------------


async def act(world: World, steps: Sequence[Step]) -> None:
    for step in steps:
        move = await step.bind(world)
        move.learn(await move.run(world.database))


async def hold(world: World, connection: Any, locks: Sequence[Hold]) -> None:
    for lock in locks:
        move = await lock.bind(world)
        async with connection.transaction():
            await move.run(Inside(connection))


async def watch(world: World, observer: Any, actors: Sequence[asyncio.Task[None]]) -> None:
    """Whenever one looks, each task is in one state that has all its rows, and no version is lower than before."""
    versions: Counter[UUID] = Counter()
    done = False
    while not done:
        done = all(actor.done() for actor in actors)
        for row in await observer.fetch(SHOWN):
            now = world.model[row["id"]] = known(row)
            assert now.version >= versions[row["id"]], (dict(row), versions[row["id"]])
            versions[row["id"]] = now.version


async def all_at_once(
    stage: Stage, ambiguous: str, programs: Mapping[str, Sequence[Step]], locks: Sequence[Hold]
) -> None:
    world, scene = await stage.world(), stage.scene
    await scene.register(RESEND, ambiguous)
    await act(world, [Insert((RESEND,) * CROWD, "left")])
    async with asyncio.TaskGroup() as group:  # a deadlock would come out as StoreBusy
        actors = [group.create_task(act(world, steps)) for steps in programs.values()]
        actors.append(group.create_task(hold(world, scene.direct, locks)))
        group.create_task(watch(world, stage.observer, actors))
    await scene.upkeep.clear_suspects()
    await scene.check_transitions()
    await scene.check_whereabouts()
    claimed = Counter((task, version) for _, task, version, _ in world.held)
    assert not claimed or max(claimed.values()) == 1, claimed
    assert not world.successes or max(world.successes.values()) == 1, world.successes
    await bring_home(scene)
    ended = Counter(row["state"] for row in await scene.sql("SELECT state FROM tasks"))
    assert ended.total() == len(world.tasks)
    assert ended.keys() <= {"succeeded", "dead", "uncertain", "cancelled"}


def test_all_actors_at_once_lose_no_task_and_run_none_twice(new_database: NewDatabase) -> None:
    with stage(new_database) as made:

        @tried(3, shrunk=False)  # it is a matter of time, and does not come again
        @given(st.sampled_from(["resend", "hold"]), PROGRAMS, LOCKS)
        def example(ambiguous: str, programs: Mapping[str, Sequence[Step]], locks: Sequence[Hold]) -> None:
            made.run(all_at_once(made, ambiguous, programs, locks))

        example()
