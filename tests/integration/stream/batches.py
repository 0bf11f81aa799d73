"""Record batches that no client of ours would send, appended to a topic unchanged."""

from __future__ import annotations

import asyncio
from typing import Any

from aiokafka.client import AIOKafkaClient
from aiokafka.errors import for_code
from aiokafka.protocol.produce import ProduceRequest
from aiokafka.record.default_records import DefaultRecordBatchBuilder
from aiokafka.record.util import calc_crc32c

from taskflux.stream.settings import KafkaSettings

TIME = 1_700_000_000_000


def batch(codec: int, *values: bytes) -> bytes:
    builder = DefaultRecordBatchBuilder(2, codec, 0, -1, -1, 0, 10_000_000)
    for offset, value in enumerate(values):
        builder.append(offset, TIME, b"k", value, [])
    return bytes(builder.build())


def with_broken_header() -> bytes:
    """A record whose header's name is not UTF-8, which no client of ours would build."""
    builder = DefaultRecordBatchBuilder(2, 0, 0, -1, -1, 0, 100_000)
    builder.append(0, TIME, b"k", b"v", [("broken!!", b"1")])
    batch = bytearray(builder.build())
    at = batch.index(b"broken!!")
    batch[at : at + 8] = b"\xff" * 8
    batch[17:21] = calc_crc32c(bytes(batch[21:])).to_bytes(4, "big")
    return bytes(batch)


async def send_batch(settings: KafkaSettings, topic: str, partition: int, batch: bytes) -> None:
    """Append `batch` to a partition; a broker that has not yet heard of a new topic is asked again, for 10 s."""
    client = AIOKafkaClient(bootstrap_servers=settings.bootstrap_servers)
    await client.bootstrap()
    request: Any = ProduceRequest(
        required_acks=-1, timeout=5000, topics=[(topic, [(partition, batch)])], transactional_id=None
    )
    try:
        async with asyncio.timeout(10):
            while True:
                answer = await client.send(client.get_random_node(), request)
                error = for_code(answer.topics[0][1][0][1])
                if not error.invalid_metadata:
                    break
                await asyncio.sleep(0.05)
    finally:
        await client.close()
    assert error.errno == 0, error
