"""What a handler's model refuses in a single value is refused at ingest, and nothing else."""

from __future__ import annotations

import json
import re
from datetime import date, datetime, timedelta
from decimal import Decimal
from fractions import Fraction
from typing import Annotated, Any
from zoneinfo import ZoneInfo

import pytest
from pydantic import (
    AliasChoices,
    Base64UrlBytes,
    BaseModel,
    ByteSize,
    ConfigDict,
    Field,
    Json,
    StrictInt,
    StringConstraints,
    TypeAdapter,
    ValidationError,
)

from taskflux.http.keywords import FORMATS, format_sentence
from taskflux.http.task_types import PayloadSchema
from taskflux.worker.schemas import schema_text


class Base64(BaseModel):
    model_config = ConfigDict(val_json_bytes="base64")
    data: bytes


class Hexadecimal(BaseModel):
    model_config = ConfigDict(val_json_bytes="hex")
    data: bytes


class WrittenAsBase64(BaseModel):
    model_config = ConfigDict(ser_json_bytes="base64")
    data: bytes


class Strict(BaseModel):
    model_config = ConfigDict(strict=True)
    at: datetime | None = None
    day: date | None = None
    count: int = 0


class Renamed(BaseModel):
    count: int = Field(validation_alias=AliasChoices("count", "number"))
    note: str = Field("", validation_alias=AliasChoices("note", "remark"))


class OnlyRenamed(Renamed):
    model_config = ConfigDict(extra="forbid")


class Branch(BaseModel):
    on: Json[Branch] | None = None


Fee = Annotated[Decimal, Field(gt=0, max_digits=4, decimal_places=2)]
Infinite = Annotated[Decimal, Field(gt=0, allow_inf_nan=True)]
Ascii = Annotated[str, StringConstraints(ascii_only=True)]


@pytest.mark.parametrize(
    ("declared", "right", "wrong", "field", "said"),
    [
        (ZoneInfo, "Europe/Berlin", "Nowhere/Town", "payload", "a time zone, such as Europe/Berlin"),
        (Fraction, "3/4", "three", "payload", "a fraction, such as 3/4"),
        (complex, "1+2j", "one", "payload", "a complex number, such as 1+2j"),
        (Base64UrlBytes, "_-8=", "1_000", "payload", "is not base64"),
        (Base64, {"data": "_-8="}, {"data": "x"}, "payload.data", "is not base64"),
        (Base64, {"data": "aGk="}, {"data": "no!!"}, "payload.data", "is not base64"),
        (Hexadecimal, {"data": "6869"}, {"data": "686"}, "payload.data", "hexadecimal digits, two per byte"),
        (WrittenAsBase64, {"data": "no!!"}, {"data": 5}, "payload.data", 'not of type "string"'),
        (Fee, 12.34, 1.234, "payload", "no more than 2 decimal places"),
        (Fee, 12, 123, "payload", "no more than 2 digits before the decimal point"),
        (Fee, "12.34", 10**400, "payload", "no more than"),
        (StrictInt, 1, 1.0, "payload", "a valid integer"),
        (Strict, {"count": 1}, {"count": 1.0}, "payload.count", "a valid integer"),
        (Strict, {"at": "2030-01-31T09:00:00Z"}, {"at": "2030-01-31"}, "payload.at", "a valid datetime"),
        (Strict, {"day": "2030-01-31"}, {"day": "2030-01-31T00:00:00Z"}, "payload.day", "a valid date"),
        (Strict, {}, {"at": "soon"}, "payload.at", "is not a time, such as 2030-01-31T09:00:00Z"),
        (Renamed, {"count": 1}, {}, "payload.count", "is required"),
        (Renamed, {"number": 1}, {"number": "x"}, "payload.number", 'not of type "integer"'),
        (Renamed, {"count": 1, "remark": "x"}, {"count": 1, "remark": 5}, "payload.remark", 'not of type "string"'),
        (OnlyRenamed, {"number": 1}, {"number": 1, "numbers": 1}, "payload.numbers", "is not a known field"),
        (Ascii, "a", "é", "payload", "may have only ASCII characters"),
        (ByteSize, "10 MB", "10 parsecs", "payload", "a size in bytes, such as 10MB"),
        (
            Json[list[int]],
            "[1]",
            '[1, "x"]',
            "payload",
            "holds invalid JSON at [1]: the value is not of type",
        ),
        (Json[list[int]], "[]", "{}", "payload", "holds invalid JSON: the value is not of type"),
        (Json[list[int]], "[]", "[", "payload", "is not a JSON text"),
        (Json[Branch], '{"on": "{}"}', '{"on": "[]"}', "payload", "holds invalid JSON at on: "),
        (Json[list[Any]], "[" * 201 + "]" * 201, "[" * 202 + "]" * 202, "payload", "is not a JSON text"),
        (Json, "1", '"\\ud83c"', "payload", "is not a JSON text"),
        (Infinite, "Infinity", "infinite", "payload", "a decimal number, such as 12.50"),
        (Infinite, "Infinity", "-Infinity", "payload", "greater than 0"),
        (re.Pattern[str], "^a{3}$", "(", "payload", "is not a regular expression"),
        (Annotated[timedelta, Field(strict=True)], "P1D", "a while", "payload", "a duration, such as P1DT2H"),
    ],
)
def test_a_value_is_refused_as_its_handler_would_refuse_it(
    declared: Any, right: Any, wrong: Any, field: str, said: str
) -> None:
    adapter: TypeAdapter[Any] = TypeAdapter(declared)
    schema = PayloadSchema("mine", schema_text(adapter))

    adapter.validate_json(json.dumps(right))
    assert schema.errors(right, json.dumps(right)) == []

    with pytest.raises(ValidationError):
        adapter.validate_json(json.dumps(wrong))
    [error] = schema.errors(wrong, json.dumps(wrong))
    assert error.field == field
    assert said in error.message


