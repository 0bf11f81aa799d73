from __future__ import annotations

from datetime import UTC, datetime
from typing import Any
from uuid import UUID

from opentelemetry import trace

from taskflux.store.claims import Claim
from taskflux.telemetry import tracing
from taskflux.worker.attempt import attempt_span
from tests.unit.spans import SAMPLED, Spans

SOURCE = tracing.Destination("tasks.email", "workers")
RECEIVED = f"{SAMPLED[:36]}{'7' * 16}-01"


def claim(attempt: int = 1, before: str | None = None, replays: int = 0) -> Claim:
    values: dict[str, Any] = dict.fromkeys(Claim._fields)
    given = {
        "id": UUID(int=1),
        "version": 2 * attempt,
        "attempt": attempt,
        "replays": replays,
        "traceparent": SAMPLED,
        "attempt_span": before,
        "created": datetime(2026, 1, 1, tzinfo=UTC).timestamp(),
    }
    return Claim(**values | given)


def test_a_first_attempt_says_whose_it_is_and_links_to_its_claim(spans: Spans) -> None:
    with attempt_span(SOURCE, claim(), None, RECEIVED):
        pass
    (span,) = spans.all()
    assert (span.name, span.kind, span.parent) == ("process tasks.email", "CONSUMER", SAMPLED[36:52])
    assert span.attributes["messaging.message.id"] == str(UUID(int=1))
    assert span.attributes["taskflux.attempt"] == 1
    assert "taskflux.replay" not in span.attributes
    assert span.links == ((SAMPLED[3:35], "7" * 16),)


def test_an_attempt_links_to_its_claim_and_to_the_one_before_it(spans: Spans) -> None:
    with attempt_span(SOURCE, claim(), None, None) as first:
        pass
    with attempt_span(SOURCE, claim(2, first.traceparent, replays=1), None, RECEIVED):
        pass
    before, after = spans.all()
    assert before.links == ()
    assert after.links == ((SAMPLED[3:35], "7" * 16), before.place)
    assert after.attributes["taskflux.replay"] == 1


def test_an_attempt_stands_below_its_record_unless_that_is_of_another_trace(spans: Spans) -> None:
    for sent in (RECEIVED, f"00-{'9' * 32}-{'8' * 16}-01"):
        with attempt_span(SOURCE, claim(), sent, None):
            pass
    assert [span.parent for span in spans.all()] == ["7" * 16, SAMPLED[36:52]]


def test_a_span_that_a_handler_opens_itself_stands_in_its_attempt(spans: Spans) -> None:
    tracer = spans.provider.get_tracer("some.library", "1.0", schema_url="https://example.org/schema")
    assert not trace.get_current_span().get_span_context().is_valid
    with attempt_span(SOURCE, claim(), None, None), tracer.start_as_current_span("theirs") as span:
        span.set_attributes({"rows": 3, "names": ["a", "b"]})
    process, inner = spans.all()
    assert (inner.name, inner.parent, inner.trace) == ("theirs", process.id, process.trace)
    assert inner.attributes["rows"] == 3
