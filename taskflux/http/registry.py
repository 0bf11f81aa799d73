"""The task types that ingest knows: read from the store, kept while it is away."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Final, Protocol

from taskflux.http.schema import PayloadSchema
from taskflux.store.errors import StoreError, StoreUnavailable
from taskflux.tasks.submission import TaskType

log = logging.getLogger(__name__)

REFRESH_EVERY: Final = 10.0
"""Seconds between two looks at the store."""

ASK_AGAIN_AFTER: Final = 1.0
"""Seconds between two looks for unknown types; who asks in between waits for the next one."""


class TaskTypeSource(Protocol):
    """Where types are registered; `taskflux.store.task_types.TaskTypes` is one."""

    async def all(self) -> Mapping[str, TaskType]:
        """Every registered type by name; raises StoreError."""
        ...


@dataclass(frozen=True, slots=True)
class Registered:
    """A type and its compiled schema."""

    type: TaskType
    schema: PayloadSchema


class TypeRegistry:
    """Every registered type by name, at most `REFRESH_EVERY` seconds old while the store answers."""

    def __init__(
        self,
        task_types: TaskTypeSource,
        *,
        on_types: Callable[[Collection[str]], None] = lambda names: None,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._source = task_types
        self._on_types = on_types
        self._clock = clock
        self._sleep = sleep
        self._types: dict[str, Registered] = {}
        self._asked = float("-inf")
        self._trouble: StoreError | None = StoreUnavailable("the task types have not been read yet")
        self._refreshing: asyncio.Task[None] | None = None

    @property
    def names(self) -> list[str]:
        """The known types, sorted."""
        return sorted(self._types)

    def get(self, name: str) -> Registered | None:
        """The type, if it is known now."""
        return self._types.get(name)

    async def find(self, name: str) -> Registered | None:
        """The type, looked for in the store when it is unknown; None only if nobody has registered it.

        Raises:
            StoreError: it is unknown here, and the store cannot be asked.
        """
        known = self._types.get(name)
        if known is not None:
            return known
        await self._look_again()
        known = self._types.get(name)
        if known is None and self._trouble is not None:
            # A new one each time: an error that is raised again keeps the frames of all its raisers alive.
            raise type(self._trouble)(*self._trouble.args)
        return known

    async def _look_again(self) -> None:
        """Return after a look that a type registered by now has not escaped; at most one begins each second."""
        asked = self._asked
        wait = ASK_AGAIN_AFTER - (self._clock() - asked)
        if self._refreshing is None and wait > 0:
            await self._sleep(wait)
        if self._asked == asked or self._refreshing is not None:
            await self.refresh()

    async def refresh(self) -> None:
        """Read all types again; who asks meanwhile waits for the same answer. What is known stays when it fails."""
        if self._refreshing is None:
            self._refreshing = asyncio.create_task(self._refresh())
        await asyncio.shield(self._refreshing)

    async def run(self) -> None:
        """Refresh until cancelled."""
        while True:
            await self.refresh()
            await asyncio.sleep(REFRESH_EVERY)

    async def _refresh(self) -> None:
        try:
            found = await self._source.all()
        except StoreError as error:
            self._trouble = error
            log.debug("the task types could not be read: %s", type(error).__name__)
        else:
            self._trouble = None
            self._types = {name: self._renewed(task_type) for name, task_type in found.items()}
            self._on_types(self._types.keys())
        finally:
            self._asked = self._clock()
            self._refreshing = None

    def _renewed(self, task_type: TaskType) -> Registered:
        """The type as it stands now; its schema stays compiled while its text is the same."""
        known = self._types.get(task_type.name)
        if known is not None and known.type == task_type:
            return known
        if known is not None and known.schema.text == task_type.schema:
            return Registered(task_type, known.schema)
        return Registered(task_type, PayloadSchema(task_type.name, task_type.schema))
