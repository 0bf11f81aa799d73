"""Types are known as long as they ever were, and looked for together; payloads are held against their schemas."""

from __future__ import annotations

import asyncio
import json
import logging
from typing import Any

import pytest

from taskflux.http.registry import PayloadSchema, TypeRegistry
from taskflux.store.errors import StoreError, StoreUnavailable
from taskflux.tasks.submission import TaskType
from tests.unit.http.stores import EMAIL_SCHEMA, Clock, Source

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


async def test_concurrent_requests_for_unknown_types_share_one_look() -> None:
    source = Source()
    source.gate.clear()
    registry = TypeRegistry(source)
    asking = [asyncio.create_task(registry.find(name)) for name in ["email", "simulated", "fax"] * 10]
    await asyncio.sleep(0)
    source.gate.set()
    found = await asyncio.gather(*asking)
    assert source.asked == 1
    assert [each.type.name if each else None for each in found[:3]] == ["email", "simulated", None]


async def test_an_unknown_type_is_looked_for_at_most_once_a_second() -> None:
    source, clock = Source(), Clock()
    registry = TypeRegistry(source, clock=clock, sleep=clock.sleep)
    began = clock.now
    for _ in range(5):
        assert await registry.find("fax") is None
    assert (source.asked, clock.now - began) == (5, 4.0)


async def test_a_request_looks_once_for_all_its_unknown_types() -> None:
    source, clock = Source(), Clock()
    registry = TypeRegistry(source, clock=clock, sleep=clock.sleep)
    await registry.refresh()
    began, came = clock.now, registry.looks
    assert [await registry.find(f"fax{n}", came) for n in range(1000)] == [None] * 1000
    assert (source.asked, clock.now - began) == (2, 1.0)


async def test_a_flood_of_unknown_types_is_one_query_a_second() -> None:
    source, clock = Source(), Clock()
    registry = TypeRegistry(source, clock=clock, sleep=clock.sleep)
    await registry.refresh()
    began = clock.now
    await asyncio.gather(*(registry.find(f"fax{n}") for n in range(1000)))
    assert (source.asked, clock.now - began) == (2, 1.0)


async def test_an_unreachable_store_is_asked_once_for_all_who_wait() -> None:
    source, clock = Source(), Clock()
    registry = TypeRegistry(source, clock=clock, sleep=clock.sleep)
    source.trouble = StoreUnavailable("away")
    came = registry.looks
    found = await asyncio.gather(*(registry.find(f"fax{n}", came) for n in range(1000)), return_exceptions=True)
    assert {type(each) for each in found} == {StoreUnavailable}
    with pytest.raises(StoreUnavailable):  # and the same request does not take it for an answer later
        await registry.find("fax", came)
    assert source.asked == 1


async def test_a_look_that_began_before_the_request_does_not_answer_it() -> None:
    source, clock = Source(), Clock()
    source.gate.clear()
    registry = TypeRegistry(source, clock=clock, sleep=clock.sleep)
    early = asyncio.create_task(registry.find("fax"))
    await source.looks.acquire()
    source.types["fax"] = TaskType("fax", "{}", 3, "resend", None)
    late = asyncio.create_task(registry.find("fax"))
    await asyncio.sleep(0)
    source.gate.set()
    assert await early is None
    assert await late is not None


async def test_a_type_that_was_registered_since_the_last_look_is_not_refused() -> None:
    source, clock = Source(), Clock()
    registry = TypeRegistry(source, clock=clock, sleep=clock.sleep)
    assert await registry.find("fax") is None
    source.types["fax"] = TaskType("fax", "{}", 3, "resend", None)
    found = await asyncio.gather(*(registry.find("fax") for _ in range(5)))
    assert all(found)
    assert source.asked == 2


async def test_what_is_known_stays_known_while_the_store_is_away() -> None:
    source, clock = Source(), Clock()
    registry = TypeRegistry(source, clock=clock, sleep=clock.sleep)
    await registry.refresh()
    source.trouble = StoreUnavailable("away")
    clock.now += 60
    await registry.refresh()
    assert await registry.find("email") is not None
    with pytest.raises(StoreError):
        await registry.find("fax")
    source.trouble = None
    clock.now += 1
    assert await registry.find("fax") is None


async def test_a_request_that_is_given_up_takes_the_look_from_nobody_else() -> None:
    source = Source()
    source.gate.clear()
    registry = TypeRegistry(source)
    impatient, patient = asyncio.create_task(registry.find("email")), asyncio.create_task(registry.find("email"))
    await asyncio.sleep(0)
    impatient.cancel()
    await asyncio.sleep(0)
    source.gate.set()
    assert await patient is not None


async def test_a_schema_stays_compiled_until_its_text_changes() -> None:
    source = Source()
    registry = TypeRegistry(source)
    await registry.refresh()
    first = await registry.find("email")
    assert first is not None
    await registry.refresh()
    assert await registry.find("email") is first
    old = source.types["email"]
    source.types["email"] = TaskType("email", old.schema, 99, "hold", None)
    await registry.refresh()
    second = await registry.find("email")
    assert second is not None
    assert (second.type.max_attempts, second.schema is first.schema) == (99, True)
    source.types["email"] = TaskType("email", '{"type": "string"}', 99, "hold", None)
    await registry.refresh()
    third = await registry.find("email")
    assert third is not None
    assert third.schema.errors(5) != []


async def test_it_refreshes_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("taskflux.http.registry.REFRESH_EVERY", 0.0)
    source = Source()
    registry = TypeRegistry(source)
    running = asyncio.create_task(registry.run())
    for _ in range(3):
        await source.looks.acquire()
    running.cancel()
    assert registry.names == ["email", "simulated"]
