"""A bare consumer: `python -m benchmarks.floors.consumer single|batched TOPIC [NAP]`.

`single` writes each outcome with an UPDATE of its own, two at a time; `batched` those of one fetch together. Offsets
are committed after the outcomes.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time
from typing import Any

import asyncpg
import uvloop
from aiokafka import AIOKafkaConsumer

ONE = "UPDATE floor_tasks SET state = 'succeeded', updated_at = now(), result = $2 WHERE id = $1::text::uuid"
MANY = """UPDATE floor_tasks t SET state = 'succeeded', updated_at = now(), result = i.result
FROM unnest($1::text[]::uuid[], $2::text[]) AS i (id, result) WHERE t.id = i.id"""
MAX_RECORDS = 500


async def work(nap: float) -> str:
    """What a handler would do; its result is when it was started, in nanoseconds since 1970."""
    started = time.time_ns()
    if nap:
        await asyncio.sleep(nap)
    return str(started)


async def settle_single(pool: Any, ids: list[str], nap: float) -> None:
    """Run each and write its outcome by itself."""

    async def one(task: str) -> None:
        await pool.execute(ONE, task, await work(nap))

    await asyncio.gather(*map(one, ids))


async def settle_batched(pool: Any, ids: list[str], nap: float) -> None:
    """Run all and write their outcomes in one statement."""
    results = await asyncio.gather(*[work(nap) for _ in ids]) if nap else [await work(nap) for _ in ids]
    await pool.execute(MANY, ids, results)


async def main(mode: str, topic: str, nap: float = 0.0) -> None:
    """Consume until SIGTERM."""
    settle = {"single": settle_single, "batched": settle_batched}[mode]
    ended = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, ended.set)
    pool = await asyncpg.create_pool(os.environ["TASKFLUX_POSTGRES__DSN"], min_size=2, max_size=2)
    consumer = AIOKafkaConsumer(
        topic,
        bootstrap_servers=os.environ["TASKFLUX_KAFKA__BOOTSTRAP_SERVERS"],
        group_id=f"{topic}-{mode}",
        auto_offset_reset="earliest",
        enable_auto_commit=False,
        fetch_max_wait_ms=int(os.environ["TASKFLUX_KAFKA__FETCH_MAX_WAIT_MS"]),
    )
    print("started", flush=True)
    await consumer.start()
    try:
        while not ended.is_set():
            found = await consumer.getmany(timeout_ms=500, max_records=MAX_RECORDS)
            ids = [record.value.decode() for records in found.values() for record in records]
            if ids:
                await settle(pool, ids, nap)
                await consumer.commit()
    finally:
        await consumer.stop()
        await pool.close()


if __name__ == "__main__":
    uvloop.run(main(sys.argv[1], sys.argv[2], *map(float, sys.argv[3:])))
