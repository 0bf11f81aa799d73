"""Redis (or Valkey), if there is one: everything works without it.

It caches succeeded tasks, which do not change, and counts a provider's rate for all processes together. After an error
or a timeout, Redis is not used for a few seconds; nothing waits for it longer than its timeout.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, Final, TypeVar
from uuid import UUID

from pydantic import SecretStr

from taskflux.store.settings import RedisSettings
from taskflux.telemetry import metrics

if TYPE_CHECKING:
    from redis.asyncio import Redis

T = TypeVar("T")

REST: Final = 5.0
"""Seconds for which a Redis that failed is not used."""
FORGOTTEN: Final = 10
"""Seconds for which a forgotten task is not cached again: by then, every reader of its former row is done."""

# The generic cell rate algorithm (https://brandur.org/rate-limiting): one key holds the theoretical arrival time in
# microseconds, by Redis's own clock, another when that was read last: where the clock was set back, the arrival moves
# with it. Returns the microseconds that the caller has to wait for its turn.
_TURN: Final = """
local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]
local interval, burst = tonumber(ARGV[1]), tonumber(ARGV[2])
local back = math.max(tonumber(redis.call('GET', KEYS[2]) or now) - now, 0)
local arrival = math.max(tonumber(redis.call('GET', KEYS[1]) or now) - back, now)
local following = arrival + interval
local kept = math.ceil((following - now) / 1000) + 60000
redis.call('SET', KEYS[1], string.format('%.0f', following), 'PX', kept)
redis.call('SET', KEYS[2], string.format('%.0f', now), 'PX', kept)
return string.format('%.0f', math.max(0, arrival - burst - now))
"""


class Accelerator:
    """The uses of Redis; without a URL it does nothing, at no cost."""

    def __init__(self, settings: RedisSettings) -> None:
        self._settings = settings
        self._client: Redis | None = None
        self._url: SecretStr | None = None
        """What the client was made from."""
        self._rests_until = 0.0

    async def open(self) -> None:
        """Create the client; it connects on first use."""
        metrics.OPENED.zeros("redis")
        metrics.ACCELERATOR_ERRORS.zeros()
        self._make()

    def _make(self) -> None:
        self._url = self._settings.url
        if self._url is None:
            return
        from redis.asyncio import Redis  # lazily: most handlers have no use for it

        authority: dict[str, Any] = {"ssl_ca_certs": self._settings.ca_file} if self._settings.ca_file else {}
        self._client = Redis.from_url(
            self._url.get_secret_value(),
            socket_timeout=self._settings.timeout,
            socket_connect_timeout=self._settings.timeout,
            redis_connect_func=self._connected,
            **authority,
        )

    async def close(self) -> None:
        """Close the connections."""
        client, self._client = self._client, None
        if client is not None:
            await client.aclose()

    async def cached(self, tenant: str, task: UUID) -> bytes | None:
        """The cached document of a succeeded task."""
        return await self._try(lambda client: client.get(f"taskflux:task:{tenant}:{task}")) or None

    async def cache(self, tenant: str, task: UUID, document: bytes) -> None:
        """Keep the document of a succeeded task for a while."""
        if self._settings.cache_seconds:
            key = f"taskflux:task:{tenant}:{task}"
            await self._try(lambda client: client.set(key, document, ex=self._settings.cache_seconds, nx=True))

    async def forget(self, tenant: str, task: UUID) -> None:
        """Drop the cached document of a task that has changed."""
        await self._try(lambda client: client.set(f"taskflux:task:{tenant}:{task}", b"", ex=FORGOTTEN))

    async def turn(self, name: str, rate: float, burst: float) -> float | None:
        """Take the next turn of the limit `name` (`rate` a second) and return the seconds to wait for it.

        None without a Redis that answers.
        """
        interval = 1e6 / rate
        keys = f"taskflux:rate:{name}", f"taskflux:rate:{name}:read"
        wait: Any = await self._try(
            lambda client: client.eval(_TURN, len(keys), *keys, repr(interval), repr(interval * burst))
        )
        return None if wait is None else float(wait) / 1e6

    async def _connected(self, connection: Any) -> None:
        """Set up a new connection."""
        await connection.on_connect()
        metrics.OPENED.labels("redis").inc()

    async def _try(self, call: Callable[[Any], Awaitable[T]]) -> T | None:
        now = asyncio.get_running_loop().time()
        former = None
        if self._settings.url is not self._url:  # it was renewed
            former, self._client = self._client, None
            self._make()
            self._rests_until = 0.0
        if (former is None and self._client is None) or now < self._rests_until:
            return None
        from redis.exceptions import RedisError

        try:
            if former is not None:
                await former.aclose()
            return None if self._client is None else await call(self._client)
        except (RedisError, OSError, TimeoutError):
            self._rests_until = now + REST
            metrics.ACCELERATOR_ERRORS.labels().inc()
            return None
