"""What the metrics of a running TaskFlux show, and what they never contain."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from uuid import UUID, uuid4

import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as read_open_metrics
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.samples import Sample

from taskflux.http.problems import KINDS
from taskflux.stream.envelope import DeadTask, OutRecord, encode
from taskflux.stream.topics import dead_letter_topic, task_group, task_topic
from taskflux.telemetry.instruments import OTHER
from taskflux.telemetry.metrics import DECLARED, METHODS
from taskflux.version import VERSION
from tests.integration.system.scripted import World
from tests.integration.system.stack import Stack, eventually, total
from tests.statements import every_statement

PERSON = "somebody.private@example.org"
CLASS = re.compile(r"[A-Z][A-Za-z0-9]{0,49}")


async def text(stack: Stack) -> str:
    return (await stack.client.get("/metrics")).text


def ours(exposed: str) -> Iterator[Sample]:
    for family in text_string_to_metric_families(exposed):
        yield from (sample for sample in family.samples if sample.name.startswith("taskflux_"))


def declared(sample: Sample) -> str:
    """The name under which the sample's metric is declared."""
    return sample.name if sample.name in DECLARED else re.sub(r"_(bucket|sum|count)$", "", sample.name)


async def mixed_run(stack: Stack) -> list[UUID]:
    """Tasks that end in every way, and whatever else a client or a producer can come up with."""
    tasks = [
        await stack.submit("scripted", script, maxAttempts=2)
        for script in (["succeed"], ["transient", "succeed"], ["crash"], ["permanent"], ["transient"])
    ]
    held = await stack.submit("held", ["ambiguous"])
    key = {"Idempotency-Key": str(uuid4())}
    for document in (
        {"taskType": PERSON, "payload": {}},
        {"taskType": str(uuid4()), "payload": {}},
        {"taskType": "scripted", "payload": PERSON},
    ):
        assert (await stack.client.post("/tasks", json=document, headers=key)).status_code == 422
    await stack.client.request("PROPFIND", "/tasks")
    await stack.client.get(f"/people/{PERSON}")
    await stack.client.get(f"/tasks/{uuid4()}")
    prefix = stack.settings.kafka.topic_prefix
    dlq = dead_letter_topic(prefix)
    forged = DeadTask(UUID(int=7), "scripted", 3, PERSON, 1)
    await stack.produce(
        OutRecord(stack.topic("scripted"), b"k", PERSON.encode()),
        OutRecord(stack.topic("scripted"), b"k", json.dumps({"taskType": PERSON, "payload": {}}).encode()),
        OutRecord(dlq, *encode(forged)),
        OutRecord(dlq, PERSON.encode(), PERSON.encode(), (("taskflux-error-class", PERSON.encode()),)),
    )
    await stack.until_all([*tasks, held], "succeeded", "dead", "uncertain")

    async def stored() -> bool:
        return bool(await stack.sql.fetch("SELECT FROM dead_letters WHERE task_id = $1", UUID(int=7)))

    await eventually(stored, "the forged dead letter is stored")
    return [*tasks, held]


async def test_labels_have_only_declared_values_and_no_personal_data(stack: Stack) -> None:
    before = {(sample.name, *sorted(sample.labels.items())) for sample in ours(await text(stack))}
    await mixed_run(stack)
    prefix = stack.settings.kafka.topic_prefix
    types = {row["type"] for row in await stack.sql.fetch("SELECT type FROM task_types")}
    known = {
        "type": types | {"unknown", "dlq"},
        "topic": {task_topic(prefix, each) for each in types} | {dead_letter_topic(prefix)},
        "group": {task_group(prefix, each) for each in types} | {f"{prefix}taskflux.dlq-sink"},
        "provider": {"", "outside", *types},
        "version": {VERSION},
        "method": {*METHODS, OTHER},
        "statement": set(every_statement()),
    }
    shaped = {
        "route": re.compile(r"\(no route\)|(/[a-z0-9-]+|/\{[a-z0-9_]+\})+(/\{[a-z0-9_]+\})*|/[a-z.]+"),
        "status": re.compile(r"[1-5][0-9][0-9]|aborted"),
        "error_class": re.compile(f"other|{CLASS.pattern}"),
        "error": CLASS,
        "outcome": re.compile("|".join([CLASS.pattern, *KINDS])),
    }
    for sample in ours(await text(stack)):
        metric = DECLARED[declared(sample)]
        labels = {name: value for name, value in sample.labels.items() if name != "le"}
        assert labels.keys() == {label.name for label in metric.labels}, sample
        for label in metric.labels:
            value = labels[label.name]
            assert "@" not in value, sample
            assert len(value) < 80, sample
            assert not re.search(r"[0-9a-f]{8}-[0-9a-f]{4}", value), sample
            fresh = (sample.name, *sorted(sample.labels.items())) not in before
            if fresh and value not in label.values:  # what was there before may be other tests'
                allowed = known.get(label.name)
                assert value in allowed if allowed is not None else shaped[label.name].fullmatch(value), sample


