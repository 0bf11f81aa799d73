"""The doctor over real servers."""

from __future__ import annotations

from typing import Any

from taskflux.local.ports import free_port
from taskflux.local.servers import PostgresServer
from taskflux.store.database import Database
from taskflux.store.settings import PostgresSettings
from taskflux.store.upkeep import Checkup, pooling
from tests.integration.cli.command import Command, Outcome
from tests.integration.providers.smtp_server import server_that_says


def levels(outcome: Outcome) -> dict[tuple[str, str], str]:
    return {(found["subject"], found["check"]): found["level"] for found in outcome.json["findings"]}


def problems(outcome: Outcome) -> list[dict[str, Any]]:
    return [found for found in outcome.json["findings"] if found["level"] == "problem"]


async def test_a_healthy_system_has_no_problem(taskflux: Command) -> None:
    outcome = await taskflux("doctor", "--json")
    assert problems(outcome) == []
    assert (outcome.status, outcome.json["healthy"]) == (0, True)
    found = levels(outcome)
    for check in (
        ("PostgreSQL", "schema"),
        ("PostgreSQL", "clock"),
        ("PostgreSQL", "partitions"),
        ("PostgreSQL", "pooler"),
        ("Kafka", "topics"),
        ("Kafka", "dead-letter sink"),
        ("Redis", "reachable"),
        ("what runs", "relay"),
        ("what runs", "workers' beats"),
    ):
        assert found[check] == "ok", check


async def test_every_finding_that_is_not_in_order_says_what_to_do(taskflux: Command) -> None:
    outcome = await taskflux("doctor", "--json", TASKFLUX_KAFKA__PARTITIONS="50", TASKFLUX_POSTGRES__POOLER="true")
    wrong = [found for found in outcome.json["findings"] if found["level"] != "ok"]
    assert {("Kafka", "partitions"), ("settings", "migrations")} <= {
        (found["subject"], found["check"]) for found in wrong
    }
    assert all(found["do"] for found in wrong)


async def test_an_unreachable_server_is_one_problem_and_the_rest_is_checked(taskflux: Command) -> None:
    dsn = f"postgresql://x@127.0.0.1:{free_port()}/x"
    outcome = await taskflux("doctor", "--json", TASKFLUX_POSTGRES__DSN=dsn)
    assert outcome.status == 1
    assert [(found["subject"], found["check"]) for found in problems(outcome)] == [("PostgreSQL", "reachable")]
    assert levels(outcome)["Kafka", "reachable"] == "ok"


async def test_wrong_settings_are_told_by_their_variable(taskflux: Command) -> None:
    outcome = await taskflux("doctor", TASKFLUX_KAFKA__PARTITIONS="many", TASKFLUX_SMTP__TLS="perhaps")
    assert outcome.status == 1
    assert "TASKFLUX_KAFKA__PARTITIONS" in outcome.out


async def test_the_password_is_tried_at_the_mail_server(taskflux: Command) -> None:
    outcome = await taskflux(
        "doctor", "--json", TASKFLUX_SMTP__HOST="127.0.0.1", TASKFLUX_SMTP__PORT=str(free_port()),
        TASKFLUX_SMTP__TLS="none", TASKFLUX_SMTP__SENDER="us@example.org",
    )  # fmt: skip
    assert [(found["subject"], found["check"]) for found in problems(outcome)] == [("SMTP", "server")]


async def test_a_mail_server_that_offers_auth_warns_where_no_username_is_set(taskflux: Command) -> None:
    ehlo = b"250-mail.test\r\n250 AUTH PLAIN LOGIN\r\n"
    async with server_that_says(ehlo=ehlo) as port:
        outcome = await taskflux(
            "doctor", "--json", TASKFLUX_SMTP__HOST="127.0.0.1", TASKFLUX_SMTP__PORT=str(port),
            TASKFLUX_SMTP__TLS="none", TASKFLUX_SMTP__SENDER="us@example.org",
        )  # fmt: skip
    found = levels(outcome)
    assert (found["SMTP", "server"], found["SMTP", "AUTH"]) == ("ok", "warning")


async def test_an_empty_database_is_told_to_be_migrated(taskflux: Command, postgres: PostgresServer) -> None:
    outcome = await taskflux("doctor", "--json", TASKFLUX_POSTGRES__DSN=postgres.dsn, TASKFLUX_POSTGRES__POOLER="false")
    assert levels(outcome)["PostgreSQL", "schema"] == "problem"
    assert "taskflux migrate" in next(found["do"] for found in problems(outcome) if found["check"] == "schema")


async def test_a_pooler_is_seen_where_there_is_one(database: Database, postgres: PostgresServer) -> None:
    settings: PostgresSettings = database._settings
    assert (await pooling(settings)).between is settings.pooler
    direct = PostgresSettings.model_validate({"dsn": postgres.dsn})
    assert not (await pooling(direct)).between


async def test_the_clock_of_this_very_machine_is_the_same(database: Database) -> None:
    ahead, error = await Checkup(database).clock_difference()
    assert abs(ahead) <= error + 0.05


async def test_a_push_scaler_that_does_not_listen_is_told_with_what_to_do(taskflux: Command) -> None:
    outcome = await taskflux("doctor", "--json", TASKFLUX_SCALER__PORT=str(free_port()))
    (found,) = [each for each in outcome.json["findings"] if each["subject"] == "push scaler"]
    assert (found["check"], found["level"]) == ("listens", "warning")
    assert "TASKFLUX_SCALER__PORT" in found["do"]
    assert levels(await taskflux("doctor", "--json"))["push scaler", "not served"] == "ok"
