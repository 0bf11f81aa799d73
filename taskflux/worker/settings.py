"""Every setting, from the environment: `TASKFLUX_<SECTION>__<NAME>`."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Mapping, Sequence
from difflib import get_close_matches
from functools import cache
from typing import Annotated, Any, Final, Literal, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, SecretStr, ValidationError, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict, SettingsError

from taskflux import secrets
from taskflux.endpoints import DSN_FORM, SERVERS_FORM, check_authority, check_certificate
from taskflux.providers.provider import NotifySettings
from taskflux.store.settings import PostgresSettings, RedisSettings
from taskflux.stream.settings import KafkaSettings
from taskflux.stream.topics import check_topic
from taskflux.tasks.bounds import MOST_BYTES
from taskflux.tasks.decision import LOSSES_ALONE
from taskflux.telemetry.settings import LogSettings, MetricsSettings, OtelSettings, wrong_otel_variables

S = TypeVar("S", bound=BaseModel)

# Compose and Helm pass a variable without a value as an empty one.
_READ: Final = SettingsConfigDict(env_nested_delimiter="__", env_ignore_empty=True, extra="ignore")


class WrongSettings(Exception):
    """The environment contradicts itself or lacks something; each line names a variable and says what to do."""


class HttpSettings(BaseModel):
    """The HTTP server of this process: the API of ingest, and every handler's probes and metrics."""

    model_config = ConfigDict(extra="forbid")

    host: Annotated[str, Field(description="address to listen on")] = "0.0.0.0"
    port: Annotated[int, Field(ge=0, le=65535, description="port to listen on; 0: any free one")] = 8080
    management_port: Annotated[
        int | None,
        Field(
            ge=0,
            le=65535,
            description="port for the probes and the metrics, apart from the API's, which then has no `/metrics`; 0:"
            " any free one. Unset: `port`",
        ),
    ] = None
    allowed_hosts: Annotated[
        str,
        Field(
            description="comma-separated host names that this process answers to; a request with another Host is"
            " refused; IP addresses are always accepted. Unset: any name"
        ),
    ] = ""
    max_body_bytes: Annotated[int, Field(ge=1024, description="largest request body, including that of a batch")] = (
        MOST_BYTES
    )
    bytes_in_flight: Annotated[
        int,
        Field(
            ge=1024,
            description="bytes of bodies, and of the documents in them, that all requests of a process may hold"
            " together; beyond it, requests get 503. The memory limit follows from it",
        ),
    ] = 64 * 1024 * 1024
    max_head_bytes: Annotated[
        int, Field(ge=1024, le=1024 * 1024, description="largest head of a request: its first line and all headers")
    ] = 32 * 1024
    max_connections: Annotated[
        int,
        Field(
            ge=1,
            description="open connections to ingest and notify; beyond that, the connections that have been idle"
            " longest are closed",
        ),
    ] = 1000
    head_seconds: Annotated[float, Field(gt=0, description="seconds that the head of a request may take to arrive")] = (
        10.0
    )
    idle_seconds: Annotated[
        float,
        Field(
            gt=0,
            description="seconds that ingest and notify keep an idle connection open; longer than load balancers keep"
            " theirs (60 s), which would otherwise send requests into connections that are being closed",
        ),
    ] = 75.0
    request_seconds: Annotated[
        float,
        Field(
            gt=0,
            description="seconds that a request to ingest or notify may take to arrive and to start all its work; items"
            " of a batch that have not started by then get 503",
        ),
    ] = 60.0
    linger_seconds: Annotated[
        float,
        Field(
            ge=0,
            description="seconds after SIGTERM that ingest and notify still accept requests: load balancers learn late"
            " that they should send none",
        ),
    ] = 0.0

    @model_validator(mode="after")
    def _ports_differ(self) -> HttpSettings:
        if self.port and self.port == self.management_port:
            raise ValueError("management_port is the same as port: set another, or leave it unset")
        return self


class AuthSettings(BaseModel):
    """Who may call the API of ingest and notify."""

    model_config = ConfigDict(extra="forbid", hide_input_in_errors=True)

    mode: Annotated[
        Literal["required", "optional", "off"],
        Field(
            description="whether a call needs a key; with `optional`, a call without one may do everything, as before"
            " there were keys, until all clients have theirs; with `off`, keys are not looked at"
        ),
    ] = "required"
    bootstrap_key: Annotated[
        SecretStr | None,
        Field(
            min_length=32,
            description="a key that may do everything in the tenant `default`, from a Secret: where nobody can run"
            " `taskflux keys create`; 32 characters or more, `openssl rand -hex 32` makes one",
        ),
    ] = None


