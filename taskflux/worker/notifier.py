"""Delivering a notification now, once for each id that the caller gives."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Final, Generic, NamedTuple, TypeVar

from uuid_utils.compat import uuid7

from taskflux.providers.smtp_replies import merged
from taskflux.store.errors import StoreError, until_available
from taskflux.store.notifications import Begun, Notifications, NotificationState, Reused
from taskflux.tasks.errors import Ambiguous, JsonValue, Permanent, TaskError, Transient
from taskflux.telemetry import metrics
from taskflux.worker.circuits import Limiter

log = logging.getLogger(__name__)

P = TypeVar("P")

LONGEST_TURN: Final = 30.0
"""Seconds that a caller waits for the provider's rate limit before it is asked to try again later."""
NOTE_PATIENCE: Final = 5.0
"""Seconds for which storing an outcome is retried; then it is answered anyway, and a repeat finds it unknown."""
NOTE_AGAIN: Final = 0.2
NOBODY: Final = nullcontext()

Result = Mapping[str, JsonValue]


@dataclass(frozen=True, slots=True)
class Notification(Generic[P]):
    """What a caller wants delivered.

    `id` is the caller's: a repeat is suppressed, and the provider knows every attempt by it. A later `attempt` says
    that the caller knows of the one before, and wants it sent again if its outcome is unknown. `created_at` is a mail's
    Date; `progress` what earlier attempts noted. `digest` is of the payload: with another one, it is not a repeat.
    """

    payload: P
    id: str | None = None
    attempt: int = 1
    created_at: datetime | None = None
    progress: Mapping[str, Any] = field(default_factory=dict)
    digest: bytes = b""


class IdReused(Permanent):
    """The id belongs to a notification with another payload: nothing was sent."""

    @property
    def error_class(self) -> str:
        """For retries, it is the same as `Permanent`."""
        return Permanent.__name__


class Delivered(NamedTuple):
    """The provider accepted it, now or (`repeated`) in answer to an earlier request."""

    result: Result
    repeated: bool = False


@dataclass(frozen=True, slots=True)
class Order(Generic[P]):
    """One attempt, as it is sent to a channel's provider."""

    payload: P
    name: str
    attempt: int
    date: datetime
    progress: Mapping[str, Any]


class Notifier(Generic[P]):
    """One channel: its provider, its share of the rate limit, and the memory of what was sent."""

    def __init__(
        self,
        channel: str,
        send: Callable[[Order[P]], Awaitable[Result]],
        limiter: Limiter | None,
        store: Notifications,
        *,
        longest_turn: float = LONGEST_TURN,
        note_patience: float = NOTE_PATIENCE,
    ) -> None:
        self.channel = channel
        metrics.NOTIFICATIONS.zeros(channel, ("accepted", "repeated", *metrics.PROVIDER_ERRORS))
        self._send = send
        self._limiter = limiter
        self._store = store
        self._longest_turn = longest_turn
        self._note_patience = note_patience

    async def deliver(self, notification: Notification[P], waiting: AbstractContextManager[None] = NOBODY) -> Delivered:
        """Deliver now, unless it was delivered before.

        Args:
            waiting: the context in which it waits for its turn, and which may cancel that: nothing has begun by then.
                What has begun is finished, and its outcome is stored.

        Raises:
            TaskError: the provider's failure.
            StoreError: nothing was sent: its begin could not be stored.
        """
        try:
            delivered = await self._deliver(notification, waiting)
        except TaskError as error:
            metrics.NOTIFICATIONS.labels(self.channel, metrics.error_class(error.error_class)).inc()
            raise
        metrics.NOTIFICATIONS.labels(self.channel, "repeated" if delivered.repeated else "accepted").inc()
        return delivered

    async def _deliver(self, notification: Notification[P], waiting: AbstractContextManager[None]) -> Delivered:
        # Before it is begun: a caller that is cut off while it waits has begun nothing.
        with waiting:
            await self._turn()
        if notification.id is None:
            date = notification.created_at or datetime.now(UTC)
            return Delivered(await self._send(_order(notification, str(uuid7()), date, notification.progress)))
        name = f"{self.channel}:{notification.id}"
        begun = await self._store.begin(name, notification.attempt, notification.digest)
        if isinstance(begun, Reused):
            raise IdReused("this id belongs to a notification with another payload: use a new id for a new one")
        if isinstance(begun, Begun):
            return Delivered(await self._send_once(name, begun, notification, notification.id))
        if begun.outcome is None:
            said = "an earlier request with this id was begun, and its outcome is unknown"
            raise Ambiguous(said, progress=begun.progress or None)
        return Delivered(begun.outcome, repeated=True)

    async def _send_once(self, name: str, begun: Begun, notification: Notification[P], identity: str) -> Result:
        progress = merged(notification.progress, begun.progress)
        order = _order(notification, identity, notification.created_at or begun.since, progress)
        try:
            result = await self._send(order)
        except TaskError as error:
            state = NotificationState.UNKNOWN if isinstance(error, Ambiguous) else NotificationState.FAILED
            await self._note(name, begun, state, progress=error.progress)
            raise
        await self._note(name, begun, NotificationState.SENT, outcome=result)
        return result

    async def _turn(self) -> None:
        if self._limiter is None:
            return
        try:
            async with asyncio.timeout(self._longest_turn):
                await self._limiter.turn()
        except TimeoutError:
            said = "more is waiting than the provider's rate limit allows"
            raise Transient(said, retry_after=self._longest_turn) from None

    async def _note(
        self,
        name: str,
        begun: Begun,
        state: NotificationState,
        *,
        outcome: Result | None = None,
        progress: Result | None = None,
    ) -> None:
        """Store the outcome. The caller gets the true outcome even if this fails."""
        try:
            await until_available(
                lambda: self._store.end(name, begun.version, state, outcome=outcome, progress=progress),
                retry=(StoreError,),
                seconds=self._note_patience,
                pauses=(NOTE_AGAIN, NOTE_AGAIN),
            )
        except StoreError as error:
            log.error("an outcome could not be noted", extra={"error_class": type(error).__name__})


def _order(notification: Notification[P], name: str, date: datetime, progress: Mapping[str, Any]) -> Order[P]:
    return Order(notification.payload, name, notification.attempt, date, progress)
