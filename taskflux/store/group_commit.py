"""Group commits: concurrent requests share one statement.

While one statement is under way, whatever else is asked for gathers and becomes the next. Alone, a request waits for
nobody; under load, the batches grow by themselves.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Awaitable, Callable, Hashable, Sequence
from contextvars import Context
from typing import Final, Generic, TypeVar

from taskflux.store.errors import (
    RefusedData,
    SchemaTooOld,
    StoreBusy,
    StoreError,
    StoreUnavailable,
    until_available,
)
from taskflux.telemetry import metrics

log = logging.getLogger(__name__)

I = TypeVar("I")  # noqa: E741 - the item, as O is its outcome
O = TypeVar("O")  # noqa: E741

_RETRY: Final = (StoreBusy, StoreUnavailable, SchemaTooOld)


class GroupCommit(Generic[I, O]):
    """Batches items for one statement.

    Args:
        run: writes a batch and returns an outcome for each item, in their order.
        identity: what may stand only once in a batch; the second of two alike waits for the next.
        max_items: the largest batch.
        writers: statements under way at once.
        patience: seconds that a batch is tried again while PostgreSQL is away; None: until it is back.
        statement: the name under which its batches are counted; None counts them not.
    """

    def __init__(
        self,
        run: Callable[[Sequence[I]], Awaitable[Sequence[O]]],
        *,
        identity: Callable[[I], Hashable],
        max_items: int = 500,
        writers: int = 1,
        patience: float | None = None,
        statement: str | None = None,
    ) -> None:
        self._run = run
        self._identity = identity
        self._max_items = max_items
        self._patience = patience
        self._sizes = None if statement is None else metrics.BATCH.labels(statement)
        self._idle_writers = writers
        self._waiting: deque[tuple[I, asyncio.Future[O]]] = deque()
        self._writing: set[asyncio.Task[None]] = set()

    @property
    def depth(self) -> int:
        """Items that wait for a statement to take them."""
        return len(self._waiting)

    async def submit(self, item: I) -> O:
        """Have `item` written and return its outcome.

        Raises:
            RefusedData: this very item cannot be stored.
            StoreUnavailable: PostgreSQL was away for longer than the patience; the item may still have been written.
        """
        return await self._enqueue(item)

    async def submit_all(self, items: Sequence[I]) -> Sequence[O]:
        """Have all of `items` written, in as few statements as their number allows.

        Raises:
            StoreError: one of them was not; the others may have been.
        """
        return await asyncio.gather(*[self._enqueue(item) for item in items])

    def _enqueue(self, item: I) -> asyncio.Future[O]:
        future: asyncio.Future[O] = asyncio.get_running_loop().create_future()
        self._waiting.append((item, future))
        if self._idle_writers:
            self._start_writer()
        return future

    def _start_writer(self) -> None:
        self._idle_writers -= 1
        # In a context of its own: a batch is no part of the request or attempt that happened to begin it.
        task = asyncio.create_task(self._write(), context=Context())
        self._writing.add(task)
        task.add_done_callback(self._writer_ended)

    def _writer_ended(self, task: asyncio.Task[None]) -> None:
        self._writing.discard(task)
        self._idle_writers += 1
        if not task.cancelled():
            task.exception()  # it was told
        if self._waiting and not task.cancelled():
            self._start_writer()  # what broke off this one is not the fault of those who wait

    async def _write(self) -> None:
        while self._waiting:
            batch = self._take()
            if not batch:
                return  # nobody waits for them any more
            if self._sizes is not None:
                self._sizes.observe(len(batch))
            try:
                await self._settle(batch)
            except BaseException as error:
                if isinstance(error, Exception):
                    first = [str(getattr(item, "id", "")) for item, _ in batch[:3]]
                    log.error("a batch broke off", exc_info=error, extra={"items": len(batch), "task_ids": first})
                _fail(batch, StoreUnavailable(f"the batch was cut off: {type(error).__name__}"))
                raise

    def _take(self) -> list[tuple[I, asyncio.Future[O]]]:
        batch: list[tuple[I, asyncio.Future[O]]] = []
        again: list[tuple[I, asyncio.Future[O]]] = []
        seen: set[Hashable] = set()
        while self._waiting and len(batch) < self._max_items:
            item, future = self._waiting.popleft()
            identity = self._identity(item)
            if identity in seen:
                again.append((item, future))
            elif not future.cancelled():
                seen.add(identity)
                batch.append((item, future))
        self._waiting.extendleft(reversed(again))
        return batch

    async def _settle(self, batch: list[tuple[I, asyncio.Future[O]]]) -> None:
        try:
            items = [item for item, _ in batch]
            outcomes = await until_available(lambda: self._run(items), retry=_RETRY, seconds=self._patience)
        except RefusedData as error:
            if len(batch) == 1:
                _fail(batch, error)
            else:
                # Halved until the bad row alone fails.
                middle = len(batch) // 2
                await self._settle(batch[:middle])
                await self._settle(batch[middle:])
        except StoreError as error:
            _fail(batch, error)
        else:
            for (_, future), outcome in zip(batch, outcomes, strict=True):
                if not future.done():
                    future.set_result(outcome)


def _fail(batch: list[tuple[I, asyncio.Future[O]]], error: StoreError) -> None:
    for _, future in batch:
        if not future.done():
            future.set_exception(error)
