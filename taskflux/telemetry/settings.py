"""Settings of logs, metrics and traces."""

from __future__ import annotations

import os
import re
import ssl
from collections.abc import Callable, Mapping
from importlib.metadata import entry_points
from importlib.util import find_spec
from typing import Annotated, Final, Literal
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field, SecretStr, field_validator

LEVELS: Final = ("DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL")
_LOGGER: Final = re.compile(r"[A-Za-z_]\w*(\.\w+)*")


class LogSettings(BaseModel):
    """Logs."""

    model_config = ConfigDict(extra="forbid")

    level: Annotated[Literal["DEBUG", "INFO", "WARNING", "ERROR"], Field(description="lowest level that is logged")] = (
        "INFO"
    )
    levels: Annotated[
        dict[str, str],
        Field(
            description='lowest levels of single loggers and those below them, as JSON: `{"taskflux.stream": "DEBUG",'
            ' "taskflux.http.requests": "WARNING"}`; libraries below DEBUG may log what they carry'
        ),
    ] = Field(default_factory=dict)
    format: Annotated[
        Literal["json", "text"] | None,
        Field(description="`json` for machines, `text` for people; unset: text on a terminal, else JSON"),
    ] = None
    outcomes: Annotated[
        int,
        Field(
            ge=0,
            description="lines per second about outcomes of attempts, and as many about requests; those that need"
            " attention come on top",
        ),
    ] = 50
    reasons: Annotated[
        bool,
        Field(
            description="log lines of outcomes contain the reason, without what looks like personal data"
            " (docs/observability.md); false leaves it out"
        ),
    ] = True

    @field_validator("levels")
    @classmethod
    def _known(cls, levels: dict[str, str]) -> dict[str, str]:
        for name, level in levels.items():
            if level not in LEVELS:
                raise ValueError(f"{level!r}, for {name!r}, is not a level: use one of {', '.join(LEVELS)}")
            if not _LOGGER.fullmatch(name):
                raise ValueError(f"{name!r} is not the name of a logger, such as taskflux.stream")
            if name.partition(".")[0] == "taskflux" and not _is_module(name):
                raise ValueError(f"there is no logger {name!r}: they are named after modules, such as taskflux.stream")
        return levels


class MetricsSettings(BaseModel):
    """Metrics."""

    model_config = ConfigDict(extra="forbid")

    enabled: Annotated[bool, Field(description="false turns all counting off; `/metrics` answers 404")] = True


