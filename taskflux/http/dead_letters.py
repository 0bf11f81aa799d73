"""`/dead-letters`: look at what could not be done, send it again, one by one or many by a filter, or discard it.

Bytes that nobody vouches for are shown so that they can do no harm.
"""

from __future__ import annotations

import base64
import binascii
import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from starlette.requests import Request
from starlette.responses import Response
from uuid_utils.compat import uuid7

from taskflux.http.bodies import beside_loop, held_by, json_answer, json_object, parse_json, path_id
from taskflux.http.problems import (
    ALREADY_DISCARDED,
    ALREADY_REPLAYED,
    INVALID_DISCARD,
    INVALID_REPLAY,
    TASK_MOVED_ON,
    UNKNOWN_DEAD_LETTER,
    UNKNOWN_REPLAY,
    FieldError,
    Problem,
    not_valid,
    unknown_fields,
)
from taskflux.http.queries import letter_cursor, read_bulk, read_letter_query
from taskflux.http.requests import Client, client_of
from taskflux.http.submissions import Submissions
from taskflux.http.tasks import LONGEST_REASON, hold_stored, parse_timeline, stored_json
from taskflux.store.dead_letters import MOST_GROUPS, OPEN, DeadLetters
from taskflux.stream.envelope import Envelope, Poison, Record, decode
from taskflux.stream.topics import type_of_topic
from taskflux.tasks.bounds import LARGE
from taskflux.tasks.fields import rfc3339
from taskflux.tasks.model import DEFAULT_TENANT, Submission
from taskflux.tasks.states import State
from taskflux.telemetry import metrics
from taskflux.telemetry.tracing import link_request, trace_id

log = logging.getLogger(__name__)


_DISCARDED: Final = "discarded"


@dataclass(frozen=True, slots=True)
class DeadLetterRoutes:
    """What can be asked of one dead letter, and of all.

    Args:
        topic_prefix: what stands before the topics' names; the topic of a broken record tells its type.
    """

    letters: DeadLetters
    submissions: Submissions
    topic_prefix: str = ""

    async def page(self, request: Request) -> Response:
        """A page of letters, newest first."""
        asked = read_letter_query(request.query_params.multi_items())
        rows = await self.letters.page(DEFAULT_TENANT, asked.wanted, asked.state, asked.after, asked.limit + 1)
        shown = rows[: asked.limit]
        following = letter_cursor(shown[-1], asked) if len(rows) > asked.limit else None
        return json_answer({"items": [letter_item(row) for row in shown], "nextCursor": following})

    async def groups(self, request: Request) -> Response:
        """How many letters there are by type and error class."""
        asked = read_letter_query(request.query_params.multi_items(), paged=False)
        groups = await self.letters.groups(DEFAULT_TENANT, asked.wanted, asked.state)
        return json_answer({"groups": groups_document(groups)})

    async def show(self, request: Request) -> Response:
        """One letter with everything about it."""
        row = await self._get(request)
        _hold(row, request)
        return await _shown(row)

    async def replay(self, request: Request) -> Response:
        """Send one letter again, as it was or repaired. It is sent once: asked again, the answer is a 409 that names
        the task it became.
        """
        client = client_of(request.scope)
        document, size = await self._body(request)
        repair = read_repair(document)
        letter = await self._get(request)
        if letter["state"] != OPEN:
            raise _not_open(letter)
        _hold(letter, request)
        link_request(letter["traceparent"])
        if letter["task_state"] is not None:
            payload = await edited_payload(letter, repair, self.submissions, client, size)
            client.begin()
            replayed = await self.letters.replay(DEFAULT_TENANT, letter["id"], payload)
        else:
            repaired = await new_task(letter, repair, self.submissions, client, size, self.topic_prefix)
            client.begin()
            replayed = await self.letters.replay_as(DEFAULT_TENANT, letter["id"], repaired, edited=repair.edited)
        if replayed is None:
            raise _not_open(await self._get(request))
        how = "single" if letter["task_state"] is not None else "mended"
        metrics.REPLAYED.labels(metrics.error_class(replayed.error_class), how).inc()
        log.info("a dead letter was sent again", extra={"letter": str(replayed.letter), "how": how})
        told = {
            "deadLetterId": str(replayed.letter),
            "taskId": str(replayed.task_id),
            "status": State.SCHEDULED.value,
        }
        return json_answer(told, 202, {"Location": f"/tasks/{replayed.task_id}"})

    async def discard(self, request: Request) -> Response:
        """Say that a letter needs no replay, and why. Asked again, the first reason stays."""
        document, _ = await self._body(request)
        reason = _reason(document)
        letter = await self._get(request)
        _hold(letter, request)
        client_of(request.scope).begin()
        if await self.letters.discard(DEFAULT_TENANT, letter["id"], reason):
            log.info("a dead letter was discarded", extra={"letter": str(letter["id"])})
        letter = await self._get(request)
        if letter["state"] != _DISCARDED:
            raise _not_open(letter)
        return await _shown(letter)

    async def start_bulk(self, request: Request) -> Response:
        """Ask for a bulk replay of the open letters that a filter finds; a dry run only says how many there are.

        Two at once over the same letters send each letter once. The relay's leader carries it on, at a rate.
        """
        document, _ = await self._body(request)
        wanted, rate, dry_run = read_bulk(document)
        if dry_run:
            groups = await self.letters.groups(DEFAULT_TENANT, wanted, OPEN)
            # Of one look, so that the two figures agree while further letters come.
            matched = sum(group["letters"] for group in groups)
            if len(groups) >= MOST_GROUPS:
                matched = await self.letters.count(DEFAULT_TENANT, wanted, OPEN)
            return json_answer({"matched": matched, "groups": groups_document(groups)})
        client_of(request.scope).begin()
        row = await self.letters.start_bulk(DEFAULT_TENANT, uuid7(), wanted, rate)
        log.info("a bulk replay begins", extra={"replay": str(row["id"]), "matched": row["matched"]})
        told = {"replayId": str(row["id"]), "matched": row["matched"], "status": row["status"]}
        return json_answer(told, 202, {"Location": f"/dead-letters/replays/{row['id']}"})

    async def show_bulk(self, request: Request) -> Response:
        """How far a bulk replay is, and what has become of its tasks."""
        row = await self.letters.get_bulk(DEFAULT_TENANT, path_id(request, "replay_id", _unknown_replay))
        if row is None:
            raise _unknown_replay(request.path_params["replay_id"])
        return json_answer(bulk_document(row, await self.letters.bulk_outcomes(row["id"])))

    async def stop_bulk(self, request: Request) -> Response:
        """Stop a bulk replay: no further letter is sent once this is answered. One that has ended stays as it is."""
        replay = path_id(request, "replay_id", _unknown_replay)
        if await self.letters.stop_bulk(DEFAULT_TENANT, replay):
            log.info("a bulk replay was stopped", extra={"replay": str(replay)})
        return await self.show_bulk(request)

    async def _body(self, request: Request) -> tuple[dict[str, Any], int]:
        return await json_object(request, self.submissions.limits.max_body_bytes)

    async def _get(self, request: Request) -> Mapping[str, Any]:
        letter = path_id(request, "letter_id", _unknown_letter)
        row: Mapping[str, Any] | None = await self.letters.get(DEFAULT_TENANT, letter)
        if row is None:
            raise _unknown_letter(request.path_params["letter_id"])
        return row


