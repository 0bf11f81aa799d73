"""Delivery reports on rows, in every order and at every moment."""

from __future__ import annotations

import asyncio
from itertools import permutations
from typing import Any
from uuid import UUID

import pytest
from uuid_utils.compat import uuid7

from taskflux.http.tasks import task_document
from taskflux.store.claims import Claim, Claims, Settlement, Worker
from taskflux.store.database import Database
from taskflux.store.notifications import Receipts
from taskflux.store.tasks import Tasks
from taskflux.tasks.decision import Decision
from taskflux.tasks.model import DeliveryReport, DeliveryStatus, Submission
from taskflux.tasks.states import Event, State
from tests.integration.store.scene import SOURCE, succeeded

HELD = Decision(Event.HELD, State.UNCERTAIN, error_class="Ambiguous", reason="perhaps")


class Messages:
    """Tasks on their way, and what is reported of them."""

    def __init__(self, database: Database) -> None:
        self.database = database
        self.receipts = Receipts(database)
        self.claims = Claims(database, Worker(uuid7(), "test", "test", 1, None, "email"), SOURCE)

    async def claim(self) -> Claim:
        task = Submission(uuid7(), "sms", "{}", 8)
        await Tasks(self.database).insert([task], 0.0)
        [claim] = await self.claims.claim("sms", {task.id: 1})
        return claim

    async def settled(self, decision: Decision) -> UUID:
        claim = await self.claim()
        await self.settle(claim, decision)
        return claim.id

    async def settle(self, claim: Claim, decision: Decision) -> None:
        [written] = await self.claims.settle_all([Settlement(claim.id, claim.version, decision)])
        assert written.written

    async def report(self, task: UUID, status: str = "delivered", replay: int = 0, **more: str) -> Any:
        found = await self.receipts.record([DeliveryReport(task, replay, DeliveryStatus(status), **more)])
        return found[0] if found else None

    async def shown(self, task: UUID) -> dict[str, Any]:
        row = await Tasks(self.database).get(task, "default")
        assert row is not None
        return task_document(row)


@pytest.fixture
async def messages(database: Database) -> Messages:
    messages = Messages(database)
    await messages.claims.begin()
    return messages


async def test_a_report_on_a_succeeded_task_changes_nothing_else(messages: Messages) -> None:
    task = await messages.settled(succeeded({"requestId": "req-1"}))
    before = await messages.shown(task)
    recorded = await messages.report(task, code="1", description="DELIVERED", request_id="req-1", reported_at="2026")
    assert (recorded.kept, recorded.first, recorded.before) == (True, True, "succeeded")
    after = await messages.shown(task)
    at = after["delivery"].pop("at")
    assert at.endswith("Z")
    assert after["delivery"] == {
        "status": "delivered", "code": "1", "desc": "DELIVERED", "requestId": "req-1", "reportedAt": "2026",
    }  # fmt: skip
    assert after["status"] == "succeeded"
    assert after["result"] == before["result"]
    assert [entry["event"] for entry in after["timeline"]][-2:] == ["succeeded", "reported"]


@pytest.mark.parametrize("status", ["delivered", "failed", "rejected", "accepted"])
async def test_any_report_means_that_an_uncertain_message_was_sent(messages: Messages, status: str) -> None:
    task = await messages.settled(HELD)
    assert (await messages.report(task, status, request_id="req-9")).before == "uncertain"
    shown = await messages.shown(task)
    assert (shown["status"], shown["error"], shown["delivery"]["status"]) == ("succeeded", None, status)
    assert shown["result"] == {"requestId": "req-9", "status": "accepted"}
    last = shown["timeline"][-1]
    assert (last["event"], last["state"], last["note"]) == ("resolved-succeeded", "succeeded", status)


async def test_the_order_of_reports_makes_no_difference(messages: Messages) -> None:
    reports = [("accepted", "1"), ("failed", "2"), ("rejected", "3"), ("delivered", "2")]
    for order in permutations(reports):
        task = await messages.settled(succeeded({}))
        for status, date in order:
            await messages.report(task, status, reported_at=date)
        assert (await messages.shown(task))["delivery"]["status"] == "delivered"
    for order in permutations(reports[:3]):
        task = await messages.settled(succeeded({}))
        for status, date in order:
            await messages.report(task, status, reported_at=date)
        assert (await messages.shown(task))["delivery"]["status"] == "rejected"


async def test_a_report_that_comes_again_changes_nothing(messages: Messages) -> None:
    task = await messages.settled(succeeded({}))
    await messages.report(task)
    before = await messages.shown(task)
    answers = await asyncio.gather(*(messages.report(task) for _ in range(5)))
    assert {(each.kept, each.first) for each in answers} == {(False, False)}
    assert await messages.shown(task) == before


async def test_a_report_of_another_replay_or_of_no_task_is_left_out(messages: Messages) -> None:
    task = await messages.settled(HELD)
    assert await messages.report(task, replay=1) is None
    assert await messages.report(uuid7()) is None
    assert (await messages.shown(task))["status"] == "uncertain"


async def test_a_message_reported_while_it_was_being_sent_is_resolved_once_it_is_held(messages: Messages) -> None:
    claim = await messages.claim()
    assert (await messages.report(claim.id)).before == "running"
    assert await messages.receipts.resolve_early(100) == 0
    await messages.settle(claim, HELD)
    assert (await messages.shown(claim.id))["status"] == "uncertain"
    assert await messages.receipts.resolve_early(100) == 1
    shown = await messages.shown(claim.id)
    assert (shown["status"], shown["timeline"][-1]["event"]) == ("succeeded", "resolved-succeeded")
    assert await messages.receipts.resolve_early(100) == 0


async def test_a_message_reported_while_it_was_sent_and_then_settled_needs_no_more(messages: Messages) -> None:
    claim = await messages.claim()
    await messages.report(claim.id)
    await messages.settle(claim, succeeded({"requestId": "1"}))
    assert await messages.receipts.resolve_early(100) == 0
    shown = await messages.shown(claim.id)
    assert (shown["status"], shown["delivery"]["status"]) == ("succeeded", "delivered")


async def test_a_worker_that_was_cut_off_does_not_undo_what_a_report_has_resolved(messages: Messages) -> None:
    claim = await messages.claim()
    await messages.settle(claim, HELD)
    await messages.report(claim.id)
    died = Decision(Event.DIED, State.DEAD, error_class="Permanent", reason="no")
    [late] = await messages.claims.settle_all([Settlement(claim.id, claim.version, died)])
    assert not late.written
    assert (await messages.shown(claim.id))["status"] == "succeeded"
