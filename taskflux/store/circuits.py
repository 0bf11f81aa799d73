"""One row per provider: whether work for it is published at all."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from taskflux.store.database import Database, storable
from taskflux.tasks.circuit import FIRST_PROBE, LAST_PROBE


@dataclass(frozen=True, slots=True)
class Circuit:
    """A provider's circuit; `closed_for` is seconds since it last closed, None if it never opened."""

    provider: str
    open: bool
    reason: str | None
    closed_for: float | None


@dataclass(frozen=True, slots=True)
class Circuits:
    """The circuits of all providers."""

    database: Database

    async def all(self) -> Mapping[str, Circuit]:
        """Every circuit that ever opened, by provider."""
        rows = await self.database.fetch("list_circuits")
        return {
            row["provider"]: Circuit(row["provider"], row["open"], row["reason"], row["closed_for"]) for row in rows
        }

    async def open(self, provider: str, error_class: str, reason: str) -> bool:
        """Stop publishing for `provider`; whether it was us who opened it."""
        row = await self.database.fetchrow("open_circuit", provider, error_class, storable(reason), FIRST_PROBE)
        return row is not None

    async def close(self, provider: str) -> bool:
        """The provider serves again; whether it was us who closed it."""
        return await self.database.fetchrow("close_circuit", provider) is not None

    async def take_probe(self, provider: str) -> bool:
        """The right to send the one probe whose time has come."""
        return await self.database.fetchrow("take_probe", provider, FIRST_PROBE, LAST_PROBE) is not None
