"""How clients connect to Kafka, and why they cannot: with a sentence and a fix.

aiokafka does not raise most causes: it logs why a broker cannot be reached, and raises the same error for all of them
(`AIOKafkaClient.bootstrap`, `send`). So this module reads its log: the lines about connections explain the error.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import ssl
import time
from collections import deque
from collections.abc import Iterator
from typing import Any, Final, NamedTuple

from aiokafka.errors import (
    ClusterAuthorizationFailedError,
    GroupAuthorizationFailedError,
    GroupCoordinatorNotAvailableError,
    GroupLoadInProgressError,
    IllegalGenerationError,
    IllegalSaslStateError,
    KafkaConnectionError,
    KafkaError,
    KafkaTimeoutError,
    NoBrokersAvailable,
    NodeNotReadyError,
    NotCoordinatorForGroupError,
    RebalanceInProgressError,
    RequestTimedOutError,
    SaslAuthenticationFailed,
    StaleMetadata,
    TopicAuthorizationFailedError,
    UnknownMemberIdError,
    UnsupportedSaslMechanismError,
)

from taskflux.endpoints import ages
from taskflux.stream.settings import KafkaSettings
from taskflux.telemetry import metrics, outages

TROUBLE = (KafkaError, OSError, asyncio.TimeoutError)
"""The errors of aiokafka when a broker is unreachable or slow, refuses, or answers with an error."""


class KafkaUnavailable(Exception):
    """Kafka did not answer in time: whether the request was done is unknown; retry later. `fix` says what to do."""

    def __init__(self, message: str, fix: str = "") -> None:
        super().__init__(message)
        self.fix = fix

    @property
    def with_fix(self) -> str:
        """The message, with the fix if it is known."""
        return f"{self}: {self.fix}" if self.fix else str(self)


def error_name(error: BaseException) -> str:
    """A bounded name for metrics: the class, or `Timeout` for any timeout."""
    return "Timeout" if isinstance(error, TimeoutError) else type(error).__name__.removesuffix("Error")


METADATA_MAX_AGE_MS = 30_000
"""New partitions and moved leaders are seen within this time even where nothing fails."""
_DAY_MS: Final = 86_400_000
_PARTITION_FETCH_BYTES: Final = 1_048_576
_LARGEST_DEAD_LETTERS: Final = 2
"""How much a consumer unpacks at once, as a number of the largest dead letters: one fits with all around it."""


def connection_options(settings: KafkaSettings) -> dict[str, Any]:
    """Keyword arguments that aiokafka's producer, consumer and clients share.

    None of them may name a topic that could be missing (`subscribe` with names, `add_topic`, `partitions_for` …):
    aiokafka's request for its metadata makes Kafka create it, if auto.create.topics.enable is on (the default), with
    the broker's number of partitions; a deleted topic would come back with one. A request for the metadata of all
    topics, which aiokafka sends if none is named, creates none.

    Reads the PEM files: raises OSError or ssl.SSLError where one is missing or broken.
    """
    options: dict[str, Any] = {
        "bootstrap_servers": settings.bootstrap_servers,
        "client_id": "taskflux",
        "request_timeout_ms": int(settings.request_timeout * 1000),
        "metadata_max_age_ms": METADATA_MAX_AGE_MS,
        "security_protocol": settings.security_protocol,
    }
    if settings.security_protocol.endswith("SSL"):
        options["ssl_context"] = _tls(settings)
    if settings.security_protocol.startswith("SASL"):
        options["sasl_mechanism"] = settings.sasl_mechanism
        options["sasl_plain_username"] = settings.sasl_username
        options["sasl_plain_password"] = settings.sasl_password.get_secret_value() if settings.sasl_password else None
    return options


def credentials(settings: KafkaSettings) -> object:
    """Something that differs once the credentials or the files with certificates have been renewed."""
    files = ages(settings.tls_ca_file, settings.tls_cert_file, settings.tls_key_file)
    return settings.sasl_username, settings.sasl_password, files


def consumer_options(settings: KafkaSettings) -> dict[str, Any]:
    """Keyword arguments of a `BoundedConsumer` that reads records, as a member of a group or without one."""
    return connection_options(settings) | {
        "limit": _LARGEST_DEAD_LETTERS * settings.dead_letter_max_bytes,
        "auto_offset_reset": "earliest",
        "isolation_level": "read_committed",  # no records of aborted transactions
        "enable_auto_commit": False,
        "session_timeout_ms": int(settings.session_timeout * 1000),
        "heartbeat_interval_ms": int(settings.session_timeout * 1000 / 4),
        # A join is answered when the slowest member has joined, which may take the session timeout.
        "request_timeout_ms": int((max(settings.request_timeout, settings.session_timeout) + 5.0) * 1000),
        # Fetching stops while all slots are busy; heartbeats go on in the background.
        "max_poll_interval_ms": _DAY_MS,
        "fetch_max_wait_ms": settings.fetch_max_wait_ms,
        "max_partition_fetch_bytes": max(_PARTITION_FETCH_BYTES, settings.max_record_bytes),
    }


def _tls(settings: KafkaSettings) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=settings.tls_ca_file)
    if settings.tls_cert_file:
        context.load_cert_chain(settings.tls_cert_file, settings.tls_key_file)
    return context


LIBRARY: Final = logging.getLogger("aiokafka")
_ASKED: Final = "Unable to request metadata"
"""Log lines about a broker that was reached, but did not answer the first request, begin with this."""
_WORDS, _KEPT = 200, 10_000
"""Characters of a library's or broker's message that are shown at most, and that are kept until then."""
_UNREACHED: Final = (KafkaConnectionError, NodeNotReadyError, NoBrokersAvailable, StaleMetadata)
_LATE: Final = (TimeoutError, RequestTimedOutError, KafkaTimeoutError)
_REBALANCE: Final = (
    RebalanceInProgressError,
    IllegalGenerationError,
    UnknownMemberIdError,
    NotCoordinatorForGroupError,
    GroupCoordinatorNotAvailableError,
    GroupLoadInProgressError,
)
_TLS_ALERT, _HTTP = 0x1503, int.from_bytes(b"HTTP", "big")
"""First bytes of an answer in another protocol, read as the length of a Kafka response (RFC 8446, 5.1)."""
_MISMATCH: Final = (62, 64)
_UNTRUSTED: Final = (2, 18, 19, 20, 21)
"""OpenSSL's codes: wrong host name or IP address; no chain to a trusted certificate (X509_V_ERR_…)."""

