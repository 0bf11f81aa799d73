"""The client of a request: a request ends with it, and begins nothing new once its time is up.

Nothing that was begun is cut off: what a statement writes, or a provider has been asked for, comes to an end, and its
outcome is kept. Between two steps a request asks `check`; what only waits, waits inside `until_late` or `until_gone`.
"""

from __future__ import annotations

import asyncio
from collections.abc import MutableMapping
from types import TracebackType
from typing import Any, Final

from starlette.requests import ClientDisconnect

from taskflux.http.problems import NOT_BEGUN, Kind, Problem

_NAME: Final = "taskflux.client"


class Client:
    """Whoever waits for the answer to one request."""

    __slots__ = ("_late", "_waits", "gone")

    def __init__(self) -> None:
        self.gone = False
        """Whether it has disconnected."""
        self._late: str | None = None
        self._waits: list[_Wait] = []

    @property
    def late(self) -> bool:
        """Whether the request's time is up."""
        return self._late is not None

    def leave(self) -> None:
        """It has disconnected: whatever waits for its sake ends."""
        self.gone = True
        for wait in self._waits:
            wait.end()

    def expire(self, why: str) -> None:
        """The request's time is up, `why` says by what rule: what waits for something new to begin ends."""
        if self._late is None:
            self._late = why
            for wait in self._waits:
                if wait.kind is not None:
                    wait.end()

    def check(self) -> None:
        """Nothing new is begun for somebody who has disconnected.

        Raises:
            ClientDisconnect: it has.
        """
        if self.gone:
            raise ClientDisconnect

    def until_gone(self) -> _Wait:
        """A context that ends with ClientDisconnect once it has disconnected."""
        return _Wait(self, None)

    def until_late(self, kind: Kind = NOT_BEGUN) -> _Wait:
        """The same; it ends with a problem of this kind, too, once the request's time is up."""
        return _Wait(self, kind)

    def problem(self, kind: Kind) -> Problem:
        """What a client whose time is up is told."""
        return Problem(kind, self._late or "", headers={"Retry-After": "1"}, extra={"retryAfter": 1})


class _Wait:
    """An `asyncio.Timeout` that its client sets off."""

    __slots__ = ("_client", "_timeout", "kind")

    def __init__(self, client: Client, kind: Kind | None) -> None:
        self._client = client
        self._timeout = asyncio.timeout(None)
        self.kind = kind

    def end(self) -> None:
        if not self._timeout.expired():
            self._timeout.reschedule(asyncio.get_running_loop().time())

    async def __aenter__(self) -> None:
        client = self._client
        client.check()
        if self.kind is not None and client.late:
            raise client.problem(self.kind)
        await self._timeout.__aenter__()
        client._waits.append(self)

    async def __aexit__(
        self, error: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._client._waits.remove(self)
        try:
            await self._timeout.__aexit__(error, value, trace)
        except TimeoutError:
            self._client.check()
            assert self.kind is not None
            raise self._client.problem(self.kind) from None


def introduce(client: Client, scope: MutableMapping[str, Any]) -> None:
    """Say that `client` has asked the request with this scope."""
    scope.setdefault("extensions", {})[_NAME] = client


def client_of(scope: MutableMapping[str, Any]) -> Client:
    """The client of the request with this scope; where the server has introduced none, one that stays."""
    if _NAME not in scope.get("extensions", ()):
        introduce(Client(), scope)
    client: Client = scope["extensions"][_NAME]
    return client
