"""Tasks as they are shown, lists of them, and decisions: everything that is decided before the store."""

from __future__ import annotations

import base64
import json
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest

from taskflux.http.bodies import to_json
from taskflux.http.problems import Problem
from taskflux.http.queries import Query, read_task_query, task_cursor
from taskflux.http.tasks import parse_timeline, task_document, waits_for
from taskflux.store.tasks import Page, SearchTooLong, TaskFilter, uuid_floor
from taskflux.tasks.states import State
from tests.unit.http.memory import Fixture, bad_fields, problem
from tests.unit.http.stores import ID, row


def test_a_fresh_task_shows_what_every_task_has() -> None:
    assert task_document(row()) == {
        "taskId": str(ID),
        "taskType": "email",
        "status": "scheduled",
        "payload": {"to": "a"},
        "attempts": 0,
        "maxAttempts": 8,
        "retryCount": 0,
        "losses": 0,
        "createdAt": "2030-01-01T00:00:00.000000Z",
        "updatedAt": "2030-01-01T00:00:00.000000Z",
        "dueAt": "2030-01-01T00:00:00.000000Z",
        "result": None,
        "error": None,
        "timeline": [
            {"at": "2030-01-01T00:00:00.000000Z", "event": "accepted", "state": "scheduled", "attempt": 0},
        ],
    }


def test_what_only_some_tasks_have_is_shown_when_it_is_there() -> None:
    east = timezone(timedelta(hours=2))
    document = task_document(
        row(
            attempts=3,
            replays=1,
            key="k",
            metadata='{"order":1}',
            traceparent="00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
            expires_at=datetime(2030, 1, 1, 2, tzinfo=east),
            result='{"messageId":"x"}',
            error_class="Transient",
            error_reason="451 try later",
        )
    )
    assert document["retryCount"] == 2
    assert document["error"] == {"class": "Transient", "reason": "451 try later"}
    assert document["result"] == {"messageId": "x"}
    assert document["replays"] == 1
    assert document["key"] == "k"
    assert document["metadata"] == {"order": 1}
    assert document["traceId"] == "4bf92f3577b34da6a3ce929d0e0e4736"
    assert document["expiresAt"] == "2030-01-01T00:00:00.000000Z"


@pytest.mark.parametrize(
    "payload", ["NaN", '{"x": 1e999, "y": -Infinity}', "not json", "[" * 5000, '"\\ud800\\u0000"', "9" * 5000]
)
def test_any_stored_text_can_be_shown(payload: str) -> None:
    json.loads(to_json(task_document(row(payload=payload))), parse_constant=pytest.fail)


async def test_a_page_shows_tasks_without_payload_and_timeline(http: Fixture) -> None:
    http.tasks.page_ = Page([row(state="dead", error_class="Permanent", error_reason="never", key="k")], None)
    response = await http.client.get("/tasks")
    assert response.status_code == 200
    [item] = response.json()["items"]
    assert response.json()["nextCursor"] is None
    assert (item["taskId"], item["status"], item["key"]) == (str(ID), "dead", "k")
    assert item["error"] == {"class": "Permanent", "reason": "never"}
    assert not {"payload", "timeline"} & item.keys()
    assert http.tasks.asked == [(TaskFilter(), 50, None)]


async def test_filters_limit_and_cursor_reach_the_store(http: Fixture) -> None:
    http.tasks.page_ = Page([], ID)
    query = {
        "status": "uncertain",
        "taskType": "sms",
        "createdAfter": "2029-12-31T23:59:60Z",
        "createdBefore": "2030-01-02T02:00:00+02:00",
        "key": "customer 7",
        "metadata.order": "17",
        "metadata.": "",
        "limit": "200",
    }
    response = await http.client.get("/tasks", params=query)
    assert response.json()["items"] == []
    again = await http.client.get("/tasks", params=query | {"cursor": response.json()["nextCursor"], "limit": "7"})
    assert again.status_code == 200
    wanted = TaskFilter(
        State.UNCERTAIN,
        "sms",
        datetime(2030, 1, 1, tzinfo=UTC),
        datetime(2030, 1, 2, tzinfo=UTC),
        "customer 7",
        {"order": "17", "": ""},
    )
    assert http.tasks.asked == [(wanted, 200, None), (wanted, 7, ID)]


