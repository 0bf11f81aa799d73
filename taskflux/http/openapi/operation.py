"""One call of the API as it is described, and the parts that such a description is put together from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from taskflux.http import problems as p
from taskflux.http.openapi.schemas import Json, ref

Examples = Mapping[str, tuple[str, object]]
"""Name → (summary, value)."""

CONNECTION: Final = (
    p.BAD_REQUEST,
    p.REQUEST_TIMEOUT,
    p.TARGET_TOO_LONG,
    p.HEAD_TOO_LARGE,
    p.TOO_MANY_CONNECTIONS,
)
"""What any call may be answered before it is known which one it is (`taskflux.http.connections`)."""
BODY: Final = (p.MALFORMED_JSON, p.TOO_LARGE, p.UNSUPPORTED_MEDIA_TYPE, p.BUSY)
"""What any call with a body may be answered."""
REPLAYED: Final[dict[str, tuple[Json, str]]] = {
    "Idempotent-Replay": ({"const": "true"}, "The key came with this request before: nothing was done twice.")
}
"""The header of an answer that was given before."""


@dataclass(frozen=True, slots=True)
class Operation:
    """One call. `answers` are those where all went well: status → response object.

    `problems` are those of this call; it shares `CONNECTION` with all others.
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

    def document(self) -> Json:
        """The operation object."""
        by_status: dict[int, list[p.Kind]] = {}
        for kind in dict.fromkeys((*self.problems, *CONNECTION)):
            by_status.setdefault(kind.status, []).append(kind)
        refused = {status: problem(status, alike) for status, alike in sorted(by_status.items())}
        told: Json = {
            "operationId": self.id,
            "tags": [self.tag],
            "summary": self.summary,
            "description": self.description,
            "responses": {str(status): answer for status, answer in {**self.answers, **refused}.items()},
        }
        if self.parameters:
            told["parameters"] = list(self.parameters)
        if self.body is not None:
            told["requestBody"] = self.body
        return told


def example(kind: p.Kind) -> Json:
    """A problem of this kind, as it may look."""
    told = p.explanation(kind)
    document: Json = {"type": kind.type, "title": kind.title, "status": kind.status, "detail": told.detail}
    if told.errors:
        document["errors"] = [{"field": name, "message": message} for name, message in told.errors.items()]
    return document


def problem(status: int, kinds: Sequence[p.Kind]) -> Json:
    """The answer of a status, with every kind of problem that shares it."""
    schema = {
        "allOf": [ref("Problem")],
        "properties": {"type": {"enum": [kind.type for kind in kinds]}, "status": {"const": status}},
    }
    examples = {kind.slug: (kind.title, example(kind)) for kind in kinds}
    headers = {"Retry-After": ({"type": "string"}, "Seconds after which to try again.")} if status == 503 else {}
    described = "; ".join(kind.title for kind in kinds)
    return answer(described, content(schema, examples, p.PROBLEM), headers)


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
