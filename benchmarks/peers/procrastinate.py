"""procrastinate on PostgreSQL: the job's row is its outcome. `python -m benchmarks.peers.procrastinate` makes it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from procrastinate import App, PsycopgConnector

from benchmarks.peers import work

app = App(connector=PsycopgConnector(conninfo=work.POSTGRES, min_size=4, max_size=20))


@app.task(name="noop", queue=work.QUEUE)
async def noop(payload: dict[str, Any]) -> None:
    """Nothing."""


@app.task(name="nap", queue=work.QUEUE)
async def nap(payload: dict[str, Any]) -> None:
    """Wait, as for a provider's answer."""
    await asyncio.sleep(work.NAP)


@app.task(name="stamp", queue=work.QUEUE)
async def stamp(payload: dict[str, Any]) -> None:
    """Report the start."""
    work.stamp(payload)


@asynccontextmanager
async def submitting() -> AsyncIterator[Any]:
    """One pool."""
    tasks: dict[str, Any] = {"noop": noop, "nap": nap, "stamp": stamp}

    async def submit(kind: str, payload: dict[str, Any]) -> None:
        await tasks[kind].defer_async(payload=payload)

    async with app.open_async():
        yield submit


async def _prepare() -> None:
    async with app.open_async():
        await app.schema_manager.apply_schema_async()


if __name__ == "__main__":
    asyncio.run(_prepare())
