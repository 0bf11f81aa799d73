"""The client of a request: a request ends with it, and begins nothing new once its time is up.

Nothing that was begun is cut off: what a statement writes, or a provider has been asked for, comes to an end, and its
outcome is kept. Before a step that changes something, a request calls `begin`; what only waits, waits inside
`until_late` or `until_gone`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, MutableMapping
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Final

from starlette.requests import ClientDisconnect

from taskflux.http.problems import NOT_BEGUN, REQUEST_TIMEOUT, Kind, Problem

_NAME: Final = "taskflux.client"


@dataclass(slots=True, eq=False)
class Client:
    """Whoever waits for the answer to one request."""

    gone: bool = field(default=False, init=False)
    """Whether it has disconnected."""
    _late: tuple[str, Kind] | None = field(default=None, init=False)
    _waits: list[_Wait] = field(default_factory=list, init=False)

    @property
    def late(self) -> bool:
        """Whether the request's time is up."""
        return self._late is not None

    def leave(self) -> None:
        """It has disconnected: whatever waits for its sake ends."""
        self.gone = True
        for wait in self._waits:
            wait.end()

    def expire(self, why: str, kind: Kind = REQUEST_TIMEOUT) -> None:
        """The request's time is up: nothing more of it is read, and what waits to begin something ends.

        Args:
            why: by what rule, in a sentence.
            kind: the problem of what has not been read.
        """
        if self._late is None:
            self._late = why, kind
            for wait in self._waits:
                if not wait.only_gone:
                    wait.end()

    def check(self) -> None:
        """Nothing new is begun for somebody who has disconnected.

        Raises:
            ClientDisconnect: it has.
        """
        if self.gone:
            raise ClientDisconnect

    def begin(self) -> None:
        """Something new begins, unless the client has disconnected or the request's time is up.

        Raises:
            ClientDisconnect: it has disconnected.
            Problem: 503, the request's time is up.
        """
        self.check()
        if self.late:
            raise self.not_begun()

    def until_gone(self) -> _Wait:
        """A context that ends with ClientDisconnect once it has disconnected."""
        return _Wait(self, self.not_begun, only_gone=True)

    def until_late(self) -> _Wait:
        """The same, for what is to begin; it ends with the problem `not_begun`, too, once the request's time is up."""
        return _Wait(self, self.not_begun)

    def until_arrived(self) -> _Wait:
        """The same, for what is to be read; its problem says why the rest is not."""
        return _Wait(self, self._not_read)

    def not_begun(self) -> Problem:
        """What the client is told of what was not begun when the request's time was up."""
        return self._problem(NOT_BEGUN)

    def _not_read(self) -> Problem:
        return self._problem(self._late[1] if self._late else REQUEST_TIMEOUT)

    def _problem(self, kind: Kind) -> Problem:
        why = self._late[0] if self._late else ""
        if kind.status not in (408, 503):
            return Problem(kind, why)
        return Problem(kind, why, headers={"Retry-After": "1"}, extra={"retryAfter": 1})


@dataclass(slots=True, eq=False)
class _Wait:
    """Cancels what its task waits for, once its client sets it off; as `asyncio.Timeout`, at a tenth of the cost."""

    _client: Client
    _problem: Callable[[], Problem]
    only_gone: bool = False
    _task: asyncio.Task[Any] | None = field(default=None, init=False)
    _cancelled: bool = field(default=False, init=False)
    _cancelling: int = field(default=0, init=False)

    def end(self) -> None:
        asyncio.get_running_loop().call_soon(self._cancel)

    def _cancel(self) -> None:
        if self._task is not None and not self._cancelled:
            self._cancelled = True
            self._task.cancel()

    def __enter__(self) -> None:
        client = self._client
        if client.gone:
            raise ClientDisconnect
        if not self.only_gone and client.late:
            raise self._problem()
        self._task = task = asyncio.current_task()
        self._cancelling = task.cancelling() if task else 0
        client._waits.append(self)

    def __exit__(
        self, error: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._client._waits.remove(self)
        task, self._task = self._task, None
        if self._cancelled and task and task.uncancel() <= self._cancelling and error is asyncio.CancelledError:
            self._client.check()
            raise self._problem() from None


def client_of(scope: MutableMapping[str, Any]) -> Client:
    """The client of the request with this scope. Our server asks for it first; under another one, it always stays."""
    extensions = scope.setdefault("extensions", {})
    client: Client | None = extensions.get(_NAME)
    if client is None:
        client = extensions[_NAME] = Client()
    return client