class WorkerSettings(BaseModel):
    """How a worker runs its tasks, renews its lease and drains."""

    model_config = ConfigDict(extra="forbid")

    concurrency: Annotated[
        int | None, Field(ge=1, description="attempts that run at once; unset: what the handler declares")
    ] = None
    drain_seconds: Annotated[
        float, Field(ge=0, description="seconds that running attempts may take after SIGTERM before they are cut off")
    ] = 25.0
    lease_seconds: Annotated[
        float, Field(ge=1, description="seconds without a beat after which a worker's claims are free")
    ] = 30.0
    beat_seconds: Annotated[float, Field(gt=0, description="seconds between two beats")] = 5.0
    origin: Annotated[str | None, Field(description="names the supervisor that may end this worker's lease")] = None
    image: Annotated[
        str | None,
        Field(
            description="the image, or another name of the code, that this process runs: groups of dead letters show"
            " what changed before they began. The chart sets it; unset: TaskFlux's version"
        ),
    ] = None


class RelaySettings(BaseModel):
    """How the relay publishes the outbox and recovers lost records and leases."""

    model_config = ConfigDict(extra="forbid")

    grace: Annotated[
        float,
        Field(
            gt=0,
            description="seconds that the process which promised a publish has for it, before the relay repeats it;"
            " longer than the producer's deadline",
        ),
    ] = 15.0
    max_wait: Annotated[float, Field(gt=0, description="seconds that the relay sleeps, at most")] = 0.5
    batch: Annotated[int, Field(ge=1, le=10_000, description="tasks in one statement, at most")] = 500
    max_unclaimed: Annotated[
        int, Field(ge=1, description="unclaimed records of a type in Kafka at which the relay stops publishing")
    ] = 10_000
    audit_seconds: Annotated[float, Field(gt=0, description="seconds between two audits")] = 10.0
    measure_seconds: Annotated[
        float, Field(gt=0, description="seconds between two measurements of depth, age and lag, at least")
    ] = 5.0
    requeue_rate: Annotated[float, Field(gt=0, description="lost tasks that are published again per second")] = 2000.0
    losses_alone: Annotated[
        int,
        Field(ge=1, description="a task is dead once it has ended its worker this many times while it ran alone"),
    ] = LOSSES_ALONE
    leader_seconds: Annotated[float, Field(gt=1, description="seconds after which a silent leader is replaced")] = 10.0


class ScalerSettings(BaseModel):
    """The push scaler, by which the relay tells KEDA how many pods each handler needs (gRPC)."""

    model_config = ConfigDict(extra="forbid")

    port: Annotated[
        int | None,
        Field(ge=0, le=65535, description="port that the relay serves KEDA on; 0: any free one; unset: it does not"),
    ] = None
    ahead_seconds: Annotated[
        float,
        Field(ge=0, le=600, description="seconds before a scheduled task is due that its handler is woken"),
    ] = 3.0
    tls_cert_file: Annotated[str | None, Field(description="PEM certificate of the scaler; unset: no TLS")] = None
    tls_key_file: Annotated[str | None, Field(description="PEM key of the certificate")] = None
    tls_client_ca_file: Annotated[
        Annotated[str, AfterValidator(check_authority)] | None,
        Field(description="PEM file of the CA whose certificate KEDA must have; unset: it needs none"),
    ] = None

    @model_validator(mode="after")
    def _is_consistent(self) -> ScalerSettings:
        if bool(self.tls_cert_file) != bool(self.tls_key_file):
            raise ValueError("tls_cert_file and tls_key_file belong together: set both or neither")
        if self.tls_client_ca_file and not self.tls_cert_file:
            raise ValueError("tls_client_ca_file is set, but tls_cert_file is not: set it and tls_key_file")
        if self.tls_cert_file and self.tls_key_file:
            check_certificate(self.tls_cert_file, self.tls_key_file, "tls_cert_file and tls_key_file: ")
        return self


class RouterSettings(BaseModel):
    """The router, which registers other producers' tasks from one topic of mixed types."""

    model_config = ConfigDict(extra="forbid")

    topic: Annotated[
        Annotated[str, AfterValidator(check_topic)] | None, Field(description="the name of the topic in Kafka")
    ] = None


class Settings(BaseSettings):
    """All sections that are not a provider's own."""

    model_config = SettingsConfigDict(env_prefix="TASKFLUX_", **_READ)

    postgres: PostgresSettings = Field(default_factory=PostgresSettings)
    kafka: KafkaSettings = Field(default_factory=KafkaSettings)
    redis: RedisSettings = Field(default_factory=RedisSettings)
    http: HttpSettings = Field(default_factory=HttpSettings)
    auth: AuthSettings = Field(default_factory=AuthSettings)
    worker: WorkerSettings = Field(default_factory=WorkerSettings)
    relay: RelaySettings = Field(default_factory=RelaySettings)
    scaler: ScalerSettings = Field(default_factory=ScalerSettings)
    router: RouterSettings = Field(default_factory=RouterSettings)
    notify: NotifySettings = Field(default_factory=NotifySettings)
    log: LogSettings = Field(default_factory=LogSettings)
    metrics: MetricsSettings = Field(default_factory=MetricsSettings)
    otel: OtelSettings = Field(default_factory=OtelSettings)


