"""An application that answers to its own names only; see `taskflux.worker.hosts`."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache, partial
from typing import Final

from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from taskflux.http.bodies import to_json
from taskflux.http.problems import PROBLEM, UNKNOWN_HOST, Problem
from taskflux.worker.hosts import refusal

NAMES: Final = 16
"""Host headers whose answer is remembered: clients mostly ask by the same few."""


class KnownHosts:
    """`app`, asked by one of the names that are `allowed`; none: by any."""

    def __init__(self, app: ASGIApp, allowed: Sequence[str]) -> None:
        self._app = app
        self._refusal = lru_cache(NAMES)(partial(refusal, allowed))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        hosts = tuple([value.decode("latin-1") for name, value in scope.get("headers", ()) if name == b"host"])
        said = self._refusal(hosts) if scope["type"] == "http" else None
        if said is None:
            await self._app(scope, receive, send)
            return
        # A handler that asks notify by a wrong name is told to hold its tasks until somebody has set this right.
        problem = Problem(UNKNOWN_HOST, said, extra={"errorClass": "Misconfigured", "reason": said})
        await Response(to_json(problem.document()), problem.status, media_type=PROBLEM)(scope, receive, send)
