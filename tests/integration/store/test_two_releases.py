"""Statements of the release before on tasks that this release has claimed, and the other way round: rows of the table
"Two releases at once" in docs/protocol.md. `test_two_outboxes.py` has the others."""

from __future__ import annotations

import asyncio
import subprocess
from dataclasses import dataclass
from typing import Any
from uuid import UUID

import pytest

from taskflux.store.database import parse
from tests.integration.store.before import (
    OLD,
    Before,
    Prepare,
    batch,
    claim_directly,
    late,
    outcome,
    pending,
    published,
    queued,
    runs_once,
    settle,
)
from tests.integration.store.scene import TYPE, Scene
from tests.upgrade.releases import BEFORE, ROOT


@dataclass(frozen=True, slots=True)
class Step:
    """A statement of the release before, and a task that it would move if that was not claimed."""

    name: str
    prepare: Prepare
    version: int = 1
    skips: bool = False
    """It skips locked rows: nothing waits."""


STEPS = (
    Step("claim", pending),
    Step("claim", published),
    Step("claim", queued),
    Step("claim", late, 3),
    Step("confirm", pending),
    Step("take_due", pending, skips=True),
    Step("expire_waiting", pending, skips=True),
    Step("cancel", pending),
    Step("cancel", published),
    Step("cancel", queued),
    Step("requeue", queued),
    Step("settle", late, 3),
)
every_step = pytest.mark.parametrize("step", STEPS, ids=lambda step: f"{step.name}-{step.prepare.__name__}")


async def arguments_of(step: Step, scene: Scene, task: UUID) -> dict[str, Any]:
    if step.name == "settle":
        return outcome(task, 2)
    return batch(task, step.version) | {"worker": (await scene.worker()).worker.id}


@every_step
async def test_a_statement_of_the_release_before_does_nothing_to_a_task_that_we_have_claimed(
    step: Step, scene: Scene, before: Before
) -> None:
    task = await step.prepare(scene, before)
    arguments, worker = await arguments_of(step, scene, task), await scene.worker()
    (claim,) = await worker.claim(TYPE, {task: step.version})
    rows = await before.run(step.name, arguments)
    assert [row for row in rows if row[0] is not None] == []
    await runs_once(scene, worker, task, claim.version, claim.attempt)


@every_step
async def test_a_statement_of_the_release_before_that_waits_for_our_claim_does_nothing(
    step: Step, scene: Scene, before: Before
) -> None:
    task = await step.prepare(scene, before)
    arguments, worker = await arguments_of(step, scene, task), await scene.worker()
    async with scene.direct.transaction():
        (claim,) = await claim_directly(scene, worker, task, step.version)
        waiting = asyncio.ensure_future(before.run(step.name, arguments))
        if step.skips:
            await waiting
        else:
            await scene.until_blocked()
    rows = await waiting
    assert [row for row in rows if row[0] is not None] == []
    await runs_once(scene, worker, task, claim["version"], claim["attempt"])


@every_step
async def test_our_claim_that_waits_for_a_statement_of_the_release_before_sees_what_it_did(
    step: Step, scene: Scene, before: Before
) -> None:
    task = await step.prepare(scene, before)
    arguments, worker = await arguments_of(step, scene, task), await scene.worker()
    async with scene.direct.transaction():
        await before.run(step.name, arguments, directly=True)
        waiting = asyncio.ensure_future(worker.claim(TYPE, {task: step.version}))
        await scene.until_blocked()
    held = await waiting
    if step.name == "confirm":  # which keeps the version
        (claim,) = held
        row = await scene.row(task)
        assert (row["state"], row["version"]) == ("running", 2)
        assert await settle(worker, claim)
        assert await scene.state(task) == ("succeeded", 2)
        return
    assert list(held) == []
    states = {
        "claim": "running",
        "take_due": "scheduled",
        "expire_waiting": "dead",
        "cancel": "cancelled",
        "requeue": "scheduled",
        "settle": "succeeded",
    }
    row = await scene.wide(task)
    assert (row["state"], row["version"]) == (states[step.name], step.version + 1)
    assert await scene.claims() == ({(task, step.version + 1)} if step.name == "claim" else set())
    if step.name in ("claim", "settle"):  # they leave an outbox row that was pending, until a relay takes it
        await scene.make_due(task)
        assert list(await scene.publishing.take(TYPE, 10)) == []
    assert (await scene.due(task) is not None) == (row["state"] == "scheduled")


