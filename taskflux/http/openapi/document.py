"""An OpenAPI document: its operations and what they consist of, the whole, and the pages `/`, `/docs`, `/problems/…`.

The pages load nothing from another host: their policy forbids it.
"""

from __future__ import annotations

import base64
import hashlib
import html
import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any, Final

from starlette.requests import Request
from starlette.responses import HTMLResponse, Response
from starlette.routing import Route

from taskflux.http import problems as p
from taskflux.http.bodies import json_answer, to_json
from taskflux.http.openapi.schemas import Json, problem_schema, ref
from taskflux.tasks.access import Scope
from taskflux.version import VERSION

Examples = Mapping[str, tuple[str, object]]
"""Name → (summary, value)."""

CONNECTION: Final = (
    p.BAD_REQUEST,
    p.UNKNOWN_HOST,
    p.REQUEST_TIMEOUT,
    p.TARGET_TOO_LONG,
    p.HEAD_TOO_LARGE,
    p.TOO_MANY_CONNECTIONS,
)
"""Problems of any request, before its route is known (`taskflux.http.connections`, `….requests`)."""
KEY: Final = (p.UNAUTHENTICATED, p.MISSING_SCOPE, p.STORE_UNAVAILABLE)
"""Problems of any request that needs a key."""
SCHEMES: Final[dict[str, Json]] = {
    "bearer": {"type": "http", "scheme": "bearer", "description": "A key of `taskflux keys`: `tf_…`."},
    "apiKey": {"type": "apiKey", "in": "header", "name": "X-Api-Key", "description": "The same, in another header."},
}
"""How a key is sent; the names behind a scheme are the scopes that the key needs."""
BODY: Final = (p.MALFORMED_JSON, p.TOO_LARGE, p.UNSUPPORTED_MEDIA_TYPE, p.BUSY)
"""Problems of any request with a body."""
REPLAYED: Final[dict[str, tuple[Json, str]]] = {
    "Idempotent-Replay": ({"const": "true"}, "This request was made before with the same key: nothing was done twice.")
}
"""The header of a repeated answer."""


@dataclass(frozen=True, slots=True)
class Operation:
    """One operation. `answers` are the successful ones: status → response object.

    `problems` are those of this operation; all operations share `CONNECTION`, and those with a scope `KEY`. `scope` is
    what its caller needs; None: it is public.
    """

    method: str
    path: str
    id: str
    tag: str
    summary: str
    description: str
    answers: Mapping[int, Json]
    problems: Sequence[p.Kind] = ()
    parameters: Sequence[Json] = ()
    body: Json | None = None
    scope: Scope | None = None

    def refusals(self) -> dict[int, tuple[p.Kind, ...]]:
        """Status → the kinds of problem with it, in the order of `KINDS`, so that operations can share a response."""
        own = {*self.problems, *CONNECTION, *(KEY if self.scope else ())}
        by_status: dict[int, tuple[p.Kind, ...]] = {}
        for kind in p.KINDS.values():
            if kind in own:
                by_status[kind.status] = (*by_status.get(kind.status, ()), kind)
        return dict(sorted(by_status.items()))

    def document(self) -> Json:
        """The operation object; its problems refer to what `refused` adds to the document."""
        answers = {
            **self.answers,
            **{status: ref(named(kinds), "responses") for status, kinds in self.refusals().items()},
        }
        told: Json = {
            "operationId": self.id,
            "tags": [self.tag],
            "summary": self.summary,
            "description": self.description + (f" Needs the scope `{self.scope}`." if self.scope else ""),
            "responses": {str(status): response for status, response in answers.items()},
        }
        if self.parameters:
            told["parameters"] = list(self.parameters)
        if self.body is not None:
            told["requestBody"] = self.body
        if self.scope is not None:
            told["security"] = [{name: [self.scope.value]} for name in SCHEMES]
        return told


def example(kind: p.Kind) -> Json:
    """An example of this kind of problem."""
    told = p.explanation(kind)
    document: Json = {"type": kind.type, "title": kind.title, "status": kind.status, "detail": told.detail}
    if told.errors:
        document["errors"] = [{"field": name, "message": message} for name, message in told.errors.items()]
    return document


def named(kinds: Sequence[p.Kind]) -> str:
    """The component name of the response with exactly these kinds of problem."""
    return ".".join(kind.slug for kind in kinds)


def refused(operations: Iterable[Operation]) -> dict[str, Json]:
    """The components that the operations' problems refer to: each response and each example once."""
    shared = {named(kinds): (status, kinds) for each in operations for status, kinds in each.refusals().items()}
    told = {kind for _, kinds in shared.values() for kind in kinds}
    return {
        "responses": {name: problem(*shared[name]) for name in sorted(shared)},
        "examples": {
            kind.slug: {"summary": kind.title, "value": example(kind)} for kind in p.KINDS.values() if kind in told
        },
    }


def problem(status: int, kinds: Sequence[p.Kind]) -> Json:
    """The response with a status, with every kind of problem that has it."""
    schema = {
        "allOf": [ref("Problem")],
        "properties": {"type": {"enum": [kind.type for kind in kinds]}, "status": {"const": status}},
    }
    again = ({"type": "string"}, "Seconds to wait before a retry.")
    examples = {kind.slug: ref(kind.slug, "examples") for kind in kinds}
    return answer(
        "; ".join(kind.title for kind in kinds),
        {p.PROBLEM: {"schema": schema, "examples": examples}},
        {"Retry-After": again} if status in (408, 503) else None,
    )


