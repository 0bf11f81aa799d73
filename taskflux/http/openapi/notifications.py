"""The operations of the notification service in the OpenAPI document."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from taskflux.http import problems as p
from taskflux.http.openapi import schemas as s
from taskflux.http.openapi.operation import BODY, REPLAYED, Operation, answer, content, parameter, request
from taskflux.http.openapi.schemas import Json, ref
from taskflux.providers.notify import ATTEMPT, CREATED_AT, TASK_ID

_NAME: Final[Json] = {"type": "string", "pattern": "^[A-Za-z0-9_.-]{1,80}$"}
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
                content(_DELIVERED, {"accepted": ("Taken", {"status": "accepted", "result": result})}),
                REPLAYED,
            )
        },
        (
            *BODY,
            p.INVALID_NOTIFICATION,
            p.KEY_REUSED,
            p.DELIVERY_REFUSED,
            p.INTERNAL,
            p.PROVIDER_UNAVAILABLE,
            p.PROVIDER_MISCONFIGURED,
            p.DELIVERY_DEFERRED,
            p.NOT_BEGUN,
            p.STORE_UNAVAILABLE,
            p.DELIVERY_UNKNOWN,
        ),
        (
            parameter(
                TASK_ID,
                "header",
                _NAME,
                "Identifies the notification: a repeat gets the outcome of the first call, another payload is refused.",
            ),
            parameter(ATTEMPT, "header", {"type": "integer", "minimum": 1}, "The number of the caller's attempt."),
            parameter(CREATED_AT, "header", s.MOMENT, "The Date of a mail: the same for every attempt."),
        ),
        request(content(ref(s.payload_name(channel)), {channel: ("A message", task["payload"])})),
    )


NOTIFICATIONS: Final[Sequence[Operation]] = (
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
        {204: answer("It does.")},
        (p.INTERNAL, p.PROVIDER_UNAVAILABLE, p.PROVIDER_MISCONFIGURED),
    ),
)
