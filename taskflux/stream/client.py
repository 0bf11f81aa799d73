"""How clients connect to Kafka, and what its absence looks like to the rest of the program."""

from __future__ import annotations

import asyncio
import ssl
from typing import Any

from aiokafka.errors import KafkaError

from taskflux.stream.settings import KafkaSettings

TROUBLE = (KafkaError, OSError, asyncio.TimeoutError)
"""What aiokafka raises when a broker is unreachable, slow, refuses, or answers with an error."""


class KafkaUnavailable(Exception):
    """Kafka did not answer in time: whether the request was done is unknown; retry later. `do` is the fix."""

    def __init__(self, said: str, do: str = "") -> None:
        super().__init__(said)
        self.do = do

    @property
    def with_fix(self) -> str:
        """What is wrong, with the fix if it is known."""
        return f"{self}: {self.do}" if self.do else str(self)


def error_name(error: BaseException) -> str:
    """A bounded name for metrics: the class, `Timeout` for every kind of one."""
    return "Timeout" if isinstance(error, TimeoutError) else type(error).__name__.removesuffix("Error")


METADATA_MAX_AGE_MS = 30_000
"""New partitions and moved leaders are seen within this time even where nothing fails."""


def connection_options(settings: KafkaSettings) -> dict[str, Any]:
    """Keyword arguments that aiokafka's producer, consumer and clients share.

    None of them may name a topic that could be missing (`subscribe` with names, `add_topic`, `partitions_for` …):
    aiokafka then asks for its metadata in a way that makes Kafka create it, where auto.create.topics.enable is on (its
    default), with the broker's number of partitions; a topic that was deleted came back with one. Metadata of all
    topics, which is asked for where none is named, creates none.

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


def _tls(settings: KafkaSettings) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=settings.tls_ca_file)
    if settings.tls_cert_file:
        context.load_cert_chain(settings.tls_cert_file, settings.tls_key_file)
    return context
