"""A step of PostgreSQL's clock while tasks run (guarantees 1 to 3)."""

from __future__ import annotations

import pytest

from tests.integration.store.clock import step
from tests.integration.system.fragile import Fragile
from tests.integration.system.scripted import World
from tests.integration.system.stack import LEASE, Stack, eventually


@pytest.mark.slow
async def test_a_step_of_postgresql_s_clock_repeats_no_running_task_and_holds_up_no_new_one(
    fragile: Fragile, world: World
) -> None:
    stack = fragile.stack
    running = await stack.submit_many("scripted", 10, ["wait"])
    await world.all_entered(*running)
    for seconds in (40, -40, 40, -40, 3600, -3600):
        async with stack.sql.acquire() as connection:
            await step(connection, seconds)
        await a_lease_passes(stack)
        assert [row["state"] for row in await stack.rows(running)] == ["running"] * 10, seconds
        late = await stack.submit("scripted", ["transient", "succeed"])  # its retry goes by way of the relay
        await stack.until(late, "succeeded")
    for task in running:
        world.gates[task].set()
    for row in await stack.until_all(running, "succeeded"):
        assert row["attempts"] == world.effects(row["id"]) == 1
        assert "lease-ran-out" not in str(row["timeline"])


async def a_lease_passes(stack: Stack) -> None:
    """Return once the workers have beaten for longer than a lease: the leader has looked at each of these beats."""
    statement = "SELECT max(beat) FROM workers WHERE NOT ended"
    before = await stack.sql.fetchval(statement)
    beats = LEASE / stack.settings.worker.beat_seconds + 2

    async def passed() -> bool:
        return bool(await stack.sql.fetchval(statement) >= before + beats)

    await eventually(passed, "a lease passes")
