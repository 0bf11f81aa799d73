"""What aiokafka logs and raises, explained; tests/kafka/test_causes.py shows it on a real broker."""

from __future__ import annotations

import asyncio
import logging
import ssl
import time
from collections.abc import Iterator

import pytest
from aiokafka.errors import (
    GroupAuthorizationFailedError,
    IllegalGenerationError,
    KafkaConnectionError,
    NodeNotReadyError,
    NotControllerError,
    RebalanceInProgressError,
    RequestTimedOutError,
    SaslAuthenticationFailed,
)
from pydantic import SecretStr

from taskflux.stream import client as causes
from taskflux.stream.client import explained
from taskflux.stream.settings import KafkaSettings
from taskflux.telemetry import metrics

PASSWORD = "hidden-77"
SETTINGS = KafkaSettings(bootstrap_servers="k1.test:9093,k2.test:9093", request_timeout=3)
SASL = SETTINGS.model_copy(
    update={"security_protocol": "SASL_SSL", "sasl_username": "ann", "sasl_password": SecretStr(PASSWORD)}
)
UNREACHED = KafkaConnectionError("Unable to bootstrap from []")
_GROUPS = logging.getLogger("aiokafka.consumer.group_coordinator")


@pytest.fixture(autouse=True)
def deaf() -> Iterator[None]:
    """Nothing is heard of what another test has logged."""
    causes._logged.clear()
    yield
    causes._logged.clear()


def closed_by(error: BaseException) -> KafkaConnectionError:
    """As aiokafka says that a connection is over."""
    closed = KafkaConnectionError("Connection at k1.test:9093 closed")
    closed.__cause__ = error
    return closed


def hear(error: BaseException, host: str = "k1.test") -> None:
    """As aiokafka logs a bootstrap that failed."""
    causes.LIBRARY.error('Unable connect to "%s:%s": %s', host, 9093, error)


@pytest.mark.parametrize(
    ("error", "kind", "said"),
    [
        (asyncio.IncompleteReadError(b"\x02\x02P", 0x15030300), "tls-port", "k1.test:9093 uses TLS, but"),
        (asyncio.IncompleteReadError(b"/1.1 400", 0x48545450), "http", "k1.test:9093 speaks HTTP"),
        (asyncio.IncompleteReadError(b"", 4), "closed", "k1.test:9093 closed the connection"),
        (ConnectionResetError(104, "Connection reset by peer"), "closed", "k1.test:9093 closed the connection"),
    ],
)
def test_how_a_connection_ended_says_what_the_port_speaks(error: Exception, kind: str, said: str) -> None:
    since = time.monotonic()
    hear(closed_by(error))
    cause = explained(UNREACHED, since, SETTINGS)
    assert cause.kind == kind
    assert cause.reason.startswith(said)


@pytest.mark.parametrize(
    ("error", "kind", "said"),
    [
        (TimeoutError(), "timeout", "k1.test:9093 did not answer within 3 s"),
        (OSError(113, "No route to host"), "network", "k1.test:9093 cannot be reached (No route to host)"),
        (ConnectionResetError(), "closed", "k1.test:9093 closed the connection"),
        (ConnectionRefusedError(111, "Connect call failed"), "refused", "nothing listens at k1.test:9093"),
    ],
)
def test_an_unreachable_broker_is_reported_by_its_address(error: Exception, kind: str, said: str) -> None:
    since = time.monotonic()
    hear(error)
    cause = explained(UNREACHED, since, SETTINGS)
    assert (cause.kind, cause.reason.partition(" (connection")[0]) == (kind, said)


@pytest.mark.parametrize(
    ("code", "message", "kind"),
    [
        (10, "certificate has expired", "certificate"),
        (18, "self-signed certificate", "authority"),
        (62, "Hostname mismatch, certificate is not valid for 'k1.test'.", "host-name"),
    ],
)
def test_a_certificate_that_is_not_accepted_says_why(code: int, message: str, kind: str) -> None:
    error = ssl.SSLCertVerificationError(1, "certificate verify failed")
    error.verify_code, error.verify_message = code, message
    since = time.monotonic()
    hear(error)
    cause = explained(UNREACHED, since, SASL)
    assert cause.kind == kind
    assert f"({message.rstrip('.')})" in cause.reason


