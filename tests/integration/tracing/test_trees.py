"""The spans of whole tasks, as a real OTLP receiver gets them from the processes."""

from __future__ import annotations

import json
from uuid import UUID

import pytest

from taskflux.stream.envelope import OutRecord
from taskflux.version import VERSION
from tests.integration.providers.flow_api import Answer
from tests.integration.system.stack import eventually
from tests.integration.tracing.receiver import Span
from tests.integration.tracing.scene import Scene

CALLER = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-"


def mail(to: str) -> dict[str, object]:
    return {"to": [to], "subject": "Hello", "body": "Welcome!"}


def one(spans: list[Span], name: str, number: int = 0) -> Span:
    return [span for span in spans if span.name == name][number]


async def test_a_mail_that_succeeds_is_one_tree_from_the_request_to_the_smtp_dialogue(scene: Scene) -> None:
    task = await scene.submit("email", mail("ann@example.org"))
    await scene.stack.until(task, "succeeded")
    spans = await scene.until_tree(
        await scene.trace_of(task),
        """
        SERVER POST /tasks @ingest
          CLIENT insert tasks @ingest
          PRODUCER send tracing-tasks.email @ingest
            CLIENT receive tracing-tasks.email @process-email
            CONSUMER process tracing-tasks.email @process-email
              CLIENT SMTP send @process-email
              CLIENT settle tracing-tasks.email @process-email
        """,
    )
    server, insert = one(spans, "POST /tasks"), one(spans, "insert tasks")
    assert server.parent == ""
    assert server.attributes == {
        "http.request.method": "POST",
        "url.scheme": "http",
        "url.path": "/tasks",
        "http.route": "/tasks",
        "http.response.status_code": 202,
    }
    assert insert.links == (server.place,)
    assert insert.attributes["db.system.name"] == "postgresql"
    send, receive = one(spans, "send tracing-tasks.email"), one(spans, "receive tracing-tasks.email")
    assert send.attributes["messaging.system"] == "kafka"
    assert send.attributes["messaging.operation.type"] == "send"
    assert send.attributes["messaging.destination.name"] == "tracing-tasks.email"
    assert send.attributes["messaging.message.id"] == str(task)
    assert send.attributes["messaging.kafka.offset"] >= 0
    assert receive.links == (send.place,)
    process = one(spans, "process tracing-tasks.email")
    assert process.links == (receive.place,)
    assert process.attributes["taskflux.attempt"] == 1
    assert process.attributes["taskflux.outcome"] == "succeeded"
    assert process.attributes["messaging.consumer.group.name"] == receive.attributes["messaging.consumer.group.name"]
    assert one(spans, "settle tracing-tasks.email").links == (process.place,)
    assert one(spans, "SMTP send").attributes == {
        "network.protocol.name": "smtp",
        "server.address": "127.0.0.1",
        "server.port": scene.postbox.port,
        "smtp.recipients": 1,
        "smtp.recipients.accepted": 1,
        "smtp.reply.code": 250,
    }
    assert server.began <= insert.began <= send.began <= process.began <= process.ended
    assert server.resource["service.namespace"] == "taskflux"
    assert server.resource["service.version"] == VERSION
    assert server.resource["k8s.pod.name"] == "pod-1"
    assert server.resource["service.instance.id"] != process.resource["service.instance.id"]
    path, headers = scene.receiver.requests[0]
    assert (path, headers["x-token"]) == ("/v1/traces", "let-me-in")


async def test_a_retry_stands_in_the_same_trace_and_is_linked_to_the_attempt_before(scene: Scene) -> None:
    scene.postbox.replies["bob@example.org"] = ["450 4.2.0 bob@example.org is busy"]
    task = await scene.submit("email", mail("bob@example.org"))
    await scene.stack.until(task, "succeeded")
    spans = await scene.until_tree(
        await scene.trace_of(task),
        """
        SERVER POST /tasks @ingest
          CLIENT insert tasks @ingest
          PRODUCER send tracing-tasks.email @ingest
            CLIENT receive tracing-tasks.email @process-email
            CONSUMER process tracing-tasks.email @process-email !Transient
              CLIENT SMTP send @process-email !450
              CLIENT settle tracing-tasks.email @process-email
          PRODUCER send tracing-tasks.email @relay
            CLIENT receive tracing-tasks.email @process-email
            CONSUMER process tracing-tasks.email @process-email
              CLIENT SMTP send @process-email
              CLIENT settle tracing-tasks.email @process-email
        """,
    )
    first, second = (one(spans, "process tracing-tasks.email", number) for number in (0, 1))
    assert first.attributes["taskflux.outcome"] == "retry"
    assert second.attributes["taskflux.attempt"] == 2
    assert second.links == (one(spans, "receive tracing-tasks.email", 1).place, first.place)
    ((name, recorded),) = first.events
    assert (name, recorded["exception.type"]) == ("exception", "Transient")
    assert "smtp.py" in recorded["exception.stacktrace"]
    assert recorded.keys() == {"exception.type", "exception.stacktrace"}  # its message may name a person


