"""A TaskFlux on servers of its own, for tests that stop one of them."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path

from taskflux.local.servers import Broker, PostgresServer, ValkeyServer
from taskflux.store.migrate import migrate
from taskflux.store.settings import PostgresSettings, RedisSettings
from taskflux.stream.provision import ensure_topics
from taskflux.stream.settings import KafkaSettings
from tests.conftest import new_broker
from tests.integration.system.scripted import late, scripted
from tests.integration.system.stack import Stack, settings_for
from tests.kafka.broker import KafkaBroker

HANDLERS = (scripted, late)


@dataclass(frozen=True, slots=True)
class Fragile:
    """The servers, and what runs on them: all but a worker of `late`."""

    postgres: PostgresServer
    broker: Broker | KafkaBroker
    valkey: ValkeyServer
    stack: Stack
    _exit: AsyncExitStack

    @classmethod
    async def build(cls, kafka: KafkaSettings, directory: Path) -> Fragile:
        """Start it all."""
        async with AsyncExitStack() as exits:
            postgres, valkey = PostgresServer(directory / "postgres"), ValkeyServer(directory / "valkey")
            broker = new_broker(directory)
            await asyncio.gather(*(exits.enter_async_context(server) for server in (postgres, valkey, broker)))
            dsn = PostgresSettings.model_validate({"dsn": postgres.dsn})
            await migrate(dsn)
            kafka = kafka.model_copy(update={"bootstrap_servers": broker.bootstrap_servers, "topic_prefix": "fragile-"})
            redis = RedisSettings.model_validate({"url": valkey.url})
            stack = await Stack.create(settings_for(dsn, kafka, redis), HANDLERS, directory)
            exits.push_async_callback(stack.close)
            await asyncio.gather(*(stack.start(part) for part in ("ingest", "relay", "dlq-sink", scripted)))
            return cls(postgres, broker, valkey, stack, exits.pop_all())
        raise AssertionError("not reached")

    async def close(self) -> None:
        """End what runs, then the servers."""
        await self._exit.aclose()

    async def broker_is_back(self) -> None:
        """Start the broker again, and see to its topics as `taskflux dev` does: the embedded one has forgotten them."""
        await self.broker.start()
        await ensure_topics(self.stack.settings.kafka, [handler.type for handler in HANDLERS])
