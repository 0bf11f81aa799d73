"""The environment of every container against what the program reads: names, values, and where secrets come from."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any, Final

import pytest
import trustme

from taskflux.cli.reference import variables
from taskflux.worker.loading import built_in_handlers
from taskflux.worker.settings import load as load_settings
from taskflux.worker.settings import load_provider
from tests.chart.cases import EACH_CI_FILE, all_containers, full, handler_container, stand_in
from tests.chart.objects import pods
from tests.chart.rendering import CHART, render

VARIABLES: Final = {each.name: each for each in variables()}


@EACH_CI_FILE
def test_every_variable_is_one_that_the_program_reads(ci: Path) -> None:
    rendering = render(ci)
    for container in all_containers(rendering):
        ours = {name for name in container.environment if name.startswith("TASKFLUX_")}
        assert ours <= VARIABLES.keys(), container.pod
    for each in rendering.of("ConfigMap"):
        if any(key.startswith("TASKFLUX_") for key in each.data):
            assert each.data.keys() <= VARIABLES.keys(), str(each)


@EACH_CI_FILE
def test_secret_values_and_only_those_come_from_secrets(ci: Path) -> None:
    rendering = render(ci)
    assert not rendering.of("Secret")
    for each in rendering.of("ConfigMap"):
        assert not [key for key in each.data if key in VARIABLES and VARIABLES[key].secret], str(each)
    for pod in pods(rendering.objects):
        for container in pod.all_containers:
            for variable in container.get("env") or []:
                known = VARIABLES.get(variable["name"])
                if "value" not in variable and container.get("args", [])[:1] == ["send"]:
                    continue  # a pod of `helm test` runs once: nothing could be renewed in it
                assert known is None or not known.secret, f"{pod}: {variable['name']} could not be renewed"


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, str]:
    """By the end of a variable's name: a file as it stands in a Secret."""
    folder, authority = tmp_path_factory.mktemp("certificates"), trustme.CA()
    issued = authority.issue_cert("client.example.org")
    authority.cert_pem.write_to_path(folder / "ca.pem")
    issued.cert_chain_pems[0].write_to_path(folder / "client.pem")
    issued.private_key_pem.write_to_path(folder / "client.key")
    return {
        "CA_FILE": str(folder / "ca.pem"),
        "CERT_FILE": str(folder / "client.pem"),
        "KEY_FILE": str(folder / "client.key"),
    }