async def test_a_task_that_dies_and_is_replayed_stays_in_its_trace(scene: Scene) -> None:
    scene.postbox.replies["eve@example.org"] = ["550 5.1.1 no such user"]
    task = await scene.submit("email", mail("eve@example.org"))
    await scene.stack.until(task, "dead")
    trace = await scene.trace_of(task)
    letter = (await scene.stack.dead_letter(task))["id"]
    died = """
        SERVER POST /tasks @ingest
          CLIENT insert tasks @ingest
          PRODUCER send tracing-tasks.email @ingest
            CLIENT receive tracing-tasks.email @process-email
            CONSUMER process tracing-tasks.email @process-email !Permanent
              CLIENT SMTP send @process-email !550
              CLIENT settle tracing-tasks.email @process-email
          PRODUCER send tracing-tasks.dlq @relay
            CONSUMER process tracing-tasks.dlq @dlq-sink"""
    spans = await scene.until_tree(trace, died)
    stored = one(spans, "process tracing-tasks.dlq")
    assert stored.links == (one(spans, "send tracing-tasks.dlq").place,)
    shown = (await scene.stack.client.get(f"/dead-letters/{letter}")).json()
    assert shown["traceId"] == trace
    assert {entry["traceId"] for entry in shown["timeline"]} == {trace}

    await scene.post(f"/dead-letters/{letter}/replay", {}, 202)
    await scene.stack.until(task, "succeeded")
    spans = await scene.until_tree(
        trace,
        died
        + """
          PRODUCER send tracing-tasks.email @relay
            CLIENT receive tracing-tasks.email @process-email
            CONSUMER process tracing-tasks.email @process-email
              CLIENT SMTP send @process-email
              CLIENT settle tracing-tasks.email @process-email
        """,
    )
    dead, replayed = (one(spans, "process tracing-tasks.email", number) for number in (0, 1))
    assert dead.attributes["taskflux.outcome"] == "died"
    assert replayed.attributes["taskflux.replay"] == 1
    assert dead.place in replayed.links
    assert await scene.trace_of(task) == trace

    async def asked() -> Span | None:
        name = "POST /dead-letters/{letter_id}/replay"
        links = (one(spans, "POST /tasks").place,)
        return next((span for span in scene.receiver.spans if span.name == name and span.links == links), None)

    request: Span = await eventually(asked, "the span of the replay's own request, linked to the task's trace")
    assert request.trace != trace
    assert str(letter) not in str(request.attributes)


async def test_tasks_of_a_bulk_replay_stay_in_their_traces_which_its_span_links(scene: Scene) -> None:
    scene.postbox.replies["dan@example.org"] = ["550 5.1.1 no such user"] * 2
    tasks = [await scene.submit("email", mail("dan@example.org")) for _ in range(2)]
    for task in tasks:
        await scene.stack.dead_letter(task)
    await scene.post("/dead-letters/replay", {"filter": {"taskType": "email"}, "rate": 100}, 202)
    for task in tasks:
        await scene.stack.until(task, "succeeded")
    roots = set()
    for task in tasks:
        trace = await scene.trace_of(task)

        async def processed_again(trace: str = trace) -> bool:
            spans = scene.receiver.trace(trace)
            there = {span.name for span in spans}  # each process sends its own when it has gathered some
            return "POST /tasks" in there and any(span.attributes.get("taskflux.replay") == 1 for span in spans)

        await eventually(processed_again, "the replay's span, and the request's")
        roots.add(one(scene.receiver.trace(trace), "POST /tasks").place)

    async def told() -> bool:
        linked = {link for span in scene.receiver.spans if span.name == "replay tasks" for link in span.links}
        return roots <= linked

    await eventually(told, "the bulk replay's span")


async def test_a_short_message_is_traced_through_the_notification_service_and_not_beyond(scene: Scene) -> None:
    scene.flow.answers.append(Answer({"type": "success", "message": "req-1"}))
    task = await scene.submit("sms", {"mobile": "919876543210", "name": "Ann"})
    await scene.stack.until(task, "succeeded")
    spans = await scene.until_tree(
        await scene.trace_of(task),
        """
        SERVER POST /tasks @ingest
          CLIENT insert tasks @ingest
          PRODUCER send tracing-tasks.sms @ingest
            CLIENT receive tracing-tasks.sms @process-sms
            CONSUMER process tracing-tasks.sms @process-sms
              CLIENT POST /notifications/sms @process-sms
                SERVER POST /notifications/sms @notify
                  CLIENT POST /api/v5/flow/ @notify
              CLIENT settle tracing-tasks.sms @process-sms
        """,
    )
    flow = one(spans, "POST /api/v5/flow/")
    assert flow.attributes["url.full"] == f"{scene.flow.url}/api/v5/flow/"
    assert flow.attributes["http.response.status_code"] == 200
    assert "traceparent" not in scene.flow.taken[-1].headers
    (line,) = [
        line
        for line in scene.lines("notify")
        if line.get("task_id") == str(task) and line["logger"] == "taskflux.http.requests"
    ]
    assert (line["trace_id"], line["status"]) == (flow.trace, 200)