async def test_a_search_that_takes_too_long_says_how_to_go_on(http: Fixture) -> None:
    reached = uuid_floor(datetime(2029, 12, 31, 23, 59, 50, tzinfo=UTC))
    http.tasks.too_long = SearchTooLong(reached, ["order"])
    response = await http.client.get("/tasks", params={"metadata.order": "17"})
    assert (response.status_code, response.json()["type"]) == (422, "/problems/invalid-query")
    [error] = response.json()["errors"]
    assert error["field"] == "metadata.order"
    for part in ("createdBefore=2030-01-01T00:00:00.000000Z", "TASKFLUX_POSTGRES__METADATA_KEYS", "taskflux migrate"):
        assert part in error["message"]
    http.tasks.too_long = SearchTooLong(reached, [])
    [error] = (await http.client.get("/tasks", params={"status": "succeeded"})).json()["errors"]
    assert error["field"] == "createdBefore"
    assert "METADATA" not in error["message"]


async def test_the_plus_of_an_offset_may_arrive_as_a_space(http: Fixture) -> None:
    assert (await http.client.get("/tasks?createdAfter=2030-01-01T02:00:00+02:00")).status_code == 200
    [(wanted, _, _)] = http.tasks.asked
    assert wanted.created_from == datetime(2030, 1, 1, tzinfo=UTC)


@pytest.mark.parametrize(
    ("query", "field", "message"),
    [
        ("status=PENDING", "status", "must be one of scheduled, queued"),
        ("status=", "status", "must be one of"),
        ("limit=0", "limit", "from 1 to 200"),
        ("limit=201", "limit", "from 1 to 200"),
        ("limit=ten", "limit", "from 1 to 200"),
        ("limit=%D9%A3", "limit", "from 1 to 200"),
        ("taskType=", "taskType", "printable"),
        ("key=%00", "key", "printable"),
        ("createdAfter=yesterday", "createdAfter", "RFC 3339"),
        ("createdBefore=2030-01-01T00:00:00", "createdBefore", "offset from UTC"),
        ("createdBefore=9999-12-31T23:59:59-23:00", "createdBefore", ""),
        ("createdAfter=0001-01-01T00:00:00%2B23:00", "createdAfter", ""),
        ("type=email", "type", "is not known here; known are status, taskType"),
        ("key=a&key=b", "key", "more than once"),
        ("metadata.a=1&metadata.a=2", "metadata.a", "more than once"),
        ("&".join(f"metadata.m{n}=1" for n in range(11)), "metadata.<name>", "more than 10"),
        ("metadata.a=" + "x" * 1001, "metadata.a", "longer than"),
    ],
)
async def test_an_invalid_parameter_is_named(query: str, field: str, message: str, http: Fixture) -> None:
    response = await http.client.get(f"/tasks?{query}")
    assert (response.status_code, problem(response)["type"]) == (422, "/problems/invalid-query")
    assert message in bad_fields(response)[field]
    assert http.tasks.asked == []


@pytest.mark.parametrize("query", ["createdAfter=0001-01-01T00:00:00Z", "createdBefore=9999-12-31T23:59:59Z"])
async def test_the_first_and_the_last_year_can_be_asked_for(query: str, http: Fixture) -> None:
    assert (await http.client.get(f"/tasks?{query}")).status_code == 200


@pytest.mark.parametrize(
    "cursor", ["", "x", "ä", "AQ==", base64.urlsafe_b64encode(b"\x02" + bytes(20)).decode(), "A" * 5000]
)
async def test_a_text_that_is_not_a_cursor_is_named(cursor: str, http: Fixture) -> None:
    response = await http.client.get("/tasks", params={"cursor": cursor})
    assert (response.status_code, problem(response)["type"]) == (422, "/problems/invalid-query")
    assert bad_fields(response) == {"cursor": "is not a cursor: pass a nextCursor on unchanged"}


async def test_a_cursor_is_refused_with_other_filters_than_its_own(http: Fixture) -> None:
    cursor = task_cursor(ID, Query(TaskFilter(State.DEAD), 50, None))
    assert (await http.client.get("/tasks", params={"cursor": cursor, "status": "dead"})).status_code == 200
    response = await http.client.get("/tasks", params={"cursor": cursor, "status": "queued"})
    assert (response.status_code, problem(response)["type"]) == (422, "/problems/invalid-query")
    assert "other filters" in bad_fields(response)["cursor"]


