"""Records that are not a task (guarantee 4)."""

from __future__ import annotations

import base64
import json
import random
from typing import Any

from uuid_utils.compat import uuid7

from taskflux.stream.envelope import DeadTask, Headers, OutRecord, encode
from taskflux.stream.topics import dead_letter_topic
from tests.integration.stream.batches import batch, send_batch
from tests.integration.system.stack import Row, Stack, eventually

ADDED = [
    f"taskflux-{name}"
    for name in ("origin-topic", "origin-partition", "origin-offset", "origin-timestamp", "error-class", "reason")
]
GZIP = 1
HEADERS: Headers = (("who", b"\x00\xff"), ("who", None), ("traceparent", b"no trace"))


async def test_poison_is_a_dead_letter_with_its_bytes_untouched_and_stops_no_partition(stack: Stack) -> None:
    seen = random.Random(7)
    payloads: list[tuple[str, bytes | None]] = [
        ("NotJson", b"not json"),
        ("NotJson", seen.randbytes(500)),
        ("NotJson", b""),
        ("NotJson", b"[" * 90_000),
        ("NoValue", None),
        ("UnknownShape", b"[1]"),
        ("UnknownShape", b'{"taskType":"scripted","taskId":"no","version":1}'),
        ("UnknownShape", json.dumps({"taskType": "scripted", "taskId": str(uuid7()), "version": -1}).encode()),
        ("UnknownType", b'{"taskType":"nobody-knows","taskId":"x","version":1}'),
        ("TooLarge", seen.randbytes(200_000)),
        ("TooLarge", seen.randbytes(400_000)),  # beyond what the dead-letter topic takes
    ]
    await _produce_and_find(stack, payloads)
    for partition_key in (b"a", b"b", b"c", b"d"):  # every partition goes on
        await stack.produce(OutRecord(stack.topic("scripted"), partition_key, b"{}", HEADERS))
    await stack.until_all(await stack.submit_many("scripted", 20), "succeeded")

    async def taken() -> bool:
        return await stack.lag("scripted") == 0

    await eventually(taken, "all offsets are committed")


async def test_a_batch_that_unpacks_to_too_much_is_a_dead_letter_with_its_bytes_and_stops_no_partition(
    stack: Stack,
) -> None:
    topic = stack.topic("scripted")
    (before,) = await stack.produce(OutRecord(topic, b"k", b"{}", HEADERS))
    bomb = batch(GZIP, *[bytes(10_000)] * 100)  # a megabyte; the limit is twice the largest dead letter, 600,000 bytes
    await send_batch(stack.settings.kafka, topic, before.partition, bomb)
    letter = await _letter_from(stack, topic, before.partition, before.offset + 100)
    assert (letter["error_class"], letter["record_key"]) == ("Unreadable", None)
    assert (
        letter["record_value"][61:] == bomb[61:]
    )  # what the producer has packed; the broker notes its place before it
    await stack.until_all(await stack.submit_many("scripted", 10), "succeeded")

    async def taken() -> bool:
        return await stack.lag("scripted") == 0

    await eventually(taken, "all offsets are committed")


async def test_poison_that_neither_kafka_nor_postgresql_takes_stops_no_partition(stack: Stack) -> None:
    size = 400_001  # beyond what the dead-letter topic takes
    await stack.sql.execute(
        f"ALTER TABLE dead_letters ADD CONSTRAINT refusal CHECK (length(record_value) <> {size}) NOT VALID"
    )
    try:
        record = OutRecord(stack.topic("scripted"), b"key", bytes(size), HEADERS)
        (place,) = await stack.produce(record)
        letter = await _letter_from(stack, record.topic, place.partition, place.offset)
    finally:
        await stack.sql.execute("ALTER TABLE dead_letters DROP CONSTRAINT refusal")
    assert (letter["error_class"], letter["record_key"], letter["record_value"]) == ("TooLarge", None, None)
    assert "400,001 bytes" in letter["reason"]

    async def taken() -> bool:
        return await stack.lag("scripted") == 0

    await eventually(taken, "all offsets are committed")


async def _produce_and_find(stack: Stack, payloads: list[tuple[str, bytes | None]]) -> None:
    topic = stack.topic("scripted")
    records = [OutRecord(topic, b"key\x00%d" % number, value, HEADERS) for number, (_, value) in enumerate(payloads)]
    places = await stack.produce(*records)
    for (error_class, value), record, place in zip(payloads, records, places, strict=True):
        letter = await _letter_from(stack, topic, place.partition, place.offset)
        assert (letter["error_class"], letter["record_key"]) == (error_class, record.key)
        assert letter["record_value"] == value
        assert _headers(letter) == [list(header) for header in HEADERS]


