from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    disable_created_metrics,
    generate_latest,
)
from prometheus_client.openmetrics.parser import text_string_to_metric_families as read_open_metrics
from prometheus_client.parser import text_string_to_metric_families

from taskflux.local.ingest import merge
from taskflux.telemetry.instruments import chosen

disable_created_metrics()  # type: ignore[no-untyped-call]  # as in our processes


def text(**attempts: int) -> str:
    registry = CollectorRegistry()
    counter = Counter("taskflux_attempts", "Attempts by outcome.", ["outcome"], registry=registry)
    for outcome, count in attempts.items():
        counter.labels(outcome).inc(count)
    Histogram("taskflux_seconds", 'Seconds, "quoted"\\.', registry=registry, buckets=(1, 2)).observe(1.5)
    return generate_latest(registry).decode()


async def test_samples_of_all_handlers_stand_under_one_description() -> None:
    merged = await merge({"process-email": text(succeeded=3), "process-sms": text(succeeded=2, died=1)})
    assert merged.count("# TYPE taskflux_attempts_total counter") == 1
    families = {family.name: family for family in text_string_to_metric_families(merged)}
    attempts = {
        (sample.labels["handler"], sample.labels["outcome"]): sample.value
        for sample in families["taskflux_attempts"].samples
        if sample.name == "taskflux_attempts_total"
    }
    assert attempts == {
        ("process-email", "succeeded"): 3,
        ("process-sms", "succeeded"): 2,
        ("process-sms", "died"): 1,
    }
    buckets = [each for each in families["taskflux_seconds"].samples if each.name == "taskflux_seconds_bucket"]
    assert len(buckets) == 6
    assert {each.labels["le"] for each in buckets} == {"1.0", "2.0", "+Inf"}


async def test_label_values_survive_whatever_they_hold() -> None:
    registry = CollectorRegistry()
    Gauge("g", "A gauge.", ["path"], registry=registry).labels('a"b\\c\nd').set(1)
    merged = await merge({"relay": generate_latest(registry).decode()})
    (family,) = text_string_to_metric_families(merged)
    assert family.samples[0].labels == {"handler": "relay", "path": 'a"b\\c\nd'}


async def test_a_samples_own_handler_label_is_kept_under_another_name() -> None:
    (family,) = text_string_to_metric_families(await merge({"relay": 'up{handler="x"} 1\n'}))
    assert family.samples[0].labels == {"handler": "relay", "exported_handler": "x"}


async def test_a_text_that_cannot_be_read_is_left_out_and_named() -> None:
    merged = await merge({"relay": "up 1\n", "broken": 'a{b="c 1\n'})
    assert "# handler broken is left out" in merged
    assert [family.name for family in text_string_to_metric_families(merged)] == ["up"]


async def test_a_metric_of_another_type_is_left_out_and_named() -> None:
    merged = await merge({"one": "# TYPE a gauge\na 1\n", "two": "# TYPE a counter\na_total 2\n"})
    assert "# a of two is left out" in merged
    assert 'a{handler="one"} 1.0' in merged


def open_metrics(handler: str) -> str:
    registry = CollectorRegistry()
    Counter("taskflux_attempts", "Attempts.", registry=registry).inc(2)
    Gauge("taskflux_leader", "Leads.", registry=registry).set(1)
    seconds = Histogram("taskflux_seconds", "Seconds.", registry=registry, buckets=(1, 2))
    seconds.observe(1.5, {"trace_id": f"trace-of-{handler}"})
    return chosen("application/openmetrics-text").encode(registry).decode()


async def test_exemplars_survive_where_openmetrics_is_asked_for() -> None:
    texts = {name: open_metrics(name) for name in ("relay", "process-sms")}
    merged = await merge(texts, chosen("application/openmetrics-text"))
    assert merged.endswith("# EOF\n")
    assert merged.count("# EOF") == 1
    families = {family.name: family for family in read_open_metrics(merged)}  # type: ignore[no-untyped-call]
    assert {(each.labels["handler"], each.value) for each in families["taskflux_leader"].samples} == {
        ("relay", 1.0),
        ("process-sms", 1.0),
    }
    exemplars = {
        each.labels["handler"]: each.exemplar.labels["trace_id"]
        for each in families["taskflux_seconds"].samples
        if each.exemplar is not None
    }
    assert exemplars == {"relay": "trace-of-relay", "process-sms": "trace-of-process-sms"}


async def test_a_peer_that_knows_plain_text_alone_is_merged_into_openmetrics() -> None:
    texts = {"relay": open_metrics("relay"), "old": text(succeeded=3), "broken": "a{"}
    merged = await merge(texts, chosen("application/openmetrics-text"))
    (attempts,) = (each for each in read_open_metrics(merged) if each.name == "taskflux_attempts")  # type: ignore[no-untyped-call]
    assert {(each.labels["handler"], each.value) for each in attempts.samples if each.name.endswith("_total")} == {
        ("relay", 2.0),
        ("old", 3.0),
    }


async def test_handler_labels_never_take_each_others_place() -> None:
    (family,) = text_string_to_metric_families(await merge({"relay": 'up{handler="x",exported_handler="y"} 1\n'}))
    assert family.samples[0].labels == {"handler": "relay", "exported_handler": "y", "exported_exported_handler": "x"}
