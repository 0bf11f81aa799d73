"""What becomes of a connection to PostgreSQL that does not come about or is lost, and what is said of it."""

from __future__ import annotations

import asyncio
import logging
import ssl
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import trustme
from pydantic import SecretStr

from taskflux.store.database import Database, Statement
from taskflux.store.errors import StoreBusy, StoreUnavailable, level_of
from taskflux.store.settings import PostgresSettings
from taskflux.telemetry import outages
from tests.conftest import NewDatabase

ONE = Statement("one", "SELECT 1", ())
LOST = Statement("lost", "SELECT pg_terminate_backend(pg_backend_pid())", ())


@pytest.fixture
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture
async def port(authority: trustme.CA) -> AsyncIterator[int]:
    """Where a server agrees to TLS as PostgreSQL does; its certificate is for db.example.org."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("db.example.org").configure_cert(context)

    async def upgrade(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readexactly(8)  # SSLRequest
        writer.write(b"S")
        try:
            await writer.start_tls(context)
        except OSError:
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(upgrade, "127.0.0.1", 0)
    yield server.sockets[0].getsockname()[1]
    server.close()


@pytest.mark.parametrize(
    ("mode", "ours", "says"),
    [("verify-ca", False, "unable to get local issuer certificate"), ("verify-full", True, "IP address mismatch")],
    ids=["of an unknown authority", "of another host"],
)
async def test_a_certificate_that_is_refused_is_named(
    mode: str, ours: bool, says: str, authority: trustme.CA, port: int, tmp_path: Path
) -> None:
    (authority if ours else trustme.CA()).cert_pem.write_to_path(tmp_path / "ca.pem")
    dsn = f"postgresql://ann:s3cret@127.0.0.1:{port}/tasks?sslmode={mode}&sslrootcert={tmp_path}/ca.pem"
    database = Database(PostgresSettings(dsn=SecretStr(dsn)))
    await database.open()
    with pytest.raises(StoreUnavailable) as refused:
        await database.fetch(ONE)
    await database.close()
    said = str(refused.value)
    assert said.startswith("PostgreSQL's certificate is refused (")
    assert says in said
    assert "TASKFLUX_POSTGRES__DSN" in said
    assert "s3cret" not in said


async def test_an_outage_is_logged_once_with_the_fix_and_its_end(
    new_database: NewDatabase, no_outages: None, caplog: pytest.LogCaptureFixture
) -> None:
    database = Database(await new_database(), pool_size=1)
    await database.open()
    with caplog.at_level(logging.INFO, outages.log.name):
        for _ in range(3):
            with pytest.raises(StoreUnavailable, match="terminating connection") as lost:
                await database.fetch(LOST)
        assert outages.waiting() == [f"waiting for PostgreSQL: {lost.value}"]
        await database.fetch(ONE)
    assert outages.waiting() == []
    with pytest.raises(StoreUnavailable):
        await database.fetch(LOST)
    await database.close()
    assert outages.waiting() == []
    began, ended = (record for record in caplog.records if record.name == outages.log.name)
    assert (began.levelname, began.getMessage()) == ("WARNING", "waiting for PostgreSQL")
    assert "terminating connection" in vars(began)["error"]
    assert "TASKFLUX_POSTGRES__DSN" in vars(began)["do"]
    assert (ended.levelname, ended.getMessage()) == ("INFO", "PostgreSQL answers again")


def test_work_that_waits_logs_an_outage_at_debug_level() -> None:
    assert level_of(StoreUnavailable("connection refused")) == logging.DEBUG
    assert level_of(StoreBusy("deadlock detected")) == logging.WARNING
