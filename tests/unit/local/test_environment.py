import fcntl
import os
import subprocess
import threading
from pathlib import Path

import pytest

from taskflux.local.environment import (
    NAME,
    Embedded,
    Found,
    NotServing,
    find,
    for_commands,
    for_handlers,
    missing_in,
    own_servers,
    publish,
    shown,
    withdraw,
    without_former,
)
from taskflux.local.processes import locked

EVERYTHING = Embedded(
    postgres="postgresql://postgres:x@127.0.0.1:5432/taskflux",
    kafka="127.0.0.1:9092",
    redis="redis://127.0.0.1:6379/0",
    smtp_port=1025,
    msg91="http://127.0.0.1:8025",
)


def test_without_settings_every_server_is_embedded() -> None:
    assert own_servers({"PATH": "/bin", "TASKFLUX_SMTP__SENDER": "a@b.c"}) == frozenset()


def test_a_server_named_in_the_environment_is_the_persons_own() -> None:
    environment = {
        "TASKFLUX_POSTGRES__DSN": "postgresql://db/x",
        "taskflux_kafka__bootstrap_servers": "kafka:9092",
        "TASKFLUX_SMTP": '{"host": "smtp.example.org"}',
        "TASKFLUX_REDIS__URL": "",
    }
    assert own_servers(environment) == {"POSTGRES", "KAFKA", "SMTP"}


def test_handlers_get_the_addresses_of_the_embedded_servers() -> None:
    told = for_handlers({"PATH": "/bin"}, EVERYTHING, Path("/data"), 5.0)
    assert told["PATH"] == "/bin"
    assert told["TASKFLUX_POSTGRES__DSN"] == EVERYTHING.postgres
    assert told["TASKFLUX_KAFKA__IDEMPOTENT"] == "false"
    assert told["TASKFLUX_KAFKA__TANSU"] == "true"
    assert told["TASKFLUX_SMTP__TLS"] == "none"
    assert told["TASKFLUX_MSG91__BASE_URL"] == "http://127.0.0.1:8025"
    assert told["TASKFLUX_WORKER__ORIGIN"] == "/data"
    assert told["TASKFLUX_WORKER__DRAIN_SECONDS"] == "5"
    assert told["TASKFLUX_HTTP__ALLOWED_HOSTS"] == "localhost"


def test_the_persons_own_server_keeps_all_of_its_settings() -> None:
    own = {
        "TASKFLUX_KAFKA__BOOTSTRAP_SERVERS": "kafka:9092",
        "TASKFLUX_KAFKA__SECURITY_PROTOCOL": "SASL_SSL",
        "TASKFLUX_KAFKA__REPLICATION_FACTOR": "3",
    }
    told = for_handlers(own, Embedded(), Path("/data"), 5.0)
    assert own.items() <= told.items()
    assert "TASKFLUX_KAFKA__IDEMPOTENT" not in told
    assert "TASKFLUX_KAFKA__TANSU" not in told


def test_settings_that_an_embedded_server_could_not_honour_are_dropped() -> None:
    own = {"TASKFLUX_SMTP__USERNAME": "me", "TASKFLUX_KAFKA__SECURITY_PROTOCOL": "SASL_SSL"}
    assert not own.keys() & for_handlers(own, EVERYTHING, Path("/data"), 5.0).keys()


def test_what_a_person_tuned_is_kept_beside_an_embedded_server() -> None:
    own = {
        "TASKFLUX_KAFKA__PARTITIONS": "7",
        "TASKFLUX_SMTP__SENDER": "me@example.org",
        "TASKFLUX_HTTP__ALLOWED_HOSTS": "localhost,me.example",
    }
    assert own.items() <= for_handlers(own, EVERYTHING, Path("/data"), 5.0).items()


