"""How every client of ours connects."""

from __future__ import annotations

import functools
import ssl
from collections.abc import Callable
from typing import Any

import aiokafka.client
from aiokafka.protocol.metadata import MetadataRequest

from taskflux.stream.settings import KafkaSettings

on_connected: Callable[[], None] | None = None
"""Is told of every producer, and every client that asks questions, which has reached the cluster. Set by the process
that counts them."""

METADATA_MAX_AGE_MS = 30_000
"""New partitions and moved leaders are seen within this time even where nothing fails."""

# aiokafka asks for metadata in a way that has Kafka create what it asks for (auto.create.topics.enable, on by default),
# with the broker's number of partitions: a topic that was deleted came back with one. It has no option for this.
aiokafka.client.MetadataRequest = functools.partial(MetadataRequest, allow_auto_topic_creation=False)


def connected() -> None:
    """A producer, or a client that asks questions, has reached the cluster."""
    if on_connected is not None:
        on_connected()


def connection_options(settings: KafkaSettings) -> dict[str, Any]:
    """Keyword arguments that aiokafka's producer, consumer and clients share.

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
