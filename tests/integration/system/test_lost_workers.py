"""A worker that dies or halts in mid-task (guarantees 1 and 3)."""

from __future__ import annotations

import json
import signal

from tests.integration.system.catastrophe import Catastrophe
from tests.integration.system.stack import Stack, eventually


async def test_a_task_whose_worker_was_killed_is_run_again_by_another_and_the_repeat_is_counted(
    stack: Stack, catastrophe: Catastrophe
) -> None:
    task = catastrophe.repeated
    document = await stack.until(task, "succeeded")
    assert (document["attempts"], document["losses"]) == (1, 1)
    assert [entry["event"] for entry in document["timeline"]].count("lease-ran-out") == 1
    (first, killed), (second, other) = catastrophe.traces.attempts(task)
    assert (first, second) == (1, 1)
    assert killed != other
    assert await stack.metric("taskflux_repeats_total", type="frail") == 2  # it, and the one with one attempt


async def test_a_task_of_one_attempt_whose_worker_was_killed_is_run_all_the_same(
    stack: Stack, catastrophe: Catastrophe
) -> None:
    document = await stack.until(catastrophe.once, "succeeded")
    assert (document["attempts"], document["maxAttempts"], document["losses"]) == (1, 1, 1)
    assert len(catastrophe.traces.attempts(catastrophe.once)) == 2


async def test_a_held_task_whose_worker_was_killed_is_uncertain_and_not_run_again(
    stack: Stack, catastrophe: Catastrophe
) -> None:
    document = await stack.until(catastrophe.held, "uncertain")
    assert document["error"]["class"] == "Ambiguous"
    assert len(catastrophe.traces.attempts(catastrophe.held)) == 1
    assert await stack.metric("taskflux_repeats_total", type="frail-held") == 0
    assert await stack.metric("taskflux_leases_swept_total", type="frail-held", state="uncertain") == 1


async def test_a_zombie_reports_what_it_did_and_begins_nothing_of_what_it_held(
    stack: Stack, catastrophe: Catastrophe
) -> None:
    for task in (catastrophe.mid_call, catastrophe.waiting):
        await stack.until(task, "uncertain")
    catastrophe.zombie.send(signal.SIGCONT)

    async def beats() -> bool:
        statement = "SELECT FROM workers WHERE pid = $1 AND NOT ended"
        return bool(await stack.sql.fetch(statement, catastrophe.zombie.pid))

    await eventually(beats, "the zombie beats again")  # as another: what it has lost does not come back
    catastrophe.traces.let_go(catastrophe.mid_call)
    document = await stack.until(catastrophe.mid_call, "succeeded")
    assert document["timeline"][-1]["event"].startswith("late-succe")

    async def refused() -> bool:
        lines = map(json.loads, catastrophe.zombie.log.read_text().splitlines())
        return "handed-back" in [line["message"] for line in lines if line.get("task_id") == str(catastrophe.waiting)]

    await eventually(refused, "the zombie releases what it had not begun")
    assert catastrophe.traces.attempts(catastrophe.waiting) == []
    assert (await stack.get(catastrophe.waiting))["status"] == "uncertain"
