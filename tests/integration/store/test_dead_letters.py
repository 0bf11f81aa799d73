from __future__ import annotations

import asyncio
import json
from dataclasses import replace
from uuid import UUID

from uuid_utils.compat import uuid7

from taskflux.store.dead_letters import DeadLetter
from taskflux.stream.envelope import Record
from taskflux.tasks.decision import Decision
from taskflux.tasks.states import Event, State
from taskflux.worker.foreign import dead_letter
from tests.integration.store.scene import TYPE, Scene

ORIGIN: dict[str, object] = {"topic": "tasks.dlq", "partition": 0, "offset": 5, "timestamp": 1}
REASON = "it went to ann@example.org"


def of_task(task: UUID, version: int) -> DeadLetter:
    return DeadLetter(uuid7(), f"task:{task}:{version}", "Permanent", "gone", ORIGIN, task, version, TYPE, 1)


def poison(identity: str) -> DeadLetter:
    return DeadLetter(
        uuid7(),
        identity,
        "NotJson",
        "no JSON",
        ORIGIN,
        record_key=b"\x00\xff",
        record_value=b"{\x00",
        record_headers=(("a", b"\xff"), ("a", None)),
    )


async def dead(scene: Scene) -> tuple[UUID, int]:
    worker = await scene.worker()
    (claim,) = await scene.running(worker, payload='{"secret": 1}')
    decision = Decision(Event.DIED, State.DEAD, error_class="Permanent", reason=REASON)
    await scene.settle(worker, claim, decision)
    return claim.id, claim.version


async def test_a_dead_tasks_letter_takes_reason_and_payload_from_its_row(scene: Scene) -> None:
    letter = of_task(*await dead(scene))
    assert await scene.dead_letters.add([letter]) == {letter.id: "Permanent"}
    (row,) = await scene.sql("SELECT * FROM dead_letters")
    assert (row["reason"], row["payload"], row["attempts"], row["type"]) == (REASON, '{"secret": 1}', 1, TYPE)
    assert json.loads(row["origin"]) == ORIGIN


async def test_a_letter_whose_task_has_moved_on_keeps_what_it_says_itself(scene: Scene) -> None:
    task, version = await dead(scene)
    await scene.dead_letters.add([of_task(task, version - 1)])
    (row,) = await scene.sql("SELECT * FROM dead_letters")
    assert (row["reason"], row["payload"]) == ("gone", None)


async def test_the_same_letter_is_stored_once_whoever_brings_it(scene: Scene) -> None:
    letter = of_task(*await dead(scene))
    added = await asyncio.gather(
        *(scene.dead_letters.add([replace(letter, id=uuid7()), poison("a"), poison("b")]) for _ in range(6))
    )
    assert sum(map(len, added)) == 3
    assert len(await scene.sql("SELECT FROM dead_letters")) == 3


async def test_the_same_letter_twice_in_a_batch_is_stored_once(scene: Scene) -> None:
    assert len(await scene.dead_letters.add([poison("a"), poison("a")])) == 1


async def test_poison_is_kept_byte_for_byte(scene: Scene) -> None:
    await scene.dead_letters.add([poison("a")])
    (row,) = await scene.sql("SELECT * FROM dead_letters")
    assert (row["record_key"], row["record_value"]) == (b"\x00\xff", b"{\x00")
    assert json.loads(row["record_headers"]) == [["a", "/w=="], ["a", None]]
    assert row["task_id"] is None


async def test_no_letters_are_no_statement(scene: Scene) -> None:
    assert await scene.dead_letters.add([]) == {}


async def test_whatever_stands_in_the_dead_letter_topic_can_be_stored(scene: Scene) -> None:
    values = [
        None,
        b"",
        b"\x00",
        b"\xff\xfe",
        b"[]",
        b'{"taskId": "x"}',
        json.dumps(
            {"taskId": str(uuid7()), "taskType": "a\x00", "version": 1, "errorClass": "X", "attempts": 1}
        ).encode(),
        json.dumps(
            {"taskId": str(uuid7()), "taskType": "a", "version": 2**40, "errorClass": "X", "attempts": 1}
        ).encode(),
        json.dumps(
            {"taskId": str(uuid7()), "taskType": "a", "version": 1, "errorClass": "\ud800", "attempts": 1}
        ).encode(),
        json.dumps(
            {"taskId": str(uuid7()), "taskType": "a", "version": 1, "errorClass": "X", "attempts": 2**40}
        ).encode(),
    ]
    headers = (
        ("taskflux-origin-topic", b"\x00"),
        ("taskflux-origin-partition", b"9" * 18),
        ("taskflux-origin-offset", b"-1"),
        ("taskflux-origin-timestamp", b"0"),
        ("taskflux-error-class", b"\xff\x00"),
        ("taskflux-reason", None),
    )
    records = [Record("tasks.dlq", 0, n, 0, b"\x00", value) for n, value in enumerate(values)]
    records += [record._replace(offset=100 + record.offset, headers=headers) for record in records]
    assert len(await scene.dead_letters.add([dead_letter(record) for record in records])) > 10
