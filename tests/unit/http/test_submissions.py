"""What `POST /tasks` accepts, and how it refuses the rest."""

from __future__ import annotations

import json
import logging
from typing import Any

import pytest

from taskflux.http.submissions import Limits
from taskflux.store.errors import RefusedData, StoreBusy, StoreUnavailable
from taskflux.tasks.model import TaskType
from tests.unit.http.memory import Fixture, bad_fields, problem
from tests.unit.http.stores import NOW

EMAIL = {"taskType": "email", "payload": {"to": "ada@example.org", "subject": "hello"}}


async def test_a_task_is_answered_202_with_where_to_find_it(http: Fixture) -> None:
    response = await http.submit(EMAIL)
    [submission] = http.intake.accepted
    assert response.status_code == 202
    assert response.json() == {
        "taskId": str(submission.id),
        "taskType": "email",
        "status": "scheduled",
        "createdAt": "2030-01-01T00:00:00.000000Z",
    }
    assert list(response.json()) == ["taskId", "taskType", "status", "createdAt"]
    assert response.headers["location"] == f"/tasks/{submission.id}"
    assert "idempotent-replay" not in response.headers
    assert http.submitted == {("email", "accepted"): 1}


async def test_a_text_alone_is_a_simulated_task(http: Fixture) -> None:
    response = await http.submit({"payload": "process this"})
    [submission] = http.intake.accepted
    assert (response.status_code, response.json()["taskType"]) == (202, "simulated")
    assert (submission.type, submission.payload, submission.max_attempts) == ("simulated", '"process this"', 8)


async def test_all_fields_reach_the_submission(http: Fixture) -> None:
    response = await http.submit(
        {
            **EMAIL,
            "scheduleAt": "2030-01-02T09:00:00+02:00",
            "expiresAt": "2030-01-03t00:00:00.25z",
            "key": "customer 7 – Ä",
            "maxAttempts": 3,
            "metadata": {"order": 12},
        },
        Idempotency_Key="order-12",
        traceparent="00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
    )
    assert response.status_code == 202
    [task] = http.intake.accepted
    assert task.schedule_at is not None
    assert task.schedule_at.isoformat() == "2030-01-02T07:00:00+00:00"
    assert task.expires_at is not None
    assert task.expires_at.isoformat() == "2030-01-03T00:00:00.250000+00:00"
    assert (task.key, task.max_attempts, task.metadata) == ("customer 7 – Ä", 3, '{"order":12}')
    assert task.traceparent == "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
    assert task.idempotency is not None
    assert task.idempotency.key == "order-12"


async def test_a_task_without_a_trace_gets_one(http: Fixture) -> None:
    await http.submit(EMAIL)
    await http.submit(EMAIL, traceparent="00-00000000000000000000000000000000-00f067aa0ba902b7-01")
    first, second = (task.traceparent or "" for task in http.intake.accepted)
    assert len(first) == len(second) == 55
    assert first[3:35] != second[3:35] != "0" * 32


async def test_null_is_as_good_as_absent(http: Fixture) -> None:
    response = await http.submit({**EMAIL, "key": None, "scheduleAt": None, "delaySeconds": None, "metadata": None})
    assert response.status_code == 202


async def test_without_max_attempts_the_policy_of_the_type_decides(http: Fixture) -> None:
    await http.submit(EMAIL)
    assert http.intake.accepted[0].max_attempts == 6


