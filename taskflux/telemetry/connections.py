"""Connections to providers, as metrics show them; the process that counts them sets `watch`."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final, Protocol


class Pooled(Protocol):
    """A pool of connections: how many have a user now, and how many more could."""

    @property
    def used(self) -> int: ...

    @property
    def free(self) -> int: ...


class Watch(Protocol):
    """Is told what becomes of connections."""

    def opened(self, server: str) -> None:
        """One was made."""
        ...

    def pooled(self, provider: str, pool: Pooled) -> None:
        """From now on connections are kept here."""
        ...


watch: Watch | None = None
"""Set by the process that counts."""

_CONNECTED: Final = "connection.connect_tcp.complete"


def opened(server: str) -> None:
    """A connection to `server` was made."""
    if watch is not None:
        watch.opened(server)


def pooled(provider: str, pool: Pooled) -> None:
    """Connections to `provider` are kept in `pool`."""
    if watch is not None:
        watch.pooled(provider, pool)


def told_by_http(server: str) -> Mapping[str, Callable[[str, Mapping[str, Any]], Awaitable[None]]]:
    """Extensions for an httpx request that have a new connection counted (httpcore's `trace`)."""

    async def trace(event: str, info: Mapping[str, Any]) -> None:
        if event == _CONNECTED:
            opened(server)

    return {"trace": trace}
