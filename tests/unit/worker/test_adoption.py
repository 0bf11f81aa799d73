from __future__ import annotations

import json
from typing import Any

import pytest

from taskflux.store.tasks import Adoptee
from taskflux.stream.envelope import Foreign, Poison, PoisonClass, Record, decode
from taskflux.tasks.submission import TaskType
from taskflux.worker.foreign import adoptee

EMAIL = TaskType("email", "{}", 6, "resend", "smtp", max_bytes=1000)


def record(value: bytes, **place: Any) -> Record:
    fields: dict[str, Any] = {"topic": "task-topic", "partition": 1, "offset": 5, "timestamp": 9, "key": None}
    return Record(**(fields | {"value": value} | place))


def foreign(value: bytes | dict[str, Any], **place: Any) -> Foreign:
    found = decode(
        record(value if isinstance(value, bytes) else json.dumps(value).encode(), **place), max_bytes=10_000_000
    )
    assert isinstance(found, Foreign)
    return found


def adopted(value: bytes | dict[str, Any], **place: Any) -> Adoptee:
    found = adoptee(foreign(value, **place), EMAIL)
    assert isinstance(found, Adoptee)
    return found


NAMED = {"taskId": "7f0c", "taskType": "email", "payload": {"to": "user@example.com"}}
NAMELESS = {"taskType": "email", "payload": {"to": "user@example.com"}}


def test_a_producers_id_names_its_task_wherever_the_record_stands() -> None:
    first, second = adopted(NAMED), adopted(NAMED, topic="other", partition=0, offset=99, timestamp=1)
    assert first.identity == second.identity == "id:email:7f0c"
    assert first.digest == second.digest
    assert first.id != second.id
    assert (first.type, first.payload, first.max_attempts) == ("email", '{"to":"user@example.com"}', 6)
    assert adopted({**NAMED, "taskId": 7}).identity == "id:email:7"


def test_an_id_is_one_of_its_type() -> None:
    assert adopted(NAMED).identity != adopted({**NAMED, "taskType": "sms"}).identity


@pytest.mark.parametrize("place", [{"partition": 0}, {"offset": 6}, {"timestamp": 8}, {"key": b"k"}, {"topic": "x"}])
def test_a_nameless_record_is_known_by_place_time_and_bytes(place: dict[str, Any]) -> None:
    assert adopted(NAMELESS).identity == adopted(NAMELESS).identity
    assert adopted(NAMELESS).identity != adopted(NAMELESS, **place).identity


def test_the_order_of_a_payloads_names_makes_no_other_payload() -> None:
    one = adopted(b'{"taskId": 1, "taskType": "email", "payload": {"a": 1, "b": 2}}')
    two = adopted(b'{"taskId": 1, "taskType": "email", "payload": {"b":2,"a":1}}')
    assert one.digest == two.digest
    assert one.digest != adopted(b'{"taskId": 1, "taskType": "email", "payload": {"a": 1}}').digest


def test_what_postgresql_does_not_take_stays_as_json_escapes_it() -> None:
    found = adopted(b'{"taskType": "email", "payload": {"to": "\\u0000\xc3\xa9"}}')
    assert found.payload == '{"to":"\\u0000\\u00e9"}'


def test_a_payload_above_the_limit_of_its_type_is_poison() -> None:
    found = adoptee(foreign({"taskType": "email", "payload": "x" * 999}), EMAIL)
    assert isinstance(found, Poison)
    assert (found.error_class, "1,001 bytes" in found.reason) == (PoisonClass.TOO_LARGE, True)
    assert isinstance(adoptee(foreign({"taskType": "email", "payload": "x" * 998}), EMAIL), Adoptee)


def test_the_producers_trace_goes_on_and_every_task_has_one() -> None:
    parent = b"00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
    assert adopted(NAMED, headers=(("traceparent", parent),)).traceparent == parent.decode()
    assert len(adopted(NAMED).traceparent) == 55
