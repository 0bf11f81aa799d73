"""The whole document."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from typing import Final

from taskflux.http.answers import to_json
from taskflux.http.openapi import dead_letters, notifications, tasks
from taskflux.http.openapi.dead_letter_schemas import dead_letter_schemas
from taskflux.http.openapi.model import Json, Operation
from taskflux.http.openapi.notifications import notification_name, notification_schema
from taskflux.http.openapi.schemas import problem_schema, task_schemas
from taskflux.version import VERSION

API: Final[Sequence[Operation]] = (
    *tasks.OPERATIONS,
    *dead_letters.OPERATIONS,
    *notifications.WEBHOOKS,
    *tasks.PROBES,
)
"""What ingest serves."""

_DESCRIPTION: Final = """\
Work outside the request: a task is taken over HTTP, kept in PostgreSQL, handed through Kafka to a small handler, \
tried again sensibly, and kept as a dead letter when it cannot be done.

Every error is a problem document (RFC 9457) whose `type` leads to a page that says what it means and what to do. \
Times are RFC 3339 in UTC, ids are UUIDv7, cursors are opaque."""


def api_document(types: Mapping[str, str]) -> Json:
    """The document of ingest; `types` is task type → JSON schema of its payload, as text."""
    schemas = {**task_schemas(types), **dead_letter_schemas()}
    return build("TaskFlux", _DESCRIPTION, API, schemas)


def notify_document(channels: Sequence[str], checks: Sequence[str]) -> Json:
    """The document of the notification service; `checks` are those of its channels that can be checked."""
    operations = [*notifications.notification_operations(channels, checks), *tasks.PROBES]
    schemas = {notification_name(channel): notification_schema(channel) for channel in channels}
    return build("TaskFlux notify", "Mail and SMS, delivered now, answered with the outcome.", operations, schemas)


@lru_cache(maxsize=2)
def api_json(types: tuple[tuple[str, str], ...]) -> bytes:
    """The document of ingest on the wire, for (task type, JSON schema) pairs; put together when they change."""
    return to_json(api_document(dict(types)))


@lru_cache(maxsize=1)
def notify_json(channels: tuple[str, ...], checks: tuple[str, ...]) -> bytes:
    """The document of the notification service on the wire."""
    return to_json(notify_document(channels, checks))


def build(title: str, description: str, operations: Iterable[Operation], schemas: Mapping[str, Json]) -> Json:
    """An OpenAPI 3.1 document of these operations."""
    paths: dict[str, Json] = {}
    tags: dict[str, None] = {}
    for operation in operations:
        paths.setdefault(operation.path, {})[operation.method.lower()] = operation.document()
        tags[operation.tag] = None
    return {
        "openapi": "3.1.0",
        "info": {
            "title": title,
            "version": VERSION,
            "description": description,
            "license": {"name": "MIT", "identifier": "MIT"},
        },
        "servers": [{"url": "/"}],
        "tags": [{"name": tag} for tag in tags],
        "paths": paths,
        "components": {"schemas": {**schemas, "Problem": problem_schema()}},
    }
