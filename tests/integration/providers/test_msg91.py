import asyncio
import gzip
import json
import os
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trustme
from pydantic import SecretStr

from taskflux.providers.msg91 import Msg91, Msg91Settings, connect
from taskflux.providers.sms import Sms
from taskflux.tasks.decision import LONGEST_DELAY
from taskflux.tasks.errors import Ambiguous, Misconfigured, Permanent, TaskError, Transient, Unavailable
from tests.integration.providers.flow_api import Answer, FlowApi
from tests.integration.providers.raw_http import Say, answer, endlessly, raw_http, saying
from tests.memory import traced_peak

SMS = Sms(mobile="+919876543210", name="Ann", variables={"VAR1": "tea", "amount": 12})
UNAUTHORIZED = {"status": "fail", "hasError": True, "errors": "Unauthorized", "code": "401", "apiError": "418"}
TEMPLATE = "5f1a2b3c4d5e6f7a8b9c0d1e"


@asynccontextmanager
async def client(url: str, **settings: Any) -> AsyncIterator[Msg91]:
    given = {"base_url": url, "auth_key": SecretStr("key-1"), "template_id": TEMPLATE} | settings
    async with connect.connect(Msg91Settings(**given)) as msg91:
        yield msg91


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


async def test_a_wrong_template_of_the_task_s_own_is_the_task_s_and_the_configured_one_is_not(api: FlowApi) -> None:
    wrong = Answer({"type": "error", "message": "template id missing or invalid", "code": "211"})
    api.answers += [wrong, wrong]
    async with client(api.url) as msg91:
        with pytest.raises(Permanent):
            await msg91.send(SMS.model_copy(update={"template_id": "own"}), crqid="1")
        with pytest.raises(Misconfigured):
            await msg91.send(SMS, crqid="2")


async def test_too_many_requests_wait_as_long_as_the_service_says(api: FlowApi) -> None:
    api.answers.append(Answer(b"", 429, {"retry-after": "7"}))
    async with client(api.url) as msg91:
        with pytest.raises(Transient) as failure:
            await msg91.send(SMS, crqid="1")
    assert failure.value.retry_after == 7.0


async def test_a_refused_connection_means_that_the_service_is_unavailable() -> None:
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
    async with client(api.url, read_timeout=0.5) as msg91:
        with pytest.raises(Ambiguous, match="in time"):
            await msg91.send(SMS, crqid="1")
    held.set()
    assert len(api.taken) == 1


async def test_a_connection_dropped_after_the_request_is_ambiguous() -> None:
    async with raw_http(saying()) as (url, read), client(url) as msg91:
        with pytest.raises(Ambiguous, match="was lost"):
            await msg91.send(SMS, crqid="1")
    assert len(read) == 1


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


OK = b'{"type": "success", "message": "req-1"}'
CHUNKED = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n"
PACKED = (b"content-encoding", b"gzip")
DEEP = b"[" * 900 + b"]" * 900


@pytest.mark.parametrize(
    ("say", "expected"),
    [
        (saying(b"\x16\x03\x01\x00\xff\xfe"), Ambiguous),
        (saying(b"220 mail.test ESMTP\r\n"), Ambiguous),
        (saying(b"HTTP/1.1 99999 OK\r\n\r\n"), Ambiguous),
        (saying(b"HTTP/1.1 200 OK\r\ncontent-length: -1\r\n\r\n" + OK), Ambiguous),
        (saying(b"HTTP/1.1 200 OK\r\ncontent-length: 1000\r\n\r\n" + OK), Ambiguous),
        (saying(b"HTTP/1.1 200 OK\r\nx: " + b"a" * 300_000), Ambiguous),
        (saying(CHUNKED + b"zz\r\n"), Ambiguous),
        (saying(CHUNKED + b"5\r\nab"), Ambiguous),
        (saying(answer(b"\xff\xfe\xfd")), Ambiguous),
        (saying(answer(b"[" * 60_000)), Ambiguous),
        (saying(answer(b'{"type": "success", "message": %b}' % (b"9" * 5000))), Ambiguous),
        (saying(answer(b'{"type": "error", "message": %b}' % DEEP)), Permanent),
        (saying(answer(OK + b" " * 100_000)), Ambiguous),
        (saying(answer(b"x" * 100_000, 503)), Unavailable),
        (saying(answer(gzip.compress(b"x" * 100_000), 500, [PACKED])), Transient),
        (endlessly(CHUNKED, b"10000\r\n" + b" " * 65536 + b"\r\n"), Ambiguous),
    ],
)
async def test_no_answer_of_a_broken_or_hostile_server_is_anything_but_a_judgement(
    say: Say, expected: type[TaskError]
) -> None:
    async with raw_http(say) as (url, read), client(url) as msg91, asyncio.timeout(20):
        with pytest.raises(TaskError) as failure:
            await msg91.send(SMS, crqid="1")
    assert type(failure.value) is expected
    assert len(read) == 1


