"""Tasks as all tables together show them, what the actors know, and the moves that change both."""

from __future__ import annotations

from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final, NamedTuple, Protocol, TypeVar
from uuid import UUID

from taskflux.store.claims import Claims
from taskflux.store.database import Database, Row, Statement
from taskflux.tasks.decision import Decision, release
from taskflux.tasks.states import ENDED, Event, State
from tests.integration.store.scene import Scene, succeeded

RESEND, HOLD = "email", "sms"
LATER: Final = 3600.0
ALL: Final = 100
RATE: Final = 1e6
WAITS: Final = (State.SCHEDULED, State.QUEUED)
ENDED_LEASE: Final = "the lease was ended"

OUTCOMES: Final = {
    "succeeded": succeeded({"ok": True}),
    "retry": Decision(Event.RETRY, State.SCHEDULED, 0.0, error_class="Transient", reason="at once"),
    "retry later": Decision(Event.RETRY, State.SCHEDULED, LATER, error_class="Transient", reason="later"),
    "released": release("drain"),
    "died": Decision(Event.DIED, State.DEAD, error_class="Permanent", reason="never"),
    "expired": Decision(Event.DIED, State.DEAD, give_back=True, error_class="Expired", reason="too late"),
    "held": Decision(Event.HELD, State.UNCERTAIN, error_class="Ambiguous", reason="perhaps"),
}

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Known:
    """A task as all tables together show it.

    `due`: its outbox row may be published now. `late` is the claim of a lost worker that may still report. `buried` is
    the version of the dead letter that waits to be published, `letters` are those that can be replayed. `reported` is
    the replay, and the number, of the delivery report that counts.
    """

    type: str
    state: State = State.SCHEDULED
    version: int = 1
    attempts: int = 0
    replays: int = 0
    due: bool = True
    expires: bool = False
    owner: UUID | None = None
    late: int | None = None
    suspect: bool = False
    buried: int | None = None
    letters: frozenset[int] = frozenset()
    early: bool = False
    reported: tuple[int, str] | None = None

    def moved(self, state: State, **changes: Any) -> Known:
        """In another state, at a new version; without what belongs to the state before."""
        fields: dict[str, Any] = {
            "state": state,
            "version": self.version + 1,
            "due": state is State.SCHEDULED,
            "owner": None,
            "suspect": self.suspect and state in (State.SCHEDULED, State.RUNNING),
            "buried": self.version + 1 if state is State.DEAD else self.buried,
        }
        return replace(self, **(fields | changes))


class Leases(NamedTuple):
    """The leases that were ended, and which of them because their worker was lost."""

    ended: frozenset[UUID] = frozenset()
    lost: frozenset[UUID] = frozenset()


Answer = Any
Follows = Callable[[UUID, Known, Leases], tuple[Known, Answer]]


def _learn_nothing(answers: Mapping[UUID, Answer]) -> None:
    pass


def _same_leases(leases: Leases) -> Leases:
    return leases


@dataclass(frozen=True, slots=True)
class Move:
    """A statement about to run.

    Args:
        run: runs it over a database; its answer about each task.
        follows: what becomes of a task, and the answer about it (None: it is not in the answers).
        learn: notes the answers, unless they never came.
        skips: rows that are locked are left for another time.
        leases: what becomes of the leases.
    """

    run: Callable[[Database], Awaitable[Mapping[UUID, Answer]]]
    follows: Follows
    learn: Callable[[Mapping[UUID, Answer]], None] = _learn_nothing
    skips: bool = False
    leases: Callable[[Leases], Leases] = _same_leases


@dataclass(slots=True)
class World:
    """What the actors know: records (Kafka's log forgets none), claims, dead letters, and what each has read last."""

    scene: Scene
    workers: list[Claims]
    tasks: list[UUID] = field(default_factory=list)
    model: dict[UUID, Known] = field(default_factory=dict)
    log: list[tuple[UUID, int]] = field(default_factory=list)
    held: list[tuple[int, UUID, int, int]] = field(default_factory=list)
    letters: list[tuple[UUID, UUID, int]] = field(default_factory=list)
    read: dict[tuple[str, int], Sequence[Any]] = field(default_factory=dict)
    successes: Counter[tuple[UUID, int]] = field(default_factory=Counter)
    reports: int = 0

    @property
    def database(self) -> Database:
        return self.scene.database

    # What is named by its place: what can still have an effect comes first, the newest first of all.

    def records(self, places: Sequence[int]) -> list[tuple[UUID, int]]:
        def fresh(record: tuple[UUID, int]) -> bool:
            known = self.model[record[0]]
            return known.version == record[1] and known.state in WAITS

        return at(self.log, places, fresh)

    def claims(self, places: Sequence[int]) -> list[tuple[int, UUID, int, int]]:
        def counts(claim: tuple[int, UUID, int, int]) -> bool:
            known = self.model[claim[1]]
            return claim[2] in (known.late, known.version) and known.state not in ENDED

        return at(self.held, places, counts)

    def letter(self, place: int) -> tuple[UUID, UUID, int] | None:
        found = at(self.letters, (place,), lambda letter: letter[2] in self.model[letter[1]].letters)
        return found[0] if found else None

    def task(self, place: int, *states: State) -> UUID | None:
        found = at(self.tasks, (place,), lambda task: self.model[task].state in states)
        return found[0] if found else None


def at(known: Sequence[T], places: Sequence[int], first: Callable[[T], bool]) -> list[T]:
    """The ones at these places, as often as they are named."""
    ranked = list(reversed(known))
    ranked.sort(key=first, reverse=True)  # which keeps the order of equals
    return [ranked[place % len(ranked)] for place in places] if ranked else []


class Reading(Database):
    """Runs the statement that reads, and none behind it: an actor is interrupted between two statements."""

    def __init__(self, there: Database, name: str) -> None:
        self._there, self._name = there, name
        self.rows: Sequence[Row] | None = None

    async def fetch(self, statement: Statement, /, **arguments: object) -> Sequence[Row]:
        if self.rows is not None:
            return []
        rows = await self._there.fetch(statement, **arguments)
        if statement.name == self._name:
            self.rows = rows
        return rows


class Recalling(Database):
    """Answers the statement that reads with what it has read before: the actor goes on."""

    def __init__(self, there: Database, name: str, rows: Sequence[Row]) -> None:
        self._there, self._name, self._rows = there, name, rows

    async def fetch(self, statement: Statement, /, **arguments: object) -> Sequence[Row]:
        return self._rows if statement.name == self._name else await self._there.fetch(statement, **arguments)


class Inside(Database):
    """Runs statements inside the open transaction of one connection."""

    def __init__(self, connection: Any) -> None:
        self._connection = connection

    async def fetch(self, statement: Statement, /, **arguments: object) -> Sequence[Row]:
        values = [arguments[name] for name in statement.parameters]
        return list(await self._connection.fetch(statement.text, *values))


class Step(Protocol):
    """What is drawn."""

    async def bind(self, world: World) -> Move: ...


def unchanged(task: UUID, known: Known, leases: Leases) -> tuple[Known, Answer]:
    return known, None
