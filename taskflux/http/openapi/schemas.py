"""The objects of the API: JSON schemas (draft 2020-12) with the limits that the code itself checks, and examples."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Final

from pydantic import TypeAdapter

from taskflux.http.queries import (
    CAUSE,
    LEAST_RATE,
    LONGEST_NAME,
    LONGEST_REASON,
    LONGEST_TEXT,
    MOST_CANARY,
    MOST_CANARY_SECONDS,
    MOST_RATE,
    STATES,
    USUAL_CANARY,
    USUAL_CANARY_SECONDS,
    USUAL_FAILURES,
)
from taskflux.http.submissions import LONGEST_IDEMPOTENCY_KEY
from taskflux.providers.email import Email
from taskflux.providers.sms import Sms
from taskflux.tasks.fields import LARGEST_METADATA, LONGEST_DELAY, LONGEST_KEY, MOST_ATTEMPTS
from taskflux.tasks.states import Event, State

Json = dict[str, Any]

MOMENT: Final[Json] = {"type": "string", "format": "date-time"}
ID: Final[Json] = {"type": "string", "format": "uuid"}
COUNT: Final[Json] = {"type": "integer", "minimum": 0}
TEXT: Final[Json] = {"type": "string"}
TRACE_ID: Final[Json] = {"type": "string", "pattern": "^[0-9a-f]{32}$"}
IDEMPOTENCY_KEY: Final[Json] = {
    "type": "string",
    "minLength": 1,
    "maxLength": LONGEST_IDEMPOTENCY_KEY,
    "pattern": "^[ -~]+$",
}


def ref(name: str, section: str = "schemas") -> Json:
    """A reference to a component of the document."""
    return {"$ref": f"#/components/{section}/{name}"}


def optional(schema: Json) -> Json:
    """The same, or null, which counts as absent."""
    return {**schema, "type": [schema["type"], "null"]}


def nullable(schema: Json) -> Json:
    """This, or null."""
    return {"anyOf": [schema, {"type": "null"}]}


NEW_TASK: Final[Json] = {
    "taskType": optional(TEXT) | {"description": "The type of the task. May be left out if payload is a text."},
    "payload": {"description": "What the type's handler declares."},
    "scheduleAt": optional(MOMENT) | {"description": "When to run it, at most ten years ahead; not with delaySeconds."},
    "delaySeconds": optional({"type": "number", "minimum": 0, "maximum": LONGEST_DELAY.total_seconds()})
    | {"description": "Seconds until it runs; not with scheduleAt."},
    "expiresAt": optional(MOMENT) | {"description": "Past this time the task is dead (Expired) instead of late."},
    "key": optional({"type": "string", "minLength": 1, "maxLength": LONGEST_KEY})
    | {"description": "Selects the Kafka partition; does not guarantee an order."},
    "maxAttempts": optional({"type": "integer", "minimum": 1, "maximum": MOST_ATTEMPTS})
    | {"description": "Attempts in all, instead of what the type's handler declares."},
    "metadata": optional({"type": "object"})
    | {"description": f"Kept with the task and shown with it; at most {LARGEST_METADATA:,} bytes of JSON."},
}
"""The fields of a new task; the same names as `submissions.FIELDS` (a test compares them)."""


def new_task(types: Mapping[str, str]) -> Json:
    """A task as it is submitted: the fields, and for each type what its payload must be."""
    kinds: list[Json] = [
        {
            "title": f"{name}: a task of this type",
            "properties": {"taskType": {"const": name}, "payload": ref(payload_name(name))},
            "required": ["taskType"],
        }
        for name in types
    ]
    kinds.append(
        {
            "title": "a text: a simulated task",
            "properties": {"taskType": {"type": "null"}, "payload": {"type": "string"}},
        }
    )
    both = {"scheduleAt": {"type": "string"}, "delaySeconds": {"type": "number"}}
    return {
        "type": "object",
        "properties": NEW_TASK,
        "required": ["payload"],
        "additionalProperties": False,
        "not": {"properties": both, "required": list(both)},
        "anyOf": kinds,
    }


def batch_item(types: Mapping[str, str]) -> Json:
    """A task in a batch: the same, with an idempotency key."""
    task = new_task(types)
    key = optional(IDEMPOTENCY_KEY) | {"description": "Identifies this item; sent again, it creates no second task."}
    return {**task, "properties": {**task["properties"], "idempotencyKey": key}}


def payload_name(task_type: str) -> str:
    """The name of a type's payload in the document."""
    return f"payload.{task_type}"


