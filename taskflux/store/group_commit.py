"""Group commits: concurrent requests share one statement.

While one statement runs, further requests collect and become the next one. A single request does not wait for others;
under load, the batches grow by themselves.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Awaitable, Callable, Hashable, Sequence
from contextvars import Context
from typing import Final, Generic, TypeAlias, TypeVar

from taskflux.store.errors import (
    RefusedData,
    SchemaTooOld,
    StoreBusy,
    StoreError,
    StoreUnavailable,
    until_available,
)
from taskflux.tasks.errors import class_name
from taskflux.telemetry import metrics

log = logging.getLogger(__name__)

I = TypeVar("I")  # noqa: E741 - the item; O is its outcome
O = TypeVar("O")  # noqa: E741

Batch: TypeAlias = list[tuple[I, asyncio.Future[O]]]

_RETRY: Final = (StoreBusy, StoreUnavailable, SchemaTooOld)


class GroupCommit(Generic[I, O]):
    """Batches items for one statement.

    Args:
        run: writes a batch and returns an outcome for each item, in their order.
        max_items: the largest batch.
        patience: seconds that a batch is retried while PostgreSQL is unavailable; None: until it is available.
        statement: the label under which the sizes of batches are observed; None: they are not.
    """

    def __init__(
        self,
        run: Callable[[Sequence[I]], Awaitable[Sequence[O]]],
        *,
        max_items: int = 500,
        patience: float | None = None,
        statement: str | None = None,
    ) -> None:
        self._run = run
        self._max_items = max_items
        self._patience = patience
        self._sizes = None if statement is None else metrics.BATCH.labels(statement)
        self._waiting: deque[tuple[I, Hashable, asyncio.Future[O]]] = deque()
        self._writer: asyncio.Task[None] | None = None

    def submit(self, item: I, unique: Hashable) -> asyncio.Future[O]:
        """Have `item` written, and return its outcome.

        `unique` occurs only once in a batch: of two items with the same value, the second waits for the next batch.

        Raises:
            RefusedData: this very item cannot be stored.
            StoreUnavailable: PostgreSQL was unavailable for longer than the patience; the item may have been written.
        """
        future: asyncio.Future[O] = asyncio.get_running_loop().create_future()
        self._waiting.append((item, unique, future))
        if self._writer is None:
            # In a context of its own: a batch is not part of the request or attempt that happened to begin it.
            self._writer = asyncio.create_task(self._write(), context=Context())
        return future

    def stop(self) -> None:
        """Cancel the statement that runs or is retried; every waiting item fails with StoreUnavailable."""
        if self._writer is not None:
            self._writer.cancel()

    async def _write(self) -> None:
        try:
            while self._waiting:
                repeated: list[tuple[I, Hashable, asyncio.Future[O]]] = []
                taken: dict[Hashable, tuple[I, asyncio.Future[O]]] = {}
                while self._waiting and len(taken) < self._max_items:
                    item, unique, future = self._waiting.popleft()
                    if unique in taken:
                        repeated.append((item, unique, future))
                    elif not future.cancelled():  # its caller still waits
                        taken[unique] = item, future
                self._waiting.extendleft(reversed(repeated))
                batch = list(taken.values())
                try:
                    if batch:
                        await self._settle(batch)
                        if self._sizes is not None:
                            self._sizes.observe(len(batch))
                except BaseException as error:  # cancelled: no caller may wait for ever
                    _fail([*batch, *((item, future) for item, _, future in self._waiting)], _broken(error))
                    self._waiting.clear()
                    raise
        finally:
            self._writer = None

    async def _settle(self, batch: Batch[I, O]) -> None:
        tried = list(batch)

        async def run() -> Sequence[O]:
            # A further try leaves out the items whose callers have given up.
            tried[:] = [each for each in batch if not each[1].cancelled()]
            return await self._run([item for item, _ in tried]) if tried else ()

        try:
            outcomes = await until_available(run, retry=_RETRY, seconds=self._patience)
            answers = list(zip(tried, outcomes, strict=True))
        except Exception as error:
            known = isinstance(error, StoreError)
            if len(batch) > 1 and (not known or isinstance(error, RefusedData)):
                # Halved until only the bad item fails.
                middle = len(batch) // 2
                await self._settle(batch[:middle])
                await self._settle(batch[middle:])
                return
            if not known:
                ids = [str(getattr(item, "id", "")) for item, _ in batch]
                log.error("a batch failed", exc_info=error, extra={"items": len(batch), "task_ids": ids})
            _fail(batch, error if isinstance(error, StoreError) else _broken(error))
        else:
            for (_, future), outcome in answers:
                if not future.done():
                    future.set_result(outcome)


def _broken(error: BaseException) -> StoreUnavailable:
    return StoreUnavailable(f"the batch was aborted: {class_name(error)}")


def _fail(batch: Batch[I, O], error: StoreError) -> None:
    for _, future in batch:
        if not future.done():
            future.set_exception(error)
