from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import pytest
from opentelemetry import context, trace
from opentelemetry.context import Context
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF, ParentBased

from taskflux.store.claims import Claim
from taskflux.tasks.decision import succeeded
from taskflux.telemetry import calls, message_spans, tracing
from taskflux.telemetry.calls import TRACE
from taskflux.telemetry.message_spans import Destination
from taskflux.telemetry.request_spans import request
from taskflux.telemetry.settings import OtelSettings
from taskflux.telemetry.span_encoding import MOST_LINKS
from taskflux.telemetry.trace_export import Foreign, Pipeline
from taskflux.worker.intake import INSERT
from tests.integration.tracing.receiver import Receiver, Span

SECRET = "bob@example.org"
SAMPLED = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
UNSAMPLED = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-00"
SOURCE = Destination("tasks.email", "workers")


class Kept:
    """What was recorded, as a receiver reads it."""

    def __init__(self) -> None:
        self._receiver = Receiver()
        self.pipeline = Pipeline(OtelSettings(sample_ratio=0.5), "test", self)

    def send(self, request: bytes) -> bool:
        return self._receiver.take("/v1/traces", {}, request) == 200

    def close(self) -> None:
        pass

    @property
    def spans(self) -> list[Span]:
        """In the order of their beginning."""
        self.pipeline.flush()
        return self._receiver.spans


@pytest.fixture
def kept() -> Iterator[Kept]:
    """What was recorded, at a ratio of one half."""
    kept = Kept()
    tracing.install(kept.pipeline)
    ours, theirs = TRACE.set(None), context.attach(Context())  # an attempt leaves its own to the rest of its task
    yield kept
    context.detach(theirs)
    TRACE.reset(ours)
    tracing.close()


def claim(attempt: int = 1, before: str | None = None, replays: int = 0) -> Claim:
    values: dict[str, Any] = dict.fromkeys(Claim._fields)
    return Claim(
        **values
        | {
            "id": UUID(int=1),
            "version": 2 * attempt,
            "attempt": attempt,
            "replays": replays,
            "traceparent": SAMPLED,
            "attempt_span": before,
            "created_at": datetime(2026, 1, 1, tzinfo=UTC),
        }
    )


def test_without_an_endpoint_nothing_is_sampled_whatever_a_caller_says() -> None:
    assert not tracing.sampled(SAMPLED)
    assert tracing.new_traceparent().endswith("-02")
    assert calls.call("smtp", "SMTP send", {}) is calls.call("smtp", "another", {})
    assert message_spans.receiving(SOURCE, [SAMPLED]) is tracing.UNRECORDED
    assert message_spans.processing(SOURCE, claim(), None, None) is tracing.UNRECORDED


def test_the_callers_flag_is_followed(kept: Kept) -> None:
    assert tracing.sampled(SAMPLED)
    assert not tracing.sampled(UNSAMPLED)
    assert not tracing.sampled(None)
    assert not tracing.sampled("")


def test_the_ratio_decides_where_nobody_did(kept: Kept) -> None:
    drawn = [tracing.sampled(tracing.new_traceparent()) for _ in range(2000)]
    assert 850 < sum(drawn) < 1150


def test_a_call_to_a_provider_is_recorded_within_a_recorded_attempt_only(kept: Kept) -> None:
    with calls.call("smtp", "outside", {}):
        pass
    for around in (UNSAMPLED, SAMPLED):
        token = TRACE.set(around)
        with calls.call("smtp", f"in {around[-2:]}", {"server.port": 25}) as call:
            call.note("code", 250)
        TRACE.reset(token)
    (span,) = kept.spans
    assert span.name == "in 01"
    assert span.parent == SAMPLED[36:52]
    assert span.attributes == {"server.port": 25, "code": 250}


def test_an_error_is_recorded_by_class_and_place_and_never_by_what_it_says(kept: Kept) -> None:
    token = TRACE.set(SAMPLED)
    with pytest.raises(ValueError), calls.call("smtp", "SMTP send", {}):
        raise ValueError(f"{SECRET} is unknown")
    TRACE.reset(token)
    (span,) = kept.spans
    assert span.failed
    ((name, about),) = span.events
    assert name == "exception"
    assert about["exception.type"] == "ValueError"
    assert "test_tracing.py" in about["exception.stacktrace"]
    assert SECRET not in str(span)


def test_a_batch_is_recorded_only_if_a_message_of_it_is(kept: Kept) -> None:
    with message_spans.receiving(SOURCE, [UNSAMPLED, None]) as span:
        assert span is None
    with message_spans.receiving(SOURCE, [UNSAMPLED, SAMPLED, None]) as span:
        assert span is not None
    (recorded,) = kept.spans
    assert recorded.attributes["messaging.batch.message_count"] == 3
    assert len(recorded.links) == 1


