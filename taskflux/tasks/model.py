"""A task as its handler sees it, as it is submitted and accepted, and the reports of its delivery."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Generic, NamedTuple, TypeVar
from uuid import UUID

from taskflux.tasks.bounds import USUAL_BYTES
from taskflux.tasks.errors import JsonValue

P = TypeVar("P", covariant=True)


@dataclass(frozen=True, slots=True)
class Task(Generic[P]):
    """One attempt at a task, as its handler sees it.

    `attempt` counts from 1. `replay` is how often it was replayed from the dead-letter queue. `progress` is what
    earlier attempts noted with their error. `side_effect_id` is the same for every attempt of one replay: pass it to a
    provider that recognizes duplicates by an id.
    """

    id: UUID
    type: str
    payload: P
    attempt: int
    max_attempts: int
    replay: int
    created_at: datetime
    tenant: str = "default"
    key: str | None = None
    metadata: Mapping[str, JsonValue] = field(default_factory=dict)
    progress: Mapping[str, JsonValue] = field(default_factory=dict)

    @property
    def side_effect_id(self) -> str:
        """The task id, with the replay number behind it once there is one."""
        return f"{self.id}.{self.replay}" if self.replay else str(self.id)


@dataclass(frozen=True, slots=True)
class Receipt:
    """The side effect happened; `result` is shown on the task."""

    result: Mapping[str, JsonValue] = field(default_factory=dict)


DEFAULT_TENANT = "default"


class IdempotencyKey(NamedTuple):
    """The submitter's name for a request: the same key and `digest` (SHA-256 of the canonical request) is a repeat."""

    key: str
    digest: bytes
    ttl: float = 86400.0


class Submission(NamedTuple):
    """A validated request.

    `payload` and `metadata` are JSON texts; `delay` is in seconds from the store's now; `provider` is the one whose
    circuit governs the type, if there is one.
    """

    id: UUID
    type: str
    payload: str
    max_attempts: int
    tenant: str = DEFAULT_TENANT
    key: str | None = None
    schedule_at: datetime | None = None
    delay: float = 0.0
    expires_at: datetime | None = None
    metadata: str | None = None
    traceparent: str | None = None
    idempotency: IdempotencyKey | None = None
    provider: str | None = None

    @property
    def unique(self) -> tuple[str, str] | UUID:
        """What only one of the submissions in a batch may have: its idempotency key, or else its id."""
        return (self.tenant, self.idempotency.key) if self.idempotency else self.id


class Accepted(NamedTuple):
    """The task is durable.

    `repeated`: the same request came before with the same key, and `id` is the task created then; `publish_now`: the
    caller promised to publish it and should do so at once.
    """

    id: UUID
    type: str
    created_at: datetime
    repeated: bool = False
    publish_now: bool = False


class KeyReused(NamedTuple):
    """The idempotency key was used for another request."""

    key: str


class TaskType(NamedTuple):
    """What a worker has registered about a type: the JSON schema of its payload and its policy's figures.

    `max_bytes` is how many bytes a payload may have, as it is stored; `declared_by` names the function, as
    module:name, and `replaces` allows it to replace the declaration of another function. `off_handler` names the
    handler while that is switched off.
    """

    name: str
    schema: str
    max_attempts: int
    ambiguous: str
    provider: str | None
    max_bytes: int = USUAL_BYTES
    declared_by: str | None = None
    replaces: bool = False
    off_handler: str | None = None


class DeliveryStatus(StrEnum):
    ACCEPTED = "accepted"  # on its way: nothing final is known
    DELIVERED = "delivered"
    FAILED = "failed"
    REJECTED = "rejected"
    BLOCKED = "blocked"
    NDNC = "ndnc"  # the number is on a do-not-call register

    @property
    def rank(self) -> int:
        """Of two reports, the one with the higher rank is kept; `delivery_rank` in the store is the same rule."""
        return {DeliveryStatus.ACCEPTED: 0, DeliveryStatus.DELIVERED: 2}.get(self, 1)


class DeliveryReport(NamedTuple):
    """One report of a provider about the side effect of (task, replay): a message that it had accepted.

    `code` and `description` are the provider's, `reported_at` is its own time, as it wrote it. It holds no phone number
    and no name.
    """

    task: UUID
    replay: int
    status: DeliveryStatus
    code: str = ""
    description: str = ""
    request_id: str = ""
    reported_at: str = ""

    @property
    def weight(self) -> tuple[int, str]:
        """Of several reports, the one with the highest weight is kept, in whatever order they arrive."""
        return self.status.rank, self.reported_at
