from __future__ import annotations

import json
import os
from typing import Annotated, Any

import pytest
from pydantic import BaseModel, ConfigDict, Field, Json, SecretStr

from taskflux.worker.settings import Settings, WrongSettings, load, load_provider, masked

DSN = "postgresql://ann:s3cret@db.example.org/taskflux"
NEEDED = {"TASKFLUX_POSTGRES__DSN": DSN, "TASKFLUX_KAFKA__BOOTSTRAP_SERVERS": "kafka:9092"}


class Billing(BaseModel):
    model_config = ConfigDict(extra="forbid")

    base_url: str = "https://billing.example.org"
    api_key: SecretStr | None = None
    rate: Annotated[float | None, Field(gt=0)] = None


@pytest.fixture(autouse=True)
def _nothing_set(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.upper().startswith("TASKFLUX_"):
            monkeypatch.delenv(name)


def given(monkeypatch: pytest.MonkeyPatch, **variables: str) -> None:
    for name, value in {**NEEDED, **variables}.items():
        monkeypatch.setenv(name, value)


def refusal() -> str:
    with pytest.raises(WrongSettings) as refused:
        load("postgres", "kafka")
    return str(refused.value)


def test_the_usual_values_do_not_contradict_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    given(monkeypatch)
    assert load("postgres", "kafka").postgres.dsn.get_secret_value() == DSN


def test_what_is_needed_and_missing_is_named_all_at_once() -> None:
    said = refusal()
    assert "TASKFLUX_POSTGRES__DSN is not set" in said
    assert "TASKFLUX_KAFKA__BOOTSTRAP_SERVERS is not set" in said


def test_what_is_not_needed_may_be_missing() -> None:
    assert load().kafka.bootstrap_servers == ""


@pytest.mark.parametrize(
    ("variables", "names"),
    [
        (
            {"TASKFLUX_RELAY__GRACE": "5"},
            ["TASKFLUX_RELAY__GRACE (5.0 s)", "TASKFLUX_KAFKA__PRODUCE_TIMEOUT (5.0 s)"],
        ),
        (
            {"TASKFLUX_WORKER__BEAT_SECONDS": "10.5"},
            ["TASKFLUX_WORKER__LEASE_SECONDS (30.0 s)", "TASKFLUX_WORKER__BEAT_SECONDS (10.5 s)"],
        ),
        (
            {"TASKFLUX_POSTGRES__STATEMENT_TIMEOUT": "30"},
            ["TASKFLUX_POSTGRES__STATEMENT_TIMEOUT (30.0 s)", "TASKFLUX_WORKER__LEASE_SECONDS (30.0 s)"],
        ),
        (
            {"TASKFLUX_HTTP__BYTES_IN_FLIGHT": "4_000_000", "TASKFLUX_HTTP__MAX_BODY_BYTES": "1_500_000"},
            ["TASKFLUX_HTTP__BYTES_IN_FLIGHT (4,000,000)", "TASKFLUX_HTTP__MAX_BODY_BYTES (1,500,000)"],
        ),
    ],
)
def test_two_settings_at_odds_are_both_named(
    variables: dict[str, str], names: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    given(monkeypatch, **variables)
    said = refusal()
    assert all(name in said for name in names)


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("TASKFLUX_HTTP__PORT", "eighty", "valid integer"),
        ("TASKFLUX_HTTP__PORT", "65536", "less than or equal to 65535"),
        ("TASKFLUX_HTTP__MANAGEMENT_PORT", "8080", "is the same as TASKFLUX_HTTP__PORT: set another"),
        ("TASKFLUX_LOG__LEVEL", "LOUD", "DEBUG"),
        ("TASKFLUX_POSTGRES__POOL_SIZE", "0", "greater than or equal to 1"),
        ("TASKFLUX_POSTGRES__DNS", "x", "no such setting"),
        ("TASKFLUX_WORKER__LEASE", "30", "no such setting"),
        ("TASKFLUX_POSTGRES__DSN", "postgresql://ann:s3c#ret@db/tasks", "%23"),
        ("TASKFLUX_POSTGRES__MIGRATE_DSN", "postgresql://ann:s3c/ret@db/tasks", "%2F"),
        ("TASKFLUX_REDIS__URL", "cache:6379", "must begin with redis://"),
        ("TASKFLUX_KAFKA__BOOTSTRAP_SERVERS", "kafka:99999", "not between 1 and 65535"),
        ("TASKFLUX_KAFKA__TLS_CA_FILE", "/none/ca.pem", "/none/ca.pem cannot be read"),
        ("TASKFLUX_KAFKA__TOPIC_PREFIX", "shop/", "may have only letters"),
        ("TASKFLUX_ROUTER__TOPIC", "mixed tasks", "may have only letters"),
        ("TASKFLUX_NOTIFY__URL", "notify:8080", "must begin with http://"),
    ],
)
def test_a_wrong_variable_is_named_with_what_is_wrong(
    name: str, value: str, says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    given(monkeypatch, **{name: value})
    said = refusal()
    assert said.startswith((f"{name}: ", f"{name} is "))
    assert says in said
    assert "s3c" not in said


def test_a_wrong_value_is_not_repeated(monkeypatch: pytest.MonkeyPatch) -> None:
    given(monkeypatch, TASKFLUX_POSTGRES__POOL_SIZE="s3cret")
    assert "s3cret" not in refusal()


def test_a_section_may_stand_in_one_variable_as_json(monkeypatch: pytest.MonkeyPatch) -> None:
    given(monkeypatch, TASKFLUX_HTTP='{"port": 81}', TASKFLUX_HTTP__HOST="::1")
    http = load("postgres", "kafka").http
    assert (http.host, http.port) == ("::1", 81)


@pytest.mark.parametrize("value", ["{", "port=81"])
def test_a_section_that_is_not_json_is_named(value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    given(monkeypatch, TASKFLUX_HTTP=value)
    assert refusal().startswith("TASKFLUX_HTTP: ")


def test_one_underscore_in_place_of_two_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    given(monkeypatch, TASKFLUX_REDIS_URL="redis://x")
    assert refusal() == "TASKFLUX_REDIS_URL is not read: two underscores follow the section, TASKFLUX_REDIS__URL"


def test_variables_that_kubernetes_sets_for_its_services_are_ignored(monkeypatch: pytest.MonkeyPatch) -> None:
    given(
        monkeypatch,
        TASKFLUX_HTTP_PORT="tcp://10.0.0.1:8080",
        TASKFLUX_HTTP_PORT_8080_TCP="tcp://10.0.0.1:8080",
        TASKFLUX_HTTP_SERVICE_HOST="10.0.0.1",
        TASKFLUX_POSTGRES_SERVICE_PORT="5432",
    )
    load("postgres", "kafka")


def test_a_misspelt_section_is_hinted_at_where_the_right_one_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TASKFLUX_POSTGRE__DSN", DSN)
    said = refusal()
    assert "TASKFLUX_POSTGRES__DSN is not set" in said
    assert "TASKFLUX_POSTGRE__DSN" in said
    assert "s3cret" not in said


def test_variables_of_an_own_provider_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    given(monkeypatch, TASKFLUX_BILLING__BASE_URL="http://x", TASKFLUX_KAFKA2__ANYTHING="x", TASKFLUX_HTTP_X__PORT="1")
    load("postgres", "kafka")


def test_secrets_are_masked_where_settings_are_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    given(
        monkeypatch,
        TASKFLUX_POSTGRES__MIGRATE_DSN=DSN,
        TASKFLUX_REDIS__URL="redis://:s3cret@redis",
        TASKFLUX_KAFKA__SECURITY_PROTOCOL="SASL_SSL",
        TASKFLUX_KAFKA__SASL_USERNAME="ann",
        TASKFLUX_KAFKA__SASL_PASSWORD="s3cret",
    )
    settings = load("postgres", "kafka")
    shown = settings.model_dump_json()
    assert "s3cret" not in shown + str(settings) + repr(settings) + json.dumps(masked(settings))
    assert json.loads(shown)["kafka"]["sasl_username"] == "ann"


def test_a_providers_settings_come_from_a_section_of_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TASKFLUX_BILLING__BASE_URL", "http://localhost")
    monkeypatch.setenv("TASKFLUX_BILLING__API_KEY", "s3cret")
    settings = load_provider("billing", Billing)
    assert settings.base_url == "http://localhost"
    assert "s3cret" not in settings.model_dump_json()


def test_a_provider_without_settings_has_its_defaults() -> None:
    assert load_provider("billing", Billing) == Billing()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("TASKFLUX_BILLING__RATE", "0"),
        ("TASKFLUX_BILLING__RATE", "fast"),
        ("TASKFLUX_BILLING__APIKEY", "x"),
        ("TASKFLUX_BILLING_API_KEY", "x"),
        ("TASKFLUX_BILLING", "{"),
    ],
)
def test_a_providers_wrong_variable_is_named(name: str, value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(WrongSettings) as refused:
        load_provider("billing", Billing)
    assert str(refused.value).startswith(name)


class Account(BaseModel):
    """A part of `Bank`."""

    Name: str = ""
    limits: dict[str, int] = {}


class Bank(BaseModel):
    """Settings with values of every kind."""

    hosts: list[str] = []
    ports: frozenset[int] = frozenset()
    labels: dict[str, str] = {}
    secrets: dict[str, SecretStr] = {}
    account: Account = Account()
    second: Annotated[Account | None, Field(description="another")] = None
    either: list[str] | str = ""
    read_by_pydantic: Json[list[int]] | None = None
    number: Annotated[int, Field(alias="countOf")] = 0


@pytest.mark.parametrize(
    ("variables", "field", "value"),
    [
        ({"__HOSTS": '["a", "b"]'}, "hosts", ["a", "b"]),
        ({"__PORTS": "[1, 2]"}, "ports", {1, 2}),
        ({"__LABELS": '{"Team": "a"}'}, "labels", {"Team": "a"}),
        ({"__LABELS__TEAM": "a", "__LABELS__Site": "b"}, "labels", {"team": "a", "site": "b"}),
        ({"__LABELS": '{"team": "a", "site": "b"}', "__LABELS__TEAM": "c"}, "labels", {"team": "c", "site": "b"}),
        ({"__LABELS__TEAM": "[1]"}, "labels", {"team": "[1]"}),
        ({"__SECRETS__KEY": "s3cret"}, "secrets", {"key": SecretStr("s3cret")}),
        ({"__ACCOUNT__NAME": "ann"}, "account", Account(Name="ann")),
        ({"__ACCOUNT__LIMITS__DAY": "3"}, "account", Account(limits={"day": 3})),
        (
            {"__ACCOUNT": '{"Name": "ann"}', "__ACCOUNT__LIMITS": '{"day": 3}'},
            "account",
            Account(Name="ann", limits={"day": 3}),
        ),
        ({"__SECOND__NAME": "bob"}, "second", Account(Name="bob")),
        ({"__SECOND": '{"Name": "bob"}'}, "second", Account(Name="bob")),
        ({"__EITHER": '["a"]'}, "either", ["a"]),
        ({"__EITHER": "a, b"}, "either", "a, b"),
        ({"__READ_BY_PYDANTIC": "[1, 2]"}, "read_by_pydantic", [1, 2]),
        ({"__COUNTOF": "3"}, "number", 3),
        ({"__account__name": "ann"}, "account", Account(Name="ann")),
        (
            {"": '{"hosts": ["a"], "account": {"Name": "ann"}}', "__ACCOUNT__LIMITS": '{"day": 3}'},
            "account",
            Account(Name="ann", limits={"day": 3}),
        ),
    ],
)
def test_a_setting_with_parts_is_given_as_json_or_part_by_part(
    variables: dict[str, str], field: str, value: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, text in variables.items():
        monkeypatch.setenv(f"TASKFLUX_BANK{name}", text)
    assert getattr(load_provider("bank", Bank), field) == value


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        (
            "TASKFLUX_BANK__HOSTS",
            "a,b",
            "TASKFLUX_BANK: it is not JSON; set it as JSON, or field by field as TASKFLUX_BANK__<NAME>",
        ),
        ("TASKFLUX_BANK__ACCOUNT", "ann", "TASKFLUX_BANK: it is not JSON"),
        ("TASKFLUX_BANK__LABELS__TEAM__LEAD", "ann", "TASKFLUX_BANK__LABELS__TEAM: "),
        ("TASKFLUX_BANK__HOSTS__FIRST", "a", "TASKFLUX_BANK__HOSTS: "),
        ("TASKFLUX_BANK", "[1]", "TASKFLUX_BANK: "),
    ],
)
def test_a_setting_with_parts_that_cannot_be_read_is_named(
    name: str, value: str, says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(WrongSettings) as refused:
        load_provider("bank", Bank)
    assert str(refused.value).startswith(says)


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("TASKFLUX_LOG__LEVELS", '{"taskflux.stream": "LOUD"}', "is not a level"),
        ("TASKFLUX_LOG__LEVELS", '{"taskflux.steam": "DEBUG"}', "no logger 'taskflux.steam'"),
        ("TASKFLUX_LOG__LEVELS", '{"taskflux.steam.consumer": "DEBUG"}', "no logger"),
        ("TASKFLUX_LOG__LEVELS", '{"not a name": "DEBUG"}', "not the name of a logger"),
        ("TASKFLUX_OTEL__ENDPOINT", "collector:4317", "base URL"),
        ("TASKFLUX_OTEL__ENDPOINT", "http://collector:4318/?key=1", "base URL"),
        ("TASKFLUX_OTEL__SAMPLE_RATIO", "1.5", "less than or equal to 1"),
        ("TASKFLUX_OTEL__SAMPLE_RATIO", "nan", "TASKFLUX_OTEL__SAMPLE_RATIO"),
    ],
)
def test_logs_and_traces_that_cannot_be_set_like_this_are_refused(
    name: str, value: str, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(WrongSettings) as refused:
        load()
    assert name in str(refused.value)
    assert said in str(refused.value)


def test_logs_and_traces_are_set_by_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TASKFLUX_LOG__LEVELS", '{"taskflux.stream": "DEBUG", "my_app": "ERROR"}')
    monkeypatch.setenv("TASKFLUX_OTEL__ENDPOINT", "http://collector:4318/otlp/")
    monkeypatch.setenv("TASKFLUX_OTEL__HEADERS", '{"authorization": "Bearer secret"}')
    settings = load()
    assert settings.log.levels == {"taskflux.stream": "DEBUG", "my_app": "ERROR"}
    assert settings.otel.traces_url == "http://collector:4318/otlp/v1/traces"
    assert settings.otel.headers["authorization"].get_secret_value() == "Bearer secret"
    assert "secret" not in str(masked(settings.otel))


def test_settings_of_one_section_at_odds_are_named_as_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    given(monkeypatch, TASKFLUX_KAFKA__TLS_CERT_FILE="/none/client.pem")
    assert refusal() == (
        "TASKFLUX_KAFKA__TLS_CERT_FILE and TASKFLUX_KAFKA__TLS_KEY_FILE belong together: set both or neither"
    )
    given(monkeypatch, TASKFLUX_KAFKA__TLS_KEY_FILE="/none/client.key")
    assert "TASKFLUX_KAFKA__TLS_CERT_FILE and TASKFLUX_KAFKA__TLS_KEY_FILE: /none/client.key cannot be" in refusal()


EVERY = [
    f"TASKFLUX_{section}__{field}".upper()
    for section, model in Settings.model_fields.items()
    for field in getattr(model.annotation, "model_fields", {})
]


@pytest.mark.parametrize("name", [*EVERY, "TASKFLUX_KAFKA", "TASKFLUX_REDIS_URL"])
def test_a_variable_that_is_set_but_empty_counts_as_unset(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    unset = load()
    monkeypatch.setenv(name, "")
    assert load() == unset


@pytest.mark.parametrize("field", Billing.model_fields)
def test_an_empty_variable_of_a_provider_counts_as_unset(field: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(f"TASKFLUX_BILLING__{field.upper()}", "")
    assert load_provider("billing", Billing) == Billing()


@pytest.mark.parametrize("ending", ["\n", "\r\n", "\n\n"])
def test_a_line_break_at_the_end_of_a_secret_is_noticed(ending: str, monkeypatch: pytest.MonkeyPatch) -> None:
    given(
        monkeypatch,
        TASKFLUX_KAFKA__SECURITY_PROTOCOL="SASL_SSL",
        TASKFLUX_KAFKA__SASL_USERNAME="ann",
        TASKFLUX_KAFKA__SASL_PASSWORD=f"s3cret{ending}",
        TASKFLUX_LOG__LEVELS="{}\n",
    )
    said = refusal()
    assert said.startswith("TASKFLUX_KAFKA__SASL_PASSWORD ends with a line break: ")
    assert "s3cret" not in said
    assert "LEVELS" not in said
    monkeypatch.setenv("TASKFLUX_BILLING__API_KEY", f"s3cret{ending}")
    with pytest.raises(WrongSettings, match="TASKFLUX_BILLING__API_KEY ends with a line break"):
        load_provider("billing", Billing)


@pytest.mark.parametrize("key", ["-----BEGIN PRIVATE KEY-----\nMC4C\n-----END PRIVATE KEY-----\n", "one\r\ntwo\r\n"])
def test_a_secret_of_several_lines_may_end_with_a_line_break(key: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TASKFLUX_BILLING__API_KEY", key)
    assert load_provider("billing", Billing).api_key == SecretStr(key)
