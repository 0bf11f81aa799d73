"""What tests of the core pass in: a clock that they move, and a database that can be unreachable for a while."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any

from taskflux.store.database import Database, Row, Statement
from taskflux.store.errors import StoreUnavailable
from taskflux.store.settings import PostgresSettings


@dataclass
class Clock:
    """Monotonic seconds, as the test says."""

    now: float = 1000.0

    def __call__(self) -> float:
        return self.now


class WatchedDatabase(Database):
    """PostgreSQL, which remembers the statements that it ran; for some of them it can be unreachable.

    `unreachable` names statements that are not run; the answers of those in `mute` are lost, once each. `failed` is set
    when either has happened. What `when` holds for a statement is awaited before it is run.
    """

    def __init__(self, settings: PostgresSettings, *, pool_size: int = 2) -> None:
        super().__init__(settings, pool_size=pool_size)
        self.reset()

    def reset(self) -> None:
        """As if nothing had happened."""
        self.ran: Counter[str] = Counter()
        self.unreachable: set[str] = set()
        self.mute: set[str] = set()
        self.failed = asyncio.Event()
        self.when: dict[str, Callable[[], Awaitable[Any]]] = {}

    async def fetch(self, statement: Statement, /, **arguments: object) -> Sequence[Row]:
        if (happens := self.when.get(statement.name)) is not None:
            await happens()
        if statement.name in self.unreachable:
            self.failed.set()
            raise StoreUnavailable("unreachable, says the test")
        self.ran[statement.name] += 1
        rows = await super().fetch(statement, **arguments)
        if statement.name in self.mute:
            self.mute.remove(statement.name)
            self.failed.set()
            raise StoreUnavailable("the answer was lost, says the test")
        return rows
