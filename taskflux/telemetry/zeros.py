"""Series that are there before anything has happened: `rate()` and alerts see the first event, not the second."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from taskflux.tasks.delivery import DeliveryStatus
from taskflux.tasks.states import State
from taskflux.telemetry import labels, metrics

REFUSALS: Final = ("invalid-task", "malformed-json", "unknown-task-type", "idempotency-key-reused", "store-unavailable")
"""The commonest problems of a submission."""


def of_ingest() -> None:
    """What ingest counts of no type."""
    for slug in REFUSALS:
        metrics.SUBMITTED.labels(labels.UNKNOWN, slug)
    for how in ("single", "mended"):
        metrics.REPLAYED.labels("Permanent", how)


def of_submitted(task_types: Iterable[str]) -> None:
    """What ingest counts of each type."""
    for task_type in task_types:
        for outcome in ("accepted", "repeated"):
            metrics.SUBMITTED.labels(task_type, outcome)


def of_reports() -> None:
    """What a webhook counts."""
    for status in (*(each.value for each in DeliveryStatus), "repeated", "unknown", "unmatched", "malformed"):
        metrics.REPORTS.labels(status)


def of_first_reports(task_types: Iterable[str]) -> None:
    """What a webhook counts of each type."""
    for task_type in task_types:
        for state in State:
            metrics.FIRST_REPORTS.labels(task_type, state.value)


def of_adopted(task_types: Iterable[str]) -> None:
    """What everybody counts of each type who adopts tasks of other producers."""
    for task_type in task_types:
        for outcome in ("adopted", "repeated", "poison"):
            metrics.ADOPTED.labels(task_type, outcome)


def of_leader(task_types: Iterable[str]) -> None:
    """What the leader counts of each type."""
    for task_type in task_types:
        metrics.ATTEMPTS.labels(task_type, "expired")
        metrics.REPEATS.labels(task_type)
        metrics.REQUEUED.labels(task_type)
        for state in ("scheduled", "uncertain"):
            metrics.LEASES_SWEPT.labels(task_type, state)


def of_publisher() -> None:
    """What everybody counts who sends records."""
    for outcome in ("published", "Timeout", "KafkaUnavailable", "UnknownTopic", "TooLarge"):
        metrics.PUBLISHED.labels(outcome)


def of_poison() -> None:
    """What everybody counts who takes records of others."""
    for error_class in labels.RECORD_ERRORS:
        metrics.POISON.labels(error_class)


def of_dead_letters() -> None:
    """What the dlq-sink counts."""
    for error_class in (*labels.TASK_ERRORS, *labels.RECORD_ERRORS):
        metrics.DEAD_LETTERS.labels(error_class)


def of_channel(channel: str) -> None:
    """What notify counts of a channel."""
    for outcome in ("accepted", "repeated", *labels.CALLED[1:-1]):
        metrics.NOTIFICATIONS.labels(channel, outcome)


def of_provider(provider: str) -> None:
    """What is counted of a provider's calls: of one of an application's own, if its client tells of them."""
    for outcome in labels.CALLED:
        metrics.PROVIDER_REQUESTS.labels(provider, outcome)
    metrics.PROVIDER_SECONDS.labels(provider)
    if provider in labels.SERVERS:
        metrics.OPENED.labels(provider)
