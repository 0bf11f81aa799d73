from __future__ import annotations

import gzip
import random
from collections.abc import Iterator
from typing import Any
from urllib.error import HTTPError
from urllib.request import ProxyHandler, Request, build_opener

import prometheus_client
import pytest
from prometheus_client import CollectorRegistry
from prometheus_client.openmetrics.parser import text_string_to_metric_families as open_metrics
from prometheus_client.parser import text_string_to_metric_families as plain_text

from taskflux.telemetry import instruments, metrics
from taskflux.telemetry.instruments import (
    OTHER,
    Counter,
    Gauge,
    Histogram,
    Label,
    Snapshot,
    chosen,
    packed,
    registry,
    shown,
)
from taskflux.worker.process import Health, ProbeServer
from taskflux.worker.settings import HttpSettings

BUCKETS = (0.001, 0.01, 0.1, 1.0, 10.0)
PROMETHEUS = (
    "application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.6,"
    "application/openmetrics-text;version=0.0.1;q=0.5,text/plain;version=1.0.0;escaping=allow-utf-8;q=0.4,"
    "text/plain;version=0.0.4;q=0.3,*/*;q=0.2"
)
"""What Prometheus 3 sends."""

OPEN_METRICS = "application/openmetrics-text; version=1.0.0; charset=utf-8"
TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"


@pytest.fixture
def forgotten() -> Iterator[None]:
    """What a test has shown in the registry is taken out again."""
    before = set(registry()._collector_to_names)
    yield
    for collector in set(registry()._collector_to_names) - before:
        registry().unregister(collector)


def samples(name: str) -> dict[tuple[str, ...], float]:
    return {
        (sample.name, *sample.labels.values()): sample.value
        for family in registry().collect()
        if family.name == name
        for sample in family.samples
    }


def test_observations_fall_into_the_buckets_that_the_library_puts_them_into(forgotten: None) -> None:
    draw = random.Random(7)
    amounts = [*BUCKETS, 0.0, 0.0005, 11.0, *(draw.lognormvariate(-3, 3) for _ in range(500))]
    theirs = prometheus_client.Histogram("test_seconds", "…", buckets=BUCKETS, registry=CollectorRegistry())
    one_by_one, together = (
        Histogram("test_one", "…", buckets=BUCKETS, by="tests"),
        Histogram("test_many", "…", buckets=BUCKETS, by="tests"),
    )
    for amount in amounts:
        theirs.observe(amount)
        one_by_one.labels().observe(amount)
    together.labels().observe_all(amounts)
    (expected,) = theirs.collect()
    for ours in (one_by_one, together):
        (found,) = ours.collect()
        assert [each.labels for each in found.samples] == [each.labels for each in expected.samples]
        assert [each.value for each in found.samples] == pytest.approx([each.value for each in expected.samples])


def test_no_observations_are_no_observations(forgotten: None) -> None:
    histogram = Histogram("test_none", "…", buckets=BUCKETS, by="tests")
    histogram.labels().observe_all([])
    assert {sample.value for sample in next(iter(histogram.collect())).samples} == {0.0}


def test_a_metric_is_exposed_from_its_first_use_on(forgotten: None) -> None:
    counter = Counter("test_used_total", "…", Label("type"), by="tests")
    assert samples("test_used") == {}
    counter.labels("email")
    assert samples("test_used") == {("test_used_total", "email"): 0.0}


def test_a_metric_without_labels_is_its_only_series(forgotten: None) -> None:
    gauge = Gauge("test_alone", "…", by="tests")
    gauge.labels().set(3)
    gauge.labels().set(4)
    assert samples("test_alone") == {("test_alone",): 4.0}


def test_a_gauge_follows_its_owners_while_they_live(forgotten: None) -> None:
    class Pool:
        used = 2

    gauge, first, second = Gauge("test_followed", "…", by="tests"), Pool(), Pool()
    for pool in (first, second, second):
        gauge.labels().follow(pool, lambda each: each.used)
    second.used = 5
    assert samples("test_followed") == {("test_followed",): 7.0}
    del pool, second
    assert samples("test_followed") == {("test_followed",): 2.0}


