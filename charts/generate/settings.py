"""The program's settings as values: `TASKFLUX_KAFKA__TOPIC_PREFIX` is `settings.kafka.topicPrefix`.

Secrets are not among the values, so that none can be set there; neither is what the chart sets itself.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any, Final

from pydantic import BaseModel

from taskflux.cli.reference import sections, variables

SET_BY_THE_CHART: Final = frozenset(
    {
        "http.linger_seconds",  # handlers.<name>.lingerSeconds
        "http.management_port",  # handlers.<name>.managementPort
        "http.port",  # handlers.<name>.port
        "kafka.tls_ca_file",  # secrets.kafka
        "kafka.tls_cert_file",
        "kafka.tls_key_file",
        "postgres.pool_size",  # handlers.<name>.poolSize
        "redis.ca_file",  # secrets.redis
        "scaler.port",  # keda.pushScaler
        "scaler.tls_cert_file",
        "scaler.tls_client_ca_file",
        "scaler.tls_key_file",
        "smtp.access_token_file",  # secrets.smtp
        "smtp.ca_file",
        "worker.drain_seconds",  # handlers.<name>.drainSeconds
        "worker.image",  # handlers.<name>.image
        "worker.origin",  # of `taskflux dev`
    }
)
# An address may carry a user and a password; in values it may not.
WITHOUT_USER: Final = r"^https?://[^\s/?#@]+[^\s?#]*$"
ADDRESSES: Final = frozenset({"msg91.base_url", "notify.url", "otel.endpoint"})


@dataclass(frozen=True, slots=True)
class Setting:
    """One of them: its `name` among values, and the JSON schema of what it may be."""

    section: str
    name: str
    schema: Mapping[str, Any]


def section_names() -> Iterator[tuple[str, str]]:
    """(section, what it is about)."""
    for section, model in sections().items():
        yield section, (model.__doc__ or "").strip().splitlines()[0]


@cache
def settings() -> tuple[Setting, ...]:
    """All that values may set."""
    return tuple(each for section, model in sections().items() for each in _of(section, model))


def _of(section: str, model: type[BaseModel]) -> Iterator[Setting]:
    secret = {each.name for each in variables() if each.secret}
    for field, schema in model.model_json_schema()["properties"].items():
        name = f"{section}.{field}"
        if name in SET_BY_THE_CHART or f"TASKFLUX_{section}__{field}".upper() in secret:
            continue
        if name in ADDRESSES:
            schema = _with_pattern(schema, WITHOUT_USER)
        yield Setting(section, _camel(field), _flat(schema))


def _flat(schema: dict[str, Any]) -> dict[str, Any]:
    """`anyOf` with null as one schema whose type may be null, and no title."""
    choices = schema.pop("anyOf", None)
    schema.pop("title", None)
    if schema.get("default") is None:
        schema.pop("default", None)
    if choices is not None:
        (choice,) = (each for each in choices if each["type"] != "null")
        schema |= {**choice, "type": [choice["type"], "null"]}
    return dict(sorted(schema.items(), key=lambda item: item[0] != "description"))


def _with_pattern(schema: dict[str, Any], pattern: str) -> dict[str, Any]:
    if "anyOf" in schema:
        choices = [each | {"pattern": pattern} if each["type"] == "string" else each for each in schema["anyOf"]]
        return {**schema, "anyOf": choices}
    return {**schema, "pattern": pattern}


def _camel(name: str) -> str:
    return re.sub(r"_([a-z0-9])", lambda match: match[1].upper(), name)