def payload_schema(task_type: str, text: str) -> Json:
    """A registered schema with its own references turned into the document's; an empty one if it is not JSON."""
    try:
        found = json.loads(text)
    except ValueError:
        return {}
    schema = _moved(found, f"#/components/schemas/{payload_name(task_type)}/$defs/")
    return schema if isinstance(schema, dict) else {}


def _moved(value: Any, to: str) -> Any:
    if isinstance(value, dict):
        return {
            name: to + inner.removeprefix("#/$defs/")
            if name == "$ref" and isinstance(inner, str) and inner.startswith("#/$defs/")
            else _moved(inner, to)
            for name, inner in value.items()
        }
    return [_moved(each, to) for each in value] if isinstance(value, list) else value


def obj(required: Mapping[str, Json], more: Mapping[str, Json] | None = None, description: str = "") -> Json:
    """An object with required members, and optional ones."""
    told: Json = {"type": "object", "properties": {**required, **(more or {})}, "required": list(required)}
    return told | ({"description": description} if description else {})


STATUS: Final[Json] = {"type": "string", "enum": [state.value for state in State]}


def _task(*, whole: bool) -> Json:
    error = obj({"class": TEXT, "reason": {"type": ["string", "null"]}})
    always: dict[str, Json] = {
        "taskId": ID,
        "taskType": TEXT,
        "status": ref("Status"),
        "attempts": COUNT | {"description": "Attempts that were begun; raised before the side effect."},
        "maxAttempts": COUNT,
        "retryCount": COUNT | {"description": "Attempts after the first."},
        "losses": COUNT | {"description": "Workers that were lost while they held it, which costs no attempt."},
        "createdAt": MOMENT,
        "updatedAt": MOMENT,
        "dueAt": MOMENT,
        "result": {"description": "What the handler returned, or has noted so far."},
        "error": {"anyOf": [error, {"type": "null"}], "description": "Why the last attempt failed."},
    }
    more: dict[str, Json] = {}
    if whole:
        always |= {"payload": {}, "timeline": {"type": "array", "items": ref("TimelineEntry")}}
        more = HIDDEN
    sometimes: dict[str, Json] = {
        "waitsFor": TEXT | {"description": "What it waits for, in words; absent while it runs and once it has ended."},
        "key": TEXT,
        "metadata": {},
        "expiresAt": MOMENT,
        "replays": COUNT,
        "traceId": TRACE_ID,
        "delivery": {"description": "What the provider has reported since: accepted is not delivered."},
    }
    return obj(always, sometimes | more)


HIDDEN: Final[dict[str, Json]] = {
    "payloadHidden": {"const": True, "description": "The payload is not shown: the key has not the scope `payload`."}
}


def page(item: str) -> Json:
    """A page of these."""
    cursor = {"type": ["string", "null"], "description": "Where the next page begins; null: this was the last one."}
    return obj({"items": {"type": "array", "items": ref(item)}, "nextCursor": cursor})


def task_schemas(types: Mapping[str, str]) -> dict[str, Json]:
    """The schemas of tasks; `types` is task type → JSON schema of its payload, as text."""
    return {
        "NewTask": new_task(types),
        "BatchItem": batch_item(types),
        "Accepted": obj({"taskId": ID, "taskType": TEXT, "status": {"const": "scheduled"}, "createdAt": MOMENT}),
        "BatchResult": {
            "anyOf": [
                obj(
                    {"index": COUNT, "taskId": ID, "taskType": TEXT, "status": {"const": 202}, "createdAt": MOMENT},
                    {"idempotentReplay": {"const": True}},
                ),
                obj({"index": COUNT, "status": {"type": "integer", "minimum": 400}}, {"problem": ref("Problem")}),
            ]
        },
        "Status": STATUS,
        "Task": _task(whole=True),
        "TaskSummary": _task(whole=False),
        "TaskPage": page("TaskSummary"),
        "Why": obj(
            {
                "taskId": ID,
                "taskType": TEXT,
                "status": ref("Status"),
                "reasons": {"type": "array", "items": obj({"kind": TEXT, "text": TEXT}), "minItems": 1},
            }
        ),
        "TimelineEntry": obj(
            {"at": MOMENT, "event": TEXT, "state": ref("Status"), "attempt": COUNT},
            {"times": COUNT, "note": TEXT, "traceId": TRACE_ID},
            "What happened: accepted, " + ", ".join(event.value for event in Event) + ". Repeats are folded.",
        ),
        **{payload_name(name): payload_schema(name, text) for name, text in types.items()},
    }


