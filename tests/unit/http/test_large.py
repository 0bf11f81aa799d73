"""Large documents are processed outside the event loop, whichever way they come: livez is answered meanwhile."""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import Sequence
from typing import Any

import httpx
import pytest
from starlette.routing import Route

from taskflux.http.app import application
from taskflux.http.receipts import Msg91Webhook
from taskflux.http.submissions import Limits
from taskflux.store.notifications import Receipts, Recorded
from taskflux.tasks.bounds import LARGE
from taskflux.tasks.model import DeliveryReport
from tests.unit.http.letters import letter, poison
from tests.unit.http.memory import Fixture, problem
from tests.unit.http.test_notifications import MAIL, Service

BIG = "x" * LARGE


@pytest.fixture
async def beside(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of what was given to threads."""
    given: list[str] = []
    loop = asyncio.get_running_loop()
    run = loop.run_in_executor

    def noted(pool: Any, work: Any, *arguments: Any) -> Any:
        given.append(work.__qualname__)
        return run(pool, work, *arguments)

    monkeypatch.setattr(loop, "run_in_executor", noted)
    return given


@pytest.mark.parametrize(
    ("row", "repair", "made"),
    [
        (letter(type="simulated"), {"payload": BIG}, ["Submissions._checked"]),
        (poison(), {"payload": BIG, "taskType": "simulated"}, ["_document", "Submissions._checked"]),
        (
            poison(),
            {"value": json.dumps({"taskType": "simulated", "payload": BIG})},
            ["_document", "Submissions._checked"],
        ),
        (
            letter(type="simulated", task_state=None, payload=json.dumps(BIG)),
            {},
            ["_document", "Submissions._checked"],
        ),
    ],
)
async def test_a_large_repair_of_a_dead_letter(
    row: dict[str, Any], repair: dict[str, Any], made: list[str], beside: list[str]
) -> None:
    http = Fixture(Limits())
    answer = await http.replay(http.letters.put(row), **repair)
    assert answer.status_code == 202, answer.text
    assert beside == (["weigh", "decode_json"] if repair else []) + made


async def test_a_large_dead_letter_is_discarded(beside: list[str]) -> None:
    http = Fixture(Limits())
    found = http.letters.put(letter(payload=json.dumps(BIG)))
    answer = await http.client.post(f"/dead-letters/{found}/discard", json={"reason": "a test"})
    assert (answer.status_code, answer.json()["payload"]) == (200, BIG)
    assert len(beside) == 1


async def test_a_large_notification_is_read_and_its_digest_made(beside: list[str]) -> None:
    service = Service(most=2 * LARGE)
    mail = MAIL | {"body": BIG}
    assert (await service.send(mail)).status_code == 200
    assert (await service.send(mail, taskflux_task_id="0199.2")).status_code == 200
    assert beside == ["weigh", "decode_json", "Notify._validated"] * 2
    unnamed, named = service.asked
    assert unnamed.digest == b""
    document = json.dumps({"body": BIG, "subject": "Hello", "to": ["user@example.com"]}, sort_keys=True)
    assert named.digest == hashlib.sha256(document.encode()).digest()


class Reports(Receipts):
    """Receipts of unknown tasks."""

    __setattr__ = object.__setattr__  # the real one is frozen

    def __init__(self) -> None:
        pass

    async def record(self, reports: Sequence[DeliveryReport]) -> Sequence[Recorded]:
        return []


def report(body: bytes, media_type: str = "application/json", most: int = 64_000_000) -> Any:
    route = Route("/webhooks/msg91/{secret}", Msg91Webhook(lambda: "s", Reports(), None).record, methods=["POST"])
    transport = httpx.ASGITransport(application([route], most))
    client = httpx.AsyncClient(transport=transport, base_url="http://taskflux")
    return client.post("/webhooks/msg91/s", content=body, headers={"content-type": media_type})


async def test_large_delivery_reports(beside: list[str]) -> None:
    assert (await report(b'[{"status": "1"}]')).json() == {"reports": 1, "matched": 0}
    assert beside == []
    assert (await report(json.dumps([{"desc": BIG}]).encode())).json() == {"reports": 1, "matched": 0}
    assert len(beside) == 1


@pytest.mark.parametrize("form", [False, True])
async def test_crowded_delivery_reports_hold_what_they_take_in_memory(form: bool) -> None:
    body = json.dumps([{"desc": [0] * 9_000}]).encode()
    if form:
        body = str(httpx.QueryParams({"data": body.decode()})).encode()
    media_type = "application/x-www-form-urlencoded" if form else "application/json"
    refused = await report(body, media_type, most=1_000_000)
    assert (refused.status_code, problem(refused)["type"]) == (503, "/problems/busy")
    assert (await report(body, media_type)).status_code == 200
