"""What the command makes of the API's answers: the documented shapes, and everything that goes wrong."""

from __future__ import annotations

import json
from typing import Any

import pytest

from taskflux.cli import dead_letters, tasks
from taskflux.http.openapi import schemas as e
from taskflux.local.ports import free_port
from tests.unit.cli.scripted import Server, calls, problem

ID = e.TASK_ID
LETTER = e.DEAD_LETTER_ID
BUSY = (503, problem("store-unavailable", 503, "The store cannot be reached"))
REPLAY = f"/dead-letters/replays/{e.REPLAY_ID}"


def test_a_task_is_sent_with_all_options(server: Server) -> None:
    server.answer("POST /tasks", (202, e.ACCEPTED))
    words = ("--delay", "1h30m", "--key", "k", "--max-attempts", "3", "--metadata", "a=b", "--idempotency-key", "once")
    result = server.run("send", "email", '{"to": "ann@example.org"}', *words)
    assert (result.exit_code, result.stdout.strip()) == (0, ID)
    _, headers, body = server.asked[0]
    assert headers["idempotency-key"] == "once"
    assert body == {
        "taskType": "email",
        "payload": {"to": "ann@example.org"},
        "delaySeconds": 5400.0,
        "key": "k",
        "maxAttempts": 3,
        "metadata": {"a": "b"},
    }


def test_a_request_whose_answer_was_lost_is_repeated_with_the_same_key(server: Server) -> None:
    server.answer("POST /tasks", (0, None), (202, e.ACCEPTED))
    assert server.run("send", "simulated", "hello").exit_code == 0
    keys = {headers["idempotency-key"] for _, headers, _ in server.asked}
    assert (len(server.asked), len(keys)) == (2, 1)


def test_an_unknown_outcome_is_reported_with_the_idempotency_key(server: Server) -> None:
    server.answer("POST /tasks", BUSY)
    result = server.run("send", "simulated", "hello")
    assert result.exit_code == 3
    assert "--idempotency-key cli-" in result.stderr


def test_an_outcome_is_waited_for_over_a_moment_without_an_answer(server: Server) -> None:
    server.answer("POST /tasks", (202, e.ACCEPTED))
    server.answer(f"GET /tasks/{ID}", BUSY, (0, None), (200, {**e.TASK, "status": "succeeded"}))
    result = server.run("send", "simulated", "hello", "--wait")
    assert (result.exit_code, calls(server)[1:]) == (0, [f"GET /tasks/{ID}"] * 3)


def test_a_server_that_stays_unreachable_ends_the_wait_for_an_outcome(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tasks, "SILENCE", 0.0)
    server.answer("POST /tasks", (202, e.ACCEPTED))
    server.answer(f"GET /tasks/{ID}", BUSY)
    result = server.run("send", "simulated", "hello", "--wait")
    assert (result.exit_code, "The store cannot be reached" in result.stderr) == (3, True)


def test_a_task_that_was_deleted_ends_the_wait_at_once(server: Server) -> None:
    server.answer("POST /tasks", (202, e.ACCEPTED))
    assert server.run("send", "simulated", "hello", "--wait").exit_code == 1
    assert len(server.asked) == 2


@pytest.mark.parametrize(
    "words",
    [
        ("send", "email"),
        ("send", "email", '{"to":'),
        ("send", "email", "{}", "--delay", "soon"),
        ("send", "email", "{}", "--delay", "1h", "--at", "2030-01-31T09:00:00Z"),
        ("send", "email", "{}", "--at", "2030-01-31T09:00:00"),
        ("send", "email", "{}", "--timeout", "5"),
        ("tasks", "get", "no-id"),
        ("tasks", "list", "--metadata", "nothing"),
        ("dead-letters", "replay"),
        ("dead-letters", "replay", "--payload", "{}"),
        ("dead-letters", "replay", LETTER, "--rate", "5"),
        ("dead-letters", "replay", LETTER, "--stop", LETTER),
        ("dead-letters", "replay", LETTER, "--value", "x", "--payload", "{}"),
        ("dead-letters", "discard", LETTER),
    ],
)
def test_a_wrong_call_is_status_2_and_asks_nothing(words: tuple[str, ...], server: Server) -> None:
    result = server.run(*words)
    assert (result.exit_code, server.asked) == (2, [])
    assert "Error: " in result.stderr


