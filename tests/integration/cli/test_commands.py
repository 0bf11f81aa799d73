"""The command as a person calls it, configured by its environment alone.

Each way to end is seen of a process of its own too; what only differs in words is called in this process.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
from click.testing import CliRunner

from taskflux.cli import main
from taskflux.local.servers import PostgresServer
from tests.conftest import NewDatabase
from tests.integration.cli.command import ALONE

NOBODY = "postgresql://ann:s3cret@127.0.0.1:1/taskflux"
SECONDS = 30.0

APP = """
from taskflux import Receipt, Task, handler

@handler("image", payload=str)
async def resize_image(task: Task[str]) -> Receipt:
    return Receipt()
"""


@dataclass(frozen=True, slots=True)
class Answer:
    status: int
    output: str
    errors: str


def here(*arguments: str, **variables: str) -> Answer:
    """The same in this process, where no loop runs."""
    others = dict.fromkeys(name for name in os.environ if name.upper().startswith("TASKFLUX_"))
    result = CliRunner().invoke(main, arguments, env={**others, **ALONE, **variables})
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return Answer(result.exit_code, result.stdout, result.stderr)


async def taskflux(*arguments: str, folder: Path | None = None, **variables: str) -> Answer:
    """Call the command with these variables and none other of ours."""
    environment = {name: value for name, value in os.environ.items() if not name.upper().startswith("TASKFLUX_")}
    process = await asyncio.create_subprocess_exec(
        str(Path(sys.executable).with_name("taskflux")),
        *arguments,
        env=environment | ALONE | variables,
        cwd=folder,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        output, errors = await asyncio.wait_for(process.communicate(), SECONDS)
    except TimeoutError:
        process.kill()
        raise
    assert process.returncode is not None
    return Answer(process.returncode, output.decode(), errors.decode())


def is_a_sentence(answer: Answer) -> bool:
    """No traceback, no secret, one message."""
    return "Traceback" not in answer.errors and "s3cret" not in answer.errors and answer.errors.strip() != ""


async def test_the_version_is_one_line() -> None:
    answer = await taskflux("--version")
    assert answer.status == 0
    assert re.fullmatch(r"taskflux \d+\.\d+\.\d+\S*\n", answer.output)


def test_help_lists_the_commands_without_a_request_to_a_server() -> None:
    answer = here("-h")
    assert answer.status == 0
    assert {"run", "migrate", "topics", "dev", "config"} <= set(answer.output.split())


def test_a_handler_that_does_not_exist_is_answered_with_those_that_do() -> None:
    answer = here("run", "nosuch")
    assert answer.status != 0
    assert is_a_sentence(answer)
    assert "process-email" in answer.errors


@pytest.mark.parametrize("command", [("run", "process-simulated"), ("topics",)])
def test_missing_settings_are_all_named(command: tuple[str, ...]) -> None:
    names_what_is_missing(here(*command))


async def test_a_process_whose_settings_are_missing_names_them_all_and_ends() -> None:
    names_what_is_missing(await taskflux("run", "relay"))


def names_what_is_missing(answer: Answer) -> None:
    assert answer.status == 2
    assert is_a_sentence(answer)
    assert "TASKFLUX_POSTGRES__DSN" in answer.errors
    assert "TASKFLUX_KAFKA__BOOTSTRAP_SERVERS" in answer.errors


def test_a_wrong_setting_of_a_provider_stops_its_handler_only() -> None:
    answer = here("config", TASKFLUX_SMTP__PORT="smtp")
    assert answer.status == 2
    assert "TASKFLUX_SMTP__PORT" in answer.errors
    assert "TASKFLUX_POSTGRES__DSN is not set" in here("migrate", TASKFLUX_SMTP__PORT="smtp").errors


@pytest.mark.parametrize(
    ("dsn", "status"),
    [
        (NOBODY, 1),
        ("postgresql://ann:s3cret@127.0.0.1:port/x", 2),
        ("postgresql://ann:s3c#ret@127.0.0.1/x", 2),
        ("mysql://ann:s3cret@127.0.0.1/x", 2),
        ("nonsense", 2),
    ],
)
def test_migrate_without_a_postgresql_is_a_sentence(dsn: str, status: int) -> None:
    answer = here("migrate", TASKFLUX_POSTGRES__DSN=dsn)
    assert answer.status == status
    assert "s3c" not in answer.errors
    assert is_a_sentence(answer)
    assert "TASKFLUX_POSTGRES__DSN" in answer.errors


async def test_migrate_reports_its_changes_and_then_that_nothing_is_left_to_do(
    postgres: PostgresServer, new_database: NewDatabase
) -> None:
    settings = await new_database()
    assert settings.migrate_dsn is not None
    dsn = settings.migrate_dsn.get_secret_value()
    answer = await taskflux("migrate", TASKFLUX_POSTGRES__DSN=NOBODY, TASKFLUX_POSTGRES__MIGRATE_DSN=dsn)
    assert (answer.status, answer.output) == (0, "the schema is current\n")


def test_config_shows_what_is_in_force_with_secrets_masked() -> None:
    answer = here(
        "config",
        TASKFLUX_POSTGRES__DSN=NOBODY,
        TASKFLUX_REDIS__URL="redis://:s3cret@127.0.0.1",
        TASKFLUX_SMTP__HOST="mail.example.org",
        TASKFLUX_SMTP__SENDER="a@example.org",
        TASKFLUX_SMTP__USERNAME="ann",
        TASKFLUX_SMTP__PASSWORD="s3cret",
        TASKFLUX_MSG91__AUTH_KEY="s3cret",
        TASKFLUX_HTTP__PORT="81",
    )
    assert answer.status == 0
    assert "s3cret" not in answer.output + answer.errors
    shown = json.loads(answer.output)
    assert shown["http"]["port"] == 81
    assert (shown["smtp"]["host"], shown["smtp"]["username"]) == ("mail.example.org", "ann")
    assert shown["msg91"]["auth_key"] == shown["postgres"]["dsn"] != ""


async def test_a_custom_handler_is_run_from_its_own_folder(tmp_path: Path) -> None:
    (tmp_path / "my_app").mkdir()
    (tmp_path / "my_app" / "handlers.py").write_text(APP)
    found = await taskflux("run", "my_app.handlers:resize_image", folder=tmp_path)
    assert found.status == 2
    assert "taskflux run resize-image: the settings are wrong" in found.errors
    lost = await taskflux("run", "my_app.handlers:resize_image", folder=tmp_path.parent)
    assert lost.status == 1
    assert is_a_sentence(lost)
    assert "Is its folder the current directory?" in lost.errors


def test_ending_leases_requires_a_name() -> None:
    answer = here("end-leases", TASKFLUX_POSTGRES__DSN=NOBODY)
    assert answer.status == 2
    assert "TASKFLUX_WORKER__ORIGIN" in answer.errors
