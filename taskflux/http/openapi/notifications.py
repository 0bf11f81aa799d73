"""The operations of the notification service, and the providers' webhooks."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, Final

from pydantic import TypeAdapter

from taskflux.http import problems as p
from taskflux.http.openapi.examples import EMAIL, SMS, TASK_ID
from taskflux.http.openapi.model import Answer, Json, Operation, Parameter, json_body, ref
from taskflux.http.openapi.schemas import COUNT, MOMENT, TEXT, obj, payload_name, payload_schema
from taskflux.http.openapi.tasks import BODY, REPLAYED, STORE
from taskflux.providers.email import Email
from taskflux.providers.notify import ATTEMPT, CREATED_AT
from taskflux.providers.notify import TASK_ID as TASK_ID_HEADER
from taskflux.providers.sms import Sms

_PROBLEMS: Final = (
    *BODY,
    p.INVALID_NOTIFICATION,
    p.DELIVERY_REFUSED,
    p.INTERNAL,
    p.PROVIDER_UNAVAILABLE,
    p.PROVIDER_MISCONFIGURED,
    p.DELIVERY_DEFERRED,
    p.STORE_UNAVAILABLE,
    p.DELIVERY_UNKNOWN,
)
_NAME: Final[Json] = {"type": "string", "pattern": "^[A-Za-z0-9_.-]{1,80}$"}
_HEADERS: Final = (
    Parameter(TASK_ID_HEADER, "header", _NAME, "Names the notification: a repeat is told what became of the first."),
    Parameter(ATTEMPT, "header", {"type": "integer", "minimum": 1}, "Which try of the caller's this is."),
    Parameter(CREATED_AT, "header", MOMENT, "A mail's Date: the same for every try."),
)
_PAYLOADS: Final[Mapping[str, Any]] = {"email": Email, "sms": Sms}
_DELIVERED: Final = obj({"status": {"const": "accepted"}, "result": {}})
_EXAMPLES: Final[Mapping[str, tuple[Mapping[str, object], Json]]] = {
    "email": (EMAIL, {"messageId": f"<{TASK_ID}@example.org>", "delivered": {"ann@example.org": "250 OK"}}),
    "sms": (SMS, {"requestId": "3763646c3058373530393938", "status": "accepted"}),
}


def notification_operations(channels: Sequence[str], checks: Sequence[str]) -> list[Operation]:
    """What the notification service answers: `channels` it delivers through, `checks` those that can be checked."""
    sends = [
        _send(channel, path, name)
        for channel in channels
        for path, name in ((f"/notifications/{channel}", "notify"), (f"/api/{channel}/send", "send"))
    ]
    return [*sends, *map(_check, checks)]


def notification_name(channel: str) -> str:
    """The name under which a channel's notification stands in the document."""
    return payload_name(channel)


def notification_schema(channel: str) -> Json:
    """The payload of the task type, which may have `progress` beside."""
    schema = payload_schema(channel, json.dumps(TypeAdapter(_PAYLOADS[channel]).json_schema(by_alias=True)))
    progress = {"type": ["object", "null"], "description": "What an earlier try noted."}
    return {**schema, "properties": {**schema.get("properties", {}), "progress": progress}}


def _send(channel: str, path: str, name: str) -> Operation:
    task, result = _EXAMPLES[channel]
    return Operation(
        "POST",
        path,
        f"{name}{channel.capitalize()}",
        "Notifications",
        f"Deliver through {channel} now",
        "Answered with the outcome; nothing is kept to be tried again. `accepted` is the provider's yes, not delivery.",
        [
            Answer(
                200,
                "The provider has taken it.",
                json_body(_DELIVERED, {"accepted": ("Taken", {"status": "accepted", "result": result})}),
                REPLAYED,
            )
        ],
        _PROBLEMS,
        _HEADERS,
        json_body(ref(notification_name(channel)), {channel: ("A message", task["payload"])}),
    )


def _check(channel: str) -> Operation:
    return Operation(
        "POST",
        f"/notifications/{channel}/check",
        f"check{channel.capitalize()}",
        "Notifications",
        f"Does the provider of {channel} serve us?",
        "Connects and authenticates, and sends nothing.",
        [Answer(204, "It does.")],
        (p.INTERNAL, p.PROVIDER_UNAVAILABLE, p.PROVIDER_MISCONFIGURED),
    )


WEBHOOKS: Final[Sequence[Operation]] = (
    Operation(
        "POST",
        "/webhooks/msg91/{secret}",
        "msg91Reports",
        "Webhooks",
        "MSG91's delivery reports",
        "In both of MSG91's forms. The same report may come any number of times. The path is the secret: with a wrong"
        " one nothing is served here.",
        [
            Answer(
                200,
                "Taken.",
                json_body(obj({"reports": COUNT, "matched": COUNT}), {"one": ("One", {"reports": 1, "matched": 1})}),
            )
        ],
        (p.MALFORMED_JSON, p.BAD_REQUEST, p.NOT_FOUND, p.TOO_LARGE, p.UNSUPPORTED_MEDIA_TYPE, p.REFUSED_DATA, *STORE),
        (Parameter("secret", "path", TEXT, "As in TASKFLUX_MSG91__WEBHOOK_SECRET."),),
        json_body(
            {},
            {
                "delivered": (
                    "Version 3",
                    {"CRQID": TASK_ID, "requestId": "3763", "number": "919876543210", "status": "1"},
                )
            },
        ),
    ),
)