async def _shown(row: Mapping[str, Any]) -> Response:
    if len(row["payload"] or "") + len(row["record_value"] or b"") < LARGE:
        return json_answer(letter_document(row))
    return await beside_loop(lambda: json_answer(letter_document(row)))


def _hold(row: Mapping[str, Any], request: Request) -> None:
    """Make room for an answer with everything about a letter: its record's bytes are written as text.

    Raises:
        Problem: 503, too much is in flight.
    """
    hold_stored(row, held_by(request.scope))
    held_by(request.scope).take(4 * len(row["record_value"] or b""))


def _unknown_letter(text: str) -> Problem:
    return Problem(UNKNOWN_DEAD_LETTER, f"no dead letter has the id {text[:100]!r}")


def _unknown_replay(text: str) -> Problem:
    return Problem(UNKNOWN_REPLAY, f"no bulk replay has the id {text[:100]!r}")


def _reason(document: Mapping[str, Any]) -> str:
    reason = document.get("reason")
    wrong = not isinstance(reason, str) or not 1 <= len(reason.strip()) <= LONGEST_REASON or _unstorable(reason)
    errors = unknown_fields(document, ["reason"]) + (
        [FieldError("reason", f"must be a text of 1 to {LONGEST_REASON} characters")] if wrong else []
    )
    if errors:
        raise Problem(INVALID_DISCARD, "say why this dead letter needs no replay: it is kept with it", errors)
    return str(reason).strip()


def _unstorable(text: str) -> bool:
    """PostgreSQL's text takes neither NUL nor lone surrogates."""
    return "\0" in text or any("\ud800" <= character <= "\udfff" for character in text)


