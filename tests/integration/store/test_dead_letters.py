from __future__ import annotations

import asyncio
import json
import random
from uuid import UUID

import pytest
from uuid_utils.compat import uuid7

from taskflux.http.queries import read_dead_letter_query
from taskflux.http.submissions import LONGEST_IDEMPOTENCY_KEY
from taskflux.store.dead_letters import DeadLetter
from taskflux.store.texts import LONGEST_INDEXED
from taskflux.stream.envelope import DeadTask, Record, encode
from taskflux.tasks.decision import Decision
from taskflux.tasks.fields import LONGEST_KEY
from taskflux.tasks.states import Event, State
from taskflux.worker.foreign import dead_letter
from tests.integration.store.scene import SOURCE, TYPE, Scene

ORIGIN: dict[str, object] = {"topic": "tasks.dlq", "partition": 0, "offset": 5, "timestamp": 1}
REASON = "it went to ann@example.org"
TENANTS = ("tasks", "idempotency_keys", "parked", "dead_letter_counts", "bulk_replays")  # there is one
ADDED = [
    f"taskflux-{name}"
    for name in ("origin-topic", "origin-partition", "origin-offset", "origin-timestamp", "error-class", "reason")
]


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


async def test_the_dead_letter_of_a_task_takes_reason_and_payload_from_its_row(scene: Scene) -> None:
    letter = of_task(*await dead(scene))
    assert await scene.dead_letters.add([letter]) == {letter.id: "Permanent"}
    (row,) = await scene.sql("SELECT * FROM dead_letters")
    assert (row["reason"], row["payload"], row["attempts"], row["type"]) == (REASON, '{"secret": 1}', 1, TYPE)
    assert json.loads(row["origin"]) == ORIGIN


async def test_a_dead_letter_whose_task_has_changed_keeps_its_own_fields(scene: Scene) -> None:
    task, version = await dead(scene)
    await scene.dead_letters.add([of_task(task, version - 1)])
    (row,) = await scene.sql("SELECT * FROM dead_letters")
    assert (row["reason"], row["payload"]) == ("gone", None)


async def test_the_same_dead_letter_is_stored_once_whatever_its_source(scene: Scene) -> None:
    letter = of_task(*await dead(scene))
    added = await asyncio.gather(
        *(scene.dead_letters.add([letter._replace(id=uuid7()), poison("a"), poison("b")]) for _ in range(6))
    )
    assert sum(map(len, added)) == 3
    assert len(await scene.sql("SELECT FROM dead_letters")) == 3


async def test_the_same_dead_letter_twice_in_a_batch_is_stored_once(scene: Scene) -> None:
    assert len(await scene.dead_letters.add([poison("a"), poison("a")])) == 1


async def test_poison_is_kept_byte_for_byte(scene: Scene) -> None:
    await scene.dead_letters.add([poison("a")])
    (row,) = await scene.sql("SELECT * FROM dead_letters")
    assert (row["record_key"], row["record_value"]) == (b"\x00\xff", b"{\x00")
    assert json.loads(row["record_headers"]) == [["a", "/w=="], ["a", None]]
    assert row["task_id"] is None


async def test_no_dead_letters_run_no_statement(scene: Scene) -> None:
    assert await scene.dead_letters.add([]) == {}


async def test_any_record_of_the_dead_letter_topic_can_be_stored(scene: Scene) -> None:
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
        b'{"taskId":"%s","taskType":"a","version":1,"errorClass":"\xed\xa0\x80","attempts":1}' % str(uuid7()).encode(),
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
    assert len(await scene.dead_letters.add([dead_letter(record) for record in records])) == len(records)
    stored = await scene.sql("SELECT error_class, count(*) FROM dead_letters GROUP BY 1")
    assert dict(map(tuple, stored)) == {"MalformedDeadLetter": len(values), "\ufffd\ufffd": len(values)}


RANDOM = random.Random(6)


def incompressible(length: int) -> str:
    """PostgreSQL packs what it puts into an index, so that only this is as long there as it looks."""
    return "".join(RANDOM.choices("äöüßéèêàçñøåÄÖÜÉÈÊÀÇÑØÅ", k=length))


def foreign(origin_topic: str, error_class: str, offset: int = 1) -> Record:
    texts = (origin_topic, "0", "1", "-1", error_class, "because")
    headers = tuple((name, text.encode()) for name, text in zip(ADDED, texts, strict=True))
    return Record("tasks.dlq", 0, offset, 0, None, b"v", headers)


async def test_a_class_or_topic_too_long_for_an_index_is_cut_and_its_full_name_still_finds_it(
    scene: Scene,
) -> None:
    error_class, topic = incompressible(6000), incompressible(6000)
    records = [foreign(topic, error_class, 1), foreign("tasks.sms", "NotJson", 2)]
    stored = await scene.dead_letters.add([dead_letter(record) for record in records])
    assert len(stored) == 2
    cut = next(each for each in stored.values() if each != "NotJson")
    assert (len(cut), cut[:-1], cut[-1]) == (255, error_class[:254], "…")
    for query in (("errorClass", error_class), ("originTopic", topic), ("errorClass", cut)):
        wanted = read_dead_letter_query([query]).wanted
        (row,) = await scene.dead_letters.page("default", wanted, "open", None, 10)
        assert (row["error_class"], row["reason"]) == (cut, "because")


