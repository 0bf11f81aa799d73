"""Load from a process of its own: `python -m benchmarks.load PORT PATH TYPE CONNECTIONS SECONDS [RATE] < body`.

Every connection sends the same body again and again until the seconds have passed, and waits for its last answer; with
a rate, requests are begun so many times a second in all, whether or not the ones before are answered, as long as a
connection is free, and an answer's time counts from when its request was to begin.
Prints one JSON document: `answered`, `seconds` to the last answer, `p50` and `p99` of an answer in milliseconds.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import sys
import time

import uvloop

from benchmarks.client import Connection, post
from benchmarks.report import percentile

ACCEPTED = 202


async def main(
    port: int, path: str, content_type: str, connections: int, seconds: float, rate: float, body: bytes
) -> None:
    """Send, and print what came of it.

    Raises:
        SystemExit: an answer was not 202.
    """
    request, times = post(path, body, content_type), list[float]()
    opened = [await Connection.open(port) for _ in range(connections)]
    began = time.perf_counter()

    places = itertools.count()

    async def repeat(connection: Connection) -> None:
        now = time.perf_counter()
        while now < began + seconds:
            if rate:
                now = began + next(places) / rate
                await asyncio.sleep(now - time.perf_counter())
            status = await connection.ask(request)
            if status != ACCEPTED:
                sys.exit(f"answered {status}: {connection.body[:500]!r}")
            before, now = now, time.perf_counter()
            times.append(now - before)

    await asyncio.gather(*map(repeat, opened))
    took = time.perf_counter() - began
    for connection in opened:
        connection.close()
    figures = {"p50": percentile(times, 0.5) * 1000, "p99": percentile(times, 0.99) * 1000}
    print(json.dumps({"answered": len(times), "seconds": took, **figures}))


if __name__ == "__main__":
    port, path, content_type, connections, seconds, *rate = sys.argv[1:]
    numbers = int(connections), float(seconds), float(*rate)
    uvloop.run(main(int(port), path, content_type, *numbers, sys.stdin.buffer.read()))
