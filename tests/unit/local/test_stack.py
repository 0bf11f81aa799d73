from pathlib import Path

from taskflux.local.stack import Embedded, for_handlers, own_servers

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


def test_handlers_are_told_of_the_embedded_servers() -> None:
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
