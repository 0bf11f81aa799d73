"""The connections of a server: each request's client leaves with its connection, and has only so much time."""

from __future__ import annotations

import asyncio
from collections import deque
from dataclasses import dataclass
from typing import Any, Final

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from taskflux.http.client import Client, introduce

LOOK_EVERY: Final = 1.0
"""Most seconds between two looks at all connections."""


@dataclass(frozen=True, slots=True)
class Patience:
    """How long a server waits for its clients, in seconds.

    `request`: from a request's head until nothing new is begun for it.
    """

    request: float = 60.0


class Connections:
    """All connections of one server, and the times that they have to keep."""

    def __init__(self, patience: Patience) -> None:
        self.patience = patience
        self._all: set[Connection] = set()
        self._last_call = float("inf")

    def protocol(self) -> type[HttpToolsProtocol]:
        """The protocol of these connections, for uvicorn's `http`."""

        class Ours(Connection):
            owner = self

        return Ours

    def add(self, connection: Connection) -> None:
        self._all.add(connection)

    def remove(self, connection: Connection) -> None:
        self._all.discard(connection)

    def last_call(self, seconds: float) -> None:
        """Every request has so many seconds left at most, also those that come from now on."""
        self._last_call = asyncio.get_running_loop().time() + seconds

    async def watch(self) -> None:
        """Look after all connections until cancelled."""
        every = min(LOOK_EVERY, self.patience.request / 4)
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(every)
            now = loop.time()
            for connection in list(self._all):
                connection.look(now, self._last_call)


@dataclass(slots=True)
class _Asked:
    """A request that is not answered; `since` is when its turn came."""

    client: Client
    since: float


class Connection(HttpToolsProtocol):
    """One connection. Requests that a client sends without waiting for answers are answered one after the other."""

    owner: Connections

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin; called by the event loop, as the other methods are by it or by uvicorn."""
        super().connection_made(transport)
        self._asked: deque[_Asked] = deque()
        self.owner.add(self)

    def connection_lost(self, exc: Exception | None) -> None:
        """The client has disconnected, or was."""
        self.owner.remove(self)
        super().connection_lost(exc)
        for asked in self._asked:
            asked.client.leave()
        self._asked.clear()

    def on_headers_complete(self) -> None:
        """A request begins."""
        client = Client()
        scope: dict[str, Any] = self.scope  # type: ignore[assignment]
        introduce(client, scope)
        self._asked.append(_Asked(client, self.loop.time()))
        super().on_headers_complete()

    def on_response_complete(self) -> None:
        """A request is answered; the next one's turn has come."""
        if self._asked:
            self._asked.popleft()
        if self._asked:
            self._asked[0].since = self.loop.time()
        super().on_response_complete()

    def look(self, now: float, last_call: float) -> None:
        """Tell the client whose time is up."""
        if not self._asked:
            return
        asked, longest = self._asked[0], self.owner.patience.request
        if now >= asked.since + longest:
            asked.client.expire(f"the request took longer than {longest:g} s")
        elif now >= last_call:
            asked.client.expire("this process ends, and another one takes its place")
