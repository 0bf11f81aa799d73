"""A task as it is accepted: what `store` inserts and what the submitter is told."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from taskflux.tasks.bounds import USUAL_BYTES

DEFAULT_TENANT = "default"


@dataclass(frozen=True, slots=True)
class IdempotencyKey:
    """The submitter's name for a request: the same key and `digest` (SHA-256 of the canonical request) is a repeat."""

    key: str
    digest: bytes
    ttl: float = 86400.0


@dataclass(frozen=True, slots=True)
class Submission:
    """A validated request.

    `payload` and `metadata` are JSON texts; `delay` is in seconds from the store's now; `provider` has the circuit that
    governs the type, if one has.
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
        """What stands once among submissions that are accepted together: an idempotency key, else the task itself."""
        return (self.tenant, self.idempotency.key) if self.idempotency else self.id


@dataclass(frozen=True, slots=True)
class Accepted:
    """The task is durable.

    `repeated` says that the same key brought the same request before, and `id` names the task made then;
    `publish_now` that the caller promised to publish it and should do so at once.
    """

    id: UUID
    type: str
    created_at: datetime
    repeated: bool = False
    publish_now: bool = False


@dataclass(frozen=True, slots=True)
class KeyReused:
    """The idempotency key stands for another request."""

    key: str


@dataclass(frozen=True, slots=True)
class TaskType:
    """What a worker has registered about a type: the JSON schema of its payload and its policy's figures.

    `max_bytes` is how many bytes a payload may have, as it is stored; `declared_by` names the function, as
    module:name, and `replaces` says that it may take the place of another one's declaration.
    """

    name: str
    schema: str
    max_attempts: int
    ambiguous: str
    provider: str | None
    max_bytes: int = USUAL_BYTES
    declared_by: str | None = None
    replaces: bool = False
