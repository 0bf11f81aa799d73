"""Payloads are held against their schemas, and a bad field is named."""

from __future__ import annotations

import json
import logging
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from ipaddress import IPv4Address
from typing import Annotated, Any, Literal
from uuid import UUID

import jsonschema_rs
import pytest
from pydantic import (
    UUID4,
    AnyUrl,
    AwareDatetime,
    Base64Bytes,
    BaseModel,
    ConfigDict,
    Discriminator,
    Field,
    FutureDatetime,
    HttpUrl,
    Json,
    NaiveDatetime,
    StringConstraints,
    Tag,
    TypeAdapter,
    ValidationError,
)
from pydantic.alias_generators import to_camel

from taskflux.http.problems import FieldError
from taskflux.http.task_types import PayloadSchema, built_in
from taskflux.worker.schemas import schema_text
from tests.unit.http.stores import EMAIL_SCHEMA

EMAIL = PayloadSchema("email", json.dumps(EMAIL_SCHEMA))


def told(schema: PayloadSchema, payload: Any) -> list[FieldError]:
    return schema.errors(payload, json.dumps(payload))


def errors(payload: Any, schema: PayloadSchema = EMAIL) -> dict[str, str]:
    return {error.field: error.message for error in told(schema, payload)}


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
    found = told(EMAIL, {"to": "x", "subject": secret, "headers": {secret: 5}, secret: 1})
    assert len(found) == 3
    assert max(len(error.message) for error in found) <= 300
    assert max(len(error.field) for error in found) <= 200
    assert [error.message for error in found if error.field == "payload.subject"] == [
        "the value is longer than 100 characters"
    ]


def test_at_most_twenty_errors_are_reported() -> None:
    assert len(told(EMAIL, {f"x{n}": n for n in range(1000)})) == 20


def test_a_payload_that_is_wrong_in_very_many_places_is_refused_without_describing_each() -> None:
    """The library makes every error before it gives the first: 99,000 took four seconds and 200 MiB."""
    wrong = {"to": list(range(99_000)), "subject": "x"}
    [error] = told(EMAIL, wrong)
    assert (error.field, "99,003 values" in error.message) == ("payload", True)
    commas = {"to": 5, "subject": "x", "headers": {"list": "a, b" * 5000}}
    assert errors(commas).keys() == {"payload.to"}


@pytest.mark.parametrize("schema", ["{", '{"type": "nope"}', '{"pattern": "("}', '{"$ref": "http://127.0.0.1:9/x"}'])
def test_an_invalid_schema_stops_no_task_and_fetches_nothing(schema: str, caplog: pytest.LogCaptureFixture) -> None:
    broken = PayloadSchema("broken", schema)
    with caplog.at_level(logging.WARNING):
        assert told(broken, 1) == told(broken, 2) == []
    assert caplog.text.count("cannot be compiled") == 1


def test_a_schema_as_pydantic_writes_it_is_understood() -> None:
    class Attachment(BaseModel):
        name: str
        data: str | None = None

    class Mail(BaseModel):
        to: str | list[str]
        attachments: list[Attachment] = Field(default_factory=list, max_length=2)

    schema = PayloadSchema("mail", json.dumps(TypeAdapter(Mail).json_schema(by_alias=True)))
    assert told(schema, {"to": "x", "attachments": [{"name": "y", "data": None}]}) == []
    assert errors({"attachments": [{"data": 5}]}, schema).keys() == {
        "payload.to",
        "payload.attachments[0].name",
        "payload.attachments[0].data",
    }


# What the schema of a handler of one's own refuses ------------------------------------------------------------------


class Line(BaseModel):
    sku: Annotated[str, Field(pattern=r"^[A-Z]{2}-[0-9]+$", examples=["AB-12"])]
    count: Annotated[int, Field(ge=1)]


class Card(BaseModel):
    kind: Literal["card"]
    number: str


class Transfer(BaseModel):
    kind: Literal["transfer"]
    iban: Annotated[str, Field(min_length=5, description="an IBAN without spaces")]
    due: date | None = None


class Hint(BaseModel):
    model_config = ConfigDict(alias_generator=to_camel, populate_by_name=True)

    due_at: datetime | None = None


