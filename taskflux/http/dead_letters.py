"""`/dead-letters`: read failed tasks and poison messages, replay them one by one or by a filter, or discard them.

Bytes of unknown origin are shown in a form that can do no harm.
"""

from __future__ import annotations

import base64
import binascii
import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from starlette.requests import Request
from starlette.responses import Response
from uuid_utils.compat import uuid7

from taskflux.http.access import only_types, principal_of
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
from taskflux.http.queries import (
    USUAL_RATE,
    Bulk,
    dead_letter_cursor,
    read_bulk,
    read_dead_letter_query,
    read_job_query,
    task_cursor,
)
from taskflux.http.requests import Client, client_of
from taskflux.http.submissions import Submissions
from taskflux.http.tasks import LONGEST_REASON, hold_stored, parse_timeline, stored_json
from taskflux.store.dead_letters import OPEN, TREND_HOURS, Change, DeadLetterFilter, DeadLetters, Group, Groups, Image
from taskflux.stream.envelope import Envelope, Poison, Record, decode
from taskflux.stream.topics import type_of_topic
from taskflux.tasks.access import Principal, Scope
from taskflux.tasks.bounds import LARGE
from taskflux.tasks.causes import cause_of
from taskflux.tasks.fields import rfc3339
from taskflux.tasks.model import Submission
from taskflux.tasks.states import State
from taskflux.telemetry import metrics
from taskflux.telemetry.tracing import link_request, trace_id

log = logging.getLogger(__name__)


_DISCARDED: Final = "discarded"


