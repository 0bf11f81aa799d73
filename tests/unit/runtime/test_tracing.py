from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import pytest
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from handlers.providers import calls
from handlers.providers.calls import TRACE
from handlers.runtime import message_spans, tracing
from handlers.runtime.message_spans import Destination
from handlers.runtime.telemetry_settings import OtelSettings
from handlers.runtime.trace_export import Pipeline
from handlers.store.claims import Claim
from handlers.tasks.decision import succeeded

SECRET = "bob@example.org"
SAMPLED = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
UNSAMPLED = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-00"
SOURCE = Destination("tasks.email", "workers")


@pytest.fixture
def kept() -> Iterator[InMemorySpanExporter]:
    """What was recorded, at a ratio of one half."""
    exporter = InMemorySpanExporter()
    tracing.install(Pipeline(OtelSettings(sample_ratio=0.5), "test", SimpleSpanProcessor(exporter)))
    yield exporter
    tracing.install(None)


def claim(version: int, attempt: int, traceparent: str = SAMPLED, replays: int = 0, handbacks: int = 0) -> Claim:
    values: dict[str, Any] = dict.fromkeys(Claim._fields)
    return Claim(
        **values
        | {
            "id": UUID(int=1),
            "version": version,
            "attempt": attempt,
            "replays": replays,
            "handbacks": handbacks,
            "traceparent": traceparent,
            "created_at": datetime(2026, 1, 1, tzinfo=UTC),
        }
    )


def test_without_an_endpoint_nothing_is_sampled_whatever_a_caller_says() -> None:
    assert not tracing.sampled(SAMPLED)
    assert tracing.new_traceparent().endswith("-02")
    assert calls.call("smtp", "SMTP send", {}) is calls.call("smtp", "another", {})
    assert message_spans.receiving(SOURCE, [SAMPLED]) is tracing.UNRECORDED
    assert message_spans.processing(SOURCE, claim(2, 1), None, None) is tracing.UNRECORDED


def test_the_callers_flag_is_followed(kept: InMemorySpanExporter) -> None:
    assert tracing.sampled(SAMPLED)
    assert not tracing.sampled(UNSAMPLED)
    assert not tracing.sampled(None)
    assert not tracing.sampled("")


def test_the_ratio_decides_where_nobody_did(kept: InMemorySpanExporter) -> None:
    drawn = [tracing.sampled(tracing.new_traceparent()) for _ in range(2000)]
    assert 850 < sum(drawn) < 1150


def test_a_call_to_a_provider_is_recorded_within_a_recorded_attempt_only(kept: InMemorySpanExporter) -> None:
    with calls.call("smtp", "outside", {}):
        pass
    for around in (UNSAMPLED, SAMPLED):
        token = TRACE.set(around)
        with calls.call("smtp", f"in {around[-2:]}", {"server.port": 25}) as call:
            call.note("code", 250)
        TRACE.reset(token)
    (span,) = kept.get_finished_spans()
    assert span.name == "in 01"
    assert span.parent is not None
    assert f"{span.parent.span_id:016x}" == SAMPLED[36:52]
    assert span.attributes == {"server.port": 25, "code": 250}


def test_an_error_is_recorded_by_class_and_place_and_never_by_what_it_says(kept: InMemorySpanExporter) -> None:
    token = TRACE.set(SAMPLED)
    with pytest.raises(ValueError), calls.call("smtp", "SMTP send", {}):
        raise ValueError(f"{SECRET} is unknown")
    TRACE.reset(token)
    (span,) = kept.get_finished_spans()
    assert not span.status.is_ok
    assert SECRET not in span.to_json()
    assert "test_tracing.py" in span.to_json()


def test_a_batch_is_recorded_only_if_a_message_of_it_is(kept: InMemorySpanExporter) -> None:
    with message_spans.receiving(SOURCE, [UNSAMPLED, None]) as span:
        assert span is None
    with message_spans.receiving(SOURCE, [UNSAMPLED, SAMPLED, None]) as span:
        assert span is not None
    (recorded,) = kept.get_finished_spans()
    assert recorded.attributes is not None
    assert recorded.attributes["messaging.batch.message_count"] == 3
    assert len(recorded.links) == 1


def test_what_serves_several_requests_is_linked_from_each(kept: InMemorySpanExporter) -> None:
    first, second = (tracing.request(None, f"00-{number * 32}-{number * 16}-03", {}) for number in "12")
    assert first is not None
    assert second is not None
    with first, second:
        both = [first.traceparent, second.traceparent]
        with tracing.batch("insert tasks", "CLIENT", both, {}, size="db.operation.batch.size") as insert:
            assert insert is not None
    found = {span.get_span_context().trace_id: span for span in kept.get_finished_spans() if span.name == "HTTP"}  # type: ignore[union-attr]
    (batch,) = [span for span in kept.get_finished_spans() if span.name == "insert tasks"]
    context = batch.get_span_context()
    assert context is not None
    assert [len(span.links) for span in found.values()].count(1) == 1  # the other is its parent
    (link,) = next(span.links for span in found.values() if span.links)
    assert link.context.span_id == context.span_id


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (claim(2, 1), claim(4, 2)),
        (claim(2, 1), claim(4, 1, handbacks=1)),
        (claim(7, 4), claim(10, 1, replays=1)),
        (claim(10, 1, replays=1), claim(12, 2, replays=1)),
    ],
    ids=["retry", "hand-back", "replay", "retry of a replay"],
)
def test_an_attempt_links_to_the_one_before_it(kept: InMemorySpanExporter, before: Claim, after: Claim) -> None:
    for each in (before, after):
        with message_spans.processing(SOURCE, each, None, None) as attempt:
            assert attempt is not None
            attempt.decided(succeeded(None))
    first, second = kept.get_finished_spans()
    assert first.get_span_context() is not None
    assert second.links[-1].context.span_id == first.get_span_context().span_id  # type: ignore[union-attr]


def test_a_first_attempt_links_to_none_before_it(kept: InMemorySpanExporter) -> None:
    with message_spans.processing(SOURCE, claim(3, 1), None, None):
        pass
    (span,) = kept.get_finished_spans()
    assert span.links == ()


def test_spans_of_a_handlers_own_stand_in_its_recorded_attempt(kept: InMemorySpanExporter) -> None:
    from opentelemetry import trace

    with message_spans.processing(SOURCE, claim(2, 1), None, None) as attempt:
        assert attempt is not None
        inside = trace.get_current_span().get_span_context()
        assert f"{inside.span_id:016x}" == attempt.traceparent[36:52]
    assert not trace.get_current_span().get_span_context().is_valid


def test_a_record_of_another_trace_is_not_followed(kept: InMemorySpanExporter) -> None:
    other = f"00-{'9' * 32}-{'8' * 16}-01"
    with message_spans.processing(SOURCE, claim(2, 1), other, None):
        pass
    (span,) = kept.get_finished_spans()
    assert span.parent is not None
    assert f"{span.parent.span_id:016x}" == SAMPLED[36:52]
