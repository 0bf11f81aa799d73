"""The labels of the metrics, and the values that they may take: bounded, so that no series names a task or a person."""

from __future__ import annotations

from typing import Final

from taskflux.stream.envelope import PoisonClass
from taskflux.tasks.states import Event, State
from taskflux.telemetry.instruments import Label

OTHER: Final = "other"
UNKNOWN: Final = "unknown"

SETTLES: Final = (Event.SUCCEEDED, Event.RETRY, Event.HANDED_BACK, Event.DIED, Event.HELD)
TASK_ERRORS: Final = (
    "Transient", "Permanent", "Ambiguous", "Unavailable", "Misconfigured", "InvalidPayload", "Expired", "WorkerLost",
    "Crash",
)  # fmt: skip
RECORD_ERRORS: Final = (*(each.value for each in PoisonClass), "MalformedDeadLetter", "Unknown")
STORE_ERRORS: Final = ("StoreUnavailable", "StoreBusy", "RefusedData", "SchemaTooOld", "StoreError")
CALLED: Final = ("succeeded", "Transient", "Permanent", "Ambiguous", "Unavailable", "Misconfigured", "crashed")
METHODS: Final = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")
WAITING_STATES: Final = ("scheduled", "due", "running", "dead-due")
PARKED_STATES: Final = (State.DEAD.value, State.UNCERTAIN.value, State.CANCELLED.value)
SERVERS: Final = ("postgresql", "kafka", "redis", "smtp", "msg91", "notify")

TYPE: Final = Label("type", said="a registered task type")
TAKEN: Final = Label("type", said="a registered task type, or dlq")
QUEUE: Final = Label("type", said="a registered task type, dlq, or router")
ERROR: Final = Label(
    "error_class", tuple(dict.fromkeys((*TASK_ERRORS, *RECORD_ERRORS, OTHER))), "own subclasses by name, at most 50"
)
PROVIDER: Final = Label("provider", said="a handler's provider: smtp, msg91, or one of your own")
KAFKA_ERROR: Final = "or the name of Kafka's error"

_own_classes: set[str] = set()


def error_class(name: str) -> str:
    """`name` as a label's value: ours, or one of the first 50 others that look like a class; `other` for the rest.

    The class of an error can be an application's own; that of a dead letter may come from whoever wrote the record.
    """
    if name in TASK_ERRORS or name in RECORD_ERRORS or name in _own_classes:
        return name
    if len(_own_classes) >= 50 or not (name.isalnum() and name.isascii() and name[0].isupper() and len(name) <= 50):
        return OTHER
    _own_classes.add(name)
    return name
