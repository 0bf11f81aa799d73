from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

import prometheus_client
import pytest
from prometheus_client import REGISTRY, CollectorRegistry

from taskflux.telemetry import instruments
from taskflux.telemetry.instruments import OTHER, Counter, Gauge, Histogram, Label, Snapshot

BUCKETS = (0.001, 0.01, 0.1, 1.0, 10.0)


@pytest.fixture
def forgotten() -> Iterator[None]:
    """What a test has shown in the registry is taken out again."""
    before = set(REGISTRY._collector_to_names)
    yield
    for collector in set(REGISTRY._collector_to_names) - before:
        REGISTRY.unregister(collector)


def samples(name: str) -> dict[tuple[str, ...], float]:
    return {
        (sample.name, *sample.labels.values()): sample.value
        for family in REGISTRY.collect()
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


def test_a_metric_is_shown_from_its_first_use_on(forgotten: None) -> None:
    counter = Counter("test_used_total", "…", Label("type"), by="tests")
    assert samples("test_used") == {}
    counter.labels("email")
    assert samples("test_used") == {("test_used_total", "email"): 0.0}


def test_a_metric_without_labels_is_its_only_series(forgotten: None) -> None:
    gauge = Gauge("test_alone", "…", by="tests")
    gauge.labels().set(3)
    gauge.labels().inc()
    assert samples("test_alone") == {("test_alone",): 4.0}


def test_a_gauge_follows_whoever_lives(forgotten: None) -> None:
    class Pool:
        used = 2

    gauge, first, second = Gauge("test_followed", "…", by="tests"), Pool(), Pool()
    for pool in (first, second, second):
        gauge.labels().follow(pool, lambda each: each.used)
    second.used = 5
    assert samples("test_followed") == {("test_followed",): 7.0}
    del pool, second
    assert samples("test_followed") == {("test_followed",): 2.0}


def test_series_are_there_from_the_start_with_all_values_that_are_declared_but_other(forgotten: None) -> None:
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


def test_a_snapshot_that_is_looked_at_while_it_changes_is_whole(forgotten: None) -> None:
    snapshot = Snapshot("test_whole", "…", Label("type"))
    snapshot.show({("a",): 1, ("b",): 1})
    looking = snapshot.collect()
    family = next(looking)
    snapshot.show({("c",): 2})
    assert [sample.labels["type"] for sample in family.samples] == ["a", "b"]


def test_a_process_that_counts_nothing_shows_nothing(forgotten: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(instruments, "_off", False)
    instruments.switch_off()
    assert instruments.switched_off()
    counter = Counter("test_off_total", "…", Label("type"), by="tests")
    snapshot = Snapshot("test_off_depth", "…", Label("type"))
    series: Any = counter.labels("email")
    series.inc(2)
    counter.zeros("email")
    for method in (series.observe, series.set, series.dec):
        method(1)
    series.observe_all([1])
    series.follow(counter, lambda owner: 1)
    snapshot.show({("email",): 1})
    assert samples("test_off") == samples("test_off_depth") == {}
