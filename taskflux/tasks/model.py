"""What a handler is given, and what it gives back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Generic, TypeVar
from uuid import UUID

from taskflux.tasks.errors import JsonValue

P = TypeVar("P")


@dataclass(frozen=True, slots=True)
class Task(Generic[P]):
    """One attempt at a task, as its handler sees it.

    `attempt` counts from 1. `replay` is how often a person has sent it again from the dead letters. `progress` is
    what earlier attempts noted with their error. `side_effect_id` is the same for every attempt of one replay: give
    it to a provider that knows duplicates by an id.
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
    """The side effect happened; `result` is what the submitter may read on the task."""

    result: Mapping[str, JsonValue] = field(default_factory=dict)
