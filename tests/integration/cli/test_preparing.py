"""`taskflux migrate` and `taskflux topics`, as the jobs before a release call them."""

from __future__ import annotations

import asyncio
import os
import secrets
import signal
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import asyncpg
import pytest
import pytest_asyncio

from taskflux.local.ports import free_port
from taskflux.local.servers import Broker, PostgresServer
from taskflux.store.settings import PostgresSettings
from taskflux.stream.positions import Positions
from taskflux.stream.provision import ensure_topics
from taskflux.stream.settings import KafkaSettings
from tests.conftest import NewDatabase
from tests.integration.cli.command import ALONE, Command
from tests.integration.stream.patience import committed

APP = """
from taskflux import Receipt, Task, handler

@handler("image", payload=str)
async def resize_image(task: Task[str]) -> Receipt:
    return Receipt()
"""
OWN_EMAIL = APP.replace('"image"', '"email"').replace("resize_image", "own_email")
IN_PLACE = OWN_EMAIL.replace("payload=str", "payload=str, replaces=True")
RESERVED = APP.replace('"image"', '"router"').replace("resize_image", "reserved")
BUILT_IN = {"email", "sms", "simulated"}


@pytest.fixture
async def fresh(new_database: NewDatabase) -> PostgresSettings:
    """A migrated database in which nothing is registered."""
    return await new_database()


@pytest.fixture
def kafka(kafka_settings: KafkaSettings) -> KafkaSettings:
    return kafka_settings.model_copy(update={"topic_prefix": f"p{secrets.token_hex(4)}-"})


@pytest.fixture
def taskflux(fresh: PostgresSettings, kafka: KafkaSettings) -> Command:
    return Command(
        {
            "TASKFLUX_POSTGRES__DSN": fresh.dsn.get_secret_value(),
            "TASKFLUX_POSTGRES__POOLER": str(fresh.pooler).lower(),
            "TASKFLUX_KAFKA__BOOTSTRAP_SERVERS": kafka.bootstrap_servers,
            "TASKFLUX_KAFKA__TOPIC_PREFIX": kafka.topic_prefix,
            "TASKFLUX_KAFKA__PARTITIONS": str(kafka.partitions),
        }
    )


@pytest.fixture
async def positions(kafka: KafkaSettings) -> AsyncIterator[Positions]:
    positions = Positions(kafka)
    yield positions
    await positions.close()


@pytest_asyncio.fixture
async def sql(fresh: PostgresSettings) -> AsyncIterator[Any]:
    assert fresh.migrate_dsn is not None
    connection = await asyncpg.connect(fresh.migrate_dsn.get_secret_value())
    yield connection
    await connection.close()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """An application's own, in which the command is called."""
    (tmp_path / "my_app").mkdir()
    (tmp_path / "my_app" / "handlers.py").write_text(APP)
    (tmp_path / "my_app" / "reserved.py").write_text(RESERVED)
    (tmp_path / "my_app" / "other.py").write_text(APP.replace("payload=str", "payload=int"))
    (tmp_path / "my_app" / "email.py").write_text(OWN_EMAIL)
    (tmp_path / "my_app" / "in_place.py").write_text(IN_PLACE)
    return tmp_path


async def test_all_built_in_types_are_registered_have_their_topics_and_begin_at_their_start(
    taskflux: Command, kafka: KafkaSettings, positions: Positions, sql: Any
) -> None:
    first = await taskflux("topics")
    assert first.status == 0, first.err
    assert {row["type"] for row in await sql.fetch("SELECT type FROM task_types")} == BUILT_IN
    prefix = kafka.topic_prefix
    groups = {f"{prefix}tasks.{name}": f"{prefix}taskflux.{name}" for name in BUILT_IN}
    groups[f"{prefix}tasks.dlq"] = f"{prefix}taskflux.dlq-sink"
    for topic, group in groups.items():
        assert await committed(positions, group, topic) == {0: 0, 1: 0}, topic
        assert f"created {topic}\n" in first.out
        assert f"primed {group}: it begins at the start of {topic} (2 partitions, 0 records wait)\n" in first.out
    second = await taskflux.here("topics")
    assert (second.status, second.out) == (0, "all topics are there\n")


async def test_handlers_that_are_named_are_registered_alone(
    taskflux: Command, kafka: KafkaSettings, positions: Positions, sql: Any, folder: Path
) -> None:
    assert (await taskflux("topics")).status == 0
    await sql.execute("UPDATE task_types SET max_attempts = 77")  # as a newer release of ours has it
    own = await taskflux("topics", "my_app.handlers:resize_image", cwd=folder)
    assert own.status == 0, own.err
    registered = {row["type"]: row["max_attempts"] for row in await sql.fetch("SELECT * FROM task_types")}
    assert registered == {**dict.fromkeys(BUILT_IN, 77), "image": 8}
    prefix = kafka.topic_prefix
    assert await committed(positions, f"{prefix}taskflux.image", f"{prefix}tasks.image") == {0: 0, 1: 0}
    # Without names again: its topic is looked after with the others, its registration is not touched.
    await sql.execute("UPDATE task_types SET max_attempts = 78 WHERE type = 'image'")
    assert (await taskflux("topics")).status == 0
    registered = {row["type"]: row["max_attempts"] for row in await sql.fetch("SELECT * FROM task_types")}
    assert registered["image"] == 78
    assert 77 not in registered.values()