_NOT_TLS: Final = ("WRONG_VERSION_NUMBER", "UNEXPECTED_EOF_WHILE_READING", "RECORD_LAYER_FAILURE")
_V: Final = "TASKFLUX_KAFKA__"
_LISTENERS: Final = (
    f"check that the brokers run, {_V}BOOTSTRAP_SERVERS and SECURITY_PROTOCOL, and that the brokers' advertised"
    " addresses can be reached from here"
)

_BY_PRECISION: Final = metrics.KAFKA_CAUSES[:-1]
"""Of several causes, the first in this order is reported."""


class Cause(NamedTuple):
    """`kind` is a label of the metric, `reason` a sentence without secrets, `fix` what to do."""

    kind: str
    reason: str
    fix: str


class Link:
    """One use of Kafka, such as sending: reports why it fails, and when it works again."""

    def __init__(self, settings: KafkaSettings) -> None:
        self._settings = settings
        self._link = outages.Link("Kafka")
        self.works = self._link.works
        """To be called when an attempt succeeded."""

    def failed(self, error: BaseException, since: float) -> Cause:
        """Why an attempt that began at `since` (`time.monotonic`) ended with `error`."""
        cause = explained(error, since, self._settings)
        metrics.KAFKA_FAILURES.labels(cause.kind).inc()
        self._link.failed(*cause)
        return cause

    def unavailable(self, error: BaseException, since: float) -> KafkaUnavailable:
        """The same as an error to raise."""
        cause = self.failed(error, since)
        return KafkaUnavailable(f"Kafka did not answer: {cause.reason}", cause.fix)


class _Logged(NamedTuple):
    at: float
    where: str
    kind: str
    words: str


_logged: deque[_Logged] = deque(maxlen=32)


class _Listener(logging.Handler):
    """Records why brokers cannot be reached, and lowers the level of lines that every rebalance causes."""

    def emit(self, record: logging.LogRecord) -> None:
        args = record.args if isinstance(record.args, tuple) else ()
        if record.name == LIBRARY.name and args and isinstance(error := args[-1], BaseException):
            place = tuple(map(str, args[:-1]))
            where = ":".join(place) if len(place) == 2 else f"broker {' '.join(place)}"
            kind, words = _classified(error)
            if kind == "closed" and str(record.msg).startswith(_ASKED):
                kind = "login-required"
            _logged.append(_Logged(time.monotonic(), where, kind, words))
        if record.levelno >= logging.ERROR and _harmless(record):
            record.levelno, record.levelname = logging.INFO, logging.getLevelName(logging.INFO)


