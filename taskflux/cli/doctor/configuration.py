"""The settings themselves: whether they load, and what they say about each other."""

from __future__ import annotations

from collections.abc import Iterator

from taskflux.cli.doctor.findings import Finding, Subject
from taskflux.cli.loading import built_in_handlers
from taskflux.worker.settings import Settings, WrongSettings, load, load_provider

SETTINGS = Subject("settings")


def examine() -> tuple[Settings | None, list[Finding]]:
    """The settings, as far as they can be read, and what is to be said about them."""
    findings: list[Finding] = []
    settings: Settings | None = None
    try:
        settings = load("postgres", "kafka")
    except WrongSettings as error:
        findings += _wrong(str(error))
        try:
            settings = load()  # what is merely unset does not keep the rest from being looked at
        except WrongSettings:
            return None, findings
    else:
        findings.append(SETTINGS.ok("environment", "every TASKFLUX_… variable is read and none contradicts another"))
    for handler in built_in_handlers():
        if handler.provider is None:
            continue
        try:
            load_provider(handler.provider.name, handler.provider.settings)
        except WrongSettings as error:
            findings += _wrong(str(error))
    findings += judge(settings)
    return settings, findings


def _wrong(sentences: str) -> Iterator[Finding]:
    for sentence in sentences.splitlines():
        name, _, told = sentence.partition(" ")
        yield SETTINGS.problem(name.rstrip(":"), told, f"correct {name.rstrip(':')}: no process starts with it")


def judge(settings: Settings) -> Iterator[Finding]:
    """What is allowed and unwise."""
    postgres, kafka = settings.postgres, settings.kafka
    if postgres.pooler and postgres.migrate_dsn is None:
        yield SETTINGS.warning(
            "migrations",
            "TASKFLUX_POSTGRES__POOLER is true and TASKFLUX_POSTGRES__MIGRATE_DSN is unset",
            "set TASKFLUX_POSTGRES__MIGRATE_DSN to PostgreSQL's own address: migrations do not belong behind a pooler",
        )
    if kafka.security_protocol == "SASL_PLAINTEXT":
        yield SETTINGS.warning(
            "Kafka password", "SASL_PLAINTEXT sends it in the clear", "use SASL_SSL, unless the network is trusted"
        )
    if settings.relay.grace > 60:
        yield SETTINGS.warning(
            "publish grace",
            f"a publish that was lost is repeated only after {settings.relay.grace:.0f} s (TASKFLUX_RELAY__GRACE)",
            "15 s are enough, as long as it is longer than TASKFLUX_KAFKA__PRODUCE_TIMEOUT",
        )