def test_series_exist_from_the_start_with_all_declared_values_except_other(forgotten: None) -> None:
    outcomes, hows = Label("outcome", ("done", "failed", OTHER)), Label("how", ("a", "b"))
    counter = Counter("test_zeros_total", "…", Label("type"), outcomes, hows, by="tests")
    counter.zeros("email")
    assert [labels for _, *labels in samples("test_zeros")] == [
        ["email", "done", "a"], ["email", "done", "b"], ["email", "failed", "a"], ["email", "failed", "b"],
    ]  # fmt: skip
    counter.zeros(["sms"], "done", ("b",))
    assert [labels for _, *labels in samples("test_zeros")][4:] == [["sms", "done", "b"]]


def test_a_series_needs_a_value_for_each_label(forgotten: None) -> None:
    with pytest.raises(ValueError, match="has 1 labels, not 2"):
        Counter("test_labels_total", "…", Label("type"), by="tests").labels("email", "done")


def test_a_snapshot_shows_its_last_series_and_no_others(forgotten: None) -> None:
    snapshot = Snapshot("test_depth", "…", Label("type"), Label("state"))
    snapshot.show({("email", "due"): 1, ("sms", "due"): 2})
    snapshot.show({("sms", "due"): 3})
    assert samples("test_depth") == {("test_depth", "sms", "due"): 3.0}
    snapshot.clear()
    assert samples("test_depth") == {}


def test_a_snapshot_that_is_read_while_it_changes_is_whole(forgotten: None) -> None:
    snapshot = Snapshot("test_whole", "…", Label("type"))
    snapshot.show({("a",): 1, ("b",): 1})
    looking = snapshot.collect()
    family = next(looking)
    snapshot.show({("c",): 2})
    assert [sample.labels["type"] for sample in family.samples] == ["a", "b"]


def test_the_probes_of_a_handler_answer_to_its_names_alone() -> None:
    server = ProbeServer(HttpSettings(host="127.0.0.1", port=0, allowed_hosts="localhost"), Health())
    server.start()
    ask = build_opener(ProxyHandler({})).open
    try:
        for path in ("livez", "readyz", "metrics"):
            with pytest.raises(HTTPError, match="400"):
                ask(Request(f"http://127.0.0.1:{server.port}/{path}", headers={"Host": "attacker.example"}))
        for host in ("localhost", f"127.0.0.1:{server.port}"):
            with ask(Request(f"http://127.0.0.1:{server.port}/livez", headers={"Host": host})) as answer:
                assert answer.read() == b"ok"
    finally:
        server.stop()


def test_a_process_that_counts_nothing_exposes_nothing(forgotten: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(instruments, "_off", False)
    instruments.switch_off()
    assert instruments.switched_off()
    counter = Counter("test_off_total", "…", Label("type"), by="tests")
    snapshot = Snapshot("test_off_depth", "…", Label("type"))
    series: Any = counter.labels("email")
    series.inc(2)
    counter.zeros("email")
    for method in (series.observe, series.set):
        method(1)
    series.observe_all([1])
    series.follow(counter, lambda owner: 1)
    snapshot.show({("email",): 1})
    assert samples("test_off") == samples("test_off_depth") == {}


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
def test_a_scraper_gets_the_format_that_it_prefers(accept: str, content_type: str) -> None:
    assert chosen(accept).content_type.startswith(content_type)


def test_both_formats_can_be_read_and_agree() -> None:
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


def test_only_openmetrics_has_exemplars() -> None:
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
    names = {line.partition("{")[0].partition(" ")[0] for line in shown("")[0].decode().splitlines()}
    assert {name for name in names if name.endswith("_created")} == set()
    assert "taskflux_submitted_total" in names


@pytest.mark.parametrize(
    ("accepted", "smaller"),
    [("gzip", True), ("deflate, gzip;q=0.5", True), ("*", True), ("gzip;q=0", False), ("", False), ("br", False)],
)
def test_the_answer_is_compressed_for_clients_that_accept_it(accepted: str, smaller: bool) -> None:
    body = b"taskflux_leader 1\n" * 100
    found, headers = packed(body, "text/plain", accepted)
    assert (headers.get("Content-Encoding") == "gzip") is smaller
    assert (gzip.decompress(found) if smaller else found) == body
    assert (len(found) < len(body)) is smaller


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
