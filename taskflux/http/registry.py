"""The task types that ingest knows: read from the store, and cached while it is unreachable."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Sequence
from contextvars import Context
from dataclasses import dataclass
from typing import Final

from taskflux.http.payloads import PayloadSchema
from taskflux.store.errors import StoreError, StoreUnavailable
from taskflux.store.tasks import TaskTypes
from taskflux.tasks.model import TaskType
from taskflux.telemetry import metrics
from taskflux.telemetry.instruments import Counter

log = logging.getLogger(__name__)

REFRESH_EVERY: Final = 10.0
"""Seconds between two looks at the store."""

ASK_AGAIN_AFTER: Final = 1.0
"""Seconds between two looks for unknown types; requests that come in between share the next one."""


@dataclass(frozen=True, slots=True)
class Registered:
    """A type and its compiled schema."""

    type: TaskType
    schema: PayloadSchema


class TypeRegistry:
    """Every registered type by name, at most `REFRESH_EVERY` seconds old while the store answers.

    `counters` show each type from the moment it is known.
    """

    def __init__(
        self,
        task_types: TaskTypes,
        *,
        counters: Sequence[Counter] = (metrics.SUBMITTED,),
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._source = task_types
        self._counters = counters
        self._clock = clock
        self._sleep = sleep
        self._types: dict[str, Registered] = {}
        self._ended_at = float("-inf")
        self._trouble: StoreError | None = StoreUnavailable("the task types have not been read yet")
        self._looking: asyncio.Task[None] | None = None
        self.looks = 0
        """Looks at the store that have begun. A request notes it when it comes, see `find`."""
        self._finished = self._succeeded = 0  # the numbers of the last look that has ended, and that has succeeded

    @property
    def names(self) -> list[str]:
        """The known types, sorted."""
        return sorted(self._types)

    @property
    def schemas(self) -> tuple[tuple[str, str], ...]:
        """The known types with the JSON schemas of their payloads, as text, sorted."""
        return tuple((name, registered.schema.text) for name, registered in sorted(self._types.items()))

    def known(self, name: str) -> Registered | None:
        """The type, if it is known here."""
        return self._types.get(name)

    async def find(self, name: str, since: int | None = None) -> Registered | None:
        """The type, looked for in the store when it is unknown; None only if nobody has registered it.

        A look reads all types, and all who wait share it, so that a flood of unknown types is one query a second.

        Args:
            since: `looks` when the request came; None: now. Whatever else the request asks for is then answered from
                the first look that began after it, and costs no further one.

        Raises:
            StoreError: it is unknown here, and the store cannot be asked.
        """
        known = self._types.get(name)
        if known is None:
            await self._look(self.looks if since is None else since)
            known = self._types.get(name)
        return known

    async def refresh(self) -> None:
        """Read all types again; who asks meanwhile waits for the same answer. What is known stays when it fails."""
        await self._read_together(0.0)

    async def run(self) -> None:
        """Refresh until cancelled."""
        while True:
            await self.refresh()
            await asyncio.sleep(REFRESH_EVERY)

    async def _look(self, since: int) -> None:
        """Return once a look has succeeded that began after the first `since`; raise StoreError when one fails."""
        while self._succeeded <= since:
            if self._finished <= since:
                await self._read_together(ASK_AGAIN_AFTER - (self._clock() - self._ended_at))
            if self._trouble is not None:
                # A new one each time: an error that is raised again keeps the frames of all its raisers alive.
                raise type(self._trouble)(*self._trouble.args)

    async def _read_together(self, pause: float) -> None:
        """Read all types after a pause of so many seconds, or wait for the look that somebody has begun."""
        if self._looking is None:
            self._looking = asyncio.create_task(self._read(pause), context=Context())
        await asyncio.shield(self._looking)  # which others wait for, too

    async def _read(self, pause: float) -> None:
        try:
            if pause > 0:
                await self._sleep(pause)
            self.looks += 1
            found = await self._source.all()
        except StoreError as error:
            self._trouble = error
            log.debug("the task types could not be read: %s", type(error).__name__)
        else:
            self._trouble = None
            self._succeeded = self.looks
            self._types = {name: self._renewed(task_type) for name, task_type in found.items()}
            for counter in self._counters:
                counter.zeros(self._types)
        finally:
            self._finished = self.looks
            self._ended_at = self._clock()
            self._looking = None

    def _renewed(self, task_type: TaskType) -> Registered:
        """The type as it stands now; its schema stays compiled while its text is the same."""
        known = self._types.get(task_type.name)
        if known is not None and known.type == task_type:
            return known
        if known is not None and known.schema.text == task_type.schema:
            return Registered(task_type, known.schema)
        return Registered(task_type, PayloadSchema(task_type.name, task_type.schema))
