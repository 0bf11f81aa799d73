from __future__ import annotations

import json
import subprocess
import sys

import pytest

from taskflux.store.tasks import INSERT
from taskflux.telemetry import tracing
from taskflux.telemetry.tracing import TRACE, UNTRACED, Operation
from tests.unit.spans import SAMPLED, UNSAMPLED, Spans

RECEIVE = tracing.messaging("receive", "tasks.email", "CLIENT", "workers", stored=True)
LOOK = Operation("look", "CLIENT", {"db.system.name": "postgresql"})


def test_while_tracing_is_off_nothing_is_sampled_whatever_the_callers_flag() -> None:
    assert not tracing.on
    assert not tracing.sampled(SAMPLED)
    assert tracing.exemplar(SAMPLED) is None
    assert tracing.new_traceparent().endswith("-02")


def test_while_tracing_is_off_opentelemetry_is_not_even_loaded() -> None:
    script = (
        "import sys, json\n"
        "from taskflux.handlers import dlq_sink, ingest, notify, process_email, process_sms, relay, router\n"
        "print(json.dumps([name for name in sys.modules if name.startswith(('opentelemetry', 'requests'))]))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == []


def test_the_callers_flag_is_followed(spans: Spans) -> None:
    assert tracing.sampled(SAMPLED)
    assert not tracing.sampled(UNSAMPLED)
    assert not tracing.sampled(None)
    assert not tracing.sampled("")


def test_without_a_callers_flag_the_sampler_decides(spans: Spans) -> None:
    drawn = [tracing.sampled(tracing.start(LOOK, parent=None).traceparent) for _ in range(2000)]
    assert 850 < sum(drawn) < 1150


def test_a_span_is_recorded_as_it_was_described(spans: Spans) -> None:
    about: dict[str, tracing.Value] = {"text": "ü" * 300, "count": -1, "share": 0.5, "yes": True}
    with tracing.start(LOOK, about, parent=SAMPLED, links=[SAMPLED], began=7) as span:
        assert TRACE.get() == span.traceparent
        span.note("later", "too")
    assert TRACE.get() is None
    (kept,) = spans.all()
    assert (kept.name, kept.kind, kept.began, kept.parent) == ("look", "CLIENT", 7, SAMPLED[36:52])
    assert kept.attributes == {"db.system.name": "postgresql", **about, "later": "too"}
    assert kept.place == (span.traceparent[3:35], span.traceparent[36:52])
    assert kept.links == ((SAMPLED[3:35], SAMPLED[36:52]),)


def test_a_batch_is_recorded_only_if_a_message_of_it_is(spans: Spans) -> None:
    assert tracing.batch(RECEIVE, [UNSAMPLED, None]) is UNTRACED
    with tracing.batch(RECEIVE, [UNSAMPLED, SAMPLED, None]) as span:
        assert span is not None
    (kept,) = spans.all()
    assert kept.attributes["messaging.batch.message_count"] == 3
    assert kept.attributes["db.system.name"] == "postgresql"
    assert len(kept.links) == 1


def request(trace: str, flags: str = "01") -> tracing.Span:
    header = f"00-{trace * 32}-{trace * 16}-{flags}".encode()
    return tracing.request([(b"host", b"test"), (b"traceparent", header)], {"url.scheme": "http"})


def test_a_batch_that_serves_several_requests_is_linked_from_each(spans: Spans) -> None:
    with request("1") as first, request("2") as second, tracing.batch(INSERT, [first.traceparent, second.traceparent]):
        pass
    requests = [span for span in spans.all() if span.name == "HTTP"]
    (batch,) = [span for span in spans.all() if span.name == "insert tasks"]
    assert [span.links for span in requests if span.id == batch.parent] == [()]
    assert [span.links for span in requests if span.id != batch.parent] == [(batch.place,)]


def test_a_request_that_asks_about_a_task_is_linked_to_its_trace(spans: Spans) -> None:
    tracing.link_request(SAMPLED)  # of no request: nothing happens
    with request("1"):
        tracing.link_request(UNSAMPLED)
        tracing.link_request(SAMPLED)
    tracing.link_request(SAMPLED)
    (span,) = spans.all()
    assert span.links == ((SAMPLED[3:35], SAMPLED[36:52]),)


def test_a_request_goes_on_with_its_callers_trace_or_begins_one(spans: Spans) -> None:
    assert not tracing.sampled(request("1", "00").traceparent)
    assert request("1", "00").traceparent[3:35] == "1" * 32
    with request("1") as span:
        assert tracing.trace_id(span.traceparent) == "1" * 32
    assert tracing.trace_id(tracing.request([(b"traceparent", b"nonsense")], {}).traceparent).strip("0")
    assert [span.parent for span in spans.all()] == ["1" * 16]


def test_the_current_trace_is_passed_to_a_service_of_ours(spans: Spans) -> None:
    assert tracing.outgoing() == {}
    for traceparent in (SAMPLED, UNSAMPLED):
        token = TRACE.set(traceparent)
        assert tracing.outgoing() == {"traceparent": traceparent}
        TRACE.reset(token)


def test_the_current_trace_is_passed_even_while_nothing_is_recorded() -> None:
    token = TRACE.set(UNSAMPLED)
    assert tracing.outgoing() == {"traceparent": UNSAMPLED}
    TRACE.reset(token)


@pytest.mark.parametrize("nothing", ["\ud800", 2**70], ids=["surrogate", "too large"])
def test_an_attribute_that_cannot_be_encoded_is_dropped_alone(
    spans: Spans, nothing: tracing.Value, caplog: pytest.LogCaptureFixture
) -> None:
    tracing.start(LOOK, {"bad": nothing, "good": 1}, parent=SAMPLED).end()
    (span,) = spans.all()
    assert span.attributes == {"db.system.name": "postgresql", "good": 1}


class Mute(Exception):
    """An error whose class answers nothing about it."""

    def __getattribute__(self, name: str) -> object:
        raise SystemExit(name)


def test_an_error_of_a_broken_class_is_recorded_by_its_name(spans: Spans) -> None:
    with pytest.raises(Mute), tracing.start(LOOK, parent=SAMPLED):
        raise Mute
    (kept,) = spans.all()
    assert kept.attributes["error.type"] == "Mute"
