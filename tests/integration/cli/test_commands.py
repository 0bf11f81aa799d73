"""The command against a running TaskFlux."""

from __future__ import annotations

import json
from typing import Any
from uuid import UUID

import jsonschema_rs

from tests.integration.cli.command import Command
from tests.integration.system.scripted import WORLD
from tests.integration.system.stack import Stack, eventually

PERMANENT = json.dumps({"script": ["permanent"]})


async def dead_letter_of(taskflux: Command, task_id: str) -> dict[str, Any]:
    async def stored() -> dict[str, Any] | None:
        listed = (await taskflux("dead-letters", "list", "--after", "1h", "--limit", "200", "--json")).json["items"]
        return next((letter for letter in listed if letter["taskId"] == task_id), None)

    letter: dict[str, Any] = await eventually(stored, f"the dead letter of {task_id}")
    return letter


async def test_a_task_is_sent_and_its_success_waited_for(taskflux: Command) -> None:
    sent = await taskflux("send", "scripted", '{"script": ["succeed"]}', "--metadata", "by=cli", "--wait", "--json")
    assert (sent.status, sent.json["status"], sent.json["metadata"]) == (0, "succeeded", {"by": "cli"})
    shown = await taskflux("tasks", "get", sent.json["taskId"])
    assert shown.status == 0
    assert "succeeded" in shown.out
    assert "claimed" in shown.out
    assert "\x1b" not in shown.out


async def test_a_task_that_dies_makes_the_waiting_command_fail(taskflux: Command) -> None:
    sent = await taskflux("send", "scripted", "-", "--wait", stdin=PERMANENT)
    assert sent.status == 1
    assert "the task is dead (Permanent: never)" in sent.err


async def test_the_same_idempotency_key_names_the_same_task(taskflux: Command) -> None:
    words = ("send", "scripted", "{}", "--idempotency-key", "cli-once", "--delay", "1h")
    first, second = await taskflux(*words), await taskflux(*words)
    assert first.out.split()[0] == second.out.split()[0]
    assert "no second task" in second.out


async def test_a_waiting_command_gives_up_when_its_time_is_over(taskflux: Command) -> None:
    sent = await taskflux("send", "scripted", "{}", "--delay", "1h", "--wait", "--timeout", "0.2s")
    assert sent.status == 4
    assert "still scheduled" in sent.err


async def test_a_wrong_payload_is_refused_with_its_fields(taskflux: Command) -> None:
    sent = await taskflux("send", "scripted", '{"script": 5}')
    assert sent.status == 1
    assert "payload.script" in sent.err


async def test_tasks_are_listed_cancelled_and_found_cancelled(taskflux: Command) -> None:
    sent = [await taskflux("send", "scripted", "{}", "--delay", "1h", "--key", "cli-list") for _ in range(3)]
    ids = {each.out.strip() for each in sent}
    listed = await taskflux("tasks", "list", "--key", "cli-list", "--status", "scheduled", "--json")
    assert {item["taskId"] for item in listed.json["items"]} == ids
    assert (await taskflux("tasks", "list", "--key", "cli-list", "--limit", "2", "--json")).json["nextCursor"]
    cancelled = await taskflux("tasks", "cancel", *ids)
    assert (cancelled.status, cancelled.out.count("cancelled")) == (0, 3)
    table = await taskflux("tasks", "list", "--key", "cli-list", "--status", "cancelled")
    assert all(each in table.out for each in ids)


async def test_what_has_ended_is_not_cancelled(taskflux: Command) -> None:
    sent = await taskflux("send", "scripted", "{}", "--wait", "--json")
    cancelled = await taskflux("tasks", "cancel", sent.json["taskId"])
    assert cancelled.status == 1
    assert "succeeded" in cancelled.err


async def test_an_uncertain_task_is_decided_on(taskflux: Command) -> None:
    sent = await taskflux("send", "held", '{"script": ["ambiguous", "succeed"]}', "--wait", "--json")
    assert (sent.status, sent.json["status"]) == (1, "uncertain")
    assert "taskflux tasks resolve" in sent.err
    resolved = await taskflux("tasks", "resolve", sent.json["taskId"], "succeeded", "--reason", "seen", "--json")
    assert (resolved.status, resolved.json["status"]) == (0, "succeeded")


