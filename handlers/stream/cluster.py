"""Questions to the cluster over one connection that mends itself."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

from aiokafka.client import AIOKafkaClient

from handlers.stream.client import connected, connection_options
from handlers.stream.errors import TROUBLE, KafkaUnavailable, error_name
from handlers.stream.settings import KafkaSettings

T = TypeVar("T")


class Cluster:
    """An AIOKafkaClient that connects at the first question, and afresh after one that failed."""

    def __init__(self, settings: KafkaSettings) -> None:
        self._options = connection_options(settings)
        self._timeout = settings.request_timeout
        self._client: AIOKafkaClient | None = None
        self._connecting = asyncio.Lock()

    async def ask(self, question: Callable[[AIOKafkaClient], Awaitable[T]]) -> T:
        """The answer to `question`, which is put a second time where a connection that stood idle has died.

        `question` must bear being put twice. Raises KafkaUnavailable, after `request_timeout` seconds for each try at
        most.
        """
        try:
            return await self._try(question)
        except TROUBLE:
            pass
        try:
            return await self._try(question)
        except TROUBLE as error:
            raise KafkaUnavailable(f"Kafka did not answer ({error_name(error)})") from error

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