def test_a_refusal_names_each_bad_field(server: Server) -> None:
    errors = [{"field": "payload.to", "message": "is required"}]
    server.answer("POST /tasks", (422, problem("invalid-task", 422, "The task is not valid", errors=errors)))
    result = server.run("send", "email", "{}")
    assert result.exit_code == 1
    assert result.stderr == "taskflux: The task is not valid: told\n  payload.to: is required\n"


def test_an_unreachable_server_is_status_3_with_the_address(server: Server) -> None:
    address = f"http://127.0.0.1:{free_port()}"
    result = server.run("tasks", "list", "--url", address)
    assert result.exit_code == 3
    assert f"{address} cannot be reached" in result.stderr
    assert "TASKFLUX_API__URL" in result.stderr


def test_another_server_at_the_address_is_reported(server: Server) -> None:
    server.answer("GET /tasks", (200, b"<html>"))
    result = server.run("tasks", "list")
    assert result.exit_code == 3
    assert "is it the address of its API?" in result.stderr


def test_a_list_shows_what_it_has_when_the_search_for_more_takes_too_long(server: Server) -> None:
    too_long = (422, problem("invalid-query", 422, "The query is not valid"))
    server.answer("GET /tasks", (200, {**e.TASK_PAGE, "nextCursor": "b"}), too_long)
    result = server.run("tasks", "list", "--metadata", "order=7")
    assert (result.exit_code, "--cursor b" in result.output) == (0, True)
    assert server.run("tasks", "list", "--metadata", "order=7", "--cursor", "b").exit_code == 1


def test_a_list_goes_over_short_and_empty_pages(server: Server) -> None:
    item = {name: value for name, value in e.TASK.items() if name not in ("payload", "timeline")}
    page: dict[str, Any] = {"items": [item], "nextCursor": "b"}
    server.answer(
        "GET /tasks", (200, page), (200, {"items": [], "nextCursor": "c"}), (200, {**page, "nextCursor": None})
    )
    result = server.run("tasks", "list", "--status", "succeeded", "--json")
    assert json.loads(result.stdout) == {"items": [item, item], "nextCursor": None}
    assert [query for _, _, query in server.asked] == [
        "status=succeeded&limit=50",
        "cursor=b&status=succeeded&limit=49",
        "cursor=c&status=succeeded&limit=49",
    ]


def test_text_of_tasks_cannot_control_the_terminal(server: Server) -> None:
    evil = {**e.DEAD_LETTER, "reason": "bad \x1b[2J\u202e thing"}
    server.answer("GET /dead-letters", (200, {"items": [evil], "nextCursor": None}))
    result = server.run("dead-letters", "list")
    assert "\x1b" not in result.stdout
    assert "\u202e" not in result.stdout


@pytest.mark.parametrize(
    ("words", "call", "document", "told"),
    [
        (("tasks", "get", ID), f"GET /tasks/{ID}", e.TASK, "process-email@pod:1"),
        (("tasks", "list"), "GET /tasks", e.TASK_PAGE, "succeeded"),
        (("tasks", "why", ID), f"GET /tasks/{ID}/why", e.WHY, "the circuit of smtp is open since"),
        (("tasks", "cancel", ID), f"DELETE /tasks/{ID}", e.CANCELLED, f"{ID} cancelled"),
        (("tasks", "resolve", ID, "resend"), f"POST /tasks/{ID}/resolve", e.TASK, ID),
        (("dead-letters", "list"), "GET /dead-letters", e.DEAD_LETTER_PAGE, "no such user"),
        (("dead-letters", "jobs"), "GET /dead-letters/replays", e.BULK_PAGE, "ann"),
        (("dead-letters", "groups"), "GET /dead-letters/groups", e.GROUPS, "12"),
        (("dead-letters", "show", LETTER), f"GET /dead-letters/{LETTER}", e.DEAD_LETTER_IN_FULL, "Hello Ann"),
        (("dead-letters", "replay", LETTER), f"POST /dead-letters/{LETTER}/replay", e.REPLAYED, "scheduled"),
        (
            ("dead-letters", "discard", LETTER, "--reason", "x"),
            f"POST /dead-letters/{LETTER}/discard",
            e.DISCARDED,
            "discarded",
        ),
        (("dead-letters", "replay", "--stop", e.REPLAY_ID), f"DELETE {REPLAY}", e.BULK, "11 of 12 replayed"),
    ],
)
def test_every_answer_is_shown_to_people_and_whole_to_scripts(
    words: tuple[str, ...], call: str, document: dict[str, Any], told: str, server: Server
) -> None:
    server.answer(call, (200, document))
    shown = server.run(*words)
    assert (shown.exit_code, told in shown.stdout) == (0, True), shown.output
    whole = json.loads(server.run(*words, "--json").stdout)
    assert document in (whole, whole[0] if isinstance(whole, list) else None)


