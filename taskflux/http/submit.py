"""`POST /tasks`: one task, durable when it is answered."""

from __future__ import annotations

from json.encoder import encode_basestring_ascii
from typing import Any, Final

from starlette.types import Receive, Scope, Send

from taskflux.http.answers import answer, rfc3339
from taskflux.http.bodies import JSON_TYPES, Headers, headers_of, media_type, read_body
from taskflux.http.problems import KEY_REUSED, FieldError, Problem, store_problem
from taskflux.http.registry import Registered, TypeRegistry
from taskflux.http.services import Services
from taskflux.http.submissions import Circumstances, parse_json, read_submission, task_type_of, unknown_type
from taskflux.store.errors import StoreError
from taskflux.tasks.states import State
from taskflux.tasks.submission import Accepted, KeyReused
from taskflux.telemetry.logs import TASK

_SCHEDULED: Final = f'"{State.SCHEDULED}"'
REPLAY: Final = (b"idempotent-replay", b"true")


class SubmitTask:
    """Answers 202 once the task is in PostgreSQL.

    A repeat of an idempotency key is answered with the body of the first time, byte for byte: it holds nothing that
    changes later.
    """

    def __init__(self, services: Services) -> None:
        self._services = services

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        hooks = self._services.hooks
        try:
            headers = headers_of(scope)
            media_type(headers, JSON_TYPES)
            body = await read_body(headers, receive, self._services.limits.max_body_bytes)
            accepted = await self._accept(headers, body)
        except Problem as problem:
            hooks.on_refused(problem.kind.slug)
            raise
        hooks.on_accepted(accepted.type, accepted.repeated)
        location = (b"location", f"/tasks/{accepted.id}".encode("ascii"))
        extra = (location, REPLAY) if accepted.repeated else (location,)
        told = f"{{{accepted_members(accepted, _SCHEDULED)}}}"
        await answer(send, 202, told.encode("ascii"), headers=extra)

    async def _accept(self, headers: Headers, body: bytes) -> Accepted:
        services = self._services
        key = headers.get(b"idempotency-key")
        circumstances = Circumstances(
            services.traceparent(headers.get(b"traceparent")),
            services.now(),
            None if key is None else key.decode("latin-1"),
        )
        document = parse_json(body)
        try:
            registered = await registered_type(document, services.registry)
            submission = read_submission(document, registered, circumstances)
            TASK.set(submission.id)
            outcome = await services.intake.accept(submission)
        except StoreError as error:
            raise store_problem(error) from error
        if isinstance(outcome, KeyReused):
            raise key_reused("Idempotency-Key")
        TASK.set(outcome.id)
        return outcome


async def registered_type(document: Any, registry: TypeRegistry) -> Registered:
    """The type that a document asks for.

    Raises:
        Problem: 422, it asks for none, or for one that nobody has registered.
        StoreError: it is not known here, and the store cannot be asked.
    """
    name = task_type_of(document)
    registered = registry.get(name) or await registry.find(name)
    if registered is None:
        raise unknown_type(name, registry.names)
    return registered


def accepted_members(accepted: Accepted, status: str) -> str:
    """What the submitter is told, as members of a JSON object: written by hand, it takes a third of the time."""
    name = encode_basestring_ascii(accepted.type)
    created_at = rfc3339(accepted.created_at)
    return f'"taskId":"{accepted.id}","taskType":{name},"status":{status},"createdAt":"{created_at}"'


def key_reused(field: str) -> Problem:
    """The problem of an idempotency key that came with another request before."""
    detail = "this idempotency key came with another request before: use a new key for a new task"
    return Problem(KEY_REUSED, detail, [FieldError(field, "stands for another request")])