def _not_open(letter: Mapping[str, Any]) -> Problem:
    """Why nothing is done with a letter that is not open, or whose task has moved on."""
    document = letter_item(letter)
    if letter["state"] == _DISCARDED:
        detail = f"it was discarded at {document['discarded']['at']}; nothing was sent"
        return Problem(ALREADY_DISCARDED, detail, extra={"discarded": document["discarded"]})
    if letter["state"] != OPEN:
        first = document["replays"][0] if document["replays"] else {"at": None, "taskId": document["taskId"]}
        detail = f"it was sent again at {first['at']} as task {first['taskId']}; nothing was sent now"
        return Problem(ALREADY_REPLAYED, detail, extra={"taskId": first["taskId"], "replays": document["replays"]})
    state = letter["task_state"] or "gone"
    detail = f"its task is {state} now, or died again since, with a dead letter of its own; nothing was sent"
    return Problem(TASK_MOVED_ON, detail, extra={"taskId": document["taskId"], "taskStatus": letter["task_state"]})


_UNDER_WAY: Final = frozenset({State.SCHEDULED, State.QUEUED, State.RUNNING})
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_SPACES: Final = dict.fromkeys(map(ord, "\t\n\r\u00a0\u1680\u202f\u205f\u3000"))
"""White space that Python does not call printable."""


def letter_item(row: Mapping[str, Any]) -> dict[str, Any]:
    """A letter in a list (columns of the query `page_of_dead_letters`)."""
    return {
        "deadLetterId": str(row["id"]),
        "taskId": None if row["task_id"] is None else str(row["task_id"]),
        "taskType": row["type"],
        "errorClass": row["error_class"],
        "reason": row["reason"],
        "attempts": row["attempts"],
        "origin": _origin(row["origin"]),
        "createdAt": rfc3339(row["created_at"]),
        "state": row["state"],
        "replays": [_replay(*entry) for entry in row["replays"] or ()],
        "discarded": _discarded(row),
    }


def letter_document(row: Mapping[str, Any]) -> dict[str, Any]:
    """A letter with everything about it (columns of the query `get_dead_letter`)."""
    trace = trace_id(row["traceparent"]) or None
    return letter_item(row) | {
        "payload": stored_json(row["payload"]),
        "traceId": trace,
        "timeline": parse_timeline(row["timeline"] or (), trace),
        "record": None if row["task_id"] else _record(row),
    }