def test_a_list_shows_what_each_task_waits_for(server: Server) -> None:
    item = {**e.TASK, "status": "queued", "waitsFor": "the circuit of smtp to close"}
    server.answer("GET /tasks", (200, {"items": [item], "nextCursor": None}))
    heading, line = server.run("tasks", "list").stdout.splitlines()
    assert line[heading.index("WAITS FOR") :].startswith("the circuit of smtp to close")


def test_events_that_share_a_second_are_shown_with_milliseconds(server: Server) -> None:
    times = ("2030-01-01T00:00:00.004567Z", "2030-01-01T00:00:00Z", "2030-01-01T00:00:01.5Z")
    timeline = [{**e.TASK["timeline"][0], "at": at} for at in times]
    server.answer(f"GET /tasks/{ID}", (200, {**e.TASK, "timeline": timeline}))
    *_, first, second, third = server.run("tasks", "get", ID).stdout.splitlines()
    assert first.startswith("2030-01-01 00:00:00.004Z ")
    assert second.startswith("2030-01-01 00:00:00.000Z ")
    assert third.startswith("2030-01-01 00:00:01Z ")


def test_a_poison_record_is_shown(server: Server) -> None:
    record: dict[str, Any] = {"key": None, "value": {"encoding": "base64", "data": "/w=="}, "headers": []}
    letter = {**e.DEAD_LETTER_IN_FULL, "taskId": None, "payload": None, "timeline": [], "record": record}
    server.answer(f"GET /dead-letters/{LETTER}", (200, letter))
    assert "/w==" in server.run("dead-letters", "show", LETTER).stdout


def test_a_bulk_replay_is_watched_to_its_end(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dead_letters, "LOOK_EVERY", 0)
    server.answer("POST /dead-letters/replay", (200, e.DRY_RUN), (202, e.BULK_STARTED))
    running = {**e.BULK, "status": "running", "replayed": 5, "skipped": 0}
    server.answer(f"GET {REPLAY}", (200, running), BUSY, (200, e.BULK))
    result = server.run("dead-letters", "replay", "--type", "email", "--rate", "5", "--yes")
    assert (result.exit_code, "11 of 12 replayed, 1 skipped; so far 10 succeeded, 1 dead" in result.stdout) == (1, True)
    assert "1 task died again" in result.stderr
    assert server.asked[1][2] == {"filter": {"taskType": "email"}, "dryRun": False, "rate": 5.0}


