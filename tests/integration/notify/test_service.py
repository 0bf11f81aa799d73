"""The notification service: sends at once, and once."""

from __future__ import annotations

import asyncio
from typing import Any

import asyncpg
import httpx
import pytest

from taskflux.local.ports import free_port
from taskflux.worker.settings import WrongSettings
from tests.conftest import NewDatabase
from tests.integration.notify.conftest import Service, serving
from tests.integration.providers.flow_api import Answer
from tests.integration.providers.smtp_server import DROP
from tests.integration.system.stack import eventually
from tests.keys import HEADERS

MAIL = {"to": "user@example.com", "subject": "Hello", "body": "Welcome!"}
SMS = {"name": "Ann", "mobile": "919876543210"}


def named(identity: str, attempt: int = 1) -> dict[str, str]:
    return {"Taskflux-Task-Id": identity, "Taskflux-Attempt": str(attempt)}


async def send(service: Service, channel: str, document: dict[str, Any], **headers: Any) -> httpx.Response:
    return await service.client.post(f"/notifications/{channel}", json=document, **headers)


async def test_requests_of_taskstream_work_unchanged(service: Service) -> None:
    mail = await service.client.post("/api/email/send", json=MAIL)
    assert (mail.status_code, mail.json()["result"]["refused"]) == (200, {})
    [sent] = service.postbox.mails
    assert sent.recipients == ["user@example.com"]
    assert (sent.message["Subject"], sent.message.get_content().strip()) == ("Hello", "Welcome!")
    text = await service.client.post("/api/sms/send", json=SMS)
    assert (text.status_code, text.json()["result"]["status"]) == (200, "accepted")
    [flow] = service.flow.taken
    assert flow.flow["recipients"] == [{"mobiles": "919876543210", "name": "Ann"}]
    assert flow.flow["CRQID"]


async def test_a_repeat_gets_the_outcome_and_is_not_sent(service: Service) -> None:
    first = await send(service, "sms", SMS, headers=named("0199.1"))
    repeats = await asyncio.gather(*(send(service, "sms", SMS, headers=named("0199.1", n)) for n in (1, 1, 2, 3)))
    assert {repeat.status_code for repeat in repeats} == {200}
    assert {repeat.content for repeat in repeats} == {first.content}
    assert {repeat.headers["idempotent-replay"] for repeat in repeats} == {"true"}
    assert [taken.flow["CRQID"] for taken in service.flow.taken] == ["0199.1"]
    await send(service, "email", MAIL, headers=named("0199.1"))  # another channel's id is another
    assert len(service.postbox.mails) == 1
    assert (await send(service, "sms", SMS)).status_code == 200  # without an id nothing is a repeat
    assert len(service.flow.taken) == 2


@pytest.mark.parametrize("became", ["sent", "failed", "unknown"])
async def test_a_reused_id_with_another_payload_is_refused_and_not_sent(service: Service, became: str) -> None:
    answers = {"failed": [Answer({"type": "error", "message": "no"}, status=500)], "unknown": [Answer(b"what?")]}
    service.flow.answers += answers.get(became, [])
    first = await send(service, "sms", SMS, headers=named("7"))
    assert (first.status_code == 200) == (became == "sent")
    taken = len(service.flow.taken)
    for attempt in (1, 2):
        other = await send(service, "sms", SMS | {"name": "Bob"}, headers=named("7", attempt))
        problem = other.json()
        assert (other.status_code, problem["type"]) == (422, "/problems/idempotency-key-reused")
        assert (problem["errorClass"], problem["errors"][0]["field"]) == ("Permanent", "Taskflux-Task-Id")
        assert "Bob" not in other.text
    assert len(service.flow.taken) == taken
    # What is the same as left out is the same payload.
    again = await send(service, "sms", SMS | {"variables": {}, "progress": {}}, headers=named("7", 2))
    assert again.status_code == 200
    assert len(service.flow.taken) == (taken if became == "sent" else taken + 1)


async def test_an_id_from_before_the_digest_accepts_any_payload(service: Service) -> None:
    first = await send(service, "sms", SMS, headers=named("8"))
    connection = await asyncpg.connect(service.postgres.dsn.get_secret_value())
    await connection.execute("UPDATE notifications SET digest = NULL")
    await connection.close()
    assert (await send(service, "sms", SMS | {"name": "Bob"}, headers=named("8"))).content == first.content


async def test_of_requests_at_the_same_time_one_sends(service: Service) -> None:
    held = asyncio.Event()
    service.flow.answers.append(Answer({"type": "success", "message": "req-1"}, held=held))
    sending = asyncio.create_task(send(service, "sms", SMS, headers=named("1")))
    await eventually(service.asked, "MSG91 was asked")
    meanwhile = await send(service, "sms", SMS, headers=named("1"))
    assert (meanwhile.status_code, meanwhile.json()["errorClass"]) == (504, "Ambiguous")
    held.set()
    assert (await sending).json()["result"]["requestId"] == "req-1"
    assert (await send(service, "sms", SMS, headers=named("1"))).json()["result"]["requestId"] == "req-1"
    assert len(service.flow.taken) == 1


async def test_a_delivery_that_was_begun_is_kept_when_the_caller_has_disconnected(service: Service) -> None:
    held = asyncio.Event()
    service.flow.answers.append(Answer({"type": "success", "message": "req-1"}, held=held))
    sending = asyncio.create_task(send(service, "sms", SMS, headers=named("1")))
    await eventually(service.asked, "MSG91 was asked")
    sending.cancel()
    await asyncio.gather(sending, return_exceptions=True)
    assert (await service.client.get("/livez")).status_code == 200
    held.set()

    async def known() -> bool:
        return (await send(service, "sms", SMS, headers=named("1"))).status_code == 200

    await eventually(known, "the outcome is kept")
    assert len(service.flow.taken) == 1


