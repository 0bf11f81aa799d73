"""The HTTP application: routes, and one way for every error to be told."""

from __future__ import annotations

from typing import Final
from uuid import UUID

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from handlers.http.answers import to_json
from handlers.http.batch import SubmitBatch
from handlers.http.probes import probe_routes
from handlers.http.problems import EXCEPTION_HANDLERS, UNKNOWN_TASK, Problem
from handlers.http.services import Services
from handlers.http.submit import SubmitTask
from handlers.http.views import task_document
from handlers.tasks.states import State
from handlers.tasks.submission import DEFAULT_TENANT

_UUID_LENGTH: Final = 36


def create_app(services: Services) -> Starlette:
    """The API of ingest."""

    async def get_task(request: Request) -> Response:
        task = task_id(request.path_params["task_id"])
        document = await services.cache.cached(DEFAULT_TENANT, task)
        if document is None:
            row = await services.reader.get(task, DEFAULT_TENANT)
            if row is None:
                raise unknown_task(str(task))
            document = to_json(task_document(row))
            if row["state"] == State.SUCCEEDED:  # of all states the one that stays as it is
                await services.cache.cache(DEFAULT_TENANT, task, document)
        return Response(document, media_type="application/json")

    return application(
        [
            Route("/tasks", SubmitTask(services), methods=["POST"], name="submit_task"),
            Route("/tasks/batch", SubmitBatch(services), methods=["POST"], name="submit_batch"),
            Route("/tasks/{task_id}", get_task, methods=["GET"]),
            *probe_routes(services.started, services.metrics),
        ]
    )


def application(routes: list[Route]) -> Starlette:
    """An application of these routes whose every error is a problem document."""
    app = Starlette(routes=routes, exception_handlers=EXCEPTION_HANDLERS)
    app.router.redirect_slashes = False  # a redirected POST is lost on clients that repeat it as a GET
    return app


def task_id(text: str) -> UUID:
    """The task id that stands in a path.

    Raises:
        Problem: 404, no task can have this id.
    """
    try:
        if len(text) == _UUID_LENGTH:
            return UUID(text)
    except ValueError:
        pass
    raise unknown_task(text[:100])


def unknown_task(text: str) -> Problem:
    """The problem of an id that no task of the caller has."""
    return Problem(UNKNOWN_TASK, f"no task has the id {text!r}; it may have been deleted after its retention")
