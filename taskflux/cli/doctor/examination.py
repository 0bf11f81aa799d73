"""The order of the examination: who cannot be reached is told once, and asked nothing more."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress

from taskflux.cli.doctor import configuration, kafka, msg91, notify, pooler, postgres, redis, smtp, work
from taskflux.cli.doctor.findings import Finding
from taskflux.store.checkup import Checkup
from taskflux.store.database import Database
from taskflux.store.errors import StoreError
from taskflux.store.task_types import TaskTypes
from taskflux.stream.topics import is_task_type
from taskflux.worker.settings import Settings


async def examine() -> list[Finding]:
    """Every finding, subject by subject."""
    settings, findings = configuration.examine()
    if settings is None:
        return findings
    types: Sequence[str] | None = None
    if settings.postgres.dsn.get_secret_value():
        store, types = await _store(settings)
        findings += store
    if settings.kafka.bootstrap_servers:
        findings += await kafka.examine(settings, types)
    findings += await redis.examine(settings.redis)
    findings += await smtp.examine()
    findings += await msg91.examine()
    findings += await notify.examine(settings.notify)
    return findings


async def _store(settings: Settings) -> tuple[list[Finding], Sequence[str] | None]:
    """What is found of PostgreSQL and of what runs over it, and the registered task types."""
    database = Database(settings.postgres.model_copy(update={"pool_size": 1}), name="taskflux doctor")
    types: Sequence[str] | None = None
    findings: list[Finding] = []
    try:
        await database.open()
        checkup = Checkup(database)
        with suppress(StoreError):  # postgres.examine says why
            types = [name for name in await TaskTypes(database).names() if is_task_type(name)]
        findings += await postgres.examine(checkup, settings, types or [])
        findings += await pooler.examine(settings.postgres)
        if types is not None:
            findings += await work.examine(checkup, settings)
    except StoreError as error:
        findings.append(postgres.unreachable(error))
    finally:
        await database.close()
    return findings, types
