"""`/livez`, `/readyz` and `/metrics`, on every process that has a port."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from taskflux.http.problems import NOT_STARTED, Problem
from taskflux.telemetry.instruments import SWITCHED_OFF, packed, shown, switched_off

Exposition = Callable[[str], Awaitable[tuple[bytes, str]]]
"""From an Accept header to the text of `/metrics`, and its content type."""


async def own_metrics(accept: str) -> tuple[bytes, str]:
    """This process's metrics."""
    return await asyncio.to_thread(shown, accept)


def probe_routes(started: Callable[[], bool], metrics: Exposition = own_metrics) -> list[Route]:
    """The routes of the probes.

    livez is the loop's own heartbeat: it answers as long as the loop turns, and asks nobody. readyz is true once
    `started`, whatever the stores do later: were they a reason, all replicas would leave their service together.
    """

    async def livez(request: Request) -> Response:
        return PlainTextResponse("ok\n")

    async def readyz(request: Request) -> Response:
        if not started():
            raise Problem(NOT_STARTED, "it is not ready yet", headers={"Retry-After": "1"})
        return PlainTextResponse("ok\n")

    async def exposed(request: Request) -> Response:
        if switched_off():
            return PlainTextResponse(SWITCHED_OFF, status_code=404)
        body, content_type = await metrics(request.headers.get("accept", ""))
        encoding = request.headers.get("accept-encoding", "")
        body, headers = await asyncio.to_thread(packed, body, content_type, encoding)
        return Response(body, headers=headers)

    return [Route("/livez", livez), Route("/readyz", readyz), Route("/metrics", exposed)]
