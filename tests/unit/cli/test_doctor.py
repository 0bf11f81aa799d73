"""What the doctor makes of what it sees: pure."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any
from uuid import UUID

import pytest

from taskflux.cli.doctor import dependencies, judge_settings, kafka, postgres
from taskflux.cli.doctor.findings import Finding, Level, Subject, document
from taskflux.providers.msg91 import Msg91Settings
from taskflux.providers.smtp_session import SmtpSettings
from taskflux.store.settings import PostgresSettings, RedisSettings
from taskflux.store.upkeep import Pooling
from taskflux.stream.cluster import TopicReplicas
from taskflux.stream.positions import PartitionPositions, TopicPositions
from taskflux.stream.settings import KafkaSettings
from taskflux.worker.settings import Settings

SERVER = {
    "version": 180001,
    "version_text": "18.1",
    "read_only": False,
    "autovacuum": True,
    "track_counts": True,
    "fsync": True,
    "synchronous_commit": "on",
    "max_connections": 100,
    "reserved": 3,
}
COSTS = {
    "max_wal_size": 2**30,
    "checkpoint_timeout": 300.0,
    "wal_compression": "off",
    "shared_buffers": "128MB",
    "log_statement": "none",
    "log_min_duration_statement": "-1",
    "commit_delay": 0,
}
QUIET = {
    "timed": 1000,
    "requested": 12,
    "seconds": 86_400.0,
    "wal": 2.0**30,
    "pages": 10_000,
    "wal_seconds": 86_400.0,
    "read": 100_000,
    "hit": 10_000_000,
}
KAFKA = KafkaSettings(partitions=12)
TOPIC = {"cleanup.policy": "delete", "retention.ms": "345600000", "max.message.bytes": "20000000"}
LOG = UUID(int=1)


def worst(findings: Iterable[Finding]) -> dict[str, str]:
    return {finding.check: finding.level.value for finding in findings if finding.level is not Level.OK}


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({}, {}),
        ({"version": 130010}, {"version": "problem"}),
        ({"read_only": True}, {"writable": "problem"}),
        ({"autovacuum": False}, {"autovacuum": "problem"}),
        ({"fsync": False}, {"durability": "problem"}),
        ({"synchronous_commit": "off"}, {"durability": "warning"}),
    ],
)
def test_settings_of_postgresql(change: dict[str, Any], expected: dict[str, str]) -> None:
    assert worst(postgres.judge_server({**SERVER, **change})) == expected


@pytest.mark.parametrize(
    ("settings", "since", "expected"),
    [
        ({}, {}, {}),
        ({}, {"timed": 0, "requested": 0, "seconds": None, "wal": 0.0, "wal_seconds": None, "read": 0, "hit": 0}, {}),
        ({}, {"timed": 3, "requested": 5}, {}),
        ({}, {"timed": 100, "requested": 500}, {"checkpoints": "warning"}),
        ({}, {"wal": 20.0 * 2**30, "pages": 3_000_000}, {"whole pages": "warning"}),
        ({"wal_compression": "lz4"}, {"wal": 20.0 * 2**30, "pages": 3_000_000}, {}),
        ({}, {"read": 4_000_000}, {"cache": "warning"}),
        ({"log_statement": "all"}, {}, {"statement log": "warning"}),
        ({"log_min_duration_statement": "0"}, {}, {"statement log": "warning"}),
        ({"commit_delay": 1000}, {}, {"commit delay": "warning"}),
    ],
)
def test_settings_of_postgresql_that_cost(
    settings: dict[str, Any], since: dict[str, Any], expected: dict[str, str]
) -> None:
    assert worst(postgres.judge_costs({**COSTS, **settings}, {**QUIET, **since})) == expected


@pytest.mark.parametrize(
    ("wal_a_second", "enough"), [(1e6, 2), (10e6, 9), (100e6, 84)], ids=["a little", "much", "very much"]
)
def test_the_doctor_names_a_max_wal_size_that_is_enough(wal_a_second: float, enough: int) -> None:
    since = {
        **QUIET,
        "timed": 1,
        "requested": 100,
        "seconds": 3000.0,
        "wal": wal_a_second * 3000,
        "wal_seconds": 3000.0,
    }
    (found, *_) = postgres.judge_costs(COSTS, since)
    assert "one every 30 s; 100 of 101" in found.told
    assert "max_wal_size (1 GB)" in found.told
    assert found.do.startswith(f"set max_wal_size = {enough}GB")


@pytest.mark.parametrize(
    ("config", "broker", "expected"),
    [
        ({}, {}, {}),
        ({}, None, {}),
        ({"flush.messages": "9223372036854775807", "compression.type": "producer"}, {}, {}),
        ({"flush.messages": "1"}, {}, {"flush": "warning"}),
        ({"flush.ms": "1000"}, {}, {"flush": "warning"}),
        ({"compression.type": "gzip"}, {}, {"compression": "warning"}),
        ({}, {"group.initial.rebalance.delay.ms": "3000"}, {"first rebalance": "warning"}),
        ({}, {"group.initial.rebalance.delay.ms": "0"}, {}),
    ],
)
def test_settings_of_kafka_that_cost(
    config: dict[str, str], broker: dict[str, str] | None, expected: dict[str, str]
) -> None:
    assert worst(kafka.judge_costs({"tasks.email": TOPIC | config}, broker)) == expected


def test_missing_indexes_are_told() -> None:
    assert postgres.judge_indexes(complete=True).level is Level.OK
    assert "taskflux migrate" in postgres.judge_indexes(complete=False).do


@pytest.mark.parametrize(("ahead", "level"), [(0.1, {}), (-6.0, {"clock": "warning"}), (5.5, {})])
def test_a_clock_is_wrong_only_beyond_what_the_measurement_may_be(ahead: float, level: dict[str, str]) -> None:
    assert worst(postgres.judge_clock(ahead, 0.6)) == level


@pytest.mark.parametrize(
    ("processes", "others", "types", "level"),
    [
        (2, 5, 1, {}),
        (2, 5, 5, {"connections": "warning"}),  # 5 types x 12 pods x 2 connections
        (50, 5, 1, {"connections": "problem"}),
        (2, 96, 1, {"connections": "problem"}),
    ],
)
def test_pools_are_held_against_max_connections(processes: int, others: int, types: int, level: dict[str, str]) -> None:
    ours = {f"process-email@pod:{number}": 1 for number in range(processes)}
    settings = Settings(kafka=KAFKA, postgres=PostgresSettings())
    names = [f"type{number}" for number in range(types)]
    assert worst(postgres.judge_connections(SERVER, ours, others, settings, names)) == level


@pytest.mark.parametrize(
    ("between", "transaction", "told_so", "level"),
    [
        (False, False, False, Level.OK),
        (True, True, True, Level.OK),
        (True, True, False, Level.PROBLEM),
        (True, False, False, Level.WARNING),
        (False, False, True, Level.WARNING),
    ],
)
def test_a_pooler_is_as_the_settings_say(between: bool, transaction: bool, told_so: bool, level: Level) -> None:
    assert postgres.judge_pooler(Pooling(between, transaction), told_so).level is level


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({}, {}),
        ({"cleanup.policy": "compact"}, {"cleanup.policy": "problem"}),
        ({"max.message.bytes": "1000"}, {"message size": "problem"}),
    ],
)
def test_settings_of_topics(change: dict[str, str], expected: dict[str, str]) -> None:
    assert worst(kafka.judge_configs({"tasks.email": {**TOPIC, **change}}, KAFKA)) == expected


def test_a_broker_that_tells_nothing_is_a_warning() -> None:
    assert worst(kafka.judge_configs({}, KAFKA)) == {"topic settings": "warning"}
    assert kafka.judge_retention({}, None).level is Level.WARNING


@pytest.mark.parametrize(("minutes", "level"), [("10080", Level.OK), ("5760", Level.WARNING), ("60", Level.WARNING)])
def test_offsets_outlive_records(minutes: str, level: Level) -> None:
    assert kafka.judge_retention({"tasks.email": TOPIC}, {"offsets.retention.minutes": minutes}).level is level


def test_records_that_are_kept_for_ever_outlive_offsets() -> None:
    config = {"tasks.email": {**TOPIC, "retention.ms": "-1"}}
    assert kafka.judge_retention(config, {"offsets.retention.minutes": "10080"}).level is Level.WARNING


@pytest.mark.parametrize(
    ("replicas", "in_sync", "brokers", "least", "expected"),
    [
        (1, 1, 1, "1", {}),
        (1, 1, 3, "1", {"replication": "warning"}),
        (3, 3, 3, "2", {}),
        (3, 2, 3, "2", {"in-sync replicas": "warning"}),
        (3, 1, 3, "2", {"in-sync replicas": "problem"}),
        (3, 3, 3, "3", {"in-sync replicas": "warning"}),
    ],
)
def test_replicas(replicas: int, in_sync: int, brokers: int, least: str, expected: dict[str, str]) -> None:
    found = {"tasks.email": TopicReplicas(12, replicas, in_sync)}
    assert worst(kafka.judge_replicas(found, {"tasks.email": {"min.insync.replicas": least}}, brokers)) == expected


def test_topics_are_there_and_wide_enough() -> None:
    groups = {"tasks.email": "taskflux.email"}
    assert worst(kafka.judge_topics(groups, {}, KAFKA)) == {"topics": "problem"}
    assert worst(kafka.judge_topics(groups, {"tasks.email": TopicReplicas(3, 1, 1)}, KAFKA)) == {
        "partitions": "warning"
    }


@pytest.mark.parametrize(
    ("refused", "asked", "level"),
    [
        (None, True, Level.OK),
        ("ClusterAuthorizationFailed", True, Level.PROBLEM),
        (None, False, Level.WARNING),
        ("the broker does not support it", False, Level.OK),
    ],
)
def test_the_idempotent_producer_is_had_where_it_is_asked_for(refused: str | None, asked: bool, level: Level) -> None:
    assert kafka.judge_idempotence(refused, KafkaSettings(idempotent=asked)).level is level


def at(*commits: int | None, end: int = 10) -> TopicPositions:
    partitions = {number: PartitionPositions(0, end, commit) for number, commit in enumerate(commits)}
    return TopicPositions(LOG, partitions)


def test_a_partition_without_a_commit_is_told_once_its_group_has_begun() -> None:
    assert worst(kafka.judge_offsets({"t": at(None, None, end=0)})) == {}
    assert worst(kafka.judge_offsets({"t": at(3, None)})) == {"group offsets": "warning"}
    assert worst(kafka.judge_offsets({"t": at(3, 4)})) == {}


def test_a_dead_letter_sink_that_stands_still_is_a_problem() -> None:
    assert kafka.judge_sink(at(10), at(10)).level is Level.OK
    assert kafka.judge_sink(at(3), at(5)).level is Level.OK
    assert kafka.judge_sink(at(3), at(3)).level is Level.PROBLEM
    assert kafka.judge_sink(at(None), at(None)).level is Level.PROBLEM


def test_what_runs() -> None:
    assert postgres.judge_leader(None, 10.0).level is Level.PROBLEM
    assert postgres.judge_leader(-3.0, 10.0).level is Level.PROBLEM
    assert postgres.judge_leader(4.0, 10.0).level is Level.OK
    assert postgres.judge_leader(3604.0, 10.0).level is Level.PROBLEM
    assert worst(postgres.judge_workers({"process-email": (0, 0)})) == {}
    assert worst(postgres.judge_workers({"process-email": (1, 2)})) == {"workers' beats": "problem"}
    opened = {"provider": "smtp", "reason": "535", "seconds": 60.0}
    assert worst(postgres.judge_circuits([{**opened, "error_class": "Misconfigured"}])) == {"circuit smtp": "problem"}
    assert worst(postgres.judge_circuits([{**opened, "error_class": "Unavailable"}])) == {"circuit smtp": "warning"}
    assert worst(postgres.judge_overdue({False: (300.0, 5), True: (3.0, 1)}, grace=15.0)) == {"due tasks": "warning"}


def test_a_server_that_offers_auth_is_a_warning_where_no_username_is_set() -> None:
    settings = SmtpSettings(host="mail", sender="a@example.org")
    assert worst(dependencies.judge_auth(settings, ())) == {}
    assert worst(dependencies.judge_auth(settings, ("plain", "login"))) == {"AUTH": "warning"}
    known = SmtpSettings.model_validate({"host": "mail", "sender": "a@example.org", "username": "u", "password": "p"})
    assert worst(dependencies.judge_auth(known, ("plain", "login"))) == {}


def test_providers_and_redis() -> None:
    assert worst(dependencies.judge_smtp(SmtpSettings(host="mail", sender="a@example.org"))) == {}
    lax = {
        "host": "mail",
        "sender": "a@example.org",
        "tls": "none",
        "username": "u",
        "password": "p",
        "data_timeout": 30,
    }
    assert worst(dependencies.judge_smtp(SmtpSettings.model_validate(lax))) == {"TLS": "warning", "timeouts": "warning"}
    assert worst(dependencies.judge_msg91(Msg91Settings(template_id="x"))) == {}
    assert worst(dependencies.judge_msg91(Msg91Settings())) == {"template": "warning"}
    assert dependencies.judge_latency(0.001, RedisSettings()).level is Level.OK
    assert dependencies.judge_latency(0.2, RedisSettings()).level is Level.WARNING


def test_settings_that_are_allowed_and_unwise() -> None:
    assert worst(judge_settings(Settings())) == {}
    assert worst(judge_settings(Settings(postgres=PostgresSettings(pooler=True)))) == {"migrations": "warning"}


def test_a_document_is_healthy_while_nothing_is_a_problem() -> None:
    subject = Subject("s")
    assert document([subject.ok("a", "b"), subject.warning("c", "d", "e")])["healthy"]
    assert not document([subject.problem("a", "b", "c")])["healthy"]