class Order(BaseModel):
    hint: Hint | None = None
    line: Line | None = None
    lines: list[Line] | None = None
    by_name: dict[str, Line] | None = None
    paid: Annotated[Card | Transfer, Field(discriminator="kind")] | None = None
    either: Card | Transfer | None = None
    at: datetime | None = None
    aware: AwareDatetime | None = None
    naive: NaiveDatetime | None = None
    day: date | None = None
    clock: time | None = None
    lasts: timedelta | None = None
    id: UUID | None = None
    v4: UUID4 | None = None
    page: HttpUrl | None = None
    link: AnyUrl | None = None
    host: IPv4Address | None = None
    blob: Base64Bytes | None = None
    spec: Json[dict[str, int]] | None = None
    per_day: dict[date, int] = {}
    per_number: dict[int, int] = {}
    per_rate: dict[float, int] = {}
    level: Literal["low", "high"] | None = None
    size: int | Literal["any"] = 1
    price: Decimal = Decimal(0)
    flags: dict[bool, int] = {}
    by_function: Annotated[
        Annotated[Line, Tag("line")] | Annotated[dict[str, Any], Tag("other")], Discriminator(lambda value: "other")
    ] = {}
    future: FutureDatetime | None = None
    born: Annotated[date, Field(lt=date(2020, 1, 1))] | None = None
    lead: Annotated[timedelta, Field(gt=timedelta(0), le=timedelta(days=7))] | None = None
    opens: Annotated[time, Field(ge=time(8))] | None = None
    fee: Annotated[Decimal, Field(gt=0, max_digits=4, decimal_places=2)] | None = None
    name: Annotated[str, StringConstraints(strip_whitespace=True, min_length=1, max_length=4)] = "a"
    code: Annotated[str, StringConstraints(strip_whitespace=True, min_length=2)] = "ab"
    text: Annotated[str, StringConstraints(strip_whitespace=True, min_length=1, max_length=10_000)] = "a"
    stem: Annotated[
        str, StringConstraints(strip_whitespace=True, pattern="^[A-Z]+-?", max_length=3), Field(examples=["AB-"])
    ] = "AB-"
    slug: Annotated[str, StringConstraints(strip_whitespace=True, ascii_only=True)] = ""
    plain: Annotated[str, StringConstraints(ascii_only=True, pattern=r"^\w")] = "a"
    skus: dict[Annotated[str, StringConstraints(pattern="^[A-Z]+$", max_length=2)], int] = {}
    names: dict[Annotated[str, StringConstraints(strip_whitespace=True, min_length=2)], int] = {}


ADAPTER: TypeAdapter[Order] = TypeAdapter(Order)
ORDER = PayloadSchema("order", schema_text(ADAPTER))