@dataclass(frozen=True, slots=True)
class DeadLetterRoutes:
    """The endpoints of dead letters.

    Args:
        topic_prefix: the prefix of all topics' names; the topic of a poison message shows its type.
    """

    dead_letters: DeadLetters
    submissions: Submissions
    topic_prefix: str = ""

    async def page(self, request: Request) -> Response:
        """A page of dead letters, newest first."""
        asked = read_dead_letter_query(request.query_params.multi_items())
        principal = principal_of(request.scope)
        only_types(principal, asked.wanted.type)
        rows = await self.dead_letters.page(principal.tenant, asked.wanted, asked.state, asked.after, asked.limit + 1)
        shown = rows[: asked.limit]
        following = dead_letter_cursor(shown[-1], asked) if len(rows) > asked.limit else None
        return json_answer({"items": [dead_letter_item(row) for row in shown], "nextCursor": following})

    async def groups(self, request: Request) -> Response:
        """Dead letters by type and cause."""
        asked = read_dead_letter_query(request.query_params.multi_items(), paged=False)
        principal = principal_of(request.scope)
        only_types(principal, asked.wanted.type)
        groups = await self.dead_letters.groups(principal.tenant, asked.wanted, asked.state)
        return json_answer(groups_document(groups, samples=principal.may(Scope.PAYLOAD)))

    async def show(self, request: Request) -> Response:
        """One dead letter in full."""
        row = await self._get(request)
        _hold(row, request)
        return await _shown(row, request)

    async def replay(self, request: Request) -> Response:
        """Replay one dead letter, as it was or repaired.

        It is replayed once: a second request is answered 409, with the task that it became.
        """
        client, principal = client_of(request.scope), principal_of(request.scope)
        document, size = await self._body(request)
        repair = read_repair(document)
        row = await self._get(request)
        if row["state"] != OPEN:
            raise _not_open(row)
        _hold(row, request)
        link_request(row["traceparent"])
        if row["task_state"] is not None:
            payload = await edited_payload(row, repair, self.submissions, client, principal, size)
            client.begin()
            replayed = await self.dead_letters.replay(principal.tenant, row["id"], payload)
        else:
            repaired = await new_task(row, repair, self.submissions, client, principal, size, self.topic_prefix)
            client.begin()
            replayed = await self.dead_letters.replay_as(principal.tenant, row["id"], repaired, edited=repair.edited)
        if replayed is None:
            raise _not_open(await self._get(request))
        how = "single" if row["task_state"] is not None else "mended"
        metrics.REPLAYED.labels(metrics.error_class(replayed.error_class), how).inc()
        log.info("a dead letter was replayed", extra={"letter": str(replayed.letter), "how": how})
        answer = {
            "deadLetterId": str(replayed.letter),
            "taskId": str(replayed.task_id),
            "status": State.SCHEDULED.value,
        }
        return json_answer(answer, 202, {"Location": f"/tasks/{replayed.task_id}"})

    async def discard(self, request: Request) -> Response:
        """Mark a dead letter as not to be replayed, and why. A second request does not change the reason."""
        document, _ = await self._body(request)
        reason = _reason(document)
        row = await self._get(request)
        _hold(row, request)
        client_of(request.scope).begin()
        if await self.dead_letters.discard(principal_of(request.scope).tenant, row["id"], reason):
            log.info("a dead letter was discarded", extra={"letter": str(row["id"])})
        row = await self._get(request)
        if row["state"] != _DISCARDED:
            raise _not_open(row)
        return await _shown(row, request)

    async def start_bulk(self, request: Request) -> Response:
        """Start a bulk replay of the open dead letters that a filter finds; a dry run only counts them.

        Two at once over the same dead letters replay each of them once. The relay's leader runs it, at a rate.
        """
        document, _ = await self._body(request)
        return await self._start(request, read_bulk(document))

    async def start_discard(self, request: Request) -> Response:
        """Start to discard the open dead letters that a filter finds; a dry run only counts them."""
        document, _ = await self._body(request)
        return await self._start(request, read_bulk(document, discards=True))

    async def _start(self, request: Request, bulk: Bulk) -> Response:
        principal = principal_of(request.scope)
        only_types(principal, bulk.wanted.type)
        if bulk.dry_run:
            # Both figures are from one query, so that they agree while more dead letters arrive.
            groups = await self.dead_letters.groups(principal.tenant, bulk.wanted, OPEN)
            document = groups_document(groups, samples=principal.may(Scope.PAYLOAD))
            return json_answer({"matched": groups.letters, **document})
        rate = bulk.rate or await self._usual_rate(principal.tenant, bulk.wanted)
        client_of(request.scope).begin()
        row = await self.dead_letters.start_bulk(principal.tenant, uuid7(), bulk.wanted, rate, bulk.plan)
        about = {"replay": str(row["id"]), "action": row["action"], "matched": row["matched"]}
        log.info("a bulk %s begins", row["action"], extra=about)
        answer = {"replayId": str(row["id"]), "action": row["action"], "matched": row["matched"]}
        answer["status"] = _status(row["status"])
        return json_answer(answer, 202, {"Location": f"/dead-letters/replays/{row['id']}"})

    async def _usual_rate(self, tenant: str, wanted: DeadLetterFilter) -> float:
        """What the type has done lately, where it has done more than a few; else `USUAL_RATE`."""
        task_type = wanted.type
        if task_type is None:
            newest = await self.dead_letters.page(tenant, wanted, OPEN, None, 1)
            task_type = newest[0]["type"] if newest else None
        rate = await self.dead_letters.recent_throughput(task_type) if task_type else 0.0
        return min(max(rate, USUAL_RATE / 5), USUAL_RATE * 10) if rate >= 1 else USUAL_RATE

    async def list_bulk(self, request: Request) -> Response:
        """The jobs on dead letters, newest first."""
        asked = read_job_query(request.query_params.multi_items())
        principal = principal_of(request.scope)
        rows = await self.dead_letters.list_bulk(principal.tenant, asked.after, asked.limit + 1)
        shown = rows[: asked.limit]
        following = task_cursor(shown[-1]["id"], asked) if len(rows) > asked.limit else None
        return json_answer(
            {"items": [bulk_item(row) for row in shown if principal.sees(_type_of(row))], "nextCursor": following}
        )

    async def show_bulk(self, request: Request) -> Response:
        """The progress of a job, and the outcomes of the tasks that it replayed."""
        row = await self._bulk(request)
        outcomes = await self.dead_letters.bulk_outcomes(row["id"])
        new_causes = await self.dead_letters.new_causes(row["id"]) if outcomes.get("dead") else {}
        return json_answer(bulk_document(row, outcomes, new_causes))

    async def stop_bulk(self, request: Request) -> Response:
        """Stop a bulk replay: nothing more is replayed once this is answered. One that has ended is not changed."""
        row = await self._bulk(request)
        if await self.dead_letters.stop_bulk(principal_of(request.scope).tenant, row["id"]):
            log.info("a bulk replay was stopped", extra={"replay": str(row["id"])})
        return await self.show_bulk(request)

    async def _body(self, request: Request) -> tuple[dict[str, Any], int]:
        return await json_object(request, self.submissions.limits.max_body_bytes)

    async def _bulk(self, request: Request) -> Mapping[str, Any]:
        name, principal = path_id(request, "replay_id", _unknown_replay), principal_of(request.scope)
        row: Mapping[str, Any] | None = await self.dead_letters.get_bulk(principal.tenant, name)
        if row is None or not principal.sees(_type_of(row)):
            raise _unknown_replay(request.path_params["replay_id"])
        return row

    async def _get(self, request: Request) -> Mapping[str, Any]:
        name, principal = path_id(request, "letter_id", _unknown_dead_letter), principal_of(request.scope)
        row: Mapping[str, Any] | None = await self.dead_letters.get(principal.tenant, name)
        if row is None or not principal.sees(row["type"]):
            raise _unknown_dead_letter(request.path_params["letter_id"])
        return row


