import ssl
from pathlib import Path

import pytest
import trustme
from pydantic import SecretStr, ValidationError

from taskflux.stream.client import connection_options
from taskflux.stream.provision import topic_config
from taskflux.stream.settings import KafkaSettings


def test_plain_connections_carry_no_secrets_and_no_tls() -> None:
    options = connection_options(KafkaSettings(bootstrap_servers="a:1,b:2"))
    assert options["bootstrap_servers"] == "a:1,b:2"
    assert options["security_protocol"] == "PLAINTEXT"
    assert not any(name.startswith(("ssl", "sasl")) for name in options)


def test_tls_checks_the_brokers_against_the_ca_and_shows_our_certificate(tmp_path: Path) -> None:
    authority = trustme.CA()
    ca, key, certificate = tmp_path / "ca.pem", tmp_path / "key.pem", tmp_path / "cert.pem"
    authority.cert_pem.write_to_path(str(ca))
    issued = authority.issue_cert("client.example")
    issued.private_key_pem.write_to_path(str(key))
    issued.cert_chain_pems[0].write_to_path(str(certificate))
    options = connection_options(
        KafkaSettings(
            security_protocol="SASL_SSL",
            sasl_username="u",
            sasl_password=SecretStr("p"),
            tls_ca_file=str(ca),
            tls_cert_file=str(certificate),
            tls_key_file=str(key),
        )
    )
    context = options["ssl_context"]
    assert context.verify_mode is ssl.CERT_REQUIRED
    assert context.check_hostname
    assert (options["sasl_mechanism"], options["sasl_plain_username"], options["sasl_plain_password"]) == (
        "SCRAM-SHA-512",
        "u",
        "p",
    )


def test_a_dead_letter_topic_that_could_not_take_a_poison_record_is_refused() -> None:
    with pytest.raises(ValidationError, match="dead_letter_max_bytes is below max_record_bytes"):
        KafkaSettings(max_record_bytes=2_000_000, dead_letter_max_bytes=1_000_000)


def test_the_dead_letter_topic_takes_larger_records_than_the_others() -> None:
    settings = KafkaSettings(topic_prefix="x-", retention_hours=1, dead_letter_max_bytes=5_000_000)
    assert topic_config(settings, "x-tasks.email") == {"cleanup.policy": "delete", "retention.ms": "3600000"}
    assert int(topic_config(settings, "x-tasks.dlq")["max.message.bytes"]) > 5_000_000