async def test_the_sink_stores_a_dead_letter_once_and_a_malformed_one_too(stack: Stack) -> None:
    task = await stack.submit("scripted", ["permanent"])
    letter = await stack.dead_letter(task)
    topic = dead_letter_topic(stack.settings.kafka.topic_prefix)
    again = encode(DeadTask(task, "scripted", letter["task_version"], "Permanent", 1))
    malformed = OutRecord(topic, b"\xff", b"\x00 nothing of ours", HEADERS)
    places = await stack.produce(OutRecord(topic, *again), OutRecord(topic, *again), malformed)
    found = await _letter_from(stack, topic, places[2].partition, places[2].offset)
    assert (found["error_class"], found["record_key"], found["record_value"]) == (
        "MalformedDeadLetter",
        b"\xff",
        b"\x00 nothing of ours",
    )
    assert _headers(found) == [list(header) for header in HEADERS]

    async def taken() -> bool:
        held = await stack.positions.read(f"{stack.settings.kafka.topic_prefix}taskflux.dlq-sink", topic)
        return held is not None and held.lag == 0

    await eventually(taken, "the sink has taken everything")
    assert (await stack.dead_letter(task))["id"] == letter["id"]
    assert (letter["error_class"], letter["reason"], letter["attempts"]) == ("Permanent", "never", 1)


async def test_no_record_ends_the_sink_or_stops_its_partition(stack: Stack) -> None:
    topic = dead_letter_topic(stack.settings.kafka.topic_prefix)
    task = {"taskId": str(uuid7()), "taskType": "scripted", "version": 1, "errorClass": "E", "attempts": 1}
    added = dict.fromkeys(ADDED, b"0")
    long = random.Random(7).randbytes(3000).hex().encode()

    def marked(**changes: bytes | None) -> Headers:
        return tuple((added | {f"taskflux-{name.replace('_', '-')}": value for name, value in changes.items()}).items())

    hostile = [
        OutRecord(topic, None, None),
        OutRecord(topic, b"\x00", b"\xff\x00"),
        OutRecord(topic, b"", json.dumps(task).encode()[:-1] + b"0" * 5000 + b"}"),  # attempts = 10**5000
        OutRecord(topic, b"k", json.dumps(task | {"attempts": 2**31}).encode()),
        OutRecord(topic, b"k", json.dumps(task | {"version": 2**63}).encode()),
        OutRecord(topic, b"k", json.dumps(task | {"errorClass": long.decode(), "taskId": str(uuid7())}).encode()),
        OutRecord(topic, b"k", json.dumps(task | {"errorClass": "\ud800\x00", "taskId": str(uuid7())}).encode()),
        OutRecord(topic, b"k", json.dumps(task | {"taskType": "\ud800"}).encode()),
        OutRecord(topic, b"k", b"[" * 50_000),
        OutRecord(topic, b"k", b"v1", marked(error_class=long)),
        OutRecord(topic, b"k", b"v2", marked(origin_topic=long)),
        OutRecord(topic, b"k", b"v3", marked(reason=long * 10, error_class=b"\xff\x00\xed\xa0\x80")),
        OutRecord(topic, b"k", b"v4", marked(origin_timestamp=b"-9" + b"9" * 17, origin_offset=b"-1")),
        OutRecord(topic, b"k", b"v5", marked(origin_partition="\u0663".encode())),
        OutRecord(topic, b"k", b"v6", marked(error_class=None, origin_topic=None, reason=None)),
        OutRecord(topic, b"k", b"v7", marked() + marked(error_class=long)),
        OutRecord(topic, b"k", b"v8", tuple((f"\x00{number}", b"\x00") for number in range(10_000)) + marked()),
        OutRecord(topic, b"k", b"v9", ((long.decode(), long), ("", None))),
        OutRecord(topic, long * 10, bytes(200_000)),
    ]
    before = await _of_no_task(stack)
    await stack.produce(*hostile)

    async def stored() -> bool:
        return await _of_no_task(stack) == before + len(hostile)

    async def taken() -> bool:
        held = await stack.positions.read(f"{stack.settings.kafka.topic_prefix}taskflux.dlq-sink", topic)
        return held is not None and held.lag == 0

    await eventually(stored, "each of them is a dead letter")
    await eventually(taken, "the sink has taken everything")
    await stack.dead_letter(await stack.submit("scripted", ["permanent"]))  # it goes on


async def _of_no_task(stack: Stack) -> int:
    """Dead letters of records alone: those of tasks come and go meanwhile."""
    count: int = await stack.sql.fetchval(
        "SELECT count(*) FROM dead_letters WHERE task_id IS NULL OR task_id NOT IN (SELECT id FROM tasks)"
    )
    return count


async def _letter_from(stack: Stack, topic: str, partition: int, offset: int) -> Row:
    """The one dead letter of the record that stood there, once it is stored."""
    origin = {"topic": topic, "partition": partition, "offset": offset}

    async def stored() -> Any:
        return await stack.sql.fetch(
            "SELECT * FROM dead_letters WHERE origin::jsonb @> $1::jsonb AND task_id IS NULL", json.dumps(origin)
        )

    (letter,) = await eventually(stored, f"the dead letter from {topic}[{partition}]:{offset} is stored")
    return letter


def _headers(letter: Row) -> list[list[Any]]:
    headers = json.loads(letter["record_headers"])
    return [[name, None if value is None else base64.b64decode(value)] for name, value in headers]
