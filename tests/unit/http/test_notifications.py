"""Notifications over HTTP: what is read from a request, and how each outcome is reported."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AbstractContextManager
from datetime import UTC, datetime
from typing import Any

import httpx
import pytest

from taskflux.http.notifications import Notify, create_notify_app
from taskflux.providers.email import Email
from taskflux.providers.notify import ERROR_CLASSES, classify
from taskflux.providers.sms import Sms
from taskflux.providers.smtp_replies import Throttled
from taskflux.store.errors import StoreUnavailable
from taskflux.tasks.errors import Ambiguous, Misconfigured, Permanent, TaskError, Transient, Unavailable
from taskflux.worker.notifier import NOBODY, Delivered, Notification, Notifier
from tests.keys import OPEN
from tests.unit.http.memory import problem

MAIL = {"to": "user@example.com", "subject": "Hello", "body": "Welcome!"}


class Service(Notifier[Email]):
    """A channel with a given outcome, and its HTTP side."""

    def __init__(self, most: int = 100_000) -> None:
        self.asked: list[Notification[Email]] = []
        self.trouble: Exception | None = None
        self.repeated = False
        nobody: Any = None
        mail, text = Notify(Email, self, most), Notify(Sms, nobody, most)
        app = create_notify_app(mail, text, self.check, started=bool, access=OPEN)
        transport = httpx.ASGITransport(app, raise_app_exceptions=False)
        self.client = httpx.AsyncClient(transport=transport, base_url="http://notify")

    async def deliver(
        self, notification: Notification[Email], waiting: AbstractContextManager[None] = NOBODY
    ) -> Delivered:
        self.asked.append(notification)
        if self.trouble is not None:
            raise self.trouble
        return Delivered({"messageId": "<1@x>"}, self.repeated)

    async def check(self) -> None:
        if self.trouble is not None:
            raise self.trouble

    async def send(self, document: Any = MAIL, **headers: str) -> httpx.Response:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        return await self.client.post("/notifications/email", json=document, headers=named)


@pytest.fixture
async def service() -> AsyncIterator[Service]:
    service = Service()
    yield service
    await service.client.aclose()


@pytest.mark.parametrize("path", ["/notifications/email", "/api/email/send"])
async def test_a_mail_is_delivered_and_answered_with_its_outcome(service: Service, path: str) -> None:
    answer = await service.client.post(path, json=MAIL)
    assert (answer.status_code, answer.json()) == (200, {"status": "accepted", "result": {"messageId": "<1@x>"}})
    assert "idempotent-replay" not in answer.headers
    [asked] = service.asked
    assert (asked.id, asked.attempt, asked.created_at, asked.progress) == (None, 1, None, {})
    assert asked.payload.subject == "Hello"


async def test_the_caller_gives_an_id_the_attempt_and_what_it_knows(service: Service) -> None:
    service.repeated = True
    answer = await service.send(
        {**MAIL, "progress": {"delivered": {"a@b.c": "250"}}},
        taskflux_task_id="0199.2",
        taskflux_attempt="3",
        taskflux_created_at="2026-03-01T12:30:00+02:00",
    )
    assert answer.headers["idempotent-replay"] == "true"
    [asked] = service.asked
    assert (asked.id, asked.attempt) == ("0199.2", 3)
    assert asked.created_at == datetime(2026, 3, 1, 10, 30, tzinfo=UTC)
    assert asked.progress == {"delivered": {"a@b.c": "250"}}


@pytest.mark.parametrize(
    ("error", "status", "slug"),
    [
        (Permanent("no such address"), 422, "delivery-refused"),
        (Transient("greylisted", retry_after=300.0, progress={"deferred": {"a@b.c": "450"}}), 503, "delivery-deferred"),
        (Unavailable("away"), 502, "provider-unavailable"),
        (Misconfigured("wrong password"), 502, "provider-misconfigured"),
        (Ambiguous("the answer was lost"), 504, "delivery-unknown"),
    ],
)
async def test_a_failure_is_a_problem_that_its_caller_reads_as_what_it_was(
    service: Service, error: TaskError, status: int, slug: str
) -> None:
    service.trouble = error
    answer = await service.send()
    document = problem(answer)
    assert (answer.status_code, document["type"]) == (status, f"/problems/{slug}")
    assert document["errorClass"] == error.error_class
    assert document["reason"] == error.reason
    read = classify(answer.status_code, answer.content)
    assert type(read) is type(error)
    assert (read.reason, read.progress) == (error.reason, error.progress)
    if isinstance(error, Transient):
        assert isinstance(read, Transient)
        assert (read.retry_after, answer.headers["retry-after"]) == (300.0, "300")


async def test_a_subclass_of_an_error_is_reported_as_the_public_class(service: Service) -> None:
    service.trouble = Throttled("fewer connections")
    assert problem(await service.send())["errorClass"] == "Unavailable"


async def test_a_bad_payload_names_its_fields_and_can_never_be_delivered(service: Service) -> None:
    document = {"to": "nobody", "subject": "a\nb", "extra": 1}
    answer = await service.send(document, taskflux_task_id="no spaces", taskflux_attempt="0", taskflux_created_at="x")
    told = problem(answer)
    assert (answer.status_code, told["type"], told["errorClass"]) == (
        422,
        "/problems/invalid-notification",
        "Permanent",
    )
    assert {error["field"] for error in told["errors"]} == {
        "to[0]", "subject", "body", "extra", "Taskflux-Task-Id", "Taskflux-Attempt", "Taskflux-Created-At",
    }  # fmt: skip
    assert "nobody" not in answer.text
    assert service.asked == []


@pytest.mark.parametrize(
    ("body", "status"),
    [(b"{", 400), (b"[]", 422), (b'"text"', 422), (b"{}", 422), (b'{"to": 1e999}', 422), (b" " * 100_001, 413)],
)
async def test_what_is_not_a_mail_is_refused(service: Service, body: bytes, status: int) -> None:
    answer = await service.client.post(
        "/notifications/email", content=body, headers={"content-type": "application/json"}
    )
    assert answer.status_code == status
    problem(answer)


async def test_a_form_of_another_site_sends_nothing(service: Service) -> None:
    answer = await service.client.post("/api/email/send", content=b"{}", headers={"content-type": "text/plain"})
    assert answer.status_code == 415


async def test_without_postgresql_nothing_is_sent_and_no_attempt_is_spent(service: Service) -> None:
    service.trouble = StoreUnavailable("away")
    answer = await service.send(taskflux_task_id="1")
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "5")
    assert isinstance(classify(answer.status_code, answer.content), Unavailable)


async def test_a_provider_is_checked_without_sending(service: Service) -> None:
    assert (await service.client.post("/notifications/email/check")).status_code == 204
    service.trouble = Unavailable("still unreachable")
    answer = await service.client.post("/notifications/email/check")
    assert (answer.status_code, problem(answer)["errorClass"]) == (502, "Unavailable")
    assert service.asked == []


@pytest.mark.parametrize(
    ("status", "body", "expected"),
    [
        (200, b'{"result": 1}', Ambiguous),
        (200, b"<html>", Ambiguous),
        (301, b"", Misconfigured),
        (401, b"", Misconfigured),
        (404, b"{}", Misconfigured),
        (413, b"", Permanent),
        (422, b"[]", Permanent),
        (429, b"", Unavailable),
        (500, b'{"type": "/problems/internal"}', Ambiguous),
        (502, b"bad gateway", Ambiguous),
        (503, b"no upstream", Unavailable),
        (504, b"", Ambiguous),
        (503, b'{"errorClass": "SomethingElse"}', Unavailable),
        (503, b'{"errorClass": "Transient", "reason": "later", "retryAfter": "soon", "progress": 1}', Transient),
    ],
)
def test_an_answer_that_is_not_the_services_own_is_classified_with_care(
    status: int, body: bytes, expected: type[TaskError]
) -> None:
    assert type(classify(status, body)) is expected


def test_every_class_of_error_can_be_reported() -> None:
    assert set(ERROR_CLASSES) == {"Transient", "Permanent", "Ambiguous", "Unavailable", "Misconfigured"}


async def test_what_no_handler_can_read_is_refused_at_its_field(service: Service) -> None:
    headers = {"content-type": "application/json"}
    for body, field in (
        (b'{"subject": "Party \\ud83c"}', "subject"),
        (b'{"headers": {"X-A": %s}}' % (b"[" * 99), "headers.X-A"),
    ):
        answer = await service.client.post("/notifications/email", content=body, headers=headers)
        assert (answer.status_code, problem(answer)["type"]) == (422, "/problems/invalid-notification")
        assert [error["field"] for error in problem(answer)["errors"]] == [field]
    assert service.asked == []
