"""The description as a whole: `/openapi.json`, `/docs` and `/problems/…`.

The pages load nothing from another host: their policy forbids it.
"""

from __future__ import annotations

import base64
import hashlib
import html
import json
import re
from collections.abc import Callable, Mapping, Sequence
from functools import cache, lru_cache
from importlib.resources import files
from typing import Final

from starlette.requests import Request
from starlette.responses import HTMLResponse, Response
from starlette.routing import Route

from taskflux.http.bodies import json_answer, to_json
from taskflux.http.openapi.operation import Operation, example, refused
from taskflux.http.openapi.operations import API
from taskflux.http.openapi.schemas import (
    Json,
    dead_letter_schemas,
    problem_schema,
    task_schemas,
)
from taskflux.http.problems import KINDS, NOT_FOUND, Kind, Problem, explanation
from taskflux.version import VERSION

_DESCRIPTION: Final = """\
Work outside the request: a task is taken over HTTP, kept in PostgreSQL, handed through Kafka to a small handler, \
tried again sensibly, and kept as a dead letter when it cannot be done.

Every error is a problem document (RFC 9457) whose `type` leads to a page that says what it means and what to do. \
Times are RFC 3339 in UTC, ids are UUIDv7, cursors are opaque."""


def api_document(types: Mapping[str, str]) -> Json:
    """The document of ingest; `types` is task type → JSON schema of its payload, as text."""
    schemas = {**task_schemas(types), **dead_letter_schemas()}
    return build("TaskFlux", _DESCRIPTION, API, schemas)


@lru_cache(maxsize=2)
def api_json(types: tuple[tuple[str, str], ...]) -> bytes:
    """The document of ingest on the wire, for (task type, JSON schema) pairs; put together when they change."""
    return to_json(api_document(dict(types)))


def build(title: str, description: str, operations: Sequence[Operation], schemas: Mapping[str, Json]) -> Json:
    """An OpenAPI 3.1 document of these operations."""
    paths: dict[str, Json] = {}
    tags: dict[str, None] = {}
    for operation in operations:
        paths.setdefault(operation.path, {})[operation.method.lower()] = operation.document()
        tags[operation.tag] = None
    return {
        "openapi": "3.1.0",
        "info": {
            "title": title,
            "version": VERSION,
            "description": description,
            "license": {"name": "MIT", "identifier": "MIT"},
        },
        "servers": [{"url": "/"}],
        "tags": [{"name": tag} for tag in tags],
        "paths": paths,
        "components": {"schemas": {**schemas, "Problem": problem_schema()}, **refused(operations)},
    }


_INLINE: Final = re.compile(r"<(style|script)>(.*?)</\1>", re.DOTALL)


def documentation_routes(document: Callable[[], bytes]) -> list[Route]:
    """The routes of the pages; `document` is asked at every request, for types are registered while we run."""

    async def openapi(request: Request) -> Response:
        return Response(document(), media_type="application/json")

    async def docs(request: Request) -> Response:
        return page(_template("docs.html"))

    async def problems(request: Request) -> Response:
        rows = "".join(
            f'<li><a href="/problems/{kind.slug}">{html.escape(kind.title)}</a> <b>{kind.status}</b></li>'
            for kind in sorted(KINDS.values(), key=lambda kind: (kind.status, kind.slug))
        )
        return page(_filled("Problems", f"<p>Every error of the API, by its <code>type</code>.</p><ul>{rows}</ul>"))

    async def problem(request: Request) -> Response:
        kind = KINDS.get(request.path_params["slug"])
        if kind is None:
            raise Problem(NOT_FOUND, "there is no problem of this type")
        if "application/json" in request.headers.get("accept", ""):
            told = explanation(kind)
            about = {"type": kind.type, "title": kind.title, "status": kind.status, "means": told.means, "do": told.do}
            return json_answer(about)
        return page(_filled(kind.title, _explained(kind)))

    return [
        Route("/openapi.json", openapi),
        Route("/docs", docs),
        Route("/problems", problems),
        Route("/problems/{slug}", problem),
    ]


def _explained(kind: Kind) -> str:
    told = explanation(kind)
    sample = html.escape(_indented(example(kind)))
    return (
        f"<p class=status>{kind.status} <code>{kind.type}</code></p>"
        f"<h2>What it means</h2><p>{_text(told.means)}</p>"
        f"<h2>What to do</h2><p>{_text(told.do)}</p>"
        f"<h2>For example</h2><pre>{sample}</pre>"
    )


def _indented(document: Json) -> str:
    return json.dumps(document, indent=2, ensure_ascii=False)


def _text(text: str) -> str:
    """Plain text with `code` in it, as HTML."""
    return re.sub(r"`([^`]+)`", r"<code>\1</code>", html.escape(text))


def _filled(title: str, body: str) -> str:
    return _template("problem.html").replace("{{title}}", html.escape(title)).replace("{{body}}", body)


@cache
def _template(name: str) -> str:
    return files("taskflux.http.openapi").joinpath(name).read_text(encoding="utf-8")


def page(text: str) -> Response:
    """A page of ours, which may do no more than it needs to."""
    return HTMLResponse(text, headers={"Content-Security-Policy": policy(text), "X-Content-Type-Options": "nosniff"})


def policy(text: str) -> str:
    """What a page may do: run and apply what stands in it, and ask this host."""
    allowed: dict[str, list[str]] = {"style": [], "script": []}
    for kind, inline in _INLINE.findall(text):
        digest = base64.b64encode(hashlib.sha256(inline.encode("utf-8")).digest()).decode("ascii")
        allowed[kind].append(f"'sha256-{digest}'")
    style, script = (" ".join(allowed[kind]) or "'none'" for kind in ("style", "script"))
    return (
        f"default-src 'none'; style-src {style}; script-src {script}; connect-src 'self'; img-src data:;"
        " base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
