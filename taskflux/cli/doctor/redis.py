"""Redis: optional, so never worse than a warning."""

from __future__ import annotations

import time

from taskflux.cli.doctor.findings import Finding, Subject
from taskflux.store.settings import RedisSettings

REDIS = Subject("Redis")


async def examine(settings: RedisSettings) -> list[Finding]:
    """Connect, PING twice, take the second time."""
    if settings.url is None:
        return [REDIS.ok("not used", "there is none (TASKFLUX_REDIS__URL is unset); everything works without")]
    from redis.asyncio import Redis
    from redis.exceptions import RedisError

    do = "check TASKFLUX_REDIS__URL; without Redis, rate limits count for each process alone and nothing is cached"
    try:
        client = Redis.from_url(settings.url.get_secret_value(), socket_timeout=5.0, socket_connect_timeout=5.0)
    except ValueError as error:
        return [REDIS.warning("reachable", f"TASKFLUX_REDIS__URL cannot be used: {error}", do)]
    try:
        await client.ping()
        before = time.perf_counter()
        await client.ping()
        latency = time.perf_counter() - before
    except (RedisError, OSError) as error:
        return [REDIS.warning("reachable", f"it is not: {error}", do)]
    finally:
        await client.aclose()
    return [REDIS.ok("reachable", "it answers"), judge_latency(latency, settings)]


def judge_latency(latency: float, settings: RedisSettings) -> Finding:
    """Against the time that anybody waits for it."""
    told = f"{latency * 1000:.1f} ms; it is given up after {settings.timeout * 1000:.0f} ms"
    if latency > settings.timeout / 2:
        do = "move Redis nearer, or raise TASKFLUX_REDIS__TIMEOUT: what is given up does without"
        return REDIS.warning("latency", told, do)
    return REDIS.ok("latency", told)