@pytest.mark.parametrize(
    ("given", "taken"),
    [
        ("2030-06-30T23:59:60Z", "2030-07-01T00:00:00+00:00"),
        ("2030-12-31t23:59:60.25z", "2031-01-01T00:00:00.250000+00:00"),
        ("2030-12-31T15:59:60-08:00", "2031-01-01T00:00:00+00:00"),
        ("2031-01-01T05:29:60+05:30", "2031-01-01T00:00:00+00:00"),
    ],
)
async def test_a_leap_second_counts_as_the_second_after_it(given: str, taken: str, http: Fixture) -> None:
    response = await http.submit({**EMAIL, "scheduleAt": given})
    assert response.status_code == 202, response.text
    at = http.intake.accepted[0].schedule_at
    assert at is not None
    assert at.isoformat() == taken


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("scheduleAt", "2030-01-02T09:00:00", "has no offset"),
        ("scheduleAt", "2030-02-30T09:00:00Z", "does not exist"),
        ("scheduleAt", "2030-01-02T09:00:60Z", "a leap second is 23:59:60 in UTC"),
        ("scheduleAt", "2030-01-02T23:59:60+01:00", "a leap second is 23:59:60 in UTC"),
        ("scheduleAt", "2030-02-30T23:59:60Z", "does not exist"),
        ("scheduleAt", "2030-01-02T23:59:61Z", "does not exist"),
        ("scheduleAt", "tomorrow", "RFC 3339"),
        ("scheduleAt", "2030-W01-1T00:00:00Z", "RFC 3339"),
        ("scheduleAt", 1893456000, "RFC 3339"),
        ("scheduleAt", "2050-01-01T00:00:00Z", "more than ten years"),
        ("scheduleAt", "0001-01-01T00:00:00+10:00", "out of range"),
        ("expiresAt", "9999-12-31T23:59:59-10:00", "out of range"),
        ("expiresAt", "2029-12-31T23:59:59Z", "in the past"),
        ("delaySeconds", -1, "from 0 to"),
        ("delaySeconds", 1e9, "from 0 to"),
        ("delaySeconds", "5", "from 0 to"),
        ("delaySeconds", True, "from 0 to"),
        ("maxAttempts", 0, "from 1 to 1000"),
        ("maxAttempts", 1001, "from 1 to 1000"),
        ("maxAttempts", 2.5, "from 1 to 1000"),
        ("maxAttempts", True, "from 1 to 1000"),
        ("key", "", "1 to 200"),
        ("key", "x" * 201, "1 to 200"),
        ("key", "a\x00b", "printable"),
        ("key", 7, "text"),
        ("metadata", [1], "JSON object"),
        ("metadata", {"x": "y" * 17_000}, "larger than 16,384 bytes"),
    ],
)
async def test_a_bad_field_is_named_with_a_sentence(field: str, value: Any, message: str) -> None:
    http = Fixture(Limits())
    body = json.dumps({**EMAIL, field: value})
    response = await http.client.post("/tasks", content=body, headers={"content-type": "application/json"})
    assert response.status_code == 422
    assert message in bad_fields(response)[field]
    assert list(bad_fields(response)) == [field]
    assert http.intake.accepted == []
    assert http.submitted == {("unknown", "invalid-task"): 1}


async def test_all_bad_fields_are_named_at_once(http: Fixture) -> None:
    response = await http.submit({"taskType": "email", "payload": {"to": 5}, "key": "", "maxAttempts": 0, "prio": 1})
    assert set(bad_fields(response)) == {"payload.to", "payload.subject", "key", "maxAttempts", "prio"}


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("scheduledAt", "did you mean scheduleAt?"),
        ("max_attempts", "did you mean maxAttempts?"),
        ("zzz", "known are taskType, payload"),
        ("idempotencyKey", "header Idempotency-Key"),
    ],
)
async def test_an_unknown_field_is_refused_with_the_one_that_was_meant(name: str, hint: str, http: Fixture) -> None:
    response = await http.submit({**EMAIL, name: 1})
    assert hint in bad_fields(response)[name]


async def test_an_unknown_field_beside_a_plain_text_is_refused_too(http: Fixture) -> None:
    assert set(bad_fields(await http.submit({"payload": "x", "prio": 1}))) == {"prio"}


async def test_two_ways_to_say_when_contradict_each_other(http: Fixture) -> None:
    response = await http.submit({**EMAIL, "scheduleAt": "2030-01-02T00:00:00Z", "delaySeconds": 5})
    assert "scheduleAt" in bad_fields(response)["delaySeconds"]


