"""Redis behind TLS, by a CA of its own."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio
import trustme
from pydantic import ValidationError
from uuid_utils.compat import uuid7

from taskflux.local.servers import ValkeyServer
from taskflux.store.accelerator import Accelerator
from taskflux.store.settings import RedisSettings

AUTHORITY = trustme.CA()


@pytest_asyncio.fixture
async def encrypted(valkey: ValkeyServer) -> AsyncIterator[str]:
    """The URL of a proxy that speaks TLS to its clients, and plainly to Valkey."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    AUTHORITY.issue_cert("localhost").configure_cert(context)
    plain = valkey.url.removeprefix("redis://").rstrip("/").rpartition("@")[2].partition("/")[0]
    host, _, port = plain.rpartition(":")

    async def forward(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        up, down = await asyncio.open_connection(host, int(port))

        async def copy(source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
            while part := await source.read(65536):
                target.write(part)
            target.close()

        await asyncio.gather(copy(reader, down), copy(up, writer), return_exceptions=True)

    server = await asyncio.start_server(forward, "127.0.0.1", 0, ssl=context)
    yield valkey.url.replace("redis://", "rediss://").replace(plain, f"localhost:{server.sockets[0].getsockname()[1]}")
    server.close()


@pytest.fixture
def authority(tmp_path: Path) -> Path:
    AUTHORITY.cert_pem.write_to_path(tmp_path / "ca.crt")
    return tmp_path / "ca.crt"


async def cached(settings: RedisSettings) -> bytes | None:
    """What a document is after it was cached: itself where Redis is used, else nothing."""
    accelerator, task = Accelerator(settings), uuid7()
    await accelerator.open()
    await accelerator.cache("default", task, b"{}")
    document = await accelerator.cached("default", task)
    await accelerator.close()
    return document


async def test_a_server_is_verified_by_the_ca_that_is_named(encrypted: str, authority: Path) -> None:
    known = RedisSettings.model_validate({"url": encrypted, "ca_file": str(authority), "timeout": 5})
    assert await cached(known) == b"{}"
    assert await cached(RedisSettings.model_validate({"url": encrypted, "timeout": 5})) is None


def test_a_ca_for_an_address_without_tls_is_refused(authority: Path) -> None:
    with pytest.raises(ValidationError, match="does not begin with rediss://"):
        RedisSettings.model_validate({"url": "redis://cache:6379/0", "ca_file": str(authority)})
