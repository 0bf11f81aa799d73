"""What workers have registered about their types."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from taskflux.store.database import Database
from taskflux.tasks.submission import TaskType


@dataclass(frozen=True, slots=True)
class TaskTypes:
    """A type is unknown only if nobody has registered it."""

    database: Database

    async def register(self, task_type: TaskType) -> None:
        """Write a type's schema and policy; nothing happens when they stand there already."""
        await self.database.execute(
            "register_type",
            task_type.name,
            task_type.schema,
            task_type.max_attempts,
            task_type.ambiguous,
            task_type.provider,
        )

    async def all(self) -> Mapping[str, TaskType]:
        """Every registered type by name."""
        return {
            row["type"]: TaskType(row["type"], row["schema"], row["max_attempts"], row["ambiguous"], row["provider"])
            for row in await self.database.fetch("list_types")
        }

    async def names(self) -> Sequence[str]:
        """The names alone of every registered type."""
        return [row["type"] for row in await self.database.fetch("type_names")]
