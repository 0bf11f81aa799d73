"""From a task that dies to a person who finds it, fixes the cause, and replays it; all parts running."""

from __future__ import annotations

from typing import Any
from uuid import UUID, uuid4

from taskflux.stream.envelope import OutRecord
from taskflux.stream.producer import Producer, Published
from taskflux.stream.topics import task_topic
from taskflux.worker.loading import load
from tests.integration.system.scripted import World
from tests.integration.system.stack import Stack, eventually

Document = dict[str, Any]


async def answer(stack: Stack, method: str, path: str, status: int = 200, **arguments: Any) -> Document:
    response = await stack.client.request(method, path, **arguments)
    assert response.status_code == status, response.text
    document: Document = response.json()
    return document


async def letter_of(stack: Stack, task: UUID) -> Document:
    """The open dead letter of `task`, once it is stored."""

    async def found() -> Document | None:
        page = await answer(stack, "GET", "/dead-letters", params={"limit": 200})
        return next((item for item in page["items"] if item["taskId"] == str(task)), None)

    document: Document = await eventually(found, f"a dead letter of {task}")
    return document


async def let_die(stack: Stack, count: int) -> tuple[list[UUID], Document]:
    """So many tasks that die until the cause is fixed, and the filter that finds only their dead letters."""
    items = [{"taskType": "scripted", "payload": {"script": ["mended"]}} for _ in range(count)]
    results = (await stack.client.post("/tasks/batch", json=items)).json()
    wanted = {"taskType": "scripted", "createdAfter": results[0]["createdAt"]}

    async def all_dead() -> bool:
        return await matched(stack, wanted) == count

    await eventually(all_dead, f"{count} dead letters")
    return [UUID(result["taskId"]) for result in results], wanted


async def matched(stack: Stack, wanted: Document) -> int:
    dry = await answer(stack, "POST", "/dead-letters/replay", json={"filter": wanted, "dryRun": True})
    count: int = dry["matched"]
    assert sum(group["count"] for group in dry["groups"]) == count
    return count


async def start(stack: Stack, wanted: Document, rate: float) -> str:
    body = {"filter": wanted, "rate": rate}
    return f"/dead-letters/replays/{(await answer(stack, 'POST', '/dead-letters/replay', 202, json=body))['replayId']}"


async def until_replayed(stack: Stack, address: str, least: int) -> Document:
    async def enough() -> Document | None:
        document = await answer(stack, "GET", address)
        return document if document["replayed"] >= least else None

    document: Document = await eventually(enough, f"{least} are replayed")
    return document


async def until_succeeded(stack: Stack, *addresses: str, count: int) -> None:
    async def done() -> bool:
        outcomes = [(await answer(stack, "GET", address))["outcomes"] for address in addresses]
        return [set(outcome) for outcome in outcomes] == [{"succeeded"}] * len(addresses) and (
            sum(outcome["succeeded"] for outcome in outcomes) == count
        )

    await eventually(done, f"all {count} have succeeded")


async def test_a_dead_task_is_found_and_succeeds_after_the_fix(stack: Stack, world: World) -> None:
    task = await stack.submit("scripted", ["permanent"])
    item = await letter_of(stack, task)
    assert (item["taskType"], item["errorClass"], item["reason"]) == ("scripted", "Permanent", "never")
    assert (item["attempts"], item["state"], item["origin"]["topic"]) == (1, "open", "system-tasks.dlq")
    address = f"/dead-letters/{item['deadLetterId']}"
    document = await answer(stack, "GET", address)
    assert document["payload"] == {"script": ["permanent"]}
    assert [entry["event"] for entry in document["timeline"]][-2:] == ["claimed", "died"]
    assert document["traceId"] == (await stack.get(task))["traceId"]
    refused = await answer(stack, "POST", f"{address}/replay", 422, json={"payload": {"script": "succeed"}})
    assert [error["field"] for error in refused["errors"]] == ["payload.script"]
    sent = await answer(stack, "POST", f"{address}/replay", 202, json={"payload": {"script": ["succeed"]}})
    assert (sent["taskId"], sent["status"]) == (str(task), "scheduled")
    done = await stack.until(task, "succeeded")
    assert (done["payload"], done["attempts"], done["replays"]) == ({"script": ["succeed"]}, 1, 1)
    assert world.attempts[task] == [1, 1]
    document = await answer(stack, "GET", address)
    assert (document["state"], document["payload"]) == ("replayed", {"script": ["permanent"]})
    assert [(each["taskId"], each["outcome"]) for each in document["replays"]] == [(str(task), "succeeded")]
    again = await answer(stack, "POST", f"{address}/replay", 409)
    assert (again["type"], again["taskId"]) == ("/problems/already-replayed", str(task))
    assert world.effects(task) == 2


