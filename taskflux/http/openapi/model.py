"""An operation as it is described, and how it becomes a part of the document."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from taskflux.http.answers import JSON, PROBLEM
from taskflux.http.problems import Kind

Json = dict[str, Any]
Examples = Mapping[str, tuple[str, object]]
"""Name → (summary, value)."""


def ref(name: str) -> Json:
    """A reference to a schema of the document."""
    return {"$ref": f"#/components/schemas/{name}"}


@dataclass(frozen=True, slots=True)
class Parameter:
    """What stands in the path, the query, or a header."""

    name: str
    place: str
    schema: Json
    description: str
    example: object = None
    more: Json = field(default_factory=dict)

    def document(self) -> Json:
        """The parameter object."""
        told: Json = {
            "name": self.name,
            "in": self.place,
            "schema": self.schema,
            "description": self.description,
            **self.more,
        }
        if self.place == "path":
            told["required"] = True
        return told | ({} if self.example is None else {"example": self.example})


@dataclass(frozen=True, slots=True)
class Body:
    """What is sent, or answered: media type → schema, with examples of the first one."""

    content: Mapping[str, Json]
    examples: Examples = field(default_factory=dict)
    required: bool = True

    def document(self) -> Json:
        """The content map of media types."""
        first = next(iter(self.content))
        return {
            media_type: {"schema": schema} | (_examples(self.examples) if media_type == first else {})
            for media_type, schema in self.content.items()
        }


def json_body(schema: Json, examples: Examples | None = None) -> Body:
    """A body of application/json."""
    return Body({JSON.decode(): schema}, examples or {})


@dataclass(frozen=True, slots=True)
class Answer:
    """What is answered where all went well."""

    status: int
    description: str
    body: Body | None = None
    headers: Mapping[str, tuple[Json, str]] = field(default_factory=dict)

    def document(self) -> Json:
        """The response object."""
        told: Json = {"description": self.description}
        if self.headers:
            told["headers"] = {
                name: {"schema": schema, "description": text} for name, (schema, text) in self.headers.items()
            }
        return told | ({} if self.body is None else {"content": self.body.document()})


@dataclass(frozen=True, slots=True)
class Operation:
    """One call: how it is made, what it answers, and which problems it knows."""

    method: str
    path: str
    id: str
    tag: str
    summary: str
    description: str
    answers: Sequence[Answer]
    problems: Sequence[Kind] = ()
    parameters: Sequence[Parameter] = ()
    body: Body | None = None

    def document(self) -> Json:
        """The operation object."""
        told: Json = {
            "operationId": self.id,
            "tags": [self.tag],
            "summary": self.summary,
            "description": self.description,
            "responses": {str(answer.status): answer.document() for answer in self.answers},
        }
        told["responses"] |= _problem_answers(self.problems)
        if self.parameters:
            told["parameters"] = [parameter.document() for parameter in self.parameters]
        if self.body is not None:
            told["requestBody"] = {"required": self.body.required, "content": self.body.document()}
        return told


RETRY_AFTER_STATUS: Final = 503


def _problem_answers(kinds: Sequence[Kind]) -> Json:
    """One answer for each status, with every kind of problem that shares it."""
    by_status: dict[int, list[Kind]] = {}
    for kind in kinds:
        by_status.setdefault(kind.status, []).append(kind)
    return {str(status): _problem_answer(status, alike) for status, alike in sorted(by_status.items())}


def _problem_answer(status: int, kinds: Sequence[Kind]) -> Json:
    schema = {
        "allOf": [ref("Problem")],
        "properties": {"type": {"enum": [kind.type for kind in kinds]}, "status": {"const": status}},
    }
    told: Json = {
        "description": "; ".join(kind.title for kind in kinds),
        "content": {PROBLEM.decode(): {"schema": schema, **_examples({k.slug: (k.title, example(k)) for k in kinds})}},
    }
    if status == RETRY_AFTER_STATUS:
        told["headers"] = {
            "Retry-After": {"schema": {"type": "string"}, "description": "Seconds after which to try again."}
        }
    return told


def example(kind: Kind) -> Json:
    """A problem of this kind, as it may look."""
    from taskflux.http.problems import explanation

    told: Json = {"type": kind.type, "title": kind.title, "status": kind.status, "detail": explanation(kind).detail}
    if errors := explanation(kind).errors:
        told["errors"] = [{"field": name, "message": message} for name, message in errors.items()]
    return told


def _examples(examples: Examples) -> Json:
    if not examples:
        return {}
    return {"examples": {name: {"summary": summary, "value": value} for name, (summary, value) in examples.items()}}