def groups_document(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Groups of letters (columns of the query `groups_of_dead_letters`)."""
    return [
        {
            "taskType": row["type"],
            "errorClass": row["error_class"],
            "count": row["letters"],
            "oldest": rfc3339(row["oldest"]),
            "newest": rfc3339(row["newest"]),
        }
        for row in rows
    ]


def bulk_document(row: Mapping[str, Any], outcomes: Mapping[str, int]) -> dict[str, Any]:
    """A bulk replay (columns of the query `get_bulk_replay`) and what has become of its tasks so far."""
    return {
        "replayId": str(row["id"]),
        "status": row["status"],
        "filter": json.loads(row["filter"]),
        "rate": row["rate"],
        "matched": row["matched"],
        "replayed": row["replayed"],
        "skipped": row["skipped"],
        "outcomes": dict(sorted(outcomes.items())),
        "createdAt": rfc3339(row["created_at"]),
        "updatedAt": rfc3339(row["updated_at"]),
    }


def shown_bytes(raw: bytes | None) -> dict[str, str] | None:
    """Text where it is text that a person can read, else base64."""
    if raw is None:
        return None
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError:
        text = "\0"
    # Control and direction characters make a terminal or a page show something else than is there.
    if text.translate(_SPACES).isprintable():
        return {"encoding": "utf-8", "data": text}
    return {"encoding": "base64", "data": base64.b64encode(raw).decode("ascii")}


def _origin(text: str) -> dict[str, Any]:
    origin = json.loads(text)
    return {
        "topic": origin.get("topic"),
        "partition": origin.get("partition"),
        "offset": origin.get("offset"),
        "timestamp": _moment(origin.get("timestamp")),
    }


def _moment(milliseconds: object) -> str | None:
    """When a producer says that it wrote the record; none where that is no time."""
    if not isinstance(milliseconds, int) or milliseconds < 0:
        return None
    try:
        return rfc3339(_EPOCH + timedelta(milliseconds=milliseconds))
    except OverflowError:
        return None


def _replay(at: str, task: str, outcome: str, bulk: str | None) -> dict[str, Any]:
    told = {"at": at, "taskId": task, "outcome": None if outcome in _UNDER_WAY else outcome}
    return told if bulk is None else told | {"by": bulk}


def _discarded(row: Mapping[str, Any]) -> dict[str, str] | None:
    if row["discarded_at"] is None:
        return None
    return {"at": rfc3339(row["discarded_at"]), "reason": row["discard_reason"]}


def _record(row: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "key": shown_bytes(row["record_key"]),
        "value": shown_bytes(row["record_value"]),
        "headers": [
            {"name": name, "value": shown_bytes(_decoded(value))}
            for name, value in json.loads(row["record_headers"] or "[]")
        ],
    }


def _decoded(text: str | None) -> bytes | None:
    try:
        return None if text is None else base64.b64decode(text)
    except binascii.Error:
        return text.encode("utf-8", "replace") if text else None


FIELDS: Final = ("payload", "taskType", "value")


@dataclass(frozen=True, slots=True)
class Repair:
    """What a person gives in place of what the letter holds.

    Args:
        payload: a list of one payload, or of none: JSON's null is a payload too.
        task_type: of a record's payload.
        value: a record's whole value, as text.
    """

    payload: tuple[Any, ...] = ()
    task_type: str | None = None
    value: str | None = None

    @property
    def edited(self) -> bool:
        """Whether anything else is sent than what died."""
        return bool(self.payload) or self.value is not None


def read_repair(document: Mapping[str, Any]) -> Repair:
    """The repair that a body asks for; an empty object asks for none.

    Raises:
        Problem: 422, naming each field that cannot be taken.
    """
    errors = unknown_fields(document, FIELDS)
    task_type, value = document.get("taskType"), document.get("value")
    if task_type is not None and not isinstance(task_type, str):
        errors.append(FieldError("taskType", "must be a text"))
    if value is not None and not isinstance(value, str):
        errors.append(FieldError("value", "must be a text, the record's value as UTF-8"))
    if value is not None and ("payload" in document or task_type is not None):
        errors.append(FieldError("value", "is the whole record: give it, or payload and taskType"))
    if errors:
        raise not_valid(INVALID_REPLAY, errors)
    return Repair((document["payload"],) if "payload" in document else (), task_type, value)


async def edited_payload(
    letter: Mapping[str, Any], repair: Repair, submissions: Submissions, client: Client, size: int
) -> str | None:
    """The JSON text that replaces the payload of a dead letter's task; None keeps it. `size` is the repair's, in bytes.

    Raises:
        Problem: 422, it is not what the type takes, or the fields are those of a broken record; 503, the type is not
            known here, and the store cannot be asked.
    """
    wrong = [name for name, given in (("taskType", repair.task_type), ("value", repair.value)) if given is not None]
    if wrong:
        said = "mends a record that was no task; this one was"
        raise not_valid(INVALID_REPLAY, [FieldError(name, said) for name in wrong])
    if not repair.payload:
        return None
    document = {"taskType": letter["type"], "payload": repair.payload[0]}
    return (await submissions.read(document, client, size=size)).payload


async def new_task(
    letter: Mapping[str, Any], repair: Repair, submissions: Submissions, client: Client, size: int, prefix: str
) -> Submission:
    """The task that a letter without one becomes: a repaired record, or a task that was pruned.

    The dead letter's own trace continues; without one, the request's does. `size` is the repair's, in bytes.

    Raises:
        Problem: 422, something is still missing or wrong; 503, the type is not known here, and the store cannot be
            asked.
    """
    size, trace = size + len(letter["payload"] or ""), letter["traceparent"]
    given = letter, repair, prefix
    document = _document(*given) if size < LARGE else await beside_loop(_document, *given)
    return await submissions.read(document, client, size=size, traceparent=trace)


def _document(letter: Mapping[str, Any], repair: Repair, prefix: str) -> dict[str, Any]:
    if repair.value is not None:
        return _of_value(repair.value, json.loads(letter["origin"]))
    task_type = repair.task_type or letter["type"] or _type_of_origin(letter, prefix)
    if task_type is None:
        raise not_valid(INVALID_REPLAY, [FieldError("taskType", "is required: the record's topic does not tell it")])
    if repair.payload:
        return {"taskType": task_type, "payload": repair.payload[0]}
    if letter["payload"] is None:
        raise not_valid(INVALID_REPLAY, [FieldError("payload", "is required: what is there is no task; or give value")])
    return {"taskType": task_type, "payload": parse_json(letter["payload"].encode("utf-8"))}


def _type_of_origin(letter: Mapping[str, Any], prefix: str) -> str | None:
    return type_of_topic(prefix, str(json.loads(letter["origin"]).get("topic")))


def _of_value(value: str, origin: Mapping[str, Any]) -> dict[str, Any]:
    """The task that a record of this value asks for, read as whoever takes records reads it."""
    raw = value.encode("utf-8")
    found = decode(Record(str(origin.get("topic")), 0, 0, 0, None, raw), max_bytes=len(raw) + 1)
    match found:
        case Poison():
            raise not_valid(INVALID_REPLAY, [FieldError("value", f"is still no task: {found.reason}")])
        case Envelope():
            raise not_valid(
                INVALID_REPLAY, [FieldError("value", "names a task and brings no payload: a task needs one")]
            )
        case _:
            return {"taskType": found.task_type, "payload": json.loads(found.payload), **found.fields}