@pytest.mark.parametrize(
    ("payload", "field", "message"),
    [
        ({"line": {"sku": "AB-1", "count": "x"}}, "payload.line.count", 'not of type "integer"'),
        ({"line": {"sku": "AB-1"}}, "payload.line.count", "is required"),
        ({"line": 5}, "payload.line", 'not of type "object"'),
        ({"lines": [{"sku": "AB-1", "count": 1}, {"sku": "AB-1", "count": 0}]}, "payload.lines[1].count", "minimum"),
        ({"lines": "x"}, "payload.lines", 'not of type "array"'),
        ({"by_name": {"a": {"sku": 1, "count": 1}}}, "payload.by_name.a.sku", 'not of type "string"'),
        ({"paid": {"kind": "card"}}, "payload.paid.number", "is required"),
        ({"paid": {"kind": "transfer", "iban": "x"}}, "payload.paid.iban", "shorter than 5"),
        ({"paid": {"kind": "cash"}}, "payload.paid.kind", 'is none of "card", "transfer"'),
        ({"paid": {"number": "1"}}, "payload.paid.kind", "is required"),
        ({"paid": {"kind": "transfer", "iban": "abcde", "due": "soon"}}, "payload.paid.due", "is not a date"),
        ({"either": {"kind": "transfer"}}, "payload.either.iban", "is required"),
        ({"line": {"sku": "ab", "count": 1}}, "payload.line.sku", 'that its type declares, for example "AB-12"'),
        ({"at": "next monday"}, "payload.at", "is not a time, such as 2030-01-31T09:00:00Z"),
        ({"aware": "2030-01-31T09:00:00"}, "payload.aware", "has no offset from UTC"),
        ({"naive": "2030-01-31T09:00:00Z"}, "payload.naive", "may have no offset"),
        ({"day": "2030-02-30"}, "payload.day", "is not a date"),
        ({"clock": "25:00"}, "payload.clock", "is not a time of day"),
        ({"lasts": "a while"}, "payload.lasts", "is not a duration"),
        ({"id": "7f0c"}, "payload.id", "is not a UUID"),
        ({"v4": "01890a5d-ac96-774b-bcce-b302099a8057"}, "payload.v4", "is not a UUID of version 4"),
        ({"page": "ftp://example.org/"}, "payload.page", "begins with http: or https:"),
        ({"page": "example.org"}, "payload.page", "is not a URI"),
        ({"link": "example.org"}, "payload.link", "is not a URI"),
        ({"host": "192.0.2.256"}, "payload.host", "is not an IPv4 address"),
        ({"blob": "a"}, "payload.blob", "is not base64"),
        ({"spec": "{"}, "payload.spec", "is not a JSON text"),
        ({"per_day": {"soon": 1}}, "payload.per_day.soon", "is not a valid name: is not a date"),
        ({"per_number": {"one": 1}}, "payload.per_number.one", "is not a whole number"),
        ({"per_rate": {"one": 1}}, "payload.per_rate.one", "is not a number"),
        ({"level": "top"}, "payload.level", 'not one of "low" or "high"'),
        ({"size": "all"}, "payload.size", '"any" was expected'),
        ({"hint": {"dueAt": "soon"}}, "payload.hint.dueAt", "is not a time"),
        ({"hint": {"due_at": "soon"}}, "payload.hint.due_at", "is not a time"),
        ({"paid": 5}, "payload.paid", 'not of type "object", or the value is not of type "null"'),
        ({"future": "2001-01-31T09:00:00Z"}, "payload.future", "should be in the future"),
        ({"future": "soon"}, "payload.future", "is not a time"),
        ({"born": "2020-01-01"}, "payload.born", "should be less than 2020-01-01"),
        ({"lead": "-P1D"}, "payload.lead", "should be greater than"),
        ({"lead": "P8D"}, "payload.lead", "should be less than or equal"),
        ({"opens": "07:59"}, "payload.opens", "should be greater than or equal to 08:00"),
        ({"fee": "-1"}, "payload.fee", "should be greater than 0"),
        ({"price": "a lot"}, "payload.price", "is not a decimal number, such as 12.50"),
        ({"flags": {"maybe": 1}}, "payload.flags.maybe", "is neither true nor false"),
        ({"name": "   "}, "payload.name", "the value is shorter than 1 character, without the spaces around it"),
        ({"name": " ab cd "}, "payload.name", "the value is longer than 4 characters, without the spaces"),
        ({"code": " a "}, "payload.code", "the value is shorter than 2 characters, without the spaces"),
        ({"text": " "}, "payload.text", "shorter than 1 character, without the spaces around it"),
        ({"text": "a" * 10_001}, "payload.text", "longer than 10000 characters, without the spaces around it"),
        ({"stem": " ab "}, "payload.stem", 'that its type declares, for example "AB-", without the spaces around it'),
        ({"stem": " AB-C "}, "payload.stem", "longer than 3 characters, without the spaces around it"),
        ({"slug": " é "}, "payload.slug", "may have only ASCII characters, without the spaces around it"),
        ({"plain": "é"}, "payload.plain", "may have only ASCII characters"),
        ({"skus": {"ab": 1}}, "payload.skus.ab", "is not a valid name: does not have the form that its type declares"),
        ({"skus": {"ABC": 1}}, "payload.skus.ABC", "is not a valid name: the value is longer than 2 characters"),
        ({"skus": {"AB": "x"}}, "payload.skus.AB", 'not of type "integer"'),
        ({"names": {" a ": 1}}, "payload.names. a ", "shorter than 2 characters, without the spaces around it"),
    ],
)
def test_a_bad_value_is_reported_in_a_sentence_at_its_own_field(payload: Any, field: str, message: str) -> None:
    found = errors(payload, ORDER)
    assert list(found) == [field]
    assert message in found[field]
    assert not any(sign in found[field] for sign in ("^", "[0-9]", "anyOf", "{"))
    with pytest.raises(ValidationError):
        ADAPTER.validate_json(json.dumps(payload))


