"""What actors are made of, and what they share.

An actor is a generator. It yields what it asks of PostgreSQL (`Call`, `Look`) or Kafka (`Ask`) and is sent the answer,
or has `Lost` thrown if the answer was lost: what it asked for has happened, happens later, or never does. It may crash
at every yield.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple, TypeAlias, TypeVar

from taskflux.tasks.policy import Policy
from taskflux.tasks.states import State
from tests.protocol.invariants import Watch
from tests.protocol.kafka import Topic
from tests.protocol.statements import Protocol
from tests.protocol.tables import Database, Statement, Steps

T = TypeVar("T")


_DONE: Final = (State.SUCCEEDED, State.CANCELLED)


class Lost(Exception):
    """The answer was lost."""


class Call(NamedTuple):
    """One statement that writes."""

    label: str
    body: Callable[[Statement], Steps[Any]]


class Look(NamedTuple):
    """One statement that reads: all of it is as of one moment."""

    label: str
    body: Callable[[Statement], Any]


class Ask(NamedTuple):
    """One request to Kafka."""

    label: str
    answer: Callable[[], Any]


class Pause(NamedTuple):
    """Nothing, for some steps of the schedule."""

    steps: int


Program: TypeAlias = Generator["Call | Look | Ask | Pause", Any, T]


def call(label: str, body: Callable[[Statement], Steps[T]]) -> Program[T]:
    answer: T = yield Call(label, body)
    return answer


def look(label: str, body: Callable[[Statement], T]) -> Program[T]:
    answer: T = yield Look(label, body)
    return answer


def ask(label: str, answer: Callable[[], T]) -> Program[T]:
    answered: T = yield Ask(label, answer)
    return answered


@dataclass(slots=True, eq=False)
class Process:
    """A worker's process: its lease, and what it has read of each partition, in which generation of the group.

    `valid`: by its own clock, its lease has not expired. `term` is the lease's number: claims of an earlier one are not
    run. `beating`: a beat is under way; `beat`: the last that was sent.
    """

    name: str
    lease: int = 0
    term: int = 0
    valid: bool = False
    alive: bool = True
    beating: bool = False
    beat: int = 0
    read: dict[int, tuple[int, int]] = field(default_factory=dict)


@dataclass(slots=True, eq=False)
class World:
    """What the actors share. `now` is the step of the schedule; in the `quiet` at the end, nothing fails."""

    rng: random.Random
    protocol: Protocol
    topic: Topic
    database: Database
    watch: Watch
    policy: Policy
    tasks: int
    log: list[str] | None = None
    now: int = 0
    leases: int = 0
    expired: bool = False
    stopping: bool = False
    quiet: bool = False
    workers: dict[str, Process] = field(default_factory=dict)
    processes: dict[int, Process] = field(default_factory=dict)

    def note(self, who: str, text: str) -> None:
        if self.log is not None:
            self.log.append(f"{self.now:5}  {who:<10}  {text}")

    def chance(self, probability: float) -> bool:
        return self.rng.random() < probability

    def claimed(self) -> bool:
        """Whether there are claims: a statement that would find none is not worth its steps."""
        claims = self.database.claims
        return any(self.database.read(claims, key) is not None for key in claims.lines)

    def done(self) -> bool:
        """Whether nothing is to be expected any more."""
        states = self.watch.states
        return len(states) == self.tasks and all(state in _DONE for state, _ in states.values())

    def some(self, keys: Mapping[int, int]) -> dict[int, int]:
        """All of them, or a part."""
        if self.quiet or self.chance(0.6):
            return dict(keys)
        return {key: each for key, each in keys.items() if self.chance(0.5)}


def listed(versions: Mapping[int, int]) -> str:
    """Tasks and versions, to be read."""
    return ", ".join(f"task {key} at {version}" for key, version in sorted(versions.items())) or "nothing"