async def _shown(row: Mapping[str, Any], request: Request) -> Response:
    whole = principal_of(request.scope).may(Scope.PAYLOAD)
    if len(row["payload"] or "") + len(row["record_value"] or b"") < LARGE:
        return json_answer(dead_letter_document(row, whole=whole))
    return await beside_loop(lambda: json_answer(dead_letter_document(row, whole=whole)))


def _hold(row: Mapping[str, Any], request: Request) -> None:
    """Hold the bytes of a response with a whole dead letter: its record's bytes are written as text.

    Raises:
        Problem: 503, too much is in flight.
    """
    hold_stored(row, held_by(request.scope))
    held_by(request.scope).take(4 * len(row["record_value"] or b""))


def _unknown_dead_letter(text: str) -> Problem:
    return Problem(UNKNOWN_DEAD_LETTER, f"no dead letter has the id {text[:100]!r}")


def _type_of(row: Mapping[str, Any]) -> str | None:
    """The task type that a bulk replay is for; None: all."""
    task_type: str | None = json.loads(row["filter"]).get("taskType")
    return task_type


def _unknown_replay(text: str) -> Problem:
    return Problem(UNKNOWN_REPLAY, f"no bulk replay has the id {text[:100]!r}")


def _reason(document: Mapping[str, Any]) -> str:
    reason = document.get("reason")
    wrong = not isinstance(reason, str) or not 1 <= len(reason.strip()) <= LONGEST_REASON or _unstorable(reason)
    errors = unknown_fields(document, ["reason"]) + (
        [FieldError("reason", f"must be a text of 1 to {LONGEST_REASON} characters")] if wrong else []
    )
    if errors:
        raise Problem(INVALID_DISCARD, "say why this dead letter needs no replay: the reason is stored with it", errors)
    return str(reason).strip()


def _unstorable(text: str) -> bool:
    """Whether PostgreSQL cannot store a text: it has no NUL and no lone surrogates."""
    return "\0" in text or any("\ud800" <= character <= "\udfff" for character in text)


def _not_open(row: Mapping[str, Any]) -> Problem:
    """The problem of a dead letter that is not open, or whose task has moved on."""
    document = dead_letter_item(row)
    if row["state"] == _DISCARDED:
        detail = f"it was discarded at {document['discarded']['at']}; nothing was sent"
        return Problem(ALREADY_DISCARDED, detail, extra={"discarded": document["discarded"]})
    if row["state"] != OPEN:
        first = document["replays"][0] if document["replays"] else {"at": None, "taskId": document["taskId"]}
        detail = f"it was replayed at {first['at']} as task {first['taskId']}; nothing was sent now"
        return Problem(ALREADY_REPLAYED, detail, extra={"taskId": first["taskId"], "replays": document["replays"]})
    state = row["task_state"] or "deleted"
    detail = f"its task is {state} now, or died again since, with a new dead letter; nothing was sent"
    return Problem(TASK_MOVED_ON, detail, extra={"taskId": document["taskId"], "taskStatus": row["task_state"]})


_UNDER_WAY: Final = frozenset({State.SCHEDULED, State.QUEUED, State.RUNNING})
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_SPACES: Final = dict.fromkeys(map(ord, "\t\n\r\u00a0\u1680\u202f\u205f\u3000"))
"""White space that Python does not call printable."""


