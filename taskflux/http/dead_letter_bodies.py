"""How the dead letters' routes read what they are given, and answer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from uuid import UUID

from starlette.requests import Request
from starlette.responses import Response

from taskflux.http.answers import to_json
from taskflux.http.bodies import JSON_TYPES, headers_of, media_type, read_body
from taskflux.http.problems import BAD_REQUEST, Problem
from taskflux.http.submissions import parse_json


def identifier(text: str) -> UUID | None:
    """The id that stands in a path, if it can be one."""
    try:
        return UUID(text) if len(text) == 36 else None
    except ValueError:
        return None


async def json_object(request: Request, limit: int) -> dict[str, Any]:
    """The JSON object in the body; no body is an empty one.

    Raises:
        Problem: 400, 413 or 415.
    """
    headers = headers_of(request.scope)
    body = await read_body(headers, request.receive, limit)
    if not body:
        return {}
    media_type(headers, JSON_TYPES)
    document = parse_json(body)
    if not isinstance(document, dict):
        raise Problem(BAD_REQUEST, "the body must be a JSON object")
    return document


def json_answer(document: object, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """A JSON document as an answer."""
    return Response(to_json(document), status, headers, "application/json")