def problem_schema() -> Json:
    """RFC 9457."""
    error = obj({"field": TEXT, "message": TEXT})
    return obj(
        {
            "type": {"type": "string", "format": "uri-reference"},
            "title": TEXT,
            "status": {"type": "integer", "minimum": 400, "maximum": 599},
            "detail": TEXT,
        },
        {"errors": {"type": "array", "items": error, "description": "Each bad field."}},
        "A problem (RFC 9457). `type` leads to a page that explains it.",
    )


FILTER_TEXT: Final[Json] = {"type": "string", "minLength": 1, "maxLength": LONGEST_TEXT}
FILTER_NAME: Final[Json] = {**FILTER_TEXT, "maxLength": LONGEST_NAME}
FILTERS: Final[dict[str, Json]] = {
    "taskType": FILTER_TEXT,
    "errorClass": FILTER_NAME,
    "createdAfter": MOMENT,
    "createdBefore": MOMENT,
    "originTopic": FILTER_NAME,
    "cause": {"type": "string", "pattern": f"^{CAUSE}$"},
}

_BYTES: Final[Json] = obj({"encoding": {"enum": ["utf-8", "base64"]}, "data": TEXT})


def dead_letter_schemas() -> dict[str, Json]:
    """The schemas of dead letters."""
    some = [{"required": [name], "properties": {name: {"type": "string"}}} for name in FILTERS]
    header = obj({"name": TEXT, "value": nullable(_BYTES)})
    record = obj(
        {"key": nullable(_BYTES), "value": nullable(_BYTES), "headers": {"type": "array", "items": header}},
        description="The record of a poison message: as text if it is readable, else as base64.",
    )
    moved = {"payload": {}, "traceId": optional(TEXT), "timeline": {"type": "array", "items": ref("TimelineEntry")}}
    groups = {"groups": {"type": "array", "items": ref("DeadLetterGroup")}, "others": _OTHERS}
    statuses = ["canary", "running", "finished", "stopped"]
    job = {"replayId": ID, "action": {"enum": ["replay", "discard"]}, "matched": COUNT, "status": {"enum": statuses}}
    item = {
        **job,
        "actor": optional(TEXT) | {"description": "Who has started it, in their own words."},
        "reason": optional(TEXT) | {"description": "Of a discard."},
        "filter": {"type": "object"},
        "rate": {"type": "number"},
        "canary": COUNT | {"description": "How many are replayed first; the rest follows if they go well."},
        "maxFailureRate": optional({"type": "number"}),
        "replayed": COUNT,
        "discarded": COUNT,
        "skipped": COUNT | {"description": "Replayed or discarded by others meanwhile."},
        "stoppedBecause": optional(TEXT),
        "createdAt": MOMENT,
        "updatedAt": MOMENT,
    }
    new_cause = obj({"cause": TEXT, "count": COUNT})
    return {
        "DeadLetter": obj(_dead_letter()),
        "DeadLetterPage": page("DeadLetter"),
        "DeadLetterInFull": obj({**_dead_letter(), **moved, "record": nullable(record)}, HIDDEN),
        "DeadLetterGroup": _group(),
        "DeadLetterGroups": obj(groups),
        "DeadLetterFilter": {
            "type": "object",
            "properties": {name: optional(schema) for name, schema in FILTERS.items()},
            "additionalProperties": False,
            "anyOf": some,
            "description": "Which dead letters: all given conditions must match. At least one is required.",
        },
        "Replayed": obj({"deadLetterId": ID, "taskId": ID, "status": {"const": "scheduled"}}),
        "DryRun": obj({"matched": COUNT, **groups}),
        "BulkReplayStarted": obj(job),
        "BulkReplayItem": obj(item),
        "BulkReplayPage": page("BulkReplayItem"),
        "BulkReplay": obj(
            {
                **item,
                "outcomes": {"type": "object", "additionalProperties": COUNT},
                "newCauses": {
                    "type": "array",
                    "items": new_cause,
                    "description": "Causes of tasks that died again, if none of its dead letters had them.",
                },
            }
        ),
    }