async def test_a_built_in_handler_that_runs_nowhere_is_left_out(taskflux: Command, sql: Any) -> None:
    first = await taskflux.here("topics", "--without", "process-sms", "--without", "process-simulated")
    assert first.status == 0, first.err
    assert [row["type"] for row in await sql.fetch("SELECT type FROM task_types")] == ["email"]
    assert "tasks.sms" not in first.out
    # What is registered stays so: its tasks may be there.
    assert (await taskflux.here("topics")).status == 0
    assert (await taskflux.here("topics", "--without", "process-sms")).status == 0
    assert {row["type"] for row in await sql.fetch("SELECT type FROM task_types")} == BUILT_IN


async def test_the_type_of_a_handler_that_is_off_is_off_until_it_is_registered_again(
    taskflux: Command, sql: Any
) -> None:
    off = "SELECT type, off_handler FROM task_types WHERE off_handler IS NOT NULL ORDER BY type"
    first = await taskflux.here("topics", "--off", "process-sms", "--off", "resize-image=image")
    assert (first.status, await sql.fetch(off)) == (0, []), "a type that never was is unknown, and not off"
    assert {row["type"] for row in await sql.fetch("SELECT type FROM task_types")} == BUILT_IN - {"sms"}
    assert (await taskflux.here("topics")).status == 0
    switched = await taskflux.here("topics", "--off", "process-sms", "--off", "my-mail=email")
    assert (switched.status, switched.out.count("\n")) == (0, 2), switched.err
    assert "sms is off, with its handler process-sms: new tasks are refused\n" in switched.out
    assert [tuple(row) for row in await sql.fetch(off)] == [("email", "my-mail"), ("sms", "process-sms")]
    assert (await taskflux.here("topics", "process-sms")).status == 0
    assert [tuple(row) for row in await sql.fetch(off)] == [("email", "my-mail")]


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("--without", "nosuch"), "there is no handler 'nosuch'"),
        (("--without", "relay"), "no task type belongs to relay"),
        (("--off", "nosuch"), "there is no handler 'nosuch'"),
        (("--off", "mine="), "--off mine=: it is HANDLER=TYPE"),
        (("--off", "mine=Not a type"), "--off mine=Not a type: it is HANDLER=TYPE"),
        (("process-email", "--off", "process-sms"), "--off is for all that runs nowhere"),
        (("process-email", "--without", "process-sms"), "--without leaves out of all built-in handlers"),
    ],
)
async def test_an_invalid_option_for_what_runs_nowhere_is_refused_before_any_change(
    taskflux: Command, sql: Any, words: tuple[str, ...], says: str
) -> None:
    outcome = await taskflux.here("topics", *words)
    assert outcome.status == 2
    assert says in outcome.err
    assert await sql.fetch("SELECT type FROM task_types") == []


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("ingest", "no task type belongs to ingest"),
        ("my_app.reserved:reserved", "'router' cannot name a task type: it is reserved"),
        ("my_app.handlers:nosuch", "has no nosuch"),
        ("nosuch", "there is no handler 'nosuch'"),
    ],
)
async def test_a_name_that_is_no_task_handlers_is_refused_before_anything_is_done(
    taskflux: Command, sql: Any, folder: Path, name: str, says: str
) -> None:
    outcome = await taskflux("topics", "process-email", name, cwd=folder)
    assert outcome.status == 2
    assert says in outcome.err
    assert await sql.fetchval("SELECT count(*) FROM task_types") == 0


@pytest.mark.parametrize(
    ("names", "says"),
    [
        (
            ("my_app.email:own_email",),
            "'email' is declared by the built-in taskflux.handlers.process_email:process_email, with another schema"
            " than my_app.email:own_email has",
        ),
        (
            ("my_app.handlers:resize_image", "my_app.other:resize_image"),
            "'image' is declared by my_app.handlers:resize_image, with another schema than my_app.other:resize_image",
        ),
    ],
    ids=["as a built-in one", "as one named beside it"],
)
async def test_a_type_that_is_declared_twice_is_refused_before_anything_is_done(
    taskflux: Command, sql: Any, folder: Path, names: tuple[str, ...], says: str
) -> None:
    outcome = await taskflux("topics", *names, cwd=folder)
    assert outcome.status == 2
    assert says in outcome.err
    assert await sql.fetchval("SELECT count(*) FROM task_types") == 0