@EACH_CI_FILE
def test_the_program_accepts_each_container_s_environment(
    ci: Path, certificates: Mapping[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its own checks, contradictions included, on exactly what is rendered: what `taskflux config` says in that pod."""
    for container in all_containers(render(ci)):
        for name in [name for name in os.environ if name.upper().startswith("TASKFLUX_")]:
            monkeypatch.delenv(name)
        for name, text in container.environment.items():
            here = [file for end, file in certificates.items() if name.endswith(end) and text in container.files]
            monkeypatch.setenv(name, here[0] if here else text)
        if container.args[0] == "send":
            continue  # asks the API and needs no server
        needs = ["postgres"] if container.args[0] in ("migrate", "prune") else ["postgres", "kafka"]
        load_settings(*needs)
        for handler in built_in_handlers():
            if handler.provider is not None:
                load_provider(handler.provider.name, handler.provider.settings)


def test_every_setting_can_be_set_in_the_values() -> None:
    """Set each one that is not a secret, and check that it reaches the program under its own name."""
    elsewhere = {  # a value of each handler, of `secrets`, or of no deployment
        "TASKFLUX_HTTP__PORT",
        "TASKFLUX_HTTP__MANAGEMENT_PORT",
        "TASKFLUX_HTTP__LINGER_SECONDS",
        "TASKFLUX_WORKER__DRAIN_SECONDS",
        "TASKFLUX_POSTGRES__POOL_SIZE",
        "TASKFLUX_WORKER__IMAGE",
        "TASKFLUX_WORKER__ORIGIN",
        "TASKFLUX_API__URL",
        "TASKFLUX_KAFKA__TLS_CA_FILE",
        "TASKFLUX_KAFKA__TLS_CERT_FILE",
        "TASKFLUX_KAFKA__TLS_KEY_FILE",
        "TASKFLUX_REDIS__CA_FILE",
        "TASKFLUX_SCALER__PORT",
        "TASKFLUX_SCALER__TLS_CERT_FILE",
        "TASKFLUX_SCALER__TLS_CLIENT_CA_FILE",
        "TASKFLUX_SCALER__TLS_KEY_FILE",
        "TASKFLUX_SMTP__ACCESS_TOKEN_FILE",
        "TASKFLUX_SMTP__CA_FILE",
        "TASKFLUX_SECRETS_DIR",
    }
    unsettable = [
        name
        for name, variable in VARIABLES.items()
        if not variable.secret and name not in elsewhere and not _settable(name)
    ]
    assert not unsettable


def _settable(name: str) -> bool:
    section, _, field = name.removeprefix("TASKFLUX_").lower().partition("__")
    return f"{section}.{_camel(field)}" in _settings_in_schema()


def _camel(name: str) -> str:
    return re.sub(r"_([a-z0-9])", lambda match: match[1].upper(), name)


@cache
def _settings_in_schema() -> set[str]:
    """`section.name` of each setting that values.schema.json takes."""
    schema: Any = json.loads((CHART / "values.schema.json").read_text())

    def resolve(node: Any) -> Any:
        while "$ref" in node:
            target: Any = schema
            for part in node["$ref"].removeprefix("#/").split("/"):
                target = target[part]
            node = target
        return node

    sections = resolve(resolve(schema)["properties"]["settings"])["properties"]
    return {f"{name}.{key}" for name, section in sections.items() for key in resolve(section)["properties"]}


def test_a_setting_reaches_the_program_under_its_own_name() -> None:
    rendering = full(
        {
            "settings": {
                "kafka": {"produceTimeout": 4.5, "retentionHours": 48, "idempotent": False},
                "smtp": {"tlsVerify": False, "maxMessageBytes": 10485760},
                "worker": {"leaseSeconds": 60},
            },
            "handlers": {"process-email": {"settings": {"worker": {"concurrency": 3}, "smtp": {"rate": 7.5}}}},
        }
    )
    email, sms = (handler_container(rendering, name).environment for name in ("process-email", "process-sms"))
    assert email["TASKFLUX_KAFKA__PRODUCE_TIMEOUT"] == sms["TASKFLUX_KAFKA__PRODUCE_TIMEOUT"] == "4.5"
    assert email["TASKFLUX_KAFKA__IDEMPOTENT"] == "false"
    # YAML makes a float of it; 1.048576e+07 is not an integer for the program.
    assert email["TASKFLUX_SMTP__MAX_MESSAGE_BYTES"] == "10485760"
    assert email["TASKFLUX_SMTP__TLS_VERIFY"] == "false"
    assert (email["TASKFLUX_WORKER__CONCURRENCY"], email["TASKFLUX_SMTP__RATE"]) == ("3", "7.5")
    assert "TASKFLUX_WORKER__CONCURRENCY" not in sms
    assert sms["TASKFLUX_WORKER__LEASE_SECONDS"] == "60"


def test_an_access_token_file_replaces_the_password() -> None:
    rendering = full({"secrets": {"smtp": {"accessTokenKey": "token"}}})
    for name in ("notify", "process-email"):
        container = handler_container(rendering, name)
        assert container.files[container.environment["TASKFLUX_SMTP__ACCESS_TOKEN_FILE"]] == stand_in("smtp", "token")
        assert "TASKFLUX_SMTP__PASSWORD" not in container.environment


def test_each_secret_reaches_its_variable() -> None:
    rendering = full(
        {
            "settings": {"kafka": {"securityProtocol": "SASL_SSL"}},
            "secrets": {
                "postgres": {"migrateDsnKey": "direct", "caKey": "ca.crt"},
                "kafka": {
                    "existingSecret": "kafka",
                    "usernameKey": "user",
                    "passwordKey": "word",
                    "caKey": "ca.crt",
                    "certKey": "tls.crt",
                    "keyKey": "tls.key",
                },
                "smtp": {"caKey": "ca.crt"},
                "redis": {"caKey": "ca.crt"},
                "msg91": {"webhookSecretKey": "webhook"},
            },
        }
    )
    notify, email = (handler_container(rendering, name) for name in ("notify", "process-email"))
    ingest, sms = (handler_container(rendering, name) for name in ("ingest", "process-sms"))
    for container in (notify, email, ingest, sms):
        given = container.environment
        assert given["TASKFLUX_POSTGRES__DSN"] == stand_in("postgres", "dsn")
        assert given["TASKFLUX_REDIS__URL"] == stand_in("redis", "url")
        assert container.files[given["PGSSLROOTCERT"]] == stand_in("postgres", "ca.crt")
        assert container.files[given["TASKFLUX_REDIS__CA_FILE"]] == stand_in("redis", "ca.crt")
    for container in (email, ingest, sms):
        given = container.environment
        assert given["TASKFLUX_KAFKA__SASL_USERNAME"] == stand_in("kafka", "user")
        assert given["TASKFLUX_KAFKA__SASL_PASSWORD"] == stand_in("kafka", "word")
        for variable, key in (("CA", "ca.crt"), ("CERT", "tls.crt"), ("KEY", "tls.key")):
            assert container.files[given[f"TASKFLUX_KAFKA__TLS_{variable}_FILE"]] == stand_in("kafka", key)
    for container in (notify, email):
        assert container.environment["TASKFLUX_SMTP__USERNAME"] == stand_in("smtp", "username")
        assert container.environment["TASKFLUX_SMTP__PASSWORD"] == stand_in("smtp", "password")
        assert container.files[container.environment["TASKFLUX_SMTP__CA_FILE"]] == stand_in("smtp", "ca.crt")
    for container in (notify, sms):
        assert container.environment["TASKFLUX_MSG91__AUTH_KEY"] == stand_in("msg91", "auth-key")
    assert ingest.environment["TASKFLUX_MSG91__WEBHOOK_SECRET"] == stand_in("msg91", "webhook")
    for container, others in ((sms, "smtp"), (email, "msg91"), (ingest, "smtp"), (notify, "kafka")):
        held = (*container.environment.values(), *container.files.values())
        assert not [text for text in held if text.startswith(f"{others}.") and text.endswith("abcdef")], (
            f"{container.pod} is given {others}'s"
        )
    assert "TASKFLUX_MSG91__AUTH_KEY" not in ingest.environment


def test_a_ca_in_a_secret_of_its_own_is_mounted_beside_the_credentials_and_nothing_else_of_it() -> None:
    rendering = full(
        {
            "settings": {"kafka": {"securityProtocol": "SASL_SSL", "saslUsername": "taskflux"}},
            "secrets": {
                "postgres": {"caSecret": "database-ca", "sslMode": "verify-full"},
                "kafka": {
                    "existingSecret": "kafka",
                    "passwordKey": "password",
                    "caSecret": "shop-cluster-ca-cert",
                    "certKey": "user.crt",
                    "keyKey": "user.key",
                },
                "redis": {"caSecret": "cache-ca", "caKey": "root.pem"},
                "smtp": {"caSecret": "mail-ca", "accessTokenKey": "token"},
            },
        }
    )
    container = handler_container(rendering, "process-email")
    given, files = container.environment, container.files
    assert given["PGSSLMODE"] == "verify-full"
    assert files[given["PGSSLROOTCERT"]] == stand_in("database-ca", "ca.crt")
    assert files[given["TASKFLUX_KAFKA__TLS_CA_FILE"]] == stand_in("shop-cluster-ca-cert", "ca.crt")
    assert files[given["TASKFLUX_KAFKA__TLS_CERT_FILE"]] == stand_in("kafka", "user.crt")
    assert files[given["TASKFLUX_KAFKA__TLS_KEY_FILE"]] == stand_in("kafka", "user.key")
    assert files[given["TASKFLUX_REDIS__CA_FILE"]] == stand_in("cache-ca", "root.pem")
    assert files[given["TASKFLUX_SMTP__CA_FILE"]] == stand_in("mail-ca", "ca.crt")
    assert files[given["TASKFLUX_SMTP__ACCESS_TOKEN_FILE"]] == stand_in("smtp", "token")
    names = {path.rpartition("/")[2] for path in files}
    assert names - VARIABLES.keys() == {"ca.crt", "tls.crt", "tls.key", "token"}


def test_a_ca_alone_needs_no_secret_with_credentials() -> None:
    secrets = {"kafka": {"caSecret": "kafka-ca"}, "smtp": {"existingSecret": "", "caSecret": "mail-ca"}}
    container = handler_container(
        full({"settings": {"kafka": {"securityProtocol": "SSL"}}, "secrets": secrets}), "process-email"
    )
    given = container.environment
    assert container.files[given["TASKFLUX_KAFKA__TLS_CA_FILE"]] == stand_in("kafka-ca", "ca.crt")
    assert container.files[given["TASKFLUX_SMTP__CA_FILE"]] == stand_in("mail-ca", "ca.crt")
    assert "TASKFLUX_KAFKA__SASL_PASSWORD" not in given