_OTHERS: Final[Json] = obj({"groups": COUNT, "count": COUNT}, description="What the groups beyond the largest have.")


def _group() -> Json:
    image = obj({"name": TEXT, "since": MOMENT})
    change = obj(
        {"image": image, "before": nullable(image), "latest": image},
        description="The image of the type's handler when the cause was first seen, the one before it, the latest one.",
    )
    trend = obj(
        {"hours": COUNT, "counts": {"type": "array", "items": COUNT}},
        description="How many came in each of the last hours, this one last, whatever became of them.",
    )
    sample = obj({"deadLetterId": ID, "reason": TEXT}, description="The newest one.")
    cause = optional(TEXT) | {"description": "Its fingerprint, for the filter `cause`."}
    message = optional(TEXT) | {"description": "Its message, with what varies replaced."}
    return obj(
        {
            "taskType": optional(TEXT),
            "errorClass": TEXT,
            "cause": cause,
            "message": message,
            "count": COUNT,
            "oldest": optional(MOMENT),
            "newest": optional(MOMENT),
            "firstSeen": optional(MOMENT) | {"description": "Of all that are kept, whatever the filter is."},
            "lastSeen": optional(MOMENT),
            "trend": trend,
            "sample": nullable(sample),
            "handler": nullable(change),
        }
    )


REPAIR: Final[Json] = {
    "type": ["object"],
    "properties": {
        "payload": {"description": "Another payload; it must match what the type's handler declares."},
        "taskType": optional(TEXT) | {"description": "The type of a record that did not name one."},
        "value": optional(TEXT) | {"description": "A poison message's whole value, repaired; alone."},
    },
    "additionalProperties": False,
}
"""What may replace the contents of a dead letter."""

_ACTOR: Final[Json] = optional({"type": "string", "minLength": 1, "maxLength": 100}) | {
    "description": "Who asks for it; shown with the job."
}
BULK_REQUEST: Final[Json] = {
    "type": "object",
    "properties": {
        "filter": ref("DeadLetterFilter"),
        "dryRun": optional({"type": "boolean"}) | {"description": "Only count.", "default": False},
        "actor": _ACTOR,
        "rate": optional({"type": "number", "minimum": LEAST_RATE, "maximum": MOST_RATE})
        | {"description": "Dead letters a second; absent: as many as the type's tasks that ended lately."},
        "canary": optional({"type": "integer", "minimum": 0, "maximum": MOST_CANARY})
        | {"description": "How many are replayed first, and waited for.", "default": USUAL_CANARY},
        "canarySeconds": optional({"type": "number", "minimum": 1, "maximum": MOST_CANARY_SECONDS})
        | {"description": "How long those may take; then the job stops.", "default": USUAL_CANARY_SECONDS},
        "maxFailureRate": optional({"type": "number", "minimum": 0, "maximum": 1})
        | {"description": "Stop if more of the last 100, or of the canary, fail.", "default": USUAL_FAILURES},
    },
    "required": ["filter"],
    "additionalProperties": False,
}
BULK_DISCARD: Final[Json] = {
    "type": "object",
    "properties": {
        "filter": ref("DeadLetterFilter"),
        "dryRun": optional({"type": "boolean"}) | {"description": "Only count.", "default": False},
        "actor": _ACTOR,
        "reason": {"type": "string", "minLength": 1, "maxLength": LONGEST_REASON},
    },
    "required": ["filter", "reason"],
    "additionalProperties": False,
}