async def test_a_custom_handler_replaces_a_built_in_type_where_it_declares_so(
    taskflux: Command, sql: Any, folder: Path
) -> None:
    assert (await taskflux("topics")).status == 0
    own = await taskflux("topics", "my_app.in_place:own_email", cwd=folder)
    assert own.status == 0, own.err
    schema = "SELECT schema FROM task_types WHERE type = 'email'"
    assert await sql.fetchval(schema) == '{"type": "string"}'
    refused = await taskflux("topics")
    assert refused.status == 1
    assert "'email' is declared by my_app.in_place:own_email" in refused.err
    assert (await taskflux("topics", "--without", "process-email")).status == 0
    assert await sql.fetchval(schema) == '{"type": "string"}'


async def test_the_routers_group_is_primed_where_its_topic_is_named(
    taskflux: Command, kafka: KafkaSettings, positions: Positions
) -> None:
    group, topic = f"{kafka.topic_prefix}taskflux.router", f"{kafka.topic_prefix}of-others"
    before = await taskflux.here("topics", TASKFLUX_ROUTER__TOPIC=topic)
    assert before.status == 0
    assert f"{topic} does not exist: there is nothing to prime for {group}\n" in before.out
    await ensure_topics(kafka.model_copy(update={"topic_prefix": f"{topic}-"}), ["email"])
    after = await taskflux.here("topics", TASKFLUX_ROUTER__TOPIC=f"{topic}-tasks.email")
    assert f"primed {group}: it begins at the start of {topic}-tasks.email" in after.out
    assert await committed(positions, group, f"{topic}-tasks.email") == {0: 0, 1: 0}


async def test_no_group_is_primed_with_the_option_no_prime(
    taskflux: Command, kafka: KafkaSettings, positions: Positions
) -> None:
    outcome = await taskflux.here("topics", "--no-prime")
    assert outcome.status == 0
    assert "primed" not in outcome.out
    prefix = kafka.topic_prefix
    assert await committed(positions, f"{prefix}taskflux.email", f"{prefix}tasks.email") == {0: None, 1: None}


async def test_a_schema_of_a_newer_release_is_accepted_and_named(taskflux: Command, sql: Any) -> None:
    await sql.execute("INSERT INTO schema_migrations (version, name) VALUES (9999, 'of the future')")
    await sql.execute("ALTER TABLE tasks ADD COLUMN of_the_future text")
    outcome = await taskflux.here("migrate", TASKFLUX_POSTGRES__POOLER="false")
    assert outcome.status == 0, outcome.err
    assert "newer than this release" in outcome.out
    assert "9999 of the future" in outcome.out


async def test_a_tls_file_that_is_missing_is_a_sentence(taskflux: Command) -> None:
    outcome = await taskflux.here(
        "topics", TASKFLUX_KAFKA__SECURITY_PROTOCOL="SSL", TASKFLUX_KAFKA__TLS_CA_FILE="/nowhere.pem"
    )
    assert outcome.status == 2
    assert "TASKFLUX_KAFKA__TLS_CA_FILE" in outcome.err
    assert "Traceback" not in outcome.err


# Servers that start later ------------------------------------------------------------------------------------------