@pytest.mark.parametrize(
    "payload",
    [
        {"at": "2030-01-31T09:00:00Z"},
        {"at": "2030-01-31 09:00"},
        {"at": "2030-01-31"},
        {"aware": "2030-01-31T09:00:00+05:30"},
        {"aware": "2030-01-31T09:00:00z"},
        {"naive": "2030-01-31T09:00:00"},
        {"naive": "2030-01-31"},
        {"lasts": "P3DT12H"},
        {"lasts": "1 day, 00:30:00"},
        {"id": "01890a5dac96774bbcceb302099a8057"},
        {"page": "HTTPS://example.org"},
        {"link": "mailto:ann@example.org"},
        {"link": "https://münchen.example/ü"},
        {"blob": "aGk="},
        {"spec": '{"a": 1}'},
        {"per_day": {"2030-01-31": 1}},
        {"per_number": {"-5": 1, " 7 ": 2}},
        {"per_rate": {"1e3": 1, ".5": 2}},
        {"size": "any"},
        {"paid": None, "lines": []},
        {"hint": {"due_at": "2030-01-31T09:00:00Z", "more": 1}},
        {"by_function": {"sku": "AB-1", "count": 1}},
        {"future": "2999-01-31T09:00:00Z"},
        {"born": "2019-12-31"},
        {"lead": "P7D"},
        {"opens": "08:00"},
        {"fee": "12.50"},
        {"fee": 0.5},
        {"price": "12.50"},
        {"price": " -1_000e-2 "},
        {"price": ".5"},
        {"price": 5},
        {"flags": {"True": 1, "no": 2}},
        {"name": "  ab d "},
        {"name": "a"},
        {"code": " a b "},
        {"text": " a "},
        {"text": " " * 9 + "a" * 10_000},
        {"stem": " AB- "},
        {"slug": "\u00a0a\u2003"},
        {"plain": "a b"},
        {"skus": {"A": 1, "AB": 2}},
        {"names": {" ab ": 1}},
    ],
)
def test_what_a_handler_accepts_its_schema_accepts(payload: Any) -> None:
    assert errors(payload, ORDER) == {}
    ADAPTER.validate_json(json.dumps(payload))


@pytest.mark.parametrize(
    ("name", "good", "bad"),
    [
        ("hostname", "example.org", "a b"),
        ("ipv6", "::1", "1::2::3"),
        ("uri-reference", "/a?b", "\\\\"),
        ("json-pointer", "/a/0", "a"),
        ("regex", "^a+$", "("),
        ("email", "ann@example.org", "ann@"),
        ("email", "Ann <ann@example.org>", "ann..lee@example.org"),
        ("multi-host-uri", "postgresql://a,b/c", "nowhere"),
        ("ipvanyaddress", "::1", "here"),
        ("uuid7", "01890a5d-ac96-774b-bcce-b302099a8057", "0f8fad5b-d9cb-469f-a165-70867728950e"),
    ],
)
def test_every_format_is_asserted(name: str, good: str, bad: str) -> None:
    schema = PayloadSchema("own", json.dumps({"type": "string", "format": name}))
    assert errors(good, schema) == {}
    assert list(errors(bad, schema)) == ["payload"]


# The built-in types, whose models run --------------------------------------------------------------------------------

