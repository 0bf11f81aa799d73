"""What the stores cost, as metrics."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import TYPE_CHECKING, Final
from weakref import WeakSet

from taskflux.store.accelerator import Accelerator
from taskflux.store.errors import StoreError
from taskflux.store.settings import RedisSettings
from taskflux.telemetry import labels, metrics

if TYPE_CHECKING:
    from taskflux.store.database import Database

_open: Final[WeakSet[Database]] = WeakSet()


class _DatabaseMetrics:
    """A `Watch` over all of this process's connections to PostgreSQL."""

    def opened(self, database: Database) -> None:
        _open.add(database)
        for error in labels.STORE_ERRORS:
            metrics.STATEMENT_ERRORS.labels(error)
        metrics.OPENED.labels("postgresql")
        metrics.POOL.labels("used").set_function(_used)
        metrics.POOL.labels("free").set_function(_free)

    def connected(self) -> None:
        metrics.OPENED.labels("postgresql").inc()

    def waited(self, seconds: float) -> None:
        _wait()(seconds)

    def answered(self, statement: str, seconds: float) -> None:
        _statement(statement)(seconds)

    def failed(self, error: StoreError) -> None:
        metrics.STATEMENT_ERRORS.labels(type(error).__name__).inc()


def accelerator(settings: RedisSettings) -> Accelerator:
    """Redis, counted."""
    return Accelerator(
        settings, on_connect=metrics.OPENED.labels("redis").inc, on_error=metrics.ACCELERATOR_ERRORS.labels().inc
    )


def _used() -> float:
    return sum(database.used for database in list(_open))


def _free() -> float:
    return sum(database.size - database.used for database in list(_open))


@cache
def _wait() -> Callable[[float], None]:
    return metrics.POOL_WAIT.labels().observe  # type: ignore[no-any-return]


@cache
def _statement(name: str) -> Callable[[float], None]:
    return metrics.STATEMENT_SECONDS.labels(name).observe  # type: ignore[no-any-return]


DATABASE: Final = _DatabaseMetrics()