class Waiting:
    """A call of the command that waits; what it has said so far."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process
        self.said = ""

    @classmethod
    async def call(cls, *words: str, **environment: str) -> Waiting:
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("TASKFLUX_")}
        return cls(
            await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "taskflux", *words),
                env=inherited | ALONE | environment,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.STDOUT,
                # When these tests run in the background of a shell, they ignore Ctrl-C.
                preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
            )
        )

    async def until_it_says(self, text: str) -> None:
        assert self.process.stdout is not None
        async with asyncio.timeout(30):
            while text not in self.said:
                line = await self.process.stdout.readline()
                assert line, self.said
                self.said += line.decode()

    async def end(self) -> int:
        out, _ = await asyncio.wait_for(self.process.communicate(), 60)
        self.said += out.decode()
        assert self.process.returncode is not None
        return self.process.returncode


@pytest.mark.slow
async def test_both_commands_wait_for_servers_that_start_after_them(servers_dir: Path) -> None:
    postgres = PostgresServer(servers_dir / "postgres-late", free_port())
    broker = Broker(free_port(), log=servers_dir / "broker-late.log")
    async with postgres:
        dsn = postgres.dsn
    environment = {
        "TASKFLUX_POSTGRES__DSN": dsn,
        "TASKFLUX_KAFKA__BOOTSTRAP_SERVERS": broker.bootstrap_servers,
    }
    migrate = await Waiting.call("migrate", "--wait", "2m", **environment)
    topics = await Waiting.call("topics", "--wait", "2m", **environment)
    for waiting in (migrate, topics):
        await waiting.until_it_says("s more: PostgreSQL (TASKFLUX_POSTGRES__DSN): ")
    async with postgres:
        assert await migrate.end() == 0, migrate.said
        assert "applied 0001 tasks" in migrate.said
        await topics.until_it_says("s more: Kafka (TASKFLUX_KAFKA__BOOTSTRAP_SERVERS): ")
        async with broker:
            assert await topics.end() == 0, topics.said
    assert "primed taskflux.email" in topics.said


async def test_a_pod_waits_for_a_schema_that_another_job_brings_and_changes_nothing(postgres: PostgresServer) -> None:
    name = f"unmigrated_{secrets.token_hex(4)}"
    administrator = await asyncpg.connect(postgres.dsn)
    await administrator.execute(f"CREATE DATABASE {name}")
    await administrator.close()
    environment = {"TASKFLUX_POSTGRES__DSN": postgres.dsn_of(name)}
    at_once = await Waiting.call("migrate", "--check", **environment)
    assert await at_once.end() == 1
    assert "taskflux migrate" in at_once.said
    waiting = await Waiting.call("migrate", "--check", "--wait", "1m", **environment)
    await waiting.until_it_says("s more: the schema: ")
    connection = await asyncpg.connect(postgres.dsn_of(name))
    assert await connection.fetchval("SELECT to_regclass('schema_migrations')") is None, "it only looks"
    migrate = await Waiting.call("migrate", **environment)
    assert await migrate.end() == 0
    assert await waiting.end() == 0, waiting.said
    # A step of this release that the database does not have: a rollout whose Job has not run yet.
    await connection.execute("DELETE FROM schema_migrations WHERE version = 1")
    await connection.close()
    behind = await Waiting.call("migrate", "--check", **environment)
    assert await behind.end() == 1
    assert "it lacks 0001 tasks" in behind.said


async def test_topics_wait_for_a_schema_that_another_job_brings(postgres: PostgresServer, kafka: KafkaSettings) -> None:
    name = f"unmigrated_{secrets.token_hex(4)}"
    administrator = await asyncpg.connect(postgres.dsn)
    await administrator.execute(f"CREATE DATABASE {name}")
    await administrator.close()
    environment = {
        "TASKFLUX_POSTGRES__DSN": postgres.dsn_of(name),
        "TASKFLUX_KAFKA__BOOTSTRAP_SERVERS": kafka.bootstrap_servers,
        "TASKFLUX_KAFKA__TOPIC_PREFIX": kafka.topic_prefix,
    }
    at_once = await Waiting.call("topics", **environment)
    assert await at_once.end() == 1
    assert "taskflux migrate" in at_once.said
    topics = await Waiting.call("topics", "--wait", "1m", **environment)
    await topics.until_it_says("taskflux migrate")
    assert await (await Waiting.call("migrate", **environment)).end() == 0
    assert await topics.end() == 0, topics.said


@pytest.mark.parametrize("command", ["migrate", "topics"])
async def test_the_wait_ends_and_names_what_was_missing(command: str) -> None:
    nobody = free_port()
    environment = {
        "TASKFLUX_POSTGRES__DSN": f"postgresql://x:s3cret@127.0.0.1:{nobody}/x",
        "TASKFLUX_KAFKA__BOOTSTRAP_SERVERS": f"127.0.0.1:{nobody}",
    }
    began = time.monotonic()
    waiting = await Waiting.call(command, "--wait", "1.5", **environment)
    assert await waiting.end() == 1
    assert 1.5 <= time.monotonic() - began < 15
    last = waiting.said.splitlines()[-1]
    assert last.startswith("taskflux: gave up after 1.5 s: PostgreSQL (TASKFLUX_POSTGRES__DSN): ")
    assert "s3cret" not in waiting.said
    assert "Traceback" not in waiting.said


@pytest.mark.parametrize(
    ("command", "number", "status"), [("migrate", signal.SIGTERM, 143), ("topics", signal.SIGINT, 130)]
)
async def test_a_signal_ends_the_wait_at_once(command: str, number: signal.Signals, status: int) -> None:
    nobody = free_port()
    waiting = await Waiting.call(
        *(command, "--wait", "10m"),
        TASKFLUX_POSTGRES__DSN=f"postgresql://x@127.0.0.1:{nobody}/x",
        TASKFLUX_KAFKA__BOOTSTRAP_SERVERS=f"127.0.0.1:{nobody}",
    )
    await waiting.until_it_says("waiting")
    began = time.monotonic()
    waiting.process.send_signal(number)
    assert await waiting.end() == status
    assert time.monotonic() - began < 15  # of ten minutes; a busy machine takes seconds to end an interpreter
    assert "Traceback" not in waiting.said