def dead_letter_item(row: Mapping[str, Any]) -> dict[str, Any]:
    """A dead letter in a list (columns of the query `page_of_dead_letters`)."""
    return {
        "deadLetterId": str(row["id"]),
        "taskId": None if row["task_id"] is None else str(row["task_id"]),
        "taskType": row["type"],
        "errorClass": row["error_class"],
        "cause": row["cause"],
        "reason": row["reason"],
        "attempts": row["attempts"],
        "origin": _origin(row["origin"]),
        "createdAt": rfc3339(row["created_at"]),
        "state": row["state"],
        "replays": [_replay(*entry) for entry in row["replays"] or ()],
        "discarded": _discarded(row),
    }


def dead_letter_document(row: Mapping[str, Any], *, whole: bool = True) -> dict[str, Any]:
    """A dead letter in full (columns of the query `get_dead_letter`); its payload or record only if it is `whole`."""
    trace = trace_id(row["traceparent"]) or None
    document = dead_letter_item(row) | {
        "payload": stored_json(row["payload"]) if whole else None,
        "traceId": trace,
        "timeline": parse_timeline(row["timeline"] or (), trace),
        "record": _record(row) if whole and not row["task_id"] else None,
    }
    return document if whole else document | {"payloadHidden": True}


def groups_document(found: Groups, *, samples: bool = True) -> dict[str, Any]:
    """Groups of dead letters; a sample may quote a payload."""
    others = {"groups": found.other_groups, "count": found.other_letters}
    return {"groups": [_group(group, samples=samples) for group in found.groups], "others": others}


def _group(group: Group, *, samples: bool) -> dict[str, Any]:
    sample = (
        None if group.sample is None or not samples else {"deadLetterId": str(group.sample), "reason": group.reason}
    )
    return {
        "taskType": group.type,
        "errorClass": group.error_class,
        "cause": group.cause,
        "message": None if group.reason is None else cause_of(group.error_class, group.reason).message,
        "count": group.letters,
        "oldest": _when(group.oldest),
        "newest": _when(group.newest),
        "firstSeen": _when(group.first_seen),
        "lastSeen": _when(group.last_seen),
        "trend": {"hours": TREND_HOURS, "counts": list(group.trend)},
        "sample": sample,
        "handler": None if group.change is None else _change(group.change),
    }


def _when(moment: datetime | None) -> str | None:
    return None if moment is None else rfc3339(moment)


def _change(change: Change) -> dict[str, Any]:
    return {
        "image": _image(change.then),
        "before": None if change.before is None else _image(change.before),
        "latest": _image(change.latest),
    }


def _image(image: Image) -> dict[str, str]:
    return {"name": image.name, "since": rfc3339(image.since)}


def bulk_document(row: Mapping[str, Any], outcomes: Mapping[str, int], new_causes: Mapping[str, int]) -> dict[str, Any]:
    """A job (columns of the query `get_bulk_replay`), and the outcomes of its tasks so far."""
    causes = [{"cause": cause, "count": count} for cause, count in new_causes.items()]
    return bulk_item(row) | {"outcomes": dict(sorted(outcomes.items())), "newCauses": causes}


def bulk_item(row: Mapping[str, Any]) -> dict[str, Any]:
    """A job as lists show it."""
    replays = row["action"] == "replay"
    return {
        "replayId": str(row["id"]),
        "action": row["action"],
        "status": _status(row["status"]),
        "actor": row["who"],
        "reason": row["reason"],
        "filter": json.loads(row["filter"]),
        "rate": row["rate"],
        "canary": row["canary"],
        "maxFailureRate": row["most_failures"],
        "matched": row["matched"],
        "replayed": row["replayed"] if replays else 0,
        "discarded": 0 if replays else row["replayed"],
        "skipped": row["skipped"],
        "stoppedBecause": row["stopped_because"],
        "createdAt": rfc3339(row["created_at"]),
        "updatedAt": rfc3339(row["updated_at"]),
    }


def _status(stored: str) -> str:
    return "running" if stored == "discarding" else stored


def shown_bytes(raw: bytes | None) -> dict[str, str] | None:
    """As text if it is readable, else as base64."""
    if raw is None:
        return None
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError:
        text = "\0"
    # Control and direction characters make a terminal or a page display something else.
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
    """When the producer says that it wrote the record; None if that is not a time."""
    if not isinstance(milliseconds, int) or milliseconds < 0:
        return None
    try:
        return rfc3339(_EPOCH + timedelta(milliseconds=milliseconds))
    except OverflowError:
        return None