async def test_a_task_whose_error_class_is_too_long_for_an_index_has_its_dead_letter(scene: Scene) -> None:
    worker = await scene.worker()
    (claim,) = await scene.running(worker)
    error_class = incompressible(6000)
    await scene.settle(worker, claim, Decision(Event.DIED, State.DEAD, error_class=error_class, reason=REASON))
    of_it = encode(DeadTask(claim.id, TYPE, claim.version, error_class, 1))
    (cut,) = (await scene.dead_letters.add([dead_letter(Record("tasks.dlq", 0, 7, 0, *of_it))])).values()
    assert (len(cut), cut[:-1]) == (255, error_class[:254])
    (row,) = await scene.sql("SELECT * FROM dead_letters")
    assert (row["task_id"], row["reason"], row["error_class"]) == (claim.id, REASON, cut)


async def test_a_dead_letter_that_postgresql_refuses_is_stored_without_its_contents(
    own_scene: Scene,
) -> None:
    await own_scene.sql("ALTER TABLE dead_letters ADD CHECK (length(record_value) < 100)")
    refused = poison("b")._replace(record_value=bytes(5000))
    whole = [poison("a"), poison("c")]
    assert len(await own_scene.dead_letters.add([whole[0], refused, whole[1]])) == 3
    rows = {row["identity"]: row for row in await own_scene.sql("SELECT * FROM dead_letters")}
    assert [rows[name]["record_value"] for name in "abc"] == [b"{\x00", None, b"{\x00"]
    reduced = rows["b"]
    assert (reduced["record_key"], reduced["record_headers"], reduced["error_class"]) == (None, None, "NotJson")
    assert json.loads(reduced["origin"]) == ORIGIN
    assert reduced["reason"] == (
        "no JSON (PostgreSQL refuses a value (CheckViolationError), so this was left out:"
        " key (2 bytes), value (5,000 bytes), headers (3 bytes))"
    )
    assert await own_scene.dead_letters.add([refused._replace(id=uuid7())]) == {}  # it is stored once, too


async def test_a_dead_letter_that_postgresql_refuses_entirely_does_not_affect_others(
    own_scene: Scene, caplog: pytest.LogCaptureFixture
) -> None:
    await own_scene.sql("ALTER TABLE dead_letters ADD CHECK (identity <> 'b')")
    await own_scene.dead_letters.keep([poison("a"), poison("b"), poison("c")], SOURCE)
    rows = await own_scene.sql("SELECT identity FROM dead_letters ORDER BY identity")
    assert [row["identity"] for row in rows] == ["a", "c"]
    assert "cannot be stored, not even without its contents" in caplog.text


async def test_every_indexed_text_has_a_limit_that_fits_an_index(scene: Scene) -> None:
    """Add every further index on a text here, with the most characters that the text can have."""
    longest = {
        ("api_keys", "prefix"): 20,
        ("circuits", "provider"): 100,  # a declaration's
        ("dead_letter_counts", "cause"): 20,  # version and digest
        ("dead_letter_counts", "error_class"): LONGEST_INDEXED,
        ("dead_letter_counts", "state"): len("discarded"),
        ("dead_letter_counts", "type"): LONGEST_INDEXED,
        ("dead_letters", "cause"): 20,
        ("dead_letters", "error_class"): LONGEST_INDEXED,
        ("dead_letters", "identity"): 200,  # numbers and a digest
        ("dead_letters", "origin_topic(origin)"): LONGEST_INDEXED,
        ("dead_letters", "state"): len("discarded"),
        ("dead_letters", "type"): LONGEST_INDEXED,
        ("due", "type"): 100,
        ("foreign_tasks", "identity"): 100 + 200 + 4,  # the type, and the producer's id
        ("handler_images", "type"): 100,
        ("idempotency_keys", "key"): LONGEST_IDEMPOTENCY_KEY,
        ("leaders", "name"): 100,
        ("notifications", "id"): 100,
        ("parked", "state"): len("cancelled"),
        ("parked", "type"): 100,
        ("task_types", "type"): 100,
        ("tasks", "key"): LONGEST_KEY,
        ("tasks", "type"): 100,
    }
    rows = await scene.sql(
        """
        SELECT DISTINCT c.relname AS name, pg_get_indexdef(i.indexrelid, a.attnum, false) AS part
        FROM pg_index i JOIN pg_class c ON c.oid = i.indrelid JOIN pg_attribute a ON a.attrelid = i.indexrelid
        WHERE c.relnamespace = 'public'::regnamespace AND a.atttypid = 'text'::regtype AND NOT c.relispartition
        """
    )
    found = {(row["name"], row["part"]) for row in rows} - {(name, "tenant") for name in TENANTS}
    assert found == longest.keys()
    assert max(longest.values()) * 4 < 2600
