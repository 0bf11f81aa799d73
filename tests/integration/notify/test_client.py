"""Handlers that deliver through the notification service behave as without it."""

from __future__ import annotations

import asyncio
import base64
import gzip
import json
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import pytest
from pydantic import SecretStr

from taskflux.handlers.process_email import process_email
from taskflux.handlers.process_sms import process_sms
from taskflux.local.ports import free_port
from taskflux.providers import msg91, smtp
from taskflux.providers.notify import MOST_BYTES
from taskflux.providers.provider import Checkable, NotifySettings, Provider
from taskflux.tasks.decision import LONGEST_DELAY
from taskflux.tasks.errors import Ambiguous, Misconfigured, Permanent, TaskError, Transient, Unavailable
from taskflux.tasks.model import Task
from taskflux.worker.handler import Handler
from tests.integration.notify.conftest import Service
from tests.integration.providers.flow_api import Answer
from tests.integration.providers.raw_http import Say, answer, endlessly, raw_http, saying
from tests.integration.system.stack import eventually
from tests.keys import KEY
from tests.memory import traced_peak

ID = UUID("0199f000-0000-7000-8000-000000000001")
CREATED = datetime(2026, 3, 1, 12, 30, tzinfo=UTC)
MAIL = {
    "to": ["Ann Lee <ann@example.org>", "bob@example.org"],
    "subject": "Grüße",
    "body": "Hi",
    "replyTo": "desk@example.org",
    "attachments": [{"filename": "a.bin", "content": base64.b64encode(bytes(range(256))).decode()}],
}
SMS = {"mobile": "+919876543210", "name": "Ann", "variables": {"VAR1": "tea"}}


def task(handler: Handler[Any], payload: dict[str, Any], **more: Any) -> Task[Any]:
    given = {"attempt": 1, "max_attempts": 6, "replay": 0} | more
    return Task(id=ID, type=handler.type, payload=handler.parse(json.dumps(payload)), created_at=CREATED, **given)


def through(provider: Provider[Any], settings: NotifySettings) -> AbstractAsyncContextManager[Any]:
    assert provider.through is not None
    return provider.through(settings)


def keyed(url: str) -> NotifySettings:
    """The service at this address, with the key that it takes."""
    return NotifySettings(url=url, key=SecretStr(KEY))


async def test_a_mail_is_the_same_through_the_service(service: Service) -> None:
    service.postbox.replies["bob@example.org"] = ["450 4.2.0 later"]
    async with through(smtp.connect, service.settings) as mails:
        with pytest.raises(Transient) as failure:
            await process_email(task(process_email, MAIL), mails)
        assert failure.value.progress is not None
        second = task(process_email, MAIL, attempt=2, progress=failure.value.progress)
        receipt = await process_email(second, mails)
        repeated = await process_email(second, mails)
        assert isinstance(mails, Checkable)
        await mails.check()
    assert receipt is not None
    assert repeated is not None
    assert receipt.result == repeated.result
    assert set(receipt.result["delivered"]) == {"ann@example.org", "bob@example.org"}
    sent = service.postbox.mails
    assert [mail.recipients for mail in sent] == [["ann@example.org"], ["bob@example.org"]]
    assert {mail.message["Message-ID"] for mail in sent} == {f"<{ID}@example.org>"}
    assert {mail.message["Date"].datetime for mail in sent} == {CREATED}
    assert sent[0].message["To"] == "Ann Lee <ann@example.org>, bob@example.org"
    [attachment] = sent[0].message.iter_attachments()
    assert attachment.get_content() == bytes(range(256))


async def test_a_short_message_is_known_by_its_task_and_not_sent_twice(service: Service) -> None:
    async with through(msg91.connect, service.settings) as sms:
        receipts = [await process_sms(task(process_sms, SMS, replay=2), sms) for _ in range(2)]
        assert not isinstance(sms, Checkable)
    assert receipts[0] is not None
    assert receipts[0] == receipts[1]
    assert receipts[0].result["status"] == "accepted"
    [taken] = service.flow.taken
    assert taken.flow["CRQID"] == f"{ID}.2"
    assert taken.flow["recipients"] == [{"mobiles": "919876543210", "name": "Ann", "VAR1": "tea"}]


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (Answer({"type": "error", "message": "Invalid mobile", "code": "202"}), Permanent),
        (Answer({"type": "error", "message": "Insufficient balance"}), Misconfigured),
        (Answer(b"busy", 503), Unavailable),
        (Answer(b"", 429, {"retry-after": "7"}), Transient),
        (Answer(b"<html>"), Ambiguous),
    ],
)
async def test_an_error_of_the_service_keeps_its_class_and_reason(
    service: Service, answer: Answer, expected: type[TaskError]
) -> None:
    service.flow.answers.append(answer)
    async with through(msg91.connect, service.settings) as sms:
        with pytest.raises(TaskError) as failure:
            await process_sms(task(process_sms, SMS), sms)
    assert type(failure.value) is expected
    if isinstance(failure.value, Transient):
        assert failure.value.retry_after == 7.0


async def test_an_unavailable_service_spends_no_attempt_of_a_task() -> None:
    async with through(smtp.connect, NotifySettings(url=f"http://127.0.0.1:{free_port()}")) as mails:
        with pytest.raises(Unavailable, match="cannot be reached"):
            await process_email(task(process_email, MAIL), mails)
        with pytest.raises(Unavailable):
            await mails.check()