async def test_a_task_that_dies_again_has_one_dead_letter_for_each_death(stack: Stack) -> None:
    task = await stack.submit("scripted", ["permanent"])
    first = await letter_of(stack, task)
    await answer(stack, "POST", f"/dead-letters/{first['deadLetterId']}/replay", 202)

    async def another() -> Document | None:
        found = await letter_of(stack, task)
        return found if found["deadLetterId"] != first["deadLetterId"] else None

    second = await eventually(another, "a second dead letter")
    document = await answer(stack, "GET", f"/dead-letters/{first['deadLetterId']}")
    assert [each["outcome"] for each in document["replays"]] == ["dead"]
    gone = await answer(stack, "POST", f"/dead-letters/{second['deadLetterId']}/discard", json={"reason": "no use"})
    assert (gone["state"], gone["discarded"]["reason"]) == ("discarded", "no use")
    await answer(stack, "POST", f"/dead-letters/{second['deadLetterId']}/replay", 409)
    assert (await stack.get(task))["status"] == "dead"


async def test_a_bulk_replay_that_is_stopped_midway_is_ended_by_another_and_sends_each_once(
    stack: Stack, world: World
) -> None:
    tasks, wanted = await let_die(stack, 300)
    world.mended = True
    first = await start(stack, wanted, rate=30)
    await until_replayed(stack, first, 50)
    stopped = await answer(stack, "DELETE", first)
    assert stopped["status"] == "stopped"
    assert 50 <= stopped["replayed"] < 300
    left = 300 - stopped["replayed"]
    assert await matched(stack, wanted) == left
    second = await start(stack, wanted, rate=1000)
    document = await until_replayed(stack, second, left)
    assert (document["matched"], document["skipped"]) == (left, 0)
    await until_succeeded(stack, first, second, count=300)
    assert (await answer(stack, "GET", first))["replayed"] == stopped["replayed"]
    assert {world.effects(task) for task in tasks} == {2}


async def test_a_bulk_replay_goes_on_where_it_was_when_its_leader_is_lost(stack: Stack, world: World) -> None:
    tasks, wanted = await let_die(stack, 200)
    world.mended = True
    address = await start(stack, wanted, rate=60)
    await until_replayed(stack, address, 40)
    await stack.cut_off("relay")
    between = await answer(stack, "GET", address)
    assert between["status"] == "running"
    assert between["replayed"] < 200
    await stack.start(load("relay"))
    await until_replayed(stack, address, 200)
    await until_succeeded(stack, address, count=200)
    assert {world.effects(task) for task in tasks} == {2}


async def test_a_poison_record_is_repaired_and_runs(stack: Stack) -> None:
    topic = task_topic("system-", "scripted")
    producer = Producer(stack.settings.kafka)
    await producer.start()
    try:
        value = f'{{"taskType": "scripted", "key": "{uuid4()}", "payload": '
        broken = OutRecord(topic, b"k", value.encode(), (("who", b"\xff"),))

        async def sent() -> bool:
            [outcome] = await producer.publish([broken])
            return isinstance(outcome, Published)

        await eventually(sent, "the record is in its topic")
    finally:
        await producer.stop()

    async def found() -> Document | None:
        items = (await answer(stack, "GET", "/dead-letters", params={"originTopic": topic}))["items"]
        letters = [await answer(stack, "GET", f"/dead-letters/{item['deadLetterId']}") for item in items]
        return next((each for each in letters if each["record"] and each["record"]["value"]["data"] == value), None)

    letter = await eventually(found, "the record is a dead letter")
    assert (letter["taskId"], letter["errorClass"]) == (None, "NotJson")
    address = f"/dead-letters/{letter['deadLetterId']}"
    record = letter["record"]
    assert record["value"]["encoding"] == "utf-8"
    assert record["headers"] == [{"name": "who", "value": {"encoding": "base64", "data": "/w=="}}]
    await answer(stack, "POST", f"{address}/replay", 422)
    repaired = '{"taskType": "scripted", "payload": {"script": ["succeed"]}}'
    made = await answer(stack, "POST", f"{address}/replay", 202, json={"value": repaired})
    await stack.until(UUID(made["taskId"]), "succeeded")
    again = await answer(stack, "POST", f"{address}/replay", 409, json={"value": repaired})
    assert again["taskId"] == made["taskId"]
    [replay] = (await answer(stack, "GET", address))["replays"]
    assert (replay["taskId"], replay["outcome"]) == (made["taskId"], "succeeded")
    metrics = (await stack.client.get("/metrics")).text
    assert 'taskflux_dead_letters_replayed_total{error_class="NotJson",how="mended"}' in metrics