def _dead_letter() -> dict[str, Json]:
    replay = obj({"at": MOMENT, "taskId": ID, "outcome": optional(TEXT)}, {"by": TEXT})
    origin = {
        "topic": optional(TEXT),
        "partition": optional({"type": "integer"}),
        "offset": optional({"type": "integer"}),
        "timestamp": optional(MOMENT),
    }
    return {
        "deadLetterId": ID,
        "taskId": optional(ID),
        "taskType": optional(TEXT),
        "errorClass": TEXT,
        "cause": optional(TEXT) | {"description": "What its group has in common; null for a moment after an upgrade."},
        "reason": TEXT,
        "attempts": COUNT,
        "origin": obj(origin, description="The place of its record in Kafka."),
        "createdAt": MOMENT,
        "state": {"enum": list(STATES)},
        "replays": {"type": "array", "items": replay},
        "discarded": nullable(obj({"at": MOMENT, "reason": TEXT})),
    }


def notification_schemas() -> dict[str, Json]:
    """What notify accepts: the payloads of the task types, which may have a field `progress`."""
    progress = {"type": ["object", "null"], "description": "What an earlier attempt noted."}
    schemas = {}
    for channel, payload in (("email", Email), ("sms", Sms)):
        schema = payload_schema(channel, json.dumps(TypeAdapter(payload).json_schema(by_alias=True)))
        schemas[payload_name(channel)] = schema | {"properties": schema["properties"] | {"progress": progress}}
    return schemas


# Examples; a test sends the requests among them. ---------------------------------------------------------------------

TASK_ID: Final = "01890a5d-ac96-774b-bcce-b302099a8057"
DEAD_LETTER_ID: Final = "01890a5e-13f2-7d10-8a44-5d6f3c1b2a90"
REPLAY_ID: Final = "01890a60-77aa-7c3e-9f51-0b1c2d3e4f50"
_AT: Final = "2030-01-31T09:00:00.000000Z"
_THEN: Final = "2030-01-31T09:00:00.250000Z"

EMAIL: Final = {
    "taskType": "email",
    "payload": {"to": "ann@example.org", "subject": "Welcome", "body": "Hello Ann"},
}
SMS: Final = {"taskType": "sms", "payload": {"mobile": "+919876543210", "name": "Ann"}}
LATER: Final = {
    "taskType": "simulated",
    "payload": {"delayMs": 200},
    "delaySeconds": 3600,
    "maxAttempts": 3,
    "metadata": {"order": "A-17"},
}
TEXT_TASK: Final = {"payload": "a simulated task"}

ACCEPTED: Final = {"taskId": TASK_ID, "taskType": "email", "status": "scheduled", "createdAt": _AT}
BATCH_RESULTS: Final = [
    {"index": 0, "taskId": TASK_ID, "taskType": "email", "status": 202, "createdAt": _AT},
    {
        "index": 1,
        "status": 422,
        "problem": {
            "type": "/problems/invalid-task",
            "title": "The task is not valid",
            "status": 422,
            "detail": "not valid: payload.name",
            "errors": [{"field": "payload.name", "message": "is required"}],
        },
    },
]

_SUMMARY: Final[dict[str, Any]] = {
    "taskId": TASK_ID,
    "taskType": "email",
    "status": "succeeded",
    "attempts": 1,
    "maxAttempts": 6,
    "retryCount": 0,
    "losses": 0,
    "createdAt": _AT,
    "updatedAt": _THEN,
    "dueAt": _AT,
    "result": {"messageId": f"<{TASK_ID}@example.org>", "delivered": {"ann@example.org": "250 OK"}},
    "error": None,
    "traceId": "4bf92f3577b34da6a3ce929d0e0e4736",
}
TASK: Final = {
    **_SUMMARY,
    "payload": EMAIL["payload"],
    "timeline": [
        {"at": _AT, "event": "accepted", "state": "scheduled", "attempt": 0},
        {"at": _AT, "event": "published", "state": "queued", "attempt": 0},
        {"at": _AT, "event": "claimed", "state": "running", "attempt": 1, "note": "process-email@pod:1"},
        {"at": _THEN, "event": "succeeded", "state": "succeeded", "attempt": 1},
    ],
}
TASK_PAGE: Final = {"items": [_SUMMARY], "nextCursor": None}
WHY: Final = {
    "taskId": TASK_ID,
    "taskType": "email",
    "status": "scheduled",
    "reasons": [
        {
            "kind": "circuit",
            "text": "the circuit of smtp is open since 2030-01-31 08:58:00Z (Misconfigured: 535 authentication failed)",
        },
        {"kind": "behind", "text": "12,000 others of its type are before it (about 4 minutes)"},
    ],
}
CANCELLED: Final = {**TASK, "status": "cancelled", "attempts": 0, "result": None}

