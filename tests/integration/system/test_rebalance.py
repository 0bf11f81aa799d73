"""A group that grows and shrinks under load (guarantee 2)."""

from __future__ import annotations

from tests.integration.system.scripted import World, scripted
from tests.integration.system.stack import Stack


async def test_a_rebalance_stops_nothing_that_runs_and_repeats_nothing(stack: Stack, world: World) -> None:
    before = await stack.metric("taskflux_rebalances_total")
    running = await stack.submit_many("scripted", 100, ["wait"])
    await world.all_entered(*running)
    await stack.start(scripted, "scripted-2")
    while await stack.metric("taskflux_rebalances_total") < before + 2:  # both have been given their share
        during = await stack.submit_many("scripted", 20)
        running += during
    after = await stack.submit_many("scripted", 100)
    for row in await stack.until_all([*after, *running[100:]], "succeeded"):
        assert row["attempts"] == world.effects(row["id"]) == 1
    assert {row["state"] for row in await stack.rows(running[:100])} == {"running"}
    for task in running[:100]:
        world.gates[task].set()
    for row in await stack.until_all(running, "succeeded"):
        assert row["attempts"] == world.effects(row["id"]) == 1

    # And again when it leaves.
    leaving = await stack.submit_many("scripted", 200)
    await stack.stop("scripted-2")
    for row in await stack.until_all(leaving, "succeeded"):
        assert row["attempts"] == world.effects(row["id"]) == 1