@pytest.fixture
def data_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The data directory of a folder below which a command is called."""
    (tmp_path / "shop" / "deep").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "shop" / "deep")
    return tmp_path / "shop" / NAME


VARIABLES = {"TASKFLUX_API__URL": "http://127.0.0.1:8081", "TASKFLUX_KAFKA__BOOTSTRAP_SERVERS": "127.0.0.1:9092"}


def test_a_stack_that_serves_is_found_from_every_folder_below_its_own(data_dir: Path) -> None:
    with locked(data_dir):
        publish(data_dir, VARIABLES, {})
        assert find({}) == Found(data_dir, VARIABLES)


def test_the_nearest_stack_that_serves_is_found(data_dir: Path, tmp_path: Path) -> None:
    with locked(tmp_path / NAME), locked(data_dir):
        publish(tmp_path / NAME, {}, {})
        publish(data_dir, VARIABLES, {})
        assert find({}) == Found(data_dir, VARIABLES)
        withdraw(data_dir)
    with locked(tmp_path / NAME):
        publish(tmp_path / NAME, {}, {})
        assert find({}) == Found(tmp_path / NAME, {})


def test_a_stack_that_was_killed_is_not_used(data_dir: Path) -> None:
    with locked(data_dir):
        publish(data_dir, VARIABLES, {})
    with pytest.raises(NotServing, match=r"the taskflux dev in .*shop/\.taskflux has ended without cleaning up"):
        find({})


def test_a_stopped_stack_is_not_reported(data_dir: Path) -> None:
    with locked(data_dir):
        publish(data_dir, VARIABLES, {})
        withdraw(data_dir)
    assert find({}) is None


def test_a_stack_that_starts_is_not_used_yet(data_dir: Path) -> None:
    with locked(data_dir), pytest.raises(NotServing, match="is still starting"):
        find({})


def test_a_stack_of_another_user_is_not_used(data_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with locked(data_dir):
        publish(data_dir, VARIABLES, {})
        owner = data_dir.stat().st_uid
        monkeypatch.setattr(os, "geteuid", lambda: owner + 1)
        with pytest.raises(NotServing, match="belongs to another user"):
            find({})
        monkeypatch.setattr(os, "geteuid", lambda: 0)
        monkeypatch.setenv("SUDO_UID", str(owner))
        assert find({}) == Found(data_dir, VARIABLES)


def test_an_invalid_file_is_reported_with_a_message(data_dir: Path) -> None:
    with locked(data_dir):
        (data_dir / "environment.json").write_text("[]")
        with pytest.raises(NotServing, match="cannot be read"):
            find({})


def test_a_variable_names_the_stack_to_use_or_none(data_dir: Path, tmp_path: Path) -> None:
    with locked(data_dir), locked(tmp_path / "other"):
        publish(data_dir, VARIABLES, {})
        publish(tmp_path / "other", {"TASKFLUX_API__URL": "http://127.0.0.1:8082"}, {})
        named = find({"TASKFLUX_DEV": str(tmp_path / "other")})
        assert named is not None
        assert named.variables == {"TASKFLUX_API__URL": "http://127.0.0.1:8082"}
        assert find({"TASKFLUX_DEV": "off"}) is None
        with pytest.raises(NotServing, match="no taskflux dev runs on"):
            find({"TASKFLUX_DEV": str(tmp_path / "nowhere")})


def test_looking_for_a_stack_does_not_prevent_a_start(data_dir: Path) -> None:
    with locked(data_dir):
        pass
    with (data_dir / "lock").open() as looked_at:
        fcntl.flock(looked_at, fcntl.LOCK_SH)
        threading.Timer(0.1, fcntl.flock, (looked_at, fcntl.LOCK_UN)).start()
        with locked(data_dir):
            pass


FOR_COMMANDS = for_commands(for_handlers({}, EVERYTHING, Path("/data"), 5.0), {}, "http://127.0.0.1:8081")


def test_commands_get_the_address_of_the_api_and_every_server_and_nothing_of_the_handlers_alone() -> None:
    assert FOR_COMMANDS["TASKFLUX_API__URL"] == "http://127.0.0.1:8081"
    assert FOR_COMMANDS["TASKFLUX_POSTGRES__DSN"] == EVERYTHING.postgres
    assert FOR_COMMANDS["TASKFLUX_KAFKA__TANSU"] == "true"
    assert FOR_COMMANDS["TASKFLUX_HTTP__PORT"] == "0"
    alone = {"TASKFLUX_WORKER__ORIGIN", "TASKFLUX_WORKER__DRAIN_SECONDS", "TASKFLUX_LOG__FORMAT"}
    assert not alone & FOR_COMMANDS.keys()


def test_commands_get_what_a_person_set_for_the_handlers() -> None:
    own = {"PATH": "/bin", "TASKFLUX_KAFKA__TOPIC_PREFIX": "shop-", "TASKFLUX_WORKER__DRAIN_SECONDS": "9"}
    found = for_commands(for_handlers(own, EVERYTHING, Path("/data"), 5.0), own, "")
    assert found["TASKFLUX_KAFKA__TOPIC_PREFIX"] == "shop-"
    assert found["TASKFLUX_WORKER__DRAIN_SECONDS"] == "9"
    assert "PATH" not in found


def test_what_the_environment_says_wins_over_a_stack_that_was_found() -> None:
    taken = missing_in({"TASKFLUX_KAFKA__PARTITIONS": "7", "TASKFLUX_SMTP__HOST": "smtp.example"}, FOR_COMMANDS)
    assert taken["TASKFLUX_POSTGRES__DSN"] == EVERYTHING.postgres
    assert "TASKFLUX_KAFKA__PARTITIONS" not in taken
    assert not [name for name in taken if name.startswith("TASKFLUX_SMTP__")]


@pytest.mark.parametrize(
    "own",
    [{"TASKFLUX_POSTGRES__DSN": "postgresql://db/x"}, {"TASKFLUX_KAFKA": '{"bootstrap_servers": "kafka:9092"}'}],
    ids=["another PostgreSQL", "another Kafka"],
)
def test_nothing_is_mixed_into_the_environment_of_another_deployment(own: dict[str, str]) -> None:
    assert missing_in(own, FOR_COMMANDS) == {}


def test_nothing_is_missing_where_a_shell_has_it_all() -> None:
    assert missing_in(FOR_COMMANDS, FOR_COMMANDS) == {}


def test_what_a_shell_has_of_the_run_before_names_no_servers_of_ones_own(data_dir: Path) -> None:
    own = {"TASKFLUX_KAFKA__PARTITIONS": "7"}
    with locked(data_dir):
        publish(data_dir, {**FOR_COMMANDS, **own}, own)
        withdraw(data_dir)
    shell = {"PATH": "/bin", **FOR_COMMANDS, **own, "TASKFLUX_REDIS__URL": "redis://mine/0"}
    kept = {"PATH": "/bin", **own, "TASKFLUX_REDIS__URL": "redis://mine/0"}
    assert without_former(shell, data_dir) == kept
    assert without_former(shell, data_dir / "nowhere") == shell


HARD = {"A": "plain:/1", "B": "two words", "C": "it's $HOME", "D": 'a "b"', "E": "a\nb", "F": ""}


def test_a_shell_reads_the_variables_as_they_are() -> None:
    script = f"{shown(HARD, 'sh')}\nenv -0"
    said = subprocess.run(["/bin/sh", "-c", script], check=True, capture_output=True, env={"PATH": os.environ["PATH"]})
    found = dict(line.split("=", 1) for line in said.stdout.decode().split("\0") if line)
    assert HARD.items() <= found.items()


def test_a_dotenv_file_quotes_what_has_to_be_quoted() -> None:
    assert shown(HARD, "dotenv").splitlines() == [
        "A=plain:/1",
        "B='two words'",
        'C="it\'s $HOME"',
        "D='a \"b\"'",
        r'E="a\nb"',
        "F=",
    ]


def test_fish_gets_its_own_words() -> None:
    assert shown({"A": "it's"}, "fish") == r"set -gx A 'it\'s'"
