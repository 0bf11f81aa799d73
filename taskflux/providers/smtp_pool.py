"""Connections to the SMTP server: opened when wanted, used again, fewer when the server asks for it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Final

from aiosmtplib import SMTP

from taskflux.providers.smtp_replies import Throttled
from taskflux.providers.smtp_session import hang_up

Dial = Callable[[], Awaitable[SMTP]]
Clock = Callable[[], float]

CALM: Final = 20
"""Mails that must go well before one more connection is tried."""


class Slots:
    """How many connections may be busy at once: halved when the server complains, raised again by one at a time."""

    def __init__(self, most: int) -> None:
        self.most = most
        self.wanted = most
        self._existing = most
        self.busy = 0
        self._calm = 0
        self._free = asyncio.Semaphore(most)

    async def take(self) -> None:
        """Wait for a slot."""
        await self._free.acquire()
        self.busy += 1

    def give_back(self) -> None:
        """End the use of a slot; one too many is not handed out again."""
        self.busy -= 1
        if self._existing > self.wanted:
            self._existing -= 1
        else:
            self._free.release()

    def slow_down(self) -> None:
        """The server wants fewer connections."""
        self.wanted = max(1, self.wanted // 2)
        self._calm = 0

    def went_well(self) -> None:
        """A mail was taken."""
        self._calm += 1
        if self._calm >= CALM and self.wanted < self.most:
            self._calm = 0
            self.wanted += 1
            if self._existing < self.wanted:
                self._existing += 1
                self._free.release()


@dataclass(slots=True)
class Connection:
    """One session, for one user at a time. `reused`: it lay idle before, and may have died meanwhile."""

    client: SMTP
    born: float
    reused: bool = False


class Pool:
    """At most `most` connections, each used again until it is `max_age` seconds old."""

    def __init__(self, dial: Dial, *, most: int, max_age: float, clock: Clock = time.monotonic) -> None:
        self.slots = Slots(most)
        self._dial = dial
        self._max_age = max_age
        self._clock = clock
        self._idle: list[Connection] = []

    @property
    def used(self) -> int:
        """Connections that somebody has now, those included that are being opened."""
        return self.slots.busy

    @property
    def free(self) -> int:
        """Connections that could be had without waiting: lying idle, or yet to be opened."""
        return max(0, self.slots.wanted - self.slots.busy)

    @asynccontextmanager
    async def connection(self) -> AsyncIterator[Connection]:
        """A connection; left with an error it is closed, because nobody knows how far its dialogue got.

        Raises:
            ProviderError: no session could be opened.
        """
        await self.slots.take()
        connection: Connection | None = None
        healthy = False
        try:
            connection = await self._idle_connection() or Connection(await self._dial(), self._clock())
            yield connection
            healthy = True
        except Throttled:
            self.slots.slow_down()
            raise
        finally:
            self.slots.give_back()
            if connection is not None:
                self._put_back(connection, healthy)
        self.slots.went_well()

    async def renew(self, connection: Connection) -> None:
        """Replace the session of a connection that had died while it lay idle.

        Raises:
            ProviderError: no session could be opened.
        """
        connection.client.close()
        connection.client, connection.born, connection.reused = await self._dial(), self._clock(), False

    async def close(self) -> None:
        """Hang up what is idle."""
        idle, self._idle = self._idle, []
        await asyncio.gather(*(hang_up(connection.client) for connection in idle))

    async def _idle_connection(self) -> Connection | None:
        while self._idle:
            connection = self._idle.pop()  # the youngest use: the others may age and go
            if not connection.client.is_connected:
                continue
            if self._clock() - connection.born < self._max_age:
                return connection
            await hang_up(connection.client)
        return None

    def _put_back(self, connection: Connection, healthy: bool) -> None:
        if healthy and connection.client.is_connected:
            connection.reused = True
            self._idle.append(connection)
        else:
            connection.client.close()
