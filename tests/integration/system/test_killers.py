"""A task that ends every worker that runs it, among tasks that do not."""

from __future__ import annotations

import pytest

from tests.integration.system.killers import INNOCENTS, Outcome
from tests.integration.system.stack import Stack

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]


@pytest.mark.parametrize("workers", [1, 3])
async def test_a_task_that_kills_its_workers_dies_alone_and_its_neighbours_are_not_charged(
    killers: dict[int, Outcome], workers: int
) -> None:
    outcome = killers[workers]
    print(f"{workers} workers: {outcome.kills} kills in {outcome.seconds:.0f} s")
    killer = outcome.killer
    assert (killer["state"], killer["error_class"], killer["attempts"]) == ("dead", "WorkerLost", 0)
    assert {(row["state"], row["attempts"]) for row in outcome.innocents} == {("succeeded", 1)}
    assert len(outcome.innocents) == INNOCENTS
    # The first loss, the halves of what one worker held, and the killer three times alone.
    assert outcome.kills == killer["losses"] <= 1 + 5 + 3
    assert all(row["losses"] < outcome.kills for row in outcome.innocents)


async def test_what_a_killed_worker_leaves_behind_is_no_suspect_for_ever(
    stack: Stack, killers: dict[int, Outcome]
) -> None:
    tasks = [row["id"] for outcome in killers.values() for row in (outcome.killer, *outcome.innocents)]
    assert await stack.sql.fetch("SELECT task_id FROM suspects WHERE task_id = ANY($1)", tasks) == []
