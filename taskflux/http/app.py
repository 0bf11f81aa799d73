"""The HTTP application: routes, and one way for every error to be told."""

from __future__ import annotations

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from taskflux.http.answers import to_json
from taskflux.http.batch import SubmitBatch
from taskflux.http.bodies import task_id, unknown_task
from taskflux.http.dead_letters.routes import dead_letter_routes
from taskflux.http.openapi.document import api_json, documentation_routes
from taskflux.http.probes import probe_routes
from taskflux.http.problems import EXCEPTION_HANDLERS
from taskflux.http.receipts import webhook_routes
from taskflux.http.registry import TypeRegistry
from taskflux.http.services import Services, TaskDesk
from taskflux.http.submissions import SubmitTask
from taskflux.http.tasks import ListTasks, TaskDecisions, task_document
from taskflux.tasks.states import State
from taskflux.tasks.submission import DEFAULT_TENANT


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
            *(task_routes(services, services.tasks) if services.tasks else ()),
            *(dead_letter_routes(services, services.dead_letters) if services.dead_letters else ()),
            *webhook_routes(services.msg91_webhook),
            *probe_routes(services.started, services.metrics),
            *documentation_routes(lambda: api_json(_schemas(services.registry))),
        ]
    )


def task_routes(services: Services, desk: TaskDesk) -> list[Route]:
    """The routes of lists and decisions."""
    decisions = TaskDecisions(services.reader, desk.decisions)
    return [
        Route("/tasks", ListTasks(desk.listing).page, methods=["GET"]),
        Route("/tasks/{task_id}", decisions.cancel, methods=["DELETE"]),
        Route("/tasks/{task_id}/resolve", decisions.resolve, methods=["POST"]),
    ]


def _schemas(registry: TypeRegistry) -> tuple[tuple[str, str], ...]:
    """The known types with the JSON schemas of their payloads, sorted."""
    found = ((name, registry.get(name)) for name in registry.names)
    return tuple((name, registered.schema.text) for name, registered in found if registered is not None)


def application(routes: list[Route]) -> Starlette:
    """An application of these routes whose every error is a problem document."""
    app = Starlette(routes=routes, exception_handlers=EXCEPTION_HANDLERS)
    app.router.redirect_slashes = False  # a redirected POST is lost on clients that repeat it as a GET
    return app
