"""`/livez`, `/readyz` and `/metrics`, on every process that has a port."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from handlers.http.problems import NOT_STARTED, Problem


def probe_routes(started: Callable[[], bool], metrics: Callable[[], Awaitable[tuple[bytes, str]]]) -> list[Route]:
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
        body, content_type = await metrics()
        return Response(body, headers={"content-type": content_type})

    return [Route("/livez", livez), Route("/readyz", readyz), Route("/metrics", exposed)]
