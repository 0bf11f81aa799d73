"""Types are known as long as they ever were, and looked for together."""

from __future__ import annotations

import asyncio

import pytest

from taskflux.http.task_types import TypeRegistry
from taskflux.store.errors import StoreError, StoreUnavailable
from taskflux.tasks.model import TaskType
from tests.unit.http.stores import Clock, Source


async def test_concurrent_requests_for_unknown_types_share_one_read() -> None:
    source = Source()
    source.gate.clear()
    registry = TypeRegistry(source)
    asking = [asyncio.create_task(registry.find(name)) for name in ["email", "simulated", "fax"] * 10]
    await asyncio.sleep(0)
    source.gate.set()
    found = await asyncio.gather(*asking)
    assert source.asked == 1
    assert [each.type.name if each else None for each in found[:3]] == ["email", "simulated", None]


async def test_an_unknown_type_is_read_at_most_once_a_second() -> None:
    source, clock = Source(), Clock()
    registry = TypeRegistry(source, clock=clock, sleep=clock.sleep)
    began = clock.now
    for _ in range(5):
        assert await registry.find("fax") is None
    assert (source.asked, clock.now - began) == (5, 4.0)


async def test_a_request_reads_once_for_all_its_unknown_types() -> None:
    source, clock = Source(), Clock()
    registry = TypeRegistry(source, clock=clock, sleep=clock.sleep)
    await registry.refresh()
    began, came = clock.now, registry.reads
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
    came = registry.reads
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


async def test_what_is_known_stays_known_while_the_store_is_unavailable() -> None:
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


async def test_a_request_that_is_cancelled_does_not_cancel_the_read_for_others() -> None:
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
    assert third.schema.errors(5, "5") != []


async def test_it_refreshes_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("taskflux.http.task_types.REFRESH_EVERY", 0.0)
    source = Source()
    registry = TypeRegistry(source)
    running = asyncio.create_task(registry.run())
    for _ in range(3):
        await source.looks.acquire()
    running.cancel()
    assert registry.names == ["email", "simulated"]
