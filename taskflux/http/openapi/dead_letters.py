"""The operations on dead letters."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from taskflux.http import problems as p
from taskflux.http.dead_letters.routes import LONGEST_REASON
from taskflux.http.openapi import examples as e
from taskflux.http.openapi.model import Answer, Body, Json, Operation, Parameter, json_body, ref
from taskflux.http.openapi.schemas import FILTERS, ID, bulk_request, mending
from taskflux.http.openapi.tasks import BODY, CURSOR, LIMIT, LOCATION, STORE
from taskflux.http.queries import ALL, STATES
from taskflux.store.dead_letters import OPEN

_ID: Final = Parameter("deadLetterId", "path", ID, "The dead letter's id.", e.DEAD_LETTER_ID)
_REPLAY_ID: Final = Parameter("replayId", "path", ID, "The bulk replay's id.", e.REPLAY_ID)
_DESCRIPTIONS: Final = {
    "taskType": "Only this task type.",
    "errorClass": "Only this class of error.",
    "createdAfter": "Only those stored at this time or later.",
    "createdBefore": "Only those stored before this time.",
    "originTopic": "Only those that came from this Kafka topic.",
}
_STATE: Final = {"type": "string", "enum": [*STATES, ALL], "default": OPEN}
_FILTERS: Final = (
    *(Parameter(name, "query", schema, _DESCRIPTIONS[name]) for name, schema in FILTERS.items()),
    Parameter("state", "query", _STATE, "What has been done about them."),
)
_FILTER: Final = {"filter": {"taskType": "email", "errorClass": "Permanent"}}


def _optional(body: Body) -> Body:
    return Body(body.content, body.examples, required=False)


def _bulk(status: int, description: str) -> Answer:
    return Answer(status, description, json_body(ref("BulkReplay"), {"replay": ("At its end", e.BULK)}))


def _whole(description: str, example: Json) -> Answer:
    return Answer(200, description, json_body(ref("DeadLetterInFull"), {"deadLetter": (description, example)}))


OPERATIONS: Final[Sequence[Operation]] = (
    Operation(
        "GET",
        "/dead-letters",
        "listDeadLetters",
        "Dead letters",
        "List dead letters",
        "What could not be done, newest first.",
        [Answer(200, "A page.", json_body(ref("DeadLetterPage"), {"page": ("The last page", e.DEAD_LETTER_PAGE)}))],
        (p.INVALID_QUERY, *STORE),
        (*_FILTERS, LIMIT, CURSOR),
    ),
    Operation(
        "GET",
        "/dead-letters/groups",
        "groupDeadLetters",
        "Dead letters",
        "Count dead letters by cause",
        "How many there are of each type and error class: where to begin.",
        [Answer(200, "The groups.", json_body(ref("DeadLetterGroups"), {"groups": ("One group", e.GROUPS)}))],
        (p.INVALID_QUERY, *STORE),
        _FILTERS,
    ),
    Operation(
        "GET",
        "/dead-letters/{deadLetterId}",
        "getDeadLetter",
        "Dead letters",
        "Look at a dead letter",
        "With its payload, its task's timeline, and of a record that was no task the bytes as they came.",
        [_whole("The dead letter.", e.DEAD_LETTER_IN_FULL)],
        (p.UNKNOWN_DEAD_LETTER, *STORE),
        (_ID,),
    ),
    Operation(
        "POST",
        "/dead-letters/{deadLetterId}/replay",
        "replayDeadLetter",
        "Dead letters",
        "Send one again",
        "As it was (no body, or `{}`), or with a mended `payload`, which its type's schema must take. A record that was"
        " no task is mended by `payload` and `taskType`, or as a whole by `value`. It is sent once: asked again, the"
        " answer is 409 and names the task it became.",
        [Answer(202, "It is sent again.", json_body(ref("Replayed"), {"replayed": ("Sent", e.REPLAYED)}), LOCATION)],
        (
            *BODY,
            p.UNKNOWN_DEAD_LETTER,
            p.ALREADY_REPLAYED,
            p.ALREADY_DISCARDED,
            p.TASK_MOVED_ON,
            p.INVALID_REPLAY,
            p.INVALID_TASK,
            p.UNKNOWN_TASK_TYPE,
            p.REFUSED_DATA,
            *STORE,
        ),
        (_ID,),
        _optional(
            json_body(
                mending(),
                {
                    "asItWas": ("As it was", {}),
                    "mended": ("With another payload", {"payload": e.EMAIL["payload"]}),
                    "record": ("A mended record", {"value": '{"taskType": "simulated", "payload": "x"}'}),
                },
            )
        ),
    ),
    Operation(
        "POST",
        "/dead-letters/{deadLetterId}/discard",
        "discardDeadLetter",
        "Dead letters",
        "Put one aside",
        "It stays to be looked at, with the reason, and is not replayed. Asked again, the first reason stays.",
        [_whole("The dead letter, discarded.", e.DISCARDED)],
        (
            *BODY,
            p.UNKNOWN_DEAD_LETTER,
            p.ALREADY_REPLAYED,
            p.TASK_MOVED_ON,
            p.INVALID_DISCARD,
            p.REFUSED_DATA,
            *STORE,
        ),
        (_ID,),
        json_body(
            {
                "type": "object",
                "properties": {"reason": {"type": "string", "minLength": 1, "maxLength": LONGEST_REASON}},
                "required": ["reason"],
                "additionalProperties": False,
            },
            {"reason": ("With a reason", {"reason": "a test"})},
        ),
    ),
    Operation(
        "POST",
        "/dead-letters/replay",
        "replayDeadLetters",
        "Dead letters",
        "Send many again",
        "All open ones that fit the filter, at a rate. With `dryRun` they are only counted. An empty filter is refused."
        " Two at once over the same dead letters send each once.",
        [
            Answer(200, "A dry run: how many there are.", json_body(ref("DryRun"), {"dryRun": ("Counted", e.DRY_RUN)})),
            Answer(
                202,
                "It has begun; `Location` tells how far it is.",
                json_body(ref("BulkReplayStarted"), {"started": ("Begun", e.BULK_STARTED)}),
                LOCATION,
            ),
        ],
        (*BODY, p.INVALID_REPLAY, p.EMPTY_FILTER, p.REFUSED_DATA, *STORE),
        (),
        json_body(
            bulk_request(),
            {
                "dryRun": ("How many would it be?", {**_FILTER, "dryRun": True}),
                "replay": ("At 50 a second", {**_FILTER, "rate": 50}),
            },
        ),
    ),
    Operation(
        "GET",
        "/dead-letters/replays/{replayId}",
        "getReplay",
        "Dead letters",
        "How far is a bulk replay?",
        "And what has become of its tasks so far.",
        [_bulk(200, "The bulk replay.")],
        (p.UNKNOWN_REPLAY, *STORE),
        (_REPLAY_ID,),
    ),
    Operation(
        "DELETE",
        "/dead-letters/replays/{replayId}",
        "stopReplay",
        "Dead letters",
        "Stop a bulk replay",
        "No further dead letter is sent once this is answered. One that has ended stays as it is.",
        [_bulk(200, "The bulk replay as it stands now.")],
        (p.UNKNOWN_REPLAY, *STORE),
        (_REPLAY_ID,),
    ),
)
