"""Group commits: concurrent requests share one statement.

While one statement runs, further requests collect and become the next one. A single request does not wait for others;
under load, the batches grow by themselves.

Clients that wait for their answers come back together: of 32 of them, the first to come back would have a statement for
itself. So with a `window`, a statement that follows one of `CROWD` callers or more waits, for that time at most after
the end of the one before, until as many are there again.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Awaitable, Callable, Hashable, Sequence
from contextlib import suppress
from contextvars import Context
from dataclasses import dataclass
from typing import Any, Final, Generic, TypeVar

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

_RETRY: Final = (StoreBusy, StoreUnavailable, SchemaTooOld)

CROWD: Final = 8
"""Callers of a statement from which on the next one may wait for them to come back."""


@dataclass(slots=True, eq=False)
class _Group(Generic[I, O]):
    """Items whose caller waits for all of them.

    The future of a `single` item has its outcome; the others have a list with the outcome or the error of each.
    """

    items: Sequence[I]
    uniques: Sequence[Hashable]
    future: asyncio.Future[Any]
    single: bool = True

    def answer(self, outcomes: Sequence[O]) -> None:
        """Every item is written."""
        if not self.future.done():
            self.future.set_result(outcomes[0] if self.single else outcomes)

    def fail(self, error: StoreError) -> None:
        """No item is known to be written."""
        if self.future.done():
            return
        if self.single:
            self.future.set_exception(error)
        else:
            self.future.set_result([error] * len(self.items))

    def spread(self) -> list[_Group[I, O]]:
        """A group for each item, given up when this one is."""
        if self.single:
            return [self]
        create = self.future.get_loop().create_future
        parts = [_Group[I, O]((item,), (), create()) for item in self.items]
        self.future.add_done_callback(lambda future: future.cancelled() and [part.future.cancel() for part in parts])
        return parts

    def gather(self, parts: Sequence[_Group[I, O]]) -> None:
        """Answer with what has become of the parts."""
        outcomes = [part.future.cancelled() or part.future.exception() or part.future.result() for part in parts]
        if not self.future.done():
            self.future.set_result(outcomes)


class GroupCommit(Generic[I, O]):
    """Batches items for one statement.

    Args:
        run: writes a batch and returns an outcome for each item, in their order.
        max_items: the largest batch, unless one caller brings more at once.
        patience: seconds that a batch is retried while PostgreSQL is unavailable; None: until it is available.
        statement: the label under which the sizes of batches are observed; None: they are not.
        window: seconds that a statement may wait after one of `CROWD` callers or more.
    """

    def __init__(
        self,
        run: Callable[[Sequence[I]], Awaitable[Sequence[O]]],
        *,
        max_items: int = 500,
        patience: float | None = None,
        statement: str | None = None,
        window: float = 0.0,
    ) -> None:
        self._run = run
        self._max_items = max_items
        self._patience = patience
        self._sizes = None if statement is None else metrics.BATCH.labels(statement)
        self._window = window
        self._waiting: deque[_Group[I, O]] = deque()
        self._writer: asyncio.Task[None] | None = None
        self._crowd = 0  # callers that a statement waits for, until `_until`
        self._until = float("-inf")
        self._full: asyncio.Event | None = None

    def submit(self, item: I, unique: Hashable) -> asyncio.Future[O]:
        """Have `item` written, and return its outcome.

        `unique` occurs only once in a batch: of two items with the same value, the second waits for the next batch.

        Raises:
            RefusedData: this very item cannot be stored.
            StoreUnavailable: PostgreSQL was unavailable for longer than the patience; the item may have been written.
        """
        group: _Group[I, O] = _Group((item,), (unique,), asyncio.get_running_loop().create_future())
        self._add(group)
        return group.future

    def submit_all(self, items: Sequence[I], uniques: Sequence[Hashable]) -> asyncio.Future[Sequence[O | StoreError]]:
        """Have `items` written by one statement, and return the outcome or the error of each.

        No value of `uniques` occurs twice among them.
        """
        group: _Group[I, O] = _Group(items, uniques, asyncio.get_running_loop().create_future(), single=False)
        self._add(group)
        return group.future

    async def submit_each(self, items: Sequence[I], uniques: Sequence[Hashable]) -> Sequence[O | StoreError]:
        """The same for items of which two may have the same unique value: these wait for a statement of their own."""
        first = dict(zip(reversed(uniques), reversed(range(len(items))), strict=True))
        if len(first) == len(items):
            return await self.submit_all(items, uniques)
        once = sorted(first.values())
        again = sorted(set(range(len(items))) - set(once))
        written: Any
        written, *repeated = await asyncio.gather(
            self.submit_all([items[place] for place in once], [uniques[place] for place in once]),
            *[self.submit(items[place], uniques[place]) for place in again],
            return_exceptions=True,
        )
        made = dict(zip((*once, *again), (*written, *repeated), strict=True))
        return [made[place] for place in range(len(items))]

    def stop(self) -> None:
        """Cancel the statement that runs or is retried; every waiting item fails with StoreUnavailable."""
        if self._writer is not None:
            self._writer.cancel()

    def _add(self, group: _Group[I, O]) -> None:
        self._waiting.append(group)
        if self._writer is None:
            # In a context of its own: a batch is not part of the request or attempt that happened to begin it.
            self._writer = asyncio.create_task(self._write(), context=Context())
        elif self._full is not None and len(self._waiting) >= self._crowd:
            self._full.set()

    async def _write(self) -> None:
        loop = asyncio.get_running_loop()
        batch: list[_Group[I, O]] = []
        try:
            while self._waiting:
                if len(self._waiting) < self._crowd and loop.time() < self._until:
                    await self._collect()
                batch = self._take()
                if not batch:
                    continue
                await self._settle(batch)
                if self._sizes is not None:
                    self._sizes.observe(sum(len(group.items) for group in batch))
                if self._window and len(batch) >= CROWD:
                    self._crowd = min(len(batch) + len(self._waiting), self._max_items)
                    self._until = loop.time() + self._window
                batch = []
        except BaseException as error:  # cancelled: no caller may wait for ever
            for group in (*batch, *self._waiting):
                group.fail(_broken(error))
            self._waiting.clear()
            raise
        finally:
            self._writer = None

    async def _collect(self) -> None:
        """Wait for the crowd, or until the window has passed."""
        self._full = asyncio.Event()
        with suppress(TimeoutError):
            async with asyncio.timeout_at(self._until):
                await self._full.wait()
        self._full = None

    def _take(self) -> list[_Group[I, O]]:
        """The next batch: no more than `max_items`, and nothing twice."""
        repeated: list[_Group[I, O]] = []
        batch: list[_Group[I, O]] = []
        taken: set[Hashable] = set()
        left = self._max_items
        while self._waiting and left > 0:
            group = self._waiting[0]
            if len(group.items) > left and batch:
                break
            self._waiting.popleft()
            if not taken.isdisjoint(group.uniques):
                repeated.append(group)
            elif not group.future.cancelled():  # its caller still waits
                taken.update(group.uniques)
                batch.append(group)
                left -= len(group.items)
        self._waiting.extendleft(reversed(repeated))
        return batch

    async def _settle(self, batch: Sequence[_Group[I, O]]) -> None:
        tried = batch

        async def run() -> Sequence[O]:
            # A further try leaves out the items whose callers have given up.
            nonlocal tried
            tried = [group for group in batch if not group.future.cancelled()]
            return await self._run([item for group in tried for item in group.items]) if tried else ()

        try:
            outcomes = await until_available(run, retry=_RETRY, seconds=self._patience)
            if len(outcomes) != sum(len(group.items) for group in tried):
                raise ValueError(f"a batch has {len(outcomes)} outcomes")
        except Exception as error:
            known = isinstance(error, StoreError)
            if sum(len(group.items) for group in batch) > 1 and (not known or isinstance(error, RefusedData)):
                await self._halve(batch)
                return
            if not known:
                ids = [str(getattr(item, "id", "")) for group in batch for item in group.items]
                log.error("a batch failed", exc_info=error, extra={"items": len(ids), "task_ids": ids})
            for group in batch:
                group.fail(error if isinstance(error, StoreError) else _broken(error))
        else:
            at = 0
            for group in tried:
                group.answer(outcomes[at : at + len(group.items)])
                at += len(group.items)

    async def _halve(self, batch: Sequence[_Group[I, O]]) -> None:
        """Write both halves of a batch, halved again until only the bad item fails."""
        spread = [group.spread() for group in batch]
        singles = [part for parts in spread for part in parts]
        middle = len(singles) // 2
        await self._settle(singles[:middle])
        await self._settle(singles[middle:])
        for group, parts in zip(batch, spread, strict=True):
            if not group.single:
                group.gather(parts)


def _broken(error: BaseException) -> StoreUnavailable:
    return StoreUnavailable(f"the batch was aborted: {class_name(error)}")
