"""What the dead letters' routes take and answer."""

from __future__ import annotations

import base64
import json
import logging
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import pytest
from uuid_utils.compat import uuid7

from taskflux.http.dead_letters import shown_bytes
from taskflux.http.problems import FieldError, Problem
from taskflux.http.queries import read_dead_letter_query
from taskflux.store.dead_letters import DeadLetterFilter
from tests.unit.http.letters import letter, poison
from tests.unit.http.memory import Fixture, bad_fields, problem
from tests.unit.http.stores import AT, CAUSE, NOW

REPAIRED = {"to": "bob@example.org", "subject": "hi"}


async def test_a_dead_letter_in_a_list_says_what_failed_where_and_what_was_done_about_it(http: Fixture) -> None:
    row = letter(replays=[[AT, "a-task", "succeeded", "a-bulk"], [AT, "a-task", "running", None]], state="replayed")
    http.letters.put(row)
    response = await http.client.get("/dead-letters")
    assert response.status_code == 200
    assert response.json() == {
        "items": [
            {
                "deadLetterId": str(row["id"]),
                "taskId": str(row["task_id"]),
                "taskType": "email",
                "errorClass": "Permanent",
                "cause": CAUSE,
                "reason": "550 no such user",
                "attempts": 1,
                "origin": {
                    "topic": "tasks.dlq",
                    "partition": 0,
                    "offset": 7,
                    "timestamp": "2030-01-01T00:00:00.000000Z",
                },
                "createdAt": AT,
                "state": "replayed",
                "replays": [
                    {"at": AT, "taskId": "a-task", "outcome": "succeeded", "by": "a-bulk"},
                    {"at": AT, "taskId": "a-task", "outcome": None},
                ],
                "discarded": None,
            }
        ],
        "nextCursor": None,
    }