def _replay(at: str, task: str, outcome: str, bulk: str | None) -> dict[str, Any]:
    replay = {"at": at, "taskId": task, "outcome": None if outcome in _UNDER_WAY else outcome}
    return replay if bulk is None else replay | {"by": bulk}


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
    """What replaces the contents of a dead letter.

    Args:
        payload: a tuple of one payload, or an empty one: JSON's null is a payload, too.
        task_type: the type of a poison message's payload.
        value: a poison message's whole value, as text.
    """

    payload: tuple[Any, ...] = ()
    task_type: str | None = None
    value: str | None = None

    @property
    def edited(self) -> bool:
        """Whether something else is sent than what failed."""
        return bool(self.payload) or self.value is not None


def read_repair(document: Mapping[str, Any]) -> Repair:
    """The repair that a body asks for; an empty object asks for none.

    Raises:
        Problem: 422, naming each invalid field.
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
    row: Mapping[str, Any], repair: Repair, submissions: Submissions, client: Client, principal: Principal, size: int
) -> str | None:
    """The JSON text that replaces the payload of a dead letter's task; None keeps it. `size` is the repair's, in bytes.

    Raises:
        Problem: 422, it does not match the type, or the fields are those of a poison message; 503, the type is not
            known here, and the store is unavailable.
    """
    wrong = [name for name, given in (("taskType", repair.task_type), ("value", repair.value)) if given is not None]
    if wrong:
        said = "repairs a record that is not a task; this one is a task"
        raise not_valid(INVALID_REPLAY, [FieldError(name, said) for name in wrong])
    if not repair.payload:
        return None
    document = {"taskType": row["type"], "payload": repair.payload[0]}
    return (await submissions.read(document, client, principal=principal, size=size)).payload


async def new_task(
    row: Mapping[str, Any],
    repair: Repair,
    submissions: Submissions,
    client: Client,
    principal: Principal,
    size: int,
    prefix: str,
) -> Submission:
    """The task that a dead letter without one becomes: a repaired poison message, or a task that was deleted.

    The dead letter's own trace continues; without one, the request's does. `size` is the repair's, in bytes.

    Raises:
        Problem: 422, something is still missing or wrong; 503, the type is not known here, and the store is
            unavailable.
    """
    size, trace = size + len(row["payload"] or ""), row["traceparent"]
    given = row, repair, prefix
    document = _document(*given) if size < LARGE else await beside_loop(_document, *given)
    return await submissions.read(document, client, principal=principal, size=size, traceparent=trace)


def _document(row: Mapping[str, Any], repair: Repair, prefix: str) -> dict[str, Any]:
    if repair.value is not None:
        return _of_value(repair.value, json.loads(row["origin"]))
    task_type = repair.task_type or row["type"] or _type_of_origin(row, prefix)
    if task_type is None:
        raise not_valid(INVALID_REPLAY, [FieldError("taskType", "is required: the record's topic does not show it")])
    if repair.payload:
        return {"taskType": task_type, "payload": repair.payload[0]}
    if row["payload"] is None:
        raise not_valid(INVALID_REPLAY, [FieldError("payload", "is required: the record is not a task; or give value")])
    return {"taskType": task_type, "payload": parse_json(row["payload"].encode("utf-8"))}


def _type_of_origin(row: Mapping[str, Any], prefix: str) -> str | None:
    return type_of_topic(prefix, str(json.loads(row["origin"]).get("topic")))


def _of_value(value: str, origin: Mapping[str, Any]) -> dict[str, Any]:
    """The task in a record with this value, decoded as a worker decodes it."""
    raw = value.encode("utf-8")
    found = decode(Record(str(origin.get("topic")), 0, 0, 0, None, raw), max_bytes=len(raw) + 1)
    match found:
        case Poison():
            raise not_valid(INVALID_REPLAY, [FieldError("value", f"is still not a task: {found.reason}")])
        case Envelope():
            raise not_valid(
                INVALID_REPLAY, [FieldError("value", "refers to a task and has no payload, which is required")]
            )
        case _:
            return {"taskType": found.task_type, "payload": json.loads(found.payload), **found.fields}
