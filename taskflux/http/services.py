"""What the routes of listing and deciding need from the process that runs them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Protocol
from uuid import UUID

from taskflux.http.probes import Exposition, own_metrics
from taskflux.http.receipts import Msg91Webhook
from taskflux.http.registry import TypeRegistry
from taskflux.http.requests import incoming_or_fresh
from taskflux.store.dead_letters import LetterFilter, Place, Replayed
from taskflux.store.tasks import Page, Resolution, TaskFilter
from taskflux.tasks.submission import Accepted, KeyReused, Submission


class Listing(Protocol):
    """Lists tasks; `taskflux.store.tasks.Listing` is one. Raises StoreError."""

    async def page(self, tenant: str, wanted: TaskFilter, limit: int, after: UUID | None = None) -> Page:
        """Up to `limit` tasks older than `after`, newest first."""
        ...


class Decisions(Protocol):
    """Decides about single tasks; `taskflux.store.tasks.Decisions` is one. All raise StoreError."""

    async def cancel(self, task: UUID, tenant: str) -> bool:
        """Keep a waiting task from running; false when it does not wait."""
        ...

    async def resolve(self, task: UUID, tenant: str, resolution: Resolution, reason: str | None = None) -> bool:
        """End the uncertainty about a task; false when there is none."""
        ...


@dataclass(frozen=True, slots=True)
class TaskDesk:
    """Handed to `create_app` with the services."""

    listing: Listing
    decisions: Decisions


Row = Mapping[str, Any]


class Shelf(Protocol):
    """Where dead letters stand; `taskflux.store.dead_letters.DeadLetterShelf` is one. All raise StoreError."""

    async def page(
        self, tenant: str, wanted: LetterFilter, state: str | None, behind: Place | None, limit: int
    ) -> Sequence[Row]:
        """At most `limit` letters, newest first."""
        ...

    async def groups(self, tenant: str, wanted: LetterFilter, state: str | None) -> Sequence[Row]:
        """How many letters there are by type and error class."""
        ...

    async def count(self, tenant: str, wanted: LetterFilter, state: str | None) -> int:
        """How many letters there are."""
        ...

    async def get(self, tenant: str, letter: UUID) -> Row | None:
        """Everything about one."""
        ...

    async def discard(self, tenant: str, letter: UUID, reason: str) -> bool:
        """Say that an open letter needs no replay; whether it was open."""
        ...


class Replays(Protocol):
    """Sends letters again; `taskflux.store.dead_letters.DeadLetterReplays` is one. All raise StoreError."""

    async def replay(self, tenant: str, letter: UUID, payload: str | None) -> Replayed | None:
        """Send a letter's task again; None: it is not open, or its task has moved on."""
        ...

    async def replay_as(self, tenant: str, letter: UUID, mended: Submission, *, edited: bool) -> Replayed | None:
        """Make a letter without a task into a new one; None: it is not open, or it has a task."""
        ...

    async def start_bulk(self, tenant: str, replay: UUID, wanted: LetterFilter, rate: float) -> Row:
        """Ask for a bulk replay: its id, how many letters it matched, its status."""
        ...

    async def get_bulk(self, tenant: str, replay: UUID) -> Row | None:
        """A bulk replay."""
        ...

    async def outcomes(self, replay: UUID) -> Mapping[str, int]:
        """How many of its tasks are in which state."""
        ...

    async def stop_bulk(self, tenant: str, replay: UUID) -> bool:
        """Stop it; whether it was running."""
        ...


@dataclass(frozen=True, slots=True)
class DeadLetterDesk:
    """Handed to `create_app` with the services.

    Args:
        topic_prefix: what stands before the topics' names; the topic of a broken record tells its type.
    """

    shelf: Shelf
    replays: Replays
    topic_prefix: str = ""


class Intake(Protocol):
    """Makes submissions durable."""

    async def accept(self, submission: Submission) -> Accepted | KeyReused:
        """Return once the task is durable.

        Raises:
            StoreError: it is not (surely) accepted.
        """
        ...


class Reader(Protocol):
    """Reads tasks."""

    async def get(self, task: UUID, tenant: str) -> Mapping[str, Any] | None:
        """The task's row (columns of the query `get_task`), or None; raises StoreError."""
        ...


class Cache(Protocol):
    """Keeps documents of tasks that do not change any more; `taskflux.store.accelerator.Accelerator` is one."""

    async def cached(self, tenant: str, task: UUID) -> bytes | None:
        """The document, if it is kept; never raises for the cache's own trouble."""
        ...

    async def cache(self, tenant: str, task: UUID, document: bytes) -> None:
        """Keep `document` for a while; never raises for the cache's own trouble."""
        ...


class NoCache:
    """Keeps nothing."""

    async def cached(self, tenant: str, task: UUID) -> bytes | None:
        return None

    async def cache(self, tenant: str, task: UUID, document: bytes) -> None:
        pass


@dataclass(frozen=True, slots=True)
class Limits:
    """How much one request may hold, in bytes. A mail with attachments travels in its task's payload.

    `batch_hold_bytes` is how many bytes of a batch's answer wait for the end of its request: a client that reads
    nothing until it has sent everything would otherwise wait for us as we wait for it.
    """

    max_body_bytes: int = 16 * 1024 * 1024
    max_item_bytes: int = 16 * 1024 * 1024
    batch_items_in_flight: int = 1000
    batch_bytes_in_flight: int = 32 * 1024 * 1024
    batch_hold_bytes: int = 8 * 1024 * 1024


def _utc_now() -> datetime:
    return datetime.now(UTC)


@dataclass(frozen=True, slots=True)
class Services:
    """Handed to `create_app`.

    Args:
        traceparent: from the header as it came (or None) to what stands on the task; ingest gives the request's span.
        now: this process's clock; only to refuse times that make no sense.
        started: what `/readyz` says.
        dead_letters: None serves none of their routes.
        msg91_webhook: takes MSG91's delivery reports; None takes none.
        tasks: None serves no lists and no decisions.
    """

    intake: Intake
    reader: Reader
    registry: TypeRegistry
    started: Callable[[], bool]
    metrics: Exposition = own_metrics
    cache: Cache = field(default_factory=NoCache)
    limits: Limits = Limits()
    traceparent: Callable[[bytes | None], str] = incoming_or_fresh
    now: Callable[[], datetime] = _utc_now
    dead_letters: DeadLetterDesk | None = None
    msg91_webhook: Msg91Webhook | None = None
    tasks: TaskDesk | None = None
