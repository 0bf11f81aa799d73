"""A worker that drains (guarantees 2 and 3)."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from uuid import UUID

from tests.integration.system.scripted import World, narrow, narrow_held
from tests.integration.system.stack import Stack


@dataclass(frozen=True, slots=True)
class Busy:
    """What a worker of two slots holds: two run until the test lets them, two wait."""

    ending: UUID
    cut: UUID
    waiting: list[UUID]


async def test_a_draining_worker_releases_waiting_claims_and_cuts_off_attempts_after_its_drain_time(
    stack: Stack, world: World
) -> None:
    busy, busy_held = [await _busy(stack, world, task_type) for task_type in ("narrow", "narrow-held")]
    draining = asyncio.create_task(stack.stop("narrow", "narrow-held"))

    # At once, and at no cost.
    waiting = [*busy.waiting, *busy_held.waiting]
    for row in await stack.until_all(waiting, "scheduled", "queued", patience=1.0):
        assert row["attempts"] == 0
    # Within its time.
    ending = [busy.ending, busy_held.ending]
    for task in ending:
        world.gates[task].set()
    await stack.until_all(ending, "succeeded", patience=1.0)
    assert not draining.done()
    # Cut off in mid-call: its outcome is unknown.
    await draining
    for row in await stack.until_all([busy_held.cut], "uncertain", patience=1.0):
        assert (row["attempts"], row["error_class"]) == (1, "Ambiguous")
    for row in await stack.until_all([busy.cut], "scheduled", "queued", patience=1.0):
        assert (row["attempts"], row["error_class"]) == (1, "Ambiguous")
    assert await stack.sql.fetchval("SELECT count(*) FROM claims WHERE type LIKE 'narrow%'") == 0

    await asyncio.gather(stack.start(narrow), stack.start(narrow_held))
    for row in await stack.until_all([*waiting, *ending, busy.cut], "succeeded"):
        assert world.effects(row["id"]) == row["attempts"] == (2 if row["id"] == busy.cut else 1)
    assert world.effects(busy_held.cut) == 1


async def _busy(stack: Stack, world: World, task_type: str) -> Busy:
    ending, cut = [await stack.submit(task_type, ["wait", "succeed"]) for _ in range(2)]
    await world.all_entered(ending, cut)
    waiting = [await stack.submit(task_type) for _ in range(2)]
    await stack.until_all(waiting, "running")
    return Busy(ending, cut, waiting)