def test_ctrl_c_does_not_stop_the_job_and_says_how_to_watch_and_stop_it(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(seconds: float) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(dead_letters, "sleep", interrupt)
    server.answer("POST /dead-letters/replay", (200, e.DRY_RUN), (202, e.BULK_STARTED))
    server.answer(f"GET {REPLAY}", (200, {**e.BULK, "status": "running"}))
    result = server.run("dead-letters", "replay", "--type", "email", "--yes")
    assert result.exit_code == 130
    assert f"--follow {e.REPLAY_ID}" in result.stderr
    assert f"--stop {e.REPLAY_ID}" in result.stderr
    assert f"DELETE {REPLAY}" not in calls(server)


@pytest.mark.parametrize(("reply", "status", "stopped"), [("y", 1, True), ("n", 130, False), ("", 130, False)])
def test_at_a_terminal_ctrl_c_asks_whether_to_stop_the_job_too(
    reply: str, status: int, stopped: bool, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(seconds: float) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(dead_letters, "sleep", interrupt)
    monkeypatch.setattr(dead_letters, "on_terminal", lambda: True)
    server.answer("POST /dead-letters/replay", (200, e.DRY_RUN), (202, e.BULK_STARTED))
    server.answer(f"GET {REPLAY}", (200, {**e.BULK, "status": "running"}))
    server.answer(f"DELETE {REPLAY}", (200, {**e.BULK, "status": "stopped"}))
    result = server.run("dead-letters", "replay", "--type", "email", stdin=f"y\n{reply}\n")
    assert result.exit_code == status
    assert (f"DELETE {REPLAY}" in calls(server)) is stopped


def test_at_a_terminal_a_bulk_replay_is_asked_for_first(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dead_letters, "on_terminal", lambda: True)
    server.answer("POST /dead-letters/replay", (200, e.DRY_RUN))
    result = server.run("dead-letters", "replay", "--type", "email", stdin="n\n")
    assert (result.exit_code, len(server.asked)) == (1, 1)
    assert "Replay 12 dead letters?" in result.stderr


@pytest.mark.parametrize("words", [(), ("--json",), ("--detach",)])
def test_without_a_terminal_a_bulk_replay_needs_the_option_yes(words: tuple[str, ...], server: Server) -> None:
    result = server.run("dead-letters", "replay", "--type", "email", *words)
    assert result.exit_code == 2
    assert "pass --yes" in result.stderr
    assert server.asked == []


@pytest.mark.parametrize(
    ("outcomes", "status", "says"),
    [
        ({"succeeded": 11}, 0, ""),
        ({"succeeded": 9, "cancelled": 1, "pruned": 1}, 0, ""),
        ({"succeeded": 9, "dead": 2}, 1, "2 tasks died again"),
        ({"succeeded": 10, "uncertain": 1}, 1, "1 task may have been done or not"),
        ({"succeeded": 9, "dead": 1, "running": 1}, 1, "1 task died again"),
        ({"succeeded": 9, "scheduled": 1, "running": 1}, 4, "2 tasks not finished yet"),
        ({"succeeded": 10, "running": 1}, 4, "1 task not finished yet"),
    ],
)
def test_the_exit_status_of_a_bulk_replay_says_what_became_of_its_tasks(
    outcomes: dict[str, int], status: int, says: str, server: Server
) -> None:
    server.answer(f"GET {REPLAY}", (200, {**e.BULK, "outcomes": outcomes}))
    result = server.run("dead-letters", "replay", "--follow", e.REPLAY_ID, "--timeout", "0")
    assert result.exit_code == status
    assert says in result.stderr


def test_a_bulk_replay_waits_for_the_ends_of_its_tasks(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dead_letters, "LOOK_EVERY", 0)
    running = [(200, {**e.BULK, "outcomes": {"succeeded": ended, "running": 11 - ended}}) for ended in (0, 5, 10)]
    server.answer(f"GET {REPLAY}", *running, (200, {**e.BULK, "outcomes": {"succeeded": 11}}))
    result = server.run("dead-letters", "replay", "--follow", e.REPLAY_ID)
    assert (result.exit_code, "11 succeeded" in result.stdout) == (0, True)


def test_a_payload_is_edited_until_the_server_accepts_it(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []
    typed = ["{", '{"to": 7}', '{"to": "bob@example.org"}']

    def edit(text: str, extension: str) -> str:
        seen.append(text)
        return typed[len(seen) - 1]

    monkeypatch.setattr("click.edit", edit)
    wrong = problem("invalid-task", 422, "The task is not valid")
    wrong["errors"] = [{"field": "payload.to", "message": "must be an address"}]
    server.answer(f"GET /dead-letters/{LETTER}", (200, e.DEAD_LETTER_IN_FULL))
    server.answer(f"POST /dead-letters/{LETTER}/replay", (422, wrong), (202, e.REPLAYED))
    result = server.run("dead-letters", "replay", LETTER, "--edit", stdin="y\ny\n")
    assert (result.exit_code, "scheduled" in result.stdout) == (0, True), result.output
    assert json.loads(seen[0]) == e.DEAD_LETTER_IN_FULL["payload"]
    assert seen[1:] == typed[:2]  # what was typed is not lost
    assert "must be an address" in result.output


def test_a_bulk_discard_is_started_and_watched(server: Server) -> None:
    server.answer("POST /dead-letters/discard", (200, e.DRY_RUN), (202, e.DISCARD_STARTED))
    ended = {**e.BULK, "action": "discard", "replayed": 0, "discarded": 12, "skipped": 0, "outcomes": {}}
    server.answer(f"GET {REPLAY}", (200, ended | {"newCauses": []}))
    words = ("dead-letters", "discard", "--cause", "1-4f0c2a9be371", "--reason", "a test", "--actor", "ann", "--yes")
    result = server.run(*words)
    assert (result.exit_code, "12 of 12 discarded" in result.stdout) == (0, True), result.output
    assert server.run("dead-letters", "discard", "--reason", "a test").exit_code == 2


def test_a_stopped_replay_is_not_a_success(server: Server) -> None:
    server.answer(f"GET {REPLAY}", (200, {**e.BULK, "status": "stopped"}))
    assert server.run("dead-letters", "replay", "--follow", e.REPLAY_ID).exit_code == 1


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_every_shell_gets_its_script(shell: str, server: Server) -> None:
    result = server.run("completion", shell)
    assert result.exit_code == 0
    assert "_TASKFLUX_COMPLETE" in result.stdout
