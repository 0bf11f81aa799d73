"""Calls to providers: what is told of one, whoever makes it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager

import pytest
from pydantic import BaseModel

from taskflux import Ambiguous, Misconfigured, Permanent, Transient, Unavailable, provider
from taskflux.telemetry import calls
from taskflux.telemetry.calls import TRACE, Unrecorded, Value


class Nothing(BaseModel):
    """No settings."""


class MailboxFull(Permanent):
    """An application's own."""


@provider("billing", settings=Nothing)
@asynccontextmanager
async def billing(settings: Nothing) -> AsyncIterator[None]:
    yield None


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str, str | None]]:
    """Provider, outcome and traceparent of each call."""
    told: list[tuple[str, str, str | None]] = []

    def observe(provider: str, outcome: str, seconds: float, traceparent: str | None) -> None:
        assert seconds >= 0
        told.append((provider, outcome, traceparent))

    monkeypatch.setattr(calls, "observe", observe)
    return told


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
def test_a_call_of_ones_own_is_counted_by_what_leaves_its_block(
    error: BaseException, outcome: str, told: list[tuple[str, str, str | None]]
) -> None:
    around = TRACE.set("00-trace")
    with billing.call("POST /charges") as span:
        span.note("http.response.status_code", 200)
    with pytest.raises(type(error)), billing.call("POST /charges"):
        raise error
    TRACE.reset(around)
    assert told == [("billing", "succeeded", "00-trace"), ("billing", outcome, "00-trace")]


def test_a_failure_that_is_returned_counts_by_its_class_and_one_that_nobody_knows_as_a_crash(
    told: list[tuple[str, str, str | None]],
) -> None:
    for error_class in ("Permanent", "", "ann@example.org"):
        with billing.call("POST /charges") as span:
            span.failed("402", error_class)
    assert [outcome for _, outcome, _ in told] == ["Permanent", "crashed", "crashed"]


def test_a_call_of_ones_own_is_a_span_with_its_name_and_attributes(monkeypatch: pytest.MonkeyPatch) -> None:
    begun: list[tuple[str, Mapping[str, Value]]] = []

    def record(name: str, attributes: Mapping[str, Value]) -> Unrecorded:
        begun.append((name, attributes))
        return Unrecorded()

    monkeypatch.setattr(calls, "record", record)
    with billing.call("POST /charges", {"http.request.method": "POST"}):
        pass
    assert begun == [("POST /charges", {"http.request.method": "POST"})]