async def test_the_next_attempt_sends_only_to_recipients_that_have_not_received_the_mail(service: Service) -> None:
    mail = {**MAIL, "to": ["ann@example.org", "bob@example.org"]}
    service.postbox.replies["bob@example.org"] = ["450 4.2.0 later"]
    first = await send(service, "email", mail, headers=named("7"))
    assert (first.status_code, first.json()["errorClass"]) == (503, "Transient")
    assert set(first.json()["progress"]["delivered"]) == {"ann@example.org"}
    # The caller has lost the answer, so that it says nothing of progress.
    second = await send(service, "email", mail, headers=named("7", 2))
    assert second.status_code == 200
    assert set(second.json()["result"]["delivered"]) == {"ann@example.org", "bob@example.org"}
    assert [sent.recipients for sent in service.postbox.mails] == [["ann@example.org"], ["bob@example.org"]]
    assert len({sent.message["Message-ID"] for sent in service.postbox.mails}) == 1
    assert len({sent.message["Date"] for sent in service.postbox.mails}) == 1


async def test_an_unknown_outcome_stays_unknown_until_the_caller_counts_another_attempt(service: Service) -> None:
    service.postbox.replies["DATA"] = [DROP]
    first = await send(service, "email", MAIL, headers=named("9"))
    assert (first.status_code, first.json()["errorClass"]) == (504, "Ambiguous")
    repeat = await send(service, "email", MAIL, headers=named("9"))
    assert (repeat.status_code, repeat.json()["errorClass"]) == (504, "Ambiguous")
    assert service.postbox.mails == []
    assert (await send(service, "email", MAIL, headers=named("9", 2))).status_code == 200
    assert len(service.postbox.mails) == 1


async def test_a_service_that_was_cut_off_leaves_its_messages_unknown(service: Service) -> None:
    held = asyncio.Event()
    service.flow.answers.append(Answer({"type": "success", "message": "late"}, held=held))
    sending = asyncio.create_task(send(service, "sms", SMS, headers=named("3")))
    await eventually(service.asked, "MSG91 was asked")
    service.process.drain()
    with pytest.raises(httpx.HTTPError):
        await sending
    held.set()
    environment = {"MSG91__BASE_URL": service.flow.url, "MSG91__AUTH_KEY": "key", "MSG91__TEMPLATE_ID": "t" * 24}
    async with serving(service.postgres, environment) as (process, _):
        address = f"http://127.0.0.1:{process.settings.http.port}"
        async with httpx.AsyncClient(base_url=address, trust_env=False, headers=HEADERS) as client:
            answer = await client.post("/notifications/sms", json=SMS, headers=named("3"))
    assert (answer.status_code, answer.json()["errorClass"]) == (504, "Ambiguous")
    assert len(service.flow.taken) == 1


@pytest.mark.parametrize(
    ("answer", "status", "error"),
    [
        (Answer({"type": "error", "message": "Invalid mobile", "code": "202"}), 422, "Permanent"),
        (Answer({"type": "error", "message": "Insufficient balance"}), 502, "Misconfigured"),
        (Answer(b"busy", 503), 502, "Unavailable"),
        (Answer(b"", 429, {"retry-after": "7"}), 503, "Transient"),
        (Answer(b"<html>"), 504, "Ambiguous"),
    ],
)
async def test_what_a_provider_refuses_is_reported_by_what_happens_next(
    service: Service, answer: Answer, status: int, error: str
) -> None:
    service.flow.answers.append(answer)
    told = await send(service, "sms", SMS, headers=named("5"))
    assert (told.status_code, told.json()["errorClass"]) == (status, error)
    assert told.json().get("retryAfter") == (7.0 if error == "Transient" else None)
    again = await send(service, "sms", SMS, headers=named("5"))
    assert again.status_code == (504 if error == "Ambiguous" else 200)


async def test_a_channel_without_settings_reports_so_and_the_other_works(new_database: NewDatabase) -> None:
    environment = {
        "SMTP__HOST": "127.0.0.1", "SMTP__PORT": str(free_port()), "SMTP__TLS": "none", "SMTP__SENDER": "a@example.org",
    }  # fmt: skip
    async with serving(await new_database(), environment) as (process, _):
        address = f"http://127.0.0.1:{process.settings.http.port}"
        async with httpx.AsyncClient(base_url=address, trust_env=False, headers=HEADERS) as client:
            assert (await client.get("/readyz")).status_code == 200
            text = await client.post("/notifications/sms", json=SMS)
            assert (text.status_code, text.json()["errorClass"]) == (502, "Misconfigured")
            mail = await client.post("/notifications/email", json=MAIL)
            assert (mail.status_code, mail.json()["errorClass"]) == (502, "Unavailable")
            check = await client.post("/notifications/email/check")
            assert (check.status_code, check.json()["errorClass"]) == (502, "Unavailable")
            assert (
                'taskflux_notifications_total{channel="email",outcome="Unavailable"}'
                in (await client.get("/metrics")).text
            )


async def test_without_a_provider_it_does_not_start(new_database: NewDatabase) -> None:
    with pytest.raises(WrongSettings, match="TASKFLUX_MSG91__AUTH_KEY"):
        async with serving(await new_database(), {}):
            pass


async def test_a_provider_is_probed_without_a_mail(service: Service) -> None:
    assert (await service.client.post("/notifications/email/check")).status_code == 204
    assert (service.postbox.connections, service.postbox.mails) == (1, [])
    assert (await service.client.post("/notifications/sms/check")).status_code == 404