@pytest.mark.parametrize(
    "say",
    [
        endlessly(CHUNKED, b"1\r\n \r\n", 0.02),
        endlessly(b"", b"HTTP/1.1 100 Continue\r\n\r\n"),
        endlessly(b"HTTP/1.1 200 OK\r\n", b"a: b\r\n", 0.02),
    ],
)
async def test_an_answer_without_end_is_ambiguous_once_its_time_is_up(say: Say) -> None:
    async with raw_http(say) as (url, read), client(url, read_timeout=0.5) as msg91, asyncio.timeout(20):
        with pytest.raises(Ambiguous):
            await msg91.send(SMS, crqid="1")
    assert len(read) == 1


async def test_a_tls_connection_that_breaks_after_the_request_is_ambiguous_and_before_it_unavailable(
    certificate: trustme.LeafCert, ca_file: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def break_tls(writer: asyncio.StreamWriter) -> None:
        os.write(writer.get_extra_info("socket").fileno(), b"plain text between two records")
        await asyncio.sleep(0.5)

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    certificate.configure_cert(context)
    async with raw_http(break_tls, context=context) as (url, read):
        async with client(url) as stranger:
            with pytest.raises(Unavailable, match="CERTIFICATE_VERIFY_FAILED"):
                await stranger.send(SMS, crqid="1")
        monkeypatch.setenv("SSL_CERT_FILE", ca_file)
        async with client(url) as msg91:
            with pytest.raises(Ambiguous):
                await msg91.send(SMS, crqid="1")
    assert len(read) == 1


@pytest.mark.parametrize(
    "retry_after",
    ["\N{SUPERSCRIPT TWO}", "\N{ARABIC-INDIC DIGIT TWO}", "-1", "1e999", "Sun, 99 Foo 2026", "9" * 5000, "nan", ""],
)
async def test_an_invalid_retry_after_changes_no_verdict(retry_after: str) -> None:
    busy = answer(b"", 429, [(b"retry-after", retry_after.encode("utf-8"))])
    async with raw_http(saying(busy)) as (url, _), client(url) as msg91:
        with pytest.raises(Transient) as failure:
            await msg91.send(SMS, crqid="1")
    assert failure.value.retry_after in (None, LONGEST_DELAY)


@pytest.mark.parametrize(
    "make",
    [
        lambda: answer(gzip.compress(bytes(20_000_000), 9), headers=[PACKED]),
        lambda: answer(
            gzip.compress(gzip.compress(bytes(20_000_000), 9)), headers=[(b"content-encoding", b"gzip, gzip")]
        ),
        lambda: answer(bytes(20_000_000)),
    ],
    ids=["packed", "packed twice", "plain"],
)
async def test_an_answer_takes_no_more_memory_than_it_may_have(make: Callable[[], bytes]) -> None:
    bomb = make()
    parts = saying(*(bomb[at : at + 65536] for at in range(0, len(bomb), 65536)))
    async with raw_http(parts) as (url, _), client(url) as msg91:
        with traced_peak() as peak, pytest.raises(Ambiguous, match="without saying whether it accepted"):
            await msg91.send(SMS, crqid="1")
    assert peak.bytes < 4_000_000


async def test_a_compressed_answer_is_read_though_none_was_asked_for() -> None:
    async with raw_http(saying(answer(gzip.compress(OK), headers=[PACKED]))) as (url, _), client(url) as msg91:
        assert await msg91.send(SMS, crqid="1") == "req-1"


async def test_a_proxy_that_refuses_the_way_is_the_service_being_unavailable(monkeypatch: pytest.MonkeyPatch) -> None:
    async with raw_http(saying(b"HTTP/1.1 407 Proxy Authentication Required\r\n\r\n")) as (proxy, read):
        monkeypatch.setenv("HTTPS_PROXY", proxy)
        async with client("https://control.msg91.test") as msg91:
            with pytest.raises(Unavailable, match="cannot be reached: 407"):
                await msg91.send(SMS, crqid="1")
    assert len(read) == 1


async def test_a_number_that_json_cannot_represent_is_the_task_s_own_fault(api: FlowApi) -> None:
    async with client(api.url) as msg91:
        with pytest.raises(Permanent, match="a variable"):
            await msg91.send(SMS.model_copy(update={"variables": {"amount": float("inf")}}), crqid="1")
    assert api.taken == []