@pytest.mark.parametrize("when", [{"scheduleAt": "2030-01-02T00:00:00Z"}, {"delaySeconds": 86400}])
async def test_a_task_that_expires_before_it_is_due_is_refused(when: dict[str, Any], http: Fixture) -> None:
    response = await http.submit({**EMAIL, **when, "expiresAt": "2030-01-01T12:00:00Z"})
    assert "never run" in bad_fields(response)["expiresAt"]


async def test_a_payload_is_required(http: Fixture) -> None:
    assert bad_fields(await http.submit({"taskType": "email"})) == {"payload": "is required"}
    assert bad_fields(await http.submit({"payload": {}})) == {"taskType": "is required"}
    assert bad_fields(await http.submit({"taskType": 5, "payload": 1})) == {"taskType": "must be a text"}


@pytest.mark.parametrize("document", [[], "text", 5, None, True])
async def test_a_document_that_is_not_an_object_is_refused(document: Any, http: Fixture) -> None:
    response = await http.client.post(
        "/tasks", content=json.dumps(document), headers={"content-type": "application/json"}
    )
    assert response.status_code == 422
    assert "JSON object" in problem(response)["detail"]


async def test_an_unknown_type_is_answered_with_the_known_ones(http: Fixture) -> None:
    response = await http.submit({"taskType": "emial", "payload": {}})
    document = problem(response)
    assert (response.status_code, document["type"]) == (422, "/problems/unknown-task-type")
    assert document["knownTypes"] == ["email", "simulated"]
    assert "did you mean 'email'?" in document["detail"]
    assert "no worker has registered 'emial'" in document["detail"]
    assert http.submitted == {("unknown", "unknown-task-type"): 1}


async def test_a_built_in_type_whose_handler_is_off_is_answered_with_the_handler(http: Fixture) -> None:
    response = await http.submit({"taskType": "sms", "payload": {"mobile": "+919876543210", "name": "Ann"}})
    document = problem(response)
    assert (response.status_code, document["type"]) == (422, "/problems/unknown-task-type")
    assert "the handler of 'sms' is process-sms, which is off" in document["detail"]
    assert document["errors"] == [{"field": "taskType", "message": "is the type of process-sms, which is off"}]
    assert document["knownTypes"] == ["email", "simulated"]


@pytest.mark.parametrize(("handler", "fix"), [("process-email", "topics process-email`"), ("shop-mail", "topics`")])
async def test_a_type_whose_handler_was_switched_off_is_answered_with_the_handler(
    handler: str, fix: str, http: Fixture
) -> None:
    on = http.source.types["email"]
    http.source.types["email"] = on._replace(off_handler=handler)
    response = await http.submit(EMAIL)
    document = problem(response)
    assert (response.status_code, document["type"]) == (422, "/problems/unknown-task-type")
    assert f"the handler of 'email' is {handler}, which has been switched off" in document["detail"]
    assert document["detail"].endswith(fix)
    assert document["errors"] == [{"field": "taskType", "message": f"is the type of {handler}, which is off"}]
    assert document["knownTypes"] == ["simulated"]
    http.source.types["email"] = on
    assert (await http.submit(EMAIL)).status_code == 202, "it is accepted as soon as it is registered again"


async def test_a_type_that_was_registered_a_moment_ago_is_known(http: Fixture) -> None:
    await http.submit(EMAIL)
    http.source.types["resize"] = TaskType("resize", "{}", 3, "resend", None)
    assert (await http.submit({"taskType": "resize", "payload": 1})).status_code == 202