async def test_every_attempt_is_counted_once_by_how_it_ended(stack: Stack, world: World) -> None:
    before = await text(stack)
    await stack.until_all(await stack.submit_many("scripted", 30), "succeeded")
    dead = await stack.submit("scripted", ["permanent"])
    await stack.until(dead, "dead")

    async def counted() -> str | None:
        now = await text(stack)
        rise = total(now, "taskflux_attempts_total", died) - total(before, "taskflux_attempts_total", died)
        return now if rise >= 1 else None

    died = {"type": "scripted", "outcome": "died"}
    after = await eventually(counted, "the death is counted")

    def rise(name: str, **labels: str) -> float:
        return total(after, name, {"type": "scripted", **labels}) - total(before, name, {"type": "scripted", **labels})

    assert rise("taskflux_attempts_total", outcome="succeeded") == 30
    assert rise("taskflux_end_to_end_seconds_count") == 30
    assert rise("taskflux_processing_seconds_count") == 31
    assert rise("taskflux_wait_seconds_count") == rise("taskflux_claimed_total") == 31
    assert rise("taskflux_errors_total", error_class="Permanent") == 1
    assert total(after, "taskflux_in_flight", {"type": "scripted"}) <= 30
    assert total(after, "taskflux_concurrency", {"type": "scripted"}) > 0


async def test_a_series_is_there_before_its_first_event(stack: Stack) -> None:
    shown = {(sample.name, *sorted(sample.labels.items())) for sample in ours(await text(stack))}
    for outcome in ("succeeded", "retry", "handed-back", "died", "held", "expired"):
        assert ("taskflux_attempts_total", ("outcome", outcome), ("type", "hasty")) in shown
    assert ("taskflux_submitted_total", ("outcome", "accepted"), ("type", "hasty")) in shown
    assert ("taskflux_submitted_total", ("outcome", "store-unavailable"), ("type", "unknown")) in shown
    assert ("taskflux_leases_swept_total", ("state", "uncertain"), ("type", "held")) in shown
    assert ("taskflux_statement_errors_total", ("error", "StoreUnavailable")) in shown


async def test_requests_are_counted_by_the_routes_template(stack: Stack) -> None:
    task = await stack.submit("scripted")
    labels = {"method": "GET", "route": "/tasks/{task_id}", "status": "200"}
    before = await stack.metric("taskflux_http_requests_total", **labels)
    for _ in range(3):
        await stack.client.get(f"/tasks/{task}")
    assert await stack.metric("taskflux_http_requests_total", **labels) == before + 3
    assert await stack.metric("taskflux_http_requests_total", route="/metrics") == 0
    assert await stack.metric("taskflux_http_in_progress") == 0
    await stack.until(task, "succeeded")


async def test_statements_and_connections_are_measured(stack: Stack) -> None:
    await stack.until(await stack.submit("scripted"), "succeeded")
    for statement in ("insert_tasks", "claim", "settle", "confirm", "beat"):
        assert await stack.metric("taskflux_statement_seconds_count", statement=statement) > 0
    assert await stack.metric("taskflux_pool_wait_seconds_count") > 0
    assert await stack.metric("taskflux_pool_connections", state="free") > 0
    assert await stack.metric("taskflux_connections_opened_total", server="postgresql") > 0
    assert await stack.metric("taskflux_connections_opened_total", server="redis") > 0
    assert await stack.metric("taskflux_produce_seconds_count") > 0


