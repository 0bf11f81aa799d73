from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import pytest

from taskflux.store.tasks import ForeignTask, Known, Tasks
from taskflux.stream.envelope import Foreign, Poison, PoisonClass, Record, decode
from taskflux.tasks.model import TaskType
from taskflux.worker.foreign import Registration, foreign_task
from taskflux.worker.process import Process
from taskflux.worker.settings import Settings

NOW = datetime(2030, 1, 1, tzinfo=UTC)
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


def registered(value: bytes | dict[str, Any], **place: Any) -> ForeignTask:
    found = foreign_task(foreign(value, **place), EMAIL, NOW)
    assert isinstance(found, ForeignTask)
    return found


NAMED = {"taskId": "7f0c", "taskType": "email", "payload": {"to": "user@example.com"}}
NAMELESS = {"taskType": "email", "payload": {"to": "user@example.com"}}


def test_a_producers_id_names_its_task_wherever_the_record_is() -> None:
    first, second = registered(NAMED), registered(NAMED, topic="other", partition=0, offset=99, timestamp=1)
    assert first.identity == second.identity == "id:email:7f0c"
    assert first.digest == second.digest
    assert first.id != second.id
    assert (first.type, first.payload, first.max_attempts) == ("email", '{"to":"user@example.com"}', 6)
    assert registered({**NAMED, "taskId": 7}).identity == "id:email:7"


def test_an_id_is_one_of_its_type() -> None:
    assert registered(NAMED).identity != registered({**NAMED, "taskType": "sms"}).identity


@pytest.mark.parametrize("place", [{"partition": 0}, {"offset": 6}, {"timestamp": 8}, {"key": b"k"}, {"topic": "x"}])
def test_a_record_without_an_id_is_known_by_place_time_and_bytes(place: dict[str, Any]) -> None:
    assert registered(NAMELESS).identity == registered(NAMELESS).identity
    assert registered(NAMELESS).identity != registered(NAMELESS, **place).identity


def test_the_order_of_a_payloads_names_does_not_matter() -> None:
    one = registered(b'{"taskId": 1, "taskType": "email", "payload": {"a": 1, "b": 2}}')
    two = registered(b'{"taskId": 1, "taskType": "email", "payload": {"b":2,"a":1}}')
    assert one.digest == two.digest
    assert one.digest != registered(b'{"taskId": 1, "taskType": "email", "payload": {"a": 1}}').digest


def test_what_postgresql_cannot_store_stays_as_json_escapes_it() -> None:
    found = registered(b'{"taskType": "email", "payload": {"to": "\\u0000\xc3\xa9"}}')
    assert found.payload == '{"to":"\\u0000\\u00e9"}'


def test_a_payload_above_the_limit_of_its_type_is_poison() -> None:
    found = foreign_task(foreign({"taskType": "email", "payload": "x" * 999}), EMAIL, NOW)
    assert isinstance(found, Poison)
    assert (found.error_class, "1,001 bytes" in found.reason) == (PoisonClass.TOO_LARGE, True)
    assert isinstance(foreign_task(foreign({"taskType": "email", "payload": "x" * 998}), EMAIL, NOW), ForeignTask)


def test_the_producers_trace_is_continued_and_every_task_has_one() -> None:
    parent = b"00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
    assert registered(NAMED, headers=(("traceparent", parent),)).traceparent == parent.decode()
    assert len(registered(NAMED).traceparent) == 55


FIELDS: dict[str, Any] = {
    "scheduleAt": "2030-01-02T09:00:00+02:00",
    "expiresAt": "2030-01-03T00:00:00Z",
    "key": "customer 7",
    "maxAttempts": 3,
    "metadata": {"order": 12, "name": "Zoë"},
}


def test_the_fields_of_a_record_mean_what_they_mean_over_http() -> None:
    found = registered(NAMED | FIELDS)
    assert found.schedule_at == datetime(2030, 1, 2, 7, tzinfo=UTC)
    assert found.expires_at == datetime(2030, 1, 3, tzinfo=UTC)
    assert (found.key, found.max_attempts, found.metadata) == ("customer 7", 3, '{"order":12,"name":"Zo\\u00eb"}')
    assert found.waits
    delayed = registered(NAMED | {"delaySeconds": 1.5})
    assert (delayed.delay, delayed.schedule_at, delayed.waits) == (1.5, None, True)


def test_null_is_as_good_as_absent_and_other_names_are_ignored() -> None:
    bare = registered(NAMED)
    found = registered(NAMED | dict.fromkeys(FIELDS) | {"delaySeconds": None, "priority": 3})
    assert (found.digest, found.max_attempts, found.waits) == (bare.digest, 6, False)
    assert (found.key, found.metadata, found.expires_at) == (None, None, None)