async def test_pages_follow_each_other_by_their_cursor(http: Fixture) -> None:
    for n in range(5):
        http.letters.put(letter(created_at=NOW + timedelta(microseconds=n // 2)))
    seen: list[str] = []
    cursor: str | None = ""
    while cursor is not None:
        query = {"limit": "2"} | ({"cursor": cursor} if cursor else {})
        page = (await http.client.get("/dead-letters", params=query)).json()
        seen += [item["deadLetterId"] for item in page["items"]]
        cursor = page["nextCursor"]
        assert len(page["items"]) == (2 if cursor else 1)
    assert len(set(seen)) == 5


@pytest.mark.parametrize("other", [{"state": "all"}, {"taskType": "sms"}, {}])
async def test_a_cursor_is_refused_with_other_filters_than_its_own(http: Fixture, other: dict[str, str]) -> None:
    for _ in range(2):
        http.letters.put(letter())
    query = {"limit": "1", "taskType": "email"}
    cursor = (await http.client.get("/dead-letters", params=query)).json()["nextCursor"]
    assert (await http.client.get("/dead-letters", params=query | {"cursor": cursor, "limit": "9"})).is_success
    response = await http.client.get("/dead-letters", params=other | {"cursor": cursor})
    assert (response.status_code, problem(response)["type"]) == (422, "/problems/invalid-query")
    assert "other filters" in bad_fields(response)["cursor"]


async def test_everything_that_is_wrong_with_a_query_is_named_at_once(http: Fixture) -> None:
    response = await http.client.get("/dead-letters?limit=0&cursor=x&state=a&state=all&order=up&taskType=")
    assert bad_fields(response).keys() == {"limit", "cursor", "state", "order", "taskType"}


def test_a_time_that_cannot_be_reckoned_with_makes_no_cursor() -> None:
    beyond = base64.urlsafe_b64encode(b"\x01" + b"\x7f" * 28).decode()
    with pytest.raises(Problem) as caught:
        read_dead_letter_query([("cursor", beyond)])
    assert caught.value.errors == (FieldError("cursor", "is not a cursor: pass a nextCursor on unchanged"),)


async def test_the_plus_of_an_offset_may_arrive_as_a_space(http: Fixture) -> None:
    assert (await http.client.get("/dead-letters?createdAfter=2030-01-01T02:00:00+02:00")).is_success
    wanted, *_ = http.letters.last_asked()
    assert wanted is not None
    assert wanted.created_after == NOW


async def test_a_query_becomes_a_filter_and_asks_for_open_dead_letters(http: Fixture) -> None:
    query = {
        "taskType": "email",
        "errorClass": "Permanent",
        "createdAfter": "2030-01-01T01:00:00+01:00",
        "createdBefore": "2030-01-02T00:00:00Z",
        "originTopic": "tasks.dlq",
        "cause": CAUSE,
    }
    await http.client.get("/dead-letters", params=query)
    wanted = DeadLetterFilter("email", "Permanent", NOW, NOW + timedelta(days=1), "tasks.dlq", CAUSE)
    assert http.letters.last_asked() == (wanted, "open", None, 51)
    await http.client.get("/dead-letters/groups", params={**query, "state": "all"})
    assert http.letters.last_asked() == (wanted, None, None, None)


@pytest.mark.parametrize(
    ("query", "field", "message"),
    [
        ("tasktype=email", "tasktype", "not known here; known are taskType"),
        ("taskType=a&taskType=b", "taskType", "more than once"),
        ("taskType=", "taskType", "1 to 255 printable"),
        ("errorClass=%00", "errorClass", "printable"),
        ("createdAfter=yesterday", "createdAfter", "RFC 3339"),
        ("createdBefore=0001-01-01T00:00:00%2B10:00", "createdBefore", "out of range"),
        ("cause=KeyError", "cause", "such as 1-4f0c2a9be371"),
        ("state=closed", "state", "one of open"),
        ("limit=0", "limit", "from 1 to 200"),
        ("limit=201", "limit", "from 1 to 200"),
        ("limit=²", "limit", "from 1 to 200"),
        ("cursor=x", "cursor", "nextCursor"),
        ("cursor=%C3%A4", "cursor", "nextCursor"),
        ("cursor=MjAzMC0wMS0wMQ", "cursor", "nextCursor"),
    ],
)
async def test_an_invalid_query_is_refused_by_parameter(http: Fixture, query: str, field: str, message: str) -> None:
    response = await http.client.get(f"/dead-letters?{query}")
    assert response.status_code == 422
    assert message in bad_fields(response)[field]
    assert list(bad_fields(response)) == [field]


async def test_one_dead_letter_shows_the_payload_its_trace_and_the_timeline(http: Fixture) -> None:
    name = http.letters.put(letter())
    document = (await http.client.get(f"/dead-letters/{name}")).json()
    assert document["payload"] == {"to": "ada@example.org", "subject": "hi"}
    assert document["traceId"] == "4bf92f3577b34da6a3ce929d0e0e4736"
    assert [entry["event"] for entry in document["timeline"]] == ["accepted"]
    assert document["record"] is None


async def test_the_bytes_of_a_record_are_shown_so_that_they_do_no_harm(http: Fixture) -> None:
    headers = json.dumps([["a", "aGk="], ["b", None], ["a", "/w=="]])
    name = http.letters.put(poison(record_key=b"\xff\x00", record_value=b'{"x": "\xc3\xa4"\n', record_headers=headers))
    document = (await http.client.get(f"/dead-letters/{name}")).json()
    assert document["record"] == {
        "key": {"encoding": "base64", "data": "/wA="},
        "value": {"encoding": "utf-8", "data": '{"x": "ä"\n'},
        "headers": [
            {"name": "a", "value": {"encoding": "utf-8", "data": "hi"}},
            {"name": "b", "value": None},
            {"name": "a", "value": {"encoding": "base64", "data": "/w=="}},
        ],
    }
    assert document["origin"]["timestamp"] is None
    assert (document["taskId"], document["taskType"], document["payload"], document["traceId"]) == (None,) * 4


@pytest.mark.parametrize("raw", [b"\x1b[2J", b"a\x00b", "\u202eabc".encode(), b"\xed\xa0\x80"])
def test_bytes_that_would_move_a_terminal_are_base64(raw: bytes) -> None:
    assert (shown_bytes(raw) or {})["encoding"] == "base64"


@pytest.mark.parametrize("name", ["no-id", "01890a5d-ac96-774b-bcce-b302099a8057", "x" * 36, "groups2"])
async def test_an_unknown_dead_letter_is_a_404(http: Fixture, name: str) -> None:
    for response in (
        await http.client.get(f"/dead-letters/{name}"),
        await http.client.post(f"/dead-letters/{name}/replay"),
        await http.client.post(f"/dead-letters/{name}/discard", json={"reason": "x"}),
    ):
        assert problem(response)["type"] == "/problems/unknown-dead-letter"


async def test_a_dead_letter_is_replayed_as_it_was(http: Fixture) -> None:
    row = letter()
    name = http.letters.put(row)
    response = await http.client.post(f"/dead-letters/{name}/replay")
    assert response.status_code == 202
    assert response.json() == {"deadLetterId": str(name), "taskId": str(row["task_id"]), "status": "scheduled"}
    assert response.headers["location"] == f"/tasks/{row['task_id']}"
    assert http.letters.sent == [(name, None)]
    assert http.replayed == {("Permanent", "single"): 1}


async def test_a_second_replay_is_answered_with_what_the_first_became(http: Fixture) -> None:
    row = letter()
    name = http.letters.put(row)
    await http.replay(name)
    document = problem(await http.replay(name, payload=REPAIRED))
    assert (document["status"], document["type"]) == (409, "/problems/already-replayed")
    assert document["taskId"] == str(row["task_id"])
    assert document["replays"] == [{"at": AT, "taskId": str(row["task_id"]), "outcome": None}]
    assert len(http.letters.sent) == 1


async def test_an_edited_payload_matches_its_type_or_is_refused(http: Fixture) -> None:
    name = http.letters.put(letter())
    refused = await http.replay(name, payload={"to": 7, "colour": "red"})
    assert refused.status_code == 422
    assert set(bad_fields(refused)) == {"payload.to", "payload.colour", "payload.subject"}
    assert http.letters.sent == []
    accepted = await http.replay(name, payload=REPAIRED)
    assert accepted.status_code == 202
    [(_, payload)] = http.letters.sent
    assert json.loads(payload or "") == REPAIRED


async def test_a_payload_of_a_type_that_is_not_registered_cannot_be_checked(http: Fixture) -> None:
    name = http.letters.put(letter(type="gone"))
    assert problem(await http.replay(name, payload={}))["type"] == "/problems/unknown-task-type"
    assert (await http.replay(name)).status_code == 202


async def test_a_dead_letter_whose_task_moved_on_is_a_409(http: Fixture) -> None:
    name = http.letters.put(letter(task_state="succeeded"))
    http.letters.moved_on = True
    document = problem(await http.replay(name))
    assert (document["status"], document["type"]) == (409, "/problems/task-moved-on")
    assert document["taskStatus"] == "succeeded"


@pytest.mark.parametrize(
    ("body", "fields"),
    [
        ({"payloads": 1}, {"payloads"}),
        ({"taskType": 7}, {"taskType"}),
        ({"value": {}}, {"value"}),
        ({"value": "{}", "payload": {}}, {"value"}),
        ({"taskType": "email"}, {"taskType"}),
        ({"value": "{}"}, {"value"}),
    ],
)
async def test_a_repair_that_makes_no_sense_is_refused(http: Fixture, body: dict[str, Any], fields: set[str]) -> None:
    name = http.letters.put(letter())
    response = await http.replay(name, **body)
    assert response.status_code == 422
    assert set(bad_fields(response)) == fields


@pytest.mark.parametrize("body", [b"[]", b"{", b'"x"'])
async def test_a_body_that_is_not_an_object_is_a_400(http: Fixture, body: bytes) -> None:
    name = http.letters.put(letter())
    headers = {"content-type": "application/json"}
    for path in (f"{name}/replay", f"{name}/discard", "replay"):
        response = await http.client.post(f"/dead-letters/{path}", content=body, headers=headers)
        assert problem(response)["status"] == 400
    assert problem(await http.client.post(f"/dead-letters/{name}/replay", content=b"{}"))["status"] == 415


async def test_a_poison_message_needs_a_repair(http: Fixture) -> None:
    name = http.letters.put(poison())
    assert "payload" in bad_fields(await http.replay(name))
    elsewhere = http.letters.put(poison(origin=json.dumps({"topic": "task-topic"})))
    assert "taskType" in bad_fields(await http.replay(elsewhere, payload=REPAIRED))
    assert http.letters.made == []


async def test_a_repaired_payload_becomes_a_task_of_the_type_that_the_topic_shows(http: Fixture) -> None:
    name = http.letters.put(poison())
    response = await http.replay(name, payload=REPAIRED)
    [(made, edited)] = http.letters.made
    assert response.status_code == 202
    assert response.json()["taskId"] == str(made.id)
    assert (made.type, json.loads(made.payload), made.max_attempts, edited) == ("email", REPAIRED, 6, True)
    assert http.replayed == {("NotJson", "mended"): 1}
    assert problem(await http.replay(name, payload=REPAIRED))["taskId"] == str(made.id)
    other = http.letters.put(poison())
    await http.replay(other, payload="x", taskType="simulated")
    assert http.letters.made[1][0].type == "simulated"


async def test_a_repaired_value_is_read_as_a_record_is_read(http: Fixture) -> None:
    name = http.letters.put(poison())
    for value, message in (
        ("{", "still not a task"),
        ('{"taskType": "email"}', "still not a task"),
        (json.dumps({"taskType": "email", "taskId": str(uuid7()), "version": 1}), "has no payload"),
    ):
        response = await http.client.post(
            f"/dead-letters/{name}/replay",
            content=json.dumps({"value": value}),
            headers={"content-type": "application/json"},
        )
        assert message in bad_fields(response)["value"]
    wrong = await http.replay(name, value=json.dumps({"taskType": "email", "payload": {"to": "x"}}))
    assert set(bad_fields(wrong)) == {"payload.subject"}
    marked = "\ufeff" + json.dumps({"taskId": "7", "taskType": "email", "payload": REPAIRED})
    right = await http.replay(name, value=marked)
    assert right.status_code == 202
    assert json.loads(http.letters.made[0][0].payload) == REPAIRED


async def test_a_dead_letter_that_outlived_its_task_becomes_a_new_one(http: Fixture) -> None:
    name = http.letters.put(letter(task_state=None, timeline=None))
    assert (await http.client.get(f"/dead-letters/{name}")).json()["timeline"] == []
    assert (await http.replay(name)).status_code == 202
    [(made, edited)] = http.letters.made
    assert (made.type, json.loads(made.payload)["to"], edited) == ("email", "ada@example.org", False)
    assert made.traceparent == http.letters.rows[name]["traceparent"]


async def test_a_dead_letter_is_discarded_with_a_reason_and_stays_so(http: Fixture) -> None:
    name = http.letters.put(letter())
    first = await http.client.post(f"/dead-letters/{name}/discard", json={"reason": " a test account "})
    assert first.status_code == 200
    assert (first.json()["state"], first.json()["discarded"]) == (
        "discarded",
        {"at": AT, "reason": "a test account"},
    )
    again = await http.client.post(f"/dead-letters/{name}/discard", json={"reason": "other"})
    assert again.json() == first.json()
    document = problem(await http.replay(name))
    assert (document["status"], document["type"]) == (409, "/problems/already-discarded")


async def test_a_dead_letter_that_was_replayed_cannot_be_discarded(http: Fixture) -> None:
    name = http.letters.put(letter())
    await http.replay(name)
    response = await http.client.post(f"/dead-letters/{name}/discard", json={"reason": "x"})
    assert problem(response)["type"] == "/problems/already-replayed"


@pytest.mark.parametrize("body", [{}, {"reason": ""}, {"reason": " "}, {"reason": 7}, {"reason": "x" * 1001}])
async def test_a_discard_without_a_reason_is_refused(http: Fixture, body: dict[str, Any]) -> None:
    name = http.letters.put(letter())
    response = await http.client.post(f"/dead-letters/{name}/discard", json=body)
    assert response.status_code == 422
    assert "1 to 1000" in bad_fields(response)["reason"]


@pytest.mark.parametrize("body", [{}, {"filter": {}}, {"filter": {"taskType": None}}, {"dryRun": True}])
async def test_an_empty_filter_is_refused(http: Fixture, body: dict[str, Any]) -> None:
    document = problem(await http.client.post("/dead-letters/replay", json=body))
    assert (document["status"], document["type"]) == (422, "/problems/empty-filter")
    assert http.letters.bulk == {}


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"filter": {"tasktype": "email"}}, "filter.tasktype"),
        ({"filter": {"taskType": "email", "state": "all"}}, "filter.state"),
        ({"filter": {"createdAfter": 7}}, "filter.createdAfter"),
        ({"filter": []}, "filter"),
        ({"filter": {"taskType": "a"}, "rate": 0}, "rate"),
        ({"filter": {"taskType": "a"}, "rate": True}, "rate"),
        ({"filter": {"taskType": "a"}, "rate": 1e9}, "rate"),
        ({"filter": {"taskType": "a"}, "dryRun": "yes"}, "dryRun"),
        ({"filter": {"taskType": "a"}, "limit": 7}, "limit"),
        ({"filter": {"taskType": "a"}, "canary": 1.5}, "canary"),
        ({"filter": {"taskType": "a"}, "maxFailureRate": 2}, "maxFailureRate"),
        ({"filter": {"taskType": "a"}, "canarySeconds": 0}, "canarySeconds"),
    ],
)
async def test_an_invalid_bulk_replay_is_refused_by_its_fields(http: Fixture, body: dict[str, Any], field: str) -> None:
    response = await http.client.post("/dead-letters/replay", json=body)
    assert response.status_code == 422
    assert list(bad_fields(response)) == [field]
    assert http.letters.bulk == {}