async def test_a_failure_at_a_provider_fails_every_span_it_passed(scene: Scene) -> None:
    scene.flow.answers.append(Answer({"type": "error", "message": "Invalid mobile", "code": "101"}))
    task = await scene.submit("sms", {"mobile": "919876543210", "name": "Ann"})
    await scene.stack.until(task, "dead")
    await scene.until_tree(
        await scene.trace_of(task),
        """
        SERVER POST /tasks @ingest
          CLIENT insert tasks @ingest
          PRODUCER send tracing-tasks.sms @ingest
            CLIENT receive tracing-tasks.sms @process-sms
            CONSUMER process tracing-tasks.sms @process-sms !Permanent
              CLIENT POST /notifications/sms @process-sms !Permanent
                SERVER POST /notifications/sms @notify
                  CLIENT POST /api/v5/flow/ @notify !Permanent
              CLIENT settle tracing-tasks.sms @process-sms
          PRODUCER send tracing-tasks.dlq @relay
            CONSUMER process tracing-tasks.dlq @dlq-sink
        """,
    )


async def test_a_task_for_later_is_sent_by_the_relay_in_the_trace_of_its_request(scene: Scene) -> None:
    task = await scene.submit("simulated", "hello", delaySeconds=0.3)
    await scene.stack.until(task, "succeeded")
    spans = await scene.until_tree(
        await scene.trace_of(task),
        """
        SERVER POST /tasks @ingest
          CLIENT insert tasks @ingest
          PRODUCER send tracing-tasks.simulated @relay
            CLIENT receive tracing-tasks.simulated @process-simulated
            CONSUMER process tracing-tasks.simulated @process-simulated
              CLIENT settle tracing-tasks.simulated @process-simulated
        """,
    )
    send, server = one(spans, "send tracing-tasks.simulated"), one(spans, "POST /tasks")
    assert send.began - server.began >= 0.3e9


async def test_tasks_of_a_batch_request_share_its_trace_and_batch_spans_link_all_their_messages(scene: Scene) -> None:
    items = [{"taskType": "simulated", "payload": "hello"}] * 20
    answer = await scene.post("/tasks/batch", items, 202)  # type: ignore[arg-type]
    tasks = [UUID(each["taskId"]) for each in answer.json()]
    await scene.stack.until_all(tasks, "succeeded")
    (trace,) = {await scene.trace_of(task) for task in tasks}

    async def complete() -> bool:
        spans = scene.receiver.trace(trace)
        settled = {link for span in spans if span.name.startswith("settle") for link in span.links}
        return len(settled) == len(tasks) and any(span.kind == "SERVER" for span in spans)

    await eventually(complete, "all of them are settled in the trace")
    spans = scene.receiver.trace(trace)
    server = one(spans, "POST /tasks/batch")
    sends = [span for span in spans if span.name == "send tracing-tasks.simulated"]
    attempts = [span for span in spans if span.name == "process tracing-tasks.simulated"]
    assert {send.attributes["messaging.message.id"] for send in sends} == {str(task) for task in tasks}
    assert {send.parent for send in sends} == {server.id}
    by_id = {send.id: send for send in sends}
    for attempt in attempts:
        assert by_id[attempt.parent].attributes["messaging.message.id"] == attempt.attributes["messaging.message.id"]
    receives = [span for span in spans if span.name.startswith("receive")]
    settles = [span for span in spans if span.name.startswith("settle")]
    assert sorted(link for span in receives for link in span.links) == sorted(send.place for send in sends)
    assert sorted(link for span in settles for link in span.links) == sorted(each.place for each in attempts)
    assert sum(span.attributes.get("messaging.batch.message_count", 1) for span in receives) == len(tasks)
    assert {link for each in attempts for link in each.links} == {span.place for span in receives}
    assert all(span.links == (server.place,) for span in spans if span.name == "insert tasks")


