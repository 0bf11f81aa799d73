from __future__ import annotations

import gzip
from collections.abc import Iterator
from urllib.error import HTTPError
from urllib.request import ProxyHandler, Request, build_opener

import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as open_metrics
from prometheus_client.parser import text_string_to_metric_families as plain_text

from taskflux.telemetry import instruments, metrics
from taskflux.telemetry.instruments import chosen, compressed, shown
from taskflux.worker.process import Health, ProbeServer
from taskflux.worker.settings import HttpSettings

PROMETHEUS = (
    "application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.6,"
    "application/openmetrics-text;version=0.0.1;q=0.5,text/plain;version=1.0.0;escaping=allow-utf-8;q=0.4,"
    "text/plain;version=0.0.4;q=0.3,*/*;q=0.2"
)
"""What Prometheus 3 sends."""

OPEN_METRICS = "application/openmetrics-text; version=1.0.0; charset=utf-8"
TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"


@pytest.mark.parametrize(
    ("accept", "content_type"),
    [
        (PROMETHEUS, OPEN_METRICS),
        ("application/openmetrics-text", OPEN_METRICS),
        ("application/openmetrics-text;version=1.0.0", OPEN_METRICS),
        ("application/openmetrics-text;version=0.0.1", "text/plain; version=0.0.4"),
        ("application/openmetrics-text;version=99.0.0", "text/plain; version=0.0.4"),
        ("application/openmetrics-text;q=0.2, text/plain;version=0.0.4;q=0.9", "text/plain; version=0.0.4"),
        ("text/plain;version=0.0.4;q=0.2, application/openmetrics-text;q=0.9", OPEN_METRICS),
        ("application/openmetrics-text;q=0", "text/plain; version=0.0.4"),
        ("application/openmetrics-text;q=high", "text/plain; version=0.0.4"),
        ("text/plain;version=1.0.0", "text/plain; version=1.0.0"),
        ("text/html,application/xhtml+xml,*/*;q=0.8", "text/plain; version=0.0.4"),
        ("image/png", "text/plain; version=0.0.4"),
        ("", "text/plain; version=0.0.4"),
        (",;q=,", "text/plain; version=0.0.4"),
    ],
)
def test_a_scraper_gets_what_it_likes_best(accept: str, content_type: str) -> None:
    assert chosen(accept).content_type.startswith(content_type)


def test_both_formats_can_be_read_and_tell_the_same() -> None:
    metrics.PROCESSING.labels("test-formats").observe(0.2, {"trace_id": TRACE})
    metrics.SUBMITTED.labels("test-formats", "accepted").inc()
    found = []
    for accept, read in (("", plain_text), (PROMETHEUS, open_metrics)):
        body, _ = shown(accept)
        found.append(
            {
                (sample.name, *sorted(sample.labels.items())): sample.value
                for family in read(body.decode())
                for sample in family.samples
                if sample.labels.get("type") == "test-formats"
            }
        )
    assert found[0] == found[1]
    assert found[0]["taskflux_submitted_total", ("outcome", "accepted"), ("type", "test-formats")] == 1


def test_exemplars_stand_in_openmetrics_alone() -> None:
    metrics.PROCESSING.labels("test-exemplars").observe(0.2, {"trace_id": TRACE})
    metrics.PROCESSING.labels("test-exemplars").observe(70.0)
    exemplars = [
        (sample.labels["le"], sample.exemplar)
        for family in open_metrics(shown(PROMETHEUS)[0].decode())  # type: ignore[no-untyped-call]
        for sample in family.samples
        if sample.exemplar is not None and sample.labels.get("type") == "test-exemplars"
    ]
    ((bucket, exemplar),) = exemplars
    assert (bucket, exemplar.labels, exemplar.value) == ("0.25", {"trace_id": TRACE}, 0.2)
    assert TRACE not in shown("")[0].decode()


def test_no_series_is_shown_twice_by_creation_times() -> None:
    metrics.SUBMITTED.labels("test-created", "accepted").inc()
    assert "_created" not in shown("")[0].decode()


@pytest.mark.parametrize(
    ("accepted", "smaller"),
    [("gzip", True), ("deflate, gzip;q=0.5", True), ("*", True), ("gzip;q=0", False), ("", False), ("br", False)],
)
def test_the_answer_is_compressed_for_who_takes_that(accepted: str, smaller: bool) -> None:
    body = b"taskflux_leader 1\n" * 100
    found = compressed(body, accepted)
    assert (found is not None) is smaller
    if found is not None:
        assert gzip.decompress(found) == body
        assert len(found) < len(body)


@pytest.fixture
def probes() -> Iterator[str]:
    server = ProbeServer(HttpSettings(host="127.0.0.1", port=0), Health())
    server.start()
    yield f"http://127.0.0.1:{server.port}"
    server.stop()


def test_the_probes_of_a_handler_negotiate(probes: str) -> None:
    metrics.LEADER.labels().set(0)
    ask = build_opener(ProxyHandler({})).open
    with ask(Request(f"{probes}/metrics", headers={"Accept": PROMETHEUS, "Accept-Encoding": "gzip"})) as answer:
        assert answer.headers["Content-Type"].startswith(OPEN_METRICS)
        assert answer.headers["Vary"] == "Accept, Accept-Encoding"
        assert gzip.decompress(answer.read()).decode().endswith("# EOF\n")
    with ask(f"{probes}/metrics") as answer:
        assert answer.headers["Content-Encoding"] is None
        assert b"taskflux_leader 0.0" in answer.read()


def test_a_process_that_counts_nothing_has_no_metrics(probes: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(instruments, "_off", True)
    with pytest.raises(HTTPError, match="404") as refused:
        build_opener(ProxyHandler({})).open(f"{probes}/metrics")
    assert "TASKFLUX_METRICS__ENABLED" in refused.value.read().decode()
    refused.value.close()