def test_what_serves_several_requests_is_linked_from_each(kept: Kept) -> None:
    first, second = (request(None, f"00-{number * 32}-{number * 16}-03", {}) for number in "12")
    with first, second:
        both = [first.traceparent, second.traceparent]
        with tracing.batch(INSERT, both, size="db.operation.batch.size") as insert:
            assert insert is not None
    requests = [span for span in kept.spans if span.name == "HTTP"]
    (batch,) = [span for span in kept.spans if span.name == "insert tasks"]
    assert [span.links for span in requests if span.id == batch.parent] == [()]
    assert [span.links for span in requests if span.id != batch.parent] == [(batch.place,)]


def test_an_attempt_links_to_its_claim_and_to_the_one_before_it(kept: Kept) -> None:
    with message_spans.processing(SOURCE, claim(1), None, None) as first:
        assert first is not None
        first.decided(succeeded(None))
    with message_spans.processing(SOURCE, claim(2, first.traceparent), None, SAMPLED):
        pass
    before, after = kept.spans
    assert before.links == ()
    assert after.links == ((SAMPLED[3:35], SAMPLED[36:52]), before.place)


def test_spans_of_a_handlers_own_stand_in_its_recorded_attempt(kept: Kept) -> None:
    assert not trace.get_current_span().get_span_context().is_valid
    with message_spans.processing(SOURCE, claim(), None, None) as attempt:
        assert attempt is not None
        inside = trace.get_current_span().get_span_context()
        assert f"{inside.span_id:016x}" == attempt.traceparent[36:52]


def test_a_record_of_another_trace_is_not_followed(kept: Kept) -> None:
    other = f"00-{'9' * 32}-{'8' * 16}-01"
    with message_spans.processing(SOURCE, claim(), other, None):
        pass
    (span,) = kept.spans
    assert span.parent == SAMPLED[36:52]


def test_a_span_says_the_same_before_and_after_its_operation_was_encoded(kept: Kept) -> None:
    operation = tracing.Operation("look", "CLIENT", {"db.system.name": "postgresql"})
    about: dict[str, calls.Value] = {"text": "ü" * 300, "count": -1, "share": 0.5, "yes": True}
    for _ in range(2):
        tracing.Span(operation, about, parent=SAMPLED, links=(SAMPLED,), began=7).end()
    first, second = kept.spans
    assert first == replace(second, id=first.id, ended=first.ended)
    assert (first.name, first.kind, first.began) == ("look", "CLIENT", 7)
    assert first.attributes == {"db.system.name": "postgresql", **about}
    assert first.place != first.links[0] == (SAMPLED[3:35], SAMPLED[36:52])


@pytest.mark.parametrize("nothing", [object(), "\ud800", 2**70], ids=["object", "surrogate", "too large"])
def test_an_attribute_that_cannot_be_carried_costs_its_span_and_nothing_else(
    kept: Kept, nothing: Any, caplog: pytest.LogCaptureFixture
) -> None:
    tracing.Span(tracing.Operation("bad", "INTERNAL"), {"it": nothing}, parent=SAMPLED).end()
    tracing.Span(tracing.Operation("good", "INTERNAL"), {"it": 1}, parent=SAMPLED).end()
    assert [span.name for span in kept.spans] == ["good"]
    assert [vars(record)["spans"] for record in caplog.records] == [1]


def test_more_links_than_a_receiver_takes_are_dropped(kept: Kept) -> None:
    links = tuple(f"00-{number:032x}-{number:016x}-01" for number in range(1, MOST_LINKS + 11))
    tracing.Span(tracing.Operation("many", "CLIENT"), parent=SAMPLED, links=links).end()
    (span,) = kept.spans
    assert len(span.links) == MOST_LINKS


def test_spans_that_a_handlers_own_instrumentation_records_are_exported_with_ours(kept: Kept) -> None:
    theirs = TracerProvider(ParentBased(ALWAYS_OFF), Resource({"service.name": "theirs"}))
    theirs.add_span_processor(Foreign(kept.pipeline))
    tracer = theirs.get_tracer("some.library", "1.0", schema_url="https://example.org/schema")
    with tracer.start_as_current_span("in no attempt"):
        pass
    with message_spans.processing(SOURCE, claim(), None, None), tracer.start_as_current_span("theirs") as span:
        span.set_attributes({"rows": 3, "names": ["a", "b"]})
    process, inner = kept.spans
    assert (inner.name, inner.parent, inner.trace) == ("theirs", process.id, process.trace)
    assert inner.attributes["rows"] == 3
    assert inner.service == process.service


def test_a_span_of_a_handlers_own_that_cannot_be_carried_does_not_fail_its_work(
    kept: Kept, caplog: pytest.LogCaptureFixture
) -> None:
    theirs = TracerProvider(ParentBased(ALWAYS_OFF), Resource({}))
    theirs.add_span_processor(Foreign(kept.pipeline))
    tracer = theirs.get_tracer("some.library")
    with message_spans.processing(SOURCE, claim(), None, None), tracer.start_as_current_span("\ud800"):
        pass
    assert [span.name for span in kept.spans] == ["process tasks.email"]
    assert [vars(record)["spans"] for record in caplog.records] == [1]
