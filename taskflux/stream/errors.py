"""What Kafka's absence looks like to the rest of the program."""

from __future__ import annotations

import asyncio

from aiokafka.errors import KafkaError

TROUBLE = (KafkaError, OSError, asyncio.TimeoutError)
"""What aiokafka raises when a broker is away, slow, refuses, or answers with an error."""


class KafkaUnavailable(Exception):
    """Kafka did not answer, or not in time: nothing is known about what was asked; ask again later."""


def error_name(error: BaseException) -> str:
    """A bounded name for metrics: the class, `Timeout` for every kind of one."""
    return "Timeout" if isinstance(error, TimeoutError) else type(error).__name__.removesuffix("Error")