def test_of_several_brokers_causes_the_most_precise_is_reported() -> None:
    since = time.monotonic()
    hear(ConnectionRefusedError(111, "refused"), "k1.test")
    hear(SaslAuthenticationFailed("bad credentials"), "k2.test")
    hear(TimeoutError(), "k3.test")
    assert explained(UNREACHED, since, SASL).reason == "k2.test:9093 refused the login of ann (bad credentials)"


def test_log_lines_from_before_the_attempt_are_ignored() -> None:
    hear(ConnectionRefusedError(111, "refused"))
    later = time.monotonic() + 0.001
    assert explained(TimeoutError(), later, SETTINGS).reason == ("k1.test:9093,k2.test:9093 did not answer within 3 s")


def test_an_answer_is_not_explained_by_a_broker_that_could_not_be_reached_meanwhile() -> None:
    since = time.monotonic()
    hear(ConnectionRefusedError(111, "refused"))
    assert explained(NotControllerError("topic"), since, SETTINGS).reason == "NotController: topic"
    denied = explained(GroupAuthorizationFailedError("group"), since, SASL)
    assert (denied.kind, denied.reason) == ("denied", "Kafka does not authorize ann (GroupAuthorizationFailed)")


def test_a_broker_unreachable_by_its_advertised_name_is_reported_by_its_number() -> None:
    since = time.monotonic()
    causes.LIBRARY.error("Unable connect to node with id %s: %s", 7, ConnectionRefusedError(111, "refused"))
    assert explained(NodeNotReadyError("7"), since, SETTINGS).reason.startswith("nothing listens at broker 7")
    assert explained(RequestTimedOutError(), since, SETTINGS).reason.startswith("nothing listens at broker 7")


@pytest.mark.parametrize("words", [f"no such user ann/{PASSWORD}", PASSWORD, "a" * 195 + PASSWORD])
def test_a_password_that_a_broker_repeats_is_not_reported(words: str) -> None:
    since = time.monotonic()
    hear(SaslAuthenticationFailed(words))
    cause = explained(UNREACHED, since, SASL)
    assert cause.kind == "login"
    assert PASSWORD[:4] not in cause.reason + cause.fix


def test_a_brokers_message_becomes_one_short_line() -> None:
    since = time.monotonic()
    hear(SaslAuthenticationFailed("a\nb\x1b[31m" + "c" * 10_000))
    said = explained(UNREACHED, since, SASL).reason
    assert said.isprintable()
    assert len(said) < 300


def test_each_failure_is_counted() -> None:
    counted = metrics.KAFKA_FAILURES.labels("refused")
    before, link = counted.value, causes.Link(SETTINGS)
    for _ in range(5):
        link.failed(ConnectionRefusedError(111, "refused"), time.monotonic())
    assert counted.value == before + 5


def test_every_kind_of_cause_has_a_sentence_and_a_fix() -> None:
    for settings in (SETTINGS, SASL):
        for kind in metrics.KAFKA_CAUSES[:-1]:
            said, do = causes._sentences(kind, "k1.test:9093", "", settings)
            assert said
            assert do


@pytest.mark.parametrize(
    ("message", "about"),
    [
        ("OffsetCommit failed for group %s due to group error (%s), will rejoin", RebalanceInProgressError("group")),
        ("OffsetCommit failed for group %s due to group error (%s), will rejoin", IllegalGenerationError("group")),
        ("Heartbeat session expired - marking coordinator dead %s %s", "group"),
    ],
)
def test_a_rebalance_is_not_logged_as_an_error_of_the_client(
    caplog: pytest.LogCaptureFixture, message: str, about: object
) -> None:
    with caplog.at_level(logging.DEBUG):
        _GROUPS.error(message, "group", about)
    assert [record.levelno for record in caplog.records] == [logging.INFO]


def test_another_error_of_a_group_is_logged_as_an_error(caplog: pytest.LogCaptureFixture) -> None:
    _GROUPS.error("Attempt to join group failed due to fatal error: %s", GroupAuthorizationFailedError("group"))
    assert [record.levelno for record in caplog.records] == [logging.ERROR]