async def test_a_dry_run_counts_and_sends_nothing(http: Fixture) -> None:
    identifier = http.letters.put(letter())
    response = await http.client.post("/dead-letters/replay", json={"filter": {"cause": CAUSE}, "dryRun": True})
    group = {
        "taskType": "email",
        "errorClass": "Permanent",
        "cause": CAUSE,
        "message": "550 no such user",
        "count": 1,
        "oldest": AT,
        "newest": AT,
        "firstSeen": AT,
        "lastSeen": AT,
        "trend": {"hours": 24, "counts": [0] * 23 + [1]},
        "sample": {"deadLetterId": str(identifier), "reason": "550 no such user"},
        "handler": {
            "image": {"name": "own:1", "since": AT},
            "before": None,
            "latest": {"name": "own:2", "since": AT},
        },
    }
    others = {"groups": 3, "count": 7}
    assert (response.status_code, response.json()) == (200, {"matched": 8, "groups": [group], "others": others})
    assert http.letters.bulk == {}


async def test_a_bulk_replay_is_started_looked_at_and_stopped(http: Fixture) -> None:
    http.letters.put(letter())
    body = {"filter": {"taskType": "email", "createdBefore": "2030-01-02T00:00:00Z"}, "rate": 5}
    started = await http.client.post("/dead-letters/replay", json=body)
    name = UUID(started.json()["replayId"])
    assert (started.status_code, started.json()) == (
        202,
        {"replayId": str(name), "action": "replay", "matched": 1, "status": "canary"},
    )
    address = started.headers["location"]
    assert address == f"/dead-letters/replays/{name}"
    shown = (await http.client.get(address)).json()
    assert shown == {
        "replayId": str(name),
        "action": "replay",
        "status": "canary",
        "actor": None,
        "reason": None,
        "canary": 10,
        "maxFailureRate": 0.5,
        "discarded": 0,
        "stoppedBecause": None,
        "newCauses": [{"cause": CAUSE, "count": 1}],
        "filter": {"taskType": "email", "createdBefore": "2030-01-02T00:00:00.000000Z"},
        "rate": 5.0,
        "matched": 1,
        "replayed": 0,
        "skipped": 0,
        "outcomes": {"dead": 1, "succeeded": 2},
        "createdAt": AT,
        "updatedAt": "2030-01-01T00:00:01.000000Z",
    }
    for _ in range(2):
        stopped = await http.client.delete(address)
        assert (stopped.status_code, stopped.json()["status"]) == (200, "stopped")


