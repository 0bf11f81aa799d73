import json
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import jsonschema_rs
import pytest

from taskflux.handlers.process_simulated import TEXT_DELAY_MS, Simulated, process_simulated
from taskflux.tasks.errors import InvalidPayload, Transient
from taskflux.tasks.model import Task

SCHEMA = jsonschema_rs.validator_for(json.loads(process_simulated.task_type().schema))


def task(payload: Any) -> Task[Simulated]:
    parsed = process_simulated.parse(json.dumps(payload))
    return Task(UUID(int=1), "simulated", parsed, 1, 8, 0, datetime(2026, 3, 1, tzinfo=UTC))


@pytest.mark.parametrize(
    "payload", ["any text", "", {}, {"delayMs": 5, "failRate": 0.5, "anything": [1]}, {"simulateFail": True}]
)
def test_a_text_and_an_object_with_whatever_keys_are_taken(payload: Any) -> None:
    assert SCHEMA.is_valid(payload)
    process_simulated.parse(json.dumps(payload))


@pytest.mark.parametrize(
    "payload", [3, None, [], {"delayMs": -1}, {"delayMs": "soon"}, {"failRate": 1.5}, {"delayMs": 10**9}]
)
def test_anything_else_is_refused_by_schema_and_model_alike(payload: Any) -> None:
    assert not SCHEMA.is_valid(payload)
    with pytest.raises(InvalidPayload):
        process_simulated.parse(json.dumps(payload))


def test_the_fail_rate_is_compared_with_the_draw() -> None:
    payload = Simulated.model_validate({"failRate": 0.3})
    assert payload.fails(0.29)
    assert not payload.fails(0.3)
    assert not Simulated().fails(0.0)
    assert Simulated.model_validate({"failRate": 1}).fails(0.999)


async def test_a_text_takes_its_small_delay_and_succeeds() -> None:
    receipt = await process_simulated(task("hello"))
    assert receipt is not None
    assert receipt.result == {"simulated": True, "delayMs": TEXT_DELAY_MS}


async def test_simulate_fail_always_fails_as_transient() -> None:
    with pytest.raises(Transient, match="asked for"):
        await process_simulated(task({"simulateFail": True}))


def test_only_the_public_names_count_as_the_schema_says() -> None:
    """A name of another spelling would be accepted whatever its value, and the handler would refuse it."""
    payload = process_simulated.parse('{"delay_ms": "never", "simulate_fail": 5}')
    assert (payload.delay_ms, payload.simulate_fail) == (0, False)