DEAD_LETTER: Final[dict[str, Any]] = {
    "deadLetterId": DEAD_LETTER_ID,
    "taskId": TASK_ID,
    "taskType": "email",
    "errorClass": "Permanent",
    "cause": "1-4f0c2a9be371",
    "reason": "550 5.1.1 no such user",
    "attempts": 1,
    "origin": {"topic": "tasks.dlq", "partition": 3, "offset": 17, "timestamp": _AT},
    "createdAt": _THEN,
    "state": "open",
    "replays": [],
    "discarded": None,
}
DEAD_LETTER_IN_FULL: Final = {
    **DEAD_LETTER,
    "payload": EMAIL["payload"],
    "traceId": "4bf92f3577b34da6a3ce929d0e0e4736",
    "timeline": [{"at": _THEN, "event": "died", "state": "dead", "attempt": 1, "note": "Permanent"}],
    "record": None,
}
DISCARDED: Final = {**DEAD_LETTER_IN_FULL, "state": "discarded", "discarded": {"at": _THEN, "reason": "a test"}}
DEAD_LETTER_PAGE: Final = {"items": [DEAD_LETTER], "nextCursor": None}
_IMAGE: Final = {"name": "ghcr.io/taskflux/taskflux:0.1.0", "since": _AT}
GROUPS: Final = {
    "groups": [
        {
            "taskType": "email",
            "errorClass": "Permanent",
            "cause": "1-4f0c2a9be371",
            "message": "550 5.1.1 no such user",
            "count": 12,
            "oldest": _AT,
            "newest": _THEN,
            "firstSeen": _AT,
            "lastSeen": _THEN,
            "trend": {"hours": 24, "counts": [0] * 22 + [7, 5]},
            "sample": {"deadLetterId": DEAD_LETTER_ID, "reason": DEAD_LETTER["reason"]},
            "handler": {"image": _IMAGE, "before": None, "latest": _IMAGE},
        }
    ],
    "others": {"groups": 0, "count": 0},
}
DRY_RUN: Final = {"matched": 12, **GROUPS}
REPLAYED: Final = {"deadLetterId": DEAD_LETTER_ID, "taskId": TASK_ID, "status": "scheduled"}
BULK_STARTED: Final = {"replayId": REPLAY_ID, "action": "replay", "matched": 12, "status": "canary"}
BULK_ITEM: Final[dict[str, Any]] = {
    **BULK_STARTED,
    "status": "finished",
    "actor": "ann",
    "reason": None,
    "filter": {"taskType": "email", "cause": "1-4f0c2a9be371"},
    "rate": 50.0,
    "canary": 10,
    "maxFailureRate": 0.5,
    "replayed": 11,
    "discarded": 0,
    "skipped": 1,
    "stoppedBecause": None,
    "createdAt": _AT,
    "updatedAt": _THEN,
}
BULK_PAGE: Final = {"items": [BULK_ITEM], "nextCursor": None}
BULK: Final = {
    **BULK_ITEM,
    "outcomes": {"succeeded": 10, "dead": 1},
    "newCauses": [{"cause": "1-77d0aa3be1c2", "count": 1}],
}
DISCARD_STARTED: Final = {**BULK_STARTED, "action": "discard", "status": "running"}

DELIVERIES: Final[Mapping[str, tuple[Mapping[str, object], Json]]] = {
    "email": (EMAIL, {"messageId": f"<{TASK_ID}@example.org>", "delivered": {"ann@example.org": "250 OK"}}),
    "sms": (SMS, {"requestId": "3763646c3058373530393938", "status": "accepted"}),
}
"""Channel → a task, and what its provider answers."""
REPORT: Final = {"CRQID": TASK_ID, "requestId": "3763", "number": "919876543210", "status": "1"}
