"""Questions to the cluster over one connection that mends itself."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Final, TypeVar

from aiokafka.client import AIOKafkaClient
from aiokafka.errors import LeaderNotAvailableError, NotLeaderForPartitionError

from taskflux.stream.client import connected, connection_options
from taskflux.stream.errors import TROUBLE, KafkaUnavailable, error_name
from taskflux.stream.settings import KafkaSettings

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
                connected()
            return self._client
