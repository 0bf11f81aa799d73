"""The client of a request: a request ends with it, and begins nothing new once its time is up.

Nothing that was begun is cut off: what a statement writes, or a provider has been asked for, comes to an end, and its
outcome is kept. A request calls `begin` before a step that changes something, and waits for anything else inside
`until_late` or `until_gone`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, MutableMapping
from types import TracebackType
from typing import Any, Final

from starlette.requests import ClientDisconnect

from taskflux.http.problems import NOT_BEGUN, REQUEST_TIMEOUT, Kind, Problem

_NAME: Final = "taskflux.client"


class Client:
    """Whoever waits for the answer to one request."""

    __slots__ = ("_late", "_waits", "arrived", "gone")

    def __init__(self) -> None:
        self.gone = False
        """Whether it has disconnected."""
        self.arrived = False
        """Whether the whole body is here, to be taken without waiting."""
        self._late: tuple[str, Kind] | None = None
        self._waits: list[_Wait] = []

    @property
    def late(self) -> bool:
        """Whether the request's time is up."""
        return self._late is not None

    @property
    def ready(self) -> bool:
        """Whether the body can be taken now, without waiting."""
        return self.arrived and not self.gone and self._late is None

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
                if wait.problem is not None:
                    wait.end()

    def check(self) -> None:
        """Nothing new is begun for somebody who has disconnected.

        Raises:
            ClientDisconnect: it has.
        """
        if self.gone:
            raise ClientDisconnect

    def begin(self) -> None:
        """Start a new step, unless the client has disconnected or the request's time is up.

        Raises:
            ClientDisconnect: it has disconnected.
            Problem: 503, the request's time is up.
        """
        self.check()
        if self.late:
            raise self.not_begun()

    def until_gone(self) -> _Wait:
        """A context that ends with ClientDisconnect once it has disconnected."""
        return _Wait(self, None)

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


class _Wait:
    """Cancels what its task waits for, once its client sets it off; as `asyncio.Timeout`, at a tenth of the cost."""

    __slots__ = ("_cancelling", "_client", "_task", "problem")

    def __init__(self, client: Client, problem: Callable[[], Problem] | None) -> None:
        """Without a `problem`, the end of the request's time does not trigger it."""
        self._client = client
        self.problem = problem
        self._task: asyncio.Task[Any] | None = None  # until it has been cancelled from here

    def end(self) -> None:
        asyncio.get_running_loop().call_soon(self._cancel)

    def _cancel(self) -> None:
        task, self._task = self._task, None
        if task is not None:
            task.cancel()

    def __enter__(self) -> None:
        client = self._client
        if client.gone:
            raise ClientDisconnect
        if self.problem is not None and client.late:
            raise self.problem()
        task = asyncio.current_task()
        assert task is not None
        self._task = task
        self._cancelling = task.cancelling()
        client._waits.append(self)

    def __exit__(
        self, error: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._client._waits.remove(self)
        if self._task is not None:
            self._task = None
            return
        task = asyncio.current_task()
        if task and task.uncancel() <= self._cancelling and error is asyncio.CancelledError:
            self._client.check()
            assert self.problem is not None  # without one, only a disconnect triggers it
            raise self.problem() from None


def client_of(scope: MutableMapping[str, Any]) -> Client:
    """The client of the request with this scope. Our server asks for it first; under another one, it always stays."""
    client: Client | None = scope.get(_NAME)
    if client is None:
        client = scope[_NAME] = Client()
    return client
