"""Calls to providers: what is told of one, whoever makes it."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from pydantic import BaseModel

from taskflux import Ambiguous, Misconfigured, Permanent, Transient, Unavailable, provider
from taskflux.providers.provider import CRASHED, OUTCOMES, SUCCEEDED, Sending
from taskflux.tasks.errors import TaskError
from taskflux.telemetry import tracing
from taskflux.telemetry.instruments import registry
from taskflux.telemetry.tracing import TRACE, Operation
from tests.unit.spans import SAMPLED, UNSAMPLED, Spans

SECRET = "bob@example.org"
SOME = Operation("around", "INTERNAL")


class Nothing(BaseModel):
    """No settings."""


class MailboxFull(Permanent):
    """An application's own."""


@provider("billing", settings=Nothing)
@asynccontextmanager
async def billing(settings: Nothing) -> AsyncIterator[None]:
    yield None


class Counted:
    """What was counted since: outcomes, and calls that were timed."""

    def __init__(self) -> None:
        self._before = self._now()

    def since(self) -> dict[str, float]:
        return {name: count - self._before[name] for name, count in self._now().items() if count > self._before[name]}

    def _now(self) -> dict[str, float]:
        outcomes = [SUCCEEDED, CRASHED, *(each.__name__ for each in OUTCOMES)]
        counts = {
            outcome: registry().get_sample_value(
                "taskflux_provider_requests_total", {"provider": "billing", "outcome": outcome}
            )
            for outcome in outcomes
        }
        counts["timed"] = registry().get_sample_value(
            "taskflux_provider_request_seconds_count", {"provider": "billing"}
        )
        return {name: count or 0.0 for name, count in counts.items()}


@pytest.mark.parametrize(
    ("error", "outcome"),
    [
        (Transient("…"), "Transient"),
        (MailboxFull("…"), "Permanent"),
        (Ambiguous("…"), "Ambiguous"),
        (Unavailable("…"), "Unavailable"),
        (Misconfigured("…"), "Misconfigured"),
        (TimeoutError(), "Ambiguous"),
        (asyncio.CancelledError(), "Ambiguous"),
        (KeyError("…"), "crashed"),
    ],
)
def test_a_call_of_an_own_provider_is_counted_by_what_leaves_its_block(error: BaseException, outcome: str) -> None:
    counted = Counted()
    with billing.call("POST /charges") as call:
        call.note("http.response.status_code", 200)
    with pytest.raises(type(error)), billing.call("POST /charges"):
        raise error
    assert counted.since() == {"succeeded": 1, outcome: 1, "timed": 2}


def test_a_failure_that_is_returned_counts_by_its_class_and_an_unknown_one_as_a_crash() -> None:
    counted = Counted()
    for error_class in ("Permanent", "", "ann@example.org"):
        with billing.call("POST /charges") as call:
            call.failed("402", error_class)
    assert counted.since() == {"Permanent": 1, "crashed": 2, "timed": 3}


def test_a_call_is_a_span_within_a_recorded_attempt_only(spans: Spans) -> None:
    with billing.call("outside"):
        pass
    token = TRACE.set(UNSAMPLED)
    with billing.call("in an unsampled trace"):
        pass
    TRACE.reset(token)
    with tracing.start(SOME, parent=SAMPLED), billing.call("POST /charges", {"server.port": 443}) as call:
        call.note("http.response.status_code", 402)
        call.failed("402", "Permanent")
    around, span = spans.all()
    assert (span.name, span.kind, span.parent) == ("POST /charges", "CLIENT", around.id)
    assert span.attributes == {"server.port": 443, "http.response.status_code": 402, "error.type": "402"}
    assert span.failed
    assert span.events == ()


def test_an_error_is_recorded_by_class_and_place_and_never_by_its_text(spans: Spans) -> None:
    with pytest.raises(ValueError), tracing.start(SOME, parent=SAMPLED), billing.call("POST /charges"):
        raise ValueError(f"{SECRET} is unknown")
    for span in spans.all():
        assert span.failed
        assert span.attributes["error.type"] == "ValueError"
        ((name, about),) = span.events
        assert name == "exception"
        assert about["exception.type"] == "ValueError"
        assert "test_provider.py" in about["exception.stacktrace"]
        assert SECRET not in str(span)


def test_an_exemplar_leads_to_the_trace_of_a_recorded_call(spans: Spans) -> None:
    with tracing.start(SOME, parent=SAMPLED), billing.call("POST /charges"):
        pass
    seconds = next(each for each in registry().collect() if each.name == "taskflux_provider_request_seconds")
    exemplars = [each.exemplar.labels for each in seconds.samples if each.exemplar]
    assert {"trace_id": SAMPLED[3:35]} in exemplars


LOST = (ConnectionError, TimeoutError)

ANYTHING = [
    ssl.SSLError("bad record mac"),
    ConnectionResetError("reset"),
    TimeoutError(),
    UnicodeDecodeError("ascii", b"\xff", 0, 1, "no"),
    ValueError("could not convert string to float: '²'"),
    RecursionError(),
    MemoryError(),
    AttributeError("a bug of ours"),
    ExceptionGroup("several", [OSError()]),
]


def escaping(error: BaseException, *, begun: bool) -> None:
    with Sending("the mail", "the server", LOST) as sending:
        if begun:
            sending.begin()
        raise error


@pytest.mark.parametrize("error", ANYTHING, ids=lambda error: type(error).__name__)
def test_whatever_escapes_once_something_may_have_been_sent_is_ambiguous(error: Exception) -> None:
    with pytest.raises(Ambiguous, match="the mail was sent") as failure:
        escaping(error, begun=True)
    assert failure.value.__cause__ is error


@pytest.mark.parametrize("error", ANYTHING, ids=lambda error: type(error).__name__)
def test_whatever_escapes_before_is_known_to_have_sent_nothing(error: Exception) -> None:
    with pytest.raises(TaskError) as failure:
        escaping(error, begun=False)
    assert type(failure.value) is (Unavailable if isinstance(error, LOST) else Transient)


@pytest.mark.parametrize("begun", [True, False])
@pytest.mark.parametrize("error", [Permanent("refused"), Unavailable("down"), asyncio.CancelledError(), SystemExit(1)])
def test_a_judgement_and_an_order_to_end_pass_as_they_are(error: BaseException, begun: bool) -> None:
    with pytest.raises(type(error)) as raised:
        escaping(error, begun=begun)
    assert raised.value is error


def test_an_unforeseen_error_is_logged_by_its_place_and_a_lost_connection_is_not(
    caplog: pytest.LogCaptureFixture,
) -> None:
    for error in (ConnectionResetError(SECRET), KeyError(SECRET)):
        with pytest.raises(Ambiguous) as failure:
            escaping(error, begun=True)
        assert SECRET not in failure.value.reason
    [record] = caplog.records
    assert record.__dict__["error_class"] == "KeyError"
    assert "test_provider.py" in caplog.text
    assert SECRET not in caplog.text
