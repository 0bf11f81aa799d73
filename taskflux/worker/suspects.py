"""Suspects: tasks of lost workers, which a worker runs group by group with nothing else in flight."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

from taskflux.store.claims import Claim
from taskflux.store.errors import Stopped, until_available
from taskflux.worker.executor import CUTS, LAST_SETTLES, PATIENCE, Executor
from taskflux.worker.process import Process

log = logging.getLogger(__name__)

GRACE: Final = CUTS * PATIENCE + LAST_SETTLES
"""Seconds for a cancelled attempt to end or be abandoned, and to be settled."""
MADE_ROOM: Final = "it made room for tasks of a lost worker, which run alone"
NO_ROOM: Final = "it belongs to tasks of a lost worker, for which this one did not become free in time"
TIME_IS_UP: Final = "it belongs to tasks of a lost worker, whose time alone is up"


@dataclass(frozen=True, slots=True, eq=False)
class Group:
    """Suspects that this worker has claimed together; `turn` is set once they may run."""

    claims: Sequence[Claim]
    turn: asyncio.Event = field(default_factory=asyncio.Event)


class Suspects:
    """The groups that one worker has claimed, first come, first served.

    A group is claimed as a whole when the record of one of its tasks arrives, so that no other worker stops its work
    for the same group, and waits here under the worker's lease. If the worker is lost meanwhile, the group is as
    suspect as before: what counts is whether it had begun.

    Seconds: `patience` is how long an attempt may take (its handler's timeout), `grace` how long to end it then.
    """

    def __init__(
        self, process: Process, executor: Executor, patience: float | None = None, grace: float = GRACE
    ) -> None:
        self._process = process
        self._executor = executor
        self._patience = executor.handler.policy.timeout if patience is None else patience
        self._grace = grace
        self._waiting: deque[Group] = deque()

    def __bool__(self) -> bool:
        """Whether a group waits for its turn."""
        return bool(self._waiting)

    def add(self, group: Group) -> None:
        """Let a group, whose claims the executor has, wait for its turn."""
        self._waiting.append(group)

    async def run_next(self) -> None:
        """Run the group that has waited longest, alone; return once other work may go on.

        Nothing is claimed meanwhile. It takes a bounded time, beside what PostgreSQL takes to write. What is in flight
        gets as long as an attempt may take, then what of it has not begun is released, and the rest is cut off by its
        own timeout; the group is treated in the same way. What is released stays as suspect as it was.
        """
        group = self._waiting.popleft()
        if not await self._idle(None, MADE_ROOM):
            self._executor.release_waiting(group.turn, NO_ROOM)
            return
        if not any(self._executor.holds(claim.id, claim.version) for claim in group.claims):
            return  # all were released meanwhile
        store = self._executor.lease.claims
        try:
            await until_available(lambda: store.begin_alone(group.claims), stop=self._process.draining)
        except Stopped:
            return  # the drain releases it
        log.warning("tasks of a lost worker run alone", extra={"tasks": len(group.claims)})
        group.turn.set()
        await self._idle(group.turn, TIME_IS_UP)

    async def _idle(self, turn: asyncio.Event | None, reason: str) -> bool:
        """Wait until nothing runs, and release for `reason` what of `turn` has not begun in time.

        False: an attempt goes on beyond its timeout, or the process drains.
        """
        if await self._process.wait(self._executor.wait_until_idle(), self._patience):
            return True
        if not self._process.draining.is_set():
            self._executor.release_waiting(turn, reason)
        return await self._process.wait(self._executor.wait_until_idle(), self._patience + self._grace)
