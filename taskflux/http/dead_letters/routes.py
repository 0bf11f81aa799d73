"""`/dead-letters`: look at what could not be done, send it again, one by one or many by a filter, or discard it."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from starlette.requests import Request
from starlette.responses import Response
from uuid_utils.compat import uuid7

from taskflux.http.bodies import beside_loop, held_by, json_answer, json_object, path_id
from taskflux.http.client import client_of
from taskflux.http.dead_letters.letter import (
    bulk_document,
    edited_payload,
    groups_document,
    letter_document,
    letter_item,
    new_task,
    read_bulk,
    read_repair,
)
from taskflux.http.problems import (
    ALREADY_DISCARDED,
    ALREADY_REPLAYED,
    INVALID_DISCARD,
    TASK_MOVED_ON,
    UNKNOWN_DEAD_LETTER,
    UNKNOWN_REPLAY,
    FieldError,
    Problem,
    unknown_fields,
)
from taskflux.http.queries import letter_cursor, read_letter_query
from taskflux.http.submissions import Submissions
from taskflux.http.tasks import LONGEST_REASON, hold_stored
from taskflux.store.dead_letters import MOST_GROUPS, OPEN, DeadLetters
from taskflux.tasks.bounds import LARGE
from taskflux.tasks.model import DEFAULT_TENANT
from taskflux.tasks.states import State
from taskflux.telemetry import metrics
from taskflux.telemetry.tracing import link_request

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