def _harmless(record: logging.LogRecord) -> bool:
    """Whether a line is about a rebalance, a coordinator that moves, or a member that must rejoin."""
    if not record.name.endswith(".group_coordinator") or record.exc_info:
        return False
    text = record.getMessage()
    return text.startswith("Heartbeat ") or any(error.__name__.removesuffix("Error") in text for error in _REBALANCE)


LIBRARY.addHandler(_Listener())


def explained(error: BaseException, since: float, settings: KafkaSettings) -> Cause:
    """The cause of `error`, which ended an attempt that began at `since` (`time.monotonic`)."""
    where, (kind, words) = settings.bootstrap_servers, _classified(error)
    if isinstance(error, (*_UNREACHED, *_LATE)):
        found = [each for each in _logged if each.at >= since and each.kind in _BY_PRECISION]
        if found:
            best = min(reversed(found), key=lambda each: _BY_PRECISION.index(each.kind))
            where, kind, words = best.where, best.kind, best.words
    secret = settings.sasl_password.get_secret_value() if settings.sasl_password else ""
    if secret and secret in words:
        words = "it repeats the password"
    words = words[:_WORDS]
    if kind == "not-tls" and not settings.security_protocol.endswith("SSL"):
        kind = "closed"
    if kind in _BY_PRECISION:
        words = f" ({words})" if words else ""
    reason, fix = _sentences(kind, where[:_WORDS], words, settings)
    return Cause(kind, reason, fix)


def _classified(error: BaseException) -> tuple[str, str]:
    """The kind of a cause, and the library's or broker's words about it."""
    for each in _chain(error):
        match each:
            case SaslAuthenticationFailed():
                return "login", _clean(each.args[0] if each.args else "")
            case UnsupportedSaslMechanismError():
                return "mechanism", ""
            case IllegalSaslStateError():
                return "no-login", ""
            case GroupAuthorizationFailedError() | TopicAuthorizationFailedError() | ClusterAuthorizationFailedError():
                return "denied", type(each).__name__.removesuffix("Error")
            case ssl.SSLError():
                return _tls_cause(each)
            case socket.gaierror():
                return "name", _clean(each.strerror)
            case ConnectionRefusedError():
                return "refused", "connection refused"
            case asyncio.IncompleteReadError(expected=int(expected)) if expected >> 16 == _TLS_ALERT:
                return "tls-port", ""
            case asyncio.IncompleteReadError(expected=expected) if expected == _HTTP:
                return "http", ""
            case RequestTimedOutError() | KafkaTimeoutError():
                return "timeout", type(each).__name__.removesuffix("Error")
            case TimeoutError():
                return "timeout", ""
            case ConnectionError() if each is error:  # once connected, aiokafka raises its own errors
                return "not-tls", _clean(each.strerror)
            case EOFError() | ConnectionError():
                return "closed", ""
            case OSError():
                return "network", _clean(each.strerror or each)
    name, words = type(error).__name__.removesuffix("Error"), _clean(error.args[0] if error.args else "")
    return "other", f"{name}: {words}" if words else name


def _tls_cause(error: ssl.SSLError) -> tuple[str, str]:
    reason = str(getattr(error, "reason", None) or "")  # None if Python itself raised it
    if isinstance(error, ssl.SSLCertVerificationError):
        known = dict.fromkeys(_MISMATCH, "host-name") | dict.fromkeys(_UNTRUSTED, "authority")
        return known.get(error.verify_code, "certificate"), _clean(error.verify_message).rstrip(".")
    if isinstance(error, ssl.SSLEOFError | ssl.SSLZeroReturnError) or reason in _NOT_TLS:
        return "not-tls", ""
    words = reason.rpartition("ALERT_")[2].replace("_", " ").lower() or _clean(error)
    of_ours = "ALERT" in reason and any(part in reason for part in ("CERTIFICATE", "UNKNOWN_CA", "ACCESS_DENIED"))
    return "client-certificate" if of_ours else "tls", words


def _sentences(kind: str, where: str, words: str, settings: KafkaSettings) -> tuple[str, str]:
    """The sentence for a cause, and the fix."""
    known = _of_logins(where, words, settings) | _of_tls(where, words, settings) | _of_networks(where, words, settings)
    return known.get(kind, (words, _LISTENERS))