@pytest.mark.parametrize(
    ("body", "detail"),
    [
        (b"", "the body is empty"),
        (b'{"taskType": "email", }', "line 1, column 23"),
        (b'{\n"payload": tru}', "line 2, column 12"),
        (b'{"payload": "\xff"}', "byte 14 is not UTF-8"),
        (b'{"payload": "\xed\xa0\x80"}', "is not UTF-8"),
        (b'{"payload": NaN}', "NaN is not a JSON value"),
        (b'{"payload": -Infinity}', "-Infinity is not a JSON value"),
        (b'{"payload": ' + b"9" * 5000 + b"}", "more than 4,300 digits"),
        (b"[" * 5000, "nested more than 65 deep"),
        (b'"\\ud800"', "lone surrogate"),
        ('\ufeff{"payload": 1}'.encode("utf-16-le"), "it is UTF-16"),
        ('{"payload": 1}'.encode("utf-16"), "it is UTF-16"),
        ('{"payload": 1}'.encode("utf-16-le"), "it is UTF-16"),
        ('{"payload": 1}'.encode("utf-16-be"), "it is UTF-16"),
        (b"\xef\xbb\xbf", "the body is empty"),
        (b'{"payload": "a\nb"}', "Invalid control character"),
    ],
)
async def test_what_is_not_json_is_a_400_that_says_where(body: bytes, detail: str, http: Fixture) -> None:
    response = await http.client.post("/tasks", content=body, headers={"content-type": "application/json"})
    assert (response.status_code, problem(response)["type"]) == (400, "/problems/malformed-json")
    assert detail in problem(response)["detail"]


@pytest.mark.parametrize(
    ("body", "field"),
    [
        (b'{"payload": "\\ud800 \\udc00"}', "payload"),
        (b'{"payload": {"\\uDFFF": 1}}', "payload.\ufffd"),
        (b'{"payload": 1, "key": "\\ud83d\\ud83d"}', "key"),
        (b'{"taskType": "email", "payload": {"to": ["a@b", "Party \\ud83c <a@b>"]}}', "payload.to[1]"),
        (b'{"taskType": "email", "payload": {"headers": {"X-A": "\\udf89\\ud83c"}}}', "payload.headers.X-A"),
        (b'{"payload": "x", "metadata": {"customer": {"name": "\\uD83C"}}}', "metadata.customer.name"),
        (b'{"payload": "x", "prio\\ud83c": 1}', "prio\ufffd"),
    ],
)
async def test_half_a_character_is_refused_at_its_field(body: bytes, field: str, http: Fixture) -> None:
    response = await http.client.post("/tasks", content=body, headers={"content-type": "application/json"})
    assert (response.status_code, problem(response)["type"]) == (422, "/problems/invalid-task")
    assert bad_fields(response) == {field: "holds a lone surrogate, \\ud800 to \\udfff without its other half"}
    assert http.intake.accepted == []


@pytest.mark.parametrize(
    ("body", "field"),
    [
        (b'{"payload": {"n": %s}}', "payload.n"),
        (b'{"payload": {"n": [1, {"m": %s}]}}', "payload.n"),
        (b'{"payload": "%s"}' % (b"[{" * 99) + b"", None),
        (b'{"payload": "x", "metadata": {"a": %s}}', "metadata.a"),
        (b'{"payload": %s}', "payload"),
        (b'{"payload": "%s", "key": {"b": %%s}}' % (b'\\"[{' * 99), "key.b"),
    ],
)
async def test_what_is_nested_too_deeply_is_refused_at_its_field(body: bytes, field: str | None, http: Fixture) -> None:
    body = body % (b"[" * 250 + b"]" * 250) if b"%s" in body else body
    response = await http.client.post("/tasks", content=body, headers={"content-type": "application/json"})
    if field is None:
        assert response.status_code == 202
        return
    assert (response.status_code, problem(response)["type"]) == (422, "/problems/invalid-task")
    assert bad_fields(response) == {field: "is nested more than 64 deep"}


async def test_any_json_text_is_kept_as_ascii(http: Fixture) -> None:
    body = '{"payload": "\\u0000 \\ud83c\\udf89 \\\\ud800 Grüße 🎉"}'.encode()
    response = await http.client.post("/tasks", content=body, headers={"content-type": "application/json"})
    assert response.status_code == 202
    assert http.intake.accepted[0].payload == '"\\u0000 \\ud83c\\udf89 \\\\ud800 Gr\\u00fc\\u00dfe \\ud83c\\udf89"'