MAIL: dict[str, Any] = {"to": "ann@example.org", "subject": "Hello", "body": "Hi"}
SMS: dict[str, Any] = {"mobile": "918812345678", "name": "Ann"}
BUILT_IN = {name: PayloadSchema(name, schema_text(adapter)) for name, adapter in built_in().items()}
MANY = [f"a{number}@example.org" for number in range(300)]
BAD_MAILS: list[tuple[dict[str, Any], str, str]] = [
    ({"to": "ann@example.org; bob@example.org"}, "payload.to", "write several as a list"),
    ({"to": ["ann@example.org", "mailto:bob@example.org"]}, "payload.to[1]", "without the mailto:"),
    ({"cc": "ann@-x"}, "payload.cc", "is not a domain name"),
    ({"bcc": [".ann@example.org"]}, "payload.bcc[0]", "begins with a dot"),
    ({"replyTo": ["x"]}, "payload.replyTo[0]", "has one @"),
    ({"to": 5}, "payload.to", "or a list of addresses"),
    ({"to": []}, "payload.to", "at least 1 item"),
    (
        {"to": [f"a{n}@b.org" for n in range(300)], "cc": [f"c{n}@b.org" for n in range(300)]},
        "payload",
        "500 recipients",
    ),
    ({"subject": "two\nlines"}, "payload.subject", "may not have line breaks"),
    ({"subject": "x" * 999}, "payload.subject", "at most 998 characters"),
    ({"subject": 5}, "payload.subject", "valid string"),
    ({"body": "\0"}, "payload.body", "may not have NUL"),
    ({"html": ["x"]}, "payload.html", "valid string"),
    ({"prio": 1}, "payload.prio", "is not a known field"),
    ({"reply_to": "ann@example.org"}, "payload.reply_to", "is not a known field"),
    ({"headers": {"Subject": "x"}}, "payload.headers", "may not set Subject"),
    ({"headers": {"X-A": "a\nb"}}, "payload.headers.X-A", "may not have line breaks"),
    ({"headers": {"X-A": "a" * 1100}}, "payload.headers", "X-A has a word that is too long"),
    ({"headers": {"X A": "a"}}, "payload.headers.X A", "is not a header name"),
    ({"attachments": [{"filename": "a"}]}, "payload.attachments[0].content", "is required"),
    ({"attachments": [{"filename": "=?a", "content": ""}]}, "payload.attachments[0].filename", "may not contain"),
    (
        {"attachments": [{"filename": "a", "content": "aGk"}]},
        "payload.attachments[0].content",
        "its final = are missing",
    ),
    ({"attachments": [{"filename": "a", "content": "a-_="}]}, "payload.attachments[0].content", "it is base64url"),
    (
        {"attachments": [{"filename": "a", "content": "data:text/plain;base64,aGk="}]},
        "payload.attachments[0].content",
        "a data: URI",
    ),
    (
        {"attachments": [{"filename": "a", "content": "", "contentType": "zip"}]},
        "payload.attachments[0].contentType",
        "is not a media type",
    ),
]
BAD_TEXTS: list[tuple[dict[str, Any], str, str]] = [
    ({"mobile": "0918812345678"}, "payload.mobile", "digits with the country code, e.g. 918812345678"),
    ({"mobile": "+91 88123 45678"}, "payload.mobile", "digits with the country code, e.g. 918812345678"),
    ({"mobile": 918812345678}, "payload.mobile", "digits with the country code, e.g. 918812345678"),
    ({"templateId": "../x"}, "payload.templateId", "is not a template id"),
    ({"template_id": "x"}, "payload.template_id", "is not a known field"),
    ({"variables": {"name": "x"}}, "payload.variables", "may not set name"),
    ({"variables": {"a b": "x"}}, "payload.variables.a b", "is not a variable name"),
    ({"variables": {"a": True}}, "payload.variables.a", "valid string, or"),
]


@pytest.mark.parametrize(
    ("name", "payload", "field", "message"),
    [
        *(("email", MAIL | fields, field, message) for fields, field, message in BAD_MAILS),
        *(("sms", SMS | fields, field, message) for fields, field, message in BAD_TEXTS),
        ("email", "text", "payload", "object"),
        ("sms", None, "payload", "object"),
    ],
)
def test_the_model_of_a_built_in_type_names_the_bad_field(name: str, payload: Any, field: str, message: str) -> None:
    found = errors(payload, BUILT_IN[name])
    assert list(found) == [field]
    assert message in found[field]
    assert "^" not in found[field]


@pytest.mark.parametrize(
    ("name", "payload"),
    [
        ("email", MAIL),
        ("email", MAIL | {"to": [" Ann <ann..lee@example.org> ", '"a b"@my_host.org.'], "html": None, "cc": []}),
        ("email", MAIL | {"attachments": [{"filename": "a", "content": "aGk=\n"}], "headers": {"X-A": "b"}}),
        ("sms", SMS | {"mobile": "+918812345678", "templateId": None, "variables": {"a": "x", "b": 1, "c": 1.5}}),
    ],
)
def test_what_a_built_in_type_accepts_its_schema_accepts_too(name: str, payload: Any) -> None:
    assert errors(payload, BUILT_IN[name]) == {}
    assert jsonschema_rs.is_valid(json.loads(BUILT_IN[name].text), payload)


def test_a_type_that_another_release_has_registered_is_held_against_its_schema() -> None:
    older = json.loads(BUILT_IN["email"].text)
    older["properties"]["campaign"] = {"type": "string"}
    schema = PayloadSchema("email", json.dumps(older))
    assert errors(MAIL | {"campaign": "spring"}, schema) == {}
    assert errors(MAIL | {"to": "mailto"}, schema) == {
        "payload.to": "is not an address, such as ann@example.org or Ann Lee <ann@example.org>"
    }
