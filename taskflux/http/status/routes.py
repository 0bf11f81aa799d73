"""`/status`, and what its page asks for."""

from __future__ import annotations

from functools import cache
from importlib.resources import files
from typing import Final

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from taskflux.http.answers import to_json
from taskflux.http.openapi.document import page
from taskflux.http.problems import BAD_REQUEST, Problem
from taskflux.http.status.overview import KEPT, Overview

MOST_MINUTES: Final = int(KEPT / 60)


@cache
def _html() -> str:
    return files("taskflux.http.status").joinpath("page.html").read_text("utf-8")


def status_routes(overview: Overview) -> list[Route]:
    """The page, and its figures as JSON: `?minutes=` says over how long."""

    async def status(request: Request) -> Response:
        return page(_html())

    async def plots(request: Request) -> Response:
        given = request.query_params.get("minutes", "10")
        if not given.isdecimal() or not 1 <= int(given) <= MOST_MINUTES:
            raise Problem(BAD_REQUEST, f"`minutes` is a whole number from 1 to {MOST_MINUTES}")
        return Response(to_json(overview.shown(int(given) * 60)), media_type="application/json")

    return [Route("/status", status), Route("/status/plots", plots)]
