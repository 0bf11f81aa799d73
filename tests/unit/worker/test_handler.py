from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from functools import partial, wraps
from typing import Any
from uuid import UUID

import pytest
from pydantic import BaseModel

from taskflux import Receipt, RetryPolicy, Task, handler, provider
from taskflux.tasks.errors import InvalidPayload


class Image(BaseModel):
    url: str
    width: int = 100


class NoSettings(BaseModel):
    pass


class Camera:
    pass


@provider("camera", settings=NoSettings)
@asynccontextmanager
async def camera(settings: NoSettings) -> AsyncIterator[Camera]:
    yield Camera()


@handler("resize", payload=Image, provider=camera, retry=RetryPolicy(max_attempts=3), ambiguous="hold")
async def resize_image(task: Task[Image], client: Camera) -> Receipt:
    return Receipt({"width": task.payload.width})


async def alone(task: Task[Image]) -> Receipt:
    return Receipt()


async def with_client(task: Task[Image], client: Camera) -> Receipt:
    return Receipt()


def not_async(task: Task[Image]) -> Receipt:
    return Receipt()


async def yielding(task: Task[Image]) -> AsyncIterator[Receipt]:
    yield Receipt()


def yielding_plainly(task: Task[Image]) -> Iterator[Receipt]:
    yield Receipt()


@wraps(alone)
def decorated(task: Task[Image]) -> Any:
    return alone(task)


def test_a_declaration_says_all_that_the_rest_needs_to_know() -> None:
    assert resize_image.name == "resize-image"
    registered = resize_image.task_type()
    assert (registered.name, registered.max_attempts, registered.ambiguous) == ("resize", 3, "hold")
    assert registered.provider == "camera"
    assert json.loads(registered.schema)["required"] == ["url"]


def test_declaring_a_handler_needs_neither_kafka_nor_postgresql() -> None:
    program = "import sys, taskflux; print({'aiokafka', 'asyncpg', 'redis'} & set(sys.modules))"
    assert subprocess.check_output([sys.executable, "-c", program], text=True) == "set()\n"


async def test_a_handler_can_be_called_like_the_function_it_is() -> None:
    task = Task(UUID(int=1), "resize", Image(url="x"), 1, 3, 0, datetime.now(UTC))
    assert await resize_image(task, Camera()) == Receipt({"width": 100})


def test_a_payload_is_what_was_declared() -> None:
    assert resize_image.parse('{"url": "x", "width": 7}') == Image(url="x", width=7)


@pytest.mark.parametrize(
    "payload", ['{"width": "seven"}', "[]", "", '"secret-text"', '{"url": "secret-text"', "\ud800"]
)
def test_a_payload_that_is_something_else_is_refused_without_repeating_it(payload: str) -> None:
    with pytest.raises(InvalidPayload) as refused:
        resize_image.parse(payload)
    assert "secret" not in refused.value.reason


def test_each_bad_field_is_named() -> None:
    with pytest.raises(InvalidPayload) as refused:
        resize_image.parse('{"width": "seven"}')
    assert "url: " in refused.value.reason
    assert "width: " in refused.value.reason


@pytest.mark.parametrize("name", ["", "Email", "a b", "ä", "-x", ".x", "x" * 101, "tasks/x", "dlq", "x\n"])
def test_a_name_that_no_topic_can_bear_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="cannot name a task type"):
        handler(name, payload=Image)


@pytest.mark.parametrize("name", ["email", "image.resize", "x", "7-up", "x" * 100])
def test_a_name_that_a_topic_can_have_is_accepted(name: str) -> None:
    assert handler(name, payload=Image)(alone).type == name


@pytest.mark.parametrize(
    ("arguments", "names"),
    [
        ({"concurrency": 0}, "concurrency"),
        ({"timeout": 0}, "timeout"),
        ({"ambiguous": "perhaps"}, "ambiguous"),
    ],
)
def test_a_declaration_that_contradicts_itself_is_refused(arguments: dict[str, Any], names: str) -> None:
    with pytest.raises(ValueError, match=names):
        handler("x", payload=Image, **arguments)


@pytest.mark.parametrize(
    ("function", "arguments", "says"),
    [
        (not_async, {"provider": camera}, "the provider's client"),
        (with_client, {}, "the task alone"),
        (alone, {"provider": camera}, "the provider's client"),
        (partial(with_client, client=Camera()), {}, "is a functools.partial"),
        (yielding, {}, "is a generator: return the receipt instead of yielding"),
        (yielding_plainly, {}, "is a generator: return the receipt instead of yielding"),
        (Camera(), {}, "is a Camera object, not a function"),
        (Camera, {}, "is the class Camera, not a function"),
        (decorated, {}, "has a decorator that returns a plain function"),
        (print, {}, "is a built-in function"),
    ],
)
def test_a_function_that_does_not_fit_is_refused(
    function: Callable[..., Any], arguments: dict[str, Any], says: str
) -> None:
    declare: Any = handler("x", payload=Image, **arguments)
    with pytest.raises(TypeError, match=says):
        declare(function)


def test_a_plain_function_is_distinguished_from_one_that_runs_on_the_loop() -> None:
    task = Task(UUID(int=1), "resize", Image(url="x"), 1, 3, 0, datetime.now(UTC))
    plain = handler("x", payload=Image)(not_async)
    assert (plain.blocking, plain(task)) == (True, Receipt())
    assert not resize_image.blocking


def test_a_payload_may_be_any_annotation() -> None:
    bare = handler("x", payload=list[int] | None)(alone)
    assert bare.parse("[1, 2]") == [1, 2]
    assert bare.parse("null") is None


@pytest.mark.parametrize("most", [0, 16 * 1024 * 1024 + 1])
def test_a_limit_that_no_payload_can_have_is_refused(most: int) -> None:
    with pytest.raises(ValueError, match="sent as a link"):
        handler("resize", payload=Image, max_bytes=most)


def test_what_a_type_declares_is_registered_and_held_against_its_payloads() -> None:
    @handler("wide", payload=list[str], max_bytes=2_000_000)
    async def wide(task: Task[list[str]]) -> None: ...

    assert wide.task_type().max_bytes == 2_000_000
    assert wide.parse(json.dumps(["x" * 1_500_000]))
    with pytest.raises(InvalidPayload, match="2,000,000 at most"):
        wide.parse(json.dumps(["x" * 2_000_000]))


def test_a_payload_that_is_wrong_in_very_many_places_is_not_described_place_by_place() -> None:
    @handler("counts", payload=list[int])
    async def counts(task: Task[list[int]]) -> None: ...

    with pytest.raises(InvalidPayload) as refused:
        counts.parse(json.dumps(["x"] * 50_000))
    assert "and 49,999 more" in refused.value.reason
    with pytest.raises(InvalidPayload) as refused:
        counts.parse(json.dumps(["x"] * 100))
    assert refused.value.reason.count(": ") == 20
    assert refused.value.reason.endswith("; and 80 more")


@pytest.mark.parametrize("payload", ["[" * 65 + "]" * 65, "[" + "0," * 100_000 + "0]"], ids=["deep", "crowded"])
def test_a_payload_out_of_bounds_is_refused_though_its_model_would_take_it(payload: str) -> None:
    @handler("anything", payload=Any)
    async def anything(task: Task[Any]) -> None: ...

    with pytest.raises(InvalidPayload, match="payload: it "):
        anything.parse(payload)
    assert anything.parse("[" * 64 + "]" * 64)
