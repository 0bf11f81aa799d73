"""What the routes of listing and deciding need from the process that runs them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol
from uuid import UUID

from taskflux.store.decisions import Resolution
from taskflux.store.listing import Page, TaskFilter


class Listing(Protocol):
    """Lists tasks; `taskflux.store.listing.Listing` is one. Raises StoreError."""

    async def page(self, tenant: str, wanted: TaskFilter, limit: int, after: UUID | None = None) -> Page:
        """Up to `limit` tasks older than `after`, newest first."""
        ...


class Decisions(Protocol):
    """Decides about single tasks; `taskflux.store.decisions.Decisions` is one. All raise StoreError."""

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