async def test_a_byte_order_mark_is_not_an_error(http: Fixture) -> None:
    body = b'\xef\xbb\xbf{"payload": "x"}'
    response = await http.client.post("/tasks", content=body, headers={"content-type": "application/json"})
    assert response.status_code == 202


async def test_of_two_alike_names_the_last_one_counts(http: Fixture) -> None:
    body = b'{"payload": "first", "payload": "last"}'
    await http.client.post("/tasks", content=body, headers={"content-type": "application/json"})
    assert http.intake.accepted[0].payload == '"last"'


async def test_a_number_beyond_a_double_is_refused_at_its_field(http: Fixture) -> None:
    body = b'{"taskType": "simulated", "payload": {"x": 1e400}, "metadata": {"y": 1e999}}'
    response = await http.client.post("/tasks", content=body, headers={"content-type": "application/json"})
    assert set(bad_fields(response)) == {"payload", "metadata"}


@pytest.mark.parametrize(("depth", "status"), [(64, 202), (65, 422), (1100, 422)])
async def test_a_payload_may_be_nested_so_deep_and_no_deeper(depth: int, status: int, http: Fixture) -> None:
    body = b'{"taskType":"simulated","payload":' + b"[" * depth + b"]" * depth + b"}"
    response = await http.client.post("/tasks", content=body, headers={"content-type": "application/json"})
    assert response.status_code == status


@pytest.mark.parametrize(
    ("content_type", "status"),
    [
        ("application/json", 202),
        ("application/json; charset=UTF-8", 202),
        ('APPLICATION/JSON;charset="utf-8"', 202),
        ("application/json; charset=utf-8;", 202),
        ("application/json; charset=utf-8; odata=verbose", 202),
        ("application/json; charset=latin-1", 415),
        ("application/json; odata=verbose; charset=utf-16", 415),
        ("application/x-www-form-urlencoded", 415),
        ("text/plain", 415),
        ("application/x-ndjson", 415),
        (None, 415),
    ],
)
async def test_only_json_is_accepted(content_type: str | None, status: int, http: Fixture) -> None:
    headers = {} if content_type is None else {"content-type": content_type}
    response = await http.client.post("/tasks", content=json.dumps(EMAIL), headers=headers)
    assert response.status_code == status
    if status == 415:
        assert problem(response)["type"] == "/problems/unsupported-media-type"


async def test_a_compressed_body_is_refused(http: Fixture) -> None:
    headers = {"content-type": "application/json", "content-encoding": "gzip"}
    response = await http.client.post("/tasks", content=b"x", headers=headers)
    assert response.status_code == 415


@pytest.mark.parametrize("streamed", [False, True])
async def test_a_body_above_the_limit_is_a_413(streamed: bool, http: Fixture) -> None:
    async def parts() -> Any:
        yield b'{"payload": "'
        for _ in range(20):
            yield b"x" * 1000
        yield b'"}'

    content = parts() if streamed else b'{"payload": "' + b"x" * 20_000 + b'"}'
    response = await http.client.post("/tasks", content=content, headers={"content-type": "application/json"})
    assert response.status_code == 413
    assert "10,000 bytes" in problem(response)["detail"]


async def test_a_body_that_arrives_in_parts_is_put_together(http: Fixture) -> None:
    async def parts() -> Any:
        for byte in b'{"payload": "in parts"}':
            yield bytes([byte])

    response = await http.client.post("/tasks", content=parts(), headers={"content-type": "application/json"})
    assert response.status_code == 202
    assert http.intake.accepted[0].payload == '"in parts"'


