"""Every operation of the API: its request, its answers, and its problems.

Those of notify are in `taskflux.http.notifications`. The routes have the same ids; a test compares the two.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Final

from taskflux.http import problems as p
from taskflux.http.bodies import to_json
from taskflux.http.openapi import schemas as s
from taskflux.http.openapi.document import BODY, REPLAYED, Operation, answer, build, content, parameter, request
from taskflux.http.openapi.schemas import Json, optional, ref
from taskflux.http.queries import (
    ALL,
    LONGEST_MEMBER,
    LONGEST_TEXT,
    METADATA,
    MOST_MEMBERS,
    MOST_ON_A_PAGE,
    STATES,
    USUAL_PAGE,
)
from taskflux.http.tasks import LONGEST_REASON
from taskflux.store.dead_letters import OPEN
from taskflux.tasks.access import Scope
from taskflux.tasks.fields import LONGEST_KEY

ABOUT: Final = (
    "Runs work outside the request: accepts tasks over HTTP, gives each to its handler, and retries what fails."
)
"""What ingest says of itself in a sentence."""

_PLAIN: Final[Json] = {"type": "string"}
_LINES: Final = content({"type": "string"}, media_type="application/x-ndjson")
_STORE: Final = (p.INTERNAL, p.STORE_UNAVAILABLE)
_CURSOR: Final = parameter("cursor", "query", {"type": "string"}, "`nextCursor` of the previous page, unchanged.")
_LIMIT: Final = parameter(
    "limit",
    "query",
    {"type": "integer", "minimum": 1, "maximum": MOST_ON_A_PAGE, "default": USUAL_PAGE},
    "Items on a page, at most.",
)
_TRACEPARENT: Final = parameter(
    "traceparent", "header", {"type": "string"}, "W3C trace context: the task's spans continue it."
)
_LOCATION: Final = {"Location": (_PLAIN, "Its URL.")}

# Tasks ---------------------------------------------------------------------------------------------------------------

_TASK_ID: Final = parameter("taskId", "path", s.ID, "The task's id.", example=s.TASK_ID)
_METADATA: Final = parameter(
    "metadata",
    "query",
    {
        "type": "object",
        "propertyNames": {"pattern": f"^{METADATA[:-1]}\\..+$"},
        "additionalProperties": {"type": "string", "maxLength": LONGEST_MEMBER},
        "maxProperties": MOST_MEMBERS,
    },
    "Only tasks whose metadata has these members: `metadata.order=A-17`.",
    style="form",
    explode=True,
)


def _text(most: int) -> Json:
    return {"type": "string", "minLength": 1, "maxLength": most}


def _task(description: str, summary: str, value: object) -> Json:
    return answer(description, content(ref("Task"), {"task": (summary, value)}))


TASKS: Final[Sequence[Operation]] = (
    Operation(
        "POST",
        "/tasks",
        "submitTask",
        "Tasks",
        "Submit a task",
        "Answered once the task is durable. With an `Idempotency-Key`, a repeat creates no second task and gets the"
        " same answer, with `Idempotent-Replay: true`. A text as `payload` needs no `taskType`: it is simulated.",
        {
            202: answer(
                "The task is durable.",
                content(ref("Accepted"), {"accepted": ("Accepted", s.ACCEPTED)}),
                {**_LOCATION, **REPLAYED},
            )
        },
        (*BODY, p.INVALID_TASK, p.UNKNOWN_TASK_TYPE, p.KEY_REUSED, p.REFUSED_DATA, p.NOT_BEGUN, *_STORE),
        (
            parameter("Idempotency-Key", "header", s.IDEMPOTENCY_KEY, "Identifies this request for 24 hours."),
            _TRACEPARENT,
        ),
        request(
            content(
                ref("NewTask"),
                {
                    "email": ("An e-mail", s.EMAIL),
                    "sms": ("A short message", s.SMS),
                    "later": ("In an hour", s.LATER),
                    "text": ("A text alone", s.TEXT_TASK),
                },
            )
        ),
        scope=Scope.SUBMIT,
    ),
    Operation(
        "POST",
        "/tasks/batch",
        "submitBatch",
        "Tasks",
        "Submit many tasks",
        "A JSON array, or NDJSON, processed while it arrives. One result for each item, in their order and in the form"
        " of the request: a bad item is reported, the others are accepted. An item may have an `idempotencyKey`. If"
        " many items are bad, the first are described in full and the others by their status alone.",
        {
            202: answer(
                "One result for each item.",
                content(
                    {"type": "array", "items": ref("BatchResult")},
                    {"results": ("One accepted, one refused", s.BATCH_RESULTS)},
                )
                | _LINES,
            )
        },
        (*BODY, *_STORE),
        (_TRACEPARENT,),
        request(
            content(
                {"type": "array", "items": {}, "contentSchema": ref("BatchItem")},
                {"two": ("Two tasks", [s.EMAIL, s.TEXT_TASK])},
            )
            | _LINES
        ),
        scope=Scope.SUBMIT,
    ),
    Operation(
        "GET",
        "/tasks",
        "listTasks",
        "Tasks",
        "List tasks",
        "Newest first. A page may be short and still have a `nextCursor`: the work of one call is bounded.",
        {200: answer("A page.", content(ref("TaskPage"), {"page": ("The last page", s.TASK_PAGE)}))},
        (p.INVALID_QUERY, *_STORE),
        (
            parameter("status", "query", ref("Status"), "Only tasks in this state."),
            parameter("taskType", "query", _text(LONGEST_TEXT), "Only tasks of this type."),
            parameter("createdAfter", "query", s.MOMENT, "Only tasks accepted at this time or later."),
            parameter("createdBefore", "query", s.MOMENT, "Only tasks accepted before this time."),
            parameter("key", "query", _text(LONGEST_KEY), "Only tasks with this key."),
            _METADATA,
            _LIMIT,
            _CURSOR,
        ),
        scope=Scope.READ,
    ),
    Operation(
        "GET",
        "/tasks/{taskId}",
        "getTask",
        "Tasks",
        "Look at a task",
        "Its state, its payload, and what has happened to it.",
        {200: _task("The task.", "A mail that was sent", s.TASK)},
        (p.UNKNOWN_TASK, p.BUSY, *_STORE),
        (_TASK_ID,),
        scope=Scope.READ,
    ),
    Operation(
        "GET",
        "/tasks/{taskId}/why",
        "whyTask",
        "Tasks",
        "Why does a task wait?",
        "In sentences, the most telling one first: its time, an open circuit, no worker, those before it.",
        {200: answer("The reasons.", content(ref("Why"), {"why": ("Behind an open circuit", s.WHY)}))},
        (p.UNKNOWN_TASK, *_STORE),
        (_TASK_ID,),
        scope=Scope.READ,
    ),
    Operation(
        "DELETE",
        "/tasks/{taskId}",
        "cancelTask",
        "Tasks",
        "Cancel a task",
        "Possible until a worker starts it. For a task that is cancelled already, the answer is the same.",
        {200: _task("The task, cancelled.", "Cancelled", s.CANCELLED)},
        (p.UNKNOWN_TASK, p.WRONG_STATE, p.BUSY, p.NOT_BEGUN, *_STORE),
        (_TASK_ID,),
        scope=Scope.OPERATE,
    ),
    Operation(
        "POST",
        "/tasks/{taskId}/resolve",
        "resolveTask",
        "Tasks",
        "Decide on an uncertain task",
        "`uncertain` means that the side effect may have happened and must not be repeated unasked. `succeeded`: it did"
        " happen. `resend`: try again. `dead`: give it up.",
        {200: _task("The task in its new state.", "Resolved", s.TASK)},
        (*BODY, p.UNKNOWN_TASK, p.WRONG_STATE, p.INVALID_RESOLUTION, p.NOT_BEGUN, *_STORE),
        (_TASK_ID,),
        request(
            content(
                {
                    "type": "object",
                    "properties": {
                        "outcome": {"enum": ["succeeded", "resend", "dead"]},
                        "reason": optional(_text(LONGEST_REASON)),
                    },
                    "required": ["outcome"],
                    "additionalProperties": False,
                },
                {"happened": ("It did happen", {"outcome": "succeeded", "reason": "the customer has it"})},
            )
        ),
        scope=Scope.OPERATE,
    ),
)

# Dead letters --------------------------------------------------------------------------------------------------------

_DEAD_LETTER_ID: Final = parameter("deadLetterId", "path", s.ID, "The dead letter's id.", example=s.DEAD_LETTER_ID)
_REPLAY_ID: Final = parameter("replayId", "path", s.ID, "The bulk replay's id.", example=s.REPLAY_ID)
_DESCRIPTIONS: Final = {
    "taskType": "Only this task type.",
    "errorClass": "Only this class of error.",
    "createdAfter": "Only those stored at this time or later.",
    "createdBefore": "Only those stored before this time.",
    "originTopic": "Only those that came from this Kafka topic.",
    "cause": "Only those with this cause, as the groups show it.",
}
_STATE: Final = {"type": "string", "enum": [*STATES, ALL], "default": OPEN}
_FILTERS: Final = (
    *(parameter(name, "query", schema, _DESCRIPTIONS[name]) for name, schema in s.FILTERS.items()),
    parameter("state", "query", _STATE, "What was done about them."),
)
_FILTER: Final = {"filter": {"taskType": "email", "errorClass": "Permanent"}}


def _bulk(description: str) -> Json:
    return answer(description, content(ref("BulkReplay"), {"replay": ("At its end", s.BULK)}))


def _whole(description: str, value: object) -> Json:
    return answer(description, content(ref("DeadLetterInFull"), {"deadLetter": (description, value)}))


DEAD_LETTERS: Final[Sequence[Operation]] = (
    Operation(
        "GET",
        "/dead-letters",
        "listDeadLetters",
        "Dead letters",
        "List dead letters",
        "Failed tasks and poison messages, newest first.",
        {200: answer("A page.", content(ref("DeadLetterPage"), {"page": ("The last page", s.DEAD_LETTER_PAGE)}))},
        (p.INVALID_QUERY, *_STORE),
        (*_FILTERS, _LIMIT, _CURSOR),
        scope=Scope.READ,
    ),
    Operation(
        "GET",
        "/dead-letters/groups",
        "groupDeadLetters",
        "Dead letters",
        "Count dead letters by cause",
        "How many there are of each type and cause: error class and message, with numbers, ids, addresses and quoted"
        " values replaced. The 200 largest groups; `others` sums the rest.",
        {200: answer("The groups.", content(ref("DeadLetterGroups"), {"groups": ("One group", s.GROUPS)}))},
        (p.INVALID_QUERY, *_STORE),
        _FILTERS,
        scope=Scope.READ,
    ),
    Operation(
        "GET",
        "/dead-letters/{deadLetterId}",
        "getDeadLetter",
        "Dead letters",
        "Look at a dead letter",
        "With its payload and its task's timeline, or the bytes of a poison message's record.",
        {200: _whole("The dead letter.", s.DEAD_LETTER_IN_FULL)},
        (p.UNKNOWN_DEAD_LETTER, p.BUSY, *_STORE),
        (_DEAD_LETTER_ID,),
        scope=Scope.READ,
    ),
    Operation(
        "POST",
        "/dead-letters/{deadLetterId}/replay",
        "replayDeadLetter",
        "Dead letters",
        "Replay a dead letter",
        "As it was (no body, or `{}`), or with a repaired `payload`, which must match its type's schema. A poison"
        " message is repaired by `payload` and `taskType`, or as a whole by `value`. It is replayed once: a second"
        " request is answered 409, with the task that it became.",
        {202: answer("It is replayed.", content(ref("Replayed"), {"replayed": ("Replayed", s.REPLAYED)}), _LOCATION)},
        (
            *BODY,
            p.UNKNOWN_DEAD_LETTER,
            p.ALREADY_REPLAYED,
            p.ALREADY_DISCARDED,
            p.TASK_MOVED_ON,
            p.INVALID_REPLAY,
            p.INVALID_TASK,
            p.UNKNOWN_TASK_TYPE,
            p.NOT_BEGUN,
            p.REFUSED_DATA,
            *_STORE,
        ),
        (_DEAD_LETTER_ID,),
        request(
            content(
                s.REPAIR,
                {
                    "asItWas": ("As it was", {}),
                    "repaired": ("With another payload", {"payload": s.EMAIL["payload"]}),
                    "record": ("A repaired record", {"value": '{"taskType": "simulated", "payload": "x"}'}),
                },
            ),
            required=False,
        ),
        scope=Scope.OPERATE,
    ),
    Operation(
        "POST",
        "/dead-letters/{deadLetterId}/discard",
        "discardDeadLetter",
        "Dead letters",
        "Discard a dead letter",
        "It stays readable, with the reason, and is not replayed. A second request does not change the reason.",
        {200: _whole("The dead letter, discarded.", s.DISCARDED)},
        (
            *BODY,
            p.UNKNOWN_DEAD_LETTER,
            p.ALREADY_REPLAYED,
            p.TASK_MOVED_ON,
            p.INVALID_DISCARD,
            p.NOT_BEGUN,
            p.REFUSED_DATA,
            *_STORE,
        ),
        (_DEAD_LETTER_ID,),
        request(
            content(
                {
                    "type": "object",
                    "properties": {"reason": _text(LONGEST_REASON)},
                    "required": ["reason"],
                    "additionalProperties": False,
                },
                {"reason": ("With a reason", {"reason": "a test"})},
            )
        ),
        scope=Scope.OPERATE,
    ),
    Operation(
        "POST",
        "/dead-letters/replay",
        "replayDeadLetters",
        "Dead letters",
        "Replay many dead letters",
        "All open ones that match the filter, at a rate. The first ten are a canary: the rest follows once their first"
        " attempts went well. The job stops by itself if too many fail. With `dryRun` they are only counted. An empty"
        " filter is refused. Two at once over the same dead letters replay each once.",
        {
            200: answer("A dry run: how many there are.", content(ref("DryRun"), {"dryRun": ("Counted", s.DRY_RUN)})),
            202: answer(
                "It has started; `Location` shows its progress.",
                content(ref("BulkReplayStarted"), {"started": ("Started", s.BULK_STARTED)}),
                _LOCATION,
            ),
        },
        (*BODY, p.INVALID_REPLAY, p.EMPTY_FILTER, p.NOT_BEGUN, p.REFUSED_DATA, *_STORE),
        (),
        request(
            content(
                s.BULK_REQUEST,
                {
                    "dryRun": ("How many would it be?", {**_FILTER, "dryRun": True}),
                    "replay": ("At 50 a second", {**_FILTER, "rate": 50}),
                },
            )
        ),
        scope=Scope.OPERATE,
    ),
    Operation(
        "POST",
        "/dead-letters/discard",
        "discardDeadLetters",
        "Dead letters",
        "Discard many dead letters",
        "All open ones that match the filter, as a job. With `dryRun` they are only counted. An empty filter is"
        " refused.",
        {
            200: answer("A dry run: how many there are.", content(ref("DryRun"), {"dryRun": ("Counted", s.DRY_RUN)})),
            202: answer(
                "It has started; `Location` shows its progress.",
                content(ref("BulkReplayStarted"), {"started": ("Started", s.DISCARD_STARTED)}),
                _LOCATION,
            ),
        },
        (*BODY, p.INVALID_REPLAY, p.EMPTY_FILTER, p.NOT_BEGUN, p.REFUSED_DATA, *_STORE),
        (),
        request(content(s.BULK_DISCARD, {"discard": ("With a reason", {**_FILTER, "reason": "test addresses"})})),
        scope=Scope.OPERATE,
    ),
    Operation(
        "GET",
        "/dead-letters/replays",
        "listReplays",
        "Dead letters",
        "List the jobs on dead letters",
        "Bulk replays and discards, newest first.",
        {200: answer("A page.", content(ref("BulkReplayPage"), {"page": ("The last page", s.BULK_PAGE)}))},
        (p.INVALID_QUERY, *_STORE),
        (_LIMIT, _CURSOR),
        scope=Scope.READ,
    ),
    Operation(
        "GET",
        "/dead-letters/replays/{replayId}",
        "getReplay",
        "Dead letters",
        "Look at a bulk replay",
        "Its progress, and the outcomes of its tasks so far.",
        {200: _bulk("The bulk replay.")},
        (p.UNKNOWN_REPLAY, *_STORE),
        (_REPLAY_ID,),
        scope=Scope.READ,
    ),
    Operation(
        "DELETE",
        "/dead-letters/replays/{replayId}",
        "stopReplay",
        "Dead letters",
        "Stop a bulk replay",
        "Nothing more is replayed once this is answered. One that has ended is not changed.",
        {200: _bulk("The bulk replay in its new state.")},
        (p.UNKNOWN_REPLAY, *_STORE),
        (_REPLAY_ID,),
        scope=Scope.OPERATE,
    ),
)

# Delivery reports, probes -------------------------------------------------------------------------------------------

REPORTS: Final = Operation(
    "POST",
    "/webhooks/msg91/{secret}",
    "msg91Reports",
    "Webhooks",
    "MSG91's delivery reports",
    "In both of MSG91's forms. The same report may arrive any number of times. The path contains a secret: with a"
    " wrong one, the answer is 404.",
    {
        200: answer(
            "Accepted.",
            content(s.obj({"reports": s.COUNT, "matched": s.COUNT}), {"one": ("One", {"reports": 1, "matched": 1})}),
        )
    },
    (*BODY, p.NOT_FOUND, p.REFUSED_DATA, *_STORE),
    (parameter("secret", "path", s.TEXT, "As in TASKFLUX_MSG91__WEBHOOK_SECRET."),),
    request(content({}, {"delivered": ("Version 3", s.REPORT)})),
)

START: Final = Operation(
    "GET",
    "/",
    "start",
    "Start",
    "What is this?",
    "A page for a browser (`Accept: text/html`); for every other client, its links as JSON.",
    {
        200: answer(
            "Its name, what it does, and where its description is.",
            content(
                s.obj({"name": s.TEXT, "about": s.TEXT, "links": {"type": "object", "additionalProperties": s.TEXT}}),
                {
                    "ingest": (
                        "The API",
                        {
                            "name": "TaskFlux",
                            "about": ABOUT,
                            "links": {"docs": "/docs", "openapi": "/openapi.json", "problems": "/problems"},
                        },
                    )
                },
            )
            | content(_PLAIN, media_type="text/html"),
            {"Vary": (_PLAIN, "`Accept`.")},
        )
    },
)

PROBES: Final[Sequence[Operation]] = (
    Operation(
        "GET",
        "/livez",
        "livez",
        "Probes",
        "Is it alive?",
        "The loop's own heartbeat; it asks neither Kafka nor PostgreSQL.",
        {200: answer("It is.", content(_PLAIN, media_type="text/plain"))},
    ),
    Operation(
        "GET",
        "/readyz",
        "readyz",
        "Probes",
        "Has it started?",
        "True once started, even if a server becomes unreachable later; the body says why Kafka cannot be reached.",
        {200: answer("It has.", content(_PLAIN, media_type="text/plain"))},
        (p.NOT_STARTED,),
    ),
    Operation(
        "GET",
        "/metrics",
        "metrics",
        "Probes",
        "Metrics",
        "For Prometheus, in the format that it asks for; OpenMetrics has exemplars. On a port of its own, it needs no"
        " key.",
        {
            200: answer(
                "Prometheus's text format, or OpenMetrics.",
                content(_PLAIN, media_type="text/plain") | content(_PLAIN, media_type="application/openmetrics-text"),
            ),
            404: answer("`TASKFLUX_METRICS__ENABLED` is false.", content(_PLAIN, media_type="text/plain")),
        },
        scope=Scope.READ,
    ),
)

API: Final[Sequence[Operation]] = (*TASKS, *DEAD_LETTERS, REPORTS, START, *PROBES)
"""What ingest serves."""


def needs(operations: Sequence[Operation]) -> dict[str, Scope | None]:
    """The scope that each operation needs, by its id; None: it is public."""
    return {operation.id: operation.scope for operation in operations}


_DESCRIPTION: Final = """\
Work outside the request: a task is accepted over HTTP, stored in PostgreSQL, passed through Kafka to a small handler, \
retried, and kept as a dead letter if it fails for good.

Calls need a key (`Authorization: Bearer` or `X-Api-Key`) with the scope that they name; `taskflux keys create` makes \
one. A key sees the tasks of its own tenant alone: what belongs to another one is answered like an unknown id.

Every error is a problem document (RFC 9457) whose `type` leads to a page that says what it means and what to do. \
Times are RFC 3339 in UTC, ids are UUIDv7, cursors are opaque."""


def api_document(types: Mapping[str, str]) -> Json:
    """The document of ingest; `types` is task type → JSON schema of its payload, as text."""
    schemas = {**s.task_schemas(types), **s.dead_letter_schemas()}
    return build("TaskFlux", _DESCRIPTION, API, schemas)


@lru_cache(maxsize=2)
def api_json(types: tuple[tuple[str, str], ...]) -> bytes:
    """The document of ingest on the wire, for (task type, JSON schema) pairs; put together when they change."""
    return to_json(api_document(dict(types)))
