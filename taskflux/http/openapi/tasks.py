"""The operations on tasks, and the probes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from taskflux.http import problems as p
from taskflux.http.openapi import examples as e
from taskflux.http.openapi.model import Answer, Body, Json, Operation, Parameter, json_body, ref
from taskflux.http.openapi.schemas import ID, IDEMPOTENCY_KEY, MOMENT, optional
from taskflux.http.queries import LONGEST_MEMBER, LONGEST_TEXT, METADATA, MOST_MEMBERS, MOST_ON_A_PAGE, USUAL_PAGE
from taskflux.http.submissions import LONGEST_KEY
from taskflux.http.tasks import LONGEST_REASON

STORE: Final = (p.INTERNAL, p.STORE_UNAVAILABLE)
BODY: Final = (p.MALFORMED_JSON, p.BAD_REQUEST, p.TOO_LARGE, p.UNSUPPORTED_MEDIA_TYPE)
TASK_ID: Final = Parameter("taskId", "path", ID, "The task's id.", e.TASK_ID)
CURSOR: Final = Parameter("cursor", "query", {"type": "string"}, "`nextCursor` of the page before, as it came.")
LIMIT: Final = Parameter(
    "limit",
    "query",
    {"type": "integer", "minimum": 1, "maximum": MOST_ON_A_PAGE, "default": USUAL_PAGE},
    "Items on a page, at most.",
)
METADATA_FILTER: Final = Parameter(
    "metadata",
    "query",
    {
        "type": "object",
        "propertyNames": {"pattern": f"^{METADATA[:-1]}\\..+$"},
        "additionalProperties": {"type": "string", "maxLength": LONGEST_MEMBER},
        "maxProperties": MOST_MEMBERS,
    },
    "Only tasks whose metadata has these members: `metadata.order=A-17`.",
    more={"style": "form", "explode": True},
)
TRACEPARENT: Final = Parameter(
    "traceparent", "header", {"type": "string"}, "W3C trace context: the task's spans go on with it."
)
LOCATION: Final[dict[str, tuple[Json, str]]] = {"Location": ({"type": "string"}, "Where it can be looked at.")}
REPLAYED: Final[dict[str, tuple[Json, str]]] = {
    "Idempotent-Replay": ({"const": "true"}, "The key came with this request before: nothing was done twice.")
}


def _text(most: int) -> Json:
    return {"type": "string", "minLength": 1, "maxLength": most}


OPERATIONS: Final[Sequence[Operation]] = (
    Operation(
        "POST",
        "/tasks",
        "submitTask",
        "Tasks",
        "Submit a task",
        "Answered once the task is durable. With an `Idempotency-Key` a repeat makes no second task and gets the same"
        " answer, with `Idempotent-Replay: true`. A `payload` that is a text needs no `taskType`: it is simulated.",
        [
            Answer(
                202,
                "The task is durable.",
                json_body(ref("Accepted"), {"accepted": ("Accepted", e.ACCEPTED)}),
                {**LOCATION, **REPLAYED},
            )
        ],
        (*BODY, p.INVALID_TASK, p.UNKNOWN_TASK_TYPE, p.KEY_REUSED, p.REFUSED_DATA, *STORE),
        (
            Parameter("Idempotency-Key", "header", IDEMPOTENCY_KEY, "Names this request for 24 hours."),
            TRACEPARENT,
        ),
        json_body(
            ref("NewTask"),
            {
                "email": ("An e-mail", e.EMAIL),
                "sms": ("A short message", e.SMS),
                "later": ("In an hour", e.LATER),
                "text": ("A text alone", e.TEXT),
            },
        ),
    ),
    Operation(
        "POST",
        "/tasks/batch",
        "submitBatch",
        "Tasks",
        "Submit many tasks",
        "A JSON array, or NDJSON, taken while it arrives. One result for each item, in their order and in the form of"
        " the request: a bad item is named, the others are accepted. An item may have an `idempotencyKey`.",
        [
            Answer(
                202,
                "One result for each item.",
                Body(
                    {
                        "application/json": {"type": "array", "items": ref("BatchResult")},
                        "application/x-ndjson": {"type": "string"},
                    },
                    {"results": ("One accepted, one refused", e.BATCH_RESULTS)},
                ),
            )
        ],
        (p.MALFORMED_JSON, p.BAD_REQUEST, p.UNSUPPORTED_MEDIA_TYPE, *STORE),
        (TRACEPARENT,),
        Body(
            {
                "application/json": {"type": "array", "items": {}, "contentSchema": ref("BatchItem")},
                "application/x-ndjson": {"type": "string"},
            },
            {"two": ("Two tasks", [e.EMAIL, e.TEXT])},
        ),
    ),
    Operation(
        "GET",
        "/tasks",
        "listTasks",
        "Tasks",
        "List tasks",
        "Newest first. A page may be short, or empty, and still have a `nextCursor`: the work of one call is bounded.",
        [Answer(200, "A page.", json_body(ref("TaskPage"), {"page": ("The last page", e.TASK_PAGE)}))],
        (p.INVALID_QUERY, *STORE),
        (
            Parameter("status", "query", ref("Status"), "Only tasks in this state."),
            Parameter("taskType", "query", _text(LONGEST_TEXT), "Only tasks of this type."),
            Parameter("createdAfter", "query", MOMENT, "Only tasks accepted at this time or later."),
            Parameter("createdBefore", "query", MOMENT, "Only tasks accepted before this time."),
            Parameter("key", "query", _text(LONGEST_KEY), "Only tasks with this key."),
            METADATA_FILTER,
            LIMIT,
            CURSOR,
        ),
    ),
    Operation(
        "GET",
        "/tasks/{taskId}",
        "getTask",
        "Tasks",
        "Look at a task",
        "Where it stands, its payload, and what has happened to it.",
        [Answer(200, "The task.", json_body(ref("Task"), {"task": ("A mail that was sent", e.TASK)}))],
        (p.UNKNOWN_TASK, *STORE),
        (TASK_ID,),
    ),
    Operation(
        "DELETE",
        "/tasks/{taskId}",
        "cancelTask",
        "Tasks",
        "Cancel a task",
        "Possible until a worker takes it. A task that is cancelled already is answered as it is.",
        [Answer(200, "The task, cancelled.", json_body(ref("Task"), {"task": ("Cancelled", e.CANCELLED)}))],
        (p.UNKNOWN_TASK, p.WRONG_STATE, *STORE),
        (TASK_ID,),
    ),
    Operation(
        "POST",
        "/tasks/{taskId}/resolve",
        "resolveTask",
        "Tasks",
        "Decide on an uncertain task",
        "`uncertain` means that the side effect may have happened and must not be repeated unasked. `succeeded`: it did"
        " happen. `resend`: try again. `dead`: give it up.",
        [Answer(200, "The task as it stands now.", json_body(ref("Task"), {"task": ("Resolved", e.TASK)}))],
        (*BODY, p.UNKNOWN_TASK, p.WRONG_STATE, p.INVALID_RESOLUTION, *STORE),
        (TASK_ID,),
        json_body(
            {
                "type": "object",
                "properties": {
                    "outcome": {"enum": ["succeeded", "resend", "dead"]},
                    "reason": optional({"type": "string", "minLength": 1, "maxLength": LONGEST_REASON}),
                },
                "required": ["outcome"],
                "additionalProperties": False,
            },
            {"happened": ("It did happen", {"outcome": "succeeded", "reason": "the customer has it"})},
        ),
    ),
)

PROBES: Final[Sequence[Operation]] = (
    Operation(
        "GET",
        "/livez",
        "livez",
        "Probes",
        "Is it alive?",
        "The loop's own heartbeat; it asks neither Kafka nor PostgreSQL.",
        [Answer(200, "It is.", Body({"text/plain": {"type": "string"}}))],
    ),
    Operation(
        "GET",
        "/readyz",
        "readyz",
        "Probes",
        "Has it started?",
        "True once started, whatever the stores do later.",
        [Answer(200, "It has.", Body({"text/plain": {"type": "string"}}))],
        (p.NOT_STARTED,),
    ),
    Operation(
        "GET",
        "/metrics",
        "metrics",
        "Probes",
        "Metrics",
        "For Prometheus, in the format that it asks for; OpenMetrics has exemplars.",
        [
            Answer(
                200,
                "Prometheus's text format, or OpenMetrics.",
                Body({"text/plain": {"type": "string"}, "application/openmetrics-text": {"type": "string"}}),
            ),
            Answer(404, "`TASKFLUX_METRICS__ENABLED` is false.", Body({"text/plain": {"type": "string"}})),
        ],
    ),
)
