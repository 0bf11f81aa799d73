import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from pydantic import SecretStr

from taskflux.providers.msg91 import Msg91, Msg91Settings, connect
from taskflux.providers.sms import Sms
from taskflux.tasks.errors import Ambiguous, Misconfigured, Permanent, TaskError, Transient, Unavailable
from tests.integration.providers.flow_api import Answer, FlowApi

SMS = Sms(mobile="+919876543210", name="Ann", variables={"VAR1": "tea", "amount": 12})
UNAUTHORIZED = {"status": "fail", "hasError": True, "errors": "Unauthorized", "code": "401", "apiError": "418"}
TEMPLATE = "5f1a2b3c4d5e6f7a8b9c0d1e"


@asynccontextmanager
async def client(url: str, **settings: Any) -> AsyncIterator[Msg91]:
    given = {"base_url": url, "auth_key": SecretStr("key-1"), "template_id": TEMPLATE} | settings
    async with connect.connect(Msg91Settings(**given)) as msg91:
        yield msg91


@asynccontextmanager
async def server_that_reads_and_hangs_up() -> AsyncIterator[str]:
    async def take(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        length = next(int(line.split(b":")[1]) for line in head.lower().split(b"\r\n") if b"content-length" in line)
        await reader.readexactly(length)
        writer.close()

    server = await asyncio.start_server(take, "127.0.0.1", 0)
    try:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:
        server.close()
        await server.wait_closed()


async def test_a_message_is_sent_as_the_flow_api_wants_it(api: FlowApi) -> None:
    api.answers.append(Answer({"type": "success", "message": "req-1"}))
    async with client(api.url) as msg91:
        assert await msg91.send(SMS, crqid="0199.1") == "req-1"
    [taken] = api.taken
    assert taken.headers["authkey"] == "key-1"
    assert taken.headers["content-type"] == "application/json"
    assert taken.flow == {
        "template_id": TEMPLATE,
        "short_url": "0",
        "CRQID": "0199.1",
        "recipients": [{"mobiles": "919876543210", "name": "Ann", "VAR1": "tea", "amount": 12}],
    }


async def test_a_task_may_name_its_template_and_settings_a_sender_and_route(api: FlowApi) -> None:
    async with client(api.url + "/", template_id="", sender="TSKFLX", route="4") as msg91:
        await msg91.send(Sms(mobile="919876543210", name="Ann", template_id="own"), crqid="1")
        with pytest.raises(Misconfigured, match="TASKFLUX_MSG91__TEMPLATE_ID"):
            await msg91.send(SMS, crqid="2")
    [taken] = api.taken
    assert (taken.flow["template_id"], taken.flow["sender"], taken.flow["route"]) == ("own", "TSKFLX", "4")


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (Answer({"type": "error", "message": "Invalid mobile", "code": "202"}), Permanent),
        (Answer({"type": "error", "message": "too long", "code": "310"}), Permanent),
        (Answer({"type": "error", "message": "never heard of"}), Permanent),
        (Answer({"type": "error", "message": "auth key", "code": "207"}), Misconfigured),
        (Answer({"type": "error", "message": "Insufficient balance"}), Misconfigured),
        (Answer({"type": "error", "message": "template not approved"}), Misconfigured),
        (Answer(UNAUTHORIZED, 401), Misconfigured),
        (Answer({"type": "error", "message": "same request", "code": "311"}), Ambiguous),
        (Answer(b"<html>ok</html>"), Ambiguous),
        (Answer(b"not gzip", headers={"content-encoding": "gzip"}), Ambiguous),
        (Answer(b"broken", 500), Transient),
        (Answer(b"busy", 503), Unavailable),
        (Answer(b"late", 504), Ambiguous),
        (Answer(b"", 302, {"location": "https://example.org/"}), Misconfigured),
    ],
    ids=lambda value: json.dumps(str(getattr(value, "body", ""))) + str(getattr(value, "status", "")),
)
async def test_an_answer_means_what_happens_next(api: FlowApi, answer: Answer, expected: type[TaskError]) -> None:
    api.answers.append(answer)
    async with client(api.url) as msg91:
        with pytest.raises(TaskError) as failure:
            await msg91.send(SMS, crqid="1")
    assert type(failure.value) is expected
    assert len(api.taken) == 1


async def test_too_many_requests_wait_as_long_as_the_service_says(api: FlowApi) -> None:
    api.answers.append(Answer(b"", 429, {"retry-after": "7"}))
    async with client(api.url) as msg91:
        with pytest.raises(Transient) as failure:
            await msg91.send(SMS, crqid="1")
    assert failure.value.retry_after == 7.0


async def test_a_refused_connection_is_the_service_being_away() -> None:
    server = await asyncio.start_server(lambda reader, writer: None, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    server.close()
    await server.wait_closed()
    async with client(f"http://127.0.0.1:{port}") as msg91:
        with pytest.raises(Unavailable, match="cannot be reached"):
            await msg91.send(SMS, crqid="1")


async def test_an_answer_that_does_not_come_is_ambiguous(api: FlowApi) -> None:
    held = asyncio.Event()
    api.answers.append(Answer({"type": "success", "message": "late"}, held=held))
    async with client(api.url, read_timeout=0.1) as msg91:
        with pytest.raises(Ambiguous, match="ReadTimeout"):
            await msg91.send(SMS, crqid="1")
    held.set()
    assert len(api.taken) == 1


async def test_a_connection_dropped_after_the_request_is_ambiguous() -> None:
    async with server_that_reads_and_hangs_up() as url, client(url) as msg91:
        with pytest.raises(Ambiguous, match="answer was lost"):
            await msg91.send(SMS, crqid="1")


async def test_a_message_that_found_no_free_connection_was_not_sent(api: FlowApi) -> None:
    held = asyncio.Event()
    api.answers.append(Answer({"type": "success", "message": "first"}, held=held))
    async with client(api.url, connections=1, read_timeout=0.2) as msg91:
        outcomes = await asyncio.gather(
            *(msg91.send(SMS, crqid=str(number)) for number in range(2)), return_exceptions=True
        )
    held.set()
    assert {type(outcome) for outcome in outcomes} == {Ambiguous, Transient}
    assert len(api.taken) == 1
