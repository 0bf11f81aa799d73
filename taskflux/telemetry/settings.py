"""Settings of what a process tells of its work: logs and traces."""

from __future__ import annotations

import re
from importlib.util import find_spec
from typing import Annotated, Final, Literal
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field, SecretStr, field_validator

LEVELS: Final = ("DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL")
_LOGGER: Final = re.compile(r"[A-Za-z_]\w*(\.\w+)*")


class LogSettings(BaseModel):
    """What is logged, and how."""

    model_config = ConfigDict(extra="forbid")

    level: Annotated[Literal["DEBUG", "INFO", "WARNING", "ERROR"], Field(description="least level")] = "INFO"
    levels: Annotated[
        dict[str, str],
        Field(
            description='least levels of single loggers and all below them, as JSON: `{"taskflux.stream": "DEBUG",'
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
            description="lines a second about outcomes of attempts, and as many about requests; those that need"
            " attention come on top",
        ),
    ] = 50

    @field_validator("levels")
    @classmethod
    def _known(cls, levels: dict[str, str]) -> dict[str, str]:
        for name, level in levels.items():
            if level not in LEVELS:
                raise ValueError(f"{level!r}, for {name!r}, is no level: give it one of {', '.join(LEVELS)}")
            if not _LOGGER.fullmatch(name):
                raise ValueError(f"{name!r} is no name of a logger, which looks like taskflux.stream")
            if name.partition(".")[0] == "taskflux" and not _is_module(name):
                raise ValueError(f"there is no logger {name!r}: they are named after modules, such as taskflux.stream")
        return levels


class MetricsSettings(BaseModel):
    """What is counted."""

    model_config = ConfigDict(extra="forbid")

    enabled: Annotated[bool, Field(description="false counts nothing, and `/metrics` answers 404")] = True


class OtelSettings(BaseModel):
    """Traces. `OTEL_RESOURCE_ATTRIBUTES`, `OTEL_SERVICE_NAME` and `OTEL_EXPORTER_OTLP_CERTIFICATE` count, too."""

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
            description="share of requests whose tasks are traced where the caller's `traceparent` does not decide it",
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
        """Where spans go."""
        base = (self.endpoint or "").rstrip("/")
        return base if base.endswith("/v1/traces") else f"{base}/v1/traces"


def _is_module(name: str) -> bool:
    try:
        return find_spec(name) is not None
    except ModuleNotFoundError:  # a module on the way to it
        return False
