"""What is wrong with a payload is said by field, briefly, and without its values."""

from __future__ import annotations

import json
import logging
from typing import Any

import pytest

from taskflux.http.registry import PayloadSchema
from tests.unit.http.stores import EMAIL_SCHEMA

EMAIL = PayloadSchema("email", json.dumps(EMAIL_SCHEMA))


def errors(payload: Any, schema: PayloadSchema = EMAIL) -> dict[str, str]:
    return {error.field: error.message for error in schema.errors(payload)}


def test_a_valid_payload_has_no_errors() -> None:
    assert errors({"to": ["a", "b"], "subject": "x", "attachments": [{"name": "y"}]}) == {}


def test_fields_are_named_by_their_path() -> None:
    found = errors({"to": "x", "subject": "x", "attachments": [{"name": "y"}, {"name": 5}, {}], "prio": 1})
    assert found == {
        "payload.attachments[1].name": 'the value is not of type "string"',
        "payload.attachments[2].name": "is required",
        "payload.prio": "is not a known field",
    }


def test_alternatives_are_all_named() -> None:
    assert errors({"to": 5, "subject": "x"}) == {
        "payload.to": 'the value is not of type "string", or the value is not of type "array"'
    }


def test_a_payload_of_the_wrong_kind_is_named_as_a_whole() -> None:
    assert errors("text") == {"payload": 'the value is not of type "object"'}


def test_values_are_never_quoted_and_names_are_cut() -> None:
    secret = "ada@example.org" * 300_000
    found = EMAIL.errors({"to": "x", "subject": secret, "headers": {secret: 5}, secret: 1})
    assert len(found) == 3
    assert max(len(error.message) for error in found) <= 300
    assert max(len(error.field) for error in found) <= 200
    assert [error.message for error in found if error.field == "payload.subject"] == [
        "the value is longer than 100 characters"
    ]


def test_at_most_twenty_errors_are_told() -> None:
    assert len(EMAIL.errors({f"x{n}": n for n in range(1000)})) == 20


@pytest.mark.parametrize("payload", ["\ud800", {"\ud800": 1}, ["\ud800"]])
def test_a_lone_surrogate_is_text_like_any_other(payload: Any) -> None:
    assert PayloadSchema("any", "{}").errors(payload) == []
    assert PayloadSchema("number", '{"type": "number"}').errors(payload) != []


def test_what_is_nested_too_deeply_to_describe_is_named() -> None:
    deep: Any = {}
    for _ in range(900):
        deep = {"x": deep}
    assert errors(deep) == {"payload": "is nested too deeply"}


@pytest.mark.parametrize("schema", ["{", '{"type": "nope"}', '{"pattern": "("}', '{"$ref": "http://127.0.0.1:9/x"}'])
def test_a_schema_that_is_none_stops_no_task_and_fetches_nothing(schema: str, caplog: pytest.LogCaptureFixture) -> None:
    broken = PayloadSchema("broken", schema)
    with caplog.at_level(logging.WARNING):
        assert broken.errors(1) == broken.errors(2) == []
    assert caplog.text.count("cannot be compiled") == 1


def test_a_schema_as_pydantic_writes_it_is_understood() -> None:
    from pydantic import BaseModel, Field, TypeAdapter

    class Attachment(BaseModel):
        name: str
        data: str | None = None

    class Mail(BaseModel):
        to: str | list[str]
        attachments: list[Attachment] = Field(default_factory=list, max_length=2)

    schema = PayloadSchema("mail", json.dumps(TypeAdapter(Mail).json_schema(by_alias=True)))
    assert schema.errors({"to": "x", "attachments": [{"name": "y", "data": None}]}) == []
    assert errors({"attachments": [{"data": 5}]}, schema).keys() == {
        "payload.to",
        "payload.attachments[0].name",
        "payload.attachments[0].data",
    }