async def test_jobs_are_listed_with_who_started_them(http: Fixture) -> None:
    http.letters.put(letter())
    replay = {"filter": {"cause": CAUSE}, "actor": "ann", "canary": 3, "maxFailureRate": 0.1, "canarySeconds": 60}
    discard = {"filter": {"taskType": "sms"}, "actor": "bob", "reason": " test numbers "}
    first = (await http.client.post("/dead-letters/replay", json=replay)).json()["replayId"]
    second = (await http.client.post("/dead-letters/discard", json=discard)).json()["replayId"]
    page = (await http.client.get("/dead-letters/replays", params={"limit": 1})).json()
    assert [(job["replayId"], job["action"], job["actor"], job["reason"], job["status"]) for job in page["items"]] == [
        (second, "discard", "bob", "test numbers", "running")
    ]
    rest = (await http.client.get("/dead-letters/replays", params={"cursor": page["nextCursor"]})).json()
    [job] = rest["items"]
    assert (job["replayId"], job["actor"], job["canary"], job["maxFailureRate"]) == (first, "ann", 3, 0.1)
    assert rest["nextCursor"] is None


@pytest.mark.parametrize(
    ("wanted", "rate"), [({"taskType": "email"}, 80.0), ({"taskType": "sms"}, 50.0), ({"cause": CAUSE}, 80.0)]
)
async def test_the_usual_rate_is_that_of_the_type_lately(http: Fixture, wanted: dict[str, str], rate: float) -> None:
    http.letters.put(letter())
    started = await http.client.post("/dead-letters/replay", json={"filter": wanted})
    assert http.letters.bulk[UUID(started.json()["replayId"])]["rate"] == rate


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"filter": {"taskType": "a"}}, "reason"),
        ({"filter": {"taskType": "a"}, "reason": "  "}, "reason"),
        ({"filter": {"taskType": "a"}, "reason": "x", "rate": 5}, "rate"),
        ({"filter": {"taskType": "a"}, "reason": "x", "actor": ""}, "actor"),
        ({"reason": "x"}, "filter"),
    ],
)
async def test_an_invalid_bulk_discard_is_refused_by_its_fields(
    http: Fixture, body: dict[str, Any], field: str
) -> None:
    response = await http.client.post("/dead-letters/discard", json=body)
    assert (response.status_code, list(bad_fields(response))) == (422, [field])
    assert http.letters.bulk == {}


