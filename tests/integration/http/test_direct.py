"""A `POST /tasks` that is answered without the framework, next to the same request answered by it."""

from __future__ import annotations

import asyncio
import json
import logging
import random
import re
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, Final

import pytest
from opentelemetry.trace import NoOpTracer
from starlette.types import Receive, Scope, Send

from taskflux.http.requests import Answer, Pairs, Requests
from taskflux.http.submissions import Limits
from taskflux.store.errors import RefusedData, StoreBusy, StoreUnavailable
from taskflux.telemetry import logs, metrics, tracing
from taskflux.telemetry.logs import TASK
from taskflux.telemetry.tracing import TRACE
from tests.integration.http.serving import served
from tests.integration.system.stack import eventually
from tests.unit.http.memory import Fixture, counted

LIMITS: Final = Limits(max_body_bytes=20_000, max_item_bytes=1_000, bytes_in_flight=200_000)
TRACEPARENT: Final = f"00-{'4b' * 16}-{'0a' * 8}-01"
VOLATILE: Final = re.compile(rb"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}|date: [^\r]*\r\n")


@dataclass(slots=True)
class Side:
    """A server, and everything that shows what it has done."""

    http: Fixture = field(default_factory=lambda: Fixture(LIMITS))
    port: int = 0
    taken: Counter[bool] = field(default_factory=Counter)
    lines: list[tuple[str, str | None, bool]] = field(default_factory=list)

    async def ask(self, request: Ask) -> tuple[bytes, ...]:
        """The answers, without what differs each time."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        answers = []
        for part in request.parts:
            writer.write(part)
            await asyncio.sleep(0.002 if len(request.parts) > 1 else 0)
        for _ in range(request.count):
            try:
                head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 5)
            except asyncio.IncompleteReadError as error:
                answers.append(error.partial)
                break
            length = re.search(rb"content-length: (\d+)", head.lower())
            answers.append(head + (await reader.readexactly(int(length[1])) if length else b""))
        writer.close()
        return tuple(VOLATILE.sub(b"?", answer) for answer in answers)

    def accepted(self) -> list[tuple[object, ...]]:
        """The submissions, without their ids and the traces that were made up for them."""
        return [
            (
                each.type, each.payload, each.max_attempts, each.tenant, each.key, each.schedule_at, each.delay,
                each.expires_at, each.metadata, each.idempotency, each.provider, each.traceparent == TRACEPARENT,
            )
            for each in self.http.intake.accepted
        ]  # fmt: skip


@dataclass(frozen=True, slots=True)
class Ask:
    """The bytes of a request, or of several, as they are sent; and how many answers come."""

    parts: tuple[bytes, ...]
    count: int = 1


@asynccontextmanager
async def side(*, direct: bool) -> AsyncIterator[Side]:
    found = Side()
    await found.http.registry.refresh()
    app = found.http.app
    take = app.state.direct.take

    def counting(requests: Requests, headers: Pairs, body: bytes, answer: Answer) -> Any:
        future = take(requests, headers, body, answer)
        found.taken[future is not None] += 1
        return future

    app.state.direct.take = counting

    async def general(scope: Scope, receive: Receive, send: Send) -> None:
        await app(scope, receive, send)

    async with served(app if direct else general, allowed=("localhost",)) as server:
        found.port = server.port
        yield found


PAYLOADS: Final = (
    '"hello"', "5", "-0", "1e5", "1E400", "12345678901234567890123", "0.1", "1e-7", "null", "true", "NaN", "Infinity",
    '{"to":5}', '{"to":"a"}', '{"to":"a","to":"b","subject":"c"}', '{"to":"\\ud83d","subject":"x"}',
    '{"to":"a","subject":"' + "x" * 200 + '"}', '"' + "y" * 21_000 + '"', "[" * 70 + "]" * 70,
    '{"a":{"b":[1,2,{"c":null}]},"d":[]}', '{"to":["a","b"],"subject":"s","headers":{"X":"1"}}', '"\\u0000"', '"\x7f"',
    "", "{", '"\t"', "[1,]", "0" * 5000, "1" * 5000,
)  # fmt: skip
GOOD: Final = (
    '{"to":"ada@example.org","subject":"hello"}', '{ "to" : "ada" , "subject" : "x" }', '{"to":["a"],"subject":""}',
    '{"subject":"é ünï 😀","to":"a"}', '{"to":"\\u00e9\\/","subject":"\\ud83d\\ude00"}',
)  # fmt: skip
FIELDS: Final = (
    '"key":"customer-7"', '"key":""', '"key":5', '"delaySeconds":60', '"delaySeconds":-1', '"maxAttempts":3',
    '"maxAttempts":1e2', '"metadata":{"a":1.50,"b":"é"}', '"metadata":[]', '"scheduleAt":"2030-02-01T00:00:00Z"',
    '"scheduleAt":"nonsense"', '"expiresAt":"2030-03-01T00:00:00+01:00"', '"expiresAt":"2020-01-01T00:00:00Z"',
    '"unknown":1', '"idempotencyKey":"a"', '"taskId":"x"', '"taskType":"email"', '"metadata":null',
)  # fmt: skip
HEADERS: Final = (
    "Idempotency-Key: a", "idempotency-key: b", "Idempotency-Key: ", "Idempotency-Key: é",
    "Idempotency-Key: " + "k" * 256, f"traceparent: {TRACEPARENT}", "traceparent: nonsense",
    "Content-Encoding: gzip", "Content-Encoding: identity",
    "Connection: close", "Connection: keep-alive", "Expect: 100-continue", "User-Agent: a test", "Accept: */*",
    "Host: other", "Upgrade: h2c\r\nConnection: Upgrade", "X-Forwarded-For: 1.2.3.4",
)  # fmt: skip
MEDIA_TYPES: Final = (
    "application/json", "application/json; charset=utf-8", "Application/JSON", "application/json; charset=latin-1",
    "text/plain", None,
)  # fmt: skip


def one(chance: random.Random) -> bytes:
    """A request: most are as clients send them, many are not."""
    members = []
    if chance.random() < 0.9:
        name = chance.choice(['"email"'] * 4 + ['"simulated"'] * 8 + ['"fax"', "5", "null"])
        members.append(f'"taskType":{name}')
    if chance.random() < 0.95:
        members.append(f'"payload":{chance.choice(PAYLOADS)}')
    if chance.random() < 0.6:
        members = ['"taskType":"email"', f'"payload":{chance.choice(GOOD)}']
    if chance.random() < 0.3:
        members += chance.sample(FIELDS, chance.randint(1, 3))
    if chance.random() < 0.3:
        chance.shuffle(members)
    colon = chance.choice([",", ", ", " ,\r\n\t"])
    body = ("{" + colon.join(members) + "}").encode("utf-8", "surrogatepass")
    if chance.random() < 0.1:
        body = chance.choice(
            [b"", b"\xef\xbb\xbf" + body, body + b" \n", body[:-1], body + b"x", b"\xff" + body, b"[]", b'"x"']
        )
    headers = [chance.choice(["Host: localhost"] * 9 + ["Host: other.example"])]
    media_type = MEDIA_TYPES[0] if chance.random() < 0.92 else chance.choice(MEDIA_TYPES)
    if media_type is not None:
        headers.append(f"Content-Type: {media_type}")
    if chance.random() < 0.4:
        headers += chance.sample(HEADERS, chance.randint(1, 2))
    chunked = chance.random() < 0.1
    headers.append("Transfer-Encoding: chunked" if chunked else f"Content-Length: {len(body)}")
    if chunked:
        middle = len(body) // 2
        parts = [part for part in (body[:middle], body[middle:]) if part]
        body = b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in parts) + b"0\r\n\r\n"
    target = "/tasks" if chance.random() < 0.95 else chance.choice(["/tasks?a=1", "/tasks/", "/Tasks", "/t%61sks"])
    version = "1.1" if chance.random() < 0.97 else "1.0"
    return "\r\n".join([f"POST {target} HTTP/{version}", *headers, "", ""]).encode("latin-1") + body


def ask(chance: random.Random) -> Ask:
    """One request, or two that do not wait for each other; whole or in parts."""
    count = 1 if chance.random() < 0.9 else 2
    sent = b"".join(one(chance) for _ in range(count))
    if chance.random() < 0.8:
        return Ask((sent,), count)
    cuts = sorted(chance.sample(range(1, len(sent)), 2))
    return Ask((sent[: cuts[0]], sent[cuts[0] : cuts[1]], sent[cuts[1] :]), count)


@pytest.mark.parametrize("seed", range(8))
async def test_it_answers_counts_and_stores_what_the_framework_does(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logs.requests, "rate", 10**6)
    monkeypatch.setattr(logs.failed_requests, "rate", 10**6)
    chance = random.Random(seed)
    shown: list[tuple[Any, ...]] = []

    class Lines(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            task = TASK.get()
            shown.append(
                (record.getMessage().split("\n")[0], record.levelname, task is not None, TRACE.get() == TRACEPARENT)
            )

    handler = Lines()
    for name in ("taskflux.http.requests", "taskflux.http.bodies"):
        logging.getLogger(name).addHandler(handler)
        monkeypatch.setattr(logging.getLogger(name), "level", logging.INFO)
    try:
        async with side(direct=True) as fast, side(direct=False) as general:
            for _ in range(120):
                asked, trouble = ask(chance), None
                if chance.random() < 0.05:
                    kinds = (StoreUnavailable("gone"), StoreBusy("busy"), RefusedData("no"), KeyError("a@b.c"))
                    trouble = chance.choice(kinds)
                seen = []
                for each in (fast, general):
                    each.http.intake.trouble = trouble
                    before, shown[:] = counted(metrics.SUBMITTED) + counted(metrics.HTTP_REQUESTS), []
                    answers = await each.ask(asked)
                    after = counted(metrics.SUBMITTED) + counted(metrics.HTTP_REQUESTS)
                    seen.append((answers, after - before, sorted(shown), each.http.app.state.flight.bytes))
                assert seen[0] == seen[1], asked
                assert fast.accepted() == general.accepted(), asked
            assert fast.taken[True] > 20  # or nothing was compared
            assert not general.taken
    finally:
        for name in ("taskflux.http.requests", "taskflux.http.bodies"):
            logging.getLogger(name).removeHandler(handler)


async def test_what_waits_is_given_up_with_its_client_and_counted_as_by_the_framework() -> None:
    body = b'{"taskType":"simulated","payload":"x"}'
    head = b"POST /tasks HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"
    counts, held = [], []
    for direct in (True, False):
        before = counted(metrics.HTTP_REQUESTS)
        async with side(direct=direct) as found:
            intake, flight = found.http.intake, found.http.app.state.flight
            intake.gate.clear()
            _, writer = await asyncio.open_connection("127.0.0.1", found.port)
            writer.write(head % len(body) + body)
            await asyncio.wait_for(intake.entered.acquire(), 5)
            assert found.taken[True] == int(direct)
            held.append(flight.bytes)
            writer.close()

            async def given_up() -> bool:
                return not intake.in_flight and flight.bytes == 0  # noqa: B023 - called in this turn of the loop only

            await eventually(given_up, "what it held is released")
            intake.gate.set()
        assert intake.accepted == []
        counts.append(counted(metrics.HTTP_REQUESTS) - before)
    assert counts[0] == counts[1] == {("POST", "/tasks", "aborted"): 1}
    assert held[0] == held[1] > len(body)  # its values count, too


@pytest.mark.parametrize(
    ("what", "direct", "status"),
    [
        ("nothing", True, b"202"),
        ("spans", False, b"202"),
        ("no room", False, b"503"),
        ("too large", False, b"413"),
        ("a header twice", False, b"400"),
    ],
)
async def test_what_the_framework_has_to_see_goes_to_it(what: str, direct: bool, status: bytes) -> None:
    """Spans are recorded there, and what is ambiguous, finds no room or is too large is refused."""
    body = b'{"taskType":"simulated","payload":"x"}'
    if what == "too large":
        body += b" " * LIMITS.max_body_bytes
    head = b"POST /tasks HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"
    if what == "a header twice":
        head = head.replace(b"Content-Type", b"Idempotency-Key: a\r\nIdempotency-Key: b\r\nContent-Type")
    if what == "spans":
        tracing.switch_on(NoOpTracer())
    try:
        async with side(direct=True) as fast:
            if what == "no room":
                fast.http.app.state.flight.most = 10
            (answer,) = await fast.ask(Ask((head % len(body) + body,)))
    finally:
        tracing.switch_off()
    assert fast.taken == {direct: 1}
    assert answer.split()[1] == status


async def test_a_repeated_key_gets_the_first_answer_from_either() -> None:
    async with side(direct=True) as fast:
        body = json.dumps({"taskType": "simulated", "payload": {"b": 1, "a": 2.50}})
        other = '{"payload": {"a": 2.5, "b": 1}, "taskType": "simulated"}'
        heads = ("Content-Type: application/json", "content-type: application/json; charset=utf-8")
        answers = []
        for head, text in zip(heads, (body, other), strict=True):
            lines = f"POST /tasks HTTP/1.1\r\nHost: localhost\r\n{head}\r\nIdempotency-Key: k"
            reader, writer = await asyncio.open_connection("127.0.0.1", fast.port)
            writer.write(f"{lines}\r\nContent-Length: {len(text)}\r\n\r\n{text}".encode())
            answer = await reader.readuntil(b"}")
            answers.append(answer.split(b"\r\n\r\n")[1])
            writer.close()
        assert answers[0] == answers[1]
        assert fast.taken == {True: 1, False: 1}
        assert len(fast.http.intake.accepted) == 1
