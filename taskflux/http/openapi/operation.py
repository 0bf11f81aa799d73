"""One operation of the OpenAPI document, and the parts that it consists of."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from taskflux.http import problems as p
from taskflux.http.openapi.schemas import Json, ref

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
"""Problems of any request, before its route is known (`taskflux.http.connections`, `….hosts`)."""
BODY: Final = (p.MALFORMED_JSON, p.TOO_LARGE, p.UNSUPPORTED_MEDIA_TYPE, p.BUSY)
"""Problems of any request with a body."""
REPLAYED: Final[dict[str, tuple[Json, str]]] = {
    "Idempotent-Replay": ({"const": "true"}, "This request was made before with the same key: nothing was done twice.")
}
"""The header of a repeated answer."""


@dataclass(frozen=True, slots=True)
class Operation:
    """One operation. `answers` are the successful ones: status → response object.

    `problems` are those of this operation; all operations share `CONNECTION`.
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

    def refusals(self) -> dict[int, tuple[p.Kind, ...]]:
        """Status → the kinds of problem with it, in the order of `KINDS`, so that operations can share a response."""
        own = {*self.problems, *CONNECTION}
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
            "description": self.description,
            "responses": {str(status): response for status, response in answers.items()},
        }
        if self.parameters:
            told["parameters"] = list(self.parameters)
        if self.body is not None:
            told["requestBody"] = self.body
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