async def test_a_repeated_key_is_answered_with_the_same_bytes(http: Fixture) -> None:
    first = await http.submit({**EMAIL, "scheduleAt": "2030-01-02T00:00:00Z"}, Idempotency_Key="k")
    again = await http.client.post(
        "/tasks",
        content=json.dumps({"scheduleAt": "2030-01-02T02:00:00+02:00", **dict(reversed(EMAIL.items()))}, indent=3),
        headers={"content-type": "application/json", "idempotency-key": "k"},
    )
    assert (first.status_code, again.status_code) == (202, 202)
    assert first.content == again.content
    assert again.headers["idempotent-replay"] == "true"
    assert again.headers["location"] == first.headers["location"]
    assert http.submitted == {("email", "accepted"): 1, ("email", "repeated"): 1}


async def test_a_repeat_that_comes_after_its_expiry_is_answered_like_the_first_time(http: Fixture) -> None:
    body = {**EMAIL, "expiresAt": "2029-12-31T00:00:00Z"}
    assert (await http.submit(body)).status_code == 422
    assert (await http.submit(body, Idempotency_Key="k")).status_code == 202


@pytest.mark.parametrize(
    "change", [{"payload": {"to": "b@example.org", "subject": "x"}}, {"key": "k"}, {"delaySeconds": 1}]
)
async def test_a_key_with_another_request_is_refused(change: dict[str, Any], http: Fixture) -> None:
    await http.submit(EMAIL, Idempotency_Key="k")
    response = await http.submit({**EMAIL, **change}, Idempotency_Key="k")
    assert (response.status_code, problem(response)["type"]) == (422, "/problems/idempotency-key-reused")


@pytest.mark.parametrize("key", ["", "x" * 256, "a\x7f", "schlüssel".encode("latin-1").decode("latin-1")])
async def test_an_idempotency_key_is_printable_ascii(key: str, http: Fixture) -> None:
    headers = [(b"content-type", b"application/json"), (b"idempotency-key", key.encode("latin-1"))]
    response = await http.client.post("/tasks", content=json.dumps(EMAIL), headers=headers)
    assert set(bad_fields(response)) == {"Idempotency-Key"}


async def test_two_idempotency_keys_are_refused(http: Fixture) -> None:
    headers = [("content-type", "application/json"), ("idempotency-key", "a"), ("idempotency-key", "b")]
    response = await http.client.post("/tasks", content=json.dumps(EMAIL), headers=headers)
    assert response.status_code == 400


@pytest.mark.parametrize("error", [StoreUnavailable("x"), StoreBusy("x")])
async def test_an_unavailable_store_is_a_503_with_retry_after(error: Exception, http: Fixture) -> None:
    http.intake.trouble = error
    response = await http.submit(EMAIL)
    assert (response.status_code, problem(response)["type"]) == (503, "/problems/store-unavailable")
    assert response.headers["retry-after"] == "5"
    assert http.submitted == {("unknown", "store-unavailable"): 1}


async def test_a_type_that_cannot_be_read_is_not_an_unknown_type(http: Fixture) -> None:
    http.source.trouble = StoreUnavailable("away")
    assert (await http.submit(EMAIL)).status_code == 503


async def test_a_value_that_the_store_refuses_is_a_422(http: Fixture) -> None:
    http.intake.trouble = RefusedData("secret@example.org")
    response = await http.submit(EMAIL)
    assert response.status_code == 422
    assert "secret" not in response.text


async def test_an_error_of_ours_is_a_500_that_quotes_nothing(http: Fixture, caplog: pytest.LogCaptureFixture) -> None:
    http.intake.trouble = KeyError("ada@example.org")
    with caplog.at_level(logging.ERROR):
        response = await http.submit(EMAIL)
    assert (response.status_code, problem(response)["type"]) == (500, "/problems/internal")
    assert "KeyError" in caplog.text
    assert "stores.py" in caplog.text
    assert "ada@example.org" not in caplog.text + response.text


async def test_the_clock_is_asked_only_for_what_makes_no_sense(http: Fixture) -> None:
    """A time in the past is due now; the store counts by its own clock."""
    response = await http.submit({**EMAIL, "scheduleAt": "2001-01-01T00:00:00Z"})
    assert response.status_code == 202
    task = http.intake.accepted[0]
    assert task.schedule_at is not None
    assert task.schedule_at < NOW