async def test_the_callers_trace_is_continued_and_its_flag_decides(scene: Scene) -> None:
    sampled = await scene.submit("simulated", "hello", f"{CALLER}01")
    await scene.stack.until(sampled, "succeeded")
    spans = await scene.until_tree(
        CALLER[3:35],
        """
        SERVER POST /tasks @ingest
          CLIENT insert tasks @ingest
          PRODUCER send tracing-tasks.simulated @ingest
            CLIENT receive tracing-tasks.simulated @process-simulated
            CONSUMER process tracing-tasks.simulated @process-simulated
              CLIENT settle tracing-tasks.simulated @process-simulated
        """,
    )
    assert spans[0].parent == CALLER[36:52]
    other = CALLER.replace("0af7", "1af7")
    unsampled = await scene.submit("simulated", "hello", f"{other}00")
    await scene.stack.until(unsampled, "succeeded")
    after = await scene.submit("simulated", "hello", f"{CALLER.replace('0af7', '2af7')}01")
    await scene.stack.until(after, "succeeded")

    async def settled() -> bool:
        return any(
            span.name.startswith("settle") for span in scene.receiver.trace(CALLER.replace("0af7", "2af7")[3:35])
        )

    await eventually(settled, "the spans of a later task")
    assert scene.receiver.trace(other[3:35]) == []
    document = await scene.stack.get(unsampled)
    assert document["traceId"] == other[3:35]  # it still has a trace, in its timeline and in every line
    assert {entry["traceId"] for entry in document["timeline"]} == {other[3:35]}
    lines = [line for line in scene.lines("process-simulated") if line.get("task_id") == str(unsampled)]
    assert lines
    assert all(line["trace_id"] == other[3:35] and "span_id" not in line for line in lines)


async def test_a_line_of_a_recorded_attempt_names_its_span(scene: Scene) -> None:
    task = await scene.submit("simulated", "hello")
    await scene.stack.until(task, "succeeded")
    trace = await scene.trace_of(task)

    async def processed() -> Span | None:
        return next((span for span in scene.receiver.trace(trace) if span.name.startswith("process")), None)

    process: Span = await eventually(processed, "the attempt's span")

    async def told() -> bool:
        lines = [line for line in scene.lines("process-simulated") if line.get("task_id") == str(task)]
        return any((line["trace_id"], line.get("span_id")) == process.place for line in lines)

    await eventually(told, "a line of the attempt")


@pytest.mark.parametrize(
    ("process", "metric", "labels", "span"),
    [
        ("ingest", "taskflux_http_request_seconds", {"method": "POST", "route": "/tasks"}, "POST /tasks"),
        ("process-email", "taskflux_processing_seconds", {"type": "email"}, "process tracing-tasks.email"),
        ("process-email", "taskflux_end_to_end_seconds", {"type": "email"}, "process tracing-tasks.email"),
        ("process-email", "taskflux_provider_request_seconds", {"provider": "smtp"}, "SMTP send"),
    ],
    ids=["request", "attempt", "task", "call"],
)
async def test_an_exemplar_on_a_metric_leads_to_a_recorded_trace(
    scene: Scene, process: str, metric: str, labels: dict[str, str], span: str
) -> None:
    await scene.stack.until(await scene.submit("email", mail("kim@example.org")), "succeeded")
    traces = {exemplar["trace_id"] for exemplar in await scene.exemplars(process, metric, **labels)}
    assert traces

    async def all_there() -> bool:
        return all(span in {each.name for each in scene.receiver.trace(trace)} for trace in traces)

    await eventually(all_there, f"a {span} in each of {traces}")


async def test_a_foreign_task_begins_a_trace_or_continues_its_producers(scene: Scene) -> None:
    topic, theirs = scene.stack.topic("simulated"), f"00-{'ef' * 16}-{'12' * 8}-01"
    value = json.dumps({"taskType": "simulated", "payload": "from afar"}).encode()
    await scene.stack.produce(
        OutRecord(topic, b"a", value), OutRecord(topic, b"b", value, (("traceparent", theirs.encode()),))
    )

    async def created() -> Span | None:
        return next((span for span in scene.receiver.spans if span.name == "create tracing-tasks.simulated"), None)

    first: Span = await eventually(created, "the first span of a trace of its own")
    assert first.parent == ""

    async def processed() -> bool:
        return all("CONSUMER process" in scene.receiver.tree(trace) for trace in (first.trace, theirs[3:35]))

    await eventually(processed, "both are processed")
    (process,) = [span for span in scene.receiver.trace(theirs[3:35]) if span.name.startswith("process")]
    assert process.parent == theirs[36:52]
    (process,) = [span for span in scene.receiver.trace(first.trace) if span.name.startswith("process")]
    assert process.parent == first.id
    assert process.attributes["messaging.message.id"] == first.attributes["messaging.message.id"]


def test_no_span_was_received_twice(scene: Scene) -> None:
    assert scene.receiver.repeated == []
