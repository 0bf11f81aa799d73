"""Payloads are held against their schemas, and a bad field is named."""

from __future__ import annotations

import json
import logging
from typing import Any

import pytest

from taskflux.http.payloads import PayloadSchema
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


def test_a_payload_that_is_wrong_in_very_many_places_is_refused_without_describing_each() -> None:
    """The library makes every error before it gives the first: 99,000 took four seconds and 200 MiB."""
    wrong = {"to": list(range(99_000)), "subject": "x"}
    [error] = EMAIL.errors(wrong)
    assert (error.field, "99,003 values" in error.message) == ("payload", True)
    commas = {"to": 5, "subject": "x", "headers": {"list": "a, b" * 5000}}
    assert errors(commas).keys() == {"payload.to"}


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
