"""Connections that this process makes, as metrics."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final
from weakref import WeakSet

from taskflux.stream import client
from taskflux.telemetry import connections, metrics
from taskflux.telemetry.connections import Pooled

_pools: Final[dict[str, WeakSet[Pooled]]] = {}


def install() -> None:
    """Count the connections of this process from now on."""
    connections.watch = _Providers()
    client.on_connected = metrics.OPENED.labels("kafka").inc


class _Providers:
    """A `Watch` over all of this process's connections to providers."""

    def opened(self, server: str) -> None:
        metrics.OPENED.labels(server).inc()

    def pooled(self, provider: str, pool: Pooled) -> None:
        pools = _pools.setdefault(provider, WeakSet())
        pools.add(pool)
        metrics.OPENED.labels(provider)
        metrics.PROVIDER_CONNECTIONS.labels(provider, "used").set_function(_used(pools))
        metrics.PROVIDER_CONNECTIONS.labels(provider, "free").set_function(_free(pools))


def _used(pools: WeakSet[Pooled]) -> Callable[[], float]:
    return lambda: sum(pool.used for pool in list(pools))


def _free(pools: WeakSet[Pooled]) -> Callable[[], float]:
    return lambda: sum(pool.free for pool in list(pools))