def _of_logins(where: str, words: str, settings: KafkaSettings) -> dict[str, tuple[str, str]]:
    protocol = settings.security_protocol
    with_login = "SASL_SSL" if protocol.endswith("SSL") else "SASL_PLAINTEXT or SASL_SSL"
    return {
        "login": (
            f"{where} refused the login of {settings.sasl_username}{words}",
            f"check {_V}SASL_USERNAME, SASL_PASSWORD and SASL_MECHANISM ({settings.sasl_mechanism})",
        ),
        "mechanism": (
            f"{where} does not offer {settings.sasl_mechanism}",
            f"set {_V}SASL_MECHANISM to one that the broker's listener offers",
        ),
        "no-login": (
            f"{where} accepts no login, but {_V}SECURITY_PROTOCOL is {protocol}",
            f"set {_V}SECURITY_PROTOCOL to {protocol.removeprefix('SASL_')}, or use the address of a SASL listener",
        ),
        "login-required": (
            f"{where} closed the connection at the first request: it may require a login",
            f"if it does, set {_V}SECURITY_PROTOCOL to {with_login}, with SASL_USERNAME and SASL_PASSWORD;"
            " else read the broker's log",
        ),
        "denied": (
            f"Kafka does not authorize {settings.sasl_username or 'this client'}{words}",
            f"grant Describe, Read and Write on the topics and Read on the groups whose names begin with"
            f" {settings.topic_prefix or 'tasks.'!r}",
        ),
    }


def _of_tls(where: str, words: str, settings: KafkaSettings) -> dict[str, tuple[str, str]]:
    protocol = settings.security_protocol
    own = "refused the client certificate" if settings.tls_cert_file else "requires a client certificate"
    encrypted = "SASL_SSL" if protocol.startswith("SASL") else "SSL or SASL_SSL"
    return {
        "authority": (
            f"the certificate of {where} is not trusted{words}",
            f"set {_V}TLS_CA_FILE to the certificate of the CA that signed the broker's",
        ),
        "host-name": (
            f"the certificate of {where} does not match that host{words}",
            f"use host names that match the brokers' certificates in {_V}BOOTSTRAP_SERVERS and in the brokers'"
            " advertised.listeners",
        ),
        "certificate": (f"the certificate of {where} is refused{words}", "renew the broker's certificate"),
        "client-certificate": (
            f"{where} {own}{words}",
            f"set {_V}TLS_CERT_FILE and TLS_KEY_FILE to a certificate of a CA that the broker trusts",
        ),
        "tls-port": (
            f"{where} uses TLS, but {_V}SECURITY_PROTOCOL is {protocol}",
            f"set {_V}SECURITY_PROTOCOL to {encrypted}",
        ),
        "not-tls": (
            f"{where} closed the connection during the TLS handshake: it may not speak TLS",
            f"use the address of a TLS listener, or set {_V}SECURITY_PROTOCOL to"
            f" {protocol.replace('SSL', 'PLAINTEXT')}",
        ),
        "tls": (f"the TLS handshake with {where} failed{words}", "compare the TLS versions and ciphers of both sides"),
    }


def _of_networks(where: str, words: str, settings: KafkaSettings) -> dict[str, tuple[str, str]]:
    return {
        "http": (f"{where} speaks HTTP", f"set {_V}BOOTSTRAP_SERVERS to the brokers' own addresses"),
        "name": (
            f"the host name of {where} cannot be resolved{words}",
            f"check {_V}BOOTSTRAP_SERVERS, and the brokers' advertised.listeners",
        ),
        "refused": (f"nothing listens at {where}{words}", _LISTENERS),
        "network": (f"{where} cannot be reached{words}", _LISTENERS),
        "closed": (f"{where} closed the connection", _LISTENERS),
        "timeout": (f"{where} did not answer within {settings.request_timeout:g} s{words}", _LISTENERS),
    }


def _chain(error: BaseException) -> Iterator[BaseException]:
    """The error and what it was raised from, the outermost first."""
    each: BaseException | None = error
    for _ in range(10):
        if each is None:
            return
        yield each
        each = each.__cause__


def _clean(words: object) -> str:
    """The message of a library or a broker, as one line."""
    return "".join(each if each.isprintable() else " " for each in str(words or "")[:_KEPT])
