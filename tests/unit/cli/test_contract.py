from __future__ import annotations

from pathlib import Path

import pytest

from taskflux.cli.contract import (
    DRAIN_SECONDS,
    LIVENESS,
    METRICS,
    PORT,
    READINESS,
    Deployment,
    Reads,
    deployment,
    deployments,
    variables,
)
from taskflux.handlers.process_email import process_email
from taskflux.http.probes import probe_routes
from taskflux.stream.settings import KafkaSettings
from taskflux.worker.settings import RouterSettings, Settings


@pytest.fixture
def settings() -> Settings:
    return Settings(kafka=KafkaSettings(topic_prefix="shop-"), router=RouterSettings(topic="task-topic"))


def test_every_module_of_handlers_is_one_deployment(settings: Settings) -> None:
    modules = {path.stem for path in Path("handlers").glob("*.py")} - {"__init__"}
    assert {each.name.replace("-", "_") for each in deployments(settings)} == modules


def test_a_task_handler_says_what_it_reads_and_how_long_it_may_take(settings: Settings) -> None:
    assert deployment(process_email, settings) == Deployment(
        "process-email",
        needs=("postgres", "kafka"),
        serves_api=False,
        reads=Reads("shop-taskflux.email", "shop-tasks.email"),
        task_type="email",
        provider="smtp",
        timeout=process_email.policy.timeout,
        concurrency=process_email.concurrency,
    )


def test_the_others_say_what_they_need_and_whether_their_lag_counts(settings: Settings) -> None:
    found = {each.name: each for each in deployments(settings)}
    assert found["notify"].needs == ("postgres",)
    assert {name for name, each in found.items() if each.serves_api} == {"ingest", "notify"}
    assert found["dlq-sink"].reads == Reads("shop-taskflux.dlq-sink", "shop-tasks.dlq")
    assert found["router"].reads == Reads("shop-taskflux.router", "task-topic")
    assert {name for name, each in found.items() if each.reads is None} == {"ingest", "relay", "notify"}


def test_the_probes_are_those_that_are_served() -> None:
    async def nothing(accept: str) -> tuple[bytes, str]:
        return b"", ""

    assert [route.path for route in probe_routes(lambda: True, nothing)] == [LIVENESS, READINESS, METRICS]
    assert (PORT, DRAIN_SECONDS) == (8080, 25.0)


def test_every_variable_is_named_once_and_secrets_are_marked() -> None:
    found = {variable.name: variable for variable in variables()}
    assert len(found) == len(variables())
    assert {"TASKFLUX_POSTGRES__DSN", "TASKFLUX_SMTP__HOST", "TASKFLUX_API__URL"} <= found.keys()
    secret = {name for name, variable in found.items() if variable.secret}
    assert secret == {
        "TASKFLUX_POSTGRES__DSN",
        "TASKFLUX_POSTGRES__MIGRATE_DSN",
        "TASKFLUX_KAFKA__SASL_PASSWORD",
        "TASKFLUX_REDIS__URL",
        "TASKFLUX_SMTP__PASSWORD",
        "TASKFLUX_MSG91__AUTH_KEY",
        "TASKFLUX_MSG91__WEBHOOK_SECRET",
        "TASKFLUX_OTEL__HEADERS",
    }