async def test_the_leader_shows_depth_age_lag_workers_and_dead_letters(stack: Stack, world: World) -> None:
    later = await stack.submit_many("scripted", 7, delaySeconds=3600)
    dead = await stack.submit("scripted", ["permanent"])
    await stack.dead_letter(dead)

    async def told() -> str | None:
        now = await text(stack)
        waits = total(now, "taskflux_tasks", {"type": "scripted", "state": "scheduled"}) >= 7
        parked = total(now, "taskflux_parked", {"type": "scripted", "state": "dead"}) >= 1
        letters = total(now, "taskflux_dead_letters_open", {"error_class": "Permanent"}) >= 1
        return now if waits and parked and letters else None

    now = await eventually(told, "the leader has measured")
    prefix = stack.settings.kafka.topic_prefix
    lags = {
        tuple(sample.labels[name] for name in ("type", "topic", "group"))
        for sample in ours(now)
        if sample.name == "taskflux_lag"
    }
    assert ("scripted", task_topic(prefix, "scripted"), task_group(prefix, "scripted")) in lags
    assert ("dlq", dead_letter_topic(prefix), f"{prefix}taskflux.dlq-sink") in lags
    assert total(now, "taskflux_partitions", {"type": "scripted"}) == stack.settings.kafka.partitions
    assert total(now, "taskflux_workers", {"type": "scripted"}) == 1
    oldest = [sample for sample in ours(now) if sample.name == "taskflux_oldest_seconds"]
    assert {"scripted", "dlq"} <= {sample.labels["type"] for sample in oldest}
    assert total(now, "taskflux_measure_seconds_count", {}) > 0
    for task in later:
        await stack.client.delete(f"/tasks/{task}")


async def test_how_long_the_oldest_waits_is_known_whether_it_is_published_or_not(stack: Stack) -> None:
    """No worker of `late` runs here: its published records stay in Kafka and become older."""
    task = await stack.submit("late")

    async def older_than(seconds: float) -> bool:
        return await stack.metric("taskflux_oldest_seconds", type="late") > seconds

    async def published() -> bool:
        return str((await stack.get(task))["status"]) == "queued"

    await eventually(published, "it is published")
    await eventually(lambda: older_than(1.0), "its age is told")
    assert await stack.metric("taskflux_lag", type="late") >= 1
    assert await stack.metric("taskflux_workers", type="late") == 0


async def test_a_process_that_no_longer_leads_shows_no_cluster_figures(stack: Stack) -> None:
    async def led() -> bool:
        return await stack.metric("taskflux_leader") == 1 and "taskflux_lag{" in await text(stack)

    await eventually(led, "somebody leads")
    await stack.stop("relay")
    try:
        now = await text(stack)
        led_by = {name for name, metric in DECLARED.items() if metric.by == "relay (leader)" and metric.kind == "gauge"}
        assert not [sample for sample in ours(now) if sample.name in led_by]
        assert total(now, "taskflux_leader", {}) == 0
    finally:
        await stack.start("relay")
    await eventually(led, "it leads again")


async def test_openmetrics_are_negotiated(stack: Stack) -> None:
    accept = "application/openmetrics-text;version=1.0.0;q=0.8,text/plain;q=0.5"
    answer = await stack.client.get("/metrics", headers={"accept": accept})
    assert answer.headers["content-type"].startswith("application/openmetrics-text; version=1.0.0")
    assert answer.headers["content-encoding"] == "gzip"
    names = {family.name for family in read_open_metrics(answer.text)}  # type: ignore[no-untyped-call]
    assert {"taskflux_attempts", "taskflux_oldest_seconds", "process_cpu_seconds", "python_info"} <= names


@pytest.mark.parametrize("name", sorted(name for name, metric in DECLARED.items() if metric.by == "relay (leader)"))
async def test_what_the_leader_shows_is_shown(name: str, stack: Stack) -> None:
    async def shown() -> bool:
        return f"# TYPE {name} " in await text(stack)

    await eventually(shown, f"{name} is shown")