@pytest.mark.parametrize("text", ["(" * 5000, "a{99999999999999}"])
def test_a_regular_expression_beyond_what_python_compiles_is_refused(text: str) -> None:
    schema = PayloadSchema("mine", schema_text(TypeAdapter(re.Pattern[str])))
    assert [error.message for error in schema.errors(text, json.dumps(text))] == ["is not a regular expression"]


@pytest.mark.parametrize(("text", "right"), [("red", True), ("#f80", True), ("rgb(1, 2, 3)", True), ("reddish", False)])
def test_a_colour_is_one_that_style_sheets_know(text: str, right: bool) -> None:
    schema = PayloadSchema("mine", '{"type": "string", "format": "color"}')
    found = [error.message for error in schema.errors(text, json.dumps(text))]
    assert found == ([] if right else ["is not a colour, such as #ff8800 or red"])


@pytest.mark.parametrize(
    ("text", "right"),
    [
        ("ann@example.org", True),
        (" Ann Lee <ann@mail.example.org> ", True),
        ('"Lee, Ann" <ann@example.org>', True),
        ("ann@bücher.example", True),
        ("ann@xn--bcher-kva.example", True),
        ("ann@localhost", False),
        ("ann@printer.local", False),
        ("ann@example.test", False),
        ("ann@192.0.2.1", False),
        ("ann@ab--c.example", False),
        ("ann@example.org.", False),
        ("ann@my_host.example", False),
        ("ann@example.org\n", False),
        ('"ann lee"@example.org', False),
        ("Lee, Ann <ann@example.org>", False),
        ("ann..lee@example.org", False),
    ],
)
def test_an_e_mail_address_is_one_that_email_validator_accepts(text: str, right: bool) -> None:
    schema = PayloadSchema("mine", '{"type": "string", "format": "email"}')
    found = [error.message for error in schema.errors(text, json.dumps(text))]
    assert found == ([] if right else ["is not an e-mail address, such as ann@example.org"])


@pytest.mark.parametrize("name", [*FORMATS, "hostname", "iri", "uri-reference", "uri-template", "json-pointer"])
def test_every_format_has_a_sentence_with_what_is_meant(name: str) -> None:
    assert f"of the format {name}" not in format_sentence(name)
