"""A Flow API on loopback over real HTTP that answers as a test says."""

from __future__ import annotations

import asyncio
import socket
from collections import deque
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from typing import Any
from uuid import uuid4

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route


@dataclass(frozen=True)
class Answer:
    """What one request is answered with: a JSON value, or bytes as they are. `held`: not before it is set."""

    body: Any
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)
    held: asyncio.Event | None = None

    def response(self) -> Response:
        if isinstance(self.body, bytes):
            return Response(self.body, self.status, dict(self.headers))
        return JSONResponse(self.body, self.status, dict(self.headers))


@dataclass(frozen=True)
class Taken:
    """A request as it came."""

    headers: Mapping[str, str]
    flow: dict[str, Any]


class FlowApi:
    """`answers` are given in turn; when there is none left, a message is accepted."""

    def __init__(self) -> None:
        self.taken: list[Taken] = []
        self.answers: deque[Answer] = deque()
        self.url = ""

    async def flow(self, request: Request) -> Response:
        self.taken.append(Taken(dict(request.headers), await request.json()))
        answer = self.answers.popleft() if self.answers else Answer({"type": "success", "message": uuid4().hex[:24]})
        if answer.held is not None:
            await answer.held.wait()
        return answer.response()


class _Server(uvicorn.Server):
    """Uvicorn that tells when it listens and leaves the signals to the test run."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.listening = asyncio.Event()

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.listening.set()


@asynccontextmanager
async def flow_api() -> AsyncIterator[FlowApi]:
    """A `FlowApi`, served at its `url`."""
    api = FlowApi()
    app = Starlette(routes=[Route("/api/v5/flow/", api.flow, methods=["POST"])])
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    api.url = f"http://127.0.0.1:{listener.getsockname()[1]}"
    server = _Server(uvicorn.Config(app, log_config=None, lifespan="off", timeout_graceful_shutdown=1))
    running = asyncio.create_task(server.serve([listener]))
    try:
        await asyncio.wait_for(server.listening.wait(), 10)
        yield api
    finally:
        server.should_exit = True
        await running
        listener.close()
