"""Load from a process of its own: `python -m benchmarks.load PORT PATH CONNECTIONS SECONDS < body`.

Every connection sends the same body again and again until the seconds have passed, and waits for its last answer.
Prints one JSON document: `answered`, `seconds` to the last answer, `p50` and `p99` of an answer in milliseconds.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time

import uvloop

from benchmarks.client import Connection, post
from benchmarks.report import percentile

ACCEPTED = 202


async def main(port: int, path: str, connections: int, seconds: float, body: bytes) -> None:
    """Send, and print what came of it.

    Raises:
        SystemExit: an answer was not 202.
    """
    request, times = post(path, body), list[float]()
    opened = [await Connection.open(port) for _ in range(connections)]
    began = time.perf_counter()

    async def repeat(connection: Connection) -> None:
        now = time.perf_counter()
        while now < began + seconds:
            status = await connection.ask(request)
            if status != ACCEPTED:
                sys.exit(f"answered {status}: {connection.body[:500]!r}")
            before, now = now, time.perf_counter()
            times.append(now - before)

    await asyncio.gather(*map(repeat, opened))
    took = time.perf_counter() - began
    figures = {"p50": percentile(times, 0.5) * 1000, "p99": percentile(times, 0.99) * 1000}
    print(json.dumps({"answered": len(times), "seconds": took, **figures}))


if __name__ == "__main__":
    uvloop.run(main(int(sys.argv[1]), sys.argv[2], int(sys.argv[3]), float(sys.argv[4]), sys.stdin.buffer.read()))