async def test_an_unknown_task_is_a_no(taskflux: Command) -> None:
    answer = await taskflux("tasks", "get", "01890a5d-ac96-774b-bcce-b302099a8057")
    assert answer.status == 1
    assert answer.err.startswith("taskflux: There is no such task")


async def test_a_dead_letter_is_looked_at_mended_and_replayed_once(taskflux: Command, stack: Stack) -> None:
    task_id = (await taskflux("send", "scripted", PERMANENT, "--wait", "--json")).json["taskId"]
    letter = await dead_letter_of(taskflux, task_id)
    shown = await taskflux("dead-letters", "show", letter["deadLetterId"])
    assert "Permanent" in shown.out
    assert '"script"' in shown.out
    wrong = await taskflux("dead-letters", "replay", letter["deadLetterId"], "--payload", '{"script": 1}')
    assert (wrong.status, "payload.script" in wrong.err) == (1, True)
    replayed = await taskflux("dead-letters", "replay", letter["deadLetterId"], "--payload", '{"script": ["succeed"]}')
    assert (replayed.status, replayed.out.split()[1]) == (0, "scheduled"), replayed.err
    await stack.until(UUID(replayed.out.split()[0]), "succeeded")
    again = await taskflux("dead-letters", "replay", letter["deadLetterId"])
    assert again.status == 1
    assert "sent again before" in again.err


async def test_a_dead_letter_is_discarded_with_a_reason(taskflux: Command) -> None:
    task_id = (await taskflux("send", "scripted", PERMANENT, "--wait", "--json")).json["taskId"]
    letter = await dead_letter_of(taskflux, task_id)
    assert (await taskflux("dead-letters", "discard", letter["deadLetterId"])).status == 2
    discarded = await taskflux("dead-letters", "discard", letter["deadLetterId"], "--reason", "a test")
    assert (discarded.status, discarded.out.split()[1]) == (0, "discarded")
    shown = (await taskflux("dead-letters", "show", letter["deadLetterId"], "--json")).json
    assert shown["discarded"]["reason"] == "a test"


async def test_many_are_counted_and_replayed_by_a_filter(taskflux: Command) -> None:
    payload = json.dumps({"script": ["permanent"], "secret": "bulk"})
    ids = [(await taskflux("send", "provided", payload, "--wait", "--json")).json["taskId"] for _ in range(2)]
    for each in ids:
        await dead_letter_of(taskflux, each)
    words = ("dead-letters", "replay", "--type", "provided", "--error-class", "Permanent")
    dry = await taskflux(*words, "--dry-run")
    assert (dry.status, dry.out.splitlines()[0]) == (0, "2 dead letters would be replayed")
    assert "provided" in (await taskflux("dead-letters", "groups", "--type", "provided")).out
    bulk = await taskflux(*words, "--rate", "100", "--json")
    assert (bulk.status, bulk.json["status"], bulk.json["replayed"]) == (0, "finished", 2), bulk.err
    looked = await taskflux("dead-letters", "replay", "--follow", bulk.json["replayId"])
    assert (looked.status, "2 of 2 replayed" in looked.out) == (0, True)
    assert all(WORLD.effects(UUID(each)) >= 1 for each in ids)


async def test_the_running_api_answers_what_its_document_says(taskflux: Command, stack: Stack) -> None:
    document = (await stack.client.get("/openapi.json")).json()
    task_id = (await taskflux("send", "scripted", "{}", "--wait", "--json")).json["taskId"]
    for path, call in (
        ("/tasks/{taskId}", f"/tasks/{task_id}"),
        ("/tasks", "/tasks?limit=5"),
        ("/dead-letters", "/dead-letters?state=all"),
        ("/dead-letters/groups", "/dead-letters/groups?state=all"),
    ):
        answer = await stack.client.get(call)
        content = document["paths"][path]["get"]["responses"]["200"]["content"]["application/json"]
        schema = {**content["schema"], "components": document["components"]}
        jsonschema_rs.validate(schema, answer.json())
    letters = (await stack.client.get("/dead-letters?state=all&limit=1")).json()["items"]
    for letter in letters:
        answer = await stack.client.get(f"/dead-letters/{letter['deadLetterId']}")
        jsonschema_rs.validate(
            {"$ref": "#/components/schemas/DeadLetterInFull", "components": document["components"]}, answer.json()
        )
