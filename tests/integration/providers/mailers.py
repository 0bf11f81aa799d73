"""Mailers at the servers of `smtp_server`, and what becomes of a mail that they send."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Any

import pytest
import trustme

from taskflux.providers.email import Email
from taskflux.providers.smtp import Mailer, connect
from taskflux.providers.smtp_session import SmtpSettings
from taskflux.tasks.errors import TaskError
from tests.integration.providers.smtp_server import Postbox, smtp_server

DATE = datetime(2026, 3, 1, 12, 30, tzinfo=UTC)
BOUND = 20.0


def mail(*to: str, **fields: Any) -> Email:
    return Email(to=list(to) or ["ann@example.org"], subject="Hello", body="Hi", **fields)


async def sent(mailer: Mailer, email: Email | None = None, **more: Any) -> dict[str, Any]:
    async with asyncio.timeout(BOUND):
        return await mailer.send(email or mail(), message_id="0199", date=DATE, **more)


async def failed(mailer: Mailer, email: Email | None = None, **more: Any) -> TaskError:
    with pytest.raises(TaskError) as failure:
        await sent(mailer, email, **more)
    return failure.value


@asynccontextmanager
async def mailer_at(port: int, **settings: Any) -> AsyncIterator[Mailer]:
    given = {
        "host": "127.0.0.1",
        "port": port,
        "tls": "none",
        "sender": "TaskFlux <tasks@example.org>",
        "hostname": "me.test",
    }
    async with connect.connect(SmtpSettings.model_validate(given | settings)) as mailer:
        yield mailer


@asynccontextmanager
async def plain(postbox: Postbox, *, options: dict[str, Any] | None = None, **settings: Any) -> AsyncIterator[Mailer]:
    async with smtp_server(postbox, **(options or {})), mailer_at(postbox.port, **settings) as mailer:
        yield mailer


@asynccontextmanager
async def over_starttls(
    postbox: Postbox,
    certificate: trustme.LeafCert,
    ca_file: str,
    *,
    options: dict[str, Any] | None = None,
    **settings: Any,
) -> AsyncIterator[Mailer]:
    async with (
        smtp_server(postbox, tls="starttls", certificate=certificate, **(options or {})),
        mailer_at(postbox.port, tls="starttls", ca_file=ca_file, **settings) as mailer,
    ):
        yield mailer


async def refused_check(mailer: Mailer, expected: type[TaskError]) -> TaskError:
    with pytest.raises(expected) as failure:
        async with asyncio.timeout(BOUND):
            await mailer.check()
    return failure.value