class OtelSettings(BaseModel):
    """Traces. OpenTelemetry's own variables work, too (docs/observability.md); these take precedence."""

    model_config = ConfigDict(extra="forbid")

    endpoint: Annotated[
        str | None,
        Field(
            description="base URL of an OTLP receiver that speaks HTTP, such as `http://collector:4318`; unset: no"
            " spans are recorded"
        ),
    ] = None
    headers: Annotated[
        dict[str, SecretStr], Field(description='headers for the receiver, as JSON: `{"authorization": "Bearer …"}`')
    ] = Field(default_factory=dict)
    sample_ratio: Annotated[
        float,
        Field(
            ge=0,
            le=1,
            description="share of requests whose tasks are traced, unless the caller's `traceparent` decides",
        ),
    ] = 0.1
    service_name: Annotated[
        str | None, Field(min_length=1, description="name of this process; unset: `taskflux-` and the handler's name")
    ] = None

    @field_validator("endpoint")
    @classmethod
    def _base_url(cls, endpoint: str | None) -> str | None:
        if not endpoint:
            return None
        parts = urlsplit(endpoint)
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment:
            raise ValueError("must be a base URL, such as http://collector:4318")
        return endpoint

    @property
    def traces_url(self) -> str:
        """Where spans are sent."""
        whole = os.environ.get("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
        if self.endpoint is None and whole:
            return whole
        base = self.endpoint or os.environ.get("OTEL_EXPORTER_OTLP_ENDPOINT") or "http://localhost:4318"
        base = base.rstrip("/")
        return base if base.endswith("/v1/traces") else f"{base}/v1/traces"

    @property
    def wanted(self) -> bool:
        """Whether spans are recorded: a receiver is named, and they are not switched off."""
        exporter = _value("OTEL_TRACES_EXPORTER")
        if _value("OTEL_SDK_DISABLED") == "true" or exporter == "none":
            return False
        named = any(_value(f"{prefix}ENDPOINT") for prefix in _OTLP)
        return self.endpoint is not None or exporter == "otlp" or named


def _is_module(name: str) -> bool:
    try:
        return find_spec(name) is not None
    except ModuleNotFoundError:  # a package above it
        return False


# OpenTelemetry's own variables ----------------------------------------------------------------------------------------

_OTLP: Final = ("OTEL_EXPORTER_OTLP_", "OTEL_EXPORTER_OTLP_TRACES_")
_SAMPLERS: Final = (
    "always_on", "always_off", "traceidratio", "parentbased_always_on", "parentbased_always_off",
    "parentbased_traceidratio",
)  # fmt: skip
_KUBERNETES: Final = re.compile(r"_SERVICE_(HOST|PORT)(_|$)|_PORT_\d+_(TCP|UDP|SCTP)(_|$)")
"""Ends of variables that Kubernetes sets for a service whose name begins so, such as `otel-collector`."""


def _value(name: str) -> str:
    """The value of one of OpenTelemetry's variables; empty is unset."""
    return os.environ.get(name, "").strip().lower()


def wrong_otel_variables() -> list[str]:
    """What is wrong with OpenTelemetry's own variables, one sentence each."""
    if _value("OTEL_SDK_DISABLED") == "true":
        return []
    complaints = []
    for name, value in sorted(os.environ.items()):
        if not name.startswith("OTEL_") or not value.strip():
            continue
        if _KUBERNETES.search(name) or value.startswith(("tcp://", "udp://", "sctp://")):
            continue
        check = _CHECKS.get(name)
        if check is None:
            complaints.append(f"{name} is not supported: unset it; docs/observability.md lists the variables that are")
        elif complaint := check(value.strip()):
            complaints.append(f"{name}: {complaint}")
    return complaints + ([] if complaints else _wrong_together())


def _wrong_together() -> list[str]:
    found = []
    queue, batch = (_value(f"OTEL_BSP_MAX_{what}") for what in ("QUEUE_SIZE", "EXPORT_BATCH_SIZE"))
    if queue and batch and int(batch) > int(queue):
        found.append("OTEL_BSP_MAX_EXPORT_BATCH_SIZE must not be more than OTEL_BSP_MAX_QUEUE_SIZE")
    files = [
        next(filter(None, (os.environ.get(f"{prefix}{name}") for prefix in reversed(_OTLP))), None)
        for name in ("CERTIFICATE", "CLIENT_CERTIFICATE", "CLIENT_KEY")
    ]
    authority, certificate, key = files
    if authority is None and certificate is None:
        return found
    try:
        context = ssl.create_default_context(cafile=authority)
        if certificate is not None:
            context.load_cert_chain(certificate, key)
    except OSError as error:  # an SSLError is one, too
        paths = ", ".join(path for path in files if path is not None)
        found.append(f"OTEL_EXPORTER_OTLP_CERTIFICATE or its client certificate ({paths}) cannot be used: {error}")
    return found


def _one_of(*values: str, instead: str = "") -> Callable[[str], str]:
    return lambda value: "" if value.lower() in values else f"{instead}set it to {' or '.join(values)}"


def _number(least: float, most: float = float("inf"), kind: type[int] | type[float] = int) -> Callable[[str], str]:
    def check(value: str) -> str:
        try:
            good = least <= kind(value) <= most
        except ValueError:
            good = False
        limits = f"from {least:g} to {most:g}" if most < float("inf") else f"of {least:g} or more"
        return "" if good else f"must be {'a whole number' if kind is int else 'a number'} {limits}"

    return check


def _url(value: str) -> str:
    parts = urlsplit(value)
    return (
        "" if parts.scheme in ("http", "https") and parts.hostname else "must be a URL, such as http://collector:4318"
    )


def _propagators(value: str) -> str:
    known = {"none", *(each.name for each in entry_points(group="opentelemetry_propagator"))}
    unknown = [name for each in value.split(",") if (name := each.strip()) not in known]
    if not unknown:
        return ""
    return f"{unknown[0]!r} is not installed: install its package, or use {', '.join(sorted(known))}"


def _anything(value: str) -> str:
    return ""


_NO_GRPC: Final = "only OTLP over HTTP is supported (the receiver's port 4318 by convention, not 4317): "
_CHECKS: Final[Mapping[str, Callable[[str], str]]] = {
    "OTEL_SDK_DISABLED": _one_of("true", "false"),
    "OTEL_SERVICE_NAME": _anything,
    "OTEL_RESOURCE_ATTRIBUTES": _anything,
    "OTEL_TRACES_SAMPLER": _one_of(*_SAMPLERS),
    "OTEL_TRACES_SAMPLER_ARG": _number(0, 1, float),
    "OTEL_TRACES_EXPORTER": _one_of("otlp", "none"),
    # Often set for everything in a cluster; metrics are scraped and logs are written regardless.
    "OTEL_METRICS_EXPORTER": _one_of("none", instead="metrics are at /metrics for Prometheus: unset it, or "),
    "OTEL_LOGS_EXPORTER": _one_of("none", instead="logs are written to standard error: unset it, or "),
    "OTEL_PROPAGATORS": _propagators,
    **dict.fromkeys(
        (
            f"OTEL_BSP_{each}"
            for each in ("SCHEDULE_DELAY", "EXPORT_TIMEOUT", "MAX_QUEUE_SIZE", "MAX_EXPORT_BATCH_SIZE")
        ),
        _number(1),
    ),
    **dict.fromkeys(
        (
            "OTEL_ATTRIBUTE_COUNT_LIMIT",
            "OTEL_ATTRIBUTE_VALUE_LENGTH_LIMIT",
            "OTEL_EVENT_ATTRIBUTE_COUNT_LIMIT",
            "OTEL_LINK_ATTRIBUTE_COUNT_LIMIT",
            "OTEL_SPAN_ATTRIBUTE_COUNT_LIMIT",
            "OTEL_SPAN_ATTRIBUTE_VALUE_LENGTH_LIMIT",
            "OTEL_SPAN_EVENT_COUNT_LIMIT",
            "OTEL_SPAN_LINK_COUNT_LIMIT",
        ),
        _number(0),
    ),
    **{
        f"{prefix}{name}": check
        for prefix in _OTLP
        for name, check in {
            "ENDPOINT": _url,
            "HEADERS": _anything,
            "TIMEOUT": _number(0.001, kind=float),
            "COMPRESSION": _one_of("none", "gzip", "deflate"),
            "PROTOCOL": _one_of("http/protobuf", instead=_NO_GRPC),
            "CERTIFICATE": _anything,
            "CLIENT_CERTIFICATE": _anything,
            "CLIENT_KEY": _anything,
        }.items()
    },
}