@cache
def _provider_model(name: str, section: type[BaseModel]) -> type[BaseSettings]:
    """A settings class that reads `section` from `TASKFLUX_<NAME>__`."""
    namespace: dict[str, Any] = {
        "__annotations__": {"value": section},
        "value": Field(default_factory=section, validation_alias=f"taskflux_{name}"),
        "model_config": SettingsConfigDict(**_READ),
        "__module__": __name__,
    }
    return type(f"{section.__name__}FromEnvironment", (BaseSettings,), namespace)


def load_provider(name: str, section: type[S]) -> S:
    """A provider's settings, from `TASKFLUX_<NAME>__…`; `renew` renews them.

    Raises:
        WrongSettings: naming each variable.
    """
    return _kept(lambda: _load_provider(name, section))


def _load_provider(name: str, section: type[S]) -> S:
    try:
        value: S = _provider_model(name, section)().value  # type: ignore[attr-defined]
    except (ValidationError, SettingsError) as error:
        raise WrongSettings(_sentences(error, {name: section}, name)) from None
    if complaints := [*_one_underscore(name, section), *_line_breaks(name)]:
        raise WrongSettings("\n".join(complaints))
    return value


def load(*needs: str) -> Settings:
    """The settings of this process; `needs` names the servers that it needs (postgres, kafka). `renew` renews them.

    Raises:
        WrongSettings: naming each variable that is wrong, missing, or at odds with another.
    """
    return _kept(lambda: _load(needs))


_renewable: Final[list[tuple[Callable[[], BaseModel], BaseModel]]] = []
"""How each was loaded, and what its users hold; empty without files of secrets."""


def _kept(load_it: Callable[[], S]) -> S:
    found = load_it()
    if os.environ.get(secrets.DIRECTORY):
        _renewable.append((load_it, found))
    return found


def renew() -> Sequence[str]:
    """Read the files of secrets again, and renew the settings that were loaded, in place; the variables that changed.

    Who opens a connection reads them then; connections that are open stay.

    Raises:
        Unreadable, WrongSettings: nothing has changed.
    """
    changed = secrets.read()
    if not changed:
        return ()
    try:
        fresh = [load_it() for load_it, _ in _renewable]
    except WrongSettings:
        secrets.undo(changed)
        raise
    for (_, held), new in zip(_renewable, fresh, strict=True):
        _take_over(held, new)
    return sorted(changed)


def _take_over(held: BaseModel, new: BaseModel) -> None:
    for name in type(held).model_fields:
        before, after = getattr(held, name), getattr(new, name)
        if isinstance(before, BaseModel) and isinstance(after, BaseModel):
            _take_over(before, after)
        elif before != after:
            setattr(held, name, after)


def _load(needs: tuple[str, ...]) -> Settings:
    sections = {
        name: field.annotation for name, field in Settings.model_fields.items() if isinstance(field.annotation, type)
    }
    try:
        settings = Settings()
    except (ValidationError, SettingsError) as error:
        raise WrongSettings(_sentences(error, sections)) from None
    complaints = [complaint for section in sections.items() for complaint in _one_underscore(*section)]
    complaints += [complaint for section in sections for complaint in _line_breaks(section)]
    complaints += [*_missing(settings, needs), *_contradictions(settings), *wrong_otel_variables()]
    if complaints:
        raise WrongSettings("\n".join(complaints))
    return settings


def _missing(settings: Settings, needs: tuple[str, ...]) -> list[str]:
    missing = []
    if "postgres" in needs and not settings.postgres.dsn.get_secret_value():
        missing.append(f"TASKFLUX_POSTGRES__DSN is not set: use {DSN_FORM}{_resembling('POSTGRES')}")
    if "kafka" in needs and not settings.kafka.bootstrap_servers:
        missing.append(f"TASKFLUX_KAFKA__BOOTSTRAP_SERVERS is not set: use {SERVERS_FORM}{_resembling('KAFKA')}")
    return missing