def content(schema: Json, examples: Examples | None = None, media_type: str = "application/json") -> Json:
    """A map of media types with this one."""
    shown = {name: {"summary": summary, "value": value} for name, (summary, value) in (examples or {}).items()}
    return {media_type: {"schema": schema} | ({"examples": shown} if shown else {})}


def answer(
    description: str, content: Json | None = None, headers: Mapping[str, tuple[Json, str]] | None = None
) -> Json:
    """A response object; `headers` are name → (schema, description)."""
    told: Json = {"description": description}
    if headers:
        told["headers"] = {name: {"schema": schema, "description": text} for name, (schema, text) in headers.items()}
    return told | ({} if content is None else {"content": content})


def request(content: Json, *, required: bool = True) -> Json:
    """A request body object."""
    return {"required": required, "content": content}


def parameter(name: str, place: str, schema: Json, description: str, **more: Any) -> Json:
    """A parameter object; `place` is path, query or header."""
    always = {"required": True} if place == "path" else {}
    return {"name": name, "in": place, "schema": schema, "description": description, **always, **more}


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
        "components": {
            "schemas": {**schemas, "Problem": problem_schema()},
            **refused(operations),
            "securitySchemes": SCHEMES,
        },
    }


_LINKS: Final = {
    "inbox": ("Inbox", "mail and SMS that your tasks sent"),
    "docs": ("API reference", "every call, with examples"),
    "openapi": ("OpenAPI document", "the same as data"),
    "problems": ("Errors", "what each means, and what to do"),
}
"""Name of a link on the start page → its text, and what is there."""


def start_route(title: str, about: str, inbox: str | None = None) -> Route:
    """`/`: what this is, and where to go from here. A browser gets a page, every other client JSON.

    `inbox` is the address of the local inbox, which only `taskflux dev` has.
    """
    links = {"docs": "/docs", "openapi": "/openapi.json", "problems": "/problems"}
    if inbox is not None:
        links = {"inbox": inbox, **links}

    async def start(request: Request) -> Response:
        vary = {"Vary": "Accept"}
        if "text/html" not in request.headers.get("accept", ""):
            return json_answer({"name": title, "about": about, "links": links}, headers=vary)
        rows = "".join(
            f'<li><a href="{html.escape(links[name])}">{text}</a> <b>{what}</b></li>'
            for name, (text, what) in _LINKS.items()
            if name in links
        )
        example = "" if inbox is None else _first_task(f"{request.base_url}tasks")
        return page(_filled(title, f"<p>{_text(about)}</p><ul class=start>{rows}</ul>{example}"), vary)

    return Route("/", start, name="start")


def _first_task(url: str) -> str:
    """How to submit a mail that the local inbox shows."""
    mail = {"to": "ann@example.org", "subject": "Welcome", "body": "Hello Ann"}
    task = to_json({"taskType": "email", "payload": mail}).decode()
    command = f"curl {url} -H 'Content-Type: application/json' -d '{task}'"
    return f"<h2>Submit a task</h2><pre>{html.escape(command, quote=False)}</pre>"


_INLINE: Final = re.compile(r"<(style|script)>(.*?)</\1>", re.DOTALL)


def documentation_routes(document: Callable[[Request], bytes]) -> list[Route]:
    """The routes of the pages; `document` is asked at every request, for types are registered while we run."""

    async def openapi(request: Request) -> Response:
        return Response(document(request), media_type="application/json")

    async def docs(request: Request) -> Response:
        return page(_template("docs.html"))

    async def problems(request: Request) -> Response:
        rows = "".join(
            f'<li><a href="/problems/{kind.slug}">{html.escape(kind.title)}</a> <b>{kind.status}</b></li>'
            for kind in sorted(p.KINDS.values(), key=lambda kind: (kind.status, kind.slug))
        )
        return page(_filled("Problems", f"<p>Every error of the API, by its <code>type</code>.</p><ul>{rows}</ul>"))

    async def problem(request: Request) -> Response:
        kind = p.KINDS.get(request.path_params["slug"])
        if kind is None:
            raise p.Problem(p.NOT_FOUND, "there is no problem of this type")
        if "application/json" in request.headers.get("accept", ""):
            told = p.explanation(kind)
            about = {"type": kind.type, "title": kind.title, "status": kind.status, "means": told.means, "do": told.do}
            return json_answer(about)
        return page(_filled(kind.title, _explained(kind)))

    return [
        Route("/openapi.json", openapi),
        Route("/docs", docs),
        Route("/problems", problems),
        Route("/problems/{slug}", problem),
    ]


def _explained(kind: p.Kind) -> str:
    told = p.explanation(kind)
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


def page(text: str, headers: Mapping[str, str] | None = None) -> Response:
    """A page with a policy that allows only what it needs."""
    secure = {"Content-Security-Policy": policy(text), "X-Content-Type-Options": "nosniff"}
    return HTMLResponse(text, headers={**secure, **(headers or {})})


def policy(text: str) -> str:
    """A policy that allows a page its own scripts and styles, and requests to this host."""
    allowed: dict[str, list[str]] = {"style": [], "script": []}
    for kind, inline in _INLINE.findall(text):
        digest = base64.b64encode(hashlib.sha256(inline.encode("utf-8")).digest()).decode("ascii")
        allowed[kind].append(f"'sha256-{digest}'")
    style, script = (" ".join(allowed[kind]) or "'none'" for kind in ("style", "script"))
    return (
        f"default-src 'none'; style-src {style}; script-src {script}; connect-src 'self'; img-src data:;"
        " base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
