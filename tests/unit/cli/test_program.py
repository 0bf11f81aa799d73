"""What every command has in common: names, help, `--url`, colours, and the `taskflux dev` of the folder."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import click
import pytest
from click.testing import CliRunner, Result

from taskflux.cli import main
from taskflux.http.openapi import schemas as e
from taskflux.local.environment import NAME, publish
from taskflux.local.processes import locked
from tests.unit.cli.scripted import Server

TASK = f"/tasks/{e.TASK_ID}"


def run(*words: str, **environment: str | None) -> Result:
    """The command, told of no server."""
    clean = {"TASKFLUX_API__URL": None, "TASKFLUX_DEV": None, "NO_COLOR": None, "FORCE_COLOR": None, "TERM": None}
    return CliRunner().invoke(main, [*words], env={**clean, **environment})


@pytest.fixture
def dev(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder in which a `taskflux dev` serves; the working directory is below it."""
    server.answer(f"GET {TASK}", (200, e.TASK))
    (tmp_path / "deep").mkdir()
    monkeypatch.chdir(tmp_path / "deep")
    with locked(tmp_path / NAME):
        publish(tmp_path / NAME, {"TASKFLUX_API__URL": server.url}, {})
        yield tmp_path / NAME


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["taks"], "there is no command 'taks'. Did you mean tasks?"),
        (["dead-leters", "list"], "there is no command 'dead-leters'. Did you mean dead-letters?"),
        (["tasks", "cancle"], "there is no command 'cancle'. Did you mean cancel?"),
        (["dead-letters", "relpay"], "there is no command 'relpay'. Did you mean replay?"),
    ],
)
def test_a_misspelt_command_is_answered_by_the_one_that_may_be_meant(words: list[str], says: str) -> None:
    result = run(*words)
    assert (result.exit_code, says in result.stderr) == (2, True), result.stderr


def test_a_command_that_resembles_none_is_answered_without_a_guess() -> None:
    result = run("xyzzy")
    assert result.exit_code == 2
    assert "there is no command 'xyzzy'.\n" in result.stderr


def commands(group: click.Command, *words: str) -> Iterator[tuple[str, ...]]:
    yield words
    if isinstance(group, click.Group):
        context = click.Context(group)
        for name in group.list_commands(context):
            found = group.get_command(context, name)
            assert found is not None
            yield from commands(found, *words, name)


@pytest.mark.parametrize("words", list(commands(main)), ids=" ".join)
def test_no_help_text_is_cut_off(words: tuple[str, ...]) -> None:
    result = run(*words, "--help")
    assert result.exit_code == 0
    assert "..." not in result.stdout.partition("\nCommands:")[2]
    assert max(map(len, result.stdout.splitlines())) <= 110


@pytest.mark.parametrize("words", [("--url", "{}", "tasks", "get"), ("tasks", "--url", "{}", "get")], ids=" ".join)
def test_the_address_may_stand_before_the_subcommand(words: tuple[str, ...], server: Server) -> None:
    server.answer(f"GET {TASK}", (200, e.TASK))
    assert run(*(word.format(server.url) for word in words), e.TASK_ID).exit_code == 0


def test_the_address_nearest_to_the_subcommand_wins(server: Server) -> None:
    server.answer(f"GET {TASK}", (200, e.TASK))
    nobody = "http://127.0.0.1:1"
    assert run("--url", nobody, "tasks", "--url", server.url, "get", e.TASK_ID).exit_code == 0
    assert run("--url", nobody, "tasks", "get", "--url", server.url, e.TASK_ID).exit_code == 0


def test_an_address_before_a_command_that_calls_no_api_is_refused() -> None:
    result = run("--url", "http://127.0.0.1:1", "doctor")
    assert result.exit_code == 2
    assert "--url is for the commands that call the API: send, tasks, dead-letters" in result.stderr


@pytest.mark.usefixtures("dev")
def test_a_running_dev_is_found_and_reported_once_beside_the_answer(dev: Path, server: Server) -> None:
    result = run("tasks", "get", e.TASK_ID, "--json")
    assert result.stdout.startswith("{")
    assert result.stderr == f"taskflux: using the taskflux dev in {dev} ({server.url})\n"


@pytest.mark.usefixtures("dev")
@pytest.mark.parametrize("how", ["--url", "TASKFLUX_API__URL"])
def test_an_address_that_is_given_wins_over_a_running_dev(how: str) -> None:
    nobody = "http://127.0.0.1:1"
    option, variable = (["--url", nobody], {}) if how == "--url" else ([], {how: nobody})
    result = run("tasks", "get", e.TASK_ID, *option, **variable)
    assert result.exit_code == 3
    assert "using the taskflux dev" not in result.stderr


def test_a_killed_dev_is_reported_and_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with locked(tmp_path / NAME):
        publish(tmp_path / NAME, {"TASKFLUX_API__URL": "http://127.0.0.1:2"}, {})
    monkeypatch.chdir(tmp_path)
    result = run("tasks", "get", e.TASK_ID, "--url", "http://127.0.0.1:1")
    assert "has ended" not in result.stderr
    result = run("dev", "--env")
    assert result.exit_code == 3
    assert "has ended without cleaning up: it is not used" in result.stderr


def test_the_variables_of_a_running_dev_are_printed_for_a_shell_or_a_file(dev: Path, server: Server) -> None:
    for option, line in (("--env", "export {}"), ("--env=fish", "set -gx {}"), ("--env=dotenv", "{}")):
        written = line.format("TASKFLUX_API__URL")
        result = run("dev", option)
        assert (result.stderr, result.stdout.startswith(written), server.url in result.stdout) == ("", True, True)
    assert run("dev", "--env", "--data-dir", str(dev)).stdout == run("dev", "--env").stdout


def test_without_a_running_dev_there_are_no_variables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    result = run("dev", "--env")
    assert (result.exit_code, result.stdout) == (3, "")
    assert "no taskflux dev runs in this folder or above it" in result.stderr


def test_where_none_runs_there_is_nothing_to_stop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    result = run("dev", "--stop")
    assert (result.exit_code, "no taskflux dev runs in this folder" in result.stderr) == (1, True)
    result = run("dev", "--stop", "--data-dir", "nowhere")
    assert (result.exit_code, "no taskflux dev runs on" in result.stderr) == (1, True)


@pytest.mark.parametrize("words", [("--env", "--stop"), ("--stop", "my_app"), ("--env=sh", "--detach")], ids=" ".join)
def test_what_starts_nothing_takes_nothing_that_starts(words: tuple[str, ...]) -> None:
    result = run("dev", *words)
    assert (result.exit_code, "--env and --stop start nothing" in result.stderr) == (2, True)


@pytest.mark.usefixtures("dev")
@pytest.mark.parametrize(
    ("environment", "coloured"),
    [
        ({}, False),
        ({"FORCE_COLOR": "1"}, True),
        ({"FORCE_COLOR": ""}, False),
        ({"FORCE_COLOR": "1", "NO_COLOR": "1"}, False),
        ({"FORCE_COLOR": "1", "NO_COLOR": ""}, True),
        ({"FORCE_COLOR": "1", "TERM": "dumb"}, True),
    ],
)
def test_colours_that_are_piped_follow_the_variables(environment: dict[str, str], coloured: bool) -> None:
    result = run("tasks", "get", e.TASK_ID, **environment)
    assert ("\x1b[" in result.stdout, "\x1b[" in result.stderr) == (coloured, coloured)
