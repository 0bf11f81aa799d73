"""Submits to one of the systems: `python -m benchmarks.peers.program SYSTEM serve PORT | publish KIND COUNT`."""

from __future__ import annotations

import asyncio
import importlib
import json
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Final

import uvicorn
import uvloop
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from benchmarks.payload import PAYLOAD

AT_ONCE: Final = 64


def service(system: Any, port: int) -> None:
    """`POST /tasks` in the simplest form: the answer follows when the task is durable."""

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[dict[str, Any]]:
        async with system.submitting() as submit:
            yield {"submit": submit}

    async def tasks(request: Request) -> JSONResponse:
        document = json.loads(await request.body())
        await request.state.submit(document["taskType"], document["payload"])
        return JSONResponse({"taskType": document["taskType"], "status": "accepted"}, 202)

    app = Starlette(routes=[Route("/tasks", tasks, methods=["POST"])], lifespan=lifespan)
    uvicorn.run(
        app, host="127.0.0.1", port=port, loop="uvloop", http="httptools", log_level="warning", access_log=False
    )


async def publish(system: Any, kind: str, count: int) -> None:
    """Submit `count` tasks, numbered from 0."""
    room = asyncio.Semaphore(AT_ONCE)

    async def one(number: int) -> None:
        async with room:
            await submit(kind, PAYLOAD | {"number": number})

    async with system.submitting() as submit:
        await asyncio.gather(*map(one, range(count)))


def main() -> None:
    """Do what the command line says."""
    name, command, *arguments = sys.argv[1:]
    system = importlib.import_module(f"benchmarks.peers.{name}")
    if command == "serve":
        service(system, int(arguments[0]))
    else:
        uvloop.run(publish(system, arguments[0], int(arguments[1])))


if __name__ == "__main__":
    main()
