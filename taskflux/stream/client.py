"""What Kafka's absence looks like to the rest of the program."""

from __future__ import annotations

import asyncio
import functools
import ssl
from collections.abc import Awaitable, Callable
from typing import Any, Final, TypeVar

import aiokafka.client
from aiokafka.client import AIOKafkaClient
from aiokafka.errors import KafkaError, LeaderNotAvailableError, NotLeaderForPartitionError
from aiokafka.protocol.metadata import MetadataRequest

from taskflux.stream.settings import KafkaSettings
from taskflux.telemetry import metrics

TROUBLE = (KafkaError, OSError, asyncio.TimeoutError)
"""What aiokafka raises when a broker is away, slow, refuses, or answers with an error."""


class KafkaUnavailable(Exception):
    """Kafka did not answer, or not in time: nothing is known about what was asked; ask again later."""


def error_name(error: BaseException) -> str:
    """A bounded name for metrics: the class, `Timeout` for every kind of one."""
    return "Timeout" if isinstance(error, TimeoutError) else type(error).__name__.removesuffix("Error")


METADATA_MAX_AGE_MS = 30_000
"""New partitions and moved leaders are seen within this time even where nothing fails."""

# aiokafka asks for metadata in a way that has Kafka create what it asks for (auto.create.topics.enable, on by default),
# with the broker's number of partitions: a topic that was deleted came back with one. It has no option for this.
aiokafka.client.MetadataRequest = functools.partial(MetadataRequest, allow_auto_topic_creation=False)


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


T = TypeVar("T")

LEADERLESS: Final = (0.0, 0.1, 0.2, 0.4, 0.8, 1.6)
"""Seconds before a question is put again where a partition's leader does not know that it leads: a new topic's learns
of it a moment after the cluster says so, another one's after an election.
"""
_NO_LEADER: Final = (NotLeaderForPartitionError, LeaderNotAvailableError)


class Cluster:
    """An AIOKafkaClient that connects at the first question, and afresh after one that failed."""

    def __init__(self, settings: KafkaSettings) -> None:
        self._options = connection_options(settings)
        self._timeout = settings.request_timeout
        self._client: AIOKafkaClient | None = None
        self._connecting = asyncio.Lock()

    async def ask(self, question: Callable[[AIOKafkaClient], Awaitable[T]]) -> T:
        """The answer to `question`, put again where a connection that stood idle has died or a leader is not there yet.

        `question` must bear that. Raises KafkaUnavailable, after `request_timeout` seconds for each try at most.
        """
        died, unled = iter((0.0,)), iter(LEADERLESS)
        while True:
            try:
                return await self._try(question)
            except TROUBLE as error:
                pause = next(unled if isinstance(error, _NO_LEADER) else died, None)
                if pause is None:
                    raise KafkaUnavailable(f"Kafka did not answer ({error_name(error)})") from error
            await asyncio.sleep(pause)

    async def close(self) -> None:
        """Close the connection; a later question opens another."""
        client, self._client = self._client, None
        if client is not None:
            await client.close()

    async def _try(self, question: Callable[[AIOKafkaClient], Awaitable[T]]) -> T:
        client = None
        try:
            async with asyncio.timeout(self._timeout):
                client = await self._connected()
                return await question(client)
        except TROUBLE:
            if client is not None and client is self._client:
                await self.close()
            raise

    async def _connected(self) -> AIOKafkaClient:
        async with self._connecting:
            if self._client is None:
                client = AIOKafkaClient(**self._options)
                try:
                    await client.bootstrap()
                except BaseException:
                    await client.close()
                    raise
                self._client = client
                metrics.OPENED.labels("kafka").inc()
            return self._client