def test_the_same_id_with_other_fields_is_another_task() -> None:
    first = registered(NAMED | FIELDS)
    assert first.digest == registered(NAMED | FIELDS | {"scheduleAt": "2030-01-02T07:00:00Z"}).digest
    assert first.digest != registered(NAMED | FIELDS | {"maxAttempts": 4}).digest
    assert first.digest != registered(NAMED).digest


def test_one_that_comes_after_it_has_expired_may_be_a_repeat_and_is_accepted_to_expire() -> None:
    found = registered(NAMED | {"expiresAt": "2029-12-31T00:00:00Z"})
    assert found.expires_at == datetime(2029, 12, 31, tzinfo=UTC)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"scheduleAt": "tomorrow"}, "scheduleAt must be an RFC 3339 time"),
        ({"scheduleAt": 1893456000}, "scheduleAt must be an RFC 3339 time"),
        ({"scheduleAt": "2030-01-02T09:00:00"}, "scheduleAt has no offset"),
        ({"scheduleAt": "2050-01-01T00:00:00Z"}, "scheduleAt is more than ten years ahead"),
        ({"scheduleAt": "2030-01-02T00:00:00Z", "delaySeconds": 5}, "delaySeconds contradicts scheduleAt"),
        ({"scheduleAt": "2030-01-02T00:00:00Z", "expiresAt": "2030-01-01T00:00:00Z"}, "could never run"),
        ({"delaySeconds": "5"}, "delaySeconds must be a number"),
        ({"expiresAt": "0001-01-01T00:00:00+10:00"}, "expiresAt is out of range"),
        ({"maxAttempts": 0}, "maxAttempts must be a whole number"),
        ({"metadata": "x"}, "metadata must be a JSON object"),
        ({"metadata": {"x": "y" * 17_000}}, "metadata is larger"),
        ({"key": 7}, "key must be a text"),
    ],
)
def test_a_field_that_is_not_valid_makes_the_record_poison_that_says_so(fields: dict[str, Any], said: str) -> None:
    found = foreign_task(foreign(NAMED | fields), EMAIL, NOW)
    assert isinstance(found, Poison)
    assert (found.error_class, said in found.reason) == (PoisonClass.UNKNOWN_SHAPE, True)


def test_a_number_beyond_a_double_in_metadata_is_poison() -> None:
    found = foreign_task(foreign(b'{"taskType": "email", "payload": 1, "metadata": {"x": 1e999}}'), EMAIL, NOW)
    assert isinstance(found, Poison)
    assert "metadata holds a number beyond the range" in found.reason


class Rows(Tasks):
    """The table, in memory: it knows what was registered, and when that is due."""

    def __init__(self) -> None:
        self.made: dict[str, Known] = {}

    async def register(self, batch: Sequence[ForeignTask], grace: float) -> Mapping[str, Known]:
        known = dict(self.made)
        for each in batch:
            due_now = each.delay == 0 and (each.schedule_at is None or each.schedule_at <= NOW)
            known.setdefault(each.identity, Known(each.id, each.digest, fresh=True, due_now=due_now))
            self.made.setdefault(each.identity, Known(each.id, each.digest))
        return known


async def test_a_task_that_is_not_due_is_left_to_the_relay_also_when_its_record_comes_again() -> None:
    registration = Registration(Process("router", Settings()), Rows(), 15.0, now=lambda: NOW)
    later = [foreign({**NAMED, "taskId": name, "key": name, **FIELDS}) for name in ("a", "b", "a")]
    past = foreign({**NAMED, "taskId": "c", "key": "k", "scheduleAt": "2029-01-01T00:00:00Z"})
    first = await registration.register([*later, past], {"email": EMAIL})
    assert first is not None
    assert [(each.task_type, each.version) for each in first.tasks.values()] == [("email", 1)]
    assert (len(first.fresh), first.later, first.poison) == (3, 3, [])
    assert first.keys[next(iter(first.tasks))] == "k"
    again = await registration.register([*later, past], {"email": EMAIL})
    assert again is not None
    # Nobody knows here whether the task of the last one has waited: its row in the outbox does.
    assert (again.tasks, again.fresh, again.later) == ({}, set(), 4)


async def test_a_task_that_is_due_is_run_by_the_worker_that_gets_its_record_again() -> None:
    registration = Registration(Process("router", Settings()), Rows(), 15.0, now=lambda: NOW)
    record = foreign(NAMED | {"maxAttempts": 2, "delaySeconds": 0})
    first, again = [await registration.register([record], {"email": EMAIL}) for _ in range(2)]
    assert first is not None
    assert again is not None
    assert first.tasks.keys() == again.tasks.keys() == first.fresh
    assert (again.fresh, first.later, again.later) == (set(), 0, 0)