async def test_two_batches_of_both_releases_claim_each_task_once(scene: Scene, before: Before) -> None:
    tasks = sorted(await scene.accepted(40))
    await scene.confirm(tasks[::2])
    for task in tasks[1::2]:
        await before.confirm(task, 1)
    ours, theirs = await scene.worker(), await scene.worker()
    many = batch(tasks[0], 1) | {
        "ids": tasks,
        "versions": [1] * len(tasks),
        "least": tasks[0],
        "greatest": tasks[-1],
        "worker": theirs.worker.id,
    }
    held, rows = await asyncio.gather(ours.claim(TYPE, dict.fromkeys(tasks, 1)), before.run("claim", many))
    claimed = [claim.id for claim in held] + [row["id"] for row in rows if row["id"] is not None]
    assert sorted(claimed) == tasks
    assert await scene.claims() == {(task, 2) for task in tasks}


# Leases ---------------------------------------------------------------------------------------------------------------


async def test_a_sweep_of_the_release_before_frees_the_claims_of_a_worker_of_ours(scene: Scene, before: Before) -> None:
    worker = await scene.worker()
    (claim,) = await scene.running(worker)
    await before.run("end_silent", {"ids": [worker.worker.id], "beats": [0], "overdue": []})
    await before.sweep()
    assert await scene.state(claim.id) == ("scheduled", 3)
    row = await scene.wide(claim.id)
    assert (row["attempts"], row["losses"]) == (0, 1)
    assert await scene.claims() == set()
    assert (await scene.due(claim.id) or {})["version"] == 3


async def test_a_worker_of_ours_that_the_release_before_has_swept_may_still_report(
    scene: Scene, before: Before
) -> None:
    worker = await scene.worker()
    (claim,) = await scene.running(worker)
    await scene.lose(worker)
    await before.sweep()
    assert await settle(worker, claim)
    assert await scene.state(claim.id) == ("succeeded", 4)
    assert await scene.due(claim.id) is None


async def test_a_lease_that_the_release_before_ends_while_our_claim_runs_loses_no_task(
    scene: Scene, before: Before
) -> None:
    """An overdue one: its claim has run for two leases, and nothing waits for it."""
    (task,) = await scene.accepted()
    await scene.confirm([task])
    await before.lead()
    worker = await scene.worker()
    async with scene.direct.transaction():
        await scene.direct.execute("SELECT FROM tasks WHERE id = $1 FOR UPDATE", task)
        claiming = asyncio.ensure_future(worker.claim(TYPE, {task: 1}))
        await scene.until_blocked()
        ended = asyncio.ensure_future(
            before.run("end_silent", {"ids": [worker.worker.id], "beats": [0], "overdue": [worker.worker.id]})
        )
        await asyncio.wait([ended], timeout=1.0)
    await asyncio.gather(claiming, ended)
    await before.sweep()
    state, version = await scene.state(task)
    outbox = await scene.due(task)
    assert state == "scheduled"
    assert outbox is not None, "the release before has deleted the claim, and the task is in no narrow table"
    assert outbox["version"] == version


async def test_a_claim_of_the_release_before_is_swept_by_us(scene: Scene, before: Before) -> None:
    worker = await scene.worker()
    task = await published(scene, before)
    assert await before.claim(worker, task, 1)
    await scene.lose(worker)
    await scene.upkeep.sweep(100, 1e6)
    assert await scene.state(task) == ("scheduled", 3)
    assert await scene.claims() == set()


async def test_a_settlement_of_the_release_before_ends_its_own_claim_alone(scene: Scene, before: Before) -> None:
    """Its statement names no worker, only the version of the claim."""
    task = await late(scene, before)
    worker = await scene.worker()
    (claim,) = await worker.claim(TYPE, {task: 3})
    for version in (2, 3):
        await before.run("settle", outcome(task, version))
    await runs_once(scene, worker, task, claim.version, claim.attempt)


def test_the_statements_of_the_release_before_are_those_of_its_commit() -> None:
    for file in ("claims", "publishing", "tasks", "upkeep"):
        show = ["git", "-C", str(ROOT), "show", f"{BEFORE}:taskflux/store/{file}.sql"]
        shown = subprocess.run(show, capture_output=True, text=True, check=False)
        if shown.returncode != 0:
            pytest.skip(f"commit {BEFORE[:7]}, the release before, is not in this clone's history")
        for name, statement in parse(shown.stdout).items():
            if name in OLD:
                assert OLD[name].text.strip() == _without_its_comment(statement.text), name


def _without_its_comment(text: str) -> str:
    lines = text.strip().splitlines()
    while lines[0].startswith("--"):
        del lines[0]
    return "\n".join(lines)