@pytest.mark.parametrize("name", ["x", "01890a5d-ac96-774b-bcce-b302099a8057"])
async def test_an_unknown_bulk_replay_is_a_404(http: Fixture, name: str) -> None:
    for response in (
        await http.client.get(f"/dead-letters/replays/{name}"),
        await http.client.delete(f"/dead-letters/replays/{name}"),
    ):
        assert problem(response)["type"] == "/problems/unknown-replay"


async def test_no_log_line_holds_what_a_dead_letter_holds(http: Fixture, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG, "taskflux"):
        await http.replay(http.letters.put(letter()), payload=REPAIRED)
        await http.client.post(f"/dead-letters/{http.letters.put(letter())}/discard", json={"reason": "ada left"})
        await http.client.post("/dead-letters/replay", json={"filter": {"taskType": "email"}})
    assert [record.message for record in caplog.records if record.name.startswith("taskflux.http.dead_letters")] == [
        "a dead letter was replayed",
        "a dead letter was discarded",
        "a bulk replay begins",
    ]
    said = " ".join(str(vars(record)) for record in caplog.records if record.name.startswith("taskflux"))
    for secret in ("ada@", "ada left", "bob", "no such user"):  # no three letters that an id may hold
        assert secret not in said


async def test_half_a_character_in_a_repair_is_refused_at_its_field(http: Fixture) -> None:
    name = http.letters.put(poison())
    body, headers = b'{"payload": {"to": ["\\ud83c"]}}', {"content-type": "application/json"}
    response = await http.client.post(f"/dead-letters/{name}/replay", content=body, headers=headers)
    assert (response.status_code, problem(response)["type"]) == (422, "/problems/invalid-replay")
    assert list(bad_fields(response)) == ["payload.to[0]"]


async def test_a_repaired_record_keeps_the_fields_beside_its_payload(http: Fixture) -> None:
    name = http.letters.put(poison())
    value = {"taskType": "email", "payload": REPAIRED, "maxAttempts": 2, "scheduleAt": "2030-01-02T00:00:00Z"}
    wrong = await http.replay(name, value=json.dumps(value | {"expiresAt": "2029-01-01T00:00:00Z"}))
    assert set(bad_fields(wrong)) == {"expiresAt"}
    assert (await http.replay(name, value=json.dumps(value))).status_code == 202
    made = http.letters.made[0][0]
    assert (made.max_attempts, made.schedule_at) == (2, datetime(2030, 1, 2, tzinfo=UTC))