def test_a_cursor_says_where_the_next_page_begins() -> None:
    cursor = task_cursor(ID, Query(TaskFilter(metadata={"b": "2", "a": "1"}), 50, None))
    asked = read_task_query([("metadata.a", "1"), ("metadata.b", "2"), ("cursor", cursor)])
    assert asked.after == ID
    assert set(cursor) <= set("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_")
    with pytest.raises(Problem):
        read_task_query([("cursor", cursor)])


async def test_everything_that_is_wrong_with_a_query_is_named_at_once(http: Fixture) -> None:
    response = await http.client.get("/tasks?limit=0&cursor=x&key=a&key=b&order=up&metadata.a=" + "x" * 1001)
    assert bad_fields(response).keys() == {"limit", "cursor", "key", "order", "metadata.a"}


@pytest.mark.parametrize("state", ["scheduled", "queued", "cancelled"])
async def test_a_waiting_task_is_cancelled_however_often_that_is_asked(state: str, http: Fixture) -> None:
    http.tasks.rows[ID] = row(state=state)
    for _ in range(2):
        response = await http.client.delete(f"/tasks/{ID}")
        assert (response.status_code, response.json()["status"]) == (200, "cancelled")
        assert response.json()["payload"] == {"to": "a"}


@pytest.mark.parametrize(
    ("state", "hint"),
    [("running", "worker"), ("succeeded", "already"), ("dead", "dead letter"), ("uncertain", "resolve it")],
)
async def test_a_task_that_runs_or_has_ended_is_not_cancelled(state: str, hint: str, http: Fixture) -> None:
    http.tasks.rows[ID] = row(state=state)
    response = await http.client.delete(f"/tasks/{ID}")
    document = problem(response)
    assert (response.status_code, document["type"], document["taskStatus"]) == (409, "/problems/wrong-state", state)
    assert hint in document["detail"]
    assert http.tasks.rows[ID]["state"] == state


@pytest.mark.parametrize(("outcome", "state"), [("succeeded", "succeeded"), ("resend", "scheduled"), ("dead", "dead")])
async def test_an_uncertain_task_is_resolved(outcome: str, state: str, http: Fixture) -> None:
    http.tasks.rows[ID] = row(state="uncertain")
    response = await http.client.post(f"/tasks/{ID}/resolve", json={"outcome": outcome, "reason": " he said so "})
    assert (response.status_code, response.json()["status"]) == (200, state)
    assert http.tasks.reasons == ["he said so"]
    response = await http.client.post(f"/tasks/{ID}/resolve", json={"outcome": outcome})
    assert (response.status_code, problem(response)["taskStatus"]) == (409, state)


@pytest.mark.parametrize(
    ("body", "fields"),
    [
        ({}, {"outcome"}),
        ({"outcome": "retry"}, {"outcome"}),
        ({"outcome": ["dead"]}, {"outcome"}),
        ({"outcome": "dead", "reason": 7, "by": "me"}, {"reason", "by"}),
        ({"outcome": "dead", "reason": " "}, {"reason"}),
        ({"outcome": "dead", "reason": "x" * 1001}, {"reason"}),
    ],
)
async def test_an_invalid_decision_is_refused_by_its_fields(body: object, fields: set[str], http: Fixture) -> None:
    http.tasks.rows[ID] = row(state="uncertain")
    response = await http.client.post(f"/tasks/{ID}/resolve", json=body)
    assert (response.status_code, problem(response)["type"]) == (422, "/problems/invalid-resolution")
    assert bad_fields(response).keys() == fields
    assert http.tasks.rows[ID]["state"] == "uncertain"


async def test_a_decision_comes_as_a_json_object(http: Fixture) -> None:
    path = f"/tasks/{ID}/resolve"
    assert (await http.client.post(path, json=["dead"])).status_code == 422
    assert (await http.client.post(path, content="outcome=dead")).status_code == 415
    json_type = {"content-type": "application/json"}
    assert (await http.client.post(path, content="{", headers=json_type)).status_code == 400
    assert (await http.client.post(path, content=" " * 70_000, headers=json_type)).status_code == 413


