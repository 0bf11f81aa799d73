"""`/dead-letters/replay`: many dead letters by a filter, carried on by the relay's leader at a rate."""

from __future__ import annotations

import logging
from typing import Any
from uuid import UUID

from starlette.requests import Request
from starlette.responses import Response
from uuid_utils.compat import uuid7

from taskflux.http.dead_letter_bodies import identifier, json_answer, json_object
from taskflux.http.dead_letter_desk import DeadLetterDesk
from taskflux.http.dead_letter_queries import read_bulk
from taskflux.http.dead_letter_views import bulk_document, groups_document
from taskflux.http.problems import UNKNOWN_REPLAY, Problem
from taskflux.http.services import Services
from taskflux.store.dead_letter_browsing import MOST_GROUPS, OPEN
from taskflux.tasks.submission import DEFAULT_TENANT

log = logging.getLogger(__name__)


class BulkReplayRoutes:
    """Start, look at and stop bulk replays."""

    def __init__(self, services: Services, desk: DeadLetterDesk) -> None:
        self._services = services
        self._desk = desk

    async def start(self, request: Request) -> Response:
        """Ask for a bulk replay of the open letters that a filter finds; a dry run only says how many there are.

        Two at once over the same letters send each letter once.
        """
        asked = read_bulk(await json_object(request, self._services.limits.max_body_bytes))
        if asked.dry_run:
            groups = await self._desk.shelf.groups(DEFAULT_TENANT, asked.wanted, OPEN)
            # Of one look, so that the two figures agree while further letters come.
            matched = sum(group["letters"] for group in groups)
            if len(groups) >= MOST_GROUPS:
                matched = await self._desk.shelf.count(DEFAULT_TENANT, asked.wanted, OPEN)
            return json_answer({"matched": matched, "groups": groups_document(groups)})
        row = await self._desk.replays.start_bulk(DEFAULT_TENANT, uuid7(), asked.wanted, asked.rate)
        log.info("a bulk replay begins", extra={"replay": str(row["id"]), "matched": row["matched"]})
        told = {"replayId": str(row["id"]), "matched": row["matched"], "status": row["status"]}
        return json_answer(told, 202, {"Location": f"/dead-letters/replays/{row['id']}"})

    async def show(self, request: Request) -> Response:
        """How far it is, and what has become of its tasks."""
        return await self._shown(self._id(request))

    async def stop(self, request: Request) -> Response:
        """Stop it: no further letter is sent once this is answered. One that has ended stays as it is."""
        replay = self._id(request)
        if await self._desk.replays.stop_bulk(DEFAULT_TENANT, replay):
            log.info("a bulk replay was stopped", extra={"replay": str(replay)})
        return await self._shown(replay)

    async def _shown(self, replay: UUID) -> Response:
        row = await self._desk.replays.get_bulk(DEFAULT_TENANT, replay)
        if row is None:
            raise _unknown(str(replay))
        return json_answer(bulk_document(row, await self._desk.replays.outcomes(replay)))

    def _id(self, request: Request) -> UUID:
        text: Any = request.path_params["replay_id"]
        replay = identifier(text)
        if replay is None:
            raise _unknown(text[:100])
        return replay


def _unknown(text: str) -> Problem:
    return Problem(UNKNOWN_REPLAY, f"no bulk replay has the id {text!r}")
