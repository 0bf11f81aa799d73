from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from handlers.runtime.peers import merge


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