def _one_underscore(section: str, model: type[BaseModel]) -> list[str]:
    """Variables that would not be read, like TASKFLUX_SMTP_HOST.

    Kubernetes makes some of this form for its services (TASKFLUX_HTTP_PORT=tcp://…): those are left alone.
    """
    found = []
    for field in model.model_fields:
        wrong, right = f"TASKFLUX_{section}_{field}".upper(), f"TASKFLUX_{section}__{field}".upper()
        found += [
            f"{name} is not read: two underscores follow the section, {right}"
            for name, value in os.environ.items()
            if name.upper() == wrong and value and not value.startswith(("tcp://", "udp://", "sctp://"))
        ]
    return found


def _line_breaks(section: str) -> list[str]:
    """Values that end with a line break, such as files or Secrets written by `echo`.

    A value of several lines, such as a PEM key, may end with one.
    """
    return [
        f"{name} ends with a line break: write the file or the Secret without one, with printf or echo -n"
        for name, value in os.environ.items()
        if name.upper().startswith(f"TASKFLUX_{section}__".upper())
        and value.endswith(("\n", "\r"))
        and not value.lstrip().startswith(("{", "["))
        and "\n" not in value.strip()
    ]


def _resembling(section: str) -> str:
    """A hint at the first variable of a section with almost this name, if any is set."""
    others = {
        name.upper().removeprefix("TASKFLUX_").split("__")[0]: name
        for name in sorted(os.environ, reverse=True)
        if name.upper().startswith("TASKFLUX_") and "__" in name
    }
    close = get_close_matches(section, others.keys() - {section}, n=1, cutoff=0.75)
    return f" (was it meant by {others[close[0]]}?)" if close else ""


def _contradictions(settings: Settings) -> list[str]:
    found = []
    if settings.relay.grace <= settings.kafka.produce_timeout:
        found.append(
            f"TASKFLUX_RELAY__GRACE ({settings.relay.grace} s) must be longer than TASKFLUX_KAFKA__PRODUCE_TIMEOUT"
            f" ({settings.kafka.produce_timeout} s): a task would be published again while its record is under way"
        )
    if settings.http.bytes_in_flight < 3 * settings.http.max_body_bytes:
        found.append(
            f"TASKFLUX_HTTP__BYTES_IN_FLIGHT ({settings.http.bytes_in_flight:,}) must be at least three times"
            f" TASKFLUX_HTTP__MAX_BODY_BYTES ({settings.http.max_body_bytes:,}): a large body would always be refused"
        )
    if settings.worker.lease_seconds < 3 * settings.worker.beat_seconds:
        found.append(
            f"TASKFLUX_WORKER__LEASE_SECONDS ({settings.worker.lease_seconds} s) must be at least three times"
            f" TASKFLUX_WORKER__BEAT_SECONDS ({settings.worker.beat_seconds} s): one late beat would lose the claims"
        )
    if settings.postgres.statement_timeout >= settings.worker.lease_seconds:
        found.append(
            f"TASKFLUX_POSTGRES__STATEMENT_TIMEOUT ({settings.postgres.statement_timeout} s) must be shorter than"
            f" TASKFLUX_WORKER__LEASE_SECONDS ({settings.worker.lease_seconds} s): a beat could outlast its lease"
        )
    return found


def _sentences(
    error: ValidationError | SettingsError, sections: Mapping[str, type[BaseModel]], provider: str | None = None
) -> str:
    if isinstance(error, SettingsError):
        field = re.search(r'field "(\w+)"', str(error))
        section = (provider or (field[1] if field else "<section>")).upper()
        return f"TASKFLUX_{section}: it is not JSON; set it as JSON, or field by field as TASKFLUX_{section}__<NAME>"
    lines = []
    for each in error.errors(include_url=False, include_input=False, include_context=False):
        location = [str(part) for part in each["loc"]]
        if provider and location and location[0].lower() in ("value", f"taskflux_{provider}"):
            location = [provider, *location[1:]]
        name = "TASKFLUX_" + "__".join(location).upper()
        message = each["msg"].removeprefix("Value error, ")
        if each["type"] == "extra_forbidden":
            message = "there is no such setting: correct its name or unset it"
        if len(location) == 1 and (section := sections.get(location[0])):
            # Several settings of the section contradict each other: the sentence names them.
            lines.append(_by_variable(message, name, section))
        else:
            lines.append(f"{name}: {message}")
    return "\n".join(lines)


def _by_variable(message: str, prefix: str, section: type[BaseModel]) -> str:
    """`message` with the names of a section's settings as variables."""
    named = re.sub(
        r"\b[a-z0-9_]+\b",
        lambda word: f"{prefix}__{word[0].upper()}" if word[0] in section.model_fields else word[0],
        message,
    )
    return named if named.startswith(prefix) else f"{prefix}: {named}"


def masked(model: BaseModel) -> dict[str, Any]:
    """The effective settings for a person to read; secrets show as stars, a DSN's password too."""
    document: dict[str, Any] = json.loads(model.model_dump_json())
    return document
