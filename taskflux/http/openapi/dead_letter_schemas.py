"""Dead letters as JSON schemas."""

from __future__ import annotations

from typing import Final

from taskflux.http.dead_letter_queries import LEAST_RATE, LONGEST_TEXT, MOST_RATE, STATES
from taskflux.http.openapi.model import Json, ref
from taskflux.http.openapi.schemas import COUNT, ID, MOMENT, TEXT, nullable, obj, optional, page

FILTER_TEXT: Final[Json] = {"type": "string", "minLength": 1, "maxLength": LONGEST_TEXT}
FILTERS: Final[dict[str, Json]] = {
    "taskType": FILTER_TEXT,
    "errorClass": FILTER_TEXT,
    "createdAfter": MOMENT,
    "createdBefore": MOMENT,
    "originTopic": FILTER_TEXT,
}

_BYTES: Final[Json] = obj({"encoding": {"enum": ["utf-8", "base64"]}, "data": TEXT})


def dead_letter_schemas() -> dict[str, Json]:
    """All that is said of dead letters."""
    some = [{"required": [name], "properties": {name: {"type": "string"}}} for name in FILTERS]
    header = obj({"name": TEXT, "value": nullable(_BYTES)})
    record = obj(
        {"key": nullable(_BYTES), "value": nullable(_BYTES), "headers": {"type": "array", "items": header}},
        description="A record that was no task, as it came: text where it is text, else base64.",
    )
    moved = {"payload": {}, "traceId": optional(TEXT), "timeline": {"type": "array", "items": ref("TimelineEntry")}}
    group = {"taskType": optional(TEXT), "errorClass": TEXT, "count": COUNT, "oldest": MOMENT, "newest": MOMENT}
    job = {"replayId": ID, "matched": COUNT, "status": {"enum": ["running", "finished", "stopped"]}}
    return {
        "DeadLetter": obj(_letter()),
        "DeadLetterPage": page("DeadLetter"),
        "DeadLetterInFull": obj({**_letter(), **moved, "record": nullable(record)}),
        "DeadLetterGroups": obj({"groups": {"type": "array", "items": obj(group)}}),
        "DeadLetterFilter": {
            "type": "object",
            "properties": {name: optional(schema) for name, schema in FILTERS.items()},
            "additionalProperties": False,
            "anyOf": some,
            "description": "Which dead letters: all conditions hold. At least one is given.",
        },
        "Replayed": obj({"deadLetterId": ID, "taskId": ID, "status": {"const": "scheduled"}}),
        "DryRun": obj({"matched": COUNT, "groups": {"type": "array", "items": obj(group)}}),
        "BulkReplayStarted": obj(job),
        "BulkReplay": obj(
            {
                **job,
                "filter": {"type": "object"},
                "rate": {"type": "number"},
                "replayed": COUNT,
                "skipped": COUNT | {"description": "Somebody else replayed or discarded them meanwhile."},
                "outcomes": {"type": "object", "additionalProperties": COUNT},
                "createdAt": MOMENT,
                "updatedAt": MOMENT,
            }
        ),
    }


def mending() -> Json:
    """What may be sent instead of what a dead letter holds."""
    return {
        "type": ["object"],
        "properties": {
            "payload": {"description": "Another payload; it must be what the type's handler declares."},
            "taskType": optional(TEXT) | {"description": "The type of a record that named none."},
            "value": optional(TEXT) | {"description": "A poison record's whole value, mended; alone."},
        },
        "additionalProperties": False,
    }


def bulk_request() -> Json:
    """A bulk replay as it is asked for."""
    return {
        "type": "object",
        "properties": {
            "filter": ref("DeadLetterFilter"),
            "dryRun": optional({"type": "boolean"}) | {"description": "Only count.", "default": False},
            "rate": optional({"type": "number", "minimum": LEAST_RATE, "maximum": MOST_RATE})
            | {"description": "Dead letters a second."},
        },
        "required": ["filter"],
        "additionalProperties": False,
    }


def _letter() -> dict[str, Json]:
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
        "reason": TEXT,
        "attempts": COUNT,
        "origin": obj(origin, description="Where its record stood in Kafka."),
        "createdAt": MOMENT,
        "state": {"enum": list(STATES)},
        "replays": {"type": "array", "items": replay},
        "discarded": nullable(obj({"at": MOMENT, "reason": TEXT})),
    }
