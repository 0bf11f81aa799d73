"""Notifications: delivered at once, and answered with the outcome.

``POST /notifications/email`` and ``/notifications/sms`` (also at ``/api/email/send``, ``/api/sms/send``) take the
payloads of the task types `email` and `sms`, with a further field ``progress``: what earlier attempts noted. Answers:

====================  ======  ===============================================================================
outcome               status  what it means
====================  ======  ===============================================================================
accepted              200     ``{"status": "accepted", "result": {…}}``; with ``Idempotent-Replay: true`` the
                              answer to an earlier request with the same id
``Permanent``         422     it can never be delivered
``Transient``         503     try again later, after ``retryAfter`` seconds where it says so
``Unavailable``       502     the provider is unavailable for all
``Misconfigured``     502     the provider refuses this deployment: an operator has to act
``Ambiguous``         504     it may have been sent
====================  ======  ===============================================================================

Every failure is a problem with ``errorClass``, ``reason``, and ``retryAfter`` and ``progress`` where there are any.

The header ``Taskflux-Task-Id`` identifies the notification: a repeat is not sent, but gets the first outcome. The same
id with another payload is always refused with 422. ``Taskflux-Attempt`` is the number of the caller's attempt: one
that is later than the last is sent again if the outcome of that is unknown. ``Taskflux-Created-At`` is a mail's Date.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from datetime import datetime
from functools import cache
from typing import Any, Final, Generic, TypeVar
from uuid import UUID

from pydantic import TypeAdapter, ValidationError
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from taskflux.http.access import Access, guarded
from taskflux.http.app import Exposition, application, own_metrics, probe_routes
from taskflux.http.bodies import Headers, beside_loop, json_answer, read_json, to_json
from taskflux.http.openapi import schemas as s
from taskflux.http.openapi.document import (
    BODY,
    REPLAYED,
    Operation,
    answer,
    build,
    content,
    documentation_routes,
    parameter,
    request,
    start_route,
)
from taskflux.http.openapi.operations import PROBES, START, needs
from taskflux.http.openapi.schemas import Json, ref
from taskflux.http.problems import (
    DELIVERY_DEFERRED,
    DELIVERY_REFUSED,
    DELIVERY_UNKNOWN,
    INTERNAL,
    INVALID_NOTIFICATION,
    KEY_REUSED,
    NOT_BEGUN,
    PROVIDER_MISCONFIGURED,
    PROVIDER_UNAVAILABLE,
    RETRY_AFTER,
    STORE_UNAVAILABLE,
    FieldError,
    Kind,
    Problem,
    field_error,
    not_valid,
)
from taskflux.http.requests import client_of
from taskflux.http.submissions import Limits
from taskflux.providers.email import Email
from taskflux.providers.notify import ATTEMPT, CREATED_AT, TASK_ID
from taskflux.providers.sms import Sms
from taskflux.store.errors import StoreError
from taskflux.tasks.access import Scope
from taskflux.tasks.bounds import LARGE
from taskflux.tasks.errors import Ambiguous, Misconfigured, Permanent, ProviderError, TaskError, Transient, Unavailable
from taskflux.tasks.fields import moment
from taskflux.telemetry.logs import TASK
from taskflux.worker.handler import wrong_fields
from taskflux.worker.notifier import IdReused, Notification, Notifier

P = TypeVar("P")

_NAME: Final = re.compile(r"[A-Za-z0-9_.-]{1,80}")
_MOST_ATTEMPTS: Final = 1_000_000

_KINDS: Final[Mapping[type[TaskError], Kind]] = {
    IdReused: KEY_REUSED,
    Permanent: DELIVERY_REFUSED,
    Transient: DELIVERY_DEFERRED,
    Unavailable: PROVIDER_UNAVAILABLE,
    Misconfigured: PROVIDER_MISCONFIGURED,
    Ambiguous: DELIVERY_UNKNOWN,
}


class Notify(Generic[P]):
    """The endpoint of one channel."""

    def __init__(self, payload: type[P], notifier: Notifier[P], max_body_bytes: int) -> None:
        self._adapter = TypeAdapter(payload)
        self._notifier = notifier
        self._limit = max_body_bytes

    async def deliver(self, request: Request) -> Response:
        """Deliver now, and answer with the outcome."""
        headers, document, size = await read_json(request.scope, request.receive, self._limit, INVALID_NOTIFICATION)
        try:
            waiting = client_of(request.scope).until_late()
            delivered = await self._notifier.deliver(await self._read(headers, document, size), waiting)
        except TaskError as error:
            raise delivery_problem(error) from error
        except StoreError as error:
            raise _not_begun() from error
        replay = {"Idempotent-Replay": "true"} if delivered.repeated else {}
        return json_answer({"status": "accepted", "result": delivered.result}, headers=replay)

    async def _read(self, headers: Headers, document: Any, size: int) -> Notification[P]:
        errors: list[FieldError] = []
        progress = document.pop("progress", None) if isinstance(document, dict) else None
        if progress is not None and not isinstance(progress, dict):
            errors.append(FieldError("progress", "must be a JSON object"))
        name, attempt, created_at = _read_headers(headers, errors)
        try:
            given = document, name is not None
            payload, digest = self._validated(*given) if size < LARGE else await beside_loop(self._validated, *given)
        except ValidationError as error:
            errors += [field_error(where or ("body",), said) for where, said in wrong_fields(error)]
            raise _invalid(errors) from None
        except ValueError:
            raise _invalid([*errors, FieldError("body", "holds a number beyond the range of a double")]) from None
        if errors:
            raise _invalid(errors)
        return Notification(payload, name, attempt, created_at, progress or {}, digest)

    def _validated(self, document: Any, named: bool) -> tuple[P, bytes]:
        """The payload; and its digest, if another payload could come with the same name."""
        payload = self._adapter.validate_json(to_json(document))
        return payload, self._digest(payload) if named else b""

    def _digest(self, payload: P) -> bytes:
        """The digest of a payload without its default values: a later release may have further fields."""
        document = self._adapter.dump_python(payload, mode="json", by_alias=True, exclude_defaults=True)
        return hashlib.sha256(json.dumps(document, sort_keys=True).encode("ascii")).digest()


def create_notify_app(
    mail: Notify[Email],
    text: Notify[Sms],
    check_mail: Callable[[], Awaitable[None]],
    started: Callable[[], bool],
    bytes_in_flight: int = Limits().bytes_in_flight,
    exposition: Exposition | None = own_metrics,
    *,
    access: Access,
) -> Starlette:
    """The API of the notification service; each route has the id of its operation. Without an `exposition`, there are
    no metrics.

    `check_mail` checks whether the provider of mails serves us, and raises ProviderError if it does not.
    """

    async def check(request: Request) -> Response:
        try:
            await check_mail()
        except ProviderError as error:
            raise delivery_problem(error) from error
        return Response(status_code=204)

    scopes = needs(NOTIFY)

    def post(path: str, endpoint: Callable[[Request], Awaitable[Response]], operation: str) -> Route:
        return guarded(access, scopes[operation])(path, endpoint, methods=["POST"], name=operation)

    return application(
        [
            start_route("TaskFlux notify", "Delivers mail and SMS at once, and answers with the outcome."),
            post("/notifications/email", mail.deliver, "notifyEmail"),
            post("/api/email/send", mail.deliver, "sendEmail"),
            post("/notifications/sms", text.deliver, "notifySms"),
            post("/api/sms/send", text.deliver, "sendSms"),
            post("/notifications/email/check", check, "checkEmail"),
            *probe_routes(started, exposition, access),
            *documentation_routes(lambda request: notify_json()),
        ],
        bytes_in_flight,
    )


def delivery_problem(error: TaskError) -> Problem:
    """The problem of a delivery that failed."""
    cause, kind = next((cls, kind) for cls, kind in _KINDS.items() if isinstance(error, cls))
    errors = [FieldError(TASK_ID, "belongs to another notification")] if cause is IdReused else []
    known = Permanent if cause is IdReused else cause
    extra: dict[str, object] = {"errorClass": known.__name__, "reason": error.reason}
    headers = {}
    if isinstance(error, Transient) and error.retry_after is not None:
        extra["retryAfter"] = error.retry_after
        headers["Retry-After"] = str(max(1, round(error.retry_after)))
    if error.progress is not None:
        extra["progress"] = dict(error.progress)
    return Problem(kind, error.reason, errors, headers=headers, extra=extra)


def _read_headers(headers: Headers, errors: list[FieldError]) -> tuple[str | None, int, datetime | None]:
    name, attempt, created_at = (_header(headers, header) for header in (TASK_ID, ATTEMPT, CREATED_AT))
    if name is not None and not _NAME.fullmatch(name):
        errors.append(FieldError(TASK_ID, "must be 1 to 80 of A-Z a-z 0-9 _ . -"))
    elif name is not None:
        with suppress(ValueError):  # an id of another form is not logged
            TASK.set(UUID(name[:36]))
    number = 1
    if attempt is not None:
        number = int(attempt) if attempt.isascii() and attempt.isdigit() and len(attempt) < 8 else 0
        if not 1 <= number <= _MOST_ATTEMPTS:
            errors.append(FieldError(ATTEMPT, f"must be a whole number from 1 to {_MOST_ATTEMPTS:,}"))
    date = None
    if created_at is not None:
        try:
            date = moment(created_at)
        except (ValueError, OverflowError):
            errors.append(FieldError(CREATED_AT, "must be an RFC 3339 time"))
    return name, number, date


def _header(headers: Headers, name: str) -> str | None:
    value = headers.get(name.lower().encode("ascii"))
    return None if value is None else value.decode("latin-1").strip()


def _invalid(errors: list[FieldError]) -> Problem:
    problem = not_valid(INVALID_NOTIFICATION, errors)
    problem.extra |= {"errorClass": "Permanent", "reason": problem.detail}
    return problem


def _not_begun() -> Problem:
    detail = "PostgreSQL is unavailable, so a repeat cannot be recognised: nothing was sent"
    extra = {"errorClass": "Unavailable", "reason": detail, "retryAfter": RETRY_AFTER}
    return Problem(STORE_UNAVAILABLE, detail, headers={"Retry-After": str(RETRY_AFTER)}, extra=extra)


_DELIVERED: Final = s.obj({"status": {"const": "accepted"}, "result": {}})


def _deliver(path: str, operation: str, channel: str) -> Operation:
    task, result = s.DELIVERIES[channel]
    return Operation(
        "POST",
        path,
        operation,
        "Notifications",
        f"Deliver through {channel} now",
        "The answer is the outcome; nothing is retried later. `accepted` by the provider does not mean delivered.",
        {
            200: answer(
                "The provider has accepted it.",
                content(_DELIVERED, {"accepted": ("Accepted", {"status": "accepted", "result": result})}),
                REPLAYED,
            )
        },
        (
            *BODY,
            INVALID_NOTIFICATION,
            KEY_REUSED,
            DELIVERY_REFUSED,
            INTERNAL,
            PROVIDER_UNAVAILABLE,
            PROVIDER_MISCONFIGURED,
            DELIVERY_DEFERRED,
            NOT_BEGUN,
            STORE_UNAVAILABLE,
            DELIVERY_UNKNOWN,
        ),
        (
            parameter(
                TASK_ID,
                "header",
                {"type": "string", "pattern": f"^{_NAME.pattern}$"},
                "Identifies the notification: a repeat gets the outcome of the first call, another payload is refused.",
            ),
            parameter(ATTEMPT, "header", {"type": "integer", "minimum": 1}, "The number of the caller's attempt."),
            parameter(CREATED_AT, "header", s.MOMENT, "The Date of a mail: the same for every attempt."),
        ),
        request(content(ref(s.payload_name(channel)), {channel: ("A message", task["payload"])})),
        Scope.SUBMIT,
    )


NOTIFY: Final[Sequence[Operation]] = (
    _deliver("/notifications/email", "notifyEmail", "email"),
    _deliver("/api/email/send", "sendEmail", "email"),
    _deliver("/notifications/sms", "notifySms", "sms"),
    _deliver("/api/sms/send", "sendSms", "sms"),
    Operation(
        "POST",
        "/notifications/email/check",
        "checkEmail",
        "Notifications",
        "Is the provider of email available?",
        "Connects and authenticates, and sends nothing.",
        {204: answer("It is.")},
        (INTERNAL, PROVIDER_UNAVAILABLE, PROVIDER_MISCONFIGURED),
        scope=Scope.SUBMIT,
    ),
    START,
    *PROBES,
)
"""What notify serves."""


def notify_document() -> Json:
    """The OpenAPI document of the notification service."""
    description = "Mail and SMS, delivered at once, answered with the outcome."
    return build("TaskFlux notify", description, NOTIFY, s.notification_schemas())


@cache
def notify_json() -> bytes:
    """The same on the wire."""
    return to_json(notify_document())