async def test_an_answer_that_does_not_come_in_time_is_ambiguous(service: Service) -> None:
    held = asyncio.Event()
    service.flow.answers.append(Answer({"type": "success", "message": "late"}, held=held))
    settings = service.settings.model_copy(update={"read_timeout": 0.3})
    async with through(msg91.connect, settings) as sms:
        with pytest.raises(Ambiguous, match="in time"):
            await process_sms(task(process_sms, SMS), sms)
        await eventually(service.asked, "MSG91 is asked")  # on a busy machine only after we have given up
        held.set()
    assert len(service.flow.taken) == 1


@asynccontextmanager
async def breaking(port: int, breaks: int) -> AsyncIterator[tuple[str, list[int]]]:
    """The address of something that passes connections on, and cuts the first `breaks` of them before the answer."""
    passed: list[int] = []

    async def carry(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        passed.append(len(passed))
        ahead_reader, ahead_writer = await asyncio.open_connection("127.0.0.1", port)
        cut = len(passed) <= breaks
        try:
            head = await reader.readuntil(b"\r\n\r\n")
            length = next(int(line.split(b":")[1]) for line in head.lower().split(b"\r\n") if b"content-length" in line)
            ahead_writer.write(head + await reader.readexactly(length))
            answer = await ahead_reader.read(65536)
            if not cut:
                writer.write(answer)
                await writer.drain()
        finally:
            writer.close()
            ahead_writer.close()

    server = await asyncio.start_server(carry, "127.0.0.1", 0)
    try:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", passed
    finally:
        server.close()
        await server.wait_closed()


async def test_an_answer_that_was_lost_on_the_way_is_asked_for_again(service: Service) -> None:
    port = service.process.settings.http.port
    async with (
        breaking(port, 1) as (url, passed),
        through(msg91.connect, keyed(url)) as sms,
    ):
        receipt = await process_sms(task(process_sms, SMS), sms)
    assert receipt is not None
    assert (len(passed), len(service.flow.taken)) == (2, 1)


async def test_an_answer_that_is_lost_each_time_is_ambiguous(service: Service) -> None:
    port = service.process.settings.http.port
    async with (
        breaking(port, 9) as (url, passed),
        through(msg91.connect, keyed(url)) as sms,
    ):
        with pytest.raises(Ambiguous, match="lost"):
            await process_sms(task(process_sms, SMS), sms)
    assert (len(passed), len(service.flow.taken)) == (2, 1)


CHUNKED = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n"
PACKED = (b"content-encoding", b"gzip")


@pytest.mark.parametrize(
    ("say", "times"),
    [
        (saying(), 2),
        (saying(b"\x16\x03\x01\x00\xff\xfe"), 2),
        (saying(CHUNKED + b"zz\r\n"), 2),
        (saying(answer(b"\xff\xfe\xfd", 500)), 1),
        (saying(answer(b"[" * 60_000)), 1),
        (saying(answer(b'{"result": {"requestId": %b}}' % (b"9" * 5000))), 1),
        (endlessly(CHUNKED, b"10000\r\n" + b" " * 65536 + b"\r\n"), 1),
        (endlessly(CHUNKED, b"1\r\n \r\n", 0.02), 1),
        (endlessly(b"", b"HTTP/1.1 100 Continue\r\n\r\n"), 1),
    ],
)
async def test_an_invalid_answer_is_ambiguous_and_unavailable_for_a_check(say: Say, times: int) -> None:
    async with raw_http(say) as (url, read), asyncio.timeout(20):
        settings = NotifySettings(url=url, read_timeout=0.5)
        async with through(msg91.connect, settings) as sms, through(smtp.connect, settings) as mails:
            with pytest.raises(Ambiguous):
                await process_sms(task(process_sms, SMS), sms)
            assert len(read) == times
            with pytest.raises(Unavailable):
                await mails.check()


async def test_an_answer_of_the_service_takes_no_more_memory_than_it_may_have() -> None:
    bomb = answer(gzip.compress(bytes(50_000_000), 9), 500, [PACKED])
    async with (
        raw_http(saying(bomb)) as (url, _),
        through(msg91.connect, keyed(url)) as sms,
    ):
        with traced_peak() as peak, pytest.raises(Ambiguous):
            await process_sms(task(process_sms, SMS), sms)
    assert peak.bytes < 3 * MOST_BYTES


@pytest.mark.parametrize(
    ("retry_after", "expected"),
    [
        ("-1", None),
        ("true", 1.0),
        ('"7"', None),
        ("NaN", None),
        ("1e999", LONGEST_DELAY),
        ("1" + "0" * 400, LONGEST_DELAY),
    ],
)
async def test_an_invalid_retry_after_does_not_change_the_outcome(retry_after: str, expected: float | None) -> None:
    said = b'{"errorClass": "Transient", "reason": "later", "retryAfter": %b}' % retry_after.encode()
    async with (
        raw_http(saying(answer(said, 503))) as (url, _),
        through(msg91.connect, keyed(url)) as sms,
    ):
        with pytest.raises(Transient) as failure:
            await process_sms(task(process_sms, SMS), sms)
    assert failure.value.retry_after == expected
