from __future__ import annotations

import sys
from contextlib import AsyncExitStack
from typing import Any

import pytest

from taskflux.handlers import ingest


async def test_without_its_reader_of_promql_ingest_serves_no_page_and_says_what_brings_it(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def exposed() -> tuple[bytes, str]:
        return b"", ""

    process: Any = None  # it is asked for nothing
    for name in ("taskflux.http.status.overview", "taskflux.http.status.promql"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.setitem(sys.modules, "promql_parser", None)
    async with AsyncExitStack() as stack:
        assert await ingest._status(process, stack, exposed) == ()
    (record,) = caplog.records
    assert "taskflux[local]" in record.getMessage()
    assert vars(record)["needs"] == "promql_parser"