@pytest.mark.parametrize("task", [str(ID), "x"])
async def test_nothing_is_decided_about_an_unknown_task(task: str, http: Fixture) -> None:
    for response in (
        await http.client.delete(f"/tasks/{task}"),
        await http.client.post(f"/tasks/{task}/resolve", json={"outcome": "dead"}),
    ):
        assert (response.status_code, problem(response)["type"]) == (404, "/problems/unknown-task")


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("PUT", "/tasks", "GET, HEAD, POST"),
        ("PATCH", f"/tasks/{ID}", "DELETE, GET, HEAD"),
        ("GET", f"/tasks/{ID}/resolve", "POST"),
    ],
)
async def test_a_405_names_every_method_of_its_address(method: str, path: str, allowed: str, http: Fixture) -> None:
    response = await http.client.request(method, path)
    assert (response.status_code, response.headers["allow"]) == (405, allowed)


def entry(second: float, event: str, state: str = "scheduled", times: int = 1) -> str:
    return f"2030-01-01T00:00:{second:09.6f}Z|{event}|{state}|1|{times}|"


def test_a_timeline_shows_no_event_before_the_one_that_led_to_it() -> None:
    """A transaction may have waited for the one before, and a clock may have been set back."""
    timeline = parse_timeline([entry(1, "accepted"), entry(5, "claimed"), entry(3, "retry"), entry(7, "claimed")])
    assert [(each["event"], each["at"][17:19]) for each in timeline] == [
        ("accepted", "01"),
        ("claimed", "05"),
        ("retry", "05"),
        ("claimed", "07"),
    ]


def test_folded_repeats_stand_at_the_time_of_the_first_one() -> None:
    row = [entry(1, "accepted"), entry(9, "resolved"), entry(3, "retry", times=7), entry(2, "claimed", times=8)]
    timeline = parse_timeline([*row, entry(8, "succeeded")])
    assert [each["event"] for each in timeline] == ["accepted", "claimed", "retry", "resolved", "succeeded"]
    assert [each["at"] for each in timeline] == sorted(each["at"] for each in timeline)


# What a task waits for ------------------------------------------------------------------------------------------------

NOW = datetime(2030, 1, 1, 12, tzinfo=UTC)
LATER = NOW + timedelta(seconds=1)


@pytest.mark.parametrize(
    ("fields", "open_circuit", "expected"),
    [
        ({"state": "scheduled", "due_at": LATER}, None, "its time"),
        ({"state": "scheduled", "due_at": LATER, "error_class": "Transient"}, None, "its next attempt"),
        ({"state": "scheduled", "due_at": LATER, "error_class": "Unavailable"}, "smtp", "its next attempt"),
        ({"state": "scheduled", "due_at": NOW}, None, "the relay to publish it"),
        ({"state": "scheduled", "due_at": NOW}, "smtp", "the circuit of smtp to close"),
        ({"state": "queued"}, None, "a worker"),
        ({"state": "queued"}, "smtp", "the circuit of smtp to close"),
        ({"state": "uncertain", "error_class": "Ambiguous"}, "smtp", "a decision"),
        ({"state": "running"}, "smtp", None),
        *(({"state": state}, "smtp", None) for state in ("succeeded", "dead", "cancelled")),
    ],
)
def test_a_task_says_what_it_waits_for(fields: dict[str, Any], open_circuit: str | None, expected: str | None) -> None:
    assert waits_for(row(**fields), open_circuit, NOW) == expected


async def test_a_task_and_a_list_show_what_is_waited_for(http: Fixture) -> None:
    http.tasks.page_ = Page([row(state="queued"), row(state="dead")], None)
    http.tasks.rows[ID] = row(state="queued")
    http.open_circuits["email"] = "smtp"
    waiting, dead = (await http.client.get("/tasks")).json()["items"]
    assert waiting["waitsFor"] == "the circuit of smtp to close"
    assert "waitsFor" not in dead
    assert (await http.client.get(f"/tasks/{ID}")).json()["waitsFor"] == "the circuit of smtp to close"


async def test_half_a_character_in_a_decision_is_refused_at_its_field(http: Fixture) -> None:
    body, headers = b'{"outcome": "dead", "reason": "\\ud83c"}', {"content-type": "application/json"}
    response = await http.client.post(f"/tasks/{ID}/resolve", content=body, headers=headers)
    assert (response.status_code, problem(response)["type"]) == (422, "/problems/invalid-resolution")
    assert list(bad_fields(response)) == ["reason"]
